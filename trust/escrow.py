"""The key-encryption key on paper: split into shares of which some bring it back, and fewer open nothing.

Shamir's scheme in the form of SLIP-0039, by its reference implementation: a share is 33 words of a list whose words
differ in their first four letters, with a checksum that finds any three wrong words, and the joined secret carries a
digest, so that shares that do not belong together never give a wrong key. Of the key, a share alone tells nothing that
could be computed from it (32 bytes, of which 28 are masked perfectly and the digest by HMAC-SHA256).
"""

from __future__ import annotations

import difflib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from shamir_mnemonic import MnemonicError, combine_mnemonics, generate_mnemonics
from shamir_mnemonic.share import Share as _Share
from shamir_mnemonic.wordlist import WORDLIST

from trust.key_ring import read_ring
from trust.sealing import KEK_BYTES, Sealing, VaultError

WORDS = 33
"""Of a share of 32 bytes."""
MOST_SHARES = 16
_PREFIXES = {word[:4]: word for word in WORDLIST}
_MARK = "Words of this share:"
_FINGERPRINT = re.compile(r"^Key: +([0-9a-f]{16})$", re.MULTILINE)
_IN_A_ROW = 4


class EscrowError(ValueError):
    """Shares cannot be made or joined; the text says which one and what to do, and never quotes a share."""


@dataclass(frozen=True, slots=True, repr=False)
class Share:
    """One share as it was written down."""

    words: str
    """33 words with one space between."""
    escrow: int
    """The same in all shares that were made together."""
    number: int
    """1, 2, ..."""
    needed: int
    fingerprint: str
    """Of the key, as the sheet says; empty when only words were given."""


def fingerprint(kek: bytes) -> str:
    """16 hexadecimal digits by which people recognise a key-encryption key, and that tell nothing of it."""
    return Sealing((kek,)).pseudonym("key-encryption key")[:16]


def belongs_to(kek: bytes, vault: Path) -> bool:
    """Whether the vault in this directory was made with this key, or renewed to it. Raises OSError."""
    try:
        masters = read_ring(vault, kek)
    except VaultError:
        return False
    return hmac.compare_digest((vault / "check").read_bytes(), Sealing(masters).pseudonym("vault check").encode())


def split(kek: bytes, shares: int = 2, needed: int = 2) -> tuple[Share, ...]:
    """New shares of the key, never the same twice. Raises `EscrowError`."""
    if len(kek) != KEK_BYTES:
        raise EscrowError(f"a key-encryption key has {KEK_BYTES} bytes")
    if not 2 <= needed <= shares <= MOST_SHARES:
        raise EscrowError(f"there are 2 to {MOST_SHARES} shares, and at least 2 are needed")
    (group,) = generate_mnemonics(1, [(needed, shares)], kek)
    made = tuple(_share(words, fingerprint(kek)) for words in group)
    if join(made[-needed:]) != kek:
        raise EscrowError("the shares do not give the key back: nothing was made")
    return made


def join(shares: Sequence[Share]) -> bytes:
    """The key-encryption key. Every share given must belong to it. Raises `EscrowError`."""
    if not shares:
        raise EscrowError("no share was given")
    if len({each.escrow for each in shares}) > 1 or len({each.needed for each in shares}) > 1:
        raise EscrowError(
            "these shares were made at different times or of different keys: shares of one escrow begin with the same "
            "two words"
        )
    known = {each.fingerprint for each in shares} - {""}
    if len(known) > 1:
        raise EscrowError(f"these sheets are of different keys: {', '.join(sorted(known))}")
    different = {each.number: each for each in shares}
    if any(different[each.number].words != each.words for each in shares):
        raise EscrowError("two different shares have the same number: one of them was not made by relais keys escrow")
    needed = shares[0].needed
    if len(different) < needed:
        twice = " (the same share was given twice)" if len(different) < len(shares) else ""
        raise EscrowError(f"{needed} different shares are needed, and {len(different)} was given{twice}")
    found: set[bytes] = set()
    ordered = sorted(different.values(), key=lambda each: each.number)
    groups = combinations(ordered, needed) if len(ordered) > needed else [tuple(ordered)]
    for group in groups:
        try:
            found.add(combine_mnemonics([each.words for each in group]))
        except MnemonicError:
            raise EscrowError("these shares do not belong together: one is of another key") from None
    kek = found.pop()
    if found or (known and fingerprint(kek) not in known):
        raise EscrowError("these shares do not belong together, or a sheet bears the fingerprint of another key")
    return kek


def sheet(share: Share, host: str, made: str, of: int) -> str:
    """What is printed and locked away: ASCII."""
    words = share.words.split(" ")
    lines = [
        f"Share {share.number} of {of} of a Relais key-encryption key",
        "",
        f"Gateway:  {host or '-'}",
        f"Key:      {share.fingerprint}",
        f"Made:     {made}",
        f"Needed:   {share.needed} shares. Without them, the gateway's mail and keys cannot be read by anybody.",
        "",
        "Keep it where neither the machine, nor its backups, nor another share is. Who holds as many shares as are",
        "needed can read all mail. To use it: relais keys recover FILE FILE, each with these words.",
        "",
        _MARK,
        "",
    ]
    numbered = [f"{number:>2} {word:<10}" for number, word in enumerate(words, 1)]
    lines += ["  ".join(numbered[at : at + _IN_A_ROW]).rstrip() for at in range(0, len(words), _IN_A_ROW)]
    return "\n".join(lines) + "\n"


def read_share(text: str) -> Share:
    """A share from its sheet, or from its words typed in any case, numbered or not, the first four letters of each
    sufficing. Raises `EscrowError`."""
    known = _FINGERPRINT.search(text)
    typed = re.findall(r"[a-z]+", text.rpartition(_MARK)[2].lower())
    if len(typed) != WORDS:
        raise EscrowError(f"a share has {WORDS} words, and here are {len(typed)}")
    words = []
    for number, each in enumerate(typed, 1):
        word = _PREFIXES.get(each[:4])
        if word is None or not word.startswith(each):
            near = difflib.get_close_matches(each, WORDLIST, 1)
            perhaps = f" (perhaps {near[0]})" if near else ""
            raise EscrowError(f"word {number} is not in the list{perhaps}: compare it with the sheet")
        words.append(word)
    return _share(" ".join(words), known[1] if known else "")


def _share(words: str, known: str) -> Share:
    try:
        read = _Share.from_mnemonic(words)
    except MnemonicError:
        raise EscrowError(
            "the words do not fit together: one to three of them are wrong, or in another order"
        ) from None
    if read.group_threshold != 1 or read.group_count != 1 or len(read.value) != KEK_BYTES:
        raise EscrowError("this is no share of a key-encryption key")
    return Share(words, read.identifier, read.index + 1, read.member_threshold, known)
