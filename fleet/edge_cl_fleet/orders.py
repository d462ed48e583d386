"""Orders to devices: kept in the store, signed for a device's present life, sent until a result comes.

Several workers may do this at once: whoever claims a row sends it.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from typing import Any

import msgspec
from sqlalchemy import Engine, Row, and_, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from edge_cl.commands import MAX_VALID_S, Adjust, Command, Do, Teach, ask_of
from edge_cl.errors import FleetError
from edge_cl.sync import signing
from edge_cl.sync.messages import MAX_INBOUND_BYTES, Signed, check_label, encode, topic_root
from edge_cl_fleet.connection import Publish
from edge_cl_fleet.database import guarded, reading
from edge_cl_fleet.tables import commands, devices

OPEN = ("waiting", "sent", "interrupted")
"""States of a command that may still be carried out."""
RESEND_S = 60.0
MAX_PER_TICK = 500
ADJUST_VALID_S = 3600.0
ADJUST_AGAIN_S = 60.0
REFUSED_AGAIN_S = 3600.0
ENVELOPE_BYTES = 1024
"""More than key, signature, device, boot id and quotes take around what is asked."""

_device_of_command = and_(commands.c.site == devices.c.site, commands.c.device == devices.c.device)


class Orders:
    """What devices are asked; a duty of a worker.

    Parameters
    ----------
    key_name, private_hex
        The key that signs, and what devices call it in ``[commands.keys]``.
    """

    def __init__(self, engine: Engine, key_name: str = "", private_hex: str = "") -> None:
        self._engine = engine
        self._reading = reading(engine)
        self._key_name = key_name
        self._private_hex = private_hex

    def ask(
        self,
        site: str,
        device: str,
        do: Do,
        *,
        valid_s: float = 86400.0,
        rollout_id: str | None = None,
        now_s: float | None = None,
    ) -> str:
        """Keep a command for a device until a worker sends it; returns its id.

        Raises
        ------
        FleetError
            When it is too large for a device, or valid for too long or not at all.
        """
        topic_root(site, device)
        if not 0 < valid_s <= MAX_VALID_S:
            raise FleetError(f"a command is valid for {valid_s:g} s; allowed: above 0, to {MAX_VALID_S:,.0f}")
        now_s = time.time() if now_s is None else now_s
        row = new_order(site, device, do, now_s, valid_s, rollout_id)
        with guarded(self._engine), self._engine.begin() as connection:
            connection.execute(insert(commands), row)
        return str(row["id"])

    def desire(self, site: str, device: str, adjust: Adjust) -> dict[str, Any]:
        """Settings that a device should have, besides those desired before; returns them all.

        `send` asks for them whenever the device reports others.
        """
        topic_root(site, device)
        whose = and_(devices.c.site == site, devices.c.device == device)
        # The lock keeps two who desire at once from losing the other's.
        locked = select(devices.c.desired).where(whose).with_for_update()
        with guarded(self._engine), self._engine.begin() as connection:
            found = connection.execute(locked).scalar_one_or_none()
            if found is None:
                raise FleetError(f"no device {site}/{device} is known; `edge-cl fleet devices` lists them")
            wanted: dict[str, Any] = msgspec.json.decode(found) | _named(adjust)
            desired = msgspec.json.encode(wanted).decode()
            connection.execute(update(devices).where(whose).values(desired=desired))
            superseded = and_(
                commands.c.site == site,
                commands.c.device == device,
                commands.c.ask == "set",
                commands.c.state.in_(OPEN),
            )
            gone = {"state": "expired", "message": "other settings were desired since"}
            connection.execute(update(commands).where(superseded).values(gone))
        return wanted

    def tick(self, now_s: float, publish: Publish) -> None:
        """As `edge_cl_fleet.worker.Duty` has it."""
        self.send(now_s, publish)

    def send(self, now_s: float, publish: Publish) -> int:
        """Send what is due; returns how many were sent."""
        self._expire(now_s)
        self._adjust(now_s)
        n_sent = 0
        for row in self._due(now_s):
            # Claimed before it is sent: should this worker die in between, it goes out again a minute later.
            if self._claim(row, now_s):
                topic = f"{topic_root(row.site, row.device)}/cmd/do"
                left_s = max(1, int(row.expires_s - now_s))
                n_sent += publish(topic, self._sign(row, now_s), qos=1, expires_s=left_s)
        return n_sent

    def _expire(self, now_s: float) -> None:
        ended = and_(commands.c.state.in_(OPEN), commands.c.expires_s <= now_s)
        cut_off = and_(commands.c.state == "interrupted", commands.c.expires_s > now_s)
        with self._reading.connect() as connection:
            anything = connection.execute(select(commands.c.id).where(or_(ended, cut_off)).limit(1)).first()
        if anything is None:
            return
        expired = {"state": "expired", "message": "no result came in time"}
        with self._engine.begin() as connection:
            connection.execute(update(commands).where(ended).values(expired))
            connection.execute(update(commands).where(cut_off).values(state="waiting", boot_id=""))

    def _adjust(self, now_s: float) -> None:
        """Ask for desired settings that are not the reported ones."""
        query = select(devices.c.site, devices.c.device, devices.c.desired, devices.c.settings).where(
            devices.c.online, devices.c.desired != "{}", devices.c.up_s.is_not(None)
        )
        with self._reading.connect() as connection:
            rows = connection.execute(query).all()
            found = [(row, lacking(_json(row.desired), _json(row.settings))) for row in rows]
            asked = [
                _row("", row.site, row.device, Adjust(**lacks), now_s, ADJUST_VALID_S)
                for row, lacks in found
                if lacks
            ]
            due = [row for row in asked if connection.execute(_asked_lately(row, now_s)).first() is None]
        for row in due:
            # The same id whichever worker comes first.
            minute = int(now_s // ADJUST_AGAIN_S)
            name = f"{row['site']}/{row['device']} {row['do']} {minute}"
            row["id"] = hashlib.sha256(name.encode()).hexdigest()[:32]
            with self._engine.begin() as connection:
                build = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
                connection.execute(build(commands).on_conflict_do_nothing(), row)

    def _due(self, now_s: float) -> list[Row[Any]]:
        """Commands that their devices, which are there, have not had in this life or lately."""
        unsent = or_(
            commands.c.boot_id != devices.c.boot_id,
            commands.c.sent_s.is_(None),
            commands.c.sent_s < now_s - RESEND_S,
            commands.c.sent_s > now_s,  # this clock was ahead and has been set back
        )
        query = (
            select(commands, devices.c.boot_id.label("life"), devices.c.up_s, devices.c.up_at_s)
            .join(devices, _device_of_command)
            .where(commands.c.state.in_(("waiting", "sent")), commands.c.expires_s > now_s)
            .where(devices.c.online, devices.c.up_s.is_not(None), devices.c.up_at_s.is_not(None), unsent)
            .order_by(commands.c.created_s)
            .limit(MAX_PER_TICK)
        )
        with self._reading.connect() as connection:
            return list(connection.execute(query))

    def _claim(self, row: Row[Any], now_s: float) -> bool:
        mine = and_(
            commands.c.id == row.id,
            commands.c.n_sent == row.n_sent,
            commands.c.state.in_(("waiting", "sent")),
        )
        values = {"state": "sent", "boot_id": row.life, "sent_s": now_s, "n_sent": row.n_sent + 1}
        with self._engine.begin() as connection:
            return connection.execute(update(commands).where(mine).values(values)).rowcount == 1

    def _sign(self, row: Row[Any], now_s: float) -> bytes:
        # What the device said of its uptime was older than its arrival here: this is at most the true one.
        up_s = row.up_s + max(0.0, now_s - row.up_at_s)
        command = Command(
            id=row.id,
            to=f"{row.site}/{row.device}",
            boot_id=row.life,
            until_s=round(up_s + min(row.expires_s - now_s, MAX_VALID_S - RESEND_S), 3),
            do=msgspec.json.decode(row.do, type=Do),
        )
        text = encode(command).decode()
        signature = signing.sign(self._private_hex, signing.COMMAND, text)
        return encode(Signed(by=self._key_name, signature=signature, command=text))


def new_order(
    site: str, device: str, do: Do, now_s: float, valid_s: float, rollout_id: str | None = None
) -> dict[str, Any]:
    """A row of ``commands``, for who inserts many in a transaction of their own; as `Orders.ask`."""
    return _row(uuid.uuid4().hex, site, device, do, now_s, valid_s) | {"rollout_id": rollout_id}


def _row(command_id: str, site: str, device: str, do: Do, now_s: float, valid_s: float) -> dict[str, Any]:
    if isinstance(do, Teach):
        check_label(do.label, do.reading_id)
    text = encode(do).decode()
    quoted = len(encode(Signed(by="", signature="", command=text)))
    if quoted + ENVELOPE_BYTES > MAX_INBOUND_BYTES:
        raise FleetError(
            f"the command has {quoted:,} bytes, a device reads {MAX_INBOUND_BYTES - ENVELOPE_BYTES:,}"
        )
    return {
        "id": command_id,
        "site": site,
        "device": device,
        "ask": ask_of(do),
        "do": text,
        "state": "waiting",
        "created_s": now_s,
        "expires_s": now_s + valid_s,
    }


def _named(adjust: Adjust) -> dict[str, Any]:
    """The settings that are named in it."""
    return {name: value for name, value in msgspec.structs.asdict(adjust).items() if value is not None}


def lacking(desired: dict[str, Any], reported: dict[str, Any]) -> dict[str, Any]:
    """The desired settings that are not the reported ones."""
    return {name: value for name, value in desired.items() if reported.get(name) != value}


def _json(text: str) -> dict[str, Any]:
    found: Any = msgspec.json.decode(text)
    return found if isinstance(found, dict) else {}


def _asked_lately(row: dict[str, Any], now_s: float) -> Any:
    """The same settings asked of the same device: under way, just done, or refused not long ago."""
    c = commands.c
    state_and_age = or_(
        c.state.in_(OPEN),
        and_(c.state.in_(("done", "expired")), c.created_s.between(now_s - ADJUST_AGAIN_S, now_s)),
        and_(c.state.in_(("failed", "refused")), c.created_s.between(now_s - REFUSED_AGAIN_S, now_s)),
    )
    same = and_(c.site == row["site"], c.device == row["device"], c.ask == "set", c.do == row["do"])
    return select(c.id).where(same, state_and_age).limit(1)
