"""What is wrong, or soon will be, with the keys of a vault and with files somebody is about to bring.

Nothing is changed. Each `KeyFinding` is one sentence that says what to do; a generation is named by its identifier and
its mailbox's address, for the operator who asked is looking at both. Whatever is in a file, the answer is a finding.
"""

from __future__ import annotations

import stat
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from trust.addresses import mail_addresses
from trust.certificates import CertificateValidator, Purpose
from trust.generations import (
    Generation,
    KeyRequest,
    KeyState,
    KeyUse,
    check_fitness,
    encoded,
    mailbox_name,
    public_key_of,
    states,
)
from trust.keyfiles import (
    MAX_FILE_BYTES,
    KeyFileError,
    kind_of_file,
    read_certificates,
    unreadable,
)
from trust.keys import KeyUnavailableError
from trust.softkeys import CertifiedKey, weakness
from trust.vault import KeyVault, VaultError

_FORGOTTEN_REQUEST = timedelta(days=30)
PURPOSES = {KeyUse.SIGNING: Purpose.MAIL_SIGNATURE, KeyUse.ENCRYPTION: Purpose.MAIL_ENCRYPTION}
"""What a mailbox's certificate is judged for."""
REVOKED = "rfc5280-6.1.3-revoked"
"""`PathVerdict.rule` of a revoked certificate."""
_SERVING = (KeyState.CURRENT, KeyState.OLDER, KeyState.FUTURE)


class Level(Enum):
    """How much it matters."""

    NOTICE = "notice"
    """Works; know this."""
    PROBLEM = "problem"
    """Mail stops, now or soon, or a key is in danger."""


@dataclass(frozen=True, slots=True)
class KeyFinding:
    """One thing that was found."""

    level: Level
    code: str
    """Stable: `expired`, `expires-soon`, `damaged`, `duplicate-key`..."""
    subject: str
    """A generation (`signing 0123456789abcdef of ADDRESS`), a request, or a file."""
    text: str


def check_vault(
    vault: KeyVault, at: datetime, validator: CertificateValidator | None, soon: timedelta = timedelta(days=30)
) -> list[KeyFinding]:
    """Everything about the vault at a moment (aware). Without a validator chains are not looked at."""
    generations = vault.generations()
    requests = vault.requests()
    found = [
        *_permissions(vault.root),
        *(
            KeyFinding(Level.PROBLEM, "damaged", str(each.file.relative_to(vault.root)), each.reason)
            for each in vault.damaged()
        ),
        *_leftovers(vault.root),
        *_two_keys(vault),
        *_times(generations, requests, at, soon),
        *_duplicates(generations),
        *_requests(requests, at),
        *_token(vault, generations, requests),
    ]
    for each in generations:
        found += _certificate(each, at, validator)
    return found


def is_revoked(validator: CertificateValidator, key: CertifiedKey, at: datetime) -> bool:
    """Whether the certificate of a signing key is known to be revoked at a moment (aware).

    Nobody who looks believes what such a key signs. What nobody can tell, or what leads to no anchor of ours, is not.
    """
    return validator.validate(key.certificate, key.chain, PURPOSES[KeyUse.SIGNING], at).rule == REVOKED


def check_file(file: Path, content: bytes, vault: KeyVault | None = None) -> list[KeyFinding]:
    """What is wrong with one file that is about to be installed, whatever its name says it is."""
    name = str(file)
    if len(content) > MAX_FILE_BYTES:
        return [KeyFinding(Level.NOTICE, "unknown-file", name, "is too large to hold a key or certificates")]
    kind = kind_of_file(content)
    if kind == "a private key":
        told = (
            "is a private key"
            if file.suffix in (".key", ".pem")
            else f"is a private key, though its name is {file.name}"
        )
        return [
            KeyFinding(
                Level.PROBLEM,
                "private-key",
                name,
                f"{told}: import it and remove the file; it is never given to anybody",
            )
        ]
    if kind == "a P12 file":
        return [KeyFinding(Level.NOTICE, "p12", name, "is a P12 file: import it, then remove the file")]
    if kind == "a certificate request":
        return [KeyFinding(Level.NOTICE, "request", name, "is a certificate request: send it to the authority")]
    try:
        certificates = read_certificates(content)
    except KeyFileError as error:
        return [KeyFinding(Level.PROBLEM, "unreadable-file", name, str(error))]
    if vault is None:
        return []
    known = {_key(each.certificate) for each in vault.generations()}
    known |= {encoded(key) for each in vault.requests() if (key := public_key_of(each.request)) is not None}
    if not any(_key(each) in known for each in certificates):
        return [KeyFinding(Level.NOTICE, "no-key", name, "holds no certificate of a key that is here")]
    return []


def _permissions(root: Path) -> Iterator[KeyFinding]:
    for path in (root, *sorted(root.rglob("*"))):
        try:
            status = path.lstat()
        except OSError as error:
            yield KeyFinding(Level.PROBLEM, "permissions", str(path), f"cannot be looked at: {error.strerror}")
            continue
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISLNK(status.st_mode):
            yield KeyFinding(Level.PROBLEM, "permissions", str(path), "is a link: the vault has none, remove it")
        elif mode & 0o077:
            wanted = "700" if stat.S_ISDIR(status.st_mode) else "600"
            yield KeyFinding(Level.PROBLEM, "permissions", str(path), f"is open to others: run chmod {wanted} {path}")


def _leftovers(root: Path) -> Iterator[KeyFinding]:
    unfinished = [path for path in root.rglob(".*.tmp") if path.is_file()]
    if unfinished:
        yield KeyFinding(
            Level.NOTICE,
            "unfinished",
            str(root),
            f"holds {len(unfinished)} unfinished files of killed writers: nothing is lost, they can be removed",
        )


def _two_keys(vault: KeyVault) -> Iterator[KeyFinding]:
    try:
        both = vault.has_two_keys
    except (OSError, VaultError) as error:
        yield KeyFinding(Level.PROBLEM, "damaged", "ring", str(error))
        return
    if both:
        yield KeyFinding(
            Level.NOTICE,
            "two-keys",
            str(vault.root),
            "another key-encryption key opens it too: once the new one is in place, relais keys rewrap --forget-old",
        )


def _times(
    generations: list[Generation], requests: Sequence[KeyRequest], at: datetime, soon: timedelta
) -> Iterator[KeyFinding]:
    """Of each mailbox and use the generation that serves now, and whether one will."""
    by_mailbox: dict[tuple[str, KeyUse], list[Generation]] = defaultdict(list)
    for each in generations:
        by_mailbox[each.address, each.use].append(each)
    state = states(generations, at)
    requested = {(each.address, each.use) for each in requests}
    for (address, use), mine in by_mailbox.items():
        serving = [each for each in mine if state[each] in _SERVING]
        verb = "sign" if use is KeyUse.SIGNING else "be encrypted to"
        then = "its new certificate is requested: install it" if (address, use) in requested else "relais keys rotate"
        last = max((each.certificate.not_valid_after_utc for each in serving), default=None)
        if not any(state[each] in (KeyState.CURRENT, KeyState.OLDER) for each in mine):
            code = "not-yet-valid" if serving else "expired"
            why = "its key is not valid yet" if serving else "its last key has expired or is retired"
            yield KeyFinding(
                Level.PROBLEM, code, f"{use.value} of {address}", f"cannot {verb} at the moment, for {why}: {then}"
            )
        elif last is not None and last - at < soon:
            yield KeyFinding(
                Level.PROBLEM,
                "expires-soon",
                f"{use.value} of {address}",
                f"cannot {verb} from {last:%Y-%m-%d} on: {then}",
            )
    for address in sorted({address for address, _ in by_mailbox}):
        for use in KeyUse:
            if (address, use) not in by_mailbox:
                yield KeyFinding(
                    Level.NOTICE, "one-use", address, f"has no {use.value} key: request or import one if it needs it"
                )


def _certificate(each: Generation, at: datetime, validator: CertificateValidator | None) -> Iterator[KeyFinding]:
    certificate = each.certificate
    subject = _subject(each)
    problem = unreadable(certificate)
    if problem:
        yield KeyFinding(Level.PROBLEM, "unreadable", subject, f"its certificate {problem}: have it issued again")
        return
    try:
        check_fitness(each.use, certificate)
    except VaultError as error:
        yield KeyFinding(Level.PROBLEM, "unfit", subject, f"{error}: have it issued again")
    weak = weakness(public_key_of(certificate))
    if weak:
        yield KeyFinding(Level.PROBLEM, "weak-key", subject, f"{weak}: rotate it")
    named = mail_addresses(certificate)
    if named and each.address not in {mailbox_name(name) for name in named}:
        yield KeyFinding(
            Level.PROBLEM, "other-address", subject, "its certificate is for another address: have it issued again"
        )
    elif not named:
        yield KeyFinding(
            Level.NOTICE,
            "no-address",
            subject,
            "its certificate names no address: only a directory binds it to the mailbox",
        )
    serving = each.retired_at is None and certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc
    if validator is not None and serving:
        verdict = validator.validate(certificate, each.chain, PURPOSES[each.use], at)
        if verdict.rule == REVOKED:
            yield KeyFinding(
                Level.PROBLEM,
                "revoked",
                subject,
                f"{verdict.detail}: relais keys rotate {each.address}, then relais keys retire {each.id}",
            )
        elif not verdict.ok:
            yield KeyFinding(
                Level.PROBLEM,
                "not-believed",
                subject,
                f"nobody will believe its certificate: {verdict.rule}, {verdict.detail}",
            )
        elif verdict.revocation in ("unknown", "stale") and _says_where(certificate):
            yield KeyFinding(
                Level.NOTICE,
                "revocation-unknown",
                subject,
                "nobody could be asked whether its certificate is revoked: see whether its authority can be reached",
            )


def _says_where(certificate: x509.Certificate) -> bool:
    """Whether the certificate says where its revocation would be published (RFC 5280 §4.2.1.13, §4.2.2.1)."""
    return any(
        extension.oid in (ExtensionOID.CRL_DISTRIBUTION_POINTS, ExtensionOID.AUTHORITY_INFORMATION_ACCESS)
        for extension in certificate.extensions
    )


def _duplicates(generations: Sequence[Generation]) -> Iterator[KeyFinding]:
    by_key: dict[bytes, list[Generation]] = defaultdict(list)
    for each in generations:
        by_key[_key(each.certificate)].append(each)
    for same in by_key.values():
        first = same[0]
        others = ", ".join(each.id for each in same[1:])
        if len({each.address for each in same}) > 1:
            yield KeyFinding(
                Level.PROBLEM,
                "shared-key",
                _subject(first),
                f"other mailboxes have the same key ({others}): rotate them",
            )
        elif len({each.use for each in same}) > 1:
            yield KeyFinding(
                Level.NOTICE,
                "one-key-two-uses",
                _subject(first),
                "the same key signs and decrypts: rotate one of the uses",
            )
        elif len(same) > 1:
            yield KeyFinding(
                Level.NOTICE, "duplicate-key", _subject(first), f"certificates of the same key are kept as {others} too"
            )


def _requests(requests: Sequence[KeyRequest], at: datetime) -> Iterator[KeyFinding]:
    for each in requests:
        if at - each.made_at > _FORGOTTEN_REQUEST:
            yield KeyFinding(
                Level.NOTICE,
                "orphan-key",
                f"request {each.id} of {each.address}",
                f"has no certificate since {each.made_at:%Y-%m-%d}: install it, or relais keys discard {each.id}",
            )


def _token(vault: KeyVault, generations: Sequence[Generation], requests: Sequence[KeyRequest]) -> Iterator[KeyFinding]:
    used = {each.token_key: f"{_subject(each)}" for each in generations if each.in_token}
    used |= {each.token_key: f"request {each.id} of {each.address}" for each in requests if each.in_token}
    if vault.token is None:
        for subject in used.values():
            yield KeyFinding(
                Level.PROBLEM, "no-token", subject, "its key is in a token, and [keys] of relais.toml names none"
            )
        return
    try:
        held = vault.token.identifiers(vault.token_label)
        for identifier, subject in used.items():
            if identifier not in held and not vault.token.holds(identifier):
                yield KeyFinding(
                    Level.PROBLEM, "missing-key", subject, "the token does not hold its key: restore the token's backup"
                )
    except KeyUnavailableError as error:
        yield KeyFinding(Level.PROBLEM, "token", str(vault.token), f"{error}")
        return
    for identifier in sorted(held - used.keys()):
        yield KeyFinding(
            Level.NOTICE,
            "orphan-key",
            f"key {identifier.hex()} in the token",
            "belongs to no certificate and no request: a request was killed while it was made",
        )


def _subject(each: Generation) -> str:
    return f"{each.use.value} {each.id} of {each.address}"


def _key(certificate: x509.Certificate) -> bytes:
    key = public_key_of(certificate)
    return encoded(key) if key is not None else b""
