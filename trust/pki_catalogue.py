"""Refusals about whom to believe: the trust list and what can be wrong with it."""

from __future__ import annotations

from trust.refusals import HL7Code, Refusal


def _list_refused(name: str, text: str, text_fr: str) -> Refusal:
    """The mail waits for a good list: every entry is a 4xx, RFC 3463 §3.8 X.7.0 (other security status)."""
    return Refusal(f"trust.{name}", 451, "4.7.0", HL7Code.AR, "207", "906", text, text_fr)


LIST_UNREADABLE = _list_refused(
    "list-unreadable",
    "The trust list is not readable; fetch it again from its official address and keep the last good one meanwhile.",
    "La liste blanche est illisible : téléchargez-la de nouveau et gardez la dernière valable.",
)
LIST_UNSIGNED = _list_refused(
    "list-unsigned",
    "The trust list has no single signature over the whole of it; fetch the signed list, not an extract.",
    "La liste blanche ne porte pas une signature unique de l'ensemble : utilisez la liste signée, pas un extrait.",
)
LIST_ALTERED = _list_refused(
    "list-altered",
    "The trust list does not match its signature; discard this copy and fetch it again.",
    "La liste blanche ne correspond pas à sa signature : écartez cette copie et téléchargez-la de nouveau.",
)
LIST_SIGNER = _list_refused(
    "list-signer",
    "The trust list is signed by a certificate that is not trusted for it; check the anchors and the signer's name.",
    "La liste blanche est signée par un certificat non reconnu : vérifiez les ancres et le nom du signataire.",
)
LIST_OLD = _list_refused(
    "list-old",
    "The trust list is older than the one already in use; keep the newer one.",
    "La liste blanche est plus ancienne que celle en service : gardez la plus récente.",
)
LIST_FROM_FUTURE = _list_refused(
    "list-from-future",
    "The trust list is dated in the future; check the clock of this machine.",
    "La liste blanche est datée dans le futur : vérifiez l'horloge de cette machine.",
)
LIST_UNAVAILABLE = _list_refused(
    "list-unavailable",
    "The trust list cannot be had from where it is configured; the last accepted one stays in use meanwhile.",
    "La liste blanche est inaccessible à l'emplacement configuré : la dernière acceptée reste en service.",
)
LIST_NOT_HELD = _list_refused(
    "list-not-held",
    "No trust list with this digest waits for a decision; run relais trust list diff and give the digest it shows.",
    "Aucune liste blanche de cette empreinte n'attend de décision : lancez relais trust list diff et reprenez "
    "l'empreinte affichée.",
)

CATALOGUE: tuple[Refusal, ...] = (
    LIST_UNREADABLE,
    LIST_UNSIGNED,
    LIST_ALTERED,
    LIST_SIGNER,
    LIST_OLD,
    LIST_FROM_FUTURE,
    LIST_UNAVAILABLE,
    LIST_NOT_HELD,
)
