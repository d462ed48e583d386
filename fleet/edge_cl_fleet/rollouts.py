"""Bundles go out in waves: a wave is told to install when all went well in the one before.

Every worker does this, each on its own: whoever moves a rollout on does so, and gives the orders that follow
from it, in one transaction that begins with a claim.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Engine, and_, func, insert, select, update

from edge_cl.commands import MAX_VALID_S, Install, Release
from edge_cl.errors import ConfigError, FleetError
from edge_cl_fleet.connection import Publish
from edge_cl_fleet.database import guarded, reading
from edge_cl_fleet.orders import OPEN, new_order
from edge_cl_fleet.progress import ACTIVE, Progress, progress_of
from edge_cl_fleet.tables import bundles, commands, devices, rollout_devices, rollouts
from edge_cl_fleet.waves import UNDER_WAY, check_steps, deal, reason_to_abort

PATIENCE_S = 24 * 3600.0
_mine = rollout_devices.c
_same_device = and_(_mine.site == devices.c.site, _mine.device == devices.c.device)

log = logging.getLogger(__name__)


class Terms(NamedTuple):
    """When a rollout is aborted, and what then.

    Attributes
    ----------
    abort_share
        Share of a wave's settled devices that failed or went back.
    abort_after
        So many of a wave must be settled before it is judged; 0 for all of it, or 20.
    patience_s
        A device that said nothing of it for so long is no longer waited for.
    undo
        Whether devices that took it are asked to go back.
    """

    abort_share: float = 0.1
    abort_after: int = 0
    patience_s: float = PATIENCE_S
    undo: bool = False


class Rollouts:
    """The rollouts of a store; a duty of every worker that signs orders."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reading = reading(engine)

    # ------------------------------------------------------------------ what a person may do

    def start(
        self,
        install: Install,
        group_name: str,
        steps: Sequence[float],
        terms: Terms = Terms(),  # noqa: B008  immutable
        *,
        rollout_id: str = "",
        now_s: float | None = None,
    ) -> str:
        """Begin to send a bundle of the store to a group; returns the rollout's id.

        Who belongs to which wave is settled now: devices that join the group later are not included.

        Raises
        ------
        ConfigError
            For steps or terms that mean nothing.
        FleetError
            When the group has no devices, or some are in another rollout.
        """
        check_steps(steps)
        _check(terms)
        release = msgspec.json.decode(install.release, type=Release)
        now_s = time.time() if now_s is None else now_s
        rollout_id = rollout_id or uuid.uuid4().hex
        row = {"id": rollout_id, "sha256": release.sha256, "group_name": group_name, "step": 0}
        row |= {"steps": msgspec.json.encode(steps).decode(), "state": "running", "started_s": now_s}
        with guarded(self._engine), self._engine.begin() as connection:
            running = _group(connection, group_name)
            new = [name for name, bundle_id in running.items() if bundle_id != release.bundle_id]
            waves = deal(rollout_id, new, steps)
            connection.execute(insert(rollouts), row | terms._asdict())
            rows = [_member(rollout_id, name, number) for number, wave in enumerate(waves) for name in wave]
            rows += [_member(rollout_id, name, -1) for name in set(running) - set(new)]
            connection.execute(insert(rollout_devices), rows)
            self._send(connection, rollout_id, 0, install, now_s)
            if not waves:
                self._end(connection, rollout_id, "done", "every device ran it already", now_s)
        return rollout_id

    def pause(self, rollout_id: str) -> None:
        """Begin no further wave; the one under way goes on."""
        self._change(rollout_id, "running", "paused")

    def resume(self, rollout_id: str) -> None:
        """Go on after a pause."""
        self._change(rollout_id, "paused", "running")

    def abort(self, rollout_id: str, *, undo: bool | None = None, now_s: float | None = None) -> str:
        """Send nothing more; as when too many failed. Returns what was done, for a person."""
        now_s = time.time() if now_s is None else now_s
        said = self._abort(rollout_id, "a person ended it", undo, now_s)
        if not said:
            raise FleetError(f"rollout {rollout_id[:8]} has ended already; see `edge-cl fleet rollouts`")
        return said

    # ------------------------------------------------------------------ the duty

    def tick(self, now_s: float, publish: Publish) -> None:
        """As `edge_cl_fleet.worker.Duty` has it; the orders are sent by `Orders`."""
        self.move(now_s)

    def move(self, now_s: float) -> None:
        """Move every rollout on, as far as what its devices said allows."""
        with guarded(self._engine), self._reading.connect() as connection:
            query = select(rollouts.c.id).where(rollouts.c.state.in_(ACTIVE))
            active = connection.execute(query).scalars().all()
        for rollout_id in active:
            self._note_refusals(rollout_id, now_s)
            with guarded(self._engine), self._reading.connect() as connection:
                progress = progress_of(connection, rollout_id, now_s)
            self._judge(progress, now_s)

    def _judge(self, progress: Progress, now_s: float) -> None:
        why = reason_to_abort(
            progress.begun,
            progress.compared,
            abort_share=progress.abort_share,
            abort_after=progress.abort_after,
        )
        if why:
            self._abort(progress.id, why, None, now_s)
        elif progress.state == "running" and all(wave.is_settled for wave in progress.begun):
            self._next(progress, now_s)

    def _next(self, progress: Progress, now_s: float) -> None:
        here = and_(
            rollouts.c.id == progress.id, rollouts.c.state == "running", rollouts.c.step == progress.step
        )
        is_last = progress.step + 1 >= len(progress.waves)
        with guarded(self._engine), self._engine.begin() as connection:
            if is_last:
                values: dict[str, Any] = {"state": "done", "ended_s": now_s}
            else:
                values = {"step": progress.step + 1}
            if connection.execute(update(rollouts).where(here).values(values)).rowcount != 1:
                return  # another worker did it
            if not is_last:
                known = bundles.c.sha256 == progress.sha256
                install = Install(**connection.execute(_INSTALLS.where(known)).one()._mapping)
                self._send(connection, progress.id, progress.step + 1, install, now_s)
        log.info("rollout %s: %s", progress.id[:8], "done" if is_last else f"wave {progress.step + 2} begins")

    def _send(
        self, connection: Connection, rollout_id: str, wave: int, install: Install, now_s: float
    ) -> None:
        """Orders for the devices of a wave."""
        which = and_(_mine.rollout_id == rollout_id, _mine.wave == wave)
        running = (
            select(_mine.site, _mine.device, devices.c.bundle_id).join(devices, _same_device).where(which)
        )
        for row in connection.execute(running).all():
            order = new_order(row.site, row.device, install, now_s, MAX_VALID_S, rollout_id)
            connection.execute(insert(commands), order)
            it = and_(which, _mine.site == row.site, _mine.device == row.device)
            sent = {"state": "sent", "command_id": order["id"], "at_s": now_s, "before": row.bundle_id}
            connection.execute(update(rollout_devices).where(it).values(sent))

    def _note_refusals(self, rollout_id: str, now_s: float) -> None:
        """Devices whose answer to the order itself was no send no report of an installation."""
        query = (
            select(_mine.command_id, commands.c.message)
            .join(commands, commands.c.id == _mine.command_id)
            .where(_mine.rollout_id == rollout_id, _mine.state == "sent")
            .where(commands.c.state.in_(("failed", "refused")))
        )
        with guarded(self._engine), self._reading.connect() as connection:
            refused = connection.execute(query).all()
        for command_id, message in refused:
            mine = and_(_mine.rollout_id == rollout_id, _mine.command_id == command_id, _mine.state == "sent")
            values = {"state": "failed", "reason": message, "at_s": now_s}
            with guarded(self._engine), self._engine.begin() as connection:
                connection.execute(update(rollout_devices).where(mine).values(values))

    # ------------------------------------------------------------------ ends

    def _change(self, rollout_id: str, was: str, becomes: str) -> None:
        mine = and_(rollouts.c.id == rollout_id, rollouts.c.state == was)
        with guarded(self._engine), self._engine.begin() as connection:
            if connection.execute(update(rollouts).where(mine).values(state=becomes)).rowcount != 1:
                raise FleetError(f"rollout {rollout_id[:8]} is not {was}; see `edge-cl fleet rollouts`")

    def _end(self, connection: Connection, rollout_id: str, state: str, reason: str, now_s: float) -> bool:
        mine = and_(rollouts.c.id == rollout_id, rollouts.c.state.in_(ACTIVE))
        values = {"state": state, "reason": reason, "ended_s": now_s}
        return connection.execute(update(rollouts).where(mine).values(values)).rowcount == 1

    def _abort(self, rollout_id: str, why: str, undo: bool | None, now_s: float) -> str:
        """What was done, for a person; "" when it had ended already."""
        with guarded(self._engine), self._engine.begin() as connection:
            if not self._end(connection, rollout_id, "aborted", why, now_s):
                return ""
            if undo is None:
                undo = connection.execute(select(rollouts.c.undo).where(rollouts.c.id == rollout_id)).scalar()
            said = f"{why}; {self._send_back(connection, rollout_id, bool(undo), now_s)}"
            connection.execute(update(rollouts).where(rollouts.c.id == rollout_id).values(reason=said))
        log.warning("rollout %s is aborted: %s", rollout_id[:8], said)
        return said

    def _send_back(self, connection: Connection, rollout_id: str, undo: bool, now_s: float) -> str:
        """Call back orders that nobody got; ask others to use the bundle before, if it is in the store."""
        # First of all: from here on no worker sends one of them.
        given = and_(commands.c.rollout_id == rollout_id, commands.c.state.in_(OPEN))
        gone = {"state": "expired", "message": "the rollout was aborted"}
        connection.execute(update(commands).where(given).values(gone))
        unsent = and_(commands.c.rollout_id == rollout_id, commands.c.n_sent == 0)
        untold = select(commands.c.id).where(unsent)
        mine = and_(_mine.rollout_id == rollout_id, _mine.command_id.in_(untold), _mine.state == "sent")
        connection.execute(update(rollout_devices).where(mine).values(state="waiting"))
        states = (*UNDER_WAY, "committed") if undo else UNDER_WAY
        told = and_(_mine.rollout_id == rollout_id, _mine.state.in_(states))
        n_back, lacking = 0, []
        for row in connection.execute(select(rollout_devices).where(told)).all():
            before = connection.execute(
                _INSTALLS.where(bundles.c.bundle_id == row.before).order_by(bundles.c.added_s.desc())
            ).first()
            if before is None:
                lacking.append(row.before[:12] or "what they ran")
                continue
            n_back += 1
            order = new_order(row.site, row.device, Install(**before._mapping), now_s, MAX_VALID_S)
            connection.execute(insert(commands), order)
        said = f"{n_back} devices are asked to use the bundle before"
        if lacking:
            said += (
                f", {len(lacking)} decide by themselves: {', '.join(sorted(set(lacking)))} is not kept here"
            )
        return said


_INSTALLS = select(bundles.c.release, bundles.c.signed_by, bundles.c.signature)


def _check(terms: Terms) -> None:
    if not 0 < terms.abort_share <= 1:
        raise ConfigError(f"the share to abort at is {terms.abort_share:g}; write above 0%, to 100%")
    if terms.abort_after < 0:
        raise ConfigError(f"{terms.abort_after} devices cannot be settled; write 0 or more")
    if not 0 < terms.patience_s <= MAX_VALID_S:
        raise ConfigError(f"the patience is {terms.patience_s:g} s; write above 0, to 7 days")


def _group(connection: Connection, group_name: str) -> dict[str, str]:
    """Which bundle each device of a group runs; none may be in a rollout."""
    query = select(devices.c.site, devices.c.device, devices.c.bundle_id).where(
        devices.c.group_name == group_name
    )
    found = {f"{site}/{device}": bundle_id for site, device, bundle_id in connection.execute(query)}
    if not found or not group_name:
        raise FleetError(
            f"group {group_name!r} has no devices; `edge-cl fleet group {group_name or 'NAME'} DEVICE` "
            "puts some in"
        )
    busy = (
        select(func.count(), func.min(rollouts.c.id))
        .select_from(rollout_devices)
        .join(rollouts, rollouts.c.id == _mine.rollout_id)
        .join(devices, _same_device)
        .where(devices.c.group_name == group_name, rollouts.c.state.in_(ACTIVE), _mine.wave >= 0)
    )
    n_busy, other = connection.execute(busy).one()
    if n_busy:
        raise FleetError(
            f"{n_busy} devices of group {group_name!r} are in rollout {other[:8]}, which has not ended; "
            f"wait, or end it with `edge-cl fleet abort {other[:8]}`"
        )
    return found


def _member(rollout_id: str, name: str, wave: int) -> dict[str, Any]:
    site, _, device = name.partition("/")
    state = "waiting" if wave >= 0 else "already"
    whose = {"rollout_id": rollout_id, "site": site, "device": device}
    return whose | {"wave": wave, "state": state}
