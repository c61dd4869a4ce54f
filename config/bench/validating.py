"""Rows of `relais bench trust`: a leaf nobody has seen, up to the anchor, its revocation and its issuer's asked for.

The CRLs are held in the checker and the policy is hard. `cryptography`'s own verifier and pyhanko-certvalidator judge
the same leaves in turns, each with certificate objects of its own (both libraries read lazily and remember), loaded
outside the time unless a row says "from DER". What is counted is processor time of the thread.
"""

from __future__ import annotations

import asyncio
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from asn1crypto import x509 as asn1
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509 import verification

from config.bench.authority import LIST, ROOT_LIST, Authority, crl
from config.bench.child import BenchError
from config.bench.report import row
from trust.certificates import CertificateValidator, Purpose
from trust.revocation import RevocationMode, RevocationPolicy
from trust.revocation.checker import Revocation

Row = dict[str, Any]
Judge = Callable[[x509.Certificate], None]
"""Believes one leaf, or raises."""
Turn = Callable[[Sequence[bytes]], Callable[[], None]]
"""Makes objects of leaves in DER, and gives the work on them that is timed."""

PEER = "pyhanko_certvalidator"
PEER_MISSING = "pyhanko-certvalidator is not installed (a development dependency)"
PEER_ENTRIES = 1_000
_HARD = {Purpose.MAIL_SIGNATURE: RevocationPolicy(RevocationMode.HARD)}
_UNIT = "certificates/s"
_VERIFIER = "cryptography's own verifier, which asks for no revocation"


@dataclass(frozen=True, slots=True)
class Scale:
    runs: int
    turns: int
    """Of each contestant in one run."""
    leaves: int
    """New ones in one turn."""
    few: int
    """Leaves in a turn of a contestant that takes a millisecond for each."""
    entries: int
    """In the CA's CRL."""


@dataclass(frozen=True, slots=True)
class Contestant:
    turn: Turn
    leaves: slice
    """Which of a turn's new leaves it judges: two with the same validator must not share them."""


class Ours:
    """A validator as a gateway has it: anchor and intermediate configured, CRLs held, nothing answered without one."""

    def __init__(self, authority: Authority, entries: int) -> None:
        """Raises `BenchError` when it believes what it must not: then its speed means nothing."""
        self._at = authority.now
        root, ca = authority.root.certificate, authority.ca.certificate
        self.revocation = Revocation([root], [ca])
        revoked, good = (x509.load_der_x509_certificate(each) for each in authority.leaves(2))
        self.revocation.add_crl(crl(authority.root, 0, self._at), url=ROOT_LIST)
        self.validator = CertificateValidator([root], [ca], self.revocation, _HARD)
        self._expect(good, "relais-revocation-unknown")
        self.revocation.add_crl(authority.crl(entries, [revoked.serial_number]), url=LIST)
        self._expect(revoked, "rfc5280-6.1.3-revoked")
        forged = bytearray(authority.leaves(1)[0])
        forged[-1] ^= 1
        self._expect(x509.load_der_x509_certificate(bytes(forged)), "rfc5280-6.1.3-signature")
        self._expect(good, "rfc5280-6.1")

    def _expect(self, leaf: x509.Certificate, rule: str) -> None:
        verdict = self.validator.validate(leaf, (), Purpose.MAIL_SIGNATURE, self._at)
        if verdict.rule != rule:
            raise BenchError(f"a certificate was judged {verdict.rule} instead of {rule}: {verdict.detail}")

    def validate(self, leaf: x509.Certificate) -> None:
        """Raises `BenchError` unless it is valid and known not to be revoked."""
        verdict = self.validator.validate(leaf, (), Purpose.MAIL_SIGNATURE, self._at)
        if not verdict.ok or verdict.revocation != "good":
            raise BenchError(f"a good certificate was refused: {verdict.rule}, {verdict.detail}")


def validating(scale: Scale) -> list[Row]:
    """The rows. Raises `BenchError` when somebody judges a certificate wrongly."""
    rsa2048, p256 = Authority(), Authority("p256")
    rows = _beside_cryptography(rsa2048, scale)
    rows += _beside_pyhanko(rsa2048, scale)
    return rows + _on_a_curve(p256, scale)


def _beside_cryptography(authority: Authority, scale: Scale) -> list[Row]:
    ours = Ours(authority, scale.entries)
    ca = authority.ca.certificate
    known = x509.load_der_x509_certificate(authority.leaves(1)[0])
    ours.validate(known)
    n = scale.turns * scale.leaves
    first, second = slice(scale.leaves), slice(scale.leaves, 2 * scale.leaves)
    judge = _verifier(authority)
    rates = race_in_turns(
        {
            "ours": Contestant(_loaded(ours.validate), first),
            "theirs": Contestant(_loaded(judge), first),
            "bare": Contestant(_loaded(_signature_only(ca)), first),
            "ours, from DER": Contestant(_from_der(ours.validate), second),
            "theirs, from DER": Contestant(_from_der(judge), second),
            "remembered": Contestant(lambda leaves: _repeated(ours.validate, known, len(leaves)), first),
        },
        authority,
        scale,
    )
    bare = "the leaf's signature alone, RSA-2048 and SHA-256, in cryptography"
    return [
        _versus("validate_revoked_checked_vs_cryptography", rates["ours"], n, _VERIFIER, rates["theirs"]),
        _versus(
            "validate_revoked_checked_from_der_vs_cryptography",
            rates["ours, from DER"],
            n,
            f"{_VERIFIER}, from DER",
            rates["theirs, from DER"],
        ),
        _versus("validate_revoked_checked_vs_signature", rates["ours"], n, bare, rates["bare"]),
        _versus("validate_remembered_ps", rates["remembered"], n, "a new leaf each time, in this run", rates["ours"]),
    ]


def _beside_pyhanko(authority: Authority, scale: Scale) -> list[Row]:
    names = ("validate_vs_pyhanko", "validate_revoked_checked_vs_pyhanko")
    if importlib.util.find_spec(PEER) is None:
        return [skipped(name, _UNIT, PEER_MISSING) for name in names]
    ours = Ours(authority, scale.entries)
    with _quiet():
        rates = race_in_turns(
            {
                "ours": Contestant(_loaded(ours.validate), slice(scale.leaves)),
                "theirs": Contestant(_pyhanko(authority, checked=False), slice(scale.few)),
                "theirs, checked": Contestant(_pyhanko(authority, checked=True), slice(scale.few)),
            },
            authority,
            scale,
        )
    n = scale.turns * scale.leaves
    unchecked = "pyhanko-certvalidator, no revocation asked, its context kept"
    checked = f"pyhanko-certvalidator, revocation required, its context kept, a CRL of {PEER_ENTRIES:,} entries"
    return [
        _versus(names[0], rates["ours"], n, unchecked, rates["theirs"]),
        _versus(names[1], rates["ours"], n, f"{checked} (ours: {scale.entries:,})", rates["theirs, checked"]),
    ]


def _on_a_curve(authority: Authority, scale: Scale) -> list[Row]:
    """With P-256, where a signature takes three times as long; no revocation on either side."""
    root, ca = authority.root.certificate, authority.ca.certificate
    validator = CertificateValidator([root], [ca])

    def ours(leaf: x509.Certificate) -> None:
        if not validator.validate(leaf, (), Purpose.MAIL_SIGNATURE, authority.now).ok:
            raise BenchError("a good certificate was refused")

    rates = race_in_turns(
        {
            "ours": Contestant(_loaded(ours), slice(scale.leaves)),
            "theirs": Contestant(_loaded(_verifier(authority)), slice(scale.leaves)),
        },
        authority,
        scale,
    )
    n = scale.turns * scale.leaves
    return [_versus("validate_p256_vs_cryptography", rates["ours"], n, _VERIFIER, rates["theirs"])]


def race_in_turns(contestants: Mapping[str, Contestant], authority: Authority, scale: Scale) -> dict[str, list[float]]:
    """Leaves per second of processor time, by contestant and run: the median turn. No leaf comes twice."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    most = max(contestant.leaves.stop for contestant in contestants.values())
    for number in range(scale.runs + 1):
        spent: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(scale.turns if number else 1):
            leaves = authority.leaves(most)
            for name, contestant in contestants.items():
                taken = leaves[contestant.leaves]
                work = contestant.turn(taken)
                began = time.thread_time()
                work()
                spent[name].append((time.thread_time() - began) / len(taken))
        if number:  # the first one only warms up
            for name, seconds in spent.items():
                rates[name].append(1 / statistics.median(seconds))
    return rates


def skipped(name: str, unit: str, reason: str) -> Row:
    """A row that could not be measured here, and why."""
    return {
        "id": name,
        "value": None,
        "unit": unit,
        "n": 0,
        "runs": 0,
        "spread": None,
        "skipped": reason,
    } | dict.fromkeys(("reference", "reference_value", "ratio"))


def _verifier(authority: Authority) -> Judge:
    """`cryptography`'s own; the root trusted, the intermediate sent along."""
    store = verification.Store([authority.root.certificate])
    verifier = verification.PolicyBuilder().store(store).time(authority.now).build_client_verifier()
    ca = authority.ca.certificate

    def judge(leaf: x509.Certificate) -> None:
        try:
            verifier.verify(leaf, [ca])
        except verification.VerificationError as error:
            raise BenchError(f"cryptography refuses a good certificate: {error}") from error

    return judge


def _loaded(judge: Judge) -> Turn:
    def turn(leaves: Sequence[bytes]) -> Callable[[], None]:
        loaded = [x509.load_der_x509_certificate(leaf) for leaf in leaves]

        def work() -> None:
            for leaf in loaded:
                judge(leaf)

        return work

    return turn


def _from_der(judge: Judge) -> Turn:
    def turn(leaves: Sequence[bytes]) -> Callable[[], None]:
        def work() -> None:
            for leaf in leaves:
                judge(x509.load_der_x509_certificate(leaf))

        return work

    return turn


def _repeated(judge: Judge, leaf: x509.Certificate, times: int) -> Callable[[], None]:
    def work() -> None:
        for _ in range(times):
            judge(leaf)

    return work


def _signature_only(issuer: x509.Certificate) -> Judge:
    key = issuer.public_key()

    def verify(leaf: x509.Certificate) -> None:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(leaf.signature, leaf.tbs_certificate_bytes, padding.PKCS1v15(), hashes.SHA256())
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(leaf.signature, leaf.tbs_certificate_bytes, ec.ECDSA(hashes.SHA256()))

    return verify


def _pyhanko(authority: Authority, *, checked: bool) -> Turn:
    from pyhanko_certvalidator import CertificateValidator as Peer
    from pyhanko_certvalidator import ValidationContext
    from pyhanko_certvalidator.errors import PathError, ValidationError

    root, ca = (_asn1(issuer.encoded) for issuer in (authority.root, authority.ca))
    crls = [authority.crl(PEER_ENTRIES), crl(authority.root, 0, authority.now)] if checked else []

    context = ValidationContext(
        trust_roots=[root],
        other_certs=[ca],
        moment=authority.now,
        crls=crls,
        revocation_mode="require" if checked else "none",
    )

    def turn(leaves: Sequence[bytes]) -> Callable[[], None]:
        loaded = [_asn1(leaf) for leaf in leaves]

        async def judge() -> None:
            for leaf in loaded:
                peer = Peer(leaf, validation_context=context)
                await peer.async_validate_usage({"digital_signature"}, {"email_protection"})  # type: ignore[no-untyped-call]

        def work() -> None:
            try:
                asyncio.run(judge())
            except (PathError, ValidationError) as error:
                raise BenchError(f"pyhanko-certvalidator refuses a good certificate: {error}") from error

        return work

    return turn


def _asn1(encoded: bytes) -> Any:
    return asn1.Certificate.load(encoded)  # type: ignore[no-untyped-call]


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peer's own deprecations are no news here
        yield


def _versus(name: str, rates: Sequence[float], n: int, reference: str, references: Sequence[float]) -> Row:
    return row(name, rates, _UNIT, n, reference=reference, reference_values=references)
