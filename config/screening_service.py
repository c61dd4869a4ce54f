"""What `[screening]` and `[notifications]` become, and what monitoring asks about them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import structlog
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from config.settings import Loaded
from mta.clamd import Clamd, ClamdOptions, ScannerTroubleError
from mta.overdue import Overdue, OverdueOptions
from mta.quarantine import Quarantine
from mta.scanning import ScanOptions, ScanStage, TooLarge

log = structlog.get_logger(__name__)

_HOUR, _DAY = 3600.0, 86_400.0
_VERDICTS = ("clean", "infected", "not-scanned", "unavailable", "released")


def clamd_options(loaded: Loaded) -> ClamdOptions | None:
    """None: no scanner is configured."""
    section = loaded.settings.screening
    if not section.clamd_socket and not section.clamd_host:
        return None
    return ClamdOptions(
        socket=Path(loaded.path(section.clamd_socket)) if section.clamd_socket else None,
        host=section.clamd_host,
        port=section.clamd_port,
        connect_seconds=section.connect_seconds,
        scan_seconds=section.scan_seconds,
        concurrency=section.concurrency,
        max_octets=section.max_bytes,
    )


def scan_stages(loaded: Loaded) -> tuple[ScanStage, ...]:
    """The stage, where a scanner is configured. On the event loop it will run on."""
    options = clamd_options(loaded)
    if options is None:
        log.warning("screening.no-scanner", why="neither screening.clamd_socket nor screening.clamd_host is set")
        return ()
    return (ScanStage(Clamd(options), ScanOptions(TooLarge(loaded.settings.screening.too_large))),)


def scanner_checks(loaded: Loaded) -> dict[str, Callable[[], bool]]:
    """For `/readyz`: whether the scanner answers."""
    options = clamd_options(loaded)
    if options is None:
        return {}

    def answers() -> bool:
        try:
            return bool(asyncio.run(Clamd(options).version()))
        except ScannerTroubleError:
            return False

    return {"scanner": answers}


def scanner_findings(loaded: Loaded) -> Iterator[tuple[Literal["ok", "notice", "problem"], str]]:
    """For `relais doctor`: level and sentence."""
    options = clamd_options(loaded)
    if options is None:
        yield "notice", "mail is not searched for malicious software: neither clamd_socket nor clamd_host is set"
        return
    try:
        version, skips = asyncio.run(_asked(Clamd(options)))
    except ScannerTroubleError as error:
        yield "problem", f"the scanner gives no verdict ({error}): mail waits until it does"
        return
    yield "ok", f"{version} answers"
    if skips:
        yield (
            "problem",
            "clamd says OK of what is beyond its limits: set AlertExceedsMax yes in clamd.conf and restart it",
        )


async def _asked(scanner: Clamd) -> tuple[str, bool]:
    return await scanner.version(), await scanner.skips()


def overdue_options(loaded: Loaded) -> OverdueOptions:
    section = loaded.settings.notifications
    return OverdueOptions(
        warning_seconds=section.warning_hours * _HOUR,
        receipt_seconds=section.receipt_hours * _HOUR,
        quarantine_seconds=loaded.settings.screening.quarantine_days * _DAY,
        lifetime=loaded.settings.spool.expire_seconds,
    )


class ScreeningCollector(Collector):
    """Scans, quarantine and receipts that are missing; read anew at every scrape."""

    def __init__(self, counts: Mapping[str, int] | None, quarantine: Quarantine, overdue: Overdue) -> None:
        """`counts`: `ScanStage.counts`, None without a scanner."""
        self._counts = counts
        self._quarantine = quarantine
        self._overdue = overdue

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: registering must not read the database."""
        return ()

    def collect(self) -> Iterator[Metric]:
        if self._counts is not None:
            scans = CounterMetricFamily("relais_scans", "Mails by the malware scanner's verdict.", labels=["verdict"])
            for verdict in _VERDICTS:
                scans.add_metric([verdict], self._counts.get(verdict, 0))
            yield scans
        try:
            held, oldest = self._quarantine.gauges()
            missing = self._overdue.missing()
        except SQLAlchemyError as error:
            log.error("metrics.screening", exc_info=error)
            return
        yield GaugeMetricFamily("relais_quarantine_held", "Deliveries in quarantine, undecided.", value=held)
        yield GaugeMetricFamily(
            "relais_quarantine_oldest_timestamp_seconds",
            "UNIX time since which the oldest undecided one is held; 0 when there is none.",
            value=oldest or 0.0,
        )
        late = GaugeMetricFamily(
            "relais_receipts_missing",
            "Receipts that another operator promised and that are later than notifications.receipt_hours.",
            labels=["destination"],
        )
        for destination, count in missing:
            late.add_metric([destination], count)
        yield late
