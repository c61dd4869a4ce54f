"""The shape of the directory: its attributes, object classes and tree, as slapd and every reader see them.

The national MSSanté LDAP publishes no schema. The names are those practice software already asks operators for
(`TypeBAL`, `IdentifiantPP`, `TypeIdentifiantPP`, `profession`, `IdentifiantPM`, `TypeIdentifiantPM`); beside them stand
the usual `inetOrgPerson` attributes (RFC 2798, RFC 4519), so that an ordinary address book can search here.

The tree under the base (`dc=mssante,dc=fr`): `ou=professionnels` (PER), `ou=structures` (ORG and CAB),
`ou=applications` (APP), `ou=patients` (PATIENT). An entry's RDN is its `mail`, so one branch holds an address once.
"""

from __future__ import annotations

from ldap.dn import escape_dn_chars, str2dn

from directory.ldif import LdifEntry
from directory.records import MailboxKind

OID_ARC = "2.25.77235982124915464905506273033929316473"
"""Placeholder arc under 2.25.<UUID as a decimal number> (ITU-T X.667 §7), which anybody may use without registration.

It was drawn for this schema alone, so it collides with nobody; should the national schema ever be published, its own
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

_STRING = "EQUALITY caseIgnoreMatch SUBSTR caseIgnoreSubstringsMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15"
_BOOLEAN = "EQUALITY booleanMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.7"

SCHEMA = f"""\
# MSSanté mailboxes. Object identifiers are placeholders, see directory/schema.py.
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

objectclass ( mssanteClasse:1 NAME 'mssanteBAL' DESC 'One mailbox of the trust space' SUP top AUXILIARY
  MUST ( mail $ TypeBAL $ {SOURCE} )
  MAY ( cn $ sn $ givenName $ displayName $ title $ o $ ou $ l $ st $ street $ postalCode $ description $
    telephoneNumber $ userCertificate $ userSMIMECertificate $ IdentifiantPP $ TypeIdentifiantPP $ profession $
    IdentifiantPM $ TypeIdentifiantPM $ IdNat $ IdNatStruct $ listeRouge $ dematerialisation $ {LOCAL_ATTRIBUTES} ) )
objectclass ( mssanteClasse:2 NAME 'mssanteUsager' DESC 'A patient, known by the address alone' SUP top STRUCTURAL
  MUST mail )
"""
"""slapd.conf form; needs the standard core, cosine and inetorgperson schemas."""

INDEXES = """\
index objectClass,TypeBAL,IdentifiantPP,IdentifiantPM,IdNat,IdNatStruct,postalCode,profession,l eq
index mail,cn,sn,givenName,o eq,sub
"""
"""Address books search all of mail, cn, sn and givenName at once: were one not indexed, slapd would read every entry.

Substring indexes cost two thirds of the first load, and are worth it.
"""


def branch(kind: MailboxKind, base: str) -> str:
    """DN of the branch that holds mailboxes of this kind."""
    return f"ou={BRANCHES[kind]},{base}"


def dn_of(address: str, kind: MailboxKind, base: str) -> str:
    """DN of a mailbox; the address is lower-cased and escaped (RFC 4514 §2.4)."""
    return f"mail={escape_dn_chars(address.lower())},{branch(kind, base)}"  # type: ignore[no-untyped-call]


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
    for unit in dict.fromkeys(BRANCHES.values()):
        attributes = {"objectClass": (b"organizationalUnit",), "ou": (unit.encode(),)}
        entries.append(LdifEntry(f"ou={unit},{base}", attributes))
    return entries
