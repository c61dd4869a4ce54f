"""What went wrong, in the codes of a business acknowledgement: tables SMTPERRORCODE, DMP_ERROR_CODE and HL70533.

Our own refusals are looked up in the catalogue of errors; what another operator reports comes as an enhanced status
code (RFC 3463) and a diagnostic (RFC 3464 §2.3.6). Foreign words never pass, only codes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from bridges.hl7.zam import ErrorTable, ZamFailure
from trust.refusals import Refusal

SMTP_LABELS = {
    "101": "Connexion au serveur impossible",
    "111": "Connexion refusée",
    "251": "Utilisateur non local, message transmis",
    "252": "Utilisateur non vérifiable, message accepté",
    "420": "Délai de connexion dépassé",
    "421": "Service non disponible",
    "422": "Boîte aux lettres du destinataire pleine",
    "431": "Espace insuffisant sur le serveur",
    "432": "Mot de passe de transition nécessaire",
    "441": "Le serveur du destinataire ne répond pas",
    "442": "Connexion interrompue pendant la transmission",
    "450": "Action non effectuée : boîte aux lettres temporairement non disponible",
    "451": "Action abandonnée : erreur de traitement",
    "452": "Action non effectuée : espace insuffisant",
    "500": "Erreur de syntaxe, commande non reconnue",
    "501": "Erreur de syntaxe dans les paramètres",
    "502": "Commande non implémentée",
    "503": "Mauvaise séquence de commandes",
    "504": "Paramètre non implémenté",
    "510": "Adresse du destinataire incorrecte",
    "512": "Serveur du destinataire introuvable",
    "513": "Type d'adresse incorrect",
    "523": "Message trop volumineux pour le destinataire",
    "530": "Authentification requise",
    "541": "Message rejeté par le destinataire",
    "550": "Action non effectuée : boîte aux lettres non disponible",
    "551": "Utilisateur non local",
    "552": "Action abandonnée : espace alloué dépassé",
    "553": "Action non effectuée : nom de boîte aux lettres non autorisé",
    "554": "Échec de la transaction",
}
"""The whole table of the volet (v2.1.3): a code that is not in it is not sent."""
_BY_STATUS = {
    "1.1": "550",
    "1.2": "512",
    "1.3": "553",
    "1.6": "551",
    "2.1": "550",
    "2.2": "552",
    "2.3": "523",
    "3.1": "452",
    "3.4": "523",
    "4.1": "441",
    "4.2": "442",
    "4.3": "512",
    "4.4": "512",
    "4.7": "441",
    "7.0": "530",
    "7.1": "550",
}
"""Subject and detail of an enhanced status code (RFC 3463 §3) to the nearest code of SMTPERRORCODE."""
_REPLY = re.compile(r"(?<![0-9.])([2-5][0-9]{2})(?![0-9A-Za-z.])")
_STATUS = re.compile(r"([245])\.([0-9]{1,3}\.[0-9]{1,3})")

APPLICATION_LABELS = {
    "900": "Version du document incorrecte lors d'une demande de remplacement ou de suppression",
    "901": "Auteur non autorisé à remplacer ou supprimer un document",
    "902": "Identifiant patient inconnu",
    "903": "INS non présent dans le document",
    "904": "L'INS transmis ne correspond pas exactement à celui du consommateur",
    "905": "L'INS transmis n'est pas complet",
    "906": "Autre erreur",
}
"""Table HL70533 as the profile restricts it."""

_DOSSIER = {
    "closed": ("DMPClosed", "DMP fermé"),
    "patient-unknown": ("XDSUnknownPatientId", "Patient inconnu"),
    "ins-missing": ("XDSUnknownPatientId", "INS absent"),
    "ins-incomplete": ("XDSUnknownPatientId", "INS incomplet"),
    "ins-differs": ("XDSPatientIdDoesNotMatch", "INS différent de celui du dossier"),
    "document-altered": ("XDSNonIdenticalHash", "Identifiant déjà utilisé pour un autre contenu"),
    "document-deleted": ("XDSRegistryDeprecatedDocumentError", "Document supprimé"),
    "version-obsolete": ("XDSRegistryDeprecatedDocumentError", "Version déjà remplacée"),
    "not-held": ("UnresolvedReferenceException", "Document à remplacer inconnu"),
    "confidentiality": ("XDSRegistryMetadataError", "Confidentialité non admise"),
    "unavailable": ("XDSRepositoryError", "Dossier indisponible"),
}
"""Our `bridges.dossier-*` refusals to what a record answers: its own code when closed, else those of IHE ITI TF-3
§4.2.4."""
_DOSSIER_OTHER = ("XDSRegistryError", "Dépôt refusé")
_DOSSIER_PREFIX = "bridges.dossier-"
_REMOTE = "mta.remote-refused"


def dossier_failure(code: str, catalogue: Mapping[str, Refusal]) -> ZamFailure:
    """A refusal of the record as Z01 tells it."""
    known = _DOSSIER.get(code.removeprefix(_DOSSIER_PREFIX), _DOSSIER_OTHER)
    return ZamFailure(ErrorTable.DOSSIER, *known, diagnostic=code, advice=_advice(code, catalogue))


def refusal_failure(code: str, detail: str, catalogue: Mapping[str, Refusal]) -> ZamFailure:
    """A refusal of ours as Z02 tells it; `detail` holds the other server's reply when it was the one to refuse."""
    refusal = catalogue.get(code)
    smtp = ""
    if code == _REMOTE:
        smtp = _smtp_reply(detail)
    elif refusal is not None:
        smtp = refusal.application if refusal.application in SMTP_LABELS else _listed(str(refusal.smtp))
    if not smtp:
        smtp = _by_status("" if refusal is None else refusal.enhanced)
    return ZamFailure(ErrorTable.SMTP, smtp, SMTP_LABELS[smtp], diagnostic=code, advice=_advice(code, catalogue))


def status_failure(status: str, diagnostic: str) -> ZamFailure:
    """What a DSN says (Status, Diagnostic-Code) as Z02 tells it."""
    smtp = _smtp_reply(diagnostic) or _by_status(status)
    shown = _STATUS.search(status)
    return ZamFailure(ErrorTable.SMTP, smtp, SMTP_LABELS[smtp], diagnostic=shown[0] if shown else "")


def integration_failure(code: str) -> ZamFailure:
    """The code of an MDN's Error field as Z03 tells it; what the table does not know is 906."""
    known = code if code in APPLICATION_LABELS else "906"
    return ZamFailure(ErrorTable.APPLICATION, known, APPLICATION_LABELS[known])


def unread_failure() -> ZamFailure:
    """A critical result that nobody has read in time, as Z03 tells it: the table has no code for that."""
    return ZamFailure(
        ErrorTable.APPLICATION,
        "906",
        APPLICATION_LABELS["906"],
        diagnostic="mta.unread",
        advice="Résultat critique non lu dans le délai convenu : joignez le destinataire par téléphone.",
    )


def _smtp_reply(words: str) -> str:
    """The first negative reply code in a server's words; empty when there is none that the table knows."""
    found = next((code for code in _REPLY.findall(words) if code[0] in "45"), "")
    return _listed(found)


def _listed(code: str) -> str:
    return code if code in SMTP_LABELS else ""


def _by_status(status: str) -> str:
    found = _STATUS.search(status)
    if found is None:
        return "554"
    return _BY_STATUS.get(found[2], "451" if found[1] == "4" else "554")


def _advice(code: str, catalogue: Mapping[str, Refusal]) -> str:
    refusal = catalogue.get(code)
    return "" if refusal is None else refusal.text_fr
