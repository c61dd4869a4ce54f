"""Which certificates, which mailbox, which identifier: the rules alone."""

from __future__ import annotations

import datetime
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from directory.choosing import MOST_DEVICES, by_preference, is_usable, newest_valid, of_department
from directory.identifiers import id_nats
from directory.records import MailboxKind, Recipient
from tests.directory.conftest import KEY

NOW = datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)


def certificate(name: str, since: int, until: int, key: Any = KEY, *extended: x509.ObjectIdentifier) -> Any:
    """Valid from and until so many days after now."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(NOW + since * DAY).not_valid_after(NOW + until * DAY)
    if extended:
        builder = builder.add_extension(x509.ExtendedKeyUsage(extended), critical=False)
    return builder.sign(KEY, hashes.SHA256())


def names(chosen: tuple[Any, ...]) -> list[str]:
    return [each.subject.rfc4514_string().removeprefix("CN=") for each in chosen]


def test_all_valid_ones_the_newest_first() -> None:
    old, new = certificate("old", -300, 30), certificate("new", -3, 700)
    expired, future = certificate("expired", -900, -1), certificate("future", 1, 900)
    assert names(newest_valid((old, expired, future, new), NOW)) == ["new", "old"]


def test_when_none_is_valid_all_stay_so_that_it_can_be_said_why() -> None:
    expired, future = certificate("expired", -900, -1), certificate("future", 1, 900)
    assert names(newest_valid((expired, future), NOW)) == ["future", "expired"]
    assert newest_valid((), NOW) == ()


def test_validity_includes_both_ends() -> None:
    first, last = certificate("first", 0, 5), certificate("last", -5, 0)
    assert names(newest_valid((first, last), NOW)) == ["first", "last"]


def test_what_no_path_will_ever_let_pass_stands_in_nobody_s_way() -> None:
    old = certificate("old", -300, 30)
    weak = certificate("weak", -1, 700, rsa.generate_private_key(65537, 1024))
    server = certificate("server", -1, 700, KEY, ExtendedKeyUsageOID.SERVER_AUTH)
    mail = certificate("mail", -2, 700, KEY, ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.EMAIL_PROTECTION)
    any_use = certificate("any", -3, 700, KEY, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)
    brainpool = certificate("brainpool", -4, 700, ec.generate_private_key(ec.BrainpoolP256R1()))
    strong = certificate("strong", -5, 700, rsa.generate_private_key(65537, 2048))
    everything = (old, weak, server, mail, any_use, brainpool, strong)
    assert names(newest_valid(everything, NOW)) == ["mail", "any", "brainpool", "strong", "old"]
    assert names(newest_valid((weak, server), NOW)) == ["weak", "server"]  # so that the refusal can say why
    assert not is_usable(weak, NOW) and not is_usable(server, NOW) and is_usable(strong, NOW)


def test_a_mail_is_encrypted_to_a_bounded_number_the_newest() -> None:
    many = [certificate(f"c{age}", -age, 700) for age in range(1, MOST_DEVICES + 9)]
    assert names(newest_valid(many, NOW)) == [f"c{age}" for age in range(1, MOST_DEVICES + 1)]


def mailbox(address: str, structure: str = "", rank: int | None = None, **changes: Any) -> Recipient:
    made = Recipient(address, MailboxKind.PER, "Dr X", id_nat="899900000001", structure=structure, rank=rank)
    return replace(made, **changes)


HOSPITAL, PRACTICE, OTHER = (
    mailbox("b@hopital.mssante.fr", "1990000001", 3),
    mailbox("c@cabinet.mssante.fr", "1990000002", 1),
    mailbox("a@autre.mssante.fr", "399000000000011"),
)


@pytest.mark.parametrize(
    ("structure", "expected"),
    [
        ("", [PRACTICE, HOSPITAL, OTHER]),
        ("990000001", [HOSPITAL, PRACTICE, OTHER]),
        ("1990000001", [HOSPITAL, PRACTICE, OTHER]),
        ("99000000000011", [OTHER, PRACTICE, HOSPITAL]),
        ("399000000000011", [OTHER, PRACTICE, HOSPITAL]),
        ("990000009", [PRACTICE, HOSPITAL, OTHER]),
    ],
)
def test_the_structure_concerned_comes_first_then_rank(structure: str, expected: list[Recipient]) -> None:
    for given_order in ([HOSPITAL, PRACTICE, OTHER], [OTHER, PRACTICE, HOSPITAL]):
        assert [recipient for recipient, _ in by_preference(given_order, structure)] == expected


def test_each_place_has_its_reason() -> None:
    reasons = [reason for _, reason in by_preference([HOSPITAL, PRACTICE, OTHER], "990000001")]
    assert reasons == ["the mailbox of the structure concerned", "rank 1", "no rank: by kind, then by address"]
    assert by_preference([OTHER])[0][1] == "the only one"
    assert by_preference([]) == []


def test_equal_mailboxes_come_in_the_same_order_every_day() -> None:
    twins = [mailbox(f"{letter}@x.mssante.fr") for letter in "cab"]
    practice = mailbox("0@x.mssante.fr", kind=MailboxKind.CAB)
    expected = ["a@x.mssante.fr", "b@x.mssante.fr", "c@x.mssante.fr", "0@x.mssante.fr"]
    assert [recipient.address for recipient, _ in by_preference([practice, *twins])] == expected


def team(address: str, department: str) -> Recipient:
    return Recipient(address, MailboxKind.ORG, "", department=department)


TEAMS = [
    team("1@h.fr", "Cardiologie pédiatrique"),
    team("2@h.fr", "CARDIOLOGIE"),
    team("3@h.fr", ""),
    team("4@h.fr", "Gynécologie-Obstétrique"),
    team("5@h.fr", "Cœur et vaisseaux"),
]


@pytest.mark.parametrize(
    ("department", "expected"),
    [
        ("cardiologie", ["2@h.fr", "1@h.fr"]),
        ("Cardiologie pediatrique", ["1@h.fr"]),
        ("OBSTETRIQUE GYNECOLOGIE", ["4@h.fr"]),
        ("coeur", ["5@h.fr"]),
        ("radiologie", []),
        ("", ["3@h.fr", "1@h.fr", "2@h.fr", "4@h.fr", "5@h.fr"]),
        ("-", ["3@h.fr", "1@h.fr", "2@h.fr", "4@h.fr", "5@h.fr"]),
    ],
)
def test_departments_are_found_by_their_words(department: str, expected: list[str]) -> None:
    assert [found.address for found in of_department(TEAMS, department)] == expected


@pytest.mark.parametrize(
    ("text", "system", "expected"),
    [
        ("10003461033", "", "810003461033"),
        ("100 0346 1033", "RPPS", "810003461033"),
        ("810003461033", "RPPS", "810003461033"),
        ("810003461033", "IDNPS", "810003461033"),
        ("810003461033", "urn:oid:1.2.250.1.71.4.2.1", "810003461033"),
        ("10003461033", "https://rpps.esante.gouv.fr", "810003461033"),
        ("012345678", "ADELI", "0012345678"),
        ("0012345678", "ADELI", "0012345678"),
        ("750712184", "FINESS", "1750712184"),
        ("1750712184", "FINESS", "1750712184"),
        ("750712184", "FINEG", "1750712184"),
        ("750712184", "", "1750712184"),
        ("2A0000123", "", "12A0000123"),
        ("0b0221636", "", "10B0221636"),
        ("10B0221636", "", "10B0221636"),
        ("34797668420072", "", "334797668420072"),
        ("347 976 684 20072", "SIRET", "334797668420072"),
        ("334797668420072", "SIRET", "334797668420072"),
        ("3750712184/0042", "", "3750712184/0042"),
    ],
)
def test_identifiers_in_all_spellings(text: str, system: str, expected: str) -> None:
    assert id_nats(text, system)[0] == expected


def test_nine_digits_alone_may_be_three_things() -> None:
    assert id_nats("750712184") == ("1750712184", "0750712184", "2750712184")
    assert id_nats("750712184", "ADELI") == ("0750712184",)


@pytest.mark.parametrize("text", ["", "   ", "é", "8\x00", "8" * 65, "\n"])
def test_what_is_no_identifier_is_none(text: str) -> None:
    assert id_nats(text) == ()


@given(st.text(max_size=80), st.sampled_from(["", "RPPS", "FINESS", "SIRET", "?"]))
def test_no_text_breaks_it(text: str, system: str) -> None:
    for found in id_nats(text, system):
        assert found.isascii() and found.isprintable() and len(found) <= 65
