"""DKIM signatures (RFC 6376) made and verified, with hashing and RSA in `cryptography`.

Relais signs relaxed/relaxed with rsa-sha256, never with `l=`, and signs more fields than there are: a field named once
more than it occurs cannot be added later (§8.15). It verifies everything RFC 6376, RFC 8301 and RFC 8463 still allow.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from smime.mime import Entity, Field, MimeError, parse_entity
from trust import digests

SIGNED_FIELDS = (
    "from",
    "to",
    "cc",
    "subject",
    "date",
    "message-id",
    "reply-to",
    "in-reply-to",
    "references",
    "mime-version",
    "content-type",
    "content-transfer-encoding",
    "content-disposition",
    "disposition-notification-to",
)
"""Each is named once for every time it occurs, and once more."""
MAX_SIGNATURES = 10
MAX_SIGNED_NAMES = 500
MIN_RSA_BITS = 1024
"""What a verifier must refuse below (RFC 8301 §3.2)."""


@dataclass(frozen=True, slots=True)
class DkimKey:
    """The key of one selector of one domain."""

    domain: str
    selector: str
    key: rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class DkimResult:
    """What one DKIM-Signature field is worth (RFC 6376 §3.9, RFC 8601 §2.7.1)."""

    domain: str
    """`d=`, lower case; empty when unreadable."""
    selector: str
    result: Literal["pass", "fail", "permerror", "temperror"]
    detail: str = ""
    """Why it is no `pass`; of one, `testing` when the key's owner says that it means nothing yet (§3.6.1, `t=y`)."""


def public_record(key: rsa.RSAPrivateKey) -> str:
    """The `p=` value to publish: SubjectPublicKeyInfo in base64 (RFC 6376 §3.6.1)."""
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return b64encode(public).decode("ascii")


# --- Signing ---------------------------------------------------------------------------------------------------------


def sign_dkim(message: bytes, key: DkimKey, at: datetime | None = None, *, body: Entity | None = None) -> bytes:
    """The DKIM-Signature field, CRLF included, to put before `message` (RFC 5322, CRLF lines).

    With `body`, `message` is its header section only, up to the empty line, and the body is that of `body`: so what is
    large need not be joined to be signed. Signed as of `at` or now. Raises ValueError when the message has no From
    field or its header is unreadable.
    """
    entity = parse_entity(message)
    occurrences = [field.name for field in entity.fields]
    if "from" not in occurrences:
        raise MimeError("no From field")
    names = [name for name in SIGNED_FIELDS for _ in range(occurrences.count(name) + 1)]
    value = "\r\n ".join(
        (
            f"v=1; a=rsa-sha256; c=relaxed/relaxed; d={key.domain};",
            f"s={key.selector}; t={int((at or datetime.now(UTC)).timestamp())};",
            _folded_names(tuple(names)),
            f"bh={b64encode(_body_hash(body or entity, relaxed=True)[0]).decode('ascii')};",
            "b=",
        )
    )
    unsigned = Field("dkim-signature", f"DKIM-Signature: {value}\r\n".encode("ascii"))
    signature = key.key.sign(
        _signed_header(entity.fields, names, unsigned, relaxed=True), padding.PKCS1v15(), hashes.SHA256()
    )
    encoded = b64encode(signature)
    lines = [encoded[start : start + 72] for start in range(0, len(encoded), 72)]
    return unsigned.raw.removesuffix(b"\r\n") + b"\r\n ".join(lines) + b"\r\n"


@lru_cache(maxsize=256)
def _folded_names(names: tuple[str, ...]) -> str:
    """`h=` in lines of at most 76 characters."""
    text = line = "h="
    for index, name in enumerate(names):
        word = name + (";" if index == len(names) - 1 else ":")
        if len(line) + len(word) > 74:
            text, line = text + "\r\n  ", "  "
        text, line = text + word, line + word
    return text


# --- Canonical forms (§3.4) ------------------------------------------------------------------------------------------


def relaxed_field(field: Field) -> bytes:
    value = _one_space(field.raw.partition(b":")[2].replace(b"\r\n", b"")).strip(b" ")
    return field.name.encode("ascii") + b":" + value + b"\r\n"


def _one_space(data: bytes) -> bytes:
    """Every run of spaces and tabs as one space: each pass halves the longest run."""
    data = data.replace(b"\t", b" ")
    while b"  " in data:
        data = data.replace(b"  ", b" ")
    return data


def _body_hash(entity: Entity, *, relaxed: bool) -> tuple[bytes, int]:
    """SHA-256 and length in octets of the canonical body (§3.4.3, §3.4.4)."""
    data: bytes | memoryview = entity.body
    # base64 has neither, and is hashed where it stands
    if relaxed and any(entity.source.find(each, entity.body_start, entity.stop) >= 0 for each in (b" ", b"\t")):
        data = _one_space(bytes(data)).replace(b" \r\n", b"\r\n")
        data = data.removesuffix(b" ")  # a last line without CRLF
    end = _without_empty_lines(data)
    running = hashlib.sha256()
    digests.update(running, memoryview(data)[:end])
    if end or not relaxed:
        running.update(b"\r\n")
        end += 2
    return running.digest(), end


def _without_empty_lines(data: bytes | memoryview) -> int:
    """Where `data` ends without the line ends at its end; there may be millions."""
    size = len(data)
    if data[size - 4 :] != b"\r\n\r\n":
        return size - 2 if data[size - 2 :] == b"\r\n" else size
    octets = bytes(data)
    stripped = octets.rstrip(b"\r\n")
    # in what was stripped, CR and LF take turns from the end up to where one stands twice
    twice = max(octets.rfind(b"\r\r", len(stripped)), octets.rfind(b"\n\n", len(stripped)))
    start = max(twice + 1, len(stripped))
    return start + (octets[start : start + 1] == b"\n")


def _signed_header(fields: Sequence[Field], names: Sequence[str], signature: Field, *, relaxed: bool) -> bytes:
    """The fields named, the last of several first (§5.4.2), then the signature field without `b=` and CRLF (§3.7)."""
    waiting: dict[str, list[Field]] = {}
    for field in fields:
        waiting.setdefault(field.name, []).append(field)
    canonical = relaxed_field if relaxed else _simple_field
    pieces = [canonical(waiting[name].pop()) for name in names if waiting.get(name)]
    return b"".join([*pieces, canonical(signature).removesuffix(b"\r\n")])


def _simple_field(field: Field) -> bytes:
    return field.raw


# --- Verifying -------------------------------------------------------------------------------------------------------


class VerdictError(Exception):
    """Why a signature is not right."""

    def __init__(self, result: Literal["fail", "permerror", "temperror"], detail: str) -> None:
        super().__init__(detail)
        self.result = result
        self.detail = detail


def verify_dkim(
    message: bytes, public_key: Callable[[str, str], str | None], at: datetime | None = None
) -> tuple[DkimResult, ...]:
    """One result for each DKIM-Signature field, ten at most, in order. Never raises on bad input.

    `public_key(domain, selector)` is what the domain publishes: a whole record or only its `p=` value; None when it
    publishes nothing, and LookupError or OSError when that could not be found out. `at` (now by default) is compared
    with `x=`. Bodies longer than `l=` says fail: what follows is not signed (§8.2).
    """
    try:
        entity = parse_entity(message)
    except MimeError:
        return ()
    fields = [field for field in entity.fields if field.name == "dkim-signature"][:MAX_SIGNATURES]
    body = Body(entity)
    return tuple(_verify(entity, body, field, public_key, at or datetime.now(UTC)) for field in fields)


def signatures_of(entity: Entity) -> tuple[tuple[str, str], ...]:
    """Domain and selector of each DKIM-Signature field that names both, as `verify_dkim` will ask for them."""
    found = []
    for field in [field for field in entity.fields if field.name == "dkim-signature"][:MAX_SIGNATURES]:
        try:
            tags = parse_tags(field.value)
        except VerdictError:
            continue
        if is_named(tags):
            found.append((tags["d"].lower(), tags["s"]))
    return tuple(dict.fromkeys(found))


class Body:
    """The body's hash in each canonical form, made when first asked for."""

    def __init__(self, entity: Entity) -> None:
        self._entity = entity
        self._known: dict[bool, tuple[bytes, int]] = {}

    def hash(self, *, relaxed: bool) -> tuple[bytes, int]:
        if relaxed not in self._known:
            self._known[relaxed] = _body_hash(self._entity, relaxed=relaxed)
        return self._known[relaxed]


def _verify(
    entity: Entity, body: Body, field: Field, public_key: Callable[[str, str], str | None], at: datetime
) -> DkimResult:
    domain = selector = ""
    try:
        tags = parse_tags(field.value)
        domain, selector = tags.get("d", "").lower(), tags.get("s", "")
        testing = check_signature(entity, body, field, tags, public_key, at)
    except VerdictError as verdict:
        return DkimResult(domain, selector, verdict.result, verdict.detail)
    return DkimResult(domain, selector, "pass", "testing" if testing else "")


def parse_tags(text: str) -> dict[str, str]:
    """A tag-list (§3.2), values without surrounding white space."""
    tags: dict[str, str] = {}
    for item in text.split(";"):
        name, equals, value = item.partition("=")
        name = name.strip()
        if not equals and not name:
            continue
        if not equals or not name.isidentifier() or name in tags:
            raise VerdictError("permerror", "tag list")
        tags[name] = value.strip()
    return tags


def check_signature(
    entity: Entity,
    body: Body,
    field: Field,
    tags: dict[str, str],
    public_key: Callable[[str, str], str | None],
    at: datetime,
) -> bool:
    """Whether the key is in testing. Raises `VerdictError` unless the signature is right."""
    domain = tags.get("d", "").lower()
    if tags.get("v") != "1" or not all(tags.get(tag) for tag in ("a", "b", "bh", "d", "h", "s")):
        raise VerdictError("permerror", "a required tag is missing")
    if tags["a"] not in ("rsa-sha256", "ed25519-sha256"):
        raise VerdictError("permerror", "algorithm")
    identity_domain = tags.get("i", f"@{domain}").rpartition("@")[2].lower()
    if identity_domain != domain and not identity_domain.endswith(f".{domain}"):
        raise VerdictError("permerror", "i= is outside d=")
    header_form, _, body_form = tags.get("c", "simple/simple").partition("/")
    body_form = body_form or "simple"
    if {header_form, body_form} - {"simple", "relaxed"}:
        raise VerdictError("permerror", "canonicalization")
    names = [name.strip().lower() for name in tags["h"].split(":")]
    if "from" not in names or len(names) > MAX_SIGNED_NAMES:
        raise VerdictError("permerror", "h=")
    _check_times(tags, at)
    if "l" in tags and (_DIGITS.fullmatch(tags["l"]) is None or len(tags["l"]) > 76):
        raise VerdictError("permerror", "l=")

    body_hash = decode(tags["bh"])
    signature = decode(tags["b"])
    key, flags = published_key(tags, public_key)
    if "s" in flags and identity_domain != domain:
        raise VerdictError("permerror", "i= is outside d=")
    digest, length = body.hash(relaxed=body_form == "relaxed")
    if int(tags.get("l", length)) != length:
        raise VerdictError("fail", "l= is not the length of the body")
    if digest != body_hash:
        raise VerdictError("fail", "body hash")
    others = [other for other in entity.fields if other is not field]
    data = _signed_header(others, names, without_signature(field), relaxed=header_form == "relaxed")
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
        else:
            key.verify(signature, hashlib.sha256(data).digest())  # RFC 8463 §3
    except InvalidSignature:
        raise VerdictError("fail", "signature") from None
    return "y" in flags


_DIGITS = re.compile(r"[0-9]+")


def _check_times(tags: dict[str, str], at: datetime) -> None:
    for tag in ("t", "x"):
        if tag in tags and (_DIGITS.fullmatch(tags[tag]) is None or len(tags[tag]) > 12):
            raise VerdictError("permerror", f"{tag}=")
    if "t" in tags and "x" in tags and int(tags["x"]) <= int(tags["t"]):
        raise VerdictError("permerror", "x=")
    if "x" in tags and at.timestamp() > int(tags["x"]):
        raise VerdictError("fail", "expired")


def decode(value: str) -> bytes:
    try:
        return b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError):
        raise VerdictError("permerror", "base64") from None


_SIGNATURE_VALUE = re.compile(rb"((?:^|;)[ \t\r\n]*b[ \t\r\n]*=)[^;]*")


def without_signature(field: Field) -> Field:
    """The field with an empty `b=` (§3.7); its line end stays."""
    name, _, value = field.raw.removesuffix(b"\r\n").partition(b":")
    return Field(field.name, name + b":" + _SIGNATURE_VALUE.sub(rb"\1", value, count=1) + b"\r\n")


_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")
"""As `d=` and `s=` are written: A-labels, without a final dot (RFC 6376 §3.5, RFC 8616 §5)."""


def is_named(tags: dict[str, str]) -> bool:
    """Whether these tags name a domain and a selector whose key may be asked for."""
    return all(len(tags.get(tag, "")) <= 253 and _NAME.fullmatch(tags.get(tag, "")) for tag in ("d", "s"))


def published_key(
    tags: dict[str, str], public_key: Callable[[str, str], str | None]
) -> tuple[rsa.RSAPublicKey | ed25519.Ed25519PublicKey, frozenset[str]]:
    """The key and the flags (`t=`) of its record."""
    if not is_named(tags):
        raise VerdictError("permerror", "domain or selector")
    try:
        published = public_key(tags["d"].lower(), tags["s"])
    except (LookupError, OSError):
        raise VerdictError("temperror", "no answer about the key") from None
    if published is None:
        raise VerdictError("permerror", "no key")
    record = parse_tags(published) if ";" in published or re.match(r"\s*[a-z]\s*=", published) else {"p": published}
    kind = tags["a"].partition("-")[0]
    if record.get("v", "DKIM1") != "DKIM1" or (record.get("k", "rsa") != kind and "k" in record):
        raise VerdictError("permerror", "key record")
    if "h" in record and "sha256" not in [name.strip() for name in record["h"].split(":")]:
        raise VerdictError("permerror", "key record")
    if not {"*", "email"} & {service.strip() for service in record.get("s", "*").split(":")}:
        raise VerdictError("permerror", "key record")
    flags = frozenset(flag.strip() for flag in record.get("t", "").split(":"))
    if not record.get("p"):
        raise VerdictError("permerror", "key revoked")
    encoded = decode(record["p"])
    try:
        if kind == "ed25519":
            return ed25519.Ed25519PublicKey.from_public_bytes(encoded), flags
        key = load_der_public_key(encoded)
    except (ValueError, UnsupportedAlgorithm):
        raise VerdictError("permerror", "key") from None
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size < MIN_RSA_BITS:
        raise VerdictError("permerror", "key")
    return key, flags
