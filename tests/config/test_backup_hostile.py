"""Old, mixed, half-removed and future backups; keys replaced before, after and during one; two at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from config import backup_command
from config.backup import cutting
from config.backup.manifest import MANIFEST, OBJECTS
from config.backup.sources import SCRATCH, alone
from config.backup.store import BackupError, BackupStore
from mta.tables import deliveries
from tests.config.backup_state import State, backed_up, cut_of, made_in, relais_toml, restored, run
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault


@pytest.fixture(autouse=True)
def stay_who_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands run in this process: it must not become another user."""
    monkeypatch.setattr(backup_command, "drop", lambda state: state.mkdir(parents=True, exist_ok=True))


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    yield from made_in(tmp_path / "state")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def opened(root: Path) -> dict[str, bytes]:
    """Every mail of a restored state, by what it begins with."""
    vault = KeyVault.open(root / "vault")
    with closing(Database(f"sqlite:///{root / 'relais.db'}")) as database:
        blobs = BlobStore(root / "blobs", vault, database)
        named = database.read(lambda connection: connection.exec_driver_sql("SELECT content_blob FROM mta_messages"))
        contents = [blobs.get("mta-content", blob) for (blob,) in named.all()]
    return {content.partition(b"a mail")[0].decode(): content for content in contents}


def verified(target: Path, state: State, *more: str) -> str:
    told = run("backup", "verify", target, "--state", state.root, *more)
    return "" if told.exit_code == 0 else told.output


# --- The key is replaced ----------------------------------------------------------------------------------------------


def test_a_backup_before_the_key_was_replaced_and_one_after_both_come_back(
    state: State,
    target: Path,
    tmp_path: Path,
) -> None:
    old, new = tmp_path / "old-kek", tmp_path / "new-kek"
    shutil.copy2(state.root / "vault" / "kek", old)
    before = backed_up(state, target)["cut"]
    assert run("keys", "rewrap", "--state", state.root).exit_code == 0
    shutil.copy2(state.root / "vault" / "kek", new)
    assert old.read_bytes() != new.read_bytes()
    state.accept("mail-3")
    after = backed_up(state, target)["cut"]
    listed = json.loads(run("backup", "list", target, "--json").stdout)
    assert listed[0]["key"] != listed[1]["key"]
    for cut, right, wrong, mails in ((before, old, new, 3), (after, new, old, 4)):
        place = tmp_path / cut
        told = run("restore", target, "--state", place, "--kek", wrong, "--cut", cut)
        assert told.exit_code == 1 and "is needed" in told.output
        done = run("restore", target, "--state", place, "--kek", right, "--cut", cut)
        assert done.exit_code == 0, done.output
        assert sorted(opened(place)) == [f"mail-{number}" for number in range(mails)]


def test_a_key_replaced_during_the_backup_makes_no_cut_that_nothing_opens(
    state: State, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = cutting.Cutter._database

    def replaced(self: cutting.Cutter, part: Any, reader: Any) -> None:
        database(self, part, reader)
        state.vault.renew_key()

    with monkeypatch.context() as patched:
        patched.setattr(cutting.Cutter, "_database", replaced)
        told = run("backup", target, "--state", state.root)
    assert told.exit_code == 1 and "replaced meanwhile" in told.output
    assert BackupStore(target).cuts() == []
    backed_up(state, target)


def test_a_key_about_to_take_its_place_is_not_in_it(state: State, target: Path, tmp_path: Path) -> None:
    (state.root / "vault" / "kek.new").write_bytes(bytes(32))
    (state.root / "vault" / "kek.new").chmod(0o600)
    backed_up(state, target)
    assert restored(state, target, tmp_path / "new").exit_code == 0
    assert not (tmp_path / "new" / "vault" / "kek.new").exists()


def test_a_key_that_systemd_keeps_is_not_written_to_disk(
    state: State, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "credentials"
    folder.mkdir(mode=0o700)
    (state.root / "vault" / "kek").rename(folder / "relais-kek")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    backed_up(state, target)
    done = run("restore", target, "--state", tmp_path / "new")
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "new" / "vault" / "kek").exists()
    assert len(opened(tmp_path / "new")) == 3


@pytest.mark.parametrize("where", ["outside", "state/secrets"])
def test_a_vault_that_stands_elsewhere_comes_along_without_its_key(
    state: State, target: Path, tmp_path: Path, where: str
) -> None:
    vault = tmp_path / where
    (state.root / "vault").rename(vault)
    configuration = tmp_path / "relais.toml"
    configuration.write_text(relais_toml(state.root, f'[keys]\nvault = "{vault}"\n'))
    assert run("keys", "escrow", "--config", configuration, "--out", tmp_path / "sheets").exit_code == 0
    kek = tmp_path / "kek"
    sheets = sorted((tmp_path / "sheets").iterdir())
    assert run("keys", "recover", *sheets, "--out", kek).exit_code == 0
    done = run("backup", target, "--config", configuration)
    assert done.exit_code == 0, done.output
    assert "authentic" in run("backup", "verify", target, "--config", configuration).output
    done = run("restore", target, "--state", tmp_path / "new", "--kek", kek)
    assert done.exit_code == 0, done.output
    place = tmp_path / "new" / ("vault" if where == "outside" else "secrets")
    assert (f"was {vault}" in done.output) is (where == "outside")
    assert KeyVault.open(place).pseudonym("a") == KeyVault.open(vault).pseudonym("a")
    (place / "kek").unlink()
    assert not [
        path for path in (tmp_path / "new").rglob("*") if path.is_file() and path.read_bytes() == kek.read_bytes()
    ]


# --- Somebody arranges the cuts ---------------------------------------------------------------------------------------


def test_an_old_cut_under_the_name_of_a_new_one_is_found_out(state: State, target: Path, tmp_path: Path) -> None:
    backed_up(state, target)
    old = cut_of(target)
    kept = tmp_path / "kept"
    shutil.copytree(old, kept)
    state.accept("mail-3")
    backed_up(state, target)
    new = cut_of(target)
    shutil.rmtree(new)
    shutil.copytree(kept, new)
    assert "another name" in verified(target, state)
    assert restored(state, target, tmp_path / "new").exit_code == 1


def test_a_clock_that_was_set_back_hides_no_backup(
    state: State, target: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = BackupStore(target)
    with store.writing():
        first = store.free_name(datetime(2036, 1, 1, tzinfo=UTC))
        store.finish(store.new_cut(), first)
        names = [first]
        for _ in range(11):
            names.append(store.free_name(datetime(2026, 1, 1, tzinfo=UTC)))
            store.finish(store.new_cut(), names[-1])
    assert names == sorted(names) == store.cuts()
    cut = backed_up(state, target)["cut"]
    assert cut_of(target).name == cut
    assert verified(target, state) == ""


def test_a_damaged_last_cut_does_not_stop_the_next_backup(state: State, target: Path) -> None:
    backed_up(state, target)
    (cut_of(target) / OBJECTS).write_bytes(b"torn")
    backed_up(state, target)
    assert verified(target, state) == ""


@pytest.mark.parametrize("damage", [MANIFEST, OBJECTS])
def test_nothing_is_removed_while_a_cut_that_stays_is_not_whole(state: State, target: Path, damage: str) -> None:
    backed_up(state, target)
    state.accept("mail-3")
    backed_up(state, target)
    objects = sorted((target / "objects").rglob("*"))
    cuts = BackupStore(target).cuts()
    file = cut_of(target) / damage
    kept = file.read_bytes()
    if damage == MANIFEST:
        file.unlink()
    else:  # cut at the end of a line: no line is wrong
        file.write_bytes(b"".join(kept.splitlines(keepends=True)[:-2]))
    store = BackupStore(target)
    with pytest.raises(BackupError, match=r"not whole|is not the file"), store.writing():
        store.keep_only(1)
    assert sorted((target / "objects").rglob("*")) == objects and store.cuts() == cuts
    file.write_bytes(kept)
    assert run("backup", target, "--state", state.root, "--keep", "1").exit_code == 0
    assert verified(target, state) == "" and len(store.cuts()) == 1


def test_an_object_nobody_vouches_for_is_not_believed(state: State, target: Path, tmp_path: Path) -> None:
    """Left by a run that was killed, or of a cut before the last one: whoever can write there may have changed it."""
    backed_up(state, target)
    shutil.rmtree(cut_of(target))
    for path in (target / "objects").rglob("*"):
        if path.is_file():
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)
    backed_up(state, target)
    assert verified(target, state) == ""
    assert restored(state, target, tmp_path / "new").exit_code == 0
    assert len(opened(tmp_path / "new")) == 3


# --- Killed, and two at a time ----------------------------------------------------------------------------------------


def test_a_copy_of_the_database_that_a_killed_backup_left_is_removed_and_not_kept(state: State, target: Path) -> None:
    left = state.root / f"{SCRATCH}abc"
    left.mkdir()
    (left / "relais.db").write_bytes(b"x")
    backed_up(state, target)
    assert not left.exists()
    assert not list(state.root.glob(f"{SCRATCH}*"))


def test_one_at_a_time(state: State, target: Path, tmp_path: Path) -> None:
    backed_up(state, target)
    (tmp_path / "new").mkdir()
    with alone(state.root), alone(tmp_path / "new"):
        told = run("backup", tmp_path / "another", "--state", state.root)
        assert told.exit_code == 1 and "is under way" in told.output
        told = restored(state, target, tmp_path / "new")
        assert told.exit_code == 1 and "is under way" in told.output
    assert restored(state, target, tmp_path / "new").exit_code == 0


def test_the_database_is_let_go_before_the_mailboxes_are_copied(
    state: State, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its log would grow with every mail as long as anybody reads an older moment."""
    files = cutting.Cutter._files
    checkpoints: list[tuple[int, int]] = []

    def looked(self: cutting.Cutter, part: Any, threads: Any) -> None:
        state.accept("meanwhile")
        with state.database.engine.connect() as connection:
            connection.exec_driver_sql("ROLLBACK")
            busy, log, _ = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()
            checkpoints.append((busy, log))
            connection.exec_driver_sql("BEGIN")
        files(self, part, threads)

    monkeypatch.setattr(cutting.Cutter, "_files", looked)
    backed_up(state, target)
    assert checkpoints == [(0, 0)]


# --- What was under way -----------------------------------------------------------------------------------------------


def test_what_was_under_way_waits_for_a_person_when_asked_to(state: State, target: Path, tmp_path: Path) -> None:
    backed_up(state, target)
    kek = state.root / "vault" / "kek"
    done = run("restore", target, "--state", tmp_path / "new", "--kek", kek, "--hold")
    assert done.exit_code == 0 and "3 deliveries were under way at the cut and are held" in done.output
    with closing(Database(f"sqlite:///{tmp_path / 'new' / 'relais.db'}")) as database:
        rows = database.read(lambda connection: connection.execute(deliveries.select()).all())
        assert all(row.held_at is not None and row.lease is None for row in rows) and len(rows) == 3
