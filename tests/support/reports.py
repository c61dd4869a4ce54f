"""Synthetic laboratory and imaging reports: CDA, HL7 v2 messages of the shape French senders send, and spoilt ones.

Everybody here is invented; matricules are under the national test authority. Output is deterministic: the files under
`tests/data` and `config/demo/report.hl7` are exactly what these functions return (`python -m tests.support.reports`
writes them again).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from xml.sax.saxutils import escape as xml_text
from xml.sax.saxutils import quoteattr

from bridges.identity import INS_NIR_TEST, matricule_key
from bridges.report import Action

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
DEMONSTRATION_FILE = ROOT / "config" / "demo" / "report.hl7"
LETTER_FILE = ROOT / "config" / "demo" / "letter.xml"

CODECS = {"UNICODE UTF-8": "utf-8", "8859/15": "iso8859-15", "8859/1": "latin-1", "": "utf-8"}


@dataclass(frozen=True, slots=True)
class Patient:
    matricule: str
    family: str
    given: tuple[str, ...]
    birth_date: str
    sex: str
    birth_place: str
    oid: str = INS_NIR_TEST
    local_id: str = "990001"


@dataclass(frozen=True, slots=True)
class Correspondent:
    """One PRT RCT."""

    address: str
    identifier: str = ""
    family: str = ""
    given: str = ""
    organisation: str = ""
    patient: bool = False


@dataclass(frozen=True, slots=True)
class Observation:
    label: str
    loinc: str
    display: str
    value: str
    unit: str
    low: str = ""
    high: str = ""
    interpretation: str = ""
    kind: str = "PQ"
    """PQ, ST, CD, or `<` / `>` for a censored IVL_PQ."""
    before: str = ""
    """An earlier value, quoted as the laboratory does."""


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    loinc: str
    observations: tuple[Observation, ...]
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Flags:
    """`None` leaves the observation out."""

    masked: bool | None = False
    hidden_from_patient: bool | None = False
    hidden_from_representatives: bool | None = False
    secret: bool | None = False
    modified: bool | None = False
    to_dossier: bool | None = True
    to_professionals: bool | None = True
    to_patient: bool | None = True
    ack_reception: bool | None = True
    ack_reading: bool | None = False
    extra: tuple[tuple[str, str], ...] = field(default=())
    """(code, value) pairs as they should stand, for spoilt messages."""


def matricule(body: str) -> str:
    """13 characters completed with their key."""
    return body + matricule_key(body)


PATIENT = Patient(matricule("2999999999001"), "ESSAI-UN", ("CAMILLE", "ANNE-LISE"), "19790230", "F", "63999")
OTHER_PATIENT = Patient(matricule("1999999999002"), "ESSAI-DEUX", ("SACHA",), "19650815", "M", "29999")
DEMONSTRATION_PATIENT = Patient("279035121518989", "PAT-TROIS", ("DOMINIQUE",), "19790328", "F", "63220")

DOCTOR = Correspondent("adam.hoda@test-ci-sis.mssante.fr", "801234567897", "Hoda", "Adam")


def to_patient(patient: Patient) -> Correspondent:
    """The patient's own mailbox."""
    address = f"{patient.matricule}@patient.mssante.fr"
    return Correspondent(address, patient.matricule, patient.family, patient.given[0], patient=True)


SECTIONS = (
    Section(
        "HEMATOLOGIE",
        "18723-7",
        (
            Observation("Hémoglobine", "718-7", "Hémoglobine [Masse/Volume] Sang", "9.8", "g/dL", "11.5", "14.5", "L"),
            Observation("Leucocytes", "6690-2", "Leucocytes [Nombre/Volume] Sang", "8.2", "10*9/L", "4", "10", "N"),
        ),
    ),
    Section(
        "BIOCHIMIE",
        "18719-5",
        (
            Observation(
                "Potassium", "2823-3", "Potassium [Moles/Volume]", "6.4", "mmol/L", "3.5", "5.1", "HH", before="4.6"
            ),
            Observation("Glucose à jeun", "40193-5", "Glucose [Moles/Volume]", "7.2", "mmol/L", "3.9", "6.1", "H"),
            Observation("CRP", "1988-5", "Protéine C réactive [Masse/Volume]", "0.5", "mg/L", "", "5", "N", "<"),
            Observation("Aspect du sérum", "32171-1", "Aspect du sérum", "limpide", "", kind="ST"),
            Observation("Hépatite B (Ag HBs)", "5196-1", "Antigène HBs", "Négatif", "", kind="CD"),
        ),
        "Kaliémie contrôlée sur un second tube & communiquée par téléphone.",
    ),
)

_DEMONSTRATION_SECTIONS = (
    Section(
        "HEMATOLOGIE",
        "18723-7",
        (
            Observation("Leucocytes", "6690-2", "Leucocytes [Nombre/Volume] Sang", "7.4", "10*9/L", "4", "10", "N"),
            Observation("Hématies", "789-8", "Erythrocytes [Nombre/Volume] Sang", "3.9", "10*12/L", "3.8", "5.8", "N"),
            Observation(
                "Hémoglobine",
                "718-7",
                "Hémoglobine [Masse/Volume] Sang",
                "10.1",
                "g/dL",
                "11.5",
                "16",
                "L",
                "PQ",
                "11.8",
            ),
            Observation("Hématocrite", "4544-3", "Hématocrite [Fraction] Sang", "35", "%", "34", "47", "N"),
            Observation("VGM", "787-2", "Volume globulaire moyen", "84", "fL", "80", "100", "N"),
            Observation("TCMH", "785-6", "Teneur corpusculaire moyenne en hémoglobine", "27.9", "pg", "27", "33", "N"),
            Observation("CCMH", "786-4", "Concentration corpusculaire moyenne", "33.1", "g/dL", "31.5", "36", "N"),
            Observation("Plaquettes", "777-3", "Plaquettes [Nombre/Volume] Sang", "231", "10*9/L", "150", "400", "N"),
            Observation("Neutrophiles", "751-8", "Polynucléaires neutrophiles", "4.3", "10*9/L", "1.8", "7.5", "N"),
            Observation("Lymphocytes", "731-0", "Lymphocytes [Nombre/Volume] Sang", "2.2", "10*9/L", "1", "4", "N"),
            Observation("Monocytes", "742-7", "Monocytes [Nombre/Volume] Sang", "0.6", "10*9/L", "0.2", "1", "N"),
        ),
        "Anémie modérée, normocytaire. Absence de cellules anormales sur le frottis.",
    ),
    Section(
        "BIOCHIMIE",
        "18719-5",
        (
            Observation("Sodium", "2951-2", "Sodium [Moles/Volume] Sérum/Plasma", "139", "mmol/L", "136", "145", "N"),
            Observation(
                "Potassium",
                "2823-3",
                "Potassium [Moles/Volume] Sérum/Plasma",
                "5.4",
                "mmol/L",
                "3.5",
                "5.1",
                "H",
                "PQ",
                "4.9",
            ),
            Observation(
                "Chlorures", "2075-0", "Chlorure [Moles/Volume] Sérum/Plasma", "102", "mmol/L", "98", "107", "N"
            ),
            Observation("Bicarbonates", "1963-8", "Bicarbonate [Moles/Volume] Sérum", "24", "mmol/L", "22", "29", "N"),
            Observation("Urée", "22664-7", "Urée [Moles/Volume] Sérum/Plasma", "7.1", "mmol/L", "2.5", "7.5", "N"),
            Observation(
                "Créatinine", "14682-9", "Créatinine [Moles/Volume]", "84", "umol/L", "45", "84", "N", "PQ", "79"
            ),
            Observation(
                "Calcium", "2000-8", "Calcium [Moles/Volume] Sérum/Plasma", "2.35", "mmol/L", "2.15", "2.5", "N"
            ),
            Observation(
                "Glucose à jeun",
                "40193-5",
                "Glucose [Moles/Volume] Sérum/Plasma ; à jeun",
                "7.8",
                "mmol/L",
                "3.9",
                "6.1",
                "H",
                "PQ",
                "7.2",
            ),
            Observation(
                "HbA1c", "4548-4", "Hémoglobine A1c/hémoglobine totale", "6.4", "%", "4", "6.5", "N", "PQ", "6.2"
            ),
            Observation("ASAT", "1920-8", "Aspartate aminotransférase", "24", "U/L", "", "35", "N"),
            Observation("ALAT", "1742-6", "Alanine aminotransférase", "29", "U/L", "", "35", "N"),
            Observation("CRP", "1988-5", "Protéine C réactive [Masse/Volume]", "1", "mg/L", "", "5", "N", "<"),
            Observation("Cholestérol LDL", "13457-7", "Cholestérol LDL calculé", "1.12", "g/L", "", "1.6", "N"),
        ),
        "Glycémie à confronter à la clinique ; contrôle conseillé dans trois mois.",
    ),
    Section(
        "HORMONOLOGIE",
        "18719-5",
        (Observation("TSH", "3016-3", "Thyréostimuline [Arbitraire/Volume]", "1.95", "m[IU]/L", "0.27", "4.2", "N"),),
    ),
    Section(
        "EXAMEN DES URINES",
        "18725-2",
        (
            Observation("Aspect", "5767-9", "Aspect [Aspect] Urine", "clair", "", kind="ST"),
            Observation("Nitrites", "5802-4", "Nitrite [Présence] Urine ; Bandelette", "Absence", "", kind="CD"),
            Observation(
                "Leucocytes urinaires", "30405-5", "Leucocytes [Nombre/Volume] Urine", "5", "/uL", "", "10", "N"
            ),
        ),
    ),
)


def pdf(lines: Sequence[str]) -> bytes:
    """A small valid PDF 1.4: one page of Helvetica."""
    shown = ["BT /F1 10 Tf 50 800 Td 13 TL"]
    for line in lines:
        literal = line.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
        shown.append(f"({literal}) Tj T*")
    stream = ("\n".join([*shown, "ET"])).encode("cp1252", "replace")
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%b\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    out, offsets = bytearray(b"%PDF-1.4\n"), []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(out)


def report_pdf(patient: Patient, sections: Sequence[Section] = SECTIONS) -> bytes:
    """The printed twin of a report."""
    lines = ["LABORATOIRE DES ESSAIS", f"{patient.family} {patient.given[0]}", "Compte rendu d'examens biologiques", ""]
    for section in sections:
        lines += [section.title]
        lines += [
            f"  {o.label} : {o.value} {o.unit}   ({o.low} - {o.high})  {o.interpretation}" for o in section.observations
        ]
    return pdf(lines)


def cda(
    *,
    patient: Patient = PATIENT,
    unique_id: str = "1.2.250.1.999.1.1001",
    set_id: str = "1.2.250.1.999.1.1000",
    version: int | None = 1,
    parent_id: str = "",
    confidentiality: str = "N",
    sections: Sequence[Section] | None = None,
    with_pdf: bool = True,
    level: int = 3,
    effective: str = "20261119171000+0100",
    document_pdf: bytes | None = None,
    prolog: str = '<?xml version="1.0" encoding="UTF-8"?>\n',
) -> bytes:
    """A CR-BIO 2024.01 (level 3) or a PDF in a header (level 1). `set_id` empty and `version` None leave them out."""
    sections = SECTIONS if sections is None else sections
    pdf_bytes = document_pdf if document_pdf is not None else report_pdf(patient, sections)
    code = ("11502-2", "CR d'examens biologiques") if level == 3 else ("18748-4", "CR d'imagerie médicale")
    template = ' <templateId root="1.2.250.1.213.1.1.1.55" extension="2024.01"/>\n' if level == 3 else ""
    related = ""
    if parent_id:
        related = (
            f'<relatedDocument typeCode="RPLC"><parentDocument>{_id(parent_id)}</parentDocument></relatedDocument>'
        )
    body = _structured(sections, effective, pdf_bytes if with_pdf else None) if level == 3 else _non_xml(pdf_bytes)
    given = "".join(f"<given>{xml_text(name)}</given>" for name in patient.given)
    text = f"""{prolog}<ClinicalDocument xmlns="urn:hl7-org:v3" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
 <realmCode code="FR"/>
 <typeId root="2.16.840.1.113883.1.3" extension="POCD_HD000040"/>
 <templateId root="2.16.840.1.113883.2.8.2.1"/>
 <templateId root="1.2.250.1.213.1.1.1.1"/>
{template} {_id(unique_id)}
 <code code="{code[0]}" displayName={quoteattr(code[1])} codeSystem="2.16.840.1.113883.6.1" codeSystemName="LOINC"/>
 <title>{"Compte rendu d'examens biologiques" if level == 3 else "Radiographie de la hanche"}</title>
 <effectiveTime value="{effective}"/>
 <confidentialityCode code="{confidentiality}" codeSystem="2.16.840.1.113883.5.25"/>
 <languageCode code="fr-FR"/>
 {_id(set_id, "setId") if set_id else ""}
 {f'<versionNumber value="{version}"/>' if version is not None else ""}
 <recordTarget><patientRole>
  <id root="{patient.oid}" extension="{patient.matricule}"/>
  <id root="1.2.250.1.999.2.1" extension="{patient.local_id}"/>
  <patient>
   <name>
    <family qualifier="BR">{patient.family}</family>
    <given qualifier="BR">{patient.given[0]}</given>{given}
    <family qualifier="CL">{patient.family}</family>
   </name>
   <administrativeGenderCode code="{patient.sex}" codeSystem="2.16.840.1.113883.5.1"/>
   <birthTime value="{patient.birth_date}"/>
   <birthplace><place><addr><county>{patient.birth_place}</county></addr></place></birthplace>
  </patient>
 </patientRole></recordTarget>
 <author>
  <time value="{effective}"/>
  <assignedAuthor>
   <id root="1.2.250.1.71.4.2.1" extension="801234500001"/>
   <code code="G15_10/SM03" displayName="Médecin - Biologie médicale (SM)" codeSystem="1.2.250.1.213.1.1.4.5"/>
   <assignedPerson><name><given>Alix</given><family>ESSAI-BIOLOGISTE</family></name></assignedPerson>
   <representedOrganization>
    <id root="1.2.250.1.71.4.2.2" extension="1990000001"/><name>Laboratoire des essais</name>
   </representedOrganization>
  </assignedAuthor>
 </author>
 <custodian><assignedCustodian><representedCustodianOrganization>
  <id root="1.2.250.1.71.4.2.2" extension="1990000001"/><name>Laboratoire des essais</name>
 </representedCustodianOrganization></assignedCustodian></custodian>
 <documentationOf><serviceEvent>
  <code code="18719-5" displayName="Biochimie" codeSystem="2.16.840.1.113883.6.1"/>
  <effectiveTime><low value="20261119081500+0100"/><high value="20261119170000+0100"/></effectiveTime>
  <performer typeCode="PRF"><assignedEntity>
   <id root="1.2.250.1.71.4.2.1" extension="801234500001"/>
   <representedOrganization>
    <id root="1.2.250.1.71.4.2.2" extension="1990000001"/><name>Laboratoire des essais</name>
    <standardIndustryClassCode code="AMBULATOIRE" displayName="Ambulatoire" codeSystem="1.2.250.1.213.1.1.4.9"/>
   </representedOrganization>
  </assignedEntity></performer>
 </serviceEvent></documentationOf>
 {related}
 <componentOf><encompassingEncounter>
  <effectiveTime><low value="20261119"/></effectiveTime>
  <location><healthCareFacility>
   <code code="SA25" displayName="Laboratoire de biologie médicale" codeSystem="1.2.250.1.71.4.2.4"/>
  </healthCareFacility></location>
 </encompassingEncounter></componentOf>
 <component>{body}</component>
</ClinicalDocument>
"""
    return text.encode("utf-8")


def auto_presentable(document: bytes) -> bytes:
    """The same document inside an XSLT stylesheet, as some laboratories still send it."""
    inner = document.decode("utf-8").partition("?>\n")[2]
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform" xmlns:asip="urn:asip-sante:ci-sis">
<asip:Contenu>
{inner}</asip:Contenu>
<xsl:template match="/"><html><body><script>alert(1)</script></body></html></xsl:template>
</xsl:stylesheet>
""".encode()


def message(
    *,
    control_id: str = "RLS-000001",
    kind: str = "ORU",
    action: Action = Action.NEW,
    patient: Patient = PATIENT,
    recipients: Sequence[Correspondent] | None = None,
    flags: Flags = Flags(),
    documents: Sequence[bytes] | None = None,
    reply_to: str = "resultats@labo-essais.test.mssante.fr",
    body_professional: str = "",
    body_patient: str = "",
    last_of_exchange: bool = False,
    patient_class: str = "N",
    charset: str = "UNICODE UTF-8",
    end: str = "\r",
    order: str | None = None,
    status: str | None = None,
    event: str | None = None,
    version: str | None = None,
    pid_count: int = 1,
    header: dict[int, str] | None = None,
    **document_options: object,
) -> bytes:
    """One ORU^R01 (`kind="ORU"`) or MDM message, without MLLP framing.

    `document_options` go to `cda` when `documents` is not given; a replacement then names the parent `….1001`. `order`,
    `status`, `event` and `header` (MSH fields by number) spoil what they name.
    """
    words = {Action.NEW: ("NW", "F", "T02"), Action.REPLACE: ("RO", "C", "T10"), Action.DELETE: ("CA", "D", "T04")}
    default_order, default_status, trigger = words[action]
    if documents is None:
        if action is Action.REPLACE:
            document_options = {
                "unique_id": "1.2.250.1.999.1.1002",
                "version": 2,
                "parent_id": "1.2.250.1.999.1.1001",
            } | document_options
        documents = [
            cda(patient=patient, level=3 if kind == "ORU" else 1)
            if not document_options
            else cda(
                **({"patient": patient, "level": 3 if kind == "ORU" else 1} | document_options)  # type: ignore[arg-type]
            )
        ]
    recipients = (DOCTOR, to_patient(patient)) if recipients is None else recipients
    trigger = event or ("R01" if kind == "ORU" else trigger)
    structure = "ORU_R01" if kind == "ORU" else "MDM_T02"
    msh = {
        3: "SIL-ESSAI", 4: "LABO-ESSAI", 5: "RELAIS", 6: "PFI-ESSAI", 7: "20261119171500+0100",
        9: f"{kind}^{trigger}^{structure}", 10: control_id, 11: "P", 12: version or ("2.5" if kind == "ORU" else "2.6"),
        17: "FRA", 18: charset, 21: "2.1^CISIS_CDA_HL7_V2",
    } | (header or {})  # fmt: skip
    lines = ["MSH|^~\\&|" + "|".join(msh.get(number, "") for number in range(3, 22))]
    if kind == "MDM":
        lines.append("EVN||20261119171500+0100")
    lines += [_pid(patient)] * pid_count
    lines += [f"PV1|1|{patient_class}", f"ORC|{default_order if order is None else order}"]
    type_code = "11502-2^CR d'examens biologiques^LN" if kind == "ORU" else "18748-4^CR d'imagerie médicale^LN"
    lines.append(f"OBR|1|||{type_code}")
    if kind == "MDM":
        unique = "1.2.250.1.999.1.1001" if action is not Action.REPLACE else "1.2.250.1.999.1.1002"
        parent = "1.2.250.1.999.1.1001" if action is Action.REPLACE else ""
        lines.append(f"TXA|1|18748-4|TEXT|||||||||{unique}|{parent}||||AU")
    for index, document in enumerate(documents):
        encoded = base64.b64encode(document).decode("ascii")
        text = "TEXT" if kind == "ORU" else "text"
        result = default_status if status is None else status
        lines.append(f"OBX|{index + 1}|ED|{type_code}||^{text}^XML^Base64^{encoded}||||||{result}")
        if index == 0:
            lines += _participants(recipients, reply_to)
    lines += _metadata(len(documents), kind, flags, body_professional, body_patient, last_of_exchange)
    return (end.join(lines) + end).encode(CODECS.get(charset, "utf-8"))


def _participants(recipients: Sequence[Correspondent], reply_to: str) -> list[str]:
    def prt(role: str, person: str = "", organisation: str = "", address: str = "") -> str:
        fields = ["PRT", "", "UC", "", role, person, "", "", organisation, *[""] * 6]
        return "|".join([*fields, f"^^X.400^{address}" if address else ""]).rstrip("|")

    sender = "801234500001^ESSAI-BIOLOGISTE^Alix^^^^^^ASIP-SANTE-PS&1.2.250.1.71.4.2.1&ISO^D^^^RPPS"
    structure = "Laboratoire des essais^^^^^ASIP-SANTE-ST&1.2.250.1.71.4.2.2&ISO^FINEG^^^990000001"
    lines = [prt("SB^Send by^participation", sender, structure)]
    for one in recipients:
        authority = "1.2.250.1.213.1.4.10" if one.patient else "ASIP-SANTE-PS&1.2.250.1.71.4.2.1&ISO"
        kind = "L^^^INS" if one.patient else "D^^^RPPS"
        person = f"{one.identifier}^{one.family}^{one.given}^^^^^^{authority}^{kind}" if one.identifier else ""
        structure = f"{one.organisation}^^^^^^SVR^^^S1" if one.organisation else ""
        lines.append(prt("RCT^Result Copies To^participation", person, structure, one.address))
    if reply_to:
        lines.append(prt("REPLY^Reply To^participation", address=reply_to))
    return lines


def _metadata(
    offset: int, kind: str, flags: Flags, body_professional: str, body_patient: str, last_of_exchange: bool
) -> list[str]:
    coded = "CE" if kind == "ORU" else "CWE"
    values = (
        ("MASQUE_PS^Masqué aux professionnels de Santé", flags.masked),
        ("INVISIBLE_PATIENT^Document Non Visible par le patient", flags.hidden_from_patient),
        ("INVISIBLE_REP_LEGAUX^Non visible par les représentants Légaux", flags.hidden_from_representatives),
        ("CONNEXION_SECRETE^Connexion Secrète", flags.secret),
        ("MODIF_CONF_CODE^Modification Confidentiality Code", flags.modified),
        ("DESTDMP^Destinataire DMP", flags.to_dossier),
        ("DESTMSSANTEPS^Destinataire professionnel", flags.to_professionals),
        ("DESTMSSANTEPAT^Destinataire Patient", flags.to_patient),
        ("ACK_RECEPTION^Accusé de réception", flags.ack_reception),
        ("ACK_LECTURE_MSS^Accusé de lecture", flags.ack_reading),
    )
    told = [(name, "Y" if value else "N") for name, value in values if value is not None] + list(flags.extra)
    lines = []
    for number, (name, value) in enumerate(told, start=offset + 1):
        label = name if "^" in name else f"{name}^"
        lines.append(f"OBX|{number}|{coded}|{label}^MetaDMPMSS||{value}^^expandedYes-NoIndicator||||||F")
        if last_of_exchange and name.startswith("DESTMSSANTEPAT"):
            lines.append("NTE|1|||FIN")
    text = "TEXT" if kind == "ORU" else "text"
    for code, body in (("CORPSMAIL_PS", body_professional), ("CORPSMAIL_PATIENT", body_patient)):
        if body:
            encoded = base64.b64encode(body.encode("utf-8")).decode("ascii")
            number = offset + len(lines) + 1
            lines.append(f"OBX|{number}|ED|{code}^Corps du mail^MetaDMPMSS||^{text}^^Base64^{encoded}||||||F")
    return lines


def _pid(patient: Patient) -> str:
    identifiers = f"{patient.local_id}^^^LABO-ESSAI&990000001&M^PI"
    if patient.matricule:
        identifiers = f"{patient.matricule}^^^ASIP-SANTE-INS-NIR&{patient.oid}&ISO^INS^^20101207~" + identifiers
    name = (
        f"{patient.family}^{patient.given[0]}^{' '.join(patient.given)}^^^^L~{patient.family}^{patient.given[0]}^^^^^D"
    )
    fields = [""] * 33
    fields[0], fields[3], fields[5], fields[7], fields[8] = "PID", identifiers, name, patient.birth_date, patient.sex
    fields[11] = f"1 rue des Essais^^ESSAIVILLE^^99999^FRA^H~^^^^^^BDL^^{patient.birth_place}"
    fields[18], fields[31], fields[32] = "AN1^^^LABO-ESSAI&990000001&M^AN", "N", "VALI" if patient.matricule else "PROV"
    return "|".join(fields)


def _id(identifier: str, name: str = "id") -> str:
    root, _, extension = identifier.partition("^")
    return f'<{name} root="{root}"' + (f' extension="{extension}"/>' if extension else "/>")


def _non_xml(document: bytes) -> str:
    encoded = base64.encodebytes(document).decode("ascii")
    return f'<nonXMLBody><text mediaType="application/pdf" representation="B64">{encoded}</text></nonXMLBody>'


def _structured(sections: Sequence[Section], effective: str, copy: bytes | None) -> str:
    parts, number = ["<structuredBody>"], 0
    for section in sections:
        rows, entries = [], []
        for one in section.observations:
            number += 1
            bounds = f"{one.low or '…'} à {one.high or '…'}" if one.low or one.high else ""
            value = f"{one.kind} {one.value}" if one.kind in "<>" else one.value
            rows.append(
                f'<tr><td><content ID="r{number}">{xml_text(one.label)}</content></td><td>{xml_text(value)} {one.unit}'
                f"</td><td>{bounds}</td><td>{one.before}</td></tr>"
            )
            entries.append(_observation(one, number, effective))
        comment = f"<paragraph>{xml_text(section.comment)}</paragraph>" if section.comment else ""
        parts.append(
            f"""<component><section>
 <code code="{section.loinc}" codeSystem="2.16.840.1.113883.6.1"/><title>{xml_text(section.title)}</title>
 <text><table><thead><tr><th>Examen</th><th>Résultat</th><th>Référence</th><th>Antérieur</th></tr></thead>
 <tbody>{"".join(rows)}</tbody></table>{comment}</text>
 <entry typeCode="DRIV"><act classCode="ACT" moodCode="EVN">
 <code code="{section.loinc}" codeSystem="2.16.840.1.113883.6.1"/><statusCode code="completed"/>
 {"".join(entries)}
 </act></entry>
</section></component>"""
        )
    if copy is not None:
        parts.append(
            '<component><section><code code="55108-5" codeSystem="2.16.840.1.113883.6.1"/><title>Copie du document'
            '</title><text><renderMultiMedia referencedObject="doc-1"/></text><entry><organizer classCode="CLUSTER" '
            'moodCode="EVN"><statusCode code="completed"/><component><observationMedia classCode="OBS" moodCode="EVN" '
            f'ID="doc-1"><value mediaType="application/pdf" representation="B64">{base64.b64encode(copy).decode()}'
            "</value></observationMedia></component></organizer></entry></section></component>"
        )
    return "\n".join([*parts, "</structuredBody>"])


def _observation(one: Observation, number: int, effective: str) -> str:
    unit = f' unit="{one.unit}"' if one.unit else ""
    if one.kind == "<":
        value = f'<value xsi:type="IVL_PQ"><high value="{one.value}"{unit}/></value>'
    elif one.kind == ">":
        value = f'<value xsi:type="IVL_PQ"><low value="{one.value}"{unit}/></value>'
    elif one.kind == "CD":
        value = (
            f'<value xsi:type="CD" code="X{number}" displayName={quoteattr(one.value)} codeSystem="1.2.250.1.999.3"/>'
        )
    elif one.kind == "ST":
        value = f'<value xsi:type="ST">{xml_text(one.value)}</value>'
    else:
        value = f'<value xsi:type="PQ" value="{one.value}"{unit}/>'
    interpretation = ""
    if one.interpretation:
        interpretation = f'<interpretationCode code="{one.interpretation}" codeSystem="2.16.840.1.113883.5.83"/>'
    quoted = ""
    if one.before:
        quoted = (
            '<entryRelationship typeCode="REFR"><observation classCode="OBS" moodCode="EVN">'
            '<templateId root="1.3.6.1.4.1.19376.1.3.1.6"/>'
            f'<code code="{one.loinc}" codeSystem="2.16.840.1.113883.6.1"/>'
            '<statusCode code="completed"/><effectiveTime value="20250612081500+0200"/>'
            f'<value xsi:type="PQ" value="{one.before}"{unit}/></observation></entryRelationship>'
        )
    bounds = ""
    if one.low or one.high:
        low = f'<low value="{one.low}"{unit}/>' if one.low else ""
        high = f'<high value="{one.high}"{unit}/>' if one.high else ""
        bounds = (
            f'<referenceRange><observationRange><value xsi:type="IVL_PQ">{low}{high}</value>'
            '<interpretationCode code="N" codeSystem="2.16.840.1.113883.5.83"/></observationRange></referenceRange>'
        )
    return f"""<entryRelationship typeCode="COMP"><observation classCode="OBS" moodCode="EVN">
 <templateId root="1.3.6.1.4.1.19376.1.3.1.6"/><templateId root="1.2.250.1.213.1.1.3.80"/>
 <code code="{one.loinc}" displayName={quoteattr(one.display)} codeSystem="2.16.840.1.113883.6.1"><originalText>\
<reference value="#r{number}"/></originalText></code>
 <statusCode code="completed"/><effectiveTime value="{effective}"/>
 {value}{interpretation}{quoted}{bounds}
</observation></entryRelationship>"""


def demonstration() -> bytes:
    """The report that the demonstration sends: one laboratory report to a doctor, the patient and the record."""
    document = cda(
        patient=DEMONSTRATION_PATIENT,
        unique_id="1.2.250.1.999.1.2001",
        set_id="1.2.250.1.999.1.2000",
        sections=_DEMONSTRATION_SECTIONS,
    )
    return message(
        control_id="DEMO-0001",
        patient=DEMONSTRATION_PATIENT,
        documents=[document],
        body_professional="Cher confrère,\nVeuillez trouver ci-joint le compte rendu d'examens biologiques de votre "
        "patiente.\nBien confraternellement,\nDr Alix ESSAI-BIOLOGISTE",
        body_patient="Madame,\nVotre compte rendu d'examens biologiques est joint à ce message. Votre médecin le "
        "reçoit également et vous l'expliquera.\nLe laboratoire des essais",
    )


def demonstration_letter() -> bytes:
    """The document the first hour sends as a hospital."""
    return cda(patient=DEMONSTRATION_PATIENT, level=1, unique_id="1.2.250.1.999.1.4001", set_id="1.2.250.1.999.1.4000")


def spoilt() -> dict[str, bytes]:
    """Messages a gateway must refuse, by what is wrong with them."""
    good = message()
    laughs = b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    plain = cda()
    prolog, _, rest = plain.partition(b"\n")
    mismatched = cda(patient=OTHER_PATIENT)
    return {
        "empty": b"",
        "not-hl7": b"GET / HTTP/1.1\r\nHost: relais\r\n\r\n",
        "truncated": good[: len(good) // 2],
        "no-header": good.partition(b"\r")[2],
        "wrong-version": message(version="2.3"),
        "wrong-type": message(header={9: "ADT^A01^ADT_A01"}),
        "wrong-event": message(event="R40"),
        "no-control-id": message(control_id=""),
        "towards-practice-software": message(kind="MDM", header={21: "1.1^CISIS_CDA_HL7_LPS"}),
        "base64-broken": good.replace(b"^Base64^PD94", b"^Base64^PD9*"),
        "two-patients": message(pid_count=2),
        "no-patient": b"\r".join(line for line in good.split(b"\r") if not line.startswith(b"PID")),
        "other-patient": message(documents=[mismatched]),
        "doctype": message(documents=[prolog + b'\n<!DOCTYPE ClinicalDocument SYSTEM "file:///etc/passwd">' + rest]),
        "billion-laughs": message(documents=[prolog + b"\n" + laughs + rest.replace(b"LOINC", b"&b;")]),
        "not-cda": message(documents=["Document médical au format texte".encode()]),
        "other-xml": message(documents=[b"<html xmlns='http://www.w3.org/1999/xhtml'><body/></html>"]),
        "no-document": b"\r".join(line for line in good.split(b"\r") if b"^XML^Base64^" not in line),
        "charset-broken": good.replace("Masqué".encode(), b"Masqu\x81"),
        "charset-unknown": message(header={18: "JAS2020"}),
        "new-but-deleted": message(status="D"),
        "new-but-cancelled": message(kind="MDM", order="CA"),
        "replace-nothing": message(documents=[cda(set_id="", version=None)], action=Action.REPLACE),
        "flag-unclear": message(flags=replace(Flags(masked=None), extra=(("MASQUE_PS", "NON"),))),
    }


FILES = {
    "oru_new.hl7": lambda: message(control_id="DATA-0001", body_professional="Cher confrère, ci-joint le CR."),
    "oru_replace.hl7": lambda: message(control_id="DATA-0002", action=Action.REPLACE),
    "oru_delete.hl7": lambda: message(control_id="DATA-0003", action=Action.DELETE),
    "mdm_new.hl7": lambda: message(control_id="DATA-0004", kind="MDM", recipients=(DOCTOR,), end="\n"),
    "mdm_replace.hl7": lambda: message(control_id="DATA-0005", kind="MDM", action=Action.REPLACE, charset="8859/15"),
    "cr_bio_level3.xml": cda,
    "cr_imaging_level1.xml": lambda: cda(level=1, unique_id="1.2.250.1.999.1.3001", set_id=""),
}


def write() -> None:
    """Write the committed files again."""
    DATA.mkdir(parents=True, exist_ok=True)
    for name, build in FILES.items():
        (DATA / name).write_bytes(build())
    DEMONSTRATION_FILE.parent.mkdir(parents=True, exist_ok=True)
    DEMONSTRATION_FILE.write_bytes(demonstration())
    LETTER_FILE.write_bytes(demonstration_letter())


if __name__ == "__main__":
    write()
