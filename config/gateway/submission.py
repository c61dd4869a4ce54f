"""What our own people's mail is told at the door, and how it is made ready, put together from the settings."""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import Executor

from bridges.compose import ComposeOptions
from bridges.plain import one_line
from bridges.plain_mail_stage import PlainMailStage
from bridges.submitted import SubmissionJudge
from config.gateway.places import Places
from config.settings import Settings
from directory.nearest import NearestTrusted
from mta.mailboxes.records import MailboxRecord
from mta.sizes import SizeLimits
from mta.smtp.policy import SubmissionRules


def compose_options(settings: Settings) -> ComposeOptions:
    """What is written into every mail that is composed or made ready here."""
    return ComposeOptions(
        software_reference=settings.operator.software_reference,
        environment=settings.identity.environment,
        host_name=settings.operator.host,
    )


def submission_rules(
    settings: Settings, places: Places, trusted_domains: Callable[[], Collection[str]]
) -> SubmissionRules:
    """`trusted_domains`: those of the trust list in force."""
    patients, own = settings.identity.patient_domains, frozenset(settings.operator.domains)
    sizes = SizeLimits(places.partners, patients, own.__contains__)
    nearest = NearestTrusted(lambda: own.union(trusted_domains()), places.directory.search, patients)

    def advice(address: str) -> str:
        found = nearest.of(address)
        if found is None:
            return ""
        who = f" ({one_line(found.who, 150)})" if found.who else ""
        return f"Vouliez-vous écrire à {found.address}{who} ?"

    judge = SubmissionJudge(compose_options(settings), patients, sizes)
    return SubmissionRules(judge, sizes.refused_as_it_is, advice)


def plain_mail_stage(
    settings: Settings, find: Callable[[str], MailboxRecord | None], threads: Executor
) -> PlainMailStage:
    """For ENRICH, after everything that screens. `find`: `MailboxRegistry.find`."""
    return PlainMailStage(find, compose_options(settings), settings.identity.patient_domains, threads)
