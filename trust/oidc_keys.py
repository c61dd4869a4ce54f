"""The keys an OpenID provider signs with: fetched ahead, kept on disk, looked up in memory.

Nobody who logs in waits for the provider or makes us call it: `find` answers from memory. Whoever runs the gateway
calls `refresh` when `due` says so. A key we have never heard of makes that sooner, but a stranger who invents one has
the provider asked no more than once every `least_pause`. When the provider is away its last keys serve on for
`stale_seconds`; then nobody is believed until it is back, for a withdrawn key must not live for ever.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from trust.revocation.fetching import FetchError
from trust.store.durable import write_durably

MAX_BYTES = 256 * 1024
MAX_KEYS = 64
RSA_BITS = range(2048, 8192 + 1)
"""Smaller ones can be broken, larger ones keep us busy."""

ALGORITHMS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), ("RSA", "")),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
"""Every signature that can be accepted at all, with the kind of key and curve it needs: public keys only."""

Fetch = Callable[[str, int], bytes]
"""URL and most bytes to the body; raises `trust.revocation.fetching.FetchError`."""


class ProviderError(ValueError):
    """What the provider sent cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class KeyOptions:
    refresh_seconds: float = 3600.0
    least_pause: float = 60.0
    """Between two calls of the provider, whoever wants them."""
    stale_seconds: float = 86400.0


@dataclass(frozen=True, slots=True)
class _Held:
    keys: tuple[Mapping[str, Any], ...]
    fetched_at: float


class ProviderKeys:
    """Of one issuer. Thread-safe; only `refresh` blocks."""

    def __init__(
        self,
        issuer: str,
        fetch: Fetch,
        *,
        jwks_uri: str = "",
        store: Path | None = None,
        options: KeyOptions = KeyOptions(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`jwks_uri` empty: found by discovery (OpenID Connect Discovery §4) below the issuer, again at each refresh.
        `store` is a file for the last good answer; what it holds is public."""
        self._issuer = issuer
        self._fetch = fetch
        self._jwks_uri = jwks_uri
        self._store = store
        self._options = options
        self._clock = clock
        self._held: _Held | None = None
        self._asked_at = 0.0
        self._wanted = False
        self._refreshing = threading.Lock()
        self.problem = ""
        """Why the last refresh brought nothing; empty when it did."""
        self._recall()

    @property
    def fetched_at(self) -> float:
        """When the keys in use came, UNIX seconds; 0 without any."""
        return self._held.fetched_at if self._held else 0.0

    def due(self) -> bool:
        """Whether it is time for `refresh`."""
        now = self._clock()
        if self._asked_at and 0 <= now - self._asked_at < self._options.least_pause:
            return False
        age = now - self.fetched_at
        return self._wanted or bool(self.problem) or not 0 <= age < self._options.refresh_seconds

    def refresh(self) -> bool:
        """Ask the provider; whether its keys came. What came before stays when not, and `problem` says why."""
        with self._refreshing:
            self._asked_at = self._clock()
            self._wanted = False
            try:
                document = self._fetch(self._jwks_uri or self._discovered(), MAX_BYTES)
                keys = read_keys(document)
            except (FetchError, ProviderError) as error:
                self.problem = str(error)
                return False
            self._held = _Held(keys, self._asked_at)
            self.problem = ""
            if self._store is not None:
                kept = {"issuer": self._issuer, "fetched_at": self._asked_at, "keys": list(keys)}
                with suppress(OSError):  # only a start without the provider would need it
                    write_durably(self._store, json.dumps(kept).encode())
            return True

    def find(self, algorithm: str, kid: str | None) -> tuple[jwt.PyJWK, ...] | None:
        """The keys that may have made such a signature; empty for certainly none, None when that is not known now."""
        held, now = self._held, self._clock()
        if held is None or now - held.fetched_at > self._options.stale_seconds:
            self._wanted = True
            return None
        fit = [each for each in held.keys if _fits(each, algorithm) and (kid is None or each.get("kid") == kid)]
        if fit and (kid is not None or len(fit) == 1):
            return tuple(jwt.PyJWK(dict(each), algorithm) for each in fit[:2])
        if now - held.fetched_at > self._options.least_pause:
            self._wanted = True
            return None
        return ()

    def _discovered(self) -> str:
        document = _object(self._fetch(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration", MAX_BYTES))
        if document.get("issuer") != self._issuer:
            raise ProviderError("the provider's configuration names another issuer")
        uri = document.get("jwks_uri")
        if not isinstance(uri, str) or (self._issuer.startswith("https:") and not uri.startswith("https:")):
            raise ProviderError("the provider's configuration names no address of its keys that can be used")
        return uri

    def _recall(self) -> None:
        if self._store is None:
            return
        with suppress(OSError, ProviderError, TypeError, ValueError, KeyError):
            kept = _object(self._store.read_bytes()[: 2 * MAX_BYTES])
            if kept["issuer"] == self._issuer:
                fetched_at = float(kept["fetched_at"])
                if not math.isfinite(fetched_at):
                    return
                keys = read_keys(json.dumps({"keys": kept["keys"]}).encode())
                self._held = _Held(keys, min(fetched_at, self._clock()))


def read_keys(document: bytes) -> tuple[Mapping[str, Any], ...]:
    """The keys of a JWK Set (RFC 7517 §5) that can verify signatures; what else it holds is left aside (§5).

    Raises `ProviderError` when there is none, or there are more than `MAX_KEYS`. A set with private or symmetric keys
    is refused whole: whoever publishes them has none that can be believed.
    """
    keys = _object(document).get("keys")
    if not isinstance(keys, list) or len(keys) > MAX_KEYS:
        raise ProviderError(f"the provider's key set is none, or has more than {MAX_KEYS} keys")
    if any(isinstance(each, dict) and ("d" in each or "k" in each) for each in keys):
        raise ProviderError("the provider publishes a secret key")
    usable = [each for each in keys if isinstance(each, dict) and _usable(each)]
    if not usable:
        raise ProviderError("the provider's key set has no key for signatures")
    return tuple(usable)


def _usable(key: Mapping[str, Any]) -> bool:
    operations = key.get("key_ops")
    if key.get("use", "sig") != "sig" or (operations is not None and "verify" not in _sequence(operations)):
        return False
    if not isinstance(key.get("kid", ""), str):
        return False
    for algorithm in ALGORITHMS:
        if _fits(key, algorithm):
            try:
                made = jwt.PyJWK(dict(key), algorithm).key
            except (jwt.PyJWTError, ValueError, TypeError):
                return False
            return not isinstance(made, rsa.RSAPublicKey) or made.key_size in RSA_BITS
    return False


def _fits(key: Mapping[str, Any], algorithm: str) -> bool:
    """Kind of key, curve and what the key says of itself decide, not the token alone."""
    kind, curve = ALGORITHMS[algorithm]
    return key.get("kty") == kind and (not curve or key.get("crv") == curve) and key.get("alg", algorithm) == algorithm


def _object(document: bytes) -> dict[str, Any]:
    try:
        read = json.loads(document)
    except (ValueError, RecursionError):
        raise ProviderError("the provider's answer is no JSON") from None
    if not isinstance(read, dict):
        raise ProviderError("the provider's answer is no JSON object")
    return read


def _sequence(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else ()
