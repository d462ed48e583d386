"""The default head: a slow memory that never decays, and fast ones that are right about today."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_cl.bundle import Prior
from edge_cl.heads.anchors import N_CONTEXT, Anchors
from edge_cl.heads.base import MAX_EXEMPLARS, Head
from edge_cl.heads.fast import FastMemory
from edge_cl.heads.filter import SharedFilter
from edge_cl.heads.gate import Gate, Temperature
from edge_cl.heads.lift import Lift
from edge_cl.heads.priors import prior_samples, prior_weights
from edge_cl.heads.refit import OBS_NOISE_VAR, Refit
from edge_cl.heads.standardise import Standardiser
from edge_cl.heads.trackers import ResidualTracker, SoftmaxTracker
from edge_cl.memory.exemplars import Exemplars
from edge_cl.records import FloatArray, under

ALLOWED = {"lift": (0, 16_384), "window": (1, 2_048), "anchors": (0, 65_536), "memory_bytes": (0, 2**31)}
"""Least and most; beyond it an option is a slip of the pen: the slow memory alone would hold a gigabyte."""
MOST_REPLAY = 16
SLICE = 32
"""Exemplars taken in at once when relearning."""
GATE_START = (0.0, -2.0, -2.0)
"""Biases of the gate's weights before anything is learned: about what they are on the development streams."""
CONSTANT_GATE = 0.6
"""Weight of the local memory when nothing is remembered to judge a gate on."""
WARM_VAR = 1 / 3
"""Variance of the slow memory's weights before a warm start; 1 before a cold one. Features that an encoder
learned for the classes need smaller weights: half a point better for new people and sensors, while cold
streams would lose up to 1.6 (outdoor_objects)."""
PARTS = ("local", "tracker", "softmax")


class View(NamedTuple):
    """What the head sees in n samples on its way to an answer; P parts, C classes."""

    z: FloatArray
    """(n, D) standardised."""
    lifted: FloatArray
    """(n, d)."""
    near: FloatArray
    """(n, W) closeness to the recent samples."""
    slow: FloatArray
    """(n, C) scores of the slow memory."""
    parts: FloatArray
    """(n, P, C) what each fast part would add."""
    context: FloatArray
    """(n, K) what the gate looks at."""
    weights: FloatArray
    """(n, P) how much of each part is added."""
    scores: FloatArray
    """(n, C) slow memory and weighed parts."""
    answer: FloatArray
    """(n, C) probabilities."""


class DualHead(Head):
    """Slow ridge regression on lifted features, and three fast parts, each weighed by a learned gate.

    scores = slow + Σ g_j · fast_j, softmaxed at a learned temperature. The slow memory weighs all labels ever
    learned alike. The fast parts are right about today: a Gaussian process on what the slow memory got wrong
    for the last `window` labels (near them only), a forgetting Kalman filter on the same residual
    (everywhere), and a softmax regression. The gate g decides from where an input lies, near recent samples
    or near remembered ones, how much of each an answer takes. It is judged on every label, and on
    class-balanced exemplars of all that was learned, so that what helps today does not cost what was known.

    Parameters
    ----------
    lift
        Lifted features d, at least D + 1. The slow memory costs 4·d² bytes.
    window
        Recent labels that the local memory holds.
    anchors
        Remembered exemplars that judge the gate. 0: no gate and no trackers, but the local memory at a
        constant weight of 0.6, which is cheaper.
    replay
        Anchors that the gate is judged on per label: more keeps what was known (*ever*), fewer follow today
        (*now*).
    seed
        Of the random lift and the choice of anchors.
    memory_bytes
        For the samples from which, after a cold start and until they fill it, the head relearns its slow
        memory when feature scales have moved; 0 keeps none.

    Notes
    -----
    Per prediction O(D·d + C·d + (W + anchors)·D + W²), per label O(d² + W² + 257²) besides. Sources:
    recursive ridge regression as in Zhuang et al., ACIL (2022); residual processes after Ornstein-Uhlenbeck
    drift in Titsias et al. (2024); fast and slow weights after Ba et al. (2016).
    """

    name: ClassVar[str] = "dual"
    keeps_memory: ClassVar[bool] = True
    can_explain: ClassVar[bool] = True

    def __init__(
        self,
        n_features: int,
        n_classes: int = 0,
        *,
        lift: int = 1024,
        window: int = 256,
        anchors: int = 512,
        replay: float = 0.5,
        seed: int = 0,
        memory_bytes: int = 640 * 1024,
    ) -> None:
        super().__init__(n_features, n_classes)
        self._wanted = {
            "lift": lift,
            "window": window,
            "anchors": anchors,
            "replay": replay,
            "seed": seed,
            "memory_bytes": memory_bytes,
        }
        _check(self._wanted)
        self.lift = Lift(n_features, max(lift, n_features + 1), seed)
        self.standardise = Standardiser(n_features)
        self.slow = SharedFilter(self.lift.n_lifted, n_classes, obs_noise_var=OBS_NOISE_VAR)
        self.fast = FastMemory(window, n_features, n_classes)
        self.temperature = Temperature()
        self.anchors: Anchors | None = None
        if anchors:
            self.anchors = Anchors(anchors, n_features, seed)
            self.gate = Gate(GATE_START, N_CONTEXT)
            self.tracker = ResidualTracker(self.lift.n_lifted, n_classes)
            self.softmax = SoftmaxTracker(n_features, n_classes)
        self.refit: Refit | None = None
        if memory_bytes:
            self.refit = Refit(memory_bytes, n_features, self.lift)
        self._seen_last: tuple[FloatArray, View] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        own = self.lift.nbytes + self.standardise.nbytes + self.slow.nbytes + self.fast.nbytes
        if self.anchors is not None:
            own += self.anchors.nbytes + self.gate.nbytes + self.tracker.filter.nbytes + self.softmax.nbytes
        return own + (self.refit.nbytes(self.n_classes) if self.refit is not None else 0)

    @classmethod
    def _needed_bytes(cls, n_features: int, n_classes: int, options: dict[str, Any]) -> int:
        _check(options)
        n_lifted: int = max(options["lift"], n_features + 1)
        own = Standardiser.needed_bytes(n_features) + Lift.needed_bytes(n_features, n_lifted)
        own += SharedFilter.needed_bytes(n_lifted, n_classes)
        own += FastMemory.needed_bytes(options["window"], n_features, n_classes)
        if options["anchors"]:
            own += Anchors.needed_bytes(options["anchors"], n_features)
            own += Gate.needed_bytes(len(PARTS), N_CONTEXT)
            own += ResidualTracker.needed_bytes(n_lifted, n_classes)
            own += SoftmaxTracker.needed_bytes(n_features, n_classes)
        if options["memory_bytes"]:
            own += Refit.needed_bytes(options["memory_bytes"], n_features, n_lifted, n_classes)
        return own

    @property
    def bytes_per_class(self) -> int:
        """Bytes that one more class costs."""
        own = self.slow.bytes_per_output * (1 if self.refit is None else 2) + 8 * self.fast.window + 8
        if self.anchors is not None:
            own += self.tracker.filter.bytes_per_output + 4 * (self.n_features + 1)
        return own

    def predict_slow(self, X: ArrayLike) -> FloatArray:
        """Class probabilities of the slow memory alone: "as it has always been", (n, D) → (n, C)."""
        lifted = self.lift(self.standardise(self._checked(X, 2)))
        return self.temperature.probabilities(self.slow.predict(lifted), self.class_counts > 0)

    def explain_one(self, x: ArrayLike, n: int = 3) -> dict[str, Any]:
        """What the answer at x (D,) is made of.

        Returns
        -------
        ``class``, the answer, -1 before the first label; ``fast_share`` of its score, in [0, 1]; ``scores``,
        what the slow memory and each fast part adds to it, weighed; ``nearest``, the at most n closest
        samples, recent or remembered: ``{"class", "memory", "closeness"}`` with closeness in (0, 1].
        """
        view = self._view(self.standardise(self._checked(x, 1)[None]))
        n = self._checked_n(n)
        seen = self.class_counts > 0
        if not seen.any():
            return {"class": -1, "fast_share": 0.0, "scores": {}, "nearest": []}
        answer = int(np.where(seen, view.scores[0], -np.inf).argmax())
        added = view.weights[0] * view.parts[0, :, answer]
        slow, fast = abs(float(view.slow[0, answer])), float(np.abs(added).sum())
        nearest = self.fast.nearest(view.z[0], n)
        if self.anchors is not None:
            nearest += self.anchors.nearest(view.z[0], n)
        return {
            "class": answer,
            "fast_share": fast / max(slow + fast, 1e-12),
            "scores": {"slow": float(view.slow[0, answer])}
            | {part: float(score) for part, score in zip(PARTS, added, strict=False)},
            "nearest": sorted(nearest, key=lambda one: -one["closeness"])[:n],
        }

    def warm_start(self, prior: Prior, *, strength: float) -> None:
        """Learn the prior's exemplars, and draws from its Gaussians, into the slow memory."""
        self.prior = prior, strength
        self.class_counts = prior_weights(prior, strength)
        nothing = np.zeros((0, self.n_features), dtype=np.float32), np.zeros(0, dtype=np.int64)
        for _ in self._relearn(*nothing):
            pass
        if self.anchors is not None:
            for x, y in zip(prior.exemplars.astype(np.float32), prior.exemplar_labels.tolist(), strict=True):
                self.anchors.add(x, y, self.standardise)
        self.refit = None  # the prior has the scales

    def rehearse(self, exemplars: Exemplars) -> Iterator[None]:
        """Relearn feature scales and the slow memory from prior and exemplars; the fast parts stay."""
        yield from self._relearn(*exemplars.selected(MAX_EXEMPLARS))

    def exam(self, X: FloatArray, y: NDArray[np.int64], *, learned: bool) -> FloatArray:
        """The whole answer, without what the sample itself taught slow and local memory; see `Head.exam`.

        Leaving one sample out of ridge regression is closed form: with leverage h the prediction
        becomes (prediction − h · target) / (1 − h); and so it is for the local memory's window. The trackers
        keep what they learned of it, on both sides.
        """
        z = self.standardise(X)
        view = self._view(z)
        scores = view.scores.copy()
        if self.fast.n:
            local = self.fast.predict_others(view.near, y)
            scores += view.weights[:, :1] * (local - view.parts[:, 0])
        if learned:
            leverage = np.clip(self.slow.var(view.lifted) / OBS_NOISE_VAR, 0, 0.99)[:, None]
            target = np.eye(self.n_classes, dtype=np.float32)[y]
            scores += leverage * (view.slow - target) / (1 - leverage)
        return self.temperature.probabilities(scores, self.class_counts > 0)

    def settle(self, X: FloatArray, y: NDArray[np.int64]) -> None:
        """Take the exemplars that judged it into the slow memory: no label is lost by sleeping."""
        for start in range(0, len(X), SLICE):
            rows = slice(start, start + SLICE)
            self._take_in(X[rows], y[rows])
        self._seen_last = None

    def _typical(self, y: int | None = None) -> FloatArray:
        return self.standardise.mean

    def _predict(self, X: FloatArray) -> FloatArray:
        return self._look(X[0]).answer.copy() if len(X) == 1 else self._view(self.standardise(X)).answer

    def _look(self, x: FloatArray) -> View:
        """The view of one sample (D,); a sample is often learned just after it was predicted."""
        if self._seen_last is None or not np.array_equal(self._seen_last[0], x):
            self._seen_last = x.copy(), self._view(self.standardise(x[None]))
        return self._seen_last[1]

    def _view(self, z: FloatArray, *, asked: list[int] | None = None) -> View:
        """How the head sees standardised features (n, D); `asked` are their slots when they are anchors."""
        lifted = self.lift(z)
        slow = self.slow.predict(lifted)
        near = self.fast.near(z)
        local = self.fast.predict(near)
        seen = self.class_counts > 0
        if self.anchors is None:
            weights = np.full((len(z), 1), CONSTANT_GATE, dtype=np.float32)
            scores = slow + np.float32(CONSTANT_GATE) * local
            answer = self.temperature.probabilities(scores, seen)
            return View(z, lifted, near, slow, local[:, None], weights, weights, scores, answer)
        parts = np.empty((len(z), len(PARTS), self.n_classes), dtype=np.float32)
        parts[:, 0], parts[:, 1] = local, self.tracker.predict(lifted)
        parts[:, 2] = self.softmax.predict(z, seen)
        surety = self.fast.surety(near)
        context = self.anchors.context(z, near[:, : self.fast.n], surety, asked=asked)
        weights = self.gate(context)
        scores = slow + np.matmul(weights[:, None, :], parts)[:, 0]
        answer = self.temperature.probabilities(scores, seen)
        return View(z, lifted, near, slow, parts, context, weights, scores, answer)

    def _learn(self, x: FloatArray, y: int) -> None:
        view = self._look(x)
        self._seen_last = None  # from here on, whatever fails below
        self._judge(view, [y], own=True)
        if self.anchors is not None:
            asked = self.anchors.draw(self._wanted["replay"])
            if asked:
                z, classes = self.anchors.exemplars(asked)
                self._judge(self._view(z, asked=asked), classes, own=False)
            leaving = self.fast.oldest()
            if leaving is not None:
                self.anchors.add(*leaving, self.standardise)
        target = np.zeros(self.n_classes, dtype=np.float32)
        target[y] = 1
        residual = self.slow.learn_one(view.lifted[0], target)
        self.fast.learn_one(x, view.z[0], view.near[0], y, residual)
        if self.anchors is not None:
            self.tracker.learn_one(view.lifted, residual)
            self.softmax.learn_one(view.z[0], view.parts[0, 2], y)
        self.class_counts[y] += 1
        if self.refit is not None:
            self.refit.add(x, y)
            self._adopt(self.refit.advance(self.standardise, self.n_classes))

    def _judge(self, view: View, classes: list[int], *, own: bool) -> None:
        """Let temperature and gate learn from answers, before their samples are learned."""
        seen = self.class_counts > 0
        for k, y in enumerate(classes):
            error = view.answer[k].copy()
            if own and seen[y]:
                self.temperature.learn_one(view.scores[k], error, y)
            if self.anchors is not None and seen[y]:
                error[y] -= 1
                self.gate.learn_one(view.parts[k], view.context[k], error, self.temperature.factor)

    def _adopt(self, refitted: tuple[Standardiser, SharedFilter] | None) -> None:
        """Go on with other feature scales and the slow memory that was learned with them."""
        if refitted is None:
            return
        self.standardise, self.slow = refitted
        self.fast.restandardise(self.standardise)
        if self.anchors is not None:
            self.anchors.restandardise(self.standardise)

    def _relearn(self, X: FloatArray, y: NDArray[np.int64]) -> Iterator[None]:
        """Learn scales and slow memory afresh from the prior, if any, and X (n, D), y (n,)."""
        row_scale = np.ones((len(X), 1), dtype=np.float32)
        if self.prior is not None:
            known, classes, weights = prior_samples(*self.prior)
            X, y = np.concatenate([known, X]), np.concatenate([classes, y])
            row_scale = np.concatenate([np.sqrt(weights)[:, None], row_scale])
        if not len(X):
            return
        standardise = Standardiser(self.n_features)
        standardise.refit(X)
        # in the memory at hand: a second one would not be within the budget
        self.slow.reset(1.0 if self.prior is None else WARM_VAR)
        self._adopt((standardise, self.slow))
        yield
        for start in range(0, len(X), SLICE):
            rows = slice(start, start + SLICE)
            self._take_in(X[rows], y[rows], row_scale[rows])
            yield
        self._seen_last = None

    def _take_in(self, X: FloatArray, y: NDArray[np.int64], row_scale: FloatArray | float = 1.0) -> None:
        """Condition the slow memory on X (n, D), y (n,); `row_scale` (n, 1) is the root of their weights."""
        targets = np.eye(self.n_classes, dtype=np.float32)[y]
        self.slow.learn_block(self.lift(self.standardise(X)) * row_scale, targets * row_scale)

    def _grow(self) -> None:
        self.slow.grow()
        self.fast.grow()
        if self.anchors is not None:
            self.tracker.filter.grow()
            self.softmax.grow()
        if self.refit is not None:
            self.refit.grow()
        self._seen_last = None

    def _options(self) -> dict[str, Any]:
        return dict(self._wanted)

    def _get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays = {
            "feature_mean": self.standardise.mean.copy(),
            "feature_inv_std": self.standardise.inv_std.copy(),
        }
        meta: dict[str, Any] = {"log_temperature": self.temperature.log}
        for name, part in self._parts_with_state():
            part_arrays, meta[name] = part.get_state()
            arrays |= {f"{name}.{key}": value for key, value in part_arrays.items()}
        return arrays, meta

    def _set_state(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        self.standardise.mean = arrays["feature_mean"]
        self.standardise.inv_std = arrays["feature_inv_std"]
        self.temperature.log = meta["log_temperature"]
        if "refit" not in meta:
            self.refit = None
        for name, part in self._parts_with_state():
            part.set_state(under(arrays, f"{name}."), meta[name])

    def _parts_with_state(self) -> list[tuple[str, Any]]:
        parts: list[tuple[str, Any]] = [("slow", self.slow), ("fast", self.fast)]
        if self.anchors is not None:
            parts += [("anchors", self.anchors), ("gate", self.gate)]
            parts += [("tracker", self.tracker.filter), ("softmax", self.softmax)]
        return parts if self.refit is None else [*parts, ("refit", self.refit)]


def _check(options: dict[str, Any]) -> None:
    for name, (least, most) in ALLOWED.items():
        value = options[name]
        if not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"{name} is {value!r}; allowed: a whole number from {least} to {most:,}")
    if not 0 <= options["replay"] <= MOST_REPLAY:
        raise ValueError(f"replay is {options['replay']!r}; allowed: from 0 to {MOST_REPLAY}")
