"""Keys and certificates from files at hand, in PEM, DER or PKCS #12: for commands that work without a vault.

What is in a file says `trust.keyfiles`; here its sentences get the file's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography import x509

from trust.generations import encoded, encoded_key
from trust.keyfiles import MAX_FILE_BYTES, KeyFileError, PassphraseError, read_certificates, read_keys
from trust.softkeys import CertifiedKey, PrivateKey, SoftwareKey

__all__ = ["KeyFileError", "Passphrase", "load_certificates", "load_keys", "read_file"]

_MOST_CERTIFICATES = 1000
"""Authorities of a network come in one file, too."""

Passphrase = Callable[[Path], bytes]
"""Asked for once per encrypted file. May raise KeyFileError."""


def load_certificates(path: Path) -> list[x509.Certificate]:
    """The certificates in a PEM, DER or PKCS#7 file. Raises KeyFileError, a sentence that names the file."""
    data = read_file(path)
    try:
        return read_certificates(data, _MOST_CERTIFICATES)
    except KeyFileError as error:
        raise KeyFileError(f"{path} {error}.") from None


def load_keys(
    keys: Sequence[Path], certificates: Sequence[Path], passphrase: Passphrase
) -> tuple[list[CertifiedKey], list[x509.Certificate]]:
    """Private keys with the certificates they belong to, and all certificates. Raises KeyFileError.

    Which certificate belongs to which key is found out by the public key; the others are the chain, roots left out.
    """
    private: list[tuple[Path, PrivateKey]] = []
    known: list[x509.Certificate] = [certificate for path in certificates for certificate in load_certificates(path)]
    for path in keys:
        found, along = _load_keys(path, passphrase)
        private += ((path, key) for key in found)
        known += along
    known = list(dict.fromkeys(known))
    by_key: dict[bytes, list[x509.Certificate]] = {}
    for certificate in known:
        by_key.setdefault(encoded_key(certificate), []).append(certificate)
    held: list[CertifiedKey] = []
    for path, key in private:
        own = by_key.get(encoded(key.public_key()), [])
        if not own:
            raise KeyFileError(f"None of the certificates belongs to the key in {path}: add its --certificate.")
        chain = tuple(each for each in known if each not in own and each.subject != each.issuer)
        held += (CertifiedKey(SoftwareKey(key), certificate, chain) for certificate in own)
    return held, known


def read_file(path: Path) -> bytes:
    """No more than shows that it is too large. Raises KeyFileError."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}.") from error


def _load_keys(path: Path, passphrase: Passphrase) -> tuple[list[PrivateKey], list[x509.Certificate]]:
    data = read_file(path)
    try:
        return _read_keys(path, data, None)
    except PassphraseError:
        return _read_keys(path, data, passphrase(path))


def _read_keys(path: Path, data: bytes, secret: bytes | None) -> tuple[list[PrivateKey], list[x509.Certificate]]:
    try:
        return read_keys(data, secret)
    except KeyFileError as error:
        raise type(error)(f"{path} {error}.") from None
