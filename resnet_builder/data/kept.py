"""What looking at every picture gave, kept between runs in one file, verified when it is read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from resnet_builder.data.memory import fingerprint
from resnet_builder.data.partial import partial_file

_DIGEST, _BROKEN = "fingerprint", "broken"
_REASONS = TypeAdapter(dict[str, str])


@dataclass(frozen=True, slots=True)
class Findings:
    """What looking at every picture gave.

    Attributes:
        tensors: By split: uint8, a row for each picture; zeros where it is broken.
        broken: Why a picture cannot be decoded, by its name.
    """

    tensors: Mapping[str, Tensor]
    broken: Mapping[str, str]


def read_findings(path: Path, counts: Mapping[str, int]) -> Findings | None:
    """Read what an earlier run found, unless it is not there, or not whole.

    Args:
        path: The file.
        counts: How many pictures each split must have.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {split: file.get_tensor(split) for split in counts}
        findings = Findings(tensors, _REASONS.validate_json(about.get(_BROKEN, "")))
    except (OSError, SafetensorError, ValueError):
        return None
    fits = all(len(tensors[split]) == count for split, count in counts.items())
    return findings if fits and about.get(_DIGEST) == _digest(findings) else None


def write_findings(path: Path, findings: Findings) -> str | None:
    """Keep what was found.

    Args:
        path: The file, which is there in whole or not at all.
        findings: What it will hold.

    Returns:
        Why it could not be kept, if so: the next run then looks again.
    """
    about = {_DIGEST: _digest(findings), _BROKEN: json.dumps(dict(findings.broken))}
    try:
        with partial_file(path) as partial:
            save_file(dict(findings.tensors), partial, about)
            partial.replace(path)
    except (OSError, SafetensorError) as error:
        return f"decoded pictures are not kept for the next run: {error}"
    return None


def _digest(findings: Findings) -> str:
    broken = sorted(findings.broken.items())
    return fingerprint(*findings.tensors.values(), about=repr(broken))
