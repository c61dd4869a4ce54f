"""Whether a certificate is to be believed, for what, and whose mail addresses it vouches for.

One `CertificateValidator` holds the anchors of one network (IGC-Santé, a demonstration authority) and judges any
certificate anybody sends: the answer is always a `PathVerdict`, never an exception. The path itself is found in
`trust.paths`; the rules about the end entity and its purpose are here. Revocation is not consulted yet, and the verdict
says so.

A path that was found is remembered: it stays one whatever certificates come along with the next mail, for as long as
every certificate on it is valid. That there is none is never remembered, for the next mail may bring the missing one.
What can change meanwhile, revocation, has to be asked each time, after the memory.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import lru_cache
from threading import Lock

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from trust.paths import Facts, Failure, Paths, in_time, read


class Purpose(Enum):
    """What a certificate is about to be used for."""

    MAIL_SIGNATURE = "mail-signature"
    """Verify a signed message: digitalSignature or nonRepudiation (CPS cards have only the latter), emailProtection."""
    MAIL_ENCRYPTION = "mail-encryption"
    """Encrypt to it: keyEncipherment for RSA, keyAgreement for EC and X25519; emailProtection."""
    OPERATOR_TLS_SERVER = "operator-tls-server"
    OPERATOR_TLS_CLIENT = "operator-tls-client"
    LIST_SIGNATURE = "list-signature"
    """Verify the trust list: an organisation's S/MIME signing certificate."""


_EXTENDED: dict[Purpose, ObjectIdentifier] = {
    Purpose.MAIL_SIGNATURE: ExtendedKeyUsageOID.EMAIL_PROTECTION,
    Purpose.MAIL_ENCRYPTION: ExtendedKeyUsageOID.EMAIL_PROTECTION,
    Purpose.OPERATOR_TLS_SERVER: ExtendedKeyUsageOID.SERVER_AUTH,
    Purpose.OPERATOR_TLS_CLIENT: ExtendedKeyUsageOID.CLIENT_AUTH,
    Purpose.LIST_SIGNATURE: ExtendedKeyUsageOID.EMAIL_PROTECTION,
}

NOT_CHECKED = "not-checked"
MAX_REMEMBERED = 4096
"""Accepted paths kept by one validator, the least recently asked for forgotten first: some 5 KB each at worst."""


@dataclass(frozen=True, slots=True)
class PathVerdict:
    """What validation concluded."""

    ok: bool
    path: tuple[x509.Certificate, ...]
    """End entity first, anchor last; empty when `ok` is False."""
    rule: str
    """The rule that decided: `rfc5280-<section>-<name>`, or `relais-<name>` where this house is stricter."""
    detail: str
    """Which certificate broke it: serial (hexadecimal), and the subject of CAs only. Never a person's name."""
    revocation: str
    """`not-checked`: neither CRL nor OCSP was consulted."""


@dataclass(frozen=True, slots=True)
class _Accepted:
    """A path found before and the time in which all its certificates are valid, both ends included."""

    verdict: PathVerdict
    since: datetime
    until: datetime


class CertificateValidator:
    """Judges certificates against the anchors of one network. Thread-safe; make one and keep it."""

    def __init__(self, anchors: Iterable[x509.Certificate], intermediates: Iterable[x509.Certificate] = ()) -> None:
        """`intermediates` help to find paths and are not trusted by themselves.

        Raises ValueError when one of the certificates cannot be read.
        """
        self._paths = Paths(anchors, intermediates)
        self._remembered: OrderedDict[tuple[x509.Certificate, Purpose], _Accepted] = OrderedDict()
        self._lock = Lock()

    def validate(
        self, cert: x509.Certificate, intermediates: Iterable[x509.Certificate], purpose: Purpose, at: datetime
    ) -> PathVerdict:
        """Judge `cert` for `purpose` at the moment `at` (aware), with the certificates that came with it.

        RFC 5280 §6.1, bounded as `trust.paths` says. Never raises on bad input, whatever is in the certificates.
        """
        known = self._recalled(cert, purpose, at)
        if known is not None:
            return known
        facts = read(cert)
        if facts is None:
            return _refuse(Failure("rfc5280-4.1-unreadable", "end-entity certificate cannot be read"))
        failure = _end_entity_failure(facts, purpose, at)
        if failure is not None:
            return _refuse(failure)
        path = self._paths.find(facts, intermediates, _EXTENDED[purpose], at)
        if isinstance(path, Failure):
            return _refuse(path)
        verdict = PathVerdict(True, tuple(step.certificate for step in path), "rfc5280-6.1", "", NOT_CHECKED)
        self._remember(
            (cert, purpose),
            _Accepted(verdict, max(step.not_before for step in path), min(step.not_after for step in path)),
        )
        return verdict

    def _recalled(self, cert: x509.Certificate, purpose: Purpose, at: datetime) -> PathVerdict | None:
        """The path found before, if it holds at `at` too. Certificates are compared by their DER."""
        with self._lock:
            known = self._remembered.get((cert, purpose))
            if known is None or not known.since <= at <= known.until:
                return None
            self._remembered.move_to_end((cert, purpose))
            return known.verdict

    def _remember(self, key: tuple[x509.Certificate, Purpose], accepted: _Accepted) -> None:
        with self._lock:
            self._remembered[key] = accepted
            self._remembered.move_to_end(key)
            while len(self._remembered) > MAX_REMEMBERED:
                self._remembered.popitem(last=False)


def _refuse(failure: Failure) -> PathVerdict:
    return PathVerdict(False, (), failure.rule, failure.detail, NOT_CHECKED)


def _end_entity_failure(facts: Facts, purpose: Purpose, at: datetime) -> Failure | None:
    """What is wrong with the end entity itself, before any path is looked for."""
    where = f"end-entity certificate, serial {facts.serial:x}"
    if not in_time(facts, at):
        side = "not yet valid" if at < facts.not_before else "expired"
        return Failure("rfc5280-6.1.3-validity", f"{where}, is {side}")
    if facts.unprocessed:
        return Failure("rfc5280-6.1.5-critical-extension", f"{where}, has {facts.unprocessed[0]}")
    if facts.name_constraints:
        return Failure("rfc5280-4.2.1.10-name-constraints", f"{where}, has name constraints but is no CA")
    if facts.key is None:
        return Failure("relais-key-too-weak", f"{where}, has a key of a kind or size that is not accepted")
    if not facts.issuer.rdns:
        return Failure("rfc5280-4.1.2.4-issuer", f"{where}, has no issuer name")
    if not _key_usage_allows(facts, purpose):
        return Failure("rfc5280-4.2.1.3-key-usage", f"{where}, may not be used for {purpose.value}")
    if not facts.allows(_EXTENDED[purpose]):
        return Failure("rfc5280-4.2.1.12-extended-key-usage", f"{where}, may not be used for {purpose.value}")
    return None


def _key_usage_allows(facts: Facts, purpose: Purpose) -> bool:
    """Whether kind of key and KeyUsage fit the purpose; an absent KeyUsage restricts nothing (§4.2.1.3)."""
    usage = facts.key_usage
    if purpose is Purpose.MAIL_ENCRYPTION:
        if isinstance(facts.key, rsa.RSAPublicKey):
            return usage is None or usage.key_encipherment
        agrees = isinstance(facts.key, ec.EllipticCurvePublicKey | x25519.X25519PublicKey)
        return agrees and (usage is None or usage.key_agreement)
    if isinstance(facts.key, x25519.X25519PublicKey):
        return False  # it cannot sign
    if usage is None or usage.digital_signature:
        return True
    # TLS signs the handshake with digitalSignature (RFC 8446 §4.4.2.2); mail takes nonRepudiation too (RFC 8550 §4.4.2)
    return purpose in (Purpose.MAIL_SIGNATURE, Purpose.LIST_SIGNATURE) and usage.content_commitment


_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DOMAIN = rf"{_LABEL}(?:\.{_LABEL}){{0,20}}"
_ADDRESS = re.compile(rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~.-]{{1,64}}@{_DOMAIN}")
_UTF8_ADDRESS = re.compile(rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~.\x80-\U0010ffff-]{{1,64}}@{_DOMAIN}")
_SMTP_UTF8_MAILBOX = ObjectIdentifier("1.3.6.1.5.5.7.8.9")
_UTF8_STRING = 0x0C


_REMEMBERED_OCTETS = 4096
"""The longest certificate whose addresses are remembered; real ones have 2,000."""


def mail_addresses(cert: x509.Certificate) -> tuple[str, ...]:
    """Addresses the certificate vouches for: rfc822Name and SmtpUTF8Mailbox SubjectAltNames, then the legacy
    emailAddress of the subject.

    RFC 8550 §3, RFC 9598 §3. The local part as it is, the domain in lower case, as A-labels; each once. Values that are
    no plain addr-spec (NUL, controls, quotes, display names) are left out; an unreadable certificate vouches for
    nobody.
    """
    encoded = cert.public_bytes(Encoding.DER)
    return _addresses(cert) if len(encoded) > _REMEMBERED_OCTETS else _known_addresses(encoded)


@lru_cache(maxsize=1024)
def _known_addresses(encoded: bytes) -> tuple[str, ...]:
    """By DER, for a certificate keeps in memory whatever was read of it, a hundred times what it weighs."""
    try:
        return _addresses(x509.load_der_x509_certificate(encoded))
    except Exception:  # read before, but warnings may have become errors since
        return ()


def _addresses(cert: x509.Certificate) -> tuple[str, ...]:
    found: list[str] = []
    international: list[str] = []
    try:
        try:
            names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            found += names.get_values_for_type(x509.RFC822Name)
            international = [
                _utf8_mailbox(other.value)
                for other in names.get_values_for_type(x509.OtherName)
                if other.type_id == _SMTP_UTF8_MAILBOX
            ]
        except x509.ExtensionNotFound:
            pass
        found += [str(a.value) for a in cert.subject.get_attributes_for_oid(NameOID.EMAIL_ADDRESS)]
    except Exception:  # the parser reads lazily and has no common error class
        return ()
    plain = [value for value in found if _ADDRESS.fullmatch(value)]
    plain += [value for value in international if _UTF8_ADDRESS.fullmatch(value) and value.isprintable()]
    split = [value.rpartition("@") for value in plain]
    return tuple(dict.fromkeys(f"{local}@{domain.lower()}" for local, _, domain in split))


def _utf8_mailbox(encoded: bytes) -> str:
    """The UTF8String of a SmtpUTF8Mailbox (RFC 9598 §3); empty when it is none, or when ASCII would have done, which
    belongs into an rfc822Name."""
    if len(encoded) < 2 or encoded[0] != _UTF8_STRING:
        return ""
    size = 1 if encoded[1] < 0x80 else encoded[1] - 0x80 + 1
    length = encoded[1] if size == 1 else int.from_bytes(encoded[2 : 1 + size], "big")
    value = encoded[1 + size :]
    if len(value) != length or value.isascii():
        return ""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return ""
