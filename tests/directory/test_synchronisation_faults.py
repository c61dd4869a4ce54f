"""What goes wrong while the directory is brought in step, on a real slapd: nothing is lost, the next run goes on."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import ldap
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from directory.guards import Limits
from directory.runs import RunReport
from directory.slapd import PrivateSlapd
from directory.synchronisation import Synchronisation, SynchronisationOptions
from directory.synthetic import ExtractionFiles
from tests.directory.conftest import BASE, KEY, Server
from tests.directory.synchronising import NOW, World
from tests.directory.test_synchronisation import DOCTOR, dn_of
from tests.support.fault_proxy import Fault, proxying
from tests.support.private import until

_ONE_RUN = """
import sys
from datetime import datetime
from pathlib import Path
from directory.administration import AdministratorOptions
from directory.guards import Limits
from directory.synchronisation import Synchronisation, SynchronisationOptions

uri, base, dn, password, ca, folder, files, now = sys.argv[1:]
options = AdministratorOptions(uri, base, dn, password, Path(ca))
limits = Limits(loss_percent=100, change_percent=100)
report = Synchronisation(SynchronisationOptions(options, Path(folder), limits=limits, apart=False)).run(
    [Path(files)], now=lambda: datetime.fromisoformat(now)
)
print(report.outcome)
"""


@pytest.fixture
def world(server: Server, tmp_path: Path) -> Iterator[World]:
    server.start()
    yield World(server, tmp_path)


def configure(server: Server, **replacements: str) -> None:
    """Start slapd again with its configuration changed."""
    server.stop()
    prepare = PrivateSlapd.prepare

    def changed(slapd: PrivateSlapd) -> None:
        prepare(slapd)
        path = server.state / "slapd.conf"
        text = path.read_text()
        for before, after in replacements.items():
            line = before.replace("_", " ")
            assert line in text
            text = text.replace(line, after)
        path.write_text(text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrivateSlapd, "prepare", changed)
        server.start()


def start_run(world: World, files: ExtractionFiles) -> subprocess.Popen[bytes]:
    options = world.administrator
    return subprocess.Popen(
        [
            *(sys.executable, "-c", _ONE_RUN, options.uri, BASE, options.bind_dn, options.password),
            *(str(options.ca_file), str(world.folder / "sync"), str(files.mssante.parent), NOW.isoformat()),
        ]
    )


def expired_certificate() -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "slapd")])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder(name, name, KEY.public_key(), 7, now - timedelta(days=9), now - timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(KEY, hashes.SHA256())
    )


def test_killed_in_the_middle_then_run_again(world: World) -> None:
    files = world.publish(60, extra=(DOCTOR,))
    process = start_run(world, files)

    def some() -> bool:
        try:
            return len(world.entries("1.1")) > 20
        except ldap.NO_SUCH_OBJECT:
            return False

    until(some, what="a part of the entries")
    process.kill()
    process.wait()
    before = world.entries("entryCSN")
    (killed,) = world.synchronisation().reports.newest_first()
    assert killed.outcome == "running"
    report = world.run(files)
    assert (report.outcome, report.refused, report.changed) == ("applied", {}, 0)
    after = world.entries("entryCSN")
    # What was on its way when it was killed may have arrived after we looked.
    assert len(after) == killed.to_add >= len(before) + report.added
    assert {dn: after[dn] for dn in before} == before
    assert world.run(files).added == 0
    assert not (world.folder / "sync" / "work").exists()


def test_killed_at_any_moment_it_ends_where_an_undisturbed_run_does(world: World) -> None:
    """SIGKILL a dozen times, some of them before the first write, some in the middle of adding, changing, removing."""
    first, files = world.publish(60, extra=(DOCTOR,)), world.publish(60, seed=2)
    world.limits = Limits(loss_percent=100, change_percent=100)
    chance = random.Random(7)
    kills = 0
    for target in (first, files):
        for _ in range(6):
            process = start_run(world, target)
            try:
                process.wait(chance.uniform(0.2, 1.5))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
    assert kills
    report = world.run(files)
    assert (report.outcome, report.refused) == ("applied", {})
    found = world.entries()
    world.server.stop()
    shutil.rmtree(world.server.state / "data")
    world.server.start()
    undisturbed = World(world.server, world.folder / "undisturbed")
    assert undisturbed.run(files).outcome == "applied"
    assert undisturbed.entries() == found


def test_an_expired_certificate_interrupts_and_is_told(world: World, tmp_path: Path) -> None:
    world.run(world.publish())
    before = world.entries("entryCSN")
    old = expired_certificate()
    chain = world.server.slapd._options.certificate_chain
    world.server.stop()
    world.server.slapd = PrivateSlapd(replace(world.server.slapd._options, certificate_chain=tmp_path / "old.pem"))
    (tmp_path / "old.pem").write_bytes(old.public_bytes(Encoding.PEM))
    world.server.ca = tmp_path / "old.pem"
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    (tmp_path / "old.pem").chmod(0o644)
    world.server.start()
    world.patience_seconds = 0.2
    files = world.publish(extra=(DOCTOR,))
    report = world.run(files)
    assert (report.outcome, "SERVER_DOWN" in report.error) == ("interrupted", True)
    assert world.entries("entryCSN") == before
    world.server.stop()
    world.server.slapd = PrivateSlapd(replace(world.server.slapd._options, certificate_chain=chain))
    world.server.ca = chain
    world.server.start()
    assert world.run(files).outcome == "applied"


def test_emptied_in_the_middle_of_writing(world: World) -> None:
    """Its data is gone between the comparison and the changes: that is not called applied."""
    world.run(world.publish(60, extra=(DOCTOR,)))
    files = world.publish(60, extra=(DOCTOR,))
    for path in (files.mssante, files.practice):
        path.write_text(path.read_text("utf-8").replace("|Médecin|", "|Médecine|"), "utf-8")

    def progress(step: str, done: int, of: int) -> None:
        if step == "compare":
            world.server.stop(signal.SIGKILL)
            shutil.rmtree(world.server.state / "data")
            world.server.start()

    report = world.run(files, progress=progress)
    assert (report.outcome, report.changed) == ("interrupted", 0)
    assert report.refused["NO_SUCH_OBJECT"] > 10
    assert world.run(files).outcome == "applied"


def test_slapd_killed_and_back_in_the_middle(world: World) -> None:
    files = world.publish(60, extra=(DOCTOR,))
    killed = threading.Event()

    def progress(step: str, done: int, of: int) -> None:
        if step == "write" and not killed.is_set():
            killed.set()
            world.server.stop(signal.SIGKILL)
            threading.Thread(target=world.server.start).start()

    world.run(files)
    changed = world.publish(60)
    text = changed.mssante.read_text("utf-8").replace("|Médecin|", "|Médecine|")
    changed.mssante.write_text(text, "utf-8")
    report = world.run(changed, progress=progress)
    assert killed.is_set()
    assert (report.outcome, report.refused) == ("applied", {})
    again = world.run(changed)
    assert (again.added, again.changed, again.removed) == (0, 0, 0)


def test_slapd_that_stays_away_interrupts_and_is_told(world: World) -> None:
    world.patience_seconds = 0.2
    files = world.publish()
    world.server.stop()
    report = world.run(files)
    assert (report.outcome, "SERVER_DOWN" in report.error) == ("interrupted", True)
    assert DOCTOR.address not in report.error
    world.server.start()
    assert world.run(files).outcome == "applied"


async def test_a_slow_directory_is_waited_for(world: World) -> None:
    """200 ms for each way there and back."""
    files = world.publish(3)
    port = int(world.server.slapd.ldaps_uri.rpartition(":")[2])
    async with proxying(port, *[Fault(delay=0.1)] * 8) as proxy:
        world.uri = f"ldaps://127.0.0.1:{proxy.port}"
        report = await asyncio.to_thread(world.run, files)
    assert (report.outcome, report.refused) == ("applied", {})
    assert report.added == report.to_add == len(world.entries("1.1"))


def test_restarted_empty(world: World) -> None:
    files = world.publish(extra=(DOCTOR,))
    world.run(files)
    full = world.entries()
    world.server.stop()
    shutil.rmtree(world.server.state / "data")
    world.server.start()
    world.limits = Limits(refill=5)
    held = world.run(files)
    assert (held.outcome, [hold.reason for hold in held.holds]) == ("held", ["emptied"])
    with pytest.raises(ldap.NO_SUCH_OBJECT):
        world.entries()
    world.limits = Limits()
    report = world.run(files)
    assert (report.outcome, report.held_before, report.added) == ("applied", 0, len(full))
    assert world.entries() == full


def test_read_only(world: World) -> None:
    world.run(world.publish())
    before = world.entries("entryCSN")
    configure(world.server, **{"limits_*": "readonly on\nlimits *"})
    files = world.publish(extra=(DOCTOR,))
    report = world.run(files)
    assert (report.outcome, report.added) == ("interrupted", 0)
    assert "read-only" in report.error
    assert world.entries("entryCSN") == before
    world.server.stop()
    world.server.start()
    assert world.run(files).outcome == "applied"
    assert dn_of(DOCTOR.address) in world.entries()


def test_the_wrong_base_and_the_wrong_password(world: World) -> None:
    files = world.publish()

    def run(**changes: str) -> RunReport:
        administrator = replace(world.administrator, **changes)
        options = SynchronisationOptions(administrator, world.folder / "sync", apart=False)
        return Synchronisation(options).run([files.mssante.parent], now=lambda: NOW)

    wrong = run(base="dc=elsewhere,dc=fr")
    assert (wrong.outcome, wrong.added) == ("interrupted", 0)
    assert "base" in wrong.error
    refused = run(password="wrong")
    assert (refused.outcome, "INVALID_CREDENTIALS" in refused.error) == ("interrupted", True)


def test_one_entry_that_is_refused_does_not_stop_the_others(world: World) -> None:
    world.run(world.publish(extra=(DOCTOR,)))
    connection = world.connection()
    connection.delete_s(dn_of(DOCTOR.address))
    other = [("objectClass", [b"device"]), ("cn", [b"x"])]
    team = next(dn for dn in world.entries("1.1") if ",ou=structures," in dn)
    connection.delete_s(team)
    connection.add_s(f"cn=x,ou=structures,{BASE}", other)
    person = next(dn for dn in world.entries("1.1") if ",ou=personnes," in dn)
    connection.add_s(f"cn=x,{person}", other)
    files = world.publish(extra=(DOCTOR,))
    identifier = person.partition(",")[0].partition("=")[2]
    for path in (files.practice, files.savoir_faire, files.diplomes):
        lines = path.read_text("utf-8").splitlines(keepends=True)
        path.write_text("".join(line for line in lines if identifier not in line), "utf-8")
    report = world.run(files)
    assert report.outcome == "applied"
    assert report.refused == {"NOT_ALLOWED_ON_NONLEAF": 1}
    assert report.refused_entries == [(person, "NOT_ALLOWED_ON_NONLEAF")]
    assert {team, dn_of(DOCTOR.address)} <= world.entries("1.1").keys()


def test_a_run_that_is_stopped_ends_and_the_next_writes_the_rest(world: World) -> None:
    stop = threading.Event()

    def progress(step: str, done: int, of: int) -> None:
        if step == "compare":
            stop.set()

    files = world.publish()
    report = world.run(files, progress=progress, stop=stop)
    assert (report.outcome, report.added) == ("interrupted", 0)
    assert world.run(files).outcome == "applied"


def test_broken_utf8_in_line_400_000(tmp_path: Path) -> None:
    """At full length, on the file alone: one line is told, the half million others are read."""
    from directory.national import examine, find

    path = tmp_path / "Extraction_Correspondance_MSSante_202609100400.txt"
    with path.open("wb") as file:
        file.write(b"Type de BAL|Adresse BAL|Pays\n")
        for number in range(2, 450_001):
            country = b"FRAN\xc7AISE" if number == 400_000 else b"FRANCE"
            file.write(b"ORG|%d.equipe@demo.mssante.fr|%b\n" % (number, country))
    examination = examine(find([path]))
    facts = examination.files["mssante"]
    assert (facts.rows, dict(facts.rejected)) == (449_998, {"encoding": 1})
    assert [(row.number, row.reason) for row in facts.examples] == [(400_000, "encoding")]
    assert examination.addresses == {"400000.equipe@demo.mssante.fr"}


def test_the_folder_of_a_killed_run_is_no_obstacle(world: World) -> None:
    work = world.folder / "sync" / "work" / "held"
    work.mkdir(parents=True)
    (work / "000").write_bytes(os.urandom(100))
    assert world.run(world.publish()).outcome == "applied"


def test_a_branch_that_an_older_directory_does_not_have_is_made(world: World) -> None:
    files = world.publish(3)
    world.run(files)
    full = world.entries()
    connection = world.connection()
    for dn in (*(dn for dn in full if dn.endswith(f",ou=personnes,{BASE}")), f"ou=personnes,{BASE}"):
        connection.delete_s(dn)
    report = world.run(files)
    assert (report.outcome, report.refused) == ("applied", {})
    assert world.entries() == full
