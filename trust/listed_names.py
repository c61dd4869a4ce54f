"""Operators' names as lists and certificates really write them, beyond what RFC 4514 and `cryptography` read.

Two places need more than `trust.names`: the trust list, where a name may have been pasted from `openssl x509 -subject`
(`/C=FR/O=…/CN=…`, with bytes as `\\xC3`), and certificates of old software whose subject holds a TeletexString in
Latin-1, which OpenSSL takes and `cryptography` does not. Both end as the same `DistinguishedName`.
"""

from __future__ import annotations

import re

from cryptography import x509

from trust import der
from trust.names import MAX_ATTRIBUTES, DistinguishedName

_SLASHED = re.compile(r"/(?=\s*(?:OID\.)?(?:[A-Z][A-Z0-9-]{0,40}|[0-2](?:\.[0-9]{1,20}){1,20})\s*=)", re.IGNORECASE)
_BYTE = re.compile(r"\\x([0-9A-Fa-f]{2})")
_DECODERS = {0x0C: "utf-8", 0x12: "ascii", 0x13: "ascii", 0x16: "ascii", 0x1C: "utf-32-be", 0x1E: "utf-16-be"}
_TELETEX = 0x14


def parse_listed(text: str) -> DistinguishedName:
    """A name of the trust list: RFC 4514 and what `DistinguishedName.parse` accepts beyond it, or OpenSSL's slash form.

    The slash form is root first; a slash separates only before a `type=`, so that `O=A/B` stays whole. Raises
    ValueError when no name can be read.
    """
    text = text.strip()
    if not text.startswith("/"):
        return DistinguishedName.parse(text)
    parts: list[str] = []
    for part in _SLASHED.split(text)[1:]:
        try:
            DistinguishedName.parse(_BYTE.sub(r"\\\1", part))
        except ValueError:
            if not parts:
                raise
            parts[-1] += "/" + part  # no known type: the slash belonged to the value
        else:
            parts.append(part)
    if not parts:
        raise ValueError("no attribute in a distinguished name")
    return DistinguishedName.parse(",".join(_BYTE.sub(r"\\\1", part).rstrip() for part in reversed(parts)))


def subject_of(certificate: x509.Certificate) -> DistinguishedName:
    """The subject of a certificate, whatever string types it uses: UTF8, Printable, IA5, BMP, Universal, Teletex.

    A TeletexString is read as Latin-1, which is what everybody puts into it (RFC 5280 appendix B leaves it open).
    Raises ValueError when the subject cannot be read.
    """
    try:
        return DistinguishedName.from_x509(certificate.subject)
    except ValueError:
        return _from_der(certificate.tbs_certificate_bytes)


def _from_der(tbs: bytes) -> DistinguishedName:
    fields = der.read(tbs).sequence(16)
    explicit_version = fields[0].tag == der.context(0)
    rdns = []
    for rdn in fields[5 if explicit_version else 4].sequence(MAX_ATTRIBUTES):
        attributes = []
        for attribute in rdn.set(MAX_ATTRIBUTES):
            kind, value = attribute.sequence(2)
            attributes.append((kind.oid(), _decoded(value)))
        rdns.append(tuple(attributes))
    return DistinguishedName._of(rdns)


def _decoded(value: der.Element) -> str:
    content = bytes(value.content)
    if value.tag == _TELETEX:
        return content.decode("latin-1")
    encoding = _DECODERS.get(value.tag)
    return content.decode(encoding) if encoding else "#" + bytes(value.encoded).hex()
