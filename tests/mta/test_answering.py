"""An answer to mail with a hidden header hides its own, through a real spool, both stages, and back."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from directory.partners import PartnerBook
from directory.records import Partner
from mta.answering import HIDDEN_HEADER, Answers
from mta.delivery import NewDelivery, Submission
from mta.message import Delivered, Message, Origin, Phase, TargetKind
from mta.opening import OpenStage
from mta.protecting import ProtectStage
from mta.spool import Spool
from smime.mime import parse_entity
from trust.vault import KeyVault

from .conftest import MakeSpool
from .mailboxes import Directory, Mailboxes, agreements
from .test_stages import MESSAGE, PLAIN

GRIS, LABO = "dr.noir@op2.example", "labo@op1.example"
ANSWER = (
    f"From: Dr <{GRIS}>\r\nTo: {LABO}\r\nSubject: Re: resultat\r\nMessage-ID: <2@op2.example>\r\n"
    "In-Reply-To: <1@op1.example>\r\nReferences: <0@op1.example>\r\n <1@op1.example>\r\n\r\nMerci\r\n"
).encode()


@pytest.fixture
def spool(make_spool: MakeSpool) -> Spool:
    return make_spool()


async def arrived(spool: Spool, vault: KeyVault, mailboxes: Mailboxes, header_protection: bool) -> None:
    """The laboratory's mail, protected as its operator does it, is opened here and settled."""
    mailboxes.install(vault, LABO, GRIS)
    agreed = agreements(Partner("op2.example", header_protection=header_protection))
    theirs = ProtectStage(
        vault, Directory.of(mailboxes), mailboxes.validator, mailboxes.dkim.get, "gate.op1.example", agreed
    )
    sent = await theirs.apply(replace(MESSAGE, content=PLAIN), Phase.PROTECT)
    assert isinstance(sent, Message)
    delivery = NewDelivery(GRIS, TargetKind.MAILBOX)
    spool.accept(
        Submission(
            Origin.OPERATOR, LABO, "CN=one", sent.content, "message/rfc822", (delivery,), "k", "op2.example",
            message_id="<1@op1.example>",
        )
    )  # fmt: skip
    (lease,) = spool.claim(1, 60)
    opening = OpenStage(vault, mailboxes.validator, PartnerBook([]), "gate.op2.example")
    opened = await opening.apply(replace(sent, origin=Origin.OPERATOR, delivery_id=lease.delivery_id), Phase.OPEN)
    assert isinstance(opened, Message)
    assert (HIDDEN_HEADER in opened.facts) is header_protection
    spool.keep_prepared(lease, opened.content, opened.facts)
    spool.settle(lease, Delivered())


async def answer(spool: Spool, vault: KeyVault, mailboxes: Mailboxes, content: bytes = ANSWER, to: str = LABO) -> bytes:
    ours = ProtectStage(
        vault,
        Directory.of(mailboxes),
        mailboxes.validator,
        mailboxes.dkim.get,
        "gate.op2.example",
        agreements(),
        lambda: datetime.now(UTC),
        Answers(spool).hide_header,
    )
    sent = await ours.apply(replace(MESSAGE, content=content, sender=GRIS, recipient=to), Phase.PROTECT)
    assert isinstance(sent, Message), sent
    assert parse_entity(sent.content).content_type().media_type == "application/pkcs7-mime"
    assert b"Merci" not in sent.content
    return sent.content


async def test_the_subject_stays_hidden_in_the_answer(spool: Spool, vault: KeyVault, mailboxes: Mailboxes) -> None:
    await arrived(spool, vault, mailboxes, header_protection=True)
    content = await answer(spool, vault, mailboxes)
    assert b"Subject: [...]\r\n" in content
    assert b"resultat" not in content


async def test_towards_others_and_to_other_mail_it_is_as_agreed(
    spool: Spool, vault: KeyVault, mailboxes: Mailboxes
) -> None:
    await arrived(spool, vault, mailboxes, header_protection=True)
    assert b"Subject: Re: resultat\r\n" in await answer(spool, vault, mailboxes, to="dr.gris@op1.example")
    new = ANSWER.replace(b"<1@op1.example>", b"<9@op1.example>")
    assert b"Subject: Re: resultat\r\n" in await answer(spool, vault, mailboxes, new)


async def test_what_came_with_an_open_subject_is_answered_so(
    spool: Spool, vault: KeyVault, mailboxes: Mailboxes
) -> None:
    await arrived(spool, vault, mailboxes, header_protection=False)
    assert b"Subject: Re: resultat\r\n" in await answer(spool, vault, mailboxes)


def test_crooked_references_are_no_question(spool: Spool) -> None:
    content = b"From: a@b.example\r\nReferences: " + b"<" * 5000 + b" <\xff@x> <a b@c>\r\n\r\n"
    assert Answers(spool).hide_header(parse_entity(content), GRIS, LABO) is False
