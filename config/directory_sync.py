"""`relais directory sync`, `ldif`, `runs`, `generate`: the directory in step with the register's files, and files.

Exit codes: 0 the directory is in step, 1 it is not (the report says why: held, or interrupted), 2 the command line was
wrong. Professional addresses stand in reports, which only the owner of the state directory can read; nothing is logged.

Imports nothing of the gateway before a command runs: see `config.lazy`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn

import click

from config.options import CONFIG, JSON, STATE

if TYPE_CHECKING:
    from directory.load import LoadReport
    from directory.runs import RunReport
    from directory.synchronisation import SynchronisationOptions

HOLD_REASONS = ("truncated", "garbled", "stale", "future", "missing", "conflicts", "loss", "upheaval", "emptied")
_STEPS = {
    "files": "reading the files",
    "entries": "joining",
    "directory": "reading the directory",
    "compare": "comparing",
    "write": "writing",
}
_BAR = 30
_LISTED = 100
"""Lines of a kind shown to a person; `--json` gives all that are kept."""


@click.command("sync")
@STATE
@CONFIG
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE|FOLDER]...")
@click.option(
    "--accept",
    multiple=True,
    type=click.Choice(HOLD_REASONS),
    help="Apply although this holds the files; read the report first. May be repeated.",
)
@click.option("--dry-run", "dry", is_flag=True, help="Compare and report, write nothing.")
@JSON
def sync(
    state: Path, config: Path | None, paths: tuple[Path, ...], accept: tuple[str, ...], dry: bool, as_json: bool
) -> None:
    """Bring the directory in step with the register's files: MSSanté extraction and PS_LibreAcces, ZIP or text.

    Without files: those of synchronisation.source, or of the demonstration. Interrupted or killed, give the same
    command again: what is written is not written twice.
    """
    import signal
    import threading

    from config.key_places import as_owner
    from directory.synchronisation import BusyError, Synchronisation

    options, source, owner = _options(state, config)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with as_owner(owner):
        try:
            report = Synchronisation(options).run(
                [path.absolute() for path in paths] or [source], accept=accept, dry=dry, progress=_progress(), stop=stop
            )
        except BusyError:
            _fail("Another synchronisation is under way; wait for it, then look at `relais directory runs`.")
        except OSError as error:
            _fail(f"{error.filename or options.folder} cannot be used: {error.strerror or type(error).__name__}.")
    _print(report, as_json)
    sys.exit(0 if report.outcome in ("applied", "planned") else 1)


@click.command("ldif")
@STATE
@CONFIG
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE|FOLDER]...")
@click.option("--out", type=click.File("wb", lazy=False), default="-", help="Where to; default: standard output.")
@click.option("--accept", multiple=True, type=click.Choice(HOLD_REASONS), help="Write although this holds the files.")
def ldif(state: Path, config: Path | None, paths: tuple[Path, ...], out: IO[bytes], accept: tuple[str, ...]) -> None:
    """Write the whole directory as LDIF, for the first load: `relais directory ldif FOLDER | slapadd -q -b BASE`.

    One by one, as `sync` writes, a nation takes hours; this takes minutes, into a stopped and empty slapd. What holds a
    synchronisation's files holds these, before anything is written.
    """
    from contextlib import closing
    from itertools import chain

    from config.key_places import as_owner
    from config.synchronising import first_load
    from directory import schema
    from directory.ldif import to_ldif
    from directory.load import HeldFilesError, LoadReport
    from directory.national import find
    from directory.packed import ExtractionError

    options, source, owner = _options(state, config)
    report = LoadReport()
    try:
        files = find([path.absolute() for path in paths] or [source])
        with as_owner(owner):
            made = first_load(options, files, report, accept)
            with closing(made):
                first = next(made)  # held files leave no half of an LDIF
                for entry in chain(schema.skeleton(options.administrator.base), (first,), made):
                    out.write(to_ldif(entry))
        out.flush()
    except (ExtractionError, HeldFilesError) as error:
        tell_judged(report)
        _fail(f"{error}." if isinstance(error, ExtractionError) else "Nothing was written: the files are held.")
    except OSError as error:
        _fail(f"{error.filename or 'The output'} cannot be used: {error.strerror or type(error).__name__}.")
    tell_loaded(report)


def tell_judged(report: LoadReport) -> None:
    """What speaks against the files of a first load, on standard error."""
    for hold in report.holds:
        click.echo(f"{hold.reason}: {hold.text}", err=True)
    for reason, lines in sorted(report.rejected.items()):
        click.echo(f"{lines} lines were rejected: {reason}.", err=True)


def tell_loaded(report: LoadReport) -> None:
    """What a first load made of the files, on standard error."""
    tell_judged(report)
    click.echo(
        f"{report.mailboxes} mailboxes, {report.others} persons and structures; {sum(report.rejected.values())} lines "
        f"rejected, {report.duplicates} repeated, {report.conflicts} that give an address to another holder",
        err=True,
    )


@click.command("runs")
@STATE
@CONFIG
@click.argument("run", required=False)
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="How many, the newest first.")
@JSON
def runs(state: Path, config: Path | None, run: str | None, limit: int, as_json: bool) -> None:
    """List what each synchronisation did, or show the report of one RUN (`last` is the newest)."""
    from itertools import islice

    import msgspec

    from directory.runs import RunReports

    options, _, _ = _options(state, config)
    reports = RunReports(options.folder / "runs")
    if run is not None:
        found = next(reports.newest_first(), None) if run == "last" else reports.read(run)
        if found is None:
            _fail(f"There is no report {run}; `relais directory runs` lists them.")
        _print(found, as_json)
        return
    listed = list(islice(reports.newest_first(), limit))
    if as_json:
        click.echo(json.dumps([msgspec.to_builtins(each) for each in listed], indent=1, ensure_ascii=False))
        return
    for each in listed:
        reasons = ", ".join(dict.fromkeys(hold.reason for hold in each.holds))
        click.echo(
            f"{each.id}  {each.outcome:<11} {each.seconds:>8.1f} s  +{each.added} ~{each.changed} -{each.removed}"
            f"{'  ' + reasons if reasons else ''}"
        )
    if not listed:
        click.echo("The directory was never synchronised from here.")


@click.command("generate")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--professionals", type=click.IntRange(0), default=2000, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same files.")
@click.option("--day", type=click.IntRange(0), default=0, show_default=True, help="So many days later, as life goes.")
@click.option("--changed", type=click.FloatRange(0, 100), default=1.0, show_default=True, help="Percent a day.")
@click.option("--national", is_flag=True, help="2.3 million situations and 536,000 mailboxes, as the register has.")
def generate(folder: Path, professionals: int, seed: int, day: int, changed: float, national: bool) -> None:
    """Write files like the register's, about nobody, into FOLDER: for trials and measures."""
    from directory.synthetic_nation import NATIONAL, write_nation

    click.echo(write_nation(folder, NATIONAL if national else professionals, seed, day, changed).mssante.parent)


def _options(state: Path, config: Path | None) -> tuple[SynchronisationOptions, Path, Path]:
    """The options, where the files are when none is named, and whose state it is."""
    from config.settings import SettingsError, load
    from config.synchronising import demonstration_options, synchronisation_options

    try:
        if config is None and not (state / "relais.toml").exists():
            return demonstration_options(state), state / "extraction", state
        loaded = load(config or state / "relais.toml")
        section = loaded.settings.synchronisation
        source = loaded.path(section.source) if section.source else loaded.state / "extraction"
        return synchronisation_options(loaded), source, loaded.state
    except SettingsError as error:
        _fail(str(error))


def _progress() -> Callable[[str, int, int], None]:
    """A bar on standard error, where that is a terminal."""
    if not sys.stderr.isatty():
        return lambda step, done, of: None

    def show(step: str, done: int, of: int) -> None:
        filled = _BAR * done // of if of else 0
        bar = f"[{'#' * filled}{'.' * (_BAR - filled)}] " if of else ""
        total = f" of {of}" if of else ""
        click.echo(f"\r\x1b[K{_STEPS[step]}: {bar}{done}{total}", err=True, nl=of != 0 and done >= of)

    return show


def _print(report: RunReport, as_json: bool) -> None:
    import msgspec

    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(report), indent=1, ensure_ascii=False))
        return
    click.echo(f"Run {report.id}: {report.outcome} after {report.seconds:.1f} s")
    for kind, file in report.files.items():
        click.echo(f"  {kind:<9} {file.name}: {file.rows} lines, {sum(file.rejected.values())} rejected")
        for line in file.lines[:_LISTED]:
            click.echo(f"            line {line.line}: {line.reason}")
    click.echo(f"  to do     {report.to_add} to add, {report.to_change} to change, {report.to_remove} to remove")
    click.echo(f"  done      {report.added} added, {report.changed} changed, {report.removed} removed")
    click.echo(
        f"  left      {report.unchanged} unchanged, {report.local} local, {report.kept} kept, {report.frozen} unclear"
    )
    if report.conflicting_lines:
        click.echo(
            f"  unclear   {report.conflicting_lines} lines give an address to another holder; neither is believed:"
        )
        for first, second in report.conflicts[:_LISTED]:
            click.echo(f"            lines {first} and {second}")
    for name, count in report.refused.items():
        click.echo(f"  refused   {count} entries: {name}")
    for dn, name in report.refused_entries[:_LISTED]:
        click.echo(f"            {dn}: {name}")
    for dn in report.kept_entries[:_LISTED]:
        click.echo(f"  kept      {dn}")
    if report.refreshed:
        click.echo(f"  refreshed {report.refreshed} entries are newer than the file: asked for one by one since")
    for dn in report.handed_over_entries[:_LISTED]:
        click.echo(
            f"  holder    {dn} has another holder, and certificates or settings of the one before: left as it is"
        )
    if report.silent_days > 1:
        click.echo(f"  silence   nothing newer was published for {report.silent_days} days")
    for hold in report.holds:
        accepted = "accepted" if hold.reason in report.accepted else "HELD"
        click.echo(f"  {accepted:<9} {hold.reason}: {hold.text}")
    if report.error:
        click.echo(f"  stopped   {report.error}")
    if report.outcome == "held":
        from directory.refusals import FILES_HELD

        click.echo(f"{FILES_HELD.code}: {FILES_HELD.text}", err=True)
    if report.outcome == "interrupted":
        from directory.refusals import SYNCHRONISATION_INTERRUPTED

        click.echo(f"{SYNCHRONISATION_INTERRUPTED.code}: {SYNCHRONISATION_INTERRUPTED.text}", err=True)


def _fail(sentence: str) -> NoReturn:
    click.echo(sentence, err=True)
    sys.exit(1)
