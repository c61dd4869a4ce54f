"""Opening mail: `open_message` takes a message as the wire brought it, peels its layers and says what it found.

Opening hands on a message in which nothing that was signed has changed by a byte, and never merges what it decrypted
with parts that came beside it (EFAIL): only a message that is encrypted as a whole is decrypted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509

from smime import canonical, header_protection
from smime.addresses import AddressError, from_addresses, imitated, matches, normalised
from smime.cms_read import Compressed, Enveloped, Signed
from smime.compressed import decompress
from smime.decrypting import CannotOpenError, CannotOpenYetError, decrypt_content
from smime.header_protection import Claim
from smime.layers import (
    CMS_TYPES,
    Layer,
    LayerError,
    NoCmsError,
    clear_signed,
    crooked_header,
    is_wrapper,
    layer_of,
    read_cms_of,
    sole_child,
)
from smime.mime import Budget, Buffer, ContentType, Entity, MimeError, parse_entity
from smime.octets import has_controls, has_illegal_octets, has_illegal_text
from smime.parts import Parts, examine
from smime.policy import DEFAULT_POLICY, ReadPolicy
from smime.tnef import TnefError, smime_attachment
from smime.verdict import (
    DecryptionResult,
    Finding,
    HeaderProtection,
    HeaderProtectionScheme,
    LayerKind,
    LayerVerdict,
    MessageVerdict,
    SignatureResult,
    SignerVerdict,
    worst,
)
from smime.verifying import Expectation, verify_signed
from trust.certificates import CertificateValidator
from trust.der import DerError
from trust.keys import Decryptor

MAX_LAYERS = 8
CANNOT_OPEN = Finding("cannot-open")
KEY_UNAVAILABLE = Finding("key-unavailable")
"""The finding that tells the one failure to decrypt which is not the message's: the key cannot be used now."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What came out of a message."""

    entity: bytes
    """The message to hand on. Was it encrypted, compressed or TNEF: the outer header with its Content-* fields replaced
    by those of the entity inside, and that entity's body as it was judged, in lines that end with CRLF and can travel
    (`smime.canonical.for_the_road`). Where the sender protected the header and From is the same inside and outside, his
    fields stand in the place of the outer ones. Else, and when decryption failed: the message unchanged."""
    content: memoryview
    """The innermost MIME entity, header included, with every layer that could be peeled gone: what people read, octet
    for octet as it was inside that layer."""
    verdict: MessageVerdict


def open_message(
    message: bytes,
    decryptors: Sequence[Decryptor],
    validator: CertificateValidator,
    at: datetime | None = None,
    outer_from: Sequence[str] | None = None,
    published_addresses: Callable[[x509.Certificate], Sequence[str]] = lambda certificate: (),
    policy: ReadPolicy = DEFAULT_POLICY,
) -> Opened:
    """Open a message (RFC 5322) as received at `at` (aware, now if absent). Never raises on bad input.

    Layers are peeled from outside in, eight at most. `outer_from`: the addresses signers must stand for, when they are
    not those of the message's own From fields. `published_addresses`: addresses a certificate is bound to elsewhere, in
    the directory, for organisations' certificates that name none. `policy`: what may be read beyond the standards.
    """
    opening = _Opening(message, decryptors, validator, at or datetime.now(UTC), published_addresses, policy)
    try:
        outer = parse_entity(message)
    except MimeError as problem:
        opening.note("malformed-header", str(problem))
        return opening.opened(None)
    opening.compare_with(outer, outer_from)
    opening.peel(outer)
    return opening.opened(outer)


class _Opening:
    """One message while its layers come off."""

    def __init__(
        self,
        message: bytes,
        decryptors: Sequence[Decryptor],
        validator: CertificateValidator,
        at: datetime,
        published_addresses: Callable[[x509.Certificate], Sequence[str]],
        policy: ReadPolicy,
    ) -> None:
        self._message = message
        self._decryptors = decryptors
        self._validator = validator
        self._at = at
        self._published = published_addresses
        self._policy = policy
        self._budget = Budget()
        self._from: tuple[str, ...] = ()
        self._sender: tuple[str, ...] = ()
        self._from_differs = False
        self._crooked = ""
        """What readers may take differently in a header that no signature covers."""
        self._around = False
        """Whether the signature that counts so far covers a ciphertext and nothing inside it."""
        self._file = False
        """Whether the signature that counts is over something that is no mail."""
        self._decryption = DecryptionResult.NOT_ENCRYPTED
        self._algorithm = ""
        self._authenticated = False
        self._emitted: Entity | None = None
        """What takes the place of the message's body; whatever is inside it is handed on as it is."""
        self._sealed = False
        """Whether a signature covers what comes next, and would be lost if that took the body's place."""
        self._innermost: memoryview = memoryview(message)
        self._refitted: Entity | None = None
        """What came out of a layer unfit for the road, and is judged and handed on as something that is fit."""
        self._exact: bytes | bytearray = b""
        """That, as it came out."""
        self._claim = Claim(HeaderProtectionScheme.NONE)
        self._parts = Parts()
        self._signature = SignatureResult.NOT_SIGNED
        self._signers: tuple[SignerVerdict, ...] = ()
        self._findings: list[Finding] = []
        self._layers: list[LayerVerdict] = []
        self._layer_findings: list[Finding] = []

    def note(self, code: str, detail: str = "") -> None:
        finding = Finding(code, detail)
        self._layer_findings.append(finding)
        if finding not in self._findings:
            self._findings.append(finding)

    def _layer(self, verdict: LayerVerdict) -> None:
        """One layer done; what was noted since the one before belongs to it."""
        findings = tuple(dict.fromkeys(self._layer_findings))
        self._layer_findings = []
        self._layers.append(dataclasses.replace(verdict, findings=findings))

    def compare_with(self, outer: Entity, given: Sequence[str] | None) -> None:
        """Which addresses signers must stand for."""
        try:
            self._from = from_addresses(outer) if given is None else tuple(normalised(address) for address in given)
        except AddressError:
            self.note("from-unreadable")
        try:
            self._sender = from_addresses(outer, "sender")
        except AddressError:
            self.note("sender-unreadable")
        if len(outer.values("from")) > 1:
            self.note("several-from-fields")
        if imitated(outer, self._from):
            self.note("address-in-display-name")
        self._layer_findings = []

    def peel(self, outer: Entity) -> None:
        entity: Entity | None = outer
        while entity is not None:
            self._innermost = memoryview(self._exact) if entity is self._refitted else entity.whole
            self._crooked = self._crooked or crooked_header(entity)
            try:
                content_type = entity.content_type()
            except MimeError as problem:
                self.note("malformed-content-type", str(problem))
                return
            layer = layer_of(entity, content_type)
            if layer is None and (child := sole_child(entity, content_type, self._budget)) is not None:
                entity = child
                continue
            if layer is None and not (is_wrapper(entity, content_type) and self._is_protected()):
                self._arrived(entity, content_type)
                return
            if len(self._layers) == MAX_LAYERS:
                self.note("too-many-layers")
                self._signature, self._signers = SignatureResult.INVALID, ()
                if self._decryption is DecryptionResult.DECRYPTED:
                    self._cannot_open()
                return
            entity = self._inside(entity, content_type, layer)

    def _inside(self, entity: Entity, content_type: ContentType, layer: Layer | None) -> Entity | None:
        """What one layer protects; None where that cannot be known or is nothing."""
        if layer is None:
            return self._wrapped(entity)
        if layer is Layer.CLEAR_SIGNED:
            return self._clear_signed(entity, content_type)
        if layer is Layer.TNEF:
            return self._tnef(entity, content_type)
        return self._cms(entity, content_type, layer)

    def _is_protected(self) -> bool:
        return self._decryption is DecryptionResult.DECRYPTED or self._signature is not SignatureResult.NOT_SIGNED

    def _arrived(self, entity: Entity, content_type: ContentType) -> None:
        """At what people read."""
        if self._is_protected():
            claimed = header_protection.claim(entity, content_type)
            if claimed.older:
                self.note("older-header-protection")
            if claimed.scheme is not HeaderProtectionScheme.NONE:
                self._claim = claimed
                self._inner_from(entity)
        if self._signature is SignatureResult.NOT_SIGNED:
            self._parts = examine(entity, content_type, self._judge, self._from, self._budget)
            for finding in self._parts.findings:
                self.note(finding.code, finding.detail)

    # --- Layers ------------------------------------------------------------------------------------------------------

    def _wrapped(self, entity: Entity) -> Entity | None:
        """A whole message as the payload (RFC 8551 §3.1): its From is the one that counts."""
        try:
            if entity.transfer_encoding() not in ("7bit", "8bit", "binary"):
                raise MimeError("encoded message")
            inner = parse_entity(entity.source, entity.body_start, entity.stop)
        except MimeError as problem:
            self.note("malformed-header", str(problem))
            self._layer(LayerVerdict(LayerKind.MESSAGE))
            return None
        self._claim = header_protection.wrapped(inner)
        self._inner_from(inner)
        if not self._sealed and not self._from_differs:
            self._emitted = inner
        self._layer(LayerVerdict(LayerKind.MESSAGE))
        return inner

    def _inner_from(self, inner: Entity) -> None:
        """From as it stands inside governs; one outside that differs may be anybody's."""
        try:
            found = from_addresses(inner)
        except AddressError:
            found = ()
            self.note("from-unreadable")
        if not found or set(found) != set(self._from):
            self.note("from-differs-inside")
            self._from_differs = True
        if imitated(inner, found):
            self.note("address-in-display-name")
        self._from = found

    def _tnef(self, entity: Entity, content_type: ContentType) -> Entity | None:
        """Exchange's wrapping: what is signed or encrypted is the one file in it."""
        try:
            inner = smime_attachment(entity.decoded())
            if inner is not None:
                inner = self._fitted(inner.source) or inner
        except (MimeError, TnefError):
            self.note("malformed-tnef")
            return None
        if inner is None:
            self._arrived(entity, content_type)
            return None
        if not self._sealed:
            self._emitted = inner  # the rest of the stream has a text of its own, which nobody signed
        self._layer(LayerVerdict(LayerKind.TNEF))
        return inner

    def _cms(self, entity: Entity, content_type: ContentType, layer: Layer) -> Entity | None:
        """CMS says itself what it is, `smime-type` need not."""
        try:
            cms = read_cms_of(entity)
        except (MimeError, DerError) as problem:
            if isinstance(problem, NoCmsError) and layer is Layer.CMS and content_type.media_type not in CMS_TYPES:
                # only its name says S/MIME, and nothing in it: a file like any other
                self.note("malformed-cms")
                self._arrived(entity, content_type)
                return None
            claimed = content_type.parameters.get("smime-type", "").lower()
            if layer is Layer.SIGNATURE or claimed == "signed-data":
                self._sign_failed(LayerKind.OPAQUE_SIGNED, "malformed-signature")
            elif claimed in ("certs-only", "compressed-data"):
                self.note(f"malformed-{claimed}")
            else:
                self._cannot_open()
            return None
        if isinstance(cms, Signed):
            return self._opaque(cms)
        if layer is Layer.SIGNATURE:
            self._sign_failed(LayerKind.OPAQUE_SIGNED, "malformed-signature", "not SignedData")
            return None
        if isinstance(cms, Enveloped):
            return self._enveloped(cms)
        if isinstance(cms, Compressed):
            return self._compressed(cms)
        self.note("unknown-content", cms.content_type)
        return None

    def _cannot_open(self, kind: LayerKind = LayerKind.ENCRYPTED, finding: Finding = CANNOT_OPEN) -> None:
        self._decryption = DecryptionResult.FAILED
        self._emitted = None
        self._algorithm, self._authenticated = "", False
        self._claim = Claim(HeaderProtectionScheme.NONE)
        self.note(finding.code)
        self._layer(LayerVerdict(kind, DecryptionResult.FAILED))

    def _enveloped(self, cms: Enveloped) -> Entity | None:
        kind = LayerKind.AUTH_ENCRYPTED if cms.authenticated else LayerKind.ENCRYPTED
        try:
            decrypted = decrypt_content(cms, self._decryptors, self._policy)
            found = parse_entity(decrypted.content)
            self._sealed = False
            inner = self._fitted(decrypted.content) or found
        except CannotOpenYetError:
            self._cannot_open(kind, KEY_UNAVAILABLE)
            return None
        except (CannotOpenError, MimeError):
            # what is no MIME entity is most likely the work of a wrong key: it goes the same way, with the same words
            self._cannot_open(kind)
            return None
        first_layer = self._decryption is DecryptionResult.NOT_ENCRYPTED
        self._decryption = DecryptionResult.DECRYPTED
        self._algorithm = decrypted.algorithm
        self._authenticated = decrypted.authenticated and (first_layer or self._authenticated)
        self._emitted = inner
        for finding in decrypted.findings:
            self.note(finding.code, finding.detail)
        if self._signature is not SignatureResult.NOT_SIGNED:
            self.note("signed-outside-encryption")  # its signer need not have known what is inside
            self._around = True
        if not decrypted.authenticated:
            self.note("unauthenticated-encryption", decrypted.algorithm)
        if any(has_illegal_octets(field) for field in found.fields):
            self.note("illegal-header-characters")
        if not decrypted.authenticated and has_illegal_text(found):
            self.note("illegal-body-characters")
        self._layer(
            LayerVerdict(
                kind,
                DecryptionResult.DECRYPTED,
                content_algorithm=decrypted.algorithm,
                authenticated=decrypted.authenticated,
            )
        )
        return inner

    def _compressed(self, cms: Compressed) -> Entity | None:
        content = decompress(cms, self._policy)
        if sum(layer.kind is LayerKind.COMPRESSED for layer in self._layers):
            content = Finding("compressed-twice")
        inner: Entity | None = None
        if isinstance(content, Finding):
            self.note(content.code, content.detail)
        else:
            try:
                inner = self._fitted(content) or parse_entity(content)
            except MimeError:
                self.note("compressed-content-is-no-entity")
        if inner is not None and not self._sealed:
            self._emitted = inner
        self._layer(LayerVerdict(LayerKind.COMPRESSED))
        return inner

    def _fitted(self, content: bytes | bytearray) -> Entity | None:
        """What came out of a layer as it can be handed on; None when it can as it is, or is not handed on by itself.
        Raises MimeError."""
        if self._sealed:
            return None
        fit = canonical.for_the_road(content)
        if fit is content:
            return None
        self._refitted, self._exact = parse_entity(fit), content
        return self._refitted

    def _opaque(self, cms: Signed) -> Entity | None:
        if cms.content is None:
            if cms.signers:
                self._sign_failed(LayerKind.OPAQUE_SIGNED, "no-content")
            else:  # RFC 8551 §3.8
                self.note("no-signers")
                self._layer(LayerVerdict(LayerKind.CERTIFICATES))
            return None
        if self._crooked:
            self._sign_failed(LayerKind.OPAQUE_SIGNED, "malformed-signature", self._crooked)
            return None
        content = bytes(cms.content)
        inner: Entity | None = None
        try:
            inner = parse_entity(content)
        except MimeError:
            self.note("signed-content-is-no-entity")
        self._signed(LayerKind.OPAQUE_SIGNED, cms, content)
        self._file = inner is None and bool(cms.signers)
        return inner

    def _clear_signed(self, entity: Entity, content_type: ContentType) -> Entity | None:
        try:
            if self._crooked:
                raise LayerError("malformed-signature", self._crooked)
            found = clear_signed(entity, content_type, self._budget)
        except LayerError as problem:
            self._sign_failed(LayerKind.CLEAR_SIGNED, problem.code, problem.detail)
            return None
        self._signed(LayerKind.CLEAR_SIGNED, found.signed, found.content)
        try:
            return found.entity()
        except MimeError as problem:
            self.note("malformed-header", str(problem))
            return None

    # --- Signatures --------------------------------------------------------------------------------------------------

    def _sign_failed(self, kind: LayerKind, code: str, detail: str = "") -> None:
        self._outer_signature()
        self._signature, self._signers = SignatureResult.INVALID, ()
        self.note(code, detail)
        self._layer(LayerVerdict(kind, signature=SignatureResult.INVALID))

    def _outer_signature(self) -> None:
        """An outer layer's result gives way to that of the layer inside it, but is not forgotten.

        A header found outside a signature must not be taken for signed: whoever put another's signed mail into a
        message of his own wrote it.
        """
        if self._claim.scheme is not HeaderProtectionScheme.NONE and self._signature is not SignatureResult.VALID:
            self._claim = Claim(HeaderProtectionScheme.NONE)
            self.note("header-protection-void")
        if self._signature is not SignatureResult.NOT_SIGNED:
            self.note("outer-signature", self._signature.value)
        self._around = False

    def _signed(self, kind: LayerKind, cms: Signed, content: Buffer) -> None:
        signers = self._judge(cms, content, self._from)
        if not signers:
            self.note("no-signers")
            self._layer(LayerVerdict(kind))
            return
        self._outer_signature()
        self._sealed = True
        self._signers, self._signature = signers, worst(signers)
        for signer in signers:
            if signer.result is SignatureResult.MISMATCH and any(matches(a, signer.addresses) for a in self._sender):
                self.note("signer-is-sender")  # RFC 8550 §3 lets readers compare Sender too: reported, not accepted
        self._layer(LayerVerdict(kind, signature=self._signature, signers=signers))

    def _judge(self, cms: Signed, content: Buffer, from_addresses: tuple[str, ...]) -> tuple[SignerVerdict, ...]:
        """The signers' verdicts over `content`; when it is detached and fails, over the same lines ended by LF alone.

        Some sign the lines as they have them on their disk. On the road they get their CRLF, which must not change the
        verdict: it is the same for what came, for what is handed on, and for whoever opens that again.
        """
        expected = Expectation(self._validator, self._at, from_addresses, self._published, self._policy)
        signers = verify_signed(cms, [content], expected)
        if cms.content is None and worst(signers) is SignatureResult.INVALID:
            others = verify_signed(cms, [bytes(content).replace(b"\r\n", b"\n")], expected)
            signers = others if worst(others) is not SignatureResult.INVALID else signers
        return signers

    # --- The end -----------------------------------------------------------------------------------------------------

    def opened(self, outer: Entity | None) -> Opened:
        if self._from_differs:
            self._refuse("from-differs-inside")
        if self._around and self._decryption is DecryptionResult.DECRYPTED:
            self._refuse("signed-outside-encryption")
        if self._file:
            self._refuse("signed-content-is-no-entity")
        protection = HeaderProtection(self._claim.scheme)
        header: list[bytes] | None = None
        if outer is not None and self._claim.scheme is not HeaderProtectionScheme.NONE:
            if self._header_holds():
                encrypted = self._decryption is DecryptionResult.DECRYPTED
                protection = header_protection.compare(self._claim, outer.fields, encrypted)
                if protection.altered or protection.confidential:
                    header = header_protection.shown_header(outer.fields, self._claim)
            else:
                self.note("header-protection-void")
        message = self._message
        if outer is not None and (self._emitted is not None or header is not None):
            message = _handed_on(outer, header, self._emitted)
        verdict = MessageVerdict(
            decryption=self._decryption,
            content_algorithm=self._algorithm,
            authenticated_encryption=self._authenticated,
            signature=self._signature,
            signers=self._signers,
            from_addresses=self._from,
            findings=tuple(self._findings),
            layers=tuple(self._layers),
            header_protection=protection,
            covered=self._parts.covered,
            uncovered=self._parts.uncovered,
            sender_addresses=self._sender,
        )
        return Opened(message, self._innermost, verdict)

    def _header_holds(self) -> bool:
        """Whether the fields inside are the sender's: signed by who From says, or at least authenticated as one with
        the body, when there is no signature that says otherwise."""
        if self._from_differs:
            return False
        if self._signature is SignatureResult.VALID:
            return True
        return self._authenticated and self._signature in (SignatureResult.NOT_SIGNED, SignatureResult.UNTRUSTED)

    def _refuse(self, code: str) -> None:
        """A sound signature that is not From's word for this mail.

        `from-differs-inside`: a genuine message of one sender under the From of another is valid for neither.
        `signed-outside-encryption`: when nothing inside the innermost encryption is signed, its signer vouches for a
        ciphertext, which he may have taken from somebody else's mail without being able to read it (RFC 8551 §3.7
        leaves the order to senders and warns readers). That he has signed his own cannot be told from that. In a triple
        wrap the signature inside counts.
        `signed-content-is-no-entity`: a signed file, such as a CAdES document, can be taken from anywhere and sent
        under a header of anybody's making; the layer by itself keeps its verdict, for the file.
        """
        self._signers = _mismatched(self._signers, code)
        if self._signature is SignatureResult.VALID:
            self._signature = SignatureResult.MISMATCH
        for index, layer in enumerate(self._layers):
            if layer.signature is SignatureResult.VALID and code != "signed-content-is-no-entity":
                self._layers[index] = dataclasses.replace(
                    layer, signature=SignatureResult.MISMATCH, signers=_mismatched(layer.signers, code)
                )


def _mismatched(signers: tuple[SignerVerdict, ...], code: str) -> tuple[SignerVerdict, ...]:
    return tuple(
        dataclasses.replace(
            signer,
            result=SignatureResult.MISMATCH,
            findings=(*signer.findings, Finding(code)),
        )
        if signer.result is SignatureResult.VALID
        else signer
        for signer in signers
    )


def _handed_on(outer: Entity, header: list[bytes] | None, inner: Entity | None) -> bytes:
    """The outer message with the entity that was inside in the place of its body.

    Only Content-* fields of the inside are taken; those with control characters are left out, so that the result is
    well-formed MIME whatever an attacker made of the ciphertext.
    """
    body = inner if inner is not None else outer
    pieces: list[bytes | memoryview] = []
    pieces += header if header is not None else [f.raw for f in outer.fields if not f.name.startswith("content-")]
    if not outer.values("mime-version"):
        pieces.append(b"MIME-Version: 1.0\r\n")
    pieces += [
        canonical.crlf(field.raw)
        for field in body.fields
        if field.name.startswith("content-") and not has_controls(field)
    ]
    return b"".join([*pieces, b"\r\n", body.body])
