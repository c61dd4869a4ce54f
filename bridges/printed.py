"""A letter for whom no mailbox reaches: a cover with the address where a window envelope shows it, then the document.

A4, folded in three into a French DL envelope (NF Z 11-001: window of 100 x 40 mm): the address stands 105 mm from the
left and from 48 mm below the top; what names the patient stands below the first fold, where no window shows it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import cast

import pikepdf
from fpdf import FPDF
from fpdf.enums import XPos, YPos
from fpdf.fonts import TTFFont

from bridges import pdf
from bridges.labels import type_label
from bridges.plain import one_line
from bridges.report import Audience, Document, Report
from bridges.summary import patient_line

ADDRESS_LEFT, ADDRESS_TOP = 105.0, 48.0
"""Millimetres from the left and the top edge of the sheet to the address block."""
_ADDRESS_WIDTH, _ADDRESS_LINES = 90.0, 6
"""The window ends 200 mm from the left; six lines is what the post reads (NF Z 10-011)."""
_LINE = 5.5
_FOLDS = (99.0, 198.0)
_FAMILY = "DejaVu"
_SIZE, _SMALLEST = 11.0, 7.0
_REASON = (
    "Ce courrier vous est adressé sur papier : aucune messagerie sécurisée de santé ne permettait de vous joindre. "
    "Il contient des informations couvertes par le secret médical."
)


def document_pages(report: Report, document: Document, audience: Audience) -> bytes:
    """The document's pages as PDF: its own when they can be opened and printed, else rendered from its text. Raises
    `pdf.FontMissingError`."""
    pages = pdf.twin(report, document, audience)
    if pages is document.pdf and not _printable(pages):
        return pdf.twin(report, replace(document, pdf=None), audience)
    return pages


def print_ready(
    document: Document, pages: bytes, address_lines: Sequence[str], sender_lines: Sequence[str], at: datetime
) -> bytes:
    """The cover, then `pages` (from `document_pages`). The same arguments give the same bytes.

    More than six address lines are joined so that the last one, the town, stays. Raises `pdf.FontMissingError`.
    """
    cover = _cover(document, _fit(address_lines), sender_lines[:_ADDRESS_LINES], at)
    printed = io.BytesIO()
    with (
        pikepdf.open(io.BytesIO(cover)) as letter,
        pikepdf.open(io.BytesIO(pages), suppress_warnings=True) as body,
    ):
        # Pages only: scripts, attached files and actions of the document's own catalogue are left behind.
        letter.pages.extend(body.pages)
        letter.save(printed, deterministic_id=True)
    return printed.getvalue()


def _printable(pages: bytes) -> bool:
    """Whether its pages can really be carried over: tried out, because damage shows only then."""
    try:
        with pikepdf.open(io.BytesIO(pages), suppress_warnings=True) as opened, pikepdf.new() as trial:
            trial.pages.extend(opened.pages)
            trial.save(io.BytesIO())
            return len(trial.pages) > 0
    except (pikepdf.PdfError, pikepdf.PasswordError, ValueError, RuntimeError, OSError):
        return False


def _fit(lines: Sequence[str]) -> list[str]:
    shown = [line for line in (one_line(each, 120) for each in lines) if line]
    if len(shown) > _ADDRESS_LINES:
        shown[_ADDRESS_LINES - 2 : -1] = [", ".join(shown[_ADDRESS_LINES - 2 : -1])]
    return shown


def _cover(document: Document, address: Sequence[str], sender: Sequence[str], at: datetime) -> bytes:
    page = FPDF(format="A4")
    for style, face in (("", "DejaVuSans.ttf"), ("B", "DejaVuSans-Bold.ttf")):
        path = pdf.FONT_DIRECTORY / face
        if not path.is_file():
            raise pdf.FontMissingError(f"font {face} not found: install the Debian package fonts-dejavu-core")
        page.add_font(_FAMILY, style, path)
    page.set_creation_date(at)
    page.set_lang("fr-FR")
    page.set_margins(20, 15, 20)
    page.set_auto_page_break(False)
    page.add_page()
    _block(page, 20.0, 15.0, 80.0, sender, 9.0)
    _block(page, ADDRESS_LEFT, ADDRESS_TOP, _ADDRESS_WIDTH, address, _SIZE)
    for fold in _FOLDS:
        page.line(3, fold, 7, fold)
    page.set_xy(20, 110)
    title = document.title or type_label(document.type_code, document.type_label)
    for text, style in (
        (f"Le {at:%d/%m/%Y}", ""),
        (f"Objet : {one_line(title, 200)}", "B"),
        (f"Patient : {patient_line(document.patient)}", ""),
        (_REASON, ""),
    ):
        page.set_font(_FAMILY, style, 10)
        page.multi_cell(170, _LINE, _drawable(page, text), align="L", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
        page.ln(4)
    return bytes(page.output())


def _block(page: FPDF, left: float, top: float, width: float, lines: Sequence[str], size: float) -> None:
    """Lines that stay one line each: set smaller to fit, cut when the smallest size is still too wide."""
    for number, line in enumerate(lines):
        text, fitted = _drawable(page, one_line(line, 120)), size
        page.set_font(_FAMILY, "", fitted)
        while page.get_string_width(text) > width and fitted > _SMALLEST:
            fitted -= 0.5
            page.set_font_size(fitted)
        while page.get_string_width(text) > width:
            text = text[:-2].rstrip() + "…"
        page.text(left, top + (number + 0.75) * _LINE, text)


def _drawable(page: FPDF, text: str) -> str:
    """`text` with what the fonts lack as U+FFFD: the library would log the missing character."""
    known = cast("TTFFont", page.fonts[_FAMILY.lower()]).cmap
    return "".join(c if ord(c) in known else "\ufffd" for c in one_line(text))
