"""What ``edge-cl export`` does: recordings in, one bundle file out."""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from edge_cl import heads
from edge_cl.budget import MIB
from edge_cl.bundle import Bundle
from edge_cl.datasets import recordings, scenarios
from edge_cl.datasets.recordings import Dataset
from edge_cl.datasets.scenarios import Scenario
from edge_cl.datasets.windows import windows
from edge_cl.errors import ConfigError
from edge_cl.manifest import HeadSpec
from edge_cl_export.encoders import triplets
from edge_cl_export.freeze import freeze, run_graph, spread
from edge_cl_export.optimisers import StepSettings
from edge_cl_export.pack import N_GOLDEN, Source, fit, held_out_metrics, pack, split_people
from edge_cl_export.plastic import Mlp
from edge_cl_export.sources import from_factory, from_onnx, from_program, imported
from edge_cl_export.split import split
from edge_cl_export.train import Progress as OnEpoch
from edge_cl_export.train import TrainSettings
from edge_cl_export.variants import Module, Windows, add_variants
from edge_cl_export.warm import PlasticHead


@dataclass(frozen=True, kw_only=True)
class Given:
    """The command's options, as given."""

    data: Path
    scenario: str | None
    train_people: str | None
    val_people: str | None
    device: str
    rate: float | None
    window: int | None
    hop: int | None
    train_hop: int | None
    epochs: int
    seed: int
    features: int
    exemplars: int
    rotate: bool
    model: str | None
    program: Path | None
    onnx: Path | None
    feature_output: str | None
    split_at: str | None
    head: str
    head_mb: float | None
    plastic_head: str | None
    loss: str | None
    optimiser: str | None
    lr: float | None
    tflite: bool
    variants: bool
    name: str | None
    out: Path


def run(**options: Any) -> None:
    """Train or take an encoder, freeze it, write the bundle, say how good it is."""
    given = Given(**options)
    if given.features < 4 or given.features % 4:
        raise ConfigError(f"--features is {given.features}; allowed: a multiple of 4")
    if not given.out.parent.is_dir():
        raise ConfigError(f"{given.out}: there is no folder {given.out.parent}; make it first")
    dataset = recordings.load(given.data)
    plan = _plan(given, dataset)
    source = _source(given, dataset, plan)
    click.echo(f"{len(source.X):,} windows of {len(np.unique(source.person))} people")
    bundle = _export(given, source, plan.validation_people)
    _report(bundle, given.out)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Encoder:
    """A frozen encoder: its graph, the torch module behind it if there is one, and what to say of it.

    `shape` is its feature's, empty when that is flat.
    """

    graph: bytes
    module: Module | None
    shape: tuple[int, ...] = ()
    metrics: dict[str, Any]
    provenance: dict[str, Any]


def _export(given: Given, source: Source, validation_people: frozenset[int]) -> Bundle:
    n_classes = len(source.class_names)
    train, validation = split_people(source, validation_people)
    encoder = _foreign(given, source, train, validation)
    if encoder is None:
        head = _plastic_head(given, ()) or _head(given, given.features, n_classes)
        encoder = _trained(given, source, validation_people)
    else:
        n_features = run_graph(encoder.graph, source.X[:1]).shape[1]
        head = _plastic_head(given, encoder.shape) or _head(given, n_features, n_classes)
    bundle = pack(
        encoder.graph,
        source,
        given.out,
        metrics=encoder.metrics,
        exemplars=given.exemplars,
        head=head,
        seed=given.seed,
        provenance={"command": _command_line(), "data": _fingerprint(given.data), **encoder.provenance},
    )
    if not given.variants:
        return bundle
    click.echo("the same encoder in other forms…")
    return add_variants(
        given.out, encoder.module, Windows(calibration=train.X, X=validation.X, y=validation.y)
    )


def _trained(given: Given, source: Source, validation_people: frozenset[int]) -> _Encoder:
    settings = TrainSettings(
        feature_size=given.features,
        epochs=given.epochs,
        seed=given.seed,
        vectors=triplets(source.channels) if given.rotate else (),
    )
    with _progress() as progress:
        fitted = fit(source, validation_people, settings, progress=progress)
    return _Encoder(
        graph=freeze(fitted.encoder, spread(source.X, N_GOLDEN)),
        module=fitted.encoder,
        metrics=fitted.metrics,
        provenance=fitted.provenance,
    )


def _plastic_head(given: Given, feature_shape: tuple[int, ...]) -> PlasticHead | None:
    """What the device shall train, or None for a head that is no torch module."""
    asked = {
        "--split-at": given.split_at,
        "--plastic-head": given.plastic_head,
        "--loss": given.loss,
        "--optimiser": given.optimiser,
        "--lr": given.lr,
        "--tflite": given.tflite or None,
    }
    named = [option for option, value in asked.items() if value is not None]
    if given.head != "step" and not named:
        return None
    if given.head not in ("step", heads.DEFAULT):
        raise ConfigError(f"{', '.join(named)}: only for --head step; found --head {given.head}")
    if given.head_mb is not None:
        raise ConfigError(
            "--head-mb chooses among versions of a head; the size of step is that of your network"
        )
    return PlasticHead(
        factory=imported("--plastic-head", given.plastic_head) if given.plastic_head else Mlp,
        feature_shape=feature_shape,
        settings=StepSettings(
            loss=given.loss or "cross-entropy", optimiser=given.optimiser or "sgd", lr=given.lr or 0.0
        ),
        tflite=given.tflite,
    )


def _head(given: Given, n_features: int, n_classes: int) -> HeadSpec:
    """The head as asked for; within a number of bytes the largest version that fits, and what each costs."""
    if given.head_mb is None:
        return HeadSpec(name=given.head)
    max_bytes = int(given.head_mb * MIB)
    size = {"n_features": n_features, "n_classes": n_classes}
    chosen = heads.fit(given.head, max_bytes=max_bytes, **size)
    click.echo(f"head for {max_bytes:,} bytes, {n_features} features and {n_classes} classes:")
    for options in heads.versions(given.head):
        mark = "→" if options == chosen else " "
        needed = heads.needed_bytes(given.head, **size, **options)
        click.echo(f"  {mark} {needed:>12,} bytes  {_named(given.head, options)}")
    return HeadSpec(name=given.head, options=chosen)


def _named(head: str, options: dict[str, Any]) -> str:
    return ", ".join([head, *(f"{option} = {value}" for option, value in options.items())])


def people(text: str) -> frozenset[int]:
    """``1-3,7`` to {1, 2, 3, 7}."""
    found: set[int] = set()
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if ends is None:
            raise ConfigError(f"people are given as numbers and ranges like 1-12,20; found {text!r}")
        found.update(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
    return frozenset(found)


def _plan(given: Given, dataset: Dataset) -> Scenario:
    if given.scenario:
        if given.train_people or given.val_people or given.rate or given.window or given.hop:
            raise ConfigError("--scenario fixes people, rate, window and hop; leave those options out")
        return scenarios.get(given.scenario)
    if not given.train_people or not given.val_people:
        raise ConfigError("give --scenario, or both --train-people and --val-people (e.g. 1-12 and 13-15)")
    train, check = people(given.train_people), people(given.val_people)
    if train & check:
        raise ConfigError(f"people {sorted(train & check)} are in --train-people and in --val-people")
    rate_hz = given.rate or round(dataset.rate_hz)
    window = given.window or round(rate_hz)
    hop = given.hop or window
    return Scenario(
        name="custom",
        data=dataset.name,
        rate_hz=rate_hz,
        window_samples=window,
        hop_samples=hop,
        train_hop_samples=given.train_hop or hop,
        train_people=train,
        validation_people=check,
        stream_people=frozenset(),
        train_device=given.device,
    )


def _source(given: Given, dataset: Dataset, plan: Scenario) -> Source:
    for who in (plan.train_people, plan.validation_people):
        if not scenarios.select(dataset, who, plan.train_device):
            by = f" by {plan.train_device!r}" if plan.train_device else ""
            raise ConfigError(
                f"{given.data.name} has no recording{by} of people {sorted(who)}; "
                f"its people are {sorted({r.person for r in dataset.recordings})}"
            )
    cut = windows(
        scenarios.select(dataset, plan.train_people | plan.validation_people, plan.train_device),
        rate_hz=plan.rate_hz,
        window_samples=plan.window_samples,
        hop_samples=plan.train_hop_samples,
    )
    return Source(
        name=given.name or dataset.name.replace("_", "-"),
        X=cut.X,
        y=cut.y,
        person=cut.person,
        class_names=dataset.class_names,
        channels=dataset.channels,
        rate_hz=plan.rate_hz,
        hop_samples=plan.hop_samples,
    )


def _foreign(given: Given, source: Source, train: Source, validation: Source) -> _Encoder | None:
    """An encoder that somebody else made, None when one is to be trained here."""
    if sum(value is not None for value in (given.model, given.program, given.onnx)) > 1:
        raise ConfigError("give one of --model, --program and --onnx")
    if given.split_at and given.model is None:
        raise ConfigError("--split-at names a layer of --model; give that, too")
    examples, shape = spread(source.X, N_GOLDEN), ()
    module: Module | None = None
    if given.onnx is not None:
        if not given.feature_output:
            raise ConfigError("--onnx needs --feature-output, the name of the tensor to use as feature")
        graph = from_onnx(given.onnx, given.feature_output, examples)
    elif given.model is not None:
        module = from_factory(given.model)
        if given.split_at:
            module, shape = split(module, given.split_at, examples)
        graph = freeze(module, examples)
    elif given.program is not None:
        module = from_program(given.program)
        graph = freeze(module, examples)
    else:
        return None
    return _Encoder(
        graph=graph,
        module=module,
        shape=shape,
        metrics=held_out_metrics(graph, train, validation),
        provenance={"encoder": given.model or str((given.program or given.onnx or given.out).name)},
    )


def _fingerprint(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _command_line() -> str:
    # Folders say nothing to the reader of a bundle and differ between machines.
    words = [Path(word).name if "/" in word and Path(word).suffix else word for word in sys.argv[1:]]
    return shlex.join(["edge-cl", *(words if words[:1] == ["export"] else ["export", *words])])


@contextmanager
def _progress() -> Iterator[OnEpoch]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("training", total=None, text="")
        yield lambda done, total, text: bar.update(task, completed=done, total=total, text=text)


def _report(bundle: Bundle, out: Path) -> None:
    metrics = bundle.manifest.provenance["metrics"]
    rows = [
        ("bundle", f"{out} ({out.stat().st_size:,} bytes)"),
        ("head", _named(bundle.manifest.head.name, bundle.manifest.head.options)),
        ("feature", f"{bundle.manifest.feature_size} numbers per window"),
        ("accuracy, new people", f"{metrics['validation_accuracy']:.3f}"),
        ("… balanced by class", f"{metrics['validation_balanced_accuracy']:.3f}"),
    ]
    for variant in bundle.manifest.variants:
        size, report = bundle.manifest.members[variant.member].size, variant.report
        judged = f"{report.agreement:.2%} as float32, {-report.accuracy_loss_points:+.2f} points"
        rows.append((variant.member, f"{size:,} bytes, {judged}, {report.latency_ratio:g} of its time here"))
    for name, value in rows:
        click.echo(f"  {name:<22}{value}")
    for why in bundle.manifest.provenance.get("left_out", []):
        click.echo(f"  {why}")
