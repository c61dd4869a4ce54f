"""A message's layers taken off one by one to be described; `smime.explain` puts the gateway's verdicts beside them.

Layers are recognised and opened by the functions the gateway uses; what is added is a description of each, and a word
on what anybody can see to be in the way of opening one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from cryptography import x509

from smime import oids
from smime.cms_read import Compressed, Enveloped, Signed
from smime.compressed import decompress
from smime.decrypting import CannotOpenError, decrypt_content
from smime.describing import (
    EncryptionDescription,
    SignedDescription,
    describe_enveloped,
    describe_signed,
    name_of,
    printable,
)
from smime.forms import Block, Encoding, encoding_of
from smime.layers import (
    CMS_TYPES,
    Layer,
    LayerError,
    NoCmsError,
    clear_signed,
    is_wrapper,
    layer_of,
    parts_of,
    read_cms_of,
    sole_child,
)
from smime.mime import Budget, Buffer, ContentType, Entity, MimeError, parse_entity
from smime.opening import MAX_LAYERS
from smime.policy import ReadPolicy
from smime.tnef import TnefError, smime_attachment
from smime.verdict import Finding, LayerKind, SignatureResult
from trust.der import DerError
from trust.keys import Decryptor

UNREADABLE = "unreadable"
"""What a layer is found to be when its structure cannot be read."""


class SignatureTold(Enum):
    """A signature's result as told; beyond `SignatureResult` there is one that was not asked to the end."""

    SOUND = "sound"
    """Cryptographically right; the path was not validated, for want of anchors."""
    UNCHECKED = "unchecked"
    """A signature file alone; what it signs is not at hand."""


@dataclass(frozen=True, slots=True)
class SignerTold:
    """One signer of a layer judged; in the order of the layer's `signed.signers`."""

    result: SignatureResult | SignatureTold
    algorithm: str
    addresses: tuple[str, ...]
    path_rule: str


@dataclass(frozen=True, slots=True)
class LayerTold:
    """One layer, from outside in."""

    number: int
    block: int
    """Which of the structures in the file it belongs to, from 1; CMS inside CMS without MIME between is one more."""
    found: str
    """What it is (`smime.verdict.LayerKind`), `unreadable`, or the name of another kind of CMS."""
    claimed_type: str
    """Media type, empty when the file is CMS alone; so is the next."""
    claimed_smime_type: str
    transfer_encoding: str
    encoding: Encoding | None
    """None when it cannot be read, and for layers that are MIME alone."""
    content_octets: int
    """What the layer holds: encrypted, signed or compressed."""
    encryption: EncryptionDescription | None = None
    signed: SignedDescription | None = None
    compression: str = ""
    problem: str = ""
    """Which rule of ASN.1 or MIME makes it unreadable."""
    opened: bool | None = None
    """Whether its encryption came off; None when it has none, or no key was given."""
    signature: SignatureResult | SignatureTold | None = None
    signers: tuple[SignerTold, ...] = ()

    @property
    def is_encrypted(self) -> bool:
        """Or is taken for it, unreadable as it is."""
        return self.encryption is not None or self.opened is False


@dataclass(slots=True)
class Peeled:
    """What came of one block."""

    layers: list[LayerTold] = field(default_factory=list)
    findings: list[tuple[int, Finding]] = field(default_factory=list)
    """With the number of the layer each is about."""
    inside: tuple[str, int] = ("", 0)
    """Media type, if any, and octets of what is inside the last layer that came off."""
    raw: bytes = b""
    """That, when it is no MIME entity."""
    decrypted: bytes | None = None
    """What was inside the innermost encryption that came off."""
    has_from: bool = False
    explained: bool = False
    """Whether `findings` say what is in the way of decrypting."""


def peel(
    block: Block,
    number: int,
    first: int,
    decryptors: Sequence[Decryptor],
    own: Sequence[x509.Certificate],
    policy: ReadPolicy,
) -> Peeled:
    """Take the layers of block `number` off, as far as they come; they are numbered from `first`. Never raises on bad
    input. `own`: certificates whose recipients are marked."""
    peeling = _Peeling(block, number, first, decryptors, own, policy)
    peeling.go(block.message)
    return peeling.peeled


class _Peeling:
    """One block."""

    def __init__(
        self,
        block: Block,
        number: int,
        first: int,
        decryptors: Sequence[Decryptor],
        own: Sequence[x509.Certificate],
        policy: ReadPolicy,
    ) -> None:
        self._bare = bool(block.cms)
        self._block = number
        self._next = first
        self._decryptors = decryptors
        self._own = own
        self._policy = policy
        self._budget = Budget()
        self._claims = ("", "", "")
        self._protected = False
        self.peeled = Peeled()

    def go(self, message: bytes) -> None:
        entity = self._entity(message)
        if entity is None:
            return
        self.peeled.has_from = bool(entity.values("from"))
        while entity is not None:
            self.peeled.inside = ("", 0)
            try:
                content_type = entity.content_type()
                encoding = entity.transfer_encoding()
            except MimeError:
                return  # the verdict says so
            layer = layer_of(entity, content_type)
            if layer is None and (child := sole_child(entity, content_type, self._budget)) is not None:
                entity = child
                continue
            wrapped = is_wrapper(entity, content_type) and self._protected
            if (layer is None and not wrapped) or len(self.peeled.layers) == MAX_LAYERS:
                self.peeled.inside = (content_type.media_type, entity.stop - entity.body_start)
                return
            claimed = content_type.parameters.get("smime-type", "").lower()
            self._claims = ("", "", "")
            if not (self._bare and not self.peeled.layers):
                self._claims = (printable(content_type.media_type), printable(claimed), printable(encoding))
            entity = self._inside(entity, content_type, layer)

    def _inside(self, entity: Entity, content_type: ContentType, layer: Layer | None) -> Entity | None:
        if layer is None:
            self._add(LayerKind.MESSAGE.value, content_octets=entity.stop - entity.body_start)
            return self._entity(entity.source, entity.body_start, entity.stop)
        if layer is Layer.CLEAR_SIGNED:
            return self._clear_signed(entity, content_type)
        if layer is Layer.TNEF:
            return self._tnef(entity, content_type)
        return self._cms(entity, content_type, layer)

    def _entity(self, source: bytes | bytearray, start: int = 0, stop: int | None = None) -> Entity | None:
        """What is inside a layer; noted as it is when it is no entity."""
        try:
            return parse_entity(source, start, stop)
        except MimeError:
            self.peeled.raw = bytes(memoryview(source)[start:stop])
            self.peeled.inside = ("", len(self.peeled.raw))
            return None

    def _add(
        self,
        found: str,
        *,
        encoding: Encoding | None = None,
        content_octets: int = 0,
        encryption: EncryptionDescription | None = None,
        signed: SignedDescription | None = None,
        compression: str = "",
        problem: str = "",
        opened: bool | None = None,
    ) -> None:
        claimed_type, claimed_smime_type, transfer_encoding = self._claims
        if claimed_smime_type and found != UNREADABLE and claimed_smime_type != found.lower():
            self._note("type-differs", claimed_smime_type)
        self.peeled.layers.append(
            LayerTold(
                number=self._next,
                block=self._block,
                found=found,
                claimed_type=claimed_type,
                claimed_smime_type=claimed_smime_type,
                transfer_encoding=transfer_encoding,
                encoding=encoding,
                content_octets=content_octets,
                encryption=encryption,
                signed=signed,
                compression=compression,
                problem=problem,
                opened=opened,
            )
        )
        self._next += 1
        self._protected = self._protected or bool(opened) or bool(signed is not None and signed.signers)

    def _note(self, code: str, detail: str = "") -> None:
        """About the layer that is added next."""
        finding = (self._next, Finding(code, detail))
        if finding not in self.peeled.findings:
            self.peeled.findings.append(finding)

    # --- Layers ------------------------------------------------------------------------------------------------------

    def _tnef(self, entity: Entity, content_type: ContentType) -> Entity | None:
        try:
            inner = smime_attachment(entity.decoded())
        except (MimeError, TnefError) as problem:
            self._add(UNREADABLE, problem=str(problem))
            return None
        if inner is None:
            self.peeled.inside = (content_type.media_type, entity.stop - entity.body_start)
            return None
        self._add(LayerKind.TNEF.value, content_octets=entity.stop - entity.body_start)
        return inner

    def _clear_signed(self, entity: Entity, content_type: ContentType) -> Entity | None:
        try:
            found = clear_signed(entity, content_type, self._budget)
            outer, ranges = parts_of(entity, content_type, self._budget.few(2))
            signature = parse_entity(outer.source, *ranges[1]).decoded()
        except (LayerError, MimeError) as problem:
            self._add(UNREADABLE, problem=printable(getattr(problem, "detail", "") or str(problem)))
            return None
        self._add(
            LayerKind.CLEAR_SIGNED.value,
            encoding=_encoding(signature),
            content_octets=found.stop - found.start,
            signed=describe_signed(found.signed),
        )
        return self._entity(found.source, found.start, found.stop)

    def _cms(self, entity: Entity, content_type: ContentType, layer: Layer) -> Entity | None:
        try:
            data = entity.decoded()
            cms = read_cms_of(entity)
        except (MimeError, DerError) as problem:
            if isinstance(problem, NoCmsError) and layer is Layer.CMS and content_type.media_type not in CMS_TYPES:
                self.peeled.inside = (content_type.media_type, entity.stop - entity.body_start)
                return None
            # as the gateway has it: what cannot be read was encrypted, unless it says itself that it was not
            claimed = content_type.parameters.get("smime-type", "").lower()
            plain = layer is Layer.SIGNATURE or claimed in ("signed-data", "certs-only", "compressed-data")
            if not plain:
                self._note("malformed-cms", str(problem))
                self.peeled.explained = True
            self._add(UNREADABLE, problem=str(problem), opened=None if plain else False)
            return None
        encoding = _encoding(data)
        if isinstance(cms, Enveloped):
            return self._enveloped(cms, encoding, closed=layer is Layer.SIGNATURE)
        if isinstance(cms, Signed):
            return self._opaque(cms, encoding)
        if isinstance(cms, Compressed):
            return self._compressed(cms, encoding)
        self._add(name_of(cms.content_type), encoding=encoding)
        return None

    def _opaque(self, cms: Signed, encoding: Encoding | None) -> Entity | None:
        kind = LayerKind.OPAQUE_SIGNED
        if cms.content is None and not cms.signers:
            kind = LayerKind.CERTIFICATES
        octets = len(cms.content) if cms.content is not None else 0
        self._add(kind.value, encoding=encoding, content_octets=octets, signed=describe_signed(cms))
        return self._entity(bytes(cms.content)) if cms.content is not None else None

    def _compressed(self, cms: Compressed, encoding: Encoding | None) -> Entity | None:
        again = any(layer.found == LayerKind.COMPRESSED.value for layer in self.peeled.layers)
        content = Finding("compressed-twice") if again else decompress(cms, self._policy)
        self._add(
            LayerKind.COMPRESSED.value,
            encoding=encoding,
            content_octets=len(cms.content),
            compression=name_of(cms.algorithm.oid),
        )
        return None if isinstance(content, Finding) else self._entity(content)

    def _enveloped(self, cms: Enveloped, encoding: Encoding | None, *, closed: bool) -> Entity | None:
        """`closed`: it calls itself a signature, and is opened no more than the gateway does."""
        told = describe_enveloped(cms, self._own)
        content: bytearray | None = None
        if self._decryptors and not closed:
            try:
                content = decrypt_content(cms, self._decryptors, self._policy).content
            except CannotOpenError:
                self._explain(told)
        elif not closed:
            self._obstacles(told)
            self._note("encrypted-not-opened")
            self.peeled.explained = True
        entity: Entity | None = None
        if content is not None:
            self.peeled.decrypted = bytes(content)
            entity = self._entity(content)
            if entity is None:
                self._note("decrypted-content-is-no-entity")
                self.peeled.explained = True  # to the gateway, that too is a message that does not open
        self._add(
            (LayerKind.AUTH_ENCRYPTED if cms.authenticated else LayerKind.ENCRYPTED).value,
            encoding=encoding,
            content_octets=len(cms.content),
            encryption=told,
            opened=content is not None if self._decryptors else None,
        )
        return entity

    def _explain(self, told: EncryptionDescription) -> None:
        """What is in the way that anybody can see; of the rest nothing is said."""
        before = len(self.peeled.findings)
        self._obstacles(told)
        if told.recipients and not any(recipient.ours for recipient in told.recipients):
            self._note("no-key-of-ours")
        self.peeled.explained = len(self.peeled.findings) > before

    def _obstacles(self, told: EncryptionDescription) -> None:
        if not told.recipients:
            self._note("no-usable-recipient")
        admitted = {variant.value for variant in self._policy.gcm_variants}
        for variant in told.gcm_variants:
            if variant not in admitted:
                self._note("gcm-variant-not-admitted", variant)
        if told.oid in _GCM:
            if told.nonce_octets != 12 or (told.tag_octets and not 12 <= told.tag_octets <= 16):
                self._note("cipher-parameters", told.algorithm)
        elif (
            told.oid not in _OTHERS
            or (told.oid == oids.DES_EDE3_CBC and not self._policy.triple_des)
            or (told.oid in _CBC and not self._policy.cbc)
        ):
            self._note("cipher-not-admitted", told.algorithm)


_GCM = (oids.AES128_GCM, oids.AES192_GCM, oids.AES256_GCM)
_CBC = (oids.AES128_CBC, oids.AES192_CBC, oids.AES256_CBC)
_OTHERS = (
    *_CBC,
    oids.AES128_CCM,
    oids.AES192_CCM,
    oids.AES256_CCM,
    oids.CHACHA20_POLY1305,
    oids.DES_EDE3_CBC,
)


def _encoding(data: Buffer) -> Encoding | None:
    try:
        return encoding_of(data)
    except DerError:
        return None
