"""What a structured CDA body says: its laboratory observations as `Result`s and its narrative as plain text.

Nothing is computed: values, bounds and units stay as written. A result's label is the text the narrative shows, when
the entry points at it, because that is the name its author and reader use.

A stranger may have written it: what many observations share (a referred text, the titles around them) is read once, and
no text is kept beyond what a value or a name may be.
"""

from __future__ import annotations

from collections.abc import Iterator

from lxml import etree

from bridges.report import Result

V3 = "{urn:hl7-org:v3}"
_XSI_TYPE = "{http://www.w3.org/2001/XMLSchema-instance}type"
_LABORATORY_OBSERVATION = "1.3.6.1.4.1.19376.1.3.1.6"
"""IHE PaLM "Laboratory Observation" templateId."""
_LOINC = "2.16.840.1.113883.6.1"
_MEASURES = frozenset({"PQ", "IVL_PQ", "REAL", "INT", "IVL_REAL", "IVL_INT", "RTO", "RTO_PQ_PQ"})
MAX_RESULTS = 5000
"""Of one document; what is behind is not read."""
_LONGEST_VALUE = 1000
"""Characters of a value, and of a text an entry points at."""
_LONGEST_LABEL = 200
"""A longer target is a whole row or paragraph, not a name."""
_LONGEST_PATH = 500
"""Characters of the titles around an observation."""
_BLANKS = 50
"""Characters looked at for each one kept: files are indented."""

_LINES = frozenset({"paragraph", "list", "item", "table", "tr", "caption", "br"})
_CELLS = frozenset({"td", "th"})


def results(root: etree._Element) -> tuple[Result, ...]:
    """Every laboratory observation with a value, in document order; the first `MAX_RESULTS`.

    Earlier results quoted beside a new one (an observation inside an observation, entryRelationship REFR) are left
    out: read as this report's own, a former value would be taken for today's. The narrative still shows them.
    """
    shared = _Shared(root)
    found: list[Result] = []
    for observation in root.iter(V3 + "observation"):
        value = observation.find(V3 + "value")
        status = _attribute(observation, "statusCode", "code")
        if value is None or value.get("nullFlavor") or status in ("nullified", "aborted", "cancelled"):
            continue
        code = observation.find(V3 + "code")
        if not _is_laboratory(observation, code, value) or _is_quoted(observation):
            continue
        low, high = _reference_range(observation)
        written, unit = _value(value, shared)
        found.append(
            Result(
                section=shared.section_path(observation),
                label=_label(code, shared, written),
                code=_get(code, "code"),
                code_system=_get(code, "codeSystem"),
                value=written,
                unit=unit,
                low=low,
                high=high,
                interpretation=_attribute(observation, "interpretationCode", "code"),
                effective=shared.effective(observation),
            )
        )
        if len(found) == MAX_RESULTS:
            break
    return tuple(found)


class _Shared:
    """What the observations of one document have in common, each read once."""

    def __init__(self, root: etree._Element) -> None:
        self._by_id = {identifier: element for element in root.iter(etree.Element) if (identifier := element.get("ID"))}
        self._texts: dict[etree._Element, str] = {}
        self._paths: dict[etree._Element, str] = {}
        self._times: dict[etree._Element, str] = {}

    def text(self, element: etree._Element | None) -> str:
        """As `plain_text`, of a value's length at most."""
        if element is None:
            return ""
        if element not in self._texts:
            self._texts[element] = plain_text(element, _LONGEST_VALUE)
        return self._texts[element]

    def target(self, element: etree._Element) -> etree._Element | None:
        """What a `reference` in it points at."""
        reference = _attribute(element, "reference", "value")
        return self._by_id.get(reference.removeprefix("#")) if reference else None

    def section_path(self, element: etree._Element) -> str:
        """The titles around an observation, and the germ it is about: the same antibiotic may help against one only."""
        inside: list[etree._Element] = []
        path = ""
        for around in element.iterancestors(V3 + "section", V3 + "organizer"):
            if around in self._paths:
                path = self._paths[around]
                break
            inside.append(around)
        for around in reversed(inside):
            path = " / ".join(part for part in (path, self._name(around)) if part)[-_LONGEST_PATH:]
            self._paths[around] = path
        return path

    def _name(self, around: etree._Element) -> str:
        if around.tag == V3 + "section":
            return self.text(around.find(V3 + "title"))[:_LONGEST_LABEL]
        germ = around.find(f"{V3}specimen/{V3}specimenRole/{V3}specimenPlayingEntity[@classCode='MIC']/{V3}code")
        return f"Isolat : {_label(germ, self)}" if germ is not None else ""

    def effective(self, observation: etree._Element) -> str:
        """When it was observed: the observation's own time, else that of the organizer or act around it."""
        element: etree._Element | None = observation
        when = ""
        passed: list[etree._Element] = []
        while element is not None and element.tag != V3 + "section" and not when:
            if element in self._times:
                when = self._times[element]
                break
            passed.append(element)
            time = element.find(V3 + "effectiveTime")
            if time is not None:
                when = _get(time, "value") or _attribute(time, "low", "value") or _attribute(time, "high", "value")
            element = element.getparent()
        self._times.update(dict.fromkeys(passed, when))
        return when


def narrative(root: etree._Element, limit: int) -> str:
    """Titles and texts of all sections, one line per row, paragraph or item, at most `limit` characters."""
    lines: list[str] = []
    size = 0
    for section in root.iter(V3 + "section"):
        title = plain_text(section.find(V3 + "title"))
        block = [title] if title else []
        text = section.find(V3 + "text")
        if text is not None:
            block += _narrative_lines(text)
        for line in block:
            size += len(line) + 1
            if size > limit:
                return "\n".join(lines)
            lines.append(line)
    return "\n".join(lines)


def plain_text(element: etree._Element | None, limit: int = 0) -> str:
    """All text of an element, white space collapsed; with a `limit` no more is read than for so many characters, and
    what was cut ends with `…`."""
    if element is None:
        return ""
    if not limit:
        return " ".join("".join(_strings(element)).split())
    pieces, room = list[str](), limit * _BLANKS
    for text in _strings(element):
        pieces.append(text[:room])
        room -= len(text) + 1
        if room <= 0:
            break
    whole = " ".join("".join(pieces).split())
    return f"{whole[: limit - 1]}…" if room <= 0 or len(whole) > limit else whole


def _strings(element: etree._Element) -> Iterator[str]:
    for text in element.itertext(etree.Element):
        yield str(text)


def _narrative_lines(text: etree._Element) -> list[str]:
    pieces: list[str] = []
    for event, element in etree.iterwalk(text, events=("start", "end", "comment", "pi")):
        if event in ("comment", "pi"):
            pieces.append(_flat(element.tail))
            continue
        name = etree.QName(element).localname
        if event == "start":
            if name in _LINES:
                pieces.append("\n")
            pieces.append(_flat(element.text))
        else:
            if name in _LINES and name != "br":
                pieces.append("\n")
            elif name in _CELLS:
                pieces.append(" | ")
            if element is not text:
                pieces.append(_flat(element.tail))
    lines = "".join(pieces).split("\n")
    return [tidy for line in lines if (tidy := " ".join(line.split()).removesuffix("|").rstrip())]


def _flat(text: str | None) -> str:
    return " ".join(text.split("\n")) if text else ""


def _is_laboratory(observation: etree._Element, code: etree._Element | None, value: etree._Element) -> bool:
    if any(t.get("root") == _LABORATORY_OBSERVATION for t in observation.findall(V3 + "templateId")):
        return True
    return _get(code, "codeSystem") == _LOINC and _type_of(value) in _MEASURES


def _is_quoted(observation: etree._Element) -> bool:
    parent = observation.getparent()
    quoted_by = parent.getparent() if parent is not None and parent.get("typeCode") == "REFR" else None
    return quoted_by is not None and quoted_by.tag == V3 + "observation"


def _type_of(value: etree._Element) -> str:
    return str(value.get(_XSI_TYPE, "")).rpartition(":")[2]


def _value(value: etree._Element, shared: _Shared) -> tuple[str, str]:
    """(what was written, UCUM unit)."""
    kind = _type_of(value)
    if kind.startswith("IVL_"):
        low, high = value.find(V3 + "low"), value.find(V3 + "high")
        unit = _get(low, "unit") or _get(high, "unit") or _get(value, "unit")
        bottom, top = _get(low, "value"), _get(high, "value")
        if bottom and top:
            return f"{bottom} - {top}", unit
        if bottom:
            return f"{_sign('>', low)} {bottom}", unit
        if top:
            return f"{_sign('<', high)} {top}", unit
        return _get(value, "value") or shared.text(value), unit
    if kind.startswith("RTO"):
        parts = [value.find(V3 + "numerator"), value.find(V3 + "denominator")]
        return "/".join(_get(part, "value") for part in parts), _get(parts[0], "unit")
    if kind in ("CD", "CE", "CV", "CO", "CS"):
        translation = value.find(V3 + "translation")
        return (
            _get(value, "displayName")
            or _original_text(value, shared)
            or _get(translation, "displayName")
            or _get(value, "code"),
            "",
        )
    if value.get("value") is not None:
        return _get(value, "value"), _get(value, "unit")
    return shared.text(shared.target(value)) or shared.text(value), ""


def _sign(sign: str, bound: etree._Element | None) -> str:
    # CDA bounds are inclusive unless said otherwise, but laboratories write "< 0.5" as a bare bound: only an explicit
    # inclusive="true" is believed.
    return sign + "=" if _get(bound, "inclusive") == "true" else sign


def _label(code: etree._Element | None, shared: _Shared, value: str = "") -> str:
    """What the reader calls it; the code's own name when the entry points at the cell of the `value` instead."""
    if code is None:
        return ""
    shown = _original_text(code, shared)
    display = _get(code, "displayName") or _get(code.find(V3 + "translation"), "displayName")
    if shown and len(shown) <= _LONGEST_LABEL and not (display and value and _bare(shown).startswith(_bare(value))):
        return shown
    return display or shown[:_LONGEST_LABEL] or _get(code, "code")


def _bare(text: str) -> str:
    return text.replace(",", ".").lstrip("<>= ")


def _original_text(coded: etree._Element, shared: _Shared) -> str:
    original = coded.find(V3 + "originalText")
    if original is None:
        return ""
    target = shared.target(original)
    return shared.text(target if target is not None else original)


def _reference_range(observation: etree._Element) -> tuple[str, str]:
    """(low, high) of the first range that has bounds; a range interpreted as anything but normal is left aside."""
    for span in observation.findall(f"{V3}referenceRange/{V3}observationRange"):
        if _attribute(span, "interpretationCode", "code") not in ("", "N"):
            continue
        value = span.find(V3 + "value")
        if value is not None:
            low, high = _attribute(value, "low", "value"), _attribute(value, "high", "value")
            if low or high:
                return low, high
    return "", ""


def _get(element: etree._Element | None, name: str) -> str:
    return str(element.get(name, "")) if element is not None else ""


def _attribute(element: etree._Element, child: str, name: str) -> str:
    return _get(element.find(V3 + child), name)
