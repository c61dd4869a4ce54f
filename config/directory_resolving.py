"""`relais directory resolve`: whom an address or an identifier stands for, and why."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from bridges.plain import one_line
from config.control import ControlError
from config.directory_asking import ask_directory, no_answer
from config.options import CONFIG, JSON, STATE


@click.command("resolve")
@STATE
@CONFIG
@click.argument("what", metavar="ADDRESS|IDENTIFIER")
@click.option("--structure", default="", metavar="FINESS|SIRET", help="Where: its mailbox comes first.")
@click.option("--system", default="", metavar="NAME", help="RPPS, ADELI, FINESS or SIRET; default: by its shape.")
@click.option("--why", is_flag=True, help="Every step that led to the answer, asked anew.")
@JSON
def resolve(state: Path, config: Path | None, what: str, structure: str, system: str, why: bool, as_json: bool) -> None:
    """Say what the directory knows of one address, or of a professional or structure by identifier.

    Exit status 1 when there is no such mailbox, or nobody could say; `--json` prints null for the first.
    """
    try:
        found = ask_directory(
            state, config, "directory.resolve", address=what, structure=structure, system=system, why=why
        )
    except ControlError as error:
        no_answer(str(error))
    recipient = found["recipient"] if why else found
    if as_json:
        click.echo(json.dumps(found, indent=1, ensure_ascii=False))
    elif why:
        for step in found["why"]:
            click.echo(f"{step['what']:<14} {one_line(step['detail'])}")
    elif recipient is not None:
        _print(recipient)
    if recipient is None:
        click.echo(
            f"The directory does not know {one_line(what)}: check the spelling, or ask its operator to publish it.",
            err=True,
        )
        sys.exit(1)


def _print(recipient: dict[str, Any]) -> None:
    for name, value in recipient.items():
        if value not in (None, False):
            click.echo(f"{name:<25} {one_line('yes' if value is True else str(value))}")
