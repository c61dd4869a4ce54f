"""What is different on the road of a gateway that stands beside its one reader (`relais connect`).

Nobody else could file a mail this gateway cannot open, so it is filed as it came: its reader sees that it is there, and
who has another key opens it. And what this gateway writes itself is for that reader alone, over a socket of this
machine: it needs no directory, no key and no network, and so tells also of the night in which there was none.
"""

from __future__ import annotations

from dataclasses import replace

from mta.header import is_ours, received
from mta.mailboxes.dovecot import DELIVERY_HEADER
from mta.message import Message, Origin, Phase, Stage
from mta.opening import HELD_FACT, VERDICT_FIELD
from mta.smtp.content import with_crlf
from smime.mime import MimeError, parse_entity
from trust.refusals import Refused


class FileUnopened:
    """A `mta.message.Stage` before `mta.opening.OpenStage`."""

    def __init__(self, opening: Stage, authserv_id: str) -> None:
        self._opening = opening
        self._authserv_id = authserv_id

    async def apply(self, message: Message, phase: Phase) -> Message | Refused:
        """See `mta.message.Stage`. What can never be opened here goes on as it came; what cannot be now waits."""
        opened = await self._opening.apply(message, phase)
        if phase is not Phase.OPEN or not isinstance(opened, Refused) or not opened.refusal.permanent:
            return opened
        try:
            entity = parse_entity(with_crlf(message.content))
        except MimeError:
            return opened
        said = (
            f"{DELIVERY_HEADER}: {message.delivery_id}\r\n"
            f"{VERDICT_FIELD}: decrypted=no; signature=unread; signer=-; path=-; refused={opened.refusal.code}\r\n"
        )
        header = [said.encode("ascii"), received(self._authserv_id, message)]
        header += [field.raw for field in entity.fields if not is_ours(field)]
        facts = {**message.facts, "verdict": "decrypted=no; signature=unread", "warning.unopened": opened.refusal.code}
        facts[HELD_FACT] = "holder"  # nothing is put around it: who has another key could not open it any more
        return replace(message, content=b"".join([*header, b"\r\n", entity.body]), facts=facts)


class NoticesStayHere:
    """A `mta.message.Stage` before `mta.protecting.ProtectStage`, where no notice of ours ever leaves the machine."""

    def __init__(self, protecting: Stage) -> None:
        self._protecting = protecting

    async def apply(self, message: Message, phase: Phase) -> Message | Refused:
        """See `mta.message.Stage`."""
        if phase is Phase.PROTECT and message.origin is Origin.SYSTEM:
            return message
        return await self._protecting.apply(message, phase)
