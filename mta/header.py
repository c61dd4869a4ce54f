"""What the road reads of a message header, strictly: the one author, and where headers of our own go.

Two readers that disagree on who wrote a message are how forgeries pass, so an ambiguous From field is no From field.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import format_datetime

from mta.message import Message, Origin
from mta.smtp.address import is_address
from smime.addresses import AddressError, from_addresses
from smime.mime import Entity, Field

OWN_PREFIX = "x-relais-"
"""Fields only we may write; lower case."""
_VERDICTS = frozenset({"authentication-results", "received-spf", "return-path"})
_ORIGINATORS = ("from", "sender", "resent-from", "resent-sender")
_COMMENT = re.compile(r"\([^()]*\)")
_LONGEST = 500
"""Characters of Auto-Submitted that are looked at."""
_MESSAGE_ID = re.compile(r"<[!-;=?-~]{1,248}>")


def author_of(header: Entity) -> str | None:
    """The address of the one mailbox of the one From field (RFC 5322 §3.6.2), None when it is not exactly that."""
    try:
        addresses = from_addresses(header)
    except AddressError:
        return None
    one = len(addresses) == 1 and len(header.values("from")) == 1 and is_address(addresses[0])
    return addresses[0] if one else None


def originators_of(header: Entity) -> frozenset[str] | None:
    """Every address said to have written, sent or resent it (RFC 5322 §3.6.2, §3.6.6); None when one is unreadable."""
    try:
        return frozenset(address for name in _ORIGINATORS for address in from_addresses(header, name))
    except AddressError:
        return None


def message_id_of(header: Entity) -> str:
    """The one Message-ID (RFC 5322 §3.6.4), empty when it is not exactly that.

    It goes into receipts and onto an operator's terminal: printable ASCII without spaces, at most 250 octets.
    """
    ids = header.values("message-id")
    return ids[0] if len(ids) == 1 and _MESSAGE_ID.fullmatch(ids[0]) else ""


def is_ours(field: Field) -> bool:
    """A field that only we may write: from outside, a verdict in it would be believed.

    All foreign Authentication-Results go, whatever id they name: RFC 8601 §5 wants those with ours removed, and an id
    can be spelled in more ways than a reader of ours should have to know.
    """
    return field.name.startswith(OWN_PREFIX) or field.name in _VERDICTS


def is_automatic(header: Entity) -> bool:
    """A program sent this by itself (RFC 3834 §5), so nothing answers it by itself.

    A delivery notification is no answer in that sense: those follow the reverse-path alone (RFC 5321 §6.1).
    """
    return any(_keyword(value[:_LONGEST]) not in ("", "no") for value in header.values("auto-submitted"))


def answers_by_itself(header: Entity) -> bool:
    """A program sent this as its answer to a mail (RFC 3834 §5.1): a notice of absence, say."""
    return any(_keyword(value[:_LONGEST]) == "auto-replied" for value in header.values("auto-submitted"))


def _keyword(value: str) -> str:
    """The first word that stands in no comment (RFC 5322 §3.2.2), lower case; what cannot be told is itself."""
    while (bare := _COMMENT.sub(" ", value)) != value:
        value = bare
    return value.partition(";")[0].strip().lower()


def received(hostname: str, message: Message) -> bytes:
    """Our trace field (RFC 5321 §4.4), the same at every attempt; who sent it and from where is the spool's to know."""
    protocol = {
        Origin.OPERATOR: " with ESMTPS",
        Origin.SUBMISSION: " with ESMTPSA",
        Origin.LMTP: " with LMTP",
    }.get(message.origin, "")
    date = format_datetime(datetime.fromtimestamp(message.accepted_at, UTC))
    return f"Received: by {hostname}{protocol} id {message.spool_id};\r\n {date}\r\n".encode("ascii")
