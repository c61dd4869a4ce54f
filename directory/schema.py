"""The shape of the directory: its attributes, object classes and tree, as slapd and every reader see them.

The national MSSanté LDAP publishes no schema. The names are those practice software already asks operators for
(`TypeBAL`, `IdentifiantPP`, `TypeIdentifiantPP`, `profession`, `IdentifiantPM`, `TypeIdentifiantPM`); beside them stand
the usual `inetOrgPerson` attributes (RFC 2798, RFC 4519), so that an ordinary address book can search here.

The tree under the base (`dc=mssante,dc=fr`):

    ou=professionnels    mail=ADDRESS                    mailboxes of persons (PER)
    ou=structures        mail=ADDRESS                    mailboxes of teams and practices (ORG, CAB)
    ou=applications      mail=ADDRESS                    mailboxes of machines (APP)
    ou=patients          mail=ADDRESS                    mailboxes of patients
    ou=personnes         IdNat=IDNAT                     professionals of the register, with or without a mailbox
    ou=etablissements    IdNatStruct=IDNAT_STRUCT        structures

A mailbox's RDN is its `mail`, so one branch holds an address once. Persons and structures use attributes of their own
(`NomExercice`, not `sn`): what an address book asks can only ever find mailboxes. A person's practice situations are
values of the attribute `Situation` (`directory.situations`), not entries: nobody is written to at a situation, they are
read and renewed together, so a reader never sees half a professional, and the nation is three million entries instead
of five: each of them is read once a day to be compared.
"""

from __future__ import annotations

from ldap.dn import escape_dn_chars, str2dn

from directory.ldif import LdifEntry
from directory.records import MailboxKind

OID_ARC = "2.25.77235982124915464905506273033929316473"
"""Our own arc, 2.25.<UUID as a decimal number> (ITU-T X.667 §7): anybody may use one without registration.

Drawn for this schema alone, so it collides with nobody. Below it `.1.N` are attributes and `.2.N` object classes; a
number that was released is never given to anything else. Should the national schema ever be published, its own
object identifiers replace these.
"""

BRANCHES: dict[MailboxKind, str] = {
    MailboxKind.PER: "professionnels",
    MailboxKind.ORG: "structures",
    MailboxKind.CAB: "structures",
    MailboxKind.APP: "applications",
    MailboxKind.PATIENT: "patients",
}
PATIENTS = BRANCHES[MailboxKind.PATIENT]

OBJECT_CLASSES: dict[MailboxKind, tuple[str, ...]] = {
    MailboxKind.PER: ("inetOrgPerson", "mssanteBAL"),
    MailboxKind.ORG: ("organizationalRole", "mssanteBAL"),
    MailboxKind.CAB: ("organizationalRole", "mssanteBAL"),
    MailboxKind.APP: ("device", "mssanteBAL"),
    MailboxKind.PATIENT: ("mssanteUsager", "mssanteBAL"),
}

CERTIFICATE = "userCertificate;binary"
SMIME_CERTIFICATE = "userSMIMECertificate"

SOURCE = "SourceBAL"
"""Who created the entry: `NATIONAL` (the register's extraction) or `LOCAL` (the overlay)."""
NATIONAL = b"NATIONAL"
LOCAL = b"LOCAL"
LOCAL_ATTRIBUTES = "AttributLocal"
"""On a national entry, the attributes the overlay owns: whoever renews the national data leaves these as they are."""

WORDS = "MotsRecherche"
"""On a mailbox, the folded words it is found by (`directory.words`): lower-case ASCII letters and digits."""
WORD_KEYS = "ClesRecherche"
"""How those words begin (`directory.words.KEY_LENGTHS`)."""
PERSON_WORDS = "MotsPersonne"
"""On a person, the words of name, profession, specialty, town: who has no mailbox is found by them."""
PERSON_WORD_KEYS = "ClesPersonne"
"""What of these words is indexed (`directory.words.person_keys`)."""

PERSONS = "personnes"
STRUCTURES = "etablissements"

_WORD = "EQUALITY caseExactIA5Match SUBSTR caseExactIA5SubstringsMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.26"
_KEY = "EQUALITY caseExactIA5Match SYNTAX 1.3.6.1.4.1.1466.115.121.1.26"
_PLAIN = "EQUALITY caseIgnoreMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15"
_STRING = "EQUALITY caseIgnoreMatch SUBSTR caseIgnoreSubstringsMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15"
_BOOLEAN = "EQUALITY booleanMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.7"

SCHEMA = f"""\
# MSSanté mailboxes, professionals and structures. The arc is explained in directory/schema.py.
objectidentifier mssante {OID_ARC}
objectidentifier mssanteAttribut mssante:1
objectidentifier mssanteClasse mssante:2

attributetype ( mssanteAttribut:1 NAME 'TypeBAL' DESC 'TRE_R257-TypeBAL: PER, ORG, APP, CAB; PATIENT'
  {_STRING} SINGLE-VALUE )
attributetype ( mssanteAttribut:2 NAME 'IdentifiantPP' DESC 'Identifier of the professional without its type digit'
  {_STRING} SINGLE-VALUE )
attributetype ( mssanteAttribut:3 NAME 'TypeIdentifiantPP' DESC 'Type digit: 0 ADELI, 8 RPPS, 3 FINESS/internal, ...'
  {_STRING} SINGLE-VALUE )
attributetype ( mssanteAttribut:4 NAME 'profession' DESC 'TRE_G15 code, 10 is a physician'
  {_STRING} SINGLE-VALUE )
attributetype ( mssanteAttribut:5 NAME 'IdentifiantPM' DESC 'Identifier of the structure without its type digit'
  {_STRING} SINGLE-VALUE )
attributetype ( mssanteAttribut:6 NAME 'TypeIdentifiantPM' DESC 'FINESS, SIREN, SIRET, ADELI or RPPS-RANG'
  {_STRING} SINGLE-VALUE )
attributetype ( mssanteAttribut:7 NAME 'IdNat' DESC 'National identifier of the mailbox holder, type digit first'
  {_STRING} SINGLE-VALUE )
attributetype ( mssanteAttribut:8 NAME 'IdNatStruct' DESC 'National identifier of the structure, type digit first'
  {_STRING} SINGLE-VALUE )
attributetype ( mssanteAttribut:9 NAME 'listeRouge' DESC 'TRUE: never shown to the address books of the public'
  {_BOOLEAN} SINGLE-VALUE )
attributetype ( mssanteAttribut:10 NAME 'dematerialisation' DESC 'TRUE: the holder accepts to receive no more paper'
  {_BOOLEAN} SINGLE-VALUE )
attributetype ( mssanteAttribut:11 NAME '{SOURCE}' DESC 'NATIONAL or LOCAL: who created the entry'
  {_STRING} SINGLE-VALUE )
attributetype ( mssanteAttribut:12 NAME '{LOCAL_ATTRIBUTES}' DESC 'Attributes of a national entry that are kept locally'
  {_STRING} )
attributetype ( mssanteAttribut:13 NAME '{WORDS}' DESC 'Folded words a mailbox is found by'
  {_WORD} )
attributetype ( mssanteAttribut:14 NAME '{WORD_KEYS}' DESC 'How the words of MotsRecherche begin'
  {_KEY} )
attributetype ( mssanteAttribut:15 NAME '{PERSON_WORDS}' DESC 'Folded words a person is found by'
  {_WORD} )
attributetype ( mssanteAttribut:32 NAME '{PERSON_WORD_KEYS}' DESC 'What of MotsPersonne is indexed'
  {_KEY} )
attributetype ( mssanteAttribut:16 NAME 'NomExercice' DESC 'Family name in practice'
  {_PLAIN} SINGLE-VALUE )
attributetype ( mssanteAttribut:17 NAME 'PrenomExercice' DESC 'Given name in practice'
  {_PLAIN} SINGLE-VALUE )
attributetype ( mssanteAttribut:18 NAME 'CiviliteExercice' DESC 'DR, PR, ...'
  {_PLAIN} SINGLE-VALUE )
attributetype ( mssanteAttribut:19 NAME 'CodeProfession' DESC 'TRE_G15 code'
  {_PLAIN} )
attributetype ( mssanteAttribut:20 NAME 'LibelleProfession' DESC 'Label of a profession'
  {_PLAIN} )
attributetype ( mssanteAttribut:21 NAME 'CodeSavoirFaire' DESC 'TRE_R38 code'
  {_PLAIN} )
attributetype ( mssanteAttribut:22 NAME 'LibelleSavoirFaire' DESC 'Label of a specialty or competence'
  {_PLAIN} )
attributetype ( mssanteAttribut:23 NAME 'Diplome' DESC 'CODE LABEL of a diploma or authorisation'
  {_PLAIN} )
attributetype ( mssanteAttribut:24 NAME 'Situation' DESC 'A practice situation, fields separated by $'
  {_PLAIN} )
attributetype ( mssanteAttribut:25 NAME 'RaisonSociale' DESC 'Legal name of a structure'
  {_PLAIN} SINGLE-VALUE )
attributetype ( mssanteAttribut:26 NAME 'EnseigneCommerciale' DESC 'Trade name of a structure'
  {_PLAIN} SINGLE-VALUE )
attributetype ( mssanteAttribut:27 NAME 'VoieStructure' DESC 'Number and street of a structure'
  {_PLAIN} SINGLE-VALUE )
attributetype ( mssanteAttribut:28 NAME 'CodePostalStructure' DESC 'Postal code of a structure'
  {_PLAIN} SINGLE-VALUE )
attributetype ( mssanteAttribut:29 NAME 'CommuneStructure' DESC 'Town of a structure'
  {_PLAIN} SINGLE-VALUE )
attributetype ( mssanteAttribut:30 NAME 'TelephoneStructure' DESC 'Telephone of a structure'
  {_PLAIN} SINGLE-VALUE )
attributetype ( mssanteAttribut:31 NAME 'RangBAL' DESC 'Order of preference among the mailboxes of one holder, 1 first'
  EQUALITY integerMatch ORDERING integerOrderingMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )

objectclass ( mssanteClasse:1 NAME 'mssanteBAL' DESC 'One mailbox of the trust space' SUP top AUXILIARY
  MUST ( mail $ TypeBAL $ {SOURCE} )
  MAY ( cn $ sn $ givenName $ displayName $ title $ o $ ou $ l $ st $ street $ postalCode $ description $
    telephoneNumber $ userCertificate $ userSMIMECertificate $ IdentifiantPP $ TypeIdentifiantPP $ profession $
    IdentifiantPM $ TypeIdentifiantPM $ IdNat $ IdNatStruct $ listeRouge $ dematerialisation $ {LOCAL_ATTRIBUTES} $
    {WORDS} $ {WORD_KEYS} $ RangBAL $ CodeSavoirFaire ) )
objectclass ( mssanteClasse:2 NAME 'mssanteUsager' DESC 'A patient, known by the address alone' SUP top STRUCTURAL
  MUST mail )
objectclass ( mssanteClasse:3 NAME 'mssantePersonne' DESC 'A professional of the register' SUP top STRUCTURAL
  MUST ( IdNat $ {SOURCE} )
  MAY ( NomExercice $ PrenomExercice $ CiviliteExercice $ CodeProfession $ LibelleProfession $ CodeSavoirFaire $
    LibelleSavoirFaire $ Diplome $ Situation $ {PERSON_WORDS} $ {PERSON_WORD_KEYS} ) )
objectclass ( mssanteClasse:4 NAME 'mssanteStructure' DESC 'A structure of the register' SUP top STRUCTURAL
  MUST ( IdNatStruct $ {SOURCE} )
  MAY ( RaisonSociale $ EnseigneCommerciale $ VoieStructure $ CodePostalStructure $ CommuneStructure $
    TelephoneStructure ) )
"""
"""slapd.conf form; needs the standard core, cosine and inetorgperson schemas."""

_ADDRESS_BOOK_ABSENT = (
    *("uid", "departmentNumber", "employeeNumber", "employeeType", "physicalDeliveryOfficeName", "homePhone"),
    *("mobile", "pager", "initials", "carLicense", "preferredLanguage", "businessCategory"),
)
"""Attributes no mailbox has that address books ask for all the same."""

INDEXES = f"""\
index objectClass,TypeBAL,{SOURCE},{LOCAL_ATTRIBUTES},listeRouge eq
index IdentifiantPP,IdentifiantPM,TypeIdentifiantPP,TypeIdentifiantPM,IdNat,IdNatStruct eq
index postalCode,description,telephoneNumber eq
index profession eq,pres
index mail,cn,sn,givenName,o,ou,title eq,subinitial,subany
index displayName,l eq,subinitial
index {WORDS},{WORD_KEYS},{PERSON_WORD_KEYS} eq
index userCertificate,userSMIMECertificate pres
index {",".join(_ADDRESS_BOOK_ABSENT)} pres,eq,sub
"""
"""Address books join a dozen attributes with OR in one filter: were one of them not indexed, slapd would read every
entry. An index of an attribute that nobody has costs nothing, and answers `none` at once. Substring indexes are four
fifths of the first load's work: only what address books really search by parts has one.
"""


def branch(kind: MailboxKind, base: str) -> str:
    """DN of the branch that holds mailboxes of this kind."""
    return f"ou={BRANCHES[kind]},{base}"


def dn_of(address: str, kind: MailboxKind, base: str) -> str:
    """DN of a mailbox; the address is lower-cased and escaped (RFC 4514 §2.4)."""
    return f"mail={escape_dn_chars(address.lower())},{branch(kind, base)}"  # type: ignore[no-untyped-call]


def person_dn(id_nat: str, base: str) -> str:
    """DN of a professional."""
    return f"IdNat={escape_dn_chars(id_nat)},ou={PERSONS},{base}"  # type: ignore[no-untyped-call]


def structure_dn(id_nat_struct: str, base: str) -> str:
    """DN of a structure."""
    return f"IdNatStruct={escape_dn_chars(id_nat_struct)},ou={STRUCTURES},{base}"  # type: ignore[no-untyped-call]


def skeleton(base: str) -> list[LdifEntry]:
    """The base entry and its branches, parents first.

    Raises ValueError when the base is not a DN that begins with `dc`, `o` or `ou`.
    """
    try:
        name, value, _ = str2dn(base)[0][0]  # type: ignore[no-untyped-call]
    except Exception as error:  # python-ldap has several classes for a bad DN
        raise ValueError(f"the directory base {base!r} is not a distinguished name") from error
    classes: tuple[bytes, ...]
    extra: dict[str, tuple[bytes, ...]] = {}
    match name.lower():
        case "dc":
            classes = (b"dcObject", b"organization")
            extra = {"o": (value.encode(),)}
        case "o":
            classes = (b"organization",)
        case "ou":
            classes = (b"organizationalUnit",)
        case _:
            raise ValueError(f"the directory base {base!r} must begin with dc=, o= or ou=")
    entries = [LdifEntry(base, {"objectClass": classes, name: (value.encode(),)} | extra)]
    for unit in dict.fromkeys((*BRANCHES.values(), PERSONS, STRUCTURES)):
        attributes = {"objectClass": (b"organizationalUnit",), "ou": (unit.encode(),)}
        entries.append(LdifEntry(f"ou={unit},{base}", attributes))
    return entries
