"""What a running gateway answers about its directory: the calls behind `relais directory resolve` and `refresh`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from directory import refusals
from directory.fhir import AnnuaireSante, FhirError
from directory.records import Recipient
from directory.refresh import refresh
from directory.resolve import Directory, DirectoryRefusedError, DirectoryUnavailableError
from directory.search import PAGE
from directory.why import Step
from trust.certificates import CertificateValidator, Purpose
from trust.refusals import Refused

Request = Mapping[str, Any]
_LARGEST_PAGE = 100


@dataclass(frozen=True, slots=True)
class DirectoryAnswers:
    """`validator` None: paths are not judged. `open_writer` gives a `Directory` that may write, None when none may."""

    directory: Directory
    base: str
    validator: CertificateValidator | None
    open_writer: Callable[[], Directory | None]
    open_register: Callable[[], AnnuaireSante]

    def calls(self) -> dict[str, Callable[[Request], Any]]:
        """All calls by name."""
        return {
            "directory.resolve": self.resolve,
            "directory.refresh": self.refresh,
            "directory.search": self.search,
        }

    def resolve(self, request: Request) -> Any:
        """Keys `address` (or an identifier), `structure`, `system`, `why`; None when there is no such mailbox."""
        asked, structure, system = (str(request.get(name) or "") for name in ("address", "structure", "system"))
        try:
            if request.get("why"):
                explanation = self.directory.explain(asked, structure, system)
                steps = [*explanation.steps, *self._paths(explanation.recipient)]
                found = described(explanation.recipient) if explanation.recipient else None
                return {"recipient": found, "why": [asdict(step) for step in steps]}
            if "@" in asked:
                recipient = self.directory.resolve(asked)
            else:
                recipient = self.directory.preferred(asked, structure, system)
        except DirectoryUnavailableError as error:
            return Refused(refusals.UNAVAILABLE, str(error))
        return described(recipient) if recipient is not None else None

    def search(self, request: Request) -> Any:
        """Keys `text`, `page` and `size`, of at least 1 and at most 100."""
        size = min(max(int(request.get("size") or PAGE), 1), _LARGEST_PAGE)
        try:
            page = self.directory.search(str(request.get("text") or ""), max(int(request.get("page") or 1), 1), size)
        except DirectoryUnavailableError as error:
            return Refused(refusals.UNAVAILABLE, str(error))
        found = [asdict(one) | {"kind": one.kind.value} for one in page.found]
        return {"found": found, "page": page.page, "size": size, "total": page.total, "more": page.more}

    def refresh(self, request: Request) -> Any:
        """Key `rpps`; the report, or `{"problem": sentence}`."""
        writer = self.open_writer()
        if writer is None:
            return {"problem": "No identity may write into the directory: set directory.writer_dn and its password."}
        try:
            return asdict(refresh(writer, self.open_register(), str(request["rpps"]), self.base))
        except DirectoryUnavailableError as error:
            return Refused(refusals.UNAVAILABLE, str(error))
        except (FhirError, DirectoryRefusedError, ValueError) as error:
            return {"problem": f"{str(error)[:1].upper()}{str(error)[1:]}."}
        finally:
            writer.close()

    def _paths(self, recipient: Recipient | None) -> list[Step]:
        """What is thought of each certificate that would be encrypted to."""
        if recipient is None or self.validator is None:
            return []
        now = datetime.now(UTC)
        steps = []
        usable = 0
        for certificate in recipient.encryption_certificates:
            verdict = self.validator.validate(certificate, (), Purpose.MAIL_ENCRYPTION, now)
            usable += verdict.ok
            said = "believed" if verdict.ok else f"refused: {verdict.section}"
            serial = f"{certificate.serial_number:x}"
            steps.append(Step("path", f"{serial}: {said} ({verdict.rule}, revocation {verdict.revocation})"))
        steps.append(Step("mail", f"is encrypted to {usable} certificates" if usable else "waits or is refused"))
        return steps


def described(recipient: Recipient) -> dict[str, Any]:
    """A mailbox as a person reads it."""
    return {
        "address": recipient.address,
        "kind": recipient.kind.value,
        "name": recipient.display_name,
        "identifier": recipient.id_nat,
        "profession": recipient.profession,
        "structure": recipient.structure,
        "organisation": recipient.organisation,
        "department": recipient.department,
        "rank": recipient.rank,
        "encryption certificates": len(recipient.encryption_certificates),
        "signing certificates": len(recipient.signing_certificates),
        "domain certificate": recipient.domain_certificate,
    }
