"""A clamd for tests, which answers INSTREAM as told and misbehaves on demand; and the real one, with EICAR only."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .private import give, service_directory, start_unprivileged, until

EICAR = rb"X5O!P%@AP[4\PZX54(P^)7CC)7}$" + b"EICAR-STANDARD-ANTIVIRUS-" + b"TEST-FILE!$H+H*"
"""The test file every scanner finds (eicar.org); in two pieces, so that no scanner finds this source."""
CLAMD = Path("/usr/sbin/clamd")

Answer = Callable[[bytes], bytes]
Misdeed = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def finds_eicar(content: bytes) -> bytes:
    return b"stream: Eicar-Test-Signature FOUND\0" if EICAR in content else b"stream: OK\0"


@dataclass
class FakeClamd:
    """`answer` gives the reply to a whole stream; `misdeed`, when set, has the conversation instead."""

    socket: Path
    answer: Answer = finds_eicar
    misdeed: Misdeed | None = None
    scanned: list[bytes] = field(default_factory=list)
    open: int = 0
    most_open: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            if self.misdeed is not None:
                await self.misdeed(reader, writer)
                return
            command = await reader.readuntil(b"\0")
            if command == b"zVERSION\0":
                writer.write(b"ClamAV 1.4.3/27000/Fri Nov 20 10:00:00 2026\0")
            else:
                assert command == b"zINSTREAM\0"
                content = bytearray()
                while length := struct.unpack(">L", await reader.readexactly(4))[0]:
                    content += await reader.readexactly(length)
                self.scanned.append(bytes(content))
                writer.write(self.answer(bytes(content)))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def fake_clamd(folder: Path) -> AsyncIterator[FakeClamd]:
    fake = FakeClamd(folder / "clamd.sock")
    server = await asyncio.start_unix_server(fake.serve, str(fake.socket))
    try:
        yield fake
    finally:
        server.close()


CONFIGURATION = """\
LocalSocket {folder}/clamd.sock
LocalSocketMode 666
DatabaseDirectory {folder}/signatures
PidFile {folder}/clamd.pid
LogFile {folder}/clamd.log
TemporaryDirectory {folder}
Foreground yes
StreamMaxLength {stream}
MaxFileSize {stream}
MaxScanSize {stream}
AlertExceedsMax yes
AlertEncryptedArchive yes
MaxThreads 2
ConcurrentDatabaseReload no
OfficialDatabaseOnly no
"""


@contextmanager
def real_clamd(stream: str = "1M") -> Iterator[Path]:
    """Debian's clamd as a private child, with a signature database that holds EICAR alone; its socket."""
    with service_directory() as folder:
        (folder / "signatures").mkdir()
        # an extended signature: name, any type of file, any offset, the octets
        (folder / "signatures" / "eicar.ndb").write_text(f"Eicar-Test-Signature:0:*:{EICAR.hex()}\n")
        (folder / "clamd.conf").write_text(CONFIGURATION.format(folder=folder, stream=stream))
        give(folder)
        with (folder / "output").open("wb") as output:
            process = start_unprivileged(
                [str(CLAMD), "--config-file", str(folder / "clamd.conf")], stdout=output, stderr=output
            )
        try:
            until(lambda: process.poll() is not None or (folder / "clamd.sock").exists(), 60, "clamd's socket")
            assert process.poll() is None, (folder / "output").read_text()[-1000:]
            yield folder / "clamd.sock"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
