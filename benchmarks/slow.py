"""Run the slow tests, and write their outcome.

python benchmarks/slow.py            # all: benchmarks/results/slow.json and kills.json
python benchmarks/slow.py --kills    # the kill loop alone, 50 kills over 3 specs: kills.json
"""

import argparse
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
KILL_LOOP = ("tests/crash/test_kills.py",)


def main() -> None:
    """Run the tests, and count them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", action="store_true", help="run the kill loop alone")
    only_kills = parser.parse_args().kills
    command = (*COMMAND, *KILL_LOOP) if only_kills else COMMAND
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        done = subprocess.run([sys.executable, "-m", *command, f"--junitxml={report}"], check=False)
        suite = next(ElementTree.parse(report).iter("testsuite"))
    about = {"command": " ".join(command), "machine": describe_machine()}
    if not only_kills:
        counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
        seconds = round(time.monotonic() - started, 1)
        write(RESULTS / "slow.json", {**about, "seconds": seconds, **counts})
    if kills := kills_by_experiment(suite):
        total = sum(each["kills"] for each in kills.values())
        write(RESULTS / "kills.json", {**about, "kills": total, "by_experiment": kills})
    sys.exit(done.returncode)


def kills_by_experiment(suite: ElementTree.Element) -> dict[str, Any]:
    """Return the properties that the kill loop's tests reported, if they passed."""
    found = {}
    for case in suite.iter("testcase"):
        reported = {each.get("name"): each.get("value") for each in case.iter("property")}
        if "kills" in reported and case.find("failure") is None and case.find("error") is None:
            experiment = reported.pop("experiment")
            found[experiment] = {name: json.loads(value) for name, value in reported.items()}
    return found


if __name__ == "__main__":
    main()
