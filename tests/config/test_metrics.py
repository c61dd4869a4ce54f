"""The monitoring port over real HTTP, with a real spool behind it."""

from __future__ import annotations

import asyncio
import http.client
import math
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from config import metrics
from config.metrics import MetricsServer
from mta import refusals
from mta.delivery import NewDelivery, Submission
from mta.message import Delivered, Failed, Origin, TargetKind
from mta.schedule import RetrySchedule
from mta.spool import Spool
from trust.refusals import Refused
from trust.store import metadata
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault

PATIENT = "279035121518989@patient.mssante.fr"


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    database = Database(f"sqlite:///{tmp_path / 'relais.db'}")
    metadata.create_all(database.engine)
    vault = KeyVault.create(tmp_path / "vault")
    yield Spool(database, BlobStore(tmp_path / "blobs", vault), vault, node="n1", schedule=RetrySchedule())
    database.close()


def accept(spool: Spool, key: str, recipients: int) -> None:
    spool.accept(
        Submission(
            origin=Origin.MLLP,
            sender="resultats@labo-essais.test.mssante.fr",
            peer="SIL-ESSAI",
            content=b"MSH|",
            content_type="application/hl7-v2",
            deliveries=tuple(NewDelivery(PATIENT, TargetKind.MAILBOX) for _ in range(recipients)),
            dedup_key=key,
            message_id_domain="labo-essais.test.mssante.fr",
        )
    )


@asynccontextmanager
async def serving(spool: Spool, checks: dict[str, Callable[[], bool]] | None = None) -> AsyncIterator[int]:
    expires = datetime.now(UTC) + timedelta(days=1)
    server = MetricsServer(spool, lambda: [("operator", expires)], checks or {})
    port = await server.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        await server.stop()


async def ask(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    def call() -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    return await asyncio.to_thread(call)


async def raw(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await reader.read()
    except ConnectionResetError:  # closed with our request unread
        return b""
    finally:
        writer.close()


def values(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_metrics_say_how_the_road_stands_and_name_nobody(spool: Spool) -> None:
    accept(spool, "1", 3)
    first, second, _ = spool.claim(3, 60)
    spool.settle(first, Delivered())
    spool.settle(second, Failed(Refused(refusals.REMOTE_REFUSED, "550 5.1.1 no")))
    accept(spool, "2", 1)
    async with serving(spool) as port:
        status, text = await ask(port, "/metrics")
    assert status == 200
    found = values(text)
    assert found["relais_up",] == 1
    states = ("ready", "delivered", "failed", "parked")
    assert [found["relais_deliveries", state] for state in states] == [2, 1, 1, 0]
    assert found["relais_queue_due",] == 1
    assert found["relais_unreported",] == 2
    assert 0 < found["relais_queue_oldest_seconds",] < 60
    assert 0 < found["relais_oldest_unacknowledged_seconds",] < 60
    assert found["relais_receipts_awaited",] == 0
    assert 86_000 < found["relais_certificate_expiry_seconds", "operator"] <= 86_400
    assert found["process_resident_memory_bytes",] > 0
    assert any(name[0] == "relais_build_info" for name in found)
    assert "279035121518989" not in text
    assert "mssante" not in text


async def test_unacknowledged_until_the_other_operator_s_receipt_is_here(spool: Spool) -> None:
    accept(spool, "1", 1)
    (lease,) = spool.claim(1, 60)
    spool.settle(lease, Delivered("250 ok", reports=True))
    (ended,) = spool.ended(1)
    spool.reported(ended)
    async with serving(spool) as port:
        found = values((await ask(port, "/metrics"))[1])
        assert found["relais_queue_oldest_seconds",] == 0
        assert found["relais_receipts_awaited",] == 1
        assert 0 < found["relais_oldest_unacknowledged_seconds",] < 60
        spool.answered(ended, "delivered")
        found = values((await ask(port, "/metrics"))[1])
        assert found["relais_receipts_awaited",] == found["relais_oldest_unacknowledged_seconds",] == 0


async def test_a_certificate_that_cannot_be_read_is_an_alarm_and_hides_nothing(spool: Spool) -> None:
    server = MetricsServer(spool, lambda: [("operator", None)], {})
    port = await server.start("127.0.0.1", 0)
    try:
        status, text = await ask(port, "/metrics")
    finally:
        await server.stop()
    assert status == 200
    assert values(text)["relais_certificate_expiry_seconds", "operator"] == -math.inf
    assert values(text)["relais_up",] == 1


async def test_ages_are_never_negative_when_the_clock_is_set_back(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(spool, "1", 1)
    monkeypatch.setattr(spool, "_clock", lambda: 0.0)
    async with serving(spool) as port:
        found = values((await ask(port, "/metrics"))[1])
    assert found["relais_queue_oldest_seconds",] == found["relais_oldest_unacknowledged_seconds",] == 0


async def test_a_queue_that_cannot_be_read_is_said(spool: Spool, tmp_path: Path) -> None:
    with (tmp_path / "relais.db").open("r+b") as file:
        file.write(b"\0" * 4096)
    (tmp_path / "relais.db-wal").write_bytes(b"")
    async with serving(spool) as port:
        status, text = await ask(port, "/metrics")
        assert (await ask(port, "/healthz"))[0] == 200
    assert status == 200
    assert values(text)["relais_up",] == 0
    assert "relais_deliveries" not in text


async def test_ready_names_what_fails(spool: Spool) -> None:
    def broken() -> bool:
        raise OSError("secret detail")

    state = {"lmtp": False}
    checks = {"directory": lambda: True, "lmtp": lambda: state["lmtp"], "trust-list": broken}
    async with serving(spool, checks) as port:
        assert await ask(port, "/readyz") == (503, "lmtp\ntrust-list\n")
        state["lmtp"] = True
        assert await ask(port, "/readyz") == (503, "trust-list\n")
        checks.clear()
        assert await ask(port, "/healthz") == (200, "ok\n")
    async with serving(spool, {"directory": lambda: True}) as port:
        assert await ask(port, "/readyz") == (200, "ready\n")


async def test_a_check_that_hangs_fails_alone_and_holds_one_thread(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_CHECK_SECONDS", 0.1)
    let_go, calls = threading.Event(), []

    def hang() -> bool:
        calls.append(1)
        return let_go.wait(20)

    async with serving(spool, {"directory": hang, "lmtp": lambda: True}) as port:
        for _ in range(3):
            assert await ask(port, "/readyz") == (503, "directory\n")
        assert len(calls) == 1
        assert (await ask(port, "/metrics"))[0] == 200
        let_go.set()
        async with asyncio.timeout(5):
            while (await ask(port, "/readyz"))[0] != 200:
                pass


async def test_only_small_gets_are_answered(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(spool) as port:
        assert (await ask(port, "/healthz?x=1"))[0] == 200
        assert await ask(port, "/healthz", "HEAD") == (200, "")
        assert (await ask(port, "/"))[0] == 404
        assert (await ask(port, "/metrics", "POST"))[0] == 405
        assert (await raw(port, b"nonsense\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        assert await raw(port, b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 20_000) == b"", "at most 8 KiB"
        monkeypatch.setattr(metrics, "_HEAD_SECONDS", 0.1)
        assert await raw(port, b"GET /healthz HTTP/1.1\r\n") == b"", "slowly is not at all"


async def test_too_many_connections_are_closed(spool: Spool) -> None:
    async with serving(spool) as port:
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(metrics._CONNECTIONS)]
        try:
            assert await raw(port, b"GET /healthz HTTP/1.1\r\n\r\n") == b""
        finally:
            for connection in idle:
                connection.close()
        async with asyncio.timeout(5):
            while not await raw(port, b"GET /healthz HTTP/1.1\r\n\r\n"):
                pass


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])
async def test_never_on_the_network(spool: Spool, host: str) -> None:
    with pytest.raises(ValueError, match="loopback"):
        await MetricsServer(spool, list, {}).start(host, 0)
