"""`relais directory serve` and `load`: the directory of an operator without an OpenLDAP of his own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from directory.pool import DirectoryOptions
from directory.resolve import Directory
from directory.synthetic import write_extraction
from tests.config.test_directory_resolving import run
from tests.directory.conftest import BASE
from tests.directory.conftest import server_files as server_files
from tests.directory.test_load import EXTRA
from tests.support.private import free_port, give, service_directory, start_unprivileged, until

REFERENCE = Path(__file__).parents[2] / "config" / "relais.toml"

SERVER = next(line for line in REFERENCE.read_text().splitlines() if line.startswith("server = {"))


def configured(folder: Path, files: Path, port: int, **changes: str) -> Path:
    for name, secret in (("gateway", "g-secret"), ("admin", "a-secret"), ("book", "b-secret")):
        (folder / name).write_text(f"{secret}\n")
    values = {
        'bind_dn = "cn=gateway,dc=mssante,dc=fr"': 'bind_dn = "cn=gateway,cn=relais"',
        'password_file = "directory.password"': 'password_file = "gateway"',
        '# PEM file the server\'s certificate must chain to.\nca = "anchors.pem"': f'ca = "{files / "chain.pem"}"',
        'writer_dn = ""\nwriter_password_file = ""': f'writer_dn = "cn=admin,{BASE}"\nwriter_password_file = "admin"',
        SERVER: f'server = {{ folder = "slapd", port = {port}, address = "127.0.0.1", chain = "{files / "chain.pem"}", '
        f'key = "{files / "key.pem"}", reader_password_file = "book" }}',
    }
    text = REFERENCE.read_text()
    for before, after in values.items():
        assert before in text, before
        text = text.replace(before, after)
    for before, after in changes.items():
        text = text.replace(before, after)
    (folder / "relais.toml").write_text(text)
    return folder / "relais.toml"


def test_loaded_served_and_closed_to_the_public(server_files: Path, tmp_path: Path) -> None:
    files = write_extraction(tmp_path, 20, extra=(EXTRA,))
    with service_directory() as folder:
        port = free_port()
        config = configured(folder, server_files, port)
        held = run("load", "--config", str(config), str(files.mssante.parent))
        assert held.exit_code == 1 and "stale: " in held.output and "Nothing was loaded" in held.output, held.output
        assert not any((folder / "slapd" / "data").glob("*.mdb"))
        accepted = ("load", "--config", str(config), str(files.mssante.parent), "--accept", "stale")
        loaded = run(*accepted)
        assert loaded.exit_code == 0 and "mailboxes" in loaded.output, loaded.output
        again = run(*accepted)
        assert again.exit_code == 1 and "already holds data" in again.output
        give(folder)
        served = start_unprivileged(
            (sys.executable, "-P", "-m", "config", "directory", "serve", "--config", str(config))
        )

        def asked(dn: str, password: str) -> bool:
            options = DirectoryOptions(f"ldaps://127.0.0.1:{port}", BASE, dn, password, server_files / "chain.pem")
            directory = Directory(options)
            try:
                return directory.resolve(EXTRA.address) is not None
            except Exception:  # not there yet, or nobody we know
                return False
            finally:
                directory.close()

        try:
            until(lambda: asked("cn=gateway,cn=relais", "g-secret"), what="slapd")
            assert asked("cn=carnet,cn=lecteurs", "b-secret") and not asked("", "")
        finally:
            served.terminate()
            served.wait(20)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('"cn=gateway,cn=relais"', '"cn=somebody"', "directory.bind_dn has to be cn=gateway,cn=relais"),
        ('password_file = "gateway"', 'password_file = "nowhere"', "directory.password_file cannot be read"),
        ('reader_password_file = "book"', 'reader_password_file = "nowhere"', "reader_password_file cannot be read"),
        ("server = {", "x = 1 #", "directory"),
    ],
)
def test_what_is_missing_is_said(server_files: Path, tmp_path: Path, before: str, after: str, said: str) -> None:
    config = configured(tmp_path, server_files, 1, **{before: after})
    for result in (run("serve", "--config", str(config)), run("load", "--config", str(config), str(tmp_path))):
        assert result.exit_code == 1 and said in result.output, result.output
