"""Whose mail addresses a certificate vouches for (RFC 8550 §3, RFC 9598)."""

from __future__ import annotations

import re
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from trust.constraints import MAIL, OTHER, utf8_mailbox
from trust.facts import Facts, read

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DOMAIN = rf"{_LABEL}(?:\.{_LABEL}){{0,20}}"
_ADDRESS = re.compile(rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~.-]{{1,64}}@{_DOMAIN}")
_UTF8_ADDRESS = re.compile(rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~.\x80-\U0010ffff-]{{1,64}}@{_DOMAIN}")


_REMEMBERED_OCTETS = 4096
"""The longest certificate whose addresses are remembered; real ones have 2,000."""


def mail_addresses(cert: x509.Certificate) -> tuple[str, ...]:
    """Addresses the certificate vouches for: rfc822Name SubjectAltNames, the legacy emailAddress of the subject, then
    SmtpUTF8Mailbox SubjectAltNames. Name constraints on mail apply to exactly these.

    RFC 8550 §3, RFC 9598 §3. The local part as it is, the domain in lower case, as A-labels; each once. Values that are
    no plain addr-spec (NUL, controls, quotes, display names) are left out; an unreadable certificate vouches for
    nobody.
    """
    encoded = cert.public_bytes(Encoding.DER)
    return _addresses(cert) if len(encoded) > _REMEMBERED_OCTETS else _known_addresses(encoded)


@lru_cache(maxsize=1024)
def _known_addresses(encoded: bytes) -> tuple[str, ...]:
    """By DER, for a certificate keeps in memory whatever was read of it, a hundred times what it weighs."""
    try:
        return _addresses(x509.load_der_x509_certificate(encoded))
    except Exception:  # read before, but warnings may have become errors since
        return ()


def _addresses(cert: x509.Certificate) -> tuple[str, ...]:
    facts = read(cert)
    if not isinstance(facts, Facts):
        return ()
    plain = [content.decode("ascii", "replace") for tag, content in facts.alternative_names if tag == MAIL]
    try:
        plain += facts.mail_of_subject
    except ValueError:
        return ()
    found = [value for value in plain if _ADDRESS.fullmatch(value)]
    international = [utf8_mailbox(content) for tag, content in facts.alternative_names if tag == OTHER]
    found += [value for value in international if _UTF8_ADDRESS.fullmatch(value) and value.isprintable()]
    split = [value.rpartition("@") for value in found]
    return tuple(dict.fromkeys(f"{local}@{domain.lower()}" for local, _, domain in split))
