"""What a certificate itself says about its revocation: where it is published, by whom, or that there is none.

Read from its DER, not through `cryptography`'s objects, which refuse all extensions of a certificate when one is
strange: a certificate that paths accept must not escape its revocation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from trust import der
from trust.facts import Facts
from trust.revocation.naming import URI, NameKey, Point, distribution_points, fetchable

OCSP = "1.3.6.1.5.5.7.48.1"
CA_ISSUERS = "1.3.6.1.5.5.7.48.2"
"""Access methods of authorityInfoAccess (RFC 5280 §4.2.2.1)."""

_ACCESS = b"\x2b\x06\x01\x05\x05\x07\x01\x01"
_DISTRIBUTION_POINTS, _FRESHEST, _NO_REVOCATION = (bytes((0x55, 0x1D, arc)) for arc in (31, 46, 56))
_MAX_ACCESS_OCTETS = 4096
"""What is read is remembered, and anybody's certificate may be read: the size of memory is not theirs to choose."""
_MAX_LISTS = 16
"""Points that are fetched; more are a way to keep us busy."""


@dataclass(frozen=True, slots=True)
class Published:
    """The pointers of one certificate."""

    authority: bool
    """It is a CA's."""
    never: bool
    """It says that there is no revocation information (noRevAvail, RFC 9608), and points at none."""
    points: tuple[Point, ...]
    lists: tuple[tuple[str, ...], ...]
    """http and https URLs of each point: several ways to the same list (RFC 5280 §4.2.1.13)."""
    deltas: tuple[str, ...]
    responders: tuple[str, ...]


def published(facts: Facts, issuer: NameKey) -> Published:
    """The pointers of a certificate whose issuer has that name. What cannot be read points nowhere."""
    authority = bool(facts.basic_constraints and facts.basic_constraints[0])
    points = _points(facts.values.get(_DISTRIBUTION_POINTS), issuer)
    lists = tuple(urls for point in points if (urls := fetchable(point.urls)))[:_MAX_LISTS]
    freshest = _points(facts.values.get(_FRESHEST), issuer)
    deltas = fetchable(url for point in freshest for url in point.urls)
    responders = access_urls(facts, OCSP)
    # RFC 9608 §3: not in a CA's certificate, nor together with what it says there is none of
    never = _NO_REVOCATION in facts.values and not (authority or points or freshest or responders)
    return Published(authority, never, points, lists, deltas, responders)


def access_urls(facts: Facts, method: str) -> tuple[str, ...]:
    """http and https URLs of one access method of authorityInfoAccess (§4.2.2.1), a few at most."""
    value = facts.values.get(_ACCESS)
    return () if value is None or len(value) > _MAX_ACCESS_OCTETS else _access(value, method)


@lru_cache(maxsize=1024)
def _access(value: bytes, method: str) -> tuple[str, ...]:
    urls = []
    try:
        for description in der.read(value).sequence():
            kind, location = description.exactly(2)
            if kind.oid() == method and location.tag == URI:
                urls.append(bytes(location.content).decode("ascii", "replace"))
    except der.DerError:
        return ()
    return fetchable(urls)


def _points(value: bytes | None, issuer: NameKey) -> tuple[Point, ...]:
    try:
        return () if value is None else distribution_points(value, issuer)
    except der.DerError:
        return ()
