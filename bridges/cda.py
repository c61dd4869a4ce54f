"""CDA R2 documents: the header, and what the body carries, as a `Document`.

The document itself is never changed, rendered or executed. XML is parsed hardened: no DOCTYPE, no entities, no network,
sizes capped. An "auto-presentable" document (an XSLT stylesheet with the ClinicalDocument in
`{urn:asip-sante:ci-sis}Contenu`) is unwrapped, its stylesheet never run.
"""

from __future__ import annotations

import re

from lxml import etree

from bridges import refusals
from bridges.cda_formats import structured_format, unstructured_format
from bridges.cda_results import MAX_RESULTS, V3, narrative, plain_text, results
from bridges.encoded import decode_base64
from bridges.identity import REAL_OIDS, TEST_OIDS
from bridges.report import Document, Finding, Party, PatientIdentity
from trust.refusals import Refused

INS_OIDS = REAL_OIDS | TEST_OIDS
MAX_DOCUMENT_BYTES = 40 * 1024 * 1024
NARRATIVE_LIMIT = 200_000
"""Characters of narrative kept for summaries and search."""
_LONGEST_NAME = 500
_MOST_NAMES = 50
"""Of one person, first names and identifiers; comparing them costs the square."""

_PROFESSIONALS = "1.2.250.1.71.4.2.1"
_WRAPPER = "{urn:asip-sante:ci-sis}Contenu"
_STYLESHEET = "{http://www.w3.org/1999/XSL/Transform}stylesheet"
_PLAIN_TREE_LIMIT = 9_000_000
"""libxml2 refuses text nodes over 10 MB without `huge_tree`, which also lifts its other guards: used only above."""
_ASCII_SUPERSETS = frozenset({"utf-8", "utf8", "us-ascii", "iso-8859-1", "iso-8859-15", "windows-1252"})
_ENCODING = re.compile(rb"""\A<\?xml[^>]{0,100}?\sencoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']""")


def read_cda(content: bytes, *, max_bytes: int = MAX_DOCUMENT_BYTES) -> Document | Refused:
    """Read one document. Never raises on bad input.

    `Document.content` is `content` itself; for an auto-presentable one it is the ClinicalDocument element alone, in
    UTF-8, because that is the document its readers and the dossier can file.
    """
    read = examine(content, max_bytes=max_bytes)
    return read if isinstance(read, Refused) else read[0]


def examine(content: bytes, *, max_bytes: int = MAX_DOCUMENT_BYTES) -> tuple[Document, tuple[Finding, ...]] | Refused:
    """As `read_cda`, with what had to be tolerated."""
    if len(content) > max_bytes:
        return Refused(refusals.DOCUMENT_TOO_LARGE)
    root = _parse(content)
    if isinstance(root, Refused):
        return root
    findings: list[Finding] = []
    if root.tag == _STYLESHEET:
        wrapped = root.find(f".//{_WRAPPER}/{V3}ClinicalDocument")
        if wrapped is None:
            return Refused(refusals.DOCUMENT_NOT_CDA)
        content = etree.tostring(wrapped, encoding="UTF-8", xml_declaration=True, with_tail=False)
        # Read back from the kept bytes, so that what is shown is what is filed.
        root = _parse(content)
        if isinstance(root, Refused):
            return root
        findings.append(Finding("auto-presentable-unwrapped", "ClinicalDocument"))
    if root.tag != V3 + "ClinicalDocument":
        return Refused(refusals.DOCUMENT_NOT_CDA)
    return _document(root, content, findings)


def _parse(content: bytes) -> etree._Element | Refused:
    """The root element. DOCTYPE and entity declarations are refused before any parser sees them: only encodings in
    which ASCII is ASCII are read, and the parser is told which, so that a byte search cannot be evaded."""
    start = content.removeprefix(b"\xef\xbb\xbf")[:256]
    declared = _ENCODING.match(start)
    encoding = declared.group(1).decode("ascii").lower() if declared else "utf-8"
    if encoding not in _ASCII_SUPERSETS or not start.lstrip().startswith(b"<") or b"\x00" in start:
        return Refused(refusals.DOCUMENT_NOT_CDA, "not XML in a supported encoding")
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        return Refused(refusals.DOCUMENT_DTD)
    parser = etree.XMLParser(
        encoding=encoding,
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=len(content) > _PLAIN_TREE_LIMIT,
    )
    try:
        root = etree.fromstring(content, parser)
    except (etree.XMLSyntaxError, ValueError):
        return Refused(refusals.DOCUMENT_NOT_CDA, "not well-formed")
    return root


def _document(
    root: etree._Element, content: bytes, findings: list[Finding]
) -> tuple[Document, tuple[Finding, ...]] | Refused:
    unique_id = _identifier(_find(root, "id"))
    code = _find(root, "code")
    targets = root.findall(V3 + "recordTarget")
    if len(targets) > 1:
        return Refused(refusals.PATIENT_SEVERAL, "recordTarget")
    role = _find(root, "recordTarget/patientRole")
    if role is None or not unique_id or not _get(code, "code"):
        name = "recordTarget" if role is None else "code" if unique_id else "id"
        return Refused(refusals.DOCUMENT_HEADER, name)
    version = _version(root)
    if isinstance(version, Refused):
        return version
    non_xml, structured = _find(root, "component/nonXMLBody"), _find(root, "component/structuredBody")
    if non_xml is None and structured is None:
        return Refused(refusals.DOCUMENT_NOT_CDA, "no body")
    level = 3 if structured is not None else 1
    set_id = _identifier(_find(root, "setId"))
    replaced = [r for r in root.findall(V3 + "relatedDocument") if r.get("typeCode") == "RPLC"]
    parent = _find(replaced[0], "parentDocument") if replaced else None
    parent_set = _identifier(_find(parent, "setId"))
    if parent_set and set_id and parent_set != set_id:
        findings.append(Finding("parent-contradicts-set", "ClinicalDocument/relatedDocument"))
    if not _attribute(root, "confidentialityCode", "code"):
        findings.append(Finding("confidentiality-missing", "ClinicalDocument/confidentialityCode"))
    if level == 3:
        format_code = structured_format(t.get("root", "") for t in root.findall(V3 + "templateId"))
    else:
        format_code = unstructured_format(_attribute(root, "component/nonXMLBody/text", "mediaType"))
    if not format_code:
        findings.append(Finding("format-unknown", "ClinicalDocument/templateId"))
    author = _find(root, "author/assignedAuthor")
    event_time = _find(root, "documentationOf/serviceEvent/effectiveTime")
    document = Document(
        content=content,
        unique_id=unique_id,
        set_id=set_id,
        version=version,
        parent_id=_identifier(_find(parent, "id")),
        type_code=_get(code, "code"),
        type_label=_get(code, "displayName"),
        type_system=_get(code, "codeSystem"),
        title=plain_text(_find(root, "title"), _LONGEST_NAME),
        created=_attribute(root, "effectiveTime", "value"),
        service_start=_get(event_time, "value") or _attribute(event_time, "low", "value"),
        service_stop=_attribute(event_time, "high", "value"),
        language=_attribute(root, "languageCode", "code"),
        confidentiality=_attribute(root, "confidentialityCode", "code"),
        patient=_patient(role),
        author=_author(author),
        author_specialty=_attribute(author, "code", "code"),
        practice_setting=_attribute(
            root,
            "documentationOf/serviceEvent/performer/assignedEntity/representedOrganization/standardIndustryClassCode",
            "code",
        ),
        facility=_attribute(root, "componentOf/encompassingEncounter/location/healthCareFacility/code", "code"),
        level=level,
        format_code=format_code,
        results=results(root) if level == 3 else (),
        pdf=_pdf(root, findings),
        narrative=narrative(root, NARRATIVE_LIMIT) if level == 3 else "",
    )
    if len(document.results) == MAX_RESULTS:
        findings.append(Finding("results-cut", "ClinicalDocument/component"))
    return document, tuple(findings)


def _version(root: etree._Element) -> int | Refused | None:
    written = _attribute(root, "versionNumber", "value").strip()
    if not written:
        return None
    if not re.fullmatch(r"\d{1,9}", written, re.ASCII):
        return Refused(refusals.DOCUMENT_HEADER, "versionNumber")
    return int(written)


def _patient(role: etree._Element) -> PatientIdentity:
    ins = ("", "")
    local: list[tuple[str, str]] = []
    for identifier in role.findall(V3 + "id"):
        root, extension = identifier.get("root", ""), identifier.get("extension", "").strip()
        if root in INS_OIDS and extension and not ins[0]:
            ins = (extension, root)
        elif extension:
            local.append((extension, root))
    birth, used = "", ""
    first: list[str] = []
    going_by: list[str] = []
    for family in role.findall(f"{V3}patient/{V3}name/{V3}family"):
        text, qualifier = plain_text(family, _LONGEST_NAME), family.get("qualifier", "")
        if qualifier in ("SP", "CL"):
            used = used or text
        elif text:
            birth = birth or text
    for given in role.findall(f"{V3}patient/{V3}name/{V3}given")[:_MOST_NAMES]:
        names, qualifier = plain_text(given, _LONGEST_NAME).split()[:_MOST_NAMES], given.get("qualifier", "")
        if qualifier == "BR":
            first = names + [name for name in first if name not in names]
        elif qualifier in ("SP", "CL"):
            going_by += names
        else:
            first += [name for name in names if name not in first]
    return PatientIdentity(
        matricule=ins[0],
        matricule_oid=ins[1],
        birth_name=birth,
        first_names=tuple(first),
        used_name=used,
        birth_date=_attribute(role, "patient/birthTime", "value"),
        sex=_attribute(role, "patient/administrativeGenderCode", "code"),
        birth_place=plain_text(_find(role, "patient/birthplace/place/addr/county")),
        local_ids=tuple(local),
        used_first_names=tuple(going_by),
    )


def _author(author: etree._Element | None) -> Party:
    if author is None:
        return Party()
    identifiers = author.findall(V3 + "id")
    chosen = next((i for i in identifiers if i.get("root") == _PROFESSIONALS), identifiers[0] if identifiers else None)
    organisation = _find(author, "representedOrganization")
    device = _find(author, "assignedAuthoringDevice/softwareName")
    return Party(
        id_nat=_get(chosen, "extension") or _get(chosen, "root"),
        family=plain_text(_find(author, "assignedPerson/name/family")) or plain_text(device),
        given=plain_text(_find(author, "assignedPerson/name/given")),
        organisation=plain_text(_find(organisation, "name")),
        organisation_id=_attribute(organisation, "id", "extension"),
    )


def _pdf(root: etree._Element, findings: list[Finding]) -> bytes | None:
    """The PDF of a level 1 body, else the first embedded one. Anything that does not start with `%PDF-` is no PDF."""
    candidates = root.findall(f"{V3}component/{V3}nonXMLBody/{V3}text")
    candidates += [value for media in root.iter(V3 + "observationMedia") for value in media.findall(V3 + "value")]
    for element in candidates:
        if element.get("mediaType", "").strip().lower() != "application/pdf" or element.get("representation") != "B64":
            continue
        decoded = decode_base64((element.text or "").encode("ascii", "replace"))
        if decoded is not None and decoded.data.startswith(b"%PDF-"):
            return decoded.data
        findings.append(Finding("pdf-unreadable", f"ClinicalDocument//{etree.QName(element).localname}"))
    return None


def _identifier(element: etree._Element | None) -> str:
    """`root` or `root^extension`, the form of XDS uniqueId."""
    root, extension = _get(element, "root").strip(), _get(element, "extension").strip()
    return f"{root}^{extension}" if root and extension else root


def _find(element: etree._Element | None, path: str) -> etree._Element | None:
    if element is None:
        return None
    return element.find("/".join(V3 + step for step in path.split("/")))


def _attribute(element: etree._Element | None, path: str, name: str) -> str:
    return _get(_find(element, path), name)


def _get(element: etree._Element | None, name: str) -> str:
    return str(element.get(name, "")) if element is not None else ""
