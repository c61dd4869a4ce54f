"""The first road: a laboratory's report reaches the doctor's mail client and the patient's record."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import zipfile
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from config.control import ControlError
from config.demonstration import UNEQUIPPED
from config.show import acknowledgement_code
from smime.mime import parse_entity, split_multipart
from tests.support.reports import DOCTOR as TO_DOCTOR
from tests.support.reports import Correspondent, Flags, cda, message, spoilt
from tests.support.running import Running, with_control_id

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("up")]

DOCTOR = {"reader": "801234567897", "patient": "279035121518989", "oid": "1.2.250.1.213.1.4.10"}


def mails_about(up: Running, role: str, digest: str) -> list[EmailMessage]:
    """Mails of a mailbox whose IHE_XDM.zip holds the document with this SHA-256."""
    found = []
    for mail in up.mails(role):
        archive = attachment(mail, "IHE_XDM.zip")
        if archive is None:
            continue
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            if any(hashlib.sha256(opened.read(name)).hexdigest() == digest for name in opened.namelist()):
                found.append(mail)
    return found


def attachment(mail: EmailMessage, name: str) -> bytes | None:
    for part in mail.walk():
        if part.get_filename() == name:
            content = part.get_content()
            assert isinstance(content, bytes)
            return content
    return None


def document_of(message: bytes) -> bytes:
    found = re.search(rb"\^XML\^Base64\^([A-Za-z0-9+/=]+)", message)
    assert found is not None
    encoded = found.group(1)
    return base64.b64decode(encoded + b"=" * (-len(encoded) % 4))


def digest_of(message: bytes) -> str:
    return hashlib.sha256(document_of(message)).hexdigest()


def oru(control_id: str, name: str = "", **more: Any) -> bytes:
    """A synthetic report to the doctor with a document of its own."""
    identifier = f"1.2.250.1.999.2.{int(hashlib.sha256((name or control_id).encode()).hexdigest()[:12], 16)}"
    return message(
        control_id=control_id,
        documents=[cda(unique_id=identifier + ".1", set_id=identifier)],
        **{"recipients": (TO_DOCTOR,), **more},
    )


def listed(up: Running, **more: Any) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = up.ask("laboratoire", "dossier.list", **{"every": False, **DOCTOR, **more})
    return entries


@pytest.mark.samples
def test_official_sample_then_its_replacement(up: Running, samples: Path) -> None:
    """Byte for byte as published: both share MSH-10 `015`, the replacement contradicts itself, both are accepted."""
    initial = (samples / "hl7v2" / "oru_lab_report_n3_initial.hl7").read_bytes()
    first = up.accepted(initial)
    assert b"MSA|AA|015" in first
    assert up.send(initial) == first, "a repeat is answered with the stored acknowledgement"
    up.wait_settled()

    (mail,) = mails_about(up, "gp", digest_of(initial))
    assert mail["Subject"].startswith("XDM/1.0/DDM+CR d'examens biologiques PAT-TROIS DOMINIQUE")
    assert mail["X-MSS-INS"] == "N", "a test identity is never declared qualified"
    assert mail["X-MSS-CODECDA"] == "11502-2"
    assert mail["X-MSS-NIL"]
    assert mail["Disposition-Notification-To"]
    assert "signature=valid" in mail["X-Relais-Verdict"]
    assert "decrypted=yes" in mail["X-Relais-Verdict"]
    assert "dkim=pass" in mail["Authentication-Results"]
    body = words_of(mail)
    assert "CORPSMAIL" not in body and "Cher confr" not in body, "half a body is no body"
    assert body.index("3.8") < body.index("75.0"), "abnormal values come first"
    assert any(part.get_content_type() == "application/pdf" for part in mail.walk())
    assert mails_about(up, "patient", digest_of(initial)) == [], "the 20-character address is not the patient's"
    (entry,) = [e for e in listed(up) if e["unique_id"] == "1.2.250.1.213.1.1.9"]
    assert entry["status"] == "current"
    read = up.ask("laboratoire", "dossier.read", document=entry["id"], **DOCTOR)
    assert base64.b64decode(read["content"]) == document_of(initial)

    replacement = (samples / "hl7v2" / "oru_lab_report_n3_replace.hl7").read_bytes()
    up.accepted(replacement)
    up.wait_settled()
    assert len(mails_about(up, "gp", digest_of(replacement))) == 1
    assert len(mails_about(up, "patient", digest_of(replacement))) == 1
    current = [e for e in listed(up) if e["set_id"] == "1.2.250.1.213.1.1.9"]
    assert [e["version"] for e in current] == [2]
    both = [e for e in listed(up, every=True) if e["set_id"] == "1.2.250.1.213.1.1.9"]
    assert sorted((e["version"], e["status"]) for e in both) == [(1, "superseded"), (2, "current")]


@pytest.mark.samples
@pytest.mark.parametrize("name", ["mdm_t02_imaging_n1_initial.er7", "mdm_t10_imaging_n1_replace.er7"])
def test_official_imaging_reports(up: Running, samples: Path, name: str) -> None:
    if name.startswith("mdm_t10"):
        before = (samples / "hl7v2" / "mdm_t02_imaging_n1_initial.er7").read_bytes()
        up.accepted(with_control_id(before, "T02-BEFORE-T10"))
    message = with_control_id((samples / "hl7v2" / name).read_bytes(), f"E2E-{name[:7]}")
    up.accepted(message)
    up.wait_settled()
    mails = mails_about(up, "gp", digest_of(message))
    assert mails
    assert any("Cher confrère" in words_of(mail) for mail in mails)


def test_same_control_id_with_other_content_is_a_new_message(up: Running) -> None:
    one, two = oru("REUSED-1", "first"), oru("REUSED-1", "second")
    up.accepted(one)
    up.accepted(two)
    up.wait_settled()
    assert len(mails_about(up, "gp", digest_of(one))) == 1
    assert len(mails_about(up, "gp", digest_of(two))) == 1


def test_a_client_not_in_python_reads_the_mail(up: Running) -> None:
    up.accepted(oru(control_id="CURL-1"))
    up.wait_settled()
    curl = shutil.which("curl")
    assert curl is not None
    account, imaps = up.account("gp"), up.endpoints["imaps"]
    fetched = subprocess.run(
        [
            curl,
            "--silent",
            "--show-error",
            "--cacert",
            up.endpoints["ca_file"],
            "--config",
            "-",
            f"imaps://127.0.0.1:{imaps['port']}/INBOX;MAILINDEX=1",
        ],
        input=f'user = "{account["user"]}:{account["password"]}"\n'.encode(),
        capture_output=True,
        check=True,
        timeout=60,
    ).stdout
    assert b"IHE_XDM.zip" in fetched
    assert b"X-Relais-Verdict: " in fetched


def words_of(mail: EmailMessage) -> str:
    """All that a mail program shows as text, the gateway's own words included."""
    return "\n".join(part.get_content() for part in mail.walk() if part.get_content_type() == "text/plain")


def signed_in(mail: bytes) -> bytes:
    """What is signed, octet for octet: the mail, or the part of it that came, where something is put before it."""
    whole = parse_entity(mail)
    kind = whole.content_type()
    if kind.media_type != "multipart/mixed":
        return mail
    parts = [parse_entity(mail, *part) for part in split_multipart(whole, kind.parameters["boundary"])]
    return bytes(next(part for part in parts if part.content_type().media_type == "multipart/signed").whole)


def test_the_signature_survives_delivery_and_an_independent_program_verifies_it(up: Running, tmp_path: Path) -> None:
    up.accepted(oru(control_id="VERIFY-1"))
    up.wait_settled()
    mail = tmp_path / "mail.eml"
    mail.write_bytes(signed_in(up.raw_mails("gp")[-1]))
    verified = subprocess.run(
        ["openssl", "cms", "-verify", "-in", str(mail), "-CAfile", up.endpoints["ca_file"], "-purpose", "any"],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert verified.returncode == 0, verified.stderr.decode()


def test_nobody_reads_the_record_without_being_somebody(up: Running) -> None:
    with pytest.raises(ControlError):
        up.ask("laboratoire", "dossier.list", every=False, **{**DOCTOR, "reader": "899999999999"})


def test_every_access_is_in_an_unbroken_journal(up: Running) -> None:
    message = oru("JOURNAL-1")
    up.accepted(message)
    up.wait_settled()
    before = up.ask("laboratoire", "journal.verify")
    with pytest.raises(ControlError):
        listed(up, patient="1999999999999")
    after = up.ask("laboratoire", "journal.verify")
    assert after["ok"], after
    assert after["entries"] > before["entries"]


def test_no_log_line_names_a_patient(up: Running) -> None:
    """Whatever was sent before in this process: names, matricule, mail addresses of patients, subjects, passwords."""
    up.accepted(oru(control_id="LOG-1"))
    up.wait_settled()
    secrets = [account["password"].encode() for account in up.endpoints["accounts"]]
    for log in (up.state / "log").glob("*"):
        content = log.read_bytes()
        for word in (b"PAT-TROIS", b"DOMINIQUE", b"279035121518989", b"XDM/1.0", *secrets):
            assert word not in content, f"{word!r} in {log.name}"
    for log in (up.state / "dovecot").glob("*.log"):
        content = log.read_bytes()
        for word in (b"PAT-TROIS", b"DOMINIQUE", b"279035121518989", b"XDM/1.0", *secrets):
            assert word not in content, f"{word!r} in {log.name}"


NO_RECORD = Flags(to_dossier=False)
IMPOSSIBLE = {
    "unknown recipient": Correspondent("personne.inconnue@test-ci-sis.mssante.fr", "800000000000"),
    "untrusted domain": Correspondent("quelquun@example.com", "800000000001"),
    "no encryption certificate": Correspondent(UNEQUIPPED.address, UNEQUIPPED.id_nat),
    "other patient's mailbox": Correspondent("279035121518989@patient.mssante.fr", "2990299999999", patient=True),
    "no address": Correspondent("", "800000000003"),
}


@pytest.mark.parametrize("case", sorted(IMPOSSIBLE))
def test_a_report_nobody_can_receive_is_refused(up: Running, case: str) -> None:
    recipient = IMPOSSIBLE[case]
    sent = oru(f"IMPOSSIBLE-{case[:8]}", recipients=(recipient,), flags=NO_RECORD)
    answer = up.send(sent)
    assert acknowledgement_code(answer) == "AE"
    assert answer.count(b"\rERR|") == 1
    assert up.send(sent) != b"", "the connection serves the next message"


def test_one_impossible_recipient_does_not_stop_the_others(up: Running) -> None:
    sent = oru("PARTIAL-1", recipients=(TO_DOCTOR, *IMPOSSIBLE.values()), flags=NO_RECORD)
    up.accepted(sent)
    up.wait_settled()
    assert len(mails_about(up, "gp", digest_of(sent))) == 1
    (life,) = up.ask("laboratoire", "trace", reference="PARTIAL-1")
    states = [delivery["state"] for delivery in life["deliveries"]]
    assert states.count("delivered") == 1
    assert states.count("failed") >= 3


@pytest.mark.parametrize("case", sorted(spoilt()))
def test_a_message_that_is_wrong_is_refused_and_leaves_nothing(up: Running, case: str) -> None:
    identifier = f"SPOILT-{case}"[:20]  # of this message alone: receipts about others come and go meanwhile
    answer = up.send(spoilt()[case].replace(b"RLS-000001", identifier.encode()))
    assert acknowledgement_code(answer) == "AE"
    assert b"\rERR|" in answer
    assert up.ask("laboratoire", "trace", reference=identifier) == []


def test_endpoints_are_private_and_complete(up: Running) -> None:
    path = up.state / "endpoints.json"
    assert path.stat().st_mode & 0o777 == 0o600
    described = json.loads(path.read_text())
    assert {account["role"] for account in described["accounts"]} == {"gp", "laboratory", "hospital", "patient"}
    for name in ("mllp", "imaps", "submission", "ldaps"):
        assert described[name]["port"] > 0


def test_a_prescriber_named_by_rpps_and_not_by_address_receives_it(up: Running) -> None:
    named = Correspondent("", TO_DOCTOR.identifier, TO_DOCTOR.family, TO_DOCTOR.given)
    sent = oru("RPPS-1", recipients=(named,), flags=NO_RECORD)
    up.accepted(sent)
    up.wait_settled()
    (mail,) = mails_about(up, "gp", digest_of(sent))
    assert TO_DOCTOR.address in mail["To"]
    assert "signature=valid" in mail["X-Relais-Verdict"] and "decrypted=yes" in mail["X-Relais-Verdict"]
