"""What protects an entity, told from the entity itself: which layer it is, and where what it protects begins and ends.

Nothing is decrypted or verified here. Senders name layers in many wrong ways; what an entity is taken for never depends
on a name alone when there is CMS to ask.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

import pybase64

from smime.cms_read import Compressed, Enveloped, Other, Signed, read_cms
from smime.mime import Budget, Buffer, ContentType, Entity, MimeError, parse_content_type, parse_entity, split_multipart
from smime.octets import header_has_odd_lines
from trust.der import SEQUENCE, DerError

MAX_DEPTH = 50
"""Of parts inside parts."""
_MAX_WRAPPERS = 8
"""Multiparts with one part each around a message; gateways add one or two."""

CMS_TYPES = ("application/pkcs7-mime", "application/x-pkcs7-mime")
_SIGNATURE_TYPES = ("application/pkcs7-signature", "application/x-pkcs7-signature")
_TNEF_TYPES = ("application/ms-tnef", "application/vnd.ms-tnef")
_IDENTITY = ("7bit", "8bit", "binary")


_PEM = re.compile(
    rb"\s*+-----BEGIN (PKCS7|CMS|PKCS #7 SIGNED DATA)-----[ \t]*+\r?\n([A-Za-z0-9+/=\s]*+)-----END \1-----\s*+"
)
"""RFC 7468 §8, §9."""


class NoCmsError(DerError):
    """The bytes do not even begin like CMS."""


class Layer(Enum):
    """What an entity claims to be."""

    CLEAR_SIGNED = 1
    CMS = 2
    SIGNATURE = 3
    """A signature file by itself: CMS all the same, but never taken for an encrypted message."""
    TNEF = 4


class LayerError(ValueError):
    """A multipart/signed that is none. `code` and `detail` are those of the finding."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(code)
        self.code = code
        self.detail = detail


@dataclass(frozen=True, slots=True)
class ClearSigned:
    """A multipart/signed taken apart (RFC 1847 §2.1)."""

    content: Buffer
    """The signed bytes: as they came; when lines ended with LF alone, in canonical form (RFC 8551 §3.1.1)."""
    signed: Signed
    source: bytes | bytearray
    start: int
    stop: int

    def entity(self) -> Entity:
        """The signed entity. Raises MimeError."""
        return parse_entity(self.source, self.start, self.stop)


def layer_of(entity: Entity, content_type: ContentType) -> Layer | None:
    """None for what is no layer."""
    media_type = content_type.media_type
    if media_type == "multipart/signed":
        protocol = content_type.parameters.get("protocol", _SIGNATURE_TYPES[0]).lower()
        return Layer.CLEAR_SIGNED if protocol in _SIGNATURE_TYPES else None
    if media_type in CMS_TYPES:
        return Layer.CMS
    if media_type in _SIGNATURE_TYPES:
        return Layer.SIGNATURE
    if media_type in _TNEF_TYPES:
        return Layer.TNEF
    if media_type == "application/octet-stream":
        # senders whose system does not know the type; RFC 8551 §3.9 has readers go by the file name
        name = file_name(entity, content_type).lower()
        if name.endswith((".p7m", ".p7c", ".p7z")):
            return Layer.CMS
        if name.endswith(".p7s"):
            return Layer.SIGNATURE
        if name == "winmail.dat":
            return Layer.TNEF
    return None


def file_name(entity: Entity, content_type: ContentType) -> str:
    """The `name` of the type, or the `filename` of the disposition; empty when there is none to be read."""
    name = content_type.parameters.get("name", "").strip()
    for value in entity.values("content-disposition") if not name else ():
        try:
            name = parse_content_type(value).parameters.get("filename", "").strip()
        except MimeError:
            continue
    return name


def is_wrapper(entity: Entity, content_type: ContentType) -> bool:
    """Whether an entity that is protected is a whole message for the sake of its header (RFC 8551 §3.1), not one that
    its author forwards: those say that they are attached. `forwarded=no` says it outright."""
    if content_type.media_type != "message/rfc822":
        return False
    if content_type.parameters.get("forwarded", "").lower() == "no":
        return True
    return not any(value.lower().startswith("attachment") for value in entity.values("content-disposition"))


def read_cms_of(entity: Entity) -> Enveloped | Signed | Compressed | Other:
    """The CMS structure in a file, which some senders write in PEM. Raises MimeError and DerError (`NoCmsError`)."""
    data = entity.decoded()
    try:
        return read_cms(data)
    except DerError:
        if len(data) and data[0] == SEQUENCE:
            raise
        armoured = _PEM.fullmatch(data)
        if armoured is None:
            raise NoCmsError("no CMS") from None
        try:
            return read_cms(pybase64.b64decode(bytes(armoured[2])))
        except ValueError:
            raise DerError("PEM") from None


def with_crlf(entity: Entity) -> Entity:
    """The entity itself, or, when its lines end as in a Unix file, one whose lines end with CRLF (RFC 8551 §3.1.1).

    That is so when its body has no CR at all, or when its header has none and each in the body stands before an LF:
    `openssl` writes such files. Anything else is left: beside CRLF, a lone LF is something that readers take
    differently.
    """
    source, start, middle, stop = entity.source, entity.start, entity.body_start, entity.stop
    carriage = source.find(b"\r", middle, stop)
    if carriage < 0:
        if source.find(b"\n", middle, stop) < 0:
            return entity
    elif (
        source.find(b"\r", start, middle) >= 0
        or source.find(b"\n", start, middle) < 0
        or source.count(b"\r", carriage, stop) != source.count(b"\r\n", carriage, stop)
    ):
        return entity
    return parse_entity(bytes(source[start:stop]).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))


def parts_of(
    entity: Entity, content_type: ContentType, budget: Budget, *, strict: bool = False
) -> tuple[Entity, list[tuple[int, int]]]:
    """The parts of a multipart and the entity they are positions in (see `with_crlf`). Raises MimeError.

    So does white space before a colon: some readers take such a line for the end of the header, and see other parts.
    If `strict`, as it must be wherever a part shall count as signed, so does everything else that readers differ on.
    """
    if entity.transfer_encoding() not in _IDENTITY:  # RFC 2045 §6.4
        raise MimeError("encoded multipart")
    if any(field.is_obsolete for field in entity.fields):
        raise MimeError("white space before a colon")
    if strict and not content_type.is_plain:
        raise MimeError("parameters that readers take apart differently")
    if strict and header_has_odd_lines(entity):
        raise MimeError("control character")
    entity = with_crlf(entity)
    boundary = content_type.parameters.get("boundary", "")
    return entity, split_multipart(entity, boundary, budget, strict=strict)


def crooked_header(entity: Entity) -> str:
    """What in its header readers take for the end of a line or of the header, or not, as they like; empty when there
    is nothing. Around a signature that must not be: it would cover less, or something else, than people are shown."""
    if any(field.is_obsolete for field in entity.fields):
        return "white space before a colon"
    return "control character" if header_has_odd_lines(entity) else ""


def sole_child(entity: Entity, content_type: ContentType, budget: Budget) -> Entity | None:
    """The layer that is all there is in a multipart/mixed, through any number of such; else None.

    Some gateways and lists put every message into a multipart of their own.
    """
    for _ in range(_MAX_WRAPPERS):
        if content_type.media_type != "multipart/mixed":
            return None
        try:
            entity, (part,) = parts_of(entity, content_type, budget.few(1), strict=True)
            entity = parse_entity(entity.source, *part)
            content_type = entity.content_type()
        except ValueError:
            return None
        if layer_of(entity, content_type) is not None:
            return entity
    return None


def clear_signed(entity: Entity, content_type: ContentType, budget: Budget) -> ClearSigned:
    """Take a multipart/signed apart: two parts, the second a detached signature over the first (RFC 1847 §2.1).

    `micalg` is not looked at: the CMS says what was hashed. Raises LayerError.
    """
    try:
        outer, ranges = parts_of(entity, content_type, budget.few(2), strict=True)
        if len(ranges) != 2:
            raise MimeError("not two parts")
        (start, stop), signature_range = ranges
        signature = parse_entity(outer.source, *signature_range)
        if problem := crooked_header(signature):
            raise MimeError(problem)
        signature_type = signature.content_type()
        if layer_of(signature, signature_type) is not Layer.SIGNATURE:
            raise MimeError("type of the second part")
        cms = read_cms_of(signature)
    except (MimeError, DerError) as problem:
        raise LayerError("malformed-signature", str(problem)) from None
    if not isinstance(cms, Signed):
        raise LayerError("malformed-signature", "not SignedData")
    if cms.content is not None:
        # two contents under one signature: readers would differ on which one was signed
        raise LayerError("content-in-detached-signature")
    return ClearSigned(memoryview(outer.source)[start:stop], cms, outer.source, start, stop)
