"""What a directory can do wrong while it answers: each time "later" in time, never "there is no such mailbox"."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import ldap
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from directory.entries import from_recipient
from directory.pool import Pool
from directory.records import MailboxKind, Recipient
from directory.resolve import Directory, DirectoryUnavailableError
from tests.directory.conftest import BASE, DOCTOR, ENCRYPTING, SIGNING, Server, certificate, key_usage
from tests.support.fault_proxy import Fault, FaultProxy, Harm, proxying
from tests.support.loops import on_a_loop_of_its_own
from tests.support.private import free_port

STRANGER = "nobody@demo-labo.mssante.fr"


@contextmanager
def faulty(server: Server, *faults: Fault) -> Iterator[tuple[str, FaultProxy]]:
    """A proxy before the server; the URI to reach it by."""
    port = urlsplit(server.slapd.ldaps_uri).port
    assert port is not None
    with on_a_loop_of_its_own(proxying(port, *faults)) as proxy:
        yield f"ldaps://127.0.0.1:{proxy.port}", proxy


def later(directory: Directory, address: str, seconds: float) -> None:
    """The directory is not believed to have answered, and says so in time."""
    started = time.monotonic()
    with pytest.raises(DirectoryUnavailableError):
        directory.resolve(address)
    assert time.monotonic() - started < seconds


@pytest.mark.parametrize("harm", [Harm.HANG, Harm.SWALLOW, Harm.CLOSE, Harm.RESET, Harm.HALF_CLOSE, Harm.GARBAGE])
@pytest.mark.parametrize("octets", [1, 700, 1700])
def test_a_connection_that_breaks_anywhere_is_no_answer(running: Server, harm: Harm, octets: int) -> None:
    """In the handshake, in the bind and in the middle of a TLS record: the deadline holds, the next server is asked."""
    faults = [Fault(harm, down=octets)] * 20
    with faulty(running, *faults) as (uri, _), running.directory(uri=uri, timeout_seconds=0.3) as directory:
        started = time.monotonic()
        with suppress(DirectoryUnavailableError):  # the fault may come after the whole answer
            found = directory.resolve(DOCTOR)
            assert found is not None and found.address == DOCTOR
        assert time.monotonic() - started < 2.5
    with faulty(running, *faults) as (uri, _):
        replicas = (running.slapd.ldaps_uri,)
        with running.directory(uri=uri, replicas=replicas, timeout_seconds=1.2) as directory:
            found = directory.resolve(DOCTOR)
            assert found is not None and found.encryption_certificates == (ENCRYPTING,)


def test_a_connection_nobody_used_for_long_is_made_anew(running: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall forgets idle connections and tells nobody: the next mail must not pay for it."""
    with (
        faulty(running, Fault(Harm.HANG)) as (uri, proxy),
        running.directory(uri=uri, timeout_seconds=3.0) as directory,
    ):
        assert directory.resolve(DOCTOR) is not None
        proxy.strike()
        monkeypatch.setattr("directory.pool.IDLE_SECONDS", -1.0)
        started = time.monotonic()
        assert directory.resolve(DOCTOR) is not None
        assert proxy.connections == 2 and time.monotonic() - started < 2.0


def test_slow_is_not_down(running: Server) -> None:
    """200 ms for each block, as over a bad line: the answer comes, and a second call uses the same connection."""
    with faulty(running, *[Fault(delay=0.1)] * 4) as (uri, proxy), running.directory(uri=uri) as directory:
        for _ in range(2):
            assert directory.resolve(DOCTOR) is not None
            assert directory.resolve(STRANGER) is None
        assert proxy.connections == 1


def test_too_slow_is_later(running: Server) -> None:
    with faulty(running, *[Fault(delay=0.5)] * 9) as (uri, _), running.directory(uri=uri, timeout_seconds=0.4) as one:
        later(one, DOCTOR, 2.0)
        later(one, STRANGER, 2.0)


class Scripted:
    """A connection that says what it is told to: what slapd says only in configurations of other people's."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str]] = []

    def search_ext(self, base: str, scope: int, text: str, attributes: Any, **_: Any) -> int:
        self.asked.append((base, text))
        return len(self.asked)

    def result(self, message: int, everything: int, timeout: float) -> tuple[int, Any]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return ldap.RES_SEARCH_RESULT, answer

    def unbind_ext_s(self) -> None: ...


@pytest.fixture
def scripted(running: Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(*answers: Any) -> Directory:
        connection = Scripted(*answers)
        monkeypatch.setattr(Pool, "_connect", lambda *_: (connection, False))
        return Directory(running.options())

    return make


ENTRY = (f"mail={DOCTOR},ou=professionnels,{BASE}", {"mail": [DOCTOR.encode()], "TypeBAL": [b"PER"]})
REFERENCE = (None, ["ldap://elsewhere/dc=mssante,dc=fr"])


@pytest.mark.parametrize(
    "answer",
    [
        ldap.SIZELIMIT_EXCEEDED(),
        ldap.TIMELIMIT_EXCEEDED(),
        ldap.ADMINLIMIT_EXCEEDED(),
        ldap.PARTIAL_RESULTS(),
        ldap.REFERRAL(),
        ldap.BUSY(),
        ldap.UNWILLING_TO_PERFORM(),
        ldap.NO_SUCH_OBJECT(),
        ldap.INSUFFICIENT_ACCESS(),
        ldap.OPERATIONS_ERROR(),
        ldap.DECODING_ERROR(),
        ldap.PROTOCOL_ERROR(),
        ldap.TIMEOUT(),
        [REFERENCE],
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_an_answer_that_is_not_whole_is_none(scripted: Any, answer: Any) -> None:
    later(scripted(answer, []), DOCTOR, 1.0)


def test_an_entry_beside_a_reference_counts(scripted: Any) -> None:
    found = scripted([REFERENCE, ENTRY]).resolve(DOCTOR)
    assert found is not None and found.address == DOCTOR


@pytest.mark.parametrize(
    "values",
    [
        {"TypeBAL": [b"PER"]},
        {"mail": [], "TypeBAL": [b"PER"]},
        {"mail": [b"other@demo-labo.mssante.fr"], "TypeBAL": [b"PER"]},
        {"mail": [b"\xff\xfe"], "TypeBAL": [b"PER"]},
        {"mail": [DOCTOR.encode()], "TypeBAL": [b"???"]},
        {"mail": [DOCTOR.encode()]},
    ],
)
def test_an_entry_that_is_no_mailbox_of_this_address_is_nobody_s(scripted: Any, values: Any) -> None:
    everybody = [ENTRY]
    assert scripted([("cn=x", values)], everybody).resolve(DOCTOR) is None
    assert [each.address for each in scripted([("cn=x", values)], everybody).by_identifier("899900000001")] in (
        [],
        ["other@demo-labo.mssante.fr"],
    )


def test_an_entry_with_several_addresses_is_each_one_s(scripted: Any) -> None:
    values = {"mail": [b"First@demo-labo.mssante.fr", DOCTOR.upper().encode()], "TypeBAL": [b"PER"]}
    for address in (DOCTOR, "first@demo-labo.mssante.fr"):
        found = scripted([("cn=x", values)]).resolve(address.upper())
        assert found is not None and found.address == address


def test_a_directory_that_is_emptied_while_connected_is_not_believed(
    scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = scripted([ENTRY], [], [])
    assert directory.resolve(DOCTOR) is not None
    monkeypatch.setattr("directory.resolve._PROOF_SECONDS", -1.0)
    later(directory, STRANGER, 1.0)


def test_garbage_and_thousands_of_certificates_cost_neither_the_mailbox_nor_the_deadline(scripted: Any) -> None:
    good = ENCRYPTING.public_bytes(Encoding.DER)
    garbage = [b"", b"\x30", b"\x30\x84\xff\xff\xff\xff", b"\x00" * 100_000, good[:-1], b"\x30\x80" * 5_000]
    many = [certificate(f"c{number}", key_usage("key_agreement")).public_bytes(Encoding.DER) for number in range(50)]
    values = ENTRY[1] | {"userCertificate;binary": garbage + many * 200 + [good, SIGNING.public_bytes(Encoding.DER)]}
    started = time.process_time()
    found = scripted([(ENTRY[0], values)]).resolve(DOCTOR)
    assert found is not None and 0 < len(found.encryption_certificates) <= 32
    assert time.process_time() - started < 2.0


def test_a_big_entry_over_the_wire(server: Server) -> None:
    many = tuple(certificate(f"c{number}", key_usage("key_agreement")) for number in range(600))
    server.slapd.load([from_recipient(Recipient(DOCTOR, MailboxKind.PER, "Dr", many), BASE)])
    server.start()
    with server.directory(timeout_seconds=2.0) as directory:
        found = directory.resolve(DOCTOR)
        assert found is not None and len(found.encryption_certificates) == 32


@pytest.mark.parametrize(
    "address",
    [
        "x" * 65 + "@demo-labo.mssante.fr",
        "x@" + "d" * 10_000,
        "nul\x00@demo-labo.mssante.fr",
        "x@demo-labo.mssante.fr\r\nX: y",
        "x@dëmo.mssante.fr",
        "\ud800@demo-labo.mssante.fr",
        "ａ@demo-labo.mssante.fr",
        "x@demo-labo.mssante.fr ",
        "(|(mail=*))@demo-labo.mssante.fr",
        "*@*",
        "x@xn--dmo-bma.mssante.fr",
    ],
)
def test_no_spelling_finds_somebody_else_or_breaks(running: Server, address: str) -> None:
    with running.directory() as directory:
        assert directory.resolve(address) is None
        assert directory.by_identifier(address) == []
        assert directory.preferred(address, address, address) is None
        assert directory.by_department(address, address) == []
        assert directory.explain(address, address).recipient is None


def test_a_name_without_an_address_in_the_dns_is_later(running: Server) -> None:
    with running.directory(uri="ldaps://directory.invalid:636", timeout_seconds=1.0) as directory:
        later(directory, DOCTOR, 8.0)
    with running.directory(uri=f"ldaps://127.0.0.1:{free_port()}") as directory:
        later(directory, DOCTOR, 1.0)


def test_the_domain_stands_in_for_certificates_no_path_lets_pass(scripted: Any) -> None:
    """Without the domain's they stay, so that the refusal can say why."""
    web = certificate("web", key_usage("key_agreement"), x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]))
    own = (ENTRY[0], ENTRY[1] | {"userCertificate;binary": [web.public_bytes(Encoding.DER)]})
    domain = ("dc=x", {"IdNat": [b"dns:demo-cabinet.mssante.fr"], "userCertificate;binary": [_der(ENCRYPTING)]})
    found = scripted([own, domain]).resolve(DOCTOR)
    assert found is not None and found.encryption_certificates == (ENCRYPTING,) and found.domain_certificate
    alone = scripted([own]).resolve(DOCTOR)
    assert alone is not None and alone.encryption_certificates == (web,) and not alone.domain_certificate
    explained = scripted([own, domain]).explain(DOCTOR)
    assert "UNFIT" in "".join(step.detail for step in explained.steps)


def test_a_number_of_several_holders_is_nobody_s(scripted: Any) -> None:
    """Nine digits: an ADELI and a FINESS. Whose results would they be?"""
    two = [
        (f"cn={number}", {"mail": [f"m{number}@x.fr".encode()], "TypeBAL": [b"PER"], "IdNat": [number.encode()]})
        for number in ("0990000071", "1990000071")
    ]
    assert scripted(two).preferred("990000071") is None
    explained = scripted(two).explain("990000071")
    assert explained.recipient is None and "--system" in "".join(step.detail for step in explained.steps)


def _der(one: x509.Certificate) -> bytes:
    return one.public_bytes(Encoding.DER)
