"""What administrators do to accounts; each act is in the journal, in the transaction that does it.

Every method takes `by`, who does it, and raises `AccountError` with a sentence when it cannot be done. Logins and
addresses stay out of the journal: it names identities and mailboxes by their pseudonyms.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from cryptography import x509
from sqlalchemy import Connection, delete, exists, insert, select

from trust import lockout
from trust.accounts import Accounts
from trust.application_passwords import ApplicationPassword
from trust.client_certificates import Binding, BoundCertificate
from trust.identities import AccountError, Identity, Right, Service, checked_address, checked_login
from trust.journal import Journal, JournalEntry
from trust.oidc_subjects import LinkedSubject
from trust.shared_addresses import owner_of
from trust.tables import (
    address_grants,
    credentials,
    identities,
    identity_addresses,
    identity_locks,
    login_sources,
    team_members,
)

T = TypeVar("T")

_LONGEST_REASON = 500


@dataclass(frozen=True, slots=True)
class Account:
    """All there is to know of one account, secrets apart. Times are UNIX seconds."""

    identity: Identity
    password: bool
    closed_at: float | None
    """Since when an administrator keeps it out."""
    locked_until: float | None
    """By guessing, for networks that are not familiar."""
    networks_locked: int
    """By guessing, from themselves or their neighbourhood, which counts as one more."""
    networks_familiar: int
    application_passwords: tuple[ApplicationPassword, ...]
    certificates: tuple[BoundCertificate, ...]
    subjects: tuple[LinkedSubject, ...]
    granted: tuple[tuple[str, str], ...]
    """Addresses of others it may use, and how: a `Right`, or a member's letters (`trust.shared_addresses`)."""
    grants: tuple[tuple[str, str, str], ...]
    """Its addresses that others may use: address, their login, how."""
    teams: tuple[str, ...]
    """Logins of the teams it is a member of."""
    members: tuple[str, ...]


class AddressWatch(Protocol):
    """Who is to know which addresses accounts get and lose; addresses are said by their pseudonyms, in the transaction
    that does it, and before it is done."""

    def taken(self, connection: Connection, address: str, *, former: bool) -> None:
        """An account is about to have an address that nobody has. `former`: if it was somebody's before, that is
        known and meant. Raises `AccountError` when it may not have it."""
        ...

    def left(self, connection: Connection, address: str) -> None:
        """An account is about to have this address no more."""
        ...


class Administration:
    """Thread-safe, as `Accounts` is."""

    def __init__(self, accounts: Accounts, journal: Journal, watch: AddressWatch | None = None) -> None:
        self._accounts = accounts
        self._journal = journal
        self._watch = watch
        self._known = accounts.identities

    def list(self) -> list[Account]:
        """Every account by login."""

        def work(connection: Connection) -> list[Account]:
            every = connection.scalars(select(identities.c.id)).all()
            return [self._account(connection, each) for each in every]

        return sorted(self._accounts.database.read(work), key=lambda each: each.identity.login)

    def show(self, name: str) -> Account:
        """By login or address."""
        return self._accounts.database.read(lambda c: self._account(c, self._known.required(c, name)))

    def create(
        self, login: str, addresses: Sequence[str], password: str | None, by: str, *, former: bool = False
    ) -> None:
        """A new account; none must have the name. `former`: also addresses that were mailboxes before, with what is in
        them."""
        login = checked_login(login)
        owned = [checked_address(each) for each in addresses]
        password_hash = None if password is None else self._accounts.hash_password(password)

        def work(connection: Connection) -> None:
            if self._known.named(connection, login) is not None:
                raise AccountError("an account of this name exists already")
            self._changed(connection, (), owned, former)
            identity_id = self._accounts.put(connection, login, owned)
            self._accounts.put_password(connection, identity_id, password_hash)
            details = {"addresses": str(len(owned)), "password": "yes" if password_hash else "no"} | _FORMER[former]
            self._note(connection, by, "account.created", identity_id, details)

        self._do(work)

    def set_addresses(self, name: str, addresses: Sequence[str], by: str, *, former: bool = False) -> None:
        """Replace its addresses, the main one first; what others were granted on one that goes ends with it. `former`
        as in `create`."""
        owned = [checked_address(each) for each in addresses]

        def work(connection: Connection, identity_id: str) -> None:
            self._changed(connection, self._owned_by(connection, identity_id), owned, former)
            self._accounts.put(connection, self._known.load(connection, identity_id).login, owned)
            details = {"addresses": str(len(owned))} | _FORMER[former]
            self._note(connection, by, "account.addresses-changed", identity_id, details)

        self._on(name, work)

    def set_password(self, name: str, password: str | None, by: str) -> None:
        """Replace or (None) take away the main password; guesses at the old one are forgotten."""
        password_hash = None if password is None else self._accounts.hash_password(password)

        def work(connection: Connection, identity_id: str) -> None:
            self._accounts.put_password(connection, identity_id, password_hash)
            action = "account.password-set" if password_hash else "account.password-removed"
            self._note(connection, by, action, identity_id)

        self._on(name, work)

    def lock(self, name: str, reason: str, by: str) -> None:
        """Keep it out, whatever it shows, until `unlock`; its mailboxes go on receiving."""
        reason = " ".join(reason.split())
        if len(reason) > _LONGEST_REASON or not reason.isprintable():
            raise AccountError(f"a reason has at most {_LONGEST_REASON} characters, none of them for control")

        def work(connection: Connection, identity_id: str) -> None:
            if not self._known.disabled(connection, identity_id):
                now = self._accounts.clock()
                connection.execute(insert(identity_locks).values(identity_id=identity_id, at=now))
            self._note(connection, by, "account.closed", identity_id, reason=reason)

        self._on(name, work)

    def unlock(self, name: str, by: str) -> None:
        """Let it in again, and forget every wrong password."""

        def work(connection: Connection, identity_id: str) -> None:
            connection.execute(delete(identity_locks).where(identity_locks.c.identity_id == identity_id))
            lockout.release(connection, identity_id)
            self._note(connection, by, "account.opened", identity_id)

        self._on(name, work)

    def delete(self, name: str, by: str) -> None:
        """With all it may log in with and all grants. Mail, keys and journal stay."""

        def work(connection: Connection, identity_id: str) -> None:
            self._changed(connection, self._owned_by(connection, identity_id), ())
            connection.execute(delete(identities).where(identities.c.id == identity_id))
            self._note(connection, by, "account.deleted", identity_id)

        self._on(name, work)

    def add_application_password(
        self, name: str, title: str, services: Collection[Service], by: str
    ) -> tuple[str, str]:
        """Identifier and the secret, which is never shown again."""

        def work(connection: Connection, identity_id: str) -> tuple[str, str]:
            identifier, secret = self._accounts.application_passwords.create(
                connection, identity_id, title, services, self._accounts.clock()
            )
            details = {"id": identifier, "services": " ".join(sorted(each.value for each in services))}
            self._note(connection, by, "account.application-password-made", identity_id, details)
            return identifier, secret

        return self._on(name, work)

    def revoke_application_password(self, name: str, which: str, by: str) -> None:
        """By its name or identifier."""

        def work(connection: Connection, identity_id: str) -> None:
            identifier = self._accounts.application_passwords.revoke(connection, identity_id, which)
            self._note(connection, by, "account.application-password-revoked", identity_id, {"id": identifier})

        self._on(name, work)

    def bind_certificate(
        self, name: str, binding: Binding, path: tuple[x509.Certificate, ...], by: str, replaces: str = ""
    ) -> str:
        """Bind the first certificate of a believed path (anchor last); `replaces` is the identifier of the one that
        ends in the same moment. Returns the new identifier."""

        def work(connection: Connection, identity_id: str) -> str:
            certificates = self._accounts.certificates
            if replaces:
                certificates.withdraw(connection, identity_id, replaces)
            identifier = certificates.bind(connection, identity_id, binding, path, self._accounts.clock())
            details = {"id": identifier, "binding": binding.value, "serial": f"{path[0].serial_number:x}"}
            action = "account.certificate-renewed" if replaces else "account.certificate-bound"
            self._note(connection, by, action, identity_id, details | ({"replaces": replaces} if replaces else {}))
            return identifier

        return self._on(name, work)

    def withdraw_certificate(self, name: str, identifier: str, by: str) -> None:
        def work(connection: Connection, identity_id: str) -> None:
            self._accounts.certificates.withdraw(connection, identity_id, identifier)
            self._note(connection, by, "account.certificate-withdrawn", identity_id, {"id": identifier})

        self._on(name, work)

    def link_subject(self, name: str, issuer: str, claim: str, value: str, by: str) -> str:
        """Returns the link's identifier."""

        def work(connection: Connection, identity_id: str) -> str:
            now = self._accounts.clock()
            identifier = self._accounts.subjects.link(connection, identity_id, issuer, claim, value, now)
            details = {"id": identifier, "issuer": issuer, "claim": claim}
            self._note(connection, by, "account.subject-linked", identity_id, details)
            return identifier

        return self._on(name, work)

    def unlink_subject(self, name: str, identifier: str, by: str) -> None:
        def work(connection: Connection, identity_id: str) -> None:
            self._accounts.subjects.unlink(connection, identity_id, identifier)
            self._note(connection, by, "account.subject-unlinked", identity_id, {"id": identifier})

        self._on(name, work)

    def grant(self, name: str, address: str, right: Right, by: str) -> None:
        """Let an account use somebody else's address, instead of what it was granted on it before."""

        def work(connection: Connection, identity_id: str) -> None:
            pseudonym, owner = self._owned(connection, address)
            if owner == identity_id:
                raise AccountError("the address is the account's own")
            connection.execute(_grant_of(pseudonym, identity_id))
            values = {"address": pseudonym, "identity_id": identity_id, "right": right.value}
            connection.execute(insert(address_grants).values(**values))
            self._note(connection, by, "account.granted", identity_id, {"address": pseudonym, "right": right.value})

        self._on(name, work)

    def revoke(self, name: str, address: str, by: str) -> None:
        """End what an account was granted on an address."""

        def work(connection: Connection, identity_id: str) -> None:
            pseudonym, _ = self._owned(connection, address)
            if connection.execute(_grant_of(pseudonym, identity_id)).rowcount == 0:
                raise AccountError("the account was granted nothing on this address")
            self._note(connection, by, "account.revoked", identity_id, {"address": pseudonym})

        self._on(name, work)

    def join(self, name: str, team: str, by: str) -> None:
        """Make an account a member of a team: it may whatever the team may, whose addresses included."""

        def work(connection: Connection, identity_id: str) -> None:
            team_id = self._known.required(connection, team)
            if team_id == identity_id:
                raise AccountError("an account cannot be a member of itself")
            connection.execute(_member_of(team_id, identity_id))
            connection.execute(insert(team_members).values(team_id=team_id, member_id=identity_id))
            self._note(connection, by, "account.joined", identity_id, {"team": team_id})

        self._on(name, work)

    def leave(self, name: str, team: str, by: str) -> None:
        def work(connection: Connection, identity_id: str) -> None:
            team_id = self._known.required(connection, team)
            if connection.execute(_member_of(team_id, identity_id)).rowcount == 0:
                raise AccountError("the account is no member of this team")
            self._note(connection, by, "account.left", identity_id, {"team": team_id})

        self._on(name, work)

    def _owned_by(self, connection: Connection, identity_id: str) -> Collection[str]:
        theirs = select(identity_addresses.c.address).where(identity_addresses.c.identity_id == identity_id)
        return connection.scalars(theirs).all()

    def _changed(
        self, connection: Connection, before: Collection[str], addresses: Sequence[str], former: bool = False
    ) -> None:
        """Tell who watches: `before` are the pseudonyms of those it had. Raises `AccountError`."""
        if self._watch is None:
            return
        after = {self._known.pseudonym(each) for each in addresses}
        for each in sorted(after - set(before)):
            if owner_of(connection, each) is None:  # else it cannot be had, which `Accounts.put` says
                self._watch.taken(connection, each, former=former)
        for each in sorted(set(before) - after):
            self._watch.left(connection, each)

    def _account(self, connection: Connection, identity_id: str) -> Account:
        accounts, now = self._accounts, self._accounts.clock()
        row = connection.execute(select(identities).where(identities.c.id == identity_id)).one()
        sources = connection.execute(select(login_sources).where(login_sources.c.identity_id == identity_id)).all()
        granted = connection.execute(
            select(identity_addresses, address_grants.c.right)
            .join(address_grants, address_grants.c.address == identity_addresses.c.address)
            .where(address_grants.c.identity_id == identity_id)
        )
        given = connection.execute(
            select(identity_addresses, address_grants.c.right, address_grants.c.identity_id.label("grantee"))
            .join(address_grants, address_grants.c.address == identity_addresses.c.address)
            .where(identity_addresses.c.identity_id == identity_id)
        )
        teams = connection.scalars(select(team_members.c.team_id).where(team_members.c.member_id == identity_id))
        members = connection.scalars(select(team_members.c.member_id).where(team_members.c.team_id == identity_id))

        def login_of(other: str) -> str:
            return self._known.load(connection, other).login

        return Account(
            identity=self._known.load(connection, identity_id),
            password=bool(connection.scalar(select(exists().where(credentials.c.identity_id == identity_id)))),
            closed_at=connection.scalar(select(identity_locks.c.at).where(identity_locks.c.identity_id == identity_id)),
            locked_until=row.locked_until if row.locked_until > now else None,
            networks_locked=sum(1 for each in sources if each.locked_until > now),
            networks_familiar=sum(
                1 for each in sources if lockout.is_network(each.source) and accounts.is_familiar(each.good_at)
            ),
            application_passwords=tuple(accounts.application_passwords.all(connection, identity_id)),
            certificates=tuple(accounts.certificates.all(connection, identity_id)),
            subjects=tuple(accounts.subjects.all(connection, identity_id)),
            granted=tuple(sorted(((self._known.address(each), each.right) for each in granted), key=str)),
            grants=tuple(
                sorted(((self._known.address(each), login_of(each.grantee), each.right) for each in given), key=str)
            ),
            teams=tuple(sorted(map(login_of, teams.all()))),
            members=tuple(sorted(map(login_of, members.all()))),
        )

    def _owned(self, connection: Connection, address: str) -> tuple[str, str]:
        """An address's pseudonym and owner."""
        pseudonym = self._known.pseudonym(address)
        owner = connection.scalar(
            select(identity_addresses.c.identity_id).where(identity_addresses.c.address == pseudonym)
        )
        if owner is None:
            raise AccountError("no account has this address")
        return pseudonym, owner

    def _on(self, name: str, work: Callable[[Connection, str], T]) -> T:
        return self._do(lambda connection: work(connection, self._known.required(connection, name)))

    def _do(self, work: Callable[[Connection], T]) -> T:
        return self._accounts.database.transact(work)

    def _note(
        self,
        connection: Connection,
        by: str,
        action: str,
        identity_id: str,
        details: Mapping[str, str] | None = None,
        reason: str = "",
    ) -> None:
        entry = JournalEntry(
            by, action, "done", object_id=identity_id, reason=reason, purpose="administration", details=details or {}
        )
        self._journal.append(connection, entry)


_FORMER = {True: {"former": "yes"}, False: dict[str, str]()}
"""For the journal."""


def _grant_of(address: str, identity_id: str) -> Any:
    return delete(address_grants).where(
        address_grants.c.address == address, address_grants.c.identity_id == identity_id
    )


def _member_of(team_id: str, member_id: str) -> Any:
    return delete(team_members).where(team_members.c.team_id == team_id, team_members.c.member_id == member_id)
