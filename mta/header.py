"""What the road reads of a message header, strictly: the one author, and where headers of our own go.

Two readers that disagree on who wrote a message are how forgeries pass, so an ambiguous From field is no From field.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

from mta.message import Message, Origin
from mta.smtp.address import is_address
from smime.addresses import AddressError, from_addresses
from smime.mime import Entity, Field

OWN_PREFIX = "x-relais-"
"""Fields only we may write; lower case."""


def author_of(header: Entity) -> str | None:
    """The address of the one mailbox of the one From field (RFC 5322 §3.6.2), None when it is not exactly that."""
    try:
        addresses = from_addresses(header)
    except AddressError:
        return None
    one = len(addresses) == 1 and len(header.values("from")) == 1 and is_address(addresses[0])
    return addresses[0] if one else None


def is_ours(field: Field) -> bool:
    """A field that only we may write: from outside, a verdict in it would be believed.

    All foreign Authentication-Results go, whatever id they name: RFC 8601 §5 wants those with ours removed, and an id
    can be spelled in more ways than a reader of ours should have to know.
    """
    return field.name.startswith(OWN_PREFIX) or field.name in ("authentication-results", "return-path")


def received(hostname: str, message: Message) -> bytes:
    """Our trace field (RFC 5321 §4.4), the same at every attempt; who sent it and from where is the spool's to know."""
    protocol = {Origin.OPERATOR: " with ESMTPS", Origin.SUBMISSION: " with ESMTPSA"}.get(message.origin, "")
    date = format_datetime(datetime.fromtimestamp(message.accepted_at, UTC))
    return f"Received: by {hostname}{protocol} id {message.spool_id};\r\n {date}\r\n".encode("ascii")
