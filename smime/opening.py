"""Opening mail: `open_message` takes a message as the wire brought it, peels its layers and says what it found.

Opening hands on a message in which nothing that was signed has changed by a byte, and never merges what it decrypted
with parts that came beside it (EFAIL): only a message that is encrypted as a whole is decrypted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from smime import canonical, oids
from smime.addresses import AddressError, from_addresses, matches, normalised
from smime.cms_read import Enveloped, Signed, read_cms
from smime.decrypting import CannotOpenError, decrypt_content
from smime.mime import ContentType, Entity, Field, MimeError, parse_content_type, parse_entity, split_multipart
from smime.verdict import DecryptionResult, Finding, MessageVerdict, SignatureResult, SignerVerdict, worst
from smime.verifying import Expectation, verify_signed
from trust.certificates import CertificateValidator
from trust.der import DerError
from trust.keys import Decryptor

MAX_LAYERS = 8

_CMS_TYPES = ("application/pkcs7-mime", "application/x-pkcs7-mime")
_SIGNATURE_TYPES = ("application/pkcs7-signature", "application/x-pkcs7-signature")


@dataclass(frozen=True, slots=True)
class Opened:
    """What came out of a message."""

    entity: bytes
    """The message to hand on. Was it encrypted: the outer header with its Content-* fields replaced by those of the
    decrypted entity, and that entity's body untouched. Else, and when decryption failed: the message unchanged."""
    content: memoryview
    """The innermost MIME entity, header included, with every layer that could be peeled gone: what people read."""
    verdict: MessageVerdict


def open_message(
    message: bytes,
    decryptors: Sequence[Decryptor],
    validator: CertificateValidator,
    at: datetime,
    outer_from: Sequence[str] | None = None,
    published_addresses: Callable[[x509.Certificate], Sequence[str]] = lambda certificate: (),
) -> Opened:
    """Open a message (RFC 5322, CRLF lines) as received at `at` (aware). Never raises on bad input.

    Layers are peeled from outside in, eight at most. `outer_from`: the addresses signers must stand for, when they are
    not those of the message's own From fields. `published_addresses`: addresses a certificate is bound to elsewhere, in
    the directory, for organisations' certificates that name none.
    """
    opening = _Opening(message, decryptors, validator, at, published_addresses)
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
    ) -> None:
        self._message = message
        self._decryptors = decryptors
        self._validator = validator
        self._at = at
        self._published = published_addresses
        self._from: tuple[str, ...] = ()
        self._sender: tuple[str, ...] = ()
        self._obsolete = False
        self._decryption = DecryptionResult.NOT_ENCRYPTED
        self._algorithm = ""
        self._authenticated = False
        self._decrypted: Entity | None = None
        self._innermost: memoryview = memoryview(message)
        self._signature = SignatureResult.NOT_SIGNED
        self._signers: tuple[SignerVerdict, ...] = ()
        self._findings: list[Finding] = []

    def note(self, code: str, detail: str = "") -> None:
        finding = Finding(code, detail)
        if finding not in self._findings:
            self._findings.append(finding)

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

    def peel(self, outer: Entity) -> None:
        entity: Entity | None = outer
        self._obsolete = any(field.is_obsolete for field in outer.fields)
        layers = 0
        while entity is not None:
            self._innermost = entity.whole
            try:
                content_type = entity.content_type()
            except MimeError as problem:
                self.note("malformed-content-type", str(problem))
                return
            kind = _layer(entity, content_type)
            if kind is None:
                return
            layers += 1
            if layers > MAX_LAYERS:
                self.note("too-many-layers")
                self._signature, self._signers = SignatureResult.INVALID, ()
                self._fail_if_encrypted()
                return
            entity = self._clear_signed(entity, content_type) if kind == "signed" else self._cms(entity)

    def _fail_if_encrypted(self) -> None:
        if self._decryption is DecryptionResult.DECRYPTED:
            self._cannot_open()

    def _cms(self, entity: Entity) -> Entity | None:
        """An application/pkcs7-mime entity: the CMS inside says what it is, `smime-type` need not."""
        try:
            cms = read_cms(entity.decoded())
        except (MimeError, DerError):
            self._malformed(entity)
            return None
        if isinstance(cms, Enveloped):
            return self._enveloped(cms)
        if isinstance(cms, Signed):
            return self._opaque(cms)
        self.note(
            "compressed-data" if cms.content_type == oids.COMPRESSED_DATA else "unknown-content", cms.content_type
        )
        return None

    def _malformed(self, entity: Entity) -> None:
        """Not CMS at all: it claims to be a signature or an encrypted message, and is treated as a bad one."""
        claimed = entity.content_type().parameters.get("smime-type", "").lower()
        if claimed == "signed-data":
            self._sign_failed("malformed-signature")
        elif claimed != "certs-only":
            self._cannot_open()

    def _cannot_open(self) -> None:
        self._decryption = DecryptionResult.FAILED
        self._decrypted = None
        self._algorithm, self._authenticated = "", False
        self.note("cannot-open")

    def _enveloped(self, cms: Enveloped) -> Entity | None:
        try:
            decrypted = decrypt_content(cms, self._decryptors)
            inner = parse_entity(decrypted.content)
        except (CannotOpenError, MimeError):
            # what is no MIME entity is most likely the work of a wrong key: it goes the same way, with the same words
            self._cannot_open()
            return None
        first_layer = self._decryption is DecryptionResult.NOT_ENCRYPTED
        self._decryption = DecryptionResult.DECRYPTED
        self._algorithm = decrypted.algorithm
        self._authenticated = decrypted.authenticated and (first_layer or self._authenticated)
        self._decrypted = inner
        if self._signature is not SignatureResult.NOT_SIGNED:
            self.note("signed-outside-encryption")  # its signer need not have known what is inside
        if not decrypted.authenticated:
            self.note("unauthenticated-encryption", decrypted.algorithm)
        if any(_has_illegal_octets(field) for field in inner.fields):
            self.note("illegal-header-characters")
        return inner

    def _opaque(self, cms: Signed) -> Entity | None:
        if not cms.signers:
            self.note("no-signers")
            if cms.content is None:
                return None  # certs-only (RFC 8551 §3.8)
        elif cms.content is None:
            self._sign_failed("no-content")
            return None
        content = b"".join(cms.content or ())
        self._signed(cms, content)
        try:
            return parse_entity(content)
        except MimeError:
            self.note("signed-content-is-no-entity")
            return None

    def _clear_signed(self, entity: Entity, content_type: ContentType) -> Entity | None:
        """multipart/signed: two parts, the second a detached signature over the first (RFC 1847 §2.1)."""
        try:
            if entity.transfer_encoding() not in ("7bit", "8bit", "binary"):  # RFC 2045 §6.4
                raise MimeError("encoded multipart")
            if self._obsolete or any(field.is_obsolete for field in entity.fields):
                raise MimeError("white space before a colon")
            parts = split_multipart(entity, content_type.parameters.get("boundary", ""))
            if len(parts) != 2:
                raise MimeError("not two parts")
            (start, stop), signature_range = parts
            signature = parse_entity(entity.source, *signature_range)
            if signature.content_type().media_type not in _SIGNATURE_TYPES:
                raise MimeError("type of the second part")
            cms = read_cms(signature.decoded())
        except (MimeError, DerError) as problem:
            self._sign_failed("malformed-signature", str(problem))
            return None
        if not isinstance(cms, Signed):
            self._sign_failed("malformed-signature", "not SignedData")
            return None
        if cms.content is not None:
            # two contents under one signature: readers would differ on which one was signed
            self._sign_failed("content-in-detached-signature")
            return None
        if not cms.signers:
            self.note("no-signers")
        self._signed(cms, memoryview(entity.source)[start:stop])
        try:
            return parse_entity(entity.source, start, stop)
        except MimeError as problem:
            self.note("malformed-header", str(problem))
            return None

    def _sign_failed(self, code: str, detail: str = "") -> None:
        self._outer_signature()
        self._signature, self._signers = SignatureResult.INVALID, ()
        self.note(code, detail)

    def _outer_signature(self) -> None:
        """An outer layer's result gives way to that of the layer inside it, but is not forgotten."""
        if self._signature is not SignatureResult.NOT_SIGNED:
            self.note("outer-signature", self._signature.value)

    def _signed(self, cms: Signed, content: bytes | memoryview) -> None:
        expected = Expectation(self._validator, self._at, self._from, self._published)
        signers = verify_signed(cms, [content], expected)
        if not signers:
            return
        self._outer_signature()
        self._signers, self._signature = signers, worst(signers)
        for signer in signers:
            if signer.result is SignatureResult.MISMATCH and any(matches(a, signer.addresses) for a in self._sender):
                self.note("signer-is-sender")  # RFC 8550 §3 lets readers compare Sender too: reported, not accepted

    def opened(self, outer: Entity | None) -> Opened:
        verdict = MessageVerdict(
            decryption=self._decryption,
            content_algorithm=self._algorithm,
            authenticated_encryption=self._authenticated,
            signature=self._signature,
            signers=self._signers,
            from_addresses=self._from,
            findings=tuple(self._findings),
        )
        message = self._message
        if outer is not None and self._decrypted is not None:
            message = _handed_on(outer, self._decrypted)
        return Opened(message, self._innermost, verdict)


def _layer(entity: Entity, content_type: ContentType) -> str | None:
    """`signed` for multipart/signed of S/MIME, `cms` for pkcs7-mime, None for what is no S/MIME layer."""
    if content_type.media_type == "multipart/signed":
        protocol = content_type.parameters.get("protocol", _SIGNATURE_TYPES[0]).lower()
        return "signed" if protocol in _SIGNATURE_TYPES else None
    if content_type.media_type in _CMS_TYPES:
        return "cms"
    if content_type.media_type == "application/octet-stream":
        # senders whose system does not know the type; RFC 8551 §3.9 has readers go by the file name
        names = [content_type.parameters.get("name", "")]
        for value in entity.values("content-disposition"):
            try:
                names.append(parse_content_type(value).parameters.get("filename", ""))
            except MimeError:
                continue
        if any(name.lower().endswith(".p7m") for name in names):
            return "cms"
    return None


def _has_illegal_octets(field: Field) -> bool:
    """Octets that well-made header fields do not have; CBC gadgets leave such behind."""
    return not field.raw.isascii() or _has_controls(field)


def _has_controls(field: Field) -> bool:
    text = field.raw.replace(b"\r\n", b"\n")
    return any(octet < 32 and octet not in (9, 10) for octet in text) or 127 in text


def _handed_on(outer: Entity, inner: Entity) -> bytes:
    """The outer message with the decrypted entity in the place of the encrypted one.

    Only Content-* fields of the inside are taken; those with control characters are left out, so that the result is
    well-formed MIME whatever an attacker made of the ciphertext.
    """
    pieces: list[bytes | memoryview] = [field.raw for field in outer.fields if not field.name.startswith("content-")]
    if not outer.values("mime-version"):
        pieces.append(b"MIME-Version: 1.0\r\n")
    pieces += [
        canonical.crlf(field.raw)
        for field in inner.fields
        if field.name.startswith("content-") and not _has_controls(field)
    ]
    return b"".join([*pieces, b"\r\n", inner.body])
