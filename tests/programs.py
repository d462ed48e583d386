"""A small compiled network for tests of head `step`, and any head by name."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from edge_cl import heads
from edge_cl.heads import Head
from edge_cl.heads.program import StepProgram
from edge_cl.memory.exemplars import Exemplars
from tests.worlds import D, World


@functools.cache
def untrained_program() -> StepProgram:
    """An MLP for the features of `World` and three classes, as torch began it."""
    pytest.importorskip("torch")
    from edge_cl_export.plastic import Mlp
    from edge_cl_export.step_graph import compile_program

    return compile_program(Mlp, (D,), 3)


@functools.cache
def program() -> StepProgram:
    """The same, trained on the three classes that are known at export."""
    untrained = untrained_program()
    from edge_cl_export.warm import trained

    return trained(untrained, *World(seed=1).draw(300))


def make_head(name: str, *, n_features: int = D, n_classes: int = 3, **options: Any) -> Head:
    """`heads.create`, with a program for a head that needs one."""
    given = program() if heads.HEADS[name].needs_program else None
    return heads.create(name, n_features=n_features, n_classes=n_classes, program=given, **options)


def sleep_if_it_must(head: Head, X: np.ndarray, y: np.ndarray) -> None:
    """A head that learns by steps knows more than its last labels only after a balanced sleep."""
    if head.learns_by_steps:
        rows = np.concatenate([np.flatnonzero(y == c)[-100:] for c in np.unique(y)])
        for _ in head.rehearse(Exemplars.of(X[rows], y[rows], n_steps=200)):
            pass
