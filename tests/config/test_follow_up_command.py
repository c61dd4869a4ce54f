"""`relais reading` over a real control socket: lists what is unread, and takes note of nobody without a name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from config.answers import off_loop
from config.catalogue import CATALOGUE
from config.cli import relais
from config.control import ControlSocket
from config.follow_up_answers import FollowUpAnswers, FollowUpCollector
from config.gateway.following import services
from config.sections import FollowSettings
from config.settings import SettingsError
from config.trace import life, render
from mta.delivery import NewDelivery
from mta.follow_up import Followed
from mta.mailboxes.seen import Looked
from mta.message import TargetKind
from tests.mta.mailboxes import Mailboxes
from tests.mta.road import GRIS, LABO, Road, a_road
from tests.mta.test_follow_up import a_mail
from tests.support.private import service_directory
from trust.issuing import DemonstrationAuthority

SERVICE = Followed(LABO, unread_days=3, critical_seconds=1800)


@pytest.fixture(scope="module")
def people() -> Mailboxes:
    return Mailboxes(DemonstrationAuthority.create("Lecture"))


@pytest.fixture
async def gateway(tmp_path: Path, people: Mailboxes) -> AsyncIterator[tuple[Path, Road]]:
    with service_directory() as state, ThreadPoolExecutor(4) as threads:
        async with a_road(tmp_path, people, followed=(SERVICE,), seen=unopened) as road:
            socket = ControlSocket(state / "control.sock", off_loop(FollowUpAnswers(road.follow).calls(), threads))
            await socket.start()
            for number, critical in ((1, True), (2, False)):
                road.accept(
                    a_mail(critical, number),
                    NewDelivery(GRIS, TargetKind.MAILBOX),
                    message_id=f"<{number}@op1.example>",
                )
            await road.quiet()
            yield state, road
            await socket.stop()


def unopened(_: str, ids: Collection[str]) -> Looked:
    """A mailbox that holds them all, and in which nobody has looked."""
    return Looked(frozenset(ids), frozenset())


async def run(state: Path, *arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, relais, ["reading", *arguments, "--state", str(state)])


async def test_from_the_list_to_a_name(gateway: tuple[Path, Road]) -> None:
    state, road = gateway
    assert (await run(state, "unread")).output == "Nothing is unread for so long.\n"
    road.clock.now += 1801
    road.follow.look()
    await road.quiet()
    (late,) = json.loads((await run(state, "unread", "--json")).output)
    assert (late["critical"], late["reading"], late["recipient"], late["message_id"]) == (
        True, "told", GRIS, "<1@op1.example>",
    )  # fmt: skip
    shown = (await run(state, "unread", "--days", "0")).output
    assert "CRITICAL told" in shown
    assert shown.count(f"from {LABO} to {GRIS}") == 2
    (gauge,) = FollowUpCollector(road.follow).collect()
    assert [sample.value for sample in gauge.samples] == [1]
    unfollowed = await run(state, "unread", "--sender", GRIS)
    assert (unfollowed.exit_code, "is not followed up" in unfollowed.output) == (1, True)
    trace = "\n".join(render({"op1": life(road.spool, "1@op1.example", CATALOGUE)}))
    assert "unread at its deadline" in trace
    nameless = await run(state, "acknowledge", late["reference"], "--by", " ", "--reason", "x")
    assert (nameless.exit_code, nameless.output.split(":")[0]) == (1, "mta.follow-up-nameless")
    done = await run(state, "acknowledge", late["reference"], "--by", "Dr Gris", "--reason", "par téléphone")
    assert done.output == "Acknowledged by Dr Gris.\n"
    again = await run(state, "acknowledge", "<1@op1.example>", "--by", "Autre", "--reason", "aussi")
    assert again.output == "It was read or acknowledged before: Dr Gris.\n"
    unknown = await run(state, "acknowledge", "0" * 32, "--by", "A", "--reason", "b")
    assert unknown.output.startswith("mta.follow-up-unknown")
    assert [row["message_id"] for row in json.loads((await run(state, "unread", "--days", "0", "--json")).output)] == [
        "<2@op1.example>"
    ]
    trace = "\n".join(render({"op1": life(road.spool, "1@op1.example", CATALOGUE)}))
    assert "a named person has taken note of it" in trace
    assert "Gris" not in trace, "the trace names nobody but addresses"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"fallback": "garde"}, "must be a mail address"),
        ({"fallback": "279035121518989@Patient.op1.example"}, "not a patient's"),
        ({"fallback": LABO.upper()}, "somebody else"),
        ({"fallback": GRIS, "critical_minutes": 0}, "without follow.critical_minutes"),
    ],
)
def test_a_wrong_fallback_is_found_out_at_start(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        services([FollowSettings(**{"sender": LABO, "critical_minutes": 60, **wrong})], ["patient.op1.example"])
    assert services([FollowSettings(sender=LABO, critical_minutes=60, fallback=GRIS)], [])[0].fallback == GRIS


async def test_without_a_gateway_it_says_so(tmp_path: Path) -> None:
    for arguments in (("unread",), ("acknowledge", "x", "--by", "a", "--reason", "b")):
        failed = await run(tmp_path, *arguments)
        assert failed.exit_code == 1
        assert "No gateway is running" in failed.output
