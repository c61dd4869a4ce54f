"""What a partner is written to with: the suites of algorithms Relais offers, and nothing below them.

A suite is agreed with one partner (`directory.records.Partner`) or follows from what a correspondent's signed mail says
it can read (`smime.capabilities`). What may be *read* is another question, see `smime.policy`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from smime import oids


class ContentCipher(Enum):
    """How the content is encrypted: name, OID, octets of the key."""

    AES256_GCM = ("aes256-gcm", oids.AES256_GCM, 32)
    AES128_GCM = ("aes128-gcm", oids.AES128_GCM, 16)
    AES256_CBC = ("aes256-cbc", oids.AES256_CBC, 32)
    """EnvelopedData for partners that cannot read RFC 5084; not authenticated."""
    AES128_CBC = ("aes128-cbc", oids.AES128_CBC, 16)

    @property
    def label(self) -> str:
        """The name in settings, verdicts and reports."""
        return self.value[0]

    @property
    def oid(self) -> str:
        return self.value[1]

    @property
    def key_octets(self) -> int:
        return self.value[2]

    @property
    def authenticated(self) -> bool:
        return self in (ContentCipher.AES256_GCM, ContentCipher.AES128_GCM)


class KeyTransportScheme(Enum):
    """How the content key reaches an RSA recipient."""

    RSA_OAEP_SHA256 = "rsa-oaep-sha256"
    RSA_PKCS1V15 = "rsa-pkcs1v15"


class RsaSignatureScheme(Enum):
    """How an RSA key signs (RFC 8017 §8)."""

    PKCS1V15 = "rsa-pkcs1v15"
    PSS = "rsa-pss"
    """MGF1 and message hash alike, salt as long as the hash (RFC 4056 §3)."""


class RecipientNaming(Enum):
    """How a RecipientInfo names its certificate (RFC 5652 §6.2.1)."""

    ISSUER_AND_SERIAL = "issuer-and-serial"
    SUBJECT_KEY_ID = "subject-key-id"
    """For certificates without a SubjectKeyIdentifier, issuer and serial number all the same."""


@dataclass(frozen=True, slots=True)
class Suite:
    """What one partner is written to with."""

    content: ContentCipher = ContentCipher.AES256_GCM
    key_transport: KeyTransportScheme = KeyTransportScheme.RSA_OAEP_SHA256
    rsa_signature: RsaSignatureScheme = RsaSignatureScheme.PKCS1V15
    naming: RecipientNaming = RecipientNaming.ISSUER_AND_SERIAL
    opaque: bool = False
    """Sign as SignedData around the content instead of multipart/signed: for partners behind line-mangling relays."""
    cek_hkdf: bool = False
    """Bind the content key to its algorithm (RFC 9709), so that GCM cannot be passed off as CBC."""


DEFAULT_SUITE = Suite()


@dataclass(frozen=True, slots=True)
class Floor:
    """What nobody is written to below, whatever a partner's suite or a correspondent's capabilities say.

    There is no floor that allows sending in the clear.
    """

    content: ContentCipher = ContentCipher.AES128_CBC
    key_transport: KeyTransportScheme = KeyTransportScheme.RSA_PKCS1V15
    cek_hkdf: bool = False


NO_FLOOR = Floor()
"""Whatever Relais writes at all."""
