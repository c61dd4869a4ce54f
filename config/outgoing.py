"""What hands mail over to other operators, put together from the settings: routes, TLS policies, target, gauges."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from config.settings import Loaded, SettingsError
from directory.partners import PartnerBook
from mta.dns import Resolver
from mta.smtp.client import Timeouts
from mta.smtp.dane import Dane
from mta.smtp.gate import GateOptions
from mta.smtp.mta_sts import Policies
from mta.smtp.pool import Counts, PoolOptions
from mta.smtp.routes import Requirements, Router
from mta.smtp.target import Operators, SmtpTarget, SmtpTargetOptions
from trust.revocation.fetching import Fetcher, FetchOptions
from trust.tls import Context, PeerJudge

_POLICIES = "mta-sts.json"
"""Below the state directory."""


class Outgoing:
    """Of one gateway."""

    def __init__(
        self,
        loaded: Loaded,
        partners: PartnerBook,
        operators: Callable[[], Operators],
        context: Context,
        judge: PeerJudge,
        resolver: Resolver,
        stack: AsyncExitStack,
    ) -> None:
        """`stack` closes what must be closed. Raises `SettingsError`."""
        section = loaded.settings.outbound
        host = loaded.settings.operator.host
        self.policies: Policies | None = None
        router = None
        if section.mx:
            requirements: list[Requirements] = []
            if section.mta_sts:
                fetcher = Fetcher(FetchOptions(frozenset(section.internal_hosts), redirects=0))
                self.policies = Policies(resolver, fetcher.get, loaded.state / _POLICIES)
                stack.push_async_callback(self.policies.close)
                requirements.append(self.policies.require)
            if section.dane:
                requirements.append(Dane(resolver).require)
            router = Router(
                resolver,
                own_names=frozenset({host.lower()}),
                internal_hosts=frozenset(name.lower() for name in section.internal_hosts),
                requirements=tuple(requirements),
            )
        try:
            gate = GateOptions(
                connections=section.connections_per_destination,
                first_connections=min(2, section.connections_per_destination),
                first_rest_seconds=section.first_rest_seconds,
                longest_rest_seconds=max(section.first_rest_seconds, section.longest_rest_seconds),
            )
        except ValueError as error:
            raise SettingsError(f"outbound: {error}") from error
        options = SmtpTargetOptions(
            host,
            Timeouts(final=section.final_seconds),
            PoolOptions(gate, connections=section.connections, idle_seconds=section.idle_seconds),
            judged_seconds=section.judged_seconds,
        )
        self.target = SmtpTarget(partners, operators, context, options, judge, router)
        stack.push_async_callback(self.target.close)


class WayOut(Protocol):
    """What is asked of a target for other operators, from any thread."""

    @property
    def connections(self) -> int: ...

    @property
    def at_rest(self) -> int: ...

    @property
    def counts(self) -> Counts: ...


class OutgoingCollector(Collector):
    """How the way to other operators stands, for Prometheus."""

    def __init__(self, target: WayOut, policies: Policies | None = None) -> None:
        self._target = target
        self._policies = policies

    def describe(self) -> Iterator[Metric]:
        """Nothing beforehand."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        target = self._target
        counts = target.counts
        yield GaugeMetricFamily(
            "relais_outbound_connections", "Connections to other operators, open or being opened.", target.connections
        )
        yield GaugeMetricFamily(
            "relais_outbound_resting", "Destinations that could not be reached and are left alone now.", target.at_rest
        )
        for name, text, value in (
            ("opened", "Connections to other operators that were opened.", counts.opened),
            ("failed", "Connections to other operators that could not be had.", counts.failed),
            ("broken", "Connections that were lost in the middle of mail.", counts.broken),
            ("taken", "Messages other operators took.", counts.taken),
            ("moved", "Messages that went over another connection, surely not taken by the first.", counts.moved),
            (
                "unanswered",
                "Messages sent whole whose answer never came: the next attempt may make a second copy.",
                counts.unknown,
            ),
        ):
            yield CounterMetricFamily(f"relais_outbound_{name}", text, value)
        policies = self._policies
        yield CounterMetricFamily(
            "relais_mta_sts_mismatches",
            "Hosts outside their domain's MTA-STS policy, and certificates without their host's name.",
            0 if policies is None else policies.mismatches,
        )
