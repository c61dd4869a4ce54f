"""Encrypted blobs: kept whole, or refused whole."""

import os
import shutil
import stat
from pathlib import Path

import pytest

from trust.store.blobs import BlobDamagedError, BlobMissingError, BlobStore
from trust.vault import KeyVault

CONTENT = b"Hemoglobine 8.1 g/dL " * 500


@pytest.fixture(scope="module")
def vault(tmp_path_factory):
    return KeyVault.create(tmp_path_factory.mktemp("keys") / "vault")


@pytest.fixture
def blobs(tmp_path, vault):
    return BlobStore(tmp_path / "blobs", vault)


def file_of(tmp_path, blob_id):
    return tmp_path / "blobs" / blob_id[:2] / blob_id[2:]


@pytest.mark.parametrize("content", [b"", b"x", CONTENT, os.urandom(3_000_000)], ids=["empty", "byte", "text", "3M"])
def test_kept_and_read(blobs, content) -> None:
    assert blobs.get("message", blobs.put("message", content)) == content


def test_encrypted_and_private(blobs, tmp_path) -> None:
    first, second = blobs.put("message", CONTENT), blobs.put("message", CONTENT)
    stored = file_of(tmp_path, first).read_bytes()
    assert b"Hemoglobine" not in stored
    assert stored[-100:] != file_of(tmp_path, second).read_bytes()[-100:]
    for path in (tmp_path / "blobs").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_any_altered_byte_is_seen(blobs, tmp_path) -> None:
    blob_id = blobs.put("message", b"short")
    file = file_of(tmp_path, blob_id)
    intact = file.read_bytes()
    for position in range(len(intact)):
        altered = bytearray(intact)
        altered[position] ^= 1
        file.write_bytes(altered)
        with pytest.raises(BlobDamagedError):
            blobs.get("message", blob_id)
    for length in range(len(intact)):
        file.write_bytes(intact[:length])
        with pytest.raises(BlobDamagedError):
            blobs.get("message", blob_id)
    file.write_bytes(intact + b"\0")
    with pytest.raises(BlobDamagedError):
        blobs.get("message", blob_id)
    file.write_bytes(intact)
    assert blobs.get("message", blob_id) == b"short"


def test_swapped_files_are_seen(blobs, tmp_path) -> None:
    one, other = blobs.put("message", b"one"), blobs.put("message", b"other")
    shutil.copyfile(file_of(tmp_path, one), file_of(tmp_path, other))
    with pytest.raises(BlobDamagedError):
        blobs.get("message", other)


def test_another_kind_or_vault_is_refused(blobs, tmp_path) -> None:
    blob_id = blobs.put("message", b"one")
    with pytest.raises(BlobDamagedError):
        blobs.get("document", blob_id)
    stranger = BlobStore(tmp_path / "blobs", KeyVault.create(tmp_path / "other"))
    with pytest.raises(BlobDamagedError):
        stranger.get("message", blob_id)


@pytest.mark.parametrize("blob_id", ["0" * 32, "", "../../etc/passwd", "ab/../../../x", "0" * 31 + "\n", "A" * 32])
def test_missing(blobs, blob_id) -> None:
    with pytest.raises(BlobMissingError):
        blobs.get("message", blob_id)
    blobs.delete(blob_id)


def test_delete_and_ids(blobs) -> None:
    kept = {blobs.put("message", b"x") for _ in range(20)}
    gone = kept.pop()
    blobs.delete(gone)
    blobs.delete(gone)
    with pytest.raises(BlobMissingError):
        blobs.get("message", gone)
    listed = dict(blobs.ids())
    assert set(listed) == kept
    assert all(written > 1_600_000_000 for written in listed.values())


def test_file_and_directory_are_synced_before_put_returns(blobs, tmp_path, monkeypatch) -> None:
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(str(Path(f"/proc/self/fd/{fd}").readlink())), real(fd)))
    blob_id = blobs.put("message", b"x")
    assert len(synced) == 2
    assert "/unfinished/" in synced[0]
    assert synced[1] == str(file_of(tmp_path, blob_id).parent)


def test_a_refusing_disk_leaves_nothing(blobs, tmp_path, monkeypatch) -> None:
    def full(_fd) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        blobs.put("message", CONTENT)
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []


def test_unfinished_files_are_never_blobs_and_are_dropped_when_old(blobs, vault, tmp_path) -> None:
    old, fresh = tmp_path / "blobs/unfinished/.old.tmp", tmp_path / "blobs/unfinished/.fresh.tmp"
    old.write_bytes(b"half")
    fresh.write_bytes(b"half")
    os.utime(old, (1, 1))
    assert list(blobs.ids()) == []
    BlobStore(tmp_path / "blobs", vault)
    assert not old.exists()
    assert fresh.exists()
