"""Mail this gateway writes itself, as the postmaster, with a null reverse-path: nobody is told what became of it.

It is encrypted like any other. To somebody without a certificate it could never go, and that he has none may be why his
own mail came back: so each such mail can be written in three forms, each saying less than the one before, and when one
could not be sent the next is tried. Only the last travels in clear, and it holds nothing that may not be read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from enum import Enum

from sqlalchemy import Connection

from mta.delivery import EndedDelivery, NewDelivery, Submission
from mta.message import Origin, TargetKind
from mta.protecting import IN_CLEAR
from mta.smtp.address import domain_of, is_address
from mta.spool import Spool

_PROTECTION = re.compile(r"(?:mta\.(?:expired|parked) )?(?:smime\.|mta\.directory-unavailable)")
"""How it reads (code, detail) when a mail could not be encrypted or signed."""
_MATRICULE = re.compile(r"[0-9]{5}[0-9AB]{8}(?:[0-9]{2})?", re.IGNORECASE)
HIDDEN = "hidden"
"""Stands for a recipient whose address may not travel in clear."""


class Form(Enum):
    """How much a mail of ours says; the value is part of its Message-ID."""

    WHOLE = "whole"
    BARE = "bare"
    """Without anything of the original, encrypted."""
    CLEAR = "clear"
    """Signed only: no patient's address, nobody's words."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What the Message-ID of a mail of ours says about it."""

    kind: str
    """`dsn`, `quarantine`, ..."""
    about: str
    """Delivery id."""
    action: str
    form: Form


class SystemMail:
    """Thread-safe."""

    def __init__(
        self,
        spool: Spool,
        postmaster: str,
        host: str,
        local_domains: Collection[str],
        is_trusted: Callable[[str], bool],
        patient_domains: Collection[str] = (),
    ) -> None:
        """`postmaster` is a local mailbox whose signing key we hold; `is_trusted` judges a lower-case mail domain and
        may block. Addresses in `patient_domains` hold a health identity and never travel in clear."""
        self._spool = spool
        self.postmaster = postmaster
        self.host = host
        self._local_domains = frozenset(domain.lower() for domain in local_domains)
        self._patient_domains = frozenset(domain.lower() for domain in patient_domains)
        self._is_trusted = is_trusted
        self._pattern = re.compile(
            rf"<([a-z]{{1,20}})\.([0-9a-z]{{1,40}})\.([a-z]{{1,20}})(?:\.(bare|clear))?@{re.escape(host)}>"
        )

    def route(self, address: str) -> TargetKind | None:
        """Where a mail to this address goes; None when it is nobody we may write to."""
        if not is_address(address):
            return None
        domain = domain_of(address)
        if domain in self._local_domains:
            return TargetKind.MAILBOX
        return TargetKind.SMTP if self._is_trusted(domain) else None

    def message_id(self, sent: Sent) -> str:
        """The same for the same mail, whoever writes it again."""
        form = "" if sent.form is Form.WHOLE else f".{sent.form.value}"
        return f"<{sent.kind}.{sent.about}.{sent.action}{form}@{self.host}>"

    def send(
        self,
        sent: Sent,
        to: str,
        content: bytes,
        original_spool_id: str = "",
        also: Callable[[Connection], None] | None = None,
    ) -> bool:
        """Keep one such mail for good, once; False when `to` is nobody we may write to. `also` as in `Spool.accept`.

        `original_spool_id` names the message it is about, for `failed`. Raises what the spool raises.
        """
        target = self.route(to)
        if target is None:
            return False
        key = f"{sent.kind}:{sent.about}:{sent.action}"
        self._spool.accept(
            Submission(
                origin=Origin.SYSTEM,
                sender="",
                peer=self.host,
                content=content,
                content_type="message/rfc822",
                deliveries=(NewDelivery(to, target, notify="NEVER"),),
                dedup_key=key if sent.form is Form.WHOLE else f"{key}:{sent.form.value}",
                message_id_domain=self.host,
                message_id=self.message_id(sent),
                envelope_id=original_spool_id,
                flags=(IN_CLEAR,) if sent.form is Form.CLEAR else (),
            ),
            also,
        )
        return True

    def not_sent(self, ended: EndedDelivery) -> Sent | None:
        """Which mail of ours failed here; None when this is none, or it was delivered."""
        if ended.delivered or ended.origin is not Origin.SYSTEM or ended.sender:
            return None
        found = self._pattern.fullmatch(ended.message_id)
        return None if found is None else Sent(found[1], found[2], found[3], Form(found[4] or Form.WHOLE.value))

    def to_say_again(self, ended: EndedDelivery) -> Sent | None:
        """What to write instead of this delivery, None when it is no failed mail of ours or there is nothing left to
        try."""
        sent = self.not_sent(ended)
        if sent is None or sent.form is Form.CLEAR:
            return None
        unprotected = _PROTECTION.match(f"{ended.code} {ended.detail}") is not None
        if sent.form is Form.BARE and not unprotected:
            return None
        return replace(sent, form=Form.CLEAR if unprotected else Form.BARE)

    def shown(self, address: str, form: Form) -> str:
        """The address as a mail of that form may name it: a patient's, or a bare matricule, not in clear."""
        if form is not Form.CLEAR:
            return address
        if not is_address(address):
            return HIDDEN
        local, _, domain = address.rpartition("@")
        patient = domain.lower() in self._patient_domains or _MATRICULE.search(local)
        return HIDDEN if patient else address
