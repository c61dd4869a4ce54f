"""What practice software finds in its folder."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bridges import practice_folder
from bridges.dropfolder import write_into
from bridges.practice_folder import PracticeFolder, attachments
from mta import refusals
from mta.message import Deferred, Delivered, Message, Origin, PacedTarget

MAIL = b"""\
From: =?utf-8?q?Labo_des_Tilleuls?= <labo@op.example>\r
Subject: =?utf-8?q?R=C3=A9sultats?=\r
X-Relais-Verdict: decrypted=yes; signature=valid; signer=labo@op.example; path=-\r
Content-Type: multipart/signed; boundary=s; protocol="application/pkcs7-signature"\r
\r
--s\r
Content-Type: multipart/mixed; boundary=m\r
\r
--m\r
Content-Type: text/plain; charset=utf-8\r
\r
bonjour\r
--m\r
Content-Type: application/pdf\r
Content-Disposition: attachment; filename="../../etc/r=C3=A9sultat.PDF"\r
Content-Transfer-Encoding: base64\r
\r
JVBERi0=\r
--m\r
Content-Type: application/octet-stream; name*=utf-8''bilan%20sanguin.hpr\r
\r
HPRIM\r
--m\r
Content-Type: application/zip\r
Content-Transfer-Encoding: base64\r
\r
####\r
--m\r
Content-Type: text/plain\r
Content-Disposition: attachment\r
\r
note\r
--m--\r
--s\r
Content-Type: application/pkcs7-signature; name=smime.p7s\r
\r
MIIB\r
--s--\r
"""
MESSAGE = Message(
    message_id="<1@op.example>",
    spool_id="s1",
    delivery_id="0198c0ffee00d1",
    origin=Origin.COLLECTED,
    sender="labo@op.example",
    recipient="dr@ville.example",
    content=MAIL,
    content_type="message/rfc822",
    accepted_at=1_800_000_000.0,
)


def names(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir() if not each.name.startswith(".")}


async def test_a_mail_becomes_files_once(tmp_path: Path) -> None:
    folder = PracticeFolder(tmp_path)
    assert isinstance(await folder.deliver(MESSAGE), Delivered)
    stem = "20270115T080000Z-0198c0ffee00d1"
    assert names(tmp_path) == {f"{stem}.{each}" for each in ("1.pdf", "2.hpr", "3.zip", "4.txt", "eml", "json")}
    assert (tmp_path / f"{stem}.1.pdf").read_bytes() == b"%PDF-"
    assert (tmp_path / f"{stem}.2.hpr").read_bytes() == b"HPRIM"
    assert (tmp_path / f"{stem}.eml").read_bytes() == MAIL
    told = json.loads((tmp_path / f"{stem}.json").read_text())
    assert told["subject"] == "Résultats"
    assert told["verdict"].startswith("decrypted=yes")
    assert [each["name"] for each in told["attachments"]] == ["r=C3=A9sultat.PDF", "bilan sanguin.hpr", "", ""]
    # the software has taken them; whoever asks for the same delivery again changes nothing
    for each in names(tmp_path):
        (tmp_path / each).unlink()
    assert await folder.deliver(MESSAGE) == Delivered("already in the folder")
    assert names(tmp_path) == set()
    assert isinstance(await folder.deliver(replace(MESSAGE, delivery_id="0198c0ffee00d2")), Delivered)


@pytest.mark.parametrize("name", ["x.json", "x.JSON", "x.eml", "x.exe", "x.lnk", "x.html", "x.json .", "a.b.part"])
async def test_no_sender_says_what_kind_of_file_lies_there(tmp_path: Path, name: str) -> None:
    """Nobody may put his own manifest beside ours, nor what runs."""
    forged = MAIL.replace(b"bilan%20sanguin.hpr", name.replace(" ", "%20").encode()).replace(
        b"Content-Type: application/zip", b"Content-Type: message/rfc822; name=lettre"
    )
    written = []

    def spying(folder: int, name: str, content: bytes, mode: int = 0o600) -> None:
        written.append(name)
        write_into(folder, name, content, mode)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(practice_folder, "write_into", spying)
        assert isinstance(await PracticeFolder(tmp_path).deliver(replace(MESSAGE, content=forged)), Delivered)
    stem = "20270115T080000Z-0198c0ffee00d1"
    assert names(tmp_path) == {f"{stem}.{each}" for each in ("1.pdf", "2.bin", "3.mail", "4.txt", "eml", "json")}
    assert [each for each in written if each.endswith(".json")] == [f"{stem}.json"] == written[-2:-1]
    told = json.loads((tmp_path / f"{stem}.json").read_text())
    assert told["attachments"][1]["name"].startswith(name[:5])


@pytest.mark.parametrize(("folder", "file"), [(0o700, 0o600), (0o755, 0o600), (0o770, 0o640)])
async def test_files_are_for_those_who_may_write_there(tmp_path: Path, folder: int, file: int) -> None:
    tmp_path.chmod(folder)  # noqa: ASYNC240 - of the test itself
    assert isinstance(await PracticeFolder(tmp_path).deliver(MESSAGE), Delivered)
    assert {stat.S_IMODE((tmp_path / each).stat().st_mode) for each in names(tmp_path)} == {file}


async def test_a_share_that_hangs_holds_one_thread_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, entered = threading.Event(), threading.Event()

    def hang(folder: int, name: str, content: bytes, mode: int = 0o600) -> None:
        entered.set()
        released.wait(20)
        write_into(folder, name, content, mode)

    monkeypatch.setattr(practice_folder, "write_into", hang)
    folder = PracticeFolder(tmp_path)
    assert isinstance(folder, PacedTarget)
    assert folder.places("folder") == 1
    attempt = asyncio.create_task(folder.deliver(MESSAGE))
    assert await asyncio.to_thread(entered.wait, 20)
    attempt.cancel()  # as the worker does, in the end
    assert isinstance((await asyncio.gather(attempt, return_exceptions=True))[0], asyncio.CancelledError)
    for number in range(20):
        busy = await folder.deliver(replace(MESSAGE, delivery_id=f"0198c0ffee01{number:02}"))
        assert isinstance(busy, Deferred)
        assert busy.reason.detail == "folder: busy"
    assert [each.name for each in threading.enumerate()].count("practice-folder") == 1
    released.set()
    async with asyncio.timeout(20):
        while isinstance(await folder.deliver(MESSAGE), Deferred):  # noqa: ASYNC110 - of a thread that ends
            await asyncio.sleep(0.01)
    assert len(names(tmp_path)) == 6


async def test_marks_are_forgotten_after_a_month(tmp_path: Path) -> None:
    folder = PracticeFolder(tmp_path)
    await folder.deliver(MESSAGE)
    long_ago = time.time() - 32 * 86400.0
    os.utime(tmp_path / ".taken" / MESSAGE.delivery_id, (long_ago, long_ago))
    folder = PracticeFolder(tmp_path)  # another day: it looks once in each
    await folder.deliver(replace(MESSAGE, delivery_id="0198c0ffee00d2"))
    assert [each.name for each in (tmp_path / ".taken").iterdir()] == ["0198c0ffee00d2"]


async def test_a_folder_that_is_away_waits(tmp_path: Path) -> None:
    share = tmp_path / "partage"
    folder = PracticeFolder(share)
    outcome = await folder.deliver(MESSAGE)
    assert isinstance(outcome, Deferred)
    assert outcome.reason.refusal is refusals.UNREACHABLE
    assert outcome.reason.detail == "folder: ENOENT"
    share.mkdir()
    assert isinstance(await folder.deliver(MESSAGE), Delivered)


async def test_nobody_leads_us_out_of_the_folder(tmp_path: Path) -> None:
    outside, inside = tmp_path / "dehors", tmp_path / "dedans"
    outside.mkdir()
    inside.mkdir()
    (inside / ".taken").symlink_to(outside)
    assert isinstance(await PracticeFolder(inside).deliver(MESSAGE), Deferred)
    (inside / ".taken").unlink()
    stem = "20270115T080000Z-0198c0ffee00d1"
    (inside / f".{stem}.eml.part").symlink_to(outside / "victime")
    (inside / f"{stem}.json").symlink_to(outside / "victime")
    assert isinstance(await PracticeFolder(inside).deliver(MESSAGE), Delivered)
    assert not list(outside.iterdir())
    assert not (inside / f"{stem}.json").is_symlink()


def test_what_cannot_be_taken_apart_is_left_to_the_reader() -> None:
    deep = b"Content-Type: multipart/mixed; boundary=a\r\n\r\n" + b"--a\r\n"
    assert attachments(deep) == []
    assert attachments(b"\xff\xfe") == []
    assert attachments(b"Content-Type: text/plain\r\n\r\nbonjour\r\n") == []
    nested = b"Content-Type: application/pdf; name=x.pdf\r\n\r\n%PDF\r\n"
    for number in range(30):
        mark = b"b%d" % number
        nested = b"Content-Type: multipart/mixed; boundary=%s\r\n\r\n--%s\r\n%s--%s--\r\n" % (mark, mark, nested, mark)
    assert attachments(nested) == []
