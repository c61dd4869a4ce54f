"""What mail programs are told, from the configuration: the services, who signs Apple's profile, what doctor says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Literal

import structlog
from cryptography import x509

from config.dkim_key import load_dkim_key
from config.sections import DiscoverySettings
from config.settings import Loaded, SettingsError
from directory.slapd import READER_DN
from mta.mailboxes.dns_records import DnsRecord, MailHost, client_records, door_names, mail_records, unnamed
from mta.mailboxes.dns_records import mta_sts_policy as policy_of
from mta.mailboxes.services import AddressBook, ClientServices, Security, Service
from smime.dkim import public_record
from trust.keyfiles import KeyFileError, read_key_pair
from trust.keys import Signer
from trust.softkeys import CertifiedKey, SoftwareKey
from trust.tls import FileStamp

log = structlog.get_logger(__name__)

HTTPS_PORT = 443
"""Names below a domain are asked for at no other."""


def client_services(loaded: Loaded) -> ClientServices:
    """Without the section: what its defaults would tell. Raises `SettingsError`."""
    settings = loaded.settings
    section = settings.discovery or DiscoverySettings()
    host, where = section.mail_host or settings.operator.host, "mail_host"
    # The second port is the first one's door: it has its certificate, and is not opened without it.
    submission = [
        ("submissions_port", section.submissions_port, Security.TLS, settings.submission and settings.submissions),
        ("submission_port", section.submission_port, Security.STARTTLS, settings.submission),
    ]
    site = _service("site", section.site or host, "site_port", section.site_port or section.port)
    sieve = None
    if section.sieve_port:
        sieve = _service(where, host, "sieve_port", section.sieve_port, Security.STARTTLS)
    book = None
    if section.address_book_host:
        login = READER_DN if settings.directory.server.reader_password_file else ""
        service = _service(
            "address_book_host", section.address_book_host, "address_book_port", section.address_book_port
        )
        book = AddressBook(service, settings.directory.base, login)
    serves_policy = settings.discovery is not None and site.port == HTTPS_PORT
    try:
        return ClientServices(
            name=settings.operator.name,
            domains=tuple(domain.lower() for domain in settings.operator.domains),
            imap=_service(where, host, "imaps_port", section.imaps_port),
            submission=tuple(
                _service(where, host, key, port, security)
                for key, port, security, opened in submission
                if opened and port
            ),
            site=site,
            patient_domains=frozenset(settings.identity.patient_domains),
            sieve=sieve,
            address_book=book,
            tokens=bool(settings.oidc),
            authorities=tuple(_authorities(loaded, section)),
            mta_sts=policy_of(mail_host(loaded)) if serves_policy else "",
        )
    except ValueError as error:
        raise SettingsError(f"[discovery] cannot be told to mail programs: {error}") from error


def _service(name: str, host: str, number: str, port: int, security: Security = Security.TLS) -> Service:
    """Of these two keys."""
    try:
        return Service(host.lower(), port, security)
    except ValueError as error:
        raise SettingsError(
            f"discovery.{name} and discovery.{number} cannot be told to mail programs: {error}"
        ) from error


def mail_host(loaded: Loaded) -> MailHost:
    """What of it can be read: it is also asked before everything is there."""
    settings = loaded.settings
    certificate = key = None
    with suppress(SettingsError):
        certificate = _operator_certificate(loaded)
    with suppress(SettingsError):
        key = load_dkim_key(loaded)
    return MailHost(
        host=settings.operator.host.lower(),
        certificate=certificate,
        dkim_selector=settings.dkim.selector,
        dkim_public_key=public_record(key) if key is not None else "",
    )


def unreadable(loaded: Loaded) -> list[str]:
    """Sentences about files that are configured and cannot be read: records made of them are left out."""
    sentences = []
    for read in (_operator_certificate, load_dkim_key):
        try:
            read(loaded)
        except SettingsError as error:
            sentences.append(str(error))
    return sentences


def dns_records(loaded: Loaded) -> list[DnsRecord]:
    """All that belongs into the zones of our domains. Raises `SettingsError`."""
    settings = loaded.settings
    mail, door = mail_host(loaded), settings.discovery is not None
    if settings.submission is None and not door:  # nobody's mail program is served here
        return list(mail_records([domain.lower() for domain in settings.operator.domains], mail))
    services = client_services(loaded)
    # The number of the policy that is served, which says what that certificate proves.
    policy = services.mta_sts if mail.certificate is not None else ""
    return [
        *client_records(services, door=door),
        *mail_records(services.domains, mail, policy, services.site.host),
    ]


def _operator_certificate(loaded: Loaded) -> x509.Certificate:
    return _first_of("trust.operator_chain", loaded.path(loaded.settings.trust.operator_chain))


def _first_of(key: str, path: Path) -> x509.Certificate:
    """The end entity of a chain. Raises `SettingsError`."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())[0]
    except OSError as error:
        raise SettingsError(f"{key} {path} cannot be read: {error.strerror}") from error
    except (ValueError, x509.InvalidVersion) as error:
        raise SettingsError(f"{key} {path} holds no PEM certificate") from error


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
    files are taken when they fit; until then the old ones stay, and are not looked at again before they change. Raises
    `SettingsError`; the signer raises OSError or ValueError never."""
    lock = Lock()

    def stamps() -> tuple[FileStamp, ...]:
        return FileStamp.of(chain), FileStamp.of(key)

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
            now = stamps()
            if now != seen:
                seen = now
                try:
                    signer = read()
                except (OSError, KeyFileError) as error:
                    log.error("discovery.signer-not-renewed", problem=type(error).__name__)
            return signer

    return current


def discovery_findings(loaded: Loaded) -> Iterator[tuple[Literal["ok", "notice", "problem"], str]]:
    """Whether the door can be opened, is found, and is believed under all of its names, as the mail services are."""
    settings = loaded.settings
    if settings.discovery is None:
        yield "notice", "mail programs find nothing by themselves: there is no [discovery] section"
        return
    try:
        services = client_services(loaded)
        chain, key = door_files(loaded)
        missing = {chain: unnamed(profile_signer(chain, key)().certificate, door_names(services))}
        if settings.submission is not None:
            path = loaded.path(settings.submission.chain)
            hosts = {each.host for each in services.submission}
            missing.setdefault(path, []).extend(unnamed(_first_of("submission.chain", path), hosts))
    except SettingsError as error:
        yield "problem", str(error)
        return
    for path, names in missing.items():
        if names:
            told = ", ".join(dict.fromkeys(names))
            yield "notice", f"{path} does not name {told}: programs that ask there will not believe it"
        else:
            yield "ok", f"{path} names all that mail programs ask for"
    if services.site.port != HTTPS_PORT:
        # A test's door may be anywhere: its programs are told where.
        level: Literal["notice", "problem"] = "notice" if settings.identity.environment == "test" else "problem"
        yield (
            level,
            f"seen from outside the door is on port {services.site.port}: autoconfig, autodiscover and mta-sts are "
            f"asked for on port {HTTPS_PORT} and nowhere else",
        )
    if ours := services.patient_domains.intersection(services.domains):
        yield (
            "notice",
            "mail programs ask over plain HTTP too, with the address in the question: nothing may answer on port 80 of "
            f"{services.site.host}, and {', '.join(sorted(ours))} must lead to no web site (doctor --dns --compare)",
        )


def _authorities(loaded: Loaded, section: DiscoverySettings) -> list[x509.Certificate]:
    if not section.ca:
        return []
    try:
        return x509.load_pem_x509_certificates(loaded.path(section.ca).read_bytes())
    except (OSError, ValueError, x509.InvalidVersion) as error:
        raise SettingsError(f"discovery.ca {loaded.path(section.ca)} holds no PEM certificate") from error
