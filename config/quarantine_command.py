"""`relais quarantine`: see what was found malicious, and decide about it, under one's name and with a reason."""

from __future__ import annotations

import getpass
import json
import os
from pathlib import Path
from typing import Any

import click

from bridges.plain import one_line
from config.control import ControlError, ask
from config.key_places import fail
from config.options import JSON, STATE

_REFERENCE = click.argument("reference", metavar="REFERENCE")
_BY = click.option("--by", required=True, metavar="NAME", help="Who decides: a person's name.")
_REASON = click.option("--reason", required=True, metavar="WHY", help="Why; it stands in the journal.")
_UNKNOWN = "mta.quarantine-unknown"


@click.group("quarantine")
def quarantine() -> None:
    """See and decide about mail in which malicious software was found."""


@quarantine.command("list")
@STATE
@click.option("--all", "every", is_flag=True, help="What was released or dropped too.")
@JSON
def quarantine_list(state: Path, every: bool, as_json: bool) -> None:
    """What waits for a decision, the oldest first."""
    found = [{"operator": name} | row for name, rows in _ask_all(state, "list", every=every) for row in rows]
    if as_json:
        click.echo(json.dumps(found, indent=1, ensure_ascii=False))
        return
    for row in found:
        decided = "" if row["state"] == "held" else f"  {row['state']} by {one_line(row['by'])}"
        click.echo(f"{row['reference']}  {row['operator']:<12} {row['held']}  {one_line(row['found'])}{decided}")
        click.echo(f"    from {one_line(row['sender'])} to {one_line(row['recipient'])}")
    if not found:
        click.echo("Nothing is in quarantine.")


@quarantine.command("show")
@STATE
@_REFERENCE
@JSON
def quarantine_show(state: Path, reference: str, as_json: bool) -> None:
    """One message in quarantine; nothing of its content is shown."""
    operator, row = _ask_holder(state, "show", reference=reference)
    row = {"operator": operator} | row
    if as_json:
        click.echo(json.dumps(row, indent=1, ensure_ascii=False))
        return
    for name, value in row.items():
        click.echo(f"{name:<12} {one_line(str(value))}")


@quarantine.command("release")
@STATE
@_REFERENCE
@_BY
@_REASON
def quarantine_release(state: Path, reference: str, by: str, reason: str) -> None:
    """Send it on to its recipient, as it is and without scanning it again."""
    _, answer = _ask_holder(state, "release", reference=reference, by=_named(by), reason=reason)
    click.echo(f"Released: it goes on as message {answer['spool_id']}.")


@quarantine.command("drop")
@STATE
@_REFERENCE
@_BY
@_REASON
def quarantine_drop(state: Path, reference: str, by: str, reason: str) -> None:
    """Destroy it for ever."""
    _ask_holder(state, "drop", reference=reference, by=_named(by), reason=reason)
    click.echo("Dropped: its content is destroyed.")


def _named(by: str) -> str:
    """Beside the name that was given, the account it was given under."""
    try:
        account = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        account = f"uid {os.getuid()}"
    return f"{by.strip()} ({account})" if by.strip() else ""


def _sockets(state: Path) -> list[Path]:
    found = [*state.glob("control.sock"), *sorted(state.glob("*/control.sock"))]
    if not found:
        fail(f"No gateway is running with its state in {state}.")
    return found


def _ask_all(state: Path, call: str, **arguments: Any) -> list[tuple[str, Any]]:
    """Every gateway's answer; who does not answer is told and hides nobody else's."""
    answers, problems = [], []
    for path in _sockets(state):
        try:
            answers.append((path.parent.name, ask(path, f"quarantine.{call}", **arguments)))
        except ControlError as error:
            problems.append(str(error))
    if not answers:
        fail("\n".join(problems))
    for problem in problems:
        click.echo(problem, err=True)
    return answers


def _ask_holder(state: Path, call: str, **arguments: Any) -> tuple[str, Any]:
    """The answer of the gateway that knows this reference; fails with what was said when none does."""
    problem = ""
    for path in _sockets(state):
        try:
            return path.parent.name, ask(path, f"quarantine.{call}", **arguments)
        except ControlError as error:
            known = not str(error).startswith(_UNKNOWN)
            problem = str(error) if known or not problem else problem
    return fail(problem)
