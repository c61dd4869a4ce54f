"""Letters for the post, opened with PDFium: where the address stands, and whose pages follow."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime

import pikepdf
import pypdfium2
import pytest

from bridges import pdf, printed
from bridges.report import Audience
from tests.bridges.fictitious import document, report
from tests.support import reports

AT = datetime(2026, 11, 21, tzinfo=UTC)
ADDRESS = ("Dr Alix ESSAI", "12 rue des Essais", "75000 PARIS")
SENDER = ("Hôpital des essais", "sortie@hopital.example")
MILLIMETRE = 72 / 25.4


def printed_letter(own: bytes | None = None, address: tuple[str, ...] = ADDRESS) -> bytes:
    letter = document(pdf=own, narrative="Sortie à domicile, état stable.")
    pages = printed.document_pages(report(letter), letter, Audience.PROFESSIONAL)
    return printed.print_ready(letter, pages, address, SENDER, AT)


def pages_of(data: bytes) -> list[str]:
    opened = pypdfium2.PdfDocument(data)
    texts = []
    for page in opened:
        text_page = page.get_textpage()
        texts.append(text_page.get_text_bounded())
        text_page.close()
        page.close()
    opened.close()
    return texts


def boxes(data: bytes) -> dict[str, tuple[float, float, float, float]]:
    """Left, top, right, bottom in millimetres from the top left of each line of the first page."""
    opened = pypdfium2.PdfDocument(data)
    page = opened[0]
    text_page = page.get_textpage()
    width, height = page.get_size()
    assert (round(width), round(height)) == (595, 842)
    found = {}
    for number in range(text_page.count_rects()):
        left, bottom, right, top = text_page.get_rect(number)
        text = text_page.get_text_bounded(left, bottom, right, top).strip()
        measured = (left, height - top, right, height - bottom)
        found[text] = tuple(value / MILLIMETRE for value in measured)
    text_page.close()
    page.close()
    opened.close()
    return found  # type: ignore[return-value]


@pytest.mark.parametrize(
    "address",
    [
        ADDRESS,
        (
            "CENTRE HOSPITALIER UNIVERSITAIRE DES ESSAIS ET DES ÉPREUVES RÉUNIS",
            *("ligne",) * 7,
            "99999 ESSAIVILLE-SUR-ESSAI CEDEX",
        ),
        ("adresse.tres.longue" * 10 + "@hopital.example",),
    ],
)
def test_the_address_stands_in_the_window(address: tuple[str, ...]) -> None:
    found = boxes(printed_letter(address=address))
    in_window = {text: box for text, box in found.items() if box[0] > 100 and box[1] < 90}
    for text, (left, top, right, bottom) in in_window.items():
        assert 104 <= left <= 110, text
        assert top >= 45, text
        assert right <= 200, text
        assert bottom <= 85, text
    assert next(iter(in_window)).startswith(address[0][:10])
    assert list(in_window)[-1].startswith(address[-1][:20])
    # nothing else, above all nothing that names the patient, can show in the window
    for text, (_, top, right, _) in found.items():
        if text not in in_window:
            assert right < 100 or top > 99, text


def test_the_patient_stands_below_the_fold() -> None:
    found = boxes(printed_letter())
    patient = next(box for text, box in found.items() if "FICTIF" in text)
    assert patient[1] > 105


def test_the_documents_own_pages_follow() -> None:
    own = reports.pdf(["Lettre de sortie mise en page par son auteur"])
    cover, body = pages_of(printed_letter(own))
    assert "Dr Alix ESSAI" in cover
    assert "secret médical" in " ".join(cover.split())
    assert "mise en page par son auteur" in body


@pytest.mark.parametrize("own", [None, b"%PDF-1.4\nbroken", b"%PDF-1.7"])
def test_else_its_text_is_printed(own: bytes | None) -> None:
    pages = pages_of(printed_letter(own))
    assert len(pages) == 2
    assert "Sortie à domicile, état stable." in pages[1]


def test_a_locked_pdf_is_rendered_again() -> None:
    plain = pikepdf.new()
    plain.add_blank_page()
    locked = io.BytesIO()
    plain.save(locked, encryption=pikepdf.Encryption(user="secret", owner="secret"))
    assert "état stable" in pages_of(printed_letter(locked.getvalue()))[1]


def test_active_content_stays_behind() -> None:
    with pikepdf.open(io.BytesIO(reports.pdf(["page"]))) as active:
        active.Root.OpenAction = pikepdf.Dictionary(S=pikepdf.Name.JavaScript, JS="app.alert(1)")
        saved = io.BytesIO()
        active.save(saved)
    with pikepdf.open(io.BytesIO(printed_letter(saved.getvalue()))) as letter:
        assert "JavaScript" not in repr(letter.Root.get("/OpenAction"))


def test_the_same_letter_is_the_same_sheet() -> None:
    assert printed_letter() == printed_letter()


def test_odd_characters_and_a_missing_font(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    assert pages_of(printed_letter(address=("Dr \u4e2d\u202e\x07\U0001f600", "", "\ud800")))
    letter = replace(document(), pdf=None)
    pages = printed.document_pages(report(letter), letter, Audience.PATIENT)
    monkeypatch.setattr(pdf, "FONT_DIRECTORY", tmp_path)
    with pytest.raises(pdf.FontMissingError):
        printed.print_ready(letter, pages, ADDRESS, SENDER, AT)
