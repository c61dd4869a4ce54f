"""How each correspondent is written to: the partner's agreement, and what the correspondent says it reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from directory.records import Partner
from mta.smtp.address import domain_of
from mta.smtp.target import Partners
from smime.capabilities import Capabilities, suite_for
from smime.suites import DEFAULT_SUITE, ContentCipher, Floor, KeyTransportScheme, RsaSignatureScheme, Suite


class Known(Protocol):
    """What is needed of `mta.correspondents.Correspondents`."""

    def capabilities(self, address: str) -> tuple[str, ...] | None: ...


class Agreements:
    """The suite for each address. Thread-safe."""

    def __init__(self, partners: Partners, known: Known, floor: str = ContentCipher.AES128_GCM.label) -> None:
        """`floor`: label of the weakest cipher that capabilities may lead to. Raises ValueError for an unknown one."""
        self._partners = partners
        self._known = known
        self._floor = Floor(_cipher(floor))

    def suite_of(self, address: str) -> Suite:
        """What the partner has agreed on stays; where nothing is agreed the correspondent's capabilities count.

        A partner always has a key transport, below which no capabilities lead: a list that names `rsaEncryption` says
        what its author's certificate holds, not that OAEP is not understood. Raises ValueError when the agreement names
        an algorithm there is not.
        """
        partner = self._partners.of(domain_of(address))
        suite = DEFAULT_SUITE if partner is None else _suite(partner)
        if partner is not None and partner.content_cipher:
            return suite
        names = self._known.capabilities(address)
        floor = self._floor if partner is None else replace(self._floor, key_transport=suite.key_transport)
        return suite_for(suite, None if names is None else Capabilities(names), floor)

    def protects_header(self, address: str) -> bool:
        """Whether the partner wants RFC 9788."""
        partner = self._partners.of(domain_of(address))
        return partner is not None and partner.header_protection


def _suite(partner: Partner) -> Suite:
    return Suite(
        content=_cipher(partner.content_cipher) if partner.content_cipher else DEFAULT_SUITE.content,
        key_transport=KeyTransportScheme(partner.key_transport),
        rsa_signature=RsaSignatureScheme(partner.rsa_signature),
        opaque=partner.opaque_signature,
    )


def _cipher(label: str) -> ContentCipher:
    for cipher in ContentCipher:
        if cipher.label == label:
            return cipher
    raise ValueError(f"{label} is not a content cipher that is written")
