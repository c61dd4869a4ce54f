"""The private slapd: first load, stop, crash, restart."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from directory.entries import from_recipient
from directory.ldif import LdifEntry
from directory.load import LoadReport, entries
from directory.records import MailboxKind, Recipient
from directory.resolve import DirectoryUnavailableError
from directory.slapd import PrivateSlapd, SlapdError
from directory.synthetic import write_extraction
from tests.directory.conftest import BASE, DOCTOR, PATIENT, RECIPIENTS, Server, fixture_entries
from tests.support.private import service_ids


def test_two_thousand_professionals_end_to_end(server: Server, tmp_path: Path) -> None:
    files = write_extraction(tmp_path, 2000)
    report = LoadReport()
    count = server.slapd.load(entries(files.mssante, files.practice, BASE, report=report))
    server.start()
    with server.directory() as directory:
        lines = files.mssante.read_text("utf-8").splitlines()[1:]
        for line in lines[:: len(lines) // 50]:
            fields = line.split("|")
            found = directory.resolve(fields[1])
            assert found is not None and found.kind.value == fields[0]
            assert found.id_nat == (fields[4] or "1" + fields[6])
            assert found.structure == "1" + fields[6]
            assert found.profession == fields[13]
    assert report.mailboxes == len(lines)
    assert count == report.mailboxes + report.others


def test_stopped_then_restarted(server: Server) -> None:
    server.slapd.load(fixture_entries())
    server.start()
    with server.directory(timeout_seconds=2.0) as directory:
        assert directory.resolve(DOCTOR) is not None
        server.stop()
        started = time.monotonic()
        with pytest.raises(DirectoryUnavailableError):
            directory.resolve(DOCTOR)
        assert time.monotonic() - started < 2.5
        server.start()
        assert directory.resolve(DOCTOR) is not None


def test_a_connection_that_died_meanwhile_is_replaced_silently(server: Server) -> None:
    server.slapd.load(fixture_entries())
    server.start()
    with server.directory() as directory:
        assert directory.resolve(DOCTOR) is not None
        server.stop()
        server.start()
        assert directory.resolve(DOCTOR) is not None


def test_a_frozen_server_costs_the_timeout_only(server: Server) -> None:
    server.slapd.load(fixture_entries())
    server.start()
    with server.directory(timeout_seconds=0.5) as directory:
        assert directory.resolve(DOCTOR) is not None
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, server.process.pid, os.WSTOPPED | os.WNOWAIT)  # it may have had an answer to give yet
        try:
            started = time.monotonic()
            with pytest.raises(DirectoryUnavailableError):
                directory.resolve(DOCTOR)
            with pytest.raises(DirectoryUnavailableError):
                directory.resolve(DOCTOR)
            assert time.monotonic() - started < 3
        finally:
            server.process.send_signal(signal.SIGCONT)
    with server.directory() as directory:
        assert directory.resolve(DOCTOR) is not None


def test_killed_after_a_publication_keeps_it(server: Server) -> None:
    server.slapd.load(())
    server.start()
    patient = RECIPIENTS[2]
    with server.directory("admin") as admin:
        admin.publish(patient)
        server.stop(signal.SIGKILL)
    server.start()
    with server.directory() as directory:
        assert directory.resolve(PATIENT) == patient


def test_prepare_again_changes_passwords_and_keeps_data(server: Server) -> None:
    server.slapd.load(fixture_entries())
    options = replace(server.slapd._options, gateway_password="another-secret")
    server.slapd = PrivateSlapd(options)
    server.slapd.prepare()
    server.slapd.prepare()
    assert not server.slapd.is_empty
    server.start()
    with server.directory() as directory, pytest.raises(DirectoryUnavailableError, match="identity"):
        directory.resolve(DOCTOR)
    with server.directory(password="another-secret") as directory:
        assert directory.resolve(DOCTOR) is not None


def test_a_first_load_needs_an_empty_stopped_directory(server: Server) -> None:
    assert server.slapd.is_empty
    assert server.slapd.load(()) == 0
    assert not server.slapd.is_empty
    with pytest.raises(SlapdError, match="already holds data"):
        server.slapd.load(fixture_entries())
    server.start()
    assert not server.slapd.is_empty
    with pytest.raises(SlapdError, match="running"):
        server.slapd.load(fixture_entries())


def test_started_without_a_load_it_is_still_empty(server: Server) -> None:
    server.start()
    assert server.slapd.is_empty
    server.stop()
    assert server.slapd.load(fixture_entries()) == len(RECIPIENTS) + 1


def test_a_load_that_fails_leaves_nothing_and_names_nobody(server: Server) -> None:
    wrong = from_recipient(Recipient(PATIENT, MailboxKind.PATIENT, ""), BASE)
    wrong = LdifEntry(wrong.dn, dict(wrong.attributes) | {"listeRouge": (b"MAYBE",)})
    with pytest.raises(SlapdError) as caught:
        server.slapd.load([*fixture_entries(), wrong])
    assert "line" in str(caught.value) and "299" not in str(caught.value)
    assert server.slapd.is_empty

    def broken() -> Iterator[LdifEntry]:
        yield from fixture_entries()
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        server.slapd.load(broken())
    assert server.slapd.is_empty
    assert server.slapd.load(fixture_entries()) == len(RECIPIENTS) + 1


def test_it_runs_unprivileged_and_writes_only_under_its_state(server: Server) -> None:
    server.slapd.load(fixture_entries())
    server.start()
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    uid = next(line.split()[1] for line in status.splitlines() if line.startswith("Uid:"))
    ids = service_ids()
    assert int(uid) == (ids[0] if ids else os.geteuid()) != 0
    for path in (server.state, server.state / "data"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    configuration = server.state / "slapd.conf"
    assert stat.S_IMODE(configuration.stat().st_mode) == 0o600
    assert "secret" not in configuration.read_text()
    assert "secret" not in repr(server.slapd._options)
    opened = {str(fd.readlink()) for fd in Path(f"/proc/{server.process.pid}/fd").iterdir()}
    written = {name for name in opened if name.startswith("/") and not name.startswith(("/dev/", "/proc/"))}
    written = {name for name in written if not name.endswith("(deleted)")}  # what pytest captures
    assert all(name.startswith(str(server.state)) for name in written), written


@pytest.mark.parametrize(
    ("version", "accepted"), [("-tls1", False), ("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)]
)
def test_only_current_tls_versions_are_spoken(running: Server, version: str, accepted: bool) -> None:
    target = running.slapd.ldaps_uri.removeprefix("ldaps://")
    argv = ["openssl", "s_client", version, "-cipher", "ALL:@SECLEVEL=0", "-connect", target]
    result = subprocess.run(argv, input=b"", capture_output=True, check=False, timeout=20)
    negotiated = b"Cipher is (NONE)" not in result.stdout and b"CONNECTED" in result.stdout
    assert negotiated is accepted


def test_stale_files_of_a_killed_slapd_do_not_hinder(server: Server) -> None:
    server.slapd.load(fixture_entries())
    server.start()
    server.stop(signal.SIGKILL)
    assert (server.state / "run" / "ldapi").exists()
    assert not server.slapd.ready()
    server.start()
    assert server.slapd.ready()


def test_what_cannot_work_is_said_in_a_sentence(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    options = server.slapd._options
    with pytest.raises(ValueError, match="shorter"):
        PrivateSlapd(replace(options, state=Path("/tmp/" + "x" * 120)))
    with pytest.raises(ValueError, match="quote"):
        PrivateSlapd(replace(options, key=Path('/tmp/k"ey')))
    with pytest.raises(ValueError, match="base"):
        PrivateSlapd(replace(options, base="c=FR"))
    with pytest.raises(ValueError, match="base"):
        PrivateSlapd(replace(options, base="nonsense"))
    with pytest.raises(SlapdError, match="nonexistent"):
        PrivateSlapd(replace(options, key=Path("/nonexistent/key.pem"))).prepare()
    monkeypatch.setattr("directory.slapd._PROGRAMS", ())
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SlapdError, match="install"):
        server.slapd.command()


@pytest.mark.parametrize("base", ["o=Démonstration", "ou=annuaire,o=x", "dc=mssante,dc=fr"])
def test_other_bases(server: Server, base: str) -> None:
    slapd = PrivateSlapd(replace(server.slapd._options, base=base))
    slapd.prepare()
    assert slapd.load([from_recipient(Recipient(DOCTOR, MailboxKind.PER, "x"), base)]) == 1
    assert not slapd.is_empty


def test_data_written_under_other_indexes_is_found(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as before:
        before.setattr("directory.schema.INDEXES", "index objectClass eq\n")
        server.slapd.prepare()
        server.slapd.load(fixture_entries())
        server.start()
        server.stop()
    server.start()
    with server.directory() as directory:
        assert directory.resolve(DOCTOR) is not None
        assert [one.address for one in directory.search("claire").found] == [DOCTOR]
