"""What Dovecot is told of a mailbox besides where it lies: its key, its size limit, the teams' mailboxes it shows.

A member of a team sees the team's mailbox in two ways, both served by a Dovecot process of the team's mailbox itself,
which alone holds the team's key: as a folder tree below `Equipes/` of the member's own account (Dovecot's `imapc` opens
it with a *ticket*), and directly, as the user `team*member` (or with the team as SASL authorization identity, RFC 4616)
and the member's own password. What a member may do there is a group in Dovecot's one list of rights (`rights.acl`);
people cannot change rights over IMAP, the registry is the only place where they stand. That list holds for IMAP only:
whoever does not write in a team's mailbox is let in nowhere else.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mta.mailboxes.mailbox_keys import MailboxKeys, Sealing
from mta.mailboxes.records import MailboxRecord, MailboxRegistry, MailboxState, MemberRight
from trust.identities import Identity
from trust.store.durable import write_durably

SHARED_NAMESPACE = "Equipes/"
"""Below it a member sees the teams' mailboxes, each by its address."""
READERS, WRITERS = "readers", "writers"
"""Groups of `rights.acl`."""
DEFAULT_QUOTA_BYTES = 5 * 1024**3
IMAP = "imap"
"""What Dovecot calls the one service that knows rights, and shows teams."""
_SHARED_LIST = "teams"
"""In a member's home: Dovecot's list of the teams it shows (dict `file`)."""
_WEEK = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class ServingOptions:
    quota_bytes: int = DEFAULT_QUOTA_BYTES
    """Of a mailbox whose record says nothing else, in octets of mail as sent; 0: no limit."""
    mail_location: str = ""
    """Dovecot's `mail_location` (`mta.mailboxes.dovecot.mail_location`): said again, with a directory for what each
    member has seen, where a team wants that. Empty: not known, and what a team has seen is shared."""


class Serving:
    """Answers for the addresses of one operator. Synchronous, thread-safe; raises `trust.sealing.VaultError` or OSError
    when it cannot tell, which must be "later" to Dovecot, never "unknown".
    """

    def __init__(
        self,
        vault: Sealing,
        registry: MailboxRegistry | None = None,
        owner_of: Callable[[str], Identity | None] = lambda _: None,
        options: ServingOptions = ServingOptions(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`owner_of` gives the account of an address (`Accounts.by_address`). Without a registry there are no teams and
        every mailbox has the same size limit. `clock` gives UNIX seconds."""
        self._vault = vault
        self._keys = MailboxKeys(vault)
        self._registry = registry
        self._owner_of = owner_of
        self._options = options
        self._clock = clock

    def fields(self, address: str, home: Path, member: str = "", service: str = "") -> dict[str, str] | None:
        """Userdb fields of `address`, lower-case; `member`: of a session a member of the team opened; `service`: what
        Dovecot wants it for. The home is made.

        None when nobody has that address, or that member may not have it for that.
        """
        record = self._registry.find(address) if self._registry is not None else None
        # A record says that there is an account, unless it is closed: deliveries, the most of all, ask no more.
        owner = None
        if record is None or record.state is MailboxState.CLOSED or service == IMAP:
            owner = self._owner_of(address)
            if owner is None:
                return None
        given = {"home": str(home), **self._keys.ring(address, home).fields()}
        quota = (record.quota_bytes if record is not None else 0) or self._options.quota_bytes
        if quota:
            given["quota_rule"] = f"*:bytes={quota}"
        if member:
            as_member = self._as_member(address, record, member, service)
            return None if as_member is None else given | as_member
        return given | self._teams(address, home, owner) if service == IMAP and owner is not None else given

    def ticket(self, member: str) -> str:
        """With it the member's own Dovecot process opens teams' mailboxes for a week or two, as long as mail programs
        keep a session; what it opens is decided each time."""
        return self._ticket(member, self._week())

    def is_ticket(self, member: str, said: str) -> bool:
        now, heard = self._week(), said.encode("utf-8", "surrogatepass")
        return any(hmac.compare_digest(self._ticket(member, week).encode(), heard) for week in (now, now - 1))

    def _ticket(self, member: str, week: int) -> str:
        return self._vault.pseudonym("team mailbox ticket", member, str(week))

    def _week(self) -> int:
        return int(self._clock() // _WEEK)

    def may_open(self, member: str, address: str, service: str) -> bool:
        """Whether `member` may open the team's mailbox now, for what Dovecot calls `service`."""
        record = self._registry.find(address) if self._registry is not None else None
        return self._as_member(address, record, member, service) is not None

    def _as_member(
        self, address: str, record: MailboxRecord | None, member: str, service: str
    ) -> dict[str, str] | None:
        owner = self._owner_of(member)
        if self._registry is None or record is None or record.state is not MailboxState.ACTIVE or owner is None:
            return None
        # Asked this way round, it is nothing for an account that is kept out.
        rights = dict(self._registry.shared_with(owner.login)).get(address)
        if rights is None or MemberRight.READ not in rights:
            return None
        if service != IMAP and MemberRight.WRITE not in rights:
            return None  # a script decides what becomes of the team's mail, and Sieve knows no rights
        given = {"acl_groups": WRITERS if MemberRight.WRITE in rights else READERS}
        if record.preferences.seen_per_member and self._options.mail_location:
            own = self._vault.pseudonym("seen by member", owner.login)[:16]
            given["mail"] = f"{self._options.mail_location}:INDEXPVT=~/seen/{own}"
        return given

    def _teams(self, address: str, home: Path, owner: Identity) -> dict[str, str]:
        """What makes the mailboxes of the teams of this address's owner appear in its account."""
        if self._registry is None:
            return {}
        shared = self._registry.shared_with(owner.login)
        teams = sorted(team for team, rights in shared if MemberRight.READ in rights and team != address)
        path = home / _SHARED_LIST
        text = "".join(f"shared/shared-boxes/user/{address}/{team}\n1\n" for team in teams).encode()
        known = path.read_bytes() if path.exists() else b""
        if known != text:
            write_durably(path, text)
        if not teams:
            return {}
        return {
            "acl_shared_dict": f"file:{path}",
            "imapc_master_user": address,
            "imapc_password": self.ticket(address),
        }
