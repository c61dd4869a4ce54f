"""The sections of `relais.toml`: every key has its field here, with its bounds and its default.

How the file is read, and what overrides it, is `config.settings`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Domain = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
Cipher = Literal["aes256-gcm", "aes128-gcm", "aes256-cbc", "aes128-cbc"]
Address = Annotated[str, msgspec.Meta(pattern=r"^[^@\s]+@[^@\s]+$")]


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


class UpstreamSettings(Strict, frozen=True, kw_only=True):
    """Another organisation's LDAP directory, asked for certificates that ours does not hold."""

    domains: tuple[str, ...] = ()
    """Mail domains it is asked about, matched exactly; empty: every one."""
    servers: tuple[str, ...] = ()
    """URIs, asked in this order; empty: the SRV records `_ldap._tcp` of the domain say where."""
    base: str = ""
    """Where it is searched; empty: its naming contexts."""
    ca: str = ""
    """PEM its ldaps servers must chain to; empty: the roots of the machine."""
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=30)] = 3.0
    """For one question, all servers tried."""


class RegisterSettings(Strict, frozen=True, kw_only=True):
    """The FHIR API of the Annuaire Santé, for `relais directory refresh`."""

    base: str = "https://gateway.api.esante.gouv.fr/fhir/v2"
    api_key_file: str = ""
    """Mode 0600; the key the API's portal gives."""
    ca: str = ""
    """PEM its server must chain to; empty: the roots of the machine."""
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=300)] = 20.0
    """For one professional, all pages and tries."""


class DirectoryServerSettings(Strict, frozen=True, kw_only=True):
    """The slapd of `relais directory serve`; who runs an OpenLDAP of his own leaves it out."""

    folder: str = ""
    """Its configuration and data, some 10 GB for the nation; empty: `directory` in the state directory."""
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 636
    address: str = "127.0.0.1"
    """Where ldaps listens beside 127.0.0.1: an address of this machine for address books, 0.0.0.0 for all of them."""
    chain: str = ""
    """PEM: the server's certificate and its intermediates; names 127.0.0.1 and what address books call it."""
    key: str = ""
    reader_password_file: str = ""
    """With it address books log in as cn=carnet,cn=lecteurs; empty: whoever reaches the server sees what they see."""


class DirectorySettings(Strict, frozen=True, kw_only=True):
    uri: str
    base: str = "dc=mssante,dc=fr"
    bind_dn: str = ""
    password_file: str = ""
    ca: str = ""
    timeout_seconds: float = 2.0
    """For one look-up, all servers tried; what takes longer waits and is tried again."""
    connections: Annotated[int, msgspec.Meta(ge=1, le=256)] = 4
    """In use at the same time."""
    replicas: tuple[str, ...] = ()
    """URIs of servers with the same data, asked in this order when `uri` does not answer."""
    rest_seconds: Annotated[float, msgspec.Meta(ge=0)] = 10.0
    """So long a server that failed is left alone while another one answers."""
    cache_entries: Annotated[int, msgspec.Meta(ge=0)] = 10_000
    """Addresses remembered, found or not; 0: none."""
    cache_seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 5.0
    """So long a mailbox that was found is taken for true."""
    negative_seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 1.0
    """So long an address that was not found is."""
    writer_dn: str = ""
    """The identity that writes what the gateway learns (certificates) and `relais directory refresh`; empty: nothing is
    learned."""
    writer_password_file: str = ""
    learn_from_mail: bool = True
    """With `writer_dn`: keep the certificates of validly signed mail for mailboxes that have none."""
    upstream: tuple[UpstreamSettings, ...] = ()
    register: RegisterSettings = RegisterSettings()
    server: DirectoryServerSettings = DirectoryServerSettings()


class SynchronisationSettings(Strict, frozen=True, kw_only=True):
    """The directory in step with the national register's files (`relais directory sync`)."""

    source: str = ""
    """Folder the files arrive in; with it the gateway runs by itself, at each publication and once a day."""
    look_seconds: Annotated[float, msgspec.Meta(ge=1)] = 600.0
    """How often the gateway looks into `source`."""
    uri: str = ""
    """Server that takes writes; empty: `directory.uri`."""
    bind_dn: str = ""
    """The directory's administrator; empty: `directory.writer_dn` and its password."""
    password_file: str = ""
    folder: str = ""
    """For reports, and for what a run writes down meanwhile; empty: `directory-sync` in the state directory."""
    loss_percent: Annotated[float, msgspec.Meta(ge=0, le=100)] = 5.0
    """Of the national entries, in all and in each branch, that may leave in one run; more is held for a human."""
    change_percent: Annotated[float, msgspec.Meta(ge=0, le=100)] = 50.0
    """Of the national entries that may change in one run."""
    rejected_percent: Annotated[float, msgspec.Meta(ge=0, le=100)] = 1.0
    """Of the lines of one file that may be unusable."""
    conflicts: Annotated[int, msgspec.Meta(ge=0)] = 500
    """Lines that may give an address to another holder: the address is left as it is. More, and the file is held."""
    oldest_days: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    """How long ago a file may have been published."""
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    """For one answer of the directory: a page of entries, or a write."""
    patience_seconds: Annotated[float, msgspec.Meta(ge=0)] = 300.0
    """How long a directory that went away in the middle is waited for; what was written stays."""
    keep_reports: Annotated[int, msgspec.Meta(ge=1)] = 400


class Listener(Strict, frozen=True, kw_only=True):
    host: str = "127.0.0.1"
    port: Port = 0


class SubmissionListener(Listener, frozen=True, kw_only=True):
    chain: str
    key: str
    client_certificates: bool = False
    """Ask clients for a certificate below trust.anchors, with which machines log in (AUTH EXTERNAL)."""


class DoorSettings(Strict, frozen=True, kw_only=True):
    """What clients of the SMTP doors may cost; each process counts for itself. 0 an hour: as much as they like."""

    recipients: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    """Of one message; announced as LIMITS RCPTMAX (RFC 9422)."""
    hops: Annotated[int, msgspec.Meta(ge=1, le=100)] = 30
    """Received fields from which on a message is held for one that goes round."""
    connections: Annotated[int, msgspec.Meta(ge=1)] = 400
    """At the same time, per door."""
    connections_per_client: Annotated[int, msgspec.Meta(ge=0)] = 250
    """Of one IPv4 address or IPv6 /64."""
    connections_per_holder: Annotated[int, msgspec.Meta(ge=0)] = 250
    """Of one account, or one operator."""
    client_messages_per_hour: Annotated[int, msgspec.Meta(ge=0)] = 0
    client_recipients_per_hour: Annotated[int, msgspec.Meta(ge=0)] = 0
    client_bytes_per_hour: Annotated[int, msgspec.Meta(ge=0)] = 0
    holder_messages_per_hour: Annotated[int, msgspec.Meta(ge=0)] = 0
    holder_recipients_per_hour: Annotated[int, msgspec.Meta(ge=0)] = 0
    holder_bytes_per_hour: Annotated[int, msgspec.Meta(ge=0)] = 0
    connections_per_machine: Annotated[int, msgspec.Meta(ge=0)] = 250
    """Of a machine's mailbox (APP) that logged in with its certificate: what is below counts for it instead of what is
    above."""
    machine_messages_per_hour: Annotated[int, msgspec.Meta(ge=0)] = 0
    machine_recipients_per_hour: Annotated[int, msgspec.Meta(ge=0)] = 0
    machine_bytes_per_hour: Annotated[int, msgspec.Meta(ge=0)] = 0
    idle_seconds: Annotated[float, msgspec.Meta(gt=0)] = 300.0
    """Between two commands, two blocks of content, and for a reply to be fetched."""
    handshake_seconds: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    """For a TLS handshake, and for a header of the PROXY protocol."""
    data_seconds: Annotated[float, msgspec.Meta(gt=0)] = 900.0
    """For the content of one message."""
    stranger_seconds: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    """To say who one is, by password, token or certificate."""
    commands: Annotated[int, msgspec.Meta(ge=1)] = 10_000
    """Of one kind per connection."""
    errors: Annotated[int, msgspec.Meta(ge=1)] = 50
    """Commands that are no commands, per connection."""
    refused_recipients: Annotated[int, msgspec.Meta(ge=1)] = 200
    """Per connection."""
    authentication_failures: Annotated[int, msgspec.Meta(ge=1)] = 10
    """Per connection."""
    free_failures: Annotated[int, msgspec.Meta(ge=0)] = 5
    """Refusals per connection that are answered at once."""
    tarpit_seconds: Annotated[float, msgspec.Meta(ge=0, le=60)] = 1.0
    """How long each further refusal waits."""
    memory_bytes: Annotated[int, msgspec.Meta(ge=1024 * 1024)] = 256 * 1024 * 1024
    """Content that all connections together may have in memory."""
    memory_seconds: Annotated[float, msgspec.Meta(ge=0, le=110)] = 30.0
    """How long a client waits for its share of it before 452; clients wait two minutes (RFC 5321 §4.5.3.2.5)."""
    proxies: tuple[str, ...] = ()
    """Networks of load balancers whose PROXY header is required and believed."""


class LmtpListener(Strict, frozen=True, kw_only=True):
    """A mail server of the house that hands over its people's mail by LMTP."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    socket: str = ""
    """Unix socket; empty: `host` and `port`."""
    group: str = ""
    """Whose members may connect to the socket, besides the service user; empty: nobody."""
    host: str = "127.0.0.1"
    """Loopback only."""
    port: Port = 24
    senders: tuple[Annotated[str, msgspec.Meta(pattern=r"^[^@\s]*@[^@\sA-Z]+$")], ...]
    """Mailboxes of ours it writes as: addresses, or `@domain` for all of a domain; lower case."""


class DnsSettings(Strict, frozen=True, kw_only=True):
    """Whom names are asked of."""

    servers: tuple[str, ...] = ()
    """`address` or `address:port`; empty: those of the machine."""
    believe_dnssec: Literal["local", "always", "never"] = "local"
    """Whether their word that DNSSEC proves an answer is taken; "local": if all of them are on this machine."""
    seconds: Annotated[float, msgspec.Meta(gt=0, le=60)] = 5.0
    """For one question."""


class EvaluationSettings(Strict, frozen=True, kw_only=True):
    """What is found out about mail from outside, and what follows."""

    dns: bool = True
    """Ask the DNS: SPF, DMARC, and DKIM and ARC with published keys; false: only keys agreed on with partners."""
    seconds: Annotated[float, msgspec.Meta(gt=0, le=60)] = 8.0
    """For all questions about one message; what is not known then is told as `temperror`."""
    unproven_author: Literal["refuse", "mark"] = "refuse"
    """What becomes of mail of an operator that is not listed for the domain in From, where neither DKIM nor S/MIME
    proves the author."""


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
    machine_passwords: bool = False
    """Whether machines (APP) may log in with a password or a token as well: while they move to client certificates."""
    memory: str = ""
    """Directory on a tmpfs where Dovecot keeps what it decrypts and remembers (its `mail_temp_dir`); needed for what
    each member of a team has seen, and for `relais mailbox backup`."""
    quota_bytes: Annotated[int, msgspec.Meta(ge=0)] = 5 * 1024**3
    """Of a mailbox that has no limit of its own; 0: none."""
    full_seconds: Annotated[float, msgspec.Meta(ge=0)] = 86400.0
    """So long a mail waits for room in a full mailbox, then its sender is told."""


class CertificateImapSettings(Listener, frozen=True, kw_only=True):
    """IMAP for machines, which sign in with a certificate below trust.anchors (SASL EXTERNAL); Dovecot serves."""

    chain: str
    key: str
    dovecot_host: str = "127.0.0.1"
    dovecot_port: Port
    dovecot_ca: str = ""
    """PEM Dovecot's certificate must chain to; empty: the roots of the machine."""
    dovecot_name: str = ""
    """Name that certificate must have; empty: `dovecot_host`."""
    recheck_seconds: Annotated[float, msgspec.Meta(ge=1)] = 60.0
    """How often the certificate of an open session is judged again."""


class DiscoverySettings(Listener, frozen=True, kw_only=True):
    """How mail programs find out everything by themselves: the HTTPS door, and what it tells."""

    port: Port = 443
    chain: str = ""
    """PEM of the door's certificate, which names `site` and autoconfig, autodiscover and mta-sts of each domain; empty:
    that of `submission`."""
    key: str = ""
    site: str = ""
    """Name of the door; empty: `mail_host`."""
    site_port: Port = 0
    """Its port as seen from outside, where programs look on 443 only; 0: `port`."""
    mail_host: str = ""
    """Name that mail programs connect to; empty: the operator's host."""
    imaps_port: Port = 993
    """Ports as seen from outside."""
    submissions_port: Port = 465
    """0: not offered, as without `[submissions]`."""
    submission_port: Port = 587
    """0: not offered, as without `[submission]`."""
    sieve_port: Port = 0
    """0: not offered."""
    address_book_host: str = ""
    """Name of the ldaps server for address books; empty: none is told of."""
    address_book_port: Port = 636
    ca: str = ""
    """PEM of what devices must trust to believe our certificates, for Apple's profile; empty: they already do."""


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
    user: str = ""
    password_file: str = ""
    token_file: str = ""
    token_uri: str = ""
    token_ca: str = ""
    internal_hosts: tuple[str, ...] = ()
    client_id: str = ""
    client_secret_file: str = ""
    scope: str = ""
    refresh_token_file: str = ""
    certificate: str = ""
    key: str = ""
    folder: str = "INBOX"
    after: Literal["flag", "move"] = "flag"
    move_to: str = "Relais"
    stays: Literal["everything", "encrypted", "nothing"] = "everything"
    """What may be left upstream of what we have, marked or moved; the rest is removed there."""
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

    vault: str = ""
    """Directory of the vault; empty: below the state."""
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
    bulk_recipients: Annotated[int, msgspec.Meta(ge=1)] = 50
    """A message to more than these goes after the others."""
    drain_seconds: Annotated[float, msgspec.Meta(ge=0, le=600)] = 6.0
    """Asked to end, so long what is coming in and going out may still take."""


class StoreSettings(Strict, frozen=True, kw_only=True):
    """Where everything is kept, and who shares it."""

    url: str = ""
    """postgresql://user@host/database; empty: SQLite in the state directory, one process."""
    password_file: str = ""
    """Mode 0600; empty: none, or libpq's own ways."""
    node: Annotated[str, msgspec.Meta(pattern="^[^:#]*$", max_length=56)] = ""
    """Name of this node, unique among those that share the database; empty: the operator's host."""
    blobs: Literal["", "database", "files"] = ""
    """Message bytes; empty: in the database with PostgreSQL, in files with SQLite."""
    blob_directory: str = ""
    """Of `files`; with several nodes on a disk they share. Empty: below the state."""
    patience_seconds: Annotated[float, msgspec.Meta(ge=2)] = 30.0
    """So long nothing is heard of a node until it is held for dead."""


class NotificationSettings(Strict, frozen=True, kw_only=True):
    """When senders are told what becomes of their mail."""

    warning_hours: Annotated[float, msgspec.Meta(ge=0)] = 4.0
    """A mail that waits longer: its sender is warned, once, unless it excluded that (RFC 3461 NOTIFY); 0: never."""
    receipt_hours: Annotated[float, msgspec.Meta(ge=0)] = 24.0
    """A receipt another operator promised is missing after that: the sender is told, once; 0: never."""
    return_max_bytes: Annotated[int, msgspec.Meta(ge=0)] = 5 * 1024 * 1024
    """Of a larger mail only the header comes back with the news that it failed."""


class FollowSettings(Strict, frozen=True, kw_only=True):
    """A laboratory or service that wants to know whether what it sends is read."""

    sender: Address
    """Its mailbox."""
    unread_days: Annotated[float, msgspec.Meta(ge=0)] = 3.0
    """After so many days an unread mail stands in `relais reading unread`."""
    critical_minutes: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Within which a critical result must be read, counted from when it was accepted here; after that the sender is
    told by mail, and its system by ZAM. 0: no deadline."""
    fallback: str = ""
    """Mailbox of the professional who gets a critical result that stays unread; empty: nobody."""
    fallback_minutes: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """... after so many minutes, counted from the same moment; 0: twice `critical_minutes`."""


class ScreeningSettings(Strict, frozen=True, kw_only=True):
    """The malware scanner, ClamAV's clamd; neither socket nor host: none."""

    clamd_socket: str = ""
    """Its Unix socket."""
    clamd_host: str = ""
    clamd_port: Port = 3310
    connect_seconds: Annotated[float, msgspec.Meta(gt=0, le=60)] = 5.0
    scan_seconds: Annotated[float, msgspec.Meta(gt=0, le=240)] = 120.0
    """For one mail, waiting for its turn included; after that it is tried again later."""
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=256)] = 8
    """At most clamd's MaxThreads."""
    max_bytes: Annotated[int, msgspec.Meta(ge=1)] = 25 * 1024 * 1024
    """At most clamd's StreamMaxLength."""
    too_large: Literal["quarantine", "refuse", "defer", "pass"] = "quarantine"
    """What is done with a mail beyond clamd's limits."""
    quarantine_days: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    """What nobody decides about is dropped after that; 0: never."""


class OutboundSettings(Strict, frozen=True, kw_only=True):
    """How mail goes to other operators; docs/outbound.md."""

    mx: bool = True
    """Find the hosts of listed domains whose partner has none configured by their MX records."""
    internal_hosts: tuple[str, ...] = ()
    """Names of exchanges, and of policy hosts, that may be at internal addresses."""
    mta_sts: bool = True
    """Heed the MTA-STS policies of domains found by MX (RFC 8461)."""
    dane: bool = True
    """Heed their TLSA records where DNSSEC proves them (RFC 7672)."""
    connections: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 256
    connections_per_destination: Annotated[int, msgspec.Meta(ge=1, le=100)] = 8
    idle_seconds: Annotated[float, msgspec.Meta(ge=0, le=300)] = 10.0
    """A connection is kept so long for the next message."""
    final_seconds: Annotated[float, msgspec.Meta(ge=10, le=3600)] = 600.0
    """From the end of a message to the other's answer; RFC 5321 §4.5.3.2.6 wants ten minutes."""
    judged_seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 5.0
    """So long it is believed of an open connection that its peer's certificate is good; 0: asked for each message."""
    first_rest_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 15.0
    """A destination that cannot be reached is left alone for so long, then twice as long, ..."""
    longest_rest_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 600.0


class LogSettings(Strict, frozen=True, kw_only=True):
    level: Literal["", "DEBUG", "INFO", "WARNING", "ERROR"] = ""
    """Empty: what the command line says."""


class RetentionSettings(Strict, frozen=True, kw_only=True):
    """How long what was carried is kept, days since its acceptance. What waits or is held stays."""

    content_days: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    """The bytes of messages that every recipient got."""
    failed_content_days: Annotated[float, msgspec.Meta(gt=0)] = 90.0
    """... and of those that one did not."""
    awaited_days: Annotated[float, msgspec.Meta(gt=0)] = 90.0
    """A receipt that another operator promised and has not sent is waited for."""
    trace_days: Annotated[float, msgspec.Meta(gt=0)] = 183.0
    """Who sent what to whom when, and each step."""
    key_days: Annotated[float, msgspec.Meta(gt=0)] = 730.0
    """By what a repeated message is recognised, and a purged one still named."""
    closed_mailbox_days: Annotated[float, msgspec.Meta(gt=0)] = 365.0
    """The mail in a mailbox, since it was closed."""
    batch: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
    """Messages purged in one transaction."""
    round_hours: Annotated[float, msgspec.Meta(gt=0, le=168)] = 6.0
    """Between two looks at everything."""


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
    introspection_uri: str = ""
    """Where it is asked at each login whether the token is still good (RFC 7662); empty: it is not asked."""
    client_id: str = ""
    """As whom we ask."""
    client_secret_file: str = ""
