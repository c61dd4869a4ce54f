"""What an identity provider's section may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from config.oidc_service import OidcService
from config.settings import SettingsError, load
from tests.config.test_keys_command import CONFIGURATION

PSC = "https://psc.example/realms/esante-wallet"


def service(root: Path, **section: Any) -> OidcService:
    lines = [f"{name} = {value!r}" for name, value in ({"audiences": ["relais"]} | section).items()]
    (root / "relais.toml").write_text(CONFIGURATION.format(keys="") + "\n[[oidc]]\n" + "\n".join(lines))
    return OidcService(load(root / "relais.toml"), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "section",
    [
        {"issuer": PSC},
        {"issuer": PSC, "jwks_uri": "https://keys.psc.example/certs"},
        {"issuer": "http://127.0.0.1:8080/realm", "internal_hosts": ["127.0.0.1:8080"]},
        {"issuer": "http://keycloak/realm", "internal_hosts": ["keycloak"]},
    ],
)
def test_a_provider_that_may_be_asked(tmp_path: Path, section: dict[str, Any]) -> None:
    assert service(tmp_path, **section)


@pytest.mark.parametrize(
    "section",
    [
        {"issuer": "http://psc.example/realm"},
        {"issuer": PSC, "jwks_uri": "http://psc.example/certs"},
        {"issuer": PSC, "jwks_uri": "file:///etc/passwd", "internal_hosts": [""]},
        {"issuer": "psc.example"},
        {"issuer": "https://[::1"},
        {"issuer": "https:///realm"},
        {"issuer": "http://elsewhere.example", "internal_hosts": ["keycloak"]},
        {"issuer": PSC, "audiences": []},
        {"issuer": PSC, "algorithms": ["HS256"]},
        {"issuer": PSC, "ca": "absent.pem"},
    ],
)
def test_a_provider_whose_keys_somebody_else_could_choose(tmp_path: Path, section: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="oidc"):
        service(tmp_path, **section)
