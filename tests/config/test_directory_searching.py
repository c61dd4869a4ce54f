"""`relais directory search`: asked of a directory itself, without a running gateway."""

from __future__ import annotations

import json
from pathlib import Path

from tests.config.test_directory_resolving import configured, run
from tests.config.test_directory_resolving import held as held
from tests.directory.conftest import DOCTOR, HIDDEN, Server
from tests.directory.conftest import server_files as server_files


def test_people_are_found_by_words(held: Server, tmp_path: Path) -> None:
    config = configured(held, tmp_path)
    found = run("search", "--config", config, "FONTAINE", "demonstration")
    assert found.exit_code == 0 and f"Dr Claire FONTAINE <{DOCTOR}>" in found.output
    answer = json.loads(run("search", "--config", config, "--json", "clai fontaine").stdout)
    assert [one["address"] for one in answer["found"]] == [DOCTOR]
    assert (answer["total"], answer["page"], answer["more"]) == (1, 1, False)


def test_nobody_and_the_red_list(held: Server, tmp_path: Path) -> None:
    config = configured(held, tmp_path)
    for words in ("hidden", HIDDEN, "zzzz"):
        nobody = run("search", "--config", config, words)
        assert nobody.exit_code == 1 and HIDDEN not in nobody.stdout and "Nobody was found" in nobody.output
    assert run("search", "--config", config, "--page", "7", "claire").exit_code == 1


def test_a_directory_that_is_down(held: Server, tmp_path: Path) -> None:
    config = configured(held, tmp_path, uri="ldaps://127.0.0.1:9")
    down = run("search", "--config", config, "claire")
    assert down.exit_code == 1 and "does not answer" in down.output
