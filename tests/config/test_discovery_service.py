"""What the configuration makes of discovery: the commands over a real name server, the door's key, doctor's word."""

from __future__ import annotations

import asyncio
import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from config.cli import relais
from config.discovery_service import client_services, discovery_findings, door_files, profile_signer
from config.settings import Loaded, SettingsError, load
from mta.mailboxes.services import Security
from tests.support.discovering import publish
from tests.support.dns_server import dns_server
from trust.issuing import DemonstrationAuthority

REFERENCE = Path(__file__).parents[2] / "config" / "relais.toml"
HOST = "relais.labo-tilleuls.mssante.fr"
DOMAIN = "labo-tilleuls.mssante.fr"


@pytest.fixture(scope="module")
def authority() -> DemonstrationAuthority:
    return DemonstrationAuthority.create("essai")


@pytest.fixture
def place(tmp_path: Path, authority: DemonstrationAuthority) -> Iterator[Path]:
    """The reference configuration with the files it names that matter here."""
    names = [HOST, *(f"{label}.{DOMAIN}" for label in ("autoconfig", "autodiscover", "mta-sts"))]
    for name, issued in (
        ("server", authority.issue_server(names)),
        ("operator", authority.issue_operator(HOST, "Labo", "1920012345", [HOST], "p256")),
    ):
        (tmp_path / f"{name}.pem").write_bytes(issued.pem_chain())
        (tmp_path / f"{name}.key").write_bytes(issued.pem_key())
    dkim = rsa.generate_private_key(65537, 2048)
    pem = dkim.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "dkim.key").write_bytes(pem)
    (tmp_path / "ca.pem").write_bytes(authority.root.public_bytes(Encoding.PEM))
    yield tmp_path


def configured(place: Path, **keys: str) -> Loaded:
    """With these keys of [discovery]; `dns` is the name server."""
    text = REFERENCE.read_text()
    text = text.replace("\nservers = []\n", f"\nservers = {keys.pop('dns', '[]')}\n", 1)
    head, section, rest = re.split(r"(\n\[discovery\]\n.*?)(?=\n\[)", text, maxsplit=1, flags=re.DOTALL)
    for name, value in keys.items():
        section, found = re.subn(rf"\n{name} = .*", f"\n{name} = {value}", section)
        assert found == 1
    path = place / "relais.toml"
    path.write_text(head + section + rest)
    return load(path, {})


def test_the_defaults_are_the_usual_ports(place: Path) -> None:
    services = client_services(configured(place))
    assert (services.imap.host, services.imap.port) == (HOST, 993)
    assert [(each.port, each.security) for each in services.submission] == [
        (465, Security.TLS),
        (587, Security.STARTTLS),
    ]
    assert services.site.host == HOST
    assert services.address_book is None
    assert not services.authorities


def test_each_key_has_its_effect(place: Path) -> None:
    services = client_services(
        configured(
            place,
            site='"aide.example"',
            site_port="8443",
            mail_host='"Mail.Example"',
            submissions_port="0",
            sieve_port="4190",
            address_book_host='"annuaire.example"',
            ca='"ca.pem"',
        )
    )
    assert (services.link(), services.imap.host) == ("https://aide.example:8443/", "mail.example")
    assert [each.port for each in services.submission] == [587]
    assert services.sieve is not None
    assert services.address_book is not None
    assert services.address_book.base == "dc=mssante,dc=fr"
    assert len(services.authorities) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [("site", '"a b"'), ("mail_host", '"[::1]"'), ("imaps_port", "0"), ("ca", '"absent.pem"'), ("chain", '"x.pem"')],
)
def test_what_cannot_be_is_a_sentence(place: Path, key: str, value: str) -> None:
    loaded = configured(place, **{key: value})
    with pytest.raises(SettingsError, match="discovery"):
        client_services(loaded)
        door_files(loaded)
    assert [level for level, _ in discovery_findings(loaded)] == ["problem"]


def test_nothing_to_send_with_is_a_sentence(place: Path) -> None:
    with pytest.raises(SettingsError, match="submission"):
        client_services(configured(place, submissions_port="0", submission_port="0"))


def test_doctor_names_what_the_certificate_lacks(place: Path) -> None:
    ((level, text),) = discovery_findings(configured(place))
    assert (level, "names all" in text) == ("ok", True)
    ((level, text),) = discovery_findings(configured(place, site='"aide.example"'))
    assert (level, "aide.example" in text) == ("notice", True)


def test_a_renewed_key_signs_once_it_fits(place: Path, authority: DemonstrationAuthority) -> None:
    chain, key = place / "server.pem", place / "server.key"
    signer = profile_signer(chain, key)
    before = signer().certificate
    renewed = authority.issue_server([HOST])
    chain.write_bytes(renewed.pem_chain())
    assert signer().certificate == before  # the key is still the old one's
    key.write_bytes(renewed.pem_key())
    assert signer().certificate == renewed.certificate
    key.unlink()
    assert signer().certificate == renewed.certificate


async def test_doctor_prints_what_to_publish_and_finds_what_is(place: Path) -> None:
    """Over a real name server: nothing there, everything there, then one record of somebody else's."""
    async with dns_server() as server:
        configured(place, dns=f'["{server.address}"]')

        async def doctor(*options: str) -> tuple[int, str]:
            arguments = ["doctor", "--dns", "--config", str(place / "relais.toml"), *options]
            result = await asyncio.to_thread(CliRunner().invoke, relais, arguments)
            return result.exit_code, result.stdout

        status, printed = await doctor("--json")
        records = json.loads(printed)
        assert status == 0
        kinds = {each["kind"] for each in records}
        assert kinds == {"SRV", "CNAME", "MX", "TXT", "TLSA"}
        assert any("p=" in each["value"] and "_domainkey" in each["name"] for each in records)
        status, printed = await doctor("--compare")
        assert (status, printed.count("not published")) == (1, len(records))
        server.add(HOST, "A", "192.0.2.1")
        publish(server, records)
        status, printed = await doctor("--compare")
        assert (status, "not published" in printed) == (0, False)
        server.records[f"_imaps._tcp.{DOMAIN}", "SRV"] = ["0 1 993 old.example."]
        server.records[DOMAIN, "TXT"] = ['"v=spf1 -all"', '"something=else"']
        status, printed = await doctor("--compare")
        assert (status, printed.count("something else is published")) == (1, 2)


def test_the_command_writes_a_sheet_nobody_else_reads(place: Path) -> None:
    configured(place)
    output = place / "fiche.pdf"
    arguments = ["mailbox", "sheet", "--config", str(place / "relais.toml"), "-o", str(output)]
    done = CliRunner().invoke(relais, [*arguments, f"resultats@{DOMAIN}", "--name", "Laboratoire"])
    assert done.exit_code == 0, done.output
    assert output.read_bytes().startswith(b"%PDF")
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    wrong = CliRunner().invoke(relais, [*arguments, "279035121518989@patient.example"])
    assert wrong.exit_code == 1
    assert "279035121518989" not in wrong.output
