"""The command line: exit codes that mean something, sentences instead of stack traces."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from config import doctor
from config.catalogue import CATALOGUE
from config.cli import relais
from config.control import ControlSocket
from config.lazy import LazyGroup
from tests.support.private import service_directory


def run(*arguments: str) -> Result:
    return CliRunner().invoke(relais, list(arguments))


def test_every_command_explains_itself() -> None:
    for name, command in relais.commands.items():
        shown = run(name, "--help")
        assert shown.exit_code == 0
        assert command.help and command.help.split()[0] in shown.output


def test_the_list_of_commands_says_what_each_group_says_of_itself() -> None:
    lazy = [command for command in relais.commands.values() if isinstance(command, LazyGroup)]
    assert {str(command.name) for command in lazy} == {
        *("account", "bench", "journal", "keys", "mailbox", "quarantine", "queue", "reading", "smime", "trust")
    }
    for command in lazy:
        own = command.own_group()
        assert own.help is not None and own.help.startswith(str(command.help))
        assert own.commands and command.list_commands(click.Context(command)) == sorted(own.commands)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["queue", "--help"], ["nothing"]])
def test_asking_for_help_loads_nothing_of_the_gateway(arguments: list[str]) -> None:
    """A shell's completion or a typing mistake must not wait for the database, cryptography and S/MIME."""
    program = (
        "import sys; before = set(sys.modules)\n"
        "from config.cli import main\n"
        "try: main()\n"
        "finally: print(*sorted(set(sys.modules) - before), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    loaded = set(done.stderr.splitlines()[-1].split())
    assert {
        name for name in loaded if name.partition(".")[0] in ("trust", "directory", "smime", "mta", "bridges")
    } == set()
    heavy = {"alembic", "asyncio", "asn1crypto", "cryptography", "lxml", "msgspec", "sqlalchemy", "structlog"}
    assert loaded & heavy == set()
    assert {"click", "config.cli"} <= loaded


@pytest.mark.parametrize(
    "arguments",
    [
        ("dossier", "list", "--as", "801234567897", "--patient", "279035121518989"),
        ("dossier", "read", "--as", "801234567897", "--patient", "279035121518989", "x"),
        ("directory", "resolve", "a@b.mssante.fr"),
        ("queue", "list"),
        ("journal", "verify"),
        ("serve", "--config", "absent.toml"),
        ("trace", "MSG-1"),
        ("submit", "--from", "a@b.fr", "--to", "c@d.fr", "--document", __file__),
        ("bridge", "send", __file__),
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


@pytest.mark.parametrize(
    "arguments",
    [
        ("up", "--port", "imaps=many"),
        ("up", "--port", "imaps=²"),
        ("up", "--port", "imaps=65536"),
        ("bridge", "send"),
        ("bridge", "send", "--to", "127.0.0.1:99999", __file__),
        ("bridge", "send", "--to", "127.0.0.1:²", __file__),
        ("bridge", "send", "--to", ":2575", __file__),
        ("submit", "--from", "a@b.fr", "--to", "c@d.fr", "--document", "absent.xml"),
        ("submit", "--from", "a@b.fr", "--document", __file__),
        ("trace",),
        ("nothing",),
    ],
)
def test_wrong_arguments_are_status_two(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.output


def test_what_is_no_host_or_no_message_is_a_sentence(tmp_path: Path) -> None:
    envelope = tmp_path / "envelope.hl7"
    envelope.write_bytes(b"\x0bMSH|^~\\&|\x1c\r")
    for arguments in (("..:2575", __file__), ("127.0.0.1:1", str(envelope))):
        result = run("bridge", "send", "--to", *arguments)
        assert result.exit_code == 1
        assert "not accepted" in result.output


@pytest.mark.parametrize("content", ["[]", "{}", "nonsense", '{"mllp": 1}'])
def test_endpoints_nobody_can_read_are_a_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "endpoints.json").write_text(content)
    result = run("bridge", "send", "--state", str(tmp_path), __file__)
    assert result.exit_code == 1
    assert "endpoints.json cannot be read" in result.output


def test_a_document_past_the_limit_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    large = tmp_path / "large.xml"
    with large.open("wb") as file:
        file.truncate(60_000_000)
    result = run("submit", "--from", "a@b.fr", "--to", "c@d.fr", "--document", str(large), "--state", str(tmp_path))
    assert result.exit_code == 1
    assert "bridges.document-too-large" in result.output


def test_a_gateway_that_is_away_hides_no_other(tmp_path: Path) -> None:
    async def trace(request: Mapping[str, Any]) -> Any:
        return []

    async def asked() -> Result:
        with service_directory() as place:
            (place / "one").mkdir()
            (place / "two").mkdir()
            (place / "one" / "control.sock").touch()  # left by one that was killed
            control = ControlSocket(place / "two" / "control.sock", {"queue.list": trace})
            await control.start()
            result = await asyncio.to_thread(run, "queue", "list", "--json", "--state", str(place))
            await control.stop()
            return result

    result = asyncio.run(asked())
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"two": []}
    assert "is it running" in result.stderr


def test_the_catalogue_of_errors_is_complete_and_printable() -> None:
    shown = json.loads(run("doctor", "--errors", "--json").output)
    assert {row["code"] for row in shown} == set(CATALOGUE)
    for refusal in CATALOGUE.values():
        assert refusal.text.isascii() and refusal.text.endswith(".")
        assert refusal.text_fr.endswith(".")
        assert refusal.enhanced[0] == str(refusal.smtp)[0], refusal.code
        assert refusal.code.count(".") >= 1


def test_the_printed_catalogue_names_every_code_once_in_both_languages() -> None:
    lines = run("doctor", "--errors").output.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == sorted(CATALOGUE)
    for refusal in CATALOGUE.values():
        assert f"    {refusal.text}" in lines
        assert f"    {refusal.text_fr}" in lines


def test_a_state_that_is_no_directory_is_a_problem() -> None:
    result = run("doctor", "--state", __file__)
    assert result.exit_code == 1
    assert "is no directory" in result.output


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"mllp": 1}', '{"imaps": 99999}', '{"imaps": null}'])
def test_doctor_reads_any_state(tmp_path: Path, content: str) -> None:
    for name in ("ports.json", "endpoints.json"):
        (tmp_path / name).write_text(content)
    findings = json.loads(run("doctor", "--state", str(tmp_path), "--json").stdout)
    assert {row["subject"] for row in findings} >= {"clock", "disk"}


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
