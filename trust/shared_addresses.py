"""What one account may do with an address that is another's, and how the database says it.

A grant is one word in `address_grants.right`: `use` or `sign` as `relais account grant` gives them, or the letters of a
member's rights on a team's mailbox (`r`, `w`, `s`), which are given one by one. Whoever asks asks for what they mean to
do (`Access`), not for the word.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Flag, auto
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from trust.tables import address_grants, identities, identity_addresses, identity_locks, team_members


class Access(Flag):
    """What can be done with an address."""

    READ = auto()
    """Read the mailbox."""
    WRITE = auto()
    """Move, flag and delete in it."""
    SEND = auto()
    """Name it as the sender on the envelope."""
    SIGN = auto()
    """Write as it: mail From it is signed with its key."""


NOTHING = Access(0)
EVERYTHING = Access.READ | Access.WRITE | Access.SEND | Access.SIGN
_WORDS = {"use": Access.READ | Access.WRITE | Access.SEND, "sign": EVERYTHING}
_LETTERS = {"r": Access.READ, "w": Access.WRITE, "s": Access.SEND | Access.SIGN}


def access_of(right: str) -> Access:
    """What a word of `address_grants.right` allows; nothing for one that is not known."""
    known = _WORDS.get(right)
    if known is not None:
        return known
    found = NOTHING
    for letter in right:
        found |= _LETTERS.get(letter, NOTHING)
    return found


def letters_of(access: Access) -> str:
    """The word of a member's rights; empty for none. A member who sends also writes as the mailbox."""
    return "".join(letter for letter, allowed in _LETTERS.items() if allowed in access)


def access_of_others(connection: Connection, identity_id: str, address: str, owner: str) -> Access:
    """What the identity may do with the address (a pseudonym) of another: by a grant, or as member of a team that owns
    it or has the grant; membership goes one step. The caller sees to who is kept out."""
    acting = {identity_id, *teams_of(connection, identity_id)}
    if owner in acting:
        return EVERYTHING
    granted = select(address_grants.c.right).where(
        address_grants.c.address == address, address_grants.c.identity_id.in_(acting)
    )
    found = NOTHING
    for right in connection.scalars(granted):
        found |= access_of(right)
    return found


def owner_of(connection: Connection, address: str) -> str | None:
    """The identity that owns the address (a pseudonym)."""
    found: str | None = connection.scalar(
        select(identity_addresses.c.identity_id).where(identity_addresses.c.address == address)
    )
    return found


def teams_of(connection: Connection, identity_id: str) -> list[str]:
    """The teams it acts for: one that is kept out gives nothing meanwhile."""
    locked = select(identity_locks.c.identity_id)
    theirs = select(team_members.c.team_id).where(
        team_members.c.member_id == identity_id, team_members.c.team_id.not_in(locked)
    )
    return list(connection.scalars(theirs))


def members_of_team(connection: Connection, team: str) -> list[str]:
    """Identities that may whatever this one may."""
    return list(connection.scalars(select(team_members.c.member_id).where(team_members.c.team_id == team)))


def holders(connection: Connection, address: str) -> Iterator[tuple[str, Access]]:
    """Identities besides its owner that may do something with the address (a pseudonym): by grant, or as members of
    the team that owns it. One may come twice."""
    granted = select(address_grants.c.identity_id, address_grants.c.right).where(address_grants.c.address == address)
    for identity_id, right in connection.execute(granted).all():
        yield identity_id, access_of(right)
    owner = owner_of(connection, address)
    for member in members_of_team(connection, owner) if owner else ():
        yield member, EVERYTHING


def reach(connection: Connection, identity_id: str) -> Iterator[tuple[Row[Any], Access]]:
    """Rows of `identity_addresses` that are another's, and what this identity may do there. One may come twice."""
    teams = teams_of(connection, identity_id)
    granted = (
        select(identity_addresses, address_grants.c.right)
        .join(address_grants, address_grants.c.address == identity_addresses.c.address)
        .where(address_grants.c.identity_id.in_([identity_id, *teams]), identity_addresses.c.identity_id != identity_id)
    )
    for row in connection.execute(granted).all():
        yield row, access_of(row.right)
    owned = select(identity_addresses).where(identity_addresses.c.identity_id.in_(teams))
    for row in connection.execute(owned).all():
        yield row, EVERYTHING


def set_access(connection: Connection, address: str, identity_id: str, access: Access) -> bool:
    """What the identity may do with the address (pseudonym) from now on, instead of what it was granted before.

    False when neither is known: the identity or the address is gone."""
    connection.execute(
        delete(address_grants).where(address_grants.c.address == address, address_grants.c.identity_id == identity_id)
    )
    known = connection.scalar(select(identities.c.id).where(identities.c.id == identity_id))
    if known is None or owner_of(connection, address) is None:
        return False
    if letters := letters_of(access):
        values = {"address": address, "identity_id": identity_id, "right": letters}
        connection.execute(insert(address_grants).values(**values))
    return True
