"""With whom mail is exchanged: the agreements, found by mail domain."""

from __future__ import annotations

from collections.abc import Iterable

from directory.records import Partner


class DuplicatePartnerError(ValueError):
    """Two agreements name the same domain: a mistake in the configuration, found at start."""


class PartnerBook:
    """Every partner by its domain. Any thread may read it, also while it is replaced."""

    def __init__(self, partners: Iterable[Partner]) -> None:
        """Raises `DuplicatePartnerError` when two partners have the same domain, whatever its case."""
        self._by_domain = _by_domain(partners)

    def replace(self, partners: Iterable[Partner]) -> None:
        """From now on these, all at once. Raises `DuplicatePartnerError`; the old ones stay then."""
        self._by_domain = _by_domain(partners)

    def of(self, domain: str) -> Partner | None:
        """The partner of exactly this domain, upper and lower case alike: a sub-domain is another domain."""
        return self._by_domain.get(domain.lower())


def _by_domain(partners: Iterable[Partner]) -> dict[str, Partner]:
    found: dict[str, Partner] = {}
    for partner in partners:
        domain = partner.domain.lower()
        if domain in found:
            raise DuplicatePartnerError(f"two partners are configured for the domain {domain}; keep one of them")
        found[domain] = partner
    return found
