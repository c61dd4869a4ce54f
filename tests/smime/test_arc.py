"""ARC chains: those dkimpy seals, an independent implementation, and every way of breaking one."""

from __future__ import annotations

import re

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from smime import public_record
from smime.arc import MAX_INSTANCES, ArcResult, has_chain, keys_of, verify_arc
from smime.mime import parse_entity

KEY = rsa.generate_private_key(65537, 2048)
PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
RECORD = f"v=DKIM1; k=rsa; p={public_record(KEY)}"
MESSAGE = (
    b"Authentication-Results: lists.example; dkim=pass header.d=op2.example\r\n"
    b"From: a@op2.example\r\nTo: b@op1.example\r\nSubject: x\r\nDate: Sat, 1 Jan 2028 00:00:00 +0000\r\n"
    b"Message-ID: <1@op2.example>\r\n\r\nhello\r\n"
)


def published(domain: str, selector: str) -> str | None:
    return RECORD if (domain, selector) == ("lists.example", "s1") else None


def sealed(message: bytes = MESSAGE, times: int = 1, pem: bytes = PEM) -> bytes:
    for _ in range(times):
        fields = dkim.arc_sign(
            message,
            b"s1",
            b"lists.example",
            pem,
            b"lists.example",
            include_headers=[b"from", b"to", b"subject", b"date", b"message-id"],
        )
        message = b"".join(field.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n") for field in fields) + message
        # of two results of the same server dkimpy takes the worse one
        message = b"Authentication-Results: lists.example; arc=pass\r\n" + re.sub(
            rb"(?m)^Authentication-Results:.*\r\n", b"", message
        )
    return message


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_chain_that_holds(times: int) -> None:
    message = sealed(times=times)
    assert verify_arc(message, published) == ArcResult("pass", "lists.example")
    header = parse_entity(message)
    assert has_chain(header)
    assert keys_of(header) == (("lists.example", "s1"),)


def test_as_long_as_a_chain_may_be() -> None:
    small = rsa.generate_private_key(65537, 1024)
    pem = small.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    message = sealed(times=50, pem=pem)
    key = public_record(small)
    assert verify_arc(message, lambda domain, selector: key) == ArcResult("pass", "lists.example")
    longer = b"ARC-Seal: i=51; cv=pass\r\nARC-Message-Signature: i=51\r\nARC-Authentication-Results: i=51\r\n" + message
    assert verify_arc(longer, lambda domain, selector: key) == ArcResult("fail", "", "instance")
    for number in (1, 25, 50):
        flipped = message.replace(
            b"ARC-Authentication-Results: i=%d;" % number, b"ARC-Authentication-Results: i=%d; x" % number
        )
        assert flipped != message
        assert verify_arc(flipped, lambda domain, selector: key).detail == "seal"


def test_no_chain() -> None:
    assert verify_arc(MESSAGE, published) == ArcResult("none")
    assert not has_chain(parse_entity(MESSAGE))
    assert keys_of(parse_entity(MESSAGE)) == ()


def without(name: bytes, instance: int, message: bytes) -> bytes:
    found = re.search(rb"^" + name + rb":[^\r]*?i=%d[;\s](?:[^\r]|\r\n[ \t])*\r\n" % instance, message, re.M | re.I)
    assert found is not None
    return message[: found.start()] + message[found.end() :]


@pytest.mark.parametrize(
    ("broken", "detail"),
    [
        (sealed().replace(b"hello", b"hullo"), "body hash"),
        (sealed().replace(b"Subject: x", b"Subject: y"), "signature"),
        (sealed().replace(b"dkim=pass header.d=op2", b"dkim=pass header.d=op3", 1), "seal"),
        (sealed(times=2).replace(b"cv=pass", b"cv=none"), "cv="),
        (sealed(times=2).replace(b"cv=none", b"cv=pass"), "cv="),
        (sealed().replace(b"cv=none", b"cv=fail"), "the last sealer found it broken"),
        (without(b"ARC-Seal", 1, sealed(times=2)), "an instance is not complete"),
        (without(b"ARC-Message-Signature", 2, sealed(times=2)), "an instance is not complete"),
        (without(b"ARC-Authentication-Results", 1, sealed()), "an instance is not complete"),
        (sealed().replace(b"i=1", b"i=7"), "an instance is not complete"),
        (sealed().replace(b"i=1", b"i=x"), "instance"),
        (sealed().replace(b"i=1", b"i=0"), "instance"),
        (sealed().replace(b"i=1", b"i=%d" % (MAX_INSTANCES + 1)), "instance"),
        (sealed().replace(b"d=lists.example", b"d=other.example"), "no key"),
        (
            b"ARC-Seal: i=1; a=b; a=c\r\nARC-Message-Signature: i=1\r\nARC-Authentication-Results: i=1\r\n\r\n",
            "tag list",
        ),
        (
            b"ARC-Seal: i=1; cv=none\r\nARC-Message-Signature: i=1\r\nARC-Authentication-Results: i=1\r\n\r\n",
            "a required tag is missing",
        ),
        (b"ARC-Seal: i=1\r\nARC-Seal: i=1\r\n\r\n", "a field stands twice in one instance"),
        (b"ARC-Seal\r\n\r\n", "header"),
    ],
)
def test_a_chain_that_is_broken(broken: bytes, detail: str) -> None:
    result = verify_arc(broken, published)
    assert (result.result, result.detail) == ("fail", detail)


def test_a_key_nobody_can_say_anything_about_is_no_pass() -> None:
    def silent(domain: str, selector: str) -> str | None:
        raise LookupError

    assert verify_arc(sealed(), silent) == ArcResult("fail", "lists.example", "no answer about the key")


WHOLE = sealed(times=2)


@given(st.integers(0, len(WHOLE) - 1), st.binary(max_size=4), st.integers(0, 8))
@settings(max_examples=150, deadline=None)
def test_no_octets_make_it_raise_or_pass(at: int, octets: bytes, cut: int) -> None:
    changed = WHOLE[:at] + octets + WHOLE[at + cut :]
    result = verify_arc(changed, published)
    assert result.result in ("pass", "fail", "none")
    keys_of(parse_entity(WHOLE))
