"""Mail that goes round: found by the trace fields it carries, thirty of anybody's or one of ours (RFC 5321 §6.3).

Our Received names the id a message had here. A message that comes back under such an id for a recipient it was already
for goes round: whatever sent it back will do so again. For another recipient it is a forward, an answer of a list or a
redirection like any other, and passes. Forging an id of ours only makes one's own mail come to nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable

from smime.mime import Entity

MAX_OWN = 10
"""Ids looked up for one message."""
_TRACE = re.compile(r"(?:^|\s)by\s+([A-Za-z0-9.-]{1,255})\s.{0,200}?\bid\s+([0-9a-f]{32})(?=[\s;(]|$)", re.IGNORECASE)


def own_traces(header: Entity, hostname: str) -> list[str]:
    """Spool ids of ours that a message has had, the last first."""
    found = (_TRACE.search(value[:1000]) for value in header.values("received"))
    ours = (match[2].lower() for match in found if match is not None and match[1].lower() == hostname.lower())
    return list(dict.fromkeys(ours))[:MAX_OWN]


def going_round(
    header: Entity, hostname: str, recipients: Iterable[str], recipients_of: Callable[[str], Collection[str]]
) -> frozenset[str]:
    """Those of `recipients` (lower case) this message was for when it was here before.

    `recipients_of` gives the recipients of one spool id, none for an id there is not; may block.
    """
    wanted = frozenset(recipients)
    seen: set[str] = set()
    for spool_id in own_traces(header, hostname):
        seen.update(each.lower() for each in recipients_of(spool_id))
    return wanted & seen
