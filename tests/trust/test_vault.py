"""Keys at rest, and what each may be used for."""

import stat
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding, rsa, x25519
from cryptography.hazmat.primitives.hashes import SHA1, SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from trust.generations import KeyFile
from trust.vault import KeyUse, KeyVault, VaultError

NOW = datetime.now(UTC).replace(microsecond=0)
PATIENT = "190037512345677@patient.example"
RSA_KEY = rsa.generate_private_key(65537, 2048)
OTHER_RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def certificate(
    key, since=-1, until=365, *, signing=True, encryption=True, agreement=False, usage=True, signed_by=None
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Fictif")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + timedelta(days=since))
        .not_valid_after(NOW + timedelta(days=until))
    )
    if usage:
        bits = dict.fromkeys(("content_commitment", "data_encipherment", "key_cert_sign", "crl_sign"), False)
        bits |= {"key_agreement": agreement, "encipher_only": False, "decipher_only": False}
        builder = builder.add_extension(
            x509.KeyUsage(digital_signature=signing, key_encipherment=encryption, **bits), critical=True
        )
    signer = signed_by or key
    return builder.sign(signer, None if isinstance(signer, ed25519.Ed25519PrivateKey) else SHA256())


@pytest.fixture
def vault(tmp_path):
    return KeyVault.create(tmp_path / "vault")


def reopened(tmp_path) -> KeyVault:
    return KeyVault.open(tmp_path / "vault")


def test_wrap(vault, tmp_path) -> None:
    dek = bytes(range(32))
    wrapped = vault.wrap(dek)
    assert dek not in wrapped
    assert reopened(tmp_path).unwrap(wrapped) == dek
    for broken in (b"", wrapped[:-1], wrapped[:-1] + bytes([wrapped[-1] ^ 1]), wrapped + b"\0" * 8):
        with pytest.raises(VaultError):
            vault.unwrap(broken)
    with pytest.raises(VaultError):
        KeyVault.create(tmp_path / "other").unwrap(wrapped)


def test_seal(vault, tmp_path) -> None:
    sealed = vault.seal(b"Durand-Fictif", b"row 1")
    assert sealed != vault.seal(b"Durand-Fictif", b"row 1")
    assert len(sealed) == len("Durand-Fictif") + 41
    assert reopened(tmp_path).unseal(sealed, b"row 1") == b"Durand-Fictif"
    with pytest.raises(VaultError):
        vault.unseal(sealed, b"row 2")
    for position in range(len(sealed)):
        altered = bytearray(sealed)
        altered[position] ^= 1
        with pytest.raises(VaultError):
            vault.unseal(bytes(altered), b"row 1")
        with pytest.raises(VaultError):
            vault.unseal(sealed[:position], b"row 1")


def test_pseudonym(vault, tmp_path) -> None:
    one = vault.pseudonym("patient", "190037512345677", "1.2.250.1.213.1.4.8")
    assert one == reopened(tmp_path).pseudonym("patient", "190037512345677", "1.2.250.1.213.1.4.8")
    assert len(bytes.fromhex(one)) == 32
    different = {
        one,
        vault.pseudonym("patient", "190037512345677"),
        vault.pseudonym("patient", "1900375123456771.2.250.1.213.1.4.8"),
        vault.pseudonym("patient", "190037512345677", "1.2.250.1.213.1.4.8", ""),
        vault.pseudonym("patient1", "90037512345677", "1.2.250.1.213.1.4.8"),
        vault.pseudonym("document", "190037512345677", "1.2.250.1.213.1.4.8"),
        KeyVault.create(tmp_path / "other").pseudonym("patient", "190037512345677", "1.2.250.1.213.1.4.8"),
        vault.pseudonym("patient", "\udc80"),
    }
    assert len(different) == 8


def test_modes(vault, tmp_path) -> None:
    vault.install(PATIENT, KeyUse.SIGNING, RSA_KEY, certificate(RSA_KEY), [])
    for path in (tmp_path / "vault", *(tmp_path / "vault").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    assert len((tmp_path / "vault/kek").read_bytes()) == 32


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_readable_key_file_is_refused(vault, tmp_path, mode) -> None:
    (tmp_path / "vault/kek").chmod(mode)
    with pytest.raises(VaultError, match="chmod 600"):
        reopened(tmp_path)


def test_what_cannot_be_opened(vault, tmp_path) -> None:
    with pytest.raises(VaultError, match="already"):
        KeyVault.create(tmp_path / "vault")
    with pytest.raises(VaultError, match="No such file"):
        KeyVault.open(tmp_path / "nowhere")
    (tmp_path / "vault/kek").write_bytes(bytes(32))
    with pytest.raises(VaultError, match="not the key this vault was made with"):
        reopened(tmp_path)
    (tmp_path / "vault/kek").write_bytes(bytes(33))
    with pytest.raises(VaultError, match="exactly 32 bytes"):
        reopened(tmp_path)


@pytest.mark.parametrize("algorithm", [SHA256(), SHA384(), SHA512()], ids=lambda each: each.name)
def test_signing(vault, tmp_path, algorithm) -> None:
    issuer = certificate(OTHER_RSA_KEY)
    for address, key in (("rsa@cabinet.example", RSA_KEY), ("ec@cabinet.example", EC_KEY)):
        vault.install(address, KeyUse.SIGNING, key, certificate(key), [issuer])
        signer = reopened(tmp_path).signer(address.upper())
        assert signer.chain == (issuer,)
        signature = signer.sign(b"content", algorithm)
        public = signer.certificate.public_key()
        arguments = (padding.PKCS1v15(), algorithm) if key is RSA_KEY else (ec.ECDSA(algorithm),)
        public.verify(signature, b"content", *arguments)
        with pytest.raises(InvalidSignature):
            public.verify(signature, b"Content", *arguments)
        assert vault.decryptors(address) == ()


def test_pss(vault) -> None:
    vault.install(PATIENT, KeyUse.SIGNING, RSA_KEY, certificate(RSA_KEY), [])
    signature = vault.signer(PATIENT).sign_pss(b"content", SHA384())
    RSA_KEY.public_key().verify(signature, b"content", padding.PSS(padding.MGF1(SHA384()), 48), SHA384())
    vault.install("ec@cabinet.example", KeyUse.SIGNING, EC_KEY, certificate(EC_KEY), [])
    with pytest.raises(ValueError):
        vault.signer("ec@cabinet.example").sign_pss(b"content", SHA256())


def test_edwards_and_montgomery(vault, tmp_path) -> None:
    edwards, montgomery = ed25519.Ed25519PrivateKey.generate(), x25519.X25519PrivateKey.generate()
    vault.install(PATIENT, KeyUse.SIGNING, edwards, certificate(edwards), [])
    edwards.public_key().verify(reopened(tmp_path).signer(PATIENT).sign(b"content", SHA512()), b"content")
    bound = certificate(montgomery, signing=False, encryption=False, agreement=True, signed_by=RSA_KEY)
    vault.install(PATIENT, KeyUse.ENCRYPTION, montgomery, bound, [])
    (decryptor,) = reopened(tmp_path).decryptors(PATIENT)
    peer = x25519.X25519PrivateKey.generate()
    assert decryptor.agree(peer.public_key().public_bytes_raw()) == peer.exchange(montgomery.public_key())
    for wrong in (b"", bytes(31), bytes(32), bytes(33)):
        with pytest.raises(ValueError, match=r"^key agreement failed$"):
            decryptor.agree(wrong)


@pytest.mark.parametrize("curve", [ec.BrainpoolP256R1, ec.BrainpoolP384R1, ec.BrainpoolP512R1, ec.SECP521R1])
def test_other_curves(vault, curve) -> None:
    key, peer = ec.generate_private_key(curve()), ec.generate_private_key(curve())
    for use in KeyUse:
        vault.install(PATIENT, use, key, certificate(key, agreement=True), [])
    key.public_key().verify(vault.signer(PATIENT).sign(b"content", SHA512()), b"content", ec.ECDSA(SHA512()))
    point = peer.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    assert vault.decryptors(PATIENT)[0].agree(point) == peer.exchange(ec.ECDH(), key.public_key())


def test_the_newest_valid_generation_signs_and_expired_ones_never(vault) -> None:
    address = "medecin@cabinet.example"
    expired = certificate(RSA_KEY, -800, -10)
    current = certificate(RSA_KEY, -400, 30)
    newer = certificate(OTHER_RSA_KEY, -5, 700)
    future = certificate(EC_KEY, 5, 900)
    assert vault.signer(address) is None
    vault.install(address, KeyUse.SIGNING, RSA_KEY, expired, [])
    assert vault.signer(address) is None
    vault.install(address, KeyUse.SIGNING, OTHER_RSA_KEY, newer, [])
    vault.install(address, KeyUse.SIGNING, RSA_KEY, current, [])
    vault.install(address, KeyUse.SIGNING, EC_KEY, future, [])
    assert vault.signer(address).certificate == newer
    assert vault.signer(address, NOW - timedelta(days=100)).certificate == current
    assert vault.signer(address, NOW - timedelta(days=500)).certificate == expired
    assert vault.signer(address, NOW + timedelta(days=100)).certificate == future
    assert vault.signer(address, NOW + timedelta(days=1000)) is None
    assert vault.certificates(address, KeyUse.SIGNING) == (future, newer, current, expired)


def test_decryption_by_every_generation(vault) -> None:
    address = PATIENT
    vault.install(address, KeyUse.ENCRYPTION, RSA_KEY, certificate(RSA_KEY, -800, -10), [])
    vault.install(address, KeyUse.ENCRYPTION, OTHER_RSA_KEY, certificate(OTHER_RSA_KEY, -20, 300), [])
    newest, oldest = vault.decryptors(address)
    assert vault.signer(address) is None
    dek = bytes(range(32))
    for decryptor, key in ((newest, OTHER_RSA_KEY), (oldest, RSA_KEY)):
        assert decryptor.certificate.public_key() == key.public_key()
        for algorithm, mgf, label in ((SHA256(), SHA256(), b""), (SHA256(), SHA1(), b""), (SHA1(), SHA1(), b"L")):
            oaep = padding.OAEP(padding.MGF1(mgf), algorithm, label or None)
            encrypted = key.public_key().encrypt(dek, oaep)
            assert decryptor.decrypt_oaep(encrypted, algorithm, mgf, label) == dek
            texts = set()
            for wrong in (encrypted[:-1], b"", b"\xff" * 256, bytes([encrypted[0] ^ 1]) + encrypted[1:]):
                with pytest.raises(ValueError) as failure:
                    decryptor.decrypt_oaep(wrong, algorithm, mgf, label)
                texts.add(str(failure.value))
            with pytest.raises(ValueError, match="decryption failed"):
                decryptor.decrypt_oaep(encrypted, algorithm, mgf, b"other label")
            assert texts == {"decryption failed"}
        encrypted = key.public_key().encrypt(dek, padding.PKCS1v15())
        assert decryptor.decrypt_pkcs1v15(encrypted) == dek
        for wrong in (b"", encrypted[:-1], b"\xff" * 256, b"\1" * 256, bytes([encrypted[0] ^ 1]) + encrypted[1:]):
            assert decryptor.decrypt_pkcs1v15(wrong) != dek


def test_installing_again_changes_nothing_and_other_processes_see_it(vault, tmp_path) -> None:
    neighbour = reopened(tmp_path)
    assert neighbour.signer(PATIENT) is None
    mine = certificate(RSA_KEY)
    vault.install(PATIENT, KeyUse.SIGNING, RSA_KEY, mine, [])
    vault.install(PATIENT.upper(), KeyUse.SIGNING, RSA_KEY, mine, [])
    assert neighbour.signer(PATIENT).certificate == mine
    assert vault.certificates(PATIENT, KeyUse.SIGNING) == (mine,)


def test_unfit_keys_are_refused(vault) -> None:
    def refused(use, key, cert, why):
        with pytest.raises(VaultError, match=why):
            vault.install(PATIENT, use, key, cert, [])

    refused(KeyUse.SIGNING, RSA_KEY, certificate(OTHER_RSA_KEY), "does not belong")
    refused(KeyUse.SIGNING, RSA_KEY, certificate(RSA_KEY, signing=False), "KeyUsage")
    refused(KeyUse.ENCRYPTION, RSA_KEY, certificate(RSA_KEY, encryption=False), "KeyUsage")
    refused(KeyUse.ENCRYPTION, EC_KEY, certificate(EC_KEY), "KeyUsage")
    edwards, montgomery = ed25519.Ed25519PrivateKey.generate(), x25519.X25519PrivateKey.generate()
    refused(KeyUse.SIGNING, edwards, certificate(RSA_KEY), "does not belong")
    refused(KeyUse.ENCRYPTION, edwards, certificate(edwards, agreement=True), "not for encryption")
    refused(KeyUse.SIGNING, montgomery, certificate(montgomery, signed_by=RSA_KEY), "not for signing")
    refused(KeyUse.SIGNING, dsa.generate_private_key(2048), certificate(RSA_KEY), "only RSA")
    assert vault.addresses_held() == ()
    vault.install(PATIENT, KeyUse.ENCRYPTION, RSA_KEY, certificate(RSA_KEY, usage=False), [])


def test_names_and_files_say_nothing_of_the_patient(vault, tmp_path) -> None:
    vault.install(PATIENT, KeyUse.SIGNING, RSA_KEY, certificate(RSA_KEY), [])
    for path in (tmp_path / "vault").rglob("*"):
        assert "190037512345677" not in str(path)
        if path.is_file():
            content = path.read_bytes()
            assert b"190037512345677" not in content
            assert b"Fictif" not in content
            assert RSA_KEY.private_numbers().p.to_bytes(128, "big") not in content


def test_altered_and_moved_key_files_are_refused(vault, tmp_path) -> None:
    vault.install("a@cabinet.example", KeyUse.SIGNING, RSA_KEY, certificate(RSA_KEY), [])
    vault.install("b@cabinet.example", KeyUse.SIGNING, OTHER_RSA_KEY, certificate(OTHER_RSA_KEY), [])
    one, other = (path for path in (tmp_path / "vault/keys").rglob("*") if path.is_file())
    intact = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    for address in ("a@cabinet.example", "b@cabinet.example"):
        with pytest.raises(VaultError):
            reopened(tmp_path).signer(address)


def test_for_the_doctor(vault) -> None:
    soon, late, replaced = certificate(RSA_KEY, -9, 20), certificate(RSA_KEY, -9, 300), certificate(RSA_KEY, -300, 10)
    vault.install(PATIENT, KeyUse.SIGNING, RSA_KEY, soon, [])
    vault.install("b@cabinet.example", KeyUse.ENCRYPTION, RSA_KEY, late, [])
    vault.install("b@cabinet.example", KeyUse.ENCRYPTION, RSA_KEY, replaced, [])
    assert vault.addresses_held() == (PATIENT, "b@cabinet.example")
    assert vault.expiring(NOW + timedelta(days=30)) == [
        (f"signing certificate {soon.serial_number:x}", soon.not_valid_after_utc)
    ]


def test_an_elliptic_curve_key_agrees_and_does_nothing_else(vault) -> None:
    vault.install(PATIENT, KeyUse.ENCRYPTION, EC_KEY, certificate(EC_KEY, agreement=True), [])
    (held,) = vault.decryptors(PATIENT)
    peer = ec.generate_private_key(ec.SECP256R1())
    point = peer.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    assert held.agree(point) == peer.exchange(ec.ECDH(), EC_KEY.public_key())
    off_the_curve = point[:-1] + bytes([point[-1] ^ 1])
    other_curve = ec.generate_private_key(ec.SECP384R1()).public_key()
    for wrong in (
        b"",
        b"\0",
        off_the_curve,
        point + b"\0",
        other_curve.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint),
    ):
        with pytest.raises(ValueError, match=r"^key agreement failed$"):
            held.agree(wrong)
    with pytest.raises(ValueError, match=r"^decryption failed$"):
        held.decrypt_oaep(b"x" * 256, SHA256(), SHA256(), b"")
    assert len(held.decrypt_pkcs1v15(b"x" * 256)) == 32


def test_an_rsa_key_does_not_agree(vault) -> None:
    vault.install(PATIENT, KeyUse.ENCRYPTION, RSA_KEY, certificate(RSA_KEY), [])
    with pytest.raises(ValueError, match=r"^key agreement failed$"):
        vault.decryptors(PATIENT)[0].agree(b"\4" + bytes(64))


def test_a_key_file_does_not_show_what_it_holds() -> None:
    shown = repr(KeyFile(PATIENT, KeyUse.SIGNING, b"private", (b"certificate",)))
    assert shown == "KeyFile(use=KeyUse.SIGNING)"
