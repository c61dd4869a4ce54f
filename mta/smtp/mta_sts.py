"""MTA-STS (RFC 8461): which hosts a domain says its mail may go to, read over HTTPS and remembered.

In the trust space TLS and the operator's name are demanded of every host anyway; a policy adds which names MX records
may lead to and that the certificate bears the host's name. Policies are other people's input: their size, number and
time are bounded, no redirect is followed, and they are fetched from public addresses only
(`trust.revocation.fetching`). A policy that was read once holds for as long as it says, also when the domain's DNS or
web server is gone: otherwise whoever can take those away could take the policy away.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import structlog

from mta import refusals
from mta.dns import Answer, MxRecord, State
from mta.smtp.routes import Doubt, Lookup
from trust.refusals import Refused
from trust.revocation.fetching import FetchError

log = structlog.get_logger(__name__)

MAX_POLICY_BYTES = 64 * 1024
"""RFC 8461 §3.3 suggests it."""
MAX_AGE = 31_557_600
"""Seconds, RFC 8461 §3.2."""
_MAX_PATTERNS = 64
_ID = re.compile(r"[A-Za-z0-9]{1,32}")
_PATTERN = re.compile(r"(?:\*\.)?[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
_AGAIN_SECONDS = 300.0
"""A policy that could not be read is not asked for more often (RFC 8461 §5.1)."""


class Mode(Enum):
    ENFORCE = "enforce"
    TESTING = "testing"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Policy:
    """RFC 8461 §3.2."""

    mode: Mode
    patterns: tuple[str, ...]
    """Host names in lower case, the first label perhaps `*`."""
    max_age: int
    """Seconds."""

    def allows(self, exchange: str) -> bool:
        return any(name_matches(pattern, exchange) for pattern in self.patterns)


@dataclass(frozen=True, slots=True)
class _Kept:
    policy: Policy
    id: str
    until: float
    """UNIX time."""


def name_matches(pattern: str, name: str) -> bool:
    """RFC 6125 §6.4.3: the same name, or `*` for exactly one whole label, the first."""
    if pattern.startswith("*."):
        return name.partition(".")[2] == pattern[2:] and "." in pattern[2:]
    return pattern == name


def policy_id(texts: Sequence[str]) -> str:
    """The `id` of the one STSv1 record (RFC 8461 §3.1); empty when there is none, or more than one."""
    records = [text for text in texts if text.split(";")[0].rstrip() == "v=STSv1"]
    if len(records) != 1:
        return ""
    for field in records[0].split(";")[1:]:
        name, _, value = field.strip().partition("=")
        if name.strip() == "id":
            return value.strip() if _ID.fullmatch(value.strip()) else ""
    return ""


def parse_policy(body: bytes) -> Policy | None:
    """A policy file (RFC 8461 §3.2); None when it is not one. Unknown keys are passed over; of a repeated one the first
    counts, but for `mx`."""
    try:
        lines = body.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        return None
    found: dict[str, str] = {}
    patterns: list[str] = []
    for line in lines:
        name, colon, value = line.partition(":")
        name, value = name.strip(), value.strip()
        if not colon:
            if line.strip():
                return None
        elif name == "mx":
            pattern = value.lower()
            if not _PATTERN.fullmatch(pattern) or len(patterns) >= _MAX_PATTERNS:
                return None
            patterns.append(pattern)
        else:
            found.setdefault(name, value)
    mode, age = found.get("mode", ""), found.get("max_age", "")
    if found.get("version") != "STSv1" or mode not in {each.value for each in Mode}:
        return None
    if not (age.isascii() and age.isdecimal() and len(age) <= 10) or (not patterns and mode != Mode.NONE.value):
        return None
    return Policy(Mode(mode), tuple(patterns), min(int(age), MAX_AGE))


class Policies:
    """The policies of domains; `require` is a requirement of `mta.smtp.routes`. Used on one event loop; `close` at the
    end."""

    def __init__(
        self,
        resolver: Lookup,
        fetch: Callable[[str, int], bytes],
        kept: Path | None = None,
        *,
        entries: int = 10_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`fetch(url, max_bytes)` blocks and raises `FetchError`; it must follow no redirect. `kept` is a file policies
        are remembered in over a restart; one that cannot be read is begun anew."""
        self._resolver = resolver
        self._fetch = fetch
        self._file = kept
        self._entries = entries
        self._clock = clock
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._failed: OrderedDict[str, float] = OrderedDict()
        self._under_way: dict[str, asyncio.Task[Policy | None]] = {}
        # of its own: web servers that hang must not take the threads others need
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="mta-sts")
        self._told: set[str] = set()
        """Domains with a policy of whose mismatch the log knows."""
        self._saving = asyncio.Lock()
        self.mismatches = 0
        """Exchanges outside their domain's policy, and certificates without their host's name; also in testing mode."""
        if kept is not None:
            self._load(kept)

    async def close(self) -> None:
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def policy(self, domain: str) -> Policy | None:
        """The policy in force for a domain; None when it has none, or none can be read and none was before."""
        answer = await self._resolver.lookup(f"_mta-sts.{domain}", "TXT")
        known = self._known(domain)
        current = policy_id(answer.texts) if answer.state is State.FOUND else ""
        if not current or (known is not None and known.id == current and not self._aged(known)):
            return None if known is None else known.policy
        if self._failed.get(domain, 0.0) > self._clock():
            return None if known is None else known.policy
        task = self._under_way.get(domain)
        if task is None:
            task = self._under_way[domain] = asyncio.create_task(self._read(domain, current))
            task.add_done_callback(lambda _: self._under_way.pop(domain, None))
        read = await asyncio.shield(task)
        return read or (None if known is None else known.policy)

    async def require(
        self, domain: str, _: Answer, exchanges: tuple[MxRecord, ...]
    ) -> dict[str, tuple[Doubt, ...]] | Refused:
        """See `mta.smtp.routes.Requirements`."""
        everything: dict[str, tuple[Doubt, ...]] = {each.exchange: () for each in exchanges}
        policy = await self.policy(domain)
        if policy is None or policy.mode is Mode.NONE:
            return everything
        allowed = {name for name in everything if policy.allows(name)}
        if len(allowed) < len(everything):
            self.mismatches += 1
            if domain not in self._told:  # once for each policy that was read, not for each message
                self._told.add(domain)
                log.warning("mta-sts.exchange-outside-policy", domain=domain, mode=policy.mode.value)
        testing = policy.mode is Mode.TESTING
        if not allowed and not testing:
            return Refused(refusals.HOST_REFUSED, f"{domain}: no exchange is in its MTA-STS policy")
        return {name: (self._named(name, testing=testing),) for name in (everything if testing else allowed)}

    def _named(self, host: str, *, testing: bool) -> Doubt:
        def doubt(session: ssl.SSLObject) -> Refused | None:
            if certified_for(session, host):
                return None
            self.mismatches += 1
            log.warning("mta-sts.certificate-without-host-name", host=host, testing=testing)
            return None if testing else Refused(refusals.HOST_UNPROVEN, f"MTA-STS: {host}")

        return doubt

    def _known(self, domain: str) -> _Kept | None:
        kept = self._kept.get(domain)
        if kept is not None and kept.until <= self._clock():
            del self._kept[domain]
            return None
        return kept

    def _aged(self, kept: _Kept) -> bool:
        """Half its time is over: it is read again while it still holds, or whoever can stop us from reading at the
        moment it ends would be rid of it (RFC 8461 §10.2)."""
        return self._clock() >= kept.until - kept.policy.max_age / 2

    async def _read(self, domain: str, current: str) -> Policy | None:
        url = f"https://mta-sts.{domain}/.well-known/mta-sts.txt"
        loop = asyncio.get_running_loop()
        try:
            policy = parse_policy(await loop.run_in_executor(self._threads, self._fetch, url, MAX_POLICY_BYTES))
        except FetchError as error:
            log.warning("mta-sts.not-read", domain=domain, why=str(error))
            policy = None
        if policy is None:
            self._failed[domain] = self._clock() + _AGAIN_SECONDS
            self._failed.move_to_end(domain)
            if len(self._failed) > self._entries:
                self._failed.popitem(last=False)
            return None
        self._failed.pop(domain, None)
        self._told.discard(domain)
        # one that is to be forgotten at once is not read for each message
        self._kept[domain] = _Kept(policy, current, self._clock() + max(policy.max_age, _AGAIN_SECONDS))
        self._kept.move_to_end(domain)
        if len(self._kept) > self._entries:
            self._kept.popitem(last=False)
        if self._file is not None:
            async with self._saving:  # one after the other, so that the newest stays
                await loop.run_in_executor(self._threads, self._save, self._file, dict(self._kept))
        return policy

    def _save(self, file: Path, kept: dict[str, _Kept]) -> None:
        rows = {
            domain: {**asdict(each), "policy": {**asdict(each.policy), "mode": each.policy.mode.value}}
            for domain, each in kept.items()
        }
        new = file.with_suffix(f".{os.getpid()}.new")
        try:
            new.write_text(json.dumps(rows), encoding="ascii")
            new.replace(file)
        except OSError as error:  # what is not remembered over a restart is read again
            log.warning("mta-sts.not-kept", why=error.strerror)

    def _load(self, file: Path) -> None:
        try:
            rows = json.loads(file.read_bytes())
            for domain, row in rows.items():
                read = row["policy"]
                policy = Policy(Mode(read["mode"]), tuple(map(str, read["patterns"])), int(read["max_age"]))
                self._kept[str(domain)] = _Kept(policy, str(row["id"]), float(row["until"]))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._kept.clear()
            log.warning("mta-sts.kept-policies-unreadable", why=type(error).__name__)


def certified_for(session: ssl.SSLObject, host: str) -> bool:
    """Whether the peer's certificate bears this host's name (RFC 6125: dNSName entries only)."""
    try:
        certificate = session.getpeercert()
    except ValueError:
        return False
    names: Any = (certificate or {}).get("subjectAltName", ())
    return any(kind == "DNS" and name_matches(str(name).lower(), host) for kind, name in names)
