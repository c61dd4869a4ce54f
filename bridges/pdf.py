"""The PDF twin of a document: what an ordinary client opens (ECO.2.1.1, ECO.2.1.5).

A document that carries its own PDF is shown as its author laid it out, byte for byte. The others are rendered here, as
PDF/A-1b (ISO 19005-1): fonts embedded, sRGB output intent, XMP metadata. The same document always gives the same
bytes: dates come from the document, identifiers from its content.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TypeAlias, cast
from xml.sax.saxutils import escape

from fontTools.ttLib import TTFont  # type: ignore[import-untyped]
from fpdf import FPDF
from fpdf.enums import DocumentCompliance, XPos, YPos

from bridges.labels import profession_label, type_label
from bridges.plain import french_date, one_line, paragraphs
from bridges.report import Action, Audience, Document, Report
from bridges.summary import (
    RankedResult,
    RankedResults,
    is_laboratory,
    party_name,
    patient_line,
    ranked,
    reference_range,
    shown_unit,
    unranked,
)

FONT_DIRECTORY = Path("/usr/share/fonts/truetype/dejavu")
"""Where Debian's fonts-dejavu-core puts its files."""
for _library in ("fontTools", "fpdf"):
    logging.getLogger(_library).setLevel(logging.WARNING)  # below it they log the characters they embed
_FAMILY = "DejaVu"
_FACES = (("", "DejaVuSans.ttf"), ("B", "DejaVuSans-Bold.ttf"))
_COLUMNS = (("Examen", 66.0), ("Résultat", 38.0), ("Valeurs de référence", 34.0), ("Indication", 52.0))
"""Titles and widths in millimetres; A4 less two margins of 10 mm."""
_PATIENT_COLUMNS = (("Examen", 86.0), ("Résultat", 52.0), ("Valeurs habituelles", 52.0))
_Columns: TypeAlias = tuple[tuple[str, float], ...]
_LINE = 5.0


class FontMissingError(RuntimeError):
    """The fonts that must be embedded are not installed: install Debian's fonts-dejavu-core."""


def twin(report: Report, document: Document, audience: Audience = Audience.PROFESSIONAL) -> bytes:
    """The PDF of one document: its own, or rendered for `audience`. Raises `FontMissingError` on a machine without the
    fonts. Of a withdrawn document only the notice: its pages, saved or printed, would pass for valid.

    Rendering takes tens of milliseconds of CPU: callers with many to do use a process pool.
    """
    if document.pdf is not None and report.action is not Action.DELETE:
        return document.pdf
    return _render(report, document, audience)


@lru_cache(maxsize=1)
def _known_characters() -> frozenset[int]:
    """Code points every embedded face can draw."""
    known: frozenset[int] | None = None
    for _, name in _FACES:
        with TTFont(_font(name), lazy=True) as face:
            points = frozenset(face.getBestCmap())
        known = points if known is None else known & points
    return known or frozenset()


def _font(name: str) -> Path:
    path = FONT_DIRECTORY / name
    if not path.is_file():
        raise FontMissingError(f"font {name} not found: install the Debian package fonts-dejavu-core")
    return path


def _drawable(text: str) -> str:
    """`text` with what the fonts lack shown as U+FFFD: a missing glyph is not valid PDF/A, and would be logged."""
    known = _known_characters()
    return "".join(c if c == "\n" or ord(c) in known else "\ufffd" for c in text)


def _line_of(text: str, limit: int = 0) -> str:
    return _drawable(one_line(text, limit))


class _Page(FPDF):
    """A4 pages with the patient on top and the page number at the bottom of each."""

    def __init__(self, heading: str) -> None:
        super().__init__(format="A4", enforce_compliance=DocumentCompliance.PDFA_1B)
        self._heading = heading

    def header(self) -> None:
        self.set_font(_FAMILY, "B", 9)
        self.multi_cell(0, _LINE, self._heading, align="L", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
        self.line(self.l_margin, self.get_y() + 1, self.w - self.r_margin, self.get_y() + 1)
        self.ln(4)

    def footer(self) -> None:
        self.set_y(-12)
        self.set_font(_FAMILY, "", 8)
        self.cell(0, _LINE, f"Page {self.page_no()} / {{nb}}", align="C")


def _render(report: Report, document: Document, audience: Audience) -> bytes:
    page = _Page(_drawable(f"Patient : {patient_line(document.patient)}"))
    for style, name in _FACES:
        page.add_font(_FAMILY, style, _font(name))
    page.set_margins(10, 10, 10)
    page.set_auto_page_break(auto=True, margin=15)
    page.c_margin = 1
    title = _line_of(document.title or type_label(document.type_code, document.type_label), 150) or "Document"
    _describe(page, title, _moment(document.created))
    page.add_page()
    _head(page, report, document, title)
    if report.action is not Action.DELETE:
        _body(page, document, audience)
    return bytes(page.output())


def _body(page: _Page, document: Document, audience: Audience) -> None:
    """The results of a laboratory report, then all the document's text: comments and conclusions stand only there."""
    tabled = bool(document.results) and (is_laboratory(document) or not document.narrative)
    if tabled:
        _results(page, document, audience)
        if document.narrative:
            page.ln(4)
            _text(page, "Texte du document", "B", 11)
    if document.narrative:
        _paragraphs(page, document.narrative)
    elif not tabled:
        _text(page, "Ce document ne contient pas de texte lisible ici : voir IHE_XDM.zip.")


def _moment(created: str) -> datetime:
    """The document's date as a creation date in UTC; the epoch when it is not a calendar date."""
    for text, form in ((created, "%Y%m%d%H%M%S%z"), (created[:14], "%Y%m%d%H%M%S"), (created[:8], "%Y%m%d")):
        try:
            moment = datetime.strptime(text, form)  # noqa: DTZ007  what has no offset is taken as UTC
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        except (ValueError, OverflowError):
            continue
    return datetime(1970, 1, 1, tzinfo=UTC)


def _describe(page: FPDF, title: str, created: datetime) -> None:
    """XMP metadata (ISO 19005-1 §6.7); given whole, for the library's own would hold the time of rendering."""
    page.set_lang("fr-FR")
    page.set_creation_date(created)  # goes into the file identifier
    stamp = created.isoformat(timespec="seconds")
    page.set_xmp_metadata(
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" '
        'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:pdf="http://ns.adobe.com/pdf/1.3/" '
        'xmlns:pdfaid="http://www.aiim.org/pdfa/ns/id/">'
        f'<dc:title><rdf:Alt><rdf:li xml:lang="x-default">{escape(title)}</rdf:li></rdf:Alt></dc:title>'
        f"<xmp:CreateDate>{stamp}</xmp:CreateDate><xmp:CreatorTool>Relais</xmp:CreatorTool>"
        "<pdf:Producer>Relais (fpdf2)</pdf:Producer>"
        "<pdfaid:part>1</pdfaid:part><pdfaid:conformance>B</pdfaid:conformance>"
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    )


def _head(page: FPDF, report: Report, document: Document, title: str) -> None:
    if report.action is Action.DELETE:
        _text(page, "DOCUMENT RETIRÉ PAR SON AUTEUR : NE PLUS EN TENIR COMPTE", "B", 12)
    _text(page, title, "B", 14)
    label = _line_of(type_label(document.type_code, document.type_label), 100)
    if label.lower() != title.lower():
        _text(page, label)
    author = document.author
    profession = profession_label(document.author_specialty)
    lines = [
        ("Date", french_date(document.created, with_time=True)),
        ("Auteur", party_name(author) + (f", {profession}" if profession else "")),
        ("Structure", " ".join(part for part in (author.organisation, author.organisation_id) if part)),
        ("Version", "" if document.version is None else str(document.version)),
        ("Remplace", document.parent_id if report.action is Action.REPLACE else ""),
        ("Identifiant du document", document.unique_id),
    ]
    for name, value in lines:
        if value:
            _text(page, f"{name} : {_line_of(value, 200)}")
    page.ln(3)


def _results(page: FPDF, document: Document, audience: Audience) -> None:
    """The results in the document's order; what stands out is bold and carries a symbol, never colour alone.

    A patient reads them without rank or alarm, as in the mail.
    """
    alone = audience is Audience.PATIENT
    ranks = RankedResults((), (), tuple(unranked(document.results))) if alone else ranked(document.results)
    columns = _PATIENT_COLUMNS if alone else _COLUMNS
    rows = {id(one.result): (one, "") for one in ranks.other}
    rows |= {id(one.result): (one, _symbol(one)) for one in ranks.abnormal}
    rows |= {id(one.result): (one, _symbol(one) * 2) for one in ranks.critical}
    _row(page, columns, tuple(title for title, _ in columns), "B")
    for section, group in groupby(document.results, key=lambda result: _line_of(result.section, 200)):
        if section:
            _text(page, section, "B", 10)
        for result in group:
            one, symbol = rows[id(result)]
            _row(page, columns, _cells(one, symbol)[: len(columns)], "B" if symbol else "")
    if ranks.abnormal or ranks.critical:
        page.ln(2)
        _text(page, "\u25b2 haut   \u25bc bas   \u25cf à signaler   symbole doublé : critique", size=8)


def _symbol(one: RankedResult) -> str:
    first = one.flag[:1].upper()
    return {"H": "\u25b2", ">": "\u25b2", "L": "\u25bc", "<": "\u25bc"}.get(first, "\u25cf")


def _cells(one: RankedResult, symbol: str) -> tuple[str, ...]:
    result = one.result
    return (
        _line_of(result.label or result.code, 200),
        _line_of(f"{result.value} {shown_unit(result)}", 400),
        _line_of(reference_range(result)),
        _line_of(f"{symbol} {one.words}"),
    )


def _row(page: FPDF, columns: _Columns, cells: tuple[str, ...], style: str) -> None:
    """One table row, each cell wrapped in its column; never split over two pages."""
    page.set_font(_FAMILY, style, 9)
    wrapped = [
        cast("list[str]", page.multi_cell(width, _LINE, cell, dry_run=True, output="LINES", align="L"))
        for cell, (_, width) in zip(cells, columns, strict=True)
    ]
    height = _LINE * max(len(lines) for lines in wrapped)
    if page.will_page_break(height):
        page.add_page()
        page.set_font(_FAMILY, style, 9)
    top, left = page.get_y(), page.l_margin
    for lines, (_, width) in zip(wrapped, columns, strict=True):
        page.set_xy(left, top)
        page.multi_cell(width, _LINE, "\n".join(lines), align="L")
        left += width
    page.set_draw_color(190)
    page.line(page.l_margin, top + height, page.w - page.r_margin, top + height)
    page.set_draw_color(0)
    page.set_xy(page.l_margin, top + height)


def _paragraphs(page: FPDF, narrative: str) -> None:
    for line in _drawable(paragraphs(narrative)).split("\n"):
        _text(page, line or " ")


def _text(page: FPDF, text: str, style: str = "", size: float = 9) -> None:
    page.set_font(_FAMILY, style, size)
    page.multi_cell(0, _LINE * size / 9, text, align="L", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
