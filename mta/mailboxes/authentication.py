"""Dovecot asks, `trust.accounts` answers: the server side of Dovecot's dict protocol on a private Unix socket.

Dovecot keeps no copy of a password. Its `dict` passdb and userdb send two kinds of lookup here (Dovecot 2.3,
`lib-dict/dict-client.h`): `login/<address>/<sealed password>/<service>/<client address>/<mechanism>` to sign in (with
XOAUTH2 and OAUTHBEARER the password is an access token), `home/<address>` when LMTP or IMAP needs to know where an
address lives. The password is sealed by Dovecot (AES-256-CBC, key of this socket) only because Dovecot writes the whole
key of a lookup that failed or was slow to its log; the socket itself is open to one user. A third,
`member/<member>/<sealed password>/<team>/<service>/<client address>/<mechanism>`, opens a team's mailbox to a member,
whose name then follows the address in `home/<address>/<member>/<service>`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import structlog
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from mta.mailboxes.serving import Serving
from mta.private_socket import private_socket
from trust.accounts import Identity, Service
from trust.catalogue import AUTHENTICATION_FAILED
from trust.refusals import Refused
from trust.store.durable import make_private_directory, write_durably

KEY_BYTES = 32
HELD = "held"
"""File in a mailbox's home: it is being moved, so its mail waits and nobody opens it (`mta.mailboxes.moving`)."""
MAX_LINE_BYTES = 40 * 1024
"""A lookup is an address (RFC 5321: 254 octets) and a password, or a token of at most `trust.oidc.MAX_TOKEN`, sealed in
hexadecimal."""
MAX_CONNECTIONS = 256
MAX_CONCURRENT = 4
"""Lookups under way at once, of one connection and of all: argon2id is meant to be costly, in memory too. Dovecot asks
all it has to ask over one connection, and hears the answers in the order of its questions."""

_MOVER = "doveadm"
"""The service of Dovecot that moves a mailbox."""
_THIS_MACHINE = frozenset({"127.0.0.1", "::1"})
_TOKEN_MECHANISMS = frozenset({"XOAUTH2", "OAUTHBEARER"})
_DICT_MAJOR_VERSIONS = frozenset({2, 3})
_UNESCAPED = {"0": "\0", "1": "\x01", "t": "\t", "r": "\r", "n": "\n"}
_ESCAPED = str.maketrans({value: "\x01" + name for name, value in _UNESCAPED.items()})

_log = structlog.get_logger(__name__)


class MailboxHeldError(Exception):
    """The mailbox is being moved: Dovecot must hear "later"."""


class Accounts(Protocol):
    """What is needed of `trust.accounts`: synchronous, thread-safe, lock-out included."""

    def authenticate(self, login: str, password: str) -> Identity | Refused: ...

    def by_address(self, address: str) -> Identity | None: ...


SignIn = Callable[[str, str, str, Service], Identity | Refused]
"""Who may read a mailbox: its address, the password, the client's address (may be empty) and what for."""


class AuthenticationSocket:
    """Answers Dovecot's lookups about the addresses of one operator.

    `home_of` gives the directory of an address, or None when the address is of none of its domains; it is created here
    when missing, mode 0700, so Dovecot must run as the same user as this process.
    A wrong password, a locked account and an unknown address are the same answer to Dovecot; an exception of `accounts`
    (its database is down) is "ask again later": IMAP says UNAVAILABLE, LMTP 451, never 550.
    """

    def __init__(
        self,
        path: Path,
        accounts: Accounts,
        home_of: Callable[[str], Path | None],
        sign_in: SignIn | None = None,
        tokens: Callable[[str, str], Identity | Refused] | None = None,
        serving: Serving | None = None,
        tickets: Callable[[str, str], bool] = lambda _address, _secret: False,
    ) -> None:
        """`sign_in` (`trust.accounts.Accounts.open_mailbox`) also lets in those who were granted a mailbox, and weighs
        where they come from; without it only an address's own identity gets in. `tokens` says whose an access token is,
        given the address, and refuses who may not use that; None: no token is taken. `serving` adds what Dovecot needs
        to serve the mailbox; None: only where it lies is said, and no team is opened to a member. `tickets` says
        whether this is a pass that a door of ours (`mta.mailboxes.certificate_door`) just gave for this address."""
        self.path = path
        self._accounts = accounts
        self._sign_in = sign_in or self._owner
        self._tokens = tokens
        self._serving = serving
        self._tickets = tickets
        self._home_of = home_of
        self._server: asyncio.Server | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._key = b""

    async def start(self) -> None:
        """Listen, mode 0600; replaces a socket left by a killed process. Raises OSError when the path is not usable."""
        self._key = await asyncio.to_thread(credential_key, self.path)
        self._executor = ThreadPoolExecutor(MAX_CONCURRENT, thread_name_prefix="mailbox-authentication")
        self._server = await asyncio.start_unix_server(
            self._serve, sock=private_socket(self.path), limit=MAX_LINE_BYTES
        )

    async def stop(self) -> None:
        """Close the socket and its connections, let lookups under way finish, and remove the file."""
        if self._server is None or self._executor is None:
            return
        self._server.close()
        for writer in tuple(self._connections):
            writer.close()
        await self._server.wait_closed()
        await asyncio.to_thread(self._executor.shutdown)
        self.path.unlink(missing_ok=True)
        self._server = self._executor = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.close()
            return
        self._connections.add(writer)
        try:
            await self._converse(reader, writer)
        except (ConnectionError, ValueError):
            # ValueError: a line past the limit. Nothing of it is logged: it may hold a password.
            _log.warning("mailbox-authentication-connection-dropped")
        finally:
            self._connections.discard(writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One reply per lookup, in order; lookups of one address run one after the other. Any other command closes the
        connection."""
        if not _acceptable_hello(await reader.readline()):
            return
        # Besides those in the queue one is being answered, and one waits to be let in.
        answers: asyncio.Queue[asyncio.Task[str] | None] = asyncio.Queue(MAX_CONCURRENT - 2)
        replying = asyncio.create_task(_reply(answers, writer))
        latest: deque[tuple[str, asyncio.Task[str]]] = deque(maxlen=MAX_CONCURRENT)
        try:
            while (line := await reader.readline()).startswith(b"L") and line.endswith(b"\n"):
                key = _unescape(line[1:-1].decode("utf-8", "replace").split("\t")[0])
                address = "".join(key.split("/")[2:3])
                before = next((task for known, task in reversed(latest) if known == address), None)
                answer = asyncio.create_task(self._answer(key, before))
                latest.append((address, answer))
                await answers.put(answer)
        finally:
            if not replying.done():
                await answers.put(None)
            await replying

    async def _answer(self, key: str, before: asyncio.Task[str] | None) -> str:
        """The reply of one lookup, once `before` is done: `O<json>`, `N` (not found) or `F` (failed, try later)."""
        if before is not None:
            await before
        try:
            fields = await asyncio.get_running_loop().run_in_executor(self._executor, self.look_up, key)
        except MailboxHeldError:
            return "F"
        except Exception as error:  # whatever it is, Dovecot must hear "later", never "unknown" (550)
            # The class only: a traceback that shows local variables would show a password.
            _log.error("mailbox-authentication-unavailable", error=type(error).__name__)
            return "F"
        return "N" if fields is None else "O" + json.dumps(fields).translate(_ESCAPED)

    def look_up(self, key: str) -> dict[str, str] | None:
        """Dovecot's fields for `shared/login/<address>/<sealed>[/<service>/<client address>[/<mechanism>]]` or
        `shared/home/<address>[/<member>/<service>]` or
        `shared/member/<member>/<sealed>/<team>/<service>/<client address>/<mechanism>`, None when refused."""
        match key.split("/"):
            case ["shared", "login", address, sealed]:
                return self._log_in(address.lower(), sealed, "", "")
            case ["shared", "login", address, sealed, _, client]:
                return self._log_in(address.lower(), sealed, client, "")
            case ["shared", "login", address, sealed, _, client, mechanism]:
                return self._log_in(address.lower(), sealed, client, mechanism)
            case ["shared", "home", address]:
                return self._home(address.lower())
            case ["shared", "home", address, member, service]:
                return self._home(address.lower(), member.lower(), service)
            case ["shared", "member", member, sealed, team, service, client, mechanism]:
                return self._open_team(member.lower(), sealed, team.lower(), service, client, mechanism)
            case _:
                return None

    def _log_in(self, address: str, sealed: str, client: str, mechanism: str) -> dict[str, str] | None:
        password = unseal_password(self._key, sealed)
        if not password or self._home_of(address) is None:
            return None
        if self._tickets(address, password):
            return {"nopassword": "y"}
        # IMAP and ManageSieve alike: whoever may write in a mailbox may say how it is sorted.
        return None if self._proven(address, password, client, mechanism) is None else {"nopassword": "y"}

    def _proven(self, address: str, secret: str, client: str, mechanism: str) -> Identity | None:
        """Who opens the mailbox of this address with that password or token."""
        found: Identity | Refused | None
        if mechanism.upper() in _TOKEN_MECHANISMS:
            found = None if self._tokens is None else self._tokens(address, secret)
        else:
            found = self._sign_in(address, secret, client, Service.IMAP)
        return None if isinstance(found, Refused) else found

    def _owner(self, address: str, password: str, _client: str, _service: Service) -> Identity | Refused:
        identity = self._accounts.authenticate(address, password)
        if isinstance(identity, Refused) or address in identity.addresses:
            return identity
        return Refused(AUTHENTICATION_FAILED)

    def _open_team(
        self, member: str, sealed: str, team: str, service: str, client: str, mechanism: str
    ) -> dict[str, str] | None:
        """With the ticket of the member's own session, which never leaves this machine, or the member's password or
        token; either way only what they may."""
        secret = unseal_password(self._key, sealed)
        if not secret or self._serving is None or self._home_of(team) is None or self._home_of(member) is None:
            return None
        known = client in _THIS_MACHINE and self._serving.is_ticket(member, secret)
        if not known and not self._tickets(member, secret):
            found = self._proven(member, secret, client, mechanism)
            if found is None or member not in found.addresses:
                return None  # whom the member lets into their own mailbox is no member
        return {"nopassword": "y"} if self._serving.may_open(member, team, service) else None

    def _home(self, address: str, member: str = "", service: str = "") -> dict[str, str] | None:
        home = self._home_of(address)
        if home is None:
            return None
        if service != _MOVER and (home / HELD).exists():
            raise MailboxHeldError
        # Dovecot would make the home, but only after Sieve has looked there for the deliveries it has already seen.
        if self._serving is not None:
            return self._serving.fields(address, home, member, service)
        if member or self._accounts.by_address(address) is None:
            return None
        make_private_directory(home)
        return {"home": str(home)}


async def _reply(answers: asyncio.Queue[asyncio.Task[str] | None], writer: asyncio.StreamWriter) -> None:
    """Write what comes through the queue, until None; when nobody listens any more, only take it out."""
    listening = True
    while (answer := await answers.get()) is not None:
        reply = await answer
        if listening:
            try:
                writer.write((reply + "\n").encode())
                await writer.drain()
            except ConnectionError:
                listening = False


def is_held(home_of: Callable[[str], Path | None], address: str) -> bool:
    """Whether its mail waits, as far as this machine knows."""
    home = home_of(address)
    return home is not None and (home / HELD).exists()


def credential_key(socket_path: Path) -> bytes:
    """The key with which Dovecot seals passwords for this socket: 32 bytes in `<socket>.key`, mode 0600, made once.

    Both sides read it, so that neither has to start first.
    """
    path = socket_path.with_name(socket_path.name + ".key")
    with contextlib.suppress(FileExistsError):
        make_private_directory(path.parent)
        write_durably(path, secrets.token_bytes(KEY_BYTES), replace=False)
    return path.read_bytes()


def unseal_password(key: bytes, sealed: str) -> str | None:
    """Undo Dovecot's `%{encrypt;key=...:password}`: `<iv>$<ciphertext>$` in hexadecimal; None when it is not that."""
    initial, _, rest = sealed.partition("$")
    try:
        decryptor = Cipher(algorithms.AES(key), modes.CBC(bytes.fromhex(initial))).decryptor()
        padded = decryptor.update(bytes.fromhex(rest.removesuffix("$"))) + decryptor.finalize()
        unpadder = PKCS7(128).unpadder()
        return (unpadder.update(padded) + unpadder.finalize()).decode()
    except ValueError:
        return None


def _acceptable_hello(line: bytes) -> bool:
    """`H<major>\\t<minor>\\t...`: the lookups are the same in all known majors."""
    major = line[1:].partition(b"\t")[0]
    return line.startswith(b"H") and major.isdigit() and int(major) in _DICT_MAJOR_VERSIONS


def _unescape(text: str) -> str:
    """Undo Dovecot's tab escaping (`strescape.c`): 0x01 and one character."""
    first, *rest = text.split("\x01")
    return first + "".join(_UNESCAPED.get(part[:1], "") + part[1:] for part in rest)
