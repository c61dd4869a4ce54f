"""The open stage: verify DKIM on the wire bytes, decrypt, verify signatures, and write down what was found.

The verdict stands in header fields on top of the message, which mail clients, Sieve scripts and the bridges read. So
nothing of that name from outside may remain, neither in the message's own header nor in what was decrypted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from cryptography import x509

from directory.resolve import DirectoryUnavailableError
from mta import refusals
from mta.answering import hidden_header
from mta.authentication_results import Result, field
from mta.authors import AuthorCheck, Proof
from mta.custody import only_ours, shown
from mta.evaluation import Asked, DkimKeys, Evaluation, Evaluator
from mta.header import author_of, is_ours, received
from mta.mailboxes.dovecot import DELIVERY_HEADER
from mta.mailboxes.records import Custody
from mta.message import Message, Phase
from mta.smtp.address import domain_of, is_address
from mta.smtp.content import crlf_only
from mta.smtp.target import Partners
from smime import DecryptionResult, MessageVerdict, Opened, SignatureResult, open_message
from smime.failures import DecryptionFailures
from smime.mime import Entity, MimeError, parse_entity
from smime.opening import CANNOT_OPEN as CANNOT_OPEN_FINDING
from smime.opening import KEY_UNAVAILABLE as KEY_UNAVAILABLE_FINDING
from smime.policy import DEFAULT_POLICY, ReadPolicy
from smime.refusals import CANNOT_OPEN, DECRYPTION_PAUSED, KEY_UNAVAILABLE
from trust.certificates import CertificateValidator
from trust.refusals import Refused
from trust.vault import KeyVault, VaultError

VERDICT_FIELD = "X-Relais-Verdict"
HELD_FACT = "custody"
"""`holder` where protected mail was handed on as it came; `gateway` where a holder's was opened all the same, for it is
encrypted to a key of the gateway's."""
SHOWN_FACT = "opaque"
"""`shown` where what was inside an opaque signature stands beside the original."""

_SMIME = {SignatureResult.VALID: "pass", SignatureResult.NOT_SIGNED: "none"}


@dataclass(frozen=True, slots=True)
class _Findings:
    """What is written about one message."""

    evaluation: Evaluation
    smime: MessageVerdict
    proof: Proof | None
    """What proves the author; None: nobody was asked to judge that."""
    author: str
    """The address in From as it will be read; empty when there is not exactly one."""
    sealed: bool = False
    """Handed on encrypted, to who has the key: nobody here knows what is signed inside."""

    @property
    def decrypted(self) -> str:
        return "yes" if self.smime.decryption is DecryptionResult.DECRYPTED else "no"

    @property
    def signature(self) -> str:
        if self.sealed:
            return "unread"
        return "none" if self.smime.signature is SignatureResult.NOT_SIGNED else self.smime.signature.value

    @property
    def signer(self) -> str:
        """The address the signature stands for; one that the From field names when there are several."""
        vouched = [address for signer in self.smime.signers for address in signer.addresses if is_address(address)]
        named = [address for address in vouched if address in self.smime.from_addresses]
        return next(iter(named or vouched), "-")

    @property
    def path(self) -> str:
        return next((signer.path.rule for signer in self.smime.signers if signer.path is not None), "-")

    @property
    def results(self) -> tuple[Result, ...]:
        """What the Authentication-Results field says."""
        found = list(self.evaluation.results)
        if self.proof is not None:
            domain = domain_of(self.author)
            said = "fail" if self.proof is Proof.NONE else "pass"
            by = "" if self.proof is Proof.NONE else self.proof.value
            found.append(Result("x-author", said, (("header.from", domain), ("policy.by", by))))
        if not self.sealed:
            found.append(Result("x-smime", _SMIME.get(self.smime.signature, "fail")))
        return tuple(found)


class OpenStage:
    """A `mta.message.Stage` for the phase OPEN; other phases pass through. Works in threads."""

    def __init__(
        self,
        vault: KeyVault,
        validator: CertificateValidator,
        partners: Partners,
        authserv_id: str,
        *,
        own_dkim: Callable[[str, str], str | None] = lambda domain, selector: None,
        published_addresses: Callable[[x509.Certificate], Sequence[str]] = lambda certificate: (),
        remember: Callable[[str, Sequence[str], datetime], None] = lambda address, capabilities, signed_at: None,
        learn: Callable[[str, x509.Certificate, Sequence[x509.Certificate]], None] = lambda author, signer, along: None,
        policy: ReadPolicy = DEFAULT_POLICY,
        failures: DecryptionFailures | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        evaluator: Evaluator | None = None,
        authors: AuthorCheck | None = None,
        custody: Callable[[str], Custody] = lambda address: Custody.GATEWAY,
        held_elsewhere: Callable[[str], Sequence[x509.Certificate]] = lambda address: (),
    ) -> None:
        """`authserv_id` is our host name (RFC 8601 §2.5). `own_dkim` gives the `p=` value of our own domains, for mail
        between our mailboxes; `published_addresses`, those the directory binds to a certificate that names none.
        `remember` is told what the authors of validly signed mail can read (`mta.correspondents`), `learn` their
        certificates, and returns at once. `evaluator` asks the DNS as well; without it only `partners` and `own_dkim`
        say what DKIM is worth. `authors` judges whether From is proved. `custody` says who opens a mailbox's protected
        mail, `held_elsewhere` (may raise `DirectoryUnavailableError`) gives the certificates published for it."""
        self._vault = vault
        self._validator = validator
        self._authserv_id = authserv_id
        self._evaluator = evaluator or Evaluator(DkimKeys(partners, own_dkim))
        self._authors = authors
        self._published_addresses = published_addresses
        self._clock = clock
        self._remember = remember
        self._learn_certificate = learn
        self._policy = policy
        self._failures = failures or DecryptionFailures()
        self._custody = custody
        self._held_elsewhere = held_elsewhere

    async def apply(self, message: Message, phase: Phase) -> Message | Refused:
        """See `mta.message.Stage`. A message that cannot be decrypted is refused with one uniform text.

        A sender with too many of those waits, but only with what needs a key: to everything else it is opened without
        any, so that nobody's delivery reports and clear mail are held up by what comes in the same name.
        """
        if phase is not Phase.OPEN:
            return message
        asked = await self._evaluator.ask(message)
        return await asyncio.to_thread(self._open, message, asked)

    def _open(self, message: Message, asked: Asked) -> Message | Refused:
        paused = self._failures.wait(message.sender, message.peer) > 0
        now = self._clock()
        evaluation = asked.judge(message.content, now)
        try:
            held = self._custody(message.recipient) is Custody.HOLDER
            keys = () if paused and not held else self._vault.decryptors(message.recipient)
        except VaultError:  # a damaged key file says nothing of the message, which waits until it is repaired
            return Refused(KEY_UNAVAILABLE)
        facts = dict(message.facts)
        if held:
            try:
                held = not only_ours(message.content, keys, lambda: self._held_elsewhere(message.recipient))
            except DirectoryUnavailableError:
                return Refused(refusals.DIRECTORY_UNAVAILABLE)
            facts[HELD_FACT] = "holder" if held else "gateway"
        opened = open_message(
            message.content,
            () if held or paused else keys,
            self._validator,
            now,
            published_addresses=self._published_addresses,
            policy=self._policy,
        )
        sealed = held and opened.verdict.decryption is DecryptionResult.FAILED
        if held:
            opened = replace(opened, entity=message.content)
        elif opened.verdict.decryption is DecryptionResult.FAILED:
            if paused:
                return Refused(DECRYPTION_PAUSED)
            if KEY_UNAVAILABLE_FINDING in opened.verdict.findings:
                return Refused(KEY_UNAVAILABLE)
            self._failures.failed(message.sender, message.peer)
            return Refused(CANNOT_OPEN)
        self._learn(opened.verdict, now)
        # what was judged goes on as it is, and the road takes CRLF only: the doors and `open_message` have seen to it
        try:
            entity = parse_entity(opened.entity)
        except MimeError:
            return Refused(refusals.CONTENT_INVALID)
        if not crlf_only(opened.entity):
            return Refused(refusals.LINE_ENDINGS)
        proof = None
        if self._authors is not None:
            signed = evaluation.signed_by_author
            judged = self._authors.judge(message, opened.verdict, entity, evaluation.author, signed)
            if isinstance(judged, Refused):
                return judged
            proof = judged
        found = _Findings(evaluation, opened.verdict, proof, author_of(entity) or "", sealed)
        if not held:
            entity, facts = _in_the_open(opened, message.delivery_id, entity, facts)
        header = [self._header(message, found, facts.get(HELD_FACT, ""))]
        header += [field.raw for field in entity.fields if not is_ours(field)]
        facts = {
            **facts,
            "verdict": f"decrypted={found.decrypted}; signature={found.signature}; path={found.path}; "
            f"dkim={evaluation.dkim[0].result if evaluation.dkim else 'none'}"
            + ("" if proof is None else f"; author={proof.value}"),
            **{
                f"warning.{finding.code}": finding.detail
                for finding in opened.verdict.findings
                if not (sealed and finding == CANNOT_OPEN_FINDING)
            },
            **hidden_header(opened.verdict),
        }
        return replace(message, content=b"".join([*header, b"\r\n", entity.body]), facts=facts)

    def _learn(self, verdict: MessageVerdict, now: datetime) -> None:
        """What the author can read, from a signature that is the author's."""
        if verdict.signature is not SignatureResult.VALID or len(verdict.from_addresses) != 1:
            return
        for signer in verdict.signers:
            if signer.certificate is not None and signer.result is SignatureResult.VALID:
                certificates = signer.encryption_certificates
                self._learn_certificate(verdict.from_addresses[0], signer.certificate, certificates)
            if signer.capabilities and signer.signing_time is not None:
                self._remember(verdict.from_addresses[0], signer.capabilities, min(signer.signing_time, now))

    def _header(self, message: Message, found: _Findings, custody: str) -> bytes:
        author = "" if found.proof is None else f"; author={found.proof.value}"
        custody = custody and f"; custody={custody}"
        lines = (
            f"{DELIVERY_HEADER}: {message.delivery_id}",
            f"{VERDICT_FIELD}: decrypted={found.decrypted}; signature={found.signature};",
            f" signer={found.signer}; path={found.path}{author}{custody}",
        )
        written = "".join(line + "\r\n" for line in lines) + field(self._authserv_id, found.results)
        return written.encode("ascii", "replace") + received(self._authserv_id, message)


def _in_the_open(
    opened: Opened, delivery_id: str, entity: Entity, facts: dict[str, str]
) -> tuple[Entity, dict[str, str]]:
    """What any client shows, and the fact that says so."""
    try:
        readable = shown(opened, delivery_id)
        if readable is not None and crlf_only(readable):
            return parse_entity(readable), {**facts, SHOWN_FACT: "shown"}
    except MimeError:
        pass
    return entity, facts
