"""Revocation in one running gateway: the checker its settings describe, what is demanded, and what is told of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import structlog
from cryptography import x509
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from config.settings import Loaded, SettingsError
from trust.certificates import Purpose
from trust.revocation import RevocationMode, RevocationPolicy
from trust.revocation.checker import Revocation, RevocationOptions
from trust.revocation.fetching import FetchOptions

log = structlog.get_logger(__name__)

_FIRST_SECONDS = 60.0
_ROUNDS = 5
"""A path has at most so many certificates whose answers are missing one after the other."""

_T = TypeVar("_T")


def revocation_policies(loaded: Loaded) -> dict[Purpose, RevocationPolicy]:
    """What each purpose demands."""
    section = loaded.settings.revocation
    stale_for = timedelta(hours=section.stale_hours)
    modes = {
        Purpose.MAIL_SIGNATURE: section.inbound,
        Purpose.MAIL_ENCRYPTION: section.outbound,
        Purpose.OPERATOR_TLS_SERVER: section.operators,
        Purpose.OPERATOR_TLS_CLIENT: section.operators,
        Purpose.LIST_SIGNATURE: section.list,
    }
    return {purpose: RevocationPolicy(RevocationMode(mode), stale_for) for purpose, mode in modes.items()}


def revocation_checker(
    loaded: Loaded,
    anchors: Iterable[x509.Certificate],
    intermediates: Iterable[x509.Certificate],
    *,
    keeping: bool = True,
) -> Revocation:
    """The one checker of a gateway; `start` it before it is asked, or it answers from nothing.

    Without `keeping` the cache of a gateway that may be running is neither read nor written.
    """
    section = loaded.settings.revocation
    return Revocation(
        anchors,
        intermediates,
        RevocationOptions(
            cache=loaded.state / section.cache if section.cache and keeping else None,
            max_crl_bytes=section.max_crl_bytes,
            max_cache_bytes=section.max_cache_bytes,
            max_memory_bytes=section.max_memory_bytes,
            fetch=FetchOptions(
                frozenset(host.lower() for host in section.allowed_hosts),
                section.fetch_seconds,
                section.per_host_a_minute,
            ),
            nonce=section.ocsp_nonce,
        ),
    )


async def patiently(work: Callable[[], _T], revocation: Revocation) -> _T:
    """`work` done in a thread, again when it raised SettingsError while answers were still being fetched.

    A gateway that starts for the first time knows of no revocation yet, and its trust list would not be believed.
    """
    until = time.monotonic() + _FIRST_SECONDS
    for _ in range(_ROUNDS):
        try:
            return await asyncio.to_thread(work)
        except SettingsError:
            left = until - time.monotonic()
            if revocation.settled(0) or left <= 0:
                raise
            log.info("revocation.first-answers")
            await asyncio.to_thread(revocation.settled, left)
    return await asyncio.to_thread(work)


class RevocationCollector(Collector):
    """The gauges of the CRLs that are held. No URL and no name is a label: there may be many."""

    def __init__(self, revocation: Revocation) -> None:
        self._revocation = revocation

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand."""
        return ()

    def collect(self) -> Iterator[Metric]:
        held, now = self._revocation.held(), datetime.now(UTC)

        def gauge(name: str, documentation: str, value: float) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"relais_revocation_{name}", documentation, value=value)

        def seconds(moment: datetime) -> float:
            return (moment - now).total_seconds()

        yield gauge("lists", "CRLs held.", len(held))
        yield gauge("entries", "Entries of all CRLs held.", sum(each.entries for each in held))
        yield gauge("bytes", "Memory of all CRLs held.", sum(each.octets for each in held))
        yield gauge(
            "oldest_age_seconds",
            "Age of the oldest CRL held, since its thisUpdate; 0 when there is none.",
            max((-seconds(each.this_update) for each in held), default=0.0),
        )
        yield gauge(
            "next_update_seconds",
            "Until the first CRL held ends; negative once it has, +Inf when there is none.",
            min((seconds(each.next_update or each.this_update) for each in held), default=float("inf")),
        )
        yield gauge("missing", "CRLs wanted that no fetch has brought yet.", len(self._revocation.missing()))
        yield gauge(
            "failing", "CRLs held whose renewal failed at the last try.", sum(each.failures > 0 for each in held)
        )
