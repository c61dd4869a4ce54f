"""`relais directory`: look up mailboxes and people, and keep the directory in step with the national register.

Each command stands in the module of what it does, imported when it is called.
"""

from __future__ import annotations

import click

from config.lazy import LazyCommand


@click.group("directory")
def directory() -> None:
    """Look up mailboxes and people, and keep the directory in step."""


for _name, _module, _text in (
    ("resolve", "config.directory_resolving", "Say what the directory knows of an address or an identifier."),
    ("search", "config.directory_searching", "Find people by name, profession, town or structure."),
    ("refresh", "config.directory_refreshing", "Bring one professional up to date from the register's API, now."),
    ("sync", "config.directory_sync", "Bring the directory in step with the register's files."),
    ("serve", "config.directory_serving", "Run the directory's slapd, for the gateway and for address books."),
    ("load", "config.directory_serving", "Fill the empty, stopped directory from the register's files."),
    ("ldif", "config.directory_sync", "Write the whole directory as LDIF, for the first load."),
    ("runs", "config.directory_sync", "List what each synchronisation did, or show one report."),
    ("generate", "config.directory_sync", "Write files like the register's, about nobody."),
):
    directory.add_command(LazyCommand(_name, _module, _text))
