"""The HTTPS door where mail programs and people find out how to reach their mailbox.

It serves what `mta.mailboxes.services` says in the forms programs ask for, and knows nothing else: no mailbox, no
account, no database. So no answer, and no answer's time, can tell whether an address exists. It logs no address and no
query; a patient's address holds a matricule.

Starlette routes, uvicorn's HTTP/1.1 speaks (h11). The listening socket is ours, because a door of a gateway must bound
what strangers cost: connections, in all and of one network, from the first octet of the TLS handshake; their time; the
size of a request; signatures under way. TLS follows renewed certificates at each connection.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import formatdate
from ipaddress import IPv4Network, IPv6Network
from typing import Any, cast

import h11
import structlog
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from mta.mailboxes.autoconfig import autoconfig
from mta.mailboxes.autodiscover import MAX_REQUEST, autodiscover, autodiscover_redirection
from mta.mailboxes.discovery_page import page
from mta.mailboxes.mobileconfig import CONTENT_TYPE, signed_profile
from mta.mailboxes.services import ClientServices
from mta.smtp.limits import network_of
from mta.smtp.proxy_protocol import ProxyHeaderError, is_proxy, octets_missing, read_header
from smime.signing import SignerFailedError, UnfitSignerError
from trust.keys import Signer
from trust.tls import Context, in_force

log = structlog.get_logger(__name__)

_EARLY_OCTETS = 16 * 1024
"""Of a request that came with the end of the TLS handshake; a whole head may not be longer."""
_SIGNATURES = 32
"""Made or waited for at the same time: beyond that people would wait behind whoever asks for the fun of it."""
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class DiscoveryOptions:
    """What strangers may cost."""

    connections: int = 256
    """At the same time, in all."""
    connections_per_network: int = 64
    """Of one IPv4 address or IPv6 /64: a practice comes from one address."""
    seconds: float = 20.0
    """From a connection's beginning to its end, handshake and all requests included."""
    handshake_seconds: float = 10.0
    idle_seconds: int = 5
    """Between two requests."""
    proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    """Load balancers, whose PROXY header is required and believed."""


class DiscoveryDoor:
    """Of one gateway. `start`, then `stop`."""

    def __init__(
        self,
        services: ClientServices,
        context: Context,
        signer: Callable[[], Signer],
        options: DiscoveryOptions | None = None,
    ) -> None:
        """`signer` gives who signs Apple's profile, at each one."""
        self._context = context
        self._options = options or DiscoveryOptions()
        # Of its own: a flood of requests for profiles occupies no thread of the gateway.
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="profile")
        self._config = Config(
            application(services, signer, self._threads),
            interface="asgi3",
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # what it would log quotes requests
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=self._options.idle_seconds,
            h11_max_incomplete_event_size=_EARLY_OCTETS,
        )
        self._config.load()
        self._state = ServerState()
        self._gate = _Gate(self._options)
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int, reuse_port: bool = False) -> int:
        """Listen; returns the port. Raises OSError."""
        make = functools.partial(
            _Connection, self._config, self._state, context=self._context, options=self._options, gate=self._gate
        )
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(make, host, port, reuse_port=reuse_port or None)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening and end what is open; an answer under way has a second to go out."""
        if self._server is None:
            return
        self._server.close()
        for connection in tuple(self._state.connections):
            connection.shutdown()
        tasks = tuple(self._state.tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        await self._gate.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._server = None


def application(
    services: ClientServices, signer: Callable[[], Signer], threads: Executor
) -> Callable[..., Awaitable[None]]:
    """The ASGI application: what each path answers. `threads` sign.

    A wrong path is 404, a wrong method 405, a body that is too long 413; the text never repeats the request.
    """
    signatures = 0
    # Made once: they say the same to everybody.
    configuration = autoconfig(services)
    authorities = b"".join(each.public_bytes(Encoding.PEM) for each in services.authorities)

    def address_of(request: Request) -> str:
        return services.our_address(request.query_params.get("email") or "")

    async def settings(_: Request) -> Response:
        return Response(configuration, media_type="text/xml")

    async def people(request: Request) -> Response:
        return Response(page(services, address_of(request)), media_type="text/html")

    async def profile(request: Request) -> Response:
        nonlocal signatures
        if signatures >= _SIGNATURES:
            raise HTTPException(503)
        sign = functools.partial(_sign, services, address_of(request), signer)
        signatures += 1  # until it is made: who went away meanwhile has not given it up
        try:
            content = await asyncio.get_running_loop().run_in_executor(threads, sign)
        except (SignerFailedError, UnfitSignerError, OSError, ValueError) as error:
            log.error("discovery.not-signed", problem=type(error).__name__)
            raise HTTPException(503) from None
        finally:
            signatures -= 1
        named = {"Content-Disposition": 'attachment; filename="messagerie.mobileconfig"'}
        return Response(content, media_type=CONTENT_TYPE, headers=named)

    async def outlook(request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_REQUEST:
                raise HTTPException(413)
        return Response(autodiscover(body, services), media_type="text/xml")

    async def outlook_json(_: Request) -> Response:
        return JSONResponse(autodiscover_redirection(services))

    async def trusted(_: Request) -> Response:
        if not authorities:
            raise HTTPException(404)
        return Response(authorities, media_type="application/x-pem-file")

    async def policy(_: Request) -> Response:
        if not services.mta_sts:
            raise HTTPException(404)
        return Response(services.mta_sts, media_type="text/plain")

    async def refuse(_: Request, error: Exception) -> Response:
        status, headers = (error.status_code, error.headers) if isinstance(error, HTTPException) else (500, None)
        return Response(f"{status}\n", status, headers, "text/plain")

    routes = [
        Route("/", people),
        Route("/mail/config-v1.1.xml", settings),
        Route("/.well-known/autoconfig/mail/config-v1.1.xml", settings),
        Route("/profil.mobileconfig", profile),
        Route("/autorites.pem", trusted),
        Route("/.well-known/mta-sts.txt", policy),
        Route("/autodiscover/autodiscover.xml", outlook, methods=["POST"]),
        Route("/autodiscover/autodiscover.json", outlook_json),
        Route("/autodiscover/autodiscover.json/v1.0/{address}", outlook_json),
    ]
    inner = Starlette(routes=routes, exception_handlers={HTTPException: refuse})
    inner.router.redirect_slashes = False  # where to, the request would say
    return _outer(inner)


def _sign(services: ClientServices, address: str, signer: Callable[[], Signer]) -> bytes:
    return signed_profile(services, address, signer())


def _outer(inner: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Headers of every answer; Outlook's spellings of one path; no exception's text, which may quote a request."""

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        begun = False

        async def with_headers(message: Any) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                extra = _HEADERS | {"Date": formatdate(usegmt=True)}
                message["headers"] += [(name.lower().encode(), value.encode()) for name, value in extra.items()]
            await send(message)

        if scope["path"].lower().startswith("/autodiscover/"):
            scope = scope | {"path": scope["path"].lower(), "raw_path": scope["raw_path"].lower()}
        try:
            await inner(scope, receive, with_headers)
        except ClientDisconnect:
            pass
        except Exception as error:
            log.error("discovery.failed", problem=type(error).__name__)
            if not begun:
                await Response("500\n", 500, media_type="text/plain")(scope, receive, with_headers)

    return serve


class _Gate:
    """Counts connections from their first octet to their end."""

    def __init__(self, options: DiscoveryOptions) -> None:
        self._options = options
        self._of: Counter[str] = Counter()
        self._open: dict[asyncio.BaseTransport, str | None] = {}
        """With the network each counts for, as soon as that is known."""
        self._tasks: set[asyncio.Task[None]] = set()

    def enter(self, transport: asyncio.BaseTransport) -> bool:
        """Whether it may come in; who may must `leave`."""
        if len(self._open) >= self._options.connections:
            return False
        self._open[transport] = None
        return True

    def known(self, transport: asyncio.BaseTransport, client: str) -> bool:
        """Whether one more may stay of where this one, which came in, is from."""
        network = network_of(client)
        if self._of[network] >= self._options.connections_per_network:
            return False
        self._of[network] += 1
        self._open[transport] = network
        return True

    def leave(self, transport: asyncio.BaseTransport) -> None:
        network = self._open.pop(transport, None)
        if network is None:
            return
        self._of[network] -= 1
        if not self._of[network]:
            del self._of[network]

    def keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End what is open, handshakes too."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for transport in tuple(self._open):
            cast(asyncio.Transport, transport).abort()


class _Connection(H11Protocol):
    """uvicorn's HTTP/1.1, behind a TLS handshake of ours and within bounds."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        *,
        context: Context,
        options: DiscoveryOptions,
        gate: _Gate,
    ) -> None:
        super().__init__(config, server_state, {})
        self._context = context
        self._options = options
        self._gate = gate
        self._raw: asyncio.Transport | None = None
        self._secured = self._lost = False
        self._early = b""
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        raw = cast(asyncio.Transport, transport)
        if not self._gate.enter(raw):
            raw.abort()
            return
        self._raw = raw
        self._deadline = self.loop.call_later(self._options.seconds, raw.abort)
        name = raw.get_extra_info("peername")
        peer = str(name[0]) if isinstance(name, tuple) and name else ""
        if is_proxy(peer, self._options.proxies):
            raw.set_protocol(_Introduction(self, raw, peer))
        else:
            self.introduced(raw, peer)

    def introduced(self, raw: asyncio.Transport, client: str) -> None:
        """It is known on whose behalf the connection is, and nothing of theirs has been read."""
        if not self._gate.known(raw, client):
            raw.abort()
            return
        raw.pause_reading()
        self._gate.keep(self.loop.create_task(self._secure(raw)))

    async def _secure(self, raw: asyncio.Transport) -> None:
        try:
            secure = await self.loop.start_tls(
                raw,
                self,
                in_force(self._context),
                server_side=True,
                ssl_handshake_timeout=self._options.handshake_seconds,
                ssl_shutdown_timeout=1.0,
            )
        except (OSError, asyncio.CancelledError):  # a scanner, a client that believes somebody else, our own end
            secure = None
        if secure is None or self._lost:  # a client may go in the moment its handshake ends
            raw.abort()
            self._left()
            return
        self._secured = True
        super().connection_made(secure)
        if self._early:
            early, self._early = self._early, b""
            self.data_received(early)

    def data_received(self, data: bytes) -> None:
        if self._secured:
            super().data_received(data)
            return
        self._early += data
        if len(self._early) > _EARLY_OCTETS and self._raw is not None:
            self._raw.abort()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's raises where the answer is out already, and then every stranger could fill the log."""
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._left()
        if self._secured:
            super().connection_lost(exc)

    def _left(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if self._raw is not None:
            self._gate.leave(self._raw)


class _Introduction(asyncio.BufferedProtocol):
    """A load balancer's PROXY header, read to its last octet and no further: what follows is TLS's."""

    def __init__(self, connection: _Connection, raw: asyncio.Transport, proxy: str) -> None:
        self._connection, self._raw, self._proxy = connection, raw, proxy
        self._data, self._room = b"", bytearray()

    def get_buffer(self, sizehint: int) -> bytearray:
        self._room = bytearray(octets_missing(self._data))
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        self._data += self._room[:nbytes]
        try:
            header = read_header(self._data)
        except ProxyHeaderError as error:
            log.warning("discovery.proxy-header-refused", proxy=self._proxy, reason=str(error))
            self._raw.abort()
            return
        if header is not None:
            self._raw.set_protocol(self._connection)
            self._connection.introduced(self._raw, header.source or self._proxy)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)
