"""JSON schemas of the protocol, made from the message types: ``python -m edge_cl.sync.schemas``."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from edge_cl.commands import Command, Release
from edge_cl.sync.messages import DOWN, PROTOCOL, UP, Hello


def schemas() -> dict[str, Any]:
    """What each topic carries, by kind, and the types that they are made of."""
    down = {f"cmd/{kind}": type_ for kind, type_ in DOWN.items()}
    kinds: dict[str, Any] = UP | down | {"hello": Hello, "command": Command, "release": Release}
    found, types = msgspec.json.schema_components(kinds.values(), ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"edge-cl protocol, version {PROTOCOL}",
        "kinds": dict(zip(kinds, found, strict=True)),
        "$defs": types,
    }


if __name__ == "__main__":
    text = msgspec.json.format(msgspec.json.encode(schemas(), order="sorted"), indent=1)
    sys.stdout.buffer.write(text + b"\n")
