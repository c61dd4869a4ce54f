"""A real SoftHSM2 token in a directory of the test's own, in whatever process looks at `SOFTHSM2_CONF`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
LABEL = "relais-test"
PIN = "4711-secret-pin"

needs_softhsm = pytest.mark.skipif(not MODULE.exists(), reason="softhsm2 is not installed")


def make_token(place: Path, label: str = LABEL) -> Path:
    """A token with its PIN file, which is returned. SoftHSM reads its configuration when it is started."""
    (place / "tokens").mkdir(parents=True)
    configuration = place / "softhsm2.conf"
    configuration.write_text(
        f"directories.tokendir = {place / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    os.environ["SOFTHSM2_CONF"] = str(configuration)
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", "0815-officer"],
        check=True,
        capture_output=True,
    )
    pin_file = place / "pin"
    pin_file.touch(mode=0o600)
    pin_file.write_text(PIN + "\n")
    return pin_file
