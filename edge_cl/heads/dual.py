"""The default head: a slow memory that never decays, and a fast one that is right about today."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_cl.bundle import Prior
from edge_cl.heads.base import Head, prior_samples, prior_weights, softmax
from edge_cl.heads.fast import FastMemory
from edge_cl.heads.lift import Lift
from edge_cl.heads.linalg import condition_on_block, lift_floor
from edge_cl.memory import ReplayMemory
from edge_cl.records import FloatArray, under

BLOCK = 16
"""Labels collected before the slow memory takes them in with one matrix product."""
ALLOWED = {"lift": (0, 16_384), "window": (1, 2_048), "memory_bytes": (0, 2**31)}
"""Least and most; beyond it an option is a slip of the pen: the slow memory alone would hold a gigabyte."""
SLICE = 64
"""Exemplars taken in at once when relearning."""
OBS_NOISE_VAR = 0.1
FLOOR, FLOOR_EVERY = 1e-8, 512
"""Added to every variance once per so many labels, against rounding; at 1e-6 it forgets (kalman, sorted
gas: 97 → 81 %)."""
START_TEMPERATURE = 4.0
TEMPERATURE_STEP = 0.02


class DualHead(Head):
    """Slow ridge regression on lifted features plus a Gaussian process on its recent residuals.

    scores = softmax(T · (slow + gate · fast)). The slow part weighs all labels ever learned alike.
    The fast part remembers the last `window` labels and what the slow part got wrong about them; its
    kernel falls off with distance and with time, so it acts only near what was recently seen and
    reverts to the slow part elsewhere. T is learned online for calibrated probabilities.

    Parameters
    ----------
    lift
        Lifted features d; raised to at least D + 257. The slow part costs 4·d² bytes.
    window
        Recent labels that the fast part holds.
    gate
        Weight of the fast part; 0 asks the slow memory alone.
    seed
        Seeds the random lift.
    memory_bytes
        Size of the head's own replay memory, from which, after a cold start and until it overflows, it refits
        feature scales at every doubling of labels; 0 keeps none.

    Notes
    -----
    Per prediction O(D·d + C·d + W·D + W²), per label O(d²) amortised over blocks of 16. Sources: ridge
    recursion as in Zhuang et al., ACIL (2022); residual process after Ornstein-Uhlenbeck drift in Titsias et
    al. (2024); fast and slow weights after Ba et al. (2016).
    """

    name: ClassVar[str] = "dual"
    keeps_memory: ClassVar[bool] = True

    def __init__(
        self,
        n_features: int,
        n_classes: int = 0,
        *,
        lift: int = 1024,
        window: int = 128,
        gate: float = 0.6,
        seed: int = 0,
        memory_bytes: int = 8 * 1024 * 1024,
    ) -> None:
        super().__init__(n_features, n_classes)
        _check_sizes({"lift": lift, "window": window, "memory_bytes": memory_bytes})
        if not gate >= 0:
            raise ValueError(f"gate is {gate}; allowed: 0 or more")
        self._wanted = {
            "lift": lift,
            "window": window,
            "gate": gate,
            "seed": seed,
            "memory_bytes": memory_bytes,
        }
        self.gate = gate
        self.lift = Lift(n_features, max(lift, n_features + 1), seed)
        self.fast = FastMemory(window, n_features, n_classes)
        self.mean = np.zeros((self.lift.n_lifted, n_classes), dtype=np.float32)
        self.cov = np.eye(self.lift.n_lifted, dtype=np.float32)
        self._block_design = np.zeros((BLOCK, self.lift.n_lifted), dtype=np.float32)
        self._block_classes: list[int] = []
        self._log_temperature = float(np.log(START_TEMPERATURE))
        self._n_learned = 0
        self.memory: ReplayMemory | None = None
        if memory_bytes:
            self.memory = ReplayMemory(
                capacity_bytes=memory_bytes,
                n_features=n_features,
                codec="float32",
                held_back_every=0,
                seed=seed,
            )

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        own = self.memory.nbytes if self.memory else 0
        arrays = (self.mean, self.cov, self._block_design)
        return sum(a.nbytes for a in arrays) + self.lift.nbytes + self.fast.nbytes + own

    def predict_slow(self, X: FloatArray) -> FloatArray:
        """Class probabilities of the slow memory alone: "as it has always been", (n, D) → (n, C)."""
        slow = self.lift(self._checked(X, 2)) @ self.mean
        return softmax(np.exp(self._log_temperature) * slow, self.class_counts > 0)

    @classmethod
    def _needed_bytes(cls, n_features: int, n_classes: int, options: dict[str, Any]) -> int:
        _check_sizes(options)
        n_lifted: int = max(options["lift"], n_features + 1)
        own = 4 * n_lifted * (n_lifted + n_classes + BLOCK)
        parts = Lift.needed_bytes(n_features, n_lifted)
        parts += FastMemory.needed_bytes(options["window"], n_features, n_classes)
        if options["memory_bytes"]:
            parts += ReplayMemory.needed_bytes(options["memory_bytes"], n_features, "float32", 0)
        return own + parts

    @property
    def bytes_per_class(self) -> int:
        """Bytes that one more class costs."""
        return 4 * (self.lift.n_lifted + 2 * self.fast.window) + 8

    def warm_start(self, prior: Prior, *, strength: float) -> None:
        """Learn the prior's exemplars, and draws from its Gaussians, into the slow memory."""
        self.prior = prior, strength
        self.class_counts = prior_weights(prior, strength)
        nothing = np.zeros((0, self.n_features), dtype=np.float32), np.zeros(0, dtype=np.int64)
        for _ in self._refit(*nothing):
            pass

    def rehearse(self, X: FloatArray, y: NDArray[np.int64]) -> Iterator[None]:
        """Refit feature scales and the slow memory from prior and exemplars; re-seed the fast one."""
        yield from self._refit(X, y)

    def exam(self, X: FloatArray, y: NDArray[np.int64], *, learned: bool) -> FloatArray:
        """The slow memory's scores, which is what a sleep changes; see `Head.exam`.

        Leaving one sample out of ridge regression is closed form: with leverage h the prediction
        becomes (prediction − h · target) / (1 − h).
        """
        self._fold()
        design = self.lift(X)
        scores: FloatArray = design @ self.mean
        if learned:
            leverage = np.clip(self._leverage(design), 0, 0.99)[:, None]
            scores = (scores - leverage * np.eye(self.n_classes, dtype=np.float32)[y]) / (1 - leverage)
        return softmax(scores, self.class_counts > 0)

    def settle(self, X: FloatArray, y: NDArray[np.int64]) -> None:
        """Take the exemplars that judged it into the slow memory: no label is lost by sleeping."""
        for start in range(0, len(X), SLICE):
            self._take_in(X[start : start + SLICE], y[start : start + SLICE])
        self._reseed_fast()

    def _typical(self, y: int | None = None) -> FloatArray:
        return self.lift.standardise.mean

    def _predict(self, X: FloatArray) -> FloatArray:
        z = self.lift.standardise(X)
        scores = self.lift.raise_up(z) @ self.mean + np.float32(self.gate) * self.fast.predict(z)
        return softmax(np.float32(np.exp(self._log_temperature)) * scores, self.class_counts > 0)

    def _learn(self, x: FloatArray, y: int) -> None:
        z = self.lift.standardise(x[None])
        design = self.lift.raise_up(z)
        slow = (design @ self.mean)[0]
        residual = -slow
        residual[y] += 1
        self._learn_temperature(slow + np.float32(self.gate) * self.fast.predict(z)[0], y)
        self.fast.learn_one(x, z[0], y, residual)
        self._block_design[len(self._block_classes)] = design[0]
        self._block_classes.append(y)
        self.class_counts[y] += 1
        self._n_learned += 1
        if self.memory is not None:
            self.memory.add(x, y)
            doubled = self._n_learned & (self._n_learned - 1) == 0
            if self.prior is None and doubled and self.memory.rehearsed.holds_everything:
                for _ in self._refit(*self.memory.rehearsed.exemplars()):
                    pass
        if len(self._block_classes) == (BLOCK if self._n_learned > 64 else 1):
            self._fold()

    def _learn_temperature(self, scores: FloatArray, y: int) -> None:
        """One gradient step on the log-likelihood of the label, before the label is learned."""
        if not self.class_counts[y]:
            return
        temperature = float(np.exp(self._log_temperature))
        p = softmax((temperature * scores)[None], self.class_counts > 0)[0]
        slope = temperature * float(scores[y] - p @ scores)
        step = TEMPERATURE_STEP * float(np.clip(slope, -1.0, 1.0))
        self._log_temperature = float(np.clip(self._log_temperature + step, 0.0, 4.0))

    def _fold(self) -> None:
        n = len(self._block_classes)
        if n:
            targets = np.eye(self.n_classes, dtype=np.float32)[self._block_classes]
            condition_on_block(self.mean, self.cov, self._block_design[:n], targets, OBS_NOISE_VAR)
            self._block_classes.clear()
            if self._n_learned // FLOOR_EVERY != (self._n_learned - n) // FLOOR_EVERY:
                lift_floor(self.cov, FLOOR)

    def _refit(self, X: FloatArray, y: NDArray[np.int64]) -> Iterator[None]:
        """Learn scales and slow memory afresh from the prior, if any, and X (n, D), y (n,)."""
        row_scale = np.ones((len(X), 1), dtype=np.float32)
        if self.prior is not None:
            known, classes, weights = prior_samples(*self.prior)
            X, y = np.concatenate([known, X]), np.concatenate([classes, y])
            row_scale = np.concatenate([np.sqrt(weights)[:, None], row_scale])
        if not len(X):
            return
        self.lift.standardise.refit(X)
        self._block_classes.clear()
        self.mean = np.zeros((self.lift.n_lifted, self.n_classes), dtype=np.float32)
        self.cov = np.eye(self.lift.n_lifted, dtype=np.float32)
        for start in range(0, len(X), SLICE):
            rows = slice(start, start + SLICE)
            self._take_in(X[rows], y[rows], row_scale[rows])
            yield
        self._reseed_fast()

    def _take_in(self, X: FloatArray, y: NDArray[np.int64], row_scale: FloatArray | float = 1.0) -> None:
        """Condition the slow memory on X (n, D), y (n,); `row_scale` (n, 1) is the root of their weights."""
        targets = np.eye(self.n_classes, dtype=np.float32)[y]
        condition_on_block(self.mean, self.cov, self.lift(X) * row_scale, targets * row_scale, OBS_NOISE_VAR)

    def _leverage(self, design: FloatArray) -> FloatArray:
        """How much of its own prediction each learned sample (row of design) decides, in [0, 1): (n,)."""
        leverage: FloatArray = np.einsum("nd,nd->n", design @ self.cov, design) / OBS_NOISE_VAR
        return leverage

    def _reseed_fast(self) -> None:
        """Give the fast memory its window's residuals under the new slow memory, each left out of it."""
        X, y = self.fast.samples()
        if not len(X):
            return
        z = self.lift.standardise(X)
        design = self.lift.raise_up(z)
        residuals = np.eye(self.n_classes, dtype=np.float32)[y] - design @ self.mean
        residuals /= (1 - np.clip(self._leverage(design), 0, 0.9))[:, None]
        self.fast.reseed(z, residuals)

    def _grow(self) -> None:
        self.mean = np.concatenate([self.mean, np.zeros((len(self.mean), 1), dtype=np.float32)], axis=1)
        self.fast.grow()

    def _options(self) -> dict[str, Any]:
        return dict(self._wanted)

    def _get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays = {
            "mean": self.mean.copy(),
            "cov": self.cov.copy(),
            "block": self._block_design[: len(self._block_classes)].copy(),
            "feature_mean": self.lift.standardise.mean.copy(),
            "feature_inv_std": self.lift.standardise.inv_std.copy(),
        }
        meta: dict[str, Any] = {
            "block": list(self._block_classes),
            "log_temperature": self._log_temperature,
            "n_learned": self._n_learned,
        }
        fast_arrays, meta["fast"] = self.fast.state()
        arrays |= {f"fast.{key}": value for key, value in fast_arrays.items()}
        if self.memory is not None:
            memory_arrays, meta["memory"] = self.memory.state()
            arrays |= {f"memory.{key}": value for key, value in memory_arrays.items()}
        return arrays, meta

    def _set_state(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        self.mean, self.cov = arrays["mean"], arrays["cov"]
        self._block_classes = list(meta["block"])
        self._block_design[: len(self._block_classes)] = arrays["block"]
        self.lift.standardise.mean = arrays["feature_mean"]
        self.lift.standardise.inv_std = arrays["feature_inv_std"]
        self._log_temperature, self._n_learned = meta["log_temperature"], meta["n_learned"]
        self.fast.restore(under(arrays, "fast."), meta["fast"])
        if self.memory is not None:
            self.memory.restore(under(arrays, "memory."), meta["memory"])


def _check_sizes(options: dict[str, Any]) -> None:
    for name, (least, most) in ALLOWED.items():
        value = options[name]
        if not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"{name} is {value!r}; allowed: a whole number from {least} to {most:,}")
