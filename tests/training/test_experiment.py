"""One training reads, validates and builds its experiment once."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from resnet_builder.model import ResNet
from resnet_builder.spec.schema import Spec
from tests.cli.experiments import call, write_tiny


def test_training_parses_validates_and_builds_on_meta_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny(tmp_path)
    counts: Counter[str] = Counter()
    text = path.read_text(encoding="utf-8")
    loader, network = yaml.SafeLoader.__init__, ResNet.__init__
    validate: Any = Spec.model_validate

    def parse(self: yaml.SafeLoader, stream: Any) -> None:
        counts["parse"] += stream == text
        loader(self, stream)

    def build(self: ResNet, layers: Any) -> None:
        network(self, layers)
        counts["meta" if any(p.is_meta for p in self.parameters()) else "network"] += 1

    def check(cls: type[Spec], *arguments: Any, **options: Any) -> Any:
        counts["validate"] += 1
        return validate.__func__(cls, *arguments, **options)

    monkeypatch.setattr(yaml.SafeLoader, "__init__", parse)
    monkeypatch.setattr(ResNet, "__init__", build)
    monkeypatch.setattr(Spec, "model_validate", classmethod(check))
    result = call("train", path, "--out", tmp_path / "run", "--set", "train.epochs=1")
    assert result.exit_code == 0, result.stderr
    assert counts == {"parse": 1, "validate": 1, "meta": 1, "network": 1}
