"""What monitoring learns of the upstream mailboxes, and the alerts it raises."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from config.incoming import MailCollectors
from tests.config.test_alerts import fires

from .conftest import MakeSpool
from .test_collecting import Scripted, eventually, mail, scripted

DOWN, LEFT = "RelaisCollectorDown", "RelaisCollectorLeft"
CONNECTED = 'relais_collector_connected{collector="m"}'


def told(collectors: MailCollectors) -> dict[str, str]:
    """Values by series."""
    registry = CollectorRegistry()
    registry.register(collectors)
    lines = generate_latest(registry).decode().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


def became(result: str) -> str:
    return f'relais_collector_messages_total{{collector="m",result="{result}"}}'


async def test_a_mailbox_that_is_collected_and_one_that_is_not(tmp_path: Path, make_spool: MakeSpool) -> None:
    collectors = MailCollectors()
    assert told(collectors) == {}
    async with scripted(Scripted(tmp_path, mail(1)), make_spool()) as collector:
        collectors.add(collector)
        before = told(collectors)
        await eventually(lambda: collector.status.connected)
        after = told(collectors)
    assert (before[CONNECTED], after[CONNECTED]) == ("0.0", "1.0")
    assert (after[became("collected")], after[became("refused")]) == ("1.0", "0.0")
    assert fires(tmp_path, DOWN, {CONNECTED: before[CONNECTED]}, 60)
    assert not fires(tmp_path, DOWN, {CONNECTED: after[CONNECTED]}, 60)
    assert told(collectors) == {}, "one that was stopped is nobody's trouble"


async def test_what_stays_upstream_is_told(tmp_path: Path, make_spool: MakeSpool) -> None:
    collectors = MailCollectors()
    async with scripted(Scripted(tmp_path, b"no header\r\n\r\nx\r\n"), make_spool()) as collector:
        collectors.add(collector)
        before = told(collectors)
        await eventually(lambda: collector.status.connected)
        after = told(collectors)
    series = became("refused")
    assert (before[series], after[series]) == ("0.0", "1.0")
    assert fires(tmp_path, LEFT, {series: f"{before[series]} {after[series]}"}, 1)
