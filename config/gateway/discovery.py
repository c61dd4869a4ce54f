"""The HTTPS door where mail programs find out everything by themselves, where the configuration has one."""

from __future__ import annotations

from contextlib import AsyncExitStack

from config.discovery_service import client_services, door_files, profile_signer
from config.door_service import proxies_of
from config.gateway.doors import listen
from config.node import Process
from config.settings import SettingsError
from config.trust_service import TrustService
from trust.tls import TlsMaterialError, followed_service_server


async def open_discovery(process: Process, trust: TrustService, stack: AsyncExitStack) -> None:
    """`trust` follows its certificate. Raises `SettingsError`."""
    loaded, section = process.loaded, process.loaded.settings.discovery
    if section is None:
        return
    from mta.mailboxes.discovery_door import (
        DiscoveryDoor,
        DiscoveryOptions,
    )  # a web server's weight, where there is one

    chain, key = door_files(loaded)
    try:
        context = followed_service_server("discovery", chain, key)
    except TlsMaterialError as error:
        raise SettingsError(f"TLS of [discovery] cannot be set up: {error}") from error
    trust.follow(context)
    options = DiscoveryOptions(proxies=proxies_of(loaded.settings))
    door = DiscoveryDoor(client_services(loaded), context, profile_signer(chain, key), options)
    await listen(door.start, section.host, section.port, reuse_port=process.shares_ports)
    stack.push_async_callback(door.stop)
