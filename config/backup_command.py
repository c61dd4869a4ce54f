"""`relais backup` and `relais restore`: all a gateway, or `relais up`, keeps, brought off the machine and back.

They work on files, whether the gateway runs or not: SQLite lets another process read one moment of the database while
the gateway writes. As root they act as the owner of the state directory.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import msgspec

from config.backup.manifest import fingerprint_of
from config.backup.sources import RESTORING, Source
from config.backup.store import BackupError, BackupStore, parts, read_manifest
from config.backup.verifying import Verified, keys_by_fingerprint, verify
from config.key_places import Where, as_owner, fail
from config.node import open_database
from config.options import CONFIG, JSON, STATE
from config.privileges import PrivilegeError, drop
from config.settings import SettingsError, load
from config.vaults import vault_for, vault_of
from trust.memory import guard_memory
from trust.sealing import VaultError
from trust.secret_files import SecretFileError, credential, read_secret
from trust.vault import CREDENTIAL

_TARGET = click.argument("target", type=click.Path(file_okay=False, path_type=Path))
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_KEKS = click.option(
    "--kek", "keks", multiple=True, type=_FILE, help="File with the key-encryption key; one for each gateway."
)
_CUT = click.option("--cut", help="Which one; default: the newest.")


class _TargetGroup(click.Group):
    """`relais backup TARGET` without a word between."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["make", *args]
        return super().parse_args(ctx, args)


@click.group("backup", cls=_TargetGroup)
def backup() -> None:
    """Bring the whole state off the machine: `relais backup TARGET`, then `verify TARGET` where it was brought to."""


@contextmanager
def _sentences() -> Iterator[None]:
    """Instead of stack traces."""
    guard_memory(lock=False)
    try:
        yield
    except (BackupError, SettingsError, VaultError, SecretFileError, PrivilegeError) as error:
        fail(f"{str(error)[:1].upper()}{str(error)[1:]}.")


@backup.command("make")
@_TARGET
@STATE
@CONFIG
@click.option("--keep", type=click.IntRange(1), help="Afterwards, remove all but so many cuts.")
@JSON
def make(target: Path, state: Path, config: Path | None, keep: int | None, as_json: bool) -> None:
    """One consistent cut of database, mails, mailboxes, keys, accounts, journal and directory overlay into TARGET.

    Again into the same TARGET it copies only what is new. The key-encryption key is never in it: relais keys escrow.
    """
    from config.backup.cutting import Cutter

    target = target.absolute()
    with _sentences():
        sources = _sources(Where(state.absolute(), config))
        with _as_owner_of(sources[0].state, target):
            store = BackupStore(target)
            report = Cutter(sources, store, lambda sentence: click.echo(sentence, err=True)).run()
            removed = (0, 0)
            if keep is not None:
                with store.writing():
                    removed = store.keep_only(keep)
    if as_json:
        row = asdict(report) | {"at": report.at.isoformat(), "removed_cuts": removed[0], "removed_objects": removed[1]}
        click.echo(json.dumps(row, indent=1))
    else:
        click.echo(f"{report.cut}: {report.size} bytes, {report.copied} objects new, {report.reused} there already")
        if keep is not None:
            click.echo(f"removed {removed[0]} cuts and {removed[1]} objects")
    for note in report.notes:
        click.echo(f"Not in it: {note}.", err=True)


@backup.command("list")
@_TARGET
@JSON
def list_cuts(target: Path, as_json: bool) -> None:
    """The cuts in TARGET, the oldest first."""
    with _sentences():
        store = BackupStore(target.absolute())
        rows: list[dict[str, Any]] = []
        for name in store.cuts():
            for part in parts(store.cut(name)):
                manifest = read_manifest(part)
                rows.append({"cut": name} | msgspec.to_builtins(manifest))
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        click.echo(
            f"{row['cut']}  {row['host'] or '-':<35} {row['messages']} messages, {row['waiting']} under way, "
            f"{row['size']} bytes, key {row['key']}"
        )


@backup.command("verify")
@_TARGET
@_CUT
@_KEKS
@STATE
@CONFIG
@JSON
def verify_cut(
    target: Path, cut: str | None, keks: tuple[Path, ...], state: Path, config: Path | None, as_json: bool
) -> None:
    """Read every object of a cut again; exit status 1 when anything is not as it was.

    Needs no key; with the key-encryption key (of the state, or --kek) it also proves that nobody exchanged anything.
    """
    with _sentences():
        store = BackupStore(target.absolute())
        loaded = load(config) if config is not None else None
        held = _held(state) if loaded is None else _held(loaded.state, vault_for(loaded))
        given = [*map(_read_kek, keks), *held, *_handed_over()]
        found = verify(store, store.cut(cut), keys_by_fingerprint(given))
    if as_json:
        click.echo(json.dumps([_verified_row(each) for each in found], indent=1))
    else:
        for each in found:
            name = each.manifest.host or each.manifest.place or "gateway"
            how = "authentic" if each.authentic else f"whole, but not proved to be ours without key {each.manifest.key}"
            click.echo(f"{name}: {'; '.join(each.problems) or how}")
    sys.exit(1 if any(each.problems for each in found) else 0)


@click.command("restore")
@_TARGET
@STATE
@CONFIG
@_CUT
@_KEKS
@click.option("--heads", multiple=True, type=_FILE, help="Published heads of the journal to compare with.")
@click.option("--hold", is_flag=True, help="Hold what was under way: relais queue list, then release or drop it.")
@JSON
def restore(
    target: Path,
    state: Path,
    config: Path | None,
    cut: str | None,
    keks: tuple[Path, ...],
    heads: tuple[Path, ...],
    hold: bool,
    as_json: bool,
) -> None:
    """Bring a cut back into an empty state directory, and an empty database when --config names one (store.url).
    Nothing is ever overwritten.

    What was under way at the cut is delivered by the restored gateway and may arrive a second time; with --hold it
    waits for a person. Configuration that stood outside of the state comes to STATE/configuration, to be compared and
    put in place by hand.
    """
    from config.backup.restoring import Restore

    target, heads = target.absolute(), tuple(each.absolute() for each in heads)
    with _sentences(), ExitStack() as stack:
        loaded = load(config) if config is not None else None
        where = (loaded.state if loaded is not None else state).absolute()
        _refuse_running(where)
        handed = _handed_over()
        vaults = [vault_for(loaded)] if loaded is not None else []
        known = {fingerprint_of(each): each for each in (*map(_read_kek, keks), *_held(where, *vaults), *handed)}
        drop(where)
        store = BackupStore(target)
        server = None
        if loaded is not None and loaded.settings.store.url:
            server = stack.enter_context(closing(open_database(loaded)))
        done = Restore(
            store,
            store.cut(cut),
            where,
            known,
            lambda sentence: click.echo(sentence, err=True),
            heads,
            hold=hold,
            server=server,
            handed_over=frozenset(map(fingerprint_of, handed)),
        ).run()
    if as_json:
        rows = [
            asdict(each) | {"state": str(each.state), "manifest": msgspec.to_builtins(each.manifest)} for each in done
        ]
        click.echo(json.dumps(rows, indent=1))
    else:
        for each in done:
            click.echo(
                f"{each.state}: as of {each.manifest.cut_at}, {each.manifest.messages} messages, "
                f"{each.journal_entries} journal entries hold; {each.in_flight} deliveries were under way at the cut "
                f"and {'are held' if hold else 'may arrive a second time'}"
            )
    for each in done:
        for note in each.notes:
            click.echo(f"{note[:1].upper()}{note[1:]}.", err=True)


def _sources(where: Where) -> list[Source]:
    """One for each gateway; that of the first brings what they share."""
    places = where.places()
    if len(places) == 1 and (where.config is not None or places[0].state == where.state):
        configuration = where.config or places[0].state / "relais.toml"
        return [Source(places[0], "", None, configuration=configuration if configuration.exists() else None)]
    names = frozenset(each.name for each in places)
    return [
        Source(each, each.name, where.state if number == 0 else None, names, each.state / "relais.toml")
        for number, each in enumerate(places)
    ]


@contextmanager
def _as_owner_of(state: Path, target: Path) -> Iterator[None]:
    """As root: a new TARGET is made for the owner of the state, who alone then works."""
    if os.geteuid() == 0 and not target.exists():
        owner = state.stat()
        target.mkdir(mode=0o700, parents=True)
        os.chown(target, owner.st_uid, owner.st_gid)
    with as_owner(state):
        if target.exists() and not os.access(target, os.W_OK | os.X_OK, effective_ids=True):
            raise BackupError(f"{target} must be writable by the user who runs the gateway: give it to that user")
        yield


def _read_kek(file: Path) -> bytes:
    kek = read_secret(file, "the key-encryption key")
    try:
        fingerprint_of(kek)
    except ValueError as error:
        raise BackupError(f"{file} is no key-encryption key: {error}") from error
    return kek


def _held(state: Path, *vaults: Path) -> list[bytes]:
    """Keys that are in place already: survived, or recovered."""
    files = [vault_of(state) / "kek", *sorted(state.glob("*/vault/kek")), *(vault / "kek" for vault in vaults)]
    return [_read_kek(each) for each in files if each.exists()]


def _handed_over() -> list[bytes]:
    """The key that systemd keeps."""
    handed = credential(CREDENTIAL)
    return [_read_kek(handed)] if handed is not None else []


def _refuse_running(state: Path) -> None:
    running = [each for each in (state / "control.sock", *state.glob("*/control.sock")) if each.exists()]
    if running and not (state / RESTORING).exists():
        raise BackupError(f"a gateway runs with its state in {running[0].parent}: stop it, and choose an empty state")


def _verified_row(each: Verified) -> dict[str, Any]:
    return {
        "place": each.manifest.place,
        "host": each.manifest.host,
        "cut_at": each.manifest.cut_at,
        "objects": each.manifest.objects,
        "authentic": each.authentic,
        "problems": list(each.problems),
    }
