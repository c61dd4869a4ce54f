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


def always_seen(height: float, width: float, above: float, folded: float) -> tuple[float, float, float, float]:
    """What a window of 100 x 45 mm, 20 mm from the right and `above` mm over the lower edge of the envelope, shows of
    a sheet 210 mm wide and `folded` mm high wherever it slides: left, top, right, bottom from the sheet's corner."""
    left, right = width - 120, width - 20
    top, bottom = height - above - 45, height - above
    return left, top, right - (width - 210), bottom - (height - folded)


DL = always_seen(110, 220, 20, 99)
C5 = always_seen(162, 229, 60, 148.5)
SEEN = (90, 34, 200, 102)
"""What may be seen in one position or another."""


def printed_letter(own: bytes | None = None, address: tuple[str, ...] = ADDRESS) -> bytes:
    letter = document(pdf=own, narrative="Sortie à domicile, état stable.")
    pages = printed.document_pages(report(letter), letter, Audience.PROFESSIONAL)
    return printed.bind(printed.cover(letter, address, SENDER, AT), pages)


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
            *(f"ligne {n}" for n in range(7)),
            "99999 ESSAIVILLE-SUR-ESSAI CEDEX",
        ),
        ("adresse.tres.longue" * 10 + "@hopital.example",),
        ("Dr Zoé ŒUVRÉ-ÇELİK", "Cabinet médical", "Bâtiment B", "12 rue des Essais", "75000 PARIS CEDEX"),
    ],
)
def test_the_address_stands_in_the_window(address: tuple[str, ...]) -> None:
    found = boxes(printed_letter(address=address))
    shown = {text: box for text, box in found.items() if box[2] > SEEN[0] and box[1] < SEEN[3] and box[0] < SEEN[2]}
    for text, (left, top, right, bottom) in shown.items():
        assert DL[0] <= left, text
        assert top >= DL[1], text
        assert right <= DL[2], text
        assert bottom <= DL[3], text
        if len(address) <= 5:
            assert left >= C5[0], text
            assert top >= C5[1], text
            assert bottom <= C5[3], text
    # the address, and nothing else, above all nothing that names the patient
    assert next(iter(shown)).startswith(address[0][:10])
    assert list(shown)[-1].startswith(address[-1][:20])
    assert len(shown) == min(len(address), 6)


def test_a_long_name_goes_on_below_while_lines_are_free() -> None:
    name = "CENTRE HOSPITALIER UNIVERSITAIRE DES ESSAIS ET DES ÉPREUVES RÉUNIS"
    cover = " ".join(pages_of(printed_letter(address=(name, *ADDRESS[1:])))[0].split())
    assert name in cover
    assert "…" not in cover


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
    monkeypatch.setattr(pdf, "FONT_DIRECTORY", tmp_path)
    with pytest.raises(pdf.FontMissingError):
        printed.cover(letter, ADDRESS, SENDER, AT)
