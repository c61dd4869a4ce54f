"""What a mailbox is served with, over a real Dovecot: its key, its limit, its team, and what IMAP offers."""

from __future__ import annotations

import asyncio
import base64
import imaplib
import re
import smtplib
import socket
import stat
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from directory.records import MailboxKind
from mta.mailboxes.authentication import credential_key
from mta.mailboxes.dovecot import DELIVERY_HEADER, DovecotConfigurationError, check_configuration
from mta.mailboxes.lmtp import LmtpOptions, LmtpTarget
from mta.mailboxes.mailbox_keys import RING, MailboxKeys
from mta.mailboxes.records import MailboxState, MemberRight, ReadingPreferences
from mta.message import Deferred, Delivered, Failed, Message, Origin, Outcome
from tests.mta.test_authentication import seal
from tests.support.dovecot import PASSWORD, PATIENT, TOKEN, Running, a_dovecot
from tests.support.private import give, until
from trust.identities import Identity
from trust.sealing import VaultError
from trust.vault import KeyVault

DOCTOR = "medecin@ville.mssante.test"
NURSE = "garde@ville.mssante.test"
TEAM = "labo@ville.mssante.test"
BELOW = f'"Equipes/{TEAM}/INBOX"'
SECRET = "Hémoglobine 8 g/dL".encode()
READ, ALL = MemberRight.READ, MemberRight.READ | MemberRight.WRITE | MemberRight.SEND


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with a_dovecot() as server:
        server.registry.put(TEAM, MailboxKind.ORG)
        server.registry.teams[TEAM] = {DOCTOR: ALL, NURSE: READ}
        yield server


def home(running: Running, address: str) -> Path:
    found = running.options.realms[0].home_of(address)
    assert found is not None
    return found


def octets_below(*places: Path) -> bytes:
    return b"".join(each.read_bytes() for place in places for each in place.rglob("*") if each.is_file())


# --- At rest ----------------------------------------------------------------------------------------------------------


def test_nothing_of_a_mail_is_readable_on_the_disk(running: Running) -> None:
    """Nor of a large one, which Dovecot puts aside while it comes in, nor of what clients listed and searched."""
    user = f"{PATIENT}@patient.mssante.test"
    large = SECRET.decode() + "\r\n" + "secret line\r\n" * 40_000
    for text in (SECRET.decode(), large):
        content = f"Subject: Secretsubject\r\nFrom: secretfrom@x.test\r\n\r\n{text}\r\n".encode()
        with smtplib.LMTP(str(running.dovecot.lmtp_socket)) as lmtp:
            lmtp.ehlo()
            assert lmtp.sendmail("relay@ville.mssante.test", [user], content) == {}
    with running.log_in(user, PASSWORD) as client:
        client.append("Drafts", None, None, b"Subject: Secretsubject\r\n\r\n" + SECRET + b"\r\n")
        client.select("INBOX")
        assert client.fetch("1:*", "(ENVELOPE BODYSTRUCTURE BODY.PEEK[HEADER.FIELDS (SUBJECT)])")[0] == "OK"
        assert client.search("UTF-8", "BODY", '"secret line"')[1] == [b"2"]
        assert SECRET in client.fetch("1", "(BODY[])")[1][0][1]
        assert client.fetch("2", "(BODY[])")[1][0][1].count(b"secret line") == 40_000
        on_disk = octets_below(running.options.state.parent)
        ring = MailboxKeys(running.vault).ring(user, home(running, user))
        keys = [*(each.encode() for each in ring.generations), *(each.encode() for each in ring.fields().values())]
        for secret in (SECRET, b"secret line", b"Secretsubject", b"secretfrom", PATIENT.encode(), *keys):
            assert secret not in on_disk
    assert b"CRYPTED" in on_disk
    assert b"Secretsubject" in octets_below(running.dovecot.memory), "remembered, but in memory"
    assert stat.S_IMODE(running.dovecot.memory.stat().st_mode) == 0o700


def test_a_stolen_disk_with_another_vault_opens_nothing(running: Running, tmp_path: Path) -> None:
    running.deliver(DOCTOR, "x")
    mine = MailboxKeys(running.vault)
    assert mine.ring(DOCTOR, home(running, DOCTOR)) == mine.ring(DOCTOR, home(running, DOCTOR))
    with pytest.raises(VaultError) as caught:
        MailboxKeys(KeyVault.create(tmp_path / "other")).ring(DOCTOR, home(running, DOCTOR))
    assert "@" not in str(caught.value)
    with pytest.raises(VaultError):
        mine.read(NURSE, home(running, DOCTOR) / RING)


def test_an_altered_ring_makes_mail_wait_and_opens_nobody(running: Running) -> None:
    user = "o'neil+a=b@ville.mssante.test"
    assert running.deliver(user, "before")[0] == 250
    ring = home(running, user) / RING
    kept = ring.read_bytes()
    ring.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    assert running.deliver(user, "meanwhile")[0] == 451
    with pytest.raises(imaplib.IMAP4.error):
        running.texts(user)
    ring.write_bytes(kept)
    assert running.deliver(user, "after")[0] == 250
    assert running.texts(user) == [b"before", b"after"]


def test_after_a_renewal_old_and_new_mail_are_read(running: Running) -> None:
    address = "o'neil+a=b@ville.mssante.test"
    assert running.deliver(address, "older")[0] == 250
    before = running.texts(address)
    assert len(MailboxKeys(running.vault).renew(address, home(running, address)).generations) == 2
    give(home(running, address))
    assert running.deliver(address, "newer")[0] == 250
    assert running.texts(address) == [*before, b"newer"]


def test_a_lost_ring_is_not_replaced_beside_mail_it_alone_opens(running: Running) -> None:
    user = "o'neil+a=b@ville.mssante.test"
    assert running.deliver(user, "sealed")[0] == 250
    before = running.texts(user)
    ring = home(running, user) / RING
    kept = ring.read_bytes()
    ring.unlink()
    assert running.deliver(user, "meanwhile")[0] == 451, "waits"
    with pytest.raises(imaplib.IMAP4.error):
        running.texts(user)
    assert not ring.exists()
    ring.write_bytes(kept)
    give(home(running, user))
    assert running.texts(user) == before


def test_a_ring_grows_no_larger_than_dovecot_can_be_told(tmp_path: Path) -> None:
    keys = MailboxKeys(KeyVault.create(tmp_path / "vault"))
    for _ in range(15):
        ring = keys.renew(DOCTOR, tmp_path / "home")
    assert len(ring.generations) == 16
    assert sum(len(f"{name}={value}\t") for name, value in ring.fields().items()) < 7000
    with pytest.raises(VaultError):
        keys.renew(DOCTOR, tmp_path / "home")
    assert keys.ring(DOCTOR, tmp_path / "home") == ring


# --- Limits -----------------------------------------------------------------------------------------------------------


def lmtp_target(running: Running, full_seconds: float) -> LmtpTarget:
    return LmtpTarget(LmtpOptions("relay", running.dovecot.lmtp_socket, full_seconds=full_seconds))


def a_message(recipient: str, size: int, accepted_at: float) -> Message:
    return Message(
        message_id="<m@x.invalid>",
        spool_id="s",
        delivery_id=f"d{size}",
        origin=Origin.OPERATOR,
        sender="",
        recipient=recipient,
        content=f"{DELIVERY_HEADER}: d{size}\r\nSubject: x\r\n\r\n".encode() + b"x" * 70 * (size // 70) + b"\r\n",
        content_type="message/rfc822",
        accepted_at=accepted_at,
    )


def test_a_full_mailbox_defers_and_then_refuses(running: Running) -> None:
    """Mail waits while its reader may still make room; then the sender is told with 5.2.2."""

    async def deliver(size: int, age: float) -> Outcome:
        target = lmtp_target(running, 3600.0)
        try:
            return await target.deliver(a_message(NURSE, size, 1_000_000.0), now=lambda: 1_000_000.0 + age)
        finally:
            await target.close()

    running.registry.put(NURSE, quota_bytes=20_000)
    try:
        early = asyncio.run(deliver(40_000, 10.0))
        late = asyncio.run(deliver(40_000, 3601.0))
        small = asyncio.run(deliver(100, 3601.0))
        with running.log_in(NURSE, PASSWORD) as client:
            quota = client.getquotaroot("INBOX")[1]
            code, words = client.append("Drafts", None, None, b"Subject: x\r\n\r\n" + b"x" * 40_000)
    finally:
        del running.registry.records[NURSE]
    assert isinstance(early, Deferred)
    assert (early.reason.refusal.code, early.reason.refusal.smtp) == ("mta.mailbox-full-now", 452)
    assert isinstance(late, Failed)
    assert (late.reason.refusal.smtp, late.reason.refusal.enhanced) == (552, "5.2.2")
    assert not isinstance(small, Deferred | Failed)
    assert re.search(rb"STORAGE \d+ 20\b", b" ".join(quota[1])), quota
    assert code == "NO"
    assert b"OVERQUOTA" in words[0]


# --- What IMAP offers -------------------------------------------------------------------------------------------------


def test_imap_offers_what_clients_want(running: Running) -> None:
    wanted = {
        "IDLE", "MOVE", "CONDSTORE", "QRESYNC", "SPECIAL-USE", "QUOTA", "COMPRESS=DEFLATE", "NAMESPACE", "ACL",
        "UIDPLUS", "ESEARCH", "SORT", "LITERAL+", "NOTIFY",
    }  # fmt: skip
    with running.log_in(DOCTOR, PASSWORD) as client:
        offered = set(client.capability()[1][0].decode().split())
    assert wanted <= offered


def test_compression_is_spoken(running: Running) -> None:
    client = running.log_in(DOCTOR, PASSWORD)
    client.send(b"c1 COMPRESS DEFLATE\r\n")
    assert client.readline().startswith(b"c1 OK")
    deflate, inflate = zlib.compressobj(wbits=-15), zlib.decompressobj(wbits=-15)
    client.sock.sendall(deflate.compress(b"z1 NOOP\r\n") + deflate.flush(zlib.Z_SYNC_FLUSH))
    assert inflate.decompress(client.sock.recv(4096)).startswith(b"z1 OK")
    client.shutdown()


def test_changes_since_are_told_after_reconnecting(running: Running) -> None:
    user = "labo@ville.mssante.test"
    running.deliver(user, "one")
    with running.log_in(user, PASSWORD) as client:
        client.enable("QRESYNC")
        selected = client.select("INBOX")
        validity = client.response("UIDVALIDITY")[1][0].decode()
        modseq = client.response("HIGHESTMODSEQ")[1][0].decode()
    assert selected[0] == "OK"
    with running.log_in(user, PASSWORD) as client:
        client.select("INBOX")
        client.store("1", "+FLAGS", "\\Flagged")
    with running.log_in(user, PASSWORD) as client:
        client.enable("QRESYNC")
        client._simple_command("SELECT", "INBOX", f"(QRESYNC ({validity} {modseq}))")
        assert b"\\Flagged" in client.response("FETCH")[1][0]


def test_an_idle_session_hears_of_mail_at_once(running: Running) -> None:
    with running.log_in(DOCTOR, PASSWORD) as client:
        client.select("INBOX")
        client.send(b"i1 IDLE\r\n")
        assert client.readline().startswith(b"+")
        assert running.deliver(DOCTOR, "news")[0] == 250
        line = client.readline()
        while b"EXISTS" not in line:
            line = client.readline()
        client.send(b"DONE\r\n")
        while not client.readline().startswith(b"i1 OK"):
            pass


# --- Teams ------------------------------------------------------------------------------------------------------------


def test_a_member_reads_and_files_in_the_team_mailbox(running: Running) -> None:
    running.deliver(TEAM, "for the team", "team-1")
    with running.log_in(DOCTOR, PASSWORD) as doctor:
        assert b"Equipes/" in doctor.namespace()[1][0]
        assert any(TEAM.encode() in line for line in doctor.list()[1])
        assert doctor.select(BELOW)[0] == "OK"
        number = doctor.search(None, "BODY", '"for the team"')[1][0].split()[0].decode()
        doctor.store(number, "+FLAGS", "\\Answered")
        assert doctor.append(BELOW, "", None, b"Subject: y\r\n\r\nfiled by the doctor\r\n")[0] == "OK"
        assert doctor.copy(number, "INBOX")[0] == "OK"
        assert doctor.create(f'"Equipes/{TEAM}/Traites"')[0] == "OK"
        assert doctor.uid("COPY", number, f'"Equipes/{TEAM}/Traites"')[0] in ("OK", "NO")
    # What the doctor filed was written with the team's key, and what was copied out with the doctor's.
    assert b"filed by the doctor" in running.texts(TEAM)
    with running.log_in(NURSE, PASSWORD) as nurse:
        nurse.select(BELOW)
        flags = nurse.fetch("1:*", "(FLAGS)")[1]
        assert any(b"\\Answered" in line for line in flags), "who answered is seen by the others"
        number = nurse.search(None, "BODY", '"filed by the doctor"')[1][0].split()[0].decode()
        assert b"filed by the doctor" in nurse.fetch(number, "(BODY[])")[1][0][1]
    del running.registry.teams[TEAM][DOCTOR]
    try:
        assert b"for the team" in b"".join(running.texts(DOCTOR)), "a copy stays readable without the team"
    finally:
        running.registry.teams[TEAM][DOCTOR] = ALL


def test_who_may_only_read_changes_nothing(running: Running) -> None:
    running.deliver(TEAM, "kept", "team-2")
    with running.log_in(NURSE, PASSWORD) as nurse:
        nurse.select(BELOW)
        assert nurse.append(BELOW, "", None, b"Subject: y\r\n\r\nx\r\n")[0] == "NO"
        nurse.store("1:*", "+FLAGS", "\\Deleted")
        nurse.expunge()
        assert nurse.create(f'"Equipes/{TEAM}/Mien"')[0] == "NO"
    assert b"kept" in running.texts(TEAM)
    with running.log_in(DOCTOR, PASSWORD) as doctor:
        for attempt in (("INBOX", NURSE, "lr"), (BELOW, NURSE, "lrwstipekxa")):
            with suppress(imaplib.IMAP4.error):
                assert doctor.setacl(*attempt)[0] == "NO"


def test_nobody_else_sees_the_team(running: Running) -> None:
    stranger = f"{PATIENT}@patient.mssante.test"
    with running.log_in(stranger, PASSWORD) as client:
        assert not any(TEAM.encode() in (line or b"") for line in client.list()[1])
        assert client.select(BELOW)[0] == "NO"
    for user in (f"{TEAM}*{stranger}", f"{DOCTOR}*{NURSE}", f"{TEAM}*service@hopital.mssante.test"):
        with pytest.raises(imaplib.IMAP4.error):
            running.log_in(user, PASSWORD)


def test_a_member_opens_the_team_directly_with_their_own_password(running: Running) -> None:
    running.deliver(TEAM, "direct", "team-3")
    assert b"direct" in running.texts(f"{TEAM}*{DOCTOR}")
    with pytest.raises(imaplib.IMAP4.error):
        running.log_in(f"{TEAM}*{DOCTOR}", "wrong")
    running.laboratory.failures.clear()
    running.registry.put(TEAM, state=MailboxState.SUSPENDED)
    try:
        with pytest.raises(imaplib.IMAP4.error):
            running.log_in(f"{TEAM}*{DOCTOR}", PASSWORD)
    finally:
        running.registry.put(TEAM, state=MailboxState.ACTIVE)


def sieve_answer(running: Running, user: str, *lines: str) -> str:
    """The last answer of a ManageSieve session (RFC 5804), from this machine and so without TLS."""
    said = base64.b64encode(f"\0{user}\0{PASSWORD}".encode()).decode()
    port = running.options.managesieve_port
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client, client.makefile("rwb") as stream:
        answer = b""
        for line in ("", f'AUTHENTICATE "PLAIN" "{said}"', *lines):
            if line:
                stream.write(line.encode() + b"\r\n")
                stream.flush()
            answer = b""
            while not answer.startswith((b"OK", b"NO", b"BYE")):
                answer = stream.readline()
                assert answer
        return answer.decode()


def test_only_who_writes_in_the_team_s_mailbox_says_what_becomes_of_its_mail(running: Running) -> None:
    assert sieve_answer(running, TEAM, "LISTSCRIPTS").startswith("OK")
    assert sieve_answer(running, f"{TEAM}*{DOCTOR}", "LISTSCRIPTS").startswith("OK")
    assert sieve_answer(running, f"{TEAM}*{NURSE}").startswith("NO")
    place, serving = home(running, TEAM), running.sockets[0].serving
    assert serving.fields(TEAM, place, NURSE, "sieve") is None
    assert serving.fields(TEAM, place, NURSE, "imap") is not None


def test_whom_a_member_lets_into_their_own_mailbox_is_no_member(running: Running) -> None:
    assistant = Identity("opaque", NURSE, (NURSE,))
    server = running.sockets[0].server
    known, server._sign_in = server._sign_in, lambda *_: assistant
    try:
        running.log_in(DOCTOR, PASSWORD).logout()
        with pytest.raises(imaplib.IMAP4.error):
            running.log_in(f"{TEAM}*{DOCTOR}", PASSWORD)
    finally:
        server._sign_in = known


def test_a_ticket_is_good_on_this_machine_and_for_a_time(running: Running) -> None:
    socket_, now = running.sockets[0], time.time()
    ticket = socket_.serving.ticket(DOCTOR)
    running.log_in(f"{TEAM}*{DOCTOR}", ticket).logout()

    def opens(client: str) -> bool:
        sealed = seal(credential_key(socket_.server.path), ticket)
        key = f"shared/member/{DOCTOR}/{sealed}/{TEAM}/imap/{client}/PLAIN"
        return socket_.server.look_up(key) is not None

    assert opens("127.0.0.1")
    assert not opens("192.0.2.1")
    running.laboratory.failures.clear()
    socket_.serving._clock = lambda: now + 15 * 86400
    try:
        assert not opens("127.0.0.1")
    finally:
        socket_.serving._clock = time.time
    running.laboratory.failures.clear()


def test_a_token_opens_the_team_and_a_wrong_one_is_no_guess_at_a_password(running: Running) -> None:
    def words(token: str) -> bytes:
        return f"user={TEAM}*{DOCTOR}\x01auth=Bearer {token}\x01\x01".encode()

    with running.imap() as client:
        assert client.authenticate("XOAUTH2", lambda _: words(TOKEN))[0] == "OK"
        assert client.select("INBOX")[0] == "OK"
    running.laboratory.failures.clear()
    client, said = running.imap(), iter([words(TOKEN[:-1]), b"\x01"])
    with pytest.raises(imaplib.IMAP4.error):
        client.authenticate("XOAUTH2", lambda _: next(said))
    client.shutdown()
    assert not running.laboratory.failures


@pytest.mark.parametrize("per_member", [False, True])
def test_seen_is_shared_or_each_members_own(running: Running, per_member: bool) -> None:
    running.registry.put(TEAM, preferences=ReadingPreferences(seen_per_member=per_member))
    running.deliver(TEAM, f"seen {per_member}", f"seen-{per_member}")

    def seen(user: str) -> bool:
        with running.log_in(user, PASSWORD) as client:
            count = client.select(BELOW)[1][0].decode()
            return b"\\Seen" in client.fetch(count, "(FLAGS)")[1][0]

    with running.log_in(DOCTOR, PASSWORD) as doctor:
        count = doctor.select(BELOW)[1][0].decode()
        doctor.fetch(count, "(BODY[])")
    assert seen(DOCTOR)
    assert seen(NURSE) is not per_member


def test_a_member_who_leaves_loses_the_list_at_once(running: Running) -> None:
    with running.log_in(NURSE, PASSWORD) as nurse:
        assert any(TEAM.encode() in line for line in nurse.list()[1])
    members = running.registry.teams.pop(TEAM)
    try:
        with running.log_in(NURSE, PASSWORD) as nurse:
            assert not any(TEAM.encode() in line for line in nurse.list()[1])
            assert nurse.select(BELOW)[0] == "NO"
    finally:
        running.registry.teams[TEAM] = members


# --- The configuration ------------------------------------------------------------------------------------------------


def test_dovecot_reads_the_configuration_before_it_counts(running: Running, tmp_path: Path) -> None:
    check_configuration(running.dovecot.configuration)
    broken = tmp_path / "broken.conf"
    broken.write_text(running.dovecot.configuration.read_text() + "\nno_such_setting = yes\n")
    with pytest.raises(DovecotConfigurationError, match="no_such_setting"):
        check_configuration(broken)
    with pytest.raises(DovecotConfigurationError, match="doveconf"):
        check_configuration(broken, tmp_path / "absent")


def test_members_and_machines_do_not_share_one_limit(running: Running) -> None:
    def limit(client: str) -> str:
        argv = ["doveconf", "-c", str(running.dovecot.configuration), "-f", f"remote={client}", "-h"]
        return subprocess.run(
            [*argv, "mail_max_userip_connections"], check=True, capture_output=True, text=True
        ).stdout.strip()

    assert (limit("127.0.0.1"), limit("192.0.2.1")) == ("0", "100")


def test_no_error_was_logged_and_nobody_named(running: Running) -> None:
    until(lambda: "Disconnected" in running.dovecot.log.read_text())
    log = running.dovecot.log.read_text()
    assert PATIENT not in log
    assert "Secretsubject" not in log
    errors = re.findall(r"^.*(?:Error|Fatal|Panic): .*$", log, re.M)
    expected = r"Failed to lookup|dict|userdb|auth|Killed with signal 15|imapc\(127.0.0.1"
    assert not [line for line in errors if not re.search(expected, line)], errors


# --- Faults -----------------------------------------------------------------------------------------------------------


def test_mail_waits_while_dovecot_is_down_and_comes_once() -> None:
    async def deliver(running: Running, repeated: bool) -> Outcome:
        options = LmtpOptions("relay", running.dovecot.lmtp_socket, search_socket=running.dovecot.search_socket)
        target = LmtpTarget(options)
        try:
            return await target.deliver(replace(a_message(DOCTOR, 700, time.time()), repeated=repeated))
        finally:
            await target.close()

    with a_dovecot() as running:
        running.process.terminate()
        running.process.wait(10)
        for repeated in (False, True):
            assert isinstance(asyncio.run(deliver(running, repeated)), Deferred)
        running.restart()
        for repeated in (True, True):
            assert isinstance(asyncio.run(deliver(running, repeated)), Delivered)
        assert len(running.texts(DOCTOR)) == 1


def test_mail_for_a_mailbox_that_is_being_moved_waits_without_asking(tmp_path: Path) -> None:
    options = LmtpOptions("relay", tmp_path / "nothing", is_held=lambda address: address == DOCTOR)

    async def deliver() -> Outcome:
        target = LmtpTarget(options)
        try:
            return await target.deliver(a_message(DOCTOR, 700, time.time()))
        finally:
            await target.close()

    outcome = asyncio.run(deliver())
    assert isinstance(outcome, Deferred)
    assert outcome.reason.detail == "the mailbox is being moved"


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_an_inbox_of_fifty_thousand_mails_stays_quick() -> None:
    """Encrypted and without a full-text index: what a mail program does when it opens such a mailbox."""
    with a_dovecot() as running:
        assert running.deliver(DOCTOR, "first", "first")[0] == 250
        with running.log_in(DOCTOR, PASSWORD) as client:
            client.select("INBOX")
            while int(client.select("INBOX")[1][0]) < 50_000:
                assert client.copy("1:*", "INBOX")[0] == "OK"
        took: dict[str, float] = {}

        def timed(what: str, work: Callable[[], object]) -> None:
            began = time.monotonic()
            work()
            took[what] = time.monotonic() - began

        with running.log_in(DOCTOR, PASSWORD) as client:
            timed("select", lambda: client.select("INBOX"))
            count = int(client.select("INBOX")[1][0])
            timed("first screen", lambda: client.fetch(f"{count - 49}:{count}", "(FLAGS ENVELOPE RFC822.SIZE)"))
            timed("one mail", lambda: client.fetch(f"{count // 2}", "(BODY[])"))
            timed("flags of all", lambda: client.fetch("1:*", "(FLAGS)"))
            timed("search since", lambda: client.search(None, "SINCE", "1-Jan-2020"))
            timed("first listing of all", lambda: client.fetch("1:*", "(ENVELOPE)"))
            timed("second listing of all", lambda: client.fetch("1:*", "(ENVELOPE)"))
            timed("search in subjects", lambda: client.search(None, "SUBJECT", "Compte"))
            timed("search in texts of 5,000", lambda: client.search(None, f"{count - 4999}:{count}", "BODY", "first"))
            client.send(b"i1 IDLE\r\n")
            client.readline()
            timed("notice", lambda: _hear_of(running, client))
        print(f"{count} mails:", {what: round(seconds, 3) for what, seconds in took.items()})
        assert took["select"] < 1.0
        assert took["first screen"] < 1.0
        assert took["one mail"] < 0.5
        assert took["notice"] < 5.0
        assert took["second listing of all"] < took["first listing of all"]


def _hear_of(running: Running, client: imaplib.IMAP4) -> None:
    assert running.deliver(DOCTOR, "news", "news")[0] == 250
    while b"EXISTS" not in client.readline():
        pass
    client.send(b"DONE\r\n")
    while not client.readline().startswith(b"i1 OK"):
        pass
