"""`[connect]`: the whole of a practice connector's file. What it does not say has the gateway's defaults; any other
section of `relais.toml` (`[keys]` for a token, say) may stand beside it. docs/connector.md is the page for people.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from config.sections import Address, Port, Strict


class ConnectAccountSettings(Strict, frozen=True, kw_only=True):
    """One mailbox at one operator: collected from there, and what is sent in its name goes there. How we sign in is
    said once, for both: exactly one of `password_file`, `token_file`, `token_uri`, or `certificate` alone."""

    address: Address
    """Lower case."""
    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]{0,40}$")] = ""
    """Of this account, never to be changed: by it repeated mail is recognised. Empty: made from the address."""
    imap_host: str
    imap_port: Port = 993
    """IMAP under TLS from the first octet."""
    smtp_host: str = ""
    """Empty: `imap_host`."""
    smtp_port: Port = 465
    smtp_tls: Literal["implicit", "starttls"] = "implicit"
    ca: str = ""
    """PEM the operator's servers must chain to; empty: `connect.anchors`."""
    user: str = ""
    """Empty: the address."""
    password_file: str = ""
    token_file: str = ""
    """An access token that somebody else keeps fresh (XOAUTH2)."""
    token_uri: str = ""
    token_ca: str = ""
    internal_hosts: tuple[str, ...] = ()
    client_id: str = ""
    client_secret_file: str = ""
    scope: str = ""
    refresh_token_file: str = ""
    certificate: str = ""
    """PEM, with its intermediates: shown to the operator's servers."""
    key: str = ""
    folder: str = "INBOX"
    """Which is collected."""
    stays: Literal["encrypted", "everything", "nothing"] = "encrypted"
    """What is left at the operator of what we have; the rest is removed there."""
    local_password_file: str = ""
    """What opens this mailbox here; empty: `connect.local_password_file`."""
    outbox: str = ""
    """Drop folder from which this mailbox sends CDA documents; empty: none."""
    sender_name: str = ""
    """In those letters; empty: the address."""


class ConnectDirectorySettings(Strict, frozen=True, kw_only=True):
    """Where correspondents' certificates are looked up: the operator's LDAP directory, or the national one."""

    uri: str
    base: str = "dc=mssante,dc=fr"
    bind_dn: str = ""
    password_file: str = ""
    ca: str = ""
    """PEM its ldaps server must chain to; empty: `connect.anchors`."""


class ConnectSettings(Strict, frozen=True, kw_only=True):
    """A practice: its mailboxes, its keys, and where its mail program and practice software find us."""

    state: str = "."
    """Mail, queue and keys; relative to the file. Short, for the sake of Unix sockets."""
    anchors: str
    """PEM: the authorities mailboxes and operators chain to (IGC-Santé)."""
    intermediates: str = ""
    directory: ConnectDirectorySettings
    local_password_file: str = "local.password"  # noqa: S105 - a file's name
    """Mode 0600: what the mail program of this practice signs in with here, for every mailbox without its own."""
    imaps_port: Port = 10993
    """On 127.0.0.1, as the next; with the certificate `local.pem` made at the first start."""
    submissions_port: Port = 10465
    """SMTP under TLS from the first octet."""
    inbox_folder: str = ""
    """Where practice software finds what arrives, as files; empty: nowhere."""
    name: str = "Cabinet"
    accounts: tuple[ConnectAccountSettings, ...]
