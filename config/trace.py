"""`relais trace`: a message's whole life, at every gateway that is asked, per recipient, with times and reasons.

Each gateway tells what its spool knows of a Message-ID or an MSH-10 (`life`); `render` lays it out for a person. A
reused MSH-10 shows every message that carried it. The recipients' addresses are shown: who may run this command may
read them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bridges.plain import one_line

if TYPE_CHECKING:  # the command line only lays out: it starts without the database
    from mta.delivery import Step
    from mta.spool import Spool
    from trust.refusals import Refusal

_OUR_ID = re.compile(r"[0-9a-f]{32}")


def life(spool: Spool, reference: str, catalogue: Mapping[str, Refusal]) -> list[dict[str, Any]]:
    """All messages with this Message-ID or external identifier, oldest first, as JSON values; times in UNIX seconds.

    A Message-ID is found with and without its angle brackets: log viewers and mail clients show either. So are the ids
    that our own replies, logs and the quarantine name: of a message, or of one of its deliveries.
    """
    from mta.any_delivery import AnyReader  # as above

    # What the terminal gave that is no UTF-8 names no message, and must not break the search either.
    given = reference.strip().encode("utf-8", "replace").decode()
    names = dict.fromkeys((given, given.removeprefix("<").removesuffix(">"), f"<{given}>"))
    spool_ids = dict.fromkeys(spool_id for name in names for spool_id in spool.find(name))
    spool_ids |= dict.fromkeys(spool_id for name in names for spool_id in spool.find_purged(name))
    if _OUR_ID.fullmatch(given):
        delivery = AnyReader(spool).one(given)
        spool_ids |= dict.fromkeys([given if delivery is None else delivery.spool_id])
    found = [_message(spool, spool_id, catalogue) for spool_id in spool_ids]
    return sorted((message for message in found if message), key=lambda message: float(message["accepted_at"]))


def _message(spool: Spool, spool_id: str, catalogue: Mapping[str, Refusal]) -> dict[str, Any]:
    record = spool.message(spool_id)
    if record is None:
        return {}
    steps = spool.steps(spool_id)
    return {
        "spool_id": spool_id,
        "origin": record.origin.value,
        "external_id": record.external_id,
        "size": record.size,
        "accepted_at": record.accepted_at,
        "purged_at": record.purged_at,
        "flags": list(record.flags),
        "steps": [_step(step, catalogue) for step in steps if not step.delivery_id],
        "deliveries": [
            {
                "delivery_id": delivery.delivery_id,
                "recipient": delivery.recipient,
                "target": delivery.target.value,
                "state": delivery.state.value,
                "attempts": delivery.attempts,
                "message_id": delivery.message_id,
                "facts": dict(delivery.facts),
                "steps": [_step(step, catalogue) for step in steps if step.delivery_id == delivery.delivery_id],
            }
            for delivery in spool.deliveries(spool_id)
        ],
    }


def _step(step: Step, catalogue: Mapping[str, Refusal]) -> dict[str, Any]:
    refusal = catalogue.get(step.code)
    return {
        "at": step.at,
        "node": step.node,
        "step": step.kind,
        "code": step.code,
        "detail": step.detail,
        "text": refusal.text if refusal else "",
    }


def render(lives: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """Lines for a terminal; `lives` by operator. What partners wrote is shown without what would steer the terminal."""
    for operator, messages in lives.items():
        for message in messages:
            name = f"  MSH-10 {one_line(message['external_id'])}" if message["external_id"] else ""
            yield f"{operator}: message {message['spool_id']} by {message['origin']}, {message['size']} bytes{name}"
            if message.get("purged_at"):
                accepted, purged = _moment(message["accepted_at"]), _moment(message["purged_at"])
                yield f"  accepted {accepted}, purged on {purged}: no more of it is kept"
            for flag in message["flags"]:
                yield f"  flag {flag}"
            for step in message["steps"]:
                yield _line(step)
            for delivery in message["deliveries"]:
                yield f"  to {one_line(delivery['recipient'])} ({delivery['target']}): {delivery['state']}"
                yield f"    Message-ID {one_line(delivery['message_id'])}"
                if read := _reading(delivery):
                    yield f"    {read}"
                if missing := _missing(message, delivery):
                    yield f"    waits for {one_line(missing)}"
                if verdict := delivery["facts"].get("verdict"):
                    yield f"    verdict {one_line(verdict)}"
                for step in delivery["steps"]:
                    yield "  " + _line(step)


def _moment(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}Z"


_READ = {
    "acknowledged": "a named person has taken note of it (relais reading)",
    "displayed": "its reader's receipt says so",
    "seen": "the mailbox says that it was opened (IMAP); no receipt was sent",
    "processed": "its reader's software has taken it up, as its receipt says; nobody is known to have looked at it",
    "removed": "it was taken out of the mailbox; no receipt was sent",
}
"""The best evidence first."""


def _reading(delivery: Mapping[str, Any]) -> str:
    """Whether it was read, as far as is known and how that is known; empty when nobody knows or asked."""
    steps = delivery["steps"]
    found: dict[str, tuple[str, float]] = {}
    for step in steps:
        heard = step["step"] == "heard"
        kind = step["detail"].split(" ")[0] if heard else step["step"]
        whose = "" if heard else one_line(step["detail"])
        if kind in _READ and (kind not in found or (found[kind][0] and not whose)):  # its own reader's before another's
            found[kind] = whose, step["at"]
    for kind, words in _READ.items():
        if kind in found:
            whose, at = found[kind]
            by = f" ({whose})" if whose else ""
            return f"{'taken up' if kind == 'processed' else 'read'} {_moment(at)}: {words}{by}"
    late = next((step for step in steps if step["step"] == "unread"), None)
    if late is None:
        return ""
    on = " and it was handed on to the fallback reader" if any(step["step"] == "handed-on" for step in steps) else ""
    told = one_line(late["detail"]) or "its sender was told"
    return f"unread at its deadline {_moment(late['at'])}: {told}{on}"


def _missing(message: Mapping[str, Any], delivery: Mapping[str, Any]) -> str:
    """What has not happened yet, in words; empty when nothing is waited for."""
    steps = delivery["steps"]
    kinds = [step["step"] for step in steps]
    if delivery["state"] == "ready":
        if next((kind for kind in reversed(kinds) if kind in ("held", "freed")), "") == "held":
            return "an operator's release: relais queue"
        last = next((step["code"] for step in reversed(steps) if step["step"] == "deferred"), "")
        return f"its delivery, for {_hours_since(message['accepted_at'])} h" + (
            f", last refused as {last}" if last else ""
        )
    if "quarantined" in kinds and not {"released", "dropped"} & set(kinds):
        return f"a person's decision: relais quarantine show {delivery['delivery_id']}"
    relayed = next((step for step in steps if (step["step"], step["code"]) == ("delivered", "relayed")), None)
    if relayed is not None and not {"answered", "purged"} & set(kinds):
        domain = delivery["recipient"].rpartition("@")[2]
        return f"the delivery receipt that the operator of {domain} promised {_hours_since(relayed['at'])} h ago"
    return ""


def _hours_since(at: float) -> int:
    return max(0, int((time.time() - at) // 3600))


def _line(step: Mapping[str, Any]) -> str:
    at = datetime.fromtimestamp(step["at"], UTC)
    words = one_line(" ".join((step["code"], step["text"], step["detail"])))
    return f"  {at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03d}Z  {step['step']:<10} {words}".rstrip()
