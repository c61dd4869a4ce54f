"""One CRL loaded in a process of its own: `python -m config.bench.list_loading ISSUER CRL`.

Prints the most memory the process took above what it held before, in octets, the bytes of the list included, as the
kernel counts resident pages.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cryptography import x509

from config import allocator
from config.bench.child import BenchError, resident
from trust.revocation.checker import Revocation, RevocationOptions


def peak_alone(place: Path, issuer: bytes, crl: bytes) -> int:
    """Load a CRL of `issuer` (DER both) in a fresh process: octets. Files go into `place`. Raises `BenchError`."""
    anchor, file = place / "issuer.der", place / "list.crl"
    anchor.write_bytes(issuer)
    file.write_bytes(crl)
    command = [sys.executable, "-P", "-m", "config.bench.list_loading", str(anchor), str(file)]
    try:
        done = subprocess.run(command, capture_output=True, check=True)
    except subprocess.CalledProcessError as error:
        raise BenchError(f"a list could not be loaded: {error.stderr.decode(errors='replace')[-300:]}") from error
    finally:
        file.unlink()
    return int(done.stdout)


def main(issuer: str, file: str) -> None:
    """See the module."""
    allocator.keep_freed_memory()
    anchor = x509.load_der_x509_certificate(Path(issuer).read_bytes())
    revocation = Revocation([anchor], (), RevocationOptions(max_crl_bytes=1 << 30))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here (proc(5))
    before = resident("VmRSS:")
    revocation.add_crl(Path(file).read_bytes())
    print(resident("VmHWM:") - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
