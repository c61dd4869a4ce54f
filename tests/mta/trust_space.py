"""A small trust space for tests: an authority, operators with certificates, and who is listed for which domain."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from trust.issuing import DemonstrationAuthority, KeyKind
from trust.names import DistinguishedName
from trust.tls import operator_client_context, operator_server_context, service_server_context


@dataclass
class Listed:
    """A trust list without its signature."""

    domains: dict[str, frozenset[DistinguishedName]]

    def operators_of(self, domain: str) -> frozenset[DistinguishedName]:
        return self.domains.get(domain.lower(), frozenset())

    def is_operator(self, name: DistinguishedName) -> bool:
        return any(name in names for names in self.domains.values())


@dataclass
class TrustSpace:
    directory: Path
    authority: DemonstrationAuthority
    names: dict[str, DistinguishedName] = field(default_factory=dict)
    rsa: bool = False
    """Whether keys made from now on speak TLS 1.2, whose suites all ask for RSA."""

    def __post_init__(self) -> None:
        self.anchors = self.directory / "anchors.pem"
        self.anchors.write_bytes(self.authority.root.public_bytes(Encoding.PEM))

    def operator(self, name: str) -> DistinguishedName:
        """Issue an operator's certificate."""
        kind: KeyKind = "rsa3072" if self.rsa else "p256"
        issued = self.authority.issue_operator(name, f"Operateur {name}", "10B0000001", ["127.0.0.1"], kind)
        self._write(name, issued.pem_chain(), issued.pem_key())
        self.names[name] = DistinguishedName.from_x509(issued.certificate.subject)
        return self.names[name]

    def server(self, name: str) -> ssl.SSLContext:
        return operator_server_context(*self._files(name), self.anchors)

    def client(self, name: str) -> ssl.SSLContext:
        return operator_client_context(*self._files(name), self.anchors)

    def service(self) -> ssl.SSLContext:
        issued = self.authority.issue_server(["localhost"], ["127.0.0.1"])
        self._write("service", issued.pem_chain(), issued.pem_key())
        return service_server_context(*self._files("service"))

    def anonymous(self) -> ssl.SSLContext:
        """A client that trusts the authority and shows no certificate."""
        return ssl.create_default_context(cafile=str(self.anchors))

    def _files(self, name: str) -> tuple[Path, Path]:
        return self.directory / f"{name}.pem", self.directory / f"{name}.key"

    def _write(self, name: str, chain: bytes, key: bytes) -> None:
        for path, content in zip(self._files(name), (chain, key), strict=True):
            path.write_bytes(content)
