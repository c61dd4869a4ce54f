"""Who opens what: protected mail made readable at the gateway, or handed to its holder as it came.

A mailbox of `Custody.HOLDER` gets protected mail octet by octet, for its holder has the key. One exception keeps mail
from being lost after a switch: what a correspondent still encrypts to a key that only the gateway has, nobody else
could read, so the gateway opens that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cryptography import x509

from mta.enclosing import assembled, file_part
from mta.notifications import parse_notification
from mta.smtp.content import with_crlf
from smime import Opened
from smime.addressed import names
from smime.canonical import for_the_road
from smime.layers import CMS_TYPES, MAX_DEPTH, Layer, layer_of, parts_of, sole_child
from smime.mime import Budget, Entity, MimeError, parse_entity, split_message
from trust.keys import Decryptor

ORIGINAL_NAME = "message-original.p7m"
"""What a signed original is called beside what was inside it."""
ORIGINAL_PART = "2"
"""Where it then stands; a `multipart/signed` original holds the ciphertext in a part of its own below."""


def only_ours(
    message: bytes,
    decryptors: Sequence[Decryptor],
    held_elsewhere: Callable[[], Sequence[x509.Certificate]],
) -> bool:
    """Whether a mail for a holder of keys is encrypted to a key of the gateway's and to none of the holder's own.

    `held_elsewhere` gives the certificates published for the mailbox; it is asked only where the first holds, and what
    it raises goes through."""
    ours = [decryptor.certificate for decryptor in decryptors]
    if not ours or not names(message, ours):
        return False
    return not names(message, [one for one in held_elsewhere() if one not in ours])


def shown(opened: Opened, delivery_id: str) -> bytes | None:
    """The message with its content in the open and the signed original beside it; None when any client shows it as it
    is, and for a receipt, which programs read where it stands.

    An opaque signature (RFC 8551 §3.5.2) hides its content from every client without S/MIME, also as the only part of a
    multipart, and so does what was encrypted inside a signature. Raises MimeError when the header is unreadable."""
    if not opened.verdict.layers or not _hidden(parse_entity(opened.entity)):
        return None
    if parse_notification(opened.entity) is not None:
        return None
    outer, original = split_message(opened.entity)
    content = with_crlf(bytes(for_the_road(bytes(opened.content))))
    if not _is_readable(content):
        return None
    whole = parse_entity(original)
    kept = file_part("application/pkcs7-mime", ORIGINAL_NAME, bytes(whole.decoded()))
    if whole.content_type().media_type not in CMS_TYPES:  # a multipart/signed around a ciphertext
        kept = b"Content-Disposition: attachment\r\n" + original
    return assembled(outer, (content, kept), f"{delivery_id}:shown")


def _hidden(entity: Entity) -> bool:
    """Whether what people should read is inside CMS."""
    budget = Budget()
    try:
        for _ in range(MAX_DEPTH):
            kind = entity.content_type()
            layer = layer_of(entity, kind)
            if layer is None and (child := sole_child(entity, kind, budget)) is not None:
                entity = child
                continue
            if layer is None or layer is Layer.SIGNATURE:
                return False
            if layer is not Layer.CLEAR_SIGNED:
                return True
            outer, parts = parts_of(entity, kind, budget)
            entity = parse_entity(outer.source, *parts[0])
    except (MimeError, IndexError):
        pass
    return False


def _is_readable(content: bytes) -> bool:
    """Whether it is an entity that is no CMS itself."""
    try:
        entity = parse_entity(content)
        return layer_of(entity, entity.content_type()) is None
    except MimeError:
        return False
