"""Signatures over CRLs, OCSP responses and the certificates of those who sign them.

Algorithms and keys are those of certification paths: `trust.signatures` verifies, `trust.facts` says which keys count.
"""

from __future__ import annotations

from typing import cast

from cryptography import x509

from trust import der
from trust.facts import Facts, read
from trust.revocation.naming import name_key
from trust.signatures import failure_of, signature_failure


def verifies(algorithm: der.Element, signed: der.Element, signature: bytes, signer: x509.Certificate) -> bool:
    """Whether `signature` over `signed` is by the key of `signer`, with an AlgorithmIdentifier and a key that are
    accepted. Never raises."""
    facts = read(signer)
    # any buffer will do, and a copy of a large list is not worth it
    content = cast(bytes, signed.encoded)
    return isinstance(facts, Facts) and failure_of(algorithm.copy(), content, signature, facts) is None


def bit_string(element: der.Element) -> bytes:
    """A BIT STRING without unused bits."""
    content = bytes(element.expect(der.BIT_STRING).content)
    if content[:1] != b"\x00":
        raise der.DerError("bit string")
    return content[1:]


def issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether `issuer` is the issuer of `certificate` by name and by signature (RFC 5280 §6.1.3 (a)). Never raises."""
    child, above = read(certificate), read(issuer)
    if not isinstance(child, Facts) or not isinstance(above, Facts):
        return False
    try:
        named = name_key(child.issuer_der) == name_key(above.subject_der)
    except der.DerError:  # a name that cannot be read is nobody's
        return False
    return named and signature_failure(child, above) is None
