"""The MLLP client: hands acknowledgements to the sending systems' own receivers, as a target of the road.

One connection per receiver, kept and used again, one frame in flight: the answer that names our MSH-10 is the answer.
A receiver that cannot be reached, stays silent or talks nonsense is tried again later; only AE ends the delivery.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from bridges import receipts_refusals as refusals
from bridges.hl7 import er7
from bridges.hl7.acknowledgement import header_of
from bridges.hl7.mllp import FrameDecoder, FrameError, encode
from mta.message import Deferred, Delivered, Failed, Message, Outcome
from trust.refusals import Refusal, Refused

log = structlog.get_logger(__name__)

_READ = 64 * 1024
_MAX_ANSWER = 256 * 1024
_MAX_OTHERS = 20
"""Answers to other messages that are passed over before ours."""
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,40}")


@dataclass(frozen=True, slots=True)
class MllpTimeouts:
    """In seconds."""

    connect: float = 10.0
    answer: float = 30.0
    """From the first byte sent to the whole answer."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """MSA and what of ERR may be kept: codes, never texts, which are foreign and may name a patient."""

    code: str
    codes: str


class _BrokenError(Exception):
    """The exchange cannot go on over this connection."""

    def __init__(self, refusal: Refusal, detail: str = "") -> None:
        super().__init__(refusal.code)
        self.refused = Refused(refusal, detail)


class _ClosedError(_BrokenError):
    """The receiver closed before a byte of an answer came."""

    def __init__(self) -> None:
        super().__init__(refusals.SILENT, "connection closed")


class MllpTarget:
    """A `mta.message.Target` for `TargetKind.MLLP`: the recipient is the partner's name. One per event loop.

    A repeat after a crash carries the same bytes, hence the same MSH-10, by which a receiver knows it.
    """

    def __init__(self, receivers: Mapping[str, tuple[str, int]], timeouts: MllpTimeouts | None = None) -> None:
        """`receivers` gives host and port by partner name."""
        self._timeouts = timeouts or MllpTimeouts()
        self._lines = {partner: _Line(*address, self._timeouts) for partner, address in receivers.items()}

    async def deliver(self, message: Message) -> Outcome:
        """See `mta.message.Target`."""
        line = self._lines.get(message.recipient)
        if line is None:
            return Deferred(Refused(refusals.UNKNOWN))
        control_id = _identifier(message.content)
        try:
            frame = encode(message.content)
        except ValueError:
            return Failed(Refused(refusals.UNFRAMEABLE))
        if not control_id:
            return Failed(Refused(refusals.UNFRAMEABLE))
        try:
            answer = await line.exchange(frame, control_id)
        except _BrokenError as error:
            return Deferred(error.refused)
        if answer.code in ("AA", "CA"):
            return Delivered(answer.code)
        if answer.code in ("AR", "CR"):
            return Deferred(Refused(refusals.LATER, answer.codes))
        return Failed(Refused(refusals.REFUSED, answer.codes))

    async def close(self) -> None:
        """Let the connections go."""
        for line in self._lines.values():
            line.drop()


class _Line:
    """The one connection to one receiver."""

    def __init__(self, host: str, port: int, timeouts: MllpTimeouts) -> None:
        self._host = host
        self._port = port
        self._timeouts = timeouts
        self._turn = asyncio.Lock()
        self._connection: tuple[asyncio.StreamReader, asyncio.StreamWriter, FrameDecoder] | None = None

    async def exchange(self, frame: bytes, control_id: str) -> _Answer:
        """Send one frame and wait for its answer. Raises `_BrokenError`; the connection is then closed."""
        async with self._turn:
            kept = self._connection is not None
            try:
                return await self._try(frame, control_id)
            except _ClosedError:
                if not kept:
                    raise
                # closed by the receiver while nobody used it: a new one tells whether anybody is there
                return await self._try(frame, control_id)

    async def _try(self, frame: bytes, control_id: str) -> _Answer:
        finished = False
        try:
            connection = self._connection or await self._open()
            self._connection = connection
            async with asyncio.timeout(self._timeouts.answer):
                answer = await _converse(*connection, frame, control_id)
            finished = True
            return answer
        except TimeoutError:
            raise _BrokenError(refusals.SILENT, f"no answer in {self._timeouts.answer:g} s") from None
        except OSError:
            # what was sent may have arrived, or not: the receiver knows a repeat by its MSH-10
            raise _ClosedError from None
        finally:
            if not finished:
                self.drop()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, FrameDecoder]:
        try:
            async with asyncio.timeout(self._timeouts.connect):
                reader, writer = await asyncio.open_connection(self._host, self._port, limit=_READ)
        except OSError as error:  # TimeoutError is one
            raise _BrokenError(refusals.UNREACHABLE, type(error).__name__) from None
        return reader, writer, FrameDecoder(_MAX_ANSWER)

    def drop(self) -> None:
        if self._connection is not None:
            self._connection[1].transport.abort()
            self._connection = None


async def _converse(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    decoder: FrameDecoder,
    frame: bytes,
    control_id: str,
) -> _Answer:
    """The answer that names `control_id`. Others are passed over: late ones, or the second (application) answer of a
    receiver that gave CA to the message before (enhanced mode, HL7 v2.6 §2.9.3)."""
    writer.write(frame)
    await writer.drain()
    heard = False
    others = 0
    while True:
        data = await reader.read(_READ)
        if not data:
            raise _BrokenError(refusals.SILENT, "connection closed") if heard else _ClosedError
        heard = True
        for event in decoder.feed(data):
            if isinstance(event, FrameError):
                raise _BrokenError(refusals.ANSWER_UNREADABLE, event.kind)
            about, answer = _read(event.payload)
            if about == control_id:
                return answer
            others += 1
            if others > _MAX_OTHERS:
                raise _BrokenError(refusals.ANSWER_UNREADABLE, "answers to other messages only")
            log.warning("mllp.answer-to-another-message")


def _identifier(content: bytes) -> str:
    """MSH-10 as an answer will name it."""
    message = er7.parse(content, max_bytes=len(content))
    return header_of(content).control_id if isinstance(message, er7.Er7Error) else message.header.field(10).text


def _read(payload: bytes) -> tuple[str, _Answer]:
    """MSA-2 and the answer. Raises `_BrokenError` on what is no acknowledgement."""
    message = er7.parse(payload, max_bytes=_MAX_ANSWER)
    if isinstance(message, er7.Er7Error):
        raise _BrokenError(refusals.ANSWER_UNREADABLE, message.kind)
    msa = next(iter(message.segments("MSA")), None)
    code = "" if msa is None else msa.field(1).text.upper()
    if msa is None or code not in ("AA", "AE", "AR", "CA", "CE", "CR"):
        raise _BrokenError(refusals.ANSWER_UNREADABLE, "MSA-1")
    found = [code]
    for err in message.segments("ERR")[:5]:
        for field in (err.field(3), err.field(5)):
            text = field.component(1).text
            if _CODE.fullmatch(text):
                found.append(text)
    return msa.field(2).text, _Answer(code, " ".join(found))
