"""Messages explained: what each layer says of itself, in whatever form the file is; a sentence for every finding."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
from pathlib import Path

import pybase64
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

import smime
from smime import (
    ContentCipher,
    KeyTransportScheme,
    RecipientNaming,
    RsaSignatureScheme,
    Suite,
    encrypt,
    oids,
    sign,
)
from smime.explain import Explanation, as_dict, explain
from smime.forms import Form, FormError, blocks_of, encoding_of
from smime.header_protection import HeaderPolicy, protect_header
from smime.identity import identity
from smime.mime import join_message, parse_entity, split_message
from smime.policy import GcmVariant, ReadPolicy
from smime.sentences import SENTENCES
from tests.smime import craft
from tests.smime.people import ENTITY, NOW, Person, authority, message, person, validator
from trust import der
from trust.der import DerError, context
from trust.vault import KeyUse, KeyVault


def anne() -> Person:
    return person("anne@lab.example")


def paul() -> Person:
    return person("paul@clinic.example", kind="p256", which="paul")


def told(data: bytes, *keys: Person, **options: object) -> Explanation:
    options.setdefault("validator", validator())
    options.setdefault("at", NOW)
    return explain(data, keys, **options)  # type: ignore[arg-type]


def codes(explanation: Explanation) -> list[str]:
    return [finding.code for finding in explanation.findings]


def body(entity: bytes) -> bytes:
    return bytes(parse_entity(entity).decoded())


# --- Findings --------------------------------------------------------------------------------------------------------

_EMITTERS = {"Finding", "note", "_note", "_sign_failed", "LayerError", "UnsoundError", "_cannot_open"}
_EXPANDED = {"malformed-{}": {"malformed-certs-only", "malformed-compressed-data"}}


def emitted() -> dict[str, str]:
    """Every code in the package's sources, and where."""
    found: dict[str, str] = {}
    for file in sorted(Path(smime.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            texts = [each for each in node.args if isinstance(each, ast.JoinedStr)]
            texts += [each for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
            if name not in _EMITTERS or not texts:
                continue
            first = min(texts, key=lambda each: (each.lineno, each.col_offset))
            if isinstance(first, ast.Constant):
                found[first.value] = f"{file.name}:{node.lineno}"
                continue
            shape = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in first.values)
            found |= dict.fromkeys(_EXPANDED[shape], f"{file.name}:{node.lineno}")
    return found


def test_every_finding_of_the_package_has_a_sentence_and_no_sentence_is_left_over() -> None:
    found = emitted()
    assert len(found) > 50
    assert {code: place for code, place in found.items() if code not in SENTENCES} == {}
    assert set(SENTENCES) - set(found) == set()


def test_sentences_are_sentences() -> None:
    for code, sentence in SENTENCES.items():
        assert re.fullmatch(r"[a-z0-9-]+", code)
        assert sentence.endswith(".") and sentence[0].isupper() and "  " not in sentence
        assert len(sentence) < 260


# --- Layers ----------------------------------------------------------------------------------------------------------


def test_a_signed_and_encrypted_mail_is_told_from_outside_in() -> None:
    mail = message(encrypt(sign(ENTITY, anne(), NOW), [anne().certificate, paul().certificate]))
    explanation = told(mail, paul())
    outer, inner = explanation.layers
    assert (outer.number, outer.found, outer.claimed_type) == (1, "authEnveloped-data", "application/pkcs7-mime")
    assert (outer.claimed_smime_type, outer.transfer_encoding) == ("authenveloped-data", "base64")
    assert outer.encoding is not None and outer.encoding.is_der
    assert outer.opened is True and outer.encryption is not None
    assert (outer.encryption.algorithm, outer.encryption.nonce_octets, outer.encryption.tag_octets) == (
        "aes256-gcm",
        12,
        16,
    )
    by_kind = {recipient.kind: recipient for recipient in outer.encryption.recipients}
    assert by_kind["key-transport"].parameters == {"hash": "sha256", "mask_hash": "sha256", "label_octets": 0}
    assert not by_kind["key-transport"].ours
    assert by_kind["key-agreement"].ours
    assert by_kind["key-agreement"].algorithm == "ecdh-sha256-kdf"
    assert by_kind["key-agreement"].parameters["wrap"] == "aes256-wrap"
    assert by_kind["key-agreement"].serial == f"{paul().certificate.serial_number:x}"
    assert inner.found == "multipart/signed" and inner.signed is not None
    (signer,) = inner.signed.signers
    assert signer.signing_time == NOW
    assert signer.signing_certificate == "matches"
    assert "aes256-gcm" in signer.capabilities and "signingCertificateV2" in signer.attributes
    (certificate,) = inner.signed.certificates
    assert certificate.addresses == ("anne@lab.example",)
    assert certificate.sha256 == signer.certificate
    assert certificate.key == "rsa-2048" and "email-protection" in certificate.usages
    assert (explanation.decryption.value, explanation.signature.value) == ("decrypted", "valid")
    assert explanation.content_type == "text/plain"
    assert explanation.findings == ()
    assert explanation.decrypted is not None and explanation.decrypted.startswith(b"Content-Type: multipart/signed")


def test_without_a_key_everything_up_to_the_first_encrypted_layer_is_told() -> None:
    mail = message(sign(encrypt(sign(ENTITY, anne(), NOW), [paul().certificate]), anne(), NOW))
    explanation = told(mail)
    assert [layer.found for layer in explanation.layers] == ["multipart/signed", "authEnveloped-data"]
    assert explanation.layers[1].opened is None
    assert explanation.decryption.value == "not-tried"
    assert codes(explanation) == ["encrypted-not-opened"]
    assert explanation.decrypted is None


def test_triple_wrapped() -> None:
    mail = message(sign(encrypt(sign(ENTITY, anne(), NOW), [paul().certificate]), anne(), NOW))
    explanation = told(mail, paul())
    assert [layer.found for layer in explanation.layers] == [
        "multipart/signed",
        "authEnveloped-data",
        "multipart/signed",
    ]
    assert [layer.signature.value if layer.signature else None for layer in explanation.layers] == [
        "valid",
        None,
        "valid",
    ]
    assert "signed-outside-encryption" in codes(explanation)


def test_a_key_that_is_not_named_is_the_reason() -> None:
    explanation = told(message(encrypt(ENTITY, [anne().certificate])), paul())
    assert explanation.decryption.value == "failed"
    assert codes(explanation) == ["no-key-of-ours"]


def test_a_wrong_tag_is_never_told_from_a_wrong_key() -> None:
    damaged = message(craft.pkcs7_mime(craft.enveloped(ENTITY, anne(), flip=3)))
    other_key = message(craft.pkcs7_mime(craft.enveloped(ENTITY, anne(), encrypted_key=os.urandom(256))))
    assert codes(told(damaged, anne())) == codes(told(other_key, anne())) == ["cannot-open"]


def test_certificates_alone_mark_recipients() -> None:
    mail = message(encrypt(ENTITY, [anne().certificate], Suite(naming=RecipientNaming.SUBJECT_KEY_ID)))
    encryption = told(mail, certificates=[anne().certificate]).layers[0].encryption
    assert encryption is not None
    (recipient,) = encryption.recipients
    assert recipient.ours and recipient.key_id and not recipient.serial


@pytest.mark.parametrize(
    ("crafted", "variant"),
    [
        ({"outer": oids.ENVELOPED_DATA}, GcmVariant.IN_ENVELOPED_DATA),
        ({"icv": None}, GcmVariant.ICV_LENGTH_OMITTED),
    ],
)
def test_variants_of_gcm_are_recognised_without_a_key(crafted: dict[str, object], variant: GcmVariant) -> None:
    explanation = told(craft.enveloped(ENTITY, anne(), **crafted))  # type: ignore[arg-type]
    encryption = explanation.layers[0].encryption
    assert encryption is not None and encryption.gcm_variants == (variant.value,)
    assert ("gcm-variant-not-admitted", variant.value) in [(f.code, f.detail) for f in explanation.findings]
    admitted = ReadPolicy(gcm_variants=frozenset({variant}))
    assert "gcm-variant-not-admitted" not in codes(told(craft.enveloped(ENTITY, anne(), **crafted), policy=admitted))  # type: ignore[arg-type]


def test_bare_nonce_and_repeated_tag_are_recognised() -> None:
    cms = craft.enveloped(ENTITY, anne())
    oid, wrapper = der.read(cms).sequence()
    version, infos, info, mac = wrapper.explicit().sequence()
    kind, algorithm, content = info.sequence()
    nonce = algorithm.sequence()[1].sequence()[0]
    changed = craft.content_info(
        oid.oid(),
        der.sequence(
            version.encoded,
            infos.encoded,
            der.sequence(
                kind.encoded,
                der.sequence(algorithm.sequence()[0].encoded, nonce.encoded),
                der.tlv(context(0, constructed=False), content.content, mac.octets()),
            ),
            mac.encoded,
        ),
    )
    encryption = told(changed).layers[0].encryption
    assert encryption is not None
    assert set(encryption.gcm_variants) == {"gcm-bare-nonce", "gcm-tag-in-content"}
    opened = told(changed, anne(), policy=ReadPolicy(gcm_variants=frozenset(GcmVariant)))
    assert opened.decryption.value == "decrypted"
    assert {f.detail for f in opened.findings if f.code == "gcm-variant"} == set(encryption.gcm_variants)


def test_old_ciphers_are_named_with_what_to_do() -> None:
    explanation = told(message(encrypt(ENTITY, [anne().certificate], Suite(content=ContentCipher.AES256_CBC))), anne())
    assert codes(explanation) == ["unauthenticated-encryption"]
    refused = craft.enveloped(ENTITY, anne(), cipher=oids.DES_EDE3_CBC, outer=oids.ENVELOPED_DATA)
    assert codes(told(refused, anne())) == ["cipher-not-admitted"]


def test_oaep_pss_and_key_transport_parameters() -> None:
    old = Suite(key_transport=KeyTransportScheme.RSA_PKCS1V15, rsa_signature=RsaSignatureScheme.PSS, opaque=True)
    mail = message(encrypt(sign(ENTITY, anne(), NOW, old), [anne().certificate], old))
    outer, inner = told(mail, anne()).layers
    assert outer.encryption is not None and outer.encryption.recipients[0].algorithm == "rsa-pkcs1v15"
    assert inner.found == "signed-data" and inner.signed is not None and not inner.signed.detached
    assert inner.signed.signers[0].parameters == {"hash": "sha256", "mask_hash": "sha256", "salt_octets": 32}
    assert inner.signers[0].algorithm == "rsa-pss-sha256"


def test_ber_in_chunks() -> None:
    cms = craft.indefinite(craft.enveloped(ENTITY * 50, anne()), 100)
    encoding = told(cms).layers[0].encoding
    assert encoding is not None and not encoding.is_der and not encoding.definite
    assert encoding.octets == len(cms)
    assert encoding.chunks == (len(ENTITY) * 50 + 99) // 100


def test_the_declared_type_is_told_beside_the_true_one() -> None:
    mail = message(craft.pkcs7_mime(craft.enveloped(ENTITY, anne()), kind="signed-data"))
    explanation = told(mail, anne())
    assert (explanation.layers[0].claimed_smime_type, explanation.layers[0].found) == (
        "signed-data",
        "authEnveloped-data",
    )
    assert codes(explanation) == ["type-differs"]


def test_an_unreadable_structure_says_which_rule() -> None:
    cms = craft.enveloped(ENTITY, anne())
    explanation = told(message(craft.pkcs7_mime(cms[:-20])), anne())
    assert explanation.layers[0].found == "unreadable" and explanation.layers[0].problem
    assert "malformed-cms" in codes(explanation)


def test_header_protection_is_told_by_names_only() -> None:
    header, entity = split_message(message(ENTITY))
    inner, outer = protect_header(header, entity, HeaderPolicy.BASELINE)
    explanation = told(join_message(outer, encrypt(sign(inner, anne(), NOW), [paul().certificate])), paul())
    protection = as_dict(explanation)["header_protection"]
    assert protection["scheme"] == "cipher"
    assert "subject" in protection["protected"] and protection["confidential"] == ["subject"]


def test_neither_content_nor_subject_is_told() -> None:
    mail = message(encrypt(sign(ENTITY, anne(), NOW), [paul().certificate]))
    shown = json.dumps(as_dict(told(mail, paul()))) + repr(told(mail, paul()))
    assert "Nothing to report" not in shown and "Subject" not in shown


def test_control_characters_of_names_never_reach_a_terminal() -> None:
    evil = b'From: a@b.example\r\nContent-Type: application/pkcs7-mime; smime-type="\x7f\xc2\x9b31m"\r\n\r\nx'
    shown = json.dumps(as_dict(told(evil)), ensure_ascii=False)
    assert all(char.isprintable() for char in shown)


def test_an_encrypted_file_that_calls_itself_a_signature_stays_closed() -> None:
    cms = craft.enveloped(ENTITY, anne())
    explanation = told(message(craft.pkcs7_mime(cms, media_type="application/pkcs7-signature")), anne())
    assert explanation.decrypted is None and explanation.decryption.value == "failed"
    assert "malformed-signature" in codes(explanation)


def test_more_layers_than_the_gateway_opens_do_not_open_here() -> None:
    entity = ENTITY
    for _ in range(9):
        entity = encrypt(entity, [anne().certificate])
    explanation = told(message(entity), anne())
    assert len(explanation.layers) == 8 and explanation.decryption.value == "failed"
    assert "too-many-layers" in codes(explanation)


# --- Signatures ------------------------------------------------------------------------------------------------------


def test_without_anchors_a_signature_is_sound_at_best() -> None:
    explanation = told(message(sign(ENTITY, anne(), NOW)), validator=None)
    assert explanation.signature.value == "sound"
    assert codes(explanation) == ["path-not-checked"]
    altered = message(sign(ENTITY, anne(), NOW).replace(b"Nothing", b"Something"))
    assert told(altered, validator=None).signature.value == "invalid"


def test_somebody_elses_signature() -> None:
    explanation = told(message(sign(ENTITY, anne(), NOW), sender="eve@lab.example"))
    assert explanation.signature.value == "mismatch"
    assert codes(explanation) == ["from-not-in-certificate"]
    assert told(message(sign(ENTITY, anne(), NOW)), outer_from=["eve@lab.example"]).signature.value == "mismatch"


def test_no_from_is_said_and_not_held_against_the_signature() -> None:
    explanation = told(sign(ENTITY, anne(), NOW))
    assert explanation.form is Form.ENTITY and explanation.signature.value == "valid"
    assert codes(explanation) == ["no-from-to-compare"]


def test_parts_of_a_list_are_told_apart() -> None:
    signed = sign(ENTITY, anne(), NOW)
    mixed = b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n" + signed
    mixed += b"\r\n--x\r\nContent-Type: text/plain\r\n\r\nfooter\r\n--x--\r\n"
    explanation = told(message(mixed))
    assert explanation.signature.value == "not-signed"
    assert [(part.part, part.signature.value) for part in explanation.covered] == [("1", "valid")]
    assert explanation.uncovered == ("2",)


def test_signing_certificate_of_another_key_differs() -> None:
    reference = der.sequence(der.sequence(der.sequence(der.octet_string(os.urandom(32)))))
    cms = craft.signed_data(
        ENTITY, anne(), extra=[craft.attribute(oids.SIGNING_CERTIFICATE_V2, reference)], attached=ENTITY
    )
    explanation = told(cms)
    assert explanation.layers[0].signed is not None
    assert explanation.layers[0].signed.signers[0].signing_certificate == "differs"
    assert codes(explanation) == ["signing-certificate-attribute"]


def test_a_detached_signature_alone_needs_its_content() -> None:
    content = b"no MIME entity\nat all\n"
    cms = craft.signed_data(content, anne())
    assert codes(told(cms)) == ["no-content"]
    assert told(cms).signature.value == "unchecked"
    explanation = told(cms, content=content)
    assert explanation.signature.value == "valid"
    assert explanation.layers[0].found == "signed-data"
    assert told(cms, content=content.replace(b"\n", b"\r\n")).signature.value == "valid"
    assert told(cms, content=b"another").signature.value == "invalid"
    with pytest.raises(FormError):
        told(craft.enveloped(ENTITY, anne()), content=content)
    with pytest.raises(FormError):
        told(craft.signed_data(ENTITY, anne(), attached=ENTITY), content=content)


def test_certificates_only() -> None:
    data = der.sequence(
        der.integer(1),
        der.tlv(der.SET),
        der.sequence(der.oid(oids.DATA)),
        der.tlv(context(0), anne().certificate.public_bytes(Encoding.DER)),
        der.tlv(der.SET),
    )
    explanation = told(craft.content_info(oids.SIGNED_DATA, data))
    assert explanation.layers[0].found == "certs-only"
    assert explanation.layers[0].signed is not None and len(explanation.layers[0].signed.certificates) == 1


# --- Forms -----------------------------------------------------------------------------------------------------------


def pem(cms: bytes, label: str = "CMS") -> bytes:
    return f"-----BEGIN {label}-----\n".encode() + pybase64.encodebytes(cms) + f"-----END {label}-----\n".encode()


def test_every_form_of_a_file_says_the_same() -> None:
    cms = body(encrypt(ENTITY, [paul().certificate]))
    forms = {
        Form.CMS: cms,
        Form.PEM: pem(cms),
        Form.BASE64: pybase64.b64encode(cms),
        Form.MAIL: message(craft.pkcs7_mime(cms)),
        Form.ENTITY: craft.pkcs7_mime(cms),
    }
    for form, data in forms.items():
        explanation = told(data, paul())
        assert explanation.form is form
        assert explanation.decrypted == ENTITY
        assert [layer.found for layer in explanation.layers] == ["authEnveloped-data"]


@pytest.mark.parametrize(
    "change",
    [
        lambda mail: mail.replace(b"\r\n", b"\n"),
        lambda mail: b"\r\n\r\n" + mail,
        lambda mail: b"\xef\xbb\xbf" + mail,
        lambda mail: b"From anne@lab.example Mon Jun  1 12:00:00 2026\n" + mail,
    ],
)
def test_mails_as_people_save_them(change: object) -> None:
    mail = change(message(encrypt(sign(ENTITY, anne(), NOW), [paul().certificate])))  # type: ignore[operator]
    explanation = told(mail, paul())
    assert (explanation.decryption.value, explanation.signature.value) == ("decrypted", "valid")


def test_several_structures_in_one_file() -> None:
    one, other = body(encrypt(ENTITY, [paul().certificate])), craft.signed_data(ENTITY, anne(), attached=ENTITY)
    for data in (one + other, pem(one, "PKCS7") + pem(other, "SIGNED MESSAGE"), one + other + b"\r\n"):
        explanation = told(data, paul())
        assert [(layer.block, layer.found) for layer in explanation.layers] == [
            (1, "authEnveloped-data"),
            (2, "signed-data"),
        ]
        assert explanation.signature.value == "valid"


def test_structures_inside_structures_without_mime_between() -> None:
    inner = craft.signed_data(b"%PDF no entity", anne(), attached=b"%PDF no entity")
    explanation = told(craft.enveloped(inner, anne()), anne())
    assert [(layer.block, layer.found) for layer in explanation.layers] == [
        (1, "authEnveloped-data"),
        (2, "signed-data"),
    ]
    assert (explanation.decryption.value, explanation.signature.value) == ("decrypted", "valid")
    assert "decrypted-content-is-no-entity" in codes(explanation)
    assert "cannot-open" not in codes(explanation)
    assert explanation.decrypted == inner


def test_from_is_compared_with_signers_of_what_stands_inside_without_mime() -> None:
    inner = craft.signed_data(ENTITY, anne(), attached=ENTITY)
    for sender, result in (("anne@lab.example", "valid"), ("eve@lab.example", "mismatch")):
        mail = message(craft.pkcs7_mime(craft.enveloped(inner, anne())), sender=sender)
        assert told(mail, anne()).signature.value == result


def test_from_inside_a_message_without_one_is_compared_too() -> None:
    wrapped = b"Content-Type: message/rfc822\r\n\r\n" + message(ENTITY, sender="eve@lab.example")
    assert told(sign(wrapped, anne(), NOW)).signature.value == "mismatch"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" \r\n\r\n",
        b"Hello",
        b"\x00" * 100,
        b"M" * 101,
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CMS-----\nAAAA\n",
        b"%PDF-1.7\n",
        os.urandom(64).replace(b"0", b"1"),
    ],
)
def test_what_is_no_message_is_one_sentence(data: bytes) -> None:
    try:
        told(data)
    except FormError as error:
        assert str(error).endswith(".") and "\n" not in str(error)


def test_a_mail_without_protection_says_so() -> None:
    explanation = told(message(ENTITY))
    assert explanation.layers == () and codes(explanation) == ["no-layer"]
    assert explanation.content_type == "text/plain"


def test_anything_damaged_is_told_and_never_raises() -> None:
    mail = message(encrypt(sign(ENTITY, anne(), NOW, Suite(opaque=True)), [paul().certificate]))
    cms = body(encrypt(sign(ENTITY, anne(), NOW), [paul().certificate]))
    signed = craft.signed_data(ENTITY, anne(), attached=ENTITY)
    for data in (mail, cms, signed, pem(signed)):
        for position in range(0, len(data), 37):
            for change in (data[:position], data[:position] + b"\xff" + data[position + 1 :]):
                try:
                    json.dumps(as_dict(told(change)))
                except FormError as error:
                    assert str(error).endswith(".")


def test_the_encoding_of_anything_is_seen_in_linear_time() -> None:
    bomb = b"\x30\x80" * 100_000
    with pytest.raises(DerError):
        encoding_of(bomb)
    chunks = b"\x24\x80" + b"\x04\x01x" * 300_000 + b"\0\0"
    assert encoding_of(chunks).chunks == 300_000
    assert len(blocks_of(chunks.replace(b"\x24", b"\x30", 1))) == 1


def test_the_document_says_its_version_and_every_key_of_it_is_documented() -> None:
    mail = message(
        encrypt(sign(ENTITY, anne(), NOW, Suite(rsa_signature=RsaSignatureScheme.PSS)), [paul().certificate])
    )
    document = as_dict(told(mail, paul()))
    assert document["schema"] == "relais.smime.explanation/1"
    described = _MANUAL.read_text()

    def keys(value: object) -> set[str]:
        if isinstance(value, dict):
            return set(value) | {key for item in value.values() for key in keys(item)}
        return {key for item in value for key in keys(item)} if isinstance(value, list) else set()

    assert len(keys(document)) > 60
    assert {key for key in keys(document) if f"`{key}`" not in described} == set()


# --- The documentation -----------------------------------------------------------------------------------------------

_MANUAL = Path(__file__).parents[2] / "docs" / "smime.md"


def test_the_manual_has_every_finding_and_every_variant() -> None:
    manual = _MANUAL.read_text()
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \| (.+) \|$", manual, re.MULTILINE))
    assert {code: rows.get(code) for code in SENTENCES} == SENTENCES
    assert {variant.value for variant in GcmVariant if f'["{variant.value}"]' not in manual} == set()


def test_the_manuals_examples_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = KeyVault.create(tmp_path / "state" / "vault")
    vault.install("anne@lab.example", KeyUse.SIGNING, anne().key, anne().certificate, ())
    vault.install("paul@clinic.example", KeyUse.ENCRYPTION, paul().key, paul().certificate, ())
    authority().save(tmp_path, "ca")
    paul().save(tmp_path, "paul")
    (tmp_path / "plain.eml").write_bytes(message(ENTITY))
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"^```python\n(.*?)^```", _MANUAL.read_text(), re.MULTILINE | re.DOTALL)
    assert len(examples) == 3
    for example in examples:
        exec(compile(example, "docs/smime.md", "exec"), {})


@pytest.mark.parametrize("wrong", ["serial", "sha1 in version 2", "two values"])
def test_a_reference_the_gateway_refuses_does_not_match(wrong: str) -> None:
    own = identity(anne().certificate)
    hashed = der.octet_string(own.sha256)
    name = der.sequence(der.tlv(context(4), own.issuer))
    values = [der.sequence(der.sequence(der.sequence(hashed)))]
    if wrong == "serial":
        values = [der.sequence(der.sequence(der.sequence(hashed, der.sequence(name, der.integer(own.serial + 1)))))]
    elif wrong == "sha1 in version 2":
        weak = der.octet_string(hashlib.sha1(own.encoded, usedforsecurity=False).digest())
        values = [der.sequence(der.sequence(der.sequence(der.sequence(der.oid(oids.SHA1)), weak)))]
    else:
        values *= 2
    attribute = der.sequence(der.oid(oids.SIGNING_CERTIFICATE_V2), der.tlv(der.SET, *values))
    explanation = told(craft.signed_data(ENTITY, anne(), extra=[attribute], attached=ENTITY))
    assert explanation.layers[0].signed is not None
    assert explanation.layers[0].signed.signers[0].signing_certificate == "differs"
    assert codes(explanation)[0] in ("signing-certificate-attribute", "malformed-signature", "repeated-attribute")
