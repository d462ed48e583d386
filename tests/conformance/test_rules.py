"""Every numbered rule of docs/protocol.md has a test here, and every test a rule."""

from __future__ import annotations

import re
from pathlib import Path


def test_every_rule_has_its_test() -> None:
    here = Path(__file__).parent
    written = re.findall(r"^- \*\*([PDS]\d+)\*\*", (here.parents[1] / "docs/protocol.md").read_text(), re.M)
    source = "".join(file.read_text() for file in sorted(here.glob("test_*.py")))
    tested = {name.upper() for name in re.findall(r"^def test_([pds]\d+)_", source, re.M)}
    assert len(written) == len(set(written)) and tested == set(written)
