"""What an ordinary mail program does not do for a mail of the trust space, done for it (ECO.2 of the client rules).

The From label, X-MSS-NIL, the wish for a read receipt, UTF-8; and around a CDA document everything that makes a
document mail: IHE_XDM.zip, the PDF of each document, the subject practice software files by, the X-MSS headers. Files
of other kinds travel as they are, and a mail never claims an identity that it does not carry. What its author has
signed or encrypted keeps every octet.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime

from lxml import etree, html

from bridges import pdf, summary
from bridges.carried import HIDDEN_FROM_REPRESENTATIVES, Carried
from bridges.compose import (
    ComposeOptions,
    archive_part,
    attachment,
    document_subject,
    header_field,
    mailbox_field,
    mss_headers,
    pdf_names,
    text_part,
)
from bridges.hprim_patients import has_markers
from bridges.mail_parts import (
    Leaf,
    data_of,
    in_utf8,
    is_text,
    leaves,
    media_type,
    multipart_body,
    parts_of,
    rebuilt,
    says_utf8,
    text_of,
)
from bridges.patients_named import of_identity, surely_one
from bridges.plain import ascii_name, french_date, one_line
from bridges.report import Action, Audience, Document, Flags, Report
from directory.records import MailboxKind
from mta.dispositions import ASKING, is_receipt
from mta.header import author_of
from mta.mailboxes.records import MailboxRecord
from smime.mime import Entity, Field, MimeError, parse_entity
from smime.words import decoded_words, encoded_field

_log = logging.getLogger(__name__)

NOT_ATTACHED = "Ce message n'est rattaché à aucun patient."
NOT_ATTACHED_FILES = (
    "Ce message n'est rattaché à aucun patient : ses pièces jointes ne portent pas d'identité qu'un logiciel sache "
    "lire."
)
_SUBJECT_FORM = "XDM/1."
_DECLARED = frozenset({"x-mss-ins", "x-mss-codecda"})
"""Only ever said by us: whoever files by them relies on it."""
_LAST = re.compile(r"\s*\[FIN\]", re.IGNORECASE)
"""How a subject says what X-MSS-MES says (ECO.2.2.8)."""
_LARGEST_HTML = 2 * 1024 * 1024
_BREAKS = frozenset({"br", "p", "div", "tr", "li", "h1", "h2", "h3", "h4", "blockquote", "table", "ul", "ol"})
_PICTURE = re.compile(r"<(?:img|svg|picture|object|embed|iframe|video|audio|canvas|v:)", re.IGNORECASE)
"""A page that has one is not empty, although it has no words."""
_BODY_START = re.compile(r"<body\b[^>]{0,2000}>", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Envelope:
    """Of the mail that is made ready."""

    sender: str
    """Reverse-path; empty for a receipt."""
    audience: Audience
    message_id: str
    at: datetime
    """Of acceptance, aware: the submission time of the archive."""
    with_patient: bool = False
    """A patient's own mailbox wrote it or is among its readers: whom it is about need not be said."""


def made_ready(
    content: bytes,
    carried: Carried,
    author: MailboxRecord | None,
    envelope: Envelope,
    options: ComposeOptions,
    twin_of: Callable[[Report, Document, Audience], bytes] = pdf.twin,
) -> bytes:
    """The mail as a client made for the trust space would have sent it; the same bytes for the same arguments.

    `content` in CRLF lines, `carried` what `bridges.carried` found in it; `author`: the mailbox From names, None when
    it is not ours. Raises MimeError for a header that cannot be read. A page that `twin_of` cannot make is left out.
    """
    header = parse_entity(content)
    fields = [_seven_bit(field) for field in header.fields]
    given = {field.name for field in header.fields}
    added: list[bytes] = []
    known = any(value.strip() for value in header.values("x-mss-nil"))
    if not known:
        fields = [field for field in fields if field.name != "x-mss-nil"]
        added.append(_line(header_field("X-MSS-NIL", options.software_reference)))
    if envelope.sender and ASKING not in given and not is_receipt(header):
        added.append(_line(mailbox_field("Disposition-Notification-To", "", envelope.sender)))
    if carried.protected:
        if not carried.encrypted:
            fields = [field for field in fields if field.name not in _DECLARED]
            added += _declaration(carried, _documents(carried) if carried.archives else [], envelope.audience, options)
        return b"".join([*(field.raw for field in fields), *added, b"\r\n", header.body])
    return _readable(header, fields, added, carried, author, envelope, options, twin_of, texts=not known)


def _readable(
    header: Entity,
    fields: list[Field],
    added: list[bytes],
    carried: Carried,
    author: MailboxRecord | None,
    envelope: Envelope,
    options: ComposeOptions,
    twin_of: Callable[[Report, Document, Audience], bytes],
    *,
    texts: bool,
) -> bytes:
    """As `made_ready`, of a mail whose content is its author's only as far as we leave it. `texts`: an ordinary program
    wrote them; of one made for the trust space they stay."""
    documents = _documents(carried)
    packed = documents if not carried.archives else []
    subject = one_line(decoded_words(next(iter(header.values("subject")), "")))
    last = envelope.audience is Audience.PATIENT and _LAST.match(subject) is not None
    replaced = set(_DECLARED)
    withdrawn = any(each.withdrawn for each in carried.archives)  # of such a document there never is a page
    report = report_of(documents, carried.confidentiality) if documents and not withdrawn else None
    prefix, suffix = "", ""
    added += _declaration(carried, documents, envelope.audience, options)
    if last and not header.values("x-mss-mes"):
        added.append(b"X-MSS-MES: FIN\r\n")
    ours = report is not None and _is_about(subject, report)
    if report is not None and (packed or not (ours and subject.startswith(_SUBJECT_FORM))):
        replaced.add("subject")
        added.append(_line(header_field("Subject", document_subject(report))))
        prefix = f"Objet : {subject}" if subject and not (ours and _SUBJECT_FORM in subject) else ""
    elif not (documents or carried.named or carried.forwards or envelope.with_patient or is_receipt(header)):
        added.append(_line(header_field("Comments", NOT_ATTACHED)))
        suffix = NOT_ATTACHED_FILES if carried.files else ""
    label = from_label(author) if author is not None else ""
    address = author_of(header)
    if label and address:
        replaced.add("from")
        added.append(_line(mailbox_field("From", label, address)))
    change = _Change(
        {leaf.entity.start for leaf, _ in carried.documents} if packed else set(),
        prefix,
        suffix,
        _only_html(carried.body),
        envelope.message_id,
        texts=texts,
    )
    entity = _body(carried, change, packed, report, prefix, envelope, options, twin_of)
    kept = [each.raw for each in fields if each.name not in replaced and not each.name.startswith("content-")]
    version = [] if any(each.name == "mime-version" for each in fields) else [b"MIME-Version: 1.0\r\n"]
    return b"".join([*kept, *added, *version, entity])


def _documents(carried: Carried) -> list[Document]:
    """All documents of the mail, each once, if they are surely about one patient and no archive is beside them that
    could not be read: only then can anything be said of the mail as a whole."""
    if not all(archive.documents for archive in carried.archives):
        return []
    found = {each.content: each for archive in carried.archives for each in archive.documents}
    found |= {each.content: each for _, each in carried.documents}
    documents = list(found.values())
    return documents if documents and surely_one(of_identity(each.patient) for each in documents) else []


def _declaration(
    carried: Carried, documents: list[Document], audience: Audience, options: ComposeOptions
) -> list[bytes]:
    """X-MSS-CODECDA and X-MSS-INS of these documents; nothing without any (ECO.2.4.1, 2.4.2). Of an archive with
    something in it that nobody here has read, no identity is said to be whole."""
    if not documents:
        return []
    fields = {each.partition(b":")[0].lower(): each for each in mss_headers(report_of(documents), audience, options)}
    if not all(archive.whole for archive in carried.archives):
        fields[b"x-mss-ins"] = header_field("X-MSS-INS", "N")
    return [_line(each) for name, each in fields.items() if name.decode("ascii") in _DECLARED]


def _is_about(subject: str, report: Report) -> bool:
    """Whether a subject names the patient: software files by it (ECO.2.1.3)."""
    patient = report.patient
    written = f" {ascii_name(subject).upper()} "
    name = ascii_name(patient.birth_name or patient.used_name).upper()
    birth = patient.birth_date.strip()[:8]
    return f" {name} " in written and (not birth.isdigit() or ascii_name(french_date(birth)) in written)


def from_label(author: MailboxRecord) -> str:
    """ECO.2.2.7: `Titre_Prénom_NOM_Entité` of a person, the functional name of a team, practice or machine; empty for
    a patient, and for whom nothing is known."""
    if author.kind is MailboxKind.PATIENT or not author.label.strip():
        return ""
    if author.kind is not MailboxKind.PER:
        return one_line(author.label, 100)
    words = one_line(author.label).replace(" ", "_")
    organisation = one_line(author.organisation)
    return f"{words}_{organisation}"[:100].rstrip() if organisation else words[:100]


def report_of(documents: Iterable[Document], confidentiality: Collection[str] = ()) -> Report:
    """What somebody sends with these documents, at least one, all of one patient; `confidentiality` as in `Carried`."""
    kept = tuple(documents)
    identity = next((each.patient for each in kept if each.patient.matricule), kept[0].patient)
    replaces = all(each.parent_id for each in kept)
    return Report(
        control_id="",
        sending_application="RELAIS",
        sending_facility="",
        event="MDM^T10" if replaces else "MDM^T02",
        action=Action.REPLACE if replaces else Action.NEW,
        patient=identity,
        sender=kept[0].author,
        documents=kept,
        correspondents=(),
        reply_to="",
        flags=Flags(
            masked_to_professionals="MASQUE_PS" in confidentiality or None,
            hidden_from_patient="INVISIBLE_PATIENT" in confidentiality or None,
            hidden_from_representatives=not HIDDEN_FROM_REPRESENTATIVES.isdisjoint(confidentiality) or None,
        ),
        body_professional="",
        body_patient="",
        content_type_code="",
        findings=(),
    )


# --- The body --------------------------------------------------------------------------------------------------------


def _body(
    carried: Carried,
    change: _Change,
    packed: list[Document],
    report: Report | None,
    prefix: str,
    envelope: Envelope,
    options: ComposeOptions,
    twin_of: Callable[[Report, Document, Audience], bytes],
) -> bytes:
    """The MIME entity: Content-* fields, empty line, body. An archive alone gets the pages of what is in it: its reader
    may have an ordinary mail program too."""
    entity = carried.body
    attached = (data_of(leaf) for leaf in leaves(entity) if leaf.attached)
    pages = {data for data in attached if data is not None and data.startswith(b"%PDF-")}
    kept = rebuilt(entity, change)
    if report is None or (pages and not packed and (change.wrote or not prefix)):
        return kept or b"\r\n"
    parts = _children(entity, kept)
    if not change.wrote and not change.said:
        words = summary.body(report, envelope.audience, options.environment)
        parts.insert(0, text_part(f"{prefix}\n\n{words}" if prefix else words))
    elif not change.wrote and prefix:  # a text that is a file, for whoever reads it by its lines, stays the first
        parts.insert(len(parts) if change.file else 0, text_part(prefix + "\n"))
    for name, document in zip(pdf_names(report), report.documents, strict=True) if packed or not pages else ():
        twin = _page(carried, report, document, envelope.audience, twin_of)
        if twin is not None and twin not in pages:
            pages.add(twin)
            parts.append(attachment("application/pdf", name, twin))
    if packed:
        parts.append(archive_part(report, envelope.at, envelope.message_id, options))
    boundary = _boundary(envelope.message_id, "document")
    head = f'Content-Type: multipart/mixed;\r\n boundary="{boundary}"\r\n\r\n'
    return head.encode("ascii") + multipart_body(boundary.encode("ascii"), parts)


def _page(
    carried: Carried,
    report: Report,
    document: Document,
    audience: Audience,
    twin_of: Callable[[Report, Document, Audience], bytes],
) -> bytes | None:
    """A courtesy, for which no mail is kept waiting."""
    try:
        return twin_of(report, document, audience)
    except Exception as error:  # whatever the PDF library says; its words may quote the document
        _log.error("a document cannot be shown as a page: %s", type(error).__name__)
        carried.warnings["warning.page"] = "a document could not be shown as a page"
        return None


def _children(entity: Entity, kept: bytes | None) -> list[bytes]:
    """The parts of a mail that is a multipart/mixed; of another the mail itself, as its only part. `kept` is what
    remains of it."""
    if kept is None:
        return []
    parts = parts_of(parse_entity(kept)) if media_type(entity) == "multipart/mixed" else None
    return [kept] if parts is None else parts


class _Change:
    """What becomes of each leaf; told them in order."""

    def __init__(
        self, dropped: set[int], prefix: str, suffix: str, only_html: bool, message_id: str, *, texts: bool
    ) -> None:
        """`texts`: they may be changed."""
        self._texts = texts
        self._dropped = dropped
        self._prefix, self._suffix = prefix, suffix
        self._only_html = only_html
        self._message_id = message_id
        self._kinds: set[str] = set()
        self.wrote = False
        """A text of the mail was found, to which words of ours could be added."""
        self.said = False
        """Its author has written something."""
        self.file = False
        """Its text is a file of HPRIM, in which every line has its place."""

    def __call__(self, leaf: Leaf) -> bytes | None:
        if leaf.entity.start in self._dropped:
            return None
        if not is_text(leaf):
            return bytes(leaf.entity.whole)
        text = text_of(leaf)
        file = leaf.kind == "text/plain" and has_markers(data_of(leaf) or b"")
        if text is None or file or not self._texts:
            self.file = self.file or file
            self.said = self.said or bool((data_of(leaf) or b"").strip())
            return bytes(leaf.entity.whole)
        first = leaf.kind not in self._kinds
        self._kinds.add(leaf.kind)
        words = text_from_html(text) if leaf.kind == "text/html" else text
        blank = words is not None and not words.strip() and not (leaf.kind == "text/html" and _PICTURE.search(text))
        if blank and self._dropped:  # a mail that is nothing but its document: we say what it is
            return None
        self.said = self.said or not blank
        prefix, suffix = (self._prefix, self._suffix) if first else ("", "")
        self.wrote = self.wrote or first
        if leaf.kind == "text/html":
            written = _around_html(text, prefix, suffix)
            if first and self._only_html and words:
                return self._alternative(leaf, _around(words, prefix, suffix), written)
        else:
            written = _around(text, prefix, suffix)
        unchanged = written == text and says_utf8(leaf)
        return bytes(leaf.entity.whole) if unchanged else in_utf8(leaf, written)

    def _alternative(self, leaf: Leaf, plain: str, page: str) -> bytes:
        """ECO.2.2.4: text/plain, or multipart/alternative with one."""
        boundary = _boundary(self._message_id, "alternative")
        head = f'Content-Type: multipart/alternative;\r\n boundary="{boundary}"\r\n\r\n'
        parts = [text_part(plain.replace("\r\n", "\n").rstrip("\n") + "\n"), in_utf8(leaf, page)]
        others = b"".join(one.raw for one in leaf.entity.fields if not one.name.startswith("content-"))
        return others + head.encode("ascii") + multipart_body(boundary.encode("ascii"), parts)


def _only_html(entity: Entity) -> bool:
    kinds = {leaf.kind for leaf in leaves(entity) if is_text(leaf)}
    return kinds == {"text/html"}


def _around(text: str, prefix: str, suffix: str) -> str:
    if prefix:
        text = f"{prefix}\r\n\r\n{text}"
    return f"{text.rstrip()}\r\n\r\n[{suffix}]\r\n" if suffix else text


def _around_html(page: str, prefix: str, suffix: str) -> str:
    if prefix:
        start = _BODY_START.search(page)
        at = start.end() if start else 0
        page = f"{page[:at]}<p>{_escaped(prefix)}</p>{page[at:]}"
    if suffix:
        at = page.lower().rfind("</body")
        at = len(page) if at < 0 else at
        page = f"{page[:at]}<p>[{_escaped(suffix)}]</p>\r\n{page[at:]}"
    return page


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def text_from_html(page: str) -> str | None:
    """The words of a page, without what a browser would not show as text; None when it cannot be read."""
    if not page.strip():
        return ""
    if len(page) > _LARGEST_HTML:
        return None
    parser = html.HTMLParser(no_network=True, huge_tree=False, remove_comments=True, remove_pis=True, encoding="utf-8")
    try:
        root = html.document_fromstring(page.encode("utf-8", "replace"), parser=parser)
    except (etree.LxmlError, ValueError):
        return None
    etree.strip_elements(root, "script", "style", "head", "title", with_tail=False)
    written: list[str] = []
    for event, element in etree.iterwalk(root, events=("start", "end")):
        breaks = element.tag in _BREAKS
        if event == "start":
            written += ["\n" if breaks else "", " ".join((element.text or "").split("\n"))]
        else:
            written += ["\n" if breaks and element.tag != "br" else "", " ".join((element.tail or "").split("\n"))]
    lines = (" ".join(line.split()) for line in "".join(written).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


# --- Fields ----------------------------------------------------------------------------------------------------------


def _seven_bit(field: Field) -> Field:
    """A field in raw UTF-8 or Latin-1 as one that every relay carries; as it is where there is no way."""
    if field.raw.isascii():
        return field
    try:
        return Field(field.name, encoded_field(field))
    except MimeError:
        return field


def _line(field: bytes) -> bytes:
    return field + b"\r\n"


def _boundary(message_id: str, what: str) -> str:
    """ "=_" stands in no base64 or quoted-printable line, and a second of the same name nowhere (RFC 2045 §6.7)."""
    return "=_" + hashlib.sha256(f"{what}:{message_id}".encode()).hexdigest()[:32]
