"""SMIMEEncryptionKeyPreference (RFC 8551 §2.5.3): the certificate a signer wants to be encrypted to."""

from __future__ import annotations

import pytest
from cryptography import x509

from smime import SignatureResult, oids
from smime.identity import identity
from tests.smime.craft import attribute, signed_data
from tests.smime.people import ENTITY, Person, person
from tests.smime.test_read_signed import ADDRESS, ANNE, judged
from trust import der
from trust.der import context

OTHER = person(ADDRESS, which="encryption")
STRANGER = person("stranger@lab.example")


def issuer_and_serial(one: Person) -> bytes:
    known = identity(one.certificate)
    return der.tlv(context(0), known.issuer, der.integer(known.serial))


def key_id(one: Person) -> bytes:
    value = one.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return value.digest


def preferring(*values: bytes, certificates: tuple[Person, ...] = (ANNE, OTHER, STRANGER)) -> list[x509.Certificate]:
    extra = [attribute(oids.ENCRYPTION_KEY_PREFERENCE, *values)] if values else []
    (verdict,) = judged(signed_data(ENTITY, ANNE, extra=extra, certificates=certificates))
    assert verdict.result is SignatureResult.VALID
    return [each for each in verdict.encryption_certificates if each != ANNE.certificate]


def test_by_issuer_and_serial_number() -> None:
    assert preferring(issuer_and_serial(OTHER))[0] == OTHER.certificate
    assert preferring(issuer_and_serial(STRANGER))[0] == STRANGER.certificate  # who keeps it looks at its address


def test_by_key_identifier() -> None:
    both = der.tlv(context(1), der.octet_string(key_id(OTHER))), der.tlv(context(2, constructed=False), key_id(OTHER))
    for choice in both:
        assert preferring(choice)[0] == OTHER.certificate


def test_without_the_attribute_the_signer_s_own_subject() -> None:
    same = [each for each in (OTHER, STRANGER) if each.certificate.subject == ANNE.certificate.subject]
    assert [each for each in preferring() if each.subject == ANNE.certificate.subject] == [
        each.certificate for each in same
    ]


def test_the_signer_s_own_and_what_did_not_come_along_name_nothing() -> None:
    assert preferring(issuer_and_serial(ANNE)) == []
    assert preferring(issuer_and_serial(OTHER), certificates=(ANNE,)) == []


@pytest.mark.parametrize(
    "value",
    [
        b"\x05\x00",
        der.tlv(context(0)),
        der.tlv(context(0), der.integer(1)),
        der.tlv(context(1)),
        der.tlv(context(1), der.integer(1)),
        der.tlv(context(2, constructed=False), b""),
        der.tlv(context(0), der.sequence(), b"\x02\x00"),
        der.tlv(context(3), b""),
    ],
)
def test_what_cannot_be_read_names_nothing_and_leaves_the_signature_alone(value: bytes) -> None:
    assert preferring(value) == []
    assert preferring(issuer_and_serial(OTHER), value) == []
