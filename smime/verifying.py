"""SignedData verified, detached or opaque (RFC 5652 §5.6).

What is believed comes from the signed attributes, which are required: without them a signature over attributes could be
passed off as one over a message. Signatures are judged here, and then the certificate's path and the sender's address;
each step only when the one before held.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import islice
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from smime import oids
from smime.addresses import matches
from smime.capabilities import read_capabilities
from smime.cms_read import REMEMBERED_OCTETS, Algorithm, Signed, SignerInfo, read_algorithm
from smime.key_preference import encryption_certificates
from smime.offered import Bundle, Offered
from smime.policy import DEFAULT_POLICY, ReadPolicy
from smime.schemes import HASHES, SHAKE256_OCTETS, UnsoundError, has_its_parameters, holds, label
from smime.signing_certificate import CertificateReference, references
from smime.verdict import Finding, SignatureResult, SignerVerdict
from trust import der
from trust.certificates import CertificateValidator, PathVerdict, Purpose
from trust.der import Buffer, DerError, Element, context

MAX_TRIED = 4
"""Certificates of one name, key identifier or issuer and serial number, that a signature is tried with."""

Content = Iterable[Buffer]


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
    judging = _Judging(signed, _digests(signed, content, expected.policy), expected)
    return tuple([judging.judge(info) for info in signed.signers])


def _digests(signed: Signed, content: Content, policy: ReadPolicy) -> dict[str, bytes]:
    """The digest of the content by each algorithm that a signer names and the policy admits."""
    running = {}
    shakes = {}
    for name in {info.digest.oid for info in signed.signers}:
        if name in HASHES and (policy.sha1 or name != oids.SHA1):
            running[name] = hashlib.new(HASHES[name].name)
        elif name in (oids.SHAKE256, oids.SHAKE256_LEN):
            shakes[name] = hashlib.shake_256()
    updated: tuple[_Running, ...] = (*running.values(), *shakes.values())
    for piece in content if updated else ():
        for each in updated:
            each.update(piece)
    digests = {name: each.digest() for name, each in running.items()}
    return digests | {name: each.digest(SHAKE256_OCTETS) for name, each in shakes.items()}


class _Known:
    """What is known of one signer by the time a rule stops."""

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        self.certificate: x509.Certificate | None = None
        self.signing_time: datetime | None = None
        self.algorithm = ""
        self.findings = findings

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


class _Judging:
    """One message's signers, and what is the same for all of them."""

    def __init__(self, signed: Signed, digests: dict[str, bytes], expected: Expectation) -> None:
        self._signed = signed
        self._digests = digests
        self._expected = expected
        self._bundle = Bundle(signed.certificates)
        self._paths: dict[bytes, PathVerdict] = {}
        """By the DER of the signer's certificate."""

    def judge(self, info: SignerInfo) -> SignerVerdict:
        ignored = self._bundle.ignored
        known = _Known((Finding("certificates-ignored", str(ignored)),) if ignored else ())
        try:
            known.algorithm = label(info.algorithm, info.digest.oid)
            if info.digest.oid == oids.SHA1 and self._expected.policy.sha1:
                known.findings = (Finding("weak-digest", "sha1"), *known.findings)
            attributes = _check_attributes(info, self._signed, self._digests)
            time = attributes.get(oids.SIGNING_TIME)
            known.signing_time = time.time() if time is not None else None
            signer, path = self._signer(info, attributes, known)
        except UnsoundError as problem:
            return known.invalid(Finding(problem.code, problem.detail))
        except (ValueError, TypeError, OverflowError, UnsupportedAlgorithm):
            return known.invalid(Finding("malformed-signature"))
        addresses = (*signer.addresses, *self._expected.published_addresses(signer.certificate))
        claimed = self._expected.from_addresses
        findings = known.findings
        if not path.ok:
            result = SignatureResult.UNTRUSTED
            findings += (Finding("path-refused", path.rule),)
        elif claimed and all(matches(address, addresses) for address in claimed):
            result = SignatureResult.VALID
        else:
            result = SignatureResult.MISMATCH
            findings += (_mismatch(claimed, addresses),)
        return SignerVerdict(
            signer.certificate,
            result,
            path,
            addresses,
            known.signing_time,
            findings,
            known.algorithm,
            _capabilities(attributes),
            encryption_certificates(info, signer, self._bundle) if result is SignatureResult.VALID else (),
        )

    def _signer(self, info: SignerInfo, attributes: _Attributes, known: _Known) -> tuple[Offered, PathVerdict]:
        """The certificate under which the signature holds, and its path; of several, one whose path holds.

        Anybody can add a certificate with another's key identifier, and a key certified again keeps its own, so the
        order in which they come means nothing. `known` is of the one returned, or else of the first tried. Raises
        UnsoundError or ValueError as the first does, when the signature holds under none.
        """
        best: tuple[Offered, PathVerdict] | None = None
        problem: Exception | None = None
        for signer in islice(_certificates_of(info, attributes, self._bundle), MAX_TRIED):
            try:
                if problem is None and best is None:
                    self._tell(signer, info, known)
                _check_signature(info, signer)
            except (UnsoundError, ValueError, TypeError, OverflowError, UnsupportedAlgorithm) as found:
                problem = problem or found
                continue
            path = self._path(signer)
            if best is None or path.ok:
                best = signer, path
            if path.ok:
                self._bundle.keep(signer)
                break
        if best is None:
            raise problem or UnsoundError("no-certificate")
        self._tell(best[0], info, known)
        return best

    @staticmethod
    def _tell(signer: Offered, info: SignerInfo, known: _Known) -> None:
        known.certificate = signer.certificate
        if signer.key is not None:
            known.algorithm = label(info.algorithm, info.digest.oid, signer.key)

    def _path(self, signer: Offered) -> PathVerdict:
        encoded = signer.identity.encoded
        path = self._paths.get(encoded)
        if path is None:
            path = self._paths[encoded] = self._expected.validator.validate(
                signer.certificate, self._bundle.above(signer), Purpose.MAIL_SIGNATURE, self._expected.at
            )
        return path


def _mismatch(from_addresses: tuple[str, ...], addresses: tuple[str, ...]) -> Finding:
    if not addresses:
        return Finding("certificate-without-address")
    lowered = [address.lower() for address in addresses]
    if from_addresses and all(matches(address.lower(), lowered) for address in from_addresses):
        return Finding("from-differs-by-case")
    return Finding("from-not-in-certificate")


# --- Attributes ------------------------------------------------------------------------------------------------------


def _check_attributes(info: SignerInfo, signed: Signed, digests: dict[str, bytes]) -> _Attributes:
    """RFC 5652 §5 and §11, RFC 6211. Returns what `_read_attributes` does."""
    if info.digest.oid not in digests or info.digest.oid not in signed.digests:
        raise UnsoundError("digest-algorithm", info.digest.oid)
    if not has_its_parameters(info.digest):
        raise UnsoundError("algorithm-parameters", info.digest.oid)
    if not info.attributes:
        raise UnsoundError("no-signed-attributes")
    if signed.content_type != oids.DATA:
        # a signature over a time stamp or a receipt is none over a mail (RFC 8551 §2.4.1)
        raise UnsoundError("content-type", signed.content_type)
    if not signed.version_fits or not info.version_fits:
        raise UnsoundError("version")
    attributes = _read_attributes(info)
    content_type = attributes.get(oids.CONTENT_TYPE)
    if content_type is None or content_type.oid() != signed.content_type:
        raise UnsoundError("content-type-attribute")
    digest = attributes.get(oids.MESSAGE_DIGEST)
    if digest is None:
        raise UnsoundError("message-digest-attribute")
    if digest.octets() != digests[info.digest.oid]:
        raise UnsoundError("content-altered")
    protection = attributes.get(oids.ALGORITHM_PROTECTION)
    if protection is not None:
        _check_protection(info, protection)
    return attributes


_Attributes = dict[str, Element]
"""Of the attributes that are looked at here, the one value of each, by type."""
_ONCE = frozenset(
    (
        oids.CONTENT_TYPE,
        oids.MESSAGE_DIGEST,
        oids.ALGORITHM_PROTECTION,
        oids.SMIME_CAPABILITIES,
        oids.SIGNING_TIME,
        oids.SIGNING_CERTIFICATE,
        oids.SIGNING_CERTIFICATE_V2,
    )
)


def _read_attributes(info: SignerInfo) -> _Attributes:
    """Each must occur once and with one value (RFC 5652 §11, RFC 5035 §5, RFC 6211 §2, RFC 8551 §2.5.2)."""
    found: _Attributes = {}
    for attribute in info.attributes:
        oid, values = attribute.oid, attribute.values
        if oid in _ONCE:
            if oid in found or len(values) != 1:
                raise UnsoundError("repeated-attribute", oid)
            found[oid] = values[0]
    return found


def _check_protection(info: SignerInfo, value: Element) -> None:
    """CMSAlgorithmProtection (RFC 6211 §2): digest algorithm, then signature algorithm as [1]."""
    used = (info.digest.encoded, info.algorithm.encoded)
    encoded = value.copy()
    if sum(map(len, used), len(encoded)) > REMEMBERED_OCTETS or not _protects(encoded, *used):
        raise UnsoundError("algorithm-protection")


@lru_cache(maxsize=256)
def _protects(protection: bytes, digest: bytes, signature: bytes) -> bool:
    """Raises DerError."""
    fields = der.read(protection).sequence(2)
    return (
        len(fields) == 2
        and fields[1].tag == context(1)
        and _same_algorithm(der.tlv(der.SEQUENCE, fields[0].content), digest)
        and _same_algorithm(der.tlv(der.SEQUENCE, fields[1].content), signature)
    )


def _same_algorithm(one: bytes, other: bytes) -> bool:
    """Absent parameters and NULL are the same thing (RFC 5754 §2)."""
    if one == other:
        return True
    first, second = read_algorithm(der.read(one)), read_algorithm(der.read(other))
    return first.oid == second.oid and _parameters(first) == _parameters(second)


def _parameters(algorithm: Algorithm) -> bytes:
    return algorithm.parameters.copy() if algorithm.parameters is not None else b""


def _capabilities(attributes: _Attributes) -> tuple[str, ...]:
    """SMIMECapabilities (RFC 8551 §2.5.2); none at all when they cannot be read."""
    value = attributes.get(oids.SMIME_CAPABILITIES)
    if value is None:
        return ()
    encoded = value.copy()
    return _names(encoded) if len(encoded) <= REMEMBERED_OCTETS else _names.__wrapped__(encoded)


@lru_cache(maxsize=256)
def _names(capabilities: bytes) -> tuple[str, ...]:
    """Those whose parameters mean what the name alone stands for in `Capabilities`."""
    try:
        return tuple(dict.fromkeys(read_capabilities(capabilities).names))
    except DerError:
        return ()


# --- Certificate -----------------------------------------------------------------------------------------------------


def _certificates_of(info: SignerInfo, attributes: _Attributes, bundle: Bundle) -> Iterator[Offered]:
    """The certificates the signer may mean, by name and by signingCertificate (RFC 5035 §5). Raises UnsoundError, also
    when there are none."""
    given: list[CertificateReference] | None = None
    meant = False
    for each in bundle.named_by(info.signer):
        if given is None:
            given = references(attributes)
        if all(reference.means(each.identity, each.sha256) for reference in given):
            meant = True
            yield each
    if given is None:
        raise UnsoundError("no-certificate")
    if not meant:
        raise UnsoundError("signing-certificate-attribute")


# --- Signature -------------------------------------------------------------------------------------------------------


def _check_signature(info: SignerInfo, signer: Offered) -> None:
    """RFC 5652 §5.6 over the attributes as sent, or sorted as DER would have them when they were not."""
    if signer.key is None:
        raise UnsoundError("malformed-signature")
    if not signer.sound:
        raise UnsoundError("weak-key")
    scheme = signer.key, signer.identity.key_algorithm, info.algorithm, info.digest.oid, info.signature
    if holds(*scheme, info.signed_bytes):
        return
    ordered = der.set_of(bytes(attribute.encoded) for attribute in der.read(info.signed_bytes).set())
    if ordered == info.signed_bytes or not holds(*scheme, ordered):
        raise UnsoundError("signature-wrong")
