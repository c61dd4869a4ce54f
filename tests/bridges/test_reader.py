"""Messages become reports: what is filled, what is tolerated, what is refused; and the official samples."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridges import refusals
from bridges.hl7 import reader
from bridges.report import Action, Audience, Party, Report
from tests.support import reports
from tests.support.reports import DOCTOR, Correspondent, Flags, message
from trust.refusals import Refused, join_catalogues

SAMPLES = Path(__file__).parents[2].parent / "shared/samples/hl7v2"


def parse(frame: bytes, environment: str = "test") -> Report:
    report = reader.parse(frame, environment=environment)  # type: ignore[arg-type]
    assert isinstance(report, Report), report
    return report


def refused(frame: bytes, environment: str = "test", **options: int) -> Refused:
    answer = reader.parse(frame, environment=environment, **options)  # type: ignore[arg-type]
    assert isinstance(answer, Refused), answer
    return answer


def codes(report: Report) -> set[str]:
    return {finding.code for finding in report.findings}


def test_a_clean_message_leaves_no_finding() -> None:
    report = parse(message(control_id="LAB-1", body_professional="Cher confrère", body_patient="Madame"))
    assert report.findings == ()
    assert (report.control_id, report.event, report.action) == ("LAB-1", "ORU^R01", Action.NEW)
    assert (report.sending_application, report.sending_facility) == ("SIL-ESSAI", "LABO-ESSAI")
    assert report.patient.matricule == reports.PATIENT.matricule and report.patient.reliability == "VALI"
    assert (report.patient.birth_name, report.patient.used_name) == ("ESSAI-UN", "ESSAI-UN")
    assert report.patient.first_names == ("CAMILLE", "ANNE-LISE") and report.patient.birth_place == "63999"
    assert report.patient.birth_date == "19790230" and report.patient.local_ids == (("990001", "990000001"),)
    assert report.sender == Party("801234500001", "ESSAI-BIOLOGISTE", "Alix", "Laboratoire des essais", "990000001")
    assert [(c.address, c.audience, c.location) for c in report.correspondents] == [
        ("adam.hoda@test-ci-sis.mssante.fr", Audience.PROFESSIONAL, "PRT^2^15"),
        (f"{reports.PATIENT.matricule}@patient.mssante.fr", Audience.PATIENT, "PRT^3^15"),
    ]
    assert report.reply_to == "resultats@labo-essais.test.mssante.fr"
    assert (report.body_professional, report.body_patient) == ("Cher confrère", "Madame")
    assert report.content_type_code == "97" and len(report.documents) == 1
    assert report.documents[0].content == reports.cda()


@pytest.mark.parametrize("kind", ["ORU", "MDM"])
@pytest.mark.parametrize("action", list(Action))
@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_actions(kind: str, action: Action, end: str) -> None:
    report = parse(message(kind=kind, action=action, end=end))
    assert report.action is action and report.findings == ()
    assert report.documents[0].parent_id == ("1.2.250.1.999.1.1001" if action is Action.REPLACE else "")


def test_order_replaced_with_a_final_result() -> None:
    report = parse(message(action=Action.REPLACE, status="F"))
    assert report.action is Action.REPLACE and codes(report) == {"status-final-on-replace"}


def test_missing_order_or_status_follow_the_others() -> None:
    assert codes(parse(message(action=Action.DELETE, order=""))) == {"order-control-missing"}
    assert codes(parse(message(action=Action.DELETE, status=""))) == {"status-missing"}
    assert parse(message(kind="MDM", order="", status="")).action is Action.NEW


def test_status_one_field_too_early() -> None:
    head, _, tail = message(action=Action.DELETE).partition(b"||||||D")
    report = parse(head + b"|||||D" + tail)
    assert report.action is Action.DELETE and codes(report) == {"status-in-obx-10"}


@pytest.mark.parametrize(
    "frame",
    [
        message(order="NW", status="D"),
        message(order="NW", status="C"),
        message(order="CA", status="F"),
        message(order="RO", status="D"),
        message(order="XX"),
        message(status="P"),
        message(order="", status="X"),
        message(kind="MDM", order="CA"),
        message(kind="MDM", action=Action.REPLACE, status="F"),
        message(kind="MDM", event="T10"),
        message(kind="MDM", event="T04", order="CA", status="F"),
    ],
)
def test_contradictions_are_refused(frame: bytes) -> None:
    answer = refused(frame)
    assert answer.refusal is refusals.EVENT_INCOHERENT and answer.location.split("^")[0] in ("ORC", "OBX")


def test_nothing_said_at_all() -> None:
    assert refused(message(order="", status="")).refusal is refusals.HL7_FIELD_MISSING


def test_replacement_must_name_what_it_replaces() -> None:
    named_by_set = message(action=Action.REPLACE, parent_id="")
    assert codes(parse(named_by_set)) == {"parent-missing"}
    assert codes(parse(message(parent_id="1.2.3"))) == {"parent-on-new"}


def test_txa_identifiers() -> None:
    frame = message(kind="MDM", action=Action.REPLACE)
    assert codes(parse(frame.replace(b"|1.2.250.1.999.1.1002|", b"|1.2.250.1.999.1.1002^Organisation-Y|"))) == set()
    assert codes(parse(frame.replace(b"|1.2.250.1.999.1.1002|", b"|9.9|"))) == {"document-id-contradicts-txa"}
    assert codes(parse(frame.replace(b"|1.2.250.1.999.1.1001|", b"|9.9|"))) == {"parent-contradicts-txa"}


@pytest.mark.parametrize(
    ("name", "refusal", "location"),
    [
        ("empty", refusals.HL7_UNREADABLE, ""),
        ("not-hl7", refusals.HL7_UNREADABLE, ""),
        ("truncated", refusals.DOCUMENT_NOT_CDA, "OBX^1^5"),
        ("no-header", refusals.HL7_UNREADABLE, ""),
        ("wrong-version", refusals.HL7_VERSION_UNSUPPORTED, "MSH^1^12"),
        ("wrong-type", refusals.HL7_TYPE_UNSUPPORTED, "MSH^1^9"),
        ("wrong-event", refusals.HL7_EVENT_UNSUPPORTED, "MSH^1^9"),
        ("no-control-id", refusals.HL7_FIELD_MISSING, "MSH^1^10"),
        ("towards-practice-software", refusals.HL7_WRONG_PROFILE, "MSH^1^21"),
        ("base64-broken", refusals.DOCUMENT_ENCODING, "OBX^1^5"),
        ("two-patients", refusals.PATIENT_SEVERAL, "PID^2"),
        ("no-patient", refusals.HL7_FIELD_MISSING, "PID^1"),
        ("other-patient", refusals.INS_DIFFERS, "OBX^1^5"),
        ("doctype", refusals.DOCUMENT_DTD, "OBX^1^5"),
        ("billion-laughs", refusals.DOCUMENT_DTD, "OBX^1^5"),
        ("not-cda", refusals.DOCUMENT_NOT_CDA, "OBX^1^5"),
        ("other-xml", refusals.DOCUMENT_NOT_CDA, "OBX^1^5"),
        ("no-document", refusals.DOCUMENT_MISSING, "OBX^1"),
        ("charset-broken", refusals.HL7_CHARSET, "OBX^2"),
        ("charset-unknown", refusals.HL7_CHARSET, "MSH^1^18"),
        ("new-but-deleted", refusals.EVENT_INCOHERENT, "OBX^1^11"),
        ("new-but-cancelled", refusals.EVENT_INCOHERENT, "ORC^1^1"),
        ("replace-nothing", refusals.EVENT_INCOHERENT, "ORC^1^1"),
        ("flag-unclear", refusals.FLAG_VALUE, "OBX^11^5"),
    ],
)
def test_spoilt_messages(name: str, refusal: object, location: str) -> None:
    answer = refused(reports.spoilt()[name])
    assert answer.refusal is refusal and answer.location == location


def test_every_spoilt_message_is_in_the_table() -> None:
    (marker,) = [m for m in test_spoilt_messages.pytestmark if m.name == "parametrize"]
    assert {row[0] for row in marker.args[1]} == set(reports.spoilt())


def test_oversized_document_and_message() -> None:
    assert refused(message(), max_document_bytes=6000).refusal is refusals.DOCUMENT_TOO_LARGE
    assert refused(message(), max_document_bytes=1000).refusal is refusals.HL7_TOO_LARGE


def test_mdm_holds_one_document_and_oru_may_hold_twins() -> None:
    twins = [reports.cda(level=1, unique_id="1.2.3.1"), reports.cda(unique_id="1.2.3.2")]
    assert [d.level for d in parse(message(documents=twins)).documents] == [1, 3]
    assert refused(message(kind="MDM", documents=twins)).refusal is refusals.DOCUMENT_SEVERAL


def test_base64_padding_and_line_breaks_are_repaired() -> None:
    document = reports.cda() + b"\n"
    frame = message(documents=[document])
    encoded = base64.b64encode(document)
    assert encoded.endswith(b"=")
    wrapped = base64.encodebytes(document).replace(b"\n", b"\r\n")
    for spoilt in (encoded.rstrip(b"="), encoded.replace(b"PG", b"P G"), wrapped):
        report = parse(frame.replace(encoded, spoilt))
        assert report.documents[0].content == document and "base64-repaired" in codes(report)


def test_half_a_body_is_never_kept() -> None:
    frame = message(body_professional="Cher confrère, vous trouverez ci-joint le CR de votre patiente, bien à vous")
    encoded = frame.rpartition(b"Base64^")[2].partition(b"|")[0]
    report = parse(frame.replace(encoded, encoded[:93]))
    assert report.body_professional == "" and len(report.documents) == 1
    assert [(f.code, f.location) for f in report.findings] == [("body-truncated", "OBX-12.5")]


def test_flags_and_their_old_names() -> None:
    flags = Flags(True, None, None, True, None, False, True, None, None, None, (
        ("INVISIBLE_REPRESENTANTS_LEGAUX", "Y"), ("ACK_LECTURE", "Y"), ("MODIF_CONFIDENTIALITYCODE", "N"),
        ("COMP_LOT", "N"), ("MASQUE_PS", "Y"),
    ))  # fmt: skip
    report = parse(message(flags=flags))
    read = report.flags
    assert (read.masked_to_professionals, read.hidden_from_patient, read.hidden_from_representatives) == (
        True,
        None,
        True,
    )
    assert (read.secret_connection, read.confidentiality_modified, read.to_dossier) == (True, False, False)
    assert (read.to_professionals, read.to_patient, read.ack_reception, read.ack_reading) == (True, None, None, True)
    assert not read.last_of_exchange
    assert codes(report) == {"flag-unknown", "flags-missing"}


@pytest.mark.parametrize("value", ["NON", "y", "1", "", '""', "YES"])
def test_other_spellings_are_refused(value: str) -> None:
    answer = refused(message(flags=Flags(extra=(("INVISIBLE_PATIENT", value),))))
    assert answer.refusal is refusals.FLAG_VALUE and answer.location == "OBX^12^5" and "INVISIBLE" in answer.detail


def test_a_flag_said_twice_differently_or_cut_is_refused() -> None:
    assert refused(message(flags=Flags(extra=(("MASQUE_PS", "Y"),)))).refusal is refusals.FLAG_VALUE
    frame = message()
    cut = frame.index(b"INVISIBLE_PATIENT^") + 22
    assert refused(frame[:cut]).refusal is refusals.FLAG_VALUE


def test_last_of_exchange() -> None:
    assert parse(message(last_of_exchange=True)).flags.last_of_exchange
    elsewhere = message().replace(b"PRT|", b"NTE|1|||FIN\rPRT|", 1)
    assert not parse(elsewhere).flags.last_of_exchange


def test_recipients_with_the_defects_of_the_field() -> None:
    frame = message(recipients=(DOCTOR, Correspondent("equipe@x.mssante.fr", organisation="Service d'essai")))
    frame = frame.replace(b"ASIP-SANTE-PS", b"ASIP-SANTE- PS").replace(b"^Result Copies To^", b"^^")
    frame = frame.replace(b"^^X.400^adam", b"^NET^X.400^adam").replace(b"mssante.fr\rPRT", b"mssante.fr  |||\rPRT")
    report = parse(frame)
    assert [c.address for c in report.correspondents] == ["adam.hoda@test-ci-sis.mssante.fr", "equipe@x.mssante.fr"]
    assert report.correspondents[0].party == Party("801234567897", "Hoda", "Adam")
    assert report.correspondents[1].party.organisation == "Service d'essai"


def test_one_mail_per_address_and_missing_addresses_are_kept() -> None:
    twice = replace(DOCTOR, address=DOCTOR.address.upper())
    report = parse(message(recipients=(DOCTOR, twice, replace(DOCTOR, address=""))))
    assert [c.address for c in report.correspondents] == [DOCTOR.address, ""]
    assert codes(report) == {"recipient-repeated", "recipient-missing"}  # the patient is asked for, and not named


def test_address_in_another_component() -> None:
    frame = message(recipients=(DOCTOR,)).replace(b"^^X.400^adam.hoda@", b"adam.hoda@")
    assert parse(frame).correspondents[0].address == DOCTOR.address


def test_patient_recipient_by_bare_oid_or_type() -> None:
    one = reports.to_patient(reports.PATIENT)
    for old, new in ((b"^L^^^INS", b"^L"), (b"^1.2.250.1.213.1.4.10^L", b"^^L")):
        frame = message(recipients=(one,))
        assert frame.count(old) == 1
        assert parse(frame.replace(old, new)).correspondents[0].audience is Audience.PATIENT


def test_no_ins_still_makes_a_report() -> None:
    document = reports.cda()
    report = parse(message(patient=replace(reports.PATIENT, matricule=""), documents=[document], recipients=(DOCTOR,)))
    assert report.patient.matricule == "" and {"ins-missing", "ins-not-comparable"} <= codes(report)


def test_thirteen_characters_match_fifteen() -> None:
    frame = message(documents=[reports.cda()], patient=replace(reports.PATIENT, matricule="2999999999001"))
    assert codes(parse(frame)) == set()


def test_traits_that_differ_are_told() -> None:
    other = replace(reports.PATIENT, family="AUTRE", birth_date="19800101")
    report = parse(message(documents=[reports.cda(patient=other)]))
    assert codes(report) == {"patient-name-differs", "patient-birth-date-differs"}


def test_somebody_else_is_refused_when_no_matricule_vouches() -> None:
    """Without an INS on one side, name and birth date are all there is: both different is another person."""
    unknown = replace(reports.PATIENT, matricule="")
    other = replace(reports.PATIENT, matricule="", family="AUTRE", birth_date="19800101")
    one_difference = replace(reports.PATIENT, matricule="", family="AUTRE")
    for said, shown in ((unknown, replace(other, matricule="299999999900170")), (unknown, other)):
        answer = refused(message(patient=said, documents=[reports.cda(patient=shown)], recipients=(DOCTOR,)))
        assert (answer.refusal, answer.location) == (refusals.PATIENT_SEVERAL, "OBX^1^5")
    frame = message(patient=unknown, documents=[reports.cda(patient=one_difference)], recipients=(DOCTOR,))
    assert "patient-name-differs" in codes(parse(frame))


def test_two_matricules_are_two_patients() -> None:
    frame = message()
    ins = f"{reports.PATIENT.matricule}^^^ASIP-SANTE-INS-NIR&{reports.PATIENT.oid}&ISO^INS".encode()
    assert frame.count(ins) == 1
    other = ins.replace(reports.PATIENT.matricule.encode(), b"180035121518934")
    answer = refused(frame.replace(ins, ins + b"~" + other))
    assert (answer.refusal, answer.location.split("^")[:3]) == (refusals.PATIENT_SEVERAL, ["PID", "1", "3"])
    shorter = ins.replace(reports.PATIENT.matricule.encode(), reports.PATIENT.matricule[:13].encode())
    assert codes(parse(frame.replace(ins, ins + b"~" + shorter))) == {"ins-repeated"}


def test_production() -> None:
    assert refused(message(), "production").refusal is refusals.INS_TEST
    real = replace(reports.PATIENT, oid="1.2.250.1.213.1.4.8")
    assert parse(message(patient=real), "production").patient.matricule_oid == real.oid
    wrong_key = replace(real, matricule="299999999900174")
    assert refused(message(patient=wrong_key), "production").refusal is refusals.INS_INCOMPLETE
    assert codes(parse(message(patient=wrong_key))) == {"ins-malformed"}


@pytest.mark.parametrize(("patient_class", "code"), [("I", "03"), ("O", "07"), ("R", "19"), ("N", "97"), ("E", "07")])
def test_content_type(patient_class: str, code: str) -> None:
    assert parse(message(patient_class=patient_class)).content_type_code == code


@pytest.mark.parametrize("charset", ["UNICODE UTF-8", "8859/15", ""])
def test_character_sets(charset: str) -> None:
    named = replace(reports.PATIENT, family="ÉSSAI-ÇA")
    report = parse(message(charset=charset, patient=named, body_professional="Été"))
    assert report.patient.birth_name == "ÉSSAI-ÇA" and report.body_professional == "Été"


def test_bad_bytes_are_read_as_cp1252_and_counted() -> None:
    report = parse(message().replace("Masqué".encode(), "Masqué".encode("cp1252")))
    assert [(f.code, f.location) for f in report.findings] == [("charset-fallback", "OBX-2")]


def test_broken_lines_anywhere_never_raise() -> None:
    lines = message().split(b"\r")
    for index in range(len(lines)):
        reader.parse(b"\r".join(lines[:index] + lines[index + 1 :]), environment="test")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_never_raises(data: st.DataObject) -> None:
    good = message(documents=[reports.cda(level=1)], kind="MDM")
    start = data.draw(st.integers(0, len(good)))
    stop = data.draw(st.integers(start, min(len(good), start + 50)))
    reader.parse(good[:start] + data.draw(st.binary(max_size=20)) + good[stop:], environment="production")


def test_refusals_carry_no_content() -> None:
    for frame in reports.spoilt().values():
        answer = refused(frame)
        for secret in (reports.PATIENT.matricule, reports.PATIENT.family, "Potassium"):
            assert secret not in answer.detail + answer.location


def test_catalogue() -> None:
    entries = join_catalogues([refusals.CATALOGUE])
    declared = [value for name, value in vars(refusals).items() if name.isupper() and name != "CATALOGUE"]
    assert {r.code for r in declared} == set(entries)
    for entry in entries.values():
        assert entry.text.isascii() and entry.enhanced.startswith("5") and entry.smtp >= 500


def test_committed_files_are_what_the_builder_makes() -> None:
    for name, build in reports.FILES.items():
        assert (reports.DATA / name).read_bytes() == build(), name
    assert reports.DEMONSTRATION_FILE.read_bytes() == reports.demonstration()
    assert reports.LETTER_FILE.read_bytes() == reports.demonstration_letter()


def test_demonstration_report() -> None:
    report = parse(reports.DEMONSTRATION_FILE.read_bytes())
    assert report.findings == () and report.flags.to_dossier
    assert [c.address for c in report.correspondents] == [
        "adam.hoda@test-ci-sis.mssante.fr",
        "279035121518989@patient.mssante.fr",
    ]
    results = report.documents[0].results
    assert len(results) == 28 and [r.code for r in results if r.interpretation in "HL" and r.interpretation] == [
        "718-7",
        "2823-3",
        "40193-5",
    ]


@pytest.mark.samples
@pytest.mark.skipif(not SAMPLES.is_dir(), reason="official HL7 v2 samples are not beside this repository")
class TestOfficialSamples:
    def sample(self, name: str) -> bytes:
        return (SAMPLES / name).read_bytes()

    def test_laboratory_pair(self) -> None:
        first = parse(self.sample("oru_lab_report_n3_initial.hl7"))
        second = parse(self.sample("oru_lab_report_n3_replace.hl7"))
        assert (first.action, second.action) == (Action.NEW, Action.REPLACE)
        assert codes(first) == {"body-truncated"} and codes(second) == {"body-truncated", "base64-repaired"}
        assert first.documents[0].set_id == second.documents[0].set_id
        assert (first.documents[0].version, second.documents[0].version) == (1, 2)
        assert second.documents[0].parent_id == "1.2.250.1.213.1.1.12"
        assert [c.audience for c in first.correspondents] == [Audience.PROFESSIONAL, Audience.PATIENT]
        assert first.reply_to == "adam.hoda@test-ci-sis.mssante.fr" and first.sender.family == "DIAZ"

    def test_the_replacement_is_also_accepted_with_a_final_status(self) -> None:
        frame = self.sample("oru_lab_report_n3_replace.hl7").replace(b"||||||C|", b"||||||F|")
        assert parse(frame).action is Action.REPLACE

    @pytest.mark.parametrize(
        ("name", "action"),
        [("mdm_t02_imaging_n1_initial.er7", Action.NEW), ("mdm_t10_imaging_n1_replace.er7", Action.REPLACE)],
    )
    def test_imaging(self, name: str, action: Action) -> None:
        report = parse(self.sample(name))
        assert report.action is action and report.findings == () and report.documents[0].pdf is not None
        assert report.correspondents[0].address == "adam.hoda@test-ci-sis.mssante.fr"
        assert report.body_professional.startswith("Cher confrère")

    @pytest.mark.parametrize(
        ("name", "refusal"),
        [
            ("mdm_t02_towards_practice_software.er7", refusals.HL7_WRONG_PROFILE),
            ("oru_lab_report_n1_n3_placeholders.hl7", refusals.DOCUMENT_NOT_CDA),
            ("ack_oru.hl7", refusals.HL7_TYPE_UNSUPPORTED),
            ("pamfr_consent_given.er7", refusals.HL7_TYPE_UNSUPPORTED),
            ("pamfr_consent_refused_feeding_objected.er7", refusals.HL7_TYPE_UNSUPPORTED),
        ],
    )
    def test_refused(self, name: str, refusal: object) -> None:
        assert refused(self.sample(name)).refusal is refusal
