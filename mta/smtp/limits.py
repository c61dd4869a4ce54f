"""What one client, one account, one partner and all of them together may cost a door.

Counters live in the memory of one process: they protect this process, and start from nothing with it. With several
processes behind one port each counts for itself.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quota:
    """What one name may do. 0: as much as it likes."""

    connections: int = 0
    """At the same time."""
    messages_per_hour: int = 0
    recipients_per_hour: int = 0
    bytes_per_hour: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the clients of one door may cost."""

    message_bytes: int = 25 * 1024 * 1024
    recipients: int = 100
    hops: int = 30
    connections: int = 400
    """At the same time, per door."""
    client: Quota = Quota(connections=250)
    """Of one network address (IPv4), or /64 (IPv6)."""
    holder: Quota = Quota(connections=250)
    """Of whoever is known: the account that logged in, or the operator of the certificate."""
    machine: Quota = Quota(connections=250)
    """Of a machine's mailbox that logged in with its certificate, instead of both: a laboratory sends what it has."""
    idle_seconds: float = 300.0
    """Between two commands (RFC 5321 §4.5.3.2.7), between two blocks of DATA, and for a reply to be fetched."""
    handshake_seconds: float = 30.0
    """For a TLS handshake, and for the header of the PROXY protocol."""
    data_seconds: float = 900.0
    """For one whole DATA, however slowly it trickles."""
    stranger_seconds: float = 60.0
    """To say who one is, by certificate or password; whoever does not would hold a place others wait for."""
    authentication_failures: int = 10
    """Per connection; more than lock an account, so that its owner is told that it is locked."""
    commands: int = 10_000
    """Of one kind per connection."""
    errors: int = 50
    """Commands that are unknown, malformed or out of order, per connection."""
    refused_recipients: int = 200
    """Per connection: more is somebody who tries out addresses."""
    free_failures: int = 5
    """Refusals (of passwords, recipients, commands) that are answered at once; the next ones wait."""
    tarpit_seconds: float = 1.0
    """For each refusal after these."""
    memory_seconds: float = 30.0
    """How long DATA waits for its share of the memory before it is told 452."""


def network_of(client: str) -> str:
    """The name under which a client's address is counted: IPv6 by /64, for a client has as many as it likes."""
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return client
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


class Hourly:
    """How much each name did within the last hour. Counted by minutes: what is forgotten is an hour old at least."""

    _STEPS = 61
    _STEP_SECONDS = 60.0

    def __init__(self, *, names: int = 50_000, clock: Callable[[], float] = time.monotonic) -> None:
        """Beyond so many `names` those that did something longest ago are forgotten."""
        self._names = names
        self._clock = clock
        self._of: OrderedDict[str, deque[tuple[int, int]]] = OrderedDict()

    def spent(self, name: str) -> int:
        steps = self._of.get(name)
        if steps is None:
            return 0
        first = int(self._clock() // self._STEP_SECONDS) - self._STEPS + 1
        while steps and steps[0][0] < first:
            steps.popleft()
        if not steps:
            del self._of[name]
        return sum(amount for _, amount in steps)

    def add(self, name: str, amount: int) -> None:
        step = int(self._clock() // self._STEP_SECONDS)
        steps = self._of.setdefault(name, deque(maxlen=self._STEPS))
        if steps and steps[-1][0] == step:
            steps[-1] = (step, steps[-1][1] + amount)
        else:
            steps.append((step, amount))
        self._of.move_to_end(name)
        if len(self._of) > self._names:
            self._of.popitem(last=False)


class Meter:
    """What each name has spent of its quota: connections now, messages, recipients and octets within the hour.

    One meter serves all doors of a process, so that a client does not have a share at each. For one event loop.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._connections: Counter[str] = Counter()
        self._messages, self._recipients, self._octets = (Hourly(clock=clock) for _ in range(3))
        self._failures = Hourly(clock=clock)

    def enter(self, name: str, quota: Quota) -> bool:
        """One connection more, unless there are too many; whoever entered leaves."""
        if quota.connections and self._connections[name] >= quota.connections:
            return False
        self._connections[name] += 1
        return True

    def leave(self, name: str) -> None:
        self._connections[name] -= 1
        if self._connections[name] <= 0:
            del self._connections[name]

    def allows(self, name: str, quota: Quota, messages: int, recipients: int, octets: int) -> bool:
        """Whether so much more is within the quota."""
        return (
            (not quota.messages_per_hour or self._messages.spent(name) + messages <= quota.messages_per_hour)
            and (
                not quota.recipients_per_hour or self._recipients.spent(name) + recipients <= quota.recipients_per_hour
            )
            and (not quota.bytes_per_hour or self._octets.spent(name) + octets <= quota.bytes_per_hour)
        )

    def charge(self, name: str, messages: int, recipients: int, octets: int) -> None:
        for hourly, amount in ((self._messages, messages), (self._recipients, recipients), (self._octets, octets)):
            if amount:
                hourly.add(name, amount)

    def failed(self, name: str) -> int:
        """Somebody of this name said a wrong password; how many within the hour."""
        self._failures.add(name, 1)
        return self._failures.spent(name)


@dataclass(slots=True, eq=False)
class Share:
    """What one message has of the memory."""

    holder: str = ""
    """Who hands it over; empty: nobody in particular."""
    octets: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    share: Share
    octets: int
    granted: asyncio.Future[None]


class MemoryBudget:
    """Octets of content that all connections together may hold at once; who comes first is served first.

    One holder has half of it at most, or whoever sends many large messages slowly would shut everybody else out. A
    message that alone is larger than that, or than all there is, comes in when nothing else is in: its size was allowed
    elsewhere. One message at a time that has begun may have more than is left, or many that grow would wait for each
    other. For one event loop.
    """

    def __init__(self, octets: int) -> None:
        self.octets = octets
        self.taken = 0
        self.most = 0
        """The most that was ever taken."""
        self.refused = 0
        """How often somebody waited in vain."""
        self._held: Counter[str] = Counter()
        self._exempt: Share | None = None
        self._waiting: deque[_Waiting] = deque()

    async def take(self, share: Share, octets: int, seconds: float) -> bool:
        """Whether so many octets more were free, or became so within `seconds`; they are in the share then.

        Who has some already goes before those who have none: what is begun is to end.
        """
        wanted = _Waiting(share, octets, asyncio.get_running_loop().create_future())
        if share.octets:
            self._waiting.appendleft(wanted)
        else:
            self._waiting.append(wanted)
        self._serve()
        if wanted.granted.done():
            return True
        try:
            async with asyncio.timeout(seconds):
                await wanted.granted
        except TimeoutError:
            if wanted.granted.cancelled():  # and not granted at the same moment
                self.refused += 1
                return False
        finally:
            if wanted in self._waiting:
                self._waiting.remove(wanted)
                self._serve()
        return True

    def give_back(self, share: Share) -> None:
        """All of it."""
        self.taken -= share.octets
        self._held[share.holder] -= share.octets
        if not self._held[share.holder]:
            del self._held[share.holder]
        if self._exempt is share:
            self._exempt = None
        share.octets = 0
        self._serve()

    def _serve(self) -> None:
        """Those whose turn it is. Who waits for its holder's half alone keeps nobody else waiting."""
        for each in list(self._waiting):
            if each.granted.done():  # gave up; removes itself
                continue
            full = self.taken > 0 and self.taken + each.octets > self.octets
            if (full or self._has_its_half(each)) and not self._goes_on(each.share):
                if full:
                    return
                continue
            self._waiting.remove(each)
            self.taken += each.octets
            self._held[each.share.holder] += each.octets
            each.share.octets += each.octets
            self.most = max(self.most, self.taken)
            each.granted.set_result(None)

    def _has_its_half(self, wanted: _Waiting) -> bool:
        share = wanted.share
        held = self._held.get(share.holder, 0) if share.holder else 0
        return held > share.octets and held + wanted.octets > self.octets // 2

    def _goes_on(self, share: Share) -> bool:
        """Whether this is the one message that may."""
        if self._exempt is None and share.octets:
            self._exempt = share
        return self._exempt is share
