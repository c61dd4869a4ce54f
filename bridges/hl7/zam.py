"""Business acknowledgements: `ZAM^Z01` for the record, `ZAM^Z02` for a mail's arrival, `ZAM^Z03` for its reading.

Volet "Transmission de documents CDA-R2 en HL7 v2" v2.1, structure ZAM_Z01 on HL7 v2.6. Same arguments, same bytes: a
receiver that gets one twice recognises it by MSH-10.
"""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from bridges.hl7.acknowledgement import AckHeader
from bridges.hl7.er7 import CHARSETS, escape

_CODING_SYSTEM = "AckMetierZAM"
_DEFAULT_CHARSET = "UNICODE UTF-8"


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
    mark = original.separators
    codec = CHARSETS.get(original.charset.upper().replace(mark.repetition, " ").strip())
    at = acknowledgement.at.strftime("%Y%m%d%H%M%S%z")

    def coded(*components: str) -> str:
        return mark.component.join(escape(component, mark) for component in components)

    def segment(*fields: str) -> str:
        return mark.field.join(fields).rstrip(mark.field) + "\r"

    failure = acknowledgement.failure
    status = coded("Y" if failure is None else "N", "", "expandedYes-NoIndicator")
    profile = coded("2.1", "CISIS_CDA_HL7_V2")
    segments = [
        segment(
            "MSH",
            mark.encoding_characters,
            original.receiving_application,
            original.receiving_facility,
            original.sending_application,
            original.sending_facility,
            at,
            "",
            coded("ZAM", acknowledgement.event.value, "ZAM_Z01"),
            control_id_own,
            original.processing_id or "P",
            "2.6",
            *("", "", "", ""),
            "FRA",
            original.charset if codec else _DEFAULT_CHARSET,
            *("", ""),
            profile,
        ),
        segment("EVN", "", at),
        segment(
            "OBX",
            "1",
            "CWE",
            coded(*_STATUS[acknowledgement.event], _CODING_SYSTEM),
            original.control_id,
            status,
            *("", "", "", "", ""),
            "F",
        ),
    ]
    if acknowledgement.event in _PARTY:
        segments.append(
            segment(
                "OBX",
                "2",
                "XTN",
                coded(*_PARTY[acknowledgement.event], _CODING_SYSTEM),
                escape(acknowledgement.identifier, mark),
                coded("", "", "X.400", acknowledgement.address),
                *("", "", "", "", ""),
                "F",
            )
        )
    if failure is not None:
        segments.append(
            segment(
                "ERR",
                *("", ""),
                coded("207", "Application error", "messageErrorCondition"),
                "E",
                coded(failure.code, failure.label, failure.table.value),
                "",
                escape(failure.diagnostic, mark),
                escape(failure.advice, mark),
            )
        )
    text = "".join(segments)
    if codec == "ascii":
        # a letter without its accent reads better than none
        text = unicodedata.normalize("NFKD", text)
    return text.encode(codec or "utf-8", "ignore")
