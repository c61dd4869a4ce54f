"""What a backup says of itself: the manifest of one gateway's part, and the rows of its listing.

The manifest stands in the clear and names nobody: when, which version, how much, the SHA-256 of `objects.sha256` and of
the listing, and a MAC under the gateway's key-encryption key. `objects.sha256` has a line for each object in the form
sha256sum(1) reads. The listing, sealed, says which object is which file.
"""

from __future__ import annotations

import hmac
from typing import Literal

import msgspec

from trust.escrow import fingerprint
from trust.sealing import KEK_BYTES, Sealing

FORMAT = 1
MANIFEST, OBJECTS, LISTING = "manifest.json", "objects.sha256", "listing"

Root = Literal["state", "shared", "outside"]
"""Where a path starts: the gateway's state, the state of `relais up` around it, or the root of the machine."""


class FileDigest(msgspec.Struct, frozen=True):
    sha256: str
    size: int


class Row(msgspec.Struct, frozen=True, array_like=True):
    """One file of the gateway, and the object that holds it."""

    object: str
    root: Root
    path: str
    size: int
    """Of the file itself."""
    mode: int
    """Its permission bits."""
    sealed: bool
    """False: the file is ciphertext already and stands in the backup as it is."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Of one gateway in one cut."""

    format: int = FORMAT
    relais: str
    """Version that wrote it."""
    cut: str
    """Its name in the store: a renamed cut, or a part of another one, is not taken for this."""
    places: tuple[str, ...]
    """`place` of each part of the cut."""
    cut_at: str
    """RFC 3339, UTC: the moment the database was fixed; what came later is not in it."""
    place: str
    """The gateway's directory below the state of `relais up`; empty for a gateway of its own."""
    host: str
    schema: str
    """Revision of the database's schema."""
    key: str
    """Fingerprint of the key-encryption key, which is not in the backup."""
    objects: int
    size: int
    """Bytes of all objects."""
    blobs: int
    messages: int
    waiting: int
    """Deliveries that had not ended at the cut."""
    journal: dict[str, int]
    """Entries by writer."""
    journal_name: str
    """Of the journal in its heads."""
    head: int
    """Number of the last signed head; 0 for none."""
    vault: str
    """Where the vault is, below the state."""
    elsewhere: dict[str, str]
    """What stood outside of the state and comes back into it: name there, and the path it had."""
    notes: tuple[str, ...] = ()
    """What is not in it, a sentence each."""
    objects_file: FileDigest
    listing_file: FileDigest
    mac: str = ""

    def signed(self, vault: Sealing) -> Manifest:
        return msgspec.structs.replace(self, mac=self._mac(vault))

    def genuine(self, vault: Sealing) -> bool:
        return hmac.compare_digest(self.mac, self._mac(vault))

    def _mac(self, vault: Sealing) -> str:
        plain = msgspec.json.encode(msgspec.structs.replace(self, mac=""), order="deterministic")
        return vault.pseudonym("backup manifest", plain.decode())


def fingerprint_of(kek: bytes) -> str:
    """The same of the bare key. Raises ValueError when it is none."""
    if len(kek) != KEK_BYTES:
        raise ValueError(f"a key-encryption key has {KEK_BYTES} bytes")
    return fingerprint(kek)
