"""What a connector's `[connect]` means to a gateway: the sections it would have had to be told in.

The rest of the program never learns that the file was short: commands that take `--config` or `--state` work on a
connector as on any gateway.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from config.connector.sections import ConnectAccountSettings, ConnectSettings

SECTION = "connect"
HOST = "connecteur.invalid"
"""What a connector calls itself in EHLO, Received and Message-IDs: nobody's name (RFC 6761 §6.4), for it is no host of
the Internet and says nothing of the practice's network."""
CHAIN, KEY = "local.pem", "local.key"
"""Below the state: our own certificate for 127.0.0.1, and its key."""
DOVECOT = "dovecot"
"""Below the state."""

_UNSERVED = frozenset(
    {"operators", "submission", "imap_certificates", "lmtp", "discovery", "oidc", "dossier", "dkim", "synchronisation"}
    | {"collect", "letters"}
)
"""Sections of a gateway that mean nothing to a connector, or that its accounts stand for."""


class ConnectError(ValueError):
    """The section contradicts itself; the text says where."""


def expand(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The whole file with everything `[connect]` stands for; what other sections say goes before. Raises `ConnectError`
    and msgspec.ValidationError."""
    connect = msgspec.convert(raw[SECTION], ConnectSettings, strict=False)
    _check(connect)
    state = Path(connect.state)

    def below(name: str) -> str:
        return str(state / name)

    directory = connect.directory
    made: dict[str, dict[str, Any]] = {
        "operator": {
            "name": connect.name,
            "host": HOST,
            "domains": sorted({each.address.rpartition("@")[2].lower() for each in connect.accounts}),
            "postmaster": connect.accounts[0].address,
            "state": connect.state,
        },
        # A connector judges no operator: its own do, and it is none.
        "trust": {
            "anchors": connect.anchors,
            "intermediates": connect.intermediates,
            "list": "",
            "list_signer": "",
            "operator_chain": "",
            "operator_key": "",
        },
        "directory": {
            "uri": directory.uri,
            "base": directory.base,
            "bind_dn": directory.bind_dn,
            "password_file": directory.password_file,
            "ca": directory.ca or connect.anchors,
            "timeout_seconds": 10.0,
        },
        "mailboxes": {
            "lmtp_socket": below(f"{DOVECOT}/run/lmtp"),
            "search_socket": below(f"{DOVECOT}/run/doveadm-server"),
            "authentication_socket": below("authentication.sock"),
            "home": below("mail"),
            # The person at this machine, whatever kind their mailbox is at the operator.
            "machine_passwords": True,
        },
        # What the DNS says of a mail, its operator has asked when it came in.
        "evaluation": {"dns": False},
        # A practice's line comes back at some moment of the night: mail leaves within a minute of it.
        "spool": {"first_retry_seconds": 5.0, "longest_retry_seconds": 60.0, "expire_seconds": 5 * 86400.0},
        # Who counts failures is the account, for all who write to it; and they see no answer that would teach them.
        "smime": {"failures_per_hour": 1_000_000},
        "notifications": {"warning_hours": 1.0},
        "outbound": {"mx": False, "longest_rest_seconds": 60.0},
        "submissions": {"host": "127.0.0.1", "port": connect.submissions_port},
    }
    if unserved := sorted(_UNSERVED & raw.keys()):
        raise ConnectError(f"a connector has no [{unserved[0]}]: what it does stands in [connect]")
    whole = {**raw}
    for name, section in made.items():
        if not isinstance(raw.get(name, {}), Mapping):
            raise ConnectError(f"{name} is a section, written [{name}]")
        whole[name] = {**section, **raw.get(name, {})}
    whole["collect"] = [_collected(each, connect) for each in connect.accounts]
    whole["letters"] = [
        {"sender": each.address, "sender_name": each.sender_name or each.address, "folder": each.outbox}
        for each in connect.accounts
        if each.outbox
    ]
    return whole


def account_name(account: ConnectAccountSettings) -> str:
    """Of an account; stable."""
    return account.name or re.sub(r"[^a-z0-9]+", "-", account.address.lower())[:40].strip("-")


def _check(connect: ConnectSettings) -> None:
    if not connect.accounts:
        raise ConnectError("name at least one mailbox in [[connect.accounts]]")
    addresses = [each.address for each in connect.accounts]
    if len(set(addresses)) < len(addresses):
        raise ConnectError("two [[connect.accounts]] have the same address")
    if any(each != each.lower() for each in addresses):
        raise ConnectError("addresses in [[connect.accounts]] are written in lower case")
    names = [account_name(each) for each in connect.accounts]
    if len(set(names)) < len(names):
        raise ConnectError("two [[connect.accounts]] have the same name; give each its own")


def _collected(account: ConnectAccountSettings, connect: ConnectSettings) -> dict[str, Any]:
    """As `[[collect]]` says it."""
    signing_in = (
        "password_file",
        "token_file",
        "token_uri",
        "token_ca",
        "internal_hosts",
        "client_id",
        "client_secret_file",
        "scope",
        "refresh_token_file",
        "certificate",
        "key",
        "folder",
        "stays",
    )
    return {
        "name": account_name(account),
        "host": account.imap_host,
        "port": account.imap_port,
        "ca": account.ca or connect.anchors,
        "user": account.user or account.address,
        "deliver_to": account.address,
        **{each: getattr(account, each) for each in signing_in},
    }
