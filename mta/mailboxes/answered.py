"""Who answered: in a team's mailbox the message that a member has answered says so to the others.

`\\Answered`, which every mail program shows, and a keyword that names the member are set by doveadm on the original,
once the answer is kept. It is a courtesy: while Dovecot does not answer the mail goes out all the same, unmarked; whose
account sent it is in its trace for good.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog

from mta.header import author_of
from mta.mailboxes.exchanges import answered_by
from mta.mailboxes.records import MailboxRegistry
from mta.mailboxes.registry import TEAMS
from smime.mime import Entity, MimeError, parse_entity
from trust.identities import Identity

KEYWORD = "$Repondu-"
"""Before the local part of the member's login."""
_MOST = 5
"""Messages that one answer is an answer to."""
_MOST_WAITING = 1000
"""Answers whose marks are still to be set; one on top goes unmarked."""
_LINE_LIMIT = 64 * 1024
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._-]")
_PLAIN = re.compile(r"[!-~]+")
_LONGEST_NAME = 40

log = structlog.get_logger(__name__)


class AnsweredMarks:
    """One thread of its own: no mail waits for it."""

    def __init__(self, registry: MailboxRegistry, doveadm: Path, timeout_seconds: float = 30.0) -> None:
        self._registry = registry
        self._doveadm = doveadm
        self._timeout = timeout_seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answered")
        self._waiting = threading.BoundedSemaphore(_MOST_WAITING)
        self._lock = threading.Lock()
        self._closed = False
        self._connection: socket.socket | None = None

    def sent(self, identity: Identity, content: bytes) -> None:
        """A mail of this account is kept. Returns at once and never raises."""
        end = content.find(b"\r\n\r\n")  # on the event loop: nothing of the body is copied
        header = content[: end + 4] if end >= 0 else b""
        if b"in-reply-to" not in header.lower() or not self._waiting.acquire(blocking=False):
            return
        try:
            self._thread.submit(self._work, identity, header)
        except RuntimeError:  # the gateway ends
            self._waiting.release()

    def close(self) -> None:
        """What has not begun is left, and what waits for Dovecot's answer does not wait on. Blocks for a moment."""
        with self._lock:
            self._closed = True
            if self._connection is not None:
                with contextlib.suppress(OSError):
                    self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _work(self, identity: Identity, header: bytes) -> None:
        try:
            self._look(identity, parse_entity(header))
        except MimeError:
            return
        except Exception as error:  # TimeoutError, OSError, a database that is away: its text may quote an address
            log.warning("mailbox.answer-not-marked", error=type(error).__name__)
        finally:
            self._waiting.release()

    def _look(self, identity: Identity, header: Entity) -> None:
        author, answered = (author_of(header) or "").lower(), answered_by(header)
        if not answered or author in identity.addresses or not _PLAIN.fullmatch(author):
            return
        record = self._registry.find(author)
        if record is not None and record.kind in TEAMS:
            for message_id in answered[:_MOST]:
                if self._closed:
                    return
                self._mark(author, f"\\Answered {keyword_of(identity.login)}", message_id)

    def _mark(self, address: str, flags: str, message_id: str) -> None:
        command = ("", address, "flags add", flags, "mailbox", "*", "header", "Message-ID", message_id)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(self._timeout)
            connection.connect(str(self._doveadm))
            with self._lock:
                if self._closed:
                    return
                self._connection = connection
            try:
                self._ask(connection, command)
            finally:
                with self._lock:
                    self._connection = None

    def _ask(self, connection: socket.socket, command: tuple[str, ...]) -> None:
        with connection.makefile("rb") as answers:
            connection.sendall(b"VERSION\tdoveadm-server\t1\t0\n")
            if answers.readline(_LINE_LIMIT) != b"+\n":  # of a Unix socket the peer is known: no authentication
                raise EOFError
            connection.sendall(("\t".join(command) + "\n").encode("ascii"))
            while (line := answers.readline(_LINE_LIMIT)) != b"+\n":
                if line.startswith(b"-") or not line.endswith(b"\n"):
                    raise EOFError


def keyword_of(login: str) -> str:
    """An IMAP keyword (RFC 9051, atom) that names who has this login."""
    return KEYWORD + _NOT_PLAIN.sub("_", login.partition("@")[0])[:_LONGEST_NAME]
