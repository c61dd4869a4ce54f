"""Which subject of an OpenID provider is which identity here.

A link names issuer, claim and value, for instance Pro Santé Connect, `SubjectNameID`, 899700075064. A token is of an
identity when one of its claims is linked, and all that are linked point to the same one.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import Connection, Row, delete, insert, select, update

from trust.identities import AccountError
from trust.tables import oidc_subjects
from trust.vault import KeyVault

_DAY = 86400.0
_LONGEST = 255
"""Characters of a subject (OpenID Connect Core §2), and of what names it."""


@dataclass(frozen=True, slots=True)
class LinkedSubject:
    """One link."""

    id: str
    identity_id: str
    issuer: str
    claim: str
    value: str = field(repr=False)
    created_at: float
    last_used: int | None
    """Days since 1970, UTC; None for never."""


class OidcSubjects:
    """Links of one database, under one vault. Methods work in the caller's transaction."""

    def __init__(self, vault: KeyVault) -> None:
        self._vault = vault

    def link(self, connection: Connection, identity_id: str, issuer: str, claim: str, value: str, now: float) -> str:
        """Returns the link's identifier. Raises `AccountError` when the subject is linked already, or is none."""
        if any(not 1 <= len(each) <= _LONGEST or not each.isprintable() for each in (issuer, claim, value)):
            raise AccountError("a subject needs an issuer, a claim and a value of 1 to 255 characters")
        if any(each != each.strip() for each in (issuer, claim, value)):
            raise AccountError("a subject's issuer, claim and value have no spaces around them")
        match = self._match(issuer, claim, value)
        if connection.scalar(select(oidc_subjects.c.id).where(oidc_subjects.c.match == match)) is not None:
            raise AccountError("this subject is already linked to an account")
        identifier = secrets.token_hex(8)
        sealed = self._vault.seal(json.dumps([issuer, claim, value]).encode(), _context(identifier, identity_id))
        connection.execute(
            insert(oidc_subjects).values(
                id=identifier, identity_id=identity_id, match=match, sealed=sealed, created_at=now
            )
        )
        return identifier

    def unlink(self, connection: Connection, identity_id: str, identifier: str) -> None:
        """Raises `AccountError` when the identity has none of that identifier."""
        where = (oidc_subjects.c.id == identifier.strip().lower(), oidc_subjects.c.identity_id == identity_id)
        if connection.execute(delete(oidc_subjects).where(*where)).rowcount == 0:
            raise AccountError("the account has no linked subject of this identifier")

    def all(self, connection: Connection, identity_id: str) -> list[LinkedSubject]:
        """Oldest first. Raises `trust.vault.VaultError` when the database was altered."""
        rows = connection.execute(
            select(oidc_subjects)
            .where(oidc_subjects.c.identity_id == identity_id)
            .order_by(oidc_subjects.c.created_at, oidc_subjects.c.id)
        )
        return [self._linked(row) for row in rows]

    def holders(self, connection: Connection, issuer: str, claims: Iterable[tuple[str, str]]) -> list[LinkedSubject]:
        """Every link that these claims (name and value) of an accepted token fulfil."""
        matches = [self._match(issuer, claim, value) for claim, value in claims]
        rows = connection.execute(select(oidc_subjects).where(oidc_subjects.c.match.in_(matches)))
        return [self._linked(row) for row in rows]

    def used(self, connection: Connection, identifiers: Iterable[str], now: float) -> None:
        change = update(oidc_subjects).where(oidc_subjects.c.id.in_(list(identifiers)))
        connection.execute(change.values(last_used=int(now // _DAY)))

    def _linked(self, row: Row[tuple[object, ...]]) -> LinkedSubject:
        issuer, claim, value = json.loads(self._vault.unseal(row.sealed, _context(row.id, row.identity_id)))
        return LinkedSubject(row.id, row.identity_id, issuer, claim, value, row.created_at, row.last_used)

    def _match(self, issuer: str, claim: str, value: str) -> str:
        """Compared character by character, as the standard has it (OpenID Connect Core §2, §5.7)."""
        return self._vault.pseudonym("oidc subject", issuer, claim, value)


def _context(identifier: str, identity_id: str) -> bytes:
    return f"oidc subject:{identifier}:{identity_id}".encode()
