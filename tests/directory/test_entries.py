"""Certificates sorted by what they may do, LDIF, partners, refusals."""

from __future__ import annotations

import base64
import io

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from hypothesis import given
from hypothesis import strategies as st
from ldif import LDIFRecordList

from directory.entries import certificate_values, sort_certificates, to_recipient
from directory.ldif import LdifEntry, to_ldif
from directory.partners import DuplicatePartnerError, PartnerBook
from directory.records import MailboxKind, Partner, Recipient
from directory.refusals import CATALOGUE
from directory.schema import dn_of
from tests.directory.conftest import BOTH, ENCRYPTING, SIGNING, UNRESTRICTED, certificate, key_usage
from trust.refusals import HL7Code, join_catalogues


def der(one: object) -> bytes:
    return one.public_bytes(Encoding.DER)  # type: ignore[attr-defined,no-any-return]


def test_certificates_are_sorted_by_key_usage() -> None:
    neither = certificate("neither", key_usage("key_cert_sign"))
    encryption, signing = sort_certificates(map(der, (ENCRYPTING, SIGNING, BOTH, UNRESTRICTED, neither, BOTH)))
    assert encryption == (ENCRYPTING, BOTH, UNRESTRICTED)
    assert signing == (SIGNING, BOTH, UNRESTRICTED)


def test_a_certificate_nobody_can_read_is_skipped() -> None:
    good = der(BOTH)
    for position in range(0, len(good), 3):
        flipped = good[:position] + bytes([good[position] ^ 0x5A]) + good[position + 1 :]
        encryption, _ = sort_certificates([flipped, der(ENCRYPTING), good[:position]])
        assert ENCRYPTING in encryption
    of_version_4 = good.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x03", 1)
    assert of_version_4 != good
    certificates = [b"junk", of_version_4, b"", der(SIGNING)]
    values = {"TypeBAL": [b"PER"], "mail": [b"a@b"], "userCertificate;binary": certificates}
    recipient = to_recipient(values)
    assert recipient is not None and recipient.signing_certificates == (SIGNING,)


def test_smime_certificates_may_be_pkcs7() -> None:
    bundle = pkcs7.serialize_certificates([ENCRYPTING, SIGNING], Encoding.DER)
    assert sort_certificates([bundle]) == ((ENCRYPTING,), (SIGNING,))
    values = {"typebal": [b"per"], "mail": [b"A@B"], "userSMIMECertificate": [bundle], "userCertificate": [der(BOTH)]}
    recipient = to_recipient(values)
    assert recipient is not None and recipient.encryption_certificates == (BOTH, ENCRYPTING)
    assert recipient.address == "a@b"


def test_a_certificate_in_both_tuples_is_written_once() -> None:
    both = Recipient("a@b", MailboxKind.PER, "", (BOTH, ENCRYPTING), (BOTH, SIGNING))
    assert certificate_values(both) == [der(BOTH), der(ENCRYPTING), der(SIGNING)]


def test_what_is_no_mailbox_is_none() -> None:
    assert to_recipient({"ou": [b"patients"]}) is None
    assert to_recipient({"TypeBAL": [b"?"], "mail": [b"a@b"]}) is None


@given(st.lists(st.binary(min_size=1), min_size=1, max_size=4), st.emails())
def test_ldif_carries_any_value(values: list[bytes], address: str) -> None:
    entry = LdifEntry(dn_of(address, MailboxKind.PER, "dc=x"), {"description": tuple(values)})
    records = LDIFRecordList(io.BytesIO(to_ldif(entry)))
    records.parse()
    assert records.all_records == [(entry.dn, {"description": values})]


def test_ldif_encodes_what_is_not_plain() -> None:
    assert to_ldif(LdifEntry("dc=x", {"o": (b"plain",)})) == b"dn: dc=x\no: plain\n\n"
    for value in (b" x", b":x", b"<x", b"x ", b"x\ny", "é".encode(), b"x\0"):
        assert b"o:: " + base64.b64encode(value) in to_ldif(LdifEntry("dc=x", {"o": (value,)}))


def test_partners_are_found_by_exact_domain() -> None:
    partner = Partner("Demo.mssante.fr", host="mx.demo.mssante.fr")
    book = PartnerBook([partner, Partner("other.mssante.fr")])
    assert book.of("demo.MSSANTE.fr") is partner
    assert book.of("sub.demo.mssante.fr") is None
    assert book.of("mssante.fr") is None
    assert book.of("") is None
    with pytest.raises(DuplicatePartnerError, match=r"demo\.mssante\.fr"):
        PartnerBook([partner, Partner("DEMO.mssante.fr")])


def test_refusals_keep_the_rules_of_the_catalogue() -> None:
    assert len(join_catalogues([CATALOGUE])) == len(CATALOGUE)
    for refusal in CATALOGUE:
        assert refusal.code.startswith("directory.")
        assert refusal.enhanced[0] == str(refusal.smtp)[0]
        assert refusal.permanent is (refusal.hl7 is HL7Code.AE)
        assert refusal.text.isascii() and refusal.text_fr
