"""Certificates the directory learns by itself: from signed mail that was received, and from upstream directories.

Nothing is learned on somebody's word. The certificate must be valid and unrevoked up to one of our anchors, name the
very address it is kept for, be fit to encrypt to, and come with a signature that was the author's. And it never takes
the place of one that somebody put there: a person's decision stands until a person changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Protocol

import ldap as python_ldap
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from directory import schema
from directory.choosing import is_usable
from directory.entries import is_address, sort_certificates
from directory.pool import Connection
from directory.publishing import mailboxes_at, modify
from directory.reading import LEARNED, CertificateOrigin, Mailbox, certificates_in, mark
from trust.addresses import mail_addresses
from trust.certificates import PathVerdict, Purpose

ldap: Any = python_ldap
"""python-ldap has no type annotations."""

MOST_LEARNED = 4
"""Learned certificates of one mailbox; the newest stay. A holder has a few devices, not dozens."""


_REVOCATION_RULES = frozenset({"rfc5280-6.1.3-revoked", "relais-revocation-unknown"})


class Validator(Protocol):
    """What offering needs of `trust.certificates.CertificateValidator`."""

    def validate(
        self, cert: x509.Certificate, intermediates: Iterable[x509.Certificate], purpose: Purpose, at: datetime
    ) -> PathVerdict: ...


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why a certificate should be believed to be a mailbox's."""

    origin: CertificateOrigin
    """MAIL or UPSTREAM."""
    path: PathVerdict
    """Of this very certificate for `Purpose.MAIL_ENCRYPTION`, at `at`."""
    author: str
    """MAIL: the one address in From of the mail, whose signature was valid. UPSTREAM: the address asked for."""
    at: datetime
    """When it was judged (aware)."""


class OfferOutcome(Enum):
    """What became of an offered certificate."""

    LEARNED = "learned"
    KNOWN = "known"
    """The entry holds it already."""
    NOT_THE_AUTHOR = "not-the-author"
    """From and the mailbox differ, or the certificate does not name the address."""
    UNTRUSTED = "untrusted"
    """No valid path to one of our anchors."""
    REVOCATION = "revocation"
    """Revoked, or nobody could say: what is learned must be known to be good."""
    UNFIT = "unfit"
    """It is not for encryption, or not valid now."""
    MANUAL = "manual"
    """Somebody put a certificate there, or the register did: those stand."""
    BUSY = "busy"
    """Somebody wrote the entry again and again meanwhile: another mail will bring it."""
    UNKNOWN_MAILBOX = "unknown-mailbox"
    """The directory does not have the mailbox."""


_TRIES = 3
_TAKEN = frozenset((OfferOutcome.LEARNED, OfferOutcome.KNOWN))


def judge(address: str, certificate: x509.Certificate, evidence: Evidence) -> OfferOutcome | None:
    """Why this certificate may not be kept for `address`; None: it may."""
    if not is_address(address) or evidence.origin not in LEARNED:
        return OfferOutcome.NOT_THE_AUTHOR
    wanted = address.lower()
    named = {each.lower() for each in mail_addresses(certificate)}
    if evidence.author.lower() != wanted or wanted not in named:
        return OfferOutcome.NOT_THE_AUTHOR
    if not sort_certificates([certificate.public_bytes(Encoding.DER)])[0] or not is_usable(certificate, evidence.at):
        return OfferOutcome.UNFIT
    if evidence.path.rule in _REVOCATION_RULES:
        return OfferOutcome.REVOCATION
    if not evidence.path.ok or not evidence.path.path or evidence.path.path[0] != certificate:
        return OfferOutcome.UNTRUSTED
    return None if evidence.path.revocation == "good" else OfferOutcome.REVOCATION


def keep(
    connection: Connection, deadline: float, base: str, address: str, certificate: x509.Certificate, evidence: Evidence
) -> OfferOutcome:
    """Write a certificate that was judged into the mailbox's entry; see `Directory.offer_certificate`.

    A person who writes the entry at the same moment wins: what they wrote is looked at anew.
    """
    for _ in range(_TRIES):
        with suppress(ldap.ASSERTION_FAILED):
            return _keep(connection, deadline, base, address, certificate, evidence)
    return OfferOutcome.BUSY


def _keep(
    connection: Connection, deadline: float, base: str, address: str, certificate: x509.Certificate, evidence: Evidence
) -> OfferOutcome:
    found = mailboxes_at(connection, deadline, base, address.lower())
    if not found:
        return OfferOutcome.UNKNOWN_MAILBOX
    mailbox = found[0]
    der = certificate.public_bytes(Encoding.DER)
    present = list(dict.fromkeys((*certificates_in(mailbox.attributes), *_others(mailbox))))
    if der in present:
        return OfferOutcome.KNOWN
    learned = [(each, mailbox.origin(each)) for each in present]
    if any(origin not in LEARNED for _, origin in learned):
        return OfferOutcome.MANUAL
    learned.append((der, evidence.origin))
    kept = _newest(learned, evidence.at)
    _write(connection, deadline, mailbox, kept)
    return OfferOutcome.LEARNED if der in [each for each, _ in kept] else OfferOutcome.KNOWN


def _others(mailbox: Mailbox) -> Sequence[bytes]:
    return mailbox.attributes.get(schema.SMIME_CERTIFICATE, ())


def _newest(learned: list[tuple[bytes, CertificateOrigin]], at: datetime) -> list[tuple[bytes, CertificateOrigin]]:
    """The newest ones that are still in their time; slapd keeps one of each issuer and serial number."""
    dated: dict[tuple[bytes, int], tuple[datetime, bytes, CertificateOrigin]] = {}
    for der, origin in learned:
        certificate = x509.load_der_x509_certificate(der)
        if certificate.not_valid_after_utc >= at:
            key = (certificate.issuer.public_bytes(), certificate.serial_number)
            dated.setdefault(key, (certificate.not_valid_before_utc, der, origin))
    newest = sorted(dated.values(), key=lambda each: each[0], reverse=True)[:MOST_LEARNED]
    return [(der, origin) for _, der, origin in newest]


def _write(
    connection: Connection, deadline: float, mailbox: Mailbox, kept: list[tuple[bytes, CertificateOrigin]]
) -> None:
    marks = [
        value
        for value in mailbox.attributes.get(schema.LOCAL_ATTRIBUTES, ())
        if not value.lower().startswith(b"usercertificate")
    ]
    marks.append(b"userCertificate")
    marks += [mark(der, origin).encode() for der, origin in kept]
    wanted = {schema.CERTIFICATE: [der for der, _ in kept], schema.LOCAL_ATTRIBUTES: marks}
    modify(connection, deadline, mailbox.dn, mailbox.attributes, wanted, unchanged=True)


class SignedMailLearner:
    """Offers the certificates that came with validly signed mail. Thread-safe; never raises for what is in a mail."""

    def __init__(
        self,
        offer: Callable[[str, x509.Certificate, Evidence], OfferOutcome],
        validator: Validator,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`offer` is `Directory.offer_certificate` of an identity that may write."""
        self._offer = offer
        self._validator = validator
        self._clock = clock

    def learn(
        self, author: str, signer: x509.Certificate, came_along: Sequence[x509.Certificate] = ()
    ) -> dict[x509.Certificate, OfferOutcome]:
        """What became of those that name the author and encrypt.

        `came_along`: what the signer wants to be encrypted to, and what may stand above (`SignerVerdict`); the signer's
        own certificate is for when none of those is taken. To be called only when the signature was valid and its
        signer the one author. Raises what `offer` raises.
        """
        outcomes: dict[x509.Certificate, OfferOutcome] = {}
        now = self._clock()
        for certificate in dict.fromkeys((*(each for each in came_along if each != signer), signer)):
            if certificate == signer and not _TAKEN.isdisjoint(outcomes.values()):
                break
            if author.lower() not in {each.lower() for each in mail_addresses(certificate)}:
                continue
            if not sort_certificates([certificate.public_bytes(Encoding.DER)])[0]:
                continue
            path = self._validator.validate(certificate, came_along, Purpose.MAIL_ENCRYPTION, now)
            evidence = Evidence(CertificateOrigin.MAIL, path, author, now)
            outcomes[certificate] = self._offer(author, certificate, evidence)
        return outcomes
