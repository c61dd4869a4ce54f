"""Certificate policies along a path (RFC 5280 §6.1, with the valid policy graph of RFC 9618).

RFC 9618 replaces the policy tree, which grows exponentially, by a graph. Of that graph only two things are ever asked:
which policies the next certificate may assert, and under which policies of the anchor's own domain the path is valid.
So what is kept of each level is just that: expected policy -> the policies it descends from. A node without children
has no say at the end, and needs no pruning.

Sets are limited by the number of policies and mappings of a certificate (`trust.facts`), and their sizes are summed.
"""

from __future__ import annotations

from trust.facts import Facts
from trust.profiles import ANY_POLICY, Profile
from trust.rules import Failure

MAX_STEPS = 1 << 16
"""Policies handled on one path, counted once for each they descend from."""


def policy_failure(path: tuple[Facts, ...], profile: Profile) -> tuple[Failure, int] | None:
    """What policies are wrong with on `path` (end entity first, anchor last) and at which index, if anything is."""
    for index, facts in enumerate(path[1:-1], 1):
        if any(ANY_POLICY in pair for pair in facts.mappings):
            return Failure("rfc5280-6.1.4-policy-mapping", "maps anyPolicy"), index
    if not profile.explicit_policy and all(facts.policy_constraints[0] is None for facts in path):
        return None  # explicit_policy stays above zero to the end: nothing can be missing
    return _Policies(path, profile).failure()


class _Policies:
    """The state variables of §6.1.2 that are about policies."""

    def __init__(self, path: tuple[Facts, ...], profile: Profile) -> None:
        self._path = path
        anchor = path[-1]
        length = len(path) - 1
        self._wanted = profile.initial_policies
        if anchor.policies is not None and ANY_POLICY not in anchor.policies:  # RFC 5937 §3
            stated = frozenset(anchor.policies)
            self._wanted = stated if ANY_POLICY in self._wanted else self._wanted & stated
        self._explicit = 0 if profile.explicit_policy else length + 1
        self._mapping = 0 if profile.inhibit_mapping else length + 1
        self._any_allowed = 0 if profile.inhibit_any else length + 1
        self._constrain(anchor)
        self._expected: dict[str, frozenset[str]] = {}
        """Policies the next certificate may assert, each with those of the anchor's domain it descends from."""
        self._any = True
        """Whether the level has a node for anyPolicy, which descends from anyPolicy alone."""
        self._steps = 0

    def failure(self) -> tuple[Failure, int] | None:
        for index in range(len(self._path) - 2, -1, -1):
            facts = self._path[index]
            last = index == 0
            self._take(facts, last)
            if self._steps > MAX_STEPS:
                return Failure("relais-policy-budget", "too many policies"), index
            if not self._explicit and not self._expected and not self._any:
                return Failure("rfc5280-6.1.3-explicit-policy", "has no valid policy where one is required"), index
            if last:
                break
            self._map(facts)
            if not facts.self_issued:
                self._explicit = max(self._explicit - 1, 0)
                self._mapping = max(self._mapping - 1, 0)
                self._any_allowed = max(self._any_allowed - 1, 0)
            self._constrain(facts)
        return self._conclude()

    def _take(self, facts: Facts, last: bool) -> None:
        """§6.1.3 (d) and (e)."""
        if facts.policies is None or not (self._expected or self._any):
            self._expected, self._any = {}, False
            return
        expected: dict[str, frozenset[str]] = {}
        for policy in facts.policies:
            if policy == ANY_POLICY:
                continue
            known = self._expected.get(policy)
            if known is not None:
                expected[policy] = known
            elif self._any:
                expected[policy] = frozenset((policy,))
        if ANY_POLICY in facts.policies and (self._any_allowed or (not last and facts.self_issued)):
            expected = self._expected | expected
        else:
            self._any = False
        self._expected = expected
        self._steps += len(facts.policies) + len(expected)

    def _map(self, facts: Facts) -> None:
        """§6.1.4 (b)."""
        if not facts.mappings:
            return
        mapped: dict[str, list[str]] = {}
        for theirs, ours in facts.mappings:
            mapped.setdefault(theirs, []).append(ours)
        expected = {policy: origins for policy, origins in self._expected.items() if policy not in mapped}
        if self._mapping:
            for policy, targets in mapped.items():
                origins = self._expected.get(policy)
                if origins is None:
                    if not self._any:
                        continue
                    origins = frozenset((policy,))
                for target in targets:
                    self._steps += len(origins)
                    if self._steps > MAX_STEPS:
                        return
                    expected[target] = expected.get(target, frozenset()) | origins
        self._expected = expected

    def _constrain(self, facts: Facts) -> None:
        """§6.1.4 (i) and (j); for an anchor RFC 5937 §3."""
        require, inhibit = facts.policy_constraints
        if require is not None:
            self._explicit = min(self._explicit, require)
        if inhibit is not None:
            self._mapping = min(self._mapping, inhibit)
        if facts.inhibit_any is not None:
            self._any_allowed = min(self._any_allowed, facts.inhibit_any)

    def _conclude(self) -> tuple[Failure, int] | None:
        """§6.1.5 (a), (b) and (g)."""
        if self._path[0].policy_constraints[0] == 0:
            self._explicit = 0
        if max(self._explicit - 1, 0):
            return None
        under_authority = frozenset().union(*self._expected.values())
        if ANY_POLICY in self._wanted:
            valid = bool(under_authority) or self._any
        else:
            valid = bool(under_authority & self._wanted) or (self._any and bool(self._wanted))
        return None if valid else (Failure("rfc5280-6.1.5-explicit-policy", "is under none of the policies wanted"), 0)
