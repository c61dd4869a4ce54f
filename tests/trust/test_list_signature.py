"""Hostile signatures on a trust list: whatever was signed is read, and nothing that was not; else it is refused."""

from __future__ import annotations

import base64
import copy
import hmac
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from hashlib import sha1

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from lxml import etree

from trust.certificates import CertificateValidator
from trust.issuing import DemonstrationAuthority, Issued
from trust.names import DistinguishedName
from trust.refusals import Refused
from trust.trustlist import NAMESPACE, ListedDomain, TrustList, write_trust_list

NOW = datetime.now(UTC).replace(microsecond=0)
DS = "{http://www.w3.org/2000/09/xmldsig#}"
LB = f"{{{NAMESPACE}}}"
OPERATOR = "CN=smtp-1.op.example,OU=1750000001,O=OPÉRATEUR,C=FR"
EVIL = "evil.example"


class Space:
    def __init__(self) -> None:
        self.authority = DemonstrationAuthority.create("Démonstration")
        self.signer: Issued = self.authority.issue_list_signer()
        self.validator = CertificateValidator([self.authority.root])
        rows = [ListedDomain(f"d{number}.example", OPERATOR, "é & <b>") for number in range(3)]
        signer = self.signer
        self.good = write_trust_list(rows, NOW, signer.key, signer.certificate, signer.chain)

    def load(self, xml: bytes) -> TrustList | Refused:
        name = DistinguishedName.from_x509(self.signer.certificate.subject)
        return TrustList.load(xml, self.validator, NOW, signer=name)

    def sign(self, root: etree._Element) -> bytes:
        """Sign what stands there with the signer's own key and with algorithms as written: the tricks are elsewhere."""
        signature = root.find(f"{DS}Signature")
        info = signature.find(f"{DS}SignedInfo")
        form = info.find(f"{DS}CanonicalizationMethod").get("Algorithm")
        canonical = etree.tostring(
            info, method="c14n", exclusive="exc-c14n" in form, with_comments=form.endswith("WithComments")
        )
        key = self.signer.key
        assert isinstance(key, rsa.RSAPrivateKey)
        method = info.find(f"{DS}SignatureMethod").get("Algorithm")
        if "hmac" in method:
            public = key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            value = hmac.digest(public, canonical, "sha256")
        else:
            digest = hashes.SHA1() if method.endswith("rsa-sha1") else hashes.SHA256()
            value = key.sign(canonical, padding.PKCS1v15(), digest)
        signature.find(f"{DS}SignatureValue").text = base64.b64encode(value).decode()
        return etree.tostring(root)


@pytest.fixture(scope="module")
def space() -> Iterator[Space]:
    yield Space()


def harmless(space: Space, xml: bytes) -> None:
    """Refused; or, where only unsigned decoration changed, read as it was signed."""
    loaded = space.load(xml)
    assert isinstance(loaded, Refused) or loaded.domains == {"d0.example", "d1.example", "d2.example"}
    assert isinstance(loaded, Refused) or not loaded.is_trusted(EVIL)


def rows(root: etree._Element) -> etree._Element:
    return root.find(f"{LB}ListeDomaines")


def evil(root: etree._Element) -> etree._Element:
    row = copy.deepcopy(rows(root)[0])
    row.find(f"{LB}Nom").text = EVIL
    return row


def test_the_good_one(space: Space) -> None:
    loaded = space.load(space.good)
    assert isinstance(loaded, TrustList)
    assert loaded.rows == 3


def add_row(root: etree._Element) -> None:
    rows(root).append(evil(root))


def second_rows_first(root: etree._Element) -> None:
    forged = copy.deepcopy(rows(root))
    forged[0].find(f"{LB}Nom").text = EVIL
    root.insert(0, forged)


def second_rows_in_signature(root: etree._Element) -> None:
    forged = etree.SubElement(root.find(f"{DS}Signature"), f"{LB}ListeDomaines")
    forged.append(evil(root))


def rows_in_an_object(root: etree._Element) -> None:
    carrier = etree.SubElement(root.find(f"{DS}Signature"), f"{DS}Object", Id="part")
    carrier.append(evil(root))


def rows_after_the_signature(root: etree._Element) -> None:
    etree.SubElement(root, f"{LB}ListeDomaines").append(evil(root))


def reference_by_id(root: etree._Element) -> None:
    rows(root).set("Id", "part")
    next(root.iter(f"{DS}Reference")).set("URI", "#part")
    add_row(root)


def reference_by_xpointer(root: etree._Element) -> None:
    next(root.iter(f"{DS}Reference")).set("URI", "#xpointer(/)")


def external_reference(root: etree._Element) -> None:
    next(root.iter(f"{DS}Reference")).set("URI", "file:///etc/hostname")


def reference_without_uri(root: etree._Element) -> None:
    del next(root.iter(f"{DS}Reference")).attrib["URI"]


def second_reference(root: etree._Element) -> None:
    reference = next(root.iter(f"{DS}Reference"))
    reference.addnext(copy.deepcopy(reference))


def second_signature(root: etree._Element) -> None:
    root.insert(0, copy.deepcopy(root.find(f"{DS}Signature")))


def nested_signature(root: etree._Element) -> None:
    rows(root)[0].append(copy.deepcopy(root.find(f"{DS}Signature")))


def signature_deeper(root: etree._Element) -> None:
    rows(root).append(root.find(f"{DS}Signature"))


def xpath_transform(root: etree._Element) -> None:
    transform = next(root.iter(f"{DS}Transform"))
    transform.set("Algorithm", "http://www.w3.org/TR/1999/REC-xpath-19991116")
    etree.SubElement(transform, f"{DS}XPath").text = "not(ancestor-or-self::*[.='evil'])"


def xpath_inside_an_official_transform(root: etree._Element) -> None:
    etree.SubElement(next(root.iter(f"{DS}Transform")), f"{DS}XPath").text = "false()"


def transforms_turned_round(root: etree._Element) -> None:
    transforms = next(root.iter(f"{DS}Transforms"))
    transforms.append(transforms[0])


def no_enveloped_transform(root: etree._Element) -> None:
    transforms = next(root.iter(f"{DS}Transforms"))
    transforms.remove(transforms[0])


def third_transform(root: etree._Element) -> None:
    transforms = next(root.iter(f"{DS}Transforms"))
    transforms.append(copy.deepcopy(transforms[1]))


def inclusive_c14n(root: etree._Element) -> None:
    list(root.iter(f"{DS}Transform"))[1].set("Algorithm", "http://www.w3.org/TR/2001/REC-xml-c14n-20010315")


def inclusive_signed_info(root: etree._Element) -> None:
    next(root.iter(f"{DS}CanonicalizationMethod")).set("Algorithm", "http://www.w3.org/TR/2001/REC-xml-c14n-20010315")


def signed_info_with_comments(root: etree._Element) -> None:
    method = next(root.iter(f"{DS}CanonicalizationMethod"))
    method.set("Algorithm", "http://www.w3.org/2001/10/xml-exc-c14n#WithComments")


def prefixes_made_inclusive(root: etree._Element) -> None:
    name = "{http://www.w3.org/2001/10/xml-exc-c14n#}InclusiveNamespaces"
    etree.SubElement(list(root.iter(f"{DS}Transform"))[1], name, PrefixList="#default xml")


def second_signed_info(root: etree._Element) -> None:
    info = next(root.iter(f"{DS}SignedInfo"))
    forged = copy.deepcopy(info)
    forged.remove(forged.find(f"{DS}Reference"))
    info.addnext(forged)


def transforms_apart(root: etree._Element) -> None:
    transforms = next(root.iter(f"{DS}Transforms"))
    apart = copy.deepcopy(transforms)
    apart.remove(apart[0])
    transforms.remove(transforms[1])
    transforms.addnext(apart)


def c14n_with_comments(root: etree._Element) -> None:
    list(root.iter(f"{DS}Transform"))[1].set("Algorithm", "http://www.w3.org/2001/10/xml-exc-c14n#WithComments")


def weak_digest(root: etree._Element) -> None:
    method = next(root.iter(f"{DS}DigestMethod"))
    method.set("Algorithm", "http://www.w3.org/2000/09/xmldsig#sha1")
    bare = copy.deepcopy(root)
    bare.remove(bare.find(f"{DS}Signature"))
    digest = sha1(etree.tostring(bare, method="c14n", exclusive=True)).digest()
    method.getnext().text = base64.b64encode(digest).decode()


def weak_signature(root: etree._Element) -> None:
    next(root.iter(f"{DS}SignatureMethod")).set("Algorithm", "http://www.w3.org/2000/09/xmldsig#rsa-sha1")


def hmac_with_the_public_key(root: etree._Element) -> None:
    method = next(root.iter(f"{DS}SignatureMethod"))
    method.set("Algorithm", "http://www.w3.org/2001/04/xmldsig-more#hmac-sha256")


def hmac_of_no_length(root: etree._Element) -> None:
    hmac_with_the_public_key(root)
    etree.SubElement(next(root.iter(f"{DS}SignatureMethod")), f"{DS}HMACOutputLength").text = "0"


def key_value(root: etree._Element) -> None:
    value = etree.SubElement(next(root.iter(f"{DS}KeyInfo")), f"{DS}KeyValue")
    etree.SubElement(etree.SubElement(value, f"{DS}RSAKeyValue"), f"{DS}Modulus").text = "AQAB"


def retrieval_method(root: etree._Element) -> None:
    info = next(root.iter(f"{DS}KeyInfo"))
    info.insert(0, etree.SubElement(info, f"{DS}RetrievalMethod", URI="http://127.0.0.1:1/key"))


def second_key_info(root: etree._Element) -> None:
    info = next(root.iter(f"{DS}KeyInfo"))
    info.addnext(copy.deepcopy(info))


def two_hundred_certificates(root: etree._Element) -> None:
    data = next(root.iter(f"{DS}X509Data"))
    for _ in range(200):
        data.append(copy.deepcopy(data[0]))


def comment_in_the_digest(root: etree._Element) -> None:
    value = next(root.iter(f"{DS}DigestValue"))
    comment = etree.Comment("x")
    comment.tail, value.text = value.text, "AAAA"
    value.append(comment)


def comment_in_the_signature_value(root: etree._Element) -> None:
    value = next(root.iter(f"{DS}SignatureValue"))
    value.append(etree.Comment("x"))


def other_root_around(root: etree._Element) -> None:
    root.tag = f"{LB}Autre"


TRICKS: list[Callable[[etree._Element], None]] = [
    *(add_row, second_rows_first, second_rows_in_signature, rows_in_an_object, rows_after_the_signature),
    *(reference_by_id, reference_by_xpointer, external_reference, reference_without_uri, second_reference),
    *(second_signature, nested_signature, signature_deeper, xpath_transform, xpath_inside_an_official_transform),
    *(transforms_turned_round, no_enveloped_transform, third_transform, inclusive_c14n, c14n_with_comments),
    *(weak_digest, weak_signature, hmac_with_the_public_key, hmac_of_no_length, key_value, retrieval_method),
    *(inclusive_signed_info, signed_info_with_comments, prefixes_made_inclusive, second_signed_info, transforms_apart),
    *(second_key_info, two_hundred_certificates, comment_in_the_digest, comment_in_the_signature_value),
    other_root_around,
]


@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: trick.__name__)
def test_tricks_without_the_key(space: Space, trick: Callable[[etree._Element], None]) -> None:
    root = etree.fromstring(space.good)
    trick(root)
    harmless(space, etree.tostring(root))


@pytest.mark.parametrize(
    "trick",
    [
        *(external_reference, reference_without_uri, second_reference, xpath_transform, no_enveloped_transform),
        *(inclusive_c14n, c14n_with_comments, weak_digest, weak_signature, hmac_with_the_public_key),
        *(inclusive_signed_info, signed_info_with_comments, prefixes_made_inclusive, second_signed_info),
        *(
            transforms_apart,
            hmac_of_no_length,
            key_value,
            retrieval_method,
            reference_by_xpointer,
            transforms_turned_round,
        ),
    ],
    ids=lambda trick: trick.__name__,
)
def test_tricks_signed_again_with_the_right_key_are_refused(
    space: Space, trick: Callable[[etree._Element], None]
) -> None:
    """Only the official algorithms, one reference and one form, even from the right signer."""
    root = etree.fromstring(space.good)
    trick(root)
    assert isinstance(space.load(space.sign(root)), Refused)


def test_signing_again_by_itself_is_believed(space: Space) -> None:
    """So that the refusals above are for their tricks."""
    assert isinstance(space.load(space.sign(etree.fromstring(space.good))), TrustList)


def test_comments_and_instructions_split_no_value(space: Space) -> None:
    for inserted in (b"<!--x-->", b"<?x y?>"):
        loaded = space.load(space.good.replace(b"d0.example", b"d0" + inserted + b".example", 1))
        assert isinstance(loaded, Refused) or "d0.example" in loaded.domains
        loaded = space.load(space.good.replace(b"OU=1750000001", b"OU=1750000001" + inserted, 1))
        assert isinstance(loaded, Refused) or len(loaded.operators) == 1


@pytest.mark.parametrize("attribute", ['xml:base="http://127.0.0.1:1/"', 'xml:space="preserve"', 'xmlns:x="urn:x"'])
@pytest.mark.parametrize("where", [b"<ListeBlancheMSSante ", b"<ListeDomaines", b"<Domaine", b"<ds:Signature "])
def test_attributes_and_namespaces_that_were_not_signed(space: Space, where: bytes, attribute: str) -> None:
    assert where in space.good
    harmless(space, space.good.replace(where, where.rstrip() + b" " + attribute.encode() + b" ", 1))


def test_the_same_id_everywhere(space: Space) -> None:
    root = etree.fromstring(space.good)
    for element in root.iter():
        element.set("Id", "same")
    harmless(space, etree.tostring(root))


@pytest.mark.parametrize(
    "prefix",
    [
        b'<!DOCTYPE l SYSTEM "http://127.0.0.1:1/l.dtd">',
        b'<!DOCTYPE l [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>',
        b'<!DOCTYPE l [<!ENTITY % p SYSTEM "file:///etc/passwd">%p;]>',
        b"<!DOCTYPE l [<!ATTLIST Signature Id ID #IMPLIED>]>",
    ],
)
def test_dtd_and_entities(space: Space, prefix: bytes) -> None:
    declaration, body = space.good.split(b"?>", 1)
    assert isinstance(space.load(declaration + b"?>" + prefix + body), Refused)


@pytest.mark.parametrize(
    "xml",
    [
        b"<a>" * 100_000 + b"</a>" * 100_000,
        b"<a " + b" ".join(b'a%d="x"' % number for number in range(100_000)) + b"/>",
        b"<a>" + b"x" * 20_000_000 + b"</a>",
        b'<a xmlns="urn:a">' + b"<b/>" * 500_000 + b"</a>",
        b"\xff" * 1_000_000,
    ],
)
def test_huge(space: Space, xml: bytes) -> None:
    begun = time.perf_counter()
    assert isinstance(space.load(xml), Refused)
    assert time.perf_counter() - begun < 10


@pytest.mark.parametrize("piece", [b"<b/>", b"<b/>x", b'<b c=""/>', b"<?b?>", b"<!---->", b"<b ", b'c=""'])
def test_markup_is_counted_before_it_is_parsed(space: Space, piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty megabytes of the smallest elements are a gigabyte once parsed, and nobody has signed them yet."""
    parsed: list[bytes] = []
    monkeypatch.setattr(etree, "fromstring", lambda xml, _: parsed.append(xml))
    assert isinstance(space.load(b"<a>" + piece * 1_000_001 + b"</a>"), Refused)
    assert not parsed
