"""Recordings as a bundle's encoder sees them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_cl import encoders
from edge_cl.bundle import Bundle
from edge_cl.datasets import places, recordings, scenarios
from edge_cl.datasets.recordings import Dataset
from edge_cl.datasets.scenarios import SCENARIOS, Scenario
from edge_cl.datasets.windows import windows
from edge_cl.errors import DataError
from edge_cl.manifest import Manifest
from edge_cl.records import FloatArray

BATCH = 256


def find_recordings(bundle: Path, folder: Path, scenario: str | None = None) -> tuple[Scenario, Path]:
    """The scenario a bundle was made for (or `scenario`), and its data: in `folder`, else the usual places.

    Raises
    ------
    DataError
        When the bundle does not say which data it was made from, or that is not here.
    BundleError
        When the bundle cannot be read.
    """
    plan = scenarios.get(scenario) if scenario else _made_for(bundle)
    file = f"{plan.data}.npz"
    data = folder / file if (folder / file).is_file() else places.find(file)
    if data is None:
        raise DataError(f"{bundle} needs {file}, which is not in {folder}; see `edge-cl data list`")
    return plan, data


def encode_stream(
    bundle: Path, plan: Scenario, data: Path
) -> tuple[FloatArray, NDArray[np.int64], NDArray[np.int64]]:
    """Features (n, D), classes (n,) and recordings (n,) of a scenario's stream people, in the file's order.

    Windows are cut as the bundle's manifest says.

    Raises
    ------
    DataError
        When the bundle is for other channels or classes, or was trained on people of the stream.
    """
    opened, dataset = Bundle.load(bundle), recordings.load(data)
    manifest = opened.manifest
    check_channels(data, dataset, manifest)
    if manifest.class_names != dataset.class_names:
        raise DataError(
            f"{data} has classes {list(dataset.class_names)}, {bundle} knows {list(manifest.class_names)}; "
            "use a bundle made for it"
        )
    _check_people(bundle, manifest.provenance.get("people", ()), plan)
    cut = windows(
        scenarios.split(dataset, plan).stream,
        rate_hz=manifest.rate_hz,
        window_samples=manifest.window_samples,
        hop_samples=manifest.hop_samples,
    )
    encoder = encoders.create(opened)
    batches = [encoder.encode_many(cut.X[i : i + BATCH]) for i in range(0, len(cut.X), BATCH)]
    return np.concatenate(batches), cut.y, cut.recording


def check_channels(path: str | Path, dataset: Dataset, manifest: Manifest) -> None:
    """Raises DataError when recordings and bundle are of different channels."""
    found, need = [c.name for c in dataset.channels], [c.name for c in manifest.channels]
    if found != need:
        raise DataError(f"{path} has channels {found}, the bundle expects {need}; use a bundle made for it")


def _made_for(bundle: Path) -> Scenario:
    data = Bundle.load(bundle).manifest.provenance.get("data")
    file = data.get("file") if isinstance(data, dict) else None
    fitting = [plan for plan in SCENARIOS.values() if file == f"{plan.data}.npz"]
    if len(fitting) != 1:
        raise DataError(
            f"{bundle} was made from {file or 'unnamed data'}, for which there is no single scenario; "
            f"name one of {', '.join(SCENARIOS)} with --scenario"
        )
    return fitting[0]


def _check_people(bundle: Path, trained_on: Sequence[int], plan: Scenario) -> None:
    both = sorted(plan.stream_people & set(trained_on))
    if both:
        raise DataError(
            f"{bundle} was trained on people {both}, whose recordings the stream of {plan.name!r} has; "
            f"export it with --scenario {plan.name}"
        )
