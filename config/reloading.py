"""SIGHUP: the configuration is read again, and what can change without dropping a session changes.

A file that cannot be used changes nothing, and is told. What only a restart brings into force is named, so that nobody
believes it is. TLS files are looked at by themselves every few seconds; a reload looks at them at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import structlog

from config.settings import Loaded, Settings, SettingsError, load

log = structlog.get_logger(__name__)


class Reloading:
    """Of one gateway."""

    def __init__(self, path: Path, loaded: Loaded) -> None:
        self._path = path
        self._settings = loaded.settings
        self._started = loaded.settings
        self._ways: list[tuple[tuple[str, ...], Callable[[Settings], object]]] = []
        self._turn = asyncio.Lock()
        self._ready = asyncio.Event()

    def follow(self, keys: Sequence[str], apply: Callable[[Settings], object]) -> None:
        """These keys (`section`, or `section.key`) come into force by `apply`, which may block. What it raises as
        `SettingsError` or ValueError keeps the old values."""
        self._ways.append((tuple(keys), apply))

    def ready(self) -> None:
        """Everything follows that will: what was asked for before is done now."""
        self._ready.set()

    async def reload(self) -> None:
        """Read and apply; never raises."""
        await self._ready.wait()
        async with self._turn:
            try:
                settings = (await asyncio.to_thread(load, self._path)).settings
            except SettingsError as error:
                log.error("reload.refused", problem=str(error))
                return
            known: set[str] = set()
            refused = False
            for keys, apply in self._ways:
                known.update(keys)
                try:
                    await asyncio.to_thread(apply, settings)
                except (SettingsError, ValueError, OSError) as error:
                    refused = True
                    log.error("reload.refused", keys=list(keys), problem=str(error))
            waiting = [key for key in changes(self._started, settings) if not _covered(key, known)]
            if waiting:
                log.warning("reload.needs-restart", keys=waiting)
            log.info("reload.done", changed=changes(self._settings, settings))
            if not refused:
                self._settings = settings


def changes(before: Settings, after: Settings) -> list[str]:
    """Keys whose values differ, as `section.key`; as `section` where the section itself is a list, came or went."""
    found = []
    for section in msgspec.structs.fields(Settings):
        old, new = getattr(before, section.name), getattr(after, section.name)
        if old == new:
            continue
        if isinstance(old, msgspec.Struct) and isinstance(new, msgspec.Struct):
            found += [
                f"{section.name}.{each.name}"
                for each in msgspec.structs.fields(old)
                if getattr(old, each.name) != getattr(new, each.name)
            ]
        else:
            found.append(section.name)
    return found


def _covered(key: str, known: set[str]) -> bool:
    return key in known or key.partition(".")[0] in known
