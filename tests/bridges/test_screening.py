"""Mails that would hurt whoever opens them, and those that must not be touched."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import lzma
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridges import refusals, screening_refusals, xdm_refusals
from bridges.report import Action, PatientIdentity
from bridges.screening import MAIL_CONTENT, ScreenLimits, ScreenStage, screen
from bridges.screening_refusals import ARCHIVE_REFUSED
from bridges.xdm import write_xdm
from mta.message import Message, Origin, Phase
from tests.support.reports import PATIENT as WRITTEN
from tests.support.reports import auto_presentable, cda
from trust.refusals import Refusal, Refused

from .fictitious import PATIENT, document, report
from .test_compose import composed
from .test_xdm import AT, described, zipped

LIMITS = ScreenLimits()
OTHER = replace(WRITTEN, matricule="190026001234547", local_id="IPP999")
DOCTYPE = b'<?xml version="1.0"?>\n<!-- a --><!DOCTYPE r [<!ENTITY a "aaaa">]>\n<r>&a;</r>'


def part(content: bytes, kind: str = "application/octet-stream", name: str = "") -> bytes:
    named = f'; name="{name}"' if name else ""
    head = f"Content-Type: {kind}{named}\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    return head.encode() + base64.encodebytes(content).replace(b"\n", b"\r\n")


def multipart(*parts: bytes, kind: str = "mixed", boundary: str = "b", closed: bool = True) -> bytes:
    head = f'Content-Type: multipart/{kind}; boundary="{boundary}"\r\n\r\n'.encode()
    delimiter = f"--{boundary}\r\n".encode()
    body = b"".join(delimiter + one + b"\r\n" for one in parts)
    return head + body + (f"--{boundary}--\r\n".encode() if closed else b"")


def mail(*parts: bytes, **options: object) -> bytes:
    return b"From: a@b.example\r\nMIME-Version: 1.0\r\n" + multipart(*parts, **options)  # type: ignore[arg-type]


def archive_mail(data: bytes, name: str = "a.zip") -> bytes:
    return mail(b"\r\nbonjour", part(data, "application/zip", name))


def facts(content: bytes, limits: ScreenLimits = LIMITS) -> dict[str, str]:
    found = screen(content, limits)
    assert not isinstance(found, Refused), found
    return found


def refusal(content: bytes, limits: ScreenLimits = LIMITS) -> tuple[Refusal, str]:
    found = screen(content, limits)
    assert isinstance(found, Refused), found
    return found.refusal, found.detail


def message(content: bytes) -> Message:
    return Message("<m@x>", "s", "d", Origin.OPERATOR, "a@b.example", "c@d.example", content, MAIL_CONTENT, 0.0)


async def test_a_composed_report_passes_untouched() -> None:
    content = composed(report(document(content=cda(), pdf=None)))
    given_message = message(content)
    assert await ScreenStage().apply(given_message, Phase.SCREEN) is given_message


async def test_only_mail_in_its_phase_is_looked_at() -> None:
    bad = message(archive_mail(zipped({"a.zip": b"x"})))
    stage = ScreenStage()
    for phase in (Phase.ENRICH, Phase.PROTECT, Phase.OPEN):
        assert await stage.apply(bad, phase) is bad
    hl7 = replace(bad, content_type="application/hl7-v2")
    assert await stage.apply(hl7, Phase.SCREEN) is hl7
    refused = await stage.apply(bad, Phase.SCREEN)
    assert isinstance(refused, Refused)
    assert refused.reply.startswith("554 5.7.0 An attached archive could harm")


async def test_what_is_not_readable_passes_with_a_fact() -> None:
    content = mail(b"\r\nx", part(b"PK\x03\x04 cut", "application/zip", "a.zip"))
    passed = await ScreenStage().apply(message(content), Phase.SCREEN)
    assert isinstance(passed, Message)
    assert (passed.content, passed.facts) == (content, {"warning.screen-archive": "2"})


# Archives


def bomb(level: int) -> bytes:
    """42.zip in small: archives of archives of zeros."""
    inner = bytes(10_000_000) if level == 0 else bomb(level - 1)
    return zipped({f"{n}{'.zip' if level else '.dll'}": inner for n in range(16)})


def understated(size: int) -> bytes:
    """An archive whose one entry expands to ten million octets and says `size`, with and in its local header."""
    data = bytearray(zipped({"a.txt": bytes(10_000_000)}))
    for magic, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        at = data.find(magic) + offset
        data[at : at + 4] = size.to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (bomb(1), "nested archive"),
        (bomb(0), "compression ratio"),
        (zipped({"a.txt": bytes(5_000_000)}), "compression ratio"),
        (understated(100), "untrue sizes or names"),
        (understated(900_000), "untrue sizes or names"),
        (zipped({f"{n}.txt": b"x" for n in range(501)}), "entries"),
        (zipped({"../a.txt": b"x"}), "name or link"),
        (zipped({"x/..\\..\\a.txt": b"x"}), "name or link"),
        (zipped({"/etc/a": b"x"}), "name or link"),
        (zipped({"C:a": b"x"}), "name or link"),
        (zipped({"a": b"/etc/passwd"}, external_attr=0o120777 << 16), "name or link"),
        (zipped({"a.zip": b"x"}), "nested archive"),
        (zipped({"harmless.txt": zipped({"a": b"x"})}), "nested archive"),
        (zipped({"a.tar.gz": b"x"}), "nested archive"),
    ],
)
@pytest.mark.parametrize("name", ["a.zip", "IHE_XDM.zip", "sans-suffixe", "x.pdf"])
def test_harmful_archives_are_refused(data: bytes, why: str, name: str) -> None:
    assert refusal(archive_mail(data, name)) == (ARCHIVE_REFUSED, f"part 2: {why}")
    assert refusal(mail(part(data, "text/plain", "cr.zip"))) == (ARCHIVE_REFUSED, f"part 1: {why}")


def rewritten(data: bytes, old: bytes, new: bytes) -> bytes:
    """With the first occurrence, that of the local header, replaced."""
    assert len(old) == len(new) and data.count(old) >= 2
    return data.replace(old, new, 1)


def overlapping(entries: int, kernel: bytes, file_size: int) -> bytes:
    """Many directory entries over the same compressed octets (Fifield, "A better zip bomb", 2019)."""
    lengths = struct.pack("<LLL", 0, len(kernel), file_size)
    local = b"PK\x03\x04" + struct.pack("<HHHHH", 20, 0, 8, 0, 0) + lengths + struct.pack("<HH", 1, 0) + b"a" + kernel
    directory = b"".join(
        b"PK\x01\x02"
        + struct.pack("<HHHHHH", 20, 20, 0, 8, 0, 0)
        + lengths
        + struct.pack("<HHHHHLL", 6, 0, 0, 0, 0, 0, 0)
        + b"%06d" % number
        for number in range(entries)
    )
    end = struct.pack("<HHHHLLH", 0, 0, entries, entries, len(directory), len(local), 0)
    return local + directory + b"PK\x05\x06" + end


def twice(first: str, second: str) -> bytes:
    return zipped({first: b"x", second: b"y"})


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (overlapping(300, b"\0\0\0\xff\xff" * 400_000 + b"\1\0\0\xff\xff", 0), "overlapping entries"),
        (overlapping(300, zlib.compress(bytes(100_000), wbits=-15), 100_000), "overlapping entries"),
        (twice("Compte rendu.pdf", "compte RENDU.pdf"), "two entries of one name"),
        (rewritten(zipped({"abcdef.txt": b"x"}), b"abcdef.txt", b"../../.txt"), "untrue sizes or names"),
        (rewritten(zipped({"a.txt": b"x"}), b"\x08\0", b"\0\0"), "untrue sizes or names"),
        (zipped({"lettre.docx": zipped({"document.xml": bytes(210_000_000)})}), "expanded size"),
        (zipped({"lettre.docx": zipped({"../document.xml": b"x"})}), "name or link"),
    ],
)
def test_archives_that_show_different_things_to_different_programs_are_refused(data: bytes, why: str) -> None:
    started = time.monotonic()
    assert refusal(archive_mail(data)) == (ARCHIVE_REFUSED, f"part 2: {why}")
    assert time.monotonic() - started < 2


def test_a_large_document_says_its_sizes_in_64_bits() -> None:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("é.txt", "w", force_zip64=True) as one,
    ):
        one.write("à lire".encode())
    assert facts(archive_mail(buffer.getvalue())) == {}


def test_honest_peculiarities_are_no_harm() -> None:
    """A name marked as UTF-8 in the directory alone, a folder that is deflated to nothing."""
    data = bytearray(zipped({"é.txt": b"x"}))
    data[data.find(b"PK\x03\x04") + 7] &= ~0x08
    assert facts(archive_mail(bytes(data))) == {}
    data = bytearray(zipped({"dossier/": b"", "dossier/a.txt": b"x"}))
    for magic, method, size in ((b"PK\x01\x02", 10, 20), (b"PK\x03\x04", 8, 18)):
        at = data.find(magic)
        data[at + method : at + method + 2] = b"\x08\0"
        data[at + size : at + size + 4] = bytes(4)
    assert facts(archive_mail(bytes(data))) == {}


def test_a_document_is_one_whatever_its_type_says() -> None:
    office = zipped({"document.xml": bytes(210_000_000)})
    assert refusal(mail(part(office, "text/plain", "lettre.docx"))) == (ARCHIVE_REFUSED, "part 1: expanded size")
    assert facts(mail(part(b'<?xml version="1.0"?><!DOCTYPE html><html/>', "text/html"))) == {}


def test_a_header_without_end_costs_little() -> None:
    for xml in (b"<a/>" * 3_000_000, b"<a " + b" ".join(b"b%d=''" % number for number in range(500_000)) + b"/>"):
        assert facts(mail(part(b"<?xml version='1.0'?><r>" + xml + b"</r>", "text/xml"))) == {"warning.screen-xml": "1"}


def test_a_locked_archive_is_refused() -> None:
    data = bytearray(zipped({"a.txt": b"x"}))
    for magic, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        data[data.find(magic) + offset] |= 1
    assert refusal(archive_mail(bytes(data))) == (ARCHIVE_REFUSED, "part 2: encrypted")


def test_all_archives_of_a_mail_share_one_budget() -> None:
    one = zipped({"a.txt": bytes(900_000)})
    limits = replace(LIMITS, expanded_bytes=2_000_000)
    assert facts(mail(*[part(one, name="a.zip")] * 2), limits) == {}
    assert refusal(mail(*[part(one, name="a.zip")] * 3), limits) == (ARCHIVE_REFUSED, "part 3: expanded size")


def test_office_documents_are_no_archives_to_people() -> None:
    inner = zipped({"xl/a.xml": b"x"})
    office = zipped({"[Content_Types].xml": bytes(3_000_000), "word/embeddings/a.xlsx": inner, "x.zip": b"y"})
    assert facts(archive_mail(office, "lettre.docx")) == {}
    assert facts(archive_mail(zipped({"lettre.docx": office, "photo.jpg": b"\xff\xd8"}))) == {}
    assert refusal(archive_mail(office, "lettre.zip"))[0] is ARCHIVE_REFUSED
    assert refusal(archive_mail(zipped({"../x": b""}), "lettre.docx"))[0] is ARCHIVE_REFUSED


@pytest.mark.parametrize(
    "content", [b"Rar!\x1a\x07\x00", b"7z\xbc\xaf'\x1c", b"\x1f\x8b\x08", b"PK\x05\x06", b"PK\x03\x04"]
)
def test_archives_nobody_can_look_into_are_told(content: bytes) -> None:
    assert facts(archive_mail(content, "a.bin")) == {"warning.screen-archive": "2"}


def test_compression_that_cannot_be_bounded_is_told() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.txt", b"x" * 1000)
    assert facts(archive_mail(buffer.getvalue())) == {"warning.screen-archive": "2"}


def test_an_xdm_archive_is_read_as_one() -> None:
    broken = zipped({"IHE_XDM/SUBSET01/METADATA.XML": b"<a>"})
    assert facts(archive_mail(broken, "IHE_XDM.ZIP")) == {"warning.screen-xdm": "2"}
    doctype = zipped({"IHE_XDM/SUBSET01/METADATA.XML": DOCTYPE})
    assert refusal(archive_mail(doctype, "IHE_XDM.zip")) == (xdm_refusals.XDM_METADATA, "part 2: DOCTYPE")
    twice = zipped({"IHE_XDM/METADATA.XML": b"x", "ihe_xdm/metadata.xml": b"y"})
    assert refusal(archive_mail(twice, "IHE_XDM.zip"))[0] is ARCHIVE_REFUSED
    inside = zipped({"S/METADATA.XML": described("A.XML", DOCTYPE), "S/A.XML": DOCTYPE})
    assert refusal(archive_mail(inside, "IHE_XDM.zip"))[0] is refusals.DOCUMENT_DTD


# XML


@pytest.mark.parametrize(
    "xml",
    [
        DOCTYPE,
        b"\xef\xbb\xbf" + DOCTYPE,
        b"\r\n \t" + DOCTYPE.partition(b"\n")[2],
        DOCTYPE.decode().replace('"1.0"', '"1.0" encoding="utf-16"').encode("utf-16"),
        DOCTYPE.decode().encode("utf-16-be"),
        DOCTYPE.decode().encode("utf-32-le"),
        b'<?xml version="1.0"?><?pi <r> ?><!-- <r> --><!DOCTYPE r SYSTEM "file:///etc/passwd"><r/>',
    ],
)
def test_a_doctype_is_refused(xml: bytes) -> None:
    for one in (
        part(xml, "text/xml"),
        part(xml, "application/octet-stream", "cr.XML"),
        part(xml, "text/plain", "a.xml"),
    ):
        assert refusal(mail(b"\r\nx", one)) == (refusals.DOCUMENT_DTD, "part 2")
    if b"xml" in xml.replace(b"\0", b"")[:12]:
        assert refusal(mail(part(xml, "application/pdf")))[0] is refusals.DOCUMENT_DTD


@pytest.mark.parametrize(
    "xml", [b"<r><![CDATA[<!DOCTYPE r>]]></r>", b"<r><!-- <!DOCTYPE r> --></r>", b"<!-- <!DOCTYPE r> --><r/>"]
)
def test_a_doctype_elsewhere_is_text(xml: bytes) -> None:
    assert facts(mail(part(xml, "text/xml"))) == {}


def test_drawings_and_pages_keep_their_doctype() -> None:
    page = b"<!DOCTYPE html><html/>"
    assert facts(mail(part(DOCTYPE, "image/svg+xml", "logo.svg"), part(page, "text/html", "a.html"), part(page))) == {}


@pytest.mark.parametrize("xml", [b"", b"x", b"<?xml", b"<!-- ", b"<a><b></a>", b"+ADw-!DOCTYPE r+AD4-"])
def test_xml_that_is_none_is_told(xml: bytes) -> None:
    assert facts(mail(part(xml, "text/xml"))) == {"warning.screen-xml": "1"}


def test_xml_beyond_the_size_is_refused() -> None:
    assert (
        refusal(mail(part(b"<r/>" * 100, "text/xml")), replace(LIMITS, xml_bytes=100))[0] is refusals.DOCUMENT_TOO_LARGE
    )


# Patients


def xdm(*patients: PatientIdentity) -> list[bytes]:
    return [
        write_xdm(
            report(document(patient=p), patient=p), at=AT, source_id="1.2.3", submission_id="1.2", action=Action.NEW
        )
        for p in patients
    ]


def test_two_patients_are_refused_wherever_they_are_named() -> None:
    one, two = cda(), cda(patient=OTHER)
    expected = (refusals.PATIENT_SEVERAL, "")
    assert refusal(mail(part(one, "text/xml"), part(two, "text/xml"))) == expected
    forwarded = b"Content-Type: message/rfc822\r\n\r\n" + mail(part(two, "text/xml"), boundary="c")
    assert refusal(mail(part(one, name="a.xml"), forwarded)) == expected
    assert refusal(mail(part(auto_presentable(one), name="a.xml"), part(two, name="b.xml"))) == expected
    other = replace(PATIENT, matricule="190026001234547", local_ids=())
    first, second = xdm(PATIENT, other)
    assert facts(mail(part(first, name="IHE_XDM.zip"), part(first, name="IHE_XDM.zip"))) == {}
    assert refusal(mail(part(first, name="IHE_XDM.zip"), part(second, name="IHE_XDM.zip"))) == expected


def test_only_comparable_identities_tell_patients_apart() -> None:
    one = cda()
    short = cda(patient=replace(WRITTEN, matricule=WRITTEN.matricule[:13]))
    renumbered = cda(patient=replace(WRITTEN, local_id="IPP-after-a-merger"))
    assert facts(mail(*(part(each, "text/xml") for each in (one, one, short, renumbered)))) == {}
    elsewhere = one.replace(WRITTEN.oid.encode(), b"1.2.9").replace(b"1.2.250.1.999.2.1", b"1.2.8")
    assert facts(mail(part(one, "text/xml"), part(elsewhere, "text/xml"))) == {}


def test_two_record_targets_in_one_document() -> None:
    one, two = cda().decode(), cda(patient=OTHER).decode()
    target = two[two.index("<recordTarget>") : two.index("</recordTarget>") + 15]
    assert refusal(mail(part(one.replace("<author>", target + "<author>", 1).encode(), "text/xml")))[0] is (
        refusals.PATIENT_SEVERAL
    )


# MIME


def test_signed_parts_and_nested_ones_are_seen() -> None:
    bad = part(zipped({"a.zip": b"x"}), name="a.zip")
    signed = mail(multipart(b"\r\nx", bad, boundary="c"), part(b"sig", "application/pkcs7-signature"), kind="signed")
    assert refusal(signed) == (ARCHIVE_REFUSED, "part 1.2: nested archive")


@pytest.mark.parametrize("kind", ["message/rfc822", "message/global"])
@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
def test_an_encoded_message_inside_is_opened_as_its_reader_would(kind: str, line_end: bytes) -> None:
    inside = mail(part(zipped({"a.zip": b"x"}), name="a.zip"), boundary="c").replace(b"\r\n", line_end)
    assert refusal(mail(part(inside, kind))) == (ARCHIVE_REFUSED, "part 1.1.1: nested archive")
    twice = mail(part(mail(part(inside, kind), boundary="d"), kind))
    assert refusal(twice) == (ARCHIVE_REFUSED, "part 1.1.1.1.1: nested archive")
    unclear = part(inside, kind).replace(b"base64", b"7bit\r\nContent-Transfer-Encoding: 8bit", 1)
    assert facts(mail(unclear)) == {"warning.screen-mime": "1, 1.1"}


def test_what_stays_protected_is_told() -> None:
    assert facts(mail(part(b"0\x80", "application/pkcs7-mime", "smime.p7m"))) == {"warning.screen-protected": "1"}


@pytest.mark.parametrize(
    "content",
    [
        mail(b"\r\nx", part(zipped({"a.zip": b"x"})), closed=False),
        mail(b"\r\nx", part(zipped({"a.zip": b"x"}))).replace(b"--b\r\n", b"--b\n"),
        mail(b"\r\nx", part(zipped({"a.zip": b"x"}))).replace(
            b"MIME-Version: 1.0", b"Content-Transfer-Encoding: base64"
        ),
    ],
)
def test_crooked_multiparts_are_read_as_a_lenient_client_would(content: bytes) -> None:
    assert refusal(content)[0] is ARCHIVE_REFUSED


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"no header at all\r\n\r\nx", {"warning.screen-mime": "message"}),
        (b"Content-Type: multipart/mixed\r\n\r\nx", {"warning.screen-mime": "message"}),
        (mail(b"Content-Type: a/b\r\nContent-Type: c/d\r\n\r\nx"), {"warning.screen-mime": "1"}),
        (mail(b"Content-Type: a/b\r\nContent-Transfer-Encoding: rot13\r\n\r\nx"), {"warning.screen-part": "1"}),
        (mail(b"Content-Type: a/b\r\nContent-Transfer-Encoding: base64\r\n\r\nx"), {"warning.screen-part": "1"}),
        (b"", {}),
    ],
)
def test_what_is_no_mime_passes_with_a_fact(content: bytes, expected: dict[str, str]) -> None:
    assert facts(content) == expected


def test_depth_and_number_of_parts_are_bounded() -> None:
    deep = b"\r\nx"
    for level in range(200):
        deep = multipart(deep, boundary=f"b{level}")
    assert list(facts(b"From: a@b.example\r\n" + deep)) == ["warning.screen-parts"]
    wide = mail(*[multipart(*[b"\r\nx"] * 500, boundary="c")] * 500)
    assert list(facts(wide)) == ["warning.screen-parts"]


@pytest.mark.parametrize(
    "content",
    [
        mail(part(b" " * 8_000_000, "text/xml")),
        mail(part(b"<??>" * 1_000_000, "text/xml")),
        mail(part(b"<a>" * 2_000_000, "text/xml")),
        mail(part(b"<!--" * 2_000_000, "text/xml")),
        mail(part(b"PK\x01\x02" * 1_000_000 + b"PK\x05\x06", name="a.zip")),
        mail(b"\r\n" + b"\r\n--bb" * 1_000_000),
        mail(b"\r\n" + b"--b " * 2_000_000),
        mail(b"x: y\r\n" * 100_000),
        mail(*[part(zipped({f"{n}.txt": b"x" * 100_000 for n in range(400)}), name="a.zip")] * 5),
        mail(*[b"Content-Type: a/b" + b"; n=x" * 5_000 + b"\r\n\r\nx"] * 900),
        mail(*[b"Content-Type: a/b" + b"; n=x" * 700 + b"\r\n\r\nx"] * 200),
        b"Content-Type: a/b" + b"; n=x" * 200_000 + b"\r\n\r\nx",
        b"Content-Type: a/b" + b"(" * 1_000_000 + b"\r\n\r\nx",
    ],
    ids=range(13),
)
def test_nothing_takes_long(content: bytes) -> None:
    started = time.process_time()
    screen(content, LIMITS)
    assert time.process_time() - started < 10


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_mail_never_raises(data: st.DataObject) -> None:
    whole = bytearray(mail(part(cda(with_pdf=False), "text/xml"), part(zipped({"a": b"x" * 99}), name="IHE_XDM.zip")))
    for _ in range(data.draw(st.integers(1, 20))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    screen(bytes(whole), LIMITS)


def test_details_name_no_patient_and_no_file() -> None:
    name = "DUPONT-Jean-190026001234547.zip"
    _, detail = refusal(archive_mail(zipped({"../DUPONT.txt": b"x"}), name))
    assert "dupont" not in detail.lower()


def test_the_catalogue_is_sound() -> None:
    for entry in screening_refusals.CATALOGUE:
        assert entry.code.startswith("bridges.")
        assert entry.text.isascii()
        assert (entry.smtp // 100, entry.permanent) == (int(entry.enhanced[0]), True)


@pytest.mark.samples
def test_official_documents_pass() -> None:
    folder = Path(__file__).parents[2].parent / "shared/samples/cda"
    if not folder.is_dir():
        pytest.skip("the official samples are not here")
    for path in sorted(folder.rglob("*.xml"))[:12]:
        content = mail(b"\r\nx", part(path.read_bytes(), "text/xml", path.name))
        found = screen(content, LIMITS)
        assert found == {}, (path.name, found)


# Compressed files, executables, and what our own people send


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_file_that_explodes(compress: Callable[[bytes], bytes]) -> None:
    bomb = compress(b"\0" * (64 * 1024 * 1024))
    began = time.monotonic()
    assert refusal(mail(part(bomb, name="a.gz"))) == (ARCHIVE_REFUSED, "part 1: compression ratio")
    assert time.monotonic() - began < 10
    assert facts(mail(part(compress(b"bonjour" * 1000), name="a.gz"))) == {"warning.screen-archive": "1"}


def test_a_bomb_behind_a_harmless_member() -> None:
    bomb = gzip.compress(b"bonjour") + gzip.compress(b"\0" * (64 * 1024 * 1024))
    assert refusal(mail(part(bomb, name="a.gz")))[0] is ARCHIVE_REFUSED


def test_several_below_the_ratio_share_one_budget() -> None:
    one = gzip.compress(os.urandom(300_000) + b"\0" * 30_000_000)
    assert facts(mail(part(one)), ScreenLimits())
    assert refusal(mail(part(one), part(one)), ScreenLimits(expanded_bytes=40_000_000))[1] == "part 2: expanded size"


@pytest.mark.parametrize(
    "damaged", [b"\x1f\x8b", b"\x1f\x8b\x08garbage", b"BZh9x", b"\xfd7zXZ\0\0", gzip.compress(b"x")[:-5]]
)
def test_a_damaged_one_passes_with_a_fact(damaged: bytes) -> None:
    assert facts(mail(part(damaged))) == {"warning.screen-archive": "1"}


@given(
    st.sampled_from((gzip.compress(b"x" * 9999), bz2.compress(b"x" * 9999), lzma.compress(b"x" * 9999))), st.binary()
)
def test_no_compressed_file_breaks_the_stage(start: bytes, more: bytes) -> None:
    for content in (start[: len(more)] + more, start + more):
        assert "warning.screen-failed" not in facts(mail(part(content)))


@pytest.mark.parametrize(
    ("content", "name"), [(b"MZ\x90\0", "facture.pdf"), (b"\x7fELF", ""), (b"x", "Facture.PDF.exe"), (b"x", "a.js")]
)
def test_what_could_be_run_is_passed_on_and_named(content: bytes, name: str) -> None:
    assert facts(mail(part(content, name=name))) == {"warning.screen-executable": "1"}


async def test_what_our_own_people_submit_is_looked_at_before_it_leaves() -> None:
    bad = replace(message(archive_mail(zipped({"a.zip": b"x"}))), origin=Origin.SUBMISSION)
    refused = await ScreenStage().apply(bad, Phase.ENRICH)
    assert isinstance(refused, Refused)
    assert refused.refusal is ARCHIVE_REFUSED
    composed_by_us = replace(bad, origin=Origin.MLLP)
    assert await ScreenStage().apply(composed_by_us, Phase.ENRICH) is composed_by_us
