"""What a plastic head is trained to do. Each loss is a scalar tensor that takes soft or one-hot targets.

Class indices are never used: their gradient is exported wrongly to ONNX (a scatter).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from edge_cl_export.plastic import unit

COSINE_SCALE = 16.0
"""Of the cosines, before the softmax, in ``cosine`` and ``uer``."""
PCR_TEMPERATURE = 0.09
"""As in the authors' code."""


class Outputs(NamedTuple):
    """What a loss may look at."""

    logits: Tensor
    """(b, C)."""
    hidden: Tensor
    """(b, H), the input of the class layer."""
    weight: Tensor
    """(C, H), the class layer's rows."""
    targets: Tensor
    """(b, C), rows sum to 1."""
    current: Tensor
    """(b,) 1 for a sample of what is newly learned, 0 for one that was learned before."""


def cross_entropy(out: Outputs) -> Tensor:
    """Mean over the batch of −Σ_c y_c log softmax(z)_c."""
    return _soft(out.logits, out.targets).mean()


def uer(out: Outputs) -> Tensor:
    """New samples learn by the angle only, known ones by angle and norm.

    The dot product w·h is |w||h| cos: a sample with `current` 1 gets the cross-entropy of 16·cos(w, h), one
    with 0 that of the plain logits (bias included); mean over the batch. Prediction uses the plain logits.
    Source: Lin et al., UER: a heuristic bias addressing approach for online continual learning (2023); the
    scale 16 is ours.
    """
    angle = COSINE_SCALE * (unit(out.hidden) @ unit(out.weight).T)
    losses = out.current * _soft(angle, out.targets) + (1 - out.current) * _soft(out.logits, out.targets)
    return losses.mean()


def pcr(out: Outputs) -> Tensor:
    """Proxy-based contrastive replay: each sample against the class rows of the batch's samples.

    −Σ_c y_ic (z_ic − log Σ_k n_k exp z_ik), mean over samples i, with z = cos / 0.09 and n_k the batch's
    samples (target mass) of class k: every sample brings its class row as a proxy, so a class counts as
    often as it is in the batch and one that is absent is neither pushed nor pulled. Source: Lin et al., PCR:
    proxy-based contrastive replay for online class-incremental continual learning (2023).
    """
    count = out.targets.sum(0)
    present = count > 0
    weighted = out.logits + torch.where(present, torch.log(torch.where(present, count, 1.0)), -1e9)
    return ((torch.logsumexp(weighted, -1) * out.targets.sum(-1)) - (out.targets * out.logits).sum(-1)).mean()


def _soft(logits: Tensor, targets: Tensor) -> Tensor:
    return -(targets * torch.log_softmax(logits, -1)).sum(-1)


LOSSES: dict[str, Callable[[Outputs], Tensor]] = {
    "cross-entropy": cross_entropy,
    "cosine": cross_entropy,
    "uer": uer,
    "pcr": pcr,
}
COSINE_LAYER = {"cosine": COSINE_SCALE, "pcr": 1 / PCR_TEMPERATURE}
"""Losses whose class layer gives scaled cosines, and the scale."""
