"""The folder from which practice software takes what arrived: each mail and its attachments as files, once.

One mail is `<stem>.eml` as it was opened, `<stem>.1.pdf`, `<stem>.2.zip`, ... for its attachments, and `<stem>.json`,
which lists them and is written last: whoever sees it sees all. The stem is the time of acceptance and the delivery's
own number, never a word of the mail: file names stand in the logs of other people's backups. Nor does a sender choose
what kind of file lies there: suffixes are from a short list, in which there is nothing that runs, no `json` and no
`eml`, so that nothing of a sender's is taken for what we say ourselves. What the software has
taken away does not come back: a hidden mark in `.taken/` remembers each delivery for a month.

The folder may lie on a share that is away for a night, full, or does not answer at all: its deliveries wait, one of
them at most with a thread, which is nobody else's; the mailbox does not. Files are readable by the group if that may
write into the folder too, else by us alone. Whoever may write into it cannot lead us out of it: everything is opened
relative to its descriptor, links are never followed.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import stat
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread

from bridges.dropfolder import write_into
from mta import refusals
from mta.message import Deferred, Delivered, Failed, Message, Outcome
from smime.mime import Budget, Entity, MimeError, parse_content_type, parse_entity, split_multipart
from smime.words import decoded_words
from trust.refusals import Refused

_TAKEN = ".taken"
_REMEMBERED_SECONDS = 31 * 86400.0
"""Longer than any delivery is tried."""
_SWEEP_SECONDS = 86400.0
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEPTH = 20
_SUFFIX = re.compile(r"\.([A-Za-z0-9]{1,8})$")
_SUFFIXES = {
    "application/pdf": "pdf",
    "application/zip": "zip",
    "application/xml": "xml",
    "text/xml": "xml",
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/tiff": "tif",
    "message/rfc822": "mail",
    "text/plain": "txt",
}
_KEPT = frozenset(
    {"pdf", "zip", "xml", "jpg", "jpeg", "png", "gif", "bmp", "tif", "tiff", "txt", "rtf", "doc", "docx", "odt"}
    | {"xls", "xlsx", "ods", "csv", "dcm", "hpr", "hprim", "hpm"}
)
"""Suffixes that a sender's own name of a file may have here."""
_SIGNATURES = ("application/pkcs7-signature", "application/x-pkcs7-signature")


@dataclass(frozen=True, slots=True)
class Attachment:
    """One leaf of a mail that is not its text."""

    name: str
    """As the sender called it, without any path; may be empty, and may name a patient."""
    media_type: str
    content: bytes

    @property
    def suffix(self) -> str:
        """For a file: as the sender's name has it when that is an ordinary one, else by its type."""
        found = _SUFFIX.search(self.name)
        said = found[1].lower() if found else ""
        return said if said in _KEPT else _SUFFIXES.get(self.media_type, "bin")


class PracticeFolder:
    """A `mta.message.PacedTarget` for `TargetKind.FOLDER`: one file after the other, in a thread of its own."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = folder
        self._clock = clock
        self._swept = float("-inf")
        self._attempt: Future[Outcome] | None = None
        """The last one; it goes on when nobody waits for it any more."""

    def resting(self) -> Collection[str]:
        """See `mta.message.PacedTarget`."""
        return ()

    def probing(self) -> Collection[str]:
        return ()

    def places(self, destination: str) -> int | None:
        return 1

    async def deliver(self, message: Message) -> Outcome:
        """See `mta.message.Target`. What the folder or its disk does defers."""
        if self._attempt is not None and not self._attempt.done():
            return Deferred(Refused(refusals.UNREACHABLE, "folder: busy"))
        attempt = self._attempt = Future()
        attempt.set_running_or_notify_cancel()  # who no longer waits does not end it
        # a daemon: whoever ends the process need not wait for a share that hangs
        Thread(target=self._work, args=(attempt, message), name="practice-folder", daemon=True).start()
        try:
            return await asyncio.wrap_future(attempt)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = refusals.STORAGE_FULL if full else refusals.UNREACHABLE
            return Deferred(Refused(reason, f"folder: {errno.errorcode.get(error.errno or 0, 'unknown')}"))

    def _work(self, attempt: Future[Outcome], message: Message) -> None:
        try:
            attempt.set_result(self._deliver(message))
        except BaseException as error:
            attempt.set_exception(error)

    def _deliver(self, message: Message) -> Outcome:
        folder = os.open(self._path, _FOLDER)
        mode = 0o640 if os.fstat(folder).st_mode & stat.S_IWGRP else 0o600
        try:
            with suppress(FileExistsError):
                os.mkdir(_TAKEN, 0o700, dir_fd=folder)
            taken = os.open(_TAKEN, _FOLDER, dir_fd=folder)
            try:
                if _exists(taken, message.delivery_id):
                    return Delivered("already in the folder")
                for name, content in _files(message):
                    write_into(folder, name, content, mode)
                write_into(taken, message.delivery_id, b"")
                self._sweep(taken)
            finally:
                os.close(taken)
        finally:
            os.close(folder)
        return Delivered("in the folder")

    def _sweep(self, taken: int) -> None:
        """Forget old marks, once a day."""
        now = self._clock()
        if now < self._swept + _SWEEP_SECONDS:
            return
        self._swept = now
        with os.scandir(taken) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            with suppress(OSError):
                if os.stat(name, dir_fd=taken, follow_symlinks=False).st_mtime < now - _REMEMBERED_SECONDS:
                    os.unlink(name, dir_fd=taken)


class NoFolder:
    """A `mta.message.Target` for `TargetKind.FOLDER` where there is none any more: what was meant for it ends."""

    async def deliver(self, message: Message) -> Outcome:
        """See `mta.message.Target`."""
        return Failed(Refused(refusals.NO_ROUTE, "there is no folder any more"))


def _exists(folder: int, name: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _files(message: Message) -> Iterator[tuple[str, bytes]]:
    """Names and contents, what lists them last."""
    at = datetime.fromtimestamp(message.accepted_at, UTC).strftime("%Y%m%dT%H%M%SZ")
    stem = f"{at}-{message.delivery_id}"
    found = attachments(message.content)
    listed = []
    for number, each in enumerate(found, start=1):
        name = f"{stem}.{number}.{each.suffix}"
        yield name, each.content
        listed.append({"file": name, "name": each.name, "type": each.media_type, "bytes": len(each.content)})
    yield f"{stem}.eml", message.content
    header = parse_entity(message.content)
    told = {
        "mail": f"{stem}.eml",
        "mailbox": message.recipient,
        "message_id": message.message_id,
        "from": _text(header, "from"),
        "subject": _text(header, "subject"),
        "verdict": next(iter(header.values("x-relais-verdict")), ""),
        "attachments": listed,
    }
    yield f"{stem}.json", json.dumps(told, indent=1, ensure_ascii=False).encode() + b"\n"


def _text(header: Entity, name: str) -> str:
    return decoded_words(next(iter(header.values(name)), ""))


def attachments(content: bytes) -> list[Attachment]:
    """Leaves that have a name, are called an attachment, or are no text; signatures aside. What cannot be taken apart
    is left to whoever reads the mail itself."""
    found: list[Attachment] = []
    budget = Budget()
    with suppress(MimeError):
        _collect(parse_entity(content), found, budget, 0)
    return found


def _collect(entity: Entity, found: list[Attachment], budget: Budget, depth: int) -> None:
    if depth > _DEPTH:
        return
    try:
        content_type = entity.content_type()
        if content_type.media_type.startswith("multipart/"):
            boundary = content_type.parameters.get("boundary", "")
            for start, stop in split_multipart(entity, boundary, budget):
                _collect(parse_entity(entity.source, start, stop), found, budget, depth + 1)
            return
        name = _name(entity, content_type.parameters.get("name", ""))
        attached = entity.values("content-disposition")[:1]
        is_attached = bool(attached) and attached[0].lower().startswith("attachment")
        is_text = content_type.media_type in ("text/plain", "text/html")
        if content_type.media_type in _SIGNATURES or (is_text and not name and not is_attached):
            return
        found.append(Attachment(name, content_type.media_type, bytes(entity.decoded())))
    except MimeError:  # one part that is broken hides no other
        return


def _name(entity: Entity, fallback: str) -> str:
    """The last component of what the sender calls the file (RFC 2183 §2.3), decoded, without control characters."""
    values = entity.values("content-disposition")
    said = ""
    if len(values) == 1:
        with suppress(MimeError):
            # its parameters are written as those of Content-Type are
            said = parse_content_type("x/" + values[0]).parameters.get("filename", "")
    name = decoded_words(said or fallback)
    name = name.replace("\\", "/").rpartition("/")[2]
    return "".join(each for each in name if each.isprintable())[:200]
