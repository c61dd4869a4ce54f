"""`relais queue` against a real control socket before a real queue."""

from __future__ import annotations

import asyncio
import getpass
import json
import logging
import os
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from config.answers import off_loop
from config.cli import relais
from config.control import ControlSocket, Peer
from config.metrics import MetricsServer
from config.purging import Purging, QueueCollector, periods
from config.queue_answers import QueueAnswers, Redirections
from config.settings import Loaded, SettingsError, load
from config.trace import life, render
from directory import refusals as directory_refusals
from directory.resolve import DirectoryUnavailableError
from mta import queue_refusals, refusals
from mta.delivery import Accepted
from mta.message import Delivered, Origin, TargetKind
from mta.queue import Queue
from mta.retention import Periods, Retention
from mta.schedule import RetrySchedule
from mta.spool import NewDelivery, Spool, Submission
from smime.refusals import NO_ENCRYPTION_CERTIFICATE
from tests.support.private import service_directory
from trust.journal import Journal, JournalEntry
from trust.store import metadata
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault

REASON = ("--reason", "maintenance of the partner")
MATRICULE = "279035121518989"


class People:
    """A directory."""

    down = False

    def resolve(self, address: str) -> Any:
        if self.down:
            raise DirectoryUnavailableError
        if "nobody" in address:
            return None

        class Found:
            encryption_certificates = () if "bare" in address else (object(),)

        return Found()


@dataclass
class House:
    place: Path
    spool: Spool
    queue: Queue
    journal: Journal
    database: Database
    retention: Retention
    people: People

    async def run(self, *arguments: str) -> Result:
        command = ["queue", *arguments, "--state", str(self.place)]
        return await asyncio.to_thread(CliRunner().invoke, relais, command)

    def accepted(self, *recipients: str, key: str = "k", **more: Any) -> list[str]:
        fields: dict[str, Any] = {"origin": Origin.SUBMISSION, "content_type": "message/rfc822"} | more
        kept = self.spool.accept(
            Submission(
                sender="a@labo.example",
                peer="account-a",
                content=b"From: a@labo.example\r\n\r\nx\r\n",
                deliveries=tuple(NewDelivery(each, TargetKind.SMTP) for each in recipients or ("b@op2.example",)),
                dedup_key=key,
                message_id_domain="labo.example",
                **fields,
            )
        )
        assert isinstance(kept, Accepted)
        return [each.delivery_id for each in self.spool.deliveries(kept.spool_id)]

    def sworn(self) -> list[JournalEntry]:
        stored = self.database.read(self.journal.entries)
        return [each.entry for each in reversed(stored) if each.entry is not None]


@asynccontextmanager
async def running() -> AsyncIterator[House]:
    with service_directory() as place, ThreadPoolExecutor(4) as threads:
        database = Database(f"sqlite:///{place / 'relais.db'}")
        metadata.create_all(database.engine)
        vault = KeyVault.create(place / "vault")
        blobs = BlobStore(place / "blobs", vault)
        spool = Spool(database, blobs, vault, node="n1", schedule=RetrySchedule())
        journal = Journal(vault, "n1")
        queue = Queue(spool, database, blobs, vault, journal, node="n1")
        retention = Retention(database, blobs, vault, Periods(), node="n1")
        people = People()
        redirections = Redirections(
            people,  # type: ignore[arg-type]
            lambda address: address.startswith("known"),
            frozenset({"labo.example"}),
            frozenset({"patient.example"}),
            lambda domain: domain != "internet.example",
        )
        control = ControlSocket(place / "control.sock", off_loop(QueueAnswers(queue, redirections).calls(), threads))
        await control.start()
        try:
            yield House(place, spool, queue, journal, database, retention, people)
        finally:
            await control.stop()
            database.close()


def told(result: Result) -> Any:
    return json.loads(result.stdout)


async def test_the_list_says_how_much_waits_where_and_why() -> None:
    async with running() as house:
        name = house.place.name
        ids = [house.accepted(f"x@op{n % 2}.example", key=str(n))[0] for n in range(5)]
        page = told(await house.run("list", "--json", "--limit", "2"))[name]
        assert (page["waiting"], page["held"], page["failed"], page["parked"]) == (5, 0, 0, 0)
        assert page["destinations"][0] == {"destination": "smtp:op0.example", "waiting": 3, "held": False}
        found = [each["delivery_id"] for each in page["deliveries"]]
        while page["following"]:
            page = told(await house.run("list", "--json", "--limit", "2", "--after", page["following"]))[name]
            found += [each["delivery_id"] for each in page["deliveries"]]
        assert sorted(found) == sorted(ids)
        shown = await house.run("list")
        assert "smtp:op0.example" in shown.output and ids[0] in shown.output
        assert "x@op0.example" not in shown.output, "the list names nobody"
        assert told(await house.run("list", "--json", "--older-than", "1h"))[name]["deliveries"] == []
        for nonsense in (("--older-than", "soon"), ("--only", "lost"), ("--destination", "a b"), ("--limit", "0")):
            assert (await house.run("list", *nonsense)).exit_code == 2
        wrong = await house.run("list", "--after", "nonsense")
        assert wrong.exit_code == 1 and "following" in wrong.output


async def test_one_delivery_is_shown_with_its_addresses() -> None:
    async with running() as house:
        (one,) = house.accepted(external_id="MSG1")
        for reference in (one, "MSG1"):
            (shown,) = told(await house.run("show", reference, "--json"))[house.place.name]
            assert (shown["recipient"], shown["sender"]) == ("b@op2.example", "a@labo.example")
        assert "b@op2.example" in (await house.run("show", one)).output
        unknown = await house.run("show", "nothing")
        assert unknown.exit_code == 1 and "nothing" in unknown.output


async def test_every_act_is_done_under_the_name_the_kernel_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)
    async with running() as house:
        one, other = house.accepted("b@op2.example", "c@op2.example")
        for act in (("hold",), ("release",), ("hold",), ("expire", "--yes")):
            result = await house.run(*act, one, *REASON)
            assert result.exit_code == 0, result.output
        assert (await house.run("drop", other, *REASON, "--by", "Dr A. Martin")).exit_code == 0
        sworn = house.sworn()
        assert [entry.action for entry in sworn] == [
            f"queue.{act}" for act in ("hold", "release", "hold", "expire", "drop")
        ]
        for entry in sworn:
            assert f"uid {os.getuid()}" in entry.actor and getpass.getuser() in entry.actor
            assert entry.reason == REASON[1]
        assert sworn[-1].actor.startswith("Dr A. Martin, ")


async def test_nobody_acts_without_a_reason_and_nobody_says_who_they_are_but_the_kernel() -> None:
    async with running() as house:
        (one,) = house.accepted()
        assert (await house.run("hold", one)).exit_code == 2
        assert (await house.run("hold", one, "--reason", " ")).exit_code == 2

        def forge(**more: Any) -> Any:
            request = {"call": "queue.act", "act": "hold", "references": [one], "although_told": False, "by": ""} | more
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(house.place / "control.sock"))
                connection.sendall(json.dumps(request).encode() + b"\n")
                return json.loads(connection.makefile("rb").readline())

        assert "problem" in (await asyncio.to_thread(forge, reason=""))["result"]
        assert house.sworn() == []
        answer = await asyncio.to_thread(forge, reason="x", peer={"pid": 1, "uid": 4711, "name": "somebody else"})
        assert answer["result"][0]["done"]
        assert "somebody" not in house.sworn()[0].actor and f"uid {os.getuid()}" in house.sworn()[0].actor


def test_a_user_that_has_no_name_is_told_by_number() -> None:
    assert Peer(2**22 + 1, 54321).name == "uid 54321"


async def test_acts_on_many_are_chosen_by_filters_and_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("config.queue_answers.MOST_AT_ONCE", 7)
    async with running() as house:
        for n in range(63):
            house.accepted(f"x@op{n % 3}.example", key=str(n))
        nothing = await house.run("expire", *REASON)
        assert nothing.exit_code == 2, "everything at once must be asked for"
        refused = await house.run("expire", "--destination", "op1.example", *REASON)
        assert refused.exit_code == 1 and house.queue.counts()["waiting"] == 63, "not confirmed"
        done = await house.run("expire", "--destination", "op1.example", *REASON, "--yes", "--json")
        assert told(done) == {"done": 21, "refused": 0, "examples": []}
        assert house.queue.counts()["failed"] == 21
        held = await house.run("hold", "--only", "waiting", "--older-than", "0s", *REASON, "--json")
        assert told(held)["done"] == 42
        freed = await house.run("release", "--destination", "op2.example", *REASON)
        assert freed.exit_code == 1, "that is the destination's own hold, and it has none"
        freed = await house.run("release", "--only", "held", "--destination", "op2.example", *REASON, "--json")
        assert told(freed)["done"] == 21
        freed = await house.run("release", "--older-than", "0s", *REASON, "--json")
        assert told(freed)["done"] == 21
        both = await house.run("hold", "x", "--only", "waiting", *REASON)
        assert both.exit_code == 2


async def test_a_number_that_two_systems_used_ends_nothing() -> None:
    """MSH-10 counts from 1 again after a while, and in the next laboratory."""
    async with running() as house:
        (one,) = house.accepted(key="one", external_id="MSG1")
        house.accepted(key="two", external_id="MSG1")
        for act in ("expire", "drop"):
            refused = await house.run(act, "MSG1", *REASON)
            assert refused.exit_code == 1 and "2 messages have that name" in refused.output
        assert house.queue.counts()["waiting"] == 2
        assert (await house.run("hold", "MSG1", *REASON)).exit_code == 0, "holding is undone in a moment"
        assert (await house.run("release", "MSG1", *REASON)).exit_code == 0
        spool_id = house.queue.messages_of([one])[0]
        assert (await house.run("expire", spool_id, *REASON)).exit_code == 0
        assert house.queue.counts() == {"waiting": 1, "held": 0, "failed": 1, "parked": 0}


async def test_another_process_answers_when_the_first_is_dead() -> None:
    async with running() as house:
        house.accepted()
        (house.place / "control.sock").rename(house.place / "control-1.sock")
        listed = told(await house.run("list", "--json"))[house.place.name]
        assert listed["waiting"] == 1
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(house.place / "control.sock"))
        listed = told(await house.run("list", "--json"))[house.place.name]
        assert listed["waiting"] == 1
        (house.place / "control-1.sock").rename(house.place / "control.sock")


async def test_retrying_many_ends_even_though_each_moves_to_the_end_of_the_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("config.queue_answers.MOST_AT_ONCE", 7)
    async with running() as house:
        for n in range(50):
            house.accepted(key=str(n))
        assert told(await house.run("retry", "--only", "waiting", *REASON, "--json"))["done"] == 0, "all are due"
        from sqlalchemy import update

        from mta.tables import deliveries

        later = update(deliveries).values(due=deliveries.c.due + 3600)
        house.database.transact(lambda connection: connection.execute(later).rowcount)
        assert told(await house.run("retry", "--only", "waiting", *REASON, "--json"))["done"] == 50
        assert len(house.spool.claim(1000, 60)) == 50


async def test_what_is_not_done_is_said_and_is_status_one() -> None:
    async with running() as house:
        (one,) = house.accepted()
        house.spool.claim(1, 60)
        result = await house.run("expire", one, *REASON)
        assert result.exit_code == 1 and queue_refusals.UNDER_WAY.code in result.output
        many = await house.run("expire", "--only", "waiting", *REASON, "--yes", "--json")
        assert many.exit_code == 1 and told(many)["refused"] == 1
        assert told(many)["examples"][0]["code"] == queue_refusals.UNDER_WAY.code
        unknown = await house.run("expire", "0" * 32, *REASON)
        assert unknown.exit_code == 1 and "known" in unknown.output


async def test_a_destination_is_held_and_released() -> None:
    async with running() as house:
        house.accepted()
        assert (await house.run("hold", "--destination", "OP2.example", *REASON)).exit_code == 0
        assert house.spool.claim(1, 60) == []
        assert "maintenance of the partner" in (await house.run("list")).output
        assert (await house.run("release", "--destination", "op2.example", *REASON)).exit_code == 0
        assert len(house.spool.claim(1, 60)) == 1
        assert (await house.run("release", "--destination", "op2.example", *REASON)).exit_code == 1


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("c@op3.example", ""),
        ("known@labo.example", ""),
        ("unknown@labo.example", refusals.MAILBOX_UNKNOWN.code),
        ("c@internet.example", refusals.RECIPIENT_NOT_TRUSTED.code),
        (f"{MATRICULE}@patient.example", queue_refusals.NOT_REDIRECTABLE.code),
        ("nobody@op3.example", directory_refusals.RECIPIENT_UNKNOWN.code),
        ("bare@op3.example", NO_ENCRYPTION_CERTIFICATE.code),
        ("no address", refusals.ADDRESS_INVALID.code),
        ("a@b@c\r\nRCPT TO:<x>", refusals.ADDRESS_INVALID.code),
    ],
)
async def test_redirection_goes_only_where_our_senders_may_write_to(address: str, code: str) -> None:
    async with running() as house:
        (one,) = house.accepted()
        result = await house.run("redirect", one, address, *REASON, "--json")
        (answer,) = told(result)
        assert (answer["code"], answer["done"]) == (code, not code)
        assert result.exit_code == (1 if code else 0)
        (lease,) = house.spool.claim(1, 60)
        assert lease.recipient == ("b@op2.example" if code else address)
        assert lease.target is (TargetKind.MAILBOX if address.startswith("known") else TargetKind.SMTP)
        assert address not in str([(entry.details, entry.object_id) for entry in house.sworn()])


async def test_a_patients_mail_goes_to_nobody_else_and_a_silent_directory_decides_nothing() -> None:
    async with running() as house:
        (one,) = house.accepted(f"{MATRICULE}@patient.example")
        (answer,) = told(await house.run("redirect", one, "c@op3.example", *REASON, "--json"))
        assert answer["code"] == queue_refusals.NOT_REDIRECTABLE.code
        (two, _) = house.accepted("d@op2.example", "e@op2.example", key="2", external_id="MSG2")
        house.people.down = True
        (answer,) = told(await house.run("redirect", two, "c@op3.example", *REASON, "--json"))
        assert answer["code"] == directory_refusals.UNAVAILABLE.code
        several = await house.run("redirect", "MSG2", "c@op3.example", *REASON)
        assert several.exit_code == 1 and "one at a time" in several.output


async def test_no_log_names_anybody(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    async with running() as house:
        (one, other) = house.accepted(f"{MATRICULE}@patient.example", "b@op2.example")
        await house.run("redirect", other, "known@labo.example", *REASON)
        for act in ("hold", "release", "retry", "expire", "drop"):
            await house.run(act, one, *REASON)
    written = caplog.text + "".join(capfd.readouterr())
    assert MATRICULE not in written and "@" not in written


async def test_two_gateways_are_never_acted_on_by_accident(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "control.sock").touch()
    command = ["queue", "hold", "--destination", "op2.example", *REASON, "--state", str(tmp_path)]
    result = await asyncio.to_thread(CliRunner().invoke, relais, command)
    assert result.exit_code == 2 and "--operator (one, two)" in result.output


# Retention


async def test_the_trace_says_when_a_message_was_purged() -> None:
    async with running() as house:
        house.accepted(external_id="MSG1")
        (lease,) = house.spool.claim(1, 60)
        house.spool.settle(lease, Delivered())
        for ended in house.spool.ended(1):
            house.spool.reported(ended)
        import time

        future = time.time() + Periods().trace + 10
        blobs, vault = house.spool._blobs, house.spool._vault
        retention = Retention(house.database, blobs, vault, Periods(), node="n1", clock=lambda: future)
        purging = Purging(retention, 3600.0, first_seconds=0.0)
        task = asyncio.create_task(purging.run())
        async with asyncio.timeout(20):
            while not life(house.spool, "MSG1", {})[0]["purged_at"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await purging.stop()
        await task
        for name in ("MSG1", lease.message_id, lease.message_id.strip("<>")):
            (found,) = life(house.spool, name, {})
            assert found["purged_at"] == future and found["deliveries"] == []
            assert any("purged on 2" in line for line in render({"labo": [found]}))
        text = await metrics(house, retention)
        assert 'relais_purged_total{what="trace"} 1.0' in text
        assert 'relais_purged_total{what="content"} 1.0' in text
        assert 'relais_deliveries{state="delivered"} 1.0' in text


async def test_monitoring_sees_what_is_held() -> None:
    async with running() as house:
        (one,) = house.accepted()
        await house.run("hold", one, *REASON)
        await house.run("hold", "--destination", "op2.example", *REASON)
        text = await metrics(house, house.retention)
        assert "relais_queue_held 1.0" in text and "relais_queue_held_destinations 1.0" in text
        assert 'relais_deliveries{state="ready"} 1.0' in text


async def metrics(house: House, retention: Retention) -> str:
    server = MetricsServer(house.spool, list, {}, (QueueCollector(house.queue, retention),))
    port = await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    await server.stop()
    return text


async def test_a_purge_that_fails_is_tried_again_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        turns = 0

        def turn(self) -> None:
            self.turns += 1
            raise OSError("patient ESSAI")

    broken = Broken()
    purging = Purging(broken, 3600.0, first_seconds=0.0)  # type: ignore[arg-type]
    task = asyncio.create_task(purging.run())
    async with asyncio.timeout(10):
        while not broken.turns:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await purging.stop()
    await task
    assert "ESSAI" not in caplog.text


REFERENCE = Path(__file__).parents[2] / "config" / "relais.toml"


def test_periods_come_from_the_settings(tmp_path: Path) -> None:
    def loaded(**keys: str) -> Loaded:
        text = REFERENCE.read_text()
        path = tmp_path / "relais.toml"
        path.write_text(text)
        environ = {f"RELAIS_RETENTION__{key.upper()}": value for key, value in keys.items()}
        return load(path, environ)

    assert periods(loaded()) == Periods()
    assert periods(loaded(trace_days="200")).trace == 200 * 86400
    for wrong in ({"content_days": "9"}, {"trace_days": "1000"}, {"key_days": "100"}):
        with pytest.raises(SettingsError, match="retention"):
            periods(loaded(**wrong))
