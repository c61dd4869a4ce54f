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
    plain = _PLAIN.match
    dn = entry.dn.encode()
    lines = [b"dn: %b\n" % dn if plain(dn) else b"dn:: %b\n" % base64.b64encode(dn)]
    for text, values in entry.attributes.items():
        name = text.encode("ascii")
        for value in values:
            if plain(value):
                lines.append(b"%b: %b\n" % (name, value))
            else:
                lines.append(b"%b:: %b\n" % (name, base64.b64encode(value)))
    lines.append(b"\n")
    return b"".join(lines)
