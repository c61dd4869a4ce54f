"""Files nobody should publish, entries that changed hands, and orders of lines, against a real slapd."""

from __future__ import annotations

import random
import resource
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import ldap
import pytest

from directory.buckets import BUCKETS, read_bucket
from directory.canonical import decode_wanted
from directory.differences import Plan
from directory.extraction import MAILBOX_COLUMNS, PRACTICE_COLUMNS, MailboxRow, PracticeRow
from directory.fhir import FhirMailbox, FhirProfessional
from directory.guards import Limits, judge_difference
from directory.joining import Joiner
from directory.load import entries as first_load
from directory.national import examine, find
from directory.records import MailboxKind, Recipient
from directory.refresh import refresh
from directory.synthetic import ExtractionFiles, write_extraction
from directory.wanting import write_wanted
from tests.directory.conftest import BASE, BOTH, Server
from tests.directory.synchronising import NOW, World
from tests.directory.test_synchronisation import DOCTOR, dn_of, shared, world  # noqa: F401 - fixtures

NASTY = (
    "*)(objectClass=*)",
    "x,ou=patients,dc=mssante,dc=fr",
    '#a+b="<c>;\\',
    "\\2a\\00 \\",
    "${jndi:ldap://x}%s%n",
    " éÉ\N{RIGHT-TO-LEFT OVERRIDE}\N{ZERO WIDTH SPACE}\N{PILE OF POO}\ufdfa ",
    "$\\24$",
    "- dn: cn=admin",
    "x" * 3000,
)


def shuffled(files: ExtractionFiles, seed: int) -> None:
    for path in (files.mssante, files.practice, files.savoir_faire, files.diplomes):
        header, *lines = path.read_text("utf-8").splitlines(keepends=True)
        random.Random(seed).shuffle(lines)
        path.write_text(header + "".join(lines), "utf-8")


def quarrelling(folder: Path) -> ExtractionFiles:
    """Lines that do not agree about names, structures and mailboxes of one and the same."""
    files = write_extraction(folder, 6, extra=(DOCTOR, replace(DOCTOR, skill_code="SM99", skill="Autre")))
    with files.practice.open("a", encoding="utf-8") as file:
        for number in range(12):
            values = {
                "pp_id_nat": DOCTOR.pp_id_nat if number % 2 else f"8999{number % 5:08d}",
                "family_name": f"NOM {number}",
                "given_name": f"Prénom {number}",
                "finess": f"99000000{number % 3}",
                "organisation": f"Clinique {number}",
                "telephone": f"019900000{number}",
            }
            file.write("|".join(values.get(name, "") for _, name in PRACTICE_COLUMNS) + "|\n")
    return files


def wanted(files: ExtractionFiles, folder: Path) -> set[tuple[str, bytes]]:
    with Joiner(folder / "lines") as joiner:
        examine(find([files.mssante.parent]), joiner.take)
    write_wanted(folder / "lines", folder / "wanted", BASE, folder / "kept")
    return {
        (one.key, one.content)
        for number in range(BUCKETS)
        for one in map(decode_wanted, read_bucket(folder / "wanted", number))
    }


def test_the_order_of_lines_plays_no_part(tmp_path: Path) -> None:
    files = quarrelling(tmp_path / "files")
    before = wanted(files, tmp_path)
    loaded = {entry.dn: entry for entry in first_load(files.mssante, files.practice, BASE)}
    for seed in range(4):
        shuffled(files, seed)
        assert wanted(files, tmp_path / str(seed)) == before
        made = list(first_load(files.mssante, files.practice, BASE))
        assert {entry.dn: entry for entry in made} == loaded and len(made) == len(loaded)


def test_the_next_days_files_in_another_order_write_nothing(server: Server, tmp_path: Path) -> None:
    files = quarrelling(tmp_path / "files")
    server.slapd.load(
        first_load(files.mssante, files.practice, BASE, skills=files.savoir_faire, diplomas=files.diplomes)
    )
    server.start()
    made = World(server, tmp_path, limits=Limits(oldest_days=36_500))
    for seed in range(2):
        shuffled(files, seed)
        report = made.run(files)
        assert (report.outcome, report.holds, report.to_add + report.to_change + report.to_remove) == ("applied", [], 0)


def test_no_column_of_any_file_breaks_out(world: World, server: Server) -> None:  # noqa: F811
    """Every column of every file, with what LDAP, LDIF and DNs take for syntax."""
    files = world.publish(3)
    with files.mssante.open("a", encoding="utf-8") as file:
        for number, (value, (_, column)) in enumerate((v, c) for v in NASTY for c in MAILBOX_COLUMNS):
            row = replace(DOCTOR, address=f"n{number}@demo.mssante.fr", pp_id_nat=f"8999{number:08d}")
            texts = [row.kind.value, *(getattr(row, name) for _, name in MAILBOX_COLUMNS[1:])]
            texts[[name for _, name in MAILBOX_COLUMNS].index(column)] = value
            file.write("|".join(texts) + "\n")
    for path, width in ((files.practice, 56), (files.savoir_faire, 13), (files.diplomes, 13)):
        with path.open("a", encoding="utf-8") as file:
            for number, (value, column) in enumerate((v, c) for v in NASTY for c in range(width)):
                texts = ["8", f"999{number:08d}", f"8999{number:08d}", *["x"] * (width - 3)]
                texts[column] = value
                file.write("|".join(texts) + "|\n")
    rejected = Limits(rejected_percent=50)
    world.limits = rejected
    report = world.run(files)
    assert (report.outcome, report.holds, report.refused) == ("applied", [], {})
    assert set(report.files["mssante"].rejected) == {"kind", "address", "identifier"}
    entries = world.entries()
    assert report.added == len(entries)
    assert not any(dn.endswith(f",ou=patients,{BASE}") for dn in entries)
    assert {dn.rpartition(f",{BASE}")[0].rpartition(",")[2] for dn in entries} == {
        "ou=professionnels",
        "ou=structures",
        "ou=personnes",
        "ou=etablissements",
    }
    again = world.run(files)
    assert (again.added, again.changed, again.removed, again.unchanged) == (0, 0, 0, report.added)
    server.slapd.load(
        first_load(files.mssante, files.practice, BASE, skills=files.savoir_faire, diplomas=files.diplomes)
    )
    server.start()
    assert World(server, world.folder).entries() == entries


def test_addresses_as_long_as_they_may_be(world: World, server: Server) -> None:  # noqa: F811
    """What slapd's database cannot hold as a name is told with its line; what it just can is there."""
    plain = ["x" * 64 + "@" + ("d" * 50 + ".") * 3 + "e" * length + ".fr" for length in (19, 20)]
    odd = ['+"<>;,=' * 9 + "@" + "d" * length + ".fr" for length in (47, 48)]
    files = world.publish(20, extra=[replace(DOCTOR, address=address) for address in (*plain, *odd)])
    first = world.run(files)
    assert (first.outcome, first.refused) == ("applied", {})
    assert first.files["mssante"].rejected == {"address": 2}
    assert {plain[0], odd[0]} <= {entry["mail"][0].decode() for entry in world.entries("mail").values() if entry}
    report = world.run(files)
    assert (report.holds, report.outcome, report.to_add, report.refused) == ([], "applied", 0, {})
    server.slapd.load(first_load(files.mssante, files.practice, BASE))


def test_a_person_with_forty_situations(world: World) -> None:  # noqa: F811
    files = world.publish(2, extra=(DOCTOR,))
    with files.practice.open("a", encoding="utf-8") as file:
        for number in range(40):
            row = PracticeRow(DOCTOR.pp_id_nat, finess=f"9900{number:05d}", organisation=f"Site {number}", town="Ici")
            file.write("|".join(getattr(row, name) if name else "" for _, name in PRACTICE_COLUMNS) + "|\n")
    assert world.run(files).refused == {}
    entry = world.entries()[f"IdNat={DOCTOR.pp_id_nat},ou=personnes,{BASE}"]
    assert len(entry["Situation"]) == 41
    shuffled(files, 3)
    assert world.run(files).to_change == 0


def test_one_person_under_rpps_and_adeli(world: World) -> None:  # noqa: F811
    adeli = replace(DOCTOR, pp_id_nat="0991234567", family_name="Fontaine")
    world.run(world.publish(3, extra=(adeli,)))
    assert world.entries()[dn_of(DOCTOR.address)]["IdNat"] == [b"0991234567"]
    with world.server.directory("admin") as directory:
        directory.publish(Recipient(DOCTOR.address, MailboxKind.PER, "", (BOTH,)))
    for extra in ((adeli, DOCTOR), (DOCTOR, adeli)):
        report = world.run(files := world.publish(3, extra=extra))
        assert (report.outcome, report.conflicting_lines, report.handed_over) == ("applied", 0, 0)
        assert world.entries()[dn_of(DOCTOR.address)]["IdNat"] == [DOCTOR.pp_id_nat.encode()]
    found = [e for e in first_load(files.mssante, files.practice, BASE) if e.dn == dn_of(DOCTOR.address)]
    assert [entry.attributes["IdNat"] for entry in found] == [(DOCTOR.pp_id_nat.encode(),)]
    stranger = replace(adeli, given_name="Autre")
    assert world.run(world.publish(3, extra=(DOCTOR, stranger))).conflicting_lines == 1


class TestAnotherHolder:
    NEW = replace(DOCTOR, pp_id_nat="899900000055", family_name="SOURCE", given_name="Anne")

    def test_is_written_when_the_overlay_has_no_part_in_it(self, world: World) -> None:  # noqa: F811
        world.run(world.publish(30, extra=(DOCTOR,)))
        report = world.run(world.publish(30, extra=(self.NEW,)))
        assert (report.outcome, report.handed_over) == ("applied", 0)
        assert world.entries()[dn_of(DOCTOR.address)]["IdNat"] == [b"899900000055"]

    def test_does_not_inherit_certificates(self, world: World) -> None:  # noqa: F811
        world.run(world.publish(30, extra=(DOCTOR,)))
        with world.server.directory("admin") as directory:
            directory.publish(Recipient(DOCTOR.address, MailboxKind.PER, "", (BOTH,)))
        before = world.entries()[dn_of(DOCTOR.address)]
        report = world.run(world.publish(30, extra=(self.NEW,)))
        assert (report.outcome, report.handed_over, report.handed_over_entries) == (
            "applied",
            1,
            [dn_of(DOCTOR.address)],
        )
        assert world.entries()[dn_of(DOCTOR.address)] == before
        with world.server.directory("admin") as directory:
            directory.publish(Recipient(DOCTOR.address, MailboxKind.PER, ""))
        assert world.run(world.publish(30, extra=(self.NEW,))).handed_over == 0
        assert world.entries()[dn_of(DOCTOR.address)]["IdNat"] == [b"899900000055"]


class _Api:
    def __init__(self, *mailboxes: FhirMailbox, given_name: str = "Clara") -> None:
        self.found = FhirProfessional(
            id_nat=DOCTOR.pp_id_nat, family_name="FONTAINE", given_name=given_name, civility="DR", mailboxes=mailboxes
        )

    def professional(self, rpps: str) -> FhirProfessional:
        return self.found


def test_what_the_api_said_stays_until_a_younger_file_comes(world: World) -> None:  # noqa: F811
    """The newest source wins: a file published before the API was asked undoes nothing, the next one decides."""
    now = datetime.now(UTC)
    world.limits = Limits(oldest_days=36_500)

    def published(when: datetime, *extra: MailboxRow) -> ExtractionFiles:
        name = f"{when:%Y%m%d%H%M}"
        return write_extraction(world.folder / name, 30, extra=extra, published=name)

    old = published(now - timedelta(hours=6), DOCTOR)
    assert world.run(old, now=lambda: now).outcome == "applied"
    new = "nouvelle@demo-cabinet.mssante.fr"
    mailboxes = (FhirMailbox(DOCTOR.address, "PER", "", rank=1), FhirMailbox(new, "PER", ""))
    with world.server.directory("admin") as directory:
        done = refresh(directory, _Api(*mailboxes), DOCTOR.pp_id_nat, BASE)
        assert (done.added, done.changed) == ([new], [DOCTOR.address])
        assert refresh(directory, _Api(*mailboxes), DOCTOR.pp_id_nat, BASE).unchanged == [DOCTOR.address, new]
    refreshed = world.entries("*", "entryCSN")
    assert refreshed[dn_of(DOCTOR.address)]["givenName"] == [b"Clara"]
    for files in (old, published(now - timedelta(hours=1), DOCTOR)):
        report = world.run(files, now=lambda: now)
        assert (report.outcome, report.refreshed, report.to_change, report.to_remove) == ("applied", 2, 0, 0)
        assert world.entries("*", "entryCSN") == refreshed
    younger = published(now + timedelta(hours=9), DOCTOR)
    report = world.run(younger, now=lambda: now + timedelta(hours=10))
    assert (report.outcome, report.refreshed, report.removed, report.kept) == ("applied", 0, 1, 0)
    assert world.entries()[dn_of(DOCTOR.address)]["givenName"] == [b"Claire"]
    assert dn_of(new) not in world.entries()


def test_domains_and_all_that_is_ours_are_left_alone(world: World) -> None:  # noqa: F811
    world.run(world.publish(40, extra=(DOCTOR,)))
    with world.server.directory("admin") as directory:
        directory.publish_domain("demo-cabinet.mssante.fr", (BOTH,))
        directory.publish(Recipient("patient@patient.mssante.fr", MailboxKind.PATIENT, "", (BOTH,)))
        directory.publish(Recipient("app@demo-labo.mssante.fr", MailboxKind.APP, "Automate", (BOTH,)))
        directory.set_rank(DOCTOR.address, 2)
    ours = {dn: e for dn, e in world.entries("*", "entryCSN").items() if e["SourceBAL"] == [b"LOCAL"]}
    assert len(ours) == 3 and any("ou=domaines" in dn for dn in ours)
    for extra in ((DOCTOR,), (replace(DOCTOR, given_name="Clara"),), ()):
        report = world.run(world.publish(40, extra=extra))
        assert report.outcome == "applied"
        after = world.entries("*", "entryCSN")
        assert {dn: after.get(dn) for dn in ours} == ours
        assert after[dn_of(DOCTOR.address)]["RangBAL"] == [b"2"]
    assert report.kept == 1


def test_what_the_overlay_wrote_meanwhile_is_not_removed(world: World) -> None:  # noqa: F811
    world.run(world.publish(40, extra=(DOCTOR,)))

    def progress(step: str, done: int, of: int) -> None:
        if step == "compare":
            with world.server.directory("admin") as directory:
                directory.publish(Recipient(DOCTOR.address, MailboxKind.PER, "", (BOTH,)))

    report = world.run(world.publish(40), progress=progress)
    assert report.refused == {"ASSERTION_FAILED": 1}
    assert "userCertificate;binary" in world.entries()[dn_of(DOCTOR.address)]


@pytest.mark.parametrize("kind", ["PER", "ORG", "APP", "CAB", "personnes", "etablissements"])
def test_the_loss_of_one_kind_is_held_though_the_whole_is_not(kind: str, tmp_path: Path) -> None:
    def reasons(held: int, leaving: int, elsewhere: int = 100_000) -> list[str]:
        plan = Plan(tmp_path, removed=leaving, held=Counter({kind: held, "other": elsewhere}))
        plan.leaving[kind] = leaving
        return [hold.reason for hold in judge_difference(plan, held + elsewhere, [], Limits())]

    assert reasons(1000, 51) == reasons(10, 3) == reasons(3, 3) == ["loss"]
    assert reasons(1000, 50) == reasons(10, 2) == reasons(2, 2) == []


def test_the_loss_of_many_domains_is_held(tmp_path: Path) -> None:
    domains = {f"d{number}.fr" for number in range(300)}
    plan = Plan(tmp_path, removed=40, held=Counter(PER=100_000), domains_held=domains)
    plan.domains_staying = {domain for domain in domains if int(domain[1:-3]) >= 15}
    assert list(judge_difference(plan, 100_000, [], Limits())) == []
    plan.domains_staying.remove("d15.fr")
    (hold,) = judge_difference(plan, 100_000, [], Limits())
    assert (hold.reason, hold.text) == ("loss", "16 of 300 mail domains would lose their last mailbox")


@contextmanager
def full_disk(after: int) -> Iterator[None]:
    """No file of this process may grow past so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_full_during_the_join(world: World) -> None:  # noqa: F811
    world.limits = Limits(loss_percent=100, change_percent=100)
    world.run(world.publish(40, extra=(DOCTOR,)))
    before = world.entries("entryCSN")
    files = world.publish(400, extra=(DOCTOR,))
    folder = world.folder / "sync"
    for after in (5_000, 20_000):
        with full_disk(after), pytest.raises(OSError, match="large"):
            world.run(files)
        assert world.entries("entryCSN") == before
        newest = next(world.synchronisation().reports.newest_first())
        assert (newest.outcome, newest.added) == ("interrupted", 0) and newest.error
        assert not (folder / "work").exists() and not (folder / "kept.new").exists()
    assert world.run(files).outcome == "applied"


def test_two_at_the_same_time_from_two_places(world: World, tmp_path: Path) -> None:  # noqa: F811
    """Two gateways with one directory: each has a folder of its own, and neither knows of the other."""
    files = world.publish(60, extra=(DOCTOR,))
    other = World(world.server, tmp_path / "other")
    reports = []
    thread = threading.Thread(target=lambda: reports.append(other.run(files)))
    thread.start()
    reports.append(world.run(files))
    thread.join()
    assert [(report.outcome, report.refused) for report in reports] == [("applied", {})] * 2
    right = world.entries()
    assert world.run(files).unchanged == len(right)


def test_whoever_searches_meanwhile_sees_an_entry_before_or_after(world: World) -> None:  # noqa: F811
    world.run(world.publish(40, extra=(DOCTOR,)))
    changed = replace(DOCTOR, given_name="Clara", civility="PR", organisation="Autre cabinet")
    files = world.publish(40, extra=(changed,))
    seen: set[tuple[bytes, ...]] = set()
    stop = threading.Event()

    def search() -> None:
        connection = world.connection()
        while not stop.is_set():
            found = connection.search_s(
                BASE, ldap.SCOPE_SUBTREE, f"(mail={DOCTOR.address})", ["givenName", "title", "o"]
            )
            ((_, entry),) = found
            seen.add((entry["givenName"][0], entry["title"][0], entry["o"][0]))

    thread = threading.Thread(target=search)
    thread.start()
    try:
        assert world.run(files).outcome == "applied"
    finally:
        stop.set()
        thread.join()
    assert seen <= {(b"Claire", b"DR", b"Cabinet Fontaine"), (b"Clara", b"PR", b"Autre cabinet")}


def test_the_report_of_a_run_is_the_owners_alone_and_the_fallen_out_is_in_it(world: World) -> None:  # noqa: F811
    files = world.publish(20, extra=(DOCTOR, replace(DOCTOR, address="no address")))
    report = world.run(files, now=lambda: NOW)
    assert [line.reason for line in report.files["mssante"].lines] == ["address"]
    (path,) = (world.folder / "sync" / "runs").glob("*.json")
    assert path.stat().st_mode & 0o077 == 0
