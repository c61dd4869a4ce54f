"""What a sending system is told of its reports, over a real spool: from ends, from DSNs, from MDNs, and from liars."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import structlog

from bridges.hl7 import er7, reader
from bridges.hl7.client import MllpTarget
from bridges.hl7.er7 import Er7Message
from bridges.hl7.listener import FilingListener
from bridges.receipts import ReceiptConsumer
from bridges.routing import DOSSIER_RECIPIENT
from directory.refusals import RECIPIENT_UNKNOWN
from mta import refusals as mta_refusals
from mta.delivery import Accepted, EndedDelivery, NewDelivery, Submission
from mta.follow_up import INSTEAD
from mta.message import Delivered, Failed, Origin, Outcome, TargetKind
from mta.notifications import DeliveryNotification, RecipientStatus, compose_dsn
from mta.reporting import NotSettledError, Reporter
from mta.schedule import RetrySchedule
from mta.spool import Spool
from mta.worker import Worker, phases
from tests.support import reports
from tests.support.reports import DOCTOR
from trust.refusals import Refused, join_catalogues
from trust.store import metadata
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault

LABORATORY = "resultats@labo.example"
OTHER_DOCTOR = "autre@test-ci-sis.mssante.fr"
OPERATOR = "CN=mss.test-ci-sis.mssante.fr"
CATALOGUE = join_catalogues([mta_refusals.CATALOGUE, (RECIPIENT_UNKNOWN,)])
parse = functools.partial(reader.parse, environment="test")


def may_report(peer: str, domain: str) -> bool:
    return (peer, domain) == (OPERATOR, "test-ci-sis.mssante.fr")


@dataclass
class Gateway:
    """A spool and the consumer on it; deliveries end as the test says."""

    spool: Spool
    consumer: ReceiptConsumer
    told: list[str] = field(default_factory=list)

    def report(
        self,
        *deliveries: NewDelivery,
        ack_reception: bool | None = True,
        ack_reading: bool | None = True,
        charset: str = "UNICODE UTF-8",
        peer: str = "sil",
    ) -> str:
        """A laboratory's report, accepted; its spool id."""
        flags = reports.Flags(to_patient=False, ack_reception=ack_reception, ack_reading=ack_reading)
        frame = reports.message(flags=flags, charset=charset, recipients=(DOCTOR,))
        accepted = self.spool.accept(
            Submission(
                origin=Origin.MLLP,
                sender=LABORATORY,
                peer=peer,
                content=frame,
                content_type="application/hl7-v2",
                deliveries=deliveries or (NewDelivery(DOCTOR.address, TargetKind.SMTP),),
                dedup_key=f"report-{len(self.spool.ended(1000))}-{peer}-{ack_reception}",
                message_id_domain="labo.example",
                external_id="M1",
            )
        )
        assert isinstance(accepted, Accepted)
        return accepted.spool_id

    def settle(self, outcome: Outcome, prepared: bytes = b"", facts: dict[str, str] | None = None) -> EndedDelivery:
        """The one due delivery ends."""
        (lease,) = self.spool.claim(10, 60.0)
        assert self.spool.keep_prepared(lease, prepared or self.spool.content(lease), facts or {})
        assert self.spool.settle(lease, outcome)
        return next(one for one in self.spool.ended(1000) if one.delivery_id == lease.delivery_id)

    def mail(
        self,
        content: bytes,
        *,
        origin: Origin = Origin.OPERATOR,
        peer: str = OPERATOR,
        sender: str = "",
        to: str = LABORATORY,
        signature: str = "none",
        signer: str = "-",
        opened: bool = True,
        outcome: Outcome = Delivered("250 kept"),  # noqa: B008 - frozen
    ) -> EndedDelivery:
        """A mail delivered into a local mailbox, as the open stage leaves it."""
        self.spool.accept(
            Submission(
                origin=origin,
                sender=sender,
                peer=peer,
                content=content,
                content_type="message/rfc822",
                deliveries=(NewDelivery(to, TargetKind.MAILBOX),),
                dedup_key=f"mail-{len(self.spool.ended(1000))}",
                message_id_domain="labo.example",
            )
        )
        verdict = f"X-Relais-Verdict: decrypted=yes; signature={signature};\r\n signer={signer}; path=ok\r\n".encode()
        facts = {"verdict": f"decrypted=yes; signature={signature}; path=ok; dkim=pass"} if opened else {}
        return self.settle(outcome, verdict + content, facts)

    async def zam(self, *ends: EndedDelivery) -> list[Er7Message]:
        """What these ends make the consumer say; each is shown twice, as after a crash."""
        for end in ends:
            await self.consumer.ended(end)
            await self.consumer.ended(end)
        found = []
        for lease in self.spool.claim(10, 60.0):
            assert (lease.origin, lease.target, lease.recipient) == (Origin.SYSTEM, TargetKind.MLLP, "sil")
            message = er7.parse(self.spool.content(lease), max_bytes=10_000)
            assert isinstance(message, Er7Message)
            assert message.header.field(9).component(1).text == "ZAM"
            found.append(message)
            self.spool.settle(lease, Delivered("AA"))
        return found


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    database = Database(f"sqlite:///{tmp_path / 'relais.db'}")
    metadata.create_all(database.engine)
    vault = KeyVault.create(tmp_path / "vault")
    spool = Spool(database, BlobStore(tmp_path / "blobs", vault), vault, node="n1", schedule=RetrySchedule())
    consumer = ReceiptConsumer(
        spool,
        {"sil": LABORATORY},
        parse,
        CATALOGUE,
        may_report,
    )
    yield Gateway(spool, consumer)
    database.close()


def shown(message: Er7Message) -> tuple[str, str, str]:
    """Event, Y or N, ERR-5.1."""
    errors = [segment.field(5).component(1).text for segment in message.segments("ERR")]
    value = message.segments("OBX")[0].field(5).component(1).text
    return message.header.field(9).component(2).text, value, "".join(errors)


def dsn(
    envelope_id: str,
    *groups: RecipientStatus,
    message_id: str = "",
    author: str = "postmaster@test-ci-sis.mssante.fr",
) -> bytes:
    return compose_dsn(
        DeliveryNotification(
            groups, original_envelope_id=envelope_id, original_message_id=message_id, reporting_mta="b.example"
        ),
        author=author,
        to=LABORATORY,
        subject="x",
        text="x",
        message_id="<dsn@b.example>",
        date=1.0,
        arrival=1.0,
    )


def status(action: str, code: str = "2.0.0", to: str = DOCTOR.address, diagnostic: str = "") -> RecipientStatus:
    return RecipientStatus(to, action, code, diagnostic=diagnostic)


def mdn(message_id: str, disposition: str, error: str = "") -> bytes:
    lines = [
        f"From: {DOCTOR.address}",
        f"To: {LABORATORY}",
        "MIME-Version: 1.0",
        "Content-Type: multipart/report; report-type=disposition-notification; boundary=b",
        "",
        "--b",
        "Content-Type: text/plain",
        "",
        "lu",
        "--b",
        "Content-Type: message/disposition-notification",
        "",
        f"Final-Recipient: rfc822;{DOCTOR.address}",
        f"Original-Message-ID: {message_id}",
        f"Disposition: manual-action/MDN-sent-manually; {disposition}",
        *([f"Error: {error}"] if error else []),
        "",
        "--b--",
        "",
    ]
    return "\r\n".join(lines).encode()


# What an end says by itself


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Delivered("1 filed"), ("Z01", "Y", "")),
        (Failed(Refused(mta_refusals.EXPIRED)), ("Z01", "N", "XDSRegistryError")),
    ],
)
async def test_the_record_s_answer(gateway: Gateway, outcome: Outcome, expected: tuple[str, str, str]) -> None:
    gateway.report(NewDelivery(DOSSIER_RECIPIENT, TargetKind.DOSSIER))
    (message,) = await gateway.zam(gateway.settle(outcome))
    assert shown(message) == expected
    assert len(message.segments("OBX")) == 1


async def test_an_impossible_recipient_and_one_in_our_own_mailboxes(gateway: Gateway) -> None:
    gateway.report(
        NewDelivery("inconnu@test-ci-sis.mssante.fr", TargetKind.SMTP, refused=Refused(RECIPIENT_UNKNOWN)),
        NewDelivery(DOCTOR.address, TargetKind.MAILBOX),
        charset="8859/15",
    )
    local = gateway.settle(Delivered("250 kept"))
    refused, yes = await gateway.zam(*(one for one in gateway.spool.ended(10) if one is not local))
    assert (shown(refused), shown(yes)) == (("Z02", "N", "550"), ("Z02", "Y", ""))
    assert refused.segments("OBX")[1].field(5).component(4).text == "inconnu@test-ci-sis.mssante.fr"
    assert yes.segments("OBX")[1].field(4).text == DOCTOR.identifier
    assert yes.header.field(18).text == "8859/15"
    original = er7.parse(gateway.spool.content(local), max_bytes=10_000_000)
    assert isinstance(original, Er7Message)
    assert yes.segments("OBX")[0].field(4).text == original.header.field(10).text
    assert [yes.header.field(n).text for n in (3, 4, 5, 6)] == [original.header.field(n).text for n in (5, 6, 3, 4)]


async def test_the_other_server_s_reply_gives_the_code(gateway: Gateway) -> None:
    gateway.report()
    failed = gateway.settle(Failed(Refused(mta_refusals.REMOTE_REFUSED, "RCPT: 552 5.2.2 full")))
    (message,) = await gateway.zam(failed)
    assert shown(message) == ("Z02", "N", "552")


@pytest.mark.parametrize("reports_for_us", [True, False])
async def test_handed_on_says_nothing_certain(gateway: Gateway, reports_for_us: bool) -> None:
    gateway.report()
    assert await gateway.zam(gateway.settle(Delivered("250 queued", reports=reports_for_us))) == []


@pytest.mark.parametrize("asked", [False, None])
async def test_who_did_not_ask_is_told_nothing(gateway: Gateway, asked: bool | None) -> None:
    spool_id = gateway.report(ack_reception=asked, ack_reading=asked)
    sent = gateway.settle(Failed(Refused(mta_refusals.EXPIRED)))
    receipt = gateway.mail(mdn(sent.message_id, "displayed"), signature="valid", signer=DOCTOR.address)
    assert await gateway.zam(sent, receipt, gateway.mail(dsn(spool_id, status("failed", "5.1.1")))) == []


async def test_a_system_without_receiver_and_other_origins(gateway: Gateway) -> None:
    gateway.report(peer="ris")
    assert await gateway.zam(gateway.settle(Failed(Refused(mta_refusals.EXPIRED)))) == []
    assert await gateway.zam(gateway.mail(b"From: a@b.example\r\nSubject: bonjour\r\n\r\nx\r\n")) == []


# What a DSN says


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (status("delivered"), ("Z02", "Y", "")),
        (status("failed", "5.1.1", diagnostic="smtp; 550 5.1.1 unknown"), ("Z02", "N", "550")),
        (status("failed", "5.2.2", to=DOCTOR.address.upper()), ("Z02", "N", "552")),
        (status("delayed", "4.4.1"), None),
        (status("relayed"), None),
    ],
)
async def test_the_operator_s_receipt(
    gateway: Gateway, group: RecipientStatus, expected: tuple[str, str, str] | None
) -> None:
    spool_id = gateway.report()
    sent = gateway.settle(Delivered("250 queued", reports=True))
    messages = await gateway.zam(sent, gateway.mail(dsn(spool_id, group)))
    assert [shown(message) for message in messages] == ([expected] if expected else [])
    if messages:
        assert messages[0].segments("OBX")[1].field(5).component(4).text == DOCTOR.address


async def test_one_receipt_for_two_recipients_and_the_original_address_first(gateway: Gateway) -> None:
    spool_id = gateway.report(NewDelivery(DOCTOR.address, TargetKind.SMTP), NewDelivery(OTHER_DOCTOR, TargetKind.SMTP))
    for lease in gateway.spool.claim(10, 60.0):
        gateway.spool.settle(lease, Delivered("250", reports=True))
    forwarded = RecipientStatus(OTHER_DOCTOR, "delivered", "2.0.0", original_recipient=DOCTOR.address)
    receipt = gateway.mail(dsn(spool_id, forwarded, status("failed", "5.1.1", to=OTHER_DOCTOR)), signature="valid")
    told = {m.segments("OBX")[1].field(5).component(4).text: shown(m)[1] for m in await gateway.zam(receipt)}
    assert told == {DOCTOR.address: "Y", OTHER_DOCTOR: "N"}


@pytest.mark.parametrize(
    "lie",
    [
        {"peer": "CN=another operator"},
        {"sender": "user@test-ci-sis.mssante.fr"},
        {"origin": Origin.SUBMISSION},
        {"origin": Origin.SYSTEM},
        {"origin": Origin.COLLECTED},
        {"signature": "invalid"},
        {"signature": "mismatch"},
        {"opened": False},
        {"to": "autre@labo.example"},
    ],
)
async def test_a_receipt_from_who_cannot_know_is_not_believed(gateway: Gateway, lie: dict[str, object]) -> None:
    spool_id = gateway.report()
    gateway.settle(Delivered("250 queued", reports=True))
    receipt = gateway.mail(dsn(spool_id, status("delivered")), **lie)  # type: ignore[arg-type]
    with structlog.testing.capture_logs() as logs:
        assert await gateway.zam(receipt) == []
    assert "@" not in str(logs)


@pytest.mark.parametrize(
    ("author", "believed"),
    [
        ("MAILER-DAEMON@mx1.test-ci-sis.mssante.fr", True),
        ("PostMaster@test-ci-sis.mssante.fr", True),
        ("MicrosoftExchange329e71ec88ae4615bbc36ab6ce41109e@test-ci-sis.mssante.fr", True),
        (OTHER_DOCTOR, False),
        (DOCTOR.address, False),
        ("postmaster.x@test-ci-sis.mssante.fr", False),
        ("a.postmaster@test-ci-sis.mssante.fr", False),
    ],
)
@pytest.mark.parametrize("signature", ["none", "valid"])
async def test_a_user_of_the_recipients_operator_writes_no_receipts(
    gateway: Gateway, author: str, believed: bool, signature: str
) -> None:
    """A user may submit with a null reverse-path, and one who got the same report knows its envelope id."""
    spool_id = gateway.report()
    sent = gateway.settle(Delivered("250 queued", reports=True))
    content = dsn(spool_id, status("failed", "5.1.1"), message_id=sent.message_id, author=author)
    messages = await gateway.zam(gateway.mail(content, signature=signature, signer=author))
    assert [shown(message) for message in messages] == ([("Z02", "N", "550")] if believed else [])


async def test_a_receipt_the_full_mailbox_did_not_take(gateway: Gateway) -> None:
    spool_id = gateway.report()
    gateway.settle(Delivered("250 queued", reports=True))
    full = Failed(Refused(mta_refusals.REMOTE_REFUSED, "RCPT: 552 5.2.2 full"))
    (message,) = await gateway.zam(gateway.mail(dsn(spool_id, status("delivered")), outcome=full))
    assert shown(message) == ("Z02", "Y", "")


@pytest.mark.parametrize(
    ("message_id", "to", "peer", "expected"),
    [
        ("", DOCTOR.address, OPERATOR, [("Z02", "N", "550")]),
        ("", OTHER_DOCTOR, OPERATOR, []),
        ("", DOCTOR.address, "CN=another operator", []),
        ("<other@labo.example>", DOCTOR.address, OPERATOR, []),
        ("M1", DOCTOR.address, OPERATOR, []),
    ],
)
async def test_a_mail_sent_back_by_a_server_that_was_given_no_envelope_id(
    gateway: Gateway, message_id: str, to: str, peer: str, expected: list[tuple[str, str, str]]
) -> None:
    """It does not speak DSN: it took the mail, and its bounce names it by what it returns of it."""
    gateway.report(NewDelivery(DOCTOR.address, TargetKind.SMTP), NewDelivery(OTHER_DOCTOR, TargetKind.SMTP))
    sent = {}
    for lease in gateway.spool.claim(10, 60.0):
        gateway.spool.settle(lease, Delivered("250 queued"))
        sent[lease.recipient] = lease.message_id
    content = dsn("", status("failed", "5.1.1", to=to), message_id=message_id or sent[DOCTOR.address])
    messages = await gateway.zam(gateway.mail(content, peer=peer))
    assert [shown(message) for message in messages] == expected


async def test_one_not_settled_does_not_hold_back_what_is(gateway: Gateway) -> None:
    spool_id = gateway.report(NewDelivery(DOCTOR.address, TargetKind.SMTP), NewDelivery(OTHER_DOCTOR, TargetKind.SMTP))
    first, second = gateway.spool.claim(10, 60.0)
    gateway.spool.settle(first, Delivered("250", reports=True))
    receipt = gateway.mail(dsn(spool_id, status("delivered", to=first.recipient)))
    waiting = gateway.mail(dsn(spool_id, status("delivered", to=second.recipient)))
    stranger = gateway.mail(dsn(spool_id, status("delivered", to=second.recipient)), peer="CN=another operator")
    assert [shown(message) for message in await gateway.zam(receipt, stranger)] == [("Z02", "Y", "")]
    with pytest.raises(NotSettledError):
        await gateway.consumer.ended(waiting)


@pytest.mark.parametrize("envelope_id", ["", "x" * 32, "0" * 32, "' OR 1=1"])
async def test_a_receipt_about_nothing(gateway: Gateway, envelope_id: str) -> None:
    gateway.report()
    gateway.settle(Delivered("250 queued", reports=True))
    assert await gateway.zam(gateway.mail(dsn(envelope_id, status("delivered")))) == []


async def test_a_receipt_about_somebody_else_s_message(gateway: Gateway) -> None:
    """The envelope id of a message that no sending system's mailbox sent."""
    accepted = gateway.spool.accept(
        Submission(
            Origin.SUBMISSION,
            "doctor@labo.example",
            "account",
            b"From: x\r\n\r\n",
            "message/rfc822",
            (NewDelivery(DOCTOR.address, TargetKind.SMTP),),
            "other",
            "labo.example",
        )
    )
    gateway.settle(Delivered("250 queued", reports=True))
    assert await gateway.zam(gateway.mail(dsn(accepted.spool_id, status("delivered")))) == []


async def test_a_receipt_faster_than_our_own_settling_is_read_again(gateway: Gateway) -> None:
    spool_id = gateway.report()
    (lease,) = gateway.spool.claim(1, 60.0)
    receipt = gateway.mail(dsn(spool_id, status("delivered")))
    with pytest.raises(NotSettledError):
        await gateway.consumer.ended(receipt)
    gateway.spool.settle(lease, Delivered("250 queued", reports=True))
    (message,) = await gateway.zam(receipt)
    assert shown(message) == ("Z02", "Y", "")


# What an MDN says


@pytest.mark.parametrize(
    ("disposition", "error", "expected"),
    [
        ("displayed", "", ("Z03", "Y", "")),
        ("processed", "", ("Z03", "Y", "")),
        ("processed/error", "902^Identifiant de patient inconnu", ("Z03", "N", "902")),
        ("processed/Error: 904^INS", "", ("Z03", "N", "904")),
        ("processed/error", "", ("Z03", "N", "906")),
        ("deleted", "", None),
        ("dispatched", "", None),
    ],
)
async def test_the_reader_s_receipt(
    gateway: Gateway, disposition: str, error: str, expected: tuple[str, str, str] | None
) -> None:
    gateway.report(ack_reception=False)
    sent = gateway.settle(Delivered("250 queued", reports=True))
    receipt = gateway.mail(
        mdn(sent.message_id, disposition, error),
        sender=DOCTOR.address,
        signature="valid",
        signer=DOCTOR.address.upper(),
    )
    messages = await gateway.zam(receipt)
    assert [shown(message) for message in messages] == ([expected] if expected else [])
    if messages:
        assert messages[0].segments("OBX")[1].field(5).component(4).text == DOCTOR.address


async def test_read_by_a_person_and_not_taken_up_by_software_are_both_told_once(gateway: Gateway) -> None:
    gateway.report()
    sent = gateway.settle(Delivered("250 queued", reports=True))
    receipts = [
        gateway.mail(mdn(sent.message_id, said), signature="valid", signer=DOCTOR.address)
        for said in ("displayed", "processed/error", "displayed", "processed/error")
    ]
    messages = await gateway.zam(*receipts)
    assert sorted(shown(message) for message in messages) == [("Z03", "N", "906"), ("Z03", "Y", "")]
    assert len({message.header.field(10).text for message in messages}) == 2


@pytest.mark.parametrize(
    "lie",
    [
        {"signature": "none", "signer": DOCTOR.address},
        {"signature": "mismatch", "signer": DOCTOR.address},
        {"signature": "valid", "signer": OTHER_DOCTOR},
        {"signature": "valid", "signer": "-"},
        {"signature": "valid", "signer": DOCTOR.address, "opened": False},
        {"signature": "valid", "signer": DOCTOR.address, "to": "autre@labo.example"},
    ],
)
async def test_a_reader_s_receipt_by_somebody_else(gateway: Gateway, lie: dict[str, object]) -> None:
    gateway.report()
    sent = gateway.settle(Delivered("250 queued", reports=True))
    forged = b"X-Relais-Verdict: decrypted=yes; signature=valid; signer=" + DOCTOR.address.encode() + b"; path=ok\r\n"
    receipt = gateway.mail(forged + mdn(sent.message_id, "displayed"), **lie)  # type: ignore[arg-type]
    with structlog.testing.capture_logs() as logs:
        assert await gateway.zam(receipt) == []
    assert "@" not in str(logs)


async def test_an_mdn_about_an_identifier_of_something_else(gateway: Gateway) -> None:
    """MSH-10 is looked up like a Message-ID: it must not be taken for one."""
    gateway.report()
    gateway.settle(Delivered("250 queued", reports=True))
    for message_id in ("M1", "<M1>", "", "<unknown@labo.example>"):
        receipt = gateway.mail(mdn(message_id, "displayed"), signature="valid", signer=DOCTOR.address)
        assert await gateway.zam(receipt) == []


async def test_all_the_way_into_the_laboratory_s_folder(gateway: Gateway, tmp_path: Path) -> None:
    filed: asyncio.Queue[Path] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    listener = FilingListener(
        tmp_path / "zam", filed=lambda path: loop.call_soon_threadsafe(filed.put_nowait, path) and None
    )
    target = MllpTarget({"sil": ("127.0.0.1", await listener.start("127.0.0.1", 0))})
    worker = Worker(gateway.spool, (), {TargetKind.MLLP: target})
    reporter = Reporter(gateway.spool, [gateway.consumer])
    running = [asyncio.create_task(worker.run()), asyncio.create_task(reporter.run())]
    try:
        refused = Refused(RECIPIENT_UNKNOWN)
        gateway.report(NewDelivery("inconnu@test-ci-sis.mssante.fr", TargetKind.SMTP, refused=refused))
        async with asyncio.timeout(20):
            path = await filed.get()
    finally:
        await reporter.stop()
        await worker.stop(5)
        await asyncio.gather(*running)
        await target.close()
        await listener.stop()
    message = er7.parse(path.read_bytes(), max_bytes=10_000)
    assert isinstance(message, Er7Message)
    assert shown(message) == ("Z02", "N", "550")
    assert len(gateway.spool.find(message.header.field(10).text)) == 1


def test_acknowledgements_pass_no_stage_for_mail() -> None:
    assert phases(Origin.SYSTEM, TargetKind.MLLP) == ()


# What is said twice, and what is taken back


@pytest.mark.parametrize(("first", "then"), [("delivered", "failed"), ("failed", "delivered")])
async def test_the_contrary_is_told_once(gateway: Gateway, first: str, then: str) -> None:
    spool_id = gateway.report()
    gateway.settle(Delivered("250", reports=True))
    said = {"delivered": ("Z02", "Y", ""), "failed": ("Z02", "N", "550")}

    async def comes(action: str) -> list[tuple[str, str, str]]:
        code = "5.1.1" if action == "failed" else "2.0.0"
        return [shown(each) for each in await gateway.zam(gateway.mail(dsn(spool_id, status(action, code))))]

    assert await comes(first) == [said[first]]
    assert await comes(first) == []
    assert await comes(then) == [said[then]]
    for action in (then, first, then):
        assert await comes(action) == []


async def test_what_another_reader_got_instead_says_nothing_of_the_one_who_was_named(gateway: Gateway) -> None:
    gateway.report()
    sent = gateway.settle(Delivered("250 queued", reports=True))
    gateway.consumer.unread(sent, 1_800_000_000.0)
    gateway.consumer.unread(replace(sent, delivery_id="f" * 32, flags=(INSTEAD + sent.delivery_id,)), 1_800_000_000.0)
    told = [each.segments("OBX")[1] for each in await gateway.zam()]
    assert [each.field(4).text for each in told] == [DOCTOR.identifier, ""]


@pytest.mark.parametrize("asked", [True, False])
async def test_a_critical_result_nobody_has_read_is_told_and_its_reading_after_all(
    gateway: Gateway, asked: bool
) -> None:
    """At its deadline, also to a system that asked for no reading receipts, once; then Z03 Y when it was read."""
    gateway.report(ack_reception=False, ack_reading=asked)
    sent = gateway.settle(Delivered("250 queued", reports=True))
    for _ in range(2):
        gateway.consumer.unread(sent, 1_800_000_000.0)
    (late,) = await gateway.zam()
    assert shown(late) == ("Z03", "N", "906")
    assert "non lu dans le délai" in late.segments("ERR")[0].field(8).component(1).text
    read = gateway.mail(mdn(sent.message_id, "displayed"), signature="valid", signer=DOCTOR.address)
    assert [shown(each)[:2] for each in await gateway.zam(read)] == ([("Z03", "Y")] if asked else [])
