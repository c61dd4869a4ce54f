"""The key our mail is signed with (DKIM), from its file."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from config.settings import Loaded, SettingsError


def load_dkim_key(loaded: Loaded) -> rsa.RSAPrivateKey | None:
    """None where none is configured. Raises `SettingsError`."""
    name = loaded.settings.dkim.key
    if not name:
        return None
    path = loaded.path(name)
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise SettingsError(f"dkim.key {path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:  # the latter: encrypted
        raise SettingsError(f"dkim.key {path} must hold an unencrypted RSA key in PEM") from error
    if not isinstance(key, rsa.RSAPrivateKey):
        raise SettingsError("dkim.key must be an RSA key")
    return key
