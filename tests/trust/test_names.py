"""Distinguished names: the same name however it is written, and never two different names taken for one."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from trust.names import MAX_TEXT, DistinguishedName

parse = DistinguishedName.parse


def certificate_name(*attributes: tuple[x509.ObjectIdentifier, str]) -> DistinguishedName:
    return DistinguishedName.from_x509(x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes]))


OPERATOR = certificate_name(
    (NameOID.COUNTRY_NAME, "FR"),
    (NameOID.STATE_OR_PROVINCE_NAME, "Côte-d'Or (21)"),
    (NameOID.ORGANIZATION_NAME, "C H U  DE  DEMONSTRATION"),
    (NameOID.ORGANIZATIONAL_UNIT_NAME, "1210000001"),
    (NameOID.COMMON_NAME, "mss.chu.example"),
)


@pytest.mark.parametrize(
    "text",
    [
        "CN=mss.chu.example,OU=1210000001,O=C H U DE DEMONSTRATION,ST=Côte-d'Or (21),C=FR",
        'CN=mss.chu.example,OU=1210000001,O="C H U  DE  DEMONSTRATION",ST=Côte-d\'Or (21),C=FR',
        'CN=mss.chu.example,OU=1210000001,O="C H U\u00a0DE \u00a0DEMONSTRATION" ,ST="Côte-d\'Or (21)",C=FR',
        "CN=mss.chu.example, OU=1210000001, O=C H U DE DEMONSTRATION, ST=Côte-d'Or (21), C=FR",
        "cn = MSS.CHU.example , ou = 1210000001 , o = c h u de demonstration , st = côte-d'or (21) , c = fr",
        "C=FR,ST=Côte-d'Or (21),O=C H U DE DEMONSTRATION,OU=1210000001,CN=mss.chu.example",
        "CN=mss.chu.example;OU=1210000001;O=C H U DE DEMONSTRATION;S=C\\C3\\B4te-d'Or (21);C=FR",
        "CN=mss.chu.example,OU=1210000001,O=C H U DE DEMONSTRATION,ST=Co\u0302te-d'Or (21),C=FR",
        "2.5.4.3=mss.chu.example,OID.2.5.4.11=#130a31323130303030303031,O=C H U DE DEMONSTRATION,"
        "ST=Côte-d'Or (21),C=FR",
    ],
)
def test_one_name_in_many_spellings(text: str) -> None:
    assert parse(text) == OPERATOR
    assert hash(parse(text)) == hash(OPERATOR)


@pytest.mark.parametrize(
    "text",
    [
        'CN=a.example,O=CLINIQUE "PAUL DEMO", C=FR',
        'CN=a.example,O="CLINIQUE "PAUL DEMO"",C=FR',
        'CN=a.example,O="CLINIQUE \\"PAUL DEMO\\"",C=FR',
        'CN=a.example,O=CLINIQUE \\"PAUL DEMO\\",C=FR',
    ],
)
def test_inner_quotes_escaped_or_not(text: str) -> None:
    assert parse(text) == certificate_name(
        (NameOID.COUNTRY_NAME, "FR"),
        (NameOID.ORGANIZATION_NAME, 'CLINIQUE "PAUL DEMO"'),
        (NameOID.COMMON_NAME, "a.example"),
    )


def test_commas_in_values() -> None:
    expected = certificate_name((NameOID.ORGANIZATION_NAME, "DUPONT, FILS"), (NameOID.COMMON_NAME, "a"))
    assert parse('CN=a,O="DUPONT, FILS"') == expected
    assert parse("CN=a,O=DUPONT\\, FILS") == expected
    assert parse("CN=a,O=DUPONT, FILS") == expected
    quoted = parse('CN=a,O="X, OU=1"')
    assert quoted.values("2.5.4.10") == ("X, OU=1",)
    assert quoted.values("2.5.4.11") == ()


@pytest.mark.parametrize(
    "text",
    [
        "CN=mss.chu.example,OU=1210000002,O=C H U DE DEMONSTRATION,ST=Côte-d'Or (21),C=FR",
        "CN=mss.chu.example,OU=1210000001,O=C H U DE DEMONSTRATION,L=Côte-d'Or (21),C=FR",
        "CN=mss.chu.example,OU=1210000001,O=C H U DE DEMONSTRATION,C=FR",
        "CN=mss.chu.example+OU=1210000001,O=C H U DE DEMONSTRATION,ST=Côte-d'Or (21),C=FR",
        "OU=1210000001,CN=mss.chu.example,O=C H U DE DEMONSTRATION,ST=Côte-d'Or (21),C=FR",
        "CN=mss.chu.example\\00,OU=1210000001,O=C H U DE DEMONSTRATION,ST=Côte-d'Or (21),C=FR",
        "CN=mss.chu.example,OU=1210000001,O=CHU DE DEMONSTRATION,ST=Côte-d'Or (21),C=FR",
    ],
)
def test_different_names_stay_different(text: str) -> None:
    assert parse(text) != OPERATOR


@pytest.mark.parametrize(
    "text",
    [
        *("", "   ", "mss.chu.example", "XYZ=a", "=a", "CN", "CN=a\\", "CN=\\ff", "CN=#0c05ab", "CN=#30"),
        "CN=a," * 40 + "CN=a",
        "CN=" + "a" * MAX_TEXT,
    ],
)
def test_hopeless_text(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


def test_multi_valued_rdn_is_a_set() -> None:
    assert parse("GN=Ana+CN=899700000000+SN=DEMO,C=FR") == parse("SN=DEMO+CN=899700000000+GN=Ana,C=FR")


def test_str_is_rfc4514() -> None:
    assert str(OPERATOR).startswith("CN=mss.chu.example,OU=1210000001,O=C H U  DE  DEMONSTRATION,ST=")
    hostile = certificate_name((NameOID.ORGANIZATION_NAME, ' #a,O=b+c\r\n" '), (NameOID.COMMON_NAME, "#x"))
    assert str(hostile) == 'CN=\\#x,O=\\ #a\\,O=b\\+c\\0d\\0a\\"\\ '
    assert parse(str(hostile)) == hostile
    assert parse(str(hostile)).values("2.5.4.10") == (' #a,O=b+c\r\n" ',)


_VALUES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
_OIDS = st.sampled_from(
    [NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.STREET_ADDRESS, x509.ObjectIdentifier("1.2.250.1.71.9")]
)


@settings(deadline=None, database=None)
@given(st.lists(st.lists(st.tuples(_OIDS, _VALUES), min_size=1, max_size=3), min_size=1, max_size=5))
def test_str_reads_back(rdns: list[list[tuple[x509.ObjectIdentifier, str]]]) -> None:
    name = DistinguishedName._of([tuple((oid.dotted_string, value) for oid, value in rdn) for rdn in rdns])
    assert parse(str(name)) == name
    assert parse(str(name)).written == name.written


@settings(deadline=None, database=None)
@given(st.text(st.sampled_from('CNOU=,+;"\\ #ab0é\u00a0'), max_size=60))
def test_any_text_parses_or_raises_value_error(text: str) -> None:
    try:
        name = parse(text)
    except ValueError:
        return
    assert parse(str(name)) == name
