"""The MLLP client and the filing listener over real sockets: receivers that agree, refuse, stay silent or babble."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import structlog

from bridges.hl7 import zam
from bridges.hl7.acknowledgement import accept, header_of, refuse
from bridges.hl7.client import MllpTarget, MllpTimeouts
from bridges.hl7.listener import FilingListener
from bridges.hl7.mllp import Frame, FrameDecoder, encode
from bridges.hl7.zam import Acknowledgement, ZamEvent
from bridges.receipts_refusals import ANSWER_UNREADABLE, LATER, REFUSED, SILENT, UNFRAMEABLE, UNKNOWN, UNREACHABLE
from bridges.refusals import HL7_CHARSET
from mta.message import Deferred, Delivered, Failed, Message, Origin, Outcome
from trust.refusals import Refusal, Refused

AT = datetime(2026, 11, 21, 9, 34, tzinfo=UTC)
ORIGINAL = header_of(b"MSH|^~\\&|SIL|LABO|PFI|CABX|20261121||ORU^R01^ORU_R01|M1|P|2.5|||||FRA|UNICODE UTF-8\r")
Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


def message(name: str = "sil", control_id: str = "Z1") -> Message:
    content = zam.compose(ORIGINAL, control_id, Acknowledgement(ZamEvent.DOSSIER, AT))
    return Message("<a@b>", "s", "d", Origin.SYSTEM, "", name, content, "application/hl7-v2", 0.0)


def positive(frame: bytes) -> bytes:
    return encode(accept(header_of(frame), "A1", AT))


class Receiver:
    """Counts connections and frames; `answers` are used in turn, the last one for ever."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.connections = 0
        self.frames: list[bytes] = []
        self.tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        self.connections += 1
        decoder = FrameDecoder(1_000_000)
        try:
            while data := await reader.read(65536):
                for event in decoder.feed(data):
                    assert isinstance(event, Frame)
                    self.frames.append(event.payload)
                    answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                    await answer(event.payload, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def target(receiver: Receiver, answer: float = 5.0) -> AsyncIterator[MllpTarget]:
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = MllpTarget({"sil": ("127.0.0.1", port)}, MllpTimeouts(connect=5.0, answer=answer))
    try:
        yield client
    finally:
        await client.close()
        server.close()
        await asyncio.gather(*receiver.tasks)


async def yes(frame: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(positive(frame))


async def silent(frame: bytes, writer: asyncio.StreamWriter) -> None:
    pass


async def hang_up(frame: bytes, writer: asyncio.StreamWriter) -> None:
    writer.close()


def says(data: bytes) -> Answer:
    async def answer(frame: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return answer


def with_code(code: str) -> Answer:
    async def answer(frame: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(positive(frame).replace(b"MSA|AA", b"MSA|" + code.encode()))

    return answer


def reason(outcome: Outcome) -> Refusal:
    assert isinstance(outcome, Deferred | Failed)
    return outcome.reason.refusal


async def test_one_connection_for_many_messages() -> None:
    receiver = Receiver(yes)
    async with target(receiver) as client:
        outcomes = await asyncio.gather(*(client.deliver(message(control_id=f"Z{n}")) for n in range(20)))
        assert outcomes == [Delivered("AA")] * 20
    assert receiver.connections == 1
    assert len(set(receiver.frames)) == 20


@pytest.mark.parametrize(
    ("code", "kind"),
    [("AA", Delivered), ("CA", Delivered), ("AR", Deferred), ("CR", Deferred), ("AE", Failed), ("CE", Failed)],
)
async def test_every_code(code: str, kind: type[Outcome]) -> None:
    async with target(Receiver(with_code(code))) as client:
        outcome = await client.deliver(message())
        assert isinstance(outcome, kind)
        if kind is not Delivered:
            assert reason(outcome) == (LATER if kind is Deferred else REFUSED)


async def test_a_refusal_keeps_codes_and_no_words() -> None:
    async def no(frame: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(encode(refuse(header_of(frame), "A1", AT, Refused(HL7_CHARSET, "FICTIF Jean"))))

    async with target(Receiver(no)) as client:
        outcome = await client.deliver(message())
    assert isinstance(outcome, Failed)
    assert outcome.reason.detail == f"AE {HL7_CHARSET.condition} {HL7_CHARSET.application}"


async def test_silence_is_later_and_a_late_answer_is_nobody_s() -> None:
    first: list[asyncio.StreamWriter] = []

    async def late(frame: bytes, writer: asyncio.StreamWriter) -> None:
        first.append(writer)

    receiver = Receiver(late, yes)
    async with target(receiver, answer=0.2) as client:
        assert reason(await client.deliver(message(control_id="Z1"))) == SILENT
        first[0].write(positive(message(control_id="Z1").content))
        assert await client.deliver(message(control_id="Z2")) == Delivered("AA")
    assert receiver.connections == 2


async def test_an_answer_to_another_message_is_passed_over() -> None:
    async def twice(frame: bytes, writer: asyncio.StreamWriter) -> None:
        for code in (b"CA", b"AA"):
            writer.write(positive(frame).replace(b"MSA|AA", b"MSA|" + code))
            await writer.drain()

    receiver = Receiver(twice)
    async with target(receiver) as client:
        for number in range(3):
            assert isinstance(await client.deliver(message(control_id=f"Z{number}")), Delivered)
    assert receiver.connections == 1
    async with target(Receiver(says(positive(message(control_id="Z9").content))), answer=0.2) as client:
        assert reason(await client.deliver(message())) == SILENT


async def test_endless_answers_to_others_are_cut() -> None:
    async def babble(frame: bytes, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(positive(message(control_id="Z9").content))
                await writer.drain()

    receiver = Receiver(babble)
    with structlog.testing.capture_logs() as logs:
        async with target(receiver) as client, asyncio.timeout(5):
            assert reason(await client.deliver(message())) == ANSWER_UNREADABLE
    assert len(logs) < 100


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        encode(b"nonsense"),
        encode(b"MSH|^~\\&|A|B|C|D|20261121||ACK|1|P|2.6\r"),
        encode(b"MSH|^~\\&|A|B|C|D|20261121||ACK|1|P|2.6\rMSA|OK|Z1\r"),
        encode(b"\xff\xfe" * 10),
        b"\x0b" + b"x" * 1_000_000,
        encode(b""),
    ],
)
async def test_garbage_is_later(answer: bytes) -> None:
    receiver = Receiver(says(answer), yes)
    async with target(receiver) as client:
        assert reason(await client.deliver(message())) == ANSWER_UNREADABLE
        assert await client.deliver(message()) == Delivered("AA")
    assert receiver.connections == 2


async def test_a_receiver_that_hangs_up() -> None:
    receiver = Receiver(hang_up)
    async with target(receiver) as client:
        assert reason(await client.deliver(message())) == SILENT
    assert receiver.connections == 1


async def test_half_an_answer() -> None:
    async def half(frame: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(positive(frame)[:20])
        writer.close()

    receiver = Receiver(half)
    async with target(receiver) as client:
        assert reason(await client.deliver(message())) == SILENT
    assert receiver.connections == 1


async def test_a_receiver_that_closes_after_each_answer() -> None:
    async def once(frame: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(positive(frame))
        writer.close()

    receiver = Receiver(once)
    async with target(receiver) as client:
        for number in range(3):
            assert await client.deliver(message(control_id=f"Z{number}")) == Delivered("AA")
    assert receiver.connections == 3
    assert len(receiver.frames) == 3


async def test_an_answer_that_trickles() -> None:
    async def slowly(frame: bytes, writer: asyncio.StreamWriter) -> None:
        for octet in positive(frame):
            writer.write(bytes([octet]))
            await writer.drain()
            await asyncio.sleep(0)

    async with target(Receiver(slowly)) as client:
        assert await client.deliver(message()) == Delivered("AA")


async def test_a_cancelled_delivery_leaves_no_half_conversation() -> None:
    asked = asyncio.Event()

    async def wait(frame: bytes, writer: asyncio.StreamWriter) -> None:
        asked.set()

    receiver = Receiver(wait, yes)
    async with target(receiver) as client:
        delivering = asyncio.create_task(client.deliver(message()))
        async with asyncio.timeout(5):
            await asked.wait()
        delivering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await delivering
        assert await client.deliver(message()) == Delivered("AA")
    assert receiver.connections == 2


async def test_nobody_there_nobody_known_and_nothing_to_frame() -> None:
    server = await asyncio.start_server(Receiver(yes).serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    client = MllpTarget({"sil": ("127.0.0.1", port)})
    assert reason(await client.deliver(message())) == UNREACHABLE
    assert reason(await client.deliver(message("stranger"))) == UNKNOWN
    for content in (b"MSH|^~\\&|\x1c", b"no header", b"MSH|^~\\&|A|B|C|D|20261121||ACK||P|2.6\r"):
        broken = Message("<a@b>", "s", "d", Origin.SYSTEM, "", "sil", content, "application/hl7-v2", 0.0)
        assert reason(await client.deliver(broken)) == UNFRAMEABLE


@asynccontextmanager
async def filing(folder: Path, filed: Callable[[Path], None] = lambda path: None) -> AsyncIterator[MllpTarget]:
    listener = FilingListener(folder, filed=filed)
    port = await listener.start("127.0.0.1", 0)
    client = MllpTarget({"sil": ("127.0.0.1", port)})
    try:
        yield client
    finally:
        await client.close()
        await listener.stop()


async def test_the_listener_files_each_frame_once(tmp_path: Path) -> None:
    folder, filed = tmp_path / "in" / "zam", list[Path]()
    async with filing(folder, filed.append) as client:
        for control_id in ("Z1", "Z2", "Z1"):
            assert await client.deliver(message(control_id=control_id)) == Delivered("AA")
    files = sorted(folder.iterdir())
    assert [path.name.rpartition("-")[0] for path in files] == ["ZAM_Z01-Z1", "ZAM_Z01-Z2"]
    assert files[0].read_bytes() == message(control_id="Z1").content
    assert set(filed) == set(files)
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def _filed_under(folder: Path) -> list[Path]:
    return list(folder.rglob("*.hl7"))


async def test_the_listener_lets_no_name_out_of_its_folder(tmp_path: Path) -> None:
    content = b"MSH|^~\\&|A|B|C|D|20261121||../..^/etc|../../evil/x|P|2.6\r"
    hostile = Message("<a@b>", "s", "d", Origin.SYSTEM, "", "sil", content, "application/hl7-v2", 0.0)
    async with filing(tmp_path / "zam") as client:
        await client.deliver(hostile)
    assert [path.parent for path in _filed_under(tmp_path)] == [tmp_path / "zam"]


async def test_the_listener_refuses_what_is_no_message_and_says_nothing_when_the_disk_fails(tmp_path: Path) -> None:
    folder = tmp_path / "zam"
    listener = FilingListener(folder)
    port = await listener.start("127.0.0.1", 0)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(encode(b"not hl7"))
        async with asyncio.timeout(5):
            assert b"MSA|AE" in await reader.readuntil(b"\x1c\r")
        folder.rmdir()
        with structlog.testing.capture_logs():
            writer.write(encode(message().content))
            async with asyncio.timeout(5):
                assert await reader.read() == b""
        writer.close()
    finally:
        await listener.stop()
