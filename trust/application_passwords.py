"""Application passwords: one for each telephone or program, made by us, shown once, withdrawn on its own.

120 random bits need no slow hash: a keyed one (the vault's) lets the right one be found at once, and a copy of the
database says nothing. They are never locked out by guessing, for nobody guesses them; and since no chosen password may
look like one, a telephone with a withdrawn one locks nobody either.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass, field

from sqlalchemy import Connection, Row, delete, insert, select, update

from trust.identities import AccountError, Service
from trust.tables import application_passwords
from trust.vault import KeyVault

MAX_EACH = 32
"""Application passwords of one identity."""
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32: no letter that looks like a digit or another letter."""
_SECRET_CHARACTERS = 24
_GROUP = 5
_DAY = 86400.0


@dataclass(frozen=True, slots=True)
class ApplicationPassword:
    """What is shown of one afterwards."""

    id: str
    name: str = field(repr=False)
    services: tuple[Service, ...]
    """What it is good for; empty: everything."""
    created_at: float
    """UNIX seconds."""
    last_used: int | None
    """Days since 1970, UTC; None for never."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose an application password is."""

    identity_id: str
    id: str
    services: tuple[Service, ...]
    last_used: int | None


class ApplicationPasswords:
    """Those of one database, under one vault. Methods that take a connection work in the caller's transaction."""

    def __init__(self, vault: KeyVault) -> None:
        self._vault = vault

    def create(
        self, connection: Connection, identity_id: str, name: str, services: Collection[Service], now: float
    ) -> tuple[str, str]:
        """A new one: its identifier and the secret in groups of five, which nobody can show again.

        Raises `AccountError` for a name that is empty, over 100 characters or taken, and beyond `MAX_EACH`.
        """
        name = " ".join(name.split())
        if not 1 <= len(name) <= 100 or not name.isprintable():
            raise AccountError("an application password needs a name of 1 to 100 characters")
        theirs = self.all(connection, identity_id)
        if any(each.name.lower() == name.lower() for each in theirs):
            raise AccountError("the account already has an application password of this name")
        if len(theirs) >= MAX_EACH:
            raise AccountError(f"an account has at most {MAX_EACH} application passwords: revoke some first")
        secret = "".join(secrets.choice(_ALPHABET) for _ in range(_SECRET_CHARACTERS))
        secret += _check_character(secret)
        identifier = secrets.token_hex(8)
        connection.execute(
            insert(application_passwords).values(
                id=identifier,
                identity_id=identity_id,
                verifier=self._verifier(secret),
                sealed_name=self._vault.seal(name.encode(), _context(identifier, identity_id)),
                services=" ".join(sorted(each.value for each in set(services))),
                created_at=now,
            )
        )
        return identifier, "-".join(secret[at : at + _GROUP] for at in range(0, len(secret), _GROUP))

    def all(self, connection: Connection, identity_id: str) -> list[ApplicationPassword]:
        """Oldest first. Raises `trust.vault.VaultError` when the database was altered."""
        rows = connection.execute(
            select(application_passwords)
            .where(application_passwords.c.identity_id == identity_id)
            .order_by(application_passwords.c.created_at, application_passwords.c.id)
        )
        return [self._shown(row) for row in rows]

    def revoke(self, connection: Connection, identity_id: str, which: str) -> str:
        """Withdraw one by its identifier or name; returns the identifier. Raises `AccountError`."""
        for each in self.all(connection, identity_id):
            if which.strip().lower() in (each.id, each.name.lower()):
                connection.execute(delete(application_passwords).where(application_passwords.c.id == each.id))
                return each.id
        raise AccountError("the account has no application password of this name or identifier")

    def owner(self, connection: Connection, password: str) -> Owner | None:
        """Whose this password is, None when it is nobody's."""
        secret = secret_of(password)
        if secret is None:
            return None
        row = connection.execute(
            select(application_passwords).where(application_passwords.c.verifier == self._verifier(secret))
        ).first()
        return None if row is None else Owner(row.identity_id, row.id, _services(row.services), row.last_used)

    def used(self, connection: Connection, identifier: str, now: float) -> None:
        """Remember the day, no more: what somebody does all day is nobody's business."""
        change = update(application_passwords).where(application_passwords.c.id == identifier)
        connection.execute(change.values(last_used=int(now // _DAY)))

    def _shown(self, row: Row[tuple[object, ...]]) -> ApplicationPassword:
        name = self._vault.unseal(row.sealed_name, _context(row.id, row.identity_id)).decode()
        return ApplicationPassword(row.id, name, _services(row.services), row.created_at, row.last_used)

    def _verifier(self, secret: str) -> str:
        return self._vault.pseudonym("application password", secret)


def secret_of(password: str) -> str | None:
    """The secret in a password that has the form of an application password, however it was grouped; else None."""
    if len(password) > 4 * _SECRET_CHARACTERS:
        return None
    secret = password.replace("-", "").replace(" ", "").lower()
    if len(secret) != _SECRET_CHARACTERS + 1 or any(each not in _ALPHABET for each in secret):
        return None
    return secret if secret[-1] == _check_character(secret[:-1]) else None


def _check_character(secret: str) -> str:
    """Tells an application password from one that somebody chose, and most slips of the pen from the real one."""
    return _ALPHABET[sum((at + 1) * _ALPHABET.index(each) for at, each in enumerate(secret)) % 31]


def _services(stored: str) -> tuple[Service, ...]:
    return tuple(Service(each) for each in stored.split())


def _context(identifier: str, identity_id: str) -> bytes:
    return f"application password:{identifier}:{identity_id}".encode()
