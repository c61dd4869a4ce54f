"""The directory's own records as LDIF (RFC 2849): what no national file would bring back.

Of the private slapd of `relais up` the whole database, by slapcat beside the running server; of an operator's directory
the overlay, read with the gateway's own account. Putting back is for an empty private slapd, or for the operator's
`ldapadd`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import ldap as python_ldap

from config.settings import Loaded
from directory import schema
from directory.ldif import LdifEntry, to_ldif

ldap: Any = python_ldap
_PROGRAMS = ("/usr/sbin/slapd", "/usr/local/sbin/slapd", "/usr/libexec/slapd", "/usr/local/libexec/slapd")
_CONFIGURATION = "slapd.conf"
_PIECE = 1 << 20


class OverlayError(Exception):
    """The directory's records cannot be read or put back; the message is a sentence."""


def dump_private(state: Path, base: str = "dc=mssante,dc=fr") -> Iterator[bytes]:
    """All records of the slapd below `state`, whether it runs or not. Raises `OverlayError`."""
    configuration = state / _CONFIGURATION
    if not configuration.exists():
        raise OverlayError(f"there is no directory in {state}")
    argv = [_slapd(), "-T", "cat", "-f", str(configuration), "-b", base, "-o", "ldif-wrap=no"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as cat:
        assert cat.stdout is not None  # noqa: S101 - PIPE was asked for
        while piece := cat.stdout.read(_PIECE):
            yield piece
    if cat.returncode != 0:
        raise OverlayError(f"the directory in {state} cannot be read (slapcat exit code {cat.returncode})")


def load_private(configuration: Path, ldif: IO[bytes], base: str = "dc=mssante,dc=fr") -> None:
    """Fill an empty, stopped slapd from a dump. Raises `OverlayError`."""
    argv = [_slapd(), "-T", "add", "-q", "-f", str(configuration), "-b", base]
    done = subprocess.run(argv, check=False, stdin=ldif, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if done.returncode != 0:
        raise OverlayError(f"slapadd refused the directory's records (exit code {done.returncode})")


def dump_remote(loaded: Loaded) -> Iterator[bytes]:
    """The records somebody here added or completed, from the directory of the configuration. Raises `OverlayError`."""
    section = loaded.settings.directory
    problem = f"the overlay of the directory {section.uri} is not in it, back that server up by its own means"
    wanted = f"(|({schema.SOURCE}={schema.LOCAL.decode()})({schema.LOCAL_ATTRIBUTES}=*))"
    try:
        password = loaded.path(section.password_file).read_text().strip() if section.password_file else ""
        connection = ldap.initialize(section.uri)
        connection.set_option(ldap.OPT_NETWORK_TIMEOUT, section.timeout_seconds)
        if section.ca:
            connection.set_option(ldap.OPT_X_TLS_CACERTFILE, str(loaded.path(section.ca)))
            connection.set_option(ldap.OPT_X_TLS_NEWCTX, 0)
        try:
            connection.simple_bind_s(section.bind_dn, password)
            search = connection.search_ext(section.base, ldap.SCOPE_SUBTREE, wanted)
            while True:
                kind, found = connection.result(search, all=0, timeout=60)
                for dn, attributes in found:
                    if dn is not None:
                        plain = {name: tuple(values) for name, values in attributes.items()}
                        yield to_ldif(LdifEntry(dn, plain))
                if kind == ldap.RES_SEARCH_RESULT:
                    return
        finally:
            connection.unbind_ext()
    except (ldap.LDAPError, OSError) as error:
        raise OverlayError(f"{problem} ({type(error).__name__})") from error


def _slapd() -> str:
    found = next((path for path in _PROGRAMS if Path(path).exists()), None)
    if found is None:
        raise OverlayError("slapd is not installed: its records are not in the backup")
    return found
