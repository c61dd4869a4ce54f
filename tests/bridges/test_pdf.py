"""The PDF twins, opened with PDFium and looked into with pikepdf."""

from __future__ import annotations

import logging
from pathlib import Path

import pikepdf
import pypdfium2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridges import pdf
from bridges.report import Action
from tests.bridges.fictitious import document, report, result


def text_of(data: bytes) -> str:
    opened = pypdfium2.PdfDocument(data)
    pages = []
    for page in opened:
        text_page = page.get_textpage()
        pages.append(text_page.get_text_bounded())
        text_page.close()
        page.close()
    opened.close()
    return "\n".join(pages)


RESULTS = (
    result("Leucocytes", "6.2", unit="G/L", low="4", high="10", interpretation="N"),
    result("Hémoglobine", "6.1", interpretation="LL"),
    result("Ferritine", "8", unit="µg/L", low="15", high="150", section="Biochimie"),
)


def test_a_documents_own_pdf_is_given_byte_for_byte() -> None:
    own = b"%PDF-1.4\nwhatever the author laid out"
    assert pdf.twin(report(), document(pdf=own)) is own


def test_a_rendered_twin_tells_the_whole_story() -> None:
    text = text_of(pdf.twin(report(), document(results=RESULTS)))
    for expected in (
        "FICTIF-ÉLAN Zoé Marie",
        "28/03/1979",
        "Compte rendu d'examens biologiques",
        "Paul ESSAI, Médecin",
        "Laboratoire Témoin 1120000001",
        "6.1 g/dL",
        "[12.0 - 16.0]",
        "▼▼ CRITIQUE, très bas (LL)",
        "hors bornes",
        "Biochimie",
        "Page 1 / 1",
    ):
        assert expected in " ".join(text.split()), expected
    assert text.index("Leucocytes") < text.index("Hémoglobine")


def test_a_narrative_stands_in_for_results_and_long_ones_run_over_pages() -> None:
    story = "\n".join(f"Ligne numéro {i} : état général conservé." for i in range(200))
    data = pdf.twin(report(), document(narrative=story))
    text = text_of(data)
    assert "Ligne numéro 199" in text
    opened = pypdfium2.PdfDocument(data)
    pages = len(opened)
    opened.close()
    assert pages > 2
    assert f"Page {pages} / {pages}" in text
    assert text.count("FICTIF-ÉLAN") >= pages


def test_many_results_repeat_the_patient_and_lose_none() -> None:
    many = tuple(result(f"Examen {i:03}", str(i), low="", high="") for i in range(150))
    text = text_of(pdf.twin(report(), document(results=many)))
    assert all(f"Examen {i:03}" in text for i in range(150))


def test_a_withdrawn_document_says_so() -> None:
    assert "RETIRÉ" in text_of(pdf.twin(report(action=Action.DELETE), document()))


def test_the_same_document_gives_the_same_bytes() -> None:
    one = document(results=RESULTS)
    assert pdf.twin(report(), one) == pdf.twin(report(), one)
    assert pdf.twin(report(), document(created="")) == pdf.twin(report(), document(created=""))


def test_it_is_what_pdf_a_1b_asks_for(tmp_path: Path) -> None:
    """ISO 19005-1: identification, embedded fonts, output intent, no encryption, XMP that nothing contradicts."""
    path = tmp_path / "twin.pdf"
    path.write_bytes(pdf.twin(report(), document(results=RESULTS)))
    with pikepdf.open(path) as opened:
        assert not opened.docinfo.keys()
        with opened.open_metadata() as metadata:
            assert metadata.pdfa_status == "1B"
            assert metadata["dc:title"] == "Compte rendu d'examens biologiques"
            assert metadata["xmp:CreateDate"].startswith("2026-11-21T08:15:00")
        assert not opened.is_encrypted
        assert opened.pdf_version == "1.4"
        assert opened.trailer.ID
        intent = opened.Root.OutputIntents[0]
        assert intent.S == "/GTS_PDFA1"
        assert len(intent.DestOutputProfile.read_bytes()) > 500
        for page in opened.pages:
            for font in page.Resources.Font.values():
                descriptor = font.DescendantFonts[0].FontDescriptor
                assert "/FontFile2" in descriptor
                assert "/CIDSet" in descriptor
                assert "/ToUnicode" in font
            assert "/Group" not in page
        for name in ("/JavaScript", "/EmbeddedFiles"):
            assert name not in opened.Root.get("/Names", {})
        assert "/OpenAction" not in opened.Root or "/JS" not in str(opened.Root.OpenAction)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60), st.text(max_size=60))
def test_hostile_values_still_make_a_pdf_and_are_not_logged(caplog, label: str, value: str) -> None:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        data = pdf.twin(report(), document(title=label, results=(result(label, value, interpretation="HH"),)))
    assert data.startswith(b"%PDF-1.4")
    assert not caplog.records


def test_odd_dates_do_not_stop_the_twin() -> None:
    for created in ("", "2026", "19790231", "20261121091500.123+0100", "n'importe quoi"):
        assert pdf.twin(report(), document(created=created)).startswith(b"%PDF")


def test_missing_fonts_say_what_to_install(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pdf, "FONT_DIRECTORY", tmp_path)
    with pytest.raises(pdf.FontMissingError, match="fonts-dejavu-core"):
        pdf.twin(report(), document())
