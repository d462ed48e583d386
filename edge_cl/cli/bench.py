"""``edge-cl bench``: measurements that come with the package."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np

from edge_cl import heads
from edge_cl.datasets.scenarios import SCENARIOS
from edge_cl.datasets.streams import ROWS, Stream, find_streams
from edge_cl.errors import ConfigError
from edge_cl.simulate import bars, peers
from edge_cl.simulate.streams import Labelling, no_change
from edge_cl.simulate.trials import ACCURACIES, HEADS, Trial, is_seeded, mean_of_seeds, run_trials, takes
from edge_cl.simulate.verdicts import PACE, summary, verdict

SHORT = {"ever_sorted": "sorted"}
FILE = click.Path(path_type=Path, dir_okay=False)
COUNT = click.IntRange(min=1)


@click.group()
def bench() -> None:
    """Measure heads on labelled feature streams."""


@bench.command()
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of .npz with X and y, or fsdd_audio_8k.npz.",
)
@click.option(
    "--bundle", "bundles", multiple=True, type=FILE, help="Its encoder's features of its stream people too."
)
@click.option("--scenario", type=click.Choice(list(SCENARIOS)), help="Of bundles that do not tell theirs.")
@click.option("--stream", "only", multiple=True, help="Only the stream of this name.")
@click.option("--head", "names", multiple=True, type=click.Choice(list(HEADS)), help="Default: every head.")
@click.option(
    "--option", "options", multiple=True, help="Of the heads that have it: NAME=VALUE, as replay=2."
)
@click.option("--no-heads", is_flag=True, help="Measure peers alone.")
@click.option(
    "--peers", "all_peers", is_flag=True, help="River's and scikit-learn's learners, Deep SLDA too."
)
@click.option(
    "--peer", "peer_names", multiple=True, type=click.Choice(list(peers.PEERS)), help="Only this peer."
)
@click.option("--rows", default=ROWS, show_default=True, type=COUNT, help="Rows used of each stream.")
@click.option(
    "--skip", default=0, type=click.IntRange(min=0), help="Rows of each stream dropped before them."
)
@click.option("--seeds", default=1, show_default=True, type=COUNT, help="Mean over seeds 0 to N-1.")
@click.option(
    "--label-noise", default=0.0, type=click.FloatRange(0, 1), help="Share of labels taught that are wrong."
)
@click.option("--label-every", default=1, type=COUNT, help="Teach one sample of every N, at a random place.")
@click.option("--jobs", default=1, show_default=True, type=COUNT, help="Processes; more disturb the timing.")
@click.option("--json", "json_file", type=FILE, help="Write the figures to a file.")
@click.option("--picture", type=FILE, help="Draw the figures into an SVG file.")
def streams(
    data: Path,
    bundles: tuple[Path, ...],
    scenario: str | None,
    only: tuple[str, ...],
    json_file: Path | None,
    picture: Path | None,
    **how: Any,
) -> None:
    """Accuracy now (labels at once, 50 late) and ever (in order, sorted by class) of every head.

    A fifth of each stream is held out and never learned; "ever" is class-balanced accuracy on it. Every
    learner starts cold. What has no seed runs once; wrong and missing labels are the same for all.
    """
    for path in (json_file, picture):
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"{path}: there is no folder {path.parent}; make it first")
    if picture:
        bars.require_matplotlib()  # before the measuring, not after it
    learners = _learners(how)
    found = list(
        find_streams(data, bundles, scenario=scenario, only=only, rows=how["rows"], skip=how["skip"])
    )
    figures: dict[str, Any] = {
        "versions": _versions() | (peers.versions() if learners["peers"] else {}),
        **{
            name: how[name]
            for name in ("rows", "skip", "seeds", "label_noise", "label_every", "options", "jobs")
        },
        "streams": {},
    }
    for name, of_stream in _measure(found, learners, how):
        figures["streams"][name] = of_stream
        if learners["peers"]:
            figures["summary"] = summary(figures["streams"])
        if json_file:  # after every stream: the next may take an hour
            json_file.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2))
    if learners["peers"]:
        _print_summary(figures["summary"])
    if picture:
        picture.write_text(bars.bar_picture(figures["streams"]), encoding="utf-8")


def _learners(how: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names by kind."""
    chosen = {
        "heads": [] if how["no_heads"] else list(dict.fromkeys(how["names"])) or list(HEADS),
        "peers": list(dict.fromkeys(how["peer_names"])) or (list(peers.PEERS) if how["all_peers"] else []),
    }
    if how["no_heads"] and how["names"]:
        raise ConfigError("--no-heads and --head contradict each other; leave one out")
    if chosen["peers"]:
        peers.require()
    elif how["no_heads"]:
        raise ConfigError("--no-heads leaves nothing to measure; add --peers or --peer NAME")
    return chosen


def _measure(
    found: list[Stream], learners: dict[str, list[str]], how: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each stream's name and figures; prints each line when it is known."""
    labelling = Labelling(noise=how["label_noise"], every=how["label_every"])
    seeds = {
        name: range(how["seeds"] if is_seeded(name) else 1) for kind in learners for name in learners[kind]
    }
    options = {name: _options(name, how["options"]) for name in seeds}
    trials = [
        Trial(s, name, seed, labelling, options[name])
        for s in found
        for name in seeds
        for seed in seeds[name]
    ]
    results = run_trials(trials, how["jobs"])
    for stream in found:
        floor = no_change(stream)
        click.echo(
            f"{stream.name}  {len(stream.y):,} × {stream.X.shape[1]}, repeating the last label {floor:.1%}"
        )
        of_stream: dict[str, Any] = {"no_change": floor}
        for kind, names in learners.items():
            of_stream[kind] = {}
            for name in names:
                of_stream[kind][name] = mean_of_seeds([next(results) for _ in seeds[name]])
                click.echo(_row(name, of_stream[kind][name]))
        if learners["peers"]:
            of_stream["verdict"] = verdict(of_stream)
            click.echo("\n".join(_verdict_lines(of_stream["verdict"])))
        yield stream.name, of_stream


def _options(learner: str, texts: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    """The options that a head has, of NAME=VALUE with a JSON value."""
    given = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not any(takes(head, name) for head in HEADS):
            raise ConfigError(f"--option {text}: no head has an option {name!r}; see docs of edge_cl.heads")
        try:
            given[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            given[name] = value
    return tuple((name, value) for name, value in given.items() if learner in HEADS and takes(learner, name))


def _row(name: str, result: Mapping[str, Any]) -> str:
    drawn = "  ".join(f"{_short(m)} {_bar(result[m])} {result[m]:6.1%}" for m in ACCURACIES)
    return f"  {name:13s} {drawn}  {result['us_per_step']:6,.0f} µs  {result['nbytes'] / 2**20:5.1f} MiB"


def _verdict_lines(verdicts: Mapping[str, Any]) -> Iterator[str]:
    for measure, found in verdicts.items():
        line = f"  best peer {_short(measure):6s} {found['peer']:6.1%} {found['best_peer']:13s}"
        if "head" in found:
            word = "at or above" if found["at_or_above"] else "below"
            line += f" {heads.DEFAULT} {found['head']:6.1%}: {word} ({found['head'] - found['peer']:+.1%})"
        yield line.rstrip()


def _print_summary(figures: Mapping[str, Any]) -> None:
    click.echo("mean over the streams")
    for by_name in figures["mean"].values():
        for name, mean in by_name.items():
            speed = figures["speed"].get(name)
            pace = f"  {speed:5.1f} × as fast as {PACE}" if speed else ""
            click.echo(f"  {name:13s} " + "  ".join(f"{_short(m)} {mean[m]:6.1%}" for m in ACCURACIES) + pace)
    if figures["cells"]:
        won = f"{figures['at_or_above']} of {figures['cells']} cells"
        click.echo(f"{heads.DEFAULT} is at or above the best peer in {won}")


def _short(measure: str) -> str:
    return SHORT.get(measure, measure)


def _bar(value: float, width: int = 8) -> str:
    full = round(value * width)
    return "█" * full + "░" * (width - full)


def _versions() -> dict[str, str]:
    return {
        "edge-cl": importlib.metadata.version("edge-cl"),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
