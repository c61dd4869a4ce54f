"""One CMS structure described: algorithms, parameters, recipients, signers and certificates, by their names.

Nothing is decrypted, verified or decided here, and nothing of the content is shown: this is what an operator reads to
find out what a partner's product writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from smime import oids
from smime.cms_read import (
    Algorithm,
    Enveloped,
    KeyAgreement,
    KeyTransport,
    PartyId,
    Recipient,
    Signed,
    SignerInfo,
    read_algorithm,
)
from smime.identity import identity
from smime.policy import GcmVariant
from smime.schemes import UnsoundError, read_oaep, read_pss
from smime.signing_certificate import references
from trust import der
from trust.certificates import mail_addresses
from trust.der import DerError, Element, Octets

_NAMES = {value: name.lower().replace("_", "-") for name, value in vars(oids).items() if name.isupper()}
_NAMES |= {
    oids.RSA_ENCRYPTION: "rsa-pkcs1v15",
    oids.RSAES_OAEP: "rsa-oaep",
    oids.RSASSA_PSS: "rsa-pss",
    oids.CONTENT_TYPE: "contentType",
    oids.MESSAGE_DIGEST: "messageDigest",
    oids.SIGNING_TIME: "signingTime",
    oids.SMIME_CAPABILITIES: "smimeCapabilities",
    oids.SIGNING_CERTIFICATE: "signingCertificate",
    oids.SIGNING_CERTIFICATE_V2: "signingCertificateV2",
    oids.ALGORITHM_PROTECTION: "cmsAlgorithmProtection",
    oids.SIGNED_DATA: "signed-data",
    oids.ENVELOPED_DATA: "enveloped-data",
    oids.AUTH_ENVELOPED_DATA: "authEnveloped-data",
    oids.COMPRESSED_DATA: "compressed-data",
    "1.2.840.113549.1.7.5": "digested-data",
    "1.2.840.113549.1.7.6": "encrypted-data",
    "1.2.840.113549.1.9.16.1.2": "authenticated-data",
    "1.2.840.113549.1.9.16.1.4": "time-stamp-token",
    "1.2.840.113549.1.9.16.2.11": "smimeEncryptionKeyPreference",
    "1.2.840.113549.1.9.16.2.1": "receiptRequest",
    "1.2.840.113549.1.9.16.2.2": "securityLabel",
    "1.3.6.1.4.1.311.16.4": "microsoftEncryptionKeyPreference",
    "1.2.840.113549.2.5": "md5",
    "1.2.840.113549.1.1.4": "md5-with-rsa",
    "1.2.840.113549.3.2": "rc2-cbc",
    "1.3.14.3.2.7": "des-cbc",
}
_GCM_TAG = 12
"""Octets when aes-ICVlen is left out (RFC 5084 §3.2)."""


def name_of(oid: str) -> str:
    """What people call it; the OID itself for what is not known here."""
    return _NAMES.get(oid, oid)


@dataclass(frozen=True, slots=True)
class CertificateDescription:
    """A certificate, as far as the message or its reader cares."""

    subject: str
    """RFC 4514; so is `issuer`."""
    issuer: str
    serial: str
    """Hexadecimal; so are `key_id` and `sha256`."""
    not_before: datetime
    not_after: datetime
    key: str
    """`rsa-2048`, `secp256r1`, `ed25519`."""
    usages: tuple[str, ...]
    """KeyUsage and ExtendedKeyUsage, by their names or OIDs."""
    addresses: tuple[str, ...]
    authority: bool
    key_id: str
    sha256: str


@dataclass(frozen=True, slots=True)
class RecipientDescription:
    """One RecipientInfo (RFC 5652 §6.2)."""

    kind: str
    """`key-transport` or `key-agreement`."""
    issuer: str
    """Empty when the recipient is named by `key_id`; so is `serial`."""
    serial: str
    key_id: str
    algorithm: str
    parameters: dict[str, str | int]
    """OAEP: `hash`, `mask_hash`, `label_octets`. Agreement: `wrap`, `originator_octets`, `user_material_octets`."""
    encrypted_key_octets: int
    ours: bool
    """Whether it names one of the certificates at hand."""


@dataclass(frozen=True, slots=True)
class EncryptionDescription:
    """EnvelopedData or AuthEnvelopedData."""

    algorithm: str
    oid: str
    bound_key: bool
    """RFC 9709."""
    nonce_octets: int | None
    """Of the nonce or IV; None when the parameters cannot be read."""
    tag_octets_announced: int | None
    """aes-ICVlen, 12 when it is left out; None where there is none."""
    tag_octets: int
    """Of `mac` as sent; 0 where there is none."""
    authenticated_attributes: bool
    gcm_variants: tuple[str, ...]
    """What it looks like: names of `smime.policy.GcmVariant`."""
    recipients: tuple[RecipientDescription, ...]


@dataclass(frozen=True, slots=True)
class SignerDescription:
    """One SignerInfo (RFC 5652 §5.3)."""

    issuer: str
    serial: str
    key_id: str
    digest: str
    algorithm: str
    parameters: dict[str, str | int]
    """PSS: `hash`, `mask_hash`, `salt_octets`."""
    signature_octets: int
    attributes: tuple[str, ...]
    signing_time: datetime | None
    """What the signer claims."""
    signing_certificate: str
    """`matches`, `differs`, `absent`, or `no-certificate` when the signer's is not there to compare with."""
    capabilities: tuple[str, ...]
    certificate: str
    """SHA-256 of the signer's certificate among those carried; empty when it is not there."""


@dataclass(frozen=True, slots=True)
class SignedDescription:
    """SignedData."""

    detached: bool
    content_type: str
    digests: tuple[str, ...]
    signers: tuple[SignerDescription, ...]
    certificates: tuple[CertificateDescription, ...]
    unreadable_certificates: int


# --- Encryption ------------------------------------------------------------------------------------------------------


def describe_enveloped(enveloped: Enveloped, own: Sequence[x509.Certificate] = ()) -> EncryptionDescription:
    """`own`: certificates whose recipients are marked."""
    algorithm, bound = enveloped.algorithm, False
    if algorithm.oid == oids.CEK_HKDF_SHA256 and algorithm.parameters is not None:
        bound = True
        try:
            algorithm = read_algorithm(algorithm.parameters)
        except DerError:
            bound = False
    nonce, announced, variants = _parameters(enveloped, algorithm)
    return EncryptionDescription(
        algorithm=name_of(algorithm.oid),
        oid=algorithm.oid,
        bound_key=bound,
        nonce_octets=nonce,
        tag_octets_announced=announced,
        tag_octets=len(enveloped.mac),
        authenticated_attributes=bool(enveloped.auth_attributes),
        gcm_variants=tuple(variant.value for variant in variants),
        recipients=tuple(_recipient(recipient, own) for recipient in enveloped.recipients),
    )


def _parameters(enveloped: Enveloped, algorithm: Algorithm) -> tuple[int | None, int | None, list[GcmVariant]]:
    """Octets of the nonce, octets of the tag as announced, and what is not as RFC 5084 §3.2 has it."""
    variants: list[GcmVariant] = []
    nonce: int | None = None
    announced: int | None = None
    gcm = algorithm.oid in (oids.AES128_GCM, oids.AES192_GCM, oids.AES256_GCM)
    parameters = algorithm.parameters
    try:
        if parameters is not None and parameters.tag == der.OCTET_STRING:
            nonce = parameters.size
            if gcm:
                variants.append(GcmVariant.BARE_NONCE)
        elif parameters is not None:
            fields = parameters.sequence(4)
            nonce = len(fields[0].octets()) if fields else None
            announced = fields[1].integer() if len(fields) > 1 else _GCM_TAG
            if gcm and len(fields) == 1 and enveloped.authenticated and len(enveloped.mac) != _GCM_TAG:
                variants.append(GcmVariant.ICV_LENGTH_OMITTED)
    except DerError:
        nonce = None
    if gcm and not enveloped.authenticated:
        variants.append(GcmVariant.IN_ENVELOPED_DATA)
    elif gcm and enveloped.mac and tail(enveloped.content, len(enveloped.mac)) == enveloped.mac:
        variants.append(GcmVariant.TAG_IN_CONTENT)
    return nonce, announced, variants


def tail(content: Octets, octets: int) -> bytes:
    """The last octets of a value in chunks."""
    end = b""
    for piece in content:
        end = (end + bytes(piece[-octets:]))[-octets:]
    return end


def names_one_of(party: PartyId, own: Sequence[x509.Certificate]) -> bool:
    for certificate in own:
        try:
            if identity(certificate).is_named_by(party):
                return True
        except ValueError:
            continue
    return False


def _recipient(recipient: Recipient, own: Sequence[x509.Certificate]) -> RecipientDescription:
    issuer, serial, key_id = _party(recipient.recipient)
    parameters: dict[str, str | int] = {}
    try:
        if isinstance(recipient, KeyAgreement):
            if recipient.algorithm.parameters is not None:
                parameters["wrap"] = name_of(read_algorithm(recipient.algorithm.parameters).oid)
            parameters["originator_octets"] = len(recipient.originator)
            if recipient.user_material is not None:
                parameters["user_material_octets"] = len(recipient.user_material)
        elif recipient.algorithm.oid == oids.RSAES_OAEP:
            oaep = read_oaep(recipient.algorithm)
            parameters = {
                "hash": name_of(oaep.digest),
                "mask_hash": name_of(oaep.mask),
                "label_octets": len(oaep.label),
            }
    except DerError:
        parameters["unreadable"] = "parameters"
    return RecipientDescription(
        kind="key-transport" if isinstance(recipient, KeyTransport) else "key-agreement",
        issuer=issuer,
        serial=serial,
        key_id=key_id,
        algorithm=name_of(recipient.algorithm.oid),
        parameters=parameters,
        encrypted_key_octets=len(recipient.encrypted_key),
        ours=names_one_of(recipient.recipient, own),
    )


# --- Signatures ------------------------------------------------------------------------------------------------------


def describe_signed(signed: Signed) -> SignedDescription:
    certificates = [certificate for octets in signed.certificates if (certificate := _load(octets)) is not None]
    return SignedDescription(
        detached=signed.content is None,
        content_type=name_of(signed.content_type),
        digests=tuple(sorted(map(name_of, signed.digests))),
        signers=tuple(_signer(info, certificates) for info in signed.signers),
        certificates=tuple(map(describe_certificate, certificates)),
        unreadable_certificates=len(signed.certificates) - len(certificates),
    )


def _signer(info: SignerInfo, certificates: Sequence[x509.Certificate]) -> SignerDescription:
    issuer, serial, key_id = _party(info.signer)
    named = [certificate for certificate in certificates if names_one_of(info.signer, (certificate,))]
    values: dict[str, list[Element]] = {}
    for attribute in info.attributes:
        values.setdefault(attribute.oid, []).extend(attribute.values)
    time: datetime | None = None
    capabilities: tuple[str, ...] = ()
    parameters: dict[str, str | int] = {}
    try:
        if info.algorithm.oid == oids.RSASSA_PSS:
            pss = read_pss(info.algorithm)
            parameters = {"hash": name_of(pss.digest), "mask_hash": name_of(pss.mask), "salt_octets": pss.salt}
        if values.get(oids.SIGNING_TIME):
            time = values[oids.SIGNING_TIME][0].time()
        if values.get(oids.SMIME_CAPABILITIES):
            listed = [entry.sequence(2) for entry in values[oids.SMIME_CAPABILITIES][0].sequence(64)]
            capabilities = tuple(dict.fromkeys(name_of(entry[0].oid()) for entry in listed if entry))
    except (DerError, UnsoundError):
        parameters["unreadable"] = "parameters or attributes"
    reference, certificate = _reference(values, named)
    return SignerDescription(
        issuer=issuer,
        serial=serial,
        key_id=key_id,
        digest=name_of(info.digest.oid),
        algorithm=name_of(info.algorithm.oid),
        parameters=parameters,
        signature_octets=len(info.signature),
        attributes=tuple(name_of(attribute.oid) for attribute in info.attributes),
        signing_time=time,
        signing_certificate=reference,
        capabilities=capabilities,
        certificate=identity(certificate).sha256.hex() if certificate is not None else "",
    )


def _reference(
    values: Mapping[str, Sequence[Element]], named: Sequence[x509.Certificate]
) -> tuple[str, x509.Certificate | None]:
    """What signingCertificate says, and the certificate it means; else the first one named."""
    first = named[0] if named else None
    kinds = (oids.SIGNING_CERTIFICATE_V2, oids.SIGNING_CERTIFICATE)
    if not any(values.get(kind) for kind in kinds):
        return "absent", first
    if not named:
        return "no-certificate", None
    if any(kind in values and len(values[kind]) != 1 for kind in kinds):
        return "differs", first
    try:
        given = references({kind: values[kind][0] for kind in kinds if kind in values})
    except DerError:
        return "differs", first
    for certificate in named:
        own = identity(certificate)
        if all(reference.means(own, own.sha256) for reference in given):
            return "matches", certificate
    return "differs", first


def _party(party: PartyId) -> tuple[str, str, str]:
    """Issuer, serial number and key id, as text."""
    if party.key_id:
        return "", "", party.key_id.hex()
    return _name(party.issuer), f"{party.serial:x}", ""


# --- Certificates ----------------------------------------------------------------------------------------------------


_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
)


def describe_certificate(certificate: x509.Certificate) -> CertificateDescription:
    """Raises nothing that `certificate.extensions` does not."""
    own = identity(certificate)
    usages: list[str] = []
    authority = False
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.KeyUsage):
            usages += [usage.replace("_", "-") for usage in _USAGES if getattr(value, usage)]
        elif isinstance(value, x509.ExtendedKeyUsage):
            usages += [_EXTENDED_USAGES.get(usage.dotted_string, usage.dotted_string) for usage in value]
        elif isinstance(value, x509.BasicConstraints):
            authority = value.ca
    return CertificateDescription(
        subject=_name(certificate.subject.public_bytes()),
        issuer=_name(own.issuer),
        serial=f"{own.serial:x}",
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        key=_key(certificate),
        usages=tuple(usages),
        addresses=mail_addresses(certificate),
        authority=authority,
        key_id=own.key_id.hex(),
        sha256=own.sha256.hex(),
    )


_EXTENDED_USAGES = {
    "1.3.6.1.5.5.7.3.1": "server-auth",
    "1.3.6.1.5.5.7.3.2": "client-auth",
    "1.3.6.1.5.5.7.3.4": "email-protection",
    "2.5.29.37.0": "any-extended-key-usage",
}


def _key(certificate: x509.Certificate) -> str:
    try:
        key = certificate.public_key()
    except Exception:  # the parser has no common error class
        return "unreadable"
    if isinstance(key, rsa.RSAPublicKey):
        return f"rsa-{key.key_size}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.curve.name
    return type(key).__name__.removesuffix("PublicKey").lower()


def _load(octets: bytes) -> x509.Certificate | None:
    try:
        certificate = x509.load_der_x509_certificate(octets)
        describe_certificate(certificate)
    except Exception:  # the parser reads lazily, has no common error class, and warnings may be errors
        return None
    return certificate


def _name(encoded: bytes) -> str:
    """A Name, the last part first as RFC 4514 has it."""
    try:
        parts = []
        for rdn in der.read(encoded).sequence(64):
            pairs = (pair.sequence(2) for pair in rdn.set(16))
            parts.append("+".join(f"{_ATTRIBUTES.get(kind.oid(), kind.oid())}={_text(value)}" for kind, value in pairs))
    except ValueError:
        return "unreadable"
    return ",".join(reversed(parts))


_ATTRIBUTES = {
    "2.5.4.3": "CN",
    "2.5.4.4": "SN",
    "2.5.4.5": "serialNumber",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "2.5.4.42": "GN",
    "2.5.4.97": "organizationIdentifier",
    "0.9.2342.19200300.100.1.1": "UID",
    "0.9.2342.19200300.100.1.25": "DC",
    "1.2.840.113549.1.9.1": "emailAddress",
}


def _text(value: Element) -> str:
    encoding = {0x0C: "utf-8", 0x1E: "utf-16-be", 0x1C: "utf-32-be"}.get(value.tag, "latin-1")
    text = bytes(value.content[:1024]).decode(encoding, "replace")
    return printable("".join(f"\\{char}" if char in ',+"\\<>;' else char for char in text))


def printable(text: str) -> str:
    """Without what would make a terminal do something."""
    return "".join(char if char.isprintable() else f"\\{ord(char):02X}" for char in text)
