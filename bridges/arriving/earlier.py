"""Earlier values of the dossier beside arriving ones, only as far as the reader may see them.

Whoever the mailbox belongs to is the reader: nobody but a named professional has one, so a team's mailbox gets none.
The dossier decides (`bridges.dossier.rights.decide`), and journals each document it opens before a byte leaves.
"""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class Earlier:
    """One value of the dossier."""

    value: str
    unit: str
    at: str
    """CDA TS."""


class EarlierResults(Protocol):
    def of(
        self, address: str, patient: PatientIdentity, wanted: Sequence[Result], before: str
    ) -> Mapping[str, Earlier]:
        """The latest value of each code in `wanted`, by code, from before that day (CDA TS), that the mailbox's holder
        may read. Blocks; raises what the dossier's store raises."""
        ...


class DossierValues:
    """`EarlierResults` from our own dossier. Thread-safe."""

    def __init__(self, dossier: Dossier, reader_of: Callable[[str], Reader | None]) -> None:
        """`reader_of`: the professional a mailbox belongs to, as the directory knows him; None: no single one."""
        self._dossier = dossier
        self._reader_of = reader_of

    def of(
        self, address: str, patient: PatientIdentity, wanted: Sequence[Result], before: str
    ) -> Mapping[str, Earlier]:
        """See `EarlierResults`. Units may differ between laboratories: each value stands with its own."""
        codes = {result.code for result in wanted if result.code}
        if not codes or not patient.matricule:
            return {}
        reader = self._reader_of(address)
        if reader is None:
            return {}
        key = PatientKey(patient.matricule, patient.matricule_oid)
        listed = self._dossier.list(reader, key, purpose=PURPOSE)
        if isinstance(listed, Refused):
            return {}
        found: dict[str, Earlier] = {}
        opened = 0
        for entry in listed:
            day = (entry.service_start or entry.created)[:8]
            if entry.type_code != _LABORATORY or entry.level < 3 or not day < before[:8]:
                continue
            if opened == MAX_DOCUMENTS or codes <= set(found):
                break
            opened += 1
            content = self._dossier.read(reader, key, entry.entry_uuid, purpose=PURPOSE)
            document = content if isinstance(content, Refused) else read_cda(content)
            if isinstance(document, Refused):
                continue
            for result in document.results:
                if result.code in codes and result.value:
                    at = result.effective or document.service_start or document.created
                    found.setdefault(result.code, Earlier(result.value, result.unit, at))
        return found
