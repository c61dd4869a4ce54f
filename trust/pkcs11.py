"""Keys in a token (HSM, smart card, SoftHSM) reached through PKCS#11: made inside, never out.

A `Token` keeps a pool of sessions, one per thread at work. A token that was lost (unplugged, restarted, logged out by
somebody else) is logged in to again, once for everybody; what still fails then is a `KeyUnavailableError`, so that mail
waits instead of being refused. What the token answers and refuses starts nothing anew. A wrong PIN is never tried
twice, and the last try before a token locks itself is left to people.

A token belongs to the process that made it: after a fork the child must make its own (PKCS#11 v2.40 §2.5).

The token does the private operation only. Hashing is done here, and so is the padding of what is decrypted where the
token has the bare operation: few tokens know OAEP with SHA-256, and some answer a wrong padding as they answer their
own failures (`trust.unpadding`). Needs the package python-pkcs11, the extra `hsm`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import Hash, HashAlgorithm

from trust import der
from trust.keys import KeyUnavailableError
from trust.pkcs11_library import library_at, load, package, refusals, start
from trust.secret_files import SecretFileError, read_secret
from trust.softkeys import REJECTED_OCTETS, KeyKind
from trust.unpadding import unpad_oaep, unpad_pkcs1v15

T = TypeVar("T")

_RENEW_SECONDS = 10.0
"""How long a lost token waits for what is still under way before its library is started again."""
_PAUSE_SECONDS = 1.0
"""Before a token that stayed away is looked for again: a hundred threads must not all try."""
_DIGEST_INFO = {
    "sha1": "1.3.14.3.2.26",
    "sha224": "2.16.840.1.101.3.4.2.4",
    "sha256": "2.16.840.1.101.3.4.2.1",
    "sha384": "2.16.840.1.101.3.4.2.2",
    "sha512": "2.16.840.1.101.3.4.2.3",
}
_CURVES = {
    KeyKind.P256: "1.2.840.10045.3.1.7",
    KeyKind.P384: "1.3.132.0.34",
    KeyKind.P521: "1.3.132.0.35",
}
_WAIT_SECONDS = 60.0
"""For a session while others use them all: a token that hangs must not hold every thread for ever."""


@dataclass(frozen=True, slots=True)
class TokenOptions:
    """Which token, and how to log in to it."""

    module: Path
    """The PKCS#11 library its maker gives (`/usr/lib/softhsm/libsofthsm2.so`)."""
    label: str
    """The token's label; exactly one present token must have it."""
    pin_file: Path
    """Holds the user PIN and nothing else; only its owner may read it. Read at each login, so it may be replaced."""
    sessions: int = 8
    """So many operations at the same time; others wait."""


class _KeyMissingError(Exception):
    """The token answers, and does not hold the key."""


_REFUSED_PINS: dict[tuple[Path, str], bytes] = {}
"""By library and label, for all tokens of this process: what `_print_of` makes of the PIN that was refused last."""
_ACCEPTED_PINS: dict[tuple[Path, str], bytes] = {}
"""The same of the PIN that was accepted last: it may be tried even when it is the last try."""
_PRINT_KEY = secrets.token_bytes(32)


@dataclass(slots=True)
class _Session:
    session: Any
    generation: int
    keys: dict[bytes, Any] = field(default_factory=dict)
    """Private keys found in this session, by CKA_ID."""


class Token:
    """One token. Thread-safe; make one per process and `close` it.

    Every method raises `KeyUnavailableError` when the token cannot be asked.
    """

    def __init__(self, options: TokenOptions) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(max(options.sessions, 1))
        self._idle: list[_Session] = []
        self._login: Any = None
        self._logged_in = -1
        """The library's generation in which we logged in."""
        self._token: Any = None
        self._bare = True
        self._closed = False
        self._process = os.getpid()
        self._library = library_at(options.module)

    def __repr__(self) -> str:
        return f"Token({self._options.label!r})"

    def close(self) -> None:
        """Log out. What is under way ends with `KeyUnavailableError`. In a child of a fork, nothing."""
        if os.getpid() != self._process:
            return
        with self._lock:
            self._closed = True
            sessions = [each.session for each in self._idle if each.generation == self._library.generation]
            self._idle.clear()
            if self._login is not None and self._logged_in == self._library.generation:
                sessions.append(self._login)
            self._login, self._logged_in = None, -1
        for session in sessions:
            with suppress(Exception):
                session.close()

    def generate(self, kind: KeyKind, label: str) -> tuple[bytes, ec.EllipticCurvePublicKey | rsa.RSAPublicKey]:
        """Make a key pair inside; its identifier (CKA_ID, 16 random bytes) and public half.

        Sensitive and not extractable. It signs, which its certificate request needs, and decrypts or agrees. `label`
        (CKA_LABEL) marks whose keys these are; it must not name a mailbox.
        """

        def work(_: _Session) -> tuple[bytes, ec.EllipticCurvePublicKey | rsa.RSAPublicKey]:
            identifier = secrets.token_bytes(16)
            with self._writing() as session:
                return identifier, _generate(session, kind, identifier, label)

        return self._perform(work)

    def key(self, identifier: bytes, public_key: object) -> TokenKey:
        """What one key does; the token is first asked when it is used."""
        return TokenKey(self, identifier, public_key)

    def identifiers(self, label: str) -> frozenset[bytes]:
        """CKA_ID of every private key with this label."""
        p11 = package()
        wanted = {p11.Attribute.CLASS: p11.ObjectClass.PRIVATE_KEY, p11.Attribute.LABEL: label}
        return self._perform(
            lambda each: frozenset(bytes(key[p11.Attribute.ID]) for key in _search(each.session, wanted))
        )

    def holds(self, identifier: bytes) -> bool:
        """Whether a private key has this CKA_ID."""
        p11 = package()
        wanted = {p11.Attribute.CLASS: p11.ObjectClass.PRIVATE_KEY, p11.Attribute.ID: identifier}
        return self._perform(lambda each: bool(_search(each.session, wanted)))

    def destroy(self, identifier: bytes) -> None:
        """Remove a key pair for ever; one that is not there is already gone."""
        p11 = package()

        def work(each: _Session) -> None:
            with self._writing() as session:
                for found in _search(session, {p11.Attribute.ID: identifier}):
                    found.destroy()

        self._perform(work)

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        """A session that may change the token; opened inside an operation only, for that has logged in."""
        session = self._token.open(rw=True)
        try:
            yield session
        finally:
            with suppress(Exception):
                session.close()

    def _private_operation(self, identifier: bytes, work: Callable[[Any], T]) -> T:
        """`work` with the private key; everything it raises is the token's failure."""

        def with_key(each: _Session) -> T:
            return work(self._private_key(each, identifier))

        return self._perform(with_key)

    def _private_key(self, each: _Session, identifier: bytes) -> Any:
        key = each.keys.get(identifier)
        if key is not None:
            return key
        p11 = package()
        private = {p11.Attribute.CLASS: p11.ObjectClass.PRIVATE_KEY}
        found = _search(each.session, {**private, p11.Attribute.ID: identifier})
        if len(found) == 1:
            each.keys[identifier] = found[0]
            return found[0]
        if not found and not _search(each.session, private):
            raise p11.UserNotLoggedIn  # to who is logged out, a token shows no private key at all
        raise _KeyMissingError

    def _perform(self, work: Callable[[_Session], T]) -> T:
        """`work` in a session of its own; when the token was lost once more, in a session of a token found again."""
        p11 = package()
        if os.getpid() != self._process:
            raise KeyUnavailableError(f"token {self._options.label} was opened by the parent process: open it anew")
        with self._place():
            for last in (False, True):
                generation = self._library.generation
                try:
                    with self._session() as each:
                        generation = each.generation
                        return work(each)
                except _KeyMissingError:
                    raise KeyUnavailableError(f"token {self._options.label} does not hold the key") from None
                except p11.PKCS11Error as error:
                    if isinstance(error, refusals()):
                        raise self._unavailable(error) from None
                    if last:
                        self._library.failed_at = time.monotonic()
                        raise self._unavailable(error) from None
                self._renew(generation)
        raise AssertionError

    @contextmanager
    def _place(self) -> Iterator[None]:
        if not self._places.acquire(timeout=_WAIT_SECONDS):
            raise KeyUnavailableError(f"token {self._options.label} is busy: no session came free")
        try:
            yield
        finally:
            self._places.release()

    @contextmanager
    def _session(self) -> Iterator[_Session]:
        """A session nobody else uses; dropped instead of kept when what is done with it fails."""
        library = self._library
        with library.changed:
            if not library.changed.wait_for(lambda: not library.renewing, _RENEW_SECONDS):
                raise KeyUnavailableError(f"token {self._options.label} is being looked for")
            library.busy += 1
        try:
            with library.one_at_a_time:
                each = self._take()
                yield each
            with self._lock:
                if not self._closed and each.generation == library.generation:
                    self._idle.append(each)
        finally:
            with library.changed:
                library.busy -= 1
                library.changed.notify_all()

    def _take(self) -> _Session:
        with self._lock:
            if self._closed:
                raise KeyUnavailableError(f"token {self._options.label} is closed")
            generation = self._library.generation
            if self._logged_in != generation:
                self._idle.clear()
                self._log_in()
                self._logged_in = generation
            if self._idle:
                return self._idle.pop()
            return _Session(self._token.open(), generation)

    def _log_in(self) -> None:
        """Find the token and log in: for all sessions of this process (PKCS#11 v2.40 §5.6.8)."""
        p11 = package()
        options = self._options
        try:
            pin = read_secret(options.pin_file, "the token's PIN file").strip()
            text = pin.decode()
        except (SecretFileError, UnicodeDecodeError) as error:
            said = str(error) if isinstance(error, SecretFileError) else f"{options.pin_file} is no PIN"
            raise KeyUnavailableError(said) from None
        named = options.module, options.label
        if _REFUSED_PINS.get(named) == _print_of(pin):
            raise self._wrong_pin()
        try:
            self._token = load(self._library).get_token(token_label=options.label)
            if p11.TokenFlag.USER_PIN_FINAL_TRY in self._token.flags and _ACCEPTED_PINS.get(named) != _print_of(pin):
                raise KeyUnavailableError(
                    f"token {options.label} locks itself after one more wrong PIN: log in once with its maker's tool, "
                    f"then put that PIN into {options.pin_file}"
                )
            self._bare = p11.Mechanism.RSA_X_509 in self._token.slot.get_mechanisms()
            try:
                self._login = self._token.open(user_pin=text)
                _ACCEPTED_PINS[named] = _print_of(pin)
            except p11.UserAlreadyLoggedIn:  # by another vault of this process
                self._login = None
        except (p11.PinIncorrect, p11.PinLenRange, p11.PinInvalid):
            _REFUSED_PINS[named] = _print_of(pin)
            raise self._wrong_pin() from None
        except p11.PinLocked:
            _REFUSED_PINS[named] = _print_of(pin)
            raise KeyUnavailableError(
                f"token {options.label} is locked after too many wrong PINs: have its security officer unlock it"
            ) from None
        except p11.MultipleTokensReturned:
            raise KeyUnavailableError(f"several tokens are named {options.label}: give each its own label") from None

    def _wrong_pin(self) -> KeyUnavailableError:
        return KeyUnavailableError(
            f"token {self._options.label} refuses the PIN in {self._options.pin_file}: correct the file; the same PIN "
            "is not tried again, for tokens lock themselves"
        )

    def _renew(self, generation: int) -> None:
        """Start the library again, unless somebody has since the failure in `generation`."""
        library = self._library
        with library.changed:
            if not library.changed.wait_for(lambda: not library.renewing, _RENEW_SECONDS):
                raise KeyUnavailableError(f"token {self._options.label} is being looked for")
            if library.generation != generation:
                return
            if time.monotonic() < library.failed_at + _PAUSE_SECONDS:
                raise KeyUnavailableError(f"token {self._options.label} does not answer")
            library.renewing = True
            try:
                if not library.changed.wait_for(lambda: library.busy == 0, _RENEW_SECONDS):
                    raise KeyUnavailableError(f"token {self._options.label} hangs")
                load(library)
                start(library)
                library.generation += 1
            finally:
                library.renewing = False
                library.changed.notify_all()

    def _unavailable(self, error: Exception) -> KeyUnavailableError:
        if isinstance(error, package().NoSuchToken):
            return KeyUnavailableError(f"no token named {self._options.label} is present")
        return KeyUnavailableError(f"token {self._options.label} failed: {type(error).__name__}")


@dataclass(frozen=True, slots=True, repr=False)
class TokenKey:
    """`KeyOperations` of one key in a token. Thread-safe."""

    token: Token
    identifier: bytes
    public_key: object

    def sign(self, data: bytes, algorithm: HashAlgorithm) -> bytes:
        p11 = package()
        digest = _digest(data, algorithm)
        if isinstance(self.public_key, rsa.RSAPublicKey):
            named = der.sequence(der.oid(_DIGEST_INFO[algorithm.name]), der.null())
            info = der.sequence(named, der.octet_string(digest))
            return self._operate(lambda key: bytes(key.sign(info, mechanism=p11.Mechanism.RSA_PKCS)))
        if not isinstance(self.public_key, ec.EllipticCurvePublicKey):
            raise ValueError("a key of this kind cannot sign in a token")
        # leftmost bits of the digest (FIPS 186-5 §6.4.1): every token takes as many as its curve has
        short = digest[: (self.public_key.key_size + 7) // 8]
        plain = self._operate(lambda key: key.sign(short, mechanism=p11.Mechanism.ECDSA))
        half = len(plain) // 2
        return encode_dss_signature(int.from_bytes(plain[:half], "big"), int.from_bytes(plain[half:], "big"))

    def sign_pss(self, data: bytes, algorithm: HashAlgorithm) -> bytes:
        self._rsa()
        p11 = package()
        digest = _digest(data, algorithm)
        name = algorithm.name.upper()
        parameters = (getattr(p11.Mechanism, name), getattr(p11.MGF, name), algorithm.digest_size)
        return self._operate(
            lambda key: bytes(key.sign(digest, mechanism=p11.Mechanism.RSA_PKCS_PSS, mechanism_param=parameters))
        )

    def decrypt_oaep(self, encrypted: bytes, algorithm: HashAlgorithm, mgf: HashAlgorithm, label: bytes) -> bytes:
        block = self._bare(encrypted)
        if block is not None:
            return unpad_oaep(block, algorithm, mgf, label)
        p11 = package()
        name = algorithm.name.upper().replace("SHA1", "SHA_1")
        parameters = (getattr(p11.Mechanism, name), getattr(p11.MGF, mgf.name.upper()), label or None)
        content = self._unpadded_inside(encrypted, p11.Mechanism.RSA_PKCS_OAEP, parameters)
        if content is None:
            raise ValueError("decryption failed")
        return content

    def decrypt_pkcs1v15(self, encrypted: bytes) -> bytes:
        try:
            block = self._bare(encrypted)
        except ValueError:  # not even a ciphertext of this key: answered like a wrong padding
            return secrets.token_bytes(REJECTED_OCTETS)
        if block is not None:
            return unpad_pkcs1v15(block, REJECTED_OCTETS)
        content = self._unpadded_inside(encrypted, package().Mechanism.RSA_PKCS, None)
        return secrets.token_bytes(REJECTED_OCTETS) if content is None else content

    def agree(self, peer_public_key: bytes) -> bytes:
        p11 = package()
        own = self.public_key
        try:
            if not isinstance(own, ec.EllipticCurvePublicKey):
                raise ValueError
            ec.EllipticCurvePublicKey.from_encoded_point(own.curve, peer_public_key)
        except ValueError:
            raise ValueError("key agreement failed") from None
        octets = (own.key_size + 7) // 8
        readable = {p11.Attribute.SENSITIVE: False, p11.Attribute.EXTRACTABLE: True, p11.Attribute.TOKEN: False}

        def derive(key: Any, point: bytes) -> bytes:
            secret = key.derive_key(
                p11.KeyType.GENERIC_SECRET,
                octets * 8,
                mechanism=p11.Mechanism.ECDH1_DERIVE,
                mechanism_param=(p11.KDF.NULL, None, point),
                capabilities=0,
                template=readable,
            )
            try:
                return bytes(secret[p11.Attribute.VALUE]).rjust(octets, b"\0")
            finally:
                with suppress(p11.PKCS11Error):
                    secret.destroy()

        def work(key: Any) -> bytes:
            try:
                return derive(key, peer_public_key)
            except (p11.ArgumentsBad, p11.MechanismParamInvalid, p11.DomainParamsInvalid):
                # before v2.30 of PKCS#11 the point was wanted as an OCTET STRING; some tokens still do
                return derive(key, der.octet_string(peer_public_key))

        return self._operate(work)

    def _operate(self, work: Callable[[Any], T]) -> T:
        return self.token._private_operation(self.identifier, work)

    def _rsa(self) -> rsa.RSAPublicKey:
        if not isinstance(self.public_key, rsa.RSAPublicKey):
            raise ValueError("not an RSA key")
        return self.public_key

    def _bare(self, encrypted: bytes) -> bytes | None:
        """The padded block, None where the token insists on removing the padding itself. Raises ValueError for what
        cannot be a ciphertext of this key (RFC 8017 §5.1.2)."""
        try:
            key = self._rsa()
            octets = (key.key_size + 7) // 8
            if len(encrypted) != octets or int.from_bytes(encrypted, "big") >= key.public_numbers().n:
                raise ValueError
        except ValueError:
            raise ValueError("decryption failed") from None
        mechanism = package().Mechanism.RSA_X_509

        def work(private: Any) -> bytes | None:
            if not self.token._bare:
                return None
            return bytes(private.decrypt(encrypted, mechanism=mechanism)).rjust(octets, b"\0")

        return self._operate(work)

    def _unpadded_inside(self, encrypted: bytes, mechanism: Any, parameters: Any) -> bytes | None:
        """None when the token finds the padding wrong."""
        p11 = package()
        rejections = (
            p11.EncryptedDataInvalid,
            p11.EncryptedDataLenRange,
            p11.DataInvalid,
            p11.DataLenRange,
            p11.GeneralError,
            p11.FunctionFailed,
        )

        def work(private: Any) -> bytes | None:
            try:
                return bytes(private.decrypt(encrypted, mechanism=mechanism, mechanism_param=parameters))
            except rejections:
                private[p11.Attribute.ID]  # a token that is lost fails here too, one that rejects does not
                return None

        return self._operate(work)


@dataclass(frozen=True, slots=True)
class KeyElsewhere:
    """`KeyOperations` of a key that cannot be reached: each raises `KeyUnavailableError` with the reason."""

    reason: str

    def sign(self, data: bytes, algorithm: HashAlgorithm) -> bytes:
        raise KeyUnavailableError(self.reason)

    def sign_pss(self, data: bytes, algorithm: HashAlgorithm) -> bytes:
        raise KeyUnavailableError(self.reason)

    def decrypt_oaep(self, encrypted: bytes, algorithm: HashAlgorithm, mgf: HashAlgorithm, label: bytes) -> bytes:
        raise KeyUnavailableError(self.reason)

    def decrypt_pkcs1v15(self, encrypted: bytes) -> bytes:
        raise KeyUnavailableError(self.reason)

    def agree(self, peer_public_key: bytes) -> bytes:
        raise KeyUnavailableError(self.reason)


def _search(session: Any, wanted: dict[Any, Any]) -> list[Any]:
    """Objects with these attributes. A search that fails half-way is told twice by the package, the second time on
    standard error; so whether the session lives is asked first."""
    p11 = package()
    with suppress(p11.RandomNoRNG, p11.FunctionNotSupported):
        session.generate_random(64)
    return list(session.get_objects(wanted))


def _digest(data: bytes, algorithm: HashAlgorithm) -> bytes:
    hashed = Hash(algorithm)
    hashed.update(data)
    return hashed.finalize()


def _print_of(pin: bytes) -> bytes:
    """Stands for a PIN in memory, so that it need not stay there."""
    return hashlib.blake2b(pin, key=_PRINT_KEY).digest()


def _generate(
    session: Any, kind: KeyKind, identifier: bytes, label: str
) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    p11 = package()
    inside = {p11.Attribute.PRIVATE: True, p11.Attribute.SENSITIVE: True, p11.Attribute.EXTRACTABLE: False}
    common = {"id": identifier, "label": label, "store": True, "private_template": inside}
    if kind.rsa_bits:
        flags = p11.MechanismFlag.SIGN | p11.MechanismFlag.DECRYPT
        public, _ = session.generate_keypair(p11.KeyType.RSA, kind.rsa_bits, capabilities=flags, **common)
        modulus = int.from_bytes(public[p11.Attribute.MODULUS], "big")
        exponent = int.from_bytes(public[p11.Attribute.PUBLIC_EXPONENT], "big")
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    flags = p11.MechanismFlag.SIGN | p11.MechanismFlag.DERIVE
    named = {p11.Attribute.EC_PARAMS: der.oid(_CURVES[kind])}
    parameters = session.create_domain_parameters(p11.KeyType.EC, named, local=True)
    public, _ = parameters.generate_keypair(capabilities=flags, **common)
    point = der.read(bytes(public[p11.Attribute.EC_POINT])).octets()
    return ec.EllipticCurvePublicKey.from_encoded_point(kind.curve, point)
