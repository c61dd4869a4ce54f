"""No input costs more than linear time or a small multiple of its size: quick guards, `relais bench smime` measures.

Processor time of this thread, the best of three, between sizes far enough apart for a quadratic step to show: where
linear work takes four times as long, quadratic work takes sixteen; less than ten is asked for.
"""

from __future__ import annotations

import contextlib
import time
import tracemalloc
from collections.abc import Callable

import pytest

from smime import DecryptionResult, SignatureResult, encrypt, oids, open_message, sign, sign_dkim, verify_dkim
from smime.cms_read import read_cms
from smime.dkim import DkimKey
from smime.mime import MimeError, parse_entity
from tests.smime.craft import SHA256, attribute, indefinite, multipart_signed, pkcs7_mime, signed_data
from tests.smime.people import ENTITY, NOW, message, new_key, person, validator
from trust import der
from trust.der import DerError, context

ANNE = person("anne@lab.example")
PAUL = person("paul@clinic.example")
FLOOR = 0.002
"""Seconds: below, what is measured is not growth."""


def seconds(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(3):
        began = time.thread_time()
        work()
        best = min(best, time.thread_time() - began)
    return best


def assert_linear(work: Callable[[bytes], object], shape: Callable[[int], bytes], count: int) -> None:
    small, large = shape(count), shape(4 * count)
    few, many = seconds(lambda: work(small)), seconds(lambda: work(large))
    assert many < 10 * max(few, FLOOR), (few, many)


def opened(wire: bytes) -> object:
    return open_message(wire, [PAUL], validator(), NOW)


def text(size: int) -> bytes:
    return (
        b"Content-Type: text/plain\r\n\r\n"
        + b"Sixty-two octets of text that say nothing about anybody here.\r\n" * (size // 63)
    )


# --- Honest mail -----------------------------------------------------------------------------------------------------


def test_protecting_and_opening_are_linear() -> None:
    def both(content: bytes) -> None:
        result = open_message(message(encrypt(sign(content, ANNE, NOW), [PAUL.certificate])), [PAUL], validator(), NOW)
        assert result.verdict.decryption is DecryptionResult.DECRYPTED

    assert_linear(both, text, 2_000_000)


def test_recipients_are_linear() -> None:
    certificates = [person(f"r{number}@clinic.example", which="paul@clinic.example") for number in range(400)]

    def to(count: int) -> float:
        chosen = [one.certificate for one in certificates[:count]]
        return seconds(lambda: opened(message(encrypt(ENTITY, [*chosen, PAUL.certificate]))))

    to(400)  # what is read of a certificate is remembered
    assert to(400) < 10 * max(to(100), FLOOR)


def test_dkim_is_linear() -> None:
    key = DkimKey("lab.example", "relais", new_key("rsa2048", "dkim"))

    def both(wire: bytes) -> None:
        verify_dkim(sign_dkim(wire, key, NOW) + wire, lambda domain, selector: None)

    for body in (text, lambda size: b"\r\n" + b" \t" * (size // 2), lambda size: b"\r\n" + b"\r\n" * (size // 2)):
        assert_linear(both, lambda size, body=body: message(body(size)), 500_000)


# --- Shapes of attackers ---------------------------------------------------------------------------------------------


def _nested(count: int) -> bytes:
    return b"\xa0\x80" * count


SHAPES: dict[str, tuple[Callable[[int], bytes], int]] = {
    "one-octet chunks": (
        lambda n: indefinite(_for_paul(bytes(n)), 1),
        50_000,
    ),
    "chunks of 16": (lambda n: indefinite(_for_paul(bytes(16 * n)), 16), 25_000),
    "depth, never closed": (lambda n: b"\x30\x80" + der.oid(oids.ENVELOPED_DATA) + _nested(n), 100_000),
    "depth, closed": (lambda n: b"\x30\x80" + der.oid(oids.SIGNED_DATA) + _nested(n) + bytes(2 * n + 2), 100_000),
    "depth of octet strings": (
        lambda n: b"\x30\x80" + der.oid(oids.ENVELOPED_DATA) + b"\xa0\x80\x30\x80" + b"\x24\x80" * n,
        100_000,
    ),
    "empty elements": (lambda n: der.sequence(der.oid(oids.SIGNED_DATA), der.tlv(context(0), bytes(2) * n)), 100_000),
    "empty sequences": (
        lambda n: der.sequence(der.oid(oids.SIGNED_DATA), der.tlv(context(0), der.sequence(b"\x30\x00" * n))),
        50_000,
    ),
    "a set of digests": (lambda n: _signed_with(der.tlv(der.SET, SHA256 * n)), 20_000),
    "attributes": (
        lambda n: signed_data(ENTITY, ANNE, attached=ENTITY, extra=[attribute("1.2.3", der.null())] * n),
        5_000,
    ),
    "one attribute with many values": (
        lambda n: signed_data(ENTITY, ANNE, attached=ENTITY, extra=[attribute("1.2.3", *[der.null()] * n)]),
        20_000,
    ),
    "capabilities": (
        lambda n: signed_data(
            ENTITY,
            ANNE,
            attached=ENTITY,
            extra=[attribute(oids.SMIME_CAPABILITIES, der.sequence(der.sequence(der.oid("1.2.3")) * n))],
        ),
        10_000,
    ),
}


def _for_paul(content: bytes) -> bytes:
    from smime.encrypting import encrypt_content
    from smime.suites import DEFAULT_SUITE

    return bytes(encrypt_content(content, [PAUL.certificate], DEFAULT_SUITE))


def _signed_with(digests: bytes) -> bytes:
    content_info = der.sequence(der.oid(oids.DATA))
    data = der.sequence(der.integer(1), digests, content_info, der.tlv(der.SET))
    return der.sequence(der.oid(oids.SIGNED_DATA), der.tlv(context(0), data))


@pytest.mark.parametrize("name", SHAPES)
def test_attackers_cms_is_linear(name: str) -> None:
    shape, count = SHAPES[name]
    assert_linear(opened, lambda n: message(pkcs7_mime(shape(n))), count)


@pytest.mark.parametrize("name", SHAPES)
def test_attackers_cms_takes_little_memory(name: str) -> None:
    shape, count = SHAPES[name]
    cms = shape(2 * count)
    tracemalloc.start()
    try:
        for read in (lambda: read_cms(cms), lambda: opened(message(pkcs7_mime(cms)))):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with contextlib.suppress(DerError):
                read()
            assert tracemalloc.get_traced_memory()[1] - before < 12 * len(cms) + (8 << 20)
    finally:
        tracemalloc.stop()


MIME: dict[str, tuple[Callable[[int], bytes], int]] = {
    "empty fields": (lambda n: b"a:\r\n" * n + b"\r\n", 100_000),
    "one folded field": (lambda n: b"Subject: a\r\n" + b" b\r\n" * n + b"\r\n", 60_000),
    "no end of the header": (lambda n: b"x" * n, 1_000_000),
    "boundaries that are none": (
        lambda n: b"Content-Type: multipart/signed; boundary=b\r\n\r\n" + b"\r\n--bb" * n,
        100_000,
    ),
    "parameters": (lambda n: b"Content-Type: text/plain" + b"; a=b" * n + b"\r\n\r\n", 40_000),
    "parameter sections": (
        lambda n: b"Content-Type: text/plain" + b"".join(b";a*%d=b" % i for i in range(n)) + b"\r\n\r\n",
        20_000,
    ),
    "comments": (lambda n: b"Content-Type: text/plain" + b"(" * n + b"\r\n\r\n", 200_000),
    "addresses": (lambda n: b"From: " + b"a@b.example," * n + b"a@b.example\r\n\r\n", 20_000),
    "comments in From": (lambda n: b"From: " + b"(" * n + b"a@b.example\r\n\r\n", 200_000),
    "quotes in From": (lambda n: b"From: " + b'"' * n + b"a@b.example\r\n\r\n", 200_000),
    "multiparts in multiparts": (
        lambda n: b"".join(b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (i, i) for i in range(n)),
        4_000,
    ),
    "messages in messages": (lambda n: b"Content-Type: message/rfc822\r\n\r\n" * n, 20_000),
    "junk in base64": (
        lambda n: (
            b"Content-Type: application/pkcs7-mime\r\nContent-Transfer-Encoding: base64\r\n\r\n" + b"!\0 \r\n" * n
        ),
        200_000,
    ),
}


@pytest.mark.parametrize("name", MIME)
def test_attackers_mime_is_linear(name: str) -> None:
    shape, count = MIME[name]

    def both(wire: bytes) -> None:
        with contextlib.suppress(MimeError):
            parse_entity(wire)
        opened(wire)

    assert_linear(both, shape, count)


def test_many_signers_cost_no_more_than_their_limit() -> None:
    """Each SignerInfo costs a signature: their number is limited, so that a mail of a megabyte costs no minute."""
    cms = signed_data(ENTITY, ANNE, signers=1000)
    began = time.thread_time()
    verdict = open_message(message(multipart_signed(ENTITY, cms)), (), validator(), NOW).verdict
    assert verdict.signature is SignatureResult.INVALID
    assert time.thread_time() - began < 0.5
