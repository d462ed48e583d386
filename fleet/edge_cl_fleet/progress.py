"""How rollouts stand, read from the store: for the duty that moves them on, for the page, for a person."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, and_, func, select

from edge_cl.errors import FleetError
from edge_cl_fleet.database import guarded
from edge_cl_fleet.store import FleetStore
from edge_cl_fleet.tables import bundles, devices, rollout_devices, rollouts
from edge_cl_fleet.waves import ENOUGH_TRUSTED, UNDER_WAY, Compared, Wave

ACTIVE = ("running", "paused")
_mine = rollout_devices.c


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout; the settings that it was started with, and how far it is.

    `waves` are all of them; those up to `step` have begun. `n_already` devices ran the bundle before.
    """

    id: str
    sha256: str
    name: str
    bundle_id: str
    group_name: str
    steps: list[float]
    step: int
    state: str
    abort_share: float
    abort_after: int
    patience_s: float
    undo: bool
    started_s: float
    ended_s: float | None
    reason: str
    waves: list[Wave]
    n_already: int
    compared: Compared

    @property
    def begun(self) -> list[Wave]:
        """The waves that began."""
        return self.waves[: self.step + 1]

    @property
    def states(self) -> dict[str, int]:
        """Devices by state, over all waves."""
        total: defaultdict[str, int] = defaultdict(int)
        for wave in self.waves:
            for state, n in wave.states.items():
                total[state] += n
        return dict(total)


class Member(NamedTuple):
    """A device of a rollout; `runs` is the bundle_id that it said last."""

    name: str
    wave: int
    state: str
    is_silent: bool
    reason: str
    n_trusted: int
    accuracy_old: float | None
    accuracy_new: float | None
    before: str
    runs: str


def progress_of(connection: Connection, rollout_id: str, now_s: float) -> Progress:
    """One rollout."""
    query = select(rollouts, bundles.c.name, bundles.c.bundle_id).join(
        bundles, bundles.c.sha256 == rollouts.c.sha256
    )
    row: dict[str, Any] = dict(connection.execute(query.where(rollouts.c.id == rollout_id)).one()._mapping)
    waves, n_already = _waves(connection, rollout_id, now_s - row["patience_s"])
    row["steps"] = msgspec.json.decode(row["steps"])
    return Progress(**row, waves=waves, n_already=n_already, compared=_compared(connection, rollout_id))


def list_progress(store: FleetStore, now_s: float, *, limit: int = 10) -> list[Progress]:
    """The newest rollouts, newest first."""
    newest = select(rollouts.c.id).order_by(rollouts.c.started_s.desc(), rollouts.c.id).limit(limit)
    with guarded(store.engine), store.reading.connect() as connection:
        ids = connection.execute(newest).scalars().all()
        return [progress_of(connection, rollout_id, now_s) for rollout_id in ids]


def find_rollout(store: FleetStore, begins: str) -> str:
    """The id of the rollout whose id begins so; raises FleetError when there is none, or several."""
    like = rollouts.c.id.startswith(begins, autoescape=True)
    with guarded(store.engine), store.reading.connect() as connection:
        found: list[str] = list(connection.execute(select(rollouts.c.id).where(like).limit(2)).scalars())
    if len(found) != 1 or not begins:
        many = "several rollouts begin" if found else "no rollout begins"
        raise FleetError(f"{many} with {begins!r}; `edge-cl fleet rollouts` lists them")
    return found[0]


def members(store: FleetStore, rollout: Progress, now_s: float) -> list[Member]:
    """The devices of a rollout, wave by wave."""
    whose = and_(devices.c.site == _mine.site, devices.c.device == _mine.device)
    query = select(rollout_devices, devices.c.bundle_id.label("runs")).outerjoin(devices, whose)
    query = query.where(_mine.rollout_id == rollout.id).order_by(_mine.wave, _mine.site, _mine.device)
    with guarded(store.engine), store.reading.connect() as connection:
        rows = connection.execute(query).all()
    since_s = now_s - rollout.patience_s
    return [
        Member(
            name=f"{row.site}/{row.device}",
            wave=row.wave,
            state=row.state,
            is_silent=row.state in UNDER_WAY and row.at_s <= since_s,
            reason=row.reason,
            n_trusted=row.n_trusted,
            accuracy_old=row.accuracy_old,
            accuracy_new=row.accuracy_new,
            before=row.before,
            runs=row.runs or "",
        )
        for row in rows
    ]


def _waves(connection: Connection, rollout_id: str, since_s: float) -> tuple[list[Wave], int]:
    silent = func.count().filter(and_(_mine.state.in_(UNDER_WAY), _mine.at_s <= since_s))
    query = select(_mine.wave, _mine.state, func.count(), silent).where(_mine.rollout_id == rollout_id)
    states: defaultdict[int, dict[str, int]] = defaultdict(dict)
    n_silent: defaultdict[int, int] = defaultdict(int)
    for wave, state, n, n_quiet in connection.execute(query.group_by(_mine.wave, _mine.state)):
        states[wave][state] = n
        n_silent[wave] += n_quiet
    n_already = states.pop(-1, {}).get("already", 0)
    return [Wave(states=states[wave], n_silent=n_silent[wave]) for wave in sorted(states)], n_already


def _compared(connection: Connection, rollout_id: str) -> Compared:
    query = select(
        func.count(), func.sum(_mine.n_trusted), func.avg(_mine.accuracy_old), func.avg(_mine.accuracy_new)
    ).where(
        _mine.rollout_id == rollout_id,
        _mine.n_trusted >= ENOUGH_TRUSTED,
        _mine.accuracy_old.is_not(None),
        _mine.accuracy_new.is_not(None),
    )
    n_devices, n_labels, old, new = connection.execute(query).one()
    return Compared(
        n_devices=n_devices,
        n_labels=int(n_labels or 0),
        accuracy_old=float(old or 0.0),
        accuracy_new=float(new or 0.0),
    )
