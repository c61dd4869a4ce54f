"""Technical acknowledgements: `ACK^<event>^ACK` with MSA, and one ERR per refusal or warning.

HL7 v2.5 §2.9.2 and §2.15; volet "Transmission de documents CDA-R2 en HL7 v2" v2.1. The header is found even in a
frame too damaged to be read, because a sender without an answer sends again for ever.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from bridges.hl7.er7 import CHARSETS, STANDARD_SEPARATORS, Separators, escape
from bridges.report import Finding
from trust.refusals import HL7Code, Refused

_CONDITIONS = {
    "0": "Message accepted",
    "100": "Segment sequence error",
    "101": "Required field missing",
    "102": "Data type error",
    "103": "Table value not found",
    "198": "Non-Conformant Cardinality",
    "199": "Other HL7 Error",
    "200": "Unsupported message type",
    "201": "Unsupported event code",
    "202": "Unsupported processing id",
    "203": "Unsupported version id",
    "207": "Application error",
}
_FRENCH_CODES = frozenset(str(code) for code in range(900, 907))
_LONGEST_HEADER = 8192


@dataclass(frozen=True, slots=True)
class AckHeader:
    """What of MSH an answer echoes, as sent: still escaped, in the sender's own separators. Empty when missing."""

    sending_application: str = ""
    sending_facility: str = ""
    receiving_application: str = ""
    receiving_facility: str = ""
    event: str = ""
    """MSH-9.2."""
    control_id: str = ""
    """MSH-10."""
    processing_id: str = ""
    version: str = ""
    country: str = ""
    charset: str = ""
    """MSH-18."""
    separators: Separators = field(default=STANDARD_SEPARATORS)


def header_of(frame: bytes) -> AckHeader:
    """MSH of a frame that may be truncated, oversized or not HL7 at all; never raises."""
    start = frame.find(b"MSH", 0, _LONGEST_HEADER)
    if start < 0 or len(frame) < start + 4:
        return AckHeader()
    line = re.split(rb"[\r\n]", frame[start : start + _LONGEST_HEADER], maxsplit=1)[0]
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        text = line.decode("latin-1")
    mark = text[3:4]
    if not "!" <= mark <= "~" or mark.isalnum():
        return AckHeader()
    # Control characters cannot travel back: VT and FS would break the framing of the answer.
    fields = ["".join(c for c in part if c >= " " and not "\x7f" <= c <= "\x9f") for part in text[4:].split(mark)]
    fields += [""] * (20 - len(fields))
    encoding = fields[0].replace("˜", "~")[:4]
    known = len({*encoding, mark}) == 5 and all("!" <= c <= "~" and not c.isalnum() for c in encoding)
    separators = Separators(mark, *encoding) if known else Separators(field=mark)
    # fields[n] is MSH-(n+2): MSH-1 is the separator itself.
    return AckHeader(
        sending_application=fields[1],
        sending_facility=fields[2],
        receiving_application=fields[3],
        receiving_facility=fields[4],
        event=[*fields[7].split(separators.component), ""][1],
        control_id=fields[8],
        processing_id=fields[9],
        version=fields[10],
        country=fields[15],
        charset=fields[16],
        separators=separators,
    )


def accept(header: AckHeader, control_id_own: str, at: datetime, warnings: Sequence[Refused | Finding] = ()) -> bytes:
    """`MSA|AA`: we have taken responsibility. A warning tells what was tolerated or what cannot be delivered
    (ERR-4 `W`). `control_id_own` is our MSH-10, `at` an aware time."""
    lines = [_msh(header, control_id_own, at), _line(header, "MSA", "AA", header.control_id)]
    lines += [_err(header, warning, "W") for warning in warnings]
    return _encode(lines, header)


def refuse(header: AckHeader, control_id_own: str, at: datetime, refused: Refused | Sequence[Refused]) -> bytes:
    """`MSA|AE`, or `MSA|AR` when every refusal is circumstantial: one ERR for each."""
    several = [refused] if isinstance(refused, Refused) else list(refused)
    code = "AE" if not several or any(r.refusal.hl7 is HL7Code.AE for r in several) else "AR"
    lines = [_msh(header, control_id_own, at), _line(header, "MSA", code, header.control_id)]
    lines += [_err(header, one, "E") for one in several]
    return _encode(lines, header)


def _msh(header: AckHeader, control_id: str, at: datetime) -> str:
    separators = header.separators
    kind = separators.component.join(("ACK", header.event, "ACK")) if header.event else "ACK"
    fields = [
        separators.encoding_characters,
        header.receiving_application,
        header.receiving_facility,
        header.sending_application,
        header.sending_facility,
        at.strftime("%Y%m%d%H%M%S%z"),
        "",
        kind,
        escape(control_id, separators),
        header.processing_id or "P",
        header.version or "2.5",
        "",
        "",
        "",
        "",
        header.country,
        _declared(header),
    ]
    return _line(header, "MSH", *fields)


def _err(header: AckHeader, problem: Refused | Finding, severity: str) -> str:
    if isinstance(problem, Finding):
        condition = _coded(header, "0", _CONDITIONS["0"], "messageErrorCondition")
        what = _safe(header, f"{problem.code} {problem.location}")
        return _line(header, "ERR", "", "", condition, severity, "", "", what)
    refusal = problem.refusal
    table = "applicationErrorCondition" if refusal.application in _FRENCH_CODES else "SMTPERRORCODE"
    application = _coded(header, refusal.application, refusal.text_fr, table) if refusal.application else ""
    diagnostic = " ".join(part for part in (refusal.code, problem.detail) if part)
    return _line(
        header,
        "ERR",
        "",
        header.separators.component.join(_safe(header, step) for step in problem.location.split("^")),
        _coded(header, refusal.condition, _CONDITIONS.get(refusal.condition, ""), "messageErrorCondition"),
        severity,
        application,
        "",
        _safe(header, diagnostic),
        _safe(header, refusal.text_fr),
    )


def _coded(header: AckHeader, *components: str) -> str:
    return header.separators.component.join(_safe(header, part) for part in components)


def _safe(header: AckHeader, text: str) -> str:
    return escape(text, header.separators)


def _line(header: AckHeader, *fields: str) -> str:
    return header.separators.field.join(fields).rstrip(header.separators.field)


def _declared(header: AckHeader) -> str:
    """MSH-18 of the answer: the sender's when we know it, UTF-8 when not."""
    return header.charset if not header.charset or _charset_name(header) in CHARSETS else "UNICODE UTF-8"


def _charset_name(header: AckHeader) -> str:
    return header.charset.upper().replace(header.separators.repetition, " ").strip()


def _encode(lines: list[str], header: AckHeader) -> bytes:
    """Segments end with CR."""
    codec = CHARSETS.get(_charset_name(header), "utf-8") if header.charset else "ascii"
    text = "".join(line + "\r" for line in lines)
    if codec == "ascii":
        # Our sentences are French: a letter without its accent reads better than a question mark.
        text = unicodedata.normalize("NFKD", text)
    return text.encode(codec, "ignore")
