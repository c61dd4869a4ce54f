"""What is said at the end of DATA."""

from __future__ import annotations

import base64
import io
import random
import zipfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from bridges import refusals
from bridges.carried import Carried, carried_by
from bridges.cda import read_cda
from bridges.plain_mail import report_of
from bridges.plain_mail_refusals import DOCUMENT_OF_ANOTHER, RECIPIENTS_SEVERAL_PATIENTS
from bridges.report import Action, Document, Flags
from bridges.routing import HIDDEN_FROM_PATIENT, MASKED_TO_PROFESSIONALS
from bridges.screening_refusals import ARCHIVE_REFUSED
from bridges.submitted import SubmissionJudge
from bridges.xdm_metadata import build_metadata
from bridges.xdm_refusals import XDM_TOO_LARGE
from directory.partners import PartnerBook
from directory.records import Partner
from mta import refusals as mta_refusals
from mta.sizes import SizeLimits
from smime import encrypt
from tests.smime.people import person
from tests.support import reports
from trust.refusals import Refusal, Refused

from .test_plain_mail import OPTIONS, REAL, archive_of, cda, mail, ready, zipped

DOCTOR = "dr.gris@op1.example"
PATIENT = f"{REAL.matricule}@patient.mssante.fr"
OTHER = f"{reports.OTHER_PATIENT.matricule}@patient.mssante.fr"
HPRIM = b"12\r\nESSAI-DEUX\r\nSACHA\r\n1 rue\r\n\r\n63000 VILLE\r\n15/08/1965\r\n\r\nD1\r\n19/11/2026\r\nL\r\nM\r\n"
SIZES = SizeLimits(
    PartnerBook([Partner("op2.example", max_message_bytes=1024 * 1024)]), ["patient.mssante.fr"], "op1.example".__eq__
)
JUDGE = SubmissionJudge(OPTIONS, ["patient.mssante.fr"], SIZES)


def judged(content: bytes, *recipients: str) -> Refused | None:
    looked = JUDGE(content)
    return looked if isinstance(looked, Refused) else looked(recipients or (DOCTOR,))


def refusal(content: bytes, *recipients: str) -> Refusal | None:
    refused = judged(content, *recipients)
    return None if refused is None else refused.refusal


OTHER_REAL = replace(reports.OTHER_PATIENT, oid=REAL.oid, local_id="990002")
PAIRS = [
    (cda(), cda(OTHER_REAL)),
    (cda(), ("a.hpr", "application/octet-stream", HPRIM)),
    (zipped(), cda(OTHER_REAL)),
    (zipped(), ("a.hpr", "text/plain", HPRIM)),
    (("a.hpr", "text/plain", HPRIM), ("b.hpr", "text/plain", HPRIM.replace(b"SACHA", b"LOU"))),
]


@pytest.mark.parametrize("attached", PAIRS)
def test_two_patients_in_one_mail(attached: tuple[tuple[str, str, bytes], ...]) -> None:
    assert refusal(mail(*attached)) is refusals.PATIENT_SEVERAL
    assert refusal(mail(attached[0])) is None
    assert refusal(mail(attached[1])) is None


def test_a_signature_hides_nobody() -> None:
    """A doctor who signs himself: looked into, and refused all the same."""
    content = mail(cda(), ("a.hpr", "text/plain", HPRIM))
    head, _, body = content.partition(b"\r\n\r\n")
    at = head.index(b"Content-Type")
    signed = (
        head[:at]
        + b'Content-Type: multipart/signed; protocol="application/pkcs7-signature"; boundary="s"\r\n\r\n--s\r\n'
        + (head[at:] + b"\r\n\r\n" + body)
        + b"\r\n--s\r\nContent-Type: application/pkcs7-signature\r\n\r\nx\r\n--s--\r\n"
    )
    assert refusal(signed) is refusals.PATIENT_SEVERAL


def test_free_text_and_pages_are_not_guessed_at() -> None:
    text = "Mme ESSAI-UN née le 30/01/1979, et M. ESSAI-DEUX né le 15/08/1965, INS 1999999999002\n"
    pages = [("a.pdf", "application/pdf", reports.report_pdf(each)) for each in (REAL, reports.OTHER_PATIENT)]
    assert refusal(mail(*pages, text=text)) is None


def test_a_laboratorys_mail_whose_text_is_the_file() -> None:
    text = HPRIM.decode() + "****LAB****\r\nRES|a\r\n****FIN****\r\n"
    assert refusal(mail(cda(), text=text)) is refusals.PATIENT_SEVERAL


def test_the_sentence_is_for_a_doctor() -> None:
    refused = judged(mail(*PAIRS[0]))
    assert refused is not None
    assert refused.reply_fr == "554 5.6.0 Envoyez un message par patient : celui-ci en nomme plusieurs."


def test_a_patient_gets_his_own_document_only() -> None:
    assert refusal(mail(cda()), PATIENT) is None
    assert refusal(mail(cda()), PATIENT, DOCTOR) is None
    assert refusal(mail(cda()), OTHER) is DOCUMENT_OF_ANOTHER
    assert refusal(mail(zipped()), OTHER) is DOCUMENT_OF_ANOTHER
    assert refusal(mail(), OTHER) is None


def described(flags: Flags | None = None, patient: reports.Patient = REAL) -> bytes:
    """METADATA.XML of a page."""
    document = read_cda(reports.cda(patient=patient))
    assert isinstance(document, Document)
    report = replace(report_of([document]), flags=flags or Flags())
    at = datetime(2026, 11, 19, tzinfo=UTC)
    return build_metadata(
        report, ["DOC.PDF"], at=at, source_id="2.25.1", submission_id="2.25.2", action=Action.NEW
    ).replace(b"text/xml", b"application/pdf")


def pdf_archive(flags: Flags | None = None) -> tuple[str, str, bytes]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("IHE_XDM/SUBSET01/METADATA.XML", described(flags))
        archive.writestr("IHE_XDM/SUBSET01/DOC.PDF", reports.report_pdf(REAL))
    return "IHE_XDM.zip", "application/zip", buffer.getvalue()


@pytest.mark.parametrize("attach", [pdf_archive, lambda flags=None: ("METADATA.XML", "text/xml", described(flags))])
def test_what_metadata_say_of_a_page(attach: Callable[..., tuple[str, str, bytes]]) -> None:
    """Nothing else says whom a PDF is about, or who may not read it."""
    assert refusal(mail(attach()), PATIENT) is None
    assert refusal(mail(attach()), OTHER) is DOCUMENT_OF_ANOTHER
    for flags in (Flags(hidden_from_patient=True), Flags(hidden_from_representatives=True)):
        assert refusal(mail(attach(flags)), PATIENT) is HIDDEN_FROM_PATIENT
        assert refusal(mail(attach(flags)), DOCTOR) is None
    assert refusal(mail(attach(Flags(masked_to_professionals=True))), DOCTOR) is MASKED_TO_PROFESSIONALS


def test_masks_stand_in_the_metadata_of_an_archive() -> None:
    assert refusal(mail(zipped(flags=Flags(hidden_from_patient=True))), PATIENT) is HIDDEN_FROM_PATIENT


def test_masks_beside_a_document_are_in_its_archive() -> None:
    metadata = described(Flags(hidden_from_patient=True, hidden_from_representatives=True))
    made, _ = ready(mail(cda(), ("METADATA.XML", "text/xml", metadata)))
    masks = archive_of(made).documents[0].confidentiality
    assert masks == ("N", "INVISIBLE_PATIENT", "INVISIBLE_REPRESENTANTS_LEGAUX")


def test_patients_see_who_else_was_written_to() -> None:
    """Whatever the envelope: a program may hand the mail over once for each reader."""
    content = mail().replace(f"To: {DOCTOR}".encode(), f"To: {PATIENT}, {DOCTOR}\r\nCc: {OTHER}".encode())
    assert refusal(content, PATIENT) is RECIPIENTS_SEVERAL_PATIENTS
    assert refusal(content, DOCTOR) is None


def test_a_small_mail_does_not_take_all_memory() -> None:
    dense = reports.cda(with_pdf=False).replace(b"<recordTarget", b"<x/>" * 1_100_000 + b"<recordTarget", 1)
    assert refusal(mail(("a.xml", "text/xml", dense))) is refusals.DOCUMENT_TOO_LARGE
    attributes = b"<x " + b" ".join(b'a%d=""' % number for number in range(1_100_000)) + b"/>"
    dense = reports.cda(with_pdf=False).replace(b"<recordTarget", attributes + b"<recordTarget", 1)
    assert refusal(mail(("a.xml", "text/xml", dense))) is refusals.DOCUMENT_TOO_LARGE


def test_archives_of_one_mail_expand_within_one_budget() -> None:
    """Also those that say they are something else, which the screen does not open."""
    noise = base64.b64encode(random.Random(8).randbytes(15_000))
    filling = noise * 2000  # 40 MB, at a ratio that passes
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("IHE_XDM/SUBSET01/METADATA.XML", described())
        archive.writestr("IHE_XDM/SUBSET01/DOC.PDF", b"%PDF-1.4" + filling)
    one = buffer.getvalue()
    three = mail(*(("IHE_XDM.zip", "application/zip", one + bytes(number)) for number in range(3)))
    assert isinstance(carried_by(mail(("IHE_XDM.zip", "application/zip", one))), Carried)
    refused = carried_by(three)
    assert isinstance(refused, Refused) and refused.refusal is XDM_TOO_LARGE
    disguised = carried_by(mail(("IHE_XDM.zip", "application/pkcs7-mime", one)))
    assert isinstance(disguised, Carried) and not disguised.archives


def test_two_patients_are_written_to_apart() -> None:
    assert refusal(mail(), PATIENT, OTHER) is RECIPIENTS_SEVERAL_PATIENTS
    assert refusal(mail(), PATIENT, PATIENT.replace("patient", "Patient")) is None


def test_what_a_document_says_of_its_readers_is_heeded() -> None:
    assert refusal(mail(cda(confidentiality="INVISIBLE_PATIENT")), PATIENT) is HIDDEN_FROM_PATIENT
    assert refusal(mail(cda(confidentiality="INVISIBLE_PATIENT")), DOCTOR) is None
    assert refusal(mail(cda(confidentiality="MASQUE_PS")), DOCTOR) is MASKED_TO_PROFESSIONALS


def test_what_could_harm_is_refused_in_the_session() -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", bytes(20_000_000))
    assert refusal(mail(("a.zip", "application/zip", bomb.getvalue()))) is ARCHIVE_REFUSED
    dtd = reports.cda(prolog='<?xml version="1.0"?><!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>')
    assert refusal(mail(("a.xml", "text/xml", dtd))) is refusals.DOCUMENT_DTD


# Sizes


def test_what_its_author_encrypted_counts_as_it_is() -> None:
    reader = person("paul@clinic.example", kind="p256", which="paul").certificate
    fits = mail().partition(b"\r\nContent-Type")[0] + b"\r\n" + encrypt(b"\r\n" + bytes(650_000), [reader])
    assert SIZES.refused("x@op2.example", len(fits)) is not None
    assert refusal(fits, "x@op2.example") is None
    assert refusal(mail(("a.bin", "application/octet-stream", bytes(650_000))), "x@op2.example") is not None


def test_the_sentence_names_the_size() -> None:
    big = mail(("a.pdf", "application/pdf", b"%PDF-1.4\n" + bytes(700_000)))
    refused = judged(big, "x@op2.example", DOCTOR)
    assert refused is not None and refused.refusal is mta_refusals.PARTNER_SIZE_LIMIT
    assert refused.reply_fr == (
        "552 5.3.4 Le message depasse la taille acceptee par le destinataire : envoyez-en moins ou en plusieurs "
        "messages. (1,3 Mo, maximum 1,0 Mo)"
    )
    assert judged(big) is None, "between mailboxes of ours"


@pytest.mark.parametrize(("octets", "fits"), [(18_000_000, True), (20_000_000, False)])
def test_patients_take_25_megabytes(octets: int, fits: bool) -> None:
    refused = SIZES.refused(PATIENT, octets)
    assert (refused is None) is fits
    assert refused is None or "26,2 Mo, maximum 25,0 Mo" in refused.detail


def test_ours_count_what_is_filed() -> None:
    sizes = SizeLimits(PartnerBook([]), ["patient.mssante.fr"], "patient.mssante.fr".__eq__)
    assert sizes.refused(PATIENT, 25 * 2**20) is None
    assert sizes.refused(PATIENT, 25 * 2**20 + 1) == Refused(
        mta_refusals.PARTNER_SIZE_LIMIT, "25,1 Mo, maximum 25,0 Mo"
    )


def test_a_document_counts_as_archive_and_as_page() -> None:
    """As it was attached it would fit; with its page beside it, it does not."""
    noise = random.Random(8).randbytes(330_000)
    page = reports.pdf(["x"]) + noise
    content = mail(cda(level=1, document_pdf=page))
    assert SIZES.refused("x@op2.example", len(content)) is None
    assert refusal(content, "x@op2.example") is mta_refusals.PARTNER_SIZE_LIMIT
