"""Ordinary mail programs, given an address and a password: they find the rest, read what came and send what is theirs.

No host, port or certificate exception is typed here: each program's file is written from what the DNS or the
autoconfiguration says, and each judges the server's certificate.
"""

from __future__ import annotations

import asyncio
import contextlib
import imaplib
import mailbox
import os
import plistlib
import shlex
import shutil
import smtplib
import ssl
import subprocess
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from email.utils import make_msgid
from pathlib import Path
from typing import Any

import aioimaplib
import pytest
from cryptography import x509

from tests.support.discovering import Found, Network, network
from tests.support.private import give, service_directory, start_unprivileged, until
from tests.support.running import Running

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("up")]

DOCTOR = "adam.hoda@test-ci-sis.mssante.fr"
HOSPITAL = "cardiologie@ch-bellevue.mssante.fr"
ATTACHED = b"%PDF-1.4\n% note \xe2\xe3\xcf\xd3\n%%EOF\n"


@pytest.fixture(scope="module")
def net(up: Running) -> Iterator[Network]:
    with network(up.state, up.endpoints["ca_file"]) as (found, _):
        yield found


@pytest.fixture(scope="module")
def password(up: Running) -> Callable[[str], str]:
    by_address = {each["address"]: each["password"] for each in up.endpoints["accounts"]}
    return by_address.__getitem__


@pytest.fixture(scope="module")
def letter(up: Running, net: Network, password: Callable[[str], str]) -> str:
    """The Message-ID of one that has come into the doctor's mailbox, sent by Python's own client."""
    found, mail = net.by_srv(HOSPITAL), EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = HOSPITAL, DOCTOR, "Échographie de contrôle"
    mail["Message-ID"] = make_msgid(domain="ch-bellevue.mssante.fr")
    mail.set_content("Bonjour,\nle contrôle est normal.\n")
    mail.add_attachment(ATTACHED, maintype="application", subtype="pdf", filename="echo.pdf")
    context = ssl.create_default_context(cafile=net.ca_file)
    with smtplib.SMTP_SSL(found.smtp_host, found.smtp_port, timeout=20, context=context) as client:
        client.login(found.user, password(HOSPITAL))
        client.send_message(mail)
    up.wait_settled()
    until(lambda: any(each["Message-ID"] == mail["Message-ID"] for each in up.mails("gp")), 20, "the letter")
    return str(mail["Message-ID"])


@pytest.fixture
def home() -> Iterator[Path]:
    with service_directory() as path:
        yield path


@pytest.fixture
def run(home: Path) -> Callable[..., str]:
    """A program with a home of its own, never as root; its output."""

    def started(*argv: str, stdin: bytes = b"", **environment: str) -> str:
        if shutil.which(argv[0]) is None:
            pytest.skip(f"{argv[0]} is not installed")
        give(home)
        program = start_unprivileged(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=home,
            env={"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", "TERM": "xterm"} | environment,
        )
        try:
            output = program.communicate(stdin, timeout=30)[0].decode("utf-8", "replace")
        finally:
            program.kill()
            program.wait()
        assert program.returncode == 0, output
        return output

    return started


def write(path: Path, text: str) -> str:
    path.touch(mode=0o600)
    path.write_text(text)
    return str(path)


def identities(path: Path) -> list[str]:
    """Message-IDs in an mbox."""
    with contextlib.closing(mailbox.mbox(path)) as opened:
        return [each["Message-ID"] for each in opened]


def arrived(up: Running, role: str, subject: str) -> EmailMessage:
    """The mail with this subject, once it has come."""
    up.wait_settled()
    found: list[EmailMessage] = []

    def there() -> bool:
        found[:] = [each for each in up.mails(role) if each["Subject"] == subject]
        return bool(found)

    until(there, 20, "the mail")
    (mail,) = found
    return mail


# What is found


@pytest.mark.parametrize(
    "address",
    [DOCTOR, HOSPITAL, "279035121518989@patient.mssante.fr"],
    ids=["doctor", "hospital", "patient"],
)
def test_the_dns_and_the_file_say_the_same(net: Network, address: str) -> None:
    assert net.by_srv(address) == net.by_autoconfig(address)


def test_what_is_not_offered_is_said_to_be_so(net: Network) -> None:
    assert net.service("imap", "test-ci-sis.mssante.fr") is None
    assert net.service("pop3s", "test-ci-sis.mssante.fr") is None
    assert net.service("ldaps", "test-ci-sis.mssante.fr") is not None


def test_the_profile_of_an_iphone_is_signed_by_a_certificate_the_device_believes(
    net: Network, home: Path, run: Callable[..., str]
) -> None:
    status, headers, content = net.get("autoconfig.test-ci-sis.mssante.fr", f"/profil.mobileconfig?email={DOCTOR}")
    assert (status, headers["content-type"]) == (200, "application/x-apple-aspen-config")
    (home / "profile").write_bytes(content)
    run(
        *("openssl", "cms", "-verify", "-inform", "DER", "-in", "profile", "-out", "plain"),
        *("-CAfile", net.ca_file, "-purpose", "any"),
    )
    read: dict[str, Any] = plistlib.loads((home / "plain").read_bytes())
    parts = {each["PayloadType"]: each for each in read["PayloadContent"]}
    mail, found = parts["com.apple.mail.managed"], net.by_srv(DOCTOR)
    assert (mail["EmailAddress"], mail["IncomingMailServerUsername"]) == (DOCTOR, DOCTOR)
    assert (mail["IncomingMailServerHostName"], mail["IncomingMailServerPortNumber"]) == (
        found.imap_host,
        found.imap_port,
    )
    assert (mail["OutgoingMailServerHostName"], mail["OutgoingMailServerPortNumber"]) == (
        found.smtp_host,
        found.smtp_port,
    )
    assert mail["IncomingMailServerUseSSL"] is mail["OutgoingMailServerUseSSL"] is True
    assert not any("assword" in key and key != "OutgoingPasswordSameAsIncomingPassword" for key in mail)
    root = x509.load_der_x509_certificate(parts["com.apple.security.root"]["PayloadContent"])
    assert root == x509.load_pem_x509_certificate(Path(net.ca_file).read_bytes())
    book = parts["com.apple.ldap.account"]
    assert book["LDAPAccountUseSSL"] is True
    assert book["LDAPAccountHostName"] == "{}:{}".format(*net.service("ldaps", "test-ci-sis.mssante.fr") or ())


# Programs that read


def test_imaplib(net: Network, password: Callable[[str], str], letter: str) -> None:
    found = net.by_autoconfig(DOCTOR)
    context = ssl.create_default_context(cafile=net.ca_file)
    with imaplib.IMAP4_SSL(found.imap_host, found.imap_port, ssl_context=context, timeout=20) as client:
        client.login(found.user, password(DOCTOR))
        client.select("INBOX", readonly=True)
        _, numbers = client.search(None, "HEADER", "Message-ID", letter)
        assert len(numbers[0].split()) == 1


async def test_aioimaplib(net: Network, password: Callable[[str], str], letter: str) -> None:
    found = await asyncio.to_thread(net.by_srv, DOCTOR)
    context = ssl.create_default_context(cafile=net.ca_file)
    client = aioimaplib.IMAP4_SSL(found.imap_host, found.imap_port, timeout=20, ssl_context=context)
    await client.wait_hello_from_server()
    await client.login(found.user, password(DOCTOR))
    await client.select("INBOX")
    answer = await client.search(f'HEADER Message-ID "{letter}"', charset=None)
    assert len(answer.lines[0].split()) == 1
    await client.logout()


def test_mbsync(net: Network, password: Callable[[str], str], letter: str, home: Path, run: Callable[..., str]) -> None:
    found = net.by_srv(DOCTOR)
    (home / "mail").mkdir()
    rc = write(
        home / "mbsyncrc",
        f"IMAPStore far\nHost {found.imap_host}\nPort {found.imap_port}\nUser {found.user}\n"
        f"Pass {password(DOCTOR)}\nSSLType IMAPS\nSystemCertificates no\nCertificateFile {net.ca_file}\n\n"
        f"MaildirStore near\nPath {home}/mail/\nInbox {home}/mail/INBOX\n\n"
        "Channel all\nFar :far:\nNear :near:\nPatterns INBOX\nCreate Near\nSync Pull\n",
    )
    run("mbsync", "-c", rc, "all")
    assert letter in [each["Message-ID"] for each in mailbox.Maildir(home / "mail" / "INBOX")]


def test_curl(
    up: Running,
    net: Network,
    password: Callable[[str], str],
    letter: str,
    home: Path,
    run: Callable[..., str],
) -> None:
    found = net.by_autoconfig(DOCTOR)
    who = write(home / "who", f'user = "{found.user}:{password(DOCTOR)}"\n')
    url = f"imaps://{found.imap_host}:{found.imap_port}/INBOX?HEADER%20Message-ID%20%22{letter}%22"
    assert run("curl", "-s", "--cacert", net.ca_file, "-K", who, url).startswith("* SEARCH ")
    mail = f"From: {DOCTOR}\r\nTo: {HOSPITAL}\r\nSubject: De curl\r\nMessage-ID: {make_msgid()}\r\n\r\nBonjour\r\n"
    run(
        *("curl", "-sS", "--cacert", net.ca_file, "-K", who, f"smtps://{found.smtp_host}:{found.smtp_port}"),
        *("--mail-from", DOCTOR, "--mail-rcpt", HOSPITAL, "-T", "-"),
        stdin=mail.encode(),
    )
    assert "signature=valid" in arrived(up, "hospital", "De curl")["X-Relais-Verdict"]


def test_fetchmail(
    net: Network, password: Callable[[str], str], letter: str, home: Path, run: Callable[..., str]
) -> None:
    found = net.by_autoconfig(DOCTOR)
    rc = write(
        home / "fetchmailrc",
        f'poll "{found.imap_host}" service {found.imap_port} proto IMAP\n'
        f'user "{found.user}" password "{password(DOCTOR)}" is "here" here\n'
        f'ssl sslcertck sslcertfile "{net.ca_file}" keep fetchall mda "cat >> {home}/mbox"\n',
    )
    run("fetchmail", "-f", rc, "--nosyslog", "--invisible", "--pidfile", f"{home}/pid", FETCHMAILHOME=str(home))
    assert letter in (home / "mbox").read_text("utf-8", "replace")


def test_getmail(
    net: Network, password: Callable[[str], str], letter: str, home: Path, run: Callable[..., str]
) -> None:
    found = net.by_srv(DOCTOR)
    (home / "mbox").touch()
    rc = write(
        home / "getmailrc",
        f"[retriever]\ntype = SimpleIMAPSSLRetriever\nserver = {found.imap_host}\nport = {found.imap_port}\n"
        f'username = {found.user}\npassword = {password(DOCTOR)}\nmailboxes = ("INBOX",)\nca_certs = {net.ca_file}\n'
        f"[destination]\ntype = Mboxrd\npath = {home}/mbox\n[options]\nread_all = true\ndelete = false\n",
    )
    run("getmail", "--rcfile", rc, "--getmaildir", str(home))
    assert letter in identities(home / "mbox")


# Programs that send


def neomuttrc(path: Path, net: Network, found: Found, password: str) -> str:
    return write(
        path,
        f'set folder = "imaps://{found.imap_host}:{found.imap_port}/"\nset spoolfile = "+INBOX"\n'
        f'set imap_user = "{found.user}"\nset imap_pass = "{password}"\n'
        f'set smtp_url = "smtps://{found.user}@{found.smtp_host}:{found.smtp_port}/"\nset smtp_pass = "{password}"\n'
        f'set from = "{found.user}"\nset use_from = yes\nset envelope_from_address = "{found.user}"\n'
        f'set ssl_ca_certificates_file = "{net.ca_file}"\nset ssl_starttls = yes\n'
        "set ssl_force_tls = yes\nset ssl_verify_host = yes\n"
        'set record = ""\nset copy = no\nset confirmappend = no\nset header_cache = ""\nset delete = no\n'
        "set confirmcreate = no\nset mbox_type = mbox\nset wait_key = no\nset mark_old = no\n",
    )


@pytest.mark.parametrize("program", ["neomutt", "mutt"])
def test_a_text_program_sends_with_an_attachment(
    up: Running,
    net: Network,
    password: Callable[[str], str],
    home: Path,
    run: Callable[..., str],
    program: str,
) -> None:
    rc = neomuttrc(home / "rc", net, net.by_autoconfig(DOCTOR), password(DOCTOR))
    (home / "note.pdf").write_bytes(ATTACHED)
    subject = f"De {program}"
    run(
        *(program, "-n", "-F", rc, "-s", subject, "-a", f"{home}/note.pdf", "--", HOSPITAL),
        stdin="Précision demandée.\n".encode(),
    )
    mail = arrived(up, "hospital", subject)
    assert "signature=valid" in mail["X-Relais-Verdict"]
    assert ATTACHED in [part.get_payload(decode=True) for part in mail.walk()]


def test_neomutt_reads(
    net: Network, password: Callable[[str], str], letter: str, home: Path, run: Callable[..., str]
) -> None:
    rc = neomuttrc(home / "rc", net, net.by_srv(DOCTOR), password(DOCTOR))
    saved = home / "saved"
    keys = f"<tag-pattern>~A<enter><tag-prefix><copy-message>{saved}<enter><exit>"
    command = shlex.join(["neomutt", "-n", "-F", rc, "-e", f'push "{keys}"'])
    if shutil.which("neomutt") is None:
        pytest.skip("neomutt is not installed")
    run("script", "-qec", command, "/dev/null")
    assert letter in identities(saved)


def test_msmtp(up: Running, net: Network, password: Callable[[str], str], home: Path, run: Callable[..., str]) -> None:
    found = net.by_srv(DOCTOR)
    rc = write(
        home / "msmtprc",
        f"account default\nhost {found.smtp_host}\nport {found.smtp_port}\ntls on\ntls_starttls off\n"
        f"tls_trust_file {net.ca_file}\nauth on\nuser {found.user}\npassword {password(DOCTOR)}\nfrom {found.user}\n",
    )
    mail = f"From: {DOCTOR}\nTo: {HOSPITAL}\nSubject: De msmtp\nMessage-ID: {make_msgid()}\n\nBonjour\n"
    run("msmtp", "-C", rc, HOSPITAL, stdin=mail.encode())
    assert "signature=valid" in arrived(up, "hospital", "De msmtp")["X-Relais-Verdict"]
