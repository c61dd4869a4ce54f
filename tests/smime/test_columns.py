"""Lines of one length looked at as columns say what a look at each line says."""

from __future__ import annotations

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smime import columns
from smime.canonical import base64_lines, base64_pieces, is_robust, is_seven_bit

LENGTH = 8


def in_lines(data: bytes) -> bool:
    """Every line, one by one."""
    return re.fullmatch(rb"(?:[^\r\n]{6}\r\n)*", data, re.DOTALL) is not None


def plain(data: bytes) -> bool:
    return re.fullmatch(rb"(?:[\x20-\x7e]{6}\r\n)*", data, re.DOTALL) is not None


octets = st.sampled_from(b"A/+ .F\x1f\x20\x7e\x7f\x80\xff\0\t\r\n")
damage = st.lists(st.tuples(st.integers(0, 10_000), octets), max_size=3)


@given(st.integers(0, 40), damage)
def test_columns_agree_with_lines(count: int, changes: list[tuple[int, int]]) -> None:
    data = bytearray(b"abc/+9\r\n" * count)
    for place, octet in changes if data else ():
        data[place % len(data)] = octet
    for kind in (bytes(data), data):
        assert columns.is_lines(kind, 0, len(kind), LENGTH) is in_lines(bytes(kind))
        assert columns.is_plain(kind, 0, len(kind), LENGTH) is plain(bytes(kind))


@given(st.integers(0, 5), st.integers(0, 5), st.integers(1, 40))
def test_only_what_is_asked_about_is_looked_at(before: int, behind: int, count: int) -> None:
    data = b"\r" * before + b"abc/+9\r\n" * count + b"\n" * behind
    assert columns.is_plain(data, before, before + count * LENGTH, LENGTH)
    assert columns.is_lines(data, before, before + count * LENGTH, LENGTH)


@pytest.mark.parametrize("length", [1, 3, 7])
def test_what_is_not_so_many_lines_is_none(length: int) -> None:
    data = b"\n" * 16
    assert not columns.is_lines(data, 0, 16, length)
    assert not columns.is_plain(data, 0, 16, length)


@given(st.binary(max_size=400), st.sampled_from([2, 4, 76]))
def test_cut_ends_every_line(data: bytes, length: int) -> None:
    lines = columns.cut(data, length)
    assert lines == b"".join(data[at : at + length] + b"\r\n" for at in range(0, len(data), length))


@pytest.mark.parametrize("size", [0, 1, 56, 57, 58, 4096, 4097, 4104, 100_000, 933_888, 933_889, 2_000_003])
def test_base64_of_any_size_is_what_the_standard_library_writes(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    expected = base64.encodebytes(data).replace(b"\n", b"\r\n") or b""
    assert base64_lines(data).removesuffix(b"\r\n") == expected.removesuffix(b"\r\n")
    assert all(type(piece) is bytes for piece in base64_pieces(data))  # joined without the interpreter's lock


@pytest.mark.parametrize("bad", [b"\t", b"\0", b"\xe9", b"\x0c"])
@pytest.mark.parametrize("place", [0, 30, 75])
def test_one_octet_among_thousands_of_lines_is_seen(bad: bytes, place: int) -> None:
    line = b"A" * 76 + b"\r\n"
    number = 9_000
    changed = bytearray(line * 20_000)
    changed[number * 78 + place : number * 78 + place + 1] = bad
    data = bytes(changed)
    assert is_robust(line * 20_000)
    assert is_robust(data) is (bad == b"\x0c")  # a form feed survives the road
    assert is_seven_bit(data) is (bad in b"\t\x0c")
