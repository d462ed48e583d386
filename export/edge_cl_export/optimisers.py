"""Optimisers as pure functions of tensors, so that a step can be compiled. All decay is decoupled."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_cl.errors import ConfigError
from edge_cl_export.anatomy import Named
from edge_cl_export.losses import LOSSES

SLOTS = {"sgd": ("momentum",), "adamw": ("mean", "square")}
DEFAULT_LR = {"sgd": 0.05, "adamw": 3e-3}


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What one step does.

    Attributes
    ----------
    loss
        One of `LOSSES`.
    optimiser
        ``sgd`` with momentum, or ``adamw``.
    lr
        Highest learning rate of a sleep; 0 takes the optimiser's default.
    batch
        Exemplars per step on the device.
    eps
        Of AdamW. Large, so that a gradient near 0 is not divided by its own rounding: two runtimes would
        drift apart, by up to 1e-3 of a weight's scale in 20 steps at 1e-8.
    weight_decay
        Decoupled, times the learning rate, of parameters with two axes or more.
    clip
        Largest norm of the gradient of all parameters together.
    """

    loss: str = "cross-entropy"
    optimiser: str = "sgd"
    lr: float = 0.0
    batch: int = 32
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-4
    weight_decay: float = 1e-3
    clip: float = 5.0

    def __post_init__(self) -> None:
        for what, known in (("loss", LOSSES), ("optimiser", SLOTS)):
            if getattr(self, what) not in known:
                raise ConfigError(f"{what} is {getattr(self, what)!r}; known: {', '.join(known)}")
        if self.lr < 0 or self.batch < 1:
            raise ConfigError(f"lr is {self.lr} and batch {self.batch}; allowed: above 0, from 1")

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the optimiser's state per parameter."""
        return SLOTS[self.optimiser]

    @property
    def highest_lr(self) -> float:
        """`lr`, or the optimiser's default."""
        return self.lr or DEFAULT_LR[self.optimiser]


def decays(parameter: Tensor) -> bool:
    """Whether weight decay is for it: matrices and kernels, not biases and norms."""
    return parameter.ndim >= 2


def clipped(gradients: Named, most: float) -> Named:
    """All gradients scaled down alike when their common norm is above `most`; as torch's clip_grad_norm_."""
    norm = torch.sqrt(torch.stack([(g * g).sum() for g in gradients.values()]).sum())
    factor = torch.clamp(most / (norm + 1e-6), max=1.0)
    return {name: g * factor for name, g in gradients.items()}


def stepped(
    p: Tensor, gradient: Tensor, slots: tuple[Tensor, ...], lr: Tensor, t: Tensor | None, how: StepSettings
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One parameter and its optimiser state after a step; `t`, the step's number from 1, for AdamW."""
    kept = p * (1 - lr * how.weight_decay) if decays(p) else p
    if t is None:
        momentum = how.momentum * slots[0] + gradient
        return kept - lr * momentum, (momentum,)
    fast, slow = how.betas
    mean = fast * slots[0] + (1 - fast) * gradient
    square = slow * slots[1] + (1 - slow) * gradient * gradient
    bias, square_bias = (_one_less_power(b, t) for b in how.betas)
    scale = torch.sqrt(square / square_bias) + how.eps
    return kept - (lr / bias) * mean / scale, (mean, square)


def _one_less_power(base: float, t: Tensor) -> Tensor:
    """1 − base^t, by its series where base^t is near 1 and float32 would lose the digits."""
    x = t * math.log(base)
    series = torch.ones_like(x)
    for k in range(7, 1, -1):
        series = 1 + x / k * series
    return torch.where(x > -0.3, -x * series, 1 - torch.exp(x))
