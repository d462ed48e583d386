"""The plastic head in a bundle: compiled, and trained on the source by the steps the device will take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_cl.bundle import npz_bytes
from edge_cl.heads.program import StepProgram
from edge_cl.heads.step import StepHead
from edge_cl.memory.exemplars import Exemplars
from edge_cl.plastic import PlasticSpec
from edge_cl.records import FloatArray
from edge_cl_export.anatomy import Factory
from edge_cl_export.optimisers import StepSettings
from edge_cl_export.plastic import Mlp
from edge_cl_export.step_graph import DEFAULT_SETTINGS, compile_program, make_module
from edge_cl_export.twins import tflite_twins

EPOCHS = 10
FEWEST_STEPS, MOST_STEPS = 200, 5000


@dataclass(frozen=True, kw_only=True)
class PlasticHead:
    """What the device shall train.

    Attributes
    ----------
    factory
        See `edge_cl_export.plastic`.
    feature_shape
        What a flat feature is reshaped to; empty keeps it flat.
    settings
        Loss, optimiser and learning rate.
    tflite
        Whether the bundle has ``.tflite`` twins, too.
    """

    factory: Factory = Mlp
    feature_shape: tuple[int, ...] = ()
    settings: StepSettings = DEFAULT_SETTINGS
    tflite: bool = False


def make_members(
    plastic: PlasticHead, features: FloatArray, y: NDArray[np.int64], *, n_classes: int, seed: int
) -> tuple[dict[str, bytes], PlasticSpec]:
    """Compile a plastic head and train it on the source's features (n, D) and classes (n,).

    Returns the bundle's members, and what the manifest says of them.
    """
    what = plastic.factory, plastic.feature_shape or (features.shape[1],), n_classes, plastic.settings
    moments = features.mean(0), features.std(0)
    program = trained(compile_program(*what, seed=seed, moments=moments), features, y, seed=seed)
    twins = {}
    if plastic.tflite:
        twins = tflite_twins(make_module(*what, seed=seed, moments=moments), plastic.settings)
    return members(program) | twins, program.spec


def trained(program: StepProgram, X: FloatArray, y: NDArray[np.int64], *, seed: int = 0) -> StepProgram:
    """The program with parameters after about ten epochs on X (n, D), y (n,), classes alike."""
    head = StepHead(program.n_features, program.n_classes, program=program)
    n_steps = min(max(EPOCHS * len(X) // program.spec.batch, FEWEST_STEPS), MOST_STEPS)
    for _ in head.rehearse(Exemplars(y, lambda rows: X[rows], _Balanced(y, seed), n_steps)):
        pass
    return StepProgram(program.spec, head.parameters, program.predict_graph, program.step_graph)


def members(program: StepProgram) -> dict[str, bytes]:
    """The bundle members that `StepProgram.load` reads."""
    return {
        "predict.onnx": program.predict_graph,
        "step.onnx": program.step_graph,
        "plastic.npz": npz_bytes(**program.parameters),
    }


class _Balanced:
    """Batches in which every class of the source is as likely."""

    def __init__(self, y: NDArray[np.int64], seed: int) -> None:
        self._rows = [np.flatnonzero(y == c) for c in np.unique(y)]
        self._seed = seed

    def select(self, n: int) -> NDArray[np.int64]:
        every = np.random.default_rng(self._seed).permutation(np.concatenate(self._rows))
        return every[:n]

    def batch(self, step: int, size: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([self._seed, step])
        classes = rng.integers(len(self._rows), size=size)
        return np.array([rng.choice(self._rows[c]) for c in classes])
