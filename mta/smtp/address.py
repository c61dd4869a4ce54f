"""Paths and parameters of MAIL and RCPT, read strictly (RFC 5321 §4.1.2, RFC 3461 §4).

Only plain ASCII dot-string addresses with a domain name travel in this trust space; quoted local parts, source routes
and address literals are refused rather than passed on to be misread elsewhere. Of an address outside ASCII (RFC 6531)
the domain has an ASCII form, under which it travels everywhere; a local part has none, and no mailbox or mail server of
the trust space takes one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import idna

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LOCAL = rf"{_ATOM}(?:\.{_ATOM})*"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"({_LOCAL})@({_LABEL}(?:\.{_LABEL})*)")
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+(?!7F)[2-9A-F][0-9A-F])+")
"""Without control characters under its code: where it is decoded they would write lines of their own."""
_KEYWORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
"""Name of a parameter (RFC 5321 §4.1.2), type of an address (RFC 3461 §4.2; `utf-8`: RFC 6533 §3)."""
_NOTIFY = frozenset({"SUCCESS", "FAILURE", "DELAY"})


@dataclass(frozen=True, slots=True)
class PathCommand:
    """The argument of MAIL or RCPT, understood."""

    address: str
    """Local part as sent, domain in lower case; empty for the null reverse-path."""
    parameters: dict[str, str]
    """Keywords in upper case, values as sent."""
    international: bool = False
    """The address was written with characters outside ASCII: only with SMTPUTF8 may it be (RFC 6531 §3.4)."""
    deliverable: bool = True
    """False when its local part is outside ASCII; `address` is empty then."""


def is_address(text: str) -> bool:
    """A dot-string local part of at most 64 octets and a domain name of at most 253 (RFC 5321 §4.5.3.1)."""
    match = _ADDRESS.fullmatch(text)
    return match is not None and len(match[1]) <= 64 and len(match[2]) <= 253


def domain_of(address: str) -> str:
    return address.rpartition("@")[2].lower()


def ascii_domain(domain: str) -> str | None:
    """The form of a domain in which it travels: A-labels (IDNA 2008, RFC 5891), lower case; None when it has none."""
    if domain.isascii():
        return domain.lower()
    try:
        return idna.encode(domain, uts46=True).decode("ascii").lower()
    except (idna.IDNAError, ValueError):
        return None


def parse_path(argument: str, keyword: str, *, postmaster_domain: str = "") -> PathCommand | None:
    """`FROM:<...> params` or `TO:<...> params`; None when it is not that.

    `<>` is allowed after FROM only, `<Postmaster>` after TO when `postmaster_domain` is given (RFC 5321 §4.5.1).
    """
    if argument[: len(keyword) + 1].upper() != keyword + ":":
        return None
    rest = argument[len(keyword) + 1 :].lstrip(" ")
    if not rest.startswith("<"):
        return None
    path, closed, tail = rest[1:].partition(">")
    if not closed or (tail and not tail.startswith(" ")):
        return None
    if keyword == "TO" and path.lower() == "postmaster" and postmaster_domain:
        path = f"{path}@{postmaster_domain}"
    international, deliverable = not path.isascii(), True
    if path or keyword == "TO":
        local, _, domain = path.rpartition("@")
        domain = ascii_domain(domain) or ""
        # outside ASCII everything printable may stand in an atom (RFC 6531 §3.3)
        deliverable = local.isascii()
        readable = local if deliverable else "".join(c if c.isascii() or not c.isprintable() else "u" for c in local)
        if not is_address(f"{readable}@{domain}"):
            return None
        path = f"{local}@{domain}" if deliverable else ""
    parameters: dict[str, str] = {}
    for word in tail.split():
        name, equals, value = word.partition("=")
        name = name.upper()
        foreign = not word.isascii() and name != "ORCPT"  # RFC 6533 §3
        if foreign or _KEYWORD.fullmatch(name) is None or (equals and not value) or name in parameters:
            return None
        parameters[name] = value
    return PathCommand(path, parameters, international, deliverable)


def valid_envid(value: str) -> bool:
    """RFC 3461 §4.4: xtext, at most 100 characters."""
    return len(value) <= 100 and _XTEXT.fullmatch(value) is not None


def valid_orcpt(value: str) -> bool:
    """RFC 3461 §4.2: address type, semicolon, xtext; at most 500 characters."""
    kind, semicolon, address = value.partition(";")
    if len(value) > 500 or not semicolon or _KEYWORD.fullmatch(kind) is None:
        return False
    return _XTEXT.fullmatch(address) is not None


def original_recipient(value: str, *, utf8: bool) -> str | None:
    """ORCPT in ASCII; None when it is malformed.

    With `utf8` an address of type `utf-8` may be outside ASCII, and gets the form in which it may travel everywhere
    (RFC 6533 §3, `utf-8-addr-xtext`).
    """
    if not value.isascii():
        if not utf8 or value.partition(";")[0].lower() != "utf-8":
            return None
        value = "".join(each if each.isascii() else f"\\x{{{ord(each):X}}}" for each in value)
    return value if valid_orcpt(value) else None


def valid_notify(value: str) -> bool:
    """RFC 3461 §4.1: `NEVER` alone, or a list of SUCCESS, FAILURE, DELAY."""
    wishes = value.upper().split(",")
    return wishes == ["NEVER"] or (len(set(wishes)) == len(wishes) and _NOTIFY.issuperset(wishes))
