"""Syslog as RFC 5424 writes it, over TLS (RFC 5425), TCP (RFC 6587 §3.4.1), UDP (RFC 5426) or a Unix socket.

One connection carries one batch and is closed in order, so that a server that went away is noticed before the batch is
called sent. Syslog has no acknowledgement: what a server read and then lost is not noticed, and UDP promises nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

_PORTS = {"tls": 6514, "tcp": 601, "udp": 514}
_GOODBYE_SECONDS = 2.0
_LARGEST_DATAGRAM = 65_000
BOM = "\ufeff".encode()
"""Begins a message that is UTF-8 (RFC 5424 §6.4)."""


class SyslogUnavailableError(OSError):
    """A batch could not be handed over, or not all of it; the text says where and why."""


@dataclass(frozen=True, slots=True)
class SyslogHeader:
    """What stands before a message; a field that is empty is written as the nil value."""

    priority: int
    """Facility * 8 + severity."""
    host: str
    application: str
    message_id: str

    def frame(self, text: bytes, at: datetime) -> bytes:
        """One SYSLOG-MSG (RFC 5424 §6), `at` aware; header fields are cut to what the standard allows."""
        stamp = at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        fields = (
            f"<{self.priority}>1",
            stamp,
            _printable(self.host, 255),
            _printable(self.application, 48),
            str(os.getpid()),
            _printable(self.message_id, 32),
            "-",
        )
        return " ".join(fields).encode("ascii") + b" " + text


def _printable(value: str, longest: int) -> str:
    return "".join(c if "!" <= c <= "~" else "_" for c in value)[:longest] or "-"


class SyslogAddress:
    """Where to: `tls://host[:port]`, `tcp://host[:port]`, `udp://host[:port]`, `unix:///path`. Raises ValueError."""

    def __init__(self, url: str, context: ssl.SSLContext | None = None, seconds: float = 10.0) -> None:
        """`context` is for TLS, which cannot do without; `seconds` for each connection and each message."""
        parts = urlsplit(url)
        self.url = url
        self._scheme, self._host, self._path = parts.scheme, parts.hostname or "", parts.path
        self._context = context
        self._seconds = seconds
        if self._scheme == "unix":
            if not self._path or self._host:
                raise ValueError(f"{url}: write unix:///path/of/the/socket")
            return
        if self._scheme not in _PORTS or not self._host or self._path.strip("/"):
            raise ValueError(f"{url}: write tls://host:port, tcp://host:port, udp://host:port or unix:///path")
        self._port = parts.port or _PORTS[self._scheme]
        self._host.encode("idna")  # what is no name at all is said now, not at every attempt
        if self._scheme == "tls" and context is None:
            raise ValueError(f"{url}: TLS needs to know whom to believe")

    def send(self, messages: Iterable[bytes]) -> int:
        """Hand over all of them; how many. Raises `SyslogUnavailableError`; some may have arrived then."""
        try:
            with contextlib.ExitStack() as stack:
                connection = stack.enter_context(self._connect())
                count = 0
                for message in messages:
                    self._hand_over(connection, message)
                    count += 1
                self._end(connection)
                return count
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            raise SyslogUnavailableError(f"{self.url} does not take our messages: {reason}") from error

    def _connect(self) -> socket.socket:
        if self._scheme == "unix":
            return self._connect_unix()
        if self._scheme == "udp":
            family, kind, protocol, _, address = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_DGRAM)[0]
            connection = socket.socket(family, kind, protocol)
            connection.settimeout(self._seconds)
            connection.connect(address)
            return connection
        plain = socket.create_connection((self._host, self._port), self._seconds)
        if self._context is None or self._scheme == "tcp":
            return plain
        try:
            return self._context.wrap_socket(plain, server_hostname=self._host)
        except BaseException:
            plain.close()
            raise

    def _connect_unix(self) -> socket.socket:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            connection = socket.socket(socket.AF_UNIX, kind)
            connection.settimeout(self._seconds)
            try:
                connection.connect(self._path)
            except OSError as error:
                connection.close()
                if error.errno != errno.EPROTOTYPE or kind == socket.SOCK_STREAM:
                    raise
            else:
                return connection
        raise OSError(errno.EPROTOTYPE, "no socket of a kind we know")

    def _hand_over(self, connection: socket.socket, message: bytes) -> None:
        if connection.type == socket.SOCK_DGRAM:
            if len(message) > _LARGEST_DATAGRAM:
                raise OSError(errno.EMSGSIZE, "a message is too long for a datagram, use tls://")
            connection.send(message)
        elif self._scheme == "unix":
            connection.sendall(message + b"\n")
        else:
            connection.sendall(str(len(message)).encode() + b" " + message)

    def _end(self, connection: socket.socket) -> None:
        """Say goodbye and wait a little for the answer: a connection that was reset under way shows here."""
        if connection.type == socket.SOCK_DGRAM:
            return
        deadline = time.monotonic() + _GOODBYE_SECONDS
        connection.settimeout(_GOODBYE_SECONDS)
        with contextlib.suppress(TimeoutError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            if isinstance(connection, ssl.SSLSocket):
                connection = connection.unwrap()
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096) and time.monotonic() < deadline:
                pass
