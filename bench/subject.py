"""A device in a process of its own, to be stopped and killed, and the verdict on what it left."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from bench.lives import Forgetting, Life, live
from edge_cl.errors import EdgeCLError

PATIENCE_S = 60.0
BAD = ("labels_lost", "unreadable_heads", "hash_mismatches", "false_alarms")
"""Of what `judge` counts: what must never be."""


class Subject:
    """A process that lives on with a state folder, forked from a server that has loaded everything.

    Parameters
    ----------
    life, state
        What it lives, where it keeps what it learned.
    n_receipted
        Labels that were receipted before, by devices whose folder this was.
    """

    def __init__(self, life: Life | Forgetting, state: Path, n_receipted: int = 0) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["bench.lives"])
        self._heard, said = context.Pipe(duplex=False)
        self._process = context.Process(target=_alone, args=(life, state, said))
        self._process.start()
        said.close()
        self.n_receipted = n_receipted
        self._heard_any = False
        self.ended = self.ended_well = False
        """Whether it is dead, or said that it has lived to the end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()
        self._heard.close()

    def wait(self, n_more: int) -> None:
        """Wait for so many more receipts, or its end."""
        for _ in range(n_more):
            if self.ended:
                return
            if not self._heard.poll(PATIENCE_S):
                raise TimeoutError(f"the device said nothing for {PATIENCE_S:g} s")
            self._hear()

    def drain(self) -> None:
        """Take in what it has said by now."""
        while not self.ended and self._heard.poll():
            self._hear()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid or 0, number)

    def kill(self) -> bool:
        """Kill -9, and take in all that it had said; false when it had ended before."""
        self._process.kill()
        self._process.join()
        self.drain()
        return self._process.exitcode == -signal.SIGKILL

    def _hear(self) -> None:
        try:
            word = self._heard.recv_bytes().decode()
        except EOFError:
            self.ended = True
            if self._process.join() or self._process.exitcode not in (0, -signal.SIGKILL):
                raise RuntimeError(f"the device ended with {self._process.exitcode}") from None
            return
        if word == "done":
            self.ended = self.ended_well = True
            return
        n = int(word)
        # the first one may follow labels that were safe before the fault, and not receipted
        if n < self.n_receipted or (self._heard_any and n > self.n_receipted):
            raise RuntimeError(f"receipted {word} after {self.n_receipted} labels: twice, or out of order")
        self.n_receipted, self._heard_any = n + 1, True


def judge(life: Life | Forgetting, state: Path, n_receipted: int) -> Counter[str]:
    """Start from what a device left and compare it with one that was never interrupted.

    Counts ``labels_lost`` (receipted and not known any more; of a life that forgets: forgotten, and known
    again), ``unreadable_heads`` (no start, or no answer), ``hash_mismatches`` (other knowledge than as many
    labels give), ``false_alarms`` (a problem is reported), ``asleep`` (starts within a sleep) and
    ``unreceipted`` (labels known that had no receipt yet).
    """
    found: Counter[str] = Counter()
    try:
        with life.open(state) as learner:
            found["asleep"] += learner.knowledge.asleep
            found["false_alarms"] += bool(learner.status().alarm)
            learner.run([None])  # a sleep that was cut off is taken up
            n_done = life.n_done(learner)
            answer = learner.observe(life.events()[0])  # type: ignore[arg-type]
            found["unreadable_heads"] += not np.isfinite(answer.confidence)
            found["hash_mismatches"] += learner.knowledge.digest() != life.digests()[n_done]
    except EdgeCLError as error:
        print(f"no start: {error}", flush=True)
        return Counter(unreadable_heads=1, labels_lost=n_receipted)
    found["labels_lost"] += max(n_receipted - n_done, 0)
    found["unreceipted"] += max(n_done - n_receipted, 0)
    return found


def _alone(life: Life | Forgetting, state: Path, said: Connection) -> None:
    """Live, in the new process: an interrupt from the keyboard is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    live(life, state, said)
