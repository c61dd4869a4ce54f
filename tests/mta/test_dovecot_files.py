"""A Dovecot of the operator's own, with our files included, serves the mailboxes as the private one does."""

from __future__ import annotations

import imaplib
import os
import pwd
import smtplib
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from mta.mailboxes.dovecot import DovecotConfigurationError, check_configuration
from mta.mailboxes.dovecot_files import MAIN, write_files
from tests.support.dovecot import PASSWORD, Client, Running, a_dovecot
from tests.support.private import free_port, give, service_directory, start_unprivileged, until

USER = "labo@ville.mssante.test"

OPERATOR = """\
base_dir = {root}/run
state_dir = {root}/run
instance_name = operator
protocols = imap lmtp
listen = 127.0.0.1
log_path = {root}/log
default_internal_user = {user}
default_login_user = {user}
default_internal_group = $default_internal_user
ssl_cert = <{chain}
ssl_key = <{key}
service anvil {{
  chroot =
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    address = 127.0.0.1
    port = {loopback}
  }}
  inet_listener imaps {{
    port = {imaps}
    ssl = yes
  }}
}}
!include {files}/{main}
"""


@pytest.fixture
def operators_own(running: Running) -> Iterator[tuple[Path, int]]:
    options = running.options
    with service_directory() as root:
        loopback, imaps = free_port(), free_port()
        user = options.user or subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()
        written = write_files(
            root / "files", options.realms, running.dovecot.memory, user, loopback_port=loopback, tokens=True
        )
        assert written[0].name == MAIN
        assert all(each.stat().st_mode & 0o777 == 0o600 for each in written)
        configuration = root / "dovecot.conf"
        configuration.write_text(
            OPERATOR.format(
                root=root,
                user=user,
                chain=options.certificate_chain,
                key=options.key,
                loopback=loopback,
                imaps=imaps,
                files=root / "files",
                main=MAIN,
            )
        )
        give(root)
        check_configuration(configuration)
        process = start_unprivileged(["/usr/sbin/dovecot", "-F", "-c", str(configuration)])
        try:
            until((root / "run/lmtp").exists, what="the operator's Dovecot")
            yield root, imaps
        finally:
            process.terminate()
            process.wait(10)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with a_dovecot() as server:
        yield server


def test_the_operators_own_dovecot_serves_them_alike(running: Running, operators_own: tuple[Path, int]) -> None:
    root, port = operators_own
    with smtplib.LMTP(str(root / "run/lmtp")) as lmtp:
        lmtp.ehlo()
        assert lmtp.sendmail("a@ville.mssante.test", [USER], b"Subject: Secretsubject\r\n\r\nbonjour\r\n") == {}
    context = ssl.create_default_context(cafile=str(running.options.certificate_chain))
    with Client("127.0.0.1", port, ssl_context=context, timeout=20) as client:
        client.authenticate("PLAIN", lambda _: f"\0{USER}\0{PASSWORD}".encode())
        client.select("INBOX")
        assert b"bonjour" in client.fetch("1", "(BODY[])")[1][0][1]
        assert b"COMPRESS=DEFLATE" in client.capability()[1][0]
        assert client.getquotaroot("INBOX")[0] == "OK"
    with suppress(imaplib.IMAP4.error):
        assert running.texts(USER) == [b"bonjour"], "the private one reads what the other wrote: the same key"
    home = running.options.realms[0].home_of(USER)
    assert not [each for each in home.rglob("*") if each.is_file() and b"Secretsubject" in each.read_bytes()]
    assert "Error" not in (root / "log").read_text()


def test_what_the_private_instance_refuses_is_refused_here_too(running: Running, tmp_path: Path) -> None:
    user, memory = running.options.user or pwd.getpwuid(os.geteuid()).pw_name, running.dovecot.memory
    realm = running.options.realms[0]
    attempts = [
        (tmp_path / "out", (realm,), tmp_path / "memory"),
        (tmp_path / "out", (realm,), Path("/dev/shm")),
        (tmp_path / "out", (realm,), Path("/dev/shm/a b")),
        (tmp_path / "o u t", (realm,), memory),
        (tmp_path / "out", (realm, realm), memory),
        (tmp_path / "out", (replace(realm, domains=("*",)),), memory),
        (tmp_path / "out", (replace(realm, home=Path("/srv/a#b")),), memory),
    ]
    for directory, realms, place in attempts:
        with pytest.raises(DovecotConfigurationError):
            write_files(directory, realms, place, user)
    assert not list(tmp_path.iterdir())


def test_files_for_root_or_nobody_are_refused(running: Running, tmp_path: Path) -> None:
    for user in ("root", "no-such-user-here"):
        with pytest.raises(DovecotConfigurationError):
            write_files(tmp_path, running.options.realms, tmp_path, user)
    assert not list(tmp_path.iterdir())
