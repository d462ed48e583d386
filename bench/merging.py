"""What twenty people taught their devices, merged. ``python -m bench.merging --data FOLDER [--quick]``.

DATA is a folder with myo_emg.npz: forearm muscles of 40 people, seven gestures. Ten people train the encoder
and make the exported prior. Twenty others have a device each, which learns one window in five of theirs. Ten
more are new: encoder, prior and heads were trained and chosen on others (`edge_cl.datasets.scenarios`,
new-person); how noise is added was decided on them, docs/decisions/0023. Needs torch.

- `merge_max_error`: of the head that a device makes of the merged bundle, against one that learned all labels
  of all devices one after the other: class probabilities on the new people's windows, class means, and the
  scatter within the classes relative to its largest value; head slda. `others` are heads that are not exact.
- By head: the new people's accuracy on the second half of each gesture's recordings, after 0, 1 and 4 labels
  a gesture from the first half: with the exported prior, the merged one, and that of devices that add noise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from edge_cl_fleet import merged
from edge_cl_fleet.reports import Shared
from numpy.typing import NDArray

from edge_cl import encoders
from edge_cl.bundle import Bundle, Prior
from edge_cl.config import PrivacySettings, settings_from
from edge_cl.datasets import recordings, scenarios
from edge_cl.datasets.recordings import Dataset
from edge_cl.datasets.windows import Windows, windows
from edge_cl.heads import Head
from edge_cl.heads.prototype import PrototypeHead
from edge_cl.heads.slda import SldaHead
from edge_cl.knowledge import PRIOR_STRENGTH
from edge_cl.learner import Learner
from edge_cl.manifest import HeadSpec
from edge_cl.memory import Exemplars
from edge_cl.privacy import noise_for
from edge_cl.records import FloatArray, Label, Reading
from edge_cl.remote import tell
from edge_cl.sharing import share
from edge_cl.statistics import from_bytes

PLAN = scenarios.get("new-person")
EXPORTERS, CHECKERS = range(2, 40, 4), range(2, 40, 8)
DEVICES = [person for person in range(40) if person % 4 in (0, 1)]
LABEL_EVERY = 5
SHOTS = (0, 1, 4)
EPSILONS = (1, 4, 8)
CLIP_PERCENTILE = 50
"""Of the lengths of the prior's exemplars, which devices have anyway: features are cut there."""


class World(NamedTuple):
    """The exported bundle, each device's labels as windows, and the new people's features."""

    bundle: Bundle
    devices: Windows
    X: FloatArray
    new: Windows


class Device(NamedTuple):
    """A learner and the rows of its labels."""

    name: str
    learner: Learner
    rows: NDArray[np.int64]


def measure(data: Path, *, quick: bool = False) -> dict[str, Any]:
    """The figures; `quick` trains less and repeats less, and its accuracies are not to be quoted."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        world = make_world(data, Path(folder), n_epochs=2 if quick else 8)
        devices = [_live(world, person, Path(folder), stack) for person in DEVICES]
        shared = [_asked(device) for device in devices]
        whole, _ = merged.write(Path(folder) / "whole.ecl", world.bundle, shared)
        started, _ = merged.write(Path(folder) / "start.ecl", world.bundle, shared, weight=PRIOR_STRENGTH)
        errors = _errors(world, devices, whole)
        n_draws = 1 if quick else 5
        names = ("slda",) if quick else ("slda", "kalman", "prototype", "dual")
        report: dict[str, Any] = {
            "merge_max_error": max(errors["slda"].values()),
            "errors": errors.pop("slda"),
            "others": errors,
            "n_labels": sum(len(device.rows) for device in devices),
        }
        for name in names:
            found = {
                "exported": _accuracies(world, name, world.bundle, n_draws),
                "merged": _accuracies(world, name, started, n_draws),
                "merged, all labels count": _accuracies(world, name, whole, n_draws),
            }
            for epsilon in EPSILONS:
                found[f"merged, ε = {epsilon}"] = np.mean(
                    [
                        _accuracies(world, name, _noisy(world, devices, epsilon, Path(folder), seed), 1)
                        for seed in range(n_draws)
                    ],
                    axis=0,
                )
            report[name] = {key: np.round(value, 4).tolist() for key, value in found.items()}
    return report


def make_world(data: Path, folder: Path, *, n_epochs: int) -> World:
    """Train the encoder on its ten people and cut everybody's windows."""
    from edge_cl_export.pack import Source, train_and_pack
    from edge_cl_export.train import TrainSettings

    dataset = recordings.load(data / "myo_emg.npz")
    cut = _windows(dataset, EXPORTERS)
    source = Source(
        name="myo",
        X=cut.X,
        y=cut.y,
        person=cut.person,
        class_names=dataset.class_names,
        channels=dataset.channels,
        rate_hz=PLAN.rate_hz,
        hop_samples=PLAN.hop_samples,
    )
    bundle = train_and_pack(
        source,
        folder / "myo.ecl",
        validation_people=CHECKERS,
        settings=TrainSettings(epochs=n_epochs, feature_size=64),
        head=HeadSpec(name="slda"),
    )
    new = _windows(dataset, PLAN.stream_people)
    encoder = encoders.create(bundle)
    X = np.concatenate([encoder.encode_many(new.X[k : k + 256]) for k in range(0, len(new.X), 256)])
    return World(bundle, _windows(dataset, DEVICES), X, new)


def _windows(dataset: Dataset, people: Sequence[int] | frozenset[int]) -> Windows:
    return windows(
        scenarios.select(dataset, frozenset(people)),
        rate_hz=PLAN.rate_hz,
        window_samples=PLAN.window_samples,
        hop_samples=PLAN.hop_samples,
    )


def _live(world: World, person: int, folder: Path, stack: contextlib.ExitStack) -> Device:
    """A device that has seen and learned what its person labelled."""
    name = f"person-{person}"
    settings = settings_from({"device": {"name": name}, "sleep": {"after_labels": 0, "idle_s": 0}})
    learner = Learner.from_bundle(world.bundle, state_dir=folder / name, settings=settings)
    stack.enter_context(learner)
    rows = np.flatnonzero(world.devices.person == person)[::LABEL_EVERY]
    class_names = world.bundle.manifest.class_names

    def events() -> Any:
        for row in rows:
            yield Reading(id=f"r{row}", t_s=0.0, window=world.devices.X[row])
            yield Label(label=class_names[world.devices.y[row]], reading_id=f"r{row}", source="person")

    learner.run(events())
    return Device(f"home/{name}", learner, rows)


def _asked(device: Device) -> Shared:
    """What it sends to a server that asks."""
    return Shared(*from_bytes(tell(device.learner).body))


def _noisy(world: World, devices: list[Device], epsilon: float, folder: Path, seed: int) -> Bundle:
    """Merged from devices that add noise for this ε, as if each were asked for the first time."""
    rng = np.random.default_rng(seed)
    prior = _prior(world.bundle)
    lengths = np.linalg.norm(prior.exemplars.astype(np.float64), axis=1)
    settings = PrivacySettings(
        clip_norm=float(np.percentile(lengths, CLIP_PERCENTILE)), noise=noise_for(epsilon)
    )
    shared = []
    for device in devices:
        assert device.learner.journal is not None
        found = share(device.learner.journal, world.bundle, settings, device=device.name, rng=rng)
        shared.append(Shared(*found))
    return merged.write(folder / "noisy.ecl", world.bundle, shared, weight=PRIOR_STRENGTH)[0]


def _errors(world: World, devices: list[Device], whole: Bundle) -> dict[str, dict[str, float]]:
    """Of a device's head on the merged bundle against one that learned all labels, by head."""
    class_names = world.bundle.manifest.class_names
    X = np.concatenate([_learned(device)[0] for device in devices])
    y = np.array([class_names.index(name) for device in devices for name in _learned(device)[1]])
    found = {}
    for name in ("slda", "prototype", "kalman"):
        central = _head(name, world.bundle)
        for x, c in zip(X, y, strict=True):
            central.learn_one(x, int(c))
        ours = _head(name, whole)
        for head in (central, ours):  # as a sleep does: solves afresh
            for _ in head.rehearse(Exemplars.of(X[:0], y[:0])) if name == "slda" else ():
                pass
        scores = [head.predict_many(world.X) for head in (central, ours)]
        found[name] = {
            "probabilities": float(np.abs(scores[0] - scores[1]).max()),
            **_parameter_errors(central, ours),
        }
        if name != "slda":
            agree = scores[0].argmax(axis=1) == scores[1].argmax(axis=1)
            found[name]["answers_that_agree"] = float(agree.mean())
    return found


def _parameter_errors(central: Head, ours: Head) -> dict[str, float]:
    found = {}
    if isinstance(central, SldaHead | PrototypeHead):
        assert isinstance(ours, SldaHead | PrototypeHead)
        found["means"] = float(np.abs(central.class_means - ours.class_means).max())
        spread = central.scatter, ours.scatter
        found["scatter"] = float(np.abs(spread[0] - spread[1]).max() / np.abs(spread[0]).max())
    return found


def _learned(device: Device) -> tuple[FloatArray, list[str]]:
    journal = device.learner.journal
    assert journal is not None
    entries = list(journal.read(1, journal.last_seq))
    return np.stack([entry.feature for entry in entries]), [entry.label for entry in entries]


def _head(name: str, bundle: Bundle) -> Head:
    """As of a device that was just given the bundle."""
    settings = settings_from({"head": {"name": name}})
    return Learner.from_bundle(bundle, settings=settings).knowledge.head


def _accuracies(world: World, name: str, bundle: Bundle, n_draws: int) -> FloatArray:
    """Of new people, after `SHOTS` labels a gesture; each person counts alike."""
    found = []
    first = _head(name, bundle)
    for person in np.unique(world.new.person):
        pools, test = _halves(world.new, int(person))
        for seed in range(n_draws):
            rng = np.random.default_rng(seed)
            rows = np.stack([rng.choice(pool, max(SHOTS), replace=False) for pool in pools], axis=1)
            found.append([_after(world, first, rows[:n].ravel(), test) for n in SHOTS])
    mean: FloatArray = np.mean(found, axis=0)
    return mean


def _after(world: World, first: Head, rows: NDArray[np.int64], test: NDArray[np.int64]) -> float:
    head = first.copy()
    for row in rows:
        head.learn_one(world.X[row], int(world.new.y[row]))
    return float((head.predict_many(world.X[test]).argmax(axis=1) == world.new.y[test]).mean())


def _halves(new: Windows, person: int) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Rows to label from, by class, and rows to test on: of other recordings."""
    pools, test = [], []
    for c in np.unique(new.y):
        rows = np.flatnonzero((new.person == person) & (new.y == c))
        takes = np.unique(new.recording[rows])
        early = np.isin(new.recording[rows], takes[: math.ceil(len(takes) / 2)])
        pools.append(rows[early])
        test.append(rows[~early])
    return pools, np.concatenate(test)


def _prior(bundle: Bundle) -> Prior:
    prior = bundle.prior()
    assert prior is not None
    return prior


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    print(json.dumps(measure(asked.data, quick=asked.quick), indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
