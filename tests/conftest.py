"""What the whole suite shares: names of parametrised tests that every worker process gives alike."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Commands set up the logs of a whole process; a test that runs one in its own leaves none of that behind."""
    root, configured, structured = logging.getLogger(), structlog.is_configured(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    if configured:
        structlog.configure(**structured)
    else:
        structlog.reset_defaults()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Octets are often made anew in each process (keys, noise): named by their argument, numbered by pytest.

    Workers of pytest-xdist refuse to run unless all of them collected tests of the same names.
    """
    if isinstance(val, bytes) and (len(val) > 60 or not val.isascii() or b"\0" in val or b"\x02" in val):
        return argname
    return None
