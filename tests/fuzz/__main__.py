"""`make fuzz`: mutates mail and CMS and looks for an exception, a forgery or a slow answer. Runs by hand.

    python -m tests.fuzz [--seconds 600] [--seed N] [--keep DIRECTORY]

What it starts from are the files in tests/fuzz/seeds (small synthetic messages, made by `--make-seeds`) and what it
found worth keeping on the way: an input that reaches lines of the parsers no other reached. A finding is written to
`--keep` as a file that can be opened again with `relais smime inspect`; the exit status is 1 when there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_private_key
from cryptography.x509 import load_der_x509_certificate

from smime import DecryptionResult, SignatureResult, Suite, encrypt, open_message, sign
from smime.cms_read import read_cms
from smime.mime import MimeError, parse_entity
from smime.suites import ContentCipher, KeyTransportScheme
from tests.smime.craft import indefinite, multipart_signed, pkcs7_mime, signed_data
from tests.smime.people import ENTITY, NOW, Person, authority, message, person
from trust.certificates import CertificateValidator
from trust.der import DerError

SEEDS = Path(__file__).parent / "seeds"
SLOW_SECONDS = 0.5
MAX_OCTETS = 60_000
PARSERS = ("/smime/", "/trust/der.py")
SPICE = (
    b"\x30\x80",
    b"\x24\x80",
    b"\0\0",
    b"\xa0\x80",
    b"\x84\xff\xff\xff\xff",
    b"\r\n\r\n",
    b"--",
    b"\r\n",
    b'"',
    b"(",
)
SPICE += (b"Content-Type: ", b"multipart/signed; ", b"boundary=", b"base64", b"\xff", b"=\r\n", b"\0", b"From: ")


class Finding(Exception):
    """The engine did what it must never do."""


def main() -> int:
    """See the module."""
    arguments = argparse.ArgumentParser(prog="python -m tests.fuzz")
    arguments.add_argument("--seconds", type=float, default=600.0)
    arguments.add_argument("--seed", type=int, default=int(time.time()))
    arguments.add_argument("--keep", type=Path, default=Path("var/fuzz"))
    arguments.add_argument("--make-seeds", action="store_true", help="Write tests/fuzz/seeds anew and stop.")
    options = arguments.parse_args()
    if options.make_seeds:
        make_seeds()
        return 0
    print(f"seed {options.seed}, {options.seconds:g} s")
    return Fuzzing(options.seed, options.keep).run(options.seconds)


class Fuzzing:
    """A corpus that grows with every line reached."""

    def __init__(self, seed: int, keep: Path) -> None:
        self._chance = random.Random(seed)
        self._keep = keep
        self._corpus = [path.read_bytes() for path in sorted(SEEDS.glob("*.eml"))]
        self._paul, self._validator = _loaded()
        self._lines: set[tuple[str, int]] = set()
        self._found: set[str] = set()

    def run(self, seconds: float) -> int:
        for wire in self._corpus:
            self._reached(wire)
        began, tried = time.monotonic(), 0
        while time.monotonic() - began < seconds:
            wire = self._mutated()
            tried += 1
            if self._reached(wire) and len(self._corpus) < 5000:
                self._corpus.append(wire)
            if tried % 2000 == 0:
                print(f"{tried} tried, {len(self._corpus)} kept, {len(self._lines)} lines, {len(self._found)} findings")
        print(f"{tried} tried, {len(self._corpus)} kept, {len(self._lines)} lines, {len(self._found)} findings")
        return 1 if self._found else 0

    def _reached(self, wire: bytes) -> bool:
        """Open it; whether that reached a line nothing reached before."""
        before = len(self._lines)
        began = time.thread_time()
        sys.settrace(self._trace)
        try:
            self._check(wire)
        except Exception as problem:
            self._note(type(problem).__name__, problem, wire)
        finally:
            sys.settrace(None)
        if time.thread_time() - began > SLOW_SECONDS * 4:  # tracing costs
            began = time.thread_time()
            self._check(wire)
            if time.thread_time() - began > SLOW_SECONDS:
                self._note("slow", None, wire)
        return len(self._lines) > before

    def _check(self, wire: bytes) -> None:
        verdict = open_message(wire, [self._paul], self._validator, NOW)
        if verdict.verdict.signature is SignatureResult.VALID and bytes(verdict.content) != ENTITY:
            raise Finding("a signature holds over something nobody signed")
        if verdict.verdict.decryption is DecryptionResult.FAILED and verdict.entity != wire:
            raise Finding("something was handed on although decryption failed")
        try:
            body = parse_entity(wire).decoded()
        except MimeError:
            body = wire
        with contextlib.suppress(DerError):
            read_cms(body)

    def _note(self, kind: str, problem: Exception | None, wire: bytes) -> None:
        trace = problem.__traceback__ if problem else None
        where = ""
        while trace is not None:
            where, trace = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}", trace.tb_next
        name = f"{kind}-{where}".replace(":", "-")
        if name in self._found:
            return
        self._found.add(name)
        self._keep.mkdir(parents=True, exist_ok=True)
        (self._keep / f"{name}.eml").write_bytes(wire)
        print(f"FOUND {name}: {problem!r}, kept in {self._keep / name}.eml")

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        name = frame.f_code.co_filename
        if not any(part in name for part in PARSERS) or "/tests/" in name:
            return None

        def line(frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
            self._lines.add((name, frame.f_lineno))
            return line

        return line

    def _mutated(self) -> bytes:
        """One input changed in one to six places, in its octets or below its base64."""
        wire = bytearray(self._chance.choice(self._corpus))
        if self._chance.random() < 0.6:
            wire = self._below(wire)
        else:
            self._change(wire)
        return bytes(wire[:MAX_OCTETS])

    def _below(self, wire: bytearray) -> bytearray:
        """The CMS inside changed, and wrapped again."""
        try:
            entity = parse_entity(bytes(wire))
            cms = bytearray(entity.decoded())
        except MimeError:
            cms = bytearray()
        if len(cms) < 8 or cms[0] != 0x30:
            self._change(wire)
            return wire
        self._change(cms)
        return bytearray(message(pkcs7_mime(bytes(cms))))

    def _change(self, data: bytearray) -> None:
        chance = self._chance
        for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
            at = chance.randrange(len(data) + 1)
            match chance.randrange(7):
                case 0 if at < len(data):
                    data[at] ^= 1 << chance.randrange(8)
                case 1 if at < len(data):
                    data[at] = chance.randrange(256)
                case 2:
                    del data[at : at + chance.choice((1, 2, 4, 30, 500))]
                case 3:
                    data[at:at] = data[at : at + chance.choice((1, 4, 40, 400))] * chance.choice((1, 1, 2, 50))
                case 4:
                    data[at:at] = chance.choice(SPICE) * chance.choice((1, 1, 1, 3, 40))
                case 5:
                    other = chance.choice(self._corpus)
                    start = chance.randrange(len(other) + 1)
                    data[at:at] = other[start : start + chance.choice((4, 40, 400))]
                case _:
                    to = chance.randrange(len(data) + 1)
                    piece = data[at : at + 40]
                    data[to:to] = piece


def make_seeds() -> None:
    """Synthetic messages of every kind the engine reads, with the keys that open them (tests' keys, nobody's)."""
    SEEDS.mkdir(exist_ok=True)
    anne = person("anne@lab.example", kind="p256", which="fuzz anne")
    paul = person("paul@clinic.example", kind="p256", which="fuzz paul")
    signed = sign(ENTITY, anne, NOW)
    gcm = encrypt(signed, [paul.certificate])
    kinds = {
        "plain": ENTITY,
        "clear-signed": signed,
        "opaque": sign(ENTITY, anne, NOW, Suite(opaque=True)),
        "gcm": encrypt(ENTITY, [paul.certificate]),
        "cbc": encrypt(ENTITY, [paul.certificate], Suite(ContentCipher.AES256_CBC, KeyTransportScheme.RSA_PKCS1V15)),
        "signed-encrypted": gcm,
        "triple": sign(gcm, anne, NOW, Suite(opaque=True)),
        "ber": pkcs7_mime(indefinite(bytes(parse_entity(gcm).decoded()), 64)),
        "several-signers": multipart_signed(ENTITY, signed_data(ENTITY, anne, signers=2)),
    }
    for name, entity in kinds.items():
        (SEEDS / f"{name}.eml").write_bytes(message(entity))
    (SEEDS / "ca.crt").write_bytes(authority().certificate.public_bytes(Encoding.DER))
    (SEEDS / "paul.crt").write_bytes(paul.certificate.public_bytes(Encoding.DER))
    (SEEDS / "paul.key").write_bytes(paul.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))


def _loaded() -> tuple[Person, CertificateValidator]:
    certificate = load_der_x509_certificate((SEEDS / "paul.crt").read_bytes())
    key = load_der_private_key((SEEDS / "paul.key").read_bytes(), None)
    anchor = load_der_x509_certificate((SEEDS / "ca.crt").read_bytes())
    return Person(certificate, key), CertificateValidator([anchor])


if __name__ == "__main__":
    sys.exit(main())
