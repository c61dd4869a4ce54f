"""What a file with S/MIME in it may look like: a mail, or CMS by itself as operators get it from partners and tools.

Whatever the form, what comes out is a message that `smime.opening` reads; bare CMS gets the header it lacks. Several
structures one after the other in a file come out as several.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from enum import Enum

import pybase64

from smime.canonical import base64_lines
from smime.cms_read import Signed, read_cms
from smime.mime import MimeError, parse_entity
from trust.der import OCTET_STRING, SEQUENCE, DerError, context

MAX_BLOCKS = 8
"""Structures in one file."""
MAX_HEADERS = 4_000_000
"""Of elements that are stepped over to see how a structure is encoded."""
_MAX_NESTING = 64

_HEADER = b"Content-Type: %s\r\nContent-Transfer-Encoding: binary\r\n\r\n"
_CMS_HEADER = _HEADER % b"application/pkcs7-mime"
_TNEF_HEADER = _HEADER % b"application/ms-tnef"
_TNEF = b"\x78\x9f\x3e\x22"
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/= \t\r\n"
_PEM_LABELS = (b"CMS", b"PKCS7", b"PKCS #7 SIGNED DATA", b"SIGNED MESSAGE", b"ENCRYPTED MESSAGE")
"""RFC 7468 §8, §9, and what older tools and gpgsm write."""


class FormError(ValueError):
    """The file is none of these forms; the text is a sentence for who has the file."""


class Form(Enum):
    MAIL = "mail"
    ENTITY = "mime-entity"
    """Content-* fields and a body, without a From: what `openssl cms -sign` writes, or what was inside encryption."""
    CMS = "cms"
    PEM = "pem"
    BASE64 = "base64"
    TNEF = "tnef"


@dataclass(frozen=True, slots=True)
class Block:
    """One message in a file."""

    form: Form
    message: bytes
    """As `open_message` takes it."""
    cms: bytes = b""
    """The CMS structure alone, where the file has no MIME around it."""
    detached: bool = False
    """It is a signature alone, put together with what it signs."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How one structure is written (X.690)."""

    octets: int
    """From its first octet to its last."""
    definite: bool
    """No indefinite length anywhere."""
    minimal: bool
    """No length written longer than it need be."""
    chunks: int
    """Pieces of its largest octet string; 1 when that is in one piece."""

    @property
    def is_der(self) -> bool:
        """As far as lengths and chunks tell."""
        return self.definite and self.minimal and self.chunks == 1


def blocks_of(data: bytes) -> tuple[Block, ...]:
    """The messages in a file. Raises FormError."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        raise FormError("The file is empty: ask for it again.")
    if data[0] == SEQUENCE:
        return _bare(data, Form.CMS)
    if data.startswith(_TNEF):
        return (Block(Form.TNEF, _TNEF_HEADER + data),)
    text = data.lstrip()
    if text.startswith(b"-----BEGIN "):
        return _pem(text)
    if text.startswith(b"M") and not data.translate(None, _BASE64):  # what base64 makes of the octet 30
        return _bare(_decoded(data), Form.BASE64)
    return (_mail(data),)


def bare_cms(data: bytes) -> Block:
    """CMS in the header it needs to be read as a message."""
    return Block(Form.CMS, _CMS_HEADER + data, data)


def with_content(block: Block, content: bytes) -> Block:
    """A detached signature and what it signs as one message, byte for byte. Raises FormError when it is none."""
    try:
        signed = read_cms(block.cms) if block.cms else None
    except DerError:
        signed = None
    if not isinstance(signed, Signed):
        raise FormError("The file is not a signature alone (.p7s): leave the content out.")
    if signed.content is not None:
        raise FormError("The signature has its content inside: leave the content out.")
    boundary = secrets.token_hex(30).encode("ascii")
    message = b"".join(
        (
            b'Content-Type: multipart/signed; protocol="application/pkcs7-signature"; boundary=',
            boundary,
            b"\r\n\r\n--",
            boundary,
            b"\r\n",
            content,
            b"\r\n--",
            boundary,
            b"\r\nContent-Type: application/pkcs7-signature\r\nContent-Transfer-Encoding: base64\r\n\r\n",
            base64_lines(block.cms),
            b"\r\n--",
            boundary,
            b"--\r\n",
        )
    )
    return Block(block.form, message, block.cms, detached=True)


def _mail(data: bytes) -> Block:
    text = data.lstrip(b"\r\n")
    if text.startswith(b"From "):  # the first line of an mbox
        text = text.partition(b"\n")[2]
    try:
        fields = parse_entity(text).fields
    except MimeError:
        fields = ()
    names = {field.name for field in fields}
    if not names & {"content-type", "from", "to", "subject", "received", "mime-version", "message-id", "date"}:
        raise FormError(
            "The file is neither a mail nor CMS (DER, PEM or base64): "
            "save the message as received, with its header, and try again."
        )
    return Block(Form.MAIL if "from" in names else Form.ENTITY, text)


def _bare(data: bytes, form: Form) -> tuple[Block, ...]:
    """One structure or several; line ends that an editor or a mail put behind the last are left out."""
    found: list[Block] = []
    position = 0
    while position < len(data):
        rest = data if position == 0 else data[position:]
        if found and not rest.strip(b"\r\n\0 "):
            break
        try:
            octets = encoding_of(rest).octets
        except DerError:
            octets = len(rest)  # what is wrong with it is said where it is read
        if found and rest[0] != SEQUENCE:
            raise FormError(f"The file has {len(rest)} octets behind its CMS that are none: it may be damaged.")
        if len(found) == MAX_BLOCKS:
            raise FormError(f"The file has more than {MAX_BLOCKS} CMS structures: take them apart.")
        cms = rest[:octets]
        found.append(Block(form, _CMS_HEADER + cms, cms))
        position += octets
    return tuple(found)


def _pem(text: bytes) -> tuple[Block, ...]:
    found: list[Block] = []
    other = b""
    for piece in text.split(b"-----BEGIN ")[1 : MAX_BLOCKS + 2]:
        label, _, rest = piece.partition(b"-----")
        body, end, _ = rest.partition(b"-----END ")
        if label not in _PEM_LABELS:
            other = other or label[:40]
        elif not end:
            raise FormError("The PEM block has no END line: the file is cut short.")
        else:
            found += _bare(_decoded(body), Form.PEM)
    if len(found) > MAX_BLOCKS:
        raise FormError(f"The file has more than {MAX_BLOCKS} CMS structures: take them apart.")
    if not found:
        label_text = "".join(chr(octet) if 32 <= octet < 127 else "?" for octet in other)
        raise FormError(f"The PEM file holds {label_text or 'nothing'}, not a message (CMS or PKCS7).")
    return tuple(found)


def _decoded(text: bytes) -> bytes:
    try:
        return pybase64.b64decode(text)
    except ValueError:
        raise FormError("The base64 in the file is damaged: ask for it again.") from None


def encoding_of(data: bytes | bytearray | memoryview) -> Encoding:
    """How the first structure in `data` is written; what follows it is not looked at. Raises DerError."""
    size = len(data)
    position, headers = 0, 0
    definite = minimal = True
    chunks, most = 1, -1
    # of each element around: where it ends (-1: at an end of contents), its tag, octet strings in it, their octets
    around: list[list[int]] = []
    while True:
        while around and around[-1][0] == position:
            chunks, most = _largest(around.pop(), chunks, most)
            if not around:
                return Encoding(position, definite, minimal, chunks)
        if position + 2 > size or len(around) > _MAX_NESTING or headers > MAX_HEADERS:
            raise DerError("cut short, or too deep")
        headers += 1
        tag, length = data[position], data[position + 1]
        position += 2
        if not tag and not length:
            if not around or around[-1][0] >= 0:
                raise DerError("end of contents")
            around[-1][0] = position
            continue
        if tag & 0x1F == 0x1F:
            raise DerError("tag number above 30")
        if length == 0x80:
            definite = False
            around.append([-1, tag, 0, 0])
            continue
        if length > 0x80:
            octets = length - 0x80
            length = int.from_bytes(data[position : position + octets], "big")
            minimal = minimal and length >= 0x80 and data[position] > 0
            position += octets
        if position + length > size:
            raise DerError("cut short")
        if tag & 0x20 and length:
            around.append([position + length, tag, 0, 0])
            continue
        if tag == OCTET_STRING and around:
            around[-1][2] += 1
            around[-1][3] += length
        position += length
        if not around:
            return Encoding(position, definite, minimal, 1)


def _largest(element: list[int], chunks: int, most: int) -> tuple[int, int]:
    """Chunks and octets of the largest octet string so far; an explicit [0] around one piece counts as one."""
    _, tag, count, octets = element
    if tag in (OCTET_STRING | 0x20, context(0)) and count and octets > most:
        return count, octets
    return chunks, most
