"""The trust list ("liste blanche"): which operators may speak for which mail domain.

The official file is one signed XML document, `ListeBlancheMSSante`, with one row per domain and operator certificate.
Nothing in it is believed before its enveloped signature (XML-DSig, exclusive C14N, RSA with SHA-256) is verified with a
certificate the validator accepts, and then only what the verification returns as signed is read, so that elements moved
around the signature are never seen. A list older than the one in use is refused, or an attacker could bring a removed
operator back.

Matching is exact per domain: `mssante.fr` being listed says nothing about `hopital.mssante.fr`.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from lxml import etree
from signxml.algorithms import CanonicalizationMethod, DigestAlgorithm, SignatureConstructionMethod, SignatureMethod
from signxml.signer import XMLSigner
from signxml.verifier import SignatureConfiguration, XMLVerifier

from trust.certificates import CertificateValidator, PathVerdict, Purpose
from trust.listed_names import parse_listed, subject_of
from trust.names import DistinguishedName
from trust.pki_catalogue import (
    LIST_ALTERED,
    LIST_FROM_FUTURE,
    LIST_OLD,
    LIST_SIGNER,
    LIST_UNREADABLE,
    LIST_UNSIGNED,
)
from trust.refusals import Refused

NAMESPACE = "https://listeblanche.mssante.fr/schema"
MAX_BYTES = 32 * 1024 * 1024
"""The real list has 4 to 5 MB for 6,500 to 8,700 rows."""
MAX_ROWS = 100_000
MAX_MARKUP = 1_000_000
"""`<` and `=` in the document: the real list has 17 a row. An element or attribute of four octets takes two hundred in
memory, and the document is parsed before anybody's signature is known."""
MAX_CERTIFICATES = 8
"""Certificates read from KeyInfo."""
REVOCATION_UNKNOWN = "relais-revocation-unknown"
"""The validator's rule where nobody says whether a certificate on an otherwise good path was revoked."""
FUTURE_TOLERANCE = timedelta(days=1)
"""How far ahead of our clock a list may be dated: one accepted from far ahead would lock out all its successors."""

_DS = "{http://www.w3.org/2000/09/xmldsig#}"
_LB = f"{{{NAMESPACE}}}"
_EXCLUSIVE_C14N = CanonicalizationMethod.EXCLUSIVE_XML_CANONICALIZATION_1_0.value
_TRANSFORMS = [SignatureConstructionMethod.enveloped.value, _EXCLUSIVE_C14N]
_OFFICIAL = frozenset(
    (f"{_DS}{parent}", f"{_DS}{child}")
    for parent, children in (
        ("Signature", ("SignedInfo", "SignatureValue", "KeyInfo")),
        ("SignedInfo", ("CanonicalizationMethod", "SignatureMethod", "Reference")),
        ("Reference", ("Transforms", "DigestMethod", "DigestValue")),
        ("Transforms", ("Transform",)),
        ("KeyInfo", ("X509Data",)),
        ("X509Data", ("X509Certificate", "X509SubjectName", "X509IssuerSerial", "X509SKI")),
        ("X509IssuerSerial", ("X509IssuerName", "X509SerialNumber")),
    )
    for child in children
)
"""Parent and child, as the official list's signature has them, and its X509Data might."""
_DOMAIN = re.compile(
    r"(?=.{1,253}$)[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)+"
)


@dataclass(frozen=True, slots=True)
class TrustList:
    """One verified trust list. Build it with `load`; immutable, so it may be shared between threads."""

    generated_at: datetime
    """DateDeGeneration, in UTC."""
    signer: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    """What came with the signer's certificate."""
    digest: str
    """SHA-256 of the whole document, hexadecimal: by it a person says which list is meant."""
    rows: int
    """Rows in the document, readable or not."""
    unreadable: tuple[str, ...]
    """Domains with a row whose operator name could not be read: that row counts for nothing, the others do."""
    _operators: Mapping[str, frozenset[DistinguishedName]]
    _domains: Mapping[DistinguishedName, frozenset[str]]

    @classmethod
    def load(
        cls,
        xml: bytes,
        validator: CertificateValidator,
        at: datetime,
        not_before: datetime | None = None,
        signer: DistinguishedName | None = None,
        kept: bool = False,
    ) -> TrustList | Refused:
        """Verify and read a list at the moment `at` (aware).

        `not_before` is `generated_at` of the list in use: an older one is refused, the same one is not.
        `signer` is the subject the signing certificate must have. Give it whenever `validator` knows the anchors of a
        whole PKI: without it any organisation with a mail signing certificate under them could sign a list.
        `kept` says that this very document was believed before: that nobody can be asked about revocation today, after
        a restart without a network, is then no reason against it. That the signer was revoked is.
        """
        root = _parse(xml)
        if isinstance(root, Refused):
            return root
        signature = _only_signature(root)
        if isinstance(signature, Refused):
            return signature
        chain = _signer(signature, validator, at, signer, kept)
        if isinstance(chain, Refused):
            return chain
        signed = _signed_part(xml, chain[0], at)
        if isinstance(signed, Refused):
            return signed
        return cls._read(signed, chain, hashlib.sha256(xml).hexdigest(), at, not_before)

    @classmethod
    def _read(
        cls,
        signed: etree._Element,
        chain: tuple[x509.Certificate, ...],
        digest: str,
        at: datetime,
        not_before: datetime | None,
    ) -> TrustList | Refused:
        """The rows of a verified list."""
        if signed.tag != f"{_LB}ListeBlancheMSSante":
            return Refused(LIST_UNREADABLE, "root element")
        try:
            written = datetime.fromisoformat(_text(signed, "DateDeGeneration"))
            if written.tzinfo is None:
                return Refused(LIST_UNREADABLE, "DateDeGeneration without time zone")
            generated_at = written.astimezone(UTC)
        except (ValueError, OverflowError):
            return Refused(LIST_UNREADABLE, "DateDeGeneration")
        if generated_at > at + FUTURE_TOLERANCE:
            return Refused(LIST_FROM_FUTURE, generated_at.isoformat())
        if not_before is not None and generated_at < not_before:
            return Refused(LIST_OLD, generated_at.isoformat())
        operators: dict[str, set[DistinguishedName]] = {}
        domains: dict[DistinguishedName, set[str]] = {}
        unreadable: dict[str, None] = {}
        names: dict[str, DistinguishedName] = {}  # thousands of rows name a few hundred operators
        count = 0
        for count, row in enumerate(signed.iterfind(f"{_LB}ListeDomaines/{_LB}Domaine"), start=1):
            if count > MAX_ROWS:
                return Refused(LIST_UNREADABLE, f"more than {MAX_ROWS} rows")
            listed, operator = _text(row, "Nom"), _text(row, "DNCertificatOperateur")
            domain = _ascii_domain(listed)
            try:
                name = names.get(operator) or parse_listed(operator)
            except ValueError:
                name = None
            if not domain or name is None:
                unreadable[domain or listed[:253]] = None
                continue
            names[operator] = name
            operators.setdefault(domain, set()).add(name)
            domains.setdefault(name, set()).add(domain)
        return cls(
            generated_at,
            chain[0],
            chain[1:],
            digest,
            count,
            tuple(unreadable),
            {domain: frozenset(names) for domain, names in operators.items()},
            {name: frozenset(domains) for name, domains in domains.items()},
        )

    def operators_of(self, domain: str) -> frozenset[DistinguishedName]:
        """Operators that may speak for exactly this domain (any case, IDNA or Unicode); empty when it is not listed."""
        return self._operators.get(_ascii_domain(domain), frozenset())

    def is_trusted(self, domain: str) -> bool:
        """Whether the domain is listed."""
        return bool(self.operators_of(domain))

    def is_operator(self, name: DistinguishedName) -> bool:
        """Whether this name is listed for any domain."""
        return name in self._domains

    def domains_of(self, name: DistinguishedName) -> frozenset[str]:
        """Domains (lower case, A-labels) this operator may speak for."""
        return self._domains.get(name, frozenset())

    @property
    def domains(self) -> frozenset[str]:
        """All domains that some operator may speak for."""
        return frozenset(self._operators)

    @property
    def operators(self) -> frozenset[DistinguishedName]:
        """All operators."""
        return frozenset(self._domains)

    @property
    def pairs(self) -> Iterator[tuple[str, DistinguishedName]]:
        """Every (domain, operator), each once: what the list lets happen."""
        return ((domain, name) for domain, names in self._operators.items() for name in names)

    def judge_signer(self, validator: CertificateValidator, at: datetime) -> PathVerdict:
        """Whether the signer's certificate would still be believed at `at`."""
        return validator.validate(self.signer, self.chain, Purpose.LIST_SIGNATURE, at)


@dataclass(frozen=True, slots=True)
class ListedDomain:
    """One row to write."""

    domain: str
    operator: DistinguishedName | str
    """Subject of the operator's certificate; text is written as it is."""
    description: str


def write_trust_list(
    domains: Sequence[ListedDomain],
    generated_at: datetime,
    signer_key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
    signer_certificate: x509.Certificate,
    chain: Sequence[x509.Certificate],
) -> bytes:
    """A signed list in the official shape, for the demonstration's authority: UTF-8 XML that `TrustList.load` accepts.

    `generated_at` is aware and written in UTC to the second. Raises ValueError on text XML cannot hold, and on a key
    that is not RSA: the official list is signed with rsa-sha256 and readers expect nothing else.
    """
    if not isinstance(signer_key, rsa.RSAPrivateKey):
        raise ValueError("the trust list is signed with an RSA key")
    written_at = generated_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    root: etree._Element = etree.Element(f"{_LB}ListeBlancheMSSante", nsmap={None: NAMESPACE})  # type: ignore[dict-item]
    etree.SubElement(root, f"{_LB}DateDeGeneration").text = written_at
    rows = etree.SubElement(root, f"{_LB}ListeDomaines")
    for listed in domains:
        row = etree.SubElement(rows, f"{_LB}Domaine")
        for tag, text in (
            ("Nom", listed.domain),
            ("Description", listed.description),
            ("DNCertificatOperateur", str(listed.operator)),
            ("ResponsableContact", ""),
            ("SupportContact", ""),
            ("DateMAJ", written_at),
        ):
            etree.SubElement(row, f"{_LB}{tag}").text = text
    signed = XMLSigner(
        method=SignatureConstructionMethod.enveloped,
        signature_algorithm=SignatureMethod.RSA_SHA256,
        digest_algorithm=DigestAlgorithm.SHA256,
        c14n_algorithm=CanonicalizationMethod.EXCLUSIVE_XML_CANONICALIZATION_1_0,
    ).sign(root, key=signer_key, cert=[signer_certificate, *chain])
    return bytes(etree.tostring(signed, xml_declaration=True, encoding="UTF-8"))


def _parser() -> etree.XMLParser:
    return etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)


def _parse(xml: bytes) -> etree._Element | Refused:
    """The document, before anything in it is believed. No DOCTYPE: a list has no use for entities."""
    if len(xml) > MAX_BYTES:
        return Refused(LIST_UNREADABLE, f"larger than {MAX_BYTES} bytes")
    if xml.count(b"<") + xml.count(b"=") > MAX_MARKUP:
        return Refused(LIST_UNREADABLE, f"more than {MAX_MARKUP} elements and attributes")
    if b"<!DOCTYPE" in xml or b"<!ENTITY" in xml:
        return Refused(LIST_UNREADABLE, "DOCTYPE")
    try:
        root = etree.fromstring(xml, _parser())
    except (etree.XMLSyntaxError, ValueError) as error:
        return Refused(LIST_UNREADABLE, f"not XML, line {getattr(error, 'lineno', 0)}")
    document = root.getroottree().docinfo
    # other encodings could have hidden the DOCTYPE from the search above
    if document.internalDTD is not None or (document.encoding or "UTF-8").upper() not in ("UTF-8", "ASCII", "US-ASCII"):
        return Refused(LIST_UNREADABLE, "DOCTYPE or encoding")
    return root


def _only_signature(root: etree._Element) -> etree._Element | Refused:
    """The one signature, a child of the root over the whole document, with the official transforms and no others."""
    signatures = list(root.iter(f"{_DS}Signature"))
    if len(signatures) != 1 or signatures[0].getparent() is not root:
        return Refused(LIST_UNSIGNED, f"{len(signatures)} signatures")
    references = list(signatures[0].iter(f"{_DS}Reference"))
    if len(references) != 1 or references[0].get("URI") != "":
        return Refused(LIST_UNSIGNED, "the signature does not cover the whole document")
    if [transform.get("Algorithm") for transform in references[0].iter(f"{_DS}Transform")] != _TRANSFORMS:
        return Refused(LIST_UNSIGNED, "transforms")
    methods = [method.get("Algorithm") for method in signatures[0].iter(f"{_DS}CanonicalizationMethod")]
    if methods != [_EXCLUSIVE_C14N]:
        return Refused(LIST_ALTERED, "canonicalization of the signature")
    unexpected = next((element for element in signatures[0].iter() if not _is_official(element)), None)
    if unexpected is not None:
        # inside the signature nothing is signed but SignedInfo: what we do not read must not be there to mislead others
        return Refused(LIST_ALTERED, f"unexpected content in the signature, line {unexpected.sourceline}")
    return signatures[0]


def _is_official(element: etree._Element) -> bool:
    """Whether the official signature has this element there too: no Object, no KeyValue, no comment, no XPath."""
    if not isinstance(element.tag, str):  # comments and processing instructions would split values
        return False
    if element.tag == f"{_DS}Signature":
        return True
    parent = element.getparent()
    return parent is not None and (str(parent.tag), element.tag) in _OFFICIAL


def _signer(
    signature: etree._Element,
    validator: CertificateValidator,
    at: datetime,
    expected: DistinguishedName | None,
    kept: bool,
) -> tuple[x509.Certificate, ...] | Refused:
    """The certificates in KeyInfo, the signer's first, once a path is found for it.

    XML-DSig gives them no order (§4.5.4): where a signer is expected, it is whichever has its name.
    """
    elements = signature.findall(f"{_DS}KeyInfo/{_DS}X509Data/{_DS}X509Certificate")
    try:
        certificates = [
            x509.load_der_x509_certificate(b64decode(element.text or "")) for element in elements[:MAX_CERTIFICATES]
        ]
    except Exception:  # the parser has no common error class, and warns about odd serial numbers
        return Refused(LIST_SIGNER, "unreadable certificate")
    if not certificates:
        return Refused(LIST_SIGNER, "no certificate")
    if expected is not None:
        certificates.sort(key=lambda each: _subject(each) != expected)
    certificate, *intermediates = certificates
    verdict = validator.validate(certificate, intermediates, Purpose.LIST_SIGNATURE, at)
    if not verdict.ok and not (kept and verdict.rule == REVOCATION_UNKNOWN):
        return Refused(LIST_SIGNER, f"{verdict.rule}: {verdict.detail}")
    if expected is not None and _subject(certificate) != expected:
        return Refused(LIST_SIGNER, "trusted, but not the expected signer")
    return (certificate, *intermediates)


def _subject(certificate: x509.Certificate) -> DistinguishedName | None:
    try:
        return subject_of(certificate)
    except ValueError:
        return None


def _signed_part(xml: bytes, certificate: x509.Certificate, at: datetime) -> etree._Element | Refused:
    """What the signature covers, parsed again from the very bytes that were hashed."""
    try:
        result = XMLVerifier().verify(
            xml,
            x509_cert=certificate,
            parser=_parser(),
            expect_config=SignatureConfiguration(
                location="./",
                signature_methods=frozenset({SignatureMethod.RSA_SHA256}),
                digest_algorithms=frozenset({DigestAlgorithm.SHA256}),
                verification_time=at,
            ),
        )
    except Exception as error:  # hostile signatures raise signxml, lxml, base64 and type errors: none of them verifies
        return Refused(LIST_ALTERED, type(error).__name__)
    if isinstance(result, list) or result.signed_xml is None:
        return Refused(LIST_ALTERED, "nothing signed")
    return result.signed_xml


def _text(parent: etree._Element, tag: str) -> str:
    """The text of the only child of that name; empty when there is none, or several to choose from."""
    children = parent.findall(f"{_LB}{tag}")
    return str(children[0].xpath("string()")).strip() if len(children) == 1 else ""


def _ascii_domain(domain: str) -> str:
    """The domain as it is compared: A-labels in lower case without a final dot; empty when it is not a domain.

    Letters in another case or composed otherwise are the same domain; what IDNA 2003 would change beyond that (`ß`,
    characters of no width, other dots and letter widths) is not, for IDNA 2008 reads it differently (RFC 5894 §7.2).
    """
    if len(domain) > 1000:
        return ""
    text = domain.removesuffix(".")
    if not text.isascii():
        try:
            encoded = text.encode("idna")
            if encoded.decode("idna") != unicodedata.normalize("NFC", text.lower()):
                return ""
            text = encoded.decode("ascii")
        except UnicodeError:
            return ""
    text = text.lower()
    return text if _DOMAIN.fullmatch(text) else ""
