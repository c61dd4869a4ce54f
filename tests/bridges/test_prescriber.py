"""A report that names its prescriber by RPPS and structure, and not by address: the right mailbox, on a real slapd."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from bridges.compose import ComposeOptions
from bridges.composing import ComposeStage
from bridges.intake import HL7_CONTENT, Intake, IntakeOptions
from bridges.report import Audience, Flags, Party
from bridges.report import Correspondent as Named
from bridges.routing import IDENTIFIER, identifiers_to_find, named, route
from directory.entries import from_recipient
from directory.identifiers import person_id_nat
from directory.records import MailboxKind, Recipient
from directory.resolve import Directory
from mta.message import Message, Origin, Phase, TargetKind
from mta.smtp.target import dsn_request
from mta.spool import Spool
from tests.bridges.fictitious import report
from tests.bridges.test_intake import ROUTING, SYSTEM, Trusting, code, database, parse, spool
from tests.directory.conftest import BASE, ENCRYPTING, Server, new_server, server_files
from tests.support import reports
from tests.support.private import free_port
from tests.support.reports import DOCTOR, Correspondent
from trust.refusals import Refused

__all__ = ["database", "server_files", "spool"]

RPPS = "899900000077"
HOSPITAL, PRACTICE, PREFERRED = (f"anne.roux@demo-{name}.mssante.fr" for name in ("hopital", "cabinet", "prefere"))
HOSPITAL_FINESS, PRACTICE_FINESS = "990000071", "990000072"


def prt(identifier: str, finess: str = "", address: str = "") -> tuple[Correspondent, bytes, bytes]:
    """A recipient, and what to put into the frame for the structure's number."""
    number = f"{identifier or 'x'}-{finess}"
    who = Correspondent(address, identifier, "Roux", "Anne", organisation=f"Structure {number}")
    old = f"Structure {number}^^^^^^SVR^^^S1".encode()
    return who, old, f"Structure {number}^^^^^^FINEG^^^{finess}".encode()


def frame(*recipients: tuple[Correspondent, bytes, bytes], **more: object) -> bytes:
    made = reports.message(recipients=tuple(each[0] for each in recipients), **more)  # type: ignore[arg-type]
    for _, old, new in recipients:
        assert old in made or new in made
        made = made.replace(old, new)
    return made


@pytest.fixture(scope="module")
def people(server_files: Path) -> Iterator[Server]:
    def person(address: str, structure: str) -> Recipient:
        return Recipient(address, MailboxKind.PER, "Dr Anne ROUX", (ENCRYPTING,), (), RPPS, "10", structure, "X")

    with new_server(server_files) as server:
        server.slapd.load(
            from_recipient(each, BASE)
            for each in (
                person(HOSPITAL, "1" + HOSPITAL_FINESS),
                person(PRACTICE, "1" + PRACTICE_FINESS),
                person(PREFERRED, "1990000073"),
                Recipient("bare@demo-x.mssante.fr", MailboxKind.PER, "Dr Nu", id_nat="899900000088"),
            )
        )
        server.start()
        with server.directory("admin") as admin:
            assert admin.set_rank(PREFERRED, 1)
        yield server


@pytest.fixture
def directory(people: Server) -> Iterator[Directory]:
    with people.directory() as directory:
        yield directory


def intake(spool: Spool, directory: Directory) -> Intake:
    return Intake(spool, directory, Trusting(), parse, IntakeOptions(ROUTING, resolve_seconds=5.0))


def composing(threads: ThreadPoolExecutor) -> ComposeStage:
    options = ComposeOptions(software_reference="NIL-1", environment="test", host_name="relais.example")
    return ComposeStage(parse, {}, options, ROUTING, threads)


@pytest.mark.parametrize(
    ("identifier", "finess", "address"),
    [
        (RPPS, HOSPITAL_FINESS, HOSPITAL),
        (RPPS[1:], "1" + HOSPITAL_FINESS, HOSPITAL),
        (RPPS, PRACTICE_FINESS, PRACTICE),
        (RPPS, "", PREFERRED),
        (RPPS, "990000099", PREFERRED),
    ],
)
async def test_the_structure_concerned_first_then_rank(
    directory: Directory, spool: Spool, identifier: str, finess: str, address: str
) -> None:
    taking = intake(spool, directory)
    try:
        taken = taking.take(frame(prt(identifier, finess), flags=reports.Flags(to_dossier=False)), SYSTEM)
    finally:
        taking.close()
    assert code(taken.reply) == "AA" and b"ERR" not in taken.reply
    assert [(each.recipient, each.refused) for each in taken.deliveries] == [(address, None)]
    # the mail is composed for the one who was named, whoever composes it, and written to the mailbox that was found
    (lease,) = spool.claim(1, 60)
    message = Message(
        message_id="<1@labo.example>",
        spool_id=lease.spool_id,
        delivery_id=lease.delivery_id,
        origin=Origin.MLLP,
        sender=lease.sender,
        recipient=lease.recipient,
        content=spool.content(lease),
        content_type=HL7_CONTENT,
        accepted_at=lease.accepted_at,
        facts={"dsn.orcpt": lease.original_recipient},
    )
    with ThreadPoolExecutor(1) as threads:
        composed = await composing(threads).apply(message, Phase.ENRICH)
        redirected = await composing(threads).apply(replace(message, recipient="remplacant@x.mssante.fr"), Phase.ENRICH)
        stranger = await composing(threads).apply(replace(message, facts={}), Phase.ENRICH)
    assert isinstance(composed, Message) and f"<{address}>".encode() in composed.content
    assert isinstance(redirected, Message) and isinstance(stranger, Refused)
    # how the sender named the recipient stays with us; the next server is told whom the mail is for
    assert dsn_request(message).orcpt == f"rfc822;{address}"


def test_whom_nobody_knows_is_told_and_stops_nobody(directory: Directory, spool: Spool) -> None:
    doctor = (DOCTOR, b"", b"")
    taking = intake(spool, directory)
    try:
        unknown = taking.take(frame(prt("899900000078"), flags=reports.Flags(to_dossier=False)), SYSTEM)
        assert code(unknown.reply) == "AE" and [each.refused.refusal.code for each in unknown.deliveries] == [  # type: ignore[union-attr]
            "directory.recipient-unknown"
        ]
        bare = taking.take(frame(prt("899900000088"), flags=reports.Flags(to_dossier=False)), SYSTEM)
        assert code(bare.reply) == "AE" and bare.deliveries[0].refused is not None
        nobody = taking.take(frame(prt("", HOSPITAL_FINESS), flags=reports.Flags(to_dossier=False)), SYSTEM)
        assert code(nobody.reply) == "AE"  # a hospital is no addressee
        both = taking.take(frame(prt("899900000078"), prt("899900000079"), prt(RPPS), doctor), SYSTEM)
        refused = [each.refused.refusal.code for each in both.deliveries if each.refused]
        assert refused[:2] == ["directory.recipient-unknown"] * 2
        assert PREFERRED in [each.recipient for each in both.deliveries if not each.refused]
    finally:
        taking.close()


def test_a_directory_that_is_away_is_later_and_nothing_is_kept(people: Server, spool: Spool) -> None:
    uri = f"ldaps://127.0.0.1:{free_port()}"
    with people.directory(uri=uri, timeout_seconds=0.3) as away:
        taking = intake(spool, away)
        try:
            taken = taking.take(frame(prt(RPPS)), SYSTEM)
        finally:
            taking.close()
    assert code(taken.reply) == "AR" and taken.spool_id == ""
    assert taken.refused is not None and taken.refused.refusal.code == "directory.unavailable"


def test_named_twice_receives_once(directory: Directory, spool: Spool) -> None:
    taking = intake(spool, directory)
    try:
        by_both = frame(
            prt(RPPS, HOSPITAL_FINESS), prt(RPPS, HOSPITAL_FINESS), prt("", "", HOSPITAL),
            flags=reports.Flags(to_dossier=False),
        )  # fmt: skip
        taken = taking.take(by_both, SYSTEM)
    finally:
        taking.close()
    assert [each.recipient for each in taken.deliveries] == [HOSPITAL]


def test_the_sender_s_wishes_hold_for_them_as_well() -> None:
    who = Named(Party(RPPS, "Roux", "Anne"), "", Audience.PROFESSIONAL, "PRT^2^15")
    name = f"{RPPS}/"
    recipient = Recipient(PREFERRED, MailboxKind.PER, "", (ENCRYPTING,))
    for flags, expected in (
        (Flags(), ""),
        (Flags(masked_to_professionals=True), "bridges.masked-to-professionals"),
        (Flags(to_professionals=False), "bridges.not-requested"),
    ):
        one = report(correspondents=(who,), flags=flags)
        found = {name: PREFERRED} if not expected else {}
        assert set(identifiers_to_find(one)) == set(found)
        (delivery,) = route(one, lambda address: recipient, lambda domain: True, ROUTING, found)
        assert (delivery.refused.refusal.code if delivery.refused else "") == expected
        if not expected:
            assert delivery.original_recipient == f"{IDENTIFIER};{name}" and delivery.target is TargetKind.SMTP
    at_patients = route(
        report(correspondents=(who,)), lambda address: recipient, lambda domain: True, ROUTING,
        {name: "2999999999001@patient.mssante.fr"},
    )  # fmt: skip
    assert at_patients[0].refused is not None
    patient = replace(who, audience=Audience.PATIENT)
    assert named(patient) == "" and identifiers_to_find(report(correspondents=(patient,))) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("899900000077", RPPS),
        ("99900000077", RPPS),
        (" 999 0000 0077 ", RPPS),
        ("0991234567", "0991234567"),
        ("3990000071/12", "3990000071/12"),
        ("991234567", ""),  # an ADELI, a FINESS or a SIREN
        ("799900000077", ""),
        ("1990000071", ""),
        ("*", ""),
        ("8*", ""),
        ("8999000000٧٧", ""),
        ("8" * 70, ""),
        ("3" * 40 + "/" + "1" * 40, ""),
        ("", ""),
    ],
)
def test_only_what_can_mean_one_person(text: str, expected: str) -> None:
    assert person_id_nat(text) == expected
