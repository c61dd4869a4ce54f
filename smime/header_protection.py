"""Header protection (RFC 9788): the message's own header fields, Subject above all, inside what is signed or encrypted.

Written, the fields are copied onto the entity that is about to be protected, and what the outer header shall tell is
recorded there too. Read, they are compared with the outer header. Whether they may be believed is for `smime.opening`
to say: it knows whether the protection held and whether From is the same inside and outside.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import pybase64

from smime import canonical
from smime.mime import ContentType, Entity, Field, MimeError, parse_content_type, parse_entity, split_multipart
from smime.octets import has_controls
from smime.verdict import HeaderProtection, HeaderProtectionScheme
from smime.words import decoded_words

OBSCURED_SUBJECT = "[...]"

_TRANSPORT = frozenset(
    (
        "authentication-results",
        "bcc",
        "delivered-to",
        "dkim-signature",
        "domainkey-signature",
        "hp-outer",
        "mime-version",
        "received",
        "received-spf",
        "resent-bcc",
        "return-path",
        "x-original-to",
    )
)
"""Written by relays, or for nobody to read; `arc-*` and `content-*` are the same."""
USER_FACING = frozenset(
    (
        "cc",
        "comments",
        "date",
        "disposition-notification-to",
        "errors-to",
        "followup-to",
        "from",
        "in-reply-to",
        "keywords",
        "list-post",
        "mail-followup-to",
        "mail-reply-to",
        "references",
        "reply-to",
        "resent-cc",
        "resent-date",
        "resent-from",
        "resent-message-id",
        "resent-reply-to",
        "resent-sender",
        "resent-to",
        "return-receipt-to",
        "sender",
        "subject",
        "thread-topic",
        "to",
    )
)
"""What people read, answer to, or find a message by: where a protected header lacks one of these, the outer one is a
stranger's, even if an honest one's, like a list's or a resender's."""
_BLIND = ("bcc", "resent-bcc")
_HIDDEN = ("comments", "keywords", "thread-topic")
"""RFC 9788 §3.2.2; Outlook writes the subject into Thread-Topic once more."""
_HIDDEN_SUBJECTS = frozenset(("", "...", OBSCURED_SUBJECT))
_LEGACY_CLASS = b"header-protection-legacy-display"
_TEXT_CHARSETS = {
    "us-ascii": "utf-8",
    "utf-8": "utf-8",
    "iso-8859-1": "iso-8859-1",
    "iso-8859-15": "iso-8859-15",
    "windows-1252": "windows-1252",
}
_MAX_DEPTH = 10


class HeaderPolicy(Enum):
    """What the outer header of a message with a protected header tells (RFC 9788 §3.2)."""

    CLEAR = "clear"
    """For messages that are signed only: everything; nothing could be hidden."""
    OPEN = "no-confidentiality"
    """For encrypted messages: everything all the same."""
    BASELINE = "baseline"
    """For encrypted messages: `Subject: [...]`, neither Keywords, Comments nor Thread-Topic."""


# --- Writing ---------------------------------------------------------------------------------------------------------


def protect_header(
    header: bytes, entity: bytes, policy: HeaderPolicy, *, legacy_display: bool = True
) -> tuple[bytes, bytes]:
    """`entity` with the fields of `header` copied onto it, and the header to send around it when it is protected.

    `header` and `entity` are as `smime.mime.split_message` gives them; sign the entity, then encrypt it unless the
    policy is CLEAR, then `join_message`. `legacy_display`: hidden fields are told at the top of the text too, for
    readers that do not know RFC 9788 (§2.1.2). An entity that is signed or encrypted already, or whose sender has
    protected the header, comes back as it is, and so does the header: nothing may be added to it. Bcc and Resent-Bcc
    never come back. Raises MimeError when the entity is unreadable or a field is not 7-bit.
    """
    root = parse_entity(entity)
    content_type = root.content_type()
    fields = parse_entity(header + b"\r\n").fields
    if any(field.name in _BLIND for field in fields):
        fields = tuple(field for field in fields if field.name not in _BLIND)
        header = b"".join(field.raw for field in fields)
    if _is_closed(content_type):
        return entity, header
    copied = [field for field in fields if protectable(field.name)]
    inside = [_line(field) for field in copied]
    outer = header
    parameters = b'hp="clear"'
    if policy is not HeaderPolicy.CLEAR:
        parameters = b'hp="cipher"'
        shown = [(field, _shown(field, policy)) for field in copied]
        inside += [_folded(b"HP-Outer: " + line) for _, line in shown if line is not None]
        hidden = {id(field): line for field, line in shown}
        lines = [hidden[id(field)] if id(field) in hidden else _line(field) for field in fields]
        outer = b"".join(line for line in lines if line is not None)
        hidden_fields = [field for field, line in shown if line != _line(field) and field.name != "thread-topic"]
        if legacy_display and hidden_fields:
            body = _with_display(root, [_readable(field) for field in hidden_fields], 1)
            root = parse_entity(body)
    if not canonical.is_seven_bit(b"".join(inside)):
        raise MimeError("a header field is not 7-bit")
    own = [
        _with_parameters(field, parameters) if field.name == "content-type" else canonical.crlf(field.raw)
        for field in root.fields
        if field.name.startswith("content-")
    ]
    if not root.values("content-type"):
        own.insert(0, b"Content-Type: text/plain; charset=us-ascii; " + parameters + b"\r\n")
    return b"".join([*inside, *own, b"\r\n", root.body]), outer


def protectable(name: str) -> bool:
    """Whether fields of that name (lower case) are the sender's own, to be copied inside and believed from there."""
    return name not in _TRANSPORT and not name.startswith(("content-", "arc-", "x-relais-"))


def _is_closed(content_type: ContentType) -> bool:
    kind = content_type.media_type
    return (
        content_type.parameters.get("hp", "").strip().lower() in ("clear", "cipher")
        or kind in ("multipart/signed", "multipart/encrypted")
        or kind.startswith(("application/pkcs7-", "application/x-pkcs7-"))
    )


def _line(field: Field) -> bytes:
    """The field in one canonical form: no blank before the colon, CRLF at each line's end."""
    name = field.raw[: len(field.name)]
    value = canonical.crlf(field.raw.partition(b":")[2])
    return name + b":" + (value if value.endswith(b"\r\n") else value + b"\r\n")


def _shown(field: Field, policy: HeaderPolicy) -> bytes | None:
    """What the outer header tells of a field; None for nothing at all (RFC 9788 §3.2.2)."""
    if policy is HeaderPolicy.BASELINE:
        if field.name == "subject":
            return f"Subject: {OBSCURED_SUBJECT}\r\n".encode("ascii")
        if field.name in _HIDDEN:
            return None
    return _line(field)


def _folded(line: bytes) -> bytes:
    """A field whose first line may have become too long, folded where it has a blank. Raises MimeError."""
    first, _, rest = line.partition(b"\r\n")
    if len(first) <= canonical.MAX_LINE:
        return line
    at = max(first.rfind(blank, len(b"HP-Outer: "), canonical.MAX_LINE) for blank in (b" ", b"\t"))
    if at < 0 or not first[at:].strip():
        at = len(b"HP-Outer:")
    folded = first[:at] + b"\r\n" + first[at:] + b"\r\n" + rest
    if max(map(len, folded.split(b"\r\n"))) > canonical.MAX_LINE:
        raise MimeError("a header field is too long")
    return folded


def _with_parameters(field: Field, parameters: bytes) -> bytes:
    content_type = parse_content_type(field.value)
    if "hp" in content_type.parameters:  # one that means nothing, in the place where ours belongs
        kept = {name: value for name, value in content_type.parameters.items() if name != "hp"}
        if any(not value.isascii() or '"' in value or "\\" in value for value in kept.values()):
            raise MimeError("content type parameters")
        line = b"Content-Type: " + content_type.media_type.encode("ascii", "replace")
        line += b"".join(f';\r\n {name}="{value}"'.encode("ascii", "replace") for name, value in kept.items())
        return line + b";\r\n " + parameters + b"\r\n"
    raw = canonical.crlf(field.raw).rstrip(b"\r\n \t;")
    return raw + b";\r\n " + parameters + b"\r\n"


def _readable(field: Field) -> str:
    """`Subject: text`, encoded words decoded, on one line."""
    name = field.raw[: len(field.name)].decode("ascii")
    return f"{name}: {' '.join(decoded_words(field.value).split())}"


def _with_display(entity: Entity, lines: list[str], depth: int) -> bytes:
    """The entity with `lines` at the top of its main body parts (RFC 9788 §5.2.2, §5.2.3); unchanged where it has none
    that can be changed."""
    whole = bytes(entity.whole)
    content_type = entity.content_type()
    kind = content_type.media_type
    if content_type.parameters.get("hp-legacy-display") or depth > _MAX_DEPTH:
        return whole
    if kind in ("multipart/mixed", "multipart/related", "multipart/alternative"):
        ranges = split_multipart(entity, content_type.parameters.get("boundary", ""))
        main = ranges if kind == "multipart/alternative" else ranges[:1]
        pieces: list[bytes] = []
        position = entity.start
        for start, stop in main:
            changed = _with_display(parse_entity(entity.source, start, stop), lines, depth + 1)
            pieces += [bytes(entity.source[position:start]), changed]
            position = stop
        return b"".join([*pieces, bytes(entity.source[position : entity.stop])])
    charset = _TEXT_CHARSETS.get(content_type.parameters.get("charset", "us-ascii").lower())
    attached = any(value.lower().startswith("attachment") for value in entity.values("content-disposition"))
    if kind not in ("text/plain", "text/html") or charset is None or attached:
        return whole
    try:
        text = bytes(entity.decoded()).decode(charset)
    except ValueError:  # MimeError among them; a charset that is another one than it says cannot be made UTF-8
        return whole
    text = "\r\n".join([*lines, "", text]) if kind == "text/plain" else _html_display(text, lines)
    kept = [
        canonical.crlf(field.raw)
        for field in entity.fields
        if field.name not in ("content-type", "content-transfer-encoding")
    ]
    extra = "".join(
        f'; {name}="{content_type.parameters[name]}"'
        for name in ("format", "delsp")
        if content_type.parameters.get(name, "").isalnum()
    )
    header = f'Content-Type: {kind}; charset=utf-8{extra}; hp-legacy-display="1"\r\nContent-Transfer-Encoding: base64'
    body = pybase64.encodebytes(text.encode("utf-8")).replace(b"\n", b"\r\n")
    return b"".join([*kept, header.encode("ascii"), b"\r\n\r\n", body])


def _html_display(text: str, lines: list[str]) -> str:
    """The element goes to the beginning of the body (RFC 9788 §5.2.3)."""
    element = f'<div class="{_LEGACY_CLASS.decode()}"><pre>{html.escape(chr(10).join(lines))}</pre></div>'
    at = text.lower().find("<body")
    at = text.find(">", at) + 1 if at >= 0 else 0
    return text[:at] + element + text[at:]


# --- Reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claim:
    """What a cryptographic payload says about the header; to be believed when its protection holds, not before."""

    scheme: HeaderProtectionScheme
    fields: tuple[Field, ...] = ()
    """The sender's fields, inside."""
    outer: tuple[tuple[str, str], ...] = ()
    """Name, lower case, and value of what the sender wrote outside (HP-Outer)."""
    older: bool = False
    """Marked `protected-headers="v1"`, a draft that S/MIME readers never agreed on: not believed."""


def claim(payload: Entity, content_type: ContentType) -> Claim:
    """Read the header of the innermost entity (RFC 9788 §4.2)."""
    older = content_type.parameters.get("protected-headers", "").lower() == "v1"
    scheme = {"clear": HeaderProtectionScheme.CLEAR, "cipher": HeaderProtectionScheme.CIPHER}.get(
        content_type.parameters.get("hp", "").strip().lower()
    )
    if scheme is None:
        return Claim(HeaderProtectionScheme.NONE, older=older)
    told = [field.value.partition(":") for field in payload.fields if field.name == "hp-outer"]
    outer = tuple((name.strip().lower(), value) for name, colon, value in told if colon)
    return Claim(scheme, _own(payload.fields), outer, older)


def wrapped(message: Entity) -> Claim:
    """The header of a message/rfc822 that is the payload (RFC 8551 §3.1)."""
    return Claim(HeaderProtectionScheme.WRAPPED, _own(message.fields))


def _own(fields: Iterable[Field]) -> tuple[Field, ...]:
    return tuple(field for field in fields if protectable(field.name))


def compare(claimed: Claim, outer: Sequence[Field], encrypted: bool) -> HeaderProtection:
    """Compare a claim that may be believed with the outer header as it arrived."""
    inside = _values((field.name, field.value) for field in claimed.fields)
    actual = _values((field.name, field.value) for field in outer if protectable(field.name))
    sent = inside
    if claimed.scheme is HeaderProtectionScheme.CIPHER:
        sent = _values(claimed.outer)
    elif claimed.scheme is HeaderProtectionScheme.WRAPPED and encrypted:
        # there is no record of what the sender wrote outside: what is missing there, he left out
        sent = {name: values for name, values in inside.items() if name in actual}
        if actual.get("subject", [""])[0] in _HIDDEN_SUBJECTS and "subject" in actual:
            sent["subject"] = actual["subject"]
    hidden = encrypted and claimed.scheme is not HeaderProtectionScheme.CLEAR
    told = {name for name in {*inside, *sent, *USER_FACING} if protectable(name)}
    return HeaderProtection(
        claimed.scheme,
        tuple(inside),
        tuple(name for name in inside if sent.get(name) != inside[name]) if hidden else (),
        tuple(sorted(name for name in told if actual.get(name) != sent.get(name))),
    )


def _values(fields: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Values by name, in order, white space evened out: relays fold anew."""
    found: dict[str, list[str]] = {}
    for name, value in fields:
        found.setdefault(name, []).append(" ".join(value.split()))
    return found


def shown_header(outer: Sequence[Field], claimed: Claim) -> list[bytes]:
    """The header to hand on: the protected fields in the place of the outer ones of the same names; outer fields that
    people read or answer to, and that the sender did not write, are left out (RFC 9788 §4.5)."""
    inside = [field for field in claimed.fields if not has_controls(field)]
    names = USER_FACING | {field.name for field in inside}
    kept = [field.raw for field in outer if field.name not in names and not field.name.startswith("content-")]
    return kept + [_line(field) for field in inside]
