"""An option that is one number, or one for each channel."""

from __future__ import annotations

import numpy as np

from edge_cl.errors import ConfigError
from edge_cl.records import FloatArray


def per_channel(
    value: float | list[float], n_channels: int, name: str, *, may_be_0: bool = False
) -> FloatArray:
    """(n_channels,) of an option `name`, ``sensor serial: option scale``.

    Raises
    ------
    ConfigError
        Where there are neither one nor so many, or one of them is not finite, or 0 though it may not be.
    """
    numbers = np.atleast_1d(np.asarray(value, np.float64))
    usable = np.isfinite(numbers).all() and (may_be_0 or numbers.all())
    if len(numbers) not in (1, n_channels) or not usable:
        allowed = "a number" if may_be_0 else "a number other than 0"
        raise ConfigError(
            f"{name} is {value}; allowed: {allowed}, or {n_channels} of them, one for each channel"
        )
    return np.broadcast_to(numbers, (n_channels,))


def largest(full_scale: float | list[float], n_channels: int, name: str) -> FloatArray | None:
    """(n_channels,) largest magnitudes, infinite where the option is 0; None where no channel has one.

    Raises as `per_channel`.
    """
    found = np.abs(per_channel(full_scale, n_channels, name, may_be_0=True))
    return np.where(found > 0, found, np.inf) if found.any() else None
