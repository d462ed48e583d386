"""``edge-cl fleet``: the commands of the server, each imported only when it is called."""

from __future__ import annotations

import importlib

import click

_COMMANDS = {
    "abort": "edge_cl_fleet.rolling:abort",
    "add": "edge_cl_fleet.releasing:add_",
    "bundles": "edge_cl_fleet.releasing:bundles",
    "commands": "edge_cl_fleet.asking:commands_",
    "devices": "edge_cl_fleet.showing:devices",
    "events": "edge_cl_fleet.showing:events",
    "export-csv": "edge_cl_fleet.showing:export_csv",
    "group": "edge_cl_fleet.showing:group",
    "keygen": "edge_cl_fleet.asking:keygen",
    "merge": "edge_cl_fleet.merging:merge",
    "pause": "edge_cl_fleet.rolling:pause",
    "resume": "edge_cl_fleet.rolling:resume",
    "rollout": "edge_cl_fleet.rolling:rollout",
    "rollouts": "edge_cl_fleet.rolling:rollouts",
    "serve": "edge_cl_fleet.serving:serve",
    "show": "edge_cl_fleet.showing:show",
    "show-rollout": "edge_cl_fleet.rolling:show_rollout",
    "tell": "edge_cl_fleet.asking:tell",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name].partition(":")
        try:
            command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise click.ClickException(
                f"the fleet server needs the package {error.name}, which is not installed; "
                "`pip install 'edge-cl[fleet]'`"
            ) from error
        return command if isinstance(command, click.Command) else None


@click.group(cls=_LazyGroup)
def fleet() -> None:
    """Collect what devices send over MQTT, see how they do, give them orders."""
