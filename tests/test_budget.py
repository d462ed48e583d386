"""Nobody ever holds more than the budget, and what the ledger says is what the process holds."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.budget import Ledger
from edge_cl.errors import BudgetExceeded
from edge_cl.knowledge import Knowledge
from edge_cl.memory import ReplayMemory, RowFile, fit_codebook
from edge_cl.records import SleepPlan
from tests.worlds import make_bundle

D = 6
BOOK = fit_codebook(
    np.random.default_rng(0).normal(size=(300, D)).astype(np.float32),
    2,
    np.random.default_rng(1),
    n_centroids=16,
)
CODECS = {"float32": "float32", "float16": "float16", "int8": "int8", "pq": BOOK}


class World:
    """A head that grows by class, and a memory that takes what is left of a RAM and a disk ledger."""

    def __init__(self, codec, budget, folder):
        self.ram, self.disk = Ledger(budget), Ledger(40_000, setting="budget.disk_mb")
        self.head_bytes = 400
        self.ram.register("head", lambda: self.head_bytes)
        self.disk.register("journal", lambda: 10_000)
        file = None
        if folder is not None:
            file = RowFile(path=folder / "rows", max_bytes=self.disk.free_bytes, unsaved_rows=8)
        self.memory = ReplayMemory(
            capacity_bytes=self.ram.free_bytes,
            n_features=D,
            codec=CODECS[codec],
            file=file,
            evict="redundant",
        )
        self.ram.register("memory", lambda: self.memory.nbytes, shrink=self.memory.shrink)
        self.disk.register("memory", lambda: self.memory.disk_bytes)

    def check(self):
        assert self.ram.free_bytes >= 0 and self.disk.free_bytes >= 0

    def most_unsaved(self):
        parts = (self.memory.rehearsed, self.memory.held_back)
        return sum(len(getattr(part._rows, "_changed", ())) for part in parts)

    def new_class(self):
        """Takes its bytes from the memory, or is refused and changes nothing."""
        before = self.memory.nbytes, self.head_bytes
        short = 150 - self.ram.free_bytes
        try:
            if short > 0:
                self.memory.shrink(short)
            self.ram.require("head", 150)
            self.head_bytes += 150
        except BudgetExceeded:
            assert (self.memory.nbytes, self.head_bytes) == before

    def lower(self, share):
        before = self.ram.capacity_bytes, self.ram.held_bytes
        try:
            self.ram.lower(int(self.ram.held_bytes * share))
        except BudgetExceeded as error:
            assert (self.ram.capacity_bytes, self.ram.held_bytes) == before
            assert "budget.ram_mb" in str(error)

    def resize(self, n_bytes):
        try:
            self.memory.resize(min(n_bytes, self.memory.nbytes + self.ram.free_bytes))
        except BudgetExceeded as error:
            assert "need one each" in str(error)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("labels"), st.lists(st.integers(0, 9), max_size=40)),
        st.tuples(st.just("class"), st.just(0)),
        st.tuples(st.just("resize"), st.integers(0, 20_000)),
        st.tuples(st.just("lower"), st.floats(0.3, 1.2)),
        st.tuples(st.just("sleep"), st.just(0)),
    ),
    max_size=14,
)


@settings(max_examples=80)
@given(
    codec=st.sampled_from(sorted(CODECS)), filed=st.booleans(), budget=st.integers(9_000, 25_000), steps=STEPS
)
def test_the_sum_never_passes_the_budget(codec, filed, budget, steps, tmp_path_factory):
    world = World(codec, budget, tmp_path_factory.mktemp("m") if filed and codec != "int8" else None)
    rng = np.random.default_rng(0)
    world.check()
    for what, value in steps:
        if what == "labels":
            for y in value:
                world.memory.add((100 * rng.normal(size=D)).astype(np.float32), y)
                if filed and world.most_unsaved() >= 8:
                    for _ in range(2):  # as the device does once so many labels are unsaved
                        world.memory.state()
                        world.memory.persisted()
                world.check()
        elif what == "class":
            world.new_class()
        elif what == "resize":
            world.resize(value)
        elif what == "lower":
            world.lower(value)
        else:
            world.memory.refresh()
        world.check()


@settings(max_examples=25)
@given(
    names=st.lists(st.integers(0, 40), max_size=120),
    ram=st.integers(70_000, 300_000),
    head=st.sampled_from(["slda", "prototype", "logistic"]),
)
def test_everything_a_device_learns_stays_inside_its_budget(names, ram, head, tmp_path_factory):
    """Known and ever new classes, sleeps between: head, sleeping copy and memory share one budget."""
    bundle = make_bundle(tmp_path_factory.mktemp("b") / "b.ecl", head)
    ledger = Ledger(ram)
    knowledge = Knowledge(bundle, ledger)
    rng = np.random.default_rng(0)
    for k, name in enumerate(names):
        try:
            knowledge.check_room(f"class {name}")
            knowledge.learn(rng.normal(size=D).astype(np.float32), f"class {name}")
        except BudgetExceeded as error:
            assert "raise budget.ram_mb" in str(error)
        if k % 50 == 49:
            knowledge.begin_sleep(SleepPlan())
            knowledge.wake()
        assert ledger.held_bytes <= ram


def test_a_budget_lowered_while_full_takes_from_the_memory_or_is_refused():
    world = World("float16", 12_000, None)
    for k in range(500):
        world.memory.add(np.full(D, k, dtype=np.float32), k % 3)
    n = world.memory.n
    world.ram.lower(6_000)
    assert world.ram.held_bytes <= 6_000 and 0 < world.memory.n < n
    assert world.memory.rehearsed.class_counts[0] >= world.memory.rehearsed.n // 3
    left = world.memory.n
    with pytest.raises(
        BudgetExceeded, match=r"3 classes need one each; raise budget.ram_mb, or choose a codec"
    ):
        world.ram.lower(400 + 3 * world.memory.row_bytes)  # two to rehearse, one held back
    assert world.memory.n == left and world.ram.capacity_bytes == 6_000
    world.ram.release("memory")
    with pytest.raises(BudgetExceeded, match=r"budget.ram_mb cannot be lowered to 100 bytes: 400 are held"):
        world.ram.lower(100)


def test_a_request_that_does_not_fit_is_refused_by_name():
    disk = Ledger(1000, setting="budget.disk_mb")
    disk.register("journal", lambda: 900)
    with pytest.raises(BudgetExceeded, match=r"outbox needs 101 .* 100 .*journal holds 900.*budget.disk_mb"):
        disk.require("outbox", 101)
    disk.require("outbox", 100)


def test_a_memory_without_room_for_one_exemplar_is_refused():
    with pytest.raises(BudgetExceeded, match="room for one exemplar"):
        ReplayMemory(capacity_bytes=50, n_features=128)


FILL = """
import sys
import numpy as np
from pathlib import Path
from edge_cl.memory import ReplayMemory, RowFile, fit_codebook

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024

codec, folder = sys.argv[1], sys.argv[2]
rng = np.random.default_rng(0)
X = rng.normal(size=(2000, 128)).astype(np.float32)
book = fit_codebook(X[:400], 32, rng, n_centroids=64)
file = RowFile(path=Path(folder) / "rows", max_bytes=4 * 2**20, unsaved_rows=15000) if folder else None
size = {"capacity_bytes": (4 if codec == "pq" else 12) * 2**20, "n_features": 128, "file": file}
size["codec"] = book if codec == "pq" else codec
warm = ReplayMemory(**{**size, "capacity_bytes": 2**19, "file": None})
for x in X[:300]:
    warm.add(x, 0)
del warm
before = anonymous()
memory = ReplayMemory(**size)
while memory.rehearsed.n < memory.rehearsed.capacity:
    memory.add(X[memory.n % 2000], memory.n % 7)
if file:  # as when the last snapshot held them all
    for part in (memory.rehearsed, memory.held_back):
        part._rows._saved = set(part._rows._changed)
print(anonymous() - before, memory.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is in Linux's /proc")
@pytest.mark.parametrize("codec", ["float32", "float16", "int8", "pq", "float16 in a file"])
def test_the_ledger_is_what_the_process_really_holds(codec, tmp_path):
    folder = str(tmp_path) if "file" in codec else ""
    command = [sys.executable, "-c", FILL, codec.split()[0], folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    grown, ledger = map(int, done.stdout.split())
    assert abs(grown - ledger) <= 0.1 * ledger + 2**20, f"grown by {grown:,}, ledger says {ledger:,}"
