"""Many learners on many streams: heads and peers, with their seeds, in one process or several."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import msgspec
import numpy as np
from threadpoolctl import threadpool_limits

from edge_cl import heads
from edge_cl.datasets.streams import Stream
from edge_cl.simulate import peers
from edge_cl.simulate.streams import HeadFactory, Labelling, StreamLearner, StreamResult, run_stream

ACCURACIES = ("now0", "now50", "ever", "ever_sorted")
HEADS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in heads.STANDALONE}
HEADS["dual-lean"] = heads.DEFAULT, heads.LEAN
"""What is measured: name of the head and its options."""


class Trial(NamedTuple):
    """One learner, by name, on one stream with one seed."""

    stream: Stream
    learner: str
    seed: int
    labelling: Labelling
    options: tuple[tuple[str, Any], ...] = ()
    """Of a head, instead of its defaults."""


def is_seeded(learner: str) -> bool:
    """Whether another seed makes another learner; without, one seed is enough."""
    if learner in peers.PEERS:
        return learner in peers.SEEDED
    return takes(learner, "seed")


def takes(head: str, option: str) -> bool:
    """Whether a head has an option of that name."""
    return option in inspect.signature(heads.HEADS[HEADS[head][0]]).parameters


def run_trials(trials: Sequence[Trial], jobs: int = 1) -> Iterator[StreamResult]:
    """The result of each trial in order, each on one BLAS thread; with `jobs` > 1 in so many processes."""
    if jobs == 1:
        yield from map(_run, trials)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_run, trials)


def mean_of_seeds(results: Sequence[StreamResult]) -> dict[str, Any]:
    """The mean of every measure; `range`, least and most of each accuracy; `seeds`, every result."""
    every = [msgspec.to_builtins(result) for result in results]
    return {
        **{measure: float(np.mean([r[measure] for r in every])) for measure in every[0]},
        "range": {name: [min(r[name] for r in every), max(r[name] for r in every)] for name in ACCURACIES},
        "seeds": every,
    }


def _run(trial: Trial) -> StreamResult:
    with threadpool_limits(1):
        return run_stream(trial.stream, _maker(trial), trial.labelling)


def _maker(trial: Trial) -> HeadFactory:
    seed = {"seed": trial.seed} if is_seeded(trial.learner) else {}

    def make(n_features: int, n_classes: int) -> StreamLearner:
        if trial.learner in peers.PEERS:
            return peers.PEERS[trial.learner](n_features, n_classes, **seed)
        name, options = HEADS[trial.learner]
        options = options | seed | dict(trial.options)
        return heads.create(name, n_features=n_features, n_classes=n_classes, **options)

    return make
