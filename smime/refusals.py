"""Why `smime` cannot protect or open a message: its entries of the catalogue of errors.

One text covers everything that can go wrong while opening: telling a sender which step failed would help somebody who
sends variations of a stolen message to learn its key (Bleichenbacher, Manger, Vaudenay).
"""

from __future__ import annotations

from trust.refusals import HL7Code, Refusal

CANNOT_OPEN = Refusal(
    code="smime.cannot-open",
    smtp=554,
    enhanced="5.7.5",
    hl7=HL7Code.AE,
    condition="207",
    application="906",
    text="This encrypted message cannot be opened; "
    "encrypt it to the recipient's current certificate and send it again.",
    text_fr="Ce message chiffré ne peut pas être ouvert ; chiffrez-le avec le certificat actuel du destinataire "
    "et renvoyez-le.",
)
"""Decryption failed, whatever the reason."""

NO_ENCRYPTION_CERTIFICATE = Refusal(
    code="smime.no-encryption-certificate",
    smtp=550,
    enhanced="5.7.5",
    hl7=HL7Code.AE,
    condition="207",
    application="906",
    text="The recipient must be written to encrypted and has no valid encryption certificate; "
    "ask the recipient to publish one.",
    text_fr="Ce destinataire exige le chiffrement et n'a pas de certificat de chiffrement valide ; "
    "demandez-lui d'en publier un.",
)
"""Encryption is mandatory and impossible: the message is never sent in the clear instead."""

REVOCATION_UNKNOWN = Refusal(
    code="smime.revocation-unknown",
    smtp=451,
    enhanced="4.7.5",
    hl7=HL7Code.AR,
    condition="207",
    application="451",
    text="Whether the recipient's certificate is revoked is not known at the moment; nothing needs to be done, "
    "it is tried again.",
    text_fr="On ne sait pas pour le moment si le certificat du destinataire est révoqué ; rien à faire, "
    "un nouvel essai suivra.",
)
"""Under a hard policy nothing is encrypted to such a certificate; its authority's answer is being fetched."""

NO_SIGNING_KEY = Refusal(
    code="smime.no-signing-key",
    smtp=550,
    enhanced="5.7.5",
    hl7=HL7Code.AE,
    condition="207",
    application="906",
    text="The sender's address has no valid signing key here; ask the operator to install one.",
    text_fr="L'adresse de l'expéditeur n'a pas de clé de signature valide ici ; "
    "demandez à l'opérateur d'en installer une.",
)
"""Signing is mandatory and the sender has no key that may sign."""

SIGNER_UNAVAILABLE = Refusal(
    code="smime.signer-unavailable",
    smtp=451,
    enhanced="4.7.5",
    hl7=HL7Code.AR,
    condition="207",
    application="451",
    text="The sender's signing key does not answer at the moment; nothing needs to be done, it is tried again.",
    text_fr="La clé de signature de l'expéditeur ne répond pas pour le moment ; rien à faire, un nouvel essai suivra.",
)
"""The key is in a card or an HSM that fails: the message waits, it never leaves unsigned."""

KEY_UNAVAILABLE = Refusal(
    code="smime.key-unavailable",
    smtp=451,
    enhanced="4.7.5",
    hl7=HL7Code.AR,
    condition="207",
    application="451",
    text="The recipient's decryption key does not answer at the moment; nothing needs to be done, it is tried again.",
    text_fr="La clé de déchiffrement du destinataire ne répond pas pour le moment ; rien à faire, un nouvel essai "
    "suivra.",
)
"""The key is in a token that fails, or its file is damaged: the message waits, it is not refused for that."""

DECRYPTION_PAUSED = Refusal(
    code="smime.decryption-paused",
    smtp=451,
    enhanced="4.7.1",
    hl7=HL7Code.AR,
    condition="207",
    application="451",
    text="Too many of this sender's messages could not be opened; this one waits. "
    "Check which certificates the sender encrypts to.",
    text_fr="Trop de messages de cet expéditeur n'ont pas pu être ouverts ; celui-ci attend. "
    "Vérifiez vers quels certificats l'expéditeur chiffre.",
)
"""Attacks on decryption live on many answers (RFC 3218): after a number of failures a sender gets them slowly."""

CATALOGUE = (
    CANNOT_OPEN,
    NO_ENCRYPTION_CERTIFICATE,
    REVOCATION_UNKNOWN,
    NO_SIGNING_KEY,
    SIGNER_UNAVAILABLE,
    KEY_UNAVAILABLE,
    DECRYPTION_PAUSED,
)
