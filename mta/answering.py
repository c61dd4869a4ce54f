"""An answer to mail whose header its author has hidden hides its own (RFC 9788 §6.1).

Encrypted is every answer, like all mail. But a subject that came inside the encryption would leave in clear in `Re:`,
towards a partner with whom header protection was never agreed on: that its author wrote so shows that he reads it.
"""

from __future__ import annotations

import re

from mta.any_delivery import AnyReader
from mta.spool_reading import SpoolReader
from smime.mime import Entity
from smime.verdict import HeaderProtectionScheme, MessageVerdict

HIDDEN_HEADER = "header-protection"
"""Fact of an opened mail whose header fields were signed and encrypted."""
_ID = re.compile(r"<[!-;=?-~]{1,248}>")
_LONGEST = 4096
"""Characters of a field that are looked at, from its end."""
_REFERENCES, _MESSAGES = 5, 5
"""Looked up at most: the mail that is answered is the last one named."""


def hidden_header(verdict: MessageVerdict) -> dict[str, str]:
    """What is remembered of an opened mail."""
    scheme = verdict.header_protection.scheme
    hidden = scheme is HeaderProtectionScheme.CIPHER and bool(verdict.header_protection.confidential)
    return {HIDDEN_HEADER: scheme.value} if hidden else {}


class Answers:
    """Thread-safe; raises what the database raises."""

    def __init__(self, spool: SpoolReader) -> None:
        self._spool = spool
        self._deliveries = AnyReader(spool)

    def hide_header(self, header: Entity, author: str, recipient: str) -> bool:
        """Whether this mail answers one that `recipient` sent to `author` with a hidden header."""
        values = [each for name in ("references", "in-reply-to") for each in header.values(name)]
        references = [one for each in values for one in _ID.findall(each[-_LONGEST:])]
        for reference in dict.fromkeys(references[-_REFERENCES:]):
            for spool_id in self._spool.find(reference)[:_MESSAGES]:
                for each in self._deliveries.of_message(spool_id):
                    came = each.recipient.lower() == author.lower() and each.sender.lower() == recipient.lower()
                    if came and HIDDEN_HEADER in each.facts:
                        return True
        return False
