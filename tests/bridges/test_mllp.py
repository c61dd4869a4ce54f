"""MLLP framing: every way of cutting the stream, and everything that is not a frame."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridges.hl7.mllp import HEAD_BYTES, Frame, FrameDecoder, FrameError, encode

PAYLOAD = st.binary(max_size=50).map(lambda b: b.replace(b"\x0b", b"x").replace(b"\x1c", b"y"))


@given(st.lists(PAYLOAD, max_size=5), st.integers(1, 7))
def test_any_cut_gives_the_same_frames(payloads: list[bytes], size: int) -> None:
    stream = b"".join(encode(p) for p in payloads)
    decoder = FrameDecoder(1000)
    events = [e for i in range(0, len(stream), size) for e in decoder.feed(stream[i : i + size])]
    assert events == [Frame(p) for p in payloads]
    assert decoder.finish() is None


def test_missing_cr_and_line_ends_between_frames() -> None:
    assert FrameDecoder(100).feed(b"\x0bone\x1c\x0btwo\x1c\r\n\r\n\x0bthree\x1c\r") == [
        Frame(b"one"),
        Frame(b"two"),
        Frame(b"three"),
    ]


def test_stray_bytes_are_reported_once_per_burst() -> None:
    decoder = FrameDecoder(100)
    assert decoder.feed(b"GET / HTTP/1.1\r\n") == [FrameError("stray", 14)]
    assert decoder.feed(b"Host: x\r\n") == []
    assert decoder.feed(b"\x0bok\x1c\rmore\x0bok\x1c") == [Frame(b"ok"), FrameError("stray", 4), Frame(b"ok")]


@pytest.mark.parametrize("size", [1, 3, 64, 10_000])
def test_oversized_once_then_resynchronised(size: int) -> None:
    stream = encode(b"MSH|^~\\&|" + b"x" * 6000) + encode(b"next")
    decoder = FrameDecoder(5000)
    events = [e for i in range(0, len(stream), size) for e in decoder.feed(stream[i : i + size])]
    assert len(events) == 2 and isinstance(events[0], FrameError)
    assert events[0].kind == "oversized" and events[0].size > 5000
    assert events[0].head.startswith(b"MSH|^~\\&|") and len(events[0].head) == HEAD_BYTES
    assert events[1] == Frame(b"next")


def test_the_limit_itself_is_allowed() -> None:
    assert FrameDecoder(4).feed(encode(b"1234")) == [Frame(b"1234")]


def test_a_frame_inside_a_frame_and_a_cut_connection() -> None:
    decoder = FrameDecoder(100)
    assert decoder.feed(b"\x0bMSH|half\x0bwhole\x1c\r\x0bMSH|ha") == [
        FrameError("interrupted", 8, b"MSH|half"),
        Frame(b"whole"),
    ]
    assert decoder.finish() == FrameError("truncated", 6, b"MSH|ha")
    assert decoder.finish() is None


def test_restart_while_discarding() -> None:
    assert FrameDecoder(4).feed(b"\x0b12345\x0bok\x1c\r") == [FrameError("oversized", 5, b"1234"), Frame(b"ok")]


def test_encode_refuses_framing_bytes() -> None:
    with pytest.raises(ValueError, match="VT or FS"):
        encode(b"a\x1cb")
