"""What monitoring watches in one gateway: the certificates whose end would stop mail, and what must answer."""

from __future__ import annotations

import functools
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime

import structlog
from cryptography import x509

from config.metrics import Certificates
from config.settings import Loaded
from directory.resolve import Directory, DirectoryUnavailableError
from trust.store.database import Database
from trust.vault import KeyVault

log = structlog.get_logger(__name__)

_EXPIRIES_SECONDS = 300.0
_NEVER = datetime.max.replace(tzinfo=UTC)


def expiries(loaded: Loaded, vault: KeyVault) -> Certificates:
    """Our certificates, named without naming a person; of the mailboxes' the first to end.

    Read at most once in `_EXPIRIES_SECONDS`: the vault opens a file for each certificate.
    """
    settings = loaded.settings
    files = {"anchors": settings.trust.anchors}
    if settings.trust.operator_chain:
        files["operator"] = settings.trust.operator_chain
    if settings.submission is not None:
        files["submission"] = settings.submission.chain
    if settings.discovery is not None and settings.discovery.chain:
        files["discovery"] = settings.discovery.chain

    def end_of_file(path: str) -> datetime:
        certificates = x509.load_pem_x509_certificates(loaded.path(path).read_bytes())
        return min(certificate.not_valid_after_utc for certificate in certificates)

    def end_of_mailboxes() -> datetime:
        ends = vault.expiring(_NEVER)
        return ends[0][1] if ends else _NEVER

    ways: dict[str, Callable[[], datetime]] = {
        name: functools.partial(end_of_file, path) for name, path in files.items()
    }
    ways["mailboxes"] = end_of_mailboxes

    def end(name: str) -> datetime | None:
        try:
            return ways[name]()
        except Exception as error:  # one file that is being replaced must not hide all the rest
            log.error("monitored.certificate", name=name, error=type(error).__name__)
            return None

    @functools.lru_cache(maxsize=1)
    def ends(_period: float) -> tuple[tuple[str, datetime | None], ...]:
        return tuple((name, end(name)) for name in ways)

    return lambda: ends(time.monotonic() // _EXPIRIES_SECONDS)


def checks(loaded: Loaded, directory: Directory, database: Database) -> dict[str, Callable[[], bool]]:
    """What must answer for the gateway to do its work, by name; each may block and may raise."""

    def directory_answers() -> bool:
        try:
            directory.resolve(loaded.settings.operator.postmaster)
        except DirectoryUnavailableError:
            return False
        return True

    def database_takes_a_commit() -> bool:
        database.transact(lambda connection: None)
        return True

    def mailboxes_answer() -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2.0)
            try:
                connection.connect(str(loaded.path(loaded.settings.mailboxes.lmtp_socket)))
            except OSError:
                return False
        return True

    return {"directory": directory_answers, "database": database_takes_a_commit, "mailboxes": mailboxes_answer}
