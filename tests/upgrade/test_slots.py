"""Which bundle runs, when starts fail, files are damaged, and others look in."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl import Bundle
from edge_cl.errors import StateError
from edge_cl.upgrade.comparison import (
    CLEARLY,
    FALL,
    MARGIN,
    USUAL,
    Comparison,
    Probation,
    judge,
    judge_probation,
)
from edge_cl.upgrade.pointer import FILE, HOME, describe_install, read_pointer, write_pointer
from edge_cl.upgrade.slots import BUNDLE, MOST_BOOTS, Slots, active_place, active_state
from tests.upgrade.boards import Board, variant
from tests.worlds import World, make_bundle, reading


def installed(tmp_path, *names):
    """A board that these bundles were installed on, one after the other; stopped."""
    board = Board(tmp_path).start()
    for n, name in enumerate(names):
        variant(Bundle.load(board.home), tmp_path / f"{name}.ecl", name=name)
        board.install(tmp_path / f"{name}.ecl")
        X = World(seed=n).draw(210)[0]
        board.run([reading(x, f"{name}-{k}") for k, x in enumerate(X)])
        assert board.phases[-1] == "committed"
    board.stop()
    return board


def test_a_slot_that_never_comes_up_is_left_after_three_starts(tmp_path):
    board = installed(tmp_path, "new")
    new = board.bundle_id
    for _ in range(MOST_BOOTS):
        board.start()
        assert board.bundle_id == new
        board.cut()  # before it answered anything
    board.start()
    assert board.bundle_id == Bundle.load(board.home).bundle_id
    assert "did not come up 3 times" in board.device.status().alarm
    board.run([None])
    assert board.phases[-1] == "rolled-back" and board.reports[-1].id == "c1"
    board.stop()


def test_one_answer_or_an_orderly_end_is_a_start_that_went_well(tmp_path):
    board = installed(tmp_path, "new")
    new = board.bundle_id
    for _ in range(MOST_BOOTS + 2):
        board.start()
        board.run(World(seed=7).events(1))
        board.cut()
    for _ in range(MOST_BOOTS + 2):
        board.start()
        board.run([None])
        board.stop()
    board.start()
    assert board.bundle_id == new
    board.stop()


def test_one_that_is_gone_or_damaged_is_left(tmp_path):
    board = installed(tmp_path, "new")
    pointer, _ = read_pointer(tmp_path / "state")
    (tmp_path / "state" / "slots" / pointer.active / BUNDLE).unlink()
    board.start()
    assert board.bundle_id == Bundle.load(board.home).bundle_id
    board.stop()


def test_only_the_active_and_the_previous_slot_are_kept(tmp_path):
    board = installed(tmp_path, "one", "two", "three")
    state = tmp_path / "state"
    pointer, _ = read_pointer(state)
    assert {folder.name for folder in (state / "slots").iterdir()} == {pointer.active, pointer.previous}
    assert pointer.names[pointer.previous] == "two"
    board.start().device.undo_install()
    board.run([None])
    assert board.device.learner.bundle.manifest.name == "two"
    board.device.undo_install()
    board.run([None])
    assert board.bundle_id == Bundle.load(board.home).bundle_id
    board.stop()


@settings(max_examples=20)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_pointer_is_told_and_home_runs(tmp_path_factory, place, flip, cut):
    root = tmp_path_factory.mktemp("state")
    bundle = make_bundle(root / "home.ecl")
    with Slots(root) as slots:
        slots.active(root / "home.ecl")
        slots.change(active="0123456789abcdef", names={"0123456789abcdef": "new"})
    raw = bytearray((root / FILE).read_bytes())
    at = int(place * len(raw))
    raw[at] ^= flip
    (root / FILE).write_bytes(raw[: at + 1] if cut else raw)
    with Slots(root) as slots:
        place = slots.active(root / "home.ecl")
        assert (place.bundle, place.folder) == (root / "home.ecl", root)
        assert "damaged" in place.note
    assert Bundle.load(place.bundle).bundle_id == bundle.bundle_id


def test_a_pointer_of_a_newer_release_is_not_guessed_at(tmp_path):
    with Slots(tmp_path) as slots:
        write_pointer(tmp_path, msgspec.structs.replace(slots.pointer, format_version=2))
    with pytest.raises(StateError, match="newer release"):
        Slots(tmp_path)


def test_two_processes_never_have_the_slots(tmp_path):
    with Slots(tmp_path), pytest.raises(StateError, match="in use by process"):
        Slots(tmp_path)
    Slots(tmp_path).close()


def test_another_home_bundle_is_refused_and_nothing_is_lost(tmp_path):
    board = installed(tmp_path, "new")
    other = make_bundle(tmp_path / "other.ecl", "slda")
    with (
        Slots(tmp_path / "state") as slots,
        pytest.raises(StateError, match="start the device with that one"),
    ):
        slots.active(tmp_path / "other.ecl")
    board.start()
    assert board.device.learner.bundle.manifest.name == "new" and board.bundle_id != other.bundle_id
    board.stop()


def test_who_only_looks_sees_the_active_slot_and_changes_nothing(tmp_path):
    board = installed(tmp_path, "new")
    state = tmp_path / "state"
    before = (state / FILE).read_bytes()
    pointer, _ = read_pointer(state)
    assert active_state(state) == state / "slots" / pointer.active
    assert active_place(state, board.home).bundle == state / "slots" / pointer.active / BUNDLE
    assert "new" in describe_install(pointer) and "home" in describe_install(pointer)
    assert (state / FILE).read_bytes() == before
    assert active_place(tmp_path / "none", board.home).bundle == board.home
    assert describe_install(type(pointer)()) == ""


def test_all_slots_share_one_disk_budget(tmp_path):
    board = installed(tmp_path, "new")
    board.start()
    state = tmp_path / "state"
    mine = sum(path.stat().st_size for path in state.iterdir() if path.is_file())
    assert board.slots.beside(board.slots.pointer.active)() == mine > 0
    theirs = sum(p.stat().st_size for p in active_state(state).iterdir())
    assert board.slots.beside(HOME)() == theirs > 0
    board.stop()


# ------------------------------------------------------------------ verdicts


counts = st.integers(0, 60)


@given(n=counts, old=counts, new=counts, readings=st.integers(0, 3000))
def test_none_takes_over_that_labels_found_clearly_worse(n, old, new, readings):
    old, new = min(old, n), min(new, n)
    seen = Comparison(
        n_readings=readings, n_sure=readings, n_agreed=readings, n_trusted=n, right_old=old, right_new=new
    )
    verdict = judge(seen)
    if verdict.action == "commit":
        assert new >= old - max(1, MARGIN * n)
    if verdict.action == "roll back":
        assert new < old - MARGIN * n
    if n >= 2 * USUAL.trusted or (n >= USUAL.trusted and new < old - CLEARLY * n - 1e-9):
        assert verdict.action != "wait"


@given(n=st.integers(0, 50), right=st.integers(0, 50), then=st.floats(0, 1))
def test_probation_ends_in_a_rollback_only_after_a_fall(n, right, then):
    right = min(right, n)
    verdict = judge_probation(Probation(accuracy_then=then, n_trusted=n, right=right))
    assert (verdict.action == "roll back") == (n >= 20 and right / n < then - FALL)
    assert judge_probation(Probation(n_trusted=n, right=right)).action != "roll back"
