"""Confidence that means something: 0.8 should be right four times in five."""

from __future__ import annotations

import numpy as np

from edge_cl.records import FloatArray

STEP = 0.05
MAX_LOG_TEMPERATURE = 2.0
TINY = 1e-7


class Calibrator:
    """Online temperature scaling: p ∝ scores^(1/T), T learned from each label before it is used.

    One gradient step per label on the log-likelihood, T within [e⁻², e²]. Never changes which class is
    best. O(C). Source: Guo et al., On calibration of modern neural networks (2017), made online.
    """

    def __init__(self, log_temperature: float = 0.0) -> None:
        self.log_temperature = log_temperature

    def __call__(self, scores: FloatArray) -> FloatArray:
        """(C,) or (n, C) class scores → calibrated probabilities of the same shape; zeros stay zero."""
        powered: FloatArray = np.power(scores, np.float32(np.exp(-self.log_temperature)))
        total = powered.sum(axis=-1, keepdims=True)
        calibrated: FloatArray = np.divide(powered, total, out=np.zeros_like(powered), where=total > 0)
        return calibrated

    def update(self, scores: FloatArray, y: int) -> None:
        """Learn from one label: `scores` (C,) given before the label, y its class, known at the time."""
        seen = scores > 0
        seen[y] = True  # known, so a zero is only too small a number
        logs = np.log(np.maximum(scores[seen], TINY))
        p = self(scores)[seen]
        inverse = float(np.exp(-self.log_temperature))
        slope = -inverse * float(np.log(max(float(scores[y]), TINY)) - p @ logs)  # d log-likelihood / d log T
        step = STEP * float(np.clip(slope, -1.0, 1.0))
        self.log_temperature = float(
            np.clip(self.log_temperature + step, -MAX_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE)
        )
