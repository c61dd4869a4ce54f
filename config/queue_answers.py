"""What a running gateway answers about its queue: the calls behind `relais queue`, synchronous, off the loop.

Who acts is whoever the kernel says is at the other end of the control socket, beside the name they give themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from config.control import Peer
from directory import refusals as directory_refusals
from directory.resolve import Directory, DirectoryUnavailableError
from mta import queue_refusals, refusals
from mta.message import TargetKind
from mta.queue import MOST_AT_ONCE, Acted, Actor, Queue, Shown
from mta.queue_listing import CursorError, Listed, Page, Wanted
from mta.smtp.address import domain_of, is_address
from smime.refusals import NO_ENCRYPTION_CERTIFICATE
from trust.refusals import Refused

Request = Mapping[str, Any]
_QUIET = frozenset((queue_refusals.ALREADY_DUE.code, queue_refusals.UNKNOWN.code))
"""Of an act on many: nothing was to be done, or it has gone its way meanwhile."""
_FINAL = frozenset(("expire", "drop"))
_LONGEST_WORDS = 1000
_MOST_TOLD = 20
"""Refused deliveries of a page that are named; all are counted."""


@dataclass(frozen=True, slots=True)
class Redirections:
    """Where a delivery may be sent instead: only where our own senders might have written to."""

    directory: Directory
    exists: Callable[[str], bool]
    """Whether a mailbox is ours; may block."""
    local_domains: Collection[str]
    patient_domains: Collection[str]
    is_trusted: Callable[[str], bool]
    """Judges a lower-case mail domain; may block."""

    def target(self, former: str, address: str) -> TargetKind | Refused:
        """Nothing goes from or to a patient's mailbox: what a patient may read and what a professional may is decided
        for each when the report is accepted (`bridges.routing`)."""
        if not is_address(address):
            return Refused(refusals.ADDRESS_INVALID)
        domain = domain_of(address)
        if {domain, domain_of(former)} & set(self.patient_domains):
            return Refused(queue_refusals.NOT_REDIRECTABLE)
        local = domain in self.local_domains
        if local and not self.exists(address):
            return Refused(refusals.MAILBOX_UNKNOWN)
        if not local and not self.is_trusted(domain):
            return Refused(refusals.RECIPIENT_NOT_TRUSTED)
        try:
            found = self.directory.resolve(address)
        except DirectoryUnavailableError:
            return Refused(directory_refusals.UNAVAILABLE)
        if found is None:
            return Refused(directory_refusals.RECIPIENT_UNKNOWN)
        if not found.encryption_certificates:
            return Refused(NO_ENCRYPTION_CERTIFICATE, "none is published")
        return TargetKind.MAILBOX if local else TargetKind.SMTP


def _nothing() -> None:
    """Nobody is to be told."""


@dataclass(frozen=True, slots=True)
class QueueAnswers:
    queue: Queue
    redirections: Redirections
    hurry: Callable[[], None] = _nothing
    """Called once something is to be tried now: what rests for having failed is not to wait for the end of its rest."""

    def calls(self) -> dict[str, Callable[[Request], Any]]:
        """All calls by name; what cannot be asked for comes as `{"problem": sentence}`."""
        return {
            "queue.list": self.list,
            "queue.show": self.show,
            "queue.act": _with_a_reason(self.act),
            "queue.act-on-many": _with_a_reason(self.act_on_many),
            "queue.destination": _with_a_reason(self.destination),
            "queue.redirect": _with_a_reason(self.redirect),
        }

    def list(self, request: Request) -> Any:
        page = self._page(request, int(request["limit"]))
        if isinstance(page, dict):
            return page
        answer: dict[str, Any] = {
            **self.queue.counts(),
            "deliveries": [_listed(each) for each in page.deliveries],
            "following": page.following,
        }
        if request["overview"]:
            answer["destinations"] = [
                {"destination": each.destination, "waiting": each.waiting, "held": each.held}
                for each in self.queue.lanes()
            ]
            answer["held_destinations"] = [
                {"destination": each.destination, "held_at": each.held_at, "by": each.by, "reason": each.reason}
                for each in self.queue.held_destinations()
            ]
        return answer

    def show(self, request: Request) -> Any:
        shown = (self.queue.show(delivery_id) for delivery_id in self.queue.named(request["reference"]))
        return [_shown(each) for each in shown if each is not None]

    def act(self, request: Request) -> Any:
        """On deliveries by any of their names; [] when none is known here."""
        ids = list(dict.fromkeys(each for name in request["references"] for each in self.queue.named(name)))
        if request["act"] in _FINAL:
            for name in request["references"]:
                several = self.queue.messages_of(self.queue.named(name))
                if len(several) > 1:  # one system counts from 1 again, and so does the next
                    which = ", ".join(several[:_MOST_TOLD])
                    return {"problem": f"{len(several)} messages have that name ({name}): give the id of one ({which})"}
        if len(ids) > MOST_AT_ONCE:
            return {"problem": f"that names {len(ids)} deliveries: choose them by destination, state, age or code"}
        return [_acted(each) for each in self._do(request, ids)] if ids else []

    def act_on_many(self, request: Request) -> Any:
        """On one page of what the filters choose; `following` leads to the next."""
        page = self._page(request, MOST_AT_ONCE)
        if isinstance(page, dict):
            return page
        ids = [each.delivery_id for each in page.deliveries]
        acted = self._do(request, ids) if ids else []
        refused = [each for each in acted if each.refused is not None and each.refused.refusal.code not in _QUIET]
        return {
            "done": sum(each.refused is None for each in acted),
            "refused": len(refused),
            "examples": [_acted(each) for each in refused[:_MOST_TOLD]],
            "following": page.following,
        }

    def destination(self, request: Request) -> Any:
        act = self.queue.release_destination if request["release"] else self.queue.hold_destination
        return _acted(act(request["destination"], _actor(request)))

    def redirect(self, request: Request) -> Any:
        """One delivery; [] when it is not known here."""
        ids = self.queue.named(request["reference"])
        if len(ids) > 1:
            return {"problem": "that names several deliveries: redirect one at a time, by its delivery id"}
        shown = self.queue.show(ids[0]) if ids else None
        if shown is None:
            return []
        if not shown.recipient:
            return [_acted(Acted(ids[0], Refused(queue_refusals.UNREADABLE)))]
        target = self.redirections.target(shown.recipient, request["recipient"])
        if isinstance(target, Refused):
            return [_acted(Acted(ids[0], target))]
        return [_acted(self.queue.redirect(ids[0], request["recipient"], target, _actor(request)))]

    def _do(self, request: Request, ids: Sequence[str]) -> Sequence[Acted]:
        actor = _actor(request)
        match request["act"]:
            case "hold":
                return self.queue.hold(ids, actor)
            case "release":
                return self.queue.release(ids, actor)
            case "retry":
                acted = self.queue.retry(ids, actor, although_told=request["although_told"] is True)
                self.hurry()
                return acted
            case "expire":
                return self.queue.expire(ids, actor)
            case "drop":
                return self.queue.drop(ids, actor)
            case other:
                raise KeyError(other)

    def _page(self, request: Request, limit: int) -> Page | dict[str, str]:
        """What the request chooses, or a problem."""
        try:
            wanted = Wanted(
                state=request["wanted"],
                destination=request["destination"],
                code=request["code"],
                accepted_before=request["accepted_before"],
            )
            return self.queue.page(wanted, limit, request["after"])
        except CursorError:
            return {"problem": "no page begins there: take what --json gave as `following`, with the same filters"}
        except (ValueError, OverflowError) as error:
            return {"problem": str(error)}


def _with_a_reason(call: Callable[[Request], Any]) -> Callable[[Request], Any]:
    def checked(request: Request) -> Any:
        reason = str(request["reason"]).strip()
        if not reason or len(reason) > _LONGEST_WORDS or len(str(request["by"])) > _LONGEST_WORDS:
            return {"problem": f"an act on the queue needs a reason, of at most {_LONGEST_WORDS} characters"}
        return call(request)

    return checked


def _actor(request: Request) -> Actor:
    peer: Peer = request["peer"]
    stated = " ".join(str(request["by"]).split())
    return Actor(f"{stated}, {peer.name}" if stated else peer.name, str(request["reason"]))


def _listed(each: Listed) -> dict[str, Any]:
    return {
        "delivery_id": each.delivery_id,
        "spool_id": each.spool_id,
        "message_id": each.message_id,
        "state": each.state.value,
        "target": each.target.value,
        "destination": each.destination,
        "priority": each.priority.name.lower(),
        "accepted_at": each.accepted_at,
        "size": each.size,
        "attempts": each.attempts,
        "due": each.due,
        "under_way": each.under_way,
        "held_at": each.held_at,
        "code": each.code,
    }


def _shown(each: Shown) -> dict[str, Any]:
    return {
        **_listed(each.listed),
        "origin": each.origin.value,
        "sender": each.sender,
        "recipient": each.recipient,
        "original_recipient": each.original_recipient,
        "detail": each.detail,
        "reported": each.reported,
        "destination_held": each.destination_held,
        "prepared": each.prepared,
    }


def _acted(each: Acted) -> dict[str, Any]:
    refusal = None if each.refused is None else each.refused.refusal
    return {
        "name": each.name,
        "done": refusal is None,
        "code": "" if refusal is None else refusal.code,
        "text": each.note if refusal is None else refusal.text,
    }
