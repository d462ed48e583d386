"""Orders, bundles and rollouts on their whole way: real broker, real server, real devices, real commands."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from edge_cl_fleet import releases
from edge_cl_fleet.rollouts import Rollouts, Terms
from edge_cl_fleet.store import FleetStore
from edge_cl_fleet.waves import deal

from tests.devices import Device, windows
from tests.fleet.site import Site
from tests.mosquitto import Broker
from tests.upgrade.boards import variant
from tests.worlds import make_bundle

STEPS = [0.25, 1.0]


@pytest.fixture
def site(tmp_path: Path, broker: Broker) -> Site:
    return Site(tmp_path, broker, f"sqlite:///{tmp_path}/fleet.db")


def bundle_ids(site: Site) -> dict[str, str]:
    """Which bundle each device says it runs."""
    return {one["device"]: one["bundle_id"] for one in site.read("devices")}


def test_a_device_is_told_to_learn_to_change_and_to_take_another_bundle(site: Site) -> None:
    old = make_bundle(site.folder / "old.ecl")
    new = variant(old, site.folder / "new.ecl", name="newer", provenance={"x": "y" * 300_000})
    with site.serving(), site.board("one", site.folder / "old.ecl") as board:
        board.send(*windows(3))
        board.wait_for("decision", reading_id="r2")
        site.wait_for(lambda: "home/one" in site.call("devices"), "the device is known")
        assert "done: learned" in site.call("tell", "one", "label", "walk", "--reading", "r1", "--wait")
        assert board.wait_for("receipt", reading_id="r1")["source"] == "fleet/fleet"
        site.call("tell", "one", "set", "--min-confidence", "0.4", "--wait")
        assert site.read("show", "one")["settings"]["min_confidence"] == 0.4
        assert site.read("tell", "one", "report", "--wait")["result"]["data"]["n_labels"] == 1
        assert "failed" in site.call("tell", "one", "label", "walk", "--reading", "r99", "--wait", code=1)

        site.call("group", "kitchen", "one")
        said = site.call(
            "rollout", site.folder / "new.ecl", "--to", "kitchen", "--key", site.key, "--key-name", "fleet"
        )
        assert "waves of 1 devices" in said
        (rollout,) = site.read("rollouts")
        site.wait_for(lambda: "1 shadow" in site.call("show-rollout", rollout["id"]), "it tries the new one")
        board.send(*windows(30, start=3, labelled=True))
        site.wait_for(lambda: site.read("rollouts")[0]["state"] == "done", "the rollout is done")
        site.wait_for(lambda: bundle_ids(site) == {"one": new.bundle_id}, "it runs the new one")
        assert "1 committed" in site.call("show-rollout", rollout["id"][:4])
        assert len(site.read("commands")) == 5
        assert site.read("show", "one")["n_labels"] == 31, "no label was lost on the way"


@pytest.mark.slow
def test_a_rollout_to_four_devices_of_which_one_has_other_sensors(site: Site) -> None:
    old = make_bundle(site.folder / "old.ecl")
    channels = tuple(type(one)(name=one.name, unit="g") for one in old.manifest.channels)
    odd = variant(old, site.folder / "odd.ecl", channels=channels)
    new = variant(old, site.folder / "new.ecl", name="newer", provenance={"x": "y" * 300_000})
    variant(old, site.folder / "foreign.ecl", name="foreign", rate_hz=50.0)
    homes = {"a": old, "b": old, "c": old, "odd": odd}
    with site.serving(), ExitStack() as stack:
        boards = {
            name: stack.enter_context(
                site.board(name, site.folder / ("odd.ecl" if home is odd else "old.ecl"))
            )
            for name, home in homes.items()
        }
        before = {name: home.bundle_id for name, home in homes.items()}
        site.wait_for(lambda: bundle_ids(site) == before, "all are known")
        site.call("group", "all", *homes)
        for name in ("old", "new"):
            site.call("add", site.folder / f"{name}.ecl", "--key", site.key, "--key-name", "fleet")

        # Judged after one device of a wave: the odd one ends it while two others try the new bundle.
        rollout_id = begin(site, Terms(abort_after=1, undo=True), "odd")
        first = first_wave(rollout_id)
        site.wait_for(lambda: "1 shadow" in site.call("show-rollout", rollout_id), "the first one tries it")
        feed(boards[first], 0)
        site.wait_for(lambda: site.read("rollouts")[0]["state"] == "aborted", "the rollout is aborted")
        shown = site.call("show-rollout", rollout_id)
        assert "1 of 1 devices of wave 2" in shown and "other sensors" in shown, shown
        site.wait_for(lambda: site.read("show", first)["status"]["installed"].count("in the shadow"), "back")
        feed(boards[first], 30)
        site.wait_for(lambda: bundle_ids(site) == before, "all run what they ran")

        # Once more, and one odd device of three is no reason to end it.
        rollout_id = begin(site, Terms(abort_share=0.5), "odd")
        first = first_wave(rollout_id)
        for number, names in enumerate([[first], sorted({"a", "b", "c"} - {first})], start=1):
            for name in names:
                site.wait_for(lambda n=name: state_of(site, rollout_id, n) == "shadow", f"{name} tries it")
                feed(boards[name], 30 * (number + 1))
        site.wait_for(lambda: site.read("rollouts")[0]["state"] == "done", "the rollout is done")
        assert state_of(site, rollout_id, "odd") == "failed"
        after = {name: (odd if name == "odd" else new).bundle_id for name in homes}
        site.wait_for(lambda: bundle_ids(site) == after, "the good ones run it")

        # For sensors that nobody has: it ends on the first wave, the others never hear of it.
        foreign = ["--to", "all", "--steps", "25%,100%", "--key", site.key, "--key-name", "fleet"]
        site.call("rollout", site.folder / "foreign.ecl", *foreign)
        site.wait_for(lambda: site.read("rollouts")[0]["state"] == "aborted", "it is aborted")
        states = site.read("rollouts")[0]["waves"]
        assert [wave["states"] for wave in states] == [{"failed": 1}, {"waiting": 3}]
        assert bundle_ids(site) == after
        for board in boards.values():
            assert board.stop() == 0, board.log


def begin(site: Site, terms: Terms, last: str) -> str:
    """Roll the new bundle out to all four, `last` not in the first wave; the rollout's id."""
    store = FleetStore(site.url)
    try:
        ids = (f"{n:032x}" for n in range(100_000) if terms.undo or n > 50)
        rollout_id = next(one for one in ids if first_wave(one) != last)
        install = releases.find(store.engine, "newer")
        return Rollouts(store.engine).start(install, "all", STEPS, terms, rollout_id=rollout_id)
    finally:
        store.close()


def first_wave(rollout_id: str) -> str:
    """The device that begins."""
    devices = [f"home/{name}" for name in ("a", "b", "c", "odd")]
    return deal(rollout_id, devices, STEPS)[0][0].removeprefix("home/")


def state_of(site: Site, rollout_id: str, device: str) -> str:
    found = site.read("show-rollout", rollout_id)["devices"]
    return next(str(one["state"]) for one in found if one["name"] == f"home/{device}")


def feed(board: Device, start: int) -> None:
    """Enough trusted labels to compare two bundles by."""
    board.send(*windows(30, start=start, labelled=True))
