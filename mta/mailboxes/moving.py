"""One mailbox put aside, brought back, or moved to another Dovecot, by Dovecot's own dsync.

What is put aside is a mailbox of Dovecot's in its own format, still encrypted with the mailbox's key, beside its sealed
key ring, its Sieve scripts and what each member of a team has seen. UIDs, flags and folders are kept: to a mail program
that comes back, nothing happened. The work is done inside Dovecot, asked for on doveadm's Unix socket: an argument of a
program could be read by everybody on the machine, and an address may hold a matricule.

A mailbox that is being moved is *held*: a file in its home makes every question of LMTP and IMAP "later" (451,
UNAVAILABLE), so that mail waits and nothing is filed on the side that is being left. What was moved out stands in that
file: only a mailbox that still holds just this is ever removed. While one is made what a copy was, it is held too: what
came in meanwhile would be deleted with what is not in the copy.
"""

from __future__ import annotations

import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mta.mailboxes.authentication import HELD
from mta.mailboxes.mailbox_keys import RING, MailboxKeys
from mta.mailboxes.sessions import end_sessions
from trust.store.durable import make_private_directory, sync_directory, write_durably

_LINE_LIMIT = 1024 * 1024
_PLAIN = re.compile(r"[!-)+->@-~]+")
"""Without what doveadm reads as a pattern."""
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._/+@=-]*")
_BESIDE = ("sieve", ".dovecot.sieve", "seen")
"""In a home, besides the mail and the ring."""
_PASSES = 10
_BETWEEN_PASSES = 0.5
_GOING = b"going"
"""In `HELD`: the mailbox is being removed."""


class CopyError(Exception):
    """It could not be done: a sentence that says why and what to do, without an address."""


class _BrokenOffError(CopyError):
    """Dovecot did not say how it ended, and may still be at work."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What is in a mailbox."""

    messages: int
    octets: int
    """As the mails were sent."""

    def written(self) -> bytes:
        """In `HELD`, once it was moved out."""
        return f"{self.messages} {self.octets}".encode("ascii")


class MailboxCopies:
    """For the mailboxes of one operator. Synchronous: a large mailbox takes minutes.

    Every method raises `CopyError`, `trust.sealing.VaultError` when a key ring is not this vault's or not this
    mailbox's, or OSError when the disk refuses. Directories are absolute, writable by the user Dovecot runs as.
    """

    def __init__(
        self,
        doveadm: Path,
        home_of: Callable[[str], Path | None],
        keys: MailboxKeys,
        memory: Path,
        timeout_seconds: float = 3600.0,
    ) -> None:
        """`doveadm`: its Unix socket. `memory`: Dovecot's directory on a tmpfs, for the header fields it remembers of a
        copy in clear."""
        self._doveadm = doveadm
        self._home_of = home_of
        self._keys = keys
        self._memory = memory
        self._timeout = timeout_seconds
        self._asking: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """End what is under way, which fails; from any thread."""
        with self._lock:
            self._closed = True
            for each in self._asking:
                with suppress(OSError):  # it has just ended
                    each.shutdown(socket.SHUT_RDWR)

    def backup(self, address: str, directory: Path) -> Holding:
        """Make `directory` what the mailbox is now; only what changed is written when it holds an earlier backup.

        Mail may come in and be read meanwhile.
        """
        home = self._home(address)
        _checked(directory, home)
        mine = self._keys.ring(address, home)
        make_private_directory(directory)
        if (directory / RING).exists():
            theirs = self._keys.read(address, directory / RING)  # another mailbox's backup is not overwritten
            if not set(theirs.generations) <= set(mine.generations):
                raise CopyError("the mailbox lost the key of this backup: restore it first, or name another directory")
        elif (directory / "mail").exists() or any(directory.iterdir()):
            raise CopyError("the directory holds something else: name an empty one, or this mailbox's last backup")
        write_durably(directory / RING, (home / RING).read_bytes())
        self._dsync(address, "backup", self._location(address, directory))
        for name in _BESIDE:
            _copy(home / name, directory / name)
        sync_directory(directory)
        return self.holding(address)

    def restore(self, address: str, directory: Path, *, exactly: bool = False, folder: str = "Restauration") -> Holding:
        """Bring back what `backup` put aside.

        Into an empty mailbox, or `exactly`, the mailbox becomes what it was, and what came since is gone; mail that
        comes meanwhile waits. Otherwise nothing is touched: what was put aside appears below the new `folder`.
        """
        home = self._home(address)
        self._readable(address, directory)
        self._keys.adopt(address, home, directory / RING)
        if exactly or self.holding(address).messages == 0:
            with self._kept_still(address):
                # Counted again: mail may have been filed before it was held.
                if self._settled(address).messages == 0 or exactly:
                    self._dsync(address, "backup", "-R", self._location(address, directory))
                    for name in _BESIDE:
                        _copy(directory / name, home / name)
                    return self.holding(address)
        self._dsync(address, "import", self._location(address, directory), folder, "all")
        return self.holding(address)

    @contextmanager
    def _kept_still(self, address: str) -> Iterator[None]:
        """Held, without sessions; afterwards as it was, unless Dovecot may still be at work on it."""
        held_before = (self._home(address) / HELD).exists()
        self.hold(address)
        try:
            self._end_sessions(address)
            yield
        except _BrokenOffError as error:
            raise CopyError(f"{error} The mailbox stays held until relais mailbox move --undo") from None
        except BaseException:
            if not held_before:
                self.release(address)
            raise
        if not held_before:
            self.release(address)

    def _end_sessions(self, address: str) -> None:
        if not end_sessions(self._doveadm, [address]):
            raise CopyError("Dovecot did not end the mailbox's sessions: is its doveadm socket there?")

    def _settled(self, address: str) -> Holding:
        """What is in a held mailbox, once deliveries that had begun are filed."""
        before = None
        for _ in range(_PASSES):
            held = self.holding(address)
            if held == before:
                return held
            before = held
            time.sleep(_BETWEEN_PASSES)
        raise CopyError("the mailbox goes on changing: try again")

    def move_out(self, address: str, directory: Path) -> Holding:
        """Write the mailbox into `directory` for its new place, and hold it from now on: its mail waits.

        `move_in` there, then `forget` here; or `release` here, and nothing happened.
        """
        self.backup(address, directory)  # the most of it while it is still in use
        self.hold(address)
        before = None
        for _ in range(_PASSES):  # a delivery that had begun may still be filed
            self._end_sessions(address)
            held = self.backup(address, directory)
            if held == before:
                write_durably(self._home(address) / HELD, held.written())
                return held
            before = held
            time.sleep(_BETWEEN_PASSES)
        raise CopyError("the mailbox goes on changing: try again, or release it")

    def move_in(self, address: str, directory: Path) -> Holding:
        """Make the mailbox here what `move_out` wrote, then open it. It must be empty here.

        When it breaks off once it has begun, the mailbox stays held: `restore` exactly goes on, `release` opens it.
        """
        home = self._home(address)
        self._readable(address, directory)
        self._keys.adopt(address, home, directory / RING)
        held_before = (home / HELD).exists()
        self.hold(address)
        try:
            if self._settled(address).messages:
                raise CopyError("the mailbox holds mail here: restore into it instead")
        except BaseException:
            if not held_before:
                self.release(address)
            raise
        held = self.restore(address, directory, exactly=True)
        self.release(address)
        return held

    def hold(self, address: str) -> None:
        """Let mail wait and nobody in, until `release`; also after a restart."""
        home = self._home(address)
        make_private_directory(home)
        write_durably(home / HELD, b"")

    def release(self, address: str) -> None:
        """As if it had never been held."""
        home = self._home(address)
        with suppress(FileNotFoundError):
            (home / HELD).unlink()
            sync_directory(home)

    def forget(self, address: str) -> None:
        """Remove a held mailbox from this place, mail and key: its new place has them."""
        home = self._home(address)
        try:
            moved_out = (home / HELD).read_bytes()
        except FileNotFoundError:
            raise CopyError("the mailbox is not held here: only one that was moved out is removed") from None
        if moved_out != _GOING:
            if not moved_out:
                raise CopyError("the mailbox was not moved out of here to the end: run --out again")
            if self.holding(address).written() != moved_out:
                raise CopyError("mail came since the mailbox was moved out: run --out and --in again")
            write_durably(home / HELD, _GOING)  # whatever interrupts it, it can be gone on with
        for each in home.iterdir():
            if each.name == HELD:
                continue
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each)
            else:
                each.unlink()
        sync_directory(home)
        forget_headers(self._memory, home)

    def holding(self, address: str) -> Holding:
        """What is in the mailbox."""
        rows = self._ask(address, "mailbox", "status", "-t", "messages vsize", "*")
        numbers = [int(each) for each in rows.split("\t") if each.isdigit()]
        if len(numbers) != 2:  # of all folders together: what else it may be, it is not "empty"
            raise CopyError("Dovecot did not say what the mailbox holds: its log says why")
        return Holding(*numbers)

    def _home(self, address: str) -> Path:
        home = self._home_of(address)
        if home is None or not _PLAIN.fullmatch(address):
            raise CopyError("no mailbox of ours has this address")
        return home

    def _readable(self, address: str, directory: Path) -> None:
        _checked(directory, self._home(address))
        if not (directory / RING).exists() or not (directory / "mail").is_dir():
            raise CopyError("the directory holds no backup of a mailbox")
        self._keys.read(address, directory / RING)

    def _location(self, address: str, directory: Path) -> str:
        # Spelt out: in what dsync is given nothing is expanded.
        return f"sdbox:{directory}/mail:INDEXCACHE={self._remembered(address)}"

    def _dsync(self, address: str, *command: str) -> None:
        """What Dovecot remembers of the copy meanwhile, in clear, goes with the work."""
        try:
            self._ask(address, *command)
        finally:
            shutil.rmtree(self._remembered(address), ignore_errors=True)

    def _remembered(self, address: str) -> Path:
        return self._memory / "copies" / self._home(address).name

    def _ask(self, address: str, *command: str) -> str:
        """The rows of a doveadm command run for one user (protocol version 1)."""
        try:
            with socket.socket(socket.AF_UNIX) as connection, self._ended_by_close(connection):
                connection.settimeout(self._timeout)
                connection.connect(str(self._doveadm))
                with connection.makefile("rb") as answers:
                    line = "\t".join(("", address.lower(), *command))
                    connection.sendall(f"VERSION\tdoveadm-server\t1\t0\n{line}\n".encode("ascii"))
                    _expect_ready(answers)
                    return _rows(answers)
        except (OSError, EOFError) as error:
            raise _BrokenOffError(
                f"Dovecot's doveadm socket does not answer ({type(error).__name__}): is it running?"
            ) from None

    @contextmanager
    def _ended_by_close(self, connection: socket.socket) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise CopyError("the gateway ends")
            self._asking.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._asking.discard(connection)


def forget_headers(memory: Path, home: Path) -> None:
    """What Dovecot remembers of the mails of a mailbox that is gone (`mta.mailboxes.dovecot.mail_location`)."""
    shutil.rmtree(memory / "headers" / str(home).lstrip("/"), ignore_errors=True)


def _expect_ready(answers: BinaryIO) -> None:
    if answers.readline(_LINE_LIMIT) != b"+\n":
        raise CopyError("Dovecot's doveadm socket wants a password: use its Unix socket")


def _rows(answers: BinaryIO) -> str:
    rows = ""
    while True:
        line = answers.readline(_LINE_LIMIT)
        if not line.endswith(b"\n"):
            raise EOFError
        text = line[:-1].decode("utf-8", "replace")
        if text == "+":
            return rows
        if text.startswith("-"):
            known = {"-NOUSER": "no account has this address", "-NOTFOUND": "Dovecot found nothing"}
            raise CopyError(known.get(text, "Dovecot could not do it: its log says why"))
        rows += text


def _checked(directory: Path, home: Path) -> None:
    if not _PLAIN_PATH.fullmatch(str(directory)):
        raise CopyError("the directory must be an absolute path of letters, digits and . _ / + @ = -")
    if directory.resolve().is_relative_to(home.resolve()):
        raise CopyError("the directory is the mailbox itself: name another one")


def _copy(source: Path, destination: Path) -> None:
    """Make `destination` the same file, link or tree as `source`, or nothing."""
    if destination.is_dir() and not destination.is_symlink():
        shutil.rmtree(destination)
    else:
        destination.unlink(missing_ok=True)
    if source.is_symlink():
        destination.symlink_to(source.readlink())
    elif source.is_dir():
        shutil.copytree(source, destination, symlinks=True)
    elif source.exists():
        shutil.copy2(source, destination)
