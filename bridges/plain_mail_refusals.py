"""What is refused to somebody who writes with an ordinary mail program, in words that person understands."""

from __future__ import annotations

from trust.refusals import HL7Code, Refusal

DOCUMENT_OF_ANOTHER = Refusal(
    "bridges.document-of-another",
    550,
    "5.7.1",
    HL7Code.AE,
    "207",
    "904",
    "The attached document is about another patient than the recipient: check the address and the document.",
    "Le document joint concerne un autre patient que le destinataire : vérifiez l'adresse et le document.",
)
RECIPIENTS_SEVERAL_PATIENTS = Refusal(
    "bridges.recipients-several-patients",
    550,
    "5.7.1",
    HL7Code.AE,
    "207",
    "906",
    "The mail goes to several patients, who would learn each other's identity: write to each one alone.",
    "Ce message part vers plusieurs patients, qui verraient l'identité les uns des autres : écrivez à chacun à part.",
)

CATALOGUE = (DOCUMENT_OF_ANOTHER, RECIPIENTS_SEVERAL_PATIENTS)
