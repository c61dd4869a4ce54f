"""What correspondents say they can read, and what it changes."""

from __future__ import annotations

import itertools

import pytest
from asn1crypto.cms import CMSAttribute

from smime import (
    Capabilities,
    ContentCipher,
    Floor,
    KeyTransportScheme,
    Suite,
    oids,
    read_capabilities,
    suite_for,
    write_capabilities,
)
from smime.capabilities import OWN_CAPABILITIES
from tests.smime.people import openssl, person
from trust import der
from trust.der import DerError, context

A256G, A128G, A256C, A128C = (
    ContentCipher.AES256_GCM,
    ContentCipher.AES128_GCM,
    ContentCipher.AES256_CBC,
    ContentCipher.AES128_CBC,
)
OAEP, V15 = KeyTransportScheme.RSA_OAEP_SHA256, KeyTransportScheme.RSA_PKCS1V15
TRIPLE_DES = "1.2.840.113549.3.7"
RC2 = "1.2.840.113549.3.2"


def able(*names: ContentCipher | str) -> Capabilities:
    return Capabilities(tuple(name if isinstance(name, str) else name.oid for name in names))


def test_what_we_write_is_read_again() -> None:
    read = read_capabilities(write_capabilities(OWN_CAPABILITIES))
    assert tuple(dict.fromkeys(read.names)) == OWN_CAPABILITIES.names
    assert read.ciphers == (A256G, A128G, A256C, A128C)
    assert read.key_transports == (OAEP,)
    assert read.cek_hkdf


def test_an_independent_parser_reads_what_we_write() -> None:
    attribute = CMSAttribute.load(
        der.sequence(der.oid(oids.SMIME_CAPABILITIES), der.tlv(der.SET, write_capabilities(OWN_CAPABILITIES)))
    )
    assert attribute["type"].dotted == oids.SMIME_CAPABILITIES
    listed = der.read(attribute["values"][0].dump()).sequence()
    assert listed[0].sequence()[0].oid() == oids.AES256_GCM


def test_what_openssl_says_it_reads(tmp_path) -> None:
    certificate, key = person("anne@lab.example").save(tmp_path, "anne")
    signed = openssl("cms", "-sign", "-signer", certificate, "-inkey", key, "-outform", "DER", data=b"x").stdout
    start = signed.index(der.oid(oids.SMIME_CAPABILITIES)) + len(der.oid(oids.SMIME_CAPABILITIES))
    value = signed[start + 2 : start + 2 + signed[start + 1]]
    read = read_capabilities(value)
    assert read.ciphers == (A256C, A128C)
    assert TRIPLE_DES in read.names
    assert suite_for(Suite(), read) == Suite(A256C)
    assert suite_for(Suite(), read, Floor(A128G)).content is A256G


def test_oaep_counts_only_with_sha256() -> None:
    def listing(*parameters: bytes) -> Capabilities:
        return read_capabilities(der.sequence(der.sequence(der.oid(oids.RSAES_OAEP), *parameters)))

    sha256 = der.sequence(der.oid(oids.SHA256))
    mask = der.tlv(context(1), der.sequence(der.oid(oids.MGF1), sha256))
    assert listing(der.sequence(der.tlv(context(0), sha256), mask)).key_transports == (OAEP,)
    for other in (
        (),
        (der.null(),),
        (der.sequence(),),
        (der.sequence(mask),),
        (der.sequence(der.tlv(context(0)), mask),),
    ):
        assert listing(*other).key_transports == ()


@pytest.mark.parametrize(
    "value",
    [b"", b"\x04\x00", b"\x30\x02\x05\x00", b"\x30\x02\x30\x00", der.sequence(*[der.sequence(der.oid(RC2))] * 65)],
)
def test_what_is_no_list_is_refused(value: bytes) -> None:
    with pytest.raises(DerError):
        read_capabilities(value)


@pytest.mark.parametrize(
    ("preferred", "listed", "floor", "expected"),
    [
        (A256G, able(A256G, A256C), A128C, A256G),
        (A256G, able(A128G, A256C), A128C, A128G),
        (A256G, able(A256C, A128C), A128C, A256C),
        (A256G, able(A128C, TRIPLE_DES), A128C, A128C),
        (A256G, able(A128C, TRIPLE_DES), A256C, A256G),
        (A256G, able(A256C), A128G, A256G),
        (A256G, able(TRIPLE_DES, RC2), A128C, A256G),
        (A256G, able(), A128C, A256G),
        (A256C, able(A256G, A256C), A128C, A256G),
        (A256C, able(A128G, A256C), A128C, A128G),
        (A128G, able(A256G, A128G), A128C, A128G),
        (A128C, able(A256C, A128C), A128C, A128C),
        (A128C, able(TRIPLE_DES), A256G, A256G),
        (A128C, None, A128G, A128G),
        (A256C, None, A128C, A256C),
    ],
)
def test_the_cipher(preferred, listed, floor, expected) -> None:
    assert suite_for(Suite(preferred), listed, Floor(floor)).content is expected


RANK = (A128C, A256C, A128G, A256G)


def test_pitfall_34_nothing_goes_below_the_floor() -> None:
    lists = [able(*chosen) for size in range(4) for chosen in itertools.permutations((*RANK, TRIPLE_DES), size)]
    for preferred, floor, listed in itertools.product(RANK, RANK, [None, *lists]):
        for scheme in (OAEP, V15):
            chosen = suite_for(Suite(preferred, V15), listed, Suite(floor, scheme, cek_hkdf=True))
            assert RANK.index(chosen.content) >= RANK.index(floor)
            assert chosen.key_transport is (OAEP if scheme is OAEP else V15)
            assert chosen.cek_hkdf


@pytest.mark.parametrize(
    ("listed", "preferred", "floor", "expected"),
    [
        (able(A256G), OAEP, V15, OAEP),
        (able(A256G), V15, V15, V15),
        (able(A256G, oids.RSA_ENCRYPTION), OAEP, V15, V15),
        (able(A256G, oids.RSA_ENCRYPTION), OAEP, OAEP, OAEP),
        (able(A256G, oids.RSAES_OAEP), V15, V15, OAEP),
        (able(A256G, oids.RSAES_OAEP, oids.RSA_ENCRYPTION), V15, V15, V15),
        (None, V15, OAEP, OAEP),
    ],
)
def test_the_key_transport(listed, preferred, floor, expected) -> None:
    assert suite_for(Suite(key_transport=preferred), listed, Floor(key_transport=floor)).key_transport is expected


def test_a_bound_content_key_only_for_who_understands_it() -> None:
    assert suite_for(Suite(), able(A256G, oids.CEK_HKDF_SHA256)).cek_hkdf
    assert not suite_for(Suite(cek_hkdf=True), able(A256G)).cek_hkdf
    assert suite_for(Suite(cek_hkdf=True), None).cek_hkdf
    assert suite_for(Suite(), able(A256G), Floor(cek_hkdf=True)).cek_hkdf


def test_the_rest_is_the_partners() -> None:
    preferred = Suite(opaque=True)
    assert suite_for(preferred, able(A128G, oids.RSASSA_PSS)) == Suite(A128G, opaque=True)
