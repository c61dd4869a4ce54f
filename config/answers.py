"""What a running gateway answers on its control socket: the calls behind the command line, synchronous, off the loop.

A call takes the request as a mapping and returns what JSON can hold, or a `Refused`. Who asks is whoever may open the
socket; who *reads a record* is named in the request and looked up in the directory: nobody states their own profession.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from bridges.dossier.entries import PatientKey
from bridges.dossier.repository import Dossier
from bridges.dossier.rights import Reader
from bridges.letters import Letters
from config.catalogue import CATALOGUE
from config.journal_answers import JournalAnswers
from config.trace import life
from directory import refusals as directory_refusals
from directory.resolve import Directory, DirectoryUnavailableError
from mta.spool import Spool
from trust.refusals import Refused
from trust.store.database import Database

Request = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answers:
    """The rooms the calls reach into; `dossier` is None where no record is kept."""

    database: Database
    journal: JournalAnswers
    spool: Spool
    directory: Directory
    letters: Letters
    dossier: Dossier | None

    def calls(self, threads: Executor) -> dict[str, Callable[[Request], Awaitable[Any]]]:
        """All calls by name, each run in `threads`."""
        calls: dict[str, Callable[[Request], Any]] = {
            "ping": self.ping,
            "queue.counts": self.counts,
            "trace": self.trace,
            **self.journal.calls(),
            "letters.submit": self.submit,
        }
        if self.dossier is not None:
            calls |= {"dossier.list": self.dossier_list, "dossier.read": self.dossier_read}

        return off_loop(calls, threads)

    def ping(self, _: Request) -> Any:
        return {"pid": os.getpid()}

    def counts(self, _: Request) -> Any:
        return {state.value: count for state, count in self.spool.gauges().states.items()}

    def trace(self, request: Request) -> Any:
        return life(self.spool, request["reference"], CATALOGUE)

    def submit(self, request: Request) -> Any:
        result = self.letters.submit(
            base64.b64decode(request["document"]),
            sender=request["sender"],
            recipients=request["recipients"],
            to_dossier=bool(request["to_dossier"]),
            to_patient=bool(request["to_patient"]),
        )
        if result.refused is not None:
            return result.refused
        # The pages once, not once a letter: whoever asked binds them to each cover.
        pages = list(dict.fromkeys(each.pages for each in result.unreached if each.cover))
        return {
            "accepted": result.accepted,
            "duplicate": result.duplicate,
            "spool_id": result.spool_id,
            "reached": list(result.reached),
            "unreached": [
                {
                    "recipient": each.recipient,
                    "code": each.code,
                    "sentence": each.sentence,
                    "cover": base64.b64encode(each.cover).decode("ascii"),
                    "pages": pages.index(each.pages) if each.cover else None,
                }
                for each in result.unreached
            ],
            "pages": [base64.b64encode(each).decode("ascii") for each in pages],
        }

    def dossier_list(self, request: Request) -> Any:
        reader = self._reader(request)
        if isinstance(reader, Refused) or self.dossier is None:
            return reader
        listed = self.dossier.list(reader, _patient(request), purpose="care", history=bool(request["every"]))
        if isinstance(listed, Refused):
            return listed
        return [
            {
                "id": entry.entry_uuid,
                "unique_id": entry.unique_id,
                "set_id": entry.set_id,
                "version": entry.version,
                "created": entry.created,
                "status": entry.status.value,
                "type": entry.type_code,
                "title": entry.title or entry.type_label,
            }
            for entry in listed
        ]

    def dossier_read(self, request: Request) -> Any:
        reader = self._reader(request)
        if isinstance(reader, Refused) or self.dossier is None:
            return reader
        content = self.dossier.read(reader, _patient(request), request["document"], purpose="care")
        if isinstance(content, Refused):
            return content
        return {"content": base64.b64encode(content).decode("ascii")}

    def _reader(self, request: Request) -> Reader | Refused:
        """The professional as the directory knows them."""
        try:
            found = self.directory.by_identifier(request["reader"])
        except DirectoryUnavailableError:
            return Refused(directory_refusals.UNAVAILABLE)
        person = next((entry for entry in found if entry.profession), None)
        if person is None:
            return Refused(directory_refusals.RECIPIENT_UNKNOWN, detail="no professional has this identifier")
        return Reader(person.id_nat, person.display_name, person.profession)


def off_loop(
    calls: Mapping[str, Callable[[Request], Any]], threads: Executor
) -> dict[str, Callable[[Request], Awaitable[Any]]]:
    """Synchronous calls, each run in `threads`."""

    def beside(work: Callable[[Request], Any]) -> Callable[[Request], Awaitable[Any]]:
        return lambda request: asyncio.get_running_loop().run_in_executor(threads, work, request)

    return {name: beside(work) for name, work in calls.items()}


def _patient(request: Request) -> PatientKey:
    return PatientKey(request["patient"], request["oid"])
