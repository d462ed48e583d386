"""One binary, ``edge-cl``, one file per group of commands.

A command is imported only when it is called, so that ``edge-cl run`` on a board never pays
for what ``edge-cl simulate`` needs. Other packages add commands through the entry point group
``edge_cl.commands`` (the exporter adds ``export``).
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

import click

from edge_cl.errors import EdgeCLError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

_COMMANDS = {
    "backup": "edge_cl.cli.backup:backup",
    "bench": "edge_cl.cli.bench:bench",
    "data": "edge_cl.cli.data:data",
    "forget": "edge_cl.cli.past:forget",
    "heads": "edge_cl.cli.heads:heads",
    "history": "edge_cl.cli.past:history",
    "install": "edge_cl.cli.install:install",
    "label": "edge_cl.cli.device:label",
    "merge-classes": "edge_cl.cli.past:merge_classes",
    "rename-class": "edge_cl.cli.past:rename_class",
    "restore": "edge_cl.cli.backup:restore",
    "review": "edge_cl.cli.past:review",
    "rollback": "edge_cl.cli.past:rollback",
    "run": "edge_cl.cli.run:run",
    "sleep": "edge_cl.cli.sleep:sleep",
    "simulate": "edge_cl.cli.simulate:simulate",
    "status": "edge_cl.cli.device:status",
    "verify": "edge_cl.cli.verify:verify",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*_COMMANDS, *(point.name for point in _plugins())})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _COMMANDS:
            module, _, attribute = _COMMANDS[cmd_name].partition(":")
            command = getattr(importlib.import_module(module), attribute)
            return command if isinstance(command, click.Command) else None
        for point in _plugins():
            if point.name == cmd_name:
                command = point.load()
                return command if isinstance(command, click.Command) else None
        return None


def _plugins() -> EntryPoints:
    from importlib.metadata import entry_points  # only here: edge-cl run needs no plugin

    return entry_points(group="edge_cl.commands")


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edge-cl")
def cli() -> None:
    """A model on a small board that keeps learning after it is deployed."""


def main() -> None:
    """Entry point of ``edge-cl``: the one place that turns errors into messages."""
    try:
        code = cli.main(standalone_mode=False)  # a command's Exit(code) comes back as its value
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except EdgeCLError as error:
        click.echo(f"edge-cl: {error}", err=True)
        sys.exit(1)
    except PermissionError as error:
        click.echo(f"edge-cl: {error}: of another user? put sudo before the command", err=True)
        sys.exit(1)
