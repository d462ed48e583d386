"""``edge-cl fleet merge``: what devices were taught becomes one bundle, once each and nobody else's."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from edge_cl_fleet import merged, reports
from edge_cl_fleet.arrivals import read
from edge_cl_fleet.command import fleet
from edge_cl_fleet.orders import Orders
from edge_cl_fleet.queries import find_device
from edge_cl_fleet.reports import Shared
from edge_cl_fleet.store import FleetStore
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl import knowledge
from edge_cl.bundle import Bundle
from edge_cl.commands import CommandResult
from edge_cl.config import CommandSettings, KeySettings, settings_from
from edge_cl.device import Device
from edge_cl.errors import ConfigError, FleetError, SyncError
from edge_cl.learner import Learner
from edge_cl.manifest import EncoderSpec
from edge_cl.privacy import noised
from edge_cl.release import encoder_hash, release_of
from edge_cl.remote import Remote
from edge_cl.statistics import Account, Statistics, collect, to_bytes
from edge_cl.sync import messages, signing
from edge_cl.sync.link import MqttLink, Pace
from edge_cl.upgrade.slots import Slots
from tests.fleet.conftest import Working
from tests.fleet.devices import Board
from tests.mosquitto import Broker, wait_until
from tests.upgrade.boards import variant
from tests.worlds import NAMES, World, make_bundle


@pytest.fixture
def base(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "base.ecl", "slda")


def shared(base: Bundle, name: str = "home/a", *, seed: int = 1, n: int = 60, **about: Any) -> Shared:
    """What a device of this bundle would say."""
    X, y = World(seed=seed).draw(n, 4)
    found = collect(X, y, NAMES)
    account = Account(
        device=name, bundle_id=base.bundle_id, encoder=encoder_hash(base), history="h", seq=n, **about
    )
    if account.noise:
        found = noised(found, account.clip_norm, account.noise, np.random.default_rng(seed))
    return Shared(found, account)


def labels(seed: int, n: int = 60) -> tuple[Any, Any]:
    return World(seed=seed).draw(n, 4)


def head_of(bundle: Bundle, name: str = "slda") -> Any:
    return Learner.from_bundle(bundle, settings=settings_from({"head": {"name": name}})).knowledge.head


def test_a_device_with_the_merged_bundle_has_the_head_that_learned_everything(
    base: Bundle, tmp_path: Path
) -> None:
    parts = [shared(base, f"home/d{k}", seed=k) for k in range(5)]
    made, found = merged.write(tmp_path / "m.ecl", base, parts)
    central, ours = head_of(base), head_of(made)
    central.add_class()
    for k in range(5):
        central.learn_many(*labels(k))
    for head in (central, ours):
        head._solve()
    held_out = World(seed=99).draw(300, 4)[0]
    np.testing.assert_allclose(ours.predict_many(held_out), central.predict_many(held_out), atol=1e-4)
    assert np.array_equal(ours.class_counts, central.class_counts), "no label of the fleet is thrown away"
    assert made.manifest.class_names == (*base.manifest.class_names, "climb")
    assert found.counts.sum() == 30 + 300
    for name in set(base.manifest.members) - {"prior.npz"}:
        assert made.member(name) == base.member(name), "only the prior changes"
    assert encoder_hash(made) == encoder_hash(base)


def test_a_weight_makes_it_a_start_again(base: Bundle, tmp_path: Path) -> None:
    made, _ = merged.write(tmp_path / "m.ecl", base, [shared(base)], weight=10.0)
    assert head_of(made).class_counts.tolist() == [10.0] * 4
    made, _ = merged.write(tmp_path / "m.ecl", base, [shared(base)])
    assert head_of(made, "logistic").class_counts.max() == 10.0, "heads that begin from samples count 10"


@given(order=st.permutations(range(4)))
@settings(max_examples=10)
def test_the_order_of_devices_does_not_change_a_byte(tmp_path_factory: Any, order: Sequence[int]) -> None:
    folder = tmp_path_factory.mktemp("order")
    base = make_bundle(folder / "base.ecl", "slda")
    parts = [shared(base, f"home/d{k}", seed=k) for k in range(4)]
    one, _ = merged.write(folder / "one.ecl", base, parts)
    other, _ = merged.write(folder / "other.ecl", base, [parts[k] for k in order])
    assert one.bundle_id == other.bundle_id


def test_a_release_says_which_labels_it_includes(base: Bundle, tmp_path: Path) -> None:
    merged.write(tmp_path / "m.ecl", base, [shared(base, "home/a", n=60), shared(base, "home/b", n=70)])
    assert release_of(tmp_path / "m.ecl", chunk_bytes=1000).includes == {"home/a": 60, "home/b": 70}


def test_merging_again_adds_only_what_is_new(base: Bundle, tmp_path: Path) -> None:
    first, found = merged.write(tmp_path / "1.ecl", base, [shared(base, "home/a"), shared(base, "home/b")])
    later = shared(first, "home/a", seed=7, n=20)
    second, more = merged.write(tmp_path / "2.ecl", first, [later], running={"home/b": base.bundle_id})
    np.testing.assert_allclose(more.counts, found.counts + later.statistics.counts)
    np.testing.assert_allclose(more.second, found.second + later.statistics.second, rtol=1e-9)
    assert second.manifest.merged is not None
    assert second.manifest.merged.includes == {"home/a": 20, "home/b": 60}, "b has not installed the first"
    _, third = (
        Path(),
        merged.write(tmp_path / "3.ecl", first, [later], running={"home/b": first.bundle_id})[0],
    )
    assert third.manifest.merged is not None
    assert third.manifest.merged.includes == {"home/a": 20}, "b's own numbers began anew"


def test_what_counts_for_a_device_as_a_start_is_not_lost_when_it_is_merged_again(
    base: Bundle, tmp_path: Path
) -> None:
    first, found = merged.write(tmp_path / "1.ecl", base, [shared(base, left_out=["swim"])], weight=10.0)
    _, more = merged.write(tmp_path / "2.ecl", first, [shared(first, "home/b")])
    assert more.counts.sum() == found.counts.sum() + 60
    running = {"home/a": base.bundle_id}
    second, _ = merged.write(tmp_path / "2.ecl", first, [shared(first, "home/b")], running=running)
    assert second.manifest.merged is not None and second.manifest.merged.left_out == {"home/a": ["swim"]}
    assert merged.PRIOR_STRENGTH == knowledge.PRIOR_STRENGTH


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"class_names": ("rest", "walk", "run", "a\x1b[2J")}, SyncError),
        ({"sums": np.full((4, 6), 1e300)}, FleetError),
    ],
)
def test_what_no_device_learns_is_refused(
    base: Bundle, tmp_path: Path, change: dict[str, Any], error: type[Exception]
) -> None:
    one = shared(base)
    bad = one._replace(statistics=msgspec.structs.replace(one.statistics, **change))
    with pytest.raises(error):
        merged.write(tmp_path / "m.ecl", base, [bad])
    odd = one._replace(account=msgspec.structs.replace(one.account, device="home/\x1b"))
    with pytest.raises(ConfigError):
        merged.write(tmp_path / "m.ecl", base, [odd])
    assert not (tmp_path / "m.ecl").exists()


def test_labels_are_not_counted_twice(base: Bundle, tmp_path: Path) -> None:
    first, _ = merged.write(tmp_path / "1.ecl", base, [shared(base, "home/a")])
    with pytest.raises(FleetError, match=r"home/a .* twice"):
        merged.write(tmp_path / "2.ecl", first, [shared(base, "home/a", n=90)])
    merged.write(tmp_path / "2.ecl", first, [shared(base, "home/new")])
    with pytest.raises(FleetError, match="given twice"):
        merged.write(tmp_path / "2.ecl", base, [shared(base), shared(base)])


def test_a_device_with_another_encoder_is_named_and_refused(base: Bundle, tmp_path: Path) -> None:
    other = variant(base, tmp_path / "o.ecl", encoder=EncoderSpec(kind="identity", output="another"))
    with pytest.raises(FleetError, match="home/odd"):
        merged.write(tmp_path / "m.ecl", base, [shared(base), shared(other, "home/odd")])
    assert not (tmp_path / "m.ecl").exists()


def test_noisy_devices_take_part_and_their_epsilon_is_kept(base: Bundle, tmp_path: Path) -> None:
    about = {"noise": 1.0, "clip_norm": 8.0, "epsilon": 4.4, "delta": 1e-5, "left_out": ["*"]}
    parts = [shared(base, f"home/d{k}", seed=k, n=500, **about) for k in range(4)]
    made, _ = merged.write(tmp_path / "m.ecl", base, [*parts, shared(base, "home/plain", seed=9)])
    assert made.manifest.merged is not None
    assert made.manifest.merged.epsilon == {f"home/d{k}": 4.4 for k in range(4)}
    assert made.manifest.merged.left_out == {f"home/d{k}": ["*"] for k in range(4)}
    X, y = World(seed=99).draw(300, 4)
    assert (head_of(made).predict_many(X).argmax(axis=1) == y).mean() > 0.9
    prior = made.prior()
    assert prior is not None and np.linalg.eigvalsh(prior.shared_cov)[0] > 0


def test_noise_needs_a_prior_to_take_the_scatter_from(tmp_path: Path) -> None:
    cold = make_bundle(tmp_path / "cold.ecl", "slda", prior=False)
    with pytest.raises(FleetError, match="no prior"):
        merged.merge(cold, [shared(cold, noise=1.0, clip_norm=8.0)])
    assert merged.merge(cold, [shared(cold)]).counts.sum() == 60


# ------------------------------------------------------------------ what comes over MQTT


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[FleetStore]:
    store = FleetStore(f"sqlite:///{tmp_path}/fleet.db")
    board = Board("a")
    store.insert([word for word in [read(board.presence())] if word])
    yield store
    store.close()


def says(store: FleetStore, board: Board, *records: tuple[str, Any]) -> None:
    words = [read(board.says(kind, record, at_s=2e9)) for kind, record in records]
    store.insert([word for word in words if word])


def result(command_id: str, status: Any = "done", message: str = "") -> tuple[str, Any]:
    return "result", CommandResult(id=command_id, ask="report", status=status, message=message)


def test_parts_may_come_in_any_order_and_twice_and_late(kept: FleetStore, base: Bundle) -> None:
    device = find_device(kept, "a")
    (command_id,) = reports.ask_all(kept, [device], valid_s=60)
    one = shared(base, "lab/a")
    wide = Statistics(
        class_names=("x",), counts=np.ones(1), sums=np.ones((1, 200)), second=np.ones((200, 200))
    )
    parts = messages.parts(command_id, to_bytes(wide, one.account))
    assert len(parts) > 2
    assert reports.look(kept, command_id, device) is None
    board = Board("a")
    says(kept, board, *[("part", part) for part in [*parts[::-1][:-1], parts[-1]]], result(command_id))
    assert reports.look(kept, command_id, device) is None, "one is missing"
    says(kept, Board("other"), ("part", parts[0]))
    assert reports.look(kept, command_id, device) is None, "no device speaks for another"
    says(kept, board, ("part", parts[0]))
    found = reports.look(kept, command_id, device)
    assert found is not None and found.account == one.account
    np.testing.assert_array_equal(found.statistics.second, wide.second)


@pytest.mark.parametrize(
    ("change", "says_"),
    [
        (lambda part: msgspec.structs.replace(part, body=part.body[:-1] + b"!"), "SHA-256"),
        (lambda part: msgspec.structs.replace(part, total=0), "SHA-256"),
    ],
)
def test_damaged_parts_are_refused(kept: FleetStore, base: Bundle, change: Any, says_: str) -> None:
    device = find_device(kept, "a")
    (command_id,) = reports.ask_all(kept, [device], valid_s=60)
    (part,) = messages.parts(command_id, to_bytes(*shared(base, "lab/a")))
    says(kept, Board("a"), ("part", change(part)), result(command_id))
    with pytest.raises((FleetError, SyncError), match=says_):
        reports.look(kept, command_id, device)


def test_a_device_that_says_it_is_another_is_refused(kept: FleetStore, base: Bundle) -> None:
    device = find_device(kept, "a")
    (command_id,) = reports.ask_all(kept, [device], valid_s=60)
    (part,) = messages.parts(command_id, to_bytes(*shared(base, "lab/b")))
    says(kept, Board("a"), ("part", part), result(command_id))
    with pytest.raises(FleetError, match="lab/b"):
        reports.look(kept, command_id, device)


def typed(store: FleetStore, *words: object) -> Any:
    at = {"EDGE_CL_STORE": store.engine.url.render_as_string()}
    return CliRunner().invoke(fleet, ["merge", *map(str, words)], env=at)


def test_who_does_not_answer_is_named_and_nothing_is_written(kept: FleetStore, tmp_path: Path) -> None:
    found = typed(kept, "a", "--wait", "0", "--out", tmp_path / "m.ecl")
    assert isinstance(found.exception, FleetError) and "lab/a: no answer" in str(found.exception)
    assert not (tmp_path / "m.ecl").exists()


def test_what_was_saved_is_merged_without_asking(base: Bundle, tmp_path: Path) -> None:
    files = []
    for k in range(2):
        files.append(tmp_path / f"{k}.sums")
        files[-1].write_bytes(to_bytes(*shared(base, f"home/d{k}", seed=k)))
    words = [
        "--from",
        files[0],
        "--from",
        files[1],
        "--base",
        tmp_path / "base.ecl",
        "--out",
        tmp_path / "m.ecl",
    ]
    found = CliRunner().invoke(fleet, ["merge", *map(str, words)], env={"EDGE_CL_STORE": ""})
    assert found.exit_code == 0, found.exception
    assert "120 labels of 2 devices" in found.output and "climb" in found.output
    assert "slda" in found.output and "exact" in found.output and "approximate" in found.output
    files[0].write_bytes(files[0].read_bytes()[:-1])
    found = CliRunner().invoke(fleet, ["merge", *map(str, words)], env={"EDGE_CL_STORE": ""})
    assert isinstance(found.exception, FleetError) and "0.sums" in str(found.exception)


@pytest.mark.broker
def test_two_devices_are_asked_and_merged(
    broker: Broker, base: Bundle, tmp_path: Path, working: Working
) -> None:
    key = signing.make_key()
    store = FleetStore(f"sqlite:///{tmp_path}/fleet.db")
    keys = CommandSettings(keys={"fleet": KeySettings(public=signing.public_of(key), allow=["report"])})
    with contextlib.ExitStack() as stack:
        stack.callback(store.close)
        stack.enter_context(working(store, broker.url, duties=[Orders(store.engine, "fleet", key)]))
        ended = threading.Event()
        for name, seed in (("a", 1), ("b", 2)):
            thread = threading.Thread(
                target=_live, args=(name, seed, broker.url, tmp_path, base, keys, ended)
            )
            thread.start()
            stack.callback(thread.join, 20)
        stack.callback(ended.set)
        for name in ("a", "b"):
            wait_until(lambda name=name: _is_known(store, name), f"{name} is known")
        out, kept = tmp_path / "m.ecl", tmp_path / "sums"
        found = typed(store, "a", "b", "--base", tmp_path / "base.ecl", "--out", out, "--save", kept)
        assert found.exit_code == 0, found.exception
    made = Bundle.load(out)
    assert made.manifest.merged is not None and made.manifest.merged.includes == {"lab/a": 60, "lab/b": 60}
    assert merged.of_base(made).counts.sum() == 30 + 120
    assert sorted(path.name for path in kept.iterdir()) == ["lab.a.sums", "lab.b.sums"]


def _is_known(store: FleetStore, name: str) -> bool:
    with contextlib.suppress(FleetError):
        return find_device(store, name).up_s is not None
    return False


def _live(
    name: str,
    seed: int,
    url: str,
    folder: Path,
    base: Bundle,
    commands: CommandSettings,
    ended: threading.Event,
) -> None:
    """A device in a thread of its own: learns, then obeys until it is ended."""
    raw = {"device": {"site": "lab", "name": name}, "sleep": {"after_labels": 0, "idle_s": 0}}
    settings = settings_from(raw)
    with Slots(folder / name) as slots:
        place = slots.active(folder / "base.ecl")
        with Device(slots, base, place, settings) as device:
            device.run(World(seed=seed).events(60), [], [], busy=bool)
            pace = Pace(backoff_s=(0.05, 0.2))
            link = MqttLink(
                url, device=name, site="lab", state_dir=folder / name, commands=commands, pace=pace
            )
            link.obey_with(Remote(device, commands.keys, lambda _: None))
            link.start()
            while not ended.wait(0.02):
                link.poll()
                link.sink(device.status())
            link.stop()
