"""Where the trust list comes from: a file somebody puts there, or the authority's address.

What is fetched is believed for its signature, never for where it came from; the source only has to be bounded in size
and time, and say in one sentence why there is nothing.
"""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from trust.revocation.fetching import Fetcher, FetchError, FetchOptions
from trust.trustlist import MAX_BYTES

ListSource = Callable[[], bytes]
"""Blocks for a bounded time; raises `ListUnavailableError`."""


class ListUnavailableError(Exception):
    """There is no list to be had now; the text is a sentence for the operator."""


def file_source(path: Path) -> ListSource:
    """The list as a file. A pipe, a device or a directory is refused rather than waited for."""

    def read() -> bytes:
        try:
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise ListUnavailableError(f"{path} is no regular file")
                return file.read(MAX_BYTES + 1)
        except OSError as error:
            raise ListUnavailableError(f"{path} cannot be read: {error.strerror or type(error).__name__}") from error

    return read


def url_source(url: str, ca_pem: Path, seconds: float = 60.0) -> ListSource:
    """The list at an http or https address the operator configured, whose server chains to `ca_pem`.

    The host named there may be internal (a mirror, a proxy); what it redirects to may not.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    port = parts.port or (443 if parts.scheme == "https" else 80)

    def fetch() -> bytes:
        # made anew each time: the authorities in the file may have been renewed
        try:
            tls = ssl.create_default_context(cafile=str(ca_pem)) if parts.scheme == "https" else None
        except (OSError, ssl.SSLError) as error:
            raise ListUnavailableError(f"{ca_pem} holds no certificates for the list's server") from error
        try:
            return Fetcher(FetchOptions(frozenset({f"{host}:{port}"}), seconds), tls=tls).get(url, MAX_BYTES)
        except FetchError as error:
            raise ListUnavailableError(f"the list cannot be fetched: {error}") from error

    return fetch
