"""A disk that fills up: labels are refused, predicting goes on, and it heals by itself."""

import os
import shutil
import subprocess

import numpy as np
import pytest

from edge_cl import Label, Learner, Receipt
from edge_cl.config import settings_from
from edge_cl.errors import StateUnwritable
from edge_cl.records import SleepRequest
from edge_cl.state.journal import Journal
from tests.worlds import NAMES, D, World, make_bundle, reading

SETTINGS = settings_from(
    {"state": {"snapshot_labels": 1000, "commit_ms": 0}, "sleep": {"after_labels": 0, "idle_s": 0}}
)


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 700 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", folder], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder):
    """Take every last byte."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            pass


def test_labels_are_refused_while_full_and_learned_again_after(tmp_path, small_disk):
    bundle = make_bundle(tmp_path / "b.ecl", "slda")
    X, y = World(seed=4).draw(400)
    statuses = []
    with Learner.from_bundle(bundle, state_dir=small_disk / "s", settings=SETTINGS) as learner:

        def teach(k):
            learner.observe(reading(X[k], f"r{k}"))
            receipt = learner.teach(Label(label=NAMES[y[k]], reading_id=f"r{k}"))
            statuses.append(receipt.status)
            return receipt

        for k in range(20):
            assert teach(k).status == "learned"
        fill(small_disk)
        refused = next(receipt for receipt in map(teach, range(20, 300)) if receipt.status == "refused")
        assert "predicting only" in refused.message and "disk" in refused.message
        n_learned = statuses.count("learned")
        assert learner.knowledge.n_labels == n_learned, "what was refused is not known either"
        assert "predicting only" in learner.status().alarm
        assert learner.observe(reading(X[300], "r300")).label in NAMES
        (small_disk / "filler").unlink()
        assert teach(301).status == "learned"
        assert learner.status().alarm == ""
        # a label that was refused can be given again
        again = learner.teach(Label(label=refused.label, reading_id=refused.reading_id))
        assert again.status == "learned"
        digest = learner.knowledge.digest()
    with Learner.from_bundle(bundle, state_dir=small_disk / "s", settings=SETTINGS) as learner:
        assert learner.knowledge.n_labels == n_learned + 2
        assert learner.knowledge.digest() == digest


def test_labels_that_waited_for_a_commit_that_failed_are_refused_together(tmp_path, small_disk):
    bundle = make_bundle(tmp_path / "b.ecl", "slda")
    X, y = World(seed=4).draw(3000)
    settings = settings_from({"state": {"commit_ms": 1e9}, "sleep": {"after_labels": 0, "idle_s": 0}})
    receipts = []
    with Learner.from_bundle(bundle, state_dir=small_disk / "s", settings=settings) as learner:

        def events():
            for k in range(2000):
                yield reading(X[k], f"r{k}")
                yield Label(label=NAMES[y[k]], reading_id=f"r{k}")
                if k == 1:
                    fill(small_disk)

        learner.run(events(), sinks=[lambda a: receipts.append(a) if isinstance(a, Receipt) else None])
        assert len(receipts) == 2000
        learned = [r for r in receipts if r.status == "learned"]
        assert learner.knowledge.n_labels == len(learned) < 2000
        assert {r.status for r in receipts} <= {"learned", "refused"}
        assert np.isfinite(learner.predict(np.zeros((1, 1, D)))).all()
        (small_disk / "filler").unlink()


def test_a_disk_that_fills_while_asleep_promises_nothing(tmp_path, small_disk):
    bundle = make_bundle(tmp_path / "b.ecl", "slda")
    X, y = World(seed=4).draw(400)
    settings = settings_from({"state": {"commit_ms": 1e9}, "sleep": {"after_labels": 200, "idle_s": 0}})
    receipts = []

    def events():
        for k in range(200):
            if k == 150:
                fill(small_disk)
            yield reading(X[k], f"r{k}")
            yield Label(label=NAMES[y[k]], reading_id=f"r{k}")
        yield from [None] * 20  # asleep, then awake
        (small_disk / "filler").unlink()
        yield reading(X[300], "after")
        yield Label(label=NAMES[y[300]], reading_id="after")

    with Learner.from_bundle(bundle, state_dir=small_disk / "s", settings=settings) as learner:
        learner.run(events(), sinks=[lambda a: receipts.append(a) if isinstance(a, Receipt) else None])
        learned = {r.reading_id for r in receipts if r.status == "learned"}
        assert len(receipts) == 201 and "after" in learned
        assert learner.knowledge.n_labels == len(learned)
    with Learner.from_bundle(bundle, state_dir=small_disk / "s", settings=settings) as learner:
        assert learner.knowledge.n_labels == len(learned), "every promise is kept after a restart"


def broken(owner, method):
    """A method that finds the disk full: what was not committed is gone."""

    def fail(self, *args):
        self.rollback()
        raise StateUnwritable(f"{owner.__name__}.{method}: no room")

    return fail


def test_a_sleep_that_cannot_begin_or_end_leaves_a_device_that_learns(tmp_path, monkeypatch):
    bundle = make_bundle(tmp_path / "b.ecl", "slda")
    events = list(World(seed=4).events(60))
    for method in ("append", "commit"):
        with Learner.from_bundle(bundle, state_dir=tmp_path / method, settings=SETTINGS) as learner:
            learner.run(iter(events[:80]))
            before = learner.knowledge.digest()
            with monkeypatch.context() as patch:
                patch.setattr(Journal, method, broken(Journal, method))
                with pytest.raises(StateUnwritable):
                    list(learner.sleep())
            assert learner.knowledge.digest() == before and not learner.knowledge.asleep
            learner.observe(events[80])
            assert learner.teach(events[81]).status == "learned"
            assert list(learner.sleep()) and learner.knowledge.n_sleeps == 1


def test_what_a_sleep_made_durable_is_not_refused_later(tmp_path, monkeypatch, caplog):
    """The begin of a sleep is committed, and the labels that waited with it; its end cannot be journalled."""
    bundle = make_bundle(tmp_path / "b.ecl", "dual")
    sleep = {"after_labels": 0, "idle_s": 0, "slice_ms": 1e-3, "steps": 20}
    settings = settings_from({"state": {"commit_ms": 1e9}, "sleep": sleep})
    events = list(World(seed=4).events(40))
    receipts = []

    def stream(learner):
        yield from events
        yield SleepRequest()
        patch.setattr(Journal, "append", broken(Journal, "append"))
        yield from [None] * 200
        patch.undo()

    with (
        monkeypatch.context() as patch,
        Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=settings) as learner,
    ):
        learner.run(stream(learner), sinks=[lambda a: receipts.append(a) if isinstance(a, Receipt) else None])
        assert "predicting only" in caplog.text
        assert [r.status for r in receipts] == ["learned"] * 40
        assert learner.knowledge.n_labels == 40


def test_a_log_that_cannot_be_checkpointed_keeps_what_was_committed(tmp_path, monkeypatch):
    bundle = make_bundle(tmp_path / "b.ecl", "slda")
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=SETTINGS) as learner:
        learner.observe(reading(np.zeros(D, np.float32), "r"))
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "checkpoint_if_due", broken(Journal, "checkpoint_if_due"))
            assert learner.teach(Label(label="rest", reading_id="r")).status == "learned"
        assert learner.knowledge.n_labels == 1
        assert learner.teach(Label(label="rest", reading_id="r")).status == "duplicate"


def test_a_device_starts_on_a_full_disk_and_heals(tmp_path, small_disk):
    """Killed with a log that is not taken in yet: every label is there, new ones wait for room."""
    bundle = make_bundle(tmp_path / "b.ecl", "slda")
    X, y = World(seed=4).draw(60)

    def teach(learner, k):
        learner.observe(reading(X[k], f"r{k}"))
        return learner.teach(Label(label=NAMES[y[k]], reading_id=f"r{k}")).status

    with Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=SETTINGS) as learner:
        for k in range(20):
            assert teach(learner, k) == "learned"
        shutil.copytree(tmp_path / "s", small_disk / "s", ignore=shutil.ignore_patterns("*-shm"))
        digest = learner.knowledge.digest()
    fill(small_disk)
    for _ in range(2):
        with Learner.from_bundle(bundle, state_dir=small_disk / "s", settings=SETTINGS) as learner:
            assert learner.knowledge.digest() == digest
            assert learner.observe(reading(X[20], "r20")).label
            assert teach(learner, 20) == "refused" and "predicting only" in learner.status().alarm
            learner._durable.close(save=False)
    with Learner.from_bundle(bundle, state_dir=small_disk / "s", settings=SETTINGS) as learner:
        assert teach(learner, 20) == "refused"
        (small_disk / "filler").unlink()
        for k in range(20, 60):
            assert teach(learner, k) == "learned"
        whole = learner.knowledge.digest()
    with Learner.from_bundle(bundle, state_dir=small_disk / "s", settings=SETTINGS) as learner:
        assert learner.knowledge.digest() == whole
