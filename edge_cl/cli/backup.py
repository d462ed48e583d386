"""``edge-cl backup`` and ``edge-cl restore``: all that a device has learned, as one file."""

from __future__ import annotations

import time
from pathlib import Path

import click

from edge_cl.cli.device import state_option
from edge_cl.state.backup import back_up, merge_backup, restore_backup
from edge_cl.upgrade.slots import active_state


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@state_option
def backup(file: Path, state_dir: Path) -> None:
    """Write all that a device has learned to FILE; it may run meanwhile."""
    nbytes = back_up(active_state(state_dir), file, at_s=round(time.time(), 3))
    click.echo(f"{file}: {nbytes:,} bytes")


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--merge", is_flag=True, help="Keep what this device knows and teach it the backup's labels, too."
)
@state_option
def restore(file: Path, merge: bool, state_dir: Path) -> None:
    """Put back what a backup holds, or merge it; the device must be stopped."""
    at_s = round(time.time(), 3)
    if not merge:
        kept = restore_backup(active_state(state_dir), file, at_s=at_s)
        click.echo(f"{state_dir}: restored" + (f"; what it knew before is in {kept}" if kept else ""))
        return
    merged = merge_backup(active_state(state_dir), file, at_s=at_s)
    click.echo(
        f"{merged.n_new:,} labels of device {merged.uid[:8]} taken in, {merged.n_known:,} were known; "
        "they are learned at the next start"
    )
    if merged.first_seq > 1:
        click.echo(
            f"its history begins at entry {merged.first_seq:,}: what it learned before is not in this merge"
        )
