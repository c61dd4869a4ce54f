"""Files people bring: what is in them, told in one sentence whatever they are called."""

import base64
import subprocess
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    pkcs7,
    pkcs12,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trust.certificate_authority import Authority
from trust import der
from trust.generations import KeyUse
from trust.keyfiles import (
    KeyFileError,
    PassphraseError,
    kind_of_file,
    read_certificates,
    read_key_pair,
    read_key_pairs,
    read_keys,
    unreadable,
)
from trust.vault import KeyVault

ADDRESS = "medecin@cabinet.example"
AUTHORITY = Authority()
KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)
CERTIFICATE = AUTHORITY.issue(KEY, ADDRESS)
DER = CERTIFICATE.public_bytes(Encoding.DER)
PEM = CERTIFICATE.public_bytes(Encoding.PEM)
CHAIN = [AUTHORITY.root, AUTHORITY.intermediate]
FORMATS = {
    "pkcs8": PrivateFormat.PKCS8,
    "traditional": PrivateFormat.TraditionalOpenSSL,
}
PASSPHRASE = "épreuve"


def p12(passphrase=PASSPHRASE, key=KEY, certificate=CERTIFICATE, others=CHAIN) -> bytes:
    encryption = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    return pkcs12.serialize_key_and_certificates(b"name", key, certificate, others, encryption)


def test_a_p12() -> None:
    pair = read_key_pair(p12(), PASSPHRASE.encode())
    assert pair.key.private_numbers() == KEY.private_numbers()
    assert pair.certificate == CERTIFICATE
    assert pair.chain == (AUTHORITY.intermediate,)
    assert read_key_pair(p12(""), None).certificate == CERTIFICATE
    with pytest.raises(PassphraseError, match="needs its passphrase"):
        read_key_pair(p12(), None)
    for wrong in (b"", b"wrong"):
        with pytest.raises(PassphraseError):
            read_key_pair(p12(), wrong)


def test_a_p12_of_openssl_in_old_and_new_form(tmp_path) -> None:
    (tmp_path / "key").write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "cert").write_bytes(PEM)
    for options in ([], ["-legacy"]):
        command = ["openssl", "pkcs12", "-export", "-inkey", "key", "-in", "cert", "-passout", "pass:secret", *options]
        made = subprocess.run(command, check=True, capture_output=True, cwd=tmp_path).stdout
        assert kind_of_file(made) == "a P12 file"
        assert read_key_pair(made, b"secret").certificate == CERTIFICATE
        with pytest.raises(PassphraseError):
            read_key_pair(made, b"wrong")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("passphrase", [None, b"secret"])
def test_a_pem_with_both(form, passphrase) -> None:
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    key = KEY.private_bytes(Encoding.PEM, FORMATS[form], encryption)
    intermediate = AUTHORITY.intermediate.public_bytes(Encoding.PEM)
    for content in (key + PEM + intermediate, PEM + intermediate + key):
        pair = read_key_pair(content, passphrase)
        assert pair.certificate == CERTIFICATE
        assert pair.chain == (AUTHORITY.intermediate,)
    if passphrase:
        for wrong in (None, b"wrong"):
            with pytest.raises(PassphraseError):
                read_key_pair(key + PEM, wrong)


def private_keys() -> list[bytes]:
    found = []
    for key in (KEY, RSA_KEY):
        for form in FORMATS.values():
            for encoding in (Encoding.PEM, Encoding.DER):
                found.append(key.private_bytes(encoding, form, NoEncryption()))
        found.append(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
        found.append(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    found.append(KEY.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"secret")))
    return found


@pytest.mark.parametrize("content", private_keys(), ids=lambda each: "key")
def test_a_private_key_is_never_a_certificate_whatever_its_name(content) -> None:
    assert kind_of_file(content) == "a private key"
    with pytest.raises(KeyFileError, match="is a private key, not a certificate"):
        read_certificates(content)
    with pytest.raises(KeyFileError):
        read_key_pair(content, b"secret" if b"ENCRYPTED" in content else None)
    if content[:1] == b"\x30":
        for end in (60, len(content) // 2, len(content) - 1):
            assert kind_of_file(content[:end]) == "a private key"


def test_certificates_in_every_form() -> None:
    everything = [CERTIFICATE, AUTHORITY.intermediate]
    pem = b"".join(each.public_bytes(Encoding.PEM) for each in everything)
    assert read_certificates(DER) == [CERTIFICATE]
    assert read_certificates(b"Bag Attributes\n  friendlyName: x\n" + pem) == everything
    for encoding in (Encoding.DER, Encoding.PEM):
        assert set(read_certificates(pkcs7.serialize_certificates(everything, encoding))) == set(everything)


REQUEST = x509.CertificateSigningRequestBuilder().subject_name(CERTIFICATE.subject).sign(RSA_KEY, SHA256())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (DER[:-1], "is cut short"),
        (DER[:40], "is cut short"),
        (PEM[:-30], "is a truncated PEM file"),
        (b"hello", "holds no certificate"),
        (b"\x30\x03\x02\x01\x05", "holds no certificate"),
        (p12(), "is a P12 file, not a certificate"),
        (REQUEST.public_bytes(Encoding.PEM), "is a certificate request"),
        (REQUEST.public_bytes(Encoding.DER), "is a certificate request"),
        (KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), "is a public key"),
        (PEM * 33, "more than 32 certificates"),
        (b"x" * (1 << 20) + b"y", "too large"),
    ],
    ids=lambda each: each if isinstance(each, str) else "file",
)
def test_what_is_no_certificate(content, said) -> None:
    with pytest.raises(KeyFileError, match=said) as failure:
        read_certificates(content)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (DER, "is a certificate, not a P12 file"),
        (PEM, "holds no private key"),
        (p12()[:-1], "is cut short"),
        (p12()[:100], "is cut short"),
        (b"hello", "cannot be read"),
        (p12(key=None, certificate=CERTIFICATE), "no private key"),
        (p12(key=dsa.generate_private_key(2048), certificate=None), "a kind that is not used for mail"),
        (p12(certificate=None, others=None), "without its certificate"),
        (KEY.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()), "without a certificate"),
        (
            KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            + AUTHORITY.root.public_bytes(Encoding.PEM),
            "without its certificate",
        ),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n" + PEM, "cannot be read"),
    ],
    ids=lambda each: each if isinstance(each, str) else "file",
)
def test_what_is_no_key_pair(content, said) -> None:
    with pytest.raises(KeyFileError, match=said):
        read_key_pair(content, PASSPHRASE.encode())


def altered(find: bytes, replace: bytes) -> bytes:
    assert DER.count(find) == 1
    return DER.replace(find, replace)


def test_certificates_that_break_the_standard() -> None:
    serial = CERTIFICATE.serial_number
    octets = (serial.bit_length() + 8) // 8
    encoded = bytes([2, octets]) + serial.to_bytes(octets, "big")
    negative = bytes([2, octets]) + b"\x80" + encoded[3:]
    zero = bytes([2, octets]) + bytes(octets)
    for other, said in ((negative, "not positive"), (zero, "not positive|cannot be read|no certificate")):
        with pytest.raises(KeyFileError, match=said):
            read_certificates(altered(encoded, other))
    begins, ends = CERTIFICATE.not_valid_before_utc, CERTIFICATE.not_valid_after_utc
    times = [b"\x17\x0d" + f"{each:%y%m%d%H%M%SZ}".encode() for each in (begins, ends)]
    with pytest.raises(KeyFileError, match="ends before it begins"):
        read_certificates(altered(times[0] + times[1], times[1] + times[0]))
    assert unreadable(CERTIFICATE) == ""


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_whatever_is_altered_the_answer_is_a_sentence(data) -> None:
    content = bytearray(data.draw(st.sampled_from([DER, PEM, p12(""), private_keys()[0], private_keys()[1]])))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(content)))
    for brought in (bytes(content), bytes(content[:end])):
        kind_of_file(brought)
        for read in (read_certificates, lambda each: read_key_pair(each, b"secret")):
            try:
                read(brought)
            except KeyFileError as error:
                assert 3 < len(str(error)) < 200


def test_an_imported_p12_signs_and_decrypts(tmp_path) -> None:
    vault = KeyVault.create(tmp_path / "vault")
    pair = read_key_pair(p12(), PASSPHRASE.encode())
    vault.install(ADDRESS, KeyUse.SIGNING, pair.key, pair.certificate, pair.chain)
    assert vault.signer(ADDRESS).chain == (AUTHORITY.intermediate,)


# --- what a passphrase costs, several keys, old and odd forms ---------------------------------------------------------


def openssl_p12(tmp_path, *options, passphrase="secret") -> bytes:
    (tmp_path / "key").write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "cert").write_bytes(PEM)
    command = ["openssl", "pkcs12", "-export", "-inkey", "key", "-in", "cert", "-passout", f"pass:{passphrase}"]
    command += options
    return subprocess.run(command, check=True, capture_output=True, cwd=tmp_path).stdout


@pytest.mark.parametrize(
    "options",
    [
        ("-legacy", "-certpbe", "PBE-SHA1-RC2-40", "-keypbe", "PBE-SHA1-RC2-40"),
        ("-legacy", "-certpbe", "PBE-SHA1-RC2-128"),
        ("-certpbe", "PBE-SHA1-3DES", "-keypbe", "PBE-SHA1-3DES"),
        ("-keypbe", "NONE", "-certpbe", "NONE"),
        ("-nomac",),
        ("-macalg", "sha512", "-iter", "100000"),
    ],
    ids=" ".join,
)
def test_a_p12_of_every_age(tmp_path, options) -> None:
    made = openssl_p12(tmp_path, *options)
    assert read_key_pair(made, b"secret").certificate == CERTIFICATE
    with pytest.raises(PassphraseError):
        read_key_pair(made, b"wrong")


def test_a_p12_with_an_empty_passphrase(tmp_path) -> None:
    for options in ((), ("-legacy",)):
        made = openssl_p12(tmp_path, *options, passphrase="")
        for given_ in (None, b""):
            assert read_key_pair(made, given_).certificate == CERTIFICATE


def test_a_p12_in_ber() -> None:
    plain = p12("")
    assert plain[1] == 0x82
    assert read_key_pair(b"\x30\x80" + plain[4:] + b"\0\0", None).certificate == CERTIFICATE


def der_of(load, content: bytes, change) -> bytes:
    parsed = load(content)
    change(parsed)
    return parsed.dump(force=True)


def test_a_file_whose_passphrase_takes_an_hour_is_refused_at_once() -> None:
    from asn1crypto import keys as asn1_keys
    from asn1crypto import pkcs12 as asn1_p12

    def mac(pfx) -> None:
        pfx["mac_data"]["iterations"] = 2**31 - 1

    def pbkdf2(info) -> None:
        info["encryption_algorithm"]["parameters"]["key_derivation_func"]["parameters"]["iteration_count"] = 2**31 - 1

    pkcs8 = KEY.private_bytes(Encoding.DER, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    costly = der_of(asn1_keys.EncryptedPrivateKeyInfo.load, pkcs8, pbkdf2)
    label = b"ENCRYPTED PRIVATE KEY"
    body = base64.encodebytes(costly)
    for content in (
        der_of(asn1_p12.Pfx.load, p12("secret"), mac),
        costly,
        b"-----BEGIN %b-----\n%b-----END %b-----\n%b" % (label, body, label, PEM),
        b"-----BEGIN %b-----\r\nX-Comment: a-b-c\r\n\r\n%b-----END %b-----\n%b" % (label, body, label, PEM),
    ):
        for passphrase in (None, b"secret"):
            begun = time.process_time()
            with pytest.raises(KeyFileError, match="demands too much work"):
                read_key_pair(content, passphrase)
            assert time.process_time() - begun < 1.0


def test_scrypt_that_wants_all_memory_is_refused() -> None:
    def scrypt(cost: int, block: int, parallel: int) -> bytes:
        parameters = der.sequence(der.octet_string(b"salt"), *map(der.integer, (cost, block, parallel)))
        function = der.sequence(der.oid("1.3.6.1.4.1.11591.4.11"), parameters)
        cipher = der.sequence(der.oid("2.16.840.1.101.3.4.1.42"), der.octet_string(bytes(16)))
        scheme = der.sequence(der.oid("1.2.840.113549.1.5.13"), der.sequence(function, cipher))
        return der.sequence(scheme, der.octet_string(bytes(48)))

    with pytest.raises(PassphraseError, match="does not open"):
        read_keys(scrypt(16384, 8, 1), b"secret")
    for cost in ((1 << 30, 8, 1), (2, 1 << 30, 1), (16384, 8, 1 << 20), (0, 8, 1)):
        with pytest.raises(KeyFileError, match="demands too much work"):
            read_keys(scrypt(*cost), b"secret")


def joined(*parts: bytes) -> bytes:
    """One P12, without a MAC, with the safes of several."""
    from asn1crypto import core
    from asn1crypto import pkcs12 as asn1_p12

    safes = [safe for part in parts for safe in asn1_p12.Pfx.load(part).authenticated_safe]
    content = core.OctetString(asn1_p12.AuthenticatedSafe(safes).dump())
    return asn1_p12.Pfx({"version": "v3", "auth_safe": {"content_type": "data", "content": content}}).dump()


def test_a_p12_with_several_keys_gives_them_all() -> None:
    other_key = ec.generate_private_key(ec.SECP256R1())
    other = AUTHORITY.issue(other_key, ADDRESS, signing=False)
    both = joined(p12("secret"), p12("secret", other_key, other, []))
    pairs = read_key_pairs(both, b"secret")
    assert {each.certificate for each in pairs} == {CERTIFICATE, other}
    assert all(each.key.public_key() == each.certificate.public_key() for each in pairs)
    assert all(each.chain == (AUTHORITY.intermediate,) for each in pairs)
    with pytest.raises(KeyFileError, match="several private keys"):
        read_key_pair(both, b"secret")
    for wrong in (None, b"wrong"):
        with pytest.raises(PassphraseError):
            read_key_pairs(both, wrong)
    form = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    pem = b"".join(each.private_bytes(*form) for each in (KEY, other_key, KEY))
    assert {each.certificate for each in read_key_pairs(pem + PEM + other.public_bytes(Encoding.PEM), None)} == {
        CERTIFICATE,
        other,
    }
    with pytest.raises(KeyFileError, match="without its certificate"):
        read_key_pairs(pem + PEM, None)


def test_a_key_with_two_certificates_comes_with_the_newer() -> None:
    newer = AUTHORITY.issue(KEY, ADDRESS, since=0)
    for others in ([newer, *CHAIN], [*CHAIN, newer]):
        pair = read_key_pair(p12("", others=others), None)
        assert pair.certificate == newer
        assert pair.chain == (AUTHORITY.intermediate,)


def test_many_certificates_where_many_are_wanted() -> None:
    assert len(read_certificates(PEM * 200, 1000)) == 200
