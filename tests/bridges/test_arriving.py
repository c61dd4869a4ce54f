"""Mail made ready for its reader: protected and opened for real, read back as a mail program and openssl read it."""

from __future__ import annotations

import base64
import email
import email.policy
import random
import re
import subprocess
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.message import EmailMessage
from io import BytesIO
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from bridges.arriving.contents import OURS, imitates, look
from bridges.arriving.earlier import DossierValues
from bridges.arriving.stage import ArrivalStage
from bridges.cda import examine, read_cda
from bridges.dossier.repository import Dossier
from bridges.dossier.rights import Reader, load_matrix
from bridges.hl7.reader import parse
from bridges.hprim import write_hprim
from bridges.report import Action, Audience, Report
from bridges.screening import ScreenStage
from bridges.summary import body
from bridges.xdm import write_xdm
from directory.partners import PartnerBook
from directory.records import MailboxKind, Partner, Recipient
from directory.resolve import DirectoryUnavailableError
from mta import refusals
from mta.mailboxes.records import Custody, MailboxRecord
from mta.message import Message, Origin, Phase, Stage
from mta.opening import OpenStage
from mta.protecting import ProtectStage
from smime import Suite, encrypt, join_message, sign
from smime.mime import parse_entity, split_message, split_multipart
from smime.refusals import CANNOT_OPEN
from tests.mta.mailboxes import Directory, Mailboxes, agreements
from tests.smime.test_tnef import attachment, tnef
from tests.support import reports
from trust.issuing import DemonstrationAuthority
from trust.journal import Journal
from trust.refusals import Refused
from trust.store import metadata
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyUse, KeyVault

LABO, GRIS, NOIR = "labo@op1.example", "dr.gris@op1.example", "dr.noir@op2.example"
NORMAL = (
    reports.Section(
        "BIOCHIMIE",
        "18719-5",
        (reports.Observation("Sodium", "2951-2", "Sodium", "139", "mmol/L", "136", "145", "N"),),
    ),
)


@pytest.fixture(scope="module")
def people() -> Mailboxes:
    return Mailboxes(DemonstrationAuthority.create("Arrivées"))


@pytest.fixture(scope="module")
def held(people: Mailboxes) -> Mailboxes:
    """Keys of the same addresses that only their holders have."""
    return Mailboxes(people.authority)


@dataclass
class Registry:
    record: MailboxRecord | None

    def find(self, address: str) -> MailboxRecord | None:
        return self.record if self.record is not None and address == self.record.address else None

    def custody(self, address: str) -> Custody:
        found = self.find(address)
        return Custody.GATEWAY if found is None else found.preferences.custody

    def prefer(self, **wanted: object) -> None:
        assert self.record is not None
        self.record = replace(
            self.record,
            preferences=replace(self.record.preferences, **wanted),  # type: ignore[arg-type]
        )


@dataclass
class Gateway:
    """What a mail passes from its author to the mailbox."""

    vault: KeyVault
    people: Mailboxes
    directory: Directory
    registry: Registry
    published: dict[str, list[x509.Certificate]]
    down: bool = False
    earlier: DossierValues | None = None

    def _published(self, address: str) -> list[x509.Certificate]:
        if self.down:
            raise DirectoryUnavailableError
        return self.published.get(address, [])

    def opening(self) -> OpenStage:
        return OpenStage(
            self.vault,
            self.people.validator,
            PartnerBook([]),
            "gate.op2.example",
            custody=self.registry.custody,
            held_elsewhere=self._published,
        )

    async def protect(self, content: bytes, *partners: Partner) -> bytes:
        stage = ProtectStage(
            self.vault, self.directory, self.people.validator, {}.get, "gate.op1.example", agreements(*partners)
        )
        protected = await stage.apply(a_message(content, Origin.SUBMISSION), Phase.PROTECT)
        assert isinstance(protected, Message), protected
        return protected.content

    async def arrive(self, content: bytes, **more: object) -> Message | Refused:
        message: Message | Refused = replace(a_message(content, Origin.OPERATOR), **more)  # type: ignore[arg-type]
        arriving = ArrivalStage("gate.op2.example", self.registry.find, self.earlier)
        stages: tuple[tuple[Stage, Phase], ...] = (
            (self.opening(), Phase.OPEN), (ScreenStage(), Phase.SCREEN), (arriving, Phase.SCREEN),
        )  # fmt: skip
        for stage, phase in stages:
            assert isinstance(message, Message)
            message = await stage.apply(message, phase)
            if isinstance(message, Refused):
                return message
        return message

    async def read(self, content: bytes, **more: object) -> EmailMessage:
        arrived = await self.arrive(content, **more)
        assert isinstance(arrived, Message), arrived
        return parsed(arrived.content)


def a_message(content: bytes, origin: Origin) -> Message:
    return Message(
        message_id="<1@op1.example>",
        spool_id="s1",
        delivery_id="d1",
        origin=origin,
        sender=LABO,
        recipient=NOIR,
        content=content,
        content_type="message/rfc822",
        accepted_at=1_800_000_000.0,
    )


@pytest.fixture
def gateway(tmp_path: Path, people: Mailboxes) -> Gateway:
    vault = KeyVault.create(tmp_path / "vault")
    people.install(vault, LABO, NOIR)
    record = MailboxRecord(address=NOIR, kind=MailboxKind.PER, label="Dr Jean NOIR")
    return Gateway(vault, people, Directory.of(people), Registry(record), {})


def parsed(content: bytes) -> EmailMessage:
    mail = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(mail, EmailMessage)
    return mail


def first_words(mail: EmailMessage) -> str:
    """What a mail program shows first."""
    part = next(part for part in mail.walk() if part.get_content_type() == "text/plain")
    return str(part.get_content()).replace("\r\n", "\n")


def a_report(**options: object) -> Report:
    read = parse(reports.message(**options), environment="test")  # type: ignore[arg-type]
    assert isinstance(read, Report)
    return read


def mail(*attachments: tuple[str, bytes], words: str = "Bonjour, voici les résultats.", headers: str = "") -> bytes:
    """As an ordinary mail program writes it."""
    written = EmailMessage(policy=email.policy.SMTP)
    written["From"], written["To"], written["Subject"] = LABO, NOIR, "Résultats"
    written["Message-ID"] = "<1@op1.example>"
    written.set_content(words)
    for name, data in attachments:
        written.add_attachment(data, maintype="application", subtype="octet-stream", filename=name)
    return headers.encode() + bytes(written)


def xdm(report: Report, *, withdrawn: bool = False) -> tuple[str, bytes]:
    at = datetime(2026, 11, 20, tzinfo=UTC)
    action = Action.DELETE if withdrawn else report.action
    return "IHE_XDM.zip", write_xdm(report, at=at, source_id="1.2.3", submission_id="1.2.4", action=action)


# --- What the reader sees --------------------------------------------------------------------------------------------


async def test_a_report_says_who_signed_and_what_is_critical_before_anything_else(gateway: Gateway) -> None:
    read = await gateway.read(await gateway.protect(mail(xdm(a_report()))))
    words = first_words(read)
    opening, first = words.split("\n")[:2]
    assert opening == "Avis de la passerelle gate.op2.example"
    assert first == "Message signé par labo@op1.example : signature vérifiée. Il est arrivé chiffré."
    order = [words.index(each) for each in ("ESSAI-UN", "RÉSULTATS CRITIQUES", "6.4 mmol/L", "ANORMAUX", "9.8 g/dL")]
    assert order == sorted(order)
    assert words.index("9.8 g/dL") < words.index("AUTRES RÉSULTATS") < words.index("limpide")
    assert set(read["X-Relais-Marks"].split(", ")) == {"laboratory", "critical", "abnormal", "verified"}
    assert read["X-Relais-Folder"] is None, "filing is for who asked for it"


async def test_what_was_signed_stays_what_it_was(gateway: Gateway, tmp_path: Path) -> None:
    """openssl verifies the enclosed part against the authority, and finds in it what was written."""
    written = mail(xdm(a_report()))
    arrived = await gateway.arrive(await gateway.protect(written))
    assert isinstance(arrived, Message)
    top = parse_entity(arrived.content)
    parts = split_multipart(top, top.content_type().parameters["boundary"])
    notice, signed = (parse_entity(arrived.content, *part) for part in parts)
    assert notice.content_type().media_type == "text/plain"
    assert signed.content_type().media_type == "multipart/signed"
    (tmp_path / "inside").write_bytes(bytes(signed.whole))
    content = openssl_verifies(tmp_path, gateway.people.authority)
    (archive,) = (part for part in parsed(content).walk() if part.get_filename() == "IHE_XDM.zip")
    assert zipfile.ZipFile(BytesIO(archive.get_payload(decode=True))).testzip() is None  # type: ignore[arg-type]


async def test_the_same_mail_is_made_ready_alike_each_time(gateway: Gateway) -> None:
    sent = await gateway.protect(mail(xdm(a_report())))
    one, two = await gateway.arrive(sent), await gateway.arrive(sent)
    assert isinstance(one, Message)
    assert one == two


@pytest.mark.parametrize(
    ("spoil", "said", "mark"),
    [
        (lambda mail: mail.replace(b"Bonjour", b"Bonsoir"), "Signature fausse", "doubtful"),
        (
            lambda mail: mail.replace(b"From: labo@", b"From: dr.gris@"),
            "qui n'est pas l'expéditeur affiché",
            "doubtful",
        ),
        (lambda mail: mail, "signature vérifiée", "verified"),
    ],
)
async def test_what_is_said_of_a_signature(gateway: Gateway, spoil, said: str, mark: str) -> None:
    outer, entity = split_message(mail())
    signer = gateway.vault.signer(LABO)
    assert signer is not None
    read = await gateway.read(spoil(join_message(outer, sign(entity, signer))))
    words = first_words(read)
    assert said in words
    assert "sans être chiffré" in words
    assert read["X-Relais-Marks"] == mark


async def test_who_is_not_believed_and_who_did_not_sign(gateway: Gateway) -> None:
    issued = DemonstrationAuthority.create("Ailleurs").issue_mailbox(LABO, "BAL", "signing", "p256")
    gateway.vault.install("labo@op1.example", KeyUse.SIGNING, issued.key, issued.certificate, issued.chain)
    signer = gateway.vault.signer(LABO)
    assert signer is not None
    outer, entity = split_message(mail())
    assert "son émetteur n'est pas reconnu" in first_words(
        await gateway.read(join_message(outer, sign(entity, signer)))
    )
    unsigned = first_words(await gateway.read(mail()))
    assert "Message non signé ; rien ne prouve qui l'a écrit." in unsigned


async def test_nobody_else_writes_our_words(gateway: Gateway) -> None:
    """Neither header fields, outside or inside what is encrypted, nor a notice of the sender's own."""
    forged = "X-Relais-Marks: critical\r\nX-Relais-Folder: Biologie\r\nX-Relais-Verdict: decrypted=yes\r\n"
    sent = forged.encode() + await gateway.protect(
        mail(words="  -- Avis de la passerelle gate.op2.example\nSignature vérifiée.", headers=forged)
    )
    gateway.registry.prefer(filing=True)
    read = await gateway.read(sent)
    assert read["X-Relais-Marks"] == "verified"
    assert read["X-Relais-Folder"] is None
    assert len(read.get_all("X-Relais-Verdict")) == 1
    words = first_words(read)
    assert words.index("gate.op2.example\nMessage signé") < words.index("imite cet avis")


async def test_a_name_inside_does_not_speak_for_us(gateway: Gateway) -> None:
    """A file name is quoted, on one line, and short."""
    words = first_words(await gateway.read(mail(("setup.exe", b"MZ" + b"\0" * 60))))
    assert "Attention : la pièce jointe « setup.exe » peut lancer un programme" in words
    named = mail(("setup.exe", b"MZ" + b"\0" * 60)).replace(
        b'filename="setup.exe"', b"filename*=utf-8''x%C2%BB%0D%0AR%C3%89SULTATS%20CRITIQUES.exe"
    )
    words = first_words(await gateway.read(named))
    assert "« x résultats critiques.exe »" in words


async def test_what_cannot_be_opened_safely_is_said(gateway: Gateway) -> None:
    read = await gateway.read(await gateway.protect(mail(("dossier.7z", b"7z\xbc\xaf\x27\x1c" + b"\0" * 40))))
    assert "« dossier.7z » est une archive qui n'a pas pu être examinée" in first_words(read)
    assert "danger" in read["X-Relais-Marks"]
    read = await gateway.read(mail(("IHE_XDM.zip", b"PK\x03\x04 nothing")))
    assert "« ihe_xdm.zip »" in first_words(read)


async def test_another_relais_has_said_it_already(gateway: Gateway) -> None:
    report = a_report()
    own = body(report, Audience.PROFESSIONAL, "production")
    words = first_words(await gateway.read(await gateway.protect(mail(xdm(report), words=own))))
    assert "Signature vérifiée" in words or "signature vérifiée" in words
    assert "Résumé établi" not in words


async def test_a_withdrawal_shows_no_values(gateway: Gateway) -> None:
    read = await gateway.read(await gateway.protect(mail(xdm(a_report(), withdrawn=True))))
    words = first_words(read)
    assert "retiré par ce message" in words
    assert "6.4 mmol/L" not in words
    assert "critical" not in read["X-Relais-Marks"]


async def test_normal_results_are_no_alarm(gateway: Gateway) -> None:
    read = await gateway.read(await gateway.protect(mail(("cr.xml", reports.cda(sections=NORMAL)))))
    assert read["X-Relais-Marks"] == "laboratory, verified"
    assert "AUTRES RÉSULTATS" in first_words(read)


async def test_a_patient_is_told_who_signed_and_is_not_alarmed(gateway: Gateway) -> None:
    assert gateway.registry.record is not None
    gateway.registry.record = replace(gateway.registry.record, kind=MailboxKind.PATIENT)
    read = await gateway.read(await gateway.protect(mail(xdm(a_report()))))
    words = first_words(read)
    assert "signature vérifiée" in words
    assert "CRITIQUES" not in words
    assert set(read["X-Relais-Marks"].split(", ")) == {"laboratory", "verified"}


async def test_a_machine_and_who_wants_none_get_no_words(gateway: Gateway) -> None:
    sent = await gateway.protect(mail(xdm(a_report())))
    assert gateway.registry.record is not None
    person = gateway.registry.record
    gateway.registry.record = replace(person, kind=MailboxKind.APP)
    read = await gateway.read(sent)
    assert read.get_content_type() == "multipart/signed"
    assert "critical" in read["X-Relais-Marks"]
    gateway.registry.record = person
    gateway.registry.prefer(verdict_line=False, summary=False, flags=False)
    read = await gateway.read(sent)
    assert (read.get_content_type(), read["X-Relais-Marks"]) == ("multipart/signed", None)
    gateway.registry.record = None
    assert (await gateway.read(sent)).get_content_type() == "multipart/signed", "no record, nothing added"


async def test_filing_is_for_one_kind_of_document(gateway: Gateway) -> None:
    gateway.registry.prefer(filing=True)
    assert (await gateway.read(mail(xdm(a_report()))))["X-Relais-Folder"] == "Biologie"
    both = mail(("a.xml", reports.cda()), ("b.xml", reports.cda(level=1, unique_id="1.2.250.1.999.1.7")))
    assert (await gateway.read(both))["X-Relais-Folder"] is None
    assert (await gateway.read(mail()))["X-Relais-Folder"] is None


RECEIPT = (
    b"From: dr.gris@op1.example\r\nTo: dr.noir@op2.example\r\nSubject: Lu\r\nMIME-Version: 1.0\r\n"
    b'Content-Type: multipart/report; report-type=disposition-notification; boundary="b"\r\n\r\n'
    b"--b\r\nContent-Type: text/plain\r\n\r\nLu.\r\n"
    b"--b\r\nContent-Type: message/disposition-notification\r\n\r\n"
    b"Final-Recipient: rfc822;dr.gris@op1.example\r\nOriginal-Message-ID: <9@op2.example>\r\n"
    b"Disposition: manual-action/MDN-sent-manually; displayed\r\n\r\n--b--\r\n"
)


async def test_receipts_stay_where_programs_look_for_them(gateway: Gateway) -> None:
    read = await gateway.read(RECEIPT)
    assert read.get_content_type() == "multipart/report"
    outer, entity = split_message(RECEIPT.replace(b"dr.gris@op1", b"labo@op1"))
    signer = gateway.vault.signer(LABO)
    assert signer is not None
    opaque = join_message(outer, sign(entity, signer, suite=Suite(opaque=True)))
    assert (await gateway.read(opaque)).get_content_type() == "application/pkcs7-mime"


async def test_what_an_opaque_signature_hides_is_shown(gateway: Gateway) -> None:
    sent = await gateway.protect(mail(xdm(a_report())), Partner("op2.example", opaque_signature=True))
    read = await gateway.read(sent)
    kinds = [part.get_content_type() for part in read.walk()]
    assert kinds.index("application/octet-stream") < kinds.index("application/pkcs7-mime")
    words = first_words(read)
    assert "signature vérifiée" in words
    assert "RÉSULTATS CRITIQUES" in words
    assert "chiffrée ou signée à part" not in words, "the original is ours to know"
    assert any(part.get_filename() == "message-original.p7m" for part in read.walk())


@pytest.mark.parametrize(
    "hostile",
    [
        b"From: labo@op1.example\r\nContent-Type: multipart/mixed\r\n\r\nno boundary\r\n",
        b"From: labo@op1.example\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nopen\r\n",
        b"From: labo@op1.example\r\nContent-Type: text/plain; charset=\xff\r\n\r\n\xff\xfe\r\n",
        b"From: labo@op1.example\r\n\r\n",
        b"From: labo@op1.example\r\nContent-Type: text/xml\r\n\r\n<ClinicalDocument xmlns='urn:hl7-org:v3'/>\r\n",
        b"From: labo@op1.example\r\nContent-Transfer-Encoding: base64\r\nContent-Type: text/xml\r\n\r\n%%%\r\n",
    ],
)
async def test_a_mail_badly_written_is_filed_all_the_same(gateway: Gateway, hostile: bytes) -> None:
    body = hostile.partition(b"\r\n\r\n")[2]
    arrived = await gateway.arrive(hostile)
    assert isinstance(arrived, Message)
    assert body in arrived.content


async def test_no_flipped_octet_keeps_a_mail_from_its_reader(gateway: Gateway) -> None:
    """Wherever a mail is damaged, it is filed; and nothing damaged is called verified."""
    outer, entity = split_message(mail(xdm(a_report()), ("a.xml", reports.cda())))
    signer = gateway.vault.signer(LABO)
    assert signer is not None
    sent = join_message(outer, sign(entity, signer))
    top = parse_entity(sent)
    signed = range(*split_multipart(top, top.content_type().parameters["boundary"])[0])
    chance = random.Random(8)
    for _ in range(40):
        place = chance.randrange(top.body_start, len(sent))
        spoilt = sent[:place] + bytes([sent[place] ^ (1 << chance.randrange(5))]) + sent[place + 1 :]
        arrived = await gateway.arrive(spoilt)
        if isinstance(arrived, Refused):
            assert arrived.refusal.permanent, "its sender is told"
            continue
        read = parsed(arrived.content)
        assert "Avis de la passerelle" in first_words(read)
        assert place not in signed or "verified" not in str(read["X-Relais-Marks"])


def unsigned_receipt(words: str, *more: bytes, returned: bytes = b"") -> bytes:
    """Anybody may write such a mail and call it a reading receipt."""
    parts = [
        b"Content-Type: text/plain; charset=utf-8\r\n\r\n" + words.encode() + b"\r\n",
        RECEIPT.partition(b"--b\r\nContent-Type: message/")[2].partition(b"--b--")[0],
    ]
    parts[1] = b"Content-Type: message/" + parts[1]
    if returned:
        parts.append(b"Content-Type: message/rfc822\r\n\r\n" + returned + b"\r\n")
    header = RECEIPT.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    return header + b"".join(b"--b\r\n" + part for part in (*parts, *more)) + b"--b--\r\n"


FORGED = "Avis de la passerelle gate.op2.example\r\nMessage signé par dr.gris@op1.example : signature vérifiée."


async def test_who_calls_his_mail_a_receipt_writes_no_notice_of_ours(gateway: Gateway) -> None:
    words = first_words(await gateway.read(unsigned_receipt(FORGED)))
    assert words.startswith("Avis de la passerelle gate.op2.example\nMessage non signé")
    assert "imite cet avis" in words
    program = b"Content-Type: application/octet-stream; name=lu.exe\r\n\r\nMZ\r\n"
    read = await gateway.read(unsigned_receipt("Lu.", program))
    assert "« lu.exe » peut lancer un programme" in first_words(read)
    assert read["X-Relais-Marks"] == "danger"
    assert (await gateway.read(unsigned_receipt("Lu."))).get_content_type() == "multipart/report"


async def test_a_verified_reader_may_send_back_what_holds_our_notice(gateway: Gateway) -> None:
    """What quotes us in the mail a receipt returns must not hide the receipt from programs."""
    returned = b"From: labo@op1.example\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n" + FORGED.encode()
    outer, entity = split_message(unsigned_receipt("Lu.", returned=returned).replace(b"dr.gris@op1", b"labo@op1"))
    signer = gateway.vault.signer(LABO)
    assert signer is not None
    read = await gateway.read(join_message(outer, sign(entity, signer)))
    assert (read.get_content_type(), read["X-Relais-Marks"]) == ("multipart/signed", "verified")
    outer, entity = split_message(unsigned_receipt(FORGED).replace(b"dr.gris@op1", b"labo@op1"))
    assert "imite cet avis" in first_words(await gateway.read(join_message(outer, sign(entity, signer))))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("text/plain", FORGED),
        ("text/plain; name=lisez.txt", f"  ** {FORGED}"),
        ("text/html", "<p>Bonjour</p><div>Avis de la <b>passerelle</b> x</div>"),
        ("text/html", "Bonjour<br>Avis&nbsp;de\u200b la\r\n  passerelle x"),
        ("text/plain; charset=utf-16", FORGED),
    ],
)
async def test_a_notice_is_imitated_in_whatever_text(gateway: Gateway, kind: str, words: str) -> None:
    """Also where the reader wants no verdict: then the sender's would be the only one."""
    charset = "utf-16" if "utf-16" in kind else "utf-8"
    kind = kind if "charset" in kind else f"{kind}; charset=utf-8"
    first = b"Content-Type: text/plain\r\n\r\nBonjour\r\n"
    second = f"Content-Type: {kind}\r\nContent-Transfer-Encoding: base64\r\n\r\n".encode()
    second += base64.encodebytes(words.encode(charset)).replace(b"\n", b"\r\n")
    for parts in ((second,), (first, second)):
        whole = b"From: a@b.example\r\nContent-Type: multipart/alternative; boundary=b\r\n\r\n"
        whole += b"".join(b"--b\r\n" + part for part in parts) + b"--b--\r\n"
        gateway.registry.prefer(verdict_line=False)
        assert "imite cet avis" in first_words(await gateway.read(whole))
    assert not imitates("Vous trouverez dans l'avis de la passerelle ce qui suit")


@pytest.mark.parametrize(
    "filling", ["\n" * 200_000, " " * 200_000, "\r\n \t" * 50_000, "Avis de la passerell" * 20_000]
)
def test_no_text_takes_long_to_be_looked_at(filling: str) -> None:
    """A regular expression that takes minutes would stop the doors of the whole gateway."""
    began = time.process_time()
    assert not imitates(f"x{filling}x")
    assert imitates(f"x{filling}\nAvis de la passerelle")
    assert time.process_time() - began < 1


# --- What a stranger's documents may cost ---------------------------------------------------------------------------


def costly(count: int = 5000, text: str = "valeur " * 70_000) -> bytes:
    """Every observation points at the same half megabyte."""
    one = (
        b'<entry><observation classCode="OBS" moodCode="EVN"><templateId root="1.3.6.1.4.1.19376.1.3.1.6"/>'
        b'<code code="x"><originalText><reference value="#a"/></originalText></code>'
        b'<value><reference value="#a"/></value></observation></entry>'
    )
    document = reports.cda(sections=NORMAL, with_pdf=False)
    head, mark, tail = document.rpartition(b"</section>")
    return head + b'<text ID="a">' + text.encode() + b"</text>" + one * count + mark + tail


def test_what_many_results_share_is_kept_once_and_short() -> None:
    document = costly()
    assert len(document) < 3_000_000
    tracemalloc.start()
    began = time.process_time()
    read = read_cda(document)
    spent, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not isinstance(read, Refused)
    assert peak < 60_000_000
    assert spent < 10
    assert len(read.results) <= 5001
    assert max(len(each.value) for each in read.results) <= 1000
    assert read.results[-1].value.endswith("…")


def test_results_have_a_most_and_it_is_said() -> None:
    read = examine(costly(5100, "v"))
    assert not isinstance(read, Refused)
    document, findings = read
    assert len(document.results) == 5000
    assert "results-cut" in {each.code for each in findings}


def test_a_thousand_first_names_are_not_compared_with_each_other() -> None:
    names = b"".join(b"<given>%s</given>" % b" ".join(b"n%d" % (n * 1000 + i) for i in range(1000)) for n in range(60))
    began = time.process_time()
    read = read_cda(reports.cda(sections=NORMAL).replace(b"</family>", b"</family>" + names, 1))
    assert not isinstance(read, Refused)
    assert len(read.patient.first_names) <= 50 * 60
    assert time.process_time() - began < 5


async def test_documents_that_cannot_be_read_count_too(gateway: Gateway) -> None:
    bad = [(f"{number}.xml", b"<ClinicalDocument xmlns='urn:hl7-org:v3'><!-- %d -->" % number) for number in range(20)]
    assert look(mail(*bad, ("cr.xml", reports.cda()))).documents == ()
    words = first_words(await gateway.read(mail(*bad, ("cr.xml", reports.cda()))))
    assert "trop volumineux ou trop nombreux pour être résumés" in words


async def test_what_is_too_large_to_be_summarised_is_said_and_is_critical_where_it_is_ours(gateway: Gateway) -> None:
    large = reports.cda().replace(b"</ClinicalDocument>", b"<!--" + b"x" * (10 << 20) + b"--></ClinicalDocument>")
    sent = mail(("cr.xml", large))
    assert "trop volumineux" in first_words(await gateway.read(sent))
    assert not look(sent).critical
    assert look(sent, OURS).critical


@pytest.mark.parametrize("disguise", ["protected", "packed", "drawn"])
async def test_only_what_was_screened_is_opened(gateway: Gateway, disguise: str) -> None:
    name, archive = xdm(a_report())
    kind, data = {
        "protected": (f"application/pkcs7-mime; name={name}", archive),
        "packed": (f"application/zip; name={name}", b"Rar!" + archive),
        "drawn": ("image/svg+xml; name=a.xml", reports.cda()),
    }[disguise]
    part = f"Content-Type: {kind}\r\nContent-Transfer-Encoding: base64\r\n\r\n".encode()
    whole = (
        b"From: a@b.example\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nBonjour\r\n--b\r\n" + part
    )
    whole += base64.encodebytes(data).replace(b"\n", b"\r\n") + b"--b--\r\n"
    assert look(whole).documents == ()
    assert "Patient :" not in first_words(await gateway.read(whole))


async def test_what_a_person_released_from_quarantine_is_marked(gateway: Gateway) -> None:
    read = await gateway.read(mail(), facts={"scan": "released"})
    assert "une personne a décidé de vous le remettre" in first_words(read)
    assert "danger" in read["X-Relais-Marks"]


# --- HPRIM -----------------------------------------------------------------------------------------------------------


async def test_practice_software_that_reads_only_hprim_gets_it(gateway: Gateway) -> None:
    gateway.registry.prefer(hprim=True)
    read = await gateway.read(await gateway.protect(mail(xdm(a_report()))))
    (part,) = (part for part in read.walk() if (part.get_filename() or "").endswith(".hpr"))
    payload = part.get_payload(decode=True)
    assert isinstance(payload, bytes)
    lines = payload.decode("cp1252").split("\r\n")
    assert lines[1:3] == ["ESSAI-UN", "CAMILLE"]
    assert lines[6:8] == ["30/02/1979", reports.PATIENT.matricule], "not a calendar date, and kept"
    assert "RES|Potassium|2823-3|N|C|6.4|mmol/L|3.5|5.1|HH|F||||" in lines
    assert "RES|Hépatite B (Ag HBs)|5196-1|A|C|Négatif|||||F||||" in lines
    assert lines.index("****LAB****") < lines.index("****FIN****") < lines.index("****FINFICHIER****")
    assert part.get_filename() == "20261119_CR-d-examens-biologiques.hpr", "it names nobody"


def test_nothing_of_a_report_is_lost_or_misread_in_hprim() -> None:
    ending = " ".join(["Aspect habituel de la muqueuse."] * 12) + " Il n'y a PAS de malignité."
    longer = "culture positive à plusieurs germes, " * 5 + "non significative"
    sections = (
        reports.Section(
            "HÉMATOLOGIE",
            "18719-5",
            (
                reports.Observation("Leucocytes", "6690-2", "Leucocytes", "7", "10\u2079/L", "4", "10", "N"),
                reports.Observation("\u03b2-HCG *******", "2118-8", "\u03b2-HCG", "3", "UI/L"),
                reports.Observation("Culture", "600-7", "Culture", longer, "", kind="ST"),
            ),
        ),
    )
    read = read_cda(reports.cda(sections=sections))
    assert not isinstance(read, Refused)
    read = replace(read, narrative=ending, type_code="34112-3", format_code="x")
    lines = write_hprim(read).decode("cp1252").split("\r\n")
    text = lines[12 : lines.index("****LAB****")]
    assert ending in " ".join(" ".join(text).split())
    assert max(map(len, text)) <= 250
    rows = [line.split("|") for line in lines if line.startswith("RES|")]
    assert rows[0][6] == "10^9/L", "not 109"
    assert rows[1][1] == "beta-HCG *"
    assert rows[2][5] == "voir le texte"


# --- Earlier values of the dossier -----------------------------------------------------------------------------------


@pytest.fixture
def dossier(tmp_path: Path, gateway: Gateway) -> Iterator[tuple[Database, Journal, Dossier]]:
    database = Database(f"sqlite:///{tmp_path / 'dossier.db'}")
    metadata.create_all(database.engine)
    journal = Journal(gateway.vault, "n1")
    blobs = BlobStore(tmp_path / "blobs", gateway.vault)
    yield database, journal, Dossier(database, blobs, gateway.vault, journal, load_matrix())
    database.close()


def deposit(dossier: Dossier, day: str, value: str, number: int, **flags: object) -> None:
    sections = (
        reports.Section(
            "BIOCHIMIE",
            "18719-5",
            (reports.Observation("Potassium", "2823-3", "Potassium", value, "mmol/L", "3.5", "5.1", "N"),),
        ),
    )
    document = reports.cda(
        sections=sections, unique_id=f"1.2.250.1.999.2.{number}", set_id=f"1.2.250.1.999.3.{number}", effective=day
    ).replace(b"20261119", day[:8].encode())
    report = a_report(documents=[document], control_id=f"D{number}", flags=reports.Flags(**flags))  # type: ignore[arg-type]
    assert not isinstance(dossier.deposit(report, delivery_id=f"d{number}", depositor="labo"), Refused)


async def test_earlier_values_only_as_the_reader_may_see_them(gateway: Gateway, dossier) -> None:
    database, journal, kept = dossier
    deposit(kept, "20261001080000+0100", "4.4", 1)
    deposit(kept, "20261015080000+0100", "5.7", 2, masked=True, to_professionals=False)
    deposit(kept, "20261121080000+0100", "9.9", 3)
    doctor = Reader("801111111117", "Dr Noir", "10")
    readers = {NOIR: doctor}
    gateway.earlier = DossierValues(kept, readers.get)
    sent = await gateway.protect(mail(xdm(a_report())))
    words = first_words(await gateway.read(sent))
    assert "Potassium : 4.4 mmol/L le 01/10/2026" in words
    assert "5.7" not in words, "masked"
    assert "9.9" not in words, "later than what arrives"
    entries = [each.entry for each in database.read(journal.entries) if each.entry is not None]
    opened = [each for each in entries if each.action == "dossier.read"]
    assert [each.outcome for each in opened] == ["granted"]
    assert opened[0].actor == doctor.id_nat or doctor.id_nat in str(opened[0])
    own = body(a_report(), Audience.PROFESSIONAL, "production")
    words = first_words(await gateway.read(await gateway.protect(mail(xdm(a_report()), words=own))))
    assert "RÉSULTATS CRITIQUES" not in words, "said already"
    assert "Potassium : 4.4 mmol/L le 01/10/2026" in words
    readers[NOIR] = Reader("801111111117", "Dr Noir", "99")
    assert "4.4" not in first_words(await gateway.read(sent)), "a profession the matrix does not open it to"
    readers.clear()
    assert "VALEURS PRÉCÉDENTES" not in first_words(await gateway.read(sent))
    readers[NOIR] = doctor
    assert gateway.registry.record is not None
    gateway.registry.record = replace(gateway.registry.record, kind=MailboxKind.ORG)
    assert "VALEURS PRÉCÉDENTES" not in first_words(await gateway.read(sent)), "a team is no reader"


async def values(gateway: Gateway, *documents: bytes, signed: bool = True) -> str:
    written = mail(*((f"{number}.xml", document) for number, document in enumerate(documents)))
    return first_words(await gateway.read(await gateway.protect(written) if signed else written))


async def test_each_report_has_its_own_earlier_values(gateway: Gateway, dossier) -> None:
    _, journal, kept = dossier
    deposit(kept, "20260101080000+0100", "4.1", 1)
    deposit(kept, "20260201080000+0100", "4.2", 2)
    gateway.earlier = DossierValues(kept, {NOIR: Reader("801111111117", "Dr Noir", "10")}.get)
    january, march = (
        reports.cda(unique_id=f"1.2.250.1.999.9.{month}").replace(b"20261119", f"2026{month}10".encode())
        for month in ("01", "03")
    )
    words = await values(gateway, january, march)
    first, second = words.split("VALEURS PRÉCÉDENTES")[1:]
    assert "4.1 mmol/L le 01/01/2026" in first
    assert "4.2" not in first, "of a day after that report"
    assert "4.2 mmol/L le 01/02/2026" in second
    lists = [each for each in dossier[0].read(journal.entries) if each.entry and each.entry.action == "dossier.list"]
    assert len(lists) == 1, "once for the mail"


async def test_no_earlier_values_under_another_patient_or_for_an_unproven_sender(gateway: Gateway, dossier) -> None:
    database, journal, kept = dossier
    deposit(kept, "20261001080000+0100", "4.4", 1)
    gateway.earlier = DossierValues(kept, {NOIR: Reader("801111111117", "Dr Noir", "10")}.get)
    assert "4.4" in await values(gateway, reports.cda())

    def accesses() -> int:
        entries = [each.entry for each in database.read(journal.entries) if each.entry is not None]
        return sum(each.action in ("dossier.list", "dossier.read") for each in entries)

    before = accesses()
    assert "VALEURS PRÉCÉDENTES" not in await values(gateway, reports.cda(), signed=False)
    other = reports.cda(patient=replace(reports.PATIENT, oid="1.2.250.1.999.5"), unique_id="1.2.250.1.999.1.9")
    other = re.sub(rb'<id [^>]*extension="990001"[^>]*>', b"", other)
    assert "VALEURS PRÉCÉDENTES" not in await values(gateway, reports.cda(), other), "two patients"
    assert accesses() == before, "nobody's dossier was opened"
    for wrong in (replace(reports.PATIENT, birth_date="19790228"), replace(reports.PATIENT, family="AUTRE")):
        assert "4.4" not in await values(gateway, reports.cda(patient=wrong)), "a matricule alone is not a person"
    local = reports.cda().replace(b'codeSystem="2.16.840.1.113883.6.1"', b'codeSystem="1.2.250.1.999.77"')
    assert "4.4" not in await values(gateway, local), "another system's code is another analysis"


async def test_a_dossier_that_fails_holds_nothing_up(gateway: Gateway) -> None:
    class Broken:
        def of(self, *_: object) -> dict[str, object]:
            raise OSError("disk")

    gateway.earlier = Broken()  # type: ignore[assignment]
    assert "RÉSULTATS CRITIQUES" in first_words(await gateway.read(await gateway.protect(mail(xdm(a_report())))))


# --- Holders of keys -------------------------------------------------------------------------------------------------


def openssl_reads(tmp_path: Path, content: bytes, holder: Mailboxes) -> bytes:
    """Decrypted and verified by a client that has the key: what was written."""
    issued, pem = holder.keys[NOIR][KeyUse.ENCRYPTION], serialization.Encoding.PEM
    key = issued.key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "key").write_bytes(key)
    (tmp_path / "cert").write_bytes(issued.certificate.public_bytes(pem))
    (tmp_path / "mail").write_bytes(content)
    openssl(tmp_path, "-decrypt", "-in", "mail", "-recip", "cert", "-inkey", "key", "-out", "inside")
    return openssl_verifies(tmp_path, holder.authority)


def openssl_verifies(tmp_path: Path, authority: DemonstrationAuthority) -> bytes:
    """What is signed in the file `inside`."""
    chain = [each.public_bytes(serialization.Encoding.PEM) for each in (authority.root, authority.intermediate)]
    (tmp_path / "ca").write_bytes(b"".join(chain))
    openssl(tmp_path, "-verify", "-in", "inside", "-CAfile", "ca", "-purpose", "any", "-out", "content")
    return (tmp_path / "content").read_bytes()


def openssl(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["openssl", "cms", *arguments], cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


async def test_a_holder_gets_it_octet_by_octet_and_switches_back(
    gateway: Gateway, held: Mailboxes, tmp_path: Path
) -> None:
    """From the gateway's key to one of the holder's own and back; no mail of either time is lost."""
    theirs = held.keys[NOIR][KeyUse.ENCRYPTION].certificate
    old = await gateway.protect(mail(xdm(a_report())))  # for the gateway's key

    gateway.registry.prefer(custody=Custody.HOLDER, filing=True)
    gateway.directory.recipients[NOIR] = Recipient(NOIR, MailboxKind.PER, "", encryption_certificates=(theirs,))
    gateway.published[NOIR] = [theirs]
    sent = await gateway.protect(mail(xdm(a_report()), headers="X-MSS-CODECDA: 11502-2\r\n"))
    arrived = await gateway.arrive(b"X-Relais-Marks: danger\r\n" + sent)
    assert isinstance(arrived, Message)
    header, _, body = sent.partition(b"\r\n\r\n")
    assert arrived.content.partition(b"\r\n\r\n")[2] == body, "octet by octet"
    ours, kept = arrived.content.partition(b"\r\n\r\n")[0], header
    assert ours.endswith(kept), "header fields only above what came"
    read = parsed(arrived.content)
    assert "decrypted=no; signature=unread" in read["X-Relais-Verdict"]
    assert "custody=holder" in read["X-Relais-Verdict"]
    assert (read["X-Relais-Marks"], read["X-Relais-Folder"]) == ("laboratory", "Biologie")
    assert "x-smime" not in read["Authentication-Results"]
    assert not [name for name in arrived.facts if name == "warning.cannot-open"]
    assert b"Bonjour" in openssl_reads(tmp_path, arrived.content, held)

    late = await gateway.arrive(old)
    assert isinstance(late, Message)
    assert "custody=gateway" in parsed(late.content)["X-Relais-Verdict"], "nobody else could read it"
    assert "RÉSULTATS CRITIQUES" in first_words(parsed(late.content))
    gateway.down = True
    waits = await gateway.arrive(old)
    assert isinstance(waits, Refused)
    assert waits.refusal == refusals.DIRECTORY_UNAVAILABLE
    assert isinstance(await gateway.arrive(sent), Message), "what is not for our key asks nobody"
    gateway.down = False

    gateway.registry.prefer(custody=Custody.GATEWAY)
    assert "RÉSULTATS CRITIQUES" in first_words(await gateway.read(old))
    refused = await gateway.arrive(sent)
    assert isinstance(refused, Refused)
    assert refused.refusal == CANNOT_OPEN, "its sender is told: the holder's key is not here"


def packed(entity: bytes) -> bytes:
    return b'Content-Type: multipart/mixed; boundary="w"\r\n\r\n--w\r\n' + entity + b"\r\n--w--\r\n"


@pytest.mark.parametrize("around", ["multipart", "clear", "opaque", "tnef"])
async def test_what_only_the_old_key_opens_is_opened_whatever_is_around_it(
    gateway: Gateway, held: Mailboxes, around: str
) -> None:
    """After the switch its holder could read none of these."""
    theirs, ours = (each.keys[NOIR][KeyUse.ENCRYPTION].certificate for each in (held, gateway.people))
    gateway.registry.prefer(custody=Custody.HOLDER)
    gateway.published[NOIR] = [theirs]
    signer = gateway.vault.signer(LABO)
    assert signer is not None
    outer, entity = split_message(mail(xdm(a_report())))

    def wrapped(certificate: x509.Certificate) -> bytes:
        encrypted = encrypt(sign(entity, signer), [certificate])
        match around:
            case "multipart":
                return join_message(outer, packed(encrypted))
            case "clear":
                return join_message(outer, sign(encrypted, signer))
            case "opaque":
                return join_message(outer, sign(encrypted, signer, suite=Suite(opaque=True)))
        stream = tnef(attachment(bytes(parse_entity(encrypted).decoded())))
        head = b"Content-Type: application/ms-tnef; name=winmail.dat\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        return join_message(outer, head + base64.encodebytes(stream).replace(b"\n", b"\r\n"))

    read = await gateway.read(wrapped(ours))
    assert "custody=gateway" in read["X-Relais-Verdict"]
    assert "RÉSULTATS CRITIQUES" in first_words(read)
    arrived = await gateway.arrive(wrapped(theirs))
    assert isinstance(arrived, Message)
    assert arrived.facts["custody"] == "holder", "what its holder can open stays sealed"


async def test_an_opaque_signature_alone_in_a_multipart_is_shown_too(gateway: Gateway) -> None:
    outer, entity = split_message(mail(xdm(a_report())))
    signer = gateway.vault.signer(LABO)
    assert signer is not None
    opaque = packed(sign(entity, signer, suite=Suite(opaque=True)))
    words = first_words(await gateway.read(join_message(outer, opaque)))
    assert "signature vérifiée" in words
    assert "RÉSULTATS CRITIQUES" in words
    assert "chiffrée ou signée à part" not in words, "the original is ours to know"
    ours = gateway.people.keys[NOIR][KeyUse.ENCRYPTION].certificate
    around = sign(encrypt(sign(entity, signer), [ours]), signer)
    assert "chiffrée ou signée à part" not in first_words(await gateway.read(join_message(outer, around)))


async def test_encrypted_to_both_it_is_the_holders(gateway: Gateway, held: Mailboxes) -> None:
    theirs, ours = (each.keys[NOIR][KeyUse.ENCRYPTION].certificate for each in (held, gateway.people))
    gateway.registry.prefer(custody=Custody.HOLDER)
    gateway.published[NOIR] = [theirs]
    signer = gateway.vault.signer(LABO)
    assert signer is not None
    outer, entity = split_message(mail())
    sent = join_message(outer, encrypt(sign(entity, signer), [ours, theirs]))
    arrived = await gateway.arrive(sent)
    assert isinstance(arrived, Message)
    assert arrived.content.endswith(sent.partition(b"\r\n\r\n")[2])
    assert arrived.facts["custody"] == "holder"


async def test_a_holders_clear_signed_mail_is_verified_and_not_touched(gateway: Gateway) -> None:
    gateway.registry.prefer(custody=Custody.HOLDER)
    outer, entity = split_message(mail(xdm(a_report())))
    signer = gateway.vault.signer(LABO)
    assert signer is not None
    sent = join_message(outer, sign(entity, signer))
    arrived = await gateway.arrive(sent)
    assert isinstance(arrived, Message)
    assert arrived.content.endswith(sent)
    read = parsed(arrived.content)
    assert "signature=valid" in read["X-Relais-Verdict"]
    assert {"critical", "verified"} <= set(read["X-Relais-Marks"].split(", "))
