"""One page that shows what happened: self-contained, light or dark, readable on a phone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from edge_cl.records import Receipt
from edge_cl.simulate.desktop import ROLLING, Run
from edge_cl.simulate.figures import confusion
from edge_cl.simulate.plots import accuracy_plot, memory_plot

N_RECEIPTS = 8
N_SLEEPS = 20


def write_report(path: str | Path, runs: Sequence[Run], shown: dict[str, Any]) -> None:
    """Write the report of `runs`, whose figures are `shown`, as one HTML file."""
    page = Template(files("edge_cl.simulate").joinpath("report_template.html").read_text(encoding="utf-8"))
    memory = shown["memory"]
    fullest = max(runs, key=lambda run: run.status.held_bytes)
    Path(path).write_text(
        page.substitute(
            title=escape(shown["scenario"]),
            headline=_headline(shown),
            subtitle=escape(_subtitle(shown)),
            cards=_cards(shown),
            rolling=ROLLING,
            accuracy_plot=accuracy_plot(runs),
            phases=_phases(shown),
            exams=_exams(shown),
            confusion=_confusion(runs),
            memory_text=escape(_memory_text(memory)),
            memory_percent=f"{min(100.0, 100 * memory['held_bytes'] / memory['budget_bytes']):.1f}",
            memory_plot=memory_plot(fullest),
            receipts_text=escape(_receipts_text(shown)),
            receipts=_receipts(runs),
            sleeps=_sleeps(runs),
            footer=escape(", ".join(f"{name} {number}" for name, number in shown["versions"].items())),
        ),
        encoding="utf-8",
    )


def percent(share: float) -> str:
    """A share as a percentage with one decimal and a space that does not break."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def _headline(shown: dict[str, Any]) -> str:
    now = shown["accuracy"]["now"]
    return (
        f'Right <span class="learning">{percent(now["learning"])}</span> of the time while learning, '
        f'<span class="frozen">{percent(now["frozen"])}</span> frozen'
    )


def _subtitle(shown: dict[str, Any]) -> str:
    devices = f", {shown['devices']} devices, one per person" if shown["devices"] > 1 else ""
    return (
        f"Scenario {shown['scenario']}, bundle {shown['bundle']}, {shown['windows']:,} windows{devices}, "
        f"{shown['labels_used']:,} labels learned, {shown['elapsed_s']:.0f} s, seed {shown['seed']}."
    )


def _cards(shown: dict[str, Any]) -> str:
    accuracy, memory, messages = shown["accuracy"], shown["memory"], shown["messages"]
    cards = [("now", accuracy["now"], "of the stream"), ("last half", accuracy["last_half"], "of the stream")]
    if accuracy["ever"]:
        cards.append(("ever", accuracy["ever"], "held-out windows"))
    if accuracy["by_recording"]:
        cards.append(("by recording", accuracy["by_recording"], "majority of its windows"))
    return "".join(
        [
            *(
                _card(name, percent(pair["learning"]), f"frozen {percent(pair['frozen'])}, {note}")
                for name, pair, note in cards
            ),
            _card(
                "memory",
                f"{memory['held_bytes'] / 1e6:.1f}\N{NO-BREAK SPACE}MB",
                f"of {memory['budget_bytes'] / 1e6:.1f} MB",
            ),
            _card("sleeps", str(shown["sleeps"]), f"{shown['sleeps_adopted']} woke with a new head"),
            _card(
                "messages", f"{messages['delivered']:,}", f"delivered over MQTT of {messages['sent']:,} sent"
            ),
        ]
    )


def _card(name: str, value: str, note: str) -> str:
    soft = '<span class="soft">{}</span>'
    inside = soft.format(escape(name)) + f"<b>{escape(value)}</b>" + soft.format(escape(note))
    return f'<div class="card">{inside}</div>'


def _phases(shown: dict[str, Any]) -> str:
    rows = [
        (phase["phase"], percent(phase["learning"]), percent(phase["frozen"]))
        for phase in shown["accuracy"]["phases"]
    ]
    return f'<div class="wide">{_table(("what happens", "learning", "frozen"), rows)}</div>' if rows else ""


def _exams(shown: dict[str, Any]) -> str:
    rows = [
        (exam["condition"], percent(exam["learning"]), percent(exam["frozen"]), f"{exam['windows']:,}")
        for exam in shown["accuracy"]["exams"]
    ]
    return _table(("held out from", "learning", "frozen", "windows"), rows)


def _confusion(runs: Sequence[Run]) -> str:
    names, counts = confusion([exam for run in runs for exam in run.exams])
    if not names or len(names) > 20:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = []
    for k, name in enumerate(names):
        total = max(int(counts[k].sum()), 1)
        cells = "".join(_cell(int(counts[k, j]) / total, right=j == k) for j in range(len(names)))
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    return (
        '<p class="soft" style="margin-top:1rem">What it is (rows) and what the learning device says '
        '(columns), per cent of the row:</p><div class="wide"><table class="matrix">'
        f"<tr><th></th>{head}</tr>{''.join(rows)}</table></div>"
    )


def _cell(share: float, *, right: bool) -> str:
    colour = "--heat" if right else "--miss"
    text = f"{100 * share:.0f}" if share >= 0.005 else ""
    return f'<td style="background:rgba(var({colour}),{0.75 * share:.2f})">{text}</td>'


def _memory_text(memory: dict[str, Any]) -> str:
    share = memory["held_bytes"] / memory["budget_bytes"]
    return (
        f"{memory['held_bytes'] / 1e6:.2f} MB of the budget's {memory['budget_bytes'] / 1e6:.1f} MB "
        f"({percent(share)}) at the end."
    )


def _receipts_text(shown: dict[str, Any]) -> str:
    return (
        f"{shown['labels_given']:,} labels were given, {shown['labels_used']:,} learned. Each is answered by "
        "a receipt once it is safe on disk; here are some that changed the most."
    )


def _receipts(runs: Sequence[Run]) -> str:
    learned = [r for run in runs for r in run.receipts if r.status == "learned"]
    chosen = sorted(learned, key=_interest, reverse=True)[:N_RECEIPTS]
    rows = [
        (
            receipt.reading_id,
            receipt.label + (" (new)" if receipt.new_class else ""),
            f"{percent(receipt.confidence_before)} → {percent(receipt.confidence_after)}",
            _changes(receipt),
        )
        for receipt in chosen
    ]
    head = (
        "reading",
        "label",
        "confidence in it",
        f"what else changed among the last {_n_compared(learned)}",
    )
    return _table(head, rows)


def _changes(receipt: Receipt) -> str:
    counts = Counter(receipt.changed.values())
    return "; ".join(f"{n} × {change}" for change, n in counts.most_common()) or "nothing"


def _interest(receipt: Receipt) -> float:
    gain = receipt.confidence_after - receipt.confidence_before
    return 2.0 * receipt.new_class + gain + 0.1 * len(receipt.changed)


def _n_compared(receipts: Sequence[Receipt]) -> int:
    return max((receipt.n_compared for receipt in receipts), default=0)


def _sleeps(runs: Sequence[Run]) -> str:
    slept = [(index, report) for run in runs for index, report in run.sleeps]
    if not slept:
        return '<p class="soft">It did not sleep.</p>'
    rows = [
        (
            f"{index:,}",
            report.cause,
            f"{report.n_exemplars:,}",
            f"{percent(report.accuracy_before)} → {percent(report.accuracy_after)}",
            "yes" if report.adopted else "no",
            report.reason,
            f"{report.cpu_s:.2f}",
        )
        for index, report in slept[:N_SLEEPS]
    ]
    head = ("after window", "cause", "rehearsed", "held back, awake → rested", "woke new", "why", "CPU s")
    more = f'<p class="soft">and {len(slept) - N_SLEEPS} more.</p>' if len(slept) > N_SLEEPS else ""
    return _table(head, rows) + more


def _table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"
