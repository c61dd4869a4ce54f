"""The embedded dossier over a real database, blob store, vault and journal."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from sqlalchemy import text

from bridges.dossier import refusals
from bridges.dossier.entries import AvailabilityStatus, Deposited, DocumentEntry, DossierStatus, PatientKey
from bridges.dossier.repository import Dossier, DossierDamagedError
from bridges.dossier.rights import Reader, load_matrix
from bridges.dossier.target import DossierTarget
from bridges.hl7.reader import parse
from bridges.identity import INS_NIR, INS_NIR_TEST
from bridges.report import Action, Document, Flags, Party, PatientIdentity, Report
from mta.message import Deferred, Delivered, Failed, Message, Origin
from trust.journal import Journal, JournalEntry
from trust.refusals import Refusal, Refused, join_catalogues
from trust.store import metadata
from trust.store.blobs import BlobDamagedError, BlobStore
from trust.store.database import Database, StoreUnavailableError
from trust.vault import KeyVault

MATRICULE = "279035121518989"
PATIENT = PatientIdentity(MATRICULE, INS_NIR, "ESSAI", ("Zoé",), "", "19790300", "F")
KEY = PatientKey(MATRICULE, INS_NIR)
DOCTOR = Reader("801111111117", "Dr Essai", "10", "SM26")
AUTHOR = "802222222224"
LABORATORY = "1750000018"


def a_document(number: int = 1, **change: object) -> Document:
    values: dict[str, object] = {
        "content": f"<ClinicalDocument>valeur secrète {number}</ClinicalDocument>".encode(),
        "unique_id": f"1.2.3.{number}",
        "set_id": "1.2.3.1",
        "version": number,
        "parent_id": f"1.2.3.{number - 1}" if number > 1 else "",
        "type_code": "11502-2",
        "type_label": "CR d'examens biologiques",
        "type_system": "2.16.840.1.113883.6.1",
        "title": "Bilan de Zoé ESSAI",
        "created": f"2026010{number}101500+0100",
        "service_start": f"2026010{number}",
        "service_stop": "",
        "language": "fr-FR",
        "confidentiality": "N",
        "patient": PATIENT,
        "author": Party(id_nat=AUTHOR, family="AUTEUR", organisation="Laboratoire", organisation_id=LABORATORY),
        "author_specialty": "G15_10/SM03",
        "practice_setting": "AMBULATOIRE",
        "facility": "SA25",
        "level": 3,
        "format_code": "urn:ihe:lab:xd-lab:2008",
        "results": (),
        "pdf": None,
        "narrative": "",
    }
    return Document(**(values | change))  # type: ignore[arg-type]


def a_report(*documents: Document, action: Action = Action.NEW, **change: object) -> Report:
    values: dict[str, object] = {
        "control_id": "M1",
        "sending_application": "SIL",
        "sending_facility": "LABO",
        "event": "ORU^R01",
        "action": action,
        "patient": documents[0].patient if documents else PATIENT,
        "sender": Party(organisation_id=LABORATORY),
        "documents": documents,
        "correspondents": (),
        "reply_to": "",
        "flags": Flags(),
        "body_professional": "",
        "body_patient": "",
        "content_type_code": "07",
        "findings": (),
    }
    return Report(**(values | change))  # type: ignore[arg-type]


@dataclass
class House:
    """The stores under one root, as after a start of the process."""

    root: Path
    url: str
    database: Database = field(init=False)
    counter: int = 0

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        vault = self.root / "vault"
        self.vault = KeyVault.open(vault) if vault.exists() else KeyVault.create(vault)
        self.database = Database(self.url)
        metadata.create_all(self.database.engine)
        self.blobs = BlobStore(self.root / "blobs", self.vault)
        self.journal = Journal(self.vault, "test")
        self.dossier = Dossier(self.database, self.blobs, self.vault, self.journal, load_matrix())

    def deposit(self, report: Report, delivery_id: str = "") -> Deposited | Refused:
        self.counter += 1
        return self.dossier.deposit(report, delivery_id=delivery_id or f"delivery-{self.counter}", depositor="labo")

    def filed(self, report: Report) -> tuple[DocumentEntry, ...]:
        answer = self.deposit(report)
        assert isinstance(answer, Deposited), answer
        return answer.entries

    def refused(self, report: Report) -> Refusal:
        answer = self.deposit(report)
        assert isinstance(answer, Refused), answer
        return answer.refusal

    def listed(self, reader: Reader = DOCTOR, patient: PatientKey = KEY, *, history: bool = False) -> list[str]:
        answer = self.dossier.list(reader, patient, purpose="normal", history=history)
        assert not isinstance(answer, Refused), answer
        return [entry.unique_id for entry in answer]

    def entries(self) -> list[JournalEntry]:
        """The journal, oldest first."""
        stored = self.database.read(self.journal.entries)
        return [each.entry for each in reversed(stored) if each.entry]

    def blob_count(self) -> int:
        return len(list(self.blobs.ids()))

    def alter(self, statement: str) -> None:
        """What somebody with the database, but without the keys, might do."""
        if self.database.engine.dialect.name == "postgresql":
            for ours, theirs in (("zeroblob(80)", "repeat('x', 80)::bytea"), ("X''", "''::bytea"), ("WHERE 1", "")):
                statement = statement.replace(ours, theirs)
        with self.database.engine.begin() as connection:
            assert connection.exec_driver_sql(statement).rowcount > 0


@pytest.fixture
def house(tmp_path: Path, database_url: str) -> Iterator[House]:
    house = House(tmp_path, database_url)
    yield house
    verdict = house.database.read(house.journal.verify)
    assert verdict.ok, verdict
    house.database.close()


# Depositing


def test_a_report_is_filed_listed_and_read(house: House) -> None:
    (entry,) = house.filed(a_report(a_document()))
    assert (entry.unique_id, entry.status, entry.version) == ("1.2.3.1", AvailabilityStatus.CURRENT, 1)
    assert len({entry.unique_id, entry.logical_id, entry.entry_uuid}) == 3
    assert (entry.content_type_code, entry.depositor, entry.size) == ("07", "labo", len(a_document().content))
    assert house.dossier.list(DOCTOR, KEY, purpose="normal") == [entry]
    for document_id in (entry.entry_uuid, entry.logical_id):
        assert house.dossier.read(DOCTOR, KEY, document_id, purpose="normal") == a_document().content


def test_matricule_with_and_without_key_is_one_patient(house: House) -> None:
    short = replace(PATIENT, matricule=MATRICULE[:13])
    house.filed(a_report(a_document(patient=short)))
    assert house.listed() == house.listed(patient=PatientKey(MATRICULE[:13], INS_NIR)) == ["1.2.3.1"]


def test_a_test_identity_is_another_patient(house: House) -> None:
    test = replace(PATIENT, matricule_oid=INS_NIR_TEST)
    house.filed(a_report(a_document(patient=test)))
    answer = house.dossier.list(DOCTOR, KEY, purpose="normal")
    assert isinstance(answer, Refused)
    assert answer.refusal is refusals.PATIENT_UNKNOWN
    house.filed(a_report(a_document()))  # the real document is not blocked by its rehearsal
    assert house.listed(patient=PatientKey(MATRICULE, INS_NIR_TEST)) == house.listed() == ["1.2.3.1"]


@pytest.mark.parametrize(
    ("report", "refusal"),
    [
        (a_report(a_document(patient=replace(PATIENT, matricule=""))), refusals.INS_MISSING),
        (a_report(a_document(patient=replace(PATIENT, matricule="2790351"))), refusals.INS_INCOMPLETE),
        (a_report(a_document(patient=replace(PATIENT, matricule_oid=""))), refusals.INS_INCOMPLETE),
        (a_report(a_document(patient=replace(PATIENT, matricule_oid="1.2.3"))), refusals.INS_INCOMPLETE),
        (a_report(a_document(), patient=replace(PATIENT, matricule="255069912345631")), refusals.INS_DIFFERS),
        (a_report(a_document(), patient=replace(PATIENT, matricule_oid=INS_NIR_TEST)), refusals.INS_DIFFERS),
        (a_report(a_document(confidentiality="R")), refusals.CONFIDENTIALITY),
        (a_report(a_document(confidentiality="V")), refusals.CONFIDENTIALITY),
        (a_report(a_document(confidentiality="")), refusals.CONFIDENTIALITY),
        (a_report(), refusals.NO_DOCUMENT),
        (a_report(a_document(unique_id="")), refusals.NO_DOCUMENT),
        (a_report(a_document(), a_document(content=b"other")), refusals.DOCUMENT_ALTERED),
        (a_report(a_document(2), action=Action.REPLACE), refusals.NOT_HELD),
        (a_report(a_document(), action=Action.DELETE), refusals.PATIENT_UNKNOWN),
    ],
)
def test_what_is_refused_leaves_only_the_journal(house: House, report: Report, refusal: Refusal) -> None:
    assert house.refused(report) is refusal
    assert house.blob_count() == 0
    (entry,) = house.entries()
    assert (entry.action, entry.outcome, entry.reason) == ("dossier.deposit", "refused", refusal.code)
    assert entry.subject == ("" if refusal in (refusals.INS_MISSING, refusals.INS_INCOMPLETE) else entry.subject)
    assert MATRICULE not in str(entry)


def test_application_codes_are_those_of_the_profile() -> None:
    codes = {
        refusals.INS_MISSING: "903",
        refusals.INS_DIFFERS: "904",
        refusals.INS_INCOMPLETE: "905",
        refusals.NOT_HELD: "900",
        refusals.VERSION_OBSOLETE: "900",
        refusals.NOT_THE_AUTHOR: "901",
        refusals.PATIENT_UNKNOWN: "902",
    }
    assert {refusal: refusal.application for refusal in codes} == codes
    assert len(join_catalogues([refusals.CATALOGUE])) == len(refusals.CATALOGUE)
    assert all(refusal.text.isascii() for refusal in refusals.CATALOGUE)


def test_one_bad_document_refuses_the_whole_report(house: House) -> None:
    assert house.refused(a_report(a_document(), a_document(7, set_id="x", confidentiality="R")))
    assert house.blob_count() == 0
    answer = house.dossier.list(DOCTOR, KEY, purpose="normal")
    assert isinstance(answer, Refused)


# Repetition


def test_the_same_delivery_gets_the_same_answer(house: House) -> None:
    first = house.deposit(a_report(a_document()), "d1")
    assert house.deposit(a_report(a_document()), "d1") == first
    assert len(house.entries()) == 1
    assert house.blob_count() == 1


def test_the_same_document_by_another_road_is_held_once(house: House) -> None:
    (entry,) = house.filed(a_report(a_document()))
    again = house.deposit(a_report(a_document()))
    assert isinstance(again, Deposited)
    assert again.entries == (entry,)
    assert [finding.code for finding in again.findings] == ["already-held"]
    assert house.blob_count() == 1


def test_other_bytes_under_the_same_identifier_are_refused(house: House) -> None:
    house.filed(a_report(a_document()))
    assert house.refused(a_report(a_document(content=b"other"))) is refusals.DOCUMENT_ALTERED
    changed = a_document(content=b"other", version=2)
    assert house.refused(a_report(changed, action=Action.REPLACE)) is refusals.DOCUMENT_ALTERED


def test_an_identifier_of_another_patient_is_refused(house: House) -> None:
    house.filed(a_report(a_document()))
    other = replace(PATIENT, matricule="255069912345631")
    assert house.refused(a_report(a_document(patient=other))) is refusals.INS_DIFFERS
    child = a_document(2, patient=other, set_id="")
    assert house.refused(a_report(child, action=Action.REPLACE)) is refusals.INS_DIFFERS
    theirs = a_document(2, patient=other, parent_id="")
    assert house.refused(a_report(theirs, action=Action.REPLACE)) is refusals.NOT_HELD


def test_identical_deposits_at_once_file_one_document(house: House) -> None:
    with ThreadPoolExecutor(8) as pool:
        same = list(pool.map(lambda _: house.deposit(a_report(a_document()), "one"), range(8)))
        others = list(pool.map(lambda n: house.deposit(a_report(a_document()), f"other-{n}"), range(8)))
    assert len({answer.entries for answer in [*same, *others]}) == 1
    assert house.listed() == ["1.2.3.1"]
    assert house.blob_count() == 1


# Versions


@pytest.mark.parametrize("action", [Action.REPLACE, Action.NEW])
def test_a_higher_version_replaces(house: House, action: Action) -> None:
    (first,) = house.filed(a_report(a_document(1)))
    (second,) = house.filed(a_report(a_document(2), action=action))
    assert second.logical_id == first.logical_id
    assert second.entry_uuid != first.entry_uuid
    assert house.listed() == ["1.2.3.2"]
    assert house.listed(history=True) == ["1.2.3.2", "1.2.3.1"]
    assert house.dossier.read(DOCTOR, KEY, first.logical_id, purpose="normal") == a_document(2).content
    assert house.dossier.read(DOCTOR, KEY, first.entry_uuid, purpose="normal") == a_document(1).content


def test_set_and_version_win_over_a_parent_that_contradicts(house: House) -> None:
    """The pair of official examples: setId names version 1, the parent is a document nobody has seen."""
    house.filed(a_report(a_document(1)))
    answer = house.deposit(a_report(a_document(2, parent_id="9.9.9"), action=Action.REPLACE))
    assert isinstance(answer, Deposited)
    assert [finding.code for finding in answer.findings] == ["parent-contradicts-set"]
    assert house.listed() == ["1.2.3.2"]
    assert house.entries()[-2].details["findings"] == "parent-contradicts-set"


def test_without_a_set_the_parent_decides(house: House) -> None:
    """As in the official imaging pair: no setId at all."""
    house.filed(a_report(a_document(1, set_id="")))
    house.filed(a_report(a_document(2, set_id=""), action=Action.REPLACE))
    house.filed(a_report(a_document(3, set_id="", version=None), action=Action.REPLACE))
    assert house.listed() == ["1.2.3.3"]
    # A late replacement of what is no longer current.
    late = a_document(4, set_id="", parent_id="1.2.3.1", version=1)
    assert house.refused(a_report(late, action=Action.REPLACE)) is refusals.VERSION_OBSOLETE


@pytest.mark.parametrize("action", [Action.REPLACE, Action.NEW])
@pytest.mark.parametrize("version", [1, 2, None])
def test_lower_or_equal_versions_never_overwrite(house: House, action: Action, version: int | None) -> None:
    house.filed(a_report(a_document(1)))
    house.filed(a_report(a_document(2), action=Action.REPLACE))
    stale = a_document(5, version=version, parent_id="1.2.3.2")
    assert house.refused(a_report(stale, action=action)) is refusals.VERSION_OBSOLETE
    assert house.listed() == ["1.2.3.2"]
    # The first version again is only a repetition.
    assert house.filed(a_report(a_document(1)))[0].status is AvailabilityStatus.SUPERSEDED
    assert house.listed() == ["1.2.3.2"]


def test_only_the_same_organisation_replaces_or_deletes(house: House) -> None:
    house.filed(a_report(a_document(1)))
    stranger = Party(id_nat=AUTHOR, organisation_id="1690000019")
    for action in (Action.REPLACE, Action.NEW):
        assert house.refused(a_report(a_document(2, author=stranger), action=action)) is refusals.NOT_THE_AUTHOR
    by_parent = a_document(2, author=stranger, set_id="")
    assert house.refused(a_report(by_parent, action=Action.REPLACE)) is refusals.NOT_THE_AUTHOR
    assert house.refused(a_report(a_document(1, author=stranger), action=Action.DELETE)) is refusals.NOT_THE_AUTHOR
    assert house.listed() == ["1.2.3.1"]


def test_twins_are_two_documents_and_are_replaced_together(house: House) -> None:
    pdf = {"level": 1, "format_code": "urn:ihe:iti:xds-sd:pdf:2008"}
    one = house.filed(a_report(a_document(1), a_document(1, unique_id="1.2.4.1", content=b"pdf 1", **pdf)))
    two = house.filed(
        a_report(
            a_document(2, unique_id="1.2.4.2", content=b"pdf 2", **pdf),
            a_document(2),
            action=Action.REPLACE,
        )
    )
    assert len({entry.logical_id for entry in one}) == 2
    assert [two[1].logical_id, two[0].logical_id] == [entry.logical_id for entry in one]
    assert sorted(house.listed()) == ["1.2.3.2", "1.2.4.2"]


def test_deletion_hides_and_is_idempotent(house: House) -> None:
    house.filed(a_report(a_document(1)))
    (second,) = house.filed(a_report(a_document(2), action=Action.REPLACE))
    assert house.refused(a_report(a_document(1), action=Action.DELETE)) is refusals.VERSION_OBSOLETE
    assert house.refused(a_report(a_document(9), action=Action.DELETE)) is refusals.NOT_HELD
    for _ in range(2):
        (deleted,) = house.filed(a_report(a_document(2, confidentiality="R"), action=Action.DELETE))
        assert deleted.status is AvailabilityStatus.DELETED
    assert house.listed(history=True) == []
    assert house.dossier.read(DOCTOR, KEY, second.entry_uuid, purpose="normal") == Refused(refusals.DOCUMENT_UNKNOWN)
    assert house.refused(a_report(a_document(2))) is refusals.DOCUMENT_DELETED
    assert house.refused(a_report(a_document(3), action=Action.REPLACE)) is refusals.DOCUMENT_DELETED
    assert house.blob_count() == 2
    house.filed(a_report(a_document(4, parent_id="")))
    assert house.listed() == ["1.2.3.4"]


# Masking


def test_masked_documents_are_not_even_signalled(house: House) -> None:
    flags = Flags(masked_to_professionals=True)
    (entry,) = house.filed(a_report(a_document(), flags=flags))
    assert house.listed() == []
    assert house.dossier.read(DOCTOR, KEY, entry.entry_uuid, purpose="normal") == house.dossier.read(
        DOCTOR, KEY, "no such document", purpose="normal"
    )
    assert [entry.reason for entry in house.entries()[-2:]] == ["masked", "unknown"]
    author = replace(DOCTOR, id_nat=AUTHOR)
    assert house.listed(author) == ["1.2.3.1"]
    assert house.dossier.read(author, KEY, entry.entry_uuid, purpose="normal") == a_document().content
    # A new version that says nothing of masking stays masked.
    house.filed(a_report(a_document(2), action=Action.REPLACE))
    assert house.listed() == []


def test_masking_is_changed_by_sending_the_same_document_again(house: House) -> None:
    hidden = Flags(masked_to_professionals=False, hidden_from_patient=True)
    (entry,) = house.filed(a_report(a_document(), flags=hidden))
    masked = Flags(masked_to_professionals=True, hidden_from_patient=False)
    (changed,) = house.filed(a_report(a_document(), action=Action.REPLACE, flags=masked))
    assert changed.entry_uuid != entry.entry_uuid
    assert changed.logical_id == entry.logical_id
    assert (changed.masked_to_professionals, changed.hidden_from_patient) == (True, False)
    assert house.listed() == []
    answer = house.deposit(a_report(a_document(), action=Action.REPLACE, flags=hidden))
    assert isinstance(answer, Deposited)
    assert [finding.code for finding in answer.findings] == ["already-held", "not-hidden-again"]
    assert not answer.entries[0].hidden_from_patient
    stranger = a_document(author=Party(organisation_id="1690000019"))
    assert house.refused(a_report(stranger, action=Action.REPLACE, flags=masked)) is refusals.NOT_THE_AUTHOR


# Reading and its witness


def test_every_read_is_journaled_before_its_bytes(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    (entry,) = house.filed(a_report(a_document()))
    seen: list[JournalEntry] = []
    real = house.blobs.get

    def watched(kind: str, blob_id: str) -> bytes:
        count = text("SELECT count(*) FROM journal_entries")  # by another connection: sees only what is committed
        assert house.database.read(lambda connection: connection.scalar(count)) == 2
        seen.extend(house.entries())
        return real(kind, blob_id)

    monkeypatch.setattr(house.blobs, "get", watched)
    house.dossier.read(DOCTOR, KEY, entry.entry_uuid, purpose="consultation")
    witness = seen[-1]
    assert (witness.actor, witness.action, witness.outcome) == (DOCTOR.id_nat, "dossier.read", "granted")
    assert (witness.object_id, witness.purpose) == (entry.entry_uuid, "consultation")
    assert witness.details["profession"] == "10"
    assert witness.subject == house.entries()[0].subject != ""


def test_no_journal_no_bytes(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    (entry,) = house.filed(a_report(a_document()))

    def broken(*_: object, **__: object) -> None:
        raise StoreUnavailableError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(house.journal, "append", broken)
        patched.setattr(house.blobs, "get", lambda *_: pytest.fail("bytes were fetched"))
        with pytest.raises(StoreUnavailableError):
            house.dossier.read(DOCTOR, KEY, entry.entry_uuid, purpose="normal")
        with pytest.raises(StoreUnavailableError):
            house.dossier.list(DOCTOR, KEY, purpose="normal")
        with pytest.raises(StoreUnavailableError):
            house.deposit(a_report(a_document(8, set_id="")))
    assert house.listed() == ["1.2.3.1"]


@pytest.mark.parametrize(
    ("reader", "patient", "purpose", "refusal", "rule"),
    [
        (replace(DOCTOR, id_nat=""), KEY, "normal", refusals.NOT_IDENTIFIED, "not-identified"),
        (replace(DOCTOR, profession=""), KEY, "normal", refusals.NOT_IDENTIFIED, "not-identified"),
        (DOCTOR, KEY, "", refusals.NOT_IDENTIFIED, "no-purpose"),
        (replace(DOCTOR, profession="28"), KEY, "normal", refusals.NOT_AUTHORISED, "matrix"),
        (DOCTOR, PatientKey("255069912345631", INS_NIR), "normal", refusals.PATIENT_UNKNOWN, "unknown"),
        (DOCTOR, PatientKey("x", INS_NIR), "normal", refusals.PATIENT_UNKNOWN, "unknown"),
        (replace(DOCTOR, id_nat=""), PatientKey("x", "y"), "normal", refusals.NOT_IDENTIFIED, "not-identified"),
    ],
)
def test_refused_reads_are_journaled(
    house: House, reader: Reader, patient: PatientKey, purpose: str, refusal: Refusal, rule: str
) -> None:
    (entry,) = house.filed(a_report(a_document()))
    assert house.dossier.read(reader, patient, entry.entry_uuid, purpose=purpose) == Refused(refusal)
    witness = house.entries()[-1]
    assert (witness.action, witness.outcome, witness.reason) == ("dossier.read", "refused", rule)
    listed = house.dossier.list(reader, patient, purpose=purpose)
    assert listed == ([] if rule == "matrix" else Refused(refusal))
    assert house.entries()[-1].action == "dossier.list"


def test_a_closed_dossier_is_neither_read_nor_fed_until_reopened(house: House) -> None:
    (entry,) = house.filed(a_report(a_document()))
    unknown = PatientKey("255069912345631", INS_NIR)
    assert house.dossier.set_status(unknown, DossierStatus.CLOSED, actor="x", reason="") == Refused(
        refusals.PATIENT_UNKNOWN
    )
    assert house.dossier.set_status(KEY, DossierStatus.CLOSED, actor="patient", reason="demande") is None
    assert house.dossier.read(DOCTOR, KEY, entry.entry_uuid, purpose="normal") == Refused(refusals.CLOSED)
    assert house.dossier.list(DOCTOR, KEY, purpose="normal") == Refused(refusals.CLOSED)
    assert house.refused(a_report(a_document(2))) is refusals.CLOSED
    house.dossier.set_status(KEY, DossierStatus.OPEN, actor="patient", reason="demande")
    assert house.listed() == ["1.2.3.1"]
    assert [e.action for e in house.entries() if e.actor == "patient"] == ["dossier.closed", "dossier.open"]


# On disk


def test_everything_is_there_after_a_restart(house: House) -> None:
    first = house.deposit(a_report(a_document(1)), "d1")
    house.filed(a_report(a_document(2), action=Action.REPLACE))
    house.database.close()
    house.open()
    assert house.deposit(a_report(a_document(1)), "d1") == first
    assert house.listed(history=True) == ["1.2.3.2", "1.2.3.1"]
    (third,) = house.filed(a_report(a_document(3), action=Action.REPLACE))
    assert isinstance(first, Deposited)
    assert third.logical_id == first.entries[0].logical_id


def test_nothing_of_patient_or_document_is_on_disk_in_the_clear(house: House) -> None:
    house.filed(a_report(a_document()))
    house.listed()
    house.database.close()
    stored = b"".join(path.read_bytes() for path in house.root.rglob("*") if path.is_file())
    for secret in (MATRICULE[:13], "ESSAI", "1.2.3.1", "Bilan", "secr", "11502-2", LABORATORY):
        assert secret.encode() not in stored
    house.open()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE dossier_documents SET status='superseded' WHERE status='current'",
        "UPDATE dossier_documents SET version=9",
        "UPDATE dossier_documents SET blob_id='" + "0" * 32 + "'",
        "UPDATE dossier_documents SET entry_uuid='x'",
        "UPDATE dossier_documents SET sealed=zeroblob(80)",
        "UPDATE dossiers SET status='closed'",
        "UPDATE dossiers SET sealed=X''",
    ],
)
def test_tampering_is_noticed(house: House, statement: str) -> None:
    (entry,) = house.filed(a_report(a_document()))
    house.alter(statement)
    for document_id in (entry.entry_uuid, "x"):
        try:
            answer = house.dossier.read(DOCTOR, KEY, document_id, purpose="normal")
        except DossierDamagedError as error:
            assert MATRICULE not in str(error)
        else:
            assert answer == Refused(refusals.DOCUMENT_UNKNOWN)
    with pytest.raises(DossierDamagedError):
        house.dossier.list(DOCTOR, KEY, purpose="normal")


def test_a_row_moved_to_another_patient_does_not_open(house: House) -> None:
    other = PatientKey("255069912345631", INS_NIR)
    house.filed(a_report(a_document()))
    identity = replace(PATIENT, matricule=other.matricule)
    house.filed(a_report(a_document(5, set_id="5", unique_id="5", parent_id="", patient=identity)))
    house.alter("UPDATE dossier_documents SET dossier_id=(SELECT max(id) FROM dossiers) WHERE 1")
    refused = 0
    for patient in (KEY, other):
        try:
            house.dossier.list(DOCTOR, patient, purpose="normal")
        except DossierDamagedError:
            refused += 1
    assert refused == 1  # the dossier that received the row; the other is empty


def test_exchanged_blobs_do_not_open(house: House) -> None:
    (entry,) = house.filed(a_report(a_document()))
    house.filed(a_report(a_document(5, set_id="5", parent_id="")))
    one, two = sorted(path for path in (house.root / "blobs").rglob("*") if path.is_file())
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    with pytest.raises(BlobDamagedError):
        house.dossier.read(DOCTOR, KEY, entry.entry_uuid, purpose="normal")


# The target


def a_message(content: bytes, **change: object) -> Message:
    message = Message("<m@x>", "s1", "d1", Origin.MLLP, "", "dossier", content, "application/hl7-v2", 0.0, "labo")
    return replace(message, **change)


async def test_target_files_once_and_says_why_not(house: House) -> None:
    def reader(content: bytes) -> Report | Refused:
        if content == b"unreadable":
            return Refused(refusals.NO_DOCUMENT)
        return a_report(a_document(confidentiality=content.decode()))

    target = DossierTarget(house.dossier, reader)
    try:
        first = await target.deliver(a_message(b"N"))
        assert first == Delivered("1 filed")
        assert await target.deliver(a_message(b"N")) == first
        assert await target.deliver(a_message(b"N", delivery_id="d2")) == Delivered("1 filed (already-held)")
        assert await target.deliver(a_message(b"unreadable", delivery_id="d3")) == Failed(Refused(refusals.NO_DOCUMENT))
        refused = await target.deliver(a_message(b"R", delivery_id="d4"))
        assert isinstance(refused, Failed)
        assert refused.reason.refusal is refusals.CONFIDENTIALITY
        mail = await target.deliver(a_message(b"N", content_type="message/rfc822"))
        assert isinstance(mail, Failed)
        assert mail.reason.refusal is refusals.CONTENT_UNSUPPORTED
    finally:
        target.close()
    assert house.listed() == ["1.2.3.1"]


async def test_target_defers_when_storage_is_away(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> str:
        raise OSError("no space left")

    monkeypatch.setattr(house.blobs, "put", broken)
    target = DossierTarget(house.dossier, lambda _: a_report(a_document()))
    try:
        outcome = await target.deliver(a_message(b""))
    finally:
        target.close()
    assert isinstance(outcome, Deferred)
    assert not outcome.reason.refusal.permanent


SAMPLES = Path(__file__).parents[2].parent / "shared/samples/hl7v2"


@pytest.mark.samples
@pytest.mark.parametrize(
    ("initial", "replacement", "findings"),
    [
        ("oru_lab_report_n3_initial.hl7", "oru_lab_report_n3_replace.hl7", ["parent-contradicts-set"]),
        ("mdm_t02_imaging_n1_initial.er7", "mdm_t10_imaging_n1_replace.er7", []),
    ],
)
def test_the_official_pairs(house: House, initial: str, replacement: str, findings: list[str]) -> None:
    if not SAMPLES.exists():
        pytest.skip("the official samples are not on this machine")
    reports = [parse((SAMPLES / name).read_bytes(), environment="test") for name in (initial, replacement)]
    assert all(isinstance(report, Report) for report in reports), reports
    first, second = (house.deposit(report) for report in reports)
    assert isinstance(first, Deposited), first
    assert isinstance(second, Deposited), second
    assert [finding.code for finding in second.findings] == findings
    assert second.entries[0].logical_id == first.entries[0].logical_id
    patient = PatientKey(reports[0].patient.matricule, reports[0].patient.matricule_oid)
    assert house.listed(patient=patient) == [second.entries[0].unique_id]
