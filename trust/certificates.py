"""Whether a certificate is to be believed, for what, and whose mail addresses it vouches for.

One `CertificateValidator` holds the anchors of one network (IGC-Santé, a demonstration authority) and judges any
certificate anybody sends: the answer is always a `PathVerdict`, never an exception. The path itself is found in
`trust.paths`; the rules about the end entity and its purpose are here. Revocation is not consulted yet, and the verdict
says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from trust.paths import Facts, Failure, Paths, in_time, read


class Purpose(Enum):
    """What a certificate is about to be used for."""

    MAIL_SIGNATURE = "mail-signature"
    """Verify a signed message: digitalSignature or nonRepudiation (CPS cards have only the latter), emailProtection."""
    MAIL_ENCRYPTION = "mail-encryption"
    """Encrypt to it: keyEncipherment for RSA, keyAgreement for EC; emailProtection."""
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


class CertificateValidator:
    """Judges certificates against the anchors of one network. Thread-safe; make one and keep it."""

    def __init__(self, anchors: Iterable[x509.Certificate], intermediates: Iterable[x509.Certificate] = ()) -> None:
        """`intermediates` help to find paths and are not trusted by themselves.

        Raises ValueError when one of the certificates cannot be read.
        """
        self._paths = Paths(anchors, intermediates)

    def validate(
        self, cert: x509.Certificate, intermediates: Iterable[x509.Certificate], purpose: Purpose, at: datetime
    ) -> PathVerdict:
        """Judge `cert` for `purpose` at the moment `at` (aware), with the certificates that came with it.

        RFC 5280 §6.1, bounded as `trust.paths` says. Never raises on bad input, whatever is in the certificates.
        """
        facts = read(cert)
        if facts is None:
            return _refuse(Failure("rfc5280-4.1-unreadable", "end-entity certificate cannot be read"))
        failure = _end_entity_failure(facts, purpose, at)
        if failure is not None:
            return _refuse(failure)
        path = self._paths.find(facts, intermediates, _EXTENDED[purpose], at)
        if isinstance(path, Failure):
            return _refuse(path)
        return PathVerdict(True, tuple(step.certificate for step in path), "rfc5280-6.1", "", NOT_CHECKED)


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
        return isinstance(facts.key, ec.EllipticCurvePublicKey) and (usage is None or usage.key_agreement)
    if usage is None or usage.digital_signature:
        return True
    # TLS signs the handshake with digitalSignature (RFC 8446 §4.4.2.2); mail takes nonRepudiation too (RFC 8550 §4.4.2)
    return purpose in (Purpose.MAIL_SIGNATURE, Purpose.LIST_SIGNATURE) and usage.content_commitment


_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~.-]{{1,64}}@{_LABEL}(?:\.{_LABEL}){{0,20}}")


def mail_addresses(cert: x509.Certificate) -> tuple[str, ...]:
    """Addresses the certificate vouches for: rfc822Name SubjectAltNames, then the legacy emailAddress of the subject.

    RFC 8550 §3. ASCII addr-specs, the local part as it is, the domain in lower case; each once. Values that are no
    plain addr-spec (NUL, controls, quotes, display names) are left out; an unreadable certificate vouches for nobody.
    Internationalised mailboxes (RFC 9598) are not read.
    """
    found: list[str] = []
    try:
        try:
            names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            found += names.get_values_for_type(x509.RFC822Name)
        except x509.ExtensionNotFound:
            pass
        found += [str(a.value) for a in cert.subject.get_attributes_for_oid(NameOID.EMAIL_ADDRESS)]
    except Exception:  # the parser reads lazily and has no common error class
        return ()
    addresses = []
    for value in found:
        if _ADDRESS.fullmatch(value):
            local, _, domain = value.rpartition("@")
            addresses.append(f"{local}@{domain.lower()}")
    return tuple(dict.fromkeys(addresses))
