"""What a partner's service presents over TLS, and why it is believed or not: asked before mail has to wait.

A probe connects as the gateway would, with the gateway's own certificate, but believes everybody for long enough to
look. The judgement comes after: our validator for each purpose, the trust list, the name. Where the handshake fails, a
second one that accepts nearly anything tells what the service would have spoken instead; nothing is ever sent over it.

The other side may be silent, slow or hostile: one deadline covers all, and the answer is a report with one sentence.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from trust.certificates import CertificateValidator, PathVerdict, Purpose
from trust.listed_names import subject_of
from trust.names import DistinguishedName
from trust.starttls import Plain, StartTls, TalkError
from trust.tls import TlsMaterialError, presented
from trust.trustlist import REVOCATION_UNKNOWN, TrustList

SECONDS = 15.0
"""For everything, name resolution apart."""
_CONNECT_SECONDS = 5.0
"""For one address of a host, so that one that does not answer leaves time for the next."""
_WAIT_FOR_ALERT_SECONDS = 1.0
_MAX_LISTED = 50
_MAX_NEAR = 5
_NO_STAPLING = "not read: Python's ssl gives clients no access to a stapled OCSP response"
_ROUNDS = 5
"""A path has so many certificates whose answers may be missing one after the other."""
_PURPOSES = (Purpose.OPERATOR_TLS_SERVER, Purpose.OPERATOR_TLS_CLIENT)
_IN_THE_CLEAR = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")
"""What OpenSSL says of an answer that is no TLS record."""
_OU, _CN = "2.5.4.11", "2.5.4.3"

Settled = Callable[[float], bool]
"""Waits so many seconds at most for answers about revocation that are being fetched; whether all came."""
ProbeContext = Callable[[], ssl.SSLContext]
"""Makes a context of the gateway's rules and certificate; the probe takes the verification off it."""

_Judge = Callable[[list[x509.Certificate], Purpose], PathVerdict]


@dataclass(frozen=True, slots=True)
class PresentedCertificate:
    """One certificate of the chain, as people read it."""

    subject: str
    issuer: str
    serial: str = ""
    not_before: str = ""
    not_after: str = ""
    key: str = ""
    signature: str = ""
    key_usage: tuple[str, ...] = ()
    extended_key_usage: tuple[str, ...] = ()
    alternative_names: tuple[str, ...] = ()
    authority: bool = False
    sha256: str = ""
    problem: str = ""
    """Why it could not be read."""


@dataclass(frozen=True, slots=True)
class PurposeVerdict:
    """Our validator's word on the end entity."""

    ok: bool
    rule: str
    detail: str
    revocation: str
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListedAs:
    """What the trust list in force says of the end entity's name."""

    name: str
    listed: bool
    domains: tuple[str, ...]
    domain_count: int
    near: tuple[str, ...]
    """Listed names that are nearly this one, each with what differs."""
    list_date: str


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """All a probe found. `believed` is what an operator's gateway would conclude."""

    host: str
    port: int
    starttls: str
    believed: bool
    sentence: str
    """The conclusion."""
    protocol: str = ""
    suite: str = ""
    client_certificate: str = ""
    host_name_matches: bool = False
    chain: tuple[PresentedCertificate, ...] = ()
    verdicts: dict[str, PurposeVerdict] = field(default_factory=dict)
    trust_list: ListedAs | None = None
    ocsp_stapling: str = _NO_STAPLING
    missing: tuple[str, ...] = ()
    """Everything that would have to change, one sentence each."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Seen:
    protocol: str
    suite: str
    client_certificate: str
    chain: tuple[bytes, ...]


def probe(
    host: str,
    port: int,
    starttls: StartTls | None,
    context: ProbeContext,
    validator: CertificateValidator,
    trust_list: TrustList | None,
    *,
    helo: str = "localhost",
    domain: str = "",
    seconds: float = SECONDS,
    settled: Settled | None = None,
) -> ProbeReport:
    """Look at one service; blocks for at most `seconds` and the time the resolver takes. Never raises on bad input.

    With `domain`, the name must be listed for that mail domain, as for a delivery to it. With `settled`, what nobody
    knows yet about the revocation of a stranger is waited for, for `seconds` more.
    """
    deadline = time.monotonic() + seconds
    how = starttls.value if starttls else ""
    try:
        seen = _look(host, port, starttls, context(), helo, deadline)
    except TalkError as error:
        return ProbeReport(host, port, how, False, str(error), missing=(str(error),))
    except TlsMaterialError as error:
        sentence = f"Our own certificate cannot be used: {error}."
        return ProbeReport(host, port, how, False, sentence, missing=(sentence,))
    except (ssl.SSLError, OSError) as error:
        sentence = _handshake_failed(error)
        if starttls is None and getattr(error, "reason", "") in _IN_THE_CLEAR:
            sentence += " It talks in the clear first, as SMTP and IMAP do: try --starttls smtp."
        elif isinstance(error, ssl.SSLError):
            sentence += _what_instead(host, port, starttls, helo, deadline)
        return ProbeReport(host, port, how, False, sentence, missing=(sentence,))
    judge = _patient(validator, settled, time.monotonic() + seconds)
    return _judge(host, port, how, seen, judge, trust_list, domain)


def _patient(validator: CertificateValidator, settled: Settled | None, deadline: float) -> _Judge:
    """The validator's word, once what it has to fetch for a certificate never seen before has come."""

    def judge(certificates: list[x509.Certificate], purpose: Purpose) -> PathVerdict:
        for _ in range(_ROUNDS):
            verdict = validator.validate(certificates[0], certificates[1:], purpose, datetime.now(UTC))
            if settled is None or verdict.rule != REVOCATION_UNKNOWN or time.monotonic() >= deadline:
                break
            settled(deadline - time.monotonic())
        return verdict

    return judge


def _is_service(how: str) -> bool:
    """Mailboxes and directories are no operators: their certificate must name their host, and no list names them."""
    return how in (StartTls.IMAP.value, StartTls.LDAP.value)


def _connect(host: str, port: int, starttls: StartTls | None, helo: str, deadline: float) -> socket.socket:
    """A connection on which TLS may begin. Raises `TalkError`."""
    try:
        connection = _reach(host, port, deadline)
    except TimeoutError as error:
        raise TalkError(f"{host}:{port} does not answer.") from error
    except (OSError, ValueError) as error:  # ValueError: no host name has such characters
        why = getattr(error, "strerror", None) or type(error).__name__
        raise TalkError(f"{host}:{port} cannot be reached: {why}.") from error
    try:
        if starttls is not None:
            Plain(connection, deadline).begin(starttls, helo)
        connection.settimeout(max(0.1, deadline - time.monotonic()))
    except BaseException:
        connection.close()
        raise
    return connection


def _reach(host: str, port: int, deadline: float) -> socket.socket:
    """The first address of the host that answers; however many do not, the deadline holds."""
    failure = OSError("no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(min(left, _CONNECT_SECONDS))
            connection.connect(address)
        except OSError as error:
            connection.close()
            failure = error
        else:
            return connection
    raise failure


def _look(
    host: str, port: int, starttls: StartTls | None, context: ssl.SSLContext, helo: str, deadline: float
) -> _Seen:
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with _connect(host, port, starttls, helo, deadline) as connection:
        name = None if _is_address(host) else host
        with context.wrap_socket(connection, server_hostname=name, suppress_ragged_eofs=False) as tls:
            chain = presented(tls)  # before anything is sent: after an alert nothing can be asked any more
            protocol, suite = tls.version() or "", (tls.cipher() or ("",))[0]
            return _Seen(protocol, suite, _after_handshake(tls, starttls, helo, deadline), chain)


def _after_handshake(tls: ssl.SSLSocket, starttls: StartTls | None, helo: str, deadline: float) -> str:
    """What the service thinks of our certificate: TLS 1.3 tells only with the first thing it sends."""
    try:
        tls.settimeout(max(0.1, min(_WAIT_FOR_ALERT_SECONDS, deadline - time.monotonic())))
        if starttls is StartTls.SMTP:
            tls.sendall(f"EHLO {helo}\r\n".encode("ascii", "replace"))
        elif starttls is StartTls.IMAP:
            tls.sendall(b"a2 NOOP\r\n")
        return "accepted or not asked for" if tls.recv(1) else "refused: the service closed the connection"
    except TimeoutError:
        return "accepted or not asked for"
    except (ssl.SSLError, OSError) as error:
        return f"refused: {_reason(error)}"


def _what_instead(host: str, port: int, starttls: StartTls | None, helo: str, deadline: float) -> str:
    """What the service speaks, when it speaks no TLS that we accept; a handshake only, nothing goes over it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        seen = _look(host, port, starttls, context, helo, deadline)
    except (ssl.SSLError, OSError, TalkError, ValueError):
        return ""
    return f" Without our rules it speaks {seen.protocol} with {seen.suite}."


def _handshake_failed(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "The service did not finish the TLS handshake in time."
    if isinstance(error, ssl.SSLError):
        return f"The TLS handshake failed: {_reason(error)}."
    return (
        f"The connection broke during the TLS handshake ({error.strerror or 'closed'})."
        if isinstance(error, OSError)
        else "The TLS handshake failed."
    )


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or type(error).__name__).lower().replace("_", " ")
    return (getattr(error, "strerror", None) or type(error).__name__).lower()


def _judge(
    host: str,
    port: int,
    how: str,
    seen: _Seen,
    judge: _Judge,
    trust_list: TrustList | None,
    domain: str,
) -> ProbeReport:
    certificates = _readable(seen.chain)
    verdicts: dict[str, PurposeVerdict] = {}
    listed = None
    missing: list[str] = []
    matches = False
    if not certificates:
        missing.append("The service presents no certificate that can be read.")
    else:
        for purpose in _PURPOSES:
            verdict = judge(certificates, purpose)
            path = tuple(_subject_text(each) for each in verdict.path)
            detail = _printable(verdict.detail)
            verdicts[purpose.value] = PurposeVerdict(verdict.ok, verdict.rule, detail, verdict.revocation, path)
        server = verdicts[Purpose.OPERATOR_TLS_SERVER.value]
        if not server.ok:
            why = f"{server.rule}, {server.detail}"
            missing.append(f"The certificate is not believed as an operator's server: {why}.")
        listed = _listed(certificates[0], trust_list)
        matches = _names_host(certificates[0], host)
        if not _is_service(how):
            missing += _list_missing(listed, domain)
        elif not matches:
            missing.append(f"The certificate does not name the host {host}.")
    if seen.client_certificate.startswith("refused"):
        missing.append(f"The service does not take our certificate ({seen.client_certificate}).")
    believed = not missing
    if believed and _is_service(how):
        sentence = f"Believed as a service: the certificate names {host} and leads to our anchors."
    elif believed and listed is not None:
        sentence = f"Believed: {listed.name} is listed for {listed.domain_count} domain(s)."
    else:
        sentence = "Not believed. " + " ".join(missing)
    return ProbeReport(
        host,
        port,
        how,
        believed,
        sentence,
        seen.protocol,
        seen.suite,
        seen.client_certificate,
        matches,
        tuple(_described(each) for each in seen.chain),
        verdicts,
        listed,
        missing=tuple(missing),
    )


def _list_missing(listed: ListedAs | None, domain: str) -> list[str]:
    if listed is None:
        return ["There is no trust list to look the name up in, or the certificate's name cannot be read."]
    if not listed.listed:
        near = f" Nearly: {listed.near[0]}." if listed.near else ""
        return [f"The trust list of {listed.list_date} names no operator {listed.name}.{near}"]
    if domain and domain.lower().removesuffix(".") not in listed.domains:
        return [f"The trust list does not list {listed.name} for {domain}."]
    return []


def _listed(certificate: x509.Certificate, trust_list: TrustList | None) -> ListedAs | None:
    try:
        name = subject_of(certificate)
    except ValueError:
        return None
    if trust_list is None:
        return None
    domains = sorted(trust_list.domains_of(name))
    near = () if domains else _near(name, trust_list)
    return ListedAs(
        _printable(str(name)), bool(domains), tuple(domains), len(domains), near, trust_list.generated_at.isoformat()
    )


def _near(name: DistinguishedName, trust_list: TrustList) -> tuple[str, ...]:
    """Listed operators of the same host name or the same structure, with what is different."""
    mine = {pair for rdn in name.rdns for pair in rdn}
    keys = {pair for pair in mine if pair[0] in (_CN, _OU)}
    found = []
    for other in sorted(trust_list.operators, key=str):
        theirs = {pair for rdn in other.rdns for pair in rdn}
        if keys & theirs:
            differs = ", ".join(sorted({kind for kind, _ in mine ^ theirs})) or "the order of its parts"
            found.append(f"{other} (differs in {differs})")
    return tuple(found[:_MAX_NEAR])


def _readable(chain: tuple[bytes, ...]) -> list[x509.Certificate]:
    """The certificates that can be read; none when the end entity cannot."""
    certificates = []
    for encoded in chain:
        try:
            certificates.append(x509.load_der_x509_certificate(encoded))
        except (ValueError, x509.InvalidVersion):
            if not certificates:
                return []
    return certificates


def _described(encoded: bytes) -> PresentedCertificate:
    fingerprint = sha256(encoded).hexdigest()
    try:
        certificate = x509.load_der_x509_certificate(encoded)
        usage, extended, names, authority = _extensions(certificate)
        return PresentedCertificate(
            _subject_text(certificate),
            _printable(str(DistinguishedName.from_x509(certificate.issuer))),
            f"{certificate.serial_number:x}",
            certificate.not_valid_before_utc.isoformat(),
            certificate.not_valid_after_utc.isoformat(),
            _key(certificate),
            certificate.signature_algorithm_oid._name,
            usage,
            extended,
            names,
            authority,
            fingerprint,
        )
    except Exception as error:  # the parser reads lazily and has no common error class
        return PresentedCertificate("", "", sha256=fingerprint, problem=f"cannot be read ({type(error).__name__})")


def _extensions(
    certificate: x509.Certificate,
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], bool]:
    usage: tuple[str, ...] = ()
    extended: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    authority = False
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.KeyUsage):
            kinds = (
                *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
                *("key_agreement", "key_cert_sign", "crl_sign"),
            )
            usage = tuple(kind for kind in kinds if getattr(value, kind))
        elif isinstance(value, x509.ExtendedKeyUsage):
            extended = tuple(oid._name if oid._name != "Unknown OID" else oid.dotted_string for oid in value)
        elif isinstance(value, x509.SubjectAlternativeName):
            names = tuple(_printable(str(name.value)[:200]) for name in list(value)[:_MAX_LISTED])
        elif isinstance(value, x509.BasicConstraints):
            authority = value.ca
    return usage, extended, names, authority


def _key(certificate: x509.Certificate) -> str:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size} bits"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"EC {key.curve.name}"
    return type(key).__name__.removesuffix("PublicKey").lstrip("_")


def _subject_text(certificate: x509.Certificate) -> str:
    try:
        return _printable(str(subject_of(certificate)))
    except ValueError:
        return "(unreadable subject)"


def _printable(text: str) -> str:
    """A stranger's words: nothing a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _names_host(certificate: x509.Certificate, host: str) -> bool:
    """Whether a SubjectAltName is this host: told, not demanded, for the trust list binds names and not hosts."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if _is_address(host):
            return ipaddress.ip_address(host) in names.get_values_for_type(x509.IPAddress)
        wanted = host.lower().removesuffix(".")
        for name in names.get_values_for_type(x509.DNSName):
            if name.lower() == wanted or (name.startswith("*.") and wanted.partition(".")[2] == name[2:].lower()):
                return True
    except Exception:  # the parser reads lazily and has no common error class
        return False
    return False
