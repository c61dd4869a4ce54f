"""How hard a destination is pressed: rests that grow, one probe, concurrency that follows success."""

from __future__ import annotations

import pytest

from mta.smtp.gate import Gate, GateOptions

OPTIONS = GateOptions(connections=8, first_connections=2, first_rest_seconds=10.0, longest_rest_seconds=60.0)


def test_rests_grow_to_the_longest_and_end_with_the_first_answer() -> None:
    gate, now, rests = Gate(OPTIONS), 1000.0, []
    for _ in range(6):
        gate.failed(now)
        assert gate.rests(now)
        assert gate.window == 1
        assert not gate.proven
        rests.append(gate.until - now)
        now = gate.until
        assert not gate.rests(now), "and then one may try"
    for rest, most in zip(rests, (10, 20, 40, 60, 60, 60), strict=True):
        assert 0.8 * most <= rest <= most
    gate.worked()
    assert gate.proven
    assert gate.window == 2


def test_success_opens_up_to_the_limit_and_breaks_close() -> None:
    gate = Gate(OPTIONS)
    for _ in range(200):
        gate.delivered()
    assert gate.window == 8
    gate.broke(0.0)
    assert gate.window == 4
    gate.broke(0.0)
    assert not gate.rests(0.0)
    gate.broke(0.0)
    assert gate.rests(0.0), "three in a row are the destination's fault"


def test_answers_between_breaks_say_that_it_is_there() -> None:
    gate = Gate(OPTIONS)
    for _ in range(10):
        gate.broke(0.0)
        gate.broke(0.0)
        gate.worked()
    assert not gate.rests(0.0)
    assert gate.window == 1


def test_a_limit_the_destination_has_is_kept_for_a_while() -> None:
    gate = Gate(OPTIONS)
    for _ in range(200):
        gate.delivered()
    gate.crowded(3)
    assert gate.window == 3


def test_somebody_who_knows_better() -> None:
    gate = Gate(OPTIONS)
    gate.failed(0.0)
    gate.forgive(0.0)
    assert not gate.rests(0.0)
    assert gate.window == 1, "it still has to prove itself"
    assert gate.probing(0.0)


def test_one_probes_after_the_rest_for_a_while() -> None:
    gate = Gate(OPTIONS)
    assert not gate.probing(0.0), "nothing is known"
    gate.failed(0.0)
    assert not gate.probing(0.0), "it rests"
    assert gate.probing(gate.until)
    assert not gate.probing(gate.until + 3601), "nobody had anything for it since: nothing is known any more"
    gate.worked()
    assert not gate.probing(gate.until)


def test_options_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="connections"):
        GateOptions(connections=1, first_connections=2)
