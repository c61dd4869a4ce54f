"""How a command about the directory is answered: by the running gateway, or with `--config` by this process itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from config.control import ControlError, ask


def ask_directory(state: Path, config: Path | None, call: str, seconds: float = 30.0, **arguments: Any) -> Any:
    """The answer to one call of `config.directory_answers`. Raises `ControlError`, whose text is for the terminal."""
    if config is None:
        path = state / "control.sock"
        if not path.exists():
            from config.demonstration import OPERATORS

            path = state / next(operator.key for operator in OPERATORS if operator.dossier) / path.name
        return ask(path, call, seconds, **arguments)
    from config.directory_answers import DirectoryAnswers
    from config.directory_service import open_directory, open_register, open_writer
    from config.settings import SettingsError, load
    from trust.refusals import Refused

    try:
        loaded = load(config)
        directory = open_directory(loaded)
        answers = DirectoryAnswers(
            directory,
            loaded.settings.directory.base,
            None,
            lambda: open_writer(loaded),
            lambda: open_register(loaded),
        )
        try:
            answer = answers.calls()[call](arguments)
        finally:
            directory.close()
    except SettingsError as error:
        raise ControlError(str(error)) from None
    if isinstance(answer, Refused):
        raise ControlError(f"{answer.refusal.text} ({answer.detail})" if answer.detail else answer.refusal.text)
    return answer


def no_answer(sentence: str) -> NoReturn:
    """Say why there is no answer, and end with exit status 1."""
    click.echo(sentence, err=True)
    sys.exit(1)
