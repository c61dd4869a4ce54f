"""The only door to the network of trust: fetches what a certificate's URLs point at, and nothing a stranger wants.

URLs in certificates are other people's input, and a gateway stands inside a hospital's network: they must not become a
way to reach what is there. http and https only, no user information, public addresses only, and the address that was
checked is the one connected to, so that a name cannot change its mind in between. Redirects stay in their scheme, are
few, and are checked again. Size and time are limited over the whole exchange, not per read. Proxies of the environment
are not asked: they would resolve names for us.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import re
import socket
import ssl
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from urllib.parse import SplitResult, urljoin, urlsplit

MAX_URL = 2048
MAX_REDIRECTS = 3
_MAX_HOSTS = 1024
_CHUNK = 1 << 16
_CONNECT_SECONDS = 5.0
"""For one address of a host, so that one that does not answer leaves time for the next."""
_PORTS = frozenset({80, 443})
_HOST = re.compile(r"[a-z0-9]([a-z0-9._-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\]")
_TELLTALE = frozenset({ipaddress.ip_address("168.63.129.16")})
"""Public by number, and the host's own metadata service on one large cloud."""

_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
_ISATAP = 0x00005EFE
"""Upper half of an interface identifier, but for its universal bit (RFC 5214 §6.1)."""
_TUNNELLED = ipaddress.ip_network("2001::/32")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class FetchError(Exception):
    """Nothing was fetched. The text says why and names at most the host."""


class FetchRefusedError(FetchError):
    """The URL, its address or what it redirects to is not one we go to; asking again will not help."""


class RateLimitedError(FetchError):
    """The host was asked often enough lately; nothing was sent."""


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """How far fetching goes."""

    allowed: frozenset[str] = frozenset()
    """`host` or `host:port` (lower case) that may be internal, and any port of which may be asked."""
    seconds: float = 20.0
    """For one exchange, redirects included."""
    per_host_a_minute: int = 60
    redirects: int = MAX_REDIRECTS
    """Followed at most; 0 where a standard forbids it (RFC 8461 §3.3)."""


Resolve = Callable[[str, int], Sequence[str]]
Connect = Callable[[str, int, float], socket.socket]


def is_public(address: Address) -> bool:
    """Whether an address belongs to the Internet at large, also when it carries an IPv4 address inside (RFC 4291
    §2.5.5, RFC 6052, RFC 3056, RFC 4380, RFC 5214)."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _TRANSLATED:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in _GLOBAL_UNICAST or address in _TUNNELLED:
            return False
        if address.sixtofour is not None and not is_public(address.sixtofour):
            return False
        if int(address) >> 32 & 0xFDFFFFFF == _ISATAP and not is_public(
            ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        ):
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved and address not in _TELLTALE


def _resolve(host: str, port: int) -> Sequence[str]:
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _connect(address: str, port: int, seconds: float) -> socket.socket:
    return socket.create_connection((address, port), timeout=seconds)


class Fetcher:
    """Fetches over HTTP/1.1. Thread-safe; blocks, so it is for the refresher's threads only."""

    def __init__(
        self,
        options: FetchOptions = FetchOptions(),
        *,
        tls: ssl.SSLContext | None = None,
        resolve: Resolve = _resolve,
        connect: Connect = _connect,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._tls = tls
        self._resolve = resolve
        self._connect = connect
        self._clock = clock
        self._recent: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = Lock()

    def get(self, url: str, max_bytes: int) -> bytes:
        """The body of a 200 answer; raises `FetchError`."""
        return self._exchange("GET", url, max_bytes, None, {})

    def post(self, url: str, body: bytes, content_type: str, max_bytes: int) -> bytes:
        """The body of a 200 answer; redirects are followed only where they keep the method (307, 308)."""
        return self._exchange("POST", url, max_bytes, body, {"Content-Type": content_type})

    def _exchange(self, method: str, url: str, max_bytes: int, body: bytes | None, headers: dict[str, str]) -> bytes:
        deadline = time.monotonic() + self._options.seconds
        follow = (307, 308) if body is not None else (301, 302, 303, 307, 308)
        scheme = ""
        for _ in range(self._options.redirects + 1):
            parts = _checked(url)
            if scheme and parts.scheme != scheme:
                raise FetchRefusedError("redirected to another scheme")
            scheme = parts.scheme
            status, location, content = self._once(method, parts, max_bytes, body, headers, deadline)
            if status == 200:
                return content
            if status not in follow or not location:
                raise FetchError(f"{parts.hostname} answers {status}")
            url = urljoin(url, location)
        raise FetchRefusedError("redirected too often")

    def _once(
        self,
        method: str,
        parts: SplitResult,
        max_bytes: int,
        body: bytes | None,
        headers: dict[str, str],
        deadline: float,
    ) -> tuple[int, str, bytes]:
        """One request: status, Location, and the body when the status is 200."""
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        addresses = self._addresses(host, port)
        self._count(host)
        connection = http.client.HTTPConnection(host, port)
        opened: list[socket.socket] = []
        try:
            opened.append(self._open(addresses, host, port, parts.scheme, deadline))
            connection.sock = _Timed(opened[0], deadline)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request(
                method,
                target,
                body,
                {"Accept-Encoding": "identity", "Connection": "close", "User-Agent": "relais"} | headers,
            )
            response = connection.getresponse()
            if response.status != 200:
                return response.status, response.headers.get("Location", ""), b""
            if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
                raise FetchError(f"{host} sends an encoding that was not asked for")
            return 200, "", _body(response, max_bytes, host)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise FetchError(f"{host}: {type(error).__name__}") from error
        finally:
            for each in opened:
                each.close()

    def _addresses(self, host: str, port: int) -> list[str]:
        """Addresses of a host that may be connected to; raises FetchRefusedError when it has others only."""
        options = self._options
        trusted = host in options.allowed or f"{host}:{port}" in options.allowed
        if not trusted and port not in _PORTS and port < 1024:
            raise FetchRefusedError(f"{host} at port {port}")
        try:
            found = [ipaddress.ip_address(each.partition("%")[0]) for each in self._resolve(host, port)]
        except (OSError, ValueError) as error:
            raise FetchError(f"{host} cannot be resolved") from error
        fit = [str(each) for each in found if trusted or is_public(each)]
        if found and not fit:
            raise FetchRefusedError(f"{host} is an internal address")
        return fit

    def _count(self, host: str) -> None:
        now = self._clock()
        with self._lock:
            recent = self._recent.setdefault(host, deque())
            self._recent.move_to_end(host)
            while len(self._recent) > _MAX_HOSTS:
                self._recent.popitem(last=False)
            while recent and recent[0] <= now - 60:
                recent.popleft()
            if len(recent) >= self._options.per_host_a_minute:
                raise RateLimitedError(f"{host} was asked {len(recent)} times within a minute")
            recent.append(now)

    def _open(self, addresses: list[str], host: str, port: int, scheme: str, deadline: float) -> socket.socket:
        failure: OSError = OSError("no address")
        for address in addresses:
            try:
                plain = self._connect(address, port, min(_left(deadline), _CONNECT_SECONDS))
            except OSError as error:
                failure = error
                continue
            if scheme == "http":
                return plain
            try:
                plain.settimeout(_left(deadline))
                return self._tls_context().wrap_socket(plain, server_hostname=host)
            except BaseException:
                plain.close()
                raise
        raise failure

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls


def _checked(url: str) -> SplitResult:
    """The parts of a URL we may go to; raises FetchRefusedError."""
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise FetchRefusedError("not a plain URL")
    try:
        parts = urlsplit(url)
        host, _ = (parts.hostname or ""), parts.port
    except ValueError:
        raise FetchRefusedError("not a URL") from None
    if parts.scheme not in ("http", "https"):
        raise FetchRefusedError("neither http nor https")
    if "@" in parts.netloc:
        raise FetchRefusedError("user information in a URL")
    if not _HOST.fullmatch(f"[{host}]" if ":" in host else host):
        raise FetchRefusedError("host of a URL")
    return parts


def _body(response: http.client.HTTPResponse, max_bytes: int, host: str) -> bytes:
    if response.length is not None and response.length > max_bytes:
        raise FetchError(f"{host} announces more than {max_bytes} octets")
    expected = response.length
    body = bytearray()  # no list of pieces: somebody may send one octet at a time
    while piece := response.read1(_CHUNK):
        body += piece
        if len(body) > max_bytes:
            raise FetchError(f"{host} sends more than {max_bytes} octets")
    if expected is not None and len(body) < expected:
        raise FetchError(f"{host} sends less than it announces")
    return bytes(body)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("out of time")
    return left


class _Timed:
    """What `http.client` needs of a socket, with one deadline for everything: a peer that sends an octet now and then
    must not keep the connection."""

    def __init__(self, inner: socket.socket, deadline: float) -> None:
        self._inner = inner
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        self._inner.settimeout(_left(self._deadline))
        self._inner.sendall(data)

    def makefile(self, *_: object, **__: object) -> io.BufferedReader:
        return io.BufferedReader(_Reading(self._inner, self._deadline))

    def close(self) -> None:
        """Nothing: `http.client` closes before the body is read; who opened the socket closes it."""


class _Reading(io.RawIOBase):
    """The receiving side of a socket, read until the deadline."""

    def __init__(self, inner: socket.socket, deadline: float) -> None:
        self._inner = inner
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        self._inner.settimeout(_left(self._deadline))
        return self._inner.recv_into(buffer)
