"""Somebody who writes to the database but holds no key: nothing they do is accepted, nor vouched for by our own key."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from sqlalchemy import delete, insert, select, text, update

from tests.trust.journal_house import TABLES, House, at, entry
from trust.journal import ErasureError, Journal, JournalEntry
from trust.journal_chain import entry_hash, fields_of, prefix_of
from trust.journal_check import against_published, check
from trust.kept_heads import last_checkpoint
from trust.proofs import ProofError, prove_consistency, prove_inclusion
from trust.signed_heads import FIRST_PREVIOUS, Head, SealedHeadSigner, SignedHead, WriterHead, head_digest, parse_head
from trust.tables import journal_checkpoints, journal_entries, journal_heads, journal_payloads
from trust.vault import KeyVault

ROOT = Path(__file__).parents[2]
ORDER = JournalEntry("dpo@operateur.example", "journal.erase", "done", reason="demande 12")


@pytest.fixture(scope="module")
def vault(tmp_path_factory):
    return KeyVault.create(tmp_path_factory.mktemp("keys") / "vault")


@pytest.fixture
def house(tmp_path, vault):
    """Twenty-two entries: sixteen of node-1 and three of node-2 under two heads, three behind them."""
    house = House(tmp_path, vault)
    house.append(10)
    house.append(3, node=1)
    assert house.publisher.turn() == ()
    house.append(5)
    assert house.publisher.turn() == ()
    house.append(2)
    yield house
    house.database.close()


def row_of(house, table, *where):
    with house.database.engine.connect() as connection:
        return connection.execute(select(table).where(*where)).one()


def last_of(house, writer: str) -> int:
    return row_of(house, journal_heads, journal_heads.c.writer == writer).sequence


def forge(house, sequence: int, *, erases: str = "", moment: int = 1, writer: str = "node-1") -> list:
    """Statements that add or replace an entry consistently with the one before it, and lead the head there."""
    before = row_of(house, journal_entries, at(journal_entries, sequence - 1, writer))
    hash_ = entry_hash(before.hash, fields_of(prefix_of(writer), sequence, moment, bytes(32), erases))
    return [
        delete(journal_entries).where(at(journal_entries, sequence, writer)),
        insert(journal_entries).values(
            writer=writer, sequence=sequence, at=moment, payload_hash=bytes(32), erases=erases, hash=hash_
        ),
        update(journal_heads).where(journal_heads.c.writer == writer).values(sequence=sequence, hash=hash_),
    ]


# --- Our own key covers nothing up ------------------------------------------------------------------------------------


def test_a_cut_end_is_not_sealed_by_the_next_entry(house) -> None:
    end = last_of(house, "node-1")
    before = row_of(house, journal_entries, at(journal_entries, end - 1))
    house.tamper(
        *[delete(table).where(at(table, end)) for table in TABLES[:2]],
        update(journal_heads).where(journal_heads.c.writer == "node-1").values(sequence=end - 1, hash=before.hash),
    )
    house.append(3)
    assert house.inside() == "the head of node-1 is missing or altered"
    assert any("head of node-1" in each for each in house.publisher.turn())
    head = parse_head(house.database.read(last_checkpoint).signed.text)
    assert {each.writer: each.size for each in head.heads}["node-1"] < end - 1


def test_an_entry_rewritten_behind_the_last_head_is_not_sealed_by_the_next_one(house) -> None:
    house.tamper(*forge(house, last_of(house, "node-1")))
    house.append(1)
    assert "head of node-1" in house.inside()
    assert any("head of node-1" in each for each in house.publisher.turn())


def test_a_forged_erasure_hides_nothing(house) -> None:
    end = last_of(house, "node-1")
    house.tamper(*forge(house, end + 1, erases="node-1#5"), delete(journal_payloads).where(at(journal_payloads, 5)))
    house.append(1)
    assert "head of node-1" in house.inside()
    assert "head of node-1" in house.inside(payloads=False)


def test_work_goes_on_behind_a_head_that_was_removed(house) -> None:
    end = last_of(house, "node-1")
    house.tamper(delete(journal_heads).where(journal_heads.c.writer == "node-1"))
    assert "head of node-1 is missing" in house.inside()
    house.append(2)
    assert last_of(house, "node-1") == end + 2
    assert "head of node-1 is missing" in house.inside()


def test_work_goes_on_behind_an_older_head_that_was_put_back_alone(house) -> None:
    old = row_of(house, journal_heads, journal_heads.c.writer == "node-1")
    house.append(3)
    house.tamper(update(journal_heads).where(journal_heads.c.writer == "node-1").values(**old._asdict()))
    house.append(2)
    assert last_of(house, "node-1") == old.sequence + 5
    assert "head of node-1" in house.inside()


def test_two_nodes_chains_swapped(house) -> None:
    tables = (*TABLES[:2], journal_heads)
    for old, new in (("node-1", "x"), ("node-2", "node-1"), ("x", "node-2")):
        house.tamper(*[update(table).where(table.c.writer == old).values(writer=new) for table in tables])
    assert house.inside() != ""
    house.append(1)
    house.append(1, node=1)
    assert house.publisher.turn() != ()
    assert house.inside() != ""


@pytest.mark.parametrize("change", ["covers less", "forgets", "own key"])
def test_nothing_is_signed_behind_a_checkpoint_that_was_altered(house, tmp_path, change) -> None:
    last = house.database.read(last_checkpoint)
    head = parse_head(last.signed.text)
    forged = Head(
        1,
        "house",
        head.number,
        head.at,
        head.previous,
        tuple(
            WriterHead(each.writer, each.size - (change == "covers less"), each.root, each.hash)
            for each in head.heads
            if change != "forgets" or each.writer == "node-1"
        ),
    )
    own = SealedHeadSigner.open(tmp_path / "forger.key", KeyVault.create(tmp_path / "forger"))
    signed = SignedHead.make(forged if change != "own key" else head, own)
    values = {"head": signed.text, "signature": signed.signature}
    if change == "own key":
        values = {"signature": signed.signature, "key": signed.key}
    house.tamper(update(journal_checkpoints).where(journal_checkpoints.c.number == last.number).values(**values))
    assert house.inside() != ""
    problems = house.publisher.turn()
    if change == "own key":  # what it says is what the journal records
        assert "key this journal does not know" in problems[0]
    else:
        assert "no other is made" in problems[0]
        assert house.makers[0].last_number() == last.number
    assert house.inside() != ""


def test_a_second_signing_key_does_not_make_heads_of_ours(house, tmp_path) -> None:
    """A checkpoint more, well chained, by a key of theirs."""
    last = house.database.read(last_checkpoint)
    head = parse_head(last.signed.text)
    own = SealedHeadSigner.open(tmp_path / "forger.key", KeyVault.create(tmp_path / "forger"))
    more = Head(1, "house", head.number + 1, head.at, head_digest(last.signed.text), head.heads)
    signed = SignedHead.make(more, own)
    house.tamper(
        insert(journal_checkpoints).values(
            number=more.number,
            head=signed.text,
            signature=signed.signature,
            algorithm="ed25519",
            key=signed.key,
            writer="node-1",
            sequence=11,
        )
    )
    assert "key this journal does not know" in house.inside()
    assert "key this journal does not know" in house.inside(payloads=False)
    lines = [*house.heads.read_text().splitlines(), signed.line()]
    compared = house.database.read(lambda c: against_published(c, "house", lines, {house.signer.public_key}))
    assert "key this journal does not know" in compared.problem


# --- Rows beside the chains -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sequence", ["0", "-1", "-9223372036854775808", "-0.5", "0.5", "1.5", "99", "'x'", "x'01'"])
def test_an_inserted_row_is_found_even_without_opening_payloads(house, sequence) -> None:
    house.tamper(
        text(
            "INSERT INTO journal_entries (writer, sequence, at, payload_hash, erases, hash) "
            f"VALUES ('node-1', {sequence}, 1, x'00', '', x'00')"
        ),
        text(f"INSERT INTO journal_payloads VALUES ('node-1', {sequence}, '', x'00')"),
    )
    assert house.inside(payloads=False) != ""
    assert house.inside() != ""


def test_erasures_claimed_by_rows_beside_the_chain_hide_nothing(house) -> None:
    """Numbers that print alike let one row vouch for two: none of them is on the chain."""
    claims = {
        "-3": "node-1#5",
        "-0.1": "node-1#-3",
        "-0.09999999999999999": "node-1#-0.1",
    }
    house.tamper(
        delete(journal_payloads).where(at(journal_payloads, 5)),
        *[
            text(
                "INSERT INTO journal_entries (writer, sequence, at, payload_hash, erases, hash) "
                f"VALUES ('node-1', {sequence}, 1, x'00', '{erases}', x'00')"
            )
            for sequence, erases in claims.items()
        ],
    )
    assert "beside the chain" in house.inside()


def test_a_checkpoint_inserted_before_the_first_is_found(house) -> None:
    house.tamper(text("INSERT INTO journal_checkpoints SELECT 0, head, signature, algorithm, key, writer, sequence "
                      "FROM journal_checkpoints WHERE number = 1"))  # fmt: skip
    assert "beside the chain" in house.inside(payloads=False)


def test_a_replaced_payload_is_found(house, vault) -> None:
    other = row_of(house, journal_payloads, at(journal_payloads, 4))
    house.tamper(update(journal_payloads).where(at(journal_payloads, 3)).values(sealed=other.sealed))
    assert "payload of node-1#3 was altered" in house.inside()


# --- What only the published heads can tell ---------------------------------------------------------------------------


def test_an_older_state_of_a_chain_with_its_seal_is_found_outside(house) -> None:
    """Without the vault: the head row of then was kept. From inside it looks like then."""
    then = row_of(house, journal_heads, journal_heads.c.writer == "node-1")
    house.append(4)
    assert house.publisher.turn() == ()
    house.tamper(
        *[delete(table).where(table.c.writer == "node-1", table.c.sequence > then.sequence) for table in TABLES[:2]],
        update(journal_heads).where(journal_heads.c.writer == "node-1").values(**then._asdict()),
    )
    assert "ends before" in house.inside()
    house.tamper(delete(journal_checkpoints).where(journal_checkpoints.c.number > 2))
    assert house.inside() == ""
    assert "is not in this database" in house.outside()


def test_that_an_older_database_was_put_back_is_said_until_it_is_looked_at(house) -> None:
    """Publishing goes on and the file ends with heads of ours again: what was found stays said."""
    then = row_of(house, journal_heads, journal_heads.c.writer == "node-1")
    house.append(4)
    house.publisher.turn()
    house.tamper(
        *[delete(table).where(table.c.writer == "node-1", table.c.sequence > then.sequence) for table in TABLES[:2]],
        update(journal_heads).where(journal_heads.c.writer == "node-1").values(**then._asdict()),
        delete(journal_checkpoints).where(journal_checkpoints.c.number > 2),
    )
    for _ in range(3):
        house.append(1)
        assert any("older database was put back" in each for each in house.publisher.turn())
    house.database.close()
    house.open()
    assert any("older database was put back" in each for each in house.publisher.turn())
    assert "two heads 3" in house.outside() or "does not" in house.outside() or "not the one" in house.outside()
    published = [json.loads(line)["head"] for line in house.heads.read_text().splitlines()]
    assert {each.signed.text for each in house.makers[0].after(0)} <= set(published)


def test_a_file_that_was_emptied_is_said(house) -> None:
    house.heads.write_text("")
    house.append(1)
    assert any("held no head any more" in each for each in house.publisher.turn())
    assert house.publisher.turn() == ()


@pytest.mark.parametrize(
    "change",
    [
        ("number", 10**40),
        ("number", 2**63),
        ("at", "\x1b[2J"),
        ("heads", [["node-1", 2**64, "0" * 64, "0" * 64]]),
        ("heads", [["node-1", -1, "0" * 64, "0" * 64]]),
    ],
)
def test_published_lines_of_strangers_break_nothing(house, change) -> None:
    said = {
        "version": 1,
        "journal": "house",
        "number": 1,
        "at": "2026-11-21T08:00:00.000000Z",
        "previous": FIRST_PREVIOUS,
        "heads": [],
    } | dict([change])
    line = SignedHead(json.dumps(said), b"", "ed25519", b"").line()
    lines = [line, *house.heads.read_text().splitlines()]
    compared = house.database.read(lambda c: against_published(c, "house", lines))
    assert (compared.problem, compared.ours, compared.unreadable) == ("", 2, 1)


# --- Erasing ----------------------------------------------------------------------------------------------------------


def test_what_may_not_be_erased(house) -> None:
    erased = house.database.transact(lambda c: house.nodes[0].erase(c, "node-1", 3, ORDER)).sequence
    checkpoint = house.database.read(last_checkpoint)
    house.tamper(update(journal_payloads).where(at(journal_payloads, 4)).values(sealed=b"\x01" + bytes(80)))
    for writer, sequence, why in (
        ("node-1", 4711, "no entry"),
        ("node-9", 1, "no entry"),
        ("node-1", erased, "records an erasure"),
        (checkpoint.writer, checkpoint.sequence, "records a signed head"),
        ("node-1", 4, "was altered"),
    ):
        with pytest.raises(ErasureError, match=why):
            house.database.transact(lambda c, w=writer, s=sequence: house.nodes[0].erase(c, w, s, ORDER))
    assert last_of(house, "node-1") == erased


def test_erased_in_the_transaction_that_wrote_it(house) -> None:
    def both(connection) -> None:
        receipt = house.nodes[0].append(connection, entry(1))
        assert house.nodes[0].payload(connection, "node-1", receipt.sequence) is not None
        house.nodes[0].erase(connection, "node-1", receipt.sequence, ORDER)
        assert house.nodes[0].entries(connection, limit=1)[0].entry == ORDER

    house.database.transact(both)
    house.publisher.turn()
    assert house.outside() == ""


def test_read_in_a_transaction_that_fails_afterwards(house) -> None:
    """What others put off is written while a failing one looks, undone with it, and written after all."""

    def look_and_fail(connection) -> None:
        assert check(connection, house.vault).ok is not None
        house.nodes[0].entries(connection)
        raise KeyError

    works = [lambda c: house.nodes[0].append(c, entry(1)), look_and_fail] * 20
    futures = [house.database.submit(work) for work in works]
    done = [future.exception(10) or future.result() for future in futures]
    end = last_of(house, "node-1")
    assert [each.sequence for each in done[::2]] == list(range(end - 19, end + 1))
    assert house.inside() == ""


def test_text_that_is_no_unicode_stops_no_act(house) -> None:
    bad = JournalEntry("a\ud800", "b", "done", "\udc00", details={"k\ud800": "v\udfff"})
    house.database.transact(lambda c: house.nodes[0].append(c, bad, datetime(2100, 1, 1, tzinfo=UTC)))
    (stored,) = house.database.read(lambda c: house.nodes[0].entries(c, limit=1))
    assert (stored.entry.actor, stored.entry.details) == ("a?", {"k?": "v?"})
    assert house.inside() == ""


@pytest.mark.parametrize("value", ["'x'", "9223372036854775807", "x'00'"])
def test_a_nonsense_time_is_listed_and_verify_tells(house, value) -> None:
    house.tamper(text(f"UPDATE journal_entries SET at = {value} WHERE writer = 'node-1' AND sequence = 2"))
    assert len(house.database.read(lambda c: house.nodes[0].entries(c, limit=50))) == 22
    assert "node-1#2" in house.inside()
    with pytest.raises(ProofError, match="altered"):
        house.database.read(lambda c: prove_inclusion(c, "node-1", 2))


# --- Proofs, checked without us ---------------------------------------------------------------------------------------


def checked(house, tmp_path, document, heads: str | None = None, *options) -> subprocess.CompletedProcess[str]:
    proof, published = tmp_path / "proof.json", tmp_path / "published"
    proof.write_text(document if isinstance(document, str) else json.dumps(document))
    published.write_text(house.heads.read_text() if heads is None else heads)
    script = ROOT / "docs" / "check_journal.py"
    return subprocess.run(
        [sys.executable, "-I", script, proof, published, *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )


@pytest.fixture
def pem(house, tmp_path):
    file = tmp_path / "key.pem"
    file.write_bytes(
        load_der_public_key(house.signer.public_key).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return file


def test_a_proof_by_another_key_is_none_once_the_key_is_known(house, tmp_path, pem) -> None:
    """Somebody got a line of their own into the log that heads are published to."""
    document = house.database.read(lambda c: prove_inclusion(c, "node-1", 2))
    good = checked(house, tmp_path, document, None, "--key", str(pem))
    assert (good.returncode, "no --key" in good.stdout) == (0, False), good.stderr
    own = SealedHeadSigner.open(tmp_path / "forger.key", KeyVault.create(tmp_path / "forger"))
    head = parse_head(json.loads(document["head"])["head"])
    forged = SignedHead.make(Head(1, "house", 7, head.at, head.previous, head.heads), own).line()
    published = house.heads.read_text() + f"user said: {forged}\n"
    assert "no --key was given" in checked(house, tmp_path, document | {"head": forged}, published).stdout
    refused = checked(house, tmp_path, document | {"head": forged}, published, "--key", str(pem))
    assert (refused.returncode, "by a key that was not given" in refused.stderr) == (1, True)


def test_two_heads_of_one_number_prove_nothing(house, tmp_path, pem) -> None:
    document = house.database.read(lambda c: prove_inclusion(c, "node-1", 2))
    head = parse_head(json.loads(document["head"])["head"])
    other = SignedHead.make(
        Head(1, "house", head.number, "2026-11-21T08:00:00.000000Z", head.previous, head.heads), house.signer
    )
    done = checked(house, tmp_path, document, house.heads.read_text() + other.line() + "\n", "--key", str(pem))
    assert (done.returncode, "two different heads" in done.stderr) == (1, True)
    next_one = SignedHead.make(Head(1, "house", head.number + 1, head.at, "0" * 64, head.heads), house.signer)
    done = checked(house, tmp_path, document, house.heads.read_text() + next_one.line() + "\n")
    assert (done.returncode, "does not follow" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    "spoil",
    [
        {"sequence": 17},
        {"sequence": 0},
        {"sequence": True},
        {"writer": "node-2"},
        {"path": []},
        {"path": ["zz"]},
        {"path": None},
        {"entry": {}},
        {"head": "{}"},
        {"head": 7},
        {"proof": "consistency"},
    ],
)
def test_spoilt_proofs_are_refused_in_a_sentence(house, tmp_path, spoil) -> None:
    document = house.database.read(lambda c: prove_inclusion(c, "node-1", 2))
    done = checked(house, tmp_path, document | spoil)
    assert done.returncode == 1
    assert done.stderr.startswith("NOT PROVED")
    assert "Traceback" not in done.stderr


def test_rubbish_is_refused_in_a_sentence(house, tmp_path) -> None:
    for rubbish in ("", "[]", "{}", "[" * 5000, '"x"'):
        done = checked(house, tmp_path, rubbish)
        assert (done.returncode, done.stderr[:10]) == (1, "NOT PROVED")


def test_a_head_of_another_journal_continues_nothing(house, tmp_path) -> None:
    document = house.database.read(lambda c: prove_consistency(c, "node-1", 1, 2))
    old = parse_head(json.loads(document["old"])["head"])
    barn = SignedHead.make(Head(1, "barn", 1, old.at, old.previous, old.heads), house.signer).line()
    done = checked(house, tmp_path, document | {"old": barn}, house.heads.read_text() + barn + "\n")
    assert (done.returncode, done.stderr[:10]) == (1, "NOT PROVED")


def test_two_processes_of_one_name_make_one_chain(house) -> None:
    """SQLite lets one write at a time, and whoever writes reads where the chain ends."""
    other = Journal(house.vault, "node-1")
    from trust.store.database import Database

    second = Database(f"sqlite:///{house.place}/relais.db")
    try:
        futures = []
        for number in range(40):
            futures.append(house.database.submit(lambda c, n=number: house.nodes[0].append(c, entry(n))))
            futures.append(second.submit(lambda c, n=number: other.append(c, entry(n))))
        sequences = sorted(future.result(60).sequence for future in futures)
    finally:
        second.close()
    assert sequences == list(range(sequences[0], sequences[0] + 80))
    assert house.inside() == ""


def test_killed_while_writing(house) -> None:
    """Whatever was told to be kept is there, the chain holds, and goes on."""
    house.database.close()
    program = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from trust.journal import Journal, JournalEntry\n"
        "from trust.store.database import Database\n"
        "from trust.vault import KeyVault\n"
        "database = Database(f'sqlite:///{sys.argv[1]}/relais.db')\n"
        "journal = Journal(KeyVault.open(Path(sys.argv[2])), 'node-1')\n"
        "def produce():\n"
        "    while True:\n"
        "        receipt = database.transact(lambda c: journal.append(c, JournalEntry('a', 'b', 'done')))\n"
        "        sys.stdout.write(f'{receipt.sequence}\\n')\n"
        "        sys.stdout.flush()\n"
        "for _ in range(16):\n"
        "    threading.Thread(target=produce, daemon=True).start()\n"
        "threading.Event().wait(60)\n"
    )
    arguments = [sys.executable, "-c", program, str(house.place), str(house.vault.root)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=ROOT) as process:
        told = [int(process.stdout.readline()) for _ in range(300)]
        process.kill()
        told += [int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith(b"\n")]
    house.open()
    assert last_of(house, "node-1") >= max(told)
    assert house.inside() == ""
    house.append(1)
    house.publisher.turn()
    assert house.outside() == ""
