"""The probe against real services: what they present, why it is believed or not, and one sentence for hostile ones."""

from __future__ import annotations

import functools
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

import trust.probe
from trust.certificates import CertificateValidator
from trust.issuing import DemonstrationAuthority, Issued
from trust.names import DistinguishedName
from trust.probe import ProbeReport, probe
from trust.revocation import RevocationState, RevocationStatus
from trust.starttls import StartTls
from trust.tls import operator_client_context, operator_server_context, service_server_context
from trust.trustlist import ListedDomain, TrustList, write_trust_list

Talk = Callable[[socket.socket], None]


class Space:
    """One network: an authority, two operators' files, a list."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = DemonstrationAuthority.create("Démonstration")
        self.validator = CertificateValidator([self.authority.root])
        self.anchors = directory / "anchors.pem"
        self.anchors.write_bytes(self.authority.root.public_bytes(serialization.Encoding.PEM))
        self.there = self.authority.issue_operator("mss.there.example", "LÀ-BAS", "1750000002", ["127.0.0.1"])
        self.here = self.authority.issue_operator("mss.here.example", "ICI", "1750000001", ["127.0.0.1"])
        signer = self.authority.issue_list_signer()
        name = DistinguishedName.from_x509(self.there.certificate.subject)
        rows = [ListedDomain(f"d{number}.example", name, "") for number in range(3)]
        xml = write_trust_list(rows, datetime.now(UTC), signer.key, signer.certificate, signer.chain)
        loaded = TrustList.load(xml, self.validator, datetime.now(UTC))
        assert isinstance(loaded, TrustList)
        self.list = loaded

    def files(self, stem: str, issued: Issued) -> tuple[Path, Path]:
        chain, key = self.directory / f"{stem}.pem", self.directory / f"{stem}.key"
        chain.write_bytes(issued.pem_chain())
        key.write_bytes(issued.pem_key())
        return chain, key

    def server(self, issued: Issued, stem: str = "there") -> ssl.SSLContext:
        return operator_server_context(*self.files(stem, issued), self.anchors)

    def probe(self, port: int, starttls: StartTls | None = None, **more: object) -> ProbeReport:
        files = (*self.files("here", self.here), self.anchors)
        more.setdefault("seconds", 20.0)
        host = str(more.pop("host", "127.0.0.1"))
        context = more.pop("context", lambda: operator_client_context(*files))
        return probe(host, port, starttls, context, self.validator, more.pop("trust_list", self.list), **more)


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    yield Space(tmp_path_factory.mktemp("probe"))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Services that say nothing after the handshake are waited for, for a moment."""
    monkeypatch.setattr(trust.probe, "_WAIT_FOR_ALERT_SECONDS", 0.5)


@contextmanager
def serving(talk: Talk) -> Iterator[int]:
    """Each connection in its turn; what `talk` raises ends that connection only."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stopping = threading.Event()

        def serve() -> None:
            while not stopping.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                if stopping.is_set():
                    connection.close()
                    return
                with connection, suppress(OSError, AssertionError):
                    connection.settimeout(10)
                    talk(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        stopping.set()
        with suppress(OSError):
            socket.create_connection(listener.getsockname(), 1).close()
        thread.join(10)


def over(context: ssl.SSLContext, before: Talk | None = None) -> Talk:
    """TLS after what `before` says in the clear; then answers whatever comes."""

    def talk(connection: socket.socket) -> None:
        if before is not None:
            before(connection)
        with context.wrap_socket(connection, server_side=True) as tls:
            if tls.recv(1000):
                tls.sendall(b"250 hello\r\n")

    return talk


def smtp(connection: socket.socket) -> None:
    connection.sendall(b"220-first\r\n220 hello\r\n")
    connection.recv(1000)
    connection.sendall(b"250-there\r\n250-SIZE 1000\r\n250 STARTTLS\r\n")
    assert connection.recv(1000) == b"STARTTLS\r\n"
    connection.sendall(b"220 go\r\n")


def imap(connection: socket.socket) -> None:
    connection.sendall(b"* OK ready\r\n")
    assert connection.recv(1000) == b"a1 STARTTLS\r\n"
    connection.sendall(b"* CAPABILITY IMAP4rev1\r\na1 OK begin\r\n")


def ldap(connection: socket.socket) -> None:
    assert b"1.3.6.1.4.1.1466.20037" in connection.recv(1000)
    connection.sendall(bytes.fromhex("300c02010178070a010004000400"))


@pytest.mark.parametrize("how", [None, StartTls.SMTP])
def test_a_listed_operator_is_believed(space: Space, how: StartTls | None) -> None:
    with serving(over(space.server(space.there), smtp if how else None)) as port:
        report = space.probe(port, how, domain="d1.example")
    assert report.believed, report.sentence
    assert report.protocol == "TLSv1.3"
    assert report.client_certificate == "accepted or not asked for"
    assert report.trust_list is not None
    assert report.trust_list.domains == ("d0.example", "d1.example", "d2.example")
    first, second = report.chain[:2]
    assert first.subject == "CN=mss.there.example,OU=1750000002,O=LÀ-BAS,C=FR"
    assert first.issuer == second.subject
    assert first.extended_key_usage == ("serverAuth", "clientAuth")
    assert first.key_usage[0] == "digital_signature"
    assert "127.0.0.1" in first.alternative_names
    assert (first.authority, second.authority) == (False, True)
    assert report.host_name_matches
    assert report.verdicts["operator-tls-server"].ok
    assert report.verdicts["operator-tls-client"].ok
    assert "not read" in report.ocsp_stapling


@pytest.mark.parametrize(("how", "before"), [(StartTls.IMAP, imap), (StartTls.LDAP, ldap)])
def test_services_need_a_name_and_no_list(space: Space, how: StartTls, before: Talk) -> None:
    named = space.authority.issue_server(["localhost"], ["127.0.0.1"])
    with serving(over(service_server_context(*space.files("named", named)), before)) as port:
        report = space.probe(port, how)
        assert report.believed, report.sentence
    other = space.authority.issue_server(["other.example"])
    with serving(over(service_server_context(*space.files("other", other)), before)) as port:
        report = space.probe(port, how)
    assert not report.believed
    assert "does not name the host 127.0.0.1" in report.sentence


def test_operator_that_is_nearly_listed(space: Space) -> None:
    renamed = space.authority.issue_operator("mss.there.example", "LA BAS", "1750000002", ["127.0.0.1"])
    with serving(over(space.server(renamed, "renamed"))) as port:
        report = space.probe(port)
    assert not report.believed
    assert report.trust_list is not None
    assert not report.trust_list.listed
    assert "differs in 2.5.4.10" in report.trust_list.near[0]
    assert "names no operator" in report.sentence


def test_listed_for_other_domains_only(space: Space) -> None:
    with serving(over(space.server(space.there))) as port:
        report = space.probe(port, domain="sub.d0.example")
    assert not report.believed
    assert "for sub.d0.example" in report.sentence


def test_operator_of_another_authority(space: Space, tmp_path: Path) -> None:
    stranger = Space(tmp_path)
    with serving(over(stranger.server(stranger.there))) as port:
        report = space.probe(port)
    assert not report.believed
    assert not report.verdicts["operator-tls-server"].ok
    assert "no-path" in report.sentence
    assert len(report.chain) >= 2, "it is shown all the same"
    assert report.client_certificate.startswith("refused"), "and does not believe us either"


def test_certificate_for_another_purpose(space: Space) -> None:
    server_only = space.authority.issue_server(["localhost"], ["127.0.0.1"])
    with serving(over(service_server_context(*space.files("only", server_only)))) as port:
        report = space.probe(port)
    assert not report.verdicts["operator-tls-client"].ok
    assert "extended-key-usage" in report.verdicts["operator-tls-client"].rule


def test_no_list_to_look_in(space: Space) -> None:
    with serving(over(space.server(space.there))) as port:
        report = space.probe(port, trust_list=None)
    assert not report.believed
    assert "no trust list" in report.sentence


def test_suites_we_do_not_speak_are_named(space: Space) -> None:
    weak = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    weak.load_cert_chain(*space.files("weak", space.authority.issue_operator("w", "W", "1", ["w"], key_kind="rsa3072")))
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    weak.set_ciphers("AES128-SHA")
    with serving(over(weak)) as port:
        report = space.probe(port)
    assert not report.believed
    assert "handshake failure" in report.sentence
    assert "TLSv1.2 with AES128-SHA" in report.sentence


def test_who_forgot_starttls_is_told(space: Space) -> None:
    with serving(smtp) as port:
        report = space.probe(port, seconds=5)
    assert not report.believed
    assert "try --starttls smtp" in report.sentence


def test_what_was_said_in_the_clear_after_the_go_ahead_is_not_read(space: Space) -> None:
    def injecting(connection: socket.socket) -> None:
        smtp(connection)
        connection.sendall(b"250-injected\r\n250 AUTH PLAIN\r\n")

    with serving(over(space.server(space.there), injecting)) as port:
        report = space.probe(port, StartTls.SMTP, seconds=5)
    assert not report.believed
    assert report.chain == ()
    assert "handshake failed" in report.sentence


def served(space: Space, issued: Issued, stem: str) -> ProbeReport:
    with serving(over(service_server_context(*space.files(stem, issued)))) as port:
        return space.probe(port)


def test_self_signed_expired_and_leaf_only(space: Space) -> None:
    own = space.authority
    alone = Issued(space.there.key, space.there.certificate, ())
    files = (*space.files("here", space.here), space.anchors)
    with serving(over(service_server_context(*space.files("alone", alone)))) as port:
        for intermediates, believed in (((), False), (space.there.chain, True)):
            validator = CertificateValidator([own.root], intermediates)
            look = functools.partial(probe, "127.0.0.1", port, None, lambda: operator_client_context(*files))
            report = look(validator, space.list, seconds=20.0)
            assert report.believed is believed, report.sentence
            assert believed or "no-path" in report.sentence

    def certificate(ends: timedelta, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> Issued:
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(7)
            .not_valid_before(now - timedelta(days=30))
            .not_valid_after(now + ends)
            .sign(key, SHA256())
        )
        return Issued(key, made, ())

    key = ec.generate_private_key(ec.SECP256R1())
    name = space.there.certificate.subject
    selfish = served(space, certificate(timedelta(days=1), name, name, key), "selfish")
    assert not selfish.believed
    assert "no-path" in selfish.sentence
    assert selfish.trust_list is not None
    assert selfish.trust_list.listed, "a listed name helps nobody who cannot prove it"
    expired = served(space, certificate(timedelta(days=-1), name, name, key), "expired")
    assert "is expired" in expired.sentence


def test_nothing_a_terminal_would_obey_is_told(space: Space) -> None:
    """Subject, issuer and alternative names are a stranger's words."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a\x1b[2J\u202egnp.\u2066")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("a\x1b[2J"), x509.RFC822Name("b\r\n@c")]), False)
        .sign(key, SHA256())
    )
    report = served(space, Issued(key, made, ()), "hostile")
    assert report.chain

    def walk(value: object) -> None:
        if isinstance(value, str):
            assert value.isprintable(), value
        elif isinstance(value, dict):
            walk([*value, *value.values()])
        elif isinstance(value, list | tuple):
            for each in value:
                walk(each)

    walk(report.as_dict())


def test_a_service_without_client_certificates_in_mind(space: Space) -> None:
    """It asks for none: that is its affair, what it shows is judged."""
    assert served(space, space.there, "careless").believed


class Fetching:
    """A checker that knows nothing of a certificate until it was waited for, one certificate after the other."""

    def __init__(self) -> None:
        self.known: set[x509.Certificate] = set()
        self.wanted: set[x509.Certificate] = set()
        self.waited: list[float] = []

    def check(self, certificate: x509.Certificate, *_: object) -> RevocationStatus:
        self.wanted.add(certificate)
        return RevocationStatus(RevocationState.GOOD if certificate in self.known else RevocationState.UNKNOWN)

    def settled(self, seconds: float) -> bool:
        self.waited.append(seconds)
        self.known |= self.wanted
        return True


def test_what_is_not_known_of_a_stranger_yet_is_waited_for(space: Space) -> None:
    fetching = Fetching()
    space_validator, space.validator = space.validator, CertificateValidator([space.authority.root], (), fetching)
    try:
        with serving(over(space.server(space.there))) as port:
            assert "revocation-unknown" in space.probe(port).sentence
            fetching.wanted.clear()
            report = space.probe(port, settled=fetching.settled)
            assert report.believed, report.sentence
            assert len(fetching.waited) == 2
            assert all(0 < seconds <= 20 for seconds in fetching.waited)
            fetching.known.clear()
            fetching.settled = lambda seconds: fetching.waited.append(seconds) or False
            assert "revocation-unknown" in space.probe(port, settled=fetching.settled).sentence
            assert len(fetching.waited) < 20, "not for ever"
    finally:
        space.validator = space_validator


def says(*replies: bytes) -> Talk:
    def talk(connection: socket.socket) -> None:
        for reply in replies:
            connection.sendall(reply)
        with suppress(OSError):
            while connection.recv(1000):
                pass

    return talk


def endless(octets: bytes) -> Talk:
    def talk(connection: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection.sendall(octets)

    return talk


def dripping(connection: socket.socket) -> None:
    with suppress(OSError):
        while True:
            connection.sendall(b"2")
            connection.settimeout(0.1)
            with suppress(TimeoutError):
                if not connection.recv(1):
                    return


@pytest.mark.parametrize(
    ("how", "talk", "word"),
    [
        (None, says(), "in time"),
        (None, says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "handshake failed"),
        (None, lambda connection: None, "handshake"),
        (None, says(b"\x16\x03\x03\xff\xff"), "handshake"),
        (None, endless(b"\x16\x03\x03\x40\x00" + b"\x02\x00\xff\xff" + b"x" * 16380), "handshake"),
        (StartTls.SMTP, says(), "in time"),
        (StartTls.SMTP, dripping, "in time"),
        (StartTls.SMTP, lambda connection: None, "closed the connection|connection broke"),
        (StartTls.SMTP, says(b"554 go away\r\n"), "554 go away"),
        (StartTls.SMTP, says(b"220 hi\r\n", b"500 no\r\n"), "500 no"),
        (StartTls.SMTP, says(b"220 hi\r\n250-STARTLS\r\n250 SIZE\r\n"), "does not offer STARTTLS"),
        (StartTls.SMTP, says(b"220 hi\r\n250 STARTTLS\r\n454 not now\r\n"), "454 not now"),
        (StartTls.SMTP, endless(b"220-x\r\n"), "never ends"),
        (StartTls.SMTP, endless(b"x" * 1000), "line without end"),
        (StartTls.SMTP, says(b"\x00\x1b[31m\xff\n"), r"like SMTP: \?"),
        (StartTls.IMAP, says(b"* BYE no\r\n"), "like IMAP"),
        (StartTls.IMAP, says(b"* OK\r\na1 NO\r\n"), "refuses STARTTLS"),
        (StartTls.IMAP, endless(b"* OK\r\n"), "does not answer STARTTLS"),
        (StartTls.LDAP, says(b"\x30\x84\xff\xff\xff\xff"), "too much"),
        (StartTls.LDAP, says(b"\x30\x00"), "like LDAP"),
        (StartTls.LDAP, says(b"HTTP/1.1"), "."),
        (StartTls.LDAP, says(bytes.fromhex("300c02010178070a013504000400")), "result 53"),
    ],
)
def test_hostile_slow_and_silent_services_give_one_sentence(
    space: Space, how: StartTls | None, talk: Talk, word: str
) -> None:
    begun = time.monotonic()
    with serving(talk) as port:
        report = space.probe(port, how, seconds=0.7)
        assert time.monotonic() - begun < 3
    assert not report.believed
    assert report.chain == ()
    assert re.search(word, report.sentence), report.sentence
    assert report.sentence.isprintable()
    assert report.sentence.count("\n") == 0


def test_nobody_there(space: Space) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert "cannot be reached" in space.probe(port).sentence
    assert "cannot be reached" in space.probe(25, host="does-not-exist.invalid").sentence
    for host in ("x" * 300, "a\x00b", "é" * 70, "a..b", " ", ".", "::1%none"):
        report = space.probe(25, host=host)
        assert "cannot be reached" in report.sentence, report


def test_a_host_with_many_addresses_of_which_few_answer(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as full, socket.create_server(("127.0.0.1", 0)) as closed:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        gone = closed.getsockname()
        closed.close()
        addresses = [full.getsockname()] * 20
        monkeypatch.setattr(
            trust.probe.socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", address) for address in addresses]
        )
        monkeypatch.setattr(trust.probe, "_CONNECT_SECONDS", 0.2)
        begun = time.monotonic()
        report = space.probe(25, host="many.example", seconds=1.0)
        assert time.monotonic() - begun < 3
        assert report.sentence == "many.example:25 does not answer."
        with serving(over(space.server(space.there))) as port:
            addresses[:] = [full.getsockname(), gone, ("127.0.0.1", port)]
            assert space.probe(port, host="many.example").believed
        for each in waiting:
            each.close()


def test_our_own_files_unusable(space: Space, tmp_path: Path) -> None:
    none = tmp_path / "none.pem"
    report = space.probe(25, context=lambda: operator_client_context(none, none, none))
    assert "Our own certificate cannot be used" in report.sentence
