"""How much compressed octets expand to, found out without ever holding more than a piece of them: entries of zip
archives, and files in gzip, bzip2 or xz. What bounds it comes from whoever asks (`bridges.screening`)."""

from __future__ import annotations

import bz2
import lzma
import struct
import zipfile
import zlib
from typing import Any

from smime.mime import Buffer

_BLOCK = 65536
_MAX_MEMBERS = 10_000
"""Of one compressed file that are counted."""
_XZ_MEMORY = 128 * 1024 * 1024
"""Octets an xz file may make its reader allocate; none of the usual presets needs more."""


def expanded_stream(data: Buffer, kind: str, most: int) -> int:
    """How many octets a compressed file has, counted up to just beyond `most`; a damaged one, up to the damage. Members
    behind the first count too, as programs go on reading."""
    view = memoryview(data)
    expanded, position, rest = 0, 0, b""
    try:
        for _ in range(_MAX_MEMBERS):
            inflater = _inflater(kind)
            while not inflater.eof and expanded <= most:
                if not rest and getattr(inflater, "needs_input", True):
                    if position >= len(view):
                        return expanded
                    rest, position = bytes(view[position : position + _BLOCK]), position + _BLOCK
                expanded += len(inflater.decompress(rest, 16 * _BLOCK))
                rest = getattr(inflater, "unconsumed_tail", b"")
            rest = inflater.unused_data
            if expanded > most or not (rest or position < len(view)):
                break
    except (zlib.error, OSError, lzma.LZMAError, EOFError):
        pass
    return expanded


def _inflater(kind: str) -> Any:
    if kind == "gzip":
        return zlib.decompressobj(zlib.MAX_WBITS | 16)
    return bz2.BZ2Decompressor() if kind == "bzip2" else lzma.LZMADecompressor(memlimit=_XZ_MEMORY)


def expanded_entry(data: bytes, entry: zipfile.ZipInfo, *, whole: bool) -> tuple[bytes, bool] | None:
    """The first octets of an entry, or all of them, and whether it is what the directory says of it; None when its
    compression is not one we can bound.

    `zipfile` itself would stop at the announced size, and look at the directory only; other programs go on, or believe
    the entry's own header. Raises `zipfile.BadZipFile`, `zlib.error`.
    """
    header = data[entry.header_offset : entry.header_offset + 30]
    if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
        raise zipfile.BadZipFile("local header")
    (method,) = struct.unpack("<H", header[8:10])
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    begin = entry.header_offset + 30
    name = entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437")
    if data[begin : begin + name_length] != name or method != entry.compress_type:
        return b"", False
    begin += name_length + extra_length
    stored = memoryview(data)[begin : begin + entry.compress_size]
    if entry.compress_type == zipfile.ZIP_STORED:
        return bytes(stored if whole else stored[:8]), True
    if entry.compress_type != zipfile.ZIP_DEFLATED:
        return None
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    content, expanded, position, rest = bytearray(), 0, 0, b""
    while not inflater.eof and (rest or position < len(stored)):
        if not rest:
            rest, position = bytes(stored[position : position + _BLOCK]), position + _BLOCK
        piece = inflater.decompress(rest, 16 * _BLOCK)
        rest = inflater.unconsumed_tail
        expanded += len(piece)
        if expanded > entry.file_size:
            return b"", False
        if whole or not content:
            content += piece if whole else piece[:8]
    return bytes(content), inflater.eof or not stored  # some write folders as deflated, without any octet
