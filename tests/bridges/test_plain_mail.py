"""What an ordinary mail program leaves out, added: read back with Python's own mail library and with our readers."""

from __future__ import annotations

import asyncio
import contextlib
import email
import email.policy
import io
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from email.message import EmailMessage

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridges.carried import Carried, carried_by
from bridges.cda import read_cda
from bridges.compose import ComposeOptions
from bridges.plain_mail import NOT_ATTACHED, Envelope, from_label, made_ready, report_of
from bridges.plain_mail_stage import PlainMailStage
from bridges.refusals import PATIENT_SEVERAL
from bridges.report import Action, Audience, Document, Flags
from bridges.xdm import XdmContent, read_xdm, write_xdm
from directory.records import MailboxKind
from mta.mailboxes.records import MailboxRecord
from mta.message import Message, Origin, Phase
from mta.smtp.content import with_crlf
from smime import Suite, encrypt, sign
from smime.mime import MimeError
from tests.smime.people import ENTITY, NOW, person
from tests.support import reports
from trust.refusals import Refused

DOCTOR, COLLEAGUE = "jeanne.martin@ville.mssante.test", "dr.gris@op1.example"
OPTIONS = ComposeOptions("NIL-42", "production", "gate.ville.test")
RECORD = MailboxRecord(address=DOCTOR, kind=MailboxKind.PER, label="Dr Jeanne MARTIN", organisation="Cabinet des Lilas")
ENVELOPE = Envelope(DOCTOR, Audience.PROFESSIONAL, "<1@ville.mssante.test>", datetime(2026, 11, 20, 8, tzinfo=UTC))
REAL = replace(reports.PATIENT, oid="1.2.250.1.213.1.4.8")
PLAIN = (
    f"From: jeanne <{DOCTOR}>\r\nTo: {COLLEAGUE}\r\nSubject: Bonjour\r\nMessage-ID: <1@ville.mssante.test>\r\n\r\n"
    "Bonjour\r\n"
).encode()


def mail(*attachments: tuple[str, str, bytes], text: str = "Voici.\n", subject: str = "Résultats") -> bytes:
    """As Thunderbird writes it."""
    message = EmailMessage(policy=email.policy.SMTP)
    message["From"] = f"jeanne <{DOCTOR}>"
    message["To"] = COLLEAGUE
    message["Subject"] = subject
    message["Message-ID"] = "<1@ville.mssante.test>"
    message.set_content(text)
    for name, kind, data in attachments:
        main, _, sub = kind.partition("/")
        message.add_attachment(data, maintype=main, subtype=sub, filename=name)
    return message.as_bytes()


def cda(patient: reports.Patient = REAL, **changes: object) -> tuple[str, str, bytes]:
    return "cr.xml", "text/xml", reports.cda(patient=patient, **changes)  # type: ignore[arg-type]


def ready(
    content: bytes,
    record: MailboxRecord | None = RECORD,
    envelope: Envelope = ENVELOPE,
    options: ComposeOptions = OPTIONS,
) -> tuple[EmailMessage, bytes]:
    carried = carried_by(content)
    assert isinstance(carried, Carried)
    made = made_ready(content, carried, record, envelope, options)
    assert made == made_ready(content, carried, record, envelope, options), "the same bytes each time"
    assert b"\n" not in made.replace(b"\r\n", b""), "CRLF lines"
    return email.message_from_bytes(made, policy=email.policy.default), made  # type: ignore[return-value]


def archive_of(message: EmailMessage) -> XdmContent:
    (part,) = [each for each in message.iter_attachments() if each.get_filename() == "IHE_XDM.zip"]
    read = read_xdm(part.get_payload(decode=True))  # type: ignore[arg-type]
    assert isinstance(read, XdmContent)
    return read


def names(message: EmailMessage) -> list[str | None]:
    return [each.get_filename() for each in message.iter_attachments()]


def text(message: EmailMessage) -> str:
    part = message.get_body(("plain",))
    assert part is not None
    return str(part.get_content()).replace("\r\n", "\n")


# Fields


def test_a_plain_mail_gets_what_its_program_left_out() -> None:
    made, _ = ready(PLAIN)
    assert made["From"] == f"Dr_Jeanne_MARTIN_Cabinet des Lilas <{DOCTOR}>"
    assert made["X-MSS-NIL"] == "NIL-42"
    assert made["Disposition-Notification-To"] == DOCTOR
    assert made["Comments"] == NOT_ATTACHED
    assert made["X-MSS-INS"] is None and made["X-MSS-CODECDA"] is None
    assert made["Subject"] == "Bonjour"
    assert text(made) == "Bonjour\n"


def test_what_the_program_said_itself_stays() -> None:
    given = b"X-MSS-NIL: LPS-7\r\nDisposition-Notification-To: secretariat@ville.mssante.test\r\n" + PLAIN
    made, _ = ready(given)
    assert made.get_all("X-MSS-NIL") == ["LPS-7"]
    assert made.get_all("Disposition-Notification-To") == ["secretariat@ville.mssante.test"]


def test_no_mail_claims_an_identity_it_does_not_carry() -> None:
    made, _ = ready(b"X-MSS-INS: O\r\nX-MSS-CODECDA: 11502-2\r\n" + PLAIN)
    assert made["X-MSS-INS"] is None and made["X-MSS-CODECDA"] is None


@pytest.mark.parametrize(
    ("kind", "label", "organisation", "expected"),
    [
        (MailboxKind.PER, "Jeanne MARTIN", "", "Jeanne_MARTIN"),
        (MailboxKind.ORG, "Cardiologie", "CH Bellevue", "Cardiologie"),
        (MailboxKind.APP, "Labo des Tilleuls", "", "Labo des Tilleuls"),
        (MailboxKind.PATIENT, "Camille ESSAI", "", ""),
        (MailboxKind.PER, " ", "Cabinet", ""),
        (MailboxKind.PER, "Dr É.\r\nBcc: x@y", "", "Dr_É._Bcc:_x@y"),
    ],
)
def test_the_label_of_from(kind: MailboxKind, label: str, organisation: str, expected: str) -> None:
    record = replace(RECORD, kind=kind, label=label, organisation=organisation)
    assert from_label(record) == expected
    made, octets = ready(PLAIN, record)
    assert octets.count(b"\r\nBcc:") == 0
    assert made["From"].addresses[0].addr_spec == DOCTOR


def test_a_receipt_asks_for_no_receipt() -> None:
    made, _ = ready(PLAIN, envelope=replace(ENVELOPE, sender=""))
    assert made["Disposition-Notification-To"] is None
    automatic = b"Auto-Submitted: auto-replied\r\n" + PLAIN
    assert ready(automatic)[0]["Disposition-Notification-To"] is None


def test_the_last_word_to_a_patient() -> None:
    content = PLAIN.replace(b"Subject: Bonjour", b"Subject: [FIN] Au revoir")
    to_patient = replace(ENVELOPE, audience=Audience.PATIENT)
    assert ready(content, envelope=to_patient)[0]["X-MSS-MES"] == "FIN"
    assert ready(content)[0]["X-MSS-MES"] is None
    assert ready(PLAIN, envelope=to_patient)[0]["X-MSS-MES"] is None


# Text


def test_text_leaves_in_utf8() -> None:
    head, _, _ = PLAIN.partition(b"\r\n\r\n")
    latin = (
        head + b"\r\nContent-Type: text/plain; charset=iso-8859-1; format=flowed\r\n\r\n--\x80 d\xe9j\xe0 vu\r\n.\r\n"
    )
    made, octets = ready(latin)
    assert made.get_content_charset() == "utf-8"
    assert made.get_param("format") == "flowed"
    assert text(made) == "--€ déjà vu\n.\n"
    assert octets.isascii()
    undeclared = head + "\r\n\r\ndéjà\r\n".encode()
    assert text(ready(undeclared)[0]) == "déjà\n"


def test_fields_in_raw_octets_become_encoded_words() -> None:
    made, octets = ready(PLAIN.replace(b"Bonjour", "Hémoglobine".encode("latin-1"), 1))
    assert made["Subject"] == "Hémoglobine"
    assert octets.partition(b"\r\n\r\n")[0].isascii()


def test_a_page_alone_gets_its_text() -> None:
    head, _, _ = PLAIN.partition(b"\r\n\r\n")
    page = (
        b'<html><head><meta charset="iso-8859-1"><style>p {}</style></head><body><p>D\xe9j\xe0&nbsp;vu<br>deux</p>'
        b"<script>evil()</script><div>trois</div></body></html>"
    )
    made, _ = ready(head + b"\r\nContent-Type: text/html; charset=iso-8859-1\r\n\r\n" + page + b"\r\n")
    assert made.get_content_type() == "multipart/alternative"
    assert text(made).split() == ["Déjà", "vu", "deux", "trois"]
    shown = made.get_body(("html",))
    assert shown is not None and 'charset="utf-8"' in shown.get_content() and "Déjà" in shown.get_content()


@pytest.mark.parametrize(
    "page",
    [
        b"<html><body><p>Toute ma lettre</p><img src='data:image/png;base64," + b"A" * 2_200_000 + b"'></body></html>",
        b"<html><body><img src='cid:scan'></body></html>",
    ],
)
def test_a_letter_that_is_no_words_is_a_letter(page: bytes) -> None:
    head, _, _ = PLAIN.partition(b"\r\n\r\n")
    lines = page.replace(b"AAAA" * 200, b"AAAA" * 200 + b"\r\n")
    alone, _ = ready(head + b"\r\nContent-Type: text/html\r\n\r\n" + lines + b"\r\n")
    assert alone.get_content_type() == "text/html", "no empty text for programs that prefer it"
    content = head + b'\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\n'
    content += b"Content-Type: text/html\r\n\r\n" + lines + b"\r\n--b\r\nContent-Type: text/xml; name=a.xml\r\n\r\n"
    content += cda(with_pdf=False)[2].replace(b"\n", b"\r\n") + b"\r\n--b--\r\n"
    made, _ = ready(content)
    shown = made.get_body(("html",))
    assert shown is not None and "<img" in shown.get_content() and "Objet : Bonjour" in shown.get_content()
    assert made.get_body(("plain",)) is None, "nothing of ours in its place"


@pytest.mark.parametrize(
    ("charset", "octets"),
    [
        ("utf-8", "5 µg, ≥ 38 °C ".encode() + b"\xe9"),
        ("windows-1252", b"d\xe9j\xe0 \x81"),
        ("iso-8859-1", b"\x8d\x90"),
        ("us-ascii", "≥".encode() + b"\x9d"),
    ],
)
def test_what_is_not_in_its_charset_is_left_to_the_reader(charset: str, octets: bytes) -> None:
    head, _, _ = PLAIN.partition(b"\r\n\r\n")
    body = f"Content-Type: text/plain; charset={charset}\r\n\r\n".encode() + octets + b"\r\n"
    _, left = ready(head + b"\r\n" + body)
    assert left.endswith(body)


def test_a_text_that_is_a_file_keeps_its_lines() -> None:
    lines = ("123", "ESSAI-UN", "CAMILLE", "1 rue", "", "63000 VILLE", "30/02/1979", "", "D1", "19/11/2026", "L", "M")
    file = "".join(f"{line}\n" for line in (*lines, "****LAB****", "é", "****FIN****"))
    made, _ = ready(mail(cda(), text=file))
    assert text(made) == file
    assert b"Objet :" in made.as_bytes()


def test_texts_of_software_made_for_the_trust_space_stay() -> None:
    content = b"X-MSS-NIL: LPS-7\r\n" + PLAIN.partition(b"\r\n\r\n")[0]
    body = b"Content-Type: text/plain; charset=iso-8859-1\r\n\r\nd\xe9j\xe0\r\n"
    assert ready(content + b"\r\n" + body)[1].endswith(body)


def test_a_part_written_anew_has_no_fields_that_are_wrong_now() -> None:
    head, _, _ = PLAIN.partition(b"\r\n\r\n")
    content = head + (
        b'\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\nContent-MD5: x\r\n'
        b"Content-Language: fr\r\nContent-Type: text/plain; charset=iso-8859-1\r\n\r\n\xe9\r\n--b--\r\n"
    )
    made, octets = ready(content)
    assert b"Content-MD5" not in octets and b"Content-Language: fr\r\n" in octets
    assert made.get_body(("plain",)).get_content().strip() == "é"  # type: ignore[union-attr]


def test_a_multipart_without_its_end_is_looked_into_and_left_alone() -> None:
    """Programs show its parts all the same."""
    content = mail(cda())
    cut = content[: content.rindex(b"\r\n--")] + b"\r\n"
    carried = carried_by(cut)
    assert isinstance(carried, Carried) and len(carried.documents) == 1
    made, octets = ready(b"X-MSS-INS: O\r\n" + cut)
    assert octets.endswith(cut.partition(b"\r\n\r\n")[2]) and made["X-MSS-INS"] is None


def test_a_page_that_cannot_be_made_stops_no_mail(caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: object) -> bytes:
        raise RuntimeError("no glyph for ESSAI-UN")

    content = mail(cda())
    carried = carried_by(content)
    assert isinstance(carried, Carried)
    made = made_ready(content, carried, RECORD, ENVELOPE, OPTIONS, twin_of=broken)
    assert names(email.message_from_bytes(made, policy=email.policy.default)) == ["IHE_XDM.zip"]  # type: ignore[arg-type]
    assert "warning.page" in carried.warnings
    assert "RuntimeError" in caplog.text and "ESSAI-UN" not in caplog.text


def test_finished_mail_inside_keeps_its_octets() -> None:
    forwarded = b"From: a@b.example\r\nSubject: \xe9\r\nContent-Type: text/plain; charset=iso-8859-1\r\n\r\n\xe9\r\n"
    content = PLAIN.partition(b"\r\n\r\n")[0] + (
        b'\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\n'
        b"Content-Type: text/plain; charset=iso-8859-1\r\n\r\n\xe9\r\n--b\r\n"
        b"Content-Type: message/rfc822\r\n\r\n" + forwarded + b"\r\n--b--\r\n"
    )
    _, octets = ready(content)
    assert b"Content-Type: message/rfc822\r\n\r\n" + forwarded in octets
    assert b"=C3=A9" in octets


@pytest.mark.parametrize(
    "kind",
    [
        'multipart/signed; protocol="application/pkcs7-signature"; boundary="s"',
        "application/pkcs7-mime; smime-type=enveloped-data; name=smime.p7m",
        'multipart/encrypted; protocol="application/pgp-encrypted"; boundary="s"',
    ],
)
def test_what_its_author_protected_is_never_rewritten(kind: str) -> None:
    body = b"--s\r\nContent-Type: text/plain; charset=iso-8859-1\r\n\r\n\xe9 \r\n--s--\r\n"
    content = PLAIN.partition(b"\r\n\r\n")[0] + f"\r\nContent-Type: {kind}\r\n\r\n".encode() + body
    made, octets = ready(content)
    assert octets.partition(b"\r\n\r\n")[2] == body
    assert made["From"] == f"jeanne <{DOCTOR}>"
    assert made["X-MSS-NIL"] == "NIL-42"
    assert made["Comments"] is None


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (
            'multipart/encrypted; protocol="application/pgp-encrypted"; boundary="s"',
            b"--s\r\n\r\nen clair\r\n--s--\r\n",
        ),
        ("application/octet-stream; name=x.p7m", b"en clair\r\n"),
        ("application/pkcs7-mime; smime-type=enveloped-data", b"MAA=\r\n"),
    ],
)
def test_what_only_claims_to_be_encrypted_declares_nothing(kind: str, body: bytes) -> None:
    content = b"X-MSS-INS: O\r\n" + PLAIN.partition(b"\r\n\r\n")[0] + f"\r\nContent-Type: {kind}\r\n\r\n".encode()
    made, octets = ready(content + body)
    assert made["X-MSS-INS"] is None and octets.endswith(body)


def test_what_is_encrypted_is_its_authors_to_declare() -> None:
    secret = encrypt(ENTITY, [person("paul@clinic.example", kind="p256", which="paul").certificate])
    pgp = (
        b'Content-Type: multipart/encrypted; protocol="application/pgp-encrypted"; boundary="s"\r\n\r\n'
        b"--s\r\nContent-Type: application/pgp-encrypted\r\n\r\nVersion: 1\r\n--s\r\n"
        b"Content-Type: application/octet-stream\r\n\r\n-----BEGIN PGP MESSAGE-----\r\n\r\nx\r\n--s--\r\n"
    )
    for body in (secret, pgp, sign(secret, person("anne@lab.example"), NOW)):
        content = b"X-MSS-INS: O\r\n" + PLAIN.partition(b"\r\n\r\n")[0] + b"\r\n" + body
        carried = carried_by(content)
        assert isinstance(carried, Carried) and carried.encrypted
        assert ready(content)[0]["X-MSS-INS"] == "O"


def test_an_opaque_signature_hides_nothing_either() -> None:
    inner = mail(zipped(), subject=WRITTEN)
    inner = inner[inner.index(b"Content-Type: multipart") :]
    opaque = sign(inner, person("anne@lab.example"), NOW, Suite(opaque=True))
    assert b"pkcs7-mime" in opaque and b"smime-type=signed-data" in opaque
    content = b"X-MSS-CODECDA: 1-1\r\n" + PLAIN.partition(b"\r\n\r\n")[0] + b"\r\n" + opaque
    made, octets = ready(content)
    assert made.get_all("X-MSS-CODECDA") == ["11502-2"] and made["X-MSS-INS"] == "O"
    assert octets.endswith(opaque.partition(b"\r\n\r\n")[2])


def test_a_signed_mail_is_looked_into_and_not_changed() -> None:
    first = mail(zipped(), subject="XDM/1.0/DDM+CR")
    head, _, body = first.partition(b"\r\n\r\n")
    kind = next(line for line in head.split(b"\r\n") if line.startswith(b"Content-Type"))
    kind = head[head.index(kind) :]
    signed = (
        b'Content-Type: multipart/signed; protocol="application/pkcs7-signature"; boundary="s"\r\n\r\n--s\r\n'
        + (kind + b"\r\n\r\n" + body)
        + b"\r\n--s\r\nContent-Type: application/pkcs7-signature\r\n\r\nx\r\n--s--\r\n"
    )
    content = PLAIN.partition(b"\r\n\r\n")[0] + b"\r\nX-MSS-CODECDA: 1-1\r\n" + signed
    made, octets = ready(content)
    assert octets.partition(b"\r\n\r\n")[2] == content.partition(b"\r\n\r\n")[2]
    assert (made["X-MSS-CODECDA"], made["X-MSS-INS"]) == ("11502-2", "O")
    liar = PLAIN.partition(b"\r\n\r\n")[0] + b"\r\nX-MSS-INS: O\r\n" + signed.replace(body, b"--x--\r\n")
    assert ready(liar)[0]["X-MSS-INS"] is None


# Documents


def test_a_document_makes_a_document_mail() -> None:
    attached = cda()
    made, _ = ready(mail(attached))
    assert made["Subject"] == "XDM/1.0/DDM+CR d'examens biologiques ESSAI-UN CAMILLE 30/02/1979"
    assert made["X-MSS-CODECDA"] == "11502-2"
    assert made["X-MSS-INS"] == "O"
    assert made["Comments"] is None
    assert names(made) == ["20261119_CR-d-examens-biologiques_ESSAI-UN_CAMILLE.pdf", "IHE_XDM.zip"]
    read = archive_of(made)
    assert [one.content for one in read.documents] == [attached[2]]
    assert all(one.hash_ok for one in read.documents)
    assert text(made) == "Objet : Résultats\n\nVoici.\n"


def test_a_mail_that_is_nothing_but_its_document_says_what_it_is() -> None:
    made, _ = ready(mail(cda(), text="\n", subject=""))
    assert "ESSAI-UN" in text(made)
    assert "Potassium" in text(made)


def test_the_document_itself_may_be_the_body() -> None:
    head, _, _ = PLAIN.partition(b"\r\n\r\n")
    content = head + b"\r\nContent-Type: text/xml\r\n\r\n" + cda()[2].replace(b"\n", b"\r\n")
    made, _ = ready(content)
    assert names(made)[-1] == "IHE_XDM.zip"
    assert text(made).startswith("Objet : Bonjour")


def test_test_identities_are_never_declared_as_whole() -> None:
    assert ready(mail(cda(reports.PATIENT)))[0]["X-MSS-INS"] == "N"
    assert ready(mail(cda()), options=replace(OPTIONS, environment="test"))[0]["X-MSS-INS"] == "N"


def test_two_documents_of_one_patient_are_one_archive() -> None:
    other = ("ordonnance.xml", "application/xml", cda(level=1, unique_id="1.2.250.1.999.1.7", set_id="")[2])
    made, _ = ready(mail(cda(), other))
    assert made["Subject"].startswith("XDM/1.0/DDM+2 documents ESSAI-UN")
    assert made["X-MSS-CODECDA"].replace(" ", "") == "11502-2,18748-4"
    assert len(archive_of(made).documents) == 2


def test_a_pdf_beside_its_document_is_not_doubled() -> None:
    page = reports.report_pdf(REAL)
    made, _ = ready(mail(cda(level=1, document_pdf=page), ("cr.pdf", "application/pdf", page)))
    assert names(made) == ["cr.pdf", "IHE_XDM.zip"]


def test_an_archive_is_its_authors_finished_work() -> None:
    """What only its metadata say, who may not read it for one, is not lost for a document beside it."""
    loose = ("b.xml", "text/xml", cda(unique_id="1.2.250.1.999.1.7", set_id="")[2])
    archive = zipped(flags=Flags(hidden_from_patient=True))
    made, _ = ready(mail(archive, loose))
    assert names(made)[:2] == ["IHE_XDM.zip", "b.xml"] and len(names(made)) == 3, "with a page"
    assert [part.get_payload(decode=True) for part in made.iter_attachments()][:2] == [archive[2], loose[2]]
    assert made["Subject"].startswith("XDM/1.0/DDM+2 documents ESSAI-UN")
    unread = ("IHE_XDM.zip", "application/zip", b"PK\x03\x04")
    made, _ = ready(mail(unread, loose))
    assert names(made) == ["IHE_XDM.zip", "b.xml"] and made["X-MSS-INS"] is None and made["Subject"] == "Résultats"


def test_of_a_withdrawn_document_there_is_no_page() -> None:
    made, _ = ready(mail(zipped(action=Action.DELETE)))
    assert names(made) == ["IHE_XDM.zip"]
    assert made["Subject"] == "Résultats" and text(made) == "Voici.\n"
    assert made["X-MSS-CODECDA"] == "11502-2"


def test_of_an_archive_that_was_not_read_whole_no_identity_is_said_to_be_whole() -> None:
    _, _, archive = zipped()
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("METADATA.XML"):
                entry = data[data.index(b"<rim:ExtrinsicObject") : data.index(b"</rim:ExtrinsicObject>") + 22]
                data = data.replace(entry, entry + entry.replace(b"DOC00001.XML", b"ABSENT.XML"))
            new.writestr(name, data)
    made, _ = ready(mail(("IHE_XDM.zip", "application/zip", buffer.getvalue())))
    assert (made["X-MSS-CODECDA"], made["X-MSS-INS"]) == ("11502-2", "N")


def without_ins(patient: reports.Patient, authority: str = "1.2.250.1.999.2.1") -> tuple[str, str, bytes]:
    """Known to another laboratory by its own number; born nobody knows when."""
    _, _, data = cda(patient, unique_id="1.2.250.1.999.1.7", set_id="")
    data = data.replace(f'<id root="{patient.oid}" extension="{patient.matricule}"/>'.encode(), b"")
    data = data.replace(b'root="1.2.250.1.999.2.1"', f'root="{authority}"'.encode())
    birth = f'<birthTime value="{patient.birth_date}"/>'.encode()
    assert birth in data
    return "b.xml", "text/xml", data.replace(birth, b'<birthTime nullFlavor="UNK"/>')


@pytest.mark.parametrize("archived", [False, True])
def test_nobody_is_filed_under_the_identity_of_the_one_beside_him(archived: bool) -> None:
    """That they may be one patient is not enough: the family names differ."""
    other = without_ins(replace(REAL, family="DURAND"), "1.2.250.1.999.2.2")
    attached = zipped() if archived else cda()
    made, _ = ready(mail(attached, other))
    assert names(made) == [attached[0], "b.xml"]
    assert made["X-MSS-INS"] is None and made["Subject"] == "Résultats" and made["Comments"] is None


def test_each_document_has_to_carry_the_identity_that_is_declared() -> None:
    made, _ = ready(mail(cda(), without_ins(REAL)))
    assert len(archive_of(made).documents) == 2, "one laboratory, one number"
    assert made["X-MSS-INS"] == "N", "one of them has no INS"


def zipped(flags: Flags | None = None, action: Action = Action.NEW) -> tuple[str, str, bytes]:
    document = read_cda(cda()[2])
    assert isinstance(document, Document)
    report = replace(report_of([document]), flags=flags or Flags())
    at = datetime(2026, 11, 19, tzinfo=UTC)
    data = write_xdm(report, at=at, source_id="2.25.1", submission_id="2.25.2", action=action)
    return "IHE_XDM.zip", "application/zip", data


WRITTEN = "XDM/1.0/DDM+CR Essai-Un Camille 30/02/1979"


def test_a_subject_about_another_patient_does_not_stay() -> None:
    """Written anew from an old mail: software files by it."""
    for subject in ("XDM/1.0/DDM+CR DURAND PAUL 01/02/1950", "XDM/1.0/DDM+CR ESSAI-UN CAMILLE 01/02/1950"):
        made, _ = ready(mail(zipped(), subject=subject))
        assert made["Subject"] == "XDM/1.0/DDM+CR d'examens biologiques ESSAI-UN CAMILLE 30/02/1979"
        assert text(made).startswith(f"Objet : {subject}\n")


@pytest.mark.parametrize("text_type", ["", "text/plain; charset=utf-7"])
def test_the_authors_subject_is_not_lost_without_a_text_to_write_it_into(text_type: str) -> None:
    page = ("a.pdf", "application/pdf", b"%PDF-1.4\n%%EOF\n")
    content = mail(zipped(), page, subject="Urgent, rappeler ce soir")
    if text_type:
        content = content.replace(b'Content-Type: text/plain; charset="utf-8"', b"Content-Type: " + text_type.encode())
    else:
        at = content.index(b"Content-Type: text/plain")
        content = content[:at] + content[content.index(b"Content-Type: application/zip") :]
    made, _ = ready(content)
    assert made["Subject"].startswith("XDM/1.0/DDM+")
    assert b"Objet : Urgent, rappeler ce soir" in made.as_bytes()
    assert names(made)[-2:] == ["IHE_XDM.zip", "a.pdf"]


@pytest.mark.parametrize(("subject", "line"), [(f"Fwd: {WRITTEN}", ""), ("Voir", "Objet : Voir\n\n")])
def test_an_archive_that_somebody_attached_by_hand_gets_subject_and_pages(subject: str, line: str) -> None:
    archive = zipped()
    made, _ = ready(mail(archive, subject=subject))
    assert made["Subject"].startswith("XDM/1.0/DDM+CR d'examens biologiques ESSAI-UN")
    assert names(made) == ["IHE_XDM.zip", "20261119_CR-d-examens-biologiques_ESSAI-UN_CAMILLE.pdf"]
    assert next(iter(made.iter_attachments())).get_payload(decode=True) == archive[2]
    assert text(made) == f"{line}Voici.\n"


def test_an_attached_mail_says_itself_whom_it_is_about() -> None:
    inner = b"From: a@b.example\r\n\r\nx\r\n"
    content = PLAIN.partition(b"\r\n\r\n")[0] + b"\r\nContent-Type: message/rfc822\r\n\r\n" + inner
    assert ready(content)[0]["Comments"] is None


def test_an_archive_of_practice_software_travels_as_it_is_and_is_declared() -> None:
    page = ("cr.pdf", "application/pdf", b"%PDF-1.4\n%%EOF\n")
    content = mail(zipped(), page, subject=WRITTEN)
    made, octets = ready(content)
    assert made["Subject"] == WRITTEN
    assert (made["X-MSS-CODECDA"], made["X-MSS-INS"]) == ("11502-2", "O")
    assert octets.partition(b"\r\n\r\n")[2] == content.partition(b"\r\n\r\n")[2]


def test_pdf_and_hprim_travel_as_they_are() -> None:
    lines = ("123", "ESSAI-UN", "CAMILLE", "1 rue", "", "63000 VILLE", "30/01/1979", "", "D1", "19/11/2026", "L", "M")
    hprim = "".join(f"{line}\r\n" for line in lines).encode("cp1252")
    made, _ = ready(mail(("a.pdf", "application/pdf", b"%PDF-1.4\n%%EOF\n"), ("b.hpr", "text/plain", hprim)))
    assert names(made) == ["a.pdf", "b.hpr"]
    assert made["X-MSS-INS"] is None
    assert made["Comments"] is None, "the HPRIM file names somebody"
    assert [part.get_payload(decode=True) for part in made.iter_attachments()][1] == hprim


def test_files_that_name_nobody_are_said_to() -> None:
    made, _ = ready(mail(("a.pdf", "application/pdf", b"%PDF-1.4\n%%EOF\n")))
    assert "[Ce message n'est rattaché à aucun patient" in text(made)
    alternative = EmailMessage(policy=email.policy.SMTP)
    alternative["From"], alternative["To"], alternative["Message-ID"] = DOCTOR, COLLEAGUE, "<1@x.example>"
    alternative.set_content("Bonjour\n")
    alternative.add_alternative("<html><body><p>Bonjour</p></body></html>", subtype="html")
    alternative.add_attachment(b"%PDF-1.4", maintype="application", subtype="pdf", filename="a.pdf")
    made, _ = ready(alternative.as_bytes())
    page = made.get_body(("html",))
    assert page is not None and "rattaché à aucun patient" in page.get_content()
    to_patient, _ = ready(alternative.as_bytes(), envelope=replace(ENVELOPE, with_patient=True))
    assert "rattaché" not in text(to_patient)


def test_a_logo_is_no_attachment() -> None:
    page = EmailMessage(policy=email.policy.SMTP)
    page["From"], page["To"], page["Message-ID"] = DOCTOR, COLLEAGUE, "<1@x.example>"
    page.set_content('<html><body>Bonjour<img src="cid:logo"></body></html>', subtype="html")
    page.add_related(b"\x89PNG", maintype="image", subtype="png", cid="<logo>", filename="image001.png")
    page.make_mixed()
    page.add_attachment(b"BEGIN:VCARD", maintype="text", subtype="vcard", filename="moi.vcf")
    carried = carried_by(page.as_bytes())
    assert isinstance(carried, Carried) and carried.files == 0
    page.add_attachment(b"\x89PNG", maintype="image", subtype="png", filename="plaie.png")
    carried = carried_by(page.as_bytes())
    assert isinstance(carried, Carried) and carried.files == 1


def test_a_broken_document_travels_as_it_is_and_is_declared_as_nothing() -> None:
    content = mail(("cr.xml", "text/xml", b"<ClinicalDocument xmlns='urn:hl7-org:v3'/>"))
    carried = carried_by(content)
    assert isinstance(carried, Carried) and carried.warnings["warning.cda"] == "bridges.document-header"
    made, _ = ready(content)
    assert names(made) == ["cr.xml"] and made["X-MSS-INS"] is None


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.replace(b"\r\n\r\n", b"\r\nContent-Type: multipart/mixed\r\n\r\n", 1),
        PLAIN.replace(b"\r\n\r\n", b"\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n", 1),
        PLAIN.replace(b"\r\n\r\n", b"\r\nContent-Type: text/plain; charset=utf-7\r\n\r\n+AGE-", 1),
        PLAIN.replace(b"\r\n\r\n", b"\r\nContent-Type: text/html\r\n\r\n<a" + b"<a" * 5000, 1),
        PLAIN.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: x-unknown\r\n\r\n", 1),
        PLAIN.replace(b"\r\n\r\n", b"\r\nContent-Type: a\r\nContent-Type: b\r\n\r\n", 1),
        PLAIN.replace(b"\r\n\r\n", b"\r\nContent-Type: application/zip; name=IHE_XDM.zip\r\n\r\nPK\x03\x04", 1),
        PLAIN.replace(b"\r\n\r\n", b"\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\n--x--\r\n", 1),
    ],
)
def test_crooked_mail_is_passed_on(content: bytes) -> None:
    assert ready(content)[0]["X-MSS-NIL"] == "NIL-42"


# The stage


def submitted(content: bytes, recipient: str = COLLEAGUE, **changes: object) -> Message:
    values: Mapping[str, object] = {
        "message_id": "<1@ville.mssante.test>",
        "spool_id": "s1",
        "delivery_id": f"s1:{recipient}",
        "origin": Origin.SUBMISSION,
        "sender": DOCTOR,
        "recipient": recipient,
        "content": content,
        "content_type": "message/rfc822",
        "accepted_at": 1_790_000_000.0,
    }
    return Message(**{**values, **changes})  # type: ignore[arg-type]


async def test_fifteen_readers_share_the_work_and_a_patient_has_his_own() -> None:
    asked: list[str] = []

    def find(address: str) -> MailboxRecord | None:
        asked.append(address)
        return RECORD

    with ThreadPoolExecutor(2) as threads:
        stage = PlainMailStage(find, OPTIONS, ["patient.mssante.fr"], threads)
        patient = f"{REAL.matricule}@patient.mssante.fr"
        to = [f"dr{number}@op2.example" for number in range(15)] + [patient]
        content = mail(cda(with_pdf=False))
        made = await asyncio.gather(*(stage.apply(submitted(content, each), Phase.ENRICH) for each in to))
        assert len(asked) == 2, "once for the professionals, once for the patient"
        assert all(isinstance(each, Message) for each in made)
        contents = {each.content for each in made if isinstance(each, Message)}
        assert len(contents) == 2
        again = await stage.apply(submitted(content, to[0]), Phase.ENRICH)
        assert isinstance(again, Message) and again.content == made[0].content, "after a crash the same"  # type: ignore[union-attr]
        both = await stage.apply(
            submitted(mail(cda(), cda(replace(reports.OTHER_PATIENT, oid=REAL.oid)))), Phase.ENRICH
        )
        assert isinstance(both, Refused) and both.refusal is PATIENT_SEVERAL
        operator = submitted(content, origin=Origin.OPERATOR)
        assert await stage.apply(operator, Phase.ENRICH) is operator
        assert await stage.apply(submitted(content), Phase.PROTECT) == submitted(content)


async def test_who_writes_to_or_as_a_patient_need_not_say_whom_it_is_about() -> None:
    with ThreadPoolExecutor(1) as threads:
        stage = PlainMailStage(lambda address: None, OPTIONS, ["patient.mssante.fr"], threads)
        copied = PLAIN.replace(b"\r\n\r\n", b"\r\nCc: Camille <1@patient.mssante.fr>\r\n\r\n", 1)
        written = PLAIN.replace(DOCTOR.encode(), b"1@patient.mssante.fr")
        for content, said in ((PLAIN, True), (copied, False), (written, False)):
            made = await stage.apply(submitted(content), Phase.ENRICH)
            assert isinstance(made, Message)
            assert (b"\r\nComments: " in made.content) is said


@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_no_mail_breaks_it(data: st.DataObject) -> None:
    content = bytearray(mail(cda(with_pdf=False), ("a.pdf", "application/pdf", b"%PDF-1.4")))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 40))] = data.draw(
            st.sampled_from(
                [b"", b"\r\n", b"--", b'"', b"\xff", b"Content-Type: multipart/mixed; boundary=x\r\n", b"=?"]
            )
        )
    whole = with_crlf(bytes(content))
    carried = carried_by(whole)
    if isinstance(carried, Carried):
        with contextlib.suppress(MimeError):
            made_ready(whole, carried, RECORD, ENVELOPE, OPTIONS, twin_of=lambda *_: b"%PDF-1.4 twin")


def test_more_parts_than_anybody_looks_into_are_left_alone() -> None:
    parts = b"".join(
        b'--a\r\nContent-Type: multipart/mixed; boundary="b"\r\n\r\n' + b"--b\r\n\r\nx\r\n" * 300 + b"--b--\r\n"
        for _ in range(20)
    )
    head = PLAIN.partition(b"\r\n\r\n")[0]
    content = head + b'\r\nContent-Type: multipart/mixed; boundary="a"\r\n\r\n' + parts + b"--a--\r\n"
    carried = carried_by(content)
    assert isinstance(carried, Carried) and "warning.parts" in carried.warnings
    assert ready(content)[1].endswith(content.partition(b"\r\n\r\n")[2])


def test_the_archive_opens_with_ordinary_programs() -> None:
    made, _ = ready(mail(cda()))
    (part,) = [each for each in made.iter_attachments() if each.get_filename() == "IHE_XDM.zip"]
    with zipfile.ZipFile(io.BytesIO(part.get_payload(decode=True))) as archive:  # type: ignore[arg-type]
        assert archive.testzip() is None
