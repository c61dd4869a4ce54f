"""The sheet a mailbox's owner is given: one page, readable by a telephone's camera, and without a secret."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pypdfium2
import pytest
import zxingcpp

from bridges.mailbox_sheet import mailbox_sheet
from mta.mailboxes.records import Custody, ReadingPreferences
from mta.mailboxes.services import AddressBook, ClientServices, Security, Service

SERVICES = ClientServices(
    name="Opérateur de ville",
    domains=("cabinet.example", "patient.example"),
    imap=Service("mail.cabinet.example", 993),
    submission=(Service("mail.cabinet.example", 465), Service("mail.cabinet.example", 587, Security.STARTTLS)),
    site=Service("aide.cabinet.example", 443),
    patient_domains=frozenset({"patient.example"}),
)
DOCTOR, PATIENT = "helene.lopez@cabinet.example", "279035121518989@patient.example"
AT = datetime(2026, 11, 22, tzinfo=UTC)


def text_of(pdf: bytes) -> str:
    with pypdfium2.PdfDocument(pdf) as document:
        assert len(document) == 1
        page = document[0]
        text = page.get_textpage()
        try:
            return str(text.get_text_bounded())
        finally:
            text.close()


def code_of(pdf: bytes) -> list[str]:
    """What a camera reads."""
    with pypdfium2.PdfDocument(pdf) as document:
        image = document[0].render(scale=2).to_pil()
    return [each.text for each in zxingcpp.read_barcodes(image)]


def test_the_code_leads_to_the_page_with_the_address() -> None:
    sheet = mailbox_sheet(SERVICES, DOCTOR, "Dr Hélène LOPEZ", AT)
    assert code_of(sheet) == [SERVICES.link(DOCTOR)]
    text = text_of(sheet)
    for words in ("Dr Hélène LOPEZ", DOCTOR, "mail.cabinet.example", "993", "465", "SSL/TLS", "STARTTLS"):
        assert words in text


def words_of(pdf: bytes) -> str:
    return " ".join(text_of(pdf).split())


def test_nobody_is_sent_to_a_cloud() -> None:
    words = words_of(mailbox_sheet(SERVICES, DOCTOR, "", AT))
    assert "Outlook : version classique pour Windows seulement." in words
    assert "ne les utilisez pas" in words


def test_the_address_book_says_who_logs_in() -> None:
    book = AddressBook(Service("annuaire.cabinet.example", 636), "dc=mssante,dc=fr", "cn=carnet,cn=lecteurs")
    words = words_of(mailbox_sheet(replace(SERVICES, address_book=book), DOCTOR, "", AT))
    assert "base de recherche dc=mssante,dc=fr. Identifiant : cn=carnet,cn=lecteurs" in words
    words = words_of(mailbox_sheet(replace(SERVICES, address_book=replace(book, login="")), DOCTOR, "", AT))
    assert "Identifiant" not in words


def test_nothing_is_promised_that_is_not_done() -> None:
    """A holder of keys signs himself; who wants no line before the text has none."""

    def said(preferences: ReadingPreferences) -> tuple[bool, bool]:
        words = words_of(mailbox_sheet(SERVICES, DOCTOR, "", AT, preferences))
        return "signé et chiffré sans que" in words, "la première ligne" in words

    assert said(ReadingPreferences()) == (True, True)
    assert said(ReadingPreferences(verdict_line=False)) == (True, False)
    assert said(ReadingPreferences(custody=Custody.HOLDER)) == (False, False)


def test_a_patients_code_holds_no_matricule() -> None:
    assert code_of(mailbox_sheet(SERVICES, PATIENT, "", AT)) == ["https://aide.cabinet.example/"]


def test_the_same_sheet_is_the_same_octets() -> None:
    assert mailbox_sheet(SERVICES, DOCTOR, "", AT) == mailbox_sheet(SERVICES, DOCTOR, "", AT)


def test_the_longest_words_stay_on_one_page() -> None:
    host = ".".join(["a" * 60] * 4)
    long = replace(
        SERVICES,
        name="N" * 300,
        domains=(host,),
        imap=Service(host, 65535),
        site=Service(host, 65535),
        sieve=Service(host, 4190),
        address_book=AddressBook(Service(host, 636), "dc=" + "x" * 200, "cn=carnet,cn=lecteurs"),
    )
    address = f"{'l' * 64}@{host}"
    sheet = mailbox_sheet(long, address, "É" * 300 + "\u200f\U0001f600", AT)
    assert code_of(sheet) == [long.link(address)]
    text = text_of(sheet)
    assert "\x00" not in text
    assert "si c’est prouvé" in text  # the last words: what is drawn below the edge nobody reads


@pytest.mark.parametrize("address", ["", "x", "a@ailleurs.example", "a b@cabinet.example"])
def test_an_address_of_somebody_else_gets_none(address: str) -> None:
    with pytest.raises(ValueError, match="domains"):
        mailbox_sheet(SERVICES, address, "", AT)
