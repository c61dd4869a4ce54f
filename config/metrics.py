"""What monitoring asks one gateway: `/metrics`, `/healthz` and `/readyz` over HTTP on loopback.

Prometheus scrapes the first (text format 0.0.4 or later), an orchestrator or a load balancer asks the others. Nothing
here names a person: labels are delivery states and names of our own certificates and checks. The server answers GET
and HEAD only, on loopback only, one request a connection, small and soon: who wants it from elsewhere puts a proxy in
front.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from http import HTTPStatus
from importlib import metadata

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from mta.spool_reading import SpoolReader

log = structlog.get_logger(__name__)

Certificates = Callable[[], Iterable[tuple[str, datetime | None]]]
"""Our own certificates: a short name without personal data (`operator`, `submission`), one of a few that never change,
and notAfter, with its time zone; None when the certificate cannot be read."""

_HEAD_BYTES = 8 * 1024
_HEAD_SECONDS = 5.0
_ANSWER_SECONDS = 10.0
_CHECK_SECONDS = 4.0
_CONNECTIONS = 16
_PLAIN = "text/plain; charset=utf-8"


class RoadCollector(Collector):
    """Reads the spool and the certificates anew at every scrape; `relais_up` is 0 when the spool cannot be read."""

    def __init__(self, spool: SpoolReader, certificates: Certificates) -> None:
        self._spool = spool
        self._certificates = certificates

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: registering must not read the database."""
        return ()

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("relais_build_info", "Version of the running gateway.", labels=["version"])
        build.add_metric([metadata.version("relais-sante")], 1)
        yield build
        expiry = GaugeMetricFamily(
            "relais_certificate_expiry_seconds",
            "Seconds until this certificate of ours expires; negative once it has, -Inf when it cannot be read.",
            labels=["certificate"],
        )
        now = datetime.now(UTC)
        for name, not_after in self._certificates():
            expiry.add_metric([name], -math.inf if not_after is None else (not_after - now).total_seconds())
        yield expiry
        try:
            gauges = self._spool.gauges()
        except SQLAlchemyError as error:
            log.error("metrics.spool", exc_info=error)
            yield _gauge("relais_up", "1 when the gateway runs and its queue can be read.", 0)
            return
        yield _gauge("relais_up", "1 when the gateway runs and its queue can be read.", 1)
        states = GaugeMetricFamily("relais_deliveries", "Deliveries by state, since the beginning.", labels=["state"])
        for state, count in gauges.states.items():
            states.add_metric([state.value], count)
        yield states
        yield _gauge("relais_queue_due", "Deliveries whose next try has come and nobody works on.", gauges.due)
        yield _gauge(
            "relais_queue_oldest_seconds",
            "Age of the oldest accepted message with a delivery that has not ended; 0 when none waits.",
            _age(gauges.at, gauges.oldest_waiting),
        )
        yield _gauge(
            "relais_unreported", "Deliveries that ended and whose receipt is not on its way yet.", gauges.unreported
        )
        yield _gauge(
            "relais_receipts_awaited",
            "Deliveries that another operator took, promising a receipt that has not come.",
            gauges.awaited,
        )
        yield _gauge(
            "relais_oldest_unacknowledged_seconds",
            "Age of the oldest message whose sender has no final answer: a delivery has not ended, or its receipt is "
            "not on its way, or another operator's has not come (given up after twice the time a delivery may take). "
            "0 when there is none.",
            _age(gauges.at, gauges.oldest_unanswered),
        )


class MetricsServer:
    """One gateway's monitoring port.

    `checks` say whether what the gateway needs answers (`directory`, `lmtp`, `database`, `trust-list`, ...): each is
    called in a thread, may block, and fails by returning False, by raising, or by taking longer than 4 s. `/readyz` is
    200 when all pass, else 503 with the names of those that fail, one a line. `/healthz` is 200 while the event loop
    runs. `/metrics` is 503 when it cannot be computed within 10 s.
    """

    def __init__(
        self,
        spool: SpoolReader,
        certificates: Certificates,
        checks: Mapping[str, Callable[[], bool]],
        collectors: Iterable[Collector] = (),
    ) -> None:
        """`collectors` give gauges of their own, read anew at every scrape."""
        self._registry = CollectorRegistry()
        for collector in (RoadCollector(spool, certificates), *collectors):
            self._registry.register(collector)
        ProcessCollector(registry=self._registry)
        self._work: dict[str, Callable[[], object]] = {"/metrics": lambda: generate_latest(self._registry), **checks}
        self._checks = tuple(checks)
        # A place for each: one that hangs takes no thread from another.
        self._threads = ThreadPoolExecutor(len(self._work), thread_name_prefix="metrics")
        self._running: dict[str, Future[object]] = {}
        self._connections = 0
        self._server: asyncio.Server | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; returns the port. Raises `ValueError` for a host that is no loopback address, `OSError`."""
        if not ipaddress.ip_address(host).is_loopback:
            raise ValueError(f"{host} is not a loopback address: metrics are not for the network")
        self._server = await asyncio.start_server(self._serve, host, port, limit=_HEAD_BYTES)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening. A check that hangs is left to its thread."""
        if self._server is not None:
            self._server.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            async with asyncio.timeout(_HEAD_SECONDS + _ANSWER_SECONDS + _HEAD_SECONDS):
                if self._connections <= _CONNECTIONS:
                    writer.write(await self._answer(reader))
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever sends no request, or no end of it, or does not read, gets no answer
        finally:
            self._connections -= 1
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        """The whole answer to one request (RFC 9112). Raises when it does not come, or its head is too long."""
        async with asyncio.timeout(_HEAD_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response(HTTPStatus.BAD_REQUEST, b"not an HTTP/1 request\n")
        method, target, _ = words
        if method not in (b"GET", b"HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET and HEAD\n", extra="Allow: GET, HEAD\r\n")
        only_head = method == b"HEAD"
        match target.partition(b"?")[0]:
            case b"/healthz":
                return _response(HTTPStatus.OK, b"ok\n", only_head)
            case b"/readyz":
                failing = await self._failing()
                if failing:
                    return _response(HTTPStatus.SERVICE_UNAVAILABLE, "".join(f"{n}\n" for n in failing), only_head)
                return _response(HTTPStatus.OK, b"ready\n", only_head)
            case b"/metrics":
                text = await self._run("/metrics", _ANSWER_SECONDS)
                if not isinstance(text, bytes):
                    return _response(HTTPStatus.SERVICE_UNAVAILABLE, b"the metrics cannot be read\n", only_head)
                return _response(HTTPStatus.OK, text, only_head, content_type=CONTENT_TYPE_LATEST)
            case _:
                return _response(HTTPStatus.NOT_FOUND, b"/metrics, /healthz or /readyz\n", only_head)

    async def _failing(self) -> list[str]:
        verdicts = await asyncio.gather(*(self._run(name, _CHECK_SECONDS) for name in self._checks))
        return [name for name, passed in zip(self._checks, verdicts, strict=True) if passed is not True]

    async def _run(self, name: str, seconds: float) -> object:
        """The result of one piece of work; None when it raises or is late.

        Each runs once at a time: who asks meanwhile shares its result, so that one that hangs holds one thread.
        """
        running = self._running.get(name)
        if running is None or running.done():
            running = self._running[name] = self._threads.submit(self._work[name])
        waited = asyncio.wrap_future(running)
        done, _ = await asyncio.wait((waited,), timeout=seconds)
        if not done:
            waited.add_done_callback(_seen)
            log.warning("metrics.late", work=name)
            return None
        error = waited.exception()
        if error is not None:
            log.warning("metrics.failed", work=name, error=type(error).__name__)
            return None
        return waited.result()


def _seen(waited: asyncio.Future[object]) -> None:
    """Nobody waits any more: look at the exception, or asyncio complains that nobody did."""
    if not waited.cancelled():
        waited.exception()


def _gauge(name: str, documentation: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, documentation, value=value)


def _age(now: float, since: float | None) -> float:
    return 0.0 if since is None else max(0.0, now - since)


def _response(
    status: HTTPStatus, body: bytes | str, only_head: bool = False, *, content_type: str = _PLAIN, extra: str = ""
) -> bytes:
    content = body.encode() if isinstance(body, str) else body
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\nContent-Length: {len(content)}\r\n"
        f"Cache-Control: no-store\r\n{extra}Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + (b"" if only_head else content)
