"""Who may teach: flips are held, honest labels are not, drift is not taken for poison, quotas hold."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.config import TrustSettings
from edge_cl.trust import Said, Teachers, trust_in
from edge_cl.trust.accounts import PROVEN, Account, Bucket
from edge_cl.trust.teachers import MAX_ACCOUNTS

D, N_CLASSES = 6, 4
NAMES = ["run", "sit", "stand", "walk"]


class Home:
    """A device's teachers in a world of Gaussian classes around moving means."""

    def __init__(self, seed: int = 0, *, apart: float = 3.0, **given: object) -> None:
        self.rng = np.random.default_rng(seed)
        self.means = apart * self.rng.standard_normal((N_CLASSES, D)) / np.sqrt(2 * D) * 2
        self.teachers = Teachers(D, TrustSettings(**given))  # type: ignore[arg-type]
        self.seq = 0
        self.at_s = 0.0
        self.learned: dict[int, str] = {}
        self.taken_back: list[int] = []

    def says(
        self, source: str, *, true: int | None = None, flip: bool = False, said: int | None = None
    ) -> str:
        """Somebody labels a reading, rightly unless `flip` or `said`; what the device did with it."""
        y = int(self.rng.integers(N_CLASSES)) if true is None else true
        x = (self.means[y] + self.rng.standard_normal(D)).astype(np.float32)
        if flip:
            y = (y + int(self.rng.integers(1, N_CLASSES))) % N_CLASSES
        told = Said(x, y if said is None else said, source, 1.0 if source == "local" else 0.5, self.at_s)
        self.at_s += 300.0
        action = self.teachers.judge(told, NAMES).action
        if action != "refuse":
            self.seq += 1
            if action == "learn":
                self.learned[self.seq] = source
            self.taken_back += self.teachers.note(told, self.seq, learned=action == "learn")
        return action

    def days(self, *sources: str, n: int) -> Iterator[str]:
        """Several speak in turns; what was done with labels of the others than `local`."""
        for _ in range(n):
            for source in sources:
                action = self.says(source, flip=source == "mqtt/mallory")
                if source != "local":
                    yield action

    def share_lost(self, actions: list[str]) -> float:
        return sum(action != "learn" for action in actions) / len(actions)


def state(teachers: Teachers) -> tuple[dict[str, np.ndarray], list[object]]:
    arrays, meta = teachers.reference.state()
    return arrays, [meta, teachers.accounts_state()]


@pytest.mark.parametrize("apart", [0.5, 1.5, 4.0])
def test_honest_labels_are_learned_however_much_the_classes_overlap(apart: float) -> None:
    home = Home(1, apart=apart)
    actions = list(home.days("local", "mqtt/anna", n=600))
    assert home.share_lost(actions) + len(home.taken_back) / len(actions) <= 0.02


@pytest.mark.parametrize("apart", [1.5, 4.0])
def test_a_source_that_flips_labels_is_found_and_what_it_taught_is_named(apart: float) -> None:
    home = Home(2, apart=apart)
    list(home.days("local", "mqtt/anna", n=150))
    first = home.seq + 1
    actions = list(home.days("local", "mqtt/mallory", n=100))
    assert "mqtt/mallory" in home.teachers.suspects
    left = [seq for seq, who in home.learned.items() if who == "mqtt/mallory" and seq not in home.taken_back]
    assert home.share_lost(actions) > 0.5 and len(left) <= 20
    assert all(seq >= first and home.learned[seq] == "mqtt/mallory" for seq in home.taken_back)


def test_in_a_world_without_overlap_a_single_flip_is_held_and_the_source_stays_unsuspected() -> None:
    home = Home(3, apart=12.0)
    list(home.days("local", "mqtt/anna", n=300))
    assert home.says("mqtt/anna", flip=True) == "hold"
    assert home.says("mqtt/anna") == "learn"
    assert not home.teachers.suspects and not home.taken_back


def test_a_suspect_is_one_no_more_when_it_agrees_again() -> None:
    home = Home(4)
    list(home.days("local", "mqtt/mallory", n=120))
    assert home.teachers.suspects
    for k in range(300):
        home.says("local")
        home.says("mqtt/mallory")
        assert k > 60 or "mqtt/mallory" in home.teachers.suspects  # a while does not do
    assert not home.teachers.suspects


def test_a_newcomer_that_is_found_loses_all_it_taught_even_what_nothing_could_be_said_of() -> None:
    home = Home(13)
    for _ in range(20):  # nobody trusted has said anything yet
        home.says("mqtt/mallory", flip=True)
    early = set(home.learned)
    list(home.days("local", "mqtt/anna", n=150))
    anna = {seq for seq, who in home.learned.items() if who == "mqtt/anna"}
    for _ in range(30):
        home.says("local")
        home.says("mqtt/mallory", flip=True)
    assert len(early) == 20 and early <= set(home.taken_back)
    assert not anna & set(home.taken_back)


def test_what_a_proven_source_taught_before_suspicion_rose_stays() -> None:
    home = Home(14)
    list(home.days("local", "mqtt/mallory-once-honest", n=200))
    before = set(home.learned)
    for _ in range(40):
        home.says("local")
        home.says("mqtt/mallory-once-honest", flip=True)
    assert "mqtt/mallory-once-honest" in home.teachers.suspects
    assert len(before & set(home.taken_back)) <= 10 and set(home.taken_back) - before


def test_drift_that_trusted_labels_see_too_is_not_taken_for_poison() -> None:
    home, actions = Home(5, apart=1.5), []
    step = home.rng.standard_normal((N_CLASSES, D)) * 0.02
    for _ in range(600):
        home.means = home.means + step
        home.says("local")
        actions.append(home.says("mqtt/anna"))
    assert home.share_lost(actions) + len(home.taken_back) / len(actions) <= 0.03


def test_without_trusted_labels_only_the_quotas_hold() -> None:
    home = Home(6, per_day=40.0)
    actions = list(home.days("mqtt/mallory", n=30))
    assert actions[:20] == ["learn"] * 20 and "hold" not in actions
    assert actions.count("learn") <= 23  # the day's quota, and what of the next day's has come


def test_trusted_labels_are_always_learned() -> None:
    home = Home(7, per_day=2.0)
    list(home.days("local", n=100))
    assert {home.says("local", flip=True) for _ in range(200)} == {"learn"}


def test_a_checked_source_makes_no_new_class_among_known_readings_or_elsewhere() -> None:
    home = Home(8)
    list(home.days("local", "mqtt/anna", n=100))
    assert home.says("mqtt/anna", true=0, said=-1) == "hold"
    home.means = home.means + 50.0
    assert home.says("mqtt/anna", true=0, said=-1) == "hold"
    home.means = home.means - 50.0
    assert home.says("local", true=0, said=N_CLASSES) == "learn"


def test_a_class_without_trusted_labels_is_learned_only_far_from_the_others() -> None:
    home = Home(9, apart=6.0)
    for _ in range(150):
        home.says("local", true=int(home.rng.integers(3)))
    assert [home.says("mqtt/anna", true=3) for _ in range(5)] == ["learn"] * 5
    assert [home.says("mqtt/anna", true=0, said=3) for _ in range(10)].count("hold") >= 7


def test_not_this_is_held_where_trusted_labels_say_it_is_and_from_a_suspect() -> None:
    home = Home(12)
    list(home.days("local", "mqtt/anna", n=150))

    def says_not(source: str, true: int, refused: int) -> str:
        x = (home.means[true] + 0.3 * home.rng.standard_normal(D)).astype(np.float32)
        told = Said(x, refused, source, 0.5, home.at_s)
        return home.teachers.judge_not(told, NAMES).action

    assert [says_not("mqtt/anna", 0, 0) for _ in range(10)].count("hold") >= 8
    assert [says_not("mqtt/anna", 0, 1) for _ in range(10)] == ["learn"] * 10
    list(home.days("local", "mqtt/mallory", n=100))
    assert "mqtt/mallory" in home.teachers.suspects
    assert [says_not("mqtt/mallory", 0, 1) for _ in range(10)] == ["hold"] * 10


def test_many_names_are_one_attacker() -> None:
    home = Home(10)
    list(home.days("local", "mqtt/anna", n=150))
    for k in range(200):
        home.says("local")
        home.says(f"mqtt/{k}", flip=True)
    assert "mqtt/*" in home.teachers.suspects
    left = set(home.learned) - set(home.taken_back)
    assert (
        sum(home.learned[seq].startswith("mqtt/") and home.learned[seq] != "mqtt/anna" for seq in left) < 30
    )
    assert home.says("mqtt/anna") == "learn"  # known for long
    assert len(home.teachers.accounts_state()) <= MAX_ACCOUNTS


def test_no_trust_at_all_is_held_and_refusals_say_what_to_do() -> None:
    teachers = Teachers(D, TrustSettings(per_minute=2.0))
    said = Said(np.zeros(D, np.float32), 0, "mqtt/anna", 0.0, 0.0)
    assert teachers.judge(said, NAMES).action == "hold"
    said = said._replace(trust=0.5)
    teachers.note(said, 1, learned=True)
    refused = teachers.judge(said, NAMES)
    assert refused.action == "refuse" and "1 labels a minute" in refused.reason
    assert "trust.per_minute" in refused.reason


@given(seed=st.integers(0, 99), cut=st.integers(1, 250))
@settings(max_examples=8)
def test_it_goes_on_after_a_restart_as_if_there_was_none(seed: int, cut: int) -> None:
    """And equal labels in equal order give equal state."""
    whole, resumed = Home(seed), Home(seed)
    speakers = ("local", "mqtt/anna", "mqtt/mallory")
    done: dict[int, list[str]] = {0: [], 1: []}
    for k in range(300):
        if k == cut:
            arrays, meta = state(resumed.teachers)
            resumed.teachers = Teachers(D, TrustSettings())
            reference, accounts = json.loads(json.dumps(meta))
            resumed.teachers.reference.restore(arrays, reference)
            resumed.teachers.restore_accounts(accounts)
        for which, home in enumerate((whole, resumed)):
            done[which].append(home.says(speakers[k % 3], flip=k % 3 == 2))
    assert done[0] == done[1] and whole.taken_back == resumed.taken_back
    (a, meta), (b, other) = state(whole.teachers), state(resumed.teachers)
    assert meta == other and all(np.array_equal(a[name], b[name]) for name in a)


def test_judging_changes_nothing_and_what_is_checked_moves_no_reference() -> None:
    home = Home(11)
    list(home.days("local", "mqtt/anna", n=80))
    arrays = {name: a.copy() for name, a in state(home.teachers)[0].items()}
    meta = json.dumps(state(home.teachers)[1])
    home.teachers.judge(Said(np.ones(D, np.float32), 1, "mqtt/new", 0.5, home.at_s), NAMES)
    assert json.dumps(state(home.teachers)[1]) == meta
    list(home.days("mqtt/anna", "mqtt/mallory", n=30))
    now = state(home.teachers)[0]
    assert all(np.array_equal(a, now[name]) for name, a in arrays.items())


def test_trust_goes_by_the_longest_name() -> None:
    given = TrustSettings(sources={"mqtt": 0.2, "mqtt/anna": 1.0, "button": 0.0})
    assert [trust_in(given, who) for who in ("mqtt", "mqtt/bob", "mqtt/anna", "mqtt/anna/x", "button")] == [
        0.2,
        0.2,
        1.0,
        1.0,
        0.0,
    ]
    assert [trust_in(TrustSettings(), who) for who in ("mqtt/bob", "local", "stream")] == [0.5, 1.0, 1.0]


# ---------------------------------------------------------------------- quotas


@given(
    size=st.integers(1, 20),
    jumps=st.lists(st.floats(-1e9, 1e9, allow_nan=False), min_size=1, max_size=200),
)
@settings(max_examples=50)
def test_no_clock_makes_a_bucket_hold_more_than_its_size(size: int, jumps: list[float]) -> None:
    bucket, now_s, allowed = Bucket(size, 60.0), 0.0, float(size)
    taken = 0
    for jump_s in jumps:
        now_s += jump_s
        allowed += min(size, size * max(jump_s, 0.0) / 60.0)  # what went ahead fills it once at most
        if bucket.level_at(now_s) >= 1:
            bucket.take(now_s)
            taken += 1
        assert 0 <= bucket.level_at(now_s) <= size
    assert taken <= allowed + 1e-6


def test_a_clock_set_back_years_starves_nobody() -> None:
    account = Account(10, 10)
    for k in range(10):
        account.take(2e9 + k)
    assert account.spent(2e9 + 10) == "day"
    account.take(1e9)
    assert account.spent(1e9 + 86_400) == ""


def test_a_name_is_proven_by_labels_that_raise_no_suspicion() -> None:
    account = Account(1000, 1000)
    for seq in range(PROVEN):
        assert not account.proven
        assert account.judge(-0.3, seq, "a", learned=True) == []
    assert account.proven
    assert account.judge(-0.3, PROVEN, "a", learned=True) == []
    back = [account.judge(2.5, 100 + k, "a", learned=True) for k in range(6)]
    assert back == [[], [], [], [], [(100 + k, "a") for k in range(5)], []]
    assert account.suspect and not account.proven


def test_a_newcomer_loses_all_and_those_that_share_an_account_what_suspicion_covers() -> None:
    own, shared = Account(1000, 1000), Account(1000, 1000, shared=True)
    for seq in range(10):
        for account in (own, shared):
            account.judge(-0.3, seq, "a", learned=True)
    backs = [[account.judge(2.5, 20 + k, "b", learned=True) for k in range(5)] for account in (own, shared)]
    assert [len(back) for back in backs[0]] == [0, 0, 0, 0, 15]
    assert [len(back) for back in backs[1]] == [0, 0, 0, 0, 5]
