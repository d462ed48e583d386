"""``edge-cl heads``: which head fits, and what each is good at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edge_cl import heads as all_heads
from edge_cl.budget import MIB
from edge_cl.bundle import Bundle
from edge_cl.heads import HEADS, STANDALONE
from edge_cl.heads.program import StepProgram
from edge_cl.shares import head_share

ABOUT = {
    "dual": ("today and last month", "Zhuang et al. 2022, ACIL; Van Vaerenbergh et al. 2006"),
    "slda": ("remembering; small; exact merge", "Hayes & Kanan 2020, Deep SLDA"),
    "kalman": ("uncertainty; exact merge", "Titsias et al. 2024, Kalman filter for online classification"),
    "prototype": ("the smallest boards; recurring forms", "Mensink et al. 2013; Hastie & Tibshirani 1996"),
    "logistic": ("sure answers", "Amari 1998; Böhning 1992"),
    "knn": ("classes of any shape; forgets one", "Beringer & Hüllermeier 2007"),
    "step": ("your own torch head, trained asleep", "docs/training-on-device.md"),
}
SHOWN: tuple[tuple[str, dict[str, Any]], ...] = (
    ("dual", {}),
    ("dual", all_heads.LEAN),
    *((name, {}) for name in STANDALONE if name != "dual"),
)


@click.command()
@click.option("--features", type=click.IntRange(1), help="Length of a feature vector.  [default: 128]")
@click.option("--classes", type=click.IntRange(0), help="Number of classes.  [default: 10]")
@click.option(
    "--bundle", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Take both from a bundle."
)
@click.option(
    "--budget-mb", type=click.FloatRange(min=0), help="Mark what a device with budget.ram_mb holds."
)
def heads(features: int | None, classes: int | None, bundle: Path | None, budget_mb: float | None) -> None:
    """What each head holds, can do and is good at.

    Bytes are those of a new head on a device, whose replay memory is counted on its own. In a budget
    a head counts twice, since a sleep works on a copy. "dual, lean" is dual with half the lifted features
    and a constant gate: lift = 512, window = 128, anchors = 0. "step" trains the network that a bundle
    carries; it is listed with --bundle where there is one.
    """
    if bundle and (features or classes is not None):
        raise click.UsageError("--bundle says features and classes; leave out --features and --classes")
    n_features, n_classes = features or 128, 10 if classes is None else classes
    shown = list(SHOWN)
    if bundle:
        loaded = Bundle.load(bundle)
        n_features, n_classes = loaded.manifest.feature_size, len(loaded.manifest.class_names)
        if loaded.manifest.plastic is not None:
            shown.append(("step", {"program": StepProgram.load(loaded)}))
    share = None if budget_mb is None else head_share(int(budget_mb * MIB), n_features)
    click.echo(f"{n_features} features, {n_classes} classes")
    click.echo(_line("head", "bytes", "can", "good at", "source", "fits" if share is not None else ""))
    for name, options in shown:
        on_device = all_heads.device_options(name, options)
        size = all_heads.needed_bytes(name, n_features=n_features, n_classes=n_classes, **on_device)
        title = f"{name}, lean" if name == "dual" and options else name
        fits = "" if share is None else "yes" if size <= share else "no"
        click.echo(_line(title, f"{size:,}", _can(name), *ABOUT[name], fits))


def _can(name: str) -> str:
    head = HEADS[name]
    abilities = {
        "merge": head.can_merge,
        "forget": head.can_forget,
        "rehearse": head.gains_by_rehearsal,
        "explain": head.can_explain,
    }
    return " ".join(ability if able else "-" * len(ability) for ability, able in abilities.items())


def _line(head: str, size: str, can: str, good_at: str, source: str, fits: str) -> str:
    return f"  {fits:5s}{head:15s}{size:>12s}  {can:30s}  {good_at:37s}{source}".rstrip()
