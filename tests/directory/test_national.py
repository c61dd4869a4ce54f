"""Finding, examining and joining the register's files, and the nation that is about nobody."""

from __future__ import annotations

import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from directory.buckets import BUCKETS, read_bucket
from directory.canonical import decode_wanted, held_entry, key_of, unpack, wanted_entry
from directory.extraction import DiplomaRow, RejectedLine, SkillRow, read_diplomas, read_skills
from directory.joining import Joiner
from directory.load import entries as first_load
from directory.national import examine, find
from directory.packed import ExtractionError
from directory.synthetic import ExtractionFiles, write_extraction
from directory.synthetic_nation import write_nation
from directory.wanting import write_wanted
from tests.directory.synchronising import edit
from tests.directory.test_synchronisation import DOCTOR

BASE = "dc=mssante,dc=fr"


def test_the_newest_of_each_kind_is_found(tmp_path: Path) -> None:
    old = write_extraction(tmp_path, 1, published="202609010400")
    new = write_extraction(tmp_path, 1, published="202609020400")
    new.practice.unlink()
    found = find([tmp_path])
    assert (found.mssante, found.practice) == (new.mssante, old.practice)
    assert dict(found.published) == {
        "mssante": "202609020400",
        "practice": "202609010400",
        "skills": "202609020400",
        "diplomas": "202609020400",
    }


def test_files_of_another_name_are_known_by_their_header(tmp_path: Path) -> None:
    files = write_extraction(tmp_path / "published", 3)
    folder = tmp_path / "renamed"
    folder.mkdir()
    for number, path in enumerate((files.mssante, files.practice, files.savoir_faire, files.diplomes)):
        path.rename(folder / f"file{number}.txt")
    with zipfile.ZipFile(folder / "other.zip", "w") as archive:
        archive.write(folder / "file0.txt", "some/folder/download.TXT")
    (folder / "file0.txt").unlink()
    (folder / "notes.txt").write_text("nothing|to|do|with|it\n")
    found = find([folder])
    assert [(kind, path.name) for kind, path in found.items()] == [
        ("mssante", "other.zip"),
        ("practice", "file1.txt"),
        ("skills", "file2.txt"),
        ("diplomas", "file3.txt"),
    ]
    assert not examine(found).unreadable
    with pytest.raises(ExtractionError):
        find([folder / "notes.txt"])


def test_skills_and_diplomas_are_read(tmp_path: Path) -> None:
    files = write_extraction(tmp_path, 0, extra=(replace(DOCTOR, skill_code="SM54", skill="Médecine générale"),))
    assert list(read_skills(files.savoir_faire)) == [
        SkillRow(DOCTOR.pp_id_nat, "10", "S", "Spécialité ordinale", "SM54", "Médecine générale")
    ]
    (diploma,) = read_diplomas(files.diplomes)
    assert isinstance(diploma, DiplomaRow) and (diploma.diploma_type_code, diploma.diploma_code) == ("DE", "DE10")


def test_whom_a_broken_line_is_about_is_known(tmp_path: Path) -> None:
    files = write_extraction(tmp_path, 0, extra=(DOCTOR, replace(DOCTOR, address="zwei@demo.mssante.fr")))
    edit(files.mssante, "|zwei@demo.mssante.fr|", "|zwei@demo.mssante.fr|\x07")
    with files.practice.open("ab") as file:
        file.write(b"8|1|899900000077|\xff|\n8|1|899900000078")
    examination = examine(find([tmp_path]))
    assert examination.addresses == {"zwei@demo.mssante.fr"}
    assert examination.identifiers == {"899900000077", "899900000078"}
    assert examination.files["practice"].rejected == {"encoding": 1, "truncated": 1}
    assert all("899" not in repr(row) for row in examination.files["practice"].examples)
    assert examination.files["mssante"].examples == [RejectedLine(5, "control-character")]


def wanted(tmp_path: Path, files: ExtractionFiles, kept: Path) -> dict[str, bytes]:
    with Joiner(tmp_path / "lines") as joiner:
        examine(find([files.mssante.parent]), joiner.take)
    write_wanted(tmp_path / "lines", tmp_path / "wanted", BASE, kept)
    return {
        entry.key: entry.content
        for number in range(BUCKETS)
        for entry in map(decode_wanted, read_bucket(tmp_path / "wanted", number))
    }


def test_what_is_kept_of_the_day_before_changes_nothing(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    first = wanted(tmp_path, write_nation(tmp_path / "0", 300), kept)
    next_day = write_nation(tmp_path / "1", 300, day=1, changed=20)
    second = wanted(tmp_path, next_day, kept)
    assert second == wanted(tmp_path, next_day, tmp_path / "none") == wanted(tmp_path, next_day, kept)
    assert first != second
    for path in kept.iterdir():
        if path.stat().st_size > 100:
            path.write_bytes(path.read_bytes()[:-50])
    assert wanted(tmp_path, next_day, kept) == second
    (kept / "about.json").write_bytes(b"nonsense")
    assert wanted(tmp_path, next_day, kept) == second


def test_a_first_load_keeps_what_a_synchronisation_would(tmp_path: Path) -> None:
    files = write_nation(tmp_path / "0", 300)
    wanted(tmp_path, files, tmp_path / "one")
    how = {"skills": files.savoir_faire, "diplomas": files.diplomes, "kept": tmp_path / "other"}
    assert len(list(first_load(files.mssante, files.practice, BASE, **how))) > 400
    one, other = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "other"))
    assert one == other and len(one) == BUCKETS + 1
    broken_off = first_load(files.mssante, files.practice, BASE, kept=tmp_path / "none")
    next(broken_off)
    broken_off.close()
    assert not (tmp_path / "none").exists() and not (tmp_path / "none.new").exists()


def test_a_nation_has_the_registers_proportions_and_a_next_day(tmp_path: Path) -> None:
    files = write_nation(tmp_path / "0", 6000)
    again = write_nation(tmp_path / "again", 6000)
    assert (
        files.mssante.read_bytes()
        == again.mssante.read_bytes()
        != write_nation(tmp_path / "seed", 6000, seed=2).mssante.read_bytes()
    )
    facts = examine(find([tmp_path / "0"]))
    situations, mailboxes = facts.files["practice"].rows, facts.files["mssante"].rows
    assert 1.15 < situations / 6000 / 0.98 < 1.25
    assert 0.2 < mailboxes / situations < 0.26
    assert facts.conflicts == 0 and not any(file.rejected for file in facts.files.values())
    next_day = write_nation(tmp_path / "1", 6000, day=1)
    before, after = (set(path.read_text("utf-8").splitlines()) for path in (files.practice, next_day.practice))
    assert 0.005 < len(after - before) / len(before) < 0.02
    assert next_day.practice.name.endswith("_202601020400.txt")


def test_a_nation_is_as_uneven_as_life(tmp_path: Path) -> None:
    files = write_nation(tmp_path, 6000)
    mailboxes = [line.split("|") for line in files.mssante.read_text("utf-8").splitlines()[1:]]
    domains = Counter(fields[1].partition("@")[2] for fields in mailboxes)
    assert len(domains) == 16
    assert max(domains.values()) > 5 * min(domains.values())
    lines = [line.split("|") for line in files.practice.read_text("utf-8").splitlines()[1:]]
    names, towns = Counter(fields[7] for fields in lines), Counter(fields[37] for fields in lines)
    assert 0.002 < max(names.values()) / len(lines) < 0.01
    assert 0.01 < max(towns.values()) / len(lines) < 0.05
    assert any("-" in name for name in names) and any(" " in name for name in names)
    workplaces = Counter(Counter(fields[2] for fields in lines).values())
    assert workplaces[1] > 5 * workplaces[2] > 10 * workplaces[3] > 0 and workplaces[6]
    said = {}
    for fields in lines:
        assert said.setdefault(fields[21], fields[24:]) == fields[24:], "lines about one structure say the same"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("mail=a@b.fr,ou=x,dc=fr", "MAIL=A@b.fr, ou=X , dc=fr"),
        (r"mail=o\2Bdd\2C\22\3D#@b.fr,dc=fr", r"mail=o\+dd\,\"\=#@b.fr,dc=fr"),
        ("cn=Jean  Paul,dc=fr", "cn=Jean Paul,dc=fr"),
        (r"cn=J\C3\A9,dc=fr", "cn=Jé,dc=fr"),
    ],
)
def test_two_spellings_of_a_dn_are_one(one: str, other: str) -> None:
    assert key_of(one) == key_of(other)


def test_what_only_the_overlay_writes_is_not_compared() -> None:
    national = {"mail": [b"a@b.fr"], "SourceBAL": [b"NATIONAL"], "cn": [b"B", b"A", b"A"]}
    local = {"userCertificate;binary": [b"x"], "listeRouge": [b"TRUE"], "AttributLocal": [b"userCertificate", b"cn"]}
    held = held_entry("mail=a@b.fr,dc=fr", national | local)
    assert held.content == wanted_entry("mail=a@b.fr,dc=fr", national).content
    assert unpack(held.content)["cn"] == [b"A", b"B"]
    assert (held.source, held.local, held.owned) == ("NATIONAL", True, ["cn"])
