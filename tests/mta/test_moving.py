"""A mailbox put aside, brought back and moved between two real Dovecots; nothing is lost or readable."""

from __future__ import annotations

import imaplib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mta.mailboxes.mailbox_keys import RING, MailboxKeys
from mta.mailboxes.moving import CopyError, Holding, MailboxCopies
from tests.support.dovecot import PASSWORD, PATIENT, Running, a_dovecot
from tests.support.private import give, service_directory
from trust.sealing import VaultError
from trust.vault import KeyVault

DOCTOR = "medecin@ville.mssante.test"
OTHER = "garde@ville.mssante.test"


class Copies(MailboxCopies):
    """What it writes belongs to the service user, whom the gateway would be."""

    places: tuple[Path, ...] = ()
    before: tuple[str, Callable[[], object]] = ("", lambda: None)
    """What happens just before a command that begins so is given."""

    def _ask(self, address: str, *command: str) -> str:
        beginning, happens = self.before
        if beginning and " ".join(command).startswith(beginning):
            self.before = ("", happens)
            happens()
        for each in self.places:
            if each.exists():
                give(each)
        return super()._ask(address, *command)


def copies(running: Running, *places: Path) -> Copies:
    realm = running.options.realms[0]
    made = Copies(
        running.dovecot.search_socket, realm.home_of, MailboxKeys(running.vault), running.dovecot.memory, 60.0
    )
    made.places = (*places, realm.home)
    return made


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with a_dovecot() as server:
        yield server


@pytest.fixture
def place() -> Iterator[Path]:
    with service_directory() as root:
        (root / "copy").mkdir(mode=0o700)
        give(root)
        yield root / "copy"


def fill(running: Running, user: str, *texts: str) -> None:
    for text in texts:
        assert running.deliver(user, text, f"{user} {text}", subject="Secretsubject")[0] == 250


def folder_texts(running: Running, user: str, folder: str) -> list[bytes]:
    with running.log_in(user, PASSWORD) as client:
        if client.select(folder)[0] != "OK":
            return []
        numbers = client.search(None, "ALL")[1][0].split()
        return [client.fetch(n, "(BODY.PEEK[TEXT])")[1][0][1].strip() for n in numbers]


def test_a_backup_is_complete_and_unreadable(running: Running, place: Path) -> None:
    user = f"{PATIENT}@patient.mssante.test"
    fill(running, user, "Hémoglobine 8", "deux")
    script = running.options.realms[0].home_of(user) / "sieve"
    script.mkdir(mode=0o700)
    (script / "tri.sieve").write_text("keep;\n")
    give(script)
    held = copies(running, place).backup(user, place)
    assert held.messages == 2
    assert held.octets > 100
    content = b"".join(each.read_bytes() for each in place.rglob("*") if each.is_file())
    for secret in ("Hémoglobine", "Secretsubject", PATIENT, "BEGIN PRIVATE"):
        assert secret.encode() not in content
        assert not any(secret in str(each) for each in place.rglob("*"))
    assert (place / "sieve/tri.sieve").read_text() == "keep;\n"
    fill(running, user, "trois")
    assert copies(running, place).backup(user, place).messages == 3, "into the same directory again"


def test_what_was_deleted_comes_back_beside_what_came_since(running: Running, place: Path) -> None:
    fill(running, DOCTOR, "un", "deux")
    copies(running, place).backup(DOCTOR, place)
    with running.log_in(DOCTOR, PASSWORD) as client:
        client.select("INBOX")
        client.store("1:*", "+FLAGS", "\\Deleted")
        client.expunge()
    fill(running, DOCTOR, "depuis")
    copies(running, place).restore(DOCTOR, place)
    assert running.texts(DOCTOR) == [b"depuis"], "nothing is touched"
    assert folder_texts(running, DOCTOR, "Restauration/INBOX") == [b"un", b"deux"]
    copies(running, place).restore(DOCTOR, place, exactly=True)
    assert running.texts(DOCTOR) == [b"un", b"deux"]
    assert folder_texts(running, DOCTOR, "Restauration/INBOX") == []


def test_a_lost_mailbox_is_restored_with_its_key(running: Running, place: Path) -> None:
    fill(running, OTHER, "premier", "second")
    with running.log_in(OTHER, PASSWORD) as client:
        client.select("INBOX")
        client.store("2", "+FLAGS", "\\Flagged")
        validity = client.response("UIDVALIDITY")[1][0]
    copies(running, place).backup(OTHER, place)
    home = running.options.realms[0].home_of(OTHER)
    shutil.rmtree(home)
    assert running.deliver(OTHER, "meanwhile", "m-1")[0] == 250, "with a new key, made since"
    with running.log_in(OTHER, PASSWORD) as client:
        client.select("INBOX")
        client.store("1", "+FLAGS", "\\Deleted")
        client.expunge()
    copies(running, place).restore(OTHER, place)
    assert running.texts(OTHER) == [b"premier", b"second"]
    with running.log_in(OTHER, PASSWORD) as client:
        client.select("INBOX")
        assert client.response("UIDVALIDITY")[1][0] == validity
        assert b"\\Flagged" in client.fetch("2", "(FLAGS)")[1][0]
    assert running.deliver(OTHER, "after", "m-2")[0] == 250
    assert running.texts(OTHER)[-1] == b"after"


def emptied(running: Running, user: str) -> None:
    with running.log_in(user, PASSWORD) as client:
        client.select("INBOX")
        client.store("1:*", "+FLAGS", "\\Deleted")
        client.expunge()


def test_mail_that_comes_while_an_empty_mailbox_is_restored_is_kept(running: Running, place: Path) -> None:
    user = "o'neil+a=b@ville.mssante.test"
    fill(running, user, "ancien")
    mine = copies(running, place)
    mine.backup(user, place)
    emptied(running, user)
    # Before the mailbox is held: what was filed changes how it is restored.
    counted = mine.holding
    mine.holding = lambda address: (counted(address), fill(running, user, "entre"))[0]  # type: ignore[method-assign]
    mine.hold = lambda address: (setattr(mine, "holding", counted), MailboxCopies.hold(mine, address))[1]  # type: ignore[method-assign]
    mine.restore(user, place)
    assert running.texts(user) == [b"entre"]
    assert folder_texts(running, user, "Restauration/INBOX") == [b"ancien"]
    # While it is made what it was: what comes waits.
    mine, told = copies(running, place), []
    emptied(running, user)
    with running.log_in(user, PASSWORD) as client:
        client.select("Restauration/INBOX")
        client.store("1:*", "+FLAGS", "\\Deleted")
        client.expunge()
    mine.before = ("backup -R", lambda: told.append(running.deliver(user, "pendant", "pendant-1")[0]))
    mine.restore(user, place)
    assert told == [451]
    assert running.texts(user) == [b"ancien"]
    assert running.deliver(user, "pendant", "pendant-1")[0] == 250, "not held any more"
    assert not list((running.dovecot.memory / "copies").rglob("dovecot*")), "nothing of a copy is remembered"


def test_a_backup_whose_key_the_mailbox_has_lost_is_not_overwritten(running: Running, place: Path) -> None:
    user = "o'neil+a=b@ville.mssante.test"
    fill(running, user, "precieux")
    mine, home = copies(running, place), running.options.realms[0].home_of(user)
    mine.backup(user, place)
    kept = (place / RING).read_bytes()
    shutil.rmtree(home)
    assert running.deliver(user, "neuf", "neuf-1")[0] == 250
    with pytest.raises(CopyError, match="lost the key"):
        mine.backup(user, place)
    assert (place / RING).read_bytes() == kept
    mine.restore(user, place)
    assert b"precieux" in folder_texts(running, user, "Restauration/INBOX")
    assert running.texts(user) == [b"neuf"], "both keys are there"
    assert mine.backup(user, place).messages > 1, "and now it goes on"


def test_only_what_was_moved_out_whole_is_removed(running: Running, place: Path) -> None:
    fill(running, OTHER, "reste")
    mine, home = copies(running, place), running.options.realms[0].home_of(OTHER)
    mine.before = ("backup", mine.close)
    with pytest.raises(CopyError):
        mine.move_out(OTHER, place)  # the gateway ended
    mine = copies(running, place)
    mine.hold(OTHER)
    with pytest.raises(CopyError, match="--out again"):
        mine.forget(OTHER)
    mine.move_out(OTHER, place)
    marker = (home / "held").read_bytes()
    mine.release(OTHER)
    fill(running, OTHER, "en retard")  # one that had begun before
    (home / "held").write_bytes(marker)
    with pytest.raises(CopyError, match="mail came"):
        mine.forget(OTHER)
    mine.release(OTHER)
    assert b"en retard" in running.texts(OTHER)
    mine.move_out(OTHER, place)
    remembered = running.dovecot.memory / "headers"
    assert list(remembered.glob(f"**/{home.name}"))
    mine.forget(OTHER)
    mine.forget(OTHER)  # as after an interruption
    assert not list(remembered.glob(f"**/{home.name}")), "what was remembered went too"
    mine.release(OTHER)


def test_a_move_in_that_is_refused_locks_nothing(running: Running, place: Path) -> None:
    fill(running, DOCTOR, "ici")
    mine = copies(running, place)
    mine.backup(DOCTOR, place)
    with pytest.raises(CopyError, match="holds mail"):
        mine.move_in(DOCTOR, place)
    assert running.deliver(DOCTOR, "toujours", "toujours-1")[0] == 250


def test_a_mailbox_moves_to_another_dovecot(running: Running, place: Path) -> None:
    user = "labo@ville.mssante.test"
    fill(running, user, "avant")
    with running.log_in(user, PASSWORD) as client:
        client.select("INBOX")
        client.store("1", "+FLAGS", "\\Answered")
        validity = client.response("UIDVALIDITY")[1][0]
    with a_dovecot(vault=running.vault) as other:
        here, there = copies(running, place), copies(other, place)
        moved = here.move_out(user, place)
        assert moved.messages == 1
        assert running.deliver(user, "pendant", "p-1")[0] == 451, "waits"
        with pytest.raises(imaplib.IMAP4.error):
            running.log_in(user, PASSWORD).select("INBOX")
        assert there.move_in(user, place) == moved
        assert other.deliver(user, "pendant", "p-1")[0] == 250
        assert other.texts(user) == [b"avant", b"pendant"]
        with other.log_in(user, PASSWORD) as client:
            client.select("INBOX")
            assert client.response("UIDVALIDITY")[1][0] == validity
            assert b"\\Answered" in client.fetch("1", "(FLAGS)")[1][0]
        with pytest.raises(CopyError, match="holds mail"):
            there.move_in(user, place)
        here.forget(user)
        assert [each.name for each in running.options.realms[0].home_of(user).iterdir()] == ["held"]
        with pytest.raises(CopyError, match="not held"):
            there.forget(user)
    here.release(user)
    assert running.deliver(user, "plus tard", "p-2")[0] == 250


def test_what_cannot_be_done_is_said_without_a_name(running: Running, place: Path, tmp_path: Path) -> None:
    fill(running, DOCTOR, "x")
    mine = copies(running, place)
    mine.backup(DOCTOR, place)
    stranger = Copies(
        running.dovecot.search_socket,
        running.options.realms[0].home_of,
        MailboxKeys(KeyVault.create(tmp_path / "vault")),
        running.dovecot.memory,
    )
    full = place.parent / "full"
    full.mkdir()
    (full / "letter.txt").write_text("x")
    attempts = [
        (VaultError, lambda: mine.restore(OTHER, place)),
        (VaultError, lambda: mine.backup(OTHER, place)),
        (VaultError, lambda: stranger.restore(DOCTOR, place)),
        (CopyError, lambda: mine.restore(DOCTOR, full)),
        (CopyError, lambda: mine.backup(DOCTOR, full)),
        (CopyError, lambda: mine.backup(DOCTOR, Path("relative"))),
        (CopyError, lambda: mine.backup(DOCTOR, running.options.realms[0].home_of(DOCTOR))),
        (CopyError, lambda: mine.backup(DOCTOR, Path("/tmp/a b\tc"))),
        (CopyError, lambda: mine.backup("x@elsewhere.test", place)),
        (CopyError, lambda: mine.backup("*@ville.mssante.test", place.parent / "new")),
        (CopyError, lambda: mine.holding("nobody@ville.mssante.test")),
        (CopyError, lambda: mine.forget(DOCTOR)),
    ]
    for kind, attempt in attempts:
        with pytest.raises(kind) as caught:
            attempt()
        assert "@" not in str(caught.value).replace(". _ / + @", "")
    silent = MailboxCopies(
        place / "absent", running.options.realms[0].home_of, MailboxKeys(running.vault), running.dovecot.memory
    )
    with pytest.raises(CopyError, match="is it running"):
        silent.holding(DOCTOR)
    assert isinstance(mine.holding(DOCTOR), Holding)
    assert (place / RING).exists()
