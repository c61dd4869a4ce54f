"""The dossier as the end of a road: an `mta` target that files what laboratories and hospitals send."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from bridges.dossier.refusals import CONTENT_UNSUPPORTED, UNAVAILABLE
from bridges.dossier.repository import Dossier
from bridges.report import Report
from mta.message import Deferred, Delivered, Failed, Message, Outcome
from trust.refusals import Refused
from trust.store.database import StoreUnavailableError


class DossierTarget:
    """Delivers `application/hl7-v2` into the dossier. `parse` is the HL7 reader; at most `concurrency` at once."""

    def __init__(self, dossier: Dossier, parse: Callable[[bytes], Report | Refused], *, concurrency: int = 4) -> None:
        self._dossier = dossier
        self._parse = parse
        self._executor = ThreadPoolExecutor(concurrency, thread_name_prefix="dossier")

    async def deliver(self, message: Message) -> Outcome:
        """Idempotent by the message's delivery_id. A dossier whose storage fails defers."""
        try:
            answer = await asyncio.get_running_loop().run_in_executor(self._executor, self._deposit, message)
        except (StoreUnavailableError, OSError) as error:
            return Deferred(Refused(UNAVAILABLE, type(error).__name__))
        if isinstance(answer, Refused):
            return Failed(answer) if answer.refusal.permanent else Deferred(answer)
        return Delivered(answer)

    def close(self) -> None:
        """Wait for deposits under way and let the threads go."""
        self._executor.shutdown()

    def _deposit(self, message: Message) -> str | Refused:
        if message.content_type != "application/hl7-v2":
            return Refused(CONTENT_UNSUPPORTED)
        report = self._parse(message.content)
        if isinstance(report, Refused):
            return report
        depositor = message.peer or message.sender
        answer = self._dossier.deposit(report, delivery_id=message.delivery_id, depositor=depositor)
        if isinstance(answer, Refused):
            return answer
        findings = " ".join(finding.code for finding in answer.findings)
        return f"{len(answer.entries)} filed" + (f" ({findings})" if findings else "")
