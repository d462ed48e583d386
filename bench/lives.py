"""The same device life every time: for faults to interrupt, and for checking what is left of it.

A life is a bundle, settings and a fixed stream of labelled readings. `digests` gives what a device that was
never interrupted knows after each label; a device that was must know the same after as many.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from edge_cl.bundle import Bundle
from edge_cl.config import settings_from
from edge_cl.learner import Learner
from edge_cl.records import Answer, Event, Label, Reading, Receipt
from edge_cl.revisions import Forget
from edge_cl.simulate import wrist
from tests.worlds import World, make_bundle

DEFAULT_BUNDLE = Path("edge_cl/assets/wrist.ecl")
N_WINDOWS = 1000
"""Of a wrist; then they come again."""
N_SOURCES = 8
"""Of the small world's labels, in turn."""


def busy(slice_ms: float) -> dict[str, Any]:
    """Snapshots and sleeps all the time, so that faults at random moments meet them.

    A slice must be long enough for a sleep to end before the second snapshot that it puts off: that would
    end it early, where it happens to be, and no two lives would be the same.
    """
    return {
        "sleep": {"after_labels": 40, "idle_s": 0, "slice_ms": slice_ms},
        "state": {"snapshot_labels": 25, "commit_ms": 3, "daily_write_mb": 0},
    }


class Life(NamedTuple):
    """`world` gives the readings: ``small`` has six numbers each, ``wrist`` windows of two seconds."""

    bundle: Path
    world: Literal["small", "wrist"]
    n_labels: int
    settings: str
    """As JSON."""

    def open(self, state: Path | None) -> Learner:
        """The device, as it was when it last stopped."""
        settings = settings_from(msgspec.json.decode(self.settings))
        return Learner.from_bundle(Bundle.load(self.bundle), state_dir=state, settings=settings)

    def events(self, n_taught: int = 0) -> list[Event]:
        """Readings and their labels in turn, from the one after `n_taught`."""
        return _events(self.world, self.n_labels)[2 * n_taught :]

    def one_more(self, n_taught: int) -> list[Event]:
        """The next reading and its label."""
        return self.events()[2 * n_taught : 2 * n_taught + 2]

    def digests(self) -> list[str]:
        """Of what is known after 0, 1, … labels, awake, by a device that nothing interrupts."""
        return _digests(self)

    @property
    def n_between(self) -> int:
        """Receipts between two faults, at most."""
        return 40

    def begin(self, state: Path) -> None:
        """What lies in a new device's folder: nothing."""

    def n_done(self, learner: Learner) -> int:
        """How far it has come."""
        return learner.knowledge.n_labels

    def go_on(self, learner: Learner, done: Callable[[int], None]) -> None:
        """Live to the end, saying the number of every label that is receipted."""

        def say(answer: Answer) -> None:
            if isinstance(answer, Receipt) and answer.status == "learned":
                done(int(answer.reading_id[1:]))

        learner.run(self.events(self.n_done(learner)), sinks=[say])


class Forgetting(NamedTuple):
    """A device that has learned from `N_SOURCES` in turn, and forgets one source after the other.

    What it knows must be what one knows that never heard them.
    """

    learned: Path
    """Its folder before."""
    life: Life
    """Without sleeps: a sleep stays where it was when labels before it are forgotten."""

    def open(self, state: Path | None) -> Learner:
        """The device, as it was when it last stopped."""
        return self.life.open(state)

    def events(self) -> list[Event]:
        """What it had learned from."""
        return self.life.events()

    def digests(self) -> list[str]:
        """Of what is known after 0, 1, … sources were forgotten."""
        return _digests_without(self)

    @property
    def n_between(self) -> int:
        """Sources forgotten between two faults, at most."""
        return 3

    def begin(self, state: Path) -> None:
        """What lies in its folder before it forgets."""
        shutil.copytree(self.learned, state)

    def n_done(self, learner: Learner) -> int:
        """Sources forgotten: all give as many labels."""
        return N_SOURCES - learner.knowledge.n_labels // (self.life.n_labels // N_SOURCES)

    def go_on(self, learner: Learner, done: Callable[[int], None]) -> None:
        """Forget to the end, saying the number of every source that is forgotten."""
        for k in range(self.n_done(learner), N_SOURCES):
            learner.revise(Forget(source=f"source-{k}"))
            done(k)


def small(folder: Path, head: str = "dual", *, n_labels: int = 400, **settings: Any) -> Life:
    """A head that learns in a fraction of a millisecond; its bundle is made in `folder`."""
    path = folder / f"{head}.ecl"
    make_bundle(path, head)
    return Life(path, "small", n_labels, _json(settings or busy(slice_ms=5)))


def default(*, n_labels: int = 200, **settings: Any) -> Life:
    """The bundle that comes with the package, on simulated wrists."""
    return Life(DEFAULT_BUNDLE, "wrist", n_labels, _json(settings or busy(slice_ms=50)))


def forgetting(folder: Path) -> Forgetting:
    """One that has learned, in `folder`, with a snapshot every few labels, so that forgetting meets some."""
    settings: dict[str, Any] = {
        "sleep": {"after_labels": 0, "idle_s": 0},
        "state": {"snapshot_labels": 7, "commit_ms": 3, "daily_write_mb": 0},
    }
    life = small(folder, n_labels=10 * N_SOURCES, **settings)
    with life.open(folder / "learned") as learner:
        learner.run(life.events())
    return Forgetting(folder / "learned", life)


def live(life: Life | Forgetting, state: Path, said: Connection) -> None:
    """Live on to the end in this process, sending the number of everything that was promised."""
    with life.open(state) as learner:
        life.go_on(learner, lambda k: said.send_bytes(str(k).encode()))
    said.send_bytes(b"done")


@cache
def _events(world: str, n: int) -> list[Event]:
    if world == "small":
        pairs = list(World(seed=4, shift=1.0).events(n))
        for k, label in enumerate(pairs[1::2]):
            pairs[2 * k + 1] = msgspec.structs.replace(label, source=f"source-{k % N_SOURCES}")
        return pairs
    rng = np.random.default_rng(4)
    who = wrist.person(rng)
    names = [str(name) for name in rng.choice(list(wrist.SOURCE_ACTIVITIES), N_WINDOWS)]
    felt = [wrist.signal(who, name, wrist.WINDOW_SAMPLES, rng).astype(np.float32) for name in names]
    events: list[Event] = []
    for k in range(n):
        events.append(Reading(id=f"r{k}", t_s=float(k), window=felt[k % N_WINDOWS]))
        events.append(Label(label=names[k % N_WINDOWS], reading_id=f"r{k}", source="bench"))
    return events


@cache
def _digests(life: Life) -> list[str]:
    with life.open(None) as learner:
        found = [learner.knowledge.digest()]
        for k in range(life.n_labels):
            learner.run(life.one_more(k))
            found.append(learner.knowledge.digest())
    return found


@cache
def _digests_without(forgetting: Forgetting) -> list[str]:
    found = []
    pairs = forgetting.events()
    for n_forgotten in range(N_SOURCES + 1):
        kept = [k for k in range(forgetting.life.n_labels) if k % N_SOURCES >= n_forgotten]
        with forgetting.open(None) as learner:
            learner.run([event for k in kept for event in pairs[2 * k : 2 * k + 2]])
            found.append(learner.knowledge.digest())
    return found


def _json(settings: dict[str, Any]) -> str:
    return msgspec.json.encode(settings).decode()
