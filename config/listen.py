"""`relais bridge listen`: a stand-alone MLLP receiver, the laboratory's side of the demonstration."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import structlog

from bridges.hl7.listener import FilingListener

log = structlog.get_logger(__name__)


async def listen(host: str, port: int, folder: Path) -> None:
    """File what comes until SIGTERM or SIGINT. Raises OSError when the port or the folder cannot be had."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    listener = FilingListener(folder)
    log.info("listening", port=await listener.start(host, port))
    await stop.wait()
    await listener.stop()
