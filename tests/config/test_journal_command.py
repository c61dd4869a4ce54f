"""`relais journal` against a gateway's real control socket: verify, prove, list, key, export."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import delete

from config.bench.journal import Scale, measure
from config.cli import relais
from config.control import Call, ControlSocket
from config.journal_answers import JournalAnswers
from config.migrations import upgrade
from config.publishing import PublishingTask
from tests.support.private import service_directory
from trust.checkpoints import Checkpoints
from trust.journal import Journal, JournalEntry
from trust.publishing import HeadFile, Publisher
from trust.signed_heads import SealedHeadSigner
from trust.store.database import Database
from trust.tables import journal_entries, journal_payloads
from trust.vault import KeyVault


class Gateway:
    """The journal's part of one, with its socket on a thread of its own."""

    def __init__(self, state: Path) -> None:
        self.state, self.heads = state, state / "heads.jsonl"
        vault = KeyVault.create(state / "vault")
        self.database = Database(f"sqlite:///{state}/relais.db")
        upgrade(self.database)
        self.journal = Journal(vault, "node-1")
        signer = SealedHeadSigner.open(state / "journal.key", vault)
        checkpoints = Checkpoints(self.database, self.journal, signer, "house")
        self.publisher = Publisher(self.database, checkpoints, [HeadFile(self.heads)], "house", "node-1")
        self._answers = JournalAnswers(
            self.database, vault, self.journal, checkpoints, self.publisher, "house", signer.public_key
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._threads = ThreadPoolExecutor(2)

        def off_loop(work) -> Call:
            return lambda request: asyncio.get_running_loop().run_in_executor(self._threads, work, request)

        calls = {name: off_loop(work) for name, work in self._answers.calls().items()}
        self._socket = ControlSocket(state / "control.sock", calls)
        self._do(self._socket.start())

    def _do(self, coroutine) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _settled(self) -> None:
        """Connections that were answered have closed."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=10)

    def append(self, count: int) -> None:
        for number in range(count):
            entry = JournalEntry("899700000001", "dossier.read", "done", "ab" * 32, f"doc-{number}", "Raison", "care")
            self.database.transact(lambda c, e=entry: self.journal.append(c, e))

    def close(self) -> None:
        self._do(self._socket.stop())
        self._do(self._settled())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._threads.shutdown()
        self.database.close()

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(relais, ["journal", arguments[0], "--state", str(self.state), *arguments[1:]])


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with contextlib.ExitStack() as stack:
        gateway = Gateway(stack.enter_context(service_directory()))
        stack.callback(gateway.close)
        gateway.append(5)
        gateway.publisher.turn()
        gateway.append(2)
        yield gateway


def test_verify(gateway: Gateway) -> None:
    done = gateway.run("verify")
    assert done.exit_code == 0, done.output
    assert "8 entries, 1 signed heads, unbroken" in done.output
    verdict = json.loads(gateway.run("verify", "--json").stdout)[gateway.state.name]
    assert (verdict["ok"], verdict["entries"]) == (True, 8)
    compared = gateway.run("verify", "--heads", str(gateway.heads), "--hashes-only")
    assert compared.exit_code == 0
    assert "1 published heads" in compared.output
    assert "not checked: payloads" in compared.output
    assert "3 entries came after" in compared.output


def test_verify_finds_and_fails(gateway: Gateway, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("")
    assert "no published head of this journal" in gateway.run("verify", "--heads", str(empty)).output
    edited = tmp_path / "edited"
    edited.write_text(gateway.heads.read_text().replace("node-1", "node-2"))
    assert gateway.run("verify", "--heads", str(edited)).exit_code == 1
    with gateway.database.engine.connect() as connection, connection.begin():
        for table in (journal_payloads, journal_entries):
            connection.execute(delete(table).where(table.c.sequence == 3))
    done = gateway.run("verify", "--heads", str(gateway.heads))
    assert done.exit_code == 1
    assert "BROKEN: entry node-1#3 is missing" in done.output


def test_prove(gateway: Gateway) -> None:
    document = json.loads(gateway.run("prove", "node-1#2").stdout)
    assert (document["proof"], document["writer"], document["sequence"]) == ("inclusion", "node-1", 2)
    assert document["head"] in gateway.heads.read_text()
    assert "payload" not in document
    assert "payload" in json.loads(gateway.run("prove", "2", "--payload").stdout)
    gateway.publisher.turn()
    assert json.loads(gateway.run("prove", "--since", "1").stdout)["proof"] == "consistency"
    assert "No proof: there is no entry" in gateway.run("prove", "4711").output
    assert gateway.run("prove", "x").exit_code == 2
    assert gateway.run("prove").exit_code == 2


def test_erase(gateway: Gateway) -> None:
    asked = ["--by", "dpo@operateur.example", "--reason", "demande 12"]
    done = gateway.run("erase", "node-1#2", *asked)
    assert (done.exit_code, "node-1#2 is erased, as node-1#9 records" in done.output) == (0, True), done.output
    gateway.publisher.turn()
    assert "unbroken" in gateway.run("verify", "--heads", str(gateway.heads)).output
    listed = json.loads(gateway.run("list", "--json").stdout)["entries"]
    assert [each["sequence"] for each in listed if each.get("erased")] == [2]
    assert (listed[1]["action"], listed[1]["actor"]) == ("journal.erase", "dpo@operateur.example")
    assert "Nothing was erased: there is no entry" in gateway.run("erase", "4711", *asked).output
    assert "records a signed head" in gateway.run("erase", "6", *asked).output
    for wrong in ("0", "x", "node-1#", "9" * 30, "99999999999999999999"):
        assert gateway.run("erase", wrong, *asked).exit_code == 2


def test_list_and_key(gateway: Gateway) -> None:
    shown = gateway.run("list", "--limit", "3")
    assert "node-1#8" in shown.output
    assert "house: 8 entries, 1 signed heads" in shown.output
    assert json.loads(gateway.run("list", "--json").stdout)["status"]["checkpoint"] == 1
    assert gateway.run("key").output.startswith("-----BEGIN PUBLIC KEY-----")


def test_export(gateway: Gateway, tmp_path: Path) -> None:
    file = tmp_path / "audit.ndjson"
    done = gateway.run("export", "--form", "balp", "--to", str(file))
    assert "Exported up to node-1#8" in done.output
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(events) == 8
    assert {event["resourceType"] for event in events} == {"AuditEvent"}
    assert "Raison" not in file.read_text()
    assert (
        gateway.run("export", "--form", "atna", "--to", str(file), "--writer", "node-1", "--after", "6").exit_code == 0
    )
    lines = file.read_bytes().splitlines()
    assert len(lines) == 2
    assert b"IHE+RFC-3881" in lines[0]
    assert gateway.run("export", "--form", "atna", "--to", "tcp://127.0.0.1:1").exit_code == 1
    assert gateway.run("export", "--form", "balp", "--to", "tcp://127.0.0.1:1").exit_code == 2
    assert gateway.run("export", "--form", "atna", "--to", "http://127.0.0.1").exit_code == 2


async def test_the_task_publishes_at_its_end_and_survives_a_failing_turn() -> None:
    turns: list[bool] = []
    loop, third = asyncio.get_running_loop(), asyncio.Event()

    class Failing:
        def turn(self, *, closing: bool) -> tuple[str, ...]:
            turns.append(closing)
            if len(turns) == 1:
                raise RuntimeError
            if len(turns) == 3:
                loop.call_soon_threadsafe(third.set)
            return ()

    task = PublishingTask(Failing(), 0.01)  # type: ignore[arg-type]
    running = asyncio.create_task(task.run())
    await asyncio.wait_for(third.wait(), 10)
    await task.stop()
    await running
    assert turns[-1] is True
    assert turns.count(True) == 1


def test_the_benchmark_has_its_rows() -> None:
    rows = measure(Scale(1, 200))
    ids = {row["id"]: row for row in rows}
    assert {"journal_append_eps", "journal_verify_eps", "journal_verify_payloads_eps"} <= ids.keys()
    assert all(row["value"] > 0 for row in rows)
    for limited in ("journal_append_eps", "journal_store_tps", "journal_verify_eps"):
        assert ids[limited]["ratio"] > 0
