"""How a message is protected and opened: S/MIME (RFC 8551) and DKIM (RFC 6376)."""

from smime.capabilities import Capabilities, read_capabilities, suite_for, write_capabilities
from smime.dkim import DkimKey, DkimResult, public_record, sign_dkim, verify_dkim
from smime.encrypting import UnfitCertificateError, can_encrypt_to
from smime.header_protection import HeaderPolicy, protect_header
from smime.mime import MimeError, join_message, split_message
from smime.opening import Opened, open_message
from smime.preview import plain_preview
from smime.protect import encrypt, encrypt_copies, sign
from smime.signing import SignerFailedError, UnfitSignerError
from smime.suites import (
    DEFAULT_SUITE,
    ContentCipher,
    Floor,
    KeyTransportScheme,
    RecipientNaming,
    RsaSignatureScheme,
    Suite,
)
from smime.verdict import (
    DecryptionResult,
    Finding,
    HeaderProtection,
    HeaderProtectionScheme,
    LayerKind,
    LayerVerdict,
    MessageVerdict,
    PartVerdict,
    SignatureResult,
    SignerVerdict,
)

__all__ = [
    "can_encrypt_to",
    "Capabilities",
    "ContentCipher",
    "DecryptionResult",
    "DEFAULT_SUITE",
    "DkimKey",
    "DkimResult",
    "encrypt",
    "encrypt_copies",
    "Finding",
    "Floor",
    "HeaderPolicy",
    "HeaderProtection",
    "HeaderProtectionScheme",
    "join_message",
    "KeyTransportScheme",
    "LayerKind",
    "LayerVerdict",
    "MessageVerdict",
    "MimeError",
    "open_message",
    "Opened",
    "PartVerdict",
    "plain_preview",
    "protect_header",
    "public_record",
    "read_capabilities",
    "RecipientNaming",
    "RsaSignatureScheme",
    "sign",
    "sign_dkim",
    "SignatureResult",
    "SignerFailedError",
    "SignerVerdict",
    "split_message",
    "Suite",
    "suite_for",
    "UnfitCertificateError",
    "UnfitSignerError",
    "verify_dkim",
    "write_capabilities",
]
