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
    """How to train; `vectors` are the channels to turn at random, empty for none."""

    epochs: int = 40
    batch: int = 128
    lr: float = 3e-3
    weight_decay: float = 1e-2
    seed: int = 0
    vectors: tuple[Triplet, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """Accuracy on the validation windows at the epoch that was kept."""

    best_epoch: int
    validation_accuracy: float
    validation_balanced_accuracy: float


def train(
    encoder: nn.Module,
    data: tuple[FloatArray, NDArray[np.int64]],
    validation: tuple[FloatArray, NDArray[np.int64]],
    *,
    n_classes: int,
    settings: TrainSettings,
    progress: Progress | None = None,
) -> TrainReport:
    """Train `encoder` in place under a linear classifier and leave it at its best epoch.

    Parameters
    ----------
    data, validation
        X (n, window_samples, n_channels) float32 in physical units and y (n,) classes. The epoch
        with the highest class-balanced accuracy on `validation` is kept; the loss is
        weighted by inverse class frequency. Deterministic for a seed and a number of threads.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    X, y = torch.from_numpy(np.ascontiguousarray(data[0], np.float32)), torch.from_numpy(data[1])
    with torch.no_grad():
        feature_size = encoder.eval()(X[:2]).shape[1]
    classifier = nn.Linear(feature_size, n_classes)
    _reset(classifier, generator)
    model = nn.Sequential(encoder, classifier)
    averaged = AveragedModel(model, avg_fn=_towards, use_buffers=True)
    loss = nn.CrossEntropyLoss(weight=_class_weights(y, n_classes), label_smoothing=0.05)
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    n_batches = max(1, len(X) // settings.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.epochs * n_batches)
    best: tuple[float, float, int, dict[str, Any]] | None = None
    for epoch in range(1, settings.epochs + 1):
        model.train()
        order = torch.randperm(len(X), generator=generator)
        for rows in order.tensor_split(n_batches):
            batch = augment(X[rows], vectors=settings.vectors, generator=generator)
            optimiser.zero_grad()
            loss(model(batch), y[rows]).backward()
            optimiser.step()
            schedule.step()
            averaged.update_parameters(model)
        plain, balanced = accuracy(predict(averaged, validation[0]).argmax(1), validation[1])
        if best is None or balanced > best[0]:
            best = balanced, plain, epoch, copy.deepcopy(_first(averaged.module).state_dict())
        if progress is not None:
            progress(epoch, settings.epochs, f"validation {balanced:.3f} (best {best[0]:.3f})")
    if best is None:
        raise ValueError("epochs must be at least 1")
    encoder.load_state_dict(best[3])
    return TrainReport(best_epoch=best[2], validation_accuracy=best[1], validation_balanced_accuracy=best[0])


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


def _first(model: nn.Module) -> nn.Module:
    return next(model.children())


def _class_weights(y: Tensor, n_classes: int) -> Tensor:
    counts = torch.bincount(y, minlength=n_classes).clamp_min(1)
    return counts.sum() / (n_classes * counts.float())


def _reset(layer: nn.Linear, generator: torch.Generator) -> None:
    bound = layer.in_features**-0.5
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)
