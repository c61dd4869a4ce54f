"""Backups that were altered, interrupted or raced are found out, and a restore never touches what is there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from config import backup_command
from config.backup import restoring
from config.backup.cutting import Cutter
from config.backup.manifest import LISTING, MANIFEST, OBJECTS
from config.backup.sealed_files import SealedFileError, seal, sealed_size, unseal
from config.backup.store import BackupStore
from config.housekeeping import BLOB_REFERENCES
from mta.tables import deliveries, messages, steps
from tests.config.backup_state import State, backed_up, cut_of, made_in, relais_toml, restored, run, some_object
from trust.journal import Journal
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault


@pytest.fixture(autouse=True)
def stay_who_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands run in this process: it must not become another user. tests/e2e/test_survival.py does."""
    monkeypatch.setattr(backup_command, "drop", lambda state: state.mkdir(parents=True, exist_ok=True))


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    yield from made_in(tmp_path / "state")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def test_all_comes_back_and_is_marked(state: State, target: Path, tmp_path: Path) -> None:
    backed_up(state, target)
    done = restored(state, target, tmp_path / "new")
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    assert row["in_flight"] == 3 and row["journal_entries"] == 1
    vault = KeyVault.open(tmp_path / "new" / "vault")
    database = Database(f"sqlite:///{tmp_path / 'new' / 'relais.db'}")
    try:
        blobs = BlobStore(tmp_path / "new" / "blobs", vault)
        assert {blob for blob, _ in blobs.ids()} >= state.files()
        kept = database.read(lambda connection: connection.execute(messages.select()).all())
        names = sorted(blobs.get("mta-content", each.content_blob).partition(b"a mail")[0] for each in kept)
        assert names == [b"mail-0", b"mail-1", b"mail-2"]
        told = database.read(
            lambda connection: connection.execute(steps.select().where(steps.c.kind == "restored")).all()
        )
        assert len(told) == 3
        entries = database.read(lambda connection: Journal(vault, "n1").entries(connection))
        assert next(each.entry.action for each in entries if each.entry) == "state.restored"
        assert not (tmp_path / "new" / ".restoring").exists()
    finally:
        database.close()


def test_the_key_is_not_in_it_and_nothing_is_in_the_clear(state: State, target: Path) -> None:
    backed_up(state, target)
    kek = (state.root / "vault" / "kek").read_bytes()
    for path in target.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert kek not in content and b"a mail of some" not in content and b"SQLite format" not in content
            assert path.stat().st_mode & 0o077 == 0


def test_an_altered_object_is_found_with_and_without_the_key(state: State, target: Path, tmp_path: Path) -> None:
    backed_up(state, target)
    victim = some_object(target)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    for arguments in (("--state", tmp_path / "nobody"), ("--state", state.root)):
        told = run("backup", "verify", target, *arguments)
        assert told.exit_code == 1 and "was altered" in told.output
    done = restored(state, target, tmp_path / "new")
    assert done.exit_code == 1 and "was altered" in done.output
    assert not (tmp_path / "new" / "relais.db").exists()


def test_a_missing_object_is_found(state: State, target: Path) -> None:
    backed_up(state, target)
    some_object(target).unlink()
    told = run("backup", "verify", target, "--state", state.root)
    assert told.exit_code == 1 and "is missing" in told.output


@pytest.mark.parametrize("file", [MANIFEST, OBJECTS, LISTING])
def test_whoever_rewrites_the_cut_is_found_out(state: State, target: Path, file: str) -> None:
    """Also by somebody who knows how to make the digests fit: without the key the MAC does not."""
    backed_up(state, target)
    path = cut_of(target) / file
    if file == MANIFEST:
        manifest = json.loads(path.read_text())
        manifest["waiting"] = 0
        path.write_text(json.dumps(manifest))
    else:
        path.write_bytes(path.read_bytes()[:-1])
    told = run("backup", "verify", target, "--state", state.root)
    assert told.exit_code == 1, told.output


def test_another_key_does_not_open_it(state: State, target: Path, tmp_path: Path) -> None:
    backed_up(state, target)
    KeyVault.create(tmp_path / "other" / "vault")
    told = run("restore", target, "--state", tmp_path / "new", "--kek", tmp_path / "other" / "vault" / "kek")
    assert told.exit_code == 1 and "is needed" in told.output


def test_nothing_is_overwritten(state: State, target: Path, tmp_path: Path) -> None:
    backed_up(state, target)
    before = (state.root / "relais.db").stat()
    assert "overwritten" in restored(state, target, state.root).output
    assert (state.root / "relais.db").stat().st_mtime_ns == before.st_mtime_ns
    assert "holds files that are no backup" in run("backup", state.root / "vault", "--state", state.root).output


def test_a_configuration_that_is_there_stays(state: State, target: Path, tmp_path: Path) -> None:
    (state.root / "relais.txt").write_text("of the backup")
    backed_up(state, target)
    new = tmp_path / "new"
    new.mkdir()
    (new / "relais.txt").write_text("of the new machine")
    (new / ".relais-state").touch()
    done = restored(state, target, new)
    assert done.exit_code == 0, done.output
    assert (new / "relais.txt").read_text() == "of the new machine"
    assert (new / "configuration" / "relais.txt").read_text() == "of the backup"


def test_a_restore_killed_between_its_moves_goes_on(
    state: State, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backed_up(state, target)
    moves = restoring._moves

    class KilledError(Exception):
        pass

    def killed(*arguments: Any) -> Iterator[Any]:
        for number, each in enumerate(moves(*arguments)):
            if number == 1:
                raise KilledError
            yield each

    with monkeypatch.context() as patched:
        patched.setattr(restoring, "_moves", killed)
        assert isinstance(restored(state, target, tmp_path / "new").exception, KilledError)
    assert (tmp_path / "new" / ".restoring").exists() and not (tmp_path / "new" / "relais.db").exists()
    done = restored(state, target, tmp_path / "new")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "new" / "relais.db").exists() and not (tmp_path / "new" / ".restoring").exists()
    KeyVault.open(tmp_path / "new" / "vault")


def test_a_backup_that_was_killed_leaves_no_cut_and_its_work_is_used(
    state: State, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def killed(*_: object) -> str:
        raise KilledError

    monkeypatch.setattr(BackupStore, "finish", killed)
    assert isinstance(run("backup", target, "--state", state.root).exception, KilledError)
    assert BackupStore(target).cuts() == []
    monkeypatch.undo()
    report = backed_up(state, target)
    assert report["reused"] >= 3
    assert run("backup", "verify", target, "--state", state.root).exit_code == 0
    assert not list((target / "unfinished").iterdir())


def test_mail_that_is_purged_during_the_backup_moves_the_moment(
    state: State, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mail comes after the first copying and is purged after the database was fixed, before its blob was copied."""
    heads, blobs_of = Cutter._heads, Cutter._blobs
    known = state.files()
    events: list[str] = []

    def mail_comes(self: Cutter, part: Any) -> Any:
        if not events:
            state.accept("short-lived")
            events.append("came")
        return heads(self, part)

    def mail_goes(self: Cutter, part: Any, threads: Any) -> None:
        if events == ["came"]:
            (blob,) = state.files() - known

            def purge(connection: Any) -> None:
                spool_id = connection.scalar(messages.select().where(messages.c.content_blob == blob))
                for table in (steps, deliveries):
                    connection.execute(table.delete().where(table.c.spool_id == spool_id))
                connection.execute(messages.delete().where(messages.c.id == spool_id))

            state.database.transact(purge)
            state.blobs.delete(blob)
            events.append("gone")
        blobs_of(self, part, threads)

    monkeypatch.setattr(Cutter, "_heads", mail_comes)
    monkeypatch.setattr(Cutter, "_blobs", mail_goes)
    report = backed_up(state, target)
    assert events == ["came", "gone"] and report["notes"] == []
    manifest = json.loads((cut_of(target) / MANIFEST).read_text())
    assert (manifest["messages"], manifest["blobs"]) == (3, len(known))


def test_a_blob_that_is_lost_already_is_told_and_stops_nothing(state: State, target: Path) -> None:
    state.blobs.delete(sorted(state.files())[0])
    report = backed_up(state, target)
    assert any("lost already" in note for note in report["notes"])


def test_only_new_things_are_copied_and_old_cuts_go(state: State, target: Path) -> None:
    first = backed_up(state, target)
    state.accept("mail-3")
    second = backed_up(state, target)
    assert second["copied"] < first["copied"] and second["reused"] >= 3
    objects = sum(path.is_file() for path in (target / "objects").rglob("*"))
    done = run("backup", target, "--state", state.root, "--keep", "1", "--json")
    report = json.loads(done.stdout)
    assert report["removed_cuts"] == 2 and report["removed_objects"] >= 2
    assert sum(path.is_file() for path in (target / "objects").rglob("*")) < objects
    assert run("backup", "verify", target, "--state", state.root).exit_code == 0


def test_every_column_with_a_blob_is_recognised() -> None:
    for column in BLOB_REFERENCES:
        assert column.name.endswith(("blob", "blob_id")), f"{column}: see config.backup.cutting._named_blobs"


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_sealed_files_come_back_and_no_other_way(tmp_path: Path, size: int) -> None:
    vault = KeyVault.create(tmp_path / "vault")
    plain = bytes(range(256)) * (size // 256 + 1)
    sealed = b"".join(seal([plain[:size]], vault, "name"))
    assert len(sealed) == sealed_size(size)
    path = tmp_path / "sealed"

    def opened(content: bytes, name: str = "name") -> bytes:
        path.write_bytes(content)
        with path.open("rb") as file:
            return b"".join(unseal(file, vault, name))

    assert opened(sealed) == plain[:size]
    chunk = (1 << 20) + 16
    head = len(sealed) - (sealed_size(size) - 46)
    altered = [sealed[:-1], sealed + b"x", b"", sealed[:20], sealed[:-1] + bytes([sealed[-1] ^ 1])]
    if size > 1 << 20:  # whole chunks cut off, exchanged
        altered += [sealed[: head + chunk], sealed[:head] + sealed[head + chunk :]]
    for each in altered:
        with pytest.raises(SealedFileError):
            opened(each)
    with pytest.raises(SealedFileError):
        opened(sealed, "another")


def test_what_the_configuration_names_elsewhere_comes_along(state: State, target: Path, tmp_path: Path) -> None:
    """Certificates, mailboxes and blobs outside of the state; but never the key."""
    place = tmp_path / "etc"
    (place / "mail" / "a").mkdir(parents=True)
    (place / "mail" / "a" / "u.1").write_bytes(b"filed")
    (place / "operator.key").write_bytes(b"-----BEGIN PRIVATE KEY-----")
    (place / "anchors.pem").write_bytes(b"-----BEGIN CERTIFICATE-----")
    configuration = place / "relais.toml"
    configuration.write_text(relais_toml(state.root, f'[store]\nblob_directory = "{tmp_path}/blobs"\n'))
    (state.root / "blobs").rename(tmp_path / "blobs")
    done = run("backup", target, "--config", configuration, "--json")
    assert done.exit_code == 0, done.output
    (note,) = json.loads(done.stdout)["notes"]
    assert "overlay of the directory" in note
    done = restored(state, target, tmp_path / "new")
    assert done.exit_code == 0, done.output
    outside = tmp_path / "new" / "configuration" / place.relative_to("/")
    assert {path.relative_to(outside).as_posix() for path in outside.rglob("*") if path.is_file()} == {
        "relais.toml",
        "anchors.pem",
        "operator.key",
        "mail/a/u.1",
    }
    assert (outside / "mail" / "a" / "u.1").read_bytes() == b"filed"
    assert sum(path.is_file() for path in (tmp_path / "new" / "blobs").rglob("*")) == 3
