"""Against published heads everything is found, whoever did it; making heads survives what may happen."""

import json
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, select, text, update

from tests.trust.journal_house import TABLES, House, at, rewrite
from trust.checkpoints import Checkpoints
from trust.journal import JournalEntry
from trust.journal_chain import GENESIS, entry_hash, fields_of, prefix_of
from trust.journal_check import against_published, check, uncovered
from trust.journal_entry import head_seal
from trust.kept_heads import all_checkpoints, last_checkpoint
from trust.proofs import ProofError, prove_consistency, prove_inclusion
from trust.signed_heads import KeyHeadSigner, SealedHeadSigner, parse_line, signature_holds
from trust.tables import journal_checkpoints, journal_entries, journal_heads, journal_payloads, journal_trees
from trust.vault import KeyVault, VaultError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def vault(tmp_path_factory):
    return KeyVault.create(tmp_path_factory.mktemp("keys") / "vault")


@pytest.fixture
def house(tmp_path, vault, database_url):
    """Ten entries and three, one head, five more entries, another head, two entries no head covers yet."""
    house = House(tmp_path, vault, database_url)
    house.append(10)
    house.append(3, node=1)
    assert house.publisher.turn() == ()
    house.append(5)
    assert house.publisher.turn() == ()
    house.append(2)
    yield house
    house.database.close()


def test_intact(house) -> None:
    assert house.outside() == ""
    assert len(house.heads.read_text().splitlines()) == 2
    verdict = house.database.read(lambda c: check(c, house.vault))
    assert (verdict.ok, verdict.entries, verdict.checkpoints) == (True, 22, 2)
    assert any("no key was given" in each for each in verdict.unchecked)


def test_nothing_new_is_no_head_and_silence_is_one_an_hour(house) -> None:
    house.publisher.turn()
    now = datetime.now(UTC)
    assert house.publisher.turn(now) == ()
    assert house.makers[0].last_number() == 3
    house.publisher.turn(now + timedelta(hours=2))
    assert house.makers[0].last_number() == 4
    house.publisher.turn(now + timedelta(hours=4), closing=True)
    assert house.makers[0].last_number() == 4
    assert house.outside() == ""


@pytest.mark.parametrize("change", ["drop", "insert"])
@pytest.mark.parametrize("writer", ["node-1", "node-2"])
def test_a_chain_rewritten_with_the_vault_is_found(house, change, writer) -> None:
    rewrite(house, writer, **({"drop": 2} if change == "drop" else {"insert_after": 2}))
    assert "signed" in house.inside()


@pytest.mark.parametrize("writer", ["node-1", "node-2"])
def test_a_chain_and_all_checkpoints_rewritten_with_the_vault_are_found_outside(house, writer) -> None:
    rewrite(house, writer, drop=2)
    house.tamper(delete(journal_checkpoints), delete(journal_trees))
    # the entries that recorded checkpoints too, or their number would tell
    house.tamper(*[delete(table).where(at(table, n)) for n in range(1, 99) for table in TABLES[:2]])
    house.tamper(delete(journal_heads).where(journal_heads.c.writer == "node-1"))
    house.append(20)
    house.makers[0].make()
    house.append(1)
    house.makers[0].make()
    assert house.inside() == ""
    assert "is not the one this database has" in house.outside()


def test_an_older_database_put_back_is_found_and_said_by_the_publisher(house) -> None:
    if not house.url.startswith("sqlite:///"):
        pytest.skip("what is in a database does not depend on how it was put back")
    file = Path(house.url.removeprefix("sqlite:///"))
    house.publisher.turn()
    house.database.close()
    shutil.copy(file, house.place / "old.db")
    house.open()
    house.append(4)
    house.publisher.turn()
    house.database.close()
    for name in ("relais.db-wal", "relais.db-shm"):
        file.with_name(name).unlink(missing_ok=True)
    shutil.copy(house.place / "old.db", file)
    house.open()
    assert house.inside() == ""
    assert "not in this database" in house.outside()
    house.append(1)
    assert any("an older database was put back" in each for each in house.publisher.turn())
    assert "two heads" in house.outside()


def test_a_cut_end_is_found_even_with_the_vault(house) -> None:
    with house.database.engine.connect() as connection:
        row = connection.execute(select(journal_entries).where(at(journal_entries, 4))).one()
    seal = head_seal(house.vault, "node-1", 4, row.hash)
    house.tamper(
        *[delete(table).where(table.c.writer == "node-1", table.c.sequence > 4) for table in TABLES[:2]],
        update(journal_heads).where(journal_heads.c.writer == "node-1").values(sequence=4, hash=row.hash, seal=seal),
    )
    assert "ends before" in house.inside()
    house.tamper(delete(journal_checkpoints), delete(journal_trees))
    assert house.inside() == ""
    assert "not in this database" in house.outside()


@pytest.mark.parametrize("column", ["head", "signature", "key", "algorithm", "writer", "sequence"])
@pytest.mark.parametrize("number", [1, 2])
def test_an_edited_checkpoint_is_found(house, column, number) -> None:
    with house.database.engine.connect() as connection:
        row = connection.execute(select(journal_checkpoints).where(journal_checkpoints.c.number == number)).one()
    value = getattr(row, column)
    other_digit = re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), str(value), count=1)
    changed = {"head": other_digit, "sequence": 3, "writer": "node-2"}.get(
        column, bytes(64) if isinstance(value, bytes) else "rsa-sha256"
    )
    assert changed != value
    house.tamper(update(journal_checkpoints).where(journal_checkpoints.c.number == number).values({column: changed}))
    assert house.inside() != ""


@pytest.mark.parametrize("number", [1, 2])
def test_a_removed_checkpoint_is_found(house, number) -> None:
    house.tamper(delete(journal_checkpoints).where(journal_checkpoints.c.number == number))
    assert "missing" in house.inside()


def test_a_payload_without_an_entry_and_one_put_back_are_found(house) -> None:
    with house.database.engine.connect() as connection:
        row = connection.execute(select(journal_payloads).where(at(journal_payloads, 3))).one()
    order = JournalEntry("dpo@operateur.example", "journal.erase", "done", reason="demande 12")
    house.database.transact(lambda c: house.nodes[0].erase(c, "node-1", 3, order))
    house.publisher.turn()
    assert house.outside() == ""
    house.tamper(journal_payloads.insert().values(row._mapping))
    assert "although" in house.inside(payloads=False)
    house.tamper(update(journal_payloads).where(at(journal_payloads, 3)).values(sequence=4711))
    assert "belongs to no entry" in house.inside(payloads=False)


def test_without_payloads_the_verdict_says_what_was_not_seen(house) -> None:
    house.tamper(update(journal_payloads).where(at(journal_payloads, 3)).values(subject="cd" * 32))
    verdict = house.database.read(lambda c: check(c, house.vault, payloads=False))
    assert verdict.ok
    assert any("payloads were not opened" in each for each in verdict.unchecked)
    assert "another subject" in house.inside()


@pytest.mark.parametrize("column", ["at", "payload_hash", "erases", "hash", "sequence"])
def test_values_of_the_wrong_kind_are_a_finding(house, column) -> None:
    house.tamper(text(f"UPDATE journal_entries SET {column} = 'x' WHERE writer = 'node-2' AND sequence = 2"))
    assert house.inside() != ""
    house.publisher.turn()


def test_a_head_by_another_key_is_not_believed(house, tmp_path) -> None:
    other = SealedHeadSigner.open(tmp_path / "other.key", house.vault)
    verdict = house.database.read(lambda c: check(c, house.vault, keys={other.public_key}))
    assert "key this journal does not know" in verdict.problem


@pytest.mark.parametrize("damage", ["lost", "peaks", "size", "nonsense"])
def test_a_damaged_tree_is_remade(house, damage) -> None:
    change = {
        "lost": delete(journal_trees),
        "peaks": update(journal_trees).values(peaks=bytes(64)),
        "size": update(journal_trees).values(size=7),
        "nonsense": text("UPDATE journal_trees SET peaks = 'x', size = 'y'"),
    }
    house.tamper(change[damage])
    assert house.publisher.turn() == ()
    assert house.outside() == ""


def test_a_broken_chain_is_not_signed_further_and_others_are(house) -> None:
    house.tamper(update(journal_entries).where(at(journal_entries, 18)).values(at=1))
    house.append(1, node=1)
    assert any("altered" in each for each in house.publisher.turn())
    head = house.database.read(last_checkpoint)
    sizes = {name: size for name, size, _, _ in json.loads(head.signed.text)["heads"]}
    assert sizes == {"node-1": 16, "node-2": 4}


def test_two_nodes_and_only_one_of_two_makers_wins(house, monkeypatch) -> None:
    house.append(1, node=1)
    first, second = house.makers
    sneaked = []
    original = Checkpoints._keep

    def late(self, connection, prepared, signed, at):
        if not sneaked:
            sneaked.append(1)
            original(second, connection, prepared, signed, at)
        return original(self, connection, prepared, signed, at)

    monkeypatch.setattr(Checkpoints, "_keep", late)
    assert first.make().checkpoint is None
    monkeypatch.undo()
    assert [each.number for each in house.database.read(lambda c: list(all_checkpoints(c)))] == [1, 2, 3]
    assert house.publisher.turn() == ()
    assert house.outside() == ""


def test_a_clock_set_back_breaks_nothing_and_is_said(house) -> None:
    house.append(2, at=datetime(2001, 1, 1, tzinfo=UTC))
    house.publisher.turn()
    assert house.outside() == ""
    verdict = house.database.read(lambda c: check(c, house.vault))
    assert any("clock was set back" in each for each in verdict.notes)


def test_killed_between_commit_and_publication(house) -> None:
    house.makers[0].make()
    house.database.close()
    house.open()
    assert len(house.heads.read_text().splitlines()) == 2
    house.publisher.turn()
    numbers = [json.loads(parse_line(line).text)["number"] for line in house.heads.read_text().splitlines()]
    assert numbers == [1, 2, 3, 4]  # that one, and one more for the start: it tells that publishing goes on
    assert house.outside() == ""


def test_killed_in_the_middle_of_a_line(house) -> None:
    whole = house.heads.read_text()
    house.heads.write_text(whole[:-100])
    house.publisher.turn()
    assert house.outside() == ""
    compared = house.database.read(lambda c: against_published(c, "house", house.heads.read_text().splitlines()))
    assert (compared.ours, compared.unreadable, compared.number) == (3, 1, 3)


def test_a_new_file_begins_with_the_last_head(house) -> None:
    house.heads.unlink()
    house.publisher.turn()
    assert house.outside() == ""
    assert len(house.heads.read_text().splitlines()) == 2


def test_what_no_head_covers_is_counted(house) -> None:
    lines = house.heads.read_text().splitlines()
    verdict = house.database.read(lambda c: against_published(c, "house", lines))
    assert house.database.read(lambda c: uncovered(c, verdict.sizes)) == 3  # two, and the record of the last head


def test_other_lines_are_left_aside(house) -> None:
    mine = house.heads.read_text().splitlines()
    lines = [
        f"<85>1 2026-11-21T00:00:00Z host relais 1 journal-head - {mine[0]}",
        "",
        "rubbish",
        '{"head":"x"}',
        "x" * 99,
    ]
    lines.append(mine[1].replace("house", "barn"))
    verdict = house.database.read(lambda c: against_published(c, "house", lines))
    assert (verdict.problem, verdict.ours, verdict.others, verdict.unreadable) == ("", 1, 1, 3)


def test_a_published_line_that_was_edited_is_not_believed(house) -> None:
    line = house.heads.read_text().splitlines()[0].replace('[\\"node-1\\",10', '[\\"node-1\\",11')
    assert "signature" in house.database.read(lambda c: against_published(c, "house", [line])).problem


def test_proofs_are_checked_without_us(house, tmp_path) -> None:
    for _ in range(5):
        house.append(7)
        house.publisher.turn()

    def verified(document, *, spoil="") -> subprocess.CompletedProcess[str]:
        file = tmp_path / "proof.json"
        written = json.dumps(document)
        file.write_text(written.replace(*spoil) if spoil else written)
        script = ROOT / "docs" / "check_journal.py"
        return subprocess.run(
            [sys.executable, "-I", script, file, house.heads], capture_output=True, text=True, check=False, cwd=tmp_path
        )

    for sequence in (1, 2, 16, 30):
        payload = house.database.read(lambda c, s=sequence: house.nodes[0].payload(c, "node-1", s))
        document = house.database.read(lambda c, s=sequence, p=payload: prove_inclusion(c, "node-1", s, payload=p))
        done = verified(document)
        assert done.returncode == 0, done.stderr
        assert f"node-1#{sequence}" in done.stdout
        assert json.loads(payload[16:])["action"] in done.stdout
    assert verified(document, spoil=(document["path"][0], "00" * 32)).returncode == 1
    assert verified(document | {"payload": "AAAA"}).returncode == 1
    for old in (1, 2, 4, 7):
        document = house.database.read(lambda c, o=old: prove_consistency(c, "node-1", o, 7))
        done = verified(document)
        assert done.returncode == 0, done.stderr
        assert "continues" in done.stdout
    house.heads.write_text("")
    assert "published" in verified(document).stderr


def test_proofs_there_are_not(house) -> None:
    for call in (
        lambda c: prove_inclusion(c, "node-1", 99),
        lambda c: prove_inclusion(c, "node-1", 19),
        lambda c: prove_inclusion(c, "node-9", 1),
        lambda c: prove_inclusion(c, "node-1", 1, 9),
        lambda c: prove_consistency(c, "node-1", 2, 1),
    ):
        with pytest.raises(ProofError):
            house.database.read(call)


def test_the_signing_key_belongs_to_its_vault(house, tmp_path) -> None:
    assert (house.place / "journal.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(VaultError):
        SealedHeadSigner.open(house.place / "journal.key", KeyVault.create(tmp_path / "another"))


def test_documented_hash(house) -> None:
    """docs/journal.md: what an entry hashes."""
    with house.database.engine.connect() as connection:
        row = connection.execute(select(journal_entries).where(at(journal_entries, 1))).one()
    fields = fields_of(prefix_of("node-1"), 1, row.at, row.payload_hash, "")
    assert fields == f'["node-1",1,{row.at},"{row.payload_hash.hex()}",""]'.encode()
    assert entry_hash(GENESIS, fields) == row.hash


def test_keys_somebody_else_holds() -> None:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    class Certificate:
        def __init__(self, public) -> None:
            self.public_key = lambda: public

    class Held:
        def __init__(self, key) -> None:
            self.key, self.certificate = key, Certificate(key.public_key())

        def sign(self, data, algorithm):
            if isinstance(self.key, rsa.RSAPrivateKey):
                return self.key.sign(data, PKCS1v15(), algorithm)
            return self.key.sign(data, ec.ECDSA(SHA256()))

    for key, name in (
        (ec.generate_private_key(ec.SECP256R1()), "ecdsa-sha256"),
        (rsa.generate_private_key(65537, 2048), "rsa-sha256"),
    ):
        signer = KeyHeadSigner(Held(key))
        assert signer.algorithm == name
        assert signature_holds(name, signer.public_key, signer.sign(b"x"), b"x")
        assert not signature_holds(name, signer.public_key, signer.sign(b"x"), b"y")
        assert not signature_holds("ed25519", signer.public_key, signer.sign(b"x"), b"x")
    assert not signature_holds("ed25519", b"no key", b"", b"")
