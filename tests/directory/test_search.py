"""Searching for people on a real slapd."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from directory.entries import from_recipient
from directory.extraction import MailboxRow, PracticeRow
from directory.ldif import LdifEntry
from directory.records import MailboxKind, Recipient
from directory.register import mailbox_entry, person_entry, structure_entry
from directory.resolve import Directory, DirectoryUnavailableError
from directory.search import WINDOW, SearchPage
from tests.directory.conftest import BASE, PATIENT, Server, fixture_entries, new_server

CARDIO = {"profession_code": "10", "profession": "Médecin", "skill": "Cardiologie et maladies vasculaires"}
GENERAL = {"profession_code": "10", "profession": "Médecin", "skill": "Médecine générale"}
LYON = {"l6_delivery": "99001 LYON-FICTIF", "postal_code": "99001"}
DOMAIN = "demo-search.mssante.fr"


def person(name: str, given: str, family: str, **more: str) -> MailboxRow:
    id_nat = f"8999{zlib.crc32(name.encode()) % 10**8:08d}"
    known = {"pp_id_nat": id_nat, "civility": "DR", "given_name": given, "family_name": family}
    return MailboxRow(MailboxKind.PER, f"{name}@{DOMAIN}", **known, **more)


ROWS = (
    person("dupont", "Élise", "DUPONT", **CARDIO, **LYON, organisation="Hôpital de la Croix-Inventée"),
    person("dupont.paris", "Marc", "DUPONT", **CARDIO, l6_delivery="99075 PARIS-FICTIF", postal_code="99075"),
    person("dupond", "Zoé", "DUPOND", **GENERAL, **LYON),
    person("dupontel", "Ana", "DUPONTEL", **CARDIO, **LYON),
    person("martin", "Lyon", "MARTIN", **GENERAL, l6_delivery="99002 AILLEURS", postal_code="99002"),
    person("legoff", "Anne-Laure", "LE GOFF", profession="Sage-Femme", l6_delivery="99003 ST-ETIENNE-TEST"),
    person("legoff2", "Yann", "LEGOFF", profession="Infirmier", l6_delivery="99003 SAINT ÉTIENNE TEST"),
    MailboxRow(
        MailboxKind.ORG, f"bastia@{DOMAIN}", structure_identifier_type="FINESS", structure_identifier="2B9999999"
    ),
    MailboxRow(MailboxKind.ORG, f"cardiologie@{DOMAIN}", service="Cardiologie", organisation="Clinique Bidon", **LYON),
)
ELSEWHERE = person("voyageur", "Ida", "VOYAGEUR", **GENERAL, l6_delivery="99004 ICI")
SITUATIONS = (
    PracticeRow(ELSEWHERE.pp_id_nat, finess="990000401", organisation="Cabinet d'Ici", town="ICI"),
    PracticeRow(ELSEWHERE.pp_id_nat, finess="990000402", organisation="Dispensaire du Lointain", town="LOINTAIN"),
)
CROWD = 260


def registered(name: str, given: str, family: str, *places: tuple[str, str], **more: str) -> LdifEntry:
    """Somebody without a mailbox: town and organisation of each situation."""
    id_nat = f"8998{zlib.crc32(name.encode()) % 10**8:08d}"
    known = {"family_name": family, "given_name": given, "civility": "DR", **more}
    rows = [PracticeRow(id_nat, town=town, organisation=organisation, **known) for town, organisation in places]
    return person_entry(BASE, rows)


UNREACHABLE = (
    registered("a", "Élise", "DUPONT", ("LYON-FICTIF", "Centre Un"), **CARDIO),
    registered("b", "Oscar", "SANS-BOÎTE", ("ICI", "Centre Un"), ("LÀ-BAS", "Centre Deux"), **GENERAL),
)
DISCREET = registered("c", "Rouge", "DUPONT", ("LYON-FICTIF", "Centre Un"), **CARDIO)
RED = Recipient(
    f"rouge@{DOMAIN}",
    MailboxKind.PER,
    "Dr Rouge DUPONT",
    id_nat=DISCREET.attributes["IdNat"][0].decode(),
    organisation="Cardiologie Lyon",
)


@pytest.fixture(scope="module")
def found(server_files: Path) -> Iterator[Directory]:
    entries = [mailbox_entry(BASE, row) for row in ROWS]
    entries += [mailbox_entry(BASE, ELSEWHERE, SITUATIONS), person_entry(BASE, SITUATIONS)]
    entries += UNREACHABLE
    entries += [entry for row in SITUATIONS if (entry := structure_entry(BASE, row)) is not None]
    entries += fixture_entries()
    entries += [from_recipient(RED, BASE, red_list=True), DISCREET]
    crowd = person("x", "Foule", "NOMBREUX", **LYON)
    entries += [mailbox_entry(BASE, replace(crowd, address=f"n{number:03d}@{DOMAIN}")) for number in range(CROWD)]
    with new_server(server_files) as server:
        server.slapd.load(entries)
        server.start()
        with server.directory() as directory:
            yield directory


def names(page: SearchPage) -> list[str]:
    return [one.address.partition("@")[0] for one in page.found]


def test_name_specialty_and_town(found: Directory) -> None:
    page = found.search("dupont cardio lyon")
    # The whole name first, one that can be written to before one who cannot, then one that begins so
    assert names(page) == ["dupont", "", "dupontel"]
    first = page.found[0]
    assert (first.name, first.town, first.kind) == ("DR Élise DUPONT", "LYON-FICTIF", MailboxKind.PER)
    assert first.profession == "Médecin - Cardiologie et maladies vasculaires"
    assert (page.total, page.more, page.page) == (3, False, 1)


def test_a_professional_without_a_mailbox_is_found_and_shown_as_such(found: Directory) -> None:
    for text in ("sansboite", "oscar sans boite", "sans-bo generaliste", "boite médecin là bas"):
        (one,) = found.search(text).found
        assert (one.address, one.name, one.kind) == ("", "DR Oscar SANS-BOÎTE", MailboxKind.PER), text
        assert one.profession == "Médecin - Médecine générale" and one.id_nat.startswith("8998")
    assert found.search("oscar bas").found[0].town == "LÀ-BAS"
    assert found.search("oscar ici").found[0].organisation == "Centre Un"
    assert found.search("oscar cardiologie").found == found.search("ici oscarine").found == ()
    assert [one.name for one in found.search(one.id_nat[1:]).found] == [one.name]
    assert [one.name for one in found.search(one.id_nat).found] == [one.name]


def test_an_identifier_of_a_structure_finds_its_mailboxes_and_not_itself(found: Directory) -> None:
    assert names(found.search("2B9999999")) == names(found.search("12b9999999")) == ["bastia"]
    assert found.search("990000401").found == found.search("1990000401").found == ()
    assert {one.address for one in found.search("1990000002").found} == {
        "biologie@demo-labo.mssante.fr",
        "machine@demo-labo.mssante.fr",
    }


def test_a_long_word_that_nobody_has_finds_nobody(found: Directory) -> None:
    for text in ("cardiologiz", "dupont cardiologiz", "dupont cardiologie maladiesz"):
        assert found.search(text).found == (), text


def test_who_has_a_mailbox_is_found_once(found: Directory) -> None:
    assert [one.address for one in found.search("ida voyageur").found] == [ELSEWHERE.address]
    assert [one.address for one in found.search(ELSEWHERE.pp_id_nat).found] == [ELSEWHERE.address]


@pytest.mark.parametrize("length", range(3, 20))
def test_a_word_may_be_cut_short_anywhere(found: Directory, length: int) -> None:
    assert "dupont" in names(found.search(f"dupont {'cardiologie'[:length]}"))
    assert "dupont" in names(found.search(f"{'dupont'[:length]} {'maladies'[:length]} vasc"))


@pytest.mark.parametrize(
    ("text", "best"),
    [
        ("ÉLISE DUPONT", "dupont"),
        ("lyon DUPONT, cardiologue", "dupont"),
        ("Dr dupont paris", "dupont.paris"),
        ("croix inventee", "dupont"),
        ("hôpital dupont", "dupont"),
        ("dupond généraliste", "dupond"),
        ("anne laure le goff", "legoff"),
        ("annelaure legoff", "legoff"),
        ("le goff infirmière", "legoff2"),
        ("legoff sage femme", "legoff"),
        ("le goff saint étienne infirmier", "legoff2"),
        ("legoff st etienne sage", "legoff"),
        ("e dupont", "dupont"),
        ("m dupont cardio", "dupont.paris"),
        ("lointain", "voyageur"),
        ("voyageur dispensaire", "voyageur"),
        (ELSEWHERE.pp_id_nat, "voyageur"),
        (ELSEWHERE.pp_id_nat[1:], "voyageur"),
        (f"VOYAGEUR@{DOMAIN.upper()}", "voyageur"),
        ("voyageur@", "voyageur"),
        ("bidon cardio", "cardiologie"),
    ],
)
def test_the_best_one_comes_first(found: Directory, text: str, best: str) -> None:
    assert names(found.search(text))[0] == best


def test_a_name_goes_before_a_town(found: Directory) -> None:
    page = found.search("lyon")
    assert names(page)[0] == "martin" and page.total >= WINDOW and page.more


@pytest.mark.parametrize("text", ["", "  ", "d", "!", "\x00", "日本", "(&)", "*", "zzzz", "dupont zzzz", "x" * 5000])
def test_nobody_is_an_answer(found: Directory, text: str) -> None:
    assert found.search(text) == SearchPage((), 1, 0, False)


@pytest.mark.parametrize("text", ["rouge", "rouge dupont", RED.address, "rouge@", PATIENT, PATIENT.partition("@")[0]])
def test_the_red_list_and_patients_are_never_found(found: Directory, text: str) -> None:
    page = found.search(text, size=WINDOW)
    assert not {one.address for one in page.found} & {RED.address, PATIENT}
    assert RED.id_nat not in {one.id_nat for one in page.found}


def test_pages_follow_each_other(found: Directory) -> None:
    first = found.search("nombreux foule", size=50)
    assert first.total == WINDOW and first.more and len(first.found) == 50
    every = [one for page in range(1, 5) for one in names(found.search("nombreux foule", page=page, size=50))]
    assert len(set(every)) == WINDOW
    assert found.search("nombreux foule", page=5, size=50).found == ()
    assert names(found.search("nombreux foule", size=50)) == names(first)


def test_a_directory_that_is_down_is_not_an_empty_one(server: Server) -> None:
    with server.directory(timeout_seconds=1.0) as directory, pytest.raises(DirectoryUnavailableError):
        directory.search("dupont")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60))
def test_whatever_is_typed_is_answered(found: Directory, text: str) -> None:
    page = found.search(text)
    assert len(page.found) <= 20 and RED.address not in {one.address for one in page.found}
