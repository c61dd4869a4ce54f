"""Making an entity fit for signing: once signed, no byte may change on the road (RFC 8551 §3.1.1 to §3.1.3).

Two degrees. *Seven-bit* is what SMTP promises to carry: ASCII in CRLF lines of at most 998 octets. *Robust* is what
also survives the hops that keep no promises (RFC 2049 §3, RFC 8551 §3.1.3): those that strip white space from the ends
of lines, expand tabs, put `>` before `From `, or eat a dot at the beginning of a line. What is to be signed is
re-encoded until it is robust, before the signature; what is robust already passes untouched, which costs one look at
its bytes. A part that is itself signed or encrypted is never rewritten, only required to be seven-bit.
"""

from __future__ import annotations

import binascii
import io
import re
from collections.abc import Iterator

import pybase64

from smime import columns
from smime.mime import Entity, Field, MimeError, parse_entity, split_multipart
from smime.words import encoded_field

MAX_DEPTH = 20
MAX_LINE = 998
"""Octets in a line without its CRLF (RFC 5322 §2.1.1)."""
MAX_ENCODED_LINE = 76
"""Octets in a line of quoted-printable (RFC 2045 §6.7)."""

_RUN = 16
"""Lines of the same length that are worth looking at together."""
_RUN_OCTETS = 1 << 17
"""About as many of them as stay in the processor's cache while they are looked at in several ways."""
_STRETCH = 4096
"""Octets looked at line by line, at most, before looking for such a run again: a header is shorter."""
_FIRST_STRETCH = 256


def robust(entity: bytes) -> bytes:
    """`entity` unchanged when it is robust, else re-encoded until it is, as far as that breaks nothing it holds.

    Text becomes quoted-printable, anything else base64. Raises ValueError (`MimeError`) when it cannot even be made
    seven-bit: 8-bit header fields, or a signed or encrypted part that is not fit itself.
    """
    return _fit(entity, 1)


def crlf_lines(entity: bytes) -> bytes:
    """`entity` unchanged when its line ends are CRLF and nothing else, as §3.1.1 wants; else re-encoded like `robust`.

    For content that travels inside base64, where lines may be long and 8-bit.
    """
    return entity if _has_crlf_lines(entity) else _fit(entity, 1)


def for_the_road(entity: bytes | bytearray) -> bytes | bytearray:
    """`entity` itself when its lines end with CRLF and it has no NUL; else one that says the same and is so.

    What was inside encryption, compression or TNEF may be binary, and goes on over roads that take mail only. Files
    become base64 then, which leaves their octets alone. Where that cannot be, in what is signed, all line ends become
    CRLF, as any hop would have them. What is judged must be what comes out here: whoever reads it later sees nothing
    else.
    """
    if _can_travel(entity):
        return entity
    data = bytes(entity)
    try:
        return _fit(data, 1, signing=False)
    except MimeError:
        return crlf(data)


def _can_travel(data: bytes | bytearray) -> bool:
    return b"\0" not in data and (_has_short_lines(data) or _has_crlf_lines(data))


def is_seven_bit(data: bytes) -> bool:
    """Whether `data` is ASCII without NUL, in CRLF lines of at most 998 octets."""
    return data.isascii() and b"\0" not in data and _has_short_lines(data)


def is_robust(data: bytes) -> bool:
    """Whether `data` is seven-bit, without tabs or blanks at the ends of lines, or lines that begin like mail's own."""
    return not data.endswith(b" ") and _has_short_lines(data, robust=True)


_RISKY_STARTS = (b"From ", b".")


def crlf(data: bytes) -> bytes:
    """Every line end as CRLF."""
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")


# --- Looking ---------------------------------------------------------------------------------------------------------


def _has_crlf_lines(data: bytes | bytearray) -> bool:
    rest = data.replace(b"\r\n", b"\0\0")
    return b"\r" not in rest and b"\n" not in rest


def _has_short_lines(data: bytes | bytearray, *, robust: bool = False) -> bool:
    """Whether lines end with CRLF only and have at most 998 octets; if `robust`, ASCII without risks too.

    Much of a mail is base64, lines of one length, which are looked at together (`smime.columns`).
    """
    position, size, stretch, asked = 0, len(data), _FIRST_STRETCH, _RUN
    while size - position > MAX_LINE + 2:
        end = data.find(b"\n", position, position + MAX_LINE + 2)
        if end < 0:
            return False
        length = end + 1 - position
        count = _lines_of_length(data, end, length, asked)
        asked = max(_RUN, count)  # of a long run, the next stretch is as long
        if count >= _RUN:
            stop = position + count * length
            if (columns.is_plain if robust else columns.is_lines)(data, position, stop, length):
                if robust and _has_risky_columns(data, position, stop, length):
                    return False
                position, stretch = stop, _FIRST_STRETCH
                continue
        else:
            stop = data.rfind(b"\n", position, position + max(stretch, length)) + 1
            stretch = min(2 * stretch, _STRETCH)
        lines = data[position:stop]
        if not _lines_are_short(lines) or (robust and _has_risks(lines)):
            return False
        position = stop
    rest = data[position:]
    return _lines_are_short(rest) and not (robust and _has_risks(rest))


def _lines_of_length(data: bytes | bytearray, end: int, length: int, asked: int) -> int:
    """How many lines end at `end` and every `length` octets behind it, `_RUN_OCTETS` of them at most.

    The work is in proportion to the answer, and to `asked`, the number looked at first.
    """
    most = max(_RUN_OCTETS // length, _RUN)
    while True:
        asked = min(asked, most)
        ends = data[end : end + asked * length : length]
        count = len(ends) if ends == b"\n" * len(ends) else len(ends) - len(ends.lstrip(b"\n"))
        if count < asked or asked == most:
            return count
        asked *= 16


def _lines_are_short(data: bytes | bytearray) -> bool:
    if not _has_crlf_lines(data):
        return False
    position, size = 0, len(data)
    while size - position > MAX_LINE:
        end = data.rfind(b"\n", position, position + MAX_LINE + 2)
        if end < 0:
            return False
        position = end + 1
    return True


def _has_risky_columns(data: bytes | bytearray, start: int, stop: int, length: int) -> bool:
    """`_has_risks` for printable lines of one length."""
    if length < 3:
        return False
    firsts = data[start:stop:length]
    if b"." in firsts:
        return True
    if data.find(b" ", start, stop) < 0:  # base64 has none
        return False
    if b" " in data[start + length - 3 : stop : length]:
        return True
    number = -1
    while (number := firsts.find(b"F", number + 1)) >= 0:
        if data.startswith(b"From ", start + number * length):
            return True
    return False


def _has_risks(lines: bytes | bytearray) -> bool:
    """What is not ASCII, NUL or a tab; blanks at the end, or `From ` or a dot at the beginning of one of these whole
    lines, which end with CRLF."""
    if not lines.isascii() or b"\0" in lines or b"\t" in lines:
        return True
    if lines.startswith(_RISKY_STARTS) or b"\n." in lines or b" \r" in lines:
        return True
    position = 0
    # `From ` itself is slow to look for: each of its letters is in every line
    while position := lines.find(b"\nF", position) + 1:
        if lines.startswith(b"From ", position):
            return True
    return False


# --- Re-encoding -----------------------------------------------------------------------------------------------------


def _fit(data: bytes, depth: int, *, signing: bool = True) -> bytes:
    """`data` robust, as for `signing`, or else fit for the road; as it is when it is seven-bit at least and cannot be
    taken apart."""
    if is_robust(data) if signing else _can_travel(data):
        return data
    try:
        return _convert(data, depth, signing=signing)
    except MimeError:
        if is_seven_bit(data):
            return data
        raise


def _convert(data: bytes, depth: int, *, signing: bool) -> bytes:
    if depth > MAX_DEPTH:
        raise MimeError("nested too deeply")
    entity = parse_entity(data)
    content_type = entity.content_type()
    kind, _, subtype = content_type.media_type.partition("/")
    if kind == "multipart" and subtype in ("signed", "encrypted"):
        raise MimeError("a signed or encrypted part is not 7-bit")
    header = [_header_field(field) if signing else crlf(field.raw) for field in entity.fields]
    if signing and not is_seven_bit(b"".join(header)):
        raise MimeError("a header field is not 7-bit")
    if kind == "multipart":
        boundary = content_type.parameters.get("boundary", "")
        return _rebuilt(entity, header, "", _convert_parts(data, boundary, depth, signing=signing))
    if content_type.media_type == "message/rfc822":
        return _rebuilt(entity, header, "", _fit(bytes(entity.body), depth + 1, signing=signing))
    return _rebuilt(entity, header, *_convert_body(entity, kind, signing=signing))


def _convert_body(entity: Entity, kind: str, *, signing: bool) -> tuple[str, bytes]:
    """Transfer encoding, empty for none, and body of a part that has no parts."""
    encoding = entity.transfer_encoding()
    fits = is_robust if signing else _can_travel
    if encoding in ("base64", "quoted-printable"):
        lines = crlf(bytes(entity.body))
        if fits(lines):
            return encoding, lines
        if encoding == "base64" and _goes_on(lines):
            raise MimeError("base64 that goes on behind its padding")  # readers differ on what it says
        plain = binascii.a2b_qp(lines) if encoding == "quoted-printable" else bytes(entity.decoded())
    else:
        plain = bytes(entity.decoded())
        if kind == "text":
            plain = crlf(plain)  # here line ends are the road's, not the content's
            if fits(plain):
                return "", plain
    if kind == "text" and encoding != "base64" and b"\0" not in plain and _has_crlf_lines(plain):
        return "quoted-printable", quoted_printable(plain)
    return "base64", base64_lines(plain)


_BASE64 = bytes(octet for octet in range(128) if chr(octet).isalnum()) + b"+/"


def _goes_on(encoded: bytes) -> bool:
    """Whether there is more behind the padding."""
    rest = encoded[encoded.find(b"=") :] if b"=" in encoded else b""
    return len(rest.translate(None, _BASE64)) != len(rest)


def _convert_parts(data: bytes, boundary: str, depth: int, *, signing: bool) -> bytes:
    try:
        ranges = split_multipart(parse_entity(data), boundary)
    except MimeError:
        # delimiters on lines that end with LF; where they end with CRLF, lone LFs may be some part's own
        data = crlf(data)
        ranges = split_multipart(parse_entity(data), boundary)
    delimiter = b"--" + boundary.encode("ascii")
    pieces: list[bytes] = []
    for start, stop in ranges:
        pieces += [delimiter, b"\r\n", _fit(data[start:stop], depth + 1, signing=signing), b"\r\n"]
    return b"".join([*pieces, delimiter, b"--\r\n"])


def _header_field(field: Field) -> bytes:
    """A field with its folds, but without tabs and trailing blanks: to its meaning they are all the same. What is not
    ASCII in it becomes so. Raises MimeError."""
    raw = field.raw if field.raw.isascii() else encoded_field(field)
    lines = (line.replace(b"\t", b" ").rstrip(b" ") for line in crlf(raw).split(b"\r\n"))
    return b"".join(line + b"\r\n" for line in lines if line)


def _rebuilt(entity: Entity, header: list[bytes], encoding: str, body: bytes) -> bytes:
    """The entity with another body and the transfer encoding it is now in; without any, 7bit goes without saying."""
    encoding = encoding or ("7bit" if body.isascii() else "8bit")
    kept = [raw for field, raw in zip(entity.fields, header, strict=True) if field.name != "content-transfer-encoding"]
    if encoding != "7bit":
        kept.append(f"Content-Transfer-Encoding: {encoding}\r\n".encode("ascii"))
    return b"".join([*kept, b"\r\n", body])


# --- Transfer encodings ----------------------------------------------------------------------------------------------


_LINE_OCTETS = 57
_LINE = 76
_PIECE_OCTETS = _LINE_OCTETS << 14
_SMALL_PIECE_OCTETS = _LINE_OCTETS << 11
_SMALL = 1 << 12
_LARGE = 1 << 20


def base64_pieces(data: bytes | bytearray) -> list[bytes]:
    """Base64 in CRLF lines of 76 characters (RFC 2045 §6.8), to be joined; pieces stay in the processor's cache.

    What is small keeps the interpreter's lock: to give it away for a microsecond costs the wait for its return.
    """
    if len(data) <= _SMALL:
        encoded = binascii.b2a_base64(data, newline=False)
        lines = [encoded[position : position + _LINE] for position in range(0, len(encoded), _LINE)]
        return [b"\r\n".join([*lines, b""])]
    return list(_pieces(data, _PIECE_OCTETS))


def _pieces(data: bytes | bytearray, octets: int) -> Iterator[bytes]:
    view = memoryview(data)
    for start in range(0, len(data), octets):
        yield columns.cut(pybase64.b64encode(view[start : start + octets]), _LINE)


def with_base64(head: bytes, data: bytes | bytearray) -> bytes:
    """`head`, then `data` in base64 lines; what is large is never there in pieces and as a whole."""
    if len(data) <= _LARGE:
        return b"".join((head, *base64_pieces(data)))
    characters = 4 * -(-len(data) // 3)
    size = len(head) + characters + 2 * -(-characters // _LINE)
    out = io.BytesIO()
    out.seek(size - 1)
    out.write(b"\n")  # all the room at once: growing would copy it
    out.seek(0)
    out.write(head)
    out.writelines(_pieces(data, _SMALL_PIECE_OCTETS))
    return out.getvalue()


def base64_lines(data: bytes | bytearray) -> bytes:
    """The same, joined."""
    return b"".join(base64_pieces(data))


def quoted_printable(text: bytes) -> bytes:
    """Text in CRLF lines as robust quoted-printable (RFC 2045 §6.7): no tabs, no `From ` and no dot begins a line."""
    # the codec learns its line end from the first line, and would write a lone LF if there were none
    encoded = binascii.b2a_qp(b"\r\n" + text, istext=True)[2:]
    return b"\r\n".join(
        # the codec also lets a line that ends with an encoded blank grow too long
        _requoted(line) if len(line) > MAX_ENCODED_LINE or b"\t" in line or line.startswith(_RISKY_STARTS) else line
        for line in encoded.split(b"\r\n")
    )


_UNIT = re.compile(rb"=[0-9A-F]{2}|[^=]")


def _requoted(line: bytes) -> bytes:
    """One line of quoted-printable again, with its tabs and risky beginnings encoded, in lines of 76 octets."""
    lines: list[bytes] = []
    current = b""
    for unit in _UNIT.findall(line):
        if unit == b"\t" or (unit in (b".", b"F") and not current):
            unit = b"=%02X" % unit[0]  # noqa: PLW2901
        if len(current) + len(unit) >= MAX_ENCODED_LINE:
            lines.append(current + b"=")
            current = b"=%02X" % unit[0] if unit in (b".", b"F") else unit
        else:
            current += unit
    lines.append(current + b"=" if line.endswith(b"=") else current)
    return b"\r\n".join(lines)
