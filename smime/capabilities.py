"""What a correspondent says it can read (SMIMECapabilities, RFC 8551 §2.5.2), and what follows for writing to it.

The list stands in the signed attributes of the correspondent's own mail, so only the correspondent can have written it;
it may still be old, short or weak, so it never takes a suite below the operator's floor (RFC 8551 §2.7.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from smime import oids
from smime.suites import NO_FLOOR, ContentCipher, Floor, KeyTransportScheme, Suite
from trust import der
from trust.der import Buffer, DerError, Element, context

MAX_CAPABILITIES = 64

_SHA256 = der.sequence(der.oid(oids.SHA256), der.null())
OAEP_SHA256_PARAMETERS = der.sequence(
    der.tlv(context(0), _SHA256),
    der.tlv(context(1), der.sequence(der.oid(oids.MGF1), _SHA256)),
)
"""RSAES-OAEP-params with SHA-256 for the hash and for MGF1 (RFC 4055 §4.1); parameters of the hash NULL, as OpenSSL and
NSS write them."""

_CIPHERS = (
    ContentCipher.AES128_CBC,
    ContentCipher.AES256_CBC,
    ContentCipher.AES128_GCM,
    ContentCipher.AES256_GCM,
)
"""From the weakest up: any authenticated one before any other (EFAIL)."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """An SMIMECapabilities value, as far as it tells how to write to its author."""

    names: tuple[str, ...]
    """Dotted OIDs, the preferred first. RSAES-OAEP only when it is meant with SHA-256."""

    @property
    def ciphers(self) -> tuple[ContentCipher, ...]:
        """Those that Relais writes, in the order of the list."""
        known = {cipher.oid: cipher for cipher in _CIPHERS}
        return tuple(known[name] for name in dict.fromkeys(self.names) if name in known)

    @property
    def key_transports(self) -> tuple[KeyTransportScheme, ...]:
        """Those that the list names; most lists name none, which says nothing."""
        known = {
            oids.RSAES_OAEP: KeyTransportScheme.RSA_OAEP_SHA256,
            oids.RSA_ENCRYPTION: KeyTransportScheme.RSA_PKCS1V15,
        }
        return tuple(known[name] for name in dict.fromkeys(self.names) if name in known)

    @property
    def cek_hkdf(self) -> bool:
        """Whether a content key bound to its algorithm is understood (RFC 9709)."""
        return oids.CEK_HKDF_SHA256 in self.names


def read_capabilities(value: Buffer | Element) -> Capabilities:
    """Understand an SMIMECapabilities value in DER or BER. Raises `DerError` when it is none, or lists more than 64."""
    listed = (value if isinstance(value, Element) else der.read(value)).sequence()
    if len(listed) > MAX_CAPABILITIES:
        raise DerError("number of capabilities")
    names: list[str] = []
    for capability in listed:
        fields = capability.sequence()
        if not fields:
            raise DerError("SMIMECapability")
        name = fields[0].oid()
        if name != oids.RSAES_OAEP or (len(fields) == 2 and _means_sha256(fields[1])):
            names.append(name)
    return Capabilities(tuple(names))


def write_capabilities(capabilities: Capabilities) -> bytes:
    """DER of SMIMECapabilities. Key agreement schemes are listed once for each key wrap (RFC 5753 §7.1.5)."""
    listed: list[bytes] = []
    for name in capabilities.names:
        if name == oids.RSAES_OAEP:
            listed.append(der.sequence(der.oid(name), OAEP_SHA256_PARAMETERS))
        elif name in _AGREEMENTS:
            wraps = (oids.AES256_WRAP, oids.AES128_WRAP)
            listed += (der.sequence(der.oid(name), der.sequence(der.oid(wrap))) for wrap in wraps)
        else:
            listed.append(der.sequence(der.oid(name)))
    return der.sequence(*listed)


_AGREEMENTS = frozenset((oids.ECDH_SHA256_KDF, oids.ECDH_SHA384_KDF, oids.ECDH_SHA512_KDF, oids.ECDH_HKDF_SHA256))

OWN_CAPABILITIES = Capabilities(
    (
        *(cipher.oid for cipher in reversed(_CIPHERS)),
        oids.RSAES_OAEP,
        oids.ECDH_SHA256_KDF,
        oids.ECDH_SHA384_KDF,
        oids.ECDH_SHA512_KDF,
        oids.ECDH_HKDF_SHA256,
        oids.CEK_HKDF_SHA256,
    )
)
"""What Relais itself reads and would rather get."""


def suite_for(preferred: Suite, capabilities: Capabilities | None, floor: Suite | Floor = NO_FLOOR) -> Suite:
    """The suite for one correspondent: the partner's, changed to what the correspondent reads, not below `floor`.

    - The cipher stays when it is in the list, except that a list with an authenticated cipher is taken at its word;
      else it becomes the strongest in the list. With none at or above the floor it is the floor's, or the partner's
      where that is stronger: the correspondent may then have to ask for help, but nothing is sent weaker or in clear.
    - RSA key transport follows the list only when the list names one.
    - RFC 9709 is used when the list names it, or when the floor insists.

    Naming, signature scheme and opaque signing are the partner's business and stay.
    """
    content, key_transport, cek_hkdf = preferred.content, preferred.key_transport, preferred.cek_hkdf
    if capabilities is not None:
        content = _content(preferred.content, capabilities.ciphers, floor.content)
        named = capabilities.key_transports
        if named and key_transport not in named:
            key_transport = named[0]
        if capabilities.ciphers:
            cek_hkdf = capabilities.cek_hkdf
    if floor.key_transport is KeyTransportScheme.RSA_OAEP_SHA256:
        key_transport = KeyTransportScheme.RSA_OAEP_SHA256
    return replace(
        preferred,
        content=_stronger(content, floor.content),
        key_transport=key_transport,
        cek_hkdf=cek_hkdf or floor.cek_hkdf,
    )


def _content(preferred: ContentCipher, listed: Sequence[ContentCipher], floor: ContentCipher) -> ContentCipher:
    allowed = [cipher for cipher in listed if _stronger(cipher, floor) is cipher]
    if not allowed:
        return preferred
    strongest = max(allowed, key=_CIPHERS.index)
    return preferred if preferred in allowed and preferred.authenticated is strongest.authenticated else strongest


def _stronger(one: ContentCipher, other: ContentCipher) -> ContentCipher:
    return max(one, other, key=_CIPHERS.index)


def _means_sha256(parameters: Element) -> bool:
    """RSAES-OAEP-params with SHA-256 twice and no label, however the NULLs are written."""
    try:
        fields = parameters.sequence()
        if [field.tag for field in fields] != [context(0), context(1)]:
            return False
        digest, mask = (field.explicit().sequence() for field in fields)
        return (
            digest[0].oid() == oids.SHA256
            and mask[0].oid() == oids.MGF1
            and len(mask) == 2
            and mask[1].sequence()[0].oid() == oids.SHA256
        )
    except (DerError, IndexError):
        return False
