"""Ending the IMAP sessions of a mailbox: who was kept out must not go on reading because they were there before.

Dovecot asks who somebody is when they log in, and never again. Its `kick` command, asked for on doveadm's Unix socket
(doveadm protocol version 1), ends the processes that serve a user; clients that still may log in connect again by
themselves.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

_LINE_LIMIT = 64 * 1024
_NOBODY = "-NOTFOUND"
"""No session of that user is open."""
_PLAIN = re.compile(r"[!-)+->@-~]+")
"""Without what doveadm reads as a pattern."""


def end_sessions(doveadm: Path, addresses: Iterable[str], timeout_seconds: float = 5.0) -> bool:
    """End every session of these mailboxes, whoever opened it. Blocks; false when Dovecot did not say that it did."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_seconds)
            connection.connect(str(doveadm))
            with connection.makefile("rb") as answers:
                connection.sendall(b"VERSION\tdoveadm-server\t1\t0\n")
                if _line(answers) != "+":  # of a Unix socket the peer is known: no authentication
                    return False
                ended = [_end(connection, answers, address) for address in addresses]
                return all(ended)
    except (OSError, EOFError):  # TimeoutError is an OSError
        return False


def _end(connection: socket.socket, answers: BinaryIO, address: str) -> bool:
    if not _PLAIN.fullmatch(address):
        return False
    connection.sendall(f"\t\tkick\t{address}\n".encode("ascii"))
    _line(answers)  # who was found
    return _line(answers) in ("+", _NOBODY)


def _line(answers: BinaryIO) -> str:
    line = answers.readline(_LINE_LIMIT)
    if not line.endswith(b"\n"):
        raise EOFError
    return line[:-1].decode("ascii", "replace")
