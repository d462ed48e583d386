"""Recursive least squares as a Kalman filter: one belief about the weights of all outputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edge_cl.errors import NumericalError
from edge_cl.heads.linalg import STRIPE, lift_floor
from edge_cl.records import FloatArray

PENDING = 32
"""Rank-one updates kept beside the covariance. 16 cost more per label above 500 inputs, 64 no less."""
AT_ONCE = 256
"""Up to so many inputs the pending updates are folded in by one pass per `PENDING` labels, above by rows."""
BLOCK = 64
"""Samples learned together at most: the work on a block grows with its square."""
FLOOR, FLOOR_EVERY = 1e-8, 512
"""Added to every variance once per so many labels, against rounding; at 1e-6 it forgets (kalman, sorted
gas: 97 → 81 %)."""
VAR_CAP = 4.0
"""Exponential forgetting never lifts the mean variance above this: it cannot wind up."""
SCALE_SPAN = 1e4
"""A lazy factor further than this from 1 is multiplied out, so that float32 keeps its digits."""


class SharedFilter:
    """A Gaussian belief about d × C weights whose covariance (d, d) all C outputs share.

    It begins with mean 0 and covariance I. A sample x (d,) with target (C,) is one measurement:
    g = P x / √(xᵀPx + r);  M += g (target − Mᵀx)ᵀ / √(xᵀPx + r);  P −= g gᵀ.

    Parameters
    ----------
    n_inputs, n_outputs
        d at least 1, and C.
    obs_noise_var
        r, variance of a target around its regression, above 0.
    forgetting
        In (0, 1]: P is divided by it before every sample, up to a mean variance of `VAR_CAP`.

    Notes
    -----
    4·(d² + C·d) bytes for the belief and 4·32·(2·d + C) for the updates not folded in yet. One sample costs
    one pass over P and one over M, and 2·(d² + C·d) operations in matrix products: the last 32 updates are
    rows beside P and M that every product with them takes into account, exactly. After each sample 1/32 of
    the rows of P and M takes in all that is pending for it, so no sample costs much more than another.

    Sources: Titsias et al., Kalman filter for online classification of non-stationary data (2024), for the
    shared covariance and `relax`; Haykin, Adaptive filter theory, for exponential forgetting.
    """

    def __init__(
        self, n_inputs: int, n_outputs: int, *, obs_noise_var: float, forgetting: float = 1.0
    ) -> None:
        if not obs_noise_var > 0 or not 0 < forgetting <= 1:
            raise ValueError(
                f"obs_noise_var is {obs_noise_var}, forgetting {forgetting}; allowed: above 0, and in (0, 1]"
            )
        self.obs_noise_var, self.forgetting = obs_noise_var, forgetting
        width = n_inputs + n_outputs
        belief = np.empty((n_inputs, width), dtype=np.float32)
        self._bind(belief, *(np.empty((PENDING, n), dtype=np.float32) for n in (width, n_inputs)))
        self.reset()

    def reset(self, start_var: float = 1.0) -> None:
        """Back to the start, in the memory at hand: mean 0 and covariance `start_var`·I."""
        self.n_updates = 0
        self._scale, self._lift, self._mean_scale, self._most = 1.0, 0.0, 1.0, math.inf
        for array in (self._belief, self._updates, self._unfolded):
            array.fill(0)
        self._diagonal.fill(start_var)

    def start(self, mean: FloatArray, cov: FloatArray, *, n_updates: int = 0) -> None:
        """Take over a belief as if after so many samples: mean (d, C), cov (d, d) positive definite."""
        d, n_outputs = mean.shape
        self.n_updates = n_updates
        self._scale, self._lift, self._mean_scale, self._most = 1.0, 0.0, 1.0, math.inf
        belief = np.concatenate([cov, mean], axis=1, dtype=np.float32)
        self._bind(belief, *(np.zeros((PENDING, n), dtype=np.float32) for n in (d + n_outputs, d)))

    def _bind(self, belief: FloatArray, updates: FloatArray, unfolded: FloatArray) -> None:
        """P = scale·cov + lift·I and M = mean_scale·mean, with [cov | mean] = belief − unfoldedᵀ updates.

        A row of `updates` is [gain | −error]; in `unfolded` a gain is zeroed where belief has it already.
        """
        self._belief, self._updates, self._unfolded = belief, updates, unfolded
        d, width = belief.shape
        self._cov, self._mean = belief[:, :d], belief[:, d:]
        self._gains, self._errors = updates[:, :d], updates[:, d:]
        self._diagonal = np.einsum("ii->i", self._cov)
        n_rows = _rows_at_once(d)
        self._rows = [slice(start, min(start + n_rows, d)) for start in range(0, d, n_rows)]
        self._product = np.empty((n_rows, width), dtype=np.float32)
        self._folds = [
            (unfolded[:, rows], belief[rows], self._product[: rows.stop - rows.start]) for rows in self._rows
        ]
        row = np.empty(width, dtype=np.float32)
        self._row = row, row[:d], row[d:]

    @staticmethod
    def needed_bytes(n_inputs: int, n_outputs: int) -> int:
        """`nbytes` of a new one."""
        width = n_inputs + n_outputs
        return 4 * (width * (n_inputs + PENDING + _rows_at_once(n_inputs) + 1) + PENDING * n_inputs)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        arrays = (self._belief, self._updates, self._unfolded, self._product, self._row[0])
        return sum(a.nbytes for a in arrays)

    @property
    def bytes_per_output(self) -> int:
        """Bytes that one more output costs."""
        return 4 * (len(self._belief) + PENDING + len(self._product) + 1)

    def mean(self) -> FloatArray:
        """(d, C), a copy with everything folded in."""
        mean: FloatArray = np.float32(self._mean_scale) * (self._mean - self._unfolded.T @ self._errors)
        return mean

    def cov(self) -> FloatArray:
        """(d, d), a copy with everything folded in."""
        cov: FloatArray = np.float32(self._scale) * (self._cov - self._unfolded.T @ self._gains)
        cov[np.diag_indices_from(cov)] += np.float32(self._lift)
        return cov

    def predict(self, design: FloatArray) -> FloatArray:
        """Mean of the targets: (n, d) → (n, C)."""
        outputs: FloatArray = design @ self._mean
        outputs -= (design @ self._unfolded.T) @ self._errors
        if self._mean_scale != 1:
            outputs *= np.float32(self._mean_scale)
        return outputs

    def predict_one(self, x: FloatArray) -> FloatArray:
        """Mean of the target: (d,) → (C,)."""
        outputs: FloatArray = np.dot(x, self._mean)
        outputs -= np.dot(np.dot(self._unfolded, x), self._errors)
        if self._mean_scale != 1:
            outputs *= self._mean_scale
        return outputs

    def var(self, design: FloatArray) -> FloatArray:
        """Variance of the mean of the targets, xᵀPx: (n, d) → (n,). At most |x|², and r less at least."""
        projected = design @ self._cov - (design @ self._unfolded.T) @ self._gains
        var: FloatArray = self._scale * np.einsum("nd,nd->n", projected, design)
        if self._lift:
            var += np.float32(self._lift) * np.einsum("nd,nd->n", design, design)
        return var

    def learn_one(self, x: FloatArray, target: FloatArray, inflation: FloatArray | None = None) -> FloatArray:
        """Learn one sample: x (d,), target (C,), float32.

        With `inflation` v (C,), at least 1, the weights of output c have covariance v_c P: their gain is that
        of this covariance, and v becomes, in place, what keeps their variance along x right, while P itself
        goes on as with v = 1.

        Returns
        -------
        (C,) target − what was predicted for it before.

        Raises
        ------
        NumericalError
            When the covariance is not positive definite any more, or x is not finite.
        """
        if self.forgetting < 1:
            self._forget()
        row, projected, outputs = self._row
        np.dot(x, self._belief, out=row)  # [P x | Mᵀ x] in one pass
        row -= np.dot(np.dot(self._unfolded, x), self._updates)
        if self._scale != 1:
            projected *= self._scale
        if self._lift:
            projected += self._lift * x
        if self._mean_scale != 1:
            outputs *= self._mean_scale
        innovation_var = float(np.dot(projected, x)) + self.obs_noise_var
        if not 0 < innovation_var < math.inf:
            raise NumericalError(f"innovation variance is {innovation_var}; should be above 0 and finite")
        innovation: FloatArray = target - outputs
        correction = innovation
        if inflation is not None:
            var = innovation_var - self.obs_noise_var
            inflation *= innovation_var / (inflation * var + self.obs_noise_var)
            correction = innovation * inflation
        k = self.n_updates % PENDING
        gain = self._gains[k]
        np.multiply(projected, 1 / math.sqrt(innovation_var * self._scale), out=gain)
        weight = math.sqrt(self._scale / innovation_var) / self._mean_scale
        np.multiply(correction, -weight, out=self._errors[k])
        self._unfolded[k] = gain
        self.n_updates += 1
        self._fold_some(k)
        return innovation

    def learn_block(self, design: FloatArray, targets: FloatArray) -> None:
        """Learn samples together: (n, d) and (n, C). Equal to `learn_one` on each up to rounding."""
        if self.forgetting < 1:
            for x, target in zip(design, targets, strict=True):
                self.learn_one(x, target)
            return
        self._settle()
        for start in range(0, len(design), BLOCK):
            self._learn_together(design[start : start + BLOCK], targets[start : start + BLOCK])

    def repeat_block(self, design: FloatArray, targets: FloatArray) -> None:
        """Move the mean as `learn_block` does, to known samples (n, d) and (n, C); be no surer than before.

        To learn a sample twice would count it twice, and take later labels for less than they are worth.
        """
        self._settle()
        for start in range(0, len(design), BLOCK):
            rows = slice(start, start + BLOCK)
            updates = self._updates_of(design[rows], targets[rows])
            d = design.shape[1]
            self._mean -= updates[:, :d].T @ updates[:, d:]

    def _learn_together(self, design: FloatArray, targets: FloatArray) -> None:
        """P −= Gᵀ G;  M += Gᵀ L⁻¹ (Y − F M), of samples F (n, d) and Y (n, C) with nothing pending.

        Source: block recursive least squares in square-root form, e.g. Zhuang et al., ACIL (2022), eq. 8-9.
        """
        d = design.shape[1]
        updates = self._updates_of(design, targets)
        for start in range(0, d, STRIPE):  # in stripes, which stay in the processor's cache
            stripe = slice(start, min(start + STRIPE, d))
            self._belief[stripe] -= updates[:, stripe].T @ updates
        crossed = (self.n_updates + len(design)) // FLOOR_EVERY > self.n_updates // FLOOR_EVERY
        self.n_updates += len(design)
        if crossed:
            lift_floor(self._cov, FLOOR)

    def _updates_of(self, design: FloatArray, targets: FloatArray) -> FloatArray:
        """[G | L⁻¹ (F M − Y)], (n, d + C), with A = F P;  S = A Fᵀ + r I = L Lᵀ;  G = L⁻¹ A."""
        d = design.shape[1]
        rows = design @ self._belief
        rows[:, d:] -= targets
        innovation_cov = (rows[:, :d] @ design.T).astype(np.float64)
        innovation_cov[np.diag_indices_from(innovation_cov)] += self.obs_noise_var
        try:
            root_inverse = np.linalg.inv(np.linalg.cholesky(innovation_cov)).astype(np.float32)
        except np.linalg.LinAlgError as error:
            raise NumericalError(f"covariance of {d} weights is not positive definite any more") from error
        updates: FloatArray = root_inverse @ rows
        return updates

    def unlearn_one(self, x: FloatArray, target: FloatArray) -> None:
        """Take back a sample that was learned: x (d,), target (C,).

        Raises
        ------
        ValueError
            When it cannot have been learned: the leverage of a learned sample is below 1.
        """
        self._settle()
        row = x @ self._belief
        left = self.obs_noise_var - float(np.dot(row[: len(x)], x))
        if not left > 0:
            raise ValueError("this sample was never learned: it would tell more than all that was")
        row[len(x) :] -= target
        self._belief += np.outer(row[: len(x)] / left, row)

    def information(self) -> tuple[FloatArray, FloatArray]:
        """What the samples add to a fresh start, in float64: P⁻¹ − I (d, d) and P⁻¹ M (d, C). O(d³).

        Of all samples these are Σ x xᵀ / r and Σ x targetᵀ / r, so those of two filters add up.
        """
        precision = np.linalg.inv(self.cov().astype(np.float64))
        targets = precision @ self.mean()
        precision[np.diag_indices_from(precision)] -= 1
        return (precision + precision.T) / 2, targets

    def start_from(self, information: FloatArray, targets: FloatArray, *, n_updates: int) -> None:
        """Take over the belief that has this `information`, as if after so many samples. O(d³)."""
        start = np.eye(len(information))
        cov = np.linalg.inv(start + information)
        if not (np.diagonal(cov) > 0).all() or np.diagonal(cov).max() > 1 + 1e-3:
            # samples take no information away: what is below 0 is rounding, made large by a change of scale
            values, vectors = np.linalg.eigh(information)
            cov = np.linalg.inv(start + (vectors * np.maximum(values, 0)) @ vectors.T)
        self.start(cov @ targets, cov, n_updates=n_updates)

    def relax(self, gamma: float) -> None:
        """Let the weights drift before the next sample: M ← γ M, P ← γ² P + (1 − γ²) I, γ in (0, 1].

        An Ornstein-Uhlenbeck process around 0 whose stationary covariance is I. Three numbers keep it: no
        pass over P.
        """
        self._scale *= gamma**2
        self._lift = gamma**2 * self._lift + (1 - gamma**2)
        self._mean_scale *= gamma
        if self._mean_scale < SCALE_SPAN**-0.5:
            self._absorb()

    def grow(self) -> None:
        """Add an output, whose weights have mean 0."""
        belief, updates = (np.pad(a, ((0, 0), (0, 1))) for a in (self._belief, self._updates))
        self._bind(belief, updates, self._unfolded)

    def get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays (copies) and JSON values, from which `set_state` continues bit for bit."""
        arrays = {
            "belief": self._belief.copy(),
            "updates": self._updates.copy(),
            "unfolded": self._unfolded.copy(),
        }
        numbers = {"scale": self._scale, "lift": self._lift, "mean_scale": self._mean_scale}
        most = None if math.isinf(self._most) else self._most
        return arrays, {"n_updates": self.n_updates, "most": most, **numbers}

    def set_state(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Take over what `get_state` gave; the arrays are kept, not copied."""
        self.n_updates, self._scale, self._lift = meta["n_updates"], meta["scale"], meta["lift"]
        self._mean_scale = meta["mean_scale"]
        self._most = math.inf if meta["most"] is None else meta["most"]
        self._bind(arrays["belief"], arrays["updates"], arrays["unfolded"])

    def _forget(self) -> None:
        """P ← P / forgetting, as far as the mean variance, worked out every 32 samples, allows."""
        if self.n_updates % PENDING == 0:
            trace = float(self._diagonal.sum()) - float(np.vdot(self._unfolded, self._gains))
            self._most = VAR_CAP * len(self._cov) / max(trace, 1e-30)
        self._scale = max(self._scale, min(self._scale / self.forgetting, self._most))
        if self._scale > SCALE_SPAN:
            self._absorb()

    def _absorb(self) -> None:
        """Multiply the lazy factors out."""
        root = math.sqrt(self._scale)
        self._cov *= self._scale
        self._diagonal += self._lift
        self._gains *= root
        self._unfolded *= root
        self._errors *= self._mean_scale / root
        self._mean *= self._mean_scale
        self._most /= self._scale
        self._scale, self._lift, self._mean_scale = 1.0, 0.0, 1.0

    def _fold_some(self, k: int) -> None:
        """Fold in what is due after the update in row k."""
        floor = self.n_updates % FLOOR_EVERY
        refresh = floor == 0 or floor > FLOOR_EVERY - PENDING
        if len(self._cov) > AT_ONCE:
            if k < len(self._rows):
                self._fold(k)
                if refresh:
                    self._refresh(self._rows[k])
        elif k == PENDING - 1:
            for part in range(len(self._rows)):
                self._fold(part)
            if refresh:
                lift_floor(self._cov, FLOOR / self._scale)

    def _fold(self, part: int) -> None:
        """Take all pending updates into one part of the rows of mean and covariance."""
        pending, rows, product = self._folds[part]
        np.subtract(rows, np.dot(pending.T, self._updates, out=product), out=rows)
        pending.fill(0)

    def _refresh(self, rows: slice) -> None:
        """Make folded rows symmetric with those above, and add the floor to their variances.

        Rows above were folded in some samples ago: `behind` is what they have pending.
        """
        above = slice(0, rows.stop)
        behind = self._unfolded[:, above].T @ self._gains[:, rows]
        both = (self._cov[rows, above] + (self._cov[above, rows] - behind).T) * np.float32(0.5)
        self._cov[rows, above] = both
        self._cov[above, rows] = both.T + behind
        self._diagonal[rows] += FLOOR / self._scale

    def _settle(self) -> None:
        """Fold everything in, now."""
        self._absorb()
        if self._unfolded.any():
            for part in range(len(self._rows)):
                self._fold(part)


def _rows_at_once(n_inputs: int) -> int:
    """Rows that one fold takes."""
    return -(-n_inputs // PENDING) if n_inputs > AT_ONCE else min(n_inputs, STRIPE)
