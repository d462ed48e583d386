"""The published schemas are those of the code."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edge_cl.sync import messages
from edge_cl.sync.schemas import schemas

PUBLISHED = Path(__file__).parents[2] / "docs/protocol-schema.json"


def test_the_published_schemas_are_up_to_date() -> None:
    published = msgspec.json.decode(PUBLISHED.read_bytes())
    made = msgspec.json.decode(msgspec.json.encode(schemas()))
    assert published == made, "run: python -m edge_cl.sync.schemas > docs/protocol-schema.json"


def test_every_kind_of_message_has_one() -> None:
    kinds = schemas()["kinds"]
    assert kinds.keys() >= messages.UP.keys() | {f"cmd/{kind}" for kind in messages.DOWN}
    assert "$ref" in kinds["receipt"] and "epoch" in str(schemas()["$defs"])
