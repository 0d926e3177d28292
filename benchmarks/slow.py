"""Run the tests that take minutes, and write what came of them.

    python benchmarks/slow.py

writes ``benchmarks/results/slow.json``.
"""

import json
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from machine import describe

RESULTS = Path(__file__).parent / "results"
COMMAND = ("pytest", "-m", "slow", "--timeout=0", "-n", "1")


def main() -> None:
    """Run them, and count."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-m", *COMMAND, f"--junitxml={report}"], check=False)
        suite = next(ElementTree.parse(report).iter("testsuite"))
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    result = {
        "command": " ".join(COMMAND),
        "machine": describe(),
        "seconds": round(time.monotonic() - started, 1),
        **counts,
    }
    (RESULTS / "slow.json").write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
