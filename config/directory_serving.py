"""`relais directory serve` and `load`: a slapd for the directory of relais.toml, and its first load.

Who runs an OpenLDAP of his own needs neither. Passwords are read from files and never appear on a command line.
"""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import click

from config.directory_sync import HOLD_REASONS, tell_judged, tell_loaded
from config.settings import Loaded, SettingsError
from config.settings import load as load_settings
from config.synchronising import first_load, synchronisation_options
from directory.load import HeldFilesError, LoadReport
from directory.national import find
from directory.packed import ExtractionError
from directory.slapd import PrivateSlapd, SlapdError, SlapdOptions

_CONFIG = click.option(
    "--config",
    type=click.Path(path_type=Path),
    required=True,
    help="The operator's relais.toml, with directory.server.",
)


@click.command("serve")
@_CONFIG
def serve(config: Path) -> None:
    """Run the directory's slapd in the foreground, as the user who calls; SIGTERM ends it.

    Its configuration is written anew from directory.server at each start.
    """
    try:
        slapd = private_slapd(load_settings(config))
        slapd.prepare()
        argv = slapd.command()
    except (SettingsError, SlapdError, OSError) as error:
        _fail(error)
    os.execv(argv[0], argv)  # noqa: S606 - the process itself becomes slapd, for whoever supervises it


@click.command("load")
@_CONFIG
@click.argument(
    "paths", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True), metavar="FILE|FOLDER..."
)
@click.option("--accept", multiple=True, type=click.Choice(HOLD_REASONS), help="Load although this holds the files.")
def load(config: Path, paths: tuple[Path, ...], accept: tuple[str, ...]) -> None:
    """Fill the empty directory, while it is stopped, from the register's files, in one go: all or nothing.

    What holds a synchronisation's files holds these. Afterwards `relais directory sync` keeps it in step.
    """
    report = LoadReport()
    try:
        loaded = load_settings(config)
        slapd = private_slapd(loaded)
        slapd.prepare()
        made = first_load(synchronisation_options(loaded), find(paths), report, accept, _folder(loaded))
        with closing(made):
            count = slapd.load(made)
    except HeldFilesError:
        tell_judged(report)
        raise click.ClickException("Nothing was loaded: the files are held.") from None
    except (SettingsError, SlapdError, ExtractionError, OSError) as error:
        _fail(error)
    tell_loaded(report)
    click.echo(f"{count} entries loaded.")


def private_slapd(loaded: Loaded) -> PrivateSlapd:
    """The slapd that `directory.server` describes. Raises `SettingsError`."""
    section = loaded.settings.directory
    server = section.server
    if not server.chain or not server.key or not section.ca:
        raise SettingsError("directory.server needs chain and key, and directory.ca the roots they chain to")
    try:
        slapd = PrivateSlapd(
            SlapdOptions(
                state=_folder(loaded),
                port=server.port,
                certificate_chain=loaded.path(server.chain),
                key=loaded.path(server.key),
                ca=loaded.path(section.ca),
                admin_password=_password(loaded, section.writer_password_file, "directory.writer_password_file"),
                gateway_password=_password(loaded, section.password_file, "directory.password_file"),
                base=section.base,
                address=server.address,
                reader_password=_password(loaded, server.reader_password_file, "directory.server.reader_password_file")
                if server.reader_password_file
                else "",
            )
        )
    except ValueError as error:
        raise SettingsError(f"directory.server: {error}") from error
    for key, value, wanted in (
        ("directory.bind_dn", section.bind_dn, slapd.gateway_dn),
        ("directory.writer_dn", section.writer_dn, slapd.admin_dn),
    ):
        if value.lower() != wanted.lower():
            raise SettingsError(f"{key} has to be {wanted}: the name by which the server of directory.server knows us")
    return slapd


def _folder(loaded: Loaded) -> Path:
    """Of slapd's data. Lines are joined there too: it needs more room anyway."""
    folder = loaded.settings.directory.server.folder
    return loaded.path(folder) if folder else loaded.state / "directory"


def _password(loaded: Loaded, file: str, key: str) -> str:
    try:
        password = loaded.path(file).read_text("utf-8").strip() if file else ""
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{key} cannot be read") from error
    if not password:
        raise SettingsError(f"{key} must name a file with a password")
    return password


def _fail(error: Exception) -> NoReturn:
    raise click.ClickException(f"{error}.")
