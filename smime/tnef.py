"""Transport-neutral encapsulation (winmail.dat), as far as S/MIME is inside: the one file that Exchange wrapped.

Some Exchange servers send a signed or encrypted message as TNEF around an `smime.p7m` (MS-OXTNEF §2.1, MS-OXOSMIME
§2.1). The reader is linear, never recursive, copies nothing but the file, and reads nothing else.
"""

from __future__ import annotations

import struct

from smime.canonical import base64_pieces
from smime.mime import Buffer, Entity, parse_entity

MAX_ATTRIBUTES = 10_000
MAX_PROPERTIES = 1000

_SIGNATURE = 0x223E9F78
_LEVEL_ATTACHMENT = 2
_RENDER_DATA = 0x9002
"""Begins each attachment."""
_TITLE = 0x8010
_DATA = 0x800F
_PROPERTIES = 0x9005
_LONG_NAME = 0x3707
_MIME_TAG = 0x370E
_DATA_BINARY = 0x3701

_FIXED_SIZES = {
    0x0001: 4,
    0x0002: 4,
    0x0003: 4,
    0x0004: 4,
    0x0005: 8,
    0x0006: 8,
    0x0007: 8,
    0x000A: 4,
    0x000B: 4,
    0x0014: 8,
    0x0040: 8,
    0x0048: 16,
}
_VARIABLE = (0x000D, 0x001E, 0x001F, 0x0102)
_UNICODE = 0x001F
_MULTIPLE = 0x1000


class TnefError(ValueError):
    """The bytes are not TNEF, or exceed a limit."""


class _Attachment:
    __slots__ = ("data", "mime_type", "name")

    def __init__(self) -> None:
        self.name = ""
        self.mime_type = ""
        self.data: memoryview | None = None


def smime_attachment(data: Buffer) -> Entity | None:
    """The S/MIME entity in a TNEF stream; None when there is none, or when it is not alone. Raises TnefError.

    A file that is CMS becomes an application/pkcs7-mime entity in base64; a multipart/signed one is an entity already.
    """
    attachments = _attachments(memoryview(data))
    if len(attachments) != 1:
        return None
    only = attachments[0]
    if only.data is None:
        return None
    if only.mime_type.startswith("multipart/signed"):
        entity = parse_entity(bytes(only.data))
        return entity if entity.content_type().media_type == "multipart/signed" else None
    kinds = ("application/pkcs7-mime", "application/x-pkcs7-mime")
    if only.mime_type.startswith(kinds) or only.name.lower().endswith(".p7m"):
        header = b"Content-Type: application/pkcs7-mime\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        return parse_entity(b"".join((header, *base64_pieces(bytes(only.data)))))
    return None


def _attachments(view: memoryview) -> list[_Attachment]:
    """Attributes one after the other: level, identifier, length, data, checksum (MS-OXTNEF §2.1.3.2)."""
    if len(view) < 6 or struct.unpack_from("<I", view)[0] != _SIGNATURE:
        raise TnefError("signature")
    found: list[_Attachment] = []
    position = 6
    for _ in range(MAX_ATTRIBUTES):
        if position == len(view):
            return found
        if position + 9 > len(view):
            raise TnefError("cut short")
        level, identifier, _, length = struct.unpack_from("<BHHI", view, position)
        position += 9
        if position + length + 2 > len(view):
            raise TnefError("length")
        value = view[position : position + length]
        position += length + 2
        if level != _LEVEL_ATTACHMENT:
            continue
        if identifier == _RENDER_DATA:
            found.append(_Attachment())
        elif not found:
            raise TnefError("attribute of no attachment")
        elif identifier == _TITLE:
            found[-1].name = found[-1].name or _text(value, 0)
        elif identifier == _DATA:
            found[-1].data = value
        elif identifier == _PROPERTIES:
            _read_properties(value, found[-1])
    raise TnefError("too many attributes")


def _read_properties(view: memoryview, attachment: _Attachment) -> None:
    """MAPI properties (MS-OXTNEF §2.1.3.4): their number, then type, identifier, name if any, and value."""
    position = 4
    for _ in range(_number(view, 0, MAX_PROPERTIES)):
        kind, identifier = _number(view, position) & 0xFFFF, _number(view, position) >> 16
        position += 4
        if identifier >= 0x8000:  # named: a GUID, and a number or a string
            position += 24 if _number(view, position + 16) == 0 else 24 + _padded(_number(view, position + 20))
        values = 1
        if kind & _MULTIPLE or kind in _VARIABLE:
            values = _number(view, position, MAX_PROPERTIES)
            position += 4
        kind &= ~_MULTIPLE
        if kind in _FIXED_SIZES:
            position += values * _FIXED_SIZES[kind]
            continue
        if kind not in _VARIABLE:
            raise TnefError("property type")
        for _ in range(values):
            length = _number(view, position)
            value = view[position + 4 : position + 4 + length]
            if len(value) != length:
                raise TnefError("property length")
            position += 4 + _padded(length)
            if identifier == _LONG_NAME:
                attachment.name = _text(value, kind)
            elif identifier == _MIME_TAG:
                attachment.mime_type = _text(value, kind).lower()
            elif identifier == _DATA_BINARY and attachment.data is None:
                attachment.data = value


def _number(view: memoryview, position: int, most: int = 0xFFFFFFFF) -> int:
    if position + 4 > len(view):
        raise TnefError("cut short")
    value = int.from_bytes(view[position : position + 4], "little")
    if value > most:
        raise TnefError("too many")
    return value


def _padded(length: int) -> int:
    return (length + 3) & ~3


def _text(value: memoryview, kind: int) -> str:
    octets = bytes(value[:1024])
    return octets.decode("utf-16-le" if kind == _UNICODE else "latin-1", "replace").rstrip("\0")
