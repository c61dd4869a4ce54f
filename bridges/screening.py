"""The screen stage: what a mail carries is looked at before a person or a software opens it, or our own people send it.

Refused is only what would harm its reader, archives that explode, climb out of their folder or hide others, XML with a
DOCTYPE, or harm a patient: two patients in one mail, told apart by structured identities alone (CDA recordTarget, XDM
patientId). Whatever else cannot be read is passed on with a fact for the trace: this stage loses no mail because it is
badly written. The content is never changed. What a program could run, and archives nobody here can look into (7z, rar),
are passed on with a fact too: operators do not filter by content, and a malware scanner opens those (`mta.scanning`).

Everything is bounded: depth and number of parts, and the octets all archives of a mail may expand to together.
"""

from __future__ import annotations

import asyncio
import logging
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from io import BytesIO
from itertools import islice
from pathlib import PurePosixPath

from lxml import etree

from bridges import refusals, xdm_refusals
from bridges.cda_results import V3
from bridges.expanding import expanded_entry, expanded_stream
from bridges.patients_named import Named, identifier_of, of_cx, several
from bridges.screening_refusals import ARCHIVE_REFUSED
from bridges.xdm import XdmLimits, read_xdm
from mta.message import Message, Origin, Phase
from mta.smtp.content import with_crlf
from smime.mime import Buffer, Entity, MimeError, parse_content_type, parse_entity, split_multipart
from trust.refusals import Refused

_log = logging.getLogger(__name__)

MAIL_CONTENT = "message/rfc822"

_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_STREAMS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
"""Compressed files that we can expand ourselves, by how they begin."""
_OTHER_MAGIC = (b"Rar!", b"7z\xbc\xaf", *_STREAMS)
_ARCHIVE_SUFFIXES = frozenset({".zip", ".7z", ".rar", ".gz", ".tgz", ".bz2", ".xz", ".jar", ".tar"})
_DOCUMENT_SUFFIXES = frozenset(
    {".docx", ".docm", ".dotx", ".xlsx", ".xlsm", ".pptx", ".pptm", ".ppsx", ".odt", ".ods", ".odp", ".odg", ".epub"}
)
"""ZIP files that programs open as one document: they may hold others, and compress as they like."""
_EXECUTABLE_MAGIC = (b"MZ", b"\x7fELF")
_EXECUTABLE_SUFFIXES = frozenset(
    {".exe", ".com", ".scr", ".pif", ".bat", ".cmd", ".msi", ".dll", ".vbs", ".vbe", ".js", ".jse", ".wsf", ".hta"}
    | {".ps1", ".lnk", ".jar", ".reg", ".cpl", ".iso", ".img", ".docm", ".xlsm", ".pptm"}
)
_ZIP_TYPES = frozenset({"application/zip", "application/x-zip-compressed", "application/x-zip"})
_XML_TYPES = frozenset({"text/xml", "application/xml", "application/xslt+xml", "application/hl7-cda+xml"})
_DRAWN = frozenset({"image/svg+xml", "application/xhtml+xml"})
"""XML that has a DOCTYPE by custom and is shown by browsers."""
_XML_START = re.compile(rb"[\xef\xbb\xbf\xfe\xff\0 \t\r\n]*<\0*\?\0*x")
_PROSE = frozenset({"text/plain", "text/html"})
_FORWARDED = frozenset({MAIL_CONTENT, "message/global"})
_PLAIN_ENCODINGS = frozenset({"7bit", "8bit", "binary"})
_MAX_FIELD = 4096
"""Octets of a Content-Type or Content-Disposition; parsing costs a microsecond for each."""
_HEAD = 256
"""Octets that say what a part is."""
_BLANK = re.compile(rb"[ \t\r\n]*")
_MAX_DIRECTORY = 20_000
"""Central directory entries, judged before `zipfile` builds an object for each."""
_MAX_HEADER, _MAX_ELEMENTS = 4 * 1024 * 1024, 100_000
"""Octets and elements of XML kept in memory, at thirty times their size, to see whom it is about; a CDA's header has
some thousand elements."""
_HARMFUL_XDM = frozenset({xdm_refusals.XDM_TOO_LARGE, xdm_refusals.XDM_UNSAFE, xdm_refusals.XDM_ENCRYPTED})
_UNREADABLE_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, RuntimeError)
"""What `zipfile` raises on damaged, truncated or exotic archives."""

Identity = Named
"""By its identifiers alone."""


@dataclass(frozen=True, slots=True)
class ScreenLimits:
    """What one mail may cost its reader."""

    depth: int = 20
    parts: int = 1000
    entries: int = 500
    """Of one archive."""
    expanded_bytes: int = 200 * 1024 * 1024
    """Of all archives of a mail together."""
    ratio: int = 200
    """Expanded over stored size of one entry, judged above `ratio_floor` octets."""
    ratio_floor: int = 1024 * 1024
    xml_bytes: int = 40 * 1024 * 1024
    identities: int = 100
    """Different ones compared with each other."""


class ScreenStage:
    """A `mta.message.Stage` for the phase SCREEN, and for ENRICH of what our own people submit; other phases and other
    content pass through. Works in threads."""

    def __init__(self, limits: ScreenLimits | None = None) -> None:
        self._limits = limits or ScreenLimits()

    async def apply(self, message: Message, phase: Phase) -> Message | Refused:
        """The same message, with facts `warning.screen-*` (positions of MIME parts) for what could not be read."""
        submitted = phase is Phase.ENRICH and message.origin in (Origin.SUBMISSION, Origin.LMTP)
        if not (phase is Phase.SCREEN or submitted) or message.content_type != MAIL_CONTENT:
            return message
        found = await asyncio.to_thread(screen, message.content, self._limits)
        if isinstance(found, Refused):
            return found
        return replace(message, facts={**message.facts, **found}) if found else message


def screen(content: bytes, limits: ScreenLimits) -> dict[str, str] | Refused:
    """Facts about what could not be read, or why nobody should open this mail. Never raises on bad input."""
    look = _Look(limits, limits.expanded_bytes)
    for position, kind, part in look.parts(content, 0, len(content), "", 0):
        try:
            refused = look.part(part, kind, position)
        except Exception as error:  # our bug, or a library's: no reason to lose a mail
            _log.error("a part could not be screened: %s", type(error).__name__)
            look.warn("failed", position)
            continue
        if refused is not None:
            return refused
    if several(look.patients):
        return Refused(refusals.PATIENT_SEVERAL)
    return {f"warning.screen-{name}": ", ".join(where)[:200] for name, where in look.warnings.items()}


class Holds(Enum):
    """What a part is looked at as, whatever it calls itself."""

    PROTECTED = "protected"
    PACKED = "packed"
    """An archive or compressed file nobody here looks into."""
    ARCHIVE = "archive"
    XML = "xml"
    OTHER = "other"


def _holds(kind: str, name: str, head: bytes) -> Holds:
    """By its media type, its file name and its first octets."""
    suffix = PurePosixPath(name).suffix
    prose = kind in _PROSE and suffix != ".xml"
    if kind in ("application/pkcs7-mime", "application/x-pkcs7-mime"):
        return Holds.PROTECTED
    if head.startswith(_OTHER_MAGIC):
        return Holds.PACKED
    if head.startswith(_ZIP_MAGIC) or suffix == ".zip" or kind in _ZIP_TYPES:
        return Holds.ARCHIVE
    if not prose and kind not in _DRAWN and (suffix == ".xml" or kind in _XML_TYPES or _XML_START.match(head)):
        return Holds.XML
    return Holds.OTHER


@dataclass(frozen=True, slots=True)
class Leaf:
    """One part that holds no other parts."""

    position: str
    """As in the facts of this stage: `2.1`."""
    kind: str
    """Media type, lower case; empty when it is unreadable."""
    name: str
    """The file name a client would show, lower case and without folders; empty when there is none."""
    holds: Holds
    data: Buffer
    """Decoded; empty when it cannot be."""
    charset: str
    """Of a text, lower case."""
    forwarded: bool
    """It belongs to a message inside this one."""


def leaves(content: bytes) -> Iterator[Leaf]:
    """What the stage looks at, in order, those of forwarded messages included. Never raises on bad input."""
    look = _Look(ScreenLimits(), 0)
    for position, kind, entity in look.parts(content, 0, len(content), "", 0):
        name, charset = _file_name(entity), ""
        data: Buffer = b""
        try:
            data = entity.decoded()
            charset = entity.content_type().parameters.get("charset", "utf-8") if kind else ""
        except MimeError:
            pass
        forwarded = any(position.startswith(f"{each}.") or not each for each in look.messages)
        yield Leaf(position, kind, name, _holds(kind, name, bytes(data[:_HEAD])), data, charset.lower(), forwarded)


@dataclass(slots=True)
class _Look:
    """One mail being looked at."""

    limits: ScreenLimits
    budget: int
    """Octets its archives may still expand to."""
    seen: int = 0
    warnings: dict[str, list[str]] = field(default_factory=dict)
    patients: set[Identity] = field(default_factory=set)
    messages: list[str] = field(default_factory=list)
    """Where the messages inside this one are."""

    def warn(self, name: str, position: str) -> None:
        self.warnings.setdefault(name, []).append(position or "message")

    def parts(
        self, source: bytes, start: int, stop: int, position: str, depth: int
    ) -> Iterator[tuple[str, str, Entity]]:
        """The leaves with position (`2.1`) and media type, those of forwarded messages included."""
        self.seen += 1
        if depth > self.limits.depth or self.seen > self.limits.parts:
            self.warn("parts", position)
            return
        try:
            entity = parse_entity(source, start, stop)
        except MimeError:
            self.warn("mime", position)
            return
        kind = _media_type(entity)
        if kind in _FORWARDED:
            yield from self._forwarded(entity, source, position, depth)
            return
        if not kind.startswith("multipart/"):
            yield position or "1", kind, entity
            return
        for number, (begin, end) in enumerate(self._inside(entity, position), start=1):
            if self.seen > self.limits.parts:
                return
            yield from self.parts(source, begin, end, f"{position}.{number}".lstrip("."), depth + 1)

    def _forwarded(self, entity: Entity, source: bytes, position: str, depth: int) -> Iterator[tuple[str, str, Entity]]:
        """Of a message inside, which programs encode (RFC 6532 §3.7 lets them) and mail clients decode."""
        self.messages.append(position)
        start, stop = entity.body_start, entity.stop
        try:
            if entity.transfer_encoding() not in _PLAIN_ENCODINGS:
                source = with_crlf(bytes(entity.decoded()))
                start, stop = 0, len(source)
        except MimeError:
            self.warn("mime", position)
        yield from self.parts(source, start, stop, f"{position}.1".lstrip("."), depth + 1)

    def _inside(self, entity: Entity, position: str) -> list[tuple[int, int]]:
        """Where the parts of a multipart are; as a lenient client would find them when they are not clear."""
        boundary = entity.content_type().parameters.get("boundary", "")
        try:
            if entity.transfer_encoding() not in _PLAIN_ENCODINGS:  # RFC 2045 §6.4 forbids it
                raise MimeError("encoded composite")
            return split_multipart(entity, boundary)
        except MimeError:
            self.warn("mime", position)
        if not boundary.isascii() or not boundary:
            return []
        delimiters = re.finditer(rb"^--" + re.escape(boundary.encode()) + rb"[^\n]*\n?", entity.body, re.MULTILINE)
        found = [(one.start(), one.end()) for one in islice(delimiters, self.limits.parts)]
        starts = [entity.body_start + end for _, end in found]
        stops = [entity.body_start + start for start, _ in found[1:]] + [entity.stop]
        return list(zip(starts, stops, strict=False))

    def part(self, entity: Entity, kind: str, position: str) -> Refused | None:
        """Look at one leaf; `kind` is its media type, empty when that is unreadable."""
        name = _file_name(entity)
        if not kind:
            self.warn("mime", position)
        try:
            data = entity.decoded()
        except MimeError:
            self.warn("part", position)
            return None
        head = bytes(data[:_HEAD])
        if head.startswith(_EXECUTABLE_MAGIC) or PurePosixPath(name).suffix in _EXECUTABLE_SUFFIXES:
            self.warn("executable", position)
        match _holds(kind, name, head):
            case Holds.PROTECTED:
                self.warn("protected", position)
            case Holds.PACKED:
                self.warn("archive", position)
                return self._stream(data, position)
            case Holds.ARCHIVE:
                return self._archive(bytes(data), name, position)
            case Holds.XML:
                return self._xml(data, position)
            case Holds.OTHER:
                pass
        return None

    def _stream(self, data: Buffer, position: str) -> Refused | None:
        """A compressed file that is no archive of ours: refused when it explodes, like an entry of one."""
        kind = next((kind for magic, kind in _STREAMS.items() if bytes(data[:8]).startswith(magic)), "")
        if not kind:
            return None
        most = max(self.limits.ratio_floor, self.limits.ratio * len(data))
        expanded = expanded_stream(data, kind, min(most, self.budget))
        self.budget -= min(expanded, self.budget)
        if expanded > most:
            return Refused(ARCHIVE_REFUSED, f"part {position}: compression ratio")
        return Refused(ARCHIVE_REFUSED, f"part {position}: expanded size") if self.budget <= 0 else None

    def _archive(self, data: bytes, name: str, position: str) -> Refused | None:
        document = PurePosixPath(name).suffix in _DOCUMENT_SUFFIXES
        try:
            harm = self._harm(data, document)
        except _UNREADABLE_ZIP:
            self.warn("archive", position)
            return None
        if harm:
            return Refused(ARCHIVE_REFUSED, f"part {position}: {harm}")
        if not name.startswith("ihe_xdm"):
            return None
        read = read_xdm(data, XdmLimits(entries=self.limits.entries))
        if isinstance(read, Refused):
            if read.refusal in _HARMFUL_XDM or read.detail == "DOCTYPE":
                return Refused(read.refusal, f"part {position}: {read.detail}".rstrip(": "))
            self.warn("xdm", position)
            return None
        looked: set[str] = set()
        for one in read.documents:
            if identity := of_cx(one.patient_id):
                self.patients.add(identity)
            if PurePosixPath(one.name.lower()).suffix == ".xml" and one.name not in looked:
                looked.add(one.name)
                refused = self._xml(one.content, position)
                if refused is not None:
                    return refused
        return None

    def _harm(self, data: bytes, document: bool) -> str:
        """What is wrong with an archive; empty: nothing. Raises what `zipfile` raises when it cannot be read."""
        limits = self.limits
        if data.count(b"PK\x01\x02") > _MAX_DIRECTORY:
            return "entries"
        with zipfile.ZipFile(BytesIO(data)) as archive:
            entries = archive.infolist()
        if len(entries) > (_MAX_DIRECTORY if document else limits.entries):
            return "entries"
        if sum(entry.compress_size for entry in entries) > len(data):
            return "overlapping entries"
        self.budget -= sum(entry.file_size for entry in entries)
        if self.budget < 0:
            return "expanded size"
        if len({entry.filename.casefold() for entry in entries}) < len(entries):
            return "two entries of one name"
        for entry in entries:  # all names and sizes, before anything is expanded
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or not _stays_inside(entry.orig_filename):
                return "name or link"
            if document:
                continue
            if entry.flag_bits & 0x41:
                return "encrypted"
            if entry.file_size > max(limits.ratio_floor, limits.ratio * entry.compress_size):
                return "compression ratio"
        unknown = False
        for entry in entries:
            suffix = PurePosixPath(entry.filename.lower()).suffix
            inner = suffix in _DOCUMENT_SUFFIXES and not document
            expanded = expanded_entry(data, entry, whole=inner)
            if expanded is None:
                unknown = True
                continue
            content, honest = expanded
            if not honest:
                return "untrue sizes or names"
            if document:
                continue
            if inner and content.startswith(_ZIP_MAGIC):
                if harm := self._harm(content, True):
                    return harm
            elif suffix in _ARCHIVE_SUFFIXES or content.startswith((*_ZIP_MAGIC, *_OTHER_MAGIC)):
                return "nested archive"
        if unknown:
            raise zipfile.BadZipFile("unknown compression")
        return ""

    def _xml(self, data: Buffer, position: str) -> Refused | None:
        """Refuses a DOCTYPE; remembers whom a CDA is about."""
        if len(data) > self.limits.xml_bytes:
            return Refused(refusals.DOCUMENT_TOO_LARGE, f"part {position}")
        content = bytes(data)
        doctype = _has_doctype(content)
        if doctype is None:
            self.warn("xml", position)
            return None
        if doctype:
            return Refused(refusals.DOCUMENT_DTD, f"part {position}")
        identities = _record_targets(content)
        if identities is None or len(self.patients) + len(identities) > self.limits.identities:
            self.warn("xml", position)
            return None
        self.patients.update(identities)
        return None


# --- MIME ------------------------------------------------------------------------------------------------------------


def _media_type(entity: Entity) -> str:
    """Lower case; empty when it is unreadable."""
    if any(one.name == "content-type" and len(one.raw) > _MAX_FIELD for one in entity.fields):
        return ""
    try:
        return entity.content_type().media_type
    except MimeError:
        return ""


def _file_name(entity: Entity) -> str:
    """The name a client would show, lower case and without folders; empty when there is none."""
    for field_name, parameter in (("content-disposition", "filename"), ("content-type", "name")):
        one = next((one for one in entity.fields if one.name == field_name), None)
        if one is None or len(one.raw) > _MAX_FIELD:
            continue
        try:
            name = parse_content_type(one.value).parameters.get(parameter, "")
        except MimeError:
            continue
        if name:
            return name.replace("\\", "/").rpartition("/")[2].strip().lower()
    return ""


# --- Archives --------------------------------------------------------------------------------------------------------


def _stays_inside(name: str) -> bool:
    path = name.replace("\\", "/")
    return not (not path or "\0" in path or path.startswith("/") or path[1:2] == ":" or ".." in path.split("/"))


# --- XML and patients ------------------------------------------------------------------------------------------------


def _has_doctype(content: bytes) -> bool | None:
    """Whether a DOCTYPE stands before the root element; None when this is no XML in an encoding we can look into.

    UTF-16 and UTF-32 become ASCII by leaving out NUL, which no XML may hold.
    """
    text = content.lstrip(b"\xef\xbb\xbf\xfe\xff")
    if b"\0" in text[:64]:
        text = text.replace(b"\0", b"")
    position = 0
    while True:
        blank = _BLANK.match(text, position)
        position = blank.end() if blank else position
        if text.startswith(b"<!DOCTYPE", position):
            return True
        if text.startswith(b"<?", position):
            position = text.find(b"?>", position) + 2
        elif text.startswith(b"<!--", position):
            position = text.find(b"-->", position + 4) + 3
        else:
            return False if text.startswith(b"<", position) else None
        if position < 3:  # what opened never closes
            return None


def _record_targets(content: bytes) -> set[Identity] | None:
    """Whom a CDA says it is about, read no further than its body; None when it is not well-formed so far, or too long
    so far."""
    found: set[Identity] = set()
    events = etree.iterparse(
        BytesIO(content[:_MAX_HEADER]), events=("start", "end"), resolve_entities=False, no_network=True, load_dtd=False
    )
    try:
        for number, (event, element) in enumerate(events):
            if element.tag == V3 + "component":
                break
            if number > 2 * _MAX_ELEMENTS:
                return None
            if event == "end" and element.tag == V3 + "recordTarget":
                pairs = [
                    identifier_of(one.get("root", ""), one.get("extension", ""))
                    for one in element.findall(f"{V3}patientRole/{V3}id")
                ]
                found.add(Named(frozenset(pair for pair in pairs if all(pair))))
    except (etree.XMLSyntaxError, ValueError):
        return None
    return found - {Named()}
