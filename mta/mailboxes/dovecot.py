"""A private Dovecot: its configuration, generated in full, and how to tell that it is up.

Mailboxes are Dovecot's (2.3): IMAPS for people, LMTP on a Unix socket for our deliveries, Sieve for filing. It runs as
an ordinary user from one private directory and owns nothing outside it but the mail. Who may sign in and where an
address lives is asked of `mta.mailboxes.authentication` at every turn. This module writes files and argv; the
composition root starts, watches and stops the process.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import shutil
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mta.mailboxes import sieve
from mta.mailboxes.authentication import credential_key
from trust.tls import TLS12_SUITES

DELIVERY_HEADER = "X-Relais-Delivery"
"""Header that carries our delivery's identity: LMTP files a message with an identity it has seen only once."""
DUPLICATE_SECONDS = 14 * 24 * 3600
"""How long identities are remembered: longer than any delivery is retried."""

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

    def command(self) -> list[str]:
        """argv of the server: stays in the foreground, SIGTERM stops it."""
        return [str(self._options.executable), "-F", "-c", str(self.configuration)]

    def prepare(self) -> None:
        """Write the configuration and make the directories; safe to repeat, with Dovecot running too.

        Sockets that a killed Dovecot left behind, which would keep it from starting, are removed.
        Raises `DovecotConfigurationError`, or OSError when the directories cannot be written.
        """
        options = self._options
        user = pwd.getpwnam(options.user) if options.user else pwd.getpwuid(os.geteuid())
        self._refuse_unsafe(user)
        for directory in (options.state, *(realm.home for realm in options.realms)):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.clear()
        (options.state / "run").mkdir(mode=0o755, exist_ok=True)
        for number, realm in enumerate(options.realms):
            key = credential_key(realm.authentication_socket).hex()
            login = f"login/%u/%{{encrypt;key={key}:password}}/%s/%r/%m"
            for purpose, pattern in (("login", login), ("home", "home/%u")):
                self._write(self._dict_file(number, purpose), _dict_configuration(realm, purpose, pattern))
        self._write(options.state / "nobody", "")
        self._write(options.state / "once.sieve", _ONCE)
        self._write(options.state / "flags.sieve", sieve.FLAGS)
        self._write(options.state / "filing.sieve", sieve.FILING)
        self._write(self.configuration, self._text(user))

    def clear(self) -> None:
        """Remove the sockets of a Dovecot that has ended: it leaves most of them behind."""
        if self.running() is None:
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

    def _refuse_unsafe(self, user: pwd.struct_passwd) -> None:
        options = self._options
        if user.pw_uid == 0:
            raise DovecotConfigurationError("Dovecot must not run as root: name an ordinary account")
        paths = [options.state, options.certificate_chain, options.key]
        for realm in options.realms:
            paths += [realm.authentication_socket, realm.home]
            for domain in realm.domains:
                if not _DOMAIN.fullmatch(domain):
                    raise DovecotConfigurationError(f"not a lower-case mail domain: {domain!r}")
        for path in paths:
            if not _PLAIN_PATH.fullmatch(str(path)):
                raise DovecotConfigurationError(f"not an absolute path of plain characters: {str(path)!r}")
        names = [domain for realm in options.realms for domain in realm.domains]
        if len(set(names)) != len(names):
            raise DovecotConfigurationError("two realms claim the same domain")

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
        realms = ""
        for number, realm in enumerate(options.realms):
            # The filter: one operator's gateway is never shown a password meant for another's.
            patterns = " ".join(f"*@{domain}" for domain in realm.domains)
            realms += _REALM.format(
                patterns=patterns, login=self._dict_file(number, "login"), home=self._dict_file(number, "home")
            )
        managesieve = options.managesieve_port
        return _CONFIGURATION.format(
            state=options.state,
            instance=f"relais-{options.imaps_port}",
            protocols="imap lmtp" + (" sieve" if managesieve else ""),
            listen=options.listen,
            user=user.pw_name,
            uid=user.pw_uid,
            gid=user.pw_gid,
            log_path="/dev/stderr" if options.log_to_stderr else self.log,
            chain=options.certificate_chain,
            key=options.key,
            suites=TLS12_SUITES,
            imaps_port=options.imaps_port,
            mechanisms="plain login" + (" xoauth2 oauthbearer" if options.tokens else ""),
            failure_delay=options.failure_delay,
            connections_per_user=options.connections_per_user,
            connections=options.connections,
            realms=realms,
            nobody=options.state / "nobody",
            managesieve=_MANAGESIEVE.format(port=managesieve) if managesieve else "",
            duplicate_period=f"{DUPLICATE_SECONDS}s",
        )


def _dict_configuration(realm: MailboxRealm, purpose: str, key: str) -> str:
    objects = "passdb_objects" if purpose == "login" else "userdb_objects"
    return (
        f"uri = proxy:{realm.authentication_socket}:relais\n"
        "iterate_disable = yes\n"
        "default_pass_scheme = PLAIN\n"
        f"key {purpose} {{\n  key = {key}\n  format = json\n}}\n"
        f"{objects} = {purpose}\n"
    )


_ONCE = f"""\
require ["duplicate"];
# A delivery repeated after a crash is the same delivery: file it once.
if duplicate :header "{DELIVERY_HEADER}" :seconds {DUPLICATE_SECONDS} {{
  discard;
  stop;
}}
"""

_REALM = """\
passdb {{
  driver = dict
  args = {login}
  username_filter = {patterns}
}}
userdb {{
  driver = dict
  args = {home}
}}
"""

_MANAGESIEVE = """\
service managesieve-login {{
  chroot =
  inet_listener sieve {{
    port = {port}
  }}
}}
"""

# The logs name no user (a patient's address holds a matricule), no Message-ID and no subject.
_CONFIGURATION = """\
base_dir = {state}/run
state_dir = {state}/run
instance_name = {instance}
protocols = {protocols}
listen = {listen}
default_internal_user = {user}
default_login_user = {user}
default_internal_group = $default_internal_user
mail_uid = {uid}
mail_gid = {gid}
first_valid_uid = {uid}

log_path = {log_path}
mail_log_prefix = "%s<%{{pid}}><%{{session}}>: "
login_log_format_elements = "method=%m rip=%r mpid=%e %c session=<%{{session}}>"
deliver_log_format = %$
login_greeting = Relais ready.

ssl = required
ssl_cert = <{chain}
ssl_key = <{key}
ssl_min_protocol = TLSv1.2
ssl_cipher_list = {suites}
ssl_prefer_server_ciphers = yes
disable_plaintext_auth = yes
auth_mechanisms = {mechanisms}
auth_username_format = %Lu
# What an address may have (`trust.identities.checked_address`): without "/", which separates the parts of a lookup.
auth_username_chars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_@!&'+=~"
auth_failure_delay = {failure_delay} secs
recipient_delimiter =
{realms}
# Matches nobody: without a database that was asked, Dovecot would call a foreign domain a temporary failure.
passdb {{
  driver = passwd-file
  args = {nobody}
}}
mail_location = sdbox:~/mail
mail_max_userip_connections = {connections_per_user}
sendmail_path = /bin/false
namespace inbox {{
  inbox = yes
  separator = /
  mailbox Sent {{
    special_use = \\Sent
    auto = subscribe
  }}
  mailbox Drafts {{
    special_use = \\Drafts
    auto = subscribe
  }}
  mailbox Trash {{
    special_use = \\Trash
    auto = subscribe
  }}
  mailbox Junk {{
    special_use = \\Junk
    auto = subscribe
  }}
}}

service anvil {{
  chroot =
  # Lock-out is the accounts' affair, per account and network: a delay per address would punish a whole practice.
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service auth-worker {{
  user = $default_internal_user
}}
service doveadm {{
  unix_listener doveadm-server {{
    mode = 0600
  }}
}}
service imap-login {{
  chroot =
  service_count = 0
  client_limit = {connections}
  process_min_avail = 1
  inet_listener imap {{
    port = 0
  }}
  inet_listener imaps {{
    port = {imaps_port}
    ssl = yes
  }}
}}
service imap {{
  process_limit = {connections}
}}
service lmtp {{
  unix_listener lmtp {{
    mode = 0600
  }}
}}
{managesieve}
protocol lmtp {{
  mail_plugins = $mail_plugins sieve
  mail_fsync = always
  postmaster_address = postmaster@localhost
}}
plugin {{
  sieve = file:~/sieve;active=~/.dovecot.sieve
  sieve_before = {state}/once.sieve
  sieve_before2 = {state}/flags.sieve
  sieve_after = {state}/filing.sieve
  sieve_duplicate_max_period = {duplicate_period}
  # Nothing leaves through a script: only the road protects what it sends.
  sieve_max_redirects = 0
  sieve_extensions = fileinto copy envelope body imap4flags variables relational regex subaddress date index mailbox
  sieve_global_extensions = +duplicate
}}
"""
