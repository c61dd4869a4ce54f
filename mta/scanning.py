"""The scan stage: no mail goes on before ClamAV has looked at it, in either direction.

What our own people send is looked at before it is signed and encrypted, what others send after it was opened. A scanner
that is down or slow makes the mail wait; nothing makes it pass unseen but a person's decision (`mta.quarantine`) or the
operator's, for what is too large. The content is never changed.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

from mta import refusals
from mta.clamd import Clean, Infected, ScannerTroubleError, Verdict
from mta.message import Message, Origin, Phase
from trust.refusals import Refused

_log = logging.getLogger("relais.mta.scanning")

RELEASED = "released-from-quarantine"
"""Flag of a message that a named person has released: whatever the scanner finds in it was known then."""
MAIL_CONTENT = "message/rfc822"
_OURS = (Origin.SUBMISSION, Origin.LMTP, Origin.MLLP)


class TooLarge(Enum):
    """What is done with what the scanner cannot look at for its size."""

    QUARANTINE = "quarantine"
    REFUSE = "refuse"
    DEFER = "defer"
    """Until the operator has raised the limit, or the delivery's time is over."""
    PASS = "pass"  # noqa: S105 - no secret
    """It goes on with a fact that says so."""


class Scanner(Protocol):
    """What the stage needs of `mta.clamd.Clamd`."""

    async def scan(self, content: bytes) -> Verdict:
        """Raises `ScannerTroubleError`."""
        ...


@dataclass(frozen=True, slots=True)
class ScanOptions:
    too_large: TooLarge = TooLarge.QUARANTINE


class ScanStage:
    """A `mta.message.Stage`. Mail we write ourselves passes: it holds nothing but our words and what its reader wrote.

    `counts` says how often each verdict was given: clean, infected, not-scanned, unavailable, released.
    """

    def __init__(self, scanner: Scanner, options: ScanOptions | None = None) -> None:
        self._scanner = scanner
        self._options = options or ScanOptions()
        self.counts: Counter[str] = Counter()

    async def apply(self, message: Message, phase: Phase) -> Message | Refused:
        """See `mta.message.Stage`. A fact `scan` says what was found."""
        looks = phase is Phase.SCREEN or (phase is Phase.ENRICH and message.origin in _OURS)
        if not looks or message.content_type != MAIL_CONTENT or message.origin is Origin.SYSTEM:
            return message
        if RELEASED in message.flags:
            self.counts["released"] += 1
            return _with_fact(message, "released")
        try:
            verdict = await self._scanner.scan(message.content)
        except ScannerTroubleError as error:
            self.counts["unavailable"] += 1
            _log.error("delivery %s waits for the malware scanner: %s", message.delivery_id, error)
            return Refused(refusals.SCANNER_UNAVAILABLE, str(error))
        if isinstance(verdict, Clean):
            self.counts["clean"] += 1
            return _with_fact(message, "clean")
        if isinstance(verdict, Infected):
            self.counts["infected"] += 1
            return Refused(refusals.MALWARE_FOUND, verdict.name)
        self.counts["not-scanned"] += 1
        limit = f"limit {verdict.limit}"
        match self._options.too_large:
            case TooLarge.QUARANTINE:
                return Refused(refusals.SCAN_TOO_LARGE, limit)
            case TooLarge.REFUSE:
                return Refused(refusals.TOO_LARGE_TO_SCAN, limit)
            case TooLarge.DEFER:
                return Refused(refusals.SCANNER_UNAVAILABLE, limit)
            case TooLarge.PASS:
                _log.warning("delivery %s passes without being scanned: %s", message.delivery_id, limit)
                return _with_fact(message, f"too large, {limit}")


def _with_fact(message: Message, found: str) -> Message:
    return replace(message, facts={**message.facts, "scan": found})
