"""Keys and certificates from files at hand, in PEM, DER or PKCS #12: for commands that work without a vault."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.hashes import HashAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
    pkcs12,
)

from trust.softkeys import KeyOperations, PrivateKey, SoftwareKey

MAX_FILE_OCTETS = 1 << 20

Passphrase = Callable[[Path], bytes]
"""Asked for once per encrypted file. May raise KeyFileError."""


class KeyFileError(Exception):
    """A file cannot be used; the message is a sentence about it."""


@dataclass(frozen=True, slots=True, repr=False)
class FileKey:
    """A key from a file: a `trust.keys.Signer` and a `trust.keys.Decryptor`."""

    operations: KeyOperations
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]

    def sign(self, data: bytes, algorithm: HashAlgorithm) -> bytes:
        return self.operations.sign(data, algorithm)

    def sign_pss(self, data: bytes, algorithm: HashAlgorithm) -> bytes:
        return self.operations.sign_pss(data, algorithm)

    def decrypt_oaep(self, encrypted: bytes, algorithm: HashAlgorithm, mgf: HashAlgorithm, label: bytes) -> bytes:
        return self.operations.decrypt_oaep(encrypted, algorithm, mgf, label)

    def decrypt_pkcs1v15(self, encrypted: bytes) -> bytes:
        return self.operations.decrypt_pkcs1v15(encrypted)

    def agree(self, peer_public_key: bytes) -> bytes:
        return self.operations.agree(peer_public_key)


def load_certificates(path: Path) -> list[x509.Certificate]:
    """The certificates in a PEM or DER file. Raises KeyFileError."""
    data = _read(path)
    try:
        found = x509.load_pem_x509_certificates(data) if b"-----BEGIN" in data else [_der_certificate(data)]
    except (ValueError, UnsupportedAlgorithm):
        found = []
    if not found:
        raise KeyFileError(f"{path} holds no certificate that can be read: give one in PEM or DER.")
    return found


def load_keys(
    keys: Sequence[Path], certificates: Sequence[Path], passphrase: Passphrase
) -> tuple[list[FileKey], list[x509.Certificate]]:
    """Private keys with the certificates they belong to, and all certificates. Raises KeyFileError.

    Which certificate belongs to which key is found out by the public key; the others are the chain, roots left out.
    """
    private: list[tuple[Path, PrivateKey]] = []
    known: list[x509.Certificate] = [certificate for path in certificates for certificate in load_certificates(path)]
    for path in keys:
        key, along = _load_key(path, passphrase)
        private.append((path, key))
        known += along
    known = list(dict.fromkeys(known))
    by_key: dict[bytes, list[x509.Certificate]] = {}
    for certificate in known:
        by_key.setdefault(_public(certificate.public_key()), []).append(certificate)
    held: list[FileKey] = []
    for path, key in private:
        own = by_key.get(_public(key.public_key()), [])
        if not own:
            raise KeyFileError(f"None of the certificates belongs to the key in {path}: add its --certificate.")
        chain = tuple(each for each in known if each not in own and each.subject != each.issuer)
        held += (FileKey(SoftwareKey(key), certificate, chain) for certificate in own)
    return held, known


def _load_key(path: Path, passphrase: Passphrase) -> tuple[PrivateKey, list[x509.Certificate]]:
    data = _read(path)
    along: list[x509.Certificate] = []
    if b"-----BEGIN CERTIFICATE-----" in data:
        along = load_certificates(path)
    for load in (_from_pem,) if b"-----BEGIN" in data else (_from_pkcs12, _from_der):
        for secret in (lambda: None, lambda: passphrase(path)):
            try:
                key, found = load(data, secret())
            except TypeError:  # there is a passphrase
                continue
            except (ValueError, UnsupportedAlgorithm) as problem:
                if load is _from_pkcs12 and "password" in str(problem).lower():
                    continue
                break
            if not isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, *_EDWARDS)):
                raise KeyFileError(f"The key in {path} is of a kind not used here: RSA, elliptic curve or X25519.")
            return key, along + found
    raise KeyFileError(f"{path} holds no private key that can be read, or the passphrase is wrong.")


_EDWARDS = (ed25519.Ed25519PrivateKey, x25519.X25519PrivateKey)


def _from_pem(data: bytes, secret: bytes | None) -> tuple[object, list[x509.Certificate]]:
    start = data.find(b"-----BEGIN")
    while start >= 0 and b"PRIVATE KEY-----" not in data[start : start + 50].partition(b"\n")[0]:
        start = data.find(b"-----BEGIN", start + 1)
    return load_pem_private_key(data[start:] if start >= 0 else b"", secret), []


def _from_der(data: bytes, secret: bytes | None) -> tuple[object, list[x509.Certificate]]:
    return load_der_private_key(data, secret), []


def _from_pkcs12(data: bytes, secret: bytes | None) -> tuple[object, list[x509.Certificate]]:
    store = pkcs12.load_pkcs12(data, secret)
    certificates: Iterable[pkcs12.PKCS12Certificate] = (
        each for each in (store.cert, *store.additional_certs) if each is not None
    )
    return store.key, [each.certificate for each in certificates]


def _der_certificate(data: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(data)


def _public(key: object) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined, no-any-return]


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_OCTETS + 1)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > MAX_FILE_OCTETS:
        raise KeyFileError(f"{path} is too large to be a key or a certificate.")
    return data
