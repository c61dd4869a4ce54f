"""With whom mail is exchanged: the agreements, found by mail domain."""

from __future__ import annotations

from collections.abc import Iterable

from directory.records import Partner


class DuplicatePartnerError(ValueError):
    """Two agreements name the same domain: a mistake in the configuration, found at start."""


class PartnerBook:
    """Every partner by its domain. Immutable, so any thread may read it."""

    def __init__(self, partners: Iterable[Partner]) -> None:
        """Raises `DuplicatePartnerError` when two partners have the same domain, whatever its case."""
        self._by_domain: dict[str, Partner] = {}
        for partner in partners:
            domain = partner.domain.lower()
            if domain in self._by_domain:
                raise DuplicatePartnerError(f"two partners are configured for the domain {domain}; keep one of them")
            self._by_domain[domain] = partner

    def of(self, domain: str) -> Partner | None:
        """The partner of exactly this domain, upper and lower case alike: a sub-domain is another domain."""
        return self._by_domain.get(domain.lower())
