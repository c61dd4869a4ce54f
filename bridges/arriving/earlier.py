"""Earlier values of the dossier beside arriving ones, only as far as the reader may see them.

Whoever the mailbox belongs to is the reader: nobody but a named professional has one, so a team's mailbox gets none.
The dossier decides (`bridges.dossier.rights.decide`), and journals each document it opens before a byte leaves. A
matricule alone does not say that two documents are about one person: one wrong digit makes it another's.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from bridges.cda import read_cda
from bridges.dossier.entries import PatientKey
from bridges.dossier.repository import Dossier
from bridges.dossier.rights import Reader
from bridges.report import PatientIdentity, Result
from trust.refusals import Refused

PURPOSE = "valeurs précédentes à côté d'un résultat reçu"
"""What the journal says, which the patient reads."""
MAX_DOCUMENTS = 3
"""Opened for one mail, the latest first."""
_LABORATORY = "11502-2"

Code = tuple[str, str]
"""Code system and code: laboratories' own codes are alike without meaning the same."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """One value of the dossier."""

    value: str
    unit: str
    at: str
    """CDA TS."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for beside one document of a mail."""

    document: str
    """Its unique id."""
    codes: frozenset[Code]
    day: str
    """Only values from before it (AAAAMMJJ)."""

    @classmethod
    def of(cls, document: str, results: Sequence[Result], at: str) -> Asked:
        """`at`: CDA TS of the document."""
        codes = frozenset((result.code_system, result.code) for result in results if result.code_system and result.code)
        return cls(document, codes, at[:8])


class EarlierResults(Protocol):
    def of(
        self, address: str, patient: PatientIdentity, asked: Sequence[Asked]
    ) -> Mapping[str, Mapping[Code, Earlier]]:
        """The latest value of each code that the mailbox's holder may read, by document. Blocks; raises what the
        dossier's store raises."""
        ...


class DossierValues:
    """`EarlierResults` from our own dossier. Thread-safe."""

    def __init__(self, dossier: Dossier, reader_of: Callable[[str], Reader | None]) -> None:
        """`reader_of`: the professional a mailbox belongs to, as the directory knows him; None: no single one."""
        self._dossier = dossier
        self._reader_of = reader_of

    def of(
        self, address: str, patient: PatientIdentity, asked: Sequence[Asked]
    ) -> Mapping[str, Mapping[Code, Earlier]]:
        """See `EarlierResults`. Units may differ between laboratories: each value stands with its own."""
        found: dict[str, dict[Code, Earlier]] = {each.document: {} for each in asked if each.codes and each.day}
        asked = [each for each in asked if each.document in found]
        if not asked or not patient.matricule or not _person(patient):
            return {}
        reader = self._reader_of(address)
        if reader is None:
            return {}
        key = PatientKey(patient.matricule, patient.matricule_oid)
        listed = self._dossier.list(reader, key, purpose=PURPOSE)
        if isinstance(listed, Refused):
            return {}
        opened = 0
        for entry in listed:
            day = (entry.service_start or entry.created)[:8]
            wanting = [each for each in asked if "" < day < each.day and not each.codes <= found[each.document].keys()]
            if entry.type_code != _LABORATORY or entry.level < 3 or not wanting:
                continue
            if opened == MAX_DOCUMENTS:
                break
            opened += 1
            content = self._dossier.read(reader, key, entry.entry_uuid, purpose=PURPOSE)
            document = content if isinstance(content, Refused) else read_cda(content)
            if isinstance(document, Refused) or _person(document.patient) != _person(patient):
                continue
            for result in document.results:
                code = (result.code_system, result.code)
                for each in wanting:
                    if code in each.codes and result.value:
                        at = result.effective or document.service_start or document.created
                        found[each.document].setdefault(code, Earlier(result.value, result.unit, at))
        return found


def _person(patient: PatientIdentity) -> tuple[str, str] | None:
    """Birth date and birth name as they are compared; None when one of them was not given."""
    plain = unicodedata.normalize("NFKD", patient.birth_name.casefold())
    name = "".join(sign for sign in plain if sign.isalnum())
    return (patient.birth_date[:8], name) if patient.birth_date and name else None
