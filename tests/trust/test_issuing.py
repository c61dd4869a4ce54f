"""The demonstration authority: its certificates have the shapes of the real ones and pass our own validation."""

from __future__ import annotations

import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from trust.certificates import CertificateValidator, Purpose, mail_addresses
from trust.issuing import DemonstrationAuthority, Issued, KeyKind
from trust.names import DistinguishedName

AUTHORITY = DemonstrationAuthority.create("Autorité de démonstration")
VALIDATOR = CertificateValidator([AUTHORITY.root])
NOW = datetime.now(UTC)


def purposes(issued: Issued) -> set[Purpose]:
    """What our validator accepts the certificate for, with the chain it is sent with."""
    return {purpose for purpose in Purpose if VALIDATOR.validate(issued.certificate, issued.chain, purpose, NOW).ok}


def key_usage(issued: Issued) -> set[str]:
    usage = issued.certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    names = ("digital_signature", "content_commitment", "key_encipherment", "key_agreement", "key_cert_sign")
    return {name for name in names if getattr(usage, name)}


@pytest.mark.parametrize("kind", ["p256", "rsa3072"])
def test_mailbox_has_two_certificates(kind: KeyKind) -> None:
    signing = AUTHORITY.issue_mailbox("jean.test@op.mssante.example", "Jean TEST", "signing", kind)
    encryption = AUTHORITY.issue_mailbox("jean.test@op.mssante.example", "Jean TEST", "encryption", kind)
    assert key_usage(signing) == {"digital_signature", "content_commitment"}
    assert key_usage(encryption) == {"key_encipherment" if kind == "rsa3072" else "key_agreement"}
    assert purposes(signing) == {Purpose.MAIL_SIGNATURE, Purpose.LIST_SIGNATURE}
    assert purposes(encryption) == {Purpose.MAIL_ENCRYPTION}
    for issued in (signing, encryption):
        assert mail_addresses(issued.certificate) == ("jean.test@op.mssante.example",)
        assert isinstance(issued.key, rsa.RSAPrivateKey if kind == "rsa3072" else ec.EllipticCurvePrivateKey)
        assert issued.chain == (AUTHORITY.intermediate,)


def test_address_must_be_ascii() -> None:
    with pytest.raises(ValueError):
        AUTHORITY.issue_mailbox("é@op.mssante.example", "x", "signing", "p256")


def test_operator() -> None:
    operator = AUTHORITY.issue_operator("mss.op.example", "CHU DÉMO", "1750000001", ["mss.op.example", "127.0.0.1"])
    assert purposes(operator) == {Purpose.OPERATOR_TLS_SERVER, Purpose.OPERATOR_TLS_CLIENT}
    name = DistinguishedName.from_x509(operator.certificate.subject)
    assert str(name) == "CN=mss.op.example,OU=1750000001,O=CHU DÉMO,C=FR"
    extended = operator.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(extended) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    san = operator.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == ["mss.op.example"]
    assert [str(ip) for ip in san.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]


def test_server() -> None:
    assert purposes(AUTHORITY.issue_server(["localhost"], ["127.0.0.1", "::1"])) == {Purpose.OPERATOR_TLS_SERVER}
    with pytest.raises(ValueError):
        AUTHORITY.issue_server([])


def test_list_signer() -> None:
    signer = AUTHORITY.issue_list_signer()
    assert isinstance(signer.key, rsa.RSAPrivateKey)
    assert Purpose.LIST_SIGNATURE in purposes(signer)


def test_pem() -> None:
    server = AUTHORITY.issue_server(["localhost"])
    assert x509.load_pem_x509_certificates(server.pem_chain()) == [server.certificate, AUTHORITY.intermediate]
    key = serialization.load_pem_private_key(server.pem_key(), None)
    assert key.public_key() == server.certificate.public_key()


def test_saved_and_loaded(tmp_path: Path) -> None:
    directory = tmp_path / "authority"
    AUTHORITY.save(directory)
    AUTHORITY.save(directory)
    for path in directory.iterdir():
        assert path.suffix in (".pem", ".key")
        assert path.suffix == ".pem" or stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded = DemonstrationAuthority.load(directory)
    assert (loaded.root, loaded.intermediate) == (AUTHORITY.root, AUTHORITY.intermediate)
    assert purposes(loaded.issue_server(["localhost"])) == {Purpose.OPERATOR_TLS_SERVER}


def test_keys_of_another_authority_do_not_load(tmp_path: Path) -> None:
    AUTHORITY.save(tmp_path)
    DemonstrationAuthority.create("Autre").save(tmp_path / "other")
    (tmp_path / "other" / "root.key").replace(tmp_path / "root.key")
    with pytest.raises(ValueError, match="root"):
        DemonstrationAuthority.load(tmp_path)
