"""One training, or its continuation, parses, validates and builds its experiment once."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from resnet_builder.model import ResNet
from resnet_builder.spec.schema import Spec
from tests.cli.experiments import call, write_tiny


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return counts of whole specs that are parsed and validated, and of networks by device."""
    counts: Counter[str] = Counter()
    loader, network = yaml.SafeLoader.__init__, ResNet.__init__
    validate: Any = Spec.model_validate

    def parse(self: yaml.SafeLoader, stream: Any) -> None:
        counts["parse"] += "model:" in stream
        loader(self, stream)

    def build(self: ResNet, *arguments: Any) -> None:
        network(self, *arguments)
        counts["meta" if any(p.is_meta for p in self.parameters()) else "network"] += 1

    def check(cls: type[Spec], *arguments: Any, **options: Any) -> Any:
        counts["validate"] += 1
        return validate.__func__(cls, *arguments, **options)

    monkeypatch.setattr(yaml.SafeLoader, "__init__", parse)
    monkeypatch.setattr(ResNet, "__init__", build)
    monkeypatch.setattr(Spec, "model_validate", classmethod(check))
    return counts


def test_training_and_resume_parse_validate_and_build_on_meta_once(
    tmp_path: Path, counts: Counter[str]
) -> None:
    once = {"parse": 1, "validate": 1, "meta": 1, "network": 1}
    spec, run = write_tiny(tmp_path), tmp_path / "run"
    result = call("train", spec, "--out", run, "--set", "train.epochs=1")
    assert result.exit_code == 0, result.stderr
    assert counts == once

    counts.clear()
    (run / "result.json").unlink()
    result = call("train", "--resume", run)
    assert result.exit_code == 0, result.stderr
    assert counts == once
