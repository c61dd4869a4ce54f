"""What crosses between the operators, judged by a program that is not ours: `openssl cms` decrypts and verifies it."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
from email import policy
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from mta.spool import PREPARED
from tests.e2e.test_killed import pid_of, prepared
from tests.e2e.test_road import digest_of, mails_about, oru
from tests.support.private import until
from tests.support.running import running
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault

pytestmark = [pytest.mark.e2e]

ADDRESS = "adam.hoda@test-ci-sis.mssante.fr"


def openssl(*arguments: str, content: bytes = b"") -> bytes:
    done = subprocess.run(["openssl", *arguments], input=content, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.timeout(120)
def test_openssl_opens_and_verifies_what_is_on_the_wire(tmp_path: Path) -> None:
    with running() as up:
        message = oru("WIRE-1")
        frozen = pid_of(up, "ville")
        assert frozen is not None
        os.kill(frozen, signal.SIGSTOP)
        try:
            up.accepted(message)
            until(lambda: prepared(up), 30, "protected bytes on disk")
            sender, receiver = tmp_path / "sender", tmp_path / "receiver"
            for name in ("relais.db", "relais.db-wal", "relais.db-shm"):
                sender.mkdir(exist_ok=True)
                shutil.copy(up.state / "laboratoire" / name, sender / name)
            shutil.copytree(up.state / "laboratoire" / "vault", sender / "vault")
            shutil.copytree(up.state / "laboratoire" / "blobs", sender / "blobs")
            shutil.copytree(up.state / "ville" / "vault", receiver / "vault")
            anchors = up.state / "ca.pem"
        finally:
            os.kill(frozen, signal.SIGCONT)
        with sqlite3.connect(sender / "relais.db") as database:
            rows = database.execute(
                "SELECT prepared_blob FROM mta_deliveries WHERE prepared_blob IS NOT NULL AND target = 'smtp'"
            ).fetchall()
        database.close()
        kept = Database(f"sqlite:///{sender / 'relais.db'}")
        try:
            wire = BlobStore(sender / "blobs", KeyVault.open(sender / "vault"), kept).get(PREPARED, rows[0][0])
        finally:
            kept.close()

        header, _, _ = wire.partition(b"\r\n\r\n")
        assert b"DKIM-Signature:" in header
        assert b"smime-type=authEnveloped-data" in header.replace(b'"', b"")
        assert b"ESSAI" not in wire.partition(b"Subject:")[0], "nothing of the patient before the headers"
        assert b"%PDF" not in wire and b"IHE_XDM" not in wire, "nothing readable of the report on the wire"

        vault = KeyVault.open(receiver / "vault")
        (decryptor,) = vault.decryptors(ADDRESS)
        key = tmp_path / "key.pem"
        key.write_bytes(private_pem(decryptor))
        certificate = tmp_path / "certificate.pem"
        certificate.write_bytes(decryptor.certificate.public_bytes(serialization.Encoding.PEM))
        (tmp_path / "wire.eml").write_bytes(wire)
        inner = openssl(
            "cms", "-decrypt", "-in", str(tmp_path / "wire.eml"), "-inkey", str(key), "-recip", str(certificate)
        )
        (tmp_path / "inner.eml").write_bytes(inner)
        entity = openssl(
            "cms", "-verify", "-in", str(tmp_path / "inner.eml"), "-CAfile", str(anchors), "-purpose", "any"
        )
        mail = BytesParser(policy=policy.default).parsebytes(entity)
        assert {part.get_content_type() for part in mail.walk()} >= {"text/plain", "application/pdf", "application/zip"}

        up.wait_settled()
        assert len(mails_about(up, "gp", digest_of(message))) == 1


def private_pem(decryptor: Any) -> bytes:
    """The doctor's decryption key in clear: possible only with the whole vault in hand, and only in a test."""
    return decryptor.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
