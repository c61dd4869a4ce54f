"""The one TOML file and the environment, read once and checked. Its sections, key by key: `config.sections`.

Settings stay on this floor. `config/wiring.py` turns them into the options objects of the rooms below; no package under
`config` ever sees them. An environment variable `RELAIS_<SECTION>__<KEY>` (upper case) overrides the key of a section,
so that a container needs no edited file.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from config.connector.expanding import SECTION, ConnectError, expand
from config.connector.sections import ConnectSettings
from config.sections import (
    AccountSettings,
    CertificateImapSettings,
    CollectSettings,
    DirectorySettings,
    DiscoverySettings,
    DkimSettings,
    DnsSettings,
    DoorSettings,
    DossierSettings,
    EvaluationSettings,
    FollowSettings,
    IdentitySettings,
    JournalSettings,
    KeySettings,
    LetterSettings,
    Listener,
    LmtpListener,
    LogSettings,
    MailboxSettings,
    MllpListener,
    NotificationSettings,
    OidcSettings,
    Operator,
    OutboundSettings,
    PartnerSettings,
    RetentionSettings,
    RevocationSettings,
    ScreeningSettings,
    SmimeSettings,
    SpoolSettings,
    StoreSettings,
    Strict,
    SubmissionListener,
    SynchronisationSettings,
    TrustSettings,
)


class SettingsError(Exception):
    """The configuration cannot be used; the message is a sentence for the person who edits it."""


class Settings(Strict, frozen=True, kw_only=True):
    """The whole file."""

    operator: Operator
    trust: TrustSettings
    directory: DirectorySettings
    mailboxes: MailboxSettings
    synchronisation: SynchronisationSettings = SynchronisationSettings()
    identity: IdentitySettings = IdentitySettings()
    operators: Listener = Listener(port=25)
    submission: SubmissionListener | None = None
    submissions: Listener | None = None
    """The submission door under TLS from the first octet (RFC 8314 §3.3), with the certificate of `submission`."""
    imap_certificates: CertificateImapSettings | None = None
    doors: DoorSettings = DoorSettings()
    lmtp: tuple[LmtpListener, ...] = ()
    dns: DnsSettings = DnsSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    mllp: tuple[MllpListener, ...] = ()
    letters: tuple[LetterSettings, ...] = ()
    collect: tuple[CollectSettings, ...] = ()
    discovery: DiscoverySettings | None = None
    metrics: Listener | None = None
    dossier: DossierSettings = DossierSettings()
    dkim: DkimSettings = DkimSettings()
    partners: tuple[PartnerSettings, ...] = ()
    smime: SmimeSettings = SmimeSettings()
    revocation: RevocationSettings = RevocationSettings()
    keys: KeySettings = KeySettings()
    spool: SpoolSettings = SpoolSettings()
    retention: RetentionSettings = RetentionSettings()
    notifications: NotificationSettings = NotificationSettings()
    follow: tuple[FollowSettings, ...] = ()
    screening: ScreeningSettings = ScreeningSettings()
    store: StoreSettings = StoreSettings()
    outbound: OutboundSettings = OutboundSettings()
    log: LogSettings = LogSettings()
    journal: JournalSettings = JournalSettings()
    accounts: AccountSettings = AccountSettings()
    oidc: tuple[OidcSettings, ...] = ()
    connect: ConnectSettings | None = None
    """A practice connector, which says everything here (`config.connector`); None: an operator's gateway."""


class Loaded(msgspec.Struct, frozen=True):
    """Settings and the directory their relative paths start from."""

    settings: Settings
    root: Path

    def path(self, value: str) -> Path:
        """A path of the file, absolute."""
        return self.root / value

    @property
    def state(self) -> Path:
        return self.path(self.settings.operator.state)


def load(path: Path, environ: Mapping[str, str] = os.environ) -> Loaded:
    """Read and check one file; raises `SettingsError` naming the key and what it should be."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from error
    _override(raw, environ)
    try:
        settings = msgspec.convert(expand(raw) if SECTION in raw else raw, Settings, strict=False)
    except (msgspec.ValidationError, ConnectError) as error:
        raise SettingsError(f"{path}: {error}") from error
    names = [each.name for each in settings.collect]
    if len(set(names)) < len(names):
        raise SettingsError(f"{path}: two [[collect]] sections have the same name; give each its own")
    return Loaded(settings, path.resolve().parent)


def _override(raw: dict[str, Any], environ: Mapping[str, str]) -> None:
    for name, value in environ.items():
        if not name.startswith("RELAIS_") or "__" not in name:
            continue
        section, _, key = name.removeprefix("RELAIS_").lower().partition("__")
        table = raw.setdefault(section, {})
        if isinstance(table, dict):
            table[key] = value
