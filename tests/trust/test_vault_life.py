"""A key's life: requested, installed, followed by another, retired; under kill -9, by two processes, with damage."""

import os
import stat
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.trust.certificate_authority import NOW, Authority, name
from trust.generations import KeyState, KeyUse, states
from trust.softkeys import KeyKind
from trust.vault import KeyVault, VaultError

ADDRESS = "190037512345677@patient.example"
ROOT = Path(__file__).parents[2]
AUTHORITY = Authority()


@pytest.fixture
def vault(tmp_path):
    return KeyVault.create(tmp_path / "vault")


def installed(vault, address=ADDRESS, use=KeyUse.SIGNING, **validity):
    """One more generation; its identifier."""
    request = vault.request(address, use, KeyKind.P256)
    (generation,) = vault.install_certificates([AUTHORITY.answer(request.request, **validity)])
    return generation


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KeyKind), ids=lambda each: each.value)
@pytest.mark.parametrize("use", list(KeyUse), ids=lambda each: each.value)
def test_a_request_says_what_is_wanted_and_its_key_opens_what_comes_back(vault, kind, use) -> None:
    made = vault.request(ADDRESS, use, kind, name("Boîte patient"), [x509.RFC822Name("autre@patient.example")])
    request = made.request
    assert request.is_signature_valid
    assert request.subject == name("Boîte patient")
    extensions = request.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.RFC822Name) == [ADDRESS, "autre@patient.example"]
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    signing = use is KeyUse.SIGNING
    assert usage.value.digital_signature is usage.value.content_commitment is signing
    assert usage.value.key_encipherment is (not signing and bool(kind.rsa_bits))
    assert usage.value.key_agreement is (not signing and not kind.rsa_bits)
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.EMAIL_PROTECTION
    ]
    public = request.public_key()
    assert public.key_size == (kind.rsa_bits or kind.curve.key_size)
    subprocess.run(
        ["openssl", "req", "-verify", "-noout", "-inform", "DER"],
        input=request.public_bytes(Encoding.DER),
        check=True,
        capture_output=True,
    )
    assert vault.requests()[0].id == made.id
    (generation,) = vault.install_certificates([AUTHORITY.intermediate, AUTHORITY.answer(request), AUTHORITY.root])
    assert generation.chain == (AUTHORITY.intermediate,)
    assert vault.requests() == []
    if signing:
        signature = vault.signer(ADDRESS).sign(b"x", SHA256())
        arguments = (padding.PKCS1v15(), SHA256()) if kind.rsa_bits else (ec.ECDSA(SHA256()),)
        public.verify(signature, b"x", *arguments)
    else:
        (decryptor,) = vault.decryptors(ADDRESS)
        if kind.rsa_bits:
            assert decryptor.decrypt_pkcs1v15(public.encrypt(b"k" * 32, padding.PKCS1v15())) == b"k" * 32


@pytest.mark.parametrize("address", ["", "nobody", "é@patient.example", "a b@c.fr", "a@b@c", "a\0@b.fr"])
def test_an_address_no_certificate_can_hold(vault, address) -> None:
    with pytest.raises(VaultError, match="cannot be put into a certificate"):
        vault.request(address, KeyUse.SIGNING, KeyKind.P256)
    assert vault.requests() == []


def test_what_does_not_answer_a_request_is_refused_and_changes_nothing(vault) -> None:
    request = vault.request(ADDRESS, KeyUse.SIGNING, KeyKind.P256)
    stranger = ec.generate_private_key(ec.SECP256R1())
    wrong_use = AUTHORITY.issue(stranger, ADDRESS)
    for certificates, why in (
        ([], "no key here waits"),
        ([wrong_use, AUTHORITY.intermediate], "no key here waits"),
        ([_certified(request, ADDRESS, signing=False)], "KeyUsage does not allow signing"),
        ([_certified(request, "other@patient.example")], "another address"),
    ):
        with pytest.raises(VaultError, match=why):
            vault.install_certificates(certificates)
    assert [each.id for each in vault.requests()] == [request.id]
    assert vault.generations() == []


def _certified(request, address, *, signing=True):
    class Key:
        """Only its public half is asked for."""

        public_key = staticmethod(request.request.public_key)

    return AUTHORITY.issue(Key, address, signing=signing)


def test_both_uses_in_one_go_and_again(vault) -> None:
    requests = [vault.request(ADDRESS, use, KeyKind.P256) for use in KeyUse]
    certificates = [AUTHORITY.answer(each.request) for each in requests]
    kept = vault.install_certificates(certificates)
    assert {each.use for each in kept} == set(KeyUse)
    assert {each.id for each in vault.install_certificates(certificates)} == {each.id for each in kept}
    assert vault.requests() == []


def test_a_discarded_request_is_gone_with_its_key(vault, tmp_path) -> None:
    request = vault.request(ADDRESS, KeyUse.SIGNING, KeyKind.P256)
    vault.discard(request.id)
    assert vault.requests() == []
    with pytest.raises(VaultError, match="no key here waits"):
        vault.install_certificates([AUTHORITY.answer(request.request)])
    with pytest.raises(VaultError, match="no request"):
        vault.discard(request.id)


# --- generations ------------------------------------------------------------------------------------------------------


def test_rotation_without_downtime_in_another_process_that_runs(vault, tmp_path) -> None:
    gateway = KeyVault.open(tmp_path / "vault")
    first = installed(vault, since=-300, until=30)
    assert gateway.signer(ADDRESS).certificate == first.certificate
    following = vault.rotate(ADDRESS, KeyUse.SIGNING)
    assert following.request.subject == first.certificate.subject
    assert gateway.signer(ADDRESS).certificate == first.certificate  # until the certificate comes
    (second,) = vault.install_certificates([AUTHORITY.answer(following.request, since=0)])
    assert gateway.signer(ADDRESS).certificate == second.certificate
    vault.retire(second.id)
    assert gateway.signer(ADDRESS).certificate == first.certificate
    vault.retire(first.id)
    assert gateway.signer(ADDRESS) is None
    assert set(states(vault.generations(), NOW).values()) == {KeyState.RETIRED}


def test_retired_keys_decrypt_for_ever(vault, tmp_path) -> None:
    old = installed(vault, use=KeyUse.ENCRYPTION, since=-300)
    new = installed(vault, use=KeyUse.ENCRYPTION)
    gateway = KeyVault.open(tmp_path / "vault")
    assert len(gateway.decryptors(ADDRESS)) == 2
    vault.retire(old.id)
    vault.retire(new.id)
    assert [each.certificate for each in gateway.decryptors(ADDRESS)] == [new.certificate, old.certificate]
    with pytest.raises(VaultError, match="no generation"):
        vault.retire("0" * 16)


def test_installing_a_retired_one_again_leaves_it_retired(vault) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = AUTHORITY.issue(key, ADDRESS)
    vault.install(ADDRESS, KeyUse.SIGNING, key, certificate, [])
    (generation,) = vault.generations()
    (first,) = vault.retire(generation.id)
    vault.install(ADDRESS, KeyUse.SIGNING, key, certificate, [])
    assert vault.signer(ADDRESS) is None
    assert vault.retire(generation.id)[0].retired_at == first.retired_at


def test_states(vault) -> None:
    expired = installed(vault, since=-300, until=-10)
    older = installed(vault, since=-100)
    current = installed(vault, since=-5)
    future = installed(vault, since=5)
    elsewhere = installed(vault, address="b@cabinet.example")
    gone = installed(vault, since=-1)
    vault.retire(gone.id)
    found = states(vault.generations(), NOW)
    assert {each.id: state for each, state in found.items()} == {
        expired.id: KeyState.EXPIRED,
        older.id: KeyState.OLDER,
        current.id: KeyState.CURRENT,
        future.id: KeyState.FUTURE,
        elsewhere.id: KeyState.CURRENT,
        gone.id: KeyState.RETIRED,
    }
    assert vault.signer(ADDRESS).certificate == current.certificate
    assert vault.signer(ADDRESS, NOW + timedelta(days=6)).certificate == future.certificate


def test_a_rotation_follows_the_kind_of_key(vault) -> None:
    key = rsa.generate_private_key(65537, 2048)
    vault.install(ADDRESS, KeyUse.SIGNING, key, AUTHORITY.issue(key, ADDRESS), [])
    assert vault.rotate(ADDRESS, KeyUse.SIGNING).request.public_key().key_size == 2048
    other = vault.rotate(ADDRESS, KeyUse.SIGNING, KeyKind.P384)
    assert other.request.public_key().curve.name == "secp384r1"
    names = other.request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.RFC822Name) == [ADDRESS]
    with pytest.raises(VaultError, match="no encryption key to follow"):
        vault.rotate(ADDRESS, KeyUse.ENCRYPTION)


def test_key_files_of_the_first_version_still_open(vault, tmp_path) -> None:
    """Before there were tokens and retirement a key file had four fields."""
    generation = installed(vault)
    (file,) = (path for path in (tmp_path / "vault/keys").rglob("*") if path.is_file())
    context = f"key file:{file.parent.name}/{file.name}".encode()
    record = msgspec.msgpack.decode(vault.unseal(file.read_bytes(), context))
    four = {each: record[each] for each in ("address", "use", "private_key", "certificates")}
    file.write_bytes(vault.seal(msgspec.msgpack.encode(four), context))
    reopened = KeyVault.open(tmp_path / "vault")
    assert reopened.signer(ADDRESS).certificate == generation.certificate
    reopened.retire(generation.id)
    assert reopened.signer(ADDRESS) is None


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b"", b"x", b"\x01" + bytes(60), b"-----BEGIN PRIVATE KEY-----\n"])
def test_a_damaged_file_hides_no_other(vault, tmp_path, damage) -> None:
    good = installed(vault, since=-100)
    other = installed(vault, address="b@cabinet.example")
    before = {path for path in (tmp_path / "vault/keys").rglob("*") if path.is_file()}
    newest = installed(vault, since=-1)
    (file,) = {path for path in (tmp_path / "vault/keys").rglob("*") if path.is_file()} - before
    intact = file.read_bytes()
    file.write_bytes(damage)
    for each in (vault, KeyVault.open(tmp_path / "vault")):
        assert each.signer(ADDRESS).certificate == good.certificate
        assert each.signer("b@cabinet.example").certificate == other.certificate
        assert {one.id for one in each.generations()} == {good.id, other.id}
        (told,) = each.damaged()
        assert told.file == file
        assert ADDRESS not in told.reason
    file.write_bytes(intact)
    assert vault.signer(ADDRESS).certificate == newest.certificate


def test_a_damaged_file_is_repaired_by_its_key_again(vault, tmp_path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = AUTHORITY.issue(key, ADDRESS)
    vault.install(ADDRESS, KeyUse.SIGNING, key, certificate, [])
    (file,) = (path for path in (tmp_path / "vault/keys").rglob("*") if path.is_file())
    file.write_bytes(b"damaged")
    with pytest.raises(VaultError, match="relais keys check"):
        vault.signer(ADDRESS)
    vault.install(ADDRESS, KeyUse.SIGNING, key, certificate, [])
    assert vault.signer(ADDRESS).certificate == certificate


def test_what_a_killed_writer_left_is_no_key_and_goes(vault, tmp_path) -> None:
    installed(vault)
    (directory,) = (tmp_path / "vault/keys").iterdir()
    (directory / ".0123.tmp").write_bytes(b"half")
    assert vault.damaged() == []
    assert len(vault.certificates(ADDRESS, KeyUse.SIGNING)) == 1
    installed(vault)
    assert not list(directory.glob(".*.tmp"))


_KILLED = """
    import os, signal, sys
    from pathlib import Path
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from tests.trust.certificate_authority import Authority
    from trust.generations import KeyUse
    from trust.softkeys import KeyKind
    from trust.vault import KeyVault, VaultError

    root, what = Path(sys.argv[1]), sys.argv[2]
    authority = Authority()
    vault = KeyVault.create(root)
    request = vault.request("a@b.example", KeyUse.SIGNING, KeyKind.P256)
    (first,) = vault.install_certificates([authority.answer(request.request, since=-50)])
    waiting = vault.rotate("a@b.example", KeyUse.SIGNING)
    second = authority.answer(waiting.request)
    acts = {
        "install": lambda vault: vault.install_certificates([second, authority.intermediate]),
        "rotate": lambda vault: vault.rotate("a@b.example", KeyUse.SIGNING),
        "retire": lambda vault: vault.retire(first.id),
        "discard": lambda vault: vault.discard(waiting.id),
    }
    steps = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "fcntl.flock"}

    def child(last):
        pid = os.fork()
        if pid == 0:
            done = 0
            def hook(event, arguments):
                nonlocal done
                if event in steps:
                    done += 1
                    if done > last:
                        os.kill(os.getpid(), signal.SIGKILL)
            other = KeyVault.open(root)
            sys.addaudithook(hook)
            try:
                acts[what](other)
            except VaultError:  # killed after the last change: there is nothing left to discard
                assert what == "discard" and not other.requests()
            os._exit(0)
        return os.waitpid(pid, 0)[1]

    for last in range(200):
        status = child(last)
        fresh = KeyVault.open(root)
        assert fresh.damaged() == [], (last, fresh.damaged())
        certificates = fresh.certificates("a@b.example", KeyUse.SIGNING)
        assert first.certificate in certificates and set(certificates) <= {first.certificate, second}, last
        signer = fresh.signer("a@b.example")
        if signer is not None:
            signature = signer.sign(b"x", SHA256())
            signer.certificate.public_key().verify(signature, b"x", ec.ECDSA(SHA256()))
        else:
            assert what == "retire"
        if what == "install":
            assert (second in certificates) or waiting.id in {each.id for each in fresh.requests()}, last
        if status == 0:
            break
        assert os.WIFSIGNALED(status), (last, status)
    assert status == 0 and last > 3, last
    if what == "install":
        assert second in certificates and fresh.requests() == []
    print(what, last)
"""


@pytest.mark.parametrize("what", ["install", "rotate", "retire", "discard"])
def test_killed_at_every_step(what, tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(_KILLED), str(tmp_path / "vault"), what],
        check=False,
        capture_output=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]


# --- several at once --------------------------------------------------------------------------------------------------


_ANOTHER = """
    import sys
    from pathlib import Path
    from cryptography import x509
    from trust.generations import KeyUse
    from trust.softkeys import KeyKind
    from trust.vault import KeyVault
    vault = KeyVault.open(Path(sys.argv[1]))
    certificates = x509.load_pem_x509_certificates(Path(sys.argv[2]).read_bytes())
    sys.stdin.readline()
    for certificate in certificates:
        vault.install_certificates([certificate])
    for number in range(5):
        vault.request(f"{sys.argv[3]}{number}@b.example", KeyUse.SIGNING, KeyKind.P256)
"""


def test_two_processes_at_once(vault, tmp_path) -> None:
    requests = [vault.request(f"m{number}@b.example", KeyUse.SIGNING, KeyKind.P256) for number in range(6)]
    pem = tmp_path / "certificates.pem"
    pem.write_bytes(b"".join(AUTHORITY.answer(each.request).public_bytes(Encoding.PEM) for each in requests))
    command = [sys.executable, "-P", "-c", textwrap.dedent(_ANOTHER), str(tmp_path / "vault"), str(pem)]
    others = [
        subprocess.Popen(
            [*command, f"p{number}-"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for number in range(2)
    ]
    for each in others:
        each.stdin.write(b"\n")
        each.stdin.flush()
    for each in others:
        _, errors = each.communicate(timeout=60)
        assert each.returncode == 0, errors.decode()[-2000:]
    assert vault.damaged() == []
    assert len(vault.generations()) == 6
    assert len(vault.requests()) == 10


def test_threads_make_one_vault(tmp_path) -> None:
    start = threading.Barrier(6)

    def create(_: int) -> bool:
        start.wait(10)
        try:
            KeyVault.create(tmp_path / "vault")
        except VaultError:
            return False
        return True

    with ThreadPoolExecutor(6) as threads:
        assert sum(threads.map(create, range(6))) == 1
    KeyVault.open(tmp_path / "vault")


# --- the key-encryption key -------------------------------------------------------------------------------------------


def test_the_key_encryption_key_from_systemd(tmp_path, monkeypatch) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir(mode=0o700)
    (credentials / "relais-kek").write_bytes(os.urandom(32))
    (credentials / "relais-kek").chmod(0o440)  # the mask of systemd's access list
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    assert not KeyVault.exists(tmp_path / "vault")
    vault = KeyVault.create(tmp_path / "vault")
    assert not (tmp_path / "vault/kek").exists()
    assert KeyVault.exists(tmp_path / "vault")
    generation = installed(vault)
    assert KeyVault.open(tmp_path / "vault").signer(ADDRESS).certificate == generation.certificate
    with pytest.raises(VaultError, match="already a vault"):
        KeyVault.create(tmp_path / "vault")
    (credentials / "relais-kek").chmod(0o444)
    with pytest.raises(VaultError, match="others can read the key-encryption key"):
        KeyVault.open(tmp_path / "vault")
    (credentials / "relais-kek").chmod(0o400)
    (credentials / "relais-kek").unlink()
    (credentials / "relais-kek").touch(mode=0o600)
    (credentials / "relais-kek").write_bytes(os.urandom(32))
    with pytest.raises(VaultError, match="not the key this vault was made with"):
        KeyVault.open(tmp_path / "vault")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    with pytest.raises(VaultError, match="cannot be read"):
        KeyVault.open(tmp_path / "vault")


def test_a_vault_made_with_a_file_moves_to_a_credential(vault, tmp_path, monkeypatch) -> None:
    installed(vault)
    (tmp_path / "credentials").mkdir()
    (tmp_path / "vault/kek").rename(tmp_path / "credentials/relais-kek")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    assert KeyVault.open(tmp_path / "vault").signer(ADDRESS) is not None


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_vault_others_can_change_is_refused(vault, tmp_path, mode) -> None:
    (tmp_path / "vault").chmod(mode)
    with pytest.raises(VaultError, match="chmod 700"):
        KeyVault.open(tmp_path / "vault")


def test_everything_is_private(vault, tmp_path) -> None:
    installed(vault)
    vault.request(ADDRESS, KeyUse.SIGNING, KeyKind.P256)
    for path in (tmp_path / "vault", *(tmp_path / "vault").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
        assert "190037512345677" not in str(path)
        if path.is_file():
            assert b"190037512345677" not in path.read_bytes()


def test_nothing_shows_whose_or_which_key_it_is(vault) -> None:
    generation = installed(vault)
    request = vault.request(ADDRESS, KeyUse.SIGNING, KeyKind.P256)
    for each in (vault, vault.signer(ADDRESS), generation, request, vault.signer(ADDRESS).key):
        assert "190037512345677" not in repr(each)
