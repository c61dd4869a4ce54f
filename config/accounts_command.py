"""`relais account`: who may log in, with what, as whom.

How a gateway is reached, and where passwords come from: `config.one_gateway`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from cryptography import x509

from config.key_places import Place, Where, fail
from config.one_gateway import Calls, Gateway, on_gateway, read_password
from config.options import JSON as _JSON
from config.settings import Loaded, SettingsError
from trust.client_certificates import Binding
from trust.identities import Right, Service
from trust.vault import KeyVault

if TYPE_CHECKING:
    from trust.store.database import Database

_LONGEST_FILE = 1 << 20
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_NAME = click.argument("name", metavar="LOGIN")
_FORMER = click.option(
    "--former-mailbox",
    "former",
    is_flag=True,
    help="Also an address that was a mailbox before: whoever gets it reads what is in it.",
)


class Accounts(Gateway):
    """One operator's accounts."""

    family = "account"

    def calls(self, loaded: Loaded, database: Database, vault: KeyVault, call: str) -> Calls:
        from config.accounts_answers import answers_about_accounts
        from config.gateway.mailboxes import make_registry
        from trust import accounts
        from trust.accounts_administration import Administration
        from trust.journal import Journal

        kept = accounts.Accounts(database, vault)
        journal = Journal(vault, loaded.settings.operator.host)
        administration = Administration(kept, journal, make_registry(kept, vault, loaded))
        # Only there, so that a broken file of anchors keeps nobody from closing an account.
        validator = _validator(self.place) if call == "account.certificate.bind" else None
        return answers_about_accounts(administration, validator, loaded).calls()


@click.group("account")
def account() -> None:
    """Say who may log in, with what, and as whom."""


@account.command("list")
@_JSON
@on_gateway
def account_list(where: Where, as_json: bool) -> None:
    """Every account here."""
    rows = []
    for place in where.places():
        rows += [{"operator": place.name} | row for row in Accounts(place).do("list")]
    if as_json:
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    for row in rows:
        click.echo(f"{row['operator']:<15} {_state(row):<8} {row['login']:<45} {_ways(row)}")
    if not rows:
        click.echo("No accounts.")


@account.command("show")
@_NAME
@_JSON
@on_gateway
def account_show(where: Where, name: str, as_json: bool) -> None:
    """One account with all it may log in with, and do. LOGIN may be one of its addresses."""
    _tell(_of(where, name).do("show", name=name), as_json)


@account.command("create")
@_NAME
@click.option("--address", "addresses", multiple=True, help="A mailbox of its own, the main one first.")
@click.option("--password-file", type=click.File("rb"), help="First line is the password; - is standard input.")
@click.option("--no-password", is_flag=True, help="For teams, and who logs in another way.")
@_FORMER
@_JSON
@on_gateway
def account_create(
    where: Where,
    name: str,
    addresses: tuple[str, ...],
    password_file: Any,
    no_password: bool,
    former: bool,
    as_json: bool,
) -> None:
    """Make a new account; a login that is an address is its mailbox when none is named."""
    owned = list(addresses) or ([name] if "@" in name else [])
    gateway = Accounts(where.place_of(owned[0]) if owned else _only(where))
    for each in owned:
        if not gateway.place.serves(each):
            fail(f"The domain of {each} is not one of {gateway.place.name}'s.")
    password = read_password(password_file, no_password)
    _tell(gateway.do("create", name=name, addresses=owned, password=password, former=former), as_json)


@account.command("addresses")
@_NAME
@click.argument("addresses", nargs=-1, metavar="[ADDRESS]...")
@_FORMER
@_JSON
@on_gateway
def account_addresses(where: Where, name: str, addresses: tuple[str, ...], former: bool, as_json: bool) -> None:
    """Replace an account's own addresses, the main one first."""
    gateway = _of(where, name)
    for each in addresses:
        if not gateway.place.serves(each):
            fail(f"The domain of {each} is not one of {gateway.place.name}'s.")
    _tell(gateway.do("addresses", name=name, addresses=list(addresses), former=former), as_json)


@account.command("password")
@_NAME
@click.option("--password-file", type=click.File("rb"), help="First line is the password; - is standard input.")
@click.option("--no-password", is_flag=True, help="Take the main password away.")
@_JSON
@on_gateway
def account_password(where: Where, name: str, password_file: Any, no_password: bool, as_json: bool) -> None:
    """Set an account's main password; wrong ones are forgotten."""
    gateway = _of(where, name)
    _tell(gateway.do("password", name=name, password=read_password(password_file, no_password)), as_json)


@account.command("lock")
@_NAME
@click.option("--reason", default="", help="For the journal.")
@_JSON
@on_gateway
def account_lock(where: Where, name: str, reason: str, as_json: bool) -> None:
    """Close an account: it gets in with nothing, until `unlock`. Its mailboxes go on receiving."""
    _tell(_of(where, name).do("lock", name=name, reason=reason), as_json)


@account.command("unlock")
@_NAME
@_JSON
@on_gateway
def account_unlock(where: Where, name: str, as_json: bool) -> None:
    """Open an account again, and forget every wrong password."""
    _tell(_of(where, name).do("unlock", name=name), as_json)


@account.command("delete")
@_NAME
@click.option("--yes", is_flag=True, help="Do not ask.")
@on_gateway
def account_delete(where: Where, name: str, yes: bool) -> None:
    """Delete an account with all it may log in with. Its mail, its keys and the journal stay."""
    gateway = _of(where, name)
    if not yes:
        click.confirm(f"Delete the account {name}", abort=True, err=True)
    gateway.do("delete", name=name)
    click.echo(f"deleted {name}")


@account.group("app-password")
def app_password() -> None:
    """Passwords for one telephone or program each."""


@app_password.command("add")
@_NAME
@click.argument("title", metavar="FOR")
@click.option("--only", "services", multiple=True, type=click.Choice([each.value for each in Service]))
@_JSON
@on_gateway
def app_password_add(where: Where, name: str, title: str, services: tuple[str, ...], as_json: bool) -> None:
    """Make an application password and show it, this once. FOR names what it is for."""
    made = _of(where, name).do("app-password.add", name=name, title=title, services=list(services))
    if as_json:
        click.echo(json.dumps(made, indent=1))
        return
    click.echo(made["password"])
    click.echo(f"Shown this once. To withdraw it: relais account app-password revoke {name} {made['id']}", err=True)


@app_password.command("revoke")
@_NAME
@click.argument("which", metavar="ID|FOR")
@_JSON
@on_gateway
def app_password_revoke(where: Where, name: str, which: str, as_json: bool) -> None:
    """Withdraw one application password."""
    _tell(_of(where, name).do("app-password.revoke", name=name, which=which), as_json)


@account.group("certificate")
def certificate() -> None:
    """Certificates that log in."""


_BINDING = click.option(
    "--by",
    "binding",
    type=click.Choice([each.value for each in Binding]),
    default=Binding.CERTIFICATE.value,
    show_default=True,
    help="What must be the same: this certificate, its key, or its subject and issuer.",
)


@certificate.command("bind")
@_NAME
@click.argument("file", type=_FILE)
@_BINDING
@_JSON
@on_gateway
def certificate_bind(where: Where, name: str, file: Path, binding: str, as_json: bool) -> None:
    """Let who holds the key of the certificate in FILE (PEM, intermediates after it) log in."""
    _bind(where, name, file, binding, "", as_json)


@certificate.command("renew")
@_NAME
@click.argument("identifier", metavar="ID")
@click.argument("file", type=_FILE)
@_BINDING
@_JSON
@on_gateway
def certificate_renew(where: Where, name: str, identifier: str, file: Path, binding: str, as_json: bool) -> None:
    """Bind the certificate in FILE, and withdraw the one of this ID in the same moment."""
    _bind(where, name, file, binding, identifier, as_json)


@certificate.command("withdraw")
@_NAME
@click.argument("identifier", metavar="ID")
@_JSON
@on_gateway
def certificate_withdraw(where: Where, name: str, identifier: str, as_json: bool) -> None:
    """End the binding of this ID."""
    _tell(_of(where, name).do("certificate.withdraw", name=name, id=identifier), as_json)


@account.group("oidc")
def oidc() -> None:
    """Subjects of an identity provider (Pro Santé Connect)."""


@oidc.command("link")
@_NAME
@click.argument("value", metavar="VALUE")
@click.option("--claim", default="SubjectNameID", show_default=True, help="Claim that has VALUE in its tokens.")
@click.option("--issuer", default="", help="Default: the one of [[oidc]].")
@_JSON
@on_gateway
def oidc_link(where: Where, name: str, value: str, claim: str, issuer: str, as_json: bool) -> None:
    """Let who the provider says is VALUE log in."""
    made = _of(where, name).do("oidc.link", name=name, value=value, claim=claim, issuer=issuer)
    if as_json:
        click.echo(json.dumps(made, indent=1))
    else:
        click.echo(made["id"])
    if not made["accepted"]:
        click.echo(f"No [[oidc]] section reads {claim} from tokens of {made['issuer']} yet.", err=True)


@oidc.command("unlink")
@_NAME
@click.argument("identifier", metavar="ID")
@_JSON
@on_gateway
def oidc_unlink(where: Where, name: str, identifier: str, as_json: bool) -> None:
    """End the link of this ID."""
    _tell(_of(where, name).do("oidc.unlink", name=name, id=identifier), as_json)


@account.command("grant")
@_NAME
@click.argument("address", required=False)
@click.option(
    "--right",
    type=click.Choice([each.value for each in Right]),
    default=Right.USE.value,
    show_default=True,
    help="use: read it and send from it; sign: write as it as well, signed with its key.",
)
@click.option("--member-of", "team", help="Instead of an address: all that this team may.")
@_JSON
@on_gateway
def account_grant(where: Where, name: str, address: str | None, right: str, team: str | None, as_json: bool) -> None:
    """Let an account use ADDRESS, which is another's; or make it a member of a team."""
    if (address is None) == (team is None):
        raise click.UsageError("name one ADDRESS, or a team with --member-of")
    gateway = _of(where, name)
    if address is not None:
        _tell(gateway.do("grant", name=name, address=address, right=right), as_json)
    else:
        _tell(gateway.do("join", name=name, team=team), as_json)


@account.command("revoke")
@_NAME
@click.argument("address", required=False)
@click.option("--member-of", "team", help="Instead of an address: end its membership.")
@_JSON
@on_gateway
def account_revoke(where: Where, name: str, address: str | None, team: str | None, as_json: bool) -> None:
    """End what an account was granted on ADDRESS; or its membership of a team."""
    if (address is None) == (team is None):
        raise click.UsageError("name one ADDRESS, or a team with --member-of")
    gateway = _of(where, name)
    if address is not None:
        _tell(gateway.do("revoke", name=name, address=address), as_json)
    else:
        _tell(gateway.do("leave", name=name, team=team), as_json)


def _bind(where: Where, name: str, file: Path, binding: str, replaces: str, as_json: bool) -> None:
    with file.open("rb") as opened:
        content = opened.read(_LONGEST_FILE)
    try:
        pem = content.decode("ascii")
    except UnicodeDecodeError:
        fail(f"{file} must hold the certificate in PEM, and may hold its intermediates.")
    if "PRIVATE KEY" in pem:
        fail(f"{file} holds a private key: give the certificate alone.")
    made = _of(where, name).do("certificate.bind", name=name, pem=pem, binding=binding, replaces=replaces)
    click.echo(json.dumps(made, indent=1) if as_json else made["id"])


def _of(where: Where, name: str) -> Accounts:
    """The gateway that has the account: by the domain of an address, else whoever knows the login."""
    places = where.places()
    if len(places) == 1:
        return Accounts(places[0])
    if "@" in name:
        near = [place for place in places if place.serves(name)]
        if len(near) == 1:
            return Accounts(near[0])
    known = [gateway for gateway in map(Accounts, places) if gateway.has(name)]
    if len(known) != 1:
        fail(f"{name} is not an account of exactly one operator here: name the operator's state with --state.")
    return known[0]


def _only(where: Where) -> Place:
    places = where.places()
    if len(places) != 1:
        fail("Several operators have their state here: name one with --state, or an --address.")
    return places[0]


def _validator(place: Place) -> Any:
    """From the anchors of the configuration, without revocation, which only a running gateway knows."""
    from trust.certificates import CertificateValidator

    if place.loaded is None:
        return None
    trust = place.loaded.settings.trust
    loaded: list[list[x509.Certificate]] = []
    for name in (trust.anchors, trust.intermediates):
        try:
            loaded.append(list(x509.load_pem_x509_certificates(place.loaded.path(name).read_bytes())) if name else [])
        except (OSError, ValueError, x509.InvalidVersion) as error:
            raise SettingsError(f"{place.loaded.path(name)} must hold PEM certificates") from error
    anchors, intermediates = loaded
    return CertificateValidator(anchors, intermediates)


def _state(row: dict[str, Any]) -> str:
    if row["closed"]:
        return "closed"
    return "locked" if row["guessing"]["locked_until"] or row["guessing"]["networks_locked"] else "open"


def _ways(row: dict[str, Any]) -> str:
    ways = ["password"] if row["password"] else []
    for key, word in (("application_passwords", "app-password"), ("certificates", "certificate"), ("oidc", "oidc")):
        if row[key]:
            ways.append(f"{word} x{len(row[key])}")
    return ", ".join(ways) or "no way to log in"


def _tell(shown: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(shown, indent=1, ensure_ascii=False))
        return
    guessing = shown["guessing"]
    click.echo(f"login      {shown['login']}  ({_state(shown)})")
    for each in shown["addresses"]:
        click.echo(f"address    {each}")
    click.echo(f"password   {'set' if shown['password'] else 'none'}")
    if shown["closed"]:
        click.echo(f"closed     since {shown['closed']}")
    if guessing["locked_until"]:
        click.echo(f"locked     until {guessing['locked_until']} for networks it is not used in")
    if guessing["networks_locked"]:
        click.echo(f"locked     in {guessing['networks_locked']} networks, for wrong passwords")
    for each in shown["application_passwords"]:
        only = f"  only {', '.join(each['services'])}" if each["services"] else ""
        click.echo(f"app        {each['id']}  {each['name']}{only}  last used {each['last_used'] or 'never'}")
    for each in shown["certificates"]:
        click.echo(f"cert       {each['id']}  by {each['binding']}  {each['subject']}  until {each['not_after'][:10]}")
    for each in shown["oidc"]:
        click.echo(f"oidc       {each['id']}  {each['claim']}={each['value']}  {each['issuer']}")
    for each in shown["granted"]:
        click.echo(f"may {each['right']:<6} {each['address']}")
    for each in shown["grants"]:
        click.echo(f"lets {each['right']:<5} {each['login']} on {each['address']}")
    for each in shown["teams"]:
        click.echo(f"member of  {each}")
    for each in shown["members"]:
        click.echo(f"member     {each}")
