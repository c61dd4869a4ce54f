"""The first-hour guide: its commands run exactly as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.running import Running

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("up")]

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "first-hour.md"


def commands() -> list[str]:
    """The lines of the guide's `sh` blocks; blocks marked `sh demo` are what the fixture did already."""
    blocks = re.findall(r"^```sh\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_every_command_of_the_guide_works(up: Running, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    shutil.copytree(ROOT / "config" / "demo", tmp_path / "config" / "demo")
    run = commands()
    assert len(run) >= 8
    for line in run:
        program, *arguments = shlex.split(line)
        assert program == "relais"
        if arguments[:1] == ["dossier"]:
            up.wait_settled()
        done = subprocess.run(
            [sys.executable, "-P", "-m", "config", *arguments],
            capture_output=True,
            check=False,
            timeout=60,
            cwd=tmp_path,
            env={**os.environ, "RELAIS_STATE": str(up.state)},
        )
        assert done.returncode == 0, f"{line}\n{done.stdout.decode()}{done.stderr.decode()}"
        assert done.stdout, line
    assert list((tmp_path / "letters-to-print").glob("*.pdf"))


def test_every_file_the_guide_names_exists() -> None:
    for name in re.findall(r"config/demo/[\w.]+", GUIDE.read_text()):
        assert (ROOT / name).is_file(), name
