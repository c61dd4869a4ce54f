"""One model for every report: each parser fills it, each composer reads it, the dossier files it.

Values are kept as the sender wrote them. What a parser could not place or had to tolerate is a `Finding`, never dropped
silently. Times are HL7 TS / CDA TS strings as received (`YYYYMMDDhhmmss+zzzz`, possibly shorter): birth dates in
particular need not be calendar dates.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Action(Enum):
    """What the sender asks for (ORC-1 / OBX-11 / MDM event, volet CDA-R2 in HL7 v2 v2.1 §event coherence)."""

    NEW = "new"
    REPLACE = "replace"
    DELETE = "delete"


class Audience(Enum):
    """For whom one mail is written."""

    PROFESSIONAL = "professional"
    """A professional, a team or a machine."""
    PATIENT = "patient"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tolerated, inferred or left aside while reading."""

    code: str
    """Stable short name: `body-truncated`, `parent-contradicts-set`."""
    location: str
    """Where: `OBX-12.5`, `ClinicalDocument/relatedDocument`. Never a value."""


@dataclass(frozen=True, slots=True)
class PatientIdentity:
    """Who the report is about (PID, CDA recordTarget)."""

    matricule: str
    """INS: 13 characters or 15 with the key, as sent; empty when PID-3 has none."""
    matricule_oid: str
    birth_name: str
    first_names: tuple[str, ...]
    """First birth name first."""
    used_name: str
    birth_date: str
    """`YYYYMMDD`, not necessarily a calendar date."""
    sex: str
    """HL7 table 0001: M, F, U, ..."""
    birth_place: str = ""
    """INSEE COG code."""
    local_ids: tuple[tuple[str, str], ...] = ()
    """(identifier, assigning authority) pairs other than the INS."""
    reliability: str = ""
    """PID-32: VALI, QUAL, PROV, VIDE, ... as sent."""
    used_first_names: tuple[str, ...] = ()
    """Those the patient goes by, where a CDA has them (qualifier CL or SP)."""


@dataclass(frozen=True, slots=True)
class Party:
    """A person or an organisation named by a report."""

    id_nat: str = ""
    """As sent: IdNat_PP of a professional, matricule of a patient, FINESS or local number of an organisation."""
    family: str = ""
    given: str = ""
    organisation: str = ""
    organisation_id: str = ""


@dataclass(frozen=True, slots=True)
class Correspondent:
    """One PRT recipient (`RCT`): whom the sender wants to reach, and where."""

    party: Party
    address: str
    """PRT-15.4, as sent; empty when missing."""
    audience: Audience
    """PATIENT when PRT-5 carries an INS (PRT-5.13 `INS` or an INS OID in PRT-5.9)."""
    location: str
    """ERR-2 position of PRT-15 (`PRT^2^15`), for acknowledgements."""


@dataclass(frozen=True, slots=True)
class Result:
    """One laboratory observation (CDA entry)."""

    section: str
    label: str
    """What the reader calls it: the text the narrative uses, else the code's display name."""
    code: str
    code_system: str
    value: str
    """As written in the coded entry (`3.8`, `< 0.5`, a coded value's label)."""
    unit: str
    """UCUM as sent; empty when none."""
    low: str
    high: str
    interpretation: str
    """HL7 ObservationInterpretation: N, H, L, HH, LL, A, AA, S, I, R, ...; empty when the sender gave none."""
    effective: str


@dataclass(frozen=True, slots=True)
class Document:
    """One CDA document, byte for byte as decoded, and what its header says."""

    content: bytes
    unique_id: str
    """`root` or `root^extension` (XDS uniqueId)."""
    set_id: str
    """`root` or `root^extension`; empty when absent."""
    version: int | None
    parent_id: str
    """relatedDocument[@typeCode='RPLC']/parentDocument/id; empty when none."""
    type_code: str
    type_label: str
    type_system: str
    title: str
    created: str
    """effectiveTime."""
    service_start: str
    service_stop: str
    language: str
    confidentiality: str
    """N, R or V (2.16.840.1.113883.5.25)."""
    patient: PatientIdentity
    author: Party
    author_specialty: str
    """`G15_10/SM03`."""
    practice_setting: str
    facility: str
    level: int
    """1 for nonXMLBody, 3 for a structured body."""
    format_code: str
    results: tuple[Result, ...]
    pdf: bytes | None
    """The PDF the document carries (nonXMLBody, or the embedded copy), when it really is one."""
    narrative: str
    """Plain text of the narrative blocks, for readers without results to summarise; empty for level 1."""


@dataclass(frozen=True, slots=True)
class Flags:
    """MetaDMPMSS observations. None: the sender said nothing."""

    masked_to_professionals: bool | None = None
    hidden_from_patient: bool | None = None
    hidden_from_representatives: bool | None = None
    secret_connection: bool | None = None
    confidentiality_modified: bool | None = None
    to_dossier: bool | None = None
    to_professionals: bool | None = None
    to_patient: bool | None = None
    ack_reception: bool | None = None
    ack_reading: bool | None = None
    last_of_exchange: bool = False
    """NTE `FIN` under DESTMSSANTEPAT: becomes `X-MSS-MES: FIN`."""


@dataclass(frozen=True, slots=True)
class Report:
    """One message of a sending system, understood."""

    control_id: str
    """MSH-10."""
    sending_application: str
    sending_facility: str
    event: str
    """`ORU^R01` or `MDM^T02`, ..."""
    action: Action
    patient: PatientIdentity
    sender: Party
    """PRT `SB`, the author of the sending."""
    documents: tuple[Document, ...]
    correspondents: tuple[Correspondent, ...]
    reply_to: str
    """PRT `REPLY`; empty when none."""
    flags: Flags
    body_professional: str
    """CORPSMAIL_PS decoded; empty when absent or unreadable (then a Finding says so)."""
    body_patient: str
    content_type_code: str
    """XDS contentTypeCode from PV1-2: I 03, O 07, R 19, N 97, E 07."""
    findings: tuple[Finding, ...]
    urgent: bool = False
    """The order said so: its mails go before others."""
