"""The configuration file: documented, checked, overridable, and clear about what is wrong."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from config.settings import Settings, SettingsError, load

REFERENCE = Path(__file__).parents[2] / "config" / "relais.toml"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "relais.toml"
    path.write_text(text)
    return path


def test_the_reference_is_understood() -> None:
    loaded = load(REFERENCE, {})
    assert loaded.settings.operator.domains == ("labo-tilleuls.mssante.fr",)
    assert loaded.settings.identity.environment == "production"
    assert loaded.path("anchors.pem") == REFERENCE.parent / "anchors.pem"


def test_every_key_stands_in_the_reference() -> None:
    """A key nobody can find in the file is a key nobody can use."""
    text = REFERENCE.read_text()
    for section in msgspec.structs.fields(Settings):
        if section.name == "connect":  # a connector's file is another one: config/connect.toml
            continue
        kind = section.type
        for option in (kind, *getattr(kind, "__args__", ())):
            if isinstance(option, type) and issubclass(option, msgspec.Struct):
                for key in msgspec.structs.fields(option):
                    assert f"\n{key.name} = " in text, f"{section.name}.{key.name}"


@pytest.mark.parametrize(
    ("wrong", "right", "names"),
    [
        ("port = 25\n", "port = 70000\n", "port"),
        ('environment = "production"', 'environment = "prod"', "environment"),
        ("first_retry_seconds", "frist_retry_seconds", "frist_retry_seconds"),
        ('domains = ["labo-tilleuls.mssante.fr"]', 'domains = ["Labo Tilleuls"]', "domains"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, wrong: str, right: str, names: str) -> None:
    text = REFERENCE.read_text()
    assert wrong in text
    with pytest.raises(SettingsError, match=names):
        load(write(tmp_path, text.replace(wrong, right)), {})


def test_a_missing_and_a_broken_file_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load(tmp_path / "absent.toml", {})
    with pytest.raises(SettingsError, match="not valid TOML"):
        load(write(tmp_path, "[operator\n"), {})


def test_the_environment_overrides_a_key() -> None:
    loaded = load(REFERENCE, {"RELAIS_SPOOL__CONCURRENCY": "3", "RELAIS_DOSSIER__ENABLED": "true", "OTHER": "x"})
    assert loaded.settings.spool.concurrency == 3
    assert loaded.settings.dossier.enabled is True
    with pytest.raises(SettingsError, match="spool"):
        load(REFERENCE, {"RELAIS_SPOOL__CONCURRENCY": "many"})


def test_collected_mailboxes_have_names_of_their_own(tmp_path: Path) -> None:
    text = REFERENCE.read_text()
    section = "[[collect]]" + text.partition("\n[[collect]]")[2].partition("\n\n")[0]
    assert "password_file" in section
    with pytest.raises(SettingsError, match="same name"):
        load(write(tmp_path, f"{text}\n{section}\n"), {})
