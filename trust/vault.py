"""Whose keys we hold: one key-encryption key, and every private key and data key under it.

A mailbox's private keys are PKCS#8 in sealed files of their own with their certificates, or references to keys inside a
token; names and contents of these files say nothing about the mailbox, whose address may be a patient's matricule.

On disk, below the root: `kek`, unless systemd hands the key-encryption key over as the credential `relais-kek`;
`check`, which tells whether that key is the one the rest was made with; `keys/<pseudonym of the address>/<pseudonym of
use and certificate>`; `requests/<pseudonym of the key>`, keys that wait for their certificates; and `lock`, held by
whoever writes (`trust.sealed_keys`).
"""

from __future__ import annotations

import hmac
import re
import secrets
import stat
from collections.abc import Sequence
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
    encoded,
    encoded_key,
    generation_id,
    newest_first,
    public_key_of,
    request_id,
)
from trust.keyfiles import chain_of
from trust.keys import Decryptor, Signer
from trust.pkcs11 import Token
from trust.requests import write_request
from trust.sealed_keys import Damaged, SealedKeys, exclusively
from trust.sealing import KEK_BYTES, VaultError
from trust.secret_files import SecretFileError, credential, read_secret
from trust.softkeys import KINDS, KeyKind, KeyOperations, PrivateKey, PublicKey, SoftwareKey, make_key
from trust.store.durable import make_private_directory, sync_directory, write_durably

__all__ = ["CREDENTIAL", "Damaged", "KeyUse", "KeyVault", "PrivateKey", "VaultError"]

CREDENTIAL = "relais-kek"
"""Name of the systemd credential that holds the key-encryption key, for a vault without the file `kek`."""
_ADDRESS = re.compile(r"[^@\s\0]{1,64}@[^@\s\0]{1,253}")


class KeyVault(SealedKeys):
    """Keys under one key-encryption key. Thread-safe; another process may install and retire keys meanwhile.

    Use `create` once, `open` ever after.
    """

    @classmethod
    def exists(cls, root: Path) -> bool:
        """Whether a vault was made in `root`."""
        return (root / "kek").exists() or ((root / "check").exists() and credential(CREDENTIAL) is not None)

    @classmethod
    def create(cls, root: Path, token: Token | None = None) -> KeyVault:
        """A new vault, under the credential `relais-kek` when systemd gives it, else a fresh key in the file `kek`.

        Raises `VaultError` when there is one, or the disk refuses.
        """
        try:
            make_private_directory(root / "keys")
            with exclusively(root):
                if cls.exists(root):
                    raise FileExistsError
                given = credential(CREDENTIAL)
                kek = _read_kek(given) if given is not None else secrets.token_bytes(KEK_BYTES)
                vault = cls(root, kek, token)
                write_durably(root / "check", vault._check())
                if given is None:  # last: a vault with this file is complete
                    write_durably(root / "kek", kek, replace=False)
        except FileExistsError:
            raise VaultError(f"there is already a vault in {root}: open it instead") from None
        except OSError as error:
            raise VaultError(f"the vault in {root} cannot be created: {error.strerror}") from error
        return vault

    @classmethod
    def open(cls, root: Path, token: Token | None = None) -> KeyVault:
        """An existing vault. Raises `VaultError` when its key file is missing, readable by others, or not its own."""
        file = root / "kek"
        if not file.exists():
            file = credential(CREDENTIAL) or file
        try:
            mode = root.stat().st_mode
            kek = _read_kek(file)
            check = (root / "check").read_bytes()
        except OSError as error:
            raise VaultError(f"the vault in {root} cannot be read: {error.strerror}") from error
        if stat.S_IMODE(mode) & (stat.S_IWGRP | stat.S_IWOTH):
            raise VaultError(f"others can change the vault: run chmod 700 {root}, then check its keys")
        vault = cls(root, kek, token)
        if not hmac.compare_digest(check, vault._check()):
            raise VaultError(f"{file} is not the key this vault was made with: restore the right one from your backup")
        return vault

    # --- What the road asks -------------------------------------------------------------------------------------------

    def signer(self, address: str, at: datetime | None = None) -> Signer | None:
        """The newest signing key whose certificate is valid `at` (aware; now by default), None when there is none.

        A retired key never signs. Raises `VaultError` when there is none and a damaged file might have been it.
        """
        moment = at or datetime.now(UTC)
        held, damaged = self.held(address, KeyUse.SIGNING)
        for each in held:
            if each.retired_at is None and each.valid(moment):
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

        Raises `VaultError` when the key does not belong to the certificate or cannot serve that use, OSError when the
        disk refuses. `chain` is what a signer sends along: intermediates, leaf and root excluded.
        """
        if not isinstance(key, KINDS):
            raise VaultError("only RSA, elliptic curve, Ed25519 and X25519 keys can be kept")
        if encoded(key.public_key()) != encoded_key(certificate):
            raise VaultError("the private key does not belong to the certificate")
        check_fitness(use, certificate)
        self.keep(
            KeyFile(address.lower(), use, _pkcs8(key), tuple(map(_der, (certificate, *chain)))),
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
        request = write_request(
            subject, list(dict.fromkeys((own, *names))), use is KeyUse.SIGNING, public_key, operations
        )
        record = RequestFile(address.lower(), use, private_key, token_key, request, datetime.now(UTC))
        self.keep_request(record, public_key)
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
            names = list(newest.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
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
        """Give pending requests their certificates; those that belong to none are the chain of the others.

        The same certificates again change nothing. Raises `VaultError` when none belongs to a key that waits for it or
        has it, or one cannot serve its request (KeyUsage, another mailbox's address); nothing is installed then.
        """
        waiting = {encoded(key): (file, record) for file, record, key in self.request_records()}
        found = [(each, waiting[key]) for each in certificates if (key := encoded_key(each)) in waiting]
        known = {each.id: each for each in self.generations()}
        again = [known[generation_id(each)] for each in certificates if generation_id(each) in known]
        if not found and not again:
            raise VaultError(
                "no key here waits for this certificate: look at the requests with relais keys list, or import the "
                "certificate together with its key"
            )
        for certificate, (_, record) in found:
            check_fitness(record.use, certificate)
            check_address(record.address, certificate)
        mine = {generation_id(each) for each, _ in found} | {each.id for each in again}
        others = [each for each in certificates if generation_id(each) not in mine]
        for certificate, (file, record) in found:
            kept = tuple(map(_der, (certificate, *chain_of(certificate, others))))
            generation = KeyFile(record.address, record.use, record.private_key, kept, record.token_key)
            self.keep(generation, certificate, file)
        return [each for each in self.generations() if each.id in mine]

    def retire(self, identifier: str) -> Generation:
        """Take a generation out of use for ever: it never signs again, and still decrypts. Raises `VaultError`."""
        for file, record in self.records():
            generation = _generation(record)
            if generation.id != identifier:
                continue
            with exclusively(self.root):
                # read again: another process may have retired it meanwhile
                current = self.record(file)
                if current.retired_at is None:
                    current = msgspec.structs.replace(current, retired_at=datetime.now(UTC))
                    self.write(file, current)
            return _generation(current)
        raise VaultError("no generation has this identifier: relais keys list shows them")

    def discard(self, identifier: str) -> KeyRequest:
        """Forget a request and destroy its key, which has never had a certificate here.

        Raises `VaultError`, `KeyUnavailableError` when the key is in a token that does not answer.
        """
        waiting = {each.id for each in self.requests()}
        for file, record, public_key in self.request_records():
            if request_id(public_key) == identifier and identifier in waiting:
                with exclusively(self.root):
                    if not file.exists():
                        break
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

    def _check(self) -> bytes:
        return self.pseudonym("vault check").encode()


def _read_kek(file: Path) -> bytes:
    """Raises `VaultError`."""
    try:
        kek = read_secret(file, "the key-encryption key")
    except SecretFileError as error:
        raise VaultError(str(error)) from None
    if len(kek) != KEK_BYTES:
        raise VaultError(f"{file} is not a key-encryption key: it must hold exactly {KEK_BYTES} bytes")
    return kek


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
