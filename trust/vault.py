"""Whose keys we hold: one key-encryption key, and every private key and data key under it.

A mailbox's private keys are PKCS#8 in sealed files of their own with their certificates, or references to keys inside a
token; names and contents of these files say nothing about the mailbox, whose address may be a patient's matricule.

Where it all is on disk say `trust.unlocking` and `trust.sealed_keys`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from trust.generations import (
    Generation,
    KeyFile,
    KeyRequest,
    KeyUse,
    RequestFile,
    check_address,
    check_fitness,
    check_strength,
    encoded,
    encoded_key,
    generation_id,
    mailbox_name,
    newest_first,
    public_key_of,
    request_id,
)
from trust.key_ring import CREDENTIAL
from trust.keyfiles import chain_of
from trust.keys import Decryptor, KeyUnavailableError, Signer
from trust.requests import write_request
from trust.sealed_keys import Damaged, exclusively
from trust.sealing import VaultError
from trust.softkeys import (
    KINDS,
    CertifiedKey,
    KeyKind,
    KeyOperations,
    PrivateKey,
    PublicKey,
    SoftwareKey,
    make_key,
)
from trust.store.durable import sync_directory
from trust.unlocking import UnlockedKeys

__all__ = ["CREDENTIAL", "Damaged", "KeyUse", "KeyVault", "NoKeyError", "PrivateKey", "VaultError"]

_ADDRESS = re.compile(r"[^@\s\0]{1,64}@[^@\s\0]{1,253}")


class NoKeyError(VaultError):
    """None of the certificates belongs to a key of this vault."""


class KeyVault(UnlockedKeys):
    """Keys under one key-encryption key. Thread-safe; another process may install and retire keys meanwhile.

    Use `create` once, `open` ever after.
    """

    # --- What the road asks -------------------------------------------------------------------------------------------

    def signer(
        self, address: str, at: datetime | None = None, revoked: Callable[[CertifiedKey], bool] | None = None
    ) -> Signer | None:
        """The newest signing key whose certificate is valid `at` (aware; now by default), None when there is none.

        A retired key never signs, nor one of whose certificate `revoked` says so. Raises `VaultError` when there is
        none and a damaged file might have been it.
        """
        moment = at or datetime.now(UTC)
        held, damaged = self.held(address, KeyUse.SIGNING)
        for each in held:
            if each.retired_at is None and each.valid(moment) and not (revoked is not None and revoked(each)):
                return each
        if damaged:
            raise _damage()
        return None

    def decryptors(self, address: str) -> tuple[Decryptor, ...]:
        """All generations of decryption keys, newest first: expired and retired ones still open old mail.

        Raises `VaultError` when there is none and a damaged file might have been one.
        """
        held, damaged = self.held(address, KeyUse.ENCRYPTION)
        if damaged and not held:
            raise _damage()
        return tuple(held)

    def certificates(self, address: str, use: KeyUse) -> tuple[x509.Certificate, ...]:
        """The certificates of all generations, newest first, expired and retired ones included."""
        return tuple(each.certificate for each in self.held(address, use)[0])

    # --- What the operator does ---------------------------------------------------------------------------------------

    def install(
        self,
        address: str,
        use: KeyUse,
        key: PrivateKey,
        certificate: x509.Certificate,
        chain: Sequence[x509.Certificate],
    ) -> None:
        """Keep one more generation of a mailbox's key, durably; the same certificate again changes nothing.

        Raises `VaultError` when the key does not belong to the certificate, is weak, or cannot serve that use or that
        mailbox, OSError when the disk refuses. `chain` is what a signer sends along: intermediates, leaf and root
        excluded.
        """
        if not _ADDRESS.fullmatch(address) or not address.isprintable():
            raise VaultError("the mailbox's address must be local@domain")
        if not isinstance(key, KINDS):
            raise VaultError("only RSA, elliptic curve, Ed25519 and X25519 keys can be kept")
        if encoded(key.public_key()) != encoded_key(certificate):
            raise VaultError("the private key does not belong to the certificate")
        check_fitness(use, certificate)
        check_strength(certificate)
        check_address(address, certificate)
        self.keep(
            KeyFile(mailbox_name(address), use, _pkcs8(key), tuple(map(_der, (certificate, *chain)))),
            certificate,
        )

    def request(
        self,
        address: str,
        use: KeyUse,
        kind: KeyKind = KeyKind.RSA_3072,
        subject: x509.Name | None = None,
        names: Sequence[x509.GeneralName] = (),
        *,
        in_token: bool = False,
    ) -> KeyRequest:
        """Make a key pair and a request for its certificate; both are kept, durably, until it comes.

        `subject` is by default the address as common name; the address is always among the names asked for. Raises
        `VaultError` for an address that no rfc822Name can hold, `KeyUnavailableError` when the token does not answer.
        """
        try:
            if not _ADDRESS.fullmatch(address):
                raise ValueError
            own = x509.RFC822Name(address)
        except ValueError:
            raise VaultError("the address cannot be put into a certificate: it must be local@domain in ASCII") from None
        if subject is None:
            subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, address[:64])])
        public_key: PublicKey
        token_key = private_key = b""
        if in_token:
            token = self.required_token()
            token_key, public_key = token.generate(kind, self.token_label)
            operations: KeyOperations = token.key(token_key, public_key)
        else:
            key = make_key(kind)
            private_key, public_key, operations = _pkcs8(key), key.public_key(), SoftwareKey(key)
        try:
            request = write_request(
                subject, list(dict.fromkeys((own, *names))), use is KeyUse.SIGNING, public_key, operations
            )
            record = RequestFile(mailbox_name(address), use, private_key, token_key, request, datetime.now(UTC))
            self.keep_request(record, public_key)
        except BaseException:
            if token_key:
                with suppress(KeyUnavailableError):  # then `trust.keycheck` tells of it
                    self.required_token().destroy(token_key)
            raise
        return _key_request(record, public_key)

    def rotate(
        self, address: str, use: KeyUse, kind: KeyKind | None = None, *, in_token: bool | None = None
    ) -> KeyRequest:
        """Request the next generation like the newest one: its subject and names, kind and place of key by default.

        Nothing changes until the certificate is installed, and then the new key signs from its next mail on. Raises
        `VaultError` when the mailbox has no key of that use, else as `request` does.
        """
        held, _ = self.held(address, use)
        if not held:
            raise VaultError(f"the mailbox has no {use.value} key to follow: request its first one")
        newest = held[0]
        try:
            found = newest.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            mine = mailbox_name(address)
            names = [
                each for each in found if not (isinstance(each, x509.RFC822Name) and mailbox_name(each.value) == mine)
            ]
        except x509.ExtensionNotFound:
            names = []
        return self.request(
            address,
            use,
            kind or _kind_of(newest.certificate),
            newest.certificate.subject,
            names,
            in_token=newest.in_token if in_token is None else in_token,
        )

    def install_certificates(self, certificates: Sequence[x509.Certificate]) -> list[Generation]:
        """Give keys their certificates; those that belong to none are the chain of the others.

        A key that waits gets its first one, a key that has one the next: authorities renew certificates with the same
        key, or correct them. The same certificates again change nothing but the chain they came without before. Raises
        `VaultError` when none belongs to a key that is here (`NoKeyError`), or one cannot serve what its key is for
        (KeyUsage, another mailbox's address, a key that was retired); nothing is installed then.
        """
        for record, certificate, request in self._matched(certificates):
            self.keep(record, certificate, request)
        ids = {generation_id(each) for each in certificates}
        return [each for each in self.generations() if each.id in ids]

    def concerned(self, certificates: Sequence[x509.Certificate]) -> list[tuple[str, KeyUse, x509.Certificate]]:
        """Whose and which keys `install_certificates` would give which certificate. Raises as it would."""
        return [(record.address, record.use, certificate) for record, certificate, _ in self._matched(certificates)]

    def _matched(self, certificates: Sequence[x509.Certificate]) -> list[tuple[KeyFile, x509.Certificate, Path | None]]:
        """What is to be kept of these, and the request that is answered thereby."""
        waiting = {encoded(key): (file, record) for file, record, key in self.request_records()}
        known: dict[bytes, list[KeyFile]] = defaultdict(list)
        for _, each in self.records():
            known[encoded_key(x509.load_der_x509_certificate(each.certificates[0]))].append(each)
        mine = [each for each in dict.fromkeys(certificates) if (key := encoded_key(each)) in waiting or key in known]
        if not mine:
            raise NoKeyError(
                "no key here waits for this certificate: look at the requests with relais keys list, or import the "
                "certificate together with its key"
            )
        others = [each for each in certificates if each not in mine]
        matched: list[tuple[KeyFile, x509.Certificate, Path | None]] = []
        for certificate in mine:
            kept = tuple(map(_der, (certificate, *chain_of(certificate, others))))
            key = encoded_key(certificate)
            if key in waiting:
                file, request = waiting[key]
                check_fitness(request.use, certificate)
                check_address(request.address, certificate)
                record = KeyFile(request.address, request.use, request.private_key, kept, request.token_key)
                matched.append((record, certificate, file))
            else:
                follow = _followed(known[key], certificate)
                matched += ((msgspec.structs.replace(each, certificates=kept), certificate, None) for each in follow)
        return matched

    def retire(self, identifier: str) -> list[Generation]:
        """Take a key out of use for ever: it never signs again, and still decrypts.

        That is every generation of the same key, for both uses and with whatever certificates. Raises `VaultError`.
        """
        records = [(file, record, _generation(record)) for file, record in self.records()]
        keys = {encoded_key(each.certificate) for _, _, each in records if each.id == identifier}
        if not keys:
            raise VaultError("no generation has this identifier: relais keys list shows them")
        retired = []
        for file, _, generation in records:
            if encoded_key(generation.certificate) not in keys:
                continue
            with exclusively(self.root):
                # read again: another process may have retired it meanwhile
                current = self.record(file)
                if current.retired_at is None:
                    current = msgspec.structs.replace(current, retired_at=datetime.now(UTC))
                    self.write(file, current)
            retired.append(_generation(current))
        return retired

    def discard(self, identifier: str) -> KeyRequest:
        """Forget a request and destroy its key, which has never had a certificate here.

        Raises `VaultError`, `KeyUnavailableError` when the key is in a token that does not answer.
        """
        with exclusively(self.root):  # nobody installs its certificate meanwhile
            waiting = {each.id for each in self.requests()}
            for file, record, public_key in self.request_records():
                if request_id(public_key) == identifier and identifier in waiting:
                    if record.token_key:
                        self.required_token().destroy(record.token_key)
                    file.unlink()
                    sync_directory(file.parent)
                    return _key_request(record, public_key)
        raise VaultError("no request has this identifier: relais keys list shows them")

    # --- What can be looked at ----------------------------------------------------------------------------------------

    def generations(self) -> list[Generation]:
        """Every generation in a readable file, by address and use, newest first."""
        found = [_generation(record) for _, record in self.records()]
        found.sort(key=lambda each: newest_first(each.certificate), reverse=True)
        found.sort(key=lambda each: (each.address, each.use.value))
        return found

    def requests(self) -> list[KeyRequest]:
        """Every key that waits for its certificate, oldest first. One whose certificate was just installed is none."""
        installed = {encoded_key(each.certificate) for each in self.generations()}
        found = [
            _key_request(record, key) for _, record, key in self.request_records() if encoded(key) not in installed
        ]
        return sorted(found, key=lambda each: each.made_at)

    def damaged(self) -> list[Damaged]:
        """Every file that cannot be used, and why."""
        return [found for found in (self.damage_of(file) for file in self.all_files()) if found is not None]

    def addresses_held(self) -> tuple[str, ...]:
        """Every address with a key, sorted. Patients' addresses are among them: not for logs."""
        return tuple(sorted({record.address for _, record in self.records()}))

    def expiring(self, before: datetime) -> list[tuple[str, datetime]]:
        """Newest generations that end before `before` (aware), soonest first: use and serial number, and when.

        Who holds the certificate is not said, for these lines are printed and logged.
        """
        newest: dict[tuple[str, KeyUse], x509.Certificate] = {}
        for each in self.generations():
            known = newest.get((each.address, each.use))
            if each.retired_at is None and (
                known is None or known.not_valid_after_utc < each.certificate.not_valid_after_utc
            ):
                newest[each.address, each.use] = each.certificate
        ending = [
            (f"{use.value} certificate {certificate.serial_number:x}", certificate.not_valid_after_utc)
            for (_, use), certificate in newest.items()
            if certificate.not_valid_after_utc < before
        ]
        return sorted(ending, key=lambda line: line[1])

    @property
    def token_label(self) -> str:
        """CKA_LABEL of this vault's keys, so that several vaults can share a token."""
        return f"relais {self.pseudonym('token label')[:16]}"


def _followed(known: Sequence[KeyFile], certificate: x509.Certificate) -> list[KeyFile]:
    """What one more certificate of a key that has some is for: the same mailboxes and uses, as far as it serves them.

    Raises `VaultError` when it serves none, or the key was retired and this is not the certificate it had.
    """
    same = [each for each in known if each.certificates[0] == _der(certificate)]
    if same:
        return same
    if any(each.retired_at is not None for each in known):
        raise VaultError("the key of this certificate was retired for ever: request another one")
    follow: dict[tuple[str, KeyUse], KeyFile] = {}
    problem: VaultError | None = None
    for each in known:
        try:
            check_fitness(each.use, certificate)
            check_address(each.address, certificate)
            follow[each.address, each.use] = each
        except VaultError as error:
            problem = error
    if not follow and problem is not None:
        raise problem
    return list(follow.values())


def _damage() -> VaultError:
    return VaultError("a key file of this mailbox cannot be used: relais keys check says which and why")


def _pkcs8(key: PrivateKey) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def _kind_of(certificate: x509.Certificate) -> KeyKind:
    """The kind to make for the next generation: the same, or the usual one where that is not made here."""
    key = public_key_of(certificate)
    bits = getattr(key, "key_size", 0)
    for kind in KeyKind:
        if isinstance(key, rsa.RSAPublicKey) and kind.rsa_bits == bits:
            return kind
        if isinstance(key, ec.EllipticCurvePublicKey) and not kind.rsa_bits and kind.curve.name == key.curve.name:
            return kind
    return KeyKind.RSA_3072 if isinstance(key, rsa.RSAPublicKey) else KeyKind.P256


def _generation(record: KeyFile) -> Generation:
    certificate, *chain = (x509.load_der_x509_certificate(each) for each in record.certificates)
    return Generation(
        id=generation_id(certificate),
        address=record.address,
        use=record.use,
        certificate=certificate,
        chain=tuple(chain),
        retired_at=record.retired_at,
        in_token=bool(record.token_key),
        token_key=record.token_key,
    )


def _key_request(record: RequestFile, public_key: PublicKey) -> KeyRequest:
    return KeyRequest(
        id=request_id(public_key),
        address=record.address,
        use=record.use,
        request=x509.load_der_x509_csr(record.request),
        made_at=record.made_at,
        in_token=bool(record.token_key),
        token_key=record.token_key,
    )
