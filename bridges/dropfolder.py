"""A folder that hospital software writes letters into: `X.xml`, a CDA document, then `X.to`, one recipient per line.

A pair is taken once `X.to` stands there and neither file changed between two looks. It ends in `done/` beside
`X.result.json` and the letters to print, or in `rejected/` beside `X.reason.txt`; both are private to the gateway, or
also readable by the group that may write into the folder. Killed at any moment, the next start
does it again: the letter is then recognised as a duplicate, results are written whole or not at all, and the two files
are moved last. `X.to` moves first, because a list without its document is never mistaken for the next letter's.

Whoever may write into the folder may not lead us out of it: everything is opened relative to the folder's descriptor,
symbolic links are never followed. File names may name patients: they are not logged.
"""

from __future__ import annotations

import asyncio
import codecs
import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from bridges.cda import MAX_DOCUMENT_BYTES
from bridges.letters import LetterResult, Letters
from bridges.refusals import DOCUMENT_TOO_LARGE
from trust.refusals import HL7Code, Refusal, Refused

log = structlog.get_logger(__name__)

UNREADABLE = Refusal(
    code="bridges.drop-unreadable",
    smtp=554,
    enhanced="5.6.0",
    hl7=HL7Code.AE,
    condition="207",
    application="906",
    text="Write an ordinary file X.xml, then an ordinary file X.to in UTF-8 with one recipient per line.",
    text_fr="Écrivez un fichier ordinaire X.xml, puis un fichier ordinaire X.to en UTF-8, un destinataire par ligne.",
)
CATALOGUE = (UNREADABLE,)

_DONE, _REJECTED = "done", "rejected"
_LIST_BYTES = 64 * 1024
_TEMPORARY = (".tmp", ".part", ".partial", ".filepart", "~")
_GROUP_READS = 0o750
_LONGEST_STEM = 180
_LONGEST_PAUSE = 300.0
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_Seen = tuple[int, int, int]
"""What changes when a file does: inode, size, modification time in nanoseconds."""


@dataclass(frozen=True, slots=True)
class _Pair:
    stem: str
    document: _Seen
    recipients: _Seen


@dataclass(slots=True)
class _Pause:
    until: float
    seconds: float


class DropFolder:
    """Watches one folder for one sender. `run` is a task; the work is done in threads, one letter at a time."""

    def __init__(
        self,
        folder: Path,
        letters: Letters,
        sender: str,
        poll_seconds: float,
        *,
        to_dossier: bool = False,
        to_patient: bool = False,
    ) -> None:
        """`sender` is the service's mailbox; `to_dossier` and `to_patient` hold for every letter of the folder."""
        self._path = folder
        self._letters = letters
        self._sender = sender
        self._poll_seconds = poll_seconds
        self._wishes = {"to_dossier": to_dossier, "to_patient": to_patient}
        self._seen: dict[str, _Pair] = {}
        self._later: dict[str, _Pause] = {}
        self._recovered = False
        self._stopping = threading.Event()
        self._stop = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    async def run(self) -> None:
        """Look until stopped. A folder that is missing or not writable is looked for again, and told once."""
        self._idle.clear()
        told = ""
        try:
            while not self._stop.is_set():
                try:
                    await asyncio.to_thread(self.look)
                    told = ""
                except Exception as error:  # whatever stands in the folder must not end the gateway
                    if told != (told := getattr(error, "strerror", None) or type(error).__name__):
                        log.error("dropfolder.unusable", folder=str(self._path), error=told)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_seconds):
                        await self._stop.wait()
        finally:
            self._stopping.set()
            self._idle.set()

    async def stop(self) -> None:
        """End after the letter in hand."""
        self._stopping.set()
        self._stop.set()
        await self._idle.wait()

    def look(self) -> int:
        """One pass over the folder: how many letters were taken. Raises OSError when the folder cannot be used."""
        folder = os.open(self._path, _FOLDER)
        try:
            for name in (_DONE, _REJECTED):
                _make_folder(folder, name)
            if not self._recovered:
                _finish_moves(folder)
                self._recovered = True
            pairs = _pairs(folder)
            before, self._seen = self._seen, pairs
            self._later = {stem: pause for stem, pause in self._later.items() if stem in pairs}
            return sum(self._take(folder, pair) for stem, pair in pairs.items() if before.get(stem) == pair)
        finally:
            os.close(folder)

    def _take(self, folder: int, pair: _Pair) -> bool:
        """Whether the pair came to an end; what cannot be decided now is left and tried later, more and more rarely."""
        pause = self._later.get(pair.stem)
        if self._stopping.is_set() or (pause is not None and time.monotonic() < pause.until):
            return False
        try:
            return self._submit(folder, pair)
        except Exception as error:  # the store, the disk, or our own bug: one letter must not stop the others
            log.error("dropfolder.not-taken", exc_info=error)
        seconds = self._poll_seconds if pause is None else min(pause.seconds * 2, _LONGEST_PAUSE)
        self._later[pair.stem] = _Pause(time.monotonic() + seconds, seconds)
        return False

    def _submit(self, folder: int, pair: _Pair) -> bool:
        document = _read(folder, pair.stem + ".xml", pair.document, MAX_DOCUMENT_BYTES)
        listed = _read(folder, pair.stem + ".to", pair.recipients, _LIST_BYTES)
        if document is None or listed is None:
            return False
        result, digest = self._letter(document, listed)
        where = _DONE if result.refused is None else _REJECTED
        target = os.open(where, _FOLDER, dir_fd=folder)
        try:
            stem = _free_stem(target, pair.stem)
            for name, content in _results(stem, pair.stem, digest, result):
                # readable by the group when the folder is
                write_into(target, name, content, 0o600 | os.fstat(target).st_mode & stat.S_IRGRP)
            _move(folder, pair.stem + ".to", pair.recipients, target, stem + ".to")
            _move(folder, pair.stem + ".xml", pair.document, target, stem + ".xml")
        finally:
            os.close(target)
        code = result.refused.refusal.code if result.refused is not None else ""
        log.info(
            "dropfolder.taken",
            spool_id=result.spool_id,
            code=code,
            reached=len(result.reached),
            unreached=len(result.unreached),
        )
        return True

    def _letter(self, document: bytes | Refused, listed: bytes | Refused) -> tuple[LetterResult, str]:
        """What became of it, and the document's SHA-256 (empty when it was not read)."""
        if isinstance(document, Refused):
            return LetterResult(False, "", False, (), (), document), ""
        digest = hashlib.sha256(document).hexdigest()
        if isinstance(listed, Refused):
            return LetterResult(False, "", False, (), (), listed), digest
        recipients = _recipients(listed)
        result = self._letters.submit(document, sender=self._sender, recipients=recipients, **self._wishes)
        if result.refused is not None and not result.refused.refusal.permanent:
            raise TemporaryRefusalError(result.refused.refusal.code)
        return result, digest


class TemporaryRefusalError(Exception):
    """The letter cannot be decided now: its pair stays and is tried again."""


def _make_folder(folder: int, name: str) -> None:
    """Private; the group that may write letters may read the answers."""
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=folder)
        if os.fstat(folder).st_mode & stat.S_IWGRP:
            os.chmod(name, _GROUP_READS, dir_fd=folder)


def _pairs(folder: int) -> dict[str, _Pair]:
    """The pairs that stand there now, by stem."""
    found = {}
    names = _names(folder)
    for name in sorted(names):
        stem = name.removesuffix(".to")
        hidden = name.startswith((".", "~", "#")) or stem.lower().endswith(_TEMPORARY)
        if hidden or stem == name or not stem or stem + ".xml" not in names:
            continue
        try:
            pair = _Pair(stem, _seen(folder, stem + ".xml"), _seen(folder, name))
        except FileNotFoundError:
            continue
        found[stem] = pair
    return found


def _names(folder: int) -> set[str]:
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries}


def _seen(folder: int, name: str) -> _Seen:
    found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    return found.st_ino, found.st_size, found.st_mtime_ns


def _read(folder: int, name: str, seen: _Seen, limit: int) -> bytes | Refused | None:
    """The whole file as it was seen; None when it has changed since, `Refused` when it is no ordinary file."""
    try:
        if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            return Refused(UNREADABLE)
        descriptor = os.open(name, _READ, dir_fd=folder)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as opened:
        if seen[1] > limit:
            return Refused(DOCUMENT_TOO_LARGE)
        content = opened.read(limit + 1)
        now = os.fstat(descriptor)
    same = (now.st_ino, now.st_size, now.st_mtime_ns) == seen and len(content) == now.st_size
    return content if same and stat.S_ISREG(now.st_mode) else None


def _recipients(listed: bytes) -> list[str]:
    """The lines that are not empty and no `#` comment; Windows also writes UTF-16 with its mark, and cp1252."""
    try:
        marked = listed.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = listed.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError:
        text = listed.decode("cp1252", "replace")
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _free_stem(target: int, stem: str) -> str:
    """A name no earlier letter has; the one of this same letter when we died before moving it."""
    short = stem if len(os.fsencode(stem)) <= _LONGEST_STEM else hashlib.sha256(os.fsencode(stem)).hexdigest()
    candidate, number = short, 1
    while _exists(target, candidate + ".to") or _exists(target, candidate + ".xml"):
        number += 1
        candidate = f"{short}-{number}"
    return candidate


def _exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _results(stem: str, original: str, digest: str, result: LetterResult) -> Iterator[tuple[str, bytes]]:
    """Files to write beside the letter, name and content; the JSON last, so that whoever sees it sees all.

    One at a time: fifteen letters of many megabytes each are never in memory together.
    """
    unreached = []
    for number, one in enumerate(result.unreached, start=1):
        name = ""
        if printed := one.printed:
            name = f"{stem}.courrier-{number}.pdf"
            yield name, printed
        unreached.append({"recipient": one.recipient, "code": one.code, "sentence": one.sentence, "printed": name})
    refused = result.refused
    if refused is not None:
        yield f"{stem}.reason.txt", f"{refused.refusal.text_fr}\n".encode()
    told = {
        "name": original,
        "document_sha256": digest,
        "accepted": result.accepted,
        "spool_id": result.spool_id,
        "duplicate": result.duplicate,
        "reached": list(result.reached),
        "unreached": unreached,
        "refused": None if refused is None else {"code": refused.refusal.code, "sentence": refused.refusal.text_fr},
    }
    yield f"{stem}.result.json", json.dumps(told, indent=1).encode("ascii") + b"\n"


def write_into(folder: int, name: str, content: bytes, mode: int = 0o600) -> None:
    """Whole or not at all, also after a power cut."""
    partial = f".{name}.part"
    with suppress(FileNotFoundError):
        os.unlink(partial, dir_fd=folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(partial, flags, 0o600, dir_fd=folder), "wb") as opened:
        os.fchmod(opened.fileno(), mode)
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    os.rename(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


def _move(folder: int, name: str, seen: _Seen, target: int, new_name: str) -> None:
    """Out of the way, unless the sender has meanwhile put the next letter there."""
    try:
        if _seen(folder, name) == seen:
            os.rename(name, new_name, src_dir_fd=folder, dst_dir_fd=target)
    except FileNotFoundError:
        return
    os.fsync(target)
    os.fsync(folder)


def _finish_moves(folder: int) -> None:
    """At start: the document of a letter whose list was moved already follows it, when it is still the same."""
    for where in (_DONE, _REJECTED):
        target = os.open(where, _FOLDER, dir_fd=folder)
        try:
            names = _names(target)
            for stem in (name.removesuffix(".to") for name in names if name.endswith(".to")):
                if stem + ".xml" not in names and stem + ".result.json" in names:
                    _finish_move(folder, target, stem)
        finally:
            os.close(target)


def _finish_move(folder: int, target: int, stem: str) -> None:
    # An old result somebody edited must not stop the folder; RecursionError: one nested a hundred thousand deep.
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        told = _read(target, stem + ".result.json", _seen(target, stem + ".result.json"), MAX_DOCUMENT_BYTES)
        if not isinstance(told, bytes):
            return
        result = json.loads(told)
        name = str(result["name"]) + ".xml"
        if os.sep in name or _exists(folder, str(result["name"]) + ".to"):
            return
        seen = _seen(folder, name)
        document = _read(folder, name, seen, MAX_DOCUMENT_BYTES)
        if isinstance(document, bytes) and hashlib.sha256(document).hexdigest() == result["document_sha256"]:
            _move(folder, name, seen, target, stem + ".xml")
