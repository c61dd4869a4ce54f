"""The ranking of results and the text a doctor or a patient reads first."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridges.report import Action, Audience, Finding, Flags, Result
from bridges.summary import ABNORMAL, CRITICAL, MAX_RESULTS, body, ranked, reference_range
from tests.bridges.fictitious import PATIENT, document, report, result

PROFESSIONAL, SICK = Audience.PROFESSIONAL, Audience.PATIENT


def labels(ranks: tuple[object, ...]) -> list[str]:
    return [one.result.label for one in ranks]  # type: ignore[attr-defined]


def test_critical_then_abnormal_then_the_rest_each_in_document_order() -> None:
    codes = ["N", "H", "HH", "", "LL", "R", "AA", "A", "S", "L"]
    ranks = ranked(result(f"{i} {code}", interpretation=code) for i, code in enumerate(codes))
    assert labels(ranks.critical) == ["2 HH", "4 LL", "6 AA"]
    assert labels(ranks.abnormal) == ["1 H", "5 R", "7 A", "9 L"]
    assert labels(ranks.other) == ["0 N", "3 ", "8 S"]


@pytest.mark.parametrize(
    ("value", "low", "high", "flag"),
    [
        ("8.1", "12.0", "16.0", "L"),
        ("17", "12.0", "16.0", "H"),
        ("17,2", "12,0", "16,0", "H"),
        ("12.0", "12.0", "16.0", ""),
        ("5", "", "4", "H"),
        ("5", "6", "", "L"),
        ("< 0.5", "1", "2", ""),
        ("positif", "1", "2", ""),
        ("3 g/L", "1", "2", ""),
        ("9", "3.89", "3.89", ""),
        ("9", "5", "3", ""),
        ("9", "< 3", "4 g", ""),
        ("9" * 400, "1", "2", ""),
        ("NaN", "1", "2", ""),
        ("١٧", "1", "2", "H"),
    ],
)
def test_a_plain_number_outside_the_senders_range_is_marked_as_computed(value, low, high, flag) -> None:
    (one,) = sum(
        (ranks := ranked([result(value=value, low=low, high=high)]), (ranks.critical, ranks.abnormal, ranks.other))[1],
        (),
    )
    assert one.flag == flag
    assert one.computed == bool(flag)
    if flag:
        assert one.words == f"hors bornes, calculé ({flag})"


def test_the_senders_word_wins_over_arithmetic() -> None:
    ranks = ranked([result(value="99", interpretation="N")])
    assert not ranks.abnormal
    assert ranks.other[0].words == ""


@given(st.lists(st.builds(lambda i, v: result(value=v, interpretation=i), st.text(max_size=4), st.text(max_size=6))))
def test_ranking_loses_nothing_and_invents_nothing(results: list[Result]) -> None:
    ranks = ranked(results)
    everything = [*ranks.critical, *ranks.abnormal, *ranks.other]
    assert sorted(map(id, (one.result for one in everything))) == sorted(map(id, results))
    assert all(set(one.flag.upper().replace("~", " ").split()) & CRITICAL for one in ranks.critical)
    assert all(set(one.flag.upper().replace("~", " ").split()) & (ABNORMAL - CRITICAL) for one in ranks.abnormal)


def test_ranges_read_plainly() -> None:
    assert reference_range(result()) == "[12.0 - 16.0]"
    assert reference_range(result(high="")) == "[>= 12.0]"
    assert reference_range(result(low="")) == "[<= 16.0]"
    assert reference_range(result(low="", high="")) == ""


def test_a_doctor_reads_the_urgent_first() -> None:
    results = (
        result("Leucocytes", "6.2", unit="G/L", low="4", high="10", interpretation="N"),
        result("Hémoglobine", "6.1", interpretation="LL"),
        result("Plaquettes", "480", unit="G/L", low="150", high="400", interpretation="H"),
        result("Ferritine", "8", unit="µg/L", low="15", high="150", section="Biochimie"),
    )
    text = body(report(document(results=results)), PROFESSIONAL, "production")
    order = [text.index(word) for word in ("RÉSULTATS CRITIQUES", "6.1 g/dL", "RÉSULTATS ANORMAUX", "480", "AUTRES")]
    assert order == sorted(order)
    assert "Hémoglobine : 6.1 g/dL  [12.0 - 16.0]  CRITIQUE, très bas (LL)" in text
    assert "hors bornes, calculé (L)" in text
    assert "Patient : FICTIF-ÉLAN Zoé Marie (nom utilisé : IMAGINAIRE), né(e) le 28/03/1979, sexe F" in text
    assert "Auteur : Paul ESSAI" in text
    assert "Structure : Laboratoire Témoin" in text
    assert "Date : 21/11/2026 à 09:15" in text
    assert "ESSAI :" not in text


def test_a_test_gateway_and_a_test_identity_say_so() -> None:
    fake = replace(PATIENT, matricule_oid="1.2.250.1.213.1.4.10")
    text = body(report(patient=fake), PROFESSIONAL, "test")
    assert text.startswith("*** MESSAGE D'ESSAI")
    assert "(identité de test)" in text


def test_a_patient_reads_values_without_alarm_or_rank() -> None:
    results = (
        result("Leucocytes", "6.2", interpretation="N"),
        result("Hémoglobine", "6.1", interpretation="LL"),
    )
    text = body(report(document(results=results)), SICK, "production")
    assert "6.1 g/dL" in text
    assert text.index("Leucocytes") < text.index("Hémoglobine")
    for alarm in ("CRITIQUE", "LL", "ANORMAUX", "calculé", "INS"):
        assert alarm not in text


def test_the_senders_own_words_come_first_to_whom_they_are_meant() -> None:
    own = report(body_professional="Cher confrère,\r\nvoici.\r\n", body_patient="Chère patiente,")
    doctor, patient = body(own, PROFESSIONAL, "production"), body(own, SICK, "production")
    assert doctor.startswith("Cher confrère,\nvoici.\n")
    assert patient.startswith("Chère patiente,")
    assert "confrère" not in patient
    assert "Chère" not in doctor


@pytest.mark.parametrize("audience", list(Audience))
def test_replacement_and_withdrawal_say_what_happens(audience) -> None:
    replacing = report(document(parent_id="1.2.3.4.99"), action=Action.REPLACE)
    text = body(replacing, audience, "production")
    assert "remplace" in text
    assert ("Remplace : document 1.2.3.4.99" in text) == (audience is PROFESSIONAL)
    withdrawn = body(report(document(results=(result(),)), action=Action.DELETE), audience, "production")
    assert "retiré" in withdrawn
    assert "RETIRÉ" in withdrawn
    assert ("RETIRÉ : document 1.2.3.4.100^A1" in withdrawn) == (audience is PROFESSIONAL)
    assert "Hémoglobine" not in withdrawn


def test_level_1_points_to_the_pdf_and_a_narrative_is_quoted() -> None:
    assert "Voir le PDF joint." in body(report(document(level=1)), PROFESSIONAL, "production")
    told = body(report(document(narrative="\n".join(f"ligne {i}" for i in range(99)))), PROFESSIONAL, "production")
    assert "ligne 39\n" in told
    assert "ligne 40" not in told
    assert "texte abrégé" in told


def test_a_long_list_says_that_it_was_cut_and_keeps_the_urgent() -> None:
    results = tuple(result(f"normal {i}", interpretation="N") for i in range(MAX_RESULTS + 50))
    text = body(report(document(results=(*results, result("urgent", interpretation="HH")))), PROFESSIONAL, "production")
    assert "liste abrégée : 51 résultat(s)" in text
    assert text.index("urgent") < text.index("normal 0")


def test_findings_worth_knowing_are_told_once() -> None:
    findings = (
        Finding("parent-contradicts-set", "ClinicalDocument/relatedDocument"),
        Finding("parent-contradicts-set", "ClinicalDocument/relatedDocument"),
        Finding("charset-undeclared", "MSH-18"),
    )
    text = body(report(findings=findings), PROFESSIONAL, "production")
    assert text.count("même série") == 1
    assert "charset" not in text


def test_the_last_message_of_an_exchange_says_so_to_the_patient() -> None:
    last = report(flags=Flags(last_of_exchange=True))
    assert "plus possible de répondre" in body(last, SICK, "production")


def test_long_labels_keep_the_values_aligned() -> None:
    results = (
        result("Urée"),
        result("Concentration corpusculaire moyenne en hémoglobine"),
        result("K", unit="{ratio}"),
    )
    lines = body(report(document(results=results)), PROFESSIONAL, "production").split("\n")
    assert len({line.index(" : 13.0") for line in lines if " : 13.0" in line}) == 1
    assert any(line.strip() == "Concentration corpusculaire moyenne en hémoglobine" for line in lines)
    assert any("13.0 ratio" in line for line in lines)


@given(st.text(max_size=30), st.text())
def test_hostile_values_stay_on_their_line(label: str, value: str) -> None:
    hostile = report(document(results=(result(label, value, interpretation="HH"),)))
    text = body(hostile, PROFESSIONAL, "production")
    harmless = body(report(document(results=(result(interpretation="HH"),))), PROFESSIONAL, "production")
    assert text.count("\n") == harmless.count("\n")
    text.encode("utf-8")
    assert not set("\r\0\x1b\u202e\u2066\u200f\u2028") & set(text)
