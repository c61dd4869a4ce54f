"""Which certificates, and which of several mailboxes: the rules of choice, each with the reason it gives.

Pure functions over what the directory said, so that an explanation (`relais directory resolve X --why`) is made by the
very code that decides.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import islice

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from directory.identifiers import id_nats
from directory.records import MailboxKind, Recipient

_ORDER = {kind: position for position, kind in enumerate(MailboxKind)}
_UNRANKED = 1 << 31
_MAIL_USES = frozenset((ExtendedKeyUsageOID.EMAIL_PROTECTION, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE))
RSA_BITS = range(2048, 8193)
MOST_DEVICES = 32
"""Certificates one mail is encrypted to at most: an entry that somebody filled with thousands costs no more."""


def is_valid(certificate: x509.Certificate, at: datetime) -> bool:
    """Whether `at` lies in the certificate's validity, both ends included (RFC 5280 §4.1.2.5)."""
    return certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc


def is_fit(certificate: x509.Certificate) -> bool:
    """Whether its key can be read and is strong enough, and its ExtKeyUsage, where it has one, allows mail.

    What no path validation will ever let pass, so that it does not stand in the way of a certificate that will.
    """
    try:
        key = certificate.public_key()
        extended = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        extended = None
    except Exception:  # a key of another world, extensions that cannot be read: cryptography's classes share no base
        return False
    if isinstance(key, rsa.RSAPublicKey) and key.key_size not in RSA_BITS:
        return False
    return extended is None or any(each in _MAIL_USES for each in extended)


def is_usable(certificate: x509.Certificate, at: datetime) -> bool:
    """Whether mail may be encrypted to it at `at`, as far as the certificate alone can tell."""
    return is_valid(certificate, at) and is_fit(certificate)


def newest_valid(certificates: Sequence[x509.Certificate], at: datetime) -> tuple[x509.Certificate, ...]:
    """Those usable at `at`, the newest first and at most `MOST_DEVICES`; when none is, the newest of all.

    All usable ones stay: a mailbox that is read on several devices has one for each, and a device that was renewed must
    not lock the other out. Those without a future are only kept when there is nothing better, so that whoever encrypts
    can say why nothing may be sent.
    """
    ordered = sorted(certificates, key=_since, reverse=True)
    usable = islice((each for each in ordered if is_usable(each, at)), MOST_DEVICES)
    return tuple(usable) or tuple(ordered[:MOST_DEVICES])


def _since(certificate: x509.Certificate) -> datetime:
    return certificate.not_valid_before_utc


def by_preference(recipients: Iterable[Recipient], structure: str = "") -> list[tuple[Recipient, str]]:
    """The mailboxes in the order they should be written to, each with what put it there.

    First the one of the structure concerned (`structure`: FINESS, SIRET, with or without type digit), then by rank,
    then in the order of `MailboxKind`, then by address, so that the answer is the same every day.
    """
    concerned = set(id_nats(structure))

    def key(recipient: Recipient) -> tuple[bool, int, int, str]:
        rank = _UNRANKED if recipient.rank is None else recipient.rank
        return recipient.structure not in concerned, rank, _ORDER[recipient.kind], recipient.address

    found = sorted(recipients, key=key)
    several = len(found) > 1
    return [(recipient, _reason(recipient, concerned, several)) for recipient in found]


def _reason(recipient: Recipient, concerned: set[str], several: bool) -> str:
    if recipient.structure in concerned:
        return "the mailbox of the structure concerned"
    if recipient.rank is not None:
        return f"rank {recipient.rank}"
    return "no rank: by kind, then by address" if several else "the only one"


def of_department(recipients: Iterable[Recipient], department: str) -> list[Recipient]:
    """Those of the department, the best match first: the same name, else one that holds every word of it.

    Names are compared without case, accents and punctuation. Without a department, those that name none come first.
    """
    wanted = _words(department)
    if not wanted:
        return sorted(recipients, key=lambda each: (bool(each.department), each.address))
    found: list[tuple[int, str, Recipient]] = []
    for recipient in recipients:
        words = _words(recipient.department or recipient.display_name)
        if words == wanted:
            found.append((0, recipient.address, recipient))
        elif set(wanted) <= set(words):
            found.append((len(words), recipient.address, recipient))
    return [recipient for _, _, recipient in sorted(found, key=lambda each: each[:2])]


def _words(text: str) -> tuple[str, ...]:
    decomposed = unicodedata.normalize("NFKD", text.replace("œ", "oe").replace("Œ", "OE")).casefold()
    plain = "".join(
        character if character.isalnum() else " " for character in decomposed if not unicodedata.combining(character)
    )
    return tuple(plain.split())
