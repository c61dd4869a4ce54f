"""What is said against a mail at the end of DATA, before its author's mail program closes the window.

Two patients in one mail, a document about somebody else than the patient it goes to, an archive that could harm its
reader, a mail too large for one of its recipients once everything is in it: each refused with a sentence for the
author, who would otherwise learn of it from a notification later, or never.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from bridges.carried import HIDDEN_FROM_REPRESENTATIVES, Carried, carried_by
from bridges.cda import INS_OIDS
from bridges.compose import ComposeOptions
from bridges.identity import canonical_matricule
from bridges.plain_mail import Envelope, made_ready
from bridges.plain_mail_refusals import DOCUMENT_OF_ANOTHER, RECIPIENTS_SEVERAL_PATIENTS
from bridges.report import Audience
from bridges.routing import HIDDEN_FROM_PATIENT, MASKED_TO_PROFESSIONALS
from bridges.screening import ScreenLimits, screen
from mta.sizes import SizeLimits
from mta.smtp.address import domain_of
from mta.smtp.policy import Against
from smime.addresses import AddressError, from_addresses
from smime.mime import MimeError, parse_entity
from trust.refusals import Refused

_HIDDEN = HIDDEN_FROM_REPRESENTATIVES | {"INVISIBLE_PATIENT"}
_MASKED = "MASQUE_PS"
"""Of 1.2.250.1.213.1.1.4.13, where a document or its metadata say who may not read it."""
_GROWTH = 4
"""What a document's mail may grow by, at the very most: only from there on is its size worth finding out."""


class SubmissionJudge:
    """A `mta.smtp.policy.ContentJudge`. Blocks; thread-safe; never raises on bad input."""

    def __init__(
        self,
        options: ComposeOptions,
        patient_domains: Collection[str],
        sizes: SizeLimits,
        limits: ScreenLimits | None = None,
    ) -> None:
        """Domains in lower case."""
        self._options = options
        self._patient_domains = frozenset(patient_domains)
        self._sizes = sizes
        self._limits = limits or ScreenLimits()

    def __call__(self, content: bytes) -> Against | Refused:
        """What is said against it whoever reads it; else, what is said against its readers."""
        harmful = screen(content, self._limits)
        if isinstance(harmful, Refused):
            return harmful
        carried = carried_by(content)
        if isinstance(carried, Refused):
            return carried
        return _Looked(self._options, self._patient_domains, self._sizes, content, carried).against


@dataclass(slots=True)
class _Looked:
    """A mail whose content nothing speaks against by itself."""

    options: ComposeOptions
    patient_domains: frozenset[str]
    sizes: SizeLimits
    content: bytes
    carried: Carried
    _made: dict[Audience, int] = field(default_factory=dict)
    """Octets of it once it is made ready."""

    def against(self, recipients: Sequence[str]) -> Refused | None:
        """See `mta.smtp.policy.Against`."""
        patients = {each.lower() for each in recipients if self._is_patient(each)}
        if patients and len(patients | self._patients_shown()) > 1:
            return Refused(RECIPIENTS_SEVERAL_PATIENTS)
        for each in recipients:
            refused = self._forbids(each)
            if refused is not None:
                return refused
        return self._too_large(recipients)

    def _is_patient(self, address: str) -> bool:
        return domain_of(address) in self.patient_domains

    def _patients_shown(self) -> set[str]:
        """Whom the header names to whoever reads it: a program may hand over the same mail once for each of them."""
        found: set[str] = set()
        header = parse_entity(self.content)
        for name in ("to", "cc"):
            try:
                found |= {each.lower() for each in from_addresses(header, name) if self._is_patient(each)}
            except AddressError:
                continue
        return found

    def _forbids(self, address: str) -> Refused | None:
        """What the documents and their metadata say against one reader."""
        carried = self.carried
        if not self._is_patient(address):
            return Refused(MASKED_TO_PROFESSIONALS) if _MASKED in carried.confidentiality else None
        if carried.confidentiality & _HIDDEN:
            return Refused(HIDDEN_FROM_PATIENT)
        matricule = address.partition("@")[0].upper()
        named = {value for each in carried.named for root, value in each.identifiers if root in INS_OIDS}
        documents = [document for _, document in carried.documents]
        documents += [document for archive in carried.archives for document in archive.documents]
        if named - {matricule[:13]} or any(
            canonical_matricule(each.patient.matricule) != matricule for each in documents
        ):
            return Refused(DOCUMENT_OF_ANOTHER)
        return None

    def _too_large(self, recipients: Sequence[str]) -> Refused | None:
        for each in recipients:
            # what its author has encrypted to the recipient leaves as it is
            limit = self.sizes.refused_as_it_is if self.carried.encrypted else self.sizes.refused
            octets = len(self.content)
            if self._grows and limit(each, octets * _GROWTH) is not None:
                octets = self._octets(Audience.PATIENT if self._is_patient(each) else Audience.PROFESSIONAL)
            refused = limit(each, octets)
            if refused is not None:
                return refused
        return None

    @property
    def _grows(self) -> bool:
        return bool(self.carried.documents or self.carried.archives)

    def _octets(self, audience: Audience) -> int:
        """Of the mail as it will be: a document is in it as archive and as PDF."""
        if audience not in self._made:
            envelope = Envelope("", audience, "<size@invalid>", datetime.now(UTC))
            try:
                self._made[audience] = len(made_ready(self.content, self.carried, None, envelope, self.options))
            except MimeError:  # found out when it is made ready, if at all
                self._made[audience] = len(self.content)
        return self._made[audience]
