"""Directory entries on their way into slapd, and their LDIF form (RFC 2849).

Entries are written one by one into a pipe: a load of half a million mailboxes never stands in memory, nor in a
temporary file.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass

_PLAIN = re.compile(rb"[!-9;=-~](?:[ -~]*[!-~])?\Z")
"""What is written plain: less than RFC 2849's SAFE-STRING, because readers strip white space and controls."""


@dataclass(frozen=True, slots=True)
class LdifEntry:
    """One LDAP entry."""

    dn: str
    """Distinguished name as a string, special characters already escaped (RFC 4514)."""
    attributes: Mapping[str, tuple[bytes, ...]]
    """Values by attribute description (`mail`, `userCertificate;binary`), strings as UTF-8; never an empty tuple."""


def to_ldif(entry: LdifEntry) -> bytes:
    """The entry as one LDIF content record, the blank line that ends it included."""
    lines = [_line(b"dn", entry.dn.encode())]
    for name, values in entry.attributes.items():
        lines += (_line(name.encode("ascii"), value) for value in values)
    return b"".join(lines) + b"\n"


def _line(name: bytes, value: bytes) -> bytes:
    if _PLAIN.match(value):
        return name + b": " + value + b"\n"
    return name + b":: " + base64.b64encode(value) + b"\n"
