"""What a certificate itself says about its revocation: where it is published, by whom, or that there is none."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtensionOID, ObjectIdentifier

from trust.revocation.naming import NameKey, Point, distribution_points

_NO_REVOCATION = ObjectIdentifier("2.5.29.56")
_MAX_URLS = 4


@dataclass(frozen=True, slots=True)
class Published:
    """The pointers of one certificate."""

    authority: bool
    """It is a CA's."""
    never: bool
    """It says that there is no revocation information (noRevAvail, RFC 9608), and is no CA's."""
    points: tuple[Point, ...]
    lists: tuple[tuple[str, ...], ...]
    """http and https URLs of each point: several ways to the same list (RFC 5280 §4.2.1.13)."""
    deltas: tuple[str, ...]
    responders: tuple[str, ...]


def published(certificate: x509.Certificate, issuer: NameKey) -> Published:
    """The pointers of a certificate whose issuer has that name. Raises what the certificate parser raises, DerError."""
    extensions = certificate.extensions
    authority = is_authority(extensions)
    points: tuple[Point, ...] = ()
    deltas: tuple[Point, ...] = ()
    responders: tuple[str, ...] = ()
    never = False
    for each in extensions:
        if each.oid == ExtensionOID.CRL_DISTRIBUTION_POINTS:
            points = distribution_points(each.value.public_bytes(), issuer)
        elif each.oid == ExtensionOID.FRESHEST_CRL:
            deltas = distribution_points(each.value.public_bytes(), issuer)
        elif each.oid == ExtensionOID.AUTHORITY_INFORMATION_ACCESS:
            responders = access_urls(extensions, AuthorityInformationAccessOID.OCSP)
        elif each.oid == _NO_REVOCATION:
            never = not authority
    lists = tuple(urls for point in points if (urls := tuple(filter(_is_http, point.urls))[:_MAX_URLS]))
    freshest = dict.fromkeys(url for point in deltas for url in point.urls if _is_http(url))
    return Published(authority, never, points, lists, tuple(freshest)[:_MAX_URLS], responders)


def is_authority(extensions: x509.Extensions) -> bool:
    """Whether basicConstraints says CA."""
    try:
        return extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def access_urls(extensions: x509.Extensions, method: ObjectIdentifier) -> tuple[str, ...]:
    """http and https URLs of one access method of authorityInfoAccess (§4.2.2.1), a few at most."""
    try:
        access = extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    except x509.ExtensionNotFound:
        return ()
    found = (
        each.access_location.value
        for each in access
        if each.access_method == method and isinstance(each.access_location, x509.UniformResourceIdentifier)
    )
    return tuple(filter(_is_http, found))[:_MAX_URLS]


def _is_http(url: str) -> bool:
    return url[:8].lower().startswith(("http://", "https://"))
