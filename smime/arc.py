"""The Authenticated Received Chain (RFC 8617): what the servers on the way say they found, each sealing what was there.

Verified, never written: a chain proves who passed a message on, not that what they say is true. Sealers are as many as
a stranger likes, so the chain is bounded before the first signature is looked at. Keys, canonical forms and algorithms
are those of DKIM (§4).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from smime.dkim import (
    Body,
    VerdictError,
    check_signature,
    decode,
    is_named,
    parse_tags,
    published_key,
    relaxed_field,
    without_signature,
)
from smime.mime import Entity, Field, MimeError, parse_entity

MAX_INSTANCES = 50
"""The most a chain may have (§4.2.1); their keys are asked for all at once."""
_RESULTS, _SIGNATURE, _SEAL = "arc-authentication-results", "arc-message-signature", "arc-seal"
_KINDS = (_RESULTS, _SIGNATURE, _SEAL)


@dataclass(frozen=True, slots=True)
class ArcResult:
    """What the chain is worth (§5.2, RFC 8601 §2.7)."""

    result: Literal["none", "pass", "fail"]
    domain: str = ""
    """`d=` of the last seal."""
    detail: str = ""
    """Why it fails, in our own words."""


class _BrokenError(Exception):
    """The fields are no chain."""


@dataclass(frozen=True, slots=True)
class _Set:
    """One instance."""

    fields: dict[str, Field]
    signature: dict[str, str]
    """Tags of its ARC-Message-Signature."""
    seal: dict[str, str]


def has_chain(header: Entity) -> bool:
    """Whether any field of ARC is there, complete or not."""
    return any(field.name in _KINDS for field in header.fields)


def keys_of(header: Entity) -> tuple[tuple[str, str], ...]:
    """Domain and selector of every signature `verify_arc` will ask about; empty when it will ask about none."""
    try:
        chain = _chain(header)
    except _BrokenError:
        return ()
    last = [chain[-1].signature] if chain else []
    found = [tags for tags in (*last, *(each.seal for each in chain)) if is_named(tags)]
    return tuple(dict.fromkeys((tags["d"].lower(), tags["s"]) for tags in found))


def verify_arc(message: bytes, public_key: Callable[[str, str], str | None], at: datetime | None = None) -> ArcResult:
    """The chain of a message with CRLF lines, as §5.2 has it; `public_key` as in `smime.dkim.verify_dkim`.

    Never raises on bad input. A key nobody can say anything about now fails the chain, and the detail says so.
    """
    try:
        entity = parse_entity(message)
        chain = _chain(entity)
    except (MimeError, _BrokenError) as error:
        return ArcResult("fail", "", str(error) if isinstance(error, _BrokenError) else "header")
    if not chain:
        return ArcResult("none")
    last = chain[-1]
    domain = last.seal.get("d", "").lower()
    try:
        if last.seal.get("cv") == "fail":
            raise VerdictError("fail", "the last sealer found it broken")
        names = [name.strip().lower() for name in last.signature.get("h", "").split(":")]
        if _SEAL in names:
            raise VerdictError("permerror", "h=")
        tags = {name: value for name, value in last.signature.items() if name != "i"} | {"v": "1"}
        check_signature(entity, Body(entity), last.fields[_SIGNATURE], tags, public_key, at or datetime.now(UTC))
        # one after the other, each over what stood there before it: nothing is read twice however long the chain
        before = b""
        for one in chain:
            before = _check_seal(one, before, public_key)
    except VerdictError as verdict:
        return ArcResult("fail", domain, verdict.detail)
    return ArcResult("pass", domain)


def _chain(header: Entity) -> list[_Set]:
    """Every instance from 1 on, each with its three fields (§5.2, steps 1 to 3). Raises `_BrokenError`."""
    found: dict[int, dict[str, Field]] = {}
    for field in header.fields:
        if field.name not in _KINDS:
            continue
        instance = _instance(field)
        if not 0 < instance <= MAX_INSTANCES:
            raise _BrokenError("instance")
        if found.setdefault(instance, {}).setdefault(field.name, field) is not field:
            raise _BrokenError("a field stands twice in one instance")
    chain = []
    for number in range(1, len(found) + 1):
        fields = found.get(number, {})
        if len(fields) != len(_KINDS):
            raise _BrokenError("an instance is not complete")
        try:
            one = _Set(fields, parse_tags(fields[_SIGNATURE].value), parse_tags(fields[_SEAL].value))
        except VerdictError:
            raise _BrokenError("tag list") from None
        last = number == len(found)
        allowed = ("none",) if number == 1 else ("pass",)
        if one.seal.get("cv") not in (*allowed, *(("fail",) if last else ())) or "h" in one.seal:
            raise _BrokenError("cv=")
        chain.append(one)
    return chain


def _instance(field: Field) -> int:
    """`i=`, the first tag of results and anywhere in the others; 0 when it is not a number."""
    for item in field.value.split(";"):
        name, _, value = item.partition("=")
        if name.strip() == "i":
            value = value.strip()
            return int(value) if value.isdecimal() and value.isascii() and len(value) <= 3 else 0
        if field.name == _RESULTS:
            break
    return 0


def _check_seal(one: _Set, before: bytes, public_key: Callable[[str, str], str | None]) -> bytes:
    """The seal covers its own instance and `before`, the canonical form of all earlier ones (§5.1.1); returns both
    together, for the next. Raises `VerdictError`."""
    tags = one.seal
    if not all(tags.get(tag) for tag in ("a", "b", "d", "s")):
        raise VerdictError("permerror", "a required tag is missing")
    if tags["a"] not in ("rsa-sha256", "ed25519-sha256"):
        raise VerdictError("permerror", "algorithm")
    signature = decode(tags["b"])
    key, _ = published_key({name: value for name, value in tags.items() if name != "i"}, public_key)
    before += relaxed_field(one.fields[_RESULTS]) + relaxed_field(one.fields[_SIGNATURE])
    seal = one.fields[_SEAL]
    data = before + relaxed_field(without_signature(seal)).removesuffix(b"\r\n")
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
        else:
            key.verify(signature, hashlib.sha256(data).digest())  # RFC 8463 §3
    except InvalidSignature:
        raise VerdictError("fail", "seal") from None
    return before + relaxed_field(seal)
