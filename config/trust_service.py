"""What one running gateway believes and shows, kept fresh: its trust list, its TLS contexts, and what is told of both.

`TrustService` owns the keeper of the list and the contexts of the doors, refreshes the one on its schedule and follows
the files of the others, answers the command line (`relais trust`), and gives monitoring its gauges.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog
from cryptography import x509
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from config.settings import Loaded, SettingsError
from trust.certificates import CertificateValidator, Purpose
from trust.journal import JournalEntry
from trust.list_keeper import LIST_DIRECTORY, ListKeeper, Refresh, RefreshOutcome
from trust.list_source import ListSource, file_source, url_source
from trust.listed_names import subject_of
from trust.names import DistinguishedName
from trust.pki_catalogue import LIST_UNAVAILABLE
from trust.probe import SECONDS, Settled, probe
from trust.refusals import Refused
from trust.starttls import StartTls
from trust.tls import (
    FollowedContext,
    PeerJudge,
    TlsMaterialError,
    followed_operator_client,
    followed_operator_server,
    followed_service_server,
    operator_client_context,
    peer_judge,
)

log = structlog.get_logger(__name__)

MAX_SHOWN = 1000
"""Changes of each kind that an answer spells out."""
_LOOK_AT_FILES_SECONDS = 10.0
_SOON_SECONDS = 300.0
"""When a list that could not be had or is not believed is tried again, if the schedule does not come first."""

Request = Mapping[str, Any]


def list_source(loaded: Loaded) -> ListSource:
    """Where the configuration says the list is; raises `SettingsError`."""
    trust = loaded.settings.trust
    if not trust.list.lower().startswith(("http://", "https://")):
        return file_source(loaded.path(trust.list))
    try:
        return url_source(trust.list, loaded.path(trust.list_ca or trust.anchors))
    except ValueError as error:
        raise SettingsError(f"trust.list is not an address: {error}") from error


def operator_files(loaded: Loaded) -> tuple[Path, Path, Path, Path | None]:
    """What `operator_server_context` and `operator_client_context` are made from."""
    trust = loaded.settings.trust
    chain, key, anchors = map(loaded.path, (trust.operator_chain, trust.operator_key, trust.anchors))
    return chain, key, anchors, loaded.path(trust.intermediates) if trust.intermediates else None


def list_signer(loaded: Loaded) -> DistinguishedName:
    """Who must have signed it; raises `SettingsError`."""
    try:
        return DistinguishedName.parse(loaded.settings.trust.list_signer)
    except ValueError as error:
        raise SettingsError("trust.list_signer is not a distinguished name") from error


class TrustService:
    """Of one gateway. Make it with `open`, run `run` as a task."""

    def __init__(
        self, loaded: Loaded, validator: CertificateValidator, keeper: ListKeeper, settled: Settled | None = None
    ) -> None:
        """`settled` waits for what `validator` fetches. Raises `SettingsError` when certificate, key or anchors cannot
        be used."""
        trust, submission = loaded.settings.trust, loaded.settings.submission
        self._files = operator_files(loaded)
        self._host = loaded.settings.operator.host
        self._domains = tuple(domain.lower() for domain in loaded.settings.operator.domains)
        self._interval = trust.list_refresh_seconds
        self._stopped = asyncio.Event()
        self.validator = validator
        self._settled = settled
        self._others: tuple[FollowedContext, ...] = ()
        self.keeper = keeper
        """The list in force, whenever it is asked."""
        try:
            self.operators = followed_operator_server(*self._files)
            self.partners = followed_operator_client(*self._files)
            self.submission = (
                followed_service_server(
                    "submission",
                    loaded.path(submission.chain),
                    loaded.path(submission.key),
                    loaded.path(trust.anchors) if submission.client_certificates else None,
                )
                if submission
                else None
            )
        except TlsMaterialError as error:
            raise SettingsError(f"TLS cannot be set up: {error}") from error

    @classmethod
    def open(
        cls,
        loaded: Loaded,
        validator: CertificateValidator,
        journal: Callable[[JournalEntry], object],
        settled: Settled | None = None,
    ) -> TrustService:
        """Blocks for as long as the list's source does. Raises `SettingsError` when there is nothing to believe."""
        floor = None
        with contextlib.suppress(OSError, ValueError):  # written before there were copies
            floor = datetime.fromisoformat((loaded.state / "trust-list.date").read_text())
        keeper = ListKeeper.open(
            loaded.state / LIST_DIRECTORY, list_source(loaded), validator, list_signer(loaded), journal, floor=floor
        )
        if isinstance(keeper, Refused):
            if keeper.refusal is LIST_UNAVAILABLE:
                raise SettingsError(f"there is no trust list: {keeper.detail}")
            raise SettingsError(f"the trust list is not believed: {keeper.refusal.text} {keeper.detail}".strip())
        return cls(loaded, validator, keeper, settled)

    def follow(self, context: FollowedContext) -> None:
        """Look at this one's files too."""
        self._others += (context,)

    @property
    def contexts(self) -> tuple[FollowedContext, ...]:
        """All that follow files."""
        return (self.operators, self.partners, *((self.submission,) if self.submission else ()), *self._others)

    def judge(self, purpose: Purpose) -> PeerJudge:
        """Our validator about peers of a door (client) or of a target (server)."""
        return peer_judge(self.validator, purpose)

    async def run(self) -> None:
        """Look at the files every few seconds and at the list on its schedule, until `stop`."""
        due = time.monotonic() + self._pause(self._interval)
        while not await self._stops_within(_LOOK_AT_FILES_SECONDS):
            for context in self.contexts:
                try:
                    await asyncio.to_thread(context.look)
                except Exception as error:  # one file that nobody foresaw must not end the looking for all
                    log.error("tls.look-failed", context=context.name, exc_info=error)
            if time.monotonic() < due:
                continue
            wait = self._interval
            try:
                found = await asyncio.to_thread(self.keeper.refresh)
            except Exception as error:  # a full disk or a locked database today is no reason to stop for ever
                log.error("trust.list.refresh-failed", exc_info=error)
                wait = min(wait, _SOON_SECONDS)
            else:
                # a list half written, or whose signer's revocation is not known yet, may be a good one in a moment
                if found.outcome in (RefreshOutcome.UNAVAILABLE, RefreshOutcome.REFUSED):
                    wait = min(wait, _SOON_SECONDS)
            due = time.monotonic() + self._pause(wait)

    async def stop(self) -> None:
        """Let `run` end."""
        self._stopped.set()

    async def _stops_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._stopped.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _pause(self, seconds: float) -> float:
        """With jitter, so that all the gateways of a country do not ask in the same second."""
        return seconds * random.uniform(0.9, 1.1)  # noqa: S311 - nothing secret

    # What the command line asks

    def calls(self, threads: Executor) -> dict[str, Callable[[Request], Awaitable[Any]]]:
        """Calls of the control socket by name, each run in `threads`."""
        calls: dict[str, Callable[[Request], Any]] = {
            "trust.list.show": self._show,
            "trust.list.diff": self._diff,
            "trust.list.accept": self._accept,
            "trust.list.refresh": lambda _: _told(self.keeper.refresh()),
            "trust.tls.look": self._look,
            "trust.probe": self._probe,
        }

        def off_loop(work: Callable[[Request], Any]) -> Callable[[Request], Awaitable[Any]]:
            return lambda request: asyncio.get_running_loop().run_in_executor(threads, work, request)

        return {name: off_loop(work) for name, work in calls.items()}

    def _show(self, _: Request) -> Any:
        return {**self.keeper.describe(), "own": self._own()}

    def _own(self) -> dict[str, Any]:
        """Whether partners find our name in the list we use: a renewed certificate often has a new one."""
        try:
            name = subject_of(x509.load_pem_x509_certificates(self._files[0].read_bytes())[0])
        except (OSError, ValueError, IndexError, x509.InvalidVersion):
            return {"name": "", "not_listed_for": []}
        listed = self.keeper.current.domains_of(name)
        return {"name": str(name), "not_listed_for": [each for each in self._domains if each not in listed]}

    def _diff(self, _: Request) -> Any:
        found = self.keeper.held_changes()
        if isinstance(found, Refused):
            return found
        held, changes = found
        return {
            "digest": held.digest,
            "generated_at": held.generated_at.isoformat(),
            "reasons": list(held.reasons),
            **changes.as_dict(MAX_SHOWN),
        }

    def _accept(self, request: Request) -> Any:
        accepted = self.keeper.accept(str(request["digest"]), f"operator:{str(request['by'])[:64]}")
        return accepted if isinstance(accepted, Refused) else _told(accepted)

    def _look(self, _: Request) -> Any:
        return {
            context.name: {"renewed": context.look(), "problem": context.problem, "renewals": context.renewals}
            for context in self.contexts
        }

    def _probe(self, request: Request) -> Any:
        how = StartTls(request["starttls"]) if request.get("starttls") else None
        report = probe(
            str(request["host"]),
            int(request["port"]),
            how,
            lambda: operator_client_context(*self._files),
            self.validator,
            self.keeper.current,
            helo=self._host,
            domain=str(request.get("domain") or ""),
            seconds=min(float(request.get("timeout") or SECONDS), 60.0),
            settled=self._settled,
        )
        return report.as_dict()


def _told(refresh: Refresh) -> dict[str, Any]:
    refused = refresh.refused
    return {
        "outcome": refresh.outcome.value,
        "code": refused.refusal.code if refused else "",
        "text": refused.refusal.text if refused else "",
        "detail": refused.detail if refused else "",
        "changes": refresh.changes.as_dict(MAX_SHOWN) if refresh.changes else None,
    }


class TrustCollector(Collector):
    """The gauges of the list and of the contexts."""

    def __init__(self, service: TrustService) -> None:
        self._service = service

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand."""
        return ()

    def collect(self) -> Iterator[Metric]:
        record, current = self._service.keeper.record, self._service.keeper.current
        now = time.time()

        def gauge(name: str, documentation: str, value: float) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"relais_{name}", documentation, value=value)

        yield gauge(
            "trust_list_age_seconds", "Since the date of the trust list in use.", now - current.generated_at.timestamp()
        )
        yield gauge("trust_list_rows", "Rows of the trust list in use.", current.rows)
        yield gauge("trust_list_domains", "Domains of the trust list in use.", len(current.domains))
        yield gauge("trust_list_operators", "Operators of the trust list in use.", len(current.operators))
        yield gauge("trust_list_unreadable_rows", "Domains with a row that could not be read.", len(current.unreadable))
        yield gauge(
            "trust_list_held",
            "1 when a newer list waits for a human: relais trust list diff.",
            record.held is not None,
        )
        last = record.last
        failed = last is not None and last.outcome in (RefreshOutcome.REFUSED, RefreshOutcome.UNAVAILABLE)
        yield gauge("trust_list_refresh_failed", "1 when the last look at the list's source brought no list.", failed)
        yield gauge(
            "trust_list_last_look_age_seconds",
            "Since the list's source was last looked at.",
            now - last.at.timestamp() if last else float("inf"),
        )
        problems = GaugeMetricFamily(
            "relais_tls_not_renewed",
            "1 when newer certificate, key or anchor files cannot be used and the old ones stay in use.",
            labels=["context"],
        )
        renewals = GaugeMetricFamily("relais_tls_renewals", "Newer files taken into use.", labels=["context"])
        for context in self._service.contexts:
            problems.add_metric([context.name], bool(context.problem))
            renewals.add_metric([context.name], context.renewals)
        yield problems
        yield renewals
