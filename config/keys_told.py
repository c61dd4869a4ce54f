"""What `relais keys` says: a line or a JSON object for each key, and the requests for whoever sends them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from cryptography.hazmat.primitives.serialization import Encoding

from config.key_places import Place, as_owner
from trust.generations import Generation, KeyRequest, KeyState, states
from trust.store.durable import write_durably


def generation_row(place: Place, each: Generation, state: KeyState) -> dict[str, Any]:
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


def request_row(place: Place, each: KeyRequest) -> dict[str, Any]:
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


def rows_of(place: Place, kept: Sequence[Generation]) -> list[dict[str, Any]]:
    """What generations do after a command."""
    with as_owner(place.state):
        state = states(place.open().generations(), datetime.now(UTC))
    return [generation_row(place, each, state[each]) for each in kept]


def tell(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    for row in rows:
        click.echo(f"{row['id']}  {row['use']:<10} {row['state']:<9} until {row['not_after'][:10]}  {row['address']}")


class Given:
    """Requests for whoever sends them to the authority: as files, as one JSON document, or as they are.

    Entered while they are made: what was made before something fails is told too.
    """

    def __init__(self, place: Place | None, out: Path | None, as_json: bool) -> None:
        self.place = place
        self._out = out
        self._as_json = as_json
        self._rows: list[dict[str, Any]] = []
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None and self._rows:
            with suppress(OSError):
                self.tell()

    def add(self, made: KeyRequest) -> None:
        assert self.place is not None  # noqa: S101 - whoever makes one has said where
        pem = made.request.public_bytes(Encoding.PEM)
        row = request_row(self.place, made) | {"request": pem.decode("ascii"), "file": ""}
        if self._out is not None:
            row["file"] = str(self._out / f"{made.use.value}-{made.id}.csr.pem")
        self._rows.append(row)

    def tell(self, nothing: str = "") -> None:
        for row in self._rows:
            if row["file"]:
                write_durably(Path(row["file"]), row["request"].encode("ascii"))
        if self._as_json:
            click.echo(json.dumps(self._rows, indent=1, ensure_ascii=False))
            return
        for row in self._rows:
            click.echo(row["file"] or row["request"].rstrip())
        if not self._rows:
            click.echo(nothing)
