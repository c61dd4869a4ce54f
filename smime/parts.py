"""The parts of a message that is not protected as a whole: which of them somebody signed, and which nobody did.

A mailing list that adds a footer, and an attacker who adds a text above a signed one, make the same thing. So the
message is not signed, whatever a part of it is; and an encrypted part beside others is left as it is: decrypted, it
would meet the others in one document (EFAIL).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from smime.addresses import AddressError, from_addresses
from smime.cms_read import Enveloped, Signed
from smime.layers import (
    MAX_DEPTH,
    Layer,
    LayerError,
    clear_signed,
    crooked_header,
    layer_of,
    parts_of,
    read_cms_of,
)
from smime.mime import Budget, Buffer, ContentType, Entity, MimeError, parse_entity
from smime.verdict import Finding, LayerKind, PartVerdict, SignatureResult, SignerVerdict, worst
from trust.der import DerError

MAX_SIGNED_PARTS = 8
"""Each costs up to 16 signatures and paths."""
MAX_FIELDS = 20_000
"""In the headers of all parts together."""

Judge = Callable[[Signed, Buffer, tuple[str, ...]], tuple[SignerVerdict, ...]]


@dataclass(frozen=True, slots=True)
class Parts:
    covered: tuple[PartVerdict, ...] = ()
    uncovered: tuple[str, ...] = ()
    """Empty when no part is signed: then there is nothing to tell them from."""
    findings: tuple[Finding, ...] = ()


def examine(
    root: Entity, content_type: ContentType, judge: Judge, from_addresses: tuple[str, ...], budget: Budget
) -> Parts:
    """Look at every part of `root`, which is no layer itself; signers are compared with `from_addresses`, those of an
    attached message with its own From."""
    if not content_type.media_type.startswith("multipart/") and content_type.media_type != "message/rfc822":
        return Parts()
    walk = _Walk(judge, budget)
    walk.through(root, content_type, from_addresses)
    return Parts(tuple(walk.covered), tuple(walk.uncovered) if walk.covered else (), tuple(walk.findings))


@dataclass(frozen=True, slots=True)
class _Waiting:
    entity: Entity
    section: str
    """As in IMAP (RFC 3501 §6.4.5); empty for the body of a message that is a multipart itself."""
    depth: int
    sender: tuple[str, ...]
    message: bool
    """The root of a message: its parts are counted from one, and so is itself when it has none."""


class _Walk:
    """One message's parts, in order, without recursion."""

    def __init__(self, judge: Judge, budget: Budget) -> None:
        self._judge = judge
        self._budget = budget
        self._fields = MAX_FIELDS
        self._waiting: list[_Waiting] = []
        self.covered: list[PartVerdict] = []
        self.uncovered: list[str] = []
        self.findings: list[Finding] = []

    def through(self, root: Entity, content_type: ContentType, sender: tuple[str, ...]) -> None:
        self._waiting = [_Waiting(root, "", 0, sender, True)]
        while self._waiting:
            part = self._waiting.pop()
            try:
                self._fields -= len(part.entity.fields)
                if part.depth > MAX_DEPTH or self._fields < 0:
                    raise MimeError("too deep or too many fields")
                content_type = part.entity.content_type()
                self._look(part, content_type)
            except MimeError:
                # no other reader can be trusted to see the same parts here
                self.findings.append(Finding("malformed-part", _name(part)))
                self.uncovered.append(_name(part))

    def _look(self, part: _Waiting, content_type: ContentType) -> None:
        kind = content_type.media_type
        layer = layer_of(part.entity, content_type)
        if problem := crooked_header(part.entity):
            raise MimeError(problem)
        if layer is Layer.CLEAR_SIGNED:
            self._clear_signed(part, content_type)
        elif layer in (Layer.CMS, Layer.SIGNATURE):
            self._cms(part)
        elif kind.startswith("multipart/"):
            entity, ranges = parts_of(part.entity, content_type, self._budget, strict=True)
            prefix = f"{part.section}." if part.section else ""
            self._waiting += [
                _Waiting(
                    parse_entity(entity.source, start, stop), f"{prefix}{number}", part.depth + 1, part.sender, False
                )
                for number, (start, stop) in reversed(list(enumerate(ranges, 1)))
            ]
        elif kind == "message/rfc822" and part.entity.transfer_encoding() in ("7bit", "8bit", "binary"):
            inner = parse_entity(part.entity.source, part.entity.body_start, part.entity.stop)
            section = _name(part)
            self._waiting.append(_Waiting(inner, section, part.depth + 1, _sender(inner), True))
        else:
            self.uncovered.append(_name(part))

    def _clear_signed(self, part: _Waiting, content_type: ContentType) -> None:
        try:
            found = clear_signed(part.entity, content_type, self._budget)
        except LayerError as problem:
            self.findings.append(Finding(problem.code, part.section))
            self._cover(part, LayerKind.CLEAR_SIGNED, ())
            return
        self._signed(part, LayerKind.CLEAR_SIGNED, found.signed, found.content)

    def _cms(self, part: _Waiting) -> None:
        try:
            cms = read_cms_of(part.entity)
        except DerError:
            cms = None
        if isinstance(cms, Signed) and cms.content is not None and cms.signers:
            self._signed(part, LayerKind.OPAQUE_SIGNED, cms, bytes(cms.content))
            return
        if isinstance(cms, Enveloped):
            self.findings.append(Finding("encrypted-part-beside-others", _name(part)))
        self.uncovered.append(_name(part))

    def _signed(self, part: _Waiting, kind: LayerKind, cms: Signed, content: Buffer) -> None:
        if len(self.covered) == MAX_SIGNED_PARTS:
            self.findings.append(Finding("too-many-signed-parts"))
            self.uncovered.append(_name(part))
            return
        signers = self._judge(cms, content, part.sender)
        if signers:
            self._cover(part, kind, signers)
        else:
            self.uncovered.append(_name(part))

    def _cover(self, part: _Waiting, kind: LayerKind, signers: tuple[SignerVerdict, ...]) -> None:
        result = worst(signers) if signers else SignatureResult.INVALID
        self.covered.append(PartVerdict(part.section or "1", kind, result, signers))


def _name(part: _Waiting) -> str:
    """The section of a leaf: the one part of a message that is no multipart has the number 1."""
    if part.message:
        return f"{part.section}.1" if part.section else "1"
    return part.section


def _sender(message: Entity) -> tuple[str, ...]:
    try:
        return from_addresses(message)
    except AddressError:
        return ()
