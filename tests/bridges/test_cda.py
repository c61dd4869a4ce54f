"""CDA documents: header, results, copy, narrative; and documents that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridges import refusals
from bridges.cda import examine, read_cda
from bridges.cda_formats import structured_format, unstructured_format
from bridges.report import Document, Party, Result
from tests.support import reports
from trust.refusals import Refused

SAMPLES = Path(__file__).parents[2].parent / "shared/samples/cda"
LOINC = "2.16.840.1.113883.6.1"


def read(content: bytes) -> Document:
    document = read_cda(content)
    assert isinstance(document, Document), document
    return document


def refused(content: bytes, **options: int) -> Refused:
    answer = read_cda(content, **options)
    assert isinstance(answer, Refused)
    return answer


def test_header() -> None:
    content = reports.cda(parent_id="1.2.3^OLD", unique_id="1.2.3^NEW", version=2, confidentiality="R")
    document = read(content)
    assert document.content == content
    assert (document.unique_id, document.parent_id, document.version) == ("1.2.3^NEW", "1.2.3^OLD", 2)
    assert document.set_id == "1.2.250.1.999.1.1000"
    assert (document.type_code, document.type_system) == ("11502-2", LOINC)
    assert document.type_label == "CR d'examens biologiques"
    assert document.title == "Compte rendu d'examens biologiques"
    assert document.created == "20261119171000+0100"
    assert (document.service_start, document.service_stop) == ("20261119081500+0100", "20261119170000+0100")
    assert (document.language, document.confidentiality) == ("fr-FR", "R")
    assert document.author == Party("801234500001", "ESSAI-BIOLOGISTE", "Alix", "Laboratoire des essais", "1990000001")
    assert (document.author_specialty, document.practice_setting, document.facility) == (
        "G15_10/SM03",
        "AMBULATOIRE",
        "SA25",
    )
    assert (document.level, document.format_code) == (3, "urn:ihe:lab:xd-lab:2008")
    patient = document.patient
    assert (patient.matricule, patient.matricule_oid) == (reports.PATIENT.matricule, "1.2.250.1.213.1.4.10")
    assert (patient.birth_name, patient.first_names) == ("ESSAI-UN", ("CAMILLE", "ANNE-LISE"))
    assert (patient.birth_date, patient.sex, patient.birth_place) == ("19790230", "F", "63999")
    assert patient.local_ids == (("990001", "1.2.250.1.999.2.1"),)


def test_results() -> None:
    results = {result.code: result for result in read(reports.cda()).results}
    assert results["2823-3"] == Result(
        section="BIOCHIMIE",
        label="Potassium",
        code="2823-3",
        code_system=LOINC,
        value="6.4",
        unit="mmol/L",
        low="3.5",
        high="5.1",
        interpretation="HH",
        effective="20261119171000+0100",
    )
    assert results["718-7"].interpretation == "L" and results["718-7"].section == "HEMATOLOGIE"
    assert (results["1988-5"].value, results["1988-5"].unit, results["1988-5"].high) == ("< 0.5", "mg/L", "5")
    assert results["32171-1"].value == "limpide" and results["5196-1"].value == "Négatif"


def test_quoted_earlier_results_are_not_results() -> None:
    document = read(reports.cda())
    assert [r.value for r in document.results if r.code == "2823-3"] == ["6.4"]
    assert "Potassium | 6.4 mmol/L | 3.5 à 5.1 | 4.6" in document.narrative


def test_interpretation_of_the_reference_range_is_not_the_results() -> None:
    section = reports.Section("X", "1", (reports.Observation("Urée", "22664-7", "Urée", "9", "mmol/L", "2", "7"),))
    assert read(reports.cda(sections=[section])).results[0].interpretation == ""


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ('<value xsi:type="IVL_PQ"><low value="2" unit="g/L"/></value>', ("> 2", "g/L")),
        ('<value xsi:type="IVL_PQ"><low value="2" unit="g/L" inclusive="true"/></value>', (">= 2", "g/L")),
        ('<value xsi:type="IVL_PQ"><low value="2"/><high value="3" unit="g/L"/></value>', ("2 - 3", "g/L")),
        ('<value xsi:type="INT" value="4"/>', ("4", "")),
        ('<value xsi:type="CD" code="A"><originalText>texte</originalText></value>', ("texte", "")),
        ('<value xsi:type="CD"><originalText><reference value="#r1"/></originalText></value>', ("Urée", "")),
        ('<value xsi:type="CD" code="A"/>', ("A", "")),
    ],
)
def test_values(value: str, written: tuple[str, str]) -> None:
    section = reports.Section("X", "1", (reports.Observation("Urée", "22664-7", "Urée", "9", "mmol/L"),))
    content = reports.cda(sections=[section]).replace(b'<value xsi:type="PQ" value="9" unit="mmol/L"/>', value.encode())
    result = read(content).results[0]
    assert (result.value, result.unit) == written


def test_label_falls_back_to_the_display_name() -> None:
    content = reports.cda().replace(b'<reference value="#r3"/>', b'<reference value="#nowhere"/>')
    assert {r.label for r in read(content).results if r.code == "2823-3"} == {"Potassium [Moles/Volume]"}


def test_values_without_meaning_are_left_out() -> None:
    content = reports.cda().replace(b'<value xsi:type="PQ" value="6.4" unit="mmol/L"/>', b'<value nullFlavor="UNK"/>')
    assert "2823-3" not in {r.code for r in read(content).results}


def test_pdf_copy_and_level_1() -> None:
    expected = reports.report_pdf(reports.PATIENT)
    assert read(reports.cda()).pdf == expected
    assert read(reports.cda(with_pdf=False)).pdf is None
    level_1 = read(reports.cda(level=1))
    assert level_1.pdf == expected and level_1.results == () and level_1.narrative == ""
    assert (level_1.level, level_1.format_code) == (1, "urn:ihe:iti:xds-sd:pdf:2008")


def test_a_copy_that_is_no_pdf_is_not_taken() -> None:
    answer = examine(reports.cda(level=1, document_pdf=b"MZ not a pdf"))
    assert isinstance(answer, tuple)
    assert answer[0].pdf is None and "pdf-unreadable" in {f.code for f in answer[1]}


def test_pdf_over_ten_megabytes() -> None:
    big = reports.pdf(["x" * 80] * 150_000)
    assert len(big) > 12_000_000
    assert read(reports.cda(level=1, document_pdf=big)).pdf == big


def test_narrative() -> None:
    narrative = read(reports.cda()).narrative.split("\n")
    assert narrative[:3] == [
        "HEMATOLOGIE",
        "Examen | Résultat | Référence | Antérieur",
        "Hémoglobine | 9.8 g/dL | 11.5 à 14.5 |",
    ]
    assert "Kaliémie contrôlée sur un second tube & communiquée par téléphone." in narrative


def test_narrative_ignores_comments_and_source_line_breaks() -> None:
    content = reports.cda().replace(b"<paragraph>", b"<paragraph>Avant<!-- note -->\n apr\xc3\xa8s ")
    assert "Avant après Kaliémie contrôlée" in read(content).narrative and "note" not in read(content).narrative


def test_auto_presentable_is_unwrapped_not_run() -> None:
    plain = reports.cda()
    answer = examine(reports.auto_presentable(plain))
    assert isinstance(answer, tuple)
    document, findings = answer
    assert b"<script>" not in document.content and b"stylesheet" not in document.content
    assert document.unique_id == read(plain).unique_id and document.results == read(plain).results
    assert [f.code for f in findings] == ["auto-presentable-unwrapped"]
    assert read(document.content).content == document.content


def test_prefixed_namespace() -> None:
    text = reports.cda(with_pdf=False).decode().replace("xmlns=", "xmlns:c=")
    text = text.replace("</", "</c:").replace("<", "<c:").replace("<c:/c:", "</c:").replace("<c:?xml", "<?xml")
    text = text.replace('type="PQ"', 'type="c:PQ"')
    assert {r.code for r in read(text.encode()).results} >= {"2823-3", "718-7"}


def test_findings() -> None:
    content = reports.cda(parent_id="1.2.3").replace(b"</parentDocument>", b'<setId root="9.9"/></parentDocument>')
    content = content.replace(b"1.2.250.1.213.1.1.1.55", b"1.9").replace(b"<confidentialityCode", b"<x")
    answer = examine(content)
    assert isinstance(answer, tuple)
    assert {f.code for f in answer[1]} == {"parent-contradicts-set", "format-unknown", "confidentiality-missing"}


DOCUMENT = reports.cda()
PROLOG, _, BODY = DOCUMENT.partition(b"\n")


@pytest.mark.parametrize(
    ("content", "refusal"),
    [
        (b"", refusals.DOCUMENT_NOT_CDA),
        (b"%PDF-1.4", refusals.DOCUMENT_NOT_CDA),
        (b"Document medical", refusals.DOCUMENT_NOT_CDA),
        (b"<html/>", refusals.DOCUMENT_NOT_CDA),
        (DOCUMENT[:-20], refusals.DOCUMENT_NOT_CDA),
        (DOCUMENT.decode().encode("utf-16"), refusals.DOCUMENT_NOT_CDA),
        (DOCUMENT.replace(b"UTF-8", b"UTF-7"), refusals.DOCUMENT_NOT_CDA),
        (DOCUMENT.replace(b"Potassium", b"Potassium\xff"), refusals.DOCUMENT_NOT_CDA),
        (b'<ClinicalDocument xmlns="urn:hl7-org:v3"/>', refusals.DOCUMENT_HEADER),
        (DOCUMENT.replace(b"structuredBody", b"otherBody"), refusals.DOCUMENT_NOT_CDA),
        (DOCUMENT.replace(b'versionNumber value="1"', b'versionNumber value="one"'), refusals.DOCUMENT_HEADER),
        (DOCUMENT.replace(b'<id root="1.2.250.1.999.1.1001"/>', b""), refusals.DOCUMENT_HEADER),
        (DOCUMENT.replace(b"</recordTarget>", b"</recordTarget><recordTarget/>"), refusals.PATIENT_SEVERAL),
        (PROLOG + b"<!DOCTYPE x>" + BODY, refusals.DOCUMENT_DTD),
        (PROLOG + b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>' + BODY, refusals.DOCUMENT_DTD),
        (reports.auto_presentable(DOCUMENT).replace(b"ClinicalDocument", b"Other"), refusals.DOCUMENT_NOT_CDA),
    ],
)
def test_refused(content: bytes, refusal: object) -> None:
    assert refused(content).refusal is refusal


def test_an_encoding_cannot_hide_a_doctype() -> None:
    # Padded beyond what a naive look at the declaration sees; UTF-7 would spell "<!" without those bytes.
    hidden = b'<?xml version="1.0"' + b" " * 300 + b'encoding="UTF-7"?>+ADwAIQ-DOCTYPE x+AD4-' + BODY
    assert refused(hidden).refusal is refusals.DOCUMENT_NOT_CDA


def test_size_limit() -> None:
    assert refused(DOCUMENT, max_bytes=1000).refusal is refusals.DOCUMENT_TOO_LARGE


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_never_raises(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(DOCUMENT)))
    stop = data.draw(st.integers(start, min(len(DOCUMENT), start + 60)))
    examine(DOCUMENT[:start] + data.draw(st.binary(max_size=20)) + DOCUMENT[stop:])


def test_format_codes() -> None:
    assert structured_format(["1.2.250.1.213.1.1.1.1", "1.2.250.1.213.1.1.1.29"]) == "urn:asip:ci-sis:ldl-ses:2017"
    assert structured_format(["1.2.3"]) == "" and unstructured_format("text/plain") == "urn:ihe:iti:xds-sd:text:2008"


EXPECTED = {
    # name: (level, results, abnormal, has a PDF, formatCode)
    "BIO-CR-BIO_2021.01_Auto-Presentable.xml": (3, 11, 3, False, "urn:ihe:lab:xd-lab:2008"),
    "BIO-CR-BIO_2024.01_Electrophorese.xml": (3, 44, 6, True, "urn:ihe:lab:xd-lab:2008"),
    "BIO-CR-BIO_2024.01_Glycemie_mole.xml": (3, 1, 0, True, "urn:ihe:lab:xd-lab:2008"),
    "BIO-CR-BIO_2024.01_TSH_1.xml": (3, 2, 1, True, "urn:ihe:lab:xd-lab:2008"),
    "BIO-CR-BIO_2024.01_TSH_2.xml": (3, 2, 1, True, "urn:ihe:lab:xd-lab:2008"),
    "CARD-F-PRC-AVK_2022.01.xml": (3, 3, 0, False, "urn:asip:ci-sis:avk:2009"),
    "CNAM-HR_2021.01.xml": (3, 0, 0, False, "urn:asip:ci-sis:hr:2019"),
    "DOC_NON_STRUCTURE_CDA-R2-N1.xml": (1, 0, 0, True, "urn:ihe:iti:xds-sd:pdf:2008"),
    "IMG_CR_IMG_2024.01_CDA-R2-Niveau-1.xml": (1, 0, 0, True, "urn:ihe:iti:xds-sd:pdf:2008"),
    "LDL-SES_2022.01.xml": (3, 0, 0, False, "urn:asip:ci-sis:ldl-ses:2017"),
    "TLM-CR_2022.01.xml": (1, 0, 0, True, "urn:ihe:iti:xds-sd:pdf:2008"),
    "VSM_1.4_2022.01.xml": (3, 1, 0, False, "urn:asip:ci-sis:vsm:2012"),
}


@pytest.mark.samples
@pytest.mark.skipif(not SAMPLES.is_dir(), reason="official CDA samples are not beside this repository")
class TestOfficialSamples:
    def test_all_are_known(self) -> None:
        assert {path.name for path in SAMPLES.glob("*.xml")} == set(EXPECTED)

    @pytest.mark.parametrize("name", sorted(EXPECTED))
    def test_read(self, name: str) -> None:
        document = read((SAMPLES / name).read_bytes())
        abnormal = [r for r in document.results if r.interpretation in ("H", "L", "HH", "LL", "A", "AA")]
        shape = (document.level, len(document.results), len(abnormal), document.pdf is not None, document.format_code)
        assert shape == EXPECTED[name]
        assert document.patient.matricule == "279035121518989"
        assert document.set_id and document.version and document.created and document.author.id_nat
        assert all(r.label and r.code and r.value for r in document.results)
        assert bool(document.narrative) == (document.level == 3)
