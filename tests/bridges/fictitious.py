"""Reports of people who do not exist, for the tests of what leaves the bridges."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bridges.report import Action, Document, Flags, Party, PatientIdentity, Report, Result

PATIENT = PatientIdentity(
    matricule="279035121518989",
    matricule_oid="1.2.250.1.213.1.4.8",
    birth_name="Fictif-Élan",
    first_names=("Zoé", "Marie"),
    used_name="Imaginaire",
    birth_date="19790328",
    sex="F",
    birth_place="63220",
    local_ids=(("IPP42", "1.2.3.4.5"),),
    reliability="VALI",
)
AUTHOR = Party(
    id_nat="801234500001", family="Essai", given="Paul", organisation="Laboratoire Témoin", organisation_id="1120000001"
)
CDA = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<ClinicalDocument xmlns="urn:hl7-org:v3"><title>Compte rendu</title>'
    b'<legalAuthenticator><assignedEntity><id root="1.2.250.1.71.4.2.1" extension="801234500002"/><assignedPerson>'
    b"<name><family>Valide</family><given>Anne</given></name></assignedPerson></assignedEntity></legalAuthenticator>"
    b"<component/></ClinicalDocument>"
)


def result(label: str = "Hémoglobine", value: str = "13.0", **changes: str) -> Result:
    fields = {
        "section": "Hématologie",
        "code": "718-7",
        "code_system": "2.16.840.1.113883.6.1",
        "unit": "g/dL",
        "low": "12.0",
        "high": "16.0",
        "interpretation": "",
        "effective": "20261120",
    }
    return Result(label=label, value=value, **(fields | changes))


def document(**changes: Any) -> Document:
    plain = Document(
        content=CDA,
        unique_id="1.2.3.4.100^A1",
        set_id="1.2.3.4.100",
        version=1,
        parent_id="",
        type_code="11502-2",
        type_label="CR d'examens biologiques",
        type_system="2.16.840.1.113883.6.1",
        title="Compte rendu d'examens biologiques",
        created="20261121091500+0100",
        service_start="20261120080000+0100",
        service_stop="",
        language="fr-FR",
        confidentiality="N",
        patient=PATIENT,
        author=AUTHOR,
        author_specialty="G15_10/SM03",
        practice_setting="AMBULATOIRE",
        facility="SA25",
        level=3,
        format_code="urn:ihe:lab:xd-lab:2008",
        results=(),
        pdf=None,
        narrative="",
    )
    return replace(plain, **changes)


def report(*documents: Document, **changes: Any) -> Report:
    plain = Report(
        control_id="M1",
        sending_application="SIL",
        sending_facility="LABO",
        event="ORU^R01",
        action=Action.NEW,
        patient=PATIENT,
        sender=AUTHOR,
        documents=documents or (document(),),
        correspondents=(),
        reply_to="",
        flags=Flags(),
        body_professional="",
        body_patient="",
        content_type_code="07",
        findings=(),
    )
    return replace(plain, **changes)
