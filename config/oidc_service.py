"""Identity providers of one gateway: their keys fetched ahead, whatever the doors ask answered from memory."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
import time
from urllib.parse import urlsplit

import structlog

from config.sections import OidcSettings
from config.settings import Loaded, SettingsError
from trust.accounts import Accounts
from trust.catalogue import TOKEN_REFUSED
from trust.identities import Identity
from trust.oidc import OidcProvider, ProviderOptions, token_issuer
from trust.oidc_introspection import Introspection
from trust.oidc_keys import KeyOptions, ProviderKeys
from trust.refusals import Refused
from trust.revocation.fetching import Fetcher, FetchOptions
from trust.store.durable import make_private_directory

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 2.0
_INTROSPECTION_SECONDS = 5.0
_INTROSPECTIONS = 6000
"""A minute: as many as log in."""


class OidcService:
    """Of one gateway. Run `run` as a task."""

    def __init__(self, loaded: Loaded, accounts: Accounts) -> None:
        """Raises `SettingsError`."""
        self._accounts = accounts
        self._stopped = asyncio.Event()
        self._providers = {each.issuer: _provider(loaded, each) for each in loaded.settings.oidc}
        self._introspections = {
            each.issuer: _introspection(loaded, each) for each in loaded.settings.oidc if each.introspection_uri
        }

    def __bool__(self) -> bool:
        return bool(self._providers)

    def authenticate(self, login: str, token: str) -> Identity | Refused:
        """Whose token this is; `login` is empty or must be theirs. May block for the database, and for a provider only
        where it is configured to be asked."""
        issuer = token_issuer(token)
        provider = self._providers.get(issuer)
        if provider is None:
            return Refused(TOKEN_REFUSED, "issuer")
        found = self._accounts.authenticate_token(token, provider, login)
        asked = self._introspections.get(issuer)
        if isinstance(found, Refused) or asked is None:
            return found
        return asked.refused(token) or found

    async def run(self) -> None:
        """Keep the keys fresh until `stop`."""
        while not self._stopped.is_set():
            for issuer, provider in self._providers.items():
                before = provider.keys.problem
                if provider.keys.due() and not await asyncio.to_thread(provider.keys.refresh):
                    if provider.keys.problem != before:
                        age = int(time.time() - provider.keys.fetched_at) if provider.keys.fetched_at else None
                        log.warning("oidc.keys-unavailable", issuer=issuer, reason=provider.keys.problem, age=age)
                elif before and not provider.keys.problem:
                    log.info("oidc.keys-fetched", issuer=issuer)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), _LOOK_SECONDS)

    async def stop(self) -> None:
        self._stopped.set()


def _introspection(loaded: Loaded, section: OidcSettings) -> Introspection:
    try:
        tls = ssl.create_default_context(cafile=str(loaded.path(section.ca)) if section.ca else None)
        secret = loaded.path(section.client_secret_file).read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise SettingsError(f"oidc {section.issuer}: the token cannot be asked about: {error}") from error
    options = FetchOptions(
        allowed=frozenset(section.internal_hosts), seconds=_INTROSPECTION_SECONDS, per_host_a_minute=_INTROSPECTIONS
    )
    return Introspection(Fetcher(options, tls=tls).post, section.introspection_uri, section.client_id, secret)


def _provider(loaded: Loaded, section: OidcSettings) -> OidcProvider:
    for url in filter(None, (section.issuer, section.jwks_uri)):
        _check_url(url, section)
    try:
        tls = ssl.create_default_context(cafile=str(loaded.path(section.ca)) if section.ca else None)
        store = loaded.state / "oidc"
        make_private_directory(store)
        fetcher = Fetcher(FetchOptions(allowed=frozenset(section.internal_hosts)), tls=tls)
        keys = ProviderKeys(
            section.issuer,
            fetcher.get,
            jwks_uri=section.jwks_uri,
            store=store / f"{hashlib.sha256(section.issuer.encode()).hexdigest()[:32]}.json",
            options=KeyOptions(refresh_seconds=section.refresh_seconds, stale_seconds=section.stale_seconds),
        )
        options = ProviderOptions(
            section.issuer,
            frozenset(section.audiences),
            section.algorithms,
            section.claims,
            section.leeway_seconds,
            frozenset(section.levels),
        )
        return OidcProvider(options, keys)
    except (OSError, ValueError) as error:
        raise SettingsError(f"oidc {section.issuer} cannot be used: {error}") from error


def _check_url(url: str, section: OidcSettings) -> None:
    """Whoever can change what is fetched in the clear would choose the keys: only a host named as internal may be asked
    that way. Raises `SettingsError`."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port, parts = "", None, urlsplit("")
    internal = {host, f"{host}:{port}"} & set(section.internal_hosts)
    if not host or (parts.scheme != "https" and not (parts.scheme == "http" and internal)):
        raise SettingsError(f"oidc {section.issuer}: {url} must be an https address")
