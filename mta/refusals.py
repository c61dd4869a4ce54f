"""The road's entries of the one catalogue of errors: why a message was not taken, or not handed on.

Every reply of a door, every deferral and every failure of a delivery names one of these, so that an operator's log,
a partner's SMTP transcript and a laboratory's acknowledgement say the same thing.
"""

from __future__ import annotations

from trust.refusals import HL7Code, Refusal

_SMTP_ERROR_CODES = frozenset(
    {*range(420, 433), 441, 442, 450, 451, 452, *range(500, 505), 510, 512, 513, 523, 530, 541, *range(550, 555)}
)
"""The codes SMTPERRORCODE knows; any other is told as the general one of its class."""


def _entry(name: str, smtp: int, enhanced: str, text: str, text_fr: str) -> Refusal:
    permanent = smtp >= 500
    general = 550 if permanent else 451
    return Refusal(
        code=f"mta.{name}",
        smtp=smtp,
        enhanced=enhanced,
        hl7=HL7Code.AE if permanent else HL7Code.AR,
        condition="207",
        application=str(smtp if smtp in _SMTP_ERROR_CODES else general),
        text=text,
        text_fr=text_fr,
    )


# What a door refuses

OPERATOR_NOT_LISTED = _entry(
    "operator-not-listed",
    550,
    "5.7.1",
    "Your certificate is not listed for this sender domain: check the trust list.",
    "Votre certificat n'est pas inscrit pour ce domaine expéditeur : vérifiez la liste blanche.",
)
MAILBOX_UNKNOWN = _entry(
    "mailbox-unknown",
    550,
    "5.1.1",
    "No such mailbox here: check the address in the directory.",
    "Cette boîte aux lettres n'existe pas ici : vérifiez l'adresse dans l'annuaire.",
)
RECIPIENT_NOT_TRUSTED = _entry(
    "recipient-not-trusted",
    550,
    "5.7.1",
    "This domain is outside the trust space: use a secure health address.",
    "Ce domaine est hors de l'espace de confiance : utilisez une adresse de messagerie sécurisée de santé.",
)
SENDER_NOT_ALLOWED = _entry(
    "sender-not-allowed",
    550,
    "5.7.1",
    "You may not send as this address: use one of your own mailboxes.",
    "Vous ne pouvez pas envoyer depuis cette adresse : utilisez l'une de vos boîtes.",
)
AUTHENTICATION_REQUIRED = _entry(
    "authentication-required",
    530,
    "5.7.0",
    "Authentication required: log in first.",
    "Authentification requise : connectez-vous d'abord.",
)
MESSAGE_TOO_LARGE = _entry(
    "message-too-large",
    552,
    "5.3.4",
    "The message is larger than this server accepts: send less or in several messages.",
    "Le message dépasse la taille acceptée : envoyez-en moins ou en plusieurs messages.",
)
LINE_ENDINGS = _entry(
    "line-endings",
    554,
    "5.6.0",
    "Bare CR or LF in the message: every line must end with CRLF.",
    "Retour chariot ou saut de ligne isolé : chaque ligne doit finir par CRLF.",
)
LINE_TOO_LONG = _entry(
    "line-too-long",
    554,
    "5.6.0",
    "A line exceeds 998 octets: encode the content in base64 or quoted-printable.",
    "Une ligne dépasse 998 octets : encodez le contenu en base64 ou quoted-printable.",
)
HEADER_INVALID = _entry(
    "header-invalid",
    554,
    "5.6.0",
    "The message header is malformed: exactly one From field with one address is required.",
    "En-tête du message incorrect : il faut un seul champ From avec une seule adresse.",
)
CONTENT_INVALID = _entry(
    "content-invalid",
    554,
    "5.6.0",
    "The message's MIME structure is malformed: compose it again.",
    "La structure MIME du message est incorrecte : recomposez-le.",
)
ADDRESS_INVALID = _entry(
    "address-invalid",
    553,
    "5.1.3",
    "This is no address mail can travel to: correct it.",
    "Cette adresse ne peut pas recevoir de courrier : corrigez-la.",
)
TOO_MANY_HOPS = _entry(
    "too-many-hops",
    554,
    "5.4.6",
    "Too many Received fields: the message is probably looping.",
    "Trop de champs Received : le message tourne probablement en boucle.",
)
MAIL_LOOP = _entry(
    "mail-loop",
    554,
    "5.4.6",
    "This message was here before for the same recipient: it goes round, check what redirects it.",
    "Ce message est déjà passé ici pour le même destinataire : il tourne en boucle, vérifiez ce qui le redirige.",
)
AUTHOR_UNPROVEN = _entry(
    "author-unproven",
    550,
    "5.7.1",
    "Nothing proves the From address: you are not listed for its domain, and neither DKIM nor S/MIME of it is valid.",
    "Rien ne prouve l'adresse From : vous n'êtes pas inscrit pour son domaine, ni DKIM ni S/MIME ne la garantit.",
)
AUTHOR_UNKNOWN_NOW = _entry(
    "author-unknown-now",
    451,
    "4.7.5",
    "The DNS does not say now whether the From domain signed this message: try again later.",
    "Le DNS ne dit pas actuellement si le domaine de From a signé ce message : réessayez plus tard.",
)
TOO_MANY_RECIPIENTS = _entry(
    "too-many-recipients",
    452,
    "4.5.3",
    "Too many recipients in one transaction: send the message again for the others.",
    "Trop de destinataires dans une transaction : renvoyez le message pour les autres.",
)
TOO_MANY_CONNECTIONS = _entry(
    "too-many-connections",
    421,
    "4.7.0",
    "Too many connections at the same time: use fewer, or try again later.",
    "Trop de connexions simultanées : ouvrez-en moins, ou réessayez plus tard.",
)
RATE_EXCEEDED = _entry(
    "rate-exceeded",
    450,
    "4.7.1",
    "Too many messages, recipients or bytes within an hour: send the rest later.",
    "Trop de messages, de destinataires ou d'octets en une heure : envoyez la suite plus tard.",
)
BUSY = _entry(
    "busy",
    452,
    "4.3.1",
    "Too many messages are coming in at once: try again in a moment.",
    "Trop de messages arrivent en même temps : réessayez dans un instant.",
)
ADDRESS_OUTSIDE_ASCII = _entry(
    "address-outside-ascii",
    553,
    "5.6.7",
    "An address outside ASCII is not permitted here: use the address's ASCII form.",
    "Une adresse hors ASCII n'est pas acceptée ici : utilisez sa forme ASCII.",
)
SPOOL_UNAVAILABLE = _entry(
    "spool-unavailable",
    451,
    "4.3.0",
    "The message could not be stored safely: try again later.",
    "Le message n'a pas pu être enregistré de façon sûre : réessayez plus tard.",
)
STORAGE_FULL = _entry(
    "storage-full",
    452,
    "4.3.1",
    "Storage is full here: try again later.",
    "L'espace de stockage est plein : réessayez plus tard.",
)

# What the stages refuse

DIRECTORY_UNAVAILABLE = _entry(
    "directory-unavailable",
    451,
    "4.4.3",
    "The directory does not answer: the message is tried again.",
    "L'annuaire ne répond pas : un nouvel essai aura lieu.",
)

# What becomes of a delivery

INTERNAL_ERROR = _entry(
    "internal-error",
    451,
    "4.3.0",
    "An internal error stopped this attempt: the message is tried again.",
    "Une erreur interne a interrompu cet essai : un nouvel essai aura lieu.",
)
ATTEMPT_TIMEOUT = _entry(
    "attempt-timeout",
    451,
    "4.4.7",
    "The attempt took too long: the message is tried again.",
    "L'essai a duré trop longtemps : un nouvel essai aura lieu.",
)
EXPIRED = _entry(
    "expired",
    554,
    "5.4.7",
    "The destination could not be reached in time: send the message by another way.",
    "Le destinataire n'a pas pu être joint à temps : envoyez le message par une autre voie.",
)
PARKED = _entry(
    "parked",
    554,
    "5.3.0",
    "Handling this message failed time and again: it was set aside for the operator, send it by another way.",
    "Le traitement de ce message a échoué à plusieurs reprises : il est mis de côté pour l'opérateur, "
    "envoyez-le par une autre voie.",
)
NO_ROUTE = _entry(
    "no-route",
    451,
    "4.4.4",
    "No host is known for this domain: declare the partner.",
    "Aucun serveur n'est connu pour ce domaine : déclarez le partenaire.",
)
UNREACHABLE = _entry(
    "unreachable",
    451,
    "4.4.1",
    "The destination does not answer: the message is tried again.",
    "Le destinataire ne répond pas : un nouvel essai aura lieu.",
)
CONNECTION_LOST = _entry(
    "connection-lost",
    451,
    "4.4.2",
    "The connection was lost before the final reply: the message is tried again.",
    "La connexion a été perdue avant la réponse finale : un nouvel essai aura lieu.",
)
TLS_UNAVAILABLE = _entry(
    "tls-unavailable",
    451,
    "4.7.0",
    "The destination offers no usable TLS: nothing is sent in clear, the message is tried again.",
    "Le destinataire n'offre pas de TLS utilisable : rien n'est envoyé en clair, un nouvel essai aura lieu.",
)
PEER_NOT_OPERATOR = _entry(
    "peer-not-operator",
    451,
    "4.7.1",
    "The server's certificate is not listed for the recipient's domain: check the trust list.",
    "Le certificat du serveur n'est pas inscrit pour le domaine du destinataire : vérifiez la liste blanche.",
)
OPERATOR_NOT_BELIEVED = _entry(
    "operator-not-believed",
    451,
    "4.7.1",
    "Your certificate is not believed for operators, or its revocation cannot be excluded now: check it.",
    "Votre certificat n'est pas accepté pour un opérateur, ou sa révocation ne peut être exclue : vérifiez-le.",
)
PEER_NOT_BELIEVED = _entry(
    "peer-not-believed",
    451,
    "4.7.1",
    "The server's certificate is not believed for operators, or its revocation cannot be excluded now.",
    "Le certificat du serveur n'est pas accepté pour un opérateur, ou sa révocation ne peut être exclue.",
)
PARTNER_SIZE_LIMIT = _entry(
    "partner-size-limit",
    552,
    "5.3.4",
    "The message is larger than the destination accepts: send less or in several messages.",
    "Le message dépasse la taille acceptée par le destinataire : envoyez-en moins ou en plusieurs messages.",
)
REQUIRETLS_UNSUPPORTED = _entry(
    "requiretls-unsupported",
    550,
    "5.7.30",
    "The sender demands TLS all the way and the destination does not promise it: send without that demand.",
    "L'expéditeur exige TLS de bout en bout et le destinataire ne le garantit pas : renvoyez sans cette exigence.",
)
NO_MAIL_ACCEPTED = _entry(
    "no-mail-accepted",
    556,
    "5.1.10",
    "The domain says in its DNS that it takes no mail: correct the address.",
    "Ce domaine déclare dans son DNS ne recevoir aucun courrier : corrigez l'adresse.",
)
DNS_UNAVAILABLE = _entry(
    "dns-unavailable",
    451,
    "4.4.3",
    "The DNS does not say where this domain's mail goes: the message is tried again.",
    "Le DNS ne dit pas où envoyer le courrier de ce domaine : un nouvel essai aura lieu.",
)
HOST_REFUSED = _entry(
    "host-refused",
    451,
    "4.4.4",
    "The DNS names only hosts mail does not go to from here (internal addresses, or against the domain's MTA-STS "
    "policy): declare the partner's host, or tell the partner.",
    "Le DNS ne désigne que des serveurs interdits d'ici (adresses internes, ou contraires à la politique MTA-STS du "
    "domaine) : déclarez le serveur du partenaire, ou prévenez-le.",
)
HOST_UNPROVEN = _entry(
    "host-unproven",
    451,
    "4.7.5",
    "The server's certificate is not the one the domain publishes (MTA-STS or DANE): tell the partner.",
    "Le certificat du serveur n'est pas celui que publie le domaine (MTA-STS ou DANE) : prévenez le partenaire.",
)
EIGHT_BIT_UNSUPPORTED = _entry(
    "eight-bit-unsupported",
    554,
    "5.6.3",
    "The destination does not accept 8-bit content: encode it.",
    "Le destinataire n'accepte pas de contenu 8 bits : encodez-le.",
)
SMTPUTF8_UNSUPPORTED = _entry(
    "smtputf8-unsupported",
    554,
    "5.6.7",
    "The message's header is in UTF-8 and the destination does not take that (SMTPUTF8): encode it (RFC 2047).",
    "L'en-tête du message est en UTF-8 et le destinataire ne l'accepte pas (SMTPUTF8) : encodez-le (RFC 2047).",
)
REMOTE_DEFERRED = _entry(
    "remote-deferred",
    451,
    "4.0.0",
    "The destination asked to try again later.",
    "Le destinataire demande un nouvel essai plus tard.",
)
REMOTE_REFUSED = _entry(
    "remote-refused",
    554,
    "5.0.0",
    "The destination refused the message: its own words follow.",
    "Le destinataire a refusé le message : ses propres mots suivent.",
)

# What screening finds

MALWARE_FOUND = _entry(
    "malware-found",
    554,
    "5.7.0",
    "Malicious software was found in this message: it is in quarantine, check the computer it comes from.",
    "Un logiciel malveillant a été trouvé dans ce message : il est en quarantaine, vérifiez le poste d'où il vient.",
)
SCAN_TOO_LARGE = _entry(
    "scan-too-large",
    554,
    "5.3.4",
    "This message is too large to be searched for malicious software: it is in quarantine, send less at a time.",
    "Ce message est trop volumineux pour l'analyse antivirus : il est en quarantaine, envoyez-en moins à la fois.",
)
TOO_LARGE_TO_SCAN = _entry(
    "too-large-to-scan",
    552,
    "5.3.4",
    "This message is too large to be searched for malicious software: send less at a time.",
    "Ce message est trop volumineux pour l'analyse antivirus : envoyez-en moins à la fois.",
)
SCANNER_UNAVAILABLE = _entry(
    "scanner-unavailable",
    451,
    "4.3.0",
    "The malware scanner does not answer: the message waits until it does.",
    "L'antivirus ne répond pas : le message attend qu'il réponde.",
)

# What is said about notifications

NOTICE_ABOUT_NOTICE = _entry(
    "notice-about-notice",
    554,
    "5.7.0",
    "A receipt may not answer a receipt: turn automatic receipts off for such messages.",
    "Un accusé ne peut pas répondre à un accusé : désactivez les accusés automatiques pour ces messages.",
)
SIGN_IN_REFUSED = _entry(
    "sign-in-refused",
    451,
    "4.7.8",
    "The operator does not accept this mailbox's password, token or certificate: renew it; the mail waits.",
    "L'opérateur refuse le mot de passe, le jeton ou le certificat de cette boîte : renouvelez-le ; le message attend.",
)

CATALOGUE = (
    OPERATOR_NOT_LISTED,
    MAILBOX_UNKNOWN,
    RECIPIENT_NOT_TRUSTED,
    SENDER_NOT_ALLOWED,
    AUTHENTICATION_REQUIRED,
    MESSAGE_TOO_LARGE,
    LINE_ENDINGS,
    LINE_TOO_LONG,
    HEADER_INVALID,
    CONTENT_INVALID,
    ADDRESS_INVALID,
    TOO_MANY_HOPS,
    MAIL_LOOP,
    AUTHOR_UNPROVEN,
    AUTHOR_UNKNOWN_NOW,
    TOO_MANY_RECIPIENTS,
    TOO_MANY_CONNECTIONS,
    RATE_EXCEEDED,
    BUSY,
    ADDRESS_OUTSIDE_ASCII,
    SPOOL_UNAVAILABLE,
    STORAGE_FULL,
    DIRECTORY_UNAVAILABLE,
    INTERNAL_ERROR,
    ATTEMPT_TIMEOUT,
    EXPIRED,
    PARKED,
    NO_ROUTE,
    UNREACHABLE,
    CONNECTION_LOST,
    TLS_UNAVAILABLE,
    PEER_NOT_OPERATOR,
    OPERATOR_NOT_BELIEVED,
    PEER_NOT_BELIEVED,
    PARTNER_SIZE_LIMIT,
    REQUIRETLS_UNSUPPORTED,
    NO_MAIL_ACCEPTED,
    DNS_UNAVAILABLE,
    HOST_REFUSED,
    HOST_UNPROVEN,
    EIGHT_BIT_UNSUPPORTED,
    SMTPUTF8_UNSUPPORTED,
    REMOTE_DEFERRED,
    REMOTE_REFUSED,
    MALWARE_FOUND,
    SCAN_TOO_LARGE,
    TOO_LARGE_TO_SCAN,
    SCANNER_UNAVAILABLE,
    NOTICE_ABOUT_NOTICE,
    SIGN_IN_REFUSED,
)
