"""What a connector's readers are told when it stands still (`mta.outages`): a mailbox that is not collected for a
reason that does not pass by itself, mail that waits for a key, files that wait for their folder.

Not a line that is down: everybody notices, and it comes back by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from mta.collecting import Collector
from mta.message import TargetKind
from mta.outages import Outage, kept_waiting
from mta.spool_reading import SpoolReader
from smime.refusals import KEY_UNAVAILABLE

_PATIENCE_SECONDS = 3600.0
_SIGN_IN = "l'opérateur refuse le mot de passe, le jeton ou le certificat", "the operator refuses what it signs in with"
_FILE = "le fichier du mot de passe ou du jeton ne peut pas être lu", "the file of its password or token is unreadable"
_TOKEN = "le fournisseur d'identité ne donne pas de jeton", "the identity provider gives no token"
_SERVER = "le certificat du serveur n'est pas accepté", "the server's certificate is not accepted"
_REASONS = {
    "login-refused": _SIGN_IN,
    "secret-unreadable": _FILE,
    "secret-unusable": _FILE,
    "token-not-given": _TOKEN,
    "token-unreadable": _TOKEN,
    "refresh-token-not-kept": _TOKEN,
    "no-key": (
        "le connecteur n'a aucune clef pour ouvrir ce qui y arrive (relais keys import)",
        "the connector has no key to open its mail with (relais keys import)",
    ),
    "folder-refused": ("le dossier à relever n'y existe pas", "the folder to collect does not exist there"),
    "SSLCertVerificationError": _SERVER,
}
"""By `mta.collecting_options.CollectorStatus.trouble`."""
_UNUSABLE = (
    "son certificat, sa clef ou son mot de passe ne peut pas être lu (relais doctor)",
    "its certificate, key or password cannot be read (relais doctor)",
)


def look_for_standstills(
    spool: SpoolReader,
    collectors: Callable[[], Sequence[Collector]],
    addresses: Sequence[str],
    unusable: Collection[str],
    clock: Callable[[], float],
) -> Iterator[Outage]:
    """What stands still now. `unusable`: the addresses whose accounts were left out at the start. Blocks."""
    for address in unusable:
        yield _not_collected(address, _UNUSABLE)
    for each in collectors():
        if not each.status.connected and each.status.trouble in _REASONS:
            yield _not_collected(each.address, _REASONS[each.status.trouble])
    before = clock() - _PATIENCE_SECONDS
    for address in {one.recipient for one in kept_waiting(spool, TargetKind.MAILBOX, before, KEY_UNAVAILABLE.code)}:
        yield Outage(
            address,
            "key",
            f"Des messages chiffrés pour {address} attendent la clef qui les ouvre : insérez la carte ou le support. "
            "Ils seront ouverts d'eux-mêmes.",
            f"Encrypted messages for {address} wait for the key that opens them: put the card or token back.",
        )
    if kept_waiting(spool, TargetKind.FOLDER, before):
        for address in addresses:
            yield Outage(
                address,
                "folder",
                "Le dossier du logiciel métier ne peut pas être écrit : ce qui arrive n'y est plus déposé, et attend.",
                "The folder of the practice software cannot be written: what arrives is not put there, and waits.",
            )


def _not_collected(address: str, why: tuple[str, str]) -> Outage:
    return Outage(
        address,
        "collect",
        f"La boîte {address} n'est plus relevée chez son opérateur : {why[0]}. Ce qui y arrive y reste.",
        f"The mailbox {address} is not collected at its operator: {why[1]}. What arrives stays there.",
    )
