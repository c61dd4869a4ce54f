"""One `relais up` per test process; tests that kill or break things start their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.running import Running, running

SAMPLES = Path(__file__).parents[2].parent / "shared" / "samples"


@pytest.fixture(scope="session")
def up() -> Iterator[Running]:
    with running() as started:
        yield started


@pytest.fixture(scope="session")
def samples() -> Path:
    if not SAMPLES.exists():
        pytest.skip(f"the official samples are not at {SAMPLES}")
    return SAMPLES
