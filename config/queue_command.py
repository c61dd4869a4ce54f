"""`relais queue`: what is on the road and why it waits; hold, release, retry, redirect, expire and drop it.

Every act needs a reason and stands in the journal with whoever did it. Deliveries are named by delivery id, spool id,
Message-ID or MSH-10, or chosen by filters. Exit codes: 0 all was done, 1 something was not (a sentence says why), 2 the
command line was wrong. No act shows or logs an address; `show` does, to whoever may open the control socket.

Imports nothing of the gateway before a command runs: see `config.lazy`.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import click

from config.options import JSON, STATE

_SECONDS = 120.0
"""For one request: a page of deliveries, acted on in one transaction."""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_STATES = ("waiting", "held", "failed", "parked", "delivered")

_Command = Callable[..., Any]


class _Age(click.ParamType[float]):
    """`90s`, `30m`, `4h`, `5d`: seconds."""

    name = "AGE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"([0-9]{1,9})([smhd])", str(value))
        if found is None:
            self.fail(f"{value}: give a number and s, m, h or d, like 4h", param, ctx)
        return float(found[1]) * _UNITS[found[2]]


class _Destination(click.ParamType[str]):
    """`example.org` and `smtp:example.org`, `mailbox`, `dossier`, `mllp:PARTNER`."""

    name = "DESTINATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if text in ("", "mailbox", "dossier") or text.startswith("mllp:"):
            return text
        domain = text.removeprefix("smtp:").rpartition("@")[2].lower()
        if not domain or any(c.isspace() for c in domain):
            self.fail(f"{value}: give a mail domain, mailbox, dossier or mllp:PARTNER", param, ctx)
        return f"smtp:{domain}"


def _all(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_OPERATOR = click.option("--operator", default="", metavar="NAME", help="Of several gateways here, only this one.")
_DESTINATION = click.option(
    "--destination", default="", type=_Destination(), help="A mail domain, mailbox, dossier or mllp:PARTNER."
)
_CODE = click.option("--code", default="", metavar="CODE", help="Last refused with this code of `doctor --errors`.")
_OLDER = click.option("--older-than", type=_Age(), metavar="AGE", help="Accepted longer ago: 90s, 30m, 4h, 5d.")
_STATE_FILTER = click.option("--only", "wanted", type=click.Choice(_STATES), help="In this state.  [default: waiting]")
_FILTERS = _all(_DESTINATION, _STATE_FILTER, _CODE, _OLDER)
_REFERENCES = click.argument("references", nargs=-1, metavar="[DELIVERY|MESSAGE-ID|MSH-10]...")
_REASON = click.option("--reason", required=True, metavar="WHY", help="Why; it stands in the journal. Name no patient.")
_BY = click.option(
    "--by",
    default=lambda: os.environ.get("SUDO_USER", ""),
    metavar="NAME",
    help="Who decides; written to the journal beside the user the system knows.",
)
_ACT = _all(STATE, _OPERATOR, _REFERENCES, _FILTERS, _REASON, _BY)
_SURE = click.option("--yes", is_flag=True, help="Do not ask before acting on many.")


@click.group()
def queue() -> None:
    """See what is on the road, and decide about it."""


# --- Looking ---------------------------------------------------------------------------------------------------------


@queue.command("list")
@STATE
@_OPERATOR
@_FILTERS
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Deliveries a page.")
@click.option("--after", default="", metavar="CURSOR", help="The next page: `following` of --json.")
@JSON
def list_command(
    state: Path,
    operator: str,
    destination: str,
    wanted: str | None,
    code: str,
    older_than: float | None,
    limit: int,
    after: str,
    as_json: bool,
) -> None:
    """How many deliveries wait, where for and why; one page of them."""
    chosen = _chosen(destination, wanted, code, older_than)
    answers = _ask_all(state, operator, "queue.list", **chosen, limit=limit, after=after, overview=not after)
    if as_json:
        click.echo(json.dumps(answers, indent=1))
        return
    for name, answer in answers.items():
        for line in _overview(name, answer):
            click.echo(line)


def _overview(name: str, answer: Mapping[str, Any]) -> Iterable[str]:
    from bridges.plain import one_line

    yield f"{name:<15} " + "  ".join(f"{state} {answer[state]}" for state in _STATES if state in answer)
    for held in answer.get("held_destinations", ()):
        why = f"{one_line(held['by'])}: {one_line(held['reason'])}"
        yield f"  held       {one_line(held['destination'])} since {_moment(held['held_at'])}, {why}"
    for lane in answer.get("destinations", ()):
        yield f"  {lane['waiting']:>9}  {one_line(lane['destination'])}{'  (held)' if lane['held'] else ''}"
    for each in answer["deliveries"]:
        yield f"  {_line(each)}"
    if answer["following"]:
        yield f"  more: --after {answer['following']}"


def _line(each: Mapping[str, Any]) -> str:
    from bridges.plain import one_line

    state = "held" if each["held_at"] and each["state"] == "ready" else each["state"]
    state = {"ready": "waiting"}.get(state, state)
    due = "now under way" if each["under_way"] else f"next {_moment(each['due'])}" if each["state"] == "ready" else ""
    words = (
        each["delivery_id"],
        f"{state:<9}",
        f"{each['priority']:<6}",
        one_line(each["destination"]),
        f"accepted {_moment(each['accepted_at'])}",
        f"tried {each['attempts']}",
        due,
        each["code"],
    )
    return "  ".join(word for word in words if word)


@queue.command("show")
@STATE
@_OPERATOR
@click.argument("reference", metavar="DELIVERY|MESSAGE-ID|MSH-10")
@JSON
def show_command(state: Path, operator: str, reference: str, as_json: bool) -> None:
    """One delivery with its addresses and its last refusal, or all of one message."""
    from bridges.plain import one_line

    answers = _ask_all(state, operator, "queue.show", reference=reference)
    found = {name: rows for name, rows in answers.items() if rows}
    if not found:
        _fail(f"No delivery here is known as {one_line(reference)}.")
    if as_json:
        click.echo(json.dumps(found, indent=1, ensure_ascii=False))
        return
    for name, rows in found.items():
        for row in rows:
            click.echo(f"{name}: {_line(row)}")
            for field in ("origin", "sender", "recipient", "original_recipient", "message_id", "size", "detail"):
                if row[field]:
                    click.echo(f"    {field.replace('_', ' '):<18} {one_line(str(row[field]))}")
            told = [
                word
                for word, true in (
                    ("held " + _moment(row["held_at"]) if row["held_at"] else "", row["held_at"]),
                    ("its destination is held", row["destination_held"]),
                    ("reported", row["reported"] and row["state"] != "ready"),
                )
                if true
            ]
            if told:
                click.echo(f"    {'state':<18} {', '.join(told)}")


# --- Acting ----------------------------------------------------------------------------------------------------------


@queue.command("hold")
@_ACT
@JSON
def hold_command(as_json: bool, **given: Any) -> None:
    """Begin no attempt until released. With --destination alone: nothing goes there, also what comes later. Also keeps
    what has ended from being purged."""
    _decide("hold", as_json, given)


@queue.command("release")
@_ACT
@JSON
def release_command(as_json: bool, **given: Any) -> None:
    """Undo a hold. With --destination alone: that of the destination; with --only held as well: of each delivery."""
    _decide("release", as_json, given)


@queue.command("retry")
@_ACT
@click.option("--although-told", is_flag=True, help="Also what its sender was told by mail had failed.")
@JSON
def retry_command(as_json: bool, **given: Any) -> None:
    """Try now. What failed or was parked is tried again as long as nobody was told that it failed."""
    _decide("retry", as_json, given)


@queue.command("expire")
@_ACT
@_SURE
@JSON
def expire_command(as_json: bool, **given: Any) -> None:
    """Fail now; the sender is told."""
    _decide("expire", as_json, given)


@queue.command("drop")
@_ACT
@_SURE
@JSON
def drop_command(as_json: bool, **given: Any) -> None:
    """Fail now and tell nobody: for loops and forged senders. Only the journal knows."""
    _decide("drop", as_json, given)


@queue.command("redirect")
@STATE
@_OPERATOR
@click.argument("reference", metavar="DELIVERY")
@click.argument("recipient", metavar="ADDRESS")
@_REASON
@_BY
@JSON
def redirect_command(
    state: Path, operator: str, reference: str, recipient: str, reason: str, by: str, as_json: bool
) -> None:
    """Deliver to another professional's address instead, protected anew for its keys."""
    _need_words(reason)
    answers = _ask_all(
        state, operator, "queue.redirect", reference=reference, recipient=recipient, reason=reason, by=by
    )
    _tell_named(answers, (reference,), as_json)


def _decide(act: str, as_json: bool, given: Mapping[str, Any]) -> None:
    """Whichever way the deliveries are chosen."""
    _need_words(given["reason"])
    state, operator, references = given["state"], given["operator"], given["references"]
    said = {"reason": given["reason"], "by": given["by"]}
    others = any((given["wanted"], given["code"], given["older_than"] is not None))
    if references:
        if others or given["destination"]:
            raise click.UsageError("Name deliveries or give filters, not both.")
        said |= {"act": act, "although_told": given.get("although_told", False)}
        answers = _ask_all(state, operator, "queue.act", references=list(references), **said)
        _tell_named(answers, references, as_json)
    elif given["destination"] and not others and act in ("hold", "release"):
        place = _only_socket(state, operator)
        release = act == "release"
        told = _ask(place, "queue.destination", destination=given["destination"], release=release, **said)
        _tell_named({place.parent.name: [told]}, (given["destination"],), as_json)
    elif given["destination"] or others:
        wanted = given["wanted"] or ("held" if act == "release" else None)
        chosen = _chosen(given["destination"], wanted, given["code"], given["older_than"])
        said |= {"act": act, "although_told": given.get("although_told", False)}
        _decide_many(_only_socket(state, operator), chosen, said, as_json, sure=given.get("yes", True))
    else:
        raise click.UsageError("Name deliveries, or choose them with --destination, --only, --code or --older-than.")


def _decide_many(place: Path, chosen: Mapping[str, Any], said: Mapping[str, Any], as_json: bool, *, sure: bool) -> None:
    if not sure:
        click.confirm(f"{said['act'].capitalize()} all that these filters choose?", abort=True, err=True)
    done, refused, after = 0, 0, ""
    examples: list[dict[str, Any]] = []
    while True:
        answer = _ask(place, "queue.act-on-many", **chosen, **said, after=after)
        done, refused = done + answer["done"], refused + answer["refused"]
        examples += answer["examples"][: 5 - len(examples)]
        after = answer["following"]
        if not after:
            break
        if sys.stderr.isatty():
            click.echo(f"\r{done} done", err=True, nl=False)
    if as_json:
        click.echo(json.dumps({"done": done, "refused": refused, "examples": examples}, indent=1))
    else:
        click.echo(f"{done} done" + (f", {refused} not" if refused else ""))
        for each in examples:
            click.echo(f"  {each['name']}  {each['code']}: {each['text']}", err=True)
    sys.exit(1 if refused else 0)


def _tell_named(answers: Mapping[str, Any], names: Iterable[str], as_json: bool) -> None:
    from bridges.plain import one_line

    acted = [each | {"operator": operator} for operator, rows in answers.items() for each in rows]
    if not acted:
        _fail(f"No delivery here is known as {one_line(', '.join(names))}.")
    if as_json:
        click.echo(json.dumps(acted, indent=1, ensure_ascii=False))
    else:
        for each in acted:
            words = f"{each['name']}  {'done' if each['done'] else each['code']}"
            click.echo(f"{words}: {each['text']}" if each["text"] else words, err=not each["done"])
    sys.exit(0 if all(each["done"] for each in acted) else 1)


# --- Asking ----------------------------------------------------------------------------------------------------------


def _chosen(destination: str, wanted: str | None, code: str, older_than: float | None) -> dict[str, Any]:
    before = None if older_than is None else datetime.now(UTC).timestamp() - older_than
    return {"destination": destination, "wanted": wanted or "waiting", "code": code, "accepted_before": before}


def _need_words(reason: str) -> None:
    if not reason.strip():
        raise click.BadParameter("say why: it stands in the journal", param_hint="--reason")


def _sockets(state: Path, operator: str) -> list[Path]:
    """One of each gateway that runs here: that of its first process, or of the next that answers."""
    places = sorted({path.parent for path in (*state.glob("control*.sock"), *state.glob("*/control*.sock"))})
    found = [_first(place) for place in places if not operator or place.name == operator]
    if not found:
        _fail(f"No gateway{f' named {operator}' if operator else ''} is running with its state in {state}.")
    return found


def _first(place: Path) -> Path:
    import socket

    sockets = sorted(place.glob("control*.sock"), key=lambda path: (len(path.name), path.name))
    for path in sockets:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(path))
            except ConnectionRefusedError:  # it was killed
                continue
            except OSError:
                pass  # `ask` says why
            return path
    return sockets[0]


def _only_socket(state: Path, operator: str) -> Path:
    found = _sockets(state, operator)
    if len(found) > 1:
        names = ", ".join(path.parent.name for path in found)
        raise click.UsageError(f"Several gateways run here: choose one with --operator ({names}).")
    return found[0]


def _ask(place: Path, call: str, **arguments: Any) -> Any:
    from config.control import ControlError, ask

    try:
        answer = ask(place, call, _SECONDS, **arguments)
    except ControlError as error:
        _fail(str(error))
    return _answered(answer)


def _answered(answer: Any) -> Any:
    if isinstance(answer, dict) and "problem" in answer:
        _fail(f"{answer['problem'][:1].upper()}{answer['problem'][1:]}.")
    return answer


def _ask_all(state: Path, operator: str, call: str, **arguments: Any) -> dict[str, Any]:
    """Every gateway's answer; who does not answer is told and hides nobody else's."""
    from config.control import ControlError, ask

    answers, problems = {}, []
    for place in _sockets(state, operator):
        try:
            answers[place.parent.name] = _answered(ask(place, call, _SECONDS, **arguments))
        except ControlError as error:
            problems.append(str(error))
    if not answers:
        _fail("\n".join(problems))
    for problem in problems:
        click.echo(problem, err=True)
    return answers


def _moment(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%SZ}"


def _fail(sentence: str) -> NoReturn:
    click.echo(sentence, err=True)
    sys.exit(1)
