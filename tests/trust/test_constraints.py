"""Names and the constraints on them, form by form, and what too many of them cost."""

from __future__ import annotations

import ipaddress
import time

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID, ObjectIdentifier

from tests.trust.chains import CA, CERT_SIGN, LEAF, NOW, Node, make
from trust import der
from trust.certificates import CertificateValidator, PathVerdict, Purpose

ROOT = make("Root", None, [CA, CERT_SIGN])
VALIDATOR = CertificateValidator([ROOT.certificate])
BROKEN = "rfc5280-6.1.3-name-constraints"
MALFORMED = "rfc5280-4.2.1.10-name-constraints"
SMTP_UTF8 = ObjectIdentifier("1.3.6.1.5.5.7.8.9")


def dn(*values: str) -> x509.Name:
    oids = (NameOID.COUNTRY_NAME, NameOID.ORGANIZATION_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.COMMON_NAME)
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in zip(oids, values, strict=False)])


def constraint(
    permitted: list[x509.GeneralName] | None = None, excluded: list[x509.GeneralName] | None = None
) -> tuple[x509.ExtensionType, bool]:
    return x509.NameConstraints(permitted, excluded), True


def raw(oid: str, value: bytes, critical: bool = True) -> tuple[x509.ExtensionType, bool]:
    return x509.UnrecognizedExtension(ObjectIdentifier(oid), value), critical


def general_name(tag: int, content: bytes) -> bytes:
    return der.tlv(tag, content)


def subtree(tag: int, content: bytes) -> bytes:
    return der.sequence(der.tlv(tag, content))


def raw_constraint(*, permitted: bytes = b"", excluded: bytes = b"") -> tuple[x509.ExtensionType, bool]:
    sides = (der.tlv(der.context(0), permitted) if permitted else b"", der.tlv(der.context(1), excluded))
    return raw("2.5.29.30", der.sequence(sides[0], sides[1] if excluded else b""))


def verdict(
    constraints: tuple[x509.ExtensionType, bool],
    names: list[x509.GeneralName] | tuple[x509.ExtensionType, bool] | None,
    subject: x509.Name | str = "Leaf",
) -> PathVerdict:
    issuer = make("CA", ROOT, [CA, CERT_SIGN, constraints])
    extensions = list(LEAF)
    if isinstance(names, tuple):
        extensions.append(names)
    elif names:
        extensions.append((x509.SubjectAlternativeName(names), False))
    leaf = make(subject, issuer, extensions)
    return VALIDATOR.validate(leaf.certificate, [issuer.certificate], Purpose.MAIL_SIGNATURE, NOW)


def mail(text: str) -> x509.RFC822Name:
    return x509.RFC822Name(text)


def unchecked(text: str) -> x509.DNSName:
    return x509.DNSName._init_without_validation(text)


@pytest.mark.parametrize(
    ("limit", "address", "inside"),
    [
        ("chu.example", "a@chu.example", True),
        ("chu.example", "a@CHU.example", True),
        ("chu.example", "a@mail.chu.example", False),
        ("chu.example", "a@xchu.example", False),
        (".chu.example", "a@mail.chu.example", True),
        (".chu.example", "a@deep.mail.chu.example", True),
        (".chu.example", "a@chu.example", False),
        ("a@chu.example", "a@chu.example", True),
        ("a@chu.example", "A@chu.example", False),
        ("a@chu.example", "b@chu.example", False),
        ("a@chu.example", "a@CHU.EXAMPLE", True),
    ],
)
def test_mail(limit: str, address: str, inside: bool) -> None:
    base = x509.RFC822Name._init_without_validation(limit)
    permitted = verdict(constraint([base]), [mail(address)])
    excluded = verdict(constraint(None, [base]), [mail(address)])
    assert (permitted.ok, excluded.ok) == (inside, not inside)
    assert {permitted.rule, excluded.rule} == {"rfc5280-6.1", BROKEN}


def test_mail_in_the_subject_is_constrained_too() -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@other.example")])
    assert verdict(constraint([mail("a@chu.example")]), None, subject).rule == BROKEN
    assert verdict(constraint([mail("a@chu.example")]), [mail("a@chu.example")], subject).rule == BROKEN
    assert verdict(constraint([mail("a@other.example")]), None, subject).ok


def utf8_mailbox(text: str) -> x509.OtherName:
    return x509.OtherName(SMTP_UTF8, der.tlv(0x0C, text.encode()))


@pytest.mark.parametrize(
    ("limit", "address", "inside"),
    [
        ("chu.example", "élodie@chu.example", True),
        ("chu.example", "élodie@other.example", False),
        (".example", "élodie@chu.example", True),
        ("a@chu.example", "élodie@chu.example", False),
        ("xn--hpital-ywa.example", "élodie@xn--hpital-ywa.example", True),
    ],
)
def test_smtp_utf8_mailbox_obeys_constraints_on_rfc822_names(limit: str, address: str, inside: bool) -> None:
    """RFC 9598 §6."""
    base = x509.RFC822Name._init_without_validation(limit)
    assert verdict(constraint([base]), [utf8_mailbox(address)]).ok is inside
    assert verdict(constraint(None, [base]), [utf8_mailbox(address)]).ok is not inside


def test_smtp_utf8_mailbox_that_cannot_be_read_is_refused_under_constraints() -> None:
    for value in (der.tlv(0x0C, b"ascii@chu.example"), der.tlv(0x16, b"a@chu.example"), der.tlv(0x0C, b"\xff@a.b")):
        assert verdict(constraint([mail("x@chu.example")]), [x509.OtherName(SMTP_UTF8, value)]).rule == BROKEN


@pytest.mark.parametrize(
    ("limit", "host", "inside"),
    [
        ("chu.example", "chu.example", True),
        ("chu.example", "mail.CHU.example", True),
        ("chu.example", "xchu.example", False),
        ("chu.example", "example", False),
        ("", "anything.example", True),
        ("chu.example", "*.chu.example", True),
    ],
)
def test_hosts(limit: str, host: str, inside: bool) -> None:
    base = unchecked(limit)
    assert verdict(constraint([base]), [x509.DNSName(host)]).ok is inside
    assert verdict(constraint(None, [base]), [x509.DNSName(host)]).ok is not inside


def test_wildcard_that_covers_an_excluded_host() -> None:
    assert (
        verdict(constraint(None, [x509.DNSName("secret.chu.example")]), [x509.DNSName("*.chu.example")]).rule == BROKEN
    )
    assert verdict(constraint(None, [x509.DNSName("secret.chu.example")]), [x509.DNSName("*.ghu.example")]).ok


@pytest.mark.parametrize(
    "host", [".chu.example", "chu..example", "a b.chu.example", "chu.example.", "é.chu.example", ""]
)
def test_host_that_is_none_is_refused_under_constraints(host: str) -> None:
    names = raw("2.5.29.17", der.sequence(der.tlv(0x82, host.encode())), False)
    assert verdict(constraint([x509.DNSName("chu.example")]), names).rule == BROKEN


def test_directory_names() -> None:
    base = x509.DirectoryName(dn("FR", "CHU"))
    assert verdict(constraint([base]), None, dn("FR", "CHU", "Service")).ok
    assert verdict(constraint([base]), None, dn("FR", " chu ", "Service")).ok, "spelling aside"
    assert verdict(constraint([base]), None, dn("FR", "GHU")).rule == BROKEN
    assert verdict(constraint([base]), None, dn("FR")).rule == BROKEN
    assert verdict(constraint(None, [base]), None, dn("FR", "chu", "Service")).rule == BROKEN
    elsewhere = x509.DirectoryName(dn("FR", "GHU"))
    assert verdict(constraint([base]), [elsewhere], dn("FR", "CHU")).rule == BROKEN, "alternative names too"


def test_uris_and_addresses() -> None:
    def uri(text: str) -> x509.UniformResourceIdentifier:
        return x509.UniformResourceIdentifier._init_without_validation(text)

    inside = constraint([uri(".chu.example")])
    assert verdict(inside, [uri("https://user@www.chu.example:8443/x?y#z")]).ok
    for text in ("https://chu.example/", "urn:x:y", "https://10.0.0.1/", "https://chu.example@evil.example/", "/x"):
        assert verdict(inside, [uri(text)]).rule == BROKEN, text
    network = constraint([x509.IPAddress(ipaddress.ip_network("10.1.0.0/16"))])
    assert verdict(network, [x509.IPAddress(ipaddress.ip_address("10.1.2.3"))]).ok
    assert verdict(network, [x509.IPAddress(ipaddress.ip_address("10.2.2.3"))]).rule == BROKEN
    assert verdict(network, [x509.IPAddress(ipaddress.ip_address("2001:db8::1"))]).rule == BROKEN


def test_form_that_cannot_be_compared_refuses_names_of_that_form_only() -> None:
    """§4.2.1.10: process the constraint or reject the certificate."""
    other = der.tlv(der.context(0), der.oid("1.2.3.4"), der.tlv(der.context(0), der.tlv(0x0C, b"x")))
    strange = raw_constraint(excluded=der.sequence(other))
    assert verdict(strange, [mail("a@chu.example")]).ok
    assert verdict(strange, [x509.OtherName(ObjectIdentifier("1.2.3.5"), b"\x0c\x01x")]).ok
    assert verdict(strange, [x509.OtherName(ObjectIdentifier("1.2.3.4"), b"\x0c\x01y")]).rule == BROKEN
    registered = raw_constraint(permitted=subtree(0x88, b"\x2a\x03"))
    assert verdict(registered, [mail("a@chu.example")]).ok
    assert verdict(registered, [x509.RegisteredID(ObjectIdentifier("1.2.3"))]).rule == BROKEN


@pytest.mark.parametrize(
    "constraints",
    [
        raw("2.5.29.30", der.sequence()),
        raw("2.5.29.30", b"\x30\x05"),
        raw_constraint(permitted=subtree(0x82, b"*.chu.example")),
        raw_constraint(permitted=subtree(0x82, b".chu.example")),
        raw_constraint(permitted=subtree(0x81, b"a@b@chu.example")),
        raw_constraint(permitted=subtree(0x81, "é.example".encode())),
        raw_constraint(permitted=subtree(0x87, b"\x0a\x01\x00\x00")),
        raw_constraint(permitted=subtree(0x87, b"\x0a\x01\x00\x00\xff\x00\xff\x00")),
        raw_constraint(permitted=der.sequence(der.tlv(0x82, b"chu.example"), der.tlv(0x80, b"\x01"))),
        raw_constraint(permitted=der.sequence(der.tlv(0x82, b"chu.example"), der.tlv(0x81, b"\x05"))),
    ],
)
def test_malformed_constraints_make_no_ca(constraints: tuple[x509.ExtensionType, bool]) -> None:
    assert not verdict(constraints, None).ok
    root = make("Root", None, [CA, CERT_SIGN, constraints])
    with pytest.raises(ValueError, match="unreadable"):
        CertificateValidator([root.certificate])


def test_not_critical_is_no_excuse() -> None:
    constraints = (x509.NameConstraints([mail("a@chu.example")], None), False)
    assert verdict(constraints, [mail("b@chu.example")]).rule == BROKEN


def test_end_entity_with_constraints() -> None:
    leaf = make("Leaf", ROOT, [*LEAF, constraint([mail("a@chu.example")])])
    assert VALIDATOR.validate(leaf.certificate, [], Purpose.MAIL_SIGNATURE, NOW).rule == MALFORMED


def test_what_every_ca_above_permits() -> None:
    wide = make("Wide", ROOT, [CA, CERT_SIGN, constraint([unchecked("chu.example"), unchecked("ghu.example")])])
    narrow = make("Narrow", wide, [CA, CERT_SIGN, constraint([unchecked("chu.example"), unchecked("xhu.example")])])
    for host, inside in (("chu.example", True), ("ghu.example", False), ("xhu.example", False)):
        leaf = make("Leaf", narrow, [*LEAF, (x509.SubjectAlternativeName([x509.DNSName(host)]), False)])
        offered = [wide.certificate, narrow.certificate]
        assert VALIDATOR.validate(leaf.certificate, offered, Purpose.MAIL_SIGNATURE, NOW).ok is inside


def test_cas_are_constrained_themselves_unless_self_issued() -> None:
    base = constraint([x509.DirectoryName(dn("FR", "CHU"))])
    top = make(dn("FR", "AC"), ROOT, [CA, CERT_SIGN, base])
    outside = make(dn("FR", "GHU", "CA"), top, [CA, CERT_SIGN])
    inside = make(dn("FR", "CHU", "CA"), outside, [CA, CERT_SIGN])
    leaf = make(dn("FR", "CHU", "Leaf"), inside, LEAF)
    offered = [node.certificate for node in (top, outside, inside)]
    refused = VALIDATOR.validate(leaf.certificate, offered, Purpose.MAIL_SIGNATURE, NOW)
    assert refused.rule == BROKEN
    assert "OU=CA,O=GHU" in refused.detail
    rollover = make(dn("FR", "AC"), top, [CA, CERT_SIGN])
    leaf = make(dn("FR", "CHU", "Leaf"), rollover, LEAF)
    assert VALIDATOR.validate(
        leaf.certificate, [top.certificate, rollover.certificate], Purpose.MAIL_SIGNATURE, NOW
    ).ok, "self-issued: its own name is that of the one above"


def test_anchor_constraints() -> None:
    """RFC 5937: an anchor's own constraints are where validation begins."""
    root = make("Root", None, [CA, CERT_SIGN, constraint([mail("a@chu.example")])])
    trusting = CertificateValidator([root.certificate])
    for address, inside in (("a@chu.example", True), ("b@chu.example", False)):
        leaf = make("Leaf", root, [*LEAF, (x509.SubjectAlternativeName([mail(address)]), False)])
        assert trusting.validate(leaf.certificate, [], Purpose.MAIL_SIGNATURE, NOW).ok is inside


def _spent(leaf: Node, issuer: Node) -> tuple[PathVerdict, float]:
    started = time.thread_time()
    found = VALIDATOR.validate(leaf.certificate, [issuer.certificate], Purpose.MAIL_SIGNATURE, NOW)
    return found, (time.thread_time() - started) * 1000


def test_pitfall_d23_name_constraints_blow_up() -> None:
    """limbo nc-dos-1 to 3: thousands of permitted and excluded names over thousands of names; refused, and quickly."""
    many = 2049
    hosts = [unchecked(f"{n}.example") for n in range(many)]
    names = [x509.DNSName(f"{n}.example") for n in range(many)]
    directories = [x509.DirectoryName(dn("FR", f"O{n}")) for n in range(many)]
    cases = [
        (constraint(hosts, [unchecked(f"x{n}.example") for n in range(many)]), names, "Leaf"),
        (constraint(None, hosts), [*names, x509.DNSName("unrelated.example")], "Leaf"),
        (
            constraint(directories),
            directories,
            x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "O") for _ in range(many)]),
        ),
    ]
    for constraints, alternative, subject in cases:
        issuer = make("CA", ROOT, [CA, CERT_SIGN, constraints])
        leaf = make(subject, issuer, [*LEAF, (x509.SubjectAlternativeName(alternative), False)])
        found, spent = _spent(leaf, issuer)
        assert not found.ok
        assert found.rule == "relais-name-constraints-budget"
        assert spent < 1500  # milliseconds of processor time; without the budget it is minutes


def test_many_constraints_over_a_few_names_are_fine() -> None:
    issuer = make("CA", ROOT, [CA, CERT_SIGN, constraint([unchecked(f"{n}.example") for n in range(2000)])])
    names = [x509.DNSName(f"a.{n}.example") for n in range(50)]
    leaf = make("Leaf", issuer, [*LEAF, (x509.SubjectAlternativeName(names), False)])
    assert _spent(leaf, issuer)[0].ok
