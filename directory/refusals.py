"""Why a recipient or a domain is refused: the directory's entries of the catalogue of errors."""

from __future__ import annotations

from trust.refusals import HL7Code, Refusal

RECIPIENT_UNKNOWN = Refusal(
    code="directory.recipient-unknown",
    smtp=550,
    enhanced="5.1.1",
    hl7=HL7Code.AE,
    condition="207",
    application="550",
    text="No mailbox has this address in the directory; check the address with the recipient and send again.",
    text_fr="Aucune boîte aux lettres ne porte cette adresse dans l'annuaire ; vérifiez l'adresse auprès du "
    "destinataire et renvoyez le message.",
)

ADDRESS_INVALID = Refusal(
    code="directory.address-invalid",
    smtp=553,
    enhanced="5.1.3",
    hl7=HL7Code.AE,
    condition="207",
    application="553",
    text="This is not a mail address; write it as name@domain and send again.",
    text_fr="Ceci n'est pas une adresse de messagerie ; écrivez-la sous la forme nom@domaine et renvoyez le message.",
)

UNAVAILABLE = Refusal(
    code="directory.unavailable",
    smtp=451,
    enhanced="4.4.3",
    hl7=HL7Code.AR,
    condition="207",
    application="451",
    text="The directory does not answer at the moment; send again later.",
    text_fr="L'annuaire ne répond pas en ce moment ; renvoyez le message plus tard.",
)

DOMAIN_UNTRUSTED = Refusal(
    code="directory.domain-untrusted",
    smtp=550,
    enhanced="5.7.1",
    hl7=HL7Code.AE,
    condition="207",
    application="550",
    text="This domain does not belong to the trust space; use the recipient's secure health mail address.",
    text_fr="Ce domaine n'appartient pas à l'espace de confiance ; utilisez l'adresse de messagerie sécurisée de santé "
    "du destinataire.",
)

DOMAIN_UNREACHABLE = Refusal(
    code="directory.domain-unreachable",
    smtp=550,
    enhanced="5.4.4",
    hl7=HL7Code.AE,
    condition="207",
    application="550",
    text="No mail server is known for this domain; ask the operator of the gateway to add it as a partner.",
    text_fr="Aucun serveur de messagerie n'est connu pour ce domaine ; demandez à l'exploitant de la passerelle de "
    "l'ajouter à ses partenaires.",
)

FILES_HELD = Refusal(
    code="directory.files-held",
    smtp=451,
    enhanced="4.3.0",
    hl7=HL7Code.AR,
    condition="207",
    application="451",
    text="The register's files are held for a human and the directory was left as it was; read the report, then fetch "
    "them again, or accept what holds them.",
    text_fr="Les fichiers du registre sont retenus pour un humain et l'annuaire n'a pas été touché ; lisez le rapport, "
    "puis récupérez-les à nouveau, ou acceptez ce qui les retient.",
)

SYNCHRONISATION_INTERRUPTED = Refusal(
    code="directory.synchronisation-interrupted",
    smtp=451,
    enhanced="4.3.0",
    hl7=HL7Code.AR,
    condition="207",
    application="451",
    text="The directory could not be read or written to the end; what was written stays, run the synchronisation again "
    "to write the rest.",
    text_fr="L'annuaire n'a pas pu être lu ou écrit jusqu'au bout ; ce qui a été écrit reste, relancez la "
    "synchronisation pour écrire le reste.",
)

CATALOGUE = (
    RECIPIENT_UNKNOWN,
    ADDRESS_INVALID,
    UNAVAILABLE,
    DOMAIN_UNTRUSTED,
    DOMAIN_UNREACHABLE,
    FILES_HELD,
    SYNCHRONISATION_INTERRUPTED,
)
