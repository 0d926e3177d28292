"""The form of what ``--json`` prints, against stored examples: programs rely on it.

``REGENERATE_GOLDEN=1 pytest tests/cli/test_json.py`` writes the forms again: read the difference.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnet_builder import bench
from tests.cli.experiments import call, write_checkpoint, write_tiny

GOLDEN = Path(__file__).parent / "golden"


def form(value: Any) -> Any:
    """Reduce a document to its form: keys, and kinds of values; of a list, its first item."""
    if isinstance(value, dict):
        return {key: form(item) for key, item in value.items()}
    if isinstance(value, list):
        return [form(item) for item in value[:1]]
    if isinstance(value, bool) or value is None:
        return "true or false" if value is not None else "null"
    return "number" if isinstance(value, int | float) else "text"


@pytest.fixture
def arguments(folder: Path, finished_run: Path, other_run: Path) -> dict[str, list[object]]:
    """Return a command line for each kind of document."""
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(folder / "black.png")
    return {
        "validate": ["validate", write_tiny(folder, "trian: {}"), "resnet20"],
        "summary": ["summary", "resnet20"],
        "diff": ["diff", finished_run, other_run],
        "bench": ["bench", write_tiny(folder, name="measured.yaml"), "--seconds", "0.1"],
        "train": ["train", "--resume", finished_run],
        "evaluate": ["evaluate", finished_run],
        "predict": ["predict", finished_run, "black.png"],
        "import": [
            "import",
            write_checkpoint(folder / "theirs.pth", finished_run),
            *("--spec", write_tiny(folder, name="theirs.yaml"), "-o", "ours.safetensors"),
        ],
        "publish": ["publish", finished_run, "--to", "net"],
        "export": ["export", finished_run, "-o", "exported.safetensors"],
        "list-specs": ["list", "specs"],
        "list-recipes": ["list", "recipes"],
        "list-parts": ["list", "parts"],
        "list-runs": ["list", "runs", finished_run.parent],
    }


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.json")))
def test_document_keeps_its_form(
    name: str, arguments: dict[str, list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key may be added under the same schema number; then the stored form is changed with it."""
    monkeypatch.setattr(bench, "cpu_seconds", lambda: None)  # or figures differ on a busy machine
    document = json.loads(call(*arguments[name], "--json").stdout)
    path = GOLDEN / f"{name}.json"
    if os.environ.get("REGENERATE_GOLDEN"):
        path.write_text(json.dumps(form(document), indent=2) + "\n", encoding="utf-8")
    assert form(document) == json.loads(path.read_text(encoding="utf-8"))
    assert document["schema"] == 1


def test_every_document_has_a_stored_form(arguments: dict[str, list[object]]) -> None:
    assert set(arguments) == {path.stem for path in GOLDEN.glob("*.json")}
