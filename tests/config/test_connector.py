"""The connector's one section, what it stands for, how it is written by asking, and its own certificate."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import stat
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from argon2 import PasswordHasher
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, pkcs12

from config import doctor
from config.cli import relais
from config.connector.discovery import Found, Server, discover, read_autoconfig
from config.connector.examining import examine_connector
from config.connector.local_accounts import keep_accounts
from config.connector.local_certificate import keep_local_certificate
from config.connector.sections import ConnectAccountSettings, ConnectDirectorySettings, ConnectSettings
from config.connector.serving import ways_of
from config.settings import SettingsError, load
from directory.pool import DirectoryUnavailableError
from directory.srv import SrvRecord
from tests.support.dns_server import DnsServer, dns_server
from trust.accounts import Accounts
from trust.accounts_administration import Administration
from trust.identities import Identity
from trust.issuing import DemonstrationAuthority
from trust.journal import Journal
from trust.revocation.fetching import FetchError
from trust.store import metadata
from trust.store.database import Database
from trust.vault import KeyUse, KeyVault

REFERENCE = Path(__file__).parents[2] / "config" / "connect.toml"
ADDRESS = "jeanne.exemple@medecin.example"


def test_every_key_stands_in_the_reference() -> None:
    text = REFERENCE.read_text()
    for section in (ConnectSettings, ConnectDirectorySettings, ConnectAccountSettings):
        for key in msgspec.structs.fields(section):
            if key.name not in ("directory", "accounts"):
                assert f"\n{key.name} = " in text, key.name


def test_one_section_stands_for_a_whole_gateway() -> None:
    loaded = load(REFERENCE, {})
    settings = loaded.settings
    assert settings.connect is not None
    assert settings.operator.domains == ("medecin.example.mssante.fr",)
    assert settings.operator.postmaster == "jeanne.exemple@medecin.example.mssante.fr"
    (collected,) = settings.collect
    assert collected.name == "jeanne-exemple-medecin-example-mssante-f"
    assert collected.stays == "encrypted"
    assert collected.deliver_to == collected.user == settings.operator.postmaster
    assert settings.spool.longest_retry_seconds == 60.0
    assert not settings.evaluation.dns
    # all correspondents have one peer here, the account: none of them may pause what the others encrypt
    assert settings.smime.failures_per_hour >= 1_000_000
    assert settings.letters == ()


@pytest.mark.parametrize(
    ("wrong", "right", "said"),
    [
        ('address = "jeanne', 'address = "Jeanne', "lower case"),
        ("imaps_port = 10993", "imaps_port = 70000", "imaps_port"),
        ('smtp_tls = "implicit"', 'smtp_tls = "none"', "smtp_tls"),
        ('stays = "encrypted"', 'stays = "clear"', "stays"),
        ("sender_name", "sendername", "sendername"),
        ("[connect.directory]", "[other]", "directory"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, wrong: str, right: str, said: str) -> None:
    text = REFERENCE.read_text()
    assert wrong in text
    (tmp_path / "relais.toml").write_text(text.replace(wrong, right))
    with pytest.raises(SettingsError, match=said):
        load(tmp_path / "relais.toml", {})


def test_the_same_mailbox_twice_and_none_are_refused(tmp_path: Path) -> None:
    head, _, account = REFERENCE.read_text().partition("[[connect.accounts]]")
    file = tmp_path / "relais.toml"
    file.write_text(f"{head}[[connect.accounts]]{account}[[connect.accounts]]{account}")
    with pytest.raises(SettingsError, match="same address"):
        load(file, {})
    file.write_text(head.replace("[connect.directory]", "accounts = []\n[connect.directory]"))
    with pytest.raises(SettingsError, match="at least one"):
        load(file, {})


def test_other_sections_go_before_what_connect_stands_for(tmp_path: Path) -> None:
    file = tmp_path / "relais.toml"
    file.write_text(REFERENCE.read_text() + "\n[spool]\nlongest_retry_seconds = 7\n[keys]\ntoken = 'carte'\n")
    settings = load(file, {}).settings
    assert settings.spool.longest_retry_seconds == 7.0
    assert settings.spool.first_retry_seconds == 5.0
    assert settings.keys.token == "carte"


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ("[[collect]]\nname = 'x'", "no \\[collect\\]"),
        ("[[letters]]\nsender = 'x@y.example'", "no \\[letters\\]"),
        ("[submission]\nport = 587", "no \\[submission\\]"),
        ("[[oidc]]\nissuer = 'x'", "no \\[oidc\\]"),
        ("[dkim]\nselector = 'x'", "no \\[dkim\\]"),
    ],
)
def test_what_a_connector_does_not_serve_is_refused(tmp_path: Path, beside: str, said: str) -> None:
    file = tmp_path / "relais.toml"
    file.write_text(f"{REFERENCE.read_text()}\n{beside}\n")
    with pytest.raises(SettingsError, match=said):
        load(file, {})
    file.write_text(f"spool = 5\n{REFERENCE.read_text()}")
    with pytest.raises(SettingsError, match="spool is a section"):
        load(file, {})


def test_ways_out_are_what_the_file_says(tmp_path: Path) -> None:
    shutil.copy(REFERENCE, tmp_path / "relais.toml")
    loaded = load(tmp_path / "relais.toml", {})
    connect = loaded.settings.connect
    assert connect is not None
    (reason,) = ways_of(loaded, connect).unusable.values()
    assert "cannot be used" in reason
    authority = DemonstrationAuthority.create("Confiance")
    (tmp_path / "anchors.pem").write_bytes(authority.root.public_bytes(Encoding.PEM))
    (tmp_path / "jeanne.password").write_text("secret")
    ways = ways_of(loaded, connect)
    assert not ways.unusable
    (made,), (collected,) = ways.relays, ways.collected
    assert made.secret is collected.secret, "one who signs in, at both servers"
    assert (made.host, made.port, made.implicit_tls) == ("smtp.example.mssante.fr", 465, True)
    assert made.secret is not None
    assert made.secret() == "secret"
    assert "secret" not in repr(made)
    found = list(examine_connector(loaded))
    assert any(level == "problem" and "local.password" in said for level, said in found)
    assert any(level == "problem" and "recus" in said for level, said in found)
    assert any(level == "problem" and "vault" in said for level, said in found)
    assert not any("trust list" in each.subject for each in doctor.examine(tmp_path, tmp_path / "relais.toml"))


def test_one_account_that_cannot_be_used_stops_no_other(tmp_path: Path) -> None:
    head, _, account = REFERENCE.read_text().partition("[[connect.accounts]]")
    other = account.replace("jeanne.", "paul.")
    (tmp_path / "relais.toml").write_text(f"{head}[[connect.accounts]]{account}[[connect.accounts]]{other}")
    authority = DemonstrationAuthority.create("Confiance")
    (tmp_path / "anchors.pem").write_bytes(authority.root.public_bytes(Encoding.PEM))
    (tmp_path / "paul.password").write_text("secret")
    loaded = load(tmp_path / "relais.toml", {})
    assert loaded.settings.connect is not None
    ways = ways_of(loaded, loaded.settings.connect)
    left, usable = (each.address for each in loaded.settings.connect.accounts)
    assert [each.address for each in ways.relays] == [each.deliver_to for each in ways.collected] == [usable]
    assert ways.unusable.keys() == {left}


def test_secrets_and_folders_that_are_open_are_told(tmp_path: Path) -> None:
    text = REFERENCE.read_text().replace('refresh_token_file = ""', 'refresh_token_file = "refresh"')
    (tmp_path / "relais.toml").write_text(text.replace('\ncertificate = ""', '\ncertificate = "own.pem"'))
    for name in ("refresh", "own.pem"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o644)
    (tmp_path / "recus").mkdir(mode=0o755)
    said = [sentence for level, sentence in examine_connector(load(tmp_path / "relais.toml", {})) if level == "problem"]
    for name in ("refresh holds a secret", "own.pem holds a secret", "recus is open to everybody"):
        assert any(name in each for each in said), said
    (tmp_path / "recus").chmod(0o770)
    said = [sentence for level, sentence in examine_connector(load(tmp_path / "relais.toml", {})) if level == "problem"]
    assert not any("recus" in each for each in said)


def test_each_mailbox_has_its_own_password_and_keeps_what_was_said_of_it(tmp_path: Path) -> None:
    head, _, account = REFERENCE.read_text().partition("[[connect.accounts]]")
    own = account.replace("jeanne.", "paul.").replace('local_password_file = ""', 'local_password_file = "paul.local"')
    both = f"{head}[[connect.accounts]]{account}[[connect.accounts]]{own}"
    file = tmp_path / "relais.toml"
    (tmp_path / "local.password").write_text("commun")
    (tmp_path / "paul.local").write_text("de paul")
    vault = KeyVault.create(tmp_path / "vault")
    database = Database(f"sqlite:///{tmp_path / 'relais.db'}")
    metadata.create_all(database.engine)
    hasher = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
    accounts = Accounts(database, vault, hasher=hasher)
    administration = Administration(accounts, Journal(vault, "n1"))

    def start(text: str) -> None:
        file.write_text(text)
        loaded = load(file, {})
        assert loaded.settings.connect is not None
        keep_accounts(loaded, loaded.settings.connect, vault, accounts, administration)

    def opens(who: str, password: str) -> bool:
        return isinstance(accounts.authenticate(f"{who}.exemple@medecin.example.mssante.fr", password), Identity)

    try:
        start(both)
        assert opens("jeanne", "commun")
        assert opens("paul", "de paul")
        assert not opens("paul", "commun")
        # what somebody says of one of them stays, until the file says something new
        administration.set_password("jeanne.exemple@medecin.example.mssante.fr", "plus personnel", "J. Exemple")
        start(both)
        assert opens("jeanne", "plus personnel")
        (tmp_path / "local.password").write_text("commun, changé")
        start(both)
        assert opens("jeanne", "commun, changé")
        # a file that cannot be read costs its own mailbox nothing, and the others neither
        (tmp_path / "paul.local").unlink()
        start(both)
        assert opens("paul", "de paul")
        assert opens("jeanne", "commun, changé")
        (tmp_path / "paul.local").write_text("de paul")
        # who has left takes no mailbox along
        start(f"{head}[[connect.accounts]]{account}")
        assert not opens("paul", "de paul")
        assert accounts.by_address("paul.exemple@medecin.example.mssante.fr") is not None
        start(both)
        assert opens("paul", "de paul")
    finally:
        database.close()


# The certificate of this machine


def test_the_local_certificate_is_good_for_this_machine_alone(tmp_path: Path) -> None:
    assert keep_local_certificate(tmp_path)
    assert not keep_local_certificate(tmp_path)
    assert stat.S_IMODE((tmp_path / "local.key").stat().st_mode) == 0o600
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "local.pem", tmp_path / "local.key")
    for name, good in (("127.0.0.1", True), ("localhost", True), ("imap.example.fr", False)):
        client = ssl.create_default_context(cafile=str(tmp_path / "local-ca.pem"))
        assert shakes_hands(server, client, name) is good
    # made anew before it ends, and when the key is another one
    late = datetime.now(UTC) + timedelta(days=3630)
    assert keep_local_certificate(tmp_path, late)
    before = (tmp_path / "local.pem").read_bytes()
    (tmp_path / "local.key").write_bytes(b"")
    assert keep_local_certificate(tmp_path)
    authority, leaf = (
        x509.load_pem_x509_certificates((tmp_path / name).read_bytes())[0] for name in ("local-ca.pem", "local.pem")
    )
    assert (tmp_path / "local.pem").read_bytes() != before
    leaf.verify_directly_issued_by(authority)


def shakes_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> bool:
    one, other = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = server.wrap_bio(one, other, server_side=True)
    ours = client.wrap_bio(other, one, server_hostname=name)
    for _ in range(4):
        for each in (ours, theirs):
            try:
                each.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    return ours.getpeercert() is not None


# What a domain says of itself


def lookup(records: dict[str, list[SrvRecord]]) -> object:
    return lambda domain, service: records.get(service, [])


def nothing(url: str, most: int) -> bytes:
    raise FetchError("nobody there")


def test_srv_records_say_where() -> None:
    records = {
        "_imaps._tcp": [SrvRecord(10, 0, 1993, "b.example"), SrvRecord(5, 0, 993, "imap.example")],
        "_submission._tcp": [SrvRecord(0, 0, 587, "smtp.example")],
        "_ldaps._tcp": [SrvRecord(0, 0, 636, "annuaire.example")],
    }
    found = discover("medecin.example", lookup(records), nothing)
    assert found == Found(
        Server("imap.example", 993), Server("smtp.example", 587, "starttls"), Server("annuaire.example", 636)
    )
    records["_submissions._tcp"] = [SrvRecord(0, 0, 465, "smtp.example")]
    assert discover("medecin.example", lookup(records), nothing).smtp == Server("smtp.example", 465)


def test_a_dns_that_does_not_answer_leaves_the_file() -> None:
    asked = []

    def silent(domain: str, service: str) -> list[SrvRecord]:
        raise DirectoryUnavailableError("no")

    def get(url: str, most: int) -> bytes:
        asked.append(url)
        if "well-known" not in url:
            raise FetchError("404")
        return FILE

    found = discover("medecin.example", silent, get)
    assert found == Found(Server("imap.example", 993), Server("smtp.example", 587, "starttls"))
    assert asked == [
        "https://autoconfig.medecin.example/mail/config-v1.1.xml",
        "https://medecin.example/.well-known/autoconfig/mail/config-v1.1.xml",
    ]


FILE = b"""<?xml version="1.0"?>
<clientConfig version="1.1"><emailProvider id="medecin.example">
<incomingServer type="pop3">
  <hostname>pop.example</hostname><port>995</port><socketType>SSL</socketType></incomingServer>
<incomingServer type="imap">
  <hostname>clair.example</hostname><port>143</port><socketType>plain</socketType></incomingServer>
<incomingServer type="imap">
  <hostname>IMAP.example</hostname><port>993</port><socketType>SSL</socketType></incomingServer>
<outgoingServer type="smtp">
  <hostname>smtp.example</hostname><port>587</port><socketType>STARTTLS</socketType></outgoingServer>
</emailProvider></clientConfig>"""


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b"<clientConfig/>",
        b'<!DOCTYPE c [<!ENTITY x "imap.example">]>' + FILE.partition(b"?>")[2].replace(b"IMAP.example", b"&x;"),
        FILE.replace(b"993", b"0").replace(b"587", b"99999"),
        FILE.replace(b"IMAP.example", b"a b").replace(b"smtp.example", b"-x"),
        FILE.replace(b"SSL", b"plain").replace(b"STARTTLS", b"plain"),
        b"\xff" * 100,
    ],
)
def test_a_file_that_is_none_says_nothing(content: bytes) -> None:
    assert read_autoconfig(content) == Found()


# The first time


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with dns_server() as server:
        server.add("_imaps._tcp.medecin.example", "SRV", "0 0 993 imap.medecin.example.")
        server.add("_submissions._tcp.medecin.example", "SRV", "0 0 465 smtp.medecin.example.")
        server.add("_ldaps._tcp.medecin.example", "SRV", "0 0 636 annuaire.medecin.example.")
        yield server


async def test_what_the_dns_says_is_not_asked(tmp_path: Path, dns: DnsServer) -> None:
    authority = DemonstrationAuthority.create("Confiance")
    (tmp_path / "racines.pem").write_bytes(authority.root.public_bytes(Encoding.PEM))
    issued = authority.issue_mailbox(ADDRESS, "Dr Jeanne EXEMPLE", "encryption")
    (tmp_path / "jeanne.p12").write_bytes(
        pkcs12.serialize_key_and_certificates(
            b"jeanne", issued.key, issued.certificate, list(issued.chain), BestAvailableEncryption(b"phrase")
        )
    )
    state = tmp_path / "etat"
    answers = [
        str(tmp_path / "absent.pem"),
        str(tmp_path / "racines.pem"),
        "",  # no intermediates
        "pas une adresse",
        ADDRESS.upper(),
        "y",  # IMAP
        "y",  # SMTP
        "",  # a password
        "mot de passe",
        ADDRESS,  # named already
        "jeanne-exemple@medecin.example",  # written like the first, in a file's name
        "y",
        "y",
        "",
        "autre mot de passe",
        "",  # no further mailbox
        "tout",  # none of the three
        "everything",
        str(tmp_path / "absent" / "recus"),
        "recus",
        "ldap://annuaire.example",  # in clear
        "",  # the directory found
        "",  # its base
        "",  # as nobody
        str(tmp_path / "racines.pem"),  # no key
        str(tmp_path / "jeanne.p12"),
        "phrase",
        "",
    ]
    result = await asyncio.to_thread(
        CliRunner().invoke,
        relais,
        ["connect", "--init", "--state", str(state), "--dns", dns.address],
        input="\n".join(answers) + "\n",
    )
    assert result.exit_code == 0, result.output
    assert "mot de passe" not in result.output
    assert "imap.medecin.example, port 993, TLS" in result.output
    settings = load(state / "relais.toml", {}).settings
    assert settings.connect is not None
    assert (state / "recus").is_dir()
    account, other = settings.connect.accounts
    assert (account.stays, other.stays) == ("everything", "everything")
    assert account.name != other.name
    assert (state / other.password_file).read_text() == "autre mot de passe"
    assert stat.S_IMODE(state.stat().st_mode) == 0o711
    assert stat.S_IMODE((state / "recus").stat().st_mode) == 0o700
    assert (account.address, account.imap_host, account.smtp_host) == (
        ADDRESS,
        "imap.medecin.example",
        "smtp.medecin.example",
    )
    assert settings.directory.uri == "ldaps://annuaire.medecin.example:636"
    assert (state / account.password_file).read_text() == "mot de passe"
    for secret in (account.password_file, "local.password"):
        assert stat.S_IMODE((state / secret).stat().st_mode) == 0o600
    vault = KeyVault.open(state / "vault")
    assert vault.certificates(ADDRESS, KeyUse.ENCRYPTION) == (issued.certificate,), result.output
    assert vault.certificates(ADDRESS, KeyUse.SIGNING) == ()
    again = await asyncio.to_thread(CliRunner().invoke, relais, ["connect", "--init", "--state", str(state)])
    assert again.exit_code == 1
    assert "exists" in again.output


def test_a_directory_of_others_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("")
    result = CliRunner().invoke(relais, ["connect", "--init", "--state", str(tmp_path)])
    assert result.exit_code == 1
    assert "not Relais's" in result.output
    assert [each.name for each in tmp_path.iterdir()] == ["passwd"]


def test_without_a_file_it_says_how_to_begin(tmp_path: Path) -> None:
    result = CliRunner().invoke(relais, ["connect", "--state", str(tmp_path)])
    assert result.exit_code == 1
    assert "relais connect --init" in result.output
