"""The directory in step with the register, on a real slapd."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import ldap
import pytest

from directory.entries import from_recipient
from directory.extraction import MailboxRow
from directory.records import MailboxKind, Recipient
from directory.runs import RunReports
from directory.synchronisation import BusyError
from tests.directory.conftest import BASE, BOTH, Server, new_server
from tests.directory.synchronising import NOW, World, edit, redated, without

DOCTOR = MailboxRow(
    MailboxKind.PER,
    "claire.fontaine@demo-cabinet.mssante.fr",
    pp_id_nat="899912345678",
    structure_identifier_type="FINESS",
    structure_identifier="990000099",
    civility="DR",
    family_name="FONTAINE",
    given_name="Claire",
    profession_code="10",
    profession="Médecin",
    organisation="Cabinet Fontaine",
    l6_delivery="99100 FICTIVILLE",
    postal_code="99100",
)


@pytest.fixture(scope="module")
def shared(server_files: Path) -> Iterator[Server]:
    with new_server(server_files) as server:
        server.start()
        yield server


@pytest.fixture
def world(shared: Server, tmp_path: Path) -> Iterator[World]:
    """An empty directory: what the test before left is removed, children first."""
    made = World(shared, tmp_path)
    yield made
    connection = made.connection()
    try:
        found = connection.search_s(BASE, ldap.SCOPE_SUBTREE, "(objectClass=*)", ["1.1"])
    except ldap.NO_SUCH_OBJECT:
        return
    levels: dict[int, list[str]] = {}
    for dn, _ in found:
        levels.setdefault(dn.count(","), []).append(dn)
    for level in sorted(levels, reverse=True):
        for message in [connection.delete(dn) for dn in levels[level]]:
            connection.result(message)


def dn_of(address: str) -> str:
    return f"mail={address},ou=professionnels,{BASE}"


def test_the_first_day_fills_an_empty_directory(world: World) -> None:
    world.apart = True
    report = world.run(world.publish())
    assert (report.outcome, report.holds, report.refused) == ("applied", [], {})
    entries = world.entries()
    assert report.added == report.to_add == len(entries) > 25
    assert {dn.split(",")[1] for dn in entries} == {
        "ou=professionnels",
        "ou=structures",
        "ou=personnes",
        "ou=etablissements",
    }


def test_the_same_files_again_write_nothing(world: World) -> None:
    world.apart = True
    files = world.publish()
    world.run(files)
    before = world.entries("entryCSN")
    again = world.run(files)
    assert (again.outcome, again.added, again.changed, again.removed) == ("applied", 0, 0, 0)
    assert again.unchanged == len(before)
    assert world.entries("entryCSN") == before


def test_the_next_day_writes_the_changes_and_no_more(world: World) -> None:
    world.run(world.publish(60))
    before = world.entries("entryCSN")
    files = world.publish(60, extra=(DOCTOR,))
    (gone,) = without(files.mssante, 1, "ORG")
    edit(files.mssante, "|Pharmacien|", "|Pharmacienne|")
    report = world.run(files)
    after = world.entries("entryCSN")
    assert report.outcome == "applied"
    assert dn_of(DOCTOR.address) in after.keys() - before.keys()
    assert list(before.keys() - after.keys()) == [f"mail={gone},ou=structures,{BASE}"]
    assert (report.added, report.removed) == (len(after.keys() - before.keys()), 1)
    assert report.changed == sum(after[dn] != before[dn] for dn in after.keys() & before.keys()) > 0


def test_what_somebody_changed_by_hand_is_put_right(world: World) -> None:
    files = world.publish(extra=(DOCTOR,))
    world.run(files)
    right = world.entries()
    connection = world.connection()
    connection.modify_s(dn_of(DOCTOR.address), [(ldap.MOD_REPLACE, "sn", [b"NOBODY"])])
    team = next(dn for dn in right if ",ou=structures," in dn)
    connection.delete_s(team)
    stray = Recipient("stray@demo.mssante.fr", MailboxKind.PER, "Stray")
    entry = dict(from_recipient(stray, BASE).attributes) | {"SourceBAL": (b"NATIONAL",)}
    connection.add_s(dn_of(stray.address), [(name, list(values)) for name, values in entry.items()])
    report = world.run(files)
    assert (report.added, report.changed, report.removed) == (1, 1, 1)
    assert world.entries() == right


def test_zip_and_text_say_the_same(world: World) -> None:
    files = world.publish(extra=(DOCTOR,))
    world.run(files)
    folder = world.folder / "zipped"
    folder.mkdir()
    with zipfile.ZipFile(folder / f"{files.mssante.stem}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(files.mssante, files.mssante.name)
    with zipfile.ZipFile(folder / "PS_LibreAcces_202609100503.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (files.practice, files.savoir_faire, files.diplomes):
            archive.write(path, path.name)
    report = world.run(folder)
    assert set(report.files) == {"mssante", "practice", "skills", "diplomas"}
    assert (report.outcome, report.added, report.changed, report.removed) == ("applied", 0, 0, 0)


class TestOverlay:
    def test_stays_when_the_register_renews_its_data(self, world: World) -> None:
        world.run(world.publish(extra=(DOCTOR,)))
        local = (
            Recipient("automate@demo-labo.mssante.fr", MailboxKind.APP, "Automate", (BOTH,)),
            Recipient("octets@patient.demo.mssante.fr", MailboxKind.PATIENT, "", (BOTH,)),
            Recipient(DOCTOR.address, MailboxKind.PER, "", (BOTH,), id_nat=DOCTOR.pp_id_nat),
        )
        with world.server.directory("admin") as directory:
            for recipient in local:
                directory.publish(recipient, red_list=recipient.address == DOCTOR.address)
        files = world.publish(extra=(replace(DOCTOR, given_name="Clara"),))
        report = world.run(files)
        assert (report.outcome, report.changed >= 1, report.removed) == ("applied", True, 0)
        entry = world.entries()[dn_of(DOCTOR.address)]
        assert entry["givenName"] == [b"Clara"]
        assert entry["listeRouge"] == [b"TRUE"]
        assert "userCertificate;binary" in entry
        with world.server.directory() as directory:
            assert all(directory.resolve(recipient.address) for recipient in local)

    def test_stays_when_the_register_forgets_the_mailbox(self, world: World) -> None:
        world.run(world.publish(60, extra=(DOCTOR,)))
        with world.server.directory("admin") as directory:
            directory.publish(Recipient(DOCTOR.address, MailboxKind.PER, "", (BOTH,)))
        report = world.run(world.publish(60))
        assert report.outcome == "applied"
        assert report.kept == 1 and report.kept_entries == [dn_of(DOCTOR.address)]
        assert dn_of(DOCTOR.address) in world.entries()

    def test_wins_over_a_national_line_with_its_address(self, world: World) -> None:
        world.run(world.publish())
        with world.server.directory("admin") as directory:
            directory.publish(Recipient(DOCTOR.address, MailboxKind.PER, "Ours", (BOTH,)))
        before = world.entries()[dn_of(DOCTOR.address)]
        report = world.run(world.publish(extra=(DOCTOR,)))
        assert (report.outcome, report.local) == ("applied", 1)
        assert world.entries()[dn_of(DOCTOR.address)] == before

    def test_an_attribute_it_took_over_is_its_own(self, world: World) -> None:
        world.run(world.publish(extra=(DOCTOR,)))
        changes = [
            (ldap.MOD_REPLACE, "telephoneNumber", [b"0199000001"]),
            (ldap.MOD_REPLACE, "displayName", [b"Ma Fontaine"]),
            (ldap.MOD_REPLACE, "AttributLocal", [b"telephoneNumber", b"displayName"]),
        ]
        world.connection().modify_s(dn_of(DOCTOR.address), changes)
        report = world.run(world.publish(extra=(replace(DOCTOR, civility="PR"),)))
        assert report.outcome == "applied"
        entry = world.entries()[dn_of(DOCTOR.address)]
        assert (entry["telephoneNumber"], entry["displayName"]) == ([b"0199000001"], [b"Ma Fontaine"])
        assert entry["title"] == [b"PR"]

    def test_our_own_domains_are_not_the_registers_to_empty(self, world: World) -> None:
        world.own_domains = ("demo-cabinet.mssante.fr",)
        world.run(world.publish(60, extra=(DOCTOR,)))
        report = world.run(world.publish(60))
        assert (report.outcome, report.kept) == ("applied", 1)
        assert dn_of(DOCTOR.address) in world.entries()


class TestGuards:
    """Held for a human: the directory is not touched, the report says why."""

    def held(self, world: World, files: object, *reasons: str, accepted: bool = True) -> None:
        before = world.entries("*", "entryCSN")
        report = world.run(files)  # type: ignore[arg-type]
        assert (report.outcome, [hold.reason for hold in report.holds]) == ("held", list(reasons))
        assert world.entries("*", "entryCSN") == before
        assert RunReports(world.folder / "sync" / "runs").read(report.id) == report
        if accepted:
            assert world.run(files, accept=reasons).outcome == "applied"  # type: ignore[arg-type]

    def test_an_empty_file(self, world: World) -> None:
        world.run(world.publish())
        files = world.publish()
        header = files.mssante.read_text("utf-8").splitlines()[0]
        files.mssante.write_text(header + "\n", "utf-8")
        self.held(world, files, "empty", accepted=False)
        files.mssante.write_bytes(b"")
        self.held(world, files, "unreadable", accepted=False)
        assert world.run(files, accept=("unreadable", "empty", "loss")).outcome == "held"

    def test_a_truncated_file(self, world: World) -> None:
        world.run(world.publish())
        files = world.publish()
        content = files.mssante.read_bytes()
        files.mssante.write_bytes(content[: len(content) - 60])
        self.held(world, files, "truncated")

    def test_a_truncated_archive(self, world: World) -> None:
        world.run(world.publish())
        files = world.publish()
        archive_path = files.practice.parent / "PS_LibreAcces_202609100503.zip"
        with zipfile.ZipFile(archive_path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(files.practice, files.practice.name)
        archive_path.write_bytes(archive_path.read_bytes()[:-200])
        self.held(world, files, "unreadable", accepted=False)

    def test_a_stale_file(self, world: World) -> None:
        old = world.publish()
        world.run(world.publish())
        self.held(world, old, "stale", "stale", "stale", "stale")

    def test_a_file_from_long_ago_or_from_the_future(self, world: World) -> None:
        files = redated(world.publish(), NOW - timedelta(days=40))
        report = world.run(files)
        assert {hold.reason for hold in report.holds} == {"stale"}
        report = world.run(redated(files, NOW + timedelta(days=3)))
        assert {hold.reason for hold in report.holds} == {"future"}

    def test_a_loss(self, world: World) -> None:
        world.run(world.publish(60))
        files = world.publish(60)
        without(files.mssante, 25)
        self.held(world, files, "loss")

    def test_the_loss_of_one_branch(self, world: World) -> None:
        world.run(world.publish(100))
        files = world.publish(100)
        assert len(without(files.mssante, 6, "ORG")) == 6
        self.held(world, files, "loss")

    def test_a_file_that_is_not_there_any_more(self, world: World) -> None:
        world.run(world.publish())
        self.held(world, world.publish().mssante, "missing", "missing", "missing", accepted=False)

    def test_columns_that_slipped(self, world: World) -> None:
        world.run(world.publish(60))
        files = world.publish(60)
        edit(files.mssante, "Nom d'exercice|Prénom d'exercice", "Prénom d'exercice|Nom d'exercice")
        edit(files.practice, "Nom d'exercice|Prénom d'exercice", "Prénom d'exercice|Nom d'exercice")
        self.held(world, files, "upheaval")

    def test_garbage(self, world: World) -> None:
        world.run(world.publish())
        garbage = world.folder / "Extraction_Correspondance_MSSante_202609100400.txt"
        garbage.write_bytes(b"".join(bytes((number % 256,)) * 40 + b"\n" for number in range(10_000)))
        self.held(world, garbage, "unreadable", accepted=False)
        files = world.publish()
        with files.mssante.open("ab") as file:
            file.write(b"\xfe\xed|garbage\n" * 10_000)
        self.held(world, files, "garbled")

    def test_no_file_at_all(self, world: World) -> None:
        (world.folder / "nothing").mkdir()
        world.run(world.publish())
        self.held(world, world.folder / "nothing", "unreadable", accepted=False)
        self.held(world, world.folder / "elsewhere", "unreadable", accepted=False)


def test_an_address_of_two_holders_is_held_and_the_rest_goes_on(world: World) -> None:
    world.run(world.publish(extra=(DOCTOR,)))
    before = world.entries()[dn_of(DOCTOR.address)]
    thief = replace(DOCTOR, pp_id_nat="899987654321", given_name="Autre")
    new = replace(DOCTOR, address="nouvelle@demo-cabinet.mssante.fr", given_name="Nouvelle")
    twice = (
        replace(DOCTOR, address="deux@demo-cabinet.mssante.fr", pp_id_nat="899900000002"),
        replace(DOCTOR, address="deux@demo-cabinet.mssante.fr", pp_id_nat="899900000003"),
    )
    report = world.run(world.publish(extra=(replace(DOCTOR, given_name="Clara"), thief, new, *twice, new)))
    assert (report.outcome, report.conflicting_lines, report.repeated_lines) == ("applied", 2, 1)
    assert len(report.conflicts) == 2 and all(before < after for before, after in report.conflicts)
    entries = world.entries()
    assert entries[dn_of(DOCTOR.address)] == before
    assert dn_of(new.address) in entries
    assert dn_of(twice[0].address) not in entries
    world.limits = replace(world.limits, conflicts=1)
    held = world.run(world.publish(extra=(replace(DOCTOR, given_name="Clara"), thief, *twice)))
    assert [hold.reason for hold in held.holds] == ["conflicts"]


def test_a_broken_line_is_told_and_removes_nobody(world: World) -> None:
    world.run(world.publish(extra=(DOCTOR,)))
    before = world.entries()
    files = world.publish(extra=(DOCTOR,))
    content = files.mssante.read_bytes()
    files.mssante.write_bytes(content.replace(b"|FONTAINE|", b"|FONT\xc3INE|"))
    number = 1 + [b"FONT\xc3INE" in line for line in files.mssante.read_bytes().split(b"\n")].index(True)
    report = world.run(files)
    assert report.outcome == "applied"
    assert report.files["mssante"].rejected == {"encoding": 1}
    assert [(line.line, line.reason) for line in report.files["mssante"].lines] == [(number, "encoding")]
    assert (report.frozen, report.removed) == (1, 0)
    assert world.entries() == before


def test_ten_days_without_publication_change_nothing(world: World) -> None:
    files = world.publish()
    world.run(files)
    before = world.entries("entryCSN")
    later = NOW + timedelta(days=10)
    report = world.run(files, now=lambda: later)
    assert (report.outcome, report.silent_days) == ("applied", 19)
    assert world.entries("entryCSN") == before


def test_a_dry_run_writes_nothing(world: World) -> None:
    world.run(world.publish())
    before = world.entries("entryCSN")
    report = world.run(world.publish(extra=(DOCTOR,)), dry=True)
    assert (report.outcome, report.added) == ("planned", 0) and report.to_add > 0
    assert world.entries("entryCSN") == before


def test_one_at_a_time(world: World) -> None:
    files = world.publish()

    def progress(step: str, done: int, of: int) -> None:
        with pytest.raises(BusyError):
            world.run(files)

    assert world.run(files, progress=progress).outcome == "applied"


def test_a_mailbox_that_changes_its_kind_is_there_all_the_time(world: World) -> None:
    world.run(world.publish(60, extra=(DOCTOR,)))
    report = world.run(world.publish(60, extra=(replace(DOCTOR, kind=MailboxKind.ORG, service="Cabinet"),)))
    assert report.outcome == "applied"
    entries = world.entries()
    assert dn_of(DOCTOR.address) not in entries
    assert f"mail={DOCTOR.address},ou=structures,{BASE}" in entries


def test_reports_are_kept_and_the_oldest_go(world: World) -> None:
    files = world.publish()
    first = world.run(files)
    reports = RunReports(world.folder / "sync" / "runs", keep=2)
    second = world.run(files, now=lambda: NOW + timedelta(minutes=1))
    third = world.run(world.folder / "nowhere", now=lambda: NOW + timedelta(minutes=2))
    assert [report.id for report in reports.newest_first()] == [third.id, second.id, first.id]
    reports.write(third)
    assert [report.id for report in reports.newest_first()] == [third.id, second.id]
    assert reports.last_applied() == second
