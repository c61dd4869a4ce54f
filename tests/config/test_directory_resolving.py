"""`relais directory resolve` and `refresh`: asked of a directory itself, without a running gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509

from config.cli import relais
from config.directory_service import MailLearning
from directory.offered import Evidence, OfferOutcome
from tests.directory.conftest import DOCTOR, Server, certificate, fixture_entries, key_usage, new_server
from tests.directory.conftest import server_files as server_files
from tests.directory.test_fhir import FIRST, RPPS, SECOND, Api, serving

REFERENCE = Path(__file__).parents[2] / "config" / "relais.toml"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(relais, ["directory", *arguments])


@pytest.fixture(scope="module")
def held(server_files: Path) -> Iterator[Server]:
    with new_server(server_files) as server:
        server.slapd.load(fixture_entries())
        server.start()
        yield server


def configured(held: Server, folder: Path, uri: str = "", register: str = "https://127.0.0.1:9") -> str:
    """The reference configuration, but for the directory."""
    (folder / "reader").write_text("gateway-secret\n")
    (folder / "writer").write_text("admin-secret\n")
    (folder / "key").write_text("the-key\n")
    text = REFERENCE.read_text()
    for name, value in {
        'uri = "ldaps://127.0.0.1:636"': f'uri = "{uri or held.slapd.ldaps_uri}"',
        'bind_dn = "cn=gateway,dc=mssante,dc=fr"': f'bind_dn = "{held.slapd.gateway_dn}"',
        'password_file = "directory.password"': f'password_file = "{folder / "reader"}"',
        '# PEM file the server\'s certificate must chain to.\nca = "anchors.pem"': f'ca = "{held.ca}"',
        'writer_dn = ""\nwriter_password_file = ""': f'writer_dn = "{held.slapd.admin_dn}"\n'
        f'writer_password_file = "{folder / "writer"}"',
        'base = "https://gateway.api.esante.gouv.fr/fhir/v2", api_key_file = ""': f'base = "{register}", '
        f'api_key_file = "{folder / "key"}"',
        "timeout_seconds = 2.0\nconnections": "timeout_seconds = 10.0\nconnections",
    }.items():
        assert name in text, name
        text = text.replace(name, value)
    path = folder / "relais.toml"
    path.write_text(text)
    return str(path)


def test_an_address_and_an_identifier(held: Server, tmp_path: Path) -> None:
    config = configured(held, tmp_path)
    for asked in (DOCTOR.upper(), "899900000001", "99900000001"):
        result = run("resolve", asked, "--config", config, "--json")
        assert result.exit_code == 0, result.output
        found = json.loads(result.output)
        assert (found["address"], found["kind"], found["encryption certificates"]) == (DOCTOR, "PER", 1)
    result = run("resolve", DOCTOR, "--config", config)
    assert "Dr Claire FONTAINE" in result.output


def test_why(held: Server, tmp_path: Path) -> None:
    config = configured(held, tmp_path)
    result = run("resolve", DOCTOR, "--config", config, "--why")
    assert result.exit_code == 0 and held.slapd.ldaps_uri in result.output and "by KeyUsage for" in result.output
    answer = json.loads(
        run("resolve", "899900000001", "--structure", "990000001", "--config", config, "--why", "--json").output
    )
    assert answer["recipient"]["address"] == DOCTOR
    assert {"what": "preferred", "detail": f"{DOCTOR}: the mailbox of the structure concerned"} in answer["why"]


def test_unknown_and_unanswered_are_told_apart(held: Server, tmp_path: Path) -> None:
    config = configured(held, tmp_path)
    for asked in ("nobody@demo-labo.mssante.fr", "*)(mail=*", "810000000000"):
        result = run("resolve", asked, "--config", config)
        assert result.exit_code == 1 and "does not know" in result.output
    away = run("resolve", DOCTOR, "--config", configured(held, tmp_path, uri="ldaps://127.0.0.1:9"))
    assert away.exit_code == 1 and "does not answer" in away.output and "does not know" not in away.output


def test_refreshing_one_professional(held: Server, tmp_path: Path) -> None:
    api = Api()
    with serving(api) as base:
        config = configured(held, tmp_path, register=base)
        result = run("refresh", RPPS, "--config", config)
        assert result.exit_code == 0, result.output
        assert f"added      {FIRST}" in result.output and f"added      {SECOND}" in result.output
        assert json.loads(run("refresh", RPPS, "--config", config, "--json").output)["added"] == []
        unknown = run("refresh", "99900000044", "--config", config)
        assert unknown.exit_code == 1 and "knows no active professional" in unknown.output
        nonsense = run("refresh", "12", "--config", config)
        assert nonsense.exit_code == 1 and "11 digits" in nonsense.output
        api.answers = [(403, {}, b"")]
        refused = run("refresh", RPPS, "--config", config)
        assert refused.exit_code == 1 and "API key" in refused.output and "the-key" not in refused.output


def test_learning_from_mail_neither_waits_nor_raises() -> None:
    class Writer:
        def __init__(self) -> None:
            self.offered: list[str] = []
            self.closed = False

        def offer_certificate(self, address: str, offered: x509.Certificate, evidence: Evidence) -> OfferOutcome:
            self.offered.append(address)
            if address.startswith("bug"):
                raise RuntimeError("a bug")
            return OfferOutcome.LEARNED

        def close(self) -> None:
            self.closed = True

    class Validator:
        def validate(self, *_: object) -> None:
            return None

    def signer(address: str) -> x509.Certificate:
        names = x509.SubjectAlternativeName([x509.RFC822Name(address)])
        return certificate("signer", names, key_usage("digital_signature", "key_encipherment"))

    writer = Writer()
    learning = MailLearning(writer, Validator())  # type: ignore[arg-type]
    mine, bug = signer("a@demo.mssante.fr"), signer("bug@demo.mssante.fr")
    for _ in range(3):
        learning.learn("a@demo.mssante.fr", mine)
    learning.learn("bug@demo.mssante.fr", bug)
    learning._threads.submit(lambda: None).result(10)
    learning.close()
    learning.learn("late@demo.mssante.fr", signer("late@demo.mssante.fr"))
    assert writer.offered == ["a@demo.mssante.fr", "bug@demo.mssante.fr"] and writer.closed
    assert learning.counts == {"learned": 1, "error": 1}
