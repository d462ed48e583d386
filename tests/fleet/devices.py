"""Devices as a server sees them: messages of theirs, made by hand, and a client that speaks as one."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
import paho.mqtt.client as paho
from edge_cl_fleet.arrivals import Arrival
from paho.mqtt.enums import CallbackAPIVersion

from edge_cl.records import Receipt, Status
from edge_cl.sync import messages
from tests.mosquitto import wait_until

NOW_S = 1_800_000_000.0


def receipt(n: int = 0) -> Receipt:
    """An ordinary receipt."""
    return Receipt(reading_id=f"r{n}", label="walk", status="learned", source="mqtt/anna", seq=n)


def status(**changes: Any) -> Status:
    """A device that is doing well."""
    calm = Status(
        bundle_name="wrist",
        bundle_id="b" * 64,
        head="slda",
        class_names=["sit", "walk"],
        n_readings=100,
        n_labels=10,
        journal_seq=10,
        n_pending=0,
        n_bad_readings=0,
        accuracy_now=0.9,
        drift_points=4.25,
        held={},
        held_bytes=0,
        budget_bytes=1_000,
        n_sleeps=0,
        last_sleep=None,
        recovered="",
        alarm="",
    )
    return msgspec.structs.replace(calm, **changes)


class Board:
    """A board: says things, each with the next number."""

    def __init__(self, name: str = "dev1", *, boot_id: str = "boot1", session: int = 1) -> None:
        self.name, self.site, self.boot_id, self.session = name, "lab", boot_id, session
        self.epoch, self.seq = f"epoch-{name}", 0

    @property
    def root(self) -> str:
        """What its topics begin with."""
        return f"edgecl/1/{self.site}/{self.name}"

    def says(self, kind: str, record: Any = None, *, at_s: float = NOW_S, **fields: Any) -> Arrival:
        """A durable message as it arrives."""
        self.seq += 1
        of_it: dict[str, Any] = {
            "id": uuid.uuid4().hex,
            "epoch": self.epoch,
            "seq": self.seq,
            "boot_id": self.boot_id,
            "session": self.session,
            "up_s": 100.0,
            "at_s": at_s,
            "age_s": 0.5,
        }
        body = record if isinstance(record, bytes) else messages.encode(record or receipt(self.seq))
        payload = messages.wrap(body, **(of_it | fields))
        return Arrival(f"{self.root}/{kind}", payload, at_s)

    def presence(self, online: bool = True, *, at_s: float = NOW_S, retained: bool = False) -> Arrival:
        """Its birth, or its will."""
        word = messages.Presence(online=online, boot_id=self.boot_id, session=self.session)
        return Arrival(f"{self.root}/status", messages.encode(word), at_s, retained)

    def state(
        self, *, at_s: float = NOW_S, up_s: float = 100.0, retained: bool = False, **changes: Any
    ) -> Arrival:
        """How it is doing."""
        word = messages.State(
            boot_id=self.boot_id,
            session=self.session,
            up_s=up_s,
            status=status(**changes),
            settings={"min_confidence": 0.5},
        )
        return Arrival(f"{self.root}/state", messages.encode(word), at_s, retained)


class Radio:
    """A bare MQTT client: sends arrivals as they are, keeps what it hears."""

    def __init__(self, port: int, *topics: str) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self.client.on_message = lambda _c, _u, message: self.heard.append((message.topic, message.payload))
        self.client.on_subscribe = lambda *_: setattr(self, "listens", True)
        self.listens = not topics
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        if topics:
            self.client.subscribe([(topic, 1) for topic in topics])
        wait_until(lambda: self.client.is_connected() and self.listens, "the client listens")

    def sends(self, *arrivals: Arrival, qos: int = 1) -> None:
        """Publish each; waits until the broker has them."""
        sent = [self.client.publish(one.topic, one.payload, qos, one.retained) for one in arrivals]
        for info in sent:
            info.wait_for_publish(10.0)

    def acked(self) -> set[str]:
        """Ids that a server says are stored."""
        acks = [payload for topic, payload in self.heard if topic.endswith("/cmd/ack")]
        return {one for ack in acks for one in messages.decode("ack", ack).ids}

    def close(self) -> None:
        """Leave."""
        self.client.disconnect()
        self.client.loop_stop()
