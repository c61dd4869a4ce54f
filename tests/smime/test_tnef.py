"""S/MIME that Exchange wrapped into winmail.dat, and rubbish that calls itself that."""

from __future__ import annotations

import contextlib
import struct
import time

import pybase64
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smime import DecryptionResult, SignatureResult, encrypt, open_message, sign
from smime.mime import MimeError, parse_entity
from smime.tnef import TnefError, smime_attachment
from smime.verdict import LayerKind
from tests.smime.people import ENTITY, NOW, message, person, validator

ANNE = person("anne@lab.example")
PAUL = person("paul@clinic.example")


def attribute(level: int, identifier: int, kind: int, value: bytes) -> bytes:
    checksum = sum(value) & 0xFFFF
    return struct.pack("<BHHI", level, identifier, kind, len(value)) + value + struct.pack("<H", checksum)


def variable(kind: int, identifier: int, value: bytes) -> bytes:
    padding = bytes(-len(value) % 4)
    return struct.pack("<HHII", kind, identifier, 1, len(value)) + value + padding


def properties(*encoded: bytes) -> bytes:
    return struct.pack("<I", len(encoded)) + b"".join(encoded)


def attachment(data: bytes, name: bytes = b"smime.p7m\0", tag: bytes = b"") -> bytes:
    props = [
        struct.pack("<HHI", 0x0003, 0x3705, 1),
        struct.pack("<HH", 0x000B, 0x8001) + bytes(16) + struct.pack("<III", 0, 7, 1),
        struct.pack("<HH", 0x001E, 0x8002) + bytes(16) + struct.pack("<II", 1, 6) + b"ab\0c\0\0\0\0"
        + struct.pack("<II", 1, 3) + b"x\0\0\0",
        variable(0x001F, 0x3707, "smime.p7m\0".encode("utf-16-le")),
    ]  # fmt: skip
    if tag:
        props.append(variable(0x001E, 0x370E, tag))
    return (
        attribute(2, 0x9002, 6, bytes(14))
        + attribute(2, 0x8010, 1, name)
        + attribute(2, 0x800F, 6, data)
        + attribute(2, 0x9005, 6, properties(*props))
    )


def tnef(*attachments: bytes) -> bytes:
    head = struct.pack("<IH", 0x223E9F78, 1) + attribute(1, 0x9006, 8, b"\0\0\1\0")
    return head + attribute(1, 0x8008, 7, b"IPM.Note.SMIME\0") + b"".join(attachments)


def winmail(stream: bytes, header: bytes = b"Content-Type: application/ms-tnef; name=winmail.dat") -> bytes:
    return message(header + b"\r\nContent-Transfer-Encoding: base64\r\n\r\n" + pybase64.encodebytes(stream))


def opened(wire: bytes):
    return open_message(wire, [PAUL], validator(), NOW)


def cms(entity: bytes) -> bytes:
    return bytes(parse_entity(entity).decoded())


@pytest.mark.parametrize(
    "header", [b"Content-Type: application/ms-tnef", b"Content-Type: application/octet-stream; name=WINMAIL.DAT"]
)
def test_pitfall_19_tnef_wrapped_smime_opens(header: bytes) -> None:
    signed = sign(ENTITY, ANNE, NOW)
    found = opened(winmail(tnef(attachment(cms(encrypt(signed, [PAUL.certificate])))), header))
    assert found.entity == message(signed)
    assert found.verdict.signature is SignatureResult.VALID
    kinds = [layer.kind for layer in found.verdict.layers]
    assert kinds == [LayerKind.TNEF, LayerKind.AUTH_ENCRYPTED, LayerKind.CLEAR_SIGNED]


def test_pitfall_19_tnef_wrapped_multipart_signed() -> None:
    signed = sign(ENTITY, ANNE, NOW)
    found = opened(winmail(tnef(attachment(signed, tag=b"multipart/signed\0"))))
    assert found.verdict.signature is SignatureResult.VALID
    assert found.entity == message(signed)


def test_file_in_a_property_instead_of_an_attribute() -> None:
    data = cms(encrypt(ENTITY, [PAUL.certificate]))
    stream = tnef(attribute(2, 0x9002, 6, bytes(14)), attribute(2, 0x9005, 6, properties(
        variable(0x001F, 0x3707, "smime.p7m\0".encode("utf-16-le")), variable(0x0102, 0x3701, data))))  # fmt: skip
    assert opened(winmail(stream)).entity == message(ENTITY)


def test_pitfall_01_tnef_with_several_files_or_others_is_left() -> None:
    data = cms(encrypt(ENTITY, [PAUL.certificate]))
    for stream in (
        tnef(attachment(data), attachment(data)),
        tnef(),
        tnef(attribute(2, 0x9002, 6, b""), attribute(2, 0x8010, 1, b"a.doc\0"), attribute(2, 0x800F, 6, data)),
    ):
        wire = winmail(stream)
        found = opened(wire)
        assert found.entity == wire
        assert found.verdict.decryption is DecryptionResult.NOT_ENCRYPTED


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"\x78\x9f\x3e\x22",
        tnef()[:-1],
        tnef() + b"\2",
        tnef(attribute(2, 0x8010, 1, b"x")),
        tnef(attribute(2, 0x9002, 6, b""), attribute(2, 0x9005, 6, b"\xff\xff\xff\xff")),
        tnef(attribute(2, 0x9002, 6, b""), attribute(2, 0x9005, 6, properties(b"\x77\0\0\0"))),
        tnef(
            attribute(2, 0x9002, 6, b""),
            attribute(2, 0x9005, 6, properties(struct.pack("<HHII", 0x1E, 1, 1, 0xFFFFFFF0))),
        ),
        struct.pack("<IH", 0x223E9F78, 1) + struct.pack("<BHHI", 1, 1, 1, 0xFFFFFFFF),
    ],
)
def test_broken_tnef_is_told(stream: bytes) -> None:
    with pytest.raises(TnefError):
        smime_attachment(stream)
    found = opened(winmail(stream))
    assert "malformed-tnef" in [finding.code for finding in found.verdict.findings]


def test_tnef_is_read_in_linear_time() -> None:
    values = struct.pack("<HHI", 0x101E, 1, 1000) + b"\1\0\0\0x\0\0\0" * 1000
    for stream in (
        tnef(*[attribute(2, 0x9002, 6, b"")] * 500_000),
        tnef(attribute(2, 0x9002, 6, b""), *[attribute(2, 0x9005, 6, properties(*[values] * 20))] * 50),
        tnef(
            attribute(2, 0x9002, 6, b""), attribute(2, 0x9005, 6, properties(struct.pack("<HHI", 0x1003, 1, 1 << 31)))
        ),
    ):
        started = time.process_time()
        with contextlib.suppress(TnefError):
            smime_attachment(stream)
        assert time.process_time() - started < 2


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 400), st.binary(max_size=8))
def test_altered_tnef_raises_nothing_else(position: int, junk: bytes) -> None:
    stream = tnef(attachment(b"x" * 40, tag=b"multipart/signed\0"))
    with contextlib.suppress(TnefError, MimeError):
        smime_attachment(stream[:position] + junk + stream[position + len(junk) :])
