"""Entries of the journal, as rows of a table: each with a hash of itself and of the one before."""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec
import numpy as np

from edge_cl.records import FloatArray

Kind = Literal[
    "label", "not", "sleep", "wake", "rename", "held", "review", "forget", "hold", "rollback", "damaged",
    "forgotten",
]  # fmt: skip
LEARNED = ("label", "not", "sleep", "wake", "rename")
"""Kinds that learned state is made of, taken in order."""
REVISIONS = ("forget", "hold", "rollback")
"""Kinds that say which earlier entries no longer count."""
RARE = (*REVISIONS, "held", "review", "rename")
"""Kinds that an index finds."""
COLUMNS = "seq, kind, reading_id, label, source, trust, t_s, at_s, detail, feature"
INSERT = f"INSERT INTO journal ({COLUMNS}, chain) VALUES ({','.join('?' * 11)})"


_ORIGIN = re.compile(r"[0-9a-f]{16}:\d+")


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the journal.

    Attributes
    ----------
    seq
        Its number, from 1, without gaps.
    kind
        ``label`` (`feature` was learned as class `label`), ``not`` (it is not of that class), ``sleep`` and
        ``wake`` (`detail` is the plan, and how it ended), ``rename`` (`label` is called `detail` now):
        learned state is a pure function of the bundle and these, in order. ``forget``, ``hold`` and
        ``rollback`` (`detail` says what) take earlier ones back. ``held`` is a label that waits for
        ``review``. ``forgotten`` is an erased entry, its feature a digest of what it was; ``damaged`` one
        that failed its checksum.
    source, trust
        Who said or asked it, and how far that one is trusted, 0 to 1.
    t_s, at_s
        By the source's clock, and by the device's wall clock when it was journalled.
    """

    seq: int
    kind: Kind
    label: str = ""
    reading_id: str = ""
    source: str = ""
    trust: float = 1.0
    t_s: float = 0.0
    at_s: float = 0.0
    detail: str = ""
    feature: FloatArray = msgspec.field(default_factory=lambda: np.zeros(0, dtype=np.float32))


def link_all(rows: Iterable[Entry], chain: bytes = b"") -> Iterator[tuple[object, ...]]:
    """Rows to insert for entries that begin a journal."""
    for one in rows:
        values = row(one)
        chain = link(chain, digest(values))
        yield (*values, chain)


def row(entry: Entry) -> tuple[object, ...]:
    feature = np.ascontiguousarray(entry.feature, dtype=np.float32).tobytes()
    t_s, at_s = (float(t) if math.isfinite(t) else 0.0 for t in (entry.t_s, entry.at_s))
    texts = (str(entry.kind), str(entry.reading_id), str(entry.label), str(entry.source))
    return (int(entry.seq), *texts, float(entry.trust), t_s, at_s, str(entry.detail), feature)


def entry(row: Iterable[Any]) -> Entry:
    seq, kind, reading_id, label, source, trust, t_s, at_s, detail, feature = row
    blob = feature if isinstance(feature, bytes) and kind != "forgotten" else b""
    return Entry(
        seq=seq,
        kind=kind,
        reading_id=reading_id,
        label=label,
        source=source,
        trust=trust,
        t_s=t_s,
        at_s=at_s,
        detail=detail,
        feature=np.frombuffer(blob, dtype=np.float32),
    )


def sound(row: list[object], chain: bytes | None, stored: object) -> bool:
    """Whether a row's hash is that of its content and of the chain before it (None: not known any more)."""
    if row[1] == "damaged" or chain is None:
        return True
    found = row[9] if row[1] == "forgotten" else digest(tuple(row))
    return isinstance(found, bytes) and link(chain, found) == stored


def digest(row: tuple[object, ...]) -> bytes:
    feature = row[9]
    found = hashlib.blake2b(msgspec.msgpack.encode(row[:9]), digest_size=16)
    found.update(feature if isinstance(feature, bytes) else b"?")
    return found.digest()


def link(chain: bytes, digest: bytes) -> bytes:
    return hashlib.blake2b(chain + digest, digest_size=16).digest()


def is_origin(detail: str) -> bool:
    """Whether a label's detail says where it was merged from: ``uid:seq``."""
    return bool(_ORIGIN.fullmatch(detail))


def check(key: str, value: str) -> str:
    return f"{zlib.crc32(f'{key}={value}'.encode()):08x}"
