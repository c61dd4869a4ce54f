"""For whom a message is encrypted, told from its envelope alone: nothing is decrypted and no key is asked."""

from __future__ import annotations

from collections.abc import Iterable

from cryptography import x509

from smime.cms_read import Compressed, Enveloped, Signed
from smime.compressed import decompress
from smime.identity import identity
from smime.layers import Layer, clear_signed, is_wrapper, layer_of, read_cms_of, sole_child
from smime.mime import Budget, Entity, parse_entity
from smime.opening import MAX_LAYERS
from smime.tnef import smime_attachment
from smime.verdict import Finding


def names(message: bytes, certificates: Iterable[x509.Certificate]) -> bool:
    """Whether the outermost encryption of `message` (RFC 5322) names one of these as a recipient (RFC 5652 §6.2),
    wherever `smime.opening` would find it: in signatures, multiparts of one part, TNEF. Never raises on bad input: what
    cannot be read names nobody."""
    try:
        enveloped = _enveloped(message)
        ours = [identity(certificate) for certificate in certificates]
    except ValueError:  # `MimeError`, `DerError`, `LayerError` and `TnefError` are such
        return False
    if enveloped is None:
        return False
    return any(one.is_named_by(recipient.recipient) for recipient in enveloped.recipients for one in ours)


def _enveloped(message: bytes) -> Enveloped | None:
    """The outermost encryption; None when there is none. Raises ValueError."""
    budget = Budget()
    entity: Entity | None = parse_entity(message)
    for depth in range(MAX_LAYERS):
        if entity is None:
            return None
        kind = entity.content_type()
        layer = layer_of(entity, kind)
        if layer is None and (child := sole_child(entity, kind, budget)) is not None:
            entity, kind = child, child.content_type()
            layer = layer_of(entity, kind)
        if layer is None:
            if not depth or not is_wrapper(entity, kind):
                return None
            entity = parse_entity(entity.source, entity.body_start, entity.stop)
        elif layer is Layer.CLEAR_SIGNED:
            entity = clear_signed(entity, kind, budget).entity()
        elif layer is Layer.TNEF:
            entity = smime_attachment(entity.decoded())
        else:
            cms = read_cms_of(entity)
            if isinstance(cms, Enveloped):
                return cms if layer is Layer.CMS else None
            entity = _inside(cms)
    return None


def _inside(cms: object) -> Entity | None:
    """What needs no key to be read. Raises ValueError."""
    if isinstance(cms, Signed) and cms.content is not None:
        return parse_entity(bytes(cms.content))
    if isinstance(cms, Compressed):
        content = decompress(cms)
        return None if isinstance(content, Finding) else parse_entity(content)
    return None
