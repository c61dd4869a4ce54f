"""`relais directory search`: people by a few words."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from bridges.plain import one_line
from config.control import ControlError
from config.directory_asking import ask_directory, no_answer
from config.options import CONFIG, JSON, STATE


@click.command("search")
@STATE
@CONFIG
@click.argument("words", nargs=-1, required=True)
@click.option("--page", type=click.IntRange(1), default=1, show_default=True)
@click.option("--size", type=click.IntRange(1, 100), default=20, show_default=True, help="Results on a page.")
@JSON
def search(state: Path, config: Path | None, words: tuple[str, ...], page: int, size: int, as_json: bool) -> None:
    """Find people by any words of name, profession, specialty, town and structure: "dupont cardio lyon".

    Accents and case play no part, words may be cut short. The best come first. Professionals without a mailbox are
    found by name. Mailboxes on the red list are never found. Exit status 1 when nobody was found.
    """
    try:
        answer = ask_directory(state, config, "directory.search", text=" ".join(words), page=page, size=size)
    except ControlError as error:
        no_answer(str(error))
    if as_json:
        click.echo(json.dumps(answer, indent=1, ensure_ascii=False))
    else:
        for one in answer["found"]:
            _print(one)
        _summary(answer)
    if not answer["found"]:
        sys.exit(1)


def _print(one: dict[str, Any]) -> None:
    place = ", ".join(filter(None, (one["organisation"], f"{one['postal_code']} {one['town']}".strip())))
    where = f"<{one_line(one['address'])}>" if one["address"] else "(no listed mailbox)"
    click.echo(f"{one_line(one['name'] or one['address'] or one['id_nat'])} {where}")
    for text in (one["profession"], place):
        if text:
            click.echo(f"    {one_line(text)}")


def _summary(answer: dict[str, Any]) -> None:
    total, page, size = answer["total"], answer["page"], answer["size"]
    if not total:
        sentence = "Nobody was found: check the spelling, or leave a word out."
    elif not answer["found"]:
        sentence = f"There is no page {page}: {total} results fill {-(-total // size)} pages."
    else:
        first = (page - 1) * size + 1
        sentence = f"{first} to {first + len(answer['found']) - 1} of {total} results."
        if answer["more"]:
            sentence += " There are more: add a word to tell them apart."
    click.echo(sentence, err=True)
