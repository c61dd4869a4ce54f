"""The few lines before TLS begins, for whoever only wants to look: SMTP, IMAP and LDAP (RFC 3207, 3501 §6.2.1, 4511
§4.14).

The other side may be anything: every read has a limit in octets and all of them share one deadline, and whatever is not
the protocol ends in a `TalkError` whose text is one sentence.
"""

from __future__ import annotations

import socket
import time
from enum import Enum

_MAX_LINE = 4096
_MAX_LINES = 100
_LDAP_START_TLS = bytes.fromhex("301d02010177188016") + b"1.3.6.1.4.1.1466.20037"
_EXTENDED_RESPONSE = 0x78


class StartTls(Enum):
    """How a service begins TLS in the middle of a connection."""

    SMTP = "smtp"
    IMAP = "imap"
    LDAP = "ldap"


class TalkError(Exception):
    """The service did not come to TLS; the text is one sentence."""


class Plain:
    """A connection before TLS, read line by line or octet by octet until `deadline` (monotonic seconds)."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline

    def begin(self, how: StartTls, helo: str) -> None:
        """Ask for TLS and wait until the service agrees. Raises `TalkError`."""
        try:
            {StartTls.SMTP: self._smtp, StartTls.IMAP: self._imap, StartTls.LDAP: self._ldap}[how](helo)
        except TimeoutError as error:
            raise TalkError("The service did not say what its protocol asks for in time.") from error
        except OSError as error:
            raise TalkError(f"The connection broke before TLS began ({error.strerror or 'closed'}).") from error

    def _smtp(self, helo: str) -> None:
        greeting = self._reply()
        if not greeting[-1].startswith(b"220"):
            raise TalkError(f"The service does not greet like SMTP: {_shown(greeting[-1])}")
        self._send(f"EHLO {helo}\r\n".encode("ascii", "replace"))
        offered = self._reply()
        if not offered[-1].startswith(b"250"):
            raise TalkError(f"The service refuses EHLO: {_shown(offered[-1])}")
        if b"STARTTLS" not in {line[4:].strip().upper() for line in offered}:
            raise TalkError("The service does not offer STARTTLS.")
        self._send(b"STARTTLS\r\n")
        agreed = self._reply()
        if not agreed[-1].startswith(b"220"):
            raise TalkError(f"The service refuses STARTTLS: {_shown(agreed[-1])}")

    def _imap(self, _: str) -> None:
        greeting = self._line()
        if not greeting.upper().startswith(b"* OK"):
            raise TalkError(f"The service does not greet like IMAP: {_shown(greeting)}")
        self._send(b"a1 STARTTLS\r\n")
        for _line in range(_MAX_LINES):
            line = self._line()
            if line.startswith(b"a1 "):
                if not line.upper().startswith(b"A1 OK"):
                    raise TalkError(f"The service refuses STARTTLS: {_shown(line)}")
                return
        raise TalkError("The service talks and does not answer STARTTLS.")

    def _ldap(self, _: str) -> None:
        self._send(_LDAP_START_TLS)
        tag, content = self._element()
        if tag != 0x30:
            raise TalkError("The service does not answer like LDAP.")
        try:
            number_size = content[1]
            response = content[2 + number_size :]
            if content[0] != 0x02 or response[0] != _EXTENDED_RESPONSE:
                raise TalkError("The service does not answer StartTLS.")
            start = 2 if response[1] < 0x80 else 2 + response[1] - 0x80
            code = response[start + 2] if response[start : start + 2] == b"\x0a\x01" else -1
        except IndexError as error:
            raise TalkError("The service does not answer like LDAP.") from error
        if code != 0:
            raise TalkError(f"The service refuses StartTLS with LDAP result {code}.")

    def _reply(self) -> list[bytes]:
        """An SMTP reply of one or more lines (RFC 5321 §4.2)."""
        lines: list[bytes] = []
        while len(lines) < _MAX_LINES:
            lines.append(self._line())
            if lines[-1][3:4] != b"-":
                return lines
        raise TalkError("The service never ends its reply.")

    def _line(self) -> bytes:
        # octet by octet: nothing of what TLS sends may be read here
        line = bytearray()
        while not line.endswith(b"\n"):
            if len(line) >= _MAX_LINE:
                raise TalkError("The service sends a line without end.")
            line += self._octets(1)
        return bytes(line)

    def _element(self) -> tuple[int, bytes]:
        tag, length = self._octets(2)
        if length & 0x80:
            if not 0x80 < length <= 0x84:
                raise TalkError("The service does not answer like LDAP.")
            length = int.from_bytes(self._octets(length - 0x80), "big")
        if length > _MAX_LINE:
            raise TalkError("The service answers StartTLS with too much.")
        return tag, self._octets(length)

    def _octets(self, count: int) -> bytes:
        got = b""
        while len(got) < count:
            self._hurry()
            more = self._connection.recv(count - len(got))
            if not more:
                raise TalkError("The service closed the connection before TLS began.")
            got += more
        return got

    def _send(self, octets: bytes) -> None:
        self._hurry()
        self._connection.sendall(octets)

    def _hurry(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)


def _shown(line: bytes) -> str:
    """A stranger's words: printable ASCII, short."""
    return "".join(chr(octet) if 32 <= octet < 127 else "?" for octet in line.strip()[:120])
