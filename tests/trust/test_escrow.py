"""The key-encryption key in shares: they bring it back, one alone tells nothing, and what does not belong is told."""

from __future__ import annotations

import math
import secrets
from collections import Counter
from itertools import combinations

import pytest
from shamir_mnemonic.shamir import _split_secret

from trust.escrow import EscrowError, join, read_share, sheet, split

KEK = secrets.token_bytes(32)


@pytest.mark.parametrize(("shares", "needed"), [(2, 2), (3, 2), (5, 3)])
def test_any_as_many_as_are_needed_bring_it_back(shares: int, needed: int) -> None:
    made = split(KEK, shares, needed)
    for group in combinations(made, needed):
        assert join(group) == KEK
    assert join(made) == KEK
    with pytest.raises(EscrowError, match=f"{needed} different shares are needed"):
        join(made[: needed - 1])


def test_a_sheet_is_read_as_it_was_printed_and_as_somebody_types_it() -> None:
    one, two = split(KEK)
    printed = sheet(one, "mss.exemple.fr", "2026-11-21", 2)
    assert printed.isascii() and max(map(len, printed.splitlines())) < 120
    assert read_share(printed) == one
    typed = " ".join(word[:4].upper() for word in two.words.split(" "))
    assert join([read_share(printed), read_share(typed)]) == KEK


def test_new_shares_of_the_same_key_are_others_and_do_not_mix() -> None:
    one, two = split(KEK), split(KEK)
    assert {each.words for each in one}.isdisjoint(each.words for each in two)
    with pytest.raises(EscrowError, match="made at different times"):
        join([one[0], two[1]])


def test_shares_of_two_keys_do_not_mix_even_under_the_same_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shamir_mnemonic.shamir._random_identifier", lambda: 7)
    one, two = split(KEK), split(secrets.token_bytes(32))
    with pytest.raises(EscrowError, match="different keys"):
        join([one[0], two[1]])
    with pytest.raises(EscrowError, match="do not belong together"):
        join([read_share(one[0].words), read_share(two[1].words)])


def test_the_same_share_twice_is_one() -> None:
    one, _ = split(KEK)
    with pytest.raises(EscrowError, match="given twice"):
        join([one, one])


def test_a_sheet_with_the_fingerprint_of_another_key_is_told() -> None:
    one, two = split(KEK)
    forged = read_share(sheet(two, "", "", 2).replace(two.fingerprint, "0" * 16))
    with pytest.raises(EscrowError, match="different keys"):
        join([one, forged])
    with pytest.raises(EscrowError, match="fingerprint of another key"):
        join([read_share(one.words), forged])


def test_mistakes_of_the_pen_are_found() -> None:
    words = split(KEK)[0].words.split(" ")
    with pytest.raises(EscrowError, match="has 33 words, and here are 32"):
        read_share(" ".join(words[1:]))
    with pytest.raises(EscrowError, match="word 5 is not in the list"):
        read_share(" ".join([*words[:4], "zzzz", *words[5:]]))
    other = "academic" if words[10] != "academic" else "acid"
    with pytest.raises(EscrowError, match="do not fit together"):
        read_share(" ".join([*words[:10], other, *words[11:]]))
    swapped = [*words[:20], words[21], words[20], *words[22:]]
    if swapped != words:
        with pytest.raises(EscrowError, match="do not fit together"):
            read_share(" ".join(swapped))
    with pytest.raises(EscrowError, match="here are 0"):
        read_share("")


def test_no_error_quotes_a_share() -> None:
    one, two = split(KEK)
    words = two.words.split(" ")
    for wrong in (" ".join(words[1:]), " ".join([*words[:4], "acid", *words[5:]])):
        with pytest.raises(EscrowError) as told:
            read_share(wrong)
        assert not any(word in str(told.value).split() for word in words[4:-3] if len(word) > 5)
    assert one.words not in repr(one)


def test_one_share_alone_tells_nothing_of_the_key() -> None:
    """The same key and another one give shares whose bytes are alike: each position over all values, evenly."""
    runs = 512
    for kek in (bytes(32), b"\xff" * 32):
        for number in (0, 1):
            values = [_split_secret(2, 2, kek)[number].data for _ in range(runs)]
            assert all(value != kek for value in values)
            for position in range(32):
                counts = Counter(value[position] >> 4 for value in values)
                squares = sum((counts[bucket] - runs / 16) ** 2 / (runs / 16) for bucket in range(16))
                assert squares < 15 + 8 * math.sqrt(30), (position, counts)  # 15 degrees of freedom, 8 deviations


def test_what_cannot_be_split_is_refused() -> None:
    for shares, needed in ((1, 1), (2, 1), (2, 3), (17, 2)):
        with pytest.raises(EscrowError):
            split(KEK, shares, needed)
    with pytest.raises(EscrowError):
        split(b"short")
