"""Taking back, going back, renaming and reviewing: revisions as entries of a journal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from itertools import islice

import msgspec

from edge_cl.errors import NothingMatches, StateError
from edge_cl.naming import ClassNames, NamesNow
from edge_cl.revisions import Forget, HeldLabel, Outcome, Rename, Review, Revision, Rollback
from edge_cl.state.entries import Entry
from edge_cl.state.journal import Journal
from edge_cl.state.store import StateStore
from edge_cl.state.timeline import Ranges, Taken, holds, ranges_of

MAX_NAME_CHARS = 200
"""As of labels that come over MQTT: every answer carries its name."""
TAUGHT = ("label", "not", "held")


def revise(
    store: StateStore, asked: Revision, *, source: str, at_s: float, class_names: Iterable[str]
) -> Outcome:
    """Do what was asked, durable on return; what is known must then be built anew by `StateStore.entries`.

    Parameters
    ----------
    source
        Who asked.
    at_s
        Wall clock.
    class_names
        The classes that are known now.

    Raises
    ------
    StateError
        What was asked cannot be done; nothing has changed.
    StateUnwritable
        The disk takes nothing; nothing has changed.
    """
    if isinstance(asked, Forget):
        return _forget(store, asked, source, at_s)
    if isinstance(asked, Rollback):
        return _go_back(store, asked, source, at_s)
    if isinstance(asked, Rename):
        return _rename(store, asked, source, at_s, list(class_names))
    return _review(store, asked, source, at_s)


def class_names_now(store: StateStore) -> list[str]:
    """The classes of a device that is not running.

    Raises StateError when no snapshot is kept that could tell those of its bundle.
    """
    newest = next(store.usable(), None)
    naming = ClassNames(msgspec.json.decode(store.journal.get_meta("bundle_classes") or "[]"))
    if newest is not None:
        naming.restore(newest.meta)
    elif not naming.names:
        raise StateError(f"{store.folder}: does not know its bundle's classes yet; start edge-cl run once")
    for entry in store.entries(newest.seq if newest else 0):
        if entry.kind == "rename":
            naming.rename(entry.label, entry.detail)
        elif entry.kind == "label" and naming.resolve(entry.label) not in naming.names:
            naming.add(entry.label)
    return naming.names


def names_now(journal: Journal, counts: Ranges) -> NamesNow:
    """What the classes that a journal's labels meant are called, by the renames that count."""
    renames = [(e.seq, e.label, e.detail) for e in journal.rare("rename") if holds(counts, e.seq)]
    names = msgspec.json.decode(journal.get_meta("bundle_classes") or "[]")
    return NamesNow(names, renames, whole=journal.first_seq == 1)


def end_sleep(store: StateStore, why: str, *, at_s: float) -> None:
    """Drop a sleep that a stopped device would take up again: its memory must not change meanwhile."""
    last = ""
    for seq, kind, *_ in store.journal.about():
        if kind in ("sleep", "wake") and holds(store.counts, seq):
            last = kind
    if last == "sleep":
        detail = msgspec.json.encode({"drop": why}).decode()
        store.append(Entry(seq=store.journal.last_seq + 1, kind="wake", at_s=at_s, detail=detail))


def held_labels(store: StateStore) -> list[HeldLabel]:
    """Labels that wait for a review, oldest first."""
    return [_said(entry, reason) for entry, reason in _waiting(store)]


def said_after(store: StateStore, seq: int, limit: int) -> list[HeldLabel]:
    """Labels on disk after journal entry `seq`, the oldest of them; `reason` is "" for those learned.

    Only what was said to this bundle: a detail tells of labels that came from another journal or from
    a review, and were answered when they were said.
    """
    entries = store.journal.read(seq + 1, store.journal.committed_seq)
    said = (entry for entry in entries if entry.kind == "held" or _is_said_here(entry))
    return [_said(entry, entry.detail if entry.kind == "held" else "") for entry in islice(said, limit)]


def _is_said_here(entry: Entry) -> bool:
    return entry.kind in ("label", "not") and not entry.detail


def _said(entry: Entry, reason: str) -> HeldLabel:
    return HeldLabel(
        seq=entry.seq,
        kind="not" if entry.kind == "not" or entry.detail.startswith("not: ") else "is",
        label=entry.label,
        reading_id=entry.reading_id,
        source=entry.source,
        at_s=entry.at_s,
        reason=reason,
    )


def took_back(n_labels: int, what: str) -> str:
    """For a person: that labels were held back, `what` says which and why."""
    return f"took back {n_labels:,} {what}"


def last_hold(store: StateStore) -> tuple[int, str]:
    """Journal number and words of what was held back last, (0, "") once all of it was reviewed."""
    entries = store.rare("hold")
    if entries:
        taken = msgspec.json.decode(entries[-1].detail, type=Taken)
        if any(holds(taken.ranges, entry.seq) for entry, _ in _waiting(store)):
            n_labels = sum(last - first + 1 for first, last in taken.ranges)
            return entries[-1].seq, f"{took_back(n_labels, taken.what)}; see `edge-cl review`"
    return 0, ""


def _waiting(store: StateStore) -> list[tuple[Entry, str]]:
    """Entries that wait for a review and why: held when they came, or held back later.

    A review that was rolled back does not count: its labels wait again.
    """
    counts = store.counts
    reviewed = {
        seq
        for entry in store.rare("review")
        if holds(counts, entry.seq)
        for seq in msgspec.json.decode(entry.detail, type=Review).seqs
    }
    found = {entry.seq: (entry, entry.detail) for entry in store.rare("held")}
    for hold in store.rare("hold"):
        taken = msgspec.json.decode(hold.detail, type=Taken)
        for first, last in taken.ranges:
            for entry in store.sound(max(first, store.journal.first_seq), last):
                if entry.kind in TAUGHT:
                    found[entry.seq] = entry, taken.what
    return [found[seq] for seq in sorted(found.keys() - reviewed)]


def revised_by(store: StateStore, source: str) -> int:
    """Journal number of the newest revision that `source` asked for, or whose source ends in it;
    0 for none.
    """
    entries = store.journal.rare("forget", "rollback", "rename", "review")
    return max((entry.seq for entry in entries if entry.source.endswith(source)), default=0)


def _forget(store: StateStore, asked: Forget, source: str, at_s: float) -> Outcome:
    if not any((asked.reading, asked.source, asked.class_name)) and asked.since_s is None:
        raise StateError("forget what? name a reading, a source, a class, or a span of time")
    counts = store.counts
    names = names_now(store.journal, counts)
    seqs, n_counting = [], 0
    for seq, kind, reading_id, label, who, when in store.journal.about():
        if kind not in TAUGHT:
            continue
        counting = kind != "held" and holds(counts, seq)
        name = names.of(seq, label, taught=counting and kind == "label") if asked.class_name else ""
        if _matches(asked, reading_id, name, who, when):
            seqs.append(seq)
            n_counting += counting
    if not seqs:
        raise NothingMatches(f"nothing to forget: no label {_describe(asked)}; {_what_there_is(store)}")
    what = f"labels {_describe(asked)}"
    store.take_out("forget", ranges_of(seqs), what=what, source=source, at_s=at_s)
    more = f", and {len(seqs) - n_counting:,} that did not count" if len(seqs) > n_counting else ""
    return Outcome(
        seq=store.journal.last_seq,
        n_labels=n_counting,
        message=f"forgot {n_counting:,} labels {_describe(asked)}{more}{_copies(store)}",
    )


def _copies(store: StateStore) -> str:
    """What else in the folder still knows what was forgotten."""
    aside = sorted({*store.folder.glob("*.damaged*"), *store.folder.glob("before-restore-*")})
    if not aside:
        return ""
    return f"; still in {', '.join(path.name for path in aside[:5])}, kept aside: delete them by hand"


def _matches(asked: Forget, reading_id: str, name: str, who: str, when: float) -> bool:
    return (
        asked.reading in ("", reading_id)
        and (not asked.source or who == asked.source or who.startswith(f"{asked.source}/"))
        and asked.class_name in ("", name)
        and (asked.since_s is None or when >= asked.since_s)
        and (asked.until_s is None or when < asked.until_s)
    )


def _describe(asked: Forget) -> str:
    parts = []
    if asked.reading:
        parts.append(f"of reading {asked.reading!r}")
    if asked.source:
        parts.append(f"of source {asked.source!r}")
    if asked.class_name:
        parts.append(f"of class {asked.class_name!r}")
    if asked.since_s is not None:
        parts.append(f"since {_when(asked.since_s)}")
    if asked.until_s is not None:
        parts.append(f"before {_when(asked.until_s)}")
    return " ".join(parts)


def _what_there_is(store: StateStore) -> str:
    """For a person whose request matched nothing."""
    sources: Counter[str] = Counter()
    first_s = 0.0
    for _, kind, _, _, who, when in store.journal.about():
        if kind in TAUGHT:
            sources[who] += 1
            first_s = first_s or when
    if not sources:
        return "the history holds no labels"
    known = ", ".join(f"{who} ({n:,})" for who, n in sources.most_common(5))
    since = f" since {_when(first_s)}" if first_s else ""
    return f"the history{since} holds labels of {known}"


def _go_back(store: StateStore, asked: Rollback, source: str, at_s: float) -> Outcome:
    journal = store.journal
    to = asked.to
    if to is None:
        if asked.before_s is None:
            raise StateError("roll back to what? name a head of `edge-cl history`, or a time")
        to = _before(store, asked.before_s)
    if not 0 <= to < journal.last_seq + 1:
        raise StateError(f"there is no entry {to:,}; the history ends at {journal.last_seq:,}")
    if not _reachable(store, to):
        raise StateError(
            f"cannot go back to entry {to:,}: the history begins at entry {journal.first_seq:,}, and no head "
            f"of that moment is kept; `edge-cl history` lists those that are"
        )
    before = _n_labels(store, store.counts)
    after = _n_labels(store, store.timeline.at(to))
    store.go_back(to, why="asked", source=source, at_s=at_s)
    return Outcome(
        seq=journal.last_seq,
        n_labels=before - after,
        message=f"back to entry {to:,}: {after:,} labels of the history count, before it were {before:,}",
    )


def _before(store: StateStore, time_s: float) -> int:
    """The entry just before the first that counts and was written at that time or later."""
    counts = store.counts
    any_before = False
    for seq, _, _, _, _, when in store.journal.about():
        if not holds(counts, seq):
            continue
        if when < time_s:
            any_before = True
        elif any_before:
            return seq - 1
        else:
            raise StateError(
                f"nothing was learned before {_when(time_s)}; what counts begins at {_when(when)}. "
                "`edge-cl rollback --to 0` goes back to the bundle alone"
            )
    raise StateError(f"nothing to roll back: nothing was learned since {_when(time_s)}")


def _reachable(store: StateStore, to: int) -> bool:
    first = store.journal.first_seq
    return first == 1 or any(
        first - 1 <= seq <= to and store.timeline.leads_to(seq, to) for seq in store.snapshots.paths()
    )


def _n_labels(store: StateStore, ranges: Ranges) -> int:
    return sum(kind == "label" and holds(ranges, seq) for seq, kind, *_ in store.journal.about())


def _rename(store: StateStore, asked: Rename, source: str, at_s: float, class_names: list[str]) -> Outcome:
    known = ", ".join(class_names)
    if asked.old not in class_names:
        raise NothingMatches(f"there is no class {asked.old!r}; known: {known}")
    if not asked.new.strip() or not asked.new.isprintable() or len(asked.new) > MAX_NAME_CHARS:
        raise StateError(
            f"{asked.new[:MAX_NAME_CHARS]!r} cannot be the name of a class; give at most "
            f"{MAX_NAME_CHARS} printable characters"
        )
    if asked.old == asked.new:
        raise StateError(f"class {asked.old!r} has that name already")
    if asked.merge and asked.new not in class_names:
        raise StateError(f"there is no class {asked.new!r} to merge into; known: {known}")
    if not asked.merge and asked.new in class_names:
        raise StateError(f"there is a class {asked.new!r} already; `edge-cl merge-classes` makes one of both")
    journal = store.journal
    entry = Entry(
        seq=journal.last_seq + 1, kind="rename", label=asked.old, detail=asked.new, source=source, at_s=at_s
    )
    journal.append(entry)
    journal.commit()
    verb = "is now part of" if asked.merge else "is now called"
    return Outcome(seq=entry.seq, n_labels=0, message=f"class {asked.old!r} {verb} {asked.new!r}")


def _review(store: StateStore, asked: Review, source: str, at_s: float) -> Outcome:
    waiting = {entry.seq: entry for entry, _ in _waiting(store)}
    asked = msgspec.structs.replace(asked, seqs=sorted(set(asked.seqs)))  # each is learned once
    unknown = [seq for seq in asked.seqs if seq not in waiting]
    if unknown or not asked.seqs:
        raise StateError(
            f"no label {', '.join(map(str, unknown)) or '…'} waits for a review; `edge-cl review` lists them"
        )
    journal = store.journal
    detail = msgspec.json.encode(asked).decode()
    journal.append(Entry(seq=journal.last_seq + 1, kind="review", source=source, at_s=at_s, detail=detail))
    if asked.accept:
        end_sleep(store, "held labels were accepted", at_s=at_s)
    for seq in asked.seqs if asked.accept else ():
        held = waiting[seq]
        kind = "not" if held.kind == "not" or held.detail.startswith("not: ") else "label"
        journal.append(
            msgspec.structs.replace(
                held,
                seq=journal.last_seq + 1,
                kind=kind,
                trust=1.0,
                at_s=at_s,
                detail=f"accepted by {source}",
            )
        )
    journal.commit()
    verb = "learned" if asked.accept else "rejected"
    n = len(asked.seqs)
    return Outcome(seq=journal.last_seq, n_labels=n, message=f"{verb} {n:,} labels that waited for a review")


def _when(time_s: float) -> str:
    try:
        return datetime.fromtimestamp(time_s).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):  # no calendar knows it, but it can be asked for
        return f"{time_s:g} s after 1970"
