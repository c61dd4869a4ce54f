"""Which certificate a key may have, which key signs, and what one certificate for two uses must not mix up."""

import os
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from tests.trust.certificate_authority import NOW, Authority, name
from trust.certificates import CertificateValidator
from trust.generations import KeyState, KeyUse, states
from trust.keycheck import check_vault, is_revoked
from trust.keyfiles import chain_of
from trust.revocation import RevocationState, RevocationStatus
from trust.softkeys import KeyKind
from trust.vault import KeyVault, NoKeyError, VaultError

ADDRESS = "medecin@cabinet.example"
AUTHORITY = Authority()


@pytest.fixture
def vault(tmp_path):
    return KeyVault.create(tmp_path / "vault")


def new_key():
    return ec.generate_private_key(ec.SECP256R1())


def both_uses(key, *addresses, since=-1, until=365) -> x509.Certificate:
    """Without KeyUsage: it signs and is encrypted to."""
    extensions = []
    if addresses:
        names = x509.SubjectAlternativeName([x509.RFC822Name(each) for each in addresses])
        extensions = [x509.Extension(names.oid, False, names)]
    return AUTHORITY._sign(
        name("Fictif"), key.public_key(), name("AC"), AUTHORITY._key, extensions, since=since, until=until
    )


# --- one certificate, several generations -----------------------------------------------------------------------------


def test_a_retired_certificate_never_signs_whatever_else_it_is_for(vault) -> None:
    key = new_key()
    certificate = both_uses(key, ADDRESS)
    for use in KeyUse:
        vault.install(ADDRESS, use, key, certificate, [])
    (identifier,) = {each.id for each in vault.generations()}
    retired = vault.retire(identifier)
    assert {each.use for each in retired} == set(KeyUse)
    assert vault.signer(ADDRESS) is None
    assert len(vault.decryptors(ADDRESS)) == 1


def test_a_key_that_is_retired_does_not_sign_with_an_older_certificate(vault) -> None:
    key = new_key()
    for since in (-100, -1):
        vault.install(ADDRESS, KeyUse.SIGNING, key, AUTHORITY.issue(key, ADDRESS, since=since), [])
    newest = vault.generations()[0]
    assert len(vault.retire(newest.id)) == 2
    assert vault.signer(ADDRESS) is None


def test_states_of_one_certificate_with_two_uses(vault) -> None:
    key, newer = new_key(), new_key()
    certificate = both_uses(key, ADDRESS)
    for use in KeyUse:
        vault.install(ADDRESS, use, key, certificate, [])
    vault.install(ADDRESS, KeyUse.SIGNING, newer, AUTHORITY.issue(newer, ADDRESS, since=0), [])
    found = states(vault.generations(), NOW).items()
    assert {(each.use, each.certificate == certificate): state for each, state in found} == {
        (KeyUse.SIGNING, True): KeyState.OLDER,
        (KeyUse.SIGNING, False): KeyState.CURRENT,
        (KeyUse.ENCRYPTION, True): KeyState.CURRENT,
    }


def test_of_two_alike_the_one_that_is_told_signs(vault) -> None:
    for _ in range(6):
        key = new_key()
        vault.install(ADDRESS, KeyUse.SIGNING, key, AUTHORITY.issue(key, ADDRESS), [])
    (current,) = [each for each, state in states(vault.generations(), NOW).items() if state is KeyState.CURRENT]
    assert vault.signer(ADDRESS).certificate == current.certificate


# --- when ------------------------------------------------------------------------------------------------------------


def test_to_the_second(vault) -> None:
    key = new_key()
    certificate = AUTHORITY.issue(key, ADDRESS, since=-1, until=1)
    vault.install(ADDRESS, KeyUse.SIGNING, key, certificate, [])
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    second = timedelta(seconds=1)
    for at, signs in ((begins - second, False), (begins, True), (ends, True), (ends + second, False)):
        assert (vault.signer(ADDRESS, at) is not None) is signs
        state = states(vault.generations(), at)[vault.generations()[0]]
        assert (state is KeyState.CURRENT) is signs


class Revoked:
    """Says so of one certificate."""

    def __init__(self, certificate: x509.Certificate) -> None:
        self.certificate = certificate

    def check(self, certificate, issuer, at, stapled=None) -> RevocationStatus:
        state = RevocationState.REVOKED if certificate == self.certificate else RevocationState.UNKNOWN
        return RevocationStatus(state, revoked_at=NOW - timedelta(days=1), reason="key_compromise")


def test_a_key_with_a_revoked_certificate_does_not_sign(vault) -> None:
    old, new = new_key(), new_key()
    older = AUTHORITY.issue(old, ADDRESS, since=-100)
    vault.install(ADDRESS, KeyUse.SIGNING, old, older, [AUTHORITY.intermediate])
    newer = AUTHORITY.issue(new, ADDRESS)
    vault.install(ADDRESS, KeyUse.SIGNING, new, newer, [AUTHORITY.intermediate])
    validator = CertificateValidator([AUTHORITY.root], (), Revoked(newer))
    assert vault.signer(ADDRESS, NOW).certificate == newer
    assert vault.signer(ADDRESS, NOW, lambda key: is_revoked(validator, key, NOW)).certificate == older
    assert "revoked" in {each.code for each in check_vault(vault, NOW, validator)}
    # what nobody can judge still signs: whom the recipient believes is the recipient's business
    stranger = CertificateValidator([Authority().root], (), Revoked(newer))
    assert vault.signer(ADDRESS, NOW, lambda key: is_revoked(stranger, key, NOW)).certificate == newer


# --- which ------------------------------------------------------------------------------------------------------------


def test_weak_and_strange_keys_are_refused(vault) -> None:
    def said(key) -> str:
        with pytest.raises(VaultError) as failure:
            vault.install(ADDRESS, KeyUse.SIGNING, key, both_uses(key, ADDRESS), [])
        return str(failure.value)

    assert "only 1024 bits" in said(rsa.generate_private_key(65537, 1024))
    assert "secp256k1" in said(ec.generate_private_key(ec.SECP256K1()))
    assert "secp224r1" in said(ec.generate_private_key(ec.SECP224R1()))
    edwards = ed25519.Ed25519PrivateKey.generate()
    vault.install(ADDRESS, KeyUse.SIGNING, edwards, both_uses(edwards, ADDRESS), [])


@pytest.mark.parametrize("address", ["", "nobody", "a b@c.example", "a@b@c", "a\x1b[2J@c.example", "a\0@c.example"])
def test_an_address_that_is_none(vault, address) -> None:
    key = new_key()
    with pytest.raises(VaultError, match=r"must be local@domain"):
        vault.install(address, KeyUse.SIGNING, key, both_uses(key), [])


def test_no_mailbox_has_the_key_of_another_by_its_letters(vault) -> None:
    key = new_key()
    vault.install("kate@cabinet.example", KeyUse.SIGNING, key, AUTHORITY.issue(key, "kate@cabinet.example"), [])
    assert vault.signer("KATE@Cabinet.example") is not None
    assert vault.signer("\N{KELVIN SIGN}ate@cabinet.example") is None


def test_a_certificate_for_another_mailbox_is_refused_with_its_key_too(vault) -> None:
    key = new_key()
    with pytest.raises(VaultError, match="another address"):
        vault.install("b@cabinet.example", KeyUse.SIGNING, key, AUTHORITY.issue(key, ADDRESS), [])
    assert vault.generations() == []


# --- another certificate for the same key -----------------------------------------------------------------------------


def renewed(generation, address=ADDRESS, since=0) -> x509.Certificate:
    class Key:
        public_key = staticmethod(generation.certificate.public_key)

    return AUTHORITY.issue(Key, address, since=since)


def installed(vault, use=KeyUse.SIGNING, since=-1):
    request = vault.request(ADDRESS, use, KeyKind.P256)
    (generation,) = vault.install_certificates([AUTHORITY.answer(request.request, since=since)])
    return generation


def test_an_authority_renews_a_certificate_with_the_same_key(vault) -> None:
    first = installed(vault, since=-300)
    again = renewed(first)
    (second,) = vault.install_certificates([again, AUTHORITY.intermediate])
    signer = vault.signer(ADDRESS)
    assert signer.certificate == again == second.certificate
    assert signer.chain == (AUTHORITY.intermediate,)
    again.public_key().verify(signer.sign(b"x", SHA256()), b"x", ec.ECDSA(SHA256()))
    with pytest.raises(VaultError, match="another address"):
        vault.install_certificates([renewed(first, "b@cabinet.example")])
    vault.retire(first.id)
    with pytest.raises(VaultError, match="was retired"):
        vault.install_certificates([renewed(first)])
    with pytest.raises(NoKeyError):
        vault.install_certificates([AUTHORITY.issue(new_key(), ADDRESS)])


def test_the_chain_may_come_later(vault) -> None:
    generation = installed(vault)
    assert vault.signer(ADDRESS).chain == ()
    vault.retire(generation.id)
    (again,) = vault.install_certificates([generation.certificate, AUTHORITY.root, AUTHORITY.intermediate])
    assert again.chain == (AUTHORITY.intermediate,)
    assert again.retired_at is not None
    vault.install_certificates([generation.certificate])  # without it, it stays
    assert vault.generations()[0].chain == (AUTHORITY.intermediate,)


def test_of_authorities_with_one_name_the_one_that_signed(vault) -> None:
    others = [Authority() for _ in range(3)]
    certificate = AUTHORITY.issue(new_key(), ADDRESS)
    strangers = [each.intermediate for each in others]
    for position in range(4):
        brought = [*strangers[:position], AUTHORITY.intermediate, *strangers[position:]]
        assert chain_of(certificate, brought)[0] == AUTHORITY.intermediate


def test_what_fails_to_be_kept_leaves_no_key_behind(vault, monkeypatch) -> None:
    monkeypatch.setattr(vault, "keep_request", lambda *_: (_ for _ in ()).throw(OSError(28, os.strerror(28))))
    with pytest.raises(OSError, match="No space"):
        vault.request(ADDRESS, KeyUse.SIGNING, KeyKind.P256)
    assert vault.requests() == []


def test_a_rotation_asks_for_each_name_once(vault) -> None:
    key = new_key()
    vault.install(ADDRESS, KeyUse.SIGNING, key, both_uses(key, ADDRESS.replace("m", "M", 1), "b@cabinet.example"), [])
    request = vault.rotate(ADDRESS, KeyUse.SIGNING).request
    names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.RFC822Name) == [ADDRESS, "b@cabinet.example"]
