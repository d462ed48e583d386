"""kill -9 at every step of an installation, and of the way back: either bundle runs, each label counts once.

The device is a fork of a server process, which has no threads, so that hundreds of them cost little. It is
killed before and after each note that it makes on disk; what it does between two of them is not told apart.
"""

import itertools
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest

from edge_cl import Bundle
from edge_cl.records import Label
from edge_cl.state.snapshots import Snapshots
from edge_cl.upgrade import slots
from edge_cl.upgrade.comparison import Least
from edge_cl.upgrade.shadow import Shadow
from tests.upgrade.boards import Board, variant
from tests.worlds import World

LEAST = Least(trusted=8, readings=100, probation=6)
EVENTS = list(World(seed=5).events(24))
BEFORE = 10
"""Labels that the old bundle learns alone."""


class Killer:
    """Kills this process at the k-th of the moments that may matter; 0 for never."""

    def __init__(self, k: int) -> None:
        self.left = k
        for owner, name in [
            (slots, "write_pointer"),
            (slots, "carry_back"),
            (slots.shutil, "rmtree"),
            (slots.Slots, "fetched"),
            (Shadow, "finish"),
            (Shadow, "_note"),
            (Snapshots, "write"),
        ]:
            setattr(owner, name, self.around(getattr(owner, name)))

    def around(self, real):
        def watched(*args, **kwargs):
            self.moment()
            result = real(*args, **kwargs)
            self.moment()
            return result

        return watched

    def moment(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def live(folder: Path, k: int, *, back: bool) -> None:
    """A device from its start to its end: learns, is asked to install, learns on, perhaps goes back."""
    Killer(k)
    told = folder / "told"
    board = Board(folder, least=LEAST).start()
    phases = told.read_text().split() if told.exists() else []

    def tell(report):
        phases.append(report.phase)
        with told.open("a") as file:
            file.write(f"{report.phase}\n")

    board.device.upgrade.report = tell
    board.run([None])

    def learn(until: int) -> None:
        n_known = board.device.learner.knowledge.n_labels
        board.run(EVENTS[2 * n_known : 2 * until])

    learn(BEFORE)
    if not board.slots.pointer.coming and "committed" not in phases:
        board.install(folder / "new.ecl")
    learn(len(EVENTS) // 2)
    board.run([None] * 8)
    if back and board.slots.pointer.active:
        board.device.undo_install()
        board.run([None])
    board.stop()


def outcome(folder: Path, k: int, *, back: bool) -> int:
    """What became of a device in a process of its own: its exit code, or minus the signal."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    child = context.Process(target=live, args=(folder, k), kwargs={"back": back})
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


@pytest.fixture(scope="module")
def factory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("factory")
    variant(Bundle.load(Board(folder).home), folder / "new.ecl")
    return folder


def check(tmp_path: Path, factory: Path, *, back: bool, every: int = 1) -> int:
    said = [event.reading_id for event in EVENTS if isinstance(event, Label)]
    wanted = Bundle.load(factory / ("home.ecl" if back else "new.ecl")).bundle_id
    for n_kills, k in enumerate(itertools.count(1, every)):
        folder = tmp_path / f"killed-{k}"
        shutil.copytree(factory, folder)
        first = outcome(folder, k, back=back)
        assert first in (0, -signal.SIGKILL)
        again = outcome(folder, 0, back=back)
        assert again == 0, f"killed at moment {k}, it did not come to its end"
        board = Board(folder, least=LEAST).start()
        journal = board.device.learner.journal
        learned = [e.reading_id for e in journal.read(1, journal.last_seq) if e.kind == "label"]
        assert learned == said, f"killed at moment {k}, it has lost labels, or learned some twice"
        assert board.device.learner.knowledge.n_labels == len(said)
        assert board.bundle_id == wanted, f"killed at moment {k}: {(folder / 'told').read_text()}"
        assert (folder / "told").read_text().split()[-1] == ("rolled-back" if back else "committed")
        board.stop()
        shutil.rmtree(folder)
        if first == 0:
            return n_kills
    return 0


def test_killed_now_and_then_while_installing(tmp_path, factory):
    assert check(tmp_path, factory, back=False, every=8) > 6


def test_killed_now_and_then_while_going_back(tmp_path, factory):
    assert check(tmp_path, factory, back=True, every=11) > 6


@pytest.mark.slow
@pytest.mark.parametrize("back", [False, True])
def test_killed_at_every_step(tmp_path, factory, back):
    assert check(tmp_path, factory, back=back) > 60
