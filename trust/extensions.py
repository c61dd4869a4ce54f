"""The extensions of certificates that decide about paths (RFC 5280 §4.2.1), each read from the DER of its extnValue.

Every reader raises ValueError when the value is not what the standard's syntax demands. Values that certificates of one
CA share are read once, as long as they are short: what is remembered must not be an attacker's to choose the size of.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntFlag
from functools import lru_cache, wraps
from typing import TypeVar

from trust import der

MAX_POLICIES = 256
MAX_MAPPINGS = 128
MAX_PURPOSES = 64
MAX_KEY_USAGE_OCTETS = 8
_REMEMBERED_OCTETS = 1024

_T = TypeVar("_T")


class KeyUsage(IntFlag):
    """Bits of RFC 5280 §4.2.1.3 that decide something here."""

    DIGITAL_SIGNATURE = 1 << 0
    CONTENT_COMMITMENT = 1 << 1
    KEY_ENCIPHERMENT = 1 << 2
    KEY_AGREEMENT = 1 << 4
    KEY_CERT_SIGN = 1 << 5


def remembered(most: int) -> Callable[[Callable[[bytes], _T]], Callable[[bytes], _T]]:
    """Remember what a reader made of the last `most` short values."""

    def decorate(reader: Callable[[bytes], _T]) -> Callable[[bytes], _T]:
        known = lru_cache(maxsize=most)(reader)

        @wraps(reader)
        def read(value: bytes) -> _T:
            return known(value) if len(value) <= _REMEMBERED_OCTETS else reader(value)

        return read

    return decorate


@remembered(256)
def basic_constraints(value: bytes) -> tuple[bool, int | None]:
    """cA and pathLenConstraint (§4.2.1.9)."""
    fields = der.read(value).sequence(2)
    ca = False
    if fields and fields[0].tag == 0x01:
        if fields[0].size != 1:
            raise der.DerError("boolean")
        ca, fields = bytes(fields[0].content) != b"\x00", fields[1:]
    if not fields:
        return ca, None
    return ca, _certificates(der.only(fields).integer())


def _certificates(number: int) -> int:
    """A number of certificates; those beyond any path are all the same."""
    if number < 0:
        raise der.DerError("negative number of certificates")
    return min(number, 1 << 16)


@remembered(256)
def key_usage(value: bytes) -> int:
    """Bits of `KeyUsage`: bit 0 of the standard is bit 0 here."""
    content = bytes(der.read(value).expect(der.BIT_STRING).content)
    if not 0 < len(content) <= MAX_KEY_USAGE_OCTETS or content[0] > 7 or (len(content) == 1 and content[0]):
        raise der.DerError("bit string")
    bits = 0
    for index, octet in enumerate(content[1:3]):
        for bit in range(8):
            if octet & 0x80 >> bit:
                bits |= 1 << (8 * index + bit)
    return bits


@remembered(256)
def extended_key_usage(value: bytes) -> frozenset[str]:
    """Dotted OIDs (§4.2.1.12)."""
    purposes = frozenset(element.oid() for element in der.read(value).sequence(MAX_PURPOSES))
    if not purposes:
        raise der.DerError("empty ExtKeyUsage")
    return purposes


@remembered(256)
def authority_key_id(value: bytes) -> bytes | None:
    """keyIdentifier (§4.2.1.1), None when there is none."""
    fields = der.read(value).sequence(3)
    if fields and fields[0].tag == der.context(0, constructed=False):
        return bytes(fields[0].content)
    return None


@remembered(64)
def policies(value: bytes) -> tuple[str, ...]:
    """Dotted OIDs of CertificatePolicies, each once (§4.2.1.4)."""
    listed = []
    for information in der.read(value).sequence(MAX_POLICIES):
        policy, *_ = information.sequence(2)
        listed.append(policy.oid())
    if len(set(listed)) != len(listed) or not listed:
        raise der.DerError("a policy is there twice, or none is")
    return tuple(listed)


@remembered(64)
def mappings(value: bytes) -> tuple[tuple[str, str], ...]:
    """issuerDomainPolicy and subjectDomainPolicy of each mapping (§4.2.1.5)."""
    pairs = []
    for element in der.read(value).sequence(MAX_MAPPINGS):
        issuers, subjects = element.exactly(2)
        pairs.append((issuers.oid(), subjects.oid()))
    return tuple(pairs)


@remembered(64)
def policy_constraints(value: bytes) -> tuple[int | None, int | None]:
    """requireExplicitPolicy and inhibitPolicyMapping, in certificates to skip (§4.2.1.11)."""
    tags = (der.context(0, constructed=False), der.context(1, constructed=False))
    fields = der.read(value).sequence(2)
    found = {field.tag: _certificates(_implicit_integer(field)) for field in fields}
    if [field.tag for field in fields] != [tag for tag in tags if tag in found]:
        raise der.DerError("policyConstraints")
    return found.get(tags[0]), found.get(tags[1])


def _implicit_integer(field: der.Element) -> int:
    return der.read(der.tlv(der.INTEGER, field.content)).integer()


@remembered(64)
def inhibit_any_policy(value: bytes) -> int:
    """skipCerts (§4.2.1.14)."""
    return _certificates(der.read(value).integer())
