"""Files with keys and certificates that people bring: P12, PEM, DER, PKCS#7, under whatever name.

What is in a file is told from its content, never from its name: certificates arrive as `.key` and private keys as
`.der`. Whatever is wrong is one sentence (`KeyFileError`), and nothing of the content is ever in it.
"""

from __future__ import annotations

import base64
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    load_der_private_key,
    load_pem_private_key,
    pkcs7,
    pkcs12,
)

from trust.ber import DerError
from trust.key_derivations import MAX_KEYS, TooDearError, derivations_of, each_key_alone
from trust.softkeys import KINDS, PrivateKey

MAX_FILE_BYTES = 1 << 20
"""A file with more is none of these."""
MAX_CERTIFICATES = 32
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----[^-]*-----END \1-----")
_PRIVATE = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----")
_PRIVATE_BLOCK = re.compile(
    rb"-----BEGIN ([A-Z0-9 ]{0,30}PRIVATE KEY)-----(?:(?!-----BEGIN ).){1,65536}?-----END \1-----", re.DOTALL
)
_PBES2 = bytes.fromhex("06092a864886f70d01050d")
_PKCS12 = (bytes.fromhex("06092a864886f70d010701"), bytes.fromhex("06092a864886f70d010702"))
"""pkcs7-data, signedData: what the authSafe of a P12 is (RFC 7292 §4)."""


class KeyFileError(ValueError):
    """A file cannot be used. The text is one sentence that says what it is and what to do."""


class PassphraseError(KeyFileError):
    """The passphrase is missing or wrong."""


@dataclass(frozen=True, slots=True, repr=False)
class KeyPair:
    """A private key with its certificate."""

    key: PrivateKey
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    """Intermediates, leaf and root excluded."""


def kind_of_file(content: bytes) -> str:
    """What a file is, as words for a sentence; empty when it is none of what is known here."""
    if _PRIVATE.search(content):
        return "a private key"
    pem = _PEM.search(content)
    if pem:
        names = {
            b"CERTIFICATE": "a certificate",
            b"CERTIFICATE REQUEST": "a certificate request",
            b"NEW CERTIFICATE REQUEST": "a certificate request",
            b"PKCS7": "a PKCS#7 file",
            b"X509 CRL": "a revocation list",
            b"PUBLIC KEY": "a public key",
        }
        return names.get(pem[1], "a PEM file")
    if b"-----BEGIN " in content[:4096]:
        return "a truncated PEM file"
    if content[:1] != b"\x30":
        return ""
    if _is_private_der(content):
        return "a private key"
    for load, words in (
        (x509.load_der_x509_certificate, "a certificate"),
        (x509.load_der_x509_csr, "a certificate request"),
        (x509.load_der_x509_crl, "a revocation list"),
    ):
        if _loads(load, content):
            return words
    if content[:40].find(b"\x02\x01\x03") in range(2, 8) and any(each in content[:64] for each in _PKCS12):
        return "a P12 file"
    return ""


def read_certificates(content: bytes, most: int = MAX_CERTIFICATES) -> list[x509.Certificate]:
    """Every certificate of a PEM, DER or PKCS#7 file, in its order, at most `most`. Raises `KeyFileError`."""
    _check_size(content)
    if _PRIVATE.search(content) or _is_private_der(content):
        raise KeyFileError("is a private key, not a certificate: keep it to yourself, and give the certificate")
    found: Any = _certificates(content)
    if not found:
        kind = kind_of_file(content)
        if kind and kind != "a certificate":
            raise KeyFileError(f"is {kind}, not a certificate")
        if content[:1] == b"\x30" and _is_cut(content):
            raise KeyFileError("is cut short: transfer the certificate again")
        raise KeyFileError("holds no certificate that can be read (PEM, DER or PKCS#7)")
    if len(found) > most:
        raise KeyFileError(f"holds more than {most} certificates: give one mailbox's at a time")
    for each in found:
        problem = unreadable(each)
        if problem:
            raise KeyFileError(f"holds a certificate that {problem}: have it issued again")
    return list(found)


def read_keys(content: bytes, passphrase: bytes | None) -> tuple[list[PrivateKey], list[x509.Certificate]]:
    """Every private key of a P12 (RFC 7292), PEM or DER file, and the certificates beside them.

    Raises `PassphraseError` when the passphrase (its bytes, UTF-8) is missing or wrong, else `KeyFileError`.
    """
    _check_size(content)
    check_derivations(content)
    if b"-----BEGIN " in content:
        keys, certificates = _from_pem(content, passphrase)
    elif _is_private_der(content) and not _is_cut(content):
        keys, certificates = [_private_key(load_der_private_key, content, passphrase)], []
    else:
        keys, certificates = _from_p12(content, passphrase)
    known: list[PrivateKey] = []
    for key in keys:
        if not isinstance(key, KINDS):
            raise KeyFileError("holds a key of a kind that is not used for mail: RSA and elliptic curves are")
        if not any(key.public_key() == each.public_key() for each in known):
            known.append(key)
    return known, certificates


def read_key_pairs(content: bytes, passphrase: bytes | None) -> list[KeyPair]:
    """The keys of a P12 or PEM file, each with its certificate. Raises as `read_keys`."""
    keys, certificates = read_keys(content, passphrase)
    pairs = []
    for key in keys:
        own = key.public_key()
        mine = [each for each in certificates if not unreadable(each) and each.public_key() == own]
        if not mine:
            if content[:1] == b"\x30" and kind_of_file(content) == "a private key":
                raise KeyFileError("is a private key without a certificate: export both together as a P12 file")
            raise KeyFileError("holds a private key without its certificate: export both together")
        newest = max(mine, key=lambda each: each.not_valid_before_utc)
        pairs.append(KeyPair(key, newest, chain_of(newest, [each for each in certificates if each not in mine])))
    return pairs


def read_key_pair(content: bytes, passphrase: bytes | None) -> KeyPair:
    """The one key of a file, with its certificate. Raises as `read_keys`."""
    pair, *others = read_key_pairs(content, passphrase)
    if others:
        raise KeyFileError("holds several private keys: export each with its certificate in a file of its own")
    return pair


def chain_of(certificate: x509.Certificate, others: Sequence[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """Those of `others` that lead from `certificate` upwards, in order, roots left out.

    Of several with the issuer's name, who really signed: authorities renew their keys and keep their names. Whom to
    believe is `trust.paths`' business.
    """
    chain: list[x509.Certificate] = []
    left = [each for each in others if not unreadable(each) and each.subject != each.issuer]
    current = certificate
    while True:
        named = [each for each in left if each.subject == current.issuer]
        if not named:
            return tuple(chain)
        following = next((each for each in named if _signed(each, current)), named[0])
        left.remove(following)
        chain.append(following)
        current = following


def _signed(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # of whatever class: another key, an unknown algorithm
        return False
    return True


def unreadable(certificate: x509.Certificate) -> str:
    """Why a certificate breaks RFC 5280 §4.1 so that it cannot be used at all; empty when it does not.

    The parser reads lazily: names, dates, key and extensions are looked at here, once, instead of failing later.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if certificate.serial_number <= 0:
                return "has a serial number that is not positive (RFC 5280 §4.1.2.2)"
            if certificate.not_valid_after_utc < certificate.not_valid_before_utc:
                return "ends before it begins (RFC 5280 §4.1.2.5)"
            certificate.public_key()
            list(certificate.extensions)
            list(certificate.subject)
            list(certificate.issuer)
    except Exception:  # there is no common error class
        return "cannot be read"
    return ""


def check_derivations(content: bytes) -> None:
    """Raises `KeyFileError` for a file whose passphrase would take minutes to try."""
    try:
        for each in _encrypted_parts(content):
            derivations_of(each)
    except TooDearError:
        raise KeyFileError("demands too much work for its passphrase: export it again with fewer iterations") from None


def _encrypted_parts(content: bytes) -> Iterator[bytes]:
    """The DER in which a passphrase is turned into keys."""
    if b"-----BEGIN " not in content:
        yield content
        return
    for block in _PRIVATE_BLOCK.finditer(content):
        lines = block[0].splitlines()[1:-1]
        with suppress(ValueError):
            yield base64.b64decode(b"".join(line for line in lines if b":" not in line))


def _check_size(content: bytes) -> None:
    if not content.strip():
        raise KeyFileError("is empty")
    if len(content) > MAX_FILE_BYTES:
        raise KeyFileError("is too large to hold a key or certificates")


def _certificates(content: bytes) -> list[x509.Certificate]:
    if b"-----BEGIN " in content:
        loaders: tuple[Any, ...] = (x509.load_pem_x509_certificates, pkcs7.load_pem_pkcs7_certificates)
    else:
        loaders = (lambda data: [x509.load_der_x509_certificate(data)], pkcs7.load_der_pkcs7_certificates)
    for load in loaders:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return list(load(content))
        except Exception:  # noqa: S112 - of whatever class: the next form is tried
            continue
    return []


def _from_p12(content: bytes, passphrase: bytes | None) -> tuple[list[Any], list[x509.Certificate]]:
    if _is_cut(content):
        raise _not_a_p12(content)
    key, certificates = _load_p12(content, passphrase)
    if key is None:
        raise KeyFileError("holds no private key: export the certificate together with its key")
    keys = [key]
    try:
        alone = each_key_alone(content)
    except DerError:  # whoever reads P12 files for us is more patient, and finds the first key only
        alone = []
    if len(alone) > 1:
        keys = [_load_p12(each, passphrase)[0] for each in alone]
    return keys, certificates


def _load_p12(content: bytes, passphrase: bytes | None) -> tuple[Any, list[x509.Certificate]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            key, certificate, others = pkcs12.load_key_and_certificates(content, passphrase)
    except ValueError as error:
        said = str(error).lower()
        if "password" in said or ("pkcs12" in said and kind_of_file(content) == "a P12 file"):
            said = "needs its passphrase" if not passphrase else "does not open with this passphrase"
            raise PassphraseError(said) from None
        raise _not_a_p12(content) from None
    except Exception:
        raise _not_a_p12(content) from None
    return key, [each for each in (certificate, *others) if each is not None]


def _not_a_p12(content: bytes) -> KeyFileError:
    kind = kind_of_file(content)
    if kind == "a private key":
        return KeyFileError("is a private key without a certificate: export both together as a P12 file")
    if kind and kind != "a P12 file":
        return KeyFileError(f"is {kind}, not a P12 file: a key and its certificate are wanted together")
    if _is_cut(content):
        return KeyFileError("is cut short: transfer the P12 file again")
    return KeyFileError("cannot be read: it is damaged, or no P12 file")


def _from_pem(content: bytes, passphrase: bytes | None) -> tuple[list[Any], list[x509.Certificate]]:
    if not _PRIVATE.search(content):
        raise KeyFileError("holds no private key: export the certificate together with its key")
    # the old PEM encryption has header lines with hyphens
    blocks = [match[0] for match in _PRIVATE_BLOCK.finditer(content)]
    if len(blocks) > MAX_KEYS:
        raise KeyFileError(f"holds more than {MAX_KEYS} private keys: give one mailbox's at a time")
    keys = [_private_key(load_pem_private_key, each, passphrase) for each in blocks or [content]]
    return keys, _certificates(content) if b"-----BEGIN CERTIFICATE-----" in content else []


def _private_key(load: Any, content: bytes, passphrase: bytes | None) -> Any:
    try:
        return load(content, None)
    except TypeError:  # encrypted
        if not passphrase:
            raise PassphraseError("needs its passphrase") from None
    except Exception:
        raise KeyFileError("holds a private key that cannot be read: it is damaged, or cut short") from None
    try:
        return load(content, passphrase)
    except Exception:
        raise PassphraseError("does not open with this passphrase") from None


def _is_private_der(content: bytes) -> bool:
    if content[:1] != b"\x30":
        return False
    if _PBES2 in content[:64] and b"\x02\x01\x03" not in content[2:9]:  # which begins a P12
        return True
    try:
        load_der_private_key(content, None)
    except TypeError:  # encrypted
        return True
    except Exception:
        return _looks_like_private_key(content)
    return True


def _looks_like_private_key(content: bytes) -> bool:
    """A PKCS#1, SEC1 or PKCS#8 private key whose end is missing: SEQUENCE, then version 0 or 1 and what follows it."""
    head = content[2 + (content[1] & 0x7F if len(content) > 1 and content[1] & 0x80 else 0) :][:5]
    version, following = head[:3], head[3:4]
    pkcs = version == b"\x02\x01\x00" and following in (b"\x02", b"\x30")
    sec1 = version == b"\x02\x01\x01" and following == b"\x04"
    return pkcs or sec1


def _is_cut(content: bytes) -> bool:
    """Whether a DER file is shorter than its outermost length says."""
    if len(content) < 2 or content[0] != 0x30:
        return False
    if content[1] < 0x80:
        return len(content) < 2 + content[1]
    size = content[1] & 0x7F
    return len(content) < 2 + size + int.from_bytes(content[2 : 2 + size], "big")


def _loads(load: Any, content: bytes) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load(content)
    except Exception:
        return False
    return True
