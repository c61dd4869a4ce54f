"""The vault's files: keys with their certificates and keys that wait for one, each sealed in a file of its own.

Each file is written aside and renamed, and whoever writes holds `lock`: whatever is killed, every file is the old one
or the new one. Who reads needs no lock and looks each time, so that a running gateway uses what another process
installs or retires. A damaged file is left out, told, and hides no other.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import msgspec
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_private_key

from trust.generations import (
    HeldKey,
    KeyFile,
    KeyUse,
    RequestFile,
    encoded,
    encoded_key,
    mailbox_name,
    newest_first,
    public_key_of,
)
from trust.keyfiles import kind_of_file
from trust.keys import KeyUnavailableError
from trust.pkcs11 import KeyElsewhere, Token
from trust.sealing import Sealing, VaultError
from trust.softkeys import KINDS, KeyOperations, PublicKey, SoftwareKey
from trust.store.durable import make_private_directory, sync_directory, write_durably

log = structlog.get_logger(__name__)

_KEYS_IN_MEMORY = 4096
_SETTLED_NS = 2_000_000_000
_NOT_CONFIGURED = "the key is in a token, and none is configured: fill in [keys] of relais.toml"


@dataclass(frozen=True, slots=True)
class Damaged:
    """A file of the vault that cannot be used."""

    file: Path
    reason: str
    """One sentence; never whose key it is, which nobody can know any more."""


@dataclass(frozen=True, slots=True)
class _Version:
    """What a directory was when it was looked at: whoever adds, replaces or removes a file makes it another one."""

    inode: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, directory: Path) -> _Version:
        """Before it is listed: what changes meanwhile is then seen the next time. Raises FileNotFoundError."""
        status = os.stat(directory)  # noqa: PTH116 - for each message
        return cls(status.st_ino, status.st_mtime_ns, status.st_ctime_ns)

    def settled(self) -> bool:
        """Whether a change from now on is told from this one: the clock of a file system ticks some hundred times a
        second only. In doubt it is not."""
        return 0 < self.changed_ns < time.time_ns() - _SETTLED_NS


class SealedKeys(Sealing):
    """The files below one root, under some master keys, the oldest first. Thread-safe."""

    def __init__(self, root: Path, masters: Sequence[bytes], token: Token | None = None) -> None:
        super().__init__(masters)
        self.root = root
        self.token = token
        self._keys = root / "keys"
        self._requests = root / "requests"
        self._directory = lru_cache(maxsize=_KEYS_IN_MEMORY)(self._directory_of)
        self._load = lru_cache(maxsize=_KEYS_IN_MEMORY)(self._load_version)
        self._listed: dict[Path, tuple[_Version, list[HeldKey]]] = {}

    def keep(self, record: KeyFile, certificate: x509.Certificate, request: Path | None = None) -> None:
        """Keep a generation with this certificate, durably, and forget the request it answers.

        One that is kept already, above all one that is retired, stays as it is, but for a chain that is brought now.
        Raises OSError, `VaultError` when the request was discarded meanwhile.
        """
        directory = self._directory(record.address)
        make_private_directory(directory)
        file = directory / self.pseudonym("key file", record.use.value, certificate.fingerprint(SHA256()).hex())
        with exclusively(self.root):
            _remove_unfinished(directory)
            if not file.exists() or self.damage_of(file) is not None:
                if request is not None and not request.exists():
                    raise VaultError("the request for this certificate was discarded meanwhile, with its key")
                self.write(file, record)
                sync_directory(self._keys)
            elif len(record.certificates) > 1:
                known = self.record(file)
                if known.certificates != record.certificates:
                    self.write(file, msgspec.structs.replace(known, certificates=record.certificates))
            if request is not None:
                request.unlink(missing_ok=True)
                sync_directory(request.parent)

    def keep_request(self, record: RequestFile, public_key: PublicKey) -> None:
        """Durably; raises OSError."""
        make_private_directory(self._requests)
        file = self._requests / self.pseudonym("key request", encoded(public_key).hex())
        with exclusively(self.root):
            _remove_unfinished(self._requests)
            self.write(file, record)

    def write(self, file: Path, record: KeyFile | RequestFile) -> None:
        """Seal a record into its file, while the lock is held."""
        write_durably(file, self.seal(msgspec.msgpack.encode(record), _file_context(file)))

    def seal_anew(self) -> int:
        """Every readable file under the newest master key, while the lock is held; returns how many there were."""
        done = 0
        for file in self.all_files():
            with suppress(ValueError, FileNotFoundError):  # a damaged one stays as it is, for `damaged` to tell
                content = self.unseal(file.read_bytes(), _file_context(file))
                write_durably(file, self.seal(content, _file_context(file)))
                done += 1
        return done

    def _directory_of(self, address: str) -> Path:
        return self._keys / self.pseudonym("key address", mailbox_name(address))

    def held(self, address: str, use: KeyUse) -> tuple[list[HeldKey], bool]:
        """Newest first, and whether a file could not be used.

        The directory is looked at each time, so that what another process installs or retires is seen; it is listed
        again, and a file read again, when it is another one than before.
        """
        directory = self._directory(address)
        try:
            version = _Version.of(directory)
        except FileNotFoundError:
            return [], False
        known = self._listed.get(directory)
        if known is not None and known[0] == version:
            return [each for each in known[1] if each.use is use], False
        every, damaged = self._list(directory)
        every.sort(key=lambda each: newest_first(each.certificate), reverse=True)
        if not damaged and version.settled():
            if len(self._listed) >= _KEYS_IN_MEMORY:
                self._listed.clear()
            self._listed[directory] = version, every
        return [each for each in every if each.use is use], damaged

    def _list(self, directory: Path) -> tuple[list[HeldKey], bool]:
        held: list[HeldKey] = []
        damaged = False
        for file, status in _key_files(directory):
            try:
                loaded = self._load(file, status.st_ino, status.st_mtime_ns)
            except FileNotFoundError:
                continue
            except OSError as error:
                log.error("vault.key-unreadable", file=file.name, error=error.strerror)
                loaded = None
            if loaded is None:
                damaged = True
            else:
                held.append(loaded)
        return held, damaged

    def _load_version(self, file: Path, _inode: int, _written: int) -> HeldKey | None:
        """None for a file that is damaged, which is logged once. Raises OSError."""
        try:
            record = self.record(file)
            certificate, *chain = (x509.load_der_x509_certificate(each) for each in record.certificates)
            return HeldKey(
                address=record.address,
                use=record.use,
                operations=self._operations(record, certificate),
                certificate=certificate,
                chain=tuple(chain),
                retired_at=record.retired_at,
                in_token=bool(record.token_key),
                token_key=record.token_key,
            )
        except (ValueError, msgspec.MsgspecError):
            log.error("vault.key-damaged", file=file.name)
            return None

    def _operations(self, record: KeyFile, certificate: x509.Certificate) -> KeyOperations:
        if record.token_key:
            if self.token is None:
                return KeyElsewhere(_NOT_CONFIGURED)
            return self.token.key(record.token_key, certificate.public_key())
        key = _loaded(record.private_key)
        if not isinstance(key, KINDS):
            raise VaultError("a key file holds a kind of key this version does not know")
        return SoftwareKey(key)

    def required_token(self) -> Token:
        if self.token is None:
            raise KeyUnavailableError(_NOT_CONFIGURED)
        return self.token

    def record(self, file: Path) -> KeyFile:
        return msgspec.msgpack.decode(self.unseal(file.read_bytes(), _file_context(file)), type=KeyFile)

    def records(self) -> Iterator[tuple[Path, KeyFile]]:
        """Every readable key file; the others are `damaged`."""
        for directory in _directories(self._keys):
            for file, _ in _key_files(directory):
                with suppress(ValueError, msgspec.MsgspecError, OSError):
                    record = self.record(file)
                    x509.load_der_x509_certificate(record.certificates[0])
                    yield file, record

    def request_records(self) -> Iterator[tuple[Path, RequestFile, PublicKey]]:
        for file, _ in _key_files(self._requests):
            with suppress(ValueError, msgspec.MsgspecError, OSError):
                record, public_key = self.request_record(file)
                yield file, record, public_key

    def request_record(self, file: Path) -> tuple[RequestFile, PublicKey]:
        content = self.unseal(file.read_bytes(), _file_context(file))
        record = msgspec.msgpack.decode(content, type=RequestFile)
        public_key = public_key_of(x509.load_der_x509_csr(record.request))
        if public_key is None:
            raise VaultError("a request holds a kind of key this version does not know")
        return record, public_key

    def all_files(self) -> Iterator[Path]:
        for directory in _directories(self._keys):
            yield from (file for file, _ in _key_files(directory))
        yield from (file for file, _ in _key_files(self._requests))

    def damage_of(self, file: Path) -> Damaged | None:
        try:
            if file.parent == self._requests:
                self.request_record(file)
                return None
            record = self.record(file)
            certificate, *_ = (x509.load_der_x509_certificate(each) for each in record.certificates)
            if not record.token_key:
                key = _loaded(record.private_key)
                if not isinstance(key, KINDS) or encoded(key.public_key()) != encoded_key(certificate):
                    return Damaged(file, "holds a key that is not that of its certificate")
        except FileNotFoundError:
            return None
        except OSError as error:
            return Damaged(file, f"cannot be read: {error.strerror}")
        except (ValueError, msgspec.MsgspecError):
            return Damaged(file, _what_is_wrong(file))
        return None


def _loaded(private_key: bytes) -> object:
    """Its primes were looked at when it was made or imported, and the seal says that it is that key: looking again
    would cost 30 ms a key."""
    return load_der_private_key(private_key, None, unsafe_skip_rsa_key_validation=True)


@contextmanager
def exclusively(root: Path) -> Iterator[None]:
    """One writer at a time, among threads and processes; the kernel frees the lock of one that is killed."""
    descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _directories(root: Path) -> list[Path]:
    try:
        return sorted(each for each in root.iterdir() if each.is_dir())
    except FileNotFoundError:
        return []


def _key_files(directory: Path) -> list[tuple[Path, os.stat_result]]:
    """Files and what tells one version from another; unfinished ones and those gone meanwhile left out."""
    found = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    with suppress(FileNotFoundError):
                        found.append((Path(entry.path), entry.stat()))
    except FileNotFoundError:
        return []
    return found


def _remove_unfinished(directory: Path) -> None:
    """What killed writers left; whoever calls holds the lock, so nobody is at work."""
    for file in directory.glob(".*.tmp"):
        file.unlink(missing_ok=True)


def _file_context(file: Path) -> bytes:
    """Binds a file to its place: moved to another mailbox it does not open."""
    return f"key file:{file.parent.name}/{file.name}".encode()


def _what_is_wrong(file: Path) -> str:
    kind = kind_of_file(file.read_bytes())
    if kind:
        return f"is {kind}, which nobody put there through Relais: remove it"
    return "was altered, moved, or sealed by another vault: restore it from your backup, or import its key again"
