"""Pitfall 27: the shapes attackers give to CMS structures cost linear time and little memory, or nothing at all.

Memory is what Python and `cryptography` take from Python's allocators beyond the input itself.
"""

from __future__ import annotations

import gc
import os
import time
import tracemalloc
from collections.abc import Callable

import pytest

from smime import oids
from smime.cms_read import Enveloped, Signed, read_cms
from smime.decrypting import decrypt_content
from tests.smime.craft import SHA256, attribute, content_info, content_type, enveloped, message_digest, signed_data
from tests.smime.people import ENTITY, person
from trust import der
from trust.der import DerError, context

ANNE, PAUL = person("anne@lab.example"), person("paul@clinic.example")
EOC = b"\0\0"


def parts(cms: bytes) -> tuple[bytes, list[bytes], list[bytes]]:
    """Content type, the fields of the content, and those of its EncryptedContentInfo."""
    kind, wrapper = der.read(cms).sequence()
    fields = wrapper.explicit().sequence()
    return (
        bytes(kind.encoded),
        [bytes(each.encoded) for each in fields],
        [bytes(e.content) for e in fields[2].sequence()],
    )


def rechunked(cms: bytes, octets: bytes) -> bytes:
    """An (Auth)EnvelopedData in indefinite lengths whose encrypted content is made of these TLVs."""
    kind, fields, info = parts(cms)
    inner = (b"\x30\x80", der.tlv(der.OID, info[0]), der.tlv(der.SEQUENCE, info[1]), b"\xa0\x80", octets, EOC + EOC)
    return b"".join((b"\x30\x80", kind, b"\xa0\x80\x30\x80", *fields[:2], *inner, *fields[3:], EOC * 3))


def ciphertext(cms: bytes) -> bytes:
    return parts(cms)[2][2]


def chunks(octets: bytes, size: int, form: Callable[[bytes], bytes] = der.octet_string) -> bytes:
    return b"".join([form(octets[at : at + size]) for at in range(0, len(octets), size)])


def long_form(octets: bytes) -> bytes:
    return b"\x04\x84" + len(octets).to_bytes(4, "big") + octets


def nested(octets: bytes) -> bytes:
    """Chunks of chunks, definite in indefinite in definite."""
    half = len(octets) // 2
    first, second = der.octet_string(octets[:half]), long_form(octets[half:])
    return der.tlv(0x24, b"\x24\x80" + first + EOC, b"\x24\x80" + der.tlv(0x24, second) + b"\x04\x00" + EOC)


def opened(cms: bytes, **options) -> bytes:
    read = read_cms(cms)
    assert isinstance(read, Enveloped)
    return bytes(decrypt_content(read, [PAUL], **options).content)


@pytest.mark.parametrize("size", [16, 17, 100, 127, 128, 129, 1000, 4096, 65535, 65536, 70000, 200_000])
@pytest.mark.parametrize("form", [der.octet_string, long_form, nested])
@pytest.mark.parametrize("kind", ["gcm", "cbc"])
def test_chunks_of_any_size_and_form(size: int, form: Callable[[bytes], bytes], kind: str) -> None:
    content = os.urandom(150_001)
    options = {"cipher": oids.AES256_CBC, "outer": oids.ENVELOPED_DATA} if kind == "cbc" else {}
    cms = enveloped(content, PAUL, **options)
    size = size if form is not nested else size * 5  # it has five headers to a chunk
    assert opened(rechunked(cms, chunks(ciphertext(cms), size, form))) == content


def test_chunks_of_growing_sizes_and_empty_ones_between() -> None:
    content = os.urandom(300_000)
    cms = enveloped(content, PAUL)
    octets, position, pieces = ciphertext(cms), 0, []
    for size in [*range(600), 40, 40, 40, *[33] * 200, 0, 0, *[33] * 20, len(content)]:
        pieces.append(der.octet_string(octets[position : position + size]))
        position += size
    assert opened(rechunked(cms, b"".join(pieces))) == content


def test_wrong_chunks_among_many_alike_are_seen() -> None:
    content = bytes(60_000)
    cms = enveloped(content, PAUL)
    good = chunks(ciphertext(cms), 30)
    for position in (0, 64 * 32, 64 * 32 + 32 * 5, len(good) - 32):
        for change in (b"\x05", b"\x02", b"\x04\x1f", b"\x04\x80", b"\x04\x89", b"\x24\x1e", b"\x1f"):
            bad = good[:position] + change + good[position + len(change) :]
            with pytest.raises(DerError):
                read_cms(rechunked(cms, bad))


@pytest.mark.parametrize("size", [1, 40, 1000])
def test_signed_content_in_chunks(size: int) -> None:
    content = ENTITY * 30
    whole = signed_data(content, ANNE, attached=content)
    cms = whole.replace(
        der.tlv(context(0), der.octet_string(content)), der.tlv(context(0), der.tlv(0x24, chunks(content, size)))
    )
    fields = der.read(whole).sequence()[1].explicit().sequence()
    encapsulated = b"\x30\x80" + der.oid(oids.DATA) + b"\xa0\x80\x24\x80" + chunks(content, size) + EOC * 3
    cms = content_info(
        oids.SIGNED_DATA,
        b"".join((b"\x30\x80", *(bytes(f.encoded) for f in fields[:2]), encapsulated))
        + b"".join((*(bytes(f.encoded) for f in fields[3:]), EOC)),
    )
    read = read_cms(cms)
    assert isinstance(read, Signed)
    assert read.content is not None
    assert (len(read.content), bytes(read.content), bytes(read.content.whole())) == (len(content), content, content)


# --- Cost ------------------------------------------------------------------------------------------------------------


def cost(data: bytes) -> tuple[float, int]:
    """Processor seconds and octets of memory that reading takes, whatever comes of it."""

    def attempt() -> None:
        try:
            cms = read_cms(data)
            if isinstance(cms, Signed) and cms.content is not None:
                assert sum(map(len, cms.content)) == len(cms.content)
        except DerError:
            pass

    gc.disable()
    try:
        seconds = []
        for _ in range(2):
            started = time.process_time()
            attempt()
            seconds.append(time.process_time() - started)
        tracemalloc.start()
        attempt()
        return min(seconds), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        gc.enable()


CMS = enveloped(ENTITY, PAUL)
KIND, FIELDS, _ = parts(CMS)
INFO = der.read(FIELDS[1]).set()[0].encoded


def opaque(octets: bytes) -> bytes:
    inner = (b"\x30\x80", der.oid(oids.DATA), b"\xa0\x80", octets, EOC * 2)
    return (
        b"".join(
            (b"\x30\x80", der.oid(oids.SIGNED_DATA), b"\xa0\x80\x30\x80", der.integer(1), der.set_of([SHA256]), *inner)
        )
        + der.tlv(der.SET)
        + EOC * 3
    )


def _attributes(count: int) -> bytes:
    extra = [attribute(oids.SIGNING_TIME, der.integer(number)) for number in range(count)]
    return signed_data(ENTITY, ANNE, attributes=(content_type(), message_digest(ENTITY), *extra))


def _certificates(count: int) -> bytes:
    fields = [bytes(f.encoded) for f in der.read(signed_data(ENTITY, ANNE)).sequence()[1].explicit().sequence()]
    return content_info(
        oids.SIGNED_DATA, der.sequence(*fields[:3], der.tlv(context(0), b"\x30\x03\x02\x01\x05" * count), fields[4])
    )


def _big_value(tag: int, count: int) -> bytes:
    return content_info(oids.SIGNED_DATA, der.sequence(der.tlv(tag, b"\x7f" * count), der.tlv(der.SET)))


SHAPES: dict[str, Callable[[int], bytes]] = {
    "1-octet chunks": lambda n: opaque(b"\x24\x80" + b"\x04\x01x" * n + EOC),
    "1-octet chunks, definite": lambda n: opaque(der.tlv(0x24, b"\x04\x01x" * n)),
    "1-octet chunks, encrypted": lambda n: rechunked(CMS, b"\x04\x01x" * n),
    "chunks of two sizes": lambda n: rechunked(CMS, (b"\x04\x01x" + b"\x04\x02xx") * n),
    "empty chunks": lambda n: rechunked(CMS, b"\x04\x00" * n),
    "16-octet chunks": lambda n: rechunked(CMS, (b"\x04\x10" + b"x" * 16) * n),
    "16 and 17-octet chunks": lambda n: rechunked(CMS, (b"\x04\x10" + b"x" * 16 + b"\x04\x11" + b"x" * 17) * (n // 5)),
    "chunks in chunks": lambda n: rechunked(CMS, b"\x24\x80\x04\x01x\0\0" * n),
    "chunks in definite chunks": lambda n: rechunked(CMS, b"\x24\x03\x04\x01x" * n),
    "depth, indefinite": lambda n: b"\x30\x80" * n,
    "depth, chunks": lambda n: rechunked(CMS, b"\x24\x80" * n + EOC * n),
    "no end of contents": lambda n: b"\x30\x80" + b"\x05\x00" * n,
    "lengths of eight octets": lambda n: rechunked(CMS, b"\x04\x88\0\0\0\0\0\0\0\0" * n),
    "recipients": lambda n: content_info(
        oids.AUTH_ENVELOPED_DATA, der.sequence(FIELDS[0], der.tlv(der.SET, bytes(INFO) * n), *FIELDS[2:])
    ),
    "recipients of nothing": lambda n: content_info(
        oids.AUTH_ENVELOPED_DATA, der.sequence(FIELDS[0], der.tlv(der.SET, b"\xa2\x00" * n), *FIELDS[2:])
    ),
    "attributes": _attributes,
    "certificates": _certificates,
    "digests": lambda n: signed_data(ENTITY, ANNE, digests=[SHA256] * n),
    "signers": lambda n: signed_data(ENTITY, ANNE, signers=n // 50),
    "huge integer": lambda n: _big_value(der.INTEGER, n),
    "huge identifier": lambda n: _big_value(der.OID, n),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_pitfall_27_hostile_shapes_cost_little(shape: str) -> None:
    small, large = SHAPES[shape](10_000), SHAPES[shape](100_000)
    _, memory = cost(large)
    assert memory < 3 * len(large) + (4 << 20)
    before, after = cost(small)[0], cost(large)[0]
    assert after < 12 * 3 * before + 0.05


@pytest.mark.parametrize("shape", ["1-octet chunks", "empty chunks", "depth, chunks", "recipients", "chunks in chunks"])
def test_pitfall_27_refused_before_most_of_it_is_looked_at(shape: str) -> None:
    with pytest.raises(DerError):
        read_cms(SHAPES[shape](400_000 if shape != "recipients" else 100_000))


def test_pitfall_27_length_bombs_allocate_nothing() -> None:
    for length in (b"\x84\xff\xff\xff\xff", b"\x88\x7f" + b"\xff" * 7, b"\x87" + b"\xff" * 7):
        for data in (b"\x30" + length, opaque(b"\x04" + length + b"x"), rechunked(CMS, b"\x04" + length + b"x" * 50)):
            _, memory = cost(data)
            assert memory < 1 << 16
            with pytest.raises(DerError):
                read_cms(data)


def test_forty_megabytes_in_small_chunks() -> None:
    content = os.urandom(1 << 20) * 40
    cms = enveloped(content, PAUL)
    wire = rechunked(cms, chunks(ciphertext(cms), 1000))
    del cms
    best = 9.0
    for _ in range(3):
        started = time.process_time()
        opened_content = opened(wire)
        best = min(best, time.process_time() - started)
    assert opened_content == content
    del opened_content
    read = read_cms(wire)
    tracemalloc.start()
    try:
        assert len(decrypt_content(read, [PAUL]).content) == len(content)
        memory = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert memory < 1.5 * len(wire)
    assert best < 1.0  # 0.05 s on an idle machine; the bar of 0.5 s is `relais bench smime`'s to check
