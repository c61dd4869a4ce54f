"""What the practice's mail program signs in with here: each mailbox of the file is an account, its password in a file.

A password is taken over when the text of its file has changed since the last start, and only then: what `relais
account` says meanwhile (another password, a lock) stays. `KEPT` remembers what was taken over, as keyed digests.
"""

from __future__ import annotations

import json
from pathlib import Path

import structlog

from config.connector.expanding import account_name
from config.connector.sections import ConnectSettings
from config.settings import Loaded, SettingsError
from trust.accounts import Accounts
from trust.accounts_administration import Administration
from trust.identities import AccountError
from trust.store.durable import write_durably
from trust.vault import KeyVault

log = structlog.get_logger(__name__)

KEPT = "local-passwords.json"
"""Below the state: a digest by address."""
_BY = "relais connect"


def keep_accounts(
    loaded: Loaded, connect: ConnectSettings, vault: KeyVault, accounts: Accounts, administration: Administration
) -> None:
    """Each mailbox of the file is one here. One that left the file keeps its mail, and opens to nobody: who has left
    the practice may know its password. Blocks. Raises `SettingsError`."""
    wanted = dict[str, str]()
    for each in connect.accounts:
        try:
            wanted[each.address] = _password(loaded, each.local_password_file or connect.local_password_file)
        except (OSError, ValueError) as error:
            # what its password was stays; the others' mailboxes open
            log.error("connect.local-password-unreadable", account=account_name(each), error=type(error).__name__)
    if not wanted:
        raise SettingsError(f"connect.local_password_file {loaded.path(connect.local_password_file)} cannot be read")
    place = loaded.state / KEPT
    kept = _read(place)
    digests = {address: vault.pseudonym("local password", address, password) for address, password in wanted.items()}
    try:
        for address, password in wanted.items():
            if accounts.by_address(address) is None:
                administration.create(address, [address], password, _BY)
            elif kept.get(address) != digests[address]:
                administration.set_password(address, password, _BY)
        for address in kept.keys() - {each.address for each in connect.accounts}:
            if accounts.by_address(address) is not None:
                administration.set_password(address, None, _BY)
        unread = {each.address: kept[each.address] for each in connect.accounts if each.address in kept}
        if kept != (digests := unread | digests):
            write_durably(place, json.dumps(digests, indent=1).encode() + b"\n")
    except AccountError as error:
        raise SettingsError(f"connect.accounts: {error}") from error
    except OSError as error:
        raise SettingsError(f"{place} cannot be written: {error.strerror}") from error


def _password(loaded: Loaded, file: str) -> str:
    """Raises OSError and ValueError."""
    password = loaded.path(file).read_text(encoding="utf-8").strip()
    if not password:
        raise ValueError("empty")
    return password


def _read(place: Path) -> dict[str, str]:
    """Nothing where it cannot be read: passwords are then taken over anew."""
    try:
        found = json.loads(place.read_bytes())
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}
