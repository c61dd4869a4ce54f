"""A whole road for the tests of faults: a spool, a worker, the target, a proxy that harms, and an operator's server.

Every test ends in one of two ways: each message was taken exactly once, or its deferral says clearly why it waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from directory.partners import PartnerBook
from directory.records import Partner
from mta.message import Deferred, Delivered, Failed, Message, Outcome, TargetKind
from mta.schedule import RetrySchedule
from mta.smtp.client import Timeouts
from mta.smtp.gate import GateOptions
from mta.smtp.pool import PoolOptions
from mta.smtp.target import SmtpTarget, SmtpTargetOptions
from mta.spool import Spool
from mta.worker import Worker, WorkerOptions
from tests.mta.conftest import MakeSpool, submission
from tests.mta.trust_space import Listed, TrustSpace
from tests.support.fault_proxy import Fault, FaultProxy, proxying
from tests.support.mail_server import MailServer, mail_server

SHORT = Timeouts(connect=1, greeting=0.5, tls=1, command=0.5, block=0.5, final=0.5)
GATE = GateOptions(first_rest_seconds=0.15, longest_rest_seconds=0.3)
LONG = Timeouts(connect=20, greeting=20, tls=20, command=20, block=20, final=20)
BOUND = 10.0
"""Seconds within which every test's story must have ended; a fault that is waited out takes half a second of it."""


class Watched:
    """A target that tells of every outcome."""

    def __init__(self, target: SmtpTarget) -> None:
        self.target = target
        self.outcomes: asyncio.Queue[tuple[str, Outcome]] = asyncio.Queue()

    async def deliver(self, message: Message) -> Outcome:
        outcome = await self.target.deliver(message)
        self.outcomes.put_nowait((message.recipient, outcome))
        return outcome

    def resting(self) -> object:
        return self.target.resting()

    def probing(self) -> object:
        return self.target.probing()

    def places(self, destination: str) -> int | None:
        return self.target.places(destination)


class Road:
    def __init__(self, spool: Spool, server: MailServer, proxy: FaultProxy, target: SmtpTarget) -> None:
        self.spool, self.server, self.proxy, self.target = spool, server, proxy, target
        self.watched = Watched(target)
        self.sent = 0
        self.worker: Worker | None = None
        self.ended = asyncio.Event()
        """A delivery came to its end, or something else was committed."""
        self._ids: list[str] = []
        loop = asyncio.get_running_loop()
        spool.listen(lambda: loop.call_soon_threadsafe(self.ended.set))

    def send(self, count: int = 1, size: int = 200, recipient: str = "b@op2.example") -> list[str]:
        """Accept messages; their numbers."""
        numbers = []
        for _ in range(count):
            self.sent += 1
            number = str(self.sent)
            content = f"From: a@labo.example\r\nX-Number: {number}\r\n\r\n".encode() + b"0123456789abcde\r\n" * (
                size // 17
            )
            accepted = self.spool.accept(submission(recipient, key=number, content=content))
            self._ids.append(accepted.spool_id)
            numbers.append(number)
        return numbers

    def spool_ids(self) -> list[str]:
        return list(self._ids)

    def expire_at_once(self) -> None:
        """Every message's time is over, five days early, and the worker looks for such messages now."""
        self.spool._schedule = replace(self.spool._schedule, lifetime=0.0)
        assert self.worker is not None
        self.worker._expired_at = float("-inf")

    async def outcome(self) -> Outcome:
        """The next outcome of an attempt that was made."""
        async with asyncio.timeout(BOUND):
            while True:
                _, outcome = await self.watched.outcomes.get()
                if not isinstance(outcome, Deferred):
                    return outcome
                if outcome.tried:
                    return outcome

    async def deferral(self, code: str) -> str:
        """The next outcome is a deferral; its words."""
        outcome = await self.outcome()
        assert isinstance(outcome, Deferred), outcome
        assert outcome.reason.refusal.code == code, outcome
        return outcome.reason.detail

    async def delivered(self, count: int = 1) -> list[Deferred]:
        """Wait until so many were delivered; the deferrals on the way."""
        found: list[Deferred] = []
        for _ in range(1000):
            outcome = await self.outcome()
            assert not isinstance(outcome, Failed), outcome
            if isinstance(outcome, Delivered):
                count -= 1
                if not count:
                    return found
            else:
                found.append(outcome)
        raise AssertionError("never delivered")

    def once(self, numbers: list[str]) -> None:
        """Each was taken exactly once, and nothing else was."""
        assert dict(self.server.taken) == dict.fromkeys(numbers, 1)


@pytest.fixture
def faults() -> tuple[Fault, ...]:
    """Of the first connections; tests say theirs by parametrizing."""
    return ()


@pytest.fixture
def timeouts() -> Timeouts:
    """Short where a fault is waited out; tests in which none is say longer ones."""
    return SHORT


@pytest.fixture
async def road(
    make_spool: MakeSpool, space: TrustSpace, listed: Listed, faults: tuple[Fault, ...], timeouts: Timeouts
) -> AsyncIterator[Road]:
    server = MailServer(space.server("two"))
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(mail_server(server))
        proxy = await stack.enter_async_context(proxying(port, *faults))
        target = SmtpTarget(
            PartnerBook([Partner("op2.example", "127.0.0.1", proxy.port)]),
            lambda: listed,
            space.client("one"),
            SmtpTargetOptions("gate.op1.example", timeouts, PoolOptions(GATE, rescue_seconds=0.1)),
        )
        stack.push_async_callback(target.close)
        spool = make_spool(schedule=RetrySchedule(pauses=(0.05,), jitter=0.0, lifetime=100.0))
        made = Road(spool, server, proxy, target)
        options = WorkerOptions(poll_seconds=0.05, attempt_seconds=30, lease_seconds=60)
        worker = made.worker = Worker(spool, (), {TargetKind.SMTP: made.watched}, options)
        running = asyncio.create_task(worker.run())
        try:
            yield made
        finally:
            await worker.stop(1)
            await running
