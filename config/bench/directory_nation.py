"""What `relais bench directory` is measured with: a nation's files, what changes from day to day, certificates.

The changes are counted from the lines of the files and from nothing of the synchronisation that is measured: a
professional of whom a line changed, came or went is one entry to write, so is a mailbox, and a structure that is named
for the first time or no more.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from config.bench.authority import Extension, Issuer, authority_extensions, certificate, usage
from config.bench.child import BenchError
from directory.national import find
from directory.records import MailboxKind, Recipient
from directory.synthetic_nation import NATIONAL, write_nation

NATIONAL_SITUATIONS = 2_300_000
_ADDRESS, _HOLDER, _STRUCTURE = 1, 2, 21
"""Columns: the address of a mailbox; the IdNat_PP of a line about a person; the FINESS of a practice situation."""
Change = tuple[str, str]
"""What an entry to write is about: (`mailbox`, address), (`person`, IdNat_PP) or (`structure`, FINESS)."""


def generate(folder: Path, situations: int, day: int, changed: float) -> None:
    """The four files of `day`, with about so many practice situations."""
    write_nation(folder, max(50, round(situations * NATIONAL / NATIONAL_SITUATIONS)), day=day, changed=changed)


def lines(file: Path) -> Iterator[str]:
    """All but the header."""
    with file.open(encoding="utf-8", newline="\n") as opened:
        next(opened)
        yield from opened


def files_of(folder: Path) -> dict[str, Path]:
    """By kind, see `directory.national`."""
    return dict(find([folder]).items())


def changes(before: Path, after: Path) -> set[Change]:
    """The entries that differ between the files in two folders."""
    old, new = files_of(before), files_of(after)
    found: set[Change] = set()
    for kind in old:
        name, column = ("mailbox", _ADDRESS) if kind == "mssante" else ("person", _HOLDER)
        found.update((name, line.split("|")[column]) for line in _differing(old[kind], new[kind]))
    structures = [{line.split("|")[_STRUCTURE] for line in lines(files["practice"])} for files in (old, new)]
    found.update(("structure", each) for each in structures[0] ^ structures[1])
    return found


def _differing(before: Path, after: Path) -> Iterator[str]:
    """Lines that only one of the two files has."""
    known = [{hash(line) for line in lines(file)} for file in (before, after)]
    for file, others in ((before, known[1]), (after, known[0])):
        yield from (line for line in lines(file) if hash(line) not in others)


def certify(folders: Collection[Path], count: int, target: Path) -> list[str]:
    """Certificates for `count` persons' mailboxes, at most a tenth of those that are there on all these days; their
    addresses.

    One line each goes into `target`, for `certified`. Each has a serial number, subject and address of its own; the
    key is one for all, for making keys is not what is measured.
    """
    days = [
        {line.split("|")[_ADDRESS] for line in lines(files_of(folder)["mssante"]) if line.startswith("PER|")}
        for folder in folders
    ]
    chosen = sorted(set.intersection(*days))
    chosen = random.Random(1).sample(chosen, min(count, -(-len(chosen) // 10)))  # noqa: S311 - the same choice every time
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)
    ca = Issuer(certificate("Bench CA", ca_key, None, authority_extensions(None)), ca_key)
    with target.open("w") as file:
        for address in chosen:
            extensions: list[Extension] = [
                (usage("digital_signature", "key_encipherment"), True),
                (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False),
                (x509.SubjectAlternativeName([x509.RFC822Name(address)]), False),
            ]
            made = certificate("Bench person", key, ca, extensions)
            file.write(f"{address} {made.public_bytes(Encoding.DER).hex()}\n")
    return chosen


def certified(file: Path) -> Iterator[Recipient]:
    """What `certify` made, as the overlay of a first load."""
    for line in file.read_text().splitlines():
        address, encoded = line.split(" ")
        made = x509.load_der_x509_certificate(bytes.fromhex(encoded))
        yield Recipient(address, MailboxKind.PER, "", (made,), (made,))


def shift(published: str, hours: int) -> str:
    """The moment in a file's name, some hours later, ISO 8601."""
    from directory.guards import published_at

    moment = published_at(published)
    if moment is None:
        raise BenchError("the files do not say when they were published")
    return (moment + timedelta(hours=hours)).isoformat()
