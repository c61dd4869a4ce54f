"""Heads and audit messages over real sockets: what arrives, byte for byte, and what is said when nobody listens."""

import re
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from lxml import etree
from sqlalchemy import text

from trust import atna, balp
from trust.audit import records, veiled
from trust.checkpoints import Checkpoints
from trust.journal import Journal, JournalEntry
from trust.publishing import HeadFile, HeadSyslog, Publisher
from trust.signed_heads import SealedHeadSigner, parse_line
from trust.store import metadata
from trust.store.database import Database
from trust.syslog import SyslogAddress, SyslogHeader, SyslogUnavailableError
from trust.vault import KeyVault, VaultError

NOW = datetime(2026, 11, 21, 8, 0, 0, 42, tzinfo=UTC)
MATRICULE = "279035121518989"


@pytest.fixture(scope="module")
def vault(tmp_path_factory):
    return KeyVault.create(tmp_path_factory.mktemp("keys") / "vault")


@pytest.fixture
def database(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/relais.db")
    metadata.create_all(database.engine)
    yield database
    database.close()


@pytest.fixture
def journal(vault, database):
    journal = Journal(vault, "node-1")
    for entry in (
        JournalEntry(
            "899700000001", "dossier.read", "done", "ab" * 32, "1.2.3", "Accès autorisé.", "care", {"n": "Anne"}
        ),
        JournalEntry(f"{MATRICULE}@patient.mssante.fr", "dossier.list", "refused", "cd" * 32, "", "masked"),
        JournalEntry("sil\x01", "dossier.deposit", "done", "ef" * 32, "delivery-1"),
        JournalEntry("node-1", "trust.refreshed", "done"),
    ):
        database.transact(lambda c, e=entry: journal.append(c, e, NOW))
    database.transact(lambda c: journal.erase(c, "node-1", 3, JournalEntry("dpo", "journal.erase", "done"), NOW))
    return journal


class Server:
    """Takes one connection after the other and keeps what came."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.received: list[bytes] = []
        self.taken = threading.Event()
        self._context = context
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            try:
                if self._context is not None:
                    connection = self._context.wrap_socket(connection, server_side=True)
                data = b""
                while chunk := connection.recv(65536):
                    data += chunk
                self.received.append(data)
                self.taken.set()
                if self._context is not None:
                    connection.unwrap()
            except OSError:
                pass
            finally:
                connection.close()

    def close(self) -> None:
        self._socket.close()


def framed(data: bytes) -> list[bytes]:
    """RFC 5425 §4.3 undone."""
    messages = []
    while data:
        length, _, data = data.partition(b" ")
        messages.append(data[: int(length)])
        data = data[int(length) :]
    return messages


@pytest.fixture(scope="module")
def contexts(tmp_path_factory):
    """A server's and a client's that believes it."""
    place = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "siem.example")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.now(UTC) - timedelta(1))
        .not_valid_after(datetime.now(UTC) + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(True, None), True)
        .sign(key, hashes.SHA256())
    )
    pem = place / "server.pem"
    pem.write_bytes(
        certificate.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cafile=str(pem))


def test_over_tls_and_tcp(contexts) -> None:
    for context, scheme in ((contexts[0], "tls"), (None, "tcp")):
        server = Server(context)
        address = SyslogAddress(f"{scheme}://127.0.0.1:{server.port}", contexts[1] if context else None)
        header = SyslogHeader(85, "host name", "relais", "")
        assert address.send(header.frame(text, NOW) for text in (b"one", b"two 2")) == 2
        assert server.taken.wait(10)
        messages = framed(server.received[0])
        assert [message.rsplit(b" - ", 1)[1] for message in messages] == [b"one", b"two 2"]
        assert re.match(rb"<85>1 2026-11-21T08:00:00\.000042Z host_name relais \d+ - - one$", messages[0])
        server.close()


def test_a_server_that_cannot_be_believed_is_given_nothing(contexts) -> None:
    server = Server(contexts[0])
    with pytest.raises(SyslogUnavailableError, match="does not take"):
        SyslogAddress(f"tls://127.0.0.1:{server.port}", ssl.create_default_context()).send([b"x"])
    assert server.received == []
    server.close()


def test_a_server_that_never_stops_answering_does_not_hold_us(monkeypatch) -> None:
    monkeypatch.setattr("trust.syslog._GOODBYE_SECONDS", 0.3)
    listening, over = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def drip() -> None:
        connection, _ = listening.accept()
        with connection:
            while not over.wait(0.05):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        assert SyslogAddress(f"tcp://127.0.0.1:{listening.getsockname()[1]}").send([b"one"]) == 1
    finally:
        over.set()
        dripping.join(10)
        listening.close()


def test_over_udp_and_unix(tmp_path) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix,
    ):
        udp.bind(("127.0.0.1", 0))
        unix.bind(str(tmp_path / "log"))
        for listening, url in ((udp, f"udp://127.0.0.1:{udp.getsockname()[1]}"), (unix, f"unix://{tmp_path}/log")):
            listening.settimeout(10)
            assert SyslogAddress(url).send([b"<85>1 a", b"<85>1 b"]) == 2
            assert [listening.recv(100), listening.recv(100)] == [b"<85>1 a", b"<85>1 b"]
            with pytest.raises(SyslogUnavailableError, match="too long"):
                SyslogAddress(url).send([bytes(66_000)])


@pytest.mark.parametrize(
    "url",
    ["", "http://a", "tls://", "udp://h/p", "unix://h/p", "unix:", "tls://a:6514", "tls://a:x", f"tcp://{'a' * 64}.b"],
)
def test_addresses_that_are_none(url) -> None:
    with pytest.raises(ValueError):
        SyslogAddress(url)


def test_a_publisher_survives_an_unreachable_server_and_says_so(vault, database, journal, tmp_path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    signer = SealedHeadSigner.open(tmp_path / "journal.key", vault)
    checkpoints = Checkpoints(database, journal, signer, "house")
    file, syslog = (
        HeadFile(tmp_path / "heads"),
        HeadSyslog(SyslogAddress(f"tcp://127.0.0.1:{port}", seconds=2), "node-1"),
    )
    publisher = Publisher(database, checkpoints, [syslog, file], "house", "node-1")
    (problem,) = publisher.turn()
    assert f"127.0.0.1:{port}" in problem
    assert publisher.problems == (problem,)
    assert len((tmp_path / "heads").read_text().splitlines()) == 1
    database.transact(lambda c: journal.append(c, JournalEntry("a", "b", "done")))
    server = Server()
    late = HeadSyslog(SyslogAddress(f"tcp://127.0.0.1:{server.port}"), "node-1")
    publisher = Publisher(database, checkpoints, [late, file], "house", "node-1")
    assert publisher.turn() == ()
    assert server.taken.wait(10)
    lines = [parse_line(message.decode()) for message in framed(server.received[0])]
    assert [line.text for line in lines] == [each.signed.text for each in checkpoints.after(0)]
    server.close()


def test_a_file_that_cannot_be_written_is_said(vault, database, journal, tmp_path) -> None:
    signer = SealedHeadSigner.open(tmp_path / "journal.key", vault)
    file = HeadFile(tmp_path / "absent" / "heads")
    publisher = Publisher(database, Checkpoints(database, journal, signer, "house"), [file], "house", "node-1")
    assert "heads do not reach" in publisher.turn()[0]


def exported(vault, database):
    return database.read(lambda c: list(records(c, vault, "node-1")))


def test_dicom_audit_messages(vault, database, journal) -> None:
    made = [etree.fromstring(atna.audit_message(each, "house")) for each in exported(vault, database)]
    codes = [each.find("EventIdentification/EventID").get("csd-code") for each in made]
    assert codes == ["110110", "110112", "110100", "110100", "110100"]
    read, listed, erased, *_ = made
    event = read.find("EventIdentification")
    assert dict(event.attrib) == {
        "EventActionCode": "R",
        "EventDateTime": "2026-11-21T08:00:00.000042Z",
        "EventOutcomeIndicator": "0",
    }
    assert listed.find("EventIdentification").get("EventOutcomeIndicator") == "4"
    order = ["EventIdentification", "ActiveParticipant", "AuditSourceIdentification", "ParticipantObjectIdentification"]
    for message in made:
        tags = list(dict.fromkeys(child.tag for child in message))
        assert tags == order
    patient = read.find("ParticipantObjectIdentification[@ParticipantObjectTypeCodeRole='1']")
    assert patient.get("ParticipantObjectID") == "ab" * 32
    assert erased.find("EventIdentification/EventTypeCode").get("originalText") == "payload erased"


def test_audit_events(vault, database, journal) -> None:
    events = [balp.audit_event(each, "house") for each in exported(vault, database)]
    read, listed, *_ = events
    assert read["meta"]["profile"][0].endswith("IHE.BasicAudit.PatientRead")
    assert read["subtype"][0]["code"] == "read"
    assert [agent["type"]["coding"][0]["code"] for agent in read["agent"]] == ["110152", "110153", "IRCP"]
    assert [entity["type"]["code"] for entity in read["entity"]] == ["1", "2", "4"]
    assert "meta" not in listed
    assert listed["outcome"] == "4"
    for event in events:
        assert {"type", "recorded", "agent", "source"} <= event.keys()
        assert all("requestor" in agent for agent in event["agent"])


@pytest.mark.parametrize(("outcome", "code"), [("done", "0"), ("granted", "0"), ("refused", "4"), ("held", "4")])
def test_what_took_place_is_exported_as_a_success(vault, database, outcome, code) -> None:
    """The dossier journals a reading that was allowed as `granted`."""
    entry = JournalEntry("899700000001", "dossier.read", outcome, "ab" * 32, "1.2.3", purpose="care")
    database.transact(lambda c: Journal(vault, "node-1").append(c, entry, NOW))
    (record,) = exported(vault, database)
    event = balp.audit_event(record, "house")
    assert (event["outcome"], "meta" in event, "outcomeDesc" in event) == (code, code == "0", code != "0")
    message = etree.fromstring(atna.audit_message(record, "house"))
    assert message.find("EventIdentification").get("EventOutcomeIndicator") == code


def test_a_row_that_is_no_entry_is_a_named_failure(vault, database, journal) -> None:
    with database.engine.connect() as connection, connection.begin():
        connection.execute(text("UPDATE journal_entries SET at = 9223372036854775807 WHERE sequence = 2"))
    with pytest.raises(VaultError, match="node-1#2"):
        exported(vault, database)


def test_no_patient_and_no_words_leave(vault, database, journal) -> None:
    everything = b"".join(
        atna.syslog_message(each, "house", "node-1") + balp.line(each, "house").encode()
        for each in exported(vault, database)
    )
    for secret in (MATRICULE.encode(), b"Anne", "Accès".encode(), b"masked"):
        assert secret not in everything
    assert b"ins-" in everything
    assert b"899700000001" in everything


@pytest.mark.parametrize("text", [MATRICULE, MATRICULE[:13], "279032A51518989", "1840675131012"])
def test_identifiers_are_veiled(vault, text) -> None:
    assert text not in veiled(vault, f"x:{text}@patient.mssante.fr")


@pytest.mark.parametrize("text", ["899700000001", "delivery-0123456789abcdef0123456789abcdef", "1.2.250.1.213.1.4.10"])
def test_other_names_are_not(vault, text) -> None:
    assert veiled(vault, text) == text
