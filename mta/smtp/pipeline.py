"""The client's side of mail transactions on one connection, without any I/O: what is said next, what each reply means,
and what is known of every message when the connection breaks.

A transaction's envelope goes in one flight where the server announces PIPELINING, and the next envelope goes with the
end of the message before it (RFC 2920 §3.1), so that a small message costs one round trip. The order of replies is the
order of commands: whatever breaks, each message was surely taken (its reply was read), surely not (its final dot was
never handed to the network), or nobody can know (RFC 1047).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from mta.smtp.reply import Reply, ReplyError

T = TypeVar("T")

END_OF_DATA = "end of data"
BLOCK = 256 * 1024
"""Octets of content written at once."""
_DATA = b"DATA\r\n"
_RSET = b"RSET\r\n"


@dataclass(frozen=True, slots=True)
class DsnRequest:
    """RFC 3461 parameters, as they go on the wire (xtext already encoded); empty ones are left out."""

    envid: str = ""
    ret: str = ""
    notify: str = ""
    orcpt: str = ""


@dataclass(frozen=True, slots=True)
class Transaction:
    """One message to one recipient. Addresses were checked to be plain (`mta.smtp.address.is_address`)."""

    sender: str
    recipient: str
    content: bytes
    """CRLF lines."""
    dsn: DsnRequest = DsnRequest()
    require_tls: bool = False
    """RFC 8689; the caller has checked that the server announces it."""
    utf8: bool = False
    """Its header is in UTF-8 (RFC 6531 §3.4); the caller has checked that the server announces SMTPUTF8."""


class Fate(Enum):
    """What is known of a message when its connection broke."""

    NOT_TAKEN = "not taken"
    """The server has not seen its end, or answers nothing any more to a mere envelope: it cannot have been taken."""
    UNKNOWN = "unknown"
    """All of it was sent and no reply came: it may have been taken."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The server decided."""

    reply: Reply
    step: str
    """`MAIL`, `RCPT`, `DATA` or `end of data`."""

    @property
    def delivered(self) -> bool:
        return self.step == END_OF_DATA and 200 <= self.reply.code < 300


@dataclass(frozen=True, slots=True)
class Broken:
    """The connection ended before the server decided."""

    step: str
    why: str
    fate: Fate
    innocent: bool = False
    """It stood behind another message, or the connection closed because of one: nothing of this was about it."""


Result = Answered | Broken


class _Phase(Enum):
    ENVELOPE = 1
    CONTENT = 2
    SENT = 3
    OVER = 4
    """Decided; replies to what was already said are still to come."""


class _Turn(Generic[T]):
    __slots__ = ("content", "offset", "phase", "refused", "token", "transaction")

    def __init__(self, transaction: Transaction, token: T) -> None:
        self.transaction = transaction
        self.token = token
        self.phase = _Phase.ENVELOPE
        self.refused = False
        self.content = memoryview(b"")
        self.offset = 0


class Pipeline(Generic[T]):
    """Feed it replies, write what `take` returns. `T` is whatever the caller knows a transaction by."""

    def __init__(self, capabilities: Mapping[str, str]) -> None:
        self._capabilities = capabilities
        self._pipelining = "PIPELINING" in capabilities
        self._turns: deque[_Turn[T]] = deque()
        self._expected: deque[tuple[_Turn[T], str]] = deque()
        self._outgoing: list[bytes] = []
        self.begun = 0
        """Transactions begun on this connection."""
        self.closing = False
        """No further transaction begins."""

    @property
    def empty(self) -> bool:
        """Nothing is under way and no reply is due."""
        return not self._turns and not self._expected

    @property
    def finished(self) -> bool:
        """The connection is of no more use: no message of which everything was sent still waits for its answer."""
        return self.closing and all(turn.phase is not _Phase.SENT for turn in self._turns)

    @property
    def ready(self) -> bool:
        """Another transaction may begin now."""
        if self.closing:
            return False
        if not self._turns:
            return not self._expected
        return self._pipelining and len(self._turns) == 1 and self._turns[0].phase is _Phase.SENT

    @property
    def waiting_for(self) -> str:
        """The step whose reply, or whose room for content, is awaited; empty when nothing is."""
        if self._expected:
            return self._expected[0][1]
        return "content" if self._turns and self._turns[0].phase is _Phase.CONTENT else ""

    def begin(self, transaction: Transaction, token: T) -> None:
        """Say the envelope. Only when `ready`."""
        if not self.ready:
            raise ValueError("a transaction was begun out of turn")
        turn = _Turn(transaction, token)
        self._turns.append(turn)
        self.begun += 1
        mail = self._mail(transaction)
        if self._pipelining:
            self._outgoing += (mail, self._rcpt(transaction), _DATA)
            self._expected += ((turn, "MAIL"), (turn, "RCPT"), (turn, "DATA"))
        else:
            self._say(turn, "MAIL", mail)

    def take(self) -> bytes:
        """What is to be written now, at most a little more than `BLOCK`; empty when there is nothing."""
        out = self._outgoing
        self._outgoing = []
        turn = self._turns[0] if self._turns else None
        if turn is not None and turn.phase is _Phase.CONTENT:
            end = turn.offset + BLOCK
            block = turn.content[turn.offset : end]
            turn.offset = end
            out.append(bytes(block))
            if end >= len(turn.content):
                out.append(b".\r\n" if bytes(turn.content[-2:]) == b"\r\n" else b"\r\n.\r\n")
                turn.content = memoryview(b"")
                turn.phase = _Phase.SENT
                self._expected.append((turn, END_OF_DATA))
        return b"".join(out) if len(out) > 1 else out[0] if out else b""

    def reply(self, reply: Reply) -> tuple[T, Answered] | None:
        """Take one reply; the transaction it decides, if it does. Raises `ReplyError` on one nobody asked for, or that
        no server may give here."""
        if not self._expected:
            turn = self._turns[0] if self._turns else None
            if turn is None or turn.phase is not _Phase.CONTENT or reply.code < 400:
                raise ReplyError("a reply nobody asked for")
            # a server that has had enough of this content: it decided, and nobody knows where its ears are now
            self.closing = True
            return self._decided(turn, reply, "DATA")
        turn, step = self._expected.popleft()
        match step:
            case "MAIL" | "RCPT":
                return self._envelope(turn, step, reply)
            case "DATA":
                return self._data(turn, reply)
            case _ if step == END_OF_DATA:
                if 300 <= reply.code < 400:
                    raise ReplyError("more is asked for after the end of the message")
                return self._decided(turn, reply, step)
            case _:  # RSET, or the end of a message nobody gets
                if not 200 <= reply.code < 300 and step == "RSET":
                    self.closing = True
                self._drop(turn)
        return None

    def reclaim(self) -> T | None:
        """Take back what waits behind a message whose answer is slow. What was said of it cannot be unsaid: the
        connection closes when that answer has come."""
        if len(self._turns) < 2:
            return None
        turn = self._turns.pop()
        turn.phase = _Phase.OVER
        self.closing = True
        while self._expected and self._expected[-1][0] is turn:
            self._expected.pop()
        return turn.token

    def broken(self, why: str) -> list[tuple[T, Broken]]:
        """The connection is lost: what is known of each transaction under way, the first first."""
        lost: list[tuple[T, Broken]] = []
        for turn in self._turns:
            if turn.phase is not _Phase.OVER:
                step = next((step for each, step in self._expected if each is turn), "DATA")
                fate = Fate.UNKNOWN if turn.phase is _Phase.SENT else Fate.NOT_TAKEN
                innocent = self.closing or turn is not self._turns[0]
                lost.append((turn.token, Broken(step, why, fate, innocent)))
        self._turns.clear()
        self._expected.clear()
        self._outgoing = []
        self.closing = True
        return lost

    def _envelope(self, turn: _Turn[T], step: str, reply: Reply) -> tuple[T, Answered] | None:
        if 200 <= reply.code < 300:
            if not self._pipelining and turn.phase is _Phase.ENVELOPE:
                if step == "MAIL":
                    self._say(turn, "RCPT", self._rcpt(turn.transaction))
                else:
                    self._say(turn, "DATA", _DATA)
            return None
        if reply.code < 400:
            raise ReplyError("a reply that fits no envelope")
        if turn.refused:
            self.closing |= reply.code == 421
            return None
        turn.refused = True
        if not self._pipelining and step != "MAIL":
            self._say(turn, "RSET", _RSET)
        return self._decided(turn, reply, step)

    def _data(self, turn: _Turn[T], reply: Reply) -> tuple[T, Answered] | None:
        if reply.code == 354:
            if turn.refused:
                # RFC 2920 §3.1: the server wants data although nobody is to have it; give it none
                self._say(turn, "nothing", b".\r\n")
                return None
            content = turn.transaction.content
            if content.startswith(b"."):
                content = b"." + content
            turn.content = memoryview(content.replace(b"\n.", b"\n.."))
            turn.phase = _Phase.CONTENT
            return None
        if reply.code < 400:
            raise ReplyError("DATA was answered as nothing can be")
        # MAIL may have been taken: leave no half transaction behind
        self._say(turn, "RSET", _RSET)
        return None if turn.refused else self._decided(turn, reply, "DATA")

    def _decided(self, turn: _Turn[T], reply: Reply, step: str) -> tuple[T, Answered]:
        turn.phase = _Phase.OVER
        # 421 is the last word of a server; 503 says that it and we are not in the same place
        if reply.code in (421, 503):
            self.closing = True
        self._drop(turn)
        return turn.token, Answered(reply, step)

    def _drop(self, turn: _Turn[T]) -> None:
        """Forget a turn that is over once no reply to it is due."""
        if turn.phase is _Phase.OVER and turn in self._turns and all(each is not turn for each, _ in self._expected):
            self._turns.remove(turn)

    def _say(self, turn: _Turn[T], step: str, line: bytes) -> None:
        self._outgoing.append(line)
        self._expected.append((turn, step))

    def _mail(self, transaction: Transaction) -> bytes:
        announced, dsn = self._capabilities, transaction.dsn
        line = f"MAIL FROM:<{transaction.sender}>"
        if "SIZE" in announced:
            line += f" SIZE={len(transaction.content)}"
        if "8BITMIME" in announced:
            line += f" BODY={'7BIT' if transaction.content.isascii() else '8BITMIME'}"
        if "DSN" in announced:
            line += f" RET={dsn.ret}" if dsn.ret else ""
            line += f" ENVID={dsn.envid}" if dsn.envid else ""
        if transaction.require_tls:
            line += " REQUIRETLS"
        if transaction.utf8:
            line += " SMTPUTF8"
        return f"{line}\r\n".encode("ascii")

    def _rcpt(self, transaction: Transaction) -> bytes:
        line, dsn = f"RCPT TO:<{transaction.recipient}>", transaction.dsn
        if "DSN" in self._capabilities:
            line += f" NOTIFY={dsn.notify}" if dsn.notify else ""
            line += f" ORCPT={dsn.orcpt}" if dsn.orcpt else ""
        return f"{line}\r\n".encode("ascii")
