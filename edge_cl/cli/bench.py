"""``edge-cl bench``: measurements that come with the package."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np

from edge_cl import heads
from edge_cl.heads import Head
from edge_cl.simulate import bars, peers
from edge_cl.simulate.streams import HeadFactory, Stream, StreamResult, find_streams, no_change, run_stream


@click.group()
def bench() -> None:
    """Measure heads on labelled feature streams."""


@bench.command()
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, file_okay=False),
    help="Folder of .npz with X and y.",
)
@click.option(
    "--head", "names", multiple=True, type=click.Choice(list(heads.HEADS)), help="Default: every head."
)
@click.option("--rows", default=25_000, show_default=True, help="Use the first N rows of each stream.")
@click.option("--peers", "with_peers", is_flag=True, help="River's and scikit-learn's learners too.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to a file.")
@click.option("--picture", type=click.Path(path_type=Path), help="Draw the figures into an SVG file.")
def streams(
    data: str,
    names: tuple[str, ...],
    rows: int,
    with_peers: bool,
    json_file: Path | None,
    picture: Path | None,
) -> None:
    """Accuracy now (labels at once, 50 late) and ever (in order, sorted by class) of every head.

    A fifth of each stream is held out and never learned; "ever" is class-balanced accuracy on it.
    """
    if picture:
        bars.require_matplotlib()  # before the measuring, not after it
    makers: dict[str, dict[str, HeadFactory]] = {
        "heads": {name: _maker(name) for name in names or heads.HEADS},
        "peers": {**peers.peers()} if with_peers else {},
    }
    versions = _versions() | (peers.versions() if with_peers else {})
    figures: dict[str, Any] = {"versions": versions, "rows": rows, "streams": {}}
    for stream in find_streams(data, rows):
        figures["streams"][stream.name] = _measure(stream, makers)
    if json_file:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2))
    if picture:
        picture.write_text(bars.bar_picture(figures["streams"]), encoding="utf-8")


def _measure(stream: Stream, makers: dict[str, dict[str, HeadFactory]]) -> dict[str, Any]:
    floor = no_change(stream)
    click.echo(
        f"{stream.name}  {len(stream.y):,} × {stream.X.shape[1]}, repeating the last label {floor:.1%}"
    )
    figures: dict[str, Any] = {"no_change": floor}
    for kind, by_name in makers.items():
        figures[kind] = {}
        for name, maker in by_name.items():
            result = run_stream(stream, maker)
            click.echo(_row(name, result))
            figures[kind][name] = msgspec.to_builtins(result)
    return figures


def _maker(name: str) -> HeadFactory:
    def make(n_features: int, n_classes: int) -> Head:
        return heads.create(name, n_features=n_features, n_classes=n_classes)

    return make


def _row(name: str, result: StreamResult) -> str:
    cells = [result.now0, result.now50, result.ever, result.ever_sorted]
    labels = ["now0", "now50", "ever", "sorted"]
    drawn = "  ".join(
        f"{label} {_bar(value)} {value:6.1%}" for label, value in zip(labels, cells, strict=True)
    )
    return f"  {name:13s} {drawn}  {result.us_per_step:6,.0f} µs  {result.nbytes / 2**20:5.1f} MiB"


def _bar(value: float, width: int = 8) -> str:
    full = round(value * width)
    return "█" * full + "░" * (width - full)


def _versions() -> dict[str, str]:
    return {
        "edge-cl": importlib.metadata.version("edge-cl"),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
