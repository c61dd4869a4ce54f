"""SignedData written (RFC 5652 §5, RFC 8551 §2.5): signed attributes, CAdES-BES, capabilities.

What depends on the signer's certificate alone is put together once; for each message remain its digest, the time and
the signature itself, which is all a `Signer` is asked for, wherever its key lives.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from smime import oids
from smime.capabilities import OWN_CAPABILITIES, write_capabilities
from smime.cms_read import Algorithm
from smime.identity import identity
from smime.schemes import Pss, UnsoundError, demanded_pss
from smime.strength import acceptable
from smime.suites import DEFAULT_SUITE, RsaSignatureScheme, Suite
from trust import der, digests
from trust.der import context
from trust.keys import Signer

_SIGNERS_REMEMBERED = 1024


class UnfitSignerError(ValueError):
    """The signer's certificate has a key of a kind or size that Relais does not sign with."""


class SignerFailedError(Exception):
    """The key's owner (a card, an HSM, the vault) did not sign: nothing is wrong with the message, try again later.

    The text says no more than the class of the failure; the cause is chained.
    """


def _attribute(oid: str, value: bytes) -> bytes:
    return der.sequence(der.oid(oid), der.tlv(der.SET, value))


_CONTENT_TYPE = _attribute(oids.CONTENT_TYPE, der.oid(oids.DATA))
_CAPABILITIES = _attribute(oids.SMIME_CAPABILITIES, write_capabilities(OWN_CAPABILITIES))
_DATA = der.oid(oids.DATA)
_SIGNED_DATA = der.oid(oids.SIGNED_DATA)
_ONE = der.integer(1)


@dataclass(frozen=True, slots=True)
class _Digest:
    name: str
    """As hashlib has it."""
    micalg: str
    """RFC 8551 §3.5.3.2."""
    oid: str
    algorithm: hashes.HashAlgorithm
    ecdsa: str
    """OID of the signature with it."""
    attribute_start: bytes
    """The messageDigest attribute up to the digest, which is its end."""


def _digest(bits: int, oid: str, algorithm: hashes.HashAlgorithm, ecdsa: str) -> _Digest:
    start = _attribute(oids.MESSAGE_DIGEST, der.octet_string(bytes(bits // 8)))[: -bits // 8]
    return _Digest(f"sha{bits}", f"sha-{bits}", oid, algorithm, ecdsa, start)


_SHA256 = _digest(256, oids.SHA256, hashes.SHA256(), oids.ECDSA_WITH_SHA256)
_SHA384 = _digest(384, oids.SHA384, hashes.SHA384(), oids.ECDSA_WITH_SHA384)
_SHA512 = _digest(512, oids.SHA512, hashes.SHA512(), oids.ECDSA_WITH_SHA512)
_DIGESTS = (_SHA256, _SHA384, _SHA512)


@lru_cache(maxsize=16)
def _signing_time(moment: datetime) -> bytes:
    return _attribute(oids.SIGNING_TIME, der.time(moment))


@dataclass(frozen=True, slots=True)
class _Profile:
    """How one certificate signs, with everything that is the same in each of its signatures."""

    digest: _Digest
    pss: bool
    signature_octets: int
    """0 when the length of a signature varies."""
    attributes: tuple[bytes, ...]
    before_attributes: bytes
    """SignerInfo up to the signed attributes."""
    signature_algorithm: bytes
    digests: bytes
    """Version and digestAlgorithms of SignedData."""
    certificates: bytes


def micalg(signer: Signer, suite: Suite = DEFAULT_SUITE) -> str:
    """The digest that `signer` uses, as `multipart/signed` names it. Raises `UnfitSignerError`."""
    return _profile_of(signer, suite).digest.micalg


def sign_content(
    content: bytes,
    signer: Signer,
    at: datetime | None = None,
    suite: Suite = DEFAULT_SUITE,
    *,
    attached: bool = False,
) -> bytes:
    """DER of a ContentInfo with a signature over `content`, signing time `at` or now; `content` inside if `attached`.

    The hash is as strong as the key (RFC 5754; RFC 8419 §3 for Ed25519). A key for PSS alone (RFC 4055) signs so,
    whatever the suite says, with the hash its certificate names. Raises `UnfitSignerError` when the key is neither RSA
    of at least 2048 bits nor on an accepted curve, `SignerFailedError` when the signer cannot sign.
    """
    profile = _profile_of(signer, suite)
    digest = digests.digest(profile.digest.name, content)
    attributes = der.set_of(
        (
            *profile.attributes,
            _signing_time((at or datetime.now(UTC)).replace(microsecond=0)),
            profile.digest.attribute_start + digest,
        )
    )
    info = der.sequence(
        profile.before_attributes,
        b"\xa0" + attributes[1:],  # signed as SET OF, sent as [0] (RFC 5652 §5.4)
        profile.signature_algorithm,
        der.octet_string(_signature(signer, attributes, profile)),
    )
    after = profile.certificates + der.tlv(der.SET, info)
    if not attached:
        signed_data = der.sequence(profile.digests, der.sequence(_DATA), after)
        return der.sequence(_SIGNED_DATA, der.tlv(context(0), signed_data))
    size = len(content)
    head = b""
    for tag, known, following in (
        (der.OCTET_STRING, b"", 0),
        (context(0), b"", 0),
        (der.SEQUENCE, _DATA, 0),
        (der.SEQUENCE, profile.digests, len(after)),
        (context(0), b"", len(after)),
        (der.SEQUENCE, _SIGNED_DATA, len(after)),
    ):
        head = der.header(tag, len(known) + len(head) + size + following) + known + head
    return b"".join((head, content, after))


def _signature(signer: Signer, attributes: bytes, profile: _Profile) -> bytes:
    sign = signer.sign_pss if profile.pss else signer.sign
    try:
        signature = sign(attributes, profile.digest.algorithm)
    except Exception as problem:  # an HSM's library raises what it likes
        raise SignerFailedError(f"the signer failed: {type(problem).__name__}") from problem
    if not signature or (profile.signature_octets and len(signature) != profile.signature_octets):
        raise SignerFailedError("the signer returned no signature of its key's size")
    return signature


def _profile_of(signer: Signer, suite: Suite) -> _Profile:
    return _profile(signer.certificate, tuple(signer.chain), suite.rsa_signature)


@lru_cache(maxsize=_SIGNERS_REMEMBERED)
def _profile(
    certificate: x509.Certificate, chain: tuple[x509.Certificate, ...], scheme: RsaSignatureScheme
) -> _Profile:
    """Raises UnfitSignerError."""
    try:
        key = certificate.public_key()
        own = identity(certificate)
        encoded = dict.fromkeys((own.encoded, *(identity(link).encoded for link in chain)))
    except (ValueError, UnsupportedAlgorithm) as problem:
        raise UnfitSignerError("the signer's certificate cannot be read") from problem
    if not acceptable(key):
        raise UnfitSignerError("signing needs an RSA key of at least 2048 bits, Ed25519, or an accepted curve")
    digest, algorithm, signature_octets = _SHA256, der.sequence(der.oid(oids.SHA256_WITH_RSA), der.null()), 0
    pss = False
    if isinstance(key, rsa.RSAPublicKey):
        signature_octets = (key.key_size + 7) // 8
        if own.key_algorithm.oid == oids.RSASSA_PSS:
            pss, digest = True, _demanded_digest(own.key_algorithm)
        elif scheme is RsaSignatureScheme.PSS:
            pss = True
        if pss:
            algorithm = _pss(digest)
    elif isinstance(key, ec.EllipticCurvePublicKey):
        digest = _SHA256 if key.key_size <= 256 else _SHA384 if key.key_size <= 384 else _SHA512
        algorithm = der.sequence(der.oid(digest.ecdsa))
    elif isinstance(key, ed25519.Ed25519PublicKey):
        digest, algorithm, signature_octets = _SHA512, der.sequence(der.oid(oids.ED25519)), 64
    digest_algorithm = der.sequence(der.oid(digest.oid))
    # ESSCertIDv2 (RFC 5035 §4): SHA-256 is the default and therefore not written
    reference = der.sequence(der.octet_string(own.sha256))
    return _Profile(
        digest=digest,
        pss=pss,
        signature_octets=signature_octets,
        attributes=(
            _CONTENT_TYPE,
            _CAPABILITIES,
            _attribute(oids.SIGNING_CERTIFICATE_V2, der.sequence(der.sequence(reference))),
            # RFC 6211 §2: digest algorithm, then the signature algorithm as [1]
            _attribute(oids.ALGORITHM_PROTECTION, der.sequence(digest_algorithm, bytes((context(1),)) + algorithm[1:])),
        ),
        before_attributes=_ONE + own.issuer_and_serial + digest_algorithm,
        signature_algorithm=algorithm,
        digests=_ONE + der.tlv(der.SET, digest_algorithm),
        certificates=der.tlv(context(0), *sorted(encoded)),
    )


def _demanded_digest(certified_as: Algorithm) -> _Digest:
    """The hash for a key that is for PSS alone (RFC 4055 §3.3). Raises UnfitSignerError."""
    with suppress(UnsoundError, ValueError):
        demanded = demanded_pss(certified_as)
        for digest in _DIGESTS:
            if demanded.admits(Pss(digest.oid, digest.oid, digest.algorithm.digest_size)):
                return digest
    raise UnfitSignerError("the certificate demands parameters of PSS that Relais does not sign with")


def _pss(digest: _Digest) -> bytes:
    """RSASSA-PSS with one hash throughout and a salt as long as it (RFC 4056 §3, RFC 8551 §2.2)."""
    hashed = der.sequence(der.oid(digest.oid), der.null())
    return der.sequence(
        der.oid(oids.RSASSA_PSS),
        der.sequence(
            der.tlv(context(0), hashed),
            der.tlv(context(1), der.sequence(der.oid(oids.MGF1), hashed)),
            der.tlv(context(2), der.integer(digest.algorithm.digest_size)),
        ),
    )
