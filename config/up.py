"""`relais up`: everything on one machine, supervised: slapd, Dovecot and the two operators of the demonstration.

Order: drop privileges, make what is missing, start the servers, write `endpoints.json`, stay until a signal. The
supervisor opens no socket itself and holds no key; each gateway is a process of its own with its own state.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from config import demonstration, ports
from config.control import ControlError, ask
from config.demonstration import OPERATORS, DemonstrationOperator, World
from config.logs import without_addresses
from config.privileges import drop
from config.supervise import Supervisor
from directory.resolve import Directory, DirectoryOptions
from directory.slapd import PrivateSlapd, SlapdError, SlapdOptions
from mta.mailboxes.dovecot import DovecotOptions, MailboxRealm, PrivateDovecot

log = structlog.get_logger(__name__)

T = TypeVar("T")

LONGEST_STATE = 64
"""Characters of the state's path: below it servers make Unix sockets, whose paths end at 107 (unix(7))."""
PORT_NAMES = (
    "imaps",
    "imap-teams",
    "managesieve",
    "imap-certificates-laboratoire",
    "imap-certificates-ville",
    "ldaps",
    "mllp",
    "submission",
    "operators-laboratoire",
    "operators-ville",
    "submission-ville",
    "submissions",
    "submissions-ville",
    "discovery-laboratoire",
    "discovery-ville",
    "receiver",
    "metrics-laboratoire",
    "metrics-ville",
)


class UpError(Exception):
    """`relais up` cannot go on; the message is a sentence for the person at the terminal."""


@dataclass(frozen=True, slots=True)
class Running:
    """What is up, for whoever wants to use it while it runs."""

    world: World
    endpoints: Path
    pids: Callable[[], dict[str, int]]


class Gateway:
    """One `relais serve` as the supervisor sees it."""

    def __init__(self, configuration: Path, control: Path) -> None:
        self._configuration = configuration
        self._control = control

    def prepare(self) -> None:
        self._control.unlink(missing_ok=True)

    def command(self) -> tuple[str, ...]:
        return (sys.executable, "-P", "-m", "config", "serve", "--config", str(self._configuration))

    def ready(self) -> bool:
        try:
            return bool(ask(self._control, "ping", seconds=2.0))
        except ControlError:
            return False


class Receiver:
    """The laboratory's own listener for acknowledgements, as the supervisor sees it."""

    def __init__(self, port: int, folder: Path) -> None:
        self._port = port
        self._folder = folder

    def prepare(self) -> None:
        self._folder.mkdir(exist_ok=True, mode=0o700)

    def command(self) -> tuple[str, ...]:
        arguments = ("--port", str(self._port), "--folder", str(self._folder))
        return (sys.executable, "-P", "-m", "config", "bridge", "listen", *arguments)

    def ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1.0):
                return True
        except OSError:
            return False


async def up(
    state: Path,
    *,
    wanted_ports: Mapping[str, int],
    then: Callable[[Running], Awaitable[bool]] | None = None,
    oneshot: bool = False,
    say: Callable[[str], None] = print,
) -> bool:
    """Start everything and stay until SIGINT or SIGTERM; with `oneshot` only until `then` has run.

    `state` is what `become_service` returned. `then` is called once all servers are ready; its answer is ours (True:
    all went well). Raises `UpError` or `StartError`.
    """
    world = World(state)
    lock = only_one(state)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    logs = state / "log"
    logs.mkdir(exist_ok=True, mode=0o700)
    (state / "endpoints.json").unlink(missing_ok=True)
    supervisor = Supervisor(logs)
    afterwards: list[Callable[[], None]] = []

    async def bring_up() -> Running:
        started = time.monotonic()
        known = await asyncio.to_thread(demonstration.prepare, world)
        chosen = await asyncio.to_thread(ports.choose, PORT_NAMES, state / "ports.json", wanted_ports)
        slapd = _slapd(world, known, chosen)
        try:
            await asyncio.to_thread(slapd.prepare)
            await asyncio.to_thread(demonstration.load_directory, world, slapd)
        except SlapdError as error:
            raise UpError(str(error)) from error
        await supervisor.start("slapd", slapd, outlives=True)
        await asyncio.to_thread(_publish, world, slapd, known)
        dovecot = _dovecot(world, chosen)
        gateways = {
            operator.key: Gateway(
                _configure(world, operator, chosen, slapd, dovecot), world.of(operator) / "control.sock"
            )
            for operator in OPERATORS
        }
        await asyncio.gather(
            supervisor.start("receiver", Receiver(chosen["receiver"], world.received)),
            *(supervisor.start(name, gateway, holds_keys=True) for name, gateway in gateways.items()),
        )
        # After the gateways that answer its questions, and ended after them: what they drain still finds its mailbox.
        afterwards.append(dovecot.clear)
        await supervisor.start("dovecot", dovecot, clean=without_addresses, outlives=True)
        endpoints = _write_endpoints(world, known, chosen)
        say(f"Relais is up after {time.monotonic() - started:.1f} s; everything to connect with is in {endpoints}")
        log.info("up.ready", children=supervisor.pids())
        return Running(world, endpoints, supervisor.pids)

    try:
        running = await unless_stopped(bring_up(), stop)
        well: bool | None = None
        if running is not None and then is not None:
            well = await unless_stopped(then(running), stop)
        if oneshot:
            # A signal before the end: it did not arrive, or it did not even start.
            return bool(well) if then is not None else running is not None
        await stop.wait()
        return well is not False
    finally:
        (state / "endpoints.json").unlink(missing_ok=True)
        await supervisor.stop()
        for clear in afterwards:
            clear()
        os.close(lock)


def become_service(state: Path) -> Path:
    """Drop privileges and stand in the state directory; its real path (links are followed while we still may).

    Called before the event loop exists, for that opens sockets. Raises `UpError` or `PrivilegeError`.
    """
    state = state.resolve()
    if len(str(state)) > LONGEST_STATE:
        raise UpError(f"{state} is too long for Unix sockets: give a --state of at most {LONGEST_STATE} characters")
    try:
        drop(state)
        os.chdir(state)
    except OSError as error:
        raise UpError(f"{state} cannot be the state directory: {error.strerror}") from error
    return state


async def unless_stopped(work: Awaitable[T], stop: asyncio.Event) -> T | None:
    """The result of `work`, or None when a signal ends it first."""
    task = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return None


def only_one(state: Path) -> int:
    """One supervisor per state directory, however the last one ended."""
    descriptor = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UpError(f"another relais up or connect uses {state}: stop it first, or choose --state") from error
    return descriptor


def _slapd(world: World, known: Mapping[str, str], chosen: Mapping[str, int]) -> PrivateSlapd:
    return PrivateSlapd(
        SlapdOptions(
            state=world.state / "directory",
            port=chosen["ldaps"],
            certificate_chain=world.server_chain,
            key=world.server_key,
            ca=world.anchors,
            admin_password=known["directory-admin"],
            gateway_password=known["directory-gateway"],
        )
    )


def _publish(world: World, slapd: PrivateSlapd, known: Mapping[str, str]) -> None:
    directory = Directory(
        DirectoryOptions(
            uri=slapd.ldaps_uri,
            base=demonstration.BASE,
            bind_dn=slapd.admin_dn,
            password=known["directory-admin"],
            ca_file=world.anchors,
        )
    )
    try:
        demonstration.publish(world, directory)
    finally:
        directory.close()


def _dovecot(world: World, chosen: Mapping[str, int]) -> PrivateDovecot:
    return PrivateDovecot(
        DovecotOptions(
            state=world.state / "dovecot",
            imaps_port=chosen["imaps"],
            loopback_port=chosen["imap-teams"],
            managesieve_port=chosen["managesieve"],
            log_to_stderr=True,
            certificate_chain=world.server_chain,
            key=world.server_key,
            realms=tuple(
                MailboxRealm(
                    domains=operator.domains,
                    authentication_socket=world.of(operator) / "authentication.sock",
                    home=world.of(operator) / "mail",
                )
                for operator in OPERATORS
            ),
        )
    )


def _configure(
    world: World,
    operator: DemonstrationOperator,
    chosen: Mapping[str, int],
    slapd: PrivateSlapd,
    dovecot: PrivateDovecot,
) -> Path:
    """The operator's `relais.toml`, rewritten at each start because ports may have moved."""
    home = world.of(operator)
    text = json.dumps  # a JSON string is a TOML basic string
    sections = [
        "# Written by `relais up` at every start; the reference with every key explained is config/relais.toml.",
        "[operator]",
        f"name = {text(operator.name, ensure_ascii=False)}",
        f"host = {text(operator.host)}",
        f"domains = {text(list(operator.domains))}",
        f"postmaster = {text(operator.postmaster)}",
        "[identity]",
        'environment = "test"',
        "[trust]",
        f"anchors = {text(str(world.anchors))}",
        f"intermediates = {text(str(world.intermediates))}",
        f"list = {text(str(world.trust_list))}",
        f"list_signer = {text(world.list_signer.read_text(), ensure_ascii=False)}",
        'operator_chain = "operator.pem"',
        'operator_key = "operator.key"',
        "[directory]",
        f"uri = {text(slapd.ldaps_uri)}",
        f"base = {text(demonstration.BASE)}",
        f"bind_dn = {text(slapd.gateway_dn)}",
        'password_file = "directory.password"',
        f"writer_dn = {text(slapd.admin_dn)}",
        'writer_password_file = "directory-writer.password"',
        f"ca = {text(str(world.anchors))}",
        "[operators]",
        'host = "127.0.0.1"',
        f"port = {chosen[f'operators-{operator.key}']}",
        "[mailboxes]",
        f"lmtp_socket = {text(str(dovecot.lmtp_socket))}",
        f"search_socket = {text(str(dovecot.search_socket))}",
        'authentication_socket = "authentication.sock"',
        'home = "mail"',
        # The laboratory of the demonstration is somebody at a mail program.
        "machine_passwords = true",
        f"memory = {text(str(dovecot.memory))}",
        "[imap_certificates]",
        'host = "127.0.0.1"',
        f"port = {chosen[f'imap-certificates-{operator.key}']}",
        f"chain = {text(str(world.server_chain))}",
        f"key = {text(str(world.server_key))}",
        f"dovecot_port = {chosen['imaps']}",
        f"dovecot_ca = {text(str(world.anchors))}",
        "[dossier]",
        f"enabled = {text(operator.dossier)}",
        "[dkim]",
        f"selector = {text(demonstration.DKIM_SELECTOR)}",
        'key = "dkim.key"',
        "[submission]",
        'host = "127.0.0.1"',
        f"port = {chosen['submission-ville' if operator.key == 'ville' else 'submission']}",
        f"chain = {text(str(world.server_chain))}",
        f"key = {text(str(world.server_key))}",
        "[submissions]",
        'host = "127.0.0.1"',
        f"port = {chosen['submissions-ville' if operator.key == 'ville' else 'submissions']}",
        "[discovery]",
        f"port = {chosen[f'discovery-{operator.key}']}",
        'mail_host = "localhost"',
        f"imaps_port = {chosen['imaps']}",
        f"sieve_port = {chosen['managesieve']}",
        f"submission_port = {chosen['submission-ville' if operator.key == 'ville' else 'submission']}",
        f"submissions_port = {chosen['submissions-ville' if operator.key == 'ville' else 'submissions']}",
        'address_book_host = "localhost"',
        f"address_book_port = {chosen['ldaps']}",
        f"ca = {text(str(world.anchors))}",
        "[metrics]",
        f"port = {chosen[f'metrics-{operator.key}']}",
        # No DNS knows the domains of the demonstration.
        "[evaluation]",
        "dns = false",
        # The authority of the demonstration publishes no revocation: nobody could ever answer.
        "[revocation]",
        'outbound = "soft"',
        'operators = "soft"',
        'list = "soft"',
        # A machine's next try soon: in a demonstration somebody is watching.
        "[spool]",
        "first_retry_seconds = 1",
        "longest_retry_seconds = 60",
        # For a mail server of the house: only this user, and root, may connect.
        "[[lmtp]]",
        'name = "maison"',
        'socket = "lmtp-in.sock"',
        f"senders = {text([f'@{domain}' for domain in operator.domains])}",
    ]
    if demonstration.LABORATORY in operator.mailboxes:
        sections += [
            "[[mllp]]",
            'host = "127.0.0.1"',
            f"port = {chosen['mllp']}",
            'partner = "sil-tilleuls"',
            f"sender = {text(demonstration.LABORATORY.address)}",
            f"sender_name = {text(demonstration.LABORATORY.display_name)}",
            f"receiver_port = {chosen['receiver']}",
            "[[follow]]",
            f"sender = {text(demonstration.LABORATORY.address)}",
            "critical_minutes = 60",
        ]
    if demonstration.HOSPITAL in operator.mailboxes:
        sections += [
            "[[letters]]",
            f"sender = {text(demonstration.HOSPITAL.address)}",
            f"sender_name = {text(demonstration.HOSPITAL.display_name)}",
            'folder = "letters"',
            "[[collect]]",
            'name = "ancienne-boite"',
            'host = "127.0.0.1"',
            f"port = {chosen['imaps']}",
            f"ca = {text(str(world.anchors))}",
            f"user = {text(demonstration.COLLECTED.address)}",
            'password_file = "collect.password"',
            f"deliver_to = {text(demonstration.HOSPITAL.address)}",
        ]
    for other in OPERATORS:
        if other is operator:
            continue
        published = demonstration.dkim_public_key(world, other)
        for domain in other.domains:
            sections += [
                "[[partners]]",
                f"domain = {text(domain)}",
                'host = "127.0.0.1"',
                f"port = {chosen[f'operators-{other.key}']}",
                f"dkim_selector = {text(demonstration.DKIM_SELECTOR)}",
                f"dkim_public_key = {text(published)}",
            ]
    path = home / "relais.toml"
    demonstration.write(path, "\n".join(sections).encode() + b"\n")
    return path


def _write_endpoints(world: World, known: Mapping[str, str], chosen: Mapping[str, int]) -> Path:
    """Where to connect and with which accounts; written last, so that its presence means ready."""

    def at(name: str) -> dict[str, object]:
        return {"host": "127.0.0.1", "port": chosen[name]}

    described = {
        "ca_file": str(world.anchors),
        "mllp": at("mllp"),
        "imaps": at("imaps"),
        "managesieve": at("managesieve"),
        "imap_certificates": {operator.key: at(f"imap-certificates-{operator.key}") for operator in OPERATORS},
        "submission": at("submission-ville"),
        "submissions": at("submissions-ville"),
        "receiver": {**at("receiver"), "folder": str(world.received)},
        "metrics": {operator.key: at(f"metrics-{operator.key}") for operator in OPERATORS},
        "letters": str(world.state / "laboratoire" / "letters"),
        "ldaps": {**at("ldaps"), "base": demonstration.BASE},
        "accounts": [
            {
                "role": mailbox.role,
                "address": mailbox.address,
                "user": mailbox.address,
                "password": known[mailbox.address],
                "submission": at("submission-ville" if operator.key == "ville" else "submission"),
                "submissions": at("submissions-ville" if operator.key == "ville" else "submissions"),
                "discovery": at(f"discovery-{operator.key}"),
            }
            for operator in OPERATORS
            for mailbox in operator.mailboxes
            if mailbox.role
        ],
    }
    path = world.state / "endpoints.json"
    demonstration.write(path, json.dumps(described, indent=1).encode() + b"\n")
    return path
