"""`relais trust`: the trust list's life, and why a partner is or is not believed.

The running gateway is asked over its control socket: what it believes is what counts. A probe can also be made without
one, from its configuration: revocation is then fetched anew, as far as the time given allows.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from config.control import ControlError, ask
from config.options import JSON as _JSON
from config.options import STATE as _STATE

_REFRESH_SECONDS = 120.0
_ROUNDS = 5
"""The signer's path has so many certificates whose revocation may have to be fetched one after the other."""
_SHOWN = 20


@click.group("trust")
def trust() -> None:
    """See whom this gateway believes, and decide about the trust list."""


@trust.group("list")
def trust_list() -> None:
    """The signed list of domains and their operators."""


@trust_list.command("show")
@_STATE
@_JSON
def show(state: Path, as_json: bool) -> None:
    """The list in use, whether another one is held, and how the last refresh went."""
    answers = _ask_all(state, "trust.list.show")
    if as_json:
        click.echo(json.dumps(answers, indent=1, ensure_ascii=False))
        return
    for operator, answer in answers.items():
        click.echo(f"{operator}")
        for line in _shown(answer):
            click.echo(f"  {line}")


@trust_list.command("diff")
@_STATE
@_JSON
def diff(state: Path, as_json: bool) -> None:
    """What the held list would change, and the digest that accepts it."""
    answers = _ask_all(state, "trust.list.diff")
    if as_json:
        click.echo(json.dumps(answers, indent=1, ensure_ascii=False))
        return
    for operator, answer in answers.items():
        click.echo(f"{operator}: a list of {answer['generated_at']} is held")
        for reason in answer["reasons"]:
            click.echo(f"  because {reason}")
        for line in _changes(answer):
            click.echo(f"  {line}")
        click.echo(f"  to take it into use: relais trust list accept {answer['digest']}")


@trust_list.command("accept")
@_STATE
@click.argument("digest")
@_JSON
def accept(state: Path, digest: str, as_json: bool) -> None:
    """Take the held list with exactly this DIGEST (shown by `diff`) into use."""
    if not re.fullmatch("[0-9a-fA-F]{64}", digest.strip()):
        _fail("DIGEST is the whole SHA-256 that `relais trust list diff` shows: 64 hexadecimal digits.")
    answers = _ask_all(state, "trust.list.accept", digest=digest, by=_who())
    if as_json:
        click.echo(json.dumps(answers, indent=1, ensure_ascii=False))
        return
    for operator, answer in answers.items():
        click.echo(f"{operator}: accepted, in use from now on")
        for line in _changes(answer["changes"]):
            click.echo(f"  {line}")


@trust_list.command("refresh")
@_STATE
@_JSON
def refresh(state: Path, as_json: bool) -> None:
    """Look at the list's source now instead of when the schedule says."""
    answers = _ask_all(state, "trust.list.refresh", _REFRESH_SECONDS)
    if as_json:
        click.echo(json.dumps(answers, indent=1, ensure_ascii=False))
    else:
        for operator, answer in answers.items():
            click.echo(f"{operator}: {_OUTCOMES[answer['outcome']]}")
            if answer["text"]:
                click.echo(f"  {answer['text']} ({answer['detail']})")
            for line in _changes(answer["changes"]) if answer["changes"] else ():
                click.echo(f"  {line}")
    sys.exit(0 if all(answer["outcome"] in ("accepted", "unchanged") for answer in answers.values()) else 1)


@trust.command("probe")
@_STATE
@click.option("--config", type=click.Path(path_type=Path), help="This relais.toml instead of a running gateway.")
@click.argument("target", metavar="HOST:PORT")
@click.option("--starttls", type=click.Choice(["smtp", "imap", "ldap"]), help="TLS begins inside this protocol.")
@click.option("--domain", default="", help="Ask whether the service may speak for this mail domain.")
@click.option("--timeout", "seconds", type=click.FloatRange(0.5, 60.0), default=15.0, show_default=True)
@_JSON
def probe(
    state: Path, config: Path | None, target: str, starttls: str | None, domain: str, seconds: float, as_json: bool
) -> None:
    """Connect to a partner as mail would, and explain what it presents and why it is or is not believed."""
    host, port = _host_and_port(target)
    if config is not None:
        report = _probe_from(config, host, port, starttls, domain, seconds)
    else:
        path = _first_socket(state)
        try:
            report = ask(
                path,
                "trust.probe",
                3 * seconds + 30.0,
                host=host,
                port=port,
                starttls=starttls or "",
                domain=domain,
                timeout=seconds,
            )
        except ControlError as error:
            _fail(str(error))
    if as_json:
        click.echo(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        for line in _probed(report):
            click.echo(line)
    sys.exit(0 if report["believed"] else 1)


_OUTCOMES = {
    "accepted": "another list was found and is in use from now on",
    "unchanged": "the source has the list that is in use",
    "held": "another list was found and is held for a decision; the one in use stays: relais trust list diff",
    "refused": "what was found is not believed; the list in use stays",
    "unavailable": "no list could be had; the list in use stays",
}


def _shown(answer: dict[str, Any]) -> list[str]:
    used, held, last = answer["in_use"], answer["held"], answer["last_look"]
    lines = [
        f"in use    {used['rows']} rows, {used['domains']} domains, {used['operators']} operators",
        f"dated     {used['generated_at']} ({_days_since(used['generated_at'])} days ago)",
        f"digest    {used['digest']}",
        f"accepted  {used['accepted_at']} by {used['accepted_by']}",
        f"signer    {used['signer']}, certificate until {used['signer_not_after']}",
    ]
    if not used["signer_believed"]:
        lines.append(f"WARNING   the signer would not be believed today: {used['signer_detail']}")
    own = answer["own"]
    if own["not_listed_for"]:
        domains = ", ".join(own["not_listed_for"][:_SHOWN])
        lines.append(f"WARNING   our own certificate is not listed for {domains}: partners refuse our mail, and the")
        lines.append(f"          name to have listed is {own['name']}")
    if used["unreadable_count"]:
        lines.append(f"unread    {used['unreadable_count']} domains, first {', '.join(used['unreadable'])}")
    if held:
        lines.append(f"HELD      {held['digest']}, dated {held['generated_at']}")
        lines += [f"          because {reason}" for reason in held["reasons"]]
        lines.append("          see it with `relais trust list diff`")
    if last:
        words = f"{last['at']} {last['outcome']}"
        lines.append(f"last look {words}{': ' + last['text'] if last['text'] else ''} {last['detail']}".rstrip())
    return lines


def _changes(changes: dict[str, Any]) -> list[str]:
    counts = changes["counts"]
    lines = [
        f"rows -{counts['rows_removed']} +{counts['rows_added']} of {changes['rows_before']}, "
        f"domains -{counts['domains_removed']} +{counts['domains_added']}, "
        f"operators -{counts['operators_removed']} +{counts['operators_added']}"
    ]
    for sign, kind in (("-", "removed"), ("+", "added")):
        for what in ("domains", "operators"):
            named = changes[f"{what}_{kind}"]
            lines += [f"{sign} {each}" for each in named[:_SHOWN]]
            if counts[f"{what}_{kind}"] > min(len(named), _SHOWN):
                lines.append(f"{sign} … {counts[f'{what}_{kind}'] - min(len(named), _SHOWN)} more {what}")
        # an operator that lost or won a domain which stays listed
        domains = set(changes[f"domains_{kind}"])
        moved = [(domain, name) for domain, name in changes[f"rows_{kind}"] if domain not in domains]
        lines += [f"{sign} {domain}: {name}" for domain, name in moved[:_SHOWN]]
    return lines


def _probed(report: dict[str, Any]) -> list[str]:
    lines = [report["sentence"], ""]
    inside = f" (STARTTLS {report['starttls']})" if report["starttls"] else ""
    lines.append(f"service      {report['host']}:{report['port']}{inside}")
    if not report["protocol"]:
        return lines
    lines += [
        f"protocol     {report['protocol']}, {report['suite']}",
        f"our own      certificate {report['client_certificate']}",
        f"host name    {'is' if report['host_name_matches'] else 'is not'} in the certificate (told, not demanded)",
        f"stapling     {report['ocsp_stapling']}",
    ]
    for number, each in enumerate(report["chain"]):
        lines.append(f"chain {number}      {each['subject'] or each['problem']}")
        if each["problem"]:
            continue
        lines += [
            f"  issuer     {each['issuer']}",
            f"  validity   {each['not_before']} to {each['not_after']}, serial {each['serial']}",
            f"  key        {each['key']}, signed with {each['signature']}",
            f"  usage      {', '.join(each['key_usage']) or '-'}; {', '.join(each['extended_key_usage']) or '-'}"
            + ("; authority" if each["authority"] else ""),
            f"  names      {', '.join(each['alternative_names']) or '-'}",
            f"  sha256     {each['sha256']}",
        ]
    for purpose, verdict in report["verdicts"].items():
        word = "believed" if verdict["ok"] else f"refused: {verdict['detail']}"
        lines.append(f"{purpose}  {word} ({verdict['rule']}, revocation {verdict['revocation']})")
        lines += [f"  path       {name}" for name in verdict["path"]]
    listed = report["trust_list"]
    if listed:
        lines.append(f"trust list   of {listed['list_date']}, for {listed['name']}")
        for domain in listed["domains"][:_SHOWN]:
            lines.append(f"  listed     {domain}")
        if listed["domain_count"] > _SHOWN:
            lines.append(f"  listed     … {listed['domain_count'] - _SHOWN} more")
        lines += [f"  nearly     {near}" for near in listed["near"]]
    lines += [f"missing      {sentence}" for sentence in report["missing"]]
    return lines


def _probe_from(path: Path, host: str, port: int, starttls: str | None, domain: str, seconds: float) -> dict[str, Any]:
    """Without a running gateway: its certificate, anchors and list, as its configuration names them."""
    from cryptography import x509

    from config import logs
    from config.revocation_service import revocation_checker, revocation_policies
    from config.settings import SettingsError, load
    from config.trust_service import list_signer, list_source, operator_files
    from trust.certificates import CertificateValidator
    from trust.list_source import ListUnavailableError
    from trust.probe import probe as look
    from trust.starttls import StartTls
    from trust.tls import TlsMaterialError, operator_client_context
    from trust.trustlist import REVOCATION_UNKNOWN, TrustList

    logs.configure("ERROR")  # what could not be fetched is in the report; the answer alone goes to standard output
    try:
        loaded = load(path)
        settings = loaded.settings.trust
        anchors = x509.load_pem_x509_certificates(loaded.path(settings.anchors).read_bytes())
        more = loaded.path(settings.intermediates).read_bytes() if settings.intermediates else b""
        authorities = (anchors, x509.load_pem_x509_certificates(more) if more else [])
        revocation = revocation_checker(loaded, *authorities, keeping=False)
        validator = CertificateValidator(*authorities, revocation, revocation_policies(loaded), source=revocation)
        source, signer = list_source(loaded), list_signer(loaded)
    except SettingsError as error:
        _fail(str(error))
    except (OSError, ValueError, x509.InvalidVersion) as error:
        _fail(f"The anchors of {path} cannot be used: {error}")
    files = operator_files(loaded)
    revocation.start()
    try:
        xml = source()
        deadline = time.monotonic() + seconds
        for _ in range(_ROUNDS):
            listed = TrustList.load(xml, validator, datetime.now(UTC), signer=signer)
            known = isinstance(listed, TrustList) or not listed.detail.startswith(REVOCATION_UNKNOWN)
            if known or revocation.settled(0):
                break
            revocation.settled(max(0.0, deadline - time.monotonic()))
        if not isinstance(listed, TrustList):
            click.echo(f"The trust list is not believed: {listed.refusal.text} ({listed.detail})", err=True)
        report = look(
            host,
            port,
            StartTls(starttls) if starttls else None,
            lambda: operator_client_context(*files),
            validator,
            listed if isinstance(listed, TrustList) else None,
            helo=loaded.settings.operator.host,
            domain=domain,
            seconds=seconds,
            settled=revocation.settled,
        )
    except (ListUnavailableError, TlsMaterialError) as error:
        _fail(f"{error}. Run this as the service user or as root.")
    finally:
        revocation.stop()
    answer: dict[str, Any] = json.loads(json.dumps(report.as_dict()))
    return answer


def _host_and_port(target: str) -> tuple[str, int]:
    host, _, number = target.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not re.fullmatch("[0-9]{1,5}", number) or not 0 < int(number) < 65536:
        raise click.BadParameter("HOST:PORT, for instance mx.partner.example:25", param_hint="HOST:PORT")
    return host, int(number)


def _sockets(state: Path) -> list[Path]:
    return [*state.glob("control.sock"), *sorted(state.glob("*/control.sock"))]


def _first_socket(state: Path) -> Path:
    found = _sockets(state)
    if not found:
        _fail(f"No gateway is running with its state in {state}: name its configuration with --config.")
    return found[0]


def _ask_all(state: Path, call: str, seconds: float = 30.0, **arguments: Any) -> dict[str, Any]:
    """Every gateway with its state here; one that says no is told and hides nobody else's answer."""
    answers: dict[str, Any] = {}
    problems = []
    for path in _sockets(state):
        try:
            answers[path.parent.resolve().name] = ask(path, call, seconds, **arguments)
        except ControlError as error:
            problems.append(f"{path.parent.resolve().name}: {error}")
    if not answers:
        _fail("\n".join(problems) or f"No gateway is running with its state in {state}.")
    for problem in problems:
        click.echo(problem, err=True)
    return answers


def _who() -> str:
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _days_since(moment: str) -> int:
    return max(0, (datetime.now(UTC) - datetime.fromisoformat(moment)).days)


def _fail(sentence: str) -> Any:
    click.echo(sentence, err=True)
    sys.exit(1)
