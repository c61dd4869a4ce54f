"""The French words put before a mail: who signed it and whether that was verified, what not to open, what it reports.

They say what the gateway found, never what the sender claims. A file name of the sender's is quoted, short and on one
line, and a sender who imitates the notice in his own words is told on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from bridges.arriving.contents import TITLE, Carried
from bridges.arriving.earlier import Code, Earlier
from bridges.labels import type_label
from bridges.plain import french_date, one_line
from bridges.report import Document
from bridges.summary import are_twins, patient_line, results_text, urgent_lines

_RULE = "-" * 60
_PAIR = re.compile(r"(\w+)=([^;\s]+)")

_PATHS = {
    "rfc5280-6.1.3-revoked": "il est révoqué",
    "rfc5280-6.1.3-validity": "il n'est pas ou plus valable",
    "rfc5280-6.1-no-path": "son émetteur n'est pas reconnu",
    "relais-revocation-unknown": "on ne sait pas actuellement s'il est révoqué",
}
_PROOFS = {
    "account": "son expéditeur s'est identifié auprès de cette passerelle",
    "operator": "l'opérateur de son expéditeur répond de l'adresse",
    "dkim": "le domaine de son expéditeur répond de l'adresse",
}
_UNSAFE = {
    "executable": "peut lancer un programme : ne l'ouvrez pas sans avoir joint l'expéditeur",
    "archive": "est une archive qui n'a pas pu être examinée : ne l'ouvrez pas sans avoir joint l'expéditeur",
    "protected": "est chiffrée ou signée à part : son contenu n'a pas pu être examiné",
    "xdm": "ne peut pas être lue : les documents qu'elle contient n'ont pas été vérifiés",
    "xml": "ne peut pas être lue : le document qu'elle contient n'a pas été vérifié",
    "part": "est abîmée et ne peut pas être lue",
    "mime": "est mal formée : votre logiciel peut l'afficher autrement qu'un autre",
    "parts": "contient trop de parties pour avoir été examinée entièrement",
    "failed": "n'a pas pu être examinée",
}
"""Facts `warning.screen-*` of `bridges.screening`."""
_SCREEN = "warning.screen-"
RELEASED = "released"
"""Fact `scan` of `mta.scanning`, for what a person has released from quarantine."""
_MOST = 5
"""Parts named for one reason."""


def verdict_line(facts: Mapping[str, str], signer: str) -> str:
    """One sentence; `facts` are those of the open stage, `signer` the address that its verdict names."""
    found = dict(_PAIR.findall(facts.get("verdict", "")))
    by = f"signé par {signer}" if signer else "signé"
    match found.get("signature", ""):
        case "valid":
            said = f"message {by} : signature vérifiée"
        case "untrusted":
            why = _PATHS.get(found.get("path", ""), "il ne respecte pas les règles de l'espace de confiance")
            said = f"message {by}, mais la signature n'est pas vérifiée : le certificat n'est pas accepté, {why}"
        case "mismatch":
            said = f"message {by}, qui n'est pas l'expéditeur affiché ou n'a pas signé ce message : ne vous y fiez pas"
        case "invalid":
            said = "signature fausse : le message a pu être modifié ou forgé, ne vous y fiez pas"
        case _:
            proof = _PROOFS.get(found.get("author", ""), "")
            said = f"message non signé ; {proof}" if proof else "message non signé ; rien ne prouve qui l'a écrit"
    return f"{said}. " + (
        "Il est arrivé chiffré." if found.get("decrypted") == "yes" else "Il est arrivé sans être chiffré."
    )


def positions(facts: Mapping[str, str], reason: str) -> list[str]:
    """Of the parts that the screen stage warns about for that reason."""
    return [each.strip() for each in facts.get(_SCREEN + reason, "").split(",") if each.strip()]


def unsafe_lines(facts: Mapping[str, str], names: Mapping[str, str], known: str = "") -> list[str]:
    """What cannot be opened safely, part by part; `known`: position of the part that holds a signed original of ours to
    know, which needs no warning."""
    lines = []
    for reason, words in _UNSAFE.items():
        found = [each for each in positions(facts, reason) if not (reason == "protected" and _is_in(each, known))]
        for position in found[:_MOST]:
            lines.append(f"Attention : {_part(position, names)} {words}.")
        if len(found) > _MOST:
            lines.append(f"Attention : {len(found) - _MOST} autre(s) partie(s) dans le même cas.")
    if facts.get("scan", "").startswith("too large"):
        lines.append("Attention : ce message est trop volumineux pour avoir été analysé par l'antivirus.")
    if facts.get("scan", "") == RELEASED:
        lines.append(
            "Attention : l'antivirus avait retenu ce message, et une personne a décidé de vous le remettre. N'ouvrez "
            "aucune pièce jointe sans avoir joint l'expéditeur."
        )
    return lines


def summary(carried: Carried, earlier: Mapping[str, Mapping[Code, Earlier]]) -> str:
    """The reports of a mail for a professional, the urgent first, with what the dossier adds (`earlier`, by unique id
    of the document); empty when there is nothing to say. What the sender's own words say already is not said twice."""
    blocks = []
    for document in _structured(carried.documents):
        own = [] if not document.results or _said(document, carried.text) else [results_text(document)]
        own += _earlier(document, earlier.get(document.unique_id, {}))
        if own:
            blocks.append("\n\n".join([_head(document), *own]))
    if carried.withdrawn:
        blocks.append(
            "Un document envoyé auparavant est retiré par ce message : n'en tenez plus compte, ses valeurs ne sont pas "
            "reprises ici."
        )
    if carried.left_out:
        blocks.append(
            "Attention : des documents joints sont trop volumineux ou trop nombreux pour être résumés : lisez-les en "
            "entier."
        )
    if not blocks:
        return ""
    opening = "Résumé établi d'après les données du document joint, qui seul fait foi."
    return "\n\n".join([opening, *blocks])


def notice(host: str, lines: Sequence[str], summary_text: str) -> str:
    """What is put before the mail (LF); empty when there is nothing to say."""
    if not lines and not summary_text:
        return ""
    parts = ["\n".join([f"{TITLE} {host}", *lines])]
    if summary_text:
        parts.append(summary_text)
    return "\n\n".join([*parts, _RULE]) + "\n"


def _is_in(position: str, part: str) -> bool:
    return bool(part) and (position == part or position.startswith(f"{part}."))


def _part(position: str, names: Mapping[str, str]) -> str:
    name = one_line(names.get(position, ""), 60).replace("«", "").replace("»", "")
    return f"la pièce jointe « {name} »" if name else "une partie de ce message"


def _structured(documents: Sequence[Document]) -> Sequence[Document]:
    """Of one report in two forms, the one with the values."""
    if are_twins(documents):
        return [max(documents, key=lambda document: document.level)]
    return documents


def _head(document: Document) -> str:
    label = one_line(type_label(document.type_code, document.type_label), 100)
    date = french_date(document.service_start or document.created)
    replaces = " ; il remplace une version précédente" if document.parent_id else ""
    return f"{label}" + (f" du {date}" if date else "") + f"{replaces}\nPatient : {patient_line(document.patient)}"


def _said(document: Document, text: str) -> bool:
    """Whether the sender's own words hold every urgent line: those of another Relais do."""
    lines = urgent_lines(document)
    words = " ".join(text.split())
    return bool(lines) and all(" ".join(line.split()) in words for line in lines)


def _earlier(document: Document, earlier: Mapping[Code, Earlier]) -> list[str]:
    lines = []
    for result in document.results:
        found = earlier.get((result.code_system, result.code))
        if found is not None:
            value = one_line(f"{found.value} {found.unit}", 60)
            lines.append(f"  {one_line(result.label, 60) or result.code} : {value} le {french_date(found.at)}")
    if not lines:
        return []
    return ["\n".join(["VALEURS PRÉCÉDENTES (dossier du patient, accès inscrit à son journal)", *dict.fromkeys(lines)])]
