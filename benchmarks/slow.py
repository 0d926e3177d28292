"""Run the tests that take minutes, and write what came of them.

    python benchmarks/slow.py [slow.xml]

writes ``benchmarks/results/slow.json``, and what the kill loop came to into ``kills.json``; and
into a file of your own, if you name one, pytest's report.
"""

import json
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from common import RESULTS, describe_machine, write

COMMAND = ("pytest", "-m", "slow", "--timeout=0", "-n", "1")


def main() -> None:
    """Run them, and count."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(sys.argv[1] if len(sys.argv) > 1 else f"{folder}/report.xml").absolute()
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-m", *COMMAND, f"--junitxml={report}"], check=False)
        suite = next(ElementTree.parse(report).iter("testsuite"))
    about = {"command": " ".join(COMMAND), "machine": describe_machine()}
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    write(
        RESULTS / "slow.json", {**about, "seconds": round(time.monotonic() - started, 1), **counts}
    )
    if kills := killed(suite):
        total = sum(run["kills"] for run in kills.values())
        write(RESULTS / "kills.json", {**about, "kills": total, "by_experiment": kills})
    sys.exit(done.returncode)


def killed(suite: ElementTree.Element) -> dict[str, Any]:
    """Return what the tests of the kill loop that passed noted, by experiment."""
    found = {}
    for case in suite.iter("testcase"):
        noted = {each.get("name"): each.get("value") for each in case.iter("property")}
        if "kills" in noted and case.find("failure") is None and case.find("error") is None:
            experiment = noted.pop("experiment")
            found[experiment] = {name: json.loads(value) for name, value in noted.items()}
    return found


if __name__ == "__main__":
    main()
