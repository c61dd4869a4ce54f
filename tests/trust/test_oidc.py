"""Tokens of a provider that answers real HTTP on loopback, and everything somebody may try with a token."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from trust.catalogue import TOKEN_KEYS_UNAVAILABLE, TOKEN_REFUSED
from trust.oidc import MAX_TOKEN, OidcProvider, ProviderOptions, Subject, TokenKind, token_issuer
from trust.oidc_keys import KeyOptions, ProviderError, ProviderKeys, read_keys
from trust.refusals import Refused
from trust.revocation.fetching import Fetcher, FetchOptions

CLIENT = "relais"
RSA = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)
P256 = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def jwk(key, kid, algorithm="", **more) -> dict:
    public = key.public_key()
    if isinstance(key, rsa.RSAPrivateKey):
        made = jwt.algorithms.RSAAlgorithm.to_jwk(public, as_dict=True)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        made = jwt.algorithms.ECAlgorithm.to_jwk(public, as_dict=True)
    else:
        made = jwt.algorithms.OKPAlgorithm.to_jwk(public, as_dict=True)
    made.pop("key_ops", None)
    return {**made, "kid": kid, "use": "sig"} | ({"alg": algorithm} if algorithm else {}) | more


class Issuer:
    """A provider: discovery, keys, tokens."""

    def __init__(self) -> None:
        self.keys = [jwk(RSA, "k1", "RS256"), jwk(P256, "k2"), jwk(ED, "k3")]
        self.asked: list[str] = []
        self.pages: dict[str, bytes] = {}
        self.status = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                body = outer.body(self.path)
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.host}/realms/wallet"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def body(self, path: str) -> bytes:
        if path in self.pages:
            return self.pages[path]
        if path.endswith("openid-configuration"):
            return json.dumps({"issuer": self.url, "jwks_uri": f"{self.url}/certs"}).encode()
        return json.dumps({"keys": self.keys}).encode()

    def claims(self, **changes) -> dict:
        now = int(time.time())
        usual = {
            "iss": self.url,
            "sub": "f:550e8400:899700075064",
            "aud": "account",
            "azp": CLIENT,
            "typ": "Bearer",
            "iat": now,
            "exp": now + 120,
            "acr": "eidas1",
            "SubjectNameID": "899700075064",
            "preferred_username": "899700075064",
        }
        return {name: value for name, value in (usual | changes).items() if value is not None}

    def token(self, key=RSA, kid="k1", algorithm="RS256", header=None, **changes) -> str:
        headers = {"typ": "JWT"} | ({"kid": kid} if kid is not None else {}) | (header or {})
        return jwt.encode(self.claims(**changes), key, algorithm, headers=headers)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Clock:
    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def issuer():
    issuer = Issuer()
    yield issuer
    issuer.close()


@pytest.fixture
def clock():
    return Clock()


def keys_of(issuer, clock, **more) -> ProviderKeys:
    fetcher = Fetcher(FetchOptions(allowed=frozenset({issuer.host}), seconds=5.0, per_host_a_minute=1000))
    return ProviderKeys(issuer.url, fetcher.get, clock=clock, **more)


@pytest.fixture
def keys(issuer, clock):
    keys = keys_of(issuer, clock)
    assert keys.refresh(), keys.problem
    return keys


@pytest.fixture
def provider(issuer, keys, clock):
    return OidcProvider(ProviderOptions(issuer.url, frozenset({CLIENT})), keys, clock=clock)


def rule(found) -> str:
    assert isinstance(found, Refused)
    return found.detail if found.refusal is TOKEN_REFUSED else found.refusal.code


def test_pro_sante_connect(issuer, provider) -> None:
    token = issuer.token()
    found = provider.check(token)
    assert isinstance(found, Subject)
    assert found.claims == (
        ("sub", "f:550e8400:899700075064"),
        ("SubjectNameID", "899700075064"),
        ("preferred_username", "899700075064"),
    )
    assert found.level == "eidas1"
    assert token_issuer(token) == issuer.url
    assert "899700075064" not in repr(found)


@pytest.mark.parametrize(
    ("key", "kid", "algorithm"), [(RSA, "k1", "RS256"), (P256, "k2", "ES256"), (ED, "k3", "EdDSA")]
)
def test_algorithms(issuer, provider, key, kid, algorithm) -> None:
    assert isinstance(provider.check(issuer.token(key, kid, algorithm)), Subject)


def test_nobody_who_logs_in_makes_us_call_the_provider(issuer, provider) -> None:
    before = len(issuer.asked)
    tokens = [issuer.token(), issuer.token(kid="unknown"), issuer.token(OTHER), "x.y.z"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(provider.check, tokens * 25))
    assert sum(isinstance(each, Subject) for each in answers) == 25
    assert len(issuer.asked) == before == 2


def test_time(issuer, provider, clock) -> None:
    now = int(time.time())
    assert rule(provider.check(issuer.token(exp=now - 61))) == "expired"
    assert isinstance(provider.check(issuer.token(exp=now - 30)), Subject), "their clock may be behind"
    assert isinstance(provider.check(issuer.token(nbf=now + 30, iat=now + 30)), Subject)
    assert rule(provider.check(issuer.token(nbf=now + 90))) == "not-yet-valid"
    assert rule(provider.check(issuer.token(iat=now + 90))) == "not-yet-valid"
    assert rule(provider.check(issuer.token(exp=now + 10 * 86400))) == "lifetime"
    assert rule(provider.check(issuer.token(exp=now + 10 * 86400, iat=None))) == "lifetime"
    token = issuer.token()
    clock.ahead = 300
    assert rule(provider.check(token)) == "expired"


@pytest.mark.parametrize("value", ["2000000000", True, -1, 1e300, 10**400, [], {}])
@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
def test_times_that_are_none(issuer, provider, name, value) -> None:
    claims = issuer.claims() | {name: value}
    token = jwt.PyJWS().encode(json.dumps(claims).encode(), RSA, "RS256", headers={"kid": "k1", "typ": "JWT"})
    assert rule(provider.check(token)) == "malformed"


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"iss": "https://evil.example"}, "issuer"),
        ({"iss": None}, "issuer"),
        ({"sub": None}, "subject"),
        ({"exp": None}, "malformed"),
        ({"azp": "another-client"}, "audience"),
        ({"azp": None}, "audience"),
        ({"aud": ["account", "other"], "azp": "another"}, "audience"),
        ({"typ": "ID"}, "kind"),
        ({"typ": "Refresh"}, "kind"),
        ({"typ": "Logout"}, "kind"),
    ],
)
def test_claims(issuer, provider, changes, broken) -> None:
    assert rule(provider.check(issuer.token(**changes))) == broken


@pytest.mark.parametrize("changes", [{"aud": 7}, {"aud": [CLIENT, 7]}, {"azp": ["relais"]}])
def test_audiences_that_are_none(issuer, provider, changes) -> None:
    claims = issuer.claims() | changes
    token = jwt.PyJWS().encode(json.dumps(claims).encode(), RSA, "RS256", headers={"kid": "k1", "typ": "JWT"})
    assert rule(provider.check(token)) == "malformed"


def test_an_id_token_of_a_provider_that_does_not_say_the_kind(issuer, provider) -> None:
    assert rule(provider.check(issuer.token(typ=None, aud=CLIENT, azp=None, at_hash="x"))) == "kind"
    assert rule(provider.check(issuer.token(typ=None, aud=CLIENT, azp=None, c_hash="x"))) == "kind"


def test_level(issuer, keys, clock) -> None:
    options = ProviderOptions(issuer.url, frozenset({CLIENT}), levels=frozenset({"eidas2", "eidas3"}))
    strict = OidcProvider(options, keys, clock=clock)
    assert isinstance(strict.check(issuer.token(acr="eidas2")), Subject)
    for level in ("eidas1", "EIDAS2", "", None, 2, ["eidas2"], {"eidas2": 1}):
        assert rule(strict.check(issuer.token(acr=level))) == "level"


def test_audience_in_either_place(issuer, provider) -> None:
    assert isinstance(provider.check(issuer.token(aud=CLIENT, azp=None)), Subject)
    assert isinstance(provider.check(issuer.token(aud=["x", CLIENT], azp="other")), Subject)


def test_id_tokens(issuer, provider) -> None:
    good = {"typ": "ID", "aud": CLIENT, "nonce": "n1"}

    def check(expected=None, **changes):
        return provider.check(issuer.token(**(good | changes)), TokenKind.ID, expected)

    assert isinstance(check(), Subject)
    assert isinstance(check("n1"), Subject)
    assert rule(check("n2")) == "nonce"
    assert rule(check("n1", nonce=None)) == "nonce"
    assert rule(check(typ="Bearer")) == "kind"
    assert rule(check(aud="other")) == "audience"
    assert rule(check(aud=[CLIENT, "other"], azp="other")) == "audience"
    assert rule(check(aud=[CLIENT, "other"], azp=None)) == "audience"


def signed_by_hmac(claims: dict, secret: bytes, header: dict) -> str:
    signing = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}"
    return f"{signing}.{b64(hmac.digest(secret, signing.encode(), hashlib.sha256))}"


def public_forms() -> list[bytes]:
    public = RSA.public_key()
    return [
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.PEM, PublicFormat.PKCS1),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        json.dumps(jwk(RSA, "k1", "RS256")).encode(),
        b"",
    ]


@pytest.mark.parametrize("secret", public_forms())
@pytest.mark.parametrize("said", ["HS256", "RS256"])
def test_the_public_key_is_no_secret(issuer, provider, secret, said) -> None:
    token = signed_by_hmac(issuer.claims(), secret, {"alg": said, "kid": "k1", "typ": "JWT"})
    assert rule(provider.check(token)) == ("algorithm" if said == "HS256" else "signature")


@pytest.mark.parametrize("said", ["none", "None", "NONE", "nOnE", "", None, 7, ["RS256"], {"a": 1}, "HS512", "rs256"])
def test_no_other_algorithm(issuer, provider, said) -> None:
    header = {"alg": said, "kid": "k1"} if said is not None else {"kid": "k1"}
    body = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(issuer.claims()).encode())}"
    for signature in ("", b64(b"x" * 256)):
        assert rule(provider.check(f"{body}.{signature}")) in ("algorithm", "malformed")


def test_the_key_decides_the_algorithm(issuer, provider) -> None:
    """k1 says RS256 of itself; the others' kind of key does not fit."""
    assert rule(provider.check(issuer.token(RSA, "k1", "PS256"))) in ("unknown-key", TOKEN_KEYS_UNAVAILABLE.code)
    assert rule(provider.check(issuer.token(P256, "k1", "ES256"))) == "unknown-key"
    assert rule(provider.check(issuer.token(RSA, "k2", "RS256"))) == "unknown-key"
    assert rule(provider.check(issuer.token(OTHER))) == "signature"
    assert rule(provider.check(issuer.token(OTHER, kid=None))) == "signature"
    assert isinstance(provider.check(issuer.token(kid=None)), Subject), "one key fits: RFC 7515 leaves kid away"


@pytest.mark.parametrize(
    "header",
    [
        {"jwk": jwk(OTHER, "k9")},
        {"jku": "http://evil.example/keys"},
        {"x5u": "http://evil.example/cert"},
        {"x5c": ["MIIB"]},
        {"crit": ["exp"]},
        {"b64": False, "crit": ["b64"]},
        {"zip": "DEF"},
    ],
)
def test_nothing_in_a_token_brings_a_key_or_changes_the_rules(issuer, provider, header) -> None:
    full = {"alg": "RS256", "kid": "k1", "typ": "JWT"} | header
    for key in (RSA, OTHER):
        signing = f"{b64(json.dumps(full).encode())}.{b64(json.dumps(issuer.claims()).encode())}"
        signature = jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256).sign(signing.encode(), key)
        assert rule(provider.check(f"{signing}.{b64(signature)}")) == "header"


@pytest.mark.parametrize(
    "kid", ["../../../../dev/null", "' OR 1=1 --", "/etc/passwd", "k1\0", "K1", " k1", "http://evil/", "x" * 4000, ""]
)
def test_kid_is_a_name_and_nothing_else(issuer, provider, kid) -> None:
    token = signed_by_hmac(issuer.claims(), b"", {"alg": "RS256", "kid": kid, "typ": "JWT"})
    assert rule(provider.check(token)) == "unknown-key"
    assert not any("etc" in path for path in issuer.asked)


@pytest.mark.parametrize("kid", [7, None, ["k1"], {"k": 1}, True])
def test_kid_of_another_kind(issuer, provider, kid) -> None:
    token = signed_by_hmac(issuer.claims(), b"", {"alg": "RS256", "kid": kid, "typ": "JWT"})
    assert rule(provider.check(token)) in ("malformed", "signature")


def test_huge_and_deep_tokens_cost_nothing(issuer, provider) -> None:
    start = time.perf_counter()
    for _ in range(50):
        assert rule(provider.check("a" * 50_000_000 if _ == 0 else "a" * (MAX_TOKEN + 1))) == "too-large"
    deep = b64(b'{"a":' * 3000 + b"1" + b"}" * 3000)
    assert rule(provider.check(f"{b64(b'{}')}.{deep[:12000]}.x")) == "malformed"
    brackets = b64(b"[" * 9000)
    assert rule(provider.check(f"{brackets}.{b64(b'{}')}.x")) == "malformed"
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "...", "a.b", "a.b.c.d", "a.b.c.d.e", "é.é.é", "a b.c.d", "e30.e30.", "e30.e30.=", "\0.\0.\0"],
)
def test_what_is_no_token(provider, token) -> None:
    assert rule(provider.check(token)) == "malformed"
    assert token_issuer(token) == ""


def test_a_name_twice(issuer, provider) -> None:
    claims = json.dumps(issuer.claims())
    doubled = claims[:-1] + ', "sub": "somebody else"}'
    token = jwt.PyJWS().encode(doubled.encode(), RSA, "RS256", headers={"kid": "k1", "typ": "JWT"})
    assert rule(provider.check(token)) == "malformed"
    for text in ('{"iss": NaN}', '{"iss": Infinity}', "[]", "null", '"x"', "{"):
        token = jwt.PyJWS().encode(text.encode(), RSA, "RS256", headers={"kid": "k1", "typ": "JWT"})
        assert rule(provider.check(token)) == "malformed"


def test_a_changed_token(issuer, provider) -> None:
    token = issuer.token()
    header, payload, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    forged = b64(json.dumps(claims | {"SubjectNameID": "899700000000"}).encode())
    assert rule(provider.check(f"{header}.{forged}.{signature}")) == "signature"
    assert rule(provider.check(f"{header}.{payload}.{signature[:-8]}")) in ("signature", "malformed")


# --- Keys ---------------------------------------------------------------------------------------------------


def test_rotation(issuer, keys, provider, clock) -> None:
    issuer.keys = [jwk(OTHER, "new")]
    token = issuer.token(OTHER, "new")
    assert rule(provider.check(token)) == "unknown-key", "the keys are seconds old: it is an invention"
    assert not keys.due()
    clock.ahead = 70
    assert rule(provider.check(token)) == TOKEN_KEYS_UNAVAILABLE.code
    assert keys.due()
    assert keys.refresh()
    assert isinstance(provider.check(token), Subject)
    assert rule(provider.check(issuer.token())) == "unknown-key", "the old key is gone at once"


def test_inventions_do_not_have_the_provider_asked_all_the_time(issuer, keys, provider, clock) -> None:
    asked = 0
    for _ in range(100):
        clock.ahead += 5
        provider.check(issuer.token(kid="invented"))
        if keys.due():
            asked += 1
            keys.refresh()
    assert asked <= 500 / 60 + 1


def test_the_provider_is_away(issuer, keys, provider, clock, tmp_path) -> None:
    issuer.status = 503
    clock.ahead = 3601
    assert keys.due()
    assert not keys.refresh()
    assert keys.problem
    assert not keys.due(), "not again at once"
    clock.ahead += 61
    assert keys.due()
    assert isinstance(provider.check(issuer.token(exp=int(clock()) + 60, iat=int(clock()))), Subject)
    clock.ahead = 86500
    fresh = issuer.token(exp=int(clock()) + 60, iat=int(clock()))
    assert rule(provider.check(fresh)) == TOKEN_KEYS_UNAVAILABLE.code
    issuer.status = 200
    assert keys.refresh()
    assert isinstance(provider.check(fresh), Subject)


def test_the_last_keys_survive_a_restart(issuer, clock, tmp_path) -> None:
    store = tmp_path / "keys.json"
    assert keys_of(issuer, clock, store=store).refresh()
    issuer.close()
    options = ProviderOptions(issuer.url, frozenset({CLIENT}))
    restarted = keys_of(issuer, clock, store=store)
    assert isinstance(OidcProvider(options, restarted, clock=clock).check(issuer.token()), Subject)
    assert not restarted.refresh()
    fetcher = Fetcher(FetchOptions())
    assert ProviderKeys("https://other.example", fetcher.get, store=store).fetched_at == 0
    for damage in (
        b"",
        b"{",
        b"[]",
        b'{"issuer": 1}',
        store.read_bytes().replace(b'"fetched_at": ', b'"fetched_at": NaN, "x": '),
        store.read_bytes()[:-20],
    ):
        store.write_bytes(damage)
        assert keys_of(issuer, clock, store=store).fetched_at == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys": 7}',
        b'{"keys": []}',
        b'{"keys": [7, null, {}]}',
        b"[" * 100_000,
        json.dumps({"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "h"}]}).encode(),
        json.dumps({"keys": [jwk(RSA, "k", use="enc")]}).encode(),
        json.dumps({"keys": [jwk(RSA, "k", alg="HS256")]}).encode(),
        json.dumps({"keys": [jwk(RSA, "k", d="AQAB")]}).encode(),
        json.dumps({"keys": [jwk(RSA, "k", n="AQAB")]}).encode(),
        json.dumps({"keys": [jwk(RSA, "k", key_ops=["sign"])]}).encode(),
        json.dumps({"keys": [jwk(rsa.generate_private_key(65537, 1024), "weak")]}).encode(),
        json.dumps({"keys": [jwk(P256, "k", x="AAAA")]}).encode(),
        json.dumps({"keys": [jwk(RSA, "k", n=b64(b"\xff" * 2000))]}).encode(),
        json.dumps({"keys": [jwk(RSA, "k")] * 65}).encode(),
        b"x" * 300_000,
    ],
)
def test_key_sets_that_cannot_be_used_change_nothing(issuer, keys, provider, body) -> None:
    issuer.pages["/realms/wallet/certs"] = body
    assert not keys.refresh()
    assert keys.problem
    assert isinstance(provider.check(issuer.token()), Subject), "the last good ones stay"


def test_what_else_a_key_set_holds_is_left_aside() -> None:
    mixed = [7, {"kty": "XYZ"}, jwk(RSA, "e", use="enc"), jwk(RSA, "k1"), {"kty": "EC", "crv": "P-192"}]
    assert [each["kid"] for each in read_keys(json.dumps({"keys": mixed}).encode())] == ["k1"]
    with pytest.raises(ProviderError, match="secret"):
        read_keys(json.dumps({"keys": [jwk(RSA, "k1"), {"kty": "oct", "k": "AA"}]}).encode())


def test_discovery_of_another_issuer(issuer, clock) -> None:
    page = "/realms/wallet/.well-known/openid-configuration"
    for told in ({"issuer": "https://evil.example", "jwks_uri": issuer.url}, {"issuer": issuer.url}, []):
        issuer.pages[page] = json.dumps(told).encode()
        keys = keys_of(issuer, clock)
        assert not keys.refresh()
        assert keys.find("RS256", "k1") is None


def test_internal_addresses_only_when_named(issuer, clock) -> None:
    keys = ProviderKeys(issuer.url, Fetcher(FetchOptions()).get, clock=clock)
    assert not keys.refresh()
    assert issuer.asked == []


@pytest.mark.parametrize(
    "options",
    [
        {"algorithms": ("HS256",)},
        {"algorithms": ("none",)},
        {"algorithms": ()},
        {"claims": ()},
        {"leeway_seconds": 3600},
        {"audiences": frozenset()},
        {"issuer": ""},
    ],
)
def test_settings_that_would_be_unsafe(options) -> None:
    usual = {"issuer": "https://i.example", "audiences": frozenset({CLIENT})}
    with pytest.raises(ValueError, match=r"provider|algorithms"):
        ProviderOptions(**(usual | options))


def test_key_options() -> None:
    assert KeyOptions().least_pause >= 60
