"""What a certificate may be wanted for, and what each purpose demands of it and of its path.

The rules of RFC 5280 are the same for all; what differs is the key usage, the extended key usage and the settings the
standard leaves to the user (§6.1.1): policies, mapping, an anchor's own end of validity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519

from trust.extensions import KeyUsage
from trust.facts import Facts

ANY_POLICY = "2.5.29.32.0"

_SERVER_AUTH = "1.3.6.1.5.5.7.3.1"
_CLIENT_AUTH = "1.3.6.1.5.5.7.3.2"
_EMAIL_PROTECTION = "1.3.6.1.5.5.7.3.4"

# plain numbers: `IntFlag` takes a microsecond for each `&`
_DIGITAL_SIGNATURE, _CONTENT_COMMITMENT, _KEY_ENCIPHERMENT, _KEY_AGREEMENT = map(
    int,
    (KeyUsage.DIGITAL_SIGNATURE, KeyUsage.CONTENT_COMMITMENT, KeyUsage.KEY_ENCIPHERMENT, KeyUsage.KEY_AGREEMENT),
)


class Purpose(Enum):
    """What a certificate is about to be used for."""

    MAIL_SIGNATURE = "mail-signature"
    """Verify a signed message: digitalSignature or nonRepudiation (CPS cards have only the latter), emailProtection."""
    MAIL_ENCRYPTION = "mail-encryption"
    """Encrypt to it: keyEncipherment for RSA, keyAgreement for EC and X25519; emailProtection."""
    OPERATOR_TLS_SERVER = "operator-tls-server"
    OPERATOR_TLS_CLIENT = "operator-tls-client"
    LIST_SIGNATURE = "list-signature"
    """Verify the trust list: an organisation's S/MIME signing certificate."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What one purpose demands beyond the rules that hold for all."""

    extended: str
    """Dotted OID that ExtKeyUsage must name, when there is one, on the end entity and on every CA."""
    initial_policies: frozenset[str] = frozenset({ANY_POLICY})
    """user-initial-policy-set (§6.1.1 (c)), dotted OIDs."""
    explicit_policy: bool = False
    """initial-explicit-policy (§6.1.1 (f)): a policy of that set must be valid on the whole path."""
    inhibit_mapping: bool = False
    """initial-policy-mapping-inhibit (§6.1.1 (e))."""
    inhibit_any: bool = False
    """initial-any-policy-inhibit (§6.1.1 (g))."""
    expired_anchor: bool = False
    """Whether an anchor is believed outside its own validity: to §6.1 it is a key and a name (RFC 5937 §3 allows both);
    here it ends with its certificate unless somebody chose otherwise."""


PROFILES: Mapping[Purpose, Profile] = MappingProxyType(
    {
        Purpose.MAIL_SIGNATURE: Profile(_EMAIL_PROTECTION),
        Purpose.MAIL_ENCRYPTION: Profile(_EMAIL_PROTECTION),
        Purpose.OPERATOR_TLS_SERVER: Profile(_SERVER_AUTH),
        Purpose.OPERATOR_TLS_CLIENT: Profile(_CLIENT_AUTH),
        Purpose.LIST_SIGNATURE: Profile(_EMAIL_PROTECTION),
    }
)


def key_usage_allows(facts: Facts, purpose: Purpose) -> bool:
    """Whether kind of key and KeyUsage fit the purpose; an absent KeyUsage restricts nothing (§4.2.1.3)."""
    usage = facts.key_usage
    if purpose is Purpose.MAIL_ENCRYPTION:
        if isinstance(facts.key, rsa.RSAPublicKey):
            return not facts.pss_only and (usage is None or bool(usage & _KEY_ENCIPHERMENT))
        agrees = isinstance(facts.key, ec.EllipticCurvePublicKey | x25519.X25519PublicKey)
        return agrees and (usage is None or bool(usage & _KEY_AGREEMENT))
    if isinstance(facts.key, x25519.X25519PublicKey):
        return False  # it cannot sign
    if usage is None or usage & _DIGITAL_SIGNATURE:
        return True
    # TLS signs the handshake with digitalSignature (RFC 8446 §4.4.2.2); mail takes nonRepudiation too (RFC 8550 §4.4.2)
    return purpose in (Purpose.MAIL_SIGNATURE, Purpose.LIST_SIGNATURE) and bool(usage & _CONTENT_COMMITMENT)
