"""What the configuration makes of discovery: the commands over a real name server, the door's key, doctor's word."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from structlog.testing import capture_logs

from config.cli import relais
from config.discovery_service import client_services, discovery_findings, dns_records, door_files, profile_signer
from config.gateway.stages import dkim_keys
from config.settings import Loaded, SettingsError, load
from mta.mailboxes.services import Security
from tests.support.discovering import publish
from tests.support.dns_server import Fault, dns_server
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


PATIENTS = "patient.mssante.fr"


def configured(place: Path, *, without: Sequence[str] = (), patients: bool = False, **keys: str) -> Loaded:
    """With these keys of [discovery]; `dns` is the name server. `without` these sections; `patients`: their domain is
    ours."""
    text = REFERENCE.read_text()
    text = text.replace("\nservers = []\n", f"\nservers = {keys.pop('dns', '[]')}\n", 1)
    if patients:
        text = text.replace(f'domains = ["{DOMAIN}"]', f'domains = ["{DOMAIN}", "{PATIENTS}"]', 1)
    head, section, rest = re.split(r"(\n\[discovery\]\n.*?)(?=\n\[)", text, maxsplit=1, flags=re.DOTALL)
    for name, value in keys.items():
        section, found = re.subn(rf"\n{name} = .*", f"\n{name} = {value}", section)
        assert found == 1
    text = head + section + rest
    for name in without:
        text, found = re.subn(rf"\n\[{name}\]\n.*?(?=\n\[)", "", text, count=1, flags=re.DOTALL)
        assert found == 1
    path = place / "relais.toml"
    path.write_text(text)
    return load(path, {})


async def doctor(place: Path, *options: str) -> Result:
    """`relais doctor --dns`."""
    arguments = ["doctor", "--dns", "--config", str(place / "relais.toml"), *options]
    return await asyncio.to_thread(CliRunner().invoke, relais, arguments)


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


def test_a_port_that_is_not_open_is_not_told_of(place: Path) -> None:
    services = client_services(configured(place, without=["submissions"]))
    assert [(each.port, each.security) for each in services.submission] == [(587, Security.STARTTLS)]
    keys = {"chain": '"server.pem"', "key": '"server.key"'}
    with pytest.raises(SettingsError, match="submission"):  # the second door is the first one's
        client_services(configured(place, without=["submission"], **keys))


def test_the_door_is_on_the_port_programs_ask_at(place: Path) -> None:
    loaded = configured(place, site_port="8443")
    findings = list(discovery_findings(loaded))
    assert [text for level, text in findings if level == "problem" and "port 8443" in text]
    assert not client_services(loaded).mta_sts, "nobody could fetch it"
    assert not any(each.name.startswith("_mta-sts.") for each in dns_records(loaded))
    findings = list(discovery_findings(configured(place, port="8443", site_port="443")))
    assert [level for level, _ in findings] == ["ok"]


def test_doctor_says_what_patients_domains_need(place: Path) -> None:
    found = list(discovery_findings(configured(place, patients=True)))
    assert [level for level, text in found if "port 80" in text and PATIENTS in text] == ["notice"]


def test_each_certificate_is_compared_with_the_names_it_is_shown_under(
    place: Path, authority: DemonstrationAuthority
) -> None:
    """The door has one every telephone believes, the mail services another."""
    names = ["aide.example", *(f"{label}.{DOMAIN}" for label in ("autoconfig", "autodiscover", "mta-sts"))]
    issued = authority.issue_server(names)
    (place / "door.pem").write_bytes(issued.pem_chain())
    (place / "door.key").write_bytes(issued.pem_key())
    keys = {"site": '"aide.example"', "chain": '"door.pem"', "key": '"door.key"'}
    assert [level for level, _ in discovery_findings(configured(place, **keys))] == ["ok", "ok"]
    found = list(discovery_findings(configured(place, mail_host='"mail.example"', **keys)))
    assert [level for level, _ in found] == ["ok", "notice"]
    assert "server.pem does not name mail.example" in found[1][1]
    (place / "server.pem").unlink()
    found = list(discovery_findings(configured(place, **keys)))
    assert [level for level, _ in found] == ["problem"]


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
    with capture_logs() as logs:
        assert [signer().certificate for _ in range(3)] == [renewed.certificate] * 3
    assert len(logs) == 1, "strangers ask for profiles: said once, until something changes"


async def test_doctor_prints_what_to_publish_and_finds_what_is(place: Path) -> None:
    """Over a real name server: nothing there, everything there, then one record of somebody else's."""
    async with dns_server() as server:
        configured(place, dns=f'["{server.address}"]')

        async def said(*options: str) -> tuple[int, str]:
            result = await doctor(place, *options)
            return result.exit_code, result.stdout

        status, printed = await said("--json")
        records = json.loads(printed)
        assert status == 0
        kinds = {each["kind"] for each in records}
        assert kinds == {"SRV", "CNAME", "MX", "TXT", "TLSA"}
        assert any("p=" in each["value"] and "_domainkey" in each["name"] for each in records)
        status, printed = await said("--compare")
        assert (status, printed.count("not published")) == (1, len(records))
        server.add(HOST, "A", "192.0.2.1")
        publish(server, records)
        status, printed = await said("--compare")
        assert (status, "not published" in printed) == (0, False)
        server.records[f"_imaps._tcp.{DOMAIN}", "SRV"] = ["0 1 993 old.example."]
        server.records[DOMAIN, "TXT"] = ['"v=spf1 -all"', '"something=else"']
        status, printed = await said("--compare")
        assert (status, printed.count("something else is published")) == (1, 2)


async def test_a_patients_domain_leads_to_no_web_site(place: Path) -> None:
    """There mail programs would say addresses, which hold a matricule; over plain HTTP too."""
    async with dns_server() as server:
        configured(place, dns=f'["{server.address}"]', patients=True)
        server.add(HOST, "A", "192.0.2.1")
        publish(server, json.loads((await doctor(place, "--json")).stdout))
        assert (await doctor(place, "--compare")).exit_code == 0
        server.add(DOMAIN, "A", "192.0.2.80")  # nobody's matricule
        server.add(PATIENTS, "A", "192.0.2.1")  # the door itself
        assert (await doctor(place, "--compare")).exit_code == 0
        server.add(PATIENTS, "AAAA", "2001:db8::80")
        astray = await doctor(place, "--compare", "--json")
        assert astray.exit_code == 1
        assert f"{PATIENTS} leads to 2001:db8::80" in astray.stderr
        assert json.loads(astray.stdout)
        assert (await doctor(place)).exit_code == 0
        del server.records[PATIENTS, "AAAA"]
        server.add("autoconfig.mssante.fr", "A", "192.0.2.81")  # above the host of the MX record
        astray = await doctor(place, "--compare")
        assert astray.exit_code == 1
        assert "autoconfig.mssante.fr leads to 192.0.2.81" in astray.stderr
        assert astray.stderr.count("leads to") == 1
        server.faults[PATIENTS] = Fault.SERVFAIL
        assert f"nobody says whether {PATIENTS}" in (await doctor(place, "--compare")).stderr


async def test_what_cannot_be_read_is_said(place: Path) -> None:
    """A record that is left out is not one that need not be there."""
    async with dns_server() as server:
        configured(place, dns=f'["{server.address}"]')
        server.add(HOST, "A", "192.0.2.1")
        publish(server, json.loads((await doctor(place, "--json")).stdout))
        assert (await doctor(place, "--compare")).exit_code == 0
        (place / "dkim.key").write_bytes(b"no key")
        (place / "operator.pem").unlink()
        told = await doctor(place, "--json")
        assert told.exit_code == 0
        assert "dkim.key" in told.stderr
        assert "operator.pem" in told.stderr
        names = {each["name"] for each in json.loads(told.stdout)}
        assert not any("_domainkey" in name for name in names)
        assert f"_mta-sts.{DOMAIN}" not in names, "the number would be another policy's"
        compared = await doctor(place, "--compare")
        assert (compared.exit_code, "not published" in compared.stdout) == (1, False)


def test_an_encrypted_dkim_key_is_a_sentence(place: Path) -> None:
    """At a gateway's start as well."""
    key = rsa.generate_private_key(65537, 2048)
    (place / "dkim.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    )
    with pytest.raises(SettingsError, match="unencrypted"):
        dkim_keys(configured(place))


async def test_without_a_door_nothing_leads_to_one(place: Path) -> None:
    configured(place, without=["discovery"])
    records = {each["name"]: each for each in json.loads((await doctor(place, "--json")).stdout)}
    assert not {f"autoconfig.{DOMAIN}", f"autodiscover.{DOMAIN}", f"_mta-sts.{DOMAIN}"} & set(records)
    assert records[f"_autodiscover._tcp.{DOMAIN}"]["value"] == "0 0 0 ."
    assert records[f"_submissions._tcp.{DOMAIN}"]["value"] == f"0 1 465 {HOST}."
    configured(place, without=["discovery", "submission", "submissions"])
    told = await doctor(place, "--json")
    assert told.exit_code == 0
    assert not any(each["kind"] == "SRV" for each in json.loads(told.stdout))
