"""The keys mailboxes are encrypted with at rest: one ring for each, sealed by the vault beside the mail it opens.

Dovecot's mail_crypt writes every mail to the public key of the ring's newest generation and opens it with whichever
generation it was written to. Dovecot holds no key itself: it is handed the ring with each answer about where a mailbox
lives (`mta.mailboxes.serving`) and keeps it in the memory of the process that serves the mailbox. A copied or stolen
disk holds ciphertext and a ring that nothing but the vault's key-encryption key opens.
"""

from __future__ import annotations

import base64
import json
import os
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from trust.sealing import VaultError
from trust.store.durable import make_private_directory, write_durably

RING = "mailbox.key"
"""Its file in the mailbox's home and in a backup."""
_LARGEST_RING = 64 * 1024
_REMEMBERED = 10_000
"""Rings kept opened, each as long as its file is the one it was."""
_MOST_GENERATIONS = 16
"""Each is some 360 octets in an answer of which Dovecot takes 8,192."""
_ENCRYPTED = b"CRYPTED\x03\x07"
"""How Dovecot begins what it encrypts (lib-dcrypt, `istream-decrypt.h`)."""
_BEGINNING = 4096
"""In it a mail begins (sdbox: a header of some tens of octets before it)."""


class Sealing(Protocol):
    """What is needed of `trust.vault.KeyVault`."""

    def seal(self, plaintext: bytes, context: bytes) -> bytes: ...

    def unseal(self, sealed: bytes, context: bytes) -> bytes: ...

    def pseudonym(self, label: str, *parts: str) -> str: ...


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The generations of one mailbox's key, the newest first: PKCS#8 in PEM, NIST P-256."""

    generations: tuple[str, ...]
    public: str
    """Of the newest, SubjectPublicKeyInfo in PEM."""

    def fields(self) -> dict[str, str]:
        """Dovecot's userdb fields (mail_crypt, "global" keys given for one user): PEM in base64, without line ends."""
        names = ["mail_crypt_global_private_key"]
        names += [f"mail_crypt_global_private_key{number}" for number in range(2, len(self.generations) + 1)]
        given = {name: _base64(pem) for name, pem in zip(names, self.generations, strict=True)}
        return {"mail_crypt_global_public_key": _base64(self.public), **given}

    def with_older(self, other: KeyRing) -> KeyRing:
        """Also opens what `other` opens; goes on writing with its own newest."""
        return KeyRing(tuple(dict.fromkeys((*self.generations, *other.generations))), self.public)


class MailboxKeys:
    """Rings by mailbox. Thread-safe; several processes may share the homes.

    Every method raises `VaultError` when a ring was altered or lost, or belongs to another mailbox or vault; OSError
    when the disk refuses. Neither text holds a key or an address.
    """

    def __init__(self, vault: Sealing) -> None:
        self._vault = vault
        self._opened: OrderedDict[tuple[str, Path], tuple[tuple[int, int, int], KeyRing]] = OrderedDict()
        self._lock = Lock()

    def ring(self, address: str, home: Path) -> KeyRing:
        """The mailbox's ring, made durably the first time it is asked for; never instead of one that was lost."""
        path = home / RING
        with suppress(FileNotFoundError):
            return self.read(address, path)
        if _holds_encrypted_mail(home / "mail"):
            raise VaultError("a mailbox has lost its key ring: bring it back with relais mailbox restore")
        make_private_directory(home)
        with suppress(FileExistsError):  # another process was first: its ring counts
            self._write(address, path, _new_ring(), replace=False)
        return self.read(address, path)

    def renew(self, address: str, home: Path) -> KeyRing:
        """Write with a new generation from the next session on; what is there stays readable, and stays as it is."""
        ring = _new_ring().with_older(self.ring(address, home))
        self._write(address, home / RING, ring, replace=True)
        return ring

    def adopt(self, address: str, home: Path, other: Path) -> KeyRing:
        """Let the mailbox read what the ring in the file `other` (of a backup of the same mailbox) opens.

        A mailbox without a ring gets that one, so that it goes on as it was elsewhere.
        """
        theirs = self.read(address, other)
        path = home / RING
        if not path.exists():
            make_private_directory(home)
            with suppress(FileExistsError):
                self._write(address, path, theirs, replace=False)
        mine = self.read(address, path)
        joined = mine.with_older(theirs)
        if joined != mine:
            self._write(address, path, joined, replace=True)
        return joined

    def read(self, address: str, path: Path) -> KeyRing:
        """Raises FileNotFoundError, `VaultError`."""
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            as_it_is = (found.st_ino, found.st_mtime_ns, found.st_size)
            with self._lock:
                known = self._opened.get((address, path))
                if known is not None and known[0] == as_it_is:
                    self._opened.move_to_end((address, path))
                    return known[1]
            sealed = file.read(_LARGEST_RING)
        try:
            generations = tuple(json.loads(self._vault.unseal(sealed, _context(address))))
            ring = KeyRing(generations, _public(generations[0]))
        except (ValueError, TypeError, IndexError):
            raise VaultError("a mailbox's key ring holds no key") from None
        with self._lock:
            self._opened[address, path] = (as_it_is, ring)
            self._opened.move_to_end((address, path))
            if len(self._opened) > _REMEMBERED:
                self._opened.popitem(last=False)
        return ring

    def _write(self, address: str, path: Path, ring: KeyRing, *, replace: bool) -> None:
        if len(ring.generations) > _MOST_GENERATIONS:
            raise VaultError("a mailbox's key ring would have more generations than Dovecot can be told")
        sealed = self._vault.seal(json.dumps(ring.generations).encode(), _context(address))
        write_durably(path, sealed, replace=replace)


def _holds_encrypted_mail(mail: Path) -> bool:
    """Whether a mail below that directory (sdbox: files `u.<number>`) needs a key."""
    for each in mail.rglob("u.*"):
        with suppress(FileNotFoundError), each.open("rb") as file:
            if _ENCRYPTED in file.read(_BEGINNING):
                return True
    return False


def _context(address: str) -> bytes:
    return b"mailbox key:" + address.lower().encode("utf-8", "surrogatepass")


def _new_ring() -> KeyRing:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")
    return KeyRing((pem,), _public(pem))


def _public(pem: str) -> str:
    key = load_pem_private_key(pem.encode("ascii"), None).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def _base64(pem: str) -> str:
    return base64.b64encode(pem.encode("ascii")).decode("ascii")
