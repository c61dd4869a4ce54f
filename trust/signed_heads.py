"""The signed head: what leaves the machine so that nobody can rewrite the journal unseen, not even we.

A head is one line of JSON about all chains of one journal at one moment: for each writer how many entries its chain
has, the root of the RFC 6962 tree over their hashes and the hash of the last; its own number; the SHA-256 of the head
before it. The line that is published carries these very characters as a string, a signature over their UTF-8 octets,
and the public key. Ed25519 from a file sealed by the vault, or any `Signer`, whose key may be in an HSM.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from trust.keys import Signer
from trust.store.durable import write_durably
from trust.vault import KeyVault, VaultError

ED25519, ECDSA, RSA = "ed25519", "ecdsa-sha256", "rsa-sha256"
_SPKI = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
_HEX = re.compile("[0-9a-f]{64}")
_TIME = re.compile(r"[0-9]{4,5}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")
_LARGEST = 2**63
"""No database counts so far."""
_BEGIN = '{"head":'
_KEY_CONTEXT = b"journal signing key"
MAX_LINE = 4 * 1024 * 1024
"""Characters of a published line that are looked at."""


class HeadSigner(Protocol):
    """Who signs heads. Thread-safe."""

    @property
    def algorithm(self) -> str:
        """`ed25519`, `ecdsa-sha256` (DER signature) or `rsa-sha256` (PKCS#1 v1.5)."""
        ...

    @property
    def public_key(self) -> bytes:
        """SubjectPublicKeyInfo, DER."""
        ...

    def sign(self, data: bytes) -> bytes: ...


class SealedHeadSigner:
    """An Ed25519 key of our own in a file that the vault seals: 0600, made when there is none."""

    algorithm = ED25519

    def __init__(self, key: ed25519.Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key = key.public_key().public_bytes(*_SPKI)

    @classmethod
    def open(cls, path: Path, vault: KeyVault) -> SealedHeadSigner:
        """The key in `path`. Raises `VaultError` when the file is not this vault's, OSError when it cannot be used."""
        if not path.exists():
            try:
                key = ed25519.Ed25519PrivateKey.generate()
                write_durably(path, vault.seal(key.private_bytes_raw(), _KEY_CONTEXT), replace=False)
            except FileExistsError:  # another process was faster
                pass
        try:
            return cls(ed25519.Ed25519PrivateKey.from_private_bytes(vault.unseal(path.read_bytes(), _KEY_CONTEXT)))
        except VaultError:
            raise VaultError(f"{path} is not the journal's signing key of this vault: restore the file") from None

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data)


class KeyHeadSigner:
    """Signs with a key somebody else holds, an HSM for instance."""

    def __init__(self, signer: Signer) -> None:
        """Raises ValueError when the key can make none of our signatures."""
        self._signer = signer
        public = signer.certificate.public_key()
        self.algorithm = _algorithm_of(public)
        self.public_key = public.public_bytes(*_SPKI)

    def sign(self, data: bytes) -> bytes:
        return self._signer.sign(data, SHA256())


def _algorithm_of(public: object) -> str:
    match public:
        case ed25519.Ed25519PublicKey():
            return ED25519
        case ec.EllipticCurvePublicKey():
            return ECDSA
        case rsa.RSAPublicKey():
            return RSA
        case _:
            raise ValueError("heads are signed with Ed25519, elliptic curve or RSA keys")


def signature_holds(algorithm: str, public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Whether this key made this signature; False for whatever cannot be read."""
    try:
        key = load_der_public_key(public_key)
        if algorithm != _algorithm_of(key):
            return False
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, data)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, data, padding.PKCS1v15(), SHA256())
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True


def read_public_key(pem: bytes) -> bytes:
    """SubjectPublicKeyInfo of a PEM public key. Raises ValueError."""
    try:
        key = load_pem_public_key(pem)
        _algorithm_of(key)
    except UnsupportedAlgorithm as error:
        raise ValueError("this kind of key is not known") from error
    return key.public_bytes(*_SPKI)


class WriterHead(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One chain at the moment of the head."""

    writer: str
    size: int
    root: str
    """Of the Merkle tree whose leaves are the hashes of entries 1 to `size`; hexadecimal."""
    hash: str
    """Of entry `size`; hexadecimal."""


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is signed."""

    version: int
    journal: str
    """Which journal: the operator's name for it."""
    number: int
    """1, 2, 3, ..."""
    at: str
    """RFC 3339, UTC, by the clock of whoever made it."""
    previous: str
    """SHA-256 of the head before it; 64 zeros for the first; hexadecimal."""
    heads: tuple[WriterHead, ...]
    """Sorted by writer."""

    def text(self) -> str:
        """The characters that are signed: ASCII, no spaces."""
        return json.dumps(msgspec.to_builtins(self), separators=(",", ":"))


FIRST_PREVIOUS = "0" * 64


def head_digest(text: str) -> str:
    """How the next head and the journal's own entry name this one."""
    return hashlib.sha256(text.encode()).hexdigest()


def parse_head(text: str) -> Head | None:
    """None when it is no head of a version we know."""
    try:
        head = msgspec.json.decode(text, type=Head)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return None
    fit = (
        head.version == 1
        and 0 < head.number < _LARGEST
        and _HEX.fullmatch(head.previous)
        and _TIME.fullmatch(head.at)
        and all(
            0 <= each.size < _LARGEST and _HEX.fullmatch(each.root) and _HEX.fullmatch(each.hash) for each in head.heads
        )
    )
    return head if fit else None


def format_time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True, slots=True)
class SignedHead:
    """A head as it is stored and published."""

    text: str
    signature: bytes
    algorithm: str
    key: bytes
    """SubjectPublicKeyInfo, DER."""

    @classmethod
    def make(cls, head: Head, signer: HeadSigner) -> SignedHead:
        text = head.text()
        return cls(text, signer.sign(text.encode()), signer.algorithm, signer.public_key)

    def line(self) -> str:
        """One line of JSON, ASCII, without its end."""
        fields = {
            "head": self.text,
            "signature": base64.b64encode(self.signature).decode(),
            "algorithm": self.algorithm,
            "key": base64.b64encode(self.key).decode(),
        }
        return json.dumps(fields, separators=(",", ":"))

    def problem(self, keys: Collection[bytes]) -> str:
        """Why it is not to be believed, empty when one of `keys` signed it."""
        if self.key not in keys:
            return "is signed by a key this journal does not know (if it was its own once: --key)"
        if not signature_holds(self.algorithm, self.key, self.signature, self.text.encode()):
            return "does not bear a valid signature"
        return ""


def parse_line(line: str) -> SignedHead | None:
    """A published line again, also behind whatever a syslog server wrote before it; None when it holds no head."""
    start = line.find(_BEGIN, 0, MAX_LINE)
    if start < 0:
        return None
    try:
        fields, _ = json.JSONDecoder().raw_decode(line[:MAX_LINE], start)
        return SignedHead(
            _text(fields["head"]),
            base64.b64decode(_text(fields["signature"]), validate=True),
            _text(fields["algorithm"]),
            base64.b64decode(_text(fields["key"]), validate=True),
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _text(value: object) -> str:
    """ASCII only: what we write never holds anything else."""
    if not isinstance(value, str) or not value.isascii():
        raise TypeError
    return value
