"""Rows in a file: whatever moment the power goes, file and snapshot together are what they were."""

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.errors import StateError, StateUnwritable
from edge_cl.memory import ReplayMemory, RowFile, fit_codebook
from edge_cl.memory.rows import HEADER_BYTES, FileRows

D = 4
PARTS = ("rows.rehearsed", "rows.held_back")


def feature(k):
    return np.array([k, k % 7, -k, 1], dtype=np.float32)


def memory(folder, *, capacity_bytes=40_000, max_bytes=400 + 2 * HEADER_BYTES, codec="float32", **options):
    place = {"path": folder / "rows", "max_bytes": max_bytes, "owner": "b1", "unsaved_rows": 60} | options
    file = RowFile(**place)
    return ReplayMemory(
        capacity_bytes=capacity_bytes, n_features=D, codec=codec, file=file, evict="redundant"
    )


def teach(memory, start, stop):
    for k in range(start, stop):
        memory.add(feature(k), k % 3)


def same(one, other):
    (ours, our_meta), (theirs, their_meta) = one.state(whole=True), other.state(whole=True)
    assert our_meta == their_meta and set(ours) == set(theirs)
    for key, array in ours.items():
        np.testing.assert_array_equal(array, theirs[key], err_msg=key)


def test_a_file_remembers_what_ram_would(tmp_path):
    filed = memory(tmp_path)
    n = sum((filed.rehearsed.capacity, filed.held_back.capacity))
    ram = ReplayMemory(
        capacity_bytes=n * (4 * D + 17) + filed.rehearsed._codec.nbytes,
        n_features=D,
        codec="float32",
        evict="redundant",
    )
    assert ram.rehearsed.capacity == filed.rehearsed.capacity == 21
    for k in range(150):
        teach(filed, k, k + 1)
        teach(ram, k, k + 1)
        if k % 20 == 7:
            filed.state()
            filed.persisted()
    for part in ("rehearsed", "held_back"):
        for ours, theirs in zip(
            getattr(filed, part).exemplars(), getattr(ram, part).exemplars(), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
    assert filed.nbytes <= 40_000
    assert filed.disk_bytes == sum((tmp_path / name).stat().st_size for name in PARTS)
    assert filed.disk_bytes <= 400 + 2 * HEADER_BYTES


class Device:
    """Two snapshot slots and a journal, as the state folder has them, over a memory with a file."""

    def __init__(self, folder):
        self.folder = folder
        self.slots = {}  # number of the snapshot: (labels at that moment, state)
        self.n_labels = 0
        self.memory = memory(folder)

    def teach(self, n):
        teach(self.memory, self.n_labels, self.n_labels + n)
        self.n_labels += n

    def snapshot(self, *, written=True, persisted=True):
        state = self.memory.state()
        if not written:
            return
        self.slots = dict(sorted(self.slots.items())[-1:]) | {
            max(self.slots, default=0) + 1: (self.n_labels, state)
        }
        if persisted:
            self.memory.persisted()

    def recovered(self, folder, *, slot):
        """What a start after a cut now would know, from the newest or the older slot."""
        shutil.copytree(self.folder, folder)
        device = Device(folder)
        if len(self.slots) > slot:
            number, (device.n_labels, state) = sorted(self.slots.items())[-1 - slot]
            device.slots = {k: v for k, v in self.slots.items() if k <= number}
            device.memory.restore(*state)
            device.teach(self.n_labels - device.n_labels)
        elif not self.slots:
            device.teach(self.n_labels)
        else:
            return None
        return device


STEPS = st.lists(
    st.tuples(st.integers(0, 30), st.sampled_from(["saved", "not written", "not persisted", "halfway"])),
    min_size=1,
    max_size=7,
)


@settings(max_examples=20)
@given(steps=STEPS, more=st.integers(0, 25))
def test_recovery_from_either_slot_at_any_moment_is_exact(steps, more, tmp_path_factory):
    """The slots, the journal after them and the file as a cut leaves it give back the memory, bit for bit."""
    folder = tmp_path_factory.mktemp("device")
    device = Device(folder / "live")
    twin = memory(folder / "twin")
    for k, (n, how) in enumerate(steps):
        device.teach(n)
        if how == "halfway":
            halfway(device)
        else:
            device.snapshot(written=how != "not written", persisted=how == "saved")
        device.teach(more if k == len(steps) - 1 else 0)
        for slot in (0, 1):
            found = device.recovered(folder / f"cut-{k}-{slot}", slot=slot)
            if found is None:
                continue
            same(found.memory, device.memory)
            found.snapshot()  # and it goes on: saves, is cut again, comes back again
            again = found.recovered(folder / f"again-{k}-{slot}", slot=slot)
            if again is not None:
                same(again.memory, device.memory)
    teach(twin, 0, device.n_labels)
    same(twin, device.memory)


def halfway(device):
    """The power goes while rows are written into the file: some are there, the header is old."""
    device.snapshot(persisted=False)
    for part in (device.memory.rehearsed, device.memory.held_back):
        rows = part._rows
        ready = [slot for slot in rows._saving if slot in rows._saved]
        for slot in ready[::2]:
            rows._rows[slot] = np.frombuffer(rows._saving[slot], dtype=rows._dtype)
        rows._rows.flush()


def test_the_ram_for_changed_rows_is_given_back(tmp_path):
    one = memory(tmp_path, max_bytes=20_000, unsaved_rows=20)
    before = one.nbytes
    teach(one, 0, 200)
    assert one.nbytes > before and len(one.rehearsed._rows._changed) == 167
    for _ in range(2):
        one.state()
        one.persisted()
    assert one.nbytes == before and not one.rehearsed._rows._changed


def test_after_a_start_one_snapshot_gives_it_back(tmp_path):
    one = memory(tmp_path, max_bytes=20_000, unsaved_rows=20)
    teach(one, 0, 200)
    state = one.state()
    again = memory(tmp_path, max_bytes=20_000, unsaved_rows=20)
    again.restore(*state)
    again.state()
    again.persisted()
    assert not again.rehearsed._rows._changed
    np.testing.assert_array_equal(again.rehearsed.exemplars()[0], one.rehearsed.exemplars()[0])


def test_a_row_that_changes_while_a_snapshot_is_written_stays_changed(tmp_path):
    one, twin = memory(tmp_path / "a"), memory(tmp_path / "b")
    for start in range(0, 200, 25):
        teach(one, start, start + 5)
        one.state()
        teach(one, start + 5, start + 25)
        one.persisted()
    teach(twin, 0, 200)
    for part in ("rehearsed", "held_back"):
        np.testing.assert_array_equal(getattr(one, part).exemplars()[0], getattr(twin, part).exemplars()[0])


@pytest.mark.parametrize("to", [9_000, 12_000])
def test_shrinking_and_growing_keep_what_ram_would_keep(tmp_path, to):
    sizes = {"max_bytes": 100_000, "unsaved_rows": 10}
    one = memory(tmp_path, capacity_bytes=15_000, **sizes)
    teach(one, 0, 700)
    one.resize(to)
    kept = one.rehearsed.exemplars()[0]
    assert one.rehearsed.n == one.rehearsed.capacity and set(kept[:, 0]) <= set(range(700))
    assert {(x[0] % 3, x[1]) for x in kept} == {
        (y, x[0] % 7) for x, y in zip(kept, one.rehearsed.labels, strict=True)
    }
    one.resize(15_000)
    np.testing.assert_array_equal(one.rehearsed.exemplars()[0], kept)


def test_pq_rows_can_lie_in_a_file(tmp_path):
    X = np.stack([feature(k) for k in range(200)])
    book = fit_codebook(X, 2, np.random.default_rng(0), n_centroids=16)
    one, twin = (memory(tmp_path / name, codec=book) for name in ("a", "b"))
    teach(one, 0, 90)
    one.refresh()
    (tmp_path / "b").mkdir(exist_ok=True)
    for name in PARTS:
        shutil.copy(tmp_path / "a" / name, tmp_path / "b" / name)
    twin.restore(*one.state())
    same(one, twin)


def saved(folder):
    one = memory(folder)
    teach(one, 0, 100)
    for _ in range(3):
        state = one.state()
        one.persisted()
    return state


def test_a_missing_file_says_so(tmp_path):
    state = saved(tmp_path)
    (tmp_path / PARTS[0]).unlink()
    with pytest.raises(
        StateError, match=r"rows.rehearsed: is of generation 0, .* lost or belongs to another"
    ):
        memory(tmp_path).restore(*state)


def test_a_file_cut_short_says_so(tmp_path):
    saved(tmp_path)
    path = tmp_path / PARTS[0]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(StateError, match="was cut off: put back a whole copy with its snapshots"):
        memory(tmp_path)


@pytest.mark.parametrize("other", [{"owner": "b2"}, {"codec": "float16"}])
def test_anothers_file_is_refused(tmp_path, other):
    saved(tmp_path)
    with pytest.raises(StateError, match="holds exemplars of another format, bundle or codec"):
        memory(tmp_path, **other)


def test_any_other_file_is_refused_and_left_alone(tmp_path):
    (tmp_path / PARTS[0]).write_bytes(b"my diary " * 1000)
    with pytest.raises(StateError, match="is no file of exemplars"):
        memory(tmp_path)
    assert (tmp_path / PARTS[0]).read_bytes() == b"my diary " * 1000


def test_a_state_from_ram_is_not_taken_for_one_with_a_file_nor_the_reverse(tmp_path):
    filed, ram = memory(tmp_path), ReplayMemory(capacity_bytes=20_000, n_features=D, codec="float32")
    with pytest.raises(StateError, match=r"set memory.file = false"):
        filed.restore(*ram.state())
    with pytest.raises(StateError, match=r"set memory.file = true"):
        ram.restore(*filed.state())
    half = ReplayMemory(capacity_bytes=20_000, n_features=D)
    with pytest.raises(StateError, match=r"remembers in float32, .* set memory.codec = 'float32'"):
        half.restore(*ram.state())


def test_a_full_disk_is_found_at_the_start(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edge_cl.memory.rows.os.posix_fallocate", full)
    with pytest.raises(StateUnwritable, match=r"No space left on device\); free some disk space"):
        memory(tmp_path)


def test_int8_rows_cannot_lie_in_a_file(tmp_path):
    with pytest.raises(ValueError, match="int8 rewrites stored rows"):
        memory(tmp_path, codec="int8")


def test_changed_rows_are_seen_at_once(tmp_path):
    rows = FileRows(RowFile(path=tmp_path / "r", max_bytes=1), 8, D, np.float32)
    rows.write(3, feature(5))
    np.testing.assert_array_equal(rows.read(np.array([2, 3])), [np.zeros(D), feature(5)])
