"""The Authentication-Results field (RFC 8601): what was found out about a message, under our own name.

Mail clients and scripts believe this field, so two things hold it together: `mta.header.is_ours` lets none through that
came from outside, and nothing a stranger chose (a domain, a selector, a HELO name) gets out of the value it stands in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_VALUE = re.compile(r"[A-Za-z0-9!#$&'*+.^_`{|}~@-]{1,253}")
"""What may stand without quotes: a token or an address (RFC 8601 §2.2, RFC 2045 §5.1), without `%`."""
_MOST = 200
"""Characters of a value that must be quoted."""


@dataclass(frozen=True, slots=True)
class Result:
    """One method's result."""

    method: str
    """`spf`, `dkim`, `dmarc`, `arc` or one of ours that begins with `x-`."""
    result: str
    properties: tuple[tuple[str, str], ...] = ()
    """`smtp.mailfrom` and the like, with values anybody may have chosen; those that are empty are left out."""
    reason: str = ""
    """In our own words."""

    def __str__(self) -> str:
        words = [f"{self.method}={self.result}"]
        if self.reason:
            words.append(f'reason="{_safe(self.reason)}"')
        words += [f"{name}={_value(value)}" for name, value in self.properties if value]
        return " ".join(words)


def field(authserv_id: str, results: Iterable[Result]) -> str:
    """The whole field with its CRLFs, ASCII, one result a line. `authserv_id` is our host name (§2.5)."""
    lines = [f"Authentication-Results: {authserv_id}", *(f" {result}" for result in results)]
    if len(lines) == 1:
        lines.append(" none")
    return ";\r\n".join(lines) + "\r\n"


def _value(text: str) -> str:
    return text if _VALUE.fullmatch(text) else f'"{_safe(text)}"'


def _safe(text: str) -> str:
    """Content of a quoted-string: printable ASCII, no quote, no backslash."""
    return "".join(c if " " <= c <= "~" and c not in '"\\' else "?" for c in text)[:_MOST]
