"""Compressed content unpacked (RFC 3274), which attackers fill with a thousand times what they send.

What comes out is counted while it comes: nothing is unpacked beyond the limits.
"""

from __future__ import annotations

import zlib

from smime import oids
from smime.cms_read import Compressed
from smime.policy import DEFAULT_POLICY, ReadPolicy
from smime.verdict import Finding


def decompress(compressed: Compressed, policy: ReadPolicy = DEFAULT_POLICY) -> bytes | Finding:
    """What was compressed, or why it is not unpacked: never raises on bad input.

    Findings: `compression-algorithm`, `compression-limit` (detail `size` or `ratio`), `malformed-compression`.
    """
    if compressed.algorithm.oid != oids.ZLIB_COMPRESS:
        return Finding("compression-algorithm", compressed.algorithm.oid)
    by_ratio = policy.max_ratio * len(compressed.content)
    most = min(policy.max_decompressed_octets, by_ratio)
    unpacking = zlib.decompressobj()
    parts: list[bytes] = []
    size = 0
    try:
        for piece in compressed.content:
            if unpacking.eof:
                return Finding("malformed-compression")  # readers differ on what follows the end
            part = unpacking.decompress(piece, most + 1 - size)  # a limit of 0 would mean none
            size += len(part)
            if size > most:
                return Finding("compression-limit", "ratio" if by_ratio < policy.max_decompressed_octets else "size")
            parts.append(part)
    except zlib.error:
        return Finding("malformed-compression")
    if not unpacking.eof or unpacking.unused_data:
        return Finding("malformed-compression")
    return b"".join(parts)
