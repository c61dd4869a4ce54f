"""Writing the local overlay: mailboxes, certificates, ranks and domains that no national file holds.

Functions over one connection of the administrator's, each run within one deadline by `directory.resolve.Directory`.
They raise what python-ldap raises. Every write is idempotent, and one modification per entry: a reader sees an entry
before or after, never between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import ldap as python_ldap
from cryptography import x509
from ldap.controls import AssertionControl
from ldap.dn import escape_dn_chars
from ldap.filter import escape_filter_chars

from directory import schema
from directory.entries import certificate_values, from_recipient
from directory.ldif import LdifEntry
from directory.pool import Connection, left, wait
from directory.reading import DEPARTMENT, RANK, Attributes, Mailbox, encoded, read_mailbox
from directory.records import MailboxKind, Recipient

ldap: Any = python_ldap
"""python-ldap has no type annotations."""

_ORDER = {kind: position for position, kind in enumerate(MailboxKind)}
_VERSION = "entryCSN"
"""Operational: another value with each change of the entry."""
_DOMAINS = "domaines"
_CERTIFICATE = "usercertificate"
_CERTIFICATES = (schema.CERTIFICATE, schema.LOCAL_ATTRIBUTES)
"""Attributes of an entry of the local overlay that say what its certificates are, and where from."""
_DOMAIN_PREFIX = "dns:"


def domain_key(domain: str) -> str:
    """The `IdNat` of a mail domain's entry, by which it is found together with a mailbox in one search."""
    return _DOMAIN_PREFIX + domain.lower()


def is_domain(attributes: Attributes) -> bool:
    """Whether an entry is that of a mail domain."""
    return any(value.startswith(_DOMAIN_PREFIX.encode()) for value in attributes.get("IdNat", ()))


def publish(
    connection: Connection,
    deadline: float,
    base: str,
    recipient: Recipient,
    red_list: bool | None = None,
    certificates: bool = True,
) -> None:
    """See `Directory.publish`."""
    entry = from_recipient(recipient, base, bool(red_list))
    attributes = dict(entry.attributes)
    if recipient.department:
        attributes[DEPARTMENT] = (recipient.department.encode(),)
    if recipient.rank is not None:
        attributes[RANK] = (str(recipient.rank).encode(),)
    if recipient.domain_certificate or not certificates:  # those are others', and stay where they are
        attributes.pop(schema.CERTIFICATE, None)
    entry = LdifEntry(entry.dn, attributes)
    try:
        _publish(connection, deadline, base, recipient, entry, red_list, certificates)
    except ldap.ALREADY_EXISTS:  # somebody published it between our search and our addition
        _publish(connection, deadline, base, recipient, entry, red_list, certificates)


def withdraw(connection: Connection, deadline: float, base: str, address: str) -> bool:
    """See `Directory.withdraw`."""
    found = mailboxes_at(connection, deadline, base, address)
    for mailbox in found:
        if mailbox.source != schema.NATIONAL.decode():
            with suppress(ldap.NO_SUCH_OBJECT):
                wait(connection, connection.delete_ext(mailbox.dn), deadline)
            continue
        marks = mailbox.attributes.get(schema.LOCAL_ATTRIBUTES, ())
        ours = [each for each in marks if each.decode("utf-8", "replace").lower().partition(";")[0] == _CERTIFICATE]
        if ours:  # else they are the register's
            kept = tuple(each for each in marks if each not in ours)
            wanted = {schema.CERTIFICATE: (), schema.LOCAL_ATTRIBUTES: kept}
            modify(connection, deadline, mailbox.dn, mailbox.attributes, wanted)
    return bool(found)


def mailboxes_at(connection: Connection, deadline: float, base: str, address: str) -> list[Mailbox]:
    """The entries of one address with all their attributes, in the order of `Directory.resolve`."""
    found = _search(connection, deadline, base, f"(mail={escape_filter_chars(address)})")  # type: ignore[no-untyped-call]
    mailboxes = [known for dn, values in found if (known := read_mailbox(dn, values, None, address)) is not None]
    return sorted(mailboxes, key=lambda each: (_ORDER[each.recipient.kind], each.dn.lower()))


def publish_domain(
    connection: Connection, deadline: float, base: str, domain: str, certificates: Sequence[x509.Certificate]
) -> None:
    """See `Directory.publish_domain`."""
    branch = f"ou={_DOMAINS},{base}"
    dn = f"dc={escape_dn_chars(domain.lower())},{branch}"  # type: ignore[no-untyped-call]
    values = {encoded(certificate) for certificate in certificates}
    if not values:
        with suppress(ldap.NO_SUCH_OBJECT):
            wait(connection, connection.delete_ext(dn), deadline)
        return
    _add_if_missing(connection, deadline, branch, {"objectClass": [b"organizationalUnit"], "ou": [_DOMAINS.encode()]})
    wanted = {
        "objectClass": [b"domain", b"pkiUser", b"extensibleObject"],
        "dc": [domain.lower().encode()],
        "IdNat": [domain_key(domain).encode()],
        schema.SOURCE: [schema.LOCAL],
        schema.CERTIFICATE: sorted(values),
    }
    if not _add_if_missing(connection, deadline, dn, wanted):
        change = [(ldap.MOD_REPLACE, schema.CERTIFICATE, sorted(values))]
        wait(connection, connection.modify_ext(dn, change), deadline)


def set_rank(connection: Connection, deadline: float, base: str, address: str, rank: int | None) -> bool:
    """See `Directory.set_rank`."""
    found = mailboxes_at(connection, deadline, base, address)
    for mailbox in found:
        owned = owned_with(mailbox, RANK, rank is not None)
        wanted = {RANK: () if rank is None else (str(rank).encode(),), schema.LOCAL_ATTRIBUTES: owned}
        modify(connection, deadline, mailbox.dn, mailbox.attributes, wanted)
    return bool(found)


def owned_with(mailbox: Mailbox, name: str, owned: bool) -> tuple[bytes, ...]:
    """`AttributLocal` of this entry once the overlay owns attribute `name` there, or no longer does."""
    present = [
        each for each in mailbox.attributes.get(schema.LOCAL_ATTRIBUTES, ()) if each.lower() != name.lower().encode()
    ]
    if owned and mailbox.source == schema.NATIONAL.decode():
        present.append(name.encode())
    return tuple(present)


def modify(
    connection: Connection,
    deadline: float,
    dn: str,
    present: Attributes,
    wanted: Mapping[str, Sequence[bytes]],
    unchanged: bool = False,
) -> bool:
    """Replace the attributes that differ (RFC 4511 §4.6), in one modification; False when none does.

    `unchanged`: only while the entry is the one that was read (RFC 4528, by its `entryCSN`, where the server shows it);
    `ldap.ASSERTION_FAILED` says that somebody wrote it meanwhile.
    """
    changes = [
        (ldap.MOD_REPLACE, name, list(values) or None)
        for name, values in wanted.items()
        if set(values) != set(present.get(name, ()))
    ]
    controls = []
    if unchanged and (read := present.get(_VERSION)):
        text = f"({_VERSION}={escape_filter_chars(read[0].decode('ascii', 'replace'))})"  # type: ignore[no-untyped-call]
        controls.append(AssertionControl(True, text))  # type: ignore[no-untyped-call]
    if changes:
        wait(connection, connection.modify_ext(dn, changes, controls), deadline)
    return bool(changes)


def _publish(
    connection: Connection,
    deadline: float,
    base: str,
    recipient: Recipient,
    entry: LdifEntry,
    red_list: bool | None,
    certificates: bool,
) -> None:
    mailboxes = mailboxes_at(connection, deadline, base, recipient.address)
    national = next((each for each in mailboxes if each.source == schema.NATIONAL.decode()), None)
    if national is not None:
        wanted = _overlay(recipient, national, red_list, certificates)
        modify(connection, deadline, national.dn, national.attributes, wanted)
        return
    same = next((each for each in mailboxes if each.recipient.kind is recipient.kind), None)
    hidden = next((each.attributes["listeRouge"] for each in mailboxes if "listeRouge" in each.attributes), None)
    attributes = dict(entry.attributes)
    if red_list is None and hidden:
        attributes["listeRouge"] = tuple(hidden)
    if not certificates and mailboxes:  # as they are, with what marks where they were learned
        present = (same or mailboxes[0]).attributes
        attributes |= {name: tuple(present[name]) for name in _CERTIFICATES if present.get(name)}
    if same is None:
        modlist = [(name, list(values)) for name, values in attributes.items()]
        wait(connection, connection.add_ext(entry.dn, modlist), deadline)
    else:
        names = {*attributes, *same.attributes} - {"objectClass", "mail", _VERSION}
        if recipient.rank is None:  # said by `set_rank`
            names.discard(RANK)
        changes = {name: attributes.get(name, ()) for name in names}
        modify(connection, deadline, entry.dn, same.attributes, changes)
    for each in mailboxes:
        if each.recipient.kind is not recipient.kind:  # the mailbox changed its kind, hence its branch
            wait(connection, connection.delete_ext(each.dn), deadline)


def _overlay(
    recipient: Recipient, national: Mailbox, red_list: bool | None, certificates: bool
) -> dict[str, tuple[bytes, ...]]:
    """What the overlay wants of a national entry, an empty tuple for an attribute to remove.

    What it owns there besides red list and, with `certificates`, certificates stays as it is.
    """
    wanted: dict[str, tuple[bytes, ...]] = {}
    owned, replaced = [], ["listerouge"]
    if certificates:
        own = () if recipient.domain_certificate else tuple(certificate_values(recipient))
        wanted[schema.CERTIFICATE] = own
        owned = [b"userCertificate"] if own else []
        replaced.append(_CERTIFICATE)
    hidden = national.red_list if red_list is None else red_list
    if hidden:
        owned.append(b"listeRouge")
    for value in national.attributes.get(schema.LOCAL_ATTRIBUTES, ()):
        if value.decode("utf-8", "replace").lower().partition(";")[0] not in replaced:
            owned.append(value)
    return wanted | {"listeRouge": (b"TRUE",) if hidden else (), schema.LOCAL_ATTRIBUTES: tuple(owned)}


def _add_if_missing(connection: Connection, deadline: float, dn: str, attributes: dict[str, list[bytes]]) -> bool:
    """Whether it was missing."""
    try:
        wait(connection, connection.add_ext(dn, list(attributes.items())), deadline)
    except ldap.ALREADY_EXISTS:
        return False
    return True


def _search(connection: Connection, deadline: float, base: str, text: str) -> list[tuple[str, dict[str, list[bytes]]]]:
    message = connection.search_ext(base, ldap.SCOPE_SUBTREE, text, ("*", _VERSION))
    _, results = connection.result(message, 1, left(deadline))
    return [(dn, values) for dn, values in results if dn is not None]  # a referral has no DN
