"""What the bridges refuse, as entries of the one catalogue of errors.

ERR-3 values are HL7 table 0357, ERR-5 values the French table 0533 (900-906) of the volet "Transmission de documents
CDA-R2 en HL7 v2" v2.1.
"""

from __future__ import annotations

from trust.refusals import HL7Code, Refusal


def _entry(
    code: str,
    condition: str,
    text: str,
    text_fr: str,
    *,
    application: str = "906",
    smtp: int = 554,
    enhanced: str = "5.6.0",
) -> Refusal:
    return Refusal(f"bridges.{code}", smtp, enhanced, HL7Code.AE, condition, application, text, text_fr)


HL7_UNREADABLE = _entry(
    "hl7-unreadable",
    "100",
    "Send one complete HL7 v2 message that starts with MSH and its encoding characters.",
    "Envoyez un seul message HL7 v2 complet, qui commence par MSH et ses caractères d'encodage.",
)
HL7_TOO_LARGE = _entry(
    "hl7-too-large",
    "207",
    "Send a smaller message: this one exceeds the agreed size.",
    "Envoyez un message plus petit : celui-ci dépasse la taille convenue.",
    smtp=552,
    enhanced="5.3.4",
)
HL7_CHARSET = _entry(
    "hl7-charset",
    "102",
    "Declare in MSH-18 the character set the message is really written in, for example UNICODE UTF-8.",
    "Déclarez en MSH-18 le jeu de caractères réellement utilisé, par exemple UNICODE UTF-8.",
)
HL7_FIELD_MISSING = _entry(
    "hl7-field-missing",
    "101",
    "Fill the required field or segment named here and send again.",
    "Renseignez le champ ou le segment obligatoire indiqué et renvoyez le message.",
)
HL7_TYPE_UNSUPPORTED = _entry(
    "hl7-type-unsupported",
    "200",
    "Send reports as ORU^R01 (2.5) or MDM (2.6).",
    "Envoyez les comptes rendus en ORU^R01 (2.5) ou en MDM (2.6).",
)
HL7_EVENT_UNSUPPORTED = _entry(
    "hl7-event-unsupported",
    "201",
    "Use event R01 for ORU, and T02, T04 or T10 for MDM.",
    "Utilisez l'événement R01 pour ORU, et T02, T04 ou T10 pour MDM.",
)
HL7_VERSION_UNSUPPORTED = _entry(
    "hl7-version-unsupported",
    "203",
    "Put 2.5 in MSH-12 of an ORU message, 2.6 in MSH-12 of an MDM message.",
    "Indiquez 2.5 en MSH-12 d'un message ORU, 2.6 en MSH-12 d'un message MDM.",
)
HL7_WRONG_PROFILE = _entry(
    "hl7-wrong-profile",
    "207",
    "This message is meant for practice software (CISIS_CDA_HL7_LPS): send the gateway CISIS_CDA_HL7_V2 messages.",
    "Ce message est destiné à un logiciel de professionnel (CISIS_CDA_HL7_LPS) : envoyez à la passerelle des messages "
    "CISIS_CDA_HL7_V2.",
)
EVENT_INCOHERENT = _entry(
    "event-incoherent",
    "207",
    "Make the message event, ORC-1 and OBX-11 say the same: new, replace or delete.",
    "Faites dire la même chose à l'événement, à ORC-1 et à OBX-11 : création, remplacement ou suppression.",
)
FLAG_VALUE = _entry(
    "flag-value",
    "103",
    "Put Y or N, once, in OBX-5 of this MetaDMPMSS observation.",
    "Indiquez Y ou N, une seule fois, en OBX-5 de cette observation MetaDMPMSS.",
)
PATIENT_SEVERAL = _entry(
    "patient-several",
    "207",
    "Send one message per patient: this one names several.",
    "Envoyez un message par patient : celui-ci en nomme plusieurs.",
)
INS_DIFFERS = _entry(
    "ins-differs",
    "207",
    "The matricule INS of the message and of the document differ: check the identity before sending again.",
    "Le matricule INS du message et celui du document diffèrent : vérifiez l'identité avant de renvoyer.",
    application="904",
)
INS_INCOMPLETE = _entry(
    "ins-incomplete",
    "207",
    "The matricule INS is malformed or its key is wrong: query INSi again.",
    "Le matricule INS est mal formé ou sa clé est fausse : interrogez de nouveau INSi.",
    application="905",
)
INS_TEST = _entry(
    "ins-test-in-production",
    "207",
    "A test or demonstration INS authority is not accepted in production.",
    "Une autorité INS de test ou de démonstration n'est pas acceptée en production.",
    application="905",
)
DOCUMENT_MISSING = _entry(
    "document-missing",
    "101",
    "Put the document in an OBX of type ED: ^TEXT^XML^Base64^...",
    "Placez le document dans un OBX de type ED : ^TEXT^XML^Base64^...",
)
DOCUMENT_SEVERAL = _entry(
    "document-several",
    "207",
    "Put exactly one document in an MDM message.",
    "Placez un seul document dans un message MDM.",
)
DOCUMENT_ENCODING = _entry(
    "document-encoding",
    "102",
    "The document is not valid Base64, or was cut: encode it again.",
    "Le document n'est pas en Base64 valide, ou a été tronqué : encodez-le de nouveau.",
)
DOCUMENT_TOO_LARGE = _entry(
    "document-too-large",
    "207",
    "Send a smaller document: this one exceeds the agreed size.",
    "Envoyez un document plus petit : celui-ci dépasse la taille convenue.",
    smtp=552,
    enhanced="5.3.4",
)
DOCUMENT_NOT_CDA = _entry(
    "document-not-cda",
    "207",
    "Send a well-formed CDA R2 ClinicalDocument with a body.",
    "Envoyez un document CDA R2 (ClinicalDocument) bien formé, avec un corps.",
)
DOCUMENT_DTD = _entry(
    "document-dtd",
    "207",
    "Remove the DOCTYPE or entity declarations: they are refused for safety.",
    "Retirez la déclaration DOCTYPE ou les entités : elles sont refusées par sécurité.",
)
DOCUMENT_HEADER = _entry(
    "document-header",
    "207",
    "Complete the CDA header: the element named here is missing, repeated or wrong.",
    "Complétez l'en-tête du CDA : l'élément indiqué manque, est répété ou est faux.",
)

CATALOGUE = (
    HL7_UNREADABLE,
    HL7_TOO_LARGE,
    HL7_CHARSET,
    HL7_FIELD_MISSING,
    HL7_TYPE_UNSUPPORTED,
    HL7_EVENT_UNSUPPORTED,
    HL7_VERSION_UNSUPPORTED,
    HL7_WRONG_PROFILE,
    EVENT_INCOHERENT,
    FLAG_VALUE,
    PATIENT_SEVERAL,
    INS_DIFFERS,
    INS_INCOMPLETE,
    INS_TEST,
    DOCUMENT_MISSING,
    DOCUMENT_SEVERAL,
    DOCUMENT_ENCODING,
    DOCUMENT_TOO_LARGE,
    DOCUMENT_NOT_CDA,
    DOCUMENT_DTD,
    DOCUMENT_HEADER,
)
