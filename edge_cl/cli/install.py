"""``edge-cl install``: another bundle for a device, with a way back."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import click
import msgspec

from edge_cl.cli.device import state_option
from edge_cl.errors import DeviceNotRunning, StateError, SyncError
from edge_cl.sync.control import SOCKET_NAME, Request, ask

ASK_S = 90.0
UNSEEN = "no such file", os.strerror(errno.EACCES)
"""What a device says of a file that it cannot see."""


@click.command()
@click.argument("bundle", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--undo", is_flag=True, help="Go back to the bundle before, or end an installation.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="EDGE_CL_CONFIG",
    help="For a stopped device: its settings.",
)
@state_option
def install(bundle: Path | None, undo: bool, config: Path | None, state_dir: Path) -> None:
    """Let a device use BUNDLE from now on.

    A running device tries it beside the old one first. Labels it has learned are carried over where both have
    the same encoder; `edge-cl install --undo` goes back.
    """
    if (bundle is None) == (not undo):
        raise click.UsageError("give a BUNDLE to install, or --undo")
    try:
        if bundle is None:
            message = ask(state_dir / SOCKET_NAME, Request(op="undo-install"), timeout_s=ASK_S).message
        else:
            message = _ask(bundle, state_dir)
    except DeviceNotRunning:
        message = _undo_stopped(state_dir) if bundle is None else _install_stopped(bundle, state_dir, config)
    click.echo(message)


def _ask(bundle: Path, state_dir: Path) -> str:
    """Of a running device, which has to see the file itself: a service may see no home folder."""
    request = Request(op="install", file=str(bundle.resolve()))
    try:
        return ask(state_dir / SOCKET_NAME, request, timeout_s=ASK_S).message
    except DeviceNotRunning:
        raise
    except SyncError as error:
        if bundle.is_file() and any(said in str(error) for said in UNSEEN):
            raise SyncError(
                f"{error}: it is here, but the device does not see it. Put it where it does, and name that: "
                f"sudo install -m 644 {bundle} /var/lib/edge-cl/bundles/"
            ) from error
        raise


def _undo_stopped(state_dir: Path) -> str:
    from edge_cl.upgrade.delivery import report_of
    from edge_cl.upgrade.pointer import HOME
    from edge_cl.upgrade.slots import Slots

    with Slots(_existing(state_dir)) as slots:
        if (coming := slots.pointer.coming) is not None:
            report = report_of("failed", coming.release, coming.id, "a person ended it", coming.seen)
            slots.drop(msgspec.to_builtins(report))
            return f"bundle {coming.release.name} is not installed"
        if slots.pointer.active == HOME:
            raise StateError("no bundle was installed over the one that the device was started with")
        slots.roll_back("a person asked for it")
        return slots.said


def _install_stopped(bundle: Path, state_dir: Path, config: Path | None) -> str:
    """Stage, self-test, carry over, commit; what a shadow would have shown, the probation shows."""
    from edge_cl.bundle import Bundle
    from edge_cl.config import Settings, load_settings
    from edge_cl.device import Device
    from edge_cl.release import release_of
    from edge_cl.sync.messages import CHUNK_BYTES
    from edge_cl.upgrade.slots import Slots

    settings = load_settings(config) if config else Settings()
    release = release_of(bundle, chunk_bytes=CHUNK_BYTES)
    with Slots(_existing(state_dir)) as slots:
        if not slots.pointer.home_path:
            raise StateError(f"{state_dir}: nobody knows its bundle yet; start edge-cl run with it once")
        place = slots.place(slots.pointer.active)
        with Device(slots, Bundle.load(place.bundle), place, settings) as device:
            n_labels = device.upgrade.install_at_once(release, bundle)
    return f"bundle {release.name} is used from the next start on; it has learned {n_labels:,} labels"


def _existing(state_dir: Path) -> Path:
    if not state_dir.is_dir():
        raise StateError(f"{state_dir}: no such state folder; `edge-cl run` makes one")
    return state_dir
