"""`relais directory sync`, `runs`, `generate` and the schedule, on a real slapd."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from config.cli import relais
from config.settings import SettingsError, load
from config.synchronising import (
    ScheduledSynchronisation,
    SynchronisationCollector,
    synchronisation_folder,
    synchronisation_options,
)
from directory.guards import Limits
from tests.directory.conftest import BASE, Server, new_server, server_files  # noqa: F401 - a fixture
from tests.directory.synchronising import NOW, World
from tests.directory.test_synchronisation import DOCTOR, dn_of

REFERENCE = Path(__file__).parents[2] / "config" / "relais.toml"


@pytest.fixture(scope="module")
def running(server_files: Path) -> Iterator[Server]:  # noqa: F811
    with new_server(server_files) as server:
        server.start()
        yield server


@pytest.fixture
def world(running: Server, tmp_path: Path) -> World:
    return World(running, tmp_path)


@pytest.fixture
def configuration(world: World, tmp_path: Path) -> Path:
    slapd = world.server.slapd
    text = REFERENCE.read_text()
    head, _, rest = text.partition("[synchronisation]")
    head = head.replace('"ldaps://127.0.0.1:636"', json.dumps(slapd.ldaps_uri))
    head = head.replace('ca = "anchors.pem"', f"ca = {json.dumps(str(world.server.ca))}")
    rest = rest.replace('bind_dn = ""', f"bind_dn = {json.dumps(slapd.admin_dn)}", 1)
    rest = rest.replace('password_file = ""', 'password_file = "admin.password"', 1)
    rest = rest.replace("oldest_days = 30", "oldest_days = 36500")
    (tmp_path / "admin.password").write_text("admin-secret\n")
    path = tmp_path / "relais.toml"
    path.write_text(f"{head}[synchronisation]{rest}")
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(relais, ["directory", *map(str, arguments)])


def report(*arguments: object) -> dict[str, Any]:
    result = call(*arguments, "--json")
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def test_sync_then_look_at_the_runs(world: World, configuration: Path) -> None:
    files = world.publish(12, extra=(DOCTOR,))
    dry = report("sync", "--config", configuration, "--dry-run", files.mssante.parent)
    assert (dry["outcome"], dry["added"]) == ("planned", 0)
    result = call("sync", "--config", configuration, files.mssante.parent)
    assert result.exit_code == 0, result.output
    assert dn_of(DOCTOR.address) in world.entries("1.1")
    header = files.mssante.read_text("utf-8").splitlines(keepends=True)[0]
    empty = world.folder / "Extraction_Correspondance_MSSante_202609100400.txt"
    empty.write_text(header, "utf-8")
    held = call("sync", "--config", configuration, empty)
    assert held.exit_code == 1
    assert "directory.files-held" in held.stderr and "empty" in held.stdout
    listed = report("runs", "--config", configuration)
    assert [run["outcome"] for run in listed] == ["held", "applied", "planned"]  # type: ignore[index]
    assert report("runs", "--config", configuration, "last")["holds"][0]["reason"] == "empty"
    assert report("runs", "--config", configuration, listed[1]["id"])["added"] == dry["to_add"]  # type: ignore[index]
    assert call("runs", "--config", configuration, "never").exit_code == 1
    assert "HELD" in call("runs", "--config", configuration, "last").stdout
    assert call("sync", "--config", configuration, "--accept", "nonsense").exit_code == 2


def test_settings_without_an_administrator_say_so(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="administrator"):
        synchronisation_options(load(REFERENCE, {}))
    result = call("sync", "--state", tmp_path)
    assert result.exit_code == 1 and "relais up" in result.stderr


@pytest.fixture
def empty(server_files: Path) -> Iterator[Server]:  # noqa: F811
    with new_server(server_files) as server:
        yield server


def test_a_directory_loaded_from_ldif_is_in_step(empty: Server, tmp_path: Path) -> None:
    """What `ldif` writes and slapadd takes is what `sync` would write."""
    made = World(empty, tmp_path, limits=Limits(oldest_days=36_500))
    files = made.publish(40, extra=(DOCTOR, replace(DOCTOR, skill_code="SM54")))
    configured = tmp_path / "relais.toml"
    text = REFERENCE.read_text().replace("oldest_days = 30", "oldest_days = 36500")
    head, _, rest = text.partition("[synchronisation]")
    rest = rest.replace('bind_dn = ""', f"bind_dn = {json.dumps(empty.slapd.admin_dn)}", 1)
    configured.write_text(f"{head}[synchronisation]{rest}")
    out = tmp_path / "nation.ldif"
    result = call("ldif", "--config", configured, "--out", out, files.mssante.parent)
    assert result.exit_code == 0, result.output
    assert "1 repeated" in result.stderr and DOCTOR.address not in result.stderr
    argv = ["slapadd", "-q", "-f", str(empty.state / "slapd.conf"), "-b", BASE, "-l", str(out)]
    subprocess.run(argv, check=True, capture_output=True, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    empty.start()
    done = made.run(files)
    assert (done.outcome, done.to_add, done.to_change, done.to_remove) == ("applied", 0, 0, 0)
    assert done.unchanged == len(made.entries("1.1")) > 40
    files.mssante.write_bytes(files.mssante.read_bytes()[:-60])
    out.unlink()
    held = call("ldif", "--config", configured, "--out", out, files.mssante.parent)
    assert held.exit_code == 1 and "truncated" in held.stderr and out.read_bytes() == b""


def test_generate(tmp_path: Path) -> None:
    result = call("generate", tmp_path / "day", "--professionals", 20, "--day", 3)
    assert result.exit_code == 0
    assert len(list((tmp_path / "day").glob("*_202601040400.txt"))) == 4


async def test_the_gateway_runs_at_each_publication_and_once_a_day(world: World, configuration: Path) -> None:
    loaded = load(configuration, {})
    now = NOW
    source = world.folder / "arriving"
    # The tests before may have left a larger nation
    options = replace(synchronisation_options(loaded), apart=False, limits=Limits(100, 100, oldest_days=36_500))
    scheduled = ScheduledSynchronisation(options, source, 0.02, clock=lambda: now)
    reports = world.folder / "state" / "directory-sync" / "runs"
    task = asyncio.create_task(scheduled.run())

    async def runs(count: int) -> None:
        async with asyncio.timeout(60):
            while len([p for p in reports.glob("*.json") if b'"running"' not in p.read_bytes()]) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    with capture_logs() as logs:
        world.publish(2, extra=(DOCTOR,)).mssante.parent.rename(source)
        await runs(1)
        now += timedelta(days=1)
        await runs(2)
        now += timedelta(minutes=1)
        (source / "Extraction_Correspondance_MSSante_202609110400.txt").write_text("no extraction\n")
        await runs(3)
        await scheduled.stop()
        await task
    assert [log["event"] for log in logs] == ["directory.sync-applied"] * 2 + ["directory.sync-held"]
    assert DOCTOR.address not in str(logs)
    registry = CollectorRegistry()
    registry.register(SynchronisationCollector(synchronisation_folder(loaded), lambda: NOW))
    assert registry.get_sample_value("relais_directory_sync_held") == 1
    assert registry.get_sample_value("relais_directory_sync_age_seconds") == pytest.approx(
        timedelta(days=9, hours=2).total_seconds()
    )
