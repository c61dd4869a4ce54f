"""What is said against a mail at the end of DATA, before its author's mail program closes the window.

Two patients in one mail, a document about somebody else than the patient it goes to, an archive that could harm its
reader, a mail too large for one of its recipients once everything is in it: each refused with a sentence for the
author, who would otherwise learn of it from a notification later, or never.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime

from bridges.carried import Carried, carried_by
from bridges.compose import ComposeOptions
from bridges.identity import canonical_matricule
from bridges.plain_mail import Envelope, made_ready
from bridges.plain_mail_refusals import DOCUMENT_OF_ANOTHER, RECIPIENTS_SEVERAL_PATIENTS
from bridges.report import Audience, Document
from bridges.routing import HIDDEN_FROM_PATIENT, MASKED_TO_PROFESSIONALS
from bridges.screening import ScreenLimits, screen
from mta.smtp.address import domain_of
from smime.mime import MimeError
from trust.refusals import Refused

_HIDDEN = frozenset({"INVISIBLE_PATIENT", "INVISIBLE_REPRESENTANTS_LEGAUX", "INVISIBLE_REP_LEGAUX"})
_MASKED = "MASQUE_PS"
"""Of 1.2.250.1.213.1.1.4.13, where a document says itself who may not read it."""
_GROWTH = 4
"""What a document's mail may grow by, at the very most: only from there on is its size worth finding out."""


class SubmissionJudge:
    """A `mta.smtp.policy.ContentJudge`. Blocks; thread-safe; never raises on bad input."""

    def __init__(
        self,
        options: ComposeOptions,
        patient_domains: Collection[str],
        too_large: Callable[[str, int], Refused | None],
        limits: ScreenLimits | None = None,
    ) -> None:
        """`too_large(address, octets)` is `mta.sizes.SizeLimits.refused`; domains in lower case."""
        self._options = options
        self._patient_domains = frozenset(patient_domains)
        self._too_large = too_large
        self._limits = limits or ScreenLimits()

    def __call__(self, recipients: Sequence[str], content: bytes) -> Refused | None:
        """Why this content cannot go to these addresses."""
        patients = [each for each in recipients if domain_of(each) in self._patient_domains]
        if len({each.lower() for each in patients}) > 1:
            return Refused(RECIPIENTS_SEVERAL_PATIENTS)
        harmful = screen(content, self._limits)
        if isinstance(harmful, Refused):
            return harmful
        carried = carried_by(content)
        if isinstance(carried, Refused):
            return carried
        documents = [document for _, document in carried.documents]
        documents += [document for archive in carried.archives for document in archive.documents]
        for each in recipients:
            refused = self._against(each, documents)
            if refused is not None:
                return refused
        return self._size(recipients, content, carried)

    def _against(self, address: str, documents: Sequence[Document]) -> Refused | None:
        """What the documents themselves say against one reader."""
        to_patient = domain_of(address) in self._patient_domains
        for document in documents:
            if to_patient and document.confidentiality in _HIDDEN:
                return Refused(HIDDEN_FROM_PATIENT)
            if not to_patient and document.confidentiality == _MASKED:
                return Refused(MASKED_TO_PROFESSIONALS)
            matricule = canonical_matricule(document.patient.matricule)
            if to_patient and address.partition("@")[0].upper() != matricule:
                return Refused(DOCUMENT_OF_ANOTHER)
        return None

    def _size(self, recipients: Sequence[str], content: bytes, carried: Carried) -> Refused | None:
        """Of the mail as it will be: a document is in it as archive and as PDF."""
        sizes = {audience: len(content) for audience in Audience}
        if (carried.documents or carried.archives) and any(
            self._too_large(each, len(content) * _GROWTH) for each in recipients
        ):
            for audience in {self._audience(each) for each in recipients}:
                envelope = Envelope("", audience, "<size@invalid>", datetime.now(UTC))
                try:
                    sizes[audience] = len(made_ready(content, carried, None, envelope, self._options))
                except MimeError:  # found out when it is made ready, if at all
                    continue
        for each in recipients:
            refused = self._too_large(each, sizes[self._audience(each)])
            if refused is not None:
                return refused
        return None

    def _audience(self, address: str) -> Audience:
        return Audience.PATIENT if domain_of(address) in self._patient_domains else Audience.PROFESSIONAL
