"""Mail that its author has signed or encrypted himself: never rewritten, never sent weaker than others."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from directory.partners import PartnerBook
from mta.message import Message, Origin, Phase
from mta.opening import OpenStage
from mta.own_keys import OwnProtection
from mta.protecting import ProtectStage
from smime import SignatureResult, Suite, encrypt, join_message, open_message, sign, split_message
from smime.mime import parse_entity
from smime.refusals import NO_SIGNING_KEY
from trust.keys import Signer
from trust.refusals import Refused
from trust.vault import KeyUse, KeyVault

from .mailboxes import Directory, Mailboxes, agreements
from .test_stages import MESSAGE

AUTHOR, READER = "labo@op1.example", "dr.noir@op2.example"
HEADER = (
    f"From: Dr Gris <{AUTHOR}>\r\nTo: {READER}\r\nBcc: x@op2.example\r\nSubject: r\r\nMessage-ID: <1@op1.example>\r\n"
    "MIME-Version: 1.0\r\n"
).encode()
ENTITY = (
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nd=C3=A9j=C3=A0\r\n"
)


@pytest.fixture
def stage(vault: KeyVault, mailboxes: Mailboxes) -> ProtectStage:
    """Of a gateway that does not hold the author's keys."""
    return ProtectStage(
        vault, Directory.of(mailboxes), mailboxes.validator, lambda domain: None, "gate.op1.example", agreements()
    )


@pytest.fixture
def card(mailboxes: Mailboxes, tmp_path_factory: pytest.TempPathFactory) -> Signer:
    """The author's own key, which the gateway does not have."""
    elsewhere = KeyVault.create(tmp_path_factory.mktemp("card") / "vault")
    mailboxes.install(elsewhere, AUTHOR, READER)
    signer = elsewhere.signer(AUTHOR, datetime.now(UTC))
    assert signer is not None
    return signer


def written(entity: bytes, origin: Origin = Origin.SUBMISSION) -> Message:
    return replace(MESSAGE, content=join_message(HEADER, entity), sender=AUTHOR, recipient=READER, origin=origin)


async def protected(stage: ProtectStage, message: Message) -> Message:
    result = await stage.apply(message, Phase.PROTECT)
    assert isinstance(result, Message), result
    assert b"x@op2.example" not in result.content
    return result


def opened(mailboxes: Mailboxes, vault: KeyVault, content: bytes):  # type: ignore[no-untyped-def]
    mailboxes.install(vault, READER)
    return open_message(content, vault.decryptors(READER), mailboxes.validator)


@pytest.mark.parametrize("suite", [Suite(), Suite(opaque=True)])
async def test_what_is_signed_is_encrypted_as_it_is(
    stage: ProtectStage, card: Signer, mailboxes: Mailboxes, vault: KeyVault, suite: Suite
) -> None:
    entity = sign(ENTITY, card, suite=suite)
    result = await protected(stage, written(entity))
    assert result.facts["protected-by-author"] == OwnProtection.SIGNED.value
    assert parse_entity(result.content).content_type().media_type == "application/pkcs7-mime"
    assert b"d=C3=A9" not in result.content, "not in clear"
    found = opened(mailboxes, vault, result.content)
    assert found.verdict.signature is SignatureResult.VALID
    assert split_message(found.entity)[1] == entity, "octet for octet"


async def test_what_is_encrypted_to_its_reader_is_not_touched(
    stage: ProtectStage, card: Signer, mailboxes: Mailboxes, vault: KeyVault
) -> None:
    entity = encrypt(sign(ENTITY, card), [mailboxes.keys[READER][KeyUse.ENCRYPTION].certificate])
    result = await protected(stage, written(entity))
    assert result.facts["protected-by-author"] == OwnProtection.ENCRYPTED.value
    assert split_message(result.content)[1] == entity
    assert opened(mailboxes, vault, result.content).verdict.signature is SignatureResult.VALID


async def test_what_its_reader_cannot_open_is_wrapped_like_any_other(
    stage: ProtectStage, card: Signer, mailboxes: Mailboxes, vault: KeyVault
) -> None:
    foreign = encrypt(sign(ENTITY, card), [mailboxes.keys["dr.gris@op1.example"][KeyUse.ENCRYPTION].certificate])
    refused = await stage.apply(written(foreign), Phase.PROTECT)
    assert isinstance(refused, Refused) and refused.refusal is NO_SIGNING_KEY
    mailboxes.install(vault, AUTHOR)
    result = await protected(stage, written(foreign))
    assert "protected-by-author" not in result.facts
    assert split_message(result.content)[1] != foreign


SPOILT = [
    ("changed", lambda entity: entity.replace(b"d=C3=A9", b"D=C3=A9")),
    ("empty", lambda entity: b"Content-Type: application/pkcs7-mime; smime-type=enveloped-data\r\n\r\nnothing\r\n"),
    ("cut", lambda entity: entity[: len(entity) // 2]),
    ("pgp", lambda entity: b'Content-Type: multipart/encrypted; protocol="application/pgp-encrypted"\r\n\r\nx\r\n'),
    ("said only", lambda entity: ENTITY.replace(b"text/plain", b"application/pkcs7-mime")),
]


@pytest.mark.parametrize(("name", "spoil"), SPOILT)
async def test_what_only_claims_to_be_protected_never_leaves_as_it_is(  # type: ignore[no-untyped-def]
    stage: ProtectStage, card: Signer, mailboxes: Mailboxes, vault: KeyVault, name: str, spoil
) -> None:
    entity = spoil(sign(ENTITY, card))
    refused = await stage.apply(written(entity), Phase.PROTECT)
    assert isinstance(refused, Refused) and refused.refusal is NO_SIGNING_KEY
    mailboxes.install(vault, AUTHOR)
    result = await protected(stage, written(entity))
    assert parse_entity(result.content).content_type().media_type == "application/pkcs7-mime"
    assert entity not in result.content


async def test_somebody_elses_signature_is_nobodys(stage: ProtectStage, mailboxes: Mailboxes, tmp_path: object) -> None:
    mailboxes_of = KeyVault.create(tmp_path / "other")  # type: ignore[operator]
    mailboxes.install(mailboxes_of, "dr.gris@op1.example")
    other = mailboxes_of.signer("dr.gris@op1.example", datetime.now(UTC))
    assert other is not None
    refused = await stage.apply(written(sign(ENTITY, other)), Phase.PROTECT)
    assert isinstance(refused, Refused) and refused.refusal is NO_SIGNING_KEY


async def test_between_mailboxes_of_ours_the_reader_sees_the_authors_signature(
    stage: ProtectStage, card: Signer, mailboxes: Mailboxes, vault: KeyVault
) -> None:
    result = await protected(stage, written(sign(ENTITY, card), Origin.LMTP))
    mailboxes.install(vault, READER)
    opening = OpenStage(vault, mailboxes.validator, PartnerBook([]), "gate.op1.example")
    arrived = await opening.apply(result, Phase.OPEN)
    assert isinstance(arrived, Message)
    assert "signature=valid" in arrived.facts["verdict"]
