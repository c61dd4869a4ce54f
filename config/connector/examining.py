"""What `relais doctor --config` finds wrong with a connector: files that are missing or open to others, ways to sign in
that cannot work, folders that cannot be written."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from config.connector.serving import ways_of
from config.privileges import may_write
from config.settings import Loaded
from config.vaults import vault_for
from trust.vault import KeyUse, KeyVault, VaultError

Level = Literal["ok", "notice", "problem"]


def examine_connector(loaded: Loaded) -> Iterator[tuple[Level, str]]:
    """Level and sentence. Nothing is asked of any server."""
    connect = loaded.settings.connect
    assert connect is not None  # noqa: S101 - who calls has asked
    ways = ways_of(loaded, connect)
    for reason in ways.unusable.values():
        yield "problem", reason
    yield "ok", f"{len(ways.relays)} mailboxes can sign in with what the file names"
    secrets = [connect.local_password_file, connect.directory.password_file]
    for each in connect.accounts:
        secrets += [each.password_file, each.token_file, each.client_secret_file, each.refresh_token_file]
        secrets += [each.key or each.certificate, each.local_password_file]
    for name in dict.fromkeys(filter(None, secrets)):
        yield from _private(loaded, name)
    yield from _keys(loaded, [each.address for each in connect.accounts])
    for folder in unwritable_folders(loaded):
        yield "problem", f"{folder} is no folder that Relais can write: what is for it waits"
    if connect.inbox_folder:
        yield from _shut(loaded.path(connect.inbox_folder))


def unwritable_folders(loaded: Loaded) -> Iterator[Path]:
    """Those of the practice software in which this program could not work."""
    connect = loaded.settings.connect
    assert connect is not None  # noqa: S101 - who calls has asked
    state = loaded.state.resolve()
    for name in filter(None, (connect.inbox_folder, *(each.outbox for each in connect.accounts))):
        folder = loaded.path(name)
        # what lies below the state becomes the service user's at each start
        ours = folder.resolve().is_relative_to(state)
        if not (os.access(folder, os.R_OK | os.W_OK | os.X_OK) if ours else may_write(folder)):
            yield folder


def _shut(folder: Path) -> Iterator[tuple[Level, str]]:
    with suppress(OSError):
        if stat.S_IMODE(folder.stat().st_mode) & 0o007:
            yield "problem", f"{folder} is open to everybody on this machine: chmod o-rwx {folder}"


def _private(loaded: Loaded, name: str) -> Iterator[tuple[Level, str]]:
    path = loaded.path(name)
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        yield "problem", f"{path} cannot be read: {error.strerror}"
        return
    if mode & 0o077:
        yield "problem", f"{path} holds a secret and is open to others: chmod 600 {path}"


def _keys(loaded: Loaded, addresses: list[str]) -> Iterator[tuple[Level, str]]:
    try:
        vault = KeyVault.open(vault_for(loaded))
    except VaultError as error:
        yield "problem", str(error)
        return
    for address in addresses:
        lacking = [use.value for use in KeyUse if not vault.certificates(address, use)]
        if lacking and not loaded.settings.keys.pkcs11_module:
            yield "problem", f"{address} has no key for {' and '.join(lacking)}: relais keys import FILE.p12"
