"""The process the crash test kills: accepts what it reads on stdin, delivers to a file that knows delivery ids.

Not a test itself. Arguments: the directory that holds the vault, the database, the blobs and the mailbox file.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import threading
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from mta.delivery import NewDelivery, Submission
from mta.message import Delivered, Message, Origin, Outcome, Phase, TargetKind
from mta.schedule import RetrySchedule
from mta.spool import Spool
from mta.worker import Worker
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault


class Protecting:
    """Like encryption: never the same bytes twice."""

    async def apply(self, message: Message, phase: Phase) -> Message:
        return (
            replace(message, content=message.content + secrets.token_bytes(16)) if phase is Phase.PROTECT else message
        )


class File:
    """Recognises a delivery it has had, as a mailbox with a duplicate rule does; logs every call. Poison kills it."""

    def __init__(self, root: Path) -> None:
        self.calls = os.open(root / "calls", os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
        self.box = root / "box"
        self.box.mkdir(exist_ok=True)

    async def deliver(self, message: Message) -> Outcome:
        if b"poison" in message.content:
            os._exit(1)
        digest = sha256(message.content).hexdigest()
        os.write(self.calls, f"{message.delivery_id} {digest}\n".encode())
        await asyncio.sleep(0)
        try:
            (self.box / message.delivery_id).symlink_to(message.recipient)  # name and content in one atomic step
        except FileExistsError:
            return Delivered("known")
        return Delivered("new")


def accept_from_stdin(spool: Spool) -> None:
    for line in sys.stdin:
        key = line.strip()
        spool.accept(
            Submission(
                origin=Origin.MLLP,
                sender="labo@op1.example",
                peer="lab",
                content=b"report " + key.encode(),
                content_type="message/rfc822",
                deliveries=(
                    NewDelivery(f"{key}a@op2.example", TargetKind.SMTP),
                    NewDelivery(f"{key}b@op3.example", TargetKind.SMTP),
                ),
                dedup_key=key,
                message_id_domain="op1.example",
            )
        )
        os.write(1, line.encode())


def main(root: Path) -> None:
    vault = KeyVault.open(root / "vault")
    database = Database(f"sqlite:///{root / 'relais.db'}")
    spool = Spool(database, BlobStore(root / "blobs", vault), vault, node="n", schedule=RetrySchedule())
    spool.recover()
    threading.Thread(target=accept_from_stdin, args=(spool,), daemon=True).start()
    worker = Worker(spool, [Protecting()], {TargetKind.SMTP: File(root)})
    asyncio.run(worker.run())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
