"""Whether a compiled step does in onnxruntime what autograd and torch's own optimiser do."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edge_cl.errors import BundleError, NumericalError
from edge_cl.heads.program import StepProgram
from edge_cl.records import FloatArray
from edge_cl_export.anatomy import PlasticModule
from edge_cl_export.losses import LOSSES, Outputs
from edge_cl_export.optimisers import StepSettings, decays

N_STEPS = 20
TOLERANCE = 1e-5
LEAST_SCALE = 0.1
"""A tensor's largest value counts as at least this: a bias that starts at 0 has no scale of its own."""
N_TRIALS = 3
"""Sequences of batches at most; one must agree. A wrong gradient fails all; rounding at a kink, a ReLU's say,
may spoil one."""


def check_steps(program: StepProgram, module: PlasticModule, settings: StepSettings) -> float:
    """Take 20 steps on random batches both ways, the second half with random plasticity.

    Returns the largest difference, relative to the largest value of its tensor.

    Raises
    ------
    BundleError
        When it is above 1e-5, or onnxruntime cannot run the graphs; names the parameter.
    """
    start = module.parameters
    try:
        found = []
        for seed in range(N_TRIALS):
            with torch.no_grad():
                for name, value in start.items():
                    module.head.get_parameter(name).copy_(value)
            found.append(_compare(program, module, settings, np.random.default_rng(seed)))
            if found[-1][0] <= TOLERANCE:
                return found[-1][0]
    except NumericalError as error:
        raise BundleError(f"the compiled step diverges on random batches: {error}") from error
    except Exception as error:  # the runtime raises its own untyped family
        raise BundleError(f"onnxruntime cannot run the compiled step: {str(error)[:400]}") from error
    worst, where = min(found)
    raise BundleError(
        f"{N_STEPS} steps of the compiled graph differ from torch's by {worst:.2g} of the scale of {where}, "
        f"allowed {TOLERANCE:g} (with {_n_classes(module)} classes); look there for an operator whose "
        "gradient is exported wrongly: indexing, scatter, a size that depends on n_classes"
    )


def _compare(
    program: StepProgram, module: PlasticModule, settings: StepSettings, rng: np.random.Generator
) -> tuple[float, str]:
    """Largest relative difference, and the tensor that has it."""
    n_classes = _n_classes(module)
    reference = _Reference(module, settings)
    worst, where = 0.0, ""
    trainer = program.trainer({name: value.numpy() for name, value in module.parameters.items()})
    for k in range(N_STEPS):
        X = rng.normal(0, 1, (settings.batch, program.n_features)).astype(np.float32)
        X = X / module.inv_std.numpy() + module.mean.numpy()
        y = rng.integers(n_classes, size=settings.batch)
        current = rng.integers(2, size=settings.batch).astype(np.float32)
        plasticity = rng.random(n_classes).astype(np.float32) if k >= N_STEPS // 2 else 1.0
        lr = settings.highest_lr * (1 - k / N_STEPS)
        loss = trainer.step(X, y, lr=lr, plasticity=plasticity, current=current)
        pairs = {"loss": (np.float32(loss), reference.step(X, y, lr, plasticity, current))}
        for name, value in trainer.parameters.items():
            pairs[name] = value, module.head.get_parameter(name).detach().numpy()
        with torch.no_grad():
            logits = module(None, torch.from_numpy(X))[0].numpy()
        pairs["logits"] = program.predict(trainer.parameters, X)[0], logits
        for name, (found, expected) in pairs.items():
            worst, where = max((worst, where), (_difference(found, expected), name))
    return worst, where


def _n_classes(module: PlasticModule) -> int:
    return len(module.head.get_parameter(module.class_weight))


def _difference(found: FloatArray, expected: FloatArray) -> float:
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), LEAST_SCALE))


class _Reference:
    """The step in torch eager: autograd, clip_grad_norm_, torch.optim; decay of SGD beside it."""

    def __init__(self, module: PlasticModule, settings: StepSettings) -> None:
        self._module, self._settings = module, settings
        parameters = list(module.head.parameters())
        if settings.optimiser == "sgd":
            self._optimiser: torch.optim.Optimizer = torch.optim.SGD(
                parameters, lr=1.0, momentum=settings.momentum
            )
            return
        groups = [
            {"params": [p for p in parameters if decays(p)], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if not decays(p)], "weight_decay": 0.0},
        ]
        self._optimiser = torch.optim.AdamW(groups, betas=settings.betas, eps=settings.eps)

    def step(
        self, X: FloatArray, y: FloatArray, lr: float, plasticity: FloatArray | float, current: FloatArray
    ) -> FloatArray:
        """Change the module's parameters; returns the loss before."""
        module, settings = self._module, self._settings
        head = module.head
        old = module.parameters
        targets = torch.eye(_n_classes(module))[torch.from_numpy(y)]
        logits, hidden = module(None, torch.from_numpy(X))
        weight = head.get_parameter(module.class_weight)
        out = Outputs(logits, hidden, weight, targets, torch.from_numpy(current))
        loss = LOSSES[settings.loss](out)
        self._optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), settings.clip)
        for group in self._optimiser.param_groups:
            group["lr"] = lr
        with torch.no_grad():
            if settings.optimiser == "sgd":
                for p in head.parameters():
                    p.mul_(1 - lr * settings.weight_decay if decays(p) else 1.0)
            self._optimiser.step()
            for name, p in head.named_parameters():
                p.copy_(_held(old[name], p, module.class_axes[name], plasticity))
        value: FloatArray = loss.detach().numpy()
        return value


def _held(old: Tensor, new: Tensor, axis: int, plasticity: FloatArray | float) -> Tensor:
    if axis < 0 or isinstance(plasticity, float):
        return new.clone()
    shape = [-1 if k == axis else 1 for k in range(new.ndim)]
    return old + torch.from_numpy(plasticity).reshape(shape) * (new - old)
