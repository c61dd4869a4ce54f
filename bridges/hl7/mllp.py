"""MLLP framing (HL7 v2 Transport Specification, Release 1 §2.3) as a state machine without I/O.

`<VT> payload <FS><CR>`. The door feeds whatever the network gave and gets frames and framing errors back, in order.
"""

from __future__ import annotations

from dataclasses import dataclass

START = b"\x0b"
END = b"\x1c"
HEAD_BYTES = 4096
"""How much of a refused frame is kept: enough for its MSH, so that the answer can name MSH-10."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One complete payload, without its envelope."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class FrameError:
    """Something that was not a frame. The decoder has already resynchronised."""

    kind: str
    """`stray`: bytes between frames; `oversized`: longer than agreed; `interrupted`: a new frame began inside one;
    `truncated`: the connection ended inside one."""
    size: int
    """Bytes seen when it was noticed; an oversized frame may go on."""
    head: bytes = b""
    """First bytes of the payload, at most `HEAD_BYTES`; empty for `stray`."""


class FrameDecoder:
    """Bytes in, frames out. Not thread-safe: one decoder per connection.

    FS alone ends a frame: CR and LF after it are ignored, so a sender that forgets the CR is answered all the same.
    Memory is bounded by `max_frame` plus one feed.
    """

    def __init__(self, max_frame: int) -> None:
        self._max = max_frame
        self._buffer = bytearray()
        self._state = "between"
        self._stray = False

    def feed(self, data: bytes) -> list[Frame | FrameError]:
        """What became complete with these bytes."""
        out: list[Frame | FrameError] = []
        position = 0
        while position < len(data):
            if self._state == "between":
                position = self._between(data, position, out)
            else:
                position = self._inside(data, position, out)
        return out

    def finish(self) -> FrameError | None:
        """The connection ended: what was left unfinished, if anything."""
        unfinished = self._state == "inside"
        error = FrameError("truncated", len(self._buffer), self._head()) if unfinished else None
        self._reset("between")
        return error

    def _between(self, data: bytes, position: int, out: list[Frame | FrameError]) -> int:
        start = data.find(START, position)
        stop = start if start >= 0 else len(data)
        junk = data[position:stop].strip(b"\r\n")
        if junk and not self._stray:
            # Once per burst: a peer that speaks another protocol must not be answered at every packet.
            out.append(FrameError("stray", len(junk)))
            self._stray = True
        if start < 0:
            return len(data)
        self._stray = False
        self._reset("inside")
        return start + 1

    def _inside(self, data: bytes, position: int, out: list[Frame | FrameError]) -> int:
        end = data.find(END, position)
        stop = end if end >= 0 else len(data)
        restart = data.find(START, position, stop)
        if restart >= 0:
            stop = restart
        discarding = self._state == "discarding"
        if not discarding:
            room = self._max - len(self._buffer)
            self._buffer += memoryview(data)[position : position + min(stop - position, room)]
            if stop - position > room:
                out.append(FrameError("oversized", len(self._buffer) + stop - position - room, self._head()))
                self._reset("discarding")
                discarding = True
        if restart >= 0:
            if not discarding:
                out.append(FrameError("interrupted", len(self._buffer), self._head()))
            self._reset("inside")
            return restart + 1
        if end < 0:
            return len(data)
        if not discarding:
            out.append(Frame(bytes(self._buffer)))
        self._reset("between")
        return end + 1

    def _head(self) -> bytes:
        return bytes(self._buffer[:HEAD_BYTES])

    def _reset(self, state: str) -> None:
        self._buffer = bytearray()
        self._state = state


def encode(payload: bytes) -> bytes:
    """Put a payload in its envelope. ValueError when it contains VT or FS, which no HL7 text does."""
    if START in payload or END in payload:
        raise ValueError("an MLLP payload cannot contain VT or FS")
    return START + payload + END + b"\r"
