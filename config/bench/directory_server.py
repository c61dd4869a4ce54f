"""The private slapd that `relais bench directory` fills, asks and watches: the product's own, with its configuration.

One thing is added to that configuration: slapd's monitor (slapd-monitor(5)), which counts operations whether or not it
can be asked. What it counted is how writes are told from what a synchronisation says of itself.
"""

from __future__ import annotations

import ipaddress
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ldap as python_ldap
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from config.bench.authority import certificate
from config.bench.child import BenchError, end
from config.privileges import die_with_parent
from directory.pool import secure
from directory.resolve import Directory, DirectoryOptions
from directory.slapd import PrivateSlapd, SlapdOptions

ldap: Any = python_ldap
"""python-ldap has no type annotations."""

BASE = "dc=mssante,dc=fr"
PASSWORD = "bench"  # noqa: S105 - of a server on loopback with synthetic data that lives as long as the run
_START_SECONDS, _STOP_SECONDS = 60.0, 120.0
_WRITES = ("Add", "Modify", "Delete", "Modrdn")


def make_server_files(place: Path) -> None:
    """The server's certificate and key, into `place`."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = certificate("slapd", key, None, [(names, False), (x509.BasicConstraints(True, None), True)])
    (place / "slapd.pem").write_bytes(made.public_bytes(Encoding.PEM))
    file = place / "slapd.key"
    file.touch(0o600)
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def slapd_of(state: Path, place: Path, port: int) -> PrivateSlapd:
    """As `relais up` makes it; `place` has the server's files."""
    chain = place / "slapd.pem"
    return PrivateSlapd(SlapdOptions(state, port, chain, place / "slapd.key", chain, PASSWORD, PASSWORD, BASE))


@dataclass(slots=True)
class Server:
    """One slapd with its data below `state`; started and stopped as needed."""

    state: Path
    place: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def slapd(self) -> PrivateSlapd:
        return slapd_of(self.state, self.place, self.port)

    @property
    def ca(self) -> Path:
        return self.place / "slapd.pem"

    def start(self) -> None:
        """Until it answers. Raises `BenchError`."""
        slapd = self.slapd
        slapd.prepare()
        with (self.state / "slapd.conf").open("a") as configuration:
            configuration.write(f'\ndatabase monitor\naccess to * by dn.exact="{slapd.admin_dn}" read by * none\n')
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(
            slapd.command(),
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - takes no lock
        )
        deadline = time.monotonic() + _START_SECONDS
        while not slapd.ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise BenchError("slapd does not start")
            time.sleep(0.02)

    def stop(self) -> None:
        """Orderly; killed when it does not end."""
        process, self.process = self.process, None
        if process is not None:
            end(process, _STOP_SECONDS)

    def start_cold(self) -> None:
        """Start anew, with none of its data in the system's memory (posix_fadvise(2), POSIX_FADV_DONTNEED)."""
        self.stop()
        with (self.state / "data" / "data.mdb").open("rb") as data:
            os.fsync(data.fileno())
            os.posix_fadvise(data.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self.start()

    @property
    def octets(self) -> int:
        """That the data takes on the disk."""
        return 512 * (self.state / "data" / "data.mdb").stat().st_blocks

    def writes(self) -> int:
        """Write operations that it has completed since it was started, refused ones included."""
        connection = ldap.initialize(self.slapd.ldapi_uri)
        try:
            connection.simple_bind_s(self.slapd.admin_dn, PASSWORD)
            found = connection.search_s("cn=Operations,cn=Monitor", ldap.SCOPE_ONELEVEL, attrlist=["+", "*"])
        finally:
            connection.unbind_s()
        counted = {values["cn"][0].decode(): int(values["monitorOpCompleted"][0]) for _, values in found}
        return sum(counted[name] for name in _WRITES)

    @contextmanager
    def directory(self) -> Iterator[Directory]:
        """The gateway's view, remembering nothing."""
        options = DirectoryOptions(
            self.slapd.ldaps_uri, BASE, self.slapd.gateway_dn, PASSWORD, self.ca, timeout_seconds=30.0, connections=1
        )
        directory = Directory(options)
        try:
            yield directory
        finally:
            directory.close()

    @contextmanager
    def bare(self) -> Iterator[Any]:
        """A connection of python-ldap's: same server, same TLS, same identity."""
        connection = ldap.initialize(self.slapd.ldaps_uri)
        secure(connection, self.ca)
        connection.simple_bind_s(self.slapd.gateway_dn, PASSWORD)
        try:
            yield connection
        finally:
            connection.unbind_s()
