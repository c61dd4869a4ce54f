"""How a vault is made, opened with its key-encryption key, and put under another one.

On disk, below the root: `kek`, unless systemd hands the key-encryption key over as the credential `relais-kek`; `ring`,
once that key was replaced (`trust.key_ring`); `check`, which tells whether the key is the one the rest was made with;
`keys/<pseudonym of the address>/<pseudonym of use and certificate>`; `requests/<pseudonym of the key>`, keys that wait
for their certificates; and `lock`, held by whoever writes (`trust.sealed_keys`).
"""

from __future__ import annotations

import hmac
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from trust.key_ring import (
    CREDENTIAL,
    MAX_MASTERS,
    Version,
    is_being_replaced,
    kek_file,
    read_kek,
    read_kek_from,
    read_ring,
    ring_version,
    write_ring,
)
from trust.pkcs11 import Token
from trust.sealed_keys import SealedKeys, exclusively
from trust.sealing import KEK_BYTES, VaultError
from trust.secret_files import credential
from trust.store.durable import make_private_directory, sync_directory, write_durably


class UnlockedKeys(SealedKeys):
    """The vault's files, opened with the key-encryption key."""

    def __init__(
        self, root: Path, masters: Sequence[bytes], token: Token | None = None, ring: Version = (0, 0)
    ) -> None:
        super().__init__(root, masters, token)
        self._ring_seen = ring

    @classmethod
    def exists(cls, root: Path) -> bool:
        """Whether a vault was made in `root`."""
        return (root / "kek").exists() or ((root / "check").exists() and credential(CREDENTIAL) is not None)

    @classmethod
    def create(cls, root: Path, token: Token | None = None) -> Self:
        """A new vault, under the credential `relais-kek` when systemd gives it, else a fresh key in the file `kek`.

        Raises `VaultError` when there is one, even without its key-encryption key, or the disk refuses.
        """
        try:
            make_private_directory(root / "keys")
            with exclusively(root):
                if cls.exists(root) or (root / "ring").exists() or any((root / "keys").iterdir()):
                    raise FileExistsError
                given = credential(CREDENTIAL)
                kek = read_kek_from(given) if given is not None else secrets.token_bytes(KEK_BYTES)
                vault = cls(root, (kek,), token)
                write_durably(root / "check", vault._check())
                if given is None:  # last: a vault with this file is complete
                    write_durably(root / "kek", kek, replace=False)
        except FileExistsError:
            raise VaultError(f"there is already a vault in {root}: open it instead") from None
        except OSError as error:
            raise VaultError(f"the vault in {root} cannot be created: {error.strerror}") from error
        return vault

    @classmethod
    def open(cls, root: Path, token: Token | None = None) -> Self:
        """An existing vault. Raises `VaultError` when its key file is missing, readable by others, or not its own."""
        try:
            if stat.S_IMODE(root.stat().st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
                raise VaultError(f"others can change the vault: run chmod 700 {root}, then check its keys")
            kek, file = read_kek(root)
            check = (root / "check").read_bytes()
            ring = ring_version(root)
            masters = read_ring(root, kek)
        except OSError as error:
            raise VaultError(f"the vault in {root} cannot be read: {error.strerror}") from error
        vault = cls(root, masters, token, ring)
        if not hmac.compare_digest(check, vault._check()):
            raise VaultError(f"{file} is not the key this vault was made with: restore the right one from your backup")
        return vault

    def renew_key(self, handed_over: Path | None = None) -> int:
        """Replace the key-encryption key, and seal every mailbox's key anew; returns how many files were.

        Durable and safe to be killed in: every moment the key that is there opens everything, and doing it again
        finishes. What is sealed elsewhere (messages, documents, the database) keeps the master key it is under.

        Where systemd has the key, the new one is written to `handed_over`, and old and new open the vault until
        `forget_old_key` under the new one. Raises `VaultError`, OSError.
        """
        with exclusively(self.root):
            old, file = read_kek(self.root)
            masters = read_ring(self.root, old)
            in_file = file == self.root / "kek"
            if in_file is not (handed_over is None):
                raise VaultError(
                    "the key-encryption key is in the vault itself: it is replaced there"
                    if in_file
                    else "systemd has the key-encryption key: say in which file it shall find the new one"
                )
            if len(masters) == MAX_MASTERS:
                raise VaultError(f"the key-encryption key was replaced {MAX_MASTERS} times, more than is kept")
            new = secrets.token_bytes(KEK_BYTES)
            masters = (*masters, secrets.token_bytes(KEK_BYTES))
            successor = handed_over or self.root / "kek.new"
            try:
                write_durably(successor, new, replace=handed_over is None)
            except FileExistsError:
                raise VaultError(f"{successor} exists: name a new file for the key") from None
            write_ring(self.root, masters, (old, new))
            if in_file:
                successor.replace(file)
                sync_directory(self.root)
                write_ring(self.root, masters, (new,))
            self._use(masters)
            self._ring_seen = ring_version(self.root)
            return self.seal_anew()

    def forget_old_key(self) -> None:
        """Let only the key-encryption key that is there now open the vault. Raises `VaultError`, OSError."""
        with exclusively(self.root):
            kek, _ = read_kek(self.root)
            write_ring(self.root, read_ring(self.root, kek), (kek,))
            (self.root / "kek.new").unlink(missing_ok=True)  # of one who was killed while replacing it
            self._ring_seen = ring_version(self.root)

    @property
    def has_two_keys(self) -> bool:
        """Whether another key-encryption key opens the vault besides the present one, or was made and not put in place.

        Raises `VaultError`, OSError.
        """
        return is_being_replaced(self.root) or (self.root / "kek.new").exists()

    def _renewed(self) -> bool:
        """Another process may have replaced the key-encryption key: then what it sealed since opens too."""
        for _ in range(2):  # key and ring are read one after the other, and may be replaced in between
            try:
                version = ring_version(self.root)
                if version == self._ring_seen or kek_file(self.root) is None:
                    return False
                masters = read_ring(self.root, read_kek(self.root)[0])
            except (OSError, VaultError):
                continue
            self._use(masters)
            self._ring_seen = version
            return True
        return False

    def _check(self) -> bytes:
        return self.pseudonym("vault check").encode()
