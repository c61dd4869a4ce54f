"""`decide`, exhaustively over a small table, and the matrix that ships."""

from __future__ import annotations

import itertools
from datetime import date
from pathlib import Path

import msgspec
import pytest

from bridges.dossier.entries import AvailabilityStatus, DocumentEntry, DossierStatus
from bridges.dossier.rights import AccessContext, Matrix, MatrixError, Reader, decide, load_matrix
from bridges.report import Party

AUTHOR = "801234567897"
OTHER = "809876543213"
MATRIX = Matrix("test", date(2026, 1, 1), frozenset({("10", "11502-2")}))


def an_entry(**change: object) -> DocumentEntry:
    values: dict[str, object] = dict.fromkeys(DocumentEntry.__dataclass_fields__, "")
    values |= {
        "version": 1,
        "level": 3,
        "size": 0,
        "deposited_at": 0.0,
        "status": AvailabilityStatus.CURRENT,
        "author": Party(id_nat=AUTHOR),
        "type_code": "11502-2",
        "masked_to_professionals": False,
        "hidden_from_patient": False,
        "hidden_from_representatives": False,
        "secret_connection": False,
    }
    return DocumentEntry(**(values | change))  # type: ignore[arg-type]


def test_decide_follows_its_order_for_every_combination_of_facts() -> None:
    combinations = itertools.product(
        DossierStatus,
        ("", AUTHOR, OTHER),
        ("", "10", "28"),
        ("", "normal"),
        ("11502-2", "unheard-of"),
        (False, True),
        AvailabilityStatus,
        (False, True),
    )
    seen = set()
    for dossier, id_nat, profession, purpose, type_code, masked, status, history in combinations:
        decision = decide(
            Reader(id_nat, "Dr Essai", profession),
            dossier,
            an_entry(type_code=type_code, masked_to_professionals=masked, status=status),
            AccessContext(MATRIX, purpose, history),
        )
        rules = {
            "dossier-closed": dossier is DossierStatus.CLOSED,
            "not-identified": not id_nat or not profession,
            "no-purpose": not purpose,
            "matrix": (profession, type_code) != ("10", "11502-2"),
            "masked": masked and id_nat != AUTHOR,
            "deleted": status is AvailabilityStatus.DELETED,
            "superseded": status is AvailabilityStatus.SUPERSEDED and not history,
            "granted": True,
        }
        assert decision.rule == next(rule for rule, holds in rules.items() if holds)
        assert decision.allowed == (decision.rule == "granted")
        assert decision.text
        seen.add(decision.rule)
    assert seen == set(rules)


@pytest.mark.parametrize(
    ("profession", "type_code", "opened"),
    [
        ("10", "11502-2", True),
        ("10", "EXPPAT_3", True),
        ("10", "ATTEST-RESID", False),
        ("10", "no-such-type", False),
        ("40", "18748-4", True),
        ("40", "83901-9", False),
        ("40", "EXPPAT_3", False),
        ("60", "60591-5", True),
        ("60", "ATTEST-RESID", False),
        ("80", "11502-2", True),
        ("80", "34874-8", False),
        ("80", "15508-5", False),
        ("91", "11502-2", False),
        ("91", "18748-4", True),
        ("28", "47420-5", True),
        ("28", "18748-4", False),
        ("98", "18748-4", False),
        ("", "11502-2", False),
        ("36", "11502-2", False),
    ],
)
def test_the_matrix_that_ships(profession: str, type_code: str, opened: bool) -> None:
    assert load_matrix().opens(profession, type_code) is opened


def test_the_matrix_names_its_source_and_date() -> None:
    matrix = load_matrix()
    assert matrix.date == date(2023, 10, 29)
    assert "26 octobre 2023" in matrix.source


@pytest.mark.parametrize(
    "text",
    [
        "not toml [",
        'source = "x"\n',
        'source="x"\ndate=2026-01-01\nrules=[]\n[families]\nf=[1]\n',
        'source="x"\ndate=2026-01-01\n[families]\nf=["a"]\n[[rules]]\nprofessions=["10"]\nsource="x"\nfamilies=["g"]\n',
        'source="x"\ndate=2026-01-01\n[families]\nf=["a"]\n[[rules]]\nprofessions=["10"]\nsource="x"\nfamilies=["f"]\n'
        'except=["mistyped"]\n',
        'source="x"\ndate=2026-01-01\n[families]\nf=["a"]\n[[rules]]\nprofessions=["10"]\nsource="x"\nfamilys=["f"]\n',
    ],
)
def test_a_malformed_matrix_opens_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "matrix.toml").write_text(text)
    with pytest.raises(MatrixError):
        load_matrix(tmp_path / "matrix.toml")


def test_an_entry_survives_its_encoding() -> None:
    entry = an_entry(title="Résultats")
    assert msgspec.json.decode(msgspec.json.encode(entry), type=DocumentEntry) == entry
