"""Variants and accidents of the national files."""

from __future__ import annotations

import contextlib
import io
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from directory.extraction import (
    MAILBOX_COLUMNS,
    PRACTICE_COLUMNS,
    MailboxRow,
    PracticeRow,
    RejectedLine,
    read_mssante,
    read_practice,
)
from directory.national import examine, find
from directory.packed import LINE_BYTES, ExtractionError
from directory.records import MailboxKind
from directory.synthetic import write_extraction

HEADER = "|".join(name for name, _ in MAILBOX_COLUMNS)
DOCTOR = MailboxRow(
    MailboxKind.PER,
    "claire.fontaine@demo.mssante.fr",
    pp_identifier_type="8",
    pp_identifier="99900000001",
    pp_id_nat="899900000001",
    family_name="FONTAINE",
    given_name="Hélène",
    profession_code="10",
    country="FRANCE",
)


def line(row: MailboxRow = DOCTOR) -> str:
    return "|".join([row.kind.value, *(getattr(row, name) for _, name in MAILBOX_COLUMNS[1:])])


def read(tmp_path: Path, *lines: str | bytes) -> list[MailboxRow | RejectedLine]:
    path = tmp_path / "Extraction_Correspondance_MSSante_202601010400.txt"
    path.write_bytes(b"".join(text if isinstance(text, bytes) else text.encode() + b"\n" for text in lines))
    return list(read_mssante(path))


def test_the_header_has_the_31_columns_of_the_register() -> None:
    assert len(MAILBOX_COLUMNS) == 31
    assert [name for _, name in MAILBOX_COLUMNS] == list(MailboxRow.__slots__)
    assert len(PRACTICE_COLUMNS) == 56


@pytest.mark.parametrize(
    "lines",
    [
        (HEADER, line()),
        (HEADER + "|", line() + "|"),
        (HEADER, line() + "|"),
        (HEADER.upper(), line()),
        (HEADER.replace("é", "e").lower(), line()),
        (HEADER.replace("é", "e\N{COMBINING ACUTE ACCENT}"), line()),
        (HEADER.replace("Adresse BAL", " ADRESSE_BAL "), line()),
        ("\ufeff" + HEADER, line()),
        (HEADER.encode() + b"\r\n", line().encode() + b"\r\n"),
        (HEADER, line().encode()),
        (HEADER, "", line(), ""),
        (HEADER, line().replace(DOCTOR.address, " Claire.Fontaine@DEMO.mssante.fr ")),
        (HEADER + "|Colonne nouvelle", line() + "|x"),
    ],
)
def test_variants_read_the_same(tmp_path: Path, lines: tuple[str | bytes, ...]) -> None:
    assert read(tmp_path, *lines) == [DOCTOR]


def test_columns_may_be_missing_or_in_another_order(tmp_path: Path) -> None:
    header = "Adresse BAL|Code profession|Type de BAL"
    assert read(tmp_path, header, "a@demo.mssante.fr|60|ORG") == [
        MailboxRow(MailboxKind.ORG, "a@demo.mssante.fr", profession_code="60")
    ]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (line().encode("latin-1") + b"\n", "encoding"),
        (b"PER|a@b.fr|\xff" + b"|" * 28 + b"\n", "encoding"),
        ("PER|a@demo.mssante.fr", "columns"),
        (line() + "|x", "columns"),
        (line().replace("Hélène", "Hé\0lène"), "control-character"),
        (line().replace("Hélène", "Hé\rlène"), "control-character"),
        (line().replace("PER", "XYZ", 1), "kind"),
        (line().replace("PER", "", 1), "kind"),
        (line().replace("PER", "PATIENT", 1), "kind"),
        (line().replace("claire.fontaine@", ""), "address"),
        (line().replace("claire", "clai re"), "address"),
        (line().replace("claire", "clàire"), "address"),
        (line().replace("claire", "c" * 300), "address"),
        (line() + "x" * LINE_BYTES, "too-long"),
        (line() + "x" * (5 * LINE_BYTES), "too-long"),
    ],
)
def test_a_bad_line_is_reported_and_the_others_are_read(tmp_path: Path, bad: str | bytes, reason: str) -> None:
    assert read(tmp_path, HEADER, line(), bad, line()) == [DOCTOR, RejectedLine(3, reason), DOCTOR]


@pytest.mark.parametrize("content", [b"", b"\n", b"a|b|c\nx|y|z\n", b"\xff\xfe|\n", HEADER.encode("utf-16")])
def test_a_file_that_is_no_extraction_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ExtractionError):
        read(tmp_path, content)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=200), max_size=5))
def test_no_line_raises(tmp_path: Path, lines: list[bytes]) -> None:
    found = read(tmp_path, HEADER, *(raw + b"\n" for raw in lines), line())
    assert found[-1] == DOCTOR


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_zip_as_published(tmp_path: Path) -> None:
    files = write_extraction(tmp_path, 20)
    path = zipped(tmp_path / "m.zip", {files.mssante.name: files.mssante.read_bytes()})
    assert list(read_mssante(path)) == list(read_mssante(files.mssante))
    three = {file.name: file.read_bytes() for file in (files.savoir_faire, files.practice, files.diplomes)}
    assert list(read_practice(zipped(tmp_path / "p.zip", three))) == list(read_practice(files.practice))


def bzipped(path: Path, content: bytes) -> bytes:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.txt", content)
    return path.read_bytes()


@pytest.mark.parametrize(
    "name",
    [
        "Extraction_Correspondance_MSSante_202601010400.txt",
        "../../../etc/EXTRACTION_correspondance-mssante_1.TXT",
        "C:\\data\\Extraction_Correspondance_MSSante.txt",
    ],
)
def test_the_one_among_several_is_found_wherever_it_lies(tmp_path: Path, name: str) -> None:
    content = (HEADER + "\n" + line() + "\n").encode()
    others = {"LISEZMOI.txt": b"bonjour", "__MACOSX/._Extraction_Correspondance_MSSante.txt": b"\0", "x.pdf": b"%PDF"}
    path = zipped(tmp_path / "several.zip", {"../../evil.txt": b"x"} | others | {name: content})
    assert list(read_mssante(path)) == [DOCTOR]
    assert [each.name for each in tmp_path.iterdir()] == ["several.zip"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=8), st.integers(0, 400))
def test_no_archive_raises_anything_else(tmp_path: Path, flips: list[tuple[int, int]], cut: int) -> None:
    path = tmp_path / "fuzzed.zip"
    data = bytearray(zipped(path, {"a.txt": (HEADER + "\n" + line() + "\n").encode()}).read_bytes())
    for place, value in flips:
        data[-1 - place % len(data)] = value
    path.write_bytes(data[: len(data) - cut] if cut < 40 else data)
    with contextlib.suppress(ExtractionError):
        list(read_mssante(path))
    with contextlib.suppress(ExtractionError):
        examine(find([tmp_path]))


def test_more_lines_than_any_file_has_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("directory.packed.LINES", 1000)
    with pytest.raises(ExtractionError, match="lines"):
        read(tmp_path, HEADER, b"\n" * 2000)


@pytest.mark.parametrize(
    "bad",
    [
        line() + "x" * (5 * LINE_BYTES),
        line().replace("claire.fontaine@demo", "clàire@d").encode("latin-1") + b"\n",
        line().replace("PER|", "PER||"),
        line().replace("Hélène", "Hé\0lène"),
    ],
)
def test_whom_a_broken_line_is_about_is_seen(tmp_path: Path, bad: str | bytes) -> None:
    (rejected,) = (row for row in read(tmp_path, HEADER, bad) if isinstance(row, RejectedLine))
    assert DOCTOR.pp_id_nat in rejected.about
    assert DOCTOR.pp_id_nat not in repr(rejected)


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    content = (HEADER + "\n" + (line() + "\n") * 5000).encode()
    good = zipped(tmp_path / "good.zip", {"a.txt": content}).read_bytes()
    assert len(list(read_mssante(tmp_path / "good.zip"))) == 5000
    for damaged in (
        good[:60] + bytes([good[60] ^ 0xFF]) * 40 + good[100:],
        zipped(tmp_path / "two.zip", {"a.txt": content, "b.txt": content}).read_bytes(),
        zipped(tmp_path / "none.zip", {"a.csv": content}).read_bytes(),
        good[: len(good) // 2],
        good[:-10],
        zipped(tmp_path / "many.zip", {f"{n}.txt": content[:10] for n in range(70)} | {"a.txt": content}).read_bytes(),
        zipped(tmp_path / "crowd.zip", {f"{n}{'x' * 999}": b"" for n in range(1100)}).read_bytes(),
        bzipped(tmp_path / "bzip2.zip", content),
        good.replace(b"\x08\x00", b"\x09\x00"),
    ):
        path = tmp_path / "damaged.zip"
        path.write_bytes(damaged)
        with pytest.raises(ExtractionError):
            list(read_mssante(path))


def test_a_bomb_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("directory.packed.FILE_BYTES", 100_000)
    for content in (HEADER.encode() + b"\n" + b"x" * 500_000, (HEADER + "\n").encode() + b"\n" * 200_000):
        with pytest.raises(ExtractionError, match="larger"):
            list(read_mssante(zipped(tmp_path / "bomb.zip", {"a.txt": content})))


def test_practice_variants(tmp_path: Path) -> None:
    row = PracticeRow("899900000001", "8", "99900000001", skill_code="SM54", telephone="0199000000", siret="0" * 14)
    by_name = {name: getattr(row, field) if field else "" for name, field in PRACTICE_COLUMNS}
    without_skill = {name: value for name, value in by_name.items() if "savoir-faire" not in name}
    fifty_five = {name: value for name, value in by_name.items() if name != "Libellé genre activité"}
    for columns, skill in ((by_name, "SM54"), (fifty_five, "SM54"), (without_skill, "")):
        buffer = io.StringIO()
        buffer.write("|".join(columns).replace("(coord. structure)", "(coord. Structure)") + "|\n")
        buffer.write("|".join(columns.values()) + "|\n" + "|" * len(columns) + "\n")
        path = tmp_path / "PS_LibreAcces_Personne_activite_202601010400.txt"
        path.write_text(buffer.getvalue(), "utf-8")
        first, second = read_practice(path)
        assert isinstance(first, PracticeRow)
        assert (first.pp_id_nat, first.skill_code, first.telephone) == (row.pp_id_nat, skill, row.telephone)
        assert second == RejectedLine(3, "identifier")
