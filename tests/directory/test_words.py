"""Folding on both sides of a search."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from directory.entries import comparable
from directory.situations import Situation, parse_situation
from directory.words import KEY_LENGTHS, LONGEST, MOST, all_keys, asked, fold, folded, initials, words_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hélène LE GOFF-D'ARGENT", ["helene", "le", "goff", "d", "argent"]),
        ("St-Étienne", ["saint", "etienne"]),
        ("Cœur, ŒDÈME; Straße", ["coeur", "oedeme", "strasse"]),
        ("\ufb01n \u00c5ngstr\u00f6m \u0130zmir", ["fin", "angstrom", "izmir"]),
        ("e\u0301te\u0301", ["ete"]),
        ("日本 Иван", []),
        ("", []),
    ],
)
def test_words_are_plain(text: str, expected: list[str]) -> None:
    assert fold(text) == expected


def test_compound_names_are_found_apart_and_in_one_word() -> None:
    words = words_of(("Jean-Baptiste", "LE GOFF"), ("Centre hospitalier de Saint-Brieuc",))
    assert set(words) >= {
        b"jean",
        b"baptiste",
        b"jeanbaptiste",
        b"goff",
        b"legoff",
        b"hospitalier",
        b"saint",
        b"brieuc",
    }
    assert b"le" not in words and b"de" not in words
    assert words_of(("LE",), ()) == (b"le",)  # a family name of its own


@pytest.mark.parametrize(
    ("question", "word", "beginning"),
    [
        ("cardiologue", "cardiologue", "cardiolog"),
        ("pédiatre", "pediatre", "pediatr"),
        ("infirmières", "infirmieres", "infirmier"),
        ("généraliste", "generaliste", "general"),
        ("ORL", "orl", "oto"),
        ("jean baptiste", "jean", "jeanbaptiste"),
        ("le goff", "goff", "legoff"),
        ("goff le", "goff", "goffle"),
    ],
)
def test_what_people_say_is_what_the_register_writes(question: str, word: str, beginning: str) -> None:
    (first, *_) = asked(question)
    assert first.text == word and beginning in first.beginnings


def test_a_question_without_a_word_asks_nothing() -> None:
    for text in ("", " ", "é", "j d", "!!", "日本"):
        assert asked(text) == []
    assert [one.text for one in asked("dr le du")] == ["dr", "le", "du"]
    assert [one.text for one in asked("j dupont")] == ["dupont"] and initials("j dupont") == {"j"}
    assert len(asked("mot " * 1000)) <= 8


@given(st.text(), st.text())
@example("", "000A")
def test_any_text_becomes_short_ascii_words_that_find_themselves(name: str, other: str) -> None:
    words = words_of((name,), (other,))
    assert len(words) <= MOST and list(words) == sorted(set(words))
    for word in words:
        assert 0 < len(word) <= LONGEST and word.isalnum() and word.isascii() and word == word.lower()
    assert all(len(key) in KEY_LENGTHS and not key.isdigit() for key in all_keys(words))
    for one in asked(name)[:1]:
        assert len(one.text) > 1


@given(st.text())
def test_a_second_spelling_has_no_accents(text: str) -> None:
    assert comparable(folded(folded(text))) == comparable(folded(text))


@given(st.builds(Situation, *[st.text()] * 8))
def test_a_situation_survives_its_ldap_value(situation: Situation) -> None:
    value = str(situation)
    assert str(parse_situation(value)) == value
    assert parse_situation("10$C$SM54$1990000001$Cabinet \\24 \\5C$99100$Ici$01$L$SA07$F$from$tomorrow") == Situation(
        "10", "C", "SM54", "1990000001", "Cabinet $ \\", "99100", "Ici", "01", "L", "SA07", "F"
    )
