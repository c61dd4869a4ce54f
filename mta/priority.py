"""Which mail goes before which: technical acknowledgements and urgent results, then everything, then bulk.

The sender says it in the header fields mail clients write (RFC 2156 §5.3.6 `Priority` and `Importance`, `X-Priority`),
bulk also by the number of recipients or by the marks of lists and machines (`Precedence`, RFC 2919 `List-Id`). An HL7
report is urgent when its order was (`bridges.hl7.urgency`). Receipts of others (`multipart/report`), and what we
write ourselves, receipts and business acknowledgements, goes first: it is small, and a person or a system waits for it.
A priority is a turn, not a right of way: `mta.claiming` gives each class its share.
"""

from __future__ import annotations

import re
from enum import IntEnum

_HEADER_OCTETS = 64 * 1024
_SAYS = re.compile(
    rb"^(?:(?P<urgent>(?:priority:[ \t]*urgent|importance:[ \t]*high|x-priority:[ \t]*[12]|"
    rb"content-type:[ \t]*multipart/report)\b)"
    rb"|(?P<bulk>priority:[ \t]*non-urgent\b|precedence:[ \t]*(?:bulk|list|junk)\b|list-id:))",
    re.IGNORECASE | re.MULTILINE,
)


class Priority(IntEnum):
    """Kept with each delivery as its number."""

    URGENT = 0
    NORMAL = 1
    BULK = 2


def priority_in(header_and_body: bytes) -> Priority:
    """What a mail's own header says; what says both is bulk, for many wait behind it."""
    end = re.search(rb"\r?\n\r?\n", header_and_body[:_HEADER_OCTETS])
    header = header_and_body[: end.start() if end else _HEADER_OCTETS]
    said = {found.lastgroup for found in _SAYS.finditer(header)}
    if "bulk" in said:
        return Priority.BULK
    return Priority.URGENT if "urgent" in said else Priority.NORMAL
