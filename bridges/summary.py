"""What a reader sees first: the results ranked, and the text of the mail.

A doctor reads critical values before abnormal ones before the rest; a patient reads the same values in the document's
order, without alarm. Only what the sender wrote is shown: the one thing worked out here is that a plain number lies
outside the sender's own reference range when the sender gave no interpretation, and it is marked as such.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from typing import Literal

from bridges.labels import FINDING_LABELS, INTERPRETATION_LABELS, type_label
from bridges.plain import french_date, one_line, paragraphs
from bridges.report import Action, Audience, Document, Party, PatientIdentity, Report, Result

CRITICAL = frozenset({"HH", "LL", "AA"})
ABNORMAL = frozenset({"H", "HU", "HX", ">", "L", "LU", "LX", "<", "A", "W", "R", "I", "POS", "DET"})
"""A positive or detected result is not always abnormal, but is never left for the end of the list."""
TEST_AUTHORITIES = frozenset({"1.2.250.1.213.1.4.10", "1.2.250.1.213.1.4.11"})
"""INS authorities of tests and demonstrations."""

MAX_RESULTS = 200
"""Results shown in the text; the PDF has them all."""
MAX_NARRATIVE_LINES = 40
MAX_CONCLUSION_LINES = 12
_CONCLUSIONS = frozenset({"conclusion", "conclusions"})
"""Titles of what stands at the end of a long report and is read first."""
_LABORATORY_TYPE = "11502-2"
_LABORATORY_FORMAT = "urn:ihe:lab:xd-lab:2008"
_NUMBER = re.compile(r"[+-]?\d{1,15}(?:[.,]\d{1,15})?")


@dataclass(frozen=True, slots=True)
class RankedResult:
    """One result and why it stands where it stands."""

    result: Result
    flag: str
    """Interpretation codes as sent, or `H`/`L` when `computed`; empty when there is nothing to say."""
    computed: bool
    """The sender gave no interpretation: value and range were compared here."""

    @property
    def words(self) -> str:
        """The flag in French: `haut (H)`, `hors bornes, calculé (L)`; empty for a normal result."""
        if self.computed:
            return f"hors bornes, calculé ({self.flag})"
        codes = _codes(self.flag)
        words = ", ".join(INTERPRETATION_LABELS[code] for code in codes if code in INTERPRETATION_LABELS)
        if words:
            return f"{words} ({' '.join(codes)})"
        return "" if codes in ((), ("N",)) else one_line(self.flag, 20)


@dataclass(frozen=True, slots=True)
class RankedResults:
    critical: tuple[RankedResult, ...]
    abnormal: tuple[RankedResult, ...]
    other: tuple[RankedResult, ...]


def ranked(results: Iterable[Result]) -> RankedResults:
    """Results by urgency, in the document's order within each rank."""
    critical, abnormal, other = [], [], []
    for result in results:
        one = _rank(result)
        codes = set(_codes(one.flag))
        if codes & CRITICAL:
            critical.append(one)
        elif codes & ABNORMAL:
            abnormal.append(one)
        else:
            other.append(one)
    return RankedResults(tuple(critical), tuple(abnormal), tuple(other))


def unranked(results: Iterable[Result]) -> list[RankedResult]:
    """The same results with nothing said of them, for a patient."""
    return [RankedResult(result, "", computed=False) for result in results]


def reference_range(result: Result) -> str:
    """`[12.0 - 16.0]`, `[>= 12.0]`, `[<= 16.0]`, or nothing."""
    low, high = one_line(result.low, 30), one_line(result.high, 30)
    if low and high:
        return f"[{low} - {high}]"
    if low:
        return f"[>= {low}]"
    return f"[<= {high}]" if high else ""


def shown_unit(result: Result) -> str:
    """The unit as sent, without the braces of a UCUM annotation (`{ratio}`)."""
    unit = result.unit.strip()
    return unit[1:-1] if unit.startswith("{") and unit.endswith("}") else unit


def body(report: Report, audience: Audience, environment: Literal["test", "production"]) -> str:
    """The mail's text (LF line ends): for `audience`, in French."""
    parts = ["*** MESSAGE D'ESSAI : ne pas utiliser pour des soins ***"] if environment == "test" else []
    write = _patient_text if audience is Audience.PATIENT else _professional_text
    return "\n\n".join([*parts, *(part for part in write(report) if part)]) + "\n"


def patient_line(patient: PatientIdentity) -> str:
    """`NOM Prénom, né(e) le 28/03/1979, sexe F - INS 279...`."""
    name = one_line(" ".join((patient.birth_name.upper(), *patient.first_names)), 120) or "identité non transmise"
    if patient.used_name and patient.used_name.upper() != patient.birth_name.upper():
        name += f" (nom utilisé : {one_line(patient.used_name, 60).upper()})"
    words = [name]
    if patient.birth_date:
        words.append(f"né(e) le {french_date(patient.birth_date)}")
    if patient.sex:
        words.append(f"sexe {one_line(patient.sex, 10)}")
    line = ", ".join(words)
    if patient.matricule:
        line += f" - INS {one_line(patient.matricule, 30)}"
        if patient.matricule_oid in TEST_AUTHORITIES:
            line += " (identité de test)"
    return line


def party_name(party: Party) -> str:
    """`Prénom NOM`, or the organisation, or nothing."""
    person = one_line(f"{party.given} {party.family.upper()}", 80)
    return person or one_line(party.organisation, 80)


def _codes(flag: str) -> tuple[str, ...]:
    return tuple(flag.upper().replace("~", " ").split())


def _rank(result: Result) -> RankedResult:
    if result.interpretation.strip():
        return RankedResult(result, result.interpretation.strip(), computed=False)
    value, low, high = (_number(text) for text in (result.value, result.low, result.high))
    comparable = value is not None and (low is None or high is None or low < high)
    if comparable and value is not None and low is not None and value < low:
        return RankedResult(result, "L", computed=True)
    if comparable and value is not None and high is not None and value > high:
        return RankedResult(result, "H", computed=True)
    return RankedResult(result, "", computed=False)


def _number(text: str) -> Decimal | None:
    """A plain number; None for censored (`< 0.5`), united (`3 g/L`) or worded values, which are not compared."""
    text = text.strip()
    return Decimal(text.replace(",", ".")) if _NUMBER.fullmatch(text) else None


def are_twins(documents: Sequence[Document]) -> bool:
    """Whether these are one report in several forms: one type, each of another CDA level (N1 + N3)."""
    return (
        len(documents) > 1
        and len({document.type_code for document in documents}) == 1
        and len({document.level for document in documents}) == len(documents)
    )


def is_laboratory(document: Document) -> bool:
    """Whether the results are what the document is about: elsewhere they only illustrate its text."""
    return document.type_code == _LABORATORY_TYPE or document.format_code == _LABORATORY_FORMAT


def _reports(report: Report) -> list[tuple[Document, ...]]:
    """The documents to speak of, each with its twins, the structured form first."""
    if are_twins(report.documents):
        return [tuple(sorted(report.documents, key=lambda document: -document.level))]
    return [(document,) for document in report.documents]


def _professional_text(report: Report) -> list[str]:
    parts = [
        *_opening(report.action, paragraphs(report.body_professional), _TO_PROFESSIONAL),
        f"Patient : {patient_line(report.patient)}",
    ]
    for forms in _reports(report):
        parts.append(_document_block(report.action, forms, Audience.PROFESSIONAL))
        if report.action is not Action.DELETE:
            parts.append(_results_block(forms[0]))
    known = dict.fromkeys(FINDING_LABELS[f.code] for f in report.findings if f.code in FINDING_LABELS)
    parts += known
    if report.action is Action.DELETE:
        parts.append(
            "Pièces jointes : l'avis de retrait en PDF ; IHE_XDM.zip permet à votre logiciel de retirer le document."
        )
    elif report.documents:
        parts.append("Pièces jointes : le PDF se lit ; IHE_XDM.zip s'intègre dans votre logiciel.")
    return parts


def _patient_text(report: Report) -> list[str]:
    parts = _opening(report.action, paragraphs(report.body_patient), _TO_PATIENT)
    for forms in _reports(report):
        parts.append(_document_block(report.action, forms, Audience.PATIENT))
        if report.action is not Action.DELETE and is_laboratory(forms[0]):
            shown = unranked(forms[0].results)
            parts.append(_listed("Vos résultats, avec les valeurs habituelles entre crochets", shown, MAX_RESULTS))
    if report.action is not Action.DELETE:
        parts.append("Le document complet est dans le PDF joint.")
    parts.append("Pour toute question, adressez-vous à votre médecin ou au professionnel qui vous écrit.")
    if report.flags.last_of_exchange:
        parts.append("Cet échange est terminé : il n'est plus possible de répondre à ce message.")
    return parts


_TO_PROFESSIONAL = {
    Action.NEW: "Veuillez trouver ci-joint un document concernant le patient désigné ci-dessous.",
    Action.REPLACE: "Le document ci-joint remplace une version déjà envoyée, dont il ne faut plus tenir compte.",
    Action.DELETE: (
        "Le document désigné ci-dessous est retiré par son auteur : n'en tenez plus compte et retirez-le du dossier "
        "du patient."
    ),
}
_TO_PATIENT = {
    Action.NEW: "Un document de santé vous concernant est joint à ce message.",
    Action.REPLACE: "Un document de santé vous concernant a été mis à jour : il remplace la version déjà reçue.",
    Action.DELETE: "Un document de santé que vous aviez reçu a été retiré par son auteur. N'en tenez plus compte.",
}


def _opening(action: Action, own: str, ours: Mapping[Action, str]) -> list[str]:
    """The sender's words, else ours. Senders often keep the words of a first sending: what a replacement or a
    withdrawal changes is therefore always said, and said first."""
    if not own:
        return ["Bonjour,", ours[action]]
    return [own] if action is Action.NEW else [ours[action], own]


def _document_block(action: Action, forms: Sequence[Document], audience: Audience) -> str:
    """What the document is, described once for all its forms."""
    document = forms[0]
    label = one_line(type_label(document.type_code, document.type_label), 100)
    title = one_line(document.title, 150) or label
    lines = [f"Document : {title}" + (f" ({label})" if label and label.lower() != title.lower() else "")]
    if document.created:
        lines.append(f"Date : {french_date(document.created, with_time=True)}")
    author = party_name(document.author)
    if author:
        lines.append(f"Auteur : {author}")
    organisation = one_line(document.author.organisation, 120)
    if organisation and organisation != author:
        lines.append(f"Structure : {organisation}")
    if len(forms) > 1:
        lines.append("Joint sous deux formes de même contenu : PDF et données structurées")
    if audience is Audience.PATIENT:  # an identifier says nothing to a patient
        named = {Action.REPLACE: "Remplace : la version précédente de ce document", Action.DELETE: "RETIRÉ"}
        lines += [named[action]] if action in named else []
    elif action is Action.REPLACE:
        parents = [parent for form in forms if (parent := one_line(form.parent_id, 150))]
        lines += [f"Remplace : document {parent}" for parent in dict.fromkeys(parents)]
        if not parents:
            lines.append("Remplace : la version précédente de ce document")
    elif action is Action.DELETE:
        lines += [f"RETIRÉ : document {one_line(form.unique_id, 150)}" for form in forms]
    return "\n".join(lines)


def urgent_lines(document: Document) -> list[str]:
    """The lines of `results_text` that nobody may overlook, without their headings."""
    ranks = ranked(document.results)
    listed = (_listed("", rank, MAX_RESULTS) for rank in (ranks.critical, ranks.abnormal))
    return [line for block in listed for line in block.split("\n")[1:] if line.startswith("  ")]


def results_text(document: Document) -> str:
    """A document's results for a professional, critical ones first, then abnormal ones, then the others (LF)."""
    return _results_block(document)


def _results_block(document: Document) -> str:
    ranks = ranked(document.results)
    if not document.results or not is_laboratory(document):
        urgent = (
            _listed("RÉSULTATS CRITIQUES", ranks.critical, MAX_RESULTS),
            _listed("RÉSULTATS ANORMAUX OU À SIGNALER", ranks.abnormal, MAX_RESULTS),
        )
        return "\n\n".join(block for block in (*urgent, _narrative_block(document)) if block)
    room = max(0, MAX_RESULTS - len(ranks.critical) - len(ranks.abnormal))
    blocks = [
        _listed("RÉSULTATS CRITIQUES", ranks.critical, MAX_RESULTS),
        _listed("RÉSULTATS ANORMAUX OU À SIGNALER", ranks.abnormal, max(0, MAX_RESULTS - len(ranks.critical))),
        _listed("AUTRES RÉSULTATS", ranks.other, room),
    ]
    return "\n\n".join(block for block in blocks if block)


def _listed(heading: str, results: Sequence[RankedResult], room: int) -> str:
    """Aligned lines by section in the document's order; says how many did not fit in `room`."""
    if not results:
        return ""
    shown = results[:room]
    cells = [(_label(r), _value(r.result), reference_range(r.result)) for r in shown]
    wide = [min(max((len(row[i]) for row in cells), default=0), limit) for i, limit in enumerate((36, 22, 18))]
    lines = [heading]
    for section, group in groupby(
        zip(shown, cells, strict=True), key=lambda pair: one_line(pair[0].result.section, 200)
    ):
        if section:
            lines.append(f"- {section}")
        for one, (label, value, limits) in group:
            aligned = label
            if len(label) > wide[0]:
                lines.append(f"  {label}")
                aligned = ""
            line = f"  {aligned:<{wide[0]}} : {value:<{wide[1]}}  {limits:<{wide[2]}}"
            lines.append(f"{line}  {one.words}".rstrip())
    if len(results) > len(shown):
        lines.append(f"  ... liste abrégée : {len(results) - len(shown)} résultat(s) de plus dans le PDF joint.")
    return "\n".join(lines)


def _label(one: RankedResult) -> str:
    return one_line(one.result.label, 100) or one_line(one.result.code, 40) or "(sans libellé)"


def _value(result: Result) -> str:
    return one_line(f"{result.value} {shown_unit(result)}", 160) or "(sans valeur)"


def _narrative_block(document: Document) -> str:
    text = paragraphs(document.narrative)
    if not text:
        return "Voir le PDF joint."
    lines = text.split("\n")
    if len(lines) > MAX_NARRATIVE_LINES:
        start = next((i for i, line in enumerate(lines) if line.lower().rstrip(" :") in _CONCLUSIONS), 0)
        shown = lines[:MAX_NARRATIVE_LINES]
        if start + MAX_CONCLUSION_LINES > MAX_NARRATIVE_LINES:
            shown = [*lines[start : start + MAX_CONCLUSION_LINES], "", *shown[:start]]
        lines = [*shown, "", "... texte abrégé : la suite est dans le PDF joint."]
    return "\n".join(lines)
