"""``edge-cl data``: recordings of real sensors, here and at their publishers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from edge_cl.datasets.fetch import OnBytes, fetch_all
from edge_cl.datasets.places import KNOWN, cache_folder, find
from edge_cl.datasets.spsw_har import BASE_URL, convert, remote_files


@click.group()
def data() -> None:
    """Recordings of real sensors: what is here, what can be had."""


@data.command("list")
def list_() -> None:
    """Show the known data sets and where they are.

    Your own recordings work too: an .npz with signal, y, offsets, class_names, rec_subject and
    t_ms or rate_hz (`python -m pydoc edge_cl.datasets.recordings`).
    """
    for known in KNOWN:
        path = find(known.file)
        where = f"{path} ({path.stat().st_size:,} bytes)" if path else f"not here; {known.how_to_get}"
        click.echo(f"{known.name:<10}{known.what}\n{'':<10}scenario {known.scenario}; {where}")


@data.command()
@click.argument("name", type=click.Choice(["spsw-har"]))
@click.option(
    "--to", "folder", type=click.Path(path_type=Path, file_okay=False), help="Folder for the files."
)
@click.option("--base-url", default=BASE_URL, help="Where the publisher's DATA folder is.")
def get(name: str, folder: Path | None, base_url: str) -> None:
    """Download a data set from its publisher, check every file, and convert it.

    Interrupted? Run it again: it continues where it stopped.
    """
    folder = folder or cache_folder()
    files = remote_files()
    with _progress(sum(file.size_bytes for file in files)) as on_bytes:
        fetch_all(files, base_url, folder / name, on_bytes=on_bytes)
    out = folder / "spsw_har.npz"
    click.echo(f"converting {len(files)} files")
    convert(folder / name, out)
    click.echo(f"{out} ({out.stat().st_size:,} bytes)")


@contextmanager
def _progress(total_bytes: int) -> Iterator[OnBytes]:
    try:
        from rich import progress as rich_progress
    except ImportError:
        with click.progressbar(length=total_bytes, label="downloading") as bar:
            yield bar.update
        return
    columns = (
        rich_progress.TextColumn("downloading"),
        rich_progress.BarColumn(),
        rich_progress.DownloadColumn(),
        rich_progress.TransferSpeedColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns) as shown:
        task = shown.add_task("", total=total_bytes)
        yield lambda n: shown.advance(task, n)
