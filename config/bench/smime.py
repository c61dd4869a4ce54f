"""`relais bench smime`: what protecting and opening mail costs, beside the bare cryptography, openssl and dkimpy.

"CMS" rows go from content to DER and back, without MIME around it; `protect` and `open_message` rows are the doors the
gateway uses. Rates beside a reference and growth count processor time, so that a busy machine does not distort them;
seconds, and what two threads gain over one, go by the clock.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import dkim
import pybase64
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from config.bench.child import BenchError
from config.bench.holders import Holder, Holders
from config.bench.opening import opened_alone
from config.bench.protection import encrypt_command, run, sign_command
from config.bench.race import growth, in_threads, race
from config.bench.report import result, row
from smime.cms_read import Enveloped, Signed, read_cms
from smime.decrypting import decrypt_content
from smime.dkim import DkimKey, sign_dkim
from smime.encrypting import encrypt_content
from smime.opening import open_message
from smime.protect import encrypt, sign
from smime.signing import sign_content
from smime.suites import DEFAULT_SUITE
from smime.verdict import DecryptionResult, SignatureResult
from smime.verifying import Expectation, verify_signed
from trust import der

Row = dict[str, Any]
SMALL, LARGE, BER = 100_000, 5_000_000, 40_000_000
_OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
_ONE_PROCESS = "one openssl cms process for each message, system openssl"
_CHUNKS = (100_000, 200_000, 400_000)
_DEPTHS = (10_000, 100_000, 1_000_000)


@dataclass(frozen=True, slots=True)
class Scale:
    runs: int
    seconds: float
    """Each contestant works about this long in one run."""
    large: int
    """Mails of 5 MB each thread protects in one run."""
    sizes: tuple[int, ...]
    """Of the contents whose growth is measured."""
    ber: int
    """Octets of the content that comes in BER chunks."""
    recipients: tuple[int, ...]


SIZES = tuple(10**power for power in range(3, 9))
RECIPIENTS = (1, 10, 100, 1000)
SCALES = {
    "quick": Scale(3, 0.2, 12, SIZES, BER, RECIPIENTS),
    "full": Scale(7, 3.0, 100, SIZES, BER, RECIPIENTS),
}


def smime(scale: str) -> Row:
    """Measure at `quick` or `full` scale. Raises `BenchError` when openssl is missing or a message does not open."""
    return measure(scale, SCALES[scale])


def measure(name: str, scale: Scale) -> Row:
    """See `smime`."""
    with ExitStack() as stack:
        bench = _Bench(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relais-bench-"))), scale)
        parts: tuple[Callable[[], list[Row]], ...] = (
            bench.signing,
            bench.encrypting,
            bench.opening,
            bench.threads,
            bench.ber,
            bench.dkim,
            bench.sizes,
            bench.recipients,
            bench.attacks,
        )
        return result("smime", name, [line for part in parts for line in part()])


class _Bench:
    """The people, the messages and the parts of the benchmark."""

    def __init__(self, place: Path, scale: Scale) -> None:
        self._place = place
        self._scale = scale
        self._holders = Holders(place)
        self._rsa2048 = rsa.generate_private_key(65537, 2048)
        self._rsa3072 = rsa.generate_private_key(65537, 3072)
        self._anne = self._holders.holder("anne@bench.example", self._rsa2048)
        self._paul = self._holders.holder("paul@bench.example", self._rsa3072)
        self._now = datetime.now(UTC)

    def signing(self) -> list[Row]:
        content, key = entity(SMALL), self._rsa2048
        rates = self._race(
            ours=lambda: sign_content(content, self._anne.signer),
            door=lambda: sign(content, self._anne.signer),
            bare=lambda: key.sign(content, padding.PKCS1v15(), hashes.SHA256()),
        )
        command = sign_command(*self._anne.save(self._place))
        processes = self._race(  # by itself: starting processes leaves cold caches to whoever comes next
            ours=lambda: sign_content(content, self._anne.signer), openssl=lambda: run(command, content)
        )
        bare = ("RSA-2048 and SHA-256 over the same octets, in cryptography", rates["bare"])
        return [
            self._versus("sign_rsa2048_100k_vs_primitive", rates["ours"], *bare),
            self._versus(
                "sign_rsa2048_100k_vs_openssl", processes["ours"], f"{_ONE_PROCESS}, -sign", processes["openssl"]
            ),
            self._versus("sign_mime_rsa2048_100k_vs_primitive", rates["door"], *bare),
        ]

    def encrypting(self) -> list[Row]:
        content = entity(SMALL)
        anne, paul = self._anne, self._paul
        rates = self._race(
            ours=lambda: encrypt_content(content, [anne.certificate], DEFAULT_SUITE),
            longer=lambda: encrypt_content(content, [paul.certificate], DEFAULT_SUITE),
            door=lambda: encrypt(content, [anne.certificate]),
            openssl=lambda: run(encrypt_command(anne.save(self._place)[0]), content),
        )
        reference = (f"{_ONE_PROCESS}, -encrypt -aes-256-gcm, RSA-OAEP, RSA-2048", rates["openssl"])
        return [
            self._versus("encrypt_gcm_oaep_100k_vs_openssl", rates["ours"], *reference),
            self._versus("encrypt_gcm_oaep_rsa3072_100k_vs_openssl", rates["longer"], *reference),
            self._versus("encrypt_mime_gcm_oaep_100k_vs_openssl", rates["door"], *reference),
        ]

    def opening(self) -> list[Row]:
        content, paul = entity(SMALL), self._paul
        certificate, key = paul.save(self._place)
        signed = sign_content(content, paul.signer, attached=True)
        cms = bytes(encrypt_content(signed, [paul.certificate], DEFAULT_SUITE))
        expected = Expectation(self._holders.validator, self._now, (paul.address,), lambda certificate: ())
        message = self._protected(content, paul)
        wrapped = self._rsa3072.public_key().encrypt(os.urandom(32), _OAEP)

        def opened() -> None:
            outer = read_cms(cms)
            if not isinstance(outer, Enveloped):
                raise BenchError("the message is not encrypted")
            inner = read_cms(decrypt_content(outer, paul.decryptors).content)
            if not isinstance(inner, Signed) or inner.content is None:
                raise BenchError("the message is not signed")
            (signer,) = verify_signed(inner, inner.content, expected)
            if signer.result is not SignatureResult.VALID:
                raise BenchError(f"the signature is {signer.result.value}")

        rates = self._race(
            ours=opened,
            door=lambda: self._open(message, paul),
            bare=lambda: self._rsa3072.decrypt(wrapped, _OAEP),
        )
        command = ["openssl", "cms", "-decrypt", "-binary", "-inform", "DER", "-recip", certificate, "-inkey", key]
        processes = self._race(ours=opened, openssl=lambda: run(command, cms))
        bare = ("RSA-3072 private-key operations (OAEP), in cryptography", rates["bare"])
        decrypt = (f"{_ONE_PROCESS}, -decrypt alone", processes["openssl"])
        return [
            self._versus("open_rsa3072_100k_vs_primitive", rates["ours"], *bare),
            self._versus("open_rsa3072_100k_vs_openssl", processes["ours"], *decrypt),
            self._versus("open_mime_rsa3072_100k_vs_primitive", rates["door"], *bare),
        ]

    def threads(self) -> list[Row]:
        """Signed, encrypted and in MIME: by one thread, by two; and what two threads gain where none has to wait."""
        small, key = entity(SMALL), self._rsa2048
        bare = self._speedups(
            lambda: key.sign(small, padding.PKCS1v15(), hashes.SHA256()), int(2000 * self._scale.seconds)
        )
        rows = [row("primitive_two_threads_speedup_100k", bare[1], "times one thread, RSA-2048 and SHA-256", SMALL)]
        for name, size, count in (("100k", SMALL, int(2000 * self._scale.seconds)), ("5m", LARGE, self._scale.large)):
            content = entity(size)

            def protect(content: bytes = content) -> None:
                encrypt(sign(content, self._anne.signer), [self._anne.certificate])

            one, speedups = self._speedups(protect, count)
            rows.append(row(f"protect_two_threads_speedup_{name}", speedups, "times one thread", size))
            rows.append(row(f"protect_{name}_ps", one, "mails/s, one thread", size))
        return rows

    def _speedups(self, work: Callable[[], object], count: int) -> tuple[list[float], list[float]]:
        """Operations per second of one thread, and how many times that two do, by run."""
        in_threads(work, 2, 2)
        one, two = [], []
        for _ in range(self._scale.runs):
            one.append(in_threads(work, 1, max(count, 2)))
            two.append(in_threads(work, 2, max(count // 2, 1)))
        return one, [pair / single for single, pair in zip(one, two, strict=True)]

    def ber(self) -> list[Row]:
        """As `openssl cms -stream` writes it: indefinite lengths, the content in thousands of chunks."""
        certificate = self._anne.save(self._place)[0]
        signed = sign(entity(self._scale.ber), self._anne.signer)
        command = ["openssl", "cms", "-encrypt", "-binary", "-stream", "-crlfeol", "-aes-256-gcm", "-recip"]
        message = _headed(self._anne, run([*command, certificate], signed))
        seconds = [self._timed(lambda: self._open(message, self._anne)) for _ in range(self._scale.runs)]
        alone = [self._alone(message, self._anne) for _ in range(self._scale.runs)]
        n = len(message)
        return [
            row("open_ber_40m_s", seconds, "s", n),
            row("open_ber_40m_mem_x", [octets / n for octets in alone], "times the message, itself included", n),
        ]

    def dkim(self) -> list[Row]:
        key = DkimKey("bench.example", "relais", self._rsa2048)
        pem = self._rsa2048.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        relaxed = (b"relaxed", b"relaxed")
        rows = []
        for name, body in (("dkim_sign_100k", entity(SMALL)), ("dkim_sign_text_100k", prose(SMALL))):
            message = _headed(self._anne, body)
            rates = self._race(
                ours=partial(sign_dkim, message, key),
                dkimpy=partial(dkim.sign, message, b"relais", b"bench.example", pem, canonicalize=relaxed),
            )
            reference = "dkimpy, relaxed/relaxed, rsa-sha256, the same key and message"
            rows.append(self._versus(f"{name}_vs_dkimpy", rates["ours"], reference, rates["dkimpy"]))
        return rows

    def sizes(self) -> list[Row]:
        """Signed, encrypted, opened: processor time of each size, the best of the runs, and memory of the largest."""
        paul = self._paul
        contents = [entity(size) for size in self._scale.sizes]
        protecting: list[list[float]] = []
        opening: list[list[float]] = []
        for _ in range(self._scale.runs):
            protecting.append([])
            opening.append([])
            for content in contents:
                repeat = max(1, min(20, 1_000_000 // len(content)))
                protecting[-1].append(self._cpu(partial(self._protected, content, paul), repeat))
                message = self._protected(content, paul)
                opening[-1].append(self._cpu(partial(self._open, message, paul), repeat))
        largest = self._protected(contents[-1], paul)
        del contents
        memory = self._alone(largest, paul) / len(largest)
        sizes = self._scale.sizes
        both = [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(protecting, opening, strict=True)]
        above = [index for index, size in enumerate(sizes) if size >= min(1_000_000, sizes[-2])]
        return [
            row("linear_1k_100m", [growth(sizes, run) for run in both], "exponent of time over size", sizes[-1]),
            row(
                "linear_1m_100m",
                [growth([sizes[i] for i in above], [run[i] for i in above]) for run in both],
                "exponent of time over size",
                sizes[-1],
            ),
            row("protect_100m_s", [run[-1] for run in protecting], "s", sizes[-1]),
            row("open_100m_s", [run[-1] for run in opening], "s", sizes[-1]),
            row("open_100m_mem_x", [memory], "times the message, itself included", len(largest)),
        ]

    def recipients(self) -> list[Row]:
        """One content key for many: encrypting, and opening by the last of them."""
        counts, content = self._scale.recipients, entity(10_000)
        key = self._rsa2048
        others = [self._holders.certificate(f"r{number}@bench.example", key) for number in range(counts[-1] - 1)]
        encrypting: list[list[float]] = []
        opening: list[list[float]] = []
        for _ in range(self._scale.runs):
            encrypting.append([])
            opening.append([])
            for count in counts:
                certificates = [*others[: count - 1], self._anne.certificate]
                repeat = max(1, 200 // count)
                encrypting[-1].append(self._cpu(partial(encrypt, content, certificates), repeat))
                message = _headed(self._anne, encrypt(content, certificates))
                opening[-1].append(self._cpu(partial(self._open, message, self._anne), repeat))
        many = counts[-1]
        return [
            row("recipients_1_1000_encrypt", [growth(counts, run) for run in encrypting], "exponent", many),
            row("recipients_1_1000_open", [growth(counts, run) for run in opening], "exponent", many),
            row("recipients_1000_encrypt_ms", [1000 * run[-1] for run in encrypting], "ms", many),
            row("recipients_1000_open_ms", [1000 * run[-1] for run in opening], "ms", many),
        ]

    def attacks(self) -> list[Row]:
        """Shapes meant to cost more than they weigh, opened or refused; all are read in BER."""
        rows = []
        shapes: tuple[tuple[str, Callable[[int], bytes], Sequence[int]], ...] = (
            ("chunks_400k", _in_chunks, _CHUNKS),
            ("depth_1m", _deep, _DEPTHS),
        )
        for name, shape, counts in shapes:
            messages = [_headed(self._anne, pkcs7_mime(shape(count))) for count in counts]
            lengths = [len(message) for message in messages]
            runs = [
                [self._cpu(partial(self._refused, message), 3) for message in messages] for _ in range(self._scale.runs)
            ]
            rows.append(row(f"{name}_growth", [growth(lengths, run) for run in runs], "exponent", counts[-1]))
            rows.append(row(f"{name}_ms", [1000 * run[-1] for run in runs], "ms", counts[-1]))
            memory = opened_alone(self._place, self._holders, self._anne, messages[-1]).peak_octets
            rows.append(row(f"{name}_mem_x", [memory / lengths[-1]], "times the message, itself included", lengths[-1]))
        return rows

    # --- Measuring ---------------------------------------------------------------------------------------------------

    def _race(self, **contestants: Callable[[], object]) -> dict[str, list[float]]:
        return race(contestants, self._scale.runs, self._scale.seconds)

    @staticmethod
    def _versus(name: str, rates: Sequence[float], reference: str, references: Sequence[float]) -> Row:
        return row(name, rates, "messages/s", SMALL, reference=reference, reference_values=references)

    @staticmethod
    def _timed(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    @staticmethod
    def _cpu(work: Callable[[], object], repeat: int) -> float:
        """Seconds of this thread's processor time, the least of `repeat`."""
        best = float("inf")
        for _ in range(repeat):
            began = time.thread_time()
            work()
            best = min(best, time.thread_time() - began)
        return best

    # --- Messages ----------------------------------------------------------------------------------------------------

    def _protected(self, content: bytes, holder: Holder) -> bytes:
        """A message signed and encrypted by its own recipient."""
        return _headed(holder, encrypt(sign(content, holder.signer), [holder.certificate]))

    def _open(self, message: bytes, holder: Holder) -> None:
        """Open a message through the gateway's door. Raises `BenchError` when that fails."""
        verdict = open_message(message, holder.decryptors, self._holders.validator, self._now).verdict
        if verdict.decryption is not DecryptionResult.DECRYPTED or verdict.signature is SignatureResult.INVALID:
            raise BenchError(f"opened: {verdict.decryption.value}, {verdict.signature.value}")

    def _refused(self, message: bytes) -> None:
        verdict = open_message(message, self._anne.decryptors, self._holders.validator, self._now).verdict
        if verdict.decryption is DecryptionResult.DECRYPTED or verdict.signature is SignatureResult.VALID:
            raise BenchError("a message nobody made was opened")

    def _alone(self, message: bytes, holder: Holder) -> int:
        """Peak memory of opening it in a process of its own, octets."""
        opening = opened_alone(self._place, self._holders, holder, message)
        if opening.decryption != DecryptionResult.DECRYPTED.value:
            raise BenchError(f"opened in a process of its own: {opening.decryption}")
        return opening.peak_octets


def entity(size: int) -> bytes:
    """A MIME entity of about `size` octets: something that does not compress, in base64, as attachments come."""
    head = b"Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    lines = max((size - len(head)) // 78, 1)
    return head + pybase64.encodebytes(os.urandom(57 * lines)).replace(b"\n", b"\r\n")


def prose(size: int) -> bytes:
    """A text/plain entity of `size` octets and a few: ordinary lines of words."""
    head = b"Content-Type: text/plain; charset=utf-8\r\n\r\n"
    line = b"Compte rendu sans particularite, valeurs dans les limites de la normale, controle.\r\n"
    return head + line * ((size - len(head)) // len(line) + 1)


def pkcs7_mime(cms: bytes) -> bytes:
    """An encrypted message's entity around DER or BER nobody vouches for."""
    head = (
        b"Content-Type: application/pkcs7-mime; smime-type=enveloped-data\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    )
    return head + pybase64.encodebytes(cms).replace(b"\n", b"\r\n")


def _headed(holder: Holder, mime_entity: bytes) -> bytes:
    """A message from `holder` to themselves."""
    head = (
        f"From: Bench <{holder.address}>\r\nTo: {holder.address}\r\nSubject: bench\r\n"
        f"Date: Mon, 01 Jun 2026 12:00:00 +0000\r\nMessage-ID: <1@bench.example>\r\n"
    )
    version = b"" if mime_entity.startswith(b"MIME-Version") else b"MIME-Version: 1.0\r\n"
    return head.encode("ascii") + version + mime_entity


def _in_chunks(count: int) -> bytes:
    """AuthEnvelopedData for nobody, its content in `count` chunks of one octet, all lengths indefinite."""
    nobody = der.sequence(
        der.integer(0),
        der.tlv(der.context(0, constructed=False), b"nobody"),
        der.sequence(der.oid("1.2.840.113549.1.1.1"), der.null()),
        der.octet_string(bytes(256)),
    )
    parameters = der.sequence(der.octet_string(bytes(12)), der.integer(16))
    info = (
        b"\x30\x80"
        + der.oid("1.2.840.113549.1.7.1")
        + der.sequence(der.oid("2.16.840.1.101.3.4.1.46"), parameters)
        + b"\xa0\x80"
        + b"\x04\x01x" * count
        + b"\0\0\0\0"
    )
    data = b"\x30\x80" + der.integer(0) + der.set_of([nobody]) + info + der.octet_string(bytes(16)) + b"\0\0"
    return b"\x30\x80" + der.oid("1.2.840.113549.1.9.16.1.23") + b"\xa0\x80" + data + b"\0\0\0\0"


def _deep(depth: int) -> bytes:
    """Constructed elements inside each other, never closed."""
    return b"\x30\x80" + der.oid("1.2.840.113549.1.7.3") + b"\xa0\x80" * depth
