"""Looking recipients up on a real slapd, over ldaps."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import ldap
import pytest

from directory.records import MailboxKind
from directory.resolve import Directory, DirectoryOptions, DirectoryUnavailableError
from tests.directory.conftest import BASE, DOCTOR, HIDDEN, PATIENT, RECIPIENTS, TEAM, Server


def connect(server: Server, who: str) -> Any:
    """python-ldap directly: what any address book could do."""
    options = server.options(who)
    connection = ldap.initialize(options.uri)
    connection.set_option(ldap.OPT_X_TLS_REQUIRE_CERT, ldap.OPT_X_TLS_DEMAND)
    connection.set_option(ldap.OPT_X_TLS_CACERTFILE, str(server.ca))
    connection.set_option(ldap.OPT_X_TLS_NEWCTX, 0)
    connection.simple_bind_s(options.bind_dn, options.password)
    return connection


def addresses(connection: Any, base: str = BASE, text: str = "(mail=*)") -> set[str]:
    return {values["mail"][0].decode() for _, values in connection.search_s(base, ldap.SCOPE_SUBTREE, text)}


@pytest.mark.parametrize("recipient", RECIPIENTS[:-1], ids=lambda recipient: recipient.address)
def test_what_was_written_is_read_back_whole(directory: Directory, recipient: Any) -> None:
    assert directory.resolve(recipient.address) == recipient


def test_address_case_does_not_matter(directory: Directory) -> None:
    found = directory.resolve(DOCTOR.upper())
    assert found is not None and found.address == DOCTOR


@pytest.mark.parametrize(
    "address",
    [
        "nobody@demo-cabinet.mssante.fr",
        "*)(mail=*",
        "*@demo-labo.mssante.fr",
        "*)(mail=*)(x=@demo-labo.mssante.fr",
        "\\2a@demo-labo.mssante.fr",
        "biologie@demo-labo.mssante.fr\x00",
        " biologie@demo-labo.mssante.fr",
        "biologie @demo-labo.mssante.fr",
        "biologié@demo-labo.mssante.fr",
        "a@b@demo-labo.mssante.fr",
        "@demo-labo.mssante.fr",
        "biologie",
        "",
        "a" * 10_000 + "@b",
    ],
)
def test_what_is_no_address_of_a_mailbox_finds_none(directory: Directory, address: str) -> None:
    assert directory.resolve(address) is None


def test_an_address_two_entries_share_is_the_person_s(directory: Directory) -> None:
    found = directory.resolve("shared@demo-labo.mssante.fr")
    assert found is not None and found.kind is MailboxKind.PER


def test_by_identifier_finds_persons_and_structures(directory: Directory) -> None:
    assert [found.address for found in directory.by_identifier("899900000001")] == [DOCTOR]
    assert [found.address for found in directory.by_identifier("1990000002")] == [TEAM]
    for nonsense in ("", "*", "8*", "899900000001)(mail=*", "8" * 100, "8\x00"):
        assert directory.by_identifier(nonsense) == []


def test_anonymous_readers_see_neither_patients_nor_the_red_list(running: Server) -> None:
    connection = connect(running, "anonymous")
    seen = addresses(connection)
    assert {DOCTOR, TEAM} <= seen
    assert not seen & {PATIENT, HIDDEN}
    assert addresses(connection, text=f"(mail={PATIENT})") == set()
    assert addresses(connection, text=f"(mail={HIDDEN})") == {HIDDEN}  # who knows the address may write to it
    assert addresses(connection, text="(listeRouge=TRUE)") == set()
    with pytest.raises(ldap.NO_SUCH_OBJECT):
        addresses(connection, f"ou=patients,{BASE}")
    with pytest.raises(ldap.NO_SUCH_OBJECT):
        connection.compare_s(f"mail={PATIENT},ou=patients,{BASE}", "mail", PATIENT.encode())
    values = connection.search_s(BASE, ldap.SCOPE_SUBTREE, f"(mail={DOCTOR})")[0][1]
    assert "SourceBAL" not in values
    connection.unbind_s()


@pytest.mark.parametrize("who", ["anonymous", "gateway"])
def test_only_the_administrator_writes(running: Server, who: str) -> None:
    connection = connect(running, who)
    with pytest.raises((ldap.INSUFFICIENT_ACCESS, ldap.STRONG_AUTH_REQUIRED)):
        connection.modify_s(f"mail={DOCTOR},ou=professionnels,{BASE}", [(ldap.MOD_REPLACE, "o", [b"x"])])
    connection.unbind_s()


def test_gateway_sees_everything(running: Server) -> None:
    connection = connect(running, "gateway")
    assert {PATIENT, HIDDEN, DOCTOR} <= addresses(connection)
    connection.unbind_s()


def test_an_identity_refused_is_no_unknown_recipient(running: Server) -> None:
    with running.directory(password="wrong") as directory, pytest.raises(DirectoryUnavailableError, match="identity"):
        directory.resolve(DOCTOR)


def test_a_server_somebody_else_certifies_is_not_believed(running: Server, server_files: Path) -> None:
    other = server_files / "other.pem"
    with running.directory(ca_file=other) as directory, pytest.raises(DirectoryUnavailableError):
        directory.resolve(DOCTOR)


def test_a_server_under_another_name_is_not_believed(running: Server) -> None:
    uri = running.slapd.ldaps_uri.replace("127.0.0.1", "localhost")
    with running.directory(uri=uri) as directory, pytest.raises(DirectoryUnavailableError):
        directory.resolve(DOCTOR)


def test_a_base_nobody_loaded_is_no_unknown_recipient(running: Server) -> None:
    with running.directory(base="dc=elsewhere,dc=fr") as directory, pytest.raises(DirectoryUnavailableError):
        directory.resolve(DOCTOR)


def test_ldapi_serves_too_and_plain_ldap_is_refused(running: Server) -> None:
    with running.directory(uri=running.slapd.ldapi_uri, ca_file=None) as directory:
        assert directory.resolve(DOCTOR) is not None
    with pytest.raises(ValueError, match="ldaps"):
        Directory(DirectoryOptions("ldap://127.0.0.1", BASE, "", ""))


def test_many_threads_share_few_connections(running: Server) -> None:
    with running.directory(connections=3) as directory, ThreadPoolExecutor(16) as threads:
        wanted = [DOCTOR, TEAM, PATIENT, "nobody@nowhere.mssante.fr"] * 50
        found = list(threads.map(directory.resolve, wanted))
        assert [recipient.address if recipient else None for recipient in found] == [DOCTOR, TEAM, PATIENT, None] * 50
        assert 1 <= directory.servers()[0].idle <= 3


def test_a_closed_client_says_so(running: Server) -> None:
    with running.directory() as directory:
        assert directory.resolve(DOCTOR) is not None
    with pytest.raises(DirectoryUnavailableError, match="closed"):
        directory.resolve(DOCTOR)


def test_a_server_that_accepts_and_says_nothing_costs_the_timeout_only() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"ldaps://127.0.0.1:{silent.getsockname()[1]}"
        directory = Directory(DirectoryOptions(uri, BASE, "cn=x", "y", timeout_seconds=0.5))
        started = time.monotonic()
        with pytest.raises(DirectoryUnavailableError):
            directory.resolve(DOCTOR)
        assert time.monotonic() - started < 3
        directory.close()


def test_a_full_pool_costs_the_timeout_only(running: Server) -> None:
    with running.directory(connections=1, timeout_seconds=0.2) as directory:
        directory._pool.slots.acquire()
        with pytest.raises(DirectoryUnavailableError, match="busy"):
            directory.resolve(DOCTOR)
        threading.Timer(0.05, directory._pool.slots.release).start()
        directory._pool.options = replace(directory._pool.options, timeout_seconds=10.0)
        assert directory.resolve(DOCTOR) is not None


def test_errors_name_no_address(running: Server) -> None:
    elsewhere = running.directory(base="dc=elsewhere,dc=fr")
    with elsewhere as directory, pytest.raises(DirectoryUnavailableError) as caught:
        directory.resolve(PATIENT)
    assert "2990199" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
