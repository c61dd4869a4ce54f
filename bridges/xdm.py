"""IHE XDM archives: the IHE_XDM.zip a partner's software files from, written and read.

Writing follows IHE ITI TF-2 §3.32 (ITI-32, ZIP over e-mail) and is deterministic. Reading accepts what partners really
send (any subset folder, any case, system droppings, no README) but nothing that could hurt: limits come first, and no
entry is opened before all names and sizes have been judged.
"""

from __future__ import annotations

import hashlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from io import BytesIO
from pathlib import PurePosixPath

from lxml import etree

from bridges import xdm_refusals as refusals
from bridges.labels import type_label
from bridges.plain import one_line
from bridges.report import Action, Finding, Report
from bridges.xdm_metadata import ACTION_SLOT, DOCUMENT_PATIENT_ID, DOCUMENT_UNIQUE_ID, build_metadata
from trust.refusals import Refused

_SUBSET = "IHE_XDM/SUBSET01/"
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The first moment a ZIP entry can carry."""
_DROPPINGS = frozenset({"__macosx", ".svn", ".git"})
_ARCHIVES = (b"PK\x03\x04", b"PK\x05\x06", b"Rar!", b"7z\xbc\xaf", b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
_ARCHIVE_SUFFIXES = frozenset({".zip", ".7z", ".rar", ".gz", ".tgz", ".bz2", ".xz", ".jar", ".tar"})


@dataclass(frozen=True, slots=True)
class XdmLimits:
    """What an archive may cost before it is refused."""

    entries: int = 500
    total_bytes: int = 100 * 1024 * 1024
    """Sum of the uncompressed sizes."""
    ratio: int = 200
    """Uncompressed over compressed size of one entry, judged above `ratio_floor` bytes: XML compresses well."""
    ratio_floor: int = 1024 * 1024
    metadata_bytes: int = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class XdmDocument:
    """One document of an archive and what METADATA.XML says of it."""

    name: str
    """Path inside the archive, as stored."""
    content: bytes
    patient_id: str
    """patientId (CX) of its DocumentEntry; empty when the metadata has none."""
    unique_id: str
    hash_ok: bool | None
    """SHA-1 and size agree with the metadata; None when the metadata gives no hash."""
    action: str
    """Extra-metadata `action`: `C` replaces, `D` deletes, empty otherwise."""


@dataclass(frozen=True, slots=True)
class XdmContent:
    documents: tuple[XdmDocument, ...]
    findings: tuple[Finding, ...]


def write_xdm(report: Report, *, at: datetime, source_id: str, submission_id: str, action: Action) -> bytes:
    """The archive of a report: every CDA byte for byte, described by METADATA.XML.

    `source_id` and `submission_id` are OIDs (the latter also as `urn:oid:`); `at` is the submission time. The same
    arguments give the same bytes.
    """
    names = [f"DOC{number:05}.XML" for number in range(1, len(report.documents) + 1)]
    metadata = build_metadata(report, names, at=at, source_id=source_id, submission_id=submission_id, action=action)
    moment = at.astimezone(UTC).timetuple()[:6]
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:

        def add(name: str, content: bytes) -> None:
            entry = zipfile.ZipInfo(name, date_time=max(moment, _EPOCH))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, content)

        add("INDEX.HTM", _index(report, names))
        add("README.TXT", _readme(names))
        add(_SUBSET + "METADATA.XML", metadata)
        for name, document in zip(names, report.documents, strict=True):
            add(_SUBSET + name, document.content)
    return buffer.getvalue()


def _index(report: Report, names: Iterable[str]) -> bytes:
    items = "\n".join(
        f'<li><a href="{_SUBSET}{name}">{escape(one_line(type_label(d.type_code, d.type_label)))}</a> '
        f"({escape(one_line(d.created))})</li>"
        for name, d in zip(names, report.documents, strict=True)
    )
    page = (
        '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML Basic 1.1//EN" "http://www.w3.org/TR/xhtml-basic/xhtml-basic11.dtd">\n'
        '<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="fr">\n'
        '<head><meta http-equiv="Content-Type" content="text/html; charset=utf-8" /><title>IHE XDM</title></head>\n'
        f"<body>\n<h1>Documents de santé</h1>\n<ul>\n{items}\n</ul>\n"
        '<p><a href="README.TXT">README.TXT</a></p>\n</body>\n</html>\n'
    )
    return page.encode()


def _readme(names: Iterable[str]) -> bytes:
    lines = [
        "Archive IHE XDM (Cross-enterprise Document Media Interchange), produite par Relais.",
        "Elle contient des documents de sante au format CDA R2 :",
        *(f"  {_SUBSET}{name}" for name in names),
        f"  {_SUBSET}METADATA.XML decrit ces documents (IHE ITI, ebRIM 3.0).",
        "INDEX.HTM s'ouvre avec un navigateur. Le PDF joint au courriel se lit directement.",
    ]
    return ("\r\n".join(lines) + "\r\n").encode("ascii")


_DEFAULT_LIMITS = XdmLimits()


def read_xdm(data: bytes, limits: XdmLimits = _DEFAULT_LIMITS) -> XdmContent | Refused:
    """The documents of an archive. Never raises on bad input; details name no patient and no file."""
    if data.count(b"PK\x01\x02") > limits.entries:  # before zipfile builds an object for each
        return Refused(refusals.XDM_TOO_LARGE, "entries")
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            files = _judged(archive, limits)
            if isinstance(files, Refused):
                return files
            return _read(archive, files, limits)
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, RuntimeError):
        # what zipfile raises on damaged and truncated archives, and on methods of compression it does not know
        return Refused(refusals.XDM_UNREADABLE)


def _judged(archive: zipfile.ZipFile, limits: XdmLimits) -> dict[str, zipfile.ZipInfo] | Refused:
    """The regular files by lower-case path, system droppings left out; refuses on the first dangerous entry."""
    entries = archive.infolist()
    if len(entries) > limits.entries:
        return Refused(refusals.XDM_TOO_LARGE, "entries")
    if sum(entry.file_size for entry in entries) > limits.total_bytes:
        return Refused(refusals.XDM_TOO_LARGE, "total size")
    files: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        if entry.flag_bits & 0x41:
            return Refused(refusals.XDM_ENCRYPTED)
        if entry.file_size > max(limits.ratio_floor, limits.ratio * entry.compress_size):
            return Refused(refusals.XDM_TOO_LARGE, "compression ratio")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or not _safe_name(entry.orig_filename):
            return Refused(refusals.XDM_UNSAFE, "name or link")
        if entry.is_dir() or _dropping(entry.filename):
            continue
        path = entry.filename.lower()
        if path in files:
            return Refused(refusals.XDM_UNSAFE, "repeated name")
        files[path] = entry
    return files


def _safe_name(name: str) -> bool:
    if not name or "\\" in name or "\0" in name or name.startswith("/") or name[1:2] == ":":
        return False
    return ".." not in name.split("/")


def _dropping(name: str) -> bool:
    parts = name.lower().split("/")
    return any(part in _DROPPINGS for part in parts) or parts[-1] == ".ds_store" or parts[-1].startswith("._")


def _read(archive: zipfile.ZipFile, files: dict[str, zipfile.ZipInfo], limits: XdmLimits) -> XdmContent | Refused:
    for path, entry in files.items():
        with archive.open(entry) as opened:
            head = opened.read(8)
        if PurePosixPath(path).suffix in _ARCHIVE_SUFFIXES or head.startswith(_ARCHIVES):
            return Refused(refusals.XDM_UNSAFE, "nested archive")
    described = [path for path in files if PurePosixPath(path).name == "metadata.xml"]
    if not described:
        return Refused(refusals.XDM_METADATA, "missing")
    documents: list[XdmDocument] = []
    findings: list[Finding] = []
    members: dict[str, tuple[bytes, str]] = {}  # each once, however often it is described
    for path in described:
        if files[path].file_size > limits.metadata_bytes:
            return Refused(refusals.XDM_TOO_LARGE, "METADATA.XML")
        root = _parse(archive.read(files[path]))
        if isinstance(root, Refused):
            return root
        folder = path.rpartition("/")[0]
        for number, described_entry in enumerate(root.iter("{*}ExtrinsicObject"), start=1):
            where = f"ExtrinsicObject[{number}]"
            if len(documents) == limits.entries:
                return Refused(refusals.XDM_TOO_LARGE, "entries")
            name = _resolved(folder, _slot(described_entry, "URI"))
            member = files.get(name)
            if member is None:
                findings.append(Finding("xdm-document-missing", where))
                continue
            if name not in members:
                content = archive.read(member)
                members[name] = content, hashlib.sha1(content, usedforsecurity=False).hexdigest()
            document = _document(described_entry, member.filename, *members[name])
            if document.hash_ok is False:
                findings.append(Finding("xdm-hash-differs", where))
            if not document.patient_id:
                findings.append(Finding("xdm-patient-missing", where))
            documents.append(document)
    if not documents:
        return Refused(refusals.XDM_METADATA, "no document described")
    return XdmContent(tuple(documents), tuple(findings))


def _parse(metadata: bytes) -> etree._Element | Refused:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(metadata, parser)
    except etree.XMLSyntaxError:
        return Refused(refusals.XDM_METADATA, "not well-formed")
    if root.getroottree().docinfo.internalDTD is not None:
        return Refused(refusals.XDM_METADATA, "DOCTYPE")
    return root


def _resolved(folder: str, uri: str) -> str:
    """The lower-case archive path of a URI slot; it is only ever looked up among the judged names."""
    relative = uri.strip().replace("\\", "/").removeprefix("./").lower()
    return f"{folder}/{relative}" if folder else relative


def _slot(entry: etree._Element, name: str) -> str:
    """All values of a slot joined; a long URI comes in numbered pieces `1|...`, `2|...` (IHE ITI TF-3 §4.2.3.2.27)."""
    slots = [slot for slot in entry.findall("{*}Slot") if slot.get("name") == name]
    pieces = [(value.text or "").strip() for slot in slots for value in slot.iter("{*}Value")]
    if len(pieces) > 1 and all(piece.partition("|")[0].isdigit() for piece in pieces):
        pieces = [piece.partition("|")[2] for piece in sorted(pieces, key=lambda p: int(p.partition("|")[0]))]
    return "".join(pieces)


def _identifier(entry: etree._Element, scheme: str) -> str:
    identifiers = entry.findall("{*}ExternalIdentifier")
    return next((i.get("value", "") for i in identifiers if i.get("identificationScheme") == scheme), "")


def _document(entry: etree._Element, name: str, content: bytes, digest: str) -> XdmDocument:
    announced, size = _slot(entry, "hash").lower(), _slot(entry, "size")
    hash_ok: bool | None = None
    if announced:
        hash_ok = digest == announced and size in ("", str(len(content)))
    return XdmDocument(
        name=name,
        content=content,
        patient_id=_identifier(entry, DOCUMENT_PATIENT_ID),
        unique_id=_identifier(entry, DOCUMENT_UNIQUE_ID),
        hash_ok=hash_ok,
        action=_slot(entry, ACTION_SLOT),
    )
