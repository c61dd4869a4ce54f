"""The serving of mailboxes' entries of the one catalogue of errors: why a delivery into a mailbox waits, or ended."""

from __future__ import annotations

from trust.refusals import HL7Code, Refusal

MAILBOX_FULL_NOW = Refusal(
    code="mta.mailbox-full-now",
    smtp=452,
    enhanced="4.2.2",
    hl7=HL7Code.AR,
    condition="207",
    application="452",
    text="The recipient's mailbox is full: the message is kept and tried again while the reader may make room.",
    text_fr="La boîte du destinataire est pleine : le message est gardé et sera présenté de nouveau.",
)
MAILBOX_FULL = Refusal(
    code="mta.mailbox-full",
    smtp=552,
    enhanced="5.2.2",
    hl7=HL7Code.AE,
    condition="207",
    application="552",
    text="The recipient's mailbox was full for too long: reach the reader in another way, then send again.",
    text_fr="La boîte du destinataire est restée pleine : joignez-le autrement, puis renvoyez le message.",
)

CATALOGUE = (MAILBOX_FULL_NOW, MAILBOX_FULL)
