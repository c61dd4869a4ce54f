"""Certificates that are learned: only with path, revocation and From in agreement, never over a manual one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from directory import offered as offered_module
from directory.entries import from_recipient
from directory.offered import MOST_LEARNED, Evidence, OfferOutcome, SignedMailLearner, judge
from directory.reading import CertificateOrigin
from directory.records import MailboxKind, Recipient
from directory.resolve import Directory
from tests.directory.conftest import BASE, Server, certificate, key_usage, new_server
from trust.certificates import PathVerdict

NOW = datetime.now(UTC)
BARE, HELD = "bare@demo-x.mssante.fr", "held@demo-x.mssante.fr"


def cert(address: str = BARE, *usages: str) -> x509.Certificate:
    names = x509.SubjectAlternativeName([x509.RFC822Name(address)])
    return certificate("holder", names, key_usage(*(usages or ("key_encipherment", "digital_signature"))))


def evidence(certificate: x509.Certificate, author: str = BARE, **path: object) -> Evidence:
    verdict = PathVerdict(True, (certificate,), "rfc5280-6.1", "", "good")
    return Evidence(CertificateOrigin.MAIL, replace(verdict, **path), author, NOW)  # type: ignore[arg-type]


GOOD = cert()


@pytest.mark.parametrize(
    ("address", "offered", "proof", "expected"),
    [
        (BARE, GOOD, evidence(GOOD), None),
        (BARE.upper(), GOOD, evidence(GOOD), None),
        (HELD, GOOD, evidence(GOOD), OfferOutcome.NOT_THE_AUTHOR),
        (BARE, GOOD, evidence(GOOD, HELD), OfferOutcome.NOT_THE_AUTHOR),
        (HELD, GOOD, evidence(GOOD, HELD), OfferOutcome.NOT_THE_AUTHOR),
        ("*", GOOD, evidence(GOOD, "*"), OfferOutcome.NOT_THE_AUTHOR),
        (BARE, GOOD, evidence(GOOD, ok=False, path=(), rule="rfc5280-6.1.3-signature"), OfferOutcome.UNTRUSTED),
        (BARE, GOOD, evidence(GOOD, path=(cert(),)), OfferOutcome.UNTRUSTED),
        (BARE, GOOD, evidence(GOOD, ok=False, rule="rfc5280-6.1.3-revoked"), OfferOutcome.REVOCATION),
        (BARE, GOOD, evidence(GOOD, revocation="unknown"), OfferOutcome.REVOCATION),
        (BARE, GOOD, evidence(GOOD, revocation="stale"), OfferOutcome.REVOCATION),
        (BARE, GOOD, evidence(GOOD, revocation="not-checked"), OfferOutcome.REVOCATION),
        (BARE, GOOD, replace(evidence(GOOD), at=NOW + timedelta(days=9)), OfferOutcome.UNFIT),
        (BARE, GOOD, replace(evidence(GOOD), origin=CertificateOrigin.MANUAL), OfferOutcome.NOT_THE_AUTHOR),
    ],
)  # fmt: skip
def test_the_evidence_must_bear_it(
    address: str, offered: x509.Certificate, proof: Evidence, expected: OfferOutcome | None
) -> None:
    assert judge(address, offered, proof) is expected


def test_a_signing_certificate_is_nothing_to_encrypt_to() -> None:
    signing = cert(BARE, "digital_signature", "content_commitment")
    assert judge(BARE, signing, evidence(signing)) is OfferOutcome.UNFIT


@pytest.fixture(scope="module")
def learning(server_files: Path) -> Iterator[Server]:
    with new_server(server_files) as server:
        server.slapd.load(
            [
                from_recipient(Recipient(BARE, MailboxKind.PER, "Dr Nu"), BASE),
                from_recipient(Recipient(HELD, MailboxKind.PER, "Dr Main", (cert(HELD),)), BASE),
            ]
        )
        server.start()
        yield server


def offer(directory: Directory, address: str, offered: x509.Certificate) -> OfferOutcome:
    return directory.offer_certificate(address, offered, evidence(offered, address))


def test_what_was_learned_stays_learned_when_the_rest_is_written(learning: Server) -> None:
    address = "card@demo-x.mssante.fr"
    first, second, third = (cert(address) for _ in range(3))
    with learning.directory("admin") as admin:
        admin.publish(Recipient(address, MailboxKind.PER, "Dr Carte"))
        assert offer(admin, address, first) is OfferOutcome.LEARNED
        found = admin.resolve(address)
        assert found is not None
        admin.publish(replace(found, display_name="Pr Carte"), certificates=False)
        admin.publish(Recipient(address, MailboxKind.ORG, "Service"), certificates=False)
        found = admin.resolve(address)
        assert found is not None
        assert (found.kind, found.encryption_certificates) == (MailboxKind.ORG, (first,))
        assert offer(admin, address, second) is OfferOutcome.LEARNED, "the next card too"
        admin.publish(replace(found, encryption_certificates=(third,)))
        assert offer(admin, address, cert(address)) is OfferOutcome.MANUAL


def test_learned_known_and_never_over_a_manual_one(learning: Server) -> None:
    with learning.directory("admin") as admin, learning.directory() as directory:
        first, second = cert(), cert()
        assert offer(admin, BARE, first) is OfferOutcome.LEARNED
        assert offer(admin, BARE, first) is OfferOutcome.KNOWN
        assert offer(admin, BARE, second) is OfferOutcome.LEARNED  # another device
        found = directory.resolve(BARE)
        assert found is not None and set(found.encryption_certificates) == {first, second}
        assert "mail, by KeyUsage" in "".join(step.detail for step in directory.explain(BARE).steps)
        before = directory.resolve(HELD)
        assert offer(admin, HELD, cert(HELD)) is OfferOutcome.MANUAL
        assert directory.resolve(HELD) == before
        stranger = cert("nobody@demo-x.mssante.fr")
        assert offer(admin, "nobody@demo-x.mssante.fr", stranger) is OfferOutcome.UNKNOWN_MAILBOX
        # a person decides: what was learned gives way, and from now on nothing is learned
        mine = cert()
        assert found is not None
        admin.publish(replace(found, encryption_certificates=(mine,), signing_certificates=(mine,)))
        assert offer(admin, BARE, cert()) is OfferOutcome.MANUAL
        assert directory.resolve(BARE).encryption_certificates == (mine,)  # type: ignore[union-attr]


def test_a_person_who_writes_at_the_same_moment_wins(learning: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between our look at the entry and our writing, somebody publishes a certificate."""
    address = "race@demo-x.mssante.fr"
    mine = cert(address)
    with learning.directory("admin") as admin, learning.directory("admin") as person:
        admin.publish(Recipient(address, MailboxKind.PER, "Dr Course"))
        write = offered_module._write

        def interrupted(*arguments: object) -> None:
            monkeypatch.setattr(offered_module, "_write", write)
            person.publish(Recipient(address, MailboxKind.PER, "Dr Course", (mine,), (mine,)))
            write(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(offered_module, "_write", interrupted)
        assert offer(admin, address, cert(address)) is OfferOutcome.MANUAL
        found = person.resolve(address)
        assert found is not None and found.encryption_certificates == (mine,)


def test_devices_are_few(learning: Server) -> None:
    address = "many@demo-x.mssante.fr"
    with learning.directory("admin") as admin:
        admin.publish(Recipient(address, MailboxKind.PER, "Dr Plusieurs"))
        outcomes = [offer(admin, address, cert(address)) for _ in range(MOST_LEARNED + 3)]
        assert outcomes[:MOST_LEARNED] == [OfferOutcome.LEARNED] * MOST_LEARNED
        found = admin.resolve(address)
        assert found is not None and len(found.encryption_certificates) == MOST_LEARNED


def test_from_a_mail_only_what_names_its_author_and_encrypts() -> None:
    class Validator:
        def validate(self, certificate: x509.Certificate, *_: object) -> PathVerdict:
            return PathVerdict(True, (certificate,), "rfc5280-6.1", "", "good")

    offered: list[tuple[str, x509.Certificate, Evidence]] = []

    def take(address: str, certificate: x509.Certificate, proof: Evidence) -> OfferOutcome:
        offered.append((address, certificate, proof))
        return judge(address, certificate, proof) or OfferOutcome.LEARNED

    both = cert()  # for either purpose, and another one preferred: that one alone
    assert SignedMailLearner(take, Validator()).learn(BARE, both, (GOOD,)) == {GOOD: OfferOutcome.LEARNED}
    foreign = cert(HELD)  # what is preferred is not the author's: then the signer's own
    assert SignedMailLearner(take, Validator()).learn(BARE, both, (foreign,)) == {both: OfferOutcome.LEARNED}
    offered.clear()
    signer = cert(BARE, "digital_signature")
    learner = SignedMailLearner(take, Validator())
    assert learner.learn(BARE, signer, (GOOD, cert(HELD), signer)) == {GOOD: OfferOutcome.LEARNED}
    assert [certificate for _, certificate, _ in offered] == [GOOD]
