"""The trusted address that was meant, found in a real slapd and a trust list of the nation's size."""

from __future__ import annotations

import threading
import time

import pytest

from directory.nearest import NearestTrusted
from directory.resolve import Directory, DirectoryUnavailableError
from directory.search import SearchPage

from .test_search import DOMAIN, found

__all__ = ["found"]

DOMAINS = frozenset({DOMAIN, "demo-labo.mssante.fr", "patient.mssante.fr", "abc.fr"})
NATION = DOMAINS | {f"structure{number:05d}.region{number % 13}.mssante.fr" for number in range(9000)}


@pytest.fixture
def nearest(found: Directory) -> NearestTrusted:
    return NearestTrusted(lambda: NATION, found.search, ["patient.mssante.fr"])


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("legoff@demo-serach.mssante.fr", f"legoff@{DOMAIN}"),
        ("LeGoff@demo-search.msante.fr", f"legoff@{DOMAIN}"),
        ("legoff@demo-search.mssante.com", None),
        ("personne@demo-serach.mssante.fr", None),
        ("marc.dupont@gmail.example", f"dupont.paris@{DOMAIN}"),
        ("marc-dupont@hopital.example", f"dupont.paris@{DOMAIN}"),
        ("anne-laure.legoff@gmail.example", None),
        ("elise.dupont@gmail.example", None),  # one of two has no mailbox, and may be the one that was meant
        ("dupont@gmail.example", None),
        ("docteur.dupont@gmail.example", None),
        ("299019900100133@patient.mssant.fr", "299019900100133@patient.mssante.fr"),
        ("rouge.dupont@gmail.example", None),
        ("a@abcd.fr", None),
        ("*@demo-serach.mssante.fr", None),
        ("é@gmail.example", None),
        ("", None),
        ("x@" + "y" * 300, None),
        ("x" * 65 + "@" + DOMAIN, None),
    ],
)
def test_what_was_meant(nearest: NearestTrusted, written: str, meant: str | None) -> None:
    found = nearest.of(written)
    assert (found and found.address) == meant


def test_the_author_is_told_who_that_is(nearest: NearestTrusted) -> None:
    for written in (f"dupont.paris@{DOMAIN.replace('search', 'serach')}", "marc.dupont@gmail.example"):
        found = nearest.of(written)
        assert found is not None and found.who.startswith("DR Marc DUPONT, Médecin"), found
        assert found.who.endswith(", PARIS-FICTIF")
    patient = nearest.of("299019900100133@patient.mssant.fr")
    assert patient is not None and patient.who == ""


def test_a_list_of_the_nations_size_is_looked_through_quickly(nearest: NearestTrusted) -> None:
    begun = time.perf_counter()
    assert nearest.of("x@structure1234.region12.mssante.fr") is None
    assert time.perf_counter() - begun < 2


def test_without_a_directory_nothing_is_proposed() -> None:
    def down(text: str) -> SearchPage:
        raise DirectoryUnavailableError

    assert NearestTrusted(lambda: DOMAINS, down).of("marc.dupont@gmail.example") is None


def test_who_mistypes_does_not_keep_the_directory_busy() -> None:
    begun, end = threading.Semaphore(0), threading.Event()
    asked: list[str] = []

    def slow(text: str) -> SearchPage:
        asked.append(text)
        begun.release()
        end.wait(10)
        return SearchPage((), 1, 0, False)

    nearest = NearestTrusted(lambda: DOMAINS, slow)
    threads = [threading.Thread(target=nearest.of, args=("marc.dupont@gmail.example",)) for _ in range(2)]
    for each in threads:
        each.start()
        assert begun.acquire(timeout=10)
    assert nearest.of("marc.dupont@gmail.example") is None
    assert len(asked) == 2
    end.set()
    for each in threads:
        each.join()
