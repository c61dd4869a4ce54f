"""TLS contexts: the one place where they are built, and where the name of the peer is read.

TLS 1.2 and 1.3 only. Under TLS 1.2 the four suites the French rules name for MSSanté (ECO.1.1.3: C030, C02F, C028,
C027, all ECDHE-RSA), and their ECDHE-ECDSA twins, which can only be negotiated where our own certificate is on an
elliptic curve. TLS 1.3 keeps the suites of the library; all of them are AEAD with forward secrecy.

Between operators both sides show a certificate of the health PKI; what counts is that its distinguished name is listed
for the mail domain, so the caller asks `peer_name` after the handshake and compares with the trust list.
"""

from __future__ import annotations

import functools
import ssl
from pathlib import Path

from cryptography import x509

from trust.names import DistinguishedName

_TLS12_SUITES = ":".join(
    f"ECDHE-{kind}-{suite}"
    for suite in ("AES256-GCM-SHA384", "AES128-GCM-SHA256", "AES256-SHA384", "AES128-SHA256")
    for kind in ("RSA", "ECDSA")
)


class TlsMaterialError(Exception):
    """A certificate, key or anchor file cannot be used; the text names the file and says why, never its content."""


def operator_server_context(certificate_chain_pem: Path, key_pem: Path, anchors_pem: Path) -> ssl.SSLContext:
    """For our door towards other operators: a client certificate under `anchors_pem` is required.

    Files are PEM; the key is not encrypted. Raises `TlsMaterialError`.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, certificate_chain_pem, key_pem)
    _require_peer(context, anchors_pem)
    # a resumed session would not show the client's certificate again: every connection proves itself afresh
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    return context


def operator_client_context(certificate_chain_pem: Path, key_pem: Path, anchors_pem: Path) -> ssl.SSLContext:
    """For connections to other operators: shows our certificate, accepts only servers under `anchors_pem`.

    The host name is not checked, on purpose: hosts come from MX records or configuration that prove nothing, and the
    trust list binds a domain to distinguished names, not to hosts. The caller must compare `peer_name` with
    `TrustList.operators_of(domain)` before it says anything. Raises `TlsMaterialError`.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, certificate_chain_pem, key_pem)
    context.check_hostname = False
    _require_peer(context, anchors_pem)
    return context


def service_server_context(certificate_chain_pem: Path, key_pem: Path) -> ssl.SSLContext:
    """For submission, mailboxes and pages: our certificate only, no client certificate. Raises `TlsMaterialError`."""
    return _context(ssl.PROTOCOL_TLS_SERVER, certificate_chain_pem, key_pem)


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
        return DistinguishedName.from_x509(x509.load_der_x509_certificate(der).subject)
    except (ValueError, x509.InvalidVersion):  # DER that OpenSSL tolerates and our parser does not
        return None


def _context(protocol: int, certificate_chain_pem: Path, key_pem: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_TLS12_SUITES)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        # an empty password, so that an encrypted key is an error and not a question on the terminal
        context.load_cert_chain(certificate_chain_pem, key_pem, password=b"")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise TlsMaterialError(f"{certificate_chain_pem.name} and {key_pem.name}: {error}") from error
    return context


def _require_peer(context: ssl.SSLContext, anchors_pem: Path) -> None:
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(anchors_pem)
    except (ssl.SSLError, OSError) as error:
        raise TlsMaterialError(f"{anchors_pem.name}: {error}") from error
