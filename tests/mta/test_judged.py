"""Both sides of operator TLS: besides handshake and list, our validator is asked, and the list in force counts.

One gateway delivers to another one over loopback; what changes between two messages (a revocation, a refreshed list, a
renewed certificate) shows with the next one, on the connection that is open.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
from cryptography import x509

from directory.partners import PartnerBook
from directory.records import Partner
from mta.message import Deferred, Delivered, Message, Origin, Outcome
from mta.smtp.client import Timeouts
from mta.smtp.door import DoorOptions, OperatorDoor
from mta.smtp.session import Limits
from mta.smtp.target import SmtpTarget, SmtpTargetOptions
from trust.certificates import CertificateValidator, Purpose
from trust.issuing import DemonstrationAuthority
from trust.tls import PeerJudge, peer_judge

from .conftest import MakeSpool
from .trust_space import Listed, TrustSpace

OPTIONS = DoorOptions("gate.op1.example", Limits(message_bytes=200_000))
MESSAGE = Message(
    message_id="<1@op2.example>",
    spool_id="s1",
    delivery_id="d1",
    origin=Origin.SUBMISSION,
    sender="labo@op2.example",
    recipient="dr.gris@op1.example",
    content=b"From: labo@op2.example\r\nMessage-ID: <%d@op2.example>\r\n\r\nhello\r\n",
    content_type="message/rfc822",
    accepted_at=0.0,
)


class Road:
    """Operator two delivers to operator one; everything that may change between two messages is an attribute."""

    def __init__(self, space: TrustSpace, listed: Listed, make_spool: MakeSpool) -> None:
        self.list_of_one: Listed = listed
        self.list_of_two: Listed = listed
        self.context = space.server("one")
        self.judge_of_one: PeerJudge = lambda _: ""
        self.judge_of_two: PeerJudge = lambda _: ""
        self.sent = 0
        self.space = space
        self.door = OperatorDoor(
            make_spool(),
            lambda: self.list_of_one,
            {"dr.gris@op1.example"}.__contains__,
            lambda: self.context,
            OPTIONS,
            self._judge_of_one,
        )

    def _judge_of_one(self, shown: Sequence[bytes]) -> str:
        return self.judge_of_one(shown)

    def _judge_of_two(self, shown: Sequence[bytes]) -> str:
        return self.judge_of_two(shown)

    async def start(self) -> None:
        port = self.port = await self.door.start("127.0.0.1", 0)
        self.target = SmtpTarget(
            PartnerBook([Partner("op1.example", "127.0.0.1", port)]),
            lambda: self.list_of_two,
            lambda: self.space.client("two"),
            SmtpTargetOptions("gate.op2.example", Timeouts(connect=5, greeting=5, tls=5, command=5, block=5, final=5)),
            self._judge_of_two,
        )

    async def deliver(self) -> Outcome:
        self.sent += 1
        content = MESSAGE.content % self.sent
        return await self.target.deliver(
            replace(MESSAGE, content=content, spool_id=f"s{self.sent}", message_id=f"<{self.sent}@op2.example>")
        )


@pytest.fixture
async def road(space: TrustSpace, listed: Listed, make_spool: MakeSpool) -> object:
    made = Road(space, listed, make_spool)
    await made.start()
    yield made
    await made.target.close()
    await made.door.stop()


def deferred(outcome: Outcome, code: str) -> str:
    assert isinstance(outcome, Deferred), outcome
    assert outcome.reason.refusal.code == code, outcome
    return outcome.reason.detail


async def test_real_validators_on_both_sides_let_a_message_through(road: Road, space: TrustSpace) -> None:
    validator = CertificateValidator([space.authority.root])
    road.judge_of_one = peer_judge(validator, Purpose.OPERATOR_TLS_CLIENT)
    road.judge_of_two = peer_judge(validator, Purpose.OPERATOR_TLS_SERVER)
    assert isinstance(await road.deliver(), Delivered)


async def test_judges_work_elsewhere_and_get_bytes_not_the_connection(road: Road) -> None:
    """OpenSSL frees the chain when a ticket comes: who read it in another thread than the connection's died of it."""
    asked: list[tuple[Sequence[bytes], threading.Thread]] = []

    def judge(shown: Sequence[bytes]) -> str:
        asked.append((shown, threading.current_thread()))
        return ""

    road.judge_of_one = road.judge_of_two = judge
    assert isinstance(await road.deliver(), Delivered)
    judged = {x509.load_der_x509_certificate(shown[0]).subject.rfc4514_string() for shown, _ in asked}
    assert len(judged) == 2, "the door's peer and the target's"
    assert threading.current_thread() not in {thread for _, thread in asked}


async def test_who_is_not_believed_any_more_hands_nothing_over(road: Road) -> None:
    assert isinstance(await road.deliver(), Delivered)
    stranger = CertificateValidator([DemonstrationAuthority.create("Ailleurs").root])
    road.judge_of_one = peer_judge(stranger, Purpose.OPERATOR_TLS_CLIENT)
    outcome = await road.deliver()
    detail = deferred(outcome, "mta.remote-deferred")
    assert "MAIL" in detail
    assert "451" not in detail or "4.7.1" in detail
    road.judge_of_one = lambda _: ""
    assert isinstance(await road.deliver(), Delivered)


async def test_nothing_is_handed_to_who_is_not_believed_any_more(road: Road) -> None:
    assert isinstance(await road.deliver(), Delivered)
    road.judge_of_two = lambda _: "rfc5280-6.3-revoked: end-entity certificate, serial 1"
    assert "rfc5280-6.3-revoked" in deferred(await road.deliver(), "mta.peer-not-believed")


async def test_the_list_in_force_counts_at_each_message(road: Road, listed: Listed) -> None:
    assert isinstance(await road.deliver(), Delivered)
    road.list_of_two = Listed({})
    deferred(await road.deliver(), "mta.peer-not-operator")
    road.list_of_two = listed
    road.list_of_one = Listed({})
    outcome = await road.deliver()
    assert not isinstance(outcome, Delivered)
    road.list_of_one = listed
    assert isinstance(await road.deliver(), Delivered)


async def test_a_resumed_tls_session_is_judged_as_it_is_today(road: Road, space: TrustSpace, listed: Listed) -> None:
    """TLS 1.2 resumes without showing the certificate again: list and revocation are asked all the same."""
    space.rsa = True
    space.operator("one-rsa")
    road.context = space.server("one-rsa")
    context = space.client("two")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    session: ssl.SSLSession | None = None

    def mail(sender: str = "labo@op2.example") -> tuple[bool, bytes]:
        nonlocal session
        with socket.create_connection(("127.0.0.1", road.port), timeout=10) as plain:
            for command in (b"", b"EHLO gate.op2.example\r\n", b"STARTTLS\r\n"):
                plain.sendall(command)
                plain.recv(4096)
            with context.wrap_socket(plain, session=session) as tls:
                tls.sendall(b"EHLO gate.op2.example\r\n")
                tls.recv(4096)
                tls.sendall(f"MAIL FROM:<{sender}>\r\n".encode())
                answer = tls.recv(4096)
                session, resumed = tls.session, bool(tls.session_reused)
                with suppress(OSError):
                    tls.unwrap()
                return resumed, answer

    validator = CertificateValidator([space.authority.root])
    road.judge_of_one = peer_judge(validator, Purpose.OPERATOR_TLS_CLIENT)
    assert await asyncio.to_thread(mail) == (False, b"250 2.1.0 Sender accepted\r\n")
    resumed, answer = await asyncio.to_thread(mail)
    assert resumed, "or this test shows nothing"
    assert answer.startswith(b"250")
    road.judge_of_one = lambda _: "rfc5280-6.1.3-revoked: end-entity certificate, serial 1"
    resumed, answer = await asyncio.to_thread(mail)
    assert resumed
    assert b"4.7.1" in answer
    road.judge_of_one = peer_judge(validator, Purpose.OPERATOR_TLS_CLIENT)
    road.list_of_one = Listed({})
    resumed, answer = await asyncio.to_thread(mail)
    assert resumed
    assert answer.startswith(b"5")
    road.list_of_one = listed
    road.context = space.server("one-rsa")
    resumed, answer = await asyncio.to_thread(mail)
    assert not resumed, "other files, other context: nothing is left to resume"


async def test_a_renewed_certificate_serves_the_next_connection(road: Road, space: TrustSpace) -> None:
    assert isinstance(await road.deliver(), Delivered)
    space.operator("one-renewed")
    road.context = space.server("one-renewed")
    assert isinstance(await road.deliver(), Delivered), "the open connection goes on under its certificate"
    await road.target.close()
    deferred(await road.deliver(), "mta.peer-not-operator")
