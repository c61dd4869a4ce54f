"""Which certificate a signer wants to be encrypted to: SMIMEEncryptionKeyPreference (RFC 8551 §2.5.3).

Mail clients whose signing certificate is for signatures alone send another one along, and name it in a signed
attribute. Whether it is believed is for whoever keeps it to judge, by its own path.
"""

from __future__ import annotations

from itertools import islice

from cryptography import x509

from smime import oids
from smime.cms_read import PartyId, SignerInfo
from smime.offered import Bundle, Offered
from trust.der import DerError, context

MOST = 4
"""Certificates taken from one mail; a person has a few, and each costs a path."""


def encryption_certificates(info: SignerInfo, signer: Offered, bundle: Bundle) -> tuple[x509.Certificate, ...]:
    """Those the attribute names; without one, those of the signer's own subject (RFC 8551 §2.5.3.1).

    After each comes what may stand between it and an anchor. Empty when it is the signer's own certificate, when the
    attribute cannot be read, and when what it names did not come along.
    """
    try:
        named = _preferred(info)
    except (DerError, ValueError, LookupError):
        return ()
    found: dict[x509.Certificate, None] = {}
    meant = bundle.named_by(named) if named else bundle.of_subject(signer.identity.subject)
    own = signer.identity.encoded
    for each in islice((one for one in meant if one.identity.encoded != own), MOST):
        found[each.certificate] = None
        found.update(dict.fromkeys(islice(bundle.above(each), MOST)))
    return tuple(found)


def _preferred(info: SignerInfo) -> PartyId | None:
    """None when the signer does not say. Raises DerError."""
    values = [each.values for each in info.attributes if each.oid == oids.ENCRYPTION_KEY_PREFERENCE]
    if not values:
        return None
    if len(values) != 1 or len(values[0]) != 1:  # one attribute with one value (RFC 8551 §2.5.3)
        raise DerError("SMIMEEncryptionKeyPreference")
    choice = values[0][0]
    if choice.tag == context(0):
        issuer, serial = choice.children(2)
        return PartyId(issuer.copy(), serial.integer())
    if choice.tag == context(1):  # RecipientKeyIdentifier: date and other attribute say nothing more
        return PartyId(key_id=choice.children(3)[0].octets())
    if choice.tag == context(2, constructed=False):
        return PartyId(key_id=bytes(choice.content))
    raise DerError("SMIMEEncryptionKeyPreference")
