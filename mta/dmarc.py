"""DMARC (RFC 7489): does what SPF and DKIM prove belong to the domain in the From field?

Only found out and written down. In a trust space the list of operators says who may speak for a domain, and says it
better; a `p=reject` of a domain outside decides nothing here. The organizational domain is found by walking up the DNS,
at most eight questions, instead of by a list of public suffixes that somebody would have to keep current.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from mta.dns import Resolver, State

MAX_QUESTIONS = 8

DmarcResult = Literal["none", "pass", "fail", "temperror", "permerror"]


@dataclass(frozen=True, slots=True)
class DmarcPolicy:
    """What holds for one author domain."""

    domain: str
    policy: Literal["none", "quarantine", "reject"]
    organization: str
    """Identifiers at and below this domain are aligned where alignment is relaxed (§3.1)."""
    strict_dkim: bool = False
    strict_spf: bool = False

    def judge(self, dkim: Collection[str], spf: str) -> DmarcResult:
        """`dkim`: the domains of signatures that passed; `spf`: the domain SPF passed for, empty for none."""
        by_dkim = any(self._aligned(domain.lower(), self.strict_dkim) for domain in dkim)
        by_spf = bool(spf) and self._aligned(spf.lower(), self.strict_spf)
        return "pass" if by_dkim or by_spf else "fail"

    def _aligned(self, identifier: str, strict: bool) -> bool:
        if strict or identifier == self.domain:
            return identifier == self.domain
        return identifier == self.organization or identifier.endswith("." + self.organization)


@dataclass(frozen=True, slots=True)
class _Found:
    at: str
    tags: dict[str, str]


async def discover(resolver: Resolver, domain: str) -> DmarcPolicy | Literal["temperror"] | None:
    """The policy for the author domain `domain` (lower case), None when it has none."""
    found: list[_Found] = []
    for name in _upwards(domain):
        answer = await resolver.lookup(f"_dmarc.{name}", "TXT")
        if answer.state is State.TEMPORARY:
            return "temperror"
        records = [tags for tags in map(_parse, answer.texts) if tags is not None]
        if len(records) == 1:  # several are none (§6.6.3)
            found.append(_Found(name, records[0]))
            said = records[0].get("psd")
            if said == "n" or (said == "y" and name != domain):  # nothing above it concerns this domain
                break
    if not found:
        return None
    top = found[-1]
    organization = _child(top.at, domain) if top.tags.get("psd") == "y" else top.at
    exact = found[0].at == domain
    tags = found[0].tags if exact else next((each.tags for each in found if each.at == organization), top.tags)
    policy = tags.get("p", "none") if exact else tags.get("sp", tags.get("p", "none"))
    return DmarcPolicy(
        domain,
        "reject" if policy == "reject" else "quarantine" if policy == "quarantine" else "none",
        organization,
        tags.get("adkim") == "s",
        tags.get("aspf") == "s",
    )


def _upwards(domain: str) -> list[str]:
    """The domain itself and what is above it, not the top level."""
    labels = domain.split(".")
    above = [".".join(labels[start:]) for start in range(1, len(labels) - 1)]
    return [domain, *above[-(MAX_QUESTIONS - 1) :]]


def _child(parent: str, domain: str) -> str:
    """The name one label below `parent` on the way to `domain`."""
    if parent == domain:
        return domain
    return domain.removesuffix("." + parent).rpartition(".")[2] + "." + parent


def _parse(text: str) -> dict[str, str] | None:
    """§6.3, §6.6.3; values in lower case. None for what is no DMARC record, or one without a policy to follow."""
    tags: dict[str, str] = {}
    for number, item in enumerate(text.split(";")):
        name, equals, value = (each.strip() for each in item.partition("="))
        if number == 0 and (name != "v" or value != "DMARC1"):
            return None
        if equals:
            tags.setdefault(name.lower(), value.lower())
    if tags.get("p") not in ("none", "quarantine", "reject") and "rua" not in tags:
        return None
    return tags
