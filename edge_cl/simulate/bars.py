"""The picture of ``edge-cl bench streams``: every learner's bars on every stream, as one SVG."""

from __future__ import annotations

import importlib
import io
from typing import Any

import numpy as np

from edge_cl.errors import ConfigError

MEASURES = {"now0": "now", "now50": "now, labels 50 late", "ever": "ever", "ever_sorted": "ever, sorted"}
_HEADS = ("#0b6e4f", "#35b08f", "#9bd9b5", "#1f5f8b", "#5aa0d0", "#b5d8ee", "#5b7f2b")
_PEERS = (
    "#7a2e1d",
    "#c65d3b",
    "#e9a063",
    "#f2cf8d",
    "#8a6d1f",
    "#6b4c86",
    "#b79ac8",
    "#5c5c5c",
    "#bdbdbd",
)
_WRITTEN = 4
"""So many learners or fewer have their figures written over their bars."""
_OVER_LINES = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
_HEIGHT_IN = 1.5
"""Of one stream's row."""


def bar_picture(streams: dict[str, Any]) -> str:
    """SVG text: a row per stream, a group per measure, a bar per learner; heads green and blue, peers not.

    Parameters
    ----------
    streams
        Stream name → ``no_change``, ``heads`` and ``peers``, the last two learner name → measures.
    """
    colours = _colours(streams)
    figure = _figure(len(streams))
    grid = figure.subplots(len(streams), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (name, found) in zip(grid, streams.items(), strict=True):
        learners = found["heads"] | found["peers"]
        width = 0.84 / len(learners)
        for k, (learner, result) in enumerate(learners.items()):
            at = np.arange(len(MEASURES)) + (k - (len(learners) - 1) / 2) * width
            heights = [100 * result[measure] for measure in MEASURES]
            axes.bar(at, heights, 0.92 * width, color=colours[learner])
            if len(learners) <= _WRITTEN:
                for x, height in zip(at, heights, strict=True):
                    axes.text(x, height + 3.5, f"{height:.0f}", ha="center", fontsize=8, bbox=_OVER_LINES)
        floor = 100 * found["no_change"]
        axes.plot([-0.46, 0.46], [floor, floor], color="black", lw=0.8, ls=(0, (4, 3)))
        axes.set_title(name, loc="left", fontsize=10)
        _style(axes)
    grid[-1].set_xticks(range(len(MEASURES)), list(MEASURES.values()))
    figure.legend(*_legend(colours), loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    return _svg(figure)


def require_matplotlib() -> None:
    """Raises ConfigError when it is not installed."""
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ConfigError(
            f"--picture needs matplotlib, which cannot be imported ({error}): "
            "`pip install 'edge-cl[simulate]'`, or leave --picture out"
        ) from error


def _figure(n_streams: int) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(9, 0.9 + _HEIGHT_IN * n_streams), layout="constrained", facecolor="white")


def _colours(streams: dict[str, Any]) -> dict[str, str]:
    colours: dict[str, str] = {}
    for kind, palette in (("heads", _HEADS), ("peers", _PEERS)):
        names = dict.fromkeys(name for found in streams.values() for name in found[kind])
        colours |= {name: palette[k % len(palette)] for k, name in enumerate(names)}
    return colours


def _legend(colours: dict[str, str]) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    floor = Line2D([], [], color="black", lw=0.8, ls=(0, (4, 3)))
    return [*(Patch(color=colour) for colour in colours.values()), floor], [
        *colours,
        "repeats the last label (now)",
    ]


def _style(axes: Any) -> None:
    axes.set(ylim=(0, 116), xlim=(-0.5, len(MEASURES) - 0.5), yticks=(0, 25, 50, 75, 100))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")
    axes.tick_params(labelsize=9, length=0)
    axes.grid(axis="y", alpha=0.25, lw=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")


def _svg(figure: Any) -> str:
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "streams", "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
