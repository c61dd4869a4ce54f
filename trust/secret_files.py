"""Secrets that are handed over as files: the key-encryption key, a token's PIN.

A secret is in a file that only its owner can read, or is a systemd credential: systemd decrypts those into memory,
below `$CREDENTIALS_DIRECTORY`, where one service alone finds them (systemd.exec(5), `LoadCredentialEncrypted=`).
Everything that is wrong with such a file is told in one sentence, which never quotes the secret.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_LONGEST_SECRET = 4096


class SecretFileError(ValueError):
    """A secret cannot be read, or others can read it. The text says which file and what to do."""


def credential(name: str) -> Path | None:
    """The file of one systemd credential, None when this service was given none of that name."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    file = Path(directory) / name
    return file if directory and file.is_file() else None


def read_secret(file: Path, what: str) -> bytes:
    """The bytes of one secret, at most 4096. `what` names it in the sentence of a `SecretFileError`.

    Whoever owns the file or can write to its directory can replace it, so the first must be ourselves or root, and the
    second nobody else; and it is no link. Below `$CREDENTIALS_DIRECTORY` group bits are the mask of systemd's access
    list and say nothing (acl(5)); the directory itself is closed to others.
    """
    try:
        # a pipe under this name must not make us wait for ever
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as opened:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise SecretFileError(f"{what} {file} is no ordinary file")
            secret = opened.read(_LONGEST_SECRET + 1)
        around = file.absolute().parent.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise SecretFileError(f"{what} {file} is a link: put the file itself there") from error
        raise SecretFileError(f"{what} {file} cannot be read: {error.strerror}") from error
    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    handed_over = bool(directory) and file.parent == Path(directory)
    open_to = stat.S_IRWXO if handed_over else stat.S_IRWXG | stat.S_IRWXO
    if stat.S_IMODE(status.st_mode) & open_to:
        raise SecretFileError(f"others can read {what}: run chmod 600 {file}, then renew what it protects")
    if status.st_uid not in (os.geteuid(), 0) and os.geteuid() != 0:
        raise SecretFileError(f"{what} {file} belongs to another user, who could replace it: make it your own")
    if around.st_mode & (stat.S_IWOTH if handed_over else stat.S_IWGRP | stat.S_IWOTH) and not (
        around.st_mode & stat.S_ISVTX
    ):
        raise SecretFileError(f"others could replace {what}: run chmod go-w {file.absolute().parent}")
    if len(secret) > _LONGEST_SECRET:
        raise SecretFileError(f"{what} {file} is too long to be one")
    return secret
