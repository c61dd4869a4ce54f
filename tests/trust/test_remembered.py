"""Paths that were found once are not looked for again, and never outlive what made them good."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from tests.smime.people import NOW, authority, person
from trust import certificates
from trust.certificates import CertificateValidator, Purpose

ANNE = person("anne@lab.example", kind="p256", which="remembered").certificate
STRANGER = person("anne@lab.example", kind="p256", which="remembered", ca="Unknown CA").certificate


def validator() -> CertificateValidator:
    return CertificateValidator([authority().certificate])


def searches(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One entry for each certificate that was read for a search."""
    seen: list[object] = []
    read = certificates.read

    def noted(certificate: object) -> object:
        seen.append(certificate)
        return read(certificate)

    monkeypatch.setattr(certificates, "read", noted)
    return seen


def test_an_accepted_path_is_searched_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, trusting = searches(monkeypatch), validator()
    first = trusting.validate(ANNE, (), Purpose.MAIL_SIGNATURE, NOW)
    assert first.ok
    assert trusting.validate(ANNE, [STRANGER], Purpose.MAIL_SIGNATURE, NOW + timedelta(days=1)) == first
    assert len(seen) == 1


def test_each_purpose_is_judged_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, trusting = searches(monkeypatch), validator()
    assert trusting.validate(ANNE, (), Purpose.MAIL_SIGNATURE, NOW).ok
    assert not trusting.validate(ANNE, (), Purpose.OPERATOR_TLS_SERVER, NOW).ok
    assert len(seen) == 2


@pytest.mark.parametrize("at", [ANNE.not_valid_before_utc, ANNE.not_valid_after_utc])
def test_nothing_is_remembered_beyond_the_validity_of_the_path(at: object) -> None:
    trusting = validator()
    assert trusting.validate(ANNE, (), Purpose.MAIL_SIGNATURE, NOW).ok
    assert trusting.validate(ANNE, (), Purpose.MAIL_SIGNATURE, at).ok, "both ends belong to it"
    outside = at + timedelta(seconds=1 if at > NOW else -1)
    assert trusting.validate(ANNE, (), Purpose.MAIL_SIGNATURE, outside).rule == "rfc5280-6.1.3-validity"


def test_a_refusal_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, trusting = searches(monkeypatch), validator()
    for _ in range(2):
        assert not trusting.validate(STRANGER, (), Purpose.MAIL_SIGNATURE, NOW).ok
    assert len(seen) == 2, "the next mail may bring the certificate that was missing"


def test_another_validator_knows_nothing_of_it() -> None:
    other = CertificateValidator([authority("Unknown CA").certificate])
    assert validator().validate(ANNE, (), Purpose.MAIL_SIGNATURE, NOW).ok
    assert not other.validate(ANNE, (), Purpose.MAIL_SIGNATURE, NOW).ok


def test_the_memory_is_bounded_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "MAX_REMEMBERED", 3)
    people = [person(f"a{number}@lab.example", kind="p256", which="remembered").certificate for number in range(6)]
    trusting = validator()
    for certificate in (ANNE, *people[:2], ANNE, *people[2:4]):
        assert trusting.validate(certificate, (), Purpose.MAIL_SIGNATURE, NOW).ok
    seen = searches(monkeypatch)
    for certificate in (ANNE, people[3], people[0]):
        assert trusting.validate(certificate, (), Purpose.MAIL_SIGNATURE, NOW).ok
    assert seen == [people[0]]


def test_threads_share_it() -> None:
    trusting = validator()
    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(lambda _: trusting.validate(ANNE, (), Purpose.MAIL_SIGNATURE, NOW).ok, range(400)))
    assert all(verdicts)


def test_x25519_is_for_encryption_only() -> None:
    certificate = person("paul@clinic.example", kind="x25519").certificate
    assert validator().validate(certificate, (), Purpose.MAIL_ENCRYPTION, NOW).ok
    assert validator().validate(certificate, (), Purpose.MAIL_SIGNATURE, NOW).rule == "rfc5280-4.2.1.3-key-usage"
