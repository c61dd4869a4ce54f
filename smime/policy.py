"""What may be read: everything sound by default, and each thing that is not behind a switch of its own name.

The world still sends 3DES, SHA-1 and three kinds of wrong GCM. Where an operator has to read such mail, the switch for
it is set here, and the verdict carries a finding each time it mattered. A switch never makes anything acceptable that
Relais writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class GcmVariant(Enum):
    """Ways in which products have read RFC 5083 and RFC 5084 wrongly; each is accepted only where it is named."""

    IN_ENVELOPED_DATA = "gcm-in-enveloped-data"
    """AES-GCM inside EnvelopedData, the tag at the end of the encrypted content (BouncyCastle, PKI.js)."""
    BARE_NONCE = "gcm-bare-nonce"
    """The parameters are the nonce as OCTET STRING instead of GCMParameters (PKI.js)."""
    TAG_IN_CONTENT = "gcm-tag-in-content"
    """The tag stands in `mac` and again at the end of the encrypted content (BouncyCastle)."""
    ICV_LENGTH_OMITTED = "gcm-icv-length-omitted"
    """aes-ICVlen is left out, which means 12, but the tag is longer."""
    ATTRIBUTES_NOT_AUTHENTICATED = "gcm-attributes-not-authenticated"
    """authAttrs are sent, but were not part of the additional data (OpenSSL before 2026)."""


@dataclass(frozen=True, slots=True)
class ReadPolicy:
    """What is accepted beyond the standards' MUSTs, and how far lengths may go."""

    triple_des: bool = False
    """Content in DES-EDE3-CBC (RFC 8551 §2.7: historic)."""
    sha1: bool = False
    """Signatures and digests with SHA-1."""
    cbc: bool = True
    """Content in AES-CBC: not authenticated, marked as such (EFAIL)."""
    gcm_variants: frozenset[GcmVariant] = frozenset()
    max_decompressed_octets: int = 256 << 20
    """CompressedData beyond this is refused, as is anything that grows by more than `max_ratio`."""
    max_ratio: int = 100


DEFAULT_POLICY = ReadPolicy()
