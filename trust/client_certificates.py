"""Which certificate is whose: what binds a client certificate to an identity, and who shows one.

Three bindings: this very certificate; its key, so that a renewal over the same key goes on; or its subject and issuer
under an anchor, so that whatever the authority issues to that name next goes on. A bound certificate is believed only
while `trust.certificates.CertificateValidator` believes it, revocation included.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import Connection, Row, delete, insert, select, update

from trust.identities import AccountError
from trust.names import comparable
from trust.tables import client_certificates
from trust.vault import KeyVault

_DAY = 86400.0
MAX_EACH = 32


class Binding(Enum):
    """What must be the same."""

    CERTIFICATE = "certificate"
    KEY = "key"
    NAME = "name"
    """Subject and issuer, under the same anchor's key."""


@dataclass(frozen=True, slots=True)
class BoundCertificate:
    """A certificate an identity may log in with."""

    id: str
    identity_id: str
    binding: Binding
    certificate: x509.Certificate = field(repr=False)
    """The one it was bound with."""
    created_at: float
    last_used: int | None
    """Days since 1970, UTC; None for never."""


class ClientCertificates:
    """Bindings of one database, under one vault. Methods work in the caller's transaction."""

    def __init__(self, vault: KeyVault) -> None:
        self._vault = vault

    def bind(
        self,
        connection: Connection,
        identity_id: str,
        binding: Binding,
        path: tuple[x509.Certificate, ...],
        now: float,
    ) -> str:
        """Let who shows the first certificate of `path` (anchor last) log in; returns the binding's identifier.

        Raises `AccountError` when it is bound already, or cannot be.
        """
        match = self._match(binding, path)
        if match is None:
            raise AccountError("the certificate names nobody: bind it by its key or as it is")
        if connection.scalar(select(client_certificates.c.id).where(client_certificates.c.match == match)) is not None:
            raise AccountError("an account already has this certificate, bound the same way")
        if len(self.all(connection, identity_id)) >= MAX_EACH:
            raise AccountError(f"an account has at most {MAX_EACH} certificates: withdraw some first")
        identifier = secrets.token_hex(8)
        connection.execute(
            insert(client_certificates).values(
                id=identifier,
                identity_id=identity_id,
                match=match,
                kind=binding.value,
                sealed=self._vault.seal(path[0].public_bytes(Encoding.DER), _context(identifier, identity_id)),
                created_at=now,
            )
        )
        return identifier

    def withdraw(self, connection: Connection, identity_id: str, identifier: str) -> Binding:
        """End one binding. Raises `AccountError` when the identity has none of that identifier."""
        where = (
            client_certificates.c.id == identifier.strip().lower(),
            client_certificates.c.identity_id == identity_id,
        )
        kind = connection.scalar(select(client_certificates.c.kind).where(*where))
        if kind is None:
            raise AccountError("the account has no certificate of this identifier")
        connection.execute(delete(client_certificates).where(*where))
        return Binding(kind)

    def all(self, connection: Connection, identity_id: str) -> list[BoundCertificate]:
        """Oldest first. Raises `trust.vault.VaultError` when the database was altered."""
        rows = connection.execute(
            select(client_certificates)
            .where(client_certificates.c.identity_id == identity_id)
            .order_by(client_certificates.c.created_at, client_certificates.c.id)
        )
        return [self._bound(row) for row in rows]

    def holders(self, connection: Connection, path: tuple[x509.Certificate, ...]) -> list[BoundCertificate]:
        """Every binding that a believed certificate (first of its path) fulfils."""
        matches = [match for each in Binding if (match := self._match(each, path)) is not None]
        rows = connection.execute(select(client_certificates).where(client_certificates.c.match.in_(matches)))
        return [self._bound(row) for row in rows]

    def used(self, connection: Connection, identifiers: Iterable[str], now: float) -> None:
        change = update(client_certificates).where(client_certificates.c.id.in_(list(identifiers)))
        connection.execute(change.values(last_used=int(now // _DAY)))

    def _bound(self, row: Row[tuple[object, ...]]) -> BoundCertificate:
        encoded = self._vault.unseal(row.sealed, _context(row.id, row.identity_id))
        certificate = x509.load_der_x509_certificate(encoded)
        return BoundCertificate(row.id, row.identity_id, Binding(row.kind), certificate, row.created_at, row.last_used)

    def _match(self, binding: Binding, path: tuple[x509.Certificate, ...]) -> str | None:
        """None where a certificate has nothing of that kind: an empty name is nobody's."""
        certificate = path[0]
        match binding:
            case Binding.CERTIFICATE:
                parts = [certificate.public_bytes(Encoding.DER).hex()]
            case Binding.KEY:
                parts = [_key(certificate)]
            case Binding.NAME:
                try:
                    subject, issuer = (
                        comparable(certificate.subject.public_bytes()),
                        comparable(certificate.issuer.public_bytes()),
                    )
                except ValueError:
                    return None
                if not subject or not issuer:
                    return None
                parts = [_text(subject), _text(issuer), _key(path[-1])]
        return self._vault.pseudonym("client certificate", binding.value, *parts)


def _key(certificate: x509.Certificate) -> str:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo).hex()


def _text(name: Iterable[frozenset[tuple[str, str | bytes]]]) -> str:
    """One spelling of a name as it is compared."""
    return json.dumps(
        [
            sorted((kind, value.hex() if isinstance(value, bytes) else f"={value}") for kind, value in rdn)
            for rdn in name
        ]
    )


def _context(identifier: str, identity_id: str) -> bytes:
    return f"client certificate:{identifier}:{identity_id}".encode()
