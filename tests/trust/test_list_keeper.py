"""The trust list's life: accepted, unchanged, held, refused; kept over restarts; never worse without a human."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from trust import pki_catalogue
from trust.certificates import CertificateValidator
from trust.issuing import DemonstrationAuthority, Issued
from trust.journal import JournalEntry
from trust.list_changes import MAX_NAMED, MAX_NAMED_ROWS
from trust.list_keeper import ListKeeper, RefreshOutcome, read_record
from trust.list_source import ListUnavailableError, file_source, url_source
from trust.names import DistinguishedName
from trust.refusals import Refused
from trust.revocation import RevocationState, RevocationStatus
from trust.trustlist import ListedDomain, write_trust_list

NOW = datetime.now(UTC).replace(microsecond=0)
OPERATOR = "CN=smtp-{0}.op.example,OU=1750000001,O=OPÉRATEUR,C=FR"


@dataclass
class Space:
    """One gateway's keeper, its source file and its clock."""

    directory: Path
    signer: Issued
    validator: CertificateValidator
    now: datetime = NOW
    entries: list[JournalEntry] = field(default_factory=list)
    writes: Callable[[JournalEntry], object] | None = None

    @property
    def source(self) -> Path:
        return self.directory / "source.xml"

    @property
    def kept(self) -> Path:
        return self.directory / "state" / "trust-list"

    @property
    def name(self) -> DistinguishedName:
        return DistinguishedName.from_x509(self.signer.certificate.subject)

    def publish(
        self, *domains: str, at: timedelta = timedelta(0), operator: int = 1, signer: Issued | None = None
    ) -> None:
        by = signer or self.signer
        rows = [ListedDomain(domain, OPERATOR.format(operator), "") for domain in domains]
        self.source.write_bytes(write_trust_list(rows, NOW + at, by.key, by.certificate, by.chain))

    def open(self, **more: object) -> ListKeeper | Refused:
        return ListKeeper.open(
            self.kept,
            more.pop("source", file_source(self.source)),
            more.pop("validator", self.validator),
            more.pop("signer", self.name),
            self.writes or self.entries.append,
            clock=lambda: self.now,
            **more,
        )

    def keeper(self) -> ListKeeper:
        opened = self.open()
        assert isinstance(opened, ListKeeper), opened
        return opened

    def actions(self) -> list[str]:
        return [entry.action for entry in self.entries]


@pytest.fixture(scope="module")
def authority() -> Iterator[tuple[DemonstrationAuthority, Issued]]:
    made = DemonstrationAuthority.create("Démonstration")
    yield made, made.issue_list_signer()


@pytest.fixture
def space(tmp_path: Path, authority: tuple[DemonstrationAuthority, Issued]) -> Space:
    made, signer = authority
    return Space(tmp_path, signer, CertificateValidator([made.root]))


def many(count: int) -> list[str]:
    return [f"d{number}.mssante.example" for number in range(count)]


def test_first_list_is_accepted_kept_and_journaled(space: Space) -> None:
    space.publish("a.example", "b.example")
    keeper = space.keeper()
    assert keeper.is_trusted("a.example")
    entry = space.entries[0]
    assert (entry.action, entry.outcome, entry.actor, entry.object_id) == (
        *("trust.list.accepted", "done", "refresh"),
        keeper.current.digest,
    )
    assert entry.details["domains_added"] == "2"
    assert entry.details["first_domains_added"] == "a.example\nb.example"
    record = read_record(space.kept)
    assert record is not None
    assert record.kept is not None
    assert (record.kept.rows, record.kept.digest) == (2, keeper.current.digest)
    assert (space.kept / f"{keeper.current.digest}.xml").read_bytes() == space.source.read_bytes()
    assert (space.kept.stat().st_mode & 0o777, (space.kept / "record.json").stat().st_mode & 0o777) == (0o700, 0o600)


def test_refresh_reaches_those_who_ask_the_keeper(space: Space) -> None:
    space.publish("a.example")
    keeper = space.keeper()
    assert keeper.refresh().outcome is RefreshOutcome.UNCHANGED
    space.publish("a.example", "b.example", at=timedelta(seconds=1))
    found = keeper.refresh()
    assert found.outcome is RefreshOutcome.ACCEPTED
    assert found.changes is not None
    assert found.changes.domains_added == ("b.example",)
    assert keeper.operators_of("b.example") == {DistinguishedName.parse(OPERATOR.format(1))}
    assert space.actions() == ["trust.list.accepted"] * 2
    assert space.entries[1].details["replaces"]
    assert len(list(space.kept.glob("*.xml"))) == 1


def test_restart_without_the_source_works_with_the_last_good_copy(space: Space) -> None:
    space.publish("a.example")
    space.keeper()
    space.source.unlink()
    keeper = space.keeper()
    assert keeper.is_trusted("a.example")
    assert keeper.record.last is not None
    assert keeper.record.last.outcome is RefreshOutcome.UNAVAILABLE
    assert space.actions() == ["trust.list.accepted"]


def test_copy_survives_the_end_of_its_signers_certificate(space: Space) -> None:
    space.publish("a.example")
    space.keeper()
    space.now = space.signer.certificate.not_valid_after_utc + timedelta(days=1)
    keeper = space.keeper()
    assert keeper.is_trusted("a.example")
    assert keeper.record.last is not None
    assert keeper.record.last.code == pki_catalogue.LIST_SIGNER.code
    assert keeper.describe()["in_use"]["signer_believed"] is False


@pytest.mark.parametrize(("left", "outcome"), [(90, RefreshOutcome.HELD), (91, RefreshOutcome.ACCEPTED)])
def test_a_tenth_lost_is_held(space: Space, left: int, outcome: RefreshOutcome) -> None:
    space.publish(*many(100))
    keeper = space.keeper()
    space.publish(*many(left), at=timedelta(hours=1))
    assert keeper.refresh().outcome is outcome
    assert keeper.is_trusted("d99.mssante.example") is (outcome is RefreshOutcome.HELD)
    assert (keeper.record.held is not None) is (outcome is RefreshOutcome.HELD)


def test_rows_exchanged_for_others_are_lost_too(space: Space) -> None:
    space.publish(*many(100))
    keeper = space.keeper()
    space.publish(*many(80), *(f"new{number}.example" for number in range(40)), at=timedelta(hours=1))
    assert keeper.refresh().outcome is RefreshOutcome.HELD
    space.publish(*many(100), operator=2, at=timedelta(hours=2))
    assert keeper.refresh().outcome is RefreshOutcome.HELD, "every domain now belongs to somebody else"


def test_back_in_time_is_held_also_after_a_restart(space: Space) -> None:
    space.publish("a.example", at=timedelta(hours=-2))
    older = space.source.read_bytes()
    space.publish("a.example", "b.example")
    keeper = space.keeper()
    space.source.write_bytes(older)
    for restarted in (False, True):
        each = space.keeper() if restarted else keeper
        assert each.refresh().outcome is RefreshOutcome.HELD
        assert each.is_trusted("b.example")
        assert each.record.held is not None
        assert "before the accepted list" in each.record.held.reasons[0]
    assert space.actions() == ["trust.list.accepted", "trust.list.held"], "told once"


def test_a_held_list_is_accepted_only_by_its_digest(space: Space) -> None:
    space.publish(*many(10))
    keeper = space.keeper()
    assert isinstance(keeper.accept(keeper.current.digest, "x"), Refused)
    assert isinstance(keeper.held_changes(), Refused)
    space.publish(*many(3), at=timedelta(hours=1))
    keeper.refresh()
    shown = keeper.held_changes()
    assert not isinstance(shown, Refused)
    held, changes = shown
    assert len(changes.domains_removed) == 7
    for wrong in ("", "0" * 64, held.digest[:-1], held.digest[:32], keeper.current.digest):
        refused = keeper.accept(wrong, "operator:anna")
        assert isinstance(refused, Refused)
        assert refused.refusal is pki_catalogue.LIST_NOT_HELD
    assert keeper.is_trusted("d9.mssante.example")
    accepted = keeper.accept(held.digest.upper() + "\n", "operator:anna")
    assert not isinstance(accepted, Refused)
    assert not keeper.is_trusted("d9.mssante.example")
    assert keeper.record.held is None
    assert space.entries[-1].actor == "operator:anna"
    assert "7 of the 10 rows" in space.entries[-1].reason
    assert space.keeper().current.digest == held.digest, "and it is the one after a restart"


def test_what_was_seen_and_then_replaced_cannot_be_accepted(space: Space) -> None:
    space.publish(*many(10))
    keeper = space.keeper()
    space.publish(*many(3), at=timedelta(hours=1))
    keeper.refresh()
    assert keeper.record.held is not None
    seen = keeper.record.held.digest
    space.publish(*many(2), at=timedelta(hours=2))
    keeper.refresh()
    assert isinstance(keeper.accept(seen, "x"), Refused)
    assert len(list(space.kept.glob("*.xml"))) == 2


def test_a_held_list_that_its_source_withdraws_is_forgotten(space: Space) -> None:
    space.publish(*many(10))
    good = space.source.read_bytes()
    keeper = space.keeper()
    space.publish(*many(3), at=timedelta(hours=1))
    keeper.refresh()
    space.source.write_bytes(good)
    assert keeper.refresh().outcome is RefreshOutcome.UNCHANGED
    assert keeper.record.held is None
    assert len(list(space.kept.glob("*.xml"))) == 1


def test_accepting_an_older_list_makes_it_the_measure(space: Space) -> None:
    space.publish("a.example", at=timedelta(hours=-2))
    older = space.source.read_bytes()
    space.publish("a.example")
    keeper = space.keeper()
    space.source.write_bytes(older)
    keeper.refresh()
    assert keeper.record.held is not None
    keeper.accept(keeper.record.held.digest, "operator:anna")
    space.publish("a.example", "b.example", at=timedelta(hours=-1))
    assert keeper.refresh().outcome is RefreshOutcome.ACCEPTED


def test_the_date_of_the_list_in_use_and_something_else_to_say(space: Space) -> None:
    """Which of two lists of one second is the newer one nobody can tell: neither brings an operator back by itself."""
    space.publish("a.example", "b.example")
    keeper = space.keeper()
    space.publish("a.example", "b.example", "c.example")
    assert keeper.refresh().outcome is RefreshOutcome.HELD
    assert keeper.record.held is not None
    assert "has the date of the list in use" in keeper.record.held.reasons[0]
    assert not keeper.is_trusted("c.example")
    assert not isinstance(keeper.accept(keeper.record.held.digest, "operator:anna"), Refused)
    assert keeper.is_trusted("c.example")


def test_the_same_rows_signed_again_are_another_document_and_the_same_list(space: Space) -> None:
    space.publish("a.example", "b.example")
    keeper = space.keeper()
    space.source.write_bytes(space.source.read_bytes() + b"\n")
    assert keeper.refresh().outcome is RefreshOutcome.ACCEPTED
    assert keeper.is_trusted("b.example")


def drain(space: Space, keeper: ListKeeper, step: timedelta) -> list[int]:
    """Rows left of a hundred after each list that needed nobody, each with five rows less."""
    left, accepted = 100, []
    while left > 50:
        space.now += step
        left -= 5
        space.publish(*many(left), at=space.now - NOW)
        if keeper.refresh().outcome is not RefreshOutcome.ACCEPTED:
            break
        accepted.append(left)
    return accepted


def test_a_tenth_in_small_steps_is_held_too(space: Space) -> None:
    space.publish(*many(100))
    keeper = space.keeper()
    assert drain(space, keeper, timedelta(hours=1)) == [95]
    held = keeper.record.held
    assert held is not None
    assert "10 of the 100 rows" in held.reasons[0]
    again = space.keeper()
    assert again.record.losses is not None, "a restart forgets nothing"
    space.now += timedelta(hours=1)
    space.publish(*many(94), at=space.now - NOW)
    assert again.refresh().outcome is RefreshOutcome.ACCEPTED
    space.publish(*many(90), at=space.now - NOW + timedelta(minutes=1))
    assert again.refresh().outcome is RefreshOutcome.HELD
    assert again.record.held is not None
    assert not isinstance(again.accept(again.record.held.digest, "operator:anna"), Refused)
    assert again.record.losses is None, "a human decided"
    space.publish(*many(85), at=space.now - NOW + timedelta(minutes=2))
    assert again.refresh().outcome is RefreshOutcome.ACCEPTED


def test_what_goes_over_months_needs_nobody(space: Space) -> None:
    space.publish(*many(100))
    keeper = space.keeper()
    assert drain(space, keeper, timedelta(days=8)) == [95, 90, 85, 80, 75, 70, 65, 60, 55, 50]


def test_the_journal_names_who_lost_and_who_won_a_domain(space: Space) -> None:
    """A domain passed from one listed operator to another changes no list of names."""
    space.publish(*many(30))
    keeper = space.keeper()
    space.publish(*many(30), *many(30), operator=2, at=timedelta(hours=1))
    keeper.refresh()
    rows = [ListedDomain(domain, OPERATOR.format(1), "") for domain in many(29)]
    rows.append(ListedDomain("d29.mssante.example", OPERATOR.format(3), ""))
    by = space.signer
    space.source.write_bytes(write_trust_list(rows, NOW + timedelta(hours=2), by.key, by.certificate, by.chain))
    assert keeper.refresh().outcome is RefreshOutcome.ACCEPTED
    details = space.entries[-1].details
    assert details["first_rows_removed"] == f"d29.mssante.example: {DistinguishedName.parse(OPERATOR.format(1))}"
    assert details["first_rows_added"] == f"d29.mssante.example: {DistinguishedName.parse(OPERATOR.format(3))}"
    assert len(details["rows_sha256"]) == 64


def test_a_record_that_cannot_be_read_is_no_first_start(space: Space) -> None:
    space.publish("a.example", at=timedelta(hours=-2))
    older = space.source.read_bytes()
    space.publish("a.example", "b.example")
    space.keeper()
    space.source.write_bytes(older)
    record = space.kept / "record.json"
    good = record.read_bytes()
    for damaged in (b"", good[:-10], b"[]", b'{"kept": {"digest": 1}}'):
        record.write_bytes(damaged)
        refused = space.open()
        assert isinstance(refused, Refused)
        assert refused.refusal is pki_catalogue.LIST_UNAVAILABLE
        assert "begin anew" in refused.detail
        assert record.read_bytes() == damaged, "and nothing is overwritten"
    record.write_bytes(good)
    assert space.keeper().is_trusted("b.example")


def test_a_record_of_the_version_before_is_read(space: Space) -> None:
    space.publish("a.example")
    space.keeper()
    record = space.kept / "record.json"
    record.write_bytes(record.read_bytes().replace(b',"losses":null', b""))
    assert b"losses" not in record.read_bytes()
    assert space.keeper().is_trusted("a.example")


def test_what_a_killed_process_left_is_cleared_away(space: Space) -> None:
    space.publish("a.example")
    space.keeper()
    (space.kept / ".0123456789abcdef.tmp").write_bytes(b"<Liste")
    space.keeper()
    assert not list(space.kept.glob(".*"))


class Revocations:
    """A checker that says the same of everybody."""

    def __init__(self) -> None:
        self.status = RevocationStatus(RevocationState.GOOD)

    def check(self, *_: object) -> RevocationStatus:
        return self.status


def test_restart_when_nobody_can_be_asked_about_revocation(
    space: Space, authority: tuple[DemonstrationAuthority, Issued]
) -> None:
    """The network and what was known are gone: the copy stays, nothing new is taken; a revoked signer's copy goes."""
    revocations = Revocations()
    space.validator = CertificateValidator([authority[0].root], (), revocations)
    space.publish("a.example")
    space.keeper()
    revocations.status = RevocationStatus(RevocationState.UNKNOWN)
    keeper = space.keeper()
    assert keeper.is_trusted("a.example")
    assert keeper.record.last is not None
    assert "revocation-unknown" in keeper.record.last.detail
    space.publish("a.example", "b.example", at=timedelta(hours=1))
    assert keeper.refresh().outcome is RefreshOutcome.REFUSED
    revocations.status = RevocationStatus(RevocationState.GOOD)
    assert keeper.refresh().outcome is RefreshOutcome.ACCEPTED
    revocations.status = RevocationStatus(
        RevocationState.REVOKED, reason="keyCompromise", revoked_at=NOW - timedelta(days=1)
    )
    refused = space.open()
    assert isinstance(refused, Refused)
    assert "revoked" in refused.detail


def test_no_decision_waits_for_a_slow_source(space: Space) -> None:
    space.publish(*many(10))
    asked, go_on = threading.Event(), threading.Event()

    def slow() -> bytes:
        asked.set()
        assert go_on.wait(20)
        return space.source.read_bytes()

    go_on.set()
    keeper = space.open(source=slow)
    assert isinstance(keeper, ListKeeper)
    space.publish(*many(3), at=timedelta(hours=1))
    keeper.refresh()
    assert keeper.record.held is not None
    go_on.clear()
    asked.clear()
    looking = threading.Thread(target=keeper.refresh)
    looking.start()
    assert asked.wait(10)
    assert not isinstance(keeper.held_changes(), Refused)
    assert not isinstance(keeper.accept(keeper.record.held.digest, "operator:anna"), Refused)
    assert keeper.is_trusted("d2.mssante.example")
    assert not keeper.is_trusted("d3.mssante.example")
    space.publish(*many(4), at=timedelta(hours=2))
    go_on.set()
    looking.join(20)
    assert keeper.is_trusted("d3.mssante.example"), "judged against what was accepted meanwhile"


def test_accepting_what_a_good_list_has_overtaken(space: Space) -> None:
    space.publish(*many(10))
    keeper = space.keeper()
    space.publish(*many(3), at=timedelta(hours=1))
    keeper.refresh()
    assert keeper.record.held is not None
    seen = keeper.record.held.digest
    space.publish(*many(11), at=timedelta(hours=2))
    assert keeper.refresh().outcome is RefreshOutcome.ACCEPTED
    refused = keeper.accept(seen, "operator:anna")
    assert isinstance(refused, Refused)
    assert refused.refusal is pki_catalogue.LIST_NOT_HELD
    assert keeper.is_trusted("d10.mssante.example")


def test_what_does_not_verify_is_refused_and_cannot_be_accepted(
    space: Space, authority: tuple[DemonstrationAuthority, Issued]
) -> None:
    space.publish("a.example")
    keeper = space.keeper()
    space.publish("a.example", "b.example", at=timedelta(hours=1))
    altered = space.source.read_bytes().replace(b"b.example", b"c.example")
    mailbox = authority[0].issue_mailbox("a@b.example", "A", "signing")
    for change, refusal in (
        (lambda: space.source.write_bytes(altered), pki_catalogue.LIST_ALTERED),
        (lambda: space.source.write_bytes(b"<a/>"), pki_catalogue.LIST_UNSIGNED),
        (lambda: space.source.write_bytes(b""), pki_catalogue.LIST_UNREADABLE),
        (lambda: space.publish("evil.example", at=timedelta(hours=2), signer=mailbox), pki_catalogue.LIST_SIGNER),
        (lambda: space.publish("a.example", at=timedelta(days=3)), pki_catalogue.LIST_FROM_FUTURE),
    ):
        change()
        for _ in range(2):
            found = keeper.refresh()
            assert found.outcome is RefreshOutcome.REFUSED
            assert found.refused is not None
            assert found.refused.refusal is refusal
        assert keeper.is_trusted("a.example")
        assert keeper.record.held is None
    assert space.actions() == ["trust.list.accepted", *["trust.list.refused"] * 5], "each told once"
    space.keeper()
    assert len(space.entries) == 6, "also by the next process"


def test_nothing_is_accepted_that_the_journal_does_not_take(space: Space) -> None:
    space.publish("a.example")
    keeper = space.keeper()

    def fails(_: JournalEntry) -> None:
        raise OSError("disk full")

    keeper._journal = fails
    space.publish("a.example", "b.example", at=timedelta(hours=1))
    with pytest.raises(OSError, match="disk full"):
        keeper.refresh()
    assert not keeper.is_trusted("b.example")
    keeper._journal = space.entries.append
    assert keeper.refresh().outcome is RefreshOutcome.ACCEPTED


def test_altered_copy_is_not_used_and_its_date_still_counts(space: Space) -> None:
    space.publish("a.example", at=timedelta(hours=-1))
    older = space.source.read_bytes()
    space.publish("a.example")
    newer = space.source.read_bytes()
    space.keeper()
    (copy,) = space.kept.glob("*.xml")
    copy.write_bytes(older)
    space.source.write_bytes(older)
    refused = space.open()
    assert isinstance(refused, Refused)
    assert refused.refusal is pki_catalogue.LIST_OLD
    space.source.write_bytes(newer)
    assert isinstance(space.open(), ListKeeper)


def test_the_date_of_an_earlier_version_counts(space: Space) -> None:
    space.publish("a.example")
    refused = space.open(floor=NOW + timedelta(hours=1))
    assert isinstance(refused, Refused)
    assert refused.refusal is pki_catalogue.LIST_OLD


def test_no_list_at_all(space: Space) -> None:
    refused = space.open()
    assert isinstance(refused, Refused)
    assert refused.refusal is pki_catalogue.LIST_UNAVAILABLE
    assert "source.xml" in refused.detail


def test_another_signer_configured_makes_the_copy_worthless(space: Space) -> None:
    space.publish("a.example")
    space.keeper()
    refused = space.open(signer=DistinguishedName.parse("CN=other,C=FR"))
    assert isinstance(refused, Refused)
    assert refused.refusal is pki_catalogue.LIST_SIGNER


def test_journal_details_are_bounded(space: Space) -> None:
    space.publish(*many(500))
    space.keeper()
    details = space.entries[0].details
    assert details["domains_added"] == "500"
    assert len(details["first_domains_added"].split("\n")) == MAX_NAMED
    assert len(details["first_rows_added"].split("\n")) == MAX_NAMED_ROWS
    assert sum(map(len, details.values())) < 20_000


def test_readers_never_see_half_a_change(space: Space) -> None:
    """Threads ask while lists change: every answer is that of one whole list."""
    space.publish("a.example", operator=1)
    first = space.source.read_bytes()
    space.publish("a.example", operator=1, at=timedelta(seconds=1))
    keeper = space.keeper()
    keeper._floor = None
    wrong: list[object] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            if len(keeper.operators_of("a.example")) != 1:
                wrong.append(keeper.current)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for content in (first, space.source.read_bytes()) * 2:
        space.source.write_bytes(content)
        keeper.refresh()
        keeper._floor = None
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_file_source_waits_for_nothing(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "none"):
        with pytest.raises(ListUnavailableError, match=path.name):
            file_source(path)()


def test_list_over_http_and_the_last_copy_when_the_server_is_gone(space: Space) -> None:
    space.publish("a.example")

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = space.source.read_bytes()
            self.send_response(200 if self.path == "/list.xml" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        base = f"http://127.0.0.1:{server.server_port}"
        keeper = space.open(source=url_source(f"{base}/list.xml", space.source, 5.0))
        assert isinstance(keeper, ListKeeper), keeper
        with pytest.raises(ListUnavailableError, match="404"):
            url_source(f"{base}/other.xml", space.source, 5.0)()
        server.shutdown()
        thread.join()
    assert keeper.refresh().outcome is RefreshOutcome.UNAVAILABLE
    assert keeper.is_trusted("a.example")
