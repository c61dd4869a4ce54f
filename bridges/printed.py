"""A letter for whom no mailbox reaches: a cover with the address where a window envelope shows it, then the document.

French window envelopes have a window of 100 x 45 mm on the right, 20 mm from the right edge. In a DL (220 x 110 mm, the
sheet folded in three) it stands 20 mm above the lower edge, in a C5 (229 x 162 mm, folded in two) 60 mm. The sheet can
slide in the envelope: always seen are, from the left and the top edge of the sheet, 100-190 x 45-79 mm in a DL and
109-190 x 57-88 mm in a C5; never more than 90-200 x 34-102 mm. The address stands in both, six lines in the DL; what
names the patient stands below all of it, and the sender left of it.
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

ADDRESS_LEFT, ADDRESS_BOTTOM, ADDRESS_WIDTH = 110.0, 79.0, 80.0
"""Millimetres: the address block from the left edge of the sheet, its last line's lower end from the top, its width."""
_ADDRESS_LINES = 6
"""What the post reads (NF Z 10-011)."""
_ADDRESS_LINE, _LINE = 4.3, 5.5
_SENDER_LEFT, _SENDER_TOP, _SENDER_WIDTH = 20.0, 15.0, 65.0
_TEXT_TOP = 110.0
_FOLDS = (99.0, 198.0)
_FAMILY = "DejaVu"
_FACE = "DejaVuSans.ttf"
_SIZE, _SMALLEST = 10.0, 7.0
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


def cover(document: Document, address_lines: Sequence[str], sender_lines: Sequence[str], at: datetime) -> bytes:
    """The first sheet, as PDF. The same arguments give the same bytes.

    More than six address lines are joined so that the last one, the town, stays. Raises `pdf.FontMissingError`.
    """
    font = pdf.FONT_DIRECTORY / _FACE
    if not font.is_file():
        raise pdf.FontMissingError(f"font {_FACE} not found: install the Debian package fonts-dejavu-core")
    page = FPDF(format="A4")
    page.add_font(_FAMILY, "", font)
    page.set_creation_date(at)
    page.set_lang("fr-FR")
    page.set_margins(_SENDER_LEFT, _SENDER_TOP, _SENDER_LEFT)
    page.set_auto_page_break(False)
    page.add_page()
    _block(page, _SENDER_LEFT, _SENDER_TOP, _SENDER_WIDTH, _LINE, sender_lines[:_ADDRESS_LINES])
    address = _fit(page, address_lines)
    _block(page, ADDRESS_LEFT, ADDRESS_BOTTOM - len(address) * _ADDRESS_LINE, ADDRESS_WIDTH, _ADDRESS_LINE, address)
    for fold in _FOLDS:
        page.line(3, fold, 7, fold)
    page.set_xy(_SENDER_LEFT, _TEXT_TOP)
    title = document.title or type_label(document.type_code, document.type_label)
    for text, size in (
        (f"Le {at:%d/%m/%Y}", 10),
        (f"Objet : {one_line(title, 200)}", 12),
        (f"Patient : {patient_line(document.patient)}", 10),
        (_REASON, 10),
    ):
        page.set_font(_FAMILY, "", size)
        page.multi_cell(170, _LINE, _drawable(page, text), align="L", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
        page.ln(4)
    return bytes(page.output())


def bind(first: bytes, pages: bytes) -> bytes:
    """The letter to post: its `cover`, then `pages` (from `document_pages`). The same arguments give the same bytes."""
    bound = io.BytesIO()
    with (
        pikepdf.open(io.BytesIO(first)) as letter,
        pikepdf.open(io.BytesIO(pages), suppress_warnings=True) as body,
    ):
        # Pages only: scripts, attached files and actions of the document's own catalogue are left behind.
        letter.pages.extend(body.pages)
        letter.save(bound, deterministic_id=True)
    return bound.getvalue()


def _printable(pages: bytes) -> bool:
    """Whether its pages can really be carried over: tried out, because damage shows only then."""
    try:
        with pikepdf.open(io.BytesIO(pages), suppress_warnings=True) as opened, pikepdf.new() as trial:
            trial.pages.extend(opened.pages)
            trial.save(io.BytesIO())
            return len(trial.pages) > 0
    except (pikepdf.PdfError, pikepdf.PasswordError, ValueError, RuntimeError, OSError):
        return False


def _fit(page: FPDF, lines: Sequence[str]) -> list[str]:
    """At most six lines that fit the window at the smallest size; too long ones go on below while lines are free."""
    waiting = [line for line in (one_line(each, 120) for each in lines) if line]
    if len(waiting) > _ADDRESS_LINES:
        waiting[_ADDRESS_LINES - 2 : -1] = [", ".join(waiting[_ADDRESS_LINES - 2 : -1])]
    page.set_font(_FAMILY, "", _SMALLEST)
    shown: list[str] = []
    while waiting:
        head, tail = waiting.pop(0), ""
        while page.get_string_width(_drawable(page, head)) > ADDRESS_WIDTH and " " in head:
            head, _, word = head.rpartition(" ")
            tail = f"{word} {tail}".rstrip()
        if tail and len(shown) + 2 + len(waiting) > _ADDRESS_LINES:
            head, tail = f"{head} {tail}", ""
        shown.append(head)
        waiting[:0] = [tail] if tail else []
    return shown


def _block(page: FPDF, left: float, top: float, width: float, pitch: float, lines: Sequence[str]) -> None:
    """Lines that stay one line each: set smaller to fit, cut when the smallest size is still too wide."""
    for number, line in enumerate(lines):
        text, fitted = _drawable(page, one_line(line, 120)), _SIZE
        page.set_font(_FAMILY, "", fitted)
        while page.get_string_width(text) > width and fitted > _SMALLEST:
            fitted -= 0.5
            page.set_font_size(fitted)
        while page.get_string_width(text) > width:
            text = text[:-2].rstrip() + "…"
        page.text(left, top + (number + 0.75) * pitch, text)


def _drawable(page: FPDF, text: str) -> str:
    """`text` with what the fonts lack as U+FFFD: the library would log the missing character."""
    known = cast("TTFFont", page.fonts[_FAMILY.lower()]).cmap
    return "".join(c if ord(c) in known else "\ufffd" for c in one_line(text))
