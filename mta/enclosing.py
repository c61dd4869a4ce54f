"""A mail put beside something of ours, so that every client shows both, and not one octet of it changes.

Its content becomes one part of a `multipart/mixed` (RFC 2046 §5.1.3), as it came: a signature inside stays what it was.
Same arguments, same octets, for a worker that is killed does it again.
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from hashlib import sha256

import pybase64

from mta.smtp.content import with_crlf
from smime.mime import join_message, split_message

_CRLF = b"\r\n"


def enclosed(message: bytes, name: str, before: Sequence[bytes] = (), after: Sequence[bytes] = ()) -> bytes:
    """`message` (CRLF) with these MIME entities around its content; `name` makes the boundary, and is one the sender
    cannot know. Raises MimeError when the header is unreadable."""
    outer, content = split_message(message)
    return assembled(outer, (*before, content, *after), name)


def assembled(outer: bytes, parts: Sequence[bytes], name: str) -> bytes:
    """A message of these header fields (no Content-*) and these parts."""
    boundary = _boundary(name, parts)
    fields = [b'Content-Type: multipart/mixed;\r\n boundary="' + boundary + b'"\r\n']
    if not all(part.isascii() for part in parts):  # RFC 2045 §6.4
        fields.append(b"Content-Transfer-Encoding: 8bit\r\n")
    delimiter = b"--" + boundary
    pieces = [piece for part in parts for piece in (delimiter, _CRLF, part, _CRLF)]
    return join_message(outer, b"".join((*fields, _CRLF, *pieces, delimiter, b"--", _CRLF)))


def text_part(text: str) -> bytes:
    """text/plain, shown and not attached, in ASCII; lines of `text` end with LF."""
    encoded = binascii.b2a_qp(with_crlf(text.encode()), istext=True)
    return (
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b"Content-Transfer-Encoding: quoted-printable\r\n"
        b"Content-Disposition: inline\r\n\r\n" + encoded
    )


def file_part(media_type: str, file_name: str, content: bytes) -> bytes:
    """An attachment; `media_type` (with parameters) and `file_name` are ASCII of ours."""
    head = (
        f"Content-Type: {media_type};\r\n"
        f' name="{file_name}"\r\n'
        "Content-Transfer-Encoding: base64\r\n"
        "Content-Disposition: attachment;\r\n"
        f' filename="{file_name}"\r\n\r\n'
    )
    return head.encode("ascii") + pybase64.encodebytes(content).rstrip(b"\n").replace(b"\n", _CRLF)


def _boundary(name: str, parts: Sequence[bytes]) -> bytes:
    """One that none of the parts holds."""
    number = 0
    while True:
        boundary = b"=_" + sha256(f"{number}:{name}".encode()).hexdigest()[:40].encode("ascii")
        if not any(boundary in part for part in parts):
            return boundary
        number += 1
