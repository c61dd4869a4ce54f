"""Technical acknowledgements: `ACK^<event>^ACK` with MSA, and one ERR per refusal or warning; and how any answer is
written in the separators and character set of the message it answers.

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
UTF_8 = "UNICODE UTF-8"
"""MSH-18 of an answer to a message whose own value we do not know."""


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

    @property
    def codec(self) -> str | None:
        """Python's name of the character set; None when MSH-18 is empty or says nothing we know."""
        return CHARSETS.get(self.charset.upper().replace(self.separators.repetition, " ").strip())


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
    return _answer(header, control_id_own, at, "AA", [_err(header, warning, "W") for warning in warnings])


def refuse(header: AckHeader, control_id_own: str, at: datetime, refused: Refused | Sequence[Refused]) -> bytes:
    """`MSA|AE`, or `MSA|AR` when every refusal is circumstantial: one ERR for each."""
    several = [refused] if isinstance(refused, Refused) else list(refused)
    code = "AE" if not several or any(r.refusal.hl7 is HL7Code.AE for r in several) else "AR"
    return _answer(header, control_id_own, at, code, [_err(header, one, "E") for one in several])


def _answer(header: AckHeader, control_id_own: str, at: datetime, code: str, errors: list[str]) -> bytes:
    kind = ("ACK", header.event, "ACK") if header.event else ("ACK",)
    unknown = bool(header.charset) and header.codec is None
    charset = UTF_8 if unknown else header.charset
    opening = msh(header, control_id_own, at, kind, header.version or "2.5", header.country, charset)
    codec = "utf-8" if unknown else header.codec or "ascii"
    return encoded([opening, segment(header, "MSA", code, header.control_id), *errors], codec)


def _err(header: AckHeader, problem: Refused | Finding, severity: str) -> str:
    if isinstance(problem, Finding):
        condition = coded(header, "0", _CONDITIONS["0"], "messageErrorCondition")
        what = coded(header, f"{problem.code} {problem.location}")
        return segment(header, "ERR", "", "", condition, severity, "", "", what)
    refusal = problem.refusal
    table = "applicationErrorCondition" if refusal.application in _FRENCH_CODES else "SMTPERRORCODE"
    return segment(
        header,
        "ERR",
        "",
        coded(header, *problem.location.split("^")),
        coded(header, refusal.condition, _CONDITIONS.get(refusal.condition, ""), "messageErrorCondition"),
        severity,
        coded(header, refusal.application, refusal.text_fr, table) if refusal.application else "",
        "",
        coded(header, " ".join(part for part in (refusal.code, problem.detail) if part)),
        coded(header, refusal.text_fr),
    )


# Any answer


def msh(
    header: AckHeader,
    control_id: str,
    at: datetime,
    kind: Sequence[str],
    version: str,
    country: str,
    charset: str,
    *more: str,
) -> str:
    """MSH of an answer to `header`: sender and receiver change places. `kind` is MSH-9 by component, `more` what
    follows MSH-18, as it is to stand there."""
    return segment(
        header,
        "MSH",
        header.separators.encoding_characters,
        header.receiving_application,
        header.receiving_facility,
        header.sending_application,
        header.sending_facility,
        at.strftime("%Y%m%d%H%M%S%z"),
        "",
        # echoed as sent, our own parts need no escaping
        header.separators.component.join(kind),
        coded(header, control_id),
        header.processing_id or "P",
        version,
        *("", "", "", ""),
        country,
        charset,
        *more,
    )


def coded(header: AckHeader, *components: str) -> str:
    """A field of these components, escaped."""
    return header.separators.component.join(escape(component, header.separators) for component in components)


def segment(header: AckHeader, *fields: str) -> str:
    """Fields that are escaped already; empty ones at the end are left out."""
    return header.separators.field.join(fields).rstrip(header.separators.field)


def encoded(segments: Sequence[str], codec: str) -> bytes:
    """Segments end with CR. What the character set does not have is left out."""
    text = "".join(line + "\r" for line in segments)
    if codec == "ascii":
        # Our sentences are French: a letter without its accent reads better than none.
        text = unicodedata.normalize("NFKD", text)
    return text.encode(codec, "ignore")
