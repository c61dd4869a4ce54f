"""One register, one directory: files written, run, and looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ldap

from directory.administration import AdministratorOptions
from directory.extraction import MailboxRow
from directory.guards import Limits
from directory.runs import RunReport
from directory.synchronisation import Synchronisation, SynchronisationOptions
from directory.synthetic import ExtractionFiles, write_extraction
from tests.directory.conftest import BASE, Server

NOW = datetime(2026, 9, 10, 6, 0, tzinfo=UTC)


@dataclass
class World:
    server: Server
    folder: Path
    limits: Limits = field(default_factory=Limits)
    own_domains: tuple[str, ...] = ()
    day: int = 0
    patience_seconds: float = 20.0
    timeout_seconds: float = 10.0
    uri: str = ""
    apart: bool = False

    def publish(self, professionals: int = 12, seed: int = 1, extra: Sequence[MailboxRow] = ()) -> ExtractionFiles:
        """The next day's files; the first day is nine days ago."""
        moment = NOW - timedelta(days=9 - self.day, hours=2)
        self.day += 1
        return write_extraction(
            self.folder / f"day{self.day}", professionals, seed, extra, published=moment.strftime("%Y%m%d%H%M")
        )

    @property
    def administrator(self) -> AdministratorOptions:
        slapd = self.server.slapd
        return AdministratorOptions(
            uri=self.uri or slapd.ldaps_uri,
            base=BASE,
            bind_dn=slapd.admin_dn,
            password="admin-secret",
            ca_file=self.server.ca,
            timeout_seconds=self.timeout_seconds,
            patience_seconds=self.patience_seconds,
        )

    def synchronisation(self) -> Synchronisation:
        options = SynchronisationOptions(
            self.administrator, self.folder / "sync", self.own_domains, self.limits, apart=self.apart
        )
        return Synchronisation(options)

    def run(self, files: ExtractionFiles | Path, **how: Any) -> RunReport:
        path = files if isinstance(files, Path) else files.mssante.parent
        return self.synchronisation().run([path], **({"now": lambda: NOW} | how))

    def connection(self) -> Any:
        connection = ldap.initialize(self.server.slapd.ldapi_uri)
        connection.simple_bind_s(self.server.slapd.admin_dn, "admin-secret")
        return connection

    def entries(self, *attributes: str) -> dict[str, dict[str, list[bytes]]]:
        """All of them by DN, attributes and their values in order."""
        found = self.connection().search_s(BASE, ldap.SCOPE_SUBTREE, "(SourceBAL=*)", list(attributes) or ["*"])
        return {dn: {name: sorted(each) for name, each in values.items()} for dn, values in found if dn is not None}


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text("utf-8")
    assert before in text
    path.write_text(text.replace(before, after), "utf-8")


def without(path: Path, count: int, kind: str = "PER") -> list[str]:
    """Take the last lines of this kind out of an MSSanté file; the addresses that were in them."""
    lines = path.read_text("utf-8").splitlines(keepends=True)
    gone = [line for line in lines if line.startswith(kind)][-count:]
    path.write_text("".join(line for line in lines if line not in gone), "utf-8")
    return [line.split("|")[1] for line in gone]


def redated(files: ExtractionFiles, moment: datetime) -> ExtractionFiles:
    """The same files under the name of another moment."""

    def moved(path: Path) -> Path:
        return path.rename(path.with_name(f"{path.stem.rpartition('_')[0]}_{moment:%Y%m%d%H%M}.txt"))

    return replace(
        files,
        mssante=moved(files.mssante),
        practice=moved(files.practice),
        savoir_faire=moved(files.savoir_faire),
        diplomes=moved(files.diplomes),
    )
