"""`relais mailbox`: what each mailbox is, whether it is open, and who may do what in it.

A mailbox is named by its address, or by the id that `relais mailbox list` shows, or its beginning. A patient's address
holds the matricule, and every user of the machine can read a command line: name those by their id, or write `-` and
give the address on standard input.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from config.key_places import Where, fail
from config.mailbox_serving_command import SERVING_COMMANDS
from config.one_gateway import Calls, Gateway, on_gateway, read_password
from config.options import JSON
from config.settings import Loaded
from directory.records import MailboxKind
from mta.mailboxes.records import MailboxState
from trust.vault import KeyVault

if TYPE_CHECKING:
    from trust.store.database import Database

_LONGEST_ADDRESS = 1024
_SIZE = re.compile(r"([0-9]{1,15})([KMGT]?)")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_NAME = click.argument("name", metavar="MAILBOX")
_PASSWORD_FILE = click.option(
    "--password-file", type=click.File("rb"), help="First line is the password; - is standard input."
)


class Mailboxes(Gateway):
    """One operator's mailboxes."""

    family = "mailbox"

    def calls(self, loaded: Loaded, database: Database, vault: KeyVault, call: str) -> Calls:
        from config.gateway.mailboxes import make_administration, make_registry
        from config.mailbox_answers import answers_about_mailboxes
        from trust.accounts import Accounts
        from trust.journal import Journal

        accounts = Accounts(database, vault)
        journal = Journal(vault, loaded.settings.operator.host)
        administration = make_administration(make_registry(accounts, vault, loaded), accounts, journal, loaded)
        return answers_about_mailboxes(administration, None, None, loaded).calls()


@click.group("mailbox")
def mailbox() -> None:
    """Say what each mailbox is, whether it is open, and who may do what in it."""


for _command in SERVING_COMMANDS:
    mailbox.add_command(_command)


@mailbox.command("list")
@click.option("--kind", type=click.Choice([each.value for each in MailboxKind]), default=None)
@click.option("--only", "in_state", type=click.Choice([each.value for each in MailboxState]), default=None)
@JSON
@on_gateway
def mailbox_list(where: Where, kind: str | None, in_state: str | None, as_json: bool) -> None:
    """Every mailbox here."""
    rows = [
        {"operator": place.name} | row for place in where.places() for row in _every(Mailboxes(place), kind, in_state)
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    for row in rows:
        said = f"  {row['reason']}" if row["reason"] else ""
        kind = row["kind"] + ("?" if row["kind_guessed"] else "")
        shown = f"{row['operator']:<15} {kind:<8} {row['state']:<10} {row['id'][:12]}  {row['address']:<45}"
        click.echo(f"{shown} {row['label']}{said}")
    if not rows:
        click.echo("No mailboxes.")


@mailbox.command("show")
@_NAME
@JSON
@on_gateway
def mailbox_show(where: Where, name: str, as_json: bool) -> None:
    """One mailbox."""
    gateway, name = gateway_of(where, name)
    _tell(gateway.do("show", name=name), as_json)


@mailbox.command("create")
@click.argument("address")
@click.option("--kind", type=click.Choice([each.value for each in MailboxKind]), required=True)
@click.option("--label", default="", help="`Titre Prénom NOM` of a person; what a team, practice or machine is called.")
@click.option("--id-nat", default="", help="IdNat_PP of a person, IdNat_Struct of the others.")
@click.option("--organisation", default="")
@click.option("--quota", default="0", help="Bytes, or with K, M, G or T; 0: the gateway's default.")
@click.option("--login", default="", help="An account that has it besides its own; default: its address logs in.")
@_PASSWORD_FILE
@click.option("--no-password", is_flag=True, help="For who logs in another way.")
@JSON
@on_gateway
def mailbox_create(
    where: Where,
    address: str,
    kind: str,
    label: str,
    id_nat: str,
    organisation: str,
    quota: str,
    login: str,
    password_file: Any,
    no_password: bool,
    as_json: bool,
) -> None:
    """A new mailbox and its account. Its address and kind never change.

    PER: one professional. ORG: a team, CAB: a practice, with members. APP: a machine, which logs in with a client
    certificate only. PATIENT: <matricule>@<patients' domain>; a patient answers and never begins.
    """
    address = _given(address)
    gateway = Mailboxes(where.place_of(address))
    personal = kind in (MailboxKind.PER.value, MailboxKind.PATIENT.value) and not login
    password = read_password(password_file, no_password) if personal or password_file else None
    made = gateway.do(
        "create",
        address=address,
        kind=kind,
        label=label,
        id_nat=id_nat,
        organisation=organisation,
        quota_bytes=_size(quota),
        login=login,
        password=password,
    )
    _tell(made, as_json)


@mailbox.command("suspend")
@_NAME
@click.option("--reason", default="", help="For the journal, and whoever looks.")
@JSON
@on_gateway
def mailbox_suspend(where: Where, name: str, reason: str, as_json: bool) -> None:
    """Nobody reads or sends until it is opened again; mail comes in. Open sessions end."""
    gateway, name = gateway_of(where, name)
    _tell(gateway.do("suspend", name=name, reason=reason), as_json)


@mailbox.command("close")
@_NAME
@click.option("--reason", required=True, help="Told to whoever writes to it: nothing of a patient or a disease.")
@JSON
@on_gateway
def mailbox_close(where: Where, name: str, reason: str, as_json: bool) -> None:
    """Mail is refused with the reason. What it holds is kept for retention.closed_mailbox_days, then deleted."""
    gateway, name = gateway_of(where, name)
    _tell(gateway.do("close", name=name, reason=reason), as_json)


@mailbox.command("open")
@_NAME
@JSON
@on_gateway
def mailbox_open(where: Where, name: str, as_json: bool) -> None:
    """Open a suspended mailbox again, or a closed one while it has its mail."""
    gateway, name = gateway_of(where, name)
    _tell(gateway.do("open", name=name), as_json)


@mailbox.command("describe")
@_NAME
@click.option("--kind", type=click.Choice([each.value for each in MailboxKind]), help="While nobody has said it.")
@click.option("--label")
@click.option("--id-nat")
@click.option("--organisation")
@JSON
@on_gateway
def mailbox_describe(where: Where, name: str, as_json: bool, **values: str | None) -> None:
    """Change what it is called, and whose it is said to be."""
    gateway, name = gateway_of(where, name)
    given = {key: value for key, value in values.items() if value is not None}
    _tell(gateway.do("describe", name=name, values=given), as_json)


@mailbox.command("quota")
@_NAME
@click.argument("size")
@JSON
@on_gateway
def mailbox_quota(where: Where, name: str, size: str, as_json: bool) -> None:
    """How much mail it may hold: bytes, or with K, M, G or T; 0: the gateway's default."""
    gateway, name = gateway_of(where, name)
    _tell(gateway.do("quota", name=name, quota_bytes=_size(size)), as_json)


@mailbox.command("preferences")
@_NAME
@click.argument("changes", nargs=-1, metavar="[NAME=VALUE]...")
@JSON
@on_gateway
def mailbox_preferences(where: Where, name: str, changes: tuple[str, ...], as_json: bool) -> None:
    """How arriving mail is made ready for it: custody=gateway|holder, and summary, verdict_line, flags, filing, hprim,
    receipts_as_mail, seen_per_member, each yes or no. Without changes: how it is now."""
    gateway, name = gateway_of(where, name)
    values = dict(each.partition("=")[::2] for each in changes)
    _tell(gateway.do("preferences", name=name, values=values), as_json)


@mailbox.command("password")
@_NAME
@_PASSWORD_FILE
@click.option("--no-password", is_flag=True, help="Take it away.")
@JSON
@on_gateway
def mailbox_password(where: Where, name: str, password_file: Any, no_password: bool, as_json: bool) -> None:
    """Set the password of the account that has it; open sessions end."""
    gateway, name = gateway_of(where, name)
    _tell(gateway.do("password", name=name, password=read_password(password_file, no_password)), as_json)


@mailbox.command("members")
@_NAME
@click.argument("login", required=False)
@click.option("--read", is_flag=True, help="Read it.")
@click.option("--write", is_flag=True, help="Move, flag and delete in it.")
@click.option("--send", is_flag=True, help="Send in its name.")
@click.option("--remove", is_flag=True, help="No member any more.")
@JSON
@on_gateway
def mailbox_members(
    where: Where, name: str, login: str | None, read: bool, write: bool, send: bool, remove: bool, as_json: bool
) -> None:
    """Who else may do what in a team's or practice's mailbox; with LOGIN, what that account may from now on."""
    gateway, name = gateway_of(where, name)
    rights = [word for word, given in (("read", read), ("write", write), ("send", send)) if given]
    if login is None:
        if rights or remove:
            raise click.UsageError("name the LOGIN")
        _tell(gateway.do("show", name=name), as_json)
        return
    if bool(rights) == remove:
        raise click.UsageError("say --read, --write and --send as far as they apply, or --remove")
    _tell(gateway.do("member", name=name, login=login, rights=rights), as_json)


@mailbox.command("sheet")
@_NAME
@click.option("--name", "owner", default="", help="The owner, as it stands on the sheet; default: the mailbox's label.")
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The PDF; mode 0600."
)
@on_gateway
def mailbox_sheet(where: Where, name: str, owner: str, output: Path) -> None:
    """Write the one-page PDF with which the mailbox is set up on a telephone or computer. It holds no password."""
    from bridges.mailbox_sheet import mailbox_sheet as drawn
    from bridges.pdf import FontMissingError
    from config.discovery_service import client_services
    from mta.mailboxes.registry import preferences_of
    from trust.store.durable import write_durably

    gateway, name = gateway_of(where, name)
    shown = gateway.do("show", name=name)
    loaded = gateway.place.loaded
    if loaded is None or loaded.settings.discovery is None:
        fail("There is no [discovery] section, so there is no page that a sheet could lead to.")
    if shown["kind"] == MailboxKind.APP.value:
        fail("A machine logs in with its client certificate: a sheet would tell it nothing.")
    if shown["state"] != MailboxState.ACTIVE.value or not shown["account"]:
        fail("Nobody can log in to this mailbox now: relais mailbox show says why.")
    try:
        written = drawn(
            client_services(loaded),
            shown["address"],
            owner or shown["label"],
            preferences=preferences_of(shown["preferences"]),
        )
        write_durably(output, written)
    except (FontMissingError, ValueError) as error:
        fail(f"{str(error)[:1].upper()}{str(error)[1:]}.")
    except OSError as error:
        fail(f"{output} cannot be written: {error.strerror}.")


def _every(gateway: Mailboxes, kind: str | None, state: str | None) -> Iterator[dict[str, Any]]:
    after = ""
    while True:
        page = gateway.do("list", after=after, kind=kind or "", state=state or "")
        yield from page["mailboxes"]
        after = page["next"]
        if not after:
            return


def gateway_of(where: Where, name: str) -> tuple[Mailboxes, str]:
    """The gateway that has the mailbox: by the domain of an address, else whoever knows the id."""
    name = _given(name)
    places = where.places()
    if len(places) == 1:
        return Mailboxes(places[0]), name
    if "@" in name:
        return Mailboxes(where.place_of(name)), name
    known = [gateway for gateway in map(Mailboxes, places) if gateway.has(name)]
    if len(known) != 1:
        fail("No operator here, or more than one, has a mailbox of this id: name the state with --state.")
    return known[0], name


def _given(name: str) -> str:
    """`-`: from standard input, where nobody else sees it."""
    if name != "-":
        return name
    # bytes, of which it takes no more than the line: a password may come next
    line = sys.stdin.buffer.readline(_LONGEST_ADDRESS)
    return line.decode("utf-8", "surrogateescape").strip()


def _size(text: str) -> int:
    found = _SIZE.fullmatch(text.strip().upper())
    if found is None:
        raise click.BadParameter(f"{text}: bytes, or a number with K, M, G or T")
    return int(found[1]) * _UNITS[found[2]]


def _tell(shown: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(shown, indent=1, ensure_ascii=False))
        return
    lines = [
        ("mailbox", f"{shown['address']}  ({shown['kind']}, {shown['state']})"),
        ("id", shown["id"]),
        ("label", shown["label"]),
        ("reason", shown["reason"]),
        ("closed", shown["closed"]),
        ("purged", shown["purged"]),
        ("identifier", shown["id_nat"]),
        ("at", shown["organisation"]),
        ("quota", str(shown["quota_bytes"]) if shown["quota_bytes"] else ""),
    ]
    lines += [("member", f"{each['login']}  {', '.join(each['rights'])}") for each in shown["members"]]
    chosen = (f"{name}={_word(value)}" for name, value in sorted(shown["preferences"].items()))
    lines.append(("arriving", " ".join(chosen)))
    for name, value in lines:
        if value:
            click.echo(f"{name:<10} {value}")
    if not shown["account"]:
        click.echo("Its account was deleted.", err=True)
    if shown["kind_guessed"]:
        click.echo(
            "Nobody has said its kind yet: this is a guess. Say it with relais mailbox describe --kind.", err=True
        )
    if not shown["directory_told"]:
        click.echo("The directory has not been told yet; a running gateway does so as soon as it answers.", err=True)


def _word(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
