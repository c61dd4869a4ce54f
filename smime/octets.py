"""Octets that have no business where they stand: what readers differ on, and what CBC gadgets leave behind."""

from __future__ import annotations

from smime.mime import Entity, Field, MimeError

_FIELD_CONTROLS = bytes(octet for octet in range(32) if octet not in (9, 10)) + b"\x7f"
_ODD_LINE_ENDS = b"\r\x0b\x0c\x1c\x1d\x1e"
_BODY_CONTROLS = bytes(octet for octet in range(32) if octet not in (9, 10, 12, 13, 27)) + b"\x7f"


def has_controls(field: Field) -> bool:
    """Control characters, a CR that ends no line among them."""
    text = field.raw.replace(b"\r\n", b"\n")
    return len(text.translate(None, _FIELD_CONTROLS)) != len(text)


def header_has_odd_lines(entity: Entity) -> bool:
    """Whether its header has anything but LF and CRLF that some readers end lines at. NUL and the like end none: they
    are looked for in the fields where they matter."""
    header = bytes(entity.source[entity.start : entity.body_start]).replace(b"\r\n", b"\n")
    return len(header.translate(None, _ODD_LINE_ENDS)) != len(header)


def has_illegal_octets(field: Field) -> bool:
    """Octets that well-made header fields do not have."""
    return not field.raw.isascii() or has_controls(field)


def has_illegal_text(entity: Entity) -> bool:
    """Whether a body that calls itself 7-bit is none; of 8-bit and binary ones nothing can be said."""
    try:
        if entity.transfer_encoding() not in ("7bit", "base64", "quoted-printable"):
            return False
    except MimeError:
        return True
    body = bytes(entity.body)
    return not body.isascii() or len(body.translate(None, _BODY_CONTROLS)) != len(body)
