"""What the figures of ``edge-cl bench streams`` say: is the default head at or above the best peer?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_cl.heads import DEFAULT
from edge_cl.simulate.trials import ACCURACIES

PACE = "river-arf"
"""The peer that speeds are compared with."""

Figures = Mapping[str, Any]
"""Of one stream: ``heads`` and ``peers``, learner name → measures."""


def verdict(found: Figures) -> dict[str, Any]:
    """For each accuracy the best peer, its figure, and the default head's where it was measured."""
    verdicts = {}
    for measure in ACCURACIES:
        best = max(found["peers"], key=lambda name: found["peers"][name][measure])
        verdicts[measure] = {"best_peer": best, "peer": found["peers"][best][measure]}
        if DEFAULT in found["heads"]:
            mine = found["heads"][DEFAULT][measure]
            verdicts[measure] |= {"head": mine, "at_or_above": mine >= verdicts[measure]["peer"]}
    return verdicts


def summary(streams: Mapping[str, Figures]) -> dict[str, Any]:
    """Over all streams: each learner's mean accuracies, cells won by the default head, speeds.

    `speed` is how many times less processor time per sample a head takes than river's adaptive random
    forest: the geometric mean over the streams; empty where that was not measured.
    """
    each = list(streams.values())
    verdicts = [v for found in each if found["peers"] for v in verdict(found).values() if "head" in v]
    return {
        "mean": {
            kind: {
                name: {m: float(np.mean([found[kind][name][m] for found in each])) for m in ACCURACIES}
                for name in each[0][kind]
            }
            for kind in ("heads", "peers")
        },
        "cells": len(verdicts),
        "at_or_above": sum(v["at_or_above"] for v in verdicts),
        "speed": {name: _speed(each, name) for name in each[0]["heads"] if PACE in each[0]["peers"]},
    }


def _speed(each: list[Figures], head: str) -> float:
    ratios = [found["peers"][PACE]["us_per_step"] / found["heads"][head]["us_per_step"] for found in each]
    return float(np.exp(np.mean(np.log(ratios))))
