"""`relais trust` against a gateway's trust service on a real control socket, with its schedule, gauges and doctor."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives import serialization
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from config import doctor, trust_service
from config.cli import relais
from config.control import ControlSocket
from config.settings import Loaded, SettingsError, load
from config.trust_service import TrustCollector, TrustService
from trust.certificates import CertificateValidator
from trust.issuing import DemonstrationAuthority, Issued
from trust.journal import JournalEntry
from trust.names import DistinguishedName
from trust.trustlist import ListedDomain, write_trust_list

NOW = datetime.now(UTC).replace(microsecond=0)


class Gateway:
    """One operator's files, and its trust service on a control socket."""

    def __init__(self, home: Path, authority: DemonstrationAuthority, signer: Issued, operator: Issued) -> None:
        self.home, self.authority, self.signer, self.operator = home, authority, signer, operator
        home.mkdir(mode=0o700)
        self.entries: list[JournalEntry] = []
        (home / "anchors.pem").write_bytes(authority.root.public_bytes(serialization.Encoding.PEM))
        self.renew(operator)
        self.publish(10)
        name = signer.certificate.subject.rfc4514_string()
        (home / "relais.toml").write_text(
            f"""
[operator]
name = "Op"
host = "mss.op.example"
domains = ["d0.example"]
postmaster = "postmaster@d0.example"
[trust]
anchors = "anchors.pem"
list = "list.xml"
list_signer = {json.dumps(name)}
operator_chain = "operator.pem"
operator_key = "operator.key"
[revocation]
operators = "soft"
list = "soft"
[directory]
uri = "ldap://127.0.0.1:1"
[mailboxes]
lmtp_socket = "lmtp"
authentication_socket = "authentication"
home = "mail"
"""
        )

    def renew(self, issued: Issued) -> None:
        (self.home / "operator.key").write_bytes(issued.pem_key())
        (self.home / "operator.pem").write_bytes(issued.pem_chain())

    def publish(self, count: int, hours: int = 0) -> None:
        name = DistinguishedName.from_x509(self.operator.certificate.subject)
        rows = [ListedDomain(f"d{number}.example", name, "") for number in range(count)]
        signer = self.signer
        xml = write_trust_list(rows, NOW + timedelta(hours=hours), signer.key, signer.certificate, signer.chain)
        (self.home / "list.xml").write_bytes(xml)

    @property
    def loaded(self) -> Loaded:
        return load(self.home / "relais.toml", {})

    def service(self) -> TrustService:
        return TrustService.open(self.loaded, CertificateValidator([self.authority.root]), self.entries.append)


@pytest.fixture(scope="module")
def issued() -> Iterator[tuple[DemonstrationAuthority, Issued, Issued]]:
    authority = DemonstrationAuthority.create("Démonstration")
    operator = authority.issue_operator("mss.op.example", "OP", "1750000001", ["127.0.0.1"])
    yield authority, authority.issue_list_signer(), operator


@pytest.fixture
def gateway(tmp_path: Path, issued: tuple[DemonstrationAuthority, Issued, Issued]) -> Gateway:
    return Gateway(tmp_path / "op", *issued)


@pytest.fixture
def running(gateway: Gateway) -> Iterator[TrustService]:
    """The service behind its control socket, on a loop in a thread, with a door of the operator beside it."""
    service = gateway.service()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    with ThreadPoolExecutor(4) as threads:
        control = ControlSocket(gateway.home / "control.sock", service.calls(threads))
        asyncio.run_coroutine_threadsafe(control.start(), loop).result(10)
        yield service
        asyncio.run_coroutine_threadsafe(control.stop(), loop).result(10)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
    loop.close()


def run(gateway: Gateway, *words: str) -> Result:
    return CliRunner().invoke(relais, ["trust", *words, "--state", str(gateway.home.parent)])


def test_the_life_of_a_list_at_the_terminal(gateway: Gateway, running: TrustService) -> None:
    shown = run(gateway, "list", "show")
    assert shown.exit_code == 0, shown.output
    assert "10 rows, 10 domains, 1 operators" in shown.output
    assert run(gateway, "list", "refresh").exit_code == 0
    nothing = run(gateway, "list", "diff")
    assert nothing.exit_code == 1
    assert "trust.list-not-held" in nothing.output

    gateway.publish(11, hours=1)
    assert "in use from now on" in run(gateway, "list", "refresh").output
    gateway.publish(5, hours=2)
    refreshed = run(gateway, "list", "refresh")
    assert refreshed.exit_code == 1
    assert "held for a decision" in refreshed.output
    assert running.keeper.is_trusted("d10.example")
    assert "HELD" in run(gateway, "list", "show").output

    diff = json.loads(run(gateway, "list", "diff", "--json").output)["op"]
    assert diff["counts"]["domains_removed"] == 6
    text = run(gateway, "list", "diff").output
    assert f"relais trust list accept {diff['digest']}" in text
    assert "- d10.example" in text

    for wrong in ("yes", "0" * 64, diff["digest"][:16]):
        assert run(gateway, "list", "accept", wrong).exit_code == 1
    assert running.keeper.is_trusted("d10.example")
    accepted = run(gateway, "list", "accept", diff["digest"])
    assert accepted.exit_code == 0, accepted.output
    assert not running.keeper.is_trusted("d10.example")
    assert [entry.action for entry in gateway.entries] == [
        *("trust.list.accepted", "trust.list.accepted", "trust.list.held", "trust.list.accepted")
    ]
    assert gateway.entries[-1].actor.startswith("operator:")


def test_show_says_when_our_own_name_is_not_listed(gateway: Gateway, running: TrustService) -> None:
    assert "WARNING" not in run(gateway, "list", "show").output
    gateway.renew(gateway.authority.issue_operator("mss.op.example", "OP RENAMED", "1750000001", ["127.0.0.1"]))
    shown = run(gateway, "list", "show").output
    assert "our own certificate is not listed for d0.example" in shown
    assert "O=OP RENAMED" in shown
    (gateway.home / "operator.pem").write_bytes(b"garbage")
    assert run(gateway, "list", "show").exit_code == 0


def test_doctor_and_metrics_say_what_is_held_and_broken(gateway: Gateway) -> None:
    service = gateway.service()
    registry = CollectorRegistry()
    registry.register(TrustCollector(service))

    def gauges() -> dict[str, float]:
        lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def findings() -> list[str]:
        found = doctor.examine(gateway.home, gateway.home / "relais.toml")
        return [f"{each.level} {each.subject}: {each.text}" for each in found if each.subject in ("trust list", "tls")]

    first = gauges()
    assert (first["relais_trust_list_rows"], first["relais_trust_list_held"]) == (10, 0)
    assert first['relais_tls_not_renewed{context="operators"}'] == 0
    assert [line[:14] for line in findings()] == ["ok trust list:"]

    gateway.publish(2, hours=1)
    service.keeper.refresh()
    (gateway.home / "operator.pem").write_bytes(b"garbage")
    for context in service.contexts:
        context.look()
    second = gauges()
    assert (second["relais_trust_list_rows"], second["relais_trust_list_held"]) == (10, 1)
    assert second['relais_tls_not_renewed{context="operators"}'] == 1
    told = findings()
    assert any("is held because it lacks 8 of the 10 rows" in line for line in told)
    assert any(line.startswith("problem tls: operator.pem") for line in told)

    (gateway.home / "list.xml").write_bytes(b"garbage")
    service.keeper.refresh()
    assert gauges()["relais_trust_list_refresh_failed"] == 1
    assert any("the last refresh brought none" in line for line in findings())


@pytest.mark.parametrize("address", ["http://list.example:99999/", "https://[::1/list.xml", "HTTPS://list.example:x/"])
def test_an_address_that_is_none_is_a_mistake_in_the_settings(gateway: Gateway, address: str) -> None:
    toml = gateway.home / "relais.toml"
    toml.write_text(toml.read_text().replace('list = "list.xml"', f'list = "{address}"'))
    with pytest.raises(SettingsError, match=r"trust\.list"):
        gateway.service()
    result = run(gateway, "probe", "127.0.0.1:25", "--config", str(toml))
    assert result.exit_code == 1
    assert "trust.list is not an address" in result.output


async def test_whatever_happens_to_a_file_the_list_goes_on_being_refreshed(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust_service, "_LOOK_AT_FILES_SECONDS", 0.02)
    service = await asyncio.to_thread(gateway.service)
    service._interval = 0.05

    def breaks() -> bool:
        raise MemoryError("what nobody foresaw")

    service.operators.look = breaks  # type: ignore[method-assign]
    task = asyncio.create_task(service.run())
    gateway.renew(gateway.authority.issue_operator("mss.op.example", "OP", "1750000001", ["127.0.0.1"]))
    gateway.publish(12, hours=1)
    async with asyncio.timeout(10):
        while not (service.keeper.is_trusted("d11.example") and service.partners.renewals):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not task.done()
    await service.stop()
    await asyncio.wait_for(task, 5)


async def test_schedule_and_files_are_followed_while_it_runs(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust_service, "_LOOK_AT_FILES_SECONDS", 0.02)
    service = await asyncio.to_thread(gateway.service)
    service._interval = 0.05
    task = asyncio.create_task(service.run())

    async def until(done: object) -> None:
        async with asyncio.timeout(10):
            while not done():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    gateway.publish(12, hours=1)
    await until(lambda: service.keeper.is_trusted("d11.example"))
    gateway.renew(gateway.authority.issue_operator("mss.op.example", "OP", "1750000001", ["127.0.0.1"]))
    await until(lambda: service.operators.renewals and service.partners.renewals)
    (gateway.home / "list.xml").unlink()
    await until(lambda: service.keeper.record.last.outcome.value == "unavailable")
    assert not task.done()
    await service.stop()
    await asyncio.wait_for(task, 5)
    assert service.keeper.is_trusted("d11.example")


def test_start_says_in_one_sentence_what_is_missing(gateway: Gateway) -> None:
    (gateway.home / "trust-list.date").write_text((NOW + timedelta(hours=1)).isoformat())
    with pytest.raises(SettingsError, match="older than the one already in use"):
        gateway.service()
    (gateway.home / "trust-list.date").unlink()
    (gateway.home / "operator.key").write_bytes(b"")
    with pytest.raises(SettingsError, match=r"TLS cannot be set up: operator\.pem"):
        gateway.service()
    (gateway.home / "list.xml").unlink()
    (gateway.home / "trust-list" / "record.json").unlink()
    with pytest.raises(SettingsError, match="there is no trust list"):
        gateway.service()


def test_probe_of_a_running_door(gateway: Gateway, running: TrustService) -> None:
    ready = threading.Event()
    ports: list[int] = []

    async def door() -> None:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 hello\r\n")
            await reader.readline()
            writer.write(b"250 STARTTLS\r\n")
            await reader.readline()
            writer.write(b"220 go\r\n")
            await writer.drain()
            await writer.start_tls(running.operators())
            await reader.readline()
            writer.write(b"250 hello\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        await stop.wait()
        server.close()

    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(door(),))
    thread.start()
    assert ready.wait(10)
    try:
        target = f"127.0.0.1:{ports[0]}"
        believed = run(gateway, "probe", target, "--starttls", "smtp", "--domain", "d3.example")
        assert believed.exit_code == 0, believed.output
        assert believed.output.startswith("Believed: CN=mss.op.example")
        assert "operator-tls-server  believed" in believed.output
        other = run(gateway, "probe", target, "--starttls", "smtp", "--domain", "other.example", "--json")
        assert other.exit_code == 1
        assert json.loads(other.output)["protocol"] == "TLSv1.3"
        without = run(gateway, "probe", target, "--starttls", "smtp", "--config", str(gateway.home / "relais.toml"))
        assert without.exit_code == 0, without.output
        toml = gateway.home / "relais.toml"
        toml.write_text(toml.read_text().replace('operators = "soft"', 'operators = "hard"'))
        strict = run(gateway, "probe", target, "--starttls", "smtp", "--config", str(toml))
        assert strict.exit_code == 1
        assert "relais-revocation-unknown" in strict.output.splitlines()[0], "as the gateway itself would say"
        assert not (gateway.home / "var").exists(), "nothing is written where a gateway may run"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
    silent = run(gateway, "probe", target, "--starttls", "smtp", "--timeout", "1")
    assert silent.exit_code == 1
    assert "cannot be reached" in silent.output


@pytest.mark.parametrize("target", ["nothing", "host:", ":25", "host:0", "host:99999", "host:x"])
def test_probe_target_must_be_host_and_port(gateway: Gateway, target: str) -> None:
    assert run(gateway, "probe", target).exit_code == 2


def test_no_gateway_running(gateway: Gateway) -> None:
    for words in (("list", "show"), ("list", "refresh"), ("probe", "127.0.0.1:25")):
        result = run(gateway, *words)
        assert result.exit_code == 1
        assert "No gateway is running" in result.output
