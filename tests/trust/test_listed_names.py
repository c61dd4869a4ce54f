"""The dirty forms of the national list and of old certificates: one operator, however the name was written."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from trust import der
from trust.issuing import DemonstrationAuthority
from trust.listed_names import parse_listed, subject_of
from trust.names import DistinguishedName

_EMAIL = x509.ObjectIdentifier("1.2.840.113549.1.9.1")


def name(*rdns: tuple[tuple[x509.ObjectIdentifier, str], ...]) -> DistinguishedName:
    return DistinguishedName.from_x509(
        x509.Name(
            [x509.RelativeDistinguishedName([x509.NameAttribute(oid, value) for oid, value in rdn]) for rdn in rdns]
        )
    )


OPERATOR = name(
    ((NameOID.COUNTRY_NAME, "FR"),),
    ((NameOID.STATE_OR_PROVINCE_NAME, "Hérault (34)"),),
    ((NameOID.ORGANIZATION_NAME, "C H U  DE  DEMO/NORD, SUD"),),
    ((NameOID.ORGANIZATIONAL_UNIT_NAME, "1340000001"),),
    ((NameOID.COMMON_NAME, "mss.chu.example"),),
)


@pytest.mark.parametrize(
    "text",
    [
        # RFC 2253 quotes, RFC 4514 escapes, hexadecimal escapes, neither
        'CN=mss.chu.example,OU=1340000001,O="C H U  DE  DEMO/NORD, SUD",ST=Hérault (34),C=FR',
        "CN=mss.chu.example,OU=1340000001,O=C H U DE DEMO/NORD\\, SUD,ST=H\\C3\\A9rault (34),C=FR",
        "CN=mss.chu.example,OU=1340000001,O=C H U DE DEMO/NORD\\2C SUD,ST=Hérault (34),C=FR",
        "CN=mss.chu.example,OU=1340000001,O=C H U DE DEMO/NORD, SUD,ST=Hérault (34),C=FR",
        # spaces, no-break spaces, case, separators, certificate order
        " CN = mss.chu.example ,  OU = 1340000001, O = C H U DE DEMO/NORD\\, SUD , ST = Hérault (34), C = FR ",
        "cn=MSS.CHU.EXAMPLE;ou=1340000001;o=c h u\u00a0de demo/nord\\, sud;st=HÉRAULT (34);c=fr",
        "C=FR, ST=Hérault (34), O=C H U DE DEMO/NORD\\, SUD, OU=1340000001, CN=mss.chu.example",
        # OpenSSL's slash form, with bytes escaped or not, in either order
        "/C=FR/ST=Hérault (34)/O=C H U  DE  DEMO/NORD, SUD/OU=1340000001/CN=mss.chu.example",
        "/C=FR/ST=H\\xC3\\xA9rault (34)/O=C H U DE DEMO/NORD, SUD/OU=1340000001/CN=mss.chu.example",
        "/CN=mss.chu.example/OU=1340000001/O=C H U DE DEMO/NORD, SUD/ST=Hérault (34)/C=FR",
        "  /C=fr / ST=Hérault (34) / O=C H U DE DEMO/NORD, SUD / OU=1340000001 / CN=mss.chu.example ",
        # composed and decomposed letters, types by number and by long name
        "CN=mss.chu.example,OU=1340000001,O=C H U DE DEMO/NORD\\, SUD,ST=He\u0301rault (34),C=FR",
        "commonName=mss.chu.example,2.5.4.11=1340000001,OID.2.5.4.10=C H U DE DEMO/NORD\\, SUD,"
        "stateOrProvinceName=Hérault (34),countryName=FR",
        # DER in hexadecimal: UTF8String, BMPString, PrintableString, T61String
        "CN=#0c0f6d73732e6368752e6578616d706c65,OU=#130a31333430303030303031,O=C H U DE DEMO/NORD\\, SUD,"
        "ST=#140c48e97261756c7420283334 29,C=FR".replace(" 29", "29"),
    ],
)
def test_one_operator_in_many_spellings(text: str) -> None:
    assert parse_listed(text) == OPERATOR


@pytest.mark.parametrize(
    "text",
    [
        "CN=mss.chu.example,OU=1340000002,O=C H U DE DEMO/NORD\\, SUD,ST=Hérault (34),C=FR",
        "CN=mss.chu.example,OU=1340000001,O=C H U DE DEMO/NORD\\, SUD,L=Hérault (34),C=FR",
        "CN=mss.chu.example,OU=1340000001,O=C H U DE DEMO/NORD\\, SUD,C=FR",
        "CN=mss.chu.example+OU=1340000001,O=C H U DE DEMO/NORD\\, SUD,ST=Hérault (34),C=FR",
        "OU=1340000001,CN=mss.chu.example,O=C H U DE DEMO/NORD\\, SUD,ST=Hérault (34),C=FR",
        "CN=mss.chu.example,OU=1340000001,O=CHU DE DEMO/NORD\\, SUD,ST=Hérault (34),C=FR",
        "/C=FR/ST=Hérault (34)/O=C H U DE DEMO/OU=1340000001/CN=mss.chu.example",
    ],
)
def test_other_operators_stay_others(text: str) -> None:
    assert parse_listed(text) != OPERATOR


@pytest.mark.parametrize("kind", ["emailAddress", "E", "EMAIL", "1.2.840.113549.1.9.1", "OID.1.2.840.113549.1.9.1"])
def test_mail_address_in_a_name(kind: str) -> None:
    expected = name(
        ((NameOID.COUNTRY_NAME, "FR"),), ((NameOID.COMMON_NAME, "a.example"),), ((_EMAIL, "mss@a.example"),)
    )
    assert parse_listed(f"{kind}=mss@a.example,CN=a.example,C=FR") == expected
    assert parse_listed(f"/C=FR/CN=a.example/{kind}=mss@a.example") == expected


@pytest.mark.parametrize(
    "text", ["GN=Zoé+CN=899+SN=ESSAI,C=FR", "SN=ESSAI + CN=899 + GN=Zoé, C=FR", "/C=FR/CN=899+SN=ESSAI+GN=Zoé"]
)
def test_multi_valued_rdn_has_no_order(text: str) -> None:
    assert parse_listed(text) == name(
        ((NameOID.COUNTRY_NAME, "FR"),),
        ((NameOID.COMMON_NAME, "899"), (NameOID.SURNAME, "ESSAI"), (NameOID.GIVEN_NAME, "Zoé")),
    )


@pytest.mark.parametrize(
    "text", ["", "/", "//", "/x", "/=y", "/FOO=bar", "not a name", "/CN=a\\", "/C=FR/CN=\\xC3\\x28"]
)
def test_no_name(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_listed(text)


@pytest.mark.parametrize(
    ("tag", "encoded"),
    [
        (0x0C, "HÔPITAL".encode()),
        (0x14, "HÔPITAL".encode("latin-1")),
        (0x1E, "HÔPITAL".encode("utf-16-be")),
        (0x1C, "HÔPITAL".encode("utf-32-be")),
    ],
)
def test_string_types_of_certificates(tag: int, encoded: bytes) -> None:
    """The bytes are exchanged under the signature: only the name is read here."""
    authority = DemonstrationAuthority.create("D")
    issued = authority.issue_operator("op.example", "PLACEHOLDER", "1750000001", ["op.example"])
    certificate = issued.certificate.public_bytes(Encoding.DER)
    tbs, algorithm, signature = (bytes(each.encoded) for each in der.read(certificate).sequence())
    fields = [bytes(each.encoded) for each in der.read(tbs).sequence()]
    fields[5] = der.sequence(
        *(
            der.tlv(0x31, der.sequence(der.oid(oid), der.tlv(kind, value)))
            for oid, kind, value in (
                ("2.5.4.6", 0x13, b"FR"),
                ("2.5.4.10", tag, encoded),
                ("2.5.4.11", 0x0C, b"1750000001"),
                ("2.5.4.3", 0x0C, b"op.example"),
            )
        )
    )
    changed = x509.load_der_x509_certificate(der.sequence(der.sequence(*fields), algorithm, signature))
    assert subject_of(changed) == parse_listed("CN=op.example,OU=1750000001,O=Hôpital,C=FR")
