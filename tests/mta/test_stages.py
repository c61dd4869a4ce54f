"""Protecting and opening: never in clear, never without a verdict, never with a forged one."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage

import dkim as dkimpy
import pytest

from directory.partners import PartnerBook
from directory.records import Partner
from mta.agreements import Agreements
from mta.message import Message, Origin, Phase
from mta.opening import OpenStage
from mta.protecting import ProtectStage
from smime import MessageVerdict, SignatureResult, encrypt, join_message, oids, open_message, public_record, sign
from smime.failures import DecryptionFailures
from smime.verdict import LayerKind
from trust.certificates import CertificateValidator
from trust.keys import KeyUnavailableError
from trust.refusals import Refused
from trust.revocation import RevocationState, RevocationStatus
from trust.vault import KeyUse, KeyVault

from .mailboxes import Directory, Mailboxes, agreements

PLAIN = (
    b"From: =?utf-8?q?Labo_du_Nord?= <labo@op1.example>\r\n"
    b"To: dr.noir@op2.example\r\n"
    b"Bcc: dr.gris@op1.example\r\n"
    b"Subject: resultat\r\n"
    b"Message-ID: <1@op1.example>\r\n"
    b"X-Relais-Verdict: decrypted=yes; signature=valid\r\n"
    b"MIME-Version: 1.0\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"Content-Transfer-Encoding: 8bit\r\n"
    b"\r\n"
) + "glycémie : 3.8\r\n.\r\n".encode()
MESSAGE = Message(
    message_id="<1@op1.example>",
    spool_id="s1",
    delivery_id="d1",
    origin=Origin.SUBMISSION,
    sender="labo@op1.example",
    recipient="dr.noir@op2.example",
    content=PLAIN,
    content_type="message/rfc822",
    accepted_at=1_800_000_000.0,
)


@pytest.fixture
def directory(mailboxes: Mailboxes) -> Directory:
    return Directory.of(mailboxes)


@pytest.fixture
def protecting(vault: KeyVault, mailboxes: Mailboxes, directory: Directory) -> ProtectStage:
    mailboxes.install(vault, "labo@op1.example")
    return ProtectStage(vault, directory, mailboxes.validator, mailboxes.dkim.get, "gate.op1.example", agreements())


@pytest.fixture
def opening(vault: KeyVault, mailboxes: Mailboxes) -> OpenStage:
    mailboxes.install(vault, "dr.noir@op2.example")
    record = public_record(mailboxes.dkim["op1.example"].key)
    partners = PartnerBook([Partner("op1.example", dkim_selector="s1", dkim_public_key=record)])
    return OpenStage(vault, mailboxes.validator, partners, "gate.op2.example")


def received_by_two(content: bytes) -> Message:
    return replace(MESSAGE, content=content, origin=Origin.OPERATOR, delivery_id="d2")


async def protected(stage: ProtectStage, message: Message = MESSAGE) -> Message:
    result = await stage.apply(message, Phase.PROTECT)
    assert isinstance(result, Message), result
    return result


async def opened(stage: OpenStage, content: bytes) -> tuple[EmailMessage, Message]:
    result = await stage.apply(received_by_two(content), Phase.OPEN)
    assert isinstance(result, Message), result
    return email.message_from_bytes(result.content, policy=email.policy.default), result


async def test_there_and_back(protecting: ProtectStage, opening: OpenStage) -> None:
    sent = await protected(protecting)
    assert b"glyc" not in sent.content
    assert b"\nbcc:" not in sent.content.lower()
    assert b"X-Relais" not in sent.content
    assert sent.content.isascii()
    assert sent.content.startswith(b"DKIM-Signature: ")
    mail, result = await opened(opening, sent.content)
    assert mail.get_body().get_content() == "glycémie : 3.8\r\n.\r\n"
    assert mail["Subject"] == "resultat"
    assert mail["X-Relais-Delivery"] == "d2"
    assert " ".join(mail["X-Relais-Verdict"].split()) == (
        "decrypted=yes; signature=valid; signer=labo@op1.example; path=rfc5280-6.1"
    )
    assert " ".join(mail["Authentication-Results"].split()) == (
        "gate.op2.example; dkim=pass header.d=op1.example header.s=s1; x-smime=pass"
    )
    assert len(mail.get_all("Received")) == 2
    assert result.facts["verdict"] == "decrypted=yes; signature=valid; path=rfc5280-6.1; dkim=pass"
    assert "@" not in str(result.facts)


async def test_dkim_as_an_independent_reader_sees_it(protecting: ProtectStage, mailboxes: Mailboxes) -> None:
    sent = await protected(protecting)
    record = public_record(mailboxes.dkim["op1.example"].key)
    assert dkimpy.verify(sent.content, dnsfunc=lambda name, timeout=5: f"v=DKIM1; k=rsa; p={record}".encode())


async def test_other_phases_pass_untouched(protecting: ProtectStage, opening: OpenStage) -> None:
    for stage, own in ((protecting, Phase.PROTECT), (opening, Phase.OPEN)):
        for phase in set(Phase) - {own}:
            assert await stage.apply(MESSAGE, phase) is MESSAGE


@pytest.mark.parametrize(
    ("change", "code", "permanent"),
    [
        ({"content": PLAIN.replace(b"labo@op1", b"dr.gris@op1")}, "smime.no-signing-key", True),
        ({"content": PLAIN.replace(b"From:", b"X-From:")}, "mta.header-invalid", True),
        ({"content": b"no header"}, "mta.header-invalid", True),
        ({"content_type": "application/hl7-v2"}, "mta.content-invalid", True),
        ({"recipient": "unknown@op2.example"}, "smime.no-encryption-certificate", True),
    ],
)
async def test_what_cannot_be_protected_does_not_leave(
    protecting: ProtectStage, change: dict[str, str | bytes], code: str, permanent: bool
) -> None:
    refused = await protecting.apply(replace(MESSAGE, **change), Phase.PROTECT)
    assert isinstance(refused, Refused)
    assert (refused.refusal.code, refused.refusal.permanent) == (code, permanent)


async def test_a_silent_directory_means_later(protecting: ProtectStage, directory: Directory) -> None:
    directory.down = True
    refused = await protecting.apply(MESSAGE, Phase.PROTECT)
    assert isinstance(refused, Refused)
    assert (refused.refusal.code, refused.refusal.permanent) == ("mta.directory-unavailable", False)


async def test_only_certificates_that_hold_today(
    vault: KeyVault, mailboxes: Mailboxes, directory: Directory, space: object
) -> None:
    mailboxes.install(vault, "labo@op1.example")
    good = directory.recipients["dr.noir@op2.example"]
    foreign = type(mailboxes.authority).create("Ailleurs").issue_mailbox("dr.noir@op2.example", "x", "encryption")
    signing = mailboxes.keys["dr.noir@op2.example"][KeyUse.SIGNING]
    for certificate, rule in (
        (foreign.certificate, "rfc5280-"),
        (signing.certificate, "rfc5280-4.2.1.3-key-usage"),
    ):
        directory.recipients[good.address] = replace(good, encryption_certificates=(certificate,))
        stage = ProtectStage(vault, directory, mailboxes.validator, mailboxes.dkim.get, "g.example", agreements())
        refused = await stage.apply(MESSAGE, Phase.PROTECT)
        assert isinstance(refused, Refused)
        assert refused.refusal.code == "smime.no-encryption-certificate"
        assert refused.detail.startswith(rule)
        directory.recipients[good.address] = replace(
            good, encryption_certificates=(certificate, *good.encryption_certificates)
        )
        assert isinstance(await stage.apply(MESSAGE, Phase.PROTECT), Message), "one good certificate is enough"
    later = ProtectStage(
        vault,
        directory,
        mailboxes.validator,
        mailboxes.dkim.get,
        "g.example",
        agreements(),
        clock=lambda: datetime.now(UTC) + timedelta(days=400),
    )
    refused = await later.apply(MESSAGE, Phase.PROTECT)
    assert isinstance(refused, Refused)


FORGED = [
    b"X-Relais-Verdict: decrypted=yes; signature=valid; signer=evil@op1.example; path=x\r\n",
    b"x-rELAIS-vERDICT : forged\r\n",
    b"X-Relais-Verdict:\r\n forged\r\n\tforged\r\n",
    b"X-Relais-Delivery: d0\r\n",
    b"X-Relais-Anything: forged\r\n",
    b"Authentication-Results: gate.op2.example; dkim=pass forged\r\n",
    b"AUTHENTICATION-RESULTS:\r\n\tgate.op2.example;\r\n dkim=pass forged\r\n",
    b"Authentication-Results: (c) GATE.op2.example 1; forged\r\n",
    b'Authentication-Results: "gate.op2.example"; forged\r\n',
    b"Authentication-Results : gate.op2.example; forged\r\n",
]


@pytest.mark.parametrize("forged", FORGED)
async def test_forged_verdicts_are_removed(
    protecting: ProtectStage, opening: OpenStage, mailboxes: Mailboxes, forged: bytes
) -> None:
    certificates = [mailboxes.keys["dr.noir@op2.example"][KeyUse.ENCRYPTION].certificate]
    outer = b"From: labo@op1.example\r\n"
    inner = b"Content-Type: text/plain\r\n" + forged + b"\r\nbody\r\n"
    for content in (
        forged + PLAIN,
        forged + (await protected(protecting)).content,
        join_message(outer, encrypt(inner, certificates)),
        join_message(outer, encrypt(forged + b"\r\nbody\r\n", certificates)),
        join_message(
            outer, encrypt(b"Content-Type: text/plain\n" + forged.replace(b"\r", b"") + b"\nbody\n", certificates)
        ),
    ):
        mail, result = await opened(opening, content)
        header = result.content.partition(b"\r\n\r\n")[0]
        assert b"forged" not in header
        assert b"evil" not in header
        for name in ("X-Relais-Verdict", "X-Relais-Delivery", "Authentication-Results"):
            assert len(mail.get_all(name)) == 1
        assert mail["X-Relais-Delivery"] == "d2"
        assert mail["X-Relais-Anything"] is None
        assert b"\n" not in result.content.replace(b"\r\n", b"")


async def test_only_content_fields_come_from_inside(opening: OpenStage, mailboxes: Mailboxes) -> None:
    certificates = [mailboxes.keys["dr.noir@op2.example"][KeyUse.ENCRYPTION].certificate]
    inner = b"From: boss@op1.example\r\nSubject: inner\r\nContent-Type: text/html\r\n\r\n<p>x</p>\r\n"
    mail, _ = await opened(
        opening, join_message(b"From: labo@op1.example\r\nSubject: outer\r\n", encrypt(inner, certificates))
    )
    assert (mail["From"], mail["Subject"], mail.get_content_type()) == ("labo@op1.example", "outer", "text/html")
    assert "signature=none" in mail["X-Relais-Verdict"]
    assert "x-smime=none" in mail["Authentication-Results"]


async def test_plain_mail_is_delivered_as_what_it_is(opening: OpenStage) -> None:
    mail, result = await opened(opening, PLAIN)
    assert " ".join(mail["X-Relais-Verdict"].split()) == "decrypted=no; signature=none; signer=-; path=-"
    assert "dkim=none" in mail["Authentication-Results"]
    assert result.content.endswith(PLAIN.partition(b"\r\n\r\n")[2])


async def test_a_signature_that_does_not_hold_is_told(opening: OpenStage, mailboxes: Mailboxes) -> None:
    signer = mailboxes.keys["labo@op1.example"][KeyUse.SIGNING]
    held = KeyHolder(signer)
    entity = sign(b"Content-Type: text/plain\r\n\r\nbody\r\n", held)
    good = join_message(b"From: labo@op1.example\r\n", entity)
    for content, verdict in (
        (good, "valid"),
        (good.replace(b"body", b"bady"), "invalid"),
        (good.replace(b"From: labo", b"From: boss"), "mismatch"),
    ):
        mail, result = await opened(opening, content)
        assert f"decrypted=no; signature={verdict};" in mail["X-Relais-Verdict"]
        assert ("x-smime=pass" in mail["Authentication-Results"]) is (verdict == "valid")
        assert result.content.endswith(content.partition(b"\r\n\r\n")[2]), "signed bytes stay as they came"


async def test_what_cannot_be_decrypted_is_refused_with_one_text(
    protecting: ProtectStage, opening: OpenStage, vault: KeyVault, mailboxes: Mailboxes
) -> None:
    sent = (await protected(protecting)).content
    head, _, body = sent.partition(b"\r\n\r\n")
    flipped = body[:-60] + bytes([body[-60] ^ 1]) + body[-59:]
    other = encrypt(b"\r\nx\r\n", [mailboxes.keys["dr.gris@op1.example"][KeyUse.ENCRYPTION].certificate])
    replies = set()
    for content in (
        head + b"\r\n\r\n" + flipped,
        head + b"\r\n\r\n" + body[: len(body) // 2],
        head + b"\r\n\r\n",
        join_message(b"From: labo@op1.example\r\n", other),
    ):
        refused = await opening.apply(received_by_two(content), Phase.OPEN)
        assert isinstance(refused, Refused)
        replies.add(refused.reply)
    assert len(replies) == 1
    assert replies.pop().startswith("554 5.7.5")


async def test_dkim_of_altered_mail_fails(protecting: ProtectStage, opening: OpenStage) -> None:
    sent = (await protected(protecting)).content.replace(b"Subject: resultat", b"Subject: autre")
    mail, _ = await opened(opening, sent)
    assert "dkim=fail" in mail["Authentication-Results"]


class KeyHolder:
    """A signer without a vault."""

    def __init__(self, issued: object) -> None:
        self.certificate, self.chain, self._key = issued.certificate, issued.chain, issued.key

    def sign(self, data: bytes, algorithm: object) -> bytes:
        from cryptography.hazmat.primitives.asymmetric import ec

        return self._key.sign(data, ec.ECDSA(algorithm))


# --- Agreements, and what correspondents say they can read ----------------------------------------------------------


def stage_for(vault: KeyVault, directory: Directory, mailboxes: Mailboxes, agreed: Agreements) -> ProtectStage:
    mailboxes.install(vault, "labo@op1.example")
    return ProtectStage(vault, directory, mailboxes.validator, mailboxes.dkim.get, "gate.op1.example", agreed)


async def read_by(opening: OpenStage, stage: ProtectStage, vault: KeyVault, mailboxes: Mailboxes) -> MessageVerdict:
    """What the recipient finds out about what the stage made of the message."""
    sent = await protected(stage)
    decryptors = vault.decryptors("dr.noir@op2.example")
    return open_message(sent.content, decryptors, mailboxes.validator, datetime.now(UTC)).verdict


GCM_AND_CBC = (oids.AES256_GCM, oids.AES256_CBC)


@pytest.mark.parametrize(
    ("partner", "known", "floor", "cipher"),
    [
        ({}, None, "aes128-gcm", "aes256-gcm"),
        ({}, GCM_AND_CBC, "aes128-gcm", "aes256-gcm"),
        ({}, (oids.AES256_CBC,), "aes128-gcm", "aes256-gcm"),  # never below the floor
        ({}, (oids.AES256_CBC,), "aes128-cbc", "aes256-cbc"),
        ({}, (oids.AES128_GCM,), "aes128-gcm", "aes128-gcm"),
        ({}, (), "aes128-gcm", "aes256-gcm"),
        ({"content_cipher": "aes256-cbc"}, GCM_AND_CBC, "aes128-gcm", "aes256-cbc"),  # agreed, so meant
        ({"content_cipher": "aes128-gcm", "key_transport": "rsa-pkcs1v15"}, None, "aes128-gcm", "aes128-gcm"),
    ],
)
async def test_the_cipher_follows_the_agreement_then_the_capabilities_never_below_the_floor(
    vault: KeyVault,
    directory: Directory,
    mailboxes: Mailboxes,
    opening: OpenStage,
    partner: dict[str, str],
    known: tuple[str, ...] | None,
    floor: str,
    cipher: str,
) -> None:
    listed = {} if known is None else {MESSAGE.recipient: known}
    stage = stage_for(
        vault, directory, mailboxes, agreements(Partner("op2.example", **partner), known=listed, floor=floor)
    )
    verdict = await read_by(opening, stage, vault, mailboxes)
    assert verdict.content_algorithm == cipher
    assert verdict.signature is SignatureResult.VALID


async def test_a_partner_with_opaque_signatures_and_protected_headers(
    vault: KeyVault, directory: Directory, mailboxes: Mailboxes, opening: OpenStage
) -> None:
    partner = Partner("op2.example", opaque_signature=True, header_protection=True)
    stage = stage_for(vault, directory, mailboxes, agreements(partner))
    sent = await protected(stage)
    assert b"Subject: [...]\r\n" in sent.content
    assert b"resultat" not in sent.content
    mail, _ = await opened(opening, sent.content)
    assert mail["Subject"] == "resultat"
    assert "signature=valid" in mail["X-Relais-Verdict"]
    assert (await read_by(opening, stage, vault, mailboxes)).layers[1].kind is LayerKind.OPAQUE_SIGNED


async def test_inside_mssante_the_subject_stays_in_the_open(protecting: ProtectStage) -> None:
    assert b"Subject: resultat\r\n" in (await protected(protecting)).content


async def test_what_a_correspondent_can_read_is_learned_from_validly_signed_mail_only(
    vault: KeyVault, mailboxes: Mailboxes, protecting: ProtectStage
) -> None:
    learned: dict[str, tuple[str, ...]] = {}

    def remember(address: str, capabilities: Sequence[str], signed_at: datetime) -> None:
        assert signed_at <= datetime.now(UTC)
        learned[address] = tuple(capabilities)

    mailboxes.install(vault, "dr.noir@op2.example")
    opening = OpenStage(vault, mailboxes.validator, PartnerBook([]), "gate.op2.example", remember=remember)
    sent = (await protected(protecting)).content
    await opened(opening, sent.replace(b"From: =?utf-8?q?Labo_du_Nord?= <labo@", b"From: <forger@"))
    assert not learned
    await opened(opening, sent)
    assert oids.AES256_GCM in learned["labo@op1.example"]


async def test_pitfall_05_a_sender_whose_mail_does_not_open_is_made_to_wait(
    vault: KeyVault, mailboxes: Mailboxes, directory: Directory
) -> None:
    mailboxes.install(vault, "dr.noir@op2.example")
    tried: list[bytes] = []
    opening = OpenStage(
        vault, mailboxes.validator, PartnerBook([]), "gate.op2.example", failures=DecryptionFailures(3, 3600)
    )
    stranger = mailboxes.keys["dr.gris@op1.example"][KeyUse.ENCRYPTION].certificate
    content = join_message(b"From: labo@op1.example\r\n", encrypt(b"Content-Type: text/plain\r\n\r\nx\r\n", [stranger]))
    for _ in range(3):
        refused = await opening.apply(received_by_two(content), Phase.OPEN)
        assert isinstance(refused, Refused)
        tried.append(refused.refusal.code.encode())
    assert tried == [b"smime.cannot-open"] * 3
    waits = await opening.apply(received_by_two(content), Phase.OPEN)
    assert isinstance(waits, Refused)
    assert (waits.refusal.code, waits.refusal.permanent) == ("smime.decryption-paused", False)
    other = replace(received_by_two(content), sender="autre@op1.example")
    refused = await opening.apply(other, Phase.OPEN)
    assert isinstance(refused, Refused)
    assert refused.refusal.code == "smime.cannot-open"


async def test_a_signer_that_fails_makes_the_message_wait(
    vault: KeyVault, directory: Directory, mailboxes: Mailboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_for(vault, directory, mailboxes, agreements())
    signer = vault.signer("labo@op1.example", datetime.now(UTC))
    assert signer is not None

    def fail(*_: object) -> bytes:
        raise OSError("card removed")

    monkeypatch.setattr(type(signer), "sign", fail)
    refused = await stage.apply(MESSAGE, Phase.PROTECT)
    assert isinstance(refused, Refused)
    assert (refused.refusal.code, refused.refusal.permanent) == ("smime.signer-unavailable", False)


async def test_a_decryption_key_that_does_not_answer_makes_the_message_wait(
    vault: KeyVault, mailboxes: Mailboxes, protecting: ProtectStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    mailboxes.install(vault, "dr.noir@op2.example")
    opening = OpenStage(vault, mailboxes.validator, PartnerBook([]), "gate.op2.example")
    sent = (await protected(protecting)).content

    def fail(*_: object) -> bytes:
        raise KeyUnavailableError("the card was removed")

    with monkeypatch.context() as patched:
        patched.setattr(type(vault.decryptors("dr.noir@op2.example")[0]), "decrypt_oaep", fail)
        refused = await opening.apply(received_by_two(sent), Phase.OPEN)
    assert isinstance(refused, Refused)
    assert (refused.refusal.code, refused.refusal.permanent) == ("smime.key-unavailable", False)
    assert isinstance(await opening.apply(received_by_two(sent), Phase.OPEN), Message)


async def test_a_certificate_of_unknown_revocation_makes_the_message_wait_under_a_hard_policy(
    vault: KeyVault, directory: Directory, mailboxes: Mailboxes
) -> None:
    class Silent:
        def check(
            self, certificate: object, issuer: object, at: datetime, stapled: bytes | None = None
        ) -> RevocationStatus:
            return RevocationStatus(RevocationState.UNKNOWN, "", "", None, None, None, None, "not fetched yet")

    authority = mailboxes.authority
    validator = CertificateValidator([authority.root], [authority.intermediate], Silent())
    mailboxes.install(vault, "labo@op1.example")
    stage = ProtectStage(vault, directory, validator, mailboxes.dkim.get, "gate.op1.example", agreements())
    refused = await stage.apply(MESSAGE, Phase.PROTECT)
    assert isinstance(refused, Refused)
    assert (refused.refusal.code, refused.refusal.permanent) == ("smime.revocation-unknown", False)
