"""The installed wheel, not the repository: a short headless demo. Run by `make wheel-test`."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    import edge_cl

    where = Path(edge_cl.__file__).resolve()
    if "site-packages" not in where.parts:
        sys.exit(f"imported {where}, not the installed wheel")
    for name in ("export", "device", "tests", "bench", "torch"):
        if importlib.util.find_spec(name) is not None:
            sys.exit(f"`import {name}` works, but the wheel must not bring it")
    command = str(Path(sys.executable).with_name("edge-cl"))
    subprocess.run([command, "--help"], check=True, timeout=60, stdout=subprocess.DEVNULL)
    export = subprocess.run(
        [command, "export", "--data", "x.npz", "-o", "x.ecl"], capture_output=True, timeout=60
    )
    fleet = subprocess.run([command, "fleet", "devices"], capture_output=True, timeout=60)
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        report = Path(folder) / "report.html"
        subprocess.run(
            [command, "simulate", "--windows", "1200", "--json", figures, "--report", report],
            check=True,
            timeout=300,
        )
        found = json.loads(figures.read_text())
        page = report.read_text()
    now, memory, messages = found["accuracy"]["now"], found["memory"], found["messages"]
    checks = {
        "export says that it needs torch": b"pip install torch" in export.stderr,
        "fleet says what it needs": b"pip install 'edge-cl[fleet]'" in fleet.stderr,
        "learning beats frozen": now["learning"] > now["frozen"],
        "memory within budget": memory["held_bytes"] <= memory["budget_bytes"],
        "every message delivered": messages["sent"] == messages["delivered"] > 0,
        "the report stands alone": "<svg" in page and 'src="http' not in page,
    }
    failed = [what for what, passed in checks.items() if not passed]
    sys.stdout.write(f"{len(checks) - len(failed)} passed, {len(failed)} failed\n{chr(10).join(failed)}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
