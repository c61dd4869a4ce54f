"""SignedData verified, detached or opaque (RFC 5652 §5.6).

What is believed comes from the signed attributes, which are required: without them a signature over attributes could be
passed off as one over a message. Signatures are judged here, and then the certificate's path and the sender's address;
each step only when the one before held.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from smime import oids
from smime.addresses import matches
from smime.cms_read import Algorithm, Attribute, Signed, SignerInfo, read_algorithm
from smime.identity import identity, same_name
from smime.policy import DEFAULT_POLICY, ReadPolicy
from smime.strength import acceptable
from smime.verdict import Finding, SignatureResult, SignerVerdict
from trust import der
from trust.certificates import CertificateValidator, Purpose, mail_addresses
from trust.der import Buffer, DerError, Element, context

_HASHES: dict[str, hashes.HashAlgorithm] = {
    oids.SHA1: hashes.SHA1(),  # only where the policy admits it  # noqa: S303
    oids.SHA256: hashes.SHA256(),
    oids.SHA384: hashes.SHA384(),
    oids.SHA512: hashes.SHA512(),
}
_RSA_DIGESTS = {
    oids.SHA1_WITH_RSA: oids.SHA1,
    oids.SHA256_WITH_RSA: oids.SHA256,
    oids.SHA384_WITH_RSA: oids.SHA384,
    oids.SHA512_WITH_RSA: oids.SHA512,
}
_ECDSA_DIGESTS = {
    oids.ECDSA_WITH_SHA1: oids.SHA1,
    oids.ECDSA_WITH_SHA256: oids.SHA256,
    oids.ECDSA_WITH_SHA384: oids.SHA384,
    oids.ECDSA_WITH_SHA512: oids.SHA512,
}
_CURVE_NAMES = {"secp256r1": "p256", "secp384r1": "p384", "secp521r1": "p521"}
_SHAKE256_OCTETS = 64
"""What Ed448 signatures take of it (RFC 8419 §3.1, RFC 8702 §3.1)."""
MAX_PSS_SALT = 512
MAX_CERTIFICATE_OCTETS = 1 << 16
"""Real ones have 2,000; what was read of them is remembered for a while."""
MAX_CAPABILITIES = 64

Content = Iterable[Buffer]


class _UnsoundError(Exception):
    """A rule that makes the signature invalid."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(code)
        self.finding = Finding(code, detail)


@dataclass(frozen=True, slots=True)
class Expectation:
    """What signers are judged against."""

    validator: CertificateValidator
    at: datetime
    """Time of receipt: the path is validated then, whatever time the signer claims."""
    from_addresses: tuple[str, ...]
    """Normalised; empty when From is missing or unreadable, which matches nobody."""
    published_addresses: Callable[[x509.Certificate], Sequence[str]]
    """Addresses a certificate is bound to elsewhere than in itself."""
    policy: ReadPolicy = DEFAULT_POLICY


class _Running(Protocol):
    def update(self, data: Buffer, /) -> None: ...


def verify_signed(signed: Signed, content: Content, expected: Expectation) -> tuple[SignerVerdict, ...]:
    """Judge every SignerInfo over `content`, given in pieces. No signers, no verdicts: that is not signed.

    `content` is gone through once, whatever the number of signers.
    """
    certificates = [loaded for octets in signed.certificates if (loaded := _load(octets)) is not None]
    digests = _digests(signed, content, expected.policy)
    return tuple(_judge(info, signed, certificates, digests, expected) for info in signed.signers)


def _digests(signed: Signed, content: Content, policy: ReadPolicy) -> dict[str, bytes]:
    """The digest of the content by each algorithm that a signer names and the policy admits."""
    running = {}
    shakes = {}
    for name in {info.digest.oid for info in signed.signers}:
        if name in _HASHES and (policy.sha1 or name != oids.SHA1):
            running[name] = hashlib.new(_HASHES[name].name)
        elif name in (oids.SHAKE256, oids.SHAKE256_LEN):
            shakes[name] = hashlib.shake_256()
    updated: tuple[_Running, ...] = (*running.values(), *shakes.values())
    for piece in content if updated else ():
        for each in updated:
            each.update(piece)
    digests = {name: each.digest() for name, each in running.items()}
    return digests | {name: each.digest(_SHAKE256_OCTETS) for name, each in shakes.items()}


@lru_cache(maxsize=256)
def _load(octets: bytes) -> x509.Certificate | None:
    """A certificate of the mail; None when it cannot be read, which is as good as absent."""
    if len(octets) > MAX_CERTIFICATE_OCTETS:
        return None
    try:
        certificate = x509.load_der_x509_certificate(octets)
        certificate.extensions  # noqa: B018 - read lazily: what is wrong with them shows here
    except Exception:  # the parser has no common error class, and warnings may be errors
        return None
    return certificate


class _Judgement:
    """What is known of one signer by the time a rule stops."""

    def __init__(self) -> None:
        self.certificate: x509.Certificate | None = None
        self.signing_time: datetime | None = None
        self.algorithm = ""
        self.findings: tuple[Finding, ...] = ()

    def invalid(self, finding: Finding) -> SignerVerdict:
        return SignerVerdict(
            self.certificate,
            SignatureResult.INVALID,
            None,
            (),
            self.signing_time,
            (finding, *self.findings),
            self.algorithm,
        )


def _judge(
    info: SignerInfo,
    signed: Signed,
    certificates: list[x509.Certificate],
    digests: dict[str, bytes],
    expected: Expectation,
) -> SignerVerdict:
    known = _Judgement()
    try:
        known.algorithm = _label(info)
        if info.digest.oid == oids.SHA1 and expected.policy.sha1:
            known.findings = (Finding("weak-digest", "sha1"),)
        known.signing_time = _check_attributes(info, signed, digests)
        certificate = known.certificate = _certificate_of(info, certificates)
        key = certificate.public_key()
        known.algorithm = _label(info, key)
        if identity(certificate).explicit_curve or not (acceptable(key) or isinstance(key, ed448.Ed448PublicKey)):
            raise _UnsoundError("weak-key")
        _check_signature(info, key)
    except _UnsoundError as problem:
        return known.invalid(problem.finding)
    except (ValueError, TypeError, OverflowError, UnsupportedAlgorithm):
        return known.invalid(Finding("malformed-signature"))
    path = expected.validator.validate(certificate, certificates, Purpose.MAIL_SIGNATURE, expected.at)
    addresses = (*mail_addresses(certificate), *expected.published_addresses(certificate))
    findings = known.findings
    if not path.ok:
        result = SignatureResult.UNTRUSTED
        findings += (Finding("path-refused", path.rule),)
    elif expected.from_addresses and all(matches(address, addresses) for address in expected.from_addresses):
        result = SignatureResult.VALID
    else:
        result = SignatureResult.MISMATCH
        findings += (_mismatch(expected.from_addresses, addresses),)
    return SignerVerdict(
        certificate, result, path, addresses, known.signing_time, findings, known.algorithm, _capabilities(info)
    )


def _mismatch(from_addresses: tuple[str, ...], addresses: tuple[str, ...]) -> Finding:
    if not addresses:
        return Finding("certificate-without-address")
    lowered = [address.lower() for address in addresses]
    if from_addresses and all(matches(address.lower(), lowered) for address in from_addresses):
        return Finding("from-differs-by-case")
    return Finding("from-not-in-certificate")


# --- Attributes ------------------------------------------------------------------------------------------------------


def _check_attributes(info: SignerInfo, signed: Signed, digests: dict[str, bytes]) -> datetime | None:
    """RFC 5652 §5.6 and §11, RFC 6211. Returns the claimed signing time."""
    if info.digest.oid not in digests or info.digest.oid not in signed.digests:
        raise _UnsoundError("digest-algorithm", info.digest.oid)
    if not info.attributes:
        raise _UnsoundError("no-signed-attributes")
    if signed.content_type != oids.DATA:
        # a signature over a time stamp or a receipt is none over a mail (RFC 8551 §2.4.1)
        raise _UnsoundError("content-type", signed.content_type)
    content_type = _single(info, oids.CONTENT_TYPE)
    if content_type is None or content_type.values[0].oid() != signed.content_type:
        raise _UnsoundError("content-type-attribute")
    digest = _single(info, oids.MESSAGE_DIGEST)
    if digest is None:
        raise _UnsoundError("message-digest-attribute")
    if digest.values[0].octets() != digests[info.digest.oid]:
        raise _UnsoundError("content-altered")
    protection = _single(info, oids.ALGORITHM_PROTECTION)
    if protection is not None:
        _check_protection(info, protection.values[0])
    _single(info, oids.SMIME_CAPABILITIES)
    time = _single(info, oids.SIGNING_TIME)
    return time.values[0].time() if time is not None else None


def _single(info: SignerInfo, oid: str) -> Attribute | None:
    """The attribute of that type, which must then occur once and with one value."""
    found = [attribute for attribute in info.attributes if attribute.oid == oid]
    if len(found) > 1 or (found and len(found[0].values) != 1):
        raise _UnsoundError("repeated-attribute", oid)
    return found[0] if found else None


def _check_protection(info: SignerInfo, value: Element) -> None:
    """CMSAlgorithmProtection (RFC 6211 §2): digest algorithm, then signature algorithm as [1]."""
    fields = value.sequence(2)
    if len(fields) != 2 or fields[1].tag != context(1):
        raise _UnsoundError("algorithm-protection")
    for field, used in zip(fields, info.algorithm_bytes, strict=True):
        protected = der.tlv(der.SEQUENCE, field.content)
        # absent parameters and NULL are the same thing (RFC 5754 §2)
        if protected != used and _same_algorithm(protected) != _same_algorithm(used):
            raise _UnsoundError("algorithm-protection")


def _same_algorithm(encoded: bytes) -> tuple[str, bytes]:
    algorithm = read_algorithm(der.read(encoded))
    return algorithm.oid, bytes(algorithm.parameters.encoded) if algorithm.parameters is not None else b""


def _capabilities(info: SignerInfo) -> tuple[str, ...]:
    """SMIMECapabilities (RFC 8551 §2.5.2); none at all when they cannot be read."""
    attribute = _single(info, oids.SMIME_CAPABILITIES)
    if attribute is None:
        return ()
    try:
        listed = [capability.sequence(2) for capability in attribute.values[0].sequence(MAX_CAPABILITIES)]
        return tuple(dict.fromkeys(fields[0].oid() for fields in listed if fields))
    except DerError:
        return ()


# --- Certificate -----------------------------------------------------------------------------------------------------


def _certificate_of(info: SignerInfo, certificates: list[x509.Certificate]) -> x509.Certificate:
    """The signer's certificate among those sent along, the one signingCertificate means (RFC 5035 §5)."""
    named = []
    for certificate in certificates:
        try:
            if identity(certificate).is_named_by(info.signer):
                named.append(certificate)
        except ValueError:
            continue
    if not named:
        raise _UnsoundError("no-certificate")
    references = [
        _reference(_first(_first(attribute.values[0])).sequence(3), default)
        for oid, default in ((oids.SIGNING_CERTIFICATE_V2, oids.SHA256), (oids.SIGNING_CERTIFICATE, oids.SHA1))
        if (attribute := _single(info, oid)) is not None
    ]
    for certificate in named:
        if all(reference.means(certificate) for reference in references):
            return certificate
    raise _UnsoundError("signing-certificate-attribute")


def _first(element: Element) -> Element:
    """The first element of a SEQUENCE OF that must not be empty."""
    elements = element.sequence()
    if not elements:
        raise DerError("empty sequence")
    return elements[0]


_REFERENCE_HASHES = {oids.SHA1: "sha1", oids.SHA256: "sha256", oids.SHA384: "sha384", oids.SHA512: "sha512"}


@dataclass(frozen=True, slots=True)
class _Reference:
    """ESSCertID or ESSCertIDv2 (RFC 2634 §5.4, RFC 5035 §4)."""

    algorithm: str
    digest: bytes
    issuer: bytes
    """DER of the Name, empty when none is given."""
    serial: int | None

    def means(self, certificate: x509.Certificate) -> bool:
        own = identity(certificate)
        return (
            hashlib.new(self.algorithm, own.encoded).digest() == self.digest
            and self.serial in (None, own.serial)
            and (not self.issuer or self.issuer == own.issuer or same_name(self.issuer, own.issuer))
        )


def _reference(fields: list[Element], default: str) -> _Reference:
    """SHA-1 only where version 1 has no choice (RFC 2634 §5.4). Raises DerError."""
    oid = default
    if fields and fields[0].tag == der.SEQUENCE:
        oid, fields = read_algorithm(fields[0]).oid, fields[1:]
    if not 1 <= len(fields) <= 2 or oid not in _REFERENCE_HASHES or (oid == oids.SHA1 and default != oids.SHA1):
        raise DerError("ESSCertID")
    issuer, serial = b"", None
    if len(fields) == 2:
        names, number = fields[1].sequence(2)
        serial = number.integer()
        directory = [name for name in names.sequence() if name.tag == context(4)]
        if directory:
            issuer = bytes(directory[0].explicit().encoded)
    return _Reference(_REFERENCE_HASHES[oid], fields[0].octets(), issuer, serial)


# --- Signature -------------------------------------------------------------------------------------------------------


def _label(info: SignerInfo, key: CertificatePublicKeyTypes | None = None) -> str:
    """Name of the algorithm in verdicts, with the curve once the key is known; empty for unknown algorithms."""
    oid, digest = info.algorithm.oid, _HASHES.get(info.digest.oid)
    if oid in (oids.ED25519, oids.ED448):
        return "ed25519" if oid == oids.ED25519 else "ed448"
    if digest is None:
        return ""
    if oid == oids.RSASSA_PSS:
        return f"rsa-pss-{digest.name}"
    if oid == oids.RSA_ENCRYPTION or oid in _RSA_DIGESTS:
        return f"rsa-pkcs1v15-{digest.name}"
    if oid not in _ECDSA_DIGESTS:
        return ""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"ecdsa-{_CURVE_NAMES.get(key.curve.name, key.curve.name.lower())}-{digest.name}"
    return f"ecdsa-{digest.name}"


def _check_signature(info: SignerInfo, key: CertificatePublicKeyTypes) -> None:
    """RFC 5652 §5.6 over the attributes as sent, or sorted as DER would have them when they were not."""
    try:
        _verify(info, key, info.signed_bytes)
        return
    except InvalidSignature:
        attributes = der.read(info.signed_bytes).set()
        ordered = der.set_of(bytes(attribute.encoded) for attribute in attributes)
    if ordered == info.signed_bytes:
        raise _UnsoundError("signature-wrong")
    try:
        _verify(info, key, ordered)
    except InvalidSignature:
        raise _UnsoundError("signature-wrong") from None


def _verify(info: SignerInfo, key: CertificatePublicKeyTypes, data: bytes) -> None:
    """Raises InvalidSignature."""
    oid, digest = info.algorithm.oid, info.digest.oid
    if isinstance(key, rsa.RSAPublicKey) and oid == oids.RSASSA_PSS and digest in _HASHES:
        key.verify(info.signature, data, _pss(info.algorithm, digest), _HASHES[digest])
    elif (
        isinstance(key, rsa.RSAPublicKey)
        and digest in _HASHES
        and (oid == oids.RSA_ENCRYPTION or _RSA_DIGESTS.get(oid) == digest)
    ):
        key.verify(info.signature, data, padding.PKCS1v15(), _HASHES[digest])
    elif isinstance(key, ec.EllipticCurvePublicKey) and _ECDSA_DIGESTS.get(oid) == digest:
        key.verify(info.signature, data, ec.ECDSA(_HASHES[digest]))
    elif (isinstance(key, ed25519.Ed25519PublicKey) and oid == oids.ED25519 and digest in _HASHES) or (
        isinstance(key, ed448.Ed448PublicKey) and oid == oids.ED448
    ):
        key.verify(info.signature, data)
    else:
        raise _UnsoundError("signature-algorithm", oid)


def _pss(algorithm: Algorithm, digest: str) -> padding.PSS:
    """RSASSA-PSS-params (RFC 4056 §3): one hash throughout, any sensible salt, trailer 1; the defaults are SHA-1's."""
    digest_used = mask = oids.SHA1
    salt, trailer = 20, 1
    last = -1
    for field in algorithm.parameters.sequence(4) if algorithm.parameters is not None else ():
        value = field.explicit()
        if field.tag <= last:
            raise _UnsoundError("pss-parameters")
        last = field.tag
        if field.tag == context(0):
            digest_used = read_algorithm(value).oid
        elif field.tag == context(1):
            generator = read_algorithm(value)
            if generator.oid != oids.MGF1 or generator.parameters is None:
                raise _UnsoundError("pss-parameters")
            mask = read_algorithm(generator.parameters).oid
        elif field.tag == context(2):
            salt = value.integer()
        elif field.tag == context(3):
            trailer = value.integer()
        else:
            raise _UnsoundError("pss-parameters")
    if digest_used != digest or mask != digest or trailer != 1 or not 0 <= salt <= MAX_PSS_SALT:
        raise _UnsoundError("pss-parameters")
    return padding.PSS(padding.MGF1(_HASHES[digest]), salt)
