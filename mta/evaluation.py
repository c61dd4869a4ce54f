"""What comes in, evaluated: SPF, DKIM, ARC and DMARC, asked of the DNS in bounded time and told in words.

Two halves, because the one waits and the other computes: `Evaluator.ask` puts every question to the DNS, on the event
loop, all at once; `Asked.judge` looks at the octets and belongs in a thread. A DNS that does not answer never costs a
message and never passes for an answer: the result is then `temperror`, and says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import TypeVar

from mta.authentication_results import Result
from mta.dmarc import DmarcPolicy, DmarcResult, discover
from mta.dns import Answer, Resolver, State
from mta.header import author_of
from mta.message import Message, Origin
from mta.smtp.address import domain_of
from mta.smtp.target import Partners
from mta.spf import SpfResult, check_host
from smime import DkimResult, verify_dkim
from smime.arc import ArcResult, has_chain, keys_of, verify_arc
from smime.dkim import signatures_of
from smime.mime import Entity, MimeError, parse_entity

T = TypeVar("T")

CLIENT, HELO = "CLIENT=", "HELO="
"""Flags of a submission: address and name of the SMTP client that handed the message over."""
_MAX_KEY = 4096
"""Characters of a key record; 16384 bits of RSA take less than 3000."""
_FROM_OUTSIDE = (Origin.OPERATOR, Origin.COLLECTED)


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    seconds: float = 8.0
    """For all questions about one message."""


class Signed(Enum):
    """Whether the author's own domain signed a message."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"
    """The DNS does not say now."""


def connection_flags(client: str, helo: str) -> tuple[str, ...]:
    """How a door writes down who handed a message over."""
    said = ((CLIENT, client), (HELO, helo))
    return tuple(name + "".join(c for c in value if "!" <= c <= "~")[:255] for name, value in said if value)


class DkimKeys:
    """Where public keys of DKIM are found: what was agreed with partners and our own first, then the DNS.

    A domain whose key is agreed on has no other: the DNS is not asked, so nobody who can forge its answers can add one.
    """

    def __init__(
        self,
        partners: Partners,
        own: Callable[[str, str], str | None] = lambda domain, selector: None,
        resolver: Resolver | None = None,
    ) -> None:
        """`own` gives the `p=` value of our own domains."""
        self._partners = partners
        self._own = own
        self._resolver = resolver

    def agreed(self, domain: str, selector: str) -> str | None:
        """The key that needs no DNS."""
        partner = self._partners.of(domain)
        if partner is not None and partner.dkim_public_key:
            return partner.dkim_public_key if partner.dkim_selector == selector else None
        return self._own(domain, selector)

    async def gather(self, signatures: Iterable[tuple[str, str]], seconds: float) -> Callable[[str, str], str | None]:
        """The keys of these (domain, selector), as `smime.verify_dkim` asks for them: LookupError where the DNS did
        not say within `seconds`."""
        found: dict[tuple[str, str], str | None] = {}
        waiting: dict[tuple[str, str], asyncio.Task[Answer]] = {}
        for domain, selector in signatures:
            partner = self._partners.of(domain)
            key = self.agreed(domain, selector)
            if key is not None or self._resolver is None or (partner is not None and partner.dkim_public_key):
                found[domain, selector] = key
            else:
                question = self._resolver.lookup(f"{selector}._domainkey.{domain}", "TXT")
                waiting[domain, selector] = asyncio.create_task(question)
        try:
            done = (await asyncio.wait(waiting.values(), timeout=seconds))[0] if waiting else set()
        finally:
            for task in waiting.values():
                task.cancel()
        for name, task in waiting.items():
            if task in done and task.result().state is not State.TEMPORARY:
                found[name] = _key_record(task.result())

        def key_of(domain: str, selector: str) -> str | None:
            return found[domain, selector]  # KeyError is a LookupError: nobody said

        return key_of


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was found out about one message."""

    author: str
    """The From address on the wire; empty when there is not exactly one."""
    dkim: tuple[DkimResult, ...]
    spf: SpfResult | None = None
    """None: there was no SMTP client to judge, or the DNS is not asked here."""
    spf_identity: tuple[str, str] = ("", "")
    """`smtp.mailfrom` or `smtp.helo`, and the domain."""
    dmarc: DmarcResult | None = None
    dmarc_policy: str = ""
    arc: ArcResult | None = None

    @property
    def signed_by_author(self) -> Signed:
        """Whether the From domain itself signed with DKIM: exactly that domain, for the parent of all may be
        everybody's."""
        domain = domain_of(self.author)
        own = [each for each in self.dkim if domain and each.domain == domain]
        if any(each.result == "pass" and each.detail != "testing" for each in own):
            return Signed.YES
        return Signed.UNKNOWN if any(each.result == "temperror" for each in own) else Signed.NO

    @property
    def results(self) -> tuple[Result, ...]:
        found: list[Result] = []
        if self.spf is not None:
            found.append(Result("spf", self.spf.value, (self.spf_identity,)))
        found += [_dkim_result(each) for each in self.dkim] or [Result("dkim", "none")]
        if self.dmarc is not None:
            properties = (("header.from", domain_of(self.author)), ("policy.dmarc", self.dmarc_policy))
            found.append(Result("dmarc", self.dmarc, properties))
        if self.arc is not None:
            found.append(Result("arc", self.arc.result, (("header.d", self.arc.domain),), self.arc.detail))
        return tuple(found)


def _key_record(answer: Answer) -> str | None:
    """RFC 6376 §3.6.2.2; several key records are none."""
    records = [text for text in answer.texts if "p=" in text.replace(" ", "") and len(text) <= _MAX_KEY]
    return records[0] if len(records) == 1 else None


def _dkim_result(found: DkimResult) -> Result:
    properties = (("header.d", found.domain), ("header.s", found.selector))
    return Result("dkim", found.result, properties, found.detail)


@dataclass(frozen=True, slots=True)
class Asked:
    """Everything the DNS had to say about one message."""

    public_key: Callable[[str, str], str | None]
    spf: SpfResult | None = None
    spf_identity: tuple[str, str] = ("", "")
    dmarc: DmarcPolicy | DmarcResult | None = None

    def judge(self, content: bytes, now: datetime) -> Evaluation:
        """Look at the octets; blocks. Never raises on bad input."""
        dkim = verify_dkim(content, self.public_key, now)
        header = _header(content)
        dmarc, policy = None, ""
        if isinstance(self.dmarc, DmarcPolicy):
            passed = {each.domain for each in dkim if each.result == "pass" and each.detail != "testing"}
            by_spf = self.spf_identity[1] if self.spf is SpfResult.PASS else ""
            dmarc, policy = self.dmarc.judge(passed, by_spf), self.dmarc.policy
            unsure = any(each.result == "temperror" for each in dkim) or self.spf is SpfResult.TEMPERROR
            if dmarc == "fail" and unsure:
                dmarc = "temperror"
        elif self.dmarc is not None:
            dmarc = self.dmarc
        arc = verify_arc(content, self.public_key, now) if header is not None and has_chain(header) else None
        author = author_of(header) if header is not None else None
        return Evaluation(author or "", dkim, self.spf, self.spf_identity, dmarc, policy, arc)


class Evaluator:
    """Asks about messages. One per event loop."""

    def __init__(
        self, keys: DkimKeys, resolver: Resolver | None = None, options: EvaluationOptions = EvaluationOptions()
    ) -> None:
        """Without a resolver only the keys that are agreed on count, and SPF and DMARC are not evaluated."""
        self._keys = keys
        self._resolver = resolver
        self._options = options

    async def ask(self, message: Message) -> Asked:
        """Within `EvaluationOptions.seconds`. What our own people write is theirs: the DNS is not asked about it."""
        if self._resolver is None or message.origin not in _FROM_OUTSIDE:
            return Asked(self._keys.agreed)
        header = await asyncio.to_thread(_header, message.content)
        if header is None:
            return Asked(self._keys.agreed)
        author = domain_of(author_of(header) or "")
        client = _flag(message.flags, CLIENT)
        helo = _flag(message.flags, HELO).lower()
        identity = ("smtp.mailfrom", domain_of(message.sender)) if message.sender else ("smtp.helo", helo)
        public_key, spf, dmarc = await asyncio.gather(
            self._keys.gather(_names(header), self._options.seconds),
            self._spf(self._resolver, client, identity[1], message.sender, helo),
            self._dmarc(self._resolver, author),
        )
        return Asked(public_key, spf, identity, dmarc)

    async def signed_by_author(self, content: bytes, now: datetime) -> Signed:
        """Only that, for a door that has to answer."""
        header = await asyncio.to_thread(_header, content)
        if header is None:
            return Signed.NO
        author = domain_of(author_of(header) or "")
        own = [name for name in signatures_of(header) if author and name[0] == author]
        if not own:
            return Signed.NO
        asked = Asked(await self._keys.gather(own, self._options.seconds))
        dkim = await asyncio.to_thread(verify_dkim, content, asked.public_key, now)
        return Evaluation(author_of(header) or "", dkim).signed_by_author

    async def _spf(self, resolver: Resolver, client: str, domain: str, sender: str, helo: str) -> SpfResult | None:
        if not client:
            return None
        identity = sender or f"postmaster@{domain}"
        return await self._in_time(check_host(resolver, client, domain, identity, helo), SpfResult.TEMPERROR)

    async def _dmarc(self, resolver: Resolver, author: str) -> DmarcPolicy | DmarcResult | None:
        if not author:
            return "permerror"
        found = await self._in_time(discover(resolver, author), "temperror")
        return "none" if found is None else found

    async def _in_time(self, question: Awaitable[T], otherwise: T) -> T:
        try:
            async with asyncio.timeout(self._options.seconds):
                return await question
        except TimeoutError:
            return otherwise


def _names(header: Entity) -> list[tuple[str, str]]:
    """Every (domain, selector) a signature of this header names, those of ARC too."""
    return list(dict.fromkeys([*signatures_of(header), *keys_of(header)]))


def _flag(flags: Iterable[str], name: str) -> str:
    return next((flag.removeprefix(name) for flag in flags if flag.startswith(name)), "")


def _header(content: bytes) -> Entity | None:
    try:
        return parse_entity(content)
    except MimeError:
        return None
