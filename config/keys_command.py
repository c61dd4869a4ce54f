"""`relais keys`: mailboxes' keys listed, imported, requested, installed, rotated, retired and checked.

The commands work on the vault's files, whether the gateway runs or not; a running one uses what they change from its
next mail on. As root they act as the owner of the state directory, so that the gateway can read what they write; files
on the command line are read and written as who called.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from config.key_places import Place, Where, as_owner, fail
from config.options import CONFIG, STATE
from config.options import JSON as _JSON
from config.settings import SettingsError
from trust.addresses import mail_addresses
from trust.certificates import CertificateValidator
from trust.generations import Generation, KeyRequest, KeyState, KeyUse, check_address, check_fitness, states
from trust.keycheck import KeyFinding, Level, check_file, check_vault
from trust.keyfiles import MAX_FILE_BYTES, KeyFileError, KeyPair, PassphraseError, read_certificates, read_key_pair
from trust.keys import KeyUnavailableError
from trust.memory import guard_memory
from trust.softkeys import KeyKind
from trust.store.durable import write_durably
from trust.vault import KeyVault, VaultError

_USES = [use.value for use in KeyUse]
_LEAST_ID = 6
_LONGEST_PASSPHRASE = 1024


def _command(work: Callable[..., None]) -> Callable[..., None]:
    """Where, as whom, and sentences instead of stack traces."""

    @STATE
    @CONFIG
    @functools.wraps(work)
    def command(state: Path, config: Path | None, **arguments: Any) -> None:
        guard_memory(lock=False)
        try:
            work(Where(state, config), **arguments)
        except (SettingsError, VaultError, KeyUnavailableError, KeyFileError) as error:
            fail(f"{str(error)[:1].upper()}{str(error)[1:]}.")

    return command


_USE = click.option("--use", "uses", type=click.Choice(_USES), multiple=True, help="Only this use; default: both.")
_KIND = click.option("--kind", type=click.Choice([kind.value for kind in KeyKind]), help="Kind of key.")
_PLACE = click.option(
    "--token/--vault", "in_token", default=None, help="Make the key in the token, or in the vault; default: [keys]."
)
_OUT = click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for the requests; default: standard output."
)


@click.group("keys")
def keys() -> None:
    """Look after mailboxes' keys: request, install, rotate, retire, check."""


@keys.command("list")
@click.argument("addresses", nargs=-1, metavar="[ADDRESS]...")
@_JSON
@_command
def keys_list(where: Where, addresses: tuple[str, ...], as_json: bool) -> None:
    """Every generation of every mailbox's keys, what it does now, and the requests that wait."""
    wanted = {each.lower() for each in addresses}
    rows: list[dict[str, Any]] = []
    for place in where.places():
        with as_owner(place.state):
            vault = place.open()
            generations, requests = vault.generations(), vault.requests()
        state = states(generations, datetime.now(UTC))
        rows += [_generation_row(place, each, state[each.id]) for each in generations]
        rows += [_request_row(place, each) for each in requests]
    rows = [row for row in rows if not wanted or row["address"] in wanted]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    if not rows:
        click.echo("No keys.")
    for row in rows:
        ends = row["not_after"][:10] or "-"
        click.echo(f"{row['id']}  {row['use']:<10} {row['state']:<9} {ends:<10}  {row['kept_in']:<5}  {row['address']}")


@keys.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--address", help="The mailbox; default: the one address the certificate names.")
@click.option("--use", "uses", type=click.Choice(_USES), multiple=True, help="Default: what the certificate allows.")
@click.option(
    "--passphrase-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="First line is the passphrase; default: asked for.",
)
@_JSON
@_command
def keys_import(
    where: Where,
    file: Path,
    address: str | None,
    uses: tuple[str, ...],
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Take a key with its certificate from a P12 file (or a PEM file with both) into the vault."""
    pair = _key_pair(file, _read(file), passphrase_file)
    if address is None:
        named = mail_addresses(pair.certificate)
        if len(named) != 1:
            fail(f"The certificate in {file} does not name exactly one address: say which mailbox with --address.")
        address = named[0]
    check_address(address, pair.certificate)
    chosen = [KeyUse(use) for use in uses] or _fitting(pair.certificate)
    place = where.place_of(address)
    with as_owner(place.state):
        vault = place.open_or_create()
        for use in chosen:
            vault.install(address, use, pair.key, pair.certificate, pair.chain)
        kept = [each for each in vault.generations() if each.certificate == pair.certificate]
    _tell(place, kept, as_json)
    click.echo(f"Now remove {file}, or keep it where nobody reads it.", err=True)


@keys.command("request")
@click.argument("address")
@_USE
@_KIND
@_PLACE
@click.option("--subject", metavar="RFC4514", help="Subject asked for; default: the address as common name.")
@click.option("--name", "names", multiple=True, metavar="ADDRESS", help="A further address for the certificate.")
@_OUT
@_JSON
@_command
def keys_request(
    where: Where,
    address: str,
    uses: tuple[str, ...],
    kind: str | None,
    in_token: bool | None,
    subject: str | None,
    names: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Make a mailbox's keys, and the requests to send to the certificate authority."""
    try:
        distinguished = x509.Name.from_rfc4514_string(subject) if subject else None
        others = [x509.RFC822Name(each) for each in names]
    except ValueError:
        raise click.BadParameter(
            "--subject takes a distinguished name such as CN=Cabinet,O=Exemple,C=FR, --name an ASCII address"
        ) from None
    place = where.place_of(address)
    token = _in_token(place) if in_token is None else in_token
    with as_owner(place.state):
        vault = place.open_or_create()
        made = [
            vault.request(
                address, use, KeyKind(kind) if kind else KeyKind.RSA_3072, distinguished, others, in_token=token
            )
            for use in _chosen(uses)
        ]
    _give(place, made, out, as_json)


@keys.command("rotate")
@click.argument("addresses", nargs=-1, metavar="[ADDRESS]...")
@click.option(
    "--expiring", type=click.IntRange(1, 3650), metavar="DAYS", help="Every key that ends within so many days."
)
@_USE
@_KIND
@_PLACE
@_OUT
@_JSON
@_command
def keys_rotate(
    where: Where,
    addresses: tuple[str, ...],
    expiring: int | None,
    uses: tuple[str, ...],
    kind: str | None,
    in_token: bool | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Make the next generation of keys and its requests, like the newest one; the old keys serve until then."""
    if bool(addresses) == (expiring is not None):
        raise click.UsageError("name the mailboxes, or say --expiring DAYS")
    places = where.places() if expiring is not None else [where.place_of(each) for each in addresses]
    wanted = {each.lower() for each in addresses}
    for place in dict.fromkeys(places):
        with as_owner(place.state):
            vault = place.open()
            due = _due(vault, wanted, [use.value for use in _chosen(uses)], expiring)
            made = [
                vault.rotate(address, use, KeyKind(kind) if kind else None, in_token=in_token) for address, use in due
            ]
        if not made and addresses:
            fail("There is no such key to follow, or its successor is requested already: see relais keys list.")
        _give(place, made, out, as_json)


@keys.command("install")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_JSON
@_command
def keys_install(where: Where, files: tuple[Path, ...], as_json: bool) -> None:
    """Give requested keys their certificates: leaves and intermediates, PEM, DER or PKCS#7, in any order."""
    certificates: list[x509.Certificate] = []
    for file in files:
        try:
            certificates += read_certificates(_read(file))
        except KeyFileError as error:
            fail(f"{file} {error}.")
    problem: VaultError | None = None
    for place in where.places():
        with as_owner(place.state):
            vault = place.open()
            try:
                installed = vault.install_certificates(certificates)
            except VaultError as error:
                problem = error
                continue
        _tell(place, installed, as_json)
        return
    if problem is not None:
        raise problem


@keys.command("retire")
@click.argument("identifiers", nargs=-1, required=True, metavar="ID...")
@_JSON
@_command
def keys_retire(where: Where, identifiers: tuple[str, ...], as_json: bool) -> None:
    """Take generations out of use: they never sign again, and still decrypt old mail."""
    for place, given in _found(where, identifiers, lambda vault: [each.id for each in vault.generations()]):
        with as_owner(place.state):
            vault = place.open()
            retired = [vault.retire(identifier) for identifier in given]
            able = {each.address for each in retired if vault.signer(each.address) is not None}
        _tell(place, retired, as_json)
        for each in retired:
            if each.use is KeyUse.SIGNING and each.address not in able:
                click.echo(f"{each.address} cannot sign any more: rotate its key.", err=True)


@keys.command("discard")
@click.argument("identifiers", nargs=-1, required=True, metavar="ID...")
@_command
def keys_discard(where: Where, identifiers: tuple[str, ...]) -> None:
    """Forget requests and destroy their keys, which have never had a certificate here."""
    for place, given in _found(where, identifiers, lambda vault: [each.id for each in vault.requests()]):
        with as_owner(place.state):
            vault = place.open()
            for identifier in given:
                vault.discard(identifier)
                click.echo(f"discarded {identifier}")


@keys.command("check")
@click.argument("files", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--days", type=click.IntRange(0, 3650), default=30, show_default=True, help="What ends sooner is told.")
@_JSON
@_command
def keys_check(where: Where, files: tuple[Path, ...], days: int, as_json: bool) -> None:
    """Say what is wrong with the keys, or with FILES somebody brings; exit status 1 when there is a problem."""
    now = datetime.now(UTC)
    contents = [(each, _read(each)) for file in files for each in _files_of(file)]
    found: list[tuple[str, KeyFinding]] = []
    places = where.places()
    for place in places:
        validator = None if files else _validator(place)
        with as_owner(place.state):
            vault = place.open()
            if not files:
                found += [(place.name, each) for each in check_vault(vault, now, validator, timedelta(days=days))]
            elif len(places) == 1:
                found += [("", each) for path, content in contents for each in check_file(path, content, vault)]
    if files and len(places) > 1:  # whose they are is for `install` to find out
        found = [("", each) for path, content in contents for each in check_file(path, content)]
    if as_json:
        rows = [
            {
                "operator": operator,
                "level": each.level.value,
                "code": each.code,
                "subject": each.subject,
                "text": each.text,
            }
            for operator, each in found
        ]
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        for _, each in found:
            click.echo(f"{each.level.value:<8} {each.subject}: {each.text}")
        if not found:
            click.echo("Nothing is wrong.")
    sys.exit(1 if any(each.level is Level.PROBLEM for _, each in found) else 0)


def _generation_row(place: Place, each: Generation, state: KeyState) -> dict[str, Any]:
    return {
        "id": each.id,
        "operator": place.name,
        "address": each.address,
        "use": each.use.value,
        "state": state.value,
        "serial": f"{each.certificate.serial_number:x}",
        "not_before": each.certificate.not_valid_before_utc.isoformat(),
        "not_after": each.certificate.not_valid_after_utc.isoformat(),
        "kept_in": "token" if each.in_token else "vault",
        "retired_at": each.retired_at.isoformat() if each.retired_at else "",
    }


def _request_row(place: Place, each: KeyRequest) -> dict[str, Any]:
    return {
        "id": each.id,
        "operator": place.name,
        "address": each.address,
        "use": each.use.value,
        "state": "requested",
        "serial": "",
        "not_before": "",
        "not_after": "",
        "kept_in": "token" if each.in_token else "vault",
        "retired_at": "",
    }


def _tell(place: Place, kept: Sequence[Generation], as_json: bool) -> None:
    """What generations do after a command."""
    with as_owner(place.state):
        state = states(place.open().generations(), datetime.now(UTC))
    rows = [_generation_row(place, each, state[each.id]) for each in kept]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        click.echo(f"{row['id']}  {row['use']:<10} {row['state']:<9} until {row['not_after'][:10]}  {row['address']}")


def _give(place: Place, made: Sequence[KeyRequest], out: Path | None, as_json: bool) -> None:
    """Requests to whoever sends them to the authority: as files, as JSON, or as they are."""
    rows = []
    for each in made:
        pem = each.request.public_bytes(Encoding.PEM)
        row = _request_row(place, each) | {"request": pem.decode("ascii"), "file": ""}
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            path = out / f"{each.use.value}-{each.id}.csr.pem"
            write_durably(path, pem)
            row["file"] = str(path)
        rows.append(row)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        click.echo(row["file"] or row["request"].rstrip())
    if not rows:
        click.echo("Nothing to rotate.")


def _due(vault: KeyVault, wanted: set[str], uses: list[str], expiring: int | None) -> list[tuple[str, KeyUse]]:
    """Mailboxes and uses to rotate: those named, or those that end soon, without what is requested already."""
    requested = {(each.address, each.use) for each in vault.requests()}
    last: dict[tuple[str, KeyUse], datetime] = {}
    for each in vault.generations():
        if each.use.value in uses and (each.address, each.use) not in requested:
            ends = datetime.min.replace(tzinfo=UTC) if each.retired_at else each.certificate.not_valid_after_utc
            key = each.address, each.use
            last[key] = max(ends, last.get(key, ends))
    if expiring is None:
        return [key for key in last if key[0] in wanted]
    limit = datetime.now(UTC) + timedelta(days=expiring)
    return [key for key, ends in last.items() if ends < limit]


def _found(
    where: Where, identifiers: Sequence[str], known: Callable[[KeyVault], list[str]]
) -> list[tuple[Place, list[str]]]:
    """Identifiers, or beginnings of them, by the vault that knows them; fails for one that is nowhere or ambiguous."""
    here: dict[str, list[tuple[Place, str]]] = {each: [] for each in identifiers}
    for place in where.places():
        with as_owner(place.state):
            ids = list(dict.fromkeys(known(place.open())))
        for each in identifiers:
            short = each.lower()
            here[each] += [(place, full) for full in ids if len(short) >= _LEAST_ID and full.startswith(short)]
    by_place: dict[Place, list[str]] = {}
    for each, matches in here.items():
        if len(matches) != 1:
            fail(f"{each} is not the identifier of exactly one key here: relais keys list shows them.")
        by_place.setdefault(matches[0][0], []).append(matches[0][1])
    return list(by_place.items())


def _key_pair(file: Path, content: bytes, passphrase_file: Path | None) -> KeyPair:
    """Asks for the passphrase only when there is one to ask for."""
    given = _read(passphrase_file).split(b"\n", 1)[0].rstrip(b"\r") if passphrase_file else None
    try:
        try:
            return read_key_pair(content, given)
        except PassphraseError:
            if given is not None:
                raise
            asked = click.prompt(f"Passphrase of {file}", hide_input=True, err=True)
            return read_key_pair(content, asked.encode()[:_LONGEST_PASSPHRASE])
    except KeyFileError as error:
        fail(f"{file} {error}.")


def _fitting(certificate: x509.Certificate) -> list[KeyUse]:
    """What the certificate allows. Raises `VaultError` when it allows nothing here."""
    fitting = []
    problem: VaultError | None = None
    for use in KeyUse:
        try:
            check_fitness(use, certificate)
            fitting.append(use)
        except VaultError as error:
            problem = error
    if not fitting and problem is not None:
        raise problem
    return fitting


def _chosen(uses: Sequence[str]) -> list[KeyUse]:
    return [KeyUse(use) for use in dict.fromkeys(uses)] or list(KeyUse)


def _in_token(place: Place) -> bool:
    return place.loaded is not None and place.loaded.settings.keys.new_keys == "token"


def _validator(place: Place) -> CertificateValidator | None:
    """From the anchors of the configuration; None where there is none to be had, which is told."""
    if place.loaded is None:
        click.echo("Chains are not checked: name the operator's relais.toml with --config.", err=True)
        return None
    trust = place.loaded.settings.trust
    loaded: list[list[x509.Certificate]] = []
    for name in (trust.anchors, trust.intermediates):
        try:
            loaded.append(read_certificates(place.loaded.path(name).read_bytes()) if name else [])
        except (OSError, KeyFileError):
            click.echo(f"Chains are not checked: {place.loaded.path(name)} cannot be read.", err=True)
            return None
    anchors, intermediates = loaded
    return CertificateValidator(anchors, intermediates)


def _files_of(path: Path) -> list[Path]:
    return sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]


def _read(file: Path) -> bytes:
    """No more than shows that it is too large."""
    with file.open("rb") as opened:
        return opened.read(MAX_FILE_BYTES + 1)
