"""`relais reading`: what nobody has read, for the laboratory or the service that sent it; who took note, by name."""

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

_UNKNOWN = "mta.follow-up-unknown"
_SECONDS = 300.0
"""Every mailbox concerned is asked."""


@click.group("reading")
def reading() -> None:
    """See what nobody has read, and write down who took note of a result."""


@reading.command("unread")
@STATE
@click.option("--sender", default="", metavar="ADDRESS", help="Of this laboratory or service only.")
@click.option("--days", type=click.FloatRange(min=0), help="Sent so many days ago or before; else as configured.")
@JSON
def reading_unread(state: Path, sender: str, days: float | None, as_json: bool) -> None:
    """What is unread, critical results first, then the oldest. Mailboxes here are asked before; of others their
    receipts are known."""
    answers = _ask_all(state, "unread", sender=sender, days=days)
    found = [{"operator": name} | row for name, answer in answers for row in answer["unread"]]
    if not any(answer["followed"] for _, answer in answers):
        fail(f"{one_line(sender)} is not followed up: no [[follow]] section names it.")
    if more := sum(answer["more"] for _, answer in answers):
        click.echo(f"{more} more are unread and not listed: give --sender, or --days.", err=True)
    if as_json:
        click.echo(json.dumps(found, indent=1, ensure_ascii=False))
        return
    for row in found:
        urgent = "CRITICAL " if row["critical"] else ""
        state_of = row["reading"] if row["delivery"] == "delivered" else f"{row['reading']}, {row['delivery']}"
        click.echo(f"{row['reference']}  {row['operator']:<12} {row['sent']}  {urgent}{state_of}")
        click.echo(f"    from {one_line(row['sender'])} to {one_line(row['recipient'])} {one_line(row['message_id'])}")
    if not found:
        click.echo("Nothing is unread for so long.")


@reading.command("acknowledge")
@STATE
@click.argument("reference", metavar="REFERENCE|MESSAGE-ID")
@click.option("--by", required=True, metavar="NAME", help="Who took note of it: a person's name.")
@click.option("--reason", required=True, metavar="HOW", help="How, such as by telephone; it stands in the journal.")
def reading_acknowledge(state: Path, reference: str, by: str, reason: str) -> None:
    """A named person has taken note of a result: its clock stops."""
    answer = _ask_holder(state, "acknowledge", reference=reference, by=by.strip(), reason=_told(reason))
    if answer["by"] == by.strip():
        click.echo(f"Acknowledged by {one_line(answer['by'])}.")
    else:
        click.echo(f"It was read or acknowledged before{': ' + one_line(answer['by']) if answer['by'] else ''}.")


def _told(reason: str) -> str:
    """Beside the reason, the account under which it was written down."""
    try:
        account = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        account = f"uid {os.getuid()}"
    return f"{reason.strip()} (written down by {account})" if reason.strip() else ""


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
            answers.append((path.parent.name, ask(path, f"reading.{call}", _SECONDS, **arguments)))
        except ControlError as error:
            problems.append(str(error))
    if not answers:
        fail("\n".join(problems))
    for problem in problems:
        click.echo(problem, err=True)
    return answers


def _ask_holder(state: Path, call: str, **arguments: Any) -> Any:
    """The answer of the gateway that knows this reference; fails with what was said when none does."""
    problem = ""
    for path in _sockets(state):
        try:
            return ask(path, f"reading.{call}", **arguments)
        except ControlError as error:
            known = not str(error).startswith(_UNKNOWN)
            problem = str(error) if known or not problem else problem
    return fail(problem)
