"""The directory as the address book of ordinary clients: their real filters, and what they must never see."""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import ldap
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from directory.entries import from_recipient
from directory.ldif import LdifEntry
from directory.load import entries
from directory.records import MailboxKind, Recipient
from directory.slapd import PrivateSlapd
from directory.synthetic import write_extraction
from tests.directory.conftest import (
    BASE,
    DOCTOR,
    ENCRYPTING,
    HIDDEN,
    PATIENT,
    TEAM,
    Server,
    fixture_entries,
    new_server,
)
from tests.directory.test_load import EXTRA

RED = "rouge.discret@demo-cabinet.mssante.fr"
ACCENTED = replace(
    EXTRA,
    address="helene.legoff@demo-cabinet.mssante.fr",
    pp_id_nat="899912340001",
    family_name="Le Goff",
    given_name="Hélène",
    profession_code="10",
    l6_delivery="99200 SAINT-ÉTIENNE",
    postal_code="99200",
)


@pytest.fixture(scope="module")
def book(server_files: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A slapd with a few dozen national mailboxes, persons and structures, and the overlay of the fixtures."""
    files = write_extraction(tmp_path_factory.mktemp("files"), 30, extra=(ACCENTED,))
    red = Recipient(RED, MailboxKind.PER, "Dr Rouge DISCRET", (ENCRYPTING,), id_nat="899912349999", organisation="Labo")
    everything = [
        *entries(files.mssante, files.practice, BASE),
        *fixture_entries(),
        from_recipient(red, BASE, red_list=True),
    ]
    with new_server(server_files) as server:  # type: ignore[arg-type]
        server.slapd.load(everything)
        server.start()
        yield server


def client(server: Server, argv: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """One of OpenLDAP's programs, as an anonymous client over ldaps."""
    program, *arguments = argv
    return subprocess.run(
        [program, "-x", "-H", server.slapd.ldaps_uri, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=20,
        env={**os.environ, "LDAPTLS_CACERT": str(server.ca), "LDAPTLS_REQCERT": "demand"},
    )


def search(server: Server, text: str, *attributes: str, base: str = BASE, scope: str = "sub") -> str:
    """What `ldapsearch` prints, as an anonymous client over ldaps."""
    argv = ("ldapsearch", "-LLL", "-o", "ldif-wrap=no", "-b", base, "-s", scope, text, *attributes)
    done = client(server, argv)
    assert done.returncode in (0, 4, 32), done.stderr  # 4: more than the limit, 32: a base nobody shows
    return done.stdout


THUNDERBIRD = (
    "(&(objectclass=*)(|(cn=*{0}*)(commonname=*{0}*)(givenName=*{0}*)(sn=*{0}*)(surname=*{0}*)(mozillaNickname=*{0}*)"
    "(xmozillanickname=*{0}*)(mail=*{0}*)(mozillaSecondEmail=*{0}*)(o=*{0}*)(company=*{0}*)(ou=*{0}*)(department=*{0}*)"
    "(departmentnumber=*{0}*)(orgunit=*{0}*)(title=*{0}*)(mozillaWorkUrl=*{0}*)(mozillaHomeUrl=*{0}*)))"
)
THUNDERBIRD_COMPLETION = "(&(objectclass=*)(|(cn={0}*)(mail={0}*)(sn={0}*)))"
THUNDERBIRD_TWO_WORDS = "(&(objectclass=*)(|(cn=le*goff*)(mail=le*goff*)(sn=le*goff*)))"
OUTLOOK = "(&(mail=*)(|(mail={0}*)(|(cn={0}*)(|(sn={0}*)(givenName={0}*)))))"
APPLE = "(&(objectClass=inetOrgPerson)(|(givenName=*{0}*)(sn=*{0}*)(cn=*{0}*)(mail=*{0}*)))"
EVOLUTION = "(&(mail=*)(|(cn=*{0}*)(sn=*{0}*)(displayName=*{0}*)(mail=*{0}*)(givenName=*{0}*)))"


@pytest.mark.parametrize("client", [THUNDERBIRD, THUNDERBIRD_COMPLETION, OUTLOOK, APPLE, EVOLUTION])
@pytest.mark.parametrize("typed", ["le goff", "LE GOFF", "helene", "Hélène"])
def test_mail_programs_find_a_person_with_or_without_accents(book: Server, client: str, typed: str) -> None:
    if client == THUNDERBIRD_COMPLETION and typed.lower().startswith("h"):
        typed = "helene.l"  # it completes common names, sur names and addresses
    assert f"mail: {ACCENTED.address}\n" in search(book, client.format(typed), "mail")


@pytest.mark.parametrize(
    "text",
    [
        "(&(sn=LE GOFF)(l=SAINT-ETIENNE))",
        "(&(sn=LE GOFF)(TypeIdentifiantPP=8)(profession=*)(l=saint-*))",
        "(&(givenName=Hélène)(mail=*)(IdentifiantPP=99912340001)(TypeIdentifiantPP=8)(profession=10))",
        "(&(sn=Le*)(profession=10)(TypeIdentifiantPP=8))",
        "(&(TypeBAL=PER)(IdentifiantPP=99912340001))",
        "(&(givenName=hél*)(sn=le g*))",
        "(&(mail=helene.legoff@demo-cabinet.mssante.fr))",
    ],
)
def test_practice_software_finds_a_person(book: Server, text: str) -> None:
    wanted = ("mail", "givenName", "sn", "IdentifiantPP", "TypeIdentifiantPP", "profession", "l")
    found = search(book, text, *wanted)
    assert found.count("dn:") == 1
    for line in (f"mail: {ACCENTED.address}", "IdentifiantPP: 99912340001", "TypeIdentifiantPP: 8", "profession: 10"):
        assert line in found
    # Practice software takes the first value: the one with its accents
    assert f"givenName:: {base64.b64encode('Hélène'.encode()).decode()}\ngivenName: Helene\n" in found


def test_a_mail_program_that_takes_words_apart_finds_a_person(book: Server) -> None:
    assert f"mail: {ACCENTED.address}\n" in search(book, THUNDERBIRD_TWO_WORDS, "mail")


def test_practice_software_finds_a_team(book: Server) -> None:
    found = search(book, "(&(TypeBAL=ORG)(IdentifiantPM=990000002)(TypeIdentifiantPM=FINESS))", "mail", "o")
    assert found.count("dn:") == 1 and f"mail: {TEAM}" in found and "o: Labo" in found


def test_a_mail_program_fetches_the_certificate(book: Server) -> None:
    found = search(book, f"(mail={DOCTOR})", "userCertificate;binary")
    der = base64.b64encode(ENCRYPTING.public_bytes(Encoding.DER)).decode()
    assert f"userCertificate;binary:: {der}" in found


def test_the_red_list_is_found_by_exact_address(book: Server) -> None:
    for text in (
        f"(mail={RED})",
        f"(mail={RED.upper()})",
        f"(&(objectClass=*)(mail={RED}))",
        f"(|(mail={RED})(sn=zz))",
    ):
        found = search(book, text)
        assert (f"mail: {RED}" in found) is ("objectClass" not in text), text
    found = search(book, f"(mail={RED})")
    assert "userCertificate;binary::" in found and "listeRouge" not in found


@pytest.mark.parametrize(
    "text",
    [
        *(
            client.format(typed)
            for client in (THUNDERBIRD, OUTLOOK, APPLE, EVOLUTION)
            for typed in ("rouge", "discret")
        ),
        *("(mail=*)", "(mail=rouge*)", "(mail=*discret*)", "(!(mail=nobody@x))", "(!(mail=nobody*))", "(mail>=a)"),
        *("(objectClass=*)", "(objectClass=mssanteBAL)", "(listeRouge=TRUE)", "(!(listeRouge=FALSE))", "(cn=*)"),
        *("(IdNat=899912349999)", "(o=Labo)", "(ou:dn:=professionnels)", "(mail:dn:=rouge.discret)", "(entryDN=*)"),
        *("(!(&(cn=zz)(mail=*)))", "(mail~=rouge.discret)", "(uid=*)", "(entryUUID=*)"),
        *("(mail=*] | [x)", "(mail=x] \\7c this/mail | [x)", "(&)", "(!(|))", "(|(&)(cn=a))", "(!(&(|)(mail=x@y)))"),
    ],
)
def test_the_red_list_is_never_listed(book: Server, text: str) -> None:
    found = search(book, text, "mail")
    assert RED not in found and HIDDEN not in found and PATIENT not in found
    below = search(book, text, "mail", base=f"ou=professionnels,{BASE}", scope="one")
    assert RED not in below and HIDDEN not in below


def test_the_red_list_cannot_be_asked_for_by_its_name(book: Server) -> None:
    for text in ("(objectClass=*)", "(mail=*)", "(&)"):
        assert "mail:" not in search(book, text, base=f"mail={RED},ou=professionnels,{BASE}", scope="base")


@pytest.mark.parametrize(
    "text",
    [
        "(mail:2.5.13.2:=rouge.discret@demo-cabinet.mssante.fr)",
        *("(rfc822Mailbox=rouge*)", "(0.9.2342.19200300.100.1.3=rouge*)", "(mail<=z)", "(!(!(mail=rouge*)))"),
        *(f"(&(mail={RED})({other}))" for other in ("sn=Dr Rouge DISCRET", "cn=Dr*", "o=Labo", "IdNat=899912349999")),
        f"(entryDN=mail={RED},ou=professionnels,{BASE})",
        "(entryDN:dnSubtreeMatch:=ou=professionnels,dc=mssante,dc=fr)",
    ],
)
def test_nothing_about_the_red_list_can_be_guessed(book: Server, text: str) -> None:
    assert RED not in search(book, text, "mail")


@pytest.mark.parametrize("value", ["cn:Dr Rouge DISCRET", "o:Labo", "listeRouge:TRUE", "objectClass:top", "mail:x@y"])
def test_compare_tells_nothing_about_the_red_list(book: Server, value: str) -> None:
    argv = ("ldapcompare", f"mail={RED},ou=professionnels,{BASE}", value)
    assert client(book, argv).returncode == 32  # no such object


def test_pages_end_where_the_limit_is(book: Server) -> None:
    paged = client(book, ("ldapsearch", "-LLL", "-b", BASE, "-E", "pr=20/noprompt", "(mail=*)", "mail"))
    whole = client(book, ("ldapsearch", "-LLL", "-b", BASE, "(mail=*)", "mail"))
    assert paged.returncode == whole.returncode == 0
    assert paged.stdout.count("dn:") == whole.stdout.count("dn:") > 30
    assert RED not in paged.stdout and PATIENT not in paged.stdout
    few = client(book, ("ldapsearch", "-LLL", "-b", BASE, "-z", "3", "(mail=*)", "mail"))
    assert (few.returncode, few.stdout.count("dn:")) == (4, 3)


def test_sorting_and_browsing_are_not_promised_and_do_not_hinder(book: Server) -> None:
    """RFC 2891 and virtual list views: who can do without gets an answer, who insists is told so."""
    controls = client(
        book, ("ldapsearch", "-LLL", "-b", "", "-s", "base", "(objectClass=*)", "supportedControl")
    ).stdout
    assert "1.2.840.113556.1.4.319" in controls  # paged results
    assert "1.2.840.113556.1.4.473" not in controls and "2.16.840.1.113730.3.4.9" not in controls
    asked = ("ldapsearch", "-LLL", "-b", BASE, "-E")
    assert ACCENTED.address in client(book, (*asked, "sss=cn", "(sn=le goff)", "mail")).stdout
    for insisting in (("!sss=cn",), ("!sss=cn", "-E", "!vlv=0/19/1/0")):
        assert client(book, (*asked, *insisting, "(sn=le goff)", "mail")).returncode == 12  # unavailable


def test_the_public_writes_nothing_and_binds_as_nobody(book: Server) -> None:
    assert client(book, ("ldapdelete", f"mail={DOCTOR},ou=professionnels,{BASE}")).returncode == 8
    for password, code in (("", 53), ("wrong", 49)):
        argv = ("ldapsearch", "-D", book.slapd.admin_dn, "-w", password, "-b", BASE, "(mail=*)")
        assert client(book, argv).returncode == code


def test_the_public_sees_what_the_register_publishes(book: Server) -> None:
    found = search(book, f"(IdNat={ACCENTED.pp_id_nat})", base=f"ou=personnes,{BASE}")
    assert "NomExercice: LE GOFF" in found and "Situation::" in found
    assert "RaisonSociale" in search(book, "(objectClass=mssanteStructure)", base=f"ou=etablissements,{BASE}")
    everything = "".join(search(book, f"(objectClass={name})") for name in ("*", "mssantePersonne", "mssanteBAL"))
    for hidden in ("MotsRecherche", "ClesRecherche", "MotsPersonne", "ClesPersonne", "SourceBAL", "ou=patients"):
        assert hidden not in everything
    assert "dn:" not in search(book, "(objectClass=*)", base=f"ou=patients,{BASE}")


def test_what_address_books_ask_finds_mailboxes_alone(book: Server) -> None:
    for text in (THUNDERBIRD, OUTLOOK, APPLE, EVOLUTION):
        found = search(book, text.format("e"), "objectClass")
        assert "mssanteBAL" in found and "mssantePersonne" not in found and "mssanteStructure" not in found


def test_where_readers_have_a_password_the_public_sees_nothing(server: Server) -> None:
    server.slapd = PrivateSlapd(replace(server.slapd._options, reader_password="reader-secret"))
    server.slapd.prepare()
    red = from_recipient(Recipient(RED, MailboxKind.PER, "Dr Rouge"), BASE, red_list=True)
    server.slapd.load([*fixture_entries(), red])
    server.start()
    for text in ("(objectClass=*)", f"(mail={DOCTOR})", f"(mail={RED})"):
        assert "dn:" not in search(server, text)
    connection = ldap.initialize(server.slapd.ldapi_uri)
    connection.simple_bind_s(server.slapd.reader_dn, "reader-secret")
    listed = {value for _, values in connection.search_s(BASE, 2, "(mail=*)", ["mail"]) for value in values["mail"]}
    assert DOCTOR.encode() in listed and RED.encode() not in listed and PATIENT.encode() not in listed
    assert len(connection.search_s(BASE, 2, f"(mail={RED})", ["mail"])) == 1
    connection.unbind_s()
    with server.directory() as directory:
        assert directory.resolve(RED) is not None


def test_values_slapd_holds_for_equal_do_not_stop_a_load(server: Server) -> None:
    odd = (
        "Ligature \ufb01n",
        "D\u00e9p\u00f4t  L\u00e9gal",
        "Stra\u00dfe",
        "N\u00ba 5 \u2116",
        "\u00c5 \u212b",
        "\u0130stanbul",
    )
    for number, name in enumerate(odd):
        recipient = Recipient(f"odd{number}@demo.mssante.fr", MailboxKind.ORG, name, organisation=name)
        entry = from_recipient(recipient, BASE)
        if server.slapd.is_empty:
            server.slapd.load([entry])
            server.start()
        else:
            with server.directory("admin") as admin:
                admin.publish(recipient)
    assert isinstance(entry, LdifEntry)
