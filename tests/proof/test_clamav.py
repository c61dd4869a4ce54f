"""Debian's ClamAV, private, with a signature database of our own that holds EICAR alone: what it really answers."""

from __future__ import annotations

import base64
import gzip
import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mta.clamd import Clamd, ClamdOptions, Clean, Infected, NotScanned, ScannerTroubleError
from tests.support import clamd as support
from tests.support.clamd import CLAMD, EICAR, real_clamd

pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(not CLAMD.exists(), reason="run `make proof`, which installs clamav-daemon"),
    pytest.mark.xdist_group("clamav"),
]


@pytest.fixture(scope="module")
def socket() -> Iterator[Path]:
    with real_clamd("1M") as path:
        yield path


def mail(attachment: bytes, name: str = "a.bin") -> bytes:
    return (
        b"From: a@b.example\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
        b"--b\r\nContent-Type: text/plain\r\n\r\nBonjour\r\n--b\r\n"
        + f'Content-Type: application/octet-stream; name="{name}"\r\n'.encode()
        + b"Content-Transfer-Encoding: base64\r\n\r\n"
        + base64.encodebytes(attachment).replace(b"\n", b"\r\n")
        + b"--b--\r\n"
    )


def zipped(content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("IHE_XDM/SUBSET01/DOC.PDF", content)
    return out.getvalue()


def clamd(socket: Path) -> Clamd:
    return Clamd(ClamdOptions(socket=socket, max_octets=64 * 1024 * 1024))


async def test_what_it_finds_and_what_not(socket: Path) -> None:
    scanner = clamd(socket)
    assert await scanner.scan(mail(b"rien")) == Clean()
    for infected in (mail(EICAR), mail(zipped(EICAR), "ihe_xdm.zip"), mail(gzip.compress(EICAR), "a.gz")):
        verdict = await scanner.scan(infected)
        assert isinstance(verdict, Infected), verdict
        assert verdict.name.startswith("Eicar-Test-Signature")
    assert (await scanner.version()).startswith("ClamAV ")


async def test_beyond_its_limits_it_says_so(socket: Path) -> None:
    """The stream's own limit, and a file inside that is larger than it looks into: never a plain OK."""
    scanner = clamd(socket)
    assert await scanner.scan(os.urandom(3 * 1024 * 1024)) == NotScanned("StreamMaxLength")
    bomb = zipped(b"\0" * (8 * 1024 * 1024))
    assert isinstance(await scanner.scan(mail(bomb)), NotScanned)


async def test_one_that_says_ok_of_what_it_skips_is_found_out(socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Debian configures it: `relais doctor` tells the operator."""
    assert await clamd(socket).skips() is False
    careless = support.CONFIGURATION.replace("AlertExceedsMax yes", "AlertExceedsMax no")
    monkeypatch.setattr(support, "CONFIGURATION", careless)
    with real_clamd() as path:
        assert await clamd(path).skips() is True


async def test_it_dies() -> None:
    with real_clamd() as path:
        scanner = clamd(path)
        assert await scanner.scan(b"x") == Clean()
    with pytest.raises(ScannerTroubleError):
        await scanner.scan(b"x")
