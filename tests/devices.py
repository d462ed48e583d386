"""`edge-cl` as its user has it: real processes, fed and read line by line."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from tests.worlds import NAMES, World

COMMAND = [sys.executable, "-m", "edge_cl"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
Record = dict[str, Any]


def edge_cl(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    """One command, run to its end."""
    command = [*COMMAND, *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, env=ENVIRONMENT, timeout=60)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def answers(text: str, kind: str = "") -> list[Record]:
    """The JSON lines of an output, those of one type when it is given."""
    found = [json.loads(line) for line in text.splitlines()]
    return [record for record in found if kind in ("", record["type"])]


def windows(n: int, *, start: int = 0, labelled: bool = False, seed: int = 4) -> list[Record]:
    """Lines of ready windows r0, r1, …, of all four classes of the world; the fourth is new to the bundle."""
    X, y = World(seed=seed).draw(start + n, 4)
    return [
        {"t": float(k), "id": f"r{k}", "window": [np.round(X[k].astype(float), 4).tolist()]}
        | ({"label": NAMES[y[k]]} if labelled else {})
        for k in range(start, start + n)
    ]


def jsonl(lines: Iterable[Record | str]) -> bytes:
    """Lines as bytes; a string is taken as it is."""
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    return "".join(text + "\n" for text in texts).encode()


class Device:
    """A running ``edge-cl run`` with its input open; use it in a ``with`` block.

    `command` starts edge-cl; by default this Python's.
    """

    def __init__(self, bundle: Path, state: Path, *options: object, command: Sequence[str] = COMMAND) -> None:
        self.state = state
        self.seen: list[Record] = []
        self.log: list[str] = []
        words = [*command, "run", str(bundle), "--state", str(state), *map(str, options)]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
        )
        self._arrived: queue.Queue[Record | None] = queue.Queue()
        self._readers = [
            threading.Thread(target=reader, daemon=True) for reader in (self._read_answers, self._read_log)
        ]
        for reader in self._readers:
            reader.start()

    def send(self, *lines: Record | str) -> None:
        """Write lines to its input."""
        assert self.process.stdin
        self.process.stdin.write(jsonl(lines))
        self.process.stdin.flush()

    def wait_for(self, kind: str, timeout_s: float = 20.0, **fields: object) -> Record:
        """The first record of this type and with these fields, of those seen or to come."""

        def wanted(record: Record) -> bool:
            return record["type"] == kind and fields.items() <= record.items()

        found = next(filter(wanted, self.seen), None)
        while found is None:
            try:
                record = self._arrived.get(timeout=timeout_s)
            except queue.Empty:
                record = None
            if record is None:
                pytest.fail(f"no {kind} with {fields} came; the device said: {''.join(self.log)}")
            self.seen.append(record)
            found = record if wanted(record) else None
        return found

    def finish(self) -> int:
        """End its input; wait for its end and all it said; its exit code."""
        assert self.process.stdin
        self.process.stdin.close()
        return self._wait()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, its input still open; its exit code."""
        self.process.send_signal(number)
        return self._wait()

    def of(self, kind: str) -> list[Record]:
        """The records of this type that it said."""
        return [record for record in self.seen if record["type"] == kind]

    def _wait(self) -> int:
        code = self.process.wait(timeout=30)
        for reader in self._readers:
            reader.join(10)
        while (record := self._arrived.get(timeout=10)) is not None:
            self.seen.append(record)
        return code

    def _read_answers(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._arrived.put(json.loads(line))
        self._arrived.put(None)

    def _read_log(self) -> None:
        assert self.process.stderr
        self.log.extend(line.decode() for line in self.process.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(timeout=30)
        for reader in self._readers:
            reader.join(10)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
