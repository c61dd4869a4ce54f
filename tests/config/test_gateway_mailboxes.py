"""What keeps the records of mailboxes in a running gateway; and who opens which mailbox, by password or token."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import pytest
from prometheus_client.registry import CollectorRegistry
from structlog.testing import capture_logs

from config.gateway.mailboxes import MailboxCollector, Mailboxes, Records
from config.mailbox_answers import MailboxAnswers
from directory.records import MailboxKind
from directory.resolve import DirectoryRefusedError, DirectoryUnavailableError
from mta.mailboxes import refusals
from mta.mailboxes.records import MailboxRecord
from tests.mta.conftest import Clock, with_tables
from tests.mta.mailbox_house import DOCTOR, MACHINE, PASSWORD, READ, SECRETARY, TEAM, WRITE, House
from trust.catalogue import AUTHENTICATION_FAILED, CERTIFICATE_REFUSED
from trust.identities import Identity, Service
from trust.refusals import Refused
from trust.vault import KeyVault, VaultError


class Work:
    """Adoption and listing at once: what each turn does, in order."""

    def __init__(self, *turns: int | Exception) -> None:
        self.turns = list(turns)

    def turn(self) -> int:
        done = self.turns.pop(0) if self.turns else 0
        if isinstance(done, Exception):
            raise done
        return done


async def test_a_directory_that_is_away_is_asked_again_soon_and_told_of_once() -> None:
    away = DirectoryUnavailableError("timeout")
    listing = Work(0, 0, 0, 0, 0, DirectoryRefusedError("no"), 0)
    records = Records(Work(0, away, away, 3, 0, 0, 0), listing)  # type: ignore[arg-type]
    with capture_logs() as logs:
        pauses = [await records._turn() for _ in range(7)]
    assert pauses[0] == pauses[4] == pauses[6] == 300.0
    assert pauses[1] == pauses[2] == pauses[5] == 20.0
    assert pauses[3] < 1, "there may be more"
    assert [(each["event"], each.get("error")) for each in logs] == [
        ("mailboxes.directory-not-told", "DirectoryUnavailableError"),
        ("mailboxes.directory-told", None),
        ("mailboxes.directory-not-told", "DirectoryRefusedError"),
        ("mailboxes.directory-told", None),
    ]


async def test_neither_keeps_the_other_from_its_turn() -> None:
    listing = Work(100, DirectoryRefusedError("no"))
    records = Records(Work(ValueError(), 100), listing)  # type: ignore[arg-type]
    assert await records._turn() < 1
    assert await records._turn() < 1
    assert listing.turns == []


async def test_nothing_that_breaks_ends_the_gateway_or_names_anybody() -> None:
    records = Records(Work(ValueError(DOCTOR)), None)  # type: ignore[arg-type]
    with capture_logs() as logs:
        assert await records._turn() == 300.0
    assert DOCTOR not in str(logs)


@pytest.fixture
def house(tmp_path: Path):
    with with_tables(f"sqlite:///{tmp_path / 'relais.db'}") as database:
        made = House(database, KeyVault.create(tmp_path / "vault"), Clock())
        made.furnish()
        yield made


def test_who_opens_what(house: House) -> None:
    mailboxes = Mailboxes(house.registry, house.rules, house.exchanges, house.accounts)

    def opens(address: str, password: str = PASSWORD) -> Identity | Refused:
        return mailboxes.sign_in(address, password, "", Service.IMAP)

    assert isinstance(opens(DOCTOR), Identity)
    house.administration.suspend(DOCTOR, "", "root")
    assert opens(DOCTOR) == Refused(refusals.MAILBOX_SHUT)
    assert opens(DOCTOR, "faux") == Refused(AUTHENTICATION_FAILED)
    assert mailboxes.exists(DOCTOR)
    house.administration.close(DOCTOR, "fermée", "root")
    assert not mailboxes.exists(DOCTOR)

    secretary = house.accounts.by_address(SECRETARY)
    assert secretary is not None
    machine = house.accounts.by_address(MACHINE)
    assert machine is not None
    tokens: Callable[[str, str], Identity | Refused] = mailboxes.token_sign_in(
        lambda address, token: {"hers": secretary, "its": machine}.get(token, Refused(AUTHENTICATION_FAILED))
    )
    assert tokens(SECRETARY, "hers") == secretary
    assert tokens(SECRETARY, "none") == Refused(AUTHENTICATION_FAILED)
    assert tokens(TEAM, "hers") == Refused(AUTHENTICATION_FAILED), "reading and sending is not all it takes"
    house.administration.set_member(TEAM, SECRETARY, READ | WRITE, "root")
    assert tokens(TEAM, "hers") == secretary
    assert tokens(MACHINE, "its") == Refused(refusals.CERTIFICATE_ONLY)
    assert mailboxes.opened(MACHINE, machine, certified=True) == machine
    house.administration.close(SECRETARY, "partie", "root")
    assert tokens(TEAM, "hers") == Refused(refusals.MAILBOX_SHUT), "who has left reads the team's no more"


class Slow:
    """A directory's writer that fails in a way nobody thought of."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def tell(self, mailbox_id: str) -> None:
        self.events.append("told")
        raise VaultError("altered")


def test_sessions_end_before_the_directory_is_told_and_whatever_it_does(house: House) -> None:
    events: list[str] = []

    def ends(addresses: Collection[str]) -> bool:
        events.append(" ".join(sorted(addresses)))
        return True

    answers = MailboxAnswers(house.administration, Slow(events), ends, None)  # type: ignore[arg-type]
    shown = answers.calls()["mailbox.close"]({"name": SECRETARY, "reason": "partie", "by": "root"})
    assert (shown["state"], shown["sessions_ended"]) == ("closed", True)
    assert events == [f"{SECRETARY} {TEAM}", "told"], "her own, and what she shares"


class Broken:
    """A directory that must not be asked."""

    def one(self, mailbox_id: str) -> None:
        raise VaultError("altered")


def test_what_shuts_a_mailbox_waits_for_no_directory(house: House) -> None:
    house.accounts.create("ancien@op1.example", ["ancien@op1.example"], None)
    calls = MailboxAnswers(house.administration, None, None, Broken()).calls()  # type: ignore[arg-type]
    for name in ("ancien@op1.example", DOCTOR):
        for act in ("mailbox.suspend", "mailbox.close"):
            shown = calls[act]({"name": name, "reason": "volée", "by": "root"})
        assert shown["state"] == "closed"


def test_a_password_ends_what_it_opened(house: House) -> None:
    second = MailboxRecord(address="recherche@op1.example", kind=MailboxKind.PER, label="Dr Camille GRIS")
    house.administration.create(second, DOCTOR, None, "root")
    ended: list[list[str]] = []
    calls = MailboxAnswers(house.administration, None, lambda each: bool(ended.append(sorted(each)) or True)).calls()
    calls["mailbox.password"]({"name": DOCTOR, "password": "nouveau", "by": "root"})
    assert ended == [sorted([DOCTOR, second.address])]


def test_what_a_certificate_opens(house: House) -> None:
    machine = house.accounts.by_address(MACHINE)
    assert machine is not None
    mailboxes = Mailboxes(house.registry, house.rules, house.exchanges, house.accounts)
    asked: list[str] = []

    def certificates(shown: Sequence[bytes], login: str) -> Identity | Refused:
        asked.append(login)
        return machine if shown == (b"its",) else Refused(CERTIFICATE_REFUSED)

    sign_in = mailboxes.certificate_sign_in(certificates)
    for wanted in ("", MACHINE, f" {MACHINE.upper()} "):
        assert sign_in((b"its",), wanted) == machine
    assert sign_in((b"other",), "") == Refused(CERTIFICATE_REFUSED)
    assert sign_in((b"its",), TEAM) == Refused(CERTIFICATE_REFUSED, "login")
    house.administration.set_member(TEAM, MACHINE, READ, "root")
    assert sign_in((b"its",), TEAM) == machine, "who only reads comes in"
    assert sign_in((b"its",), DOCTOR) == Refused(CERTIFICATE_REFUSED, "login")
    house.administration.suspend(TEAM, "", "root")
    assert isinstance(sign_in((b"its",), TEAM), Refused)
    house.administration.suspend(MACHINE, "", "root")
    assert sign_in((b"its",), "") == Refused(refusals.MAILBOX_SHUT)
    house.administration.open(MACHINE, "root")
    assert sign_in((b"its",), "") == machine
    house.administration.close(MACHINE, "remplacé", "root")
    assert sign_in((b"its",), "") == Refused(refusals.MAILBOX_SHUT)
    assert set(asked) == {""}, "who may send as a name is another question"


def test_they_are_counted(house: House) -> None:
    registry = CollectorRegistry()
    registry.register(MailboxCollector(house.registry))
    house.administration.suspend(TEAM, "", "root")
    assert registry.get_sample_value("relais_mailboxes", {"kind": "PER", "state": "active"}) == 3
    assert registry.get_sample_value("relais_mailboxes", {"kind": "ORG", "state": "suspended"}) == 1
    assert registry.get_sample_value("relais_mailboxes_untold") == 6
