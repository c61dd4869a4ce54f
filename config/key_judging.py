"""Whether anybody will believe a mailbox's certificate, for commands that work beside the gateway or without it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click
from cryptography import x509

from config.key_files import KeyFileError, load_certificates
from config.key_places import Place
from config.revocation_service import revocation_checker
from trust.certificates import CertificateValidator, PathVerdict
from trust.generations import KeyUse, check_fitness
from trust.keycheck import PURPOSES
from trust.revocation import RevocationMode, RevocationPolicy
from trust.revocation.checker import Revocation
from trust.vault import VaultError

_ASKING_SECONDS = 20.0
_ASKING_ROUNDS = 4
"""A path has certificates whose answers are missing one after the other."""


def _authorities(place: Place) -> tuple[list[x509.Certificate], list[x509.Certificate]] | None:
    """Anchors and intermediates of the configuration; None where there is none to be had, which is told."""
    if place.loaded is None:
        click.echo("Chains are not checked: name the operator's relais.toml with --config.", err=True)
        return None
    trust = place.loaded.settings.trust
    try:
        anchors, intermediates = (
            load_certificates(place.loaded.path(name)) if name else [] for name in (trust.anchors, trust.intermediates)
        )
    except KeyFileError as error:
        click.echo(f"Chains are not checked: {error}", err=True)
        return None
    return anchors, intermediates


class _Asking(CertificateValidator):
    """Judges as the gateway does, but has fetched nothing: waits for what is missing about revocation, in all a while.

    What nobody answers meanwhile does not count against a certificate.
    """

    def __init__(
        self, anchors: list[x509.Certificate], intermediates: list[x509.Certificate], revocation: Revocation
    ) -> None:
        soft = dict.fromkeys(PURPOSES.values(), RevocationPolicy(RevocationMode.SOFT))
        super().__init__(anchors, intermediates, revocation, soft, source=revocation)
        self._asked = revocation
        self._until = time.monotonic() + _ASKING_SECONDS

    def validate(self, *arguments: Any, **options: Any) -> PathVerdict:
        """See `CertificateValidator.validate`."""
        verdict = super().validate(*arguments, **options)
        for _ in range(_ASKING_ROUNDS):
            left = self._until - time.monotonic()
            if (verdict.ok and verdict.revocation not in ("unknown", "stale")) or left <= 0 or self._asked.settled(0):
                break
            self._asked.settled(left)
            verdict = super().validate(*arguments, **options)
        return verdict


@contextmanager
def judging(place: Place) -> Iterator[CertificateValidator | None]:
    """By the configuration's anchors, revocation asked for; None where nothing can be judged."""
    authorities = _authorities(place)
    if authorities is None or place.loaded is None:
        yield None
        return
    # the gateway's own cache is the gateway's: here everything stays in memory
    revocation = revocation_checker(place.loaded, *authorities, keeping=False)
    revocation.start()
    try:
        yield _Asking(*authorities, revocation)
    finally:
        revocation.stop()


def warn_of(place: Place, certificates: Sequence[x509.Certificate], others: Sequence[x509.Certificate]) -> None:
    """Say which of these nobody will believe, as far as that can be told without asking anybody."""
    authorities = _authorities(place) if place.loaded is not None else None
    if authorities is None:
        return
    validator = CertificateValidator(*authorities)
    for each in dict.fromkeys(certificates):
        uses = [use for use in KeyUse if _fits(use, each)]
        verdicts = [validator.validate(each, others, PURPOSES[use], datetime.now(UTC)) for use in uses]
        if verdicts and not any(verdict.ok for verdict in verdicts):
            told = verdicts[0]
            click.echo(f"Nobody will believe this certificate now: {told.detail} ({told.rule}).", err=True)


def _fits(use: KeyUse, certificate: x509.Certificate) -> bool:
    try:
        check_fitness(use, certificate)
    except VaultError:
        return False
    return True
