"""How the command line asks a running gateway: JSON lines over a Unix socket that only the service user opens.

With SQLite exactly one process writes; `relais dossier read` therefore asks the gateway, which decides, journals and
answers. Requests and answers are one JSON object a line: `{"call": name, ...}` and `{"result": ...}` or
`{"refused": {"code", "text", "detail"}}` or `{"error": sentence}`. Binary values travel as base64 strings.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import pwd
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from mta.private_socket import private_socket
from trust.refusals import Refused

log = structlog.get_logger(__name__)

Call = Callable[[Mapping[str, Any]], Awaitable[Any]]
"""Takes the request, returns something JSON can hold, or a `Refused`."""

_ANSWER_LIMIT = 256 * 1024 * 1024
_REQUEST_LIMIT = 64 * 1024 * 1024
"""A request carries one document of at most 40 MiB (`bridges.cda.MAX_DOCUMENT_BYTES`) in base64."""

_UCRED = struct.Struct("iII")
"""unix(7), SO_PEERCRED: pid, uid, gid."""
_NO_LOGIN = 2**32 - 1
"""What loginuid says of a process that nobody logged in for."""


class ControlError(Exception):
    """The gateway cannot be asked, or said no; the message is a sentence for the person at the terminal."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of the socket, as the kernel says; each request's `"peer"`."""

    pid: int
    uid: int

    @classmethod
    def of(cls, connection: Any) -> Peer:
        """`connection` is a Unix stream socket."""
        pid, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        return cls(pid, uid)

    @property
    def name(self) -> str:
        """For the journal: the user, and who had logged in when that is another (sudo), as far as the kernel keeps it.
        May block (user database)."""
        try:
            login = int(Path(f"/proc/{self.pid}/loginuid").read_text(encoding="ascii"))
        except (OSError, ValueError):
            login = _NO_LOGIN
        user = _user(self.uid)
        return user if login in (_NO_LOGIN, self.uid) else f"{_user(login)} as {user}"


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


class ControlSocket:
    """The gateway's side."""

    def __init__(self, path: Path, calls: Mapping[str, Call], *, request_limit: int = _REQUEST_LIMIT) -> None:
        """A request of more than `request_limit` bytes closes its connection."""
        self._path = path
        self._calls = calls
        self._request_limit = request_limit
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(
            self._serve, sock=private_socket(self._path), limit=self._request_limit
        )

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            peer = Peer.of(writer.get_extra_info("socket"))
            while line := await reader.readline():
                writer.write(await self._answer(line, peer))
                await writer.drain()
        except (ConnectionError, ValueError):  # ValueError: a request past the limit
            return
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, line: bytes, peer: Peer) -> bytes:
        """One line. A document is large: JSON is read and written beside the event loop."""
        try:
            request = await asyncio.to_thread(json.loads, line)
            call = self._calls[request["call"]]
            request["peer"] = peer  # whatever the request says of itself
        except (ValueError, KeyError, TypeError, RecursionError):
            return _line({"error": "the gateway does not know this request; are both of the same version?"})
        try:
            result = await call(request)
            if isinstance(result, Refused):
                refusal = result.refusal
                return _line({"refused": {"code": refusal.code, "text": refusal.text, "detail": result.detail}})
            return await asyncio.to_thread(_line, {"result": result})
        except KeyError as error:
            log.error("control.failed", call=request["call"], exc_info=error)
            return _line({"error": "the request lacks an argument; are command and gateway of the same version?"})
        except Exception as error:  # a bug must not close the door for every other request
            log.error("control.failed", call=request["call"], exc_info=error)
            return _line({"error": "the gateway failed on this request; its log says where"})


def _line(answer: Mapping[str, Any]) -> bytes:
    return json.dumps(answer).encode() + b"\n"


def ask(path: Path, call: str, seconds: float = 30.0, **arguments: Any) -> Any:
    """The command line's side: one request, its result. Raises `ControlError`."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(seconds)
            connection.connect(str(path))
            connection.sendall(json.dumps({"call": call, **arguments}).encode() + b"\n")
            with connection.makefile("rb") as stream:
                answer = json.loads(stream.readline(_ANSWER_LIMIT))
    except TimeoutError as error:
        raise ControlError(
            f"the gateway at {path} did not answer within {seconds:g} s: it may still be doing it; ask again"
        ) from error
    except PermissionError as error:
        raise ControlError(f"{path} belongs to another user: run this as that user or as root") from error
    except (OSError, ValueError) as error:
        raise ControlError(f"no gateway answers at {path}: is it running?") from error
    if "refused" in answer:
        refused = answer["refused"]
        detail = f" ({refused['detail']})" if refused["detail"] else ""
        raise ControlError(f"{refused['code']}: {refused['text']}{detail}")
    if "error" in answer:
        raise ControlError(answer["error"])
    return answer["result"]
