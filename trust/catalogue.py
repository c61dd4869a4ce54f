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

CATALOGUE: tuple[Refusal, ...] = (AUTHENTICATION_FAILED, ACCOUNT_LOCKED)
