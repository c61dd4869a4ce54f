"""Whether a token of an OpenID provider is to be believed, and whom it names (Pro Santé Connect in France).

Signatures and key sets are PyJWT's work: small, kept for ten years, without dependencies besides `cryptography`. What
it leaves to its users is decided here (RFC 8725): how long a token may be, that its JSON says each thing once, which
algorithms there are (public keys only, so neither `none` nor HMAC), that the key found by `kid` in the provider's own
set is of the kind the algorithm needs, that nothing in the token can bring a key of its own; then who issued it, for
whom, for what and when.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import jwt

from trust.catalogue import TOKEN_KEYS_UNAVAILABLE, TOKEN_REFUSED
from trust.oidc_keys import ALGORITHMS, ProviderKeys
from trust.refusals import Refused

MAX_TOKEN = 16 * 1024
"""Characters. Tokens of Pro Santé Connect, with all activities of a professional in them, have some 4,000."""
MAX_DEPTH = 32
MAX_LIFETIME = 86400.0
"""From `iat` to `exp`: a token that lives longer is a password that cannot be changed."""
_SEGMENT = re.compile(r"[A-Za-z0-9_-]+")
_FORBIDDEN = frozenset({"jwk", "jku", "x5c", "x5u", "x5t", "crit", "b64", "zip", "enc"})
"""Header fields that bring a key, or change what the rest means (RFC 7515 §4.1, RFC 7797)."""
_TIMES = ("exp", "nbf", "iat")
_FARTHEST = 1e11


class TokenKind(Enum):
    ACCESS = "access"
    ID = "id"


@dataclass(frozen=True, slots=True)
class ProviderOptions:
    """One provider, as we have registered with it."""

    issuer: str
    """Exactly as its tokens say it."""
    audiences: frozenset[str]
    """Values of `aud`, or for an access token of `azp` too, one of which must be ours: our client identifiers.
    (Keycloak, and with it Pro Santé Connect, names the client of an access token in `azp`.)"""
    algorithms: tuple[str, ...] = ("RS256", "PS256", "ES256", "ES384", "EdDSA")
    claims: tuple[str, ...] = ("sub", "SubjectNameID", "preferred_username")
    """Claims by which a token can be linked to an identity: those the provider, and not its user, decides."""
    leeway_seconds: float = 60.0
    levels: frozenset[str] = frozenset()
    """Values of `acr` that are enough (Pro Santé Connect: `eidas1`, `eidas2`...); empty: all, and none."""

    def __post_init__(self) -> None:
        if not self.issuer or not self.audiences:
            raise ValueError("a provider needs an issuer and an audience")
        if not self.algorithms or any(each not in ALGORITHMS for each in self.algorithms):
            raise ValueError(f"algorithms must be among {', '.join(ALGORITHMS)}")
        if not self.claims or not 0 <= self.leeway_seconds <= 300:
            raise ValueError("a provider needs a claim that names somebody, and a leeway of at most 300 s")


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a believed token names."""

    issuer: str
    claims: tuple[tuple[str, str], ...] = field(repr=False)
    """Of `ProviderOptions.claims`, those it has, with their values."""
    expires_at: float
    """UNIX seconds; what was opened with the token should end then."""
    level: str
    """`acr`: how the person proved who they are (`eidas1`...); empty when it does not say."""


class OidcProvider:
    """Judges tokens of one issuer, from memory. Thread-safe."""

    def __init__(self, options: ProviderOptions, keys: ProviderKeys, *, clock: Callable[[], float] = time.time) -> None:
        self.options = options
        self.keys = keys
        self._clock = clock

    def check(self, token: str, kind: TokenKind = TokenKind.ACCESS, nonce: str | None = None) -> Subject | Refused:
        """Whom the token names. `nonce` must then be the one of an ID token (OpenID Connect Core §3.1.3.7 (11)).

        Refused with `trust.token-refused`, its detail the rule that was broken, or `trust.token-keys-unavailable` when
        the provider's keys are not known now. Never raises on bad input, never calls the provider.
        """
        read = _read(token)
        if isinstance(read, str):
            return _refused(read)
        header, _ = read
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self.options.algorithms:
            return _refused("algorithm")
        if kid is not None and not isinstance(kid, str):
            return _refused("malformed")
        keys = self.keys.find(algorithm, kid)
        if keys is None:
            return Refused(TOKEN_KEYS_UNAVAILABLE)
        if not keys:
            return _refused("unknown-key")
        payload: dict[str, Any] | None = None
        for key in keys:
            try:
                payload = jwt.decode(token, key, [algorithm], options=_SIGNATURE_ONLY)  # type: ignore[arg-type]
                break
            except jwt.InvalidSignatureError:
                continue
            except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
                return _refused("malformed")
        if payload is None:
            return _refused("signature")
        broken = self._broken_rule(header, payload, kind, nonce)
        if broken:
            return _refused(broken)
        claims = tuple(
            (name, value) for name in self.options.claims if isinstance(value := payload.get(name), str) and value
        )
        return Subject(self.options.issuer, claims, float(payload["exp"]), _level(payload))

    def _broken_rule(
        self, header: Mapping[str, Any], payload: Mapping[str, Any], kind: TokenKind, nonce: str | None
    ) -> str:
        """The first rule about the claims of a signed token that does not hold, empty when all do."""
        options, now = self.options, self._clock()
        if payload.get("iss") != options.issuer:
            return "issuer"
        if not isinstance(payload.get("sub"), str) or not payload["sub"]:
            return "subject"
        if any(not _is_time(payload[name]) for name in _TIMES if name in payload) or "exp" not in payload:
            return "malformed"
        if now >= payload["exp"] + options.leeway_seconds:
            return "expired"
        if max(payload.get("nbf", 0), payload.get("iat", 0)) > now + options.leeway_seconds:
            return "not-yet-valid"
        if payload["exp"] - payload.get("iat", now) > MAX_LIFETIME + options.leeway_seconds:
            return "lifetime"
        if options.levels and _level(payload) not in options.levels:
            return "level"
        return _wrong_kind(header, payload, kind) or self._wrong_audience(payload, kind) or _wrong_nonce(payload, nonce)

    def _wrong_audience(self, payload: Mapping[str, Any], kind: TokenKind) -> str:
        audience, party = payload.get("aud", []), payload.get("azp")
        named = [audience] if isinstance(audience, str) else audience
        if not isinstance(named, list) or any(not isinstance(each, str) for each in named):
            return "malformed"
        if party is not None and not isinstance(party, str):
            return "malformed"
        ours = self.options.audiences
        if kind is TokenKind.ACCESS:
            return "" if ours & {*named, *([party] if party else [])} else "audience"
        # OpenID Connect Core §3.1.3.7 (3) to (5)
        if not ours & set(named) or (len(named) > 1 and party is None) or (party is not None and party not in ours):
            return "audience"
        return ""


_SIGNATURE_ONLY: Mapping[str, bool] = {
    "verify_signature": True,
    "enforce_minimum_key_length": True,
    **dict.fromkeys(
        ("verify_exp", "verify_nbf", "verify_iat", "verify_aud", "verify_iss", "verify_sub", "verify_jti"), False
    ),
}
"""Claims are judged by a clock that can be set, and with `azp`."""


def token_issuer(token: str) -> str:
    """Who says to have issued a token, not believed yet: to choose who judges it. Empty when it is none."""
    read = _read(token)
    issuer = "" if isinstance(read, str) else read[1].get("iss")
    return issuer if isinstance(issuer, str) else ""


def _read(token: str) -> tuple[dict[str, Any], dict[str, Any]] | str:
    """Header and payload of a compact JWS, not believed yet, or the rule it breaks."""
    if len(token) > MAX_TOKEN:
        return "too-large"
    segments = token.split(".")
    if len(segments) != 3 or any(not _SEGMENT.fullmatch(each) for each in segments):
        return "malformed"
    header, payload = _json(segments[0]), _json(segments[1])
    if header is None or payload is None:
        return "malformed"
    if _FORBIDDEN & header.keys():
        return "header"
    return header, payload


def _json(segment: str) -> dict[str, Any] | None:
    """An object that says each thing once, in finite numbers, not too deep; else None."""
    try:
        text = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)).decode("utf-8")
        if _depth(text) > MAX_DEPTH:
            return None
        read = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name twice")
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _depth(text: str) -> int:
    """An upper bound: brackets inside strings count too."""
    deepest = depth = 0
    for each in text:
        if each in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif each in "]}":
            depth -= 1
    return deepest


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _FARTHEST


def _wrong_kind(header: Mapping[str, Any], payload: Mapping[str, Any], kind: TokenKind) -> str:
    """A token made for something else is not ours to accept (RFC 8725 §3.11). Keycloak says the kind in `typ`."""
    typ = header.get("typ", "JWT")
    said = typ.lower().removeprefix("application/") if isinstance(typ, str) else ""
    claimed = payload.get("typ")
    if kind is TokenKind.ACCESS:
        # What an ID token is bound to (OpenID Connect Core §3.1.3.6, §3.3.2.11) no access token carries.
        bound = "at_hash" in payload or "c_hash" in payload
        return "" if said in ("jwt", "at+jwt") and claimed in (None, "Bearer") and not bound else "kind"
    return "" if said == "jwt" and claimed in (None, "ID") else "kind"


def _level(payload: Mapping[str, Any]) -> str:
    level = payload.get("acr")
    return level if isinstance(level, str) else ""


def _wrong_nonce(payload: Mapping[str, Any], nonce: str | None) -> str:
    return "" if nonce is None or payload.get("nonce") == nonce else "nonce"


def _refused(rule: str) -> Refused:
    return Refused(TOKEN_REFUSED, rule)
