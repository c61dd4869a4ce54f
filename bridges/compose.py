"""A Report as the mail one correspondent reads in an ordinary client (RFC 5322, ECO.2 of the MSSanté client rules).

One message: a text summary, the PDF twin of each document, and IHE_XDM.zip for software. Composed by hand rather than
by a mail library, because the same arguments must give the same bytes on every node and after every crash, because
nothing a sending system wrote may add a header, and because all of it must be 7-bit before it is signed.
"""

from __future__ import annotations

import hashlib
import quopri
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Literal

import pybase64

from bridges import pdf, summary
from bridges.labels import type_label
from bridges.plain import ascii_name, file_part, french_date, one_line
from bridges.report import Action, Audience, Document, PatientIdentity, Report
from bridges.xdm import write_xdm

_CRLF = b"\r\n"
_ADDRESS = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)+"
)
"""dot-atom addr-spec in ASCII (RFC 5322 §3.4.1): the only form addresses of the trust space take."""
_MESSAGE_ID = re.compile(r"<[!-;=?-~]+@[!-;=?-~]+>")
_REAL_AUTHORITIES = frozenset({"1.2.250.1.213.1.4.8", "1.2.250.1.213.1.4.9"})
"""INS-NIR and INS-NIA. Test and demonstration authorities never make a qualified INS."""
_DOUBTFUL = frozenset({"PROV", "VIDE", "DOUT", "FICTI", "ANOM"})
"""PID-32 values of an identity that is not qualified (HL7 table 0445, PAM-FR)."""
_SUBJECT_LABEL = 40
_WORD_BYTES = 39
"""UTF-8 bytes of one encoded-word: 52 base64 characters, 64 with its envelope, which fits beside `Subject: `."""
_LONG_WORD = 60
_LINE = 76


@dataclass(frozen=True, slots=True)
class ComposeOptions:
    """What a gateway writes into every mail it composes."""

    software_reference: str
    """X-MSS-NIL: the product's number in the national register of conforming software."""
    environment: Literal["test", "production"]
    """In `test` the text starts by saying that it is not for care."""
    host_name: str
    """Identifies this gateway as the source of submissions (XDS sourceId); never changes for one gateway."""


def compose(
    report: Report,
    *,
    audience: Audience,
    sender_address: str,
    sender_name: str,
    recipient_address: str,
    recipient_name: str,
    message_id: str,
    at: datetime,
    options: ComposeOptions,
    twin_of: Callable[[Report, Document, Audience], bytes] = pdf.twin,
) -> bytes:
    """The whole message: ASCII on CRLF lines, 78 characters unless one name is longer, the same bytes each time.

    `at` (aware) is the Date and the submission time; `message_id` has its angle brackets; `twin_of` gives what
    `bridges.pdf.twin` does. Raises ValueError when an address or the Message-ID is not what RFC 5322 allows: the caller
    has already resolved them.
    """
    for address in (sender_address, recipient_address):
        if not _ADDRESS.fullmatch(address):
            raise ValueError("sender and recipient must be ASCII addr-specs")
    if not _MESSAGE_ID.fullmatch(message_id) or len(message_id) > 900:
        raise ValueError("message_id must be a msg-id in angle brackets")
    headers = [
        mailbox_field("From", sender_name or report.sender.organisation, sender_address),
        mailbox_field("To", recipient_name, recipient_address),
        *_reply_to(report.reply_to, recipient_address),
        header_field("Subject", document_subject(report)),
        header_field("Date", format_datetime(at.astimezone(UTC))),
        folded("Message-ID", [message_id]),
        header_field("MIME-Version", "1.0"),
        *mss_headers(report, audience, options),
    ]
    if report.flags.ack_reading is not False:
        headers.append(mailbox_field("Disposition-Notification-To", "", sender_address))
    parts = [text_part(summary.body(report, audience, options.environment))]
    attached: set[bytes] = set()
    for name, document in zip(pdf_names(report), report.documents, strict=True):
        twin = twin_of(report, document, audience)
        if twin not in attached:  # the structured form of twins often embeds the PDF of the other
            attached.add(twin)
            parts.append(attachment("application/pdf", name, twin))
    if report.documents:
        parts.append(archive_part(report, at, message_id, options))
    # "=_" cannot appear in base64 nor in quoted-printable (RFC 2045 §6.7): no part can hold the boundary
    boundary = "=_" + hashlib.sha256(message_id.encode()).hexdigest()[:32]
    headers.append(f'Content-Type: multipart/mixed;\r\n boundary="{boundary}"'.encode())
    delimiter = f"--{boundary}".encode()
    lines = [*headers, b""]
    for part in parts:
        lines += [delimiter, part]
    return _CRLF.join([*lines, delimiter + b"--", b""])


def archive_part(report: Report, at: datetime, message_id: str, options: ComposeOptions) -> bytes:
    """IHE_XDM.zip with the documents of the report, as an attachment of the mail with this Message-ID."""
    archive = write_xdm(
        report,
        at=at,
        source_id=own_oid("source", options.host_name),
        submission_id=own_oid("submission", message_id),
        action=report.action,
    )
    return attachment("application/zip", "IHE_XDM.zip", archive)


def pdf_names(report: Report) -> list[str]:
    """`AAAAMMJJ_<type>_<NOM>_<prenom>.pdf` per document (ECO.2.1.6), in ASCII, each name once.

    The notice of a withdrawal is named so: saved beside the document it must not pass for it.
    """
    withdrawn = report.action is Action.DELETE
    names: list[str] = []
    for document in report.documents:
        stem = _pdf_stem(report.patient, document, withdrawn)
        name, number = f"{stem}.pdf", 1
        while name in names:
            number += 1
            name = f"{stem}_{number}.pdf"
        names.append(name)
    return names


def _pdf_stem(patient: PatientIdentity, document: Document, withdrawn: bool) -> str:
    date = (document.service_start or document.created).strip()[:8]
    parts = (
        date if date.isascii() and date.isdigit() else "",
        ("RETRAIT-" if withdrawn else "") + file_part(type_label(document.type_code, document.type_label), 30),
        file_part(_birth_name(patient)).upper(),
        file_part(_first_name(patient)),
    )
    return "_".join(part for part in parts if part) or "document"


def _birth_name(patient: PatientIdentity) -> str:
    return patient.birth_name or patient.used_name


def _first_name(patient: PatientIdentity) -> str:
    return patient.first_names[0] if patient.first_names else ""


def document_subject(report: Report) -> str:
    """`XDM/1.0/DDM+<label> <NOM> <prenom> <JJ/MM/AAAA>` (ECO.2.1.3)."""
    patient, documents = report.patient, report.documents
    if len(documents) == 1 or summary.are_twins(documents):
        label = one_line(type_label(documents[0].type_code, documents[0].type_label))[:_SUBJECT_LABEL].rstrip()
    else:
        label = f"{len(documents)} documents"
    birth = patient.birth_date.strip()
    words = (
        f"XDM/1.0/DDM+{label}",
        ascii_name(_birth_name(patient)).upper()[:80],
        ascii_name(_first_name(patient))[:80],
        french_date(birth) if re.fullmatch(r"[0-9]{8}", birth) else "",
    )
    return " ".join(word for word in words if word)


def mss_headers(report: Report, audience: Audience, options: ComposeOptions) -> list[bytes]:
    """X-MSS-NIL, what the documents are, whether their INS is whole and real, and the last word to a patient."""
    headers = [header_field("X-MSS-NIL", options.software_reference)]
    if report.documents:
        codes = dict.fromkeys(re.sub(r"[^A-Za-z0-9._-]", "", document.type_code)[:40] for document in report.documents)
        joined = ",".join(code for code in codes if code)
        if joined:
            headers.append(folded("X-MSS-CODECDA", [joined] if len(joined) < 60 else joined.replace(",", ", ").split()))
        carried = (report.patient, *(document.patient for document in report.documents))
        real = options.environment == "production" and all(map(_qualified, carried))
        headers.append(header_field("X-MSS-INS", "O" if real else "N"))
    if audience is Audience.PATIENT and report.flags.last_of_exchange:
        headers.append(header_field("X-MSS-MES", "FIN"))
    return headers


def _qualified(patient: PatientIdentity) -> bool:
    """ECO.2.4.2: matricule, authority, birth name, first birth name, birth date and sex are all there, and real."""
    traits = (patient.matricule, patient.birth_name, "".join(patient.first_names[:1]), patient.birth_date, patient.sex)
    return (
        patient.matricule_oid in _REAL_AUTHORITIES
        and all(trait.strip() for trait in traits)
        and patient.reliability.strip().upper() not in _DOUBTFUL
    )


def _reply_to(address: str, recipient: str) -> list[bytes]:
    """The sender's wish, when it is an address and is not the reader's own (official examples confuse the two)."""
    address = address.strip()
    if not _ADDRESS.fullmatch(address) or address.lower() == recipient.lower():
        return []
    return [mailbox_field("Reply-To", "", address)]


def own_oid(kind: str, name: str) -> str:
    """An OID of our own for a name: the UUID arc (ITU-T X.667 §7)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, f'urn:relais:{kind}:{name}').int}"


def header_field(name: str, value: str) -> bytes:
    """An unstructured header on folded ASCII lines.

    Only the run of words that needs it becomes encoded-words (RFC 2047): filters on `XDM/1.0/DDM+` see it as it is.
    """
    words = one_line(value).split(" ")
    odd = [i for i, word in enumerate(words) if not _plain(word) or len(word) >= _LONG_WORD]
    if odd:
        first, after = odd[0], odd[-1] + 1
        words[first:after] = _encoded_words(" ".join(words[first:after]))
    return folded(name, words)


def mailbox_field(name: str, display: str, address: str) -> bytes:
    """A header that names one mailbox, its display name quoted or encoded (RFC 5322 §3.4)."""
    display = one_line(display, 100)
    if not display:
        return folded(name, [address])
    if _plain(display) and len(display) < _LONG_WORD:
        escaped = display.replace("\\", "\\\\").replace('"', '\\"')
        return folded(name, [f'"{escaped}"', f"<{address}>"])
    return folded(name, [*_encoded_words(display), f"<{address}>"])


def _plain(value: str) -> bool:
    """True when a client shows `value` as it stands: no character to encode, nothing that looks encoded already."""
    return value.isascii() and "=?" not in value


def _encoded_words(value: str) -> list[str]:
    """`value` as base64 encoded-words that each hold whole characters (RFC 2047 §5)."""
    words, chunk = [], b""
    for character in value:
        encoded = character.encode()
        if len(chunk) + len(encoded) > _WORD_BYTES:
            words.append(chunk)
            chunk = b""
        chunk += encoded
    words.append(chunk)
    return [f"=?utf-8?B?{pybase64.b64encode(word).decode()}?=" for word in words]


def folded(name: str, words: list[str]) -> bytes:
    """`name: words`, folded between words and never before the first (some readers drop a header that starts empty)."""
    lines, line = [], f"{name}: {words[0]}"
    for word in words[1:]:
        if len(line) + 1 + len(word) > _LINE:
            lines.append(line)
            line = ""
        line += f" {word}"
    return "\r\n".join([*lines, line]).encode("ascii")


def text_part(text: str) -> bytes:
    """text/plain in quoted-printable, readable as it is and safe from trailing spaces and mbox `From `."""
    encoded = b"\n" + quopri.encodestring(text.encode())
    encoded = encoded.replace(b"\nFrom ", b"\n=46rom ").replace(b"\n.", b"\n=2E")
    head = b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
    return head + encoded.strip(b"\n").replace(b"\n", _CRLF)


def attachment(content_type: str, file_name: str, content: bytes) -> bytes:
    """One MIME part in base64; `file_name` is plain ASCII."""
    head = (
        f"Content-Type: {content_type};\r\n"
        f' name="{file_name}"\r\n'
        "Content-Transfer-Encoding: base64\r\n"
        "Content-Disposition: attachment;\r\n"
        f' filename="{file_name}"\r\n\r\n'
    )
    return head.encode("ascii") + pybase64.encodebytes(content).rstrip(b"\n").replace(b"\n", _CRLF)
