"""Content without sockets: however it is cut into blocks, it ends at the same octet and is judged the same."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mta import refusals
from mta.smtp.content import crlf_only, lines_fit
from mta.smtp.data import Chunked, Dotted
from trust.refusals import Refused

LIMIT = 5000
WORDS = st.sampled_from(
    [
        b"\r\n",
        b"\r",
        b"\n",
        b".",
        b"..",
        b"\0",
        b"a",
        b"Subject: x",
        b"\r\n.",
        b"\r\n.\r",
        b"\n.\n",
        b"\n.\r\n",
        b"\r.\r\n",
    ]
    + [b"x" * count for count in (500, 995, 996, 997, 998, 999, 1000, 1001)]
    + [b"\r\n." + b"y" * count for count in (997, 998, 999)]
)


def read(wire: bytes) -> tuple[bytes | Refused, bytes] | None:
    """The plainest reading of the standard: content or refusal, and what follows; None without an end."""
    head, end, rest = (b"\r\n" + wire).partition(b"\r\n.\r\n")
    if not end:
        return None
    raw = (head + b"\r\n")[2:]
    if not crlf_only(raw) or b"\0" in raw:
        return Refused(refusals.LINE_ENDINGS), rest
    lines = raw.split(b"\r\n")
    content = b"\r\n".join(line[1:] if line.startswith(b".") else line for line in lines)
    if not lines_fit(content):
        return Refused(refusals.LINE_TOO_LONG), rest
    if len(content) > LIMIT:
        return Refused(refusals.MESSAGE_TOO_LARGE), rest
    return content, rest


def fed(wire: bytes, cuts: list[int]) -> tuple[bytes | Refused, bytes] | None:
    content = Dotted(LIMIT)
    places = sorted({min(cut, len(wire)) for cut in cuts} | {0, len(wire)})
    for start, stop in itertools.pairwise(places):
        rest = content.feed(wire[start:stop])
        if rest is not None:
            return content.content(), rest + wire[stop:]
    return None


@settings(max_examples=400, deadline=None)
@given(st.lists(WORDS, max_size=12).map(b"".join), st.lists(st.integers(0, 6000), max_size=12), st.booleans())
@example(b".\r\n", [1, 2], False)
@example(b"..\r\n.\r\n", [1, 2, 3, 4, 5, 6], False)
@example(b"a\r\n.\r\nNOOP\r\n", [1, 2, 3, 4, 5], False)
def test_where_it_ends_does_not_depend_on_packets(wire: bytes, cuts: list[int], ended: bool) -> None:
    if ended:
        wire += b"\r\n.\r\nNOOP\r\n"
    found, wanted = fed(wire, cuts), read(wire)
    if wanted is not None and found is not None and isinstance(wanted[0], Refused):
        # which of several faults is told may depend on the order in which they are seen
        assert isinstance(found[0], Refused)
        assert found[1] == wanted[1]
    else:
        assert found == wanted


@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=8).map(b"".join), st.lists(st.integers(1, 3000), min_size=1, max_size=12))
def test_chunks_are_judged_like_lines(data: bytes, cuts: list[int]) -> None:
    chunks = Chunked(LIMIT)
    chunks.expect(len(data))
    rest: bytes | None = None
    position = 0
    for cut in [*cuts, len(data)]:
        rest = chunks.feed(data[position : position + cut] + (b"RSET" if position + cut >= len(data) else b""))
        position += cut
        if rest is not None:
            break
    assert rest == b"RSET"
    whole = data if data.endswith(b"\r\n") else data + b"\r\n"
    good = crlf_only(whole) and b"\0" not in whole and lines_fit(whole) and len(data) <= LIMIT and data[-1:] != b"\r"
    found = chunks.content()
    assert found == whole if good else isinstance(found, Refused)


@pytest.mark.parametrize("size", [1023, 1024, 64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, 200_000])
@pytest.mark.parametrize("fault", [b"\n", b"\r", b"\0"])
def test_one_wrong_octet_anywhere_in_a_large_block_is_seen(size: int, fault: bytes) -> None:
    line = b"x" * 76 + b"\r\n"
    good = (line * (size // len(line) + 1))[: size - size % len(line)]
    for place in (0, 1, 75, len(good) // 2, 65535, 65536, len(good) - 3, len(good) - 1):
        if not place < len(good):
            continue
        spoiled = good[:place] + fault + good[place + 1 :]
        content = Dotted(1 << 20)
        assert content.feed(spoiled + b"\r\n.\r\n") is not None
        if spoiled != good and not (crlf_only(spoiled) and b"\0" not in spoiled):
            assert content.content() == Refused(refusals.LINE_ENDINGS), (place, size)


def test_what_is_refused_is_not_kept_and_its_end_is_found() -> None:
    content = Dotted(1000)
    for _ in range(100):
        assert content.feed((b"x" * 70 + b"\r\n") * 100) is None
    assert content.held == 0
    assert content.feed(b".\r\nQUIT\r\n") == b"QUIT\r\n"
    assert content.content() == Refused(refusals.MESSAGE_TOO_LARGE)
