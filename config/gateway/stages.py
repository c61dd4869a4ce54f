"""What is done to a mail before it leaves the worker: composed, protected or opened, screened, scanned."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

from bridges.arriving.following import FollowedStage
from bridges.composing import ComposeStage
from bridges.hl7 import reader as hl7_reader
from bridges.report import Report
from bridges.routing import RoutingOptions
from bridges.screening import ScreenStage
from config.directory_service import learn_with
from config.dkim_key import load_dkim_key
from config.gateway.arriving import Arriving
from config.gateway.places import Places
from config.gateway.store import Store
from config.gateway.submission import compose_options, plain_mail_stage
from config.incoming import Incoming
from config.reading import ReadOnce
from config.screening_service import scan_stages
from config.settings import Loaded, Settings
from mta.agreements import Agreements
from mta.answering import Answers
from mta.correspondents import Correspondents
from mta.dispositions import DispositionStage
from mta.follow_up import FollowUp
from mta.message import Stage
from mta.opening import OpenStage
from mta.protecting import ProtectStage
from mta.spool_reading import SpoolReader
from smime.dkim import DkimKey, public_record
from smime.failures import DecryptionFailures
from smime.policy import GcmVariant, ReadPolicy
from trust.certificates import CertificateValidator
from trust.refusals import Refused

DkimKeyOf = Callable[[str], DkimKey | None]
Parse = Callable[[bytes], Report | Refused]


@dataclass(frozen=True, slots=True)
class Stages:
    """Of one gateway."""

    in_order: tuple[Stage, ...]
    scans: Mapping[str, int] | None
    """What became of scans; None without a scanner."""


def make_stages(
    loaded: Loaded,
    store: Store,
    validator: CertificateValidator,
    places: Places,
    incoming: Incoming,
    dkim_key_of: DkimKeyOf,
    parse: Parse,
    threads: Executor,
    spool: SpoolReader,
    arriving: Arriving,
    follow: FollowUp,
) -> Stages:
    """On the event loop they will run on."""
    settings = loaded.settings
    compose = ComposeStage(
        parse,
        {listener.sender: listener.sender_name for listener in settings.mllp}
        | {service.sender: service.sender_name for service in settings.letters},
        compose_options(settings),
        routing_options(settings),
        threads,
    )
    correspondents = Correspondents(store.database, store.vault)
    protect = ProtectStage(
        store.vault,
        places.directory,
        validator,
        dkim_key_of,
        settings.operator.host,
        Agreements(places.partners, correspondents, settings.smime.floor),
        hide_header=Answers(spool).hide_header,
    )
    opening = OpenStage(
        store.vault,
        validator,
        places.partners,
        settings.operator.host,
        own_dkim=own_dkim(dkim_key_of),
        remember=correspondents.remember,
        learn=learn_with(places.learning),
        policy=ReadPolicy(
            triple_des=settings.smime.triple_des,
            sha1=settings.smime.sha1,
            gcm_variants=frozenset(map(GcmVariant, settings.smime.gcm_variants)),
        ),
        failures=DecryptionFailures(settings.smime.failures_per_hour),
        evaluator=incoming.evaluator,
        authors=incoming.authors,
        custody=arriving.custody,
        held_elsewhere=arriving.held_elsewhere,
    )
    scans = scan_stages(loaded)
    followed = FollowedStage(follow.senders, follow.begin, parse)
    follow.examine_by(followed.critical_of)
    return Stages(
        (
            compose,
            DispositionStage(),
            protect,
            opening,
            ScreenStage(),
            *scans,
            plain_mail_stage(settings, arriving.find, threads),
            followed,  # after whatever may have made a report of the mail
            arriving.stage,
        ),
        scans[0].counts if scans else None,
    )


def routing_options(settings: Settings) -> RoutingOptions:
    """Where reports may go."""
    return RoutingOptions(
        # everybody is elsewhere for a connector, also who has a mailbox of the same domain
        local_domains=frozenset() if settings.connect else frozenset(settings.operator.domains),
        patient_domains=frozenset(settings.identity.patient_domains),
        dossier=settings.dossier.enabled,
    )


def report_reader(settings: Settings) -> Parse:
    """Of HL7 frames; each is read once."""
    return ReadOnce(functools.partial(hl7_reader.parse, environment=settings.identity.environment))


def dkim_keys(loaded: Loaded) -> DkimKeyOf:
    """The DKIM key by sender domain: one key and selector for all our domains. Raises `SettingsError`."""
    key = load_dkim_key(loaded)
    if key is None:
        return lambda domain: None
    selector = loaded.settings.dkim.selector
    keys = {domain: DkimKey(domain, selector, key) for domain in loaded.settings.operator.domains}
    return keys.get


def own_dkim(dkim_key_of: DkimKeyOf) -> Callable[[str, str], str | None]:
    """Our DNS record by domain and selector, as what we publish there should say."""

    def record(domain: str, selector: str) -> str | None:
        key = dkim_key_of(domain)
        return public_record(key.key) if key is not None and key.selector == selector else None

    return record
