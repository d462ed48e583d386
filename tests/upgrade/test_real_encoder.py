"""With an encoder that a runtime has: a bundle that acts lets its bytes go, and none is missed."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from edge_cl.bundle import Bundle
from edge_cl.encoders.forms import forms
from edge_cl.errors import BundleError
from edge_cl.records import Label, Reading
from tests.upgrade.boards import Board, variant

WRIST = Path("edge_cl/assets/wrist.ecl")


def labelled(bundle, first, n):
    """Readings that differ, each labelled at once."""
    windows, _ = bundle.golden()
    rng = np.random.default_rng(first)
    for k in range(first, first + n):
        window = windows[k % len(windows)] + rng.normal(0, 0.05, windows[0].shape)
        yield Reading(id=f"r{k}", t_s=float(k), window=window.astype(np.float32))
        yield Label(label=bundle.manifest.class_names[k % 3], reading_id=f"r{k}", source="test")


def test_there_and_back_and_there_again(tmp_path):
    shutil.copy(WRIST, tmp_path / "home.ecl")
    old = Bundle.load(WRIST)
    new = variant(old, tmp_path / "new.ecl", name="newer")
    board = Board(tmp_path).start()
    for turn in range(2):
        board.install(tmp_path / "new.ecl")
        board.run(labelled(old, 100 * turn, 30))
        assert board.bundle_id == new.bundle_id, board.reports
        board.device.upgrade.undo()
        board.run(labelled(old, 100 * turn + 50, 2))
        assert board.bundle_id == old.bundle_id, board.reports
    assert board.phases.count("committed") == board.phases.count("rolled-back") == 2
    assert len(board.decisions()) == 64
    assert board.device.learner.knowledge.n_labels == 62, (
        "the reading on which it goes back was the other one's"
    )
    acting = board.device.learner.bundle
    for form in forms(acting):
        with pytest.raises(BundleError, match="no longer"):
            acting.member(form.member)
    board.stop()
