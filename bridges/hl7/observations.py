"""What the OBX of a message hold besides documents: the MetaDMPMSS flags and the mail bodies.

Volet "Transmission de documents CDA-R2 en HL7 v2" v2.1 (and the names of v1.2 and v2.0).
"""

from __future__ import annotations

from dataclasses import dataclass

from bridges.encoded import decode_base64
from bridges.hl7.er7 import Er7Message, Segment
from bridges.refusals import FLAG_VALUE
from bridges.report import Finding, Flags
from trust.refusals import Refused

_METADATA = "MetaDMPMSS"
_BODY_LIMIT = 256 * 1024
"""Bytes of a mail body: it is a covering note."""
_FLAGS = {
    "MASQUE_PS": "masked_to_professionals",
    "INVISIBLE_PATIENT": "hidden_from_patient",
    "INVISIBLE_REP_LEGAUX": "hidden_from_representatives",
    "INVISIBLE_REPRESENTANTS_LEGAUX": "hidden_from_representatives",
    "CONNEXION_SECRETE": "secret_connection",
    "MODIF_CONF_CODE": "confidentiality_modified",
    "MODIF_CONFIDENTIALITYCODE": "confidentiality_modified",
    "DESTDMP": "to_dossier",
    "DESTMSSANTEPS": "to_professionals",
    "DESTMSSANTEPAT": "to_patient",
    "ACK_RECEPTION": "ack_reception",
    "ACK_RECEPTION_MSS": "ack_reception",
    "ACK_LECTURE_MSS": "ack_reading",
    "ACK_LECTURE": "ack_reading",
}
_ROUTING = frozenset(
    {"masked_to_professionals", "hidden_from_patient", "hidden_from_representatives", "to_professionals", "to_patient"}
)
"""Flags that decide who may get the document: a sender that leaves one out is told so."""


@dataclass(frozen=True, slots=True)
class Observations:
    """The OBX of one message, sorted."""

    documents: tuple[Segment, ...]
    """OBX of type ED that are no metadata."""
    flags: Flags
    body_professional: str
    body_patient: str


def read_observations(message: Er7Message, findings: list[Finding]) -> Observations | Refused:
    """Sort the OBX. A flag that is neither Y nor N, or said twice differently, is refused: guessing it could show a
    document to somebody it is hidden from. A mail body that does not decode whole is dropped (`body-truncated`)."""
    documents: list[Segment] = []
    flags: dict[str, bool] = {}
    bodies = {"CORPSMAIL_PS": "", "CORPSMAIL_PATIENT": ""}
    last_of_exchange = False
    current = ""
    for segment in message.segments():
        if segment.name == "NTE" and current == "DESTMSSANTEPAT":
            last_of_exchange |= any(segment.field(n).component(1).text.upper() == "FIN" for n in (3, 4))
        if segment.name != "OBX":
            continue
        where = f"OBX-{segment.sequence}"
        kind, code = segment.field(2).text.upper(), segment.field(3).component(1).text
        # A flag that lost its coding system, in a cut message for instance, is still that flag.
        metadata = segment.field(3).component(3).text == _METADATA or code in _FLAGS or code in bodies
        current = code if metadata else ""
        if not metadata:
            if kind == "ED":
                documents.append(segment)
            else:
                findings.append(Finding("observation-ignored", where))
        elif code in bodies:
            bodies[code] = _body(segment, message, findings)
        elif code in _FLAGS:
            value = segment.field(5).component(1).text
            if value not in ("Y", "N") or flags.get(_FLAGS[code], value == "Y") != (value == "Y"):
                return Refused(FLAG_VALUE, code, segment.at(5))
            flags[_FLAGS[code]] = value == "Y"
        else:
            findings.append(Finding("flag-unknown", where))
    if not _ROUTING.issubset(flags):
        findings.append(Finding("flags-missing", "OBX"))
    return Observations(
        documents=tuple(documents),
        flags=Flags(**flags, last_of_exchange=last_of_exchange),
        body_professional=bodies["CORPSMAIL_PS"],
        body_patient=bodies["CORPSMAIL_PATIENT"],
    )


def _body(segment: Segment, message: Er7Message, findings: list[Finding]) -> str:
    """A whole mail body or nothing: half a sentence to a patient is worse than our own words."""
    encoded = segment.field(5).component(5)
    decoded = decode_base64(encoded.view) if 0 < len(encoded) <= _BODY_LIMIT else None
    if decoded is not None:
        for codec in dict.fromkeys(("utf-8", message.charset)):
            try:
                return decoded.data.decode(codec).strip()
            except UnicodeDecodeError:
                continue
    if encoded:
        findings.append(Finding("body-truncated", f"OBX-{segment.sequence}.5"))
    return ""
