"""Certification paths: from a certificate anybody may have written up to an anchor we chose (RFC 5280 §6.1).

The certificates that arrive in a mail are attacker's input, so the search is bounded in every direction: how many
certificates are read, how many are considered as issuers, how many steps are taken, how many signatures are verified
and what they cost, how many whole paths are judged, how many names are compared. Issuers are matched by name and key
identifier; checks that cost nothing come before the signature. Edges of accepted paths are remembered by the
certificate's bytes and the issuer's key, so that the thousandth mail under one CA pays for its own signature only.

A path that reaches an anchor is then judged as a whole, top down: lengths, names, policies, with the anchor's own
constraints as initial values (RFC 5937). When it fails, or `approve` (revocation) refuses it, the search goes on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice, pairwise
from threading import Lock
from typing import Protocol

from cryptography import x509

from trust.constraints import Comparisons, NameConstraints, Names
from trust.facts import Facts, read, skim
from trust.names import Rdns
from trust.policies import policy_failure
from trust.profiles import Profile
from trust.rules import Failure
from trust.signatures import cost, signature_failure

MAX_OFFERED = 64
"""Certificates that came along and are read at all; the others are ignored."""
MAX_CANDIDATES = 32
"""Different certificates considered as issuers during one search."""
MAX_SIGNATURES = 64
"""Signatures verified during one search."""
MAX_SIGNATURE_COST = 5000
"""What they may cost together, in microseconds of ordinary hardware: the dearest accepted keys take 800 each."""
MAX_STEPS = 512
"""(child, issuer) pairs looked at during one search: cross-certified CAs form loops whose walks are exponential."""
MAX_DEPTH = 6
"""Certificates above the end entity, anchor included."""
MAX_WHOLE = 16
"""Paths that reach an anchor and are judged during one search."""
MAX_REMEMBERED = 4096
"""Verified edges kept between searches."""
MAX_FETCHED = 2
"""Times that missing issuers are asked for during one search."""
MAX_TOPS = 4
"""Certificates whose issuers are asked for each time."""

_ORGANISATION = "2.5.4.10"

Path = tuple[Facts, ...]
Approve = Callable[[Path], Failure | None]


class IssuerSource(Protocol):
    """Certificates of issuers that nobody sent along, from where their subjects say (AIA caIssuers, §4.2.2.1)."""

    def issuers(self, certificate: x509.Certificate) -> Sequence[x509.Certificate]:
        """What is known to have issued `certificate`, nothing when that has to be fetched first.

        Never raises and never waits for the network. The answer is as little trusted as what comes with a mail.
        """
        ...


def in_time(facts: Facts, at: datetime) -> bool:
    """§6.1.3 (a)(2); both ends belong to the validity period, to the second: fractions of one do not end it."""
    return facts.not_before <= at and (at <= facts.not_after or at.replace(microsecond=0) <= facts.not_after)


class Paths:
    """Anchors and intermediates we chose, and the searches over them. Thread-safe."""

    def __init__(
        self,
        anchors: Iterable[x509.Certificate],
        intermediates: Iterable[x509.Certificate],
        source: IssuerSource | None = None,
    ) -> None:
        """Raises ValueError when a certificate cannot be read: these come from configuration, not from a partner."""
        self._anchors = _by_subject(_read_all(anchors))
        self._intermediates = _by_subject(_read_all(intermediates))
        self._source = source
        self._organisations = {_organisation(name) for name in self._anchors}
        self._remembered: OrderedDict[tuple[bytes, bytes], None] = OrderedDict()
        self._lock = Lock()

    def find(
        self,
        leaf: Facts,
        offered: Iterable[x509.Certificate],
        profile: Profile,
        at: datetime,
        approve: Approve | None = None,
    ) -> Path | Failure:
        """A path from `leaf` (first) to an anchor (last) on which every rule of §6.1 holds, or why there is none.

        `approve` has the last word on a path that is otherwise good; its failure sends the search on to the next one.
        """
        offers = _by_subject(_offered(offered))
        search = _Search(self, offers, profile, at, approve)
        path = search.extend((leaf,))
        for _ in range(MAX_FETCHED):
            if path is not None or self._source is None or not search.goes_on:
                break
            near = [top for top in search.tops.values() if self._is_near(top, offers)][:MAX_TOPS]
            fetched = [found for top in near for found in self._source.issuers(top.certificate)]
            if not _join(offers, _by_subject(_offered(fetched))):
                break
            search.tops.clear()
            path = search.extend((leaf,))
        if path is None:
            return search.failure
        with self._lock:
            for child, issuer in pairwise(path):
                edge = (child.digest, issuer.key_der)
                self._remembered[edge] = None
                self._remembered.move_to_end(edge)
            while len(self._remembered) > MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        return path

    def remembers(self, child: Facts, issuer: Facts) -> bool:
        """Whether this signature was verified on an accepted path before."""
        with self._lock:
            return (child.digest, issuer.key_der) in self._remembered

    def issuers(self, child: Facts, offered: Mapping[Rdns, Sequence[Facts]]) -> Iterator[tuple[Facts, bool]]:
        """Possible issuers by name and key identifier, and whether each is an anchor: ours first, theirs last."""
        name = child.issuer
        for facts in self._anchors.get(name, ()):
            if _key_ids_agree(child, facts):
                yield facts, True
        for pool in (self._intermediates, offered):
            for facts in pool.get(name, ()):
                if _key_ids_agree(child, facts):
                    yield facts, False

    def _is_near(self, top: Facts, offered: Mapping[Rdns, Sequence[Facts]]) -> bool:
        """Whether the names above `top` reach an anchor: only then is anything fetched for it.

        Its issuer has an anchor's name, or the name of a certificate at hand whose issuers' names lead to one, or is
        a name inside the organisation that an anchor belongs to.
        """
        name = top.issuer
        for _ in range(MAX_DEPTH):
            if name in self._anchors or _organisation(name) in self._organisations:
                return True
            known = [*self._intermediates.get(name, ()), *offered.get(name, ())]
            if not known:
                return False
            name = known[0].issuer
        return False


class _Search:
    """One search: its budgets, what it verified already and the failure that explains most."""

    def __init__(
        self,
        paths: Paths,
        offered: Mapping[Rdns, Sequence[Facts]],
        profile: Profile,
        at: datetime,
        approve: Approve | None,
    ) -> None:
        self._paths = paths
        self._offered = offered
        self._profile = profile
        self._at = at
        self._approve = approve
        self._candidates: set[bytes] = set()
        self._signatures: dict[tuple[bytes, bytes], Failure | None] = {}
        self._cost = 0
        self._steps = 0
        self._whole = 0
        self._comparisons = Comparisons()
        self._exhausted = False
        self._weight = 0
        self.tops: dict[bytes, Facts] = {}
        """Certificates whose issuer is nowhere to be found."""
        self.failure = Failure("rfc5280-6.1-no-path", "no trusted issuer found")

    @property
    def goes_on(self) -> bool:
        return not self._exhausted

    def extend(self, path: Path) -> Path | None:
        """`path` completed up to an anchor; None when that is impossible or too expensive."""
        child = path[-1]
        below = sum(1 for facts in path[1:] if not facts.self_issued)
        signed = False
        for issuer, is_anchor in self._paths.issuers(child, self._offered):
            if not self._afford(issuer):
                return None
            if any(issuer.key_der == facts.key_der and issuer.subject_der == facts.subject_der for facts in path):
                continue  # nobody is needed twice on one path (RFC 4158 §2.4.2)
            failure = self._ca_failure(issuer, is_anchor, below)
            if failure:
                self._note(2, failure)
                continue
            failure = self._signature_failure(child, issuer)
            if failure:
                weight = 1 if failure.rule == "rfc5280-6.1.3-signature" else 2
                self._note(weight, Failure(failure.rule, f"{_who(path, len(path) - 1)}, {failure.detail}"))
                continue
            if self._exhausted:
                return None
            signed = True
            if is_anchor:
                if self._is_good((*path, issuer)):
                    return (*path, issuer)
                continue
            if len(path) >= MAX_DEPTH:
                self._note(2, Failure("relais-path-depth", f"more than {MAX_DEPTH} certificates above the end entity"))
                continue
            found = self.extend((*path, issuer))
            if found or self._exhausted:
                return found
        if not signed and len(path) < MAX_DEPTH:
            self.tops[child.digest] = child
        return None

    def _is_good(self, path: Path) -> bool:
        """Judge a path that reaches an anchor."""
        self._whole += 1
        if self._whole > MAX_WHOLE:
            self._spent()
            return False
        failure = self._whole_failure(path)
        if failure is not None:
            self._note(4, failure)
            return False
        failure = self._approve(path) if self._approve is not None else None
        if failure is not None:
            self._note(5, failure)
        return failure is None

    def _whole_failure(self, path: Path) -> Failure | None:
        for facts in reversed(path):
            malformed = facts.complete()
            if malformed is not None:
                return malformed
        above: list[NameConstraints] = []
        for index in range(len(path) - 1, -1, -1):
            facts = path[index]
            if above and (index == 0 or not facts.self_issued):
                failure = self._name_failure(path, index, above)
                if failure is not None:
                    return failure
            if facts.name_constraints is not None:
                above.append(facts.name_constraints)
        found = policy_failure(path, self._profile)
        return None if found is None else Failure(found[0].rule, f"{_who(path, found[1])}, {found[0].detail}")

    def _name_failure(self, path: Path, index: int, above: list[NameConstraints]) -> Failure | None:
        """§6.1.3 (b) and (c): excluded by none of the CAs above and permitted by all that say something."""
        facts = path[index]
        names = Names(lambda: facts.subject, lambda: facts.mail_of_subject, facts.alternative_names)
        for constraints in above:
            if not self._comparisons.afford(len(facts.alternative_names) + 1, constraints.count):
                self._exhausted = True
                return Failure("relais-name-constraints-budget", f"{_who(path, index)}, has too many names to compare")
            try:
                problem = constraints.violation(names)
            except ValueError:
                problem = "a name is constrained and cannot be read"
            if problem:
                return Failure("rfc5280-6.1.3-name-constraints", f"{_who(path, index)}, {problem}")
        return None

    def _ca_failure(self, issuer: Facts, is_anchor: bool, below: int) -> Failure | None:
        """Why `issuer` may not issue here (§6.1.4); `below` intermediates that are not self-issued stand under it.

        An anchor's own constraints are honoured too (RFC 5937); only an anchor without extensions (X.509 v1) has none.
        """
        if not in_time(issuer, self._at) and not (is_anchor and self._profile.expired_anchor):
            return Failure("rfc5280-6.1.3-validity", f"{issuer.where} is not valid at the time of validation")
        if issuer.unprocessed:
            return Failure("rfc5280-6.1.4-critical-extension", f"{issuer.where} has {issuer.unprocessed[0]}")
        if is_anchor and not issuer.extensions:
            return self._key_failure(issuer)
        ca, length = issuer.basic_constraints or (False, None)
        if not ca:
            return Failure("rfc5280-6.1.4-basic-constraints", f"{issuer.where} is not a CA")
        if length is not None and length < below:
            return Failure("rfc5280-6.1.4-path-length", f"{issuer.where} allows {length} CAs below, found {below}")
        if not issuer.may_sign_certificates:
            return Failure("rfc5280-6.1.4-key-usage", f"{issuer.where} may not sign certificates")
        if not issuer.allows(self._profile.extended):
            return Failure("relais-extended-key-usage", f"{issuer.where} may not issue for this purpose")
        return self._key_failure(issuer)

    def _key_failure(self, issuer: Facts) -> Failure | None:
        if issuer.key is None:
            return Failure("relais-key-too-weak", f"{issuer.where} has a key of a kind or size that is not accepted")
        return None

    def _signature_failure(self, child: Facts, issuer: Facts) -> Failure | None:
        edge = (child.digest, issuer.key_der)
        if edge not in self._signatures:
            if self._paths.remembers(child, issuer):
                return None
            self._cost += cost(issuer.key)
            if self._cost > MAX_SIGNATURE_COST:
                self._spent()
                return None
            self._signatures[edge] = signature_failure(child, issuer)
        return self._signatures[edge]

    def _afford(self, issuer: Facts) -> bool:
        self._steps += 1
        self._candidates.add(issuer.digest)
        if self._steps > MAX_STEPS or len(self._candidates) > MAX_CANDIDATES or len(self._signatures) >= MAX_SIGNATURES:
            self._spent()
        return not self._exhausted

    def _spent(self) -> None:
        self._exhausted = True
        self._note(3, Failure("relais-path-budget", "too many possible paths"))

    def _note(self, weight: int, failure: Failure) -> None:
        """Keep the first of the weightiest failures: a broken rule says more than a name that led nowhere."""
        if weight > self._weight:
            self._weight, self.failure = weight, failure


def _who(path: Path, index: int) -> str:
    """Which certificate of a path is meant, by serial, and by name unless it is the end entity's."""
    return path[index].where if index else f"end-entity certificate, serial {path[0].serial:x}"


def _offered(certificates: Iterable[x509.Certificate]) -> Iterator[Facts]:
    for certificate in islice(certificates, MAX_OFFERED):
        facts = skim(certificate)
        if isinstance(facts, Facts):
            yield facts


def _read_all(certificates: Iterable[x509.Certificate]) -> list[Facts]:
    out = []
    for certificate in certificates:
        facts = read(certificate)
        if isinstance(facts, Failure):
            raise ValueError(f"unreadable certificate among the configured anchors or intermediates: {facts.detail}")
        out.append(facts)
    return out


def _has_names(facts: Facts) -> bool:
    """Whether a certificate can be in the middle of a path: a CA has a name (§4.1.2.6), and so has its issuer."""
    try:
        return bool(facts.subject and facts.issuer)
    except ValueError:
        return False


def _by_subject(certificates: Iterable[Facts]) -> dict[Rdns, list[Facts]]:
    out: dict[Rdns, list[Facts]] = {}
    for facts in certificates:
        if _has_names(facts):
            same = out.setdefault(facts.subject, [])
            if all(facts.digest != other.digest for other in same):
                same.append(facts)
    return out


def _join(into: dict[Rdns, list[Facts]], more: Mapping[Rdns, Sequence[Facts]]) -> bool:
    """Add what is not there yet; whether anything was."""
    before = sum(map(len, into.values()))
    for name, certificates in more.items():
        same = into.setdefault(name, [])
        same += [facts for facts in certificates if all(facts.digest != other.digest for other in same)]
    return sum(map(len, into.values())) > before


def _organisation(name: Rdns) -> Rdns:
    """The beginning of a name up to its organisation, all of it when there is none."""
    for index, rdn in enumerate(name):
        if any(oid == _ORGANISATION for oid, _ in rdn):
            return name[: index + 1]
    return name


def _key_ids_agree(child: Facts, issuer: Facts) -> bool:
    return child.authority_key_id is None or issuer.subject_key_id in (None, child.authority_key_id)
