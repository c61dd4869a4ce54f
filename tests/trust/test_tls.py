"""TLS between operators over real sockets: who is let in, under which name, and with what."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from trust.issuing import DemonstrationAuthority, Issued, KeyKind
from trust.names import DistinguishedName
from trust.tls import (
    TlsMaterialError,
    operator_client_context,
    operator_server_context,
    peer_name,
    presented,
    service_server_context,
)


@dataclass(frozen=True)
class Files:
    """PEM files of one operator."""

    issued: Issued
    chain: Path
    key: Path
    anchors: Path

    @property
    def name(self) -> DistinguishedName:
        return DistinguishedName.from_x509(self.issued.certificate.subject)

    @property
    def triple(self) -> tuple[Path, Path, Path]:
        return self.chain, self.key, self.anchors


def write(directory: Path, stem: str, issued: Issued, authority: DemonstrationAuthority) -> Files:
    files = Files(issued, directory / f"{stem}.pem", directory / f"{stem}.key", directory / f"{stem}-anchors.pem")
    files.chain.write_bytes(issued.pem_chain())
    files.key.touch(mode=0o600)
    files.key.write_bytes(issued.pem_key())
    files.anchors.write_bytes(authority.root.public_bytes(serialization.Encoding.PEM))
    return files


@dataclass(frozen=True)
class Operators:
    here: Files
    there: Files
    rsa: Files
    stranger: Files


@pytest.fixture(scope="module")
def operators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operators]:
    directory = tmp_path_factory.mktemp("tls")
    authority, other = DemonstrationAuthority.create("Démonstration"), DemonstrationAuthority.create("Démonstration")

    def operator(stem: str, under: DemonstrationAuthority, kind: KeyKind = "p256") -> Files:
        issued = under.issue_operator(f"{stem}.op.example", f'HÔPITAL "{stem}", SA', "1750000001", ["127.0.0.1"], kind)
        return write(directory, stem, issued, authority)

    yield Operators(
        operator("here", authority),
        operator("there", authority),
        operator("rsa", authority, "rsa3072"),
        operator("stranger", other),
    )


@dataclass
class Seen:
    """What each side saw of the other."""

    server_saw: DistinguishedName | None = None
    client_saw: DistinguishedName | None = None
    server_error: Exception | None = None
    client_error: Exception | None = None
    version: str = ""
    suite: str = ""
    resumed_possible: bool = False

    @property
    def refused(self) -> bool:
        return self.server_error is not None and self.client_error is not None


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> Seen:
    """One connection over loopback with one byte each way, which TLS 1.3 needs to reveal a late refusal."""
    seen = Seen()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                try:
                    with server.wrap_socket(connection, server_side=True) as tls:
                        seen.server_saw = peer_name(tls)
                        tls.sendall(tls.recv(1))
                except (ssl.SSLError, OSError) as error:
                    seen.server_error = error

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=10) as connection,
                client.wrap_socket(connection, server_hostname="some.mx.example") as tls,
            ):
                seen.version, seen.suite = tls.version() or "", (tls.cipher() or ("",))[0]
                tls.sendall(b"x")
                if tls.recv(1) != b"x":
                    raise ConnectionError("refused")
                seen.client_saw = peer_name(tls)
        except (ssl.SSLError, OSError) as error:
            seen.client_error = error
        thread.join()
    return seen


def test_both_sides_learn_the_name_of_the_other(operators: Operators) -> None:
    seen = shake_hands(
        operator_server_context(*operators.here.triple), operator_client_context(*operators.there.triple)
    )
    assert (seen.server_error, seen.client_error) == (None, None)
    assert seen.server_saw == operators.there.name
    assert seen.client_saw == operators.here.name
    assert seen.version == "TLSv1.3"
    assert seen.server_saw == DistinguishedName.parse(
        'CN=there.op.example,OU=1750000001,O="HÔPITAL "there", SA",C=FR'
    ), "the name as a list would write it"


def test_client_without_certificate(operators: Operators) -> None:
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.load_verify_locations(operators.here.anchors)
    assert shake_hands(operator_server_context(*operators.here.triple), bare).refused


def test_client_of_another_authority(operators: Operators) -> None:
    stranger = operator_client_context(*operators.stranger.triple)
    assert shake_hands(operator_server_context(*operators.here.triple), stranger).refused


def test_client_with_a_certificate_for_servers_only(operators: Operators, tmp_path: Path) -> None:
    authority = DemonstrationAuthority.create("Démonstration")
    server = write(tmp_path, "server", authority.issue_operator("s", "S", "1750000001", ["s.example"]), authority)
    wrong = write(tmp_path, "wrong", authority.issue_server(["s.example"]), authority)
    assert shake_hands(operator_server_context(*server.triple), operator_client_context(*wrong.triple)).refused


def test_server_of_another_authority(operators: Operators) -> None:
    stranger = operator_server_context(*operators.stranger.triple)
    seen = shake_hands(stranger, operator_client_context(*operators.here.triple))
    assert seen.refused
    assert isinstance(seen.client_error, ssl.SSLCertVerificationError)


@pytest.mark.parametrize(
    ("suite", "kind"),
    [
        *((f"ECDHE-RSA-{suite}", "rsa") for suite in ("AES256-GCM-SHA384", "AES128-GCM-SHA256")),
        *((f"ECDHE-RSA-{suite}", "rsa") for suite in ("AES256-SHA384", "AES128-SHA256")),
    ],
)
def test_tls_1_2_suites_of_the_french_rules(operators: Operators, suite: str, kind: str) -> None:
    client = operator_client_context(*operators.there.triple)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers(suite)
    seen = shake_hands(operator_server_context(*getattr(operators, kind).triple), client)
    assert (seen.client_error, seen.version, seen.suite) == (None, "TLSv1.2", suite)


@pytest.mark.parametrize(
    "suite",
    [
        *("AES256-GCM-SHA384", "ECDHE-RSA-AES256-SHA", "ECDHE-RSA-CHACHA20-POLY1305"),
        *("DHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES256-GCM-SHA384"),
    ],
)
def test_other_suites_are_refused(operators: Operators, suite: str) -> None:
    client = operator_client_context(*operators.there.triple)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers(suite)
    assert shake_hands(operator_server_context(*operators.rsa.triple), client).refused


def test_tls_1_1_is_refused(operators: Operators) -> None:
    server = operator_server_context(*operators.rsa.triple)
    assert server.minimum_version is ssl.TLSVersion.TLSv1_2
    offered = {suite["name"] for suite in server.get_ciphers() if suite["protocol"] == "TLSv1.2"}
    assert offered == {
        *("ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-RSA-AES128-GCM-SHA256"),
        *("ECDHE-RSA-AES256-SHA384", "ECDHE-RSA-AES128-SHA256"),
    }


def test_service_asks_for_no_certificate_and_trusts_no_name(operators: Operators) -> None:
    server = service_server_context(operators.here.chain, operators.here.key)
    seen = shake_hands(server, operator_client_context(*operators.there.triple))
    assert seen.client_error is None
    assert seen.server_saw is None


def test_unverified_peer_has_no_name(operators: Operators) -> None:
    careless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    careless.check_hostname = False
    careless.verify_mode = ssl.CERT_NONE
    server = service_server_context(operators.here.chain, operators.here.key)
    seen = shake_hands(server, careless)
    assert seen.client_error is None
    assert seen.client_saw is None


def test_a_certificate_our_parser_refuses_names_nobody() -> None:
    """OpenSSL is more tolerant: a certificate of a version there is not."""
    issued = DemonstrationAuthority.create("Démonstration").issue_server(["localhost"])
    encoded = issued.certificate.public_bytes(serialization.Encoding.DER)
    version_5 = encoded.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x04", 1)

    class Connection:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

        def getpeercert(self, *, binary_form: bool) -> bytes:
            return version_5 if binary_form else b""

    assert peer_name(Connection()) is None  # type: ignore[arg-type]


def test_no_name_before_the_handshake(operators: Operators) -> None:
    context = operator_client_context(*operators.here.triple)
    waiting = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())
    assert peer_name(waiting) is None


def leaf_only(files: Files, directory: Path) -> tuple[Path, Path, Path]:
    """A partner who forgets to send the intermediate authority."""
    alone = directory / "alone.pem"
    alone.write_bytes(files.issued.certificate.public_bytes(serialization.Encoding.PEM))
    return alone, files.key, files.anchors


def test_intermediates_complete_the_chain_of_who_sends_only_a_leaf(operators: Operators, tmp_path: Path) -> None:
    here, there = operators.here, operators.there
    helping = tmp_path / "intermediates.pem"
    helping.write_bytes(b"".join(each.public_bytes(serialization.Encoding.PEM) for each in here.issued.chain))
    alone = leaf_only(there, tmp_path)
    assert shake_hands(operator_server_context(*here.triple), operator_client_context(*alone)).refused
    seen = shake_hands(operator_server_context(*here.triple, helping), operator_client_context(*alone))
    assert (seen.server_error, seen.server_saw) == (None, there.name)
    seen = shake_hands(operator_server_context(*alone), operator_client_context(*here.triple, helping))
    assert (seen.client_error, seen.client_saw) == (None, there.name)


def test_intermediates_make_nobody_trusted(operators: Operators, tmp_path: Path) -> None:
    """Neither a root nor an authority below one that is not an anchor, wherever they stand."""
    here, stranger = operators.here, operators.stranger
    helping = tmp_path / "intermediates.pem"
    helping.write_bytes(stranger.anchors.read_bytes() + stranger.issued.pem_chain())
    server = operator_server_context(*here.triple, helping)
    assert shake_hands(server, operator_client_context(*stranger.triple)).refused
    client = operator_client_context(*here.triple, helping)
    assert shake_hands(operator_server_context(*stranger.triple), client).client_error is not None
    helping.write_bytes(stranger.anchors.read_bytes())
    assert shake_hands(
        operator_server_context(*here.triple, helping), operator_client_context(*stranger.triple)
    ).refused
    helping.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(TlsMaterialError, match=r"intermediates\.pem"):
        operator_server_context(*here.triple, helping)


def test_tickets_resume_nothing_and_a_resumed_session_shows_its_certificate(operators: Operators) -> None:
    server = operator_server_context(*operators.rsa.triple)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        client = operator_client_context(*operators.there.triple)
        client.maximum_version = version
        session = None
        for _ in range(2):
            with socket.create_server(("127.0.0.1", 0)) as listener:
                seen: list[object] = []

                def serve(listener: socket.socket = listener, seen: list[object] = seen) -> None:
                    connection, _ = listener.accept()
                    with connection, server.wrap_socket(connection, server_side=True) as tls:
                        seen.extend((peer_name(tls), presented(tls)[0]))
                        tls.sendall(b"x")
                        tls.recv(1)
                        tls.unwrap()

                thread = threading.Thread(target=serve)
                thread.start()
                with (
                    socket.create_connection(listener.getsockname(), timeout=10) as connection,
                    client.wrap_socket(connection, session=session) as tls,
                ):
                    tls.recv(1)
                    session = tls.session
                    assert not session.has_ticket
                    assert not (tls.session_reused and version is ssl.TLSVersion.TLSv1_3)
                    tls.sendall(b"x")
                    tls.unwrap()
                thread.join(10)
            own = operators.there.issued.certificate.public_bytes(serialization.Encoding.DER)
            assert seen == [operators.there.name, own], "what the door judges at each message"


def test_unusable_files_are_named(operators: Operators, tmp_path: Path) -> None:
    here, there = operators.here, operators.there
    with pytest.raises(TlsMaterialError, match=r"missing\.pem"):
        operator_server_context(tmp_path / "missing.pem", here.key, here.anchors)
    with pytest.raises(TlsMaterialError, match=r"there\.key"):
        operator_client_context(here.chain, there.key, here.anchors)
    garbage = tmp_path / "garbage.pem"
    garbage.write_bytes(b"garbage")
    with pytest.raises(TlsMaterialError, match=r"garbage\.pem"):
        operator_server_context(here.chain, here.key, garbage)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        here.issued.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(TlsMaterialError, match=r"locked\.key"):
        service_server_context(here.chain, locked)
