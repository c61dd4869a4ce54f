"""Who somebody is: identities, the names that find them and what each may do, read from the database.

What all ways to log in share (`trust.accounts`, `trust.application_passwords`, `trust.client_certificates`,
`trust.oidc_subjects`). Logins and addresses may be a patient's matricule: they are looked up by a keyed pseudonym and
kept sealed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any

from sqlalchemy import Connection, Row, exists, or_, select

from trust.refusals import Refused
from trust.shared_addresses import EVERYTHING, NOTHING, Access, access_of_others, owner_of
from trust.tables import identities, identity_addresses, identity_locks
from trust.vault import KeyVault

_LOGIN = re.compile(r"[!-~]{1,254}")
_ATOM = r"[a-z0-9!&'+=_~-]+"
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_ADDRESS = re.compile(rf"(?=[^@]{{1,64}}@)(?=.{{1,254}}\Z){_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})*")
"""Dot-string addresses (RFC 5321 §4.1.2) without what Dovecot, file names or a dict's keys would read as their own."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A person, a team or a machine that may log in."""

    id: str
    """Opaque: the pseudonym of its login, fit for logs."""
    login: str = field(repr=False)
    """Lower case; may be an address."""
    addresses: tuple[str, ...] = field(repr=False)
    """Its mailboxes, main one first, lower case. Those of others that it may use are not among them."""


CertificateSignIn = Callable[[Sequence[bytes], str], Identity | Refused]
"""Whose the certificate is that a client has `trust.tls.presented`; the login, when not empty, must be one they may
use. May block, and is asked in another thread than the connection's."""


class Service(Enum):
    """What somebody logs in to."""

    IMAP = "imap"
    """Reading: IMAP, and ManageSieve with it."""
    SUBMISSION = "submission"


class Right(StrEnum):
    """What may be granted on somebody else's address."""

    USE = "use"
    """Read the mailbox, and name it as the sender on the envelope."""
    SIGN = "sign"
    """That, and write as it: mail From it is signed with its key."""


class AccountError(ValueError):
    """An administrator asked for what cannot be; the text is a sentence that says why, and names nobody."""


class NameTakenError(AccountError):
    """The identity's name or one of its addresses already names somebody else: a login must mean one identity."""


class Identities:
    """How names, identities and rights are found. Every method takes the caller's connection. Thread-safe.

    Each method that gives an `Identity` or an address raises `trust.vault.VaultError` when the database was altered or
    belongs to another vault.
    """

    def __init__(self, vault: KeyVault) -> None:
        self._vault = vault

    def pseudonym(self, name: str) -> str:
        """Of a login or an address: they are one name space, since either logs in."""
        return self._vault.pseudonym("address", normalised(name))

    def named(self, connection: Connection, name: str) -> str | None:
        """The identity of that login, or that owns that address."""
        pseudonym = self.pseudonym(name)
        by_address = select(identity_addresses.c.identity_id).where(identity_addresses.c.address == pseudonym)
        query = select(identities.c.id).where(or_(identities.c.id == pseudonym, identities.c.id.in_(by_address)))
        found: str | None = connection.scalar(query)
        return found

    def required(self, connection: Connection, name: str) -> str:
        """As `named`; raises `AccountError` for nobody."""
        found = self.named(connection, name)
        if found is None:
            raise AccountError("no account has this login or address")
        return found

    def load(self, connection: Connection, identity_id: str) -> Identity:
        sealed_login = connection.scalar(select(identities.c.sealed_login).where(identities.c.id == identity_id))
        theirs = (
            select(identity_addresses)
            .where(identity_addresses.c.identity_id == identity_id)
            .order_by(identity_addresses.c.position)
        )
        login = self._vault.unseal(sealed_login or b"", _login_context(identity_id)).decode()
        return Identity(identity_id, login, tuple(self.address(row) for row in connection.execute(theirs)))

    def address(self, row: Row[Any]) -> str:
        """Of a row of `identity_addresses`."""
        return self._vault.unseal(row.sealed, _address_context(row.address, row.identity_id)).decode()

    def sealed_login(self, login: str) -> bytes:
        return self._vault.seal(normalised(login).encode(), _login_context(self.pseudonym(login)))

    def address_rows(self, identity_id: str, addresses: Sequence[str], first: int = 0) -> list[dict[str, Any]]:
        """Rows of `identity_addresses`, each address once."""
        owned = {self.pseudonym(address): normalised(address) for address in addresses}
        return [
            {
                "address": pseudonym,
                "identity_id": identity_id,
                "position": position,
                "sealed": self._vault.seal(address.encode(), _address_context(pseudonym, identity_id)),
            }
            for position, (pseudonym, address) in enumerate(owned.items(), first)
        ]

    def check_free(self, connection: Connection, identity_id: str, rows: Sequence[dict[str, Any]]) -> None:
        """Raises `NameTakenError` when the name or an address of that identity already means another."""
        owned = [row["address"] for row in rows]
        taken = exists().where(
            identity_addresses.c.address.in_([identity_id, *owned]), identity_addresses.c.identity_id != identity_id
        )
        named = exists().where(identities.c.id.in_(owned), identities.c.id != identity_id)
        if connection.scalar(select(or_(taken, named))):
            raise NameTakenError("the name or an address already belongs to another identity")

    def disabled(self, connection: Connection, identity_id: str) -> bool:
        """Whether an administrator keeps the identity out."""
        return bool(connection.scalar(select(exists().where(identity_locks.c.identity_id == identity_id))))

    def access(self, connection: Connection, identity_id: str, address: str) -> Access:
        """What the identity may do with that address: as its owner, by a grant, or as member of a team that owns it or
        has the grant; membership goes one step.

        Nobody may do anything while an administrator keeps them out, a team gives nothing meanwhile, and nobody signs
        in the name of whoever is kept out: their mailbox may be read on.
        """
        if self.disabled(connection, identity_id):
            return NOTHING
        pseudonym = self.pseudonym(address)
        owner = owner_of(connection, pseudonym)
        if owner is None or owner == identity_id:
            return NOTHING if owner is None else EVERYTHING
        found = access_of_others(connection, identity_id, pseudonym, owner)
        return found & ~Access.SIGN if Access.SIGN in found and self.disabled(connection, owner) else found


def normalised(name: str) -> str:
    """One spelling of a login or an address. Only ASCII has two cases here: to Unicode the Kelvin sign is a capital k,
    and no other character may find an account whose name it is not in."""
    name = name.strip(" ")
    return name.lower() if name.isascii() else name


def checked_login(login: str) -> str:
    """As it is kept: visible ASCII, so that no two look alike. Raises `AccountError`."""
    name = normalised(login)
    if not _LOGIN.fullmatch(name):
        raise AccountError("a login has 1 to 254 characters, without accents, spaces or control characters")
    return name


def checked_address(address: str) -> str:
    """As it is kept: what every door and Dovecot can take. Raises `AccountError`."""
    name = normalised(address)
    if not _ADDRESS.fullmatch(name):
        raise AccountError("an address is written local@domain: letters without accents, digits and . _ - + ' = & ~ !")
    return name


def _login_context(identity_id: str) -> bytes:
    return f"identity login:{identity_id}".encode()


def _address_context(pseudonym: str, identity_id: str) -> bytes:
    """Binds an address to its row and its owner: a row given to somebody else does not open."""
    return f"identity address:{pseudonym}:{identity_id}".encode()
