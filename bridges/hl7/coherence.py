"""What the sender asks for, when its several places agree: MDM event, ORC-1 and OBX-11 of the documents.

Volet "Transmission de documents CDA-R2 en HL7 v2" v2.1, table of event coherence: NW / F / T02 creates, RO / C / T10
replaces (also masks and unmasks), CA / D / T04 deletes; anything else is rejected.
"""

from __future__ import annotations

from collections.abc import Sequence

from bridges.hl7.er7 import Segment
from bridges.refusals import EVENT_INCOHERENT, HL7_FIELD_MISSING
from bridges.report import Action, Finding
from trust.refusals import Refused

_ORDER = {"NW": Action.NEW, "RO": Action.REPLACE, "CA": Action.DELETE}
_STATUS = {"F": Action.NEW, "C": Action.REPLACE, "D": Action.DELETE}
_BEFORE_COHERENCE = frozenset({"1.0", "1.1", "1.2", "2.0"})
"""Profile versions whose senders fill ORC-1 with SC."""
_EVENT = {"T02": Action.NEW, "T10": Action.REPLACE, "T04": Action.DELETE}


def decide(
    event: str, profile: str, orders: Sequence[Segment], documents: Sequence[Segment], findings: list[Finding]
) -> Action | Refused:
    """The one action all places name. `event` is MSH-9.2, `profile` the version in MSH-21.1, `orders` the ORC segments,
    `documents` the document OBX.

    Tolerated with a finding, because deployed senders do it and the intention is clear:
    - ORU with ORC-1 RO and OBX-11 F replaces: the order is corrected and its new result is final
      (`status-final-on-replace`). On an MDM, or with any other pair, a disagreement is refused;
    - an absent ORC-1 or OBX-11 follows the others (`order-control-missing`, `status-missing`), a status that slipped
      into OBX-10 is read there (`status-in-obx-10`). An ORU that says nothing at all is refused;
    - until v2.0 of the profile ORC-1 was SC, "status changed", whatever the request (`order-control-legacy`).
    """
    action = _EVENT.get(event)
    replace_ordered = False
    for order in orders:
        control = order.field(1).text
        if not control:
            findings.append(Finding("order-control-missing", f"ORC-{order.sequence}"))
            continue
        if control == "SC" and profile in _BEFORE_COHERENCE:
            findings.append(Finding("order-control-legacy", f"ORC-{order.sequence}"))
            continue
        said = _ORDER.get(control)
        if said is None or action not in (None, said):
            return Refused(EVENT_INCOHERENT, "ORC-1", order.at(1))
        action = said
        replace_ordered |= said is Action.REPLACE
    for document in documents:
        status = document.field(11).text
        if not status and (status := document.field(10).text) in _STATUS:
            findings.append(Finding("status-in-obx-10", f"OBX-{document.sequence}"))
        elif not status:
            findings.append(Finding("status-missing", f"OBX-{document.sequence}"))
            continue
        said = _STATUS.get(status)
        if event == "R01" and replace_ordered and said is Action.NEW:
            findings.append(Finding("status-final-on-replace", f"OBX-{document.sequence}"))
            continue
        if said is None or action not in (None, said):
            return Refused(EVENT_INCOHERENT, "OBX-11", document.at(11))
        action = said
    return action or Refused(HL7_FIELD_MISSING, "ORC-1", "ORC^1^1")
