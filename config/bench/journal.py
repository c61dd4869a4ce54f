"""The journal's rows of `relais bench trust`: appending with many producers, and verifying.

Appending goes through `Database.transact` from a hundred threads at once, each waiting until its entry is on disk, as
the gateway's own threads do. The reference is the same with an empty transaction: what the store alone allows.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Scale:
    runs: int
    entries: int
    """Appended in one run."""


SCALES = {"quick": Scale(3, 10_000), "full": Scale(5, 100_000)}


def journal(scale: str) -> list[dict[str, Any]]:
    """`journal_append_eps`, `journal_verify_eps` and its payloads' rate, at `quick` or `full` scale."""
    return measure(SCALES[scale])


def measure(scale: Scale) -> list[dict[str, Any]]:
    """See `journal`."""
    with tempfile.TemporaryDirectory(prefix="relais-bench-") as place:
        root = Path(place)
        vault = KeyVault.create(root / "vault")
        database = Database(f"sqlite:///{root}/relais.db")
        try:
            upgrade(database)
            return _measure(scale, database, vault, SealedHeadSigner.open(root / "journal.key", vault))
        finally:
            database.close()


def _measure(scale: Scale, database: Database, vault: KeyVault, signer: SealedHeadSigner) -> list[dict[str, Any]]:
    chain = Journal(vault, "bench")
    checkpoints = Checkpoints(database, chain, signer, "bench")
    entry = JournalEntry("899700000001", "dossier.read", "done", "ab" * 32, "1.2.250.1.999.1", purpose="care")
    appended: list[float] = []
    empty: list[float] = []
    hashed: list[float] = []
    opened: list[float] = []
    for _ in range(scale.runs):
        empty.append(_rate(database, scale.entries, lambda _: None))
        appended.append(_rate(database, scale.entries, lambda connection: chain.append(connection, entry)))
        checkpoints.make()
        for rates, payloads in ((hashed, False), (opened, True)):
            rates.append(_verified(database, chain, signer, payloads))
    return [
        row(
            "journal_append_eps",
            appended,
            "entries/s",
            scale.entries,
            reference=f"the same {PRODUCERS} producers with nothing to write",
            reference_values=empty,
        ),
        row("journal_verify_eps", hashed, "entries/s", scale.entries * scale.runs),
        row("journal_verify_payloads_eps", opened, "entries/s", scale.entries * scale.runs),
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


def _verified(database: Database, chain: Journal, signer: SealedHeadSigner, payloads: bool) -> float:
    started = time.perf_counter()
    verdict = database.read(
        lambda connection: chain.verify(connection, payloads=payloads, keys=frozenset({signer.public_key}))
    )
    if not verdict.ok:
        raise RuntimeError(f"the journal that was just written does not verify: {verdict.problem}")
    return verdict.entries / (time.perf_counter() - started)
