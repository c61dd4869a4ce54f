"""The folder from which practice software takes what arrived: each mail and its attachments as files, once.

One mail is `<stem>.eml` as it was opened, `<stem>.1.pdf`, `<stem>.2.zip`, ... for its attachments, and `<stem>.json`,
which lists them and is written last: whoever sees it sees all. The stem is the time of acceptance and the delivery's
own number, never a word of the mail: file names stand in the logs of other people's backups. What the software has
taken away does not come back: a hidden mark in `.taken/` remembers each delivery for a month.

The folder may lie on a share that is away for a night, or full: its deliveries wait, and the mailbox does not. Whoever
may write into it cannot lead us out of it: everything is opened relative to its descriptor, links are never followed.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bridges.dropfolder import write_into
from mta import refusals
from mta.message import Deferred, Delivered, Message, Outcome
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
    "message/rfc822": "eml",
    "text/plain": "txt",
}
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
        """For a file: as the sender's name has it when that is plain, else by its type."""
        found = _SUFFIX.search(self.name)
        return found[1].lower() if found else _SUFFIXES.get(self.media_type, "bin")


class PracticeFolder:
    """A `mta.message.Target` for `TargetKind.FOLDER`. Blocking work runs in threads."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = folder
        self._clock = clock
        self._swept = float("-inf")

    async def deliver(self, message: Message) -> Outcome:
        """See `mta.message.Target`. What the folder or its disk does defers."""
        try:
            return await asyncio.to_thread(self._deliver, message)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = refusals.STORAGE_FULL if full else refusals.UNREACHABLE
            return Deferred(Refused(reason, f"folder: {errno.errorcode.get(error.errno or 0, 'unknown')}"))

    def _deliver(self, message: Message) -> Outcome:
        folder = os.open(self._path, _FOLDER)
        try:
            with suppress(FileExistsError):
                os.mkdir(_TAKEN, 0o700, dir_fd=folder)
            taken = os.open(_TAKEN, _FOLDER, dir_fd=folder)
            try:
                if _exists(taken, message.delivery_id):
                    return Delivered("already in the folder")
                for name, content in _files(message):
                    write_into(folder, name, content)
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
