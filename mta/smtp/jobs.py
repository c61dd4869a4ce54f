"""One message on its way over a destination, and what the end of it means.

The words that `mta.smtp.destination` and the targets share: how a target says whether a connection may carry its
message (`Admit`), what a reply means for it (`Conclude`), how a connection is opened (`Open`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from mta import refusals
from mta.message import MAYBE_TAKEN, Deferred, Delivered, Failed, Outcome
from mta.smtp.client import Answered, SmtpConnection, Transaction
from trust.refusals import Refused


class NotOpenedError(Exception):
    """No connection could be had; `refused` says why in the catalogue's words."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.refusal.code)
        self.refused = refused


Admit = Callable[[SmtpConnection], "Refused | Awaitable[Refused | None] | None"]
"""Whether a message may go over a connection, asked right before it begins. Must not raise."""
Conclude = Callable[[SmtpConnection, Answered], Outcome]
Open = Callable[[], Awaitable[SmtpConnection]]
"""A new connection, greeted and secured. Raises `NotOpenedError`."""


class Job:
    """One message."""

    __slots__ = ("admit", "begun", "conclude", "connection", "future", "moves", "since", "transaction", "unknown")

    def __init__(self, transaction: Transaction, admit: Admit, conclude: Conclude) -> None:
        self.transaction = transaction
        self.admit = admit
        self.conclude = conclude
        self.future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.connection: SmtpConnection | None = None
        """Which has it in hand."""
        self.begun = False
        """Something of it was said over that connection."""
        self.moves = 0
        self.since = 0.0
        self.unknown = False
        """It was sent whole and never answered: whoever sends it again may make a second copy."""

    def end(self, outcome: Outcome) -> None:
        if not self.future.done():
            self.future.set_result(outcome)


def refused_outcome(refused: Refused) -> Outcome:
    return Failed(refused) if refused.refusal.permanent else Deferred(refused)


def untried(refused: Refused) -> Deferred:
    return Deferred(refused, tried=False)


def unanswered(how: str) -> Deferred:
    """It was sent whole; `how` the answer was missed."""
    return Deferred(Refused(refusals.CONNECTION_LOST, f"{how}; {MAYBE_TAKEN}"))


def delivered(answered: Answered, *, reports: bool = False) -> Outcome:
    """What a deciding reply means for the delivery; the peer's words are kept without addresses."""
    reply = answered.reply
    if answered.delivered:
        return Delivered(reply.words, reports=reports)
    words = f"{answered.step}: {reply.words}"
    # 503 tells of a conversation gone wrong, not of this message
    if reply.permanent and reply.code != 503:
        return Failed(Refused(refusals.REMOTE_REFUSED, words))
    return Deferred(Refused(refusals.REMOTE_DEFERRED, words))
