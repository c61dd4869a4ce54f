"""Padding removed here is what OpenSSL removes: the same content, and nothing said of what was wrong."""

import secrets

import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA1, SHA256, SHA512

from trust.unpadding import unpad_oaep, unpad_pkcs1v15

KEY = rsa.generate_private_key(65537, 2048)


def block(encrypted: bytes) -> bytes:
    """The bare RSA operation, as a token does it."""
    numbers = KEY.private_numbers()
    return pow(int.from_bytes(encrypted, "big"), numbers.d, numbers.public_numbers.n).to_bytes(256, "big")


@pytest.mark.parametrize("octets", [0, 1, 16, 24, 32, 245])
def test_pkcs1v15(octets) -> None:
    content = secrets.token_bytes(octets)
    assert unpad_pkcs1v15(block(KEY.public_key().encrypt(content, padding.PKCS1v15())), 32) == content


@pytest.mark.parametrize(
    "wrong",
    [
        bytes(256),
        b"\0\2" + b"\1" * 254,
        b"\0\1" + b"\1" * 100 + b"\0" + b"k" * 153,
        b"\1\2" + b"\1" * 100 + b"\0" + b"k" * 153,
        b"\0\2" + b"\1" * 7 + b"\0" + b"k" * 246,
        b"\0\2\0" + b"\1" * 253,
    ],
)
def test_a_wrong_pkcs1v15_padding_gives_random_octets(wrong) -> None:
    answers = {unpad_pkcs1v15(wrong, 32) for _ in range(3)}
    assert len(answers) == 3
    assert {len(each) for each in answers} == {32}


@pytest.mark.parametrize("algorithm", [SHA1(), SHA256(), SHA512()], ids=lambda each: each.name)
@pytest.mark.parametrize("mgf", [SHA1(), SHA256(), SHA512()], ids=lambda each: each.name)
@pytest.mark.parametrize("label", [b"", b"label"])
def test_oaep(algorithm, mgf, label) -> None:
    for content in (b"", b"\0", b"\1", b"k" * 32, b"\0\1" * 16):
        scheme = padding.OAEP(padding.MGF1(mgf), algorithm, label or None)
        padded = block(KEY.public_key().encrypt(content, scheme))
        assert unpad_oaep(padded, algorithm, mgf, label) == content
        texts = set()
        for position in (0, 1, 30, 100, 200, 255):
            altered = bytearray(padded)
            altered[position] ^= 1
            with pytest.raises(ValueError) as failure:
                unpad_oaep(bytes(altered), algorithm, mgf, label)
            texts.add(str(failure.value))
        with pytest.raises(ValueError, match="decryption failed"):
            unpad_oaep(padded, algorithm, mgf, b"another")
        assert texts == {"decryption failed"}


def test_short_blocks() -> None:
    for octets in (2, 10, 60):
        with pytest.raises(ValueError, match="decryption failed"):
            unpad_oaep(bytes(octets), SHA256(), SHA256(), b"")
