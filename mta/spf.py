"""Sender Policy Framework (RFC 7208): may this address send mail for this domain? Our own evaluator, asynchronous.

What the libraries there are do not give together: questions that never block the event loop, one resolver with a cache
for everything, and every limit of §4.6.4 kept. The record of a stranger decides what is asked, so it is read whole and
strictly before anything is asked, and ten terms are all it gets. Explanations (`exp=`) are checked and never fetched:
they are a stranger's words, and nobody here would read them.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import quote

from mta.dns import Answer, Resolver, State

MAX_TERMS = 10
"""Terms that ask the DNS, in all records together (§4.6.4)."""
MAX_VOID = 2
"""Questions of those terms that nothing answers."""
MAX_NAMES = 10
"""Exchanges of one `mx`, names of one `ptr`."""
MAX_RECORD = 8192
"""Octets; no limit of the RFC, which wants answers in 512."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class SpfResult(Enum):
    """RFC 7208 §2.6, and the words of RFC 8601 §2.7.2."""

    NONE = "none"
    NEUTRAL = "neutral"
    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    SOFTFAIL = "softfail"
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


async def check_host(resolver: Resolver, client: str, domain: str, sender: str, helo: str) -> SpfResult:
    """RFC 7208 §4: `client` is the IP address of the SMTP client as text, `domain` that of the identity checked.

    `sender` is the reverse-path or, for the HELO identity and the null reverse-path, `postmaster@<helo>`; `helo` only
    serves the macro `%{h}`. Takes as long as the DNS takes: the caller sets the limit. Never raises on bad input.
    """
    try:
        address: Address = ipaddress.ip_address(client.partition("%")[0])  # without a scope (RFC 4007)
    except ValueError:
        return SpfResult.PERMERROR
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    local, _, sender_domain = sender.rpartition("@")
    evaluation = _Evaluation(resolver, address, local or "postmaster", sender_domain, helo)
    try:
        return await evaluation.check(domain)
    except _EndError as end:
        return end.result


# --- The record, read whole before anything is asked (§4.6) ----------------------------------------------------------

_QUALIFIERS = {"+": SpfResult.PASS, "-": SpfResult.FAIL, "~": SpfResult.SOFTFAIL, "?": SpfResult.NEUTRAL}
_MODIFIER = re.compile(r"([A-Za-z][A-Za-z0-9_.-]*)=(.*)")
_MECHANISM = re.compile(r"([+?~-]?)([A-Za-z][A-Za-z0-9_.-]*)(?:(:)(.*))?")
_MACRO = r"%\{[slodiphSLODIPH][0-9]*[rR]?[-.+,/_=]*\}|%%|%_|%-"
_EXPANSION = re.compile(r"%\{([A-Za-z])([0-9]*)([rR]?)([-.+,/_=]*)\}|%([%_-])")
_MACRO_STRING = re.compile(rf"(?:{_MACRO}|[!-$&-~])*")
_EXPLAINING = re.compile(r"(?:%\{[slodiphcrtvSLODIPHCRTV][0-9]*[rR]?[-.+,/_=]*\}|%%|%_|%-|[!-$&-~])*")
_WITH_V = re.compile(rf"(?:{_MACRO.replace('slodiphSLODIPH', 'slodiphvSLODIPHV')}|[!-$&-~])*")
_ENDS_IN_MACRO = re.compile(r"(?:%\{[^{}]*\}|%[%_-])\Z")
_TOP_LABEL = re.compile(r"(?![0-9]+\Z)[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?")
_CIDR = re.compile(r"(?:/(0|[1-9][0-9]?))?(?://(0|[1-9][0-9]{0,2}))?")
_BOTH_CIDR = re.compile(r"(.*?)((?:/[0-9]+)?(?://[0-9]+)?)")


class _EndError(Exception):
    """The whole evaluation ends with this result."""

    def __init__(self, result: SpfResult) -> None:
        super().__init__(result.value)
        self.result = result


@dataclass(frozen=True, slots=True)
class _Directive:
    result: SpfResult
    name: str
    domain: str = ""
    """domain-spec, macros unexpanded; empty: not said."""
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None
    bits4: int = 32
    bits6: int = 128


@dataclass(frozen=True, slots=True)
class _Record:
    directives: tuple[_Directive, ...]
    redirect: str


def _parse(text: str) -> _Record:
    """Raises `_EndError` for what is not after §12: one wrong term spoils the record, wherever it stands."""
    if len(text) > MAX_RECORD or not text.isascii():
        raise _EndError(SpfResult.PERMERROR)
    directives: list[_Directive] = []
    modifiers: dict[str, str] = {}
    for term in text.split(" ")[1:]:
        if not term:
            continue
        modifier = _MODIFIER.fullmatch(term)
        if modifier is None:
            directives.append(_directive(term))
            continue
        name, value = modifier[1].lower(), modifier[2]
        if name in ("redirect", "exp"):
            if name in modifiers or not _is_domain_spec(value):
                raise _EndError(SpfResult.PERMERROR)
            modifiers[name] = value
        elif _EXPLAINING.fullmatch(value) is None:
            raise _EndError(SpfResult.PERMERROR)
    return _Record(tuple(directives), modifiers.get("redirect", ""))


def _directive(term: str) -> _Directive:
    # `a/24` has no colon before its slash
    head, slash, tail = term.partition("/") if ":" not in term.partition("/")[0] else (term, "", "")
    found = _MECHANISM.fullmatch(head)
    if found is None:
        raise _EndError(SpfResult.PERMERROR)
    result, name = _QUALIFIERS[found[1] or "+"], found[2].lower()
    colon, value = found[3] or "", (found[4] or "") + slash + tail
    match name:
        case "all" if not colon and not value:
            return _Directive(result, name)
        case "include" | "exists" if colon and _is_domain_spec(value):
            return _Directive(result, name, value)
        case "ptr" if (not colon and not value) or (colon and _is_domain_spec(value)):
            return _Directive(result, name, value)
        case "ip4" | "ip6" if colon:
            return _Directive(result, name, network=_network(name, value))
        case "a" | "mx":
            both = _BOTH_CIDR.fullmatch(value)
            lengths = _CIDR.fullmatch(both[2]) if both is not None else None
            if both is not None and lengths is not None and (bool(both[1]) == bool(colon)):
                bits4, bits6 = int(lengths[1] or 32), int(lengths[2] or 128)
                if bits4 <= 32 and bits6 <= 128 and (not both[1] or _is_domain_spec(both[1])):
                    return _Directive(result, name, both[1], bits4=bits4, bits6=bits6)
    raise _EndError(SpfResult.PERMERROR)


def _network(name: str, value: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    address, slash, length = value.partition("/")
    if slash and re.fullmatch(r"0|[1-9][0-9]{0,2}", length) is None:
        raise _EndError(SpfResult.PERMERROR)
    if "%" in address:  # a scope (RFC 4007), which Python reads
        raise _EndError(SpfResult.PERMERROR)
    try:
        if name == "ip4":
            return ipaddress.IPv4Network(f"{address}/{length or 32}", strict=False)
        return ipaddress.IPv6Network(f"{address}/{length or 128}", strict=False)
    except ValueError:
        raise _EndError(SpfResult.PERMERROR) from None


def _is_domain_spec(text: str) -> bool:
    """§7.1: macro-string that ends in a macro or in a top label; `%{c}`, `%{r}` and `%{t}` are for explanations."""
    if _WITH_V.fullmatch(text) is None:
        return False
    if _ENDS_IN_MACRO.search(text) is None:
        _, dot, label = text.removesuffix(".").rpartition(".")
        if not dot or _TOP_LABEL.fullmatch(label) is None:
            return False
    return all(each[2].strip("0") for each in _EXPANSION.finditer(text) if each[2])


# --- Evaluation ------------------------------------------------------------------------------------------------------


@dataclass
class _Evaluation:
    resolver: Resolver
    client: Address
    local: str
    sender_domain: str
    helo: str
    terms: int = 0
    void: int = 0
    names: dict[str, str] = field(default_factory=dict)
    """What `%{p}` stands for, by the domain it was asked for."""

    async def check(self, domain: str) -> SpfResult:
        """check_host() of §4. Raises `_EndError` for an error, which ends everything."""
        if not _is_domain(domain):
            return SpfResult.NONE
        answer = await self.resolver.lookup(domain, "TXT")
        if answer.state is State.TEMPORARY:
            raise _EndError(SpfResult.TEMPERROR)
        records = [text for text in answer.texts if text.lower() == "v=spf1" or text.lower().startswith("v=spf1 ")]
        if not records:
            return SpfResult.NONE
        if len(records) > 1:
            raise _EndError(SpfResult.PERMERROR)
        record = _parse(records[0])
        for directive in record.directives:
            if await self._matches(directive, domain):
                return directive.result
        if not record.redirect:
            return SpfResult.NEUTRAL
        self._count()
        result = await self.check(await self._expand(record.redirect, domain))
        if result is SpfResult.NONE:
            raise _EndError(SpfResult.PERMERROR)
        return result

    def _count(self) -> None:
        self.terms += 1
        if self.terms > MAX_TERMS:
            raise _EndError(SpfResult.PERMERROR)

    async def _ask(self, name: str, kind: str) -> Answer:
        """A question of a term: unanswered ends the evaluation, answered by nothing is counted."""
        answer = await self.resolver.lookup(name, kind)
        if answer.state is State.TEMPORARY:
            raise _EndError(SpfResult.TEMPERROR)
        if answer.state is State.NONE:
            self.void += 1
            if self.void > MAX_VOID:
                raise _EndError(SpfResult.PERMERROR)
        return answer

    @property
    def _kind(self) -> str:
        return "A" if self.client.version == 4 else "AAAA"

    async def _matches(self, directive: _Directive, domain: str) -> bool:
        match directive.name:
            case "all":
                return True
            case "ip4" | "ip6":
                network = directive.network
                return network is not None and network.version == self.client.version and self.client in network
        self._count()
        target = await self._expand(directive.domain, domain) if directive.domain else domain
        match directive.name:
            case "include":
                result = await self.check(target)
                if result is SpfResult.NONE:
                    raise _EndError(SpfResult.PERMERROR)
                return result is SpfResult.PASS
            case "a":
                return self._within(await self._ask(target, self._kind), directive)
            case "mx":
                exchanges = (await self._ask(target, "MX")).exchanges
                if len(exchanges) > MAX_NAMES:
                    raise _EndError(SpfResult.PERMERROR)
                for exchange in exchanges:
                    if exchange.exchange and self._within(await self._ask(exchange.exchange, self._kind), directive):
                        return True
                return False
            case "exists":
                return (await self._ask(target, "A")).state is State.FOUND
            case _:  # ptr
                wanted = target.lower().removesuffix(".")
                return any(_is_below(name, wanted) for name in await self._validated_names())

    def _within(self, answer: Answer, directive: _Directive) -> bool:
        bits = directive.bits4 if self.client.version == 4 else directive.bits6
        networks = (ipaddress.ip_network(f"{text}/{bits}", strict=False) for text in answer.texts)
        return any(self.client in network for network in networks)

    async def _validated_names(self) -> list[str]:
        """§5.5: what the client's address is said to be called and what is really at that address; errors are none."""
        found = []
        answer = await self.resolver.lookup(self.client.reverse_pointer, "PTR")
        for name in answer.texts[:MAX_NAMES]:
            addresses = await self.resolver.lookup(name, self._kind)
            if any(ipaddress.ip_address(text) == self.client for text in addresses.texts):
                found.append(name)
        return found

    async def _expand(self, spec: str, domain: str) -> str:
        """§7.3; at most 253 octets, of which the leftmost labels go first."""
        pieces, last = [], 0
        for macro in _EXPANSION.finditer(spec):
            pieces += [spec[last : macro.start()], await self._macro(macro, domain)]
            last = macro.end()
        name = "".join([*pieces, spec[last:]]).removesuffix(".")
        if len(name) > 253:
            name = name[-254:].partition(".")[2] or name[-254:]
        return name

    async def _macro(self, macro: re.Match[str], domain: str) -> str:
        if macro[5]:
            return {"%": "%", "_": " ", "-": "%20"}[macro[5]]
        letter, digits, reverse, delimiters = macro[1], macro[2], macro[3], macro[4] or "."
        match letter.lower():
            case "s":
                value = f"{self.local}@{self.sender_domain}"
            case "l":
                value = self.local
            case "o":
                value = self.sender_domain
            case "d":
                value = domain
            case "i":
                value = _dotted(self.client)
            case "v":
                value = "in-addr" if self.client.version == 4 else "ip6"
            case "h":
                value = self.helo
            case _:  # p
                value = await self._name_of_client(domain)
        parts = re.split(f"[{re.escape(delimiters)}]", value)
        if reverse:
            parts.reverse()
        digits = digits.lstrip("0")
        if digits and len(digits) <= 4:  # there are never ten thousand parts to choose from
            parts = parts[-int(digits) :]
        value = ".".join(parts)
        return quote(value, safe="-._~") if letter.isupper() else value

    async def _name_of_client(self, domain: str) -> str:
        """§7.3: the domain itself, else a name below it, else any, else `unknown`."""
        if domain not in self.names:
            found, wanted = await self._validated_names(), domain.lower()
            below = [name for name in found if _is_below(name, wanted)]
            self.names[domain] = wanted if wanted in found else next(iter(below or found), "unknown")
        return self.names[domain]


def _dotted(address: Address) -> str:
    return str(address) if address.version == 4 else ".".join(address.exploded.replace(":", ""))


def _is_below(name: str, domain: str) -> bool:
    return name == domain or name.endswith("." + domain)


def _is_domain(name: str) -> bool:
    """§4.3: several labels, none empty or too long."""
    labels = name.removesuffix(".").split(".")
    return len(labels) > 1 and len(name) <= 254 and all(0 < len(label) < 64 for label in labels) and name.isascii()
