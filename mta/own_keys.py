"""Mail that its author has protected with a key of his own (a card, a certificate in his mail program).

It is finished: what is signed must reach its reader octet for octet, and what is encrypted only the reader can open.
What its author left undone is done around it: a mail that is only signed is encrypted, one whose encryption or
signature cannot be relied on is signed and encrypted like any other, never sent as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import Enum

from cryptography import x509

from smime import SignatureResult, oids, open_message
from smime.cms_read import Enveloped
from smime.content_ciphers import KINDS
from smime.describing import names_one_of
from smime.layers import Layer, layer_of, read_cms_of
from smime.mime import Entity, MimeError
from trust.certificates import CertificateValidator
from trust.der import DerError

_STRONG = frozenset(KINDS) - {oids.DES_EDE3_CBC}
"""Content ciphers a mail may leave with (AES); around any other there is one of ours."""


class OwnProtection(Enum):
    """What needs not be done any more."""

    NONE = "none"
    SIGNED = "signed"
    """By the author that From names, verifiably."""
    ENCRYPTED = "encrypted"
    """To a certificate that the recipient publishes."""


def own_protection(
    content: bytes,
    entity: Entity,
    certificates: Sequence[x509.Certificate],
    validator: CertificateValidator,
    at: datetime,
) -> OwnProtection:
    """Of a mail (`content`, whose header `entity` has) to the holder of `certificates`. Never raises on bad input."""
    try:
        layer = layer_of(entity, entity.content_type())
        if layer is None or layer is Layer.TNEF:
            return OwnProtection.NONE
        cms = read_cms_of(entity) if layer is Layer.CMS else None
    except (MimeError, DerError):
        return OwnProtection.NONE
    if isinstance(cms, Enveloped):
        readable = any(names_one_of(each.recipient, certificates) for each in cms.recipients)
        return OwnProtection.ENCRYPTED if readable and cms.algorithm.oid in _STRONG else OwnProtection.NONE
    verdict = open_message(content, (), validator, at).verdict
    return OwnProtection.SIGNED if verdict.signature is SignatureResult.VALID else OwnProtection.NONE
