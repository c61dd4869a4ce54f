"""Why the directory answers what it answers: the steps of one look-up, as an operator reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509

from directory import schema
from directory.choosing import is_fit, is_usable
from directory.entries import sort_certificates
from directory.reading import Attributes, Mailbox, encoded
from directory.records import Recipient


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was asked, found or decided."""

    what: str
    """`address`, `identifier`, `asked`, `found`, `passed over`, `mailbox`, `certificate`, `domain`, `upstream`, ..."""
    detail: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """An answer with its reasons."""

    question: str
    recipient: Recipient | None
    steps: tuple[Step, ...]


@dataclass(slots=True)
class Trace:
    """Collects steps while the answer is being found."""

    steps: list[Step] = field(default_factory=list)

    def say(self, what: str, detail: str) -> None:
        self.steps.append(Step(what, detail))

    def answer(self, question: str, recipient: Recipient | None) -> Explanation:
        if recipient is None:
            self.say("answer", "no mailbox")
        else:
            number = len(recipient.encryption_certificates)
            whose = "the domain's" if recipient.domain_certificate else "its own"
            self.say(
                "answer", f"{recipient.address}, {number} encryption certificates" + (f", {whose}" if number else "")
            )
        return Explanation(question, recipient, tuple(self.steps))


def tell_mailbox(trace: Trace, mailbox: Mailbox) -> None:
    recipient = mailbox.recipient
    hidden = ", red list" if mailbox.red_list else ""
    rank = "" if recipient.rank is None else f", rank {recipient.rank}"
    trace.say("mailbox", f"{mailbox.dn}: {recipient.kind.value}, {mailbox.source}{hidden}{rank}")


def tell_certificates(trace: Trace, mailbox: Mailbox, at: datetime) -> None:
    """Each certificate of the entry: whence, for what, and whether it is in its time."""
    found = 0
    for name, value in _certificate_values(mailbox.attributes):
        encryption, signing = sort_certificates([value])
        found += 1
        if not encryption and not signing:
            trace.say("certificate", f"a value of {name} that cannot be read or serves neither purpose: left aside")
        for certificate in dict.fromkeys((*encryption, *signing)):
            uses = [use for use, those in (("encryption", encryption), ("signature", signing)) if certificate in those]
            trace.say(
                "certificate",
                f"{certificate.serial_number:x}, {mailbox.origin(encoded(certificate)).value}, by KeyUsage for "
                f"{' and '.join(uses)}, {_validity(certificate, at)}",
            )
    if not found:
        trace.say("certificate", "the entry holds none")
        return
    chosen = mailbox.recipient.encryption_certificates
    usable = [each for each in chosen if is_usable(each, at)]
    if usable:
        trace.say(
            "chosen", f"for encryption, the newest first: {', '.join(f'{each.serial_number:x}' for each in usable)}"
        )
    else:
        trace.say("chosen", "for encryption: none is valid" if chosen else "for encryption: none serves that purpose")


def _validity(certificate: x509.Certificate, at: datetime) -> str:
    since, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    unfit = "" if is_fit(certificate) else ", UNFIT: key too weak or unreadable, or ExtKeyUsage without mail"
    if at < since:
        return f"not valid before {since:%Y-%m-%d %H:%M}{unfit}"
    return f"{'valid' if at <= until else 'EXPIRED'}, until {until:%Y-%m-%d %H:%M}{unfit}"


def _certificate_values(attributes: Attributes) -> list[tuple[str, bytes]]:
    wanted = {"usercertificate", schema.CERTIFICATE.lower(), schema.SMIME_CERTIFICATE.lower()}
    return [(name, value) for name, values in attributes.items() if name.lower() in wanted for value in values]
