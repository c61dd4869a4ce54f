"""What the SMTP doors are given from the configuration, and what monitoring is told of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network

from cryptography import x509
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from config.sections import DoorSettings
from config.settings import Settings, SettingsError
from mta.smtp.door import DoorOptions, OperatorDoor, Shared, SubmissionDoor
from mta.smtp.limits import Limits, MemoryBudget, Meter, Quota
from trust.accounts import Accounts
from trust.catalogue import CERTIFICATE_REFUSED
from trust.certificates import CertificateValidator
from trust.identities import CertificateSignIn, Identity
from trust.refusals import Refused

RELOADED = tuple(f"doors.{each}" for each in DoorSettings.__struct_fields__ if each not in ("memory_bytes", "proxies"))
"""Keys that come into force without a restart."""


def door_options(settings: Settings) -> DoorOptions:
    """Of all doors of this process, which share memory and quotas. Raises `SettingsError`."""
    return DoorOptions(
        settings.operator.host,
        limits_of(settings),
        proxies=proxies_of(settings),
        shared=Shared(MemoryBudget(settings.doors.memory_bytes), Meter()),
    )


def proxies_of(settings: Settings) -> tuple[IPv4Network | IPv6Network, ...]:
    """Load balancers in front of every door. Raises `SettingsError`."""
    try:
        return tuple(map(ip_network, settings.doors.proxies))
    except ValueError as error:
        raise SettingsError(f"doors.proxies: {error}") from error


def limits_of(settings: Settings) -> Limits:
    """Of each door; what a reload may change."""
    doors = settings.doors
    return Limits(
        message_bytes=settings.spool.max_message_bytes,
        recipients=doors.recipients,
        hops=doors.hops,
        connections=doors.connections,
        client=Quota(
            doors.connections_per_client,
            doors.client_messages_per_hour,
            doors.client_recipients_per_hour,
            doors.client_bytes_per_hour,
        ),
        holder=Quota(
            doors.connections_per_holder,
            doors.holder_messages_per_hour,
            doors.holder_recipients_per_hour,
            doors.holder_bytes_per_hour,
        ),
        machine=Quota(
            doors.connections_per_machine,
            doors.machine_messages_per_hour,
            doors.machine_recipients_per_hour,
            doors.machine_bytes_per_hour,
        ),
        idle_seconds=doors.idle_seconds,
        handshake_seconds=doors.handshake_seconds,
        data_seconds=doors.data_seconds,
        stranger_seconds=doors.stranger_seconds,
        commands=doors.commands,
        errors=doors.errors,
        refused_recipients=doors.refused_recipients,
        authentication_failures=doors.authentication_failures,
        free_failures=doors.free_failures,
        tarpit_seconds=doors.tarpit_seconds,
        memory_seconds=doors.memory_seconds,
    )


def certificate_sign_in(accounts: Accounts, validator: CertificateValidator) -> CertificateSignIn:
    """Whose the certificate of a TLS connection is: the way in of machines (APP mailboxes)."""

    def sign_in(shown: Sequence[bytes], login: str) -> Identity | Refused:
        try:
            chain = [x509.load_der_x509_certificate(each) for each in shown]
        except (ValueError, x509.InvalidVersion):
            return Refused(CERTIFICATE_REFUSED, "unreadable")
        if not chain:
            return Refused(CERTIFICATE_REFUSED, "none")
        found = accounts.authenticate_certificate(chain[0], chain[1:], validator)
        if isinstance(found, Refused) or not login:
            return found
        name = login.strip().lower()
        return found if name == found.login or accounts.may_use(found, name) else Refused(CERTIFICATE_REFUSED, "login")

    return sign_in


class DoorCollector(Collector):
    """What came to the doors, and what they hold."""

    def __init__(self, doors: Sequence[OperatorDoor | SubmissionDoor], options: DoorOptions) -> None:
        """`doors` may grow."""
        self._doors = doors
        self._memory = options.shared.memory

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand."""
        return ()

    def collect(self) -> Iterator[Metric]:
        connections = GaugeMetricFamily("relais_smtp_connections", "Open SMTP connections.", labels=["door"])
        answers = CounterMetricFamily(
            "relais_smtp_answers",
            "What clients were told: accepted, duplicate, or the code of a refusal.",
            labels=["door", "answer"],
        )
        for door in self._doors:
            connections.add_metric([door.origin.value], door.connections)
            for answer, count in list(door.told.items()):
                answers.add_metric([door.origin.value, answer], count)
        yield connections
        yield answers
        memory = self._memory
        for name, documentation, value in (
            ("bytes", "Octets of content that is coming in or being kept.", memory.taken),
            ("most_bytes", "The most of them there ever was.", memory.most),
            ("limit_bytes", "What they may be at most (doors.memory_bytes).", memory.octets),
        ):
            yield GaugeMetricFamily(f"relais_smtp_content_{name}", documentation, value=value)
        yield CounterMetricFamily(
            "relais_smtp_content_refused", "Messages told 452 because memory did not become free.", value=memory.refused
        )
