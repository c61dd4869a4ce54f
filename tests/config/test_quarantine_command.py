"""`relais quarantine` over a real control socket: lists, shows, releases and drops, never without a name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from config.answers import off_loop
from config.cli import relais
from config.control import ControlSocket
from config.quarantine_answers import QuarantineAnswers
from config.screening_service import ScreeningCollector
from mta.delivery import NewDelivery
from mta.message import TargetKind
from tests.mta.mailboxes import Mailboxes
from tests.mta.road import NOIR, Road, a_road
from tests.support.clamd import EICAR
from tests.support.private import service_directory
from trust.issuing import DemonstrationAuthority

MAIL = b"From: labo@op1.example\r\nMessage-ID: <%d@op1.example>\r\nSubject: DURAND\r\n\r\n" + EICAR + b"\r\n"


@pytest.fixture(scope="module")
def people() -> Mailboxes:
    return Mailboxes(DemonstrationAuthority.create("Quarantaine"))


@pytest.fixture
async def gateway(tmp_path: Path, people: Mailboxes) -> AsyncIterator[tuple[Path, Road]]:
    with service_directory() as state, ThreadPoolExecutor(4) as threads:
        async with a_road(tmp_path, people) as road:
            socket = ControlSocket(
                state / "control.sock", off_loop(QuarantineAnswers(road.quarantine).calls(), threads)
            )
            await socket.start()
            for number in range(2):
                road.accept(
                    MAIL.replace(b"%d", b"%d" % number), NewDelivery(NOIR, TargetKind.SMTP), dedup_key=str(number),
                    message_id=f"<{number}@op1.example>",
                )  # fmt: skip
            await road.quiet()
            yield state, road
            await socket.stop()


async def run(state: Path, *arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, relais, ["quarantine", *arguments, "--state", str(state)])


async def listed(state: Path, *more: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((await run(state, "list", "--json", *more)).output)
    return found


async def test_seen_released_and_dropped(gateway: tuple[Path, Road]) -> None:
    state, road = gateway
    rows = await listed(state)
    assert [row["found"] for row in rows] == ["Eicar-Test-Signature"] * 2
    text = (await run(state, "list")).output
    assert rows[0]["reference"] in text
    assert "DURAND" not in text
    first, second = (row["reference"] for row in rows)
    shown = await run(state, "show", first)
    assert shown.exit_code == 0
    assert NOIR in shown.output
    for arguments in (("release", first), ("release", first, "--by", "J"), ("drop", first, "--reason", "r")):
        assert (await run(state, *arguments)).exit_code == 2
    refused = await run(state, "release", first, "--by", " ", "--reason", "r")
    assert refused.exit_code == 1
    assert "mta.quarantine-nameless" in refused.output
    released = await run(state, "release", first, "--by", "Jeanne Martin", "--reason", "fausse alerte")
    assert released.exit_code == 0, released.output
    await road.quiet()
    assert len(road.partners.to(NOIR)) == 1
    dropped = await run(state, "drop", second, "--by", "Jeanne Martin", "--reason", "infecté")
    assert dropped.exit_code == 0, dropped.output
    again = await run(state, "drop", second, "--by", "Jeanne Martin", "--reason", "encore")
    assert again.exit_code == 1
    assert "mta.quarantine-decided" in again.output
    assert (await run(state, "show", "0" * 32)).exit_code == 1
    assert await listed(state) == []
    assert "Nothing is in quarantine" in (await run(state, "list")).output
    both = await listed(state, "--all")
    assert [(row["state"], row["by"].startswith("Jeanne Martin (")) for row in both] == [
        ("released", True),
        ("dropped", True),
    ]


async def test_metrics_name_nobody(gateway: tuple[Path, Road]) -> None:
    _, road = gateway
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for metric in ScreeningCollector({"infected": 2}, road.quarantine, road.overdue).collect()
        for sample in metric.samples
    }
    assert found["relais_scans_total", "infected"] == 2
    assert found["relais_scans_total", "clean"] == 0
    assert found["relais_quarantine_held",] == 2
    assert found["relais_quarantine_oldest_timestamp_seconds",] > 0


async def test_nobody_runs(tmp_path: Path) -> None:
    assert (await run(tmp_path, "list")).exit_code == 1
