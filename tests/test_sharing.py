"""What a device tells of its labels: exactly those that count, as private as was set, and nothing else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_cl import privacy
from edge_cl.config import settings_from
from edge_cl.errors import ConfigError, StateError, StateUnwritable
from edge_cl.learner import Learner
from edge_cl.records import Label
from edge_cl.release import encoder_hash
from edge_cl.remote import tell
from edge_cl.revisions import Forget, Rename, Rollback
from edge_cl.sharing import LEAST_LABELS
from edge_cl.statistics import NEW_CLASSES, Account, Statistics, from_bytes
from tests.worlds import NAMES, World, make_bundle, reading

QUIET = {"sleep": {"after_labels": 0, "idle_s": 0}}


def device(folder: Path, **privacy_: Any) -> Learner:
    settings = settings_from(QUIET | {"privacy": privacy_})
    return Learner.from_bundle(make_bundle(folder / "b.ecl"), state_dir=folder / "s", settings=settings)


def told(learner: Learner) -> tuple[Statistics, Account]:
    return from_bytes(tell(learner).body)


def teach(learner: Learner, X: Any, names: list[str], *, source: str = "test", first: int = 0) -> None:
    for k, (x, name) in enumerate(zip(X, names, strict=True), start=first):
        learner.observe(reading(x, f"r{k}"))
        assert learner.teach(Label(label=name, reading_id=f"r{k}", source=source)).status == "learned"


def test_it_tells_what_counts_and_nothing_that_was_taken_back(tmp_path: Path) -> None:
    X, y = World(seed=4).draw(100, 4)
    names = [NAMES[c] for c in y]
    with device(tmp_path) as learner:
        teach(learner, X[:60], names[:60])
        at = learner.committed_seq
        teach(learner, X[60:80], names[60:80], first=60)
        learner.revise(Rollback(to=at))
        teach(learner, X[80:], names[80:], source="anna", first=80)
        learner.revise(Forget(reading="r3"))
        learner.revise(Rename(old="climb", new="scramble"))
        learner.observe(reading(X[0], "not"))
        learner.teach(Label(label="run", reading_id="not", kind="not", source="test"))
        found, account = told(learner)
        journal = learner.journal
        assert journal is not None
        assert (account.history, account.seq) == (journal.uid, journal.last_seq)
        assert (account.device, account.encoder) == ("home/edge-cl", encoder_hash(learner.bundle))
    rows = np.r_[0:3, 4:60, 80:100]
    F = X[rows].astype(np.float64)
    assert found.class_names == (*NAMES[:3], "scramble")
    assert np.array_equal(found.counts, np.bincount(y[rows], minlength=4))
    np.testing.assert_allclose(found.sums, [F[y[rows] == c].sum(axis=0) for c in range(4)], rtol=1e-12)
    np.testing.assert_allclose(found.second, F.T @ F, rtol=1e-12)


def test_labels_that_are_not_committed_yet_are_made_durable_first(tmp_path: Path) -> None:
    X, y = World(seed=4).draw(30)
    with device(tmp_path) as learner:
        for k in range(30):
            learner.turn(reading(X[k], f"r{k}"))
            learner.turn(Label(label=NAMES[y[k]], reading_id=f"r{k}", source="test"))
        assert told(learner)[0].counts.sum() == learner.committed_seq == 30


def test_of_a_class_with_few_labels_nothing_is_told(tmp_path: Path) -> None:
    """The sum over one label would be its feature."""
    X, _ = World(seed=4).draw(40)
    with device(tmp_path) as learner:
        teach(learner, X[:30], ["walk"] * 30)
        teach(learner, X[30 : 29 + LEAST_LABELS], ["yawn"] * (LEAST_LABELS - 1), first=30)
        found, account = told(learner)
        assert account.left_out == ["yawn"] and found.counts.sum() == 30 and "yawn" not in found.class_names
        np.testing.assert_allclose(found.second, X[:30].astype(float).T @ X[:30].astype(float), rtol=1e-12)
        teach(learner, X[39:], ["yawn"], first=39)
        found, account = told(learner)
        assert account.left_out == [] and dict(zip(found.class_names, found.counts, strict=True))["yawn"] == 5


def test_nothing_leaves_a_device_that_does_not_share(tmp_path: Path) -> None:
    with device(tmp_path, share=False) as learner, pytest.raises(StateError, match=r"privacy\.share"):
        tell(learner)


def test_without_a_journal_there_is_nothing_to_tell(tmp_path: Path) -> None:
    learner = Learner.from_bundle(make_bundle(tmp_path / "b.ecl"))
    with pytest.raises(StateError, match="state folder"):
        tell(learner)


def test_noise_needs_a_length_to_cut_features_to() -> None:
    with pytest.raises(ConfigError, match="clip_norm"):
        settings_from({"privacy": {"noise": 1.0}})
    with pytest.raises(ConfigError, match=r"privacy\.noise"):
        settings_from({"privacy": {"noise": -1.0, "clip_norm": 1.0}})


def test_with_noise_no_new_class_is_named_and_every_report_counts(tmp_path: Path) -> None:
    X, y = World(seed=4).draw(60, 4)
    names = [NAMES[c] for c in y]
    with device(tmp_path, noise=2.0, clip_norm=3.0) as learner:
        teach(learner, X, names)
        first, account = told(learner)
        assert first.class_names == NAMES[:3] and account.left_out == [NEW_CLASSES]
        assert account.epsilon == pytest.approx(privacy.epsilon(2.0)) and account.delta == privacy.DELTA
        assert not first.second.any()
        assert (first.counts != np.round(first.counts)).all()
    with device(tmp_path, noise=2.0, clip_norm=3.0) as learner:
        second, account = told(learner)
    assert (second.counts != first.counts).all()
    assert account.n_reports == 2 and account.epsilon == pytest.approx(privacy.epsilon(2.0 / math.sqrt(2)))
    with device(tmp_path) as learner:
        told(learner)
    with device(tmp_path, noise=2.0, clip_norm=3.0) as learner:
        account = told(learner)[1]
    assert account.n_reports == 4 and account.epsilon is None, "a report without noise cannot be taken back"


def test_features_are_cut_before_they_are_summed(tmp_path: Path) -> None:
    X, y = World(seed=4).draw(30)
    with device(tmp_path, clip_norm=1.5) as learner:
        teach(learner, X, [NAMES[c] for c in y])
        found, _ = told(learner)
    cut = privacy.clip(X, 1.5)
    np.testing.assert_allclose(found.second, cut.T @ cut, rtol=1e-12)


def test_a_report_that_cannot_be_noted_does_not_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise StateUnwritable("no room")

    X, y = World(seed=4).draw(30)
    with device(tmp_path) as learner:
        teach(learner, X, [NAMES[c] for c in y])
        assert learner.journal is not None
        monkeypatch.setattr(learner.journal, "set_meta", full)
        with pytest.raises(StateUnwritable):
            tell(learner)
        monkeypatch.undo()


def test_labels_that_another_device_brought_are_its_own_to_tell(tmp_path: Path) -> None:
    X, y = World(seed=4).draw(60)
    with device(tmp_path) as learner:
        teach(learner, X[:40], [NAMES[c] for c in y[:40]])
        teach(learner, X[40:], [NAMES[c] for c in y[40:]], source="merge/0123abcd/anna", first=40)
        assert told(learner)[0].counts.sum() == 40
