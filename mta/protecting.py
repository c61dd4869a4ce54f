"""The protect stage: sign with the author's key, encrypt to the recipient's certificates, then DKIM. What the author
has done with a key of his own is not done again (`mta.own_keys`).

Encryption is mandatory between mailboxes: what cannot be encrypted is refused or waits, it never travels in clear. The
signer is the author in the From field, for that is whom the recipient's verdict compares the signature with; the door
or the bridge has checked that the submitter may write in this name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol

from cryptography import x509

from directory.records import Recipient
from directory.resolve import DirectoryUnavailableError
from mta import refusals
from mta.header import author_of, is_ours, received
from mta.message import Message, Origin, Phase
from mta.own_keys import OwnProtection, own_protection
from mta.smtp.address import domain_of
from mta.smtp.content import with_crlf
from smime import DkimKey, Suite, can_encrypt_to, encrypt, join_message, sign, sign_dkim
from smime.header_protection import HeaderPolicy, protect_header
from smime.mime import Entity, MimeError, parse_entity, split_message
from smime.refusals import NO_ENCRYPTION_CERTIFICATE, NO_SIGNING_KEY, REVOCATION_UNKNOWN, SIGNER_UNAVAILABLE
from smime.signing import SignerFailedError
from trust.certificates import CertificateValidator, Purpose
from trust.keycheck import is_revoked
from trust.keys import Signer
from trust.refusals import Refused
from trust.vault import KeyVault, VaultError


class Recipients(Protocol):
    """What the stage needs of `directory.resolve.Directory`."""

    def resolve(self, address: str) -> Recipient | None:
        """Raises `DirectoryUnavailableError`."""
        ...


class Agreed(Protocol):
    """What the stage needs of `mta.agreements.Agreements`."""

    def suite_of(self, address: str) -> Suite: ...

    def protects_header(self, address: str) -> bool: ...


def _now() -> datetime:
    return datetime.now(UTC)


_SUBMITTED = (Origin.SUBMISSION, Origin.LMTP)
"""From where mail comes that its author may have protected."""
IN_CLEAR = "notice-in-clear"
"""Flag of a notice of ours that names no patient and quotes nothing (`mta.system_mail`): the one mail that is only
signed, for whoever has no certificate to encrypt to."""


class ProtectStage:
    """A `mta.message.Stage` for the phase PROTECT; other phases pass through. Works in threads."""

    def __init__(
        self,
        vault: KeyVault,
        directory: Recipients,
        validator: CertificateValidator,
        dkim_key_of: Callable[[str], DkimKey | None],
        hostname: str,
        agreements: Agreed,
        clock: Callable[[], datetime] = _now,
        hide_header: Callable[[Entity, str, str], bool] = lambda header, author, recipient: False,
    ) -> None:
        """`dkim_key_of` gives the key for a lower-case mail domain of ours; `hostname` goes into Received.
        `hide_header`: whether a mail answers one whose header was hidden (`mta.answering`), given author and recipient.
        """
        self._hide_header = hide_header
        self._agreements = agreements
        self._vault = vault
        self._directory = directory
        self._validator = validator
        self._dkim_key_of = dkim_key_of
        self._hostname = hostname
        self._clock = clock

    async def apply(self, message: Message, phase: Phase) -> Message | Refused:
        """See `mta.message.Stage`."""
        if phase is not Phase.PROTECT:
            return message
        return await asyncio.to_thread(self._protect, message)

    def _protect(self, message: Message) -> Message | Refused:
        if message.content_type != "message/rfc822":
            return Refused(refusals.CONTENT_INVALID, "not a mail message")
        content = with_crlf(message.content)
        try:
            header = parse_entity(content)
            _, entity = split_message(content)
        except MimeError:
            return Refused(refusals.HEADER_INVALID)
        author = author_of(header)
        if author is None:
            return Refused(refusals.HEADER_INVALID)
        now = self._clock()
        clear = message.origin is Origin.SYSTEM and IN_CLEAR in message.flags
        certificates = [] if clear else self._certificates(message.recipient, now)
        if isinstance(certificates, Refused):
            return certificates
        own = OwnProtection.NONE
        if message.origin in _SUBMITTED:
            own = own_protection(content, header, certificates, self._validator, now)
        signer = None if own is not OwnProtection.NONE else self._signer(author, now)
        if isinstance(signer, Refused):
            return signer
        if signer is None and own is OwnProtection.NONE and not clear:
            return Refused(NO_SIGNING_KEY)
        transport = b"".join(
            field.raw
            for field in header.fields
            if not field.name.startswith("content-") and field.name not in ("bcc", "resent-bcc") and not is_ours(field)
        )
        suite = self._agreements.suite_of(message.recipient)
        try:
            if not clear and own is OwnProtection.NONE and self._protects_header(message, header, author):
                entity, transport = protect_header(transport, entity, HeaderPolicy.BASELINE)
            # what is large is not kept in every form it passes through
            forms = [entity if signer is None else sign(entity, signer, now, suite)]
            del entity
            if not clear and own is not OwnProtection.ENCRYPTED:
                forms.append(encrypt(forms.pop(), certificates, suite))
            protected = parse_entity(forms.pop())
        except SignerFailedError:
            return Refused(SIGNER_UNAVAILABLE)
        except ValueError:
            return Refused(refusals.CONTENT_INVALID, "the content cannot be signed")
        inner = bytes(protected.source[: protected.body_start])
        section = join_message(received(self._hostname, message) + transport, inner)
        dkim = self._dkim_key_of(domain_of(author))
        facts = dict(message.facts)
        if own is not OwnProtection.NONE:
            facts["protected-by-author"] = own.value
        if dkim is None:
            facts["warning.dkim"] = "no key for the author's domain"
        else:
            section = sign_dkim(section, dkim, now, body=protected) + section
        return replace(message, content=b"".join((section, protected.body)), facts=facts)

    def _protects_header(self, message: Message, header: Entity, author: str) -> bool:
        agreed = self._agreements.protects_header(message.recipient)
        return agreed or (message.origin in _SUBMITTED and self._hide_header(header, author, message.recipient))

    def _signer(self, author: str, now: datetime) -> Signer | Refused | None:
        try:
            return self._vault.signer(author, now, lambda key: is_revoked(self._validator, key, now))
        except VaultError:  # a key file that is damaged: the operator repairs it, the mail waits
            return Refused(SIGNER_UNAVAILABLE)

    def _certificates(self, address: str, at: datetime) -> list[x509.Certificate] | Refused:
        """The recipient's certificates that may be encrypted to now; at least one."""
        try:
            recipient = self._directory.resolve(address)
        except DirectoryUnavailableError:
            return Refused(refusals.DIRECTORY_UNAVAILABLE)
        if recipient is None:
            return Refused(NO_ENCRYPTION_CERTIFICATE, "the recipient is not in the directory")
        accepted: list[x509.Certificate] = []
        reason, waits = "none is published", False
        for certificate in recipient.encryption_certificates:
            verdict = self._validator.validate(certificate, (), Purpose.MAIL_ENCRYPTION, at)
            if not verdict.ok:
                reason = verdict.rule
                waits = waits or verdict.rule == "relais-revocation-unknown"
            elif not can_encrypt_to(certificate):
                reason = "the key is of a kind that cannot be encrypted to"
            else:
                accepted.append(certificate)
        return accepted or Refused(REVOCATION_UNKNOWN if waits else NO_ENCRYPTION_CERTIFICATE, reason)
