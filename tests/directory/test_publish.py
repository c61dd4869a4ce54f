"""The local overlay, written into a real slapd."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from directory.ldif import LdifEntry
from directory.load import LoadReport, entries
from directory.records import MailboxKind, Recipient
from directory.resolve import Directory, DirectoryRefusedError
from directory.synthetic import write_extraction
from tests.directory.conftest import BASE, BOTH, ENCRYPTING, SIGNING, UNRESTRICTED, Server
from tests.directory.test_resolve import addresses, connect

MACHINE = Recipient(
    address="robot@demo-publish.mssante.fr",
    kind=MailboxKind.APP,
    display_name="Automate de démonstration",
    encryption_certificates=(ENCRYPTING,),
    signing_certificates=(SIGNING,),
    id_nat="1990000007",
    structure="1990000007",
    organisation="Laboratoire",
)


def stored(server: Server, address: str) -> list[tuple[str, dict[str, list[bytes]]]]:
    connection = connect(server, "gateway")
    try:
        found: list[tuple[str, Any]] = connection.search_s(BASE, 2, f"(mail={address})", ["*", "+"])
        return found
    finally:
        connection.unbind_s()


def test_publishing_twice_writes_once(running: Server, admin: Directory, directory: Directory) -> None:
    admin.publish(MACHINE)
    first = stored(running, MACHINE.address)
    admin.publish(MACHINE)
    assert stored(running, MACHINE.address) == first
    assert directory.resolve(MACHINE.address) == MACHINE


def test_publishing_again_replaces_and_removes(running: Server, admin: Directory, directory: Directory) -> None:
    before = replace(MACHINE, address="changing@demo-publish.mssante.fr")
    admin.publish(before)
    after = replace(before, display_name="", organisation="Autre", encryption_certificates=(BOTH,), structure="")
    after = replace(after, signing_certificates=(BOTH,))
    admin.publish(after)
    assert directory.resolve(before.address) == after


def test_a_mailbox_may_change_its_kind(admin: Directory, directory: Directory, running: Server) -> None:
    machine = replace(MACHINE, address="kind@demo-publish.mssante.fr")
    admin.publish(machine)
    admin.publish(replace(machine, kind=MailboxKind.ORG))
    assert directory.resolve(machine.address) == replace(machine, kind=MailboxKind.ORG)
    assert len(stored(running, machine.address)) == 1


def test_upper_case_is_published_in_lower_case(admin: Directory, directory: Directory) -> None:
    admin.publish(replace(MACHINE, address="Upper@Demo-Publish.mssante.fr"))
    found = directory.resolve("upper@demo-publish.mssante.fr")
    assert found is not None and found.address == "upper@demo-publish.mssante.fr"
    admin.publish(replace(MACHINE, address="UPPER@demo-publish.mssante.fr"))


def test_the_red_list_stays_until_somebody_takes_it_off(running: Server, admin: Directory) -> None:
    person = Recipient("red@demo-publish.mssante.fr", MailboxKind.PER, "Dr Rouge")
    public = connect(running, "anonymous")
    for red_list, visible in ((True, False), (None, False), (False, True), (None, True)):
        admin.publish(person, red_list=red_list)
        assert (person.address in addresses(public, text="(mail=red@demo-publish*)")) is visible
        assert addresses(public, text=f"(mail={person.address})") == {person.address}
    public.unbind_s()


def test_threads_publishing_the_same_mailbox_agree(admin: Directory, directory: Directory) -> None:
    machine = replace(MACHINE, address="raced@demo-publish.mssante.fr")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(admin.publish, [machine] * 24))
    assert directory.resolve(machine.address) == machine


def test_only_the_administrator_publishes(directory: Directory) -> None:
    with pytest.raises(DirectoryRefusedError) as caught:
        directory.publish(replace(MACHINE, address="forbidden@demo-publish.mssante.fr"))
    assert "forbidden" not in str(caught.value)
    assert directory.resolve("forbidden@demo-publish.mssante.fr") is None


@pytest.mark.parametrize("address", ["", "nobody", "x@y\r\nTypeBAL: PER", "é@demo.mssante.fr"])
def test_what_is_no_address_is_not_published(admin: Directory, address: str) -> None:
    with pytest.raises(ValueError, match="valid address"):
        admin.publish(replace(MACHINE, address=address))


def test_certificates_go_to_the_register_s_mailbox_and_leave_its_identity(server: Server, tmp_path: Path) -> None:
    files = write_extraction(tmp_path, 30)
    server.slapd.load(entries(files.mssante, files.practice, BASE))
    server.start()
    address = files.mssante.read_text("utf-8").splitlines()[1].split("|")[1]
    with server.directory("admin") as admin:
        national = admin.resolve(address)
        assert national is not None and national.id_nat
        mine = Recipient(address, MailboxKind.ORG, "Somebody else", (ENCRYPTING,), (SIGNING,))
        admin.publish(mine)
        admin.publish(mine)
        found = admin.resolve(address)
        assert found == replace(national, encryption_certificates=(ENCRYPTING,), signing_certificates=(SIGNING,))
        ((_, values),) = stored(server, address)
        assert values["SourceBAL"] == [b"NATIONAL"]
        assert values["AttributLocal"] == [b"userCertificate"]
        admin.publish(Recipient(address, MailboxKind.ORG, ""), certificates=False)
        assert admin.resolve(address) == found, "not said to be none"
        admin.publish(replace(mine, encryption_certificates=(), signing_certificates=()))
        assert admin.resolve(address) == national
        assert "AttributLocal" not in stored(server, address)[0][1]


def test_a_withdrawn_mailbox_is_no_more(running: Server, admin: Directory, directory: Directory) -> None:
    closed, other = (replace(MACHINE, address=f"{name}@demo-withdraw.mssante.fr") for name in ("closed", "other"))
    admin.publish(closed)
    admin.publish(other)
    assert admin.withdraw(closed.address.upper())
    assert directory.resolve(closed.address) is None
    assert directory.resolve(other.address) == other
    assert not admin.withdraw(closed.address), "once"
    for wrong in ("*@demo-withdraw.mssante.fr", "", "closed", "other@demo-withdraw.mssante.fr)(mail=*"):
        assert not admin.withdraw(wrong)
    assert directory.resolve(other.address) == other
    with pytest.raises(DirectoryRefusedError):
        directory.withdraw(other.address)


def test_the_register_s_entry_loses_our_certificates_only(server: Server, tmp_path: Path) -> None:
    files = write_extraction(tmp_path, 30)
    server.slapd.load(entries(files.mssante, files.practice, BASE))
    server.start()
    address = files.mssante.read_text("utf-8").splitlines()[1].split("|")[1]
    with server.directory("admin") as admin:
        national = admin.resolve(address)
        assert national is not None
        admin.publish(Recipient(address, MailboxKind.PER, "", (ENCRYPTING,)), red_list=True)
        assert admin.withdraw(address)
        assert admin.resolve(address) == national
        ((_, values),) = stored(server, address)
        assert values["AttributLocal"] == [b"listeRouge"]
        assert admin.withdraw(address)


def test_a_first_load_takes_the_overlay_along(server: Server, tmp_path: Path) -> None:
    files = write_extraction(tmp_path, 30)
    address = files.mssante.read_text("utf-8").splitlines()[1].split("|")[1]
    overlay = [
        MACHINE,
        Recipient(address, MailboxKind.PER, "", (UNRESTRICTED,), (UNRESTRICTED,)),
        Recipient(
            files.mssante.read_text("utf-8").splitlines()[2].split("|")[1], MailboxKind.PER, "without certificates"
        ),
    ]
    report = LoadReport()
    loaded: list[LdifEntry] = list(entries(files.mssante, None, BASE, overlay, report))
    assert report.overlaid == 2
    assert server.slapd.load(loaded) == report.mailboxes + 1
    server.start()
    with server.directory() as directory:
        assert directory.resolve(MACHINE.address) == MACHINE
        found = directory.resolve(address)
        assert found is not None and found.id_nat.startswith("8999")
        assert found.encryption_certificates == found.signing_certificates == (UNRESTRICTED,)
