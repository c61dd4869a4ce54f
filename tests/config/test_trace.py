"""A message's life: found by any writing of its name, every message of a reused one, nothing that steers a terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.catalogue import CATALOGUE
from config.trace import life, render
from mta.delivery import Accepted
from mta.message import Delivered, Failed, Origin, TargetKind
from mta.schedule import RetrySchedule
from mta.spool import NewDelivery, Spool, Submission
from trust.refusals import Refused
from trust.store import metadata
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault

UNKNOWN = CATALOGUE["directory.recipient-unknown"]
SCHEMA = {
    "": {"spool_id", "origin", "external_id", "size", "accepted_at", "purged_at", "flags", "steps", "deliveries"},
    "deliveries": {"delivery_id", "recipient", "target", "state", "attempts", "message_id", "facts", "steps"},
    "steps": {"at", "node", "step", "code", "detail", "text"},
}


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    database = Database(f"sqlite:///{tmp_path / 'relais.db'}")
    metadata.create_all(database.engine)
    vault = KeyVault.create(tmp_path / "vault")
    yield Spool(database, BlobStore(tmp_path / "blobs", vault), vault, node="n1", schedule=RetrySchedule())
    database.close()


def kept(spool: Spool, control_id: str, partner: str = "sil") -> str:
    found = spool.accept(
        Submission(
            origin=Origin.MLLP,
            sender="labo@labo.example",
            peer=partner,
            content=f"{control_id} {partner}".encode(),
            content_type="application/hl7-v2",
            deliveries=tuple(NewDelivery(f"{name}@x.example", TargetKind.SMTP) for name in ("a", "b")),
            dedup_key=f"{control_id} {partner}",
            external_id=control_id,
            message_id_domain="labo.example",
        )
    )
    assert isinstance(found, Accepted)
    return found.spool_id


def ids(spool: Spool, reference: str) -> list[str]:
    return [message["spool_id"] for message in life(spool, reference, CATALOGUE)]


def test_a_name_is_found_with_and_without_brackets_and_spaces(spool: Spool) -> None:
    spool_id = kept(spool, "MSG-1")
    message_id = spool.deliveries(spool_id)[0].message_id
    bare = message_id.strip("<>")
    for reference in ("MSG-1", " MSG-1\n", bare, f"<{bare}>", f" <{bare}> "):
        assert ids(spool, reference) == [spool_id], reference
    for reference in ("", " ", "<>", "MSG", "msg-1", "MSG-1%", "\udcff", "\x00", "x" * 100_000):
        assert ids(spool, reference) == [], reference


def test_our_own_ids_are_found_too(spool: Spool) -> None:
    """What our SMTP replies, the log and the quarantine name."""
    spool_id = kept(spool, "MSG-1")
    for reference in (spool_id, *(each.delivery_id for each in spool.deliveries(spool_id))):
        assert ids(spool, reference) == [spool_id]
    assert ids(spool, "0" * 32) == []


def test_a_reused_control_id_shows_every_message_oldest_first(spool: Spool) -> None:
    kept(spool, "OTHER")
    wanted = [kept(spool, "SAME", partner) for partner in ("sil-1", "sil-2", "sil-3")]
    assert ids(spool, "SAME") == wanted


def test_the_schema_is_stable_and_every_end_has_its_reason(spool: Spool) -> None:
    spool_id = kept(spool, "MSG-2")
    first, second = spool.claim(2, 60)
    assert spool.settle(first, Delivered("250 kept"))
    assert spool.settle(second, Failed(Refused(UNKNOWN)))
    (message,) = json.loads(json.dumps(life(spool, "MSG-2", CATALOGUE)))
    assert message["spool_id"] == spool_id
    assert set(message) == SCHEMA[""]
    for delivery in message["deliveries"]:
        assert set(delivery) == SCHEMA["deliveries"]
        assert all(set(step) == SCHEMA["steps"] for step in delivery["steps"])
    assert {delivery["state"] for delivery in message["deliveries"]} == {"delivered", "failed"}
    lines = list(render({"labo": [message]}))
    assert sum(UNKNOWN.text in line for line in lines) == 1
    assert sum("250 kept" in line for line in lines) == 1


def test_what_a_partner_wrote_does_not_steer_the_terminal(spool: Spool) -> None:
    kept(spool, "A\x1b[2J\x1b]0;title\x07\u202eB")
    first, _ = spool.claim(2, 60)
    assert spool.settle(first, Delivered("250 \x1b[31mred\r\nlabo: forged line"))
    lines = list(render({"labo": life(spool, "A\x1b[2J\x1b]0;title\x07\u202eB", CATALOGUE)}))
    assert len(lines) > 3
    assert not [line for line in lines if not line.isprintable()]
    assert not [line for line in lines if line.startswith("labo: forged")]


@pytest.mark.parametrize(
    ("state", "steps", "expected"),
    [
        ("ready", [], "waits for its delivery, for 30 h"),
        (
            "ready",
            [("deferred", "mta.unreachable")],
            "waits for its delivery, for 30 h, last refused as mta.unreachable",
        ),
        (
            "delivered",
            [("delivered", "relayed")],
            "the delivery receipt that the operator of op2.example promised 30 h",
        ),
        ("delivered", [("delivered", "relayed"), ("answered", "")], ""),
        ("delivered", [("delivered", "")], ""),
        ("failed", [("failed", "mta.expired")], ""),
        ("ready", [("deferred", "mta.unreachable"), ("held", "")], "waits for an operator's release: relais queue"),
        ("ready", [("held", ""), ("freed", "")], "waits for its delivery, for 30 h"),
        (
            "failed",
            [("failed", "mta.malware-found"), ("quarantined", "")],
            "a person's decision: relais quarantine show d",
        ),
        ("failed", [("failed", "mta.malware-found"), ("quarantined", ""), ("dropped", "")], ""),
    ],
)
def test_what_is_missing_is_said(state: str, steps: list[tuple[str, str]], expected: str) -> None:
    accepted = time.time() - 30.5 * 3600
    told = [{"at": accepted, "node": "n", "step": kind, "code": code, "detail": "", "text": ""} for kind, code in steps]
    delivery = {"recipient": "dr@op2.example", "target": "smtp", "state": state, "message_id": "<1@x>", "facts": {}}
    delivery |= {"delivery_id": "d"}
    message = {"spool_id": "s", "origin": "submission", "size": 1, "external_id": "", "flags": [], "steps": []}
    lives = {"labo": [message | {"accepted_at": accepted, "deliveries": [delivery | {"steps": told}]}]}
    waits = [line.strip() for line in render(lives) if "waits for" in line]
    assert len(waits) == (1 if expected else 0)
    assert not expected or expected in waits[0]
