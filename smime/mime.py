"""MIME sliced, never re-serialised: a signature covers the bytes as they came, so nothing here rewrites what it reads.

Entities are `memoryview` slices of the message, header fields keep their raw bytes, multiparts are split with
`bytes.find` (RFC 2046 §5.1). What Relais itself is about to sign is the exception: `seven_bit` re-encodes an entity
that would not survive the road, before it is signed (RFC 8551 §3.1.3).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import pybase64

from smime.quoted_printable import decode as decode_quoted_printable
from smime.quoted_printable import encode as encode_quoted_printable

MAX_HEADER_OCTETS = 1 << 20
MAX_FIELDS = 1000
MAX_PARTS = 1000
MAX_DEPTH = 20
MAX_LINE = 998
"""Octets of a line without its CRLF (RFC 5322 §2.1.1)."""

Buffer = bytes | bytearray | memoryview

_TOKEN_END = frozenset(b'()<>@,;:\\"/[]?= \t\r\n')


class MimeError(ValueError):
    """The bytes are not MIME as RFC 2045 and RFC 2046 have it, or exceed a limit. The text never quotes the content."""


@dataclass(frozen=True, slots=True)
class Field:
    """One header field."""

    name: str
    """Lower case; characters outside ASCII replaced."""
    raw: bytes
    """Name, colon, folded value and the line end, as received."""

    @property
    def value(self) -> str:
        """The unfolded body of the field; octets that are not UTF-8 become U+FFFD (RFC 5322 §2.2.3, RFC 6532)."""
        _, _, value = self.raw.partition(b":")
        return value.replace(b"\r\n", b"").replace(b"\n", b"").decode("utf-8", "replace").strip(" \t")


@dataclass(frozen=True, slots=True)
class ContentType:
    """A Content-Type field understood (RFC 2045 §5.1), parameters decoded after RFC 2231."""

    media_type: str
    """Lower case, `type/subtype`."""
    parameters: dict[str, str]
    """Names in lower case; the first of two with the same name wins."""


@dataclass(frozen=True, slots=True)
class Entity:
    """Header fields and body, both slices of the same bytes."""

    fields: tuple[Field, ...]
    body: memoryview

    def values(self, name: str) -> list[str]:
        """Unfolded bodies of all fields of that name (lower case), in order."""
        return [field.value for field in self.fields if field.name == name]

    def content_type(self) -> ContentType:
        """RFC 2045 §5.2 default `text/plain` when absent. Raises MimeError when there are several or it is unreadable:
        two readers might then disagree on what the message is."""
        values = self.values("content-type")
        if len(values) > 1:
            raise MimeError("several Content-Type fields")
        return parse_content_type(values[0]) if values else ContentType("text/plain", {})

    def transfer_encoding(self) -> str:
        """Lower case; `7bit` when absent (RFC 2045 §6.1). Raises MimeError when there are several."""
        values = self.values("content-transfer-encoding")
        if len(values) > 1:
            raise MimeError("several Content-Transfer-Encoding fields")
        return values[0].partition("(")[0].strip().lower() if values else "7bit"

    def decoded(self) -> Buffer:
        """The body without its transfer encoding. Raises MimeError when the encoding is broken or unknown."""
        encoding = self.transfer_encoding()
        if encoding in ("7bit", "8bit", "binary"):
            return self.body
        if encoding == "base64":
            try:
                return pybase64.b64decode_as_bytearray(self.body)
            except ValueError:
                raise MimeError("base64") from None
        if encoding == "quoted-printable":
            return decode_quoted_printable(bytes(self.body))
        raise MimeError("unknown transfer encoding")


def parse_entity(data: Buffer) -> Entity:
    """Split header and body at the first empty line. A header without a body is an entity with an empty body.

    Lines may end with LF alone, as some senders encrypt them. Raises MimeError when the header exceeds its limits or a
    line is no field.
    """
    view = memoryview(data)
    raw_header, start = _header_block(view)
    fields: list[Field] = []
    current: list[bytes] = []
    for line in raw_header.splitlines_lf():
        if line[:1] in (b" ", b"\t"):
            if not current:
                raise MimeError("header begins with a continuation line")
            current.append(line)
            continue
        if current:
            fields.append(_field(b"".join(current)))
            if len(fields) > MAX_FIELDS:
                raise MimeError("too many header fields")
        current = [line]
    if current:
        fields.append(_field(b"".join(current)))
    return Entity(tuple(fields), view[start:])
