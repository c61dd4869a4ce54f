"""The catalogue of `smime`: unique codes, classes that agree, one line that any SMTP server may send."""

from __future__ import annotations

from smime.refusals import CATALOGUE
from trust.refusals import Refused, join_catalogues


def test_entries_are_well_formed() -> None:
    assert len(join_catalogues([CATALOGUE])) == len(CATALOGUE)
    for refusal in CATALOGUE:
        assert refusal.code.startswith("smime.")
        assert refusal.enhanced[0] == str(refusal.smtp)[0]
        assert refusal.text.isascii()
        assert "?" not in Refused(refusal).reply
