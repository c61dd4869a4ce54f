"""Pitfall 30, archives and XML that would hurt whoever opens them: one of each, by name.

The whole of it is in test_screening.py (mail of any sender) and test_xdm.py (archives that are read).
"""

from __future__ import annotations

import pytest

from .test_screening import DOCTYPE, archive_mail, mail, part, refusal
from .test_xdm import zipped

HARMFUL = {
    "climbing-names": {"../../etc/passwd": b"x"},
    "absolute-names": {"/etc/passwd": b"x"},
    "backslashes": {"..\\..\\x": b"x"},
    "archives-in-archives": {"inner.zip": zipped({"a": b"x"})},
    "bombs": {"a": bytes(64 << 20)},
    "too-many-entries": {f"f{number}": b"" for number in range(20_000)},
}


@pytest.mark.parametrize("shape", HARMFUL)
def test_pitfall_30_harmful_archive(shape: str) -> None:
    assert refusal(archive_mail(zipped(HARMFUL[shape])))[0].smtp == 554


def test_pitfall_30_document_type() -> None:
    assert refusal(mail(part(DOCTYPE, "text/xml", "a.xml")))[0].smtp == 554
