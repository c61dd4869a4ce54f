"""Certificates renewed under a running server: new connections get the new one, old connections go on."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from trust import tls
from trust.certificates import CertificateValidator, Purpose
from trust.issuing import DemonstrationAuthority, Issued
from trust.tls import (
    FollowedContext,
    TlsMaterialError,
    followed_operator_client,
    followed_operator_server,
    followed_service_server,
    in_force,
    judge_peer,
    peer_judge,
    peer_name,
    presented,
    service_server_context,
)


class Files:
    """The three files of one operator, in a directory of its own."""

    def __init__(self, directory: Path, authority: DemonstrationAuthority) -> None:
        directory.mkdir()
        self.authority = authority
        self.chain, self.key, self.anchors = (directory / name for name in ("chain.pem", "key.pem", "anchors.pem"))
        self.anchors.write_bytes(authority.root.public_bytes(serialization.Encoding.PEM))
        self.issued = self.renew()

    def new(self) -> Issued:
        return self.authority.issue_operator("op.example", "OP", "1750000001", ["127.0.0.1"])

    def renew(self, issued: Issued | None = None) -> Issued:
        issued = issued or self.new()
        self.key.write_bytes(issued.pem_key())
        self.chain.write_bytes(issued.pem_chain())
        return issued

    @property
    def triple(self) -> tuple[Path, Path, Path]:
        return self.chain, self.key, self.anchors


@pytest.fixture(scope="module")
def authority() -> Iterator[DemonstrationAuthority]:
    yield DemonstrationAuthority.create("Démonstration")


@pytest.fixture
def files(tmp_path: Path, authority: DemonstrationAuthority) -> Files:
    return Files(tmp_path / "server", authority)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)
    writer.close()


class Server:
    """TLS begins as in the doors: the context in force when the connection comes."""

    def __init__(self, context: tls.Context) -> None:
        self.context = context
        self.peers: list[object] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def start(self) -> int:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self.server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            await writer.start_tls(in_force(self.context))
            connection = writer.get_extra_info("ssl_object")
            self.peers.append((peer_name(connection), presented(connection)))
            await echo(reader, writer)
        except (OSError, ssl.SSLError):
            writer.close()


Connected = tuple[asyncio.StreamReader, asyncio.StreamWriter, x509.Certificate]


class Network:
    """Everything a test opens; closed after it."""

    def __init__(self) -> None:
        self.servers: list[Server] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, context: tls.Context) -> tuple[Server, int]:
        server = Server(context)
        port = await server.start()
        self.servers.append(server)
        return server, port

    async def connect(self, port: int, context: ssl.SSLContext) -> Connected:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        self.writers.append(writer)
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return reader, writer, x509.load_der_x509_certificate(der)


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    made = Network()
    yield made
    for writer in (*made.writers, *(writer for server in made.servers for writer in server.writers)):
        writer.transport.abort()
    for server in made.servers:
        server.server.close()
    await asyncio.sleep(0.02)


async def still_talks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    writer.write(b"still there\n")
    return await asyncio.wait_for(reader.readline(), 5) == b"still there\n"


async def test_renewal_without_dropping_a_connection(
    network: Network, files: Files, tmp_path: Path, authority: DemonstrationAuthority
) -> None:
    client = followed_operator_client(*Files(tmp_path / "client", authority).triple)
    followed = followed_operator_server(*files.triple)
    _, port = await network.serve(followed)
    before = await network.connect(port, client())
    assert before[2] == files.issued.certificate
    assert not followed.look()
    renewed = files.renew()
    assert followed.look()
    assert (followed.problem, followed.renewals) == ("", 1)
    after = await network.connect(port, client())
    assert after[2] == renewed.certificate
    assert await still_talks(*before[:2])
    assert await still_talks(*after[:2])


async def test_replaced_files_and_links_are_seen(files: Files, tmp_path: Path) -> None:
    """As certificate clients do it: rename over the file, or turn a link round; size and time may be the same."""
    followed = followed_operator_server(*files.triple)
    issued = files.new()
    for path, content in ((files.key, issued.pem_key()), (files.chain, issued.pem_chain())):
        aside = path.with_suffix(".new")
        aside.write_bytes(content)
        aside.replace(path)
    assert followed.look()
    other = Files(tmp_path / "other", files.authority)
    files.chain.unlink()
    files.chain.symlink_to(other.chain)
    files.key.unlink()
    files.key.symlink_to(other.key)
    assert followed.look()
    assert followed.renewals == 2


@pytest.mark.parametrize("damage", ["garbage", "empty", "gone", "key-first", "anchors", "truncated"])
async def test_files_that_cannot_be_used_change_nothing(
    files: Files, tmp_path: Path, authority: DemonstrationAuthority, damage: str
) -> None:
    followed = followed_operator_server(*files.triple)
    old = followed()
    new = files.new()
    match damage:
        case "garbage":
            files.chain.write_bytes(b"garbage")
        case "empty":
            files.key.write_bytes(b"")
        case "gone":
            files.chain.unlink()
        case "key-first":
            files.key.write_bytes(new.pem_key())
        case "anchors":
            files.anchors.write_bytes(b"garbage")
        case "truncated":
            files.chain.write_bytes(files.chain.read_bytes()[:300])
    assert not followed.look()
    assert followed() is old
    assert followed.problem.startswith(("chain.pem", "anchors.pem"))
    assert "_ssl.c" not in followed.problem
    assert not followed.look(), "told once"
    files.anchors.write_bytes(authority.root.public_bytes(serialization.Encoding.PEM))
    files.renew(new)
    assert followed.look()
    assert followed.problem == ""


async def test_expired_renewal_is_no_renewal(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    followed = followed_operator_server(*files.triple)

    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime(2100, 1, 1, tzinfo=UTC)

    monkeypatch.setattr(tls, "datetime", Later)
    files.renew()
    assert not followed.look()
    assert "expired" in followed.problem


async def test_a_certificate_our_parser_refuses_is_a_problem_told(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL takes some that `cryptography` raises about, each time with another class."""
    followed = followed_operator_server(*files.triple)

    def raises(_: bytes) -> list[x509.Certificate]:
        raise x509.InvalidVersion("version 5", 4)

    files.renew()
    monkeypatch.setattr(tls.x509, "load_pem_x509_certificates", raises)
    assert not followed.look()
    assert "InvalidVersion" in followed.problem


def test_start_with_unusable_files_fails(files: Files) -> None:
    files.key.write_bytes(b"")
    for build in (followed_operator_server, followed_operator_client):
        with pytest.raises(TlsMaterialError, match=r"key\.pem"):
            build(*files.triple)
    with pytest.raises(TlsMaterialError, match=r"key\.pem"):
        followed_service_server("submission", files.chain, files.key)


async def test_anchors_follow_too(network: Network, files: Files, tmp_path: Path) -> None:
    """An authority taken out of the anchors is not believed by the next connection."""
    stranger = DemonstrationAuthority.create("Autre")
    client = followed_operator_client(*Files(tmp_path / "client", files.authority).triple)
    followed = followed_operator_server(*files.triple)
    _, port = await network.serve(followed)
    reader, writer, _ = await network.connect(port, client())
    assert await still_talks(reader, writer)
    files.anchors.write_bytes(stranger.root.public_bytes(serialization.Encoding.PEM))
    assert followed.look()
    assert await still_talks(reader, writer)
    refused_reader, refused_writer, _ = await network.connect(port, client())
    with pytest.raises((ssl.SSLError, OSError, AssertionError)):
        assert await still_talks(refused_reader, refused_writer)


async def test_peer_is_judged_by_our_validator_with_the_chain_it_presents(
    network: Network, files: Files, tmp_path: Path, authority: DemonstrationAuthority
) -> None:
    client_files = Files(tmp_path / "client", authority)
    server, port = await network.serve(followed_operator_server(*files.triple))
    reader, writer, _ = await network.connect(port, followed_operator_client(*client_files.triple)())
    assert await still_talks(reader, writer)
    shown = presented(writer.get_extra_info("ssl_object"))
    validator = CertificateValidator([authority.root])
    verdict = judge_peer(shown, validator, Purpose.OPERATOR_TLS_SERVER, datetime.now(UTC))
    assert verdict is not None
    assert verdict.ok
    assert len(verdict.path) == 3, "the intermediate came with the handshake"
    assert peer_judge(validator, Purpose.OPERATOR_TLS_SERVER)(shown) == ""
    nobody = CertificateValidator([DemonstrationAuthority.create("Autre").root])
    assert "no-path" in peer_judge(nobody, Purpose.OPERATOR_TLS_SERVER)(shown)
    ((name, chain),) = server.peers
    assert name is not None
    assert next(x509.load_der_x509_certificate(each) for each in chain) == client_files.issued.certificate
    assert len(chain) >= 2


async def test_who_presents_nothing_is_heard_all_the_same(network: Network, files: Files) -> None:
    """A server that asks for a certificate without insisting."""
    shown: list[tuple[bytes, ...]] = []

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        shown.append(presented(writer.get_extra_info("ssl_object")))
        writer.close()

    server = service_server_context(files.chain, files.key, files.anchors)
    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    async with listening:
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname(), ssl=client)
        assert await reader.read() == b""
        writer.close()
    assert shown == [()]


def test_nothing_presented_before_the_handshake(files: Files) -> None:
    waiting = followed_operator_client(*files.triple)().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())
    assert presented(waiting) == ()
    assert judge_peer((), CertificateValidator([]), Purpose.OPERATOR_TLS_SERVER, datetime.now(UTC)) is None


def test_one_context_for_ever_is_a_context_too(files: Files) -> None:
    fixed = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    assert in_force(fixed) is fixed
    followed = FollowedContext("x", lambda: fixed, (), files.chain)
    assert in_force(followed) is fixed
