"""The records an operator publishes: complete, in a form name servers take, and true to what is offered."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta

import dns.rdata
import dns.rdataclass
import dns.rdatatype
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mta.mailboxes.dns_records import (
    DnsRecord,
    MailHost,
    client_records,
    door_names,
    mail_records,
    mta_sts_policy,
    unnamed,
)
from mta.mailboxes.services import AddressBook, ClientServices, Security, Service
from mta.smtp.mta_sts import parse_policy
from trust.issuing import DemonstrationAuthority, Issued

SERVICES = ClientServices(
    name="Essai",
    domains=("a.example", "b.example"),
    imap=Service("imap.a.example", 993),
    submission=(Service("smtp.a.example", 465), Service("smtp.a.example", 587, Security.STARTTLS)),
    site=Service("aide.a.example", 443),
    sieve=Service("imap.a.example", 4190, Security.STARTTLS),
    address_book=AddressBook(Service("annuaire.a.example", 636), "dc=example"),
)


@pytest.fixture(scope="module")
def issued() -> Issued:
    return DemonstrationAuthority.create("essai").issue_server(["mx.a.example", "*.b.example"])


def found(services: ClientServices, domain: str = "a.example") -> dict[str, str]:
    return {each.name: each.value for each in client_records(services) if each.name.endswith(f".{domain}")}


def test_every_service_has_its_record_in_every_domain() -> None:
    assert found(SERVICES) == {
        "_imaps._tcp.a.example": "0 1 993 imap.a.example.",
        "_submissions._tcp.a.example": "0 1 465 smtp.a.example.",
        "_submission._tcp.a.example": "0 1 587 smtp.a.example.",
        "_imap._tcp.a.example": "0 0 0 .",
        "_pop3._tcp.a.example": "0 0 0 .",
        "_pop3s._tcp.a.example": "0 0 0 .",
        "_sieve._tcp.a.example": "0 1 4190 imap.a.example.",
        "_ldaps._tcp.a.example": "0 1 636 annuaire.a.example.",
        "_autodiscover._tcp.a.example": "0 1 443 aide.a.example.",
        "autoconfig.a.example": "aide.a.example.",
        "autodiscover.a.example": "aide.a.example.",
    }
    assert len(found(SERVICES)) == len(found(SERVICES, "b.example"))


def test_a_record_says_how_its_port_is_protected() -> None:
    """Only STARTTLS is offered: nobody may take it for TLS from the first octet."""
    only = replace(SERVICES, submission=(Service("smtp.a.example", 587, Security.STARTTLS),))
    assert found(only)["_submission._tcp.a.example"] == "0 1 587 smtp.a.example."
    assert found(only)["_submissions._tcp.a.example"] == "0 0 0 ."


def test_no_name_is_its_own_alias() -> None:
    door = replace(SERVICES, site=Service("autoconfig.a.example", 443), mta_sts="x")
    mail = mail_records(door.domains, MailHost(host="mx.a.example"), "x", door.site.host)
    records = [*client_records(door), *mail]
    assert not any(each.kind == "CNAME" and each.value == f"{each.name}." for each in records)
    assert any(each.name == "autoconfig.b.example" for each in records)


def test_name_servers_take_every_line(issued: Issued) -> None:
    mail = MailHost(host="mx.a.example", certificate=issued.certificate, dkim_selector="s", dkim_public_key="A" * 736)
    published = mail_records(SERVICES.domains, mail, mta_sts_policy(mail), SERVICES.site.host)
    records = [*client_records(SERVICES), *published]
    for each in records:
        kind = dns.rdatatype.from_text(each.kind)
        text = each.zone_line().removeprefix(f"{each.name}. IN {each.kind} ")
        assert dns.rdata.from_text(dns.rdataclass.IN, kind, text).rdtype == kind
    (dkim, _) = [each for each in records if each.name.startswith("s._domainkey.")]
    assert dkim.zone_line().count('"') == 6  # more than 255 octets: several strings, which readers join
    assert len(records) == len({(each.name, each.kind) for each in records})


def test_texts_are_quoted() -> None:
    assert DnsRecord("a.example", "TXT", 'x"\\', "").zone_line() == 'a.example. IN TXT "x\\"\\\\"'


def test_the_key_of_port_25_is_bound_not_its_certificate(issued: Issued) -> None:
    records = mail_records(SERVICES.domains, MailHost(host="mx.a.example", certificate=issued.certificate))
    (tlsa,) = [each for each in records if each.kind == "TLSA"]
    public = issued.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert (tlsa.name, tlsa.value) == ("_25._tcp.mx.a.example", f"3 1 1 {hashlib.sha256(public).hexdigest()}")


def test_a_policy_is_enforced_only_when_the_certificate_names_the_host(issued: Issued) -> None:
    named = parse_policy(mta_sts_policy(MailHost(host="mx.a.example", certificate=issued.certificate)).encode())
    assert named is not None
    assert "mode: enforce" in mta_sts_policy(MailHost(host="mx.a.example", certificate=issued.certificate))
    assert "mode: testing" in mta_sts_policy(MailHost(host="mx.c.example", certificate=issued.certificate))
    assert "mode: testing" in mta_sts_policy(MailHost(host="mx.a.example"))


def test_a_certificate_that_has_ended_enforces_nothing(issued: Issued) -> None:
    mail, ends = MailHost(host="mx.a.example", certificate=issued.certificate), issued.certificate.not_valid_after_utc
    assert "mode: enforce" in mta_sts_policy(mail, ends)
    assert "mode: testing" in mta_sts_policy(mail, ends + timedelta(seconds=1))
    assert "mode: testing" in mta_sts_policy(mail, issued.certificate.not_valid_before_utc - timedelta(seconds=1))


def test_the_name_that_notifications_come_from_says_who_sends() -> None:
    def texts(host: str) -> list[str]:
        records = mail_records(SERVICES.domains, MailHost(host=host))
        return [each.value for each in records if each.name == host and each.kind == "TXT"]

    assert texts("mx.a.example") == ["v=spf1 a -all"]
    assert texts("a.example") == ["v=spf1 a:a.example -all"]  # two would count for none


def test_no_name_leads_to_a_door_that_is_not_there() -> None:
    names = {each.name: each.value for each in client_records(SERVICES, door=False)}
    assert not any(name.startswith(("autoconfig.", "autodiscover.")) for name in names)
    assert names["_autodiscover._tcp.a.example"] == "0 0 0 ."
    assert names["_imaps._tcp.a.example"] == "0 1 993 imap.a.example."


def test_the_number_of_a_policy_changes_with_it() -> None:
    def number(policy: str) -> str:
        records = mail_records(SERVICES.domains, MailHost(host="mx.a.example"), policy, "aide.a.example")
        return next(each.value for each in records if each.name == "_mta-sts.a.example")

    assert number("a") != number("b")
    assert number("a") == number("a")


def test_nothing_is_published_of_what_is_not_there() -> None:
    records = list(mail_records(SERVICES.domains, MailHost(host="mx.a.example")))
    assert "TLSA" not in {each.kind for each in records}
    assert not any("DKIM" in each.value for each in records)
    assert not any("mta-sts" in each.name for each in records)
    assert "mta-sts.a.example" not in door_names(SERVICES)


def test_names_the_certificate_lacks(issued: Issued) -> None:
    hosts = ["mx.a.example", "x.b.example", "x.y.b.example", "b.example", "c.example", "c.example"]
    assert unnamed(issued.certificate, hosts) == ["x.y.b.example", "b.example", "c.example"]
