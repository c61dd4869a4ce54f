"""`relais reading` on a running gateway: a critical result is unread until it is opened, or a name says so."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from config.demonstration import HOSPITAL
from tests.e2e.test_road import NO_RECORD, TO_DOCTOR, oru
from tests.support.reports import Correspondent
from tests.support.running import Running

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("up")]


def reading(up: Running, *arguments: str) -> str:
    command = [sys.executable, "-P", "-m", "config", "reading", *arguments, "--state", str(up.state)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


def unread(up: Running, control_id: str) -> list[dict[str, Any]]:
    rows = json.loads(reading(up, "unread", "--days", "0", "--json"))
    return [row for row in rows if row["external_id"] == control_id]


def test_a_critical_result_is_unread_until_it_is_opened(up: Running) -> None:
    to_service = Correspondent(HOSPITAL.address, organisation=HOSPITAL.display_name)
    up.accepted(oru("READ-1", recipients=(to_service,), flags=NO_RECORD))
    up.wait_settled()
    (row,) = unread(up, "READ-1")
    assert (row["recipient"], row["critical"], row["reading"]) == (HOSPITAL.address, True, "waiting")
    assert row["due"], "its clock runs"
    with up.imap("hospital") as client:
        (number,) = client.search(None, "HEADER", "X-Relais-Delivery", row["reference"])[1]
        client.fetch(number.decode(), "(BODY[])")
    assert unread(up, "READ-1") == []
    (life,) = up.ask("laboratoire", "trace", reference="READ-1")
    (kinds,) = [[step["step"] for step in each["steps"]] for each in life["deliveries"]]
    assert kinds[-1] == "seen"


def test_another_operators_reader_is_acknowledged_by_name(up: Running) -> None:
    up.accepted(oru("READ-2", recipients=(TO_DOCTOR,), flags=NO_RECORD))
    up.wait_settled()
    (row,) = unread(up, "READ-2")
    said = reading(up, "acknowledge", row["reference"], "--by", "Dr Hoda", "--reason", "par téléphone")
    assert said == "Acknowledged by Dr Hoda.\n"
    assert unread(up, "READ-2") == []
