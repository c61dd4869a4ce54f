"""Who receives: every combination of the sender's flags, audiences, domains and what the directory says."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from bridges import routing
from bridges.report import Audience, Correspondent, Flags, Party, Report
from bridges.routing import DOSSIER_RECIPIENT, Lookup, RoutingOptions, addressed, recipients_to_resolve, route
from directory import refusals as directory_refusals
from directory.records import MailboxKind, Recipient
from mta.message import TargetKind
from smime import refusals as smime_refusals
from tests.bridges.fictitious import PATIENT, report
from trust.refusals import Refusal

OPTIONS = RoutingOptions(frozenset({"local.example"}), frozenset({"patient.example"}), dossier=True)
TRUSTED = frozenset({"local.example", "remote.example", "patient.example"})
ADDRESSES = {
    "local": "dr@local.example",
    "remote": "dr@remote.example",
    "untrusted": "dr@gmail.example",
    "own patient": f"{PATIENT.matricule}@patient.example",
    "other patient": "279035121518990@patient.example",
}
SAID = (None, False, True)


def person(address: str, audience: Audience = Audience.PROFESSIONAL, location: str = "PRT-1") -> Correspondent:
    return Correspondent(Party(), address, audience, location)


def known(address: str) -> Recipient:
    certificate: object = object()
    return Recipient(address, MailboxKind.PER, "", (certificate,), ())  # type: ignore[arg-type]


def decided(one: Report, lookups: Callable[[str], Recipient | Lookup] = known, **changes: object) -> list[tuple]:
    options = (
        OPTIONS if not changes else RoutingOptions(**{f: getattr(OPTIONS, f) for f in OPTIONS.__slots__} | changes)
    )
    deliveries = route(one, lookups, TRUSTED.__contains__, options)
    return [(d.recipient, d.target, d.refused.refusal.code if d.refused else "") for d in deliveries]


def expected(flags: Flags, audience: Audience, where: str) -> Refusal | None:
    """The policy once more, from its words and not from the code."""
    at_patients = where in ("own patient", "other patient")
    if at_patients or audience is Audience.PATIENT:
        if flags.hidden_from_patient or flags.hidden_from_representatives:
            return routing.HIDDEN_FROM_PATIENT
        if flags.to_patient is not True:
            return routing.NOT_REQUESTED
        if where != "own patient" or audience is not Audience.PATIENT:
            return routing.PATIENT_ADDRESS_MISMATCH
        return None
    if flags.masked_to_professionals:
        return routing.MASKED_TO_PROFESSIONALS
    if flags.to_professionals is False:
        return routing.NOT_REQUESTED
    return directory_refusals.DOMAIN_UNTRUSTED if where == "untrusted" else None


@pytest.mark.parametrize("where", ADDRESSES)
@pytest.mark.parametrize("audience", Audience)
def test_every_combination_of_flags(audience: Audience, where: str) -> None:
    address = ADDRESSES[where]
    for masked, hidden, minors, professionals, patient in itertools.product(SAID, repeat=5):
        flags = Flags(
            masked_to_professionals=masked,
            hidden_from_patient=hidden,
            hidden_from_representatives=minors,
            to_professionals=professionals,
            to_patient=patient,
        )
        one = report(flags=flags, correspondents=(person(address.upper(), audience),))
        refusal = expected(flags, audience, where)
        kind = TargetKind.MAILBOX if where == "local" and refusal is None else TargetKind.SMTP
        assert decided(one) == [(address, kind, refusal.code if refusal else "")], flags
        by_message = None if refusal is directory_refusals.DOMAIN_UNTRUSTED else refusal
        assert recipients_to_resolve(one, OPTIONS) == (() if by_message else (address,))
        assert (addressed(one, address, OPTIONS) is None) == (by_message is not None)


@pytest.mark.parametrize("asked", SAID)
@pytest.mark.parametrize("holds", [True, False])
def test_the_record_is_fed_when_asked(asked: bool | None, holds: bool) -> None:
    found = decided(report(flags=Flags(to_dossier=asked)), dossier=holds)
    code = "" if holds else "bridges.no-dossier"
    assert found == ([(DOSSIER_RECIPIENT, TargetKind.DOSSIER, code)] if asked else [])


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Lookup.UNKNOWN, directory_refusals.RECIPIENT_UNKNOWN.code),
        (Lookup.LATER, ""),
        (Recipient("dr@remote.example", MailboxKind.PER, "", (), ()), smime_refusals.NO_ENCRYPTION_CERTIFICATE.code),
        (known("dr@remote.example"), ""),
    ],
)
@pytest.mark.parametrize("where", ["local", "remote"])
def test_what_the_directory_says(answer: Recipient | Lookup, code: str, where: str) -> None:
    one = report(correspondents=(person(ADDRESSES[where]),))
    assert [found[2] for found in decided(one, lambda _: answer)] == [code]


@pytest.mark.parametrize(
    "address",
    [
        "",
        "279035121518989",
        "@remote.example",
        "dr@",
        "dr@@remote.example",
        "d r@remote.example",
        "dr@remote.example\r\nBcc: x@gmail.example",
        "dr>,<x@remote.example",
        '"dr"@remote.example',
        "dré@remote.example",
        "dr@remote.example.",
        f"{PATIENT.matricule}@patient.example.",
        "a" * 65 + "@remote.example",
    ],
)
@pytest.mark.parametrize("audience", Audience)
def test_what_is_no_address_is_never_asked_for(address: str, audience: Audience) -> None:
    one = report(correspondents=(person(address, audience),), flags=Flags(to_patient=True))
    assert [found[2] for found in decided(one, lambda _: Lookup.LATER)] == ["bridges.address-invalid"]
    assert recipients_to_resolve(one, OPTIONS) == ()


def test_a_patient_without_identity_receives_nothing() -> None:
    from dataclasses import replace

    one = report(
        patient=replace(PATIENT, matricule=""),
        correspondents=(
            person("@patient.example", Audience.PATIENT),
            person(ADDRESSES["own patient"], Audience.PATIENT),
        ),
        flags=Flags(to_patient=True),
    )
    assert {found[2] for found in decided(one)} == {"bridges.address-invalid", "bridges.patient-address-mismatch"}


def test_one_impossible_correspondent_stops_no_other_and_each_address_is_delivered_once() -> None:
    one = report(
        correspondents=(
            person("dr@gmail.example"),
            person("dr@remote.example"),
            person(" DR@remote.example "),
            person("dr@local.example"),
        )
    )
    assert decided(one) == [
        ("dr@gmail.example", TargetKind.SMTP, "directory.domain-untrusted"),
        ("dr@remote.example", TargetKind.SMTP, ""),
        ("dr@local.example", TargetKind.MAILBOX, ""),
    ]


def test_named_twice_each_reads_what_was_written_for_them() -> None:
    """First in the wrong role, then in the right one: only the right one counts, for routing and for composing."""
    for address, wrong in (
        (ADDRESSES["own patient"], Audience.PROFESSIONAL),
        (ADDRESSES["remote"], Audience.PATIENT),
    ):
        right = Audience.PATIENT if wrong is Audience.PROFESSIONAL else Audience.PROFESSIONAL
        one = report(
            correspondents=(person(f" {address}", wrong), person(address, right, "PRT-2")), flags=Flags(to_patient=True)
        )
        assert [found[2] for found in decided(one)] == [""]
        chosen = addressed(one, address, OPTIONS)
        assert chosen is not None and chosen.audience is right


def test_codes_are_unique() -> None:
    assert len({refusal.code for refusal in routing.CATALOGUE}) == len(routing.CATALOGUE)
