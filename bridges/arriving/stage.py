"""The last stage of a mail for one of our mailboxes: ready to be read in any mail program.

What was found out goes before the mail as text, and into header fields that Sieve files and flags by
(`mta.mailboxes.sieve`). The mail itself is enclosed as it came, never written anew: a signature inside it stays what it
was. A holder of keys gets header fields only. Whatever fails here files the mail as it is: nothing is lost or held up
for the sake of a summary.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from bridges.arriving.contents import Carried, look
from bridges.arriving.earlier import Asked, Code, Earlier, EarlierResults
from bridges.arriving.words import RELEASED, notice, positions, summary, unsafe_lines, verdict_line
from bridges.hprim import hprim_name, write_hprim
from bridges.screening import MAIL_CONTENT
from directory.records import MailboxKind
from mta.believed import signer_of
from mta.custody import ORIGINAL_PART
from mta.enclosing import enclosed, file_part, text_part
from mta.mailboxes.records import Custody, MailboxRecord, ReadingPreferences
from mta.mailboxes.sieve import FOLDER_FIELD, MARKS_FIELD, Folder, Mark
from mta.message import Message, Origin, Phase
from mta.notifications import by_mail_system, found_signature, parse_notification
from mta.opening import HELD_FACT, SHOWN_FACT
from smime.mime import Entity, MimeError, parse_entity
from trust.refusals import Refused

_log = logging.getLogger("relais.bridges.arriving")

NOTICE_FACT = "notice"
_CODES = "x-mss-codecda"
_CODE = re.compile(r"[A-Za-z0-9-]{1,40}")
_DANGERS = ("executable", "archive")

_MARK_OF_TYPE = {
    "11502-2": (Mark.LABORATORY, Folder.LABORATORY),
    "11526-1": (Mark.LABORATORY, Folder.LABORATORY),
    "18748-4": (Mark.IMAGING, Folder.IMAGING),
    "11490-0": (Mark.LETTER, Folder.LETTER),
    "34112-3": (Mark.LETTER, Folder.LETTER),
    "11488-4": (Mark.LETTER, Folder.LETTER),
    "15507-7": (Mark.LETTER, Folder.LETTER),
    "18761-7": (Mark.LETTER, Folder.LETTER),
    "34874-8": (Mark.LETTER, Folder.LETTER),
    "57833-6": (Mark.PRESCRIPTION, Folder.PRESCRIPTION),
    "PRESC-BIO": (Mark.PRESCRIPTION, Folder.PRESCRIPTION),
}
"""Types of document (JDV_J07) that have a keyword and a folder; the others are documents among others."""


class ArrivalStage:
    """A `mta.message.Stage` for SCREEN, after everything else that looks at content there. Works in threads."""

    def __init__(
        self,
        host: str,
        find: Callable[[str], MailboxRecord | None],
        earlier: EarlierResults | None = None,
    ) -> None:
        """`host`: our name, which the notice bears. `find` is `MailboxRegistry.find`: for what it does not know nothing
        is added. `earlier`: None where no dossier is kept."""
        self._host = host
        self._find = find
        self._earlier = earlier

    async def apply(self, message: Message, phase: Phase) -> Message | Refused:
        """See `mta.message.Stage`. Never refuses."""
        if phase is not Phase.SCREEN or message.content_type != MAIL_CONTENT:
            return message
        return await asyncio.to_thread(self._apply, message)

    def _apply(self, message: Message) -> Message:
        record = self._find(message.recipient.lower())
        if record is None:
            return message
        try:
            return self._ready(message, record)
        except MimeError:  # the open stage has read the header: a part of it is beyond us
            return message
        except Exception as error:  # a bug must not keep a result from its reader; its text may quote the mail
            _log.error("delivery %s is filed as it came: %s", message.delivery_id, type(error).__name__)
            return message

    def _ready(self, message: Message, record: MailboxRecord) -> Message:
        wants = record.preferences
        held = message.facts.get(HELD_FACT) == "holder"
        if held and not wants.flags and not wants.filing:
            return message
        carried = look(message.content)
        header = parse_entity(message.content)
        added = _fields(wants, record.kind, message, carried, header)
        content = message.content
        facts = message.facts
        opened = (not held and wants.custody is Custody.GATEWAY) or message.facts.get(HELD_FACT) == "gateway"
        if opened and not _is_plain_receipt(message, carried, header):
            before = self._notice(message, record, carried, header)
            files = list(_hprim(carried)) if wants.hprim else []
            if before or files:
                content = enclosed(
                    content, f"{message.delivery_id}:notice", [text_part(before)] if before else [], files
                )
                facts = {**facts, NOTICE_FACT: "added"}
        if not added and content is message.content:
            return message
        return replace(message, content=added + content, facts=facts)

    def _notice(self, message: Message, record: MailboxRecord, carried: Carried, header: Entity) -> str:
        """A machine reads no notices; a patient gets no ranking of results."""
        wants = record.preferences
        if record.kind is MailboxKind.APP:
            return ""
        lines = []
        if wants.verdict_line:
            line = verdict_line(message.facts, signer_of(header))
            lines.append(line[0].upper() + line[1:])
        if carried.imitated:
            lines.append("Attention : le texte ci-dessous imite cet avis ; seul le premier vient de la passerelle.")
        if message.facts.get(HELD_FACT) == "gateway":
            lines.append("Ce message était chiffré pour la clé que tenait la passerelle, et non pour la vôtre.")
        lines += unsafe_lines(message.facts, carried.names, ORIGINAL_PART if message.facts.get(SHOWN_FACT) else "")
        said = ""
        if wants.summary and record.kind is not MailboxKind.PATIENT:
            said = summary(carried, self._values(message, record, carried))
        return notice(self._host, lines, said)

    def _values(
        self, message: Message, record: MailboxRecord, carried: Carried
    ) -> Mapping[str, Mapping[Code, Earlier]]:
        """Of the dossier, by document, beside what is critical or abnormal. Nobody but a verified sender makes us open
        a dossier in its reader's name, and only where the whole mail is about one patient. A dossier that does not
        answer is no reason to wait."""
        if self._earlier is None or record.kind is not MailboxKind.PER or found_signature(message) != "valid":
            return {}
        patients = [each.patient for each in carried.documents]
        if len({(each.matricule, each.matricule_oid) for each in patients}) != 1:
            return {}
        asked = []
        for each in carried.read:
            urgent = [one.result for one in (*each.ranks.critical, *each.ranks.abnormal)]
            at = each.document.service_start or each.document.created
            asked.append(Asked.of(each.document.unique_id, urgent, at))
        asked = [each for each in asked if each.codes]
        if not asked or len({each.document for each in asked}) < len(asked):
            return {}
        try:
            return self._earlier.of(record.address, patients[0], asked)
        except Exception as error:  # the dossier's store, its directory: its text may name a patient
            _log.warning("delivery without earlier values: %s", type(error).__name__)
            return {}


def _is_plain_receipt(message: Message, carried: Carried, header: Entity) -> bool:
    """Whether it is a receipt that stays as it is, for programs read receipts where they stand. Anybody may call his
    mail a receipt: there must be nothing to say against it. What a mail system or a verified reader gives back of a
    mail speaks for nobody."""
    if parse_notification(message.content) is None:
        return False
    if message.origin is Origin.SYSTEM or by_mail_system(message, header):
        return True
    if found_signature(message) == "valid":
        dangers = (where for danger in _DANGERS for where in positions(message.facts, danger))
        return not carried.imitated_outside and all(where in carried.forwarded for where in dangers)
    clean = not carried.imitated and not unsafe_lines(message.facts, carried.names)
    return clean and found_signature(message) in ("none", "")


def _fields(wants: ReadingPreferences, kind: MailboxKind, message: Message, carried: Carried, header: Entity) -> bytes:
    """Header fields for Sieve, which nobody else could have written: the open stage took out all of that name."""
    types = [document.type_code for document in carried.documents] or _codes(header)
    known = [_MARK_OF_TYPE[code] for code in types if code in _MARK_OF_TYPE]
    fields = []
    if wants.flags:
        marks = [mark for mark, _ in known]
        if kind is not MailboxKind.PATIENT:
            if carried.critical:
                marks.append(Mark.CRITICAL)
            if carried.critical or carried.abnormal:
                marks.append(Mark.ABNORMAL)
        found = found_signature(message)
        if found:
            marks += {"valid": [Mark.VERIFIED], "none": [], "unread": []}.get(found, [Mark.DOUBTFUL])
        dangerous = any(positions(message.facts, danger) for danger in _DANGERS)
        if dangerous or message.facts.get("scan", "") == RELEASED:
            marks.append(Mark.DANGER)
        if marks:
            fields.append(f"{MARKS_FIELD}: {', '.join(each.value for each in dict.fromkeys(marks))}\r\n")
    folders = dict.fromkeys(folder for _, folder in known)
    if wants.filing and len(folders) == 1:  # a mail of several kinds stays where everything is looked at
        fields.append(f"{FOLDER_FIELD}: {next(iter(folders)).value}\r\n")
    return "".join(fields).encode("ascii")


def _codes(header: Entity) -> list[str]:
    """What the mail's header says it carries (ECO.2.4.1), for one that cannot be read here: good enough to file by."""
    return [code for value in header.values(_CODES)[:1] for code in _CODE.findall(value[:400])]


def _hprim(carried: Carried) -> Iterable[bytes]:
    """The reports with values, for software that reads nothing newer."""
    taken: set[str] = set()
    for document in carried.documents:
        if document.results:
            name = hprim_name(document, taken)
            taken.add(name)
            yield file_part("application/octet-stream", name, write_hprim(document))
