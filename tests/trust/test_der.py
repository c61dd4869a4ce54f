"""The BER reader against truncated, deep, huge and fragmented input, and the writer against asn1crypto."""

from __future__ import annotations

import contextlib
import gc
import time
from datetime import UTC, datetime

import pytest
from asn1crypto import core
from hypothesis import given, settings
from hypothesis import strategies as st

from trust import der
from trust.der import DerError


def walk(element: der.Element) -> int:
    """Look at everything there is; the number of elements."""
    count, waiting = 0, [element]
    while waiting:
        current = waiting.pop()
        count += 1
        if current.tag & der.CONSTRUCTED:
            waiting += current.children()
    return count


def test_a_structure_comes_back() -> None:
    moment = datetime(2026, 6, 1, 12, 30, tzinfo=UTC)
    far = datetime(2051, 1, 2, tzinfo=UTC)
    written = der.sequence(
        der.integer(-129),
        der.oid("1.2.840.113549.1.9.16.2.47"),
        der.octet_string(b"x" * 300),
        der.time(moment),
        der.time(far),
    )
    number, oid, octets, near_time, far_time = der.read(written).sequence()
    assert number.integer() == -129
    assert oid.oid() == "1.2.840.113549.1.9.16.2.47"
    assert octets.octets() == b"x" * 300
    assert (near_time.time(), far_time.time()) == (moment, far)
    assert bytes(der.read(written).encoded) == written


def test_values_are_slices_of_the_input() -> None:
    data = der.octet_string(b"content")
    view = der.read(data).content
    assert isinstance(view, memoryview)
    assert view.obj is data


@given(st.integers(-(1 << 200), 1 << 200))
def test_integers_are_written_as_asn1crypto_writes_them(value: int) -> None:
    assert der.integer(value) == core.Integer(value).dump()
    assert der.read(der.integer(value)).integer() == value


@pytest.mark.parametrize(
    "dotted", ["1.2.840.113549.1.1.1", "2.5.4.3", "0.9.2342.19200300.100.1.25", "2.999.1", "1.3.101.112"]
)
def test_object_identifiers_are_written_as_asn1crypto_writes_them(dotted: str) -> None:
    assert der.oid(dotted) == core.ObjectIdentifier(dotted).dump()
    assert der.read(der.oid(dotted)).oid() == dotted


def test_set_of_is_sorted() -> None:
    assert der.set_of([der.integer(2), der.integer(1)]) == der.set_of([der.integer(1), der.integer(2)])


def test_indefinite_lengths_and_chunks_of_chunks() -> None:
    inner = (
        b"\x24\x80" + der.octet_string(b"a") + der.tlv(0x24, der.octet_string(b"b"), der.octet_string(b"")) + b"\0\0"
    )
    data = b"\x30\x80" + inner + der.integer(7) + b"\0\0"
    octets, number = der.read(data).sequence()
    assert octets.octets() == b"ab"
    assert number.integer() == 7
    # the same inside a definite length, found only when looked at
    assert der.read(der.sequence(inner)).sequence()[0].octets() == b"ab"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x30",
        b"\x30\x01",
        b"\x30\x81",
        b"\x30\x80",
        b"\x30\x80\x00",
        b"\x04\x80\x00\x00",
        b"\x30\xff" + b"\0" * 200,
        b"\x30\x88" + b"\xff" * 8,
        b"\x04\x84\xff\xff\xff\xff",
        b"\x1f\x81\x01\x00",
        b"\x05\x00\x00",
        b"\x30\x03\x02\x02\x01",
        b"\x30\x80\x02\x05\x00\x00",
    ],
)
def test_malformed_input_is_refused(data: bytes) -> None:
    with pytest.raises(DerError):
        walk(der.read(data))


@pytest.mark.parametrize(
    ("data", "method"),
    [
        (b"\x02\x00", "integer"),
        (b"\x04\x01\x00", "integer"),
        (b"\x06\x00", "oid"),
        (b"\x06\x01\x80", "oid"),
        (b"\x06\x50" + b"\x01" * 80, "oid"),
        (b"\x17\x0d26010112000Z ", "time"),
        (b"\x17\x0d269901120000Z", "time"),
        (b"\x18\x0f20260101120000+", "time"),
        (b"\x04\x00", "children"),
        (b"\x30\x00", "octets"),
        (b"\x24\x03\x02\x01\x00", "octets"),
        (b"\x30\x00", "explicit"),
    ],
)
def test_wrong_values_are_refused(data: bytes, method: str) -> None:
    with pytest.raises(DerError):
        getattr(der.read(data), method)()


@pytest.mark.parametrize("opening", [b"\x30\x80", b"\x24\x80", b"\xa0\x80"])
def test_depth_is_bounded(opening: bytes) -> None:
    def nested(depth: int) -> bytes:
        return opening * depth + b"\0\0" * depth

    assert walk(der.read(nested(der.MAX_DEPTH))) == der.MAX_DEPTH
    for depth in (der.MAX_DEPTH + 1, 200_000):
        with pytest.raises(DerError, match="deeply"):
            der.read(nested(depth))


def test_definite_depth_is_bounded_when_looked_at() -> None:
    data = b""
    for _ in range(40):
        data = der.sequence(data)
    with pytest.raises(DerError, match="deeply"):
        walk(der.read(data))


def _seconds(chunks: int, chunk: bytes) -> float:
    data = b"\x24\x80" + der.octet_string(chunk) * chunks + b"\0\0"
    gc.disable()  # its passes over what the whole test run holds would be measured too
    try:
        started = time.process_time()
        assert len(der.read(data, elements=chunks + 1).octets()) == chunks * len(chunk)
        return time.process_time() - started
    finally:
        gc.enable()


def test_400k_chunks_of_one_octet_take_linear_time() -> None:
    small, large = (min(_seconds(chunks, b"x") for _ in range(3)) for chunks in (20_000, 400_000))
    assert large < small * 20 * 5
    data = b"\x24\x80" + b"\x04\x01x" * 400_000 + b"\0\0"
    with pytest.raises(DerError, match="too many"):  # and by default they are not read at all
        der.read(data)


def test_ordinary_chunks_stay_within_the_default_budget() -> None:
    data = b"\x24\x80" + der.octet_string(b"x" * 1000) * 40_000 + b"\0\0"
    assert len(der.read(data).octets()) == 40_000_000


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_random_input_raises_nothing_but_der_error(data: bytes) -> None:
    with contextlib.suppress(DerError):
        walk(der.read(data))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 200), st.integers(0, 255))
def test_altered_and_truncated_structures_raise_nothing_but_der_error(position: int, octet: int) -> None:
    original = (
        b"\x30\x80"
        + der.sequence(der.integer(5), der.octet_string(b"abc")) * 5
        + b"\xa0\x80"
        + der.null()
        + b"\0\0\0\0"
    )
    altered = bytearray(original)
    altered[position % len(original)] = octet
    for data in (bytes(altered), original[: position % len(original)]):
        try:
            walk(der.read(data))
        except DerError:
            continue
