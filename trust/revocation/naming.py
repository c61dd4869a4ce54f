"""Names and points of publication as they are compared, read from DER (RFC 5280 §4.2.1.13, §5.2.5, §7.1).

A certificate says where its revocation is published, a CRL says what it is for: both in the same types, so that whether
one answers for the other is a comparison of values.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from trust import der
from trust.names import Rdns, comparable

NameKey = Rdns
"""A distinguished name folded for comparison, root first."""
PointName = NameKey | bytes
"""One name of a distribution point: a directory name, or any other GeneralName in DER."""

ALL_REASONS = frozenset(range(1, 9))
"""Bits of ReasonFlags (§4.2.1.13): keyCompromise (1) to aACompromise (8)."""
MAX_POINTS = 64
_MAX_NAMES = 64
_MAX_URL = 2048
_MAX_FETCHED = 4

_DIRECTORY_NAME = der.context(4)
URI = der.context(6, constructed=False)


@dataclass(frozen=True, slots=True)
class Point:
    """One DistributionPoint of a certificate, or the issuingDistributionPoint's own name."""

    names: frozenset[PointName]
    """Empty when it has no distributionPoint field."""
    urls: tuple[str, ...]
    reasons: frozenset[int]
    issuers: frozenset[NameKey]
    """Names of the cRLIssuer field; empty: the certificate's own issuer."""


def name_key(encoded: bytes) -> NameKey:
    """A Name in DER as it is compared, the same way as on certification paths; raises `der.DerError`."""
    try:
        return comparable(encoded)
    except der.DerError:
        raise
    except ValueError as error:
        raise der.DerError(str(error)) from None


def _uri(element: der.Element) -> bytes:
    """A URI as it is compared: scheme and host whatever their case (RFC 5280 §7.4)."""
    raw = bytes(element.content)
    scheme, found, rest = raw.partition(b"://")
    if found:
        host, slash, path = rest.partition(b"/")
        raw = scheme.lower() + found + host.lower() + slash + path
    return der.tlv(URI, raw)


def general_names(elements: list[der.Element]) -> tuple[frozenset[PointName], tuple[str, ...]]:
    """The names of a GeneralNames, and those of them that are URLs."""
    names: set[PointName] = set()
    urls = []
    for element in elements:
        if element.tag == _DIRECTORY_NAME:
            names.add(name_key(element.explicit().copy()))
        elif element.tag == URI:
            names.add(_uri(element))
        else:
            names.add(element.copy())
        if element.tag == URI and element.size <= _MAX_URL:
            urls.append(bytes(element.content).decode("ascii", "replace"))
    return frozenset(names), tuple(urls)


def fetchable(urls: Iterable[str]) -> tuple[str, ...]:
    """Those of http and https, each once, a few at most: authorities name LDAP too, which is never asked."""
    found = (url for url in urls if url[:8].lower().startswith(("http://", "https://")))
    return tuple(islice(dict.fromkeys(found), _MAX_FETCHED))


def directory_names(elements: list[der.Element]) -> frozenset[NameKey]:
    """The directory names of a GeneralNames."""
    return frozenset(name for name in general_names(elements)[0] if isinstance(name, tuple))


def point_name(choice: der.Element, above: NameKey) -> tuple[frozenset[PointName], tuple[str, ...]]:
    """The names of a DistributionPointName; `above` is what a nameRelativeToCRLIssuer is relative to."""
    if choice.tag == der.context(0):
        return general_names(choice.children(_MAX_NAMES))
    if choice.tag == der.context(1):
        relative = name_key(der.sequence(der.tlv(der.SET, bytes(choice.content))))
        return frozenset({(*above, *relative)}), ()
    raise der.DerError("distribution point name")


def reason_flags(element: der.Element) -> frozenset[int]:
    """The bits set in an implicitly tagged ReasonFlags; bit 0 is unused."""
    content = bytes(element.content)
    if not 1 < len(content) <= 3:
        raise der.DerError("reason flags")
    return frozenset(
        bit for bit in ALL_REASONS if len(content) > 1 + bit // 8 and content[1 + bit // 8] & 0x80 >> bit % 8
    )


@lru_cache(maxsize=1024)
def distribution_points(encoded: bytes, issuer: NameKey) -> tuple[Point, ...]:
    """The points of a CRLDistributionPoints or FreshestCRL extension value (§4.2.1.13); raises `der.DerError`."""
    out = []
    for element in der.read(encoded).sequence(MAX_POINTS):
        fields = {field.tag: field for field in element.sequence(3)}
        own = fields.get(der.context(2))
        issuers = directory_names(own.children(_MAX_NAMES)) if own is not None else frozenset()
        names: frozenset[PointName] = frozenset()
        urls: tuple[str, ...] = ()
        name = fields.get(der.context(0))
        if name is not None:
            above = next(iter(issuers)) if len(issuers) == 1 else issuer
            names, urls = point_name(name.explicit(), above)
        flags = fields.get(der.context(1, constructed=False))
        out.append(Point(names, urls, ALL_REASONS if flags is None else reason_flags(flags), issuers))
    return tuple(out)
