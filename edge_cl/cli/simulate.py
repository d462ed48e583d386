"""``edge-cl simulate``: a whole device on a desktop, beside a frozen one."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_cl.errors import ConfigError, DataError

if TYPE_CHECKING:
    from edge_cl.bundle import Bundle
    from edge_cl.simulate.desktop import OnProgress, Run
    from edge_cl.simulate.scenario import Scenario


@click.command()
@click.option(
    "--data", type=click.Path(path_type=Path), help="Real recordings (.npz) instead of the simulated wrist."
)
@click.option("--scenario", "name", help="With --data: phone-to-watch or new-person.")
@click.option("--bundle", "bundle_path", type=click.Path(path_type=Path), help="Start from this bundle.")
@click.option(
    "--broker", default="", metavar="URL", help="mqtt://host:port; by default a broker in this process."
)
@click.option(
    "--windows", "n_windows", default=6000, show_default=True, help="Length of the simulated stream."
)
@click.option("--seed", default=0, show_default=True, help="Of the simulated people.")
@click.option("--state", "state_dir", type=click.Path(path_type=Path), help="Keep the learned state here.")
@click.option("--report", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True)
@click.option(
    "--labels-per-class",
    type=click.IntRange(1, 4),
    default=4,
    show_default=True,
    help="new-person: labelled windows of each gesture, in all.",
)
@click.option(
    "--labels-per-recording",
    type=click.IntRange(1, 4),
    default=1,
    show_default=True,
    help="new-person: how they are spread, from one in each of the gesture's first recordings up to four in "
    "its first.",
)
@click.option("--no-report", is_flag=True, help="Write no report.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def simulate(
    data: Path | None,
    name: str | None,
    bundle_path: Path | None,
    broker: str,
    json_path: Path | None,
    **how: Any,
) -> None:
    """Run a whole device here, beside a frozen twin: people, a sensor, late labels, MQTT, sleep.

    Without options: a simulated wrist sensor, a new person, a knock to the sensor and an activity
    it has never seen. With --data: the same on real recordings.
    """
    started_s = time.monotonic()
    for path in (json_path, None if how["no_report"] else how["report"]):
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"{path}: there is no folder {path.parent}; make it first")
    scenarios, bundle = _prepare(data, name, bundle_path, **how)
    runs, counts = _play(scenarios, bundle, broker, how["state_dir"])
    from edge_cl.simulate.desktop import DEMO_SETTINGS
    from edge_cl.simulate.figures import figures

    shown = figures(
        runs,
        counts=counts,
        budget_bytes=DEMO_SETTINGS.to_budget().ram_bytes,
        scenario=name or "demo",
        bundle=bundle.manifest.name,
        bundle_id=bundle.bundle_id,
        seed=how["seed"],
        labels_per_class=how["labels_per_class"],
        labels_per_recording=how["labels_per_recording"],
        elapsed_s=round(time.monotonic() - started_s, 1),
    )
    _show(shown)
    if json_path is not None:
        json_path.write_text(json.dumps(shown, indent=2) + "\n", encoding="utf-8")
    if not how["no_report"]:
        from edge_cl.simulate.report import write_report

        write_report(how["report"], runs, shown)
        click.echo(f"Report: {how['report']}")


def _prepare(
    data: Path | None, name: str | None, bundle_path: Path | None, **how: Any
) -> tuple[list[Scenario], Bundle]:
    from edge_cl.bundle import Bundle
    from edge_cl.simulate import bundles

    if (data is None) != (name is None):
        raise ConfigError(
            "--data and --scenario belong together; give both, or neither for the simulated wrist"
        )
    if data is None or name is None:
        from edge_cl.simulate.scenario import demo

        bundle = Bundle.load(bundle_path) if bundle_path else bundles.default_bundle()
        _match_wrist(bundle)
        return [demo(how["seed"], n_windows=how["n_windows"])], bundle
    from edge_cl.datasets.places import find
    from edge_cl.simulate.recorded import load_scenarios

    found = find(data)
    if found is None:
        raise DataError(f"{data}: no such file; `edge-cl data list` shows what is here and what can be had")
    bundle = Bundle.load(bundle_path) if bundle_path else bundles.bundle_for(found, name)
    scenarios = load_scenarios(
        found,
        name,
        bundle.manifest,
        labels_per_class=how["labels_per_class"],
        labels_per_recording=how["labels_per_recording"],
    )
    return scenarios, bundle


def _match_wrist(bundle: Bundle) -> None:
    from edge_cl.simulate import wrist

    manifest = bundle.manifest
    found = ([c.name for c in manifest.channels], manifest.window_samples)
    need = ([c.name for c in wrist.CHANNELS], wrist.WINDOW_SAMPLES)
    if found != need:
        raise ConfigError(
            f"bundle {manifest.name!r} is for another sensor than the simulated wrist; give its recordings "
            "with --data and --scenario"
        )


def _play(
    scenarios: Sequence[Scenario], bundle: Bundle, broker: str, state_dir: Path | None
) -> tuple[list[Run], dict[str, int]]:
    from threadpoolctl import threadpool_limits

    from edge_cl.simulate import desktop

    threadpool_limits(1)  # as on the device; more threads only wait for each other
    runs = []
    with tempfile.TemporaryDirectory(prefix="edge-cl-") as scratch:
        root = state_dir or Path(scratch)
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()):
            raise ConfigError(f"--state {root} is not empty; a simulation starts afresh, name another folder")
        with desktop.connected(broker, root) as link, _progress(scenarios) as begin:
            for k, scenario in enumerate(scenarios):
                folder = root / f"device-{k}" if len(scenarios) > 1 else root
                runs.append(
                    desktop.run(bundle, scenario, link, state_dir=folder, on_progress=begin(scenario))
                )
        if link.counts["queued"]:
            click.echo(
                f"edge-cl: {link.counts['queued']} messages were not delivered: {link.alarm}", err=True
            )
        return runs, dict(link.counts)


@contextmanager
def _progress(scenarios: Sequence[Scenario]) -> Iterator[Callable[[Scenario], OnProgress]]:
    """A progress bar over all scenarios, with the accuracy of both devices."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(
            "learning [green]{task.fields[learning]:5.1%}[/]  frozen [red]{task.fields[frozen]:5.1%}[/]"
        ),
        TimeElapsedColumn(),
    )
    with Progress(*columns) as bar:
        total = sum(len(scenario.truth) for scenario in scenarios)
        task = bar.add_task("starting", total=total, learning=0.0, frozen=0.0)
        done = 0

        def begin(scenario: Scenario) -> OnProgress:
            nonlocal done
            before = done
            done += len(scenario.truth)

            def on_progress(seen: int, learning: float, frozen: float) -> None:
                begun = [mark.text for mark in scenario.marks if mark.index < seen]
                text = begun[-1] if begun else scenario.name
                bar.update(task, completed=before + seen, description=text, learning=learning, frozen=frozen)

            return on_progress

        yield begin


def _show(shown: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "learning", "frozen", title=f"{shown['scenario']}: {shown['windows']:,} windows")
    for label, pair in _rows(shown["accuracy"]):
        table.add_row(label, f"{pair['learning']:.1%}", f"{pair['frozen']:.1%}")
    memory, messages = shown["memory"], shown["messages"]
    console = Console()
    console.print(table)
    console.print(
        f"labels learned {shown['labels_used']:,} · memory {memory['held_bytes'] / 1e6:.2f} of "
        f"{memory['budget_bytes'] / 1e6:.1f} MB · "
        f"sleeps {shown['sleeps']} ({shown['sleeps_adopted']} adopted) · "
        f"messages {messages['delivered']:,} delivered of {messages['sent']:,} · {shown['elapsed_s']} s",
        highlight=False,
    )


def _rows(accuracy: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    rows = [("now (whole stream)", accuracy["now"]), ("now, last half", accuracy["last_half"])]
    rows += [(f"  {phase['phase']}", phase) for phase in accuracy["phases"]]
    if accuracy["by_recording"]:
        rows += [
            ("now, by recording", accuracy["by_recording"]),
            ("  its last third", accuracy["by_recording"]["last_third"]),
        ]
    if accuracy["ever"]:
        rows.append(("ever (held out)", accuracy["ever"]))
    return rows + [(f"  {exam['condition']}", exam) for exam in accuracy["exams"]]
