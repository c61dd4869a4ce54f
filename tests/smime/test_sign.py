"""Signing: every kind of key, detached and opaque, and signatures that survive the road."""

from __future__ import annotations

import base64
import contextlib
import email
import email.policy
import hashlib
import smtplib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from asn1crypto import cms as asn1
from asn1crypto import tsp  # noqa: F401 - teaches cms the attributes of RFC 5035
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given, settings
from hypothesis import strategies as st

from smime import (
    DEFAULT_SUITE,
    MimeError,
    RsaSignatureScheme,
    SignatureResult,
    SignerFailedError,
    Suite,
    UnfitSignerError,
    encrypt,
    oids,
    open_message,
    sign,
)
from smime.canonical import base64_lines, crlf, is_robust, is_seven_bit, quoted_printable, robust
from smime.identity import identity
from smime.mime import parse_entity
from smime.signing import sign_content
from tests.smime.people import ENTITY, NOW, Person, authority, message, openssl, person, validator
from tests.support.private import free_port

ANNE = "anne@lab.example"
KINDS = ["rsa2048", "rsa3072", "p256", "p384", "p521", "brainpool256", "brainpool384", "brainpool512", "ed25519"]
MICALG = {"p384": "sha-384", "brainpool384": "sha-384"} | dict.fromkeys(("p521", "brainpool512", "ed25519"), "sha-512")
PSS = Suite(rsa_signature=RsaSignatureScheme.PSS)
OPAQUE = Suite(opaque=True)


def anne(kind: str = "rsa2048") -> Person:
    return person(ANNE, kind=kind)


def verdict_of(wire: bytes):
    return open_message(wire, (), validator(), NOW).verdict


def sound(wire: bytes) -> bool:
    """Whether the signature itself holds, whatever is thought of the path."""
    verdict = verdict_of(wire)
    return bool(verdict.signers) and verdict.signature in (SignatureResult.VALID, SignatureResult.UNTRUSTED)


def openssl_verified(tmp_path: Path, wire: bytes) -> bytes:
    anchor, _ = authority().save(tmp_path, "ca")
    return openssl("cms", "-verify", "-CAfile", anchor, "-attime", str(int(NOW.timestamp())), data=wire).stdout


def signed_data(der: bytes) -> asn1.SignedData:
    return asn1.ContentInfo.load(der, strict=True)["content"]


@pytest.mark.parametrize(
    "suite", [DEFAULT_SUITE, OPAQUE, PSS, Suite(opaque=True, rsa_signature=RsaSignatureScheme.PSS)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_every_key_in_every_form(tmp_path: Path, kind: str, suite: Suite) -> None:
    wire = sign(ENTITY, anne(kind), NOW, suite)
    assert is_robust(wire)
    assert sound(message(wire))
    if kind != "ed25519":  # whose CMS signatures OpenSSL knows from 3.2 on
        assert openssl_verified(tmp_path, wire) == ENTITY
    content_type = parse_entity(wire).content_type()
    if suite.opaque:
        assert content_type.media_type == "application/pkcs7-mime"
        assert content_type.parameters["smime-type"] == "signed-data"
    else:
        assert content_type.media_type == "multipart/signed"
        assert content_type.parameters["micalg"] == MICALG.get(kind, "sha-256")
        assert content_type.parameters["protocol"] == "application/pkcs7-signature"


@pytest.mark.parametrize("kind", KINDS)
def test_an_independent_parser_finds_the_attributes(kind: str) -> None:
    signer = anne(kind)
    data = signed_data(sign_content(ENTITY, signer, NOW))
    (info,) = data["signer_infos"]
    attributes = {one["type"].dotted: one["values"] for one in info["signed_attrs"]}
    assert set(attributes) == {
        oids.CONTENT_TYPE,
        oids.MESSAGE_DIGEST,
        oids.SIGNING_TIME,
        oids.SIGNING_CERTIFICATE_V2,
        oids.SMIME_CAPABILITIES,
        oids.ALGORITHM_PROTECTION,
    }
    name = MICALG.get(kind, "sha-256").replace("-", "")
    assert info["digest_algorithm"]["algorithm"].native == name
    assert [one["algorithm"].native for one in data["digest_algorithms"]] == [name]
    assert attributes[oids.MESSAGE_DIGEST][0].native == hashlib.new(name, ENTITY).digest()
    assert attributes[oids.SIGNING_TIME][0].native == NOW
    certificate = attributes[oids.SIGNING_CERTIFICATE_V2][0]["certs"][0]
    assert certificate["cert_hash"].native == identity(signer.certificate).sha256
    protection = attributes[oids.ALGORITHM_PROTECTION][0]
    assert protection["digest_algorithm"].dump() == info["digest_algorithm"].dump()
    assert protection["signature_algorithm"].native == info["signature_algorithm"].native
    assert data["encap_content_info"]["content"].native is None
    assert data.dump(force=True) == data.dump()


def test_ed25519_signs_the_attributes_themselves() -> None:
    (info,) = signed_data(sign_content(ENTITY, anne("ed25519"), NOW))["signer_infos"]
    assert info["signature_algorithm"].dump() == bytes.fromhex("300506032b6570")
    signed = b"\x31" + info["signed_attrs"].dump()[1:]
    anne("ed25519").certificate.public_key().verify(info["signature"].native, signed)


def test_pss_parameters_and_salt() -> None:
    (info,) = signed_data(sign_content(ENTITY, anne(), NOW, PSS))["signer_infos"]
    parameters = info["signature_algorithm"]["parameters"]
    assert parameters["hash_algorithm"]["algorithm"].native == "sha256"
    assert parameters["mask_gen_algorithm"]["parameters"]["algorithm"].native == "sha256"
    assert parameters["salt_length"].native == 32
    signed = b"\x31" + info["signed_attrs"].dump()[1:]
    scheme = padding.PSS(padding.MGF1(SHA256()), 32)
    anne().certificate.public_key().verify(info["signature"].native, signed, scheme, SHA256())


def test_the_chain_goes_along_once() -> None:
    signer = anne()
    chained = Person(signer.certificate, signer.key, (authority().certificate, signer.certificate))
    sent = signed_data(sign_content(ENTITY, chained, NOW))["certificates"]
    assert sorted(one.chosen.dump() for one in sent) == sorted(
        identity(one).encoded for one in (signer.certificate, authority().certificate)
    )


def test_signing_time_is_now_unless_told_and_generalized_from_2050() -> None:
    def time_of(at: datetime | None) -> object:
        (info,) = signed_data(sign_content(ENTITY, anne(), at))["signer_infos"]
        return next(one for one in info["signed_attrs"] if one["type"].dotted == oids.SIGNING_TIME)["values"][0]

    assert abs((time_of(None).native - datetime.now(UTC)).total_seconds()) < 60
    assert time_of(datetime(2049, 12, 31, tzinfo=UTC)).name == "utc_time"
    assert time_of(datetime(2050, 1, 1, tzinfo=UTC)).name == "generalized_time"


# --- Signers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Token(Person):
    """A signer whose key is somewhere else and does not always answer."""

    answer: Callable[[bytes], bytes] = field(default=lambda data: data)

    def sign(self, data, algorithm) -> bytes:
        return self.answer(super().sign(data, algorithm))

    def sign_pss(self, data, algorithm) -> bytes:
        return self.answer(super().sign_pss(data, algorithm))


def broken(signature: bytes) -> bytes:
    raise OSError("CKR_DEVICE_REMOVED on slot 7")


@pytest.mark.parametrize("suite", [DEFAULT_SUITE, OPAQUE, PSS])
@pytest.mark.parametrize("answer", [broken, lambda _: b"", lambda signature: signature[1:], lambda s: s + b"\0"])
def test_a_signer_that_fails_is_told_apart_from_a_bad_message(suite: Suite, answer) -> None:
    token = Token(anne().certificate, anne().key, (), answer)
    with pytest.raises(SignerFailedError) as raised:
        sign(ENTITY, token, NOW, suite)
    assert not isinstance(raised.value, ValueError)
    assert "slot" not in str(raised.value)


def test_keys_that_do_not_sign() -> None:
    for kind in ("p192", "x25519"):
        holder = person(ANNE, kind=kind, which=f"unfit {kind}")
        with pytest.raises(UnfitSignerError):
            sign(ENTITY, holder, NOW)


# --- Composition -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", [DEFAULT_SUITE, OPAQUE])
@pytest.mark.parametrize("inner", [DEFAULT_SUITE, OPAQUE])
def test_triple_wrap(tmp_path: Path, inner: Suite, outer: Suite) -> None:
    paul = person("paul@clinic.example")
    encrypted = encrypt(sign(ENTITY, anne(), NOW, inner), [paul.certificate])
    wire = sign(encrypted, anne("p384"), NOW, outer)
    certificate, key = paul.save(tmp_path, "paul")
    unwrapped = openssl_verified(tmp_path, wire)
    assert unwrapped == encrypted
    decrypted = openssl("cms", "-decrypt", "-recip", certificate, "-inkey", key, data=unwrapped).stdout
    assert openssl_verified(tmp_path, decrypted) == ENTITY
    result = open_message(message(wire), (paul,), validator(), NOW)
    assert bytes(result.content) == ENTITY
    assert result.verdict.signers[0].certificate == anne().certificate


def test_what_is_signed_already_is_not_touched() -> None:
    inner = sign(ENTITY, anne(), NOW).replace(b"This is", b"")
    odd = inner.replace(b"; micalg", b";\t micalg") + b"epilogue \r\n"
    for entity in (inner, odd):
        assert entity in sign(entity, anne("p256"), NOW)
    mixed = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\ntrailing \r\n--b\r\n" + odd + b"\r\n--b--\r\n"
    assert odd in robust(mixed)
    assert b"trailing=20\r\n" in robust(mixed)


# --- The road --------------------------------------------------------------------------------------------------------

AWKWARD = (
    b"From here on nothing was found.\r\n.\r\n..two dots\r\n.hidden\r\n- dash\r\n-- \r\nAnne\r\n\ttab\tand tab\r\n"
    b"blanks at the end   \r\ntab at the end\t\r\n \r\nFrom \r\n>From\r\nx = y\r\n" + b"long " * 150 + b"\r\nlast "
)
PLAIN = b"Content-Type: text/plain; charset=utf-8"
ENTITIES = {
    "plain": ENTITY,
    "awkward": PLAIN + b"\r\n\r\n" + AWKWARD,
    "awkward-start": b"\r\n" + AWKWARD,
    "eight-bit": PLAIN + b"\r\nContent-Transfer-Encoding: 8bit\r\n\r\nR\xc3\xa9sultat \xc3\xa0 lire \r\n.\xc3\xa9\r\n",
    "line-feeds": (PLAIN + b"\r\n\r\n" + AWKWARD).replace(b"\r\n", b"\n"),
    "folded": b"Content-Type: text/plain; \r\n\tcharset=utf-8\r\n\r\nx\r\n",
    "binary": b"Content-Type: application/pdf\r\nContent-Transfer-Encoding: binary\r\n\r\n%PDF-1.4\n\xff\0\r\n.\n",
    "xml": b"Content-Type: application/xml\r\n\r\n<a>\r\n\t<b/> \r\n</a>\r\n",
    "quoted": PLAIN + b"\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n.=C3=A9=20\r\nFrom =\r\n.x\r\n",
    "mixed": b"Content-Type: multipart/mixed;\r\n\tboundary=x\r\n\r\nFrom preamble \r\n--x \r\n"
    + PLAIN
    + b"\r\n\r\n"
    + AWKWARD
    + b"\r\n--x\r\nContent-Type: message/rfc822\r\n\r\nSubject: inner \r\n\r\nFrom inside \r\n--x--\r\nepilogue \r\n",
    "base64-line": b"Content-Type: application/pdf\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    + b"QUJD" * 5000
    + b"\r\n",
}


def eight_bit_hop(data: bytes) -> bytes:
    return data


def seven_bit_hop(data: bytes) -> bytes:
    """A relay without 8BITMIME (RFC 6152 §3): parts that are not 7-bit are re-encoded, else the octets are cut."""
    parsed = email.message_from_bytes(data, policy=email.policy.SMTP.clone(cte_type="7bit", refold_source="none"))
    return bytes(octet & 0x7F for octet in data if octet) if data.isascii() else parsed.as_bytes()


def mangling_hop(data: bytes) -> bytes:
    """What RFC 2049 §3 warns of: blanks stripped, tabs expanded, `From ` quoted, dots eaten, line ends of one's own."""
    lines = data.replace(b"\r\n", b"\n").split(b"\n")
    lines = [line.expandtabs(8).rstrip(b" ") for line in lines]
    lines = [b">" + line if line.startswith(b"From ") else line for line in lines]
    lines = [line[1:] if line.startswith(b".") else line for line in lines]
    lines = [line[start : start + 998] for line in lines for start in range(0, max(len(line), 1), 998)]
    return b"\r\n".join(lines)


class Hop:
    def __init__(self, change: Callable[[bytes], bytes]) -> None:
        self._change = change
        self.forwarded = b""

    async def handle_DATA(self, server, session, envelope) -> str:
        self.forwarded = self._change(envelope.content)
        return "250 OK"


@contextlib.contextmanager
def relay(change: Callable[[bytes], bytes]) -> Iterator[Callable[[bytes], bytes]]:
    """A real SMTP hop on a port of its own."""
    hop = Hop(change)
    controller = Controller(hop, hostname="127.0.0.1", port=free_port(), decode_data=False)
    controller.start()
    try:

        def through(data: bytes) -> bytes:
            with smtplib.SMTP(controller.hostname, controller.port) as client:
                client.sendmail(ANNE, ["paul@clinic.example"], data)
            return hop.forwarded

        yield through
    finally:
        controller.stop(no_assert=True)


HOPS = {
    "8-bit": [eight_bit_hop],
    "7-bit": [seven_bit_hop],
    "mangling": [mangling_hop],
    "all": [eight_bit_hop, mangling_hop, seven_bit_hop, mangling_hop],
}


@pytest.mark.parametrize("hops", HOPS)
def test_pitfall_18_a_signature_survives_the_road(tmp_path: Path, hops: str) -> None:
    with contextlib.ExitStack() as stack:
        relays = [stack.enter_context(relay(change)) for change in HOPS[hops]]
        for name, entity in ENTITIES.items():
            for suite in (DEFAULT_SUITE, OPAQUE):
                wire = message(sign(entity, anne(), NOW, suite))
                arrived = wire
                for through in relays:
                    arrived = through(arrived)
                verdict = verdict_of(arrived)
                assert verdict.signature is SignatureResult.VALID, (name, suite.opaque, verdict.signers)
                if name == "awkward":
                    openssl_verified(tmp_path, arrived)


@pytest.mark.parametrize("name", ENTITIES)
def test_pitfall_18_re_encoding_keeps_what_is_said(name: str) -> None:
    entity = ENTITIES[name]
    fit = robust(entity)
    assert is_robust(fit)
    before, after = (email.message_from_bytes(data, policy=email.policy.SMTP) for data in (crlf_text(name), fit))
    contents = [
        [part.get_payload(decode=True) for part in whole.walk() if not part.is_multipart()] for whole in (before, after)
    ]
    assert [one.removesuffix(b"\r\n") for one in contents[0]] == [one.removesuffix(b"\r\n") for one in contents[1]]
    types = [[part.get_content_type() for part in whole.walk()] for whole in (before, after)]
    assert types[0] == types[1]


def crlf_text(name: str) -> bytes:
    return crlf(ENTITIES[name]) if name == "line-feeds" else ENTITIES[name]


def test_opaque_content_stays_as_it_is_unless_its_line_ends_are_wrong() -> None:
    for name, entity in ENTITIES.items():
        result = open_message(message(sign(entity, anne(), NOW, OPAQUE)), (), validator(), NOW)
        if name in ("line-feeds", "binary"):
            assert bytes(result.content) == robust(entity)
        else:
            assert bytes(result.content) == entity


@pytest.mark.parametrize(
    "entity",
    [
        b"Content-Description: \xe9\r\n\r\nx",
        b"Content-Type: multipart/signed; boundary=x\r\n\r\n--x\r\n\r\n\xe9\r\n--x--\r\n",
        b"Content-Type: text/plain\r\n\r\n"
        + b"Content-Transfer-Encoding: x-unknown\r\n\r\n".join([b""] * 2)
        + b"\xe9\0",
    ],
)
def test_what_cannot_be_made_fit_is_refused_or_base64(entity: bytes) -> None:
    try:
        assert is_robust(robust(entity))
    except MimeError:
        assert not is_seven_bit(entity)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.sampled_from([b"From ", b".", b" ", b"\t", b"=", b"x" * 70, b"x" * 3, b"x", b"\xc3\xa9", b"\r\n", b"-"])
    )
)
def test_quoted_printable_is_robust_short_and_exact(pieces: list[bytes]) -> None:
    text = b"".join(pieces)
    encoded = quoted_printable(text)
    assert is_robust(encoded)
    assert max(map(len, encoded.split(b"\r\n"))) <= 76
    decoded = email.message_from_bytes(b"Content-Transfer-Encoding: quoted-printable\r\n\r\n" + encoded)
    assert decoded.get_payload(decode=True) == text


def naive(data: bytes) -> tuple[bool, bool]:
    """Seven-bit and robust as the definitions say, line by line."""
    lines = data.split(b"\r\n")
    seven = data.isascii() and b"\0" not in data and all(len(line) <= 998 for line in lines)
    seven = seven and not any(b"\r" in line or b"\n" in line for line in lines)
    risky = any(line.endswith(b" ") or b"\t" in line or line.startswith((b"From ", b".")) for line in lines)
    return seven, seven and not risky


PIECES = [b"x" * 76 + b"\r\n", b"x" * 998, b"From ", b".", b" ", b"\t", b"\r\n", b"\n", b"\r", b"word ", b"\0", b"\xe9"]
RUNS = st.tuples(st.sampled_from(PIECES), st.integers(1, 200))


@settings(max_examples=400, deadline=None)
@given(st.lists(RUNS, max_size=8))
def test_one_look_sees_what_a_look_at_each_line_sees(runs: list[tuple[bytes, int]]) -> None:
    data = b"".join(piece * count for piece, count in runs)
    assert (is_seven_bit(data), is_robust(data)) == naive(data)


@pytest.mark.parametrize("offset", [*range(4088, 4100), 8190, 8191, 8192, 8193])
@pytest.mark.parametrize("risk", [b" \r\n", b"\r\nFrom x", b"\r\n.x", b"\t", b"\n", b"\r"])
def test_risks_are_seen_wherever_they_are(offset: int, risk: bytes) -> None:
    line = b"x" * 60 + b"\r\n"
    data = (line * 300)[:offset]
    data = data.removesuffix(b"\r") + risk + b"x\r\n" + line * 200
    assert not is_robust(data)


@pytest.mark.parametrize(
    "size", [0, 1, 56, 57, 58, 3647, 3648, 3649, 58368, 58369, 100_000, 1 << 20, (1 << 20) + 1, 2_000_000]
)
def test_base64_is_that_of_the_standard_library(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    for kind in (bytes, bytearray):
        assert base64_lines(kind(data[:size])) == base64.encodebytes(data[:size]).replace(b"\n", b"\r\n")
