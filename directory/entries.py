"""One mailbox as an LDAP entry, in both directions, and the sorting of its certificates.

Writing is strict. Reading is lenient: whatever an entry holds that cannot be understood is left aside, because one bad
certificate published by somebody must not make the mailbox unreachable.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from directory import schema
from directory.ldif import LdifEntry
from directory.records import MailboxKind, Recipient
from directory.words import all_keys, folded, words_of

ADDRESS_LENGTH = 254
"""RFC 5321 §4.5.3.1.3, angle brackets excluded."""

_ADDRESS = re.compile(r"[!-?A-~]{1,64}@[!-?A-~]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

STRUCTURE_TYPES = {"0": "ADELI", "1": "FINESS", "2": "SIREN", "3": "SIRET", "4": "RPPS-RANG"}
"""First digit of an IdNat_Struct and the `TypeIdentifiantPM` it stands for."""

_SPELLED_TWICE = frozenset(("cn", "sn", "givenName", "o", "ou", "l"))

READ_ATTRIBUTES = (
    "mail",
    "TypeBAL",
    "displayName",
    "IdNat",
    "IdNatStruct",
    "profession",
    "o",
    "userCertificate",
    schema.CERTIFICATE,
    schema.SMIME_CERTIFICATE,
)
"""What `to_recipient` needs from slapd."""


def is_address(address: str) -> bool:
    """Whether this can be the address of a mailbox: printable ASCII, one `@`, local part of 1 to 64 octets."""
    return len(address) <= ADDRESS_LENGTH and _ADDRESS.fullmatch(address) is not None


def make_entry(
    base: str,
    kind: MailboxKind,
    address: str,
    values: Mapping[str, str],
    source: bytes,
    certificates: Sequence[bytes] = (),
    words: tuple[bytes, ...] = (),
) -> LdifEntry:
    """An entry with what every mailbox has, the non-empty `values` by attribute name, and `certificates` (DER).

    `words` are those it is found by (`directory.words.words_of`). A name with accents is also spelled without, as a
    second value: address books compare accents, and people do not type them.
    """
    address = address.lower()
    attributes: dict[str, tuple[bytes, ...]] = {
        "objectClass": tuple(name.encode() for name in schema.OBJECT_CLASSES[kind]),
        "mail": (address.encode("ascii"),),
        "TypeBAL": (kind.value.encode(),),
        schema.SOURCE: (source,),
    }
    for name, value in values.items():
        if text := directory_string(value):
            bare = text if text.isascii() or name not in _SPELLED_TWICE else folded(text)
            same = bare is text or comparable(bare) == comparable(text)
            attributes[name] = (text.encode(),) if same else (text.encode(), bare.encode())
    if kind is not MailboxKind.PATIENT:
        attributes.setdefault("cn", attributes.get("displayName", attributes["mail"]))
    if kind is MailboxKind.PER:
        attributes.setdefault("sn", attributes["cn"])
    if words:
        attributes[schema.WORDS] = words
    if keys := all_keys(words):  # numbers have none
        attributes[schema.WORD_KEYS] = keys
    if certificates:
        attributes[schema.CERTIFICATE] = tuple(certificates)
    return LdifEntry(schema.dn_of(address, kind, base), attributes)


def person_identifiers(id_nat: str) -> dict[str, str]:
    """`IdentifiantPP` and `TypeIdentifiantPP` of an IdNat_PP."""
    return {"IdNat": id_nat, "TypeIdentifiantPP": id_nat[:1], "IdentifiantPP": id_nat[1:]}


def structure_identifiers(id_nat_struct: str) -> dict[str, str]:
    """`IdentifiantPM` and `TypeIdentifiantPM` of an IdNat_Struct."""
    digit = id_nat_struct[:1]
    return {
        "IdNatStruct": id_nat_struct,
        "TypeIdentifiantPM": STRUCTURE_TYPES.get(digit, digit),
        "IdentifiantPM": id_nat_struct[1:],
    }


def from_recipient(recipient: Recipient, base: str, red_list: bool = False) -> LdifEntry:
    """The overlay's entry for this mailbox.

    Raises ValueError when the address cannot be one.
    """
    if not is_address(recipient.address):
        raise ValueError("a mailbox cannot be published without a valid address")
    values = {"displayName": recipient.display_name, "o": recipient.organisation, "profession": recipient.profession}
    values |= structure_identifiers(recipient.structure)
    values |= person_identifiers(recipient.id_nat) if recipient.kind is MailboxKind.PER else {"IdNat": recipient.id_nat}
    if red_list:
        values["listeRouge"] = "TRUE"
    certificates = certificate_values(recipient)
    words = (
        () if recipient.kind is MailboxKind.PATIENT else words_of((recipient.display_name,), (recipient.organisation,))
    )
    return make_entry(base, recipient.kind, recipient.address, values, schema.LOCAL, certificates, words)


def certificate_values(recipient: Recipient) -> list[bytes]:
    """The certificates of a mailbox, DER, each once.

    slapd compares certificates by issuer and serial number (certificateExactMatch, RFC 4523 §2.5.1): so do we.
    """
    unique: dict[tuple[bytes, int], bytes] = {}
    for certificate in (*recipient.encryption_certificates, *recipient.signing_certificates):
        key = (certificate.issuer.public_bytes(), certificate.serial_number)
        unique.setdefault(key, certificate.public_bytes(Encoding.DER))
    return list(unique.values())


def to_recipient(attributes: Mapping[str, Sequence[bytes]]) -> Recipient | None:
    """The mailbox an entry describes, None when the entry is no mailbox (a branch, an unknown TypeBAL)."""
    fields = {name.lower(): values for name, values in attributes.items()}

    def text(name: str) -> str:
        values = fields.get(name.lower(), ())
        return values[0].decode("utf-8", "replace") if values else ""

    try:
        kind = MailboxKind(text("TypeBAL").upper())
    except ValueError:
        return None
    encoded = [
        value
        for name in ("userCertificate", schema.CERTIFICATE, schema.SMIME_CERTIFICATE)
        for value in fields.get(name.lower(), ())
    ]
    encryption, signing = sort_certificates(encoded)
    return Recipient(
        address=text("mail").lower(),
        kind=kind,
        display_name=text("displayName"),
        encryption_certificates=encryption,
        signing_certificates=signing,
        id_nat=text("IdNat"),
        profession=text("profession"),
        structure=text("IdNatStruct"),
        organisation=text("o"),
    )


def sort_certificates(
    encoded: Iterable[bytes],
) -> tuple[tuple[x509.Certificate, ...], tuple[x509.Certificate, ...]]:
    """(encryption, signing) certificates by KeyUsage (RFC 5280 §4.2.1.3), each once, in the order given.

    keyEncipherment or keyAgreement makes an encryption certificate, digitalSignature or nonRepudiation a signing one;
    both, or no KeyUsage at all, put it in both. `encoded` are DER certificates, or PKCS #7 SignedData holding some
    (userSMIMECertificate, RFC 2798 §2.8). What cannot be read is skipped.
    """
    encryption: dict[x509.Certificate, None] = {}
    signing: dict[x509.Certificate, None] = {}
    for value in encoded:
        for certificate in _load(value):
            encrypts, signs = _uses(certificate)
            if encrypts:
                encryption[certificate] = None
            if signs:
                signing[certificate] = None
    return tuple(encryption), tuple(signing)


def _load(value: bytes) -> list[x509.Certificate]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # oddities of other people's certificates are not our operator's business
        try:
            return [x509.load_der_x509_certificate(value)]
        except (ValueError, x509.InvalidVersion):
            pass
        try:
            return pkcs7.load_der_pkcs7_certificates(value)
        except Exception:  # cryptography raises several unrelated classes here, all meaning unreadable
            return []


def _uses(certificate: x509.Certificate) -> tuple[bool, bool]:
    """(may encrypt, may sign); neither when the extensions cannot be read."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return True, True
    except Exception:  # ValueError, UnsupportedAlgorithm, DuplicateExtension, UnsupportedGeneralNameType share no base
        return False, False
    return (
        usage.key_encipherment or usage.key_agreement,
        usage.digital_signature or usage.content_commitment,
    )


def comparable(text: str) -> str:
    """Equal for two texts that caseIgnoreMatch (RFC 4518) holds for the same: an attribute has only one of them."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).replace("\u0130", "i")
    return " ".join(text.casefold().split())


def directory_string(value: str) -> str:
    """Text fit for an LDAP Directory String (RFC 4517 §3.3.6): no control character, no blank at either end."""
    return value.strip() if value.isprintable() else _CONTROL.sub(" ", value).strip()
