"""SignedData verified, detached or opaque (RFC 5652 §5.6).

What is believed comes from the signed attributes, which are required: without them a signature over attributes could be
passed off as one over a message. Signatures are judged here, and then the certificate's path and the sender's address;
each step only when the one before held.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from smime import oids
from smime.addresses import matches
from smime.cms_read import Algorithm, Attribute, Signed, SignerInfo, read_algorithm
from smime.identity import identity
from smime.strength import acceptable
from smime.verdict import Finding, SignatureResult, SignerVerdict
from trust import der
from trust.certificates import CertificateValidator, Purpose, mail_addresses
from trust.der import DerError, context

_HASHES: dict[str, hashes.HashAlgorithm] = {
    oids.SHA256: hashes.SHA256(),
    oids.SHA384: hashes.SHA384(),
    oids.SHA512: hashes.SHA512(),
}
_RSA_DIGESTS = {
    oids.SHA256_WITH_RSA: oids.SHA256,
    oids.SHA384_WITH_RSA: oids.SHA384,
    oids.SHA512_WITH_RSA: oids.SHA512,
}
_ECDSA_DIGESTS = {
    oids.ECDSA_WITH_SHA256: oids.SHA256,
    oids.ECDSA_WITH_SHA384: oids.SHA384,
    oids.ECDSA_WITH_SHA512: oids.SHA512,
}
MAX_PSS_SALT = 512
MAX_CERTIFICATE_OCTETS = 1 << 16
"""Real ones have 2,000; what was read of them is remembered for a while."""

Content = Sequence[bytes | bytearray | memoryview]
PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


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


def verify_signed(signed: Signed, content: Content, expected: Expectation) -> tuple[SignerVerdict, ...]:
    """Judge every SignerInfo over `content`, given in pieces. No signers, no verdicts: that is not signed."""
    certificates = _load(signed.certificates)
    digests: dict[str, bytes] = {}
    for name in {info.digest.oid for info in signed.signers} & _HASHES.keys():
        running = hashlib.new(_HASHES[name].name)
        for piece in content:
            running.update(piece)
        digests[name] = running.digest()
    return tuple(_judge(info, signed, certificates, digests, expected) for info in signed.signers)


def _load(encoded: Sequence[bytes]) -> list[x509.Certificate]:
    """The certificates that can be read; others are as good as absent."""
    certificates = []
    for octets in encoded:
        if len(octets) > MAX_CERTIFICATE_OCTETS:
            continue
        try:
            certificates.append(x509.load_der_x509_certificate(octets))
        except Exception:  # noqa: S112 - the parser has no common error class, and warnings may be errors
            continue
    return certificates


def _judge(
    info: SignerInfo,
    signed: Signed,
    certificates: list[x509.Certificate],
    digests: dict[str, bytes],
    expected: Expectation,
) -> SignerVerdict:
    certificate: x509.Certificate | None = None
    signing_time: datetime | None = None
    try:
        signing_time = _check_attributes(info, signed, digests)
        certificate = _certificate_of(info, certificates)
        _check_signature(info, certificate)
    except _UnsoundError as problem:
        return SignerVerdict(certificate, SignatureResult.INVALID, None, (), signing_time, (problem.finding,))
    except (ValueError, TypeError, OverflowError, UnsupportedAlgorithm):
        finding = Finding("malformed-signature")
        return SignerVerdict(certificate, SignatureResult.INVALID, None, (), signing_time, (finding,))
    path = expected.validator.validate(certificate, certificates, Purpose.MAIL_SIGNATURE, expected.at)
    addresses = (*mail_addresses(certificate), *expected.published_addresses(certificate))
    findings: tuple[Finding, ...] = ()
    if not path.ok:
        result = SignatureResult.UNTRUSTED
        findings = (Finding("path-refused", path.rule),)
    elif expected.from_addresses and all(matches(address, addresses) for address in expected.from_addresses):
        result = SignatureResult.VALID
    else:
        result = SignatureResult.MISMATCH
        findings = (_mismatch(expected.from_addresses, addresses),)
    return SignerVerdict(certificate, result, path, addresses, signing_time, findings)


def _mismatch(from_addresses: tuple[str, ...], addresses: tuple[str, ...]) -> Finding:
    if not addresses:
        return Finding("certificate-without-address")
    lowered = [address.lower() for address in addresses]
    if from_addresses and all(matches(address.lower(), lowered) for address in from_addresses):
        return Finding("from-differs-by-case")
    return Finding("from-not-in-certificate")


def _check_attributes(info: SignerInfo, signed: Signed, digests: dict[str, bytes]) -> datetime | None:
    """RFC 5652 §5.6 and §11, RFC 6211. Returns the claimed signing time."""
    if info.digest.oid not in digests or info.digest.oid not in signed.digests:
        raise _UnsoundError("digest-algorithm", info.digest.oid)
    if not info.attributes:
        raise _UnsoundError("no-signed-attributes")
    if (
        signed.content_type != oids.DATA
    ):  # a signature over a time stamp or a receipt is none over a mail (RFC 8551 §2.4.1)
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
        fields = protection.values[0].sequence()
        protected = tuple(der.tlv(der.SEQUENCE, field.content) for field in fields)
        if len(fields) != 2 or fields[1].tag != context(1) or protected != info.algorithm_bytes:
            raise _UnsoundError("algorithm-protection")
    time = _single(info, oids.SIGNING_TIME)
    return time.values[0].time() if time is not None else None


def _single(info: SignerInfo, oid: str) -> Attribute | None:
    """The attribute of that type, which must then occur once and with one value."""
    found = [attribute for attribute in info.attributes if attribute.oid == oid]
    if len(found) > 1 or (found and len(found[0].values) != 1):
        raise _UnsoundError("repeated-attribute", oid)
    return found[0] if found else None


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
        _certificate_hash(_first(_first(attribute.values[0])).sequence(), default)
        for oid, default in ((oids.SIGNING_CERTIFICATE_V2, oids.SHA256), (oids.SIGNING_CERTIFICATE, oids.SHA1))
        if (attribute := _single(info, oid)) is not None
    ]
    for certificate in named:
        encoded = identity(certificate).encoded
        if all(hashlib.new(name, encoded).digest() == digest for name, digest in references):
            return certificate
    raise _UnsoundError("signing-certificate-attribute")


def _first(element: der.Element) -> der.Element:
    """The first element of a SEQUENCE OF that must not be empty."""
    elements = element.sequence()
    if not elements:
        raise DerError("empty sequence")
    return elements[0]


_REFERENCE_HASHES = {oids.SHA1: "sha1", oids.SHA256: "sha256", oids.SHA384: "sha384", oids.SHA512: "sha512"}


def _certificate_hash(fields: list[der.Element], default: str) -> tuple[str, bytes]:
    """Hash name and value of an ESSCertID or ESSCertIDv2; SHA-1 only where version 1 has no choice (RFC 2634 §5.4)."""
    oid = default
    if fields and fields[0].tag == der.SEQUENCE:
        oid, fields = read_algorithm(fields[0]).oid, fields[1:]
    if not fields or oid not in _REFERENCE_HASHES or (oid == oids.SHA1 and default != oids.SHA1):
        raise DerError("ESSCertID")
    return _REFERENCE_HASHES[oid], fields[0].octets()


def _check_signature(info: SignerInfo, certificate: x509.Certificate) -> None:
    key = certificate.public_key()
    if not acceptable(key):
        raise _UnsoundError("weak-key")
    oid, digest = info.algorithm.oid, info.digest.oid
    try:
        if isinstance(key, rsa.RSAPublicKey) and oid == oids.RSASSA_PSS:
            key.verify(info.signature, info.signed_bytes, _pss(info.algorithm, digest), _HASHES[digest])
        elif isinstance(key, rsa.RSAPublicKey) and (oid == oids.RSA_ENCRYPTION or _RSA_DIGESTS.get(oid) == digest):
            key.verify(info.signature, info.signed_bytes, padding.PKCS1v15(), _HASHES[digest])
        elif isinstance(key, ec.EllipticCurvePublicKey) and _ECDSA_DIGESTS.get(oid) == digest:
            key.verify(info.signature, info.signed_bytes, ec.ECDSA(_HASHES[digest]))
        elif isinstance(key, ed25519.Ed25519PublicKey) and oid == oids.ED25519:
            key.verify(info.signature, info.signed_bytes)
        else:
            raise _UnsoundError("signature-algorithm", oid)
    except InvalidSignature:
        raise _UnsoundError("signature-wrong") from None


def _pss(algorithm: Algorithm, digest: str) -> padding.PSS:
    """RSASSA-PSS-params (RFC 4056 §3): one hash throughout, any sensible salt, trailer 1."""
    digest_used = mask = oids.SHA1
    salt, trailer = 20, 1
    for field in algorithm.parameters.sequence() if algorithm.parameters is not None else ():
        value = field.explicit()
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
    if digest_used != digest or mask != digest or trailer != 1 or not 0 <= salt <= MAX_PSS_SALT:
        raise _UnsoundError("pss-parameters")
    return padding.PSS(padding.MGF1(_HASHES[digest]), salt)
