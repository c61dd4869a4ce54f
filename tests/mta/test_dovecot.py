"""A real Dovecot, run as an ordinary user from the generated configuration, spoken to over IMAPS and LMTP."""

from __future__ import annotations

import asyncio
import imaplib
import re
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mta.mailboxes.dovecot import (
    DELIVERY_HEADER,
    DovecotConfigurationError,
    DovecotOptions,
    MailboxRealm,
    PrivateDovecot,
)
from mta.mailboxes.lmtp import LmtpOptions, LmtpTarget
from mta.mailboxes.sessions import end_sessions
from mta.message import Deferred, Delivered, Failed, Message, Origin, Outcome
from tests.support.dovecot import LOCK_AFTER, PATIENT, TOKEN, Running, a_dovecot
from tests.support.private import give, until


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with a_dovecot() as server:
        yield server


def test_mail_comes_in_by_lmtp_and_out_by_imaps(running: Running) -> None:
    code, reply = running.deliver("Labo@Ville.mssante.test", "premier", "one")
    assert code == 250, reply
    assert running.texts("labo@ville.mssante.test") == [b"premier"]
    assert running.laboratory.asked[-1] == ("labo@ville.mssante.test", "pass word/é$")


def test_a_repeated_delivery_is_filed_once_and_unmarked_mail_always(running: Running) -> None:
    for text, identity in (("a", "same"), ("a", "same"), ("b", "other"), ("c", ""), ("c", "")):
        assert running.deliver("medecin@ville.mssante.test", text, identity)[0] == 250
    assert running.texts("medecin@ville.mssante.test") == [b"a", b"b", b"c", b"c"]


def test_a_delivery_is_recognised_in_the_mailbox_when_sieve_forgot_it() -> None:
    """Dovecot killed after it filed a mail and before it noted that: only the mailbox knows."""
    with a_dovecot() as running:
        _recognised_in_the_mailbox(running)


def _recognised_in_the_mailbox(running: Running) -> None:
    address = "garde@ville.mssante.test"
    since = datetime.now(UTC).timestamp() - 60

    def notes() -> list[Path]:
        home = running.options.realms[0].home_of(address)
        assert home is not None
        return list(home.rglob(".dovecot.lda-dupes"))

    def message(identity: str, recipient: str = address, *, repeated: bool = True) -> Message:
        content = f"{DELIVERY_HEADER}: {identity}\r\nSubject: x\r\n\r\n{identity}\r\n".encode()
        return Message(
            message_id="<m@x.invalid>",
            spool_id="s",
            delivery_id=identity,
            origin=Origin.OPERATOR,
            sender="",
            recipient=recipient,
            content=content,
            content_type="message/rfc822",
            accepted_at=since,
            repeated=repeated,
        )

    async def deliver(wanted: Message, socket: Path = running.dovecot.search_socket) -> Outcome:
        lmtp = LmtpTarget(LmtpOptions("relay", running.dovecot.lmtp_socket, search_socket=socket))
        try:
            return await lmtp.deliver(wanted)
        finally:
            await lmtp.close()

    assert isinstance(asyncio.run(deliver(message("gap-1", repeated=False))), Delivered)
    assert notes()
    for note in notes():
        note.unlink()
    assert asyncio.run(deliver(message("gap-1"))) == Delivered("already filed")
    assert isinstance(asyncio.run(deliver(message("gap-2"))), Delivered), "never filed: delivered now"
    texts = running.texts(address)
    assert [sum(name in text for text in texts) for name in (b"gap-1", b"gap-2")] == [1, 1]
    nobody = asyncio.run(deliver(message("gap-3", "personne@ville.mssante.test")))
    assert isinstance(nobody, Failed), "who is unknown holds nothing: LMTP says why"
    silent = asyncio.run(deliver(message("gap-4"), running.options.state / "nothing"))
    assert isinstance(silent, Deferred), "without the witness nothing is filed"
    assert not any(b"gap-4" in text for text in running.texts(address))


def test_the_same_delivery_identity_reaches_two_mailboxes(running: Running) -> None:
    for recipient in ("service@hopital.mssante.test", f"{PATIENT}@patient.mssante.test"):
        assert running.deliver(recipient, "both", "shared-identity")[0] == 250
        assert b"both" in running.texts(recipient)


def test_folders_have_their_special_use(running: Running) -> None:
    with running.log_in("service@hopital.mssante.test", "pass word/é$") as client:
        listing = b"\n".join(client.list()[1])
    for use, name in ((b"\\Sent", b"Sent"), (b"\\Drafts", b"Drafts"), (b"\\Trash", b"Trash"), (b"\\Junk", b"Junk")):
        assert re.search(re.escape(use) + rb"[^\n]*" + name, listing)


def test_a_stored_message_is_served_byte_for_byte(running: Running) -> None:
    original = b"Subject: =?utf-8?q?B?=\r\n\r\n.dot\r\n\r\nline with trailing space \r\n\xe9\r\n"
    with running.log_in("service@hopital.mssante.test", "pass word/é$") as client:
        assert client.append("Drafts", None, None, original)[0] == "OK"
        client.select("Drafts")
        assert client.fetch("1", "(BODY[])")[1][0][1] == original


@pytest.mark.parametrize(
    "user", ["labo@ville.mssante.test", "nobody@ville.mssante.test", "labo@elsewhere.test", "labo", "a/b@ville.test"]
)
def test_wrong_password_or_unknown_user_is_refused_alike(running: Running, user: str) -> None:
    with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
        running.log_in(user, "wrong")
    running.laboratory.failures.clear()


def test_lock_out_is_seen_through_imap(running: Running) -> None:
    user = "service@hopital.mssante.test"
    for _ in range(LOCK_AFTER):
        with pytest.raises(imaplib.IMAP4.error):
            running.log_in(user, "wrong")
    with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
        running.log_in(user, "pass word/é$")
    running.hospital.failures.clear()
    running.log_in(user, "pass word/é$").logout()


def test_an_address_with_what_names_have(running: Running) -> None:
    user = "o'neil+a=b@ville.mssante.test"
    assert running.deliver(user, "bonjour")[0] == 250
    assert len(running.texts(user)) == 1


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
def test_an_access_token_opens_a_mailbox(running: Running, mechanism: str) -> None:
    user = "labo@ville.mssante.test"

    def words(token: str) -> bytes:
        first = f"user={user}" if mechanism == "XOAUTH2" else f"n,a={user},"
        return f"{first}\x01auth=Bearer {token}\x01\x01".encode()

    with running.imap() as client:
        assert client.authenticate(mechanism, lambda _: words(TOKEN))[0] == "OK"
        assert client.select("INBOX")[0] == "OK"
    for wrong in (TOKEN[:-1], "pass word/é$"):
        client = running.imap()
        said = iter([words(wrong), b"\x01"])
        with pytest.raises(imaplib.IMAP4.error):
            client.authenticate(mechanism, lambda _, said=said: next(said))
        client.shutdown()
    with pytest.raises(imaplib.IMAP4.error):
        running.log_in(user, TOKEN)
    running.laboratory.failures.clear()


def test_open_sessions_end_when_asked(running: Running) -> None:
    users = ["labo@ville.mssante.test", "medecin@ville.mssante.test", "garde@ville.mssante.test"]
    open_ones = [running.log_in(user, "pass word/é$") for user in users]
    assert end_sessions(running.dovecot.search_socket, [*users[:2], "o'neil+a=b@ville.mssante.test"])
    for client in open_ones[:2]:
        with pytest.raises((imaplib.IMAP4.abort, OSError)):
            client.noop()
        client.shutdown()
    assert open_ones[2].noop()[0] == "OK"
    for pattern in ("*", "?arde@ville.mssante.test", "a\tb", "é", ""):
        assert not end_sessions(running.dovecot.search_socket, [pattern])
    assert open_ones[2].noop()[0] == "OK"
    assert not end_sessions(running.dovecot.search_socket.with_name("absent"), users)
    assert end_sessions(running.dovecot.search_socket, [])
    open_ones[2].logout()


def test_a_password_is_shown_only_to_the_gateway_of_its_domain(running: Running) -> None:
    running.log_in("service@hopital.mssante.test", "pass word/é$").logout()
    assert all(not login.endswith("hopital.mssante.test") for login, _ in running.laboratory.asked)
    assert all(login.endswith("hopital.mssante.test") for login, _ in running.hospital.asked)


@pytest.mark.parametrize(
    "recipient",
    ["nobody@ville.mssante.test", "labo@elsewhere.test", "labo+x@ville.mssante.test", "o'x@ville.mssante.test"],
)
def test_unknown_recipient_is_refused_for_good(running: Running, recipient: str) -> None:
    code, reply = running.deliver(recipient, "lost")
    assert (code, reply[:5]) == (550, "5.1.1")


def test_without_its_gateway_mail_waits_and_sign_in_is_unavailable() -> None:
    with a_dovecot() as running:
        laboratory = running.sockets[0]
        laboratory.run(laboratory.server.stop)
        code, _ = running.deliver("labo@ville.mssante.test", "early", "again")
        assert code == 451
        assert running.deliver("nobody@ville.mssante.test", "early")[0] == 451
        with pytest.raises(imaplib.IMAP4.error, match="UNAVAILABLE"):
            running.log_in("labo@ville.mssante.test", "secret-wörd")
        # The other operator's people notice nothing.
        running.log_in("service@hopital.mssante.test", "pass word/é$").logout()
        assert running.deliver("service@hopital.mssante.test", "unharmed")[0] == 250
        laboratory.start()
        until(lambda: running.deliver("labo@ville.mssante.test", "early", "again")[0] == 250, what="delivery")
        assert running.texts("labo@ville.mssante.test") == [b"early"]
        log = running.dovecot.log.read_text()
        assert "Failed to lookup" in log
        assert "secret" not in log


def test_an_account_database_that_fails_means_later() -> None:
    with a_dovecot() as running:

        def broken(address: str) -> None:
            raise OSError("database is away")

        running.laboratory.by_address = broken  # type: ignore[method-assign]
        assert running.deliver("labo@ville.mssante.test", "early")[0] == 451


def test_killed_dovecot_starts_again_with_its_mail(running: Running) -> None:
    user = f"{PATIENT}@patient.mssante.test"
    assert running.deliver(user, "kept", "before-kill")[0] == 250
    before = running.texts(user)
    assert running.dovecot.running() == running.process.pid
    running.process.send_signal(signal.SIGKILL)
    running.process.wait(10)
    assert running.dovecot.running() is None
    running.restart()
    assert running.deliver(user, "kept", "before-kill")[0] == 250
    assert running.texts(user) == before
    assert running.deliver(user, "after", "after-kill")[0] == 250
    assert running.texts(user) == [*before, b"after"]


def test_prepare_leaves_a_running_dovecot_alone(running: Running) -> None:
    running.dovecot.clear()  # nor does clearing up touch its sockets
    running.dovecot.prepare()
    give(running.options.state)
    assert running.dovecot.ready()
    assert running.deliver("labo@ville.mssante.test", "still here")[0] == 250


def test_nothing_runs_as_root_and_nothing_but_imaps_listens(running: Running) -> None:
    pids = subprocess.run(
        ["pgrep", "-P", str(running.process.pid)], check=True, capture_output=True, text=True
    ).stdout.split()
    for pid in [str(running.process.pid), *pids]:
        uid = int(re.search(r"^Uid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)[1])
        assert uid != 0
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", 143), timeout=1):
        pass
    assert running.dovecot.lmtp_socket.stat().st_mode & 0o777 == 0o600


def test_scripts_of_people_are_offered_after_starttls_and_cannot_send_mail(running: Running) -> None:
    port = running.options.managesieve_port
    assert port is not None
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client, client.makefile("rb") as lines:
        greeting = b""
        while not greeting.endswith(b'ready."\r\n'):
            greeting += lines.readline()
    assert b'"STARTTLS"' in greeting
    extensions = re.search(rb'"SIEVE" "([^"]*)"', greeting)[1].split()
    assert b"fileinto" in extensions
    assert not {b"vacation", b"enotify", b"reject", b"duplicate"} & set(extensions)


def test_old_tls_and_plaintext_are_refused(running: Running) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with pytest.warns(DeprecationWarning):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", running.options.imaps_port)) as plain, pytest.raises(OSError):
        context.wrap_socket(plain)
    with socket.create_connection(("127.0.0.1", running.options.imaps_port), timeout=5) as plain:
        plain.sendall(b"a1 CAPABILITY\r\n")
        assert not plain.recv(100).startswith(b"*")


def test_no_patient_in_logs_nor_directory_names(running: Running) -> None:
    user = f"{PATIENT}@patient.mssante.test"
    assert running.deliver(user, "x", subject=f"Résultats de {PATIENT}".encode().decode("latin1"))[0] == 250
    running.texts(user)
    with pytest.raises(imaplib.IMAP4.error):
        running.log_in(user, "hunter2")
    running.laboratory.failures.clear()
    until(lambda: "Disconnected" in running.dovecot.log.read_text())
    log = running.dovecot.log.read_text()
    for secret in (PATIENT, "Compte rendu", "Résultats", "hunter2", "pass word"):
        assert secret not in log
    for realm in running.options.realms:
        assert not [path for path in realm.home.rglob("*") if PATIENT in str(path)]
    assert not re.search(r"\b(Error|Fatal|Panic|Warning): (?!.*(fd limit|Killed with signal 15))", log), log


@pytest.mark.parametrize(
    "change",
    [
        {"user": "root"},
        {"state": Path("/tmp/a b")},
        {"state": Path("relative")},
        {"key": Path("/tmp/x\nssl = no")},
        {"realms": (MailboxRealm(("*",), Path("/tmp/s"), Path("/tmp/h")),)},
        {"realms": (MailboxRealm(("A.test",), Path("/tmp/s"), Path("/tmp/h")),)},
        {"realms": (MailboxRealm(("a.test", "a.test"), Path("/tmp/s"), Path("/tmp/h")),)},
    ],
)
def test_unsafe_options_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    options: dict[str, object] = {
        "state": tmp_path,
        "imaps_port": 1,
        "certificate_chain": tmp_path / "c",
        "key": tmp_path / "k",
        "realms": (),
        "user": "daemon",
    }
    with pytest.raises(DovecotConfigurationError):
        PrivateDovecot(DovecotOptions(**(options | change))).prepare()
    assert not (tmp_path / "dovecot.conf").exists()


def test_realm_hides_addresses_and_knows_only_its_domains() -> None:
    realm = MailboxRealm(("a.test",), Path("/s"), Path("/h"))
    assert realm.home_of("X@A.test") == realm.home_of("x@a.test") != realm.home_of("y@a.test")
    assert realm.home_of("x@b.test") is None
    assert "279" not in str(realm.home_of(f"{PATIENT}@a.test"))[:6]
