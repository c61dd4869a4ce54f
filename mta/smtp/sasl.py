"""How a client says who it is (RFC 4422), without any I/O: each mechanism is a generator of challenges.

A mechanism yields what to ask, is sent what the client answers, and returns the claim, or None when the exchange is
malformed. Whether the claim is true is for the door to find out.
"""

from __future__ import annotations

import binascii
import contextlib
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

TOKEN_FAILED = b'{"status":"invalid_token","schemes":"bearer"}'
"""RFC 7628 §3.2.2"""


@dataclass(frozen=True, slots=True)
class PasswordClaim:
    login: str
    password: str


@dataclass(frozen=True, slots=True)
class TokenClaim:
    login: str
    """May be empty."""
    token: str


@dataclass(frozen=True, slots=True)
class CertificateClaim:
    """Whoever holds the key of the certificate shown in the TLS handshake."""

    login: str
    """May be empty."""


Claim = PasswordClaim | TokenClaim | CertificateClaim
Exchange = Generator[bytes, bytes, Claim | None]
Mechanism = Callable[[bytes | None], Exchange]
"""Takes the initial response, None when there was none (RFC 4954 §4)."""


def plain(initial: bytes | None) -> Exchange:
    """RFC 4616. Nobody acts for somebody else here: the authorization identity is empty or the same."""
    data = (yield b"") if initial is None else initial
    parts = data.split(b"\0")
    if len(parts) != 3 or parts[0] not in (b"", parts[1]):
        return None
    return _password(parts[1], parts[2])


def login(initial: bytes | None) -> Exchange:
    """Never standardised (draft-murchison-sasl-login)."""
    name = (yield b"Username:") if initial is None else initial
    password = yield b"Password:"
    return _password(name, password)


def bearer(initial: bytes | None) -> Exchange:
    """XOAUTH2 and OAUTHBEARER (RFC 7628)."""
    said = bearer_of((yield b"") if initial is None else initial)
    return None if said is None else TokenClaim(*said)


def external(initial: bytes | None) -> Exchange:
    """RFC 4422 appendix A: TLS has shown who it is; the client may say as whom it wants to act."""
    data = (yield b"") if initial is None else initial
    with contextlib.suppress(UnicodeDecodeError):
        name = data.decode()
        return None if "\0" in name else CertificateClaim(name)
    return None


MECHANISMS: Mapping[str, Mechanism] = {
    "PLAIN": plain,
    "LOGIN": login,
    "XOAUTH2": bearer,
    "OAUTHBEARER": bearer,
    "EXTERNAL": external,
}


def bearer_of(data: bytes) -> tuple[str, str] | None:
    """Login (may be empty) and token of a first client message of XOAUTH2 or OAUTHBEARER; None when it is neither.

    `user=<login>^Aauth=Bearer <token>^A^A`, or `n,a=<login>,^A[host=...^A][port=...^A]auth=Bearer <token>^A^A`
    (RFC 7628 §3.1, RFC 5801 §4).
    """
    with contextlib.suppress(UnicodeDecodeError):
        first, *pairs = data.decode().split("\x01")
        if len(pairs) < 3 or pairs[-2:] != ["", ""]:
            return None
        said = [pair.partition("=")[::2] for pair in pairs[:-2]]
        if first.startswith("user="):
            name = first.removeprefix("user=")
        elif re.fullmatch(r"n,(a=[^,]*)?,", first):
            name = first[2:-1].removeprefix("a=").replace("=2C", ",").replace("=3D", "=")
        else:
            return None
        tokens = [value for key, value in said if key == "auth"]
        if len(tokens) == 1 and tokens[0][:7].lower() == "bearer " and tokens[0][7:].strip():
            return name, tokens[0][7:].strip()
    return None


def encoded(challenge: bytes) -> str:
    """As it stands after 334."""
    return b64encode(challenge).decode("ascii")


def decoded(line: str) -> bytes | None:
    """A client's answer; None when it is not base64, or `*`, with which a client gives up (RFC 4954 §4)."""
    if line == "=":
        return b""  # an empty initial response
    with contextlib.suppress(binascii.Error, ValueError):
        return b64decode(line, validate=True)
    return None


def _password(name: bytes, password: bytes) -> PasswordClaim | None:
    with contextlib.suppress(UnicodeDecodeError):
        return PasswordClaim(name.decode(), password.decode())
    return None
