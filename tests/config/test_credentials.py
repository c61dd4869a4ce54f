"""What systemd hands over reaches only the children that hold keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.supervise import Supervisor
from tests.config.test_supervise import Server, supervising


@pytest.mark.parametrize("holds_keys", [False, True])
async def test_credentials_reach_only_who_holds_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holds_keys: bool
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/relais.service")
    server = Server(
        tmp_path, first="import os; print('told' if 'CREDENTIALS_DIRECTORY' in os.environ else 'not', flush=True)"
    )
    supervisor: Supervisor
    async with supervising(tmp_path) as supervisor:
        await supervisor.start("child", server, holds_keys=holds_keys)
        assert supervisor.log("child").read_text().strip() == ("told" if holds_keys else "not")
