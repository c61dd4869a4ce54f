"""`relais mailbox sheet`: the page a mailbox's owner is given."""

from __future__ import annotations

from pathlib import Path

import click

from config.key_places import fail
from config.options import CONFIG, STATE
from config.settings import SettingsError, load


@click.command("sheet")
@STATE
@CONFIG
@click.argument("address")
@click.option("--name", default="", help="The owner, as it stands on the sheet.")
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The PDF; mode 0600."
)
def sheet(state: Path, config: Path | None, address: str, name: str, output: Path) -> None:
    """Write the one-page PDF with which ADDRESS is set up on a telephone or computer. It holds no password."""
    from bridges.mailbox_sheet import mailbox_sheet
    from bridges.pdf import FontMissingError
    from config.discovery_service import client_services
    from trust.store.durable import write_durably

    paths = [config] if config else sorted([*state.glob("relais.toml"), *state.glob("*/relais.toml")])
    if not paths:
        fail(f"{state} holds no relais.toml: name the operator's with --config.")
    try:
        offered = [client_services(load(path)) for path in paths]
        services = next((each for each in offered if each.our_address(address)), None)
        if services is None:
            fail("The address is of none of the domains configured here.")
        written = mailbox_sheet(services, address, name)
    except (SettingsError, FontMissingError) as error:
        fail(str(error))
    write_durably(output, written)
