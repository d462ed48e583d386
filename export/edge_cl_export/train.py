"""Supervised training, checked on people the training never saw."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from edge_cl.records import FloatArray
from edge_cl_export.augment import augment
from edge_cl_export.encoders import Triplet

# What is validated and kept is a running average of the weights: single epochs differ by several
# points on a sensor never trained on, the average hardly does.
AVERAGE_DECAY = 0.99

Progress = Callable[[int, int, str], None]
"""Called with (epochs done, epochs, text) after every epoch."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What to train and how; `vectors` are the channels to turn at random, empty for none."""

    feature_size: int = 128
    epochs: int = 40
    batch: int = 128
    lr: float = 3e-3
    weight_decay: float = 1e-2
    seed: int = 0
    vectors: tuple[Triplet, ...] = ()


@dataclass(frozen=True)
class TrainReport:
    """Accuracy on the validation windows at the epoch that was kept."""

    best_epoch: int
    validation_accuracy: float
    validation_balanced_accuracy: float


def train(
    encoder: nn.Module,
    data: tuple[FloatArray, NDArray[np.int64]],
    validation: tuple[FloatArray, NDArray[np.int64]] | None,
    *,
    n_classes: int,
    settings: TrainSettings,
    stop_epoch: int | None = None,
    progress: Progress | None = None,
) -> TrainReport | None:
    """Train `encoder` in place under a linear classifier and leave it at its best epoch.

    Parameters
    ----------
    data, validation
        X (n, window_samples, n_channels) float32 in physical units and y (n,) classes. The epoch
        with the highest class-balanced accuracy on `validation` is kept; the loss is
        weighted by inverse class frequency. Deterministic for a seed and a number of threads.
    stop_epoch
        Without `validation`: stop after this epoch of the same schedule, keep it and return None.
    """
    if settings.epochs < 1:
        raise ValueError("epochs must be at least 1")
    course = _Course(encoder, data, n_classes=n_classes, settings=settings)
    best: TrainReport | None = None
    kept: dict[str, Any] = {}
    last = stop_epoch or settings.epochs
    for epoch in range(1, last + 1):
        course.run_epoch()
        words = "on everybody"
        if validation is not None:
            plain, balanced = accuracy(predict(course.averaged, validation[0]).argmax(1), validation[1])
            if best is None or balanced > best.validation_balanced_accuracy:
                best, kept = TrainReport(epoch, plain, balanced), course.weights()
            words = f"validation {balanced:.3f} (best {best.validation_balanced_accuracy:.3f})"
        if progress is not None:
            progress(epoch, last, words)
    encoder.load_state_dict(kept or course.weights())
    return best


class _Course:
    """One training under way: model, running average, optimiser, schedule, order of the batches."""

    def __init__(
        self,
        encoder: nn.Module,
        data: tuple[FloatArray, NDArray[np.int64]],
        *,
        n_classes: int,
        settings: TrainSettings,
    ) -> None:
        self._settings = settings
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._X = torch.from_numpy(np.ascontiguousarray(data[0], np.float32))
        self._y = torch.from_numpy(data[1])
        with torch.no_grad():
            feature_size = encoder.eval()(self._X[:2]).shape[1]
        classifier = nn.Linear(feature_size, n_classes)
        _reset(classifier, self._generator)
        self._model = nn.Sequential(encoder, classifier)
        self.averaged = AveragedModel(self._model, avg_fn=_towards, use_buffers=True)
        self._loss = nn.CrossEntropyLoss(weight=_class_weights(self._y, n_classes), label_smoothing=0.05)
        self._optimiser = torch.optim.AdamW(
            self._model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        self._n_batches = max(1, len(self._X) // settings.batch)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self._optimiser, settings.epochs * self._n_batches
        )

    def run_epoch(self) -> None:
        """Once through the data, in a new order, augmented anew."""
        self._model.train()
        order = torch.randperm(len(self._X), generator=self._generator)
        for rows in order.tensor_split(self._n_batches):
            batch = augment(self._X[rows], vectors=self._settings.vectors, generator=self._generator)
            self._optimiser.zero_grad()
            self._loss(self._model(batch), self._y[rows]).backward()
            self._optimiser.step()
            self._schedule.step()
            self.averaged.update_parameters(self._model)

    def weights(self) -> dict[str, Any]:
        """A copy of the averaged encoder's weights as they are now."""
        return copy.deepcopy(next(self.averaged.module.children()).state_dict())


def predict(model: nn.Module, X: FloatArray, *, batch: int = 1024) -> FloatArray:
    """Outputs of `model` for windows (n, w, c), in evaluation mode."""
    model.eval()
    with torch.no_grad():
        parts = [
            model(torch.from_numpy(np.ascontiguousarray(X[k : k + batch], np.float32)))
            for k in range(0, len(X), batch)
        ]
    out: FloatArray = torch.cat(parts).numpy()
    return out


def accuracy(predicted: NDArray[np.int64], y: NDArray[np.int64]) -> tuple[float, float]:
    """Plain accuracy and the mean of the accuracies per class present in `y`."""
    right = predicted == y
    return float(right.mean()), float(np.mean([right[y == label].mean() for label in np.unique(y)]))


def _towards(average: Tensor, new: Tensor, n: Tensor | int) -> Tensor:
    """The running average after `n` updates; it forgets fast at first."""
    return average + (new - average) * max(1 - AVERAGE_DECAY, 9 / (10 + float(n)))


def _class_weights(y: Tensor, n_classes: int) -> Tensor:
    counts = torch.bincount(y, minlength=n_classes).clamp_min(1)
    return counts.sum() / (n_classes * counts.float())


def _reset(layer: nn.Linear, generator: torch.Generator) -> None:
    bound = layer.in_features**-0.5
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)
