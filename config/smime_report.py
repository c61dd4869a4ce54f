"""An explanation of a message as lines for a terminal; its JSON is `smime.explain.as_dict`."""

from __future__ import annotations

from collections.abc import Iterator

from smime.describing import (
    CertificateDescription,
    EncryptionDescription,
    RecipientDescription,
    SignedDescription,
    SignerDescription,
)
from smime.explain import Explanation
from smime.peeling import LayerTold
from smime.verdict import HeaderProtectionScheme


def lines_of(explanation: Explanation) -> Iterator[str]:
    """What `relais smime inspect` prints."""
    ends = f", lines end with {explanation.line_ends.upper()}" if explanation.line_ends else ""
    yield f"{explanation.form.value}, {explanation.octets} octets{ends}"
    for layer in explanation.layers:
        yield from _layer(layer)
    if explanation.content_type:
        yield f"inside: {explanation.content_type}, {explanation.content_octets} octets"
    elif explanation.content_octets:
        yield f"inside: no MIME entity, {explanation.content_octets} octets"
    protection = explanation.header_protection
    if protection.scheme is not HeaderProtectionScheme.NONE:
        yield f"header protection: {protection.scheme.value}"
        for name, fields in (
            ("protected", protection.protected),
            ("hidden outside", protection.confidential),
            ("altered on the way", protection.altered),
        ):
            if fields:
                yield f"   {name}: {', '.join(fields)}"
    for part in explanation.covered:
        yield f"part {part.part}: {part.kind.value}, {part.signature.value}"
    if explanation.uncovered:
        yield f"parts nobody signed: {', '.join(explanation.uncovered)}"
    if explanation.from_addresses and any(layer.signers for layer in explanation.layers):
        yield f"compared with: {', '.join(explanation.from_addresses)}"
    yield f"result: {explanation.decryption.value}; signature {explanation.signature.value}"
    for finding in explanation.findings:
        where = f" (layer {finding.layer})" if finding.layer else ""
        detail = f" [{finding.detail}]" if finding.detail else ""
        yield f"! {finding.code}{detail}{where}: {finding.sentence}"


def _layer(layer: LayerTold) -> Iterator[str]:
    claimed = layer.claimed_type
    if layer.claimed_smime_type:
        claimed += f"; smime-type={layer.claimed_smime_type}"
    yield f"{layer.number}. {layer.found}" + (f"  (claimed: {claimed}, {layer.transfer_encoding})" if claimed else "")
    if layer.problem:
        yield f"   unreadable: {layer.problem}"
    if layer.encoding is not None:
        encoding = layer.encoding
        how = [name for name, is_so in (("indefinite lengths", not encoding.definite),) if is_so]
        how += ["lengths longer than need be"] if not encoding.minimal else []
        how += [f"{encoding.chunks} chunks"] if encoding.chunks > 1 else []
        rules = "DER" if encoding.is_der else f"BER ({', '.join(how)})"
        yield f"   structure: {rules}, {encoding.octets} octets, around {layer.content_octets}"
    elif layer.content_octets:
        yield f"   around {layer.content_octets} octets"
    if layer.compression:
        yield f"   compression: {layer.compression}"
    if layer.encryption is not None:
        yield from _encryption(layer.encryption)
        yield f"   opened: {'not tried' if layer.opened is None else 'yes' if layer.opened else 'no'}"
    if layer.signed is not None:
        yield from _signed(layer.signed, layer)


def _encryption(told: EncryptionDescription) -> Iterator[str]:
    parts = [told.algorithm]
    if told.nonce_octets is not None:
        parts.append(f"{'IV' if told.algorithm.endswith('-cbc') else 'nonce'} {told.nonce_octets} octets")
    if told.tag_octets or told.tag_octets_announced:
        parts.append(f"tag {told.tag_octets} octets")
        if told.tag_octets_announced not in (None, told.tag_octets):
            parts.append(f"announced as {told.tag_octets_announced}")
    if told.bound_key:
        parts.append("key bound to the algorithm (RFC 9709)")
    if told.authenticated_attributes:
        parts.append("with authenticated attributes")
    yield f"   content: {', '.join(parts)}"
    for variant in told.gcm_variants:
        yield f"   variant: {variant}"
    for recipient in told.recipients:
        yield f"   recipient: {_recipient(recipient)}"


def _recipient(told: RecipientDescription) -> str:
    parameters = [f"{name.replace('_', ' ')} {value}" for name, value in told.parameters.items() if value != 0]
    ours = "  <- a certificate at hand" if told.ours else ""
    how = ", ".join([told.algorithm, *parameters])
    return f"{_party(told.issuer, told.serial, told.key_id)}; {told.kind} {how}{ours}"


def _party(issuer: str, serial: str, key_id: str) -> str:
    return f"subject key id {key_id}" if key_id else f"serial {serial} of {issuer}"


def _signed(told: SignedDescription, layer: LayerTold) -> Iterator[str]:
    shape = "beside what it signs" if told.detached else "around what it signs"
    if told.signers:
        yield f"   signature {shape}, over {told.content_type}, digests: {', '.join(told.digests)}"
    for index, signer in enumerate(told.signers):
        yield from _signer(signer)
        if index < len(layer.signers):
            judged = layer.signers[index]
            rule = f" ({judged.path_rule})" if judged.path_rule else ""
            yield f"      {judged.result.value}{rule}{f', {judged.algorithm}' if judged.algorithm else ''}"
    for certificate in told.certificates:
        yield from _certificate(certificate)
    if told.unreadable_certificates:
        yield f"   certificates that cannot be read: {told.unreadable_certificates}"


def _signer(told: SignerDescription) -> Iterator[str]:
    yield f"   signer: {_party(told.issuer, told.serial, told.key_id)}"
    parameters = [f"{name.replace('_', ' ')} {value}" for name, value in told.parameters.items()]
    yield f"      {', '.join([told.algorithm, *parameters])}, digest {told.digest}, {told.signature_octets} octets"
    if told.signing_time is not None:
        yield f"      says it signed at {told.signing_time:%Y-%m-%d %H:%M:%S} UTC"
    yield f"      signing certificate: {told.signing_certificate}"
    yield f"      attributes: {', '.join(told.attributes) or 'none'}"
    if told.capabilities:
        yield f"      reads: {', '.join(told.capabilities)}"


def _certificate(told: CertificateDescription) -> Iterator[str]:
    yield f"   certificate{' of an authority' if told.authority else ''}: {told.subject}"
    yield f"      issued by {told.issuer}, serial {told.serial}"
    yield f"      valid {told.not_before:%Y-%m-%d} to {told.not_after:%Y-%m-%d}, {told.key}"
    if told.usages:
        yield f"      for {', '.join(told.usages)}"
    if told.addresses:
        yield f"      addresses: {', '.join(told.addresses)}"
