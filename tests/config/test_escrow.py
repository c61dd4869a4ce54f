"""The drill: the key-encryption key is lost, two sheets of paper bring it back, and old mail opens again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from config.cli import relais
from trust.store.blobs import BlobStore
from trust.vault import KeyVault, VaultError


def run(*arguments: str | Path, typed: str | None = None) -> Result:
    return CliRunner().invoke(relais, [*map(str, arguments)], input=typed)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    place = tmp_path / "gateway"
    KeyVault.create(place / "vault")
    return place


def test_the_drill(state: Path, tmp_path: Path) -> None:
    mail = BlobStore(state / "blobs", KeyVault.open(state / "vault")).put("mta-content", b"an old mail")
    told = run("keys", "escrow", "--state", state, "--out", tmp_path / "sheets", "--json")
    assert told.exit_code == 0, told.output
    rows = json.loads(told.output)
    sheets = [Path(row["file"]) for row in rows]
    assert len(sheets) == 2 and all(sheet.stat().st_mode & 0o077 == 0 for sheet in sheets)
    kek = (state / "vault" / "kek").read_bytes()
    assert all(kek.hex() not in sheet.read_text() for sheet in sheets)

    (state / "vault" / "kek").unlink()
    with pytest.raises(VaultError):
        KeyVault.open(state / "vault")
    alone = run("keys", "recover", sheets[0], "--state", state)
    assert alone.exit_code == 1 and "2 different shares are needed" in alone.output
    assert not (state / "vault" / "kek").exists()

    back = run("keys", "recover", *sheets, "--state", state)
    assert back.exit_code == 0, back.output
    assert (state / "vault" / "kek").read_bytes() == kek
    assert (state / "vault" / "kek").stat().st_mode & 0o777 == 0o600
    assert BlobStore(state / "blobs", KeyVault.open(state / "vault")).get("mta-content", mail) == b"an old mail"
    again = run("keys", "recover", *sheets, "--state", state)
    assert again.exit_code == 1 and "there already" in again.output


def test_shares_typed_at_the_prompt_and_a_slip_of_the_pen(state: Path, tmp_path: Path) -> None:
    rows = json.loads(run("keys", "escrow", "--state", state, "--json").output)
    one, two = (row["words"] for row in rows)
    kek = (state / "vault" / "kek").read_bytes()
    answered = run("keys", "recover", "--out", tmp_path / "kek", "--state", state, typed=f"{one}\n{two} oops\n{two}\n")
    assert answered.exit_code == 0, answered.output
    assert "here are 34" in answered.output
    assert (tmp_path / "kek").read_bytes() == kek


def test_sheets_of_another_gateway_are_told_apart(state: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    KeyVault.create(other / "vault")
    for place, name in ((state, "mine"), (other, "theirs")):
        assert run("keys", "escrow", "--state", place, "--out", tmp_path / name).exit_code == 0
    mine, theirs = (sorted((tmp_path / name).iterdir()) for name in ("mine", "theirs"))
    (state / "vault" / "kek").unlink()
    wrong = run("keys", "recover", *theirs, "--state", state)
    assert wrong.exit_code == 1 and "is not that of the vault" in wrong.output
    mixed = run("keys", "recover", mine[0], theirs[1], "--state", state)
    assert mixed.exit_code == 1 and "different" in mixed.output
    twice = run("keys", "escrow", "--state", other, "--out", tmp_path / "theirs")
    assert twice.exit_code == 1 and "not overwritten" in twice.output


def test_a_key_that_is_not_the_vaults_is_not_escrowed(state: Path) -> None:
    (state / "vault" / "kek").write_bytes(bytes(32))
    told = run("keys", "escrow", "--state", state)
    assert told.exit_code == 1 and "not the key this vault was made with" in told.output
