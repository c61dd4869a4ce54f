"""Structured logs: one JSON object a line on standard error, without a patient in them.

Every event is a fixed name plus identifiers of ours (spool id, delivery id, catalogue code). Addresses are reduced to
their domain before they get here, because a patient's address contains the matricule; exception texts are cut out
because they may quote the input that caused them.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import traceback
from collections.abc import MutableMapping
from typing import Any, TextIO, cast

import msgspec
import structlog

# Only from the beginning of a word: trying at each of its characters would take quadratic time
_ADDRESS = re.compile(rb"(?<![^\s<>()\[\]:;,\"'=])[^\s<>()\[\]:;,\"'=]+@[A-Za-z0-9.-]+")


_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "exception": logging.ERROR,
}


def without_addresses(line: bytes) -> bytes:
    """One line of a server that is not ours, with every mail address made a mark: a patient's holds the matricule."""
    return _ADDRESS.sub(b"<address>", line)


def _without_exception_text(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Type and place of an exception, never its message: parsers quote what they choke on."""
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()
    if isinstance(error, BaseException):
        error = (type(error), error, error.__traceback__)
    if isinstance(error, tuple) and error[0] is not None:
        event["exception"] = error[0].__qualname__
        event["at"] = [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(error[2])[-6:]]
    return event


def _of_level(_: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Drop what the root logger would."""
    if _LEVELS.get(method, logging.CRITICAL) < logging.getLogger().level:
        raise structlog.DropEvent
    return event


def _json(event: object, **_: object) -> str:
    return msgspec.json.encode(event, enc_hook=repr).decode()


class _Lines:
    """Standard error for whoever has more important things to do: on a full disk a line is lost, and no message with
    it. A door whose log line raised would have refused for good what it had just kept."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


def set_level(level: str) -> None:
    """From now on."""
    logging.getLogger().setLevel(level)


def configure(level: str = "INFO") -> None:
    """One form for the lines of structlog and of the standard library's loggers, on standard error."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_exception_text,
    ]
    # Not through the standard library, which costs more than many a step of a message's road.
    structlog.configure(
        processors=[_of_level, *shared, structlog.processors.JSONRenderer(serializer=_json)],
        wrapper_class=structlog.BoundLogger,
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Lines())),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # These libraries log protocol lines, addresses among them, at INFO and below.
    for chatty in ("mail.log", "aiosmtpd", "aioimaplib", "fontTools", "fpdf", "pikepdf", "asyncio", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
