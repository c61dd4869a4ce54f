"""A slapd of our own: configuration, first load and command line of a private OpenLDAP server.

Everything it writes lies under one directory, it listens for ldaps (on loopback unless told otherwise) and on a Unix
socket (ldapi), and it runs as whoever starts it. Its configuration is generated anew by every `prepare`, so that
passwords, certificates and indexes are always those of the options; its data is never touched by `prepare`.

Where AppArmor confines /usr/sbin/slapd to its distribution's folders (Ubuntu does), the state directory has to
be allowed in /etc/apparmor.d/local/usr.sbin.slapd.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

import ldap as python_ldap

from directory import schema
from directory.ldif import LdifEntry, to_ldif

ldap: Any = python_ldap
"""python-ldap has no type annotations."""

_PROGRAMS = ("/usr/sbin/slapd", "/usr/local/sbin/slapd", "/usr/libexec/slapd", "/usr/local/libexec/slapd")
_SCHEMAS = ("/etc/ldap/schema", "/etc/openldap/schema", "/usr/local/etc/openldap/schema")
_MODULES = (
    "/usr/lib/ldap",
    "/usr/lib64/openldap",
    "/usr/lib/openldap",
    "/usr/libexec/openldap",
    "/usr/local/libexec/openldap",
)
_STANDARD_SCHEMAS = ("core", "cosine", "inetorgperson")

MAP_BYTES = 24 * 1024**3
"""Address space of the database (mdb's own default of 10 MB holds nothing): the nation's half a million mailboxes and
one and a half million professionals fill some 8 GB.

The file grows only as data arrives.
"""
INDEX_SLOT_EXPONENT = 18
"""A quarter of a million entries: more mailboxes of physicians than the nation has. Four megabytes of address space for
each level of `SEARCH_STACK` and each of the `THREADS`, of which only what a search needs is ever touched."""
SEARCH_STACK = 8
"""Levels of nested filters without another allocation: our own have four, Thunderbird's three."""
THREADS = 8
ANONYMOUS_RESULTS = 200
READER_DN = "cn=carnet,cn=lecteurs"
"""Address books log in as this one where a password is asked of them."""
"""Entries an anonymous search may return: enough for an address book, too little to copy the directory."""
_SEARCH_WORDS = (schema.WORDS, schema.WORD_KEYS, schema.PERSON_WORDS, schema.PERSON_WORD_KEYS)
_SOCKET_PATH_BYTES = 107
"""sun_path on Linux, without its final NUL."""


class SlapdError(Exception):
    """slapd is missing, refuses its configuration or its data; the text says what to do, and names no mailbox."""


@dataclass(frozen=True, slots=True)
class SlapdOptions:
    """What the private slapd needs to know. Paths are absolute or relative to the current directory."""

    state: Path
    """Directory that holds configuration, data and socket; created with mode 0700 when missing."""
    port: int
    """TCP port of ldaps on 127.0.0.1."""
    certificate_chain: Path
    """PEM: the server's certificate, then its intermediates; SubjectAltName holds the IP address 127.0.0.1."""
    key: Path
    """PEM, not encrypted, readable by the user slapd runs as."""
    ca: Path
    """PEM: the root that verifies the server's certificate."""
    admin_password: str = field(repr=False)
    gateway_password: str = field(repr=False)
    base: str = "dc=mssante,dc=fr"
    address: str = "127.0.0.1"
    """Where ldaps listens beside 127.0.0.1: an address of this machine for the address books of a network, 0.0.0.0 for
    all of them. The certificate's SubjectAltName has to hold the name those use."""
    reader_password: str = field(default="", repr=False)
    """When set, address books have to log in as `PrivateSlapd.reader_dn`, and the public sees nothing; empty: anybody
    who reaches the server sees what an address book sees."""


class PrivateSlapd:
    """One slapd under one state directory.

    `admin_dn` writes, `gateway_dn` reads everything. Address books (`reader_dn`, or anybody where no password is asked)
    see the mailboxes of professionals, structures and applications, and what the register publishes of persons and
    structures, at most `ANONYMOUS_RESULTS` at a time. They never see patients. A mailbox on the red list is found by
    its exact address, `(mail=ADDRESS)`, and by nothing else.
    """

    def __init__(self, options: SlapdOptions) -> None:
        """Raises ValueError when a path or the base cannot be written into slapd's configuration."""
        self._options = options
        self._state = options.state.absolute()
        self._configuration = self._state / "slapd.conf"
        self._data = self._state / "data"
        self._socket = self._state / "run" / "ldapi"
        self._skeleton = schema.skeleton(options.base)
        if len(os.fsencode(self._socket)) > _SOCKET_PATH_BYTES:
            raise ValueError(f"the path {self._state} is too long for a Unix socket; use a shorter state directory")
        for text in (
            options.base,
            options.address,
            *map(str, (self._state, options.certificate_chain, options.key, options.ca)),
        ):
            if re.search(r'["\\\x00-\x1f]', text):
                raise ValueError(f"{text!r} holds a character that slapd's configuration cannot quote")

    @property
    def ldaps_uri(self) -> str:
        return f"ldaps://127.0.0.1:{self._options.port}"

    @property
    def ldapi_uri(self) -> str:
        return f"ldapi://{quote(str(self._socket), safe='')}"

    @property
    def admin_dn(self) -> str:
        return f"cn=admin,{self._options.base}"

    @property
    def gateway_dn(self) -> str:
        return "cn=gateway,cn=relais"

    @property
    def reader_dn(self) -> str:
        return READER_DN

    def prepare(self) -> None:
        """Write the configuration, remove what a killed slapd left behind. To be called while slapd is stopped.

        Idempotent; never touches existing data. Raises `SlapdError` when slapd or one of the options' files is missing,
        or when slapd refuses the configuration.
        """
        for file in (self._options.certificate_chain, self._options.key, self._options.ca):
            if not file.is_file():
                raise SlapdError(f"slapd needs the file {file}, which does not exist; create its certificate first")
        _private_directory(self._state)
        for folder in (self._data, self._state / "identities", self._state / "readers", self._socket.parent):
            _private_directory(folder)
        for leftover in (self._socket, self._pid_file, self._arguments_file):
            leftover.unlink(missing_ok=True)
        shutil.rmtree(self._loading, ignore_errors=True)
        _write(self._state / "mssante.schema", schema.SCHEMA)
        _write(self._configuration, self._render(self._data))
        self._tool("test", "-u", "-Q")
        indexed = self._state / "indexes"
        wanted = f"{schema.INDEXES}idlexp {INDEX_SLOT_EXPONENT}\n"
        if not (indexed.is_file() and indexed.read_text("utf-8") == wanted):
            if not self.is_empty:  # what was written under other indexes would not be found by the new ones
                self._tool("index", "-q", "-b", self._options.base)
            _write(indexed, wanted)

    def load(self, entries: Iterable[LdifEntry]) -> int:
        """Fill the empty database offline, branches first; the number of `entries` loaded.

        All or nothing: the data is built beside, synced, and takes its place with one rename, so a load that was killed
        leaves an empty database. Raises `SlapdError` when the database is not empty, when slapd runs, or when it
        refuses an entry; what `entries` raises goes through.
        """
        if self.ready():
            raise SlapdError("slapd is running; stop it before the first load")
        if not self.is_empty:
            raise SlapdError("the directory already holds data; a first load needs an empty one")
        shutil.rmtree(self._loading, ignore_errors=True)
        _private_directory(self._loading)
        configuration = self._loading / "slapd.conf"
        data = self._loading / "data"
        _private_directory(data)
        _write(configuration, self._render(data))
        try:
            count = self._add(configuration, entries)
            _sync_tree(data)
            shutil.rmtree(self._data, ignore_errors=True)
            data.rename(self._data)
            _sync_directory(self._state)
        finally:
            shutil.rmtree(self._loading, ignore_errors=True)
        return count

    @property
    def is_empty(self) -> bool:
        """Whether the database holds no entry at all; may be asked while slapd runs."""
        if not (self._data / "data.mdb").exists():
            return True
        argv = [_program(), "-T", "cat", "-f", str(self._configuration), "-b", self._options.base, "-o", "ldif-wrap=no"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as cat:
            assert cat.stdout is not None  # noqa: S101 - PIPE was asked for
            first = cat.stdout.readline()
            if first:
                # One line is enough. SIGTERM, not SIGKILL: a reader that dies in its transaction would pin old pages.
                cat.terminate()
        if not first and cat.returncode != 0:
            raise SlapdError(
                f"the directory's data in {self._data} cannot be read (slapcat exit code {cat.returncode})"
            )
        return not first

    def command(self) -> tuple[str, ...]:
        """The command line that runs slapd in the foreground, until SIGTERM (or SIGINT) ends it."""
        options = self._options
        listeners = f"{self.ldaps_uri}/ {self.ldapi_uri}"
        if options.address in ("0.0.0.0", "::"):  # noqa: S104 - who configures it wants it
            host = f"[{options.address}]" if ":" in options.address else options.address
            listeners = f"ldaps://{host}:{options.port}/ {self.ldapi_uri}"
        elif options.address != "127.0.0.1":
            host = f"[{options.address}]" if ":" in options.address else options.address
            listeners = f"ldaps://{host}:{options.port}/ {listeners}"
        return (_program(), "-d", "0", "-f", str(self._configuration), "-h", listeners)

    def ready(self) -> bool:
        """Whether slapd answers a read of its root DSE (RFC 4512 §5.1) on its Unix socket, within 2 seconds."""
        if not self._socket.exists():
            return False
        connection = None
        try:
            connection = ldap.initialize(self.ldapi_uri)
            connection.set_option(ldap.OPT_NETWORK_TIMEOUT, 2.0)
            connection.search_ext_s("", ldap.SCOPE_BASE, attrlist=["namingContexts"], timeout=2)
        except ldap.LDAPError:
            return False
        finally:
            if connection is not None:
                connection.unbind_s()
        return True

    @property
    def _pid_file(self) -> Path:
        return self._state / "run" / "slapd.pid"

    @property
    def _arguments_file(self) -> Path:
        return self._state / "run" / "slapd.args"

    @property
    def _loading(self) -> Path:
        return self._state / "loading"

    def _readers(self) -> str:
        """The identity of the address books, when they need one: in the configuration alone, as the gateway's."""
        if not self._options.reader_password:
            return ""
        return f"""
database mdb
suffix "cn=lecteurs"
rootdn "{self.reader_dn}"
rootpw {_password_hash(self._options.reader_password)}
directory "{self._state / "readers"}"
maxsize 1048576
access to * by * none
"""

    def _add(self, configuration: Path, entries: Iterable[LdifEntry]) -> int:
        argv = [_program(), "-T", "add", "-q", "-f", str(configuration), "-b", self._options.base]
        count = -len(self._skeleton)
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as add:
            assert add.stdin is not None and add.stderr is not None  # noqa: S101 - PIPE was asked for
            try:
                for entry in chain(self._skeleton, entries):
                    add.stdin.write(to_ldif(entry))
                    count += 1
                add.stdin.close()
            except BrokenPipeError:
                pass  # slapd gave up: its exit code and its words say why
            except BaseException:
                add.kill()
                raise
            words = add.stderr.read()
        if add.returncode != 0:
            # Its words hold addresses: only the line of the LDIF stream may be repeated.
            line = re.search(rb"line[ =](\d+)", words)
            where = f" at line {line[1].decode()} of the LDIF stream" if line else ""
            raise SlapdError(f"slapd refused the data{where} (exit code {add.returncode}); nothing was loaded")
        return count

    def _tool(self, *arguments: str) -> None:
        tool, *options = arguments
        argv = [_program(), "-T", tool, *options, "-f", str(self._configuration)]
        result = subprocess.run(argv, check=False, capture_output=True, text=True, errors="replace")
        if result.returncode != 0:
            raise SlapdError(f"slapd refuses its configuration {self._configuration}: {result.stderr.strip()[-500:]}")

    def _render(self, data: Path) -> str:
        options = self._options
        standard = _first(_SCHEMAS, "core.schema", "OpenLDAP's standard schemas")
        includes = "".join(f'include "{standard / name}.schema"\n' for name in _STANDARD_SCHEMAS)
        public = f'dn.exact="{self.reader_dn}"' if options.reader_password else "*"
        return f"""\
# Generated by every start: change the gateway's own configuration instead.
{_load_module()}{includes}include "{self._state / "mssante.schema"}"
pidfile "{self._pid_file}"
argsfile "{self._arguments_file}"
# Log lines would hold the addresses of patients.
loglevel none
TLSCertificateFile "{options.certificate_chain.absolute()}"
TLSCertificateKeyFile "{options.key.absolute()}"
TLSCACertificateFile "{options.ca.absolute()}"
TLSVerifyClient never
{_tls_versions()}
idletimeout 600
threads {THREADS}
tool-threads 2
access to dn.base="" by * read
access to dn.base="cn=Subschema" by * read

# So many entries of one word are known one by one. Beyond that slapd would look at all between the first and the last,
# and two frequent words together (a profession, a big town) would be a pass over the nation.
backend mdb
idlexp {INDEX_SLOT_EXPONENT}

# The gateway's identity lives in the configuration alone, so that a new password needs no write to the data.
database mdb
suffix "cn=relais"
rootdn "{self.gateway_dn}"
rootpw {_password_hash(options.gateway_password)}
directory "{self._state / "identities"}"
maxsize 1048576
access to * by * none
{self._readers()}
database mdb
suffix "{options.base}"
rootdn "{self.admin_dn}"
rootpw {_password_hash(options.admin_password)}
directory "{data}"
maxsize {MAP_BYTES}
searchstack {SEARCH_STACK}
{schema.INDEXES}# A filter that is true of everything (RFC 4526) needs no right to search: it would list the red list.
overlay rwm
rwm-t-f-support no
limits dn.exact="{self.gateway_dn}" size=unlimited time=unlimited
limits * size={ANONYMOUS_RESULTS} time=10
{_access(options.base, self.gateway_dn, public)}"""


def _access(base: str, gateway: str, public: str) -> str:
    """Who may read what. `public` is who uses the directory as address book.

    A mailbox on the red list may be read (`=r`) but not searched for, except by an equality filter on its own address:
    the set compares the asserted value with the entry's. A filter by presence or by parts asserts no value and goes
    past that rule, so it finds nothing, and neither does its negation (an Undefined filter, RFC 4511 §4.5.1.7). The
    value cannot break out of the set, which ends with the first bracket.
    """
    private = (schema.SOURCE, schema.LOCAL_ATTRIBUTES, "RangBAL", "listeRouge", *_SEARCH_WORDS)
    return f"""\
access to * by dn.exact="{gateway}" read by * break
access to dn.subtree="ou={schema.PATIENTS},{base}" by * none
access to attrs={",".join(private)} by * none
access to filter=(listeRouge=TRUE) attrs=mail val.regex="^([^][ ]+)$"
  by set.expand="[${{v1}}] & this/mail" read
  by {public} =r
access to filter=(listeRouge=TRUE) by {public} =r
access to * by {public} read
"""


def _program() -> str:
    found = shutil.which("slapd") or next((path for path in _PROGRAMS if os.access(path, os.X_OK)), None)
    if found is None:
        raise SlapdError("slapd is not installed; install OpenLDAP's server (on Debian: apt-get install slapd)")
    return found


def _load_module() -> str:
    """How to load the mdb database and the rwm overlay: modules on most distributions, built in elsewhere."""
    folder = next((folder for folder in map(Path, _MODULES) if any(folder.glob("back_mdb*"))), None)
    if folder is None:
        return ""
    rewriting = "moduleload rwm\n" if any(folder.glob("rwm*")) else ""
    return f'modulepath "{folder}"\nmoduleload back_mdb\n{rewriting}'


def _tls_versions() -> str:
    """TLS 1.2 and 1.3 only, in the words of the TLS library OpenLDAP is built with."""
    if ldap.get_option(ldap.OPT_X_TLS_PACKAGE) == "GnuTLS":  # it ignores TLSProtocolMin
        return "TLSCipherSuite NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"
    return "TLSProtocolMin 3.3"


def _first(folders: Sequence[str], name: str, what: str) -> Path:
    for folder in map(Path, folders):
        if (folder / name).exists():
            return folder
    raise SlapdError(f"{what} are not in any of {', '.join(folders)}; install OpenLDAP's server package")


def _password_hash(password: str) -> str:
    """{SSHA} (RFC 2307 §5.3 with salt): the scheme every slapd has. The passwords are long random secrets."""
    salt = secrets.token_bytes(16)
    digest = hashlib.sha1(password.encode() + salt).digest()  # noqa: S324 - OpenLDAP's built-in scheme
    return "{SSHA}" + base64.b64encode(digest + salt).decode()


def _private_directory(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def _write(path: Path, text: str) -> None:
    """Replace a file at once, readable by its owner alone."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    fresh.rename(path)


def _sync_tree(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_directory(folder)


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
