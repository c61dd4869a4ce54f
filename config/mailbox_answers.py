"""What is done about mailboxes, on a running gateway or on the state of one that is stopped: the calls of
`relais mailbox`, synchronous, off the loop.

The directory is told at once where there is a running gateway, and by it later where there is none, or where the
directory does not answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from config.accounts_answers import told
from config.settings import Loaded
from directory.records import MailboxKind
from directory.resolve import DirectoryRefusedError, DirectoryUnavailableError
from mta.mailboxes.administration import MailboxAdministration, Shown, words_of
from mta.mailboxes.adopting import Adoption
from mta.mailboxes.listing import Listing
from mta.mailboxes.records import Custody, MailboxRecord, MailboxState, MemberRight, ReadingPreferences
from mta.mailboxes.registry import Entry, written
from mta.mailboxes.sessions import end_sessions
from trust.identities import AccountError

Request = Mapping[str, Any]

PAGE = 1000
"""Mailboxes in one answer to `list`."""
_WORDS = {"yes": True, "no": False}


@dataclass(frozen=True, slots=True)
class MailboxAnswers:
    """`listing` tells the directory; None where a running gateway will. `end_sessions` ends what is open on these
    mailboxes and says whether it did; None where nobody can. `adoption` asks the directory what a mailbox is whose kind
    nobody has said; None where it cannot be asked."""

    administration: MailboxAdministration
    listing: Listing | None = None
    end_sessions: Callable[[Collection[str]], bool] | None = None
    adoption: Adoption | None = None

    def calls(self) -> dict[str, Callable[[Request], Any]]:
        """All calls by name; what an operator cannot have comes as `{"problem": sentence}`."""
        calls: dict[str, Callable[[Request], Any]] = {
            "mailbox.list": self.list,
            "mailbox.show": self.show,
            "mailbox.create": self.create,
            "mailbox.suspend": self.suspend,
            "mailbox.close": self.close,
            "mailbox.open": self.open,
            "mailbox.describe": self.describe,
            "mailbox.quota": self.quota,
            "mailbox.preferences": self.preferences,
            "mailbox.password": self.password,
            "mailbox.member": self.member,
        }
        return {name: told(call) for name, call in calls.items()}

    def list(self, request: Request) -> Any:
        """Keys `after` (an id), `kind`, `state`, which may be empty; `next` is where to go on, empty at the end."""
        kind = MailboxKind(request["kind"]) if request["kind"] else None
        state = MailboxState(request["state"]) if request["state"] else None
        found = self.administration.list(request["after"], PAGE, kind, state)
        return {
            "mailboxes": [_row(each) for each in found],
            "next": found[-1].id if len(found) == PAGE else "",
        }

    def show(self, request: Request) -> Any:
        return _shown(self.administration.show(request["name"]))

    def create(self, request: Request) -> Any:
        record = MailboxRecord(
            address=request["address"],
            kind=MailboxKind(request["kind"]),
            label=request["label"],
            quota_bytes=request["quota_bytes"],
            id_nat=request["id_nat"],
            organisation=request["organisation"],
        )
        made = self.administration.create(record, request["login"], request["password"], request["by"])
        return self._after(made)

    def suspend(self, request: Request) -> Any:
        return self._after(self.administration.suspend(request["name"], request["reason"], request["by"]), shut=True)

    def close(self, request: Request) -> Any:
        return self._after(self.administration.close(request["name"], request["reason"], request["by"]), shut=True)

    def open(self, request: Request) -> Any:
        self._adopt(request["name"])
        return self._after(self.administration.open(request["name"], request["by"]))

    def describe(self, request: Request) -> Any:
        """Key `values`: kind, label, id_nat, organisation, those that change."""
        values = {name: str(request["values"][name]) for name in sorted(request["values"])}
        if unknown := set(values) - {"kind", "label", "id_nat", "organisation"}:
            raise AccountError(f"there is nothing called {unknown.pop()}")
        self._adopt(request["name"])
        kind = MailboxKind(values.pop("kind")) if "kind" in values else None
        return self._after(self.administration.describe(request["name"], request["by"], kind, **values))

    def quota(self, request: Request) -> Any:
        self._adopt(request["name"])
        return self._after(self.administration.set_quota(request["name"], request["quota_bytes"], request["by"]))

    def preferences(self, request: Request) -> Any:
        """Key `values`: words by name of the preference, those that change."""
        self._adopt(request["name"])
        now = self.administration.show(request["name"]).entry.record.preferences
        changed = changed_preferences(now, request["values"])
        if changed == now:
            return self.show(request)
        return self._after(self.administration.set_preferences(request["name"], changed, request["by"]))

    def password(self, request: Request) -> Any:
        shown = self.administration.set_password(request["name"], request["password"], request["by"])
        return _shown(shown) | self._ended(shown.reach)

    def member(self, request: Request) -> Any:
        """Keys `login` and `rights`, names of `MemberRight`; none: no member any more."""
        rights = MemberRight(0)
        for each in request["rights"]:
            rights |= MemberRight[each.upper()]
        self._adopt(request["name"])
        shown = self.administration.set_member(request["name"], request["login"], rights, request["by"])
        return _shown(shown) | self._ended(shown.reach)

    def _after(self, entry: Entry, *, shut: bool = False) -> dict[str, Any]:
        """The mailbox as it is after an act; `shut`: whoever has it open loses it, and comes back if they still may.
        That first: whatever the directory does, nobody reads on."""
        ended = self._ended(self.administration.show(entry.id).reach) if shut else {}
        self._tell(entry)
        return _shown(self.administration.show(entry.id)) | ended

    def _adopt(self, name: str) -> None:
        """Before an act writes its row: what it is, as far as the directory can say it now."""
        entry = self.administration.show(name).entry
        if self.adoption is not None and entry.guessed:
            with suppress(DirectoryUnavailableError):
                self.adoption.one(entry.id)

    def _tell(self, entry: Entry) -> None:
        """The directory, as far as it can be told now: what it was not told waits in the rows, and why is in the log
        of who tries again."""
        if self.listing is None or entry.published >= entry.version:
            return
        with suppress(DirectoryUnavailableError, DirectoryRefusedError, ValueError):
            self.listing.tell(entry.id)

    def _ended(self, addresses: Collection[str]) -> dict[str, bool]:
        return {"sessions_ended": self.end_sessions is not None and self.end_sessions(sorted(addresses))}


def answers_about_mailboxes(
    administration: MailboxAdministration, listing: Listing | None, adoption: Adoption | None, loaded: Loaded
) -> MailboxAnswers:
    """For the operator of this configuration."""
    doveadm = loaded.settings.mailboxes.search_socket
    ending = partial(end_sessions, loaded.path(doveadm)) if doveadm else None
    return MailboxAnswers(administration, listing, ending, adoption)


def changed_preferences(now: ReadingPreferences, values: Mapping[str, str]) -> ReadingPreferences:
    """With these words instead. Raises `AccountError`."""
    known = {each.name for each in fields(ReadingPreferences)}
    changes: dict[str, Any] = {}
    for name, word in values.items():
        if name not in known:
            raise AccountError(f"there is no preference of this name; there are {', '.join(sorted(known))}")
        if name == "custody":
            if word not in {each.value for each in Custody}:
                raise AccountError("custody is gateway or holder")
            changes[name] = Custody(word)
        elif word in _WORDS:
            changes[name] = _WORDS[word]
        else:
            raise AccountError(f"{name} is yes or no")
    return replace(now, **changes)


def _row(entry: Entry) -> dict[str, Any]:
    record = entry.record
    return {
        "id": entry.id,
        "address": record.address,
        "kind": record.kind.value,
        "kind_guessed": entry.guessed,
        "label": record.label,
        "state": record.state.value,
        "reason": record.reason,
        "account": entry.owned,
        "closed": _moment(record.closed_at),
        "purged": _moment(entry.purged_at),
    }


def _shown(shown: Shown) -> dict[str, Any]:
    record = shown.entry.record
    return _row(shown.entry) | {
        "created": _moment(record.created_at or None),
        "quota_bytes": record.quota_bytes,
        "id_nat": record.id_nat,
        "organisation": record.organisation,
        "preferences": written(record.preferences),
        "members": [{"login": each.login, "rights": words_of(each.rights).split()} for each in shown.members],
        "directory_told": shown.entry.published >= shown.entry.version,
    }


def _moment(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
