"""``edge-cl fleet rollout``, ``rollouts``, ``show-rollout``, ``pause``, ``resume``, ``abort``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import click
import msgspec

from edge_cl.commands import Install
from edge_cl.errors import ConfigError
from edge_cl_fleet import progress
from edge_cl_fleet.asking import duration
from edge_cl_fleet.database import guarded
from edge_cl_fleet.progress import Member, Progress
from edge_cl_fleet.releases import find
from edge_cl_fleet.releasing import add_file
from edge_cl_fleet.rollouts import Rollouts, Terms
from edge_cl_fleet.showing import json_option, printable, store_option, table
from edge_cl_fleet.store import FleetStore
from edge_cl_fleet.waves import ENOUGH_TRUSTED, Wave


def _share(_ctx: click.Context, _option: click.Parameter, value: str) -> float:
    """Of 10% or 0.1: 0.1."""
    try:
        return float(value.strip().removesuffix("%")) / (100 if value.strip().endswith("%") else 1)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no share; write it as 10%") from None


def _steps(ctx: click.Context, option: click.Parameter, value: str) -> list[float]:
    return [_share(ctx, option, one) for one in value.split(",")]


@click.command()
@click.argument("bundle")
@click.option("--to", "group_name", required=True, metavar="GROUP", help="See `edge-cl fleet group`.")
@click.option("--steps", default="1%,5%,25%,100%", show_default=True, callback=_steps)
@click.option(
    "--abort-share", default="10%", show_default=True, callback=_share, metavar="SHARE",
    help="Stop when so many of a wave's settled devices failed or went back.",
)  # fmt: skip
@click.option(
    "--abort-after", default=0, metavar="N",
    help="Judge a wave once N of its devices are settled; 20, or all of a smaller one, if not given.",
)  # fmt: skip
@click.option(
    "--patience", "patience_s", default="24h", show_default=True, callback=duration, metavar="TIME",
    help="Wait no longer for a device that says nothing of it.",
)  # fmt: skip
@click.option("--undo", is_flag=True, help="When it is aborted, ask those that took it to go back.")
@click.option(
    "--key", type=click.Path(dir_okay=False, path_type=Path),
    help="Private key that devices allow `release`, when BUNDLE is a file.",
)  # fmt: skip
@click.option("--key-name", default="release", show_default=True, help="What devices call --key.")
@store_option
def rollout(  # noqa: PLR0913  one parameter per option
    bundle: str,
    group_name: str,
    steps: list[float],
    abort_share: float,
    abort_after: int,
    patience_s: float,
    undo: bool,
    key: Path | None,
    key_name: str,
    store_url: str,
) -> None:
    """Send BUNDLE to a group in waves; each begins when the one before went well.

    BUNDLE is a file (which --key signs), or one that `edge-cl fleet bundles` lists. Devices that join the
    group later are not included. A worker with a key (`edge-cl fleet serve --key FILE`) does it.
    """
    with _opened(store_url) as store:
        install = _install(store, bundle, key, key_name)
        terms = Terms(abort_share, abort_after, patience_s, undo)
        rollout_id = Rollouts(store.engine).start(install, group_name, steps, terms)
        begun = _progress(store, rollout_id)
        sizes = ", ".join(str(wave.n) for wave in begun.waves) or "no"
        click.echo(f"rollout {rollout_id[:8]} of {printable(begun.name)}: waves of {sizes} devices")
        if begun.n_already:
            click.echo(f"{begun.n_already} devices run it already")
        click.echo("devices that join the group from now on are not included")


@click.command()
@click.option("--limit", default=20, show_default=True, help="So many of the newest.")
@store_option
@json_option
def rollouts(limit: int, store_url: str, as_json: bool) -> None:
    """List rollouts, newest first."""
    with _opened(store_url) as store:
        found = progress.list_progress(store, time.time(), limit=limit)
    if as_json:
        click.echo(msgspec.json.encode(found))
    elif not found:
        click.echo("there was no rollout; `edge-cl fleet rollout BUNDLE --to GROUP` begins one")
    else:
        heads = ["id", "began", "bundle", "group", "state", "wave", "devices", "why"]
        click.echo("\n".join(table(heads, [_line(one) for one in found])))


@click.command("show-rollout")
@click.argument("rollout_id", metavar="ID")
@store_option
@json_option
def show_rollout(rollout_id: str, store_url: str, as_json: bool) -> None:
    """Show a rollout: its waves, its devices, how accurate the old and the new bundle were."""
    now_s = time.time()
    with _opened(store_url) as store:
        found = _progress(store, progress.find_rollout(store, rollout_id))
        devices = progress.members(store, found, now_s)
    if as_json:
        body = msgspec.to_builtins(found) | {"devices": [device._asdict() for device in devices]}
        click.echo(msgspec.json.encode(body))
        return
    click.echo(f"{printable(found.name)} to {printable(found.group_name)}: {found.state}")
    if found.reason:
        click.echo(printable(found.reason))
    for number, wave in enumerate(found.waves):
        click.echo(f"wave {number + 1}: {_states(wave) if number <= found.step else f'{wave.n} to come'}")
    click.echo(_compared(found))
    heads = ["device", "wave", "state", "old", "new", "labels", "runs it", "reason"]
    click.echo("\n".join(table(heads, [_device_line(found, device) for device in devices])))


@click.command()
@click.argument("rollout_id", metavar="ID")
@store_option
def pause(rollout_id: str, store_url: str) -> None:
    """Let rollout ID begin no further wave; the one under way goes on."""
    with _opened(store_url) as store:
        Rollouts(store.engine).pause(progress.find_rollout(store, rollout_id))
    click.echo(f"paused; `edge-cl fleet resume {rollout_id}` goes on")


@click.command()
@click.argument("rollout_id", metavar="ID")
@store_option
def resume(rollout_id: str, store_url: str) -> None:
    """Let rollout ID go on after a pause."""
    with _opened(store_url) as store:
        Rollouts(store.engine).resume(progress.find_rollout(store, rollout_id))
    click.echo("it goes on")


@click.command()
@click.argument("rollout_id", metavar="ID")
@click.option("--undo", is_flag=True, help="Ask those that took it to go back.")
@store_option
def abort(rollout_id: str, undo: bool, store_url: str) -> None:
    """End rollout ID. Devices that try the new bundle are asked to keep the old one."""
    with _opened(store_url) as store:
        found = progress.find_rollout(store, rollout_id)
        click.echo(printable(Rollouts(store.engine).abort(found, undo=undo or None)))


@contextmanager
def _opened(store_url: str) -> Iterator[FleetStore]:
    store = FleetStore(store_url, create=False)
    try:
        yield store
    finally:
        store.close()


def _install(store: FleetStore, bundle: str, key: Path | None, key_name: str) -> Install:
    if not Path(bundle).is_file():
        return find(store.engine, bundle)
    if key is None:
        raise ConfigError(f"{bundle} is a file: sign it with --key FILE (`edge-cl fleet keygen --releases`)")
    return add_file(store, Path(bundle), key, key_name)[1]


def _progress(store: FleetStore, rollout_id: str) -> Progress:
    with guarded(store.engine), store.reading.connect() as connection:
        return progress.progress_of(connection, rollout_id, time.time())


def _line(one: Progress) -> list[str]:
    began = datetime.fromtimestamp(one.started_s).strftime("%Y-%m-%d %H:%M")
    return [
        one.id[:8],
        began,
        printable(one.name),
        printable(one.group_name),
        one.state,
        f"{min(one.step + 1, len(one.waves))} of {len(one.waves)}",
        ", ".join(f"{n} {state}" for state, n in sorted(one.states.items())),
        printable(one.reason),
    ]


def _states(wave: Wave) -> str:
    said = ", ".join(f"{n} {state}" for state, n in sorted(wave.states.items()))
    return f"{said} ({wave.n_silent} silent)" if wave.n_silent else said


def _compared(found: Progress) -> str:
    compared = found.compared
    if not compared.n_devices:
        return f"no device had {ENOUGH_TRUSTED} trusted labels to compare old and new by"
    return (
        f"accuracy {compared.accuracy_old:.3f} with the old one, {compared.accuracy_new:.3f} with the new "
        f"({100 * compared.gained:+.1f} points): mean of {compared.n_devices} devices, "
        f"{compared.n_labels:,} trusted labels"
    )


def _device_line(found: Progress, device: Member) -> list[str]:
    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    return [
        device.name,
        str(device.wave + 1) if device.wave >= 0 else "",
        f"{device.state}, silent" if device.is_silent else device.state,
        share(device.accuracy_old),
        share(device.accuracy_new),
        str(device.n_trusted or ""),
        "yes" if device.runs == found.bundle_id else "no",
        printable(device.reason),
    ]
