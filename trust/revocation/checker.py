"""Revocation, put together: what is held, what is wanted, who may speak for whom.

`Revocation` is the `RevocationChecker` of a gateway. It answers from memory; everything it would need and does not have
is left to the refresher. Whoever signs a CRL that is not the certificate's own issuer must chain to one of the anchors
given here, as the certificates of a path do, and nobody on that chain may be revoked.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Literal, cast

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs7

from trust.facts import Facts
from trust.facts import read as read_facts
from trust.revocation import RevocationState, RevocationStatus, crl, ocsp
from trust.revocation.authorities import MAX_ALIKE, Authorities, Authority, remember
from trust.revocation.cache import DiskCache, Record
from trust.revocation.crl import SKEW, TOLERANCE
from trust.revocation.fetching import Fetcher, FetchError, FetchOptions
from trust.revocation.holdings import MAX_HELD, Holdings, Question, is_revoked_at
from trust.revocation.naming import NameKey, name_key
from trust.revocation.published import CA_ISSUERS, Published, access_urls, published
from trust.revocation.refresher import Refresher

log = structlog.get_logger(__name__)

MAX_ANSWERS = 20_000
MAX_WANTING = 8
"""Issuers on whose behalf one URL is fetched."""
MAX_DEPTH = 2
"""Delegates of delegates whose own revocation is asked."""
_MAX_STAPLED = 256
_MAX_ISSUERS_BYTES = 256 * 1024
_OCSP_KEPT_FRESH = timedelta(days=2)
_OCSP_LIFE = timedelta(hours=1)
"""Of an answer without nextUpdate (RFC 6960 §2.4: newer information is always available)."""
_ISSUERS_LIFE = timedelta(days=7)
_MAX_FOUND = 256
"""Places where issuers are looked for at a time. Strangers name them: a forged certificate has the name of an anchor's
child and any URL it likes."""


@dataclass(frozen=True, slots=True)
class RevocationOptions:
    """How revocation is found."""

    cache: Path | None = None
    """Directory that survives restarts; None: nothing is kept."""
    max_crl_bytes: int = 100 * 1024 * 1024
    max_cache_bytes: int = 1024 * 1024 * 1024
    max_memory_bytes: int = 1024 * 1024 * 1024
    """For the CRLs held and their indexes."""
    fetch: FetchOptions = field(default_factory=FetchOptions)
    nonce: Literal["off", "offer", "require"] = "offer"
    """Whether OCSP requests carry a nonce, and whether a response without it is refused."""
    threads: int = 4


@dataclass(frozen=True, slots=True)
class Held:
    """One CRL that is held, for people and monitoring."""

    url: str
    entries: int
    octets: int
    this_update: datetime
    next_update: datetime | None
    delta: bool
    failures: int
    """Fetches that failed since it came."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Something wanted that could not be fetched yet."""

    what: str
    failures: int
    error: str


class Revocation:
    """Answers, and keeps what it answers from up to date. Thread-safe. `start` it, and `stop` it at the end."""

    def __init__(
        self,
        anchors: Iterable[x509.Certificate],
        intermediates: Iterable[x509.Certificate] = (),
        options: RevocationOptions = RevocationOptions(),
        *,
        fetcher: Fetcher | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`anchors` are what signers of CRLs must chain to, `intermediates` help to find them and their chains."""
        self._authorities = Authorities(anchors, intermediates)
        self._options = options
        self._fetcher = fetcher or Fetcher(options.fetch)
        self._clock = clock
        self._cache = DiskCache(options.cache, options.max_cache_bytes) if options.cache is not None else None
        self._refresher = Refresher(clock, options.threads, forgotten=self._forget)
        # Strangers can keep this one busy and full, and revocation must not wait for that
        self._finder = Refresher(clock, 1, forgotten=self._forget, most=_MAX_FOUND)
        self._holdings = Holdings(options.max_memory_bytes)
        self._answers: OrderedDict[tuple[bytes, int], ocsp.Answer] = OrderedDict()
        self._stapled: OrderedDict[tuple[bytes, bytes, int], ocsp.Answer] = OrderedDict()
        """By the digest of the response, its size being the sender's choice."""
        self._fetched: OrderedDict[str, tuple[bytes, datetime]] = OrderedDict()
        """By URL, the digest of the newest list and when it ends."""
        self._wanting: dict[str, dict[bytes, Authority]] = {}
        self._found_issuers: OrderedDict[str, tuple[x509.Certificate, ...]] = OrderedDict()
        self._outdated: deque[str] = deque()
        """Files of what is forgotten, deleted when something is written."""
        self._lock = Lock()

    # --- Life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Load the cache (blocking: a second for a million entries), then start fetching."""
        if self._cache is not None:
            try:
                for name, record in self._cache.load(self._options.max_crl_bytes):
                    self._recall(self._cache, name, record)
            except OSError as error:
                log.error("revocation.cache", error=str(error))
        self._refresher.start()
        self._finder.start()

    def stop(self) -> None:
        """Fetch nothing more."""
        self._refresher.stop()
        self._finder.stop()

    def settled(self, seconds: float) -> bool:
        """Wait until everything wanted so far was fetched or failed, at most `seconds`; whether that came."""
        until = time.monotonic() + seconds
        return self._refresher.settled(seconds) and self._finder.settled(max(0.0, until - time.monotonic()))

    def held(self) -> list[Held]:
        """The CRLs at hand."""
        out = []
        for url, each in self._holdings.all():
            state = self._refresher.state(("crl", url))
            failures = state.failures if state is not None else 0
            out.append(
                Held(url, each.size, each.octets, each.this_update, each.next_update, each.base is not None, failures)
            )
        return out

    def missing(self) -> list[Missing]:
        """CRLs that are wanted and that no fetch has brought yet."""
        out = []
        with self._lock:
            wanted = list(self._wanting)
        for url in wanted:
            state = self._refresher.state(("crl", url))
            if state is not None and not state.done and state.failures:
                out.append(Missing(url, state.failures, state.error))
        return out

    # --- Answers ------------------------------------------------------------------------------------------------------

    def check(
        self, certificate: x509.Certificate, issuer: x509.Certificate, at: datetime, stapled: bytes | None = None
    ) -> RevocationStatus:
        """See `trust.revocation.RevocationChecker.check`."""
        try:
            return self._check(certificate, issuer, at, stapled, 0)
        except Exception as error:  # the certificate parser reads lazily and has no common error class
            log.warning("revocation.unreadable", error=type(error).__name__)
            return RevocationStatus(RevocationState.UNKNOWN, detail="the certificate cannot be read")

    def _check(
        self, certificate: x509.Certificate, issuer: x509.Certificate, at: datetime, stapled: bytes | None, depth: int
    ) -> RevocationStatus:
        authority, facts = self._authorities.of(issuer), read_facts(certificate)
        if not isinstance(facts, Facts):
            return RevocationStatus(RevocationState.UNKNOWN, detail="the certificate cannot be read")
        where = published(facts, authority.name)
        if where.never:
            return RevocationStatus(RevocationState.GOOD, detail="its issuer revokes no such certificates (RFC 9608)")
        serial, now = facts.serial, self._clock()
        found = self._holdings.ask(
            Question(serial, authority.name, where.authority, facts.not_after, where.points, at),
            lambda each: self._may_speak(each, authority, now, depth),
            now,
        )
        for alternatives in where.lists:
            self._want_one(alternatives, authority)
        for url in where.deltas:
            self._want_crl(url, authority)
        key = (authority.fingerprint, serial)
        answers = []
        if stapled is not None:
            answers.append(self._read_stapled(stapled, serial, authority, now))
        answers.append(self._answers.get(key))
        for answer in answers:
            if answer is not None:
                found = _stronger(found, self._judged(answer, facts.not_after, authority, at, depth))
        if where.responders and (answers[-1] is not None or self._needs_ocsp(found, where)):
            self._want_answer(where.responders, serial, authority)
        if found.state is RevocationState.UNKNOWN and not (found.source or where.points or where.responders):
            return replace(found, detail=f"{found.detail}, and the certificate does not say where it is published")
        return found

    def _needs_ocsp(self, found: RevocationStatus, where: Published) -> bool:
        """CRLs first: one fetch answers for everybody, and tells nobody whose certificate is asked about."""
        if found.state in (RevocationState.GOOD, RevocationState.REVOKED):
            return False
        states = [self._refresher.state(("crl", url)) for urls in where.lists for url in urls[:1]]
        return all(state is None or state.done or state.failures for state in states)

    def _read_stapled(self, stapled: bytes, serial: int, authority: Authority, now: datetime) -> ocsp.Answer | None:
        if len(stapled) > ocsp.MAX_BYTES:
            return None
        key = (hashlib.sha256(stapled).digest(), authority.fingerprint, serial)
        known = self._stapled.get(key)
        if known is not None:
            return known
        try:
            answer = ocsp.read(stapled, serial, authority.certificate, now)
        except ocsp.OcspError as error:
            log.info("revocation.stapled", refused=str(error))
            return None
        with self._lock:
            remember(self._stapled, key, answer, _MAX_STAPLED)
        return answer

    def _judged(
        self, answer: ocsp.Answer, not_after: datetime, authority: Authority, at: datetime, depth: int
    ) -> RevocationStatus:
        """What an OCSP answer means at a moment."""
        unknown = RevocationStatus(RevocationState.UNKNOWN, "ocsp", as_of=answer.this_update)
        if answer.delegate is not None:
            if depth:
                own = RevocationState.UNKNOWN
            else:  # when it spoke, too: a response made after its responder was revoked says nothing about before
                when = max(at, answer.this_update)
                own = self._check(answer.delegate, authority.certificate, when, None, depth + 1).state
            # a revocation counts unless its responder is known to be revoked: where doubt is let pass, it must not be
            if own is not RevocationState.GOOD and (
                answer.state is not RevocationState.REVOKED or own is RevocationState.REVOKED
            ):
                return replace(unknown, detail=f"the responder's own revocation: {own.value}")
        ends = answer.next_update or answer.this_update + _OCSP_LIFE
        if answer.state is RevocationState.UNKNOWN:
            return replace(unknown, next_update=ends, detail="the responder does not know the certificate")
        revoked_at = None if answer.revoked_at is None else min(answer.revoked_at, answer.this_update)
        status = RevocationStatus(
            answer.state, "ocsp", answer.reason, revoked_at, answer.invalid_since, answer.this_update, ends
        )
        if answer.state is RevocationState.REVOKED:
            if is_revoked_at(answer.reason, revoked_at, answer.invalid_since, at):
                return status
            status = replace(status, state=RevocationState.GOOD, reason="", detail="revoked later")
        elif not_after < answer.this_update:
            return replace(unknown, detail="the certificate had expired when the response was made")
        if at > ends + TOLERANCE:
            return replace(status, state=RevocationState.STALE, detail="the OCSP response has ended")
        return status

    def _may_speak(self, each: crl.Crl, authority: Authority, now: datetime, depth: int) -> bool:
        """Whether a CRL's signer is the certificate's issuer (by name and key), or a CRL issuer of the same anchor."""
        signer = self._authorities.of(each.signer)
        if signer.key == authority.key and signer.name == authority.name:
            return True
        chain = () if depth >= MAX_DEPTH else self._authorities.chain(signer, authority, now)
        for below, above in pairwise(chain):
            if self._check(below, above, now, None, depth + 1).state is RevocationState.REVOKED:
                return False
        return bool(chain)

    # --- CRLs ---------------------------------------------------------------------------------------------------------

    def add_crl(self, data: bytes, issuers: Iterable[x509.Certificate] = (), url: str = "") -> crl.Crl:
        """Hold a CRL in DER or PEM that came by other means; raises `crl.CrlError`.

        Its signer is looked for among `issuers`, the anchors and the intermediates.
        """
        return self._take(data, url or "held:" + secrets.token_hex(8), list(issuers))

    def _take(self, data: bytes, url: str, issuers: list[x509.Certificate]) -> crl.Crl:
        if len(data) > self._options.max_crl_bytes:
            raise crl.CrlError("too large")
        data = crl.in_der(data)
        read = crl.read(data, self._authorities.named(crl.issuer_of(data), first=issuers))
        if read.this_update > self._clock() + SKEW:
            raise crl.CrlError("thisUpdate in the future")
        held = self._holdings.add(url, read)
        if held is not read:
            raise crl.CrlError("older than the one that is held")
        return read

    def _want_one(self, urls: tuple[str, ...], authority: Authority) -> None:
        """The first of several URLs of the same list, or the next one while fetching from there fails."""
        for url in urls:
            self._want_crl(url, authority)
            state = self._refresher.state(("crl", url))
            if state is None or not state.failures:
                return

    def _want_crl(self, url: str, authority: Authority) -> None:
        self._refresher.want(("crl", url), partial(self._fetch_crl, url, authority))
        wanting = self._wanting.get(url)
        if wanting is None or authority.fingerprint not in wanting:
            with self._lock:
                if self._refresher.state(("crl", url)) is None:
                    return
                wanting = self._wanting.setdefault(url, {})
                wanting[authority.fingerprint] = authority
                while len(wanting) > MAX_WANTING:
                    del wanting[next(iter(wanting))]

    def _forget(self, key: Hashable) -> None:
        """The refresher keeps something fresh no longer: nor is it remembered for whom."""
        kind, what = cast(tuple[str, str], key)
        if kind == "crl":
            with self._lock:
                self._wanting.pop(what, None)
                self._fetched.pop(what, None)
        if kind != "ocsp" and self._cache is not None:
            self._outdated.append(Record(kind, what, 0, (), b"").name)

    def _fetch_crl(self, url: str, first: Authority | None) -> datetime | None:
        data = self._fetcher.get(url, self._options.max_crl_bytes)
        digest = hashlib.sha256(data).digest()
        known = self._fetched.get(url)
        if known is not None and known[0] == digest and self._holdings.holds(url):
            return known[1]  # the same list again: its index is not made anew
        with self._lock:
            wanting = self._wanting.get(url, {} if first is None else {first.fingerprint: first})
            authorities = list(wanting.values())
        try:
            read = self._take(data, url, [each.certificate for each in authorities])
        except crl.CrlError as error:
            raise FetchError(f"CRL not used: {error}") from error
        encoded = tuple(each.encoded for each in authorities)
        ends = read.next_update or self._clock() + _OCSP_LIFE
        with self._lock:
            remember(self._fetched, url, (digest, ends), MAX_HELD)
        self._keep(Record("crl", url, 0, encoded, data, read.this_update, read.next_update))
        log.info("revocation.crl", entries=read.size, this_update=read.this_update, next_update=read.next_update)
        for delta in read.delta_urls:
            for each in authorities:
                self._want_crl(delta, each)
        return ends

    # --- OCSP ---------------------------------------------------------------------------------------------------------

    def _want_answer(self, urls: tuple[str, ...], serial: int, authority: Authority) -> None:
        key = (authority.fingerprint, serial)
        self._refresher.want(("ocsp", key), partial(self._fetch_answer, urls, serial, authority), keep=_OCSP_KEPT_FRESH)

    def _fetch_answer(self, urls: tuple[str, ...], serial: int, authority: Authority) -> datetime | None:
        nonce = None if self._options.nonce == "off" else secrets.token_bytes(32)
        request = ocsp.request(serial, authority.certificate, nonce)
        failure: Exception = FetchError("no responder")
        for url in urls:
            try:
                data = self._fetcher.post(url, request, "application/ocsp-request", ocsp.MAX_BYTES)
                answer = ocsp.read(
                    data, serial, authority.certificate, self._clock(), nonce, self._options.nonce == "require"
                )
                self._take_answer(answer, serial, authority)
            except (FetchError, ocsp.OcspError) as error:
                failure = error
                continue
            self._keep(Record("ocsp", url, serial, (authority.encoded,), data, answer.this_update, answer.next_update))
            return answer.next_update or self._clock() + _OCSP_LIFE
        raise failure

    def _take_answer(self, answer: ocsp.Answer, serial: int, authority: Authority) -> None:
        key = (authority.fingerprint, serial)
        with self._lock:
            held = self._answers.get(key)
            if held is not None and held.this_update > answer.this_update:
                raise ocsp.OcspError("older than the one that is held")
            remember(self._answers, key, answer, MAX_ANSWERS)

    # --- Issuers ------------------------------------------------------------------------------------------------------

    def issuers(self, certificate: x509.Certificate) -> tuple[x509.Certificate, ...]:
        """Certificates from the caIssuers URLs of `certificate` that have its issuer's name (RFC 5280 §4.2.2.1).

        Only what was fetched already; what is missing is fetched for the next time. They are found, not trusted.
        Call it only for a chain whose names reach an anchor, as `trust.paths` does: a stranger's chain must not send us
        anywhere.
        """
        try:
            facts = read_facts(certificate)
            if not isinstance(facts, Facts):
                return ()
            wanted, urls = name_key(facts.issuer_der), access_urls(facts, CA_ISSUERS)
        except ValueError:
            return ()
        out: list[x509.Certificate] = []
        for url in urls:
            self._finder.want(("issuers", url), partial(self._fetch_issuers, url), keep=_ISSUERS_LIFE)
            out += (each for each in self._found_issuers.get(url, ()) if _is_named(each, wanted))
        return tuple(out)

    def _fetch_issuers(self, url: str) -> datetime | None:
        data = self._fetcher.get(url, _MAX_ISSUERS_BYTES)
        self._take_issuers(url, data)
        self._keep(Record("issuers", url, 0, (), data))
        return self._clock() + _ISSUERS_LIFE

    def _take_issuers(self, url: str, data: bytes) -> None:
        found = _certificates(data)[:MAX_ALIKE]
        with self._lock:
            remember(self._found_issuers, url, tuple(found), _MAX_FOUND)

    # --- Disk ---------------------------------------------------------------------------------------------------------

    def _keep(self, record: Record) -> None:
        if self._cache is None:
            return
        while self._outdated:
            self._cache.drop(self._outdated.popleft())
        try:
            self._cache.store(record)
        except OSError as error:
            log.error("revocation.cache", error=str(error))

    def _recall(self, cache: DiskCache, name: str, record: Record) -> None:
        """Take one cached thing as if it had just been fetched; what is not usable any more is deleted."""
        now = self._clock()
        try:
            issuers = [
                self._authorities.of(x509.load_der_x509_certificate(each)) for each in record.issuers[:MAX_WANTING]
            ]
            if record.kind == "crl":
                read = self._take(record.body, record.url, [each.certificate for each in issuers])
                with self._lock:
                    self._wanting[record.url] = {each.fingerprint: each for each in issuers}
                ends = _ahead_of(read.next_update, now)
                first = issuers[0] if issuers else None
                self._refresher.want(("crl", record.url), partial(self._fetch_crl, record.url, first), ends)
            elif record.kind == "ocsp":
                issuer = issuers[0]
                answer = ocsp.read(record.body, record.serial, issuer.certificate, now)
                self._take_answer(answer, record.serial, issuer)
                ends = _ahead_of(answer.next_update, now)
                if ends is not None:  # thousands that have ended are not all asked for again: whoever needs one will
                    work = partial(self._fetch_answer, (record.url,), record.serial, issuer)
                    key = ("ocsp", (issuer.fingerprint, record.serial))
                    self._refresher.want(key, work, ends, keep=_OCSP_KEPT_FRESH)
            else:
                self._take_issuers(record.url, record.body)
        except Exception as error:  # whatever is wrong with it, it is only a copy
            log.info("revocation.cache-dropped", kind=record.kind, error=type(error).__name__)
            cache.drop(name)


def _ahead_of(ends: datetime | None, now: datetime) -> datetime | None:
    """When something from the cache ends; None when it has, and is to be fetched at once."""
    return ends if ends is not None and ends > now else None


def _stronger(one: RevocationStatus, other: RevocationStatus) -> RevocationStatus:
    """Which of two authentic statements counts: a revocation before anything, but a hold only until something newer
    says good (RFC 5280 §5.3.1); then the newer of what is fresh."""
    order = (RevocationState.REVOKED, RevocationState.GOOD, RevocationState.STALE, RevocationState.UNKNOWN)
    first, second = sorted((one, other), key=lambda each: order.index(each.state))
    if first.state is RevocationState.REVOKED and first.reason == crl.HOLD and second.state is RevocationState.GOOD:
        return second if first.as_of and second.as_of and second.as_of > first.as_of else first
    if first.state is second.state and second.as_of and (first.as_of is None or second.as_of > first.as_of):
        return second
    return first


def _is_named(certificate: x509.Certificate, wanted: NameKey) -> bool:
    facts = read_facts(certificate)
    try:
        return isinstance(facts, Facts) and name_key(facts.subject_der) == wanted
    except ValueError:
        return False


def _certificates(data: bytes) -> list[x509.Certificate]:
    """What a caIssuers URL serves: one certificate in DER or PEM, or a certs-only CMS (§4.2.2.1); raises ValueError."""
    try:
        if data.startswith(b"-----BEGIN"):
            return x509.load_pem_x509_certificates(data)
        try:
            return [x509.load_der_x509_certificate(data)]
        except ValueError:
            return pkcs7.load_der_pkcs7_certificates(data)
    except x509.InvalidVersion as error:  # which is no ValueError
        raise ValueError("version of a certificate") from error
