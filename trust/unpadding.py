"""What an RSA private operation yields, freed of its padding here instead of in the token (RFC 8017 §7).

Tokens often know neither OAEP with SHA-256 nor a rejection that can be told from their own failures; with the bare
operation (CKM_RSA_X_509) both are ours. Every octet is looked at whatever the others are, and nothing is said of why a
padding was wrong: who could tell would decrypt anything (Bleichenbacher, Manger).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from cryptography.hazmat.primitives.hashes import HashAlgorithm


def unpad_pkcs1v15(block: bytes, rejected_octets: int) -> bytes:
    """EME-PKCS1-v1_5 (RFC 8017 §7.2.2): the message, or so many random octets where the padding is wrong."""
    random = secrets.token_bytes(rejected_octets)
    wrong = block[0] | (block[1] ^ 2)
    end, looking = 0, 1
    for position in range(2, len(block)):
        zero = looking & (block[position] - 1 >> 8 & 1)
        end |= -zero & position
        looking ^= zero
    wrong |= looking | (end - 10 >> 31 & 1)  # at least eight octets of padding
    choice = (block[end + 1 :], random)
    return choice[wrong != 0]


def unpad_oaep(block: bytes, algorithm: HashAlgorithm, mgf: HashAlgorithm, label: bytes) -> bytes:
    """EME-OAEP (RFC 8017 §7.1.2). Raises ValueError, always the same."""
    octets = algorithm.digest_size
    if len(block) < 2 * octets + 2:
        raise ValueError("decryption failed")
    masked_seed, masked_data = block[1 : 1 + octets], block[1 + octets :]
    seed = _exclusive_or(masked_seed, _mgf1(masked_data, octets, mgf))
    data = _exclusive_or(masked_data, _mgf1(seed, len(masked_data), mgf))
    digest = hashlib.new(algorithm.name, label, usedforsecurity=False).digest()
    wrong = block[0] | (not hmac.compare_digest(data[:octets], digest))
    end, looking = 0, 1
    for position in range(octets, len(data)):
        zero = data[position] - 1 >> 8 & 1
        one = looking & ((data[position] ^ 1) - 1 >> 8 & 1)
        end |= -one & position
        wrong |= looking & (1 - zero) & (1 - one)
        looking ^= one
    if wrong | looking:
        raise ValueError("decryption failed")
    return data[end + 1 :]


def _mgf1(seed: bytes, octets: int, mgf: HashAlgorithm) -> bytes:
    """RFC 8017 B.2.1."""
    blocks = -(-octets // mgf.digest_size)
    counted = (seed + counter.to_bytes(4, "big") for counter in range(blocks))
    return b"".join(hashlib.new(mgf.name, each, usedforsecurity=False).digest() for each in counted)[:octets]


def _exclusive_or(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).to_bytes(len(one), "big")
