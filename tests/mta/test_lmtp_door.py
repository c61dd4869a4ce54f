"""LMTP in over real sockets, swaks and smtplib as oracles: who may connect, as whom, and a reply for each recipient."""

from __future__ import annotations

import asyncio
import grp
import os
import smtplib
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from directory.partners import PartnerBook
from directory.records import Partner
from mta.delivery import Lease
from mta.header import received
from mta.message import Failed, Message, Origin, TargetKind
from mta.refusals import REMOTE_REFUSED
from mta.sizes import SizeLimits
from mta.smtp.door import DoorOptions
from mta.smtp.lmtp_door import LmtpDoor
from mta.smtp.policy import SubmissionRules
from mta.smtp.session import Limits
from mta.spool import Spool
from trust.accounts import Accounts
from trust.refusals import Refused
from trust.store.database import Database
from trust.vault import KeyVault

from .conftest import MakeSpool
from .smtp_client import Raw

HOST = "gate.op1.example"
LOCAL = {"dr.gris@op1.example"}
SIZES = SizeLimits(PartnerBook([Partner("petit.example", max_message_bytes=1000)]), [], "op1.example".__eq__)
WRITERS = {"urgences@op1.example", "dr.blanc@op1.example"}
MAIL = (
    b"From: Urgences <urgences@op1.example>\r\nTo: x@op2.example\r\nMessage-ID: <1@op1.example>\r\n"
    b"Date: Sat, 01 Jan 2028 00:00:00 +0000\r\nSubject: x\r\n\r\nhello\r\n"
)


@pytest.fixture
def spool(make_spool: MakeSpool) -> Spool:
    return make_spool()


@pytest.fixture
async def door(spool: Spool, database: Database, vault: KeyVault) -> AsyncIterator[LmtpDoor]:
    made = LmtpDoor(
        "hopital",
        spool,
        Accounts(database, vault),
        WRITERS.__contains__,
        LOCAL.__contains__,
        "op1.example".__eq__,
        {"op2.example", "petit.example"}.__contains__,
        DoorOptions(HOST, Limits(message_bytes=200_000, recipients=5, hops=5, stranger_seconds=0.2)),
        rules=SubmissionRules(too_large=SIZES.refused_as_it_is),
    )
    yield made
    await made.stop()


@pytest.fixture
async def path(door: LmtpDoor, tmp_path: Path) -> Path:
    await door.start_unix(tmp_path / "lmtp.sock")
    return tmp_path / "lmtp.sock"


@asynccontextmanager
async def client(path: Path) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_unix_connection(path)
    raw = Raw(reader, writer)
    try:
        assert await raw.reply() == f"220 {HOST} LMTP Relais"
        assert (await raw.say("LHLO mta.hopital.example")).startswith("250-")
        yield raw
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


async def sent(raw: Raw, *recipients: str, sender: str = "urgences@op1.example", mail: bytes = MAIL) -> list[str]:
    """The reply to each RCPT that was accepted."""
    assert (await raw.say(f"MAIL FROM:<{sender}>")).startswith("250")
    accepted = [(await raw.say(f"RCPT TO:<{each}>")).startswith("250") for each in recipients]
    assert (await raw.say("DATA")).startswith("354")
    raw.send(mail + b".\r\n")
    return [await raw.reply() for each in accepted if each]


def claimed(spool: Spool) -> list[Lease]:
    return spool.claim(100, 60)


async def test_an_ordinary_client(path: Path, spool: Spool) -> None:
    running = await asyncio.create_subprocess_exec(
        *("swaks", "--protocol", "LMTP", "--socket", str(path), "--ehlo", "mta.hopital.example"),
        *("--from", "urgences@op1.example", "--to", "x@op2.example,dr.gris@op1.example", "--data", "-"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await running.communicate(MAIL)
    assert running.returncode == 0, said.decode()
    assert said.count(b" kept") == 2
    leases = {lease.recipient: lease for lease in claimed(spool)}
    assert {name: lease.target for name, lease in leases.items()} == {
        "x@op2.example": TargetKind.SMTP,
        "dr.gris@op1.example": TargetKind.MAILBOX,
    }
    lease = leases["x@op2.example"]
    assert (lease.origin, lease.peer, lease.sender) == (Origin.LMTP, "lmtp:hopital", "urgences@op1.example")
    assert b"Subject: x\r\n\r\nhello\r\n" in spool.content(lease)
    assert len({each.spool_id for each in leases.values()}) == 1


async def test_each_recipient_has_a_reply(path: Path, spool: Spool) -> None:
    """In the order of RCPT, also for one that was named twice (RFC 2033 §4.2); kept for those it is kept for."""
    big = MAIL + b"x" * 900 + b"\r\n" + b"x" * 900 + b"\r\n"
    async with client(path) as raw:
        replies = await sent(
            raw,
            "x@op2.example",
            "nobody@op1.example",
            "a@petit.example",
            "X@op2.example",
            "dr.gris@op1.example",
            mail=big,
        )
        assert [reply[:9] for reply in replies] == ["250 2.6.0", "552 5.3.4", "250 2.6.0", "250 2.6.0"]
        assert [reply[:9] for reply in await sent(raw, "a@petit.example", mail=big)] == ["552 5.3.4"]
        assert [reply[:9] for reply in await sent(raw, "a@petit.example")] == ["250 2.6.0"]
    assert sorted(lease.recipient for lease in claimed(spool)) == [
        "a@petit.example",
        "dr.gris@op1.example",
        "x@op2.example",
    ]


async def test_what_is_wrong_with_the_content_is_told_each(path: Path, spool: Spool) -> None:
    async with client(path) as raw:
        for wrong, reply in (
            (MAIL.replace(b"urgences@", b"chef@"), "550 5.7.1"),
            (MAIL.replace(b"From:", b"Form:"), "554 5.6.0"),
            (MAIL.replace(b"Subject: x", b"Sender: chef@op1.example"), "550 5.7.1"),
            (b"Received: by x\r\n" * 5 + MAIL, "554 5.4.6"),
            (MAIL + b"x" * 998 + b"\r\n" + (b"x" * 998 + b"\r\n") * 220, "552 5.3.4"),
        ):
            replies = await sent(raw, "x@op2.example", "dr.gris@op1.example", mail=wrong)
            assert [each[:9] for each in replies] == [reply, reply]
    assert claimed(spool) == []


async def test_only_as_the_mailboxes_it_was_given(path: Path) -> None:
    async with client(path) as raw:
        assert (await raw.say("MAIL FROM:<chef@op1.example>")).startswith("550 5.7.1")
        assert (await raw.say("MAIL FROM:<dr.blanc@OP1.example>")).startswith("250")
        assert (await raw.say("RCPT TO:<x@elsewhere.example>")).startswith("550 5.7.1")
        assert (await raw.say("RCPT TO:<nobody@op1.example>")).startswith("550 5.1.1")
        assert (await raw.say("DATA")).startswith("503")
        assert (await raw.say("RSET")).startswith("250")
        # a null reverse-path is for read receipts, as for everybody who may write
        assert [each[:9] for each in await sent(raw, "x@op2.example", sender="")] == ["550 5.7.1"]


async def test_it_is_lmtp(path: Path) -> None:
    async with client(path) as raw:
        words = {line[4:] for line in (await raw.say("LHLO x")).splitlines()}
        assert words == {HOST, "SIZE 200000", "PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN"}
        for verb in ("EHLO x", "HELO x", "STARTTLS", "AUTH PLAIN AAAA", "BDAT 1 LAST"):
            assert (await raw.say(verb)).startswith("500 5.5.1")


async def test_without_lhlo_nothing(path: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    raw = Raw(reader, writer)
    await raw.reply()
    assert (await raw.say("MAIL FROM:<urgences@op1.example>")).startswith("503")
    writer.transport.abort()


async def test_pipelined(path: Path, spool: Spool) -> None:
    async with client(path) as raw:
        raw.send(
            b"MAIL FROM:<urgences@op1.example>\r\nRCPT TO:<x@op2.example> NOTIFY=NEVER\r\nRCPT TO:<no@no.example>\r\n"
            b"RCPT TO:<dr.gris@op1.example>\r\nDATA\r\n" + MAIL + b".\r\nMAIL FROM:<>\r\nQUIT\r\n"
        )
        codes = [(await raw.reply())[:3] for _ in range(9)]
        assert codes == ["250", "250", "550", "250", "354", "250", "250", "250", "221"]
    assert {lease.recipient: lease.notify for lease in claimed(spool)}["x@op2.example"] == "NEVER"


async def test_a_repeat_is_one_message_and_is_sent_again_to_whom_it_failed(path: Path, spool: Spool) -> None:
    async with client(path) as raw:
        for _ in range(2):
            assert [each[:3] for each in await sent(raw, "x@op2.example", "dr.gris@op1.example")] == ["250", "250"]
        leases = claimed(spool)
        assert len(leases) == 2
        (failed,) = (lease for lease in leases if lease.recipient == "x@op2.example")
        assert spool.settle(failed, Failed(Refused(REMOTE_REFUSED)))
        assert [each[:3] for each in await sent(raw, "x@op2.example", "dr.gris@op1.example")] == ["250", "250"]
        assert [lease.recipient for lease in claimed(spool)] == ["x@op2.example"]


async def test_what_goes_round_is_refused_for_whom_it_does(path: Path, spool: Spool) -> None:
    async with client(path) as raw:
        await sent(raw, "x@op2.example")
        (lease,) = claimed(spool)
        message = Message("<1@x>", lease.spool_id, "d", Origin.LMTP, "", "", b"", "message/rfc822", lease.accepted_at)
        back = received(HOST, message) + MAIL
        replies = await sent(raw, "x@op2.example", "dr.gris@op1.example", mail=back)
        assert [each[:9] for each in replies] == ["554 5.4.6", "250 2.6.0"]
    assert [lease.recipient for lease in claimed(spool)] == ["dr.gris@op1.example"]


async def test_a_disk_that_is_full_is_told_each(path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "full")

    monkeypatch.setattr(spool, "begin_accept", full)
    monkeypatch.setattr(spool, "accept", full)
    async with client(path) as raw:
        replies = await sent(raw, "x@op2.example", "dr.gris@op1.example")
        assert [each[:9] for each in replies] == ["452 4.3.1", "452 4.3.1"]


async def test_nobody_is_a_stranger(path: Path) -> None:
    async with client(path) as raw:
        await asyncio.sleep(0.4)  # longer than `stranger_seconds`
        assert [each[:3] for each in await sent(raw, "x@op2.example")] == ["250"]


async def test_the_socket_is_private(path: Path) -> None:
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600  # noqa: PTH116


async def test_or_a_group_s(door: LmtpDoor, tmp_path: Path) -> None:
    group = grp.getgrgid(os.getegid()).gr_name
    await door.start_unix(tmp_path / "group.sock", group)
    assert stat.S_IMODE((tmp_path / "group.sock").stat().st_mode) == 0o660
    with pytest.raises(ValueError, match="no group"):
        await door.start_unix(tmp_path / "none.sock", "no-such-group-here")


async def test_over_tcp_on_this_machine_only(door: LmtpDoor, spool: Spool) -> None:
    with pytest.raises(ValueError, match="loopback"):
        await door.start("0.0.0.0", 0)
    port = await door.start("127.0.0.1", 0)

    def submit() -> dict[str, tuple[int, bytes]]:
        with smtplib.LMTP("127.0.0.1", port, local_hostname="mta.hopital.example") as lmtp:
            refused: dict[str, tuple[int, bytes]] = lmtp.sendmail("urgences@op1.example", ["x@op2.example"], MAIL)
            return refused

    assert await asyncio.to_thread(submit) == {}
    assert len(claimed(spool)) == 1
