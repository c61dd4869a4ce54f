"""Pitfall 28: compressed data (RFC 3274) that is larger than it looks, and what zlib's streams hide."""

from __future__ import annotations

import tracemalloc
import zlib

import pytest

from smime import oids
from smime.cms_read import Compressed, read_cms
from smime.compressed import decompress
from smime.policy import ReadPolicy
from smime.verdict import Finding
from tests.smime.craft import content_info
from tests.smime.people import ENTITY, openssl
from trust import der
from trust.der import DerError, context


def compressed(stream: bytes, algorithm: str = oids.ZLIB_COMPRESS, chunk: int = 0) -> Compressed:
    octets = der.octet_string(stream)
    if chunk:
        pieces = [der.octet_string(stream[at : at + chunk]) for at in range(0, len(stream), chunk)]
        octets = b"".join((b"\x24\x80", *pieces, b"\0\0"))
    data = der.sequence(
        der.integer(0),
        der.sequence(der.oid(algorithm)),
        der.sequence(der.oid(oids.DATA), der.tlv(context(0), octets)),
    )
    cms = read_cms(content_info(oids.COMPRESSED_DATA, data))
    assert isinstance(cms, Compressed)
    return cms


@pytest.mark.parametrize("chunk", [0, 1, 7, 1000])
def test_what_was_compressed_comes_back(chunk: int) -> None:
    content = ENTITY + bytes(range(256)) * 30
    assert decompress(compressed(zlib.compress(content), chunk=chunk)) == content
    assert decompress(compressed(zlib.compress(b""))) == b""


def test_what_openssl_compresses_if_it_can() -> None:
    made = openssl("cms", "-compress", "-outform", "DER", "-binary", data=ENTITY, check=False)
    if made.returncode:
        pytest.skip("this openssl is built without zlib")
    cms = read_cms(made.stdout)
    assert isinstance(cms, Compressed)
    assert decompress(cms) == ENTITY


def test_pitfall_28_ratio() -> None:
    assert decompress(compressed(zlib.compress(bytes(1 << 20), 9))) == Finding("compression-limit", "ratio")
    generous = ReadPolicy(max_ratio=2000)
    assert decompress(compressed(zlib.compress(bytes(1 << 20), 9)), generous) == bytes(1 << 20)


def test_pitfall_28_size() -> None:
    narrow = ReadPolicy(max_decompressed_octets=10_000)
    stream = zlib.compress(bytes(range(100)) * 100)
    assert decompress(compressed(stream), narrow) == bytes(range(100)) * 100
    stream = zlib.compress(bytes(range(100)) * 100 + b"x")
    assert decompress(compressed(stream), narrow) == Finding("compression-limit", "size")


@pytest.mark.parametrize("chunk", [0, 100])
def test_pitfall_28_a_bomb_takes_no_memory(chunk: int) -> None:
    bomb = compressed(zlib.compress(bytes(64 << 20), 9), chunk=chunk)
    tracemalloc.start()
    try:
        assert decompress(bomb, ReadPolicy(max_decompressed_octets=1 << 20)) == Finding("compression-limit", "size")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"no zlib stream",
        zlib.compress(ENTITY)[:-1],
        zlib.compress(ENTITY)[:-4] + bytes(4),
        zlib.compress(ENTITY) + b"more",
        zlib.compress(ENTITY) * 2,
    ],
)
@pytest.mark.parametrize("chunk", [0, 8])
def test_malformed_streams_are_refused(stream: bytes, chunk: int) -> None:
    assert decompress(compressed(stream, chunk=chunk)) == Finding("malformed-compression")


def test_every_flipped_octet_of_a_stream_is_seen_or_harmless() -> None:
    stream = zlib.compress(ENTITY)
    for position in range(len(stream)):
        found = decompress(compressed(stream[:position] + bytes([stream[position] ^ 1]) + stream[position + 1 :]))
        assert isinstance(found, Finding) or found == ENTITY


def test_other_algorithms_and_missing_content() -> None:
    assert decompress(compressed(b"x", oids.SHA256)) == Finding("compression-algorithm", oids.SHA256)
    data = der.sequence(der.integer(0), der.sequence(der.oid(oids.ZLIB_COMPRESS)), der.sequence(der.oid(oids.DATA)))
    with pytest.raises(DerError):
        read_cms(content_info(oids.COMPRESSED_DATA, data))
