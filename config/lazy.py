"""Groups of commands that are imported when one is called: who asks for the queue does not wait for S/MIME."""

from __future__ import annotations

import importlib
from typing import Any

import click


class LazyGroup(click.Group):
    """Stands for the group `name` in `module`, which must have neither options nor work of its own."""

    def __init__(self, name: str, module: str, text: str) -> None:
        """`text`: how the group's own help begins, for the list of commands."""
        super().__init__(name, help=text)
        self._module = module

    def list_commands(self, ctx: click.Context) -> list[str]:
        return self.own_group().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return self.own_group().get_command(ctx, cmd_name)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.own_group().format_help_text(ctx, formatter)

    def own_group(self) -> click.Group:
        """The group itself; imports its module."""
        group = getattr(importlib.import_module(self._module), str(self.name))
        if not isinstance(group, click.Group):
            raise TypeError(f"{self._module}.{self.name} is no group")
        return group


class LazyCommand(click.Command):
    """Stands for the command, or the group with work of its own, `name` in `module`."""

    def __init__(self, name: str, module: str, text: str) -> None:
        """`text`: how the command's own help begins, for the list of commands."""
        super().__init__(name, help=text)
        self._module = module

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Of the command itself, which then does all the rest; imports its module."""
        command = getattr(importlib.import_module(self._module), str(self.name))
        if not isinstance(command, click.Command):
            raise TypeError(f"{self._module}.{self.name} is no command")
        return command.make_context(info_name, args, parent, **extra)
