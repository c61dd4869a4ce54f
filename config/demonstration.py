"""The demonstration's world: two operators, their authority, directory, keys and mailboxes, made once and kept.

Everything is synthetic. The laboratory's operator hosts the laboratory, a hospital and the record; the other hosts the
doctor and the patient, so that every report really crosses from one operator to the other. Each step looks at what is
already there, so that a first start killed half-way is finished by the next one.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from sqlalchemy import Connection

from config.migrations import upgrade
from directory.extraction import MailboxRow
from directory.load import entries
from directory.records import MailboxKind, Recipient
from directory.resolve import Directory
from directory.slapd import PrivateSlapd
from directory.synthetic import write_extraction
from mta.mailboxes.dns_records import DOOR_NAMES
from mta.mailboxes.records import MailboxRecord, MailboxState, ReadingPreferences
from mta.mailboxes.registry import Registry
from smime.dkim import public_record
from trust.accounts import Accounts
from trust.issuing import DemonstrationAuthority, Issued, KeyKind
from trust.store.database import Database
from trust.store.durable import write_durably
from trust.trustlist import ListedDomain, write_trust_list
from trust.vault import KeyUse, KeyVault

DKIM_SELECTOR = "relais"
PROFESSIONALS = 2000
BASE = "dc=mssante,dc=fr"
_TLS_KEY: KeyKind = "rsa3072"
"""As in IGC-Santé: the TLS 1.2 suites of the French rules all ask for RSA."""


@dataclass(frozen=True, slots=True)
class Mailbox:
    """One mailbox of the demonstration."""

    address: str
    kind: MailboxKind
    display_name: str
    signing_key: KeyKind
    """Both kinds are on the road from the first day."""
    role: str = ""
    """Role in endpoints.json; empty: no one logs in."""
    id_nat: str = ""
    profession: str = ""
    structure: str = ""
    organisation: str = ""
    encryption_key: KeyKind = "rsa3072"
    password: bool = False
    """Whether somebody logs in who is not in endpoints.json."""


def _postmaster(address: str) -> Mailbox:
    return Mailbox(address, MailboxKind.APP, "Accusés de réception", "p256")


@dataclass(frozen=True, slots=True)
class DemonstrationOperator:
    """One of the two gateways."""

    key: str
    """Directory below the state, and process name."""
    name: str
    host: str
    unit: str
    """IdNat_Struct, the OU of the operator's certificate."""
    domains: tuple[str, ...]
    mailboxes: tuple[Mailbox, ...]
    postmaster: str
    """The mailbox that signs this operator's receipts."""
    dossier: bool = False


LABORATORY = Mailbox(
    "resultats@labo-tilleuls.mssante.fr",
    MailboxKind.APP,
    "Laboratoire des Tilleuls",
    "rsa3072",
    "laboratory",
    structure="1920012345",
    organisation="Laboratoire des Tilleuls",
)
HOSPITAL = Mailbox(
    "cardiologie@ch-bellevue.mssante.fr",
    MailboxKind.ORG,
    "CH Bellevue - Cardiologie",
    "p256",
    "hospital",
    structure="1920054321",
    organisation="Centre hospitalier Bellevue",
    encryption_key="p256",
)
DOCTOR = Mailbox(
    "adam.hoda@test-ci-sis.mssante.fr",
    MailboxKind.PER,
    "Dr Adam HODA",
    "p256",
    "gp",
    id_nat="801234567897",
    profession="10",
    organisation="Cabinet du Dr Hoda",
)
COLLECTED = Mailbox(
    "cardiologie@hopitala.mssante.fr",
    MailboxKind.ORG,
    "Hôpital A - Cardiologie (ancienne boîte)",
    "p256",
    organisation="Hôpital A",
    password=True,
)
"""The hospital's old mailbox at the other operator, collected into the new one."""
PATIENT = Mailbox(
    "279035121518989@patient.mssante.fr",
    MailboxKind.PATIENT,
    "",
    "p256",
    "patient",
)
UNEQUIPPED = Mailbox(
    "claude.sanscertificat@medecin.mssante.fr",
    MailboxKind.PER,
    "Dr Claude SANSCERTIFICAT",
    "p256",
    id_nat="801234500001",
    profession="10",
)
"""In the directory without a certificate: encryption is mandatory, so nobody can write to this doctor."""
OPERATORS = (
    DemonstrationOperator(
        key="laboratoire",
        name="Opérateur des Tilleuls",
        host="mss.labo-tilleuls.mssante.fr",
        unit="1920012345",
        domains=("labo-tilleuls.mssante.fr", "ch-bellevue.mssante.fr"),
        mailboxes=(LABORATORY, HOSPITAL, _postmaster("postmaster@labo-tilleuls.mssante.fr")),
        postmaster="postmaster@labo-tilleuls.mssante.fr",
        dossier=True,
    ),
    DemonstrationOperator(
        key="ville",
        name="Opérateur de ville",
        host="mss.test-ci-sis.mssante.fr",
        unit="1750012345",
        domains=("test-ci-sis.mssante.fr", "patient.mssante.fr", "medecin.mssante.fr", "hopitala.mssante.fr"),
        mailboxes=(
            DOCTOR,
            PATIENT,
            COLLECTED,
            _postmaster("postmaster@test-ci-sis.mssante.fr"),
            Mailbox(
                "thomas.eric@medecin.mssante.fr",
                MailboxKind.PER,
                "Dr Eric THOMAS",
                "p256",
                id_nat="801234564895",
                profession="10",
            ),
            Mailbox("dpi@hopitala.mssante.fr", MailboxKind.ORG, "Service d'urologie", "p256", organisation="Hôpital A"),
        ),
        postmaster="postmaster@test-ci-sis.mssante.fr",
    ),
)


@dataclass(frozen=True, slots=True)
class World:
    """Where everything of one demonstration lives."""

    state: Path

    def of(self, operator: DemonstrationOperator) -> Path:
        return self.state / operator.key

    @property
    def authority(self) -> Path:
        return self.state / "authority"

    @property
    def anchors(self) -> Path:
        """PEM of the demonstration root: what a mail client must trust."""
        return self.state / "ca.pem"

    @property
    def intermediates(self) -> Path:
        """PEM of the authority that issues, for certificates that come without it."""
        return self.state / "intermediates.pem"

    @property
    def trust_list(self) -> Path:
        return self.state / "trust-list.xml"

    @property
    def list_signer(self) -> Path:
        """The subject of the list's signer."""
        return self.state / "list-signer.txt"

    @property
    def server_chain(self) -> Path:
        return self.state / "server.pem"

    @property
    def server_key(self) -> Path:
        return self.state / "server.key"

    @property
    def secrets(self) -> Path:
        return self.state / "secrets.json"

    @property
    def received(self) -> Path:
        """What the laboratory's system received: one file per acknowledgement."""
        return self.state / "received"

    @property
    def extraction(self) -> Path:
        return self.state / "extraction"


def prepare(world: World) -> dict[str, str]:
    """Everything that needs no running server; returns the demonstration's secrets by name (addresses: passwords)."""
    known = _secrets(world)
    authority = _authority(world)
    for operator in OPERATORS:
        _operator(world, operator, authority, known)
    if not world.trust_list.exists():
        signer = authority.issue_list_signer()
        rows = [
            ListedDomain(domain, certificate_name(world.of(operator)), operator.name)
            for operator in OPERATORS
            for domain in operator.domains
        ]
        xml = write_trust_list(rows, datetime.now(UTC), signer.key, signer.certificate, signer.chain)
        write(world.list_signer, signer.certificate.subject.rfc4514_string().encode(), 0o644)
        write(world.trust_list, xml, 0o644)
    return known


def load_directory(world: World, slapd: PrivateSlapd) -> int:
    """First load from synthetic files in the national format; the number of entries, 0 when already there."""
    if not slapd.is_empty:
        return 0
    files = write_extraction(world.extraction, PROFESSIONALS, extra=tuple(_national_rows()))
    return slapd.load(entries(files.mssante, files.practice, BASE))


def publish(world: World, directory: Directory) -> None:
    """The overlay no national file holds: machines' and patients' mailboxes, and everybody's certificates."""
    for operator in OPERATORS:
        vault = KeyVault.open(world.of(operator) / "vault")
        for mailbox in operator.mailboxes:
            directory.publish(
                Recipient(
                    address=mailbox.address,
                    kind=mailbox.kind,
                    display_name=mailbox.display_name,
                    encryption_certificates=vault.certificates(mailbox.address, KeyUse.ENCRYPTION),
                    signing_certificates=vault.certificates(mailbox.address, KeyUse.SIGNING),
                    id_nat=mailbox.id_nat,
                    profession=mailbox.profession,
                    structure=mailbox.structure,
                    organisation=mailbox.organisation,
                )
            )


def certificate_name(home: Path) -> str:
    """The DN of the operator's certificate, as the trust list writes it."""
    certificate = x509.load_pem_x509_certificates((home / "operator.pem").read_bytes())[0]
    return certificate.subject.rfc4514_string()


def write(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file whole or not at all; what others may read becomes readable last."""
    write_durably(path, content)
    if mode != 0o600:
        path.chmod(mode)


def dkim_public_key(world: World, operator: DemonstrationOperator) -> str:
    """What the operator would publish in DNS under its selector (`p=`)."""
    key = serialization.load_pem_private_key((world.of(operator) / "dkim.key").read_bytes(), None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise TypeError("the demonstration's DKIM keys are RSA")
    return public_record(key)


def _secrets(world: World) -> dict[str, str]:
    """The passwords by name, made once; names that are new are added."""
    names = ["directory-admin", "directory-gateway"]
    for operator in OPERATORS:
        names += [mailbox.address for mailbox in operator.mailboxes if mailbox.role or mailbox.password]
    known: dict[str, str] = json.loads(world.secrets.read_text()) if world.secrets.exists() else {}
    missing = {name: secrets.token_urlsafe(15) for name in names if name not in known}
    if missing:
        known |= missing
        write(world.secrets, json.dumps(known, indent=1).encode())
    return known


def _authority(world: World) -> DemonstrationAuthority:
    if (world.authority / "complete").exists():
        authority = DemonstrationAuthority.load(world.authority)
    else:
        authority = DemonstrationAuthority.create("Relais demonstration")
        authority.save(world.authority)
        write(world.authority / "complete", b"")
    if not world.anchors.exists():
        write(world.anchors, authority.root.public_bytes(serialization.Encoding.PEM), 0o644)
    if not world.intermediates.exists():
        write(world.intermediates, authority.intermediate.public_bytes(serialization.Encoding.PEM), 0o644)
    if not world.server_chain.exists():
        names = [f"{label}.{domain}" for each in OPERATORS for domain in each.domains for label in DOOR_NAMES]
        names += [domain for each in OPERATORS for domain in each.domains]
        hosts = ["localhost", *(each.host for each in OPERATORS), *names]
        issued = authority.issue_server(hosts, ["127.0.0.1", "::1"], _TLS_KEY)
        _write_pair(world.server_chain, world.server_key, issued)
    return authority


def _write_pair(chain: Path, key: Path, issued: Issued) -> None:
    """The key first: a chain on disk means its key is there too."""
    write(key, issued.pem_key())
    write(chain, issued.pem_chain(), 0o644)


def _operator(
    world: World, operator: DemonstrationOperator, authority: DemonstrationAuthority, known: dict[str, str]
) -> None:
    home = world.of(operator)
    home.mkdir(mode=0o700, exist_ok=True)
    if not (home / "operator.pem").exists():
        hosts = [operator.host, "localhost"]
        issued = authority.issue_operator(operator.host, operator.name, operator.unit, hosts, _TLS_KEY)
        _write_pair(home / "operator.pem", home / "operator.key", issued)
    if not (home / "dkim.key").exists():
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write(home / "dkim.key", pem)
    write(home / "directory.password", known["directory-gateway"].encode())
    write(home / "directory-writer.password", known["directory-admin"].encode())
    if HOSPITAL in operator.mailboxes:
        write(home / "collect.password", known[COLLECTED.address].encode())
        (home / "letters").mkdir(mode=0o700, exist_ok=True)
    vault = KeyVault.open(home / "vault") if KeyVault.exists(home / "vault") else KeyVault.create(home / "vault")
    for mailbox in operator.mailboxes:
        name = mailbox.display_name or "Boite patient"
        if not vault.certificates(mailbox.address, KeyUse.SIGNING):
            issued = authority.issue_mailbox(mailbox.address, name, "signing", mailbox.signing_key)
            vault.install(mailbox.address, KeyUse.SIGNING, issued.key, issued.certificate, issued.chain)
        if not vault.certificates(mailbox.address, KeyUse.ENCRYPTION):
            issued = authority.issue_mailbox(mailbox.address, name, "encryption", mailbox.encryption_key)
            vault.install(mailbox.address, KeyUse.ENCRYPTION, issued.key, issued.certificate, issued.chain)
    database = Database(f"sqlite:///{home / 'relais.db'}")
    try:
        upgrade(database)
        accounts = Accounts(database, vault)
        registry = Registry(accounts, vault, (PATIENT.address.rpartition("@")[2],))
        for mailbox in operator.mailboxes:
            if accounts.by_address(mailbox.address) is None:
                accounts.create(mailbox.address, [mailbox.address], known.get(mailbox.address))
            _record(registry, database, mailbox)
    finally:
        database.close()


def _record(registry: Registry, database: Database, mailbox: Mailbox) -> None:
    """What kind it is, once: what people do to it afterwards stays."""

    def work(connection: Connection) -> None:
        entry = registry.entry(connection, mailbox.address)
        if entry is not None and entry.record.state is MailboxState.CLOSED:
            registry.put(connection, entry)  # `publish` is about to list it: the gateway withdraws it again
        if entry is None or entry.version:
            return
        record = MailboxRecord(
            address=mailbox.address,
            kind=mailbox.kind,
            label=mailbox.display_name,
            id_nat=mailbox.id_nat or mailbox.structure,
            organisation=mailbox.organisation,
            # Whoever collects it elsewhere judges the signature, which must then stand where it stood.
            preferences=ReadingPreferences(verdict_line=mailbox is not COLLECTED, summary=mailbox is not COLLECTED),
            created_at=time.time(),
        )
        registry.put(connection, replace(entry, record=record, guessed=False), tell=False)

    database.transact(work)


def _national_rows() -> Iterator[MailboxRow]:
    """The demonstration's PER and ORG mailboxes as the national file lists them; it holds neither APP nor patients."""
    for mailboxes in (*(operator.mailboxes for operator in OPERATORS), (UNEQUIPPED,)):
        for mailbox in mailboxes:
            if mailbox.kind is MailboxKind.PER:
                title, given, family = mailbox.display_name.split(" ", 2)
                yield MailboxRow(
                    kind=mailbox.kind,
                    address=mailbox.address,
                    pp_identifier_type=mailbox.id_nat[0],
                    pp_identifier=mailbox.id_nat[1:],
                    pp_id_nat=mailbox.id_nat,
                    civility=title.upper(),
                    family_name=family,
                    given_name=given,
                    category_code="C",
                    category="Civil",
                    profession_code=mailbox.profession,
                    profession="Médecin",
                    skill_code="SM54",
                    skill="Médecine générale (SM)",
                    dematerialisation="O",
                    organisation=mailbox.organisation,
                    l6_delivery="75007 PARIS",
                    postal_code="75007",
                    department="75",
                    country="FRANCE",
                )
            elif mailbox.kind is MailboxKind.ORG:
                yield MailboxRow(
                    kind=mailbox.kind,
                    address=mailbox.address,
                    structure_identifier_type="FINESS" if mailbox.structure else "",
                    structure_identifier=mailbox.structure[1:],
                    service=mailbox.display_name,
                    dematerialisation="O",
                    organisation=mailbox.organisation,
                    postal_code="92200",
                    department="92",
                    country="FRANCE",
                )
