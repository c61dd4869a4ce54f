"""How large a mail each address takes, so that what cannot arrive is refused while its author is still there.

What a partner's limit counts is the mail as it travels: signed, encrypted and in base64. The least that it can come to
is worked out here: nothing is refused that might have fitted, and what is larger after all fails at the partner's door.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from mta import refusals
from mta.smtp.address import domain_of
from mta.smtp.target import Partners
from trust.refusals import Refused

PATIENT_BYTES = 25 * 1024 * 1024
"""Of a whole message to a patient's mailbox (Mon espace santé)."""
_LINE, _ENCODED_LINE = 57, 78
"""Octets, and what they become: a line of base64 with its CRLF."""


class SizeLimits:
    """Thread-safe."""

    def __init__(
        self,
        partners: Partners,
        patient_domains: Collection[str],
        is_local: Callable[[str], bool],
        patient_bytes: int = PATIENT_BYTES,
    ) -> None:
        """Domains in lower case. Mailboxes of ours take what the doors take, patients' mailboxes excepted."""
        self._partners = partners
        self._patient_domains = frozenset(patient_domains)
        self._is_local = is_local
        self._patient_bytes = patient_bytes

    def of(self, domain: str) -> int | None:
        """Octets a lower-case domain takes of a whole mail; None: no limit is known."""
        partner = None if self._is_local(domain) else self._partners.of(domain)
        limits = [] if partner is None else [partner.max_message_bytes]
        if domain in self._patient_domains:
            limits.append(self._patient_bytes)
        return min(limits, default=None)

    def refused(self, address: str, octets: int) -> Refused | None:
        """Why a mail of so many octets, not yet protected, surely does not reach `address`; in the sentence the size
        it comes to, and the limit."""
        return self.refused_as_it_is(
            address, octets if self._is_local(domain_of(address)) else protected_at_least(octets)
        )

    def refused_as_it_is(self, address: str, size: int) -> Refused | None:
        """As `refused`, of a mail that is not protected any further: its author did, or may have."""
        limit = self.of(domain_of(address))
        if limit is None or size <= limit:
            return None
        return Refused(refusals.PARTNER_SIZE_LIMIT, f"{_megabytes(size)} Mo, maximum {_megabytes(limit, down=True)} Mo")


def protected_at_least(octets: int) -> int:
    """Octets of an encrypted mail with so many inside (RFC 8551 §3.3: CMS in base64)."""
    return -(-octets // _LINE) * _ENCODED_LINE


def _megabytes(octets: int, *, down: bool = False) -> str:
    """With one decimal and a comma: a size is rounded up, a limit down, so that the one is never shown as the other."""
    tenths = octets * 10 // 2**20 if down else -(-octets * 10 // 2**20)
    return f"{tenths // 10},{tenths % 10}"
