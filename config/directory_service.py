"""The directory as settings describe it: connections, other people's directories, what is learned from signed mail."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from config.settings import Loaded, SettingsError
from directory.fhir import AnnuaireSante, FhirOptions
from directory.offered import OfferOutcome, SignedMailLearner
from directory.resolve import Directory, DirectoryOptions, DirectoryRefusedError, DirectoryUnavailableError
from directory.srv import SrvLookup
from directory.upstream import UpstreamDirectories, UpstreamOptions
from trust.certificates import CertificateValidator

log = structlog.get_logger(__name__)

_REMEMBERED = 10_000
_MOST_WAITING = 500
"""Certificates waiting to be looked at; what comes on top comes again with the author's next mail."""


def open_directory(loaded: Loaded) -> Directory:
    """The gateway's view. Raises `SettingsError`."""
    section = loaded.settings.directory
    return _open(loaded, section.bind_dn, section.password_file, "directory.password_file", upstream=True)


def open_writer(loaded: Loaded) -> Directory | None:
    """The identity that writes what the gateway learns; None where none is configured. Raises `SettingsError`."""
    section = loaded.settings.directory
    if not section.writer_dn:
        return None
    return _open(loaded, section.writer_dn, section.writer_password_file, "directory.writer_password_file")


def open_register(loaded: Loaded) -> AnnuaireSante:
    """The FHIR API of the national register. Raises `SettingsError`."""
    section = loaded.settings.directory.register
    key = _secret(loaded, section.api_key_file, "directory.register.api_key_file")
    try:
        return AnnuaireSante(
            FhirOptions(section.base, key, loaded.path(section.ca) if section.ca else None, section.timeout_seconds)
        )
    except ValueError as error:
        raise SettingsError(f"directory.register: {error}") from error


def _open(loaded: Loaded, dn: str, password_file: str, key: str, upstream: bool = False) -> Directory:
    section = loaded.settings.directory
    try:
        return Directory(
            DirectoryOptions(
                uri=section.uri,
                base=section.base,
                bind_dn=dn,
                password=_secret(loaded, password_file, key),
                ca_file=loaded.path(section.ca) if section.ca else None,
                timeout_seconds=section.timeout_seconds,
                connections=section.connections,
                replicas=section.replicas,
                rest_seconds=section.rest_seconds,
                cache_entries=section.cache_entries,
                cache_seconds=section.cache_seconds,
                negative_seconds=section.negative_seconds,
            ),
            _upstream(loaded) if upstream else None,
        )
    except ValueError as error:
        raise SettingsError(f"directory: {error}") from error


def _upstream(loaded: Loaded) -> UpstreamDirectories | None:
    sections = loaded.settings.directory.upstream
    if not sections:
        return None
    options = [
        UpstreamOptions(
            domains=frozenset(domain.lower() for domain in each.domains),
            servers=each.servers,
            base=each.base,
            ca_file=loaded.path(each.ca) if each.ca else None,
            timeout_seconds=each.timeout_seconds,
        )
        for each in sections
    ]
    return UpstreamDirectories(options, SrvLookup(loaded.settings.dns.servers))


def _secret(loaded: Loaded, file: str, key: str) -> str:
    try:
        return loaded.path(file).read_text().strip() if file else ""
    except OSError as error:
        raise SettingsError(f"{key} cannot be read: {error.strerror}") from error


class MailLearning:
    """Certificates from signed mail on their way into the directory, beside the road: no mail waits for it."""

    def __init__(self, writer: Directory, validator: CertificateValidator) -> None:
        self._writer = writer
        self._learner = SignedMailLearner(writer.offer_certificate, validator)
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="learning")
        self._lock = threading.Lock()
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._waiting = 0
        self.counts: dict[str, int] = {}
        """Certificates by what became of them."""

    def learn(self, author: str, signer: x509.Certificate, came_along: Sequence[x509.Certificate] = ()) -> None:
        """The signature was valid and its signer the one author. Returns at once, never raises. From any thread.

        `came_along`: see `directory.offered.SignedMailLearner.learn`.
        """
        prints = b"".join(each.fingerprint(hashes.SHA256()) for each in (signer, *came_along))
        key = prints + author.lower().encode("utf-8", "replace")
        with self._lock:
            if key in self._seen or self._waiting >= _MOST_WAITING:
                return
            self._seen[key] = None
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
            self._waiting += 1
        try:
            self._threads.submit(self._work, key, author, signer, tuple(came_along))
        except RuntimeError:  # the gateway ends
            return

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._writer.close()

    def _work(
        self, key: bytes, author: str, signer: x509.Certificate, came_along: tuple[x509.Certificate, ...]
    ) -> None:
        again = True
        try:
            outcomes = [outcome.value for outcome in self._learner.learn(author, signer, came_along).values()]
            again = OfferOutcome.REVOCATION.value in outcomes  # nobody could say yet
        except (DirectoryUnavailableError, DirectoryRefusedError) as error:
            outcomes = ["directory"]
            log.warning("directory.learning", problem=str(error))
        except Exception as error:  # learning is a kindness: its bugs must not stop the one who learns
            outcomes = ["error"]
            log.error("directory.learning", error=type(error).__name__)
        with self._lock:
            self._waiting -= 1
            for outcome in outcomes:
                self.counts[outcome] = self.counts.get(outcome, 0) + 1
            if again:
                self._seen.pop(key, None)


class DirectoryCollector(Collector):
    """How the directory's servers fare, and what was learned, for Prometheus."""

    def __init__(self, directory: Directory, learning: MailLearning | None) -> None:
        self._directory = directory
        self._learning = learning

    def collect(self) -> list[Metric]:
        """See `prometheus_client.registry.Collector`."""
        up = GaugeMetricFamily("relais_directory_server_up", "Whether the last call was answered", labels=["server"])
        for state in self._directory.servers():
            up.add_metric([state.uri], 0.0 if state.failures else 1.0)
        learned = CounterMetricFamily(
            "relais_directory_certificates_offered", "Certificates in signed mail, by what became", labels=["outcome"]
        )
        for outcome, count in dict(self._learning.counts if self._learning else {}).items():
            learned.add_metric([outcome], count)
        return [up, learned]


def learn_with(learning: MailLearning | None) -> Callable[[str, x509.Certificate, Sequence[x509.Certificate]], None]:
    """What the open stage calls for each validly signed mail."""
    return learning.learn if learning is not None else lambda author, signer, came_along: None
