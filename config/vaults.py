"""A gateway's vault opened as its configuration says, with the token that holds some of its keys."""

from __future__ import annotations

from pathlib import Path

from config.settings import Loaded, SettingsError
from trust.pkcs11 import Token, TokenOptions
from trust.secret_files import credential
from trust.vault import KeyVault, VaultError

PIN_CREDENTIAL = "relais-pin"
"""Name of the systemd credential with the token's PIN, where no file is named."""


def open_vault(loaded: Loaded) -> KeyVault:
    """The vault below the state. Raises `SettingsError` with what to do when it cannot be opened.

    The token is not asked here: a gateway whose token is away starts, and mail that needs it waits.
    """
    try:
        return KeyVault.open(vault_for(loaded), token_of(loaded))
    except VaultError as error:
        raise SettingsError(str(error)) from error


def vault_of(state: Path) -> Path:
    """Where an operator's state keeps its vault."""
    return state / "vault"


def vault_for(loaded: Loaded) -> Path:
    """Where this gateway's vault is: of its own, or the one several nodes have."""
    named = loaded.settings.keys.vault
    return loaded.path(named) if named else vault_of(loaded.state)


def token_of(loaded: Loaded) -> Token | None:
    """The token of [keys], None without one. Raises `SettingsError`."""
    keys = loaded.settings.keys
    if not keys.pkcs11_module:
        if keys.new_keys == "token":
            raise SettingsError("keys.new_keys is token: name it in keys.pkcs11_module and keys.token")
        return None
    if not keys.token:
        raise SettingsError("keys.token must be the label of the token")
    pin_file = loaded.path(keys.pin_file) if keys.pin_file else credential(PIN_CREDENTIAL)
    if pin_file is None:
        raise SettingsError(f"keys.pin_file must name the file with the PIN, or systemd give {PIN_CREDENTIAL}")
    return Token(TokenOptions(loaded.path(keys.pkcs11_module), keys.token, pin_file, keys.sessions))
