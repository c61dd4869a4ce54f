"""What a mailbox at another operator is opened with, asked for at each login: a password or token somebody keeps in a
file, or an access token of that operator's identity provider (RFC 6749), which is used for a while.

A token lives for minutes, a password until somebody changes it; neither may need a restart here. Nothing of them, and
nothing a provider says, is in an error's text.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from mta.collecting_options import SecretUnavailableError
from trust.revocation.fetching import FetchError
from trust.store.durable import write_durably

_MAX_ANSWER = 256 * 1024
_MAX_SECRET = 64 * 1024
_KEPT_SECONDS = 900.0
"""A token is asked for again after this, or a minute before it ends. Until then whoever was refused with it knows it
again (`mta.smtp.relay`)."""
_ENDS_SECONDS = 60.0
_FORM = "application/x-www-form-urlencoded"

Post = Callable[[str, bytes, str, int], bytes]
"""Address, body, content type, octets of the answer at most; raises `FetchError`."""


def kept_in(path: Path) -> Callable[[], str]:
    """The text of a file without white space around it, read each time. Raises `SecretUnavailableError`."""

    def read() -> str:
        try:
            with path.open(encoding="utf-8") as opened:
                return opened.read(_MAX_SECRET).strip()
        except (OSError, ValueError):
            raise SecretUnavailableError("secret-unreadable") from None

    return read


@dataclass(frozen=True, slots=True)
class Grant:
    """How a provider gives us tokens: as a client of its own (RFC 6749 §4.4), or for somebody who allowed it (§6)."""

    token_uri: str
    client_id: str
    client_secret: Callable[[], str]
    """Raises `SecretUnavailableError`; so do the others."""
    scope: str = ""
    refresh_token: Path | None = None
    """A file, which is replaced whenever the provider gives another one. None: client credentials."""


class GrantedToken:
    """Call it for an access token. Blocks for as long as `post` does. Thread-safe: there is one for each refresh token,
    for of two that use the same one the provider may revoke both."""

    def __init__(self, grant: Grant, post: Post, clock: Callable[[], float] = time.monotonic) -> None:
        self._grant = grant
        self._post = post
        self._clock = clock
        self._lock = threading.Lock()
        self._token, self._until = "", 0.0

    def __call__(self) -> str:
        """Raises `SecretUnavailableError`."""
        with self._lock:
            if not self._token or self._clock() >= self._until:
                self._token = ""
                self._token = self._ask()
            return self._token

    def _ask(self) -> str:
        grant = self._grant
        form = {"client_id": grant.client_id, "client_secret": grant.client_secret()}
        if grant.refresh_token is None:
            form["grant_type"] = "client_credentials"
        else:
            form |= {"grant_type": "refresh_token", "refresh_token": kept_in(grant.refresh_token)()}
        if grant.scope:
            form["scope"] = grant.scope
        try:
            answer = json.loads(self._post(grant.token_uri, urlencode(form).encode("ascii"), _FORM, _MAX_ANSWER))
        except FetchError:  # also what it refuses: the status says which, and nothing but waiting helps
            raise SecretUnavailableError("token-not-given") from None
        except (ValueError, RecursionError):
            raise SecretUnavailableError("token-unreadable") from None
        token = answer.get("access_token") if isinstance(answer, dict) else None
        if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable() or " " in token:
            raise SecretUnavailableError("token-unreadable")
        self._keep(answer.get("refresh_token"))
        said = answer.get("expires_in")
        lasts = said - _ENDS_SECONDS if isinstance(said, int | float) and not isinstance(said, bool) else _KEPT_SECONDS
        self._until = self._clock() + min(lasts, _KEPT_SECONDS)
        return token

    def _keep(self, refreshed: object) -> None:
        """The old one may be worth nothing from now on (RFC 6749 §6): on disk before the new token is used."""
        path = self._grant.refresh_token
        if path is None or not isinstance(refreshed, str) or not refreshed.strip() or refreshed == kept_in(path)():
            return
        try:
            write_durably(path, refreshed.encode("utf-8"))
        except (OSError, UnicodeError):
            raise SecretUnavailableError("refresh-token-not-kept") from None
