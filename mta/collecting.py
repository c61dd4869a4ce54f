"""Collecting a mailbox another operator keeps for one of our people: over IMAP, pushed by IDLE, each message once.

A message is marked upstream only after the spool has it, so a crash in between makes us see it again. What makes it
arrive once is therefore its content, never its place: the dedup key is the collector's name, the mailbox here, the
Message-ID and a digest of the message without the trace fields each hop adds. UID and UIDVALIDITY are left out on
purpose: a mailbox that is rebuilt (new UIDVALIDITY, RFC 9051 §2.3.1.1), or in which the same message stands twice,
would otherwise give copies. A message without Message-ID is told apart by all its octets.

What we have stays upstream, marked, or moves into a folder there. Where not everything may stay (`Stays`), the rest is
removed once it lies in the mailbox here; what never gets there (it is refused, or its delivery breaks) stays upstream.
Where the server has keywords, nothing is marked as read: whoever sent it may be waiting for somebody to read it.

What we cannot carry (too large, bare line ends, no readable author) stays upstream unmarked, is counted and logged
once, and is not asked for again until the next start. What the server cannot give, or what breaks the connection each
time, comes behind the others and is asked for ever more rarely: it holds up nobody. The server is believed in nothing:
it may send any line, at any length, and gets no more than a bounded amount of memory. Nothing of what it says, and no
password, is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from typing import Any, TypeVar

from aioimaplib import aioimaplib
from sqlalchemy.exc import SQLAlchemyError

from mta import refusals
from mta.collecting_options import After, CollectorOptions, CollectorStatus, SecretUnavailableError, SignIn, Stays
from mta.delivery import Accepted, Duplicate, NewDelivery, Submission
from mta.header import author_of, message_id_of
from mta.imap_client import ANSWER_BYTES, BoundedClient
from mta.loops import going_round
from mta.message import DeliveryState, Origin, TargetKind
from mta.smtp.address import domain_of, parse_path
from mta.smtp.content import crlf_only
from mta.spool import Spool
from smime.mime import Entity, MimeError, parse_entity
from trust.refusals import Refused
from trust.store.database import StoreUnavailableError

__all__ = ["KEYWORD", "After", "Collector", "CollectorOptions", "CollectorStatus", "SignIn", "Stays"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

KEYWORD = "$RelaisCollected"
"""What marks a collected message where the server lets us make keywords (RFC 9051 §2.3.2)."""

_TRACE_FIELDS = frozenset({"return-path", "received", "delivered-to", "x-original-to", "envelope-to"})
"""What each way to the mailbox adds on top: two copies of one message differ in them (RFC 5321 §4.4)."""
_SMIME = ("application/pkcs7-mime", "application/x-pkcs7-mime")
_BREATH = 0.05
"""Seconds between two looks, however often the server says that something arrived."""
_CANCEL_AGAIN_SECONDS = 1.0
_SIZES_AT_ONCE = 50
_MOST_AT_ONCE = 500_000
"""UIDs of one look, about 40 MB."""
_FILED_SECONDS, _LONGEST_FILED_SECONDS = 1.0, 60.0
"""Between two questions whether what is not to stay upstream has been filed here: the first, and the longest."""
_OLD_SECONDS = 7 * 86400.0
_CONSPICUOUS = 3
"""How often one message has to fail to come until the operator is told."""
_UID = re.compile(rb"[ (]UID (\d{1,10})(?=[ )])")
_SIZE = re.compile(rb"[ (]RFC822\.SIZE (\d{1,10})(?=[ )])")
_FLAGS = re.compile(rb"[ (]FLAGS \(([^)]*)\)")
_DATE = re.compile(rb'[ (]INTERNALDATE "([ -!#-~]{1,40})"')
_VALIDITY = re.compile(rb"\[UIDVALIDITY (\d{1,10})\]")
_PERMANENT = re.compile(rb"\[PERMANENTFLAGS \(([^)]*)\)\]")


class _TroubleError(Exception):
    """The upstream cannot be collected now. The text is a short stable name, nothing a server said."""

    def __init__(self, name: str, pause: float | None = None) -> None:
        super().__init__(name)
        self.pause = pause


class Collector:
    """Collects one mailbox until `stop`. One per event loop; what blocks runs in a thread of its own."""

    def __init__(
        self,
        options: CollectorOptions,
        spool: Spool,
        exists: Callable[[str], bool],
        has_key: Callable[[str], bool] = lambda address: True,
    ) -> None:
        """`exists` says whether a mailbox is ours, `has_key` whether anything could ever be opened for it; both may
        block. Without them nothing is taken from upstream."""
        self._options = options
        self._spool = spool
        self._exists = exists
        self._has_key = has_key
        self._targets = (TargetKind.MAILBOX, *((TargetKind.FOLDER,) if options.to_folder else ()))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="collect")
        self._status = CollectorStatus()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._failures = 0
        self._validity = -1
        self._done: set[int] = set()
        """UIDs under `_validity` that need no second look, whatever the server says of their flags."""
        self._leaving: dict[int, str] = {}
        """UIDs under `_validity` of what is removed once it is filed here, and its spool ids."""
        self._filed_pause = _FILED_SECONDS
        self._asked: Sequence[int] = ()
        """UIDs of the FETCH under way."""
        self._withheld: dict[int, _Withheld] = {}
        """By UID: it was asked for and did not come."""

    @property
    def status(self) -> CollectorStatus:
        return self._status

    @property
    def name(self) -> str:
        return self._options.name

    @property
    def address(self) -> str:
        """Whom it collects for."""
        return self._options.deliver_to

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called: it collects no more, and nobody need wonder."""
        return self._stopping

    async def run(self) -> None:
        """Collect until `stop`; never ends because of what the upstream does."""
        self._task = asyncio.current_task()
        try:
            while not self._stopping:
                pause = await self._session()
                await asyncio.sleep(pause)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        finally:
            self._status = replace(self._status, connected=False)

    async def stop(self) -> None:
        """End `run`; a message on its way into the spool gets there first."""
        self._stopping = True
        if self._task is not None:
            await _end(self._task)
        await asyncio.to_thread(self._thread.shutdown)

    async def _session(self) -> float:
        """One connection, until it breaks. Returns how long to wait before the next one, in seconds."""
        options = self._options
        pause: float | None = None
        try:
            await self._talk()
            trouble = "connection-lost"
        except _TroubleError as error:
            trouble, pause = str(error), error.pause
        except Exception as error:  # a library over hostile lines raises anything; the spool, what its store raises
            trouble = type(error).__name__
        self._withhold(self._asked)
        self._failures += 1
        if trouble != self._status.trouble:  # one line for an outage, not one for each attempt
            _log.warning("collector %s: %s, trying again", options.name, trouble)
        self._status = replace(self._status, connected=False, trouble=trouble)
        if pause is None:
            pause = min(options.first_pause * 2.0 ** min(self._failures - 1, 20), options.longest_pause)
        return pause

    async def _talk(self) -> None:
        """Connect and work until the connection is lost."""
        options = self._options
        if not await self._in_thread(self._exists, options.deliver_to):
            raise _TroubleError("mailbox-unknown", options.longest_pause)
        if not await self._in_thread(self._has_key, options.deliver_to):
            raise _TroubleError("no-key", options.longest_pause)
        client = BoundedClient(options.host, options.port, timeout=options.command_seconds, ssl_context=options.context)
        work = asyncio.create_task(self._work(client))
        lost = asyncio.create_task(client.protocol.lost.wait())
        try:
            await asyncio.wait({work, lost}, return_when=asyncio.FIRST_COMPLETED)
            if work.done() and not work.cancelled():
                work.result()
        finally:
            await _end(work, lost)
            await client.abort()

    async def _work(self, client: BoundedClient) -> None:
        options = self._options
        await client.wait_hello_from_server()
        await self._sign_in(client)
        async with asyncio.timeout(options.command_seconds):
            await client.protocol.capability()
        opened = await client.select(aioimaplib.quoted(options.folder))
        _ok(opened, "folder-refused")
        mark = await self._prepare(client, opened.lines)
        while True:
            client.protocol.arrived.clear()
            await self._collect(client, mark)
            self._failures = 0
            if self._status.trouble:
                _log.warning("collector %s: collecting again", options.name)
            self._status = replace(self._status, connected=True, trouble="")
            await asyncio.sleep(_BREATH)
            if not client.protocol.arrived.is_set():
                await self._wait(client)

    async def _sign_in(self, client: BoundedClient) -> None:
        options = self._options
        if options.sign_in is SignIn.CERTIFICATE:
            if client.get_state() == aioimaplib.AUTH:
                return
            answer = await client.authenticate("EXTERNAL", options.user.encode())
        else:
            try:
                secret = options.password if options.secret is None else await self._in_thread(options.secret)
            except SecretUnavailableError as error:
                raise _TroubleError(str(error)) from None
            if not secret or any(ord(c) < 32 for c in secret):
                raise _TroubleError("secret-unusable", options.longest_pause)
            if options.sign_in is SignIn.TOKEN:
                words = f"user={options.user}\x01auth=Bearer {secret}\x01\x01"
                answer = await client.authenticate("XOAUTH2", words.encode())
            else:
                answer = await client.login(aioimaplib.quoted(options.user), secret)
        if answer.result != "OK":
            passing = any(code in bytes(answer.lines[-1]) for code in (b"[UNAVAILABLE]", b"[INUSE]", b"[SERVERBUG]"))
            raise _TroubleError("login-unavailable") if passing else _TroubleError("login-refused", options.login_pause)

    async def _prepare(self, client: BoundedClient, lines: Sequence[bytes]) -> _Mark:
        """How to mark here; forgets UIDs when UIDVALIDITY is another one."""
        options = self._options
        text = b"\n".join(bytes(line) for line in lines)
        validity = _VALIDITY.search(text)
        if validity is None:
            raise _TroubleError("no-uidvalidity")
        if int(validity[1]) != self._validity:
            self._validity = int(validity[1])
            self._done.clear()
            self._leaving.clear()
            self._withheld.clear()
        permanent = _PERMANENT.search(text)
        flags = permanent[1].split() if permanent else []
        keyword = rb"\*" in flags or KEYWORD.encode() in flags
        if options.after is After.MOVE:
            if client.has_capability("MOVE"):
                # an existing folder is refused, and fine; one that cannot be made shows when we move
                await client.create(aioimaplib.quoted(options.move_to))
                return _Mark("UNDELETED", "", r"(\Deleted)")
            _log.warning("collector %s: the server cannot move, messages are flagged instead", options.name)
        if keyword:
            return _Mark(f"UNKEYWORD {KEYWORD} UNDELETED", f"({KEYWORD})", rf"(\Deleted {KEYWORD})")
        # what somebody reads upstream before us then stays there: without keywords nothing better tells
        return _Mark("UNSEEN UNDELETED", r"(\Seen)", r"(\Deleted)")

    async def _wait(self, client: BoundedClient) -> None:
        """Until the server says that something arrived, something here lets us remove what it has, or it is time to say
        something again."""
        options, protocol = self._options, client.protocol
        protocol.allow(ANSWER_BYTES)
        if not client.has_capability("IDLE"):
            await asyncio.sleep(options.poll_seconds)
            _ok(await client.noop(), "noop-refused")
            return
        try:
            async with asyncio.timeout(options.command_seconds):
                idle = await client.idle_start(2 * options.idle_seconds)
        except aioimaplib.Abort:  # announced, and refused all the same
            await asyncio.sleep(options.poll_seconds)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(options.idle_seconds):
                await self._news(protocol.arrived)
        client.idle_done()
        async with asyncio.timeout(options.command_seconds):
            _ok(await idle, "idle-refused")
        while not protocol.idle_queue.empty():
            protocol.idle_queue.get_nowait()

    async def _news(self, arrived: asyncio.Event) -> None:
        while self._leaving:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._filed_pause):
                    await arrived.wait()
                    return
            self._filed_pause = min(2 * self._filed_pause, _LONGEST_FILED_SECONDS)
            states = await self._in_thread(self._spool.mailbox_states, list(self._leaving.values()))
            if any(DeliveryState.READY not in states.get(each, ()) for each in self._leaving.values()):
                return
        await arrived.wait()

    async def _collect(self, client: BoundedClient, mark: _Mark) -> None:
        """One look at the folder: everything that is not marked."""
        unmarked = await self._unmarked(client, mark)
        self._done &= unmarked
        self._leaving = {uid: spool_id for uid, spool_id in self._leaving.items() if uid in unmarked}
        self._withheld = {uid: withheld for uid, withheld in self._withheld.items() if uid in unmarked}
        due = sorted(unmarked - self._done - self._withheld.keys())
        if len(unmarked) >= _MOST_AT_ONCE:
            if not due and not self._leaving:
                raise _TroubleError("folder-too-full", self._options.longest_pause)
            client.protocol.arrived.set()
        for start in range(0, len(due), _SIZES_AT_ONCE):
            await self._some(client, mark, due[start : start + _SIZES_AT_ONCE])
        now = asyncio.get_running_loop().time()
        for uid in sorted(uid for uid, withheld in self._withheld.items() if withheld.until <= now):
            await self._some(client, mark, (uid,))
        await self._take_away(client, mark)

    async def _take_away(self, client: BoundedClient, mark: _Mark) -> None:
        """What is not to stay upstream, and has an end here."""
        if not self._leaving:
            return
        states = await self._in_thread(self._spool.mailbox_states, list(self._leaving.values()))
        for uid, spool_id in list(self._leaving.items()):
            filed = states.get(spool_id, ())  # none when its trace was purged: nobody knows, so it stays
            if DeliveryState.READY in filed:
                continue
            if filed and all(state is DeliveryState.DELIVERED for state in filed):
                await self._remove(client, mark, uid)
            else:
                _log.warning("collector %s: message %s is not filed here, stays there", self._options.name, spool_id)
                await self._mark(client, mark, uid)
            del self._leaving[uid]

    async def _unmarked(self, client: BoundedClient, mark: _Mark) -> set[int]:
        """UIDs of everything that is not marked, asked for in windows, for an answer is one line however many it names.
        Little more than `_MOST_AT_ONCE`: what lies behind comes when those are marked."""
        unmarked: set[int] = set()
        start, window = 1, self._options.search_window
        while len(unmarked) < _MOST_AT_ONCE:
            client.protocol.allow(ANSWER_BYTES)
            last = start + window > client.protocol.exists
            # the last window is open: what arrived meanwhile is in it, and no number that is not there is named
            part = f"{start}:{start + window - 1} " if not last else f"{start}:* " if start > 1 else ""
            found = await client.uid_search(part + mark.unmarked, charset=None)
            _ok(found, "search-refused")
            unmarked |= _numbers(found.lines[:-1])
            if last:
                break
            start += window
        return unmarked

    async def _some(self, client: BoundedClient, mark: _Mark, uids: Sequence[int]) -> None:
        listed = await self._listed(client, uids)
        for uid, one in listed.items():
            await self._one(client, mark, uid, one)
        self._withhold([uid for uid in uids if uid not in listed])

    def _withhold(self, uids: Sequence[int]) -> None:
        """These were asked for and did not come: one at a time and behind the others from now on."""
        now = asyncio.get_running_loop().time()
        for uid in uids:
            times = self._withheld[uid].times + 1 if uid in self._withheld else 1
            # the first time may be anybody's lost connection: no pause; then longer than any between two connections
            self._withheld[uid] = _Withheld(times, now + (times - 1) * self._options.longest_pause)
            if times == _CONSPICUOUS:
                _log.warning("collector %s: message with UID %d cannot be fetched", self._options.name, uid)
                self._status = replace(self._status, refused=self._status.refused + 1)
        self._asked = ()

    async def _one(self, client: BoundedClient, mark: _Mark, uid: int, listed: _Listed) -> None:
        size, limit = listed.size, self._options.max_message_bytes
        content = await self._body(client, uid) if size <= limit else b""
        if content is None:  # when it was deleted meanwhile, the next look forgets it
            self._withhold((uid,))
            return
        self._withheld.pop(uid, None)
        if max(size, len(content)) > limit:
            self._leave(Refused(refusals.MESSAGE_TOO_LARGE), uid)
            return
        try:
            kept = await self._in_thread(self._keep, content, listed.read_long_ago)
        except (OSError, StoreUnavailableError, SQLAlchemyError):
            raise  # the store breaks: later, and for all of them
        except Exception as error:  # our bug, over this message: it must not hold up those behind it
            _log.error("collector %s: a message cannot be kept: %s", self._options.name, type(error).__name__)
            kept = Refused(refusals.INTERNAL_ERROR)
        if isinstance(kept, Refused):
            self._leave(kept, uid)
            return
        if isinstance(kept, Duplicate):
            self._status = replace(self._status, repeated=self._status.repeated + 1)
        else:
            self._status = replace(self._status, collected=self._status.collected + 1)
        stays = self._options.stays
        if stays is Stays.NOTHING or (stays is Stays.ENCRYPTED and not is_encrypted(content)):
            self._leaving[uid] = kept.spool_id  # forgotten at a restart: it then comes again, and is recognised
            self._filed_pause = _FILED_SECONDS
        else:
            await self._mark(client, mark, uid)
        self._done.add(uid)  # not before: when the connection broke, it is marked at the next look

    def _leave(self, refused: Refused, uid: int) -> None:
        """It stays upstream; not looked at again before the next start."""
        self._done.add(uid)
        code = refused.refusal.code
        _log.warning("collector %s: message with UID %d left upstream: %s", self._options.name, uid, code)
        if refused.refusal is refusals.MESSAGE_TOO_LARGE:
            self._status = replace(self._status, oversized=self._status.oversized + 1)
        else:
            self._status = replace(self._status, refused=self._status.refused + 1)

    async def _mark(self, client: BoundedClient, mark: _Mark, uid: int) -> None:
        """A mark the server refuses costs a repeat after the next start, which the spool recognises."""
        client.protocol.allow(ANSWER_BYTES)
        async with asyncio.timeout(self._options.command_seconds):
            if mark.flags:
                answer = await client.uid("STORE", str(uid), "+FLAGS.SILENT", mark.flags)
            else:
                answer = await client.uid("MOVE", str(uid), aioimaplib.quoted(self._options.move_to))
        if answer.result != "OK":
            _log.warning("collector %s: the server does not let us mark UID %d", self._options.name, uid)

    async def _remove(self, client: BoundedClient, mark: _Mark, uid: int) -> None:
        """This message and no other: without UIDPLUS (RFC 4315) it is only marked, for EXPUNGE would take away what
        somebody else has deleted. Where nothing may be deleted it stays, marked."""
        client.protocol.allow(ANSWER_BYTES)
        async with asyncio.timeout(self._options.command_seconds):
            answer = await client.uid("STORE", str(uid), "+FLAGS.SILENT", mark.removed)
            refused = answer.result != "OK"
            if removed := not refused and client.has_capability("UIDPLUS"):
                answer = await client.uid("EXPUNGE", str(uid))
        if removed and answer.result == "OK":
            self._status = replace(self._status, removed=self._status.removed + 1)
            return
        _log.warning("collector %s: the server does not let us remove UID %d", self._options.name, uid)
        if refused:
            await self._mark(client, mark, uid)

    async def _listed(self, client: BoundedClient, uids: Sequence[int]) -> dict[int, _Listed]:
        """By UID, of those that still exist."""
        client.protocol.allow(ANSWER_BYTES)
        items = "(UID RFC822.SIZE FLAGS INTERNALDATE)" if self._options.to_folder else "(UID RFC822.SIZE)"
        answer = await self._fetch(client, uids, items)
        found: dict[int, _Listed] = {}
        for line in answer:
            uid, size = _UID.search(line), _SIZE.search(line)
            if uid is not None and size is not None and int(uid[1]) in uids:
                found[int(uid[1])] = _Listed(int(size[1]), _read_long_ago(bytes(line)))
        return found

    async def _body(self, client: BoundedClient, uid: int) -> bytes | None:
        """The message as the server has it; None when there is none any more."""
        client.protocol.allow(ANSWER_BYTES + self._options.max_message_bytes)
        lines = await self._fetch(client, (uid,), "(UID BODY.PEEK[])")
        pieces: list[bytes] = []
        literal = bytearray()
        for line in (*lines, b"0 FETCH ("):
            if isinstance(line, bytearray):
                literal = line
                continue
            if re.match(rb"\d+ FETCH \(", line):  # flags of others may come between
                text = b"".join(pieces)
                named = _UID.search(text)
                if named is not None and int(named[1]) == uid and b"BODY[] {" in text:
                    return bytes(literal)
                pieces, literal = [], bytearray()
            pieces.append(line)
        return None

    async def _fetch(self, client: BoundedClient, uids: Sequence[int], items: str) -> list[bytes | bytearray]:
        """What the server says about them; nothing when it refuses."""
        self._asked = uids  # until it ends: when it does not, `_session` sees it
        async with asyncio.timeout(self._options.message_seconds):
            answer = await client.uid("FETCH", ",".join(map(str, uids)), items)
        self._asked = ()
        return list(answer.lines[:-1]) if answer.result == "OK" else []

    # In the thread

    def _keep(self, content: bytes, read_long_ago: bool) -> Accepted | Duplicate | Refused:
        """Into the spool. What was read long ago is old news for the practice software."""
        if not crlf_only(content):
            return Refused(refusals.LINE_ENDINGS)
        try:
            entity = parse_entity(content)
        except MimeError:
            return Refused(refusals.HEADER_INVALID)
        if author_of(entity) is None:
            return Refused(refusals.HEADER_INVALID)
        if len(entity.values("received")) >= self._options.hops:
            return Refused(refusals.TOO_MANY_HOPS)
        if going_round(entity, self._options.trace_host, [self._options.deliver_to.lower()], self._recipients_of):
            return Refused(refusals.MAIL_LOOP)
        message_id = message_id_of(entity)
        options = self._options
        targets = self._targets[:1] if read_long_ago else self._targets
        accepted = self._spool.accept(
            Submission(
                origin=Origin.COLLECTED,
                sender=_return_path(entity),
                peer=options.name,
                content=content,
                content_type="message/rfc822",
                deliveries=tuple(NewDelivery(options.deliver_to, target) for target in targets),
                dedup_key=_dedup_key(options.name, options.deliver_to, message_id, entity),
                message_id_domain=domain_of(options.deliver_to),
                message_id=message_id,
            )
        )
        if isinstance(accepted, Accepted):
            _log.info("collector %s: message %s kept", options.name, accepted.spool_id)
        return accepted

    def _recipients_of(self, spool_id: str) -> list[str]:
        return [each.recipient for each in self._spool.deliveries(spool_id)]

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)


@dataclass(frozen=True, slots=True)
class _Withheld:
    times: int
    until: float
    """Time of the event loop, seconds."""


@dataclass(frozen=True, slots=True)
class _Listed:
    """What the server says of one message before it is fetched."""

    size: int
    read_long_ago: bool
    """Somebody has read it there, and it came more than a week ago: the practice has had it in another way."""


@dataclass(frozen=True, slots=True)
class _Mark:
    unmarked: str
    """SEARCH criteria."""
    flags: str
    """What STORE adds; empty: the message is moved."""
    removed: str
    """What STORE adds to one that is removed."""


def is_encrypted(content: bytes) -> bool:
    """Whether the whole message is S/MIME that only a key opens, as far as it says so itself (RFC 8551 §3.2.2)."""
    try:
        content_type = parse_entity(content).content_type()
    except MimeError:
        return False
    said = content_type.parameters.get("smime-type", "").lower()
    return content_type.media_type in _SMIME and said in ("enveloped-data", "authenveloped-data")


def _read_long_ago(line: bytes) -> bool:
    flags, date = _FLAGS.search(line), _DATE.search(line)
    if flags is None or date is None or rb"\seen" not in flags[1].lower().split():
        return False
    try:
        came = datetime.strptime(date[1].decode("ascii").strip(), "%d-%b-%Y %H:%M:%S %z")
    except ValueError:
        return False
    return came.timestamp() < time.time() - _OLD_SECONDS


def _return_path(entity: Entity) -> str:
    """The reverse-path as the upstream's final delivery wrote it on top (RFC 5321 §4.4); empty when there is none."""
    values = entity.values("return-path")
    path = parse_path(f"FROM:{values[0]}", "FROM") if values else None
    return "" if path is None else path.address


def _dedup_key(name: str, mailbox: str, message_id: str, entity: Entity) -> str:
    """See the module's paragraph."""
    digest = sha256()
    for part in (b"collected", name.encode(), mailbox.encode(), message_id.encode()):
        digest.update(len(part).to_bytes(4, "big") + part)
    for one in entity.fields:
        if not message_id or one.name not in _TRACE_FIELDS:
            digest.update(one.raw)
    digest.update(b"\r\n")
    digest.update(entity.body)
    return digest.hexdigest()


def _ok(answer: aioimaplib.Response, trouble: str) -> None:
    if answer.result != "OK":
        raise _TroubleError(trouble)


def _numbers(lines: Sequence[bytes]) -> set[int]:
    """The UIDs of a SEARCH answer."""
    words = b" ".join(bytes(line) for line in lines).split()
    if not all(word.isdigit() and len(word) <= 10 for word in words):
        raise _TroubleError("search-unreadable")
    return {int(word) for word in words}


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel them until they have ended: the `wait_for` of Python before 3.12, which the library lives by, loses a
    cancellation that comes in the moment in which what it waits for is there. What they raise is theirs."""
    cancelled = False
    while waiting := [each for each in tasks if not each.done()]:
        for each in waiting:
            each.cancel()
        try:
            await asyncio.wait(waiting, timeout=_CANCEL_AGAIN_SECONDS)
        except asyncio.CancelledError:  # ours: first what we have begun is ended
            cancelled = True
    for each in tasks:
        if not each.cancelled():
            each.exception()  # or asyncio would say that nobody asked
    if cancelled:
        raise asyncio.CancelledError
