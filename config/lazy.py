"""Groups of commands that are imported when one is called: who asks for the queue does not wait for S/MIME."""

from __future__ import annotations

import importlib

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
