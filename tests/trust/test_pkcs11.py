"""Keys inside a real token (SoftHSM2): they do what keys in memory do, and never come out."""

import ctypes
import logging
import os
import secrets
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP, PSS, PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA1, SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from smime.signing import SignerFailedError, sign_content
from tests.trust.certificate_authority import Authority
from tests.trust.softhsm import LABEL, MODULE, PIN, make_token, needs_softhsm
from trust import pkcs11 as under_test
from trust import pkcs11_library
from trust.generations import KeyUse
from trust.keycheck import check_vault
from trust.keys import KeyUnavailableError
from trust.pkcs11 import Token, TokenOptions
from trust.softkeys import KeyKind
from trust.vault import KeyVault, VaultError

pytestmark = [needs_softhsm, pytest.mark.xdist_group("softhsm")]

ADDRESS = "medecin@cabinet.example"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTHSM2_CONF", "")
    monkeypatch.setattr(pkcs11_library, "LIBRARIES", {})  # started anew, with this test's configuration
    for pins in ("_REFUSED_PINS", "_ACCEPTED_PINS"):
        monkeypatch.setattr(under_test, pins, {})
    pin_file = make_token(tmp_path / "hsm")
    return TokenOptions(MODULE, LABEL, pin_file, sessions=4)


@pytest.fixture
def token(options):
    token = Token(options)
    yield token
    token.close()


def restart() -> None:
    """What a token does that is unplugged and back: every session, login and handle is gone."""
    ctypes.CDLL(str(MODULE)).C_Finalize(None)


@pytest.fixture
def patient(monkeypatch):
    """Without the pause between two attempts to find a lost token."""
    monkeypatch.setattr(under_test, "_PAUSE_SECONDS", 0.0)


def test_rsa(token) -> None:
    identifier, public = token.generate(KeyKind.RSA_2048, "t")
    key = token.key(identifier, public)
    for algorithm in (SHA256(), SHA384(), SHA512()):
        public.verify(key.sign(b"content", algorithm), b"content", PKCS1v15(), algorithm)
        pss = PSS(MGF1(algorithm), algorithm.digest_size)
        public.verify(key.sign_pss(b"content", algorithm), b"content", pss, algorithm)
    dek = secrets.token_bytes(32)
    for algorithm, mgf, label in ((SHA256(), SHA256(), b""), (SHA1(), SHA1(), b"L"), (SHA512(), SHA1(), b"")):
        encrypted = public.encrypt(dek, OAEP(MGF1(mgf), algorithm, label or None))
        assert key.decrypt_oaep(encrypted, algorithm, mgf, label) == dek
        for wrong in (b"", encrypted[:-1], b"\xff" * 256, bytes([encrypted[0] ^ 1]) + encrypted[1:]):
            with pytest.raises(ValueError, match=r"^decryption failed$"):
                key.decrypt_oaep(wrong, algorithm, mgf, label)
        with pytest.raises(ValueError, match=r"^decryption failed$"):
            key.decrypt_oaep(encrypted, algorithm, mgf, b"other")
    encrypted = public.encrypt(dek, PKCS1v15())
    assert key.decrypt_pkcs1v15(encrypted) == dek
    for wrong in (
        b"",
        encrypted[:-1],
        b"\xff" * 256,
        b"\1" * 256,
        b"\0" * 256,
        bytes([encrypted[0] ^ 1]) + encrypted[1:],
    ):
        answers = {key.decrypt_pkcs1v15(wrong) for _ in range(2)}
        assert len(answers) == 2
        assert {len(each) for each in answers} == {32}
    with pytest.raises(ValueError, match=r"^key agreement failed$"):
        key.agree(b"\4" + bytes(64))


def test_a_token_that_insists_on_padding_itself(token) -> None:
    identifier, public = token.generate(KeyKind.RSA_2048, "t")
    key = token.key(identifier, public)
    assert token.holds(identifier)
    token._bare = False
    encrypted = public.encrypt(b"k" * 32, PKCS1v15())
    assert key.decrypt_pkcs1v15(encrypted) == b"k" * 32
    wrong = key.decrypt_pkcs1v15(b"\1" * 256)
    assert len(wrong) == 32
    assert wrong != key.decrypt_pkcs1v15(b"\1" * 256)
    sha1 = public.encrypt(b"k" * 32, OAEP(MGF1(SHA1()), SHA1(), None))
    assert key.decrypt_oaep(sha1, SHA1(), SHA1(), b"") == b"k" * 32
    with pytest.raises(ValueError, match=r"^decryption failed$"):
        key.decrypt_oaep(b"\1" * 256, SHA1(), SHA1(), b"")


@pytest.mark.parametrize("kind", [KeyKind.P256, KeyKind.P384, KeyKind.P521], ids=lambda each: each.value)
def test_curves(token, kind) -> None:
    identifier, public = token.generate(kind, "t")
    assert public.curve.name == kind.curve.name
    key = token.key(identifier, public)
    for algorithm in (SHA256(), SHA384(), SHA512()):
        public.verify(key.sign(b"content", algorithm), b"content", ec.ECDSA(algorithm))
        with pytest.raises(InvalidSignature):
            public.verify(key.sign(b"other", algorithm), b"content", ec.ECDSA(algorithm))
    for _ in range(40):  # some secrets begin with zeros
        peer = ec.generate_private_key(kind.curve)
        point = peer.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        assert key.agree(point) == peer.exchange(ec.ECDH(), public)
    for wrong in (b"", b"\0", point[:-1] + bytes([point[-1] ^ 1]), point + b"\0"):
        with pytest.raises(ValueError, match=r"^key agreement failed$"):
            key.agree(wrong)
    with pytest.raises(ValueError):
        key.sign_pss(b"content", SHA256())
    with pytest.raises(ValueError, match=r"^decryption failed$"):
        key.decrypt_oaep(b"x" * 256, SHA256(), SHA256(), b"")
    assert len(key.decrypt_pkcs1v15(b"x" * 256)) == 32


def test_a_key_never_comes_out(token, options) -> None:
    import pkcs11

    identifier, public = token.generate(KeyKind.RSA_2048, "t")
    with token._session() as each:
        key = token._private_key(each, identifier)
        assert key[pkcs11.Attribute.SENSITIVE]
        assert key[pkcs11.Attribute.ALWAYS_SENSITIVE]
        assert key[pkcs11.Attribute.NEVER_EXTRACTABLE]
        assert not key[pkcs11.Attribute.EXTRACTABLE]
        for secret in (pkcs11.Attribute.PRIVATE_EXPONENT, pkcs11.Attribute.PRIME_1):
            with pytest.raises(pkcs11.PKCS11Error):
                key[secret]
    modulus = public.public_numbers().n.to_bytes(256, "big")
    files = [path.read_bytes() for path in options.pin_file.parent.rglob("*") if path.is_file()]
    assert any(modulus in content for content in files)


def test_many_threads(token) -> None:
    identifier, public = token.generate(KeyKind.P256, "t")
    key = token.key(identifier, public)

    def work(number: int) -> None:
        content = str(number).encode()
        public.verify(key.sign(content, SHA256()), content, ec.ECDSA(SHA256()))

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(work, range(200)))
    assert len(token._idle) <= 4


def test_a_lost_token_is_found_again_by_all_threads(token, patient) -> None:
    identifier, public = token.generate(KeyKind.P256, "t")
    key = token.key(identifier, public)
    for _ in range(3):
        with token._library.changed:  # nothing under way in the library while it goes away
            token._library.changed.wait_for(lambda: token._library.busy == 0, 10)
            restart()
        start = threading.Barrier(8)

        def work(_: int, start=start) -> None:
            start.wait(10)
            public.verify(key.sign(b"x", SHA256()), b"x", ec.ECDSA(SHA256()))

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(work, range(8)))


def test_logged_out_by_somebody_else(token, options, patient) -> None:
    identifier, public = token.generate(KeyKind.P256, "t")
    key = token.key(identifier, public)
    key.sign(b"x", SHA256())
    other = Token(options)
    assert other.holds(identifier)
    token.close()  # whoever logged in logs the whole process out
    public.verify(other.key(identifier, public).sign(b"x", SHA256()), b"x", ec.ECDSA(SHA256()))
    with pytest.raises(KeyUnavailableError, match="closed"):
        key.sign(b"x", SHA256())
    other.close()


def test_a_token_that_is_away_and_comes_back(token, options, tmp_path, patient) -> None:
    identifier, public = token.generate(KeyKind.RSA_2048, "t")
    key = token.key(identifier, public)
    dek = public.encrypt(b"k" * 32, PKCS1v15())
    (tmp_path / "hsm/tokens").rename(tmp_path / "hsm/away")
    (tmp_path / "hsm/tokens").mkdir()
    restart()
    for work in (lambda: key.sign(b"x", SHA256()), lambda: key.decrypt_pkcs1v15(dek)):
        with pytest.raises(KeyUnavailableError, match="no token named relais-test is present"):
            work()
    (tmp_path / "hsm/tokens").rmdir()
    (tmp_path / "hsm/away").rename(tmp_path / "hsm/tokens")
    public.verify(key.sign(b"x", SHA256()), b"x", PKCS1v15(), SHA256())
    assert key.decrypt_pkcs1v15(dek) == b"k" * 32


def test_a_wrong_pin_is_tried_once_and_never_told(options, caplog, monkeypatch) -> None:
    caplog.set_level(logging.DEBUG)
    options.pin_file.write_text("1234-wrong-pin\n")
    token = Token(options)
    said = []
    for _ in range(20):
        with pytest.raises(KeyUnavailableError, match="refuses the PIN") as failure:
            token.identifiers("t")
        said.append(str(failure.value) + repr(failure.value.__cause__) + repr(failure.value.__context__))
    options.pin_file.write_text(PIN)
    assert token.identifiers("t") == frozenset()  # the token has not locked itself
    assert not any("wrong-pin" in each for each in (*said, caplog.text, repr(token), repr(options)))
    token.close()


def test_a_pin_others_can_read_is_refused(options) -> None:
    options.pin_file.chmod(0o640)
    with pytest.raises(KeyUnavailableError, match="chmod 600"):
        Token(options).identifiers("t")
    options.pin_file.unlink()
    with pytest.raises(KeyUnavailableError, match="No such file"):
        Token(options).identifiers("t")


def test_no_library(options, tmp_path) -> None:
    token = Token(TokenOptions(tmp_path / "none.so", LABEL, options.pin_file))
    with pytest.raises(KeyUnavailableError, match="cannot be loaded"):
        token.identifiers("t")


def test_a_library_many_threads_must_not_enter(token, monkeypatch) -> None:
    monkeypatch.setattr(token._library, "one_at_a_time", threading.Lock())
    identifier, public = token.generate(KeyKind.P256, "t")
    key = token.key(identifier, public)
    with ThreadPoolExecutor(4) as threads:
        assert len(list(threads.map(lambda _: key.sign(b"x", SHA256()), range(20)))) == 20


def test_a_mailbox_with_its_keys_in_the_token(token, tmp_path) -> None:
    authority = Authority()
    vault = KeyVault.create(tmp_path / "vault", token)
    requests = [vault.request(ADDRESS, use, KeyKind.RSA_2048, in_token=True) for use in KeyUse]
    assert all(each.request.is_signature_valid for each in requests)
    vault.install_certificates([*(authority.answer(each.request) for each in requests), authority.intermediate])
    signer = vault.signer(ADDRESS)
    assert signer.chain == (authority.intermediate,)
    assert len(sign_content(b"content", signer)) > 1000
    (decryptor,) = vault.decryptors(ADDRESS)
    oaep = padding.OAEP(MGF1(SHA256()), SHA256(), None)
    encrypted = decryptor.certificate.public_key().encrypt(b"k" * 32, oaep)
    assert decryptor.decrypt_oaep(encrypted, SHA256(), SHA256(), b"") == b"k" * 32
    next_one = vault.rotate(ADDRESS, KeyUse.SIGNING)
    assert next_one.in_token
    assert isinstance(next_one.request.public_key(), rsa.RSAPublicKey)
    assert {each.code for each in check_vault(vault, signer.certificate.not_valid_before_utc, None)} == set()

    # the token's label names nobody, and what nobody refers to any more is found
    stray, _ = token.generate(KeyKind.P256, vault.token_label)
    token.destroy(next_one.token_key)
    codes = {each.code: each for each in check_vault(vault, signer.certificate.not_valid_before_utc, None)}
    assert codes.keys() == {"orphan-key", "missing-key"}
    assert stray.hex() in codes["orphan-key"].subject
    assert next_one.id in codes["missing-key"].subject
    vault.discard(next_one.id)
    token.destroy(stray)
    assert check_vault(vault, signer.certificate.not_valid_before_utc, None) == []


def test_without_its_token_a_key_is_unavailable_and_others_work(token, tmp_path) -> None:
    authority = Authority()
    vault = KeyVault.create(tmp_path / "vault", token)
    for use in KeyUse:
        request = vault.request(ADDRESS, use, KeyKind.P256, in_token=True)
        vault.install_certificates([authority.answer(request.request)])
    key = ec.generate_private_key(ec.SECP256R1())
    vault.install("b@cabinet.example", KeyUse.SIGNING, key, authority.issue(key, "b@cabinet.example"), [])
    bare = KeyVault.open(tmp_path / "vault")
    with pytest.raises(SignerFailedError, match="KeyUnavailableError"):
        sign_content(b"content", bare.signer(ADDRESS))
    with pytest.raises(KeyUnavailableError, match="none is configured"):
        bare.decryptors(ADDRESS)[0].agree(b"")
    sign_content(b"content", bare.signer("b@cabinet.example"))
    with pytest.raises(KeyUnavailableError):
        bare.request(ADDRESS, KeyUse.SIGNING, KeyKind.P256, in_token=True)
    found = [each.code for each in check_vault(bare, bare.signer(ADDRESS).certificate.not_valid_before_utc, None)]
    assert found.count("no-token") == 2
    with pytest.raises(VaultError):
        bare.discard("0" * 16)


def test_what_a_token_refuses_disturbs_nobody(token) -> None:
    """SoftHSM does not know OAEP with SHA-256: an answer, no loss."""
    identifier, public = token.generate(KeyKind.RSA_2048, "t")
    key = token.key(identifier, public)
    token._bare = False
    generation = token._library.generation
    encrypted = public.encrypt(b"k" * 32, OAEP(MGF1(SHA256()), SHA256(), None))
    for _ in range(3):
        with pytest.raises(KeyUnavailableError, match=r"failed: (ArgumentsBad|MechanismParamInvalid|MechanismInvalid)"):
            key.decrypt_oaep(encrypted, SHA256(), SHA256(), b"")
    assert token._library.generation == generation
    public.verify(key.sign(b"x", SHA256()), b"x", PKCS1v15(), SHA256())


def test_a_wrong_pin_is_tried_once_by_all_tokens_of_a_process(options, monkeypatch) -> None:
    options.pin_file.write_text("wrong-pin")
    logins = []
    real = Token._wrong_pin
    monkeypatch.setattr(Token, "_wrong_pin", lambda self: logins.append(self._token is not None) or real(self))
    for _ in range(5):
        token = Token(options)
        with pytest.raises(KeyUnavailableError, match="refuses the PIN"):
            token.identifiers("t")
    assert logins == [True, False, False, False, False]  # whoever does not look for the token asks it nothing
    assert b"wrong-pin" not in b"".join(under_test._REFUSED_PINS.values())


class _LastTry:
    """A token that says it locks itself at the next wrong PIN."""

    def __init__(self, token, flag) -> None:
        self._token = token
        self.flags = token.flags | flag
        self.slot = token.slot
        self.logins = 0

    def open(self, **options):
        self.logins += "user_pin" in options
        return self._token.open(**options)


def test_the_last_try_is_left_to_people(options, monkeypatch, patient) -> None:
    flag = pkcs11_library.package().TokenFlag.USER_PIN_FINAL_TRY
    token = Token(options)
    library = pkcs11_library.load(token._library)
    on_edge = _LastTry(library.get_token(token_label=LABEL), flag)

    class Library:
        @staticmethod
        def get_token(**_):
            return on_edge

    monkeypatch.setattr(under_test, "load", lambda _: Library)
    for _ in range(3):
        with pytest.raises(KeyUnavailableError, match="locks itself after one more wrong PIN"):
            token.identifiers("t")
    assert on_edge.logins == 0
    under_test._ACCEPTED_PINS[options.module, options.label] = under_test._print_of(PIN.encode())
    assert token.identifiers("t") == frozenset()  # a PIN that was right before
    token.close()


def test_a_token_all_of_whose_sessions_hang(options, monkeypatch) -> None:
    monkeypatch.setattr(under_test, "_WAIT_SECONDS", 0.05)
    token = Token(TokenOptions(options.module, options.label, options.pin_file, sessions=1))
    token.identifiers("t")
    begun, end = threading.Event(), threading.Event()

    def hang(_):
        begun.set()
        end.wait(20)

    with ThreadPoolExecutor(1) as threads:
        hanging = threads.submit(token._perform, hang)
        begun.wait(20)
        with pytest.raises(KeyUnavailableError, match="busy"):
            token.identifiers("t")
        end.set()
        hanging.result(20)
    assert token.identifiers("t") == frozenset()
    token.close()


_FORK = """
    import os, sys, threading
    from pathlib import Path
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from trust.keys import KeyUnavailableError
    from trust.pkcs11 import Token, TokenOptions
    from trust.softkeys import KeyKind
    options = TokenOptions(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
    token = Token(options)
    identifier, public = token.generate(KeyKind.P256, "t")
    key = token.key(identifier, public)

    def works(key):
        public.verify(key.sign(b"x", SHA256()), b"x", ec.ECDSA(SHA256()))

    stop = threading.Event()

    def keep_signing():
        while not stop.is_set():
            works(key)

    threads = [threading.Thread(target=keep_signing) for _ in range(3)]
    for each in threads:
        each.start()
    def child(own_token):
        pid = os.fork()
        if pid == 0:
            try:
                key.sign(b"x", SHA256())
            except KeyUnavailableError as error:
                assert "parent process" in str(error), error
            else:
                os._exit(2)
            token.close()
            if own_token:  # not while other threads are inside the library: its locks would be theirs for ever
                own = Token(options)
                works(own.key(identifier, public))
                own.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0

    for _ in range(10):
        child(own_token=False)
    stop.set()
    for each in threads:
        each.join(20)
    child(own_token=True)
    works(key)
"""


def test_a_child_makes_its_own_token_and_the_parent_goes_on(options) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(_FORK), str(MODULE), LABEL, str(options.pin_file)],
        check=False,
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]


def test_a_request_that_cannot_be_kept_leaves_nothing_in_the_token(token, tmp_path, monkeypatch) -> None:
    vault = KeyVault.create(tmp_path / "vault", token)
    monkeypatch.setattr(vault, "keep_request", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space"):
        vault.request(ADDRESS, KeyUse.SIGNING, KeyKind.P256, in_token=True)
    assert token.identifiers(vault.token_label) == frozenset()


def test_a_certificate_renewed_for_a_key_in_the_token(token, tmp_path) -> None:
    authority = Authority()
    vault = KeyVault.create(tmp_path / "vault", token)
    request = vault.request(ADDRESS, KeyUse.SIGNING, KeyKind.P256, in_token=True)
    vault.install_certificates([authority.answer(request.request, since=-100)])
    vault.install_certificates([authority.answer(request.request, since=-1)])
    assert len(vault.generations()) == 2
    vault.renew_key()
    assert len(sign_content(b"content", KeyVault.open(tmp_path / "vault", token).signer(ADDRESS))) > 1000
