"""The Authentication-Results field we write: what a stranger chose stays inside its value."""

from __future__ import annotations

import email
import email.policy

import pytest

from mta.authentication_results import Result, field


def test_one_result_a_line() -> None:
    written = field(
        "gate.example",
        [
            Result("spf", "pass", (("smtp.mailfrom", "op2.example"),)),
            Result("dkim", "fail", (("header.d", "op2.example"), ("header.s", "")), "body hash"),
        ],
    )
    assert written == (
        "Authentication-Results: gate.example;\r\n spf=pass smtp.mailfrom=op2.example;\r\n"
        ' dkim=fail reason="body hash" header.d=op2.example\r\n'
    )


def test_nothing_was_looked_at() -> None:
    assert field("gate.example", []) == "Authentication-Results: gate.example;\r\n none\r\n"


@pytest.mark.parametrize(
    "value",
    [
        "a; dkim=pass header.d=bank.example",
        'a"; dkim=pass header.d=bank.example; x="',
        "a\r\nAuthentication-Results: gate.example; dkim=pass",
        "a\\",
        "a (comment",
        "é\u2028\x00",
        "%0d%0a",
        "x" * 5000,
        " ",
    ],
)
def test_no_value_gets_out_of_its_place(value: str) -> None:
    written = field("gate.example", [Result("spf", "none", (("smtp.helo", value),), value)])
    assert all(len(line) <= 998 for line in written.split("\r\n"))
    message = email.message_from_string(written + "\r\n", policy=email.policy.compat32)
    (only,) = message.get_all("Authentication-Results", [])
    assert len(message.keys()) == 1
    # without what is quoted nothing of the value is left
    unquoted = "".join(only.split('"')[0::2])
    assert unquoted.split() == ["gate.example;", "spf=none", "reason=", "smtp.helo="] or "%" in value
    assert only.count('"') % 2 == 0
    assert "\\" not in only
