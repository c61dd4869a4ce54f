"""One CRL: read once, signature checked once, and from then on asked by serial number at the same cost whatever its
size (RFC 5280 §5).

National lists reach a million entries, and a message must not pay for that. The entries stay the bytes they are; beside
them is one hash table of their positions, open addressing in an array of 32-bit numbers. No object per entry: a million
entries of 36 octets take 36 MB plus 16 MB, shared by all threads, since nothing changes after `read`. Python's hash of
bytes is keyed anew in each process, so nobody can choose serials that collide.
"""

from __future__ import annotations

import binascii
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509

from trust import der
from trust.facts import Facts
from trust.facts import read as read_facts
from trust.revocation.naming import (
    ALL_REASONS,
    NameKey,
    PointName,
    directory_names,
    distribution_points,
    fetchable,
    name_key,
    point_name,
    reason_flags,
)
from trust.revocation.signatures import bit_string, verifies

REASONS = {
    0: "unspecified",
    1: "keyCompromise",
    2: "cACompromise",
    3: "affiliationChanged",
    4: "superseded",
    5: "cessationOfOperation",
    6: "certificateHold",
    8: "removeFromCRL",
    9: "privilegeWithdrawn",
    10: "aACompromise",
}
"""CRLReason (§5.3.1)."""
REMOVED = "removeFromCRL"
HOLD = "certificateHold"

MAX_SERIAL = 64
"""Octets; RFC 5280 §4.1.2.2 allows 20."""
MAX_BYTES = 1 << 31
TOLERANCE = timedelta(seconds=1)
"""After an end, for what lies between two seconds."""
SKEW = timedelta(seconds=30)
"""How far others' clocks may be ahead of ours: many sign at the moment they are asked."""

_AKI, _IAN, _NUMBER, _DELTA, _IDP, _FRESHEST = (f"2.5.29.{n}" for n in (35, 18, 20, 27, 28, 46))
_AIA, _EXPIRED = "1.3.6.1.5.5.7.1.1", "2.5.29.60"
_KNOWN = frozenset({_AKI, _IAN, _NUMBER, _DELTA, _IDP, _FRESHEST, _AIA, _EXPIRED})
_REASON, _HOLD_INSTRUCTION, _INVALID_SINCE, _CERTIFICATE_ISSUER = (f"2.5.29.{n}" for n in (21, 23, 24, 29))
_KNOWN_IN_ENTRIES = frozenset({_REASON, _HOLD_INSTRUCTION, _INVALID_SINCE, _CERTIFICATE_ISSUER})

_HARMLESS = re.compile(
    rb"\x30(.)(?:\x30\x0a\x06\x03\x55\x1d\x15\x04\x03\x0a\x01.|\x30\x18\x06\x03\x55\x1d\x18\x04\x11\x18\x0f[0-9]{14}Z)+",
    re.DOTALL,
)
"""The extensions most entries have: reasonCode and invalidityDate, not critical: nothing else depends on them."""
_PEM = re.compile(rb"\s*-----BEGIN X509 CRL-----([A-Za-z0-9+/=\s]+)-----END X509 CRL-----\s*")
_CRL_SIGN = 1 << 6
"""Bit of KeyUsage (§4.2.1.3)."""
_MAX_ENTRY = 1 << 16
_MAX_ALIKE = 1024
_MAX_STEPS = 8192
"""From an entry's own place in the table to a free one; chance takes some hundred. One serial number many times over
would cost the square of how often it is there."""
_LEAST_ENTRY = 16
"""No entry is shorter than 20 octets: the table has more places than there are entries, and one in five stays free."""


class CrlError(ValueError):
    """These bytes are no CRL that may be used; the text names the rule, never the content."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What a CRL is for: its issuingDistributionPoint (§5.2.5), or everything when it has none."""

    names: frozenset[PointName] = frozenset()
    user: bool = False
    authority: bool = False
    attribute: bool = False
    indirect: bool = False
    reasons: frozenset[int] = ALL_REASONS


@dataclass(frozen=True, slots=True)
class Entry:
    """One revoked certificate."""

    revoked_at: datetime | None
    """None when the date cannot be read: the certificate is revoked all the same."""
    reason: str
    invalid_since: datetime | None


@dataclass(frozen=True, slots=True, eq=False)
class Crl:
    """A CRL whose signature is good. Make it with `read`. Immutable; all threads share one."""

    issuer: NameKey
    signer: x509.Certificate
    """The certificate with whose key the signature was verified."""
    this_update: datetime
    next_update: datetime | None
    scope: Scope
    number: int | None
    base: int | None
    """BaseCRLNumber of a delta CRL; None: this is a complete one."""
    delta_urls: tuple[str, ...]
    expired_since: datetime | None
    """Certificates that expired from then on are still listed (X.509 expiredCertsOnCRL)."""
    size: int
    """Number of entries."""
    _entries: bytes
    _table: array[int]
    _sections: tuple[array[int], list[NameKey]]
    """In an indirect CRL, from which position on entries are about the certificates of which issuer."""

    @property
    def octets(self) -> int:
        """Memory the entries and their index take."""
        return len(self._entries) + len(self._table) * self._table.itemsize + 12 * len(self._sections[0])

    def find(self, serial: int, issuer: NameKey) -> Entry | None:
        """The entry about one certificate: constant time. Several entries about it: one that revokes is preferred."""
        wanted = serial_octets(serial)
        entries, table = self._entries, self._table
        mask = len(table) - 1
        slot = hash(wanted) & mask
        found: Entry | None = None
        while place := table[slot]:
            slot = (slot + 1) & mask
            start, body, end = _bounds(entries, place - 1)
            if entries[body + 2 : body + 2 + entries[body + 1]] != wanted:
                continue
            starts, issuers = self._sections
            if (issuers[bisect_right(starts, start) - 1] if starts else self.issuer) != issuer:
                continue
            entry = _entry(entries, body, end)
            if entry.reason != REMOVED:
                return entry
            found = entry
        return found


def serial_octets(serial: int) -> bytes:
    """A serial number as DER has it: two's complement, minimal."""
    return serial.to_bytes((serial if serial >= 0 else ~serial).bit_length() // 8 + 1, "big", signed=True)


def in_der(data: bytes) -> bytes:
    """A CRL as it is signed: some authorities publish PEM, though RFC 5280 §4.2.1.13 says DER."""
    if not data[:64].lstrip().startswith(b"-----"):
        return data
    armoured = _PEM.fullmatch(data)
    try:
        return binascii.a2b_base64(armoured[1]) if armoured is not None else data
    except binascii.Error:
        return data


def issuer_of(data: bytes) -> NameKey:
    """Who issued a CRL, before anything of it is believed; raises `CrlError`."""
    try:
        fields = der.read(data).sequence(3)[0].sequence(8)
        return name_key(bytes(fields[2 if fields[0].tag == der.INTEGER else 1].encoded))
    except (ValueError, IndexError) as error:
        raise CrlError(f"no CRL: {error}") from None


def read(data: bytes, signers: Iterable[x509.Certificate]) -> Crl:
    """A CRL in DER, signed by one of `signers`, which the caller has found on paths to an anchor.

    A signer must have the CRL's issuer name, the key identifier the CRL asks for, cRLSign if it has a key usage, and
    the key (§6.3.3 (f), (g)). The signature is checked before entries are looked at. Raises `CrlError`.
    """
    if len(data) > MAX_BYTES:
        raise CrlError("too large")
    try:
        return _read(data, signers)
    except CrlError:
        raise
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise CrlError(f"malformed CRL: {error}") from None


def _read(data: bytes, signers: Iterable[x509.Certificate]) -> Crl:
    signed, algorithm, signature = der.read(data).sequence(3)
    fields = signed.sequence(8)
    version = fields.pop(0).integer() if fields[0].tag == der.INTEGER else 0
    inner, issuer_element, this_update = fields[:3]
    del fields[:3]
    if inner.encoded != algorithm.encoded:
        raise CrlError("two signature algorithms")
    issuer = name_key(bytes(issuer_element.encoded))
    next_update = fields.pop(0).time() if fields and fields[0].tag in (der.UTC_TIME, der.GENERALIZED_TIME) else None
    revoked = bytes(fields.pop(0).content) if fields and fields[0].tag == der.SEQUENCE else b""
    extensions: dict[str, der.Element] = {}
    if fields and fields[0].tag == der.context(0):
        extensions = _extensions(fields.pop(0).explicit(), _KNOWN)
    if fields or version not in (0, 1) or (extensions and version != 1):
        raise CrlError("not a version 2 CRL")
    key_id = _key_id(extensions.get(_AKI))
    value = bit_string(signature)
    signer = next(
        (
            candidate
            for candidate in signers
            if may_sign(candidate, issuer, key_id) and verifies(algorithm, signed, value, candidate)
        ),
        None,
    )
    if signer is None:
        raise CrlError("not signed with a key of its issuer")
    scope = _scope(extensions.get(_IDP), issuer)
    table, size, sections = _index(revoked, issuer, scope.indirect)
    freshest = extensions.get(_FRESHEST)
    points = distribution_points(bytes(freshest.encoded), issuer) if freshest is not None else ()
    expired = extensions.get(_EXPIRED)
    return Crl(
        issuer=issuer,
        signer=signer,
        this_update=this_update.time(),
        next_update=next_update,
        scope=scope,
        number=_number(extensions.get(_NUMBER)),
        base=_number(extensions.get(_DELTA)),
        delta_urls=fetchable(url for point in points for url in point.urls),
        expired_since=expired.time() if expired is not None else None,
        size=size,
        _entries=revoked,
        _table=table,
        _sections=sections,
    )


def may_sign(certificate: x509.Certificate, issuer: NameKey, key_id: bytes | None) -> bool:
    """Whether a certificate has the name, the key identifier and the key usage of a CRL's signer."""
    facts = read_facts(certificate)
    if not isinstance(facts, Facts):
        return False
    try:
        named = name_key(facts.subject_der) == issuer
    except der.DerError:
        return False
    may = facts.key_usage is None or facts.key_usage & _CRL_SIGN
    return bool(named and may) and (key_id is None or facts.subject_key_id in (None, key_id))


def _extensions(element: der.Element, known: frozenset[str]) -> dict[str, der.Element]:
    """Extension values by OID; an unknown critical one, or one that is there twice, makes the CRL unusable (§5.2)."""
    found: dict[str, der.Element] = {}
    for extension in element.sequence(64):
        kind, *critical, value = extension.sequence(3)
        oid = kind.oid()
        if oid in found:
            raise CrlError(f"extension {oid} twice")
        if oid not in known:
            if critical and bytes(critical[0].expect(0x01).content) != b"\x00":
                raise CrlError(f"unknown critical extension {oid}")
            continue
        found[oid] = der.read(value.octets())
    return found


def _key_id(element: der.Element | None) -> bytes | None:
    if element is None:
        return None
    return next((bytes(f.content) for f in element.sequence(3) if f.tag == der.context(0, constructed=False)), None)


def _number(element: der.Element | None) -> int | None:
    return None if element is None else element.integer()


def _scope(element: der.Element | None, issuer: NameKey) -> Scope:
    if element is None:
        return Scope()
    names: frozenset[PointName] = frozenset()
    flags: dict[int, bool] = {}
    reasons = ALL_REASONS
    for field in element.sequence(6):
        if field.tag == der.context(0):
            names, _ = point_name(field.explicit(), issuer)
            if not names:  # it would be taken for a list of everything
                raise CrlError("issuing distribution point without a name")
        elif field.tag == der.context(3, constructed=False):
            reasons = reason_flags(field)
        elif field.tag in (der.context(n, constructed=False) for n in (1, 2, 4, 5)):
            if field.size != 1:
                raise CrlError("issuing distribution point")
            flags[field.tag & 0x1F] = bytes(field.content) != b"\x00"
        else:
            raise CrlError("issuing distribution point")
    if sum(flags.get(n, False) for n in (1, 2, 5)) > 1:
        raise CrlError("issuing distribution point for several kinds of certificates only")
    return Scope(names, flags.get(1, False), flags.get(2, False), flags.get(5, False), flags.get(4, False), reasons)


def _index(entries: bytes, issuer: NameKey, indirect: bool) -> tuple[array[int], int, tuple[array[int], list[NameKey]]]:
    """The table of positions, one more than they are so that zero is a free place; the number of entries; sections.

    Everything that is true of a well-formed entry is checked here, except what its extensions say, which is looked at
    when it is asked for. Only extensions that could be critical, or change the issuer, are read now, and each distinct
    value once.
    """
    mask = (1 << (len(entries) // _LEAST_ENTRY).bit_length()) - 1
    table = array("I", bytes(4 * (mask + 1)))
    starts = array("I", [0] if indirect else [])
    issuers = [issuer] if indirect else []
    seen: dict[bytes, NameKey | None] = {}
    size = position = 0
    stop = len(entries)
    while position < stop:
        start = position
        length = entries[position + 1]
        body = position + 2
        if length > 0x7F:
            _, body, position = _bounds(entries, start)
        else:
            position = body + length
        octets = entries[body + 1]
        serial = body + 2
        date = serial + octets
        key = entries[serial:date]
        kind = entries[date]
        if kind == 0x17:
            after = date + 15
        elif kind == 0x18:
            after = date + 17
        else:
            raise CrlError("entry without a date")
        if (
            entries[start] != 0x30
            or entries[body] != 0x02
            or entries[date + 1] != after - date - 2
            or not 0 < octets <= MAX_SERIAL
            or (octets > 1 and ((not key[0] and key[1] < 0x80) or (key[0] == 0xFF and key[1] >= 0x80)))
        ):
            raise CrlError("malformed entry")
        if after != position:
            if after > position:
                raise CrlError("truncated entry")
            rest = entries[after:position]
            if rest in seen:
                about = seen[rest]
            else:
                about = _checked(rest, indirect)
                if len(seen) < _MAX_ALIKE:
                    seen[rest] = about
            if about is not None and about != issuers[-1]:
                starts.append(start)
                issuers.append(about)
        slot = hash(key) & mask
        if table[slot]:
            slot = _free(table, slot, mask)
        table[slot] = start + 1
        size += 1
    if position != stop:
        raise CrlError("truncated entry")
    return table, size, (starts, issuers)


def _free(table: array[int], slot: int, mask: int) -> int:
    for step in range(1, min(_MAX_STEPS, mask + 1)):
        if not table[(slot + step) & mask]:
            return (slot + step) & mask
    raise CrlError("too many entries alike")


def _bounds(entries: bytes, start: int) -> tuple[int, int, int]:
    """Where an entry starts, where its contents start, and where it ends."""
    length = entries[start + 1]
    body = start + 2
    if length > 0x7F:
        body += length - 0x80
        length = int.from_bytes(entries[start + 2 : body], "big")
        if not 0x7F < length < _MAX_ENTRY:
            raise CrlError("length of an entry")
    return start, body, body + length


def _checked(rest: bytes, indirect: bool) -> NameKey | None:
    """Look at an entry's extensions as far as the whole CRL depends on them: the issuer they change to, if any."""
    usual = _HARMLESS.fullmatch(rest)
    if usual is not None and usual[1][0] == len(rest) - 2:
        return None
    extensions = _extensions(der.read(rest), _KNOWN_IN_ENTRIES)
    issuer = extensions.get(_CERTIFICATE_ISSUER)
    if issuer is None:
        return None
    if not indirect:
        raise CrlError("certificate issuer in a CRL that is not indirect")
    names = directory_names(issuer.sequence(64))
    if len(names) != 1:
        raise CrlError("certificate issuer without a name")
    return next(iter(names))


def _entry(entries: bytes, body: int, end: int) -> Entry:
    date = body + 2 + entries[body + 1]
    after = date + 2 + entries[date + 1]
    try:
        revoked_at = der.read(entries[date:after]).time()
    except der.DerError:
        revoked_at = None
    reason, invalid_since = "unspecified", None
    if after < end:
        # each is read as far as it can be: a date that is not one must not make "keyCompromise" a lesser reason
        extensions = _extensions(der.read(entries[after:end]), _KNOWN_IN_ENTRIES)
        if _REASON in extensions:
            reason = REASONS.get(int.from_bytes(extensions[_REASON].content, "big"), reason)
        if _INVALID_SINCE in extensions:
            with suppress(der.DerError):
                invalid_since = extensions[_INVALID_SINCE].expect(der.GENERALIZED_TIME).time()
    return Entry(revoked_at, reason, invalid_since)
