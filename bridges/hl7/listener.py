"""A stand-alone MLLP receiver: files each frame into a folder and answers AA.

It stands where a sending system's receiver stands, in the demonstration and for whoever wants acknowledgements as
files. AA is said only when the file is on disk; a frame that is sent again replaces its own file.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from bridges import refusals
from bridges.hl7 import acknowledgement, er7
from bridges.hl7.door import MllpDoor, MllpOptions
from bridges.hl7.mllp import FrameError
from trust.refusals import Refused
from trust.store.durable import write_durably

_THREADS = 4


class FilingListener:
    """One listening port, one folder. `start` and `stop` belong to one event loop."""

    def __init__(
        self,
        folder: Path,
        options: MllpOptions | None = None,
        *,
        filed: Callable[[Path], None] = lambda path: None,
    ) -> None:
        """`folder` is made (mode 0700) when missing. `filed` is called, from a thread, once a file is safe."""
        self._folder = folder
        self._filed = filed
        self._options = options or MllpOptions()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="filing")
        self._door = MllpDoor(self._options, self._receive, self._refuse, self._threads)

    async def start(self, host: str, port: int) -> int:
        """Listen (port 0 picks a free one); the port in use. Raises OSError when folder or port cannot be had."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return await self._door.start(host, port)

    async def stop(self) -> None:
        """Take no more frames; those being filed are still answered."""
        await self._door.stop()
        self._threads.shutdown()

    def _receive(self, frame: bytes) -> bytes:
        """The acknowledgement. Raises OSError when the disk refuses: the door then closes without an answer."""
        header = acknowledgement.header_of(frame)
        message = er7.parse(frame, max_bytes=self._options.max_frame_bytes)
        if isinstance(message, er7.Er7Error) or not header.control_id:
            return self._unreadable(header)
        path = self._folder / _name(message, frame)
        write_durably(path, frame)
        self._filed(path)
        return acknowledgement.accept(header, _control_id(), datetime.now(UTC))

    def _refuse(self, error: FrameError) -> bytes:
        return self._unreadable(acknowledgement.header_of(error.head))

    def _unreadable(self, header: acknowledgement.AckHeader) -> bytes:
        return acknowledgement.refuse(header, _control_id(), datetime.now(UTC), Refused(refusals.HL7_UNREADABLE))


def _name(message: er7.Er7Message, frame: bytes) -> str:
    """`ZAM_Z02-<MSH-10>-<digest>.hl7`: the same frame, the same name; another one under the same MSH-10, another."""
    kind = message.header.field(9)
    parts = ("_".join((kind.component(1).text, kind.component(2).text)), message.header.field(10).text)
    safe = [re.sub(r"[^A-Za-z0-9]+", "_", part)[:40] for part in parts]
    return "-".join((*safe, hashlib.sha256(frame).hexdigest()[:16])) + ".hl7"


def _control_id() -> str:
    return secrets.token_hex(8).upper()
