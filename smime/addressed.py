"""For whom a message is encrypted, told from its envelope alone: nothing is decrypted and no key is asked."""

from __future__ import annotations

from collections.abc import Iterable

from cryptography import x509

from smime.cms_read import Enveloped
from smime.identity import identity
from smime.layers import Layer, layer_of, read_cms_of
from smime.mime import parse_entity


def names(message: bytes, certificates: Iterable[x509.Certificate]) -> bool:
    """Whether the outermost layer of `message` (RFC 5322) is encrypted and names one of these as a recipient (RFC 5652
    §6.2). Never raises on bad input: what cannot be read names nobody."""
    try:
        entity = parse_entity(message)
        if layer_of(entity, entity.content_type()) is not Layer.CMS:
            return False
        enveloped = read_cms_of(entity)
        if not isinstance(enveloped, Enveloped):
            return False
        ours = [identity(certificate) for certificate in certificates]
    except ValueError:  # `MimeError` and `DerError` are such
        return False
    return any(one.is_named_by(recipient.recipient) for recipient in enveloped.recipients for one in ours)
