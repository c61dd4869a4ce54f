"""`relais journal`: prove what happened, to ourselves and to others.

Everything is asked of the running gateway. The heads to compare with come from a file the asker brings, which is the
point: the gateway's own word is not enough.
"""

from __future__ import annotations

import base64
import json
import ssl
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

import click

from config.control import ControlError, ask
from config.options import JSON as _JSON
from config.options import STATE as _STATE
from trust.signed_heads import read_public_key
from trust.syslog import SyslogAddress, SyslogUnavailableError

_LONGEST_WORK = 3600.0
"""Seconds for what reads a whole journal."""
_LINES_AT_ONCE = 2000
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def journal() -> None:
    """Prove what happened."""


@journal.command("verify")
@_STATE
@click.option("--heads", "files", multiple=True, type=_FILE, help="Published heads to compare with; may be repeated.")
@click.option("--key", "pems", multiple=True, type=_FILE, help="PEM public key that may have signed heads before.")
@click.option(
    "--hashes-only", is_flag=True, help="Do not open payloads: several times faster, and says what it misses."
)
@_JSON
def verify(state: Path, files: tuple[Path, ...], pems: tuple[Path, ...], hashes_only: bool, as_json: bool) -> None:
    """Recompute every chain, tree and signature; with --heads, also against what was published."""
    keys = [base64.b64encode(_key(pem)).decode("ascii") for pem in pems]
    verdicts: dict[str, Any] = {}
    for name, socket in _gateways(state).items():
        try:
            verdict = ask(socket, "journal.verify", _LONGEST_WORK, hashes_only=hashes_only, keys=keys)
        except ControlError as error:  # told, and hides nobody else's answer
            click.echo(str(error), err=True)
            continue
        if verdict["ok"] and files:
            _compare(socket, files, keys, verdict)
        verdicts[name] = verdict
    if as_json:
        click.echo(json.dumps(verdicts, indent=1, ensure_ascii=False))
    else:
        for name, verdict in verdicts.items():
            _tell(name, verdict)
    sys.exit(0 if verdicts and all(verdict["ok"] for verdict in verdicts.values()) else 1)


@journal.command("prove")
@_STATE
@click.argument("entry", metavar="[WRITER#]SEQUENCE", required=False)
@click.option("--since", type=click.IntRange(1), help="Instead: that the journal continues head number SINCE.")
@click.option("--head", "number", type=click.IntRange(1), help="The head to prove it to; default: the newest.")
@click.option("--writer", help="The chain meant by --since; default: the gateway's own.")
@click.option("--payload", is_flag=True, help="Show what the entry says, patient's pseudonym and all.")
def prove(
    state: Path, entry: str | None, since: int | None, number: int | None, writer: str | None, payload: bool
) -> None:
    """Print a proof that docs/check_journal.py checks without us: of one entry, or that one head continues another."""
    if (entry is None) == (since is None):
        raise click.UsageError("name one entry, or one head with --since")
    request: dict[str, Any] = {"number": number, "writer": writer, "payload": payload, "old": since}
    if entry is not None:
        named, sequence = _place(entry)
        request |= {"writer": named or writer, "sequence": sequence}
    answer = _ask(_one_gateway(state), "journal.prove", **request)
    if "problem" in answer:
        _fail(f"No proof: {answer['problem']}.")
    click.echo(json.dumps(answer["document"], indent=1, ensure_ascii=False))


@journal.command("erase")
@_STATE
@click.argument("entry", metavar="[WRITER#]SEQUENCE")
@click.option("--by", required=True, help="Who orders it: a person who answers for it.")
@click.option("--reason", required=True, help="Why, for the journal: the request's number, not the patient's name.")
def erase(state: Path, entry: str, by: str, reason: str) -> None:
    """Destroy what one entry says, for ever; that it was there stays, and who ordered it is recorded."""
    writer, sequence = _place(entry)
    answer = _ask(_one_gateway(state), "journal.erase", writer=writer, sequence=sequence, by=by, reason=reason)
    if "problem" in answer:
        _fail(f"Nothing was erased: {answer['problem']}.")
    click.echo(f"The payload of {answer['erased']} is erased, as {answer['recorded']} records. Backups may hold it.")


@journal.command("list")
@_STATE
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--subject", help="Only entries about the patient of this pseudonym.")
@_JSON
def list_entries(state: Path, limit: int, subject: str | None, as_json: bool) -> None:
    """Show the newest entries and the last signed head."""
    socket = _one_gateway(state)
    entries = _ask(socket, "journal.list", limit=limit, subject=subject)
    status = _ask(socket, "journal.status")
    if as_json:
        click.echo(json.dumps({"entries": entries, "status": status}, indent=1, ensure_ascii=False))
        return
    for each in entries:
        what = "(erased)" if each.get("erased") else f"{each['action']:<20} {each['outcome']:<8} {each['actor']}"
        click.echo(f"{each['at'][:19]}  {each['writer']}#{each['sequence']:<8} {what}")
    click.echo(f"{status['name']}: {status['entries']} entries, {status['checkpoint']} signed heads")
    for problem in status["problems"]:
        click.echo(problem, err=True)


@journal.command("key")
@_STATE
def key(state: Path) -> None:
    """Print the public key that signs heads, PEM: keep it where you keep the heads."""
    encoded = _ask(_one_gateway(state), "journal.status")["key"]
    lines = [encoded[start : start + 64] for start in range(0, len(encoded), 64)]
    click.echo("\n".join(["-----BEGIN PUBLIC KEY-----", *lines, "-----END PUBLIC KEY-----"]))


@journal.command("export")
@_STATE
@click.option(
    "--form", type=click.Choice(["balp", "atna"]), required=True, help="FHIR AuditEvent, or DICOM over syslog."
)
@click.option("--to", "target", default="-", help="A file, -, or for atna tls://host:port, tcp://, udp://, unix:///.")
@click.option("--ca", type=_FILE, help="PEM file the TLS server's certificate must chain to; default: the system's.")
@click.option("--chain", type=_FILE, help="Our TLS certificate with its intermediates, PEM.")
@click.option("--private-key", "private_key", type=_FILE, help="Its key, PEM.")
@click.option("--writer", help="Only this chain.")
@click.option("--after", type=click.IntRange(0), default=0, help="With --writer: only entries after this one.")
def export(
    state: Path,
    form: str,
    target: str,
    ca: Path | None,
    chain: Path | None,
    private_key: Path | None,
    writer: str | None,
    after: int,
) -> None:
    """Write the journal for an audit repository; patients are pseudonyms, reasons and details stay here."""
    socket = _one_gateway(state)
    if after and writer is None:
        raise click.UsageError("--after counts one writer's entries: name it with --writer")
    writers = [writer] if writer else sorted(_ask(socket, "journal.status")["writers"])
    pages = _pages(socket, form, dict.fromkeys(writers, after))
    if "://" in target:
        if form != "atna":
            raise click.UsageError("only atna is sent over syslog")
        try:
            context = _context(ca, chain, private_key) if target.startswith("tls:") else None
            address = SyslogAddress(target, context)
        except (ValueError, OSError) as error:
            raise click.BadParameter(f"{error}") from error
        _finish(pages, lambda lines: address.send(map(base64.b64decode, lines)))
        return
    with click.open_file(target, "wb") as output:
        _finish(pages, lambda lines: _write(output, form, lines))


def _finish(pages: Iterator[tuple[str, int, list[str]]], take: Callable[[list[str]], int]) -> None:
    """Say where each chain got to, so that the next export can go on there."""
    reached: dict[str, int] = {}
    try:
        for writer, last, lines in pages:
            take(lines)
            reached[writer] = last
    except SyslogUnavailableError as error:
        _fail(f"{error}. Sent up to {_places(reached) or 'nothing'}; go on with --writer and --after.")
    click.echo(f"Exported up to {_places(reached) or 'nothing: the journal is empty'}.", err=True)


def _places(reached: dict[str, int]) -> str:
    return ", ".join(f"{writer}#{sequence}" for writer, sequence in reached.items())


def _pages(socket: Path, form: str, starts: dict[str, int]) -> Iterator[tuple[str, int, list[str]]]:
    for writer, start in starts.items():
        after = start
        while True:
            page = _ask(socket, "journal.export", writer=writer, after=after, form=form)
            if "problem" in page:
                _fail(f"{page['problem']}.")
            if not page["lines"]:
                break
            after = page["last"]
            yield writer, after, page["lines"]


def _write(output: IO[bytes], form: str, lines: list[str]) -> int:
    for line in lines:
        output.write((line.encode() if form == "balp" else base64.b64decode(line)) + b"\n")
    return len(lines)


def _context(ca: Path | None, chain: Path | None, private_key: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca) if ca else None)
    if chain is not None:
        context.load_cert_chain(chain, private_key)
    return context


def _compare(socket: Path, files: tuple[Path, ...], keys: list[str], verdict: dict[str, Any]) -> None:
    """Hold the published heads against this journal; what is found goes into the verdict."""
    ours = others = unreadable = number = 0
    newest: dict[str, Any] = {}
    for path in files:
        with path.open(encoding="utf-8", errors="replace") as lines:
            while batch := list(islice(lines, _LINES_AT_ONCE)):
                found = _ask(socket, "journal.heads", lines=batch, keys=keys)
                if found["problem"]:
                    verdict |= {"ok": False, "problem": found["problem"]}
                    return
                ours, others = ours + found["ours"], others + found["others"]
                unreadable += found["unreadable"]
                if found["number"] > number:
                    number, newest = found["number"], found
    verdict["published"] = {"heads": ours, "newest": number, "at": newest.get("at", "")}
    if not ours:
        verdict |= {"ok": False, "problem": "no published head of this journal is in the files given with --heads"}
        return
    verdict["notes"].append(f"compared with {ours} published heads, the newest number {number} of {newest['at']}")
    if newest["uncovered"]:
        verdict["notes"].append(f"{newest['uncovered']} entries came after it: nothing published vouches for them yet")
    for count, what in ((others, "heads of other journals"), (unreadable, "lines that hold no head")):
        if count:
            verdict["notes"].append(f"{count} {what} were left aside")


def _tell(name: str, verdict: dict[str, Any]) -> None:
    text = "unbroken" if verdict["ok"] else f"BROKEN: {verdict['problem']}"
    click.echo(f"{name:<15} {verdict['entries']} entries, {verdict['checkpoints']} signed heads, {text}")
    for unchecked in verdict["unchecked"]:
        click.echo(f"                not checked: {unchecked}")
    for note in verdict["notes"]:
        click.echo(f"                {note}")


def _key(pem: Path) -> bytes:
    try:
        return read_public_key(pem.read_bytes())
    except ValueError as error:
        raise click.BadParameter(f"{pem} must hold a public key in PEM") from error


def _place(text: str) -> tuple[str, int]:
    """Writer, empty when none is named, and sequence."""
    writer, _, number = text.rpartition("#")
    if not (number.isascii() and number.isdigit()) or not 0 < int(number[:19]) < 2**63 or len(number) > 19:
        raise click.BadParameter(f"{text}: write WRITER#SEQUENCE, or the sequence alone")
    return writer, int(number)


def _gateways(state: Path) -> dict[str, Path]:
    found = {path.parent.name: path for path in (*state.glob("control.sock"), *sorted(state.glob("*/control.sock")))}
    if not found:
        _fail(f"No gateway is running with its state in {state}.")
    return found


def _one_gateway(state: Path) -> Path:
    found = _gateways(state)
    if len(found) > 1:
        _fail(f"Several gateways run below {state}: name the state of one with --state ({', '.join(sorted(found))}).")
    return next(iter(found.values()))


def _ask(socket: Path, call: str, **arguments: Any) -> Any:
    try:
        return ask(socket, call, _LONGEST_WORK, **arguments)
    except ControlError as error:
        _fail(str(error))


def _fail(sentence: str) -> Any:
    click.echo(sentence, err=True)
    sys.exit(1)
