"""Apple's configuration profile (`.mobileconfig`): mail, address book and authorities in one file that iPhone, iPad and
Mac install by themselves, signed so that the device can say from whom it is (Apple, "Configuration Profile Reference").

Without an address the device asks for it. The profile never holds a password. Identifiers follow from the services and
the address alone: installing it again replaces what was there.
"""

from __future__ import annotations

import plistlib
import uuid
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from mta.mailboxes.services import AddressBook, ClientServices, Security
from smime.signing import sign_content
from trust.keys import Signer

CONTENT_TYPE = "application/x-apple-aspen-config"
_NAMESPACE = uuid.UUID("5b7f5a52-6a4f-4f6f-9b3c-2f1f7f0c6d11")


def signed_profile(services: ClientServices, address: str, signer: Signer) -> bytes:
    """The profile as DER of a SignedData with the profile inside (RFC 5652 §5).

    Raises `smime.signing.UnfitSignerError`, `SignerFailedError`.
    """
    return sign_content(profile(services, address), signer, attached=True)


def profile(services: ClientServices, address: str) -> bytes:
    """The profile as XML property list; `address` is one of our domains', or empty."""
    parts = [_authority(services, number) for number in range(len(services.authorities))]
    parts.append(_mail(services, address))
    if services.address_book is not None:
        parts.append(_address_book(services, services.address_book))
    whole = _part(services, "Configuration", "profil", address) | {
        "PayloadDisplayName": services.name,
        "PayloadDescription": "Messagerie sécurisée de santé : courrier, annuaire et certificats.",
        "PayloadOrganization": services.name,
        "PayloadContent": parts,
    }
    return plistlib.dumps(whole)


def _part(services: ClientServices, kind: str, name: str, address: str = "") -> dict[str, Any]:
    reverse = ".".join(reversed(services.site.host.split(".")))
    identifier = f"{reverse}.relais.{name}"
    unique = uuid.uuid5(_NAMESPACE, f"{identifier} {address}")
    if address:  # two mailboxes on one device; the address itself, which may hold a matricule, is no identifier
        identifier += f".{unique.hex[:16]}"
    return {
        "PayloadType": kind,
        "PayloadVersion": 1,
        "PayloadIdentifier": identifier,
        "PayloadUUID": str(unique).upper(),
    }


def _mail(services: ClientServices, address: str) -> dict[str, Any]:
    submission = services.submission[0]
    who: dict[str, Any] = {}
    if address:
        who = {
            "EmailAddress": address,
            "IncomingMailServerUsername": address,
            "OutgoingMailServerUsername": address,
        }
    return (
        _part(services, "com.apple.mail.managed", "courrier", address)
        | who
        | {
            "PayloadDisplayName": "Messagerie sécurisée de santé",
            "EmailAccountType": "EmailTypeIMAP",
            "EmailAccountDescription": services.name,
            "IncomingMailServerAuthentication": "EmailAuthPassword",
            "IncomingMailServerHostName": services.imap.host,
            "IncomingMailServerPortNumber": services.imap.port,
            "IncomingMailServerUseSSL": services.imap.security is Security.TLS,
            "OutgoingMailServerAuthentication": "EmailAuthPassword",
            "OutgoingMailServerHostName": submission.host,
            "OutgoingMailServerPortNumber": submission.port,
            "OutgoingMailServerUseSSL": True,
            "OutgoingPasswordSameAsIncomingPassword": True,
            # Health mail stays in this account, and its correspondents out of the maker's cloud.
            "PreventMove": True,
            "PreventAppSheet": True,
            "disableMailRecentsSyncing": True,
            "allowMailDrop": False,
        }
    )


def _address_book(services: ClientServices, book: AddressBook) -> dict[str, Any]:
    login = {"LDAPAccountUserName": book.login} if book.login else {}
    return (
        _part(services, "com.apple.ldap.account", "annuaire")
        | login
        | {
            "PayloadDisplayName": "Annuaire santé",
            "LDAPAccountDescription": "Annuaire santé",
            "LDAPAccountHostName": f"{book.service.host}:{book.service.port}",
            "LDAPAccountUseSSL": True,
            "LDAPSearchSettings": [
                {
                    "LDAPSearchSettingDescription": "Annuaire santé",
                    "LDAPSearchSettingSearchBase": book.base,
                    "LDAPSearchSettingScope": "LDAPSearchSettingScopeSubtree",
                }
            ],
        }
    )


def _authority(services: ClientServices, number: int) -> dict[str, Any]:
    certificate = services.authorities[number]
    root = certificate.subject == certificate.issuer
    name = f"autorite-{certificate.fingerprint(hashes.SHA256()).hex()[:16]}"
    return _part(services, "com.apple.security.root" if root else "com.apple.security.pkcs1", name) | {
        "PayloadDisplayName": certificate.subject.rfc4514_string(),
        "PayloadCertificateFileName": f"{name}.cer",
        "PayloadContent": certificate.public_bytes(Encoding.DER),
    }
