"""A sending system's message becomes deliveries, and only then an acknowledgement.

AA promises that the frame and its deliveries are committed and synced. Syntax, patient and version are checked before;
recipients are resolved before when the directory answers in time, otherwise the delivery waits and is resolved before
it is protected: a slow directory stops no laboratory. Only who is named by identifier and not by address has to be
found before: without an address there is nobody to keep the report for. A message that comes again (same partner, same
MSH-10, same bytes) gets the stored acknowledgement and no second mail; the same MSH-10 with other bytes is a new
message, flagged.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import structlog

from bridges import refusals as bridges_refusals
from bridges import routing
from bridges.hl7 import acknowledgement
from bridges.hl7.mllp import FrameError
from bridges.report import Correspondent, Report
from bridges.routing import NO_RECIPIENT, Lookup, RoutingOptions, identifiers_to_find, recipients_to_resolve, route
from directory import refusals as directory_refusals
from directory.records import Recipient
from directory.resolve import Directory, DirectoryUnavailableError
from mta import refusals as mta_refusals
from mta.message import DeliveryState, Origin
from mta.priority import Priority
from mta.spool import DeliveryRecord, Duplicate, NewDelivery, Spool, Submission
from smime import refusals as smime_refusals
from trust.refusals import Refused, join_catalogues

log = structlog.get_logger(__name__)

HL7_CONTENT = "application/hl7-v2"
_AT_ACCEPTANCE = join_catalogues(
    (bridges_refusals.CATALOGUE, routing.CATALOGUE, directory_refusals.CATALOGUE, smime_refusals.CATALOGUE)
)
"""What may be said against a recipient before the sender is answered, by code."""
_TOLD_TO_SENDER = frozenset({"body-truncated", "pdf-unreadable", "parent-contradicts-set", "parent-contradicts-txa"})
"""What was read through and changes what the reader gets: the acknowledgement warns of it. The rest is in the log."""


class TrustedDomains(Protocol):
    def is_trusted(self, domain: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class SendingSystem:
    """Whoever reaches one listener."""

    name: str
    sender: str
    """The mailbox its reports leave from; the listener's configuration is the authorisation to sign as it."""
    sender_name: str


@dataclass(frozen=True, slots=True)
class IntakeOptions:
    routing: RoutingOptions
    resolve_seconds: float = 0.2
    """How long the sender may wait for the directory."""
    identify_seconds: float = 3.0
    """How long for somebody named by identifier: without an address there is no delivery to wait."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of one frame."""

    reply: bytes
    """The acknowledgement, ER7 without MLLP framing."""
    deliveries: tuple[NewDelivery, ...]
    """Who receives, and why not whom; empty when the frame itself was refused. Of a frame that came again, as decided
    the first time."""
    spool_id: str
    """Empty when nothing was kept."""
    duplicate: bool
    refused: Refused | None
    """Why nothing was kept."""


class Intake:
    """Decides on one frame. Synchronous and thread-safe: doors call it off the event loop."""

    def __init__(
        self,
        spool: Spool,
        directory: Directory,
        trust_list: TrustedDomains,
        parse: Callable[[bytes], Report | Refused],
        options: IntakeOptions,
        *,
        accepted: Callable[[], None] = lambda: None,
        sends: Callable[[str], Refused | None] = lambda _: None,
    ) -> None:
        """`parse` reads a frame; `accepted` is called after each commit (it wakes the worker). `sends`, which may
        block: why nothing is sent in the name of a mailbox now."""
        self._spool = spool
        self._directory = directory
        self._trust_list = trust_list
        self._parse = parse
        self._options = options
        self._accepted = accepted
        self._sends = sends
        self._resolvers = ThreadPoolExecutor(max_workers=8, thread_name_prefix="resolve")

    def close(self) -> None:
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    def receive(self, frame: bytes, system: SendingSystem) -> bytes:
        """The acknowledgement to answer with, ER7 without MLLP framing. Raises only when the store breaks: no answer
        is then the right answer, and the sender tries again."""
        return self.take(frame, system).reply

    def take(self, frame: bytes, system: SendingSystem) -> Taken:
        """As `receive`, for callers who need to know who receives."""
        header = acknowledgement.header_of(frame)
        dedup_key = _dedup_key(system.name, header.control_id, frame)
        before = self._spool.duplicate_of(dedup_key)
        if before is not None:
            log.info("intake.duplicate", partner=system.name, spool_id=before.spool_id)
            return self._taken_before(before)
        report = self._sends(system.sender) or self._read(frame)
        now = datetime.now(UTC)
        control_id = _control_id()
        if isinstance(report, Refused):
            log.warning("intake.refused", partner=system.name, code=report.refusal.code, location=report.location)
            return Taken(acknowledgement.refuse(header, control_id, now, report), (), "", False, report)
        identified = self._identify(identifiers_to_find(report))
        if isinstance(identified, Refused):
            log.warning("intake.refused", partner=system.name, code=identified.refusal.code)
            return Taken(acknowledgement.refuse(header, control_id, now, identified), (), "", False, identified)
        lookups = self._resolve(recipients_to_resolve(report, self._options.routing))
        lookups |= {recipient.address: recipient for recipient in identified.values()}
        deliveries = route(
            report,
            lambda address: lookups.get(address, Lookup.LATER),
            self._trust_list.is_trusted,
            self._options.routing,
            {name: recipient.address for name, recipient in identified.items()},
        )
        impossible = [delivery.refused for delivery in deliveries if delivery.refused is not None]
        if len(impossible) == len(deliveries):
            reasons = impossible or [Refused(NO_RECIPIENT)]
            log.warning("intake.refused", partner=system.name, code=reasons[0].refusal.code, recipients=len(impossible))
            return Taken(
                acknowledgement.refuse(header, control_id, now, reasons), deliveries, "", False, refused=reasons[0]
            )
        # Per recipient: AA for those a delivery now waits for, a warning for each that none can reach.
        told = [finding for finding in report.findings if finding.code in _TOLD_TO_SENDER]
        reply = acknowledgement.accept(header, control_id, now, [*impossible, *told])
        outcome = self._spool.accept(
            Submission(
                origin=Origin.MLLP,
                sender=system.sender,
                peer=system.name,
                content=frame,
                content_type=HL7_CONTENT,
                deliveries=deliveries,
                dedup_key=dedup_key,
                reply=reply,
                external_id=report.control_id,
                message_id_domain=system.sender.rpartition("@")[2],
                flags=tuple(sorted({finding.code for finding in report.findings})),
                priority=Priority.URGENT if report.urgent else None,
            )
        )
        if isinstance(outcome, Duplicate):
            return self._taken_before(outcome)
        log.info(
            "intake.accepted",
            partner=system.name,
            spool_id=outcome.spool_id,
            deliveries=len(deliveries),
            impossible=[refused.refusal.code for refused in impossible],
            control_id_reused=outcome.repeated_external_id,
            findings=sorted({finding.code for finding in report.findings}),
        )
        self._accepted()
        return Taken(reply, deliveries, outcome.spool_id, False, None)

    def refuse(self, error: FrameError, system: SendingSystem) -> bytes:
        """The acknowledgement for a frame the door could not take, from whatever of it arrived."""
        refusal = bridges_refusals.HL7_TOO_LARGE if error.kind == "oversized" else bridges_refusals.HL7_UNREADABLE
        log.warning("intake.refused", partner=system.name, code=refusal.code, size=error.size)
        header = acknowledgement.header_of(error.head)
        return acknowledgement.refuse(header, _control_id(), datetime.now(UTC), Refused(refusal))

    def _taken_before(self, before: Duplicate) -> Taken:
        records = self._spool.deliveries(before.spool_id)
        return Taken(before.reply, tuple(_as_decided(record) for record in records), before.spool_id, True, None)

    def _read(self, frame: bytes) -> Report | Refused:
        """The report. A bug in a reader must not stop the sender's queue for ever: it is "later", and it is logged."""
        try:
            return self._parse(frame)
        except Exception as error:
            log.error("intake.reader-failed", exc_info=error)
            return Refused(mta_refusals.INTERNAL_ERROR)

    def _identify(self, named: Mapping[str, Correspondent]) -> dict[str, Recipient] | Refused:
        """The preferred mailbox of each whom the report names by identifier; who has none is missing.

        Refused for now when the directory did not answer for one of them: the sender sends the report again.
        """
        asked = {
            name: self._resolvers.submit(self._directory.preferred, *name.rsplit("/", 1))  # identifier, structure
            for name in named
        }
        wait(asked.values(), timeout=self._options.identify_seconds)
        found: dict[str, Recipient] = {}
        for name, future in asked.items():
            later = Refused(directory_refusals.UNAVAILABLE, location=named[name].location)
            if not future.done():
                for each in asked.values():
                    each.cancel()
                return later
            try:
                recipient = future.result()
            except DirectoryUnavailableError:
                return later
            except Exception as error:  # our bug, or a library's: no reason to refuse a report for good
                log.error("intake.lookup-failed", exc_info=error)
                return later
            if recipient is not None:
                found[name] = recipient
        return found

    def _resolve(self, addresses: tuple[str, ...]) -> dict[str, Recipient | Lookup]:
        """All look-ups side by side; those not back in time, or for which the directory is down, are LATER."""
        asked: dict[str, Future[Recipient | None]] = {
            address: self._resolvers.submit(self._directory.resolve, address) for address in addresses
        }
        wait(asked.values(), timeout=self._options.resolve_seconds)
        found: dict[str, Recipient | Lookup] = {}
        for address, future in asked.items():
            if not future.done():
                future.cancel()
                found[address] = Lookup.LATER
                continue
            try:
                found[address] = future.result() or Lookup.UNKNOWN
            except DirectoryUnavailableError:
                found[address] = Lookup.LATER
            except Exception as error:  # our bug, or a library's: no reason to refuse a report
                log.error("intake.lookup-failed", exc_info=error)
                found[address] = Lookup.LATER
        return found


def _as_decided(record: DeliveryRecord) -> NewDelivery:
    """The delivery as it was at acceptance: what failed without an attempt was refused then."""
    refused = None
    if record.state is DeliveryState.FAILED and record.attempts == 0:
        refused = Refused(_AT_ACCEPTANCE.get(record.code, mta_refusals.REMOTE_REFUSED), record.detail)
    return NewDelivery(record.recipient, record.target, refused)


def _control_id() -> str:
    """MSH-10 of our own messages: at most 20 characters (HL7 v2.5 §2.15.9.10)."""
    return secrets.token_hex(8).upper()


def _dedup_key(partner: str, control_id: str, frame: bytes) -> str:
    digest = hashlib.sha256()
    for part in (b"mllp", partner.encode(), control_id.encode("utf-8", "surrogatepass")):
        digest.update(len(part).to_bytes(4, "big") + part)
    digest.update(hashlib.sha256(frame).digest())
    return digest.hexdigest()
