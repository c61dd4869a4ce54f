"""What operators do to mailboxes: create, suspend, open, close, members, quota, preferences; each act is in the
journal, in the transaction that does it.

Every method takes `by`, who does it, and raises `AccountError` with a sentence when it cannot be done. Addresses,
labels and logins stay out of the journal: it names mailboxes and accounts by their pseudonyms. Whoever is named may be
named by address or by the id that `list` shows: a patient's address on a command line would show a matricule to every
user of the machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from sqlalchemy import Connection

from directory.records import MailboxKind
from mta.mailboxes.records import MailboxRecord, MailboxState, Member, MemberRight, ReadingPreferences
from mta.mailboxes.registry import TEAMS, Entry, Registry, access_in, rights_in
from mta.smtp.address import domain_of
from trust.accounts import Accounts
from trust.identities import AccountError, checked_address, normalised
from trust.journal import Journal, JournalEntry
from trust.shared_addresses import access_of_others, members_of_team, owner_of, set_access

T = TypeVar("T")

LONGEST_TEXT = 200
"""Of a label, a reason, an organisation."""
LARGEST_QUOTA = 1 << 50
_MATRICULE = re.compile(r"[0-9]{6}[0-9a-z][0-9]{8}")
"""With its key, which official test identities have wrong; Corsica's departments have a letter."""
_LIKE_A_MATRICULE = re.compile(r"[0-9]{6}[0-9ABab][0-9]{6}")
_ID_BEGINNING = re.compile(r"[0-9a-f]{8,64}")
_IDENTIFIER = re.compile(r"[0-9A-Za-z/._-]{0,64}")


@dataclass(frozen=True, slots=True)
class Shown:
    """A mailbox as `relais mailbox show` has it."""

    entry: Entry
    members: tuple[Member, ...]
    reach: tuple[str, ...]
    """Addresses under which it, or by its owner another, may be open now: its own, those of its members, and those of
    the teams its owner has a share in."""


class MailboxAdministration:
    """Thread-safe, as `Accounts` is."""

    def __init__(self, registry: Registry, accounts: Accounts, journal: Journal, domains: Collection[str]) -> None:
        """`domains`, lower case: those whose mailboxes are ours."""
        self._registry = registry
        self._accounts = accounts
        self._journal = journal
        self._domains = frozenset(domains)

    # What there is

    def list(
        self, after: str, size: int, kind: MailboxKind | None = None, state: MailboxState | None = None
    ) -> tuple[Entry, ...]:
        """Those after that id, in the order of ids."""

        def read(connection: Connection) -> tuple[Entry, ...]:
            return tuple(self._registry.page(connection, after, size, kind, state))

        return self._accounts.database.read(read)

    def show(self, name: str) -> Shown:
        """By address, or by the beginning of its id."""

        def read(connection: Connection) -> Shown:
            return self._shown(connection, self._named(connection, name))

        return self._accounts.database.read(read)

    # Its life

    def create(self, record: MailboxRecord, login: str, password: str | None, by: str) -> Entry:
        """A new mailbox, and its account unless `login` is one that exists: then that one has an address more.

        Empty `login`: its address logs in. A machine has no password."""
        address = checked_address(record.address)
        record = replace(checked(record), address=address, created_at=self._accounts.clock())
        self._check_kind(record)
        if record.kind is MailboxKind.APP and password is not None:
            raise AccountError("a machine has no password: bind its client certificate with relais account certificate")
        password_hash = None if password is None else self._accounts.hash_password(password)

        def work(connection: Connection) -> Entry:
            known = self._registry.entry(connection, address)
            if known is not None and known.owned and known.record.state is not MailboxState.CLOSED:
                raise AccountError("there is a mailbox of this address already")
            if known is not None:  # its mail may be there still
                raise AccountError(
                    "this address was a mailbox before, and is never given to somebody else: give it back to whose it "
                    "was with relais mailbox open, or with relais account create --former-mailbox if its account was "
                    "deleted; or choose another"
                )
            self._put_account(connection, login or address, address, password_hash)
            entry = self._registry.put(connection, Entry(self._registry.id_of(address), record))
            details = {"kind": record.kind.value, "password": "yes" if password_hash else "no"}
            self._note(connection, by, "mailbox.created", entry.id, details)
            return entry

        return self._do(work)

    def suspend(self, name: str, reason: str, by: str) -> Entry:
        """Mail comes in; nobody reads or sends until it is opened again."""
        return self._change_state(name, MailboxState.SUSPENDED, reason, by)

    def close(self, name: str, reason: str, by: str) -> Entry:
        """Mail is refused with the reason; what it holds is kept for the retention period."""
        if not reason.strip():
            raise AccountError("say why with --reason: whoever writes to the mailbox is told")
        return self._change_state(name, MailboxState.CLOSED, reason, by)

    def open(self, name: str, by: str) -> Entry:
        """Again, while its mail is there."""
        return self._change_state(name, MailboxState.ACTIVE, "", by)

    def _change_state(self, name: str, state: MailboxState, reason: str, by: str) -> Entry:
        reason = checked_text(reason, "a reason")
        if _LIKE_A_MATRICULE.search(reason.replace(" ", "")):
            raise AccountError("the reason is told to others: no number of a patient in it")

        def change(connection: Connection, entry: Entry) -> Entry:
            record = entry.record
            if entry.purged_at is not None and state is not MailboxState.CLOSED:
                raise AccountError("its retention has ended and its mail is gone: it stays closed")
            if state is not MailboxState.CLOSED and not entry.owned:
                raise AccountError("its account was deleted: it can only be closed")
            if record.state is MailboxState.CLOSED and state is MailboxState.SUSPENDED:
                raise AccountError("it is closed: open it first")
            closed_at = record.closed_at if state is record.state else None
            if state is MailboxState.CLOSED:
                closed_at = closed_at or self._accounts.clock()
            entry = replace(entry, record=replace(record, state=state, reason=reason, closed_at=closed_at))
            # What the directory shows changes only with what is closed.
            tell = MailboxState.CLOSED in (state, record.state)
            entry = self._registry.put(connection, entry, tell=tell)
            self._note(connection, by, f"mailbox.{_ACTS[state]}", entry.id, reason=reason)
            return entry

        return self._on(name, change)

    # What it is

    def describe(self, name: str, by: str, kind: MailboxKind | None = None, **values: str) -> Entry:
        """Its label, IdNat or organisation; its kind while nobody has said it. Its address and kind never change
        (TRE_R257)."""

        def change(connection: Connection, entry: Entry) -> Entry:
            if entry.guessed and kind is None:
                raise AccountError("what kind of mailbox this is has not been said yet: say it with --kind")
            if not entry.guessed and kind not in (None, entry.record.kind):
                raise AccountError(f"this is a mailbox of kind {entry.record.kind.value}: its kind never changes")
            record = checked(replace(entry.record, kind=kind or entry.record.kind, **values))  # type: ignore[arg-type]
            if entry.guessed:
                self._check_kind(record)
            _check_label(record)
            entry = self._registry.put(connection, replace(entry, record=record, guessed=False))
            details = {"fields": " ".join(sorted(values))} | ({"kind": kind.value} if kind else {})
            self._note(connection, by, "mailbox.described", entry.id, details)
            return entry

        return self._on(name, change)

    def set_quota(self, name: str, quota_bytes: int, by: str) -> Entry:
        """0: the gateway's default."""

        def change(connection: Connection, entry: Entry) -> Entry:
            record = checked(replace(entry.record, quota_bytes=quota_bytes))
            entry = self._registry.put(connection, replace(entry, record=record), tell=False)
            self._note(connection, by, "mailbox.quota-set", entry.id, {"bytes": str(quota_bytes)})
            return entry

        return self._on(name, change)

    def set_preferences(self, name: str, preferences: ReadingPreferences, by: str) -> Entry:
        def change(connection: Connection, entry: Entry) -> Entry:
            record = replace(entry.record, preferences=preferences)
            entry = self._registry.put(connection, replace(entry, record=record), tell=False)
            self._note(connection, by, "mailbox.preferences-set", entry.id, {"custody": preferences.custody.value})
            return entry

        return self._on(name, change)

    def set_password(self, name: str, password: str | None, by: str) -> Shown:
        """Of the account that has it; None takes it away. Its reach is what that password opened."""
        password_hash = None if password is None else self._accounts.hash_password(password)

        def change(connection: Connection, entry: Entry) -> Shown:
            if entry.record.kind is MailboxKind.APP and password_hash is not None:
                raise AccountError("a machine logs in with its client certificate, never with a password")
            identity_id = self._accounts.identities.required(connection, entry.record.address)
            self._accounts.put_password(connection, identity_id, password_hash)
            act = "mailbox.password-set" if password_hash else "mailbox.password-removed"
            self._note(connection, by, act, entry.id, {"account": identity_id})
            theirs = self._accounts.identities.load(connection, identity_id).addresses
            return replace(self._shown(connection, entry), reach=theirs)

        return self._on(name, change)

    # Who else

    def set_member(self, name: str, login: str, rights: MemberRight, by: str) -> Shown:
        """What an account may do in a team's mailbox from now on; nothing: it is no member any more."""

        def change(connection: Connection, entry: Entry) -> Shown:
            if entry.record.kind not in TEAMS:
                say = "; if this is one, say so first with relais mailbox describe --kind" if entry.guessed else ""
                raise AccountError(f"only a team's or a practice's mailbox (ORG, CAB) has members{say}")
            member = self._accounts.identities.required(connection, login)
            if member == self._accounts.identities.named(connection, entry.record.address):
                raise AccountError("that is the mailbox's own account")
            before = self._registry.members_of(connection, entry)
            known = self._accounts.identities.load(connection, member).login
            if not rights and known not in {each.login for each in before}:
                raise AccountError("this account is no member of the mailbox")
            owner = owner_of(connection, entry.id)
            if owner is None:
                raise AccountError("its account was deleted: nobody has rights in it")
            set_access(connection, entry.id, member, access_in(rights))
            if rights_in(access_of_others(connection, member, entry.id, owner)) != rights:
                raise AccountError(
                    "it may do more as a member of the team's account, or of another that has rights here: end that "
                    "first with relais account revoke --member-of"
                )
            details = {"account": member, "rights": words_of(rights) or "none"}
            self._note(connection, by, "mailbox.member-set", entry.id, details)
            reach = (entry.record.address, *self._addresses(connection, [member]))
            return replace(self._shown(connection, entry), reach=reach)

        return self._on(name, change)

    def _shown(self, connection: Connection, entry: Entry) -> Shown:
        members = self._registry.members_of(connection, entry)
        named = [self._accounts.identities.named(connection, each.login) for each in members]
        theirs = self._addresses(connection, [each for each in named if each])
        owner = owner_of(connection, entry.id)
        shares = [] if owner is None else [address for address, _ in self._registry.shares_of(connection, owner)]
        return Shown(entry, members, tuple(dict.fromkeys((entry.record.address, *theirs, *shares))))

    def _addresses(self, connection: Connection, whose: Iterable[str]) -> tuple[str, ...]:
        """Of these identities and, where one is a team's, of its members."""
        acting = dict.fromkeys(each for one in whose for each in (one, *members_of_team(connection, one)))
        found = (self._accounts.identities.load(connection, each).addresses for each in acting)
        return tuple(address for each in found for address in each)

    def _put_account(self, connection: Connection, login: str, address: str, password_hash: str | None) -> None:
        identities = self._accounts.identities
        known = identities.named(connection, login)
        if known is None:
            identity_id = self._accounts.put(connection, login, [address])
            self._accounts.put_password(connection, identity_id, password_hash)
            return
        if password_hash is not None:
            raise AccountError("this account exists already, with its own password")
        theirs = identities.load(connection, known)
        self._accounts.put(connection, theirs.login, [*theirs.addresses, address])

    def _check_kind(self, record: MailboxRecord) -> None:
        domain, patients = domain_of(record.address), self._registry.patient_domains
        if domain not in self._domains:
            raise AccountError("its domain is not one of this operator's (operator.domains)")
        if (record.kind is MailboxKind.PATIENT) != (domain in patients):
            raise AccountError("patients' mailboxes, and only they, are in the patients' domains")
        if record.kind is MailboxKind.PATIENT and not _MATRICULE.fullmatch(record.address.partition("@")[0]):
            raise AccountError("a patient's mailbox is named after the matricule: 15 characters, with its key")
        _check_label(record)

    def _named(self, connection: Connection, name: str) -> Entry:
        """By address or the beginning of an id. Raises `AccountError`."""
        name = normalised(name)
        entry = self._registry.entry(connection, name) if "@" in name else None
        if "@" not in name and _ID_BEGINNING.fullmatch(name):
            found = self._registry.starting_with(connection, name)
            if len(found) > 1:
                raise AccountError("several mailboxes have ids that begin so: give more of it")
            entry = self._registry.entry_of(connection, found[0]) if found else None
        if entry is None:
            raise AccountError("there is no mailbox of this address or id")
        return entry

    def _on(self, name: str, change: Callable[[Connection, Entry], T]) -> T:
        def work(connection: Connection) -> T:
            entry = self._named(connection, name)
            self._registry.lock(connection, entry.id)
            return change(connection, self._registry.entry_of(connection, entry.id) or entry)

        return self._do(work)

    def _do(self, work: Callable[[Connection], T]) -> T:
        return self._accounts.database.transact(work)

    def _note(
        self,
        connection: Connection,
        by: str,
        action: str,
        mailbox_id: str,
        details: Mapping[str, str] | None = None,
        reason: str = "",
    ) -> None:
        entry = JournalEntry(
            by, action, "done", object_id=mailbox_id, reason=reason, purpose="administration", details=details or {}
        )
        self._journal.append(connection, entry)


_ACTS = {
    MailboxState.ACTIVE: "opened",
    MailboxState.SUSPENDED: "suspended",
    MailboxState.CLOSED: "closed",
}


def _check_label(record: MailboxRecord) -> None:
    """Raises `AccountError`."""
    if record.kind is MailboxKind.PATIENT and record.label:
        raise AccountError("a patient's mailbox has no label")
    if record.kind is not MailboxKind.PATIENT and not record.label:
        raise AccountError("say with --label what it is called: `Titre Prénom NOM`, or what the team is called")


def checked(record: MailboxRecord) -> MailboxRecord:
    """With texts as they are kept. Raises `AccountError`."""
    if not _IDENTIFIER.fullmatch(record.id_nat):
        raise AccountError("an identifier (IdNat) has letters and digits only")
    if not 0 <= record.quota_bytes <= LARGEST_QUOTA:
        raise AccountError("a quota is between 0 (the default) and one pebibyte")
    return replace(
        record,
        label=checked_text(record.label, "a label"),
        organisation=checked_text(record.organisation, "an organisation's name"),
    )


def checked_text(text: str, what: str) -> str:
    """One line. Raises `AccountError`."""
    text = " ".join(text.split())
    if len(text) > LONGEST_TEXT or not text.isprintable():
        raise AccountError(f"{what} has at most {LONGEST_TEXT} characters, none of them for control")
    return text


def words_of(rights: MemberRight) -> str:
    return " ".join(each.name.lower() for each in MemberRight if each in rights and each.name)
