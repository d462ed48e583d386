"""Whatever bytes come under whatever kind: a message, or a `SyncError`, and nothing else."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.errors import SyncError
from edge_cl.sync import messages

KINDS = sorted({*messages.UP, *messages.DOWN, "hello"})
FIELDS = [
    "v",
    "id",
    "epoch",
    "seq",
    "seqs",
    "boot_id",
    "up_s",
    "data",
    "ids",
    "status",
    "online",
    "sha256",
    "n",
]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner),
    max_leaves=10,
).map(lambda found: json.dumps(found).encode())


@settings(max_examples=200)
@given(st.sampled_from(KINDS), st.binary(max_size=100) | values)
def test_any_bytes(kind: str, payload: bytes) -> None:
    with contextlib.suppress(SyncError):
        messages.decode(kind, payload)


@pytest.mark.parametrize("kind", KINDS)
def test_nesting_without_end(kind: str) -> None:
    """In a field that is not known, too: there msgspec raises no error of its own."""
    for payload in (b"[" * 60_000, b'{"x":' + b"[" * 30_000 + b"]" * 30_000 + b"}"):
        with pytest.raises(SyncError, match=f"not a {kind} message"):
            messages.decode(kind, payload)
