"""The FHIR API of the Annuaire Santé, in its recorded shape and about nobody, served over HTTP."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from directory.entries import from_recipient
from directory.fhir import AnnuaireSante, FhirError, FhirOptions
from directory.offered import Evidence, OfferOutcome
from directory.reading import CertificateOrigin
from directory.records import MailboxKind, Recipient
from directory.refresh import refresh
from tests.directory.conftest import BASE, ENCRYPTING, Server, certificate, key_usage, new_server
from trust.certificates import PathVerdict

RPPS = "99900000033"
NOS = "https://mos.esante.gouv.fr/NOS"
IG = "https://interop.esante.gouv.fr/ig/fhir/annuaire/StructureDefinition"
FIRST, SECOND, OWN = "lea.petit@demo-un.mssante.fr", "lea.petit@demo-deux.mssante.fr", "lea@demo-perso.mssante.fr"


def telecom(address: str, kind: str = "PER", **metadata: bool) -> dict[str, Any]:
    coding = {"system": f"{NOS}/TRE_R257-TypeBAL/FHIR/TRE-R257-TypeBAL", "code": kind}
    inner = [{"url": "type", "valueCodeableConcept": {"coding": [coding]}}]
    inner += [{"url": name, "valueBoolean": value} for name, value in metadata.items()]
    messaging = {"system": f"{NOS}/TRE_R256-TypeMessagerie/FHIR/TRE-R256-TypeMessagerie", "code": "MSSANTE"}
    return {
        "extension": [
            {
                "url": "https://hl7.fr/ig/fhir/core/StructureDefinition/fr-core-contact-point-email-type",
                "valueCoding": messaging,
            },
            {"extension": inner, "url": f"{IG}/as-ext-mailbox-mss-metadata"},
        ],
        "system": "email",
        "value": address,
    }


def practitioner(active: bool = True) -> dict[str, Any]:
    return {
        "resourceType": "Practitioner",
        "id": "003-1-2",
        "active": active,
        "identifier": [
            {"system": "urn:oid:1.2.250.1.71.4.2.1", "value": "8" + RPPS},
            {"system": "https://rpps.esante.gouv.fr", "value": RPPS},
        ],
        "name": [{"family": "PETIT", "given": ["Léa"], "prefix": ["MME"]}],
        "telecom": [telecom(OWN), {"system": "phone", "value": "0199000000"}],
        "qualification": [{"code": {"coding": [{"system": f"{NOS}/TRE_G15-ProfessionSante/FHIR/X", "code": "10"}]}}],
    }


def role(number: str, organisation: str, *telecoms: dict[str, Any], active: bool = True) -> dict[str, Any]:
    return {
        "resourceType": "PractitionerRole",
        "id": number,
        "active": active,
        "practitioner": {"reference": "Practitioner/003-1-2"},
        "organization": {"reference": f"Organization/{organisation}"},
        "code": [{"coding": [{"system": f"{NOS}/TRE_G15-ProfessionSante/FHIR/X", "code": "10"}]}],
        "specialty": [{"coding": [{"system": f"{NOS}/TRE_R38-SpecialiteOrdinale/FHIR/X", "code": "SM04"}]}],
        "extension": [
            {
                "url": f"{IG}/as-ext-practitionerrole-name",
                "valueHumanName": {"family": "PETIT", "given": ["Léa"], "suffix": ["DR"]},
            },
            {
                "url": f"{IG}/as-ext-digital-certificate",
                "extension": [
                    {"url": "value", "valueString": base64.b64encode(ENCRYPTING.public_bytes(Encoding.DER)).decode()}
                ],
            },
        ],
        "telecom": [*telecoms, {"system": "email", "value": "ordinary@example.fr"}],
    }


def organisation(number: str, system: str, value: str) -> dict[str, Any]:
    return {
        "resourceType": "Organization",
        "id": number,
        "identifier": [{"system": system, "value": value}],
        "name": "Hôpital de démonstration",
        "address": [{"postalCode": "69003", "city": "LYON"}],
    }


class Api:
    """What the server says, and what it was asked."""

    def __init__(self) -> None:
        self.practitioners = [practitioner()]
        self.pages: list[list[dict[str, Any]]] = [
            [
                role("005-1", "001-1", telecom(FIRST, listeRouge=True, digitization=True)),
                organisation("001-1", "https://finess.esante.gouv.fr", "990000033"),
            ],
            [
                role("005-2", "001-2", telecom(SECOND) | {"rank": 1}),
                role("005-3", "001-2", telecom("gone@demo-deux.mssante.fr"), active=False),
                role("005-4", "001-2", telecom("team@demo-deux.mssante.fr", "ORG"), telecom("no address")),
                organisation("001-2", "https://sirene.fr", "99000000000033"),
            ],
        ]
        self.asked: list[tuple[str, str]] = []
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        """Said first, before anything else."""
        self.next = "{base}/_page?id=u0-{page}"

    def answer(self, path: str, base: str) -> tuple[int, dict[str, str], bytes]:
        if self.answers:
            return self.answers.pop(0)
        parts = urlsplit(path)
        query = parse_qs(parts.query)
        page, pages = 0, self.pages
        if parts.path.endswith("/Practitioner"):
            wanted = query["identifier"][0].split("|")
            assert wanted[0] == "https://rpps.esante.gouv.fr"
            pages = [[each for each in self.practitioners if each["identifier"][1]["value"] == wanted[1]]]
        elif parts.path.endswith("/_page"):
            page = int(query["id"][0].removeprefix("u0-"))
        else:
            assert query["practitioner"] == ["003-1-2"] and query["_include"] == ["PractitionerRole:organization"]
        links = [{"relation": "self", "url": f"{base}{path}"}]
        if page + 1 < len(pages):
            links.insert(0, {"relation": "next", "url": self.next.format(base=base, page=page + 1)})
        entries = [{"fullUrl": f"{base}/x", "resource": each, "search": {"mode": "match"}} for each in pages[page]]
        bundle = {"resourceType": "Bundle", "type": "searchset", "link": links, "entry": entries}
        return 200, {"Content-Type": "application/fhir+json"}, json.dumps(bundle).encode()


@contextmanager
def serving(api: Api) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            api.asked.append((self.path, self.headers.get("ESANTE-API-KEY", "")))
            status, headers, content = api.answer(self.path, base)
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        base = f"http://127.0.0.1:{server.server_address[1]}/fhir/v2"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield base
        finally:
            server.shutdown()
            thread.join(10)


def asking(base: str, **changes: Any) -> AnnuaireSante:
    return AnnuaireSante(FhirOptions(base, "the-key", **changes), sleep=lambda seconds: None)


def test_one_professional_over_all_pages() -> None:
    api = Api()
    with serving(api) as base:
        found = asking(base).professional(RPPS)
    assert found is not None
    assert (found.id_nat, found.civility, found.family_name, found.given_name) == ("8" + RPPS, "DR", "PETIT", "Léa")
    mailboxes = {each.address: each for each in found.mailboxes}
    assert set(mailboxes) == {FIRST, SECOND, OWN, "team@demo-deux.mssante.fr", "no address"}
    first = mailboxes[FIRST]
    assert (first.structure, first.town, first.profession, first.skill) == ("1990000033", "LYON", "10", "SM04")
    assert first.red_list and first.dematerialisation is True and first.certificates
    assert mailboxes[SECOND].structure == "399000000000033" and mailboxes[SECOND].rank == 1
    assert mailboxes[OWN].structure == "" and mailboxes[OWN].certificates == ()
    assert len(api.asked) == 3 and {key for _, key in api.asked} == {"the-key"}


def test_nobody_or_no_longer_active() -> None:
    api = Api()
    with serving(api) as base:
        assert asking(base).professional("99900000044") is None
        api.practitioners = [practitioner(active=False)]
        assert asking(base).professional(RPPS) is None
        for nonsense in ("", "8" + RPPS, "9990000003x", "٣٣٣٣٣٣٣٣٣٣٣"):
            with pytest.raises(ValueError, match="11 digits"):
                asking(base).professional(nonsense)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_trouble_that_passes_is_waited_out(status: int) -> None:
    api = Api()
    api.answers = [(status, {"Retry-After": "1"}, b""), (status, {}, b"")]
    with serving(api) as base:
        assert asking(base).professional(RPPS) is not None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((403, {}, b""), "key"),
        ((401, {}, b""), "key"),
        ((404, {}, b"{}"), "404"),
        ((200, {}, b"<html>"), "JSON"),
        ((200, {}, b"[" * 100_000), "JSON"),
        ((200, {}, b"[]"), "Bundle"),
        ((200, {}, b'{"resourceType":"OperationOutcome"}'), "Bundle"),
    ],
)
def test_what_is_no_answer_says_why(answer: tuple[int, dict[str, str], bytes], words: str) -> None:
    api = Api()
    api.answers = [answer]
    with serving(api) as base, pytest.raises(FhirError, match=words):
        asking(base).professional(RPPS)


def test_odd_shapes_are_no_crash() -> None:
    api = Api()
    api.practitioners[0] |= {"telecom": "x", "name": None, "qualification": [None, 3, {"code": []}]}
    api.pages = [[role("1", "2") | {"telecom": [None, {"system": 3}], "extension": {"a": 1}, "code": "x"}]]
    with serving(api) as base:
        found = asking(base).professional(RPPS)
    assert found is not None and found.mailboxes == ()


def test_the_key_goes_to_no_other_server_and_pages_end() -> None:
    api = Api()
    with serving(api) as base:
        api.next = "http://127.0.0.1:9/steal?id={page}"
        with pytest.raises(FhirError, match="another server"):
            asking(base).professional(RPPS)
        api.next = "{base}/_page?id=u0-0"
        with pytest.raises(FhirError, match="circle"):
            asking(base).professional(RPPS)
    with pytest.raises(FhirError, match="does not answer"):
        asking(base, timeout_seconds=2.0).professional(RPPS)
    for url in ("http://gateway.example/fhir", "ftp://127.0.0.1/"):
        with pytest.raises(ValueError, match="https"):
            AnnuaireSante(FhirOptions(url))


@pytest.fixture
def register(server_files: Path) -> Iterator[Server]:
    with new_server(server_files) as server:
        local = Recipient(OWN, MailboxKind.APP, "Kept by hand")
        other = Recipient("other@demo-un.mssante.fr", MailboxKind.PER, "Dr Autre", id_nat="899900000055")
        server.slapd.load([from_recipient(each, BASE) for each in (local, other)])
        server.start()
        yield server


def test_refreshing_adds_changes_and_leaves(register: Server) -> None:
    api = Api()
    with serving(api) as base, register.directory("admin") as admin, register.directory() as directory:
        source = asking(base)
        report = refresh(admin, source, "8" + RPPS, BASE)
        assert report.found and sorted(report.added) == [SECOND, FIRST]
        assert set(report.left) == {OWN, "team@demo-deux.mssante.fr", "no address"}
        found = directory.resolve(FIRST)
        assert found is not None and found.structure == "1990000033" and found.encryption_certificates == (ENCRYPTING,)
        assert directory.preferred(RPPS).address == SECOND  # type: ignore[union-attr]
        assert directory.preferred(RPPS, "990000033").address == FIRST  # type: ignore[union-attr]
        assert sorted(refresh(admin, source, RPPS, BASE).unchanged) == [SECOND, FIRST]
        # what the overlay owns stays: the rank set here, the certificate published here
        admin.set_rank(SECOND, 7)
        api.pages[1][0]["extension"][0]["valueHumanName"]["family"] = "DURAND"
        api.pages[0] = []
        report = refresh(admin, source, RPPS, BASE)
        assert (report.changed, report.missing) == ([SECOND], [FIRST])
        found = directory.resolve(SECOND)
        assert found is not None and found.rank == 7 and "DURAND" in found.display_name
        # the words it had stay, whole and cut short: the file may have brought them
        for text in ("durand", "dura", "petit", "peti"):
            assert SECOND in {each.address for each in directory.search(text).found}, text
        # an address that is somebody else's
        api.pages[1][0]["telecom"] = [telecom(FIRST)]
        api.pages[1][0]["practitioner"] = {"reference": "https://x/Practitioner/003-1-2"}
        assert directory.resolve(OWN).kind is MailboxKind.APP  # type: ignore[union-attr]
        assert refresh(admin, source, "99900000044", BASE).found is False


@pytest.mark.parametrize(
    "following",
    [
        "https://[::1/_page",
        "http://127.0.0.1:99999/_page?id=u0-1",
        "http://127.0.0.1:x/_page",
        "ftp://127.0.0.1/_page",
        "//elsewhere.example/fhir/v2/_page?id=u0-1",
        "http://user:password@elsewhere.example/_page",
        "file:///etc/passwd",
    ],
)
def test_a_next_page_that_is_nowhere_of_the_server_s_is_not_fetched(following: str) -> None:
    api = Api()
    api.next = following
    with serving(api) as base, pytest.raises(FhirError):
        asking(base).professional(RPPS)
    assert len(api.asked) == 2


@pytest.mark.parametrize(
    ("headers", "slept"),
    [
        ({"Retry-After": "2"}, 2.0),
        ({"Retry-After": "nonsense"}, 0.5),
        ({}, 0.5),
        ({"Retry-After": "Thu, 01 Jan 2015 00:00:00 GMT"}, 0.1),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_who_is_asked_to_wait_waits(status: int, headers: dict[str, str], slept: float) -> None:
    api, pauses = Api(), list[float]()
    api.answers = [(status, headers, b"")]
    with serving(api) as base:
        found = AnnuaireSante(FhirOptions(base, "the-key"), pauses.append).professional(RPPS)
    assert found is not None and pauses == [slept]


@pytest.mark.parametrize("later", ["3600", "Fri, 01 Jan 2100 00:00:00 GMT", "9" * 400])
def test_who_is_asked_to_wait_longer_says_so_and_does_not_come_back_early(later: str) -> None:
    api, pauses = Api(), list[float]()
    api.answers = [(429, {"Retry-After": later}, b"")]
    with serving(api) as base, pytest.raises(FhirError, match=r"again in [0-9]{4,} seconds"):
        AnnuaireSante(FhirOptions(base, "the-key"), pauses.append).professional(RPPS)
    assert pauses == [] and len(api.asked) == 1


@pytest.mark.parametrize(
    ("status", "headers", "content"),
    [
        (302, {"Location": "http://127.0.0.1:9/"}, b""),
        (307, {"Location": "/fhir/v3/"}, b""),
        (200, {"Content-Type": "text/html"}, b"<html>Portail</html>"),
        (200, {"Content-Type": "application/fhir+xml"}, b"<Bundle xmlns='http://hl7.org/fhir'/>"),
        (200, {}, b'{"resourceType": "OperationOutcome"}'),
        (200, {}, b'{"resourceType": "Bundle", "entry": ' + b"[" * 100_000),
        (200, {}, b"\xff\xfe"),
        (200, {"Content-Length": "5000"}, b'{"resourceType": "Bundle"}'),
        (204, {}, b""),
        (404, {}, b"{}"),
    ],
)
def test_other_answers_are_no_professional_who_is_gone(status: int, headers: dict[str, str], content: bytes) -> None:
    api = Api()
    api.answers = [(status, headers, content)] * 3
    with serving(api) as base, pytest.raises(FhirError) as raised:
        asking(base).professional(RPPS)
    assert "the-key" not in str(raised.value) and RPPS not in str(raised.value)


def test_an_answer_drop_by_drop_ends_with_the_deadline() -> None:
    """Each octet is in time, the whole never would be."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ended = threading.Event()

        def drip() -> None:
            while not ended.is_set():
                connection, _ = listening.accept()
                with connection, suppress(OSError):
                    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                    while not ended.wait(0.05):
                        connection.sendall(b"x")

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        started = time.monotonic()
        with pytest.raises(FhirError, match="does not answer"):
            asking(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout_seconds=0.6).professional(RPPS)
        assert time.monotonic() - started < 4
        ended.set()
        with suppress(OSError), socket.create_connection(listening.getsockname(), 1):
            pass
        thread.join(10)


def test_more_than_a_professional_can_be_is_not_read_to_the_end() -> None:
    api = Api()
    filler = {"resourceType": "Basic", "text": "x" * 5_000_000}
    api.pages = [[filler]] * 12
    with serving(api) as base, pytest.raises(FhirError, match="more than"):
        asking(base).professional(RPPS)
    assert len(api.asked) < 10


def test_a_professional_without_an_id_is_nobody_s_situations() -> None:
    api = Api()
    api.practitioners[0]["id"] = ""
    with serving(api) as base, pytest.raises(FhirError, match="without an id"):
        asking(base).professional(RPPS)


def test_a_certificate_that_names_another_address_is_not_this_mailbox_s() -> None:
    api = Api()
    own, other = (
        certificate(name, x509.SubjectAlternativeName([x509.RFC822Name(name)]), key_usage("key_agreement"))
        for name in (FIRST.upper(), SECOND)
    )
    role_ = api.pages[0][0]
    role_["extension"][1:] = [
        {
            "url": f"{IG}/as-ext-digital-certificate",
            "extension": [{"url": "value", "valueBase64Binary": base64.b64encode(value).decode()}],
        }
        for value in (own.public_bytes(Encoding.DER), other.public_bytes(Encoding.DER), b"garbage")
    ]
    with serving(api) as base:
        found = asking(base).professional(RPPS)
    assert found is not None
    (first,) = [each for each in found.mailboxes if each.address == FIRST]
    assert first.certificates == (own.public_bytes(Encoding.DER),)


def test_what_was_learned_from_mail_gives_way_to_the_register_s(server_files: Path) -> None:
    api = Api()
    learned = certificate("learned", x509.SubjectAlternativeName([x509.RFC822Name(FIRST)]), key_usage("key_agreement"))
    with new_server(server_files) as server, serving(api) as base:
        server.slapd.load([])
        server.start()
        with server.directory("admin") as admin:
            kept = api.pages[0][0]["extension"].pop()
            # an empty directory proves nothing: somebody has to be there
            admin.publish(Recipient(OWN, MailboxKind.APP, "Automate"))
            source = asking(base)
            assert FIRST in refresh(admin, source, RPPS, BASE).added
            verdict = PathVerdict(True, (learned,), "rfc5280-6.1", "", "good")
            evidence = Evidence(CertificateOrigin.MAIL, verdict, FIRST, datetime.now(UTC))
            assert admin.offer_certificate(FIRST, learned, evidence) is OfferOutcome.LEARNED
            assert FIRST in refresh(admin, source, RPPS, BASE).unchanged
            assert admin.resolve(FIRST).encryption_certificates == (learned,)  # type: ignore[union-attr]
            api.pages[0][0]["extension"].append(kept)
            assert FIRST in refresh(admin, source, RPPS, BASE).changed
            assert admin.resolve(FIRST).encryption_certificates == (ENCRYPTING,)  # type: ignore[union-attr]
            said = "".join(step.detail for step in admin.explain(FIRST).steps)
            assert "register, by KeyUsage" in said and "mail, by KeyUsage" not in said
            assert FIRST in refresh(admin, source, RPPS, BASE).unchanged
            assert admin.offer_certificate(FIRST, learned, evidence) is OfferOutcome.MANUAL
