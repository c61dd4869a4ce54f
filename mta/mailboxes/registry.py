"""`MailboxRegistry` over the database: which mailboxes are ours, what each is, and who else may do what in it.

A mailbox is found by the pseudonym of its address, which is the one its account has (`trust.identities`). An account's
address that has no row yet, because the account is older than its row or was made a moment ago, is a mailbox all the
same: it is active, and `mta.mailboxes.adopting` writes down what the directory says it is. A kind that nobody has said
is guessed, and said to be (`Entry.guessed`), until the directory or an operator says it. A row whose account is gone is
no mailbox any more, unless it was closed: then its senders are still told why.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import msgspec
from sqlalchemy import Column, ColumnElement, Connection, Row, and_, exists, func, insert, select, update

from directory.records import MailboxKind
from mta.mailboxes.records import Custody, MailboxRecord, MailboxState, Member, MemberRight, ReadingPreferences
from mta.mailboxes.tables import mailboxes
from mta.smtp.address import domain_of
from trust.accounts import Accounts
from trust.identities import AccountError, normalised
from trust.shared_addresses import Access, holders, owner_of, reach
from trust.tables import identity_addresses
from trust.vault import KeyVault

TEAMS = frozenset({MailboxKind.ORG, MailboxKind.CAB})
"""Kinds of mailbox that have members."""
_RIGHTS = {MemberRight.READ: Access.READ, MemberRight.WRITE: Access.WRITE, MemberRight.SEND: Access.SIGN}
_SEALED = ("label", "reason", "id_nat", "organisation")


@dataclass(frozen=True, slots=True)
class Entry:
    """A mailbox with what only its administration and the purge look at."""

    id: str
    """The pseudonym of its address: opaque, fit for logs, the journal and command lines."""
    record: MailboxRecord
    purged_at: float | None = None
    version: int = 0
    """0: no row yet."""
    published: int = 0
    guessed: bool = False
    """Its kind is what it is taken for until somebody says it; then it never changes."""
    owned: bool = True
    """Whether an account has the address."""


class Registry:
    """See `mta.mailboxes.records.MailboxRegistry`; the other methods take the caller's connection.

    Each method that gives an address raises `trust.vault.VaultError` when the database was altered or belongs to
    another vault.
    """

    def __init__(self, accounts: Accounts, vault: KeyVault, patient_domains: Collection[str] = ()) -> None:
        """`patient_domains`, lower case: addresses there are patients'."""
        self._accounts = accounts
        self._vault = vault
        self.patient_domains = frozenset(patient_domains)

    # MailboxRegistry

    def find(self, address: str) -> MailboxRecord | None:
        entry = self._accounts.database.read(lambda connection: self.entry(connection, address))
        return None if entry is None or not is_ours(entry) else entry.record

    def members(self, address: str) -> tuple[Member, ...]:
        def read(connection: Connection) -> tuple[Member, ...]:
            entry = self.entry(connection, address)
            return () if entry is None else self.members_of(connection, entry)

        return self._accounts.database.read(read)

    def shared_with(self, login: str) -> tuple[tuple[str, MemberRight], ...]:
        """Those that are active: nobody reads or writes in the others. Nothing for an account that is kept out."""

        def read(connection: Connection) -> tuple[tuple[str, MemberRight], ...]:
            identity_id = self._accounts.identities.named(connection, login)
            return () if identity_id is None else self.shares_of(connection, identity_id)

        return self._accounts.database.read(read)

    # For administration

    def id_of(self, address: str) -> str:
        return self._accounts.identities.pseudonym(address)

    def entry(self, connection: Connection, address: str) -> Entry | None:
        """Also of a mailbox whose account is gone."""
        return self.entry_of(connection, self.id_of(address), address)

    def entry_of(self, connection: Connection, mailbox_id: str, address: str = "") -> Entry | None:
        """By its id; `address` when the caller has it, so that it need not be unsealed."""
        row = connection.execute(select(mailboxes).where(mailboxes.c.address == mailbox_id)).first()
        if row is not None:
            return self._entry(connection, row, owned=owner_of(connection, mailbox_id) is not None)
        owned = connection.execute(select(identity_addresses).where(identity_addresses.c.address == mailbox_id)).first()
        if owned is None:
            return None
        address = normalised(address) or self._address(owned)
        kind = self._kind(connection, address, mailbox_id)
        record = MailboxRecord(address=address, kind=kind, label="")
        return Entry(mailbox_id, record, guessed=kind is not MailboxKind.PATIENT)

    def starting_with(self, connection: Connection, beginning: str) -> list[str]:
        """Ids that begin so, two at most."""
        known = (
            select(mailboxes.c.address)
            .where(mailboxes.c.address.startswith(beginning, autoescape=True))
            .union(
                select(identity_addresses.c.address).where(
                    identity_addresses.c.address.startswith(beginning, autoescape=True)
                )
            )
            .limit(2)
        )
        return list(connection.scalars(known))

    def page(
        self, connection: Connection, after: str, size: int, kind: MailboxKind | None, state: MailboxState | None
    ) -> list[Entry]:
        """Those that have rows, in the order of their ids."""
        query = select(mailboxes).where(mailboxes.c.address > after).order_by(mailboxes.c.address).limit(size)
        if kind is not None:
            query = query.where(mailboxes.c.kind == kind.value)
        if state is not None:
            query = query.where(mailboxes.c.state == state.value)
        owned = exists().where(identity_addresses.c.address == mailboxes.c.address)
        rows = connection.execute(query.add_columns(owned.label("owned"))).all()
        return [self._entry(connection, row, owned=bool(row.owned)) for row in rows]

    def without_row(self, connection: Connection, size: int, after: str = "") -> list[str]:
        """Ids of accounts' addresses of which nothing was written down yet, in their order."""
        missing = ~exists().where(mailboxes.c.address == identity_addresses.c.address)
        return _ids(connection, identity_addresses.c.address, missing, size, after)

    def guessed(self, connection: Connection, size: int, after: str = "") -> list[str]:
        """Ids of those whose kind nobody has said yet, in their order."""
        return _ids(connection, mailboxes.c.address, mailboxes.c.guessed, size, after)

    def unpublished(self, connection: Connection, size: int, after: str = "") -> list[str]:
        """Ids of those of which the directory does not know the last yet, in their order."""
        return _ids(connection, mailboxes.c.address, mailboxes.c.published < mailboxes.c.version, size, after)

    def closed_before(self, connection: Connection, moment: float, size: int, after: str = "") -> list[Entry]:
        """Closed since longer than that, in the order of their ids."""
        closed = and_(mailboxes.c.state == MailboxState.CLOSED.value, mailboxes.c.closed_at < moment)
        query = select(mailboxes).where(closed, mailboxes.c.address > after).order_by(mailboxes.c.address).limit(size)
        return [self._entry(connection, row, owned=False) for row in connection.execute(query).all()]

    def shares_of(self, connection: Connection, identity_id: str) -> tuple[tuple[str, MemberRight], ...]:
        """See `shared_with`."""
        if self._accounts.identities.disabled(connection, identity_id):
            return ()
        found: dict[str, MemberRight] = {}
        for row, access in list(reach(connection, identity_id)):
            entry = self._owned(connection, row)
            if entry.record.kind in TEAMS and entry.record.state is MailboxState.ACTIVE:
                found[entry.record.address] = found.get(entry.record.address, MemberRight(0)) | rights_in(access)
        return tuple(sorted(found.items()))

    def members_of(self, connection: Connection, entry: Entry) -> tuple[Member, ...]:
        if entry.record.kind not in TEAMS:
            return ()
        found: dict[str, MemberRight] = {}
        for identity_id, access in list(holders(connection, entry.id)):
            login = self._accounts.identities.load(connection, identity_id).login
            found[login] = found.get(login, MemberRight(0)) | rights_in(access)
        return tuple(Member(login, rights) for login, rights in sorted(found.items()))

    def _kind(self, connection: Connection, address: str, mailbox_id: str) -> MailboxKind:
        """What an address is taken for until somebody says it: a patient's is one by its domain, and no guess."""
        if domain_of(address) in self.patient_domains:
            return MailboxKind.PATIENT
        return MailboxKind.ORG if any(True for _ in holders(connection, mailbox_id)) else MailboxKind.PER

    def put(self, connection: Connection, entry: Entry, *, tell: bool = True) -> Entry:
        """Write a mailbox as `entry.record` has it, over whatever row it had; `tell`: the directory is to know."""
        record = entry.record
        version = entry.version + 1 if tell else max(entry.version, 1)
        published = entry.published if tell or entry.version else version
        hidden: dict[str, Any] = {name: getattr(record, name) for name in _SEALED}
        hidden["preferences"] = written(record.preferences)
        values = {
            "kind": record.kind.value,
            "guessed": entry.guessed,
            "state": record.state.value,
            "quota_bytes": record.quota_bytes,
            "sealed": self._vault.seal(msgspec.json.encode(hidden), _context(entry.id, "record")),
            "created_at": record.created_at,
            "closed_at": record.closed_at,
            "purged_at": entry.purged_at,
            "version": version,
            "published": published,
        }
        if connection.execute(update(mailboxes).where(mailboxes.c.address == entry.id).values(**values)).rowcount == 0:
            sealed = self._vault.seal(record.address.encode(), _context(entry.id, "address"))
            connection.execute(insert(mailboxes).values(address=entry.id, sealed_address=sealed, **values))
        return replace(entry, version=version, published=published)

    def lock(self, connection: Connection, mailbox_id: str) -> None:
        """Nobody on another node changes its row until the transaction ends: what is read after this stays true."""
        connection.execute(select(mailboxes.c.address).where(mailboxes.c.address == mailbox_id).with_for_update())

    def mark_published(self, connection: Connection, entry: Entry) -> None:
        """The directory knows it as it was in this version; unless another node has told of it meanwhile: nobody knows
        then whose word came last, and it is told again."""
        its = mailboxes.c.address == entry.id
        alone = update(mailboxes).where(its, mailboxes.c.published == entry.published)
        if connection.execute(alone.values(published=entry.version)).rowcount == 0:
            connection.execute(update(mailboxes).where(its).values(published=0))

    # What accounts do to addresses (`trust.accounts_administration.AddressWatch`)

    def taken(self, connection: Connection, mailbox_id: str, *, former: bool) -> None:
        """See `trust.accounts_administration.AddressWatch`."""
        if self._to_be_told(connection, mailbox_id) and not former:
            raise AccountError(
                "an address was a mailbox before, and its mail may be there still: to give it back to whose it was, "
                "mail included, say --former-mailbox; to anybody else give another address"
            )

    def left(self, connection: Connection, mailbox_id: str) -> None:
        """See `trust.accounts_administration.AddressWatch`. Its row stays, also one that was not written yet: it says
        that the address was somebody's."""
        if not self._to_be_told(connection, mailbox_id):
            entry = self.entry_of(connection, mailbox_id)
            if entry is not None:
                self.put(connection, entry)

    def _to_be_told(self, connection: Connection, mailbox_id: str) -> bool:
        """The directory is to know; whether there is a row."""
        its = update(mailboxes).where(mailboxes.c.address == mailbox_id)
        return connection.execute(its.values(version=mailboxes.c.version + 1)).rowcount == 1

    def mark_purged(self, connection: Connection, entry: Entry, at: float) -> bool:
        """Whether it was still closed, and nobody had said so before."""
        its = (mailboxes.c.address == entry.id, mailboxes.c.state == MailboxState.CLOSED.value)
        fresh = update(mailboxes).where(*its, mailboxes.c.purged_at.is_(None)).values(purged_at=at)
        return connection.execute(fresh).rowcount == 1

    def still_closed(self, connection: Connection, entry: Entry) -> bool:
        state = connection.scalar(select(mailboxes.c.state).where(mailboxes.c.address == entry.id))
        return state == MailboxState.CLOSED.value

    def counts(self) -> dict[tuple[str, str], int]:
        """How many there are by kind and state, those without a row left out."""
        query = select(mailboxes.c.kind, mailboxes.c.state, func.count()).group_by(mailboxes.c.kind, mailboxes.c.state)
        return self._accounts.database.read(lambda c: {(kind, state): n for kind, state, n in c.execute(query)})

    def untold(self) -> int:
        """Of how many the directory does not know the last yet."""
        query = select(func.count()).select_from(mailboxes).where(mailboxes.c.published < mailboxes.c.version)
        return self._accounts.database.read(lambda connection: connection.scalar(query) or 0)

    def _owned(self, connection: Connection, row: Row[Any]) -> Entry:
        """Of a row of `identity_addresses`."""
        entry = self.entry_of(connection, row.address)
        assert entry is not None  # noqa: S101 - its account has it
        return entry

    def _address(self, row: Row[Any]) -> str:
        return self._accounts.identities.address(row)

    def _entry(self, connection: Connection, row: Row[Any], *, owned: bool) -> Entry:
        hidden = msgspec.json.decode(self._vault.unseal(row.sealed, _context(row.address, "record")))
        address = self._vault.unseal(row.sealed_address, _context(row.address, "address")).decode()
        record = MailboxRecord(
            address=address,
            kind=self._kind(connection, address, row.address) if row.guessed else MailboxKind(row.kind),
            state=MailboxState(row.state),
            quota_bytes=row.quota_bytes,
            created_at=row.created_at,
            closed_at=row.closed_at,
            preferences=preferences_of(hidden["preferences"]),
            **{name: hidden[name] for name in _SEALED},
        )
        return Entry(row.address, record, row.purged_at, row.version, row.published, row.guessed, owned)


def _ids(connection: Connection, ids: Column[str], wanted: ColumnElement[bool], size: int, after: str) -> list[str]:
    return list(connection.scalars(select(ids).where(wanted, ids > after).order_by(ids).limit(size)))


def is_ours(entry: Entry) -> bool:
    """Whether there is such a mailbox: somebody has it, or had it until it was closed."""
    return entry.owned or entry.record.state is MailboxState.CLOSED


def rights_in(access: Access) -> MemberRight:
    found = MemberRight(0)
    for right, needed in _RIGHTS.items():
        if needed in access:
            found |= right
    return found


def access_in(rights: MemberRight) -> Access:
    found = Access(0)
    for right, given in _RIGHTS.items():
        if right in rights:
            found |= given | (Access.SEND if right is MemberRight.SEND else Access(0))
    return found


def written(preferences: ReadingPreferences) -> dict[str, Any]:
    """As JSON has them."""
    return asdict(preferences) | {"custody": preferences.custody.value}


def preferences_of(values: Mapping[str, Any]) -> ReadingPreferences:
    """From JSON of this or an older or newer version: what is not said is the default, what is not known is left."""
    known = {each.name for each in fields(ReadingPreferences)} - {"custody"}
    custody = Custody(values.get("custody", Custody.GATEWAY.value))
    return ReadingPreferences(custody=custody, **{name: bool(values[name]) for name in known if name in values})


def _context(mailbox_id: str, what: str) -> bytes:
    """Binds a value to its row."""
    return f"mailbox {what}:{mailbox_id}".encode()
