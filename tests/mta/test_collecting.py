"""The collector against a real Dovecot, and against servers that mean harm."""

from __future__ import annotations

import asyncio
import contextlib
import imaplib
import logging
import os
import signal
import smtplib
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aioimaplib import aioimaplib

from mta import collecting as collecting_module
from mta import imap_client, refusals
from mta.collecting import KEYWORD, After, Collector, CollectorOptions, SignIn, Stays
from mta.collecting_options import SecretUnavailableError
from mta.delivery import Accepted, Duplicate, Lease, Submission
from mta.message import Delivered, Failed, Origin, TargetKind
from mta.spool import Spool
from tests.support.dovecot import TOKEN, Running, a_dovecot, write_certificate
from trust.refusals import Refused
from trust.store.database import StoreUnavailableError

from .conftest import MakeSpool

PASSWORD = 'pass word/é$"\\'
HERE = "recueil@hopital.example"


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with a_dovecot() as server:
        yield server


@pytest.fixture
def user(running: Running, request: pytest.FixtureRequest) -> str:
    """A mailbox of its own for each test."""
    address = f"{abs(hash(request.node.name))}@ville.mssante.test"
    running.laboratory.passwords[address] = PASSWORD
    return address


def options_for(running: Running, user: str, **changes: object) -> CollectorOptions:
    context = ssl.create_default_context(cafile=str(running.options.certificate_chain))
    plain = CollectorOptions(
        name="amont",
        host="127.0.0.1",
        port=running.options.imaps_port,
        user=user,
        password=PASSWORD,
        deliver_to=HERE,
        context=context,
        first_pause=0.05,
        longest_pause=0.2,
    )
    return replace(plain, **changes)


@asynccontextmanager
async def collecting(options: CollectorOptions, spool: Spool) -> AsyncIterator[Collector]:
    collector = Collector(options, spool, lambda address: address.endswith("@hopital.example"))
    task = asyncio.create_task(collector.run())
    try:
        yield collector
    finally:
        await collector.stop()
        await task


async def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - of things that give no event
            await asyncio.sleep(0.01)


def mail(number: int, text: str = "bonjour", *, identified: bool = True, trace: str = "") -> bytes:
    identity = f"Message-ID: <m{number}@amont.example>\r\n" if identified else ""
    return f"{trace}From: x@amont.example\r\nSubject: {number}\r\n{identity}\r\n{text}\r\n".encode()


def append(running: Running, user: str, *contents: bytes, folder: str = "INBOX") -> None:
    with running.log_in(user, PASSWORD) as client:
        for content in contents:
            assert client.append(folder, None, None, content)[0] == "OK"


def deliver(running: Running, user: str, content: bytes) -> None:
    with smtplib.LMTP(str(running.dovecot.lmtp_socket)) as lmtp:
        lmtp.ehlo()
        assert lmtp.sendmail("relay@ville.mssante.test", [user], content) == {}


def crash(running: Running) -> None:
    """Kill Dovecot with its children: left alone, they would serve their clients on for a while."""
    found = subprocess.run(["pgrep", "-P", str(running.process.pid)], check=True, capture_output=True, text=True)
    running.process.kill()
    for pid in found.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def search(running: Running, user: str, criterion: str, folder: str = "INBOX") -> int:
    with running.log_in(user, PASSWORD) as client:
        assert client.select(folder, readonly=True)[0] == "OK"
        return len(client.search(None, criterion)[1][0].split())


def kept(spool: Spool) -> list[tuple[Lease, bytes]]:
    return [(lease, spool.content(lease)) for lease in spool.claim(100, 60.0)]


async def off(function: Callable[..., object], *arguments: object, **named: object) -> object:
    return await asyncio.to_thread(function, *arguments, **named)


async def test_what_waits_and_what_is_pushed_is_collected_and_marked(
    running: Running, user: str, make_spool: MakeSpool
) -> None:
    spool = make_spool()
    append(running, user, mail(1))
    async with collecting(options_for(running, user, poll_seconds=999.0), spool) as collector:
        await eventually(lambda: collector.status.collected == 1 and collector.status.connected)
        started = time.monotonic()
        await off(deliver, running, user, mail(2, "poussé"))
        await eventually(lambda: collector.status.collected == 2)
        assert time.monotonic() - started < 5
        await eventually(lambda: collector.status.connected)
    (first, content), (second, pushed) = kept(spool)
    assert content == mail(1)
    assert (first.origin, first.target, first.recipient) == (Origin.COLLECTED, TargetKind.MAILBOX, HERE)
    assert (first.sender, first.message_id, first.peer) == ("", "<m1@amont.example>", "amont")
    assert second.sender == "relay@ville.mssante.test"
    assert pushed.endswith("\r\n\r\npoussé\r\n".encode())
    assert search(running, user, f"UNSEEN KEYWORD {KEYWORD}") == 2


async def test_several_pushes_and_idle_given_again(running: Running, user: str, make_spool: MakeSpool) -> None:
    spool = make_spool()
    async with collecting(options_for(running, user, idle_seconds=0.05), spool) as collector:
        for number in range(5):
            await off(append, running, user, mail(number))
        await eventually(lambda: collector.status.collected == 5)
    assert sorted(content for _, content in kept(spool)) == [mail(number) for number in range(5)]
    assert collector.status.repeated == 0


async def test_a_backlog_comes_whole_and_once(running: Running, user: str, make_spool: MakeSpool) -> None:
    spool = make_spool()
    append(running, user, *(mail(number, "ligne\r\n" * 2000) for number in range(120)))
    async with collecting(options_for(running, user), spool) as collector:
        await eventually(lambda: collector.status.connected, 30)
    assert collector.status.collected == 120
    assert search(running, user, f"UNKEYWORD {KEYWORD}") == 0


async def test_the_same_message_twice_is_one_and_another_with_its_id_is_another(
    running: Running, user: str, make_spool: MakeSpool
) -> None:
    spool = make_spool()
    path = "Return-Path: <x@amont.example>\r\nReceived: by mx{0} id {0}; Sat, 21 Nov 2026 10:00:0{0} +0000\r\n"
    append(
        running,
        user,
        mail(1, trace=path.format(1)),
        mail(1, trace=path.format(2)),
        mail(1, "autre"),
        mail(2, identified=False, trace=path.format(1)),
        mail(2, identified=False, trace=path.format(1)),
        mail(2, identified=False, trace=path.format(2)),
    )
    async with collecting(options_for(running, user), spool) as collector:
        await eventually(lambda: collector.status.connected)
    assert (collector.status.collected, collector.status.repeated) == (4, 2)
    assert kept(spool)[0][0].sender == "x@amont.example"
    assert search(running, user, f"UNKEYWORD {KEYWORD}") == 0


async def test_killed_between_keeping_and_marking_it_is_kept_once(
    running: Running, user: str, make_spool: MakeSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = make_spool()
    append(running, user, mail(1))
    accept = spool.accept

    def killed(submission: Submission) -> Accepted | Duplicate:
        accept(submission)
        raise StoreUnavailableError("x")

    monkeypatch.setattr(spool, "accept", killed)
    async with collecting(options_for(running, user, first_pause=60.0, longest_pause=60.0), spool) as collector:
        await eventually(lambda: collector.status.trouble == "StoreUnavailableError")
    assert search(running, user, f"KEYWORD {KEYWORD}") == 0
    monkeypatch.setattr(spool, "accept", accept)
    async with collecting(options_for(running, user), spool) as collector:
        await eventually(lambda: collector.status.connected)
    assert (collector.status.collected, collector.status.repeated) == (0, 1)
    assert len(kept(spool)) == 1
    assert search(running, user, f"KEYWORD {KEYWORD}") == 1


async def test_stopped_while_keeping_it_is_kept_once(
    running: Running, user: str, make_spool: MakeSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = make_spool()
    append(running, user, mail(1))
    accept, begun = spool.accept, asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(submission: Submission) -> Accepted | Duplicate:
        asyncio.run_coroutine_threadsafe(_set(begun), loop).result(10)
        return accept(submission)

    monkeypatch.setattr(spool, "accept", slow)
    async with collecting(options_for(running, user), spool):
        await begun.wait()
    assert len(kept(spool)) == 1
    monkeypatch.setattr(spool, "accept", accept)
    async with collecting(options_for(running, user), spool) as collector:
        await eventually(lambda: collector.status.connected)
    assert collector.status.collected == 0


async def _set(event: asyncio.Event) -> None:
    event.set()


async def test_a_rebuilt_mailbox_gives_no_copies(running: Running, user: str, make_spool: MakeSpool) -> None:
    spool = make_spool()
    options = options_for(running, user, folder="Labo 1")

    def rebuild(*contents: bytes) -> bytes:
        with running.log_in(user, PASSWORD) as client:
            client.delete('"Labo 1"')
            client.create('"Labo 1"')
            for content in contents:
                client.append('"Labo 1"', None, None, content)
            return client.status('"Labo 1"', "(UIDVALIDITY)")[1][0]

    before = rebuild(mail(1), mail(2))
    async with collecting(options, spool) as collector:
        await eventually(lambda: collector.status.connected)
    assert rebuild(mail(3), mail(1), mail(2)) != before
    async with collecting(options, spool) as collector:
        await eventually(lambda: collector.status.connected)
    assert (collector.status.collected, collector.status.repeated) == (1, 2)
    assert [content for _, content in kept(spool)] == [mail(1), mail(2), mail(3)]


async def test_what_is_too_large_stays_and_is_told_once(
    running: Running, user: str, make_spool: MakeSpool, caplog: pytest.LogCaptureFixture
) -> None:
    spool = make_spool()
    append(running, user, mail(1, "x" * 900 + "\r\n" + "y" * 900), mail(2))
    async with collecting(options_for(running, user, max_message_bytes=1000, idle_seconds=0.05), spool) as collector:
        await eventually(lambda: collector.status.connected)
        await off(append, running, user, mail(3))
        await eventually(lambda: collector.status.collected == 2)
    assert collector.status.oversized == 1
    assert [content for _, content in kept(spool)] == [mail(2), mail(3)]
    assert len([r for r in caplog.records if refusals.MESSAGE_TOO_LARGE.code in r.getMessage()]) == 1
    assert search(running, user, f"UNKEYWORD {KEYWORD}") == 1


async def test_messages_are_moved_when_asked(running: Running, user: str, make_spool: MakeSpool) -> None:
    spool = make_spool()
    append(running, user, mail(1), mail(2))
    options = options_for(running, user, after=After.MOVE, move_to="Transmis a Relais")
    async with collecting(options, spool) as collector:
        await eventually(lambda: collector.status.connected)
        await off(append, running, user, mail(3))
        await eventually(lambda: collector.status.collected == 3)
        await asyncio.sleep(0.1)
    assert search(running, user, "ALL") == 0
    assert search(running, user, "ALL", '"Transmis a Relais"') == 3


async def test_a_restarted_server_is_found_again(
    running: Running, user: str, make_spool: MakeSpool, caplog: pytest.LogCaptureFixture
) -> None:
    spool = make_spool()
    append(running, user, mail(1))
    async with collecting(options_for(running, user), spool) as collector:
        await eventually(lambda: collector.status.connected)
        await off(crash, running)
        await off(running.process.wait, 10)
        await eventually(lambda: not collector.status.connected)
        await off(running.restart)
        await off(append, running, user, mail(2))
        await eventually(lambda: collector.status.collected == 2 and collector.status.connected)
        assert collector.status.trouble == ""
    assert len(kept(spool)) == 2


async def test_a_wrong_password_is_tried_rarely_and_told_once_without_it(
    running: Running, user: str, make_spool: MakeSpool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    options = options_for(running, user, password="hunter2-wrong", login_pause=0.1)
    async with collecting(options, make_spool()) as collector:
        await eventually(lambda: running.laboratory.failures.get(user, 0) >= 2)
        assert collector.status.trouble == "login-refused"
    messages = [r.getMessage() for r in caplog.records]
    assert len([m for m in messages if "login-refused" in m]) == 1
    assert not any("hunter2" in m or user in m for m in messages)
    assert "hunter2" not in repr(options)
    asked = len(running.laboratory.asked)
    async with collecting(replace(options, login_pause=60.0), make_spool()) as collector:
        await eventually(lambda: collector.status.trouble == "login-refused")
        await asyncio.sleep(0.3)
    assert len(running.laboratory.asked) == asked + 1


async def test_nothing_is_taken_for_a_mailbox_that_is_not_here(
    running: Running, user: str, make_spool: MakeSpool
) -> None:
    append(running, user, mail(1))
    async with collecting(options_for(running, user, deliver_to="x@y.example"), make_spool()) as collector:
        await eventually(lambda: collector.status.trouble == "mailbox-unknown")
    assert search(running, user, f"UNKEYWORD {KEYWORD}") == 1


async def test_an_unknown_certificate_gets_no_password(running: Running, user: str, make_spool: MakeSpool) -> None:
    asked = len(running.laboratory.asked)
    options = options_for(running, user, context=ssl.create_default_context())
    async with collecting(options, make_spool()) as collector:
        await eventually(lambda: collector.status.trouble == "SSLCertVerificationError")
    assert len(running.laboratory.asked) == asked


@pytest.mark.parametrize(
    "change",
    [
        {"context": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)},
        {"deliver_to": "nobody"},
        {"folder": "INBOX\r\nA LOGOUT"},
        {"move_to": "été"},
        {"user": ""},
        {"password": "a\nb"},
        {"idle_seconds": 1800.0},
    ],
)
def test_unsafe_options_are_refused(change: dict[str, object]) -> None:
    options = CollectorOptions("n", "h", "u", "p", HERE, ssl.create_default_context())
    with pytest.raises(ValueError):
        replace(options, **change)


# Servers that mean harm, or do not know better


class Scripted:
    """An IMAP server over TLS that answers well, but for the commands a test gives it."""

    def __init__(self, directory: Path, message: bytes = mail(1), **answers: bytes) -> None:
        self.message = message
        self.answers = answers
        self.connections = 0
        self.marked: list[str] = []
        self.chain, key = write_certificate(directory)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.chain, key)
        self.port = 0

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            writer.write(self.answers.get("greeting", b"* OK ready\r\n"))
            while line := await reader.readline():
                tag, _, command = line.decode().strip().partition(" ")
                if tag == "DONE":
                    writer.write(self.idle_tag + b" OK done\r\n")
                    continue
                await self.obey(tag.encode(), command, reader, writer)
                await writer.drain()
        writer.close()

    async def obey(self, tag: bytes, command: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.answer(tag, command))

    def answer(self, tag: bytes, command: str) -> bytes:
        words = command.replace("UID ", "").split() or [""]
        name = words[0].lower() + ("_size" if "SIZE" in command else "")
        if words[0] == "STORE":
            self.marked.append(command)
        if words[0] == "IDLE":
            self.idle_tag = tag
        plain = {
            "capability": b"* CAPABILITY IMAP4rev1 IDLE\r\n",
            "select": b"* 1 EXISTS\r\n* OK [UIDVALIDITY 7] x\r\n* OK [PERMANENTFLAGS (\\Seen)] x\r\n",
            "search": b"* SEARCH 5\r\n",
            "fetch_size": b"* 1 FETCH (UID 5 RFC822.SIZE 60)\r\n",
            "fetch": b"* 1 FETCH (FLAGS (\\Recent))\r\n* 1 FETCH (BODY[] {%d}\r\n%s UID 5)\r\n"
            % (len(self.message), self.message),
            "idle": b"+ idling\r\n",
        }
        if name in self.answers:
            return self.answers[name].replace(b"TAG", tag)
        return plain.get(name, b"") + (b"" if name == "idle" else tag + b" OK done\r\n")


@asynccontextmanager
async def scripted(server: Scripted, spool: Spool, **changes: object) -> AsyncIterator[Collector]:
    served: list[tuple[asyncio.Task[None] | None, asyncio.StreamWriter]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append((asyncio.current_task(), writer))
        await server.converse(reader, writer)

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server.context)
    context = ssl.create_default_context(cafile=str(server.chain))
    options = CollectorOptions("m", "127.0.0.1", "u", "p", HERE, context, listening.sockets[0].getsockname()[1])
    options = replace(options, first_pause=0.02, longest_pause=0.05, command_seconds=1.0, **changes)
    loop = asyncio.get_running_loop()
    unhandled: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    try:
        async with collecting(options, spool) as collector:
            yield collector
    finally:
        listening.close()
        for _, writer in served:
            with contextlib.suppress(AttributeError):  # what asyncio's TLS raises when the client was first
                writer.transport.abort()
        await asyncio.gather(*(task for task, _ in served if task), return_exceptions=True)
        await asyncio.sleep(0)
    assert unhandled == []


@pytest.mark.parametrize("answers", [{"idle": b"TAG BAD\r\n"}, {"capability": b"* CAPABILITY IMAP4rev1\r\nTAG OK\r\n"}])
async def test_without_idle_the_folder_is_polled(
    tmp_path: Path, make_spool: MakeSpool, answers: dict[str, bytes]
) -> None:
    server, spool = Scripted(tmp_path, **answers), make_spool()
    async with scripted(server, spool, poll_seconds=0.05) as collector:
        await eventually(lambda: collector.status.connected)
        server.answers["search"] = b"* SEARCH 5 6\r\nTAG OK\r\n"
        server.answers["fetch_size"] = b"* 2 FETCH (UID 6 RFC822.SIZE 60)\r\nTAG OK\r\n"
        server.answers["fetch"] = b"* 2 FETCH (UID 6 BODY[] {%d}\r\n%s)\r\nTAG OK\r\n" % (len(mail(2)), mail(2))
        await eventually(lambda: collector.status.collected == 2)
    assert server.connections == 1


async def test_without_keywords_messages_become_seen(tmp_path: Path, make_spool: MakeSpool) -> None:
    server, spool = Scripted(tmp_path), make_spool()
    async with scripted(server, spool) as collector:
        await eventually(lambda: collector.status.connected)
    assert server.marked == [r"UID STORE 5 +FLAGS.SILENT (\Seen)"]
    assert [content for _, content in kept(spool)] == [mail(1)]


async def test_a_mark_that_is_refused_is_no_endless_loop(tmp_path: Path, make_spool: MakeSpool) -> None:
    server = Scripted(tmp_path, store=b"TAG NO read-only\r\n", idle=b"+ idling\r\n* 1 EXISTS\r\n")
    async with scripted(server, make_spool()) as collector:
        await eventually(lambda: collector.status.connected)
        await asyncio.sleep(0.2)
    assert (collector.status.collected, collector.status.repeated) == (1, 0)
    assert len(server.marked) == 1


async def test_a_connection_lost_before_the_mark_is_marked_at_the_next(tmp_path: Path, make_spool: MakeSpool) -> None:
    server = Scripted(tmp_path, store=b"ZZZ9 OK nonsense\r\n")
    async with scripted(server, make_spool()) as collector:
        await eventually(lambda: len(server.marked) == 2)
        del server.answers["store"]
        await eventually(lambda: collector.status.connected)
    assert collector.status.collected == 1
    assert collector.status.repeated >= 1


async def test_a_message_that_cannot_be_kept_holds_up_nobody(
    running: Running, user: str, make_spool: MakeSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = make_spool()
    append(running, user, mail(1), mail(2))
    accept = spool.accept

    def picky(submission: Submission) -> Accepted | Duplicate:
        if submission.content == mail(1):
            raise ZeroDivisionError
        return accept(submission)

    monkeypatch.setattr(spool, "accept", picky)
    async with collecting(options_for(running, user), spool) as collector:
        await eventually(lambda: collector.status.connected)
    assert (collector.status.collected, collector.status.refused) == (1, 1)
    assert search(running, user, f"UNKEYWORD {KEYWORD}") == 1


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (mail(1).replace(b"\r\n", b"\n"), refusals.LINE_ENDINGS),
        (mail(1) + b"\r\n.\n\r\nMAIL FROM:<x@y>\r\n", refusals.LINE_ENDINGS),
        (b"no header\r\n\r\nx\r\n", refusals.HEADER_INVALID),
        (b"From: a@b.example\r\nFrom: c@d.example\r\n\r\nx\r\n", refusals.HEADER_INVALID),
        (b"Received: x\r\n" * 30 + mail(1), refusals.TOO_MANY_HOPS),
    ],
)
async def test_what_the_road_does_not_carry_stays_upstream(
    tmp_path: Path, make_spool: MakeSpool, caplog: pytest.LogCaptureFixture, message: bytes, code: object
) -> None:
    server, spool = Scripted(tmp_path, message), make_spool()
    async with scripted(server, spool) as collector:
        await eventually(lambda: collector.status.connected)
    assert (collector.status.refused, server.marked, kept(spool)) == (1, [], [])
    assert code.code in caplog.text  # type: ignore[attr-defined]


HOSTILE: dict[str, dict[str, bytes]] = {
    "silence": {"greeting": b""},
    "turned away": {"greeting": b"* BYE no\r\n"},
    "not IMAP": {"greeting": b"\xff\xfe220 smtp ready\r\n\r\n"},
    "pre-authenticated": {"greeting": b"* PREAUTH hi\r\n"},
    "endless line": {"search": b"* SEARCH " + b"1" * 5_000_000},
    "endless lines": {"search": b"* OK x\r\n" * 530_000},
    "wrong tag": {"search": b"ZZZ1 OK done\r\n"},
    "words as numbers": {"search": b"* SEARCH 5 x\r\nTAG OK\r\n"},
    "immense number": {"search": b"* SEARCH " + b"9" * 5000 + b"\r\nTAG OK\r\n"},
    "immense literal size": {"fetch": b"* 1 FETCH (UID 5 BODY[] {" + b"9" * 5000 + b"}\r\n"},
    "a body without end": {"fetch": b"* 1 FETCH (UID 5 BODY[] {99999999999}\r\n" + b"x" * 5_000_000},
    "no capability": {"capability": b"* CAPABILITY \xff\r\nTAG OK\r\n"},
    "no uidvalidity": {"select": b"* OK [UIDVALIDITY x]\r\nTAG OK\r\n"},
    "select refused": {"select": b"TAG NO\r\n"},
    "hangs up": {"fetch_size": b"* BYE\r\n"},
    "non-ascii status": {"fetch_size": b"TAG \xe9K\r\n"},
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_a_hostile_server_costs_a_pause_and_nothing_else(
    tmp_path: Path, make_spool: MakeSpool, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    caplog.set_level(logging.DEBUG)
    server, spool = Scripted(tmp_path, **HOSTILE[case]), make_spool()
    expected_trouble = case != "hangs up"
    async with scripted(server, spool, max_message_bytes=100_000) as collector:
        await eventually(lambda: server.connections >= 2 or not expected_trouble)
        assert expected_trouble is False or collector.status.trouble
    stored = kept(spool)
    assert stored == []
    assert not any("xxxxx" in record.getMessage() or "99999" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    "fetch",
    [
        b"* 1 FETCH (UID 6 BODY[] {3}\r\nabc)\r\nTAG OK\r\n",
        b"* 1 FETCH (UID 5 BODY[] NIL)\r\nTAG OK\r\n",
        b"* 1 FETCH (UID 5 FLAGS ())\r\nTAG OK\r\n",
        b"TAG OK\r\n",
    ],
)
async def test_another_message_or_none_is_not_taken(tmp_path: Path, make_spool: MakeSpool, fetch: bytes) -> None:
    server, spool = Scripted(tmp_path, fetch=fetch), make_spool()
    async with scripted(server, spool) as collector:
        await eventually(lambda: collector.status.connected)
    assert (kept(spool), server.marked) == ([], [])


async def test_more_than_announced_is_too_large(tmp_path: Path, make_spool: MakeSpool) -> None:
    server, spool = Scripted(tmp_path, mail(1, "x" * 500)), make_spool()
    async with scripted(server, spool, max_message_bytes=300) as collector:
        await eventually(lambda: collector.status.connected)
    assert (collector.status.oversized, kept(spool)) == (1, [])


async def test_thousands_of_lines_in_one_packet_are_read(tmp_path: Path, make_spool: MakeSpool) -> None:
    chatter = b"".join(b"* %d EXPUNGE\r\n" % number for number in range(20_000))
    server, spool = Scripted(tmp_path, search=chatter + b"* SEARCH 5\r\nTAG OK\r\n"), make_spool()
    async with scripted(server, spool) as collector:
        await eventually(lambda: collector.status.collected == 1)


class Poisoned(Scripted):
    """UIDs 5, 6 and 7; what concerns UID 5 ends as the test wants."""

    def __init__(self, directory: Path, poison: bytes, *, already_its_size: bool) -> None:
        super().__init__(directory, search=b"* SEARCH 5 6 7\r\nTAG OK\r\n")
        self.poison = poison
        self.already_its_size = already_its_size

    def answer(self, tag: bytes, command: str) -> bytes:
        if not command.startswith("UID FETCH"):
            return super().answer(tag, command)
        uids = [int(uid) for uid in command.split()[2].split(",")]
        if 5 in uids and ("BODY" in command or self.already_its_size):
            return self.poison.replace(b"TAG", tag)
        if "SIZE" in command:
            lines = [b"* %d FETCH (UID %d RFC822.SIZE 60)\r\n" % (uid - 4, uid) for uid in uids]
        else:
            (uid,) = uids
            lines = [b"* %d FETCH (UID %d BODY[] {%d}\r\n%s)\r\n" % (uid - 4, uid, len(mail(uid)), mail(uid))]
        return b"".join(lines) + tag + b" OK done\r\n"


@pytest.mark.parametrize("already_its_size", [False, True])
@pytest.mark.parametrize(
    "poison",
    [
        b"TAG NO [SERVERBUG] it is broken\r\n",
        b"TAG BAD\r\n",
        b"* 1 FETCH (UID 5 BODY[] NIL)\r\nTAG OK\r\n",
        b"* BYE it is broken\r\nZZZ9 OK nonsense\r\n",
        b"* 1 FETCH (UID 5 BODY[] {" + b"9" * 5000 + b"}\r\n",
    ],
)
async def test_what_cannot_be_fetched_holds_up_nobody(
    tmp_path: Path, make_spool: MakeSpool, caplog: pytest.LogCaptureFixture, poison: bytes, already_its_size: bool
) -> None:
    server, spool = Poisoned(tmp_path, poison, already_its_size=already_its_size), make_spool()
    async with scripted(server, spool, message_seconds=0.3, idle_seconds=0.05) as collector:
        await eventually(lambda: collector.status.collected == 2)
        await eventually(lambda: collector.status.connected)
        await eventually(lambda: collector.status.refused == 1)
        server.poison = b"* 1 FETCH (UID 5 RFC822.SIZE 60 BODY[] {%d}\r\n%s)\r\nTAG OK\r\n" % (len(mail(5)), mail(5))
        await eventually(lambda: collector.status.collected == 3)
    assert sorted(content for _, content in kept(spool)) == [mail(5), mail(6), mail(7)]
    assert len([r for r in caplog.records if "UID 5 cannot be fetched" in r.getMessage()]) == 1


async def test_one_name_for_two_mailboxes_loses_nothing(running: Running, user: str, make_spool: MakeSpool) -> None:
    spool = make_spool()
    for reader in (HERE, "autre@hopital.example"):
        append(running, user, mail(1))
        async with collecting(options_for(running, user, deliver_to=reader), spool) as collector:
            await eventually(lambda one=collector: one.status.connected)
    assert sorted(lease.recipient for lease, _ in kept(spool)) == ["autre@hopital.example", HERE]


async def test_what_is_kept_is_logged_by_its_number(
    tmp_path: Path, make_spool: MakeSpool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    spool = make_spool()
    async with scripted(Scripted(tmp_path), spool) as collector:
        await eventually(lambda: collector.status.connected)
    ((lease, _),) = kept(spool)
    assert [r.getMessage() for r in caplog.records if "kept" in r.getMessage()] == [
        f"collector m: message {lease.spool_id} kept"
    ]


FLOODS: dict[str, dict[str, bytes]] = {
    "flags of nothing": {"fetch_size": b"* 1 FETCH ()\r\n" * 100_000},
    "one parenthesis and lines": {"fetch": b"* 1 FETCH (\r\n" + b"x\r\n" * 100_000},
    "literals of nothing": {"fetch": b"* 1 FETCH (BODY[] {1}\r\nx" * 100_000},
    "parentheses": {"fetch": (b"* 1 FETCH (" + b"(" * 100 + b"\r\n") * 20_000},
    "braces": {"fetch": b"* 1 FETCH (" + b"{1" * 500_000 + b"\r\n"},
    "line feeds": {"fetch": b"* 1 FETCH (" + b"\n" * 2_000_000},
}


@pytest.mark.parametrize("case", FLOODS)
async def test_a_flood_holds_up_nobody(tmp_path: Path, make_spool: MakeSpool, case: str) -> None:
    """The loop is everybody's: what one server sends is read in little time."""
    longest, last = 0.0, time.thread_time()

    async def watch() -> None:
        nonlocal longest, last
        while True:
            last = time.thread_time()
            await asyncio.sleep(0.01)
            longest = max(longest, time.thread_time() - last)

    server, spool = Scripted(tmp_path, **FLOODS[case]), make_spool()
    watching = asyncio.create_task(watch())
    async with scripted(server, spool) as collector:
        await eventually(lambda: bool(collector.status.trouble) and server.connections >= 2, 20.0)
    watching.cancel()
    assert longest < 2.0, "once it was hours"
    assert kept(spool) == []


async def test_an_answer_that_was_too_long_still_times_out() -> None:
    """The timer of the command is what is left when the connection does not end."""
    fetch = imap_client._Fetch("A1", "1", "(FLAGS)", timeout=0.05)
    fetch.append_to_resp(b"1 FETCH (", "Pending")
    with pytest.raises(imap_client.AnswerTooLongError):
        for _ in range(imap_client._MOST_LINES + 1):
            fetch.append_to_resp(b"x")
    with pytest.raises(aioimaplib.CommandTimeout):
        await asyncio.wait_for(fetch.wait(), 5.0)


async def test_a_cancellation_that_is_lost_is_said_again() -> None:
    """Until Python 3.12 `asyncio.wait_for` loses one that comes as its work is done; the collector then never ended."""
    lost, again = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        lost.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            again.set()
            raise OSError("its own affair") from None

    async def end(task: asyncio.Task[None]) -> None:
        await collecting_module._end(task)

    working = asyncio.create_task(work())
    await asyncio.sleep(0)
    ending = asyncio.create_task(end(working))
    await lost.wait()
    ending.cancel()  # whoever ends it is ended too, but not before
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert again.is_set()
    assert working.done()


@pytest.mark.parametrize("octets", [1, 2, 7])
async def test_an_answer_may_come_in_any_pieces(tmp_path: Path, make_spool: MakeSpool, octets: int) -> None:
    class Trickling(Scripted):
        async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            write = writer.write

            def in_pieces(data: bytes) -> None:
                for start in range(0, len(data), octets):
                    write(data[start : start + octets])  # each a record of TLS, and read as one

            writer.write = in_pieces  # type: ignore[method-assign]
            await super().converse(reader, writer)

    server, spool = Trickling(tmp_path, mail(1, "a\r\n\r\nb (c) {3}\r\n" * 20)), make_spool()
    async with scripted(server, spool) as collector:
        await eventually(lambda: collector.status.collected == 1 and collector.status.connected)
    assert [content for _, content in kept(spool)] == [server.message]


# How we sign in


async def test_an_access_token_opens_a_mailbox(running: Running, make_spool: MakeSpool) -> None:
    """Dovecot's own XOAUTH2; asked for anew at each login, and refused without a wait for what never comes."""
    user, spool, asked = "labo@ville.mssante.test", make_spool(), []
    tokens = iter(["expired", TOKEN])

    def token() -> str:
        asked.append(1)
        return next(tokens)

    with running.imap() as client:
        said = f"user={user}\x01auth=Bearer {TOKEN}\x01\x01".encode()
        client.authenticate("XOAUTH2", lambda _: said)
        assert client.append("INBOX", None, None, mail(1))[0] == "OK"
    options = options_for(running, user, sign_in=SignIn.TOKEN, secret=token, password="", login_pause=0.05)
    async with collecting(options, spool) as collector:
        await eventually(lambda: collector.status.trouble == "login-refused")
        await eventually(lambda: collector.status.collected == 1)
    assert len(asked) == 2
    running.laboratory.failures.clear()


class Authenticating(Scripted):
    """Takes what a client says in AUTHENTICATE, with or without SASL-IR."""

    def __init__(self, directory: Path, *, at_once: bool, verdict: bytes = b"OK") -> None:
        capability = b"* CAPABILITY IMAP4rev1 IDLE" + (b" SASL-IR" if at_once else b"") + b"\r\nTAG OK\r\n"
        super().__init__(directory, capability=capability)
        self.at_once, self.verdict = at_once, verdict
        self.said: list[str] = []

    async def obey(self, tag: bytes, command: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not command.startswith("AUTHENTICATE"):
            await super().obey(tag, command, reader, writer)
            return
        mechanism, _, response = command.removeprefix("AUTHENTICATE ").partition(" ")
        if not self.at_once:
            assert response == ""
            writer.write(b"+ \r\n")
            response = (await reader.readline()).decode().strip()
        self.said.append(f"{mechanism} {response}")
        if self.verdict != b"OK":
            writer.write(b"+ eyJzdGF0dXMiOiI0MDEifQ==\r\n")
            assert await reader.readline() == b"\r\n"
        writer.write(tag + b" " + self.verdict + b" done\r\n")


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_token_is_said_as_the_server_wants_it(tmp_path: Path, make_spool: MakeSpool, at_once: bool) -> None:
    server, spool = Authenticating(tmp_path, at_once=at_once), make_spool()
    async with scripted(server, spool, sign_in=SignIn.TOKEN, secret=lambda: "t0k.en") as collector:
        await eventually(lambda: collector.status.collected == 1)
    assert server.said == ["XOAUTH2 dXNlcj11AWF1dGg9QmVhcmVyIHQway5lbgEB"]


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_refused_token_is_told_and_not_shown(
    tmp_path: Path, make_spool: MakeSpool, caplog: pytest.LogCaptureFixture, at_once: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    server = Authenticating(tmp_path, at_once=at_once, verdict=b"NO")
    async with scripted(server, make_spool(), sign_in=SignIn.TOKEN, secret=lambda: "t0k.en") as collector:
        await eventually(lambda: collector.status.trouble == "login-refused")
    assert server.connections == 1
    assert "t0k" not in caplog.text and "dXNlcj11" not in caplog.text


async def test_a_server_that_asks_for_ever_is_left(tmp_path: Path, make_spool: MakeSpool) -> None:
    server = Scripted(tmp_path, authenticate=b"+ \r\n" * 1000)
    async with scripted(server, make_spool(), sign_in=SignIn.TOKEN, secret=lambda: "t0k.en") as collector:
        await eventually(lambda: server.connections >= 2)
        assert collector.status.trouble


async def test_without_a_secret_it_is_asked_for_again(tmp_path: Path, make_spool: MakeSpool) -> None:
    secrets: list[str] = ["bad\r\nA1 LOGOUT", ""]

    def secret() -> str:
        if not secrets:
            raise SecretUnavailableError("token-not-given")
        return secrets.pop()

    server = Authenticating(tmp_path, at_once=True)
    async with scripted(server, make_spool(), sign_in=SignIn.TOKEN, secret=secret) as collector:
        await eventually(lambda: collector.status.trouble == "secret-unusable")
        await eventually(lambda: collector.status.trouble == "token-not-given")
    assert server.said == []


@pytest.mark.parametrize(
    ("user", "at_once", "greeting", "said"),
    [
        ("u", True, b"* OK ready\r\n", ["EXTERNAL dQ=="]),
        ("", True, b"* OK ready\r\n", ["EXTERNAL ="]),
        ("", False, b"* OK ready\r\n", ["EXTERNAL "]),
        ("", True, b"* PREAUTH known\r\n", []),
    ],
)
async def test_a_certificate_opens_a_mailbox(
    tmp_path: Path, make_spool: MakeSpool, user: str, at_once: bool, greeting: bytes, said: list[str]
) -> None:
    """Over TLS that asks for one: without it the handshake fails."""
    server, spool = Authenticating(tmp_path, at_once=at_once), make_spool()
    server.answers["greeting"] = greeting
    (tmp_path / "client").mkdir()
    chain, key = write_certificate(tmp_path / "client")
    server.context.load_verify_locations(chain)
    server.context.verify_mode = ssl.CERT_REQUIRED
    ours = ssl.create_default_context(cafile=str(server.chain))
    changes: dict[str, object] = {"sign_in": SignIn.CERTIFICATE, "user": user, "password": ""}
    async with scripted(server, spool, context=ours, **changes) as collector:
        await eventually(lambda: bool(collector.status.trouble))
    assert server.said == []
    ours.load_cert_chain(chain, key)
    async with scripted(server, spool, context=ours, **changes) as collector:
        await eventually(lambda: collector.status.collected == 1)
    assert server.said == said


# Folders of any size


async def test_a_large_folder_is_looked_at_in_windows(
    running: Running, user: str, make_spool: MakeSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with more in it than one look may name: the rest comes when that is marked."""
    monkeypatch.setattr(collecting_module, "_MOST_AT_ONCE", 20)
    spool = make_spool()
    for after, first in ((After.MOVE, 0), (After.FLAG, 100)):
        append(running, user, *(mail(number) for number in range(first, first + 57)))
        async with collecting(options_for(running, user, search_window=7, after=after), spool) as collector:
            await eventually(lambda one=collector: one.status.collected == 57)
            append(running, user, *(mail(number) for number in range(first + 57, first + 60)))
            await eventually(lambda one=collector: one.status.collected == 60)
        assert collector.status.repeated == 0
    assert (len(kept(spool)), len(kept(spool))) == (100, 20)


async def test_a_full_folder_that_cannot_be_marked_is_told(
    tmp_path: Path, make_spool: MakeSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting_module, "_MOST_AT_ONCE", 1)
    server = Scripted(tmp_path, store=b"TAG NO read-only\r\n")
    async with scripted(server, make_spool()) as collector:
        await eventually(lambda: collector.status.trouble == "folder-too-full")
    assert collector.status.collected == 1


@pytest.mark.parametrize("stays", list(Stays))
async def test_only_what_may_stays_upstream(running: Running, user: str, make_spool: MakeSpool, stays: Stays) -> None:
    sealed = mail(2).replace(
        b"Subject", b"Content-Type: application/pkcs7-mime; smime-type=authEnveloped-data\r\nSubject"
    )
    signed = mail(3).replace(b"Subject", b"Content-Type: application/pkcs7-mime; smime-type=signed-data\r\nSubject")
    append(running, user, mail(1), sealed, signed)
    with running.log_in(user, PASSWORD) as client:  # what somebody else has deleted is not ours to expunge
        client.append("INBOX", r"(\Deleted)", None, mail(4))
    spool = make_spool()
    async with collecting(options_for(running, user, stays=stays), spool) as collector:
        await eventually(lambda: collector.status.collected == 3)
        await off(file_all, spool)
        gone = {Stays.EVERYTHING: 0, Stays.ENCRYPTED: 2, Stays.NOTHING: 3}[stays]
        await eventually(lambda: collector.status.removed == gone)
        await eventually(lambda: search(running, user, f"KEYWORD {KEYWORD}") == 3 - gone)
    assert search(running, user, "DELETED") == 1
    # to read it is for its reader, and nobody else may say that it was
    assert search(running, user, "SEEN") == 0


def file_all(spool: Spool, target: TargetKind = TargetKind.MAILBOX) -> None:
    for lease in spool.claim(100, 60.0):
        if lease.target is target:
            assert spool.settle(lease, Delivered("250 ok"))
        else:
            spool.release([lease])


async def test_what_is_not_filed_here_is_never_removed_there(
    running: Running, user: str, make_spool: MakeSpool, caplog: pytest.LogCaptureFixture
) -> None:
    append(running, user, mail(1), mail(2))
    spool = make_spool()
    options = options_for(running, user, stays=Stays.NOTHING, to_folder=True)
    async with collecting(options, spool) as collector:
        await eventually(lambda: collector.status.collected == 2)
        # the practice software has it: the mailbox, which counts, has not
        await off(file_all, spool, target=TargetKind.FOLDER)
        await asyncio.sleep(1.2)
        assert (collector.status.removed, search(running, user, "UNDELETED")) == (0, 2)
    # a restart forgets what it was waiting for, and learns it again
    async with collecting(options, spool) as collector:
        await eventually(lambda: collector.status.repeated == 2)
        leases = {spool.content(lease): lease for lease in spool.claim(100, 60.0)}
        assert spool.settle(leases[mail(1)], Failed(Refused(refusals.CONTENT_INVALID)))
        await eventually(lambda: search(running, user, f"UNDELETED UNSEEN KEYWORD {KEYWORD}") == 1)
        assert spool.settle(leases[mail(2)], Delivered("250 ok"))
        await eventually(lambda: collector.status.removed == 1)
    assert search(running, user, "ALL") == 1
    assert "not filed here" in caplog.text


async def test_what_cannot_be_removed_is_marked(tmp_path: Path, make_spool: MakeSpool) -> None:
    server = Scripted(tmp_path, select=KEYWORDS, store=b"TAG NO read-only\r\n", idle=b"+ idling\r\n* 1 EXISTS\r\n")
    spool = make_spool()
    async with scripted(server, spool, stays=Stays.NOTHING) as collector:
        await eventually(lambda: collector.status.collected == 1)
        await off(file_all, spool)
        await eventually(lambda: len(server.marked) == 2)
    assert server.marked == [
        rf"UID STORE 5 +FLAGS.SILENT (\Deleted {KEYWORD})",
        f"UID STORE 5 +FLAGS.SILENT ({KEYWORD})",
    ]
    assert collector.status.removed == 0


KEYWORDS = b"* 1 EXISTS\r\n* OK [UIDVALIDITY 7] x\r\n* OK [PERMANENTFLAGS (\\Seen \\Deleted \\*)] x\r\nTAG OK\r\n"


async def test_the_practice_software_gets_its_own_delivery(running: Running, user: str, make_spool: MakeSpool) -> None:
    """Of what is new: not of all the mailbox has held for years, which somebody has read."""
    with running.log_in(user, PASSWORD) as client:
        long_ago, lately = (imaplib.Time2Internaldate(time.time() - days * 86400) for days in (30, 2))
        client.append("INBOX", None, long_ago, mail(1))
        client.append("INBOX", r"(\Seen)", lately, mail(2))
        client.append("INBOX", r"(\Flagged \Seen)", long_ago, mail(3))
    spool = make_spool()
    async with collecting(options_for(running, user, to_folder=True), spool) as collector:
        await eventually(lambda: collector.status.collected == 3)
    found = kept(spool)
    assert {lease.recipient for lease, _ in found} == {HERE}
    by_target = {target: {text for lease, text in found if lease.target is target} for target in TargetKind}
    assert by_target[TargetKind.MAILBOX] == {mail(1), mail(2), mail(3)}
    assert by_target[TargetKind.FOLDER] == {mail(1), mail(2)}


async def test_what_nobody_here_could_open_stays_until_somebody_can(
    running: Running, user: str, make_spool: MakeSpool
) -> None:
    append(running, user, mail(1))
    keys: list[str] = []
    collector = Collector(options_for(running, user), make_spool(), lambda address: True, lambda address: bool(keys))
    task = asyncio.create_task(collector.run())
    try:
        await eventually(lambda: collector.status.trouble == "no-key")
        assert search(running, user, f"UNKEYWORD {KEYWORD} UNSEEN") == 1
        keys.append("imported")
        await eventually(lambda: collector.status.collected == 1)
    finally:
        await collector.stop()
        await task
