"""Whom a gateway believes: the authorities, what is revoked, the trust list."""

from __future__ import annotations

import asyncio
import functools
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from config.gateway.store import Store
from config.revocation_service import patiently, revocation_checker, revocation_policies
from config.settings import Loaded, SettingsError
from config.trust_service import TrustService
from trust.certificates import CertificateValidator
from trust.list_keeper import ListKeeper
from trust.revocation.checker import Revocation


@dataclass(frozen=True, slots=True)
class Belief:
    """Of one gateway."""

    revocation: Revocation
    validator: CertificateValidator
    service: TrustService
    """To be run as a task."""

    @property
    def trust_list(self) -> ListKeeper:
        """The list in force, whenever it is asked."""
        return self.service.keeper


async def open_belief(loaded: Loaded, store: Store, stack: AsyncExitStack) -> Belief:
    """Raises `SettingsError` when there is nothing to believe."""
    revocation, validator = await open_validator(loaded, stack)
    service = await patiently(
        functools.partial(
            TrustService.open,
            loaded,
            validator,
            lambda entry: store.database.transact(lambda connection: store.journal.append(connection, entry)),
            revocation.settled,
        ),
        revocation,
    )
    return Belief(revocation, validator, service)


async def open_validator(loaded: Loaded, stack: AsyncExitStack) -> tuple[Revocation, CertificateValidator]:
    """The authorities and what they have revoked, without any list. Raises `SettingsError`."""
    section = loaded.settings.trust
    authorities = (
        _certificates(loaded.path(section.anchors)),
        _certificates(loaded.path(section.intermediates)) if section.intermediates else [],
    )
    revocation = revocation_checker(loaded, *authorities)
    await asyncio.to_thread(revocation.start)
    stack.callback(revocation.stop)
    return revocation, CertificateValidator(*authorities, revocation, revocation_policies(loaded), source=revocation)


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError, x509.InvalidVersion) as error:
        raise SettingsError(f"{path} must hold PEM certificates") from error
