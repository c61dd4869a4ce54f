"""CMS structures read from BER: positions in the input, nothing copied, nothing decided (RFC 5652, RFC 5083).

Whether an algorithm is acceptable, a key fits or a signature holds is for `smime.decrypting` and `smime.verifying`.
"""

from __future__ import annotations

from dataclasses import dataclass

from smime import oids
from trust import der
from trust.der import Buffer, DerError, Element, Octets, context

MAX_RECIPIENTS = 1000
MAX_SIGNERS = 16
MAX_CERTIFICATES = 64
MAX_DIGESTS = 32
MAX_ATTRIBUTES = 64
MAX_VALUES = 16
_AGREEING_KEYS = (oids.EC_PUBLIC_KEY, oids.X25519, oids.X448)
_MAX_FIELDS = 16
"""More than any SEQUENCE read here has."""


@dataclass(frozen=True, slots=True)
class Algorithm:
    """AlgorithmIdentifier (RFC 5280 §4.1.1.2)."""

    oid: str
    parameters: Element | None
    """None when absent or NULL."""


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
    algorithm_bytes: tuple[bytes, bytes]
    """Digest and signature AlgorithmIdentifiers as encoded, for RFC 6211."""


@dataclass(frozen=True, slots=True)
class Signed:
    """SignedData (RFC 5652 §5.1)."""

    digests: frozenset[str]
    content_type: str
    content: Octets | None
    """None when detached."""
    certificates: tuple[bytes, ...]
    signers: tuple[SignerInfo, ...]


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
    fields = der.read(data).sequence(_MAX_FIELDS)
    if len(fields) != 2:
        raise DerError("ContentInfo")
    content_type = fields[0].oid()
    content = fields[1].expect(context(0)).explicit()
    if content_type == oids.SIGNED_DATA:
        return _signed(content)
    if content_type in (oids.ENVELOPED_DATA, oids.AUTH_ENVELOPED_DATA):
        return _enveloped(content, content_type == oids.AUTH_ENVELOPED_DATA)
    if content_type == oids.COMPRESSED_DATA:
        return _compressed(content)
    return Other(content_type)


class _Fields:
    """The fields of a SEQUENCE, taken in order; optional ones only when their tag is next."""

    def __init__(self, element: Element, tag: int = der.SEQUENCE) -> None:
        self._waiting = list(reversed(element.expect(tag).children(_MAX_FIELDS)))

    def take(self) -> Element:
        if not self._waiting:
            raise DerError("a field is missing")
        return self._waiting.pop()

    def optional(self, *tags: int) -> Element | None:
        return self._waiting.pop() if self._waiting and self._waiting[-1].tag in tags else None

    def end(self) -> None:
        if self._waiting:
            raise DerError("a field too many")


def read_algorithm(element: Element) -> Algorithm:
    """AlgorithmIdentifier. Raises DerError."""
    fields = element.sequence(2)
    if not fields:
        raise DerError("AlgorithmIdentifier")
    parameters = fields[1] if len(fields) == 2 and fields[1].tag != der.NULL else None
    return Algorithm(fields[0].oid(), parameters)


def _party(element: Element) -> PartyId:
    if element.tag == der.SEQUENCE:
        fields = element.children(2)
        if len(fields) != 2:
            raise DerError("IssuerAndSerialNumber")
        return PartyId(issuer=bytes(fields[0].expect(der.SEQUENCE).encoded), serial=fields[1].integer())
    if element.tag in (context(0), context(0, constructed=False)):
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


def _enveloped(element: Element, authenticated: bool) -> Enveloped:
    fields = _Fields(element)
    fields.take().integer()  # version: says nothing that the fields do not say
    fields.optional(context(0))  # originatorInfo
    infos = fields.take().set(MAX_RECIPIENTS)
    if not infos:
        raise DerError("number of recipients")
    recipients: list[Recipient] = []
    for info in infos:
        if info.tag == der.SEQUENCE:
            recipients.append(_key_transport(info))
        elif info.tag == context(1):
            recipients += _key_agreements(info)
        if len(recipients) > MAX_RECIPIENTS:
            raise DerError("number of recipients")
    content_info = _Fields(fields.take())
    content_info.take().oid()
    algorithm = read_algorithm(content_info.take())
    content = content_info.optional(context(0), context(0, constructed=False))
    content_info.end()
    if content is None:
        raise DerError("no encrypted content")
    auth_attributes, mac = b"", b""
    if authenticated:
        attributes = fields.optional(context(1))
        auth_attributes = _retagged(attributes) if attributes is not None else b""
        mac = fields.take().octets()
        fields.optional(context(2))
    else:
        fields.optional(context(1))
    fields.end()
    return Enveloped(authenticated, tuple(recipients), algorithm, content.chunks(), auth_attributes, mac)


def _key_transport(element: Element) -> KeyTransport:
    fields = _Fields(element)
    fields.take().integer()
    info = KeyTransport(_party(fields.take()), read_algorithm(fields.take()), fields.take().octets())
    fields.end()
    return info


def _key_agreements(element: Element) -> list[KeyAgreement]:
    fields = _Fields(element, context(1))
    fields.take().integer()
    originator = fields.take().expect(context(0)).explicit()
    material = fields.optional(context(1))
    algorithm = read_algorithm(fields.take())
    keys = fields.take().sequence(MAX_RECIPIENTS)
    fields.end()
    point = _originator_point(originator)
    user_material = material.explicit().octets() if material is not None else None
    found: list[KeyAgreement] = []
    for key in keys:
        parts = key.sequence(2)
        if len(parts) != 2:
            raise DerError("RecipientEncryptedKey")
        found.append(KeyAgreement(_agreeing_party(parts[0]), algorithm, point, user_material, parts[1].octets()))
    return found


def _originator_point(originator: Element) -> bytes:
    """The key in an OriginatorPublicKey; its parameters need not be looked at, the curve is the recipient's."""
    if originator.tag != context(1):
        return b""
    fields = originator.children(2)
    if len(fields) != 2:
        raise DerError("OriginatorPublicKey")
    bits = bytes(fields[1].expect(der.BIT_STRING).content)
    if read_algorithm(fields[0]).oid not in _AGREEING_KEYS or bits[:1] != b"\0":
        return b""
    return bits[1:]


def _agreeing_party(element: Element) -> PartyId:
    """KeyAgreeRecipientIdentifier: issuer and serial number, or a RecipientKeyIdentifier under [0]."""
    if element.tag != context(0):
        return _party(element.expect(der.SEQUENCE))
    fields = element.children(3)
    if not fields:
        raise DerError("RecipientKeyIdentifier")
    return PartyId(key_id=_key_id(fields[0].octets()))


def _signed(element: Element) -> Signed:
    fields = _Fields(element)
    fields.take().integer()
    digests = frozenset(read_algorithm(algorithm).oid for algorithm in fields.take().set(MAX_DIGESTS))
    content_type, content = _encapsulated(fields.take())
    certificate_set = fields.optional(context(0))
    choices = certificate_set.children(MAX_CERTIFICATES) if certificate_set is not None else []
    fields.optional(context(1))  # crls
    infos = fields.take().set(MAX_SIGNERS)
    fields.end()
    certificates = dict.fromkeys(bytes(choice.encoded) for choice in choices if choice.tag == der.SEQUENCE)
    return Signed(digests, content_type, content, tuple(certificates), tuple(_signer(info) for info in infos))


def _encapsulated(element: Element) -> tuple[str, Octets | None]:
    """EncapsulatedContentInfo (RFC 5652 §5.2)."""
    fields = _Fields(element)
    content_type = fields.take().oid()
    explicit = fields.optional(context(0))
    fields.end()
    if explicit is None:
        return content_type, None
    octets = explicit.explicit()
    if octets.tag & ~der.CONSTRUCTED != der.OCTET_STRING:
        raise DerError("eContent")
    return content_type, octets.chunks()


def _compressed(element: Element) -> Compressed:
    fields = _Fields(element)
    fields.take().integer()
    algorithm = read_algorithm(fields.take())
    content_type, content = _encapsulated(fields.take())
    fields.end()
    if content is None:
        raise DerError("no compressed content")
    return Compressed(algorithm, content_type, content)


def _signer(element: Element) -> SignerInfo:
    fields = _Fields(element)
    fields.take().integer()
    signer = _party(fields.take())
    digest = fields.take()
    attributes = fields.optional(context(0))
    algorithm = fields.take()
    signature = fields.take().octets()
    fields.optional(context(1))
    fields.end()
    return SignerInfo(
        signer=signer,
        digest=read_algorithm(digest),
        signed_bytes=_retagged(attributes) if attributes is not None else b"",
        attributes=tuple(_attribute(child) for child in attributes.children(MAX_ATTRIBUTES))
        if attributes is not None
        else (),
        algorithm=read_algorithm(algorithm),
        signature=signature,
        algorithm_bytes=(bytes(digest.encoded), bytes(algorithm.encoded)),
    )


def _attribute(element: Element) -> Attribute:
    fields = element.sequence(2)
    if len(fields) != 2:
        raise DerError("Attribute")
    return Attribute(fields[0].oid(), fields[1].set(MAX_VALUES))
