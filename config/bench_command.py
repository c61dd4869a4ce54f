"""The `relais bench` commands: one measurement each, one JSON document or a table."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from config.options import JSON


@click.group()
def bench() -> None:
    """Measure on this machine, each figure beside a peer or a limit of the same run."""


@bench.command("road")
@click.option("--full/--quick", default=False, help="The sizes of the published figures, or under a minute.")
@click.option("--report", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Send this HL7 v2 file.")
@JSON
def bench_road(full: bool, report: Path | None, as_json: bool) -> None:
    """From MLLP in to the mailboxes, and the trace at 100,000 messages."""
    from config.bench.road import road

    _measure(lambda: road("full" if full else "quick", report.read_bytes() if report else None), as_json)


@bench.command("smime")
@click.option("--full/--quick", default=False, help="Longer runs and more of them, or under a minute.")
@JSON
def bench_smime(full: bool, as_json: bool) -> None:
    """Sign, encrypt, open and DKIM beside bare cryptography, openssl and dkimpy; growth up to 100 MB."""
    from config.bench.smime import smime

    _measure(lambda: smime("full" if full else "quick"), as_json)


@bench.command("soak")
@click.option("--messages", type=click.IntRange(1), help="How many; default: 2,000, or 100,000 with --full.")
@click.option("--full/--quick", default=False, help="A long run, of hours, or a short one.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the faults.")
@click.option("--pause", type=float, default=4.0, show_default=True, help="Mean seconds between two faults.")
@JSON
def bench_soak(messages: int | None, full: bool, seed: int, pause: float, as_json: bool) -> None:
    """Send numbered messages while everything goes wrong; exit status 1 when one is lost, doubled or shown."""
    from config.bench.soak import failed, soak

    number = messages or (100_000 if full else 2_000)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # a mounted disk and a gateway are to be put away
    result = _measure(
        lambda: soak(number, seed=seed, pause=pause, say=lambda sentence: click.echo(sentence, err=True)), as_json
    )
    for note in result["notes"]:
        click.echo(note, err=True)
    sys.exit(1 if failed(result) else 0)


@bench.command("mta")
@click.option("--full/--quick", default=False, help="The sizes of the published figures, or about a minute.")
@JSON
def bench_mta(full: bool, as_json: bool) -> None:
    """The road beside Postfix: relay, protect, accept, memory, latency, a long queue. Needs Postfix and root."""
    from config.bench.mta import mta

    _measure(lambda: mta("full" if full else "quick"), as_json)


@bench.command("trust")
@click.option("--full/--quick", default=False, help="Lists of a million entries, longer runs; or under a minute.")
@JSON
def bench_trust(full: bool, as_json: bool) -> None:
    """Validate certificates beside two other validators; hostile chains; CRLs of a million entries; the journal."""
    from config.bench.trust import trust

    _measure(lambda: trust("full" if full else "quick"), as_json)


@bench.command("mailboxes")
@click.option("--full/--quick", default=False, help="The sizes of the published figures, or under a minute.")
@JSON
def bench_mailboxes(full: bool, as_json: bool) -> None:
    """Deliveries, and notices to idle sessions, beside a bare Dovecot. Needs Dovecot."""
    from config.bench.mailboxes import mailboxes

    _measure(lambda: mailboxes("full" if full else "quick"), as_json)


@bench.command("directory")
@click.option("--full/--quick", default=False, help="The nation, or 20,000 practice situations.")
@click.option("--situations", type=click.IntRange(100), help="So many instead.")
@click.option("--only", default="", metavar="PART,...", help="Some of: load, sync, resolve, search, growth.")
@click.option(
    "--below",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder for the data while it runs; default: the system's for temporary files.",
)
@JSON
def bench_directory(full: bool, situations: int | None, only: str, below: Path | None, as_json: bool) -> None:
    """First load beside slapadd, a day's changes, resolving beside python-ldap, searching for people. Needs slapd."""
    from config.bench.directory import PARTS, directory
    from directory.slapd import SlapdError

    parts = [part for part in only.replace(" ", "").split(",") if part] or PARTS
    if unknown := set(parts) - set(PARTS):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: there are {', '.join(PARTS)}", param_hint="--only")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # a slapd and much data are to be put away
    _measure(lambda: directory("full" if full else "quick", situations, parts, below, _say), as_json, SlapdError)


def _measure(bench: Callable[[], dict[str, Any]], as_json: bool, *failures: type[Exception]) -> dict[str, Any]:
    """Run it and print what it found. When it cannot measure here (`BenchError`, or one of `failures`): one sentence
    and exit status 1."""
    from config import logs
    from config.bench.child import BenchError

    cannot: tuple[type[Exception], ...] = (BenchError, *failures)
    logs.configure("WARNING")
    try:
        result = bench()
    except cannot as error:
        _fail(str(error))
    _print_bench(result, as_json)
    return result


def _say(sentence: str) -> None:
    click.echo(sentence, err=True)


def _print_bench(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(result, indent=1))
        return
    for row in result["rows"]:
        if row.get("skipped"):
            click.echo(f"{row['id']:<40} {'skipped':>12} {row['skipped']}")
            continue
        beside = f"  {row['ratio']:.3f} of {row['reference']} {row['reference_value']}" if row.get("ratio") else ""
        if row.get("met") is not None:
            reached = "goal met" if row["goal_met"] else "bar met" if row["met"] else "BAR MISSED"
            beside += f"  [{reached}: {row['compared']} {row['bar']:g}]"
        click.echo(f"{row['id']:<40} {row['value']:>12} {row['unit']:<10} n={row['n']} runs={row['runs']}{beside}")


def _fail(sentence: str) -> Any:
    click.echo(sentence, err=True)
    sys.exit(1)
