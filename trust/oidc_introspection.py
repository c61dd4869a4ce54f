"""Asking the provider whether a token is still good (RFC 7662): a session that was ended there ends here at once.

The token has been judged by its signature before; this only takes away. Unlike everything else about tokens it calls
the provider while somebody logs in, so it is asked only where the operator wants it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import urlencode

from trust.catalogue import TOKEN_KEYS_UNAVAILABLE, TOKEN_REFUSED
from trust.refusals import Refused
from trust.revocation.fetching import FetchError

_MAX_ANSWER = 256 * 1024
_FORM = "application/x-www-form-urlencoded"

Post = Callable[[str, bytes, str, int], bytes]
"""Address, body, content type, octets of the answer at most; raises `FetchError`."""


class Introspection:
    """Of one provider. Thread-safe; blocks for as long as `post` does."""

    def __init__(self, post: Post, uri: str, client_id: str, client_secret: str) -> None:
        """We are `client_id` with the provider, and say so in the form (RFC 6749 §2.3.1)."""
        self._post = post
        self._uri = uri
        self._client = {"client_id": client_id, "client_secret": client_secret}

    def refused(self, token: str) -> Refused | None:
        """Why the token is not good now: `trust.token-refused` when the provider says so, or
        `trust.token-keys-unavailable` when it cannot be asked. Its texts are not kept: they may quote the token."""
        form = urlencode({"token": token, "token_type_hint": "access_token", **self._client}).encode("ascii")
        try:
            answer = json.loads(self._post(self._uri, form, _FORM, _MAX_ANSWER))
        except FetchError:
            return Refused(TOKEN_KEYS_UNAVAILABLE, "introspection")
        except (ValueError, RecursionError):
            return Refused(TOKEN_KEYS_UNAVAILABLE, "introspection answer")
        active = answer.get("active") if isinstance(answer, dict) else None
        if not isinstance(active, bool):
            return Refused(TOKEN_KEYS_UNAVAILABLE, "introspection answer")
        return None if active else Refused(TOKEN_REFUSED, "inactive")
