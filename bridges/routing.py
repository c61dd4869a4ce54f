"""Who receives a report: one decision per correspondent, before the sender is answered.

The policy is the profile's safety invariants ("safety"): what is hidden from the patient or from the representatives is
never mailed to the patient, what is masked is never mailed to a professional, and nobody receives what the sender did
not ask to send. A patient's mailbox is reached only when its local part is the matricule of PID-3: a wrong digit would
give one person's results to another. One impossible correspondent never stops the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from bridges.identity import canonical_matricule
from bridges.report import Audience, Correspondent, Report
from directory import refusals as directory_refusals
from directory.identifiers import person_id_nat
from directory.records import Recipient
from mta.message import TargetKind
from mta.smtp.address import is_address
from mta.smtp.target import xtext
from mta.spool import NewDelivery
from smime import refusals as smime_refusals
from trust.refusals import HL7Code, Refusal, Refused

_LONGEST_STRUCTURE = 64
DOSSIER_RECIPIENT = "dossier"
"""The forward-path of the delivery that feeds the record."""

ADDRESS_INVALID = Refusal(
    code="bridges.address-invalid",
    smtp=550,
    enhanced="5.1.3",
    hl7=HL7Code.AE,
    condition="207",
    application="501",
    text="The recipient has no valid mail address: give user@domain (in HL7: PRT-15.4).",
    text_fr="Le destinataire n'a pas d'adresse valide : indiquez utilisateur@domaine (en HL7 : PRT-15.4).",
)
PATIENT_ADDRESS_MISMATCH = Refusal(
    code="bridges.patient-address-mismatch",
    smtp=550,
    enhanced="5.7.1",
    hl7=HL7Code.AE,
    condition="207",
    application="904",
    text="The patient's mail address does not carry the INS of PID-3: correct the address or the identity.",
    text_fr="L'adresse du patient ne porte pas l'INS de PID-3 : corrigez l'adresse ou l'identité.",
)
HIDDEN_FROM_PATIENT = Refusal(
    code="bridges.hidden-from-patient",
    smtp=550,
    enhanced="5.7.1",
    hl7=HL7Code.AE,
    condition="207",
    application="906",
    text="The document is hidden from the patient or the representatives: it cannot be mailed to the patient.",
    text_fr="Le document est masqué au patient ou à ses représentants : il ne peut pas lui être envoyé.",
)
MASKED_TO_PROFESSIONALS = Refusal(
    code="bridges.masked-to-professionals",
    smtp=550,
    enhanced="5.7.1",
    hl7=HL7Code.AE,
    condition="207",
    application="906",
    text="The document is masked to professionals: it cannot be mailed to them.",
    text_fr="Le document est masqué aux professionnels : il ne peut pas leur être envoyé.",
)
NOT_REQUESTED = Refusal(
    code="bridges.not-requested",
    smtp=550,
    enhanced="5.7.1",
    hl7=HL7Code.AE,
    condition="207",
    application="906",
    text="This kind of recipient is named but not asked for: ask for it (in HL7: DESTMSSANTEPS, DESTMSSANTEPAT).",
    text_fr="Ce type de destinataire est nommé sans être demandé : demandez-le "
    "(en HL7 : DESTMSSANTEPS ou DESTMSSANTEPAT à Y).",
)
NO_RECIPIENT = Refusal(
    code="bridges.no-recipient",
    smtp=554,
    enhanced="5.5.1",
    hl7=HL7Code.AE,
    condition="101",
    application="906",
    text="The message names no recipient and does not feed the record: add one (in HL7: PRT RCT, or DESTDMP to Y).",
    text_fr="Le message ne nomme aucun destinataire et n'alimente pas le dossier : ajoutez-en un "
    "(en HL7 : PRT RCT, ou DESTDMP à Y).",
)
NO_DOSSIER = Refusal(
    code="bridges.no-dossier",
    smtp=550,
    enhanced="5.3.3",
    hl7=HL7Code.AE,
    condition="207",
    application="906",
    text="This operator feeds no patient record: set DESTDMP to N or ask the operator to enable it.",
    text_fr="Cet opérateur n'alimente pas de dossier patient : mettez DESTDMP à N ou demandez son activation.",
)
CATALOGUE = (
    ADDRESS_INVALID,
    PATIENT_ADDRESS_MISMATCH,
    HIDDEN_FROM_PATIENT,
    MASKED_TO_PROFESSIONALS,
    NOT_REQUESTED,
    NO_RECIPIENT,
    NO_DOSSIER,
)


IDENTIFIER = "x-relais-idnat"
"""Address type (RFC 3461 §4.2) of the original recipient of a delivery to somebody the report names by identifier."""


class Lookup(Enum):
    """What a directory look-up gave besides a recipient."""

    UNKNOWN = "unknown"
    LATER = "later"
    """The directory did not answer in time: the delivery waits and is resolved before it is protected."""


@dataclass(frozen=True, slots=True)
class RoutingOptions:
    local_domains: frozenset[str]
    patient_domains: frozenset[str]
    dossier: bool
    """Whether this gateway holds a record to feed."""


def named(correspondent: Correspondent) -> str:
    """How the report names somebody: the address in lower case, or IdNat_PP and structure of a professional without.

    The latter as `IdNat_PP/structure`; the structure as sent, or empty. Empty when the report does not say who it is.
    """
    address = correspondent.address.strip().lower()
    if address or correspondent.audience is not Audience.PROFESSIONAL:
        return address
    person = person_id_nat(correspondent.party.id_nat)
    structure = "".join(correspondent.party.organisation_id.split())
    plain = structure.isascii() and structure.isalnum() and len(structure) <= _LONGEST_STRUCTURE
    return f"{person}/{structure if plain else ''}" if person else ""


def identifiers_to_find(report: Report) -> dict[str, Correspondent]:
    """Those whom the report names by identifier and wants to reach, by `named`."""
    return {
        name: correspondent
        for correspondent in report.correspondents
        if not correspondent.address.strip() and (name := named(correspondent)) and _unwanted(report) is None
    }


def route(
    report: Report,
    lookups: Callable[[str], Recipient | Lookup],
    is_trusted: Callable[[str], bool],
    options: RoutingOptions,
    found: Mapping[str, str] = MappingProxyType({}),
) -> tuple[NewDelivery, ...]:
    """One delivery per distinct address and one for the record when asked; impossible ones carry their refusal.

    `lookups` answers for a lower-case address; `is_trusted` for a lower-case domain (the trust list); `found` has the
    address of those of `identifiers_to_find` who have one, by `named`.
    """
    deliveries: dict[str, NewDelivery] = {}
    # Mail of the trust space always asks for receipts, unless the sender has said that he wants none of arrival
    notify = "FAILURE" if report.flags.ack_reception is False else "SUCCESS,FAILURE"
    for correspondent in report.correspondents:
        name = named(correspondent)
        address = found.get(name, correspondent.address.strip().lower())
        key = address or name
        if key in deliveries and deliveries[key].refused is None:
            continue
        if name and not address:
            unwanted = _unwanted(report)
            refused: Refused | None = Refused(
                unwanted or directory_refusals.RECIPIENT_UNKNOWN, location=correspondent.location
            )
        else:
            refused = _refusal(report, correspondent, address, options)
        kind = TargetKind.SMTP
        if refused is None:
            domain = address.rpartition("@")[2]
            kind = TargetKind.MAILBOX if domain in options.local_domains else TargetKind.SMTP
            refused = _unreachable(address, domain, lookups, is_trusted, options, correspondent.location)
        original = f"{IDENTIFIER};{xtext(name)}" if name in found else ""
        deliveries[key] = NewDelivery(address, kind, refused, notify, original)
    routed = tuple(deliveries.values())
    if report.flags.to_dossier:
        refused = None if options.dossier else Refused(NO_DOSSIER)
        routed += (NewDelivery(recipient=DOSSIER_RECIPIENT, target=TargetKind.DOSSIER, refused=refused),)
    return routed


def recipients_to_resolve(report: Report, options: RoutingOptions) -> tuple[str, ...]:
    """The addresses worth asking the directory for: those the sender's own wishes do not already exclude."""
    return tuple(
        dict.fromkeys(
            address
            for correspondent in report.correspondents
            if _refusal(report, correspondent, address := correspondent.address.strip().lower(), options) is None
        )
    )


def addressed(report: Report, name: str, options: RoutingOptions, address: str = "") -> Correspondent | None:
    """The correspondent whom a mail is written for; None when nobody may have one there.

    `name` as `named` has it: the address in lower case, else an identifier, whose mailbox is `address`. The same
    address may be named twice, once for a professional and once for the patient: only the naming that `route` let
    through counts, or the patient would read what was written to the doctor.
    """
    for correspondent in report.correspondents:
        same = named(correspondent) == name
        if same and _refusal(report, correspondent, address or name, options) is None:
            return correspondent
    return None


def _unwanted(report: Report) -> Refusal | None:
    """Why no professional may have it."""
    if report.flags.masked_to_professionals:
        return MASKED_TO_PROFESSIONALS
    return NOT_REQUESTED if report.flags.to_professionals is False else None


def _refusal(report: Report, correspondent: Correspondent, address: str, options: RoutingOptions) -> Refused | None:
    """What the message itself says against this correspondent."""
    flags = report.flags
    where = correspondent.location
    if not is_address(address):
        return Refused(ADDRESS_INVALID, location=where)
    local, _, domain = address.rpartition("@")
    patient_domain = domain in options.patient_domains
    if correspondent.audience is Audience.PATIENT or patient_domain:
        if flags.hidden_from_patient or flags.hidden_from_representatives:
            return Refused(HIDDEN_FROM_PATIENT, location=where)
        # A patient receives only on an explicit wish: a missing flag is not one.
        if not flags.to_patient:
            return Refused(NOT_REQUESTED, location=where)
        matricule = canonical_matricule(report.patient.matricule)
        named_patient = correspondent.audience is Audience.PATIENT
        if not (patient_domain and named_patient and matricule is not None and local.upper() == matricule):
            return Refused(PATIENT_ADDRESS_MISMATCH, location=where)
        return None
    unwanted = _unwanted(report)
    return None if unwanted is None else Refused(unwanted, location=where)


def _unreachable(
    address: str,
    domain: str,
    lookups: Callable[[str], Recipient | Lookup],
    is_trusted: Callable[[str], bool],
    options: RoutingOptions,
    where: str,
) -> Refused | None:
    """What trust and directory say against this address."""
    if domain not in options.local_domains and not is_trusted(domain):
        return Refused(directory_refusals.DOMAIN_UNTRUSTED, detail=f"domain {domain}", location=where)
    found = lookups(address)
    if found is Lookup.UNKNOWN:
        return Refused(directory_refusals.RECIPIENT_UNKNOWN, location=where)
    if isinstance(found, Recipient) and not found.encryption_certificates:
        return Refused(smime_refusals.NO_ENCRYPTION_CERTIFICATE, location=where)
    return None
