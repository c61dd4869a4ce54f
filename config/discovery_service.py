"""What mail programs are told, from the configuration: the services, who signs Apple's profile, what doctor says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Literal

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from config.sections import DiscoverySettings
from config.settings import Loaded, SettingsError
from mta.mailboxes.dns_records import DnsRecord, MailHost, client_records, door_names, mail_records, unnamed
from mta.mailboxes.dns_records import mta_sts_policy as policy_of
from mta.mailboxes.services import AddressBook, ClientServices, Security, Service
from smime.dkim import public_record
from trust.keyfiles import KeyFileError, read_key_pair
from trust.keys import Signer
from trust.softkeys import CertifiedKey, SoftwareKey

log = structlog.get_logger(__name__)

_ADDRESS_BOOK_LOGIN = "cn=carnet,cn=lecteurs"


def client_services(loaded: Loaded) -> ClientServices:
    """Without the section: what its defaults would tell. Raises `SettingsError`."""
    settings = loaded.settings
    section = settings.discovery or DiscoverySettings()
    host = (section.mail_host or settings.operator.host).lower()
    submission = [
        (section.submissions_port, Security.TLS),
        (section.submission_port, Security.STARTTLS),
    ]
    book = None
    try:
        if section.address_book_host:
            server = settings.directory.server
            login = _ADDRESS_BOOK_LOGIN if server.reader_password_file else ""
            service = Service(section.address_book_host.lower(), section.address_book_port)
            book = AddressBook(service, settings.directory.base, login)
        return ClientServices(
            name=settings.operator.name,
            domains=tuple(domain.lower() for domain in settings.operator.domains),
            imap=Service(host, section.imaps_port),
            submission=tuple(Service(host, port, security) for port, security in submission if port),
            site=Service((section.site or host).lower(), section.site_port or section.port),
            patient_domains=frozenset(settings.identity.patient_domains),
            sieve=Service(host, section.sieve_port, Security.STARTTLS) if section.sieve_port else None,
            address_book=book,
            tokens=bool(settings.oidc),
            authorities=tuple(_authorities(loaded, section)),
            mta_sts=policy_of(mail_host(loaded)) if settings.discovery is not None else "",
        )
    except ValueError as error:
        raise SettingsError(f"[discovery] cannot be told to mail programs: {error}") from error


def mail_host(loaded: Loaded) -> MailHost:
    """What of it can be read: it is also asked before everything is there."""
    settings = loaded.settings
    try:
        certificates = x509.load_pem_x509_certificates(loaded.path(settings.trust.operator_chain).read_bytes())
    except (OSError, ValueError, x509.InvalidVersion):
        certificates = []
    published = ""
    if settings.dkim.key:
        try:
            key = load_pem_private_key(loaded.path(settings.dkim.key).read_bytes(), None)
        except (OSError, ValueError, TypeError):
            key = None
        published = public_record(key) if isinstance(key, rsa.RSAPrivateKey) else ""
    return MailHost(
        host=settings.operator.host.lower(),
        certificate=certificates[0] if certificates else None,
        dkim_selector=settings.dkim.selector,
        dkim_public_key=published,
    )


def dns_records(loaded: Loaded) -> list[DnsRecord]:
    """All that belongs into the zones of our domains. Raises `SettingsError`."""
    services = client_services(loaded)
    return [*client_records(services), *mail_records(services, mail_host(loaded))]


def door_files(loaded: Loaded) -> tuple[Path, Path]:
    """Chain and key of the HTTPS door. Raises `SettingsError`."""
    section, submission = loaded.settings.discovery, loaded.settings.submission
    if section is not None and section.chain and section.key:
        return loaded.path(section.chain), loaded.path(section.key)
    if submission is None or (section is not None and (section.chain or section.key)):
        raise SettingsError("[discovery] needs both chain and key, or neither and those of [submission]")
    return loaded.path(submission.chain), loaded.path(submission.key)


def profile_signer(chain: Path, key: Path) -> Callable[[], Signer]:
    """Who signs Apple's profile: the door's own certificate, which a device believes as it believed the door. Renewed
    files are taken when they fit; until then the old ones stay. Raises `SettingsError`; the signer raises OSError or
    ValueError never."""
    lock = Lock()

    def stamps() -> tuple[tuple[int, int], ...]:
        return tuple((status.st_mtime_ns, status.st_ino) for status in (chain.stat(), key.stat()))

    def read() -> Signer:
        pair = read_key_pair(chain.read_bytes() + b"\n" + key.read_bytes(), None)
        return CertifiedKey(SoftwareKey(pair.key), pair.certificate, pair.chain)

    try:
        seen, signer = stamps(), read()
    except (OSError, KeyFileError) as error:
        raise SettingsError(f"{chain.name} and {key.name} cannot sign Apple's profile: {error}") from error

    def current() -> Signer:
        nonlocal seen, signer
        with lock:
            try:
                now = stamps()
                if now != seen:
                    seen, signer = now, read()
            except (OSError, KeyFileError) as error:
                log.error("discovery.signer-not-renewed", problem=type(error).__name__)
            return signer

    return current


def discovery_findings(loaded: Loaded) -> Iterator[tuple[Literal["ok", "notice", "problem"], str]]:
    """Whether the door can be opened, and is believed under all of its names."""
    if loaded.settings.discovery is None:
        yield "notice", "mail programs find nothing by themselves: there is no [discovery] section"
        return
    try:
        services = client_services(loaded)
        chain, key = door_files(loaded)
        certificate = profile_signer(chain, key)().certificate
    except SettingsError as error:
        yield "problem", str(error)
        return
    missing = unnamed(certificate, [*door_names(services), services.imap.host])
    if missing:
        yield "notice", f"{chain} does not name {', '.join(missing)}: programs that ask there will not believe it"
    else:
        yield "ok", f"{chain} names all that mail programs ask for"


def _authorities(loaded: Loaded, section: DiscoverySettings) -> list[x509.Certificate]:
    if not section.ca:
        return []
    try:
        return x509.load_pem_x509_certificates(loaded.path(section.ca).read_bytes())
    except (OSError, ValueError, x509.InvalidVersion) as error:
        raise SettingsError(f"discovery.ca {loaded.path(section.ca)} holds no PEM certificate") from error
