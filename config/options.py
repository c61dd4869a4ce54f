"""Options that several commands of `relais` have in common. Imports nothing of the gateway: see `config.lazy`."""

from __future__ import annotations

import os
from pathlib import Path

import click

DEFAULT_STATE = "var"

STATE = click.option(
    "--state",
    type=click.Path(path_type=Path),
    default=lambda: Path(os.environ.get("RELAIS_STATE", DEFAULT_STATE)),
    show_default=DEFAULT_STATE,
    help="State directory of `relais up`, or of one gateway.",
)
CONFIG = click.option(
    "--config", type=click.Path(path_type=Path), help="The operator's relais.toml, instead of --state."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
