"""Who may log in, as whom, and which mailboxes are theirs.

Passwords are kept as argon2id hashes (RFC 9106); besides them an identity may have application passwords, client
certificates and subjects of an OpenID provider. Guessing is stopped by locks that survive a restart and cannot be raced
by parallel attempts (`trust.lockout` says what they promise); an unknown login takes as long as a wrong password.

What administrators do is in `trust.accounts_administration`.
"""

from __future__ import annotations

import base64
import hmac
import os
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from argon2 import PasswordHasher, extract_parameters
from argon2.exceptions import Argon2Error, InvalidHashError
from argon2.low_level import hash_secret_raw
from argon2.profiles import RFC_9106_LOW_MEMORY
from cryptography import x509
from sqlalchemy import Connection, Select, delete, insert, or_, select, update

from trust import lockout
from trust.application_passwords import ApplicationPasswords, Owner, secret_of
from trust.catalogue import (
    ACCOUNT_DISABLED,
    ACCOUNT_LOCKED,
    AUTHENTICATION_FAILED,
    CERTIFICATE_REFUSED,
    TOKEN_REFUSED,
)
from trust.certificates import CertificateValidator, Purpose
from trust.client_certificates import ClientCertificates
from trust.identities import (
    AccountError,
    Identities,
    Identity,
    NameTakenError,
    Service,
    checked_address,
    checked_login,
)
from trust.journal import Journal, JournalEntry
from trust.lockout import Attempt, Judgement, LockoutOptions, network_of
from trust.oidc import OidcProvider, Subject, TokenKind
from trust.oidc_subjects import OidcSubjects
from trust.refusals import Refused
from trust.shared_addresses import Access
from trust.spraying import Spraying
from trust.store.database import Database
from trust.tables import (
    application_passwords,
    client_certificates,
    credentials,
    identities,
    identity_addresses,
    identity_locks,
    oidc_subjects,
)
from trust.vault import KeyVault

__all__ = ["AccountError", "Accounts", "Identity", "NameTakenError", "Service"]

_PASSWORD_MAX_BYTES = 1024
"""Beyond it nobody types, and hashing only costs us."""
_PASSWORD_MAX_CHARACTERS = 3 * _PASSWORD_MAX_BYTES
"""As typed: composed, no character takes fewer bytes than a third of the characters it was written with."""
_MAX_HASHES = 8
"""At once: half a gibibyte, on however large a machine."""
_DAY = 86400
_DEFAULT_OPTIONS = LockoutOptions()
_LOCKED_FOR = {
    Judgement.LOCKS: "network",
    Judgement.LOCKS_NEIGHBOURHOOD: "neighbourhood",
    Judgement.LOCKS_ACCOUNT: "unfamiliar networks",
}
"""What the journal says of an attempt that locks."""


@dataclass(frozen=True, slots=True)
class _Hash:
    """An argon2id hash, taken apart (PHC string format)."""

    salt: bytes
    digest: bytes
    time_cost: int
    memory_cost: int
    parallelism: int
    version: int

    @classmethod
    def parse(cls, text: str) -> _Hash:
        """Raises InvalidHashError, ValueError."""
        parameters = extract_parameters(text)
        salt, digest = (base64.b64decode(each + "=" * (-len(each) % 4)) for each in text.split("$")[-2:])
        return cls(
            salt, digest, parameters.time_cost, parameters.memory_cost, parameters.parallelism, parameters.version
        )


@dataclass(frozen=True, slots=True)
class _Known:
    """Whom a name means."""

    identity_id: str
    """Empty for nobody."""
    password_hash: str | None
    disabled: bool
    """An administrator keeps it out."""


@dataclass(frozen=True, slots=True)
class _Whence:
    """Where a password is said; everything empty when that is not known."""

    network: str
    source: str
    """The network as the database calls it for this account."""
    neighbourhood: str
    familiar: bool


class Accounts:
    """Identities and their credentials in one database, under one vault. Thread-safe.

    Each method that gives an `Identity` or an address raises `trust.vault.VaultError` when the database was altered or
    belongs to another vault.

    `clock` gives UNIX seconds. `hasher` sets the argon2id parameters; the default is the second recommended option of
    RFC 9106 §4: 64 MiB, 3 passes, 4 lanes. `max_failures` and `lock_seconds`, when given, stand before those of
    `options`. With a `journal` it is told when guessing locks an account.
    """

    def __init__(
        self,
        database: Database,
        vault: KeyVault,
        *,
        max_failures: int | None = None,
        lock_seconds: float | None = None,
        clock: Callable[[], float] = time.time,
        hasher: PasswordHasher | None = None,
        options: LockoutOptions = _DEFAULT_OPTIONS,
        journal: Journal | None = None,
    ) -> None:
        self.database = database
        self.identities = Identities(vault)
        self.application_passwords = ApplicationPasswords(vault)
        self.certificates = ClientCertificates(vault)
        self.subjects = OidcSubjects(vault)
        self._vault = vault
        self._options = replace(
            options,
            max_failures=options.max_failures if max_failures is None else max_failures,
            lock_seconds=options.lock_seconds if lock_seconds is None else lock_seconds,
        )
        self._spraying = Spraying(options.network_failures)
        self.clock = clock
        self._journal = journal
        self._hasher = hasher or PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)
        self._hash_of_nobody = self._hasher.hash(os.urandom(16))
        # Each hash takes 64 MiB: more at once than processors would only cost memory.
        self._hashing = threading.BoundedSemaphore(min(os.cpu_count() or 2, _MAX_HASHES))

    def create(self, login: str, addresses: Sequence[str], password: str | None) -> None:
        """Make the identity of that login exactly this, whatever it was before, and unlock it.

        Without a password it cannot log in with one. Its application passwords, certificates and linked subjects are
        gone. Raises `NameTakenError`, `AccountError` for a name or a password that cannot be one (`hash_password`).
        """
        password_hash = None if password is None else self.hash_password(password)

        def replace(connection: Connection) -> None:
            identity_id = self.identities.pseudonym(login)
            for theirs in (application_passwords, client_certificates, oidc_subjects, identity_locks):
                connection.execute(delete(theirs).where(theirs.c.identity_id == identity_id))
            self.put(connection, login, addresses)
            self.put_password(connection, identity_id, password_hash)

        self.database.transact(replace)

    def put(self, connection: Connection, login: str, addresses: Sequence[str]) -> str:
        """Write the identity of that login with exactly these addresses; returns its id. Raises `AccountError` for
        names that cannot be, `NameTakenError`.

        What is granted on an address it keeps stays granted.
        """
        identity_id = self.identities.pseudonym(login)
        rows = self.identities.address_rows(identity_id, addresses)
        self.identities.check_free(connection, identity_id, rows)
        for each in addresses:
            checked_address(each)
        if connection.scalar(select(identities.c.id).where(identities.c.id == identity_id)) is None:
            sealed = self.identities.sealed_login(checked_login(login))
            connection.execute(insert(identities).values(id=identity_id, sealed_login=sealed))
        mine = identity_addresses.c.identity_id == identity_id
        kept = set(connection.scalars(select(identity_addresses.c.address).where(mine)))
        wanted = {row["address"] for row in rows}
        connection.execute(delete(identity_addresses).where(mine, identity_addresses.c.address.in_(kept - wanted)))
        for row in rows:
            if row["address"] in kept:
                connection.execute(
                    update(identity_addresses)
                    .where(identity_addresses.c.address == row["address"])
                    .values(position=row["position"])
                )
            else:
                connection.execute(insert(identity_addresses).values(**row))
        return identity_id

    def put_password(self, connection: Connection, identity_id: str, password_hash: str | None) -> None:
        """Replace the main password, and forget who guessed at the old one."""
        connection.execute(delete(credentials).where(credentials.c.identity_id == identity_id))
        if password_hash is not None:
            connection.execute(insert(credentials).values(identity_id=identity_id, password_hash=password_hash))
        lockout.release(connection, identity_id)

    def authenticate(
        self, login: str, password: str, client: str = "", service: Service | None = None
    ) -> Identity | Refused:
        """Who this is. `login` is an identity's login or one of its addresses, whatever the case; with an application
        password it may also be an address the identity was granted.

        `client` is the address of whoever says the password, empty when that is not known; `service` what for. Refused
        with `trust.authentication-failed`, `trust.account-disabled` or `trust.account-locked`. A locked account says so
        even to the right password, which must not be found out meanwhile; addresses are public, so their existence is
        no secret. Takes tens of milliseconds of processor time: not on an event loop.
        """
        name = self.identities.pseudonym(login)
        shown = self._application_password(login, password, service)
        if shown is not None:
            return shown
        known, whence = self.database.read(lambda connection: self._before(connection, name, client))
        if not whence.familiar and self._spraying.is_full(whence.network, self.clock()):
            return Refused(ACCOUNT_LOCKED)
        matches, digest = self._work(known.password_hash or self._hash_of_nobody, password)
        if known.disabled:
            answer: Identity | Refused = Refused(ACCOUNT_DISABLED)
        elif known.password_hash is None or (not matches and secret_of(password) is not None):
            # What has the form of an application password is no guess, but a telephone with a withdrawn one.
            answer = Refused(AUTHENTICATION_FAILED)
        else:
            password_hash = known.password_hash
            attempt = Attempt(known.identity_id, whence.source, whence.neighbourhood, matches, digest)
            # Judged in the one writer's order and only now: of any number of parallel guesses no more than allowed are
            # answered.
            answer = self.database.transact(lambda connection: self._settle(connection, attempt, password_hash))
            if isinstance(answer, Identity) and self._hasher.check_needs_rehash(password_hash):
                self._renew(answer.id, password_hash, password)
        if isinstance(answer, Refused) and not whence.familiar:
            self._spraying.count(whence.network, self.clock())
        return answer

    def open_mailbox(
        self, address: str, password: str, client: str = "", service: Service | None = Service.IMAP
    ) -> Identity | Refused:
        """As `authenticate`, for whoever wants to read the mailbox of this address; refused when they may not."""
        found = self.authenticate(address, password, client, service)
        if isinstance(found, Refused) or address.strip().lower() in found.addresses or self.may_open(found, address):
            return found
        return Refused(AUTHENTICATION_FAILED)

    def authenticate_certificate(
        self,
        certificate: x509.Certificate,
        intermediates: Iterable[x509.Certificate],
        validator: CertificateValidator,
        at: datetime | None = None,
    ) -> Identity | Refused:
        """Whose certificate this is, after `validator` believed it for TLS clients at the moment `at` (aware; now).

        That its owner holds the key is for the TLS handshake to show. Refused with `trust.certificate-refused` or
        `trust.account-disabled`. Guesses lock nobody here, and no lock holds: a key is not guessed.
        """
        moment = at or datetime.fromtimestamp(self.clock(), UTC)
        verdict = validator.validate(certificate, intermediates, Purpose.OPERATOR_TLS_CLIENT, moment)
        if not verdict.ok:
            return Refused(CERTIFICATE_REFUSED, verdict.rule)
        bound = self.database.read(lambda connection: self.certificates.holders(connection, verdict.path))
        found = self._sole({each.identity_id for each in bound})
        if found is None:
            return Refused(CERTIFICATE_REFUSED)
        if isinstance(found, Identity):
            stale = [each.id for each in bound if each.last_used != self._today()]
            if stale:
                self.database.transact(lambda connection: self.certificates.used(connection, stale, self.clock()))
        return found

    def authenticate_token(
        self, token: str, provider: OidcProvider, login: str = "", kind: TokenKind = TokenKind.ACCESS
    ) -> Identity | Refused:
        """Whose token of `provider` this is; `login`, when given, must be that identity or an address it may use.

        Refused with `trust.token-refused`, `trust.token-keys-unavailable` or `trust.account-disabled`.
        """
        subject = provider.check(token, kind)
        return subject if isinstance(subject, Refused) else self.by_subject(subject, login)

    def by_subject(self, subject: Subject, login: str = "") -> Identity | Refused:
        """The identity a believed token names; see `authenticate_token`."""
        linked = self.database.read(lambda c: self.subjects.holders(c, subject.issuer, subject.claims))
        found = self._sole({each.identity_id for each in linked})
        if found is None:
            return Refused(TOKEN_REFUSED)
        if isinstance(found, Refused):
            return found
        if login and not self._answers_to(found, login):
            return Refused(TOKEN_REFUSED)
        stale = [each.id for each in linked if each.last_used != self._today()]
        if stale:
            self.database.transact(lambda connection: self.subjects.used(connection, stale, self.clock()))
        return found

    def by_address(self, address: str) -> Identity | None:
        """The identity that owns this mailbox."""
        owner = select(identity_addresses.c.identity_id).where(
            identity_addresses.c.address == self.identities.pseudonym(address)
        )

        def find(connection: Connection) -> Identity | None:
            identity_id = connection.scalar(owner)
            return None if identity_id is None else self.identities.load(connection, identity_id)

        return self.database.read(find)

    def access(self, identity: Identity, address: str) -> Access:
        """What the identity may do with this address.

        Asked of the database, so that revoking, or closing the account, counts at once.
        """
        return self.database.read(lambda c: self.identities.access(c, identity.id, address))

    def may_open(self, identity: Identity, address: str) -> bool:
        """Whether the identity may have the mailbox open as if it were its own: read and write in it."""
        return Access.READ | Access.WRITE in self.access(identity, address)

    def may_use(self, identity: Identity, address: str) -> bool:
        """Whether the identity may name the address as the sender on the envelope: its owner, or who was granted it."""
        return Access.SEND in self.access(identity, address)

    def may_sign_as(self, identity: Identity, address: str) -> bool:
        """Whether mail of this identity may be signed with the mailbox's key, and be From it."""
        return Access.SIGN in self.access(identity, address)

    def addresses(self) -> tuple[str, ...]:
        """Every mailbox, sorted."""
        every = select(identity_addresses)
        rows = self.database.read(lambda connection: connection.execute(every).all())
        return tuple(sorted(self.identities.address(row) for row in rows))

    def hash_password(self, password: str) -> str:
        """To keep a main password by. Raises `AccountError` when it has not 1 to 1,024 bytes of UTF-8, has control
        characters besides the tab (RFC 8265 §4.2: not every client could send them), or could be an application
        password."""
        prepared = _prepared(password)
        if not 1 <= len(prepared) <= _PASSWORD_MAX_BYTES:
            raise AccountError(f"a password has 1 to {_PASSWORD_MAX_BYTES} bytes")
        if any(unicodedata.category(each) in ("Cc", "Cs") for each in password.replace("\t", "")):
            raise AccountError("a password has no control characters and is valid Unicode")
        if secret_of(password) is not None:
            raise AccountError("this has the form of an application password: choose another password")
        return self._hasher.hash(prepared)

    def _application_password(self, login: str, password: str, service: Service | None) -> Identity | Refused | None:
        """Who logs in with an application password that exists and is meant for this login; else None."""

        def look(connection: Connection) -> tuple[Owner, Identity | Refused] | None:
            owner = self.application_passwords.owner(connection, password)
            if owner is None:
                return None
            own = self.identities.named(connection, login) == owner.identity_id
            if not own and not self.identities.access(connection, owner.identity_id, login):
                return None
            if self.identities.disabled(connection, owner.identity_id):
                return owner, Refused(ACCOUNT_DISABLED)
            if owner.services and service not in owner.services:
                return owner, Refused(AUTHENTICATION_FAILED)
            return owner, self.identities.load(connection, owner.identity_id)

        found = self.database.read(look)
        if found is None:
            return None
        owner, answer = found
        if isinstance(answer, Identity) and owner.last_used != self._today():
            self.database.transact(lambda c: self.application_passwords.used(c, owner.id, self.clock()))
        return answer

    def _before(self, connection: Connection, name: str, client: str) -> tuple[_Known, _Whence]:
        """What there is to know before a password is looked at: whose it should be, and where it is said."""
        known, network = _known(connection, name), network_of(client)
        if not network:
            return known, _Whence("", "", "", False)
        source = self._vault.pseudonym("login source", known.identity_id, network)
        near = self._vault.pseudonym("login neighbourhood", known.identity_id, lockout.neighbourhood_of(client))
        familiar = lockout.is_familiar_source(connection, known.identity_id, source, self._options, self.clock())
        return known, _Whence(network, source, lockout.neighbourhood_name(near), familiar)

    def _sole(self, found: set[str]) -> Identity | Refused | None:
        """The one identity, unless it is closed; None for nobody, or more than one."""
        if len(found) != 1:
            return None
        (identity_id,) = found

        def load(connection: Connection) -> Identity | Refused:
            if self.identities.disabled(connection, identity_id):
                return Refused(ACCOUNT_DISABLED)
            return self.identities.load(connection, identity_id)

        return self.database.read(load)

    def _answers_to(self, identity: Identity, login: str) -> bool:
        return self.identities.pseudonym(login) == identity.id or bool(self.access(identity, login))

    def _settle(self, connection: Connection, attempt: Attempt, password_hash: str) -> Identity | Refused:
        # Checked against a hash that was replaced meanwhile, the old password would still open.
        if connection.scalar(_hash_of(attempt.identity_id)) != password_hash:
            return Refused(AUTHENTICATION_FAILED)
        if self.identities.disabled(connection, attempt.identity_id):
            return Refused(ACCOUNT_DISABLED)
        judgement = lockout.judge(connection, attempt, self._options, self.clock())
        match judgement:
            case Judgement.RIGHT:
                return self.identities.load(connection, attempt.identity_id)
            case Judgement.LOCKED:
                return Refused(ACCOUNT_LOCKED)
            case Judgement() if judgement in _LOCKED_FOR and self._journal is not None:
                entry = JournalEntry(
                    "accounts",
                    "account.locked",
                    "done",
                    object_id=attempt.identity_id,
                    reason="wrong passwords",
                    details={"for": _LOCKED_FOR[judgement], "source": attempt.source[:16]},
                )
                self._journal.append(connection, entry)
        return Refused(AUTHENTICATION_FAILED)

    def _renew(self, identity_id: str, password_hash: str, password: str) -> None:
        """Keep a password that is known to be right by the parameters of today; an older hash is cheaper to search, and
        by the time it takes tells who has one."""
        with self._hashing:
            renewed = self._hasher.hash(_prepared(password))
        theirs = (credentials.c.identity_id == identity_id, credentials.c.password_hash == password_hash)
        change = update(credentials).where(*theirs).values(password_hash=renewed)
        self.database.transact(lambda connection: connection.execute(change) and None)

    def _work(self, password_hash: str, password: str) -> tuple[bool, bytes]:
        """Whether the password belongs to the hash, and a keyed digest of what argon2id made of it.

        The same work for every password and every hash of one age, and never less than for nobody's.
        """
        prepared = _prepared(password)
        try:
            stored = _Hash.parse(password_hash)
        except (InvalidHashError, ValueError):
            stored = _Hash.parse(self._hash_of_nobody)
        with self._hashing:
            try:
                made = hash_secret_raw(
                    prepared[:_PASSWORD_MAX_BYTES],
                    stored.salt,
                    stored.time_cost,
                    stored.memory_cost,
                    stored.parallelism,
                    len(stored.digest),
                    extract_parameters(self._hash_of_nobody).type,
                    stored.version,
                )
            except Argon2Error:
                return False, bytes(lockout.DIGEST_BYTES)
        matches = hmac.compare_digest(made, stored.digest) and 1 <= len(prepared) <= _PASSWORD_MAX_BYTES
        digest = self._vault.pseudonym("wrong password", made.hex())[: 2 * lockout.DIGEST_BYTES]
        return matches, bytes.fromhex(digest)

    def is_familiar(self, good_at: float) -> bool:
        """See `trust.lockout.is_familiar`."""
        return lockout.is_familiar(good_at, self._options, self.clock())

    def _today(self) -> int:
        return int(self.clock() // _DAY)


def _known(connection: Connection, name: str) -> _Known:
    """Who logs in under this name."""
    by_address = select(identity_addresses.c.identity_id).where(identity_addresses.c.address == name)
    query = (
        select(identities.c.id, credentials.c.password_hash, identity_locks.c.at)
        .outerjoin(credentials, credentials.c.identity_id == identities.c.id)
        .outerjoin(identity_locks, identity_locks.c.identity_id == identities.c.id)
        .where(or_(identities.c.id == name, identities.c.id.in_(by_address)))
    )
    row = connection.execute(query).first()
    return _Known("", None, False) if row is None else _Known(row.id, row.password_hash, row.at is not None)


def _hash_of(identity_id: str) -> Select[Any]:
    return select(credentials.c.password_hash).where(credentials.c.identity_id == identity_id)


def _prepared(password: str) -> bytes:
    """One form however the keyboard composed it (RFC 8265 §4.2: NFC, every space an ASCII space), as UTF-8; whatever
    more than a password can have is cut off, and what remains is too long to be one."""
    password = password[: _PASSWORD_MAX_CHARACTERS + 1]
    spaces = "".join(" " if unicodedata.category(each) == "Zs" else each for each in password)
    return unicodedata.normalize("NFC", spaces).encode("utf-8", "surrogatepass")
