"""From the national files to entries, and the generator of such files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from directory.entries import to_recipient
from directory.extraction import MAILBOX_COLUMNS, MailboxRow, PracticeRow, RejectedLine, read_mssante, read_practice
from directory.ldif import LdifEntry
from directory.load import LoadReport, entries, structure_id_nat
from directory.records import MailboxKind
from directory.synthetic import DIPLOMES_HEADER, SAVOIR_FAIRE_HEADER, write_extraction

BASE = "dc=mssante,dc=fr"
EXTRA = MailboxRow(
    MailboxKind.PER,
    "claire.fontaine@demo-cabinet.mssante.fr",
    pp_id_nat="899912345678",
    structure_identifier_type="SIRET",
    structure_identifier="00099999900001",
    civility="DR",
    family_name="Fontaine",
    given_name="Claire",
    profession_code="10",
    profession="Médecin",
    organisation="Cabinet Fontaine",
    l6_delivery="99100 FICTIVILLE",
    postal_code="99100",
)


def one(tmp_path: Path, *extra: MailboxRow, practice: bool = True) -> list[LdifEntry]:
    files = write_extraction(tmp_path, 0, extra=extra)
    found = entries(files.mssante, files.practice if practice else None, BASE)
    wanted = {row.address.encode() for row in extra}
    return [entry for entry in found if entry.attributes.get("mail", (b"",))[0] in wanted]


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    def contents(name: str, seed: int) -> list[bytes]:
        files = write_extraction(tmp_path / name, 200, seed, (EXTRA,))
        return [path.read_bytes() for path in (files.mssante, files.practice, files.savoir_faire, files.diplomes)]

    assert contents("a", 1) == contents("b", 1) != contents("c", 2)


def test_the_files_have_the_national_form(tmp_path: Path) -> None:
    files = write_extraction(tmp_path, 300, extra=(EXTRA,), published="202609010503")
    assert files.mssante.name == "Extraction_Correspondance_MSSante_202609010503.txt"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [
            files.mssante.name,
            "PS_LibreAcces_Personne_activite_202609010503.txt",
            "PS_LibreAcces_SavoirFaire_202609010503.txt",
            "PS_LibreAcces_Dipl_AutExerc_202609010503.txt",
        ]
    )
    for path, columns, bar in (
        (files.mssante, 31, False),
        (files.practice, 56, True),
        (files.savoir_faire, 13, True),
        (files.diplomes, 13, True),
    ):
        for line in path.read_text("utf-8").splitlines():
            assert line.count("|") == columns - 1 + bar
            assert line.endswith("|") is bar or not bar
    assert len(SAVOIR_FAIRE_HEADER) == len(DIPLOMES_HEADER) == 13
    header = files.mssante.read_text("utf-8").split("\n", 1)[0]
    assert header.startswith("Type de BAL|Adresse BAL|Type Identifiant PP|") and header.endswith("|Département|Pays")


def test_the_people_are_many_and_invented(tmp_path: Path) -> None:
    files = write_extraction(tmp_path, 500)
    mailboxes = [row for row in read_mssante(files.mssante) if isinstance(row, MailboxRow)]
    situations = [row for row in read_practice(files.practice) if isinstance(row, PracticeRow)]
    assert len(mailboxes) == len({row.address for row in mailboxes})
    persons = {row.pp_id_nat for row in mailboxes if row.kind is MailboxKind.PER}
    assert len(persons) == 500 == len({row.pp_id_nat for row in situations}) < len(situations)
    assert {row.kind for row in mailboxes} == {MailboxKind.PER, MailboxKind.ORG}
    assert all(identifier.startswith("8999") for identifier in persons)
    domains = {row.address.partition("@")[2] for row in mailboxes}
    assert len(domains) > 10
    assert all(domain.startswith("demo-") and domain.endswith(".mssante.fr") for domain in domains)


def test_extra_rows_come_back_as_given(tmp_path: Path) -> None:
    files = write_extraction(tmp_path, 10, extra=(EXTRA,))
    assert EXTRA in list(read_mssante(files.mssante))
    with pytest.raises(ValueError, match="bar"):
        write_extraction(tmp_path, 1, extra=(replace(EXTRA, service="a|b"),))


def test_a_professional_becomes_an_entry(tmp_path: Path) -> None:
    (entry,) = one(tmp_path, EXTRA)
    assert entry.dn == f"mail={EXTRA.address},ou=professionnels,{BASE}"
    recipient = to_recipient({name: list(values) for name, values in entry.attributes.items()})
    assert recipient is not None
    assert recipient.display_name == "DR Claire FONTAINE"
    assert (recipient.id_nat, recipient.profession) == ("899912345678", "10")
    assert (recipient.structure, recipient.organisation) == ("300099999900001", "Cabinet Fontaine")
    assert entry.attributes["TypeIdentifiantPP"] == (b"8",)
    assert entry.attributes["IdentifiantPP"] == (b"99912345678",)
    assert entry.attributes["TypeIdentifiantPM"] == (b"SIRET",)
    assert entry.attributes["l"] == (b"FICTIVILLE",)


def test_what_the_mailbox_line_leaves_out_comes_from_the_only_situation(tmp_path: Path) -> None:
    files = write_extraction(tmp_path, 0, extra=(EXTRA,))
    poor = MailboxRow(MailboxKind.PER, EXTRA.address, pp_id_nat=EXTRA.pp_id_nat, family_name="Fontaine")
    (tmp_path / "poor").mkdir()
    thin = write_extraction(tmp_path / "poor", 0, extra=(poor,))
    completed = [
        entry for entry in entries(thin.mssante, files.practice, BASE) if b"PER" in entry.attributes.get("TypeBAL", ())
    ]
    assert completed[0].attributes["profession"] == (b"10",)
    assert completed[0].attributes["IdNatStruct"] == (b"300099999900001",)
    assert completed[0].attributes["l"] == (b"FICTIVILLE",)
    lines = files.practice.read_text("utf-8").splitlines()
    lines.append(lines[1].replace("00099999900001", "00088888800001"))
    files.practice.write_text("\n".join(lines) + "\n", "utf-8")
    undecided = [
        entry for entry in entries(thin.mssante, files.practice, BASE) if b"PER" in entry.attributes.get("TypeBAL", ())
    ]
    assert "IdNatStruct" not in undecided[0].attributes


def test_an_address_named_twice_is_one_entry(tmp_path: Path) -> None:
    report = LoadReport()
    team = replace(EXTRA, kind=MailboxKind.ORG)
    files = write_extraction(tmp_path, 0, extra=(EXTRA, replace(EXTRA, skill_code="SM54"), team))
    found = [
        e for e in entries(files.mssante, None, BASE, report=report) if EXTRA.address.encode() in e.attributes["mail"]
    ]
    assert [entry.attributes["TypeBAL"] for entry in found] == [(b"PER",), (b"ORG",)]
    assert found[0].attributes["IdNat"] == (b"899912345678",)
    assert (report.duplicates, report.conflicts) == (1, 0)


def test_an_address_of_two_holders_is_believed_to_neither(tmp_path: Path) -> None:
    report = LoadReport()
    files = write_extraction(tmp_path, 0, extra=(EXTRA, replace(EXTRA, pp_id_nat="899900000002")))
    assert not [e for e in entries(files.mssante, None, BASE, report=report) if EXTRA.address in e.dn]
    assert (report.duplicates, report.conflicts) == (0, 1)


def test_rejected_lines_are_counted(tmp_path: Path) -> None:
    files = write_extraction(tmp_path, 5)
    for path in (files.mssante, files.practice):
        with path.open("ab") as file:
            file.write(b"PER|\xff\n")
    report = LoadReport()
    count = sum(1 for _ in entries(files.mssante, files.practice, BASE, report=report))
    assert count == report.mailboxes + report.others
    assert report.mailboxes > 5 < report.others
    assert report.rejected == {"mssante.encoding": 1, "practice.encoding": 1}
    assert any(isinstance(row, RejectedLine) for row in read_mssante(files.mssante))


def test_a_line_with_nothing_but_an_address_is_enough(tmp_path: Path) -> None:
    for kind in (MailboxKind.PER, MailboxKind.ORG, MailboxKind.APP, MailboxKind.CAB):
        (entry,) = one(tmp_path, MailboxRow(kind, "bare@demo.mssante.fr"))
        assert entry.attributes["cn"] == (b"bare@demo.mssante.fr",)
        assert all(value for values in entry.attributes.values() for value in values)


@pytest.mark.parametrize(
    ("kind", "identifier", "expected"),
    [
        ("FINESS", "990000001", "1990000001"),
        ("Finess", "1990000001", "1990000001"),
        ("1", "990000001", "1990000001"),
        ("FINESS", "190000001", "1190000001"),
        ("SIRET", "00099999900001", "300099999900001"),
        ("3", "300099999900001", "300099999900001"),
        ("SIREN", "000999999", "2000999999"),
        ("RPPS-rang", "99900000001001", "499900000001001"),
        ("", "990000001", "990000001"),
        ("FINESS", "", ""),
    ],
)
def test_structure_identifiers(kind: str, identifier: str, expected: str) -> None:
    assert structure_id_nat(kind, identifier) == expected


def test_no_column_is_forgotten() -> None:
    assert len({name for name, _ in MAILBOX_COLUMNS}) == 31
