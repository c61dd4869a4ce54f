"""Who may log in, as whom, and which mailboxes are theirs.

Passwords are kept as argon2id hashes (RFC 9106). Guessing is stopped by a lock that survives a restart and cannot be
raced by parallel attempts; an unknown login takes as long as a wrong password.

Logins and addresses may be a patient's matricule: they are looked up by a keyed pseudonym and kept sealed.
"""

from __future__ import annotations

import os
import threading
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.profiles import RFC_9106_LOW_MEMORY
from sqlalchemy import Connection, Row, delete, exists, insert, or_, select, update

from trust.catalogue import ACCOUNT_LOCKED, AUTHENTICATION_FAILED
from trust.refusals import Refused
from trust.store.database import Database
from trust.tables import credentials, identities, identity_addresses
from trust.vault import KeyVault

_PASSWORD_MAX_BYTES = 1024
"""Beyond it nobody types, and hashing only costs us."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A person, a team or a machine that may log in."""

    id: str
    """Opaque: the pseudonym of its login, fit for logs."""
    login: str = field(repr=False)
    """Lower case; may be an address."""
    addresses: tuple[str, ...] = field(repr=False)
    """Its mailboxes, main one first, lower case."""


class NameTakenError(ValueError):
    """The identity's name or one of its addresses already names somebody else: a login must mean one identity."""


class Accounts:
    """Identities and their credentials in one database, under one vault. Thread-safe.

    Each method that gives an `Identity` or an address raises `trust.vault.VaultError` when the database was altered or
    belongs to another vault.

    After `max_failures` wrong passwords in a row, none more than `lock_seconds` after the one before, the identity is
    locked for `lock_seconds`. `clock` gives UNIX seconds. `hasher` sets the argon2id parameters; the default is the
    second recommended option of RFC 9106 §4: 64 MiB, 3 passes, 4 lanes.
    """

    def __init__(
        self,
        database: Database,
        vault: KeyVault,
        *,
        max_failures: int = 5,
        lock_seconds: float = 900,
        clock: Callable[[], float] = time.time,
        hasher: PasswordHasher | None = None,
    ) -> None:
        self._database = database
        self._vault = vault
        self._max_failures = max_failures
        self._lock_seconds = lock_seconds
        self._clock = clock
        self._hasher = hasher or PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)
        self._hash_of_nobody = self._hasher.hash(os.urandom(16))
        # Each hash takes 64 MiB: more at once than processors would only cost memory.
        self._hashing = threading.BoundedSemaphore(os.cpu_count() or 2)

    def create(self, login: str, addresses: Sequence[str], password: str | None) -> None:
        """Make the identity of that login exactly this, whatever it was before, and unlock it.

        Without a password it cannot log in with one. Raises `NameTakenError`; ValueError for an empty or overlong
        (1,024 bytes of UTF-8) password.
        """
        login = _normalised(login)
        identity_id = self._pseudonym(login)
        sealed_login = self._vault.seal(login.encode(), _login_context(identity_id))
        owned = {self._pseudonym(address): address for address in map(_normalised, addresses)}
        rows = [
            {
                "address": pseudonym,
                "identity_id": identity_id,
                "position": position,
                "sealed": self._vault.seal(address.encode(), _address_context(pseudonym, identity_id)),
            }
            for position, (pseudonym, address) in enumerate(owned.items())
        ]
        password_hash = None if password is None else self._hash(password)

        def replace(connection: Connection) -> None:
            taken = exists().where(
                identity_addresses.c.address.in_([identity_id, *owned]),
                identity_addresses.c.identity_id != identity_id,
            )
            named = exists().where(identities.c.id.in_(list(owned)), identities.c.id != identity_id)
            if connection.scalar(select(or_(taken, named))):
                raise NameTakenError("the name or an address already belongs to another identity")
            unlocked = update(identities).where(identities.c.id == identity_id).values(failures=0, locked_until=0.0)
            if connection.execute(unlocked).rowcount == 0:
                connection.execute(insert(identities).values(id=identity_id, sealed_login=sealed_login))
            for theirs in (identity_addresses, credentials):
                connection.execute(delete(theirs).where(theirs.c.identity_id == identity_id))
            if rows:
                connection.execute(insert(identity_addresses), rows)
            if password_hash is not None:
                connection.execute(insert(credentials).values(identity_id=identity_id, password_hash=password_hash))

        self._database.transact(replace)

    def authenticate(self, login: str, password: str) -> Identity | Refused:
        """Who this is. `login` is an identity's login or one of its addresses, whatever the case.

        Refused with `trust.authentication-failed` or `trust.account-locked`. A locked account says so even to the
        right password, which must not be found out meanwhile; addresses are public, so their existence is no secret.
        Takes tens of milliseconds of processor time: not on an event loop.
        """
        name = self._pseudonym(login)
        known = self._database.read(lambda connection: _password_of(connection, name))
        if known is None:
            self._matches(self._hash_of_nobody, password)
            return Refused(AUTHENTICATION_FAILED)
        identity_id, password_hash = known
        matches = self._matches(password_hash, password)
        # Judged in the one writer's order and only now: of any number of parallel guesses no more than
        # `max_failures` are answered.
        return self._database.transact(lambda connection: self._settle(connection, identity_id, matches))

    def by_address(self, address: str) -> Identity | None:
        """The identity that owns this mailbox."""
        owner = select(identity_addresses.c.identity_id).where(identity_addresses.c.address == self._pseudonym(address))

        def find(connection: Connection) -> Identity | None:
            identity_id = connection.scalar(owner)
            return None if identity_id is None else self._identity(connection, identity_id)

        return self._database.read(find)

    def may_use(self, identity: Identity, address: str) -> bool:
        """Whether the identity may read this mailbox and send from it; asked of the database, so revoking counts."""
        owner = self.by_address(address)
        return owner is not None and owner.id == identity.id

    def may_sign_as(self, identity: Identity, address: str) -> bool:
        """Whether mail of this identity may be signed with the mailbox's key: its owner alone."""
        return self.may_use(identity, address)

    def addresses(self) -> tuple[str, ...]:
        """Every mailbox, sorted."""
        every = select(identity_addresses)
        rows = self._database.read(lambda connection: connection.execute(every).all())
        return tuple(sorted(self._address(row) for row in rows))

    def _settle(self, connection: Connection, identity_id: str, matches: bool) -> Identity | Refused:
        row = connection.execute(select(identities).where(identities.c.id == identity_id).with_for_update()).first()
        if row is None:  # removed meanwhile
            return Refused(AUTHENTICATION_FAILED)
        now = self._clock()
        if now < row.locked_until:
            return Refused(ACCOUNT_LOCKED)
        change = update(identities).where(identities.c.id == identity_id)
        if matches:
            if row.failures:
                connection.execute(change.values(failures=0))
            return self._identity(connection, identity_id)
        recent = now - row.failed_at <= self._lock_seconds
        failures = row.failures + 1 if recent else 1
        if failures >= self._max_failures:
            connection.execute(change.values(failures=0, failed_at=now, locked_until=now + self._lock_seconds))
        else:
            connection.execute(change.values(failures=failures, failed_at=now))
        return Refused(AUTHENTICATION_FAILED)

    def _identity(self, connection: Connection, identity_id: str) -> Identity:
        sealed_login = connection.scalar(select(identities.c.sealed_login).where(identities.c.id == identity_id))
        theirs = (
            select(identity_addresses)
            .where(identity_addresses.c.identity_id == identity_id)
            .order_by(identity_addresses.c.position)
        )
        login = self._vault.unseal(sealed_login or b"", _login_context(identity_id)).decode()
        return Identity(identity_id, login, tuple(self._address(row) for row in connection.execute(theirs)))

    def _address(self, row: Row[Any]) -> str:
        return self._vault.unseal(row.sealed, _address_context(row.address, row.identity_id)).decode()

    def _pseudonym(self, name: str) -> str:
        """Of a login or an address: they are one name space, since either logs in."""
        return self._vault.pseudonym("address", _normalised(name))

    def _hash(self, password: str) -> str:
        prepared = _prepared(password)
        if not 1 <= len(prepared) <= _PASSWORD_MAX_BYTES:
            raise ValueError(f"a password has 1 to {_PASSWORD_MAX_BYTES} bytes")
        return self._hasher.hash(prepared)

    def _matches(self, password_hash: str, password: str) -> bool:
        prepared = _prepared(password)
        with self._hashing:
            try:
                self._hasher.verify(password_hash, prepared[:_PASSWORD_MAX_BYTES])
            except (VerificationError, InvalidHashError):
                return False
        return len(prepared) <= _PASSWORD_MAX_BYTES


def _password_of(connection: Connection, name: str) -> tuple[str, str] | None:
    """(identity, hash) of who logs in under this name; None when nobody can."""
    by_address = select(identity_addresses.c.identity_id).where(identity_addresses.c.address == name)
    query = select(credentials.c.identity_id, credentials.c.password_hash).where(
        or_(credentials.c.identity_id == name, credentials.c.identity_id.in_(by_address))
    )
    row = connection.execute(query).first()
    return None if row is None else (row.identity_id, row.password_hash)


def _login_context(identity_id: str) -> bytes:
    return f"identity login:{identity_id}".encode()


def _address_context(pseudonym: str, identity_id: str) -> bytes:
    """Binds an address to its row and its owner: a row given to somebody else does not open."""
    return f"identity address:{pseudonym}:{identity_id}".encode()


def _normalised(name: str) -> str:
    return name.strip().lower()


def _prepared(password: str) -> bytes:
    """One form however the keyboard composed it (RFC 8265 §4.2: NFC, every space an ASCII space), as UTF-8."""
    spaces = "".join(" " if unicodedata.category(each) == "Zs" else each for each in password)
    return unicodedata.normalize("NFC", spaces).encode("utf-8", "surrogatepass")
