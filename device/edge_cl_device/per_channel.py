"""An option that is one number, or one for each channel."""

from __future__ import annotations

import numpy as np

from edge_cl.errors import ConfigError
from edge_cl.records import FloatArray


def per_channel(value: float | list[float], n_channels: int, name: str) -> FloatArray:
    """(n_channels,) of an option `name`, ``sensor serial: option scale``.

    Raises
    ------
    ConfigError
        Where there are neither one nor so many, or one of them is 0 or not finite.
    """
    numbers = np.atleast_1d(np.asarray(value, np.float64))
    if len(numbers) not in (1, n_channels) or not np.isfinite(numbers).all() or not numbers.all():
        raise ConfigError(
            f"{name} is {value}; allowed: a number other than 0, or {n_channels} of them, one for each "
            "channel"
        )
    return np.broadcast_to(numbers, (n_channels,))


def largest(full_scale: float | list[float], n_channels: int, name: str) -> FloatArray | None:
    """(n_channels,) largest magnitudes; None where the option is left at 0. Raises as `per_channel`."""
    return np.abs(per_channel(full_scale, n_channels, name)) if full_scale else None
