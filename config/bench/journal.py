"""The journal's rows of `relais bench trust`: appending with many producers, and verifying.

Appending goes through `Database.transact` from a hundred threads at once, each waiting until its entry is on disk, as
the gateway's own threads do. Beside each figure stands its physical limit, measured in the same run and interleaved:
what SQLite itself takes of the same rows, a hundred a sync; what the store allows with nothing to write; how often this
disk syncs; what SHA-256 alone costs of a verified entry. Processor time is told too: on a machine that does something
else as well it is the steadier figure.
"""

from __future__ import annotations

import gc
import hashlib
import os
import secrets
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from config.bench.report import row
from config.migrations import upgrade
from trust.checkpoints import Checkpoints
from trust.journal import Journal, JournalEntry
from trust.signed_heads import SealedHeadSigner
from trust.store.database import Database
from trust.vault import KeyVault

PRODUCERS = 100
_SYNCS = 200


@dataclass(frozen=True, slots=True)
class Scale:
    runs: int
    entries: int
    """Appended in one run."""


SCALES = {"quick": Scale(3, 20_000), "full": Scale(5, 100_000)}


@dataclass(slots=True)
class _Figures:
    """One value a run."""

    appended: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    empty: list[float] = field(default_factory=list)
    synced: list[float] = field(default_factory=list)
    verified: list[float] = field(default_factory=list)
    hashed: list[float] = field(default_factory=list)
    opened: list[float] = field(default_factory=list)


def journal(scale: str) -> list[dict[str, Any]]:
    """`journal_append_eps`, `journal_verify_eps` and what belongs to them, at `quick` or `full` scale."""
    return measure(SCALES[scale])


def measure(scale: Scale) -> list[dict[str, Any]]:
    """See `journal`."""
    gc.collect()
    gc.freeze()  # as the gateway does when it is ready
    try:
        with tempfile.TemporaryDirectory(prefix="relais-bench-") as place:
            root = Path(place)
            vault = KeyVault.create(root / "vault")
            database = Database(f"sqlite:///{root}/relais.db")
            try:
                upgrade(database)
                return _measure(scale, root, database, vault)
            finally:
                database.close()
    finally:
        gc.unfreeze()


def _measure(scale: Scale, root: Path, database: Database, vault: KeyVault) -> list[dict[str, Any]]:
    chain = Journal(vault, "bench")
    signer = SealedHeadSigner.open(root / "journal.key", vault)
    checkpoints = Checkpoints(database, chain, signer, "bench")
    entry = JournalEntry("899700000001", "dossier.read", "done", "ab" * 32, "1.2.250.1.999.1", purpose="care")
    figures = _Figures()
    for run in range(scale.runs):
        figures.synced.append(_syncs(root))
        figures.bare.append(_bare(root / f"bare{run}.db", scale.entries))
        figures.empty.append(_rate(database, scale.entries, lambda _: None))
        processor = time.process_time()
        figures.appended.append(_rate(database, scale.entries, lambda connection: chain.append(connection, entry)))
        figures.processor.append((time.process_time() - processor) / scale.entries * 1e6)
        checkpoints.make()
        figures.hashed.append(_hashes(scale.entries))
        figures.verified.append(_verified(database, chain, signer, payloads=False))
        figures.opened.append(_verified(database, chain, signer, payloads=True))
    total = scale.entries * scale.runs
    return [
        row(
            "journal_append_eps",
            figures.appended,
            "entries/s",
            scale.entries,
            reference=f"SQLite alone: the same rows, {PRODUCERS} a synced commit, one thread",
            reference_values=figures.bare,
        ),
        row("journal_append_cpu_us", figures.processor, "us", scale.entries),
        row(
            "journal_store_tps",
            figures.empty,
            "transactions/s",
            scale.entries,
            reference="synced writes/s of this disk",
            reference_values=figures.synced,
        ),
        row(
            "journal_verify_eps",
            figures.verified,
            "entries/s",
            total,
            reference="SHA-256 alone: chain, leaf and node of each entry",
            reference_values=figures.hashed,
        ),
        row("journal_verify_payloads_eps", figures.opened, "entries/s", total),
    ]


def _rate(database: Database, entries: int, work: Callable[[Connection], object]) -> float:
    each = entries // PRODUCERS

    def produce() -> None:
        for _ in range(each):
            database.transact(work)

    producers = [threading.Thread(target=produce) for _ in range(PRODUCERS)]
    started = time.perf_counter()
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join()
    return each * PRODUCERS / (time.perf_counter() - started)


def _syncs(root: Path) -> float:
    """A page appended and synced, over and over."""
    page = secrets.token_bytes(4096)
    descriptor = os.open(root / "synced", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        started = time.perf_counter()
        for _ in range(_SYNCS):
            os.write(descriptor, page)
            os.fdatasync(descriptor)
        return _SYNCS / (time.perf_counter() - started)
    finally:
        os.close(descriptor)


def _bare(path: Path, entries: int) -> float:
    """Rows as large as the journal's into tables like its own, made beforehand."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")
        connection.executescript(
            "CREATE TABLE e (w TEXT, s INTEGER, a INTEGER, p BLOB, r TEXT, h BLOB, PRIMARY KEY (w, s));"
            "CREATE INDEX ea ON e (a);"
            "CREATE TABLE p (w TEXT, s INTEGER, u TEXT, b BLOB, PRIMARY KEY (w, s)); CREATE INDEX pu ON p (u);"
        )
        digest, sealed, subject = secrets.token_bytes(32), secrets.token_bytes(270), "ab" * 32
        rows = iter([("bench", n, 1_700_000_000_000_000 + n, digest, "", digest) for n in range(entries)])
        payloads = iter([("bench", n, subject, sealed) for n in range(entries)])
        started = time.perf_counter()
        for _ in range(entries // PRODUCERS):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO e VALUES (?, ?, ?, ?, ?, ?)", islice(rows, PRODUCERS))
            connection.executemany("INSERT INTO p VALUES (?, ?, ?, ?)", islice(payloads, PRODUCERS))
            connection.execute("COMMIT")
        return entries // PRODUCERS * PRODUCERS / (time.perf_counter() - started)
    finally:
        connection.close()


def _hashes(entries: int) -> float:
    sha256, digest, fields = hashlib.sha256, bytes(32), bytes(130)
    started = time.perf_counter()
    for _ in range(entries):
        sha256(digest + fields).digest()
        sha256(b"\x00" + digest).digest()
        sha256(b"\x01" + digest + digest).digest()
    return entries / (time.perf_counter() - started)


def _verified(database: Database, chain: Journal, signer: SealedHeadSigner, *, payloads: bool) -> float:
    started = time.perf_counter()
    verdict = database.read(
        lambda connection: chain.verify(connection, payloads=payloads, keys=frozenset({signer.public_key}))
    )
    if not verdict.ok:
        raise RuntimeError(f"the journal that was just written does not verify: {verdict.problem}")
    return verdict.entries / (time.perf_counter() - started)
