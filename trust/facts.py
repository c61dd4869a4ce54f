"""What a certificate says, read once, from its DER.

`cryptography` has checked the encoding by the time a certificate is an object; here the fields are found by their
positions, which is quicker than asking for objects, tells apart what exactly is wrong, and reads what `cryptography`
refuses to look at (x400Address, negative serials). The values of extensions are read in `trust.extensions`.

Nothing here trusts anything: a certificate that cannot be read to the end is a `Failure`. What somebody sent along is
only skimmed at first: long lists of names, policies and constraints are read when its turn comes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from threading import Lock

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519

from trust import der, extensions
from trust.constraints import NameConstraints, general_names, read_constraints
from trust.extensions import KeyUsage
from trust.names import DistinguishedName, Rdns, comparable, texts
from trust.rules import Failure

MAX_SERIAL_OCTETS = 20
"""RFC 5280 §4.1.2.2."""
MAX_EXTENSIONS = 64
MAX_NAMES = 4096

_EMAIL_ADDRESS = "1.2.840.113549.1.9.1"
_EMAIL_ADDRESS_DER = der.oid(_EMAIL_ADDRESS)
_ANY_EXTENDED = "2.5.29.37.0"
_PSS_KEY = der.oid("1.2.840.113549.1.1.10")


def _id_ce(arc: int) -> bytes:
    return bytes((0x55, 0x1D, arc))


_SUBJECT_KEY_ID = _id_ce(14)
_KEY_USAGE = _id_ce(15)
_ALTERNATIVE_NAMES = _id_ce(17)
_BASIC_CONSTRAINTS = _id_ce(19)
_NAME_CONSTRAINTS = _id_ce(30)
_DISTRIBUTION_POINTS = _id_ce(31)
_POLICIES = _id_ce(32)
_MAPPINGS = _id_ce(33)
_AUTHORITY_KEY_ID = _id_ce(35)
_POLICY_CONSTRAINTS = _id_ce(36)
_EXTENDED_KEY_USAGE = _id_ce(37)
_FRESHEST_CRL = _id_ce(46)
_INHIBIT_ANY = _id_ce(54)

_PROCESSED = frozenset(
    {
        _SUBJECT_KEY_ID,
        _KEY_USAGE,
        _ALTERNATIVE_NAMES,
        _BASIC_CONSTRAINTS,
        _NAME_CONSTRAINTS,
        _DISTRIBUTION_POINTS,  # `trust.revocation` reads them
        _POLICIES,
        _MAPPINGS,
        _AUTHORITY_KEY_ID,
        _POLICY_CONSTRAINTS,
        _EXTENDED_KEY_USAGE,
        _FRESHEST_CRL,
        _INHIBIT_ANY,
    }
)

_CURVES = (
    ec.SECP256R1,
    ec.SECP384R1,
    ec.SECP521R1,
    ec.BrainpoolP256R1,
    ec.BrainpoolP384R1,
    ec.BrainpoolP512R1,
)

PublicKey = (
    rsa.RSAPublicKey
    | ec.EllipticCurvePublicKey
    | ed25519.Ed25519PublicKey
    | ed448.Ed448PublicKey
    | x25519.X25519PublicKey
)


_CERT_SIGN = int(KeyUsage.KEY_CERT_SIGN)


class Facts:
    """What one certificate says. Built by `read` or `skim`; nobody changes it afterwards. Equal certificates, equal
    `digest`. After `skim`, what is marked below is there once `complete` was asked for."""

    __slots__ = (
        "_broken",
        "_completed",
        "_key",
        "_key_read",
        "_subject",
        "alternative_names",
        "authority_key_id",
        "basic_constraints",
        "certificate",
        "digest",
        "extended_key_usage",
        "extensions",
        "inhibit_any",
        "inner_algorithm",
        "issuer_der",
        "key_der",
        "key_usage",
        "mappings",
        "name_constraints",
        "not_after",
        "not_before",
        "outer_algorithm",
        "policies",
        "policy_constraints",
        "serial",
        "signature",
        "signed",
        "subject_der",
        "subject_key_id",
        "unprocessed",
        "values",
        "version",
    )

    certificate: x509.Certificate
    digest: bytes
    """SHA-256 of the certificate."""
    version: int
    """1 or 3."""
    serial: int
    not_before: datetime
    not_after: datetime
    issuer_der: bytes
    subject_der: bytes
    key_der: bytes
    """SubjectPublicKeyInfo."""
    signed: bytes
    signature: bytes
    inner_algorithm: bytes
    outer_algorithm: bytes
    """AlgorithmIdentifiers in DER; the same when all is well."""
    extensions: int
    """How many there are."""
    values: Mapping[bytes, bytes]
    """Their extnValues, by the contents octets of their OIDs."""
    unprocessed: tuple[str, ...]
    """Critical extensions this validation does not process, dotted OIDs."""
    basic_constraints: tuple[bool, int | None] | None
    """cA and pathLenConstraint."""
    key_usage: int | None
    """Bits of `KeyUsage`."""
    extended_key_usage: frozenset[str] | None
    subject_key_id: bytes | None
    authority_key_id: bytes | None
    alternative_names: tuple[tuple[int, bytes], ...]
    """GeneralNames of the subject: tag number and contents. After `complete`."""
    name_constraints: NameConstraints | None
    """After `complete`."""
    policies: tuple[str, ...] | None
    """After `complete`."""
    mappings: tuple[tuple[str, str], ...]
    """issuerDomainPolicy and subjectDomainPolicy. After `complete`."""
    policy_constraints: tuple[int | None, int | None]
    """requireExplicitPolicy and inhibitPolicyMapping, in certificates to skip."""
    inhibit_any: int | None
    _broken: Failure | None
    _completed: bool
    _subject: Rdns | None
    _key: PublicKey | None
    _key_read: bool

    def complete(self) -> Failure | None:
        """Read what `skim` left out, once; why the certificate cannot be used for anything, when it cannot."""
        if not self._completed:
            try:
                _read_lists(self)
            except _BrokenError as broken:
                self._broken = broken.failure
            except Exception as problem:  # as in `skim`
                self._broken = _malformed(self, problem).failure
            self._completed = True
        return self._broken

    @property
    def subject(self) -> Rdns:
        """The subject as it is compared (RFC 5280 §7.1)."""
        if self._subject is None:
            self._subject = comparable(self.subject_der)
        return self._subject

    @property
    def issuer(self) -> Rdns:
        return comparable(self.issuer_der)

    @property
    def self_issued(self) -> bool:
        """Whether subject and issuer are the same name, in whatever words (§3.2). May raise ValueError."""
        return self.issuer_der == self.subject_der or self.issuer == self.subject

    @property
    def where(self) -> str:
        """Which certificate this is, for a verdict's detail: by name only when it is a CA's, others' are people's."""
        root_of_old = not self.extensions and self.issuer_der == self.subject_der
        if not root_of_old and not (self.basic_constraints and self.basic_constraints[0]):
            return f"certificate, serial {self.serial:x}"
        try:
            name = str(DistinguishedName.from_x509(self.certificate.subject))[:200]
        except Exception:  # names are read lazily; a strange one must not hide the failure that is being told
            name = "of unreadable name"
        return f"CA {name}, serial {self.serial:x}"

    @property
    def key(self) -> PublicKey | None:
        """None when the key is of a kind or size that is not accepted."""
        if not self._key_read:
            self._key = _accepted_key(self.certificate)
            self._key_read = True
        return self._key

    @property
    def pss_only(self) -> bool:
        """Whether the key is restricted to RSASSA-PSS signatures (RFC 4055 §1.2, §3.3)."""
        return self.key_algorithm.find(_PSS_KEY, 2, 6 + len(_PSS_KEY)) >= 0

    @property
    def key_algorithm(self) -> bytes:
        """The AlgorithmIdentifier of the key."""
        at, _ = _element(self.key_der, 0)
        return self.key_der[at : _element(self.key_der, at)[1]]

    @property
    def mail_of_subject(self) -> tuple[str, ...]:
        """emailAddress attributes of the subject as written, "" for one that is no text (§4.1.2.6: deprecated, but
        constrained as rfc822Name). Raises ValueError when the subject cannot be read."""
        return texts(self.subject_der, _EMAIL_ADDRESS) if _EMAIL_ADDRESS_DER in self.subject_der else ()

    def allows(self, extended: str) -> bool:
        """Whether the extended key usage, when there is one, permits a purpose (§4.2.1.12)."""
        usage = self.extended_key_usage
        return usage is None or extended in usage or _ANY_EXTENDED in usage

    @property
    def may_sign_certificates(self) -> bool:
        return self.key_usage is None or bool(self.key_usage & _CERT_SIGN)


class _BrokenError(Exception):
    """A rule that makes a certificate unusable, whatever it is wanted for."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(rule)
        self.failure = Failure(rule, detail)


_REMEMBERED_OCTETS = 4096
"""The longest certificate whose facts are remembered: real ones have 2,000, and what was read weighs much more."""
_REMEMBERED = 64
_known: dict[int, tuple[x509.Certificate, Facts | Failure]] = {}
"""The last few certificates, by the identity of the object, which is alive as long as it is here: one validation asks
for the same one in several places, and hashing it costs a tenth of reading it."""
_known_lock = Lock()


def read(certificate: x509.Certificate) -> Facts | Failure:
    """The facts of a certificate, or why it cannot be used for anything. Never raises."""
    facts = skim(certificate)
    return facts if isinstance(facts, Failure) else facts.complete() or facts


def skim(certificate: x509.Certificate) -> Facts | Failure:
    """The facts whose reading costs the same for any certificate; the others with `Facts.complete`. Never raises."""
    known = _known.get(id(certificate))
    if known is not None and known[0] is certificate:
        return known[1]
    raw = certificate.public_bytes(serialization.Encoding.DER)
    facts = _facts(certificate, raw)
    if len(raw) <= _REMEMBERED_OCTETS:
        with _known_lock:
            while len(_known) >= _REMEMBERED:
                del _known[next(iter(_known))]
            _known[id(certificate)] = certificate, facts
    return facts


def _facts(certificate: x509.Certificate, raw: bytes) -> Facts | Failure:
    try:
        return _read(certificate, raw)
    except _BrokenError as broken:
        return broken.failure
    except Exception:  # whatever is wrong with it, and whatever class that has, the certificate is unusable
        return Failure("rfc5280-4.1-unreadable", "a certificate cannot be read")


def _element(raw: bytes, at: int) -> tuple[int, int]:
    """Where the contents of the DER element at `at` begin and end."""
    length = raw[at + 1]
    if length < 0x80:
        return at + 2, at + 2 + length
    body = at + 2 + (length & 0x7F)
    return body, body + int.from_bytes(raw[at + 2 : body], "big")


def _read(certificate: x509.Certificate, raw: bytes) -> Facts:
    facts = Facts()
    facts.certificate = certificate
    facts.digest = hashlib.sha256(raw).digest()
    facts._broken = None
    facts._completed = False
    facts._subject = None
    facts._key = None
    facts._key_read = False
    signed_at, _ = _element(raw, 0)
    at, end = _element(raw, signed_at)
    facts.signed = raw[signed_at:end]
    _, algorithm_end = _element(raw, end)
    facts.outer_algorithm = raw[end:algorithm_end]
    bits, bits_end = _element(raw, algorithm_end)
    facts.signature = b"" if raw[bits] else raw[bits + 1 : bits_end]

    facts.version = 1
    if raw[at] == 0xA0:
        _, at = _element(raw, at)
        facts.version = raw[at - 1] + 1
    body, after = _element(raw, at)
    serial = raw[body:after]
    facts.serial = int.from_bytes(serial, "big", signed=True)
    _, at = _element(raw, after)
    facts.inner_algorithm = raw[after:at]
    _, after = _element(raw, at)
    facts.issuer_der = raw[at:after]
    facts.not_before = certificate.not_valid_before_utc
    facts.not_after = certificate.not_valid_after_utc
    _, at = _element(raw, after)
    _, after = _element(raw, at)
    facts.subject_der = raw[at:after]
    _, at = _element(raw, after)
    facts.key_der = raw[after:at]
    while at < end and raw[at] in (0x81, 0x82):  # unique identifiers: read over (§4.1.2.8)
        _, at = _element(raw, at)

    if len(serial) > MAX_SERIAL_OCTETS + (serial[0] == 0):
        raise _BrokenError("rfc5280-4.1.2.2-serial", f"a serial number of {len(serial)} octets")
    if facts.not_after < facts.not_before:
        raise _BrokenError("rfc5280-4.1.2.5-validity", f"serial {facts.serial:x}, notAfter is before notBefore")
    _read_extensions(facts, raw, at, end)
    return facts


def _read_extensions(facts: Facts, raw: bytes, at: int, end: int) -> None:
    found: dict[bytes, bytes] = {}
    unprocessed: list[str] = []
    if at < end:
        if facts.version != 3:
            raise _BrokenError("rfc5280-4.1.2.1-version", f"serial {facts.serial:x}, extensions in version 1")
        at, _ = _element(raw, at)
        at, stop = _element(raw, at)
        while at < stop:
            body, at = _element(raw, at) if raw[at + 1] >= 0x80 else (at + 2, at + 2 + raw[at + 1])
            if raw[body + 1] >= 0x80:
                raise _BrokenError("rfc5280-4.1-unreadable", f"serial {facts.serial:x}, has an extension of long name")
            after = body + 2 + raw[body + 1]
            oid = raw[body + 2 : after]
            critical = False
            if raw[after] == 0x01:
                critical = raw[after + 2] != 0
                after += 3
            value_at = after + 2 if raw[after + 1] < 0x80 else _element(raw, after)[0]
            if oid in found:
                raise _BrokenError(
                    "rfc5280-4.2-duplicate-extension", f"serial {facts.serial:x}, has {_dotted(oid)} twice"
                )
            if len(found) == MAX_EXTENSIONS:
                raise _BrokenError("rfc5280-4.1-unreadable", f"serial {facts.serial:x}, has too many extensions")
            found[oid] = raw[value_at:at]  # the value is the last field
            if critical and oid not in _PROCESSED:
                unprocessed.append(_dotted(oid))
    facts.values = found
    facts.extensions = len(found)
    facts.unprocessed = tuple(unprocessed)
    get = found.get
    try:
        value = get(_BASIC_CONSTRAINTS)
        facts.basic_constraints = None if value is None else extensions.basic_constraints(value)
        value = get(_KEY_USAGE)
        facts.key_usage = None if value is None else extensions.key_usage(value)
        value = get(_EXTENDED_KEY_USAGE)
        facts.extended_key_usage = None if value is None else extensions.extended_key_usage(value)
        value = get(_SUBJECT_KEY_ID)
        facts.subject_key_id = None if value is None else der.read(value).octets()
        value = get(_AUTHORITY_KEY_ID)
        facts.authority_key_id = None if value is None else extensions.authority_key_id(value)
        value = get(_POLICY_CONSTRAINTS)
        facts.policy_constraints = (None, None) if value is None else extensions.policy_constraints(value)
        value = get(_INHIBIT_ANY)
        facts.inhibit_any = None if value is None else extensions.inhibit_any_policy(value)
    except ValueError as problem:
        raise _malformed(facts, problem) from None


def _read_lists(facts: Facts) -> None:
    get = facts.values.get
    try:
        value = get(_ALTERNATIVE_NAMES)
        facts.alternative_names = () if value is None else general_names(value, MAX_NAMES)
        value = get(_POLICIES)
        facts.policies = None if value is None else extensions.policies(value)
        value = get(_MAPPINGS)
        facts.mappings = () if value is None else extensions.mappings(value)
    except ValueError as problem:
        raise _malformed(facts, problem) from None
    try:
        value = get(_NAME_CONSTRAINTS)
        facts.name_constraints = None if value is None else read_constraints(value)
    except ValueError as problem:
        raise _BrokenError("rfc5280-4.2.1.10-name-constraints", f"serial {facts.serial:x}, {problem}") from None


def _malformed(facts: Facts, problem: Exception) -> _BrokenError:
    what = str(problem) if isinstance(problem, der.DerError) else type(problem).__name__
    return _BrokenError("rfc5280-4.1-unreadable", f"serial {facts.serial:x}, an extension is malformed: {what}")


def _dotted(oid: bytes) -> str:
    return der.read(der.tlv(der.OID, oid)).oid()


def _accepted_key(certificate: x509.Certificate) -> PublicKey | None:
    """RSA of 2048 to 8192 bits (and an exponent that keeps verification under a millisecond), NIST and Brainpool
    curves, Ed25519 and Ed448; X25519, which signs nothing, is for encryption only (RFC 8410)."""
    try:
        key = certificate.public_key()
    except Exception:  # explicit curve parameters, unknown algorithms, malformed numbers: each has its own error class
        return None
    if isinstance(key, rsa.RSAPublicKey):
        exponent = key.public_numbers().e
        return key if 2048 <= key.key_size <= 8192 and 3 <= exponent < 1 << 32 and exponent % 2 else None
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key if isinstance(key.curve, _CURVES) else None
    accepted = ed25519.Ed25519PublicKey | ed448.Ed448PublicKey | x25519.X25519PublicKey
    return key if isinstance(key, accepted) else None
