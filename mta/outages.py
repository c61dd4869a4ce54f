"""What has stood still for too long beside its reader: one mail into the reader's own mailbox, and one when it is over.

For a gateway without an operator who looks at metrics (`relais connect`): a password that was changed, a card in
another coat, a folder that cannot be written. Nothing is kept on disk: whoever starts again is told again.
"""

from __future__ import annotations

import asyncio
import binascii
import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.utils import formatdate

from mta.any_delivery import AnyDelivery, AnyReader
from mta.bell import Repeating
from mta.message import DeliveryState, TargetKind
from mta.smtp.content import with_crlf
from mta.spool_reading import SpoolReader, with_message
from mta.system_mail import Form, Sent, SystemMail
from mta.tables import deliveries

_log = logging.getLogger("relais.mta.outages")

KIND = "outage"
_POLL_SECONDS = 60.0
_SOME = 200
_SUBJECTS = {
    "begun": "Connecteur : intervention necessaire / Connector: please look",
    "over": "Connecteur : retabli / Connector: working again",
}
_OVER = ("Ce qui vous a été signalé est réglé. Pour mémoire :", "What you were told of is over. It was:")


@dataclass(frozen=True, slots=True)
class Outage:
    """One thing that does not work now, for one reader."""

    address: str
    name: str
    """What it is; stable while it lasts."""
    french: str
    english: str
    """A sentence for the reader; no secret, and nothing a server said."""


@dataclass(slots=True)
class _Known:
    outage: Outage
    since: float
    told: bool = False


class Outages(Repeating):
    """A turn looks at everything."""

    def __init__(
        self,
        mail: SystemMail,
        look: Callable[[], Iterable[Outage]],
        *,
        patience_seconds: float = 3600.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`look` may block; what it finds for `patience_seconds` is told."""
        super().__init__()
        self._mail = mail
        self._look = look
        self._patience = patience_seconds
        self._clock = clock
        self._known: dict[tuple[str, str], _Known] = {}

    async def _turn(self) -> float:
        try:
            await asyncio.to_thread(self.look)
        except Exception as error:  # its text may quote an address
            _log.error("what stands still cannot be looked up: %s", type(error).__name__)
        return _POLL_SECONDS

    def look(self) -> None:
        """Tell whoever is to be told now. From one thread; raises what the spool raises, and goes on when asked
        again."""
        now = self._clock()
        found = {(each.address, each.name): each for each in self._look()}
        for key in self._known.keys() - found.keys():
            if self._known[key].told:
                self._tell(self._known[key], "over")
            del self._known[key]
        for key, outage in found.items():
            known = self._known.setdefault(key, _Known(outage, now))
            if not known.told and not 0 <= now - known.since < self._patience:
                self._tell(known, "begun")
                known.told = True

    def _tell(self, known: _Known, action: str) -> None:
        outage, mail = known.outage, self._mail
        about = hashlib.sha256(f"{outage.address} {outage.name} {known.since}".encode()).hexdigest()[:40]
        sent = Sent(KIND, about, action, Form.WHOLE)
        french, english = outage.french, outage.english
        if action == "over":
            french, english = f"{_OVER[0]} {french}", f"{_OVER[1]} {english}"
        text = f"Bonjour,\n\n{french}\n\n--\n\n{english}\n"
        head = (
            f"Date: {formatdate(int(self._clock()))}",
            f"From: {mail.postmaster}",
            f"To: {outage.address}",
            f"Subject: {_SUBJECTS[action]}",
            f"Message-ID: {mail.message_id(sent)}",
            "Auto-Submitted: auto-generated",
            "MIME-Version: 1.0",
            "Content-Type: text/plain; charset=utf-8",
            "Content-Transfer-Encoding: quoted-printable",
            "",
            binascii.b2a_qp(with_crlf(text.encode()), istext=True).decode("ascii"),
        )
        if not mail.send(sent, outage.address, "\r\n".join(head).encode("ascii")):
            _log.error("nobody can be told of %s", outage.name)


def kept_waiting(spool: SpoolReader, target: TargetKind, accepted_before: float, code: str = "") -> list[AnyDelivery]:
    """Some deliveries to `target` that wait since before then, the oldest first; with `code`, those whose last attempt
    ended so."""
    query = with_message().where(
        deliveries.c.state == DeliveryState.READY.value,
        deliveries.c.target == target.value,
        deliveries.c.id < f"{max(0, int(accepted_before * 1000)):012x}",  # ids begin with the time of acceptance
    )
    if code:
        query = query.where(deliveries.c.code == code)
    return AnyReader(spool).those(query.order_by(deliveries.c.id).limit(_SOME))
