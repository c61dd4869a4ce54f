"""A log that cannot be written must not change what happens to mail."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import logging, structlog
from config import logs
logs.configure()
structlog.get_logger("door").info("smtp.accepted", spool_id="1")
structlog.get_logger("door").error("smtp.not-kept", exc_info=OSError(28, "full"))
logging.getLogger("mta").warning("a line")
print("still here", flush=True)
"""


def test_a_line_that_cannot_be_written_raises_nothing() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PROGRAM], stdout=subprocess.PIPE, stderr=full, text=True, check=False, cwd="/"
        )
    assert done.stdout == "still here\n"


def test_lines_come_out_as_before() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", _PROGRAM], capture_output=True, text=True, check=True, cwd="/")
    assert [line for line in done.stderr.splitlines() if "smtp.accepted" in line]
