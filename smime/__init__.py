"""How a message is protected and opened: S/MIME (RFC 8551) and DKIM (RFC 6376)."""

from smime.dkim import DkimKey, DkimResult, public_record, sign_dkim, verify_dkim
from smime.encrypting import can_encrypt_to
from smime.mime import MimeError, join_message, split_message
from smime.opening import Opened, open_message
from smime.protect import encrypt, sign
from smime.suites import DEFAULT_SUITE, ContentCipher, KeyTransportScheme, Suite
from smime.verdict import DecryptionResult, Finding, MessageVerdict, SignatureResult, SignerVerdict

__all__ = [
    "ContentCipher",
    "DEFAULT_SUITE",
    "DecryptionResult",
    "DkimKey",
    "DkimResult",
    "Finding",
    "KeyTransportScheme",
    "MessageVerdict",
    "MimeError",
    "Opened",
    "SignatureResult",
    "SignerVerdict",
    "Suite",
    "can_encrypt_to",
    "encrypt",
    "join_message",
    "open_message",
    "public_record",
    "sign",
    "sign_dkim",
    "split_message",
    "verify_dkim",
]
