"""Passwords and tokens for collected mailboxes: read anew, given by a provider, and never in an error's text."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from mta.collecting_options import SecretUnavailableError
from mta.upstream_secrets import Grant, GrantedToken, kept_in
from trust.revocation.fetching import FetchError

URI = "https://idp.example/token"


class Provider:
    def __init__(self, **answer: object) -> None:
        self.answer: bytes | FetchError = json.dumps(answer).encode()
        self.asked: list[dict[str, list[str]]] = []

    def post(self, url: str, body: bytes, content_type: str, max_bytes: int) -> bytes:
        assert (url, content_type) == (URI, "application/x-www-form-urlencoded")
        self.asked.append(parse_qs(body.decode()))
        if isinstance(self.answer, FetchError):
            raise self.answer
        assert len(self.answer) <= max_bytes
        return self.answer


def test_a_file_is_read_each_time(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    read = kept_in(path)
    with pytest.raises(SecretUnavailableError, match=r"^secret-unreadable$"):
        read()
    path.write_text(" été 1 \n")
    assert read() == "été 1"
    path.write_text("2\n")
    assert read() == "2"
    path.write_bytes(b"\xff")
    with pytest.raises(SecretUnavailableError, match=r"^secret-unreadable$"):
        read()


def test_as_a_client_of_its_own() -> None:
    provider = Provider(access_token="t0k.en", token_type="Bearer", expires_in=60)
    token = GrantedToken(Grant(URI, "us", lambda: "s&cret", "imap"), provider.post)
    assert token() == token() == "t0k.en"
    wanted = {"client_id": ["us"], "client_secret": ["s&cret"], "grant_type": ["client_credentials"], "scope": ["imap"]}
    assert provider.asked == [wanted, wanted]


def test_for_somebody_who_allowed_it(tmp_path: Path) -> None:
    """The provider gives another refresh token each time: it is on disk before the access token is used."""
    path = tmp_path / "refresh"
    path.write_text("r1\n")
    provider = Provider(access_token="a1", refresh_token="r2")
    now = [0.0]
    token = GrantedToken(Grant(URI, "us", lambda: "secret", refresh_token=path), provider.post, lambda: now[0])
    assert (token(), path.read_text(), path.stat().st_mode & 0o777) == ("a1", "r2", 0o600)
    provider.answer = b'{"access_token": "a2"}'
    now[0] += 899
    assert token() == "a1"
    now[0] += 2
    assert (token(), path.read_text()) == ("a2", "r2")
    assert [asked["refresh_token"] for asked in provider.asked] == [["r1"], ["r2"]]
    assert {*provider.asked[0]} == {"client_id", "client_secret", "grant_type", "refresh_token"}


@pytest.mark.parametrize(("expires", "asked"), [(3600, 1), (120, 2), (30, 2), (True, 1), ("3600", 1), (-5, 2)])
def test_a_token_is_used_while_it_lasts(expires: object, asked: int) -> None:
    provider, now = Provider(access_token="a1", expires_in=expires), [0.0]
    token = GrantedToken(Grant(URI, "us", lambda: "secret"), provider.post, lambda: now[0])
    assert token() == "a1"
    now[0] += 61
    assert token() == "a1"
    assert len(provider.asked) == asked


def test_two_who_sign_in_at_once_are_one_for_the_provider(tmp_path: Path) -> None:
    """One that finds a refresh token used twice revokes whatever came of it (RFC 6819 §5.2.2.3)."""
    path = tmp_path / "refresh"
    path.write_text("r1")
    provider = Provider(access_token="a1", refresh_token="r2", expires_in=3600)
    both = threading.Barrier(2)
    token = GrantedToken(Grant(URI, "us", lambda: "secret", refresh_token=path), provider.post)

    def sign_in() -> str:
        both.wait(20)
        return token()

    with ThreadPoolExecutor(2) as threads:
        assert {each.result() for each in [threads.submit(sign_in) for _ in range(2)]} == {"a1"}
    assert [asked["refresh_token"] for asked in provider.asked] == [["r1"]]


@pytest.mark.parametrize(
    ("answer", "trouble"),
    [
        (FetchError("idp.example answers 400"), "token-not-given"),
        (b"", "token-unreadable"),
        (b"[]", "token-unreadable"),
        (b"[" * 100_000, "token-unreadable"),
        (b"\xff", "token-unreadable"),
        (b"{}", "token-unreadable"),
        (b'{"access_token": 7}', "token-unreadable"),
        (b'{"access_token": ""}', "token-unreadable"),
        (b'{"access_token": "a\\u0001b"}', "token-unreadable"),
        (b'{"access_token": "a b"}', "token-unreadable"),
        (b'{"access_token": "\\u00e9"}', "token-unreadable"),
    ],
)
def test_no_token_has_a_name(answer: bytes | FetchError, trouble: str) -> None:
    provider = Provider()
    provider.answer = answer
    with pytest.raises(SecretUnavailableError, match=rf"^{trouble}$"):
        GrantedToken(Grant(URI, "us", lambda: "secret"), provider.post)()


def test_a_refresh_token_that_cannot_be_kept_is_told(tmp_path: Path) -> None:
    path = tmp_path / "refresh"
    path.write_text("r1")
    provider = Provider(access_token="a1", refresh_token="\ud800")
    with pytest.raises(SecretUnavailableError, match=r"^refresh-token-not-kept$"):
        GrantedToken(Grant(URI, "us", lambda: "secret", refresh_token=path), provider.post)()
    assert path.read_text() == "r1"
