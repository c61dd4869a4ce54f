"""The one TOML file and the environment, read once and checked: every key of `relais.toml` has its field here.

Settings stay on this floor. `config/wiring.py` turns them into the options objects of the rooms below; no package under
`config` ever sees them. An environment variable `RELAIS_<SECTION>__<KEY>` (upper case) overrides the key of a section,
so that a container needs no edited file.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Domain = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
Cipher = Literal["aes256-gcm", "aes128-gcm", "aes256-cbc", "aes128-cbc"]
Address = Annotated[str, msgspec.Meta(pattern=r"^[^@\s]+@[^@\s]+$")]


class SettingsError(Exception):
    """The configuration cannot be used; the message is a sentence for the person who edits it."""


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A section whose unknown keys are errors: a misspelt key must not silently mean the default."""


class Operator(Strict, frozen=True, kw_only=True):
    """Who we are."""

    name: str
    host: str
    """Name given in EHLO, Received and Authentication-Results."""
    domains: tuple[Domain, ...]
    postmaster: Address
    """Mailbox of ours whose keys sign and open receipts."""
    state: str = "."
    """Directory of the database, blobs and keys; relative to the configuration file."""
    software_reference: str = "RELAIS-0.1"
    """X-MSS-NIL: the product's number in the national register of software."""


class IdentitySettings(Strict, frozen=True, kw_only=True):
    environment: Literal["test", "production"] = "production"
    patient_domains: tuple[Domain, ...] = ("patient.mssante.fr",)


class TrustSettings(Strict, frozen=True, kw_only=True):
    anchors: str
    intermediates: str = ""
    list: str
    """A file, or the http(s) address it is fetched from."""
    list_signer: str
    """Subject the list's signing certificate must have, RFC 4514."""
    list_refresh_seconds: Annotated[float, msgspec.Meta(ge=60)] = 3600.0
    list_ca: str = ""
    """PEM the list's https server must chain to; empty: the anchors."""
    operator_chain: str
    operator_key: str


class DirectorySettings(Strict, frozen=True, kw_only=True):
    uri: str
    base: str = "dc=mssante,dc=fr"
    bind_dn: str = ""
    password_file: str = ""
    ca: str = ""
    timeout_seconds: float = 2.0
    connections: int = 4


class Listener(Strict, frozen=True, kw_only=True):
    host: str = "127.0.0.1"
    port: Port = 0


class SubmissionListener(Listener, frozen=True, kw_only=True):
    chain: str
    key: str


class MllpListener(Listener, frozen=True, kw_only=True):
    """One listener per sending system."""

    partner: str
    sender: Address
    sender_name: str
    receiver_host: str = "127.0.0.1"
    receiver_port: Port = 0
    """Where the system listens for business acknowledgements (ZAM); 0: nowhere."""
    max_frame_bytes: int = 50 * 1024 * 1024
    idle_seconds: float = 600.0


class MailboxSettings(Strict, frozen=True, kw_only=True):
    lmtp_socket: str
    search_socket: str = ""
    authentication_socket: str
    home: str


class DossierSettings(Strict, frozen=True, kw_only=True):
    enabled: bool = False


class LetterSettings(Strict, frozen=True, kw_only=True):
    """A service whose letters are submitted as CDA documents."""

    sender: Address
    sender_name: str
    folder: str = ""
    """Drop folder; empty: none."""


class CollectSettings(Strict, frozen=True, kw_only=True):
    """A mailbox at another operator that is collected into one of ours."""

    name: str
    host: str
    port: Port = 993
    ca: str
    user: str
    password_file: str
    folder: str = "INBOX"
    deliver_to: Address


class DkimSettings(Strict, frozen=True, kw_only=True):
    selector: str = ""
    key: str = ""


class PartnerSettings(Strict, frozen=True, kw_only=True):
    domain: Domain
    host: str = ""
    port: Port = 25
    max_message_bytes: int = 25 * 1024 * 1024
    dkim_selector: str = ""
    dkim_public_key: str = ""
    content_cipher: Literal[""] | Cipher = ""
    key_transport: Literal["rsa-oaep-sha256", "rsa-pkcs1v15"] = "rsa-oaep-sha256"
    rsa_signature: Literal["rsa-pkcs1v15", "rsa-pss"] = "rsa-pkcs1v15"
    opaque_signature: bool = False
    header_protection: bool = False


class SmimeSettings(Strict, frozen=True, kw_only=True):
    """What is written at the least, and what is read beyond the standards."""

    floor: Cipher = "aes128-gcm"
    triple_des: bool = False
    sha1: bool = False
    gcm_variants: tuple[
        Literal[
            "gcm-in-enveloped-data",
            "gcm-bare-nonce",
            "gcm-tag-in-content",
            "gcm-icv-length-omitted",
            "gcm-attributes-not-authenticated",
        ],
        ...,
    ] = ()
    failures_per_hour: Annotated[int, msgspec.Meta(ge=1)] = 20


RevocationModeName = Literal["hard", "soft", "off"]


class RevocationSettings(Strict, frozen=True, kw_only=True):
    """What is demanded in each direction before a certificate is used, and how it is found out."""

    inbound: RevocationModeName = "soft"
    """Signatures of mail we open."""
    outbound: RevocationModeName = "hard"
    """Certificates we encrypt to."""
    operators: RevocationModeName = "hard"
    """Other operators, on both sides of TLS."""
    list: RevocationModeName = "hard"
    """The signer of the trust list."""
    stale_hours: Annotated[float, msgspec.Meta(ge=0, le=8760)] = 24.0
    cache: str = "revocation"
    """Directory, relative to the state; empty: nothing is kept over a restart."""
    max_crl_bytes: Annotated[int, msgspec.Meta(ge=1024, le=2**31 - 1)] = 100 * 1024 * 1024
    max_cache_bytes: Annotated[int, msgspec.Meta(ge=1024)] = 1024 * 1024 * 1024
    max_memory_bytes: Annotated[int, msgspec.Meta(ge=1024)] = 1024 * 1024 * 1024
    allowed_hosts: tuple[str, ...] = ()
    """`host` or `host:port` that may be internal."""
    fetch_seconds: Annotated[float, msgspec.Meta(gt=0, le=600)] = 20.0
    per_host_a_minute: Annotated[int, msgspec.Meta(ge=1)] = 60
    ocsp_nonce: Literal["off", "offer", "require"] = "offer"


class KeySettings(Strict, frozen=True, kw_only=True):
    """Where mailboxes' keys are besides the vault, and how this process guards those it holds."""

    pkcs11_module: str = ""
    """The PKCS#11 library of a token; empty: none."""
    token: str = ""
    """The token's label."""
    pin_file: str = ""
    """Empty: the systemd credential `relais-pin`."""
    sessions: Annotated[int, msgspec.Meta(ge=1, le=256)] = 8
    new_keys: Literal["vault", "token"] = "vault"
    lock_memory: bool = True


class SpoolSettings(Strict, frozen=True, kw_only=True):
    max_message_bytes: int = 64 * 1024 * 1024
    first_retry_seconds: float = 60.0
    longest_retry_seconds: float = 3600.0
    expire_seconds: float = 5 * 86400.0
    concurrency: int = 8


class JournalSettings(Strict, frozen=True, kw_only=True):
    """Signed heads of the journal, and where they are published."""

    name: str = ""
    """Of this journal in its heads, the same on every node; empty: the operator's host."""
    heads: str = "journal-heads.jsonl"
    """Append-only file; empty: none."""
    syslog: tuple[str, ...] = ()
    """tls://host:port, tcp://host:port, udp://host:port or unix:///path."""
    syslog_ca: str = ""
    syslog_chain: str = ""
    syslog_key: str = ""
    signer: str = ""
    """Mailbox of ours whose signing key signs heads; empty: an Ed25519 key of the journal's own."""
    checkpoint_seconds: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    idle_seconds: Annotated[float, msgspec.Meta(gt=0)] = 3600.0


class AccountSettings(Strict, frozen=True, kw_only=True):
    """How guessing at passwords is stopped."""

    max_failures: Annotated[int, msgspec.Meta(ge=1, le=100)] = 5
    """In a row, for an account from one network (IPv4 /24, IPv6 /56)."""
    lock_seconds: Annotated[float, msgspec.Meta(ge=1)] = 900.0
    longest_lock_seconds: Annotated[float, msgspec.Meta(ge=1)] = 86400.0
    account_failures: Annotated[int, msgspec.Meta(ge=1)] = 50
    """A day, for an account from all networks where its right password was not said lately; as many again in each
    neighbourhood (IPv4 /16, IPv6 /32) where it was."""
    network_failures: Annotated[int, msgspec.Meta(ge=10)] = 300
    """An hour, from one network over all accounts whose right password was not said there lately."""
    familiar_days: Annotated[float, msgspec.Meta(ge=0)] = 30.0


class OidcSettings(Strict, frozen=True, kw_only=True):
    """An identity provider whose access tokens log in."""

    issuer: str
    audiences: tuple[str, ...]
    """Our client identifiers with it."""
    jwks_uri: str = ""
    """Empty: found by discovery."""
    algorithms: tuple[str, ...] = ("RS256", "PS256", "ES256", "ES384", "EdDSA")
    claims: tuple[str, ...] = ("sub", "SubjectNameID", "preferred_username")
    levels: tuple[str, ...] = ()
    """Values of `acr` that are enough; empty: all."""
    leeway_seconds: Annotated[float, msgspec.Meta(ge=0, le=300)] = 60.0
    refresh_seconds: Annotated[float, msgspec.Meta(ge=60)] = 3600.0
    stale_seconds: Annotated[float, msgspec.Meta(ge=60)] = 86400.0
    ca: str = ""
    """PEM its https server must chain to; empty: the system's."""
    internal_hosts: tuple[str, ...] = ()
    """`host` or `host:port` of a provider that is not on the public Internet."""


class Settings(Strict, frozen=True, kw_only=True):
    """The whole file."""

    operator: Operator
    trust: TrustSettings
    directory: DirectorySettings
    mailboxes: MailboxSettings
    identity: IdentitySettings = IdentitySettings()
    operators: Listener = Listener(port=25)
    submission: SubmissionListener | None = None
    mllp: tuple[MllpListener, ...] = ()
    letters: tuple[LetterSettings, ...] = ()
    collect: tuple[CollectSettings, ...] = ()
    metrics: Listener | None = None
    dossier: DossierSettings = DossierSettings()
    dkim: DkimSettings = DkimSettings()
    partners: tuple[PartnerSettings, ...] = ()
    smime: SmimeSettings = SmimeSettings()
    revocation: RevocationSettings = RevocationSettings()
    keys: KeySettings = KeySettings()
    spool: SpoolSettings = SpoolSettings()
    journal: JournalSettings = JournalSettings()
    accounts: AccountSettings = AccountSettings()
    oidc: tuple[OidcSettings, ...] = ()


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
        settings = msgspec.convert(raw, Settings, strict=False)
    except msgspec.ValidationError as error:
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
