"""The command line: exit codes that mean something, sentences instead of stack traces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from config import doctor
from config.catalogue import CATALOGUE
from config.cli import relais


def run(*arguments: str) -> Result:
    return CliRunner().invoke(relais, list(arguments))


def test_every_command_explains_itself() -> None:
    for name, command in relais.commands.items():
        shown = run(name, "--help")
        assert shown.exit_code == 0
        assert command.help and command.help.split()[0] in shown.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("dossier", "list", "--as", "801234567897", "--patient", "279035121518989"),
        ("dossier", "read", "--as", "801234567897", "--patient", "279035121518989", "x"),
        ("directory", "resolve", "a@b.mssante.fr"),
        ("queue", "list"),
        ("journal", "verify"),
        ("serve", "--config", "absent.toml"),
    ],
)
def test_without_a_gateway_a_sentence_and_status_one(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAIS_STATE", str(tmp_path))
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.output.strip()
    assert "Traceback" not in result.output


def test_sending_to_nobody_says_the_message_was_not_accepted(tmp_path: Path) -> None:
    file = tmp_path / "report.hl7"
    file.write_bytes(b"MSH|^~\\&|")
    result = run("bridge", "send", "--to", "127.0.0.1:1", str(file))
    assert result.exit_code == 1
    assert "not accepted" in result.output


def test_wrong_arguments_are_status_two() -> None:
    assert run("up", "--port", "imaps=many").exit_code == 2
    assert run("bridge", "send").exit_code == 2


def test_the_catalogue_of_errors_is_complete_and_printable() -> None:
    shown = json.loads(run("doctor", "--errors", "--json").output)
    assert {row["code"] for row in shown} == set(CATALOGUE)
    for refusal in CATALOGUE.values():
        assert refusal.text.isascii() and refusal.text.endswith(".")
        assert refusal.text_fr.endswith(".")
        assert refusal.enhanced[0] == str(refusal.smtp)[0], refusal.code
        assert refusal.code.count(".") >= 1


def test_doctor_finds_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state"
    (state / "one").mkdir(parents=True)
    (state / "one" / "operator.key").write_text("key")
    (state / "one" / "operator.key").chmod(0o644)
    (state / "one" / "relais.toml").write_text("[operator\n")
    monkeypatch.setattr(doctor, "PROGRAMS", {"no-such-program": "no-such-package"})
    result = run("doctor", "--state", str(state), "--json")
    assert result.exit_code == 1
    problems = {row["subject"] for row in json.loads(result.output) if row["level"] == "problem"}
    assert {"packages", "permissions", "configuration"} <= problems
