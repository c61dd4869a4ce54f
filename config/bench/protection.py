"""The reference for protecting a mail: `openssl cms`, one process for each operation, as a shell script would do it.

Only the benchmark starts openssl; the product never does. The keys are made here, of the sizes the road uses.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from config.bench.child import BenchError

_COMMON = ["openssl", "cms", "-binary", "-outform", "DER"]
DESCRIPTION = "openssl cms -sign then openssl cms -encrypt, a process each (RSA-3072 SHA-256, AES-256-GCM, RSA-OAEP)"


def sign_command(certificate: str, key: str) -> list[str]:
    """Signs what it reads with SHA-256, detached, into DER; PEM files."""
    return [*_COMMON, "-sign", "-md", "sha256", "-signer", certificate, "-inkey", key]


def encrypt_command(certificate: str) -> list[str]:
    """Encrypts what it reads with AES-256-GCM for an RSA recipient, OAEP with SHA-256, into DER; PEM file."""
    oaep = ["-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256"]
    return [*_COMMON, "-encrypt", "-aes-256-gcm", "-recip", certificate, *oaep]


class OpenSslCms:
    """Signs and encrypts mails, `at_once` at the same time."""

    def __init__(self, place: Path, at_once: int) -> None:
        self._at_once = at_once
        self._certificate, self._key = place / "certificate.pem", place / "key.pem"
        _make_pair(self._certificate, self._key)
        self._sign = [*sign_command(str(self._certificate), str(self._key)), "-nodetach"]
        self._encrypt = encrypt_command(str(self._certificate))

    def mails_per_second(self, count: int, size: int) -> float:
        """Protect `count` mails of `size` bytes. Raises `BenchError` when openssl cannot."""
        mail = os.urandom(size)
        began = time.perf_counter()
        with ThreadPoolExecutor(self._at_once) as threads:
            for _ in threads.map(lambda _: self._protect(mail), range(count)):
                pass
        return count / (time.perf_counter() - began)

    def _protect(self, mail: bytes) -> bytes:
        return run(self._encrypt, run(self._sign, mail))


def run(command: list[str], content: bytes) -> bytes:
    """What `command` prints when it is given `content`. Raises `BenchError` when it is missing or fails."""
    try:
        done = subprocess.run(command, input=content, capture_output=True, check=True)
    except FileNotFoundError as error:
        raise BenchError("the reference needs the program openssl: install it") from error
    except subprocess.CalledProcessError as error:
        raise BenchError(f"openssl cms failed: {error.stderr.decode(errors='replace')[-300:]}") from error
    return done.stdout


@contextmanager
def openssl_cms(at_once: int) -> Iterator[OpenSslCms]:
    """With keys of its own in a directory that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="relais-bench-") as place:
        yield OpenSslCms(Path(place), at_once)


def _make_pair(certificate: Path, key: Path) -> None:
    private = rsa.generate_private_key(public_exponent=65537, key_size=3072)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "relais bench")])
    now = datetime.now(UTC)
    issued = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(issued.public_bytes(Encoding.PEM))
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
