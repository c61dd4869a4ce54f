"""`relais keys escrow` and `relais keys recover`: the key-encryption key in shares on paper, and back.

`config.keys_command` has them in its group. They work on files, whether the gateway runs or not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click

from config.key_places import Place, Where, as_owner, fail
from config.options import CONFIG, JSON, STATE
from config.settings import SettingsError
from trust.escrow import MOST_SHARES, EscrowError, Share, belongs_to, fingerprint, join, read_share, sheet, split
from trust.key_ring import read_kek
from trust.memory import guard_memory
from trust.sealing import VaultError
from trust.secret_files import SecretFileError
from trust.store.durable import make_private_directory, write_durably

_LONGEST_SHEET = 64 * 1024


@contextmanager
def _sentences() -> Iterator[None]:
    """Instead of stack traces; and no share or key leaves through a core dump."""
    guard_memory(lock=False)
    try:
        yield
    except (EscrowError, SettingsError, SecretFileError, VaultError) as error:
        fail(f"{str(error)[:1].upper()}{str(error)[1:]}.")


@click.command("escrow")
@click.option("--shares", type=click.IntRange(2, MOST_SHARES), default=2, show_default=True, help="Sheets to make.")
@click.option(
    "--needed", type=click.IntRange(2, MOST_SHARES), default=2, show_default=True, help="Sheets that suffice."
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder; default: printed here.")
@STATE
@CONFIG
@JSON
def escrow(shares: int, needed: int, out: Path | None, state: Path, config: Path | None, as_json: bool) -> None:
    """Split the key-encryption key into sheets to print and lock away apart: its loss is the loss of all mail.

    Fewer sheets than are needed open nothing. New sheets do not make old ones useless.
    """
    with _sentences():
        rows = []
        for place in Where(state, config).places():
            with as_owner(place.state):
                kek = _kek_of(place)
            made = split(kek, shares, needed)
            host = place.loaded.settings.operator.host if place.loaded else place.name
            today = f"{datetime.now(UTC):%Y-%m-%d}"
            for share in made:
                text, file = sheet(share, host, today, shares), ""
                if out is not None:
                    make_private_directory(out)
                    path = out / f"{host}-share-{share.number}-of-{shares}.txt"
                    if path.exists():
                        raise EscrowError(f"{path} exists: older sheets are not overwritten")
                    write_durably(path, text.encode("ascii"), replace=False)
                    file = str(path)
                elif not as_json:
                    click.echo(text)
                rows.append({"operator": place.name, "key": share.fingerprint, "number": share.number, "file": file})
                if as_json and out is None:
                    rows[-1]["words"] = share.words
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    elif out is not None:
        for row in rows:
            click.echo(f"{row['file']}  key {row['key']}")
        click.echo("Print each, bring them to different places, then remove the files (shred -u).", err=True)


@click.command("recover")
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="[SHARE]...")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="New file for the key, for relais restore."
)
@STATE
@CONFIG
@JSON
def recover(files: tuple[Path, ...], out: Path | None, state: Path, config: Path | None, as_json: bool) -> None:
    """Join shares, typed into files or asked for, and put the key back where its vault misses it, or into --out."""
    with _sentences():
        kek = join(_given(files) if files else _asked())
        if out is not None:
            try:
                write_durably(out, kek, replace=False)
            except FileExistsError:
                raise EscrowError(f"{out} exists: name a new file") from None
            told = str(out)
        else:
            told = str(_put_back(kek, Where(state, config).places()))
    row = {"key": fingerprint(kek), "file": told}
    click.echo(json.dumps(row, indent=1) if as_json else f"key {row['key']} is in {told}")


def _given(files: tuple[Path, ...]) -> list[Share]:
    shares = []
    for file in files:
        try:
            with file.open("rb") as opened:
                shares.append(read_share(opened.read(_LONGEST_SHEET).decode("ascii", "replace")))
        except EscrowError as error:
            raise EscrowError(f"{file}: {error}") from None
    return shares


def _asked() -> list[Share]:
    """One after the other, until there are as many as are needed; a mistyped one is asked for again."""
    shares: list[Share] = []
    while not shares or len({each.number for each in shares}) < shares[0].needed:
        words = click.prompt(f"Words of share {len(shares) + 1}", hide_input=True, err=True)
        try:
            shares.append(read_share(words))
        except EscrowError as error:
            click.echo(f"{str(error)[:1].upper()}{str(error)[1:]}.", err=True)
    return shares


def _kek_of(place: Place) -> bytes:
    """Raises `EscrowError` when what is there is not the vault's."""
    kek, file = read_kek(place.vault)
    if not belongs_to(kek, place.vault):
        raise EscrowError(f"{file} is not the key this vault was made with")
    return kek


def _put_back(kek: bytes, places: list[Place]) -> Path:
    for place in places:
        root = place.vault
        with as_owner(place.state):
            if not (root / "check").exists() or not belongs_to(kek, root):
                continue
            if (root / "kek").exists():
                raise EscrowError(f"{root / 'kek'} is there already: only a missing key is put back")
            write_durably(root / "kek", kek, replace=False)
            return root / "kek"
    raise EscrowError(
        f"key {fingerprint(kek)} is not that of the vault in {places[0].vault}: give --out to keep it all the same"
    )
