"""What is asked of a running device: labels that come as orders, a bundle asked for twice, or no more."""

import pytest

from edge_cl import Bundle
from edge_cl.records import Label, Receipt
from edge_cl.release import release_of
from tests.upgrade.boards import CHUNK_BYTES, Board, variant
from tests.worlds import NAMES, World, reading


@pytest.fixture
def board(tmp_path):
    made = Board(tmp_path).start()
    yield made
    made.stop()


def told(board, n, prefix):
    """n readings, each labelled by an order."""
    X, y = World(seed=5).draw(n)
    for i in range(n):
        board.run([reading(X[i], f"{prefix}{i}")])
        label = Label(label=NAMES[y[i]], reading_id=f"{prefix}{i}", source="fleet/fleet")
        assert board.device.teach(label).status == "learned"


def test_a_label_that_was_ordered_gives_its_receipt_to_everybody_and_in_order(board):
    X, y = World(seed=3).draw(2)
    board.device.learner._teaching._commit_s = 3600.0  # the first receipt waits for a commit
    board.run([reading(X[0], "a"), reading(X[1], "b")])
    board.device.learner._teaching.hear(Label(label=NAMES[y[0]], reading_id="a", source="test"))
    board.device.teach(Label(label=NAMES[y[1]], reading_id="b", source="fleet/fleet"))
    given = [answer for answer in board.answers if isinstance(answer, Receipt)]
    assert [one.reading_id for one in given] == ["a", "b"]
    assert given[0].seq < given[1].seq


def test_labels_that_were_ordered_judge_a_new_bundle(board, tmp_path):
    new = variant(Bundle.load(board.home), tmp_path / "new.ecl")
    board.install(tmp_path / "new.ecl")
    told(board, 21, "o")
    board.run([None] * 3)
    assert board.phases == ["fetched", "shadow", "committed"] and board.bundle_id == new.bundle_id
    assert board.device.learner.knowledge.n_labels == 21


def test_to_ask_for_the_bundle_in_use_ends_the_one_that_is_tried(board, tmp_path):
    variant(Bundle.load(board.home), tmp_path / "new.ecl")
    board.install(tmp_path / "new.ecl")
    board.device.upgrade.install(release_of(board.home, chunk_bytes=CHUNK_BYTES), id="keep")
    assert board.phases == ["fetched", "shadow", "failed", "committed"]
    assert "is to be kept" in board.reports[2].reason and board.reports[3].id == "keep"
    before = board.bundle_id
    told(board, 25, "k")
    assert board.bundle_id == before and "shadow" not in board.device.status().installed


def test_to_ask_again_for_what_is_tried_goes_on_under_the_new_order(board, tmp_path):
    variant(Bundle.load(board.home), tmp_path / "new.ecl")
    board.install(tmp_path / "new.ecl")
    told(board, 10, "o")
    board.device.upgrade.install(release_of(tmp_path / "new.ecl", chunk_bytes=CHUNK_BYTES), id="again")
    assert (board.reports[-1].phase, board.reports[-1].id) == ("shadow", "again")
    told(board, 11, "p")
    board.run([None] * 3)
    assert (board.reports[-1].phase, board.reports[-1].id) == ("committed", "again")
    assert board.reports[-1].n_trusted == 20
