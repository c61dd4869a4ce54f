"""Against an authority somebody else wrote: certomancer's CRLs, OCSP responder and issuer pages over loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from trust.revocation import RevocationState
from trust.revocation.checker import Revocation, RevocationOptions
from trust.revocation.fetching import FetchOptions

yaml = pytest.importorskip("yaml", reason="certomancer is not installed")
certomancer = pytest.importorskip("certomancer.registry", reason="certomancer is not installed")
animator = pytest.importorskip("certomancer.integrations.animator", reason="certomancer[web-api] is not installed")

AT = datetime(2026, 6, 1, tzinfo=UTC)
VALIDITY = {"valid-from": "2020-01-01T00:00:00+0000", "valid-to": "2035-01-01T00:00:00+0000"}
KEYS = ("root", "interm", "interm-ocsp", "alice", "bob")


def configuration(port: int) -> dict:
    leaf = {"issuer": "interm", "validity": VALIDITY, "profiles": ["digsig-commitment"]}
    only = {
        "schema": "aia-urls",
        "params": {"ocsp-responder-names": ["interm"], "ca-issuer-links": [{"repo": "interm"}]},
    }
    lists = {"schema": "crl-dist-url", "params": {"crl-repo-names": ["interm"]}}
    ocsp = [{"id": "authority_information_access", "smart-value": only}]
    crls = [{"id": "crl_distribution_points", "smart-value": lists}]
    revoked = {"revoked-since": "2025-12-01T00:00:00+0000", "reason": "key_compromise"}
    bare = {"issuer": "interm", "validity": VALIDITY, "subject": "alice", "subject-key": "alice"}
    return {
        "external-url-prefix": f"http://127.0.0.1:{port}",
        "keysets": {"keys": {"path-prefix": ".", "keys": {name: {"path": f"{name}.pem"} for name in KEYS}}},
        "pki-architectures": {
            "test": {
                "keyset": "keys",
                "entity-defaults": {"country-name": "FR", "organization-name": "Autorité fictive"},
                "entities": {name: {"common-name": name} for name in KEYS},
                "certs": {
                    "root": {
                        "subject": "root",
                        "subject-key": "root",
                        "issuer": "root",
                        "authority-key": "root",
                        "validity": VALIDITY,
                        "profiles": [{"id": "simple-ca", "params": {"crl-repo": "root"}}],
                    },
                    "interm": {
                        "issuer": "root",
                        "validity": VALIDITY,
                        "profiles": [{"id": "simple-ca", "params": {"max-path-len": 0}}],
                    },
                    "interm-ocsp": {"issuer": "interm", "validity": VALIDITY, "profiles": ["ocsp-responder"]},
                    "listed-good": bare | {"extensions": crls},
                    "listed-bad": bare | {"extensions": crls, "revocation": revoked},
                    "asked-good": bare | {"extensions": ocsp},
                    "asked-bad": bare | {"extensions": ocsp, "revocation": revoked},
                    "leaf": leaf | {"subject": "bob", "subject-key": "bob"},
                },
                "services": {
                    "ocsp": {
                        "interm": {
                            "for-issuer": "interm",
                            "responder-cert": "interm-ocsp",
                            "signing-key": "interm-ocsp",
                        }
                    },
                    "crl-repo": {
                        name: {"for-issuer": name, "signing-key": name, "simulated-update-schedule": "P30D"}
                        for name in ("root", "interm")
                    },
                    "cert-repo": {
                        name: {"for-issuer": name, "publish-issued-certs": True} for name in ("root", "interm")
                    },
                },
            }
        },
    }


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Quiet(WSGIRequestHandler):
    def log_message(self, *_) -> None:
        pass


@dataclass
class Published:
    architecture: object

    def certificate(self, label: str) -> x509.Certificate:
        return x509.load_der_x509_certificate(self.architecture.get_cert(certomancer.CertLabel(label)).dump())


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Iterator[Published]:
    directory: Path = tmp_path_factory.mktemp("certomancer")
    for name in KEYS:
        key = rsa.generate_private_key(65537, 2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (directory / f"{name}.pem").write_bytes(pem)
    server = make_server("127.0.0.1", 0, None, server_class=Server, handler_class=Quiet)
    (directory / "certomancer.yml").write_text(yaml.safe_dump(configuration(server.server_port)))
    settings = certomancer.CertomancerConfig.from_file(str(directory / "certomancer.yml"), str(directory))
    store = animator.AnimatorArchStore(settings.pki_archs)
    server.set_app(animator.Animator(store, at_time=AT, with_web_ui=False))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield Published(settings.get_pki_arch("test"))
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def revocation(published):
    options = RevocationOptions(fetch=FetchOptions(allowed=frozenset({"127.0.0.1"})), nonce="require")
    made = Revocation([published.certificate("root")], [], options, clock=lambda: AT)
    made.start()
    yield made
    made.stop()


@pytest.mark.parametrize(
    ("label", "source", "state"),
    [
        ("listed-good", "crl", RevocationState.GOOD),
        ("listed-bad", "crl", RevocationState.REVOKED),
        ("asked-good", "ocsp", RevocationState.GOOD),
        ("asked-bad", "ocsp", RevocationState.REVOKED),
    ],
)
def test_answers(published, revocation, label, source, state):
    certificate, issuer = published.certificate(label), published.certificate("interm")
    assert revocation.check(certificate, issuer, AT).state is RevocationState.UNKNOWN
    assert revocation.settled(10)
    status = revocation.check(certificate, issuer, AT)
    assert (status.source, status.state) == (source, state), (status, revocation.missing())
    if state is RevocationState.REVOKED:
        assert status.reason == "keyCompromise"


def test_issuers(published, revocation):
    certificate = published.certificate("asked-good")
    assert revocation.issuers(certificate) == ()
    assert revocation.settled(10)
    assert revocation.issuers(certificate) == (published.certificate("interm"),)
