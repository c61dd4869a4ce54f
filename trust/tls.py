"""TLS contexts: the one place where they are built, and where the name of the peer is read.

TLS 1.2 and 1.3 only. Under TLS 1.2 the four suites the French rules name for MSSanté and no other (ECO.1.1.3: C030,
C02F, C028, C027). All are ECDHE-RSA, as all certificates of IGC-Santé have RSA keys: who has a key on an elliptic curve
speaks TLS 1.3. That keeps the suites of the library; all of them are AEAD with forward secrecy.

Contexts follow their files: `FollowedContext` builds a new one when certificate, key or anchors were renewed.
Connections keep what they began with; new ones get the new context. Files that cannot be used change nothing but what
is told.

OCSP stapling is neither asked for nor read: Python's `ssl` offers no way to either, on no side. Revocation of a peer is
answered from CRLs and OCSP by the validator instead (`peer_judge`).

Between operators both sides show a certificate of the health PKI; what counts is that its distinguished name is listed
for the mail domain, so the caller asks `peer_name` after the handshake and compares with the trust list.
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from trust.certificates import CertificateValidator, PathVerdict, Purpose
from trust.listed_names import subject_of
from trust.names import DistinguishedName

log = structlog.get_logger(__name__)

_REASONS = {
    "PEM lib": "no certificate or unencrypted key in PEM",
    "NO_START_LINE": "nothing in PEM",
    "BAD_END_LINE": "a certificate or key is cut off",
    "NO_CERTIFICATE_OR_CRL_FOUND": "no certificate in PEM",
    "KEY_VALUES_MISMATCH": "the key does not belong to the certificate",
    "BAD_DECRYPT": "the key is encrypted",
}
_DER = 2
"""`_ssl.ENCODING_DER`"""
TLS12_SUITES = ":".join(
    f"ECDHE-RSA-{suite}" for suite in ("AES256-GCM-SHA384", "AES128-GCM-SHA256", "AES256-SHA384", "AES128-SHA256")
)
"""In OpenSSL's spelling, the best first."""
_MAX_PRESENTED = 16
"""Certificates looked at of what a peer presents; OpenSSL itself takes at most 100 KB."""

Context = ssl.SSLContext | Callable[[], ssl.SSLContext]
"""One context for ever, or a way to the one in force: whoever opens a connection asks `in_force`."""


def in_force(context: Context) -> ssl.SSLContext:
    """The context for a connection that begins now."""
    return context if isinstance(context, ssl.SSLContext) else context()


class TlsMaterialError(Exception):
    """A certificate, key or anchor file cannot be used; the text names the file and says why, never its content."""


def operator_server_context(
    certificate_chain_pem: Path, key_pem: Path, anchors_pem: Path, intermediates_pem: Path | None = None
) -> ssl.SSLContext:
    """For our door towards other operators: a client certificate under `anchors_pem` is required.

    Files are PEM; the key is not encrypted. `intermediates_pem` completes the chains of peers who send their own
    certificate only; it makes nobody trusted. Raises `TlsMaterialError`.

    No tickets are given, so TLS 1.3 resumes nothing. A TLS 1.2 client may still resume by session identifier, which
    Python's `ssl` cannot switch off: the session lives in this context only (other anchors, other context) and holds
    the certificate it began with, so that `peer_name` and `judge_peer`, asked at each message, judge it as it is today.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, certificate_chain_pem, key_pem)
    _require_peer(context, anchors_pem, intermediates_pem)
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    return context


def operator_client_context(
    certificate_chain_pem: Path, key_pem: Path, anchors_pem: Path, intermediates_pem: Path | None = None
) -> ssl.SSLContext:
    """For connections to other operators: shows our certificate, accepts only servers under `anchors_pem`.

    `intermediates_pem` as in `operator_server_context`.

    The host name is not checked, on purpose: hosts come from MX records or configuration that prove nothing, and the
    trust list binds a domain to distinguished names, not to hosts. The caller must compare `peer_name` with
    `TrustList.operators_of(domain)` before it says anything. Raises `TlsMaterialError`.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, certificate_chain_pem, key_pem)
    context.check_hostname = False
    _require_peer(context, anchors_pem, intermediates_pem)
    return context


def service_server_context(
    certificate_chain_pem: Path, key_pem: Path, client_anchors_pem: Path | None = None
) -> ssl.SSLContext:
    """For submission, mailboxes and pages: our certificate only. With `client_anchors_pem` clients are asked for a
    certificate below these anchors; who has none comes in all the same. Raises `TlsMaterialError`."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, certificate_chain_pem, key_pem)
    if client_anchors_pem is not None:
        _require_peer(context, client_anchors_pem, None)
        context.verify_mode = ssl.CERT_OPTIONAL
        context.num_tickets = 0  # as for operators
        context.options |= ssl.OP_NO_TICKET
    return context


def peer_name(connection: ssl.SSLObject | ssl.SSLSocket) -> DistinguishedName | None:
    """The subject of the peer's certificate, only when this connection required and verified one; None before the
    handshake too."""
    if connection.context.verify_mode is not ssl.CERT_REQUIRED:
        return None
    try:
        der = connection.getpeercert(binary_form=True)
    except ValueError:  # no handshake yet
        return None
    return _subject(der) if der else None


@functools.lru_cache(maxsize=256)
def _subject(der: bytes) -> DistinguishedName | None:
    """Remembered for as many certificates as a trust space has operators: doors ask again for every command."""
    try:
        return subject_of(x509.load_der_x509_certificate(der))
    except (ValueError, x509.InvalidVersion):  # DER that OpenSSL tolerates and our parser does not
        return None


def presented(connection: ssl.SSLObject | ssl.SSLSocket) -> tuple[bytes, ...]:
    """The chain as the peer sent it, end entity first, DER, at most `_MAX_PRESENTED`; empty without a certificate.

    To be asked, as all of a connection, by the thread that reads and writes it: a ticket that is just being read
    replaces the session and frees the chain, and Python before 3.13 keeps no lock against that.
    Only Python 3.13 has a public call for it; before, the object below has the same one. Where neither is there, the
    end entity alone.
    """
    return _chain(connection, "get_unverified_chain")


def verified_path(connection: ssl.SSLObject | ssl.SSLSocket) -> tuple[bytes, ...]:
    """The path OpenSSL found from the peer's certificate to an anchor of ours, both included, DER. Unlike what was
    `presented`, every certificate of it vouches for the one before. Where Python has no call for it, as there."""
    return _chain(connection, "get_verified_chain")


def _chain(connection: ssl.SSLObject | ssl.SSLSocket, how: str) -> tuple[bytes, ...]:
    below: Any = getattr(connection, "_sslobj", None)
    call = getattr(connection, how, None) or getattr(below, how, None)
    try:
        if call is not None:
            found = [each for each in call() or () if each is not None]  # of a client without one: [None]
            chain = [each if isinstance(each, bytes) else each.public_bytes(_DER) for each in found]
            if chain:
                own = connection.getpeercert(binary_form=True)
                if own is not None and chain[0] != own:  # servers are not told the end entity with the chain
                    chain.insert(0, own)
                return tuple(chain[:_MAX_PRESENTED])
        alone = connection.getpeercert(binary_form=True)
    except (ValueError, ssl.SSLError):  # no handshake yet
        return ()
    return (alone,) if alone else ()


def judge_peer(
    shown: Sequence[bytes], validator: CertificateValidator, purpose: Purpose, at: datetime
) -> PathVerdict | None:
    """What our own validator, which knows about revocation, says of a peer who has `presented` this; None when nothing
    of it is readable. May wait for the network.

    OpenSSL has checked the chain in the handshake already; this adds the profile of the purpose and revocation.
    """
    certificates = []
    for encoded in shown:
        try:
            certificates.append(x509.load_der_x509_certificate(encoded))
        except (ValueError, x509.InvalidVersion):
            if not certificates:
                return None
    if not certificates:
        return None
    return validator.validate(certificates[0], certificates[1:], purpose, at)


PeerJudge = Callable[[Sequence[bytes]], str]
"""Why a peer whose name is listed, and who has `presented` this, is not believed all the same; empty when it is. Gets
no connection, for it is asked in another thread."""


def peer_judge(validator: CertificateValidator, purpose: Purpose) -> PeerJudge:
    """The validator's word on peers, for doors and targets: rule and detail of what is wrong, without a name."""

    def judge(shown: Sequence[bytes]) -> str:
        verdict = judge_peer(shown, validator, purpose, datetime.now(UTC))
        if verdict is None:
            return "unreadable certificate"
        return "" if verdict.ok else f"{verdict.rule}: {verdict.detail}"

    return judge


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What changes when a file is written, replaced, or reached through another link; who follows files compares."""

    path: Path
    device: int
    inode: int
    modified_ns: int
    size: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        try:
            status = path.stat()
        except OSError:
            return cls(path, 0, 0, 0, -1)
        return cls(path, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)


class FollowedContext:
    """A context that follows its files. Call it for the one in force; call `look` from time to time, from any thread.

    Nothing that is in use is touched: a renewal is another context. When the new files cannot be used (half written,
    key and certificate that do not fit, expired), the old context stays and `problem` says why until they can.
    """

    def __init__(
        self, name: str, build: Callable[[], ssl.SSLContext], files: Sequence[Path], certificate_pem: Path
    ) -> None:
        """`build` reads `files` anew at each call; `name` is for the log and the metrics. Raises `TlsMaterialError`."""
        self.name = name
        self.problem = ""
        """Why the newest files are not in use; empty when they are."""
        self.renewals = 0
        """How often newer files were taken into use."""
        self._build = build
        self._files = tuple(files)
        self._certificate = certificate_pem
        self._lock = Lock()
        self._seen = self._stamps()
        self._context = build()

    def __call__(self) -> ssl.SSLContext:
        return self._context

    def look(self) -> bool:
        """Take newer files into use; whether there were any that can be used."""
        with self._lock:
            stamps = self._stamps()  # before reading: what is written meanwhile is seen at the next look
            if stamps == self._seen:
                return False
            self._seen = stamps
            try:
                context = self._build()
                _refuse_out_of_time(self._certificate)
            except TlsMaterialError as error:
                self.problem = str(error)
                log.error("tls.not-renewed", context=self.name, problem=self.problem)
                return False
            self._context, self.problem = context, ""
            self.renewals += 1
            log.info("tls.renewed", context=self.name)
            return True

    def _stamps(self) -> tuple[FileStamp, ...]:
        return tuple(FileStamp.of(path) for path in self._files)


def followed_operator_server(
    certificate_chain_pem: Path, key_pem: Path, anchors_pem: Path, intermediates_pem: Path | None = None
) -> FollowedContext:
    """`operator_server_context` that follows its files. Raises `TlsMaterialError`."""
    files = (certificate_chain_pem, key_pem, anchors_pem, *([intermediates_pem] if intermediates_pem else ()))
    return FollowedContext("operators", lambda: operator_server_context(*files), files, certificate_chain_pem)


def followed_operator_client(
    certificate_chain_pem: Path, key_pem: Path, anchors_pem: Path, intermediates_pem: Path | None = None
) -> FollowedContext:
    """`operator_client_context` that follows its files. Raises `TlsMaterialError`."""
    files = (certificate_chain_pem, key_pem, anchors_pem, *([intermediates_pem] if intermediates_pem else ()))
    return FollowedContext("partners", lambda: operator_client_context(*files), files, certificate_chain_pem)


def followed_service_server(
    name: str, certificate_chain_pem: Path, key_pem: Path, client_anchors_pem: Path | None = None
) -> FollowedContext:
    """`service_server_context` that follows its files. Raises `TlsMaterialError`."""
    files = (certificate_chain_pem, key_pem, *([client_anchors_pem] if client_anchors_pem else ()))
    return FollowedContext(name, lambda: service_server_context(*files), files, certificate_chain_pem)


def _refuse_out_of_time(certificate_pem: Path) -> None:
    """OpenSSL serves an expired certificate without a word; a renewal must be one."""
    try:
        certificate = x509.load_pem_x509_certificates(certificate_pem.read_bytes())[0]
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except Exception as error:  # the parser reads lazily and has no common error class
        raise TlsMaterialError(f"{certificate_pem.name}: {type(error).__name__}") from error
    if not begins <= datetime.now(UTC) <= ends:
        raise TlsMaterialError(f"{certificate_pem.name}: the certificate is expired or not yet valid")


def _context(protocol: int, certificate_chain_pem: Path, key_pem: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(TLS12_SUITES)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        # an empty password, so that an encrypted key is an error and not a question on the terminal
        context.load_cert_chain(certificate_chain_pem, key_pem, password=b"")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise TlsMaterialError(f"{certificate_chain_pem.name} and {key_pem.name}: {_why(error)}") from error
    return context


def _require_peer(context: ssl.SSLContext, anchors_pem: Path, intermediates_pem: Path | None) -> None:
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(anchors_pem)
    except (ssl.SSLError, OSError) as error:
        raise TlsMaterialError(f"{anchors_pem.name}: {_why(error)}") from error
    if intermediates_pem is None:
        return
    # a path ends at a self-signed certificate of the store: none comes in here, and the others only help to get there
    context.verify_flags &= ~ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        read = x509.load_pem_x509_certificates(intermediates_pem.read_bytes())
        helping = [each.public_bytes(Encoding.DER) for each in read if each.subject != each.issuer]
        if helping:
            context.load_verify_locations(cadata=b"".join(helping))
    except (ssl.SSLError, OSError, ValueError, x509.InvalidVersion) as error:
        raise TlsMaterialError(f"{intermediates_pem.name}: {_why(error)}") from error


def _why(error: Exception) -> str:
    """OpenSSL's reasons in words; of the rest the system's."""
    if isinstance(error, ssl.SSLError):  # "[SSL: REASON] words (_ssl.c:1)" or "[SSL] words (_ssl.c:1)"
        reason = error.reason or str(error).partition("] ")[2].partition(" (_ssl")[0]
        return _REASONS.get(reason, reason)
    return getattr(error, "strerror", None) or str(error)
