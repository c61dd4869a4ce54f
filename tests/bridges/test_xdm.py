"""IHE XDM archives: what is written reads back, what partners send is tolerated, what could hurt is refused."""

from __future__ import annotations

import hashlib
import io
import stat
import zipfile
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from bridges import xdm_refusals as refusals
from bridges.report import Action, Flags, Report
from bridges.xdm import XdmContent, XdmLimits, read_xdm, write_xdm
from bridges.xdm_metadata import (
    DOCUMENT_AUTHOR,
    DOCUMENT_CLASS,
    DOCUMENT_CONFIDENTIALITY,
    DOCUMENT_ENTRY,
    DOCUMENT_FACILITY,
    DOCUMENT_FORMAT,
    DOCUMENT_PATIENT_ID,
    DOCUMENT_PRACTICE_SETTING,
    DOCUMENT_TYPE,
    DOCUMENT_UNIQUE_ID,
    SUBMISSION_AUTHOR,
    SUBMISSION_CONTENT_TYPE,
    SUBMISSION_PATIENT_ID,
    SUBMISSION_SET,
    SUBMISSION_SOURCE_ID,
    SUBMISSION_UNIQUE_ID,
    entry_uuid,
)
from tests.bridges.fictitious import CDA, PATIENT, document, report
from trust.refusals import Refusal, Refused, join_catalogues

AT = datetime(2026, 11, 21, 8, 30, 0, tzinfo=UTC)
NS = {"lcm": "urn:oasis:names:tc:ebxml-regrep:xsd:lcm:3.0", "rim": "urn:oasis:names:tc:ebxml-regrep:xsd:rim:3.0"}


def written(one: Report, action: Action = Action.NEW) -> bytes:
    return write_xdm(one, at=AT, source_id="1.2.3.9", submission_id="1.2.3.9.1", action=action)


def metadata(data: bytes) -> etree._Element:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return etree.fromstring(archive.read("IHE_XDM/SUBSET01/METADATA.XML"))


def slots(element: etree._Element, name: str) -> list[str]:
    return [str(v) for v in element.xpath("rim:Slot[@name=$n]/rim:ValueList/rim:Value/text()", namespaces=NS, n=name)]


def codes(element: etree._Element, scheme: str) -> list[tuple[str, str, str]]:
    found = element.xpath("rim:Classification[@classificationScheme=$s]", namespaces=NS, s=scheme)
    return [
        (c.get("nodeRepresentation"), slots(c, "codingScheme")[0], c.xpath("string(rim:Name/*/@value)", namespaces=NS))
        for c in found
    ]


def identifier(element: etree._Element, scheme: str) -> str:
    path = "string(rim:ExternalIdentifier[@identificationScheme=$s]/@value)"
    return str(element.xpath(path, namespaces=NS, s=scheme))


def zipped(entries: dict[str, bytes | str], **attributes: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo("placeholder")
            info.filename = info.orig_filename = name
            info.compress_type = zipfile.ZIP_DEFLATED
            for attribute, value in attributes.items():
                setattr(info, attribute, value)
            archive.writestr(info, content)
    return buffer.getvalue()


def refused(data: bytes, limits: XdmLimits | None = None) -> Refusal:
    outcome = read_xdm(data, limits or XdmLimits())
    assert isinstance(outcome, Refused)
    return outcome.refusal


def described(uri: str, content: bytes = CDA) -> str:
    digest = hashlib.sha1(content).hexdigest()
    return (
        f'<SubmitObjectsRequest xmlns="urn:x"><ExtrinsicObject><Slot name="URI"><ValueList><Value>{uri}</Value>'
        f'</ValueList></Slot><Slot name="hash"><ValueList><Value>{digest.upper()}</Value></ValueList></Slot>'
        f'<ExternalIdentifier identificationScheme="{DOCUMENT_PATIENT_ID}" value="1^^^&amp;2&amp;ISO"/>'
        "</ExtrinsicObject></SubmitObjectsRequest>"
    )


# what is written


def test_the_archive_has_the_shape_of_the_profile_and_the_same_bytes_each_time() -> None:
    data = written(report(document(), document(content=b"<two/>", unique_id="1.2.3.4.101")))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [
            "INDEX.HTM",
            "README.TXT",
            "IHE_XDM/SUBSET01/METADATA.XML",
            "IHE_XDM/SUBSET01/DOC00001.XML",
            "IHE_XDM/SUBSET01/DOC00002.XML",
        ]
        assert {entry.date_time for entry in archive.infolist()} == {(2026, 11, 21, 8, 30, 0)}
        assert archive.read("IHE_XDM/SUBSET01/DOC00001.XML") == CDA
        assert archive.read("IHE_XDM/SUBSET01/DOC00002.XML") == b"<two/>"
        index = etree.fromstring(archive.read("INDEX.HTM"))
        assert "IHE_XDM/SUBSET01/DOC00002.XML" in index.xpath("//@href")
    assert data == written(report(document(), document(content=b"<two/>", unique_id="1.2.3.4.101")))


def test_each_document_entry_says_all_the_profile_asks() -> None:
    root = metadata(written(report()))
    assert root.tag == f"{{{NS['lcm']}}}SubmitObjectsRequest"
    (entry,) = root.xpath("rim:RegistryObjectList/rim:ExtrinsicObject", namespaces=NS)
    assert entry.get("objectType") == DOCUMENT_ENTRY
    assert entry.get("mimeType") == "text/xml"
    assert entry.get("id") == entry_uuid("1.2.3.4.100^A1")
    assert entry.get("id").startswith("urn:uuid:")
    expected = {
        "hash": [hashlib.sha1(CDA).hexdigest()],
        "size": [str(len(CDA))],
        "URI": ["DOC00001.XML"],
        "creationTime": ["20261121081500"],
        "serviceStartTime": ["20261120070000"],
        "serviceStopTime": [],
        "languageCode": ["fr-FR"],
        "legalAuthenticator": ["801234500002^Valide^Anne^^^^^^&1.2.250.1.71.4.2.1&ISO^D^^^IDNPS"],
        "sourcePatientId": ["IPP42^^^&1.2.3.4.5&ISO^PI"],
        "sourcePatientInfo": [
            "PID-5|Fictif-Élan^Zoé^Zoé Marie^^^^L",
            "PID-5|Imaginaire^Zoé^^^^^D",
            "PID-7|19790328",
            "PID-8|F",
            "PID-11|^^^^^^BDL^^63220",
        ],
        "action": [],
    }
    assert {name: slots(entry, name) for name in expected} == expected
    assert codes(entry, DOCUMENT_CLASS) == [("10", "1.2.250.1.213.1.1.4.1", "Compte rendu")]
    assert codes(entry, DOCUMENT_TYPE) == [("11502-2", "2.16.840.1.113883.6.1", "CR d'examens biologiques")]
    assert codes(entry, DOCUMENT_FORMAT)[0][:2] == ("urn:ihe:lab:xd-lab:2008", "1.3.6.1.4.1.19376.1.2.3")
    assert codes(entry, DOCUMENT_CONFIDENTIALITY) == [("N", "2.16.840.1.113883.5.25", "Normal")]
    assert codes(entry, DOCUMENT_FACILITY)[0] == ("SA25", "1.2.250.1.71.4.2.4", "Laboratoire de biologie médicale")
    assert codes(entry, DOCUMENT_PRACTICE_SETTING)[0] == ("AMBULATOIRE", "1.2.250.1.213.1.1.4.9", "Ambulatoire")
    (author,) = entry.xpath("rim:Classification[@classificationScheme=$s]", namespaces=NS, s=DOCUMENT_AUTHOR)
    assert slots(author, "authorPerson") == ["801234500001^Essai^Paul^^^^^^&1.2.250.1.71.4.2.1&ISO^D^^^IDNPS"]
    assert slots(author, "authorInstitution") == ["Laboratoire Témoin^^^^^&1.2.250.1.71.4.2.2&ISO^IDNST^^^1120000001"]
    assert slots(author, "authorSpecialty") == ["G15_10/SM03^Médecin^1.2.250.1.213.1.1.4.5"]
    assert identifier(entry, DOCUMENT_PATIENT_ID) == "279035121518989^^^&1.2.250.1.213.1.4.8&ISO^NH"
    assert identifier(entry, DOCUMENT_UNIQUE_ID) == "1.2.3.4.100^A1"


def test_the_submission_set_holds_the_documents() -> None:
    root = metadata(written(report(document(), document(unique_id="1.2.3.4.101"))))
    (submission,) = root.xpath("//rim:RegistryPackage", namespaces=NS)
    assert slots(submission, "submissionTime") == ["20261121083000"]
    assert codes(submission, SUBMISSION_CONTENT_TYPE)[0][0] == "07"
    assert identifier(submission, SUBMISSION_SOURCE_ID) == "1.2.3.9"
    assert identifier(submission, SUBMISSION_UNIQUE_ID) == "1.2.3.9.1"
    assert identifier(submission, SUBMISSION_PATIENT_ID).startswith("279035121518989^^^")
    assert submission.xpath("rim:Classification[@classificationScheme=$s]", namespaces=NS, s=SUBMISSION_AUTHOR)
    node = f"//rim:Classification[@classificationNode='{SUBMISSION_SET}'][@classifiedObject='{submission.get('id')}']"
    assert root.xpath(node, namespaces=NS)
    members = root.xpath("//rim:Association[contains(@associationType, 'HasMember')]", namespaces=NS)
    assert {m.get("sourceObject") for m in members} == {submission.get("id")}
    assert [m.get("targetObject") for m in members] == root.xpath("//rim:ExtrinsicObject/@id", namespaces=NS)
    assert all(slots(m, "SubmissionSetStatus") == ["Original"] for m in members)
    ids = root.xpath("//@id")
    assert len(ids) == len(set(ids))


def test_children_stand_in_the_order_of_the_ebrim_schema() -> None:
    ranks = {"Slot": 0, "Name": 1, "Classification": 2, "ExternalIdentifier": 3, "ValueList": 0, "LocalizedString": 0}
    for element in metadata(written(report())).xpath("//rim:RegistryObjectList//*", namespaces=NS):
        order = [ranks[etree.QName(child).localname] for child in element if etree.QName(child).localname in ranks]
        assert order == sorted(order), element.tag


@pytest.mark.parametrize(("action", "code"), [(Action.REPLACE, "C"), (Action.DELETE, "D")])
def test_replace_and_delete_are_asked_in_extra_metadata(action: Action, code: str) -> None:
    data = written(report(document(parent_id="1.2.3.4.99")), action)
    root = metadata(data)
    assert root.xpath("//rim:Slot[@name='action']//rim:Value/text()", namespaces=NS) == [code, code]
    replaced = root.xpath("//rim:Association[@associationType='urn:ihe:iti:2007:AssociationType:RPLC']", namespaces=NS)
    if action is Action.REPLACE:
        before = metadata(written(report(document(unique_id="1.2.3.4.99"))))
        assert [r.get("targetObject") for r in replaced] == before.xpath("//rim:ExtrinsicObject/@id", namespaces=NS)
    else:
        assert not replaced
    read = read_xdm(data)
    assert isinstance(read, XdmContent)
    assert read.documents[0].action == code


def test_masks_become_confidentiality_codes() -> None:
    flags = Flags(masked_to_professionals=True, hidden_from_patient=True, hidden_from_representatives=True)
    root = metadata(written(report(document(confidentiality="V"), flags=flags)))
    (entry,) = root.xpath("//rim:ExtrinsicObject", namespaces=NS)
    assert [code[:2] for code in codes(entry, DOCUMENT_CONFIDENTIALITY)] == [
        ("V", "2.16.840.1.113883.5.25"),
        ("MASQUE_PS", "1.2.250.1.213.1.1.4.13"),
        ("INVISIBLE_PATIENT", "1.2.250.1.213.1.1.4.13"),
        ("INVISIBLE_REPRESENTANTS_LEGAUX", "1.2.250.1.213.1.1.4.13"),
    ]


def test_without_an_ins_the_local_identifier_names_the_patient() -> None:
    nobody = replace(PATIENT, matricule="", matricule_oid="")
    (entry,) = metadata(written(report(patient=nobody))).xpath("//rim:ExtrinsicObject", namespaces=NS)
    assert identifier(entry, DOCUMENT_PATIENT_ID) == "IPP42^^^&1.2.3.4.5&ISO^PI"


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_hostile_names_stay_inside_their_component(family: str, given_name: str) -> None:
    person = replace(PATIENT, birth_name=family, first_names=(given_name,), used_name="")
    root = metadata(written(report(document(title=family), patient=person)))
    (entry,) = root.xpath("//rim:ExtrinsicObject", namespaces=NS)
    assert slots(entry, "sourcePatientInfo")[0].count("^") == 6
    assert isinstance(read_xdm(written(report(document(title=family), patient=person))), XdmContent)


# what is read


def test_what_is_written_reads_back() -> None:
    read = read_xdm(written(report(document(), document(content=b"<two/>", unique_id="1.2.3.4.101"))))
    assert isinstance(read, XdmContent)
    assert not read.findings
    assert [d.content for d in read.documents] == [CDA, b"<two/>"]
    assert [d.unique_id for d in read.documents] == ["1.2.3.4.100^A1", "1.2.3.4.101"]
    assert {d.patient_id for d in read.documents} == {"279035121518989^^^&1.2.250.1.213.1.4.8&ISO^NH"}
    assert all(d.hash_ok for d in read.documents)


def test_a_document_changed_on_the_way_is_told() -> None:
    data = zipped({"IHE_XDM/SS/METADATA.XML": described("A.XML"), "IHE_XDM/SS/A.XML": b"<other/>"})
    read = read_xdm(data)
    assert isinstance(read, XdmContent)
    assert read.documents[0].hash_ok is False
    assert [f.code for f in read.findings] == ["xdm-hash-differs"]


def test_partners_habits_are_tolerated() -> None:
    data = zipped(
        {
            "__MACOSX/._x": b"\0\5",
            ".DS_Store": b"\0",
            "Ccda/ihe_xdm/": b"",
            "Ccda/ihe_xdm/Ss000001/metadata.xml": "\ufeff" + described("./un long nom.XML"),
            "Ccda/ihe_xdm/Ss000001/Un Long Nom.xml": CDA,
            "IHE_XDM/SUBSET02/METADATA.XML": described("1|DOC</Value><Value>2|1.XML"),
            "IHE_XDM/SUBSET02/DOC1.XML": CDA,
        }
    )
    read = read_xdm(data)
    assert isinstance(read, XdmContent)
    assert [d.content for d in read.documents] == [CDA, CDA]
    assert all(d.hash_ok for d in read.documents)
    assert read.documents[0].patient_id == "1^^^&2&ISO"


def test_a_missing_document_is_a_finding_and_none_at_all_a_refusal() -> None:
    second = described("B.XML").partition(">")[2].removesuffix("</SubmitObjectsRequest>")
    two = described("A.XML").replace("</Submit", second + "</Submit")
    read = read_xdm(zipped({"IHE_XDM/S/METADATA.XML": two, "IHE_XDM/S/A.XML": CDA}))
    assert isinstance(read, XdmContent)
    assert [f.code for f in read.findings] == ["xdm-document-missing"]
    assert refused(zipped({"IHE_XDM/S/METADATA.XML": described("A.XML")})) is refusals.XDM_METADATA
    assert refused(zipped({"IHE_XDM/S/A.XML": CDA})) is refusals.XDM_METADATA


@pytest.mark.parametrize(
    "name",
    ["../A.XML", "/A.XML", "S\\..\\A.XML", "C:A.XML", "S/../../A.XML", "S/.."],
)
def test_names_that_climb_are_refused(name: str) -> None:
    assert refused(zipped({"IHE_XDM/S/METADATA.XML": described("A.XML"), name: CDA})) is refusals.XDM_UNSAFE


def test_repeated_names_links_and_nested_archives_are_refused() -> None:
    assert refused(zipped({"S/A.XML": b"1", "s/a.xml": b"2"})) is refusals.XDM_UNSAFE
    assert refused(zipped({"S/A": b"/etc"}, external_attr=(stat.S_IFLNK | 0o777) << 16)) is refusals.XDM_UNSAFE
    assert refused(zipped({"IHE_XDM/A.XML": zipped({"x": b""})})) is refusals.XDM_UNSAFE
    assert refused(zipped({"IHE_XDM/A.ZIP": b"not even one"})) is refusals.XDM_UNSAFE


def test_an_encrypted_archive_is_refused() -> None:
    data = bytearray(zipped({"IHE_XDM/S/METADATA.XML": described("A.XML")}))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    assert refused(bytes(data)) is refusals.XDM_ENCRYPTED


def test_bombs_are_refused_before_they_are_opened() -> None:
    zeros = bytes(8 * 1024 * 1024)
    assert refused(zipped({"IHE_XDM/S/A.XML": zeros})) is refusals.XDM_TOO_LARGE
    many = zipped({f"IHE_XDM/{i}": b"" for i in range(600)})
    assert refused(many) is refusals.XDM_TOO_LARGE
    wide = zipped({f"IHE_XDM/{i}": bytes(900_000) for i in range(20)})
    assert refused(wide, XdmLimits(total_bytes=10_000_000)) is refusals.XDM_TOO_LARGE


def test_a_file_that_is_described_often_is_kept_once() -> None:
    """Metadata of a few octets an entry must not multiply a large file."""
    head, entry = described("A.XML").removesuffix("</SubmitObjectsRequest>").split(">", 1)

    def often(count: int) -> bytes:
        whole = f"{head}>{entry * count}</SubmitObjectsRequest>"
        return zipped({"IHE_XDM/S/METADATA.XML": whole, "IHE_XDM/S/A.XML": CDA})

    read = read_xdm(often(20))
    assert isinstance(read, XdmContent)
    assert len({id(each.content) for each in read.documents}) == 1
    assert refused(often(501)) is refusals.XDM_TOO_LARGE


def test_an_understated_size_does_not_let_a_bomb_through() -> None:
    data = bytearray(zipped({"IHE_XDM/S/METADATA.XML": described("A.XML"), "IHE_XDM/S/A.XML": bytes(4_000_000)}))
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)
    data[second + 24 : second + 28] = (10).to_bytes(4, "little")
    assert refused(bytes(data)) is refusals.XDM_UNREADABLE


@pytest.mark.parametrize(
    "xml",
    [
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><a>&x;</a>',
        '<!DOCTYPE a [<!ENTITY x "y"><!ENTITY z "&x;&x;&x;">]><a>&z;</a>',
        '<!DOCTYPE a SYSTEM "http://127.0.0.1/x.dtd"><a/>',
        "<a>",
        "",
    ],
)
def test_hostile_metadata_is_refused(xml: str) -> None:
    assert refused(zipped({"IHE_XDM/S/METADATA.XML": xml, "IHE_XDM/S/A.XML": CDA})) is refusals.XDM_METADATA


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_quietly(data: bytes) -> None:
    assert isinstance(read_xdm(data), Refused)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_archive_never_raises(data: st.DataObject) -> None:
    good = bytearray(written(report()))
    for _ in range(data.draw(st.integers(1, 6))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    assert isinstance(read_xdm(bytes(good[: data.draw(st.integers(0, len(good)))])), XdmContent | Refused)
    assert isinstance(read_xdm(bytes(good)), XdmContent | Refused)


def test_the_catalogue_is_sound() -> None:
    entries = join_catalogues([refusals.CATALOGUE])
    assert all(e.enhanced[0] == str(e.smtp)[0] and e.text.isascii() for e in entries.values())
