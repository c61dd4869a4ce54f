"""What the road reads of a message header, strictly: the one author, and where headers of our own go.

Two readers that disagree on who wrote a message are how forgeries pass, so an ambiguous From field is no From field.
"""

from __future__ import annotations

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


def is_content_field(field: Field) -> bool:
    """Fields that describe the body and travel with it (RFC 2045 §3)."""
    return field.name.startswith("content-") or field.name == "mime-version"


def may_come_in(field: Field) -> bool:
    """Not a field that only we may write: a verdict in it would be believed (RFC 8601 §5)."""
    name = field.name.strip()
    return not name.startswith(OWN_PREFIX) and name != "authentication-results"
