"""The directory kept in step by a running gateway, and what its settings mean to `directory.synchronisation`.

The gateway looks at the folder the register's files arrive in. It runs once for every publication, and once a day
without one, so that what somebody else changed in the directory is put right. A publication that was held is tried
again when its files change, or by a person: `relais directory sync --accept`.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import structlog
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from config.settings import Loaded, SettingsError
from directory.administration import AdministratorOptions
from directory.apart import ApartError, run_apart
from directory.guards import Limits, published_at
from directory.ldif import LdifEntry
from directory.load import LoadReport, judged
from directory.national import NationalFiles
from directory.runs import RunReports
from directory.synchronisation import BusyError, SynchronisationOptions
from mta.bell import Repeating
from trust.store.durable import make_private_directory

log = structlog.get_logger(__name__)

FOLDER = "directory-sync"
"""Below the state directory."""
_DAY = 86_400.0
_SETTLING_SECONDS = 30.0
"""How long a file must not have grown."""


def synchronisation_folder(loaded: Loaded) -> Path:
    """Where the reports are."""
    folder = loaded.settings.synchronisation.folder
    return loaded.path(folder) if folder else loaded.state / FOLDER


def synchronisation_options(loaded: Loaded) -> SynchronisationOptions:
    """What the configuration says. Raises `SettingsError` when the administrator's password cannot be read."""
    section, directory = loaded.settings.synchronisation, loaded.settings.directory
    bind_dn, password_file = section.bind_dn or directory.writer_dn, section.password_file
    if not section.bind_dn:
        password_file = password_file or directory.writer_password_file
    if not bind_dn:
        raise SettingsError("synchronisation.bind_dn must name the directory's administrator, with its password_file")
    try:
        password = loaded.path(password_file).read_text().strip() if password_file else ""
    except OSError as error:
        raise SettingsError(f"synchronisation.password_file cannot be read: {error.strerror}") from error
    return SynchronisationOptions(
        AdministratorOptions(
            uri=section.uri or directory.uri,
            base=directory.base,
            bind_dn=bind_dn,
            password=password,
            ca_file=loaded.path(directory.ca) if directory.ca else None,
            timeout_seconds=section.timeout_seconds,
            patience_seconds=section.patience_seconds,
        ),
        folder=synchronisation_folder(loaded),
        own_domains=loaded.settings.operator.domains,
        limits=Limits(
            loss_percent=section.loss_percent,
            change_percent=section.change_percent,
            rejected_percent=section.rejected_percent,
            conflicts=section.conflicts,
            oldest_days=section.oldest_days,
        ),
        keep_reports=section.keep_reports,
    )


def first_load(
    options: SynchronisationOptions,
    files: NationalFiles,
    report: LoadReport,
    accept: Collection[str],
    scratch: Path | None = None,
) -> Generator[LdifEntry, None, None]:
    """The entries of a first load, held by what holds a synchronisation, with what the first of these needs to be quick
    left in its folder. `scratch`: see `directory.load.entries`. Raises what `directory.load.judged` raises."""
    make_private_directory(options.folder)
    return judged(
        files,
        options.administrator.base,
        report,
        limits=options.limits,
        accept=accept,
        now=datetime.now(UTC),
        scratch=scratch,
        kept=options.folder / "kept",
    )


def demonstration_options(state: Path) -> SynchronisationOptions:
    """Those of a running `relais up`. Raises `SettingsError` when there is none."""
    try:
        endpoint = json.loads((state / "endpoints.json").read_bytes())
        password = json.loads((state / "secrets.json").read_bytes())["directory-admin"]
        uri = f"ldaps://{endpoint['ldaps']['host']}:{endpoint['ldaps']['port']}"
        base, ca = endpoint["ldaps"]["base"], Path(endpoint["ca_file"])
    except (OSError, ValueError, KeyError, TypeError):
        raise SettingsError(f"no `relais up` runs with its state in {state}: give --config relais.toml") from None
    return SynchronisationOptions(
        AdministratorOptions(uri, base, f"cn=admin,{base}", password, ca),
        folder=state / FOLDER,
        limits=Limits(oldest_days=36_500),  # invented files have an invented date
    )


class ScheduledSynchronisation(Repeating):
    """Where `synchronisation.source` is set: a turn looks, and runs when there is something to do."""

    def __init__(
        self,
        options: SynchronisationOptions,
        source: Path,
        look_seconds: float,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__()
        self._options = options
        self._source = source
        self._look_seconds = look_seconds
        self._clock = clock
        self._stop = threading.Event()
        self._seen: tuple[object, ...] = ()
        self._tried: tuple[object, ...] = ()
        self._tried_at: datetime | None = None

    async def stop(self) -> None:
        """A run under way ends at the next entry, and the next start writes the rest."""
        self._stop.set()
        await super().stop()

    async def _turn(self) -> float:
        try:
            if not await asyncio.to_thread(self._look):
                return min(self._look_seconds, _SETTLING_SECONDS)
        except (ApartError, OSError) as error:
            log.error("directory.sync-failed", error=str(error))
        except BusyError:
            log.info("directory.sync-busy")
        return self._look_seconds

    def _look(self) -> bool:
        """False when files are still arriving: what changed since the last look is looked at again first."""
        seen = _fingerprint(self._source)
        if seen != self._seen:
            self._seen = seen
            return False
        now = self._clock()
        again = self._tried_at is None or (now - self._tried_at).total_seconds() >= _DAY
        if not seen or (seen == self._tried and not again):
            return True
        report = run_apart(self._options, [self._source], self._stop, now)
        if report.outcome in ("applied", "held"):
            self._tried, self._tried_at = seen, now
        told = {"run": report.id, "added": report.added, "changed": report.changed, "removed": report.removed}
        if report.outcome == "applied":
            log.info("directory.sync-applied", **told, refused=sum(report.refused.values()))
        elif report.outcome == "held":
            log.error("directory.sync-held", run=report.id, reasons=[hold.reason for hold in report.holds])
        else:
            log.warning("directory.sync-interrupted", **told)
        return True


class SynchronisationCollector(Collector):
    """The gauges of the last run and of the register's silence."""

    def __init__(self, folder: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._reports = RunReports(folder / "runs")
        self._clock = clock

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand."""
        return ()

    def collect(self) -> Iterator[Metric]:
        last = next(self._reports.newest_first(), None)
        applied = self._reports.last_applied()

        def gauge(name: str, documentation: str, value: float) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"relais_directory_sync_{name}", documentation, value=value)

        yield gauge("held", "1 while the last run is held for a human.", float(bool(last and last.outcome == "held")))
        broken_off = bool(last and last.outcome == "interrupted")
        yield gauge("interrupted", "1 when the last run was broken off; the next writes the rest.", float(broken_off))
        if applied is not None:
            yield gauge("refused", "Entries the directory refused in the last run.", sum(applied.refused.values()))
            moment = published_at(applied.files["mssante"].published) if "mssante" in applied.files else None
            if moment is not None:
                age = max(0.0, (self._clock() - moment).total_seconds())
                yield gauge("age_seconds", "Since the publication the directory is in step with.", age)


def _fingerprint(source: Path) -> tuple[object, ...]:
    """Changes when a file in the folder does; empty when there is none."""
    try:
        files = [path for path in source.iterdir() if path.suffix.lower() in (".txt", ".zip")]
        facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    except FileNotFoundError:
        return ()
    return tuple(sorted(facts))
