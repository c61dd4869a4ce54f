"""Rows of `relais bench trust`: many certificates of one name around a leaf, as anyone may put into a mail.

Each shape makes every certificate a candidate for every other, and no validator can know beforehand which of them is
worth its signature check. All are new in each run: what was read before is remembered. Time is that of the processor.
"""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from config.bench.authority import Authority, Extension, Issuer, authority_extensions, certificate, usage
from config.bench.child import BenchError
from config.bench.race import growth
from config.bench.report import row
from trust import der
from trust.certificates import CertificateValidator, PathVerdict, Purpose

Row = dict[str, Any]
SAME = 50
_ALIKE = b"the same for all"
_IDENTIFIERS: list[Extension] = [
    (x509.SubjectKeyIdentifier(_ALIKE), False),
    (x509.AuthorityKeyIdentifier(_ALIKE, None, None), False),
]
"""Whoever makes a certificate chooses them: here every certificate fits every other."""
_CA = [*authority_extensions(None), *_IDENTIFIERS]
_LEAF: list[Extension] = [
    *_IDENTIFIERS,
    (usage("digital_signature"), True),
    (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION, ExtendedKeyUsageOID.CLIENT_AUTH]), False),
    (x509.SubjectAlternativeName([x509.RFC822Name("anyone@bench.example")]), False),
]


@dataclass(frozen=True, slots=True)
class Scale:
    runs: int
    counts: tuple[int, ...] = (10, SAME, 200)
    """Certificates of the same name; one of them is `SAME`."""


@dataclass(frozen=True, slots=True)
class Attack:
    leaf: x509.Certificate
    others: tuple[x509.Certificate, ...]


def _one_key(authority: Authority, count: int) -> Attack:
    """One name and one key: every signature is good, and every one may have issued every other."""
    key = ec.generate_private_key(ec.SECP256R1())
    seed = Issuer(certificate("Bomb", key, None, _CA, identifiers=False), key)
    others = tuple(certificate("Bomb", key, seed, _CA, identifiers=False) for _ in range(count))
    return Attack(certificate("Leaf", key, seed, _LEAF, identifiers=False), others)


def _own_keys(authority: Authority, count: int) -> Attack:
    """One name, as many keys: all signatures but one are bad."""
    issuers = [_self_signed() for _ in range(count)]
    key = issuers[-1].key
    leaf = certificate("Leaf", key, issuers[-1], _LEAF, identifiers=False)
    return Attack(leaf, tuple(issuer.certificate for issuer in issuers))


def _in_a_row(authority: Authority, count: int) -> Attack:
    """One name, each issued by the next: the shape of x509-limbo's pathological-chain-same-subject."""
    issuers = [_self_signed()]
    for _ in range(count - 1):
        key = ec.generate_private_key(ec.SECP256R1())
        issuers.append(Issuer(certificate("Bomb", key, issuers[-1], _CA, identifiers=False), key))
    leaf = certificate("Leaf", issuers[-1].key, issuers[-1], _LEAF, identifiers=False)
    return Attack(leaf, tuple(issuer.certificate for issuer in issuers))


def _slow_keys(authority: Authority, count: int) -> Attack:
    """One name, keys of the costliest shape that is accepted, and signatures as long as they are."""
    key = ec.generate_private_key(ec.SECP256R1())
    bomb = Issuer(certificate("Bomb", key, None, _CA, identifiers=False), key)
    others = tuple(_with_key(certificate("Bomb", key, bomb, _CA, identifiers=False)) for _ in range(count))
    return Attack(_with_signature(certificate("Leaf", key, bomb, _LEAF, identifiers=False)), others)


def _around_a_good_one(authority: Authority, count: int) -> Attack:
    """Certificates with the name of our own CA, and a leaf that it did issue: they must not hide the good path."""
    key = ec.generate_private_key(ec.SECP256R1())
    own = x509.SubjectKeyIdentifier.from_public_key(authority.ca.key.public_key())
    copied: list[Extension] = [(own, False), (x509.AuthorityKeyIdentifier(own.digest, None, None), False)]
    extensions = [*authority_extensions(None), *copied]
    others = tuple(certificate("Bench CA", key, None, extensions, identifiers=False) for _ in range(count))
    return Attack(certificate("Leaf", key, authority.ca, [*copied, *_LEAF[2:]], identifiers=False), others)


SHAPES: tuple[tuple[str, Callable[[Authority, int], Attack]], ...] = (
    ("one_key", _one_key),
    ("own_keys", _own_keys),
    ("in_a_row", _in_a_row),
    ("slow_keys", _slow_keys),
    ("around_a_good_one", _around_a_good_one),
)


def hostile(scale: Scale) -> list[Row]:
    """The rows. Raises `BenchError` when an attack is believed, or hides a path that is good."""
    authority = Authority()
    rows: list[Row] = []
    fifty: list[tuple[list[float], list[float]]] = []
    growths: list[float] = []
    for name, shape in SHAPES:
        ours: dict[int, list[float]] = {count: [] for count in scale.counts}
        theirs: list[float] = []
        for _ in range(scale.runs):
            for count in scale.counts:
                attack = shape(authority, count)
                ours[count].append(_ours(authority, name, attack))
                if count == SAME:
                    theirs.append(_theirs(authority, attack))
        rows.append(_milliseconds(f"same_subject_{name}_50_ms", ours[SAME], theirs))
        fifty.append((ours[SAME], theirs))
        growths.append(growth(scale.counts, [statistics.median(ours[count]) for count in scale.counts]))
    slowest = max(fifty, key=lambda pair: statistics.median(pair[0]))
    first = _milliseconds("pathological_same_subject_50_ms", *slowest)
    last = row("pathological_same_subject_growth", [max(growths)], "exponent of the worst shape", scale.counts[-1])
    return [first, *rows, last]


def _ours(authority: Authority, name: str, attack: Attack) -> float:
    """Milliseconds. The intermediate is known, as in a gateway."""
    validator = CertificateValidator([authority.root.certificate], [authority.ca.certificate])
    began = time.thread_time()
    verdict = validator.validate(attack.leaf, attack.others, Purpose.MAIL_SIGNATURE, authority.now)
    spent = 1000 * (time.thread_time() - began)
    _check(name, verdict)
    return spent


def _check(name: str, verdict: PathVerdict) -> None:
    if verdict.ok is not (name == "around_a_good_one"):
        raise BenchError(f"the attack {name} was judged {verdict.rule}, {verdict.detail}")


def _theirs(authority: Authority, attack: Attack) -> float:
    store = verification.Store([authority.root.certificate])
    verifier = verification.PolicyBuilder().store(store).time(authority.now).build_client_verifier()
    began = time.thread_time()
    with suppress(verification.VerificationError):
        verifier.verify(attack.leaf, [*attack.others, authority.ca.certificate])
    return 1000 * (time.thread_time() - began)


def _milliseconds(name: str, ours: Sequence[float], theirs: Sequence[float]) -> Row:
    reference = "cryptography's own verifier, the same certificates"
    return row(name, ours, "ms", SAME, reference=reference, reference_values=theirs)


def _self_signed() -> Issuer:
    key = ec.generate_private_key(ec.SECP256R1())
    return Issuer(certificate("Bomb", key, None, _CA, identifiers=False), key)


def _with_key(of: x509.Certificate) -> x509.Certificate:
    """The same certificate for an RSA key of 8192 bits whose factors nobody knows; its own signature is wrong then."""
    numbers = rsa.RSAPublicNumbers((1 << 32) - 1, secrets.randbits(8190) | 1 | 3 << 8190)
    key = numbers.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    signed, algorithm, signature = der.read(of.public_bytes(Encoding.DER)).sequence(3)
    parts = [bytes(each.encoded) for each in signed.sequence(10)]
    parts[6] = key
    return x509.load_der_x509_certificate(der.sequence(der.sequence(*parts), algorithm.encoded, signature.encoded))


def _with_signature(of: x509.Certificate) -> x509.Certificate:
    """The same certificate as if it had been signed with RSA-8192 and SHA-256."""
    algorithm = der.sequence(der.oid("1.2.840.113549.1.1.11"), der.null())
    parts = [bytes(each.encoded) for each in der.read(of.public_bytes(Encoding.DER)).sequence(3)[0].sequence(10)]
    parts[2] = algorithm
    signature = der.tlv(der.BIT_STRING, b"\x00" + b"\x01" * 1024)
    return x509.load_der_x509_certificate(der.sequence(der.sequence(*parts), algorithm, signature))
