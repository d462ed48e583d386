"""``edge-cl history``, ``rollback``, ``forget``, ``rename-class``, ``merge-classes``, ``review``.

They work on a device that runs, through its control socket, and on the folder of one that is stopped.
"""

from __future__ import annotations

import contextlib
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import click
import msgspec

from edge_cl.cli.device import find_status, json_option, state_option
from edge_cl.errors import DeviceNotRunning, StateError
from edge_cl.revisions import Forget, HeadRecord, HeldLabel, Outcome, Rename, Review, Revision, Rollback
from edge_cl.state import StateStore, audit, class_names_now, heads_of, held_labels, revise
from edge_cl.sync.control import SOCKET_NAME, Reply, Request, ask
from edge_cl.upgrade.slots import active_state, revise_others

ANY_SIZE = 2**62
WAIT_S = 90.0
POLL_S = 0.1

R = TypeVar("R")


def _moment(text: str) -> float:
    """A local date and time, or a time of today, as seconds since 1970."""
    try:
        if ":" in text and "-" not in text:
            text = f"{datetime.now().date()} {text}"
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise click.BadParameter(
            f'{text!r} is no time; write it as "2026-05-31 14:00", or "14:00" for today'
        ) from None


@click.command()
@state_option
@click.option("--audit", "audited", is_flag=True, help="List who taught, forgot, rolled back and when.")
@click.option("--check", is_flag=True, help="Read all of a stopped device's state and check every hash.")
@json_option
def history(state_dir: Path, audited: bool, check: bool, as_json: bool) -> None:
    """List the heads that a device can return to: when, why, how accurate it was then."""
    if check:
        _check(state_dir, as_json)
        return
    if audited:
        lines = list(audit(active_state(state_dir)))
        if as_json:
            click.echo(msgspec.json.encode(lines))
            return
        for line in lines:
            n = f" ×{line.n:,}" if line.n > 1 else ""
            click.echo(f"{line.seq:>8,}  {_when(line.at_s)}  {line.who:<16}  {line.what}{n}")
        return
    heads = heads_of(active_state(state_dir))
    if as_json:
        click.echo(msgspec.json.encode(heads))
        return
    if not heads:
        click.echo("no head is kept yet; the first is written after some labels, a sleep or a stop")
        return
    click.echo(f"{'id':>8}  {'when':19}  {'labels':>8}  {'accuracy':>8}  why it was kept")
    for head in heads:
        click.echo(_head_line(head))


@click.command()
@click.option("--to", type=int, help="A head of `edge-cl history`, or any entry of the journal.")
@click.option("--before", metavar="TIME", help='To what was known then: "2026-05-31 14:00" or "14:00".')
@state_option
@json_option
def rollback(to: int | None, before: str | None, state_dir: Path, as_json: bool) -> None:
    """Return to an earlier head; without an option to the newest that knows fewer labels than now.

    What was learned since stays in the journal: rolling back to a later entry brings it back.
    """
    if to is not None and before is not None:
        raise click.UsageError("give --to or --before, not both")
    if to is None and before is None:
        to = _one_back(state_dir)
    before_s = None if before is None else _moment(before)
    _revise(state_dir, Rollback(to=to, before_s=before_s), as_json)


def _one_back(state_dir: Path) -> int:
    """The newest head that knows fewer labels than the device does now."""
    heads = heads_of(active_state(state_dir))
    status, _, _ = find_status(state_dir)
    n_now = status.n_labels if status else 0
    earlier = [head.id for head in heads if not head.stranded and head.n_labels < n_now]
    if not earlier:
        raise click.ClickException("no earlier head is kept; name an entry with --to, or a time: --before")
    return earlier[-1]


@click.command()
@click.option("--reading", default="", help="The label of this reading.")
@click.option("--source", default="", help="Every label of this source, and of what lies under it (mqtt/…).")
@click.option("--class", "class_name", default="", help="Every label of this class.")
@click.option("--between", nargs=2, metavar="T1 T2", help="Labels learned from T1 until T2.")
@state_option
@json_option
def forget(
    reading: str,
    source: str,
    class_name: str,
    between: tuple[str, str] | None,
    state_dir: Path,
    as_json: bool,
) -> None:
    """Take labels back for good: those that match all that is given.

    The head is then bit for bit the one that never saw them, and the journal holds no more than a hash of
    each. It cannot be undone.
    """
    since, until = (_moment(between[0]), _moment(between[1])) if between else (None, None)
    asked = Forget(reading=reading, source=source, class_name=class_name, since_s=since, until_s=until)
    _revise(state_dir, asked, as_json)


@click.command("rename-class")
@click.argument("old")
@click.argument("new")
@state_option
@json_option
def rename_class(old: str, new: str, state_dir: Path, as_json: bool) -> None:
    """Call class OLD NEW from now on; labels that still say OLD mean the same class."""
    _revise(state_dir, Rename(old=old, new=new), as_json)


@click.command("merge-classes")
@click.argument("old")
@click.argument("into")
@state_option
@json_option
def merge_classes(old: str, into: str, state_dir: Path, as_json: bool) -> None:
    """Make class OLD a part of class INTO."""
    _revise(state_dir, Rename(old=old, new=into, merge=True), as_json)


@click.command()
@click.option("--accept", type=int, multiple=True, metavar="ID", help="Learn this label; may be repeated.")
@click.option("--reject", type=int, multiple=True, metavar="ID", help="Never learn this label.")
@click.option(
    "--all", "everything", type=click.Choice(["accept", "reject"]), help="Do so with all that wait."
)
@state_option
@json_option
def review(
    accept: tuple[int, ...],
    reject: tuple[int, ...],
    everything: str | None,
    state_dir: Path,
    as_json: bool,
) -> None:
    """List the labels that were held and not learned; accept or reject them."""
    if everything:
        waiting = tuple(label.seq for label in _held(state_dir))
        accept, reject = (waiting, ()) if everything == "accept" else ((), waiting)
    for seqs, accepted in ((accept, True), (reject, False)):
        if seqs:
            _revise(state_dir, Review(seqs=list(seqs), accept=accepted), as_json)
    if accept or reject:
        return
    waiting_now = _held(state_dir)
    if as_json:
        click.echo(msgspec.json.encode(waiting_now))
        return
    if not waiting_now:
        click.echo("no label waits for a review")
    for label in waiting_now:
        said = f"not {label.label}" if label.kind == "not" else label.label
        what = f"{said!r} for {label.reading_id} by {label.source}"
        click.echo(f"{label.seq:>8}  {_when(label.at_s)}  {what}: {label.reason}")


def _revise(state_dir: Path, asked: Revision, as_json: bool) -> None:
    """Ask the running device, or change the folder of a stopped one, and show what came of it."""
    try:
        outcome = _ask(state_dir, Request(op="revise", revision=asked)).outcome
    except DeviceNotRunning:
        outcome = _revise_stopped(state_dir, asked)
    else:
        with contextlib.suppress(DeviceNotRunning):  # it stopped meanwhile; what was asked is done
            _watch(state_dir)
    if outcome is None:
        raise click.ClickException("the device gave no answer; do both sides have the same version?")
    if as_json:
        click.echo(msgspec.json.encode(outcome))
        return
    click.echo(outcome.message)


def _watch(state_dir: Path) -> None:
    """Until the device has learned anew what counts now: show how far it is."""
    shown = False
    while True:
        status = _ask(state_dir, Request(op="status")).status
        if status is None or not status.sleep_state.startswith("learning anew"):
            break
        if sys.stderr.isatty():
            click.echo(f"\r{status.sleep_state}", err=True, nl=False)
            shown = True
        time.sleep(POLL_S)
    if shown:
        click.echo(err=True)


def _revise_stopped(state_dir: Path, asked: Revision) -> Outcome:
    with _opened(state_dir) as store:
        names = class_names_now(store) if isinstance(asked, Rename) else []
        outcome = revise(store, asked, source="local", at_s=round(time.time(), 3), class_names=names)
    revise_others(state_dir, asked, "local")
    return msgspec.structs.replace(outcome, message=f"{outcome.message}; learned anew at the next start")


def _held(state_dir: Path) -> list[HeldLabel]:
    try:
        return _ask(state_dir, Request(op="held")).held or []
    except DeviceNotRunning:
        with _opened(state_dir) as store:
            return held_labels(store)


def _ask(state_dir: Path, request: Request) -> Reply:
    return ask(state_dir / SOCKET_NAME, request, timeout_s=WAIT_S)


def _opened(state_dir: Path) -> StateStore:
    if not state_dir.is_dir():
        raise StateError(f"{state_dir}: no such state folder; `edge-cl run` makes one")
    return StateStore(active_state(state_dir), "", ANY_SIZE)


def _check(state_dir: Path, as_json: bool) -> None:
    with _opened(state_dir) as store:
        store.check_all()
        problems, n = store.problems, store.journal.last_seq - store.journal.first_seq + 1
    if as_json:
        click.echo(msgspec.json.encode({"n_entries": n, "problems": problems}))
    else:
        click.echo("\n".join(problems) or f"{n:,} journal entries and all heads are sound")
    if problems:
        raise click.exceptions.Exit(1)


def _head_line(head: HeadRecord) -> str:
    if head.problem:
        return f"{head.id:>8,}  {head.problem}"
    accuracy = "–" if head.accuracy is None else f"{head.accuracy:.3f}"
    note = "  (before a rollback)" if head.stranded else ""
    return f"{head.id:>8}  {_when(head.at_s)}  {head.n_labels:>8,}  {accuracy:>8}  {head.cause}{note}"


def _when(at_s: float) -> str:
    return datetime.fromtimestamp(at_s).strftime("%Y-%m-%d %H:%M:%S") if at_s else f"{'?':19}"
