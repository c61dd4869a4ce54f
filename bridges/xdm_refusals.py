"""What the XDM importer refuses, as entries of the one catalogue of errors."""

from __future__ import annotations

from trust.refusals import HL7Code, Refusal


def _entry(code: str, smtp: int, enhanced: str, text: str, text_fr: str) -> Refusal:
    return Refusal(f"bridges.{code}", smtp, enhanced, HL7Code.AE, "207", "906", text, text_fr)


XDM_UNREADABLE = _entry(
    "xdm-unreadable",
    554,
    "5.6.0",
    "Send a well-formed IHE_XDM.zip: this archive cannot be read.",
    "Envoyez une archive IHE_XDM.zip bien formée : celle-ci est illisible.",
)
XDM_TOO_LARGE = _entry(
    "xdm-too-large",
    552,
    "5.3.4",
    "Send a smaller archive: it holds too many entries or expands beyond the agreed size.",
    "Envoyez une archive plus petite : elle contient trop d'entrées ou dépasse la taille convenue une fois ouverte.",
)
XDM_UNSAFE = _entry(
    "xdm-unsafe",
    554,
    "5.7.1",
    "Remove nested archives, links and ambiguous or absolute names from the archive.",
    "Retirez de l'archive les archives imbriquées, les liens et les noms absolus ou ambigus.",
)
XDM_ENCRYPTED = _entry(
    "xdm-encrypted",
    554,
    "5.7.1",
    "Send the archive without a password: the messaging service already encrypts it.",
    "Envoyez l'archive sans mot de passe : la messagerie la chiffre déjà.",
)
XDM_METADATA = _entry(
    "xdm-metadata",
    554,
    "5.6.0",
    "Put a well-formed METADATA.XML that describes each document in the archive.",
    "Placez dans l'archive un METADATA.XML bien formé qui décrit chaque document.",
)

CATALOGUE = (XDM_UNREADABLE, XDM_TOO_LARGE, XDM_UNSAFE, XDM_ENCRYPTED, XDM_METADATA)
