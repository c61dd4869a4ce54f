"""An act as a DICOM audit message (PS3.15 §A.5) for an IHE audit repository (ATNA, ITI-20), and its syslog message.

Codes are those of PS3.16: 110110 Patient Record, 110112 Query, 110107 Import, 110100 Application Activity. What an
export contains is `trust.audit`'s business.
"""

from __future__ import annotations

import base64

from lxml import etree

from trust.audit import AuditRecord, Kind
from trust.syslog import BOM, SyslogHeader

MESSAGE_ID = "IHE+RFC-3881"
"""MSGID of every audit message (ITI TF-2 §3.20.4.1.2.1)."""
PRIORITY = 10 * 8 + 5
"""Facility 10 (security and authorisation), severity notice, as ITI-20 asks."""

_EVENTS = {
    Kind.READ: ("110110", "Patient Record", "R"),
    Kind.QUERY: ("110112", "Query", "E"),
    Kind.CREATE: ("110107", "Import", "C"),
    Kind.UPDATE: ("110110", "Patient Record", "U"),
    Kind.OTHER: ("110100", "Application Activity", "E"),
}
_SUCCESS, _MINOR_FAILURE = "0", "4"
_APPLICATION_SERVER = "4"
_PERSON, _SYSTEM_OBJECT = "1", "2"
_PATIENT, _REPORT, _SECURITY_RESOURCE = "1", "3", "13"


def audit_message(record: AuditRecord, source: str) -> bytes:
    """One AuditMessage, UTF-8, without XML declaration; `source` is the name of this journal."""
    message = etree.Element("AuditMessage")
    code, name, action = _EVENTS[record.kind]
    event = etree.SubElement(
        message,
        "EventIdentification",
        EventActionCode=action,
        EventDateTime=record.at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        EventOutcomeIndicator=_SUCCESS if record.succeeded or not record.action else _MINOR_FAILURE,
    )
    _code(event, "EventID", code, "DCM", name)
    _code(event, "EventTypeCode", record.action or "erased", "Relais", record.action or "payload erased")
    actor = etree.SubElement(
        message, "ActiveParticipant", UserID=_clean(record.actor) or "unknown", UserIsRequestor="true"
    )
    if record.kind is not Kind.OTHER:
        reads = record.kind in (Kind.READ, Kind.QUERY)
        role = ("110152", "Destination Role ID") if reads else ("110153", "Source Role ID")
        _code(actor, "RoleIDCode", role[0], "DCM", role[1])
    server = etree.SubElement(
        message,
        "ActiveParticipant",
        UserID=_clean(record.writer),
        UserIsRequestor="false",
        NetworkAccessPointID=_clean(record.writer),
        NetworkAccessPointTypeCode="1",
    )
    _code(server, "RoleIDCode", "110150", "DCM", "Application")
    audit_source = etree.SubElement(message, "AuditSourceIdentification", AuditSourceID=_clean(source))
    etree.SubElement(
        audit_source,
        "AuditSourceTypeCode",
        {"csd-code": _APPLICATION_SERVER, "codeSystemName": "DCM", "originalText": "Application Server Process"},
    )
    if record.subject:
        patient = _participant(message, record.subject, _PERSON, _PATIENT)
        _code(patient, "ParticipantObjectIDTypeCode", "2", "RFC-3881", "Patient Number")
        etree.SubElement(patient, "ParticipantObjectName").text = "pseudonym"
    if record.object_id:
        thing = _participant(message, record.object_id, _SYSTEM_OBJECT, _REPORT)
        _code(thing, "ParticipantObjectIDTypeCode", "9", "RFC-3881", "Report Number")
        etree.SubElement(thing, "ParticipantObjectName").text = "object"
    entry = _participant(message, f"{record.writer}#{record.sequence}", _SYSTEM_OBJECT, _SECURITY_RESOURCE)
    _code(entry, "ParticipantObjectIDTypeCode", "journal-entry", "Relais", "Journal entry")
    etree.SubElement(entry, "ParticipantObjectName").text = "journal entry"
    for name, value in (("hash", record.hash.hex()), ("purpose", record.purpose), ("outcome", record.outcome)):
        if value:
            encoded = base64.b64encode(value.encode()).decode()
            etree.SubElement(entry, "ParticipantObjectDetail", type=name, value=encoded)
    return etree.tostring(message, encoding="utf-8", xml_declaration=False)


def syslog_message(record: AuditRecord, source: str, host: str) -> bytes:
    """The same as one RFC 5424 message, its time that of the act."""
    header = SyslogHeader(PRIORITY, host, "relais", MESSAGE_ID)
    return header.frame(BOM + audit_message(record, source), record.at)


def _participant(message: etree._Element, identifier: str, kind: str, role: str) -> etree._Element:
    return etree.SubElement(
        message,
        "ParticipantObjectIdentification",
        ParticipantObjectID=_clean(identifier),
        ParticipantObjectTypeCode=kind,
        ParticipantObjectTypeCodeRole=role,
    )


def _code(parent: etree._Element, name: str, code: str, system: str, text: str) -> None:
    etree.SubElement(parent, name, {"csd-code": _clean(code), "codeSystemName": system, "originalText": _clean(text)})


def _clean(text: str) -> str:
    """XML 1.0 has no place for control characters and lone surrogates."""
    return "".join(
        c if c in "\t\n\r" or ("\x20" <= c <= "\ud7ff") or "\ue000" <= c <= "\ufffd" or c > "\uffff" else "\ufffd"
        for c in text
    )
