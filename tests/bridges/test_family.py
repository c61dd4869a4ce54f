"""Shapes of the official examples' family, from the message to the mail and the record: twins, withdrawals, orphans,
older profile versions, identities and names. Every message here is synthetic."""

from __future__ import annotations

import email
import email.policy
import io
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path

import pypdfium2
import pytest
from lxml import etree

from bridges import pdf, refusals
from bridges.compose import ComposeOptions, compose
from bridges.dossier import refusals as dossier_refusals
from bridges.dossier.entries import AvailabilityStatus, Deposited
from bridges.dossier.target import DossierTarget
from bridges.hl7 import reader
from bridges.report import Action, Audience, Report
from bridges.routing import NOT_REQUESTED, Lookup, RoutingOptions, route
from bridges.summary import body
from mta.message import Failed, Message, Origin
from tests.bridges.fictitious import PATIENT, document, report, result
from tests.bridges.test_dossier import House
from tests.support import reports
from tests.support.reports import DOCTOR, Flags, cda, message, to_patient
from trust.refusals import Refused

PROFESSIONAL, SICK = Audience.PROFESSIONAL, Audience.PATIENT
OPTIONS = ComposeOptions("NIL-1", "production", "relais.example")
ROUTING = RoutingOptions(frozenset(), frozenset({"patient.mssante.fr"}), dossier=True)
N1 = cda(level=1, unique_id="1.2.250.1.999.1.1101").replace(b"18748-4", b"11502-2")
N3 = cda()
"""The twins of one report: two identifiers, one setId, one version."""


def parse(frame: bytes) -> Report:
    parsed = reader.parse(frame, environment="test")
    assert isinstance(parsed, Report), parsed
    return parsed


def codes(one: Report) -> set[str]:
    return {finding.code for finding in one.findings}


def mail(one: Report, audience: Audience = PROFESSIONAL, **changes: str) -> EmailMessage:
    data = compose(
        one,
        audience=audience,
        sender_address="labo@labo.mssante.example",
        sender_name="Laboratoire",
        recipient_address="jean.test@praticien.mssante.example",
        recipient_name="Jean TEST",
        message_id="<a.1@relais.example>",
        at=datetime(2026, 11, 21, 9, 30, tzinfo=UTC),
        options=replace(OPTIONS, **changes),  # type: ignore[arg-type]
    )
    return email.message_from_bytes(data, policy=email.policy.default)  # type: ignore[return-value]


def text_of(one: EmailMessage) -> str:
    return str(next(iter(one.iter_parts())).get_content())


def files_of(one: EmailMessage) -> dict[str, bytes]:
    return {part.get_filename(): part.get_content() for part in one.iter_parts() if part.get_filename()}


def metadata_of(one: EmailMessage) -> etree._Element:
    with zipfile.ZipFile(io.BytesIO(files_of(one)["IHE_XDM.zip"])) as archive:
        return etree.fromstring(archive.read("IHE_XDM/SUBSET01/METADATA.XML"))


def pdf_text(data: bytes) -> str:
    opened = pypdfium2.PdfDocument(data)
    pages = []
    for page in opened:
        text_page = page.get_textpage()
        pages.append(text_page.get_text_bounded())
        text_page.close()
        page.close()
    opened.close()
    return " ".join(" ".join(pages).split())


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path, f"sqlite:///{tmp_path}/relais.db")
    yield house
    house.database.close()


# Twins


def test_twins_travel_together_and_are_told_once() -> None:
    one = parse(message(documents=[N1, N3]))
    read = mail(one)
    text = text_of(read)
    assert read["Subject"].startswith("XDM/1.0/DDM+CR d'")
    assert text.count("Document : ") == 1
    assert "sous deux formes" in text
    assert "RÉSULTATS CRITIQUES" in text
    assert "Voir le PDF joint." not in text
    with zipfile.ZipFile(io.BytesIO(files_of(read)["IHE_XDM.zip"])) as archive:
        assert [archive.read(f"IHE_XDM/SUBSET01/DOC0000{n}.XML") for n in (1, 2)] == [N1, N3]
    # both forms carry the same PDF here: one file is enough
    assert len(files_of(read)) == 2
    other = parse(message(documents=[N1, cda(document_pdf=reports.pdf(["autre mise en page"]))]))
    assert len(files_of(mail(other))) == 3


def test_twins_are_filed_replaced_and_deleted_as_two_documents(house: House) -> None:
    first = house.filed(parse(message(documents=[N1, N3])))
    assert len({entry.logical_id for entry in first}) == 2
    assert {entry.set_id for entry in first} == {"1.2.250.1.999.1.1000"}
    later = [
        cda(level=1, unique_id="1.2.250.1.999.1.1102", version=2, parent_id="1.2.250.1.999.1.1101"),
        cda(unique_id="1.2.250.1.999.1.1002", version=2, parent_id="1.2.250.1.999.1.1001"),
    ]
    second = house.filed(parse(message(action=Action.REPLACE, documents=later)))
    assert [entry.logical_id for entry in second] == [entry.logical_id for entry in first]
    deleted = house.filed(parse(message(action=Action.DELETE, documents=later)))
    assert {entry.status for entry in deleted} == {AvailabilityStatus.DELETED}


def test_a_document_that_splits_into_twins_stays_two_documents(house: House) -> None:
    (first,) = house.filed(parse(message(documents=[N3])))
    later = [
        cda(level=1, unique_id="1.2.250.1.999.1.1102", version=2, parent_id="1.2.250.1.999.1.1101"),
        cda(unique_id="1.2.250.1.999.1.1002", version=2, parent_id="1.2.250.1.999.1.1001"),
    ]
    second = house.filed(parse(message(action=Action.REPLACE, documents=later)))
    assert len({entry.logical_id for entry in second}) == 2
    assert first.logical_id in {entry.logical_id for entry in second}


def test_withdrawn_twins_go_even_when_one_never_came(house: House) -> None:
    house.filed(parse(message(documents=[N3])))
    answer = house.deposit(parse(message(action=Action.DELETE, documents=[N1, N3])))
    assert isinstance(answer, Deposited)
    assert [(entry.unique_id, entry.status) for entry in answer.entries] == [
        ("1.2.250.1.999.1.1001", AvailabilityStatus.DELETED)
    ]
    assert [finding.code for finding in answer.findings] == ["not-held"]
    assert house.refused(parse(message(action=Action.DELETE, documents=[N1]))) is dossier_refusals.NOT_HELD


# Withdrawals


@pytest.mark.parametrize("kind", ["ORU", "MDM"])
def test_a_withdrawal_says_so_first_whatever_the_sender_wrote(kind: str) -> None:
    old_words = "Cher confrère, vous trouverez ci-joint le CR."
    one = parse(message(kind=kind, action=Action.DELETE, body_professional=old_words, body_patient="Voici."))
    for audience in Audience:
        read = mail(one, audience)
        text = text_of(read)
        assert "retiré par son auteur" in text.split("\n")[0]
        assert "RÉSULTATS" not in text
        (name,) = set(files_of(read)) - {"IHE_XDM.zip"}
        assert "_RETRAIT-" in name
        notice = pdf_text(files_of(read)[name])
        assert "DOCUMENT RETIRÉ PAR SON AUTEUR" in notice
        assert "Potassium" not in notice
        (slot,) = metadata_of(read).xpath(
            "//*[local-name()='ExtrinsicObject']/*[@name='action']//text()[normalize-space()]"
        )
        assert slot == "D"
    assert old_words in text_of(mail(one))
    assert "RETIRÉ : document 1.2.250.1.999.1.1001" in text_of(mail(one))


def test_a_replacement_says_so_first_whatever_the_sender_wrote() -> None:
    one = parse(message(action=Action.REPLACE, body_professional="Cher confrère, ci-joint le CR."))
    assert text_of(mail(one)).startswith("Le document ci-joint remplace une version déjà envoyée")


@pytest.mark.parametrize("kind", ["ORU", "MDM"])
def test_a_withdrawal_deletes_in_the_record_and_an_unknown_one_is_answered(house: House, kind: str) -> None:
    assert house.refused(parse(message(kind=kind, action=Action.DELETE))) is dossier_refusals.PATIENT_UNKNOWN
    house.filed(parse(message(kind=kind)))
    unknown = parse(message(kind=kind, action=Action.DELETE, unique_id="1.2.250.1.999.1.9999"))
    assert house.refused(unknown).application == "900"
    (deleted,) = house.filed(parse(message(kind=kind, action=Action.DELETE)))
    assert deleted.status is AvailabilityStatus.DELETED


# Orphan replacements


async def test_a_replacement_of_the_never_received_fails_at_the_record_alone(house: House) -> None:
    frame = message(kind="MDM", action=Action.REPLACE)
    one = parse(frame)
    assert text_of(mail(one))
    deliveries = route(one, lambda _: Lookup.LATER, lambda _: True, ROUTING)
    assert [delivery.refused for delivery in deliveries] == [None, None, None]
    target = DossierTarget(house.dossier, parse)
    try:
        outcome = await target.deliver(
            Message(
                spool_id="s1",
                delivery_id="d1",
                origin=Origin.MLLP,
                sender="labo@labo.example",
                recipient="dossier",
                peer="labo",
                content=frame,
                content_type="application/hl7-v2",
                message_id="<a@b.example>",
                accepted_at=1.0,
            )
        )
    finally:
        target.close()
    assert isinstance(outcome, Failed)
    assert outcome.reason.refusal.application == "900"


def test_txa_13_names_the_parent_when_the_document_does_not(house: House) -> None:
    house.filed(parse(message(kind="MDM", set_id="")))
    one = parse(message(kind="MDM", action=Action.REPLACE, parent_id="", set_id=""))
    assert one.documents[0].parent_id == "1.2.250.1.999.1.1001"
    assert "parent-missing" in codes(one)
    assert "Remplace : document 1.2.250.1.999.1.1001" in text_of(mail(one))
    assert metadata_of(mail(one)).xpath("//*[@associationType='urn:ihe:iti:2007:AssociationType:RPLC']")
    house.filed(one)
    with_name = message(kind="MDM", action=Action.REPLACE, parent_id="", set_id="")
    with_name = with_name.replace(b"|1.2.250.1.999.1.1001|", b"|1.2.250.1.999.1.1001^Organisation-Y|")
    assert parse(with_name).documents[0].parent_id == "1.2.250.1.999.1.1001"


# Identities


@pytest.mark.parametrize(
    ("oid", "environment", "said"),
    [
        ("1.2.250.1.213.1.4.8", "production", "O"),
        ("1.2.250.1.213.1.4.9", "production", "O"),
        ("1.2.250.1.213.1.4.10", "production", "N"),
        ("1.2.250.1.213.1.4.8", "test", "N"),
        ("1.2.250.1.213.1.4.10", "test", "N"),
        ("1.2.250.1.213.1.4.2", "production", "N"),
    ],
)
def test_a_qualified_ins_is_never_announced_by_a_test_gateway(oid: str, environment: str, said: str) -> None:
    one = parse(message(patient=replace(reports.PATIENT, oid=oid)))
    assert mail(one, environment=environment)["X-MSS-INS"] == said


def test_without_ins_the_mail_leaves_and_the_record_refuses(house: House) -> None:
    nobody = replace(reports.PATIENT, matricule="")
    frame = message(patient=nobody, recipients=(DOCTOR,), documents=[cda(patient=nobody)])
    one = parse(frame)
    assert "ins-missing" in codes(one)
    (patient_id,) = metadata_of(mail(one)).xpath(
        "//*[@identificationScheme='urn:uuid:58a6f841-87b3-4a3e-92fd-a8ffeff98427']/@value"
    )
    assert patient_id.startswith("990001^^^&990000001")
    assert house.refused(one).application == "903"


def test_an_authority_that_differs_is_mailed_flagged_and_not_filed(house: House) -> None:
    real = replace(reports.PATIENT, oid="1.2.250.1.213.1.4.8")
    one = parse(message(patient=real, documents=[cda()]))
    assert "ins-authority-differs" in codes(one)
    assert house.refused(one).application == "904"


def test_set_identical_to_identifier_and_identifiers_with_and_without_extension(house: House) -> None:
    same = "1.2.250.1.999.1.1001"
    house.filed(parse(message(documents=[cda(unique_id=same, set_id=same)])))
    later = cda(unique_id="1.2.250.1.999.1.5^B2", set_id=same, version=2, parent_id="1.2.250.1.999.1.4")
    answer = house.deposit(parse(message(action=Action.REPLACE, documents=[later])))
    assert isinstance(answer, Deposited)
    assert [finding.code for finding in answer.findings] == ["parent-contradicts-set"]
    assert answer.entries[0].unique_id == "1.2.250.1.999.1.5^B2"


# The patient's mail


def test_the_patients_own_pdf_carries_no_alarm() -> None:
    one = document(results=(result(interpretation="LL"), result("Plaquettes", "480", low="150", high="400")))
    patients, doctors = (pdf_text(pdf.twin(report(), one, audience)) for audience in (SICK, PROFESSIONAL))
    assert "13.0 g/dL" in patients
    assert "[150 - 400]" in patients
    for alarm in ("CRITIQUE", "(LL)", "hors bornes", "▲", "▼", "●", "symbole"):
        assert alarm not in patients
    assert "CRITIQUE, très bas (LL)" in doctors
    (name,) = set(files := files_of(mail(report(one), SICK))) - {"IHE_XDM.zip"}
    assert pdf_text(files[name]) == patients


def test_a_patients_mailbox_without_person_is_the_patients() -> None:
    frame = message(recipients=(replace(to_patient(reports.PATIENT), identifier=""), DOCTOR))
    one = parse(frame)
    assert [c.audience for c in one.correspondents] == [SICK, PROFESSIONAL]
    assert all(d.refused is None for d in route(one, lambda _: Lookup.LATER, lambda _: True, ROUTING))
    stranger = replace(to_patient(reports.OTHER_PATIENT), identifier="")
    (refused, *_) = route(parse(message(recipients=(stranger,))), lambda _: Lookup.LATER, lambda _: True, ROUTING)
    assert refused.refused is not None


# What the documents say


def test_a_synthesis_is_read_by_its_text_not_by_its_few_numbers() -> None:
    one = document(
        type_code="SYNTH",
        type_label="Synthèse",
        format_code="urn:asip:ci-sis:vsm:2012",
        results=(result("Tabac", "25"),),
        narrative="Allergies\nParacétamol",
    )
    assert "Paracétamol" in body(report(one), PROFESSIONAL, "production")
    assert "AUTRES RÉSULTATS" not in body(report(one), PROFESSIONAL, "production")
    assert "Vos résultats" not in body(report(one), SICK, "production")
    assert "Paracétamol" in pdf_text(pdf.twin(report(), one))
    urgent = replace(one, results=(result("Kaliémie", "6.9", interpretation="HH"),))
    text = body(report(urgent), PROFESSIONAL, "production")
    assert text.index("Kaliémie") < text.index("Paracétamol")


def test_a_long_text_is_cut_but_not_its_conclusion() -> None:
    story = [f"ligne {i}" for i in range(60)]
    one = document(type_code="18748-4", format_code="", narrative="\n".join([*story, "Conclusion", "Fracture du col."]))
    text = body(report(one), PROFESSIONAL, "production")
    assert text.index("Fracture du col.") < text.index("ligne 0\n")
    assert text.count("Fracture") == 1
    assert "ligne 40" not in text
    assert "texte abrégé" in text
    early = replace(one, narrative="\n".join(["Conclusion", "Rien.", *story]))
    assert body(report(early), PROFESSIONAL, "production").count("Rien.") == 1
    middle = replace(one, narrative="\n".join([*story[:35], "Conclusion :", "Rien.", *story[35:]]))
    assert body(report(middle), PROFESSIONAL, "production").count("Rien.") == 1


def test_the_laboratorys_comments_are_in_the_rendered_pdf() -> None:
    one = parse(message(with_pdf=False))
    (name,) = set(files := files_of(mail(one))) - {"IHE_XDM.zip"}
    shown = pdf_text(files[name])
    assert "▲▲ CRITIQUE" in shown
    assert "Kaliémie contrôlée sur un second tube & communiquée par téléphone." in shown


def test_each_antibiotic_is_told_with_its_germ() -> None:
    def isolate(germ: str, flag: str) -> str:
        return f"""<component><organizer classCode="CLUSTER" moodCode="EVN"><statusCode code="completed"/>
<specimen><specimenRole><specimenPlayingEntity classCode="MIC"><code code="1" displayName="{germ}"/>
</specimenPlayingEntity></specimenRole></specimen><component><organizer classCode="BATTERY" moodCode="EVN"><component>
<observation classCode="OBS" moodCode="EVN"><templateId root="1.3.6.1.4.1.19376.1.3.1.6"/>
<code code="18864-9" displayName="Ampicilline" codeSystem="2.16.840.1.113883.6.1"/><statusCode code="completed"/>
<value xsi:type="PQ" value="2" unit="ug/mL"/><interpretationCode code="{flag}"/></observation>
</component></organizer></component></organizer></component>"""

    cluster = isolate("Escherichia essai", "R") + isolate("Streptococcus essai", "S")
    entry = f'<entry><organizer classCode="CLUSTER" moodCode="EVN">{cluster}</organizer></entry></section>'
    one = parse(message(documents=[cda().replace(b"</section>", entry.encode(), 1)]))
    text = text_of(mail(one))
    resistant, sensitive = (
        text.index(f"- HEMATOLOGIE / Isolat : {germ} essai") for germ in ("Escherichia", "Streptococcus")
    )
    assert "résistant (R)" in text[resistant:].split("\n")[1]
    assert "sensible (S)" in text[sensitive:].split("\n")[1]


def test_a_reference_to_the_value_names_nothing() -> None:
    pointed = '<content ID="r1">Hémoglobine</content></td><td>9.8 g/dL'.encode()
    spoilt = '<content>Hémoglobine</content></td><td><content ID="r1">9,8 g/dL</content>'.encode()
    assert cda().count(pointed) == 1
    (first, *_) = parse(message(documents=[cda().replace(pointed, spoilt)])).documents[0].results
    assert (first.label, first.value) == ("Hémoglobine [Masse/Volume] Sang", "9.8")


def test_a_device_is_an_author_of_its_own_kind() -> None:
    one = report(document(author_specialty="DISPOSITIF", pdf=b"%PDF-1.4"))
    (specialty,) = metadata_of(mail(one)).xpath("//*[@name='authorSpecialty']//text()[normalize-space()]")
    assert specialty == "DISPOSITIF^Dispositif médical^1.2.250.1.213.1.1.4.6"


# Names and subjects


@pytest.mark.parametrize(
    ("family", "given", "subject", "stem"),
    [
        ("D'ALMEIDA", "Zoé", "D'ALMEIDA Zoe", "D-ALMEIDA_Zoe"),
        ("D’Almeida", "Jean-François", "D'ALMEIDA Jean-Francois", "D-ALMEIDA_Jean-Francois"),
        ("Œuvrard-Noël", "Anaïs", "OEUVRARD-NOEL Anais", "OEUVRARD-NOEL_Anais"),
    ],
)
def test_names_as_people_bear_them(family: str, given: str, subject: str, stem: str) -> None:
    named = replace(PATIENT, birth_name=family, first_names=(given,))
    label = "Lettre de liaison à l'issue d'un séjour particulièrement long et compliqué " * 3
    one = mail(report(document(type_label=label, pdf=b"%PDF-1.4"), patient=named))
    assert one["Subject"] == f"XDM/1.0/DDM+{label[:40].rstrip()} {subject} 28/03/1979"
    (name,) = set(files_of(one)) - {"IHE_XDM.zip"}
    assert name.endswith(f"_{stem}.pdf")
    assert family.upper() in text_of(one)


# Spellings and older versions of the profile


@pytest.mark.parametrize("spelling", ["^text^XML^Base64^", "^TEXT^xml^BASE64^", "^application^^base64^", "^^^Base64^"])
@pytest.mark.parametrize("kind", ["ORU", "MDM"])
def test_spellings_of_the_encapsulated_document(kind: str, spelling: str) -> None:
    usual = b"^TEXT^XML^Base64^" if kind == "ORU" else b"^text^XML^Base64^"
    frame = message(kind=kind)
    assert frame.count(usual) == 1
    assert parse(frame.replace(usual, spelling.encode())).documents == parse(frame).documents


@pytest.mark.parametrize("kind", ["ORU", "MDM"])
@pytest.mark.parametrize("profile", ["1.2^CISIS_CDA_HL7_V1", "2.0^CISIS_CDA_HL7_V2"])
def test_older_profiles_order_with_sc(kind: str, profile: str) -> None:
    one = parse(message(kind=kind, order="SC", header={21: profile}))
    assert one.action is Action.NEW
    assert codes(one) == {"order-control-legacy"}
    if kind == "ORU":
        assert parse(message(order="SC", status="D", header={21: profile})).action is Action.DELETE
    refused = reader.parse(message(kind=kind, order="SC"), environment="test")
    assert isinstance(refused, Refused)
    assert refused.refusal is refusals.EVENT_INCOHERENT


def test_a_mail_asked_for_with_nobody_to_receive_it_is_told() -> None:
    one = parse(message(recipients=(), header={21: "1.2^CISIS_CDA_HL7_V1"}))
    assert codes(one) == {"recipient-missing"}
    quiet = Flags(to_professionals=False, to_patient=False)
    assert codes(parse(message(recipients=(), flags=quiet))) == set()


def test_recipients_nobody_asked_for_do_not_stop_the_record() -> None:
    one = parse(message(flags=Flags(to_professionals=False, to_patient=False)))
    doctor, patient, record = route(one, lambda _: Lookup.LATER, lambda _: True, ROUTING)
    assert doctor.refused is not None and doctor.refused.refusal is NOT_REQUESTED
    assert patient.refused is not None and patient.refused.refusal is NOT_REQUESTED
    assert record.refused is None


def test_utf_8_under_an_8859_label_keeps_its_accents() -> None:
    named = replace(reports.PATIENT, family="ÉLÉGANT", given=("Zoé",))
    frame = message(patient=named).replace(b"|UNICODE UTF-8|", b"|8859/15|")
    one = parse(frame)
    assert one.patient.birth_name == "ÉLÉGANT"
    assert codes(one) == {"charset-is-utf-8"}
    assert parse(message(patient=named, charset="8859/15")).patient == one.patient


def test_an_address_written_as_a_link() -> None:
    frame = message(recipients=(DOCTOR,)).replace(b"^^X.400^adam.", b"^^X.400^mailto:adam.")
    assert parse(frame).correspondents[0].address == DOCTOR.address


def test_several_messages_in_one_frame_are_refused_by_name() -> None:
    both = message(control_id="ONE") + message(control_id="TWO")
    for frame in (both, b"BHS|^~\\&|SIL\r" + both + b"BTS|2\r", b"FHS|^~\\&|SIL\r" + both):
        answer = reader.parse(frame, environment="test")
        assert isinstance(answer, Refused)
        assert answer.refusal is refusals.HL7_UNREADABLE
        assert answer.detail in ("several-messages", "no-header")
