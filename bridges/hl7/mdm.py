"""A `Report` written as an HL7 v2.6 MDM message: the hospital's letters take the laboratory's road.

The inverse of `bridges.hl7.reader.parse` for one document: volet "Transmission de documents CDA-R2 en HL7 v2" v2.1,
CREATEUR to GESTIONNAIRE. MDM^T02 for a new document, T10 for one that replaces another, T04 for a withdrawal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import pybase64

from bridges.hl7.er7 import escape
from bridges.identity import INS_NIA
from bridges.report import Action, Audience, Correspondent, Document, Flags, Party, PatientIdentity, Report

_WORDS = {Action.NEW: ("T02", "NW", "F"), Action.REPLACE: ("T10", "RO", "C"), Action.DELETE: ("T04", "CA", "D")}
"""MSH-9.2, ORC-1 and OBX-11 that agree (table of event coherence)."""
_PATIENT_CLASS = {"03": "I", "07": "O", "19": "R", "97": "N"}
_LOINC = "2.16.840.1.113883.6.1"
_PROFESSIONALS = "ASIP-SANTE-PS&1.2.250.1.71.4.2.1&ISO"
_STRUCTURES = "ASIP-SANTE-ST&1.2.250.1.71.4.2.2&ISO"
_NATIONAL_IDENTIFIER = re.compile(r"[0-9][0-9A-Za-z/]{7,}")
_TS = re.compile(r"[0-9]{8}(?:[0-9]{2}|[0-9]{4}|[0-9]{6})?(?:[+-][0-9]{4})?")
_FLAGS = (
    ("MASQUE_PS", "Masqué aux professionnels de Santé", "masked_to_professionals"),
    ("INVISIBLE_PATIENT", "Document Non Visible par le patient", "hidden_from_patient"),
    ("INVISIBLE_REP_LEGAUX", "Non visible par les représentants Légaux du patient", "hidden_from_representatives"),
    ("CONNEXION_SECRETE", "Connexion Secrète", "secret_connection"),
    ("MODIF_CONF_CODE", "Modification Confidentiality Code", "confidentiality_modified"),
    ("DESTDMP", "Destinataire DMP", "to_dossier"),
    ("DESTMSSANTEPS", "Destinataire (Professionnel de Santé, organisation ou BAL applicative)", "to_professionals"),
    ("DESTMSSANTEPAT", "Destinataire Patient", "to_patient"),
    ("ACK_RECEPTION", "Accusé de réception", "ack_reception"),
    ("ACK_LECTURE_MSS", "Accusé de lecture", "ack_reading"),
)
"""Code, label and field of `Flags`, in the order the volet fixes."""


def compose(report: Report) -> bytes:
    """One message in UTF-8, segments ended by CR, without MLLP envelope; the same report gives the same bytes.

    MSH-7 and EVN-2 are the document's own date, not the moment of composing: a letter that is submitted again is then
    recognised by its bytes. Raises ValueError when the report does not have exactly one document, as an MDM must.
    """
    if len(report.documents) != 1:
        raise ValueError("an MDM message carries exactly one document")
    document = report.documents[0]
    event, order, status = _WORDS[report.action]
    date = document.created if _TS.fullmatch(document.created) else ""
    system = "LN" if document.type_system == _LOINC else "TRE_A05"
    code = _components(document.type_code, document.type_label, system)
    lines = [
        _segment(
            "MSH",
            {
                2: "^~\\&",
                3: escape(report.sending_application),
                4: escape(report.sending_facility),
                5: "RELAIS",
                6: escape(report.sending_facility),
                7: date,
                9: f"MDM^{event}^MDM_T02",
                10: escape(report.control_id),
                11: "P",
                12: "2.6",
                17: "FRA",
                18: "UNICODE UTF-8",
                21: "2.1^CISIS_CDA_HL7_V2",
            },
        ),
        _segment("EVN", {2: date}),
        _pid(report.patient),
        _segment("PV1", {1: "1", 2: _PATIENT_CLASS.get(report.content_type_code, "N")}),
        _segment("ORC", {1: order}),
        _segment("OBR", {1: "1", 4: code}),
        _txa(document, report.action, date),
        _document(code, document, status),
        _sender(report.sender),
        *(_recipient(correspondent, report.patient) for correspondent in report.correspondents),
    ]
    if report.reply_to:
        lines.append(_prt("REPLY^Reply To", {15: _telecom(report.reply_to)}))
    lines += _flags(report.flags, first=2)
    bodies = (
        ("CORPSMAIL_PS", "Corps du mail pour un PS", report.body_professional),
        ("CORPSMAIL_PATIENT", "Corps du mail pour un patient", report.body_patient),
    )
    for name, label, body in bodies:
        if body:
            number = 1 + sum(line.startswith(b"OBX|") for line in lines)
            encoded = pybase64.b64encode(body.encode("utf-8", "replace")).decode("ascii")
            lines.append(_observation(number, "ED", f"{name}^{label}^MetaDMPMSS", f"^text^^Base64^{encoded}"))
    return b"\r".join([*lines, b""])


def _segment(name: str, fields: dict[int, str]) -> bytes:
    """`fields` by their number in the standard, already escaped; MSH-1 is the separator itself."""
    first = 2 if name == "MSH" else 1
    values = [fields.get(number, "") for number in range(first, max(fields) + 1)]
    return "|".join([name, *values]).rstrip("|").encode("utf-8", "replace")


def _components(*values: str) -> str:
    return "^".join(escape(value) for value in values).rstrip("^")


def _pid(patient: PatientIdentity) -> bytes:
    identifiers = []
    if patient.matricule:
        identifiers.append(f"{escape(patient.matricule)}^^^{_ins_authority(patient)}^INS")
    identifiers += [f"{escape(value)}^^^&{escape(authority)}&ISO^PI" for value, authority in patient.local_ids]
    first = next(iter(patient.first_names), "")
    names = [_components(patient.birth_name, first, " ".join(patient.first_names)) + "^^^^L"]
    if patient.used_name:
        names.append(_components(patient.used_name, first) + "^^^^^D")
    fields = {
        3: "~".join(identifiers),
        5: "~".join(names),
        7: escape(patient.birth_date),
        8: escape(patient.sex),
        11: f"^^^^^^BDL^^{escape(patient.birth_place)}" if patient.birth_place else "",
        32: escape(patient.reliability),
    }
    return _segment("PID", fields)


def _ins_authority(patient: PatientIdentity) -> str:
    name = "ASIP-SANTE-INS-NIA" if patient.matricule_oid == INS_NIA else "ASIP-SANTE-INS-NIR"
    return f"{name}&{escape(patient.matricule_oid)}&ISO"


def _txa(document: Document, action: Action, date: str) -> bytes:
    parent = _entity(document.parent_id) if action is Action.REPLACE else ""
    fields = {
        1: "1",
        2: escape(document.type_code),
        3: "TEXT",
        4: date,
        12: _entity(document.unique_id),
        13: parent,
        17: "AU",
    }
    return _segment("TXA", fields)


def _entity(identifier: str) -> str:
    """`root^extension` as `extension^^root^ISO`, a bare root as it is."""
    root, _, extension = identifier.partition("^")
    return f"{escape(extension)}^^{escape(root)}^ISO" if extension else escape(root)


def _document(code: str, document: Document, status: str) -> bytes:
    """OBX-1, its content encoded once and never turned into text."""
    head = f"OBX|1|ED|{code}||^text^XML^Base64^".encode("utf-8", "replace")
    return b"".join((head, pybase64.b64encode(document.content), f"||||||{status}".encode("ascii")))


def _sender(party: Party) -> bytes:
    return _prt("SB^Send by", {5: _person(party), 8: _organisation(party)})


def _recipient(correspondent: Correspondent, patient: PatientIdentity) -> bytes:
    party = correspondent.party
    if correspondent.audience is Audience.PATIENT:
        identity = (patient.matricule, patient.birth_name, next(iter(patient.first_names), ""))
        person = "^".join(escape(value) for value in identity) + f"^^^^^^{_ins_authority(patient)}^L^^^INS"
    else:
        person = _person(party)
    fields = {5: person, 8: _organisation(party), 15: _telecom(correspondent.address)}
    return _prt("RCT^Result Copies To", fields)


def _prt(role: str, fields: dict[int, str]) -> bytes:
    return _segment("PRT", {2: "UC", 4: f"{role}^participation"} | fields)


def _person(party: Party) -> str:
    """XCN; a professional's authority is named only for what has the form of a national identifier (IdNat_PP)."""
    named = _components(party.id_nat, party.family, party.given)
    if (party.family or party.given) and _NATIONAL_IDENTIFIER.fullmatch(party.id_nat):
        return named + "^" * (8 - named.count("^")) + f"{_PROFESSIONALS}^D^^^IDNPS"
    return named if party.family or party.given else ""


def _organisation(party: Party) -> str:
    """XON."""
    name = escape(party.organisation)
    if not _NATIONAL_IDENTIFIER.fullmatch(party.organisation_id):
        return f"{name}^^^^^^^^^{escape(party.organisation_id)}".rstrip("^")
    return f"{name}^^^^^{_STRUCTURES}^IDNST^^^{escape(party.organisation_id)}"


def _telecom(address: str) -> str:
    return f"^^X.400^{escape(address)}"


def _flags(flags: Flags, first: int) -> Iterable[bytes]:
    number = first
    for code, label, name in _FLAGS:
        said = getattr(flags, name)
        if said is None:
            continue
        value = f"{'Y' if said else 'N'}^^expandedYes-NoIndicator"
        yield _observation(number, "CWE", f"{code}^{label}^MetaDMPMSS", value)
        if code == "DESTMSSANTEPAT" and flags.last_of_exchange:
            yield _segment("NTE", {1: "1", 4: "FIN"})
        number += 1


def _observation(number: int, kind: str, code: str, value: str) -> bytes:
    return _segment("OBX", {1: str(number), 2: kind, 3: code, 5: value, 11: "F"})
