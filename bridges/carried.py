"""What a submitted mail carries that a program can read: documents, archives, whom they name.

Looked at once when the mail is handed over, to say no while its author is there, and once more when it is made ready.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePosixPath

from bridges import refusals
from bridges.cda import read_cda
from bridges.hprim_patients import has_markers, hprim_patients, looks_like_hprim
from bridges.mail_parts import MAX_PARTS, Leaf, data_of, is_text, leaves, media_type
from bridges.patients_named import Named, of_cx, of_hprim, of_identity, of_metadata, several
from bridges.report import Document
from bridges.xdm import XdmLimits, read_xdm
from mta.refusals import CONTENT_INVALID
from smime.layers import Layer, layer_of
from smime.mime import Entity, MimeError, parse_entity, split_message, split_multipart
from trust.refusals import Refused

_XML_TYPES = frozenset({"text/xml", "application/xml", "application/hl7-cda+xml", "application/cda+xml"})
_ZIP = b"PK\x03\x04"
_NAMED_AT = 256 * 1024
"""Octets in which a CDA's root element, or that of the style sheet around one, is looked for."""
_LIMITS = XdmLimits()


@dataclass(frozen=True, slots=True)
class Archive:
    """An IHE_XDM.zip its author attached."""

    leaf: Leaf
    documents: tuple[Document, ...]
    whole: bool
    """All it describes are CDA documents that could be read."""


@dataclass(slots=True)
class Carried:
    """Of one mail. `fields` without those of the body, whose tree is `body`."""

    body: Entity
    protected: bool = False
    """Signed or encrypted by its author, or of more parts than anybody looks into: not one octet of it is changed."""
    visible: bool = True
    """What is in it could be looked at, although nothing of it may be changed."""
    documents: list[tuple[Leaf, Document]] = field(default_factory=list)
    """CDA documents attached as such."""
    archives: list[Archive] = field(default_factory=list)
    named: list[Named] = field(default_factory=list)
    forwards: bool = False
    """A mail is attached to it: whom that is about stands in there."""
    files: int = 0
    """Attachments that name nobody a program could read."""
    warnings: dict[str, str] = field(default_factory=dict)
    """Facts for the trace; no content, no identity."""


def carried_by(content: bytes) -> Carried | Refused:
    """`content` in CRLF lines. Refused is what names two patients, and what is no mail. Never raises on bad input."""
    try:
        _, body = split_message(content)
        entity = parse_entity(body)
        found = Carried(entity, protected=is_protected(entity))
    except MimeError:
        return Refused(CONTENT_INVALID)
    if found.protected:
        signed = _signed_part(entity)
        found.visible = signed is not None
        if signed is None:
            return found
        entity = signed
    every = list(islice(leaves(entity), MAX_PARTS + 1))
    if len(every) > MAX_PARTS:
        found.protected, found.visible = True, False
        found.warnings["warning.parts"] = "too many parts to look into"
        return found
    for leaf in every:
        refused = _look(found, leaf)
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


def _signed_part(entity: Entity) -> Entity | None:
    """What a multipart/signed shows (RFC 1847 §2.1): it is signed, not hidden. None for anything else."""
    if media_type(entity) != "multipart/signed":
        return None
    try:
        places = split_multipart(entity, entity.content_type().parameters.get("boundary", ""))
        return parse_entity(entity.source, *places[0]) if places else None
    except MimeError:
        return None


def _look(found: Carried, leaf: Leaf) -> Refused | None:
    suffix = PurePosixPath(leaf.name.lower()).suffix
    if is_text(leaf):
        data = data_of(leaf)
        if data is not None and leaf.kind == "text/plain" and has_markers(data):  # the file stands in the text itself
            found.named += map(of_hprim, hprim_patients(data))
        return None
    found.forwards = found.forwards or leaf.kind.startswith("message/")
    if leaf.kind.startswith(("multipart/", "message/", "image/", "audio/", "video/")):
        found.files += leaf.attached
        return None
    data = data_of(leaf)
    if data is None:
        found.warnings["warning.part"] = "an attachment could not be decoded"
        return None
    before = len(found.named)
    if leaf.kind in _XML_TYPES or suffix == ".xml" or data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<?xml"):
        refused = _xml(found, leaf, data)
        if refused is not None:
            return refused
    elif data.startswith(_ZIP):
        _archive(found, leaf, data)
    elif not data.startswith(b"%PDF-") and looks_like_hprim(leaf.name, data):
        found.named += map(of_hprim, hprim_patients(data))
    found.files += len(found.named) == before
    return None


def _xml(found: Carried, leaf: Leaf, data: bytes) -> Refused | None:
    if b"ClinicalDocument" not in data[:_NAMED_AT] and b"urn:asip-sante:ci-sis" not in data[:_NAMED_AT]:
        found.named += of_metadata(data)
        return None
    document = read_cda(data)
    if isinstance(document, Refused):
        if document.refusal in (refusals.PATIENT_SEVERAL, refusals.DOCUMENT_DTD):
            return document
        found.warnings["warning.cda"] = document.refusal.code  # travels as it is, and is declared as nothing
        return None
    found.documents.append((leaf, document))
    found.named.append(of_identity(document.patient))
    return None


def _archive(found: Carried, leaf: Leaf, data: bytes) -> None:
    if not leaf.name.lower().startswith("ihe_xdm") and b"METADATA.XML" not in data[-_NAMED_AT:].upper():
        return
    read = read_xdm(data, _LIMITS)
    if isinstance(read, Refused):
        found.warnings["warning.xdm"] = read.refusal.code
        return
    documents = [read_cda(one.content) for one in read.documents]
    known = tuple(each for each in documents if isinstance(each, Document))
    found.archives.append(Archive(leaf, known, len(known) == len(documents)))
    found.named += [named for one in read.documents if (named := of_cx(one.patient_id))]
    found.named += [of_identity(each.patient) for each in known]
