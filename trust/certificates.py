"""Whether a certificate is to be believed, for what, and whether anybody withdrew it.

One `CertificateValidator` holds the anchors of one network (IGC-Santé, a demonstration authority) and judges any
certificate anybody sends: the answer is always a `PathVerdict`, never an exception. The path itself is found and judged
in `trust.paths`, what a purpose demands is in `trust.profiles`; here are the rules about the end entity, revocation,
and the memory.

A path that was found is remembered: it stays one whatever certificates come along with the next mail, for as long as
every certificate on it is valid. That there is none is never remembered, for the next mail may bring the missing one.
Revocation is asked for each time, after the memory: it is what can change meanwhile.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from threading import Lock
from types import MappingProxyType

from cryptography import x509

from trust.addresses import mail_addresses
from trust.facts import Facts, read
from trust.paths import IssuerSource, Path, Paths, in_time
from trust.profiles import PROFILES, Profile, Purpose, key_usage_allows
from trust.revocation import RevocationChecker, RevocationMode, RevocationPolicy, RevocationState, RevocationStatus
from trust.revocation.holdings import is_revoked_at
from trust.rules import RULES, Failure

__all__ = [
    "DEFAULT_REVOCATION",
    "MAX_REMEMBERED",
    "NOT_CHECKED",
    "CertificateValidator",
    "PathVerdict",
    "Purpose",
    "mail_addresses",
]

NOT_CHECKED = "not-checked"
MAX_REMEMBERED = 4096
"""Accepted paths kept by one validator, the least recently asked for forgotten first: a certificate each."""

DEFAULT_REVOCATION: Mapping[Purpose, RevocationPolicy] = MappingProxyType(
    {
        Purpose.MAIL_SIGNATURE: RevocationPolicy(RevocationMode.SOFT, timedelta(hours=24)),
        Purpose.MAIL_ENCRYPTION: RevocationPolicy(RevocationMode.HARD, timedelta(hours=24)),
        Purpose.OPERATOR_TLS_SERVER: RevocationPolicy(RevocationMode.HARD, timedelta(hours=24)),
        Purpose.OPERATOR_TLS_CLIENT: RevocationPolicy(RevocationMode.HARD, timedelta(hours=24)),
        Purpose.LIST_SIGNATURE: RevocationPolicy(RevocationMode.HARD, timedelta(hours=24)),
    }
)
"""Used when a validator is given a checker. A mail that waits to be read is read and marked; what gives something
away, or lets somebody in, wants an answer."""

_WORST = ("good", "stale", "unknown", "revoked")


@dataclass(frozen=True, slots=True)
class PathVerdict:
    """What validation concluded."""

    ok: bool
    path: tuple[x509.Certificate, ...]
    """End entity first, anchor last; empty when `ok` is False."""
    rule: str
    """The rule that decided: `rfc5280-<section>-<name>`, or `relais-<name>` where this house is stricter."""
    detail: str
    """Which certificate broke it: serial (hexadecimal), and the subject of CAs only. Never a person's name."""
    revocation: str
    """The worst that is known of a certificate on the path: `good`, `stale`, `unknown` or `revoked`; `not-checked` when
    nobody was asked."""

    @property
    def section(self) -> str:
        """The section of the standard behind `rule`, with what it demands."""
        return RULES[self.rule]


@dataclass(frozen=True, slots=True)
class _Accepted:
    """A path found before and the time in which all its certificates are valid, both ends included."""

    certificates: tuple[x509.Certificate, ...]
    since: datetime
    until: datetime


class CertificateValidator:
    """Judges certificates against the anchors of one network. Thread-safe; make one and keep it."""

    def __init__(
        self,
        anchors: Iterable[x509.Certificate],
        intermediates: Iterable[x509.Certificate] = (),
        revocation: RevocationChecker | None = None,
        policies: Mapping[Purpose, RevocationPolicy] = DEFAULT_REVOCATION,
        *,
        profiles: Mapping[Purpose, Profile] = PROFILES,
        source: IssuerSource | None = None,
    ) -> None:
        """`intermediates` help to find paths and are not trusted by themselves.

        `revocation` None asks nobody, whatever `policies` say. `source` finds issuers that nobody sent along. Purposes
        that `policies` or `profiles` leave out have the defaults. Raises ValueError when one of the certificates cannot
        be read.
        """
        self._paths = Paths(anchors, intermediates, source)
        self._revocation = revocation
        self._policies = {**DEFAULT_REVOCATION, **policies}
        self._profiles = {**PROFILES, **profiles}
        self._remembered: OrderedDict[tuple[int, Purpose], _Accepted] = OrderedDict()
        """By the hash of the certificate, which is made of all its octets and not kept by the object."""
        self._lock = Lock()

    def validate(
        self,
        cert: x509.Certificate,
        intermediates: Iterable[x509.Certificate],
        purpose: Purpose,
        at: datetime,
        stapled: bytes | None = None,
    ) -> PathVerdict:
        """Judge `cert` for `purpose` at the moment `at` (aware), with the certificates that came with it.

        RFC 5280 §6.1, bounded as `trust.paths` says. `stapled` is an OCSP response in DER that came along. Never raises
        on bad input, whatever is in the certificates.
        """
        revocation = _Inquiry(self._revocation, self._policies[purpose], at, stapled)
        key = (hash(cert), purpose)
        known = self._recalled(key, cert, at)
        if known is not None and revocation.approve(known.certificates) is None:
            return PathVerdict(True, known.certificates, "rfc5280-6.1", "", revocation.worst)
        facts = read(cert)
        if isinstance(facts, Failure):
            return _refuse(Failure(facts.rule, f"end-entity certificate: {facts.detail}"))
        profile = self._profiles[purpose]
        failure = _end_entity_failure(facts, purpose, profile, at)
        if failure is not None:
            return _refuse(failure)
        approve = revocation.approve_path if revocation.asked else None
        path = self._paths.find(facts, intermediates, profile, at, approve)
        if isinstance(path, Failure):
            return _refuse(path, revocation.worst)
        accepted = _accepted(path, profile)
        self._remember(key, accepted)
        return PathVerdict(True, accepted.certificates, "rfc5280-6.1", "", revocation.worst)

    def _recalled(self, key: tuple[int, Purpose], cert: x509.Certificate, at: datetime) -> _Accepted | None:
        """The path found before, if it holds at `at` too. Certificates are compared by their DER."""
        with self._lock:
            known = self._remembered.get(key)
            if known is None or not known.since <= at <= known.until:
                return None
            if known.certificates[0] is not cert and known.certificates[0] != cert:
                return None
            self._remembered.move_to_end(key)
            return known

    def _remember(self, key: tuple[int, Purpose], accepted: _Accepted) -> None:
        with self._lock:
            self._remembered[key] = accepted
            self._remembered.move_to_end(key)
            while len(self._remembered) > MAX_REMEMBERED:
                self._remembered.popitem(last=False)


class _Inquiry:
    """Revocation asked for on the paths of one validation (§6.1.3 (a)(3)), under the policy of its purpose."""

    def __init__(
        self, checker: RevocationChecker | None, policy: RevocationPolicy, at: datetime, stapled: bytes | None
    ) -> None:
        self._checker = None if policy.mode is RevocationMode.OFF else checker
        self._policy = policy
        self._at = at
        self._stapled = stapled
        self.worst = NOT_CHECKED
        """Of the path asked about last."""

    @property
    def asked(self) -> bool:
        return self._checker is not None

    def approve_path(self, path: Path) -> Failure | None:
        return self.approve(tuple(step.certificate for step in path))

    def approve(self, path: tuple[x509.Certificate, ...]) -> Failure | None:
        """Ask about each certificate below the anchor, the highest first: what a revoked CA says counts for nothing."""
        if self._checker is None:
            return None
        self.worst = "good"
        for child, issuer in reversed(tuple(pairwise(path))):
            stapled = self._stapled if child is path[0] else None
            status = self._checker.check(child, issuer, self._at, stapled)
            state, failure = self._judge(status)
            self.worst = max(self.worst, state, key=_WORST.index)
            if failure is not None:
                return Failure(failure.rule, f"{_who(child, child is path[0])}, {failure.detail}")
        return None

    def _judge(self, status: RevocationStatus) -> tuple[str, Failure | None]:
        if status.state is RevocationState.REVOKED and is_revoked_at(
            status.reason, status.revoked_at, status.invalid_since, self._at
        ):
            since = status.invalid_since or status.revoked_at
            when = f" since {since:%Y-%m-%d %H:%M}" if since else ""
            return "revoked", Failure("rfc5280-6.1.3-revoked", f"is revoked{when} ({status.reason or 'unspecified'})")
        if status.state in (RevocationState.GOOD, RevocationState.REVOKED):
            return "good", None
        if self._policy.mode is RevocationMode.SOFT:
            return status.state.value, None
        if status.state is RevocationState.STALE:
            if status.next_update is not None and self._at - status.next_update <= self._policy.stale_for:
                return "stale", None
            return "stale", Failure("relais-revocation-unknown", "what says it is not revoked is too old")
        return "unknown", Failure("relais-revocation-unknown", status.detail or "nobody says it is not revoked")


def _who(certificate: x509.Certificate, last: bool) -> str:
    """Which certificate of an accepted path is meant."""
    facts = read(certificate)
    if isinstance(facts, Failure):
        return "a certificate"
    return f"end-entity certificate, serial {facts.serial:x}" if last else facts.where


def _accepted(path: Path, profile: Profile) -> _Accepted:
    counted = path[:-1] if profile.expired_anchor else path
    end = min(step.not_after for step in counted)
    # the last second belongs to the validity, whole
    until = (
        end + timedelta(seconds=1, microseconds=-1) if end < datetime.max.replace(microsecond=0, tzinfo=UTC) else end
    )
    return _Accepted(tuple(step.certificate for step in path), max(step.not_before for step in counted), until)


def _refuse(failure: Failure, revocation: str = NOT_CHECKED) -> PathVerdict:
    return PathVerdict(False, (), failure.rule, failure.detail, revocation)


def _end_entity_failure(facts: Facts, purpose: Purpose, profile: Profile, at: datetime) -> Failure | None:
    """What is wrong with the end entity itself, before any path is looked for."""
    where = f"end-entity certificate, serial {facts.serial:x}"
    if not in_time(facts, at):
        side = "not yet valid" if at < facts.not_before else "expired"
        return Failure("rfc5280-6.1.3-validity", f"{where}, is {side}")
    if facts.unprocessed:
        return Failure("rfc5280-6.1.5-critical-extension", f"{where}, has {facts.unprocessed[0]}")
    if facts.name_constraints is not None and not (facts.basic_constraints and facts.basic_constraints[0]):
        return Failure("rfc5280-4.2.1.10-name-constraints", f"{where}, has name constraints but is no CA")
    if facts.key is None:
        return Failure("relais-key-too-weak", f"{where}, has a key of a kind or size that is not accepted")
    try:
        named = bool(facts.issuer)
    except ValueError:
        return Failure("rfc5280-4.1-unreadable", f"{where}, has an issuer name that cannot be read")
    if not named:
        return Failure("rfc5280-4.1.2.4-issuer", f"{where}, has no issuer name")
    if not key_usage_allows(facts, purpose):
        return Failure("rfc5280-4.2.1.3-key-usage", f"{where}, may not be used for {purpose.value}")
    if not facts.allows(profile.extended):
        return Failure("rfc5280-4.2.1.12-extended-key-usage", f"{where}, may not be used for {purpose.value}")
    return None
