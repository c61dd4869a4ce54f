"""One report is read once: a frame goes to several recipients, and each road would parse it again.

The door reads it, then each mail's composition, the record, and whoever tells how each ended: six times and more.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from hashlib import sha256
from typing import Generic, TypeVar

Read = TypeVar("Read")


class ReadOnce(Generic[Read]):
    """`parse`, remembering what it made of the last few frames. Thread-safe: who asks while another reads the same
    frame waits for that. What `parse` returns must be immutable and depend on the frame alone."""

    def __init__(self, parse: Callable[[bytes], Read], frames: int = 16, frame_bytes: int = 1024 * 1024) -> None:
        """At most `frames` results are held; a frame longer than `frame_bytes` is read each time."""
        self._parse = parse
        self._frames = frames
        self._frame_bytes = frame_bytes
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, Future[Read]] = OrderedDict()

    def __call__(self, frame: bytes) -> Read:
        """What `parse` returns or raises; what it raised is not remembered."""
        if len(frame) > self._frame_bytes:
            return self._parse(frame)
        key = sha256(frame).digest()
        with self._lock:
            known = self._known.get(key)
            if known is None:
                mine = self._known[key] = Future[Read]()
            self._known.move_to_end(key)
            if len(self._known) > self._frames:
                self._known.popitem(last=False)
        if known is not None:
            return known.result()
        try:
            mine.set_result(self._parse(frame))
        except BaseException as error:
            with self._lock:
                self._known.pop(key, None)
            mine.set_exception(error)
        return mine.result()
