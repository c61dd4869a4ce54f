"""CMS changed in its structure, not only in its octets: whatever comes, opening answers and nothing is forged."""

from __future__ import annotations

import copy
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smime import DecryptionResult, SignatureResult, Suite, oids, open_message
from smime.encrypting import encrypt_content
from tests.smime.craft import SHA256, attribute, enveloped, multipart_signed, pkcs7_mime, signed_data
from tests.smime.people import ENTITY, NOW, message, person, validator
from trust import der

ANNE = person("anne@lab.example")
PAUL = person("paul@clinic.example")
PAUL_EC = person("paul@clinic.example", kind="p256", which="ec paul")
REFERENCE = der.sequence(der.sequence(der.sequence(SHA256, der.octet_string(bytes(32)))))
SIGNED = (
    signed_data(ENTITY, ANNE, attached=ENTITY, extra=(attribute(oids.SIGNING_TIME, der.time(NOW)),)),
    signed_data(ENTITY, ANNE, attached=ENTITY, extra=(attribute(oids.SIGNING_CERTIFICATE_V2, REFERENCE),)),
)
DETACHED = signed_data(ENTITY, ANNE)
ENCRYPTED = (
    enveloped(ENTITY, PAUL),
    bytes(encrypt_content(ENTITY, [PAUL.certificate, PAUL_EC.certificate], Suite())),
)
OIDS = [value for name, value in vars(oids).items() if name.isupper()]

Node = list  # tag, and either contents octets or a list of nodes


def _tree(element: der.Element) -> Node:
    if element.tag & der.CONSTRUCTED:
        return [element.tag, [_tree(child) for child in element.children()]]
    return [element.tag, bytes(element.content)]


def _encoded(node: Node) -> bytes:
    tag, inside = node
    return der.tlv(tag, *map(_encoded, inside)) if isinstance(inside, list) else der.tlv(tag, inside)


def _all(node: Node) -> list[Node]:
    inside = [below for child in node[1] for below in _all(child)] if isinstance(node[1], list) else []
    return [node, *inside]


def mutated(cms: bytes, seed: int) -> bytes:
    """One to three changes: a tag, a length, an element more, less or elsewhere, another identifier, a bit."""
    chance = random.Random(seed)
    tree = _tree(der.read(cms))
    for _ in range(chance.randint(1, 3)):
        nodes = _all(tree)
        node = chance.choice(nodes)
        match chance.randrange(7):
            case 0:
                node[0] = chance.choice((node[0] ^ der.CONSTRUCTED, 2, 3, 4, 5, 6, 0x17, 0x30, 0x31, 0x80, 0xA0, 0xA1))
            case 1:
                node[1] = chance.choice((b"", [], chance.randbytes(chance.choice((1, 5, 300)))))
            case 2 if isinstance(node[1], list) and node[1]:
                node[1].pop(chance.randrange(len(node[1])))
            case 3 if isinstance(node[1], list) and node[1]:
                node[1].append(copy.deepcopy(chance.choice(node[1])))
            case 4:
                node[:] = copy.deepcopy(chance.choice(nodes))
            case 5 if node[0] == der.OID:
                node[1] = der.oid(chance.choice(OIDS))[2:]
            case _ if isinstance(node[1], bytes) and node[1]:
                octets = bytearray(node[1])
                octets[chance.randrange(len(octets))] ^= 1 << chance.randrange(8)
                node[1] = bytes(octets)
    return _encoded(tree)


def opened(entity: bytes):
    return open_message(message(entity), (PAUL, PAUL_EC), validator(), NOW)


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(SIGNED), st.integers(0, 1 << 32))
@pytest.mark.filterwarnings("ignore:.*serial number")
def test_opaque_signatures(cms: bytes, seed: int) -> None:
    result = opened(pkcs7_mime(mutated(cms, seed)))
    if result.verdict.signature is SignatureResult.VALID:
        assert bytes(result.content) == ENTITY


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 32))
@pytest.mark.filterwarnings("ignore:.*serial number")
def test_detached_signatures(seed: int) -> None:
    found = opened(multipart_signed(ENTITY, mutated(DETACHED, seed))).verdict
    if found.signature is SignatureResult.VALID:
        assert {signer.certificate for signer in found.signers} == {ANNE.certificate}


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(ENCRYPTED), st.integers(0, 1 << 32))
def test_encrypted_content(cms: bytes, seed: int) -> None:
    result = opened(pkcs7_mime(mutated(cms, seed)))
    if result.verdict.decryption is DecryptionResult.DECRYPTED:
        assert bytes(result.content) == ENTITY
