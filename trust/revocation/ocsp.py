"""One OCSP answer: asked for in DER, believed only after everything RFC 6960 §3.2 demands has been checked.

The responder is the issuer itself, or someone the issuer delegated: a certificate it issued directly with
id-kp-OCSPSigning (§4.2.2.2). It is recognised by name or by the SHA-1 of its key, computed and never taken from its
subjectKeyIdentifier, which may be anything.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from trust import der
from trust.facts import Facts
from trust.facts import read as read_facts
from trust.revocation import RevocationState
from trust.revocation.crl import HOLD, REASONS, SKEW, TOLERANCE
from trust.revocation.naming import name_key
from trust.revocation.signatures import bit_string, issued_by, verifies

MAX_BYTES = 256 * 1024
_MAX_CERTIFICATES = 8
_MAX_RESPONSES = 1024
_NEVER_ISSUED = datetime(1970, 1, 1, tzinfo=UTC)
"""With certificateHold, the date of a serial number its issuer never used (§2.2): no hold that could end."""

_BASIC = "1.3.6.1.5.5.7.48.1.1"
_NONCE = "1.3.6.1.5.5.7.48.1.2"
_INVALID_SINCE = "2.5.29.24"
_KNOWN = frozenset({_NONCE, _INVALID_SINCE, "1.3.6.1.5.5.7.48.1.6", "2.5.29.21"})
_HASHES = {
    "1.3.14.3.2.26": "sha1",
    "2.16.840.1.101.3.4.2.1": "sha256",
    "2.16.840.1.101.3.4.2.2": "sha384",
    "2.16.840.1.101.3.4.2.3": "sha512",
}
_DELEGATE_EXTENSIONS = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.CERTIFICATE_POLICIES,
        ExtensionOID.OCSP_NO_CHECK,
    }
)


class OcspError(ValueError):
    """This response is not one that may be used; the text names the rule."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a responder that may speak for the issuer says about one certificate."""

    state: RevocationState
    """GOOD, REVOKED or UNKNOWN: freshness is for who uses it."""
    reason: str
    revoked_at: datetime | None
    invalid_since: datetime | None
    this_update: datetime
    next_update: datetime | None
    """Not after the end of the delegate's own validity."""
    delegate: x509.Certificate | None
    """Who signed, when its own revocation has to be looked at: a delegate without id-pkix-ocsp-nocheck."""


def request(serial: int, issuer: x509.Certificate, nonce: bytes | None) -> bytes:
    """An OCSPRequest for one certificate (§4.1.1). CertID in SHA-1, which every responder knows (RFC 5019 §2.1.1);
    the hash only selects, what is trusted is the signature."""
    algorithm = der.sequence(der.oid("1.3.14.3.2.26"), der.null())
    identifier = der.sequence(
        algorithm,
        der.octet_string(hashlib.sha1(issuer.subject.public_bytes(), usedforsecurity=False).digest()),
        der.octet_string(hashlib.sha1(key_bits(issuer), usedforsecurity=False).digest()),
        der.integer(serial),
    )
    body = [der.sequence(der.sequence(identifier))]
    if nonce is not None:
        extension = der.sequence(der.oid(_NONCE), der.octet_string(der.octet_string(nonce)))
        body.append(der.tlv(der.context(2), der.sequence(extension)))
    return der.sequence(der.sequence(*body))


def read(
    data: bytes,
    serial: int,
    issuer: x509.Certificate,
    now: datetime,
    nonce: bytes | None = None,
    nonce_required: bool = False,
) -> Answer:
    """The answer about one certificate of `issuer`, in an OCSPResponse in DER; raises `OcspError`.

    `nonce` is the one that was sent: another one in the response is refused, none only with `nonce_required`
    (RFC 9654 §2.1: many responders sign beforehand and cannot repeat it).
    """
    if len(data) > MAX_BYTES:
        raise OcspError("too large")
    try:
        return _read(data, serial, issuer, now, nonce, nonce_required)
    except OcspError:
        raise
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise OcspError(f"malformed response: {error}") from None
    except Exception as error:  # certificates are read lazily, and their parser has no common error class
        raise OcspError(f"malformed response: {type(error).__name__}") from None


def _read(
    data: bytes, serial: int, issuer: x509.Certificate, now: datetime, nonce: bytes | None, nonce_required: bool
) -> Answer:
    status, *rest = der.read(data).sequence(2)
    code = int.from_bytes(status.expect(0x0A).content, "big")
    if code:
        raise OcspError(f"responder answers with status {code}")
    kind, value = der.only(rest).expect(der.context(0)).explicit().sequence(2)
    if kind.oid() != _BASIC:
        raise OcspError("not a basic response")
    signed, algorithm, signature, *certificates = der.read(value.octets()).sequence(4)
    fields = signed.sequence(6)
    if fields[0].tag == der.context(0) and fields.pop(0).explicit().integer() != 0:
        raise OcspError("version")
    responder, produced, responses, *extensions = fields
    produced_at = produced.expect(der.GENERALIZED_TIME).time()
    if produced_at > now + SKEW:
        raise OcspError("produced in the future")
    offered = certificates[0].expect(der.context(0)).explicit().sequence(_MAX_CERTIFICATES) if certificates else []
    signer = _signer(responder, issuer, offered, (produced_at, now))
    if not verifies(algorithm, signed, bit_string(signature), signer):
        raise OcspError("signature is not the responder's")
    _check_nonce(
        _extensions(extensions[0].expect(der.context(1)).explicit()) if extensions else {}, nonce, nonce_required
    )
    mine = [
        fields
        for each in responses.sequence(_MAX_RESPONSES)
        if _is_about((fields := each.sequence(5))[0], serial, issuer)
    ]
    if not mine:
        raise OcspError("no answer about this certificate")
    answers = (_single(fields, signer, issuer, now) for fields in mine)
    return max(answers, key=lambda answer: (answer.this_update, answer.state is RevocationState.REVOKED))


def _single(fields: list[der.Element], signer: x509.Certificate, issuer: x509.Certificate, now: datetime) -> Answer:
    _, status, this, *rest = fields
    this_update = this.expect(der.GENERALIZED_TIME).time()
    if this_update > now + SKEW:
        raise OcspError("thisUpdate in the future")
    next_update = (
        rest.pop(0).explicit().expect(der.GENERALIZED_TIME).time() if rest and rest[0].tag == der.context(0) else None
    )
    extensions = _extensions(rest[0].expect(der.context(1)).explicit()) if rest else {}
    if next_update is not None and next_update < this_update:
        raise OcspError("nextUpdate before thisUpdate")
    reason, revoked_at, invalid_since = "", None, None
    if status.tag == der.context(0, constructed=False):
        state = RevocationState.GOOD
    elif status.tag == der.context(1):
        state = RevocationState.REVOKED
        when, *why = status.children(2)
        revoked_at = when.expect(der.GENERALIZED_TIME).time()
        reason = REASONS.get(int.from_bytes(why[0].explicit().expect(0x0A).content, "big"), "") if why else ""
        reason = reason or "unspecified"
        if reason == HOLD and revoked_at == _NEVER_ISSUED:
            reason = "unspecified"
        if _INVALID_SINCE in extensions:
            invalid_since = extensions[_INVALID_SINCE].expect(der.GENERALIZED_TIME).time()
    elif status.tag == der.context(2, constructed=False):
        state = RevocationState.UNKNOWN
    else:
        raise OcspError("certificate status")
    delegate = None
    if signer != issuer:
        ends = signer.not_valid_after_utc
        next_update = ends if next_update is None else min(next_update, ends)
        try:
            signer.extensions.get_extension_for_class(x509.OCSPNoCheck)
        except x509.ExtensionNotFound:
            delegate = signer
    return Answer(state, reason, revoked_at, invalid_since, this_update, next_update, delegate)


def key_bits(certificate: x509.Certificate) -> bytes:
    """The BIT STRING of a certificate's public key without its first octet, which key hashes are made of (§4.1.1)."""
    facts = read_facts(certificate)
    if not isinstance(facts, Facts):
        raise OcspError("certificate cannot be read")
    return bit_string(der.read(facts.key_der).sequence(2)[1])


def _is_about(identifier: der.Element, serial: int, issuer: x509.Certificate) -> bool:
    """Whether a CertID is our certificate's: hash of the issuer's name, of its key, and serial number, all three."""
    algorithm, name_hash, key_hash, number = identifier.sequence(4)
    digest = _HASHES.get(algorithm.sequence(2)[0].oid())
    return (
        digest is not None
        and number.integer() == serial
        and name_hash.octets() == hashlib.new(digest, issuer.subject.public_bytes(), usedforsecurity=False).digest()
        and key_hash.octets() == hashlib.new(digest, key_bits(issuer), usedforsecurity=False).digest()
    )


def _signer(
    responder: der.Element, issuer: x509.Certificate, offered: list[der.Element], moments: tuple[datetime, ...]
) -> x509.Certificate:
    """The certificate the responderID means: the issuer's, or that of a delegate among those in the response."""
    inner = responder.explicit()
    if responder.tag == der.context(1):
        name = name_key(bytes(inner.encoded))

        def is_meant(certificate: x509.Certificate) -> bool:
            return name_key(certificate.subject.public_bytes()) == name

    elif responder.tag == der.context(2):
        digest = inner.octets()

        def is_meant(certificate: x509.Certificate) -> bool:
            return hashlib.sha1(key_bits(certificate), usedforsecurity=False).digest() == digest

    else:
        raise OcspError("responder identifier")
    refused = ""
    for element in offered:
        try:
            certificate = x509.load_der_x509_certificate(bytes(element.encoded))
            if certificate == issuer or not is_meant(certificate):
                continue
            refused = _not_delegated(certificate, issuer, moments)
        except Exception:  # the parser reads lazily and has no common error class
            refused = refused or "responder's certificate cannot be read"
            continue
        if not refused:
            return certificate
    if is_meant(issuer):
        return issuer
    raise OcspError(refused or "signed by nobody the issuer named")


def _not_delegated(certificate: x509.Certificate, issuer: x509.Certificate, moments: tuple[datetime, ...]) -> str:
    """Why a certificate may not sign responses for `issuer` (§4.2.2.2); empty when it may."""
    extensions = certificate.extensions
    try:
        # anyExtendedKeyUsage is not enough: the delegation has to be said
        if ExtendedKeyUsageOID.OCSP_SIGNING not in extensions.get_extension_for_class(x509.ExtendedKeyUsage).value:
            return "responder's certificate is not for OCSP signing"
    except x509.ExtensionNotFound:
        return "responder's certificate is not for OCSP signing"
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        if not (usage.digital_signature or usage.content_commitment):
            return "responder's certificate may not sign"
    except x509.ExtensionNotFound:
        pass
    if any(e.critical and e.oid not in _DELEGATE_EXTENSIONS for e in extensions):
        return "responder's certificate has an unknown critical extension"
    if not all(
        certificate.not_valid_before_utc - SKEW <= moment <= certificate.not_valid_after_utc + TOLERANCE
        for moment in moments
    ):
        return "responder's certificate is not valid"
    if not issued_by(certificate, issuer):
        return "responder's certificate is not from the same issuer"
    return ""


def _extensions(element: der.Element) -> dict[str, der.Element]:
    found: dict[str, der.Element] = {}
    for extension in element.sequence(64):
        kind, *critical, value = extension.sequence(3)
        oid = kind.oid()
        if oid in found:
            raise OcspError(f"extension {oid} twice")
        if oid not in _KNOWN:
            if critical and bytes(critical[0].expect(0x01).content) != b"\x00":
                raise OcspError(f"unknown critical extension {oid}")
            continue
        found[oid] = value if oid == _NONCE else der.read(value.octets())
    return found


def _check_nonce(extensions: dict[str, der.Element], nonce: bytes | None, required: bool) -> None:
    if nonce is None:
        return
    received = extensions.get(_NONCE)
    if received is None:
        if required:
            raise OcspError("nonce is missing")
        return
    content = received.octets()
    # an OCTET STRING in the extension's OCTET STRING (RFC 9654 §2.1); old responders echo it bare
    if content not in (der.octet_string(nonce), nonce):
        raise OcspError("nonce is another one")
