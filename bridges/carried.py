"""What a submitted mail carries that a program can read: documents, archives, whom they name.

Looked at once when the mail is handed over, to say no while its author is there, and once more when it is made ready.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePosixPath

from bridges import refusals, xdm_refusals
from bridges.cda import read_cda
from bridges.hprim_patients import has_markers, hprim_patients, looks_like_hprim
from bridges.mail_parts import MAX_PARTS, Leaf, data_of, is_text, leaves, loose_leaves, media_type
from bridges.patients_named import Named, of_cx, of_hprim, of_identity, of_metadata, several
from bridges.report import Document
from bridges.xdm import XdmLimits, read_xdm
from mta.refusals import CONTENT_INVALID
from mta.smtp.content import with_crlf
from smime.cms_read import Enveloped, Signed
from smime.layers import CMS_TYPES, Layer, layer_of, read_cms_of
from smime.mime import Entity, MimeError, parse_entity, split_message, split_multipart
from trust.der import DerError
from trust.refusals import Refused

_XML_TYPES = frozenset({"text/xml", "application/xml", "application/hl7-cda+xml", "application/cda+xml"})
_NO_FILES = frozenset(
    {"text/vcard", "text/x-vcard", "text/directory", "text/calendar", "application/ics"}
    | {"application/pgp-keys", "application/pgp-signature", "application/pkcs7-signature"}
)
"""What programs add to a mail by themselves: nobody looks for a patient there."""
_ZIP = b"PK\x03\x04"
_BLANK = b"\xef\xbb\xbf \t\r\n"
_NAMED_AT = 256 * 1024
"""Octets in which a CDA's root element, or that of the style sheet around one, is looked for."""
_EXPANDED = XdmLimits().total_bytes
_MARKS = 1_000_000
"""Elements and attributes, counted by their signs, that are read of all documents of one mail; each costs two hundred
octets in memory. A report of a thousand results has some seventy thousand."""
HIDDEN_FROM_REPRESENTATIVES = frozenset({"INVISIBLE_REPRESENTANTS_LEGAUX", "INVISIBLE_REP_LEGAUX"})
"""Of 1.2.250.1.213.1.1.4.13, as documents and as HL7 spell it."""
_WRAPPED = 5
"""Signatures around one another."""
_WITHDRAWN = "D"


@dataclass(frozen=True, slots=True)
class Archive:
    """An IHE_XDM.zip its author attached: somebody's finished work, never taken apart."""

    leaf: Leaf
    documents: tuple[Document, ...] = ()
    """Its CDA documents; none when nobody here can read it."""
    whole: bool = False
    """All it describes are CDA documents that could be read."""
    withdrawn: bool = False
    """It asks its reader to delete a document."""


@dataclass(slots=True)
class Carried:
    """Of one mail. `fields` without those of the body, whose tree is `body`."""

    body: Entity
    protected: bool = False
    """Signed or encrypted by its author, or nothing whose parts are clear: not one octet of it is changed."""
    encrypted: bool = False
    """Nobody here can look into it, and only its author knows what it carries."""
    documents: list[tuple[Leaf, Document]] = field(default_factory=list)
    """CDA documents attached as such."""
    archives: list[Archive] = field(default_factory=list)
    named: list[Named] = field(default_factory=list)
    confidentiality: set[str] = field(default_factory=set)
    """What documents, archives and metadata say of their readers, upper case: N, R, V, `INVISIBLE_PATIENT`, ..."""
    forwards: bool = False
    """A mail is attached to it: whom that is about stands in there."""
    files: int = 0
    """Attachments that name nobody a program could read."""
    warnings: dict[str, str] = field(default_factory=dict)
    """Facts for the trace; no content, no identity."""


@dataclass(slots=True)
class _Left:
    """What may still be read of one mail, so that a small one does not take all memory."""

    octets: int = _EXPANDED
    """That archives expand to."""
    marks: int = _MARKS

    def takes(self, xml: bytes) -> bool:
        """Whether it may be read. Only encodings in which ASCII is ASCII are (`bridges.cda`)."""
        self.marks -= xml.count(b"<") + xml.count(b"=")
        return self.marks >= 0


def carried_by(content: bytes) -> Carried | Refused:
    """`content` in CRLF lines. Refused is what names two patients, what nobody could open without harm, and what is no
    mail. Never raises on bad input."""
    try:
        _, body = split_message(content)
        entity = parse_entity(body)
        found = Carried(entity, protected=is_protected(entity))
    except MimeError:
        return Refused(CONTENT_INVALID)
    if found.protected:
        entity = _signed_part(entity)
        if is_protected(entity):
            found.encrypted = _is_encrypted(entity)
            return found
    every = list(islice(_looked_at(found, entity), MAX_PARTS + 1))
    if len(every) > MAX_PARTS:
        found.protected = True
        found.warnings["warning.parts"] = "too many parts to look into"
    left = _Left()
    for leaf in every[:MAX_PARTS]:
        refused = _look(found, leaf, left)
        if refused is not None:
            return refused
    return Refused(refusals.PATIENT_SEVERAL) if several(found.named) else found


def is_protected(entity: Entity) -> bool:
    """Whether its author has signed or encrypted it, by whatever means."""
    kind = media_type(entity)
    if kind in ("multipart/signed", "multipart/encrypted"):
        return True
    try:
        return layer_of(entity, entity.content_type()) in (Layer.CLEAR_SIGNED, Layer.CMS)
    except MimeError:
        return False


def _signed_part(entity: Entity) -> Entity:
    """What signatures show: they hide nothing (RFC 1847 §2.1, RFC 8551 §3.5). The entity itself when it is none, or
    cannot be read."""
    for _ in range(_WRAPPED):
        try:
            if media_type(entity) == "multipart/signed":
                places = split_multipart(entity, entity.content_type().parameters.get("boundary", ""))
                entity = parse_entity(entity.source, *places[0])
            elif is_protected(entity) and isinstance(cms := read_cms_of(entity), Signed) and cms.content is not None:
                entity = parse_entity(with_crlf(bytes(cms.content)))
            else:
                break
        except (MimeError, DerError, IndexError):
            break
    return entity


def _is_encrypted(entity: Entity) -> bool:
    """What only claims to be encrypted is in clear until we encrypt it: it may claim nothing else either."""
    try:
        if media_type(entity) != "multipart/encrypted":
            return isinstance(read_cms_of(entity), Enveloped)
        places = split_multipart(entity, entity.content_type().parameters.get("boundary", ""))
        parts = [parse_entity(entity.source, *each) for each in places]
        return (
            len(parts) == 2
            and media_type(parts[0]) == "application/pgp-encrypted"
            and bytes(parts[1].decoded()).lstrip().startswith(b"-----BEGIN PGP MESSAGE-----")
        )
    except (MimeError, DerError):
        return False


def _looked_at(found: Carried, entity: Entity) -> Iterator[Leaf]:
    for leaf in leaves(entity):
        if not leaf.broken:
            yield leaf
            continue
        found.protected = True  # readers differ on what its parts are: they get it as it is
        yield from loose_leaves(leaf)


def _look(found: Carried, leaf: Leaf, left: _Left) -> Refused | None:
    suffix = PurePosixPath(leaf.name.lower()).suffix
    if is_text(leaf):
        data = data_of(leaf)
        if data is not None and leaf.kind == "text/plain" and has_markers(data):  # the file stands in the text itself
            found.named += map(of_hprim, hprim_patients(data))
        return None
    found.forwards = found.forwards or leaf.kind.startswith("message/")
    if leaf.kind.startswith(("multipart/", "message/", "image/", "audio/", "video/")):
        found.files += leaf.attached and not leaf.drawn
        return None
    if leaf.kind in CMS_TYPES:  # as the screen does
        found.files += leaf.attached
        return None
    data = data_of(leaf)
    if data is None:
        found.warnings["warning.part"] = "an attachment could not be decoded"
        return None
    before = len(found.named)
    refused = None
    if leaf.kind in _XML_TYPES or suffix == ".xml" or data[:64].lstrip(_BLANK).startswith(b"<?xml"):
        refused = _xml(found, leaf, data, left)
    elif data.startswith(_ZIP):
        refused = _archive(found, leaf, data, left)
    elif not data.startswith(b"%PDF-") and looks_like_hprim(leaf.name, data):
        found.named += map(of_hprim, hprim_patients(data))
    found.files += len(found.named) == before and leaf.kind not in _NO_FILES
    return refused


def _xml(found: Carried, leaf: Leaf, data: bytes, left: _Left) -> Refused | None:
    if b"ClinicalDocument" not in data[:_NAMED_AT] and b"urn:asip-sante:ci-sis" not in data[:_NAMED_AT]:
        if b"ExtrinsicObject" not in data:
            return None
        if not left.takes(data):
            return Refused(refusals.DOCUMENT_TOO_LARGE)
        named, confidentiality = of_metadata(data)
        found.named += named
        found.confidentiality |= confidentiality
        return None
    if not left.takes(data):
        return Refused(refusals.DOCUMENT_TOO_LARGE)
    document = read_cda(data)
    if isinstance(document, Refused):
        if document.refusal in (refusals.PATIENT_SEVERAL, refusals.DOCUMENT_DTD):
            return document
        found.warnings["warning.cda"] = document.refusal.code  # travels as it is, and is declared as nothing
        return None
    found.documents.append((leaf, document))
    _note(found, document)
    return None


def _note(found: Carried, document: Document) -> None:
    found.named.append(of_identity(document.patient))
    found.confidentiality.add(document.confidentiality.strip().upper())


def _archive(found: Carried, leaf: Leaf, data: bytes, left: _Left) -> Refused | None:
    if not leaf.name.lower().startswith("ihe_xdm") and b"METADATA.XML" not in data[-_NAMED_AT:].upper():
        return None
    read = read_xdm(data, XdmLimits(total_bytes=left.octets))
    if isinstance(read, Refused):
        if read.refusal is xdm_refusals.XDM_TOO_LARGE:
            return read
        found.warnings["warning.xdm"] = read.refusal.code
        found.archives.append(Archive(leaf))
        return None
    contents = dict.fromkeys(one.content for one in read.documents)
    left.octets -= sum(map(len, contents))
    known: list[Document] = []
    for each in contents:
        if not each[:64].lstrip(_BLANK).startswith(b"<"):
            continue
        if not left.takes(each):
            return Refused(refusals.DOCUMENT_TOO_LARGE)
        document = read_cda(each)
        if isinstance(document, Document):
            known.append(document)
            _note(found, document)
    withdrawn = any(one.action.strip().upper() == _WITHDRAWN for one in read.documents)
    missing = any(each.code == "xdm-document-missing" for each in read.findings)
    whole = len(known) == len(contents) and not missing
    found.archives.append(Archive(leaf, tuple(known), whole, withdrawn))
    found.named += [named for one in read.documents if (named := of_cx(one.patient_id))]
    found.confidentiality.update(code for one in read.documents for code in one.confidentiality)
    return None
