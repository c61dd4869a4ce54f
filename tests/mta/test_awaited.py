"""Receipts of other operators: which end the wait for an answer, and which do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from mta.awaited import AwaitedReceipts
from mta.delivery import Accepted, EndedDelivery, NewDelivery
from mta.message import Deferred, Delivered, Origin, TargetKind
from mta.notifications import DeliveryNotification, RecipientStatus, compose_dsn
from mta.refusals import UNREACHABLE
from mta.reporting import NotSettledError
from mta.spool import Spool
from trust.refusals import Refused

from .conftest import MakeSpool, submission

DOCTOR, OTHER = "dr.noir@op2.example", "dr.gris@op3.example"


def may_report(peer: str, domain: str) -> bool:
    return (peer, domain) in {("CN=two", "op2.example"), ("CN=three", "op3.example")}


@pytest.fixture
def spool(make_spool: MakeSpool) -> Iterator[Spool]:
    spool = make_spool()
    yield spool


def relayed(spool: Spool, key: str = "1") -> Accepted:
    """A message to two doctors that both operators took, promising receipts."""
    kept = spool.accept(submission(DOCTOR, OTHER, key=key, message_id="<1@labo.example>"))
    assert isinstance(kept, Accepted)
    for lease in spool.claim(10, 60):
        assert spool.settle(lease, Delivered("250 ok", reports=True))
    for end in spool.ended(10):
        spool.reported(end)
    return kept


def dsn(envelope_id: str, *said: tuple[str, str], message_id: str = "") -> bytes:
    return compose_dsn(
        DeliveryNotification(
            tuple(RecipientStatus(address, action, "2.0.0") for address, action in said),
            original_envelope_id=envelope_id,
            original_message_id=message_id,
            reporting_mta="gate.op2.example",
        ),
        author="postmaster@op2.example",
        to="a@labo.example",
        subject="receipt",
        text="text",
        message_id="<receipt@op2.example>",
        date=1_800_000_000,
        arrival=1_800_000_000,
    )


def arrived(spool: Spool, content: bytes, verdict: str = "signature=none;", **more: Any) -> EndedDelivery:
    """The mail that brings it, delivered into the sender's mailbox."""
    mail = submission("a@labo.example", key="receipt", origin=Origin.OPERATOR, target=TargetKind.MAILBOX)
    spool.accept(replace(mail, **{"sender": "", "peer": "CN=two", "content": content, **more}))
    (lease,) = spool.claim(10, 60)
    assert spool.keep_prepared(lease, content, {"verdict": verdict})
    assert spool.settle(lease, Delivered())
    (end,) = spool.ended(10)
    spool.reported(end)
    return end


async def outstanding_after(spool: Spool, content: bytes, **more: Any) -> int:
    """How many receipts are awaited afterwards."""
    await AwaitedReceipts(spool, may_report).ended(arrived(spool, content, **more))
    return spool.gauges().awaited


@pytest.mark.parametrize("action", ["delivered", "failed", "relayed", "expanded"])
async def test_a_final_receipt_ends_the_wait_for_its_recipient_alone(spool: Spool, action: str) -> None:
    kept = relayed(spool)
    assert spool.gauges().awaited == 2
    assert await outstanding_after(spool, dsn(kept.spool_id, (DOCTOR.upper(), action))) == 1
    assert [(step.kind, step.detail) for step in spool.steps(kept.spool_id)][-1] == ("answered", action)


@pytest.mark.parametrize("envelope_id", ["the-client-s-own", "", "0" * 32])
async def test_found_by_message_id_when_the_client_gave_its_own_envelope_id(spool: Spool, envelope_id: str) -> None:
    relayed(spool)
    assert await outstanding_after(spool, dsn(envelope_id, (DOCTOR, "delivered"), message_id="<1@labo.example>")) == 1


@pytest.mark.parametrize(
    ("said", "more"),
    [
        ((DOCTOR, "delayed"), {}),
        (("nobody@op2.example", "delivered"), {}),
        ((OTHER, "delivered"), {}),  # by the operator of another domain
        ((DOCTOR, "delivered"), {"peer": "CN=three"}),
        ((DOCTOR, "delivered"), {"sender": "mallory@op2.example"}),
        ((DOCTOR, "delivered"), {"origin": Origin.SUBMISSION}),
        ((DOCTOR, "delivered"), {"origin": Origin.COLLECTED}),
        ((DOCTOR, "delivered"), {"verdict": "signature=invalid;"}),
        ((DOCTOR, "delivered"), {"verdict": ""}),
        ((DOCTOR, "delivered"), {"deliveries": (NewDelivery("b@labo.example", TargetKind.MAILBOX),)}),
    ],
)
async def test_what_ends_no_wait(spool: Spool, said: tuple[str, str], more: dict[str, object]) -> None:
    kept = relayed(spool)
    assert await outstanding_after(spool, dsn(kept.spool_id, said), **more) == 2


@pytest.mark.parametrize(
    ("more", "left"),
    [
        ({}, 1),
        ({"sender": "mallory@op2.example"}, 2),
        ({"verdict": "signature=invalid;"}, 2),
        ({"content": b"by a person"}, 2),
    ],
)
async def test_what_an_operator_of_ours_filed_for_us_ends_the_wait(
    spool: Spool, more: dict[str, Any], left: int
) -> None:
    """A connector's: everything it gets is collected, by accounts of its own operators."""
    kept = relayed(spool)
    content = dsn(kept.spool_id, (DOCTOR, "delivered"))
    if "content" in more:
        content = content.replace(b"From: postmaster@op2.example", b"From: dr.noir@op2.example")
        more = {}
    mail = arrived(spool, content, **{"origin": Origin.COLLECTED, "peer": "ville", **more})
    await AwaitedReceipts(spool, lambda peer, domain: peer == "ville", collected=True).ended(mail)
    assert spool.gauges().awaited == left


@pytest.mark.parametrize(
    "content", [b"", b"\xff\x00", b"Content-Type: multipart/report; boundary=x\r\n\r\n--x\r\n", dsn("", ("", "failed"))]
)
async def test_what_is_no_receipt_is_left_alone(spool: Spool, content: bytes) -> None:
    relayed(spool)
    assert await outstanding_after(spool, content) == 2


async def test_a_receipt_that_a_user_of_the_other_operator_writes_ends_no_wait(spool: Spool) -> None:
    kept = relayed(spool)
    forged = dsn(kept.spool_id, (DOCTOR, "delivered")).replace(b"From: postmaster@", b"From: mallory@")
    assert await outstanding_after(spool, forged) == 2


async def test_a_receipt_faster_than_our_own_settling_is_read_again(spool: Spool) -> None:
    kept = spool.accept(submission(DOCTOR, OTHER, message_id="<1@labo.example>"))
    leases = spool.claim(10, 60)
    mail = arrived(spool, dsn(kept.spool_id, (DOCTOR, "delivered")))
    consumer = AwaitedReceipts(spool, may_report)
    with pytest.raises(NotSettledError):
        await consumer.ended(mail)
    for lease in leases:
        on_time = lease.recipient == DOCTOR
        spool.settle(lease, Delivered("250", reports=True) if on_time else Deferred(Refused(UNREACHABLE)))
    await consumer.ended(mail)  # the other one, still on its way, is no reason to wait
    assert spool.gauges().awaited == 0
