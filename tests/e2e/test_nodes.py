"""Two nodes on one PostgreSQL, each with a state directory of its own: machines are lost, mail is not."""

from __future__ import annotations

import itertools
import random
import signal
import smtplib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from tests.support.nodes import RECIPIENT, SENDER, Farm, Node, farm, mail
from tests.support.postgresql import PostgresServer
from tests.support.private import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300), pytest.mark.xdist_group("nodes")]

BROKEN = (OSError, smtplib.SMTPException)


def submit(node: Node, number: str, size: int = 200) -> bool:
    """One message over a connection of its own; whether it was answered 250."""
    client = None
    try:
        client = node.connect(10)
        return client.sendmail(SENDER, [RECIPIENT], mail(number, size)) == {}
    except BROKEN:
        return False
    finally:
        if client is not None:
            client.close()


@pytest.fixture(scope="module")
def house(postgresql: PostgresServer) -> Iterator[Farm]:
    """For tests of one process: each has a node of its own name."""
    with farm(postgresql) as made:
        yield made


@pytest.fixture(autouse=True)
def ended(request: pytest.FixtureRequest) -> Iterator[None]:
    """No node works on for the next test."""
    yield
    if "house" in request.fixturenames:
        for node in request.getfixturevalue("house").nodes.values():
            node.kill()
            node.hang_up()


def unsettled(house: Farm) -> int:
    database = house.url.rpartition("/")[2]
    return int(house.postgresql.execute("SELECT count(*) FROM mta_deliveries WHERE state = 'ready'", database))


def states(house: Farm) -> dict[str, int]:
    database = house.url.rpartition("/")[2]
    rows = house.postgresql.execute("SELECT state, count(*) FROM mta_deliveries GROUP BY state", database)
    return {state: int(count) for state, count in (row.split("|") for row in rows.splitlines())}


def test_a_node_is_lost_every_few_seconds_and_no_message_is(postgresql: PostgresServer) -> None:
    with farm(postgresql) as house:
        nodes = [house.node("one"), house.node("two")]
        for node in nodes:
            node.launch()
        for node in nodes:
            node.wait_ready()
        done = threading.Event()
        losses = []
        chance = random.Random(9)

        def lose_machines() -> None:
            for victim in itertools.cycle(nodes):
                if done.wait(chance.uniform(1.0, 3.0)):
                    return
                victim.lose()
                losses.append(victim.name)
                with suppress(TimeoutError, AssertionError):
                    victim.start()

        def client(lane: int) -> list[str]:
            """Numbered messages, each offered again, to whichever node answers, until one says 250."""
            accepted = []
            for number in (f"{lane}-{n}" for n in itertools.count()):
                turn = itertools.cycle(nodes if lane % 2 else nodes[::-1])
                while not submit(next(turn), number, 100_000 if len(accepted) % 10 == 9 else 200):
                    if done.wait(0.05):
                        return accepted
                accepted.append(number)
                if done.is_set():
                    return accepted
            return accepted

        killer = threading.Thread(target=lose_machines)
        killer.start()
        with ThreadPoolExecutor(4) as clients:
            sending = [clients.submit(client, lane) for lane in range(4)]
            until(lambda: len(losses) >= 4, 200, "four lost machines")
            done.set()
            killer.join()
            accepted = [number for each in sending for number in each.result()]
        for node in nodes:
            if node.process is None or node.process.poll() is not None:
                node.start()
        until(lambda: unsettled(house) == 0, 90, "an empty queue")
        filed = house.mailboxes.filed
        assert len(accepted) > 20
        assert any(int(number.rpartition("-")[2]) % 10 == 9 for number in accepted), "a large one among them"
        assert [number for number in accepted if filed[number] != 1] == []
        assert max(filed.values()) == 1, "what was never answered 250 is not there twice either"
        assert set(states(house)) == {"delivered"}


def test_a_survivor_takes_over_what_a_lost_machine_had_in_hand(postgresql: PostgresServer) -> None:
    """The machine never comes back: its leases are free within the patience, not at their end in 25 minutes."""
    with farm(postgresql) as house:
        house.mailboxes.refusing = True
        one, two = house.node("one"), house.node("two")
        one.start()
        for n in range(5):
            assert submit(one, f"orphan-{n}")
        one.lose()
        house.mailboxes.refusing = False
        two.start()
        until(lambda: unsettled(house) == 0, 60, "what the lost machine had")
        assert house.mailboxes.filed == {f"orphan-{n}": 1 for n in range(5)}


def test_processes_of_one_machine_share_a_port_and_its_state(postgresql: PostgresServer) -> None:
    with farm(postgresql) as house:
        first = house.node("one.0", number=0)
        second = house.node("one.1", number=1, port=first.port)
        first.start()
        second.start()
        for n in range(24):
            assert submit(first, f"shared-{n}")
        until(lambda: unsettled(house) == 0, 60, "an empty queue")
        accepting = [len(node.logged("smtp.accepted")) for node in (first, second)]
        assert sum(accepting) == 24
        assert all(accepting), "the kernel gives connections to both"
        second.kill()
        assert submit(first, "after"), "the other one still listens"
        until(lambda: unsettled(house) == 0, 60, "an empty queue")
        assert house.mailboxes.filed["after"] == 1


def test_the_database_is_stopped_and_started(house: Farm) -> None:
    node = house.node("database")
    node.start()
    assert submit(node, "before")
    house.postgresql.stop(signal.SIGQUIT)
    try:
        assert not submit(node, "meanwhile"), "nothing is promised that nobody keeps"
    finally:
        house.postgresql.start()
    until(lambda: submit(node, "after"), 60, "a node that found its database again")
    until(lambda: unsettled(house) == 0, 60, "an empty queue")
    filed = house.mailboxes.filed
    assert filed["before"] == filed["after"] == 1
    assert filed["meanwhile"] <= 1
    assert node.process is not None
    assert node.process.poll() is None


def test_sigterm_lets_what_is_coming_in_come_in(house: Farm) -> None:
    node = house.node("drain")
    node.start()
    idle, sending = node.connect(), node.connect()
    sending.mail(SENDER)
    sending.rcpt(RECIPIENT)
    assert sending.docmd("DATA")[0] == 354
    message = mail("drained")
    sending.send(message[:100])
    node.signal(signal.SIGTERM)
    assert idle.getreply()[0] == 421
    sending.send(message[100:] + b".\r\n")
    assert sending.getreply()[0] == 250
    assert node.process is not None
    assert node.process.wait(20) == 0
    with pytest.raises(OSError):
        node.connect(2)
    database = house.url.rpartition("/")[2]
    assert house.postgresql.execute("SELECT count(*) FROM mta_deliveries WHERE lease IS NOT NULL", database) == "0"
    assert house.postgresql.execute("SELECT count(*) FROM nodes WHERE name = 'drain'", database) == "0"
    node.start()
    until(lambda: unsettled(house) == 0, 60, "an empty queue")
    assert house.mailboxes.filed["drained"] == 1


def test_sigterm_is_bounded(house: Farm) -> None:
    """A client that stops in the middle of its message holds nobody up for longer than the drain."""
    node = house.node("bounded")
    node.start()
    slow = node.connect()
    slow.mail(SENDER)
    slow.rcpt(RECIPIENT)
    slow.docmd("DATA")
    slow.send(b"From: x\r\n")
    assert node.stop(20) == 0
    assert slow.getreply()[0] == 421


def test_sighup_changes_limits_and_log_level_and_keeps_the_session(house: Farm) -> None:
    node = house.node("reload")
    node.start()
    session = node.connect()
    pid = node.process.pid if node.process else 0
    node.extra = ("max_message_bytes = 2000", "[log]", 'level = "DEBUG"', "[doors]", "recipients = 1")
    node.extra += ("[metrics]", "port = 0")
    node.configure(*node.extra)
    node.signal(signal.SIGHUP)
    until(lambda: bool(node.logged("reload.done")), 20, "the reload")
    assert node.logged("reload.needs-restart")[-1]["keys"] == ["metrics"]
    assert session.sendmail(SENDER, [RECIPIENT], mail("old", 5000)) == {}, "the open session keeps its limits"
    assert session.ehlo()[0] == 250 and session.esmtp_features["limits"] != "RCPTMAX=1"
    assert node.connect().esmtp_features["limits"] == "RCPTMAX=1"
    assert not submit(node, "too large", 5000)
    assert submit(node, "small")
    node.path.write_text("not toml [")
    node.signal(signal.SIGHUP)
    until(lambda: bool(node.logged("reload.refused")), 20, "the refusal")
    assert submit(node, "still here")
    assert node.process is not None
    assert node.process.pid == pid
    assert node.process.poll() is None
