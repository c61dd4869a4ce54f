"""What the dossier refuses, as entries of the one catalogue of errors; application codes are those of table 0533."""

from __future__ import annotations

from trust.refusals import HL7Code, Refusal


def _entry(
    code: str, application: str, text: str, text_fr: str, *, smtp: int = 554, enhanced: str = "5.7.1"
) -> Refusal:
    answer = HL7Code.AE if smtp >= 500 else HL7Code.AR
    return Refusal(f"bridges.dossier-{code}", smtp, enhanced, answer, "207", application, text, text_fr)


INS_MISSING = _entry(
    "ins-missing",
    "903",
    "Qualify the patient's identity and send the INS in PID-3: the dossier accepts no document without it.",
    "Qualifiez l'identité du patient et transmettez l'INS en PID-3 : le dossier n'accepte aucun document sans INS.",
)
INS_INCOMPLETE = _entry(
    "ins-incomplete",
    "905",
    "Send the matricule with 13 or 15 characters and the OID of its authority.",
    "Transmettez le matricule sur 13 ou 15 caractères avec l'OID de son autorité d'affectation.",
)
INS_DIFFERS = _entry(
    "ins-differs",
    "904",
    "Check the patient: this document, or the one it claims to replace, belongs to another identity.",
    "Vérifiez le patient : ce document, ou celui qu'il prétend remplacer, appartient à une autre identité.",
)
CONFIDENTIALITY = _entry(
    "confidentiality",
    "906",
    "Send only documents of normal confidentiality (N) to the dossier; restricted ones are not shared there.",
    "Ne déposez au dossier que des documents de confidentialité normale (N) ; les autres n'y sont pas partagés.",
)
NO_DOCUMENT = _entry(
    "no-document",
    "906",
    "Send at least one document to the dossier.",
    "Transmettez au moins un document au dossier.",
)
DOCUMENT_ALTERED = _entry(
    "document-altered",
    "900",
    "Give the changed document a new identifier and a higher version: this identifier already names other content.",
    "Donnez un nouvel identifiant et une version supérieure au document modifié : cet identifiant désigne déjà un "
    "autre contenu.",
)
DOCUMENT_DELETED = _entry(
    "document-deleted",
    "900",
    "This document was deleted: deposit a new one with a new identifier.",
    "Ce document a été supprimé : déposez-en un nouveau sous un nouvel identifiant.",
)
VERSION_OBSOLETE = _entry(
    "version-obsolete",
    "900",
    "The dossier already holds this version or a later one: send a higher versionNumber.",
    "Le dossier contient déjà cette version ou une plus récente : envoyez un versionNumber supérieur.",
)
NOT_HELD = _entry(
    "not-held",
    "900",
    "Name a document this dossier holds (identifier, setId or parentDocument), or send this one as new.",
    "Désignez un document présent au dossier (identifiant, setId ou parentDocument), ou transmettez-le comme nouveau.",
)
NOT_THE_AUTHOR = _entry(
    "not-the-author",
    "901",
    "Ask the organisation that wrote the document: it alone may replace or delete it.",
    "Adressez-vous à l'organisation auteur du document : elle seule peut le remplacer ou le supprimer.",
)
CLOSED = _entry(
    "closed",
    "906",
    "This dossier was closed by its holder: it is neither fed nor read.",
    "Ce dossier a été fermé par son titulaire : il n'est ni alimenté ni consulté.",
)
PATIENT_UNKNOWN = _entry(
    "patient-unknown",
    "902",
    "There is no dossier for this identity: check the matricule and its OID.",
    "Aucun dossier pour cette identité : vérifiez le matricule et son OID.",
)
NOT_IDENTIFIED = _entry(
    "not-identified",
    "901",
    "Sign in as a professional with a national identifier and a profession, and state the purpose of the access.",
    "Identifiez-vous comme professionnel (identifiant national et profession) et précisez le motif de l'accès.",
)
NOT_AUTHORISED = _entry(
    "not-authorised",
    "901",
    "The authorisation matrix does not open this kind of document to this profession.",
    "La matrice d'habilitation n'ouvre pas ce type de document à cette profession.",
)
DOCUMENT_UNKNOWN = _entry(
    "document-unknown",
    "906",
    "There is no such document to read in this dossier.",
    "Aucun document de ce nom n'est consultable dans ce dossier.",
)
CONTENT_UNSUPPORTED = _entry(
    "content-unsupported",
    "906",
    "Send reports for the dossier as HL7 v2 messages.",
    "Transmettez les comptes rendus destinés au dossier sous forme de messages HL7 v2.",
    enhanced="5.6.1",
)
UNAVAILABLE = _entry(
    "unavailable",
    "906",
    "The dossier's storage does not answer: try again later.",
    "Le stockage du dossier ne répond pas : réessayez plus tard.",
    smtp=451,
    enhanced="4.3.0",
)

CATALOGUE = (
    INS_MISSING,
    INS_INCOMPLETE,
    INS_DIFFERS,
    CONFIDENTIALITY,
    NO_DOCUMENT,
    DOCUMENT_ALTERED,
    DOCUMENT_DELETED,
    VERSION_OBSOLETE,
    NOT_HELD,
    NOT_THE_AUTHOR,
    CLOSED,
    PATIENT_UNKNOWN,
    NOT_IDENTIFIED,
    NOT_AUTHORISED,
    DOCUMENT_UNKNOWN,
    CONTENT_UNSUPPORTED,
    UNAVAILABLE,
)
