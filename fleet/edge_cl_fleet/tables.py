"""The fleet store's tables, as SQLAlchemy Core: the same on SQLite and PostgreSQL.

Times are Unix seconds by the server's clock unless said otherwise. Records are kept as the JSON text that
came.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

_number = BigInteger().with_variant(Integer, "sqlite")  # only INTEGER counts up by itself there


def _whose() -> list[Column[str]]:
    return [Column("site", String(63), primary_key=True), Column("device", String(63), primary_key=True)]


schema_version = Table("schema_version", metadata, Column("version", Integer, primary_key=True))

messages = Table(
    "messages",
    metadata,
    Column("n", _number, primary_key=True, autoincrement=True, comment="order of arrival, for paging"),
    Column("id", String(32), nullable=False, unique=True, comment="the device's; stored once"),
    Column("site", String(63), nullable=False),
    Column("device", String(63), nullable=False),
    Column("epoch", String(32), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("boot_id", String(32), nullable=False),
    Column("at_s", Float, nullable=False, comment="made, by the device's clock, which may be wrong"),
    Column("happened_s", Float, nullable=False, comment="made, by this clock where its age is known"),
    Column("received_s", Float, nullable=False),
    Column("body", Text, nullable=False, comment="the record, JSON"),
    Index("messages_of_device", "site", "device", "epoch", "seq"),
)

devices = Table(
    "devices",
    metadata,
    *_whose(),
    Column("group_name", String(63), nullable=False, default="", comment="set by a person"),
    Column("online", Boolean, nullable=False, default=False),
    Column("boot_id", String(32), nullable=False, default=""),
    Column("session", BigInteger, nullable=False, default=0),
    Column("up_s", Float, comment="uptime when it last spoke live; None while only retained word is known"),
    Column("up_at_s", Float, comment="when that was"),
    Column("first_seen_s", Float, nullable=False),
    Column("last_seen_s", Float, nullable=False),
    Column("bundle_id", String(64), nullable=False, default=""),
    Column("head", String(32), nullable=False, default=""),
    Column("accuracy_now", Float),
    Column("n_labels", BigInteger, nullable=False, default=0),
    Column("alarm", Text, nullable=False, default=""),
    Column("status", Text, nullable=False, default="", comment="the newest Status, JSON"),
    Column("settings", Text, nullable=False, default="{}", comment="as reported, JSON"),
    Column("desired", Text, nullable=False, default="{}", comment="settings that it should have, JSON"),
    Column("cloned_s", Float, comment="when two boards last spoke under this name"),
)

gone = Table(
    "gone",
    metadata,
    *_whose(),
    Column("epoch", String(32), primary_key=True),
    Column("first", BigInteger, primary_key=True),
    Column("last", BigInteger, nullable=False),
)

commands = Table(
    "commands",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("site", String(63), nullable=False),
    Column("device", String(63), nullable=False),
    Column("ask", String(16), nullable=False),
    Column("do", Text, nullable=False, comment="what is asked, JSON"),
    Column("state", String(16), nullable=False, comment="waiting, sent, or a result's status"),
    Column("created_s", Float, nullable=False),
    Column("expires_s", Float, nullable=False),
    Column("boot_id", String(32), nullable=False, default="", comment="of the life it was last sent to"),
    Column("sent_s", Float),
    Column("n_sent", Integer, nullable=False, default=0),
    Column("message", Text, nullable=False, default=""),
    Column("result", Text, nullable=False, default=""),
    Column("rollout_id", String(32), ForeignKey("rollouts.id")),
    Index("commands_of_device", "site", "device", "state"),
    Index("commands_by_state", "state", "expires_s"),
)

bundles = Table(
    "bundles",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("bundle_id", String(64), nullable=False),
    Column("release", Text, nullable=False, comment="edge_cl.commands.Release as the signed JSON text"),
    Column("signed_by", String(63), nullable=False),
    Column("signature", String(128), nullable=False),
    Column("added_s", Float, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("sha256", String(64), ForeignKey("bundles.sha256"), nullable=False),
    Column("group_name", String(63), nullable=False),
    Column("steps", Text, nullable=False, comment="shares of the group, JSON list, rising to 1"),
    Column("step", Integer, nullable=False, default=0, comment="index of the wave under way"),
    Column("state", String(16), nullable=False, comment="running, done, aborted, paused"),
    Column("abort_share", Float, nullable=False),
    Column("abort_after", Integer, nullable=False, comment="of a wave; 0 is all of it, 20 at most"),
    Column("patience_s", Float, nullable=False, comment="after so long without a word a device is silent"),
    Column("undo", Boolean, nullable=False, comment="send back those that have it when it is aborted"),
    Column("started_s", Float, nullable=False),
    Column("ended_s", Float),
    Column("reason", Text, nullable=False, default=""),
)

rollout_devices = Table(
    "rollout_devices",
    metadata,
    Column("rollout_id", String(32), ForeignKey("rollouts.id"), primary_key=True),
    *_whose(),
    Column("wave", Integer, nullable=False, comment="-1: ran it already when the rollout began"),
    Column(
        "state",
        String(16),
        nullable=False,
        comment="already, waiting, sent, fetched, shadow, committed, rolled-back, failed",
    ),
    Column("before", String(64), nullable=False, default="", comment="bundle_id that it ran when asked"),
    Column("command_id", String(32), nullable=False, default=""),
    Column("at_s", Float, comment="when it was asked, or last said something of it"),
    Column("reason", Text, nullable=False, default=""),
    Column("n_trusted", Integer, nullable=False, default=0, comment="labels that both were judged by"),
    Column("accuracy_old", Float),
    Column("accuracy_new", Float),
    Index("rollout_devices_by_state", "rollout_id", "wave", "state"),
)
