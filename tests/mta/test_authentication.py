"""The dict protocol as Dovecot speaks it, over the real Unix socket, with the real accounts."""

from __future__ import annotations

import asyncio
import json
import secrets
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import structlog
from argon2 import PasswordHasher
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from mta.mailboxes.authentication import (
    MAX_CONNECTIONS,
    MAX_LINE_BYTES,
    AuthenticationSocket,
    credential_key,
    unseal_password,
)
from mta.mailboxes.dovecot import MailboxRealm
from tests.support.private import service_directory
from trust import tables as _tables  # noqa: F401
from trust.accounts import Accounts, Identity
from trust.catalogue import AUTHENTICATION_FAILED
from trust.refusals import Refused
from trust.store import metadata
from trust.store.database import Database
from trust.vault import KeyVault

HELLO = b"H3\t2\t0\t\trelais\n"
ADDRESS = "labo@ville.test"
PASSWORD = "très/secret\t$%u"


@pytest.fixture
def root() -> Iterator[Path]:
    with service_directory() as path:
        yield path


@pytest.fixture
def realm(root: Path) -> MailboxRealm:
    return MailboxRealm(("ville.test",), root / "auth", root / "mail")


@pytest.fixture
def accounts(root: Path) -> Iterator[Accounts]:
    database = Database(f"sqlite:///{root}/db/relais.db")
    metadata.create_all(database.engine)
    quick = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
    accounts = Accounts(database, KeyVault.create(root / "vault"), max_failures=3, hasher=quick)
    accounts.create("labo", [ADDRESS, "secretariat@ville.test"], PASSWORD)
    accounts.create("ailleurs", ["ailleurs@autre.test"], PASSWORD)
    yield accounts
    database.close()


@asynccontextmanager
async def listening(realm: MailboxRealm, accounts: object) -> AsyncIterator[AuthenticationSocket]:
    server = AuthenticationSocket(realm.authentication_socket, accounts, realm.home_of)  # type: ignore[arg-type]
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def ask(realm: MailboxRealm, *lines: bytes) -> list[bytes]:
    reader, writer = await asyncio.open_unix_connection(realm.authentication_socket)
    writer.write(b"".join(lines))
    writer.write_eof()
    replies = (await reader.read()).splitlines()
    writer.close()
    await writer.wait_closed()
    return replies


def seal(key: bytes, password: str) -> str:
    """What Dovecot's `%{encrypt;key=...}` writes."""
    initial = secrets.token_bytes(16)
    padder = PKCS7(128).padder()
    padded = padder.update(password.encode()) + padder.finalize()
    encryptor = Cipher(algorithms.AES(key), modes.CBC(initial)).encryptor()
    return f"{initial.hex()}${(encryptor.update(padded) + encryptor.finalize()).hex()}$"


def login(realm: MailboxRealm, address: str, password: str) -> bytes:
    sealed = seal(credential_key(realm.authentication_socket), password)
    return f"Lshared/login/{address}/{sealed}\t\n".encode()


async def test_sign_in_and_home(realm: MailboxRealm, accounts: Accounts) -> None:
    async with listening(realm, accounts):
        replies = await ask(
            realm,
            HELLO,
            login(realm, ADDRESS, PASSWORD),
            login(realm, "SECRETARIAT@ville.test", PASSWORD),
            login(realm, ADDRESS, "wrong"),
            login(realm, "labo", PASSWORD),
            login(realm, "ailleurs@autre.test", PASSWORD),
            f"Lshared/home/{ADDRESS}\t\n".encode(),
            b"Lshared/home/nobody@ville.test\t\n",
            b"Lshared/home/ailleurs@autre.test\t\n",
        )
    assert [reply[:1] for reply in replies] == [b"O", b"O", b"N", b"N", b"N", b"O", b"N", b"N"]
    assert json.loads(replies[0][1:]) == {"nopassword": "y"}
    home = Path(json.loads(replies[5][1:])["home"])
    assert home == realm.home_of(ADDRESS)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700  # noqa: ASYNC240


async def test_lock_out_is_the_accounts_own(realm: MailboxRealm, accounts: Accounts) -> None:
    async with listening(realm, accounts):
        wrong = [login(realm, ADDRESS, "wrong")] * 3
        assert await ask(realm, HELLO, *wrong, login(realm, ADDRESS, PASSWORD)) == [b"N"] * 4


async def test_where_a_client_is_counts(realm: MailboxRealm, accounts: Accounts) -> None:
    """What Dovecot is configured to send: service and client address behind the password."""

    def from_(client: str, password: str) -> bytes:
        return login(realm, ADDRESS, password)[:-2] + f"/imap/{client}\t\n".encode()

    server = AuthenticationSocket(realm.authentication_socket, accounts, realm.home_of, accounts.open_mailbox)
    await server.start()
    try:
        stranger = [from_("198.51.100.7", f"guess {number}") for number in range(3)]
        replies = await ask(
            realm,
            HELLO,
            *stranger,
            from_("198.51.100.8", PASSWORD),
            from_("192.0.2.1", PASSWORD),
            from_("2001:db8::1", PASSWORD),
            from_("", PASSWORD),
        )
    finally:
        await server.stop()
    assert [reply[:1] for reply in replies] == [b"N", b"N", b"N", b"N", b"O", b"O", b"O"]


async def test_an_exception_is_a_temporary_failure_and_says_no_password(realm: MailboxRealm) -> None:
    class Broken:
        def authenticate(self, login: str, password: str) -> Identity | Refused:
            raise OSError(f"no database for {password}")

        def by_address(self, address: str) -> Identity | None:
            raise OSError("no database")

    with structlog.testing.capture_logs() as logs:
        async with listening(realm, Broken()):
            replies = await ask(realm, HELLO, login(realm, ADDRESS, PASSWORD), f"Lshared/home/{ADDRESS}\n".encode())
    assert replies == [b"F", b"F"]
    assert [entry["error"] for entry in logs] == ["OSError", "OSError"]
    assert "secret" not in str(logs)


async def test_lookups_of_one_connection_run_together_and_are_answered_in_order(realm: MailboxRealm) -> None:
    """Dovecot asks everything over one connection: one slow answer must not have the next wait to be worked on."""
    together = threading.Barrier(4, timeout=20)

    class Meeting:
        def authenticate(self, login: str, password: str) -> Identity | Refused:
            raise AssertionError

        def by_address(self, address: str) -> Identity | None:
            together.wait()
            return Identity("opaque", address, (address,)) if address < "c" else None

    async with listening(realm, Meeting()):
        asked = [f"Lshared/home/{letter}@ville.test\n".encode() for letter in "abcdaxbd"]
        replies = await ask(realm, HELLO, *asked)
    assert [reply[:1] for reply in replies] == [b"O", b"O", b"N", b"N", b"O", b"N", b"O", b"N"]


async def test_tokens(realm: MailboxRealm, accounts: Accounts) -> None:
    """With these mechanisms what Dovecot calls the password is a token, and never tried as a password."""
    seen = []

    def tokens(login: str, token: str) -> Identity | Refused:
        seen.append((login, token))
        return Identity("opaque", login, (login,)) if token == "e30.e30.x" else Refused(AUTHENTICATION_FAILED)

    def by(mechanism: str, words: str) -> bytes:
        return login(realm, ADDRESS, words)[:-2] + f"/imap/192.0.2.1/{mechanism}\t\n".encode()

    asked = [by("XOAUTH2", "e30.e30.x"), by("oauthbearer", "e30.e30.x"), by("XOAUTH2", PASSWORD), by("PLAIN", PASSWORD)]
    asked.append(by("XOAUTH2", "x" * 16 * 1024))
    for given, expected in ((tokens, [b"O", b"O", b"N", b"O", b"N"]), (None, [b"N", b"N", b"N", b"O", b"N"])):
        server = AuthenticationSocket(
            realm.authentication_socket, accounts, realm.home_of, accounts.open_mailbox, given
        )
        await server.start()
        try:
            assert [reply[:1] for reply in await ask(realm, HELLO, *asked)] == expected
        finally:
            await server.stop()
    assert len(seen) == 4


@pytest.mark.parametrize(
    "line",
    [
        b"Lshared/login/labo@ville.test/clear-password\t\n",
        b"Lshared/login/labo@ville.test/\t\n",
        b"Lshared/login/labo@ville.test/00$00$\t\n",
        b"Lshared/login//\t\n",
        b"Lpriv/home/labo@ville.test\tlabo\n",
        b"Lshared/other\n",
        b"L\n",
        b"Lshared/home/\xff@ville.test\n",
        b"Lshared/home/a\x01\n",
        b"Lshared/home/labo@ville.test\x01n\n",
        b"Lshared/home/labo@ville.test\x010\n",
        b"Lshared/home/labo@ville.test/x\n",
        b"Lshared/home/labo@ville.test\xc2\xa0\n",
        b"Lshared/login/a/b@ville.test/00$00$/imap/192.0.2.1/PLAIN\n",
        b"Lshared/login/labo@ville.test/00$00$/imap/192.0.2.1/PLAIN/x\n",
    ],
)
async def test_strange_lookups_find_nothing(realm: MailboxRealm, accounts: Accounts, line: bytes) -> None:
    async with listening(realm, accounts):
        assert await ask(realm, HELLO, line) == [b"N"]


@pytest.mark.parametrize(
    "lines",
    [
        [b"H9\t0\t0\t\trelais\n", b"Lshared/home/labo@ville.test\n"],
        [b"Lshared/home/labo@ville.test\n"],
        [HELLO, b"B1\n"],
        [HELLO, b"I0\tshared/\n"],
        [HELLO, b"Lshared/home/labo@ville.test"],
        [HELLO, b"L" + b"x" * (2 * MAX_LINE_BYTES) + b"\n"],
    ],
)
async def test_anything_but_lookups_closes_the_connection(
    realm: MailboxRealm, accounts: Accounts, lines: list[bytes]
) -> None:
    async with listening(realm, accounts):
        with suppress(ConnectionResetError):
            assert await ask(realm, *lines) == []
        assert (await ask(realm, HELLO, b"Lshared/home/labo@ville.test\n"))[0].startswith(b"O")


async def test_replies_escape_what_would_break_a_line(realm: MailboxRealm, accounts: Accounts) -> None:
    server = AuthenticationSocket(realm.authentication_socket, accounts, lambda _: realm.home / "a\tb")
    await server.start()
    try:
        (reply,) = await ask(realm, HELLO, f"Lshared/home/{ADDRESS}\n".encode())
    finally:
        await server.stop()
    assert b"\t" not in reply
    assert json.loads(reply[1:])["home"].endswith("a\tb")


async def test_socket_is_private_replaces_a_stale_one_and_goes_away(realm: MailboxRealm, accounts: Accounts) -> None:
    realm.authentication_socket.touch()
    async with listening(realm, accounts):
        assert stat.S_IMODE(realm.authentication_socket.stat().st_mode) == 0o600
        key = realm.authentication_socket.with_name("auth.key")
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert not realm.authentication_socket.exists()
    async with listening(realm, accounts):
        assert credential_key(realm.authentication_socket) == key.read_bytes()


async def test_slow_accounts_do_not_stop_the_loop_and_connections_are_bounded(realm: MailboxRealm) -> None:
    release = threading.Event()

    class Slow:
        def authenticate(self, login: str, password: str) -> Identity | Refused:
            raise AssertionError

        def by_address(self, address: str) -> Identity | None:
            assert release.wait(20)
            return Identity("opaque", address, (address,))

    async with listening(realm, Slow()):
        pending = [asyncio.create_task(ask(realm, HELLO, f"Lshared/home/{ADDRESS}\n".encode())) for _ in range(8)]
        idle = [await asyncio.open_unix_connection(realm.authentication_socket) for _ in range(MAX_CONNECTIONS)]
        assert await idle[-1][0].read() == b""  # one too many: closed at once, though lookups are stuck
        release.set()
        assert all(reply[0].startswith(b"O") for reply in await asyncio.gather(*pending))
        for _, writer in idle:
            writer.close()


def test_passwords_unseal_only_with_their_key() -> None:
    key = secrets.token_bytes(32)
    assert unseal_password(key, seal(key, PASSWORD)) == PASSWORD
    assert unseal_password(secrets.token_bytes(32), seal(key, PASSWORD)) != PASSWORD
    for broken in ("", "$", "zz$zz$", "00" * 16 + "$" + "00" * 15 + "$", "é$é$"):
        assert unseal_password(key, broken) is None
