"""Tokens of a true OpenID provider (idpyoidc) that answers HTTP on loopback, said at the submission door."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from idpyoidc.server import Server
from idpyoidc.server.configure import ASConfiguration
from idpyoidc.server.token.jwt_token import JWTToken

from config.oidc_service import OidcService
from config.sections import OidcSettings
from mta.smtp.door import SubmissionDoor
from mta.spool import Spool
from trust.accounts import Accounts
from trust.accounts_administration import Administration
from trust.catalogue import TOKEN_KEYS_UNAVAILABLE, TOKEN_REFUSED
from trust.journal import Journal
from trust.refusals import Refused
from trust.store.database import Database
from trust.vault import KeyVault

from .conftest import MakeSpool
from .smtp_client import secured
from .test_doors import LOCAL, OPTIONS, QUICK
from .trust_space import TrustSpace

SECRET = "fictitious-secret-0123456789abcdef"
RPPS = "899700075064"


class Token(JWTToken):
    """Access tokens as Pro Santé Connect's: the client in `azp`, the person in `SubjectNameID`."""

    def load_custom_claims(self, payload: dict) -> dict:
        party = {"azp": payload.pop("client_id", None) or "relais"}
        return (
            payload
            | {"sub": f"f:1:{RPPS}", "SubjectNameID": RPPS, "typ": "Bearer"}
            | party
            | self.kwargs.get("more", {})
        )


class Provider:
    """idpyoidc's authorization server, whose endpoints are reached over HTTP."""

    def __init__(self, directory: Path) -> None:
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(outer.page(self.path))

            def do_POST(self) -> None:
                form = self.rfile.read(int(self.headers["Content-Length"])).decode()
                outer.asked.append(self.path)
                self.reply(outer.posted(self.path, dict(urllib.parse.parse_qsl(form))))

            def reply(self, document: object) -> None:
                body = json.dumps(document).encode()
                self.send_response(200 if document is not None else 503)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.host = f"127.0.0.1:{self.http.server_port}"
        self.issuer = f"http://{self.host}"
        self.down = False
        self.server = Server(ASConfiguration(conf=self._configuration(), base_path=str(directory)), cwd=str(directory))
        self._registered: dict[str, str] = {}
        self._register("relais")
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def _register(self, client: str) -> None:
        self.server.context.cdb[client] = {
            "client_id": client,
            "client_secret": SECRET,
            "client_salt": "salt",
            "grant_types_supported": ["client_credentials"],
            "allowed_scopes": ["mail"],
            "token_endpoint_auth_method": "client_secret_post",
        }

    def _configuration(self) -> dict:
        oauth2 = "idpyoidc.server.oauth2"
        authenticated = {"client_authn_method": ["client_secret_post"]}
        credentials = {"client_credentials": {"class": f"{oauth2}.token_helper.client_credentials.ClientCredentials"}}
        endpoints = {
            "provider_config": ("idpyoidc.server.oidc.provider_config.ProviderConfiguration", {}),
            "token": (f"{oauth2}.token.Token", authenticated | {"grant_types_support": credentials}),
            "introspection": (
                f"{oauth2}.introspection.Introspection",
                authenticated | {"enforce_audience_restriction": False},
            ),
            "token_revocation": (f"{oauth2}.token_revocation.TokenRevocation", authenticated),
        }
        keys = [{"type": "OCT", "use": ["enc"], "kid": "password"}, {"type": "OCT", "use": ["enc"], "kid": "salt"}]
        return {
            "issuer": self.issuer,
            "keys": {
                "uri_path": "jwks.json",
                "key_defs": [{"type": "RSA", "use": ["sig"]}, {"type": "EC", "crv": "P-256", "use": ["sig"]}],
                "read_only": False,
            },
            "token_handler_args": {
                "key_conf": {"key_defs": [{"type": "OCT", "bytes": 24, "use": ["enc"], "kid": "code"}]},
                "token": {"class": f"{__name__}.Token", "kwargs": {"lifetime": 600}},
            },
            "endpoint": {
                name: {
                    "path": ".well-known/openid-configuration" if name == "provider_config" else name,
                    "class": found,
                    "kwargs": how,
                }
                for name, (found, how) in endpoints.items()
            },
            "session_params": {"encrypter": {"kwargs": {"keys": {"key_defs": keys}, "iterations": 1}}},
            "authz": {
                "class": "idpyoidc.server.authz.AuthzHandling",
                "kwargs": {"grant_config": {"expires_in": 43200}},
            },
        }

    def page(self, path: str) -> object:
        if path == "/jwks.json":
            return self.server.context.keyjar.export_jwks()
        answer = self.server.get_endpoint("provider_config").process_request()
        document = answer["response_args"]
        document = document if isinstance(document, dict) else document.to_dict()
        return document | {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/jwks.json"}

    def posted(self, path: str, form: dict[str, str]) -> object:
        if self.down:
            return None
        endpoint = self.server.get_endpoint(path.strip("/"))
        request = endpoint.parse_request(form)
        if "error" in request:
            return request.to_dict()
        answer = endpoint.process_request(request)
        found = answer.get("response_args", {})
        return found if isinstance(found, dict) else found.to_dict()

    def _post(self, endpoint: str, **form: str) -> dict:
        data = urllib.parse.urlencode(form | {"client_secret": SECRET}).encode()
        with urllib.request.urlopen(f"{self.issuer}/{endpoint}", data, timeout=10) as answer:
            return json.load(answer)

    def token(self, client: str = "relais", lifetime: int = 600, **more: object) -> str:
        """A token for `client`. Each has a client of its own at the provider, which gives a machine one only."""
        handler = self.server.context.session_manager.token_handler["access_token"]
        handler.lifetime, handler.kwargs["more"] = lifetime, {"azp": client, **more}
        own = f"{client}-{len(self._registered)}"
        self._register(own)
        token = self._post("token", grant_type="client_credentials", client_id=own)["access_token"]
        self._registered[token] = own
        return token

    def revoke(self, token: str) -> None:
        self._post("token_revocation", token=token, client_id=self._registered[token])

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[Provider]:
    made = Provider(tmp_path)
    yield made
    made.close()


@pytest.fixture
def accounts(database: Database, vault: KeyVault, provider: Provider) -> Accounts:
    accounts = Accounts(database, vault, hasher=QUICK)
    accounts.create("gris", ["dr.gris@op1.example"], "mot de passe")
    Administration(accounts, Journal(vault, "here")).link_subject(
        "gris", provider.issuer, "SubjectNameID", RPPS, "root"
    )
    return accounts


@pytest.fixture(params=["", "introspection"])
async def port(
    request: pytest.FixtureRequest,
    provider: Provider,
    accounts: Accounts,
    make_spool: MakeSpool,
    space: TrustSpace,
    tmp_path: Path,
) -> AsyncIterator[int]:
    section = OidcSettings(
        issuer=provider.issuer,
        audiences=("relais",),
        internal_hosts=(provider.host,),
        leeway_seconds=0,
        introspection_uri=f"{provider.issuer}/introspection" if request.param else "",
        client_id="relais",
        client_secret_file="oidc.secret",
    )
    (tmp_path / "oidc.secret").write_text(SECRET + "\n")
    loaded = SimpleNamespace(settings=SimpleNamespace(oidc=(section,)), state=tmp_path, path=tmp_path.joinpath)
    service = OidcService(loaded, accounts)  # type: ignore[arg-type]
    running = asyncio.create_task(service.run())
    spool: Spool = make_spool()
    door = SubmissionDoor(
        spool,
        accounts,
        LOCAL.__contains__,
        "op1.example".__eq__,
        lambda domain: False,
        space.service(),
        OPTIONS,
        service.authenticate,
    )
    listening = await door.start("127.0.0.1", 0)
    async with asyncio.timeout(10):
        first = await asyncio.to_thread(provider.token)
        while (answer := await asyncio.to_thread(service.authenticate, "", first)) == Refused(TOKEN_KEYS_UNAVAILABLE):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert not isinstance(answer, Refused), answer.detail
    yield listening
    await door.stop()
    await service.stop()
    await running


async def said(port: int, space: TrustSpace, token: str, login: str = "", mechanism: str = "OAUTHBEARER") -> str:
    words = f"n,a={login},\x01auth=Bearer {token}\x01\x01" if login else f"n,,\x01auth=Bearer {token}\x01\x01"
    if mechanism == "XOAUTH2":
        words = f"user={login}\x01auth=Bearer {token}\x01\x01"
    async with secured(port, space.anonymous()) as client:
        reply = await client.say(f"AUTH {mechanism} {base64.b64encode(words.encode()).decode()}")
        return await client.say("AQ==") if reply.startswith("334") else reply


async def test_a_token_of_the_provider_logs_in(port: int, space: TrustSpace, provider: Provider) -> None:
    token = await asyncio.to_thread(provider.token)
    assert (await said(port, space, token)).startswith("235")
    assert (await said(port, space, token, "dr.gris@op1.example", "XOAUTH2")).startswith("235")
    assert await said(port, space, token, "dr.noir@op1.example") == Refused(TOKEN_REFUSED).reply_fr
    assert await said(port, space, token[:-8] + "AAAAAAAA") == Refused(TOKEN_REFUSED, "signature").reply_fr


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("audience", {"client": "other"}),
        ("", {"SubjectNameID": "899700075999", "sub": "f:1:899700075999"}),
        ("lifetime", {"lifetime": 400_000}),
    ],
)
async def test_other_tokens_of_the_provider_do_not(
    port: int, space: TrustSpace, provider: Provider, rule: str, changes: dict
) -> None:
    token = await asyncio.to_thread(lambda: provider.token(**changes))
    assert await said(port, space, token) == Refused(TOKEN_REFUSED, rule).reply_fr


async def test_a_token_that_has_expired(port: int, space: TrustSpace, provider: Provider) -> None:
    token = await asyncio.to_thread(lambda: provider.token(lifetime=1))
    over = time.time() + 2
    while time.time() < over:  # noqa: ASYNC110 - the provider's clock is the machine's
        await asyncio.sleep(0.05)
    assert await said(port, space, token) == Refused(TOKEN_REFUSED, "expired").reply_fr


async def test_a_token_of_another_provider(port: int, space: TrustSpace, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = await asyncio.to_thread(Provider, tmp_path / "other")
    try:
        token = await asyncio.to_thread(other.token)
        assert await said(port, space, token) == Refused(TOKEN_REFUSED, "issuer").reply_fr
    finally:
        await asyncio.to_thread(other.close)


async def test_a_token_that_was_taken_back(
    port: int, space: TrustSpace, provider: Provider, request: pytest.FixtureRequest
) -> None:
    asked = request.node.callspec.params["port"] == "introspection"
    token = await asyncio.to_thread(provider.token)
    assert (await said(port, space, token)).startswith("235")
    await asyncio.to_thread(provider.revoke, token)
    reply = await said(port, space, token)
    assert reply == Refused(TOKEN_REFUSED, "inactive").reply_fr if asked else reply.startswith("235")
    fresh = await asyncio.to_thread(provider.token)
    provider.down = True
    reply = await said(port, space, fresh)
    assert reply == Refused(TOKEN_KEYS_UNAVAILABLE, "introspection").reply_fr if asked else reply.startswith("235")
    assert ("/introspection" in provider.asked) == asked
