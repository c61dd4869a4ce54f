"""A private Dovecot: its configuration, generated in full, and how to tell that it is up.

Mailboxes are Dovecot's (2.3): IMAPS for people, LMTP on a Unix socket for our deliveries, Sieve for filing. It runs as
an ordinary user from one private directory and owns nothing outside it but the mail, and a directory in memory for
what it puts aside in clear. Who may sign in, where an address lives and with which key is asked of
`mta.mailboxes.authentication` at every turn. This module writes files and argv; the composition root starts, watches
and stops the process.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import shutil
import socket
import ssl
import stat
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mta.mailboxes import dovecot_text as text
from mta.mailboxes.authentication import credential_key
from mta.mailboxes.dovecot_text import DELIVERY_HEADER, DUPLICATE_SECONDS
from mta.mailboxes.serving import SHARED_NAMESPACE
from trust.tls import TLS12_SUITES

__all__ = [
    "DELIVERY_HEADER",
    "DUPLICATE_SECONDS",
    "DovecotConfigurationError",
    "DovecotOptions",
    "MailboxRealm",
    "PrivateDovecot",
    "check_configuration",
    "mail_location",
    "memory_directory",
]

_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+")
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._/+@:=-]*")


class DovecotConfigurationError(ValueError):
    """The options cannot become a safe configuration: the text says which one and why."""


@dataclass(frozen=True, slots=True)
class MailboxRealm:
    """Some domains, the gateway that answers for their accounts, and where their mail lives."""

    domains: tuple[str, ...]
    """Lower-case mail domains."""
    authentication_socket: Path
    """Where that gateway's `AuthenticationSocket` listens."""
    home: Path
    """Directory above the homes of all addresses of these domains."""
    name_of: Callable[[str], str] = field(default=lambda address: hashlib.sha256(address.encode()).hexdigest()[:40])
    """Name of an address's directory. A patient's address holds a matricule, which a plain digest does not hide from
    whoever tries all of them: give the vault's pseudonym wherever patients have mailboxes."""

    def home_of(self, address: str) -> Path | None:
        """Directory of an address, None when its domain is not of this realm."""
        address = address.lower()
        if address.rpartition("@")[2] not in self.domains:
            return None
        return self.home / self.name_of(address)


@dataclass(frozen=True, slots=True)
class DovecotOptions:
    """How the private Dovecot is set up."""

    state: Path
    """Private directory: configuration, sockets, log. Short, for Unix socket paths are limited to 107 bytes."""
    imaps_port: int
    certificate_chain: Path
    """PEM: the server's certificate, then its intermediates."""
    key: Path
    """PEM, unencrypted, readable by the user Dovecot runs as."""
    realms: tuple[MailboxRealm, ...]
    listen: str = "127.0.0.1"
    managesieve_port: int | None = None
    """Port for ManageSieve with STARTTLS (RFC 5804), None for none. From loopback Dovecot also takes a password without
    TLS."""
    loopback_port: int | None = None
    """Port on 127.0.0.1 by which a member's session reaches the mailboxes of teams; None: these are not shown below
    `Equipes/`, only opened as `team*member`."""
    memory: Path | None = None
    """Directory on a tmpfs, made when missing, for what Dovecot decrypts and remembers meanwhile; None: one of its own
    in /dev/shm (`memory_directory`). It needs some 0.5 KB for each mail that was listed since the start, and the size
    of the mails that come in at one moment."""
    tokens: bool = False
    """Offer XOAUTH2 and OAUTHBEARER (RFC 7628): for gateways that know an identity provider."""
    failure_delay: int = 2
    """Seconds before a wrong password is answered."""
    connections_per_user: int = 100
    """IMAP connections one user may hold from one address: a practice's computers often share one."""
    connections: int = 2048
    """IMAP connections in all; each is a process of about 0.6 MB."""
    log_to_stderr: bool = False
    """Log to standard error, for a supervisor that takes addresses out: Dovecot names users when something breaks."""
    user: str = ""
    """Account Dovecot will run as; empty: whoever calls `prepare`. Never root."""
    executable: Path = Path("/usr/sbin/dovecot")
    doveconf: Path = Path("/usr/bin/doveconf")


class PrivateDovecot:
    """Writes what Dovecot needs, says how to start it and whether it is up."""

    def __init__(self, options: DovecotOptions) -> None:
        self._options = options

    @property
    def configuration(self) -> Path:
        return self._options.state / "dovecot.conf"

    @property
    def log(self) -> Path:
        return self._options.state / "dovecot.log"

    @property
    def lmtp_socket(self) -> Path:
        """Unix socket that accepts LMTP (RFC 2033), mode 0600."""
        return self._options.state / "run" / "lmtp"

    @property
    def search_socket(self) -> Path:
        """doveadm's Unix socket, mode 0600: `mta.mailboxes.held` asks it what a mailbox holds."""
        return self._options.state / "run" / "doveadm-server"

    @property
    def memory(self) -> Path:
        return self._options.memory or memory_directory(self._options.state)

    def command(self) -> list[str]:
        """argv of the server: stays in the foreground, SIGTERM stops it."""
        return [str(self._options.executable), "-F", "-c", str(self.configuration)]

    def prepare(self) -> None:
        """Write the configuration and make the directories; safe to repeat, with Dovecot running too.

        Sockets that a killed Dovecot left behind, which would keep it from starting, are removed.
        What was written is read by Dovecot's own `doveconf`. Raises `DovecotConfigurationError`, or OSError when the
        directories cannot be written.
        """
        options = self._options
        user = pwd.getpwnam(options.user) if options.user else pwd.getpwuid(os.geteuid())
        if user.pw_uid == 0:
            raise DovecotConfigurationError("Dovecot must not run as root: name an ordinary account")
        refuse_unsafe(options.realms, (options.state, options.certificate_chain, options.key, self.memory))
        refuse_disk(self.memory)
        for directory in (options.state, *(realm.home for realm in options.realms)):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.clear()
        (options.state / "run").mkdir(mode=0o755, exist_ok=True)
        _make_memory(self.memory, user)
        for number, realm in enumerate(options.realms):
            for purpose, content in realm_files(realm).items():
                self._write(self._dict_file(number, purpose), content)
        self._write(options.state / "nobody", "")
        for name, content in text.FILES.items():
            self._write(options.state / name, content)
        self._write(self.configuration, self._text(user))
        check_configuration(self.configuration, options.doveconf)

    def clear(self) -> None:
        """Remove the sockets of a Dovecot that has ended, which leaves most of them behind, and what it remembered."""
        if self.running() is None:
            shutil.rmtree(self.memory, ignore_errors=True)
            shutil.rmtree(self._options.state / "run", ignore_errors=True)

    def running(self) -> int | None:
        """Process id of the Dovecot that runs from this state directory, None when there is none."""
        try:
            pid = int((self._options.state / "run" / "master.pid").read_text())
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if str(self.configuration).encode() in argv else None

    def ready(self) -> bool:
        """True when IMAPS greets and LMTP greets. Blocks for at most about two seconds."""
        probe = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        probe.check_hostname = False
        probe.verify_mode = ssl.CERT_NONE  # asks whether it is up, not who it is; nothing is sent
        try:
            with (
                socket.create_connection((self._options.listen, self._options.imaps_port), timeout=1) as connection,
                probe.wrap_socket(connection) as imaps,
            ):
                if not imaps.recv(64).startswith(b"* OK"):
                    return False
            with socket.socket(socket.AF_UNIX) as lmtp:
                lmtp.settimeout(1)
                lmtp.connect(str(self.lmtp_socket))
                return lmtp.recv(64).startswith(b"220")
        except OSError:
            return False

    def _dict_file(self, number: int, purpose: str) -> Path:
        return self._options.state / f"realm-{number}-{purpose}.conf"

    def _write(self, path: Path, text: str) -> None:
        """Replace a file in one step, mode 0600 (it may hold the sealing key)."""
        draft = path.with_name(path.name + ".new")
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600)
        draft.write_text(text)
        draft.replace(path)

    def _text(self, user: pwd.struct_passwd) -> str:
        options = self._options
        files = [
            {purpose: self._dict_file(number, purpose) for purpose in PURPOSES} for number in range(len(options.realms))
        ]
        serving = serving_text(
            options.realms,
            files,
            memory=self.memory,
            folder=options.state,
            loopback_port=options.loopback_port,
            tokens=options.tokens,
        )
        sieve = options.managesieve_port
        return text.PRIVATE.format(
            state=options.state,
            instance=f"relais-{options.imaps_port}",
            protocols="imap lmtp" + (" sieve" if sieve else ""),
            listen=options.listen,
            user=user.pw_name,
            uid=user.pw_uid,
            gid=user.pw_gid,
            log_path="/dev/stderr" if options.log_to_stderr else self.log,
            chain=options.certificate_chain,
            key=options.key,
            suites=TLS12_SUITES,
            imaps_port=options.imaps_port,
            loopback_port=options.loopback_port or 0,
            failure_delay=options.failure_delay,
            connections_per_user=options.connections_per_user,
            connections=options.connections,
            serving=serving,
            nobody=options.state / "nobody",
            managesieve=text.MANAGESIEVE.format(port=sieve) if sieve else "",
        )


PURPOSES = ("login", "member", "home")
"""What Dovecot asks: may this one sign in, may this member open that team's mailbox, where does an address live."""


def mail_location(memory: Path) -> str:
    """Dovecot's setting: mails on disk, encrypted; header fields it remembers of them in `memory`, in clear."""
    return f"sdbox:~/mail:INDEXCACHE={memory}/headers/%h"


def memory_directory(state: Path) -> Path:
    """Where the Dovecot of this state directory keeps what must not be on a disk, when nothing else is said."""
    return Path("/dev/shm") / f"relais-{hashlib.sha256(str(state).encode()).hexdigest()[:16]}"  # noqa: S108 - made private


def check_configuration(path: Path, doveconf: Path = Path("/usr/bin/doveconf")) -> None:
    """Have Dovecot read it. Raises `DovecotConfigurationError` with what it says, which is about this file only."""
    try:
        checked = subprocess.run(
            [str(doveconf), "-c", str(path), "-n"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DovecotConfigurationError(f"doveconf cannot be asked: {type(error).__name__}") from error
    if checked.returncode != 0:
        said = " ".join(checked.stderr.split())[:300]
        raise DovecotConfigurationError(f"Dovecot does not take its configuration: {said}")


def refuse_unsafe(realms: Sequence[MailboxRealm], paths: Sequence[Path]) -> None:
    """What would be read as something else in a configuration. Raises `DovecotConfigurationError`."""
    names = [domain for realm in realms for domain in realm.domains]
    for domain in names:
        if not _DOMAIN.fullmatch(domain):
            raise DovecotConfigurationError(f"not a lower-case mail domain: {domain!r}")
    if len(set(names)) != len(names):
        raise DovecotConfigurationError("two realms claim the same domain")
    for path in (*paths, *(each for realm in realms for each in (realm.authentication_socket, realm.home))):
        if not _PLAIN_PATH.fullmatch(str(path)):
            raise DovecotConfigurationError(f"not an absolute path of plain characters: {str(path)!r}")


def serving_text(
    realms: tuple[MailboxRealm, ...],
    files: Sequence[Mapping[str, Path]],
    *,
    memory: Path,
    folder: Path,
    loopback_port: int | None,
    tokens: bool,
) -> str:
    """What a Dovecot needs to serve these realms; `files`: for each realm where `realm_files` are, `folder` where
    `dovecot_text.FILES` are."""
    # The filter: one operator's gateway is never shown a password meant for another's.
    each = (
        text.REALM.format(patterns=" ".join(f"*@{domain}" for domain in realm.domains), **paths)
        for realm, paths in zip(realms, files, strict=True)
    )
    return text.SERVING.format(
        mechanisms="plain login" + (" xoauth2 oauthbearer" if tokens else ""),
        realms="".join(each),
        mail_location=mail_location(memory),
        memory=memory,
        teams=text.TEAMS.format(shared=SHARED_NAMESPACE, loopback_port=loopback_port) if loopback_port else "",
        folder=folder,
        duplicate_period=f"{DUPLICATE_SECONDS}s",
    )


def realm_files(realm: MailboxRealm) -> dict[str, str]:
    """For each of `PURPOSES` the file that says how to ask this realm's gateway; they hold the key that seals
    passwords."""
    key = credential_key(realm.authentication_socket).hex()
    sealed = f"%{{encrypt;key={key}:password}}"
    keys = {
        "login": f"login/%u/{sealed}/%s/%r/%m",
        "member": f"member/%u/{sealed}/%{{login_user}}/%s/%r/%m",
        "home": "home/%u/%{master_user}/%s",
    }
    return {purpose: _dict_configuration(realm, purpose, keys[purpose]) for purpose in PURPOSES}


def _make_memory(path: Path, user: pwd.struct_passwd) -> None:
    """Private, and the user's own. Raises `DovecotConfigurationError`."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if os.geteuid() == 0 and found.st_uid == 0:
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
        found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user.pw_uid or found.st_mode & 0o077:
        raise DovecotConfigurationError(f"{path} must be a private directory of the user Dovecot runs as")


def refuse_disk(memory: Path) -> None:
    """It may be made later. Raises `DovecotConfigurationError` also where nothing else belongs: it is emptied."""
    if memory.resolve() in _mounts() or _file_system(memory) not in _IN_MEMORY:
        raise DovecotConfigurationError(f"{memory} must be a directory of its own on a tmpfs, such as one below /run")


_IN_MEMORY = frozenset({"tmpfs", "ramfs"})


def _file_system(path: Path) -> str:
    """Its type; the last mount over the longest of its parents counts."""
    mounts, real = _mounts(), path.resolve()
    return next((mounts[each] for each in (real, *real.parents) if each in mounts), "")


def _mounts() -> dict[Path, str]:
    """Types of file systems by where they are mounted, as proc(5) names them in mountinfo."""
    mounts: dict[Path, str] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        mounts[Path(fields.split()[4].replace("\\040", " "))] = kind.split()[0]
    return mounts


def _dict_configuration(realm: MailboxRealm, purpose: str, key: str) -> str:
    objects = "userdb_objects" if purpose == "home" else "passdb_objects"
    return (
        f"uri = proxy:{realm.authentication_socket}:relais\n"
        "iterate_disable = yes\n"
        "default_pass_scheme = PLAIN\n"
        f"key {purpose} {{\n  key = {key}\n  format = json\n}}\n"
        f"{objects} = {purpose}\n"
    )
