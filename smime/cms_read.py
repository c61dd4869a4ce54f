"""CMS structures read from BER: positions in the input, nothing copied, nothing decided (RFC 5652, RFC 5083).

Whether an algorithm is acceptable, a key fits or a signature holds is for `smime.decrypting` and `smime.verifying`.
What no cipher and no signature covers must still be what the standards prescribe for the structure it stands in, as far
as everybody writes it so: then there is no octet that can be altered unseen (see `tests/smime/test_flips.py`).

The same algorithms and attributes come with every message of one sender: what was read of them is remembered.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from smime import oids
from trust import der
from trust.der import Buffer, DerError, Element, Octets, context

MAX_RECIPIENTS = 1000
MAX_SIGNERS = 16
MAX_CERTIFICATES = 64
MAX_DIGESTS = 32
MAX_ATTRIBUTES = 64
MAX_VALUES = 16
_CONTEXT_0, _CONTEXT_1, _CONTEXT_2 = context(0), context(1), context(2)
_IMPLICIT_OCTETS = (context(0), context(0, constructed=False))
REMEMBERED_OCTETS = 512
"""The longest that are."""
_REMEMBERED_CERTIFICATES = 8192
"""The longest CertificateSet that is."""


@dataclass(frozen=True, slots=True)
class Algorithm:
    """AlgorithmIdentifier (RFC 5280 §4.1.1.2)."""

    oid: str
    parameters: Element | None
    """None when absent or NULL."""
    encoded: bytes
    """As received."""


@dataclass(frozen=True, slots=True)
class PartyId:
    """SignerIdentifier or RecipientIdentifier (RFC 5652 §5.3, §6.2.1): either issuer and serial number or a key id."""

    issuer: bytes = b""
    """DER of the Name."""
    serial: int = 0
    key_id: bytes = b""


@dataclass(frozen=True, slots=True)
class KeyTransport:
    """KeyTransRecipientInfo (RFC 5652 §6.2.1)."""

    recipient: PartyId
    algorithm: Algorithm
    encrypted_key: bytes


@dataclass(frozen=True, slots=True)
class KeyAgreement:
    """One RecipientEncryptedKey of a KeyAgreeRecipientInfo (RFC 5652 §6.2.2)."""

    recipient: PartyId
    algorithm: Algorithm
    originator: bytes
    """The originator's ephemeral point as X9.62 octets; empty when the originator is named by a certificate instead."""
    originator_algorithm: Algorithm | None
    """Of that key; None when there is none."""
    user_material: bytes | None
    encrypted_key: bytes


Recipient = KeyTransport | KeyAgreement


@dataclass(frozen=True, slots=True)
class Enveloped:
    """EnvelopedData (RFC 5652 §6.1) or AuthEnvelopedData (RFC 5083 §2.1)."""

    authenticated: bool
    """AuthEnvelopedData."""
    recipients: tuple[Recipient, ...]
    """Recipients of other kinds (KEK, password) are left out."""
    algorithm: Algorithm
    content: Octets
    """The encrypted content."""
    auth_attributes: bytes
    """What is authenticated beside the content: the attributes with their tag as SET OF (RFC 5083 §2.2), or empty."""
    mac: bytes


@dataclass(frozen=True, slots=True)
class Attribute:
    oid: str
    values: list[Element]


@dataclass(frozen=True, slots=True)
class SignerInfo:
    """SignerInfo (RFC 5652 §5.3). Unsigned attributes are not read: anybody may have written them."""

    signer: PartyId
    digest: Algorithm
    signed_bytes: bytes
    """The signed attributes with their tag as SET OF, which is what is signed (§5.4); empty when there are none."""
    attributes: tuple[Attribute, ...]
    algorithm: Algorithm
    signature: bytes
    version_fits: bool
    """Whether it is the one §5.3 has for the way the signer is named."""


@dataclass(frozen=True, slots=True)
class Signed:
    """SignedData (RFC 5652 §5.1)."""

    digests: frozenset[str]
    content_type: str
    content: Octets | None
    """None when detached."""
    certificates: tuple[bytes, ...]
    signers: tuple[SignerInfo, ...]
    version_fits: bool
    """Whether it is the one §5.1 has for such signers; any is, beside certificates of kinds that nobody sends."""


@dataclass(frozen=True, slots=True)
class Compressed:
    """CompressedData (RFC 3274 §1.1)."""

    algorithm: Algorithm
    content_type: str
    """Of what is compressed."""
    content: Octets


@dataclass(frozen=True, slots=True)
class Other:
    """A content type that is not opened here."""

    content_type: str


def read_cms(data: Buffer) -> Enveloped | Signed | Compressed | Other:
    """ContentInfo (RFC 5652 §3). Raises DerError on anything malformed or beyond the limits above.

    What is returned refers to `data`, which must not change meanwhile.
    """
    kind, wrapper = der.read(data).exactly(2)
    content_type = kind.oid()
    content = wrapper.expect(_CONTEXT_0).explicit()
    if content_type == oids.SIGNED_DATA:
        return _signed(content)
    if content_type == oids.AUTH_ENVELOPED_DATA:
        return _auth_enveloped(content)
    if content_type == oids.ENVELOPED_DATA:
        return _enveloped(content)
    if content_type == oids.COMPRESSED_DATA:
        return _compressed(content)
    return Other(content_type)


def read_algorithm(element: Element) -> Algorithm:
    """AlgorithmIdentifier. Raises DerError."""
    if element.size > REMEMBERED_OCTETS:
        return _algorithm(element)
    return _known_algorithm(element.copy())


def _algorithm(element: Element) -> Algorithm:
    fields = element.sequence(2)
    if not fields:
        raise DerError("AlgorithmIdentifier")
    parameters = fields[1] if len(fields) == 2 else None
    if parameters is not None and parameters.tag == der.NULL:
        if parameters.size:
            raise DerError("NULL")
        parameters = None
    return Algorithm(fields[0].oid(), parameters, element.copy())


@lru_cache(maxsize=512)
def _known_algorithm(encoded: bytes) -> Algorithm:
    return _algorithm(der.read(encoded))


def _party(element: Element) -> PartyId:
    return _read_party(element) if element.size > REMEMBERED_OCTETS else _known_party(element.copy())


@lru_cache(maxsize=1024)
def _known_party(encoded: bytes) -> PartyId:
    return _read_party(der.read(encoded))


def _read_party(element: Element) -> PartyId:
    if element.tag == der.SEQUENCE:
        issuer, serial = element.exactly(2)
        return PartyId(issuer.expect(der.SEQUENCE).copy(), serial.integer())
    if element.tag in _IMPLICIT_OCTETS:
        return PartyId(key_id=_key_id(bytes(element.chunks())))
    raise DerError("recipient or signer identifier")


def _key_id(octets: bytes) -> bytes:
    if not octets:
        raise DerError("key identifier")
    return octets


def _retagged(element: Element) -> bytes:
    """An implicitly tagged SET OF with the tag it is hashed under.

    The elements stay as received, as every other implementation does: sorting them again would make a signature over
    unsorted attributes fail here alone.
    """
    return der.tlv(der.SET, element.content)


# --- Encrypted -------------------------------------------------------------------------------------------------------


def _taken(fields: list[Element], place: int, tag: int) -> Element | None:
    """The optional field of that tag, taken out of its place if it is there."""
    return fields.pop(place) if place < len(fields) and fields[place].tag == tag else None


def _auth_enveloped(element: Element) -> Enveloped:
    """Nobody wrote this before RFC 5083, so its versions are what they have to be, and its content is data: anything
    else is not a MIME entity (RFC 8551 §2.4.1)."""
    fields = element.sequence(7)
    _taken(fields, 1, _CONTEXT_0)  # originatorInfo
    attributes = _taken(fields, 3, _CONTEXT_1)
    _taken(fields, 4, _CONTEXT_2)  # unauthAttrs
    if len(fields) != 4:
        raise DerError("AuthEnvelopedData")
    version, recipients, content_info, mac = fields
    if version.integer() != 0:
        raise DerError("version of AuthEnvelopedData")
    content_type, algorithm, content = _encrypted(content_info)
    if content_type != oids.DATA:
        raise DerError("type of the encrypted content")
    authenticated = _retagged(attributes) if attributes is not None else b""
    return Enveloped(True, _recipients(recipients, strict=True), algorithm, content, authenticated, mac.octets())


def _enveloped(element: Element) -> Enveloped:
    """Ciphertext in CBC may be altered at will: here versions say nothing that the fields do not say."""
    fields = element.sequence(5)
    _taken(fields, 1, _CONTEXT_0)  # originatorInfo
    _taken(fields, 3, _CONTEXT_1)  # unprotectedAttrs
    if len(fields) != 3:
        raise DerError("EnvelopedData")
    version, recipients, content_info = fields
    version.integer()
    _, algorithm, content = _encrypted(content_info)
    return Enveloped(False, _recipients(recipients, strict=False), algorithm, content, b"", b"")


def _recipients(element: Element, *, strict: bool) -> tuple[Recipient, ...]:
    """`strict`: their versions must be those of RFC 5652 §6.2."""
    infos = element.set(MAX_RECIPIENTS)
    if not infos:
        raise DerError("number of recipients")
    recipients: list[Recipient] = []
    for info in infos:
        if info.tag == der.SEQUENCE:
            recipients.append(_key_transport(info, strict=strict))
        elif info.tag == _CONTEXT_1:
            recipients += _key_agreements(info, strict=strict)
        if len(recipients) > MAX_RECIPIENTS:
            raise DerError("number of recipients")
    return tuple(recipients)


def _encrypted(element: Element) -> tuple[str, Algorithm, Octets]:
    """EncryptedContentInfo (RFC 5652 §6.1). The algorithm is not remembered: it has the nonce in it."""
    fields = element.sequence(4)
    if len(fields) != 3 or fields[2].tag not in _IMPLICIT_OCTETS:
        raise DerError("encrypted content")
    return fields[0].oid(), _algorithm(fields[1]), fields[2].chunks()


def _key_transport(element: Element, *, strict: bool) -> KeyTransport:
    version, name, algorithm, key = element.exactly(4)
    recipient = _party(name)
    if version.integer() != (2 if recipient.key_id else 0) and strict:
        raise DerError("version of KeyTransRecipientInfo")
    return KeyTransport(recipient, read_algorithm(algorithm), key.octets())


def _key_agreements(element: Element, *, strict: bool) -> list[KeyAgreement]:
    fields = element.children(5)
    material = _taken(fields, 2, _CONTEXT_1)
    if len(fields) != 4:
        raise DerError("KeyAgreeRecipientInfo")
    if fields[0].integer() != 3 and strict:
        raise DerError("version of KeyAgreeRecipientInfo")
    point, point_algorithm = _originator_point(fields[1].expect(_CONTEXT_0).explicit())
    user_material = material.explicit().octets() if material is not None else None
    algorithm = read_algorithm(fields[2])
    found: list[KeyAgreement] = []
    for key in fields[3].sequence(MAX_RECIPIENTS):
        name, encrypted = key.exactly(2)
        party = _agreeing_party(name)
        found.append(KeyAgreement(party, algorithm, point, point_algorithm, user_material, encrypted.octets()))
    return found


def _originator_point(originator: Element) -> tuple[bytes, Algorithm | None]:
    """The key in an OriginatorPublicKey and its algorithm."""
    if originator.tag != _CONTEXT_1:
        return b"", None
    algorithm, key = originator.exactly(2, _CONTEXT_1)
    bits = bytes(key.expect(der.BIT_STRING).content)
    return (bits[1:], read_algorithm(algorithm)) if bits[:1] == b"\0" else (b"", None)


def _agreeing_party(element: Element) -> PartyId:
    """KeyAgreeRecipientIdentifier: issuer and serial number, or a RecipientKeyIdentifier under [0]."""
    if element.tag != _CONTEXT_0:
        return _party(element.expect(der.SEQUENCE))
    fields = element.children(3)
    if not fields:
        raise DerError("RecipientKeyIdentifier")
    return PartyId(key_id=_key_id(fields[0].octets()))


# --- Signed ----------------------------------------------------------------------------------------------------------


def _signed(element: Element) -> Signed:
    fields = element.sequence(6)
    certificate_set = _taken(fields, 3, _CONTEXT_0)
    revocation = _taken(fields, 3, _CONTEXT_1)
    if len(fields) != 4:
        raise DerError("SignedData")
    version, digests, content_info, infos = fields
    content_type, content = _encapsulated(content_info)
    certificates, whole = _certificates(certificate_set) if certificate_set is not None else ((), True)
    signers = tuple([_signer(info) for info in infos.set(MAX_SIGNERS)])
    due = 3 if content_type != oids.DATA or any(info.signer.key_id for info in signers) else 1
    if revocation is not None and any(choice.tag == _CONTEXT_1 for choice in revocation.children()):
        due = 5  # OCSP answers, as CAdES has them (RFC 5940)
    fits = version.integer() == due or not whole
    return Signed(_digests(digests), content_type, content, certificates, signers, fits)


def _digests(element: Element) -> frozenset[str]:
    return _read_digests(element) if element.size > REMEMBERED_OCTETS else _known_digests(element.copy())


@lru_cache(maxsize=64)
def _known_digests(encoded: bytes) -> frozenset[str]:
    return _read_digests(der.read(encoded))


def _read_digests(element: Element) -> frozenset[str]:
    return frozenset([read_algorithm(algorithm).oid for algorithm in element.set(MAX_DIGESTS)])


def _certificates(element: Element) -> tuple[tuple[bytes, ...], bool]:
    """Each certificate once, and whether there is nothing else in the CertificateSet."""
    if element.size > _REMEMBERED_CERTIFICATES:
        return _read_certificates(element)
    return _known_certificates(element.copy())


@lru_cache(maxsize=256)
def _known_certificates(encoded: bytes) -> tuple[tuple[bytes, ...], bool]:
    return _read_certificates(der.read(encoded))


def _read_certificates(element: Element) -> tuple[tuple[bytes, ...], bool]:
    choices = element.children(MAX_CERTIFICATES)
    certificates = [choice.copy() for choice in choices if choice.tag == der.SEQUENCE]
    return tuple(dict.fromkeys(certificates)), len(certificates) == len(choices)


def _encapsulated(element: Element) -> tuple[str, Octets | None]:
    """EncapsulatedContentInfo (RFC 5652 §5.2)."""
    fields = element.sequence(2)
    if not fields:
        raise DerError("EncapsulatedContentInfo")
    content_type = fields[0].oid()
    if len(fields) == 1:
        return content_type, None
    octets = fields[1].expect(_CONTEXT_0).explicit()
    if octets.tag & ~der.CONSTRUCTED != der.OCTET_STRING:
        raise DerError("eContent")
    return content_type, octets.chunks()


def _compressed(element: Element) -> Compressed:
    version, algorithm, content_info = element.exactly(3)
    version.integer()
    content_type, content = _encapsulated(content_info)
    if content is None:
        raise DerError("no compressed content")
    return Compressed(read_algorithm(algorithm), content_type, content)


def _signer(element: Element) -> SignerInfo:
    fields = element.sequence(7)
    attributes = _taken(fields, 3, _CONTEXT_0)
    _taken(fields, 5, _CONTEXT_1)  # unsignedAttrs
    if len(fields) != 5:
        raise DerError("SignerInfo")
    version, name, digest, algorithm, signature = fields
    signer = _party(name)
    return SignerInfo(
        signer=signer,
        digest=read_algorithm(digest),
        signed_bytes=_retagged(attributes) if attributes is not None else b"",
        attributes=tuple([_attribute(child) for child in attributes.children(MAX_ATTRIBUTES)])
        if attributes is not None
        else (),
        algorithm=read_algorithm(algorithm),
        signature=signature.octets(),
        version_fits=version.integer() == (3 if signer.key_id else 1),
    )


_FRESH = {der.oid(name): name for name in (oids.MESSAGE_DIGEST, oids.SIGNING_TIME)}
"""Attributes that are others in each message."""
_FRESH_OCTETS = len(der.oid(oids.MESSAGE_DIGEST))


def _attribute(element: Element) -> Attribute:
    encoded = element.copy()
    if fresh := _FRESH.get(encoded[2 : 2 + _FRESH_OCTETS]):
        return Attribute(fresh, element.exactly(2)[1].set(MAX_VALUES))
    if len(encoded) <= REMEMBERED_OCTETS:
        return _known_attribute(encoded)
    kind, values = element.exactly(2)
    return Attribute(kind.oid(), values.set(MAX_VALUES))


@lru_cache(maxsize=1024)
def _known_attribute(encoded: bytes) -> Attribute:
    kind, values = der.read(encoded).exactly(2)
    return Attribute(kind.oid(), values.set(MAX_VALUES))
