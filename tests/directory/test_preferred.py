"""By identifier, preferred mailbox, department, domain certificate and explanations, on a real slapd."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from directory.entries import from_recipient
from directory.records import MailboxKind, Recipient
from directory.resolve import Directory, DirectoryUnavailableError
from tests.directory.conftest import BASE, DOCTOR, KEY, PATIENT, TEAM, Server, key_usage, new_server

RPPS = "899900000077"
HOSPITAL, PRACTICE, THIRD = (f"anne.roux@demo-{name}.mssante.fr" for name in ("hopital", "cabinet", "autre"))


def dated(name: str, since: int, until: int, *usages: str) -> x509.Certificate:
    """Valid from and until so many days from now."""
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(KEY.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=since))
        .not_valid_after(now + datetime.timedelta(days=until))
    )
    return builder.add_extension(key_usage(*(usages or ("key_agreement",))), False).sign(KEY, hashes.SHA256())


OLD, NEW = dated("old", -300, 30), dated("new", -3, 700)
EXPIRED, FUTURE = dated("expired", -900, -1), dated("future", 2, 900)
SIGNATURE = dated("signature", -3, 700, "content_commitment")
DOMAIN = dated("domain", -3, 700)


@pytest.fixture(scope="module")
def people(server_files: Path) -> Iterator[Server]:
    def person(address: str, structure: str, *certificates: x509.Certificate) -> Recipient:
        return Recipient(address, MailboxKind.PER, "Dr Anne ROUX", certificates, (), RPPS, "10", structure, "Hôpital")

    recipients = [
        person(HOSPITAL, "1990000071", OLD, EXPIRED, FUTURE, NEW),
        person(PRACTICE, "399000000000072", EXPIRED),
        person(THIRD, ""),
        Recipient("cardio@demo-hopital.mssante.fr", MailboxKind.ORG, "Cardiologie", structure="1990000071"),
        Recipient("p@demo-hopital.mssante.fr", MailboxKind.PER, "Cardiologie", structure="1990000071"),
        Recipient("299019900100133@patient.demo.mssante.fr", MailboxKind.PATIENT, ""),
    ]
    with new_server(server_files) as server:
        server.slapd.load(from_recipient(recipient, BASE) for recipient in recipients)
        server.start()
        with server.directory("admin") as admin:
            admin.publish(
                Recipient(
                    "urg@demo-hopital.mssante.fr",
                    MailboxKind.ORG,
                    "SAU",
                    id_nat="1990000071",
                    structure="1990000071",
                    organisation="Hôpital de démonstration",
                    department="Urgences pédiatriques",
                )
            )
        yield server


@contextmanager
def both(server: Server) -> Iterator[tuple[Directory, Directory]]:
    with server.directory("admin") as admin, server.directory() as directory:
        yield admin, directory


def test_valid_certificates_newest_first_by_key_usage(people: Server) -> None:
    with people.directory() as directory:
        found = directory.resolve(HOSPITAL)
        assert found is not None and found.encryption_certificates == (NEW, OLD)
        assert found.signing_certificates == () and not found.domain_certificate
        only_expired = directory.resolve(PRACTICE)
        assert only_expired is not None and only_expired.encryption_certificates == (EXPIRED,)


@pytest.mark.parametrize("spelling", [RPPS, RPPS[1:], f"{RPPS[1:4]} {RPPS[4:]}"])
def test_a_professional_by_any_spelling(people: Server, spelling: str) -> None:
    with people.directory() as directory:
        assert {found.address for found in directory.by_identifier(spelling)} == {HOSPITAL, PRACTICE, THIRD}
        assert directory.by_identifier(spelling, "ADELI") == []


@pytest.mark.parametrize(
    ("structure", "first"),
    [
        ("990000071", HOSPITAL),
        ("1990000071", HOSPITAL),
        ("99000000000072", PRACTICE),
        ("990000099", THIRD),
        ("", THIRD),
    ],
)
def test_the_structure_concerned_before_rank(people: Server, structure: str, first: str) -> None:
    with both(people) as (admin, directory):
        assert admin.set_rank(THIRD, 1) and admin.set_rank(HOSPITAL, 2)
        found = directory.preferred(RPPS, structure)
        assert found is not None and found.address == first
        assert directory.preferred("810000000000") is None


def test_rank_may_be_taken_back(people: Server) -> None:
    with both(people) as (admin, directory):
        for rank in (5, None):
            assert admin.set_rank(PRACTICE, rank)
            found = directory.resolve(PRACTICE)
            assert found is not None and found.rank == rank
        assert not admin.set_rank("nobody@demo-hopital.mssante.fr", 1)
        assert not admin.set_rank("*)(mail=*", 1)


def test_departments(people: Server) -> None:
    with people.directory() as directory:
        for organisation in ("990000071", "1990000071", "HÔPITAL de démonstration"):
            found = directory.by_department(organisation, "urgences pediatriques")
            assert [each.address for each in found] == ["urg@demo-hopital.mssante.fr"]
        cardiology = directory.by_department("990000071", "cardiologie")
        assert [each.address for each in cardiology] == ["cardio@demo-hopital.mssante.fr"]
        for nonsense in ("", "*", "*)(mail=*", "\x00", "x" * 300):
            assert directory.by_department(nonsense, "urgences") == []


def test_the_domain_s_certificate_when_the_mailbox_has_none(people: Server) -> None:
    domain = "demo-autre.mssante.fr"
    with both(people) as (admin, directory):
        admin.publish_domain(domain, [EXPIRED, DOMAIN])
        admin.publish_domain(domain.upper(), [EXPIRED, DOMAIN])
        admin.publish_domain("demo-hopital.mssante.fr", [DOMAIN])
        found = directory.resolve(THIRD)
        assert found is not None and found.encryption_certificates == (DOMAIN,) and found.domain_certificate
        chosen = directory.preferred(RPPS, "")
        assert chosen is not None
        own = directory.resolve(HOSPITAL)
        assert own is not None and own.encryption_certificates == (NEW, OLD) and not own.domain_certificate
        assert directory.resolve(f"nobody@{domain}") is None  # a domain is no mailbox
        assert directory.resolve(PRACTICE).encryption_certificates == (EXPIRED,)  # type: ignore[union-attr]
        # what was read with the domain's certificate and is published again does not make it the mailbox's own
        admin.publish(found)
        admin.publish_domain(domain, [])
        admin.publish_domain(domain, [])
        again = directory.resolve(THIRD)
        assert again is not None and again.encryption_certificates == ()
        with pytest.raises(ValueError, match="domain"):
            admin.publish_domain("*)(x=*", [DOMAIN])


class FakeUpstream:
    def __init__(self, known: dict[str, tuple[x509.Certificate, ...]], down: bool = False) -> None:
        self.known = known
        self.down = down
        self.asked: list[str] = []

    def certificates(self, name: str) -> tuple[x509.Certificate, ...]:
        self.asked.append(name)
        if self.down:
            raise DirectoryUnavailableError("down")
        return self.known.get(name, ())


def test_upstream_is_asked_last_and_never_about_patients(people: Server) -> None:
    upstream = FakeUpstream({"demo-cabinet.mssante.fr": (NEW,)})
    directory = Directory(people.options(), upstream)
    try:
        assert directory.resolve(HOSPITAL).encryption_certificates == (NEW, OLD)  # type: ignore[union-attr]
        assert directory.resolve(PATIENT) is not None
        assert upstream.asked == []
        found = directory.resolve(PRACTICE)
        assert found is not None and found.encryption_certificates == (NEW,) and found.domain_certificate
        assert upstream.asked == [PRACTICE, "demo-cabinet.mssante.fr"]
        upstream.known = {PRACTICE: (OLD,)}
        found = directory.resolve(PRACTICE)
        assert found is not None and found.encryption_certificates == (OLD,) and not found.domain_certificate
        upstream.down = True
        with pytest.raises(DirectoryUnavailableError):
            directory.resolve(PRACTICE)
    finally:
        directory.close()


def test_an_explanation_names_every_step(people: Server) -> None:
    with people.directory() as directory:
        explained = directory.explain(HOSPITAL)
        said = "\n".join(f"{step.what}: {step.detail}" for step in explained.steps)
        assert explained.recipient == directory.resolve(HOSPITAL)
        assert people.slapd.ldaps_uri in said and "PER, LOCAL" in said
        assert "EXPIRED, until" in said and "not valid before" in said and "manual, by KeyUsage for encryption" in said
        assert f"the newest first: {NEW.serial_number:x}, {OLD.serial_number:x}" in said
        explained = directory.explain(RPPS[1:], "990000071")
        said = "\n".join(f"{step.what}: {step.detail}" for step in explained.steps)
        assert explained.recipient is not None and explained.recipient.address == HOSPITAL
        assert f"preferred: {HOSPITAL}: the mailbox of the structure concerned" in said
        assert f"passed over: {PRACTICE}" in said
        for nothing in ("nobody@demo-hopital.mssante.fr", "a@b@c", "@", "810000000000", ""):
            explained = directory.explain(nothing)
            assert explained.recipient is None and explained.steps[-1].detail == "no mailbox"


def test_an_address_two_entries_share_is_explained(running: Server) -> None:
    with running.directory() as directory:
        said = [step.detail for step in directory.explain("shared@demo-labo.mssante.fr").steps]
        assert any("PER comes first" in detail for detail in said)
        assert directory.explain(DOCTOR.upper()).recipient == directory.resolve(DOCTOR)
        assert directory.explain(TEAM).recipient == directory.resolve(TEAM)
