"""Whom files name, and when two of them are surely two patients."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridges.cda import read_cda
from bridges.hprim_patients import HprimPatient, hprim_patients, looks_like_hprim
from bridges.patients_named import Named, of_cx, of_hprim, of_identity, of_metadata, several, surely_one
from bridges.plain_mail import report_of
from bridges.report import Action, Document
from bridges.xdm_metadata import build_metadata
from tests.support import reports

MEDECIN = "".join(
    f"{line}\r\n"
    for line in (
        *("0012", "ESSAI-UN", "Camille", "1 rue", "", "63000 VILLE"),
        *("30/01/1979", "279", "D1", "19/11/2026", "LABO", "DR"),
    )
)
SANTE = (
    "H|~^\\&|F1||LAB~Labo||ORU|||DR||P|H2.1~C|202611191000\r"
    "P|1|77||88|ESSAI-UN~Ca\rA|mille~\rP|2|78||89|ESSAI-DEUX~SACHA|NAISSANCE|19650815|M\rL|1|2|5\r"
)


def test_hprim_medecin() -> None:
    assert hprim_patients(MEDECIN.encode("cp1252")) == (HprimPatient("ESSAI-UN", "Camille", "19790130"),)
    again = MEDECIN.replace("Camille", "Sacha").replace("30/01/1979", "02/03/65")
    both = f"{MEDECIN}texte\r\n****LAB****\r\nRES|a\r\n****FIN****\r\n\r\n{again}****FINFICHIER****\r\n"
    assert [each.birth_date for each in hprim_patients(both.encode())] == ["19790130", "??650302"]


def test_hprim_medecin_with_one_more_line() -> None:
    lines = MEDECIN.split("\r\n")
    longer = "\r\n".join([*lines[:5], "complément", *lines[5:]])
    assert hprim_patients(longer.encode())[0].birth_date == "19790130"


def test_hprim_sante_discovers_its_delimiters_and_joins_continuations() -> None:
    assert looks_like_hprim("x.dat", SANTE.encode())
    assert hprim_patients(SANTE.encode()) == (
        HprimPatient("ESSAI-UN", "Camille", ""),
        HprimPatient("ESSAI-DEUX", "SACHA", "19650815", "NAISSANCE"),
    )
    swapped = SANTE.replace("~", "§").replace("^", "~").replace("§", "^")
    assert hprim_patients(swapped.encode())[1].given == "SACHA"


@pytest.mark.parametrize("name", ["a.hpr", "A.HPM", "b.hpm1", "c.hprim"])
def test_by_its_name(name: str) -> None:
    assert looks_like_hprim(name, b"x")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"H",
        b"H|~^\\&",
        b"Bonjour,\n\nLe 12/10/2026\n",
        b"Hier, P\nPierre e\n",
        b"Hugo a\nPu",
        b"%PDF-1.4",
        b"\xff\xfe\0\0",
    ],
)
def test_other_files_name_nobody(data: bytes) -> None:
    assert hprim_patients(data) == ()


@given(st.binary(max_size=400))
@settings(max_examples=150, deadline=None)
def test_no_file_breaks_it(data: bytes) -> None:
    hprim_patients(data)
    hprim_patients(b"H|~^\\&" + data)
    of_metadata(data)
    looks_like_hprim("", data)


def named(**changes: object) -> Named:
    document = read_cda(reports.cda(patient=replace(reports.PATIENT, **changes)))  # type: ignore[arg-type]
    assert isinstance(document, Document)
    return of_identity(document.patient)


def test_the_matricule_with_or_without_its_key_is_one() -> None:
    one = named()
    assert not several([one, of_cx(f"{reports.PATIENT.matricule[:13]}^^^&{reports.PATIENT.oid}&ISO^NH")])
    assert several([one, named(matricule=reports.OTHER_PATIENT.matricule)]), "whatever local numbers say"
    assert not several([one, one])


def test_without_a_common_authority_dates_and_names_decide() -> None:
    one = named()
    same = of_hprim(HprimPatient("ESSAI-UN", "Camille", "19790230"))
    assert not several([one, same])
    assert not several([one, of_hprim(HprimPatient("AUTRE-NOM", "Anne Lise", "??790230"))]), (
        "a used name, a second name"
    )
    assert several([one, of_hprim(HprimPatient("ESSAI-UN", "Camille", "19790231"))])
    assert several([one, of_hprim(HprimPatient("ESSAI-UN", "Sacha", "19790230"))]), "twins"
    assert not several([one, of_hprim(HprimPatient("ESSAI-UN", "", ""))]), "a doubt is no proof"


@pytest.mark.parametrize("text", [b"Hier, P\nPierre e\n", b"Hugo a\nPu", b"H-2, +\n", b"H,;.:!"])
def test_free_text_is_no_file(text: bytes) -> None:
    assert not looks_like_hprim("x.txt", text)
    assert hprim_patients(text) == ()


def test_the_name_a_patient_goes_by_is_one_of_hers() -> None:
    written = reports.cda().replace(b"</given>", b'</given><given qualifier="CL">Fanny</given>', 1)
    document = read_cda(written)
    assert isinstance(document, Document)
    assert document.patient.used_first_names == ("Fanny",) and "Fanny" not in document.patient.first_names
    assert not several([of_identity(document.patient), of_hprim(HprimPatient("ESSAI-UN", "Fanny", "19790230"))])
    assert several([named(), of_hprim(HprimPatient("ESSAI-UN", "Fanny", "19790230"))])


def test_who_is_surely_one() -> None:
    one = named()
    assert surely_one([one, named(birth_date="19790301", local_id="1")]), "a matricule is enough"
    number = Named(frozenset({("1.2.250.1.999.2.1", "990001")}), "19790230", frozenset({"CAMILLE"}))
    assert surely_one([one, number])
    assert not surely_one([one, replace(number, birth_date="19790301")]), "a number may have been given twice"
    assert not surely_one([one, replace(number, identifiers=frozenset())]), "what may be is not what is"


def test_metadata_beside_a_file() -> None:
    document = read_cda(reports.cda())
    assert isinstance(document, Document)
    at = datetime(2026, 11, 20, tzinfo=UTC)
    metadata = build_metadata(
        report_of([document]), ["A.XML"], at=at, source_id="2.25.1", submission_id="2.25.2", action=Action.NEW
    )
    (found,), confidentiality = of_metadata(metadata)
    assert confidentiality == {"N"}
    assert found.birth_date == "19790230" and "CAMILLE" in found.first_names
    assert not several([found, of_identity(document.patient)])
    assert several([found, named(matricule=reports.OTHER_PATIENT.matricule)])
    assert of_metadata(b"<!DOCTYPE a>" + metadata) == ((), frozenset())
