"""Business acknowledgements: `ZAM^Z01` for the record, `ZAM^Z02` for a mail's arrival, `ZAM^Z03` for its reading.

Volet "Transmission de documents CDA-R2 en HL7 v2" v2.1, structure ZAM_Z01 on HL7 v2.6. Same arguments, same bytes: a
receiver that gets one twice recognises it by MSH-10.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from bridges.hl7.acknowledgement import UTF_8, AckHeader, coded, encoded, msh, segment

_CODING_SYSTEM = "AckMetierZAM"


class ZamEvent(Enum):
    """MSH-9.2."""

    DOSSIER = "Z01"
    """What the patient's record answered."""
    RECEPTION = "Z02"
    """Whether a mail reached its mailbox (from a DSN)."""
    READING = "Z03"
    """Whether it was read or taken up by software (from an MDN)."""


_STATUS = {
    ZamEvent.DOSSIER: ("ACK_RECEPTION_DMP", "Accusé de réception DMP"),
    ZamEvent.RECEPTION: ("ACK_RECEPTION_MSS", "Accusé de réception MSSanté"),
    ZamEvent.READING: ("ACK_LECTURE_MSS", "Accusé de lecture"),
}
_PARTY = {
    ZamEvent.RECEPTION: ("DESTINATAIRE_MSS", "Destinataire MSSanté"),
    ZamEvent.READING: ("LECTEUR_MSS", "Lecteur du courriel MSSanté"),
}


class ErrorTable(Enum):
    """ERR-5.3: each event has its table."""

    DOSSIER = "DMP_ERROR_CODE"
    SMTP = "SMTPERRORCODE"
    APPLICATION = "applicationErrorCondition"


@dataclass(frozen=True, slots=True)
class ZamFailure:
    """Why the answer is N."""

    table: ErrorTable
    code: str
    """ERR-5.1, a value of the table."""
    label: str
    """ERR-5.2, in French."""
    diagnostic: str = ""
    """ERR-7, for who operates the receiver. No identity."""
    advice: str = ""
    """ERR-8: one French sentence for a person."""


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """One answer about one recipient of one message."""

    event: ZamEvent
    at: datetime
    """When it happened; aware."""
    failure: ZamFailure | None = None
    """None: OBX-5 is Y."""
    address: str = ""
    """Whom the mail was for, or who read it; empty for Z01."""
    identifier: str = ""
    """National identifier of that professional, when the original message named it."""


def control_id(dedup_key: str) -> str:
    """MSH-10 of the acknowledgement this key stands for: 20 characters (HL7 v2.6 §2.14.9.10), always the same."""
    return hashlib.sha256(dedup_key.encode()).hexdigest()[:20].upper()


def compose(original: AckHeader, control_id_own: str, acknowledgement: Acknowledgement) -> bytes:
    """ER7 without MLLP framing, segments ended by CR; separators and character set are those of the original message.

    `original` is its MSH (`acknowledgement.header_of`): sender and receiver change places, MSH-10 goes into OBX-4.
    """
    event, failure = acknowledgement.event, acknowledgement.failure
    opening = msh(
        original,
        control_id_own,
        acknowledgement.at,
        ("ZAM", event.value, "ZAM_Z01"),
        "2.6",
        "FRA",
        original.charset if original.codec else UTF_8,
        *("", ""),
        coded(original, "2.1", "CISIS_CDA_HL7_V2"),
    )
    status = coded(original, "Y" if failure is None else "N", "", "expandedYes-NoIndicator")
    segments = [
        opening,
        segment(original, "EVN", "", acknowledgement.at.strftime("%Y%m%d%H%M%S%z")),
        _obx(original, "1", "CWE", _STATUS[event], original.control_id, status),
    ]
    if event in _PARTY:
        address = coded(original, "", "", "X.400", acknowledgement.address)
        segments.append(_obx(original, "2", "XTN", _PARTY[event], coded(original, acknowledgement.identifier), address))
    if failure is not None:
        segments.append(
            segment(
                original,
                "ERR",
                *("", ""),
                coded(original, "207", "Application error", "messageErrorCondition"),
                "E",
                coded(original, failure.code, failure.label, failure.table.value),
                "",
                coded(original, failure.diagnostic),
                coded(original, failure.advice),
            )
        )
    return encoded(segments, original.codec or "utf-8")


def _obx(original: AckHeader, number: str, kind: str, what: tuple[str, str], sub_id: str, value: str) -> str:
    observed = coded(original, *what, _CODING_SYSTEM)
    return segment(original, "OBX", number, kind, observed, sub_id, value, *("", "", "", "", ""), "F")
