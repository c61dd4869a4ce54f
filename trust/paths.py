"""Certification paths: from a certificate anybody may have written up to an anchor we chose (RFC 5280 §6.1).

The certificates that arrive in a mail are attacker's input, so the search is bounded in every direction: how many
certificates are read, how many are considered as issuers, how many signatures are verified, how many steps are taken.
Issuers are matched by name and key identifier; checks that cost nothing come before the signature. Edges of accepted
paths are remembered, so that the thousandth mail under one CA pays for its own signature only.

Not done: certificate policies (any policy is accepted; a critical policyConstraints or inhibitAnyPolicy is refused),
name constraints (a CA that has them is refused, critical or not), revocation.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice, pairwise
from threading import Lock
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, x25519
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, ObjectIdentifier, SignatureAlgorithmOID

from trust import der
from trust.names import DistinguishedName

MAX_OFFERED = 64
"""Certificates that came along and are read at all; the others are ignored."""
MAX_CANDIDATES = 32
"""Different certificates considered as issuers during one search."""
MAX_SIGNATURES = 64
"""Signatures verified during one search."""
MAX_STEPS = 512
"""(child, issuer) pairs looked at during one search: cross-certified CAs form loops whose walks are exponential."""
MAX_DEPTH = 6
"""Certificates above the end entity, anchor included."""
MAX_REMEMBERED = 4096
"""Verified edges kept between searches."""

_PROCESSED = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.CERTIFICATE_POLICIES,  # the initial policy set is any-policy: nothing to process (§6.1.1 (c))
        ExtensionOID.NAME_CONSTRAINTS,  # always refused, with a rule of its own
    }
)

_Hash = hashes.SHA256 | hashes.SHA384 | hashes.SHA512
_RSA_PKCS1: dict[ObjectIdentifier, type[_Hash]] = {
    SignatureAlgorithmOID.RSA_WITH_SHA256: hashes.SHA256,
    SignatureAlgorithmOID.RSA_WITH_SHA384: hashes.SHA384,
    SignatureAlgorithmOID.RSA_WITH_SHA512: hashes.SHA512,
}
_ECDSA: dict[ObjectIdentifier, type[_Hash]] = {
    SignatureAlgorithmOID.ECDSA_WITH_SHA256: hashes.SHA256,
    SignatureAlgorithmOID.ECDSA_WITH_SHA384: hashes.SHA384,
    SignatureAlgorithmOID.ECDSA_WITH_SHA512: hashes.SHA512,
}
_CURVES = (
    ec.SECP256R1,
    ec.SECP384R1,
    ec.SECP521R1,
    ec.BrainpoolP256R1,
    ec.BrainpoolP384R1,
    ec.BrainpoolP512R1,
)
_ANY_EXTENDED = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | x25519.X25519PublicKey
_E = TypeVar("_E", bound=x509.ExtensionType)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a certificate says, read once. Built by `read`."""

    certificate: x509.Certificate
    fingerprint: bytes
    subject: DistinguishedName
    issuer: DistinguishedName
    serial: int
    not_before: datetime
    not_after: datetime
    key: PublicKey | None
    """None when the key is of a kind or size that is not accepted."""
    subject_key_id: bytes | None
    authority_key_id: bytes | None
    basic_constraints: x509.BasicConstraints | None
    key_usage: x509.KeyUsage | None
    extended_key_usage: frozenset[ObjectIdentifier] | None
    unprocessed: tuple[str, ...]
    """Critical extensions this validation does not process."""
    name_constraints: bool
    extensions: int

    @property
    def self_issued(self) -> bool:
        return self.subject == self.issuer

    @property
    def where(self) -> str:
        """Which CA certificate this is, for a verdict's detail. Never used for end entities: their name is a person."""
        return f"CA {str(self.subject)[:200]}, serial {self.serial:x}"

    def allows(self, extended: ObjectIdentifier) -> bool:
        """Whether the extended key usage, when there is one, permits a purpose (§4.2.1.12)."""
        usage = self.extended_key_usage
        return usage is None or extended in usage or _ANY_EXTENDED in usage


@dataclass(frozen=True, slots=True)
class Failure:
    """Why no path was accepted."""

    rule: str
    detail: str


def read(certificate: x509.Certificate) -> Facts | None:
    """The facts of a certificate; None when it cannot be read to the end (bad DER, duplicate or broken extensions)."""
    try:
        extensions = certificate.extensions
        aki = _extension(extensions, x509.AuthorityKeyIdentifier)
        ski = _extension(extensions, x509.SubjectKeyIdentifier)
        eku = _extension(extensions, x509.ExtendedKeyUsage)
        return Facts(
            certificate=certificate,
            fingerprint=certificate.fingerprint(hashes.SHA256()),
            subject=DistinguishedName.from_x509(certificate.subject),
            issuer=DistinguishedName.from_x509(certificate.issuer),
            serial=certificate.serial_number,
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            key=_accepted_key(certificate),
            subject_key_id=ski.digest if ski else None,
            authority_key_id=aki.key_identifier if aki else None,
            basic_constraints=_extension(extensions, x509.BasicConstraints),
            key_usage=_extension(extensions, x509.KeyUsage),
            extended_key_usage=frozenset(eku) if eku else None,
            unprocessed=tuple(e.oid.dotted_string for e in extensions if e.critical and e.oid not in _PROCESSED),
            name_constraints=_extension(extensions, x509.NameConstraints) is not None,
            extensions=len(extensions),
        )
    except (
        Exception
    ):  # the parser reads lazily and has no common error class; whatever it is, the certificate is unusable
        return None


def _extension(extensions: x509.Extensions, kind: type[_E]) -> _E | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _accepted_key(certificate: x509.Certificate) -> PublicKey | None:
    """RSA of 2048 to 8192 bits (and an exponent that keeps verification under a millisecond), NIST and Brainpool
    curves, Ed25519, and X25519, which signs nothing and is for encryption only (RFC 8410)."""
    try:
        key = certificate.public_key()
    except Exception:  # explicit curve parameters, unknown algorithms, malformed numbers: each has its own error class
        return None
    if isinstance(key, rsa.RSAPublicKey):
        exponent = key.public_numbers().e
        return key if 2048 <= key.key_size <= 8192 and 3 <= exponent < 1 << 32 and exponent % 2 else None
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key if isinstance(key.curve, _CURVES) else None
    return key if isinstance(key, ed25519.Ed25519PublicKey | x25519.X25519PublicKey) else None


def in_time(facts: Facts, at: datetime) -> bool:
    """§6.1.3 (a)(2); both ends belong to the validity period."""
    return facts.not_before <= at <= facts.not_after


class Paths:
    """Anchors and intermediates we chose, and the searches over them. Thread-safe."""

    def __init__(self, anchors: Iterable[x509.Certificate], intermediates: Iterable[x509.Certificate]) -> None:
        """Raises ValueError when a certificate cannot be read: these come from configuration, not from a partner."""
        self._anchors = _by_subject(_read_all(anchors))
        self._intermediates = _by_subject(_read_all(intermediates))
        self._remembered: OrderedDict[tuple[bytes, bytes], None] = OrderedDict()
        self._lock = Lock()

    def find(
        self, leaf: Facts, offered: Iterable[x509.Certificate], extended: ObjectIdentifier, at: datetime
    ) -> tuple[Facts, ...] | Failure:
        """A path from `leaf` (first) to an anchor (last) on which every rule of §6.1 holds, or why there is none."""
        search = _Search(self, offered, extended, at)
        path = search.extend((leaf,))
        if path is None:
            return search.failure
        with self._lock:
            for child, issuer in pairwise(path):
                self._remembered[child.fingerprint, issuer.fingerprint] = None
                self._remembered.move_to_end((child.fingerprint, issuer.fingerprint))
            while len(self._remembered) > MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        return path

    def remembers(self, child: Facts, issuer: Facts) -> bool:
        """Whether this edge was verified on an accepted path before."""
        with self._lock:
            return (child.fingerprint, issuer.fingerprint) in self._remembered

    def issuers(
        self, child: Facts, offered: Mapping[DistinguishedName, Sequence[Facts]]
    ) -> Iterator[tuple[Facts, bool]]:
        """Possible issuers by name and key identifier, and whether each is an anchor: ours first, theirs last."""
        for facts in self._anchors.get(child.issuer, ()):
            if _key_ids_agree(child, facts):
                yield facts, True
        for pool in (self._intermediates, offered):
            for facts in pool.get(child.issuer, ()):
                if _key_ids_agree(child, facts):
                    yield facts, False


class _Search:
    """One search: its budgets, what it verified already and the failure that explains most."""

    def __init__(self, paths: Paths, offered: Iterable[x509.Certificate], extended: ObjectIdentifier, at: datetime):
        self._paths = paths
        self._offered = _by_subject(
            facts for certificate in islice(offered, MAX_OFFERED) if (facts := read(certificate))
        )
        self._extended = extended
        self._at = at
        self._candidates: set[bytes] = set()
        self._signatures: dict[tuple[bytes, bytes], str] = {}
        self._steps = 0
        self._exhausted = False
        self._weight = 0
        self.failure = Failure("rfc5280-6.1-no-path", "no trusted issuer found")

    def extend(self, path: tuple[Facts, ...]) -> tuple[Facts, ...] | None:
        """`path` completed up to an anchor; None when that is impossible or too expensive."""
        child = path[-1]
        below = sum(1 for facts in path[1:] if not facts.self_issued)
        for issuer, is_anchor in self._paths.issuers(child, self._offered):
            if not self._afford(issuer):
                return None
            if any(issuer.fingerprint == facts.fingerprint for facts in path):
                continue
            failure = _ca_failure(issuer, is_anchor, below, self._extended, self._at)
            if failure:
                self._note(2, failure)
                continue
            rule = self._signature_failure(child, issuer)
            if rule:
                self._note(1 if rule == "rfc5280-6.1.3-signature" else 2, Failure(rule, f"signed by {issuer.where}"))
                continue
            if is_anchor:
                return (*path, issuer)
            if len(path) >= MAX_DEPTH:
                self._note(2, Failure("relais-path-depth", f"more than {MAX_DEPTH} certificates above the end entity"))
                continue
            found = self.extend((*path, issuer))
            if found or self._exhausted:
                return found
        return None

    def _afford(self, issuer: Facts) -> bool:
        self._steps += 1
        self._candidates.add(issuer.fingerprint)
        if self._steps > MAX_STEPS or len(self._candidates) > MAX_CANDIDATES or len(self._signatures) >= MAX_SIGNATURES:
            self._exhausted = True
            self._note(3, Failure("relais-path-budget", "too many possible paths"))
        return not self._exhausted

    def _note(self, weight: int, failure: Failure) -> None:
        """Keep the first of the weightiest failures: a broken rule says more than a name that led nowhere."""
        if weight > self._weight:
            self._weight, self.failure = weight, failure

    def _signature_failure(self, child: Facts, issuer: Facts) -> str:
        edge = (child.fingerprint, issuer.fingerprint)
        if edge not in self._signatures:
            if self._paths.remembers(child, issuer):
                return ""
            self._signatures[edge] = signature_failure(child, issuer)
        return self._signatures[edge]


def _read_all(certificates: Iterable[x509.Certificate]) -> list[Facts]:
    out = []
    for certificate in certificates:
        facts = read(certificate)
        if facts is None:
            raise ValueError("unreadable certificate among the configured anchors or intermediates")
        out.append(facts)
    return out


def _by_subject(certificates: Iterable[Facts]) -> dict[DistinguishedName, list[Facts]]:
    out: dict[DistinguishedName, list[Facts]] = {}
    for facts in certificates:
        if facts.subject.rdns:  # a CA has a name (§4.1.2.6)
            same = out.setdefault(facts.subject, [])
            if all(facts.fingerprint != other.fingerprint for other in same):
                same.append(facts)
    return out


def _key_ids_agree(child: Facts, issuer: Facts) -> bool:
    return child.authority_key_id is None or issuer.subject_key_id in (None, child.authority_key_id)


def _ca_failure(issuer: Facts, is_anchor: bool, below: int, extended: ObjectIdentifier, at: datetime) -> Failure | None:
    """Why `issuer` may not issue here (§6.1.4); `below` intermediates that are not self-issued stand under it.

    An anchor's own constraints are honoured too (RFC 5937); only an anchor without extensions (X.509 v1) has none.
    """
    if not in_time(issuer, at):
        return Failure("rfc5280-6.1.3-validity", f"{issuer.where} is not valid at the time of validation")
    if issuer.unprocessed:
        return Failure("rfc5280-6.1.4-critical-extension", f"{issuer.where} has {issuer.unprocessed[0]}")
    if issuer.name_constraints:
        return Failure(
            "rfc5280-6.1.4-name-constraints", f"{issuer.where} has name constraints, which are not supported"
        )
    if issuer.key is None:
        return Failure("relais-key-too-weak", f"{issuer.where} has a key of a kind or size that is not accepted")
    if is_anchor and not issuer.extensions:
        return None
    constraints = issuer.basic_constraints
    if constraints is None or not constraints.ca:
        return Failure("rfc5280-6.1.4-basic-constraints", f"{issuer.where} is not a CA")
    if constraints.path_length is not None and constraints.path_length < below:
        return Failure(
            "rfc5280-6.1.4-path-length", f"{issuer.where} allows {constraints.path_length} CAs below, found {below}"
        )
    if issuer.key_usage is not None and not issuer.key_usage.key_cert_sign:
        return Failure("rfc5280-6.1.4-key-usage", f"{issuer.where} may not sign certificates")
    if not issuer.allows(extended):
        return Failure("relais-extended-key-usage", f"{issuer.where} may not issue for this purpose")
    return None


def signature_failure(child: Facts, issuer: Facts) -> str:
    """Verify one signature (§6.1.3 (a)(1)): "" when it is good, else the rule it breaks."""
    try:
        return _verify(child.certificate, issuer.key)
    except (
        Exception
    ):  # not only InvalidSignature: malformed values and parameters raise many classes, none of them good
        return "rfc5280-6.1.3-signature"


def _verify(certificate: x509.Certificate, key: PublicKey | None) -> str:
    weak, mismatch = "relais-algorithm-too-weak", "rfc5280-6.1.3-signature"
    oid = certificate.signature_algorithm_oid
    signed = certificate.tbs_certificate_bytes
    if not _inner_algorithm_agrees(certificate):
        return "rfc5280-4.1.1.2-signature-algorithm"
    if oid in _RSA_PKCS1:
        if not isinstance(key, rsa.RSAPublicKey):
            return mismatch
        key.verify(certificate.signature, signed, padding.PKCS1v15(), _RSA_PKCS1[oid]())
    elif oid == SignatureAlgorithmOID.RSASSA_PSS:
        if not isinstance(key, rsa.RSAPublicKey):
            return mismatch
        scheme, digest = certificate.signature_algorithm_parameters, certificate.signature_hash_algorithm
        if not isinstance(scheme, padding.PSS) or not isinstance(digest, _Hash):
            return weak
        # the mask generation function must use the same hash (RFC 4055 §3.1)
        if not isinstance(scheme.mgf, padding.MGF1) or scheme.mgf._algorithm.name != digest.name:
            return weak
        key.verify(certificate.signature, signed, scheme, digest)
    elif oid in _ECDSA:
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return mismatch
        key.verify(certificate.signature, signed, ec.ECDSA(_ECDSA[oid]()))
    elif oid == SignatureAlgorithmOID.ED25519:
        if not isinstance(key, ed25519.Ed25519PublicKey):
            return mismatch
        key.verify(certificate.signature, signed)
    else:
        return weak
    return ""


def _inner_algorithm_agrees(certificate: x509.Certificate) -> bool:
    """Whether the algorithm inside the signed part is the one outside it (§4.1.1.2), byte for byte."""
    signed, outer, _ = der.read(certificate.public_bytes(serialization.Encoding.DER)).sequence()
    fields = signed.sequence()
    inner = fields[2] if fields[0].tag == der.context(0) else fields[1]  # version is there or not, then serialNumber
    return inner.encoded == outer.encoded
