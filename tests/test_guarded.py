"""A device that somebody lies to: what is held, taken back and kept, and that no answer becomes a label."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_cl.bundle import Bundle
from edge_cl.config import settings_from
from edge_cl.learner import Learner
from edge_cl.records import Label, Receipt
from edge_cl.revisions import Review
from tests.worlds import NAMES, World, make_bundle, reading

NO_SLEEP = {"sleep": {"after_labels": 10**6, "idle_s": 0}, "trust": {"per_day": 1e5, "per_minute": 1e5}}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("b") / "b.ecl", "dual")


def device(bundle: Bundle, folder: Path | None, **settings: object) -> Learner:
    return Learner.from_bundle(bundle, state_dir=folder, settings=settings_from({**NO_SLEEP, **settings}))


class Speakers:
    """Labels of Gaussian readings: rightly, or as what they are not."""

    def __init__(self, seed: int = 0) -> None:
        self.world, self.n = World(seed=seed), 0

    def say(self, learner: Learner, source: str, *, lie: bool = False, label: str = "") -> Receipt:
        X, y = self.world.draw(1)
        self.n += 1
        learner.observe(reading(X[0], f"r{self.n}"))
        said = label or NAMES[(y[0] + lie) % 3]
        return learner.teach(Label(label=said, reading_id=f"r{self.n}", source=source))

    def both(self, learner: Learner, n: int, *, lie: bool = False) -> list[str]:
        """Someone at the device and someone over MQTT in turns; what became of the latter's labels."""
        found = []
        for _ in range(n):
            assert self.say(learner, "local").status == "learned"
            found.append(self.say(learner, "mqtt/anna", lie=lie).status)
        return found


def test_a_contradicting_label_is_held_changes_no_answer_and_is_learned_when_accepted(
    bundle: Bundle, tmp_path: Path
) -> None:
    speakers = Speakers(1)
    with device(bundle, tmp_path / "s") as learner:
        assert speakers.both(learner, 220).count("learned") >= 216
        weights = learner.knowledge.head.state().arrays
        receipt = speakers.say(learner, "mqtt/bob", lie=True)
        assert receipt.status == "held" and "trusted labels nearby say" in receipt.message
        now = learner.knowledge.head.state().arrays
        assert all(np.array_equal(a, now[name], equal_nan=True) for name, a in weights.items())
        held = learner.held_labels()[-1]
        assert (held.seq, held.source, held.reading_id) == (receipt.seq, "mqtt/bob", receipt.reading_id)
        n_labels = learner.knowledge.n_labels
        learner.revise(Review(seqs=[held.seq], accept=True))
        assert learner.knowledge.n_labels == n_labels + 1


def test_what_a_liar_taught_before_it_was_found_is_taken_back_also_after_a_restart(
    bundle: Bundle, tmp_path: Path
) -> None:
    speakers = Speakers(2)
    with device(bundle, tmp_path / "s", state={"snapshot_labels": 60}) as learner:
        speakers.both(learner, 100)
        # lies about readings that lie between two classes, each alone no outlier
        halfway = (speakers.world.means[0] + speakers.world.means[1]) / 2
        for k in range(60):
            x = halfway + 0.6 * speakers.world.rng.normal(size=6)
            x -= 0.25 * (speakers.world.means[1] - speakers.world.means[0])  # nearer to class 0
            learner.observe(reading(x.astype(np.float32), f"m{k}"))
            learner.teach(Label(label=NAMES[1], reading_id=f"m{k}", source="mqtt/mallory"))
            speakers.say(learner, "local")
        assert "mqtt/mallory" in learner.knowledge.guard.teachers.suspects
        reasons = [held.reason for held in learner.held_labels() if held.source == "mqtt/mallory"]
        assert any("held are its labels since that began" in reason for reason in reasons)
        digest = learner.knowledge.digest()
        n_held = len(learner.held_labels())
    with device(bundle, tmp_path / "s") as again:
        assert again.knowledge.digest() == digest and len(again.held_labels()) == n_held
        assert "mqtt/mallory" in again.knowledge.guard.teachers.suspects


def test_quotas_refuse_with_what_to_do_and_are_remembered(bundle: Bundle, tmp_path: Path) -> None:
    speakers, few = Speakers(3), {"per_day": 10.0, "per_minute": 1e5}
    with device(bundle, tmp_path / "s", trust=few) as learner:
        statuses = [speakers.say(learner, "mqtt").status for _ in range(8)]
        assert statuses == ["learned"] * 5 + ["refused"] * 3
    with device(bundle, tmp_path / "s", trust=few) as again:
        refused = speakers.say(again, "mqtt")
        assert refused.status == "refused" and "raise trust.per_day" in refused.message
        assert speakers.say(again, "local").status == "learned"


def test_replaying_gives_the_same_knowledge_and_the_same_suspicion(bundle: Bundle, tmp_path: Path) -> None:
    speakers = Speakers(4)
    learner = device(bundle, tmp_path / "s")
    speakers.both(learner, 220)
    assert "held" in [speakers.say(learner, "mqtt/anna", lie=True).status for _ in range(3)]
    assert not learner.knowledge.guard.teachers.suspects
    learner.knowledge.look()
    known, accounts = learner.knowledge.digest(), learner.knowledge.guard.teachers.accounts_state()
    learner.__exit__(RuntimeError, None, None)  # as a kill: no snapshot
    with device(bundle, tmp_path / "s") as again:
        assert again.knowledge.digest() == known
        assert again.knowledge.guard.teachers.accounts_state() == accounts


# ---------------------------------------------------------------------- no self-training


def test_answers_teach_nothing(bundle: Bundle, tmp_path: Path) -> None:
    """Any number of unlabelled readings, asleep or awake, leave what is known as it was."""
    with device(bundle, tmp_path / "s") as learner:
        learner.run(iter(World(seed=5).events(60)))
        learner.run([], labels=())
        before, status = learner.knowledge.digest(), learner.status()
        answers: list[object] = []
        unlabelled = (e for e in World(seed=6, shift=3.0).events(400) if not isinstance(e, Label))
        learner.run(unlabelled, sinks=[answers.append])
        assert len(answers) > 400
        assert learner.knowledge.digest() == before
        now = learner.status()
        assert (now.n_labels, now.journal_seq) == (status.n_labels, status.journal_seq)


SOURCES_OF_LABELS = {
    "sensing/labelling.py",  # the recording's own
    "sensing/lines.py",  # lines of the input
    "sync/messages.py",  # MQTT
    "sync/control.py",  # the control socket
    "simulate/scenario.py",  # the simulator's truth,
    "remote.py",
}


def test_labels_are_made_only_where_somebody_gives_them() -> None:
    """A module that makes labels never sees an answer; the others make none."""
    root = Path(__file__).parents[1] / "edge_cl"
    makers = {str(path.relative_to(root)) for path in root.rglob("*.py") if "Label" in _calls(path)}
    assert makers == SOURCES_OF_LABELS
    for name in makers - {"sync/messages.py"}:  # which passes answers on to others
        tree = ast.parse((root / name).read_text())
        assert "Decision" not in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}, name


def test_heads_are_taught_only_by_labels_and_in_sleep() -> None:
    root = Path(__file__).parents[1] / "edge_cl"
    learning = {"learn", "learn_one", "learn_many"}
    callers = {str(p.relative_to(root)) for p in root.glob("*.py") if learning & set(_calls(p))}
    trials = "trial.py"  # heads that are compared, and never answer
    assert callers == {"durable.py", "knowledge.py", "recovery.py", "teaching.py", trials}


def _calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = node.func
            yield called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
