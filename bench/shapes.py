"""Another image set: drawn shapes, and a small encoder that learned to tell their kinds apart.

Nothing of the images that are streamed later goes into it. Needs torch.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_cl.records import FloatArray

SIDE = 28
N_KINDS = 10
N_IMAGES = 8000
EPOCHS = 4
POOL = 2


def draw(n: int, rng: np.random.Generator) -> tuple[FloatArray, NDArray[np.int64]]:
    """Filled, textured, turned shapes of ten kinds: (n, 28, 28) in [0, 1], and (n,) kinds."""
    kinds = rng.integers(N_KINDS, size=n)
    return np.stack([_textured(_mask(int(kind), rng), rng) for kind in kinds]), kinds


def _mask(kind: int, rng: np.random.Generator) -> FloatArray:
    v, u = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE), indexing="ij")
    angle, scale, shift = rng.normal(0, 0.25), rng.uniform(0.65, 1.15, 2), rng.normal(0, 0.08, 2)
    p, q = (u - shift[0]) / scale[0], (v - shift[1]) / scale[1]
    p, q = p * np.cos(angle) + q * np.sin(angle), q * np.cos(angle) - p * np.sin(angle)
    w, n_leaves = rng.uniform(0.25, 0.5), int(rng.integers(3, 7))
    r, a, b = np.hypot(p, q), np.abs(p), np.abs(q)
    inside = [
        (p / 0.8) ** 2 + (q / 0.8) ** 2 < 1,
        (a < 0.75) & (b < 0.75),
        (b < 0.8) & (a < 0.4 * (q + 0.8)),
        ((a < 0.8 * w) | (b < 0.8 * w)) & (a < 0.85) & (b < 0.85),
        (r < 0.85) & (r > 0.85 - w),
        ((a < w) & (b < 0.85)) | ((a < 0.85) & (q < w - 0.85) & (q > -0.85)),
        ((p < w - 0.8) & (p > -0.8) & (b < 0.8)) | ((q > 0.8 - w) & (q < 0.8) & (a < 0.8)),
        ((np.abs(a - 0.45) < 0.6 * w) & (b < 0.85)) | ((a < 0.45 + 0.6 * w) & (q < w - 0.85) & (q > -0.85)),
        r < 0.55 + 0.3 * np.cos(n_leaves * np.arctan2(q, p)),
        (b < 0.7 * w) & (a < 0.9),
    ]
    mask: FloatArray = inside[kind].astype(np.float32)
    return mask


def _textured(mask: FloatArray, rng: np.random.Generator) -> FloatArray:
    v, u = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE), indexing="ij")
    grey = rng.uniform(0.35, 1) + rng.uniform(-0.3, 0.3) * u + rng.uniform(-0.3, 0.3) * v
    if rng.random() < 0.5:
        along = rng.uniform(0, np.pi)
        wave = rng.uniform(4, 20) * (u * np.cos(along) + v * np.sin(along)) + rng.uniform(0, 6)
        grey = grey + rng.uniform(0.05, 0.35) * np.sign(np.sin(wave))
    if rng.random() < 0.7:
        grey = grey + rng.uniform(0.02, 0.2) * rng.standard_normal((SIDE, SIDE))
    image = mask * np.clip(grey, 0.05, 1)
    if rng.random() < 0.3:  # a hole or another part
        x, y = rng.uniform(-0.5, 0.5, 2)
        spot = np.hypot(u - x, v - y) < rng.uniform(0.1, 0.3)
        image = np.where(spot, rng.uniform(0, 1) * mask, image)
    return np.clip(image, 0, 1).astype(np.float32)


class ShapeEncoder(nn.Module):
    """(n, 28, 28) in [0, 1] to (n, 256): two convolutions, averaged over quarters of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_block(1, 32), *_block(32, 64), nn.AdaptiveAvgPool2d(POOL), nn.Flatten())

    def forward(self, image: Tensor) -> Tensor:
        """Features."""
        features: Tensor = self.layers(image[:, None])
        return features


def _block(n_in: int, n_out: int) -> list[nn.Module]:
    return [nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU(), nn.MaxPool2d(2)]


def trained_encoder(seed: int = 0) -> tuple[ShapeEncoder, FloatArray]:
    """An encoder that can tell the kinds apart, and features (n, 256) of the shapes it saw; half a minute."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        images, kinds = draw(N_IMAGES, np.random.default_rng(seed))
        X, y = torch.from_numpy(images), torch.from_numpy(kinds)
        encoder = ShapeEncoder()
        model = nn.Sequential(encoder, nn.Linear(64 * POOL * POOL, N_KINDS))
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(X)).split(64):
                optimiser.zero_grad(set_to_none=True)
                nn.functional.cross_entropy(model(X[rows]), y[rows]).backward()
                optimiser.step()
    encoder.eval()
    return encoder, encode(encoder, images)


def encode(encoder: ShapeEncoder, images: NDArray[np.generic]) -> FloatArray:
    """Features (n, 256) of images (n, 28, 28) in [0, 1]."""
    with torch.no_grad():
        parts = [
            encoder(torch.from_numpy(np.ascontiguousarray(images[k : k + 1000], np.float32)))
            for k in range(0, len(images), 1000)
        ]
    features: FloatArray = torch.cat(parts).numpy()
    return features
