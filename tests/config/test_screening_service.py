"""What the operator is told about the malware scanner: that there is none, that it is down, that it skips."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from config.screening_service import scanner_checks, scanner_findings
from config.settings import Loaded
from tests.support.clamd import fake_clamd, finds_eicar
from tests.support.private import service_directory


def configured(socket: Path | None) -> Loaded:
    section = SimpleNamespace(
        clamd_socket="" if socket is None else str(socket), clamd_host="", clamd_port=3310, connect_seconds=0.5,
        scan_seconds=2.0, concurrency=2, max_bytes=1_000_000,
    )  # fmt: skip
    return cast("Loaded", SimpleNamespace(settings=SimpleNamespace(screening=section), path=Path))


def beyond_limits(content: bytes) -> bytes:
    """As with `AlertExceedsMax yes`."""
    deep = content.startswith(b"PK")
    return b"stream: Heuristics.Limits.Exceeded.MaxRecursion FOUND\0" if deep else finds_eicar(content)


@pytest.mark.parametrize(
    ("answer", "levels", "word"),
    [(beyond_limits, ["ok"], "ClamAV 1.4.3"), (finds_eicar, ["ok", "problem"], "AlertExceedsMax yes")],
)
async def test_whether_it_skips(answer: object, levels: list[str], word: str) -> None:
    with service_directory() as folder:
        async with fake_clamd(folder) as fake:
            fake.answer = answer  # type: ignore[assignment]
            loaded = configured(fake.socket)
            found = await asyncio.to_thread(lambda: list(scanner_findings(loaded)))
            assert await asyncio.to_thread(scanner_checks(loaded)["scanner"])
    assert [level for level, _ in found] == levels
    assert word in found[-1][1]


def test_none_and_one_that_is_down() -> None:
    (none,) = scanner_findings(configured(None))
    assert none[0] == "notice"
    assert scanner_checks(configured(None)) == {}
    down = configured(Path("/nonexistent/clamd.sock"))
    (said,) = scanner_findings(down)
    assert said[0] == "problem"
    assert "mail waits" in said[1]
    assert not scanner_checks(down)["scanner"]()
