"""Name constraints (RFC 5280 §4.2.1.10, §6.1.3 (b) and (c)): which names a CA may certify.

Understood: directoryName, rfc822Name (applied to SmtpUTF8Mailbox and to the emailAddress of a subject too, RFC 9598
§6), dNSName, uniformResourceIdentifier and iPAddress. A constraint on any other form refuses the certificates that have
a name of that form, critical or not. Malformed constraints are refused, not ignored.

Constraints are kept in sets, so that a name costs its labels and not the number of constraints; the number of pairs is
limited all the same (`Comparisons`), since names and constraints both come from strangers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from trust import der
from trust.names import Rdns, comparable

MAX_SUBTREES = 8192
MAX_COMPARISONS = 1 << 17
"""Pairs of a name and a constraint in one search."""

OTHER, MAIL, DNS, X400, DIRECTORY, EDI, URI, IP, REGISTERED = range(9)
"""Tag numbers of GeneralName (§4.2.1.6)."""
SMTP_UTF8_MAILBOX = "1.3.6.1.5.5.7.8.9"

_FORMS = {X400: "x400Address", EDI: "ediPartyName", REGISTERED: "registeredID"}
_HOST = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*")
_URI_HOST = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:[^@/?#]*@)?([^@:/?#\[\]]+)(?::[0-9]*)?(?:[/?#].*)?", re.DOTALL)
_MAX_HOST = 253
_REMEMBERED_OCTETS = 4096
"""The longest constraints that are remembered: what is longer may be an attacker's."""


class Comparisons:
    """What one search may still spend on comparing names with constraints."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MAX_COMPARISONS

    def afford(self, names: int, constraints: int) -> bool:
        self.left -= names * constraints
        return self.left >= 0


@dataclass(slots=True)
class _Hosts:
    """Hosts, and domains whose hosts are meant, as constraints on mail addresses and URIs write them."""

    hosts: set[str] = field(default_factory=set)
    domains: set[str] = field(default_factory=set)
    all: bool = False

    def add(self, text: str) -> None:
        if not text:
            self.all = True
        elif text.startswith("."):
            self.domains.add(_constraint_host(text[1:]))
        else:
            self.hosts.add(_constraint_host(text))

    def match(self, host: str) -> bool:
        return self.all or host in self.hosts or (bool(self.domains) and any(d in self.domains for d in _above(host)))


@dataclass(slots=True)
class _Subtrees:
    """One side, permitted or excluded, by the form of name."""

    count: int = 0
    forms: set[str] = field(default_factory=set)
    mailboxes: set[str] = field(default_factory=set)
    mail: _Hosts = field(default_factory=_Hosts)
    dns: set[str] = field(default_factory=set)
    dns_parents: set[str] = field(default_factory=set)
    uri: _Hosts = field(default_factory=_Hosts)
    directory: dict[int, set[Rdns]] = field(default_factory=dict)
    networks: dict[tuple[int, int], set[int]] = field(default_factory=dict)

    def add(self, tag: int, content: bytes) -> None:
        """One constraint; raises ValueError when it is malformed."""
        self.count += 1
        form = _form(tag, content)
        self.forms.add(form)
        if tag == MAIL:
            text = content.decode("ascii")
            local, at, host = text.rpartition("@")
            if at:
                host = _constraint_host(host)
                if not local or "@" in local or not host:
                    raise ValueError("an rfc822Name constraint is no address")
                self.mailboxes.add(f"{local}@{host}")
            else:
                self.mail.add(text)
        elif tag == DNS:
            name = _constraint_host(content.decode("ascii"))
            self.dns.add(name)
            self.dns_parents.add(name.partition(".")[2])
        elif tag == URI:
            self.uri.add(content.decode("ascii"))
        elif tag == DIRECTORY:
            name_of = comparable(content)
            self.directory.setdefault(len(name_of), set()).add(name_of)
        elif tag == IP:
            half = len(content) // 2
            if len(content) not in (8, 32):
                raise ValueError("an iPAddress constraint of another size than an address and its mask")
            address, mask = int.from_bytes(content[:half], "big"), int.from_bytes(content[half:], "big")
            hosts = mask ^ (1 << 8 * half) - 1
            if hosts & (hosts + 1):
                raise ValueError("an iPAddress constraint whose mask has holes")
            self.networks.setdefault((half, mask), set()).add(address & mask)


def _constraint_host(text: str) -> str:
    host = text.lower()
    if host and (len(host) > _MAX_HOST or _HOST.fullmatch(host) is None):
        raise ValueError("a constraint is no host name")
    return host


def _above(host: str) -> Iterable[str]:
    """The domains a host is in, itself not."""
    at = host.find(".")
    while at >= 0:
        yield host[at + 1 :]
        at = host.find(".", at + 1)


@dataclass(frozen=True, slots=True)
class Names:
    """What constraints are applied to: the names of one certificate."""

    subject: Callable[[], Rdns]
    """Read only when a constraint asks for it; may raise ValueError."""
    mail_of_subject: Callable[[], tuple[str, ...]]
    alternative: tuple[tuple[int, bytes], ...]


class NameConstraints:
    """What one CA certificate says about the names below it."""

    __slots__ = ("excluded", "permitted")

    def __init__(self, permitted: _Subtrees, excluded: _Subtrees) -> None:
        self.permitted = permitted
        self.excluded = excluded

    @property
    def count(self) -> int:
        return self.permitted.count + self.excluded.count

    def violation(self, names: Names) -> str:
        """What is wrong with the names of a certificate below, "" when nothing is. May raise ValueError."""
        forms = self.permitted.forms | self.excluded.forms
        if "directoryName" in forms or "rfc822Name" in forms:
            subject = names.subject()
            if subject and "directoryName" in forms:
                problem = self._judge("directoryName", lambda side: _in_directory(side, subject))
                if problem:
                    return problem
            for address in names.mail_of_subject() if "rfc822Name" in forms else ():
                problem = self._mail(address)
                if problem:
                    return problem
        for tag, content in names.alternative:
            form = _form(tag, content)
            if form in forms or tag == OTHER:
                problem = self._alternative(tag, form, content, forms)
                if problem:
                    return problem
        return ""

    def _alternative(self, tag: int, form: str, content: bytes, forms: set[str]) -> str:
        if form not in forms:
            # RFC 9598 §6; a constraint on SmtpUTF8Mailbox itself cannot be compared, below
            constrained = form == f"otherName {SMTP_UTF8_MAILBOX}" and "rfc822Name" in forms
            return self._mail(utf8_mailbox(content)) if constrained else ""
        if tag == MAIL:
            return self._mail(content.decode("ascii", "replace"))
        if tag == DNS:
            return self._dns(content.decode("ascii", "replace").lower())
        if tag == DIRECTORY:
            name = comparable(content)
            return self._judge(form, lambda side: _in_directory(side, name))
        if tag == URI:
            return self._uri(content.decode("ascii", "replace"))
        if tag == IP and len(content) in (4, 16):
            return self._judge(form, lambda side: _in_networks(side, content))
        return f"{form} is constrained and cannot be compared"

    def _judge(self, form: str, match: Callable[[_Subtrees], bool]) -> str:
        if form in self.excluded.forms and match(self.excluded):
            return f"{form} is excluded"
        if form in self.permitted.forms and not match(self.permitted):
            return f"{form} is not permitted"
        return ""

    def _mail(self, address: str) -> str:
        local, _, host = address.rpartition("@")
        host = host.lower()
        if not local or ("@" in local and not local.startswith('"')) or not _is_host(host):
            return "rfc822Name is constrained and is no address"
        whole = f"{local}@{host}"
        return self._judge("rfc822Name", lambda side: whole in side.mailboxes or side.mail.match(host))

    def _dns(self, name: str) -> str:
        bare = name.removeprefix("*.")
        if not _is_host(bare):
            return "dNSName is constrained and is no host name"
        if name != bare and bare in self.excluded.dns_parents:
            return "dNSName is excluded"  # the wildcard stands for an excluded host too
        return self._judge(
            "dNSName", lambda side: "" in side.dns or name in side.dns or any(d in side.dns for d in _above(name))
        )

    def _uri(self, uri: str) -> str:
        match = _URI_HOST.fullmatch(uri)
        host = match[1].lower() if match else ""
        if not _is_host(host) or host.replace(".", "").isdigit():
            return "uniformResourceIdentifier is constrained and names no host"
        return self._judge("uniformResourceIdentifier", lambda side: side.uri.match(host))


def _is_host(text: str) -> bool:
    return 0 < len(text) <= _MAX_HOST and _HOST.fullmatch(text) is not None


def _in_directory(side: _Subtrees, name: Rdns) -> bool:
    return any(name[:length] in subtrees for length, subtrees in side.directory.items() if length <= len(name))


def _in_networks(side: _Subtrees, content: bytes) -> bool:
    address = int.from_bytes(content, "big")
    return any(
        address & mask in addresses for (octets, mask), addresses in side.networks.items() if octets == len(content)
    )


def _form(tag: int, content: bytes) -> str:
    """What a kind of name is called; each type of otherName is a form of its own."""
    if tag == OTHER:
        oid, _ = _other_name(content)
        return f"otherName {oid}"
    return _NAMED.get(tag) or _FORMS[tag]


_NAMED = {
    MAIL: "rfc822Name",
    DNS: "dNSName",
    DIRECTORY: "directoryName",
    URI: "uniformResourceIdentifier",
    IP: "iPAddress",
}


def _other_name(content: bytes) -> tuple[str, bytes]:
    """type-id and the DER of the value of an OtherName's contents."""
    kind, value = der.read(der.tlv(der.SEQUENCE, content)).sequence(2)
    return kind.oid(), bytes(value.expect(der.context(0)).explicit().encoded)


def utf8_mailbox(content: bytes) -> str:
    """The address in a SmtpUTF8Mailbox (RFC 9598 §3), given the contents of its OtherName.

    Empty when it is none, or when ASCII would have done, which belongs into an rfc822Name.
    """
    try:
        kind, encoded = _other_name(content)
        value = der.read(encoded).expect(0x0C)
        text = bytes(value.content).decode("utf-8")
    except ValueError:
        return ""
    return text if kind == SMTP_UTF8_MAILBOX and not text.isascii() else ""


def general_names(value: bytes, most: int) -> tuple[tuple[int, bytes], ...]:
    """GeneralNames in DER: tag number and contents of each; a directoryName's contents is the Name. Raises DerError."""
    found = tuple(_general_name(element) for element in der.read(value).sequence(most))
    if not found:
        raise der.DerError("no name in GeneralNames")
    return found


def _general_name(element: der.Element) -> tuple[int, bytes]:
    number = element.tag & 0x1F
    constructed = number in (OTHER, X400, DIRECTORY, EDI)
    if number > REGISTERED or element.tag != der.context(number, constructed=constructed):
        raise der.DerError("no GeneralName")
    return number, bytes(element.explicit().encoded if number == DIRECTORY else element.content)


def read_constraints(value: bytes) -> NameConstraints:
    """NameConstraints in DER; raises ValueError when they are malformed or more than `MAX_SUBTREES` a side."""
    return _known_constraints(value) if len(value) <= _REMEMBERED_OCTETS else _read_constraints(value)


@lru_cache(maxsize=16)
def _known_constraints(value: bytes) -> NameConstraints:
    return _read_constraints(value)


def _read_constraints(value: bytes) -> NameConstraints:
    sides = {der.context(0): _Subtrees(), der.context(1): _Subtrees()}
    fields = der.read(value).sequence(2)
    if not fields or len({each.tag for each in fields}) != len(fields):
        raise ValueError("name constraints that constrain nothing")
    for each in fields:
        if each.tag not in sides:
            raise der.DerError("no NameConstraints")
        for subtree in each.children(MAX_SUBTREES):
            base, *limits = subtree.sequence(3)
            for limit in limits:  # minimum is 0 and maximum absent in this profile (§4.2.1.10)
                if limit.tag != der.context(0, constructed=False) or any(limit.content):
                    raise ValueError("name constraints with a minimum or a maximum")
            sides[each.tag].add(*_general_name(base))
    return NameConstraints(sides[der.context(0)], sides[der.context(1)])
