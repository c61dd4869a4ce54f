"""A real slapd, unprivileged, over ldaps, and certificates about nobody."""

from __future__ import annotations

import datetime
import ipaddress
import os
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from directory.entries import from_recipient
from directory.ldif import LdifEntry
from directory.records import MailboxKind, Recipient
from directory.resolve import Directory, DirectoryOptions
from directory.slapd import PrivateSlapd, SlapdOptions
from tests.support.private import free_port, give, service_directory, start_unprivileged, until

BASE = "dc=mssante,dc=fr"
KEY = ec.generate_private_key(ec.SECP256R1())

DOCTOR = "claire.fontaine@demo-cabinet.mssante.fr"
TEAM = "biologie@demo-labo.mssante.fr"
PATIENT = "299019900100133@patient.demo.mssante.fr"
HIDDEN = "hidden@demo-cabinet.mssante.fr"


def key_usage(*allowed: str) -> x509.KeyUsage:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: name in allowed for name in names})


def certificate(name: str, *extensions: x509.ExtensionType) -> x509.Certificate:
    """Self-signed, one shared key: only what the directory looks at matters."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(KEY.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=2))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(KEY, hashes.SHA256())


ENCRYPTING = certificate("encryption", key_usage("key_agreement"))
SIGNING = certificate("signature", key_usage("content_commitment"))
BOTH = certificate("both", key_usage("digital_signature", "key_encipherment"))
UNRESTRICTED = certificate("unrestricted")


@pytest.fixture(scope="session")
def server_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """chain.pem and key.pem of a server at 127.0.0.1, other.pem that verifies nothing."""
    with service_directory() as folder:
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        server = certificate("slapd", names, x509.BasicConstraints(ca=True, path_length=None))
        (folder / "chain.pem").write_bytes(server.public_bytes(Encoding.PEM))
        key = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / "key.pem").write_bytes(key)
        (folder / "other.pem").write_bytes(SIGNING.public_bytes(Encoding.PEM))
        give(folder)
        yield folder


@dataclass
class Server:
    """One private slapd and what tests do to it."""

    slapd: PrivateSlapd
    state: Path
    ca: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.slapd.prepare()
        give(self.state)
        self.process = start_unprivileged(self.slapd.command())
        until(self.slapd.ready, what="slapd")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(20)
            self.process = None

    def options(self, who: str = "gateway", **changes: object) -> DirectoryOptions:
        dn, password = {
            "gateway": (self.slapd.gateway_dn, "gateway-secret"),
            "admin": (self.slapd.admin_dn, "admin-secret"),
            "anonymous": ("", ""),
        }[who]
        values: dict[str, object] = {"uri": self.slapd.ldaps_uri, "base": BASE, "bind_dn": dn, "password": password}
        return DirectoryOptions(**(values | {"ca_file": self.ca, "timeout_seconds": 10.0} | changes))

    @contextmanager
    def directory(self, who: str = "gateway", **changes: object) -> Iterator[Directory]:
        directory = Directory(self.options(who, **changes))
        try:
            yield directory
        finally:
            directory.close()


@contextmanager
def new_server(files: Path) -> Iterator[Server]:
    """A prepared slapd with an empty database, not started."""
    # In memory where that is: a write to slapd waits for the disk, and a loaded machine's takes its time
    with service_directory("/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp") as folder:
        state = folder / "state"
        slapd = PrivateSlapd(
            SlapdOptions(
                state=state,
                port=free_port(),
                certificate_chain=files / "chain.pem",
                key=files / "key.pem",
                ca=files / "chain.pem",
                admin_password="admin-secret",
                gateway_password="gateway-secret",
            )
        )
        server = Server(slapd, state, files / "chain.pem")
        slapd.prepare()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
def server(server_files: Path) -> Iterator[Server]:
    """A slapd of the test's own, not started."""
    with new_server(server_files) as server:
        yield server


RECIPIENTS = (
    Recipient(
        address=DOCTOR,
        kind=MailboxKind.PER,
        display_name="Dr Claire FONTAINE",
        encryption_certificates=(ENCRYPTING,),
        signing_certificates=(SIGNING,),
        id_nat="899900000001",
        profession="10",
        structure="1990000001",
        organisation="Cabinet de démonstration",
    ),
    Recipient(TEAM, MailboxKind.ORG, "Biologie", id_nat="1990000002", structure="1990000002", organisation="Labo"),
    Recipient(PATIENT, MailboxKind.PATIENT, "", encryption_certificates=(BOTH,), signing_certificates=(BOTH,)),
    Recipient("machine@demo-labo.mssante.fr", MailboxKind.APP, "Automate", structure="1990000002"),
    Recipient('o+dd,"=#@demo-cabinet.mssante.fr', MailboxKind.PER, "Odd Address"),
    Recipient("shared@demo-labo.mssante.fr", MailboxKind.PER, "Person"),
    Recipient("shared@demo-labo.mssante.fr", MailboxKind.ORG, "Team"),
)


def fixture_entries() -> Iterable[LdifEntry]:
    yield from (from_recipient(recipient, BASE) for recipient in RECIPIENTS)
    yield from_recipient(
        Recipient(HIDDEN, MailboxKind.PER, "Hidden Person", id_nat="899900000009"), BASE, red_list=True
    )


@pytest.fixture(scope="session")
def running(server_files: Path) -> Iterator[Server]:
    """A started slapd with `RECIPIENTS`, shared: tests only read it, or publish addresses of their own."""
    with new_server(server_files) as server:
        assert server.slapd.load(fixture_entries()) == len(RECIPIENTS) + 1
        server.start()
        yield server


@pytest.fixture
def directory(running: Server) -> Iterator[Directory]:
    """The gateway's view of `running`."""
    with running.directory() as directory:
        yield directory


@pytest.fixture
def admin(running: Server) -> Iterator[Directory]:
    with running.directory("admin") as directory:
        yield directory
