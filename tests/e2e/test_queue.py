"""`relais queue` on a running gateway: a destination is held, a report waits, is redirected, and arrives elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.e2e.test_road import NO_RECORD, TO_DOCTOR, digest_of, mails_about, oru
from tests.support.private import until
from tests.support.running import Running

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("up")]

WHY = ("--reason", "a partner's maintenance", "--operator", "laboratoire")


def queue(up: Running, *arguments: str, status: int = 0) -> Any:
    command = [sys.executable, "-P", "-m", "config", "queue", *arguments, "--state", str(up.state), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == status, (done.stdout, done.stderr)
    return json.loads(done.stdout) if done.stdout else None


def test_what_is_held_waits_and_what_is_redirected_is_protected_for_the_other(up: Running) -> None:
    domain = TO_DOCTOR.address.partition("@")[2]
    other = next(a["address"] for a in up.endpoints["accounts"] if a["role"] == "hospital")
    (held,) = queue(up, "hold", "--destination", domain, *WHY)
    assert held["done"]
    try:
        first, second = (oru(f"HELD-{n}", recipients=(TO_DOCTOR,), flags=NO_RECORD) for n in (1, 2))
        up.accepted(first)
        up.accepted(second)
        listed = queue(up, "list", "--destination", domain, "--operator", "laboratoire")["laboratoire"]
        assert {each["attempts"] for each in listed["deliveries"]} == {0} and len(listed["deliveries"]) >= 2
        (refused,) = queue(up, "retry", "HELD-1", *WHY, status=1)
        assert refused["code"] == "mta.queue-held"
        (shown,) = queue(up, "show", "HELD-2", "--operator", "laboratoire")["laboratoire"]
        assert shown["recipient"].lower() == TO_DOCTOR.address.lower()
        (redirected,) = queue(up, "redirect", shown["delivery_id"], other, *WHY)
        assert redirected["done"], redirected
    finally:
        queue(up, "release", "--destination", domain, *WHY)
    up.wait_settled()
    until(lambda: bool(mails_about(up, "hospital", digest_of(second))), 30, "the redirected mail")
    assert len(mails_about(up, "gp", digest_of(first))) == 1
    assert mails_about(up, "gp", digest_of(second)) == []
    (life,) = up.ask("laboratoire", "trace", reference="HELD-2")
    kinds = [step["step"] for step in life["deliveries"][0]["steps"]]
    assert kinds[0] == "redirected" and "delivered" in kinds
    verify = subprocess.run(
        [sys.executable, "-P", "-m", "config", "journal", "verify", "--state", str(up.state)], check=False, cwd="/"
    )
    assert verify.returncode == 0
