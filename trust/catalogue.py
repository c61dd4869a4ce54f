"""What trust itself refuses: who could not prove who they are."""

from __future__ import annotations

from trust.refusals import HL7Code, Refusal

AUTHENTICATION_FAILED = Refusal(
    code="trust.authentication-failed",
    smtp=535,
    enhanced="5.7.8",
    hl7=HL7Code.AE,
    condition="207",
    application="535",
    text="Authentication failed: check the login and the password.",
    text_fr="Échec de l'authentification : vérifiez l'identifiant et le mot de passe.",
)
"""Unknown login, wrong password or no password at all: never said which (RFC 4954 §6)."""

ACCOUNT_LOCKED = Refusal(
    code="trust.account-locked",
    smtp=454,
    enhanced="4.7.0",
    hl7=HL7Code.AR,
    condition="207",
    application="454",
    text="Too many failed logins: the account is locked for a while, try again later.",
    text_fr="Trop d'échecs de connexion : le compte est bloqué provisoirement, réessayez plus tard.",
)
"""Temporary (RFC 4954 §6, 454 4.7.0): the lock ends by itself, and a client must not forget its good password."""

ACCOUNT_DISABLED = Refusal(
    code="trust.account-disabled",
    smtp=535,
    enhanced="5.7.13",
    hl7=HL7Code.AE,
    condition="207",
    application="535",
    text="This account is closed: ask your operator to open it again.",
    text_fr="Ce compte est fermé : demandez à votre opérateur de le rouvrir.",
)
"""Whatever the password: an administrator keeps it out (RFC 5248 registry, X.7.13 user account disabled)."""

CERTIFICATE_REFUSED = Refusal(
    code="trust.certificate-refused",
    smtp=535,
    enhanced="5.7.8",
    hl7=HL7Code.AE,
    condition="207",
    application="535",
    text="The certificate does not log in here: it is not believed, or no account has it.",
    text_fr="Ce certificat ne permet pas de se connecter : il n'est pas reconnu, ou n'est rattaché à aucun compte.",
)
"""The detail names the rule of the path that was broken; none when it is believed and nobody's."""

TOKEN_REFUSED = Refusal(
    code="trust.token-refused",
    smtp=535,
    enhanced="5.7.8",
    hl7=HL7Code.AE,
    condition="207",
    application="535",
    text="The access token is not accepted: sign in with your identity provider again.",
    text_fr="Le jeton d'accès n'est pas accepté : reconnectez-vous auprès de votre fournisseur d'identité.",
)
"""The detail is the rule it breaks; none when it is believed and its subject is linked to no account."""

TOKEN_KEYS_UNAVAILABLE = Refusal(
    code="trust.token-keys-unavailable",
    smtp=454,
    enhanced="4.7.0",
    hl7=HL7Code.AR,
    condition="207",
    application="454",
    text="The identity provider's keys are not known at the moment: try again in a minute.",
    text_fr="Les clés du fournisseur d'identité ne sont pas connues pour l'instant : réessayez dans une minute.",
)

CATALOGUE: tuple[Refusal, ...] = (
    AUTHENTICATION_FAILED,
    ACCOUNT_LOCKED,
    ACCOUNT_DISABLED,
    CERTIFICATE_REFUSED,
    TOKEN_REFUSED,
    TOKEN_KEYS_UNAVAILABLE,
)
