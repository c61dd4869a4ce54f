"""Whether a mail was looked at, asked of Dovecot: for readers whose mail program sends no receipts.

The IMAP flag `\\Seen` says that some program of the mailbox's holder fetched the mail to show it. That is less than a
receipt, and is never called one. Of a mailbox that only machines open it says nothing of reading, nor of a mail that a
collector has marked as taken. The question goes to doveadm's Unix socket (doveadm protocol version 1), which
searches all mailboxes of one user.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mta.collecting import KEYWORD
from mta.mailboxes.dovecot import DELIVERY_HEADER

AT_ONCE = 50
"""Deliveries asked about in one question."""
_LINE_LIMIT = 64 * 1024
_PLAIN = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Looked:
    """What a mailbox says of some deliveries."""

    held: frozenset[str]
    """Delivery ids it still holds, in whatever folder."""
    seen: frozenset[str]
    """Of these, the ones that were looked at."""


class SeenMail:
    """Thread-safe. One connection for each question; blocks."""

    def __init__(
        self,
        socket_path: Path,
        timeout_seconds: float = 5.0,
        is_machine: Callable[[str], bool] = lambda address: False,
    ) -> None:
        """`is_machine`: whether nobody but software opens a mailbox."""
        self._socket = socket_path
        self._is_machine = is_machine
        self._timeout = timeout_seconds

    def look(self, address: str, delivery_ids: Collection[str]) -> Looked | None:
        """At most `AT_ONCE` deliveries to one mailbox. None when Dovecot does not say of this mailbox, also because it
        knows no such user: an identity that is taken away for a while has read nothing. Raises OSError when Dovecot
        does not answer at all."""
        wanted = [each for each in delivery_ids if _PLAIN.fullmatch(each)][:AT_ONCE]
        if not _PLAIN.fullmatch(address):
            return None  # the protocol separates with tabs and line feeds
        if not wanted:
            return Looked(frozenset(), frozenset())
        which = [word for each in wanted for word in ("or", "header", DELIVERY_HEADER, each)][1:]
        command = ("", address, "fetch", f"hdr.{DELIVERY_HEADER.lower()} flags", "mailbox", "*", "(", *which, ")")
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(self._timeout)
                connection.connect(str(self._socket))
                with connection.makefile("rb") as answers:
                    connection.sendall(b"VERSION\tdoveadm-server\t1\t0\n")
                    if _line(answers) != "+":  # of a Unix socket the peer is known: no authentication
                        return None
                    connection.sendall(("\t".join(command) + "\n").encode("ascii"))
                    looked = _answer(answers, frozenset(wanted))
        except EOFError as error:
            raise ConnectionError("doveadm hung up") from error
        if looked is not None and self._is_machine(address):
            return Looked(looked.held, frozenset())
        return looked


def _answer(answers: BinaryIO, wanted: frozenset[str]) -> Looked | None:
    held, seen = set[str](), set[str]()
    while True:
        line = _line(answers)
        if line == "+":
            return Looked(frozenset(held), frozenset(seen))
        if line.startswith("-"):
            return None
        cells = line.split("\t")
        for number in range(0, len(cells) - 1, 2):
            identity = cells[number].strip()
            if identity in wanted:
                held.add(identity)
                flags = cells[number + 1].split()
                if "\\Seen" in flags and KEYWORD not in flags:
                    seen.add(identity)


def _line(answers: BinaryIO) -> str:
    line = answers.readline(_LINE_LIMIT)
    if not line.endswith(b"\n"):
        raise EOFError
    return line[:-1].decode("ascii", "replace")
