"""The sheet a mailbox's owner is given: one page that says how to read it on a telephone or computer, with a QR code.

It holds the address and what every mail program is told anyway; never a password, which is handed over another way. The
code leads to the gateway's own page. A patient's address holds a matricule and so stands in no link.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import segno
from fpdf import FPDF
from fpdf.enums import XPos, YPos

from bridges import pdf
from bridges.plain import one_line
from mta.mailboxes.discovery_page import OUTLOOK, address_book_words, settings_rows
from mta.mailboxes.records import Custody, ReadingPreferences
from mta.mailboxes.services import ClientServices

_FAMILY = "DejaVu"
_FACES = (("", "DejaVuSans.ttf"), ("B", "DejaVuSans-Bold.ttf"))
_MARGIN, _BOTTOM, _QR = 20.0, 10.0, 52.0
_SCALES = (1.0, 0.9, 0.8)
"""Of the letters: names may be so long that only smaller ones leave all of it on the page."""
_COLUMNS = (48.0, 74.0, 18.0, 30.0)
_LONGEST = 160
"""Characters shown of a link or a search base."""
_USUAL = ReadingPreferences()
_QUIET = 4
"""Modules left white around a code (ISO/IEC 18004 §6.3.8)."""


def mailbox_sheet(
    services: ClientServices,
    address: str,
    label: str = "",
    at: datetime | None = None,
    preferences: ReadingPreferences = _USUAL,
) -> bytes:
    """The sheet, as PDF; `label` is the owner as people know them. What it says is done for them is what the mailbox's
    `preferences` have done.

    Raises ValueError when the address is of none of our domains, `bridges.pdf.FontMissingError`.
    """
    known = services.our_address(address)
    if not known:
        raise ValueError("the address is of none of the domains")
    for scale in _SCALES:
        page = _drawn(services, known, label, at or datetime.now(UTC), preferences, scale)
        fits = page.get_y() <= page.h - _BOTTOM
        written = bytes(page.output())  # in any case: it closes the fonts' files
        if fits:
            break
    return written


class _Page(FPDF):
    def __init__(self, scale: float) -> None:
        super().__init__(format="A4")
        self.scale = scale


def _drawn(
    services: ClientServices, known: str, label: str, at: datetime, preferences: ReadingPreferences, scale: float
) -> _Page:
    """Ends where its text does. Raises `bridges.pdf.FontMissingError`."""
    page = _Page(scale)
    for style, name in _FACES:
        font = pdf.FONT_DIRECTORY / name
        if not font.is_file():
            raise pdf.FontMissingError(f"font {name} not found: install the Debian package fonts-dejavu-core")
        page.add_font(_FAMILY, style, font)
    page.set_creation_date(at)
    page.set_lang("fr-FR")
    page.set_title("Votre messagerie sécurisée de santé")
    page.set_margins(_MARGIN, 16, _MARGIN)
    page.set_auto_page_break(False)
    page.add_page()
    link = services.link(known)

    _text(page, "Votre messagerie sécurisée de santé", "B", 18)
    _text(page, one_line(services.name, 90), "", 11)
    page.ln(4)
    if label:
        _text(page, one_line(label, 90), "B", 12)
    _text(page, known, "B", 13 if len(known) < 60 else 8)
    page.ln(4)

    top = page.get_y()
    _code(page, link, page.w - _MARGIN - _QR, top)
    width = page.w - 2 * _MARGIN - _QR - 6
    _text(page, "1. Sur un téléphone", "B", 12, width)
    _text(
        page,
        "Photographiez le code ci-contre avec l’appareil photo et ouvrez la page. Sur iPhone et iPad : « Télécharger "
        "le profil », puis Réglages, « Profil téléchargé », Installer. Sur Android : installez Thunderbird ou K-9 Mail "
        "et donnez votre adresse et votre mot de passe.",
        "",
        10,
        width,
    )
    page.set_y(max(page.get_y(), top + _QR) + 5)
    _text(page, "2. Sur un ordinateur", "B", 12)
    _text(
        page,
        "Thunderbird : ajoutez un compte, donnez votre adresse et votre mot de passe ; le reste est trouvé tout seul. "
        "Mac : ouvrez la page ci-dessous et installez le profil. Les autres logiciels : donnez votre adresse ; s’il "
        f"faut des réglages, choisissez IMAP et recopiez ceux du point 3. {OUTLOOK}",
    )
    _text(page, one_line(services.link(), _LONGEST), "B", 10)
    page.ln(4)
    _text(page, "3. Les réglages, si on vous les demande", "B", 12)
    for number, cells in enumerate([("Usage", "Serveur", "Port", "Sécurité"), *settings_rows(services)]):
        _row(page, [str(each) for each in cells], "B" if number == 0 else "")
    page.ln(2)
    _text(page, "Nom d’utilisateur : votre adresse entière.")
    if services.address_book is not None:
        book = services.address_book
        _text(page, address_book_words(replace(book, base=one_line(book.base, _LONGEST))))
    page.ln(4)
    _text(page, "Votre mot de passe", "B", 12)
    _text(
        page,
        "Il vous est remis à part et n’est écrit sur aucune feuille. Personne ne vous le demandera par téléphone ni "
        "par courrier électronique. Demandez un mot de passe d’application par appareil : si l’un est perdu, lui seul "
        "est fermé.",
    )
    if preferences.custody is Custody.GATEWAY:
        page.ln(3)
        _text(page, "Ce que votre messagerie fait pour vous", "B", 12)
        verdict = " : la première ligne du message vous dit de qui il vient et si c’est prouvé"
        _text(
            page,
            "Ce que vous envoyez est signé et chiffré sans que vous ayez rien à faire. Ce que vous recevez est vérifié"
            f"{verdict if preferences.verdict_line else ''}.",
        )
    return page


def _code(page: FPDF, text: str, left: float, top: float) -> None:
    """A QR code of at most `_QR` millimetres, its quiet zone included, drawn as rectangles."""
    matrix = segno.make(text, error="m", micro=False, boost_error=False).matrix
    module = _QR / (len(matrix) + 2 * _QUIET)
    page.set_fill_color(0)
    for y, row in enumerate(matrix):
        x = 0
        while x < len(row):
            run = x
            while run < len(row) and row[run]:
                run += 1
            if run > x:
                where = left + (x + _QUIET) * module, top + (y + _QUIET) * module
                page.rect(*where, (run - x) * module, module, style="F")
            x = run + 1


def _row(page: FPDF, cells: list[str], style: str) -> None:
    left, top = page.l_margin, page.get_y()
    for text, width in zip(cells, _COLUMNS, strict=True):
        size = 9.0
        page.set_font(_FAMILY, style, size)
        while page.get_string_width(text) > width - 2 and size > 5:
            size -= 0.5
            page.set_font_size(size)
        page.set_xy(left, top)
        page.cell(width, 6.5, text, border=1)
        left += width
    page.set_xy(page.l_margin, top + 6.5)


def _text(page: _Page, text: str, style: str = "", size: float = 10, width: float = 0) -> None:
    known = page.fonts[_FAMILY.lower()].cmap  # type: ignore[union-attr]
    drawable = "".join(each if ord(each) in known else "\ufffd" for each in text)
    size *= page.scale
    page.set_font(_FAMILY, style, size)
    page.multi_cell(width, size * 0.52, drawable, align="L", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
