"""Line ends of large and small contents are judged alike."""

from __future__ import annotations

import random

import pytest

from mta.smtp.content import crlf_only


def plainly(content: bytes) -> bool:
    return content.replace(b"\r\n", b"").count(b"\r") == 0 == content.replace(b"\r\n", b"").count(b"\n")


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 32 * 1024, 32 * 1024 + 1, 100_000])
@pytest.mark.parametrize("damage", [b"", b"\r", b"\n", b"\n\r", b"\r\r\n", b"\r\n\n"])
def test_bare_line_ends_are_seen_wherever_they_stand(size: int, damage: bytes) -> None:
    whole = (b"x" * 76 + b"\r\n") * (size // 78 + 1)
    for at in {0, 1, 77, 78, 4094, 4096, 32767, 32768, 32769, size // 2, size - 1, size} - {-1}:
        content = whole[:at] + damage + whole[at:size]
        assert crlf_only(content) == plainly(content), (size, at, damage)


def test_at_random() -> None:
    chosen = random.Random(1)
    for _ in range(300):
        content = bytearray(b"ab\r\n" * chosen.randrange(1000, 20000))
        for _ in range(chosen.randrange(3)):
            content[chosen.randrange(len(content))] = chosen.choice(b"\r\na")
        assert crlf_only(bytes(content)) == plainly(bytes(content))
