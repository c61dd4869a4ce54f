"""Whose keys we hold: one key-encryption key on disk, and every private key and data key under it.

The key-encryption key is 32 bytes in a file only we can read. From it HKDF (RFC 5869) derives one key per purpose, so
that wrapping, sealing and pseudonyms never share one. A mailbox's private keys are PKCS#8 in sealed files of their own
with their certificates; names and contents of these files say nothing about the mailbox, whose address may be a
patient's matricule.

On disk, below the root: `kek`; `check`, which tells whether `kek` is the one the rest was made with; and
`keys/<pseudonym of the address>/<pseudonym of use and certificate>`.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, HashAlgorithm
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)

from trust.keys import Decryptor, Signer
from trust.store.durable import make_private_directory, sync_directory, write_durably

PrivateKey: TypeAlias = (
    rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | x25519.X25519PrivateKey
)
"""RSA, NIST and brainpool curves for both uses; Ed25519 signs, X25519 is encrypted to."""
_KINDS = (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey, x25519.X25519PrivateKey)

_KEK_BYTES = 32
_SEAL_VERSION = b"\x01"
_SALT_BYTES = 12
_NONCE_BYTES = 12
_SEAL_OVERHEAD = len(_SEAL_VERSION) + _SALT_BYTES + _NONCE_BYTES + 16
_KEYS_IN_MEMORY = 4096


class VaultError(ValueError):
    """The vault cannot be opened, or something was altered or is not under its key. The text says what to do."""


class KeyUse(Enum):
    """What a mailbox's key is for; MSSanté gives each mailbox one certificate of each."""

    SIGNING = "signing"
    ENCRYPTION = "encryption"


class _KeyFile(msgspec.Struct, frozen=True):
    """What a key file seals."""

    address: str
    use: KeyUse
    private_key: bytes
    """PKCS#8 PrivateKeyInfo (RFC 5958), DER."""
    certificates: tuple[bytes, ...]
    """DER: the key's own certificate, then its chain."""

    def __repr__(self) -> str:
        """Whose and which key it is stays out of tracebacks."""
        return f"{type(self).__name__}(use={self.use})"


_PKCS1V15 = padding.PKCS1v15()


@dataclass(frozen=True, slots=True, repr=False)
class _HeldKey:
    """One generation of a mailbox's key, in memory: a `Signer` and a `Decryptor`."""

    use: KeyUse
    key: PrivateKey
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]

    def sign(self, data: bytes, algorithm: HashAlgorithm) -> bytes:
        if isinstance(self.key, rsa.RSAPrivateKey):
            return self.key.sign(data, _PKCS1V15, algorithm)
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            return self.key.sign(data, ec.ECDSA(algorithm))
        if isinstance(self.key, ed25519.Ed25519PrivateKey):
            return self.key.sign(data)
        raise ValueError("a key on X25519 cannot sign")

    def sign_pss(self, data: bytes, algorithm: HashAlgorithm) -> bytes:
        return self._rsa().sign(data, padding.PSS(padding.MGF1(algorithm), algorithm.digest_size), algorithm)

    def decrypt_oaep(self, encrypted: bytes, algorithm: HashAlgorithm, mgf: HashAlgorithm, label: bytes) -> bytes:
        oaep = padding.OAEP(mgf=padding.MGF1(mgf), algorithm=algorithm, label=label or None)
        try:
            return self._rsa().decrypt(encrypted, oaep)
        except (ValueError, UnsupportedAlgorithm):
            raise ValueError("decryption failed") from None

    def decrypt_pkcs1v15(self, encrypted: bytes) -> bytes:
        try:
            return self._rsa().decrypt(encrypted, padding.PKCS1v15())
        except ValueError:
            # Wrong padding already yields random bytes (OpenSSL's implicit rejection); what cannot even be a
            # ciphertext of this key is answered in the same way, so that senders learn nothing from the difference.
            return secrets.token_bytes(32)

    def agree(self, peer_public_key: bytes) -> bytes:
        try:
            if isinstance(self.key, x25519.X25519PrivateKey):
                return self.key.exchange(x25519.X25519PublicKey.from_public_bytes(peer_public_key))
            if not isinstance(self.key, ec.EllipticCurvePrivateKey):
                raise ValueError
            # checks that the point is on the curve, else it would give the key away bit by bit
            peer = ec.EllipticCurvePublicKey.from_encoded_point(self.key.curve, peer_public_key)
            return self.key.exchange(ec.ECDH(), peer)
        except (ValueError, UnsupportedAlgorithm):
            raise ValueError("key agreement failed") from None

    def _rsa(self) -> rsa.RSAPrivateKey:
        if not isinstance(self.key, rsa.RSAPrivateKey):
            raise ValueError("not an RSA key")
        return self.key


class KeyVault:
    """Keys under one key-encryption key. Thread-safe; another process may install keys meanwhile.

    Use `create` once, `open` ever after.
    """

    def __init__(self, root: Path, kek: bytes) -> None:
        self._keys = root / "keys"
        self._wrap_key = _derive(kek, b"wrap data keys")
        self._seal_key = _derive(kek, b"seal values")
        self._pseudonym_key = _derive(kek, b"pseudonyms")
        self._load = lru_cache(maxsize=_KEYS_IN_MEMORY)(self._load_uncached)

    @classmethod
    def create(cls, root: Path) -> KeyVault:
        """A new vault with a fresh key-encryption key. Raises `VaultError` when there is one, or the disk refuses."""
        kek = secrets.token_bytes(_KEK_BYTES)
        vault = cls(root, kek)
        try:
            make_private_directory(root / "keys")
            if (root / "kek").exists():
                raise FileExistsError
            write_durably(root / "check", vault._check())
            # Last, and never over another: a vault with this file is complete.
            write_durably(root / "kek", kek, replace=False)
        except FileExistsError:
            raise VaultError(f"there is already a vault in {root}: open it instead") from None
        except OSError as error:
            raise VaultError(f"the vault in {root} cannot be created: {error.strerror}") from error
        return vault

    @classmethod
    def open(cls, root: Path) -> KeyVault:
        """An existing vault. Raises `VaultError` when its key file is missing, readable by others, or not its own."""
        file = root / "kek"
        try:
            with file.open("rb") as opened:
                mode = os.fstat(opened.fileno()).st_mode
                kek = opened.read(_KEK_BYTES + 1)
            check = (root / "check").read_bytes()
        except OSError as error:
            raise VaultError(f"the vault in {root} cannot be read: {error.strerror}") from error
        if stat.S_IMODE(mode) & (stat.S_IRWXG | stat.S_IRWXO):
            raise VaultError(f"others can read the key-encryption key: run chmod 600 {file}, then renew the keys")
        if len(kek) != _KEK_BYTES:
            raise VaultError(f"{file} is not a key-encryption key: it must hold exactly {_KEK_BYTES} bytes")
        vault = cls(root, kek)
        if not hmac.compare_digest(check, vault._check()):
            raise VaultError(f"{file} is not the key this vault was made with: restore the right one from your backup")
        return vault

    def wrap(self, dek: bytes) -> bytes:
        """A data key (16, 24 or 32 bytes) under AES key wrap (RFC 3394)."""
        return aes_key_wrap(self._wrap_key, dek)

    def unwrap(self, blob: bytes) -> bytes:
        """The data key again. Raises `VaultError` when it was altered or wrapped by another vault."""
        try:
            return aes_key_unwrap(self._wrap_key, blob)
        except (InvalidUnwrap, ValueError):
            raise VaultError("a wrapped key was altered or belongs to another vault") from None

    def seal(self, plaintext: bytes, context: bytes) -> bytes:
        """Encrypt a small value (a column, a file name) under AES-256-GCM, 41 bytes longer.

        `context` says what and whose it is (`b"dossier.title:" + id`): a sealed value moved elsewhere does not open.
        Each value has its own key, HKDF-Expand of a random salt: one key and random nonces would wear out after 2**32
        values (NIST SP 800-38D §8.3).
        """
        salt = secrets.token_bytes(_SALT_BYTES)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _SEAL_VERSION + salt + nonce + self._value_cipher(salt).encrypt(nonce, plaintext, context)

    def unseal(self, sealed: bytes, context: bytes) -> bytes:
        """The value again. Raises `VaultError` when altered, or sealed for another context or by another vault."""
        if len(sealed) < _SEAL_OVERHEAD or sealed[:1] != _SEAL_VERSION:
            raise VaultError("a sealed value was altered")
        salt = sealed[1 : 1 + _SALT_BYTES]
        nonce = sealed[1 + _SALT_BYTES : 1 + _SALT_BYTES + _NONCE_BYTES]
        try:
            return self._value_cipher(salt).decrypt(nonce, sealed[1 + _SALT_BYTES + _NONCE_BYTES :], context)
        except InvalidTag:
            raise VaultError("a sealed value was altered") from None

    def pseudonym(self, label: str, *parts: str) -> str:
        """64 hexadecimal digits that stand for `parts` and can be recomputed only with this vault (HMAC-SHA256).

        `label` names the kind (`"patient"`); the same parts under another label give another pseudonym. Parts are
        taken as they are: normalise before.
        """
        message = bytearray()
        for part in (label, *parts):
            encoded = part.encode("utf-8", "surrogatepass")
            message += len(encoded).to_bytes(8, "big") + encoded
        return hmac.digest(self._pseudonym_key, bytes(message), "sha256").hex()

    def install(
        self,
        address: str,
        use: KeyUse,
        key: PrivateKey,
        certificate: x509.Certificate,
        chain: Sequence[x509.Certificate],
    ) -> None:
        """Keep one more generation of a mailbox's key, durably; the same certificate again changes nothing.

        Raises `VaultError` when the key does not belong to the certificate or cannot serve that use, OSError when the
        disk refuses. `chain` is what a signer sends along: intermediates, leaf and root excluded.
        """
        _check_fitness(use, key, certificate)
        record = _KeyFile(
            address=address.lower(),
            use=use,
            private_key=key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
            certificates=tuple(each.public_bytes(Encoding.DER) for each in (certificate, *chain)),
        )
        directory = self._directory(address)
        make_private_directory(directory)
        file = directory / self.pseudonym("key file", use.value, certificate.fingerprint(SHA256()).hex())
        write_durably(file, self.seal(msgspec.msgpack.encode(record), _file_context(file)))
        sync_directory(self._keys)

    def signer(self, address: str, at: datetime | None = None) -> Signer | None:
        """The newest signing key whose certificate is valid `at` (aware; now by default), None when there is none."""
        moment = at or datetime.now(UTC)
        for held in self._held(address, KeyUse.SIGNING):
            if held.certificate.not_valid_before_utc <= moment <= held.certificate.not_valid_after_utc:
                return held
        return None

    def decryptors(self, address: str) -> tuple[Decryptor, ...]:
        """All generations of decryption keys, newest first: expired ones still open old mail."""
        return tuple(self._held(address, KeyUse.ENCRYPTION))

    def certificates(self, address: str, use: KeyUse) -> tuple[x509.Certificate, ...]:
        """The certificates of all generations, newest first, expired ones included."""
        return tuple(held.certificate for held in self._held(address, use))

    def addresses_held(self) -> tuple[str, ...]:
        """Every address with a key, sorted. Patients' addresses are among them: not for logs."""
        return tuple(sorted({record.address for _, record in self._records()}))

    def expiring(self, before: datetime) -> list[tuple[str, datetime]]:
        """Newest generations that end before `before` (aware), soonest first: use and serial number, and when.

        Who holds the certificate is not said, for these lines are printed and logged.
        """
        newest: dict[tuple[str, KeyUse], x509.Certificate] = {}
        for _, record in self._records():
            certificate = x509.load_der_x509_certificate(record.certificates[0])
            known = newest.get((record.address, record.use))
            if known is None or known.not_valid_after_utc < certificate.not_valid_after_utc:
                newest[record.address, record.use] = certificate
        ending = [
            (f"{use.value} certificate {certificate.serial_number:x}", certificate.not_valid_after_utc)
            for (_, use), certificate in newest.items()
            if certificate.not_valid_after_utc < before
        ]
        return sorted(ending, key=lambda line: line[1])

    def _check(self) -> bytes:
        return self.pseudonym("vault check").encode()

    def _value_cipher(self, salt: bytes) -> AESGCM:
        return AESGCM(hmac.digest(self._seal_key, salt + b"\x01", "sha256"))  # HKDF-Expand, one block (RFC 5869 §2.3)

    def _directory(self, address: str) -> Path:
        return self._keys / self.pseudonym("key address", address.lower())

    def _held(self, address: str, use: KeyUse) -> list[_HeldKey]:
        """Newest first. The directory is listed each time, so that keys installed by another process are seen."""
        directory = self._directory(address)
        held = [key for file in _key_files(directory) if (key := self._load(file)).use is use]
        held.sort(
            key=lambda key: (key.certificate.not_valid_before_utc, key.certificate.not_valid_after_utc), reverse=True
        )
        return held

    def _load_uncached(self, file: Path) -> _HeldKey:
        record = self._record(file)
        key = load_der_private_key(record.private_key, None)
        certificate, *chain = (x509.load_der_x509_certificate(each) for each in record.certificates)
        if not isinstance(key, _KINDS):
            raise VaultError("a key file holds a kind of key this version does not know")
        return _HeldKey(record.use, key, certificate, tuple(chain))

    def _record(self, file: Path) -> _KeyFile:
        return msgspec.msgpack.decode(self.unseal(file.read_bytes(), _file_context(file)), type=_KeyFile)

    def _records(self) -> Iterator[tuple[Path, _KeyFile]]:
        for directory in sorted(self._keys.iterdir()):
            for file in _key_files(directory):
                yield file, self._record(file)


def _derive(kek: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"relais vault 1: " + purpose).derive(kek)


def _key_files(directory: Path) -> list[Path]:
    try:
        return [file for file in directory.iterdir() if not file.name.startswith(".")]
    except FileNotFoundError:
        return []


def _file_context(file: Path) -> bytes:
    """Binds a key file to its place: moved to another mailbox it does not open."""
    return f"key file:{file.parent.name}/{file.name}".encode()


def _check_fitness(use: KeyUse, key: PrivateKey, certificate: x509.Certificate) -> None:
    if not isinstance(key, _KINDS):
        raise VaultError("only RSA, elliptic curve, Ed25519 and X25519 keys can be kept")
    if isinstance(key, x25519.X25519PrivateKey if use is KeyUse.SIGNING else ed25519.Ed25519PrivateKey):
        raise VaultError(f"a key of this kind is not for {use.value}")
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise VaultError("the private key does not belong to the certificate")
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return
    if use is KeyUse.SIGNING:
        fit = usage.digital_signature or usage.content_commitment
    else:
        fit = usage.key_encipherment if isinstance(key, rsa.RSAPrivateKey) else usage.key_agreement
    if not fit:
        raise VaultError(f"the certificate's KeyUsage does not allow {use.value}")
