"""Directory entries on their way into slapd, and their LDIF form (RFC 2849).

Entries are written one by one into a pipe: a load of half a million mailboxes never stands in memory, nor in a
temporary file.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass

_SAFE_STRING = re.compile(rb"[\x01-\x09\x0b\x0c\x0e-\x1f\x21-\x39\x3b\x3d-\x7f][\x01-\x09\x0b\x0c\x0e-\x7f]*\Z")
"""RFC 2849 SAFE-STRING: ASCII without NUL, LF, CR, and not beginning with a space, `:` or `<`."""


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
    # Values that begin or end with white space go encoded even where RFC 2849 allows them plain: readers strip.
    if _SAFE_STRING.match(value) and value == value.strip():
        return name + b": " + value + b"\n"
    return name + b":: " + base64.b64encode(value) + b"\n"
