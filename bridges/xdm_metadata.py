"""METADATA.XML of an IHE XDM archive: one SubmissionSet and its DocumentEntries in ebRIM 3.0 (IHE ITI TF-3 §4.2).

The French profile is the volet "Partage de documents de santé" of the CI-SIS; where a value comes from is the mapping
of the volet "Transmission de documents CDA-R2 en HL7 v2" v2.1. Identifiers are name-based (RFC 9562 §5.5), so that the
same report always gives the same bytes and a replacement designates the entry that was sent before.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO

from lxml import etree

from bridges import labels
from bridges.plain import one_line
from bridges.report import Action, Document, Party, PatientIdentity, Report

LCM = "urn:oasis:names:tc:ebxml-regrep:xsd:lcm:3.0"
RIM = "urn:oasis:names:tc:ebxml-regrep:xsd:rim:3.0"
_OBJECT = "urn:oasis:names:tc:ebxml-regrep:ObjectType:RegistryObject:"
_STATUS = "urn:oasis:names:tc:ebxml-regrep:StatusType:Approved"

DOCUMENT_ENTRY = "urn:uuid:7edca82f-054d-47f2-a032-9b2a5b5186c1"
DOCUMENT_AUTHOR = "urn:uuid:93606bcf-9494-43ec-9b4e-a7748d1a838d"
DOCUMENT_CLASS = "urn:uuid:41a5887f-8865-4c09-adf7-e362475b143a"
DOCUMENT_TYPE = "urn:uuid:f0306f51-975f-434e-a61c-c59651d33983"
DOCUMENT_FORMAT = "urn:uuid:a09d5840-386c-46f2-b5ad-9c3699a4309d"
DOCUMENT_CONFIDENTIALITY = "urn:uuid:f4f85eac-e6cb-4883-b524-f2705394840f"
DOCUMENT_FACILITY = "urn:uuid:f33fb8ac-18af-42cc-ae0e-ed0b0bdb91e1"
DOCUMENT_PRACTICE_SETTING = "urn:uuid:cccf5598-8b07-4b77-a05e-ae952c785ead"
DOCUMENT_PATIENT_ID = "urn:uuid:58a6f841-87b3-4a3e-92fd-a8ffeff98427"
DOCUMENT_UNIQUE_ID = "urn:uuid:2e82c1f6-a085-4c72-9da3-8640a32e42ab"
SUBMISSION_SET = "urn:uuid:a54d6aa5-d40d-43f9-88c5-b4633d873bdd"
SUBMISSION_AUTHOR = "urn:uuid:a7058bb9-b4e4-4307-ba5b-e3f0ab85e12d"
SUBMISSION_CONTENT_TYPE = "urn:uuid:aa543740-bdda-424e-8c96-df4873be8500"
SUBMISSION_PATIENT_ID = "urn:uuid:6b5aea1a-874d-4603-a4bc-96a0a7b38446"
SUBMISSION_SOURCE_ID = "urn:uuid:554ac39e-e3fe-47fe-b233-965d2a147832"
SUBMISSION_UNIQUE_ID = "urn:uuid:96fdda7c-d067-4183-912e-bf5ee74998a8"
HAS_MEMBER = "urn:oasis:names:tc:ebxml-regrep:AssociationType:HasMember"
REPLACES = "urn:ihe:iti:2007:AssociationType:RPLC"

ACTION_SLOT = "action"
"""The extra-metadata that asks a receiving software to replace (C) or delete (D)."""
_ACTION_CODES = {Action.REPLACE: "C", Action.DELETE: "D"}
_PERSONS = "1.2.250.1.71.4.2.1"
_STRUCTURES = "1.2.250.1.71.4.2.2"
_IHE_FORMATS = "1.3.6.1.4.1.19376.1.2.3"
_FRENCH_FORMATS = "1.2.250.1.213.1.1.4.2.282"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:relais:xdm")


@dataclass(frozen=True, slots=True)
class _Entry:
    """The parts DocumentEntries and SubmissionSets share, in the order ebRIM wants them."""

    id: str
    element: etree._Element

    def slot(self, name: str, *values: str) -> None:
        """A slot with its non-empty values; nothing when all are empty."""
        self._slot_in(self.element, name, values)

    def name(self, text: str) -> None:
        _localized(self.element, text)

    def code(self, scheme: str, code: str, system: str, label: str) -> None:
        """A coded attribute; nothing when the code is empty."""
        if not code:
            return
        classification = self._classification(scheme, code)
        self._slot_in(classification, "codingScheme", (system,))
        _localized(classification, label or code)

    def author(self, scheme: str, party: Party, specialty: str = "") -> None:
        classification = self._classification(scheme, "")
        self._slot_in(classification, "authorInstitution", (_xon(party),))
        self._slot_in(classification, "authorPerson", (_xcn(party),))
        if specialty:
            label = labels.profession_label(specialty)
            system = labels.SPECIALTY if specialty.startswith("G") else labels.NON_PROFESSIONAL
            self._slot_in(classification, "authorSpecialty", (f"{_hl7(specialty)}^{label}^{system}",))

    def external_identifier(self, scheme: str, name: str, value: str) -> None:
        if not value:
            return
        identifier = etree.SubElement(
            self.element,
            f"{{{RIM}}}ExternalIdentifier",
            {
                "id": _name_based(self.id, scheme),
                "registryObject": self.id,
                "identificationScheme": scheme,
                "objectType": _OBJECT + "ExternalIdentifier",
                "value": one_line(value),
            },
        )
        _localized(identifier, name)

    def _classification(self, scheme: str, representation: str) -> etree._Element:
        return etree.SubElement(
            self.element,
            f"{{{RIM}}}Classification",
            {
                "id": _name_based(self.id, scheme, str(len(self.element))),
                "classificationScheme": scheme,
                "classifiedObject": self.id,
                "objectType": _OBJECT + "Classification",
                "nodeRepresentation": one_line(representation),
            },
        )

    @staticmethod
    def _slot_in(parent: etree._Element, name: str, values: Iterable[str]) -> None:
        kept = [line for line in (one_line(value) for value in values) if line]
        if not kept:
            return
        slot = etree.SubElement(parent, f"{{{RIM}}}Slot", {"name": name})
        values_list = etree.SubElement(slot, f"{{{RIM}}}ValueList")
        for value in kept:
            etree.SubElement(values_list, f"{{{RIM}}}Value").text = value


def build_metadata(
    report: Report, names: Sequence[str], *, at: datetime, source_id: str, submission_id: str, action: Action
) -> bytes:
    """METADATA.XML in UTF-8. `names`: the file of each document, in the report's order."""
    root = etree.Element(f"{{{LCM}}}SubmitObjectsRequest", nsmap={"lcm": LCM, "rim": RIM})
    objects = etree.SubElement(root, f"{{{RIM}}}RegistryObjectList")
    entries: list[str] = []
    for document, name in zip(report.documents, names, strict=True):
        entry = entry_uuid(document.unique_id)
        if entry in entries:  # twins that share one uniqueId
            entry = entry_uuid(f"{document.unique_id}\n{name}")
        entries.append(entry)
        _document_entry(objects, entry, report, document, name, action)
    submission = _submission_set(objects, report, at, source_id, submission_id, action)
    for document, entry in zip(report.documents, entries, strict=True):
        member = _associate(objects, HAS_MEMBER, submission, entry)
        _Entry(entry, member).slot("SubmissionSetStatus", "Original")
        if action is Action.REPLACE and document.parent_id:
            _associate(objects, REPLACES, entry, entry_uuid(document.parent_id))
    return etree.tostring(root, encoding="UTF-8", xml_declaration=True)


def confidentiality_of(entry: etree._Element) -> tuple[str, ...]:
    """What an ExtrinsicObject says of its readers: N, R or V, and the masks (1.2.250.1.213.1.1.4.13), upper case."""
    codes = (
        each.get("nodeRepresentation", "").strip().upper()
        for each in entry.iter("{*}Classification")
        if each.get("classificationScheme", "").strip().lower() == DOCUMENT_CONFIDENTIALITY
    )
    return tuple(code for code in codes if code)


def entry_uuid(unique_id: str) -> str:
    """The entryUUID Relais gives the document with this uniqueId, in every archive it writes."""
    return _name_based("DocumentEntry", unique_id)


def _name_based(*parts: str) -> str:
    return uuid.uuid5(_NAMESPACE, "\n".join(parts)).urn


def _document_entry(
    objects: etree._Element, entry_id: str, report: Report, document: Document, file_name: str, action: Action
) -> None:
    element = etree.SubElement(
        objects,
        f"{{{RIM}}}ExtrinsicObject",
        {
            "id": entry_id,
            "objectType": DOCUMENT_ENTRY,
            "mimeType": _mime_type(document.content),
            "status": _STATUS,
        },
    )
    patient = report.patient
    entry = _Entry(entry_id, element)
    entry.slot("creationTime", _dtm(document.created))
    entry.slot("languageCode", document.language or "fr-FR")
    entry.slot("legalAuthenticator", _legal_authenticator(document.content))
    entry.slot("serviceStartTime", _dtm(document.service_start or document.created))
    entry.slot("serviceStopTime", _dtm(document.service_stop))
    entry.slot("sourcePatientId", _local_id(patient) or _patient_id(patient))
    entry.slot("sourcePatientInfo", *_patient_info(patient))
    entry.slot("hash", hashlib.sha1(document.content, usedforsecurity=False).hexdigest())
    entry.slot("size", str(len(document.content)))
    entry.slot("URI", file_name)
    entry.slot(ACTION_SLOT, _ACTION_CODES.get(action, ""))
    entry.name(document.title or labels.type_label(document.type_code, document.type_label))
    entry.author(DOCUMENT_AUTHOR, document.author, document.author_specialty)
    entry.code(DOCUMENT_CLASS, *_class_code(document))
    level = document.confidentiality or "N"
    entry.code(DOCUMENT_CONFIDENTIALITY, level, labels.CONFIDENTIALITY, labels.CONFIDENTIALITY_LABELS.get(level, level))
    for code in _visibility(report):
        entry.code(DOCUMENT_CONFIDENTIALITY, code, labels.VISIBILITY, labels.VISIBILITY_LABELS[code])
    ihe = document.format_code.startswith("urn:ihe:")
    entry.code(DOCUMENT_FORMAT, document.format_code, _IHE_FORMATS if ihe else _FRENCH_FORMATS, document.format_code)
    entry.code(
        DOCUMENT_FACILITY,
        document.facility,
        labels.FACILITY,
        labels.FACILITY_LABELS.get(document.facility, ""),
    )
    entry.code(
        DOCUMENT_PRACTICE_SETTING,
        document.practice_setting,
        labels.PRACTICE_SETTING,
        labels.PRACTICE_SETTING_LABELS.get(document.practice_setting, ""),
    )
    entry.code(
        DOCUMENT_TYPE,
        document.type_code,
        document.type_system,
        labels.type_label(document.type_code, document.type_label),
    )
    entry.external_identifier(DOCUMENT_PATIENT_ID, "XDSDocumentEntry.patientId", _patient_id(patient))
    entry.external_identifier(DOCUMENT_UNIQUE_ID, "XDSDocumentEntry.uniqueId", document.unique_id)


def _submission_set(
    objects: etree._Element, report: Report, at: datetime, source_id: str, submission_id: str, action: Action
) -> str:
    set_id = _name_based("SubmissionSet", submission_id)
    element = etree.SubElement(
        objects,
        f"{{{RIM}}}RegistryPackage",
        {"id": set_id, "objectType": _OBJECT + "RegistryPackage", "status": _STATUS},
    )
    entry = _Entry(set_id, element)
    entry.slot("submissionTime", at.astimezone(UTC).strftime("%Y%m%d%H%M%S"))
    entry.slot(ACTION_SLOT, _ACTION_CODES.get(action, ""))
    documents = report.documents
    entry.name(
        labels.type_label(documents[0].type_code, documents[0].type_label)
        if len(documents) == 1
        else f"{len(documents)} documents"
    )
    entry.author(SUBMISSION_AUTHOR, report.sender)
    content_type = report.content_type_code or "97"
    entry.code(
        SUBMISSION_CONTENT_TYPE,
        content_type,
        labels.CONTENT_TYPES,
        labels.CONTENT_TYPE_LABELS.get(content_type, ""),
    )
    entry.external_identifier(SUBMISSION_PATIENT_ID, "XDSSubmissionSet.patientId", _patient_id(report.patient))
    entry.external_identifier(SUBMISSION_SOURCE_ID, "XDSSubmissionSet.sourceId", source_id)
    entry.external_identifier(SUBMISSION_UNIQUE_ID, "XDSSubmissionSet.uniqueId", submission_id.removeprefix("urn:oid:"))
    etree.SubElement(
        objects,
        f"{{{RIM}}}Classification",
        {
            "id": _name_based(set_id, SUBMISSION_SET),
            "classifiedObject": set_id,
            "classificationNode": SUBMISSION_SET,
            "objectType": _OBJECT + "Classification",
        },
    )
    return set_id


def _associate(objects: etree._Element, kind: str, source: str, target: str) -> etree._Element:
    return etree.SubElement(
        objects,
        f"{{{RIM}}}Association",
        {
            "id": _name_based("Association", kind, source, target),
            "associationType": kind,
            "sourceObject": source,
            "targetObject": target,
            "objectType": _OBJECT + "Association",
        },
    )


def _localized(parent: etree._Element, text: str) -> None:
    name = etree.SubElement(parent, f"{{{RIM}}}Name")
    etree.SubElement(name, f"{{{RIM}}}LocalizedString", {"value": one_line(text, 256) or "-"})


def _class_code(document: Document) -> tuple[str, str, str]:
    code, label = labels.class_of(document.type_code)
    return code, labels.CLASS, label


def _visibility(report: Report) -> tuple[str, ...]:
    flags = (
        ("MASQUE_PS", report.flags.masked_to_professionals),
        ("INVISIBLE_PATIENT", report.flags.hidden_from_patient),
        ("INVISIBLE_REPRESENTANTS_LEGAUX", report.flags.hidden_from_representatives),
    )
    return tuple(code for code, asked in flags if asked)


def _mime_type(content: bytes) -> str:
    """`application/xslt+xml` for a self-presenting CDA (its root is a stylesheet), else `text/xml`."""
    return "application/xslt+xml" if b"<xsl:stylesheet" in content[:8192] else "text/xml"


def _dtm(ts: str) -> str:
    """An HL7 TS as XDS DTM: UTC without offset when it has one, else its digits as they are."""
    text = ts.strip()
    for form, kept in (("%Y%m%d%H%M%S%z", "%Y%m%d%H%M%S"), ("%Y%m%d%H%M%z", "%Y%m%d%H%M")):
        try:
            return datetime.strptime(text, form).astimezone(UTC).strftime(kept)
        except (ValueError, OverflowError):
            continue
    digits = text.split("+")[0].split("-")[0].split(".")[0]
    return digits if digits.isascii() and digits.isdigit() else ""


def _hl7(text: str) -> str:
    """A value inside an HL7 v2 composite: the delimiters escaped (HL7 v2.5 §2.7.1)."""
    escapes = {"\\": "\\E\\", "^": "\\S\\", "&": "\\T\\", "|": "\\F\\", "~": "\\R\\"}
    return "".join(escapes.get(c, c) for c in one_line(text, 200))


def _xcn(party: Party) -> str:
    """authorPerson (XCN). The system that sent stands in when no person is named."""
    if not (party.id_nat or party.family or party.given):
        return ""
    authority = f"&{_PERSONS}&ISO" if party.id_nat else ""
    kind = "IDNPS" if party.id_nat else ""
    person = "^".join((_hl7(party.id_nat), _hl7(party.family), _hl7(party.given)))
    return f"{person}^^^^^^{authority}^D^^^{kind}".rstrip("^")


def _xon(party: Party) -> str:
    """authorInstitution (XON)."""
    if not (party.organisation or party.organisation_id):
        return ""
    if not party.organisation_id:
        return _hl7(party.organisation)
    return f"{_hl7(party.organisation)}^^^^^&{_STRUCTURES}&ISO^IDNST^^^{_hl7(party.organisation_id)}"


def _cx(identifier: str, authority: str, kind: str) -> str:
    return f"{_hl7(identifier)}^^^&{_hl7(authority)}&ISO^{kind}"


def _patient_id(patient: PatientIdentity) -> str:
    """The INS, by which the recipient recognises the patient (ECO.2.1.2); a local identifier when there is none."""
    return _cx(patient.matricule, patient.matricule_oid, "NH") if patient.matricule else _local_id(patient)


def _local_id(patient: PatientIdentity) -> str:
    return _cx(*patient.local_ids[0], "PI") if patient.local_ids else ""


def _patient_info(patient: PatientIdentity) -> tuple[str, ...]:
    first = _hl7(patient.first_names[0]) if patient.first_names else ""
    others = _hl7(" ".join(patient.first_names))
    lines = [f"PID-5|{_hl7(patient.birth_name)}^{first}^{others}^^^^L"]
    if patient.used_name:
        lines.append(f"PID-5|{_hl7(patient.used_name)}^{first}^^^^^D")
    lines += [f"PID-7|{_hl7(patient.birth_date)}", f"PID-8|{_hl7(patient.sex)}"]
    if patient.birth_place:
        lines.append(f"PID-11|^^^^^^BDL^^{_hl7(patient.birth_place)}")
    return tuple(lines)


def _legal_authenticator(content: bytes) -> str:
    """legalAuthenticator (XCN) from the CDA header, read no further than the body; empty when absent or unreadable."""
    v3 = "{urn:hl7-org:v3}"
    events = etree.iterparse(
        BytesIO(content),
        events=("start", "end"),
        tag=(v3 + "legalAuthenticator", v3 + "component"),
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=True,
    )
    try:
        for event, element in events:
            if element.tag == v3 + "component":
                return ""
            if event == "end":
                return _xcn(_assigned(element, v3))
    except etree.XMLSyntaxError:
        return ""
    return ""


def _assigned(element: etree._Element, v3: str) -> Party:
    path = f"{v3}assignedEntity/{v3}"
    identifier = element.find(path + "id")
    return Party(
        id_nat="" if identifier is None else identifier.get("extension", ""),
        family=element.findtext(f"{path}assignedPerson/{v3}name/{v3}family", ""),
        given=element.findtext(f"{path}assignedPerson/{v3}name/{v3}given", ""),
    )
