"""A certification authority that can do everything wrong, and an HTTP server on loopback that can misbehave."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp as builder
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

NOW = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
"""A little later than now: OCSP responses bear the time at which they were made, and tests take a while."""
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


def name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COUNTRY_NAME, "FR"), x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(ca: bool, crl: bool) -> x509.KeyUsage:
    return x509.KeyUsage(not ca, False, False, False, False, ca, crl, False, False)


def cdp(*urls: str, issuer: x509.Name | None = None, reasons: frozenset | None = None) -> x509.CRLDistributionPoints:
    full = [x509.UniformResourceIdentifier(url) for url in urls] or None
    issuers = [x509.DirectoryName(issuer)] if issuer is not None else None
    return x509.CRLDistributionPoints([x509.DistributionPoint(full, None, reasons, issuers)])


def access(ocsp: str = "", issuers: str = "") -> x509.AuthorityInformationAccess:
    out = []
    if ocsp:
        out.append((AuthorityInformationAccessOID.OCSP, ocsp))
    if issuers:
        out.append((AuthorityInformationAccessOID.CA_ISSUERS, issuers))
    return x509.AuthorityInformationAccess(
        [x509.AccessDescription(method, x509.UniformResourceIdentifier(url)) for method, url in out]
    )


class Authority:
    """One CA; `parent` None: a root."""

    def __init__(self, common: str, parent: Authority | None = None, *, crl_sign: bool = True, **options) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = name(common)
        above = parent or self
        self.certificate = above.sign(
            self.name, self.key.public_key(), [(_usage(True, crl_sign), True)], ca=True, **options
        )
        self.number = 0

    def sign(
        self, subject, key, extensions, *, ca=False, serial=None, before=NOW - DAY, after=NOW + 365 * DAY
    ) -> x509.Certificate:
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(serial or x509.random_serial_number())
            .not_valid_before(before)
            .not_valid_after(after)
            .add_extension(x509.BasicConstraints(ca, None), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False)
        )
        for extension, critical in extensions:
            made = made.add_extension(extension, critical)
        return made.sign(self.key, hashes.SHA256())

    def issue(self, *extensions: x509.ExtensionType, **options) -> x509.Certificate:
        key = ec.generate_private_key(ec.SECP256R1())
        return self.sign(name("Dr Fictif"), key.public_key(), [(each, False) for each in extensions], **options)

    def responder(self, *extensions: x509.ExtensionType, eku=ExtendedKeyUsageOID.OCSP_SIGNING, **options):
        """A delegated OCSP responder: its key and certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        wanted = [(x509.ExtendedKeyUsage([eku]), False), *((each, False) for each in extensions)]
        return key, self.sign(name("Responder"), key.public_key(), wanted, **options)

    def crl(
        self,
        *revoked: x509.RevokedCertificate,
        this=NOW - HOUR,
        until=NOW + DAY,
        extensions=(),
        key=None,
        number=None,
        aki=True,
        issuer=None,
    ) -> bytes:
        self.number = number if number is not None else self.number + 1
        made = x509.CertificateRevocationListBuilder().issuer_name(issuer or self.name)
        made = made.last_update(this).next_update(until).add_extension(x509.CRLNumber(self.number), False)
        if aki:
            public = self.key.public_key()
            made = made.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), False)
        for each in revoked:
            made = made.add_revoked_certificate(each)
        for extension, critical in extensions:
            made = made.add_extension(extension, critical)
        from cryptography.hazmat.primitives.serialization import Encoding

        return made.sign(key or self.key, hashes.SHA256()).public_bytes(Encoding.DER)

    def ocsp(
        self,
        certificate: x509.Certificate,
        *,
        revoked: datetime | None = None,
        reason: x509.ReasonFlags | None = None,
        unknown: bool = False,
        this=NOW - HOUR,
        until: datetime | None = NOW + DAY,
        by: tuple | None = None,
        embed: list | None = None,
        encoding=builder.OCSPResponderEncoding.HASH,
        nonce: bytes | None = None,
        about: Authority | None = None,
        algorithm=None,
    ) -> bytes:
        from cryptography.hazmat.primitives.serialization import Encoding

        key, signer = by or (self.key, self.certificate)
        status = builder.OCSPCertStatus.GOOD
        if revoked is not None:
            status = builder.OCSPCertStatus.REVOKED
        if unknown:
            status = builder.OCSPCertStatus.UNKNOWN
        made = (
            builder.OCSPResponseBuilder()
            .add_response(
                certificate,
                (about or self).certificate,
                algorithm or hashes.SHA1(),
                status,
                this,
                until,
                revoked,
                reason,
            )
            .responder_id(encoding, signer)
        )
        if by is not None or embed:
            made = made.certificates(embed or [signer])
        if nonce is not None:
            made = made.add_extension(x509.OCSPNonce(nonce), False)
        return made.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def revoked(certificate, when=NOW - HOUR, reason=None, since=None, issuer=None) -> x509.RevokedCertificate:
    serial = certificate if isinstance(certificate, int) else certificate.serial_number
    made = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when)
    if reason is not None:
        made = made.add_extension(x509.CRLReason(reason), False)
    if since is not None:
        made = made.add_extension(x509.InvalidityDate(since), False)
    if issuer is not None:
        made = made.add_extension(x509.CertificateIssuer([x509.DirectoryName(issuer)]), True)
    return made.build()


def idp(url: str = "", *, name=None, user=False, authority=False, indirect=False, reasons=None):
    full = [x509.UniformResourceIdentifier(url)] if url else None
    if name is not None:
        full = [x509.DirectoryName(name)]
    return (x509.IssuingDistributionPoint(full, None, user, authority, reasons, indirect, False), True)


class Site:
    """What the server answers, by path: bytes, or a function of the handler. Counts what was asked."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.pages: dict[str, bytes | Callable[[BaseHTTPRequestHandler, bytes], None]] = {}
        self.asked: list[str] = []
        self.closing = threading.Event()


@contextmanager
def site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found.asked.append(self.path)
            page = found.pages.get(self.path)
            try:
                if page is None:
                    self.send_error(404)
                elif callable(page):
                    page(self, body)
                else:
                    reply(self, page)
            except OSError:
                pass  # the client had enough

        do_GET = do_POST = _answer

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found = Site(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def reply(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for key, value in ({"Content_Length": str(len(body))} | headers).items():
        handler.send_header(key.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)
