"""`relais directory refresh`: one professional, from the register's API, now."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from bridges.plain import one_line
from config.control import ControlError
from config.directory_asking import ask_directory, no_answer
from config.options import CONFIG, JSON, STATE


@click.command("refresh")
@STATE
@CONFIG
@click.argument("rpps", metavar="RPPS")
@JSON
def refresh(state: Path, config: Path | None, rpps: str, as_json: bool) -> None:
    """Bring one professional's mailboxes up to date from the FHIR API of the Annuaire Santé.

    Adds and changes, removes nothing. Exit status 1 when the register does not know the number.
    """
    try:
        report = ask_directory(state, config, "directory.refresh", seconds=60.0, rpps=rpps)
    except ControlError as error:
        no_answer(str(error))
    if report.get("problem"):
        no_answer(report["problem"])
    if as_json:
        click.echo(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        for name in ("added", "changed", "unchanged"):
            for address in report[name]:
                click.echo(f"{name:<10} {one_line(address)}")
        for address, reason in report["left"].items():
            click.echo(f"{'left':<10} {one_line(address)}: {one_line(reason)}")
        for address in report["missing"]:
            click.echo(f"{'missing':<10} {one_line(address)}: the API does not mention it; the next file decides")
    if not report["found"]:
        click.echo(f"The register knows no active professional with RPPS {one_line(report['rpps'])}.", err=True)
        sys.exit(1)
