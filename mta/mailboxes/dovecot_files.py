"""The files with which a Dovecot of the operator's own (2.3) serves our mailboxes.

They are what the private instance is made of, without what makes it private: listeners, TLS, users of processes and the
log stay the operator's. `relais.conf` is included at the end of `dovecot.conf`.
"""

from __future__ import annotations

import pwd
from pathlib import Path

from mta.mailboxes import dovecot_text as text
from mta.mailboxes.dovecot import (
    PURPOSES,
    DovecotConfigurationError,
    MailboxRealm,
    realm_files,
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
# The logs name no user (a patient's address holds a matricule), no Message-ID and no subject.
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

    `memory` is a directory on a tmpfs that must be there before Dovecot starts (systemd: `RuntimeDirectory=`). Raises
    `DovecotConfigurationError` when there is no such user or it is root, OSError when the disk refuses.
    """
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        raise DovecotConfigurationError("there is no such user on this machine") from None
    if account.pw_uid == 0:
        raise DovecotConfigurationError("Dovecot must not serve mail as root: name an ordinary account")
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
    for name, content in contents.items():
        write_durably(directory / name, content.encode())
    return [directory / name for name in contents]
