"""Who is where, for a gateway: the directory, what is learned for it from signed mail, the partners."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

import msgspec

from config.directory_service import MailLearning, open_directory, open_writer
from config.reloading import Reloading
from config.settings import Loaded, Settings
from directory.partners import PartnerBook
from directory.records import Partner
from directory.resolve import Directory
from trust.certificates import CertificateValidator


@dataclass(frozen=True, slots=True)
class Places:
    """Of one gateway."""

    directory: Directory
    learning: MailLearning | None
    """None: nothing is learned."""
    partners: PartnerBook


def open_places(loaded: Loaded, validator: CertificateValidator, stack: AsyncExitStack, reloading: Reloading) -> Places:
    """Raises `SettingsError`."""
    settings = loaded.settings
    directory = open_directory(loaded)
    stack.callback(directory.close)
    writer = open_writer(loaded) if settings.directory.learn_from_mail else None
    learning = MailLearning(writer, validator) if writer is not None else None
    if learning is not None:
        stack.callback(learning.close)
    partners = PartnerBook(_partners(settings))
    reloading.follow(["partners"], lambda changed: partners.replace(_partners(changed)))
    return Places(directory, learning, partners)


def _partners(settings: Settings) -> list[Partner]:
    return [Partner(**msgspec.structs.asdict(partner)) for partner in settings.partners]
