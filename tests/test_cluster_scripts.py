"""Job scripts of docs/how-to/several-processes.md, with stand-ins for Slurm's commands."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "several-processes.md"
SCRIPTS = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)

# Runs the command once on each node. At the first start of the job it sends a signal, as Slurm
# does before the time limit, once the first epoch is over.
SRUN = """\
#!/bin/bash
children=()
for node in $(seq "$SLURM_NNODES"); do "$@" & children+=($!); done
if [ ! -e requeued ]; then
  until grep -qs "val.top1" runs/*/train.log; do sleep 0.2; done
  kill -TERM "${children[@]}"
fi
code=0
for child in "${children[@]}"; do wait "$child" || code=$?; done
exit "$code"
"""
SCONTROL = """\
#!/bin/bash
if [ "$1" = requeue ]; then echo "$2" >> requeued; else echo localhost; fi
"""


@pytest.mark.slow
@pytest.mark.parametrize(("script", "nodes"), [*zip(SCRIPTS, (1, 2), strict=True)])
def test_job_is_stopped_requeued_and_resumed(script: str, nodes: int, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    changed = script.replace("29500", str(port)).replace("--nproc-per-node 4", "--nproc-per-node 1")
    changed = changed.replace("train resnet110", "train resnet20_digits --epochs 4 --no-report")
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("job", changed)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "SLURM_JOB_ID": "17", "SLURM_NNODES": str(nodes)}

    def start() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["job"],
            cwd=tmp_path,
            env={**environment, "SLURM_JOB_NODELIST": "node[1-2]"},
            capture_output=True,
            text=True,
            timeout=100,
            executable=tmp_path / "bin" / "job",
        )

    first = start()
    assert first.returncode == (143 if nodes == 1 else 1), first.stderr
    assert (tmp_path / "requeued").read_text() == "17\n"
    assert not (tmp_path / "runs" / "resnet110" / "result.json").exists()
    second = start()
    assert second.returncode == 0, second.stderr
    assert (tmp_path / "runs" / "resnet110" / "result.json").exists()
    assert (tmp_path / "requeued").read_text() == "17\n"
    log = (tmp_path / "runs" / "resnet110" / "train.log").read_text()
    assert re.findall(r"from step (\d+) of 68", log)[0] == "0"
    assert len(re.findall(r"from step ([1-9]\d*) of 68", log)) == 1
