"""What a reload applies, what it names, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from config.node import Process, database_url
from config.reloading import Reloading, changes
from config.settings import Loaded, SettingsError, load

REFERENCE = Path(__file__).parents[2] / "config" / "relais.toml"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "relais.toml"
    path.write_text(REFERENCE.read_text())
    return path


def file_text(path: Path) -> str:
    return path.read_text()


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_changes_are_named_by_section_and_key(file: Path) -> None:
    before = load(file, {}).settings
    edited(file, "concurrency = 8", "concurrency = 9")
    edited(file, 'domain = "cabinet.mssante.fr"', 'domain = "autre.mssante.fr"')
    assert set(changes(before, load(file, {}).settings)) == {"spool.concurrency", "partners"}


async def test_what_is_followed_is_applied_and_what_is_not_is_named(file: Path) -> None:
    loaded = load(file, {})
    reloading = Reloading(file, loaded)
    seen: list[int] = []
    reloading.follow(["spool.max_message_bytes"], lambda settings: seen.append(settings.spool.max_message_bytes))
    reloading.ready()
    edited(file, "max_message_bytes = 67108864", "max_message_bytes = 1000")
    edited(file, "drain_seconds = 6", "drain_seconds = 7")
    with capture_logs() as logs:
        await reloading.reload()
    assert seen == [1000]
    assert {"event": "reload.needs-restart", "log_level": "warning", "keys": ["spool.drain_seconds"]} in logs


@pytest.mark.parametrize("broken", ["not toml [", "[spool]\nunknown = 1\n"])
async def test_a_file_that_cannot_be_used_changes_nothing(file: Path, broken: str) -> None:
    reloading = Reloading(file, load(file, {}))
    seen: list[object] = []
    reloading.follow(["log"], seen.append)
    reloading.ready()
    edited(file, file_text(file), broken)
    with capture_logs() as logs:
        await reloading.reload()
    assert seen == []
    assert [each["event"] for each in logs] == ["reload.refused"]


async def test_one_part_that_refuses_does_not_stop_the_others(file: Path) -> None:
    reloading = Reloading(file, load(file, {}))
    seen: list[object] = []

    def refuse(_settings: object) -> None:
        raise ValueError("two partners")

    reloading.follow(["partners"], refuse)
    reloading.follow(["log"], seen.append)
    reloading.ready()
    with capture_logs() as logs:
        await reloading.reload()
    assert len(seen) == 1
    assert logs[0]["keys"] == ["partners"]


def with_store(file: Path, **store: str) -> Loaded:
    loaded = load(file, {})
    settings = msgspec.structs.replace(loaded.settings, store=msgspec.structs.replace(loaded.settings.store, **store))
    return Loaded(settings, loaded.root)


def test_the_password_comes_from_a_private_file_only(file: Path) -> None:
    secret = file.parent / "database.password"
    secret.write_text("s3cret/@:\n")
    secret.chmod(0o600)
    wanted = with_store(file, url="postgresql://relais@db.example/relais", password_file="database.password")
    assert database_url(wanted) == "postgresql://relais:s3cret%2F%40%3A@db.example/relais"
    secret.chmod(0o640)
    with pytest.raises(SettingsError, match="chmod 600"):
        database_url(wanted)
    with pytest.raises(SettingsError, match="holds a password") as refused:
        database_url(with_store(file, url="postgresql://relais:hunter2@db.example/relais"))
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("url", ["mysql://x/y", "nonsense", "sqlite:////tmp/x"])
def test_other_databases_are_refused(file: Path, url: str) -> None:
    with pytest.raises(SettingsError, match="postgresql://"):
        database_url(with_store(file, url=url))


def test_processes_have_names_and_files_of_their_own(file: Path) -> None:
    loaded = with_store(file, node="a")
    alone, first, second = (Process(loaded, number) for number in (None, 0, 1))
    assert [each.name for each in (alone, first, second)] == ["a", "a", "a.1"]
    assert [each.file("control", ".sock").name for each in (alone, first, second)] == [
        "control.sock",
        "control.sock",
        "control-1.sock",
    ]
    assert [each.first for each in (alone, first, second)] == [True, True, False]
    assert [each.shares_ports for each in (alone, first, second)] == [False, True, True]
