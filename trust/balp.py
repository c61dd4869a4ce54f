"""An act as a FHIR R4 AuditEvent after IHE's Basic Audit Log Patterns, one JSON object a line (NDJSON).

An act that succeeded and concerns a patient claims the profile of its kind (PatientRead, PatientCreate, PatientUpdate),
which is for successes only; every other is a plain AuditEvent of the same shape. The gateway is both
where the act was done and who recorded it; the network address of whoever asked is not in the journal and is given as
unknown.
"""

from __future__ import annotations

import json
from typing import Any

from trust.audit import AuditRecord, Kind

_PROFILES = "https://profiles.ihe.net/ITI/BALP/StructureDefinition/IHE.BasicAudit."
_DCM = "http://dicom.nema.org/resources/ontology/DCM"
_TERMS = "http://terminology.hl7.org/CodeSystem/"
_INTERACTIONS = {
    Kind.READ: ("PatientRead", "read", "R"),
    Kind.QUERY: ("", "search", "E"),  # the profile wants the query itself, which may name a patient
    Kind.CREATE: ("PatientCreate", "create", "C"),
    Kind.UPDATE: ("PatientUpdate", "update", "U"),
}
_DESTINATION = ("110152", "Destination Role ID")
_SOURCE = ("110153", "Source Role ID")
_SYSTEM = "urn:relais:journal"


def audit_event(record: AuditRecord, source: str) -> dict[str, Any]:
    """One resource; `source` is the name of this journal."""
    event: dict[str, Any] = {"resourceType": "AuditEvent", "id": f"{record.hash.hex()}"}
    profile, interaction, action = _INTERACTIONS.get(record.kind, ("", "", "E"))
    if profile and record.subject and record.succeeded and record.object_id:
        event["meta"] = {"profile": [_PROFILES + profile]}
    if interaction:
        event["type"] = _coding(_TERMS + "audit-event-type", "rest", "Restful Operation")
        event["subtype"] = [_coding("http://hl7.org/fhir/restful-interaction", interaction, interaction)]
    else:
        event["type"] = _coding(_DCM, "110100", "Application Activity")
        event["subtype"] = []
    event["subtype"].append(_coding(_SYSTEM + ":action", record.action or "erased", record.action or "erased"))
    event["action"] = action
    event["recorded"] = record.at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    event["outcome"] = "0" if record.succeeded or not record.action else "4"
    if record.outcome and not record.succeeded:
        event["outcomeDesc"] = record.outcome
    if record.purpose:
        event["purposeOfEvent"] = [{"text": record.purpose}]
    event["agent"] = _agents(record)
    event["source"] = {
        "site": source,
        "observer": {"display": record.writer},
        "type": [_coding(_TERMS + "security-source-type", "4", "Application Server")],
    }
    event["entity"] = _entities(record)
    return event


def line(record: AuditRecord, source: str) -> str:
    """One line of NDJSON, ASCII, without its end."""
    return json.dumps(audit_event(record, source), separators=(",", ":"))


def _agents(record: AuditRecord) -> list[dict[str, Any]]:
    # What is read goes from us to them; what is asked or brought comes from them to us.
    client, server = (_DESTINATION, _SOURCE) if record.kind is Kind.READ else (_SOURCE, _DESTINATION)
    user = ("IRCP", "information recipient") if record.kind in (Kind.READ, Kind.QUERY) else ("AUT", "author")
    return [
        {
            "type": {"coding": [_coding(_DCM, *client)]},
            "who": {"display": "client of the gateway"},
            "requestor": False,
            "network": {"address": "unknown", "type": "1"},
        },
        {
            "type": {"coding": [_coding(_DCM, *server)]},
            "who": {"display": record.writer},
            "requestor": False,
            "network": {"address": record.writer, "type": "1"},
        },
        {
            "type": {"coding": [_coding(_TERMS + "v3-ParticipationType", *user)]},
            "who": {"identifier": {"value": record.actor or "unknown"}},
            "requestor": True,
        },
    ]


def _entities(record: AuditRecord) -> list[dict[str, Any]]:
    entities: list[dict[str, Any]] = []
    if record.subject:
        entities.append(
            {
                "what": {"type": "Patient", "identifier": {"system": _SYSTEM + ":pseudonym", "value": record.subject}},
                "type": _coding(_TERMS + "audit-entity-type", "1", "Person"),
                "role": _coding(_TERMS + "object-role", "1", "Patient"),
            }
        )
    if record.object_id:
        query = record.kind is Kind.QUERY
        entities.append(
            {
                "what": {"identifier": {"value": record.object_id}},
                "type": _coding(_TERMS + "audit-entity-type", "2", "System Object"),
                "role": _coding(_TERMS + "object-role", *(("24", "Query") if query else ("3", "Report"))),
            }
        )
    entities.append(
        {
            "what": {"identifier": {"system": _SYSTEM, "value": f"{record.writer}#{record.sequence}"}},
            "type": _coding(_TERMS + "audit-entity-type", "4", "Other"),
            "role": _coding(_TERMS + "object-role", "13", "Security Resource"),
            "detail": [{"type": "hash", "valueString": record.hash.hex()}],
        }
    )
    return entities


def _coding(system: str, code: str, display: str) -> dict[str, str]:
    return {"system": system, "code": code, "display": display}
