"""Several servers with the same data, over ldaps: one down, frozen, slow, empty, expired, or not telling the truth."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from directory.pool import ServerState
from directory.resolve import Directory, DirectoryRefusedError, DirectoryUnavailableError
from tests.directory.conftest import DOCTOR, KEY, PATIENT, TEAM, Server, fixture_entries, new_server
from tests.support.private import free_port, give, service_directory


@pytest.fixture
def replica(server_files: Path) -> Iterator[Server]:
    """A second slapd with the data of `running`, not started."""
    with new_server(server_files) as server:
        server.slapd.load(fixture_entries())
        yield server


@contextmanager
def proxy(uri: str, delay: float) -> Iterator[str]:
    """Another way to the same slapd, on which each answer takes `delay` seconds."""
    target = urlsplit(uri)
    opened: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def pump(source: socket.socket, sink: socket.socket, pause: float) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                ended.wait(pause)
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection((target.hostname, target.port))
                opened.extend((near, far))
                for ends in ((near, far, 0.0), (far, near, delay)):
                    threads.append(threading.Thread(target=pump, args=ends))
                    threads[-1].start()

    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads.append(threading.Thread(target=accept))
        threads[0].start()
        try:
            yield f"ldaps://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            for each in (listener, *opened):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(10)
            for each in opened:
                each.close()


def state_of(directory: Directory, uri: str) -> ServerState:
    return next(state for state in directory.servers() if state.uri == uri)


def test_a_server_that_is_down_is_passed_over_and_left_alone(running: Server) -> None:
    dead = f"ldaps://127.0.0.1:{free_port()}"
    with running.directory(uri=dead, replicas=(running.slapd.ldaps_uri,), rest_seconds=60.0) as directory:
        assert directory.resolve(DOCTOR) is not None
        assert state_of(directory, dead).resting
        for _ in range(5):
            assert directory.resolve(TEAM) is not None
        assert state_of(directory, dead).failures == 1  # nobody asked it again
        assert directory.resolve("nobody@demo-labo.mssante.fr") is None


def test_a_frozen_server_costs_its_share_of_the_deadline_once(running: Server, replica: Server) -> None:
    replica.start()
    assert replica.process is not None
    frozen, alive = replica.slapd.ldaps_uri, running.slapd.ldaps_uri
    with running.directory(uri=frozen, replicas=(alive,), timeout_seconds=3.0, rest_seconds=60.0) as directory:
        assert directory.resolve(DOCTOR) is not None
        replica.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, replica.process.pid, os.WSTOPPED | os.WNOWAIT)  # all its threads
        try:
            assert state_of(directory, frozen).failures == 0
            started = time.monotonic()
            assert directory.resolve(TEAM) is not None
            assert 1.4 < time.monotonic() - started < 2.9
            started = time.monotonic()
            assert directory.resolve(PATIENT) is not None
            assert time.monotonic() - started < 1.0
        finally:
            replica.process.send_signal(signal.SIGCONT)


def test_a_server_that_comes_back_is_asked_again(running: Server, replica: Server) -> None:
    first = replica.slapd.ldaps_uri
    with running.directory(uri=first, replicas=(running.slapd.ldaps_uri,), rest_seconds=0.05) as directory:
        assert directory.resolve(DOCTOR) is not None
        assert state_of(directory, first).failures
        replica.start()
        deadline = time.monotonic() + 10
        while state_of(directory, first).failures and time.monotonic() < deadline:
            assert directory.resolve(DOCTOR) is not None
        assert not state_of(directory, first).failures


def test_all_servers_down_is_later_not_never(running: Server) -> None:
    ports = (free_port(), free_port())
    uris = [f"ldaps://127.0.0.1:{port}" for port in ports]
    with running.directory(uri=uris[0], replicas=(uris[1],), timeout_seconds=1.0) as directory:
        for _ in range(3):
            with pytest.raises(DirectoryUnavailableError):
                directory.resolve(DOCTOR)


def test_a_slow_server_is_waited_for(running: Server) -> None:
    with (
        proxy(running.slapd.ldaps_uri, 0.2) as slow,
        running.directory(uri=slow, replicas=(running.slapd.ldaps_uri,), timeout_seconds=6.0) as directory,
    ):
        for address in (DOCTOR, TEAM):
            assert directory.resolve(address) is not None
        assert not state_of(directory, slow).failures


def test_too_slow_a_server_delays(running: Server) -> None:
    with proxy(running.slapd.ldaps_uri, 0.4) as slow, running.directory(uri=slow, timeout_seconds=0.3) as directory:
        with pytest.raises(DirectoryUnavailableError):
            directory.resolve(DOCTOR)
        with pytest.raises(DirectoryUnavailableError):
            directory.resolve("nobody@demo-labo.mssante.fr")


def test_restarted_empty_is_no_unknown_recipient(server: Server) -> None:
    server.slapd.load(fixture_entries())
    server.start()
    with server.directory() as directory:
        assert directory.resolve(DOCTOR) is not None
        assert directory.resolve("nobody@demo-labo.mssante.fr") is None
        server.stop()
        for file in (server.state / "data").iterdir():
            file.unlink()
        server.slapd.load(())  # the tree, and not one mailbox
        server.start()
        with pytest.raises(DirectoryUnavailableError, match="no mailbox at all"):
            directory.resolve(DOCTOR)
        assert not directory.check()


def test_an_empty_replica_is_passed_over(server: Server, running: Server) -> None:
    server.slapd.load(())
    server.start()
    with running.directory(uri=server.slapd.ldaps_uri, replicas=(running.slapd.ldaps_uri,)) as directory:
        assert directory.resolve(DOCTOR) is not None
        assert directory.resolve("nobody@demo-labo.mssante.fr") is None
        assert directory.check()


def test_writes_go_to_the_first_server_alone(running: Server) -> None:
    dead = f"ldaps://127.0.0.1:{free_port()}"
    with running.directory("admin", uri=dead, replicas=(running.slapd.ldaps_uri,)) as directory:
        assert directory.resolve(DOCTOR) is not None
        with pytest.raises(DirectoryUnavailableError):
            directory.set_rank(DOCTOR, 1)


def test_who_may_not_write_is_told_so(running: Server) -> None:
    with running.directory("anonymous") as directory, pytest.raises(DirectoryRefusedError):
        directory.set_rank(DOCTOR, 1)


def test_a_server_whose_certificate_has_expired_is_not_believed() -> None:
    with service_directory() as folder:
        now = datetime.datetime.now(datetime.UTC)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "slapd")])
        expired = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(KEY.public_key())
            .serial_number(7)
            .not_valid_before(now - datetime.timedelta(days=9))
            .not_valid_after(now - datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
            .sign(KEY, hashes.SHA256())
        )
        (folder / "chain.pem").write_bytes(expired.public_bytes(Encoding.PEM))
        (folder / "key.pem").write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        give(folder)
        with new_server(folder) as server:
            server.slapd.load(fixture_entries())
            server.start()
            with server.directory() as directory, pytest.raises(DirectoryUnavailableError):
                directory.resolve(DOCTOR)


def test_threads_live_through_a_restart(server: Server) -> None:
    """Whatever the moment: an answer, or "later"; never "there is no such mailbox"."""
    server.slapd.load(fixture_entries())
    server.start()
    stop, answered = threading.Event(), threading.Event()
    wrong: list[object] = []

    with server.directory(timeout_seconds=2.0) as directory:

        def ask() -> None:
            while not stop.is_set():
                try:
                    found = directory.resolve(DOCTOR)
                except DirectoryUnavailableError:
                    stop.wait(0.02)
                    continue
                answered.set()
                if found is None or found.address != DOCTOR:
                    wrong.append(found)

        with ThreadPoolExecutor(4) as threads:
            tasks = [threads.submit(ask) for _ in range(4)]
            try:
                assert answered.wait(20), "before"
                server.stop(signal.SIGKILL)
                answered.clear()
                server.start()
                assert answered.wait(20), "after"
            finally:
                stop.set()
            for task in tasks:
                task.result()
    assert not wrong


def test_one_hanging_server_does_not_hold_up_calls_to_the_other(running: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"ldaps://127.0.0.1:{silent.getsockname()[1]}"
        with (
            running.directory(
                uri=uri, replicas=(running.slapd.ldaps_uri,), timeout_seconds=1.0, connections=8
            ) as directory,
            ThreadPoolExecutor(8) as threads,
        ):
            started = time.monotonic()
            assert all(threads.map(directory.resolve, [DOCTOR] * 40))
            assert time.monotonic() - started < 2.5
