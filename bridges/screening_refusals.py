"""What the screening of an inbound mail refuses, as entries of the one catalogue of errors."""

from __future__ import annotations

from trust.refusals import HL7Code, Refusal

ARCHIVE_REFUSED = Refusal(
    "bridges.archive-refused",
    554,
    "5.7.0",
    HL7Code.AE,
    "207",
    "906",
    "An attached archive could harm its reader: send a plain ZIP without password, nested archives or unsafe names.",
    "Une archive jointe est dangereuse : envoyez un ZIP simple, sans mot de passe, archive imbriquée ni nom ambigu.",
)

CATALOGUE = (ARCHIVE_REFUSED,)
