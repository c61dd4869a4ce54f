"""Collected mailboxes from their sections: one way to sign in, and every mistake told as a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.incoming import collector_options
from config.settings import SettingsError, load
from mta.collecting_options import After, CollectorOptions, SignIn
from tests.support.dovecot import write_certificate

REFERENCE = Path(__file__).parents[2] / "config/relais.toml"


def options_of(tmp_path: Path, **changes: str) -> CollectorOptions:
    text = REFERENCE.read_text()
    start = text.index("\n[[collect]]")
    end = text.index("\n\n", start)
    chain, key = write_certificate(tmp_path)
    keys = {
        "name": '"x"',
        "host": '"imap.example"',
        "ca": f'"{chain}"',
        "user": '"u"',
        "deliver_to": '"a@ch-bellevue.mssante.fr"',
    }
    section = "\n[[collect]]\n" + "".join(f"{key} = {value}\n" for key, value in (keys | changes).items())
    path = tmp_path / "relais.toml"
    path.write_text(text[:start] + section.replace("KEY", str(key)).replace("CHAIN", str(chain)) + text[end:])
    for name in ("password", "token", "client", "refresh"):
        (tmp_path / name).write_text(f"{name}-secret\n")
    loaded = load(path, {})
    return collector_options(loaded, loaded.settings.collect[0])


def test_each_way_to_sign_in(tmp_path: Path) -> None:
    options = options_of(tmp_path, password_file='"password"')
    assert options.secret is not None
    assert (options.sign_in, options.secret(), options.after) == (SignIn.PASSWORD, "password-secret", After.FLAG)
    (tmp_path / "password").write_text("another\n")
    assert options.secret() == "another"
    options = options_of(tmp_path, token_file='"token"', after='"move"', move_to='"Fait"')
    assert options.secret is not None
    assert (options.sign_in, options.secret(), options.after, options.move_to) == (
        SignIn.TOKEN,
        "token-secret",
        After.MOVE,
        "Fait",
    )
    options = options_of(tmp_path, certificate='"CHAIN"', key='"KEY"', user='""')
    assert (options.sign_in, options.secret, options.user) == (SignIn.CERTIFICATE, None, "")
    grant = {"token_uri": '"https://idp.example/token"', "client_id": '"us"', "client_secret_file": '"client"'}
    assert options_of(tmp_path, **grant).sign_in is SignIn.TOKEN
    assert options_of(tmp_path, **grant, refresh_token_file='"refresh"').sign_in is SignIn.TOKEN
    assert options_of(tmp_path, **grant, certificate='"CHAIN"', key='"KEY"').sign_in is SignIn.TOKEN


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "name password_file"),
        ({"password_file": '"password"', "token_file": '"token"'}, "name one"),
        ({"password_file": '"missing"'}, "missing"),
        ({"token_file": '"token"', "user": '""'}, "user"),
        ({"certificate": '"CHAIN"'}, "collect x"),
        ({"after": '"delete"', "password_file": '"password"'}, "delete"),
        ({"token_uri": '"http://idp.example/"', "client_id": '"us"', "client_secret_file": '"client"'}, "https"),
        ({"token_uri": '"https://idp.example/"', "client_id": '"us"'}, "client_secret_file"),
        ({"token_uri": '"https://idp.example/"', "client_id": '"us"', "client_secret_file": '"no"'}, "no"),
    ],
)
def test_a_mistake_is_a_sentence(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        options_of(tmp_path, **changes)
