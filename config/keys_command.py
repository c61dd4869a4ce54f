"""`relais keys`: mailboxes' keys listed, imported, requested, installed, rotated, retired and checked.

The commands work on the vault's files, whether the gateway runs or not; a running one uses what they change from its
next mail on. Whatever changes something is in the journal (`config.key_journal`). As root they act as the owner of the
state directory, so that the gateway can read what they write; files on the command line are read and written as who
called.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from cryptography import x509

from config import logs
from config.key_journal import JournalUnavailableError, opened
from config.key_judging import judging, warn_of
from config.key_places import Place, Where, as_owner, fail
from config.keys_told import Given, generation_row, request_row, rows_of, tell
from config.lazy import LazyCommand
from config.options import CONFIG, STATE
from config.options import JSON as _JSON
from config.settings import SettingsError
from trust.addresses import mail_addresses
from trust.generations import (
    Generation,
    KeyUse,
    check_address,
    check_fitness,
    generation_id,
    mailbox_name,
    states,
)
from trust.keycheck import KeyFinding, Level, check_file, check_vault
from trust.keyfiles import MAX_FILE_BYTES, KeyFileError, KeyPair, PassphraseError, read_certificates, read_key_pairs
from trust.keys import KeyUnavailableError
from trust.memory import guard_memory
from trust.softkeys import KeyKind
from trust.vault import CREDENTIAL, KeyVault, NoKeyError, VaultError

_USES = [use.value for use in KeyUse]
_LEAST_ID = 6
_LONGEST_PASSPHRASE = 1024


def _command(work: Callable[..., None]) -> Callable[..., None]:
    """Where, as whom, and sentences instead of stack traces."""

    @STATE
    @CONFIG
    @functools.wraps(work)
    def command(state: Path, config: Path | None, **arguments: Any) -> None:
        logs.configure("ERROR")  # to standard error: the answer alone goes to standard output
        guard_memory(lock=False)
        try:
            work(Where(state, config), **arguments)
        except (SettingsError, VaultError, KeyUnavailableError, KeyFileError, JournalUnavailableError) as error:
            told = str(error).rstrip(".")
            plain = told.partition(" ")[0].isalpha()  # else it begins with the name of a file
            fail(f"{told[:1].upper() if plain else told[:1]}{told[1:]}.")
        except OSError as error:
            named = f"{error.filename}: " if error.filename else ""
            fail(f"{named}{error.strerror or type(error).__name__}; nothing more was done.")

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


for _name, _text in (
    ("escrow", "Split the key-encryption key into sheets to print and lock away apart."),
    ("recover", "Join such sheets, and put the key back."),
):
    keys.add_command(LazyCommand(_name, "config.escrow_command", _text))


@keys.command("list")
@click.argument("addresses", nargs=-1, metavar="[ADDRESS]...")
@_JSON
@_command
def keys_list(where: Where, addresses: tuple[str, ...], as_json: bool) -> None:
    """Every generation of every mailbox's keys, what it does now, and the requests that wait."""
    wanted = {mailbox_name(each) for each in addresses}
    rows: list[dict[str, Any]] = []
    for place in where.places():
        with as_owner(place.state):
            vault = place.open()
            generations, requests = vault.generations(), vault.requests()
        state = states(generations, datetime.now(UTC))
        rows += [generation_row(place, each, state[each]) for each in generations]
        rows += [request_row(place, each) for each in requests]
    rows = [row for row in rows if not wanted or row["address"] in wanted]
    if as_json:
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
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
    """Take keys with their certificates from a P12 file (or a PEM file with both) into the vault."""
    rows: list[dict[str, Any]] = []
    planned = []
    for pair in _key_pairs(file, _read(file), passphrase_file):
        mailbox = address
        if mailbox is None:
            named = mail_addresses(pair.certificate)
            if len(named) != 1:
                fail(f"The certificate in {file} does not name exactly one address: say which mailbox with --address.")
            mailbox = named[0]
        check_address(mailbox, pair.certificate)
        chosen = _fitting(pair.certificate, [KeyUse(use) for use in uses])
        planned.append((where.place_of(mailbox), mailbox, pair, chosen))
    for place, mailbox, pair, chosen in planned:
        with as_owner(place.state):
            vault = place.open_or_create()
            with opened(place, vault) as journal:
                for use in chosen:
                    with journal.act("import", mailbox, use, generation_id(pair.certificate)):
                        vault.install(mailbox, use, pair.key, pair.certificate, pair.chain)
            kept = [each for each in vault.generations() if each.certificate == pair.certificate]
        rows += rows_of(place, kept)
        warn_of(place, [pair.certificate], pair.chain)
    tell(rows, as_json)
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
    given = Given(place, out, as_json)
    with as_owner(place.state):
        vault = place.open_or_create()
        waiting = {each.use for each in vault.requests() if each.address == mailbox_name(address)}
        wanted = _chosen(uses)
        if waiting & set(wanted):
            fail(
                f"{address} has a request that waits: `relais keys pending` prints it again, `relais keys discard` "
                "forgets it."
            )
        with opened(place, vault) as journal, given:
            for use in wanted:
                with journal.act("request", address, use) as more:
                    made = vault.request(
                        address, use, KeyKind(kind) if kind else KeyKind.RSA_3072, distinguished, others, in_token=token
                    )
                    more |= {"object_id": made.id, "kept_in": "token" if made.in_token else "vault"}
                given.add(made)
    given.tell()


@keys.command("pending")
@click.argument("addresses", nargs=-1, metavar="[ADDRESS]...")
@_OUT
@_JSON
@_command
def keys_pending(where: Where, addresses: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Print again the requests that wait for their certificates."""
    wanted = {mailbox_name(each) for each in addresses}
    given = Given(None, out, as_json)
    for place in where.places():
        given.place = place
        with as_owner(place.state):
            waiting = place.open().requests()
        for each in waiting:
            if not wanted or each.address in wanted:
                given.add(each)
    given.tell("No request waits.")


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
    wanted = {mailbox_name(each) for each in addresses}
    chosen = _chosen(uses)
    given = Given(None, out, as_json)
    due: dict[Place, list[tuple[str, KeyUse]]] = {}
    for place in dict.fromkeys(places):
        with as_owner(place.state):
            due[place] = _due(place.open(), wanted, chosen, expiring)
    found = {address for each in due.values() for address, _ in each}
    for address in addresses:
        if mailbox_name(address) not in found:
            fail(
                f"{address} has no such key to follow, or its successor is requested already: see relais keys list; "
                "nothing was made."
            )
    for place, each_due in due.items():
        if not each_due:
            continue
        given.place = place
        with as_owner(place.state):
            vault = place.open()
            with opened(place, vault) as journal, given:
                for address, use in each_due:
                    with journal.act("rotate", address, use) as more:
                        made = vault.rotate(address, use, KeyKind(kind) if kind else None, in_token=in_token)
                        more |= {"object_id": made.id, "kept_in": "token" if made.in_token else "vault"}
                    given.add(made)
    given.tell("Nothing to rotate.")


@keys.command("install")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_JSON
@_command
def keys_install(where: Where, files: tuple[Path, ...], as_json: bool) -> None:
    """Give requested keys their certificates: leaves and intermediates, PEM, DER or PKCS#7, in any order."""
    brought: dict[x509.Certificate, Path] = {}
    for file in files:
        try:
            for each in read_certificates(_read(file)):
                brought.setdefault(each, file)
        except KeyFileError as error:
            fail(f"{file} {error}.")
    certificates = list(brought)
    rows: list[dict[str, Any]] = []
    placed: set[x509.Certificate] = set()
    nowhere: NoKeyError | None = None
    problem: VaultError | None = None
    for place in where.places():
        with as_owner(place.state):
            vault = place.open()
            try:
                mine = vault.concerned(certificates)
            except NoKeyError as error:
                nowhere = error
                continue
            except VaultError as error:  # told at the end: it keeps nobody else's certificate away
                problem = error
                continue
            with opened(place, vault) as journal, ExitStack() as acts:
                for address, use, certificate in mine:
                    acts.enter_context(journal.act("install", address, use, generation_id(certificate)))
                installed = vault.install_certificates(certificates)
        rows += rows_of(place, installed)
        placed |= {each.certificate for each in installed}
        warn_of(place, [each.certificate for each in installed], certificates)
    if not placed and (problem or nowhere) is not None:
        raise problem or nowhere or AssertionError
    tell(rows, as_json)
    if problem is not None:
        raise problem
    stray = [each for each in certificates if each not in placed and not _is_authority(each)]
    for each in stray:
        click.echo(
            f"No key here waits for the certificate in {brought[each]}, serial {each.serial_number:x}.", err=True
        )
    sys.exit(1 if stray else 0)


@keys.command("retire")
@click.argument("identifiers", nargs=-1, required=True, metavar="ID...")
@_JSON
@_command
def keys_retire(where: Where, identifiers: tuple[str, ...], as_json: bool) -> None:
    """Take keys out of use: they never sign again, and still decrypt old mail."""
    rows: list[dict[str, Any]] = []
    for place, given in _found(where, identifiers, lambda vault: [each.id for each in vault.generations()]):
        with as_owner(place.state):
            vault = place.open()
            known = vault.generations()
            retired: list[Generation] = []
            with opened(place, vault) as journal:
                for identifier in dict.fromkeys(given):
                    with ExitStack() as acts:
                        for each in known:
                            if each.id == identifier:
                                acts.enter_context(journal.act("retire", each.address, each.use, identifier))
                        retired += vault.retire(identifier)
            able = {each.address for each in retired if vault.signer(each.address) is not None}
        rows += rows_of(place, retired)
        for address in sorted({each.address for each in retired if each.use is KeyUse.SIGNING} - able):
            click.echo(f"{address} cannot sign any more: rotate its key.", err=True)
    tell(rows, as_json)


@keys.command("discard")
@click.argument("identifiers", nargs=-1, required=True, metavar="ID...")
@_JSON
@_command
def keys_discard(where: Where, identifiers: tuple[str, ...], as_json: bool) -> None:
    """Forget requests and destroy their keys, which have never had a certificate here."""
    rows: list[dict[str, Any]] = []
    for place, given in _found(where, identifiers, lambda vault: [each.id for each in vault.requests()]):
        with as_owner(place.state):
            vault = place.open()
            waiting = {each.id: each for each in vault.requests()}
            with opened(place, vault) as journal:
                for identifier in dict.fromkeys(given):
                    each = waiting[identifier]
                    with journal.act("discard", each.address, each.use, identifier):
                        rows.append(request_row(place, vault.discard(identifier)) | {"state": "discarded"})
    if as_json:
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    for row in rows:
        click.echo(f"discarded {row['id']}")


@keys.command("rewrap")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Where systemd has the key-encryption key: the file, not there yet, that the new one is written to.",
)
@click.option("--forget-old", is_flag=True, help="Instead: from now on only the key that is there opens the vault.")
@_JSON
@_command
def keys_rewrap(where: Where, out: Path | None, forget_old: bool, as_json: bool) -> None:
    """Replace the key-encryption key, and seal every mailbox's key anew. The gateway may run."""
    if out is not None and forget_old:
        raise click.UsageError("--out makes a new key, --forget-old ends the old one: one after the other")
    places = where.places()
    if len(places) > 1:
        fail("There are several operators here: name one with --state or --config.")
    (place,) = places
    with as_owner(place.state):
        vault = place.open()
        with opened(place, vault) as journal, journal.act("forget-old" if forget_old else "rewrap") as more:
            sealed = 0
            if forget_old:
                vault.forget_old_key()
            else:
                sealed = vault.renew_key(out)
                more["files"] = str(sealed)
        both = vault.has_two_keys
    if as_json:
        click.echo(json.dumps({"sealed_anew": sealed, "old_key_opens": both}, indent=1))
    else:
        click.echo(
            f"{sealed} files are sealed anew." if not forget_old else "Only the key that is there opens the vault."
        )
    if out is not None:
        click.echo(
            f"Give {out} to systemd as {CREDENTIAL}, remove it, start again, then relais keys rewrap --forget-old.",
            err=True,
        )
    elif not forget_old:
        click.echo("Back up the new key-encryption key apart from the rest, then start the gateway again.", err=True)


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
        with ExitStack() as stack:
            validator = None if files else stack.enter_context(judging(place))
            stack.enter_context(as_owner(place.state))
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


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except Exception:  # there is none, or it cannot be read: certificates are read lazily
        return certificate.subject == certificate.issuer


def _due(vault: KeyVault, wanted: set[str], uses: Sequence[KeyUse], expiring: int | None) -> list[tuple[str, KeyUse]]:
    """Mailboxes and uses to rotate: those named, or those that end soon, without what is requested already."""
    requested = {(each.address, each.use) for each in vault.requests()}
    last: dict[tuple[str, KeyUse], datetime] = {}
    for each in vault.generations():
        if each.use in uses and (each.address, each.use) not in requested:
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


def _key_pairs(file: Path, content: bytes, passphrase_file: Path | None) -> list[KeyPair]:
    """Asks for the passphrase only when there is one to ask for."""
    given = _read(passphrase_file).split(b"\n", 1)[0].rstrip(b"\r") if passphrase_file else None
    try:
        try:
            return read_key_pairs(content, given)
        except PassphraseError:
            if given is not None:
                raise
            asked = click.prompt(f"Passphrase of {file}", hide_input=True, err=True)
            return read_key_pairs(content, asked.encode("utf-8", "surrogateescape")[:_LONGEST_PASSPHRASE])
    except KeyFileError as error:
        fail(f"{file} {error}.")


def _fitting(certificate: x509.Certificate, wanted: Sequence[KeyUse]) -> list[KeyUse]:
    """What is wanted, by default what the certificate allows. Raises `VaultError` when it does not allow that here."""
    fitting = []
    problem: VaultError | None = None
    for use in wanted or KeyUse:
        try:
            check_fitness(use, certificate)
            fitting.append(use)
        except VaultError as error:
            problem = error
    if problem is not None and (wanted or not fitting):
        raise problem
    return fitting


def _chosen(uses: Sequence[str]) -> list[KeyUse]:
    return [KeyUse(use) for use in dict.fromkeys(uses)] or list(KeyUse)


def _in_token(place: Place) -> bool:
    return place.loaded is not None and place.loaded.settings.keys.new_keys == "token"


def _files_of(path: Path) -> list[Path]:
    return sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]


def _read(file: Path) -> bytes:
    """No more than shows that it is too large."""
    with file.open("rb") as opened:
        return opened.read(MAX_FILE_BYTES + 1)
