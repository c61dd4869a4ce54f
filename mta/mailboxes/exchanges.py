"""What patients may answer: exchanges are begun by professionals, and last until one of them says that it is over.

A mail that reaches a patient's mailbox begins an exchange, or goes on with the one it refers to (In-Reply-To,
References). Whom it is from, whom it asks to be answered and whom else it is to may be written back to; the patient's
own answers belong to it as well, so that what answers them does. `X-MSS-MES: FIN` (ECO.2.2.8), or a subject that begins
with `[FIN]`, ends it; another mail of a professional in the same exchange goes on with it. All of this is rows, so it
holds after a restart and on every node, and every name in them is a keyed pseudonym.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from mta.header import author_of, message_id_of
from mta.mailboxes.tables import patient_exchange_mail, patient_exchange_people, patient_exchanges
from mta.smtp.address import domain_of, is_address
from smime.addresses import AddressError, from_addresses
from smime.mime import Entity
from smime.words import decoded_words
from trust.store.database import Database
from trust.vault import KeyVault

MAX_PEOPLE = 100
"""Of one mail, who may be answered."""
MAX_REFERENCES = 100
"""Of one mail, the last ones: as many as an exchange plausibly has."""
_ID = re.compile(r"<[!-;=?-~]{1,248}>")
_LONGEST = 64 * 1024
"""Characters of a field that are looked at."""
_END = "FIN"
_END_SUBJECT = "[FIN]"


class Exchanges:
    """Thread-safe; every method may block."""

    def __init__(
        self,
        database: Database,
        vault: KeyVault,
        patient_domains: Collection[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Addresses of `patient_domains` (lower case) are patients': none may write to another."""
        self._database = database
        self._vault = vault
        self._patient_domains = frozenset(patient_domains)
        self._clock = clock

    def arrived(self, patient: str, header: Entity) -> None:
        """A professional's mail is about to be filed for this patient. Repeated, it changes nothing."""
        message_id, author = message_id_of(header), author_of(header)
        if not message_id or author is None or self.is_patient(author):
            return
        try:
            self._arrived(patient, header, author, message_id)
        except IntegrityError:  # another node has just written the same: then there is nothing left to write
            self._arrived(patient, header, author, message_id)

    def _arrived(self, patient: str, header: Entity, author: str, message_id: str) -> None:
        own, over = self._message(patient, message_id), says_end(header)
        people = {self._person(patient, each) for each in self._people(header, author)}

        def write(connection: Connection) -> None:
            if connection.scalar(_exchange_of(own)) is not None:  # seen before
                return
            now = self._clock()
            writer = self._person(patient, author)
            # Nobody goes on with, or ends, what others have begun without them.
            named = [
                each for each in self._named(connection, patient, header) if writer in _people_of(connection, each)
            ]
            if not named:
                named = [own]
                began = {"id": own, "patient": self._patient(patient), "last_at": now}
                connection.execute(insert(patient_exchanges).values(**began))
            connection.execute(insert(patient_exchange_mail).values(message=own, exchange=named[0]))
            state = {"last_at": now, "ended_at": now if over else None}
            connection.execute(update(patient_exchanges).where(patient_exchanges.c.id.in_(named)).values(**state))
            fresh = sorted(people - _people_of(connection, named[0]))
            for correspondent in fresh:
                row = {"exchange": named[0], "correspondent": correspondent}
                connection.execute(insert(patient_exchange_people).values(**row))

        self._database.transact(write)

    def is_patient(self, address: str) -> bool:
        """Patients' mailboxes, and only they, are in the patients' domains. Does not block."""
        return domain_of(address) in self._patient_domains

    def knows(self, patient: str, correspondent: str) -> bool:
        """Whether there is an exchange with that address, open or over."""
        theirs = (
            select(patient_exchanges.c.id)
            .join(patient_exchange_people, patient_exchange_people.c.exchange == patient_exchanges.c.id)
            .where(
                patient_exchanges.c.patient == self._patient(patient),
                patient_exchange_people.c.correspondent == self._person(patient, correspondent),
            )
        )
        return self._database.read(lambda connection: connection.scalar(theirs.limit(1))) is not None

    def answers(self, patient: str, header: Entity, recipients: Iterable[str]) -> bool:
        """Whether the patient's mail answers one in an open exchange, and is only to people of it; if so it is of that
        exchange from now on."""
        wanted = {self._person(patient, each) for each in recipients}
        own_id = message_id_of(header)

        def look(connection: Connection) -> str | None:
            for exchange in self._named(connection, patient, header):
                ended = select(patient_exchanges.c.ended_at).where(patient_exchanges.c.id == exchange)
                if connection.scalar(ended) is None and wanted <= _people_of(connection, exchange):
                    return exchange
            return None

        found = self._database.read(look)
        if found is not None and own_id:
            message = self._message(patient, own_id)

            def note(connection: Connection) -> None:
                still = connection.scalar(select(patient_exchanges.c.id).where(patient_exchanges.c.id == found))
                if still is not None and connection.scalar(_exchange_of(message)) is None:
                    connection.execute(insert(patient_exchange_mail).values(message=message, exchange=found))

            self._database.transact(note)
        return found is not None

    def receipts(self, patient: str, message_id: str, recipients: Iterable[str], digest: str) -> bool:
        """Whether what the patient sends may be the receipt for that mail: it is of an exchange with all these people,
        open or over, and there was no receipt for it before but this one, whose octets have this digest."""
        try:
            return self._receipts(patient, message_id, recipients, digest)
        except IntegrityError:  # another node has just written it
            return self._receipts(patient, message_id, recipients, digest)

    def _receipts(self, patient: str, message_id: str, recipients: Iterable[str], digest: str) -> bool:
        wanted = {self._person(patient, each) for each in recipients}
        about = self._message(patient, message_id)
        first = self._vault.pseudonym("exchange receipt", patient.lower(), message_id)
        same = self._vault.pseudonym("exchange receipt", patient.lower(), message_id, digest)

        def write(connection: Connection) -> bool:
            exchange = connection.scalar(_exchange_of(about))
            if exchange is None or not wanted or not wanted <= _people_of(connection, exchange):
                return False
            if connection.scalar(_exchange_of(first)) is None:
                for each in (first, same):
                    connection.execute(insert(patient_exchange_mail).values(message=each, exchange=exchange))
                return True
            return connection.scalar(_exchange_of(same)) is not None

        return self._database.transact(write)

    def purge(self, before: float, size: int) -> int:
        """Forget exchanges without a professional's mail since then, so many at most; how many there were."""
        old = select(patient_exchanges.c.id).where(patient_exchanges.c.last_at < before).limit(size)

        def write(connection: Connection) -> int:
            ids = list(connection.scalars(old))
            for table in (patient_exchange_mail, patient_exchange_people):
                connection.execute(delete(table).where(table.c.exchange.in_(ids)))
            connection.execute(delete(patient_exchanges).where(patient_exchanges.c.id.in_(ids)))
            return len(ids)

        waiting = self._database.read(lambda connection: connection.scalar(old.limit(1)))
        return 0 if waiting is None else self._database.transact(write)

    def _people(self, header: Entity, author: str) -> Iterable[str]:
        """Who may be answered: who wrote it, where answers are wanted (Reply-To), and who else it is to."""
        found = [author]
        for name in ("reply-to", "to", "cc"):
            try:
                found += from_addresses(header, name)
            except AddressError:  # of a group, say: nobody of it
                continue
        usable = (each.lower() for each in found if is_address(each) and not self.is_patient(each))
        return list(dict.fromkeys(usable))[:MAX_PEOPLE]

    def _named(self, connection: Connection, patient: str, header: Entity) -> Iterable[str]:
        """The exchanges of what this mail refers to, the nearest first, each once."""
        seen: set[str] = set()
        for message_id in references_of(header):
            exchange = connection.scalar(_exchange_of(self._message(patient, message_id)))
            if exchange is not None and exchange not in seen:
                seen.add(exchange)
                yield exchange

    def _patient(self, address: str) -> str:
        return self._vault.pseudonym("exchange patient", address.lower())

    def _person(self, patient: str, address: str) -> str:
        return self._vault.pseudonym("exchange person", patient.lower(), address.lower())

    def _message(self, patient: str, message_id: str) -> str:
        return self._vault.pseudonym("exchange message", patient.lower(), message_id)


def references_of(header: Entity) -> list[str]:
    """Message-IDs it refers to (RFC 5322 §3.6.4), the nearest first: In-Reply-To, then References from its end."""
    near = answered_by(header)
    far = [found for value in header.values("references") for found in _ID.findall(value[-_LONGEST:])]
    return list(dict.fromkeys([*near, *reversed(far)]))[:MAX_REFERENCES]


def answered_by(header: Entity) -> list[str]:
    """Message-IDs it answers: those of In-Reply-To."""
    found = (each for value in header.values("in-reply-to") for each in _ID.findall(value[:_LONGEST]))
    return list(dict.fromkeys(found))


def says_end(header: Entity) -> bool:
    """Whether it is the last message of an exchange: `X-MSS-MES: FIN`, else `[FIN]` before the subject (ECO.2.2.8)."""
    if any(value.strip().upper() == _END for value in header.values("x-mss-mes")):
        return True
    return any(
        decoded_words(value[:_LONGEST]).lstrip().upper().startswith(_END_SUBJECT) for value in header.values("subject")
    )


def _exchange_of(message: str) -> Any:
    return select(patient_exchange_mail.c.exchange).where(patient_exchange_mail.c.message == message)


def _people_of(connection: Connection, exchange: str) -> set[str]:
    theirs = patient_exchange_people.c.exchange == exchange
    return set(connection.scalars(select(patient_exchange_people.c.correspondent).where(theirs)))
