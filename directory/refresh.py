"""One professional brought up to date from the FHIR API, between two daily files.

It adds and changes; it removes nothing: the API is known to leave mailboxes out now and then, and what has really gone
goes with the next file. What the local overlay owns stays, a mailbox of the overlay too, and an address that belongs to
somebody else already is left to a human.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from directory import schema
from directory.canonical import REFRESHED
from directory.entries import is_address
from directory.extraction import MailboxRow
from directory.fhir import FhirMailbox, FhirProfessional
from directory.ldif import LdifEntry
from directory.pool import Connection, wait
from directory.publishing import mailboxes_at, modify
from directory.reading import LEARNED, RANK, Mailbox, certificates_in
from directory.records import MailboxKind
from directory.register import mailbox_entry
from directory.resolve import Directory
from directory.words import all_keys

_KINDS = {MailboxKind.PER.value: MailboxKind.PER, MailboxKind.CAB.value: MailboxKind.CAB}
"""Kinds a professional can hold; teams' and machines' mailboxes belong to structures."""


class Source(Protocol):
    """What refreshing needs of `directory.fhir.AnnuaireSante`."""

    def professional(self, rpps: str) -> FhirProfessional | None: ...


@dataclass(slots=True)
class RefreshReport:
    """What became of each address."""

    rpps: str
    found: bool = False
    """Whether the register has this professional."""
    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    """Addresses that were left as they are, with the reason."""
    missing: list[str] = field(default_factory=list)
    """National mailboxes of this professional that the API did not mention; they stay until a file drops them."""


def refresh(directory: Directory, source: Source, rpps: str, base: str) -> RefreshReport:
    """Ask the source for one RPPS number and write what it says; needs the administrator's identity.

    Raises `directory.fhir.FhirError`, `DirectoryUnavailableError`, `DirectoryRefusedError`, and ValueError when this is
    no RPPS number. Repeating it is harmless.
    """
    rpps = "".join(rpps.split())
    if len(rpps) == 12 and rpps.startswith("8"):
        rpps = rpps[1:]
    report = RefreshReport(rpps)
    professional = source.professional(rpps)
    known = directory.by_identifier("8" + rpps)
    if professional is None:
        report.missing = sorted(each.address for each in known)
        return report
    report.found = True
    for mailbox in professional.mailboxes:
        address = mailbox.address.lower()
        if not is_address(address):
            report.left[address[:64]] = "this is no mail address"
        elif mailbox.kind not in _KINDS:
            report.left[address] = f"mailboxes of type {mailbox.kind} belong to structures"
        else:
            entry = _entry(professional, mailbox, base)
            outcome = directory.write(
                lambda connection, deadline, address=address, entry=entry: _apply(  # type: ignore[misc]
                    connection, deadline, base, address, entry
                )
            )
            _note(report, address, outcome)
    mentioned = {mailbox.address.lower() for mailbox in professional.mailboxes}
    report.missing = sorted(each.address for each in known if each.address not in mentioned)
    return report


def _note(report: RefreshReport, address: str, outcome: str) -> None:
    lists = {"added": report.added, "changed": report.changed, "unchanged": report.unchanged}
    if outcome in lists:
        lists[outcome].append(address)
    else:
        report.left[address] = outcome


def _entry(professional: FhirProfessional, mailbox: FhirMailbox, base: str) -> LdifEntry:
    structure = mailbox.structure
    row = MailboxRow(
        kind=_KINDS[mailbox.kind],
        address=mailbox.address.lower(),
        pp_identifier_type=professional.id_nat[:1],
        pp_identifier=professional.id_nat[1:],
        pp_id_nat=professional.id_nat,
        structure_identifier_type=structure[:1],
        structure_identifier=structure[1:],
        service=mailbox.service,
        civility=professional.civility,
        family_name=professional.family_name,
        given_name=professional.given_name,
        profession_code=mailbox.profession,
        skill_code=mailbox.skill,
        dematerialisation={True: "O", False: "N", None: ""}[mailbox.dematerialisation],
        organisation=mailbox.organisation,
        l6_delivery=f"{mailbox.postal_code} {mailbox.town}".strip(),
        postal_code=mailbox.postal_code,
    )
    entry = mailbox_entry(base, row)
    attributes = dict(entry.attributes)
    if mailbox.red_list:
        attributes["listeRouge"] = (b"TRUE",)
    if mailbox.rank is not None:
        attributes[RANK] = (str(mailbox.rank).encode(),)
    if mailbox.certificates:
        attributes[schema.CERTIFICATE] = tuple(dict.fromkeys(mailbox.certificates))
    return LdifEntry(entry.dn, attributes)


def _apply(connection: Connection, deadline: float, base: str, address: str, entry: LdifEntry) -> str:
    """`added`, `changed`, `unchanged`, or why the entry was left as it is."""
    found = mailboxes_at(connection, deadline, base, address)
    if not found:
        attributes = dict(entry.attributes) | {schema.LOCAL_ATTRIBUTES: _marked(())}
        modlist = [(name, list(values)) for name, values in attributes.items()]
        wait(connection, connection.add_ext(entry.dn, modlist), deadline)
        return "added"
    if any(each.source != schema.NATIONAL.decode() for each in found):
        return "a mailbox of the local overlay has this address"
    mine = entry.attributes.get("IdNat", (b"",))[0].decode()
    if len(found) > 1 or found[0].recipient.id_nat != mine:
        return "the address belongs to somebody else in the directory; the next file decides"
    wanted = _wanted(entry.attributes, found[0])
    present = found[0].attributes
    if all(set(values) == set(present.get(name, ())) for name, values in wanted.items()):
        return "unchanged"
    marks = wanted.get(schema.LOCAL_ATTRIBUTES, present.get(schema.LOCAL_ATTRIBUTES, ()))
    wanted[schema.LOCAL_ATTRIBUTES] = _marked(marks)
    modify(connection, deadline, found[0].dn, present, wanted)
    return "changed"


def _marked(present: Iterable[bytes]) -> tuple[bytes, ...]:
    """`AttributLocal` that says when the API was asked: a file published before does not undo what it said."""
    others = (value for value in present if not value.lower().startswith(REFRESHED.encode()))
    return (*others, f"{REFRESHED}{datetime.now(UTC):%Y%m%d%H%M}".encode())


def _wanted(attributes: Mapping[str, tuple[bytes, ...]], present: Mailbox) -> dict[str, tuple[bytes, ...]]:
    """What to replace: what the API says, but for what the overlay owns and what makes the entry what it is."""
    owned = {
        value.decode("utf-8", "replace").lower().partition(";")[0]
        for value in present.attributes.get(schema.LOCAL_ATTRIBUTES, ())
    }
    held = certificates_in(present.attributes)
    unlearned: dict[str, tuple[bytes, ...]] = {}
    if schema.CERTIFICATE in attributes and held and all(present.origin(each) in LEARNED for each in held):
        owned.discard("usercertificate")  # what was learned from mail gives way to the register's
        marks = present.attributes[schema.LOCAL_ATTRIBUTES]
        unlearned[schema.LOCAL_ATTRIBUTES] = tuple(
            each for each in marks if not each.lower().startswith(b"usercertificate")
        )
    fixed = {"objectclass", "mail", "typebal", schema.SOURCE.lower()}
    wanted = {
        name: values
        for name, values in attributes.items()
        if name.lower() not in fixed and name.lower().partition(";")[0] not in owned
    } | unlearned
    if schema.WORDS in wanted:  # the file knows more words, labels above all: those stay
        known = present.attributes.get(schema.WORDS, ())
        wanted[schema.WORDS] = tuple(dict.fromkeys((*known, *wanted[schema.WORDS])))
        wanted[schema.WORD_KEYS] = all_keys(wanted[schema.WORDS])
    return wanted
