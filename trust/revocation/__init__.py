"""Whether a certificate was withdrawn before its time: CRLs (RFC 5280 §5, §6.3) and OCSP (RFC 6960).

The types here are what path validation sees. Answering never waits for the network: `RevocationChecker.check` says what
is known now, from indexes in memory, and leaves a note for the refresher to fetch what is missing or about to end.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Protocol

from cryptography import x509


class RevocationState(Enum):
    """What is known about one certificate at one time."""

    GOOD = "good"
    REVOKED = "revoked"
    """Revoked, or on hold, at the time asked about."""
    UNKNOWN = "unknown"
    """No usable, authentic statement covers the certificate (yet), or the responder does not know it."""
    STALE = "stale"
    """The newest authentic statement said good, but its nextUpdate has passed; `next_update` says when."""


class RevocationMode(Enum):
    """What path validation does with anything but `GOOD`. `REVOKED` is refused in both `HARD` and `SOFT`."""

    HARD = "hard"
    """No answer, no trust."""
    SOFT = "soft"
    """No answer is noted in the verdict, and the path is accepted."""
    OFF = "off"
    """Nobody is asked."""


@dataclass(frozen=True, slots=True)
class RevocationStatus:
    """The answer for one certificate."""

    state: RevocationState
    source: str = ""
    """"crl", "ocsp", or empty when no statement was used."""
    reason: str = ""
    """CRLReason name of RFC 5280 §5.3.1, e.g. "keyCompromise"; "unspecified" when revoked without one; else empty."""
    revoked_at: datetime | None = None
    """revocationDate, aware UTC."""
    invalid_since: datetime | None = None
    """invalidityDate (§5.3.2), when the statement has one."""
    as_of: datetime | None = None
    """thisUpdate of the statement."""
    next_update: datetime | None = None
    """nextUpdate of the statement, when it has one."""
    detail: str = ""
    """Why, for an operator's eyes; never who the certificate is for."""


@dataclass(frozen=True, slots=True)
class RevocationPolicy:
    """What one purpose demands."""

    mode: RevocationMode = RevocationMode.SOFT
    stale_for: timedelta = timedelta(0)
    """How long after its nextUpdate a statement that said good is still believed."""


class RevocationChecker(Protocol):
    """Answers for certificates whose path is being validated. Thread-safe."""

    def check(
        self, certificate: x509.Certificate, issuer: x509.Certificate, at: datetime, stapled: bytes | None = None
    ) -> RevocationStatus:
        """What is known about `certificate`, issued by `issuer`, at the time `at` (aware).

        `stapled` is an OCSP response in DER that came along (TLS, CMS). Never raises and never does network I/O: it
        answers from memory and asks the refresher to fetch what is missing. Call it only when `issuer` was found on a
        path to an anchor: only then may the URLs in `certificate` be fetched.
        """
        ...
