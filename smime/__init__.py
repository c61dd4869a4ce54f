"""How a message is protected and opened: S/MIME (RFC 8551) and DKIM (RFC 6376)."""

from smime.dkim import DkimKey, DkimResult, public_record, sign_dkim, verify_dkim
from smime.enveloped import DEFAULT_SUITE, ContentCipher, KeyTransportScheme, Suite, can_encrypt_to
from smime.message import Opened, encrypt, open_message, sign
from smime.mime import MimeError, join_message, split_message
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
