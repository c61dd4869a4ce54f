"""`relais connect --init`: asks what no autoconfiguration can tell, and writes the connector's one file.

Secrets go into files of mode 0600 beside it, keys into the vault. Nothing is asked of a server but its DNS and its
autoconfiguration: whether the answers are right, the first `relais connect` shows.
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
import ssl
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from config.connector.discovery import Found, Server
from config.connector.expanding import account_name
from config.connector.sections import ConnectAccountSettings
from config.privileges import MARK, SERVICE_USER, may_write, service_folder
from config.settings import Loaded, SettingsError, load
from mta.smtp.address import is_address
from trust.addresses import mail_addresses
from trust.generations import check_address, check_fitness
from trust.keyfiles import MAX_FILE_BYTES, KeyFileError, PassphraseError, read_certificates, read_key_pairs
from trust.store.durable import write_durably
from trust.vault import KeyUse, KeyVault, VaultError

FILE = "relais.toml"
LOCAL_PASSWORD = "local.password"  # noqa: S105 - a file's name
_STAYS = ("encrypted", "everything", "nothing")


class FirstTimeError(Exception):
    """It cannot go on; the message is a sentence for the person at the terminal."""


class Terminal(Protocol):
    """Whom we ask."""

    def ask(self, question: str, default: str = "", *, hidden: bool = False) -> str: ...

    def agree(self, question: str) -> bool: ...

    def say(self, sentence: str) -> None: ...


@dataclass
class _Answers:
    """Lines of the file to be."""

    lines: list[str] = field(default_factory=list)

    def put(self, key: str, value: str | int) -> None:
        # a JSON string is a TOML basic string
        self.lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")


def first_time(state: Path, terminal: Terminal, discover: Callable[[str], Found]) -> Loaded:
    """Ask, write, and read again what was written. Raises `FirstTimeError`, and OSError when nothing can be written."""
    if (state / FILE).exists():
        raise FirstTimeError(f"{state / FILE} exists: edit it, or choose another --state")
    state.mkdir(parents=True, exist_ok=True, mode=0o711)  # as `config.privileges.drop` has it: its files are private
    if any(state.iterdir()) and not (state / MARK).exists():
        # started as root, everything in a state directory becomes the service user's
        raise FirstTimeError(f"{state} holds files that are not Relais's: choose an empty directory for --state")
    (state / MARK).touch(mode=0o644)
    connect = _Answers(
        [
            "# A practice connector; docs/connector.md explains every key.",
            "[connect]",
        ]
    )
    _authorities(state, terminal, connect)
    accounts: list[_Answers] = []
    names: dict[str, str] = {}
    ldaps: Server | None = None
    while True:
        address = terminal.ask("A further mailbox (empty: no more)" if accounts else "Mailbox address").lower()
        if not address and accounts:
            break
        if not is_address(address):
            terminal.say("That is no mail address.")
            continue
        if address in names.values():
            terminal.say("You have named it already.")
            continue
        found = discover(address.rpartition("@")[2])
        ldaps = ldaps or found.ldaps
        name = _free_name(address, names)
        names[name] = address
        accounts.append(_account(state, terminal, address, name, found))
    stays = _stays(terminal)
    for each in accounts:
        each.put("stays", stays)
    _folder(state, terminal, connect)
    directory = _directory(state, terminal, ldaps)
    _vault(state, terminal)
    write_durably(state / LOCAL_PASSWORD, secrets.token_urlsafe(12).encode())
    text = "\n".join([*connect.lines, "", *directory, *(line for each in accounts for line in ["", *each.lines])])
    draft = state / f"{FILE}.new"
    write_durably(draft, text.encode() + b"\n")
    try:
        load(draft)
    except SettingsError as error:
        draft.unlink()
        raise FirstTimeError(str(error)) from error
    draft.replace(state / FILE)
    return load(state / FILE)


def _authorities(state: Path, terminal: Terminal, connect: _Answers) -> None:
    for key, question, wanted in (
        ("anchors", "PEM file with the authorities to trust (IGC-Santé roots)", True),
        ("intermediates", "PEM file with their intermediate authorities (empty: none)", False),
    ):
        while True:
            given = terminal.ask(question)
            if not given and not wanted:
                break
            try:
                content = Path(given).expanduser().read_bytes()
                read_certificates(content)
            except (OSError, KeyFileError) as error:
                terminal.say(f"{given}: {getattr(error, 'strerror', None) or error}")
                continue
            write_durably(state / f"{key}.pem", content)
            connect.put(key, f"{key}.pem")
            break


def _free_name(address: str, names: Collection[str]) -> str:
    """Of the account: by it its files and its repeated mail are known."""
    made = account_name(ConnectAccountSettings(address=address, imap_host=""))
    others = (f"{made[:37]}-{number}" for number in itertools.count(2))
    return next(each for each in itertools.chain([made], others) if each not in names)


def _stays(terminal: Terminal) -> str:
    terminal.say(
        "What this machine has of the operator's INBOX may stay there: what only your key opens (encrypted), "
        "everything or nothing. All the rest is removed there, years of it at the first start; this machine and its "
        "backup then have it, and your operator's webmail has not."
    )
    while (said := terminal.ask("What stays (encrypted, everything, nothing)", "encrypted")) not in _STAYS:
        terminal.say("One of the three.")
    return said


def _folder(state: Path, terminal: Terminal, connect: _Answers) -> None:
    while folder := terminal.ask("Folder for the practice software (empty: none)"):
        place = state / Path(folder).expanduser()
        try:
            service_folder(place)
        except OSError as error:
            terminal.say(f"{place} cannot be made: {error.strerror}")
            continue
        if not place.resolve().is_relative_to(state.resolve()) and not may_write(place):
            terminal.say(f"{place} must be writable for user {SERVICE_USER}: what is for it waits until it is.")
        terminal.say(f"If another user's software reads it: chgrp GROUP {place}; chmod 2770 {place}")
        connect.put("inbox_folder", str(Path(folder).expanduser()))
        return


def _account(state: Path, terminal: Terminal, address: str, name: str, found: Found) -> _Answers:
    """One [[connect.accounts]]."""
    imap = _confirmed(terminal, "IMAP", found.imap, 993)
    smtp = _confirmed(terminal, "SMTP", found.smtp, 465)
    answers = _Answers(["[[connect.accounts]]"])
    answers.put("address", address)
    answers.put("name", name)
    answers.put("imap_host", imap.host)
    answers.put("imap_port", imap.port)
    answers.put("smtp_host", smtp.host)
    answers.put("smtp_port", smtp.port)
    answers.put("smtp_tls", smtp.tls)
    while certificate := terminal.ask("PEM file with the certificate and key that open it (empty: a password)"):
        try:
            content = Path(certificate).expanduser().read_bytes()
            # a phrase that opens nothing: nobody is asked for one, now or at a start
            ssl.create_default_context().load_cert_chain(Path(certificate).expanduser(), password="")
        except (OSError, ValueError) as error:
            terminal.say(f"{certificate}: {getattr(error, 'strerror', None) or error}")
            continue
        write_durably(state / f"{name}.pem", content)
        terminal.say(f"Kept as {name}.pem: replace that file when the certificate is renewed.")
        answers.put("certificate", f"{name}.pem")
        return answers
    write_durably(state / f"{name}.password", terminal.ask("Its password", hidden=True).encode())
    answers.put("password_file", f"{name}.password")
    return answers


def _confirmed(terminal: Terminal, what: str, found: Server | None, port: int) -> Server:
    if found is not None:
        how = "TLS" if found.tls == "implicit" else "STARTTLS"
        if terminal.agree(f"{what}: {found.host}, port {found.port}, {how}. Is that your operator's?"):
            return found
    while True:
        said = terminal.ask(f"{what} server (host, or host:port)")
        match = re.fullmatch(r"([A-Za-z0-9.-]+)(?::([0-9]{1,5}))?", said.strip())
        if match:
            number = int(match[2] or port)
            return Server(match[1].lower(), number, "starttls" if what == "SMTP" and number == 587 else "implicit")
        terminal.say("That is no server.")


def _directory(state: Path, terminal: Terminal, found: Server | None) -> list[str]:
    answers = _Answers(["[connect.directory]"])
    suggested = f"ldaps://{found.host}:{found.port}" if found is not None else ""
    uri = ""
    while not uri.startswith(("ldaps://", "ldapi://")):
        uri = terminal.ask("LDAP directory of your operator (ldaps://host)", suggested)
    answers.put("uri", uri)
    answers.put("base", terminal.ask("Its base", "dc=mssante,dc=fr"))
    bind_dn = terminal.ask("As whom to log in there (DN; empty: nobody)")
    if bind_dn:
        answers.put("bind_dn", bind_dn)
        write_durably(state / "directory.password", terminal.ask("Its password", hidden=True).encode())
        answers.put("password_file", "directory.password")
    return answers.lines


def _vault(state: Path, terminal: Terminal) -> None:
    """The practice's keys, from P12 files; those of a token stay in it."""
    place = state / "vault"
    try:
        vault = KeyVault.open(place) if KeyVault.exists(place) else KeyVault.create(place)
        while given := terminal.ask("P12 file with a mailbox's keys (empty: no more)"):
            try:
                with Path(given).expanduser().open("rb") as file:
                    content = file.read(MAX_FILE_BYTES + 1)
                imported = _import(vault, content, terminal)
            except (OSError, KeyFileError, VaultError) as error:
                terminal.say(f"{given}: {getattr(error, 'strerror', None) or error}")
                continue
            terminal.say(f"Imported for {', '.join(imported)}. Now remove {given}, or keep it where nobody reads it.")
    except VaultError as error:
        raise FirstTimeError(str(error)) from error


def _import(vault: KeyVault, content: bytes, terminal: Terminal) -> list[str]:
    try:
        pairs = read_key_pairs(content, None)
    except PassphraseError:
        pairs = read_key_pairs(content, terminal.ask("Its passphrase", hidden=True).encode())
    imported = []
    for pair in pairs:
        named = mail_addresses(pair.certificate)
        if len(named) != 1:
            raise KeyFileError("names no mailbox, or several: import it with relais keys import --address")
        check_address(named[0], pair.certificate)
        unfit: VaultError | None = None
        fitting = []
        for use in KeyUse:
            try:
                check_fitness(use, pair.certificate)
                fitting.append(use)
            except VaultError as error:
                unfit = error
        if unfit is not None and not fitting:
            raise unfit
        for use in fitting:
            vault.install(named[0], use, pair.key, pair.certificate, pair.chain)
            imported.append(f"{named[0]} ({use.value})")
    return imported
