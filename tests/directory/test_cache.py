"""What the directory said a moment ago, found and not found, in bounded number."""

from __future__ import annotations

from dataclasses import replace

import pytest

from directory.cache import ResolveCache
from directory.resolve import Directory, DirectoryUnavailableError
from tests.directory.conftest import DOCTOR, RECIPIENTS, TEAM, Server

NOBODY = "nobody@demo-labo.mssante.fr"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_found_and_not_found_age_apart() -> None:
    clock = Clock()
    cache = ResolveCache(10, 30.0, 5.0, clock)
    cache.put("a@b", RECIPIENTS[0], cache.generation)
    cache.put("x@y", None, cache.generation)
    clock.now += 4.9
    assert cache.get("a@b") == (RECIPIENTS[0],)
    assert cache.get("x@y") == (None,)
    clock.now += 0.2
    assert cache.get("x@y") is None
    clock.now += 25
    assert cache.get("a@b") is None
    assert len(cache) == 0


def test_a_mailbox_without_certificate_is_forgotten_as_soon_as_none() -> None:
    clock = Clock()
    cache = ResolveCache(10, 30.0, 5.0, clock)
    cache.put("bare@b", RECIPIENTS[1], cache.generation)
    clock.now += 5.1
    assert not RECIPIENTS[1].encryption_certificates and cache.get("bare@b") is None


def test_an_answer_ages_from_the_question_on() -> None:
    """One that took four seconds to come is believed for one more."""
    clock = Clock()
    cache = ResolveCache(10, 30.0, 5.0, clock)
    asked_at = cache.now()
    clock.now += 4.0
    cache.put("x@y", None, cache.generation, asked_at)
    clock.now += 0.9
    assert cache.get("x@y") == (None,)
    clock.now += 0.2
    assert cache.get("x@y") is None


def test_the_least_recently_used_goes_first() -> None:
    cache = ResolveCache(3, 30.0, 30.0)
    for name in ("a", "b", "c"):
        cache.put(name, None, cache.generation)
    assert cache.get("a") == (None,)
    for name in ("d", "e"):
        cache.put(name, None, cache.generation)
    assert [name for name in "abcde" if cache.get(name)] == ["a", "d", "e"]
    assert len(cache) == 3


def test_an_answer_from_before_a_change_is_not_kept() -> None:
    cache = ResolveCache(3, 30.0, 30.0)
    generation = cache.generation
    cache.clear()
    cache.put("a", None, generation)
    assert cache.get("a") is None


def test_without_room_nothing_is_kept() -> None:
    cache = ResolveCache(0, 30.0, 30.0)
    cache.put("a", None, cache.generation)
    assert cache.get("a") is None and len(cache) == 0


def test_what_is_remembered_needs_no_directory_and_what_is_not_waits(server: Server) -> None:
    from tests.directory.conftest import fixture_entries

    server.slapd.load(fixture_entries())
    server.start()
    with server.directory(cache_entries=100, cache_seconds=600.0, negative_seconds=600.0) as directory:
        assert directory.resolve(DOCTOR.upper()) is not None
        assert directory.resolve(NOBODY) is None
        server.stop()
        assert directory.resolve(DOCTOR) is not None
        assert directory.resolve(NOBODY) is None
        with pytest.raises(DirectoryUnavailableError):
            directory.resolve(TEAM)
        with pytest.raises(DirectoryUnavailableError):
            directory.explain(DOCTOR)  # asks anew


def test_what_we_publish_counts_at_once(running: Server) -> None:
    machine = replace(RECIPIENTS[3], address="cached@demo-publish.mssante.fr")
    with running.directory("admin", cache_entries=100, cache_seconds=600.0, negative_seconds=600.0) as directory:
        assert directory.resolve(machine.address) is None
        directory.publish(machine)
        assert directory.resolve(machine.address) == machine


def test_no_answer_is_not_remembered(server: Server) -> None:
    from tests.directory.conftest import fixture_entries

    server.slapd.load(fixture_entries())
    with server.directory(cache_entries=100, negative_seconds=600.0) as directory:
        with pytest.raises(DirectoryUnavailableError):
            directory.resolve(DOCTOR)
        server.start()
        assert directory.resolve(DOCTOR) is not None


def test_injection_does_not_reach_the_cache_either(running: Server) -> None:
    with running.directory(cache_entries=100) as directory:
        assert directory.resolve("*)(mail=*") is None
        assert isinstance(directory, Directory) and len(directory._cache) == 0
