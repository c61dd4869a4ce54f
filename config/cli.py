"""The `relais` command.

Exit codes: 0 all went well, 1 it did not (one sentence says what to do), 2 the command line was wrong. `--json` prints
one JSON document on standard output. A user's mistake never shows a stack trace.

A command imports what it needs when it is called: who asks for help, or for the queue, does not wait for the database,
cryptography and S/MIME.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import click

from config import allocator
from config.directory_command import directory
from config.lazy import LazyCommand, LazyGroup
from config.options import JSON, STATE

_LONGEST_WORK = 600.0
"""Seconds for what reads a large document."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="relais-sante", prog_name="relais")
def relais() -> None:
    """Secure health messaging gateway."""


@relais.command()
@STATE
@click.option("--demo", is_flag=True, help="Send the demonstration report once everything is up.")
@click.option("--oneshot", is_flag=True, help="Stop again after that; the exit status says whether it arrived.")
@click.option("--port", "ports", multiple=True, metavar="NAME=PORT", help="Fix a port (imaps, ldaps, mllp, ...).")
def up(state: Path, demo: bool, oneshot: bool, ports: tuple[str, ...]) -> None:
    """Start everything on this machine: slapd, Dovecot and two demonstration operators."""
    import asyncio

    from config import doctor, logs
    from config.privileges import PrivilegeError
    from config.settings import SettingsError
    from config.show import show
    from config.supervise import StartError
    from config.up import PORT_NAMES, UpError, become_service
    from config.up import up as run

    wanted: dict[str, int] = {}
    for item in ports:
        name, _, number = item.partition("=")
        port = _port(number)
        if name not in PORT_NAMES or port is None:
            raise click.BadParameter(f"{item}: use NAME=PORT with NAME one of {', '.join(PORT_NAMES)}")
        wanted[name] = port
    logs.configure("WARNING")
    missing = doctor.missing_programs()
    if missing:
        _fail(f"Missing on this machine: {', '.join(missing)}. Run `make demo`, or install them.")
    try:
        state = become_service(state)
        well = asyncio.run(run(state, wanted_ports=wanted, then=show if demo else None, oneshot=oneshot, say=_say))
    except (UpError, PrivilegeError, StartError, SettingsError) as error:
        _fail(str(error))
    sys.exit(0 if well else 1)


@relais.command()
@click.option("--config", "path", type=click.Path(path_type=Path), required=True, help="The operator's relais.toml.")
@click.option("--log-level", default="INFO", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]))
@click.option(
    "--process",
    "number",
    type=click.IntRange(0, 255),
    help="Which of several processes with this configuration: 0, 1, ... They share ports and need PostgreSQL.",
)
def serve(path: Path, log_level: str, number: int | None) -> None:
    """Run one operator's gateway until SIGTERM, which it ends in good order; SIGHUP reads the configuration again."""
    import asyncio

    import structlog

    from config import logs
    from config.privileges import PrivilegeError, drop
    from config.settings import SettingsError, load
    from trust.memory import guard_memory, permit_locking

    logs.configure(log_level)
    try:
        loaded = load(path)
        logs.set_level(loaded.settings.log.level or log_level)
        permit_locking()
        drop(loaded.state)
        guard = guard_memory(lock=loaded.settings.keys.lock_memory)
        if guard.degraded:
            structlog.get_logger(__name__).warning("keys.exposed", how=guard.degraded)
        from config.wiring import serve as run

        asyncio.run(run(loaded, number, path, log_level))
    except (SettingsError, PrivilegeError) as error:
        _fail(str(error))


@relais.group()
def dossier() -> None:
    """Read patients' records as a named professional; every access is journaled before a byte leaves."""


_AS = click.option("--as", "reader", required=True, metavar="IDNAT", help="National identifier of the professional.")
_PATIENT = click.option("--patient", required=True, metavar="MATRICULE", help="INS matricule, 13 or 15 characters.")
_OID = click.option("--oid", default="1.2.250.1.213.1.4.10", show_default=True, help="OID of the matricule.")


@dossier.command("list")
@STATE
@_AS
@_PATIENT
@_OID
@click.option("--all", "every", is_flag=True, help="Replaced and withdrawn documents too.")
@JSON
def dossier_list(state: Path, reader: str, patient: str, oid: str, every: bool, as_json: bool) -> None:
    """List the documents the professional may see."""
    entries = _ask(state, "dossier.list", reader=reader, patient=patient, oid=oid, every=every)
    if as_json:
        click.echo(json.dumps(entries, indent=1, ensure_ascii=False))
        return
    if not entries:
        click.echo("No document that this professional may see.")
    for entry in entries:
        version = f" v{entry['version']}" if entry.get("version") else ""
        click.echo(f"{entry['id']}  {entry['created'][:8]}  {entry['status']:<10} {entry['title']}{version}")


@dossier.command("read")
@STATE
@_AS
@_PATIENT
@_OID
@click.argument("document")
@click.option(
    "--output", "-o", type=click.File("wb"), default="-", help="Where the document goes; - is standard output."
)
def dossier_read(state: Path, reader: str, patient: str, oid: str, document: str, output: Any) -> None:
    """Read one document."""
    answer = _ask(state, "dossier.read", reader=reader, patient=patient, oid=oid, document=document)
    output.write(base64.b64decode(answer["content"]))


@relais.command()
@STATE
@click.argument("reference", metavar="MESSAGE-ID|MSH-10|ID")
@JSON
def trace(state: Path, reference: str, as_json: bool) -> None:
    """Show a message's whole life at every operator here: each step with its time, decision and reason."""
    from config.trace import render

    lives = _ask_all(state, "trace", reference=reference)
    if not any(lives.values()):
        _fail(f"No message with Message-ID, MSH-10 or id {reference} is known here.")
    if as_json:
        click.echo(json.dumps(lives, indent=1, ensure_ascii=False))
        return
    for line in render(lives):
        click.echo(line)


@relais.command()
@STATE
@click.option("--however-many", is_flag=True, help="Delete them even when there are more than crashes explain.")
@JSON
def housekeeping(state: Path, however_many: bool, as_json: bool) -> None:
    """Delete what no message and no document refers to any more; the gateways do so every day by themselves."""
    swept = _ask_all(state, "housekeeping", _LONGEST_WORK, however_many=however_many)
    if as_json:
        click.echo(json.dumps(swept, indent=1))
    held_back = False
    for operator, found in swept.items():
        if not as_json:
            click.echo(
                f"{operator:<15} {found['looked_at']} files old enough, {found['orphans']} that nothing refers to "
                f"({found['octets']} bytes), {found['deleted']} deleted"
            )
        held_back |= found["deleted"] < found["orphans"]
    if held_back:
        _fail(
            "Nothing is deleted where there are so many: is it the right database, restored to the right day? "
            "If it is, --however-many deletes them for ever."
        )


@relais.group()
def bridge() -> None:
    """Work with sending systems."""


@bridge.command("send")
@STATE
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--to", "target", metavar="HOST:PORT", help="MLLP listener; default: the demonstration's laboratory.")
def bridge_send(state: Path, file: Path, target: str | None) -> None:
    """Send one HL7 v2 file over MLLP, byte for byte, and print the acknowledgement."""
    import asyncio

    from config.show import acknowledgement_code, send

    if target is None:
        try:
            mllp = json.loads((state / "endpoints.json").read_text())["mllp"]
            host, port = mllp["host"], mllp["port"]
        except (OSError, ValueError, KeyError, TypeError):
            _fail(f"{state / 'endpoints.json'} cannot be read: start `relais up`, or name the listener with --to.")
    else:
        host, _, number = target.rpartition(":")
        port = _port(number)
        if not host or port is None:
            raise click.BadParameter("--to takes HOST:PORT")
    try:
        answer = asyncio.run(send(host, port, file.read_bytes()))
    except (OSError, TimeoutError, ValueError) as error:  # ValueError: no host name, or no HL7 text
        _fail(f"No acknowledgement from {host}:{port}: {error or 'timed out'}. The message was not accepted.")
    click.echo(answer.decode("utf-8", "replace").replace("\r", "\n").rstrip())
    sys.exit(0 if acknowledgement_code(answer) == "AA" else 1)


@bridge.command("listen")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), required=True)
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="Where each message becomes a file.")
def bridge_listen(host: str, port: int, folder: Path) -> None:
    """Receive HL7 v2 over MLLP as a laboratory's system would: each message becomes a file, then is acknowledged."""
    import asyncio

    from config import logs
    from config.listen import listen

    logs.configure()
    try:
        asyncio.run(listen(host, port, folder))
    except OSError as error:
        _fail(f"Cannot listen on {host}:{port} or file into {folder}: {error.strerror}")


@relais.command("submit")
@STATE
@click.option("--from", "sender", required=True, metavar="ADDRESS", help="The service's mailbox.")
@click.option("--to", "recipients", multiple=True, required=True, metavar="ADDRESS|NAME|STREET|TOWN")
@click.option("--document", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True, help="CDA R2.")
@click.option("--dossier", "to_dossier", is_flag=True, help="Feed the patient's record too.")
@click.option("--patient", "to_patient", is_flag=True, help="Patients' mailboxes among the recipients may get it.")
@click.option(
    "--print-to",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("letters-to-print"),
    show_default=True,
    help="Folder for the letters to post; made when there is one.",
)
@JSON
def submit(
    state: Path,
    sender: str,
    recipients: tuple[str, ...],
    document: Path,
    to_dossier: bool,
    to_patient: bool,
    print_to: Path,
    as_json: bool,
) -> None:
    """Send one CDA document to any number of correspondents; whoever has no mailbox gets a letter to print."""
    from bridges.cda import MAX_DOCUMENT_BYTES
    from bridges.refusals import DOCUMENT_TOO_LARGE

    with document.open("rb") as file:
        content = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(content) > MAX_DOCUMENT_BYTES:
        _fail(f"{DOCUMENT_TOO_LARGE.code}: {DOCUMENT_TOO_LARGE.text}")
    result = _ask(
        state,
        "letters.submit",
        _LONGEST_WORK,
        document=base64.b64encode(content).decode("ascii"),
        sender=sender,
        recipients=list(recipients),
        to_dossier=to_dossier,
        to_patient=to_patient,
    )
    problem = _print_letters(result, print_to)
    if as_json:
        click.echo(json.dumps(result, indent=1, ensure_ascii=False))
    else:
        for address in result["reached"]:
            click.echo(f"reached    {address}")
        for each in result["unreached"]:
            told = (
                f"to print   {each['recipient']}  {each['file']}" if each["file"] else f"not sent   {each['recipient']}"
            )
            click.echo(f"{told}\n           {each['sentence']}")
    if problem:
        _fail(
            f"The letters to print could not be written into {print_to} ({problem}). Nothing else is lost: give the "
            "same command again with another --print-to; nobody receives it twice."
        )
    sys.exit(0 if result["accepted"] or any(each["file"] for each in result["unreached"]) else 1)


def _print_letters(result: dict[str, Any], folder: Path) -> str:
    """Write the letters to post and put their paths in place of their bytes; why that was impossible, else empty.

    A file is named by its content: the same letter again is the same file, another never takes its place.
    """
    from bridges import printed
    from trust.store.durable import make_private_directory, write_durably

    problem = ""
    pages = [base64.b64decode(each) for each in result.pop("pages")]
    for each in result["unreached"]:
        cover, number = base64.b64decode(each.pop("cover")), each.pop("pages")
        each["file"] = ""
        if not cover or problem:
            continue
        letter = printed.bind(cover, pages[number])
        path = folder / f"letter-{hashlib.sha256(letter).hexdigest()[:16]}.pdf"
        try:
            make_private_directory(folder)
            write_durably(path, letter)
        except OSError as error:
            problem = error.strerror or type(error).__name__
        else:
            each["file"] = str(path)
    return problem


@relais.command("doctor")
@STATE
@click.option("--config", "path", type=click.Path(path_type=Path), help="Check this operator's relais.toml as well.")
@click.option("--errors", is_flag=True, help="Print the catalogue of errors and stop.")
@click.option("--dns", is_flag=True, help="Print the DNS records to publish and stop.")
@click.option("--compare", is_flag=True, help="With --dns: ask the DNS whether they are published.")
@JSON
def doctor_command(state: Path, path: Path | None, errors: bool, dns: bool, compare: bool, as_json: bool) -> None:
    """Say what is wrong with the machine, the configuration and the state."""
    if dns:
        from config.dns_shown import show_dns

        show_dns(state, path, as_json=as_json, compare=compare)
        return
    if errors:
        _print_errors(as_json)
        return
    from config import doctor

    findings = doctor.examine(state, path)
    if as_json:
        click.echo(json.dumps([finding.as_dict() for finding in findings], indent=1, ensure_ascii=False))
    else:
        for finding in findings:
            click.echo(f"{finding.level:<8} {finding.subject}: {finding.text}")
    sys.exit(1 if any(finding.level == "problem" for finding in findings) else 0)


def _print_errors(as_json: bool) -> None:
    from config.catalogue import CATALOGUE

    if as_json:
        rows = [
            {
                "code": r.code,
                "smtp": r.smtp,
                "enhanced": r.enhanced,
                "hl7": r.hl7.value,
                "condition": r.condition,
                "application": r.application,
                "text": r.text,
                "text_fr": r.text_fr,
            }
            for _, r in sorted(CATALOGUE.items())
        ]
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    for code, refusal in sorted(CATALOGUE.items()):
        click.echo(f"{code}\n    {refusal.smtp} {refusal.enhanced}  {refusal.hl7.value} {refusal.application}")
        click.echo(f"    {refusal.text}\n    {refusal.text_fr}")


def _ask(state: Path, call: str, seconds: float = 30.0, **arguments: Any) -> Any:
    """Ask the gateway whose state this is, or the demonstration's that holds record and hospital; fails when it says
    no."""
    from config.control import ControlError, ask

    path = state / "control.sock"
    if not path.exists():
        from config.demonstration import OPERATORS

        path = state / next(operator.key for operator in OPERATORS if operator.dossier) / path.name
    try:
        return ask(path, call, seconds, **arguments)
    except ControlError as error:
        _fail(str(error))


def _ask_all(state: Path, call: str, seconds: float = 30.0, **arguments: Any) -> dict[str, Any]:
    """Ask every gateway that runs with its state here. Who does not answer is told and hides nobody else's answer;
    fails when none answers."""
    from config.control import ControlError, ask

    answers: dict[str, Any] = {}
    problems = []
    for path in (*state.glob("control.sock"), *sorted(state.glob("*/control.sock"))):
        try:
            answers[path.parent.name] = ask(path, call, seconds, **arguments)
        except ControlError as error:
            problems.append(str(error))
    if not answers:
        _fail("\n".join(problems) or f"No gateway is running with its state in {state}.")
    for problem in problems:
        click.echo(problem, err=True)
    return answers


def _port(number: str) -> int | None:
    """A TCP port, None when it is none."""
    return int(number) if re.fullmatch("[0-9]{1,5}", number) and 0 < int(number) < 65536 else None


def _say(sentence: str) -> None:
    click.echo(sentence)
    sys.stdout.flush()


def _fail(sentence: str) -> Any:
    click.echo(sentence, err=True)
    sys.exit(1)


for _name, _module, _text in (
    ("account", "config.accounts_command", "Say who may log in, with what, and as whom."),
    ("bench", "config.bench_command", "Measure on this machine, each figure beside a peer or a limit of the same run."),
    ("journal", "config.journal_command", "Prove what happened."),
    ("keys", "config.keys_command", "Look after mailboxes' keys: request, install, rotate, retire, check."),
    ("mailbox", "config.mailbox_command", "Say what each mailbox is, whether it is open, and who may do what in it."),
    ("quarantine", "config.quarantine_command", "See and decide about mail in which malicious software was found."),
    ("queue", "config.queue_command", "See what is on the road, and decide about it."),
    ("reading", "config.follow_up_command", "See what nobody has read, and write down who took note of a result."),
    ("smime", "config.smime_command", "Explain, verify, open and make S/MIME messages."),
    ("trust", "config.trust_command", "See whom this gateway believes, and decide about the trust list."),
):
    relais.add_command(LazyGroup(_name, _module, _text))
relais.add_command(directory)
for _name, _text in (
    ("backup", "Bring all a gateway keeps off the machine: `relais backup TARGET`, then `verify TARGET`."),
    ("restore", "Bring a backup back into an empty state directory."),
):
    relais.add_command(LazyCommand(_name, "config.backup_command", _text))
relais.add_command(LazyCommand("connect", "config.connector_command", "Run beside the doctor: the practice connector."))


def main() -> None:
    """Entry point."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without accents must not stop an answer half-way
            stream.reconfigure(errors="backslashreplace")
    allocator.keep_freed_memory()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy looks at octets here, and needs no threads for algebra
    try:
        relais(prog_name="relais")
    except OSError as error:  # a file or folder that was named and cannot be used
        _fail(f"{error.filename or 'A file'} cannot be used: {error.strerror or type(error).__name__}.")
