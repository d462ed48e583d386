"""Labels that go from one journal of a device to another of its own, when it changes its bundle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edge_cl.state.entries import REVISIONS, Entry, is_origin
from edge_cl.state.journal import Journal
from edge_cl.state.revising import end_sleep, names_now
from edge_cl.state.shared import SHARED, Shared
from edge_cl.state.store import JOURNAL, StateStore
from edge_cl.state.timeline import Timeline

GROUP = 512
"""Labels committed together."""


def labels_of(journal: Journal, first: int = 1, last: int = 2**62) -> Iterator[Entry]:
    """The labels that count in a journal, under the names that the classes they meant have now."""
    counts = Timeline(journal.rare(*REVISIONS)).at(journal.last_seq)
    names = names_now(journal, counts)
    for begin, end in counts:
        begin, end = max(begin, first, journal.first_seq), min(end, last)
        for entry in journal.read(begin, end) if begin <= end else ():
            if entry.kind in ("label", "not"):
                name = names.of(entry.seq, entry.label, taught=entry.kind == "label")
                yield msgspec.structs.replace(entry, label=name)


def origin_of(journal: Journal, entry: Entry) -> str:
    """Where an entry of `journal` was first journalled, ``uid:seq``."""
    return entry.detail if is_origin(entry.detail) else journal.origin(entry.seq)


def last_revision(journal: Journal) -> int:
    """The newest entry that changes what earlier ones mean, 0 for none."""
    found = journal.rare(*REVISIONS, "review", "rename")
    return found[-1].seq if found else 0


def hand_on(source: Journal, journal: Journal) -> None:
    """What was reported of the labels of `source` counts in `journal`, too, which has them as well."""
    theirs, own = (Shared.read(one.get_meta(SHARED)) for one in (source, journal))
    if theirs.n_reports > own.n_reports:  # one of the two lists of reports is always the longer other one
        journal.set_meta(SHARED, msgspec.json.encode(theirs).decode())


def carry_back(folder: Path, source: Path, *, at_s: float) -> int:
    """Journal in the stopped state `folder` each label of the stopped state `source` that it does not know.

    Both must have learned with the same encoder. They are learned at the next start. Doing it again adds
    nothing; durable in groups. Returns how many were new.
    """
    n_new = 0
    if not (source / JOURNAL).exists():
        return n_new
    with StateStore(folder, "", 2**62) as store, contextlib.closing(Journal(source / JOURNAL)) as other:
        journal = store.journal
        hand_on(other, journal)
        end_sleep(store, "labels of another slot were carried over", at_s=at_s)
        known = journal.origins()
        for entry in labels_of(other):
            origin = origin_of(other, entry)
            if origin in known or journal.is_own(origin):
                continue
            store.append(msgspec.structs.replace(entry, seq=journal.last_seq + 1, detail=origin))
            n_new += 1
            if n_new % GROUP == 0:
                journal.commit()
        journal.commit()
    return n_new
