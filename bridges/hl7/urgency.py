"""Whether a report was ordered as urgent: its mails then go before the others (`mta.priority`).

The order says it, not the result: ORC-7.6 and OBR-27.6 (quantity/timing, HL7 v2.5 §4.5.1.7), TQ1-9 which replaces them,
and OBR-5, which older systems still fill in.
"""

from __future__ import annotations

from bridges.hl7.er7 import Er7Message

_URGENT = frozenset(("S", "A"))
"""HL7 table 0485: stat, as soon as possible."""
_PLACES = (("TQ1", 9, 1), ("ORC", 7, 6), ("OBR", 27, 6), ("OBR", 5, 1))
"""Segment, field, component."""


def is_urgent(message: Er7Message) -> bool:
    """True when one of its orders is."""
    return any(
        part.component(component).text.upper() in _URGENT
        for name, field, component in _PLACES
        for segment in message.segments(name)
        for part in (segment.field(field),)
        if part
    )
