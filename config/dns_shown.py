"""`relais doctor --dns`: the records to publish, as lines for a zone, and whether the DNS has them already."""

from __future__ import annotations

import json
from pathlib import Path

import click
import dns.exception
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.resolver

from config.discovery_service import client_services, dns_records, unreadable
from config.key_places import fail
from config.settings import Loaded, SettingsError, load
from directory.srv import nameservers
from mta.mailboxes.dns_records import DnsRecord

_STATES = {"published": "", "absent": "not published", "other": "something else is published", "unknown": "no answer"}


def show_dns(state: Path, configuration: Path | None, *, as_json: bool, compare: bool) -> None:
    """Print those of one configuration, or of all below a state directory. With `compare` the DNS is asked for each
    and the command fails when one is missing, or somebody else may be told patients' addresses."""
    paths = [configuration] if configuration else sorted([*state.glob("relais.toml"), *state.glob("*/relais.toml")])
    if not paths:
        fail(f"{state} holds no relais.toml: name the operator's with --config.")
    whole = True
    rows: list[dict[str, str]] = []
    for path in paths:
        try:
            loaded = load(path)
            records = dns_records(loaded)
            states, amiss = [""] * len(records), unreadable(loaded)
            if compare:
                resolver = _resolver(loaded)
                states = [_state(resolver, each) for each in records]
                amiss += _astray(resolver, loaded)
        except SettingsError as error:
            fail(str(error))
        for sentence in amiss:
            click.echo(f"{path}: {sentence}", err=True)
        whole &= not (compare and amiss) and all(each in ("", "published") for each in states)
        if as_json:
            rows += [
                {"operator": loaded.settings.operator.name, "name": each.name, "kind": each.kind, "value": each.value}
                | {"why": each.why, "line": each.zone_line()}
                | ({"state": found} if found else {})
                for each, found in zip(records, states, strict=True)
            ]
            continue
        click.echo(f"; {loaded.settings.operator.name} ({path})")
        for each, found in zip(records, states, strict=True):
            told = f" - {_STATES[found]}" if found and _STATES[found] else ""
            click.echo(f"{each.zone_line()} ; {each.why}{told}")
    if as_json:
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
    if not whole:
        raise SystemExit(1)


def _resolver(loaded: Loaded) -> dns.resolver.Resolver:
    section = loaded.settings.dns
    resolver = dns.resolver.Resolver(configure=not section.servers)
    resolver.lifetime = section.seconds
    if section.servers:
        try:
            resolver.nameservers = nameservers(section.servers)
        except ValueError as error:
            raise SettingsError(f"dns.servers: {error}") from error
    return resolver


def _astray(resolver: dns.resolver.Resolver, loaded: Loaded) -> list[str]:
    """Sentences about names that lead elsewhere than to the door, and under which mail programs say a patient's
    address, which holds a matricule: the patients' domains themselves, over plain HTTP too, and `autoconfig` above the
    host of the MX record."""
    settings = loaded.settings
    ours = {domain.lower() for domain in settings.operator.domains} & set(settings.identity.patient_domains)
    if not ours:
        return []
    labels = settings.operator.host.lower().split(".")
    above = [".".join(labels[start:]) for start in range(1, len(labels) - 1)]
    site = client_services(loaded).site.host if settings.discovery is not None else ""
    sentences = []
    for name in [*sorted(ours), *(f"autoconfig.{each}" for each in above)]:
        try:
            found = _addresses(resolver, name)
            if found and site:
                found -= _addresses(resolver, site)
        except (dns.exception.DNSException, OSError):
            sentences.append(f"nobody says whether {name} leads anywhere")
            continue
        if found:
            sentences.append(
                f"{name} leads to {', '.join(sorted(found))}: whoever answers there is told patients' addresses by "
                "their mail programs (docs/discovery.md)"
            )
    return sentences


def _state(resolver: dns.resolver.Resolver, record: DnsRecord) -> str:
    """`published`, `absent`, `other` (the name has other records of that type) or `unknown`."""
    kind = dns.rdatatype.from_text(record.kind)
    wanted = dns.rdata.from_text(dns.rdataclass.IN, kind, record.zone_line().split(f" {record.kind} ", 1)[1])
    try:
        if kind == dns.rdatatype.CNAME:
            # Addresses of its own do as well: a domain's zone may be somebody else's.
            target = record.value.rstrip(".")
            return "published" if _addresses(resolver, record.name) & _addresses(resolver, target) else "absent"
        answer = resolver.resolve(f"{record.name}.", kind, search=False)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return "absent"
    except (dns.exception.DNSException, OSError):
        return "unknown"
    if any(_same(each, wanted) for each in answer):
        return "published"
    # A domain has texts for many purposes: only one for the same purpose is another one.
    if kind == dns.rdatatype.TXT:
        purpose = record.value.partition(" ")[0].partition(";")[0].encode()
        return "other" if any(b"".join(each.strings).startswith(purpose) for each in answer) else "absent"
    return "other"


def _same(found: dns.rdata.Rdata, wanted: dns.rdata.Rdata) -> bool:
    if found.rdtype == dns.rdatatype.TXT:
        return b"".join(getattr(found, "strings", ())) == b"".join(getattr(wanted, "strings", ()))
    return found.to_digestable() == wanted.to_digestable()


def _addresses(resolver: dns.resolver.Resolver, name: str) -> set[str]:
    found: set[str] = set()
    for kind in ("A", "AAAA"):
        try:
            found |= {each.to_text() for each in resolver.resolve(f"{name}.", kind, search=False)}
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            continue
    return found
