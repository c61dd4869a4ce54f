"""What the whole suite shares: names of parametrised tests that every worker process gives alike."""

from __future__ import annotations


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Octets are often made anew in each process (keys, noise): named by their argument, numbered by pytest.

    Workers of pytest-xdist refuse to run unless all of them collected tests of the same names.
    """
    if isinstance(val, bytes) and (len(val) > 60 or not val.isascii() or b"\0" in val or b"\x02" in val):
        return argname
    return None
