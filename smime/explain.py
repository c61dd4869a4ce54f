"""Any file with S/MIME in it explained layer by layer: what it claims, what it is, how it is protected, what is wrong.

For the operator who is asked at 8 in the morning why a partner's mail does not open. Layers are recognised by
`smime.layers` and judged by `smime.opening`, as the gateway does it; here they are told. Nothing of the content is, and
no header field but the addresses of From. What is said of a failed decryption is what anybody can see in the message,
never which step of the cryptography failed: see `smime.decrypting`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from cryptography import x509

from smime.describing import printable
from smime.forms import Block, Encoding, Form, bare_cms, blocks_of, encoding_of, with_content
from smime.opening import MAX_LAYERS, open_message
from smime.peeling import UNREADABLE, LayerTold, Peeled, SignatureTold, SignerTold, peel
from smime.policy import DEFAULT_POLICY, ReadPolicy
from smime.sentences import SENTENCES
from smime.verdict import (
    DecryptionResult,
    Finding,
    HeaderProtection,
    LayerKind,
    MessageVerdict,
    PartVerdict,
    SignatureResult,
    SignerVerdict,
)
from trust.certificates import CertificateValidator
from trust.der import SEQUENCE, DerError
from trust.keys import Decryptor

SCHEMA = "relais.smime.explanation/1"
"""Changes when a key of `as_dict` changes its meaning or goes; keys may be added."""


class DecryptionTold(Enum):
    """A result beyond `DecryptionResult`."""

    NOT_TRIED = "not-tried"
    """No key was given."""


@dataclass(frozen=True, slots=True)
class FindingTold:
    code: str
    detail: str
    sentence: str
    layer: int
    """Number of the layer it is about; 0 for the message as a whole."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """All there is to tell of one file."""

    form: Form
    octets: int
    line_ends: str
    """`crlf`, `lf`, `mixed`; empty for binary forms."""
    layers: tuple[LayerTold, ...]
    decryption: DecryptionResult | DecryptionTold
    """DECRYPTED when every encrypted layer came off."""
    signature: SignatureResult | SignatureTold
    from_addresses: tuple[str, ...]
    header_protection: HeaderProtection
    covered: tuple[PartVerdict, ...]
    uncovered: tuple[str, ...]
    content_type: str
    """Of what is inside the last layer that came off; empty when that is no MIME entity."""
    content_octets: int
    findings: tuple[FindingTold, ...]
    decrypted: bytes | None = field(default=None, repr=False)
    """What was inside the innermost encryption that came off: content, not for showing."""


def explain(
    data: bytes,
    decryptors: Sequence[Decryptor] = (),
    validator: CertificateValidator | None = None,
    at: datetime | None = None,
    policy: ReadPolicy = DEFAULT_POLICY,
    outer_from: Sequence[str] | None = None,
    certificates: Sequence[x509.Certificate] = (),
    content: bytes | None = None,
) -> Explanation:
    """Explain a file as it is: a mail, an entity, CMS in DER, BER, PEM or base64 (`smime.forms`). Raises FormError.

    `content`: what was signed, when the file is a detached signature alone; its line ends are tried as they are, as
    CRLF and as LF, for mail programs sign the first and people save the last. Without `validator` signatures are told
    `sound` at best. `at`, `outer_from` and `policy` are those of `open_message`. `certificates`: beside those of the
    keys, whose recipients shall be marked.
    """
    blocks = blocks_of(data)

    def told(blocks: Sequence[Block]) -> Explanation:
        telling = _Telling(decryptors, validator, at or datetime.now(UTC), policy, outer_from, certificates)
        return _explain(blocks, telling, data)

    if content is None:
        return told(blocks)
    lines = content.replace(b"\r\n", b"\n")
    tried = [
        told([with_content(blocks[0], each)]) for each in dict.fromkeys((content, lines.replace(b"\n", b"\r\n"), lines))
    ]
    return next((each for each in tried if each.signature is not SignatureResult.INVALID), tried[0])


def _explain(given: Sequence[Block], telling: _Telling, data: bytes) -> Explanation:
    blocks = list(given)
    index = 0
    while index < len(blocks) and len(telling.layers) < MAX_LAYERS:
        inside = telling.tell(blocks[index], index + 1)
        if inside is not None:
            blocks.insert(index + 1, inside)
        index += 1
    return telling.told(blocks[0].form, data)


def as_dict(explanation: Explanation) -> dict[str, Any]:
    """Plain values for JSON; the content is left out. Keys are those of the classes above, and `schema`."""
    plain = {
        item.name: _plain(getattr(explanation, item.name))
        for item in dataclasses.fields(explanation)
        if item.name != "decrypted"
    }
    return {"schema": SCHEMA, **plain}


def _plain(value: object) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, Encoding):
        told = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
        return {"rules": "DER" if value.is_der else "BER", **told}
    if isinstance(value, PartVerdict):
        return {"part": value.part, "kind": value.kind.value, "signature": value.signature.value}
    if dataclasses.is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


# --- Telling ---------------------------------------------------------------------------------------------------------


class _Telling:
    """What is known of a file while its blocks are gone through."""

    def __init__(
        self,
        decryptors: Sequence[Decryptor],
        validator: CertificateValidator | None,
        at: datetime,
        policy: ReadPolicy,
        outer_from: Sequence[str] | None,
        certificates: Sequence[x509.Certificate],
    ) -> None:
        self._decryptors = decryptors
        self._validator = validator
        self._at = at
        self._policy = policy
        self._sender = outer_from
        """Whom signers are compared with; None until there is a From."""
        self._own = (*(decryptor.certificate for decryptor in decryptors), *certificates)
        self.layers: list[LayerTold] = []
        self._findings: list[FindingTold] = []
        self._verdicts: list[MessageVerdict] = []
        self._signatures: list[SignatureResult | SignatureTold] = []
        self._inside: tuple[str, int] = ("", 0)
        self._decrypted: bytes | None = None

    def tell(self, block: Block, number: int) -> Block | None:
        """One block; a CMS structure that stands in it without MIME around it is the next one."""
        peeled = peel(block, number, len(self.layers) + 1, self._decryptors, self._own, self._policy)
        verdict = open_message(
            block.message,
            self._decryptors,
            self._validator or CertificateValidator(()),
            self._at,
            self._sender,
            policy=self._policy,
        ).verdict
        self._verdicts.append(verdict)
        for layer, finding in peeled.findings:
            self._note(layer, finding)
        self._judge(block, peeled, verdict)
        self._inside = peeled.inside
        if peeled.decrypted is not None:
            self._decrypted = peeled.decrypted
        if peeled.raw[:1] != bytes((SEQUENCE,)):
            return None
        try:
            encoding_of(peeled.raw)
        except DerError:
            return None
        return bare_cms(peeled.raw)

    def _note(self, layer: int, finding: Finding) -> None:
        told = FindingTold(finding.code, printable(finding.detail), SENTENCES.get(finding.code, ""), layer)
        if told not in self._findings:
            self._findings.append(told)

    def _judge(self, block: Block, peeled: Peeled, verdict: MessageVerdict) -> None:
        """Put the verdicts of the layers to their descriptions: both are in the same order."""
        if self._sender is None and (peeled.has_from or verdict.from_addresses):
            self._sender = verdict.from_addresses  # of structures that stand inside without MIME, too
        compared = self._sender is not None
        waiting = list(verdict.layers)
        told: set[Finding] = set()
        results: list[SignatureResult | SignatureTold] = []
        unchecked: SignatureTold | None = None
        for described in peeled.layers:
            layer = described
            if waiting and (waiting[0].kind.value == layer.found or layer.found == UNREADABLE):
                judged = waiting.pop(0)
                signers = [(signer, *self._effective(signer, compared=compared)) for signer in judged.signers]
                for finding in (*judged.findings, *(finding for _, _, findings in signers for finding in findings)):
                    told.add(finding)
                    self._tell(layer.number, finding, peeled)
                signature = worst_told([result for _, result, _ in signers] or [judged.signature])
                if block.cms and Finding("no-content") in judged.findings:
                    signature = unchecked = SignatureTold.UNCHECKED
                if signature is not SignatureResult.NOT_SIGNED:
                    results.append(signature)
                layer = dataclasses.replace(
                    layer,
                    signature=signature if layer.signed is not None or signers else None,
                    signers=tuple(
                        SignerTold(result, signer.algorithm, signer.addresses, signer.path.rule if signer.path else "")
                        for signer, result, _ in signers
                    ),
                )
            if block.detached:
                layer = dataclasses.replace(layer, found=LayerKind.OPAQUE_SIGNED.value)
            self.layers.append(layer)
        for finding in verdict.findings:
            if finding not in told and not (block.detached and finding.code == "malformed-header"):
                self._tell(0, finding, peeled)
        if verdict.signature is SignatureResult.INVALID and unchecked is None:
            self._signatures.append(SignatureResult.INVALID)
        elif results:
            self._signatures.append(results[-1])  # the innermost one counts, outer ones are relays'

    def _tell(self, layer: int, finding: Finding, peeled: Peeled) -> None:
        """Of what the gateway finds; why something does not open is told better where it was looked at."""
        if finding.code == "cannot-open" and peeled.explained:
            return
        self._note(layer, finding)

    def _effective(
        self, signer: SignerVerdict, *, compared: bool
    ) -> tuple[SignatureResult | SignatureTold, tuple[Finding, ...]]:
        """A signer's result, as far as it was asked: no anchors, no path; no From, no match."""
        if signer.result is SignatureResult.UNTRUSTED and self._validator is None:
            return SignatureTold.SOUND, (*_without(signer, "path-refused"), Finding("path-not-checked"))
        if signer.result is SignatureResult.MISMATCH and not compared:
            kept = _without(signer, "from-not-in-certificate", "certificate-without-address")
            return SignatureResult.VALID, (*kept, Finding("no-from-to-compare"))
        return signer.result, signer.findings

    def told(self, form: Form, data: bytes) -> Explanation:
        verdicts = self._verdicts
        if not self.layers and not any(verdict.covered for verdict in verdicts):
            self._note(0, Finding("no-layer"))
        encrypted = [layer for layer in self.layers if layer.is_encrypted]
        codes = {finding.code for finding in self._findings}
        decryption: DecryptionResult | DecryptionTold
        if not encrypted:
            decryption = DecryptionResult.NOT_ENCRYPTED
        elif any(layer.found == UNREADABLE for layer in encrypted) or "too-many-layers" in codes:
            decryption = DecryptionResult.FAILED
        elif not self._decryptors:
            decryption = DecryptionTold.NOT_TRIED
        elif all(layer.opened for layer in encrypted):
            decryption = DecryptionResult.DECRYPTED
        else:
            decryption = DecryptionResult.FAILED
        protections = [verdict.header_protection for verdict in verdicts]
        return Explanation(
            form=form,
            octets=len(data),
            line_ends=_line_ends(data) if form not in (Form.CMS, Form.TNEF) else "",
            layers=tuple(self.layers),
            decryption=decryption,
            signature=worst_told(self._signatures),
            from_addresses=tuple(map(printable, verdicts[0].from_addresses)),
            header_protection=next((each for each in protections if each.protected), protections[-1]),
            covered=tuple(part for verdict in verdicts for part in verdict.covered),
            uncovered=tuple(part for verdict in verdicts for part in verdict.uncovered),
            content_type=printable(self._inside[0]),
            content_octets=self._inside[1],
            findings=tuple(self._findings),
            decrypted=self._decrypted,
        )


def worst_told(results: Sequence[SignatureResult | SignatureTold]) -> SignatureResult | SignatureTold:
    """All count; without any, nothing is signed."""
    return next((result for result in _WORST_FIRST if result in results), SignatureResult.NOT_SIGNED)


_WORST_FIRST = (
    SignatureResult.INVALID,
    SignatureResult.UNTRUSTED,
    SignatureResult.MISMATCH,
    SignatureTold.UNCHECKED,
    SignatureTold.SOUND,
    SignatureResult.VALID,
)


def _without(signer: SignerVerdict, *codes: str) -> tuple[Finding, ...]:
    return tuple(finding for finding in signer.findings if finding.code not in codes)


def _line_ends(data: bytes) -> str:
    crlf, lf = data.count(b"\r\n"), data.count(b"\n")
    if crlf == lf:
        return "crlf" if lf else ""
    return "mixed" if crlf else "lf"
