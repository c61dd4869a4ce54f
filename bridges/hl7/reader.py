"""HL7 v2 reports (ORU^R01 2.5, MDM^T02/T04/T10 2.6) become `Report`s.

Volet "Transmission de documents CDA-R2 en HL7 v2" v2.1, CREATEUR to GESTIONNAIRE, with what deployed senders get
wrong. What cannot be trusted is refused with its position; what can be read through leaves a finding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from bridges import refusals
from bridges.cda import MAX_DOCUMENT_BYTES, examine
from bridges.encoded import decode_base64
from bridges.hl7 import coherence, er7
from bridges.hl7.er7 import Er7Message, Segment
from bridges.hl7.observations import read_observations
from bridges.hl7.people import Participants, read_participants, read_patient
from bridges.hl7.urgency import is_urgent
from bridges.report import Action, Audience, Document, Finding, Flags, PatientIdentity, Report
from trust.refusals import Refused

_VERSIONS = {"ORU": ("2.5", "2.5.1"), "MDM": ("2.6",)}
_EVENTS = {"ORU": ("R01",), "MDM": ("T02", "T04", "T10")}
_CONTENT_TYPES = {"I": "03", "O": "07", "R": "19", "N": "97", "E": "07"}
_TOWARDS_PRACTICE_SOFTWARE = "CISIS_CDA_HL7_LPS"
_UNREADABLE = {
    "too-large": refusals.HL7_TOO_LARGE,
    "charset-unknown": refusals.HL7_CHARSET,
    "charset-broken": refusals.HL7_CHARSET,
}


def parse(
    frame: bytes,
    *,
    environment: Literal["test", "production"],
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
) -> Report | Refused:
    """Understand one message, without its MLLP envelope. Never raises on what a partner sent.

    Refused: unreadable ER7, missing MSH-10, other types, events and versions, messages of the profile towards practice
    software (`CISIS_CDA_HL7_LPS`: we are the one who writes those), several patients or none, a document that is not a
    whole CDA, a CDA about somebody else, flags or events that contradict each other; in production also test INS
    authorities and matricules with a wrong key. `max_document_bytes` limits each decoded document.
    """
    message = er7.parse(frame, max_bytes=4 * max_document_bytes)
    if isinstance(message, er7.Er7Error):
        refusal = _UNREADABLE.get(message.kind, refusals.HL7_UNREADABLE)
        return Refused(refusal, message.kind, message.location)
    findings = list(message.findings)
    kind, event = message.header.field(9).component(1).text, message.header.field(9).component(2).text
    refused = _check_header(message, kind, event, findings)
    if refused is not None:
        return refused
    patient = read_patient(message, environment == "production", findings)
    if isinstance(patient, Refused):
        return patient
    observations = read_observations(message, findings)
    if isinstance(observations, Refused):
        return observations
    if not observations.documents:
        return Refused(refusals.DOCUMENT_MISSING, "OBX", "OBX^1")
    if kind == "MDM" and len(observations.documents) > 1:
        return Refused(refusals.DOCUMENT_SEVERAL, "OBX", observations.documents[1].at(2))
    profile = message.header.field(21).component(1).text
    action = coherence.decide(event, profile, message.segments("ORC"), observations.documents, findings)
    if isinstance(action, Refused):
        return action
    documents: list[Document] = []
    for segment in observations.documents:
        document = _document(segment, patient, max_document_bytes, findings)
        if isinstance(document, Refused):
            return document
        documents.append(document)
    related = _with_parents(message, action, documents, findings)
    if isinstance(related, Refused):
        return related
    participants = read_participants(message, patient, findings)
    _check_recipients(participants, observations.flags, findings)
    return Report(
        control_id=message.header.field(10).text,
        sending_application=message.header.field(3).component(1).text,
        sending_facility=message.header.field(4).component(1).text,
        event=f"{kind}^{event}",
        action=action,
        patient=patient,
        sender=participants.sender,
        documents=related,
        correspondents=participants.correspondents,
        reply_to=participants.reply_to,
        flags=observations.flags,
        body_professional=observations.body_professional,
        body_patient=observations.body_patient,
        content_type_code=_content_type(message, findings),
        findings=tuple(findings),
        urgent=is_urgent(message),
    )


def _check_header(message: Er7Message, kind: str, event: str, findings: list[Finding]) -> Refused | None:
    header = message.header
    profile = header.field(21).component(2).text
    if not header.field(10).text:
        return Refused(refusals.HL7_FIELD_MISSING, "MSH-10", header.at(10))
    if kind not in _EVENTS:
        return Refused(refusals.HL7_TYPE_UNSUPPORTED, "MSH-9", header.at(9))
    if event not in _EVENTS[kind]:
        return Refused(refusals.HL7_EVENT_UNSUPPORTED, "MSH-9", header.at(9))
    if header.field(12).component(1).text not in _VERSIONS[kind]:
        return Refused(refusals.HL7_VERSION_UNSUPPORTED, "MSH-12", header.at(12))
    if profile == _TOWARDS_PRACTICE_SOFTWARE:
        return Refused(refusals.HL7_WRONG_PROFILE, "MSH-21", header.at(21))
    if not profile:
        findings.append(Finding("profile-missing", "MSH-21"))
    return None


def _document(
    segment: Segment, patient: PatientIdentity, max_bytes: int, findings: list[Finding]
) -> Document | Refused:
    value = segment.field(5)
    where, encoded = segment.at(5), value.component(5)
    if not encoded:
        return Refused(refusals.DOCUMENT_MISSING, "OBX-5", where)
    if value.component(4).text.upper() != "BASE64":
        return Refused(refusals.DOCUMENT_ENCODING, "OBX-5.4", where)
    # Four encoded characters make three bytes; line breaks inside may add a little.
    if len(encoded) > max_bytes // 3 * 4 * 1.1 + 1024:
        return Refused(refusals.DOCUMENT_TOO_LARGE, "OBX-5", where)
    decoded = decode_base64(encoded.view)
    if decoded is None:
        return Refused(refusals.DOCUMENT_ENCODING, "OBX-5.5", where)
    if decoded.repaired:
        findings.append(Finding("base64-repaired", f"OBX-{segment.sequence}.5"))
    read = examine(decoded.data, max_bytes=max_bytes)
    if isinstance(read, Refused):
        return Refused(read.refusal, read.detail, where)
    document, tolerated = read
    findings.extend(Finding(f.code, f"OBX-{segment.sequence}.5/{f.location}") for f in tolerated)
    if not _same_matricule(patient, document.patient):
        return Refused(refusals.INS_DIFFERS, "PID-3", where)
    if not _same_traits(patient, document.patient, f"OBX-{segment.sequence}.5", findings):
        return Refused(refusals.PATIENT_SEVERAL, "recordTarget", where)
    if document.type_code != segment.field(3).component(1).text:
        findings.append(Finding("type-code-differs", f"OBX-{segment.sequence}.3"))
    return document


def _same_matricule(said: PatientIdentity, shown: PatientIdentity) -> bool:
    """False when both have one and they differ; the 13 characters decide, the key may be absent."""
    return not (said.matricule and shown.matricule) or said.matricule[:13].upper() == shown.matricule[:13].upper()


def _same_traits(said: PatientIdentity, shown: PatientIdentity, where: str, findings: list[Finding]) -> bool:
    """False when no matricule vouches for the person and name and birth date both differ: that is somebody else.
    One difference alone only leaves a finding: spelling varies between systems."""
    vouched = bool(said.matricule and shown.matricule)
    if vouched and said.matricule_oid != shown.matricule_oid:
        findings.append(Finding("ins-authority-differs", where))
    if not vouched and (said.matricule or shown.matricule):
        findings.append(Finding("ins-not-comparable", where))
    other_name = said.birth_name.upper() != shown.birth_name.upper()
    other_date = said.birth_date[:8] != shown.birth_date[:8]
    if other_name:
        findings.append(Finding("patient-name-differs", where))
    if other_date:
        findings.append(Finding("patient-birth-date-differs", where))
    return vouched or not (other_name and other_date)


def _with_parents(
    message: Er7Message, action: Action, documents: list[Document], findings: list[Finding]
) -> tuple[Document, ...] | Refused:
    """The documents, each knowing what it replaces. That must be named: by the CDA (RPLC), by TXA-13 (then it becomes
    the document's parent), or at least by setId and version."""
    related: list[Document] = []
    txa = message.segments("TXA")
    own = _txa_identifier(txa[0], 12) if txa else ""
    parent = _txa_identifier(txa[0], 13) if txa else ""
    for document in documents:
        if own and not _same_identifier(own, document.unique_id):
            findings.append(Finding("document-id-contradicts-txa", "TXA-12"))
        if parent and document.parent_id and not _same_identifier(parent, document.parent_id):
            findings.append(Finding("parent-contradicts-txa", "TXA-13"))
        if action is Action.REPLACE and not document.parent_id:
            if not parent and not (document.set_id and (document.version or 0) > 1):
                return Refused(refusals.EVENT_INCOHERENT, "relatedDocument", "ORC^1^1")
            findings.append(Finding("parent-missing", "ClinicalDocument/relatedDocument"))
            related.append(replace(document, parent_id=parent))
            continue
        if action is Action.NEW and document.parent_id:
            findings.append(Finding("parent-on-new", "ClinicalDocument/relatedDocument"))
        related.append(document)
    return tuple(related)


def _check_recipients(participants: Participants, flags: Flags, findings: list[Finding]) -> None:
    """A mail asked for with nobody named to receive it, as in v1.2 of the profile, is told: nobody will get it."""
    named = {correspondent.audience for correspondent in participants.correspondents}
    wishes = ((flags.to_professionals, Audience.PROFESSIONAL), (flags.to_patient, Audience.PATIENT))
    if any(asked and audience not in named for asked, audience in wishes):
        findings.append(Finding("recipient-missing", "PRT"))


def _txa_identifier(txa: Segment, field: int) -> str:
    """`ext^^root^ISO`, a bare OID, or `OID^Organisation` as seen in official samples."""
    entity, root = txa.field(field).component(1).text, txa.field(field).component(3).text
    return f"{root}^{entity}" if root else entity


def _same_identifier(one: str, other: str) -> bool:
    return one == other or one.partition("^")[0] == other


def _content_type(message: Er7Message, findings: list[Finding]) -> str:
    visits = message.segments("PV1")
    patient_class = visits[0].field(2).component(1).text if visits else ""
    if patient_class not in _CONTENT_TYPES:
        findings.append(Finding("patient-class-unknown", "PV1-2"))
    return _CONTENT_TYPES.get(patient_class, "")
