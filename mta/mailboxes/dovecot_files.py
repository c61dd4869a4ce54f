"""The files with which a Dovecot of the operator's own (2.3) serves our mailboxes.

They are what the private instance is made of, without what makes it private: listeners, TLS, users of processes and the
log stay the operator's. `relais.conf` is included at the end of `dovecot.conf`.
"""

from __future__ import annotations

import pwd
import tempfile
from pathlib import Path

from mta.mailboxes import dovecot_text as text
from mta.mailboxes.dovecot import (
    PURPOSES,
    DovecotConfigurationError,
    MailboxRealm,
    check_configuration,
    realm_files,
    refuse_disk,
    refuse_unsafe,
    serving_text,
)
from trust.store.durable import write_durably

MAIN = "relais.conf"

_HEAD = """\
# Written by relais mailbox dovecot-files: write it again rather than edit it. Include it last in dovecot.conf:
#   !include {main}
# Before it, take away what Debian's conf.d sets for the same: auth-system.conf.ext, mail_location, namespace inbox.
mail_uid = {user}
mail_gid = {group}
first_valid_uid = {uid}
ssl = required
disable_plaintext_auth = yes
# What goes well is logged without a user (a patient's address holds a matricule), a Message-ID or a subject. Errors do
# name one: of a mailbox that is being moved, or whose key is damaged. Keep the log as you keep the mail.
mail_log_prefix = "%s<%{{pid}}><%{{session}}>: "
login_log_format_elements = "method=%m rip=%r mpid=%e %c session=<%{{session}}>"
deliver_log_format = %$
mail_max_userip_connections = 100
service auth {{
  # Its answers hold keys, and it asks the gateway's socket, which is this user's only.
  user = {user}
  unix_listener auth-userdb {{
    mode = 0600
    user = {user}
  }}
}}
service auth-worker {{
  user = {user}
}}
service doveadm {{
  # mailboxes.search_socket
  unix_listener doveadm-server {{
    mode = 0600
    user = {user}
  }}
}}
service lmtp {{
  # mailboxes.lmtp_socket
  unix_listener lmtp {{
    mode = 0600
    user = {user}
  }}
}}
"""


def write_files(
    directory: Path,
    realms: tuple[MailboxRealm, ...],
    memory: Path,
    user: str,
    *,
    loopback_port: int | None = None,
    tokens: bool = False,
) -> list[Path]:
    """Write them, mode 0600, and return them, the one to include first.

    `memory` is a directory on a tmpfs that must be there before Dovecot starts (systemd: `RuntimeDirectory=`).
    `doveconf` reads them before they are there. Raises `DovecotConfigurationError` when there is no such user or it is
    root, when a path or domain is not plain or `memory` is on a disk; OSError when the disk refuses.
    """
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        raise DovecotConfigurationError("there is no such user on this machine") from None
    if account.pw_uid == 0:
        raise DovecotConfigurationError("Dovecot must not serve mail as root: name an ordinary account")
    refuse_unsafe(realms, (directory, memory))
    refuse_disk(memory)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    contents = dict(text.FILES)
    files: list[dict[str, Path]] = []
    for number, realm in enumerate(realms):
        files.append({purpose: directory / f"realm-{number}-{purpose}.conf" for purpose in PURPOSES})
        contents |= {files[number][purpose].name: each for purpose, each in realm_files(realm).items()}
    serving = serving_text(
        realms,
        files,
        memory=memory,
        folder=directory,
        loopback_port=loopback_port,
        tokens=tokens,
    )
    head = _HEAD.format(main=directory / MAIN, user=user, group=account.pw_gid, uid=account.pw_uid)
    contents = {MAIN: head + serving, **contents}
    _check(contents[MAIN])
    for name, content in contents.items():
        write_durably(directory / name, content.encode())
    return [directory / name for name in contents]


def _check(included: str) -> None:
    """As the end of a configuration that says nothing else; its certificate is the operator's."""
    with tempfile.TemporaryDirectory(prefix="relais-") as place:
        whole = Path(place) / "dovecot.conf"
        whole.write_text(f"protocols = imap lmtp sieve\n{included}\nssl = no\n")
        check_configuration(whole)
