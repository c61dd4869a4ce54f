"""`relais doctor`: what is wrong with the machine, the configuration and the state, and what to do about it.

Nothing is changed and nothing secret is printed. Levels: `ok`, `notice` (works, but know this), `problem` (fix it).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509

from config.settings import Loaded, SettingsError, load
from config.trust_service import operator_files
from trust.list_keeper import LIST_DIRECTORY, RefreshOutcome, read_record
from trust.revocation.cache import kept
from trust.tls import TlsMaterialError, operator_server_context, service_server_context

PROGRAMS = {
    "slapd": "slapd",
    "slapadd": "slapd",
    "dovecot": "dovecot-core",
    "doveadm": "dovecot-core",
}
"""Program and the Debian package that brings it."""
FILES = {
    "/usr/lib/dovecot/imap": "dovecot-imapd",
    "/usr/lib/dovecot/lmtp": "dovecot-lmtpd",
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf": "fonts-dejavu-core",
}
_NEAR_EXPIRY = timedelta(days=30)
_OLD_LIST = timedelta(days=7)
"""The national list is published daily."""
_OLDEST_SANE_CLOCK = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination."""

    level: Literal["ok", "notice", "problem"]
    subject: str
    text: str

    def as_dict(self) -> dict[str, str]:
        return {"level": self.level, "subject": self.subject, "text": self.text}


_LEAST_MEMORY = 256 * 1024 * 1024
"""A few of the largest mails at once."""
_WATCHES = 8192
"""IMAP sessions that wait for mail, of one user: Dovecot's 2048, and room."""


def missing_programs() -> list[str]:
    """Programs and files Relais needs and this machine lacks, each with its Debian package."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [
        f"{program} (package {package})"
        for program, package in PROGRAMS.items()
        if not shutil.which(program, path=path)
    ]
    missing += [f"{file} (package {package})" for file, package in FILES.items() if not Path(file).exists()]
    return missing


def examine(state: Path, configuration: Path | None) -> list[Finding]:
    """Everything that can be checked from here."""
    return [
        *_programs(),
        *_watches(),
        *_clock(state),
        *_state(state),
        *_endpoints(state),
        *(_configuration(configuration) if configuration else ()),
        *_configurations_of(state),
    ]


def _programs() -> Iterator[Finding]:
    missing = missing_programs()
    for name in missing:
        yield Finding("problem", "packages", f"{name} is missing: run `make demo` as root or install it")
    if not missing:
        yield Finding("ok", "packages", "slapd, Dovecot and fonts are installed")


def _watches() -> Iterator[Finding]:
    """Each waiting IMAP session needs an inotify instance (inotify(7)), or it hears of mail half a minute late."""
    try:
        limit = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())
    except (OSError, ValueError):
        return
    if limit < _WATCHES:
        yield Finding(
            "notice",
            "sessions",
            f"more than {limit} mail programs at once hear of new mail late: put "
            f"fs.inotify.max_user_instances = {_WATCHES} into a file of /etc/sysctl.d, then run sysctl --system",
        )


def _clock(state: Path) -> Iterator[Finding]:
    now = datetime.now(UTC)
    written = [path.stat().st_mtime for path in (state / "ports.json", state / "endpoints.json") if path.exists()]
    if now < _OLDEST_SANE_CLOCK:
        yield Finding("problem", "clock", f"the clock says {now:%Y-%m-%d}: set it, or no certificate will be valid")
    elif written and max(written) > now.timestamp() + 60:
        yield Finding("problem", "clock", "the clock is behind the newest file of the state: have it set by NTP")
    else:
        yield Finding("ok", "clock", f"{now:%Y-%m-%d %H:%M:%S} UTC")


def _state(state: Path) -> Iterator[Finding]:
    if not state.exists():
        yield Finding("notice", "state", f"{state} does not exist yet; `relais up` makes it")
        return
    if not state.is_dir():
        yield Finding("problem", "state", f"{state} is no directory: choose another --state")
        return
    for secret in (*state.glob("*/*.key"), *state.glob("*/directory*.password"), *state.glob("secrets.json")):
        try:
            mode = stat.S_IMODE(secret.stat().st_mode)
        except OSError as error:
            yield Finding("notice", "permissions", f"{secret} cannot be looked at ({error.strerror}): run as root")
            return
        if mode & 0o077:
            yield Finding("problem", "permissions", f"{secret} is readable by others: chmod 600 {secret}")
    free = shutil.disk_usage(state).free
    level: Literal["ok", "problem"] = "ok" if free > 1 << 30 else "problem"
    yield Finding(level, "disk", f"{free / (1 << 30):.1f} GiB free below {state}")
    yield Finding(
        "notice",
        "durability",
        "SQLite and local blobs survive a process, not a machine: to lose a machine without losing a message, "
        "use PostgreSQL with a synchronous standby and replicated storage",
    )


def _endpoints(state: Path) -> Iterator[Finding]:
    """Whether what `relais up` announced still answers; without it, whether the remembered ports are free."""
    names = ("mllp", "imaps", "submission", "ldaps")
    try:
        described = json.loads((state / "endpoints.json").read_text())
        places = {name: (str(described[name]["host"]), int(described[name]["port"])) for name in names}
    except (OSError, ValueError, KeyError, TypeError):
        yield from _remembered_ports(state)
        return
    for name, (host, port) in places.items():
        if _listens(host, port):
            yield Finding("ok", "ports", f"{name} answers at {host}:{port}")
        else:
            yield Finding("problem", "ports", f"{name} does not answer at {host}:{port}: look in {state / 'log'}")


def _remembered_ports(state: Path) -> Iterator[Finding]:
    try:
        remembered = {name: int(port) for name, port in json.loads((state / "ports.json").read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return
    for name, port in remembered.items():
        if _listens("127.0.0.1", port):
            yield Finding(
                "notice", "ports", f"port {port} ({name}) is taken by another program; up will choose another"
            )


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except (OSError, OverflowError):
        return False


def _configurations_of(state: Path) -> Iterator[Finding]:
    for path in sorted(state.glob("*/relais.toml")):
        yield from _configuration(path)


def _configuration(path: Path) -> Iterator[Finding]:
    try:
        loaded = load(path)
    except SettingsError as error:
        yield Finding("problem", "configuration", str(error))
        return
    yield Finding("ok", "configuration", f"{path} is understood")
    if loaded.settings.connect is None:
        yield from _operator(loaded)
    else:
        from config.connector.examining import examine_connector

        for level, sentence in examine_connector(loaded):
            yield Finding(level, "connector", sentence)
        yield from _certificates(loaded, loaded.settings.trust.anchors)
    yield from _revocation(loaded)
    from config.screening_service import scanner_findings
    from config.store_doctor import examine_store

    for level, sentence in examine_store(loaded):
        yield Finding(level, "database", sentence)
    for level, sentence in scanner_findings(loaded):
        yield Finding(level, "scanner", sentence)
    if loaded.settings.identity.environment == "test":
        yield Finding("notice", "identity", f"{path}: environment is test, test identities are accepted")


def _memory(loaded: Loaded) -> Iterator[Finding]:
    """Of Dovecot: once it is full, large mail to everybody waits."""
    section = loaded.settings.mailboxes
    if not section.memory:
        return
    path = loaded.path(section.memory)
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return  # Dovecot's start makes it
    if usage.free < _LEAST_MEMORY:
        sentence = f"{path} has {usage.free >> 20} MB left: give its tmpfs more, or restart Dovecot, which forgets"
        yield Finding("notice", "mailboxes", sentence)


def _operator(loaded: Loaded) -> Iterator[Finding]:
    trust = loaded.settings.trust
    yield from _certificates(loaded, trust.anchors)
    yield from _certificates(loaded, trust.operator_chain)
    if loaded.settings.submission is not None:
        yield from _certificates(loaded, loaded.settings.submission.chain)
    if loaded.settings.discovery is not None and loaded.settings.discovery.chain:
        yield from _certificates(loaded, loaded.settings.discovery.chain)
    for name in (trust.list, trust.operator_key):
        if not name.startswith(("http://", "https://")) and not loaded.path(name).exists():
            yield Finding("problem", "configuration", f"{loaded.path(name)} does not exist")
    yield from _trust_list(loaded)
    yield from _tls_files(loaded)
    yield from _memory(loaded)
    from config.discovery_service import discovery_findings

    for level, sentence in discovery_findings(loaded):
        yield Finding(level, "discovery", sentence)


def _trust_list(loaded: Loaded) -> Iterator[Finding]:
    """What the gateway recorded of its trust list; nothing before its first start."""
    record = read_record(loaded.state / LIST_DIRECTORY)
    if record is None or record.kept is None:
        return
    age = datetime.now(UTC) - record.kept.generated_at
    if record.held is not None:
        reasons = "; ".join(record.held.reasons)
        yield Finding(
            "problem",
            "trust list",
            f"a list of {record.held.generated_at:%Y-%m-%d %H:%M} is held because {reasons}: relais trust list diff",
        )
    if record.last is not None and record.last.outcome in (RefreshOutcome.REFUSED, RefreshOutcome.UNAVAILABLE):
        yield Finding(
            "problem", "trust list", f"the last refresh brought none: {record.last.text} ({record.last.detail})"
        )
    if age > _OLD_LIST:
        yield Finding("problem", "trust list", f"the list in use is {age.days} days old: find out why none comes")
    elif record.held is None:
        yield Finding("ok", "trust list", f"{record.kept.rows} rows of {record.kept.generated_at:%Y-%m-%d %H:%M}")


def _revocation(loaded: Loaded) -> Iterator[Finding]:
    """What the gateway has kept of the CRLs it fetched."""
    section = loaded.settings.revocation
    if {section.inbound, section.outbound, section.operators, section.list} == {"off"}:
        yield Finding("notice", "revocation", "nobody is asked whether a certificate was revoked: [revocation] is off")
        return
    if not section.cache or not (loaded.state / section.cache).is_dir():
        return
    try:
        lists = [each for each in kept(loaded.state / section.cache) if each.kind == "crl"]
    except OSError as error:
        yield Finding("notice", "revocation", f"{loaded.state / section.cache} cannot be read: {error.strerror}")
        return
    now = datetime.now(UTC)
    if not lists:
        yield Finding("ok", "revocation", "no CRL has been needed yet")
        return
    first = min(each.ends or each.as_of or now for each in lists)
    ended = sum((each.ends or each.as_of or now) < now for each in lists)
    oldest = min(each.as_of or now for each in lists)
    told = f"{len(lists)} CRLs, the oldest of {oldest:%Y-%m-%d %H:%M}, next update {first:%Y-%m-%d %H:%M}"
    if ended:
        yield Finding("notice", "revocation", f"{told}; {ended} have ended: no newer one came, or none was needed")
    else:
        yield Finding("ok", "revocation", told)


def _tls_files(loaded: Loaded) -> Iterator[Finding]:
    """Whether certificate, key and anchors can be used together: what a running gateway would take at a renewal."""
    submission = loaded.settings.submission
    try:
        operator_server_context(*operator_files(loaded))
        if submission is not None:
            service_server_context(loaded.path(submission.chain), loaded.path(submission.key))
    except TlsMaterialError as error:
        yield Finding("problem", "tls", f"{error}: a running gateway goes on with what it has, a restart fails")


def _certificates(loaded: Loaded, name: str) -> Iterator[Finding]:
    path = loaded.path(name)
    try:
        certificates = x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        yield Finding("problem", "certificates", f"{path} cannot be read: {error.strerror}")
        return
    except (ValueError, x509.InvalidVersion):
        yield Finding("problem", "certificates", f"{path} holds no PEM certificate")
        return
    soonest = min(certificate.not_valid_after_utc for certificate in certificates)
    left = soonest - datetime.now(UTC)
    if left < timedelta(0):
        yield Finding("problem", "certificates", f"{path} expired on {soonest:%Y-%m-%d}: renew it")
    elif left < _NEAR_EXPIRY:
        yield Finding("problem", "certificates", f"{path} expires on {soonest:%Y-%m-%d}: renew it")
    else:
        yield Finding("ok", "certificates", f"{path} is valid until {soonest:%Y-%m-%d}")
