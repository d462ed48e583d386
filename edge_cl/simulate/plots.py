"""The report's plots, as SVG text that takes its ink from the page (light or dark)."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_cl.simulate.desktop import Run
from edge_cl.simulate.figures import hits, rolling

INK = "#123456"
LEARNING = "#654321"
FROZEN = "#abcdef"
_PAGE_COLOURS = {INK: "currentColor", LEARNING: "var(--learning)", FROZEN: "var(--frozen)"}
_HOLDERS = ("#4c9f8a", "#d99a5b", "#7f8fc9", "#c4768e", "#9aa65a", "#8b8b8b", "#5fa8c9")


def accuracy_plot(runs: Sequence[Run]) -> str:
    """Rolling accuracy of both devices over the stream, events and sleeps marked."""
    figure, axes = _axes(height=3.6)
    start = 0
    for run in runs:
        n, truth = len(run.frozen), run.scenario.truth
        at = start + np.arange(n)
        axes.plot(at, 100 * rolling(hits(truth, run.frozen)), color=FROZEN, lw=1.6)
        axes.plot(at, 100 * rolling(hits(truth, run.learning)), color=LEARNING, lw=2.2)
        for index, text in _marks(run, several=len(runs) > 1):
            axes.axvline(start + index, color=INK, lw=0.8, alpha=0.35, ls=(0, (3, 3)))
            axes.text(start + index, 104, " " + text, color=INK, fontsize=9, va="bottom", clip_on=False)
        slept = [start + index for index, _ in run.sleeps]
        axes.plot(slept, [3] * len(slept), "o", color=LEARNING, ms=4, alpha=0.8, clip_on=False)
        start += n
    axes.set(xlim=(0, start), ylim=(0, 103), xlabel="windows")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")
    return _svg(figure, "Rolling accuracy, learning and frozen")


def memory_plot(run: Run) -> str:
    """Kilobytes by holder along the stream of one device."""
    names = (
        [name for name, _ in sorted(run.held[-1][1].items(), key=lambda item: -item[1])] if run.held else []
    )
    figure, axes = _axes(height=2.8)
    at = [index for index, _ in run.held]
    levels = np.array([[held.get(name, 0) / 1000 for _, held in run.held] for name in names])
    if len(names):
        axes.stackplot(
            at, levels, labels=names, colors=[_HOLDERS[k % len(_HOLDERS)] for k in range(len(names))]
        )
        axes.set(xlim=(0, max(at)), ylim=(0, 1.25 * levels.sum(axis=0).max() + 1))
        legend = axes.legend(loc="upper left", ncols=3, frameon=False, fontsize=9)
        for text in legend.get_texts():
            text.set_color(INK)
    axes.set(xlabel="windows", ylabel="kB")
    return _svg(figure, "Memory by holder")


def _marks(run: Run, *, several: bool) -> list[tuple[int, str]]:
    if several:
        return [(0, run.scenario.name.rpartition("person ")[2])]
    return [(mark.index, mark.text) for mark in run.scenario.marks]


def _axes(*, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, height), layout="constrained")
    axes = figure.add_subplot()
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.grid(axis="y", color=INK, alpha=0.12)
    for side, spine in axes.spines.items():
        spine.set(color=INK, alpha=0.4, visible=side == "bottom")
    return figure, axes


def _svg(figure: Any, title: str) -> str:
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for sentinel, colour in _PAGE_COLOURS.items():
        text = text.replace(sentinel, colour)
    # the page's own size and font, and names that are unique on a page with two plots
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', rf'\1 role="img" aria-label="{title}"', text, count=1)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1; font-family: inherit", text)
    return re.sub(r'\bid="(figure|axes|patch|text|line2d|matplotlib|xtick|ytick)[^"]*"', "", text)
