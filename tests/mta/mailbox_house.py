"""An operator's mailboxes on a real database, for tests: accounts, registry, administration, rules, exchanges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from argon2 import PasswordHasher

from directory.records import MailboxKind
from mta.mailboxes.administration import MailboxAdministration
from mta.mailboxes.exchanges import Exchanges
from mta.mailboxes.records import MailboxRecord, MemberRight
from mta.mailboxes.registry import Entry, Registry
from mta.mailboxes.rules import MailboxRules
from trust.accounts import Accounts
from trust.accounts_administration import Administration
from trust.journal import Journal
from trust.store.database import Database
from trust.vault import KeyVault

QUICK = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
DOMAIN, PATIENTS = "op1.example", "patient.op1.example"
DOCTOR, OTHER, SECRETARY = f"dr.gris@{DOMAIN}", f"dr.noir@{DOMAIN}", f"secretaire@{DOMAIN}"
TEAM, MACHINE = f"urgences@{DOMAIN}", f"automate@{DOMAIN}"
PATIENT = f"299019900100133@{PATIENTS}"
"""Of nobody: month and place do not exist."""
READ, WRITE, SEND = MemberRight.READ, MemberRight.WRITE, MemberRight.SEND
PASSWORD = "mot de passe"


@dataclass
class House:
    database: Database
    vault: KeyVault
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        self.accounts = Accounts(self.database, self.vault, hasher=QUICK, clock=self.clock)
        self.registry = Registry(self.accounts, self.vault, [PATIENTS])
        self.journal = Journal(self.vault, "here")
        self.people = Administration(self.accounts, self.journal, self.registry)
        self.administration = MailboxAdministration(self.registry, self.accounts, self.journal, [DOMAIN, PATIENTS])
        self.exchanges = Exchanges(self.database, self.vault, [PATIENTS], self.clock)
        self.rules = MailboxRules(self.registry, self.exchanges)

    def create(self, address: str, kind: MailboxKind, label: str = "", password: str | None = None) -> Entry:
        if kind is not MailboxKind.PATIENT:
            label = label or "Cabinet fictif"
        record = MailboxRecord(address=address, kind=kind, label=label)
        return self.administration.create(record, "", password, "root")

    def furnish(self) -> None:
        """One of each kind; the secretary may read and send in the team's name."""
        self.create(DOCTOR, MailboxKind.PER, "Dr Camille GRIS", PASSWORD)
        self.create(OTHER, MailboxKind.PER, "Dr Dominique NOIR", PASSWORD)
        self.create(SECRETARY, MailboxKind.PER, "Claude FICTIF", PASSWORD)
        self.create(TEAM, MailboxKind.ORG, "Urgences")
        self.create(MACHINE, MailboxKind.APP, "Automate")
        self.create(PATIENT, MailboxKind.PATIENT, password=PASSWORD)
        self.administration.set_member(TEAM, SECRETARY, READ | SEND, "root")

    def actions(self) -> list[str]:
        return [each.entry.action for each in reversed(self.database.read(self.journal.entries)) if each.entry]
