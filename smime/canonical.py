"""Making an entity fit for signing: once signed, no byte may change on the road (RFC 8551 §3.1.1 to §3.1.3).

Mail that some relay would re-encode, 8-bit text, bare line feeds, endless lines, is re-encoded here, before the
signature; what is fit already passes untouched, which costs one look at its bytes.
"""

from __future__ import annotations

import binascii

import pybase64

from smime.mime import Entity, MimeError, parse_entity, split_multipart

MAX_DEPTH = 20
MAX_LINE = 998
"""Octets in a line without its CRLF (RFC 5322 §2.1.1)."""


def seven_bit(entity: bytes) -> bytes:
    """`entity` unchanged when it is 7-bit text in CRLF lines of at most 998 octets, else re-encoded until it is.

    Text becomes quoted-printable, anything else base64. Raises ValueError when that is impossible without breaking
    what it holds: 8-bit header fields, or a signed or encrypted part that is not fit itself.
    """
    return entity if is_seven_bit(entity) else _convert(entity, 1)


def is_seven_bit(data: bytes) -> bool:
    """Whether `data` is ASCII without NUL, in CRLF lines of at most 998 octets."""
    if not data.isascii() or b"\0" in data:
        return False
    lines = data.count(b"\r\n")
    if not lines == data.count(b"\n") == data.count(b"\r"):
        return False
    position = 0
    while len(data) - position > MAX_LINE:
        end = data.rfind(b"\r\n", position, position + MAX_LINE + 2)
        if end < 0:
            return False
        position = end + 2
    return True


def crlf(data: bytes) -> bytes:
    """Every line end as CRLF."""
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")


def _convert(data: bytes, depth: int) -> bytes:
    if depth > MAX_DEPTH:
        raise MimeError("nested too deeply")
    entity = parse_entity(data)
    header = [crlf(field.raw) for field in entity.fields]
    if not is_seven_bit(b"".join(header)):
        raise MimeError("a header field is not 7-bit")
    content_type = entity.content_type()
    kind, _, subtype = content_type.media_type.partition("/")
    if kind == "multipart":
        if subtype in ("signed", "encrypted"):
            raise MimeError("a signed or encrypted part is not 7-bit")
        return _rebuilt(
            entity, header, "7bit", _convert_parts(data, content_type.parameters.get("boundary", ""), depth)
        )
    body = bytes(entity.body)
    if content_type.media_type == "message/rfc822":
        return _rebuilt(entity, header, "7bit", _convert(body, depth + 1))
    encoding = entity.transfer_encoding()
    if encoding in ("base64", "quoted-printable"):
        lines = crlf(body)
        if is_seven_bit(lines):
            return _rebuilt(entity, header, encoding, lines)
    plain = bytes(entity.decoded())
    if kind == "text" and b"\0" not in plain:
        plain = crlf(plain)
        if is_seven_bit(plain):
            return _rebuilt(entity, header, "7bit", plain)
        # the codec learns its line end from the first line, and would write a lone LF if there were none
        encoded = binascii.b2a_qp(b"\r\n" + plain, istext=True)[2:]
        return _rebuilt(entity, header, "quoted-printable", encoded)
    return _rebuilt(entity, header, "base64", pybase64.encodebytes(plain).replace(b"\n", b"\r\n"))


def _convert_parts(data: bytes, boundary: str, depth: int) -> bytes:
    try:
        ranges = split_multipart(parse_entity(data), boundary)
    except MimeError:
        # delimiters on lines that end with LF; where they end with CRLF, lone LFs may be some part's own
        data = crlf(data)
        ranges = split_multipart(parse_entity(data), boundary)
    delimiter = b"--" + boundary.encode("ascii")
    pieces: list[bytes] = []
    for start, stop in ranges:
        pieces += [delimiter, b"\r\n", _convert(data[start:stop], depth + 1), b"\r\n"]
    return b"".join([*pieces, delimiter, b"--\r\n"])


def _rebuilt(entity: Entity, header: list[bytes], encoding: str, body: bytes) -> bytes:
    """The entity with another body and the transfer encoding it is now in; `7bit` goes without saying."""
    kept = [raw for field, raw in zip(entity.fields, header, strict=True) if field.name != "content-transfer-encoding"]
    if encoding != "7bit":
        kept.append(f"Content-Transfer-Encoding: {encoding}\r\n".encode("ascii"))
    return b"".join([*kept, b"\r\n", body])
