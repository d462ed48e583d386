"""The process in which a bundle is measured: ``python -m edge_cl_device.measuring BUNDLE [SETTINGS.toml]``.

What `edge-cl run` imports is imported here too, so that memory can be compared; the runtime and the MQTT link
come later, each between two looks at the resident memory.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from threadpoolctl import threadpool_limits

from edge_cl import encoders
from edge_cl.budget import Ledger
from edge_cl.bundle import Bundle
from edge_cl.config import Settings, load_settings
from edge_cl.errors import BudgetExceeded, BundleError, EdgeCLError
from edge_cl.knowledge import Knowledge
from edge_cl.records import FloatArray, SleepPlan
from edge_cl.shares import make_pending, memory_bytes_beside_one_more_class
from edge_cl_device.measurements import MOST_CLASSES, Measured, resident_mb

N_TIMED, N_LABELS, N_PER_CLASS = 200, 120, 8
ROW_BYTES = 256
"""What the journal takes for a label besides its feature, as the device reckons it."""
SNAPSHOTS_AT_ONCE = 3
"""While one is made, two lie beside it."""


def main() -> None:
    """Measure, and write JSON."""
    bundle, *config = sys.argv[1:]
    try:
        settings = load_settings(config[0]) if config else Settings()
        found = measure_here(Bundle.load(Path(bundle)), settings)
    except EdgeCLError as error:
        sys.exit(f"{error}")
    sys.stdout.buffer.write(msgspec.json.encode(found))


def measure_here(bundle: Bundle, settings: Settings) -> Measured:
    """All of it, in this process, one thread."""
    threadpool_limits(1)
    found = Measured()
    _measure_encoder(bundle, settings, found)
    before = resident_mb()
    importlib.import_module("edge_cl.sync.link")
    found.mqtt_mb = round(resident_mb() - before, 2)
    ledger, knowledge = _new(bundle, settings, begin=True)
    _measure_room(ledger, knowledge, settings, found)
    _measure_times(knowledge, settings, found)
    found.most_classes = _most_classes(*_new(bundle, settings, begin=False))
    return found


def _measure_encoder(bundle: Bundle, settings: Settings, found: Measured) -> None:
    before = resident_mb()
    try:
        encoder = encoders.create(bundle, settings.encoder)
    except BundleError as error:
        found.encoder_error = str(error)
        return
    found.runtime = type(encoder).__module__.rpartition(".")[2]  # each runtime's class has a file of its own
    shape = (bundle.manifest.window_samples, bundle.manifest.n_channels)
    golden = bundle.golden()
    window = np.zeros(shape, np.float32) if golden is None else np.asarray(golden[0][0], np.float32)
    found.encode_ms = _median_ms(lambda: encoder.encode(window), N_TIMED)
    found.encoder_mb = round(resident_mb() - before, 2)


def _new(bundle: Bundle, settings: Settings, *, begin: bool) -> tuple[Ledger, Knowledge]:
    """What a new device holds, and its ledger; made as the learner makes it."""
    ledger = Ledger(settings.to_budget().ram_bytes)
    make_pending(ledger, bundle.manifest.feature_size)
    knowledge = Knowledge(
        bundle,
        ledger,
        head_name=settings.head.name,
        head_options=settings.head.options,
        memory=msgspec.structs.replace(settings.memory, file=False),
        trust=settings.trust,
        begin=begin,
    )
    return ledger, knowledge


def _measure_room(ledger: Ledger, knowledge: Knowledge, settings: Settings, found: Measured) -> None:
    memory = knowledge.memory
    found.ledger = ledger.held()
    found.head = knowledge.head.name
    found.n_classes = len(knowledge.class_names)
    found.n_exemplars = memory.rehearsed.capacity + memory.held_back.capacity
    found.label_bytes = 4 * knowledge.head.n_features + ROW_BYTES
    journal = 4 * settings.state.snapshot_labels * found.label_bytes
    found.disk_bytes = SNAPSHOTS_AT_ONCE * (knowledge.head.nbytes + memory.nbytes) + journal


def _measure_times(knowledge: Knowledge, settings: Settings, found: Measured) -> None:
    """Of features that are no sensor's, but as many and of as many classes; the sleep with a full memory."""
    rng = np.random.default_rng(0)
    names = list(knowledge.class_names) or ["one", "other"]
    n_features = knowledge.head.n_features
    features: list[FloatArray] = []
    for _ in names:
        centre = rng.normal(size=n_features)
        features += [(centre + rng.normal(size=n_features)).astype(np.float32) for _ in range(N_PER_CLASS)]
    turn = iter(range(sys.maxsize))

    def learn() -> None:
        k = next(turn) % len(features)
        knowledge.learn(features[k], names[k // N_PER_CLASS])

    found.learn_ms = _median_ms(learn, N_LABELS)
    found.predict_ms = _median_ms(
        lambda: knowledge.predict_one(features[next(turn) % len(features)]), N_TIMED
    )
    for _ in range(found.n_exemplars):
        k = next(turn) % len(features)
        knowledge.memory.add(features[k], k // N_PER_CLASS)
    began_s = time.process_time()
    knowledge.begin_sleep(SleepPlan(sampler=settings.sleep.sampler, steps=settings.sleep.steps))
    knowledge.wake()
    found.sleep_s = round(time.process_time() - began_s, 3)


def _most_classes(ledger: Ledger, knowledge: Knowledge) -> int:
    """Let classes come, as a device makes room for them, until there is none."""
    head, memory = knowledge.head, knowledge.memory
    while head.n_classes < MOST_CLASSES:
        try:
            left = memory_bytes_beside_one_more_class(ledger, head, memory, "one more")
        except BudgetExceeded:
            break
        if left < memory.nbytes:
            memory.resize(left)
        head.add_class()
    return head.n_classes


def _median_ms(call: Callable[[], object], n: int) -> float:
    took = []
    for _ in range(n):
        began_s = time.perf_counter()
        call()
        took.append(time.perf_counter() - began_s)
    return round(1000 * statistics.median(took[n // 10 :]), 5)


if __name__ == "__main__":
    main()
