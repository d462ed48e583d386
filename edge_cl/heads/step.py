"""A torch head trained on the device: a compiled optimisation step in sleep, a fast memory awake."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_cl.bundle import Prior
from edge_cl.heads.base import Head, softmax
from edge_cl.heads.fast import FastMemory
from edge_cl.heads.gate import Temperature
from edge_cl.heads.priors import prior_weights
from edge_cl.heads.program import Parameters, StepProgram, Trainer
from edge_cl.heads.standardise import RunningMoments, Standardiser
from edge_cl.memory.exemplars import Exemplars
from edge_cl.records import FloatArray, distinct, under

LOCAL_WEIGHT = 1.0
"""Of the local memory. `dual` gives it 0.6, but its slow memory learns the same labels; this one waits for
sleep."""
AVERAGE_DECAY = 0.99
"""Of the running average of the weights, per step."""
WARM_UP = 0.05
"""Part of the steps in which the learning rate rises."""
OLD_ROWS_HELD = 0.2
"""Part of the steps in which rows of known classes stand still when there are new ones."""
N_START = 16
"""Exemplars per new class that its row starts from."""
N_SCALE = 1024
"""Exemplars that feature scales are taken from."""


class StepHead(Head):
    """Network probabilities, plus a fast local memory of what the network gets wrong.

    Awake only the local memory learns: a label counts at once, a new class too, for which the network says
    0. In sleep the network takes optimisation steps on remembered exemplars, one compiled graph a step. A new
    class's row starts as the mean of its hidden features, and the rows of known classes stand still for the
    first fifth of the steps. What answers is a running average of the weights, from the first step on.

    Parameters
    ----------
    program
        What the bundle's export compiled; the features' length must be its own.
    window
        Recent labels that the local memory holds.

    Notes
    -----
    Predict: the network, and O(W·D + W²); learn the same. Between sleeps it remembers what the last sleep
    taught and the last `window` labels. Sources: running means and sleep as in SIESTA (Harun et al., 2023);
    data-driven rows and held old rows as in SGM (Harun & Kanan, 2023); averaged weights as in temporal
    ensembles (Soutif-Cormerais et al., 2023).
    """

    name: ClassVar[str] = "step"
    needs_program: ClassVar[bool] = True
    gains_by_rehearsal: ClassVar[bool] = True
    learns_by_steps: ClassVar[bool] = True
    most_decoded: ClassVar[int] = N_SCALE

    def __init__(
        self, n_features: int, n_classes: int = 0, *, program: StepProgram | None = None, window: int = 256
    ) -> None:
        super().__init__(n_features, n_classes)
        self.program = _checked_program(program, n_features)
        _check_window(window)
        self.parameters: Parameters = self.program.start(n_classes)
        self.trained = np.zeros(n_classes, dtype=np.bool_)
        """(C,) whether the network has learned the class; it gives the others 0."""
        self.standardise = Standardiser(n_features)
        self.moments: RunningMoments | None = RunningMoments(n_features)
        self.fast = FastMemory(window, n_features, n_classes)
        self.temperature = Temperature()
        self._stale = False

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        own = self.standardise.nbytes + self.fast.nbytes + self.trained.nbytes
        own += sum(array.nbytes for array in self.parameters.values())
        return own + (0 if self.moments is None else self.moments.nbytes)

    @classmethod
    def _needed_bytes(cls, n_features: int, n_classes: int, options: dict[str, Any]) -> int:
        program = _checked_program(options["program"], n_features)
        _check_window(options["window"])
        own = 4 * program.n_values(n_classes) + n_classes + 16 * n_features
        own += Standardiser.needed_bytes(n_features)
        return own + FastMemory.needed_bytes(options["window"], n_features, n_classes)

    @property
    def bytes_per_class(self) -> int:
        """Bytes that one more class costs."""
        values = self.program.n_values(self.n_classes + 1) - self.program.n_values(self.n_classes)
        return 4 * values + 8 * self.fast.window + 9

    @property
    def rehearse_bytes(self) -> int:
        """The trainer's two sets of parameters and optimiser state, one more batch, the average's scratch."""
        largest = max(array.nbytes for array in self.parameters.values())
        batch = 4 * self.program.spec.batch * self.n_features
        return self.program.trainer_bytes(self.n_classes) + batch + largest

    @property
    def rehearse_bytes_per_class(self) -> int:
        """Of the trainer's sets; the other parts are counted with the largest parameter."""
        trainer_bytes = self.program.trainer_bytes
        return trainer_bytes(self.n_classes + 1) - trainer_bytes(self.n_classes) + self.bytes_per_class

    def warm_start(self, prior: Prior, *, strength: float) -> None:
        """Trust the program's parameters, which export trained on the source; take scales from the prior."""
        self.prior = prior, strength
        self.class_counts = prior_weights(prior, strength)
        self.trained = (prior.class_counts > 0) & (np.arange(self.n_classes) < self.program.n_classes)
        share = prior.class_counts / max(prior.class_counts.sum(), 1.0)
        mean = share @ prior.class_means.astype(np.float64)
        self.standardise.set_moments(mean, np.diag(prior.second_moment).astype(np.float64) - mean**2)
        self.moments = None  # the prior has the scales

    def rehearse(self, exemplars: Exemplars) -> Iterator[None]:
        """One optimisation step on a batch of the sampler's a slice; the average of the weights answers.

        The learning rate rises, then falls to 0 over `exemplars.n_steps`. The optimiser starts afresh.

        Raises
        ------
        NumericalError
            When loss or weights leave the finite numbers: the head is of no more use then.
        """
        if not len(exemplars.y) or exemplars.n_steps < 1:
            return
        new = self._begin(exemplars)
        trainer = self.program.trainer(self.parameters)
        for k in range(exemplars.n_steps):
            rows = exemplars.sampler.batch(k, self.program.spec.batch)
            y = exemplars.y[rows]
            held = k < OLD_ROWS_HELD * exemplars.n_steps and (self.trained & ~new).any() and new.any()
            trainer.step(
                exemplars.features(rows),
                y,
                lr=self.program.spec.lr * _lr_share(k, exemplars.n_steps),
                plasticity=(new if held else self.trained).astype(np.float32),
                current=new[y].astype(np.float32),
                last=k == exemplars.n_steps - 1,
            )
            self._average(trainer)
            yield

    def exam(self, X: FloatArray, y: NDArray[np.int64], *, learned: bool) -> FloatArray:
        """The network's scores alone: what a sleep changes. Held-back exemplars are never rehearsed."""
        return self._network(X)

    def settle(self, X: FloatArray, y: NDArray[np.int64]) -> None:
        """Empty the local memory: what it held the network has rehearsed. Left in, the last labels before a
        sleep would outweigh all others after it."""
        if self.fast.n:
            self.fast = FastMemory(self.fast.window, self.n_features, self.n_classes)
        self._stale = False

    def _begin(self, exemplars: Exemplars) -> NDArray[np.bool_]:
        """Take scales, give the rows of new classes their start; returns which classes are new, (C,)."""
        self.standardise.refit(exemplars.selected(N_SCALE)[0])
        self.moments = None
        new = np.zeros(self.n_classes, dtype=np.bool_)
        new[distinct(exemplars.y)] = True
        new &= ~self.trained
        weight = self.program.spec.class_weight
        norms = np.linalg.norm(self.parameters[weight][self.trained if self.trained.any() else new], axis=1)
        for c in np.flatnonzero(new).tolist():
            X = exemplars.features(np.flatnonzero(exemplars.y == c)[:N_START])
            mean = self.program.predict(self.parameters, X)[1].mean(axis=0)
            row = mean * (norms.mean() / max(float(np.linalg.norm(mean)), 1e-12))
            for spec in self.program.spec.parameters:
                if spec.class_axis >= 0:
                    rows = np.moveaxis(self.parameters[spec.name], spec.class_axis, 0)
                    rows[c] = row if spec.name == weight else self._typical_row(rows)
        self.trained = self.trained | new
        return new

    def _typical_row(self, rows: FloatArray) -> FloatArray | float:
        """Mean over the classes the network knows: the bias, say, that a new class starts with."""
        return rows[self.trained].mean(axis=0) if self.trained.any() else 0.0

    def _average(self, trainer: Trainer) -> None:
        rate = np.float32((1 - AVERAGE_DECAY) / (1 - AVERAGE_DECAY**trainer.n_steps))
        for name, value in trainer.parameters.items():
            change = value - self.parameters[name]
            change *= rate
            self.parameters[name] += change
        self._stale = True

    def _settled(self) -> FastMemory:
        """The local memory, on what the network as it is now gets wrong."""
        if self._stale:
            X, y = self.fast.held()
            self.fast.restandardise(self.standardise, _one_hot(y, self.n_classes) - self._network(X))
            self._stale = False
        return self.fast

    def _network(self, X: FloatArray) -> FloatArray:
        """Probabilities (n, C) over the classes that the network has learned."""
        if not len(X) or not self.trained.any():
            return np.zeros((len(X), self.n_classes), dtype=np.float32)
        return softmax(self.program.predict(self.parameters, X)[0], self.trained)

    def _view(self, X: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Standardised X (n, D), closeness (n, W), network's probabilities (n, C), scores (n, C)."""
        fast = self._settled()
        z = self.standardise(X)
        near = fast.near(z)
        network = self._network(X)
        return z, near, network, network + LOCAL_WEIGHT * fast.predict(near)

    def _predict(self, X: FloatArray) -> FloatArray:
        return self.temperature.probabilities(self._view(X)[3], self.class_counts > 0)

    def _learn(self, x: FloatArray, y: int) -> None:
        z, near, network, scores = self._view(x[None])
        if self.class_counts[y]:
            answer = self.temperature.probabilities(scores.copy(), self.class_counts > 0)
            self.temperature.learn_one(scores[0], answer[0], y)
        residual = -network[0]
        residual[y] += 1
        self.fast.learn_one(x, z[0], near[0], y, residual)
        self.class_counts[y] += 1
        if self.moments is not None:
            self.moments.add(x[None])
            n = int(self.moments.count)
            if n >= 4 and n & (n - 1) == 0:  # scales settle: look again at every doubling
                self.standardise.set_moments(self.moments.mean, self.moments.var)
                self.fast.restandardise(self.standardise)

    def _typical(self, y: int | None = None) -> FloatArray:
        return self.standardise.mean

    def _grow(self) -> None:
        self.parameters = self.program.grown(self.parameters)
        self.trained = np.append(self.trained, False)
        self.fast.grow()

    def _options(self) -> dict[str, Any]:
        return {"window": self.fast.window}

    def _given(self) -> dict[str, Any]:
        return {"program": self.program}

    def _get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        fast, fast_meta = self._settled().get_state()
        arrays = {
            "feature_mean": self.standardise.mean.copy(),
            "feature_inv_std": self.standardise.inv_std.copy(),
            "trained": self.trained.copy(),
        }
        arrays |= {f"network.{name}": value.copy() for name, value in self.parameters.items()}
        arrays |= {f"fast.{name}": value for name, value in fast.items()}
        meta = {"log_temperature": self.temperature.log, "fast": fast_meta, "moments": None}
        if self.moments is not None:
            meta["moments"] = self.moments.count
            arrays |= {
                "moments.mean": self.moments.mean.copy(),
                "moments.scatter": self.moments.scatter.copy(),
            }
        return arrays, meta

    def _set_state(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        parameters = under(arrays, "network.")
        for name, value in self.parameters.items():
            found = parameters[name].shape if name in parameters else None
            if found != value.shape:
                raise ValueError(
                    f"the state's parameter {name} has shape {found}, the program's {value.shape}: they are "
                    "of different bundles"
                )
        self.parameters = {name: np.ascontiguousarray(parameters[name]) for name in self.parameters}
        self.trained = arrays["trained"].astype(np.bool_)
        self.standardise.mean, self.standardise.inv_std = arrays["feature_mean"], arrays["feature_inv_std"]
        self.temperature.log = meta["log_temperature"]
        self.fast.set_state(under(arrays, "fast."), meta["fast"])
        if meta["moments"] is None:
            self.moments = None
        elif self.moments is not None:
            self.moments.count = meta["moments"]
            self.moments.mean, self.moments.scatter = arrays["moments.mean"], arrays["moments.scatter"]


def _lr_share(k: int, n_steps: int) -> float:
    """Part of the highest learning rate at step k of n: up in the first twentieth, then a cosine to 0."""
    warm = max(math.ceil(WARM_UP * n_steps), 1)
    return min(1.0, (k + 1) / warm) * 0.5 * (1 + math.cos(math.pi * k / n_steps))


def _one_hot(y: NDArray[np.int32], n_classes: int) -> FloatArray:
    targets = np.zeros((len(y), n_classes), dtype=np.float32)
    targets[np.arange(len(y)), y] = 1
    return targets


def _check_window(window: int) -> None:
    if not isinstance(window, int) or not 1 <= window <= 2048:
        raise ValueError(f"window is {window!r}; allowed: a whole number from 1 to 2,048")


def _checked_program(program: StepProgram | None, n_features: int) -> StepProgram:
    if program is None:
        raise ValueError(
            "head 'step' needs a compiled plastic head, and this bundle has none: export with --head step"
        )
    if program.n_features != n_features:
        raise ValueError(f"the program takes {program.n_features} features, asked for is {n_features}")
    return program
