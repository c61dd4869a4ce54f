"""Revocation as a gateway is configured: policies, the first start, what monitoring and the doctor are told."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from config.doctor import _revocation
from config.revocation_service import RevocationCollector, patiently, revocation_checker, revocation_policies
from config.sections import RevocationSettings
from config.settings import SettingsError
from tests.trust.revocation.authority import DAY, NOW, Authority, cdp, revoked, site
from trust.certificates import CertificateValidator, Purpose
from trust.revocation import RevocationMode, RevocationState


def loaded(tmp_path, **section):
    settings = RevocationSettings(allowed_hosts=("127.0.0.1",), **section)
    return SimpleNamespace(settings=SimpleNamespace(revocation=settings), state=tmp_path)


def test_defaults_demand_an_answer_before_anything_is_given_away(tmp_path):
    policies = revocation_policies(loaded(tmp_path))
    assert policies[Purpose.MAIL_SIGNATURE].mode is RevocationMode.SOFT
    assert {policy.mode for purpose, policy in policies.items() if purpose is not Purpose.MAIL_SIGNATURE} == {
        RevocationMode.HARD
    }


async def test_first_start_waits_for_the_first_answers(tmp_path):
    root = Authority("Racine")
    ca = Authority("AC Fictive", root)
    with site() as server:
        leaf = ca.issue(cdp(f"{server.url}/crl"))
        server.pages["/crl"] = ca.crl(revoked(5))
        gateway = loaded(tmp_path)
        revocation = revocation_checker(gateway, [root.certificate], [ca.certificate])
        revocation.start()

        def work() -> str:
            state = revocation.check(leaf, ca.certificate, NOW).state
            if state is not RevocationState.GOOD:
                raise SettingsError(state.value)
            return "believed"

        assert await patiently(work, revocation) == "believed"
        gauges = {metric.name: metric.samples[0].value for metric in RevocationCollector(revocation).collect()}
        assert gauges["relais_revocation_lists"] == 1
        assert gauges["relais_revocation_entries"] == 1
        left = (NOW + DAY - datetime.now(UTC)).total_seconds()
        assert left - 60 < gauges["relais_revocation_next_update_seconds"] < left + 1000
        assert gauges["relais_revocation_missing"] == 0
        (finding,) = _revocation(gateway)
        assert finding.level == "ok"
        assert finding.text.startswith("1 CRLs, the oldest of")

        def never() -> str:
            raise SettingsError("for another reason")

        with pytest.raises(SettingsError):
            await patiently(never, revocation)
        revocation.stop()


def test_off_and_unpublished_revocation(tmp_path):
    off = loaded(tmp_path, inbound="off", outbound="off", operators="off", list="off")
    assert [finding.level for finding in _revocation(off)] == ["notice"]
    root = Authority("Racine")
    ca = Authority("AC Fictive", root)
    leaf = ca.issue()
    for mode, believed in (("soft", True), ("hard", False)):
        gateway = loaded(tmp_path, inbound=mode)
        revocation = revocation_checker(gateway, [root.certificate], [ca.certificate])
        validator = CertificateValidator([root.certificate], [ca.certificate], revocation, revocation_policies(gateway))
        verdict = validator.validate(leaf, (), Purpose.MAIL_SIGNATURE, NOW)
        assert (verdict.ok, verdict.revocation) == (believed, "unknown")
