"""The rules a certificate can break, each with the section of the standard that says so.

`Failure.rule` and `PathVerdict.rule` are keys of `RULES`. A rule named `relais-…` is one where this house is stricter
than the standards or where a budget ended the work; its text then says of what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

RULES: Mapping[str, str] = {
    "rfc5280-6.1": "RFC 5280 §6.1: a path was found on which every rule holds",
    "rfc5280-4.1-unreadable": "RFC 5280 §4.1: the certificate or one of its extensions is not what its syntax demands",
    "rfc5280-4.1.1.2-signature-algorithm": "RFC 5280 §4.1.1.2: the algorithm inside is the algorithm outside",
    "rfc5280-4.1.2.1-version": "RFC 5280 §4.1.2.1: extensions belong to version 3",
    "rfc5280-4.1.2.2-serial": "RFC 5280 §4.1.2.2: a serial number has at most 20 octets",
    "rfc5280-4.1.2.4-issuer": "RFC 5280 §4.1.2.4: the issuer has a name",
    "rfc5280-4.1.2.5-validity": "RFC 5280 §4.1.2.5: the validity period begins before it ends",
    "rfc5280-4.2-duplicate-extension": "RFC 5280 §4.2: an extension occurs once",
    "rfc5280-4.2.1.3-key-usage": "RFC 5280 §4.2.1.3: KeyUsage permits what the key is used for",
    "rfc5280-4.2.1.10-name-constraints": "RFC 5280 §4.2.1.10: name constraints are well formed and belong to CAs",
    "rfc5280-4.2.1.12-extended-key-usage": "RFC 5280 §4.2.1.12: ExtKeyUsage, when there is one, names the purpose",
    "rfc5280-6.1-no-path": "RFC 5280 §6.1: a path leads to a trust anchor",
    "rfc5280-6.1.3-signature": "RFC 5280 §6.1.3 (a)(1): the signature verifies under the issuer's key",
    "rfc5280-6.1.3-validity": "RFC 5280 §6.1.3 (a)(2): the certificate is valid at the time of validation",
    "rfc5280-6.1.3-revoked": "RFC 5280 §6.1.3 (a)(3): the certificate is not revoked",
    "relais-revocation-unknown": "RFC 5280 §6.1.3 (a)(3), hard policy: nothing current says it is not revoked",
    "rfc5280-6.1.3-name-constraints": "RFC 5280 §6.1.3 (b) and (c): names stay in what the CAs above permit",
    "rfc5280-6.1.3-explicit-policy": "RFC 5280 §6.1.3 (f), RFC 9618 §5: a valid policy is left where one is required",
    "rfc5280-6.1.4-policy-mapping": "RFC 5280 §6.1.4 (a): anyPolicy is not mapped",
    "rfc5280-6.1.4-basic-constraints": "RFC 5280 §6.1.4 (k): an issuer is a CA",
    "rfc5280-6.1.4-path-length": "RFC 5280 §6.1.4 (l), (m): no more CAs below than pathLenConstraint allows",
    "rfc5280-6.1.4-key-usage": "RFC 5280 §6.1.4 (n): an issuer's KeyUsage has keyCertSign",
    "rfc5280-6.1.4-critical-extension": "RFC 5280 §6.1.4 (o): critical extensions of a CA are processed",
    "rfc5280-6.1.5-critical-extension": "RFC 5280 §6.1.5 (f): critical extensions of the end entity are processed",
    "rfc5280-6.1.5-explicit-policy": "RFC 5280 §6.1.5 (g), RFC 9618 §5: a policy of the user's set is valid",
    "relais-algorithm-too-weak": "RFC 8551 §2.2, RFC 9155: no SHA-1, MD5, DSA nor algorithm without review",
    "relais-key-too-weak": "RFC 8551 §4, SOG-IS: RSA from 2048 bits, named curves, Edwards curves",
    "relais-extended-key-usage": "RFC 5280 §4.2.1.12, applied to CAs: who is not for it may not issue for it",
    "relais-path-depth": "the longest path that is looked at (RFC 4158 §2.1 leaves it to the builder)",
    "relais-path-budget": "the work one search may cost (RFC 4158 §3.1 leaves it to the builder)",
    "relais-name-constraints-budget": "RFC 5280 §4.2.1.10: more names and constraints than are compared",
    "relais-policy-budget": "RFC 9618 §3: more policies and mappings than are followed",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a certificate or a path was refused."""

    rule: str
    """A key of `RULES`."""
    detail: str
    """Which certificate broke it and how: serial (hexadecimal), and the subject of CAs only; never a person's name."""
