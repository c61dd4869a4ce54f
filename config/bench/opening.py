"""One message opened in a process of its own: `python -m config.bench.opening VAULT ADDRESS ANCHOR MESSAGE`.

Prints one JSON object: `seconds` of opening, `peak_octets` of memory above what the process held before it read
the message (the message itself included, as the kernel counts resident pages) and `decryption`, the result.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from config import allocator
from config.bench.child import BenchError, resident
from config.bench.holders import Holder, Holders
from smime.opening import open_message
from trust.certificates import CertificateValidator
from trust.vault import KeyVault


@dataclass(frozen=True, slots=True)
class Opening:
    seconds: float
    peak_octets: int
    decryption: str
    signature: str


def opened_alone(place: Path, holders: Holders, holder: Holder, message: bytes) -> Opening:
    """Open `message` in a fresh process. `place` is where `holders` has its vault. Raises `BenchError`."""
    anchor, file = place / "anchor.der", place / "message.eml"
    anchor.write_bytes(holders.root.public_bytes(Encoding.DER))
    file.write_bytes(message)
    command = [sys.executable, "-P", "-m", "config.bench.opening", str(place / "vault"), holder.address]
    try:
        done = subprocess.run([*command, str(anchor), str(file)], capture_output=True, check=True)
    except subprocess.CalledProcessError as error:
        raise BenchError(f"a message could not be opened: {error.stderr.decode(errors='replace')[-300:]}") from error
    finally:
        file.unlink()
    return Opening(**json.loads(done.stdout))


def main(vault: str, address: str, anchor: str, file: str) -> None:
    """See the module."""
    allocator.keep_freed_memory()
    decryptors = KeyVault.open(Path(vault)).decryptors(address)
    validator = CertificateValidator([x509.load_der_x509_certificate(Path(anchor).read_bytes())])
    now = datetime.now(UTC)
    open_message(b"From: a@b.example\r\n\r\n", decryptors, validator, now)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here (proc(5))
    before = resident("VmRSS:")
    message = Path(file).read_bytes()
    began = time.perf_counter()
    opened = open_message(message, decryptors, validator, now)
    seconds = time.perf_counter() - began
    said = {
        "seconds": seconds,
        "peak_octets": resident("VmHWM:") - before,
        "decryption": opened.verdict.decryption.value,
        "signature": opened.verdict.signature.value,
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
