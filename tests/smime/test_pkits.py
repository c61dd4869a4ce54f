"""The signed mails of PKITS (NIST, in the package cryptography-vectors): 224 messages, and OpenSSL's opinion of them.

Here the signature of each mail is judged, not its path: those cases belong to the validator's tests.
"""

from __future__ import annotations

import warnings
from datetime import UTC, datetime
from pathlib import Path

import cryptography_vectors
import pytest
from cryptography import x509

from smime import DecryptionResult, SignatureResult, open_message
from smime.canonical import crlf
from smime.verdict import SignerVerdict
from tests.smime.people import openssl
from trust.certificates import CertificateValidator

PKITS = Path(cryptography_vectors.__file__).parent / "x509" / "PKITS_data"
MAILS = sorted((PKITS / "smime").glob("*.eml"))
AT = datetime(2026, 6, 1, tzinfo=UTC)
DSA = {
    "SignedInvalidDSASignatureTest6": "signed with DSA and SHA-1",
    "SignedValidDSAParameterInheritanceTest5": "signed with DSA and SHA-1",
    "SignedValidDSASignaturesTest4": "signed with DSA and SHA-1",
}
"""Sound by the standards of their time, refused by ours: neither the key nor the digest is accepted (RFC 8551 §2.2)."""

pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive")


def anchor() -> CertificateValidator:
    encoded = (PKITS / "certs" / "TrustAnchorRootCertificate.crt").read_bytes()
    return CertificateValidator([x509.load_der_x509_certificate(encoded)])


VALIDATOR = anchor()


def judged(message: bytes) -> tuple[SignerVerdict, ...]:
    verdict = open_message(message, (), VALIDATOR, AT).verdict
    assert verdict.decryption is DecryptionResult.NOT_ENCRYPTED
    return verdict.signers


def test_all_mails_are_there() -> None:
    assert len(MAILS) == 224
    assert {path.stem for path in MAILS} >= DSA.keys()


@pytest.mark.parametrize("path", MAILS, ids=lambda path: path.stem)
def test_signature_of(path: Path) -> None:
    message = crlf(path.read_bytes())
    (signer,) = judged(message)
    if path.stem in DSA:
        assert signer.result is SignatureResult.INVALID
        assert signer.findings[0].code in ("digest-algorithm", "weak-key", "signature-algorithm")
        return
    assert signer.result is not SignatureResult.INVALID, signer.findings
    assert signer.certificate is not None
    assert signer.path is not None, "a sound signature's path is asked for"
    if signer.path.ok:
        # certificates without an rfc822Name stand for nobody
        assert signer.result in (SignatureResult.VALID, SignatureResult.MISMATCH)
        assert (signer.result is SignatureResult.VALID) <= bool(signer.addresses)

    altered = message.replace(b"This is a sample signed message.", b"This is a simple signed message.")
    assert altered != message
    (broken,) = judged(altered)
    assert broken.result is SignatureResult.INVALID
    assert broken.path is None


@pytest.mark.parametrize("path", MAILS[::16], ids=lambda path: path.stem)
def test_openssl_finds_the_same_signatures_sound(path: Path) -> None:
    """A sample, for each costs a process; all 224 in `test_signature_of` have been compared once."""
    said = openssl("cms", "-verify", "-noverify", "-in", path, check=False)
    (signer,) = judged(crlf(path.read_bytes()))
    assert (said.returncode == 0) == (signer.result is not SignatureResult.INVALID or path.stem in DSA)


def test_no_mail_warns_or_raises_when_cut_anywhere() -> None:
    message = crlf(MAILS[0].read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for end in range(0, len(message), 97):
            assert judged(message[:end]) == () or end > len(message) - 97
