"""The key-encryption key: read with care, replaced while others work, killed at every step."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.trust.certificate_authority import NOW, Authority
from trust.generations import KeyUse
from trust.keycheck import check_vault
from trust.secret_files import SecretFileError, read_secret
from trust.softkeys import KeyKind
from trust.vault import KeyVault, VaultError

ADDRESS = "medecin@cabinet.example"
ROOT = Path(__file__).parents[2]
AUTHORITY = Authority()


@pytest.fixture
def vault(tmp_path):
    return KeyVault.create(tmp_path / "vault")


def installed(vault, address=ADDRESS):
    request = vault.request(address, KeyUse.SIGNING, KeyKind.P256)
    (generation,) = vault.install_certificates([AUTHORITY.answer(request.request)])
    return generation


# --- read with care ---------------------------------------------------------------------------------------------------


def test_a_secret_is_no_link_and_no_pipe(tmp_path) -> None:
    real = tmp_path / "real"
    real.touch(mode=0o600)
    real.write_bytes(b"secret")
    (tmp_path / "link").symlink_to(real)
    with pytest.raises(SecretFileError, match="is a link: put the file itself there"):
        read_secret(tmp_path / "link", "the key")
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(SecretFileError, match="is no ordinary file"):
        read_secret(tmp_path / "pipe", "the key")
    with pytest.raises(SecretFileError, match="Is a directory"):
        read_secret(tmp_path, "the key")
    assert read_secret(real, "the key") == b"secret"


def test_a_secret_others_could_replace(tmp_path) -> None:
    place = tmp_path / "place"
    place.mkdir(mode=0o700)
    (place / "pin").touch(mode=0o600)
    for mode in (0o770, 0o702):
        place.chmod(mode)
        with pytest.raises(SecretFileError, match=f"others could replace the PIN: run chmod go-w {place}"):
            read_secret(place / "pin", "the PIN")
    place.chmod(0o1777)  # where nobody removes what is another's
    assert read_secret(place / "pin", "the PIN") == b""


def test_one_sentence_for_whatever_is_wrong_with_the_key(vault, tmp_path) -> None:
    kek = tmp_path / "vault/kek"
    content = kek.read_bytes()

    def said() -> str:
        with pytest.raises(VaultError) as failure:
            KeyVault.open(tmp_path / "vault")
        assert "\n" not in str(failure.value)
        assert content.hex() not in str(failure.value)
        return str(failure.value)

    kek.unlink()
    assert "systemd-run" in said()
    kek.symlink_to(tmp_path / "nowhere")
    assert "is a link" in said()
    kek.unlink()
    kek.touch(mode=0o600)
    assert "exactly 32 bytes" in said()
    kek.write_bytes(content + b"\n")
    assert "exactly 32 bytes" in said()
    kek.write_bytes(os.urandom(32))
    assert "not the key this vault was made with" in said()
    kek.write_bytes(content)
    KeyVault.open(tmp_path / "vault")


def test_a_vault_whose_key_is_elsewhere_is_never_made_anew(vault, tmp_path) -> None:
    generation = installed(vault)
    (tmp_path / "vault/kek").rename(tmp_path / "aside")
    with pytest.raises(VaultError, match="already a vault"):
        KeyVault.create(tmp_path / "vault")
    (tmp_path / "aside").rename(tmp_path / "vault/kek")
    assert KeyVault.open(tmp_path / "vault").signer(ADDRESS).certificate == generation.certificate


# --- replaced ---------------------------------------------------------------------------------------------------------


def sealed_things(vault) -> tuple[bytes, bytes, str]:
    return vault.wrap(b"k" * 32), vault.seal(b"name", b"row"), vault.pseudonym("patient", "1")


def opens(vault, things) -> None:
    wrapped, sealed, pseudonym = things
    assert vault.unwrap(wrapped) == b"k" * 32
    assert vault.unseal(sealed, b"row") == b"name"
    assert vault.pseudonym("patient", "1") == pseudonym


def test_another_key_opens_everything_and_the_old_one_nothing(vault, tmp_path) -> None:
    old = (tmp_path / "vault/kek").read_bytes()
    first = installed(vault)
    waiting = vault.rotate(ADDRESS, KeyUse.SIGNING)
    things = [sealed_things(vault)]
    before = {path: path.read_bytes() for path in (tmp_path / "vault/keys").rglob("*") if path.is_file()}
    for _ in range(3):
        assert vault.renew_key() == 2
        things.append(sealed_things(vault))
        fresh = KeyVault.open(tmp_path / "vault")
        for each in things:
            opens(fresh, each)
            opens(vault, each)
        assert fresh.signer(ADDRESS).certificate == first.certificate
        assert fresh.damaged() == []
        assert [each.id for each in fresh.requests()] == [waiting.id]
        assert check_vault(fresh, NOW, None) == check_vault(vault, NOW, None)
        assert not fresh.has_two_keys
    assert all(path.read_bytes() != content for path, content in before.items())
    kek = tmp_path / "vault/kek"
    kek.write_bytes(old)
    with pytest.raises(VaultError, match="not the key this vault was made with"):
        KeyVault.open(tmp_path / "vault")
    (tmp_path / "vault/ring").unlink()  # going back to before the ring does not open what was sealed since
    with pytest.raises(VaultError):
        KeyVault.open(tmp_path / "vault").unwrap(things[-1][0])


def test_who_has_the_old_key_does_not_open_mailboxes_keys_sealed_since(vault, tmp_path) -> None:
    installed(vault)
    stolen = (tmp_path / "vault/kek").read_bytes()
    vault.renew_key()
    for file in (tmp_path / "vault/keys").rglob("*"):
        if file.is_file():
            from trust.sealed_keys import _file_context
            from trust.sealing import Sealing

            with pytest.raises(VaultError):
                Sealing([stolen]).unseal(file.read_bytes(), _file_context(file))


def test_a_running_gateway_goes_on(vault, tmp_path) -> None:
    gateway = KeyVault.open(tmp_path / "vault")
    first = installed(vault)
    assert gateway.signer(ADDRESS).certificate == first.certificate
    KeyVault.open(tmp_path / "vault").renew_key()
    assert gateway.signer(ADDRESS).certificate == first.certificate
    assert gateway.damaged() == []
    KeyVault.open(tmp_path / "vault").renew_key()
    second = installed(KeyVault.open(tmp_path / "vault"))
    assert second.certificate in gateway.certificates(ADDRESS, KeyUse.SIGNING)
    opens(gateway, sealed_things(KeyVault.open(tmp_path / "vault")))


def test_a_retired_key_stays_retired_for_who_knows_the_old_key_only(vault, tmp_path) -> None:
    generation = installed(vault)
    late = KeyVault.open(tmp_path / "vault")
    vault.retire(generation.id)
    KeyVault.open(tmp_path / "vault").renew_key()
    late.install_certificates([generation.certificate, AUTHORITY.intermediate])
    assert late.signer(ADDRESS) is None
    assert KeyVault.open(tmp_path / "vault").signer(ADDRESS) is None


def test_what_systemd_has_is_handed_over(tmp_path, monkeypatch) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir(mode=0o700)
    file = credentials / "relais-kek"
    file.touch(mode=0o600)
    file.write_bytes(os.urandom(32))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    vault = KeyVault.create(tmp_path / "vault")
    generation = installed(vault)
    things = sealed_things(vault)
    with pytest.raises(VaultError, match="say in which file"):
        vault.renew_key()
    assert vault.renew_key(tmp_path / "new") == 1
    with pytest.raises(VaultError, match="name a new file"):
        vault.renew_key(tmp_path / "new")
    assert not (tmp_path / "vault/kek").exists()
    old = file.read_bytes()
    for key in (old, (tmp_path / "new").read_bytes()):  # both, until systemd has the new one
        file.write_bytes(key)
        fresh = KeyVault.open(tmp_path / "vault")
        opens(fresh, things)
        assert fresh.signer(ADDRESS).certificate == generation.certificate
        assert "two-keys" in {each.code for each in check_vault(fresh, NOW, None)}
    fresh.forget_old_key()
    opens(KeyVault.open(tmp_path / "vault"), things)
    file.write_bytes(old)
    with pytest.raises(VaultError, match="not the key"):
        KeyVault.open(tmp_path / "vault")


@pytest.mark.parametrize("content", [b"", b"\0", b"\x92\x01\x90", os.urandom(200), b"\x92\x01\x91\xc4\x01\x00"])
def test_a_damaged_ring(vault, tmp_path, content) -> None:
    vault.renew_key()
    (tmp_path / "vault/ring").write_bytes(content)
    with pytest.raises(VaultError):
        KeyVault.open(tmp_path / "vault")


_KILLED = """
    import os, signal, sys
    from pathlib import Path
    from tests.trust.certificate_authority import Authority
    from trust.generations import KeyUse
    from trust.softkeys import KeyKind
    from trust.vault import KeyVault

    root = Path(sys.argv[1])
    vault = KeyVault.create(root)
    request = vault.request("a@b.example", KeyUse.SIGNING, KeyKind.P256)
    (first,) = vault.install_certificates([Authority().answer(request.request)])
    waiting = vault.rotate("a@b.example", KeyUse.SIGNING)
    wrapped = vault.wrap(b"k" * 32)
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
            other.renew_key()
            os._exit(0)
        return os.waitpid(pid, 0)[1]

    for last in range(200):
        status = child(last)
        fresh = KeyVault.open(root)
        for each in (vault, fresh):
            assert each.damaged() == [], (last, each.damaged())
            assert each.unwrap(wrapped) == b"k" * 32
            assert each.signer("a@b.example").certificate == first.certificate
            assert [one.id for one in each.requests()] == [waiting.id]
        if status == 0:
            break
        assert os.WIFSIGNALED(status), (last, status)
    assert status == 0 and last > 10, last
    assert not fresh.has_two_keys
"""


def test_killed_at_every_step(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(_KILLED), str(tmp_path / "vault")],
        check=False,
        capture_output=True,
        timeout=100,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]


def test_one_who_was_killed_before_the_new_key_was_in_place(vault, tmp_path) -> None:
    installed(vault)
    (tmp_path / "vault/kek.new").touch(mode=0o600)
    assert "two-keys" in {each.code for each in check_vault(vault, NOW, None)}
    vault.forget_old_key()
    assert not (tmp_path / "vault/kek.new").exists()
    assert KeyVault.open(tmp_path / "vault").signer(ADDRESS) is not None
