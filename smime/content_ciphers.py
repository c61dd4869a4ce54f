"""The ciphers of encrypted content: what their parameters must be, and how each is opened (RFC 5084, 8103, 3565).

What is public about a message is judged first, in `Kind.prepare`; what depends on the key comes after, in
`Kind.open`, so that `smime.decrypting` can do the same work whether there is a key or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305

from smime import oids
from smime.cms_read import Algorithm, Enveloped
from smime.policy import GcmVariant, ReadPolicy
from trust import der
from trust.der import DerError, Octets

_NONCE = 12
_TAG_OCTETS = range(12, 17)
_DEFAULT_TAG = 12
_LONGEST_TAG = 16
_BLOCK = 16
_SMALL = 1 << 18
"""Octets copied in less time than a decryption in several steps takes."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """Encrypted content with all that is public about how to open it."""

    content: Octets
    size: int
    """Of the ciphertext proper, which may be followed by a copy of the tag."""
    nonce: bytes
    tag: bytes = b""
    additional: tuple[bytes, ...] = (b"",)
    """What was authenticated beside the content, or may have been."""
    variants: tuple[GcmVariant, ...] = ()


def prepare_gcm(enveloped: Enveloped, algorithm: Algorithm, policy: ReadPolicy) -> Sealed:
    """RFC 5084 §3.2, and what products have made of it where the policy admits that. Raises ValueError."""
    content, tag, parameters = enveloped.content, enveloped.mac, algorithm.parameters
    if parameters is None:
        raise DerError("GCMParameters")
    variants: list[GcmVariant] = []
    icv_octets: int | None = None
    if parameters.tag == der.OCTET_STRING:
        variants.append(GcmVariant.BARE_NONCE)
        nonce = parameters.octets()
    else:
        fields = parameters.sequence(2)
        if not fields:
            raise DerError("GCMParameters")
        nonce = fields[0].octets()
        icv_octets = fields[1].integer() if len(fields) == 2 else _DEFAULT_TAG
        omitted = GcmVariant.ICV_LENGTH_OMITTED
        if len(fields) == 1 and (
            len(tag) != _DEFAULT_TAG if enveloped.authenticated else omitted in policy.gcm_variants
        ):
            variants.append(omitted)
            icv_octets = None
        elif icv_octets not in _TAG_OCTETS:
            raise ValueError("aes-ICVlen")
    size = len(content)
    if not enveloped.authenticated:
        variants.append(GcmVariant.IN_ENVELOPED_DATA)
        tag = _tail(content, icv_octets or _LONGEST_TAG)
        size -= len(tag)
    elif GcmVariant.TAG_IN_CONTENT in policy.gcm_variants and _tail(content, len(tag)) == tag:
        variants.append(GcmVariant.TAG_IN_CONTENT)
        size -= len(tag)
    if len(nonce) != _NONCE or len(tag) not in _TAG_OCTETS or len(tag) != (icv_octets or len(tag)):
        raise ValueError("nonce or tag")
    if not policy.gcm_variants.issuperset(variants):
        raise ValueError("variant of GCM")
    return Sealed(content, size, nonce, tag, _additional(enveloped, policy), tuple(variants))


def _additional(enveloped: Enveloped, policy: ReadPolicy) -> tuple[bytes, ...]:
    attributes = enveloped.auth_attributes
    if attributes and GcmVariant.ATTRIBUTES_NOT_AUTHENTICATED in policy.gcm_variants:
        return attributes, b""
    return (attributes,)


def _open_gcm(sealed: Sealed, key: bytes) -> tuple[bytearray, bool]:
    if sealed.size <= _SMALL and len(sealed.tag) == _LONGEST_TAG and len(sealed.additional) == 1:
        return _open_at_once(AESGCM(key), sealed), False
    content = bytearray(sealed.size + _BLOCK)  # `update_into` insists on room for a block more
    room = memoryview(content)
    for attempt, additional in enumerate(sealed.additional):
        decryptor = Cipher(algorithms.AES(key), modes.GCM(sealed.nonce, None, min_tag_length=12)).decryptor()
        decryptor.authenticate_additional_data(additional)
        written = 0
        for piece in _pieces(sealed):
            written += decryptor.update_into(piece, room[written:])
        try:
            decryptor.finalize_with_tag(sealed.tag)
        except InvalidTag:
            continue
        room.release()
        del content[written:]
        return content, attempt > 0
    raise InvalidTag


def _prepare_ccm(enveloped: Enveloped, algorithm: Algorithm, policy: ReadPolicy) -> Sealed:
    """RFC 5084 §3.1. Raises ValueError."""
    fields = algorithm.parameters.sequence(2) if algorithm.parameters is not None else []
    if not fields:
        raise DerError("CCMParameters")
    icv_octets = fields[1].integer() if len(fields) == 2 else _DEFAULT_TAG
    nonce = fields[0].octets()
    if not 7 <= len(nonce) <= 13 or icv_octets not in (12, 14, 16) or len(enveloped.mac) != icv_octets:
        raise ValueError("nonce or tag")
    if len(enveloped.content) >= 1 << 8 * (15 - len(nonce)):
        raise ValueError("nonce too long for this content")
    return Sealed(enveloped.content, len(enveloped.content), nonce, enveloped.mac, (enveloped.auth_attributes,))


def _open_ccm(sealed: Sealed, key: bytes) -> tuple[bytearray, bool]:
    return _open_at_once(AESCCM(key, len(sealed.tag)), sealed), False


def _prepare_chacha20(enveloped: Enveloped, algorithm: Algorithm, policy: ReadPolicy) -> Sealed:
    """RFC 8103 §2. Raises ValueError."""
    nonce = algorithm.parameters.octets() if algorithm.parameters is not None else b""
    if len(nonce) != _NONCE or len(enveloped.mac) != _LONGEST_TAG:
        raise ValueError("nonce or tag")
    return Sealed(enveloped.content, len(enveloped.content), nonce, enveloped.mac, (enveloped.auth_attributes,))


def _open_chacha20(sealed: Sealed, key: bytes) -> tuple[bytearray, bool]:
    return _open_at_once(ChaCha20Poly1305(key), sealed), False


def _open_at_once(cipher: AESGCM | AESCCM | ChaCha20Poly1305, sealed: Sealed) -> bytearray:
    content = bytearray(sealed.size)
    cipher.decrypt_into(sealed.nonce, b"".join((*_pieces(sealed), sealed.tag)), sealed.additional[0], content)
    return content


def _prepare_cbc(enveloped: Enveloped, algorithm: Algorithm, policy: ReadPolicy) -> Sealed:
    """RFC 3565 §4.1, RFC 3370 §5.1. Raises ValueError."""
    triple_des = algorithm.oid == oids.DES_EDE3_CBC
    block = 8 if triple_des else _BLOCK
    iv = algorithm.parameters.octets() if algorithm.parameters is not None else b""
    size = len(enveloped.content)
    if not (policy.triple_des if triple_des else policy.cbc):
        raise ValueError("algorithm not admitted")
    if len(iv) != block or not size or size % block:
        raise ValueError("IV or length")
    return Sealed(enveloped.content, size, iv)


def _open_cbc(sealed: Sealed, key: bytes) -> tuple[bytearray, bool]:
    block = len(sealed.nonce)
    cipher = algorithms.AES(key) if block == _BLOCK else TripleDES(key)
    decryptor = Cipher(cipher, modes.CBC(sealed.nonce)).decryptor()
    content = bytearray(sealed.size + _BLOCK)
    room = memoryview(content)
    written = 0
    for piece in sealed.content:
        written += decryptor.update_into(piece, room[written:])
    decryptor.finalize()
    room.release()
    padding = content[written - 1]
    if not 1 <= padding <= block or content.count(padding, written - padding, written) != padding:
        raise ValueError("padding")
    del content[written - padding :]
    return content, False


def _pieces(sealed: Sealed) -> Iterator[bytes | memoryview]:
    """The ciphertext proper."""
    left = sealed.size
    for piece in sealed.content:
        yield piece[:left] if left < len(piece) else piece
        left = max(left - len(piece), 0)


def _tail(content: Octets, octets: int) -> bytes:
    """The last octets of an encrypted content, fewer when it is shorter."""
    tail = b""
    for piece in content:
        tail = (tail + piece[-octets:])[-octets:]
    return tail


@dataclass(frozen=True, slots=True)
class Kind:
    """How one algorithm is read."""

    label: str
    octets: int
    """Of the key."""
    authenticated: bool
    prepare: Callable[[Enveloped, Algorithm, ReadPolicy], Sealed]
    open: Callable[[Sealed, bytes], tuple[bytearray, bool]]
    """The content, and whether the attributes turned out not to be authenticated. Raises ValueError, InvalidTag."""


KINDS = {
    oids.AES128_GCM: Kind("aes128-gcm", 16, True, prepare_gcm, _open_gcm),
    oids.AES192_GCM: Kind("aes192-gcm", 24, True, prepare_gcm, _open_gcm),
    oids.AES256_GCM: Kind("aes256-gcm", 32, True, prepare_gcm, _open_gcm),
    oids.AES128_CCM: Kind("aes128-ccm", 16, True, _prepare_ccm, _open_ccm),
    oids.AES192_CCM: Kind("aes192-ccm", 24, True, _prepare_ccm, _open_ccm),
    oids.AES256_CCM: Kind("aes256-ccm", 32, True, _prepare_ccm, _open_ccm),
    oids.CHACHA20_POLY1305: Kind("chacha20-poly1305", 32, True, _prepare_chacha20, _open_chacha20),
    oids.AES128_CBC: Kind("aes128-cbc", 16, False, _prepare_cbc, _open_cbc),
    oids.AES192_CBC: Kind("aes192-cbc", 24, False, _prepare_cbc, _open_cbc),
    oids.AES256_CBC: Kind("aes256-cbc", 32, False, _prepare_cbc, _open_cbc),
    oids.DES_EDE3_CBC: Kind("des-ede3-cbc", 24, False, _prepare_cbc, _open_cbc),
}
