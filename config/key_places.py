"""Which operators' vaults a `relais keys` command is about, and as whom it works on them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import click

from config.settings import Loaded, load
from config.vaults import open_vault, vault_for, vault_of
from trust.memory import guard_memory
from trust.vault import KeyVault


@dataclass(frozen=True, slots=True)
class Place:
    """One operator's state, with its configuration where there is one."""

    state: Path
    loaded: Loaded | None

    @property
    def name(self) -> str:
        return self.state.name

    @property
    def vault(self) -> Path:
        """Where its vault is."""
        return vault_of(self.state) if self.loaded is None else vault_for(self.loaded)

    def serves(self, address: str) -> bool:
        domain = address.rpartition("@")[2].lower()
        return self.loaded is None or domain in self.loaded.settings.operator.domains

    def open(self) -> KeyVault:
        """Raises `SettingsError`, `VaultError`."""
        return open_vault(self.loaded) if self.loaded is not None else KeyVault.open(vault_of(self.state))

    def open_or_create(self) -> KeyVault:
        """For a mailbox's first key. Raises as `open`."""
        if not KeyVault.exists(self.vault) and not (self.vault / "check").exists():
            KeyVault.create(self.vault)
            click.echo(
                f"A new vault was made in {self.vault}: back up its key-encryption key apart from the rest.", err=True
            )
        return self.open()


@dataclass(frozen=True, slots=True)
class Where:
    """What --state and --config say."""

    state: Path
    config: Path | None

    def places(self) -> list[Place]:
        """The operator of --config, the one whose state this is, or all below the state of `relais up`."""
        if self.config is not None:
            loaded = load(self.config)
            return [Place(loaded.state, loaded)]
        if vault_of(self.state).exists():
            return [self._place(self.state)]
        below = [self._place(each.parent) for each in sorted(self.state.glob("*/vault"))]
        if not below:
            fail(f"There is no vault in {self.state}: name the state with --state, or the operator with --config.")
        return below

    def place_of(self, address: str) -> Place:
        """The operator that has the address's domain."""
        found = [each for each in self.places() if each.serves(address)]
        if len(found) != 1:
            fail(f"No operator here has the domain of {address}: name the operator's relais.toml with --config.")
        return found[0]

    @staticmethod
    def _place(state: Path) -> Place:
        file = state / "relais.toml"
        return Place(state, load(file) if file.exists() else None)


@contextmanager
def as_owner(state: Path) -> Iterator[None]:
    """As root: act as the owner of the state directory, who runs the gateway. As anybody else: as oneself.

    A state that is not root's could hold links to anywhere: as its owner we follow them no further than it can.
    """
    if os.geteuid() != 0 or not state.exists():
        yield
        return
    owner = state.stat()
    groups = os.getgroups()
    os.setgroups([owner.st_gid])
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    guard_memory(lock=False)  # another user: the kernel has allowed core dumps again
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
        guard_memory(lock=False)


def fail(sentence: str) -> NoReturn:
    click.echo(sentence, err=True)
    sys.exit(1)
