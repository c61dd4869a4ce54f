"""Who a message names: the patient of PID, the senders, recipients and reply address of PRT.

PRT is pre-adopted from HL7 v2.9 by the French volet v2.1; its defects in official samples (spaces, missing parts,
bare OIDs) are read through.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bridges.hl7.er7 import Er7Message, Part, Segment
from bridges.identity import REAL_OIDS, TEST_OIDS, canonical_matricule, matricule_key
from bridges.refusals import HL7_FIELD_MISSING, INS_INCOMPLETE, INS_TEST, PATIENT_SEVERAL
from bridges.report import Audience, Correspondent, Finding, Party, PatientIdentity
from trust.refusals import Refused

INS_OIDS = REAL_OIDS | TEST_OIDS


@dataclass(frozen=True, slots=True)
class Participants:
    """What the PRT segments say."""

    sender: Party
    correspondents: tuple[Correspondent, ...]
    reply_to: str


def read_patient(message: Er7Message, production: bool, findings: list[Finding]) -> PatientIdentity | Refused:
    """The one patient of the message. In production a test authority or a wrong matricule is refused."""
    segments = message.segments("PID")
    if not segments:
        return Refused(HL7_FIELD_MISSING, "PID", "PID^1")
    if len(segments) > 1:
        return Refused(PATIENT_SEVERAL, "PID", "PID^2")
    pid = segments[0]
    ins = ("", "")
    local: list[tuple[str, str]] = []
    for number, repetition in enumerate(pid.field(3).repetitions(), start=1):
        identifier, oid = repetition.component(1).text, _authority(repetition.component(4))
        if not identifier:
            continue
        if oid not in INS_OIDS:
            local.append((identifier, oid))
            continue
        if production and oid in TEST_OIDS:
            return Refused(INS_TEST, "PID-3", pid.at(3, number))
        if not _well_formed(identifier):
            if production:
                return Refused(INS_INCOMPLETE, "PID-3", pid.at(3, number))
            findings.append(Finding("ins-malformed", "PID-3"))
        if ins[0]:
            if oid == ins[1] and identifier[:13].upper() != ins[0][:13].upper():
                return Refused(PATIENT_SEVERAL, "PID-3", pid.at(3, number))
            findings.append(Finding("ins-repeated", "PID-3"))
            local.append((identifier, oid))
        else:
            ins = (identifier, oid)
    if not ins[0]:
        findings.append(Finding("ins-missing", "PID-3"))
    birth, used, first = _names(pid)
    places = [address.component(9).text for address in pid.field(11).repetitions() if _is(address.component(7), "BDL")]
    return PatientIdentity(
        matricule=ins[0],
        matricule_oid=ins[1],
        birth_name=birth,
        first_names=first,
        used_name=used,
        birth_date=pid.field(7).component(1).text,
        sex=pid.field(8).component(1).text,
        birth_place=next((place for place in places if place), ""),
        local_ids=tuple(local),
        reliability=pid.field(32).component(1).text,
    )


def read_participants(message: Er7Message, patient: PatientIdentity, findings: list[Finding]) -> Participants:
    """Sender (SB), recipients (RCT) and reply address (REPLY) of all PRT segments, each address once."""
    matricule = canonical_matricule(patient.matricule)
    sender: Party | None = None
    reply_to = ""
    correspondents: list[Correspondent] = []
    seen: set[str] = set()
    for prt in message.segments("PRT"):
        where = f"PRT-{prt.sequence}"
        role = prt.field(4).component(1).text.upper()
        if role == "SB":
            if sender is None:
                sender = _party(prt)
            else:
                findings.append(Finding("sender-repeated", where))
        elif role == "REPLY":
            reply_to = reply_to or next(iter(_addresses(prt)), "")
        elif role == "RCT":
            for address in _addresses(prt) or [""]:
                if address and address.lower() in seen:
                    findings.append(Finding("recipient-repeated", where))
                    continue
                seen.add(address.lower())
                audience = _audience(prt, address, matricule)
                correspondents.append(Correspondent(_party(prt), address, audience, prt.at(15)))
        else:
            findings.append(Finding("participant-unknown", where))
    return Participants(sender or Party(), tuple(correspondents), reply_to)


def _names(pid: Segment) -> tuple[str, str, tuple[str, ...]]:
    """(birth name, used name, first names) from PID-5: type L is the name of birth, D the one used."""
    birth, used = "", ""
    first: tuple[str, ...] = ()
    for name in pid.field(5).repetitions():
        family = name.component(1).subcomponent(1).text
        if _is(name.component(7), "D"):
            used = used or family
        elif not birth:
            birth = family
            given = name.component(2).text
            others = [other for other in name.component(3).text.split() if other != given]
            first = tuple(n for n in (given, *others) if n)
    return birth, used, first


def _party(prt: Segment) -> Party:
    person, organisation, device = prt.field(5), prt.field(8), prt.field(10)
    return Party(
        id_nat=person.component(1).text,
        family=person.component(2).subcomponent(1).text,
        given=person.component(3).text,
        organisation=organisation.component(1).text or device.component(2).text or device.component(1).text,
        organisation_id=organisation.component(10).text or organisation.component(3).text,
    )


def _audience(prt: Segment, address: str, matricule: str | None) -> Audience:
    """Patient when PRT-5 carries an INS, or is empty (v2.0 of the profile) and the mailbox is named by PID-3's."""
    person = prt.field(5)
    patient = _is(person.component(13), "INS") or _authority(person.component(9)) in INS_OIDS
    if not person and not prt.field(8) and not prt.field(10):
        patient = matricule is not None and address.rpartition("@")[0].upper() == matricule
    return Audience.PATIENT if patient else Audience.PROFESSIONAL


def _addresses(prt: Segment) -> list[str]:
    """PRT-15.4 of each repetition; failing that, the component that holds an `@`."""
    found = []
    for telecom in prt.field(15).repetitions():
        parts = [telecom.component(4).text, *(telecom.component(n).text for n in range(1, 9))]
        address = parts[0] or next((part for part in parts[1:] if "@" in part), "")
        if address:
            found.append(re.sub(r"\Amailto:\s*", "", address, flags=re.IGNORECASE))
    return found


def _authority(component: Part) -> str:
    """The OID of an assigning authority: `NAME&OID&ISO`, or the OID alone."""
    return component.subcomponent(2).text or component.subcomponent(1).text


def _is(component: Part, code: str) -> bool:
    return component.text.upper() == code


def _well_formed(matricule: str) -> bool:
    whole = canonical_matricule(matricule)
    return whole is not None and whole[13:] == matricule_key(whole[:13])
