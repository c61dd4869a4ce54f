"""Rows of `relais bench trust`: CRLs up to a million entries loaded, asked, and what they weigh.

Loading is `Revocation.add_crl`: signature, syntax of every entry, index. The reference does what a program with
`cryptography` would: load, verify, make a set of the serials. Asking is measured at several sizes: by serial number in
one list, and through `Revocation.check` with certificates that are new each time. Time is that of the processor.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509

from config.bench.authority import LIST, Authority, random_serials, serials_of
from config.bench.child import BenchError
from config.bench.list_loading import peak_alone
from config.bench.report import row
from trust.revocation import RevocationState
from trust.revocation.checker import Revocation, RevocationOptions
from trust.revocation.crl import Crl

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scale:
    runs: int
    sizes: tuple[int, ...]
    """Of the lists that are asked, ascending; the last one is the list whose loading is measured."""
    lookups: int
    """In one run and list."""
    checks: int
    """New certificates asked about in one run and list."""


def lists(scale: Scale, place: Path) -> list[Row]:
    """The rows; files go into `place`. Raises `BenchError` when an answer is wrong."""
    authority = Authority()
    encoded = {size: authority.crl(size) for size in scale.sizes}
    largest = encoded[scale.sizes[-1]]
    return [
        *_loading(authority, scale, largest),
        *_lookups(authority, scale, encoded),
        *_checks(authority, scale, encoded),
        *_memory(authority, scale, largest, place),
    ]


def _revocation(authority: Authority) -> Revocation:
    options = RevocationOptions(max_crl_bytes=1 << 30)
    return Revocation([authority.root.certificate], [authority.ca.certificate], options)


def _loading(authority: Authority, scale: Scale, encoded: bytes) -> list[Row]:
    entries = scale.sizes[-1]
    key = authority.ca.certificate.public_key()

    def ours() -> None:
        if _revocation(authority).add_crl(encoded, url=LIST).size != entries:
            raise BenchError("not every entry was read")

    def theirs() -> None:
        loaded = x509.load_der_x509_crl(encoded)
        if not loaded.is_signature_valid(key) or len({each.serial_number for each in loaded}) != entries:  # type: ignore[arg-type]
            raise BenchError("cryptography read another list")

    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(scale.runs):
        for name, work in (("ours", ours), ("theirs", theirs)):
            rates[name].append(entries / _spent(work))
    reference = "cryptography: load, verify, and a set of the serials (no dates, reasons or syntax of entries)"
    return [
        row("crl_load_eps", rates["ours"], "entries/s", entries, reference=reference, reference_values=rates["theirs"])
    ]


def _lookups(authority: Authority, scale: Scale, encoded: dict[int, bytes]) -> list[Row]:
    """Half of what is asked is listed; in random order, so that a large list does not sit in the processor's caches."""
    held = {size: _revocation(authority).add_crl(data, url=LIST) for size, data in encoded.items()}
    asked: dict[int, list[tuple[int, bool]]] = {}
    for size, data in encoded.items():
        listed = [(serial, True) for serial in serials_of(data, scale.lookups // 2)]
        both = listed + [(serial, False) for serial in random_serials(len(listed))]
        times = -(-scale.lookups // len(both))
        asked[size] = (both * times)[: scale.lookups]
        random.Random(size).shuffle(asked[size])  # noqa: S311 - only an order
    nanoseconds: dict[int, list[float]] = {size: [] for size in scale.sizes}
    for size, crl in held.items():
        _ask(crl, asked[size])
    for _ in range(scale.runs):
        for size, crl in held.items():
            spent = _spent(lambda crl=crl, size=size: _ask(crl, asked[size]))  # type: ignore[misc]
            nanoseconds[size].append(1e9 * spent / len(asked[size]))
    rows = [row(f"crl_lookup_{_short(size)}_ns", nanoseconds[size], "ns", size) for size in scale.sizes]
    small, large = scale.sizes[0], scale.sizes[-1]
    ratios = [a / b for a, b in zip(nanoseconds[large], nanoseconds[small], strict=True)]
    return [row("crl_lookup_growth", ratios, f"times the lookup among {small:,}", large), *rows]


def _ask(crl: Crl, asked: Sequence[tuple[int, bool]]) -> None:
    find, issuer = crl.find, crl.issuer
    for serial, listed in asked:
        if (find(serial, issuer) is not None) is not listed:
            raise BenchError("a serial number was not found, or one that is not there was")


def _checks(authority: Authority, scale: Scale, encoded: dict[int, bytes]) -> list[Row]:
    """What a message pays: the certificate's pointers are read, the right list is found and asked."""
    small, large = scale.sizes[0], scale.sizes[-1]
    issuer, at = authority.ca.certificate, authority.now
    microseconds: dict[int, list[float]] = {small: [], large: []}
    checkers = {}
    for size in (small, large):
        checkers[size] = _revocation(authority)
        checkers[size].add_crl(encoded[size], url=LIST)
    for _ in range(scale.runs):
        leaves = authority.leaves(scale.checks)
        for size, checker in checkers.items():
            loaded = [x509.load_der_x509_certificate(leaf) for leaf in leaves]
            began = time.thread_time()
            states = [checker.check(leaf, issuer, at).state for leaf in loaded]
            microseconds[size].append(1e6 * (time.thread_time() - began) / len(loaded))
            if set(states) != {RevocationState.GOOD}:
                raise BenchError("a good certificate was not found good")
    rows = [row(f"crl_check_{_short(size)}_us", microseconds[size], "us", size) for size in (small, large)]
    ratio = statistics.median(microseconds[large]) / statistics.median(microseconds[small])
    return [*rows, row("crl_check_growth", [ratio], f"times the check among {small:,}", large)]


def _memory(authority: Authority, scale: Scale, encoded: bytes, place: Path) -> list[Row]:
    octets = len(encoded)
    held = _revocation(authority).add_crl(encoded, url=LIST).octets
    peaks = [peak_alone(place, authority.ca.encoded, encoded) / octets for _ in range(scale.runs)]
    return [
        row("crl_held_mem_x", [held / octets], "times the CRL: entries and index", octets),
        row("crl_load_peak_mem_x", peaks, "times the CRL, itself included", octets),
    ]


def _short(size: int) -> str:
    for unit, name in ((1_000_000, "m"), (1000, "k")):
        if size >= unit and size % unit == 0:
            return f"{size // unit}{name}"
    return str(size)


def _spent(work: Callable[[], object]) -> float:
    """Seconds of processor time, of whatever thread."""
    began = time.process_time()
    work()
    return time.process_time() - began
