"""The trust list: read when it is exactly what its signer signed, refused with its reason in every other case."""

from __future__ import annotations

import base64
import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from lxml import etree

from trust import pki_catalogue, trustlist
from trust.certificates import CertificateValidator
from trust.issuing import DemonstrationAuthority, Issued
from trust.names import DistinguishedName
from trust.refusals import Refusal, Refused
from trust.trustlist import NAMESPACE, ListedDomain, TrustList, write_trust_list

NOW = datetime.now(UTC).replace(microsecond=0)
DS = "{http://www.w3.org/2000/09/xmldsig#}"
LB = f"{{{NAMESPACE}}}"
FIRST = "CN=smtp-1.op.example,OU=1750000001,O=OPÉRATEUR UN,ST=Paris (75),C=FR"
SECOND = 'CN=smtp-2.op.example,OU=1750000001,O="OPÉRATEUR  "UN"",ST=Paris (75),C=FR'


@dataclass(frozen=True)
class Authority:
    authority: DemonstrationAuthority
    signer: Issued
    validator: CertificateValidator

    def sign(self, *domains: ListedDomain, at: datetime = NOW) -> bytes:
        signer = self.signer
        return write_trust_list(domains, at, signer.key, signer.certificate, signer.chain)

    def load(self, xml: bytes, **options: object) -> TrustList | Refused:
        return TrustList.load(xml, self.validator, options.pop("at", NOW), **options)


@pytest.fixture(scope="module")
def authority() -> Iterator[Authority]:
    made = DemonstrationAuthority.create("Démonstration")
    yield Authority(made, made.issue_list_signer(), CertificateValidator([made.root]))


@pytest.fixture(scope="module")
def good(authority: Authority) -> bytes:
    return authority.sign(
        ListedDomain("Hopital.MSSante.example", FIRST, "Hôpital & fils <démonstration>"),
        ListedDomain("hopital.mssante.example", SECOND, ""),
        ListedDomain("labo.mssante.example", DistinguishedName.parse(FIRST), "Laboratoire"),
    )


def refused(outcome: TrustList | Refused, refusal: Refusal) -> str:
    assert isinstance(outcome, Refused), "accepted"
    assert outcome.refusal is refusal, outcome
    return outcome.detail


def test_rows_of_one_domain_are_a_set(authority: Authority, good: bytes) -> None:
    loaded = authority.load(good)
    assert isinstance(loaded, TrustList), loaded
    first, second = DistinguishedName.parse(FIRST), DistinguishedName.parse(SECOND)
    assert loaded.generated_at == NOW
    assert loaded.operators_of("HOPITAL.mssante.example") == {first, second}
    assert loaded.operators_of("labo.mssante.example.") == {first}
    assert loaded.domains_of(first) == {"hopital.mssante.example", "labo.mssante.example"}
    assert loaded.is_operator(second)
    assert loaded.is_trusted("labo.mssante.example")
    assert loaded.unreadable == ()


def test_match_is_exact(authority: Authority, good: bytes) -> None:
    loaded = authority.load(good)
    assert isinstance(loaded, TrustList)
    for domain in (
        *("mssante.example", "x.labo.mssante.example", "labo.mssante.example.evil.example", "", ".", "labo"),
        *("labo.mssante.example\x00", "labo.mssante.example\n.x", "a" * 300, "é" * 80 + ".example"),
    ):
        assert not loaded.is_trusted(domain)
        assert loaded.operators_of(domain) == frozenset()
    assert not loaded.is_operator(DistinguishedName.parse("CN=smtp-1.op.example,C=FR"))


def test_idna(authority: Authority) -> None:
    loaded = authority.load(authority.sign(ListedDomain("Hôpital.example", FIRST, "")))
    assert isinstance(loaded, TrustList)
    assert loaded.is_trusted("hôpital.example")
    assert loaded.is_trusted("xn--hpital-ixa.EXAMPLE")
    assert loaded.is_trusted("HO\u0302PITAL.example")


@pytest.mark.parametrize(
    "domain",
    [
        *(" labo.mssante.example", "labo.mssante.example ", "labo.mssante.example\n", "labo.mssante.example\u00a0"),
        *("labo..mssante.example", "labo.mssante.example..", ".labo.mssante.example", "labo@mssante.example"),
        *("labo.mssante.example\u200b", "l\u00adabo.mssante.example", "labo\u3002mssante\uff0eexample"),
        *("\uff4cabo.mssante.example", "é" * 1_000_000, "a." * 500_000 + "b"),
    ],
)
def test_what_is_asked_about_is_not_tidied_up(authority: Authority, good: bytes, domain: str) -> None:
    loaded = authority.load(good)
    assert isinstance(loaded, TrustList)
    assert loaded.is_trusted("labo.mssante.example")
    assert loaded.operators_of(domain) == frozenset()


@pytest.mark.parametrize("domain", ["straße.example", "ές.example", "a\u200cb.example", "a\u200db.example"])
def test_domains_that_two_versions_of_idna_read_differently(authority: Authority, domain: str) -> None:
    """`straße` is `strasse` to the old one: nobody is let speak for somebody else's domain."""
    loaded = authority.load(authority.sign(ListedDomain(domain, FIRST, "")))
    assert isinstance(loaded, TrustList)
    assert loaded.domains == frozenset()
    assert loaded.unreadable == (domain,)
    loaded = authority.load(authority.sign(ListedDomain("strasse.example", FIRST, "")))
    assert isinstance(loaded, TrustList)
    assert loaded.is_trusted("strasse.example")
    assert not loaded.is_trusted("straße.example")


_CN, _OU, _O = NameOID.COMMON_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.ORGANIZATION_NAME
_ST, _L, _C = NameOID.STATE_OR_PROVINCE_NAME, NameOID.LOCALITY_NAME, NameOID.COUNTRY_NAME


@pytest.mark.parametrize(
    ("written", "certificate"),
    [
        # what is in the national list: departments, letters with accents, both kinds of structure
        (
            "CN=smtp-1.mssante.fr,OU=1340000001,O=CHU DÉMO,ST=Hérault (34),C=FR",
            ((_CN, "smtp-1.mssante.fr"), (_OU, "1340000001"), (_O, "CHU DÉMO"), (_ST, "Hérault (34)"), (_C, "FR")),
        ),
        (
            "CN=mss.demo.fr,OU=312345678900011,O=ÉDITEUR ÇÀ ET LÀ,ST=Côte-d'Or (21),C=FR",
            (
                (_CN, "mss.demo.fr"),
                (_OU, "312345678900011"),
                (_O, "ÉDITEUR ÇÀ ET LÀ"),
                (_ST, "Côte-d'Or (21)"),
                (_C, "FR"),
            ),
        ),
        # Corsican and test structures have letters
        ("CN=a,OU=12A0000001,O=X,C=FR", ((_CN, "a"), (_OU, "12a0000001"), (_O, "X"), (_C, "FR"))),
        ("CN=a,OU=10B0221636,O=X,C=FR", ((_CN, "a"), (_OU, "10B0221636"), (_O, "X"), (_C, "FR"))),
        # double spaces and no-break spaces, quoted
        ('CN=a,O="C H U  DE  DÉMO",C=FR', ((_CN, "a"), (_O, "C H U  DE  DÉMO"), (_C, "FR"))),
        ('CN=a,O="CHU\u00a0DE DÉMO",C=FR', ((_CN, "a"), (_O, "CHU\u00a0DE DÉMO"), (_C, "FR"))),
        # quotes inside, not escaped
        (
            'CN=a,OU=1,O=CRLCC "PAUL DÉMO",ST=X (67),C=FR',
            ((_CN, "a"), (_OU, "1"), (_O, 'CRLCC "PAUL DÉMO"'), (_ST, "X (67)"), (_C, "FR")),
        ),
        ('CN=a,O=""DÉMO" SANTÉ",C=FR', ((_CN, "a"), (_O, '"DÉMO" SANTÉ'), (_C, "FR"))),
        # spaces after separators, L for ST, an ampersand, an apostrophe, a slash, a plus, an equals sign
        ("CN=a, OU=1, O=X, ST=Nord (59), C=FR", ((_CN, "a"), (_OU, "1"), (_O, "X"), (_ST, "Nord (59)"), (_C, "FR"))),
        ("CN=cert.example,O=X,L=Paris (75),C=FR", ((_CN, "cert.example"), (_O, "X"), (_L, "Paris (75)"), (_C, "FR"))),
        ("CN=a,O=DUPONT & FILS <SA>,C=FR", ((_CN, "a"), (_O, "DUPONT & FILS <SA>"), (_C, "FR"))),
        ("CN=a,O=S+ SANTÉ/NORD,C=FR", ((_CN, "a"), (_O, "S+ SANTÉ/NORD"), (_C, "FR"))),
        ("CN=a,O=A\\+B\\=C,C=FR", ((_CN, "a"), (_O, "A+B=C"), (_C, "FR"))),
        # order and long names
        ("C=FR,ST=Nord (59),O=X,OU=1,CN=a", ((_CN, "a"), (_OU, "1"), (_O, "X"), (_ST, "Nord (59)"), (_C, "FR"))),
        ("commonName=a,2.5.4.10=X,countryName=FR", ((_CN, "a"), (_O, "X"), (_C, "FR"))),
    ],
)
def test_dirty_names_of_the_national_list_are_those_of_the_certificates(
    authority: Authority, written: str, certificate: tuple[tuple[x509.ObjectIdentifier, str], ...]
) -> None:
    """Through the signed XML and back, as `&amp;`, `&lt;` and UTF-8."""
    presented = DistinguishedName.from_x509(
        x509.Name([x509.NameAttribute(oid, value) for oid, value in reversed(certificate)])
    )
    loaded = authority.load(authority.sign(ListedDomain(" Démo.mssante.fr\n", f"\n  {written} \u00a0", "")))
    assert isinstance(loaded, TrustList)
    assert loaded.operators_of("xn--dmo-bma.mssante.fr") == {presented}
    assert loaded.unreadable == ()
    for index, (oid, value) in enumerate(certificate):
        other = [*certificate]
        other[index] = (oid, value + "x") if oid != _C else (oid, "BE")
        stranger = x509.Name([x509.NameAttribute(oid, value) for oid, value in reversed(other)])
        assert DistinguishedName.from_x509(stranger) not in loaded.operators_of("xn--dmo-bma.mssante.fr")
    shorter = x509.Name([x509.NameAttribute(oid, value) for oid, value in reversed(certificate[1:])])
    assert not loaded.is_operator(DistinguishedName.from_x509(shorter))


def test_operator_certificate_is_the_listed_name(authority: Authority) -> None:
    operator = authority.authority.issue_operator("mss.op.example", 'CLINIQUE "DÉMO", SA', "1750000001", ["127.0.0.1"])
    name = DistinguishedName.from_x509(operator.certificate.subject)
    loaded = authority.load(authority.sign(ListedDomain("d.example", name, "")))
    assert isinstance(loaded, TrustList)
    assert loaded.operators_of("d.example") == {name}


def test_unreadable_rows_count_for_nothing_and_are_told(authority: Authority) -> None:
    loaded = authority.load(
        authority.sign(
            ListedDomain("good.example", FIRST, ""),
            ListedDomain("bad.example", "not a name", ""),
            ListedDomain("half.example", "", ""),
            ListedDomain("half.example", FIRST, ""),
            ListedDomain("*.wild.example", FIRST, ""),
        )
    )
    assert isinstance(loaded, TrustList)
    assert loaded.unreadable == ("bad.example", "half.example", "*.wild.example")
    assert not loaded.is_trusted("bad.example")
    assert loaded.is_trusted("half.example")
    assert not loaded.is_trusted("x.wild.example")


def test_tampered(authority: Authority, good: bytes) -> None:
    for altered in (
        good.replace(b"labo.mssante", b"evil.mssante"),
        good.replace(b"1750000001", b"1750000002", 1),
        good.replace(b"<ListeDomaines>", b"<ListeDomaines> ", 1),
        good.replace(NAMESPACE.encode(), b"https://listeblanche.mssante.fr/other"),
    ):
        assert altered != good
        refused(authority.load(altered), pki_catalogue.LIST_ALTERED)


def test_signature_value_tampered(authority: Authority, good: bytes) -> None:
    for path, content in (
        ("SignatureValue", base64.b64encode(bytes(384)).decode()),
        ("SignatureValue", ""),
        ("SignedInfo/{0}Reference/{0}DigestValue", base64.b64encode(bytes(32)).decode()),
        ("SignedInfo/{0}Reference/{0}DigestValue", "?"),
    ):
        root = etree.fromstring(good)
        root.find(f"{DS}Signature/{DS}{path.format(DS)}").text = content
        refused(authority.load(etree.tostring(root)), pki_catalogue.LIST_ALTERED)


@pytest.mark.parametrize(
    ("element", "algorithm"),
    [
        ("SignatureMethod", "http://www.w3.org/2000/09/xmldsig#hmac-sha1"),
        ("SignatureMethod", "http://www.w3.org/2000/09/xmldsig#rsa-sha1"),
        ("SignatureMethod", "http://www.w3.org/2001/04/xmldsig-more#hmac-sha256"),
        ("DigestMethod", "http://www.w3.org/2000/09/xmldsig#sha1"),
        ("CanonicalizationMethod", "urn:none"),
    ],
)
def test_other_algorithms(authority: Authority, good: bytes, element: str, algorithm: str) -> None:
    root = etree.fromstring(good)
    next(root.iter(f"{DS}{element}")).set("Algorithm", algorithm)
    refused(authority.load(etree.tostring(root)), pki_catalogue.LIST_ALTERED)


def test_other_transforms_and_references(authority: Authority, good: bytes) -> None:
    root = etree.fromstring(good)
    transform = next(root.iter(f"{DS}Transform"))
    transform.set("Algorithm", "http://www.w3.org/TR/1999/REC-xpath-19991116")
    refused(authority.load(etree.tostring(root)), pki_catalogue.LIST_UNSIGNED)
    root = etree.fromstring(good)
    next(root.iter(f"{DS}Reference")).set("URI", "#part")
    refused(authority.load(etree.tostring(root)), pki_catalogue.LIST_UNSIGNED)


def test_wrong_signers(authority: Authority, good: bytes) -> None:
    made = authority.authority
    stranger = DemonstrationAuthority.create("Démonstration").issue_list_signer()
    outsider = write_trust_list([], NOW, stranger.key, stranger.certificate, stranger.chain)
    assert "no-path" in refused(authority.load(outsider), pki_catalogue.LIST_SIGNER)
    operator = made.issue_operator("op.example", "Op", "1750000001", ["op.example"], key_kind="rsa3072")
    by_operator = write_trust_list([], NOW, operator.key, operator.certificate, operator.chain)
    assert "key-usage" in refused(authority.load(by_operator), pki_catalogue.LIST_SIGNER)
    swapped = write_trust_list(
        [], NOW, stranger.key, authority.signer.certificate, authority.signer.chain
    )  # our signer's certificate over a stranger's signature
    refused(authority.load(swapped), pki_catalogue.LIST_ALTERED)


def test_signer_may_be_pinned(authority: Authority, good: bytes) -> None:
    """A mailbox certificate chains to the same anchors as the list's signer: the name tells them apart."""
    mailbox = authority.authority.issue_mailbox("a@b.example", "A", "signing")
    forged = write_trust_list([], NOW, mailbox.key, mailbox.certificate, mailbox.chain)
    signer = DistinguishedName.from_x509(authority.signer.certificate.subject)
    assert isinstance(authority.load(forged), TrustList)
    assert "expected signer" in refused(authority.load(forged, signer=signer), pki_catalogue.LIST_SIGNER)
    assert isinstance(authority.load(good, signer=signer), TrustList)


def test_expired_signer(authority: Authority, good: bytes) -> None:
    later = authority.signer.certificate.not_valid_after_utc + timedelta(seconds=1)
    assert "validity" in refused(authority.load(good, at=later), pki_catalogue.LIST_SIGNER)


def test_unsigned_and_twice_signed(authority: Authority, good: bytes) -> None:
    root = etree.fromstring(good)
    signature = root.find(f"{DS}Signature")
    root.append(copy.deepcopy(signature))
    refused(authority.load(etree.tostring(root)), pki_catalogue.LIST_UNSIGNED)
    for found in root.findall(f"{DS}Signature"):
        root.remove(found)
    refused(authority.load(etree.tostring(root)), pki_catalogue.LIST_UNSIGNED)
    empty = etree.fromstring(good)
    empty.find(f"{DS}Signature").clear()
    refused(authority.load(etree.tostring(empty)), pki_catalogue.LIST_UNSIGNED)


def test_no_or_broken_certificate_in_key_info(authority: Authority, good: bytes) -> None:
    root = etree.fromstring(good)
    for element in list(root.iter(f"{DS}X509Certificate")):
        element.text = "AAAA"
    refused(authority.load(etree.tostring(root)), pki_catalogue.LIST_SIGNER)
    key_info = next(root.iter(f"{DS}KeyInfo"))
    key_info.getparent().remove(key_info)
    refused(authority.load(etree.tostring(root)), pki_catalogue.LIST_SIGNER)


@pytest.mark.parametrize(
    ("right", "odd"),
    [
        (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x04"),  # version 5
        (b"\x06\x03\x55\x04\x06", b"\x06\x03\x55\x84\x06"),
        (b"\x30\x82", b"\x30\x80"),
    ],
)
def test_odd_certificates_in_key_info_are_refused_not_raised(
    authority: Authority, good: bytes, right: bytes, odd: bytes
) -> None:
    root = etree.fromstring(good)
    element = next(root.iter(f"{DS}X509Certificate"))
    encoded = base64.b64decode(element.text or "")
    assert right in encoded
    element.text = base64.b64encode(encoded.replace(right, odd, 1)).decode()
    assert isinstance(TrustList.load(etree.tostring(root), authority.validator, NOW), Refused)


def test_wrapped_signature(authority: Authority, good: bytes) -> None:
    """The signed list carried inside another root, beside forged rows: signature wrapping in its usual shapes."""
    forged = etree.fromstring(good.replace(b"labo.mssante", b"evil.mssante"))
    forged.remove(forged.find(f"{DS}Signature"))
    original = etree.fromstring(good)

    inside = copy.deepcopy(forged)
    inside.append(copy.deepcopy(original))
    refused(authority.load(etree.tostring(inside)), pki_catalogue.LIST_UNSIGNED)

    beside = copy.deepcopy(forged)
    signature = copy.deepcopy(original.find(f"{DS}Signature"))
    carrier = etree.SubElement(signature, f"{DS}Object")
    unsigned_original = copy.deepcopy(original)
    unsigned_original.remove(unsigned_original.find(f"{DS}Signature"))
    carrier.append(unsigned_original)
    beside.append(signature)
    refused(authority.load(etree.tostring(beside)), pki_catalogue.LIST_ALTERED)

    hidden = copy.deepcopy(original)  # rows inside the signature element are removed with it before hashing
    rows = copy.deepcopy(forged.find(f"{LB}ListeDomaines"))
    etree.SubElement(hidden.find(f"{DS}Signature"), f"{DS}Object").append(rows)
    loaded = authority.load(etree.tostring(hidden))
    assert isinstance(loaded, Refused) or not loaded.is_trusted("evil.mssante.example")


def test_comments_do_not_split_values(authority: Authority, good: bytes) -> None:
    """Exclusive C14N leaves comments out of the hash: they must not change what is read either."""
    commented = good.replace(b"labo.mssante.example", b"labo.mssante<!-- x -->.example")
    loaded = authority.load(commented)
    assert isinstance(loaded, TrustList)
    assert loaded.is_trusted("labo.mssante.example")
    assert not loaded.is_trusted("labo.mssante")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32", "utf-7"])
def test_doctype(authority: Authority, good: bytes, encoding: str) -> None:
    body = good.decode().split("?>", 1)[1]
    text = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE l [<!ENTITY e SYSTEM "file:///etc/passwd">]>{body}'
    refused(authority.load(text.encode(encoding)), pki_catalogue.LIST_UNREADABLE)


@pytest.mark.parametrize("xml", [b"", b"garbage", b"<a>", b"\x00" * 100, b"<a " * 1000, b"<a>" * 5000])
def test_not_xml(authority: Authority, xml: bytes) -> None:
    refused(authority.load(xml), pki_catalogue.LIST_UNREADABLE)


def test_size_limits(authority: Authority, good: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trustlist, "MAX_ROWS", 2)
    refused(authority.load(good), pki_catalogue.LIST_UNREADABLE)
    monkeypatch.setattr(trustlist, "MAX_BYTES", len(good) - 1)
    assert "larger" in refused(authority.load(good), pki_catalogue.LIST_UNREADABLE)


def test_ten_thousand_rows(authority: Authority) -> None:
    rows = [
        ListedDomain(f"d{number}.mssante.example", f"CN=smtp-{number % 391},OU=1,O=É {number % 391},C=FR", "x" * 200)
        for number in range(10_000)
    ]
    xml = authority.sign(*rows)
    begun = time.process_time()
    loaded = authority.load(xml)
    assert time.process_time() - begun < 5, "a third of a second where nothing else runs"
    assert isinstance(loaded, TrustList)
    assert (loaded.rows, len(loaded.domains), len(loaded.operators)) == (10_000, 10_000, 391)
    begun = time.process_time()
    assert all(loaded.is_trusted("d9999.mssante.example") for _ in range(1000))
    assert time.process_time() - begun < 0.1


def test_rollback(authority: Authority) -> None:
    row = ListedDomain("d.example", FIRST, "")
    older = authority.sign(row, at=NOW - timedelta(days=1))
    refused(authority.load(older, not_before=NOW), pki_catalogue.LIST_OLD)
    assert isinstance(authority.load(older, not_before=NOW - timedelta(days=1)), TrustList)
    assert isinstance(authority.load(older), TrustList)


def test_list_from_the_future(authority: Authority) -> None:
    refused(authority.load(authority.sign(at=NOW + timedelta(days=400))), pki_catalogue.LIST_FROM_FUTURE)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2025-02-28T15:42:07Z", "2025-02-28T15:42:07+00:00"),
        ("2025-02-28T15:42:07+01:00", "2025-02-28T14:42:07+00:00"),
        ("2025-02-28T15:42:07.123456789Z", "2025-02-28T15:42:07.123456+00:00"),
        ("  2025-02-28T23:59:59-02:00 ", "2025-03-01T01:59:59+00:00"),
        *((text, "") for text in ("", "2025-02-28", "2025-02-28T15:42:07", "28/02/2025", "2025-02-30T00:00:00Z")),
        *(
            (text, "")
            for text in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2025-02-28T15:42:07+99:00")
        ),
    ],
)
def test_dates(authority: Authority, monkeypatch: pytest.MonkeyPatch, written: str, read: str) -> None:
    class Moment(datetime):
        def astimezone(self, tz: object = None) -> Moment:
            return self

        def strftime(self, format: str) -> str:
            return written

    loaded = authority.load(authority.sign(ListedDomain("d.example", FIRST, ""), at=Moment(2025, 1, 1, tzinfo=UTC)))
    if read:
        assert isinstance(loaded, TrustList), loaded
        assert loaded.generated_at.isoformat() == read
    else:
        assert isinstance(loaded, Refused)


def test_the_signers_certificate_is_found_wherever_it_stands(authority: Authority, good: bytes) -> None:
    """XML-DSig gives X509Data no order."""
    root = etree.fromstring(good)
    data = next(root.iter(f"{DS}X509Data"))
    assert len(data) > 1
    data[:] = list(reversed(data))
    signer = DistinguishedName.from_x509(authority.signer.certificate.subject)
    loaded = authority.load(etree.tostring(root), signer=signer)
    assert isinstance(loaded, TrustList), loaded
    assert loaded.signer == authority.signer.certificate


def test_byte_order_mark(authority: Authority, good: bytes) -> None:
    assert isinstance(authority.load(b"\xef\xbb\xbf" + good), TrustList)
    refused(authority.load(good.decode().replace("UTF-8", "UTF-16").encode("utf-16")), pki_catalogue.LIST_UNREADABLE)


def test_another_document_by_the_same_signer(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trustlist, "_LB", "{urn:other}")
    other = authority.sign()
    monkeypatch.undo()
    refused(authority.load(other), pki_catalogue.LIST_UNREADABLE)


def test_carriage_returns_of_java(authority: Authority, good: bytes) -> None:
    """The official list has `&#13;` at line ends inside base64."""
    root = etree.fromstring(good)
    for tag in ("SignatureValue", "X509Certificate"):
        for element in root.iter(f"{DS}{tag}"):
            text = element.text.replace("\n", "")
            element.text = "".join(text[at : at + 76] + "\r\n" for at in range(0, len(text), 76))
    xml = etree.tostring(root)
    assert b"&#13;" in xml
    assert isinstance(authority.load(xml), TrustList)


def test_refusals_speak_both_languages() -> None:
    for refusal in pki_catalogue.CATALOGUE:
        assert refusal.text.isascii()
        assert refusal.text_fr
        assert not refusal.permanent


def test_signer_key_must_be_rsa(authority: Authority) -> None:
    server = authority.authority.issue_server(["localhost"])
    with pytest.raises(ValueError, match="RSA"):
        write_trust_list([], NOW, server.key, server.certificate, server.chain)
