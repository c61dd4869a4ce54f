"""Who receives a report: one decision per correspondent, before the sender is answered.

The policy is the profile's safety invariants ("safety"): what is hidden from the patient or from the representatives is
never mailed to the patient, what is masked is never mailed to a professional, and nobody receives what the sender did
not ask to send. A patient's mailbox is reached only when its local part is the matricule of PID-3: a wrong digit would
give one person's results to another. One impossible correspondent never stops the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from bridges.identity import canonical_matricule
from bridges.report import Audience, Correspondent, Report
from directory import refusals as directory_refusals
from directory.records import Recipient
from mta.message import TargetKind
from mta.smtp.address import is_address
from mta.spool import NewDelivery
from smime import refusals as smime_refusals
from trust.refusals import HL7Code, Refusal, Refused

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


def route(
    report: Report,
    lookups: Callable[[str], Recipient | Lookup],
    is_trusted: Callable[[str], bool],
    options: RoutingOptions,
) -> tuple[NewDelivery, ...]:
    """One delivery per distinct address and one for the record when asked; impossible ones carry their refusal.

    `lookups` answers for a lower-case address; `is_trusted` for a lower-case domain (the trust list).
    """
    deliveries: dict[str, NewDelivery] = {}
    # Mail of the trust space always asks for receipts, unless the sender has said that he wants none of arrival
    notify = "FAILURE" if report.flags.ack_reception is False else "SUCCESS,FAILURE"
    for correspondent in report.correspondents:
        address = correspondent.address.strip().lower()
        if address in deliveries and deliveries[address].refused is None:
            continue
        refused = _refusal(report, correspondent, address, options)
        kind = TargetKind.SMTP
        if refused is None:
            domain = address.rpartition("@")[2]
            kind = TargetKind.MAILBOX if domain in options.local_domains else TargetKind.SMTP
            refused = _unreachable(address, domain, lookups, is_trusted, options, correspondent.location)
        deliveries[address] = NewDelivery(recipient=address, target=kind, refused=refused, notify=notify)
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


def addressed(report: Report, address: str, options: RoutingOptions) -> Correspondent | None:
    """The correspondent whom a mail to `address` (lower case) is written for; None when nobody may have one there.

    The same address may be named twice, once for a professional and once for the patient: only the naming that `route`
    let through counts, or the patient would read what was written to the doctor.
    """
    for correspondent in report.correspondents:
        same = correspondent.address.strip().lower() == address
        if same and _refusal(report, correspondent, address, options) is None:
            return correspondent
    return None


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
    if flags.masked_to_professionals:
        return Refused(MASKED_TO_PROFESSIONALS, location=where)
    if flags.to_professionals is False:
        return Refused(NOT_REQUESTED, location=where)
    return None


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
