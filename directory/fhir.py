"""The FHIR API of the Annuaire Santé (v2, FHIR R4): one professional as the national register knows him now.

The daily file is yesterday's; this asks for one entry today. What comes back is checked like a file: bounded in size
and pages, read leniently, and a next page is only ever fetched from the server that was configured, because the API key
goes with every request.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from cryptography import x509

from trust.addresses import mail_addresses

RPPS_SYSTEM = "https://rpps.esante.gouv.fr"
MAX_PAGES = 50
MAX_PAGE_BYTES = 8 * 1024 * 1024
_TRIES = 3
MAX_OCTETS = 32 * 1024 * 1024
"""Of all pages about one professional: a real one has some ten thousand."""
_PORTS = {"https": 443, "http": 80}
_EMAIL_TYPE = "fr-core-contact-point-email-type"
_METADATA = "as-ext-mailbox-mss-metadata"
_CERTIFICATE = "as-ext-digital-certificate"
_PRACTICE_NAME = "as-ext-practitionerrole-name"

Resource = Mapping[str, Any]


class FhirError(Exception):
    """The API did not give a usable answer; the text says what to do, and holds neither key nor identity."""


@dataclass(frozen=True, slots=True)
class FhirOptions:
    """Which API, with which key."""

    base: str = "https://gateway.api.esante.gouv.fr/fhir/v2"
    """Without a slash at the end. https, or http to this machine."""
    api_key: str = field(default="", repr=False)
    """Sent as `ESANTE-API-KEY`; empty: none is sent."""
    ca_file: Path | None = None
    """PEM file of the roots that verify the server; None: those of the system."""
    timeout_seconds: float = 20.0
    """For one professional, all pages and tries."""


@dataclass(frozen=True, slots=True)
class FhirMailbox:
    """One MSSanté mailbox in a `telecom` (as-mailbox-mss)."""

    address: str
    kind: str
    """TRE_R257: `PER`, `CAB` ..."""
    structure: str
    """IdNat_Struct of the situation it belongs to; empty: of the professional as such."""
    description: str = ""
    service: str = ""
    dematerialisation: bool | None = None
    red_list: bool = False
    rank: int | None = None
    organisation: str = ""
    postal_code: str = ""
    town: str = ""
    profession: str = ""
    """TRE_G15 code."""
    skill: str = ""
    """TRE_R38 code of the situation's specialty."""
    certificates: tuple[bytes, ...] = ()
    """DER, as the register publishes them for the situation."""


@dataclass(frozen=True, slots=True)
class FhirProfessional:
    """One professional, with the mailboxes of all his active situations, each address once."""

    id_nat: str
    civility: str
    family_name: str
    given_name: str
    mailboxes: tuple[FhirMailbox, ...]


class AnnuaireSante:
    """Asks the API. Thread-safe; each call makes its own connections."""

    def __init__(self, options: FhirOptions, sleep: Callable[[float], None] = time.sleep) -> None:
        """Raises ValueError for a base that is neither https nor http to this machine."""
        parts = urlsplit(options.base)
        if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(parts.hostname or "")):
            raise ValueError("the API of the Annuaire Santé is reached over https")
        if not options.api_key.isascii() or not (options.api_key.isprintable()):
            raise ValueError("the API key of the Annuaire Santé holds characters that no key has")
        self._options = options
        self._origin = _origin(parts)
        self._sleep = sleep
        self._tls: ssl.SSLContext | None = None

    def professional(self, rpps: str) -> FhirProfessional | None:
        """The professional with this RPPS number (11 digits); None when the register has no such active one.

        Raises `FhirError`, ValueError when this is no RPPS number.
        """
        if len(rpps) != 11 or not rpps.isascii() or not rpps.isdigit():
            raise ValueError("an RPPS number has 11 digits")
        deadline = time.monotonic() + self._options.timeout_seconds
        token = quote(f"{RPPS_SYSTEM}|{rpps}", safe="")
        found = [
            resource
            for resource in self._all(f"Practitioner?identifier={token}", deadline)
            if resource.get("resourceType") == "Practitioner" and rpps in _identifiers(resource).values()
        ]
        active = [resource for resource in found if resource.get("active", True) is not False]
        if not active:
            return None
        practitioner = active[0]
        number = _text(practitioner, "id")
        if not number:
            raise FhirError("the Annuaire Santé gives a professional without an id; try again later")
        query = f"PractitionerRole?practitioner={quote(number, safe='')}&_include=PractitionerRole:organization"
        roles: list[Resource] = []
        organisations: dict[str, Resource] = {}
        for resource in self._all(query, deadline):
            if resource.get("resourceType") == "PractitionerRole":
                roles.append(resource)
            elif resource.get("resourceType") == "Organization":
                organisations[str(resource.get("id", ""))] = resource
        mine = [role for role in roles if _reference(role.get("practitioner")) == number]
        return _professional("8" + rpps, practitioner, mine, organisations)

    def _all(self, query: str, deadline: float) -> Iterator[Resource]:
        """The resources of all pages of a search (FHIR R4 §3.1.1.4, `link[relation=next]`)."""
        url = f"{self._options.base.rstrip('/')}/{query}"
        seen: set[str] = set()
        octets = 0
        while url:
            if url in seen or len(seen) >= MAX_PAGES:
                raise FhirError("the Annuaire Santé turns its pages in a circle; try again later")
            seen.add(url)
            bundle, size = self._page(url, deadline)
            octets += size
            if octets > MAX_OCTETS:
                raise FhirError(f"the Annuaire Santé has more than {MAX_OCTETS} octets about one professional")
            for entry in _list(bundle.get("entry")):
                resource = entry.get("resource")
                if isinstance(resource, dict):
                    yield resource
            following = next(
                (str(link.get("url", "")) for link in _list(bundle.get("link")) if link.get("relation") == "next"), ""
            )
            url = _joined(url, following) if following else ""

    def _page(self, url: str, deadline: float) -> tuple[Resource, int]:
        """A bundle and its octets."""
        parts = urlsplit(url)
        if _origin(parts) != self._origin:
            raise FhirError("the Annuaire Santé points to another server; the key is not sent there")
        for attempt in range(1, _TRIES + 1):
            try:
                status, headers, content = self._get(parts, deadline)
            except (OSError, http.client.HTTPException, ValueError) as error:
                if attempt == _TRIES or time.monotonic() >= deadline:
                    raise FhirError(f"the Annuaire Santé does not answer ({type(error).__name__})") from None
                continue
            if status == 200:
                return _bundle(content), len(content)
            if status in (401, 403):
                raise FhirError("the Annuaire Santé refuses the API key; ask for a valid one and set it")
            if 300 <= status < 400:
                raise FhirError(f"the Annuaire Santé answers {status}: it has moved; set directory.register.base anew")
            pause = _pause(headers.get("retry-after", ""), attempt)
            if status not in (429, 500, 502, 503, 504) or attempt == _TRIES or time.monotonic() + pause >= deadline:
                raise FhirError(f"the Annuaire Santé answers {status}; try again in {max(pause, 1.0):.0f} seconds")
            self._sleep(pause)
        raise FhirError("the Annuaire Santé does not answer")

    def _get(self, parts: SplitResult, deadline: float) -> tuple[int, Mapping[str, str], bytes]:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
        connection = http.client.HTTPConnection(host, port, timeout=left)
        # each octet would start the socket's time-out anew: who sends one now and then would hold us for ever
        plain = socket.create_connection((host, port), left)
        last = plain.dup()
        cutter = threading.Timer(max(deadline - time.monotonic(), 0.0), _cut, (last,))
        cutter.daemon = True
        cutter.start()
        headers = {"Accept": "application/fhir+json", "User-Agent": "relais", "Connection": "close"}
        if self._options.api_key:
            headers["ESANTE-API-KEY"] = self._options.api_key
        try:
            connection.sock = plain if parts.scheme == "http" else self._secured(plain, host)
            connection.request("GET", parts.path + (f"?{parts.query}" if parts.query else ""), headers=headers)
            response = connection.getresponse()
            content = bytearray()
            while piece := response.read1(1 << 16):
                content += piece
                if len(content) > MAX_PAGE_BYTES:
                    raise FhirError(f"a page of the Annuaire Santé is larger than {MAX_PAGE_BYTES} octets")
                if time.monotonic() > deadline:
                    raise TimeoutError
            if response.length:
                raise http.client.IncompleteRead(bytes(content))
            if time.monotonic() > deadline:  # cut, which looks like an end
                raise TimeoutError
            return response.status, {name.lower(): value for name, value in response.headers.items()}, bytes(content)
        finally:
            cutter.cancel()
            connection.close()
            for each in (plain, last):
                each.close()

    def _secured(self, plain: socket.socket, host: str) -> socket.socket:
        if self._tls is None:
            self._tls = ssl.create_default_context(cafile=self._options.ca_file)
        return self._tls.wrap_socket(plain, server_hostname=host)


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)


def _joined(url: str, following: str) -> str:
    """The next page's address, when it is one. Raises `FhirError`."""
    try:
        joined = urljoin(url, following)
        _origin(urlsplit(joined))
    except ValueError:
        raise FhirError("the Annuaire Santé gives a next page whose address is none; try again later") from None
    return joined


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _pause(retry_after: str, attempt: int) -> float:
    """Seconds until the next try (RFC 9110 §10.2.3: a number of them, or a date); the API allows 17 calls a second."""
    pause: float = 0.25 * 2**attempt
    if retry_after.isascii() and retry_after.strip().isdigit():
        pause = float(retry_after[:9])
    elif retry_after:
        with suppress(ValueError):
            date = parsedate_to_datetime(retry_after)
            pause = date.replace(tzinfo=date.tzinfo or UTC).timestamp() - time.time()
    return max(pause, 0.1)


def _bundle(content: bytes) -> Resource:
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError):
        raise FhirError("the Annuaire Santé answers something that is no JSON") from None
    if not isinstance(parsed, dict) or parsed.get("resourceType") != "Bundle":
        raise FhirError("the Annuaire Santé answers something that is no Bundle")
    return parsed


def _professional(
    id_nat: str, practitioner: Resource, roles: Sequence[Resource], organisations: Mapping[str, Resource]
) -> FhirProfessional:
    practised = [
        each["valueHumanName"]
        for role in roles
        if role.get("active", True) is not False
        for each in _extensions(role, _PRACTICE_NAME)
        if isinstance(each.get("valueHumanName"), dict)
    ]
    name: Resource = next(iter((*practised, *_list(practitioner.get("name")))), {})
    professions = _codes(practitioner, "qualification", "TRE_G15") or [""]
    mailboxes: dict[str, FhirMailbox] = {}
    for role in roles:
        if role.get("active", True) is False:
            continue
        organisation = organisations.get(_reference(role.get("organization")), {})
        codes = [each for each in _list(role.get("code")) for each in _list(each.get("coding"))]
        profession = next((_text(each, "code") for each in codes if "TRE_G15" in _text(each, "system")), professions[0])
        address = next(iter(_list(organisation.get("address"))), {})
        for telecom in _list(role.get("telecom")):
            if (mailbox := _mailbox(telecom)) is None:
                continue
            mailboxes.setdefault(
                mailbox.address.lower(),
                _placed(mailbox, role, organisation, address, profession),
            )
    for telecom in _list(practitioner.get("telecom")):
        if (mailbox := _mailbox(telecom)) is not None:
            mailboxes.setdefault(mailbox.address.lower(), _placed(mailbox, {}, {}, {}, professions[0]))
    return FhirProfessional(
        id_nat,
        civility=" ".join(_strings(name.get("suffix"))[:1] or _strings(name.get("prefix"))[:1]),
        family_name=_text(name, "family"),
        given_name=" ".join(_strings(name.get("given"))[:1]),
        mailboxes=tuple(mailboxes.values()),
    )


def _mailbox(telecom: Resource) -> FhirMailbox | None:
    """An MSSanté mailbox; None for a telephone, or for an ordinary mail address, which `telecom` holds as well."""
    if _text(telecom, "system") != "email" or not _text(telecom, "value"):
        return None
    kinds = [each.get("valueCoding") for each in _extensions(telecom, _EMAIL_TYPE)]
    metadata = _extensions(telecom, _METADATA)
    if not metadata and not any(isinstance(each, dict) and _text(each, "code") == "MSSANTE" for each in kinds):
        return None
    values: dict[str, Any] = {}
    for each in _list(metadata[0].get("extension")) if metadata else []:
        values[_text(each, "url")] = next((value for key, value in each.items() if key.startswith("value")), None)
    coded = values.get("type")
    codings = _list(coded.get("coding")) if isinstance(coded, dict) else []
    rank = telecom.get("rank")
    return FhirMailbox(
        address=_text(telecom, "value").removeprefix("mailto:"),
        kind=next((_text(each, "code") for each in codings), "PER").upper(),
        structure="",
        description=_string(values.get("description")),
        service=_string(values.get("service")),
        dematerialisation=values.get("digitization") if isinstance(values.get("digitization"), bool) else None,
        red_list=values.get("listeRouge") is True,
        rank=rank if isinstance(rank, int) and rank > 0 and not isinstance(rank, bool) else None,
    )


def _placed(
    mailbox: FhirMailbox, role: Resource, organisation: Resource, address: Resource, profession: str
) -> FhirMailbox:
    """The mailbox with what its situation and structure say."""
    return FhirMailbox(
        mailbox.address,
        mailbox.kind,
        _structure(organisation),
        mailbox.description,
        mailbox.service,
        mailbox.dematerialisation,
        mailbox.red_list,
        mailbox.rank,
        organisation=_text(organisation, "name"),
        postal_code=_text(address, "postalCode"),
        town=_text(address, "city"),
        profession=profession,
        skill=next(iter(_codes({"specialty": role.get("specialty")}, "specialty", "TRE_R38")), ""),
        certificates=_certificates(role, mailbox.address),
    )


def _structure(organisation: Resource) -> str:
    """IdNat_Struct: as such where the register gives it, else from FINESS or SIRET."""
    known = _identifiers(organisation)
    for system, digit in (("urn:oid:1.2.250.1.71.4.2.2", ""), ("finess", "1"), ("siren", "3"), ("siret", "3")):
        for each, value in known.items():
            if system in each.lower() and (digit != "3" or len(value) == 14):
                return digit + value
    return ""


def _certificates(resource: Resource, address: str) -> tuple[bytes, ...]:
    """Those of the situation that can be this mailbox's: one that names other addresses is another's."""
    found = []
    for each in _extensions(resource, _CERTIFICATE):
        for part in _list(each.get("extension")):
            text = _string(part.get("valueBase64Binary")) or _string(part.get("valueString"))
            if _text(part, "url") == "value" and text:
                try:
                    der = base64.b64decode("".join(text.split()), validate=True)
                    addresses = {each.lower() for each in mail_addresses(x509.load_der_x509_certificate(der))}
                except (binascii.Error, ValueError):
                    continue
                if not addresses or address.lower() in addresses:
                    found.append(der)
    return tuple(found)


def _codes(resource: Resource, name: str, table: str) -> list[str]:
    """Codes of one nomenclature (NOS) in a list of CodeableConcepts, or of things that have one in `code`."""
    found = []
    for each in _list(resource.get(name)):
        inner = each.get("code")
        concept = inner if isinstance(inner, dict) else each
        for coding in _list(concept.get("coding")):
            if table in _text(coding, "system"):
                found.append(_text(coding, "code"))
    return found


def _identifiers(resource: Resource) -> dict[str, str]:
    return {_text(each, "system"): _text(each, "value") for each in _list(resource.get("identifier"))}


def _extensions(resource: Resource, name: str) -> list[Resource]:
    """Extensions by the last part of their URL: it moved between hosts and versions."""
    return [
        each
        for each in _list(resource.get("extension"))
        if _text(each, "url").rpartition("/")[2].partition("|")[0] == name
    ]


def _reference(value: object) -> str:
    """The id in a Reference, relative or absolute."""
    return _text(value, "reference").rpartition("/")[2] if isinstance(value, dict) else ""


def _list(value: object) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _strings(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""


def _text(resource: Mapping[str, Any], name: str) -> str:
    return _string(resource.get(name)).strip()
